/* SPDX-License-Identifier: MIT */
/* log.c - one write(2) a line, so that lines of several threads don't mix. Any thread. */
#include "base/log.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/check.h"

static __thread bool detached __attribute__((tls_model("initial-exec")));

void gu_log_detach(void) { detached = true; }

/* /proc/self is the process's first thread, whose table is the program's. A line that nobody reads is lost. */
static void write_line(const char *line, size_t len)
{
	int fd = detached ? open("/proc/self/fd/2", O_WRONLY | O_APPEND | O_CLOEXEC | O_NOCTTY) : STDERR_FILENO;
	if (fd >= 0 && write(fd, line, len) < 0)
		errno = 0;
	if (detached && fd >= 0)
		close(fd);
}

/* A description of its own can be asked not to wait. A socket can't be opened: then it is tried as it is. */
void gu_log_dying(const char *line)
{
	int fd = open("/proc/self/fd/2", O_WRONLY | O_APPEND | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
	struct pollfd ready = {.fd = STDERR_FILENO, .events = POLLOUT};
	if (fd < 0 && !detached && poll(&ready, 1, 0) == 1 && ready.revents & POLLOUT)
		fd = STDERR_FILENO;
	if (fd >= 0 && write(fd, line, strlen(line)) < 0)
		errno = 0;
}

void gu_log(const struct gu_log *log, int level, const char *format, ...)
{
	char line[768];
	va_list args;
	int saved = errno;
	if (level > log->level)
		return;
	size_t at = log->write ? 0 : (size_t)snprintf(line, sizeof(line), "gcuffd: ");
	va_start(args, format);
	int n = vsnprintf(line + at, sizeof(line) - at - 1, format, args);
	va_end(args);
	if (n >= 0) {
		size_t len = gu_min(at + (size_t)n, sizeof(line) - 2);
		if (log->write) {
			log->write(log->data, level, line);
		} else {
			line[len++] = '\n';
			write_line(line, len);
		}
	}
	errno = saved;
}
