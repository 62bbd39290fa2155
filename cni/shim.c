/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bristle-cni, the CNI plugin that container runtimes start. It passes CNI_*, stdin and an open
 * descriptor of CNI_NETNS to the agent as one frame (cni/protocol.py), prints the answer and exits
 * with its code. It needs nothing from the host: no libraries, no /proc. VERSION it answers itself.
 * While no agent answers, ADD and CHECK get error 11 (try again later), STATUS gets error 50, and
 * DEL and GC go durably to stateDir/spool: the agent replays them before it gives out an address.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#ifndef TIMEOUT_MS
#define TIMEOUT_MS 60000 /* for the agent's answer: ADD waits until the pod's policy is in force */
#endif
#ifndef STATUS_TIMEOUT_MS
#define STATUS_TIMEOUT_MS 5000 /* runtimes ask often, and "hung" is an answer too */
#endif
#define MAX_CONFIG (1 << 20) /* bytes; the agent checks these three as well */
#define MAX_ENVIRONMENT (256 << 10)
#define MAX_ANSWER (1 << 20)
#define MAX_RUN_DIR 98 /* what a socket address holds, without the name */
#define MAX_STATE_DIR 4000
#define SOCKET_NAME "/cni.sock"
#define VERSIONS "\"0.3.1\",\"0.4.0\",\"1.0.0\",\"1.1.0\""

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "frames are little endian");

static struct {
	char magic[4];
	uint16_t version, flags; /* flag 1: a network namespace descriptor comes along */
	uint32_t environment_len, config_len;
	char body[MAX_ENVIRONMENT + MAX_CONFIG + 1]; /* variables, a NUL after each; configuration */
} frame;
#define HEADER_SIZE offsetof(__typeof__(frame), body)

static struct {
	char magic[4];
	uint32_t exit_code, len;
	char body[MAX_ANSWER];
} answer;
#define ANSWER_HEADER_SIZE offsetof(__typeof__(answer), body)

static struct setting { /* a string of the configuration's outermost object */
	const char *key;
	bool present, is_string;
	size_t len; /* of the whole value; the text holds only what fits, and a NUL */
	char text[MAX_STATE_DIR + 1];
} cni_version = { .key = "cniVersion" }, run_dir = { .key = "runDir" },
  state_dir = { .key = "stateDir" };

static bool write_all(int fd, const char *data, size_t len)
{
	while (len > 0) {
		ssize_t n = write(fd, data, len);

		if (n < 0 && errno != EINTR)
			return false;
		data += n > 0 ? n : 0;
		len -= n > 0 ? (size_t)n : 0;
	}
	return true;
}

/* The configuration's version if it can be printed as it is, else the newest one. */
static const char *printable_version(void)
{
	const struct setting *v = &cni_version;
	size_t plain = strspn(v->text, "0123456789.+-abcdefghijklmnopqrstuvwxyz");

	return v->is_string && plain == v->len && plain > 0 && plain < 32 ? v->text : "1.1.0";
}

/*
 * Prints a CNI error object and returns the exit code. Codes are the specification's: 4 environment,
 * 5 input and output, 6 no JSON, 7 configuration, 11 try again later, 50 STATUS: not available.
 */
__attribute__((format(printf, 2, 3))) static int fail(int code, const char *format, ...)
{
	char message[2 * PATH_MAX];
	va_list arguments;

	va_start(arguments, format);
	vsnprintf(message, sizeof(message), format, arguments);
	va_end(arguments);
	for (char *p = message; *p; p++) /* a path may hold any byte */
		if (*p < ' ' || *p > '~' || *p == '"' || *p == '\\')
			*p = '?';
	dprintf(STDOUT_FILENO, "{\"cniVersion\":\"%s\",\"code\":%d,\"msg\":\"%s\"}\n",
		printable_version(), code, message);
	return 1;
}

/* ---- the configuration: only three settings are looked for, the agent judges the rest -------- */

static const unsigned char *at, *end;

