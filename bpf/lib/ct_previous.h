/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Moving house: while an agent with another layout of the connection table
 * takes over, its programs and the former ones run side by side, device by
 * device. These programs find what the former ones recorded, and record for
 * them too. Built only for that moment: CT_PREVIOUS_FD and
 * CT_PREVIOUS_OVERFLOW_FD are the former tables, CT_PREVIOUS_BYTES the size of
 * their values and CT_COMMON_BYTES how much of the layout agrees. Values only
 * ever grow at their end, so that is the smaller.
 */
#pragma once
#include "lib/common.h"

#ifdef CT_PREVIOUS_FD

struct ct_previous_value {
	__u8 bytes[CT_PREVIOUS_BYTES];
};

INLINE struct ct_entry *ct_adopt(struct ct_key *key)
{
	void *former = bpf_map_lookup_elem(MAP(CT_PREVIOUS_FD), key);
	struct ct_entry entry = {}, *ours;

	if (!former)
		former = bpf_map_lookup_elem(MAP(CT_PREVIOUS_OVERFLOW_FD), key);
	if (!former)
		return NULL;
	__builtin_memcpy(&entry, former, CT_COMMON_BYTES);
	/* So that the far end's entry is looked at and comes over too. */
	entry.verdict &= ~(1ULL << CT_VOUCHED_BIT);
	bpf_map_update_elem(MAP(CT_FD), key, &entry, BPF_NOEXIST);
	ours = bpf_map_lookup_elem(MAP(CT_FD), key);
	if (ours)
		return ours;
	/* Full, as for a new connection. */
	bpf_map_update_elem(MAP(CT_OVERFLOW_FD), key, &entry, BPF_NOEXIST);
	return bpf_map_lookup_elem(MAP(CT_OVERFLOW_FD), key);
}

INLINE void ct_mirror(struct ct_key *key, struct ct_entry *entry, struct ct_previous_value *value)
{
	__builtin_memset(value, 0, sizeof(*value));
	__builtin_memcpy(value, entry, CT_COMMON_BYTES);
	if (bpf_map_update_elem(MAP(CT_PREVIOUS_FD), key, value, BPF_ANY))
		bpf_map_update_elem(MAP(CT_PREVIOUS_OVERFLOW_FD), key, value, BPF_ANY);
}

#else

struct ct_previous_value {
};

INLINE struct ct_entry *ct_adopt(struct ct_key *key)
{
	return NULL;
}

INLINE void ct_mirror(struct ct_key *key, struct ct_entry *entry, struct ct_previous_value *value)
{
}

#endif
