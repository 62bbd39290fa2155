/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Hook: tc egress of the tunnel's device. What the node's own stack sends to
 * other nodes' pods: its own packets, and those of its pods that it translated.
 * It has routes to them, but cannot name the other end of the tunnel.
 *
 * What from_pod sends has its tunnel key already and goes on at once.
 */
#include "lib/deliver.h"
#include "lib/tunnel.h"

#define NO_TUNNEL_KEY (-22) /* EINVAL */

int to_tunnel(struct __sk_buff *ctx)
{
	struct bpf_tunnel_key key = {};
	struct scratch *scratch;
	struct local_address *local;
	struct tunnel *tunnel;
	struct report *report;
	struct passage *out;
	struct packet *p;
	__u32 identity = IDENTITY_REMOTE_NODE;
	int reason;

	if (bpf_skb_get_tunnel_key(ctx, &key, TUNNEL_KEY_SHORT, 0) != NO_TUNNEL_KEY)
		return TC_ACT_OK;
	scratch = new_scratch();
	if (!scratch)
		return TC_ACT_SHOT;
	p = &scratch->packet;
	out = &scratch->out;
	report = &scratch->told[TOLD_END];
	report->direction = DIRECTION_EGRESS;
	report->observation = OBSERVE_TO_OVERLAY;
	out->now = coarse_seconds(&scratch->clock);
	switch (bpf_ntohs(CTX_LOAD(ctx, protocol))) {
	case ETH_P_IP:
		reason = parse_ipv4(ctx, p);
		break;
	case ETH_P_IPV6:
		reason = parse_ipv6(ctx, p);
		break;
	default:
		reason = DROP_UNSUPPORTED_L3;
	}
	forget_values();
	if (reason)
		goto refuse;
	if (unlikely(p->icmp == ICMP_NEIGHBOUR || p->icmp == ICMP_MULTICAST)) {
		reason = DROP_FORBIDDEN_ICMP6; /* nobody is on this link */
		goto refuse;
	}
	local = find_local(&p->source);
	if (!local) {
		reason = DROP_INVALID_SOURCE_IP; /* the other end would not believe it */
		goto refuse;
	}
	report->endpoint = out->endpoint = local->endpoint;
	tunnel = tunnel_towards(&p->destination);
	if (!tunnel || !tunnelled(tunnel)) {
		reason = DROP_NO_TUNNEL;
		goto refuse;
	}
	if (local->kind == LOCAL_POD) {
		identity = identity_of(local->endpoint);
		if (unlikely(p->fragment)) {
			reason = resolve_fragment(ctx, p, 1);
			if (reason)
				goto refuse;
			if (p->fragment == FRAGMENT_FIRST)
				remember_fragment(ctx, p, 1);
		}
		note_way(p, out);
	}
	reason = encapsulate(ctx, tunnel, identity);
	if (!reason)
		return TC_ACT_OK;
refuse:
	tell(ctx, scratch, reason);
	return TC_ACT_SHOT;
}