static void put_byte(struct setting *to, uint32_t byte)
{
	if (to->len < MAX_STATE_DIR)
		to->text[to->len] = (char)byte;
	to->len++;
}

/* Half a surrogate pair becomes a NUL, and no folder's name may hold one. */
static void put_utf8(struct setting *to, uint32_t rune)
{
	int more = rune < 0x80 ? 0 : rune < 0x800 ? 1 : 2;

	if (rune >> 11 == 0xd800 >> 11)
		rune = 0, more = 0;
	put_byte(to, more == 0 ? rune : (0xff00u >> (more + 1) & 0xff) | rune >> 6 * more);
	while (more-- > 0)
		put_byte(to, 0x80 | (rune >> 6 * more & 0x3f));
}

static bool read_escape(struct setting *to)
{
	static const char letters[] = "\"\\/bfnrt", meanings[] = "\"\\/\b\f\n\r\t";
	unsigned char c = at < end ? *at++ : 0;
	const char *letter = c ? strchr(letters, c) : NULL;
	char digits[5] = "";

	if (letter) {
		put_byte(to, (unsigned char)meanings[letter - letters]);
		return true;
	}
	if (c != 'u' || end - at < 4)
		return false;
	memcpy(digits, at, 4);
	at += 4;
	put_utf8(to, (uint32_t)strtoul(digits, NULL, 16));
	return strspn(digits, "0123456789abcdefABCDEF") == 4;
}

/* Reads a string, from behind its opening quote to behind the closing one. */
static bool read_string(struct setting *to)
{
	for (to->len = 0; at < end && *at >= 0x20;) {
		unsigned char c = *at++;

		if (c == '"') {
			to->text[to->len < MAX_STATE_DIR ? to->len : MAX_STATE_DIR] = '\0';
			return true;
		}
		if (c != '\\')
			put_byte(to, c);
		else if (!read_escape(to))
			return false;
	}
	return false;
}

/* Fills in the settings; of equal keys the last one counts. False: this is no JSON object. */
static bool scan_config(const char *config, size_t len)
{
	static struct setting unused, *const settings[] = { &cni_version, &run_dir, &state_dir };
	struct setting *into = &unused; /* another one behind its key and colon */
	int depth = 0;
	bool closed = false;

	at = (const unsigned char *)config;
	for (end = at + len; at < end;) {
		unsigned char c = *at++;

		if (c == ' ' || c == '\t' || c == '\n' || c == '\r')
			continue;
		if (closed || (depth == 0 && c != '{'))
			return false;
		if (c == '"' && !read_string(depth == 1 ? into : &unused))
			return false;
		into->is_string |= c == '"' && depth == 1;
		depth += (c == '{' || c == '[') - (c == '}' || c == ']');
		closed = depth == 0;
		if (c == ',' && depth == 1)
			into = &unused;
		for (size_t i = 0; c == ':' && depth == 1 && i < 3; i++)
			if (unused.len == strlen(settings[i]->key) &&
			    memcmp(unused.text, settings[i]->key, unused.len) == 0) {
				into = settings[i];
				into->present = true;
				into->is_string = false;
			}
	}
	return closed;
}

/* The folder that a setting names, or NULL if it names none that can be used. */
static const char *folder_of(const struct setting *s, const char *fallback, size_t max)
{
	bool path = s->is_string && s->text[0] == '/' && s->len <= max && strlen(s->text) == s->len;

	return !s->present ? fallback : path ? s->text : NULL;
}

/* ---- the agent ------------------------------------------------------------------------------- */

static int64_t now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

/* Reads len bytes, fewer only at the end of the stream. -1 with errno; ETIMEDOUT at the deadline. */
static ssize_t read_until(int fd, void *to, size_t len, int64_t deadline)
{
	size_t done = 0;

	while (done < len) {
		struct pollfd ready = { .fd = fd, .events = POLLIN };
		int64_t left = deadline - now_ms();
		ssize_t n = poll(&ready, 1, left > 0 ? (int)left : 0);

		if (n == 0) {
			errno = ETIMEDOUT;
			return -1;
		}
		n = n < 0 ? n : read(fd, (char *)to + done, len - done);
		if (n == 0)
			break;
		if (n < 0 && errno != EINTR && errno != EAGAIN)
			return -1;
		done += n > 0 ? (size_t)n : 0;
	}
	return (ssize_t)done;
}

