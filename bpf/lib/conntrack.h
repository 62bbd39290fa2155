/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Connection tracking with cached verdicts. One entry per endpoint and
 * connection; a check looks (and decides), a commit writes, so that nothing is
 * recorded for a packet which the other side's policy then drops.
 */
#pragma once
#include "lib/ct_previous.h"
#include "lib/packet.h"
#include "lib/service.h"
#include "lib/telemetry.h"

#define MAX_QUOTED_HEADERS 4

#define CT_VOUCHED (1ULL << CT_VOUCHED_BIT)
#define CT_DENIED (1ULL << CT_DENIED_BIT)

/* What was found out on the way; all of it is zero at the start. */
struct steps {
	__u16 flags; /* CT_VIA_STACK or CT_LOCAL of an entry made now */
	__u8 ingress; /* the packet goes to the endpoint */
	__u8 reply;
	__u8 fresh; /* commit makes the entry, or makes it anew */
	__u8 decided; /* the verdict was looked up, not remembered */
	__u8 related; /* an ICMP error about a known connection */
	__u8 opened_in; /* the connection was opened towards the endpoint */
	__u8 vouched; /* the far end's policy was asked too, under this epoch */
};

/* One endpoint's view of a packet. */
struct passage {
	struct ct_key key;
	struct decision decision;
	__u32 endpoint;
	__u32 now; /* CLOCK_MONOTONIC_COARSE, s */
	__u32 origin; /* of the packet, for ingress: enum origin or endpoint id */
	__u32 opener; /* origin of the packet that opened it */
	__u32 far_end; /* for egress: the receiving endpoint of this node, else 0 */
	struct steps is;
	struct service_peers service; /* the remote address's, if it is one's */
	struct ct_previous_value mirror;
};

INLINE struct ct_entry *ct_find(struct ct_key *key, const struct packet *p)
{
	struct ct_entry *entry = bpf_map_lookup_elem(MAP(CT_FD), key);

	/* What opens a connection is decided anew, whatever is there. */
	if (!entry && p->phase != PHASE_OPEN)
		entry = bpf_map_lookup_elem(MAP(CT_OVERFLOW_FD), key);
	return entry ? entry : ct_adopt(key);
}

/* For the endpoint's own packets (egress) local is the source. */
INLINE void ct_key_of(struct ct_key *key, const struct packet *p, __u32 endpoint, bool ingress)
{
	key->remote = ingress ? p->source : p->destination;
	key->local_port = ingress ? p->destination_port : p->source_port;
	key->remote_port = ingress ? p->source_port : p->destination_port;
	key->endpoint = endpoint;
	key->protocol = p->protocol;
	/* Another agent's programs may use this memory for something else. */
	key->pad[0] = 0;
	key->pad[1] = 0;
	key->pad[2] = 0;
}

INLINE bool by_tunnel(__u32 origin)
{
	return origin >> ORIGIN_TUNNEL_BIT;
}

/* The identity that the other end of a tunnel gave the sender. */
INLINE __u32 claimed(__u32 origin)
{
	return origin & TUNNEL_VNI_MAX;
}

INLINE bool is_pod(__u32 origin)
{
	if (by_tunnel(origin))
		return claimed(origin) != IDENTITY_REMOTE_NODE;
	return origin != ORIGIN_ADDRESS && origin < ORIGIN_UNKNOWN;
}

/* The packet that an ICMP error quotes, as far as it can be made out: its
 * addresses, protocol and ports. Returns where its transport header begins, 0
 * when the quote is too short or a later fragment.
 */
INLINE __u32 parse_quoted(struct __sk_buff *ctx, struct packet *inner, const struct packet *p)
{
	struct ipv6_extension extension = {};
	__u32 at = p->l4 + 8;
	__u8 next;
	int i;

	if (p->version == 4) {
		struct iphdr ip = {};

		if (bpf_skb_load_bytes(ctx, at, &ip, sizeof(ip)))
			return 0;
		if (ip.version != 4 || ip.ihl < 5 || (ip.frag_off & bpf_htons(IPV4_OFFSET)))
			return 0;
		map_ipv4(&inner->source, ip.saddr);
		map_ipv4(&inner->destination, ip.daddr);
		inner->protocol = ip.protocol;
		return at + ip.ihl * 4;
	} else {
		struct ipv6hdr ip = {};

		if (bpf_skb_load_bytes(ctx, at, &ip, sizeof(ip)))
			return 0;
		if (ip.version != 6)
			return 0;
		__builtin_memcpy(&inner->source, &ip.saddr, 16);
		__builtin_memcpy(&inner->destination, &ip.daddr, 16);
		next = ip.nexthdr;
	}
	at += sizeof(struct ipv6hdr);
	for (i = 0; i < MAX_QUOTED_HEADERS; i++) {
		if (!is_extension(next))
			break;
		if (next == 44) {
			struct ipv6_fragment fragment = {};

			if (bpf_skb_load_bytes(ctx, at, &fragment, sizeof(fragment)) ||
			    (fragment.offset & bpf_htons(0xfff8)))
				return 0;
			next = fragment.next;
			at += sizeof(fragment);
			continue;
		}
		if (bpf_skb_load_bytes(ctx, at, &extension, sizeof(extension)))
			return 0;
		at += next == 51 ? (extension.length + 2) * 4 : (extension.length + 1) * 8;
		next = extension.next;
	}
	inner->protocol = next;
	return is_extension(next) ? 0 : at;
}

