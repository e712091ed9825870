/* SPDX-License-Identifier: MIT */
/*
 * test_watch_lazy.c - lazy memory that is watched (GCUFFD_LAZY_WATCHABLE): pages that were written and none that were only
 * filled, what lies beside it and takes its place, and that a shadow copied from what is reported ends up right.
 * Page i is filled with bytes i + 1.
 */
#include "watch.h"

#include <setjmp.h>
#include <signal.h>
#include <sys/syscall.h>

#include "sys/uffd.h"

#define PAGES 64u

static struct gcuffd_lazy *lazy;
static size_t bad_page; /* can't be filled */

static char byte_of(size_t page) { return (char)(page + 1); }

static int fill(void *data, size_t offset, size_t len, void *into)
{
	(void)data;
	for (size_t at = 0; at < len; at += GU_PAGE) {
		if ((offset + at) / GU_PAGE == bad_page)
			return -EIO;
		memset((char *)into + at, byte_of((offset + at) / GU_PAGE), GU_PAGE);
	}
	return 0;
}

/* Windows of neighbours are aligned to their size. */
static void *free_place(size_t pages)
{
	char *p = reserve(pages * GU_PAGE);
	must_ok(munmap(p, pages * GU_PAGE));
	return p;
}

static int map_at(void *at, size_t pages, unsigned flags, size_t around)
{
	struct gcuffd_lazy_options o = {.size = sizeof(o), .around = around, .at = at};
	void *start;
	o.flags = flags | GCUFFD_LAZY_USER_FAULTS;
	bad_page = SIZE_MAX;
	mem = (struct memory){.kind = ANON, .pages = pages, .page = GU_PAGE, .fd = -1};
	int err = gcuffd_lazy_map(pages * GU_PAGE, fill, NULL, &o, &lazy, &start);
	mem.at = start;
	return err;
}

#define NEED_LAZY() \
	do { \
		if (!gu_caps()->has_wp_async || !gu_caps()->has_poison) \
			GU_LACKS("poison", "no async write-protect, or no poison"); \
	} while (0)

/* Lazy memory, and a watcher that has all of it. */
#define NEED_LENT(around, watch_flags) \
	do { \
		NEED_LAZY(); \
		ck_ok(map_at(free_place(PAGES), PAGES, GCUFFD_LAZY_WATCHABLE, around)); \
		ck_ok(make_watchers(2, watch_flags)); \
		begin(watch[0]); \
	} while (0)

static uint64_t filled(void)
{
	struct gcuffd_lazy_stats s = {.size = sizeof(s)};
	must_ok(gcuffd_lazy_stats(lazy, &s));
	return s.filled;
}

/* Who waits is woken before it is counted. */
static bool fills(uint64_t pages)
{
	for (int ms = 0; ms < 5000 && filled() < pages; ms++)
		usleep(1000);
	return filled() == pages;
}

static void end_all(void)
{
	checked_table();
	ck_ok(gcuffd_watch_destroy(watch[0]));
	ck_ok(gcuffd_watch_destroy(watch[1]));
	ck_ok(gcuffd_lazy_unmap(lazy));
}

/* ---- what is reported ---- */

START_TEST(filling_is_no_writing)
{
	NEED_LENT(GU_PAGE << _i, 0);
	for (size_t i = 0; i < PAGES / 2; i++)
		ck_assert_int_eq(look(i), byte_of(i));
	ck_assert_uint_eq(peeked(watch[0])->count, 0);
	ck_assert_uint_eq(collected(watch[0])->count, 0);
	ck_assert(fills(PAGES / 2)); /* and not by watching */
	touch(3);
	touch(5);
	ck_assert(is_set(collected(watch[0]), 3, 5));
	ck_assert_uint_eq(collected(watch[0])->count, 0);
	ck_assert(fills(PAGES / 2));
	end_all();
}
END_TEST

START_TEST(a_first_touch_may_write)
{
	NEED_LENT(4 * GU_PAGE, _i ? GCUFFD_WATCH_EVENTS : 0);
	touch(9);
	ck_assert_int_eq(look(9), (char)(byte_of(9) + 1));
	ck_assert_int_eq(look(10), byte_of(10));
	ck_assert(is_set(collected(watch[0]), 9)); /* not its neighbours, which came with it */
	touch(10);
	touch(33);
	ck_assert(is_set(collected(watch[0]), 10, 33));
	ck_assert(fills(8));
	end_all();
}
END_TEST

START_TEST(system_calls_write)
{
	int pipes[2];
	if (!gu_caps()->has_kernel_faults)
		GU_LACKS("uffd", "system calls can't fill pages here");
	NEED_LENT(GU_PAGE, 0);
	ck_ok(pipe(pipes));
	ck_assert_int_eq(write(pipes[1], page_at(7), 100), 100);
	ck_assert_int_eq(read(pipes[0], page_at(20) + 8, 100), 100);
	ck_assert(is_set(collected(watch[0]), 20));
	ck_assert(page_at(20)[7] == byte_of(20) && page_at(20)[8] == byte_of(7));
	close(pipes[0]);
	close(pipes[1]);
	end_all();
}
END_TEST

