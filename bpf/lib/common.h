/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What every program needs: types, map access, verdict constants. */
#pragma once
#include <uapi/linux/bpf.h>
#include <uapi/linux/icmp.h>
#include <uapi/linux/icmpv6.h>
#include <uapi/linux/if_ether.h>
#include <uapi/linux/in.h>
#include <uapi/linux/ip.h>
#include <uapi/linux/ipv6.h>
#include <uapi/linux/pkt_cls.h>
#include <uapi/linux/tcp.h>
#include <uapi/linux/udp.h>
#include "lib/layout.h"

#define INLINE static __always_inline

/* Whole features that the agent switches by macros. */
#ifndef MASQUERADE
#define MASQUERADE 0
#endif

/* The agent creates the maps and gives their descriptors as macros. */
#define MAP(FD) ((void *)bpf_pseudo_fd(1, FD))
/* The value of an array that has only one, by its address: no look-up, never NULL. */
#define ONLY_VALUE(FD) ((void *)bpf_pseudo_fd(2, FD))

#define likely(X) __builtin_expect(!!(X), 1)
#define unlikely(X) __builtin_expect(!!(X), 0)

#define NS_PER_SECOND 1000000000ULL

#ifndef IPPROTO_SCTP
#define IPPROTO_SCTP 132
#endif

/* Newer than the header that bcc brings, or declared there with fewer
 * arguments than the kernel takes; numbers of the kernel's helper list.
 */
static __u64 (*ktime_coarse)(void) = (void *)160;
static __u64 (*jiffies)(void) = (void *)118;
static long (*redirect_neighbour)(__u32 ifindex, void *params, int length,
				  __u64 flags) = (void *)152;

/* CLOCK_MONOTONIC_COARSE, s, kept from one run to the next. It moves with the
 * kernel's tick alone, so what was read under the same tick is right still; to
 * read the tick is one load, to read the clock costs a fifth of a short run.
 */
struct coarse_clock {
	__u64 tick;
	__u32 seconds;
	__u32 pad;
};

INLINE __u32 coarse_seconds(struct coarse_clock *clock)
{
	__u64 tick = jiffies();

	if (unlikely(clock->tick != tick)) {
		clock->tick = tick;
		clock->seconds = ktime_coarse() / NS_PER_SECOND;
	}
	return clock->seconds;
}

/* One load that the compiler may not move or repeat: some fields of the
 * context may only be read by a plain load at their own offset, which large
 * inlined programs otherwise lose ("dereference of modified ctx ptr").
 */
#define CTX_LOAD(CTX, FIELD)                                                      \
	({                                                                        \
		__u32 value_;                                                     \
		asm volatile("%0 = *(u32 *)(%1 + %2)"                             \
			     : "=r"(value_)                                       \
			     : "r"(CTX), "i"(offsetof(struct __sk_buff, FIELD))); \
		value_;                                                           \
	})

/* Makes the compiler read memory again: what a register still holds of it is a
 * constant or a range to the verifier, what comes from a map is any number, so
 * paths that differ in nothing else are walked once.
 */
#define forget_values() asm volatile("" ::: "memory")

INLINE bool same_address(const struct address *a, const struct address *b)
{
	const __u64 *x = (const __u64 *)a, *y = (const __u64 *)b;

	return x[0] == y[0] && x[1] == y[1];
}

INLINE bool no_address(const struct address *a)
{
	const __u64 *x = (const __u64 *)a;

	return !x[0] && !x[1];
}

INLINE bool mapped_ipv4(const struct address *a)
{
	const __u32 *words = (const __u32 *)a;

	return !words[0] && !words[1] && words[2] == bpf_htonl(0xffff);
}

INLINE void map_ipv4(struct address *to, __be32 from)
{
	__u32 *words = (__u32 *)to;

	words[0] = 0;
	words[1] = 0;
	words[2] = bpf_htonl(0xffff);
	words[3] = from;
}

/* Of a mapped address. */
INLINE __be32 unmapped_ipv4(const struct address *a)
{
	return ((const __u32 *)a)[3];
}

INLINE bool same_mac(const __u8 *a, const __u8 *b)
{
	const __u16 *x = (const __u16 *)a, *y = (const __u16 *)b;

	return x[0] == y[0] && x[1] == y[1] && x[2] == y[2];
}
