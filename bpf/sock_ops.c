/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Hook: sock_ops of the cgroup above all pods. Both ends of each new TCP
 * connection pass here, the opening one first.
 *
 * Finds connections that have both ends in pods of this node which want it and
 * that the programs at the devices let pass, and enters both ends into
 * `sockets`. Namespace cookies and sequence numbers say who is who: a process
 * can give itself any address, but neither of these.
 */
#include "lib/endpoint.h"
#include "lib/socket.h"

/* As CTX_LOAD, of this hook's context. */
#define OPS_LOAD(CTX, FIELD)                                                         \
	({                                                                           \
		__u32 value_;                                                        \
		asm volatile("%0 = *(u32 *)(%1 + %2)"                                \
			     : "=r"(value_)                                          \
			     : "r"(CTX), "i"(offsetof(struct bpf_sock_ops, FIELD))); \
		value_;                                                              \
	})

INLINE void local_address_of(struct bpf_sock_ops *ctx, struct address *to)
{
	__u32 *words = (__u32 *)to;

	if (OPS_LOAD(ctx, family) == AF_INET) {
		map_ipv4(to, OPS_LOAD(ctx, local_ip4));
		return;
	}
	words[0] = OPS_LOAD(ctx, local_ip6[0]);
	words[1] = OPS_LOAD(ctx, local_ip6[1]);
	words[2] = OPS_LOAD(ctx, local_ip6[2]);
	words[3] = OPS_LOAD(ctx, local_ip6[3]);
}

INLINE void remote_address_of(struct bpf_sock_ops *ctx, struct address *to)
{
	__u32 *words = (__u32 *)to;

	if (OPS_LOAD(ctx, family) == AF_INET) {
		map_ipv4(to, OPS_LOAD(ctx, remote_ip4));
		return;
	}
	words[0] = OPS_LOAD(ctx, remote_ip6[0]);
	words[1] = OPS_LOAD(ctx, remote_ip6[1]);
	words[2] = OPS_LOAD(ctx, remote_ip6[2]);
	words[3] = OPS_LOAD(ctx, remote_ip6[3]);
}

INLINE __u32 identity_of_endpoint(__u32 endpoint)
{
	struct endpoint_policy *policy = bpf_map_lookup_elem(MAP(ENDPOINTS_FD), &endpoint);

	return policy ? policy->identity : IDENTITY_UNKNOWN;
}

/* Enters the socket; false: the kernel or the table does not take it. */
INLINE bool enter(struct bpf_sock_ops *ctx, const struct socket_state *state)
{
	struct socket_key key;
	int error;

	socket_key_of(&key, state);
	error = bpf_sock_hash_update(ctx, MAP(SOCKETS_FD), &key, BPF_NOEXIST);
	if (!error) {
		count_socket(SOCKETS_BY_OUTCOME + SOCKET_ENTERED);
		return true;
	}
	count_socket(SOCKETS_BY_OUTCOME + (error == -E2BIG ? SOCKET_TABLE_FULL : SOCKET_REFUSED));
	return false;
}

INLINE bool loopback_address(const struct address *a)
{
	const __u32 *words = (const __u32 *)a;

	if (mapped_ipv4(a))
		return a->bytes[12] == 127;
	return !words[0] && !words[1] && !words[2] && words[3] == bpf_htonl(1);
}

/* Has a packet of this connection left its pod? What a rule of packet translation
 * gives to a sidecar never does, so no program at a device has seen it, wherever
 * it is dialled.
 */
INLINE bool left_its_pod(const struct socket_state *state)
{
	struct ct_entry *entry;
	struct ct_key key;

	socket_ct_key(&key, state, false);
	entry = bpf_map_lookup_elem(MAP(CT_FD), &key);
	/* Not what a former connection left. */
	return entry && !(entry->flags & (CT_FIN_ORIGINAL | CT_FIN_REPLY | CT_RST));
}

/* Where the other end of a connection that is being opened is to be found, as
 * far as this end can tell: false where it is not on this node, or wants none
 * of this.
 */
