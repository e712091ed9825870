/* SPDX-License-Identifier: MIT */
/* smaps.c - see smaps.h. A mapping is a line as in maps, and lines of names and values: of each line the beginning is looked at. */
#include "sys/smaps.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stddef.h>
#include <string.h>

#include "sys/os.h"

#define LINE 192 /* two letters for each flag that there is, and more */

struct parser {
	char line[LINE];
	size_t len;
	uintptr_t start, end;
	void (*visit)(void *data, uintptr_t start, uintptr_t end);
	void *data;
};

/* Hexadecimal digits: where they end. */
static const char *read_number(const char *at, uintptr_t *number)
{
	*number = 0;
	for (; (*at >= '0' && *at <= '9') || (*at >= 'a' && *at <= 'f'); at++)
		*number = *number << 4 | (uintptr_t)(*at <= '9' ? *at - '0' : *at - 'a' + 10);
	return at;
}

static bool read_range(struct parser *p)
{
	uintptr_t start, end;
	const char *at = read_number(p->line, &start);
	if (at == p->line || *at != '-')
		return false;
	if (*read_number(at + 1, &end) != ' ')
		return false;
	p->start = start;
	p->end = end;
	return true;
}

/* Each has a space before it. */
static bool has_flag(const char *flags, const char *flag)
{
	for (const char *at = flags; (at = strchr(at, ' ')); at++)
		if (at[1] == flag[0] && at[2] == flag[1])
			return true;
	return false;
}

static void end_line(struct parser *p)
{
	static const char name[] = "VmFlags:";
	p->line[p->len] = 0;
	if (!read_range(p) && !strncmp(p->line, name, sizeof(name) - 1) &&
	    (has_flag(p->line + sizeof(name) - 1, "dd") || has_flag(p->line + sizeof(name) - 1, "wf")))
		p->visit(p->data, p->start, p->end);
	p->len = 0;
}

static void parse(struct parser *p, const char *text, size_t len)
{
	for (size_t i = 0; i < len; i++)
		if (text[i] == '\n')
			end_line(p);
		else if (p->len < LINE - 1)
			p->line[p->len++] = text[i];
}

int gu_smaps_private(void (*visit)(void *data, uintptr_t start, uintptr_t end), void *data)
{
	struct parser p = {.visit = visit, .data = data};
	char text[4096];
	int fd = gu_os->open("/proc/thread-self/smaps", O_RDONLY);
	if (fd < 0)
		return fd;
	long n;
	while ((n = gu_os->read(fd, text, sizeof(text))) > 0 || n == -EINTR)
		parse(&p, text, n > 0 ? (size_t)n : 0);
	gu_os->close(fd);
	return n < 0 ? (int)n : 0;
}
