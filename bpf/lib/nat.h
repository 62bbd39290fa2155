/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Mappings of masqueraded connections: found, and made. Each is two entries, one
 * for each way. The one of the way back is inserted first and decides who has a
 * port; without it no answer would arrive, so there is never an entry of the way
 * out alone for long (agent/core/masquerade.py ends what is left half).
 *
 * A port is taken for one remote address and port only (RFC 4787, endpoint-
 * dependent): the same may serve others.
 */
#pragma once
#include "lib/conntrack.h"
#include "lib/nat_previous.h"

/* Ports that are looked at for a new connection. With nine tenths of the range
 * taken for one remote port, one new connection in 150 finds none.
 */
#define NAT_TRIES 48

#define EEXIST_ 17

/* Newer than the header that bcc brings has them, or not there at all. */
static struct bpf_sock *(*find_tcp_socket)(void *ctx, struct bpf_sock_tuple *tuple, __u32 size,
					   __u64 netns, __u64 flags) = (void *)99;
static struct bpf_sock *(*find_udp_socket)(void *ctx, struct bpf_sock_tuple *tuple, __u32 size,
					   __u64 netns, __u64 flags) = (void *)85;
static long (*release_socket)(void *socket) = (void *)86;

/* Working memory, in scratch. */
struct translation {
	struct ct_key key;
	struct nat_reverse_key back;
	struct nat_entry entry;
	struct nat_origin origin;
	struct masquerade_source source;
	struct packet inner; /* that an ICMP error quotes */
	__u32 now; /* s */
	__u32 hash;
};

INLINE struct nat_entry *nat_find(struct ct_key *key)
{
	struct nat_entry *entry = bpf_map_lookup_elem(MAP(NAT_FD), key);

	return entry ? entry : nat_adopt(key);
}

INLINE struct nat_origin *nat_find_origin(struct nat_reverse_key *key)
{
	struct nat_origin *origin = bpf_map_lookup_elem(MAP(NAT_REVERSE_FD), key);

	return origin ? origin : nat_adopt_origin(key);
}

/* The key under which p, coming from outside, finds whose it is. */
INLINE void nat_reverse_key_of(struct nat_reverse_key *key, const struct packet *p)
{
	__builtin_memset(key, 0, sizeof(*key));
	key->remote = p->source;
	key->address = p->destination;
	key->remote_port = p->source_port;
	key->port = p->destination_port;
	key->protocol = p->protocol;
}

/* The same connection from the same pod begins at the same port, so that what was
 * cleaned up between two of its packets is likely to find its port again.
 */
INLINE __u32 nat_hash(const struct ct_key *key, __u32 seed)
{
	const __u32 *words = (const __u32 *)key;
	__u32 hash = seed;
	int i;

#pragma unroll
	for (i = 0; i < sizeof(*key) / 4; i++) {
		hash = (hash ^ words[i]) * 0x9e3779b1;
		hash ^= hash >> 15;
	}
	return hash;
}

/* Does a socket of the node's own listen there, or have this very connection?
 * The protocols that have ports which sockets own.
 */
INLINE bool nat_port_in_use(struct __sk_buff *ctx, const struct packet *p,
			    const struct nat_reverse_key *back)
{
	struct bpf_sock_tuple tuple = {};
	struct bpf_sock *found;
	__u32 size;

	if (p->version == 4) {
		tuple.ipv4.saddr = *(__be32 *)(back->remote.bytes + 12);
		tuple.ipv4.daddr = *(__be32 *)(back->address.bytes + 12);
		tuple.ipv4.sport = back->remote_port;
		tuple.ipv4.dport = back->port;
		size = sizeof(tuple.ipv4);
	} else {
		__builtin_memcpy(tuple.ipv6.saddr, &back->remote, 16);
		__builtin_memcpy(tuple.ipv6.daddr, &back->address, 16);
		tuple.ipv6.sport = back->remote_port;
		tuple.ipv6.dport = back->port;
		size = sizeof(tuple.ipv6);
	}
	if (p->protocol == IPPROTO_TCP)
		found = find_tcp_socket(ctx, &tuple, size, BPF_F_CURRENT_NETNS, 0);
	else if (p->protocol == IPPROTO_UDP)
		found = find_udp_socket(ctx, &tuple, size, BPF_F_CURRENT_NETNS, 0);
	else
		return false;
	if (!found)
		return false;
	release_socket(found);
	return true;
}