INLINE bool expect_far_end(struct socket_state *state)
{
	struct local_address *local = find_local(&state->destination);
	struct socket_endpoint *far;

	if (loopback_address(&state->destination) ||
	    (local && local->endpoint == state->endpoint) || !left_its_pod(state)) {
		state->far_netns = state->netns;
		state->far_endpoint = state->endpoint;
		state->flags |= SOCKET_SAME_NETNS;
		return true;
	}
	if (!local || local->kind != LOCAL_POD)
		return false;
	state->far_endpoint = local->endpoint;
	far = bpf_map_lookup_elem(MAP(SOCKET_ENDPOINTS_FD), &state->far_endpoint);
	if (!far || far->mode == REDIRECT_OFF)
		return false;
	state->far_netns = far->netns;
	return true;
}

/* May it claim this source? What goes to another pod is sent from an address of
 * its own.
 */
INLINE bool own_source(const struct socket_state *state)
{
	struct local_address *local = find_local((struct address *)&state->source);

	return local && local->endpoint == state->endpoint;
}

/* A state for a connection that begins. A socket may have one of a connection
 * that it had before (see begin_anew), which would give its bytes to that one's
 * other end.
 */
INLINE struct socket_state *new_state(void *sock, struct socket_state *initial)
{
	struct socket_state *state = socket_state_of(sock, initial);

	if (state && (state->client != initial->client || state->server != initial->server))
		*state = *initial;
	return state;
}

/* The end that opened the connection: the answer to its SYN is here, nothing
 * else was sent yet.
 */
INLINE void opened(struct bpf_sock_ops *ctx, __u32 endpoint, __u64 netns, __u32 mode)
{
	struct socket_state initial = {}, *state;
	struct handshake_key key;
	struct handshake offer = {};
	struct bpf_sock *sk = ctx->sk;
	struct tcp_sock *tcp;
	__u64 flags_at;
	__u32 use, outcome;

	if (!sk)
		return;
	tcp = bpf_skc_to_tcp_sock(sk);
	if (!tcp)
		return;
	flags_at = file_flags_of((__u64)tcp);
	outcome = SOCKET_BLOCKING;
	if (mode != REDIRECT_ALL && !(flags_at && peek_u32(flags_at) & O_NONBLOCK))
		goto out;
	local_address_of(ctx, &initial.source);
	remote_address_of(ctx, &initial.destination);
	initial.source_port = bpf_htons(OPS_LOAD(ctx, local_port));
	initial.destination_port = OPS_LOAD(ctx, remote_port) >> 16;
	initial.endpoint = endpoint;
	initial.netns = netns;
	initial.side = SIDE_OPENED;
	initial.port = bpf_ntohs(initial.destination_port);
	initial.spliced = -1;
	initial.cookie = bpf_get_socket_cookie(ctx);
	initial.client = OPS_LOAD(ctx, snd_nxt);
	initial.server = OPS_LOAD(ctx, rcv_nxt);
	if (mode == REDIRECT_ALL)
		initial.flags = SOCKET_MAY_BLOCK;
	forget_values();
	outcome = SOCKET_FAR_AWAY;
	if (!expect_far_end(&initial))
		goto out;
	if (!(initial.flags & SOCKET_SAME_NETNS)) {
		initial.epoch = current_epoch();
		outcome = SOCKET_FORGED;
		if (!own_source(&initial))
			goto out;
		outcome = SOCKET_DENIED;
		if (!socket_allowed(&initial, initial.epoch))
			goto out;
	}
	use = use_of(netns, initial.port, SIDE_OPENED);
	outcome = SOCKET_ZEROCOPY;
	if (use == USE_ZEROCOPY || zero_copies(KERNEL_U32(tcp, SOCK_SK_FLAGS)))
		goto out;
	outcome = SOCKET_SPLICES;
	if (use == USE_SPLICES)
		goto out;
	/* Others that were opened to this port did not block in connect, and did
	 * afterwards.
	 */
	outcome = SOCKET_BLOCKING;
	if (use == USE_BLOCKS && mode != REDIRECT_ALL)
		goto out;
	forget_values();
	initial.identity = identity_of_endpoint(endpoint);
	initial.far_identity = identity_of_endpoint(initial.far_endpoint);
	state = new_state(sk, &initial);
	if (!state || !enter(ctx, &initial))
		return;
	offer.netns = netns;
	offer.far_netns = initial.far_netns;
	offer.socket = (__u64)tcp;
	offer.state = (__u64)state;
	offer.source = initial.source;
	offer.destination = initial.destination;
	offer.source_port = initial.source_port;
	offer.destination_port = initial.destination_port;
	offer.endpoint = endpoint;
	offer.far_endpoint = initial.far_endpoint;
	key.client = initial.client;
	key.server = initial.server;
	bpf_sock_ops_cb_flags_set(ctx, OPS_LOAD(ctx, bpf_sock_ops_cb_flags) |
					       BPF_SOCK_OPS_STATE_CB_FLAG);
	bpf_map_update_elem(MAP(HANDSHAKES_FD), &key, &offer, BPF_NOEXIST);
	return;
out:
	count_socket(SOCKETS_BY_OUTCOME + outcome);
}

