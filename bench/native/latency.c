/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Round trips and streams between two pinned processes; every byte is compared.
 *
 *   latency serve at=ADDRESS cpu=N how=HOW [corrupt=N]
 *   latency drive at=ADDRESS cpu=N how=HOW what=WHAT size=N connections=N [stall=MS] [corrupt=N]
 *
 * ADDRESS is unix:PATH, tcp:1.2.3.4:PORT or tcp:[fd00::1]:PORT. HOW is `blocking` (a thread for
 * each connection) or `epoll` (one thread, O_NONBLOCK from the start, edge-triggered). WHAT is
 * `exchange` (SIZE bytes there and the same back) or `stream` (chunks of SIZE bytes one way, and
 * one answer at the end). corrupt: a wrong byte in the N-th answer, or chunk of a stream, for tests.
 *
 * Each prints `ready` when it is; drive, once all its connections reach the server, through
 * whatever is in between. Then, for each line on stdin:
 *
 *   serve: usage              "CPU_NS"
 *   drive: run COUNT MS       "SAMPLES BYTES WALL_NS CPU_NS", then SAMPLES times u32 in ns: at most
 *                             COUNT exchanges and MS milliseconds; a stream takes MS, one sample
 *
 * A wrong or missing byte, or more than `stall` ms for an exchange, ends it: "error: ...", status 1.
 */
#include "latency.h"

static uint64_t answers;

/* For tests: a copy with one wrong byte. */
static const uint8_t *corrupted(const void *bytes, size_t length)
{
	uint8_t *copy = malloc(length);

	memcpy(copy, bytes, length);
	copy[length / 2] ^= 0x10;
	return copy;
}

/* ---- server ------------------------------------------------------------------------------ */

static void answer(struct connection *c, const void *bytes, size_t length)
{
	c->out = bytes;
	c->size = length;
	c->done = 0;
	c->sending = 1;
	if (corrupt && c->greeted && ++answers == corrupt)
		c->out = corrupted(bytes, length);
}

/* A whole message is in. */
static void serve_message(struct connection *c)
{
	struct hello *first = (void *)c->in;
	const uint8_t *at;

	if (!c->greeted) {
		if (first->magic != MAGIC || !first->size || first->size > MAX_SIZE)
			fail("not greeted as expected");
		c->length = first->size;
		c->streams = first->stream;
		answer(c, c->in, sizeof(*first));
	} else if (!c->streams) {
		answer(c, c->in, c->size);
	} else {
		at = pattern + shift(0, c->sequence);
		c->bytes += c->size;
		c->over = !memcmp(c->in, last_pattern + (at - pattern), c->size);
		if (!c->over && memcmp(c->in, at, c->size))
			fail("wrong byte in chunk %llu", (unsigned long long)c->sequence);
		c->sequence++;
		c->done = 0;
		if (c->over)
			answer(c, &c->bytes, sizeof(c->bytes));
	}
}

/* Goes on until it would block; -1 when the connection has ended. */
static int serve(struct connection *c)
{
	for (;;) {
		int moved = c->sending ? push(c) : pull(c);

		if (moved <= 0)
			return moved;
		if (!c->sending) {
			serve_message(c);
			continue;
		}
		c->sending = 0;
		c->done = 0;
		c->greeted = 1;
		c->size = c->length;
		/* The client waits for this answer: there is nothing more to read for now. */
		if (c->epoll >= 0)
			return 0;
	}
}

static struct connection *accepted(int fd, int epoll)
{
	struct connection *c = calloc(1, sizeof(*c));

	c->in = malloc(MAX_SIZE);
	c->fd = fd;
	c->epoll = epoll;
	c->size = sizeof(struct hello);
	no_delay(fd);
	interest(c, 1, 0);
	return c;
}

static void dismiss(struct connection *c)
{
	close(c->fd);
	free(c->in);
	free(c);
}

static void *serve_thread(void *argument)
{
	struct connection *c = argument;

	serve(c);
	dismiss(c);
	return NULL;
}

static void report_usage(void)
{
	char line[64];

	if (!fgets(line, sizeof(line), stdin))
		exit(0);
	printf("%llu\n", (unsigned long long)cpu_ns());
}

