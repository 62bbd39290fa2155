/* SPDX-License-Identifier: Apache-2.0 */
/* What congestion control the sockets of benchmarks have, whatever the host's is. */
#ifndef BRISTLE_BENCH_CONGESTION_H
#define BRISTLE_BENCH_CONGESTION_H

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

/* The kernel's own default, or what every kernel has. One that paces by an estimate (BBR) sends at
 * the estimate's rate and pays timers for it, and what a path costs by itself is not to be seen.
 * Returns 0, or -1 and errno.
 */
static inline int choose_congestion_control(int fd)
{
	if (!setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, "cubic", 5))
		return 0;
	return setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, "reno", 4);
}

#endif
