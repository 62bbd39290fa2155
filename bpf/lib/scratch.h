/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Working memory of one program run. It is a per-CPU map and not the stack for
 * two reasons: the stack is 512 bytes, and the verifier follows every constant
 * that is stored there, so each kind of packet would be another path through
 * all that comes after. What is read from a map is just a number. These hooks
 * run with softirqs off, so no other run comes between on the same CPU.
 */
#pragma once
#include "lib/conntrack.h"
#include "lib/nat.h"

/* Places in told, in the order in which they are said. */
enum told {
	TOLD_SENDER = 0, /* verdict of the sender's policy */
	TOLD_RECEIVER = 1,
	TOLD_END = 2, /* a drop, or a new connection */
	TOLD = 3,
};

/* Where the packet goes. */
enum way {
	WAY_STACK = 0,
	WAY_NOWHERE = 1,
	WAY_POD = 2,
	WAY_UPLINK = 3,
	WAY_TUNNEL = 4,
};

/* What the short way needs to know of a packet: lib/fast.h. */
struct plain {
	struct coarse_clock clock;
	struct address source;
	struct address destination;
	__u16 source_port; /* network order */
	__u16 destination_port;
	__u32 size; /* of the IP packet, or of one segment of it */
	__u8 version;
	__u8 protocol;
};

struct scratch {
	struct coarse_clock clock; /* in the same place as in struct plain */
	struct packet packet;
	struct passage out; /* of the sender, when it is a local pod */
	struct passage in; /* of the receiver */
	struct report told[TOLD]; /* said at the end: lib/deliver.h */
	struct translation nat; /* lib/masquerade.h */
	__u8 reason; /* enum drop_reason */
	__u8 observation; /* enum observation, of a new connection */
	__u8 way; /* enum way */
	__u8 probe; /* a question of the agent's: lib/probe.h */
};

_Static_assert(sizeof(struct scratch) <= SCRATCH_BYTES, "scratch map too small");

/* Memory of the short way, which ends before the other one begins. */
INLINE struct plain *plain_scratch(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(MAP(SCRATCH_FD), &zero);
}

INLINE struct scratch *new_scratch(void)
{
	__u32 zero = 0;
	struct scratch *scratch = bpf_map_lookup_elem(MAP(SCRATCH_FD), &zero);

	if (!scratch)
		return NULL;
	/* Only what is read before it is written; the rest would cost 10 ns. */
	__builtin_memset(&scratch->packet, 0, sizeof(scratch->packet));
	__builtin_memset(&scratch->out.is, 0, sizeof(scratch->out.is));
	__builtin_memset(&scratch->in.is, 0, sizeof(scratch->in.is));
	__builtin_memset(&scratch->told[TOLD_END], 0, sizeof(struct report));
	scratch->told[TOLD_SENDER].type = 0;
	scratch->told[TOLD_RECEIVER].type = 0;
	scratch->out.origin = ORIGIN_ADDRESS;
	scratch->out.far_end = ORIGIN_ADDRESS;
	scratch->in.far_end = ORIGIN_ADDRESS;
	scratch->reason = 0;
	scratch->observation = 0;
	scratch->way = WAY_STACK;
	return scratch;
}