static void server(void)
{
	int epoll = epoll_create1(EPOLL_CLOEXEC), blocking = !strcmp(how, "blocking"), listener,
	    ask;
	struct epoll_event events[EVENTS];
	struct sockaddr_storage to;
	socklen_t length;
	pthread_t thread;

	listener = open_socket(&to, &length);
	if (bind(listener, (void *)&to, length) || listen(listener, MAX_CONNECTIONS))
		fail("cannot listen at %s: %m", address);
	events[0] = (struct epoll_event){ .events = EPOLLIN, .data.ptr = &listener };
	epoll_ctl(epoll, EPOLL_CTL_ADD, listener, events);
	events[0].data.ptr = &ask;
	epoll_ctl(epoll, EPOLL_CTL_ADD, 0, events);
	puts("ready");
	for (;;) {
		int count = epoll_wait(epoll, events, EVENTS, -1);

		for (int i = 0; i < count; i++) {
			struct connection *c = events[i].data.ptr;
			int fd;

			if (events[i].data.ptr == &ask) {
				report_usage();
			} else if (events[i].data.ptr == &listener) {
				fd = accept4(listener, NULL, NULL,
					     SOCK_CLOEXEC | (blocking ? 0 : SOCK_NONBLOCK));
				if (fd < 0)
					continue;
				c = accepted(fd, blocking ? -1 : epoll);
				if (blocking && (pthread_create(&thread, NULL, serve_thread, c) ||
						 pthread_detach(thread)))
					fail("cannot start a thread");
			} else if (serve(c) < 0) {
				dismiss(c);
			}
		}
	}
}

/* ---- client ------------------------------------------------------------------------------ */

static void connect_one(struct connection *c, uint32_t number)
{
	struct hello first = { MAGIC, size, stream }, back;
	struct sockaddr_storage to;
	socklen_t length;
	int code = 0;

	c->fd = open_socket(&to, &length);
	c->number = number;
	c->in = malloc(MAX_SIZE);
	no_delay(c->fd);
	if (connect(c->fd, (void *)&to, length)) {
		if (errno != EINPROGRESS || !wait_for(c->fd, POLLOUT))
			fail("cannot connect to %s: %m", address);
		length = sizeof(code);
		getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &code, &length);
		if (code)
			fail("cannot connect to %s: %s", address, strerror(code));
	}
	if (send(c->fd, &first, sizeof(first), MSG_NOSIGNAL) != sizeof(first))
		fail("cannot greet the server: %m");
	for (size_t got = 0; got < sizeof(back);) {
		ssize_t n = -1;

		if (wait_for(c->fd, POLLIN))
			n = recv(c->fd, (char *)&back + got, sizeof(back) - got, 0);
		if (n <= 0)
			fail("no greeting from the server");
		got += n;
	}
	if (memcmp(&first, &back, sizeof(first)))
		fail("the server's greeting is not ours");
	interest(c, 1, 0);
}

static void begin(struct connection *c, uint64_t time)
{
	size_t at = shift(stream ? 0 : c->number, c->sequence);
	int last = stream && time >= c->deadline;

	c->out = (last ? last_pattern : pattern) + at;
	if (corrupt && stream && c->sequence + 1 == corrupt)
		c->out = corrupted(c->out, size);
	c->over = last;
	c->size = size;
	c->done = 0;
	c->sending = 1;
	atomic_store_explicit(&c->started, time, memory_order_relaxed);
}

static void expect(struct connection *c)
{
	c->sending = 0;
	c->done = 0;
	c->size = stream ? sizeof(c->bytes) : size;
}

/* The answer is in: the sample, and whether the bytes are right. Returns the time. */
static uint64_t finish(struct connection *c, uint64_t began)
{
	uint64_t time = now(), told;

	if (stream) {
		memcpy(&told, c->in, sizeof(told));
		if (told != c->bytes)
			fail("%llu bytes arrived, %llu were sent", (unsigned long long)told,
			     (unsigned long long)c->bytes);
	} else if (memcmp(c->in, pattern + shift(c->number, c->sequence), size)) {
		fail("wrong byte in answer %llu", (unsigned long long)c->sequence);
	} else {
		c->sequence++;
		c->bytes += 2 * size;
	}
	c->samples[c->taken++] = time - began < UINT32_MAX ? time - began : UINT32_MAX;
	return time;
}

/* Goes on until the run is over (1) or it would block (0). */
static int drive(struct connection *c)
{
	while (atomic_load_explicit(&c->started, memory_order_relaxed)) {
		uint64_t began = atomic_load_explicit(&c->started, memory_order_relaxed), time;
		int moved = c->sending ? push(c) : pull(c);

		if (moved < 0)
			fail("the connection has ended: %s", errno ? strerror(errno) : "closed");
		if (!moved)
			return 0;
		if (c->sending) {
			if (stream) {
				c->sequence++;
				c->bytes += size;
				if (!c->over) {
					begin(c, now());
					continue;
				}
			}
			expect(c);
			/* The edge is armed: an answer that is there already shows, too. */
			if (c->epoll >= 0)
				return 0;
			continue;
		}
		time = finish(c, began);
		if (stream || c->taken == c->wanted || time >= c->deadline)
			atomic_store(&c->started, 0);
		else
			begin(c, time);
	}
	return 1;
}

static void *drive_blocking(void *argument)
{
	struct connection *c = argument;

	begin(c, now());
	drive(c);
	return NULL;
}

