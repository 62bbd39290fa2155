/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The way of most packets: plain TCP or UDP of a connection that every policy
 * concerned here allowed under the present epoch. It decides nothing. Whatever
 * is not just like that (options, fragments, flags that begin or end a
 * connection, an entry that is not sure) goes the full way, which comes to the
 * same for these packets, at several times the cost.
 */
#pragma once
#include "lib/deliver.h"
#include "lib/straight.h"
#include "lib/tunnel.h"

#define FULL_WAY (-2) /* no TC action */

/* mac: that the frame must come from; NULL: from anywhere. False: not for this
 * way.
 */
INLINE bool parse_plain(struct __sk_buff *ctx, const __u8 *mac, struct plain *p)
{
	void *data = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = data;
	__u32 length, l3, gso = ctx->gso_size;
	struct tcphdr *transport;

	if ((void *)(eth + 1) > end || (mac && !same_mac(eth->h_source, mac)))
		return false;
	if (eth->h_proto == bpf_htons(ETH_P_IP)) {
		struct iphdr *ip = (void *)(eth + 1);

		transport = (void *)(ip + 1);
		/* Down to the TCP flags; a datagram may be shorter than that. */
		if ((void *)transport + 14 > end)
			return false;
		l3 = sizeof(*ip);
		length = bpf_ntohs(ip->tot_len) - l3;
		if (*(__u8 *)ip != 0x45 || (ip->frag_off & bpf_htons(IPV4_MF | IPV4_OFFSET)))
			return false;
		map_ipv4(&p->source, ip->saddr);
		map_ipv4(&p->destination, ip->daddr);
		p->protocol = ip->protocol;
		p->version = 4;
	} else if (eth->h_proto == bpf_htons(ETH_P_IPV6)) {
		struct ipv6hdr *ip = (void *)(eth + 1);

		transport = (void *)(ip + 1);
		if ((void *)transport + 14 > end)
			return false;
		l3 = sizeof(*ip);
		length = bpf_ntohs(ip->payload_len);
		__builtin_memcpy(&p->source, &ip->saddr, 16);
		__builtin_memcpy(&p->destination, &ip->daddr, 16);
		if (ip->version != 6 || mapped_ipv4(&p->source) || mapped_ipv4(&p->destination))
			return false;
		p->protocol = ip->nexthdr;
		p->version = 6;
	} else {
		return false;
	}
	if (ETH_HLEN + l3 + length > ctx->len)
		return false;
	p->size = l3 + length;
	if (p->protocol == IPPROTO_TCP) {
		__u32 header = transport->doff * 4;

		if (header < sizeof(*transport) || length < header ||
		    ((__u8 *)transport)[13] & (TCP_FIN | TCP_SYN | TCP_RST))
			return false;
		if (gso)
			p->size = l3 + header + gso;
	} else if (p->protocol == IPPROTO_UDP && length >= sizeof(struct udphdr)) {
		if (gso)
			p->size = l3 + sizeof(struct udphdr) + gso;
	} else {
		return false;
	}
	p->source_port = transport->source;
	p->destination_port = transport->dest;
	return true;
}

INLINE void touch(struct __sk_buff *ctx, struct ct_entry *entry, bool reply, __u32 now)
{
	ct_count(entry, reply, CTX_LOAD(ctx, len));
	if (now != entry->seen)
		entry->seen = now;
}

/* A connection with somebody on another node or outside that is in full swing:
 * allowed, past the node's stack, answered if this is an answer.
 */
INLINE bool in_swing(const struct ct_entry *entry, bool reply, __u64 epoch)
{
	return entry->verdict == epoch && !(entry->flags & (CT_VIA_STACK | CT_LOCAL)) &&
	       (!reply || entry->flags & CT_SEEN_REPLY);
}

/* To another node: through the tunnel, or straight along the route. */
INLINE int fast_out(struct __sk_buff *ctx, const struct plain *p, struct ct_entry *entry,
		    __u32 endpoint, __u32 now)
{
	struct tunnel *tunnel = tunnel_towards(&p->destination);

	if (!tunnel)
		return FULL_WAY;
	if (tunnelled(tunnel) && encapsulate(ctx, tunnel, identity_of(endpoint)))
		return FULL_WAY;
	touch(ctx, entry, entry->flags & CT_INGRESS, now);
	count_packet(ctx, DIRECTION_EGRESS, REASON_FORWARDED);
	if (tunnelled(tunnel))
		return bpf_redirect(tunnel->ifindex, 0);
	return straight_out(ctx, p->version, &p->source, &p->destination, p->protocol, p->size);
}

/* Out of a pod. Gives the action, and everything is recorded; FULL_WAY: not for
 * this way.
 */
INLINE int fast(struct __sk_buff *ctx, __u64 epoch)
{
	struct place *sender = place_of_device(CTX_LOAD(ctx, ifindex)), *receiver;
	struct ct_entry *entry;
	struct plain *p = plain_scratch();
	struct ct_key key = {};
	__u32 now;

	if (!sender || !p || CTX_LOAD(ctx, mark) || CTX_LOAD(ctx, vlan_present) ||
	    !parse_plain(ctx, sender->mac, p) || !lives_at(sender, &p->source, p->version))
		return FULL_WAY;
	forget_values();
	key.remote = p->destination;
	key.endpoint = sender->endpoint;
	key.local_port = p->source_port;
	key.remote_port = p->destination_port;
	key.protocol = p->protocol;
	entry = bpf_map_lookup_elem(MAP(CT_FD), &key);
	if (!entry)
		return FULL_WAY;
	now = coarse_seconds(&p->clock);
	if (in_swing(entry, entry->flags & CT_INGRESS, epoch))
		return fast_out(ctx, p, entry, key.endpoint, now);
	if (entry->verdict != (epoch | CT_VOUCHED) || entry->flags & CT_VIA_STACK ||
	    !told(&key, entry, now))
		return FULL_WAY;
	receiver = place_of_endpoint(entry->far_end);
	if (!receiver || !lives_at(receiver, &key.remote, p->version))
		return FULL_WAY;
	touch(ctx, entry, entry->flags & CT_INGRESS, now);
	count_packet(ctx, DIRECTION_EGRESS, REASON_FORWARDED);
	count_packet(ctx, DIRECTION_INGRESS, REASON_FORWARDED);
	return deliver_to(ctx, receiver->ifindex, receiver->mac, receiver->host_mac);
}

/* Into a pod, from where a packet of this origin comes. way: CT_TUNNEL for the
 * tunnel, else 0; nothing comes by the other one. As `fast`.
 */
INLINE int fast_in(struct __sk_buff *ctx, struct plain *p, __u32 origin, __u32 way, __u64 epoch)
{
	struct local_address *local = find_local((struct address *)&p->destination);
	struct ct_entry *entry;
	struct ct_key key = {};

	if (!local || local->kind != LOCAL_POD)
		return FULL_WAY;
	key.remote = p->source;
	key.endpoint = local->endpoint;
	key.local_port = p->destination_port;
	key.remote_port = p->source_port;
	key.protocol = p->protocol;
	entry = bpf_map_lookup_elem(MAP(CT_FD), &key);
	if (!entry || !in_swing(entry, !(entry->flags & CT_INGRESS), epoch) ||
	    (entry->flags & CT_TUNNEL) != way ||
	    (entry->flags & CT_INGRESS && entry->far_end != origin))
		return FULL_WAY;
	touch(ctx, entry, !(entry->flags & CT_INGRESS), coarse_seconds(&p->clock));
	count_packet(ctx, DIRECTION_INGRESS, REASON_FORWARDED);
	return deliver(ctx, local);
}