/* As parse_quoted, with the ports. */
INLINE __u32 read_quoted(struct __sk_buff *ctx, struct packet *inner, const struct packet *p)
{
	struct ports ports = {};
	__u8 icmp[6] = {};
	__u32 at;

	if (p->fragment)
		return 0;
	at = parse_quoted(ctx, inner, p);
	if (!at || at + 8 > p->l4 + p->l4_length)
		return 0;
	/* It may be memory that another packet used. */
	inner->version = p->version;
	inner->icmp = ICMP_NONE;
	inner->source_port = 0;
	inner->destination_port = 0;
	if (inner->protocol == IPPROTO_TCP || inner->protocol == IPPROTO_UDP ||
	    inner->protocol == IPPROTO_SCTP) {
		if (bpf_skb_load_bytes(ctx, at, &ports, sizeof(ports)))
			return 0;
		inner->source_port = ports.source;
		inner->destination_port = ports.destination;
	} else if (inner->protocol == IPPROTO_ICMP || inner->protocol == IPPROTO_ICMPV6) {
		if (bpf_skb_load_bytes(ctx, at, icmp, sizeof(icmp)))
			return 0;
		inner->icmp_type = icmp[0];
		set_icmp(inner, *(__u16 *)(icmp + 4));
		if (inner->icmp != ICMP_QUERY && inner->icmp != ICMP_ANSWER)
			return 0;
	}
	return at;
}

/* The key of the connection that an ICMP error is about, as the endpoint sees
 * it: the quoted packet was sent by the error's receiver. Returns 0 when there
 * is none, or who complains has no say in it.
 */
INLINE int ct_key_of_quoted(struct __sk_buff *ctx, struct ct_key *key, const struct packet *p,
			    __u32 endpoint, __u32 origin, bool ingress)
{
	struct packet inner = {};

	if (!read_quoted(ctx, &inner, p))
		return 0;
	/* The quoted packet's sender is who is told. */
	if (!same_address(&inner.source, &p->destination))
		return 0;
	/* A pod is no router: it complains only of what was sent to itself. */
	if ((!ingress || is_pod(origin)) && !same_address(&inner.destination, &p->source))
		return 0;
	/* The quote went the other way than the error does. */
	ct_key_of(key, &inner, endpoint, !ingress);
	return 1;
}

INLINE struct peer peer_of(__u32 origin, const struct address *remote, __u8 version)
{
	struct peer peer = { .peer_class = CLASS_NONE, .identity = IDENTITY_UNKNOWN };
	struct endpoint_policy *policy;

	if (origin == ORIGIN_ADDRESS || by_tunnel(origin)) {
		peer = find_peer(remote);
		/* Who has the address by the table, if the sender's node says
		 * so too: else the table is behind, or the address was given to
		 * another pod.
		 */
		if (likely(!by_tunnel(origin) || peer.identity == claimed(origin)))
			return peer;
		origin = ORIGIN_UNKNOWN;
	}
	if (origin == ORIGIN_UNKNOWN)
		return unknown_peer(version);
	if (origin == ORIGIN_NODE) {
		peer.peer_class = CLASS_HOST;
		peer.identity = IDENTITY_HOST;
		return peer;
	}
	policy = bpf_map_lookup_elem(MAP(ENDPOINTS_FD), &origin);
	if (policy) {
		peer.peer_class = version == 4 ? policy->class4 : policy->class6;
		peer.identity = policy->identity;
		if (*(volatile __u32 *)&policy->endpoint != origin)
			peer.peer_class = CLASS_NONE;
	}
	return peer;
}

/* What may begin a connection, and so leave an entry. */
INLINE bool opens(const struct packet *p)
{
	return p->phase != PHASE_ABORT && (p->icmp == ICMP_NONE || p->icmp == ICMP_QUERY);
}

/* Can this be a packet of the connection whose entry its key finds? ICMP has
 * no ports: a question is not the answer to one, and a message without an
 * identifier belongs to nothing.
 */
