/* SPDX-License-Identifier: MIT */
/*
 * track.c - what it costs to know which pages were written or accessed, on memory that is populated. Several systems take
 * turns in one process, on the same memory and the same pages: gcuffd, the watch interface; raw, userfaultfd with
 * WP_ASYNC (or RWP_ASYNC) and PAGEMAP_SCAN by hand; mprotect, with a handler of SIGSEGV that unprotects one page and
 * notes it. Each answers with a list of runs, and the answers are compared.
 *
 * One thread runs all of it; on_fault() runs in it, and only where written or accessed memory is protected.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "util.h"

#ifdef BENCH_SYS_GCUFFD
#include "gcuffd.h"
#else
struct gcuffd_run {
	void *start, *end;
};
#endif

#define PAGE ((size_t)4096)
#define HUGE_PAGE ((size_t)2 << 20)
#define CLEAN_SCANS 4
#define WATCHERS 4
#define LARGE_DIRTY 100 /* one page of so many */

struct area {
	char *start;
	size_t length, written; /* written: of the pages in order */
	uint32_t *order;
};

struct system {
	const char *name;
	/* -errno where it can't be had */
	int (*begin)(const struct area *a, bool accesses);
	/* Fills runs, and what is in them counts as clean again. */
	void (*collect)(const struct area *a);
	void (*end)(const struct area *a);
};

static size_t page = PAGE;
static const struct bench_args *args;
static struct gcuffd_run *runs;
static size_t run_count, run_room;

static void need(const char *what, int err)
{
	if (err)
		bench_fail(what, -err);
}

static size_t pages_of(const struct area *a) { return a->length / page; }

/* Runs come in pieces that touch. */
static void take_run(uintptr_t start, uintptr_t end)
{
	if (run_count && (uintptr_t)runs[run_count - 1].end == start)
		runs[run_count - 1].end = (void *)end;
	else if (run_count < run_room)
		runs[run_count++] = (struct gcuffd_run){ (void *)start, (void *)end };
	else
		bench_fail("list of runs", ENOSPC);
}

/* ---- gcuffd */

#ifdef BENCH_SYS_GCUFFD

static struct gcuffd_watch *watches[WATCHERS];

static int begin_watch(struct gcuffd_watch **watch, const struct area *a, unsigned flags)
{
	int err = *watch ? 0 : gcuffd_watch_create(0, watch);

	return err ? err : gcuffd_watch_begin(*watch, a->start, a->length, flags);
}

static void collect_watch(struct gcuffd_watch *watch, const struct area *a)
{
	void *next;

	need("gcuffd_watch_collect",
	     gcuffd_watch_collect(watch, a->start, a->length, runs, run_room, &run_count, &next));
	if (next)
		bench_fail("list of runs", ENOSPC);
}

static int begin_gcuffd(const struct area *a, bool accesses)
{
	return begin_watch(&watches[0], a, accesses ? GCUFFD_WATCH_ACCESSES : 0);
}

static void collect_gcuffd(const struct area *a) { collect_watch(watches[0], a); }
static void end_gcuffd(const struct area *a)
{
	need("gcuffd_watch_end", gcuffd_watch_end(watches[0], a->start, a->length));
}

#endif

/* ---- raw: as linux/userfaultfd.h and linux/fs.h of 7.3 have it */

#define FEATURE_WP_ASYNC (1ull << 15)
#define FEATURE_RWP (3ull << 17) /* and RWP_ASYNC */
#define REGISTER_RWP 8
#define IOC_RWPROTECT _IOWR(0xAA, 9, struct uffdio_writeprotect)
#define IOC_SCAN _IOWR('f', 16, struct scan_arg)
#define SCAN_WP_MATCHING 1
#define SCAN_CHECK_WPASYNC 2
#define IS_WRITTEN 2
#define IS_PRESENT 8
#define IS_SWAPPED 0x10
#define IS_ACCESSED 0x200
#define VEC_LEN 512 /* as many as the kernel itself keeps before it copies them out */
#define RAW_CHUNK ((size_t)64 << 20)

struct scan_arg {
	uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages;
	uint64_t category_inverted, category_mask, category_anyof_mask, return_mask;
};

struct scan_region {
	uint64_t start, end, categories;
};

