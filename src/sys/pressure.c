/* SPDX-License-Identifier: MIT */
/* pressure.c - see pressure.h. */
#include "sys/pressure.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>

#include "base/check.h"
#include "sys/os.h"

#define PATH 1024
#define LINE 4096
#define STAT 16384
#define UNLIMITED ((uint64_t)1 << 62) /* version 1 says it with a number just below 2^63 */

/* ---- text ---- */

/* What fits of a file from its beginning, ended by 0; bytes, or -errno. */
static long read_text(int fd, char *text, size_t size)
{
	long n;
	do
		n = gu_os->pread(fd, text, size - 1, 0);
	while (n == -EINTR);
	if (n >= 0)
		text[n] = 0;
	return n;
}

static bool parse_number(const char *text, uint64_t *out)
{
	uint64_t n = 0;
	if (*text < '0' || *text > '9')
		return false;
	for (; *text >= '0' && *text <= '9'; text++)
		n = n > UINT64_MAX / 10 - 1 ? UINT64_MAX : n * 10 + (uint64_t)(*text - '0');
	*out = n;
	return true;
}

/* The lines of buffered text that are whole; those longer than LINE are passed over. false: visit wants no more. */
static bool visit_lines(char *text, size_t *len, bool *skip, bool (*visit)(void *data, char *line), void *data)
{
	char *line = text, *end;
	bool more = true;
	while (more && (end = memchr(line, '\n', *len - (size_t)(line - text)))) {
		*end = 0;
		more = *skip || visit(data, line);
		*skip = false;
		line = end + 1;
	}
	*len -= (size_t)(line - text);
	memmove(text, line, *len);
	if (*len == LINE) {
		*skip = true;
		*len = 0;
	}
	return more;
}

static int each_line(const char *path, bool (*visit)(void *data, char *line), void *data)
{
	char text[LINE];
	size_t len = 0;
	bool skip = false;
	int fd = gu_os->open(path, O_RDONLY);
	if (fd < 0)
		return fd;
	long n;
	do {
		n = gu_os->read(fd, text + len, sizeof(text) - len);
		len += n > 0 ? (size_t)n : 0;
	} while (n == -EINTR || (n > 0 && visit_lines(text, &len, &skip, visit, data)));
	gu_os->close(fd);
	return n < 0 ? (int)n : 0;
}

/* The next of words separated by one character; *at moves on behind it, NULL: there is none. */
static char *next_word(char **at, char separator)
{
	char *word = *at, *end = word ? strchr(word, separator) : NULL;
	*at = end ? end + 1 : NULL;
	if (end)
		*end = 0;
	return word;
}

static bool has_word(char *list, const char *word)
{
	for (char *w; (w = next_word(&list, ','));)
		if (!strcmp(w, word))
			return true;
	return false;
}

/* Whether there is no such thing, or not for us. */
static int absent(int err) { return err == -ENOENT || err == -EPERM || err == -EACCES ? -EOPNOTSUPP : err; }

/* ---- which directory ---- */

struct place {
	unsigned version;    /* of the hierarchy that is looked for, 0: whichever has memory */
	bool found, mounted;
	bool below;          /* in what is mounted */
	char group[PATH];    /* as /proc says */
	char path[PATH];     /* its directory */
	size_t top;          /* so much of it is where the hierarchy is mounted */
};

static bool copy(char *to, const char *from)
{
	size_t len = strlen(from);
	if (len >= PATH)
		return false;
	memcpy(to, from, len + 1);
	return true;
}

/* number:controllers:path */
static bool take_group(void *data, char *line)
{
	struct place *p = data;
	char *number = next_word(&line, ':'), *controllers = next_word(&line, ':');
	bool unified = controllers && !*controllers && !strcmp(number, "0"), v1 = controllers && has_word(controllers, "memory");
	if (!line || !(p->version == 2 ? unified : unified || v1))
		return true;
	p->found = copy(p->group, line);
	if (!p->version && v1 && p->found)
		p->version = 1;
	return p->version != 1;
}

/* What the kernel wrote as \040. */
static void unescape(char *text)
{
	char *to = text;
	for (; *text; to++) {
		bool escaped = text[0] == '\\' && text[1] >= '0' && text[1] <= '3' && text[2] && text[3];
		*to = escaped ? (char)((text[1] - '0') * 64 + (text[2] - '0') * 8 + (text[3] - '0')) : *text;
		text += escaped ? 4 : 1;
	}
	*to = 0;
}

