/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Hook: tc ingress of a pod's host-side device. Everything that leaves a pod.
 *
 * Enforces the sender's egress policy and, when the receiver is on this node,
 * the receiver's ingress policy, then hands the packet to the receiver's
 * namespace. What goes to another node's pods goes through the tunnel, or
 * straight out. What goes elsewhere, or belongs to a connection that came by
 * the node's stack, goes to the stack.
 */
#include "lib/fast.h"
#include "lib/neighbour.h"

/* Where the packet is to go, unless the connection goes through the stack. Kept
 * in scratch, and looked up again at the end, so that the verifier need not walk
 * all that comes between once for each way.
 */
INLINE void choose_way(struct scratch *scratch, struct packet *p, struct passage *out)
{
	struct local_address *local = find_local(&p->destination);
	struct tunnel *tunnel;

	if (local && local->kind == LOCAL_POD) {
		scratch->way = WAY_POD;
		scratch->observation = OBSERVE_TO_ENDPOINT;
		out->is.flags = CT_LOCAL;
		out->far_end = local->endpoint;
		return;
	}
	tunnel = local ? NULL : tunnel_towards(&p->destination);
	scratch->way = !tunnel ? WAY_STACK : tunnelled(tunnel) ? WAY_TUNNEL : WAY_UPLINK;
	forget_values();
	out->is.flags = scratch->way == WAY_STACK  ? CT_VIA_STACK :
			scratch->way == WAY_TUNNEL ? CT_TUNNEL :
						     0;
	scratch->observation = scratch->way == WAY_STACK  ? OBSERVE_TO_STACK :
			       scratch->way == WAY_TUNNEL ? OBSERVE_TO_OVERLAY :
							    OBSERVE_TO_NETWORK;
}

/* Returns 0 or the drop reason. */
INLINE int enter_tunnel(struct __sk_buff *ctx, struct packet *p, __u32 endpoint)
{
	struct tunnel *tunnel = tunnel_towards(&p->destination);

	return tunnel ? encapsulate(ctx, tunnel, identity_of(endpoint)) : DROP_NO_TUNNEL;
}

INLINE int send(struct __sk_buff *ctx, struct scratch *scratch, struct packet *p)
{
	__u32 gso = CTX_LOAD(ctx, gso_size);
	struct local_address *local;
	struct tunnel *tunnel;

	switch (scratch->way) {
	case WAY_STACK:
		ctx->tc_index = 0; /* what it tells to_uplink is not the pod's to say */
		return TC_ACT_OK;
	case WAY_POD:
		local = find_local(&p->destination);
		return local && local->kind == LOCAL_POD ? deliver(ctx, local) : TC_ACT_SHOT;
	case WAY_TUNNEL:
		tunnel = find_tunnel(&p->destination);
		return tunnel ? bpf_redirect(tunnel->ifindex, 0) : TC_ACT_SHOT;
	case WAY_UPLINK:
		/* One segment of what is here will be on the wire. */
		return straight_out(ctx, p->version, &p->source, &p->destination, p->protocol,
				    p->l4 - p->l3 + (gso ? p->header + gso : p->l4_length));
	default:
		return TC_ACT_SHOT;
	}
}