static int uffd = -1, pagemap = -1;
static bool raw_accesses;
static struct gcuffd_run *empty; /* when it was armed for accesses: else they would be told for ever */
static size_t empty_count;
static uint64_t protect_ns; /* of arming for accesses, UFFDIO_RWPROTECT alone */

static int shake_hands(uint64_t features)
{
	struct uffdio_api api = { .api = UFFD_API, .features = features };

	uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	if (uffd < 0)
		uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);
	if (uffd < 0)
		return -errno;
	if (!ioctl(uffd, UFFDIO_API, &api))
		return 0;
	close(uffd);
	uffd = -1;
	return -EOPNOTSUPP;
}

static bool has_accesses;

static int open_raw(void)
{
	int err = shake_hands(FEATURE_WP_ASYNC | FEATURE_RWP);

	has_accesses = !err;
	if (err)
		err = shake_hands(FEATURE_WP_ASYNC);
	pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	return err ? err : pagemap < 0 ? -errno : 0;
}

static int protect_accesses(uintptr_t start, size_t length)
{
	struct uffdio_writeprotect arg = { .range = { start, length }, .mode = UFFDIO_WRITEPROTECT_MODE_WP };

	return ioctl(uffd, IOC_RWPROTECT, &arg) ? -errno : 0;
}

static int arm_writes(const struct area *a)
{
	struct scan_arg arg = {
		.size = sizeof(arg), .flags = SCAN_WP_MATCHING | SCAN_CHECK_WPASYNC, .start = (uintptr_t)a->start,
		.end = (uintptr_t)a->start + a->length, .category_mask = IS_WRITTEN,
	};
	return ioctl(pagemap, IOC_SCAN, &arg) < 0 ? -errno : 0;
}

/* Nothing in a piece of anonymous memory is empty: mincore(2) tells that sooner than a scan, and of no other memory. */
static bool is_full(uintptr_t start, size_t length)
{
	static unsigned char resident[4096];

	for (size_t at = 0, part; at < length && args->memory == BENCH_ANON; at += part) {
		part = length - at < sizeof(resident) * PAGE ? length - at : sizeof(resident) * PAGE;
		if (mincore((void *)(start + at), part, resident) || memchr(resident, 0, part / PAGE))
			return false;
	}
	return args->memory == BENCH_ANON;
}

static int list_empty(uintptr_t start, uintptr_t end)
{
	struct scan_region vec[VEC_LEN];
	struct scan_arg arg = {
		.size = sizeof(arg), .start = start, .end = end, .vec = (uintptr_t)vec, .vec_len = VEC_LEN,
		.category_inverted = IS_PRESENT | IS_SWAPPED, .category_mask = IS_PRESENT | IS_SWAPPED, .return_mask = IS_PRESENT,
	};
	for (; arg.start < arg.end; arg.start = arg.walk_end) {
		long n = ioctl(pagemap, IOC_SCAN, &arg);

		if (n < 0)
			return -errno;
		for (long i = 0; i < n; i++)
			empty[empty_count++] = (struct gcuffd_run){ (void *)vec[i].start, (void *)vec[i].end };
	}
	return 0;
}

static int arm_accesses(const struct area *a)
{
	uintptr_t end = (uintptr_t)a->start + a->length;
	int err = 0;

	empty_count = 0;
	protect_ns = 0;
	for (uintptr_t at = (uintptr_t)a->start, part; at < end && !err; at += part) {
		part = end - at < RAW_CHUNK ? end - at : RAW_CHUNK;
		bool full = args->memory == BENCH_HUGETLB || is_full(at, part);
		uint64_t start = bench_now();
		err = protect_accesses(at, part);
		protect_ns += bench_now() - start;
		if (!err && !full)
			err = list_empty(at, at + part);
	}
	return err;
}

static int begin_raw(const struct area *a, bool accesses)
{
	struct uffdio_register reg = {
		.range = { (uintptr_t)a->start, a->length }, .mode = accesses ? REGISTER_RWP : UFFDIO_REGISTER_MODE_WP,
	};
	raw_accesses = accesses;
	if (ioctl(uffd, UFFDIO_REGISTER, &reg))
		return -errno;
	return accesses ? arm_accesses(a) : arm_writes(a);
}

