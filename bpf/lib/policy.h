/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Policy: address -> peer class -> final verdict. All precedence was resolved
 * when the table was written; here the highest matching level wins.
 */
#pragma once
#include "lib/common.h"

struct decision {
	__u32 rule;
	__u32 allowed;
	__u32 identity; /* of the peer */
	__u32 own; /* identity of the endpoint */
	__u32 reason; /* drop reason when not allowed */
	struct policy_key key; /* here, so that it is not on the stack */
	__u32 levels;
	__u16 port; /* host order */
};

INLINE __u64 current_epoch(void)
{
	return *(volatile __u64 *)ONLY_VALUE(EPOCH_FD);
}

INLINE struct peer find_peer(const struct address *address)
{
	struct peer_key key = { .prefix_length = 128 };
	struct peer none = { .peer_class = CLASS_NONE, .identity = IDENTITY_UNKNOWN };
	struct peer *peer;

	key.address = *address;
	peer = bpf_map_lookup_elem(MAP(PEERS_FD), &key);
	return peer ? *peer : none;
}

INLINE struct peer unknown_peer(__u8 version)
{
	struct peer_key key = { .prefix_length = version == 4 ? 96 : 0 };
	struct peer none = { .peer_class = CLASS_NONE, .identity = IDENTITY_UNKNOWN };
	struct peer *peer;

	/* Only blocks that contain the whole family contain an address that
	 * nobody knows.
	 */
	if (version == 4)
		map_ipv4(&key.address, 0);
	peer = bpf_map_lookup_elem(MAP(PEERS_FD), &key);
	return peer ? *peer : none;
}

/* port in host order. */
INLINE void decide(__u32 endpoint, bool ingress, struct decision *d)
{
	struct endpoint_policy *policy;
	struct policy_verdict *verdict;
	__u32 enforced;
	int level;

	d->allowed = 0;
	d->own = IDENTITY_UNKNOWN;
	d->rule = RULE_DEFAULT_DENY;
	d->reason = DROP_POLICY_DENIED;
	policy = bpf_map_lookup_elem(MAP(ENDPOINTS_FD), &endpoint);
	if (!policy) {
		d->reason = DROP_NO_ENDPOINT_POLICY;
		return;
	}
	d->key.table = ingress ? policy->ingress_table : policy->egress_table;
	d->levels = ingress ? policy->ingress_levels : policy->egress_levels;
	enforced = policy->flags & (ingress ? ENDPOINT_INGRESS_ENFORCED : ENDPOINT_EGRESS_ENFORCED);
	d->own = policy->identity;
	if (policy->identity == IDENTITY_INIT)
		d->rule = RULE_INIT;
	/* The element was freed and reused under us: no verdict from it. */
	if (*(volatile __u32 *)&policy->endpoint != endpoint) {
		d->reason = DROP_NO_ENDPOINT_POLICY;
		return;
	}
	if (!enforced) {
		d->allowed = 1;
		d->rule = RULE_NO_POLICY;
		return;
	}
	forget_values();
#pragma unroll
	for (level = LEVEL_PORT; level >= LEVEL_ANY_PORT; level--) {
		if (!(d->levels & (1U << level)))
			continue;
		d->key.level = level;
		d->key.port = d->port & (0xffff0000U >> level);
		verdict = bpf_map_lookup_elem(MAP(POLICY_FD), &d->key);
		if (verdict)
			goto found;
	}
	if (!(d->levels & (1U << LEVEL_ANY_PROTOCOL)))
		return;
	d->key.level = LEVEL_ANY_PROTOCOL;
	d->key.protocol = 0;
	d->key.port = 0;
	verdict = bpf_map_lookup_elem(MAP(POLICY_FD), &d->key);
	if (!verdict)
		return;
found:
	d->rule = verdict->rule;
	if (verdict->action == ACTION_ALLOW)
		d->allowed = 1;
	else
		d->reason = DROP_POLICY_DENY_RULE;
}
