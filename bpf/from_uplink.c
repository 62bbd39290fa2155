/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Hook: tc ingress of the node's own devices. What comes from outside.
 *
 * Refuses sources that only this node may use, or that only the tunnel brings,
 * and hands what is meant for a
 * local pod to it, under its ingress policy. Connections that were opened
 * through the node's stack stay there; everything else is the stack's.
 */
#include <uapi/linux/if_packet.h>
#include "lib/fast.h"
#include "lib/masquerade.h"

/* Not ours to decide: on to the next program at this hook, then to the stack.
 * The device is the node's, so others may be attached to it too.
 */
#define PASS TC_ACT_UNSPEC

/* A packet of the tunnel for this node: the stack takes it out of its cover, and
 * from_tunnel looks at what is in it.
 */
INLINE bool of_tunnel(struct plain *p)
{
	struct local_address *local;

	if (p->protocol != IPPROTO_UDP || p->destination_port != configuration()->tunnel_port)
		return false;
	local = find_local(&p->destination);
	return local && local->kind == LOCAL_NODE && !find_local(&p->source);
}

/* As `fast`. A source that may not come this way has no such connection. */
INLINE int fast_from_uplink(struct __sk_buff *ctx, __u64 epoch)
{
	struct plain *p = plain_scratch();

	if (!p || CTX_LOAD(ctx, mark) || CTX_LOAD(ctx, vlan_present) || !parse_plain(ctx, NULL, p))
		return FULL_WAY;
	if (of_tunnel(p))
		return PASS;
	return fast_in(ctx, p, ORIGIN_ADDRESS, 0, epoch);
}

int from_uplink(struct __sk_buff *ctx)
{
	struct scratch *scratch;
	struct ct_entry *entry = NULL;
	struct local_address *local = NULL;
	struct report *report;
	struct passage *in;
	struct packet *p;
	__u64 epoch = current_epoch();
	int reason;

	if (unlikely(CTX_LOAD(ctx, pkt_type) == PACKET_OTHERHOST))
		return PASS; /* a flooded frame: not for this node */
	reason = fast_from_uplink(ctx, epoch);
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
	in->origin = ORIGIN_ADDRESS;
	report = &scratch->told[TOLD_END];
	report->direction = DIRECTION_INGRESS;
	in->now = coarse_seconds(&scratch->clock);
	report->observation = OBSERVE_FROM_NETWORK;
	switch (bpf_ntohs(CTX_LOAD(ctx, protocol))) {
	case ETH_P_IP:
		reason = parse_ipv4(ctx, p);
		break;
	case ETH_P_IPV6:
		reason = parse_ipv6(ctx, p);
		break;
	default:
		return PASS;
	}
	forget_values();
	if (CTX_LOAD(ctx, vlan_present))
		return PASS; /* of another link; its own device sees it */
	/* The addresses come first in a header that may be broken later on. */
	if (p->version && find_local(&p->source)) {
		reason = DROP_INVALID_SOURCE_IP;
		goto refuse;
	}
	local = p->version ? find_local(&p->destination) : NULL;
	if (MASQUERADE && local && local->kind == LOCAL_NODE && !reason && !scratch->probe) {
		/* An answer to what left under the node's address, by the stack:
		 * it goes back that way, and to_pod judges, counts and reports.
		 */
		scratch->nat.now = in->now;
		forget_values();
		reason = masquerade_in(ctx, p, &scratch->nat);
		local = NULL;
		if (unlikely(reason > 0))
			goto refuse;
	}
	if (!local || local->kind != LOCAL_POD)
		return PASS; /* the node's own to judge */
	report->endpoint = in->endpoint = local->endpoint;
	if (only_by_tunnel(&p->source)) {
		reason = DROP_INVALID_SOURCE_IP;
		goto refuse;
	}
	if (reason)
		goto refuse;
	if (unlikely(p->icmp == ICMP_NEIGHBOUR || p->icmp == ICMP_MULTICAST))
		return PASS; /* of that link; to_pod lets none of it into a pod */
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
		return PASS;
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
	return scratch->way == WAY_NOWHERE ? TC_ACT_SHOT : PASS;
}
