/* SPDX-License-Identifier: MIT */
/*
 * test_watch.c - the watch interface, on memory of each kind: what is reported to whom, what mappings may
 * do meanwhile, its errors. tests/test_watch_world.c has fork, events, load and the kernel's own doings.
 */
#include "watch.h"

#include <sys/syscall.h>

#include "sys/os.h"
#include "sys/uffd.h"

/* ---- what is reported ---- */

START_TEST(begins_clean_and_tells_writes)
{
	NEED_KIND(_i, 6);
	begin(watch[0]);
	ck_assert_uint_eq(collected(watch[0])->count, 0);
	touch(1);
	touch(1);
	touch(4);
	ck_assert(is_set(peeked(watch[0]), 1, 4));
	ck_assert(is_set(peeked(watch[0]), 1, 4));
	ck_assert(is_set(collected(watch[0]), 1, 4));
	ck_assert_uint_eq(peeked(watch[0])->count, 0);
	touch(4);
	ck_assert(is_set(collected(watch[0]), 4));
	ck_assert_uint_eq(collected(watch[0])->count, 0);
	struct gcuffd_watch_stats s = watch_stats(watch[0]);
	ck_assert_uint_eq(s.watched_bytes, 6 * mem.page);
	ck_assert_uint_eq(s.reported_pages, 3 * (mem.page / GU_PAGE));
	ck_assert(s.found_pages >= s.reported_pages && s.ranges == 1);
	checked_table();
	ck_ok(gcuffd_watch_destroy(watch[0]));
	touch(0);
}
END_TEST

/* A huge page that was not there is filled by reading, and can't be told from a written one. */
START_TEST(reading_is_no_writing)
{
	NEED_KIND(_i, 6);
	begin(watch[0]);
	for (size_t i = 0; i < 6; i++)
		(void)look(i);
	struct set *set = collected(watch[0]);
	if (mem.kind == HUGE)
		ck_assert(is_set(set, 3, 4, 5));
	else
		ck_assert_uint_eq(set->count, 0);
	touch(5);
	ck_assert(is_set(collected(watch[0]), 5));
}
END_TEST

START_TEST(parts_of_the_range)
{
	struct gcuffd_run runs[4];
	size_t count;
	void *next;
	NEED_KIND(_i, 6);
	begin(watch[0]);
	for (size_t i = 0; i < 6; i++)
		touch(i);
	ck_ok(gcuffd_watch_collect(watch[0], page_at(1), 2 * mem.page, runs, 4, &count, &next));
	ck_assert(count == 1 && runs[0].start == page_at(1) && runs[0].end == page_at(3) && !next);
	ck_assert(is_set(collected(watch[0]), 0, 3, 4, 5));
}
END_TEST

START_TEST(each_watcher_has_its_epoch)
{
	NEED_KIND(_i, 6);
	ck_ok(make_watchers(3, 0));
	begin(watch[0]);
	touch(0);
	begin(watch[1]);
	touch(1);
	ck_assert(is_set(collected(watch[0]), 0, 1));
	ck_ok(begin_on(watch[2], 1, 5));
	touch(2);
	ck_assert(is_set(collected(watch[2]), 2));
	touch(5);
	touch(3);
	ck_assert(is_set(collected(watch[1]), 1, 2, 3, 5));
	ck_assert_uint_eq(collected(watch[1])->count, 0);
	ck_assert(is_set(collected(watch[2]), 3));
	ck_assert(is_set(peeked(watch[0]), 2, 3, 5));
	ck_ok(gcuffd_watch_end(watch[1], mem.at, SIZE_MAX));
	touch(4);
	ck_assert(is_set(collected(watch[0]), 2, 3, 4, 5));
	ck_ok(gcuffd_watch_destroy(watch[0]));
	touch(1);
	ck_assert(is_set(collected(watch[2]), 1, 4));
	checked_table();
}
END_TEST

START_TEST(a_full_array_resets_what_is_in_it)
{
	struct gcuffd_run runs[2];
	size_t count;
	void *next;
	NEED_KIND(_i, 7);
	begin(watch[0]);
	for (size_t i = 0; i < 7; i += 2)
		touch(i);
	ck_ok(gcuffd_watch_collect(watch[0], mem.at, 7 * mem.page, runs, 2, &count, &next));
	ck_assert(count == 2 && runs[0].start == page_at(0) && runs[1].start == page_at(2) && next == page_at(4));
	touch(0);
	ck_ok(gcuffd_watch_collect(watch[0], next, SIZE_MAX, runs, 1, &count, &next));
	ck_assert(count == 1 && runs[0].start == page_at(4) && runs[0].end == page_at(5) && next == page_at(6));
	ck_assert(is_set(collected(watch[0]), 0, 6));
	touch(6);
	touch(5);
	ck_ok(gcuffd_watch_peek(watch[0], mem.at, SIZE_MAX, runs, 1, &count, &next));
	ck_assert(count == 1 && runs[0].start == page_at(5) && !next);
	ck_assert(is_set(collected(watch[0]), 5, 6));
}
END_TEST

