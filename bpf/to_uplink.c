/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Hook: tc egress of the node's own devices. What leaves the node.
 *
 * Notes what of a pod's came by the node's stack, which may have translated its
 * destination (a ClusterIP): answers must go through the stack, too.
 *
 * With masquerading, puts the node's address in place of a pod's, where the
 * destination is not of the cluster. The pod's egress policy was decided in
 * from_pod, on the addresses as they were.
 */
#include "lib/masquerade.h"
#include "lib/straight.h"

/* On to the next program at this hook, then to the device. */
#define PASS TC_ACT_UNSPEC

enum concern {
	CONCERN_NONE = 0,
	CONCERN_MAYBE = 1,
	CONCERN_POD = 2, /* a pod's, to a destination that is not excluded */
	CONCERN_WAY = 3, /* a pod's, whose address stays */
};

/* Can this packet be one to look at? Most are the node's own, or went into a
 * tunnel, or to another pod: they pay no more than this.
 */
INLINE enum concern concerned(struct __sk_buff *ctx)
{
	void *data = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;
	__u32 kind = CTX_LOAD(ctx, protocol);
	struct address source, destination;
	struct local_address *local;
	bool icmp;

	/* Of another link, whose own device sees it. */
	if (CTX_LOAD(ctx, vlan_present))
		return CONCERN_NONE;
	if (kind == bpf_htons(ETH_P_IP)) {
		struct iphdr *ip = data + ETH_HLEN;

		if ((void *)(ip + 1) > end)
			return CONCERN_MAYBE;
		map_ipv4(&source, ip->saddr);
		map_ipv4(&destination, ip->daddr);
		icmp = ip->protocol == IPPROTO_ICMP;
	} else if (kind == bpf_htons(ETH_P_IPV6)) {
		struct ipv6hdr *ip = data + ETH_HLEN;

		if ((void *)(ip + 1) > end)
			return CONCERN_MAYBE;
		__builtin_memcpy(&source, &ip->saddr, sizeof(source));
		__builtin_memcpy(&destination, &ip->daddr, sizeof(destination));
		icmp = ip->nexthdr == IPPROTO_ICMPV6;
	} else {
		return CONCERN_NONE;
	}
	local = find_local(&source);
	if (!local)
		return CONCERN_NONE;
	if (local->kind == LOCAL_POD)
		return MASQUERADE && !excluded(&destination) ? CONCERN_POD : CONCERN_WAY;
	/* The node's own errors may be about what was on its way to a pod. */
	return MASQUERADE && icmp ? CONCERN_MAYBE : CONCERN_NONE;
}

/* Only the first fragment has ports, and it tells for all. */
INLINE int note(struct scratch *scratch, struct packet *p, int reason)
{
	struct local_address *local = find_local(&p->source);
	struct passage *out = &scratch->out;

	if (reason || !local || local->kind != LOCAL_POD ||
	    (p->fragment && p->fragment != FRAGMENT_FIRST))
		return PASS;
	out->endpoint = local->endpoint;
	out->now = coarse_seconds(&scratch->clock);
	forget_values();
	note_way(p, out);
	return PASS;
}

int to_uplink(struct __sk_buff *ctx)
{
	struct local_address *sender;
	struct scratch *scratch;
	struct report *report;
	struct packet *p;
	enum concern concern;
	int reason;

	if (CTX_LOAD(ctx, tc_index) == GOES_STRAIGHT) {
		ctx->tc_index = 0;
		return PASS;
	}
	concern = concerned(ctx);
	if (likely(concern == CONCERN_NONE))
		return PASS;
	scratch = new_scratch();
	if (!scratch)
		return TC_ACT_SHOT;
	forget_values();
	p = &scratch->packet;
	report = &scratch->told[TOLD_END];
	report->direction = DIRECTION_EGRESS;
	report->observation = OBSERVE_TO_NETWORK;
	scratch->nat.now = coarse_seconds(&scratch->clock);
	reason = bpf_ntohs(CTX_LOAD(ctx, protocol)) == ETH_P_IP ? parse_ipv4(ctx, p) :
								  parse_ipv6(ctx, p);
	forget_values();
	if (!MASQUERADE || concern == CONCERN_WAY)
		return note(scratch, p, reason);
	sender = find_local(&p->source);
	if (sender && sender->kind == LOCAL_POD)
		report->endpoint = sender->endpoint;
	else if (concern != CONCERN_POD && (!sender || reason || p->icmp != ICMP_ERROR))
		return PASS;
	if (unlikely(concern == CONCERN_MAYBE) && report->endpoint && excluded(&p->destination))
		return PASS;
	if (!reason && !sender)
		reason = DROP_NAT_NO_MAPPING; /* the pod went this moment */
	scratch->reason = reason;
	forget_values();
	reason = scratch->reason;
	if (!reason && unlikely(p->fragment))
		reason = resolve_fragment(ctx, p, 1);
	forget_values();
	/* Nothing of a pod's that cannot be read leaves. */
	if (!reason && unlikely(p->icmp == ICMP_ERROR))
		reason = masquerade_error_out(ctx, p, &scratch->nat, report->endpoint);
	else if (!reason)
		reason = masquerade_out(ctx, p, &scratch->nat, report->endpoint);
	forget_values();
	if (unlikely(reason > 0)) {
		tell(ctx, scratch, reason);
		return TC_ACT_SHOT;
	}
	remember_first(ctx, p, 1);
	return PASS;
}
