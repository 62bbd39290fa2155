/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Hook: tracepoint tcp_rcv_space_adjust (with BTF). The kernel passes it when it
 * has copied from a TCP socket's queue, and also at the end of each splice from
 * one (tcp_read_sock), which alone comes here with the queue empty.
 *
 * splice reads what came by the stack and knows nothing of what was redirected.
 * So a socket that it is used on takes no more of that, and neither do others of
 * its port. Everybody's sockets pass here: what is none of ours leaves at once.
 */
#include "lib/socket.h"

int rcv_space_adjust(__u64 *ctx)
{
	void *sock = (void *)ctx[0];
	struct socket_state *state;

	if (KERNEL_U32(sock, SOCK_RECEIVE_QUEUE_LENGTH))
		return 0;
	state = socket_state_of(sock, NULL);
	if (!state || state->flags & SOCKET_IN_VAIN)
		return 0;
	/* What waits, though nothing is queued, was redirected. */
	if (state->state != REDIRECT_LEARNING && KERNEL_U32(sock, SOCK_RMEM_ALLOC)) {
		state->flags |= SOCKET_IN_VAIN;
		count_socket(SOCKETS_BY_OUTCOME + SOCKET_STUCK);
	}
	if (state->flags & SOCKET_SPLICED)
		return 0;
	state->flags |= SOCKET_SPLICED;
	__sync_fetch_and_add(splice_count(), 1);
	learn_use(state->netns, state->port, state->side, USE_SPLICES);
	return 0;
}
