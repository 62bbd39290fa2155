/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Masquerading: which packets leave under the node's address, and how they and
 * their answers are rewritten. What cannot be translated does not leave.
 */
#pragma once
#include "lib/deliver.h"
#include "lib/rewrite.h"

/* Left as it is; everything else that these functions return is a drop reason. */
#define LEFT_ALONE (-1)

/* Never masqueraded, also where a connection was before its destination became
 * one of the cluster's.
 */
INLINE bool excluded(const struct address *destination)
{
	struct peer_key key = { .prefix_length = 128 };

	key.address = *destination;
	return bpf_map_lookup_elem(MAP(MASQUERADE_EXCLUDE_FD), &key);
}

/* Was the connection opened towards the pod's own address? Then its answers come
 * from there.
 */
INLINE bool opened_from_outside(struct ct_key *key, const struct packet *p)
{
	struct ct_entry *entry = ct_find(key, p);

	return entry && entry->flags & CT_INGRESS;
}

INLINE bool can_masquerade(const struct packet *p)
{
	switch (p->protocol) {
	case IPPROTO_TCP:
	case IPPROTO_UDP:
	case IPPROTO_SCTP:
		return true;
	default:
		return p->icmp && p->icmp != ICMP_OTHER;
	}
}

/* What a packet says of its connection's end. A new beginning forgets it. */
INLINE __u16 nat_flags(__u16 flags, const struct packet *p, bool reply)
{
	__u16 seen = reply ? CT_SEEN_REPLY : 0;

	if (p->tcp_flags & TCP_SYN)
		return seen;
	/* Whoever goes on after a reset did not take it for one. */
	if (p->phase == PHASE_ABORT)
		flags |= CT_RST;
	else
		flags &= ~CT_RST;
	if (p->tcp_flags & TCP_FIN)
		flags |= reply ? CT_FIN_REPLY : CT_FIN_ORIGINAL;
	return flags | seen;
}

/* A packet of the pod `endpoint` that leaves by an uplink, to a destination that
 * is not excluded. Returns 0, LEFT_ALONE
 * or the drop reason.
 */
INLINE int masquerade_out(struct __sk_buff *ctx, struct packet *p, struct translation *t,
			  __u32 endpoint)
{
	struct nat_entry *entry;
	__u16 flags;
	int reason;

	ct_key_of(&t->key, p, endpoint, false);
	forget_values();
	entry = nat_find(&t->key);
	if (!entry) {
		if (opened_from_outside(&t->key, p))
			return LEFT_ALONE;
		if (!can_masquerade(p))
			return DROP_NAT_UNSUPPORTED_PROTOCOL;
		if (!opens(p))
			return DROP_NAT_NO_MAPPING;
		t->origin.address = p->source;
		t->origin.endpoint = endpoint;
		t->origin.port = p->source_port;
		t->origin.seen = t->now;
		t->origin.flags = 0;
		forget_values();
		reason = nat_create(ctx, p, t);
		if (reason)
			return reason;
		forget_values();
		entry = bpf_map_lookup_elem(MAP(NAT_FD), &t->key);
		if (!entry)
			return DROP_NAT_NO_MAPPING; /* removed at once */
	}
	if (entry->seen != t->now)
		entry->seen = t->now;
	flags = nat_flags(entry->flags, p, false);
	if (entry->flags != flags)
		entry->flags = flags;
	reason = replace_address(ctx, p, &p->source, &entry->address, END_SOURCE);
	if (!reason)
		reason = replace_port(ctx, p, p->source_port, entry->port, END_SOURCE);
	return reason;
}

/* An ICMP error that leaves by an uplink, from a pod (endpoint) or from the node
 * (0), about a packet that came to a pod. What it quotes was translated on its
 * way in, and is translated back for who sent it.
 */