/* The content is again what it was before it was written. */
START_TEST(what_is_filled_again_is_written)
{
	NEED_LENT(4 * GU_PAGE, 0);
	touch(1);
	ck_assert(is_set(collected(watch[0]), 1));
	ck_ok(madvise(page_at(1), GU_PAGE, MADV_DONTNEED));
	ck_assert_int_eq(look(1), byte_of(1)); /* before anybody could find it missing */
	ck_assert(is_set(collected(watch[0]), 1));
	ck_ok(madvise(page_at(1), GU_PAGE, MADV_DONTNEED));
	ck_assert(is_set(collected(watch[0]), 1));
	ck_assert_uint_eq(collected(watch[0])->count, 0);
	(void)look(1);
	ck_assert(is_set(collected(watch[0]), 1));
	ck_assert_uint_eq(collected(watch[0])->count, 0);
	end_all();
}
END_TEST

START_TEST(watchers_are_independent)
{
	NEED_LENT(GU_PAGE, 0);
	touch(0);
	begin(watch[1]);
	touch(1);
	(void)look(2);
	ck_assert(is_set(collected(watch[1]), 1));
	ck_assert(is_set(collected(watch[0]), 0, 1));
	ck_ok(gcuffd_watch_end(watch[0], mem.at, PAGES * GU_PAGE));
	touch(3);
	ck_assert(is_set(collected(watch[1]), 3));
	ck_ok(gcuffd_watch_end(watch[1], mem.at, PAGES * GU_PAGE));
	for (size_t i = 4; i < PAGES; i++) /* whoever ends it has not unregistered it */
		ck_assert_int_eq(look(i), byte_of(i));
	begin(watch[0]);
	(void)look(60);
	touch(61);
	ck_assert(is_set(collected(watch[0]), 61));
	end_all();
}
END_TEST

/* It finds pages that were empty each time it looked, and arms empty pages by markers, which filling replaces. */
START_TEST(precise_finds_more)
{
	NEED_LAZY();
	ck_ok(map_at(free_place(PAGES), PAGES, GCUFFD_LAZY_WATCHABLE, GU_PAGE));
	ck_ok(make_watchers(2, 0));
	mem.flags = _i ? GCUFFD_WATCH_PRECISE : 0;
	begin(watch[0]);
	(void)look(1);
	touch(2);
	ck_assert(is_set(collected(watch[0]), 2));
	touch(3);
	ck_ok(madvise(page_at(3), GU_PAGE, MADV_DONTNEED));
	if (_i)
		ck_assert(is_set(collected(watch[0]), 3));
	else
		ck_assert_uint_eq(collected(watch[0])->count, 0);
	(void)look(4);
	ck_assert_uint_eq(collected(watch[0])->count, 0);
	ck_assert(fills(4));
	end_all();
}
END_TEST

static sigjmp_buf back;

static void go_back(int sig)
{
	(void)sig;
	siglongjmp(back, 1);
}

static bool raises(size_t page)
{
	struct sigaction new = {.sa_handler = go_back}, old;
	sigaction(SIGBUS, &new, &old);
	bool raised = sigsetjmp(back, 1);
	if (!raised)
		(void)look(page);
	sigaction(SIGBUS, &old, NULL);
	return raised;
}

/* What is not known counts as written. */
START_TEST(poisoned_pages)
{
	NEED_LAZY();
	ck_ok(map_at(free_place(PAGES), PAGES, GCUFFD_LAZY_WATCHABLE, 4 * GU_PAGE));
	ck_ok(make_watchers(2, 0));
	mem.flags = _i ? GCUFFD_WATCH_PRECISE : 0;
	begin(watch[0]);
	bad_page = 8;
	ck_assert(raises(8));
	ck_assert_int_eq(look(9), byte_of(9));
	ck_assert(is_set(collected(watch[0]), 8));
	ck_assert_uint_eq(collected(watch[0])->count, 0);
	ck_assert(raises(8));
	bad_page = SIZE_MAX;
	ck_ok(madvise(page_at(8), GU_PAGE, MADV_DONTNEED));
	ck_assert_int_eq(look(8), byte_of(8)); /* for the first time */
	ck_assert_uint_eq(collected(watch[0])->count, 0);
	end_all();
}
END_TEST

