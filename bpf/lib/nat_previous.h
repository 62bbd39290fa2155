/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Moving house, for mappings: as lib/ct_previous.h. While uplinks change over one
 * by one, and at each the two directions one after the other, these programs find
 * what the former ones made, and make for them too. The former table of the way
 * back has the last word on who has a port, because every program knows it.
 * Values only ever grow at their end; what is longer is cut.
 */
#pragma once
#include "lib/common.h"

#ifdef NAT_PREVIOUS_FD

struct nat_previous_entry {
	__u8 bytes[NAT_PREVIOUS_BYTES];
};

struct nat_previous_origin {
	__u8 bytes[NAT_PREVIOUS_REVERSE_BYTES];
};

INLINE struct nat_entry *nat_adopt(struct ct_key *key)
{
	void *former = bpf_map_lookup_elem(MAP(NAT_PREVIOUS_FD), key);
	struct nat_entry entry = {};

	if (!former)
		return NULL;
	__builtin_memcpy(&entry, former, NAT_COMMON_BYTES);
	bpf_map_update_elem(MAP(NAT_FD), key, &entry, BPF_NOEXIST);
	return bpf_map_lookup_elem(MAP(NAT_FD), key);
}

INLINE struct nat_origin *nat_adopt_origin(struct nat_reverse_key *key)
{
	void *former = bpf_map_lookup_elem(MAP(NAT_PREVIOUS_REVERSE_FD), key);
	struct nat_origin origin = {};

	if (!former)
		return NULL;
	__builtin_memcpy(&origin, former, NAT_COMMON_REVERSE_BYTES);
	bpf_map_update_elem(MAP(NAT_REVERSE_FD), key, &origin, BPF_NOEXIST);
	return bpf_map_lookup_elem(MAP(NAT_REVERSE_FD), key);
}

INLINE bool nat_mirror_origin(struct nat_reverse_key *key, struct nat_origin *origin)
{
	struct nat_previous_origin value = {};

	__builtin_memcpy(&value, origin, NAT_COMMON_REVERSE_BYTES);
	return !bpf_map_update_elem(MAP(NAT_PREVIOUS_REVERSE_FD), key, &value, BPF_NOEXIST);
}

INLINE void nat_mirror(struct ct_key *key, struct nat_entry *entry)
{
	struct nat_previous_entry value = {};

	__builtin_memcpy(&value, entry, NAT_COMMON_BYTES);
	bpf_map_update_elem(MAP(NAT_PREVIOUS_FD), key, &value, BPF_NOEXIST);
}

INLINE void nat_unmirror(struct nat_reverse_key *key)
{
	bpf_map_delete_elem(MAP(NAT_PREVIOUS_REVERSE_FD), key);
}

#else

INLINE struct nat_entry *nat_adopt(struct ct_key *key)
{
	return NULL;
}

INLINE struct nat_origin *nat_adopt_origin(struct nat_reverse_key *key)
{
	return NULL;
}

INLINE bool nat_mirror_origin(struct nat_reverse_key *key, struct nat_origin *origin)
{
	return true;
}

INLINE void nat_mirror(struct ct_key *key, struct nat_entry *entry)
{
}

INLINE void nat_unmirror(struct nat_reverse_key *key)
{
}

#endif