INLINE bool belongs(const struct packet *p, bool reply)
{
	switch (p->icmp) {
	case ICMP_NONE:
		return true;
	case ICMP_QUERY:
		return !reply;
	case ICMP_ANSWER:
		return reply;
	default:
		return false;
	}
}

/* The sender has another identity now than the one that opened the connection
 * from this address (its labels changed, or the address has another pod), and
 * the table says so too: from now on the connection is this one's, and judged
 * anew.
 */
INLINE bool passed_on(struct ct_entry *entry, __u32 origin, const struct address *remote)
{
	if (!by_tunnel(origin) ||
	    !(by_tunnel(entry->far_end) || entry->far_end == ORIGIN_ADDRESS) ||
	    find_peer(remote).identity != claimed(origin))
		return false;
	entry->far_end = origin;
	*(volatile __u64 *)&entry->verdict = CT_DENIED;
	return true;
}

/* Finds the connection and decides; writes nothing but a renewed verdict.
 * The epoch was read before. stack: the packet goes to the node's stack, or comes
 * from there. Returns 0 or the drop reason; *found is the entry, NULL where there
 * is none yet or it is not to be used.
 */
INLINE int check(struct __sk_buff *ctx, const struct packet *p, struct passage *s,
		 struct ct_entry **found, __u64 epoch, const __u8 *probe, bool stack)
{
	bool ingress = s->is.ingress;
	struct ct_entry *entry = NULL;

	s->opener = s->origin;
	s->is.opened_in = ingress;
	s->is.related = unlikely(p->icmp == ICMP_ERROR) &&
			ct_key_of_quoted(ctx, &s->key, p, s->endpoint, s->opener, ingress);
	forget_values();
	if (!s->is.related)
		ct_key_of(&s->key, p, s->endpoint, ingress);
	forget_values();
	if (!*probe)
		entry = ct_find(&s->key, p);
	if (!entry && s->is.related) {
		s->is.related = 0;
		ct_key_of(&s->key, p, s->endpoint, ingress);
	}
	forget_values();
	if (entry) {
		s->is.opened_in = entry->flags & CT_INGRESS;
		s->is.reply = !s->is.related && s->is.opened_in != ingress;
	}
	if (entry && !s->is.related) {
		bool ended = entry->flags & (CT_FIN_ORIGINAL | CT_FIN_REPLY | CT_RST);

		if (unlikely((p->phase == PHASE_OPEN && (s->is.reply || ended)) ||
			     (p->icmp == ICMP_QUERY && s->is.reply) ||
			     (entry->verdict == (epoch | CT_DENIED) && s->is.reply && opens(p) &&
			      p->protocol != IPPROTO_TCP))) {
			/* A connection over the remains of another, or opened
			 * from the other side, or the other way round where the
			 * first one is not allowed any more: a verdict of its own.
			 */
			s->is.reply = 0;
			s->is.fresh = 1;
			s->is.opened_in = ingress;
		} else if (unlikely(!belongs(p, s->is.reply) ||
				    (ingress && !s->is.reply && entry->far_end != s->origin &&
				     !passed_on(entry, s->origin, &s->key.remote)))) {
			/* The key of somebody else's connection: decided for
			 * itself, and the entry is left alone.
			 */
			entry = NULL;
			s->is.reply = 0;
			s->is.opened_in = ingress;
			goto decide;
		}
	}
	if (entry && !s->is.fresh) {
		s->decision.rule = s->is.related ? RULE_RELATED :
				   s->is.reply	 ? RULE_REPLY :
						   entry->rule;
		s->decision.allowed = 1;
		if (likely((entry->verdict & ~CT_VOUCHED) == epoch)) {
			*found = entry;
			return 0;
		}
		s->opener = entry->far_end;
	}
	if (!entry)
		s->is.fresh = opens(p);
decide:
	*found = entry;
	s->service.count = 0;
	if (stack && !s->is.opened_in && s->is.flags & CT_VIA_STACK) {
		find_service(&s->service, &s->key.remote, s->key.remote_port, s->key.protocol);
	}
	forget_values();
	/* For the side that opened the connection, whichever way this goes. */
	if (s->is.opened_in ?
		    s->opener == s->endpoint :
		    same_address(ingress ? &p->destination : &p->source, &s->key.remote)) {
		s->decision.rule = RULE_SELF;
		s->decision.identity = IDENTITY_UNKNOWN;
		s->decision.own = IDENTITY_UNKNOWN;
		s->decision.allowed = 1;
	} else if (stack && s->service.count) {
		decide_service(s->endpoint, s->key.protocol, &s->service, &s->decision);
	} else {
		/* A pod of this node has its class beside its policy, which is
		 * nearer than the table of addresses.
		 */
		struct peer peer = peer_of(s->is.opened_in ? s->opener : s->far_end, &s->key.remote,
					   p->version);

		s->decision.key.peer_class = peer.peer_class;
		s->decision.identity = peer.identity;
		s->decision.key.protocol = s->key.protocol;
		s->decision.port =
			bpf_ntohs(s->is.opened_in ? s->key.local_port : s->key.remote_port);
		forget_values();
		decide(s->endpoint, s->is.opened_in, &s->decision);
	}
	forget_values();
	if (!s->decision.allowed) {
		s->is.decided = 1;
		if (entry && !s->is.fresh)
			entry->verdict = epoch | CT_DENIED;
		return s->decision.reason;
	}
	if (entry && !s->is.fresh) {
		entry->rule = s->decision.rule;
		entry->verdict = epoch;
		count(COUNTER_CT_REVALIDATED);
	} else {
		s->is.decided = 1;
	}
	return 0;
}

