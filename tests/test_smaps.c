/* SPDX-License-Identifier: MIT */
/* test_smaps.c - which mappings their owner keeps from others: invented ones, cut anywhere, calls that fail; and real ones. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>

#include "base/check.h"
#include "fake_os.h"
#include "sys/smaps.h"
#include "test.h"
#include "text.h"

static void invent(const char *contents, size_t step) { text_invent("/proc/thread-self/smaps", contents, step); }

static char found[400];

static void note(void *data, uintptr_t start, uintptr_t end)
{
	ck_assert_ptr_eq(data, found);
	size_t at = strlen(found);
	ck_assert_int_lt(snprintf(found + at, sizeof(found) - at, "%lx-%lx ", (unsigned long)start, (unsigned long)end), (int)(sizeof(found) - at));
}

static int look(void)
{
	found[0] = 0;
	return gu_smaps_private(note, found);
}

static const char sample[] =
	"55d0a000-55d0b000 r--p 00000000 fe:01 123 /usr/bin/dd-wf dd\n"
	"Size:                  4 kB\n"
	"Rss:                   4 kB\n"
	"VmFlags: rd mr mw me sd \n"
	"7f0000000000-7f0000200000 rw-p 00000000 00:00 0 \n"
	"Anonymous:             8 kB\n"
	"VmFlags: rd wr mr mw me dd ac sd \n"
	"7f0000400000-7f0000401000 rw-p 00000000 00:00 0 VmFlags: dd\n"
	"Name:           dd wf\n"
	"VmFlags: rd wr mr mw me ac wf\n"
	"7f0000500000-7f0000501000 rw-p 00000000 00:00 0 \n"
	"VmFlags: rd wr ddx xdd wff awf\n"
	"7f0000600000-7f0000601000 rw-p 00000000 00:00 0 \n"
	"VmFlags: wf dd\n"
	"ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0 [vsyscall]\n"
	"VmFlags: ex \n";

/* "ddx" and "wff" begin as flags do, but flags have two letters: no kernel writes those, and they may count. */
static const char wanted[] = "7f0000000000-7f0000200000 7f0000400000-7f0000401000 7f0000500000-7f0000501000 7f0000600000-7f0000601000 ";

START_TEST(reads_may_end_anywhere)
{
	for (size_t step = 0; step < 200; step = step < 20 ? step + 1 : step + 37) {
		invent(sample, step);
		interrupts = (unsigned)step % 4;
		ck_assert_int_eq(look(), 0);
		ck_assert_str_eq(found, wanted);
		ck_assert_uint_eq(text_opened, 0);
	}
	fake_remove();
}
END_TEST

/* A name of a file, or flags, longer than what is kept of a line. */
START_TEST(long_lines)
{
	char lines[2000];
	size_t at = (size_t)snprintf(lines, sizeof(lines), "1000-3000 rw-p 00000000 00:00 5 /");
	memset(lines + at, 'n', 900);
	snprintf(lines + at + 900, sizeof(lines) - at - 900, " dd\nVmFlags: rd dd\n4000-5000 rw-p 00000000 00:00 0 \nVmFlags: rd\n");
	invent(lines, 0);
	ck_assert_int_eq(look(), 0);
	ck_assert_str_eq(found, "1000-3000 ");
	fake_remove();
}
END_TEST

START_TEST(calls_fail)
{
	invent(sample, 100);
	text_error = -EIO;
	ck_assert_int_eq(look(), -EIO);
	ck_assert_uint_eq(text_opened, 0);
	fake_install();
	fake_fail(FAKE_OPEN, 1, -EMFILE);
	ck_assert_int_eq(look(), -EMFILE);
	ck_assert_str_eq(found, "");
	invent("", 0);
	ck_assert_int_eq(look(), 0);
	invent("VmFlags: rd dd\n", 0); /* of nothing */
	ck_assert_int_eq(look(), 0);
	ck_assert_str_eq(found, "0-0 ");
	fake_remove();
}
END_TEST

/* ---- the real one ---- */

static uintptr_t page;
static bool seen;

static void look_for(void *data, uintptr_t start, uintptr_t end)
{
	(void)data;
	seen |= page >= start && page < end;
}

static bool is_private(const char *at)
{
	page = (uintptr_t)at;
	seen = false;
	ck_assert_int_eq(gu_smaps_private(look_for, NULL), 0);
	return seen;
}

START_TEST(as_the_kernel_says)
{
	char *p = mmap(NULL, 5 * GU_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ck_assert_ptr_ne(p, MAP_FAILED);
	ck_assert(!is_private(p));
	ck_assert_int_eq(madvise(p + GU_PAGE, GU_PAGE, MADV_DONTDUMP), 0);
	ck_assert_int_eq(madvise(p + 3 * GU_PAGE, GU_PAGE, MADV_WIPEONFORK), 0);
	for (size_t i = 0; i < 5; i++)
		ck_assert_int_eq(is_private(p + i * GU_PAGE), i % 2);
	ck_assert_int_eq(madvise(p + GU_PAGE, GU_PAGE, MADV_DODUMP), 0);
	ck_assert(!is_private(p + GU_PAGE));
	munmap(p, 5 * GU_PAGE);
}
END_TEST

static Suite *smaps_suite(void)
{
	Suite *s = suite_create("smaps");
	TCase *c = test_case(s, "invented");
	tcase_add_test(c, reads_may_end_anywhere);
	tcase_add_test(c, long_lines);
	tcase_add_test(c, calls_fail);
	c = test_case(s, "real");
	tcase_add_test(c, as_the_kernel_says);
	return s;
}

TEST_MAIN(smaps_suite)
