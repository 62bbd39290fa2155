/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Hook: iterator over the SK_STORAGE `socket_states`. Who reads it gets each
 * socket's struct socket_state, then how many bytes wait in it (u32), and how
 * many packets of the stack hold some of them (u32).
 */
#include "lib/socket.h"

struct iterator_meta {
	struct seq_file *seq;
};

struct iterator {
	struct iterator_meta *meta;
	void *map;
	void *sock;
	void *value;
};

struct listed_socket {
	struct socket_state state;
	__u32 unread;
	__u32 queued;
};

int list_sockets(struct iterator *ctx)
{
	struct listed_socket one = {};
	struct seq_file *seq = ctx->meta->seq;
	struct socket_state *state = ctx->value;
	void *sock = ctx->sock;

	if (!state || !sock)
		return 0;
	one.state = *state;
	one.unread = KERNEL_U32(sock, SOCK_RMEM_ALLOC);
	one.queued = KERNEL_U32(sock, SOCK_RECEIVE_QUEUE_LENGTH);
	bpf_seq_write(seq, &one, sizeof(one));
	return 0;
}