INLINE int masquerade_error_out(struct __sk_buff *ctx, struct packet *p, struct translation *t,
				__u32 endpoint)
{
	struct local_address *about;
	struct nat_entry *entry;
	__u32 at = read_quoted(ctx, &t->inner, p);
	int reason;

	forget_values();
	if (at && endpoint && !same_address(&t->inner.destination, &p->source))
		at = 0;
	if (at && !endpoint) {
		about = find_local(&t->inner.destination);
		if (!about || about->kind != LOCAL_POD)
			return LEFT_ALONE;
		t->origin.endpoint = about->endpoint;
	} else {
		t->origin.endpoint = endpoint;
	}
	if (!at)
		return endpoint ? DROP_NAT_NO_MAPPING : LEFT_ALONE;
	ct_key_of(&t->key, &t->inner, t->origin.endpoint, true);
	forget_values();
	entry = nat_find(&t->key);
	if (!entry || t->inner.icmp == ICMP_QUERY) {
		if (!endpoint || opened_from_outside(&t->key, p))
			return LEFT_ALONE;
		return DROP_NAT_NO_MAPPING;
	}
	reason = replace_quoted(ctx, p, &t->inner, at, &t->inner.destination, &entry->address,
				t->inner.destination_port, entry->port, END_DESTINATION);
	if (!reason && endpoint)
		reason = replace_address(ctx, p, &p->source, &entry->address, END_SOURCE);
	return reason;
}

/* Whose is it? A pod that is gone has nothing more, whoever has its address now;
 * its port rests meanwhile.
 */
INLINE struct nat_origin *living_origin(struct nat_reverse_key *key)
{
	struct nat_origin *origin = nat_find_origin(key);
	struct local_address *local;

	if (!origin)
		return NULL;
	local = find_local(&origin->address);
	return local && local->kind == LOCAL_POD && local->endpoint == origin->endpoint ? origin :
											  NULL;
}

/* A packet to an address of the node. Returns 0, LEFT_ALONE or the drop reason. */
INLINE int masquerade_in(struct __sk_buff *ctx, struct packet *p, struct translation *t)
{
	struct nat_origin *origin;
	__u32 at = 0;
	__u16 flags;
	int reason;

	/* What begins too early is for the node to put together, or to forget. */
	if (unlikely(p->fragment) && resolve_fragment(ctx, p, 0))
		return LEFT_ALONE;
	forget_values();
	if (unlikely(p->icmp == ICMP_ERROR)) {
		at = read_quoted(ctx, &t->inner, p);
		/* The quoted packet went out, from who is told. */
		if (!at || !same_address(&t->inner.source, &p->destination) ||
		    t->inner.icmp == ICMP_ANSWER)
			return LEFT_ALONE;
		t->back.remote = t->inner.destination;
		t->back.address = t->inner.source;
		t->back.remote_port = t->inner.destination_port;
		t->back.port = t->inner.source_port;
		t->back.protocol = t->inner.protocol;
		t->back.pad[0] = t->back.pad[1] = t->back.pad[2] = 0;
	} else {
		nat_reverse_key_of(&t->back, p);
	}
	forget_values();
	origin = living_origin(&t->back);
	if (!origin)
		return LEFT_ALONE;
	if (unlikely(p->icmp == ICMP_ERROR)) {
		reason = replace_quoted(ctx, p, &t->inner, at, &t->inner.source, &origin->address,
					t->inner.source_port, origin->port, END_SOURCE);
		if (!reason)
			reason = replace_address(ctx, p, &p->destination, &origin->address,
						 END_DESTINATION);
		return reason;
	}
	if (origin->seen != t->now)
		origin->seen = t->now;
	flags = nat_flags(origin->flags, p, true);
	if (origin->flags != flags)
		origin->flags = flags;
	reason = replace_address(ctx, p, &p->destination, &origin->address, END_DESTINATION);
	if (!reason)
		reason = replace_port(ctx, p, p->destination_port, origin->port, END_DESTINATION);
	if (unlikely(p->fragment == FRAGMENT_FIRST))
		remember_fragment(ctx, p, 0);
	return reason;
}