START_TEST(sigbus_mode)
{
	NEED_LAZY();
	ck_ok(map_at(free_place(PAGES), PAGES, GCUFFD_LAZY_WATCHABLE | GCUFFD_LAZY_SIGBUS, 0));
	ck_ok(make_watchers(2, 0));
	begin(watch[0]);
	ck_ok(gcuffd_lazy_resolve(lazy, page_at(1)));
	ck_ok(gcuffd_lazy_resolve(lazy, page_at(2)));
	touch(2);
	ck_assert(is_set(collected(watch[0]), 2));
	ck_assert_int_eq(look(1), byte_of(1));
	end_all();
}
END_TEST

/* ---- what lies beside it, and takes its place ---- */

static char *map_plain(char *at, size_t pages)
{
	char *p = mmap(at, pages * GU_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	must(p == at, "errno %d", errno);
	return p;
}

/* 4 pages of each, and lazy ones between two others. */
START_TEST(neighbours)
{
	NEED_LAZY();
	char *room = reserve(12 * GU_PAGE);
	map_plain(room, 12);
	ck_ok(munmap(room + 4 * GU_PAGE, 4 * GU_PAGE));
	ck_ok(map_at(room + 4 * GU_PAGE, 4, GCUFFD_LAZY_WATCHABLE, GU_PAGE));
	mem.at = room;
	mem.pages = 12;
	ck_ok(make_watchers(2, 0));
	begin(watch[0]);
	ck_assert_uint_eq(watch_stats(watch[0]).ranges, 3);
	for (size_t i = 1; i < 12; i += 2)
		touch(i);
	(void)look(4);
	ck_assert(is_set(collected(watch[0]), 1, 3, 5, 7, 9, 11));
	ck_ok(gcuffd_watch_end(watch[0], page_at(2), 4 * GU_PAGE));
	for (size_t i = 0; i < 12; i += 2)
		touch(i);
	ck_assert(is_set(collected(watch[0]), 0, 6, 8, 10));
	end_all();
}
END_TEST

START_TEST(not_without_the_flag)
{
	NEED_LAZY();
	ck_ok(map_at(free_place(PAGES), PAGES, 0, 0));
	ck_ok(make_watchers(2, 0));
	ck_assert_int_eq(begin_on(watch[0], 0, PAGES), -EBUSY);
	ck_ok(gcuffd_lazy_unmap(lazy));
	ck_ok(map_at(free_place(PAGES), PAGES, GCUFFD_LAZY_WATCHABLE, 0));
	mem.flags = GCUFFD_WATCH_ACCESSES;
	ck_assert_int_eq(begin_on(watch[0], 0, PAGES), gu_caps()->has_rwp_async ? -EBUSY : -EOPNOTSUPP);
	end_all();
}
END_TEST

/* What is mapped there then is watched like any other memory, and other lazy memory is not. */
START_TEST(unmapped_and_mapped_again)
{
	struct gcuffd_run run;
	size_t count;
	void *next;
	NEED_LENT(GU_PAGE, _i ? GCUFFD_WATCH_EVENTS : 0);
	touch(1);
	ck_ok(gcuffd_lazy_unmap(lazy));
	map_plain(mem.at, PAGES);
	ck_assert_uint_eq(collected(watch[0])->count, PAGES);
	touch(2);
	ck_assert(is_set(collected(watch[0]), 2));
	touch(3);
	ck_ok(munmap(mem.at, PAGES * GU_PAGE));
	ck_ok(map_at(mem.at, PAGES, GCUFFD_LAZY_WATCHABLE, GU_PAGE));
	touch(4);
	ck_assert_int_eq(gcuffd_watch_collect(watch[0], mem.at, SIZE_MAX, &run, 1, &count, &next), -ENOENT);
	ck_assert_uint_eq(watch_stats(watch[0]).ended_bytes, PAGES * GU_PAGE);
	begin(watch[0]);
	touch(5);
	ck_assert(is_set(collected(watch[0]), 5));
	end_all();
}
END_TEST

/* Its own memory at the same place; the loan is the parent's. */
static int watch_in_child(void)
{
	struct gcuffd_watch *w;
	map_plain(mem.at, PAGES);
	int other = gu_uffd_open(GU_UFFD_FEATURE_WP_ASYNC, NULL);
	if (gcuffd_watch_create(0, &w) || gcuffd_watch_begin(w, mem.at, PAGES / 2 * GU_PAGE, 0))
		return 1;
	touch(6);
	if (!is_set(collected(w), 6))
		return 2;
	if (gu_uffd_register(other, (uintptr_t)page_at(PAGES / 2), GU_PAGE, GU_UFFD_REGISTER_WP, NULL))
		return 3;
	return gcuffd_watch_begin(w, page_at(PAGES / 2), GU_PAGE, 0) == -EBUSY ? 0 : 4;
}

START_TEST(children_have_no_loan)
{
	int status = -1;
	NEED_LENT(GU_PAGE, 0);
	fflush(stdout);
	pid_t pid = _i ? (pid_t)syscall(SYS_fork) : fork();
	if (pid == 0)
		_exit(watch_in_child());
	ck_assert_int_eq(waitpid(pid, &status, 0), pid);
	ck_assert_int_eq(status, 0);
	touch(1);
	ck_assert(is_set(collected(watch[0]), 1));
	end_all();
}
END_TEST

/* ---- a shadow ---- */

#define WRITERS 4

static char *shadow;
static uint32_t stop; /* atomic */

/* Each has pages of its own. */
static void *writer(void *arg)
{
	size_t own = (size_t)arg;
	struct test_rng rng = test_rng(own);
	while (!gu_load_relaxed(&stop)) {
		size_t page = own + WRITERS * test_below(&rng, MAX_PAGES / WRITERS);
		unsigned what = test_below(&rng, 4);
		if (what == 0 && mem.flags)
			must_ok(madvise(page_at(page), GU_PAGE, MADV_DONTNEED));
		else if (what == 1)
			(void)look(page);
		else
			page_at(page)[test_below(&rng, GU_PAGE)]++;
	}
	return NULL;
}

static size_t copy_written(void)
{
	struct gcuffd_run runs[16];
	size_t count, bytes = 0;
	for (void *at = mem.at; at;) {
		must_ok(gcuffd_watch_collect(watch[0], at, SIZE_MAX, runs, 16, &count, &at));
		for (size_t i = 0; i < count; i++) {
			size_t len = (size_t)((char *)runs[i].end - (char *)runs[i].start);
			memcpy(shadow + ((char *)runs[i].start - mem.at), runs[i].start, len);
			bytes += len;
		}
	}
	return bytes;
}

static void copy_while_they_write(uint64_t ns)
{
	pthread_t threads[WRITERS];
	gu_store_relaxed(&stop, 0);
	for (size_t i = 0; i < WRITERS; i++)
		ck_ok(pthread_create(&threads[i], NULL, writer, (void *)i));
	for (uint64_t end = test_now_ns() + ns; test_now_ns() < end;)
		copy_written();
	gu_store_relaxed(&stop, 1);
	for (size_t i = 0; i < WRITERS; i++)
		ck_ok(pthread_join(threads[i], NULL));
}

/* Whatever was written, or dropped, and filled while it was copied: in the end the copy is right. */
START_TEST(a_shadow_follows)
{
	struct gcuffd_lazy_options o = {.size = sizeof(o), .flags = GCUFFD_LAZY_WATCHABLE | GCUFFD_LAZY_USER_FAULTS};
	void *start;
	NEED_LAZY();
	o.threads = _i % 2 + 1;
	bad_page = SIZE_MAX;
	mem = (struct memory){.kind = ANON, .pages = MAX_PAGES, .page = GU_PAGE, .flags = _i / 2 ? GCUFFD_WATCH_PRECISE : 0, .fd = -1};
	ck_ok(gcuffd_lazy_map(MAX_PAGES * GU_PAGE, fill, NULL, &o, &lazy, &start));
	mem.at = start;
	ck_ok(make_watchers(2, 0));
	begin(watch[0]);
	shadow = malloc(MAX_PAGES * GU_PAGE);
	ck_ok(fill(NULL, 0, MAX_PAGES * GU_PAGE, shadow));
	for (int round = 0; round < 3; round++) {
		copy_while_they_write(check_seconds() * 30000000u);
		while (copy_written()) /* dropped pages are filled by copying them, and so written */
			;
		ck_assert_int_eq(memcmp(mem.at, shadow, MAX_PAGES * GU_PAGE), 0);
	}
	free(shadow);
	end_all();
}
END_TEST

static Suite *make_suite(void)
{
	Suite *suite = suite_create("watch_lazy");
	TCase *reports = test_case(suite, "reports"), *places = test_case(suite, "places"), *load = test_case(suite, "load");
	tcase_add_loop_test(reports, filling_is_no_writing, 0, 4);
	tcase_add_loop_test(reports, a_first_touch_may_write, 0, 2);
	tcase_add_test(reports, system_calls_write);
	tcase_add_test(reports, what_is_filled_again_is_written);
	tcase_add_test(reports, watchers_are_independent);
	tcase_add_loop_test(reports, precise_finds_more, 0, 2);
	tcase_add_loop_test(reports, poisoned_pages, 0, 2);
	tcase_add_test(reports, sigbus_mode);
	tcase_add_test(places, neighbours);
	tcase_add_test(places, not_without_the_flag);
	tcase_add_loop_test(places, unmapped_and_mapped_again, 0, 2);
	tcase_add_loop_test(places, children_have_no_loan, 0, 2);
	tcase_add_loop_test(load, a_shadow_follows, 0, 4);
	return suite;
}

TEST_MAIN(make_suite)
