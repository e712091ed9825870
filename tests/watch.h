/* SPDX-License-Identifier: MIT */
/*
 * watch.h - what the tests of the watch interface share: memory of each kind, and reports as sets of pages. Tests
 * run once a kind: tcase_add_loop_test(tcase, test, 0, KINDS), and begin with NEED_KIND(_i, pages).
 */
#ifndef GU_TESTS_WATCH_H
#define GU_TESTS_WATCH_H

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <pthread.h>
#include <string.h>
#include <sys/file.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#include "core.h"
#include "gc/watchtable.h"
#include "sys/caps.h"

enum memory_kind { ANON, PRECISE, COPY, FILE_COPY, SHMEM, MEMFD, HUGE, HUGE_SHARED, KINDS };

#define MAX_PAGES 1024

static struct memory {
	enum memory_kind kind;
	char *at;
	size_t pages, page; /* page: its size */
	int fd;
	unsigned flags;     /* for gcuffd_watch_begin() */
} mem;

static struct gcuffd_watch *watch[3];

static inline char *page_at(size_t i) { return mem.at + i * mem.page; }
static inline void touch(size_t i) { (*(volatile char *)page_at(i))++; }
static inline char look(size_t i) { return *(volatile char *)page_at(i); }
static inline bool is_private(void) { return mem.kind <= FILE_COPY || mem.kind == HUGE; }
static inline bool is_huge(void) { return mem.kind >= HUGE; }

static inline int make_file(enum memory_kind kind, size_t len)
{
	int fd = -1;
	if (kind == COPY || kind == MEMFD)
		fd = memfd_create("watched", 0);
	if (kind == FILE_COPY)
		fd = open(test_folder, O_TMPFILE | O_RDWR, 0600);
	if (fd >= 0 && ftruncate(fd, (off_t)len)) {
		close(fd);
		fd = -1;
	}
	return fd;
}

static inline int map_flags(enum memory_kind kind)
{
	int flags = kind <= FILE_COPY || kind == HUGE ? MAP_PRIVATE : MAP_SHARED;
	if (kind >= HUGE)
		flags |= MAP_HUGETLB;
	return kind == COPY || kind == FILE_COPY || kind == MEMFD ? flags : flags | MAP_ANONYMOUS;
}