static void take_accessed(uintptr_t start, uintptr_t end)
{
	need("UFFDIO_RWPROTECT", protect_accesses(start, end - start));
	take_run(start, end);
}

/* But what was empty already; next: of that, the first that may end after start. */
static void take_new(uintptr_t start, uintptr_t end, size_t *next)
{
	while (*next < empty_count && (uintptr_t)empty[*next].end <= start)
		++*next;
	for (size_t i = *next; i < empty_count && (uintptr_t)empty[i].start < end && start < end; i++) {
		if (start < (uintptr_t)empty[i].start)
			take_accessed(start, (uintptr_t)empty[i].start);
		start = (uintptr_t)empty[i].end;
	}
	if (start < end)
		take_accessed(start, end);
}

static void take_regions(const struct scan_region *vec, long n, size_t *next)
{
	for (long i = 0; i < n; i++)
		if (raw_accesses)
			take_new(vec[i].start, vec[i].end, next);
		else
			take_run(vec[i].start, vec[i].end);
}

static void collect_raw(const struct area *a)
{
	struct scan_region vec[VEC_LEN];
	struct scan_arg arg = {
		.size = sizeof(arg), .start = (uintptr_t)a->start, .end = (uintptr_t)a->start + a->length,
		.vec = (uintptr_t)vec, .vec_len = VEC_LEN,
	};
	size_t next = 0;

	arg.flags = raw_accesses ? 0 : SCAN_WP_MATCHING | SCAN_CHECK_WPASYNC;
	arg.category_mask = arg.return_mask = raw_accesses ? IS_ACCESSED : IS_WRITTEN;
	if (raw_accesses) {
		/* What was read and dropped since, or unmapped by the kernel, is empty: no note of it is kept, and it may have been accessed. */
		arg.category_mask = 0;
		arg.category_inverted = IS_PRESENT;
		arg.category_anyof_mask = IS_PRESENT | IS_ACCESSED;
	}
	for (run_count = 0; arg.start < arg.end; arg.start = arg.walk_end) {
		long n = ioctl(pagemap, IOC_SCAN, &arg);

		need("PAGEMAP_SCAN", n < 0 ? -errno : 0);
		take_regions(vec, n, &next);
	}
}

static void end_raw(const struct area *a)
{
	struct uffdio_range range = { (uintptr_t)a->start, a->length };

	need("UFFDIO_UNREGISTER", ioctl(uffd, UFFDIO_UNREGISTER, &range) ? -errno : 0);
}

/* ---- mprotect */

static const struct area *guarded;
static int guard_mode;
static uint32_t *noted;
static uint64_t *bitmap;
static volatile size_t noted_count;
static volatile sig_atomic_t guard_failed; /* out of mappings: vm.max_map_count */

static void on_fault(int sig, siginfo_t *info, void *context)
{
	size_t offset = (size_t)((char *)info->si_addr - guarded->start) & ~(page - 1);

	(void)context;
	if (offset >= guarded->length) {
		signal(sig, SIG_DFL);
		return;
	}
	noted[noted_count++] = (uint32_t)(offset / page);
	if (mprotect(guarded->start + offset, page, PROT_READ | PROT_WRITE)) {
		guard_failed = 1;
		mprotect(guarded->start, guarded->length, PROT_READ | PROT_WRITE);
	}
}

static int begin_mprotect(const struct area *a, bool accesses)
{
	struct sigaction act = { .sa_sigaction = on_fault, .sa_flags = SA_SIGINFO };

	guarded = a;
	guard_mode = accesses ? PROT_NONE : PROT_READ;
	noted_count = 0;
	guard_failed = 0;
	sigaction(SIGSEGV, &act, NULL);
	return mprotect(a->start, a->length, guard_mode) ? -errno : 0;
}

/* In order of address: by way of a bitmap. */
static void collect_mprotect(const struct area *a)
{
	size_t words = noted_count ? (pages_of(a) + 63) / 64 : 0;

	for (size_t i = 0; i < noted_count; i++)
		bitmap[noted[i] / 64] |= 1ull << (noted[i] % 64);
	run_count = 0;
	for (size_t i = 0; i < words; bitmap[i++] = 0)
		for (uint64_t word = bitmap[i]; word; word &= word - 1) {
			uintptr_t at = (uintptr_t)a->start + (i * 64 + (size_t)__builtin_ctzll(word)) * page;

			take_run(at, at + page);
		}
	if (noted_count)
		need("mprotect", mprotect(a->start, a->length, guard_mode) ? -errno : 0);
	noted_count = 0;
}

