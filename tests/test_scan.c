/* SPDX-License-Identifier: MIT */
/*
 * test_scan.c - PAGEMAP_SCAN: what async write-protect promises, on this kernel; random patterns
 * against a model; an invented kernel for continuation and errors.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <string.h>
#include <sys/wait.h>

#include "base/check.h"
#include "fake_os.h"
#include "sys/scan.h"
#include "sys/uffd.h"
#include "test.h"

#define MAX_PAGES 4096

/* ---- a heap: armed memory ---- */

static struct {
	char *mem;
	size_t pages;
	int uffd, pagemap;
	bool user_mode_only;
} heap;

static uintptr_t page_at(size_t page) { return (uintptr_t)heap.mem + page * GU_PAGE; }
static void write_page(size_t page) { *(volatile char *)page_at(page) = 1; }

static char *map_pages(size_t pages)
{
	char *p = mmap(NULL, pages * GU_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ck_assert_ptr_ne(p, MAP_FAILED);
	madvise(p, pages * GU_PAGE, MADV_NOHUGEPAGE);
	return p;
}

/* false: the kernel has no async write-protect. */
static bool make_heap(size_t pages)
{
	heap.mem = map_pages(pages);
	heap.pages = pages;
	heap.pagemap = gu_scan_open();
	heap.uffd = gu_uffd_open(GU_UFFD_FEATURE_WP_ASYNC, &heap.user_mode_only);
	if (heap.pagemap < 0 || heap.uffd < 0)
		return false;
	ck_ok(gu_uffd_register(heap.uffd, page_at(0), pages * GU_PAGE, GU_UFFD_REGISTER_WP, NULL));
	return true;
}

static void drop_heap(void)
{
	fake_remove();
	if (heap.uffd > 0)
		close(heap.uffd);
	if (heap.pagemap > 0)
		close(heap.pagemap);
	if (heap.mem)
		munmap(heap.mem, heap.pages * GU_PAGE);
	memset(&heap, 0, sizeof(heap));
}

#define NEED_HEAP(pages) \
	do { \
		if (!make_heap(pages)) \
			GU_LACKS("async", "no async write-protect: %d, %d", heap.uffd, heap.pagemap); \
	} while (0)

/* ---- a set of pages, filled by visits ---- */

struct set {
	bool has[MAX_PAGES];
	size_t count;
	uintptr_t base, at;
};

static void add_run(void *data, uintptr_t start, uintptr_t end)
{
	struct set *set = data;
	if (start < set->at || end <= start)
		ck_abort_msg("runs must rise and not overlap");
	set->at = end;
	for (; start < end; start += GU_PAGE) {
		set->has[(start - set->base) / GU_PAGE] = true;
		set->count++;
	}
}

static struct set *written(size_t first, size_t end, bool rearm)
{
	static struct set set;
	memset(&set, 0, sizeof(set));
	set.base = page_at(0);
	ck_ok(gu_scan_written(heap.pagemap, page_at(first), page_at(end), rearm, add_run, &set));
	return &set;
}

static size_t count_written(bool rearm) { return written(0, heap.pages, rearm)->count; }
static void arm_all(void) { ck_ok(gu_scan_arm(heap.pagemap, page_at(0), page_at(heap.pages))); }

/* ---- what the kernel promises ---- */

START_TEST(first_writes_are_noted_and_pages_rearmed)
{
	NEED_HEAP(16);
	ck_assert_uint_eq(count_written(false), 16); /* never armed */
	arm_all();
	ck_assert_uint_eq(count_written(false), 0);
	write_page(3);
	write_page(3);
	write_page(7);
	struct set *set = written(0, 16, false);
	ck_assert(set->count == 2 && set->has[3] && set->has[7]);
	ck_assert_uint_eq(written(0, 16, true)->count, 2);
	ck_assert_uint_eq(count_written(true), 0);
	write_page(7);
	ck_assert(written(0, 16, true)->has[7]);
	ck_assert_uint_eq(count_written(false), 0);
}
END_TEST

START_TEST(only_the_range_is_rearmed)
{
	NEED_HEAP(16);
	arm_all();
	for (size_t i = 0; i < 16; i++)
		write_page(i);
	ck_assert_uint_eq(written(4, 8, true)->count, 4);
	ck_assert_uint_eq(count_written(false), 12);
	ck_ok(gu_scan_arm(heap.pagemap, page_at(8), page_at(16)));
	ck_assert_uint_eq(count_written(false), 4);
	ck_assert_uint_eq(written(5, 5, true)->count, 0);
}
END_TEST

START_TEST(the_kernels_writes_are_noted)
{
	int fd = open("/dev/zero", O_RDONLY);
	NEED_HEAP(4);
	for (size_t i = 0; i < 3; i++)
		write_page(i); /* the last page stays a hole */
	arm_all();
	ck_assert_int_eq(read(fd, (void *)(page_at(1) + 100), 8), 8);
	ck_assert_int_eq(read(fd, (void *)(page_at(3) + 100), 8), 8);
	struct set *set = written(0, 4, true);
	ck_assert(set->count == 2 && set->has[1] && set->has[3]);
	close(fd);
}
END_TEST

/* A read fills a hole with the zero page: still armed, still clean. Dropping a page makes it dirty. */
START_TEST(holes)
{
	NEED_HEAP(4);
	write_page(0);
	arm_all();
	ck_assert_int_eq(*(volatile char *)page_at(1), 0);
	ck_assert_uint_eq(count_written(false), 0);
	write_page(1);
	ck_assert(written(0, 4, true)->has[1]);
	ck_ok(madvise((void *)page_at(0), GU_PAGE, MADV_DONTNEED));
	struct set *set = written(0, 4, true);
	ck_assert(set->count == 1 && set->has[0]);
	ck_assert_uint_eq(count_written(false), 0);
}
END_TEST

START_TEST(memory_that_is_not_registered_is_eperm)
{
	NEED_HEAP(8);
	ck_ok(gu_uffd_unregister(heap.uffd, page_at(4), GU_PAGE));
	ck_assert_int_eq(gu_scan_arm(heap.pagemap, page_at(0), page_at(8)), -EPERM);
	ck_assert_int_eq(gu_scan_written(heap.pagemap, page_at(4), page_at(5), true, add_run, NULL), -EPERM);
	ck_ok(gu_scan_arm(heap.pagemap, page_at(5), page_at(8)));
}
END_TEST

START_TEST(a_forked_child_is_not_armed_and_the_parent_stays_so)
{
	int status = -1;
	NEED_HEAP(4);
	write_page(1);
	arm_all();
	pid_t pid = fork();
	if (pid == 0) {
		int pagemap = gu_scan_open();
		_exit(gu_scan_arm(pagemap, page_at(0), page_at(4)) == -EPERM ? 0 : 1);
	}
	ck_assert_int_eq(waitpid(pid, &status, 0), pid);
	ck_assert_int_eq(status, 0);
	ck_assert_uint_eq(count_written(false), 0);
	write_page(1);
	ck_assert(written(0, 4, true)->has[1]);
}
END_TEST

/* 0, or the number of the step that failed. The process has given up its privileges. */
static int try_unprivileged(void)
{
	int fd = open("/dev/zero", O_RDONLY);
	if (!make_heap(4))
		return 2;
	arm_all();
	if (!heap.user_mode_only)
		return 3;
	write_page(0);
	if (!written(0, 4, true)->has[0] || count_written(true))
		return 4;
	if (read(fd, (void *)page_at(2), 8) != 8 || read(fd, (void *)page_at(0), 8) != 8)
		return 5;
	return count_written(true) == 2 ? 0 : 6;
}

static int sysctl_unprivileged(void)
{
	char c = '0';
	int fd = open("/proc/sys/vm/unprivileged_userfaultfd", O_RDONLY);
	if (fd >= 0 && read(fd, &c, 1) < 0)
		c = '0';
	close(fd);
	return c - '0';
}

/* As nobody: user-mode faults only, and yet the kernel's writes into armed pages are noted. */
START_TEST(works_unprivileged)
{
	bool have = make_heap(1);
	drop_heap();
	if (!have || geteuid() != 0 || sysctl_unprivileged())
		GU_SKIP("needs async write-protect, root, and vm.unprivileged_userfaultfd=0");
	in_child_as_nobody(try_unprivileged);
}
END_TEST

/* ---- against a model ---- */

/* Fragmented patterns, so that vectors fill up in the middle; ranges that begin and end anywhere. */
static void random_round(struct test_rng *rng, bool *dirty)
{
	size_t first = test_below(rng, heap.pages), end = first + 1 + test_below(rng, heap.pages - first);
	unsigned stride = 1 + (unsigned)test_below(rng, 5);
	bool rearm = test_below(rng, 2);
	for (size_t i = test_below(rng, heap.pages); i < heap.pages; i += 1 + test_below(rng, stride)) {
		write_page(i);
		dirty[i] = true;
	}
	const struct set *set = written(first, end, rearm);
	for (size_t i = 0; i < heap.pages; i++) {
		bool inside = i >= first && i < end;
		if (set->has[i] != (inside && dirty[i]))
			ck_abort_msg("page %zu, range %zu-%zu", i, first, end);
		if (inside && rearm)
			dirty[i] = false;
	}
}

START_TEST(random_patterns_against_a_model)
{
	struct test_rng rng = test_rng(2);
	static bool dirty[MAX_PAGES];
	uint64_t stop = test_now_ns() + check_seconds() * 200000000ull;
	NEED_HEAP(MAX_PAGES);
	arm_all();
	memset(dirty, 0, sizeof(dirty));
	do
		random_round(&rng, dirty);
	while (test_now_ns() < stop);
}
END_TEST

/* Every other page: 2048 runs, eight vectors. */
START_TEST(more_runs_than_a_vector_holds)
{
	NEED_HEAP(MAX_PAGES);
	arm_all();
	for (size_t i = 0; i < MAX_PAGES; i += 2)
		write_page(i);
	const struct set *set = written(0, MAX_PAGES, true);
	ck_assert_uint_eq(set->count, MAX_PAGES / 2);
	for (size_t i = 0; i < MAX_PAGES; i++)
		if (set->has[i] != (i % 2 == 0))
			ck_abort_msg("page %zu", i);
	ck_assert_uint_eq(count_written(true), 0);
}
END_TEST

enum fill { HOLE, ZERO, CLEAN, DIRTY };

/* Runs of a kind, which are long in some rounds and short in others. */
static void fill_anew(struct test_rng *rng, enum fill *fill)
{
	ck_ok(madvise(heap.mem, MAX_PAGES * GU_PAGE, MADV_DONTNEED));
	size_t longest = (size_t)1 << test_below(rng, 10);
	for (size_t i = 0, end; i < MAX_PAGES; i = end) {
		enum fill kind = (enum fill)test_below(rng, 4);
		end = i + 1 + test_below(rng, longest);
		end = end < MAX_PAGES ? end : MAX_PAGES;
		for (size_t p = i; p < end; p++) {
			fill[p] = kind;
			if (kind >= CLEAN)
				write_page(p);
		}
	}
	ck_ok(gu_scan_arm_populated(heap.pagemap, page_at(0), page_at(MAX_PAGES)));
	for (size_t i = 0; i < MAX_PAGES; i++) {
		if (fill[i] == ZERO)
			(void)*(volatile char *)page_at(i);
		else if (fill[i] == DIRTY)
			write_page(i);
	}
}

/* Neither holes nor zero pages, whether something is armed on the way or not. */
START_TEST(populated_pages_alone)
{
	struct test_rng rng = test_rng(4);
	static enum fill fill[MAX_PAGES];
	static struct set set;
	uint64_t stop = test_now_ns() + check_seconds() * 200000000ull;
	NEED_HEAP(MAX_PAGES);
	do {
		fill_anew(&rng, fill);
		for (int how = 0; how < 3; how++) {
			bool rearm = how == 2, zeros = test_below(&rng, 2);
			size_t from = test_below(&rng, 2) ? test_below(&rng, MAX_PAGES) : 0;
			memset(&set, 0, sizeof(set));
			set.base = page_at(0);
			if (how)
				ck_ok(gu_scan_written_populated(heap.pagemap, page_at(from), page_at(MAX_PAGES), rearm, zeros, add_run, &set));
			else
				ck_ok(gu_scan_written_short(heap.pagemap, page_at(from), page_at(MAX_PAGES), zeros, add_run, &set));
			for (size_t i = 0; i < MAX_PAGES; i++)
				if (set.has[i] != (i >= from && (fill[i] == DIRTY || (zeros && fill[i] == ZERO))))
					ck_abort_msg("page %zu, of kind %d, rearm %d", i, (int)fill[i], rearm);
		}
	} while (test_now_ns() < stop);
}
END_TEST

/* ---- nothing is lost while others write ---- */

struct writer {
	uint64_t own;
	int *done; /* atomic */
};

static void *write_pages(void *data)
{
	struct writer *w = data;
	struct test_rng rng = test_rng(w->own);
	while (!__atomic_load_n(w->done, __ATOMIC_RELAXED)) {
		size_t page = test_below(&rng, heap.pages);
		__atomic_add_fetch((uint32_t *)page_at(page), 1, __ATOMIC_RELAXED);
	}
	return NULL;
}

struct copier {
	uint32_t last[256];
};

static void copy_counts(void *data, uintptr_t start, uintptr_t end)
{
	struct copier *c = data;
	for (; start < end; start += GU_PAGE)
		c->last[(start - page_at(0)) / GU_PAGE] = __atomic_load_n((uint32_t *)start, __ATOMIC_RELAXED);
}

/* A copy kept up by scans alone is the same as the memory when the writers are done. */
START_TEST(no_write_is_lost)
{
	int done = 0;
	pthread_t thread[2];
	struct writer writers[2] = {{20, &done}, {21, &done}};
	static struct copier copier;
	NEED_HEAP(256);
	memset(&copier, 0, sizeof(copier));
	arm_all();
	for (int i = 0; i < 2; i++)
		ck_ok(pthread_create(&thread[i], NULL, write_pages, &writers[i]));
	uint64_t stop = test_now_ns() + check_seconds() * 200000000ull;
	while (test_now_ns() < stop)
		ck_ok(gu_scan_written(heap.pagemap, page_at(0), page_at(256), true, copy_counts, &copier));
	__atomic_store_n(&done, 1, __ATOMIC_RELAXED);
	for (int i = 0; i < 2; i++)
		ck_ok(pthread_join(thread[i], NULL));
	ck_ok(gu_scan_written(heap.pagemap, page_at(0), page_at(256), true, copy_counts, &copier));
	for (size_t i = 0; i < 256; i++)
		ck_assert_uint_eq(copier.last[i], *(uint32_t *)page_at(i));
}
END_TEST

/* ---- present ---- */

START_TEST(present_pages)
{
	static struct set set;
	int pagemap = gu_scan_open();
	char *p = map_pages(8);
	memset(&set, 0, sizeof(set));
	set.base = (uintptr_t)p;
	p[1 * GU_PAGE] = 1;
	p[2 * GU_PAGE] = 1;
	ck_assert_int_eq(*(volatile char *)(p + 5 * GU_PAGE), 0); /* the shared zero page */
	int result = gu_scan_present(pagemap, set.base, set.base + 8 * GU_PAGE, true, add_run, &set);
	if (result == -ENOTTY || result == -EINVAL || result == -EBADF)
		GU_LACKS("async", "no PAGEMAP_SCAN: %d", result);
	ck_ok(result);
	ck_assert(set.count == 2 && set.has[1] && set.has[2]);
	close(pagemap);
	munmap(p, 8 * GU_PAGE);
}
END_TEST

static size_t count_present(int pagemap, char *p, bool anon_only)
{
	static struct set set;
	memset(&set, 0, sizeof(set));
	set.base = (uintptr_t)p;
	int result = gu_scan_present(pagemap, set.base, set.base + 4 * GU_PAGE, anon_only, add_run, &set);
	return result ? SIZE_MAX : set.count;
}

START_TEST(pages_of_files_can_be_left_out)
{
	int pagemap = gu_scan_open(), fd = memfd_create("pages", 0);
	ck_ok(ftruncate(fd, 4 * (off_t)GU_PAGE));
	char *p = mmap(NULL, 4 * GU_PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	memset(p, 1, 4 * GU_PAGE);
	if (count_present(pagemap, p, false) == SIZE_MAX)
		GU_LACKS("async", "no PAGEMAP_SCAN");
	ck_assert_uint_eq(count_present(pagemap, p, false), 4);
	ck_assert_uint_eq(count_present(pagemap, p, true), 0);
	char *q = mmap(NULL, 4 * GU_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
	q[0] = 2; /* now a copy of its own */
	ck_assert_uint_eq(count_present(pagemap, q, true), 1);
	munmap(p, 4 * GU_PAGE);
	munmap(q, 4 * GU_PAGE);
	close(fd);
	close(pagemap);
}
END_TEST

/* ---- an invented kernel ---- */

static struct {
	uint64_t step;      /* bytes a call; 0: what is asked */
	unsigned calls;
	uint64_t flags, longest;
	uint64_t end;       /* of the last call: the next begins there */
	int fail_at, error; /* the call that fails */
	bool stuck, overfull;
} kernel;

static long fake_scan(int fd, unsigned long request, void *data)
{
	struct gu_pm_scan_arg *arg = data;
	struct gu_page_region *vec = (void *)(uintptr_t)arg->vec;
	ck_assert(fd == 5 && request == GU_PAGEMAP_SCAN && arg->size == sizeof(*arg));
	ck_assert(kernel.calls == 0 || arg->start == kernel.end);
	kernel.calls++;
	kernel.flags = arg->flags;
	kernel.longest = gu_max(kernel.longest, arg->end - arg->start);
	if ((int)kernel.calls == kernel.fail_at)
		return kernel.error;
	uint64_t n = kernel.step ? gu_min(kernel.step, arg->end - arg->start) : arg->end - arg->start;
	arg->walk_end = kernel.end = kernel.stuck ? arg->start : arg->start + n;
	if (kernel.overfull)
		return (long)arg->vec_len + 1;
	if (!arg->vec_len)
		return 0;
	vec[0] = (struct gu_page_region){arg->start, kernel.end, arg->return_mask};
	return 1;
}

static void add_bytes(void *data, uintptr_t start, uintptr_t end) { *(uint64_t *)data += end - start; }

static void invent_kernel(uint64_t step)
{
	fake_install();
	fake_os.ioctl = fake_scan;
	memset(&kernel, 0, sizeof(kernel));
	kernel.step = step;
}

START_TEST(long_ranges_are_walked_in_chunks)
{
	uint64_t len = 5 * GU_SCAN_CHUNK + 3 * GU_PAGE, sum = 0;
	invent_kernel(0);
	ck_ok(gu_scan_written(5, GU_PAGE, GU_PAGE + len, false, add_bytes, &sum));
	ck_assert_uint_eq(sum, len);
	ck_assert_uint_eq(kernel.calls, 6);
	ck_assert_uint_eq(kernel.longest, GU_SCAN_CHUNK);
	ck_assert_uint_eq(kernel.flags, 0);
	invent_kernel(0);
	ck_ok(gu_scan_arm(5, GU_PAGE, GU_PAGE + len));
	ck_assert_uint_eq(kernel.calls, 6);
	ck_assert_uint_eq(kernel.flags, GU_PM_SCAN_WP_MATCHING | GU_PM_SCAN_CHECK_WPASYNC);
}
END_TEST

START_TEST(walks_that_stop_half_way_go_on)
{
	uint64_t sum = 0;
	invent_kernel(7 * GU_PAGE);
	ck_ok(gu_scan_written(5, GU_PAGE, 101 * GU_PAGE, true, add_bytes, &sum));
	ck_assert_uint_eq(sum, 100 * GU_PAGE);
	ck_assert_uint_eq(kernel.calls, 15);
	invent_kernel(7 * GU_PAGE);
	ck_ok(gu_scan_arm(5, GU_PAGE, 101 * GU_PAGE));
	ck_assert_uint_eq(kernel.calls, 15);
}
END_TEST

START_TEST(errors_come_back_after_what_was_visited)
{
	uint64_t sum = 0;
	invent_kernel(GU_PAGE);
	kernel.fail_at = 3;
	kernel.error = -ENOMEM;
	ck_assert_int_eq(gu_scan_written(5, GU_PAGE, 10 * GU_PAGE, true, add_bytes, &sum), -ENOMEM);
	ck_assert_uint_eq(sum, 2 * GU_PAGE);
	invent_kernel(GU_PAGE);
	kernel.fail_at = 2;
	kernel.error = -EPERM;
	ck_assert_int_eq(gu_scan_arm(5, GU_PAGE, 10 * GU_PAGE), -EPERM);
}
END_TEST

START_TEST(second_looks_that_fail)
{
	uint64_t sum = 0;
	NEED_HEAP(10);
	for (size_t i = 0; i < 9; i++)
		write_page(i);
	fake_install();
	fake_fail_ioctl(GU_PAGEMAP_SCAN, 2, -ENOMEM);
	ck_assert_int_eq(gu_scan_written_short(heap.pagemap, page_at(0), page_at(10), false, add_bytes, &sum), -ENOMEM);
	ck_assert_uint_eq(sum, 0);
	fake_clear();
	ck_ok(gu_scan_written_short(heap.pagemap, page_at(0), page_at(10), false, add_bytes, &sum));
	ck_assert_uint_eq(sum, 9 * GU_PAGE);
}
END_TEST

START_TEST(nonsense_is_no_endless_loop)
{
	uint64_t sum = 0;
	invent_kernel(0);
	kernel.stuck = true;
	ck_assert_int_eq(gu_scan_arm(5, GU_PAGE, 10 * GU_PAGE), -EIO);
	invent_kernel(0);
	kernel.overfull = true;
	ck_assert_int_eq(gu_scan_present(5, GU_PAGE, 10 * GU_PAGE, true, add_bytes, &sum), -EIO);
	ck_assert_uint_eq(sum, 0);
}
END_TEST

static Suite *make_suite(void)
{
	Suite *suite = suite_create("scan");
	TCase *real = test_case(suite, "real"), *model = test_case(suite, "model"), *fakes = test_case(suite, "fake");
	tcase_add_checked_fixture(real, NULL, drop_heap);
	tcase_add_test(real, first_writes_are_noted_and_pages_rearmed);
	tcase_add_test(real, only_the_range_is_rearmed);
	tcase_add_test(real, the_kernels_writes_are_noted);
	tcase_add_test(real, holes);
	tcase_add_test(real, memory_that_is_not_registered_is_eperm);
	tcase_add_test(real, a_forked_child_is_not_armed_and_the_parent_stays_so);
	tcase_add_test(real, works_unprivileged);
	tcase_add_test(real, present_pages);
	tcase_add_test(real, pages_of_files_can_be_left_out);
	tcase_add_checked_fixture(model, NULL, drop_heap);
	tcase_add_test(model, random_patterns_against_a_model);
	tcase_add_test(model, more_runs_than_a_vector_holds);
	tcase_add_test(model, populated_pages_alone);
	tcase_add_test(model, no_write_is_lost);
	tcase_add_checked_fixture(fakes, NULL, drop_heap);
	tcase_add_test(fakes, long_ranges_are_walked_in_chunks);
	tcase_add_test(fakes, walks_that_stop_half_way_go_on);
	tcase_add_test(fakes, errors_come_back_after_what_was_visited);
	tcase_add_test(fakes, second_looks_that_fail);
	tcase_add_test(fakes, nonsense_is_no_endless_loop);
	return suite;
}

TEST_MAIN(make_suite)
