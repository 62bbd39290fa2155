/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Fragments: the first one names the ports, the others follow it (RFC 791,
 * RFC 8200 section 4.5). What would let a later fragment rewrite the header
 * that was judged (RFC 1858, RFC 5722) is dropped.
 */
#pragma once
#include "lib/packet.h"

#define FRAGMENT_LIFETIME (30 * NS_PER_SECOND)

INLINE void fragment_key_of(struct __sk_buff *ctx, struct fragment_key *key, const struct packet *p,
			    __u8 direction)
{
	key->source = p->source;
	key->destination = p->destination;
	key->id = p->fragment_id;
	key->ifindex = CTX_LOAD(ctx, ifindex);
	/* IPv6 tells datagrams apart without it, and a later fragment's next
	 * header need not be the first one's.
	 */
	key->protocol = p->version == 4 ? p->protocol : 0;
	key->direction = direction;
}

/* Gives a later fragment its ports. Returns 0 or the drop reason. */
INLINE int resolve_fragment(struct __sk_buff *ctx, struct packet *p, __u8 direction)
{
	struct fragment_key key = {};
	struct fragment *first;
	bool known;

	fragment_key_of(ctx, &key, p, direction);
	first = bpf_map_lookup_elem(MAP(FRAGMENTS_FD), &key);
	known = first && ktime_coarse() - first->seen < FRAGMENT_LIFETIME;
	if (p->fragment == FRAGMENT_FIRST)
		/* A second first one that says something else. */
		return known && (first->source_port != p->source_port ||
				 first->destination_port != p->destination_port ||
				 first->end != p->fragment_length ||
				 first->protocol != p->protocol ||
				 first->icmp_type != p->icmp_type) ?
			       DROP_FRAGMENT_NOT_FOUND :
			       0;
	if (!known || p->fragment_offset < first->end)
		return DROP_FRAGMENT_NOT_FOUND;
	p->source_port = first->source_port;
	p->destination_port = first->destination_port;
	p->icmp_type = first->icmp_type;
	if (p->version == 6)
		p->protocol = first->protocol;
	if (p->protocol == IPPROTO_ICMP || p->protocol == IPPROTO_ICMPV6)
		set_icmp(p, first->source_port | first->destination_port);
	return 0;
}

/* The first fragment was let through: those that follow may come too. */
INLINE void remember_fragment(struct __sk_buff *ctx, const struct packet *p, __u8 direction)
{
	struct fragment_key key = {};
	struct fragment first = {
		.seen = ktime_coarse(),
		.source_port = p->source_port,
		.destination_port = p->destination_port,
		.end = p->fragment_length,
		.icmp_type = p->icmp_type,
		.protocol = p->protocol,
	};

	fragment_key_of(ctx, &key, p, direction);
	bpf_map_update_elem(MAP(FRAGMENTS_FD), &key, &first, BPF_ANY);
}

/* The same, where the packet may be something else. What an ICMP error quotes
 * has no ports of its own.
 */
INLINE void remember_first(struct __sk_buff *ctx, const struct packet *p, __u8 direction)
{
	if (unlikely(p->fragment == FRAGMENT_FIRST && p->icmp != ICMP_ERROR))
		remember_fragment(ctx, p, direction);
}
