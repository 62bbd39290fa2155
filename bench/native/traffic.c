/* SPDX-License-Identifier: Apache-2.0 */
/*
 * TCP round trips and streams between two pinned processes.
 *
 *   traffic serve ADDRESS PORT CPU           serves any number of connections
 *   traffic roundtrip ADDRESS PORT CPU SIZE  for each line COUNT: "median p99 mean" in ns
 *   traffic stream ADDRESS PORT CPU CHUNK    for each line MILLISECONDS: "bytes ns", acknowledged
 */
#define _GNU_SOURCE
#include <linux/sockios.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "congestion.h"

#define MAX_COUNT 1000000
#define SINK 0xffffffffu

static char buffer[1 << 20];

static void fail(const char *what)
{
	printf("cannot %s: %m\n", what);
	exit(1);
}

static uint64_t now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000ull + t.tv_nsec;
}

static int open_socket(const char *address, const char *port, int serve)
{
	struct addrinfo hints = { .ai_socktype = SOCK_STREAM,
				  .ai_flags = AI_NUMERICHOST | AI_NUMERICSERV };
	struct addrinfo *found;
	int fd, one = 1;

	if (getaddrinfo(address, port, &hints, &found))
		fail("read the address");
	fd = socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (choose_congestion_control(fd))
		fail("choose the congestion control");
	if (serve) {
		if (bind(fd, found->ai_addr, found->ai_addrlen) || listen(fd, 16))
			fail("listen");
	} else {
		struct timeval patience = { .tv_sec = 2 }, forever = {};

		setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
		if (connect(fd, found->ai_addr, found->ai_addrlen))
			fail("connect");
		setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &forever, sizeof(forever));
		setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	}
	freeaddrinfo(found);
	return fd;
}

static int read_all(int fd, char *to, size_t size)
{
	while (size) {
		ssize_t n = read(fd, to, size);

		if (n <= 0)
			return -1;
		to += n;
		size -= n;
	}
	return 0;
}

static void serve_one(int fd)
{
	uint32_t size;
	int one = 1;

	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	if (read_all(fd, (char *)&size, sizeof(size)))
		return;
	if (size == SINK) {
		while (read(fd, buffer, sizeof(buffer)) > 0)
			;
		return;
	}
	if (size > sizeof(buffer))
		return;
	while (!read_all(fd, buffer, size))
		if (write(fd, buffer, size) != (ssize_t)size)
			return;
}

static int compare(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

	return x < y ? -1 : x > y;
}

static void roundtrip(int fd, uint32_t size, long count)
{
	static uint32_t times[MAX_COUNT];
	uint64_t sum = 0;

	if (count < 1 || count > MAX_COUNT)
		exit(2);
	for (long i = 0; i < count; i++) {
		uint64_t start = now();

		if (write(fd, buffer, size) != (ssize_t)size || read_all(fd, buffer, size))
			fail("exchange");
		times[i] = now() - start;
		sum += times[i];
	}
	qsort(times, count, sizeof(*times), compare);
	printf("%u %u %.1f\n", times[count / 2], times[count - 1 - count / 100],
	       (double)sum / count);
}

static void stream(int fd, size_t chunk, long milliseconds)
{
	uint64_t start = now(), end = start + milliseconds * 1000000ull, bytes = 0, took;
	int queued = 0;

	while (now() < end) {
		ssize_t n = write(fd, buffer, chunk);

		if (n < 0)
			fail("send");
		bytes += n;
	}
	took = now() - start;
	ioctl(fd, SIOCOUTQ, &queued);
	bytes -= queued;
	while (!ioctl(fd, SIOCOUTQ, &queued) && queued)
		usleep(200);
	printf("%llu %llu\n", (unsigned long long)bytes, (unsigned long long)took);
}

int main(int argc, char **argv)
{
	uint32_t size;
	cpu_set_t set;
	char line[64];
	int fd;

	setvbuf(stdout, NULL, _IOLBF, 0);
	signal(SIGPIPE, SIG_IGN);
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (argc < 5)
		return 2;
	CPU_ZERO(&set);
	CPU_SET(atoi(argv[4]), &set);
	if (sched_setaffinity(0, sizeof(set), &set))
		fail("be on that CPU");
	/* Whoever else is on this CPU shall not decide the outcome. */
	if (setpriority(PRIO_PROCESS, 0, -20))
		fail("take precedence");
	fd = open_socket(argv[2], argv[3], !strcmp(argv[1], "serve"));
	if (!strcmp(argv[1], "serve")) {
		signal(SIGCHLD, SIG_IGN);
		puts("ready");
		for (;;) {
			int accepted = accept(fd, NULL, NULL);

			if (accepted >= 0 && !fork()) {
				prctl(PR_SET_PDEATHSIG, SIGKILL);
				serve_one(accepted);
				_exit(0);
			}
			close(accepted);
		}
	}
	if (argc < 6)
		return 2;
	size = strcmp(argv[1], "stream") ? (uint32_t)atoi(argv[5]) : SINK;
	if (write(fd, &size, sizeof(size)) != sizeof(size))
		fail("begin");
	puts("ready");
	while (fgets(line, sizeof(line), stdin)) {
		if (size == SINK)
			stream(fd, atoi(argv[5]), atol(line));
		else
			roundtrip(fd, size, atol(line));
	}
	return 0;
}