static void *drive_epoll(void *argument)
{
	struct connection *all = argument;
	struct epoll_event events[EVENTS];
	uint32_t busy = connections;

	for (uint32_t i = 0; i < connections; i++) {
		begin(all + i, now());
		busy -= drive(all + i);
	}
	while (busy) {
		int count = epoll_wait(all->epoll, events, EVENTS, -1);

		for (int i = 0; i < count; i++) {
			struct connection *c = events[i].data.ptr;

			if (atomic_load_explicit(&c->started, memory_order_relaxed))
				busy -= drive(c);
			else if (events[i].events & (EPOLLHUP | EPOLLERR))
				fail("a connection has ended while nothing was on its way");
		}
	}
	return NULL;
}

/* Runs it on threads of its own and watches over each exchange meanwhile. */
static void attend(struct connection *all, void *(*work)(void *), uint32_t threads)
{
	static pthread_t started[MAX_CONNECTIONS];
	struct timespec until;

	for (uint32_t i = 0; i < threads; i++)
		if (pthread_create(started + i, NULL, work, all + i))
			fail("cannot start a thread");
	for (uint32_t i = 0; i < threads;) {
		clock_gettime(CLOCK_REALTIME, &until);
		until.tv_nsec += 250 * 1000000;
		until.tv_sec += until.tv_nsec / 1000000000;
		until.tv_nsec %= 1000000000;
		if (!pthread_timedjoin_np(started[i], NULL, &until)) {
			i++;
			continue;
		}
		for (uint32_t n = 0; n < connections; n++) {
			uint64_t began = atomic_load(&all[n].started);

			if (began && now() > began + stall_ms * 1000000)
				fail("stalled: more than %llu ms for an exchange",
				     (unsigned long long)stall_ms);
		}
	}
}

static void run(struct connection *all, uint32_t *samples, uint64_t count, uint64_t ms)
{
	uint64_t began = now(), used = cpu_ns(), bytes = 0, taken = 0, each;

	each = (count + connections - 1) / connections;
	if (!each || each * connections > MAX_SAMPLES)
		fail("bad count %llu", (unsigned long long)count);
	for (uint32_t i = 0; i < connections; i++) {
		all[i].samples = samples + i * each;
		all[i].taken = 0;
		all[i].bytes = stream ? all[i].bytes : 0;
		all[i].wanted = each;
		all[i].deadline = began + ms * 1000000;
		bytes -= all[i].bytes;
	}
	if (all->epoll >= 0)
		attend(all, drive_epoll, 1);
	else
		attend(all, drive_blocking, connections);
	began = now() - began;
	used = cpu_ns() - used;
	for (uint32_t i = 0; i < connections; i++) {
		taken += all[i].taken;
		bytes += all[i].bytes;
		for (uint32_t n = 0; n < all[i].taken && !stream; n++)
			if (all[i].samples[n] / 1000000 > stall_ms)
				fail("stalled: %u ms for an exchange", all[i].samples[n] / 1000000);
	}
	printf("%llu %llu %llu %llu\n", (unsigned long long)taken, (unsigned long long)bytes,
	       (unsigned long long)began, (unsigned long long)used);
	for (uint32_t i = 0; i < connections; i++)
		fwrite(all[i].samples, sizeof(*samples), all[i].taken, stdout);
	fflush(stdout);
}

static void client(void)
{
	struct connection *all = calloc(connections, sizeof(*all));
	uint32_t *samples = calloc(MAX_SAMPLES, sizeof(*samples));
	int epoll = !strcmp(how, "epoll") ? epoll_create1(EPOLL_CLOEXEC) : -1;
	unsigned long long count, ms;
	char line[64];

	for (uint32_t i = 0; i < connections; i++) {
		all[i].epoll = epoll;
		connect_one(all + i, i);
	}
	puts("ready");
	while (fgets(line, sizeof(line), stdin)) {
		if (sscanf(line, "run %llu %llu", &count, &ms) != 2)
			fail("not understood: %s", line);
		run(all, samples, count, ms);
	}
}

int main(int argc, char **argv)
{
	cpu_set_t set;

	setvbuf(stdout, NULL, _IOLBF, 0);
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	for (int i = 2; i < argc; i++)
		option(argv[i]);
	if (argc < 4 || !address || !how || !size || size > MAX_SIZE || !connections ||
	    connections > MAX_CONNECTIONS)
		fail("use: latency serve|drive at=... cpu=... how=... what=... size=...");
	stream = !strcmp(what, "stream");
	make_pattern();
	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	if (sched_setaffinity(0, sizeof(set), &set))
		fail("cannot run on CPU %d: %m", cpu);
	/* Whoever else is on this CPU shall not decide the outcome. */
	if (setpriority(PRIO_PROCESS, 0, -20))
		fail("cannot take precedence: %m");
	if (!strcmp(argv[1], "serve"))
		server();
	else
		client();
	return 0;
}
