/* SPDX-License-Identifier: MIT */
/* test_valgrind.c - what a heap does where valgrind seems to be: there it takes rung stop, and says so once. */
#include <fcntl.h>

#include "base/atomic.h"
#include "core.h"
#include "fake_os.h"

static const char preload[] = "4802000-4803000 r-xp 00000000 08:01 12345 /usr/libexec/valgrind/vgpreload_core-amd64-linux.so\n";

/* The first time: it is looked for once, and others need the real list. */
static int open_with_valgrind(const char *path, int flags)
{
	static uint32_t opened;
	if (strcmp(path, "/proc/thread-self/maps") != 0 || gu_swap_seqcst(&opened, 1))
		return gu_os_linux.open(path, flags);
	int fd = memfd_create("maps", MFD_CLOEXEC);
	must(fd >= 0 && write(fd, preload, sizeof(preload) - 1) == (ssize_t)sizeof(preload) - 1 && !lseek(fd, 0, SEEK_SET), "errno %d", errno);
	return fd;
}

static unsigned count_lines(const char *text)
{
	unsigned n = 0;
	for (const char *at = core_log; (at = strstr(at, text)); at++)
		n++;
	return n;
}

static void make_and_end(const char *rung, unsigned expected)
{
	struct gcuffd_heap *heap = heap_make("rung=%s", rung);
	ck_assert_uint_eq(stats_of(heap).rung, expected);
	must(gcuffd_alloc(heap, 100) != NULL, "errno %d", errno);
	ck_ok(gcuffd_collect(heap));
	ck_ok(gcuffd_heap_destroy(heap));
}

START_TEST(takes_rung_stop)
{
	fake_install();
	fake_os.open = open_with_valgrind;
	make_and_end("auto", GCUFFD_RUNG_STOP);
	ck_assert_uint_eq(count_lines("under valgrind"), 1);
	make_and_end("auto", GCUFFD_RUNG_STOP);
	ck_assert_uint_eq(count_lines("under valgrind"), 1);
	if (rung_is_here(GCUFFD_RUNG_ASYNC))
		make_and_end("async", GCUFFD_RUNG_ASYNC);
	fake_remove();
}
END_TEST

START_TEST(and_without_it_the_highest)
{
	struct gcuffd_heap *heap = heap_make("rung=auto");
	unsigned highest = GCUFFD_RUNG_STOP;
	for (int rung = GCUFFD_RUNG_ASYNC; rung <= GCUFFD_RUNG_RWP; rung++)
		if (rung_is_here(rung))
			highest = (unsigned)rung;
	ck_assert_uint_eq(stats_of(heap).rung, highest);
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

static Suite *make_suite(void)
{
	Suite *suite = suite_create("valgrind");
	tcase_add_test(test_case(suite, "takes_rung_stop"), takes_rung_stop);
	tcase_add_test(test_case(suite, "and_without_it_the_highest"), and_without_it_the_highest);
	return suite;
}

TEST_MAIN(make_suite)
