/* SPDX-License-Identifier: Apache-2.0 */
/* What both ends of latency.c share: options, the pattern, one connection and its messages. */
#ifndef BRISTLE_BENCH_LATENCY_H
#define BRISTLE_BENCH_LATENCY_H

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "congestion.h"

#define MAX_SIZE (1u << 20)
#define MAX_CONNECTIONS 1024
#define MAX_SAMPLES (1u << 20)
#define SHIFTS 4096 /* power of two: places in the pattern where a message may begin */
#define MAGIC 0x6c61746eu
#define EVENTS 64

struct hello {
	uint32_t magic;
	uint32_t size;
	uint32_t stream;
};

/* One connection, at either end. The first message each way is a hello. */
struct connection {
	int fd;
	int epoll; /* -1: blocking */
	int greeted, streams, sending, asked_out, over;
	uint32_t number;
	size_t length; /* of messages after the greeting */
	size_t size, done; /* of the message on its way */
	const uint8_t *out;
	uint8_t *in;
	uint64_t sequence, bytes;
	_Atomic uint64_t started; /* 0: nothing on its way */
	uint32_t *samples;
	uint32_t taken, wanted;
	uint64_t deadline;
};

static uint8_t pattern[MAX_SIZE + SHIFTS], last_pattern[MAX_SIZE + SHIFTS];
static uint64_t corrupt;
static const char *address, *how, *what = "exchange";
static uint64_t stall_ms = 2000;
static uint32_t size = 64, connections = 1;
static int cpu, stream;

static void __attribute__((format(printf, 1, 2), noreturn)) fail(const char *format, ...)
{
	static pthread_mutex_t once = PTHREAD_MUTEX_INITIALIZER;
	va_list list;

	pthread_mutex_lock(&once); /* of several threads the first one speaks */
	va_start(list, format);
	fputs("error: ", stdout);
	vprintf(format, list);
	putchar('\n');
	fflush(stdout);
	_exit(1);
}

static uint64_t now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000ull + t.tv_nsec;
}

static uint64_t cpu_ns(void)
{
	struct rusage used;

	getrusage(RUSAGE_SELF, &used);
	return (used.ru_utime.tv_sec + used.ru_stime.tv_sec) * 1000000000ull +
	       (used.ru_utime.tv_usec + used.ru_stime.tv_usec) * 1000ull;
}

/* Where a message begins in the pattern: an old, foreign or shifted one is not equal. */
static size_t shift(uint32_t number, uint64_t sequence)
{
	return (number * 1031 + sequence * 2741) % SHIFTS;
}

static void make_pattern(void)
{
	uint64_t x = 0x9e3779b97f4a7c15ull;

	for (size_t i = 0; i < sizeof(pattern); i++) {
		x ^= x << 13;
		x ^= x >> 7;
		x ^= x << 17;
		pattern[i] = x >> 32;
		last_pattern[i] = ~pattern[i];
	}
}

static int is_tcp(void)
{
	return !strncmp(address, "tcp:", 4);
}

static int open_socket(struct sockaddr_storage *to, socklen_t *length)
{
	int flags = SOCK_STREAM | SOCK_CLOEXEC | (!strcmp(how, "epoll") ? SOCK_NONBLOCK : 0);
	struct addrinfo hints = { .ai_socktype = SOCK_STREAM,
				  .ai_flags = AI_NUMERICHOST | AI_NUMERICSERV };
	struct sockaddr_un *local = (void *)to;
	struct addrinfo *found;
	char text[256], *port;
	int fd, one = 1;

	memset(to, 0, sizeof(*to));
	if (!is_tcp()) {
		local->sun_family = AF_UNIX;
		snprintf(local->sun_path, sizeof(local->sun_path), "%s", address + 5);
		*length = sizeof(*local);
	} else {
		snprintf(text, sizeof(text), "%s", address + 4 + (address[4] == '['));
		port = strrchr(text, ':');
		if (!port)
			fail("no port in %s", address);
		*port++ = 0;
		if (address[4] == '[')
			text[strcspn(text, "]")] = 0;
		if (getaddrinfo(text, port, &hints, &found))
			fail("no address: %s", address);
		memcpy(to, found->ai_addr, found->ai_addrlen);
		*length = found->ai_addrlen;
		freeaddrinfo(found);
	}
	fd = socket(to->ss_family, flags, 0);
	if (fd < 0)
		fail("cannot make a socket: %m");
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (is_tcp() && choose_congestion_control(fd))
		fail("cannot choose the congestion control: %m");
	return fd;
}

static void no_delay(int fd)
{
	int one = 1;

	if (is_tcp() && setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one)))
		fail("cannot set TCP_NODELAY: %m");
}

static int wait_for(int fd, int events)
{
	struct pollfd one = { .fd = fd, .events = events };

	return poll(&one, 1, stall_ms) == 1;
}

/* Edge-triggered interest in EPOLLOUT only while a write waits: else a UNIX socket, whose writer is
 * woken by each read of its peer, would do worse than it can. */
static void interest(struct connection *c, int add, int out)
{
	struct epoll_event event = { .events = EPOLLIN | EPOLLET | (out ? EPOLLOUT : 0),
				     .data.ptr = c };

	if (c->epoll < 0 || (!add && c->asked_out == out))
		return;
	c->asked_out = out;
	if (epoll_ctl(c->epoll, add ? EPOLL_CTL_ADD : EPOLL_CTL_MOD, c->fd, &event))
		fail("epoll_ctl: %m");
}

/* Moves the rest of a message. 1: all of it; 0: the socket would block; -1: closed. */
static int push(struct connection *c)
{
	while (c->done < c->size) {
		ssize_t n = send(c->fd, c->out + c->done, c->size - c->done, MSG_NOSIGNAL);

		if (n < 0 && errno == EAGAIN && c->epoll >= 0) {
			interest(c, 0, 1);
			return 0;
		}
		if (n < 0 && errno != EINTR)
			return -1;
		c->done += n > 0 ? n : 0;
	}
	interest(c, 0, 0);
	return 1;
}

static int pull(struct connection *c)
{
	while (c->done < c->size) {
		ssize_t n = recv(c->fd, c->in + c->done, c->size - c->done, 0);

		if (n < 0 && errno == EAGAIN && c->epoll >= 0)
			return 0;
		if (n == 0 || (n < 0 && errno != EINTR)) /* EAGAIN of a blocking socket, too */
			return -1;
		c->done += n > 0 ? n : 0;
	}
	return 1;
}

static void option(char *word)
{
	char *value = strchr(word, '=');

	if (!value)
		fail("not understood: %s", word);
	*value++ = 0;
	if (!strcmp(word, "at"))
		address = value;
	else if (!strcmp(word, "how"))
		how = value;
	else if (!strcmp(word, "what"))
		what = value;
	else if (!strcmp(word, "cpu"))
		cpu = atoi(value);
	else if (!strcmp(word, "size"))
		size = strtoul(value, NULL, 10);
	else if (!strcmp(word, "connections"))
		connections = strtoul(value, NULL, 10);
	else if (!strcmp(word, "stall"))
		stall_ms = strtoul(value, NULL, 10);
	else if (!strcmp(word, "corrupt"))
		corrupt = strtoul(value, NULL, 10);
	else
		fail("unknown option %s", word);
}

#endif
