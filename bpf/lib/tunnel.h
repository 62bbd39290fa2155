/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Other nodes: which address is whose, and the tunnel to them and from them.
 * One device serves all of it, so where a packet goes and who sent it is in the
 * tunnel key of each. The inner frame's hardware addresses mean nothing.
 */
#pragma once
#include "lib/endpoint.h"

/* Newer kernels have the local address at the end; both take the shorter one. */
#define TUNNEL_KEY_SHORT offsetof(struct bpf_tunnel_key, local_ipv6)
#define TUNNEL_TTL 64

INLINE struct tunnel *find_tunnel(const struct address *address)
{
	struct peer_key key = { .prefix_length = 128 };

	key.address = *address;
	return bpf_map_lookup_elem(MAP(TUNNELS_FD), &key);
}

/* The node that an address is to be reached at. */
INLINE struct tunnel *tunnel_towards(const struct address *address)
{
	struct tunnel *tunnel = find_tunnel(address);

	return tunnel && !(tunnel->flags & TUNNEL_SOURCE_ONLY) ? tunnel : NULL;
}

/* Is there a tunnel, or a route to go along? */
INLINE bool tunnelled(const struct tunnel *tunnel)
{
	return !no_address(&tunnel->remote);
}

/* Does another node send this address through the tunnel and no other way? */
INLINE bool only_by_tunnel(const struct address *address)
{
	struct tunnel *tunnel = tunnel_towards(address);

	return tunnel && tunnelled(tunnel);
}

/* The identity that other nodes are told: of a pod. */
INLINE __u32 identity_of(__u32 endpoint)
{
	struct endpoint_policy *policy = bpf_map_lookup_elem(MAP(ENDPOINTS_FD), &endpoint);

	return policy && policy->identity <= TUNNEL_VNI_MAX ? policy->identity : IDENTITY_UNKNOWN;
}

/* Names the other end. Returns 0 or the drop reason. */
INLINE int encapsulate(struct __sk_buff *ctx, const struct tunnel *tunnel, __u32 identity)
{
	struct bpf_tunnel_key key = {};
	__u64 flags;

	if (unlikely(!tunnel->ifindex))
		return DROP_NO_TUNNEL;
	key.tunnel_id = identity;
	key.tunnel_ttl = TUNNEL_TTL;
	if (mapped_ipv4(&tunnel->remote)) {
		key.remote_ipv4 = bpf_ntohl(*(__be32 *)(tunnel->remote.bytes + 12));
		key.local_ipv4 = bpf_ntohl(*(__be32 *)(tunnel->local.bytes + 12));
		/* RFC 7348, section 5. Over IPv6 there must be one (RFC 8200). */
		flags = BPF_F_ZERO_CSUM_TX;
	} else {
		__builtin_memcpy(key.remote_ipv6, &tunnel->remote, 16);
		__builtin_memcpy(key.local_ipv6, &tunnel->local, 16);
		flags = BPF_F_TUNINFO_IPV6;
	}
	if (unlikely(bpf_skb_set_tunnel_key(ctx, &key, sizeof(key), flags)) &&
	    bpf_skb_set_tunnel_key(ctx, &key, TUNNEL_KEY_SHORT, flags))
		return DROP_NO_TUNNEL;
	return 0;
}

/* Believes the other end only when it is the node that the inner source belongs
 * to. Returns 0 and the origin, or the drop reason.
 */
INLINE int tunnel_sender(struct __sk_buff *ctx, const struct address *source, __u32 *origin)
{
	struct bpf_tunnel_key key = {};
	struct address outer = {};
	struct tunnel *tunnel;

	if (!bpf_skb_get_tunnel_key(ctx, &key, TUNNEL_KEY_SHORT, 0))
		map_ipv4(&outer, bpf_htonl(key.remote_ipv4));
	else if (!bpf_skb_get_tunnel_key(ctx, &key, TUNNEL_KEY_SHORT, BPF_F_TUNINFO_IPV6))
		__builtin_memcpy(&outer, key.remote_ipv6, 16);
	else
		return DROP_TUNNEL_KEY;
	tunnel = find_tunnel(source);
	if (unlikely(!tunnel || !same_address(&tunnel->remote, &outer)))
		/* A node that sends for another, or nobody's node at all. */
		return find_tunnel(&outer) ? DROP_INVALID_SOURCE_IP : DROP_UNKNOWN_SENDER;
	if (unlikely(key.tunnel_id > TUNNEL_VNI_MAX))
		return DROP_INVALID_VNI;
	/* To others a node's own stack is a remote one. */
	if (unlikely(key.tunnel_id == IDENTITY_HOST))
		return DROP_INVALID_IDENTITY;
	*origin = 1U << ORIGIN_TUNNEL_BIT | key.tunnel_id;
	return 0;
}
