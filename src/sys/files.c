/* SPDX-License-Identifier: MIT */
/* files.c - see files.h. */
#define _GNU_SOURCE
#include "sys/files.h"

#include <limits.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "sys/os.h"

static void close_between(int from, int to)
{
	if (from < to && syscall(SYS_close_range, (unsigned)from, (unsigned)to - 1, 0)) /* before 5.9 */
		for (int fd = from; fd < to && fd < 65536; fd++)
			gu_os->close(fd);
}

/* The smallest that is not below from; INT_MAX if there is none. */
static int next_kept(const int *keep, size_t n, int from)
{
	int next = INT_MAX;
	for (size_t i = 0; i < n; i++)
		if (keep[i] >= from && keep[i] < next)
			next = keep[i];
	return next;
}

int gu_files_own(const int *keep, size_t n)
{
	int err = gu_os->unshare(CLONE_FILES);
	if (err)
		return err;
	for (int from = 0, kept; from < INT_MAX; from = kept == INT_MAX ? INT_MAX : kept + 1) {
		kept = next_kept(keep, n, from);
		close_between(from, kept);
	}
	return 0;
}
