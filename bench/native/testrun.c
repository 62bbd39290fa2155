/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Runs loaded tc programs on packets of a file, each packet once per run, and tells what the
 * kernel's own statistics (BPF_ENABLE_STATS) say about the runs.
 *
 *   testrun CPU IFINDEX FILE SIZE FD...     FILE holds packets of SIZE bytes
 *
 * For each line "PROGRAM FIRST COUNT" (index of FD; packets): "median mean runs redirected other":
 * ns in the program per run, as the median over batches of 100 runs (an interrupt or a stolen CPU
 * spoils the batch it falls into, not the figure) and as the mean over all; the number of runs;
 * and how many returned TC_ACT_REDIRECT or something else. Runs have real-time priority, because
 * the statistics count the time for which a program was preempted as its own.
 *
 * For each line "PROGRAM FIRST 1 REPEAT": one test run that repeats itself; the same answer, median
 * and mean both the mean that the kernel tells.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <signal.h>
#include <unistd.h>

static void fail(const char *what)
{
	printf("cannot %s: %m\n", what);
	exit(1);
}

static long bpf(int command, union bpf_attr *attr)
{
	return syscall(__NR_bpf, command, attr, sizeof(*attr));
}

#define BATCH 100
#define MAX_BATCHES 10000

static int compare(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return x < y ? -1 : x > y;
}

static void priority(int policy)
{
	struct sched_param param = { .sched_priority = policy == SCHED_FIFO };

	if (sched_setscheduler(0, policy, &param))
		fail("set the priority");
}

static void statistics(int fd, uint64_t *ns, uint64_t *runs)
{
	struct bpf_prog_info info = {};
	union bpf_attr attr = {};

	attr.info.bpf_fd = fd;
	attr.info.info_len = sizeof(info);
	attr.info.info = (uintptr_t)&info;
	if (bpf(BPF_OBJ_GET_INFO_BY_FD, &attr))
		fail("read statistics");
	*ns = info.run_time_ns;
	*runs = info.run_cnt;
}

static union bpf_attr attr;

static void run(int fd, const char *packet, long size, struct __sk_buff *context, long repeat)
{
	memset(&attr, 0, sizeof(attr));
	attr.test.prog_fd = fd;
	attr.test.data_in = (uintptr_t)packet;
	attr.test.data_size_in = size;
	attr.test.ctx_in = (uintptr_t)context;
	attr.test.ctx_size_in = sizeof(*context);
	attr.test.repeat = repeat;
	if (bpf(BPF_PROG_TEST_RUN, &attr))
		fail("run the program");
}

int main(int argc, char **argv)
{
	struct __sk_buff context = {};
	struct stat file;
	unsigned program;
	char line[128];
	long first, count, size;
	const char *packets;
	cpu_set_t set;
	int fd;

	setvbuf(stdout, NULL, _IOLBF, 0);
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (argc < 6)
		return 2;
	context.ifindex = atoi(argv[2]);
	CPU_ZERO(&set);
	CPU_SET(atoi(argv[1]), &set);
	if (sched_setaffinity(0, sizeof(set), &set))
		fail("be on that CPU");
	attr.enable_stats.type = BPF_STATS_RUN_TIME;
	if (bpf(BPF_ENABLE_STATS, &attr) < 0)
		fail("enable statistics");
	fd = open(argv[3], O_RDONLY);
	if (fd < 0 || fstat(fd, &file))
		fail("open the packets");
	packets = mmap(NULL, file.st_size, PROT_READ, MAP_PRIVATE | MAP_POPULATE, fd, 0);
	if (packets == MAP_FAILED)
		fail("map the packets");
	size = atol(argv[4]);
	puts("ready");
	while (fgets(line, sizeof(line), stdin)) {
		uint64_t ns, runs, ns_first, runs_first, ns_before, runs_before;
		uint64_t redirected = 0, other = 0;
		static double batches[MAX_BATCHES];
		long done = 0, n = 0, repeat = 1;
		int words = sscanf(line, "%u %ld %ld %ld", &program, &first, &count, &repeat);

		if (words < 3 || (count < BATCH && words < 4) || program >= (unsigned)argc - 5 ||
		    (first + count) * size > file.st_size)
			return 2;
		fd = atoi(argv[5 + program]);
		priority(SCHED_FIFO);
		if (words == 4) {
			run(fd, packets + first * size, size, &context, repeat);
			priority(SCHED_OTHER);
			n = attr.test.retval == TC_ACT_REDIRECT;
			printf("%u %u %ld %ld %ld\n", attr.test.duration, attr.test.duration,
			       repeat, n * repeat, (1 - n) * repeat);
			continue;
		}
		statistics(fd, &ns_first, &runs_first);
		ns_before = ns_first;
		runs_before = runs_first;
		while (done < count) {
			run(fd, packets + (first + done) * size, size, &context, 1);
			if (attr.test.retval == TC_ACT_REDIRECT)
				redirected++;
			else
				other++;
			if (++done % BATCH || n == MAX_BATCHES)
				continue;
			statistics(fd, &ns, &runs);
			batches[n++] = (double)(ns - ns_before) / (runs - runs_before);
			ns_before = ns;
			runs_before = runs;
		}
		statistics(fd, &ns, &runs);
		priority(SCHED_OTHER);
		qsort(batches, n, sizeof(*batches), compare);
		printf("%.1f %.1f %llu %llu %llu\n", batches[n / 2],
		       (double)(ns - ns_first) / (runs - runs_first),
		       (unsigned long long)(runs - runs_first), (unsigned long long)redirected,
		       (unsigned long long)other);
	}
	return 0;
}