/* Is the connection answered where its opening end thought? */
INLINE bool as_expected(struct bpf_sock_ops *ctx, const struct handshake *offer, __u32 endpoint,
			__u64 netns)
{
	struct address remote;

	if (offer->far_netns != netns || offer->far_endpoint != endpoint) {
		count_socket(SOCKETS_BY_OUTCOME + SOCKET_INTERCEPTED);
		return false;
	}
	if (offer->netns == netns)
		return true;
	/* What is translated on the way between two pods is who is dialled, and
	 * never who dials.
	 */
	remote_address_of(ctx, &remote);
	if (same_address(&remote, &offer->source) &&
	    OPS_LOAD(ctx, remote_port) >> 16 == offer->source_port)
		return true;
	count_socket(SOCKETS_BY_OUTCOME + SOCKET_FORGED);
	return false;
}

/* The end that answered. */
INLINE void answered(struct bpf_sock_ops *ctx, __u32 endpoint, __u64 netns, __u32 mode)
{
	struct handshake_key key;
	struct socket_state initial = {}, *state;
	struct bpf_sock *sk = ctx->sk;
	struct handshake *offer;
	struct tcp_sock *tcp;
	__u32 use, outcome;

	key.client = OPS_LOAD(ctx, rcv_nxt);
	key.server = OPS_LOAD(ctx, snd_nxt);
	offer = bpf_map_lookup_elem(MAP(HANDSHAKES_FD), &key);
	if (!offer || !sk)
		return;
	tcp = bpf_skc_to_tcp_sock(sk);
	if (!tcp || !as_expected(ctx, offer, endpoint, netns))
		return;
	initial.netns = netns;
	initial.far_netns = offer->netns;
	initial.client = key.client;
	initial.server = key.server;
	initial.side = SIDE_ANSWERED;
	initial.port = OPS_LOAD(ctx, local_port);
	initial.spliced = -1;
	initial.cookie = bpf_get_socket_cookie(ctx);
	initial.source = offer->source;
	initial.destination = offer->destination;
	initial.source_port = offer->source_port;
	initial.destination_port = offer->destination_port;
	initial.endpoint = endpoint;
	initial.far_endpoint = offer->endpoint;
	initial.far_socket = offer->socket;
	initial.far_state = offer->state;
	forget_values();
	if (offer->netns == netns) {
		initial.flags = SOCKET_SAME_NETNS;
	} else {
		initial.epoch = current_epoch();
		outcome = SOCKET_DENIED;
		if (!socket_allowed(&initial, initial.epoch))
			goto out;
	}
	use = use_of(netns, OPS_LOAD(ctx, local_port), SIDE_ANSWERED);
	outcome = SOCKET_ZEROCOPY;
	if (use == USE_ZEROCOPY || zero_copies(KERNEL_U32(tcp, SOCK_SK_FLAGS)))
		goto out;
	outcome = SOCKET_SPLICES;
	if (use == USE_SPLICES)
		goto out;
	if (mode == REDIRECT_ALL) {
		initial.flags |= SOCKET_MAY_BLOCK;
	} else if (use != USE_NEVER_BLOCKS) {
		/* How it will be used is not known before it is accepted; it is
		 * learnt, for those that come after it.
		 */
		outcome = SOCKET_BLOCKING;
		if (use == USE_BLOCKS)
			goto out;
		initial.state = REDIRECT_LEARNING;
	}
	initial.identity = identity_of_endpoint(endpoint);
	initial.far_identity = identity_of_endpoint(initial.far_endpoint);
	forget_values();
	state = new_state(sk, &initial);
	if (!state)
		return;
	if (initial.state == REDIRECT_LEARNING)
		count_socket(SOCKETS_BY_OUTCOME + SOCKET_UNKNOWN_USE);
	else if (!enter(ctx, &initial))
		return;
	offer->far_port = OPS_LOAD(ctx, local_port);
	offer->far_state = (__u64)state;
	*(volatile __u64 *)&offer->far_socket = (__u64)tcp;
	bpf_sock_ops_cb_flags_set(ctx, OPS_LOAD(ctx, bpf_sock_ops_cb_flags) |
					       BPF_SOCK_OPS_STATE_CB_FLAG);
	return;
out:
	count_socket(SOCKETS_BY_OUTCOME + outcome);
}