/* Room around it belongs to nobody, so that neighbours do not merge. */
static inline char *reserve(size_t len)
{
	size_t gap = 4 << 20;
	char *p = mmap(NULL, len + 2 * gap, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	must(p != MAP_FAILED, "errno %d", errno);
	return (char *)gu_align_up((uintptr_t)p + gap / 2, 2 << 20);
}

/* false: not to be had here. */
static inline bool make_memory(enum memory_kind kind, size_t pages)
{
	mem = (struct memory){.kind = kind, .pages = pages, .page = kind >= HUGE ? 2 << 20 : GU_PAGE, .fd = -1};
	size_t len = pages * mem.page;
	if (kind == COPY || kind == FILE_COPY || kind == MEMFD) {
		mem.fd = make_file(kind, len);
		if (mem.fd < 0)
			return false;
	}
	mem.flags = kind == PRECISE ? GCUFFD_WATCH_PRECISE : 0;
	mem.at = mmap(reserve(len), len, PROT_READ | PROT_WRITE, map_flags(kind) | MAP_FIXED, mem.fd, 0);
	return mem.at != MAP_FAILED && !(kind < HUGE && madvise(mem.at, len, MADV_NOHUGEPAGE));
}

/* Huge pages of a pool that may be too small. */
static inline size_t free_huge_pages(void)
{
	char line[128];
	size_t n = 0;
	FILE *f = fopen("/proc/meminfo", "r");
	while (f && fgets(line, sizeof(line), f))
		if (!strncmp(line, "HugePages_Free:", 15))
			n = strtoul(line + 15, NULL, 10);
	if (f)
		fclose(f);
	return n;
}

static inline bool has_kind(enum memory_kind kind, size_t pages)
{
	return kind < HUGE || free_huge_pages() >= pages + 1;
}

static inline int make_watchers(unsigned count, unsigned flags)
{
	int err = 0;
	for (unsigned i = 0; i < count && !err; i++)
		err = gcuffd_watch_create(flags, &watch[i]);
	return err;
}

#define NEED_WATCH() \
	do { \
		if (!gu_caps()->has_wp_async) \
			GU_LACKS("async", "no async write-protect"); \
	} while (0)

/* count pages of the kind, half of them populated, and a watcher of no range. */
#define NEED_KIND(kind, count) \
	do { \
		NEED_WATCH(); \
		if (!has_kind((enum memory_kind)(kind), count) || !make_memory((enum memory_kind)(kind), count)) \
			GU_LACKS((kind) >= HUGE ? "hugetlb" : "async", "no memory of kind %d", (int)(kind)); \
		for (size_t nk_page = 0; nk_page < mem.pages / 2; nk_page++) \
			touch(nk_page); \
		ck_ok(make_watchers(1, 0)); \
	} while (0)

static inline int begin_on(struct gcuffd_watch *w, size_t from, size_t to)
{
	return gcuffd_watch_begin(w, page_at(from), (to - from) * mem.page, mem.flags);
}

static inline void begin(struct gcuffd_watch *w) { ck_ok(begin_on(w, 0, mem.pages)); }

static inline void checked_table(void)
{
	gu_lock(&gu_watch_lock);
	gu_watch_check();
	gu_unlock(&gu_watch_lock);
}

/* ---- reports ---- */

struct set {
	bool has[MAX_PAGES];
	size_t count;
};

typedef int report_fn(struct gcuffd_watch *, const void *, size_t, struct gcuffd_run *, size_t, size_t *, void **);

static inline void add_run(struct set *set, const struct gcuffd_run *run)
{
	must(run->start < run->end, "an empty run");
	for (char *p = run->start; p < (char *)run->end; p += mem.page) {
		size_t i = (size_t)(p - mem.at) / mem.page;
		must(p >= mem.at && i < mem.pages && !set->has[i] && page_at(i) == p, "page %zu", i);
		set->has[i] = true;
		set->count++;
	}
}

/* In pieces of max runs; an error ends it. */
static inline int report_into(struct set *set, struct gcuffd_watch *w, report_fn *report, size_t max)
{
	struct gcuffd_run runs[16];
	void *at = NULL, *next;
	size_t count;
	int err;
	do {
		err = report(w, at, SIZE_MAX, runs, max, &count, &next);
		for (size_t i = 0; i < count; i++)
			add_run(set, &runs[i]);
		must(err || !next || (count == max && next > at), "it does not go on");
		at = next;
	} while (!err && next);
	return err;
}

static inline struct set *reported(struct gcuffd_watch *w, report_fn *report)
{
	static struct set set;
	memset(&set, 0, sizeof(set));
	int err = report_into(&set, w, report, 3);
	must(!err, "error %d", err);
	return &set;
}

static inline struct set *collected(struct gcuffd_watch *w) { return reported(w, gcuffd_watch_collect); }
static inline struct set *peeked(struct gcuffd_watch *w) { return reported(w, gcuffd_watch_peek); }

/* Exactly the pages named, which rise, are in the set. */
#define is_set(set_, ...) \
	({ \
		const struct set *is_got = (set_); \
		size_t is_pages[] = {__VA_ARGS__}, is_count = sizeof(is_pages) / sizeof(is_pages[0]); \
		bool is_same = is_got->count == is_count; \
		for (size_t is_i = 0; is_i < is_count; is_i++) \
			is_same = is_same && is_got->has[is_pages[is_i]]; \
		if (!is_same) \
			show_set(is_got); \
		is_same; \
	})

static inline void show_set(const struct set *set)
{
	printf("of kind %d:", mem.kind);
	for (size_t i = 0; i < mem.pages; i++)
		if (set->has[i])
			printf(" %zu", i);
	printf("\n");
	fflush(stdout);
}

static inline struct gcuffd_watch_stats watch_stats(struct gcuffd_watch *w)
{
	struct gcuffd_watch_stats s = {.size = sizeof(s)};
	must_ok(gcuffd_watch_stats(w, &s));
	return s;
}

/* ---- settings of the machine, put back by the unchecked teardown ---- */

#define MORE_HUGE 16

static bool has_more_huge;

static inline bool read_text(const char *path, char *text, size_t size)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	long n = fd < 0 ? -1 : read(fd, text, size - 1);
	if (fd >= 0)
		close(fd);
	text[n > 0 ? n : 0] = 0;
	return n > 0;
}

static inline bool write_text(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	long n = fd < 0 ? -1 : write(fd, text, strlen(text));
	if (fd >= 0)
		close(fd);
	return n >= 0;
}

/* Against other programs of these tests. -1: no such file. */
static inline int lock_file(const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	while (fd >= 0 && flock(fd, LOCK_EX) && errno == EINTR)
		;
	return fd;
}

/* A child that goes on may have the descriptor too. */
static inline void unlock_file(int fd)
{
	if (fd < 0)
		return;
	flock(fd, LOCK_UN);
	close(fd);
}

#define NR_HUGE "/proc/sys/vm/nr_hugepages"

/* Two programs may do so at once: so by a difference. */
static inline bool add_huge_pages(long more)
{
	char text[32];
	int fd = lock_file(NR_HUGE);
	bool ok = read_text(NR_HUGE, text, sizeof(text));
	snprintf(text, sizeof(text), "%ld", atol(text) + more);
	ok = ok && write_text(NR_HUGE, text);
	unlock_file(fd);
	return ok;
}

static inline void more_huge_pages(void) { has_more_huge = add_huge_pages(MORE_HUGE); }

static inline void fewer_huge_pages(void)
{
	if (has_more_huge)
		add_huge_pages(-MORE_HUGE);
}

#endif
