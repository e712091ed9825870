/* SPDX-License-Identifier: MIT */
/* log.c - one write(2) a line, so that lines of several threads don't mix. Any thread. */
#define _GNU_SOURCE
#include "base/log.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/check.h"

#define LINE 768
#define PATIENCE_MS 100

static __thread bool detached __attribute__((tls_model("initial-exec")));

void gu_log_detach(void) { detached = true; }

/*
 * The program's own, where another one would not do. A file's place for the next line would be another, too, and both write over each other; a socket
 * can't be opened. Linux 5.6.
 */
static int share(int theirs)
{
	struct stat st;
	int pidfd = (int)syscall(SYS_pidfd_open, getpid(), 0);
	if (pidfd < 0)
		return -1;
	int fd = (int)syscall(SYS_pidfd_getfd, pidfd, theirs, 0);
	close(pidfd);
	if (fd >= 0 && (fstat(fd, &st) || !(S_ISREG(st.st_mode) || S_ISSOCK(st.st_mode)))) {
		close(fd);
		fd = -1;
	}
	return fd;
}

/* Of the process's first thread, whose table is the program's. A pipe or a terminal is opened there: so it can be asked not to wait. */
static int open_theirs(int theirs)
{
	char path[32];
	int fd = share(theirs);
	snprintf(path, sizeof(path), "/proc/self/fd/%d", theirs);
	return fd >= 0 ? fd : open(path, O_WRONLY | O_APPEND | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
}

/* Without waiting, if it is one that open_theirs() gave: a socket is asked each time. */
static ssize_t put(int fd, const char *line, size_t len)
{
	ssize_t n = send(fd, line, len, MSG_DONTWAIT | MSG_NOSIGNAL);
	return n < 0 && errno == ENOTSOCK ? write(fd, line, len) : n;
}

/* Service threads wait for no reader, who may wait for them: a line that nobody reads is lost. */
static void write_detached(int theirs, const char *line, size_t len)
{
	struct pollfd room = {.fd = open_theirs(theirs), .events = POLLOUT};
	if (room.fd < 0)
		return;
	if (put(room.fd, line, len) < 0 && errno == EAGAIN && poll(&room, 1, PATIENCE_MS) == 1 && put(room.fd, line, len) < 0)
		errno = 0;
	close(room.fd);
}

static void write_line(int theirs, const char *line, size_t len)
{
	if (detached)
		write_detached(theirs, line, len);
	else if (write(theirs, line, len) < 0)
		errno = 0;
}

void gu_log_line(const char *line, size_t len) { write_line(STDERR_FILENO, line, len); }

/* What can't be had so, as a socket before Linux 5.6, is tried as it is. */
void gu_log_dying(const char *line)
{
	int fd = open_theirs(STDERR_FILENO);
	struct pollfd ready = {.fd = STDERR_FILENO, .events = POLLOUT};
	if (fd < 0 && !detached && poll(&ready, 1, 0) == 1 && ready.revents & POLLOUT)
		fd = STDERR_FILENO;
	if (fd >= 0 && put(fd, line, strlen(line)) < 0)
		errno = 0;
}

static __thread struct gu_log_held *held __attribute__((tls_model("initial-exec")));

static void say(const struct gu_log *log, int level, const char *text)
{
	char line[LINE];
	if (log->write) {
		log->write(log->data, level, text);
		return;
	}
	int n = snprintf(line, sizeof(line), "gcuffd: %.*s\n", (int)sizeof(line) - 16, text);
	if (n > 0)
		write_line(log->fd ? log->fd : STDERR_FILENO, line, (size_t)n);
}

static void keep(const struct gu_log *log, int level, const char *text)
{
	size_t len = strlen(text) + 2;
	if (held->len + len > sizeof(held->lines)) {
		held->lost++;
		return;
	}
	held->log = log;
	held->lines[held->len] = (char)level;
	memcpy(held->lines + held->len + 1, text, len - 1);
	held->len += len;
}

void gu_log_hold(struct gu_log_held *h)
{
	h->len = h->lost = 0;
	held = h;
}

void gu_log_release(void)
{
	struct gu_log_held *h = held;
	held = NULL;
	for (size_t at = 0; at < h->len; at += strlen(h->lines + at + 1) + 2)
		say(h->log, h->lines[at], h->lines + at + 1);
	if (h->lost)
		gu_log(h->log, GU_LOG_WARN, "%u lines more", h->lost);
}

void gu_log(const struct gu_log *log, int level, const char *format, ...)
{
	char text[LINE];
	va_list args;
	int saved = errno;
	if (level > log->level)
		return;
	va_start(args, format);
	int n = vsnprintf(text, sizeof(text) - 16, format, args);
	va_end(args);
	if (n >= 0 && held)
		keep(log, level, text);
	else if (n >= 0)
		say(log, level, text);
	errno = saved;
}