static bool send_frame(int sock, int netns)
{
	_Alignas(struct cmsghdr) char control[CMSG_SPACE(sizeof(int))] = { 0 };
	struct iovec header = { &frame, HEADER_SIZE };
	struct msghdr message = { .msg_iov = &header, .msg_iovlen = 1 };

	if (netns >= 0) {
		message.msg_control = control;
		message.msg_controllen = sizeof(control);
		*CMSG_FIRSTHDR(&message) =
			(struct cmsghdr){ CMSG_LEN(sizeof(int)), SOL_SOCKET, SCM_RIGHTS };
		memcpy(CMSG_DATA(CMSG_FIRSTHDR(&message)), &netns, sizeof(int));
	}
	return sendmsg(sock, &message, 0) == HEADER_SIZE &&
	       write_all(sock, frame.body, frame.environment_len + frame.config_len);
}

/* Fills in answer. False with errno if no agent is there, or it went away without an answer. */
static bool ask_agent(const char *folder, int netns, int64_t timeout_ms)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	struct timeval limit = { timeout_ms / 1000, timeout_ms % 1000 * 1000 };
	int64_t deadline = now_ms() + timeout_ms;
	int sock = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	ssize_t n;

	snprintf(address.sun_path, sizeof(address.sun_path), "%s" SOCKET_NAME, folder);
	/* SO_SNDTIMEO bounds connect() too, which waits while the agent accepts nothing. */
	if (sock < 0 || setsockopt(sock, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit)) < 0 ||
	    connect(sock, (struct sockaddr *)&address, sizeof(address)) < 0 ||
	    !send_frame(sock, netns))
		return false;
	n = read_until(sock, &answer, ANSWER_HEADER_SIZE, deadline);
	if (n == ANSWER_HEADER_SIZE && memcmp(answer.magic, "BRCA", 4) == 0 &&
	    answer.len <= MAX_ANSWER) {
		n = read_until(sock, answer.body, answer.len, deadline);
		if (n == answer.len)
			return true;
	}
	errno = n < 0 ? errno : ECONNRESET;
	return false;
}

/* ---- the spool ------------------------------------------------------------------------------- */

/* Opens a folder, durably making what is missing of its path. */
static int open_folder(const char *path)
{
	int parent = open("/", O_RDONLY | O_DIRECTORY);

	while (parent >= 0 && *(path += strspn(path, "/"))) {
		char part[NAME_MAX + 2];
		int fd, len = (int)strcspn(path, "/");

		snprintf(part, sizeof(part), "%.*s", len, path); /* cut: then it is too long */
		fd = openat(parent, part, O_RDONLY | O_DIRECTORY);
		if (fd < 0 && errno == ENOENT &&
		    (mkdirat(parent, part, 0700) == 0 || errno == EEXIST) && fsync(parent) == 0)
			fd = openat(parent, part, O_RDONLY | O_DIRECTORY);
		close(parent);
		parent = fd;
		path += len;
	}
	return parent;
}

/* Writes <folder>/<nanoseconds>-<pid>-<command>.frame; until all is on disk, a dot leads its name. */
static bool spool(const char *folder, const char *command)
{
	int dir = open_folder(folder), fd;
	struct timespec t;
	char hidden[80];

	clock_gettime(CLOCK_REALTIME, &t);
	snprintf(hidden, sizeof(hidden), ".%020lld-%d-%s.frame",
		 (long long)t.tv_sec * 1000000000 + t.tv_nsec, (int)getpid(), command);
	fd = dir < 0 ? -1 : openat(dir, hidden, O_CREAT | O_EXCL | O_WRONLY, 0600);
	if (fd < 0)
		return false;
	if (write_all(fd, (char *)&frame, HEADER_SIZE + frame.environment_len + frame.config_len) &&
	    fsync(fd) == 0 && renameat(dir, hidden, dir, hidden + 1) == 0)
		return fsync(dir) == 0;
	unlinkat(dir, hidden, 0);
	return false;
}

