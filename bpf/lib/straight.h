/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Out of the node along its route, past its stack and connection tracking, which
 * saw nothing of the connection.
 */
#pragma once
#include "lib/packet.h"

#define AF_INET4 2
#define AF_INET6 10

/* struct bpf_redir_neigh: where the header at hand may be older than the kernel. */
struct next_hop {
	__u32 family;
	union {
		__be32 ipv4;
		__u32 ipv6[4];
	};
};

/* In tc_index of what goes straight out: to_uplink need not look at it. */
#define GOES_STRAIGHT 0xb715

/* size: of the IP packet, or of one segment of it, because that is what will be
 * on the wire. Where the route is not plain (MTU, no gateway), the stack does it,
 * and says so to the sender.
 */
INLINE int straight_out(struct __sk_buff *ctx, __u8 version, const struct address *source,
			const struct address *destination, __u8 protocol, __u32 size)
{
	struct bpf_fib_lookup fib = {};
	struct next_hop next = {};
	long found;

	fib.ifindex = CTX_LOAD(ctx, ifindex);
	fib.l4_protocol = protocol;
	fib.tot_len = size;
	if (version == 4) {
		fib.family = AF_INET4;
		fib.ipv4_src = *(__be32 *)(source->bytes + 12);
		fib.ipv4_dst = *(__be32 *)(destination->bytes + 12);
	} else {
		fib.family = AF_INET6;
		__builtin_memcpy(fib.ipv6_src, source, 16);
		__builtin_memcpy(fib.ipv6_dst, destination, 16);
	}
	found = bpf_fib_lookup(ctx, &fib, sizeof(fib), 0);
	if (found != BPF_FIB_LKUP_RET_SUCCESS && found != BPF_FIB_LKUP_RET_NO_NEIGH) {
		ctx->tc_index = 0;
		return TC_ACT_OK;
	}
	/* The next hop is known by now: not looked for again. */
	next.family = fib.family;
	__builtin_memcpy(next.ipv6, fib.ipv6_dst, 16);
	ctx->tc_index = GOES_STRAIGHT;
	return redirect_neighbour(fib.ifindex, &next, sizeof(next), 0);
}
