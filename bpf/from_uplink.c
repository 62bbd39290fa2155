/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Hook: tc ingress of the node's own devices. What comes from outside.
 *
 * Refuses sources that only this node may use, and hands what is meant for a
 * local pod to it, under its ingress policy. Connections that were opened
 * through the node's stack stay there; everything else is the stack's.
 */
#include <uapi/linux/if_packet.h>
#include "lib/deliver.h"

int from_uplink(struct __sk_buff *ctx)
{
	struct scratch *scratch = new_scratch();
	struct ct_entry *entry = NULL;
	struct local_address *local;
	struct report *report;
	struct passage *in;
	struct packet *p;
	__u64 epoch = current_epoch();
	int reason;

	if (!scratch)
		return TC_ACT_SHOT;
	if (unlikely(CTX_LOAD(ctx, pkt_type) == PACKET_OTHERHOST))
		return TC_ACT_OK; /* a flooded frame: not for this node */
	scratch->probe = is_probe(ctx);
	forget_values();
	p = &scratch->packet;
	in = &scratch->in;
	in->ingress = 1;
	in->origin = ORIGIN_ADDRESS;
	report = &scratch->report;
	report->direction = DIRECTION_INGRESS;
	report->observation = OBSERVE_FROM_NETWORK;
	switch (bpf_ntohs(CTX_LOAD(ctx, protocol))) {
	case ETH_P_IP:
		reason = parse_ipv4(ctx, p);
		break;
	case ETH_P_IPV6:
		reason = parse_ipv6(ctx, p);
		break;
	default:
		return TC_ACT_OK;
	}
	if (CTX_LOAD(ctx, vlan_present))
		return TC_ACT_OK; /* of another link; its own device sees it */
	/* The addresses come first in a header that may be broken later on. */
	if (p->version && find_local(&p->source)) {
		reason = DROP_INVALID_SOURCE_IP;
		goto refuse;
	}
	local = p->version ? find_local(&p->destination) : NULL;
	if (!local || local->kind != LOCAL_POD)
		return TC_ACT_OK; /* the node's own to judge */
	report->endpoint = in->endpoint = local->endpoint;
	if (reason)
		goto refuse;
	if (unlikely(p->icmp == ICMP_NEIGHBOUR || p->icmp == ICMP_MULTICAST)) {
		reason = DROP_FORBIDDEN_ICMP6;
		goto refuse;
	}
	if (unlikely(p->fragment)) {
		reason = resolve_fragment(ctx, p, 0);
		if (reason)
			goto refuse;
		forget_values();
	}
	reason = check(ctx, p, in, &entry, epoch, &scratch->probe);
	if (unlikely(scratch->probe))
		return answer_probe(ctx, NULL, in, reason);
	/* The stack knows this connection: to_pod judges, counts and reports. */
	if (entry && entry->flags & CT_VIA_STACK) {
		if (unlikely(p->fragment == FRAGMENT_FIRST && p->icmp != ICMP_ERROR))
			remember_fragment(ctx, p, 0);
		return TC_ACT_OK;
	}
	report_verdict(ctx, p, in);
	if (unlikely(reason))
		return drop_denied(ctx, p, in, reason);
	reason = commit(ctx, p, in, entry, epoch);
	if (unlikely(reason))
		goto refuse;
	if (unlikely(p->fragment == FRAGMENT_FIRST && p->icmp != ICMP_ERROR))
		remember_fragment(ctx, p, 0);
	count_packet(ctx, DIRECTION_INGRESS, REASON_FORWARDED);
	report_new(ctx, p, in, OBSERVE_TO_ENDPOINT);
	return deliver(ctx, local);

refuse:
	if (unlikely(scratch->probe))
		return answer_probe(ctx, NULL, NULL, reason);
	return drop(ctx, p, report, reason);
}