/* Need the far end's entry not be looked at? Its policy was asked under this
 * epoch, and its entry was told not long ago that the connection lives; what
 * begins or ends a connection is told to both at once.
 */
INLINE bool told(const struct ct_key *key, const struct ct_entry *entry, __u32 now)
{
	/* Not all connections in the same second. */
	__u32 shift = key->local_port ^ key->remote_port;

	return (entry->seen + shift) >> CT_TOLD_BITS == (now + shift) >> CT_TOLD_BITS;
}

INLINE bool vouched(const struct packet *p, const struct passage *s, const struct ct_entry *entry,
		    __u64 epoch, __u32 far_end)
{
	return entry && !s->is.fresh && !s->is.related && entry->verdict == (epoch | CT_VOUCHED) &&
	       entry->far_end == far_end && told(&s->key, entry, s->now) &&
	       p->phase == PHASE_NONE && !(p->tcp_flags & TCP_FIN);
}

INLINE void ct_count(struct ct_entry *entry, bool reply, __u32 length)
{
	if (reply) {
		__sync_fetch_and_add(&entry->packets[1], 1);
		__sync_fetch_and_add(&entry->bytes[1], length);
	} else {
		__sync_fetch_and_add(&entry->packets[0], 1);
		__sync_fetch_and_add(&entry->bytes[0], length);
	}
}

/* Records the packet; makes the entry. Returns 0 or the drop reason. */
INLINE int commit(struct __sk_buff *ctx, const struct packet *p, struct passage *s,
		  struct ct_entry *entry, __u64 epoch)
{
	/* The sender's entry counts it. */
	bool counted = !s->is.ingress || !(s->is.flags & CT_LOCAL);
	__u32 flags, length = CTX_LOAD(ctx, len), now = s->now;

	if (s->is.related)
		return 0;
	if (s->is.fresh) {
		struct ct_entry new = {
			.verdict = epoch | (s->is.vouched ? CT_VOUCHED : 0),
			.seen = now,
			.rule = s->decision.rule,
			.flags = s->is.flags | (s->is.ingress ? CT_INGRESS : 0),
			.far_end = s->is.ingress ? s->origin : s->far_end,
		};

		new.packets[0] = counted;
		new.bytes[0] = counted ? length : 0;
		ct_mirror(&s->key, &new, &s->mirror);
		if (entry) {
			*entry = new;
			return 0;
		}
		/* The table full: kept among the entries that may be evicted,
		 * so that neither old connections nor new ones stop.
		 */
		if (likely(!bpf_map_update_elem(MAP(CT_FD), &s->key, &new, BPF_NOEXIST))) {
			count(COUNTER_CT_CREATED);
			return 0;
		}
		if (bpf_map_lookup_elem(MAP(CT_FD), &s->key))
			return 0; /* made by another CPU meanwhile */
		count(COUNTER_CT_OVERFLOW);
		return bpf_map_update_elem(MAP(CT_OVERFLOW_FD), &s->key, &new, BPF_ANY) ?
			       DROP_CT_INSERTION_FAILED :
			       0;
	}
	if (!entry)
		return 0;
	if (counted)
		ct_count(entry, s->is.reply, length);
	if (now != entry->seen)
		entry->seen = now;
	flags = s->is.reply ? CT_SEEN_REPLY : 0;
	if (p->tcp_flags & TCP_FIN)
		flags |= s->is.reply ? CT_FIN_REPLY : CT_FIN_ORIGINAL;
	if (p->phase == PHASE_ABORT)
		flags |= CT_RST;
	if ((entry->flags & flags) != flags)
		entry->flags |= flags;
	if (s->is.vouched && entry->verdict == epoch) {
		/* First who is meant, then that it holds. */
		if (!(entry->flags & CT_INGRESS))
			*(volatile __u32 *)&entry->far_end = s->far_end;
		*(volatile __u64 *)&entry->verdict = epoch | CT_VOUCHED;
	}
	return 0;
}
