/* SPDX-License-Identifier: MIT */
/* check.c - the end of a process whose invariant is broken. Any thread, any context. */
#include "base/check.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

_Noreturn void gu_broken(const char *what, const char *file, int line)
{
	char text[256];
	int n = snprintf(text, sizeof(text), "gcuffd: broken invariant: %s (%s:%d)\n", what, file, line);
	if (n > 0 && write(STDERR_FILENO, text, gu_min((size_t)n, sizeof(text) - 1)) < 0)
		abort();
	abort();
}
