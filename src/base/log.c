/* SPDX-License-Identifier: MIT */
/* log.c - one write(2) a line, so that lines of several threads don't mix. Any thread. */
#include "base/log.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <unistd.h>

#include "base/check.h"

void gu_log(const struct gu_log *log, int level, const char *format, ...)
{
	char line[512];
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
			if (write(STDERR_FILENO, line, len) < 0)
				errno = saved; /* nobody reads stderr: nothing to do about it */
		}
	}
	errno = saved;
}