/* A hierarchy, or a part of it, and where it is mounted: of a group that is not in any such part, the directory is the first part's own. */
static void join(struct place *p, const char *root, const char *mount)
{
	size_t len = strcmp(root, "/") ? strlen(root) : 0, at = strlen(mount);
	p->below = !strncmp(p->group, root, len) && (!p->group[len] || p->group[len] == '/') && strncmp(p->group, "/..", 3);
	const char *rest = p->below && strcmp(p->group + len, "/") ? p->group + len : "";
	size_t more = strlen(rest);
	if (at + more >= PATH || (p->mounted && !p->below))
		return;
	memcpy(p->path, mount, at);
	memcpy(p->path + at, rest, more + 1);
	p->top = at;
	p->mounted = true;
}

/* id parent device root mount options ... - type source options */
static bool take_mount(void *data, char *line)
{
	struct place *p = data;
	char *root = NULL, *mount = NULL, *tail = strstr(line, " - ");
	if (!tail)
		return true;
	*tail = 0;
	tail += 3;
	const char *type = next_word(&tail, ' ');
	next_word(&tail, ' ');
	if (p->version == 2 ? strcmp(type, "cgroup2") : strcmp(type, "cgroup") || !tail || !has_word(tail, "memory"))
		return true;
	for (int i = 0; i < 5; i++) {
		char *word = next_word(&line, ' ');
		root = i == 3 ? word : root;
		mount = i == 4 ? word : mount;
	}
	if (!root || !mount)
		return true;
	unescape(root);
	unescape(mount);
	join(p, root, mount);
	return !p->below;
}

static int find_in(struct place *p, unsigned version, const char *groups, const char *mounts)
{
	memset(p, 0, sizeof(*p));
	p->version = version;
	int err = each_line(groups, take_group, p);
	if (err || !p->found)
		return err ? absent(err) : -EOPNOTSUPP;
	p->version = p->version ? p->version : 2;
	err = each_line(mounts, take_mount, p);
	return err ? absent(err) : p->mounted ? 0 : -EOPNOTSUPP;
}

/* The directory of the process's own group; version 0: of the hierarchy that has memory. */
static int find_group(struct place *p, unsigned version)
{
	int err = find_in(p, version, "/proc/self/cgroup", "/proc/self/mountinfo");
	return err == -EINVAL ? find_in(p, version, "/proc/thread-self/cgroup", "/proc/thread-self/mountinfo") : err; /* the first thread has ended */
}

static int open_in(const char *directory, const char *name)
{
	char path[PATH + 64];
	size_t len = strlen(directory);
	memcpy(path, directory, len);
	path[len] = '/';
	memcpy(path + len + 1, name, strlen(name) + 1);
	return gu_os->open(path, O_RDONLY);
}

/* ---- limits ---- */

static size_t files_of(const struct gu_cgroup *c) { return c->version == 1 ? GU_CGROUP_HIGH : GU_CGROUP_FILES; }

static void close_files(const struct gu_cgroup_level *l, size_t n)
{
	while (n-- > 0)
		gu_os->close(l->fd[n]);
}

/* -ENOENT: the group has no limits, as the outermost of version 2, or where its memory is not controlled. */
static int open_level(const struct gu_cgroup *c, struct gu_cgroup_level *l, const char *directory)
{
	static const char *const names[2][GU_CGROUP_FILES] = {
		{"memory.max", "memory.current", "memory.stat", "memory.high"},
		{"memory.limit_in_bytes", "memory.usage_in_bytes", "memory.stat"},
	};
	for (size_t i = 0; i < files_of(c); i++) {
		l->fd[i] = open_in(directory, names[c->version == 1][i]);
		if (l->fd[i] >= 0)
			continue;
		close_files(l, i);
		return l->fd[i];
	}
	return 0;
}

