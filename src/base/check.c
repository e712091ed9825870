/* SPDX-License-Identifier: MIT */
/* check.c - the end of a process whose invariant is broken. Any thread, any context. */
#include "base/check.h"

#include <stdio.h>
#include <stdlib.h>

#include "base/log.h"

_Noreturn void gu_broken(const char *what, const char *file, int line)
{
	char text[256];
	int n = snprintf(text, sizeof(text), "gcuffd: broken invariant: %s (%s:%d)\n", what, file, line);
	if (n > 0)
		gu_log_line(text, gu_min((size_t)n, sizeof(text) - 1));
	abort();
}