START_TEST(more_runs_than_a_scan_holds)
{
	NEED_KIND(_i, MAX_PAGES);
	begin(watch[0]);
	for (size_t i = 0; i < MAX_PAGES; i += 2)
		touch(i);
	ck_assert_uint_eq(peeked(watch[0])->count, MAX_PAGES / 2);
	struct set *set = collected(watch[0]);
	for (size_t i = 0; i < MAX_PAGES; i++)
		ck_assert_int_eq(set->has[i], i % 2 == 0);
	ck_assert_uint_eq(collected(watch[0])->count, 0);
}
END_TEST

/* ---- empty pages ---- */

START_TEST(dropped_pages_count_as_written)
{
	NEED_KIND(_i, 8);
	begin(watch[0]);
	ck_ok(madvise(page_at(1), mem.page, MADV_DONTNEED));
	ck_assert_int_eq(look(1), is_private() ? 0 : 1);
	if (mem.kind == HUGE) { /* a page filled anew at once is not told: see doc/kernel.md */
		ck_ok(madvise(page_at(2), mem.page, MADV_DONTNEED));
		ck_assert(is_set(collected(watch[0]), 2));
	} else if (is_private()) {
		ck_assert(is_set(collected(watch[0]), 1));
	} else {
		ck_assert_uint_eq(collected(watch[0])->count, 0);
	}
	ck_ok(madvise(page_at(0), 4 * mem.page, MADV_DONTNEED));
	ck_assert(!is_private() || (collected(watch[0])->count && collected(watch[0])->count < 8));
	ck_assert_uint_eq(collected(watch[0])->count, 0);
	touch(0);
	touch(6);
	ck_assert(is_set(collected(watch[0]), 0, 6));
}
END_TEST

/* Written and dropped again between two looks: precise ones know, cheap ones see what was empty and is. */
START_TEST(precise_and_cheap)
{
	NEED_KIND(_i, 8);
	begin(watch[0]);
	touch(7);
	ck_ok(madvise(page_at(7), mem.page, MADV_DONTNEED));
	struct set *set = collected(watch[0]);
	if (mem.kind == PRECISE)
		ck_assert(is_set(set, 7));
	else
		ck_assert_uint_eq(set->count, 0);
	ck_assert_uint_eq(watch_stats(watch[0]).table_bytes, mem.kind == PRECISE ? 64 : 0);
}
END_TEST

/* A precise watcher that joins arms empty pages: to the other they may look written, once. */
START_TEST(precise_joins_cheap)
{
	NEED_KIND(ANON, 8);
	ck_ok(make_watchers(2, 0));
	begin(watch[0]);
	touch(1);
	mem.flags = GCUFFD_WATCH_PRECISE;
	ck_ok(begin_on(watch[1], 2, 8));
	touch(5);
	ck_ok(madvise(page_at(5), mem.page, MADV_DONTNEED));
	ck_assert(is_set(collected(watch[1]), 5));
	struct set *set = collected(watch[0]);
	ck_assert(set->has[1] && set->has[5] && !set->has[0] && !set->has[2]);
	ck_assert_uint_eq(collected(watch[0])->count, 0);
	touch(6);
	ck_assert(is_set(collected(watch[0]), 6));
	ck_assert(is_set(collected(watch[1]), 6));
	ck_ok(gcuffd_watch_destroy(watch[1]));
	ck_ok(madvise(page_at(6), mem.page, MADV_DONTNEED));
	ck_assert(is_set(collected(watch[0]), 6));
	ck_assert_uint_eq(collected(watch[0])->count, 0);
}
END_TEST

/* Page tables and whole 2 MiB that go. */
static void drop(size_t i, size_t n) { ck_ok(madvise(page_at(i), n * mem.page, MADV_DONTNEED)); }

/* Where all pages were there a quicker scan is used, up to the first that was not. */
START_TEST(dropped_among_many)
{
	NEED_KIND(ANON, 1024);
	begin(watch[0]);
	drop(100, 1);
	ck_assert(is_set(collected(watch[0]), 100));
	(void)look(100);
	ck_assert_uint_eq(collected(watch[0])->count, 0);
	touch(100);
	touch(511);
	touch(512);
	drop(3, 2);
	touch(3);
	(void)look(4);
	ck_assert(is_set(peeked(watch[0]), 3, 4, 100, 511, 512));
	ck_assert(is_set(collected(watch[0]), 3, 4, 100, 511, 512));
	ck_assert_uint_eq(collected(watch[0])->count, 0);
	drop(0, 1024);
	struct set *set = collected(watch[0]);
	ck_assert(set->count == 513 && set->has[0] && set->has[512]);
	ck_assert_uint_eq(collected(watch[0])->count, 0);
}
END_TEST

