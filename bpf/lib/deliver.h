/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What the hooks share after parsing: fragments, verdict events, and the last
 * step into a local pod.
 */
#pragma once
#include "lib/endpoint.h"
#include "lib/fragment.h"
#include "lib/probe.h"
#include "lib/scratch.h"

INLINE void describe(struct report *r, const struct passage *s)
{
	r->rule = s->decision.rule;
	r->endpoint = s->endpoint;
	r->direction = s->is.ingress ? DIRECTION_INGRESS : DIRECTION_EGRESS;
	r->source_identity = s->is.ingress ? s->decision.identity : s->decision.own;
	r->destination_identity = s->is.ingress ? s->decision.own : s->decision.identity;
}

INLINE void note_verdict(struct report *r, const struct passage *s)
{
	if (!s->is.decided)
		return;
	r->type = EVENT_POLICY_VERDICT;
	r->flags = s->decision.allowed ? EVENT_ALLOWED : 0;
	r->reason = s->decision.allowed ? 0 : s->decision.reason;
	r->observation = 0;
	describe(r, s);
}

/* Counts what happened and says what is to be said: in one place and at the
 * end, where no entry is in hand any more, so that the verifier walks it once
 * and not once for each way that leads here. A connection is told once, by the
 * program that sends its first packet on.
 */
INLINE void tell(struct __sk_buff *ctx, struct scratch *scratch, int reason)
{
	struct report *end = &scratch->told[TOLD_END];
	const struct passage *last;
	bool trace;
	int i;

	scratch->reason = reason;
	trace = configuration()->trace;
	forget_values();
	/* What was let pass is only told to who asks for it. */
	if (likely(!scratch->reason && !trace))
		return;
	last = scratch->in.is.ingress ? &scratch->in : &scratch->out;
	if (unlikely(scratch->reason)) {
		if (last->is.decided && !last->decision.allowed)
			describe(end, last);
		end->type = EVENT_DROP;
		end->reason = scratch->reason;
		count_packet(ctx, end->direction, scratch->reason);
	} else if (unlikely(last->is.fresh)) {
		describe(end, last);
		end->type = EVENT_TRACE;
		end->observation = scratch->observation;
		end->flags = EVENT_ALLOWED;
	}
	if (likely(!end->type && !scratch->in.is.decided && !scratch->out.is.decided))
		return;
	note_verdict(&scratch->told[TOLD_SENDER], &scratch->out);
	note_verdict(&scratch->told[TOLD_RECEIVER], &scratch->in);
	forget_values();
#pragma clang loop unroll(disable)
	for (i = 0; i < TOLD; i++) {
		const struct report *r = &scratch->told[i];

		if (r->type && (trace || !(r->flags & EVENT_ALLOWED)))
			emit(ctx, &scratch->packet, r);
	}
	forget_values();
}

/* The pod's policy allows the packet: its connection is written down, and it
 * counts as forwarded. Returns 0 or the drop reason.
 */
INLINE int let_in(struct __sk_buff *ctx, struct scratch *scratch, const struct packet *p,
		  struct passage *in, struct ct_entry *entry, __u64 epoch, __u8 direction)
{
	int reason = commit(ctx, p, in, entry, epoch);

	if (unlikely(reason))
		return reason;
	remember_first(ctx, p, direction);
	count_packet(ctx, DIRECTION_INGRESS, REASON_FORWARDED);
	scratch->observation = OBSERVE_TO_ENDPOINT;
	return 0;
}

/* A pod's packet that came by the stack, with the address that it has become:
 * replies to that must go through the stack too, which translates them back.
 * Judged is the connection as the pod sees it, in from_pod and to_pod.
 */
INLINE void note_way(struct packet *p, struct passage *out)
{
	struct ct_entry *entry;

	if (!opens(p))
		return;
	ct_key_of(&out->key, p, out->endpoint, false);
	entry = ct_find(&out->key, p);
	if (entry) {
		entry->flags |= CT_VIA_STACK;
		if (entry->seen != out->now)
			entry->seen = out->now;
	} else {
		struct ct_entry new = { .verdict = CT_DENIED, .flags = CT_VIA_STACK };

		new.seen = out->now;
		ct_mirror(&out->key, &new, &out->mirror);
		if (bpf_map_update_elem(MAP(CT_FD), &out->key, &new, BPF_NOEXIST))
			bpf_map_update_elem(MAP(CT_OVERFLOW_FD), &out->key, &new, BPF_NOEXIST);
	}
}

/* Straight into the pod's namespace. The frame gets the addresses that it
 * would have on the pod's own link.
 */
INLINE int deliver_to(struct __sk_buff *ctx, __u32 ifindex, const __u8 *mac, const __u8 *host_mac)
{
	void *data = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = data;

	if ((void *)(eth + 1) <= end) {
		__builtin_memcpy(eth->h_dest, mac, 6);
		__builtin_memcpy(eth->h_source, host_mac, 6);
	}
	ctx->mark = 0;
	return bpf_redirect_peer(ifindex, 0);
}

INLINE int deliver(struct __sk_buff *ctx, const struct local_address *local)
{
	return deliver_to(ctx, local->ifindex, local->mac, local->host_mac);
}