int from_pod(struct __sk_buff *ctx)
{
	struct ct_entry *out_entry = NULL, *in_entry = NULL;
	struct scratch *scratch;
	struct passage *out, *in;
	struct report *report;
	struct packet *p;
	struct device *device;
	__u64 epoch = current_epoch();
	int reason = fast(ctx, epoch);

	if (reason != FULL_WAY)
		return reason;
	device = find_device(CTX_LOAD(ctx, ifindex));
	scratch = new_scratch();
	if (!scratch)
		return TC_ACT_SHOT;
	scratch->probe = is_probe(ctx);
	forget_values();
	p = &scratch->packet;
	out = &scratch->out;
	in = &scratch->in;
	report = &scratch->told[TOLD_END];
	report->direction = DIRECTION_EGRESS;
	out->now = in->now = coarse_seconds(&scratch->clock);
	if (!device) {
		reason = DROP_ENDPOINT_NOT_READY;
		goto refuse;
	}
	out->endpoint = report->endpoint = device->endpoint;
	if (!from_mac(ctx, device->mac)) {
		reason = DROP_INVALID_SOURCE_MAC;
		goto refuse;
	}
	if (CTX_LOAD(ctx, vlan_present)) {
		reason = DROP_VLAN_FILTERED;
		goto refuse;
	}
	switch (bpf_ntohs(CTX_LOAD(ctx, protocol))) {
	case ETH_P_IP:
		reason = parse_ipv4(ctx, p);
		break;
	case ETH_P_IPV6:
		reason = parse_ipv6(ctx, p);
		break;
	case ETH_P_ARP:
		reason = handle_arp(ctx, device);
		if (reason >= 0)
			return reason;
		reason = -reason;
		goto refuse;
	case ETH_P_8021Q:
	case ETH_P_8021AD:
		reason = DROP_VLAN_FILTERED;
		goto refuse;
	default:
		reason = DROP_UNSUPPORTED_L3;
		goto refuse;
	}
	forget_values();
	if (reason)
		goto refuse;
	if (!valid_source(device, p)) {
		reason = DROP_INVALID_SOURCE_IP;
		goto refuse;
	}
	if (unlikely(p->icmp == ICMP_MULTICAST)) {
		/* RFC 2710, section 3; RFC 3810, section 5. */
		reason = DROP_FORBIDDEN_ICMP6;
		if (p->hop_limit != 1 || !multicast6(&p->destination))
			goto refuse;
		return TC_ACT_OK;
	}
	if (unlikely(p->icmp == ICMP_NEIGHBOUR)) {
		reason = handle_neighbour(ctx, p, device);
		if (reason >= 0)
			return reason;
		reason = -reason;
		goto refuse;
	}
	if (unlikely(p->fragment)) {
		reason = resolve_fragment(ctx, p, 0);
		if (reason)
			goto refuse;
		forget_values();
	}

	choose_way(scratch, p, out);
	forget_values();
	reason = check(ctx, p, out, &out_entry, epoch, &scratch->probe, true);
	forget_values();
	if (out_entry && !out->is.fresh && out_entry->flags & CT_VIA_STACK)
		scratch->way = WAY_STACK;
	forget_values();
	if (!reason && scratch->way == WAY_POD &&
	    !vouched(p, out, out_entry, epoch, out->far_end)) {
		in->is.ingress = 1;
		in->is.flags = CT_LOCAL;
		in->endpoint = out->far_end;
		in->origin = out->endpoint;
		reason = check(ctx, p, in, &in_entry, epoch, &scratch->probe, false);
		/* Both ends have a place for it, so that it can be remembered. */
		out->is.vouched = !reason && !in->is.related && (in_entry || in->is.fresh);
		forget_values();
	}
	if (unlikely(scratch->probe))
		return answer_probe(ctx, out, in, reason);
	if (unlikely(reason))
		goto refuse;

	reason = commit(ctx, p, out, out_entry, epoch);
	if (!reason && in->is.ingress)
		reason = commit(ctx, p, in, in_entry, epoch);
	if (unlikely(reason))
		goto refuse;
	remember_first(ctx, p, 0);
	/* A reply to what from_uplink handed in. */
	if (scratch->way == WAY_STACK && (out->is.reply || out->is.related) && out_entry &&
	    !(out_entry->flags & CT_VIA_STACK))
		scratch->way = WAY_UPLINK;
	forget_values();
	if (scratch->way == WAY_TUNNEL) {
		reason = enter_tunnel(ctx, p, out->endpoint);
		if (unlikely(reason))
			goto refuse;
	}
	count_packet(ctx, DIRECTION_EGRESS, REASON_FORWARDED);
	if (scratch->way == WAY_POD)
		count_packet(ctx, DIRECTION_INGRESS, REASON_FORWARDED);
	goto end;

refuse:
	if (unlikely(scratch->probe))
		return answer_probe(ctx, NULL, NULL, reason);
	scratch->way = WAY_NOWHERE;
end:
	tell(ctx, scratch, reason);
	return send(ctx, scratch, p);
}
