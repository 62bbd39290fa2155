/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Hook: sk_msg of `sockets`. Every call that sends on one of these sockets, in
 * the sender's context and under the lock of its socket.
 *
 * Gives the bytes to the other end's socket, or lets the stack send them. What
 * the kernel keeps of order is this: a receiver reads what was redirected
 * before what came by the stack. So going to the stack is always right, and
 * coming back only once all that went there is consumed.
 */
#include "lib/socket.h"

INLINE int by_stack(struct socket_state *state, __u16 reason)
{
	/* What only teaches how a port is used was never to be redirected. */
	if (state->state == REDIRECT_WAITING && reason != STACK_UNKNOWN_USE)
		count_socket(SOCKETS_FIRST_STACK);
	state->state = REDIRECT_STACK;
	if (reason != STACK_DRAINING || state->reason == STACK_NONE)
		state->reason = reason;
	state->stack_messages++;
	count_socket(SOCKETS_BY_STACK_REASON + reason);
	return SK_PASS;
}

/* Is all that went through the stack read by now? Both ends' numbers only ever
 * grow, and nothing is added while this socket's lock is held: everything sent
 * is acknowledged, so it is in the receiver, and there nothing is left.
 */
INLINE bool drained(struct tcp_sock *tcp, __u64 far_socket)
{
	return KERNEL_U32(tcp, TCP_SOCK_WRITE_SEQ) == KERNEL_U32(tcp, TCP_SOCK_SND_UNA) &&
	       SOCK_U32(far_socket, TCP_SOCK_COPIED_SEQ) == KERNEL_U32(tcp, TCP_SOCK_SND_UNA);
}

/* The other end's answer to the handshake, read once. */
INLINE void meet(struct socket_state *state)
{
	struct handshake_key key = { state->client, state->server };
	struct handshake *offer = bpf_map_lookup_elem(MAP(HANDSHAKES_FD), &key);

	if (!offer || offer->state != (__u64)state || !*(volatile __u64 *)&offer->far_socket)
		return;
	state->far_state = offer->far_state;
	state->far_port = offer->far_port;
	state->far_socket = offer->far_socket;
	if ((peek_u32(state->far_state + offsetof(struct socket_state, state)) & 0xffff) ==
	    REDIRECT_LEARNING)
		state->flags |= SOCKET_LOOKS_ON;
	bpf_map_delete_elem(MAP(HANDSHAKES_FD), &key);
}

/* Has the receiver turned out to be what this is not for? Its flags are looked at
 * when any socket was seen to use splice; its file's, where it is not to block,
 * with the first messages and then now and again: who works without blocking
 * does not change its mind.
 */
#define SHORT_MESSAGE 16384 /* there is room for it anywhere */
#define OFTEN 8
#define SELDOM 64

INLINE __u16 unfit(struct socket_state *state)
{
	__u64 *spliced = splice_count();

	if (unlikely(state->flags & SOCKET_FAR_SPLICES))
		return STACK_SPLICES;
	if (unlikely(state->spliced != *spliced)) {
		/* First the count: what is seen is at least as new. */
		__u64 count = *(volatile __u64 *)spliced;
		__u32 flags = peek_u32(state->far_state + offsetof(struct socket_state, flags));

		if (flags & SOCKET_MAY_BLOCK)
			state->flags |= SOCKET_FAR_MAY_BLOCK;
		if (flags & SOCKET_SPLICED) {
			state->flags |= SOCKET_FAR_SPLICES;
			return STACK_SPLICES;
		}
		state->spliced = count;
	}
	if (state->flags & SOCKET_FAR_MAY_BLOCK)
		return 0;
	/* Accepted just now, perhaps, and not made what it will be. */
	if (!state->messages && state->side == SIDE_OPENED)
		return 0;
	if (state->messages >= OFTEN && state->messages % SELDOM && state->state == REDIRECT_DIRECT)
		return 0;
	if (!state->far_file_flags)
		state->far_file_flags = file_flags_of(state->far_socket);
	/* Before it is accepted, how others of its port were used counts. */
	if (state->far_file_flags && !(peek_u32(state->far_file_flags) & O_NONBLOCK))
		return STACK_BLOCKING;
	return 0;
}

/* Bytes that wait are bounded elsewhere; but the kernel keeps each message as one,
 * in about 1 KiB of its own however short it is. How many wait is not to be seen,
 * but how many bytes: once fewer wait than were sent after a mark, all before the
 * mark is read.
 */
#define MOST_MESSAGES 4096

