/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Traffic whose every loss is noticed. Each runs until a line comes on stdin, then prints numbers.
 *
 *   flow sink ADDRESS PORT                  takes UDP and echoes TCP; for each line prints
 *                                           "distinct datagrams of sender 0, 1, 2, 3, connections"
 *   flow udp ADDRESS PORT SENDER RATE       "sent refused": numbered datagrams, RATE in a second
 *   flow tcp ADDRESS PORT                   "exchanges retransmits longest": one connection, 500
 *                                           exchanges in a second; longest in ms
 *   flow connect ADDRESS PORT TIMEOUT       "attempts connected late": connections one after the
 *                                           other; late: took 900 ms, so a packet was lost
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define SENDERS 4
#define MAX_NUMBER (1u << 26)
#define MAX_CONNECTIONS 64
#define LATE_MS 900

struct datagram {
	uint32_t sender;
	uint32_t number;
};

static struct sockaddr_in there = { .sin_family = AF_INET };

static void fail(const char *what)
{
	printf("cannot %s: %m\n", what);
	exit(1);
}

static double now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1e3 + t.tv_nsec / 1e6;
}

/* Whether a line has come within this time. */
static int asked(int ms)
{
	struct pollfd in = { .fd = 0, .events = POLLIN };
	char line[64];

	if (poll(&in, 1, ms) <= 0)
		return 0;
	if (read(0, line, sizeof(line)) <= 0)
		exit(0);
	return 1;
}

static int make(int type)
{
	int fd = socket(AF_INET, type | SOCK_CLOEXEC, 0), one = 1, large = 32 << 20;

	if (fd < 0)
		fail("make a socket");
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &large, sizeof(large));
	if (type == SOCK_STREAM)
		setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	return fd;
}

static void sink(void)
{
	static uint8_t *seen[SENDERS];
	static struct pollfd fds[3 + MAX_CONNECTIONS];
	uint64_t distinct[SENDERS] = {}, connections = 0;
	int udp = make(SOCK_DGRAM), tcp = make(SOCK_STREAM), used = 3;

	for (int i = 0; i < SENDERS; i++)
		seen[i] = calloc(1, MAX_NUMBER / 8);
	if (bind(udp, (void *)&there, sizeof(there)) || bind(tcp, (void *)&there, sizeof(there)) ||
	    listen(tcp, 64))
		fail("listen");
	fds[0] = (struct pollfd){ .fd = 0, .events = POLLIN };
	fds[1] = (struct pollfd){ .fd = udp, .events = POLLIN };
	fds[2] = (struct pollfd){ .fd = tcp, .events = POLLIN };
	puts("ready");
	while (poll(fds, used, -1) > 0) {
		struct datagram d;
		char bytes[4096];

		while (recv(udp, &d, sizeof(d), MSG_DONTWAIT) == sizeof(d)) {
			if (d.sender >= SENDERS || d.number >= MAX_NUMBER)
				continue;
			if (!(seen[d.sender][d.number / 8] >> d.number % 8 & 1))
				distinct[d.sender]++;
			seen[d.sender][d.number / 8] |= 1 << d.number % 8;
		}
		for (int i = 3; i < used; i++) {
			ssize_t n = recv(fds[i].fd, bytes, sizeof(bytes), MSG_DONTWAIT);

			if (n > 0) {
				if (write(fds[i].fd, bytes, n) != n)
					fail("echo");
			} else if (n == 0 || errno != EAGAIN) {
				close(fds[i].fd);
				fds[i--] = fds[--used];
			}
		}
		if (fds[2].revents && used < 3 + MAX_CONNECTIONS) {
			fds[used] =
				(struct pollfd){ .fd = accept(tcp, NULL, NULL), .events = POLLIN };
			used += fds[used].fd >= 0;
			connections++;
		}
		if (fds[0].revents && asked(0)) {
			for (int i = 0; i < SENDERS; i++)
				printf("%llu ", (unsigned long long)distinct[i]);
			printf("%llu\n", (unsigned long long)connections);
		}
	}
}

static void udp(uint32_t sender, double rate)
{
	struct datagram d = { .sender = sender };
	uint64_t refused = 0;
	double began = now_ms();
	int fd = make(SOCK_DGRAM);

	if (connect(fd, (void *)&there, sizeof(there)))
		fail("connect");
	puts("ready");
	while (!asked(1)) {
		uint32_t due = (now_ms() - began) * rate / 1e3;

		for (; d.number < due && d.number < MAX_NUMBER; d.number++)
			while (send(fd, &d, sizeof(d), 0) < 0)
				if (++refused > 1000000)
					fail("send");
	}
	printf("%u %llu\n", d.number, (unsigned long long)refused);
}

static void tcp(void)
{
	struct tcp_info info = {};
	socklen_t size = sizeof(info);
	uint64_t exchanges = 0;
	double longest = 0;
	char bytes[64] = {};
	int fd = make(SOCK_STREAM);

	if (connect(fd, (void *)&there, sizeof(there)))
		fail("connect");
	puts("ready");
	while (!asked(2)) {
		double began = now_ms();

		if (write(fd, bytes, sizeof(bytes)) != sizeof(bytes) ||
		    recv(fd, bytes, sizeof(bytes), MSG_WAITALL) != sizeof(bytes))
			fail("exchange");
		exchanges++;
		if (now_ms() - began > longest)
			longest = now_ms() - began;
	}
	getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &size);
	printf("%llu %u %.1f\n", (unsigned long long)exchanges, info.tcpi_total_retrans, longest);
}

static void connections(int timeout)
{
	struct linger reset = { .l_onoff = 1 };
	uint64_t attempts = 0, connected = 0, late = 0;

	puts("ready");
	while (!asked(5)) {
		int fd = make(SOCK_STREAM | SOCK_NONBLOCK), code = 0;
		struct pollfd out = { .fd = fd, .events = POLLOUT };
		socklen_t size = sizeof(code);
		double began = now_ms();

		attempts++;
		setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
		if (connect(fd, (void *)&there, sizeof(there)) && errno != EINPROGRESS)
			fail("connect");
		if (poll(&out, 1, timeout) == 1 &&
		    !getsockopt(fd, SOL_SOCKET, SO_ERROR, &code, &size) && !code)
			connected++;
		late += now_ms() - began >= LATE_MS;
		close(fd);
	}
	printf("%llu %llu %llu\n", (unsigned long long)attempts, (unsigned long long)connected,
	       (unsigned long long)late);
}

int main(int argc, char **argv)
{
	setvbuf(stdout, NULL, _IOLBF, 0);
	signal(SIGPIPE, SIG_IGN);
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (argc < 4 || inet_pton(AF_INET, argv[2], &there.sin_addr) != 1)
		return 2;
	there.sin_port = htons(atoi(argv[3]));
	if (!strcmp(argv[1], "sink"))
		sink();
	else if (!strcmp(argv[1], "udp") && argc == 6)
		udp(atoi(argv[4]), atof(argv[5]));
	else if (!strcmp(argv[1], "tcp"))
		tcp();
	else if (!strcmp(argv[1], "connect") && argc == 5)
		connections(atoi(argv[4]));
	else
		return 2;
	return 0;
}