/* Its own, and those around it as far as they can be seen. */
int gu_cgroup_open(struct gu_cgroup *c)
{
	struct place p;
	memset(c, 0, sizeof(*c));
	int err = find_group(&p, 0);
	if (err)
		return err;
	c->version = p.version;
	while (!err && c->n < GU_CGROUP_LEVELS) {
		err = open_level(c, &c->level[c->n], p.path);
		c->n += !err;
		err = err == -ENOENT || (c->n && absent(err) == -EOPNOTSUPP) ? 0 : err;
		char *end = strrchr(p.path, '/');
		if (!end || (size_t)(end - p.path) < p.top)
			break;
		*end = 0;
	}
	if (err)
		gu_cgroup_close(c);
	return absent(err);
}

void gu_cgroup_close(struct gu_cgroup *c)
{
	for (unsigned i = 0; i < c->n; i++)
		close_files(&c->level[i], files_of(c));
	memset(c, 0, sizeof(*c));
}

/* "max", and what is beyond all memory, is no limit. */
static int read_number(int fd, uint64_t *out)
{
	char text[64];
	long n = read_text(fd, text, sizeof(text));
	*out = UINT64_MAX;
	if (n < 0)
		return (int)n;
	return parse_number(text, out) || !strcmp(text, "max\n") ? 0 : -EINVAL;
}

/* "name number" in a line of its own. */
static uint64_t find_number(const char *text, const char *name)
{
	uint64_t n = 0;
	size_t len = strlen(name);
	for (const char *line = text; line; line = (line = strchr(line, '\n')) ? line + 1 : NULL)
		if (!strncmp(line, name, len) && line[len] == ' ' && parse_number(line + len + 1, &n))
			return n;
	return 0;
}

static int read_used(const struct gu_cgroup *c, const struct gu_cgroup_level *l, uint64_t *used)
{
	char text[STAT];
	int err = read_number(l->fd[GU_CGROUP_USED], used);
	long n = err ? err : read_text(l->fd[GU_CGROUP_STAT], text, sizeof(text));
	if (n < 0)
		return (int)n;
	uint64_t inactive = find_number(text, c->version == 1 ? "total_inactive_file" : "inactive_file");
	uint64_t active = find_number(text, c->version == 1 ? "total_active_file" : "active_file");
	*used -= gu_min(*used, inactive + active / 2);
	return 0;
}

static int read_limit(const struct gu_cgroup *c, const struct gu_cgroup_level *l, uint64_t *limit)
{
	uint64_t high = UINT64_MAX;
	int err = read_number(l->fd[GU_CGROUP_MAX], limit);
	if (!err && c->version == 2)
		err = read_number(l->fd[GU_CGROUP_HIGH], &high);
	*limit = gu_min(*limit, high);
	return err;
}

int gu_cgroup_read(const struct gu_cgroup *c, struct gu_cgroup_memory *m)
{
	int64_t least = INT64_MAX;
	*m = (struct gu_cgroup_memory){0};
	for (unsigned i = 0; i < c->n; i++) {
		uint64_t limit = 0, used = 0;
		int err = read_limit(c, &c->level[i], &limit);
		if (!err && limit >= UNLIMITED)
			continue;
		if (!err)
			err = read_used(c, &c->level[i], &used);
		if (err)
			return err;
		if ((int64_t)(limit - used) < least) {
			least = (int64_t)(limit - used);
			*m = (struct gu_cgroup_memory){true, limit, used};
		}
	}
	return 0;
}

/* ---- pressure ---- */

int gu_psi_read(int fd, uint64_t *waited_ns)
{
	char text[256];
	uint64_t us;
	long n = read_text(fd, text, sizeof(text));
	if (n < 0)
		return (int)n;
	const char *total = strncmp(text, "some ", 5) ? NULL : strstr(text, "total=");
	if (!total || !parse_number(total + 6, &us))
		return -EOPNOTSUPP;
	*waited_ns = us * 1000;
	return 0;
}

/* A group that has the file may still say EOPNOTSUPP when it is read. */
static int open_psi(const char *directory, const char *name)
{
	uint64_t ns;
	int fd = open_in(directory, name), err = fd < 0 ? fd : gu_psi_read(fd, &ns);
	if (!err)
		return fd;
	if (fd >= 0)
		gu_os->close(fd);
	return err;
}

int gu_psi_open(void)
{
	struct place p;
	int err = find_group(&p, 2), fd = err ? err : absent(open_psi(p.path, "memory.pressure"));
	return fd == -EOPNOTSUPP ? absent(open_psi("/proc/pressure", "memory")) : fd;
}
