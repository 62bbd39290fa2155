/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Hook: tc ingress of the tunnel's device. What other nodes' pods, and other
 * nodes themselves, send to this one.
 *
 * Refuses what does not come from the node that its inner source belongs to,
 * and hands what is meant for a local pod to it, under its ingress policy.
 * Connections that were opened through the node's stack stay there.
 */
#include <uapi/linux/if_packet.h>
#include "lib/fast.h"

/* As `fast`. */
INLINE int fast_from_tunnel(struct __sk_buff *ctx, __u64 epoch)
{
	struct plain *p = plain_scratch();
	__u32 origin;

	if (!p || CTX_LOAD(ctx, mark) || !parse_plain(ctx, NULL, p) ||
	    tunnel_sender(ctx, &p->source, &origin))
		return FULL_WAY;
	return fast_in(ctx, p, origin, CT_TUNNEL, epoch);
}

int from_tunnel(struct __sk_buff *ctx)
{
	struct scratch *scratch;
	struct ct_entry *entry = NULL;
	struct local_address *local = NULL;
	struct report *report;
	struct passage *in;
	struct packet *p;
	__u64 epoch = current_epoch();
	int reason, broken;

	/* The sender knows no hardware address of this node. */
	if (CTX_LOAD(ctx, pkt_type) != PACKET_HOST)
		bpf_skb_change_type(ctx, PACKET_HOST);
	reason = fast_from_tunnel(ctx, epoch);
	if (reason != FULL_WAY)
		return reason;
	scratch = new_scratch();
	if (!scratch)
		return TC_ACT_SHOT;
	scratch->probe = is_probe(ctx);
	forget_values();
	p = &scratch->packet;
	in = &scratch->in;
	in->is.ingress = 1;
	in->is.flags = CT_TUNNEL;
	report = &scratch->told[TOLD_END];
	report->direction = DIRECTION_INGRESS;
	in->now = coarse_seconds(&scratch->clock);
	report->observation = OBSERVE_FROM_OVERLAY;
	switch (bpf_ntohs(CTX_LOAD(ctx, protocol))) {
	case ETH_P_IP:
		broken = parse_ipv4(ctx, p);
		break;
	case ETH_P_IPV6:
		broken = parse_ipv6(ctx, p);
		break;
	default:
		reason = DROP_UNSUPPORTED_L3;
		goto refuse;
	}
	/* Who sent it comes before what it is; but without a header is nobody. */
	scratch->reason = broken;
	forget_values();
	reason = scratch->reason;
	if (!p->version)
		goto refuse;
	reason = tunnel_sender(ctx, &p->source, &in->origin);
	if (reason)
		goto refuse;
	forget_values();
	local = find_local(&p->destination);
	if (!local) {
		reason = DROP_NO_LOCAL_ENDPOINT;
		goto refuse;
	}
	report->endpoint = in->endpoint = local->endpoint;
	reason = scratch->reason;
	if (reason)
		goto refuse;
	if (local->kind != LOCAL_POD)
		return TC_ACT_OK; /* the node's own to judge */
	if (unlikely(p->icmp == ICMP_NEIGHBOUR || p->icmp == ICMP_MULTICAST)) {
		reason = DROP_FORBIDDEN_ICMP6; /* of some link of the sender's */
		goto refuse;
	}
	if (unlikely(p->fragment)) {
		reason = resolve_fragment(ctx, p, 0);
		if (reason)
			goto refuse;
		forget_values();
	}
	reason = check(ctx, p, in, &entry, epoch, &scratch->probe, false);
	if (unlikely(scratch->probe))
		return answer_probe(ctx, NULL, in, reason);
	/* The stack knows this connection: to_pod judges, counts and reports. */
	if (entry && entry->flags & CT_VIA_STACK) {
		remember_first(ctx, p, 0);
		return TC_ACT_OK;
	}
	if (unlikely(reason))
		goto refuse;
	scratch->way = WAY_POD;
	reason = let_in(ctx, scratch, p, in, entry, epoch, 0);
	if (likely(!reason))
		goto end;

refuse:
	if (unlikely(scratch->probe))
		return answer_probe(ctx, NULL, NULL, reason);
	scratch->way = WAY_NOWHERE;
end:
	tell(ctx, scratch, reason);
	if (local && scratch->way == WAY_POD)
		return deliver(ctx, local);
	return TC_ACT_SHOT;
}
