/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Hook: tc ingress of a pod's host-side device. Everything that leaves a pod.
 *
 * Enforces the sender's egress policy and, when the receiver is on this node,
 * the receiver's ingress policy, then hands the packet to the receiver's
 * namespace. What goes elsewhere, or belongs to a connection that came by the
 * node's stack, goes to the stack.
 */
#include "lib/deliver.h"
#include "lib/neighbour.h"

/* A reply to a connection that from_uplink handed in: out by the way it came,
 * past the node's connection tracking, which saw none of it. Where the route
 * is not plain (MTU, no neighbour), the stack does it.
 */
INLINE int reply_to_uplink(struct __sk_buff *ctx, const struct packet *p)
{
	struct bpf_fib_lookup fib = {};
	__u32 gso = CTX_LOAD(ctx, gso_size);
	long found;

	fib.ifindex = CTX_LOAD(ctx, ifindex);
	fib.l4_protocol = p->protocol;
	/* What will be on the wire is one segment of what is here. */
	fib.tot_len = p->l4 - p->l3 + (gso ? p->header + gso : p->l4_length);
	if (p->version == 4) {
		fib.family = 2; /* AF_INET */
		fib.ipv4_src = *(__be32 *)(p->source.bytes + 12);
		fib.ipv4_dst = *(__be32 *)(p->destination.bytes + 12);
	} else {
		fib.family = 10; /* AF_INET6 */
		__builtin_memcpy(fib.ipv6_src, &p->source, 16);
		__builtin_memcpy(fib.ipv6_dst, &p->destination, 16);
	}
	found = bpf_fib_lookup(ctx, &fib, sizeof(fib), 0);
	if (found == BPF_FIB_LKUP_RET_SUCCESS || found == BPF_FIB_LKUP_RET_NO_NEIGH)
		return redirect_neighbour(fib.ifindex, NULL, 0, 0);
	return TC_ACT_OK;
}

int from_pod(struct __sk_buff *ctx)
{
	struct ct_entry *out_entry = NULL, *in_entry = NULL;
	struct local_address *local = NULL;
	struct scratch *scratch = new_scratch();
	struct passage *out, *in;
	struct report *report;
	struct packet *p;
	struct device *device;
	__u64 epoch = current_epoch();
	int reason;

	if (!scratch)
		return TC_ACT_SHOT;
	scratch->probe = is_probe(ctx);
	forget_values();
	p = &scratch->packet;
	out = &scratch->out;
	in = &scratch->in;
	report = &scratch->told[TOLD_END];
	report->direction = DIRECTION_EGRESS;
	out->now = in->now = coarse_seconds();
	device = find_device(CTX_LOAD(ctx, ifindex));
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

	local = find_local(&p->destination);
	if (local && local->kind != LOCAL_POD)
		local = NULL;
	out->is.flags = local ? 0 : CT_VIA_STACK;
	reason = check(ctx, p, out, &out_entry, epoch, &scratch->probe);
	forget_values();
	if (out_entry && !out->is.fresh && out_entry->flags & CT_VIA_STACK)
		local = NULL;
	if (!reason && local) {
		in->is.ingress = 1;
		in->endpoint = local->endpoint;
		in->origin = out->endpoint;
		reason = check(ctx, p, in, &in_entry, epoch, &scratch->probe);
		forget_values();
	}
	if (unlikely(scratch->probe))
		return answer_probe(ctx, out, in, reason);
	if (unlikely(reason))
		goto refuse;

	reason = commit(ctx, p, out, out_entry, epoch);
	if (!reason && local)
		reason = commit(ctx, p, in, in_entry, epoch);
	if (unlikely(reason))
		goto refuse;
	if (unlikely(p->fragment == FRAGMENT_FIRST && p->icmp != ICMP_ERROR))
		remember_fragment(ctx, p, 0);
	count_packet(ctx, DIRECTION_EGRESS, REASON_FORWARDED);
	if (local) {
		count_packet(ctx, DIRECTION_INGRESS, REASON_FORWARDED);
		scratch->observation = OBSERVE_TO_ENDPOINT;
		scratch->way = WAY_POD;
	} else {
		scratch->observation = OBSERVE_TO_STACK;
		if ((out->is.reply || out->is.related) && out_entry &&
		    !(out_entry->flags & CT_VIA_STACK))
			scratch->way = WAY_UPLINK;
	}
	goto end;

refuse:
	if (unlikely(scratch->probe))
		return answer_probe(ctx, NULL, NULL, reason);
	scratch->way = WAY_NOWHERE;
end:
	tell(ctx, scratch, reason);
	if (local && scratch->way == WAY_POD)
		return deliver(ctx, local);
	if (scratch->way == WAY_UPLINK)
		return reply_to_uplink(ctx, p);
	return scratch->way == WAY_NOWHERE ? TC_ACT_SHOT : TC_ACT_OK;
}
