/* SPDX-License-Identifier: MIT */
/* statm.c - the second number of /proc/thread-self/statm. /proc/self is the first thread, which may have ended: it has no memory then. */
#include "sys/statm.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include "sys/os.h"

static long read_statm(char *text, size_t size)
{
	int fd = gu_os->open("/proc/thread-self/statm", O_RDONLY);
	long n;
	if (fd < 0)
		return fd;
	do
		n = gu_os->read(fd, text, size);
	while (n == -EINTR);
	gu_os->close(fd);
	return n;
}

size_t gu_statm_resident(void)
{
	char text[128];
	size_t pages = 0;
	long n = read_statm(text, sizeof(text)), at = 0;
	while (at < n && text[at] != ' ')
		at++;
	for (at++; at < n && text[at] >= '0' && text[at] <= '9'; at++)
		pages = pages * 10 + (size_t)(text[at] - '0');
	return pages * (size_t)sysconf(_SC_PAGESIZE);
}