static void end_mprotect(const struct area *a)
{
	need("mprotect", mprotect(a->start, a->length, PROT_READ | PROT_WRITE) ? -errno : 0);
	signal(SIGSEGV, SIG_DFL);
}

/* ---- memory */

static int open_memory(size_t length)
{
	int fd = -1;

	if (args->memory == BENCH_SHMEM) {
		fd = memfd_create("track", MFD_CLOEXEC);
		need("memfd_create", fd < 0 || ftruncate(fd, (off_t)length) ? -errno : 0);
	}
	return fd;
}

/* NULL: no huge pages. Whole huge pages, if they are asked for, lie at multiples of their size. */
static char *map_memory(size_t length)
{
	int fd = open_memory(length), prot = PROT_READ | PROT_WRITE;
	int flags = fd >= 0 ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;

	flags |= args->memory == BENCH_HUGETLB ? MAP_HUGETLB : 0;
	flags &= args->memory == BENCH_HUGETLB ? ~MAP_NORESERVE : ~0;
	char *p = mmap(NULL, length + HUGE_PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (p == MAP_FAILED)
		bench_out_of_memory();
	p = (char *)(((uintptr_t)p + HUGE_PAGE - 1) & ~(HUGE_PAGE - 1));
	p = mmap(p, length, prot, flags | MAP_FIXED, fd, 0);
	if (fd >= 0)
		close(fd);
	if (p == MAP_FAILED)
		return NULL;
	madvise(p, length, args->thp ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
	return p;
}

/* The first of order's pages are those that are written: in order of address (then they are neighbours) or not. */
static void make_order(struct area *a)
{
	uint64_t state = args->seed;

	a->order = malloc(pages_of(a) * sizeof(*a->order));
	if (!a->order)
		bench_out_of_memory();
	for (size_t i = 0; i < pages_of(a); i++)
		a->order[i] = (uint32_t)i;
	for (size_t i = 0; i < a->written && !args->sequential; i++) {
		size_t j = i + bench_random_below(&state, pages_of(a) - i);
		uint32_t other = a->order[j];

		a->order[j] = a->order[i];
		a->order[i] = other;
	}
}

static void fill(const struct area *a)
{
	for (size_t i = 0; i < a->length; i += PAGE)
		*(uint64_t *)(a->start + i) = i + 1;
}

static bool make_area(struct area *a, size_t length, double part)
{
	a->length = length & ~(HUGE_PAGE - 1);
	a->written = (size_t)((double)pages_of(a) * part);
	a->written = a->written ? a->written : 1;
	a->start = map_memory(a->length);
	if (!a->start)
		return false;
	fill(a);
	make_order(a);
	return true;
}

static void drop_area(struct area *a)
{
	munmap(a->start, a->length);
	free(a->order);
}

/* Written to once: no page fault is left in them. */
static void *make_table(size_t size)
{
	void *p = malloc(size);

	if (!p)
		bench_out_of_memory();
	return memset(p, 0, size);
}

static void make_tables(size_t pages)
{
	run_room = pages / 2 + 1;
	runs = make_table(run_room * sizeof(*runs));
	empty = make_table(run_room * sizeof(*empty));
	noted = make_table(pages * sizeof(*noted));
	bitmap = make_table((pages + 63) / 64 * sizeof(*bitmap));
}

/* ---- measuring */

struct sample {
	double arm, clean, touch, dirty; /* ns a page; touch: of those that were touched, else of all */
	uint64_t sum;                    /* of the answer */
	bool lost;
};

static uint64_t sum_of_runs(const struct area *a)
{
	uint64_t sum = run_count;

	for (size_t i = 0; i < run_count; i++)
		sum = bench_mix(sum + (size_t)((char *)runs[i].start - a->start) * 3 +
				(size_t)((char *)runs[i].end - a->start));
	return sum;
}

static void write_pages(const struct area *a)
{
	for (size_t i = 0; i < a->written; i++)
		*(volatile uint64_t *)(a->start + a->order[i] * page) = i;
}

static void read_pages(const struct area *a)
{
	for (size_t i = 0; i < a->written; i++)
		(void)*(volatile uint64_t *)(a->start + a->order[i] * page);
}

static double since(uint64_t start, size_t pages) { return (double)(bench_now() - start) / (double)pages; }

static double time_clean(const struct system *s, const struct area *a)
{
	uint64_t start = bench_now();

	for (int i = 0; i < CLEAN_SCANS; i++) {
		s->collect(a);
		if (run_count)
			bench_fail("pages that nobody wrote", EINVAL);
	}
	return since(start, pages_of(a) * CLEAN_SCANS);
}

static bool measure(const struct system *s, const struct area *a, bool accesses, struct sample *out)
{
	uint64_t start = bench_now();

	if (s->begin(a, accesses))
		return false;
	out->arm = since(start, pages_of(a));
	out->clean = time_clean(s, a);
	start = bench_now();
	if (accesses)
		read_pages(a);
	else
		write_pages(a);
	out->touch = since(start, a->written);
	start = bench_now();
	s->collect(a);
	out->dirty = since(start, pages_of(a));
	out->sum = sum_of_runs(a);
	out->lost = guard_failed;
	s->end(a);
	return true;
}

/* ---- gcuffd alone: several watchers of the same pages */

#ifdef BENCH_SYS_GCUFFD

static double measure_watchers(const struct area *a, int count)
{
	uint64_t sum = 0, start;

	for (int i = 0; i < count; i++)
		need("gcuffd_watch_begin", begin_watch(&watches[i], a, 0));
	write_pages(a);
	start = bench_now();
	for (int i = 0; i < count; i++) {
		collect_watch(watches[i], a);
		sum += run_count;
	}
	double ns = since(start, pages_of(a));
	if (sum != run_count * (uint64_t)count)
		bench_fail("answers of several watchers", EINVAL);
	for (int i = 0; i < count; i++)
		need("gcuffd_watch_end", gcuffd_watch_end(watches[i], a->start, a->length));
	return ns;
}

static void report_watchers(const struct area *a)
{
	bench_emit_float("watchers_1_ns", measure_watchers(a, 1));
	bench_emit_float("watchers_2_ns", measure_watchers(a, 2));
	bench_emit_float("watchers_4_ns", measure_watchers(a, 4));
}

#endif

/* ---- page tables: memory of which nearly nothing is populated */

#define SPARSE 16                    /* times the other memory */
#define SPARSE_STEP ((size_t)64 << 20)

static size_t measure_tables(const struct system *s, unsigned flags)
{
	struct area a = { .length = args->live * SPARSE };
	size_t before;
	int err;

	a.start = map_memory(a.length);
	if (!a.start)
		return 0;
	for (size_t i = 0; i < a.length; i += SPARSE_STEP)
		a.start[i] = 1;
	before = bench_status_kib("VmPTE:");
#ifdef BENCH_SYS_GCUFFD
	err = s->begin == begin_gcuffd ? begin_watch(&watches[0], &a, flags) : s->begin(&a, false);
#else
	(void)flags;
	err = s->begin(&a, false);
#endif
	if (!err)
		s->collect(&a);
	size_t kib = bench_status_kib("VmPTE:") - before;
	if (!err)
		s->end(&a);
	munmap(a.start, a.length);
	return kib;
}

static void report_tables(const struct system *s)
{
	if (args->memory == BENCH_HUGETLB)
		return;
#ifdef BENCH_SYS_GCUFFD
	if (s->begin == begin_gcuffd) {
		bench_emit_int("table_kib", measure_tables(s, 0));
		bench_emit_int("table_precise_kib", measure_tables(s, GCUFFD_WATCH_PRECISE));
		return;
	}
#endif
	bench_emit_int(s->begin == begin_raw ? "table_precise_kib" : "table_kib", measure_tables(s, 0));
}

/* ---- the whole */

static const struct system systems[] = {
#ifdef BENCH_SYS_GCUFFD
	{ "gcuffd", begin_gcuffd, collect_gcuffd, end_gcuffd },
#endif
	{ "raw", begin_raw, collect_raw, end_raw },
	{ "mprotect", begin_mprotect, collect_mprotect, end_mprotect },
};

#define SYSTEMS ((int)(sizeof(systems) / sizeof(systems[0])))

static struct area area, large;

/* Of the pages that nobody will touch. Shared memory gives them back too. */
static void empty_some(const struct area *a)
{
	size_t n = (size_t)((double)pages_of(a) * args->empty / 100), most = pages_of(a) - a->written;
	int advice = args->memory == BENCH_SHMEM ? MADV_REMOVE : MADV_DONTNEED;

	for (size_t i = 0; i < (n < most ? n : most); i++)
		need("madvise", madvise(a->start + a->order[pages_of(a) - 1 - i] * page, page, advice) ? -errno : 0);
}

static void report_accesses(const struct system *s)
{
	struct sample m = { .lost = false };

	empty_some(&area);
	bool done = has_accesses && measure(s, &area, true, &m) && !m.lost;
	fill(&area);
	if (!done)
		return;
	bench_emit_float("first_access_ns", m.touch);
	bench_emit_float("access_arm_ns", m.arm);
	if (s->begin == begin_raw)
		bench_emit_float("access_protect_ns", (double)protect_ns / (double)pages_of(&area));
	bench_emit_float("access_clean_ns", m.clean);
	bench_emit_float("access_dirty_ns", m.dirty);
	if (!args->thp)
		bench_emit_hex("access_checksum", m.sum);
}

static void report_large(const struct system *s)
{
	struct sample m = { .lost = false };

	if (large.start && measure(s, &large, false, &m) && !m.lost)
		bench_emit_float("collect_4g_ms", m.dirty * (double)pages_of(&large) / 1e6);
}

/* Huge pages are written whole to those that know no smaller ones, so the answers differ. */
static void report_writes(const struct system *s)
{
	struct sample m = { .lost = false };

	if (!measure(s, &area, false, &m) || m.lost) {
		bench_emit_null("first_write_ns");
		return;
	}
	bench_emit_float("first_write_ns", m.touch);
	bench_emit_float("arm_ns", m.arm);
	bench_emit_float("scan_clean_ns", m.clean);
	bench_emit_float("scan_dirty_ns", m.dirty);
	if (!args->thp)
		bench_emit_hex("checksum", m.sum);
}

static void report(const struct system *s, unsigned round)
{
	printf("system: %s\n", s->name);
	report_writes(s);
	report_accesses(s);
	report_large(s);
	if (!round)
		report_tables(s);
#ifdef BENCH_SYS_GCUFFD
	if (s->begin == begin_gcuffd)
		report_watchers(&area);
#endif
	bench_emit_int("rss_peak_kib", bench_status_kib("VmHWM:"));
}

static bool is_wanted(const char *name)
{
	const char *at = args->systems ? strstr(args->systems, name) : name;
	size_t len = strlen(name);

	return at && (at == args->systems || at == name || at[-1] == ',') && (!at[len] || at[len] == ',');
}

/* Everybody is first in some round. */
static void run_round(unsigned round)
{
	for (int i = 0; i < SYSTEMS; i++) {
		const struct system *s = &systems[((unsigned)i + round) % SYSTEMS];

		if (is_wanted(s->name) && (s->begin == begin_mprotect || uffd >= 0))
			report(s, round);
	}
}

/* Nobody is the first to touch what all use. */
static void warm_up(void)
{
	struct sample m;

	for (int i = 0; i < SYSTEMS; i++)
		if (is_wanted(systems[i].name) && (systems[i].begin == begin_mprotect || uffd >= 0))
			(void)measure(&systems[i], &area, false, &m);
}

int main(int argc, char **argv)
{
	struct bench_args parsed;

	bench_args_parse(&parsed, argc, argv);
	args = &parsed;
	page = args->memory == BENCH_HUGETLB ? HUGE_PAGE : PAGE;
	bench_begin();
	if (open_raw())
		uffd = -1;
	if (!make_area(&area, args->live, args->dirty / 100)) {
		printf("no_memory: 1\n");
		return 0;
	}
	make_tables((args->large > args->live ? args->large : args->live) / page);
	warm_up();
	if (args->large && !make_area(&large, args->large, 1.0 / LARGE_DIRTY))
		large.start = NULL;
	for (unsigned i = 0; i < args->rounds; i++)
		run_round(i);
	drop_area(&area);
	fflush(stdout);
	_exit(0);
}
