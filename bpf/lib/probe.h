/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Questions of the agent, asked with BPF_PROG_TEST_RUN: same code, same
 * tables, but nothing is remembered, counted or reported, and the answer is
 * left in cb[].
 */
#pragma once
#include "lib/conntrack.h"

INLINE bool is_probe(struct __sk_buff *ctx)
{
	struct config *config;
	__u32 mark = CTX_LOAD(ctx, mark);

	if (likely(!mark))
		return false;
	config = configuration();
	return config->probe_mark == mark && config->probe_priority == CTX_LOAD(ctx, priority);
}

INLINE int answer_probe(struct __sk_buff *ctx, const struct passage *out, const struct passage *in,
			int reason)
{
	__u32 decided = 0;

	if (out && out->is.decided) {
		decided |= PROBE_EGRESS_DECIDED;
		decided |= out->decision.allowed ? PROBE_EGRESS_ALLOWED : 0;
		ctx->cb[PROBE_EGRESS_RULE] = out->decision.rule;
	}
	if (in && in->is.decided) {
		decided |= PROBE_INGRESS_DECIDED;
		decided |= in->decision.allowed ? PROBE_INGRESS_ALLOWED : 0;
		ctx->cb[PROBE_INGRESS_RULE] = in->decision.rule;
	}
	ctx->cb[PROBE_DECIDED] = decided;
	ctx->cb[PROBE_REASON] = reason;
	return reason ? TC_ACT_SHOT : TC_ACT_OK;
}