INLINE bool many_wait(struct socket_state *state, __u32 unread)
{
	if (!unread) {
		state->read_messages = state->messages;
		return false;
	}
	if (state->mark_bytes + unread <= state->bytes) {
		if (state->mark_messages > state->read_messages)
			state->read_messages = state->mark_messages;
		state->mark_messages = state->messages;
		state->mark_bytes = state->bytes;
	}
	return state->messages - state->read_messages >= MOST_MESSAGES;
}

/* The first connection to a port goes by the stack. Once the other end has read
 * from it, one sees how: for the connections to come.
 */
INLINE void look_on(struct socket_state *state, struct tcp_sock *tcp)
{
	__u32 seen = USE_NEVER_BLOCKS;
	__u64 flags_at;

	if (state->flags & SOCKET_LEARNT || !tcp || !state->stack_messages ||
	    !drained(tcp, state->far_socket))
		return;
	flags_at = file_flags_of(state->far_socket);
	if (!flags_at)
		return;
	if (zero_copies(SOCK_U32(state->far_socket, SOCK_SK_FLAGS)))
		seen = USE_ZEROCOPY;
	else if (peek_u32(state->far_state + offsetof(struct socket_state, flags)) & SOCKET_SPLICED)
		seen = USE_SPLICES;
	else if (!(peek_u32(flags_at) & O_NONBLOCK))
		seen = USE_BLOCKS;
	learn_use(state->far_netns, state->far_port, SIDE_ANSWERED, seen);
	state->flags |= SOCKET_LEARNT;
}

/* An end that was opened without blocking may block afterwards: some libraries
 * bound the time of connect in this way. And either end may be told to send
 * without copying after it was connected. Seen with its first messages, for the
 * connections to come.
 */
#define FIRST_MESSAGES 4

INLINE void tell_own_use(struct socket_state *state, struct bpf_sock *sk)
{
	struct tcp_sock *tcp;
	__u32 seen = USE_UNKNOWN;
	__u64 flags_at;

	if (likely(state->flags & SOCKET_USE_TOLD))
		return;
	if (state->messages + state->stack_messages >= FIRST_MESSAGES)
		state->flags |= SOCKET_USE_TOLD;
	tcp = bpf_skc_to_tcp_sock(sk);
	if (!tcp)
		return;
	if (zero_copies(KERNEL_U32(tcp, SOCK_SK_FLAGS))) {
		seen = USE_ZEROCOPY;
	} else if (state->side == SIDE_OPENED && !(state->flags & SOCKET_MAY_BLOCK)) {
		flags_at = file_flags_of((__u64)tcp);
		if (flags_at && !(peek_u32(flags_at) & O_NONBLOCK))
			seen = USE_BLOCKS;
	}
	if (!seen)
		return;
	learn_use(state->netns, state->port, state->side, seen);
	state->flags |= SOCKET_USE_TOLD;
}

/* Says that one direction of a connection goes past the stack from here on. */
INLINE void tell_redirected(const struct sk_msg_md *msg, const struct socket_state *state)
{
	bool opened = state->side == SIDE_OPENED;
	struct event *event;

	if (!configuration()->trace)
		return;
	event = bpf_ringbuf_reserve(MAP(EVENTS_FD), sizeof(*event), 0);
	if (!event) {
		count(COUNTER_EVENTS_LOST);
		return;
	}
	__builtin_memset(event, 0, sizeof(*event));
	event->time = bpf_ktime_get_ns();
	event->source = opened ? state->source : state->destination;
	event->destination = opened ? state->destination : state->source;
	event->source_port = opened ? state->source_port : state->destination_port;
	event->destination_port = opened ? state->destination_port : state->source_port;
	event->length = msg->size;
	event->endpoint = state->endpoint;
	event->source_identity = state->identity;
	event->destination_identity = state->far_identity;
	event->type = EVENT_TRACE;
	event->direction = DIRECTION_EGRESS;
	event->observation = OBSERVE_TO_SOCKET;
	event->flags = EVENT_ALLOWED | (opened ? 0 : EVENT_REPLY);
	event->ip_version = mapped_ipv4(&state->source) ? 4 : 6;
	event->protocol = IPPROTO_TCP;
	bpf_ringbuf_submit(event, 0);
}

