/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What the hooks share after parsing: fragments, verdict events, and the last
 * step into a local pod.
 */
#pragma once
#include "lib/endpoint.h"
#include "lib/fragment.h"
#include "lib/probe.h"
#include "lib/scratch.h"

INLINE void report_verdict(struct __sk_buff *ctx, const struct packet *p, const struct passage *s)
{
	struct config *config;
	struct report r = {};

	if (likely(!s->decided))
		return;
	if (s->decision.allowed) {
		config = configuration();
		if (!config || !config->trace)
			return;
		r.flags = EVENT_ALLOWED;
	} else {
		r.reason = s->decision.reason;
	}
	r.type = EVENT_POLICY_VERDICT;
	r.rule = s->decision.rule;
	r.endpoint = s->endpoint;
	r.direction = s->ingress ? DIRECTION_INGRESS : DIRECTION_EGRESS;
	r.source_identity = s->ingress ? s->decision.identity : s->decision.own;
	r.destination_identity = s->ingress ? s->decision.own : s->decision.identity;
	emit(ctx, p, &r);
}

/* One new connection, told once: by the program that sends its first packet on. */
INLINE void report_new(struct __sk_buff *ctx, const struct packet *p, const struct passage *s,
		       __u8 observation)
{
	struct config *config;
	struct report r = {};

	if (likely(!s->fresh))
		return;
	config = configuration();
	if (!config || !config->trace)
		return;
	r.type = EVENT_TRACE;
	r.observation = observation;
	r.flags = EVENT_ALLOWED;
	r.rule = s->decision.rule;
	r.endpoint = s->endpoint;
	r.direction = s->ingress ? DIRECTION_INGRESS : DIRECTION_EGRESS;
	r.source_identity = s->ingress ? s->decision.identity : s->decision.own;
	r.destination_identity = s->ingress ? s->decision.own : s->decision.identity;
	emit(ctx, p, &r);
}

INLINE int drop_denied(struct __sk_buff *ctx, const struct packet *p, const struct passage *s,
		       int reason)
{
	struct report r = {
		.rule = s->decision.rule,
		.endpoint = s->endpoint,
		.direction = s->ingress ? DIRECTION_INGRESS : DIRECTION_EGRESS,
		.source_identity = s->ingress ? s->decision.identity : s->decision.own,
		.destination_identity = s->ingress ? s->decision.own : s->decision.identity,
	};

	return drop(ctx, p, &r, reason);
}

/* Straight into the pod's namespace. The frame gets the addresses that it
 * would have on the pod's own link.
 */
INLINE int deliver(struct __sk_buff *ctx, const struct local_address *local)
{
	void *data = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;
	__u32 ifindex = local->ifindex;
	struct ethhdr *eth = data;

	if ((void *)(eth + 1) <= end) {
		__builtin_memcpy(eth->h_dest, local->mac, 6);
		__builtin_memcpy(eth->h_source, local->host_mac, 6);
	}
	ctx->mark = 0;
	return bpf_redirect_peer(ifindex, 0);
}