/* Takes the port in t->back, or finds that this connection has it. Returns 0, a
 * drop reason, or -1: it is somebody else's.
 */
INLINE int nat_take(struct __sk_buff *ctx, const struct packet *p, struct translation *t)
{
	struct nat_origin *other = nat_find_origin(&t->back);
	long error;

	if (other) {
		if (other->endpoint != t->origin.endpoint || other->port != t->origin.port ||
		    !same_address(&other->address, &t->origin.address))
			return -1;
		/* Of this connection's former life, or by another CPU. */
		other->seen = t->now;
		other->flags = 0;
		return 0;
	}
	if (nat_port_in_use(ctx, p, &t->back))
		return -1;
	if (!nat_mirror_origin(&t->back, &t->origin))
		return -1;
	error = bpf_map_update_elem(MAP(NAT_REVERSE_FD), &t->back, &t->origin, BPF_NOEXIST);
	if (!error)
		return 0;
	if (error == -EEXIST_)
		return -1;
	count(COUNTER_NAT_FULL);
	return DROP_CT_INSERTION_FAILED;
}

/* A mapping for a new connection; t->key, t->origin and t->now are filled in.
 * Returns 0 or the drop reason.
 */
INLINE int nat_create(struct __sk_buff *ctx, const struct packet *p, struct translation *t)
{
	struct masquerade_key place = { .ifindex = CTX_LOAD(ctx, ifindex), .family = p->version };
	struct masquerade_source *source;
	struct nat_entry *entry;
	int i, taken = -1;
	__u32 ports;

	source = bpf_map_lookup_elem(MAP(MASQUERADE_FD), &place);
	if (!source)
		return DROP_NAT_NO_MAPPING; /* no address there */
	t->source = *source;
	forget_values();
	__builtin_memset(&t->back, 0, sizeof(t->back));
	t->back.remote = p->destination;
	t->back.address = t->source.address;
	t->back.remote_port = t->key.remote_port;
	t->back.protocol = p->protocol;
	t->back.port = t->origin.port;
	t->hash = nat_hash(&t->key, t->source.seed);
	ports = t->source.last_port - t->source.first_port + 1;
	/* The pod's own port, if nobody else could have it. Always that of SCTP,
	 * whose checksum is a CRC of the whole packet.
	 */
	if (p->protocol == IPPROTO_SCTP || (bpf_ntohs(t->origin.port) >= t->source.first_port &&
					    bpf_ntohs(t->origin.port) <= t->source.last_port))
		taken = nat_take(ctx, p, t);
	forget_values();
	if (p->protocol != IPPROTO_SCTP) {
#pragma clang loop unroll(disable)
		for (i = 0; i < NAT_TRIES && taken < 0; i++) {
			t->hash = t->hash * 0x9e3779b1 + 0x7f4a7c15;
			t->back.port = bpf_htons(t->source.first_port +
						 (__u32)(((__u64)t->hash * ports) >> 32));
			forget_values();
			taken = nat_take(ctx, p, t);
			forget_values();
		}
	}
	if (taken < 0) {
		count(COUNTER_NAT_EXHAUSTED);
		return DROP_NAT_NO_MAPPING;
	}
	if (taken)
		return taken;
	t->entry.address = t->source.address;
	t->entry.port = t->back.port;
	t->entry.seen = t->now;
	t->entry.flags = 0;
	if (!bpf_map_update_elem(MAP(NAT_FD), &t->key, &t->entry, BPF_NOEXIST)) {
		nat_mirror(&t->key, &t->entry);
		count(COUNTER_NAT_CREATED);
		return 0;
	}
	/* Made by another CPU meanwhile, maybe with another port; or no room. */
	entry = bpf_map_lookup_elem(MAP(NAT_FD), &t->key);
	if (entry && entry->port == t->entry.port &&
	    same_address(&entry->address, &t->entry.address))
		return 0;
	bpf_map_delete_elem(MAP(NAT_REVERSE_FD), &t->back);
	nat_unmirror(&t->back);
	if (entry)
		return 0;
	count(COUNTER_NAT_FULL);
	return DROP_CT_INSERTION_FAILED;
}
