/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Hook: tc egress of a pod's host-side device. What reaches a pod through the
 * node's stack: from the node itself, from outside where no from_uplink is
 * attached, and from pods whose packets the stack translated or routed.
 *
 * The ingress interface tells who sent a packet, whatever its source address
 * has become: none for the node's own stack, a pod's device for that pod.
 */
#include "lib/deliver.h"

/* Returns 0 or a drop reason. */
INLINE int find_origin(struct __sk_buff *ctx, struct packet *p, struct passage *s)
{
	__u32 ifindex = CTX_LOAD(ctx, ingress_ifindex);
	struct local_address *local;
	struct device *sender;

	/* When the stack has put an IPv6 datagram together and takes it apart
	 * again, the new fragments have lost their ingress interface; but only
	 * what the node itself sends has a socket.
	 */
	if (!ifindex && (p->version == 4 || !p->fragment || ctx->sk)) {
		s->origin = ORIGIN_NODE;
		return 0;
	}
	sender = find_device(ifindex);
	if (sender) {
		s->origin = sender->endpoint;
		return 0;
	}
	local = find_local(&p->source);
	if (!local)
		s->origin = ORIGIN_ADDRESS;
	else if (local->kind == LOCAL_POD)
		return DROP_INVALID_SOURCE_IP;
	else
		s->origin = ORIGIN_UNKNOWN; /* translated to the node's address */
	return 0;
}

int to_pod(struct __sk_buff *ctx)
{
	struct scratch *scratch = new_scratch();
	struct ct_entry *entry = NULL;
	struct report *report;
	struct passage *in;
	struct packet *p;
	struct device *device;
	__u64 epoch = current_epoch();
	int reason;

	if (!scratch)
		return TC_ACT_SHOT;
	scratch->probe = is_probe(ctx);
	forget_values();
	p = &scratch->packet;
	in = &scratch->in;
	in->is.ingress = 1;
	in->is.flags = CT_VIA_STACK;
	report = &scratch->told[TOLD_END];
	report->direction = DIRECTION_INGRESS;
	in->now = coarse_seconds(&scratch->clock);
	device = find_device(CTX_LOAD(ctx, ifindex));
	if (!device) {
		reason = DROP_ENDPOINT_NOT_READY;
		goto refuse;
	}
	in->endpoint = report->endpoint = device->endpoint;
	switch (bpf_ntohs(CTX_LOAD(ctx, protocol))) {
	case ETH_P_IP:
		reason = parse_ipv4(ctx, p);
		break;
	case ETH_P_IPV6:
		reason = parse_ipv6(ctx, p);
		break;
	case ETH_P_ARP:
		return TC_ACT_OK;
	default:
		reason = DROP_UNSUPPORTED_L3;
	}
	forget_values();
	if (reason)
		goto refuse;
	reason = find_origin(ctx, p, in);
	if (reason)
		goto refuse;
	if (unlikely(p->icmp == ICMP_NEIGHBOUR || p->icmp == ICMP_MULTICAST)) {
		/* Of this link: the node's own, or from_pod's answer, which
		 * comes back the way the question came.
		 */
		if (in->origin == ORIGIN_NODE || in->origin == in->endpoint)
			return TC_ACT_OK;
		reason = DROP_FORBIDDEN_ICMP6;
		goto refuse;
	}
	if (unlikely(p->fragment)) {
		reason = resolve_fragment(ctx, p, 1);
		if (reason)
			goto refuse;
		forget_values();
	}
	reason = check(ctx, p, in, &entry, epoch, &scratch->probe, true);
	if (unlikely(scratch->probe))
		return answer_probe(ctx, NULL, in, reason);
	if (unlikely(reason))
		goto refuse;
	reason = let_in(ctx, scratch, p, in, entry, epoch, 1);
	if (likely(!reason))
		goto end;

refuse:
	if (unlikely(scratch->probe))
		return answer_probe(ctx, NULL, NULL, reason);
	scratch->way = WAY_NOWHERE;
end:
	tell(ctx, scratch, reason);
	return scratch->way == WAY_NOWHERE ? TC_ACT_SHOT : TC_ACT_OK;
}
