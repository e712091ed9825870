/* SPDX-License-Identifier: MIT */
/*
 * maps.c - /proc/thread-self/maps, parsed byte by byte, so that reads may end anywhere and lines may be as long as
 * they like. Stateless; any thread, signal handlers too.
 *
 * .assume.maps.order: the kernel walks by rising address and remembers the last end. A mapping that
 * merged with one already shown can start below that: it is cut there.
 */
#include "sys/maps.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>

#include "base/check.h"
#include "sys/os.h"

/* start-end perms offset major:minor inode name */
enum field { F_START, F_END, F_PERMS, F_OFFSET, F_MAJOR, F_MINOR, F_INODE, F_PAD, F_NAME };

struct parser {
	enum field field;
	uint64_t number;
	size_t name_len;
	uintptr_t seen; /* end of the last mapping reported */
	struct gu_map map;
};

static const char separators[] = {
	[F_START] = '-', [F_END] = ' ', [F_PERMS] = ' ', [F_OFFSET] = ' ',
	[F_MAJOR] = ':', [F_MINOR] = ' ', [F_INODE] = ' ',
};

static void end_field(struct parser *p)
{
	switch (p->field) {
	case F_START: p->map.start = p->number; break;
	case F_END: p->map.end = p->number; break;
	case F_OFFSET: p->map.offset = p->number; break;
	case F_MAJOR: p->map.dev = p->number << 32; break;
	case F_MINOR: p->map.dev |= p->number; break;
	case F_INODE: p->map.inode = p->number; break;
	default: break;
	}
	p->number = 0;
	p->field++;
}

static void take_digit(struct parser *p, char c)
{
	unsigned base = p->field == F_INODE ? 10 : 16;
	unsigned digit = (unsigned)(c <= '9' ? c - '0' : c - 'a' + 10);
	p->number = p->number * base + digit;
}

static void take_perm(struct gu_map *map, char c)
{
	map->prot |= c == 'r' ? PROT_READ : c == 'w' ? PROT_WRITE : c == 'x' ? PROT_EXEC : 0u;
	map->shared |= c == 's';
}

static void take_name(struct parser *p, char c)
{
	if (p->field == F_PAD && c == ' ')
		return;
	p->field = F_NAME;
	if (p->name_len < GU_MAP_NAME - 1)
		p->map.name[p->name_len++] = c;
}

static void take_char(struct parser *p, char c)
{
	if (p->field >= F_PAD)
		take_name(p, c);
	else if (c == separators[p->field])
		end_field(p);
	else if (p->field == F_PERMS)
		take_perm(&p->map, c);
	else
		take_digit(p, c);
}

static void start_line(struct parser *p)
{
	uintptr_t seen = p->seen;
	memset(p, 0, sizeof(*p));
	p->seen = seen;
}

/* false ends the walk. */
static bool end_line(struct parser *p, bool (*visit)(void *data, const struct gu_map *map), void *data)
{
	bool more = true;
	if (p->field == F_INODE)
		end_field(p);
	if (p->field >= F_PAD && p->map.start < p->seen) {
		p->map.offset += p->map.inode ? p->seen - p->map.start : 0;
		p->map.start = p->seen;
	}
	if (p->field >= F_PAD && p->map.start < p->map.end) {
		p->seen = p->map.end;
		more = visit(data, &p->map);
	}
	start_line(p);
	return more;
}

static bool parse(struct parser *p, const char *text, size_t len,
		  bool (*visit)(void *data, const struct gu_map *map), void *data)
{
	for (size_t i = 0; i < len; i++) {
		if (text[i] != '\n')
			take_char(p, text[i]);
		else if (!end_line(p, visit, data))
			return false;
	}
	return true;
}

int gu_maps_each(bool (*visit)(void *data, const struct gu_map *map), void *data)
{
	struct parser p = {0};
	char text[4096]; /* the kernel gives a page at a time, whatever is asked for */
	int fd = gu_os->open("/proc/thread-self/maps", O_RDONLY);
	if (fd < 0)
		return fd;
	long n;
	do
		n = gu_os->read(fd, text, sizeof(text));
	while (n == -EINTR || (n > 0 && parse(&p, text, (size_t)n, visit, data)));
	gu_os->close(fd);
	return n < 0 ? (int)n : 0;
}

struct search {
	uintptr_t addr;
	struct gu_map *out;
	bool found;
};

static bool match(void *data, const struct gu_map *map)
{
	struct search *s = data;
	if (map->end <= s->addr)
		return true;
	s->found = map->start <= s->addr;
	if (s->found)
		*s->out = *map;
	return false;
}

int gu_maps_find(uintptr_t addr, struct gu_map *out)
{
	struct search s = {addr, out, false};
	int result = gu_maps_each(match, &s);
	if (result)
		return result;
	return s.found ? 0 : -ENOENT;
}
