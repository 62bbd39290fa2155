/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Sockets of this node's pods: whose they are, how they are used, and what is
 * known of a connection that both ends of are here.
 *
 * Offsets of kernel structures (<STRUCT>_<MEMBER>) are macros that the agent
 * takes from the running kernel's BTF.
 */
#pragma once
#include "lib/conntrack.h"

#define O_NONBLOCK 04000 /* include/uapi/asm-generic/fcntl.h */
#define AF_INET 2
#define E2BIG 7

/* Fields of kernel structures through a pointer that the verifier knows the
 * type of (it checks the offset), or by an address that may be stale.
 */
#define KERNEL_U32(POINTER, OFFSET) (*(__u32 *)((void *)(POINTER) + (OFFSET)))

INLINE __u32 peek_u32(__u64 address)
{
	__u32 value = 0;

	bpf_probe_read_kernel(&value, sizeof(value), (void *)address);
	return value;
}

INLINE __u64 peek_u64(__u64 address)
{
	__u64 value = 0;

	bpf_probe_read_kernel(&value, sizeof(value), (void *)address);
	return value;
}

/* A field of a TCP socket at an address: by the kernel's own cast (the kfunc
 * bpf_rdonly_cast) to a pointer that may be read only, so that the load is one
 * instruction; where there is no such thing, by the helper. The compiler knows no
 * kfuncs: the loader makes one of each call with KFUNC_CALL in its number
 * (agent/kernel/bytecode.py).
 */
#define KFUNC_CALL 0x40000000

#if RDONLY_CAST
static void *(*rdonly_cast)(void *address, __u32 type) = (void *)(KFUNC_CALL | RDONLY_CAST);

#define SOCK_U32(ADDRESS, OFFSET) KERNEL_U32(rdonly_cast((void *)(ADDRESS), TYPE_TCP_SOCK), OFFSET)
#else
#define SOCK_U32(ADDRESS, OFFSET) peek_u32((ADDRESS) + (OFFSET))
#endif

/* Address of the flags of the file that a socket was opened or accepted as; 0:
 * not accepted yet, or closed.
 */
INLINE __u64 file_flags_of(__u64 sock)
{
	__u64 socket = peek_u64(sock + SOCK_SK_SOCKET);
	__u64 file = socket ? peek_u64(socket + SOCKET_FILE) : 0;

	return file ? file + FILE_F_FLAGS : 0;
}

/* Does the application send with MSG_ZEROCOPY? sk_flags of a socket that has SO_ZEROCOPY. */
INLINE bool zero_copies(__u32 sk_flags)
{
	return sk_flags & 1U << SOCK_ZEROCOPY;
}

INLINE void count_socket(__u32 counter)
{
	__u64 *value = bpf_map_lookup_elem(MAP(SOCKET_COUNTERS_FD), &counter);

	if (value)
		(*value)++;
}

INLINE struct redirect_config *redirect_configuration(void)
{
	return ONLY_VALUE(REDIRECT_FD);
}

INLINE __u64 *splice_count(void)
{
	return ONLY_VALUE(SPLICED_FD);
}

INLINE struct socket_state *socket_state_of(void *sock, struct socket_state *initial)
{
	return bpf_sk_storage_get(MAP(SOCKET_STATES_FD), sock, initial,
				  initial ? BPF_SK_STORAGE_GET_F_CREATE : 0);
}

/* The mode of an endpoint's sockets in this namespace; off for any other. */
INLINE __u32 redirect_mode_of(__u32 endpoint, __u64 netns)
{
	struct socket_endpoint *sockets = bpf_map_lookup_elem(MAP(SOCKET_ENDPOINTS_FD), &endpoint);

	return sockets && sockets->netns == netns ? sockets->mode : REDIRECT_OFF;
}

INLINE __u32 use_of(__u64 netns, __u16 port, __u16 side)
{
	struct listener_key key = { .netns = netns, .port = port, .side = side };
	__u32 *use = bpf_map_lookup_elem(MAP(LISTENERS_FD), &key);

	return use ? *use : USE_UNKNOWN;
}

/* The worst that was seen stands. */
INLINE void learn_use(__u64 netns, __u16 port, __u16 side, __u32 seen)
{
	struct listener_key key = { .netns = netns, .port = port, .side = side };
	__u32 *use = bpf_map_lookup_elem(MAP(LISTENERS_FD), &key);

	if (!use)
		bpf_map_update_elem(MAP(LISTENERS_FD), &key, &seen, BPF_ANY);
	else if (*use < seen)
		*use = seen;
}

INLINE void socket_key_of(struct socket_key *key, const struct socket_state *state)
{
	key->netns = state->netns;
	key->far_netns = state->far_netns;
	key->client = state->client;
	key->server = state->server;
	key->side = state->side;
	key->pad = 0;
}

/* Entry of the end that opened the connection (egress), or of the one that
 * answered (ingress).
 */
INLINE void socket_ct_key(struct ct_key *key, const struct socket_state *state, bool ingress)
{
	bool own = (state->side == SIDE_ANSWERED) == ingress;

	key->remote = ingress ? state->source : state->destination;
	key->local_port = ingress ? state->destination_port : state->source_port;
	key->remote_port = ingress ? state->source_port : state->destination_port;
	key->endpoint = own ? state->endpoint : state->far_endpoint;
	key->protocol = IPPROTO_TCP;
	key->pad[0] = 0;
	key->pad[1] = 0;
	key->pad[2] = 0;
}

/* Do both ends' policies allow the connection, as the programs at the pods'
 * devices found it under this epoch? They alone judge: here nothing is.
 */
INLINE bool socket_allowed(const struct socket_state *state, __u64 epoch)
{
	struct ct_key key;
	struct ct_entry *entry;
	__u32 receiver = state->side == SIDE_OPENED ? state->far_endpoint : state->endpoint;

	socket_ct_key(&key, state, false);
	entry = bpf_map_lookup_elem(MAP(CT_FD), &key);
	return entry && entry->verdict == (epoch | CT_VOUCHED) && entry->far_end == receiver &&
	       !(entry->flags & (CT_INGRESS | CT_VIA_STACK | CT_RST));
}

/* A redirected connection sends no packets, but is as alive as any. */
INLINE void touch_connection(struct socket_state *state, __u32 now)
{
	struct ct_entry *entry;
	struct ct_key key;

	socket_ct_key(&key, state, false);
	entry = bpf_map_lookup_elem(MAP(CT_FD), &key);
	if (entry)
		entry->seen = now;
	socket_ct_key(&key, state, true);
	entry = bpf_map_lookup_elem(MAP(CT_FD), &key);
	if (entry)
		entry->seen = now;
}