/* What is empty in a page table that has pages may be armed with them: nothing is told of it, until it is written. */
START_TEST(populated_in_part)
{
	NEED_KIND(ANON, 1024);
	for (size_t i = 0; i < 1024; i++)
		touch(i);
	for (size_t i = 1; i < 1024; i += 3)
		drop(i, 1);
	drop(400, 300);
	begin(watch[0]);
	for (size_t i = 1; i < 1024; i += 9)
		(void)look(i);
	ck_assert_uint_eq(peeked(watch[0])->count, 0);
	ck_assert_uint_eq(collected(watch[0])->count, 0);
	touch(1), touch(4), touch(500), touch(699), touch(1022), touch(1023);
	ck_assert(is_set(collected(watch[0]), 1, 4, 500, 699, 1022, 1023));
	drop(0, 2), drop(399, 1), drop(1023, 1);
	ck_assert(is_set(collected(watch[0]), 0, 1, 399, 1023));
	ck_assert_uint_eq(collected(watch[0])->count, 0);
}
END_TEST

/* The scan writes straight into the report, unless somebody else is to be told too. */
START_TEST(reports_without_a_bitmap)
{
	NEED_KIND(_i, 8);
	begin(watch[0]);
	struct gcuffd_run runs[2];
	size_t count;
	void *next;
	touch(0);
	touch(2);
	touch(3);
	ck_ok(gcuffd_watch_collect(watch[0], mem.at, 8 * mem.page, runs, 1, &count, &next));
	ck_assert(count == 1 && next == page_at(2));
	touch(0);
	ck_ok(gcuffd_watch_create(0, &watch[1]));
	begin(watch[1]);
	touch(3);
	ck_assert(is_set(collected(watch[0]), 0, 2, 3));
	ck_assert(is_set(collected(watch[1]), 3));
	ck_ok(gcuffd_watch_destroy(watch[1]));
	touch(1);
	touch(2);
	ck_ok(gcuffd_watch_pin(watch[0], page_at(2), mem.page));
	ck_assert(is_set(collected(watch[0]), 1, 2));
}
END_TEST

static char *replace_at;