/* The clock moves with the tick alone, and to read it costs as much as the rest here. */
INLINE void keep_alive(struct socket_state *state)
{
	__u64 now, tick = jiffies();

	if (likely(state->tick == tick) || state->flags & SOCKET_SAME_NETNS)
		return;
	state->tick = tick;
	now = ktime_coarse();
	if (now - state->refreshed >= NS_PER_SECOND) {
		state->refreshed = now;
		touch_connection(state, now / NS_PER_SECOND);
	}
}

int sk_msg(struct sk_msg_md *msg)
{
	struct bpf_sock *sk = msg->sk;
	struct redirect_config *config = redirect_configuration();
	struct socket_state *state;
	struct socket_key key;
	struct tcp_sock *tcp;
	__u32 unread, room, size;
	__u64 epoch;
	__u16 reason;

	if (!sk)
		return SK_PASS;
	state = socket_state_of(sk, NULL);
	if (!state)
		return SK_PASS;
	/* The rest of a message that was parted bears the first part's length still:
	 * for so many bytes the kernel would keep to this verdict, and not ask about
	 * the messages after it.
	 */
	if (state->flags & SOCKET_PARTED) {
		bpf_msg_apply_bytes(msg, 0);
		state->flags &= ~SOCKET_PARTED;
	}
	/* Who has ended its half is told so by the stack. */
	if (sk->state != BPF_TCP_ESTABLISHED && sk->state != BPF_TCP_CLOSE_WAIT)
		return SK_PASS;
	tell_own_use(state, sk);
	if (!config->enabled)
		return by_stack(state, STACK_DISABLED);
	if (!state->far_socket) {
		meet(state);
		if (!state->far_socket)
			return by_stack(state, STACK_UNANSWERED);
	}
	if (state->flags & SOCKET_LOOKS_ON) {
		look_on(state, bpf_skc_to_tcp_sock(sk));
		return by_stack(state, STACK_UNKNOWN_USE);
	}
	epoch = current_epoch();
	if (state->epoch != epoch) {
		if (state->flags & SOCKET_SAME_NETNS) {
			if (redirect_mode_of(state->endpoint, state->netns) == REDIRECT_OFF)
				return by_stack(state, STACK_DISABLED);
		} else {
			if (redirect_mode_of(state->endpoint, state->netns) == REDIRECT_OFF ||
			    redirect_mode_of(state->far_endpoint, state->far_netns) == REDIRECT_OFF)
				return by_stack(state, STACK_DISABLED);
			/* A packet will be judged, and what comes after it sees
			 * the outcome.
			 */
			if (!socket_allowed(state, epoch))
				return by_stack(state, STACK_POLICY);
		}
		state->epoch = epoch;
	}
	reason = unfit(state);
	if (reason)
		return by_stack(state, reason);
	size = msg->size;
	unread = SOCK_U32(state->far_socket, SOCK_RMEM_ALLOC);
	if (many_wait(state, unread))
		return by_stack(state, STACK_UNREAD);
	if (unread || size > SHORT_MESSAGE) {
		/* Above its buffer's size the stack, too, could give it nothing. */
		room = SOCK_U32(state->far_socket, SOCK_SK_RCVBUF);
		room -= room / 4;
		if (config->unread_max < room)
			room = config->unread_max;
		if (unread + size > room) {
			if (unread || state->state == REDIRECT_STACK)
				return by_stack(state, STACK_UNREAD);
			/* As much as there is room for; the program is asked
			 * again about the rest.
			 */
			size = room;
		}
	}
	if (state->state == REDIRECT_STACK) {
		tcp = bpf_skc_to_tcp_sock(sk);
		if (!tcp || !drained(tcp, state->far_socket))
			return by_stack(state, STACK_DRAINING);
	}
	key.netns = state->far_netns;
	key.far_netns = state->netns;
	key.client = state->client;
	key.server = state->server;
	key.side = state->side == SIDE_OPENED ? SIDE_ANSWERED : SIDE_OPENED;
	key.pad = 0;
	if (size < msg->size) {
		bpf_msg_apply_bytes(msg, size);
		state->flags |= SOCKET_PARTED;
	}
	if (bpf_msg_redirect_hash(msg, MAP(SOCKETS_FD), &key, BPF_F_INGRESS) != SK_PASS)
		return by_stack(state, STACK_GONE);
	if (state->state != REDIRECT_DIRECT) {
		if (state->state == REDIRECT_WAITING) {
			count_socket(SOCKETS_FIRST_DIRECT);
			tell_redirected(msg, state);
		}
		state->state = REDIRECT_DIRECT;
		state->reason = STACK_NONE;
	}
	state->bytes += size;
	state->messages++;
	keep_alive(state);
	return SK_PASS;
}