INLINE void tell_traffic(struct socket_state *state)
{
	struct socket_traffic_key key = { state->identity, state->far_identity };
	struct socket_traffic none = {}, *traffic;

	traffic = bpf_map_lookup_elem(MAP(SOCKET_TRAFFIC_FD), &key);
	if (!traffic) {
		bpf_map_update_elem(MAP(SOCKET_TRAFFIC_FD), &key, &none, BPF_NOEXIST);
		traffic = bpf_map_lookup_elem(MAP(SOCKET_TRAFFIC_FD), &key);
		if (!traffic)
			return;
	}
	__sync_fetch_and_add(&traffic->bytes, state->bytes - state->told_bytes);
	__sync_fetch_and_add(&traffic->messages, state->messages - state->told_messages);
	__sync_fetch_and_add(&traffic->connections, 1);
	state->told_bytes = state->bytes;
	state->told_messages = state->messages;
}

INLINE void state_changed(struct bpf_sock_ops *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	struct socket_state *state;
	struct tcp_sock *tcp;
	__u64 flags_at;
	__u32 use;

	if (!sk)
		return;
	state = socket_state_of(sk, NULL);
	if (!state)
		return;
	if (state->state == REDIRECT_LEARNING) {
		tcp = bpf_skc_to_tcp_sock(sk);
		flags_at = tcp ? file_flags_of((__u64)tcp) : 0;
		if (!tcp || !flags_at)
			return;
		use = USE_NEVER_BLOCKS;
		if (zero_copies(KERNEL_U32(tcp, SOCK_SK_FLAGS)))
			use = USE_ZEROCOPY;
		else if (!(peek_u32(flags_at) & O_NONBLOCK))
			use = USE_BLOCKS;
		learn_use(state->netns, OPS_LOAD(ctx, local_port), SIDE_ANSWERED, use);
		return;
	}
	if (OPS_LOAD(ctx, args[1]) != BPF_TCP_CLOSE)
		return;
	if (state->side == SIDE_OPENED) {
		struct handshake_key key = { state->client, state->server };

		bpf_map_delete_elem(MAP(HANDSHAKES_FD), &key);
	}
	tell_traffic(state);
}

/* connect(AF_UNSPEC) ends a connection, but leaves the socket in the table, with
 * what it has not read. Before it begins anew it leaves, and that goes: else the
 * former connection's other end would send into the next one.
 */
INLINE void begin_anew(struct bpf_sock_ops *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	struct socket_state *state;
	struct socket_key key;

	if (!sk)
		return;
	state = socket_state_of(sk, NULL);
	if (!state)
		return;
	socket_key_of(&key, state);
	bpf_map_delete_elem(MAP(SOCKETS_FD), &key);
}

int sock_ops(struct bpf_sock_ops *ctx)
{
	__u32 *endpoint, mode;
	__u64 netns;

	if (OPS_LOAD(ctx, op) == BPF_SOCK_OPS_STATE_CB) {
		state_changed(ctx);
		return 1;
	}
	if (OPS_LOAD(ctx, op) == BPF_SOCK_OPS_TCP_CONNECT_CB ||
	    OPS_LOAD(ctx, op) == BPF_SOCK_OPS_TCP_LISTEN_CB) {
		begin_anew(ctx);
		return 1;
	}
	if (OPS_LOAD(ctx, op) != BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB &&
	    OPS_LOAD(ctx, op) != BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB)
		return 1;
	if (!redirect_configuration()->enabled)
		return 1;
	netns = bpf_get_netns_cookie(ctx);
	endpoint = bpf_map_lookup_elem(MAP(NAMESPACES_FD), &netns);
	if (!endpoint)
		return 1;
	mode = redirect_mode_of(*endpoint, netns);
	if (mode == REDIRECT_OFF)
		return 1;
	if (OPS_LOAD(ctx, op) == BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB)
		opened(ctx, *endpoint, netns, mode);
	else
		answered(ctx, *endpoint, netns, mode);
	return 1;
}