static long replacing_ioctl(int fd, unsigned long request, void *arg)
{
	const struct gu_pm_scan_arg *scan = arg;
	if (replace_at && request == GU_PAGEMAP_SCAN && scan->flags & GU_PM_SCAN_WP_MATCHING) {
		void *p = mmap(replace_at, mem.page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
		ck_assert_ptr_eq(p, replace_at);
		replace_at = NULL;
	}
	return gu_os_linux.ioctl(fd, request, arg);
}

/* The scan fails there and has armed pages that it does not tell of. */
START_TEST(replaced_during_the_scan)
{
	struct gu_os os = gu_os_linux;
	os.ioctl = replacing_ioctl;
	NEED_KIND(_i, 8);
	begin(watch[0]);
	touch(1);
	replace_at = page_at(3);
	gu_os_set(&os);
	struct set set = *collected(watch[0]);
	gu_os_set(NULL);
	ck_assert(!replace_at && set.has[1]);
	ck_assert(set.has[3] || is_set(collected(watch[0]), 3)); /* a scan in parts may not come to it */
	ck_assert_uint_eq(collected(watch[0])->count, 0);
}
END_TEST

START_TEST(large_and_sparse)
{
	size_t len = (size_t)64 << 30, count;
	struct gcuffd_run run;
	void *next;
	NEED_WATCH();
	ck_ok(make_watchers(1, 0));
	char *p = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	ck_assert_ptr_ne(p, MAP_FAILED);
	ck_ok(madvise(p, len, MADV_NOHUGEPAGE));
	p[len / 2] = 1;
	size_t before = status_kb("VmPTE:");
	ck_ok(gcuffd_watch_begin(watch[0], p, len, 0));
	p[len / 2] = 2;
	p[len - 1] = 1;
	ck_ok(gcuffd_watch_collect(watch[0], p, len, &run, 1, &count, &next));
	ck_assert(count == 1 && run.start == p + len / 2 && next == p + len - GU_PAGE);
	ck_ok(gcuffd_watch_collect(watch[0], next, SIZE_MAX, &run, 1, &count, &next));
	ck_assert(count == 1 && run.end == p + len && !next);
	ck_ok(madvise(p + len / 2, 4 << 20, MADV_DONTNEED));
	ck_ok(gcuffd_watch_collect(watch[0], p, len, &run, 1, &count, &next));
	ck_assert(count == 1 && run.start == p + len / 2 && run.end == p + len / 2 + GU_PAGE);
	ck_assert_msg(status_kb("VmPTE:") - before < 1024, "page tables grew by %zu kB", status_kb("VmPTE:") - before);
	ck_ok(gcuffd_watch_end(watch[0], p, len));
	ck_ok(munmap(p, len));
}
END_TEST

/* ---- mappings that change under it ---- */

START_TEST(protection_comes_and_goes)
{
	NEED_KIND(_i, 6);
	begin(watch[0]);
	touch(1);
	ck_ok(mprotect(mem.at, 6 * mem.page, PROT_NONE));
	ck_assert(is_set(peeked(watch[0]), 1));
	ck_ok(mprotect(mem.at, 6 * mem.page, PROT_READ | PROT_WRITE));
	touch(2);
	ck_assert(is_set(collected(watch[0]), 1, 2));
	ck_ok(mprotect(page_at(2), mem.page, PROT_READ));
	ck_ok(mprotect(page_at(2), mem.page, PROT_READ | PROT_WRITE));
	ck_assert_uint_eq(collected(watch[0])->count, 0);
	touch(2);
	ck_assert(is_set(collected(watch[0]), 2));
}
END_TEST

START_TEST(unmapped_parts_end)
{
	struct gcuffd_run runs[4];
	size_t count;
	void *next;
	NEED_KIND(_i, 6);
	begin(watch[0]);
	for (size_t i = 0; i < 6; i++)
		touch(i);
	ck_ok(munmap(page_at(2), 2 * mem.page));
	ck_assert(is_set(collected(watch[0]), 0, 1, 4, 5));
	ck_assert_uint_eq(watch_stats(watch[0]).ended_bytes, 2 * mem.page);
	ck_assert_uint_eq(watch_stats(watch[0]).ranges, 2);
	ck_assert_int_eq(gcuffd_watch_collect(watch[0], page_at(2), 2 * mem.page, runs, 4, &count, &next), -ENOENT);
	touch(4);
	ck_assert(is_set(collected(watch[0]), 4));
	ck_ok(munmap(page_at(4), 2 * mem.page));
	ck_ok(munmap(page_at(0), 2 * mem.page));
	ck_assert_int_eq(gcuffd_watch_peek(watch[0], NULL, SIZE_MAX, runs, 4, &count, &next), -ENOENT);
	ck_assert_uint_eq(watch_stats(watch[0]).watched_bytes, 0);
	checked_table();
}
END_TEST

/* Whatever is mapped there at the next look is watched, and counts as written. */
START_TEST(mapped_over)
{
	NEED_KIND(_i, 6);
	ck_ok(make_watchers(2, 0));
	begin(watch[0]);
	ck_ok(begin_on(watch[1], 3, 6));
	touch(0);
	char *p = mmap(page_at(2), 2 * mem.page, PROT_READ | PROT_WRITE, map_flags(mem.kind) | MAP_FIXED, mem.fd, 2 * (off_t)mem.page);
	ck_assert_ptr_eq(p, page_at(2));
	ck_assert(is_set(collected(watch[0]), 0, 2, 3));
	ck_assert_uint_eq(watch_stats(watch[0]).replaced_bytes, 2 * mem.page);
	ck_assert(is_set(collected(watch[1]), 3));
	ck_assert_uint_eq(collected(watch[0])->count, 0);
	touch(3);
	touch(5);
	ck_assert(is_set(collected(watch[0]), 3, 5));
	ck_assert(is_set(collected(watch[1]), 3, 5));
	checked_table();
}
END_TEST

/* Of another kind: from then on its rules hold. */
START_TEST(mapped_over_by_another_kind)
{
	NEED_KIND(_i, 8);
	if (is_huge())
		GU_SKIP("pages of other sizes");
	begin(watch[0]);
	for (enum memory_kind kind = ANON; kind < HUGE; kind++) {
		int fd = make_file(kind, 8 * GU_PAGE);
		ck_assert_ptr_eq(mmap(page_at(2), 4 * GU_PAGE, PROT_READ | PROT_WRITE, map_flags(kind) | MAP_FIXED, fd, 0), page_at(2));
		ck_assert(is_set(collected(watch[0]), 2, 3, 4, 5));
		touch(3);
		ck_assert(is_set(collected(watch[0]), 3));
		ck_ok(madvise(page_at(3), GU_PAGE, MADV_DONTNEED));
		ck_assert_int_eq(collected(watch[0])->has[3], kind < SHMEM);
		ck_assert_uint_eq(collected(watch[0])->count, 0);
		close(fd);
		checked_table();
	}
}
END_TEST

START_TEST(unmapped_and_mapped_again)
{
	NEED_KIND(_i, 6);
	begin(watch[0]);
	ck_ok(munmap(mem.at, 6 * mem.page));
	ck_assert_ptr_eq(mmap(mem.at, 6 * mem.page, PROT_READ | PROT_WRITE, map_flags(mem.kind) | MAP_FIXED, mem.fd, 0), mem.at);
	ck_assert_uint_eq(collected(watch[0])->count, 6);
	ck_assert_uint_eq(collected(watch[0])->count, 0);
	touch(5);
	ck_assert(is_set(collected(watch[0]), 5));
}
END_TEST

START_TEST(grows_by_beginning)
{
	NEED_KIND(_i, 8);
	ck_ok(begin_on(watch[0], 2, 4));
	touch(4);
	ck_ok(begin_on(watch[0], 4, 6));
	ck_assert_int_eq(begin_on(watch[0], 0, 3), -EEXIST);
	ck_ok(begin_on(watch[0], 0, 2));
	touch(1);
	touch(3);
	touch(5);
	ck_assert(is_set(collected(watch[0]), 1, 3, 5));
	touch(2);
	touch(3);
	ck_ok(gcuffd_watch_end(watch[0], page_at(1), 2 * mem.page));
	ck_assert(is_set(collected(watch[0]), 3));
	ck_assert_int_eq(gcuffd_watch_end(watch[0], page_at(1), 2 * mem.page), -ENOENT);
	ck_ok(begin_on(watch[0], 1, 3));
	touch(2);
	ck_assert(is_set(collected(watch[0]), 2));
	checked_table();
}
END_TEST

/* Without events what is moved away has ended, and is not registered where it went. */
START_TEST(moved_without_events)
{
	struct gcuffd_run run;
	size_t count;
	void *next;
	NEED_KIND(_i, 4);
	begin(watch[0]);
	touch(0);
	char *to = reserve(4 * mem.page);
	char *p = mremap(mem.at, 4 * mem.page, 4 * mem.page, MREMAP_MAYMOVE | MREMAP_FIXED, to);
	if (p == MAP_FAILED && is_huge())
		GU_SKIP("huge pages can't be moved here");
	ck_assert_ptr_eq(p, to);
	ck_assert_int_eq(gcuffd_watch_collect(watch[0], NULL, SIZE_MAX, &run, 1, &count, &next), -ENOENT);
	mem.at = to;
	begin(watch[0]);
	touch(2);
	ck_assert(is_set(collected(watch[0]), 2));
}
END_TEST

/* ---- pins ---- */

START_TEST(pinned_pages_are_written)
{
	NEED_KIND(_i, 6);
	ck_ok(make_watchers(2, 0));
	begin(watch[0]);
	begin(watch[1]);
	ck_ok(gcuffd_watch_pin(watch[0], page_at(1) + 100, mem.page));
	ck_assert(is_set(collected(watch[0]), 1, 2));
	ck_assert(is_set(peeked(watch[0]), 1, 2));
	touch(5);
	ck_assert(is_set(collected(watch[0]), 1, 2, 5));
	ck_assert(is_set(collected(watch[1]), 5));
	ck_assert_int_eq(gcuffd_watch_unpin(watch[0], page_at(1), mem.page), -ENOENT);
	ck_assert_uint_ge(watch_stats(watch[0]).pinned_bytes, mem.page);
	ck_ok(gcuffd_watch_unpin(watch[0], page_at(1) + 100, mem.page));
	ck_assert(is_set(collected(watch[0]), 1, 2));
	ck_assert_uint_eq(collected(watch[0])->count, 0);
	ck_assert_uint_eq(watch_stats(watch[0]).pinned_bytes, 0);
}
END_TEST

/* ---- as on Windows ---- */

START_TEST(write_watch)
{
	void *addresses[4];
	size_t count = 4, granularity = 0;
	NEED_KIND(_i, 6);
	begin(watch[0]);
	touch(1);
	touch(2);
	touch(4);
	ck_ok(gcuffd_write_watch_get(watch[0], 0, mem.at + 1, 6 * mem.page - 2, addresses, &count, &granularity));
	ck_assert(count == 3 && addresses[0] == page_at(1) && addresses[1] == page_at(2) && addresses[2] == page_at(4));
	ck_assert_uint_eq(granularity, mem.page);
	count = 2;
	ck_ok(gcuffd_write_watch_get(watch[0], GCUFFD_WRITE_WATCH_RESET, mem.at, 6 * mem.page, addresses, &count, &granularity));
	ck_assert(count == 2 && addresses[1] == page_at(2));
	ck_assert(is_set(peeked(watch[0]), 4));
	touch(0);
	ck_ok(gcuffd_write_watch_reset(watch[0], page_at(2), 4 * mem.page));
	count = 4;
	ck_ok(gcuffd_write_watch_get(watch[0], GCUFFD_WRITE_WATCH_RESET, mem.at, 6 * mem.page, addresses, &count, &granularity));
	ck_assert(count == 1 && addresses[0] == page_at(0));
	count = 4;
	ck_assert_int_eq(gcuffd_write_watch_get(watch[0], 2, mem.at, mem.page, addresses, &count, &granularity), -EINVAL);
	count = 4;
	ck_assert_int_eq(gcuffd_write_watch_get(watch[0], 0, mem.at, 7 * mem.page, addresses, &count, &granularity), -ENOENT);
	ck_assert_int_eq(gcuffd_write_watch_reset(watch[0], mem.at - mem.page, 2 * mem.page), -ENOENT);
	ck_assert_int_eq(gcuffd_write_watch_reset(watch[0], mem.at, 0), -EINVAL);
}
END_TEST

/* ---- what is refused ---- */

START_TEST(bad_arguments)
{
	struct gcuffd_run run;
	struct gcuffd_watch *w = (void *)1;
	struct gcuffd_watch_stats stats = {.size = 8};
	size_t count;
	void *next;
	NEED_KIND(ANON, 4);
	ck_assert_int_eq(gcuffd_watch_create(2, &w), -EINVAL);
	ck_assert_ptr_eq(w, (void *)1);
	ck_assert_int_eq(gcuffd_watch_begin(watch[0], mem.at, 0, 0), -EINVAL);
	ck_assert_int_eq(gcuffd_watch_begin(watch[0], mem.at + 1, GU_PAGE, 0), -EINVAL);
	ck_assert_int_eq(gcuffd_watch_begin(watch[0], mem.at, GU_PAGE + 1, 0), -EINVAL);
	ck_assert_int_eq(gcuffd_watch_begin(watch[0], mem.at, SIZE_MAX - 4095, 0), -EINVAL);
	ck_assert_int_eq(gcuffd_watch_begin(watch[0], mem.at, GU_PAGE, 8), -EINVAL);
	ck_assert_int_eq(gcuffd_watch_begin(watch[0], mem.at, GU_PAGE, GCUFFD_WATCH_EVENTS), -EINVAL);
	char *hole = reserve(GU_PAGE);
	ck_ok(munmap(hole, GU_PAGE));
	ck_assert_int_eq(gcuffd_watch_begin(watch[0], hole - GU_PAGE, 3 * GU_PAGE, 0), -ENOENT);
	ck_assert_int_eq(gcuffd_watch_begin(watch[0], hole, GU_PAGE, 0), -ENOENT);
	ck_assert_int_eq(gcuffd_watch_begin(watch[0], (void *)GU_PAGE, GU_PAGE, 0), -ENOENT);
	ck_assert_int_eq(gcuffd_watch_end(watch[0], mem.at, 4 * GU_PAGE), -ENOENT);
	ck_assert_int_eq(gcuffd_watch_collect(watch[0], mem.at, GU_PAGE, &run, 1, &count, &next), -ENOENT);
	begin(watch[0]);
	ck_assert_int_eq(begin_on(watch[0], 3, 4), -EEXIST);
	ck_assert_int_eq(gcuffd_watch_collect(watch[0], mem.at, GU_PAGE, &run, 0, &count, &next), -EINVAL);
	ck_assert_int_eq(gcuffd_watch_collect(watch[0], mem.at + 8, SIZE_MAX, &run, 1, &count, &next), -EINVAL);
	ck_assert_int_eq(gcuffd_watch_end(watch[0], mem.at + 8, GU_PAGE), -EINVAL);
	ck_assert_int_eq(gcuffd_watch_pin(watch[0], mem.at, 0), -EINVAL);
	ck_assert_int_eq(gcuffd_watch_unpin(watch[0], mem.at, 1), -ENOENT);
	ck_assert_int_eq(gcuffd_watch_stats(watch[0], &stats), -EINVAL);
	errno = 1234;
	ck_assert_uint_eq(collected(watch[0])->count, 0);
	ck_assert_int_eq(errno, 1234);
	ck_assert_uint_eq(watch_stats(watch[0]).watched_bytes, 4 * GU_PAGE);
}
END_TEST

START_TEST(parts_of_huge_pages)
{
	NEED_KIND(_i, 4);
	ck_assert_int_eq(gcuffd_watch_begin(watch[0], mem.at, GU_PAGE, 0), -EINVAL);
	ck_assert_int_eq(gcuffd_watch_begin(watch[0], mem.at, mem.page + GU_PAGE, 0), -EINVAL);
	begin(watch[0]);
	ck_assert_int_eq(gcuffd_watch_end(watch[0], mem.at, GU_PAGE), -EINVAL);
	touch(1);
	struct gcuffd_run run;
	size_t count;
	void *next;
	ck_ok(gcuffd_watch_collect(watch[0], page_at(1) + 8 * GU_PAGE, GU_PAGE, &run, 1, &count, &next));
	ck_assert(count == 1 && run.start == page_at(1) && run.end == page_at(2));
}
END_TEST

/* What another userfaultfd has can't be watched, nor looked at once it took a watched range's place. */
START_TEST(others_have_it)
{
	struct gcuffd_run run;
	size_t count;
	void *next;
	NEED_KIND(_i, 6);
	int other = gu_uffd_open(GU_UFFD_FEATURE_WP_ASYNC, NULL);
	ck_assert_int_ge(other, 0);
	ck_ok(gu_uffd_register(other, (uintptr_t)page_at(2), mem.page, GU_UFFD_REGISTER_WP, NULL));
	ck_assert_int_eq(begin_on(watch[0], 0, 6), -EBUSY);
	ck_assert_uint_eq(watch_stats(watch[0]).watched_bytes, 0);
	ck_ok(begin_on(watch[0], 3, 6));
	ck_ok(begin_on(watch[0], 0, 2));
	ck_ok(gu_uffd_unregister(other, (uintptr_t)page_at(2), mem.page));
	ck_ok(gcuffd_watch_end(watch[0], NULL, SIZE_MAX));
	begin(watch[0]);
	ck_assert_ptr_eq(mmap(page_at(2), mem.page, PROT_READ | PROT_WRITE, map_flags(mem.kind) | MAP_FIXED, mem.fd, 0), page_at(2));
	ck_ok(gu_uffd_register(other, (uintptr_t)page_at(2), mem.page, GU_UFFD_REGISTER_WP, NULL));
	touch(0);
	touch(4);
	ck_assert_int_eq(gcuffd_watch_collect(watch[0], mem.at, SIZE_MAX, &run, 1, &count, &next), -EBUSY);
	ck_assert(count == 1 && run.start == page_at(0) && next == page_at(2));
	ck_ok(gcuffd_watch_collect(watch[0], page_at(3), SIZE_MAX, &run, 1, &count, &next));
	ck_assert(count == 1 && run.start == page_at(4) && !next);
	ck_ok(gcuffd_watch_end(watch[0], page_at(2), mem.page));
	ck_assert_int_eq(gu_uffd_writeprotect(other, (uintptr_t)page_at(2), mem.page, true), 0); /* still the other's */
	touch(5);
	ck_assert(is_set(collected(watch[0]), 5));
	close(other);
}
END_TEST

/* Neither a heap's memory nor metadata, in whatever mode the heap is. */
START_TEST(heaps_have_it)
{
	NEED_WATCH();
	struct gcuffd_heap *heap = heap_make("rung=stop");
	char *object = gcuffd_alloc(heap, 100);
	ck_ok(make_watchers(1, 0));
	void *page = (void *)gu_align_down((uintptr_t)object, GU_PAGE);
	ck_assert_int_eq(gcuffd_watch_begin(watch[0], page, GU_PAGE, 0), -EBUSY);
	page = (void *)gu_align_down((uintptr_t)watch[0], GU_PAGE);
	ck_assert_int_eq(gcuffd_watch_begin(watch[0], page, GU_PAGE, 0), -EBUSY);
	ck_ok(gcuffd_watch_destroy(watch[0]));
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

/* Descriptors that the program closes, and opens anew. */
START_TEST(closed_descriptors)
{
	struct gcuffd_run run;
	size_t count;
	void *next;
	NEED_KIND(ANON, 4);
	ck_ok(make_watchers(1, _i & 1 ? GCUFFD_WATCH_EVENTS : 0));
	begin(watch[0]);
	ck_ok(syscall(SYS_close_range, 3, ~0u, 0));
	for (int i = 0; _i & 2 && i < 8; i++) {
		int fd = memfd_create("foreign", 0); /* takes the numbers */
		ck_assert_int_eq(fd, 3 + i);
	}
	touch(1);
	ck_assert_int_eq(gcuffd_watch_collect(watch[0], mem.at, GU_PAGE, &run, 1, &count, &next), -EBADF);
	ck_assert_int_eq(gcuffd_watch_peek(watch[0], NULL, SIZE_MAX, &run, 1, &count, &next), -EBADF);
	ck_assert_int_eq(begin_on(watch[0], 0, 1), -EBADF);
	ck_assert_int_eq(gcuffd_watch_end(watch[0], mem.at, GU_PAGE), -EBADF);
	for (int i = 0; _i & 2 && i < 8; i++)
		ck_assert_int_ge(fcntl(3 + i, F_GETFD), 0); /* not ours to close */
	ck_ok(gcuffd_watch_create(0, &watch[1]));
	ck_ok(gcuffd_watch_destroy(watch[0]));
	begin(watch[1]);
	touch(2);
	ck_assert(is_set(collected(watch[1]), 2));
	ck_ok(gcuffd_watch_destroy(watch[1]));
}
END_TEST

/* Nothing is left behind by the last watcher. */
START_TEST(descriptors_go)
{
	NEED_WATCH();
	for (int i = 0; i < 4; i++) {
		int before = dup(0), after;
		close(before);
		ck_ok(make_watchers(2, i & 1 ? GCUFFD_WATCH_EVENTS : 0));
		ck_ok(gcuffd_watch_destroy(watch[0]));
		ck_ok(gcuffd_watch_destroy(watch[1]));
		after = dup(0);
		ck_assert_int_eq(before, after);
		close(after);
	}
}
END_TEST

/* As nobody. 0, or the number of what is wrong. */
static int try_unprivileged(void)
{
	int zero = open("/dev/zero", O_RDONLY);
	gu_caps_reset();
	if (!gu_caps()->has_wp_async || make_watchers(2, 0))
		return 2;
	begin(watch[0]);
	begin(watch[1]);
	touch(1);
	if (read(zero, page_at(3), 8) != 8 || !is_set(collected(watch[0]), 1, 3) || !is_set(collected(watch[1]), 1, 3))
		return 3;
	if (gcuffd_watch_create(GCUFFD_WATCH_EVENTS, &watch[2]))
		return 4;
	(void)collected(watch[0]);
	if (munmap(page_at(2), mem.page))
		return 5;
	touch(0);
	return is_set(collected(watch[0]), 0) ? 0 : 6;
}

static int try_accesses_unprivileged(void)
{
	int sink = memfd_create("sink", MFD_CLOEXEC);
	gu_caps_reset();
	if (!gu_caps()->has_rwp_async || make_watchers(1, 0))
		return 2;
	mem.flags = GCUFFD_WATCH_ACCESSES;
	begin(watch[0]);
	(void)look(1);
	touch(2);
	if (write(sink, page_at(0), 8) != 8 || !is_set(collected(watch[0]), 0, 1, 2))
		return 3;
	return collected(watch[0])->count == 0 ? 0 : 4;
}

START_TEST(works_unprivileged)
{
	NEED_WATCH();
	if (geteuid() != 0 || !make_memory(_i, 4))
		GU_LACKS("root", "needs root, to become nobody");
	in_child_as_nobody(try_unprivileged);
}
END_TEST

START_TEST(accesses_unprivileged)
{
	NEED_WATCH();
	if (!gu_caps()->has_rwp_async)
		GU_SKIP("no read-write protection");
	if (geteuid() != 0 || !make_memory(_i ? SHMEM : ANON, 4))
		GU_SKIP("needs root, to become nobody");
	for (size_t i = 0; i < 4; i++)
		touch(i);
	in_child_as_nobody(try_accesses_unprivileged);
}
END_TEST

static Suite *make_suite(void)
{
	Suite *suite = suite_create("watch");
	TCase *kinds = test_case(suite, "kinds"), *mappings = test_case(suite, "mappings"), *errors = test_case(suite, "errors");
	tcase_add_unchecked_fixture(kinds, more_huge_pages, fewer_huge_pages);
	tcase_add_loop_test(kinds, begins_clean_and_tells_writes, 0, KINDS);
	tcase_add_loop_test(kinds, reading_is_no_writing, 0, KINDS);
	tcase_add_loop_test(kinds, parts_of_the_range, 0, KINDS);
	tcase_add_loop_test(kinds, each_watcher_has_its_epoch, 0, KINDS);
	tcase_add_loop_test(kinds, a_full_array_resets_what_is_in_it, 0, KINDS);
	tcase_add_loop_test(kinds, more_runs_than_a_scan_holds, 0, HUGE);
	tcase_add_loop_test(kinds, dropped_pages_count_as_written, 0, KINDS);
	tcase_add_loop_test(kinds, precise_and_cheap, ANON, PRECISE + 1);
	tcase_add_test(kinds, precise_joins_cheap);
	tcase_add_test(kinds, dropped_among_many);
	tcase_add_test(kinds, populated_in_part);
	tcase_add_loop_test(kinds, reports_without_a_bitmap, 0, KINDS);
	tcase_add_test(kinds, large_and_sparse);
	tcase_add_loop_test(kinds, pinned_pages_are_written, 0, KINDS);
	tcase_add_loop_test(kinds, write_watch, 0, KINDS);
	tcase_add_unchecked_fixture(mappings, more_huge_pages, fewer_huge_pages);
	tcase_add_loop_test(mappings, protection_comes_and_goes, 0, KINDS);
	tcase_add_loop_test(mappings, unmapped_parts_end, 0, KINDS);
	tcase_add_loop_test(mappings, mapped_over, 0, KINDS);
	tcase_add_loop_test(mappings, mapped_over_by_another_kind, 0, HUGE);
	tcase_add_loop_test(mappings, replaced_during_the_scan, 0, HUGE);
	tcase_add_loop_test(mappings, unmapped_and_mapped_again, 0, KINDS);
	tcase_add_loop_test(mappings, grows_by_beginning, 0, KINDS);
	tcase_add_loop_test(mappings, moved_without_events, 0, KINDS);
	tcase_add_unchecked_fixture(errors, more_huge_pages, fewer_huge_pages);
	tcase_add_test(errors, bad_arguments);
	tcase_add_loop_test(errors, parts_of_huge_pages, HUGE, KINDS);
	tcase_add_loop_test(errors, others_have_it, 0, KINDS);
	tcase_add_test(errors, heaps_have_it);
	tcase_add_loop_test(errors, closed_descriptors, 0, 4);
	tcase_add_test(errors, descriptors_go);
	tcase_add_loop_test(errors, works_unprivileged, 0, HUGE);
	tcase_add_loop_test(errors, accesses_unprivileged, 0, 2);
	return suite;
}

TEST_MAIN(make_suite)