/* The command's first letter tells it from the others. */
static int relay(char command, int netns)
{
	const char *run = folder_of(&run_dir, "/var/run/bristle", MAX_RUN_DIR);
	const char *state = folder_of(&state_dir, "/var/lib/bristle", MAX_STATE_DIR);
	char folder[PATH_MAX];

	if (!run || !state)
		return fail(7, "%s must be an absolute path of at most %d bytes",
			    run ? "stateDir" : "runDir", run ? MAX_STATE_DIR : MAX_RUN_DIR);
	memcpy(frame.magic, "BRCQ", sizeof(frame.magic));
	frame.version = 1;
	frame.flags = netns >= 0;
	if (ask_agent(run, netns, command == 'S' ? STATUS_TIMEOUT_MS : TIMEOUT_MS))
		return write_all(STDOUT_FILENO, answer.body, answer.len) ? (int)answer.exit_code :
									   1;
	if (command != 'D' && command != 'G')
		return fail(command == 'S' ? 50 : 11,
			    "no answer from the bristle agent on %s%s: %s", run, SOCKET_NAME,
			    strerror(errno));
	frame.flags = 0;
	snprintf(folder, sizeof(folder), "%s/spool", state);
	if (spool(folder, command == 'D' ? "DEL" : "GC"))
		return 0;
	return fail(5, "cannot keep the request in %s: %s", folder, strerror(errno));
}

int main(void)
{
	static const char *const commands[] = { "ADD", "CHECK", "DEL", "GC", "STATUS", "VERSION" };
	const char *name = getenv("CNI_COMMAND"), *path = getenv("CNI_NETNS");
	char command = '\0', *config = frame.body;
	int netns = -1;
	ssize_t len;

	signal(SIGPIPE, SIG_IGN);
	for (size_t i = 0; name && i < sizeof(commands) / sizeof(*commands); i++)
		command = strcmp(name, commands[i]) == 0 ? *name : command;
	if (!command)
		return fail(4, "CNI_COMMAND is missing or unknown: %s", name ? name : "");
	for (char **variable = environ; *variable; variable++) {
		size_t size = strncmp(*variable, "CNI_", 4) == 0 ? strlen(*variable) + 1 : 0;

		if (size > (size_t)(frame.body + MAX_ENVIRONMENT - config))
			return fail(4, "CNI_* hold more than %d bytes", MAX_ENVIRONMENT);
		memcpy(config, *variable, size);
		config += size;
	}
	len = read_until(STDIN_FILENO, config, MAX_CONFIG + 1, now_ms() + TIMEOUT_MS);
	if (len < 0)
		return fail(5, "cannot read the configuration on stdin: %s", strerror(errno));
	if (len > MAX_CONFIG)
		return fail(7, "the configuration on stdin is larger than %d bytes", MAX_CONFIG);
	frame.environment_len = (uint32_t)(config - frame.body);
	frame.config_len = (uint32_t)len;
	if (!scan_config(config, (size_t)len) && command != 'V')
		return fail(6, "the configuration on stdin is no JSON object");
	if (command == 'V')
		return dprintf(STDOUT_FILENO,
			       "{\"cniVersion\":\"%s\",\"supportedVersions\":[%s]}\n",
			       printable_version(), VERSIONS) < 0;
	if (path && *path)
		netns = open(path, O_RDONLY | O_NONBLOCK | O_NOCTTY);
	if (netns < 0 && (command == 'A' || command == 'C'))
		return path && *path ? fail(4, "CNI_NETNS %s: %s", path, strerror(errno)) :
				       fail(4, "CNI_NETNS is missing");
	return relay(command, netns);
}
