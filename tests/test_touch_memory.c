/* SPDX-License-Identifier: MIT */
/*
 * test_touch_memory.c - first touches of memory that is not private pages of 4 KiB: hugetlb pages of each size; and of pages
 * whose protection the kernel drops, what the manual says of them (Linux 7.3).
 */
#include "machine.h"

#define NEED_TOUCH() \
	do { \
		if (!gu_caps()->has_rwp || !gu_caps()->has_kernel_faults) \
			GU_SKIP("no read-write protection here"); \
		if (!gu_caps()->has_set_mode) \
			GU_SKIP("no UFFDIO_SET_MODE here"); \
	} while (0)

static struct gcuffd_touch *touching;
static uint32_t reads[MAX_PAGES], writes[MAX_PAGES]; /* atomic; touches that were told */

static void note(void *data, void *page, int write, int thread)
{
	size_t i = (size_t)((char *)page - mem.at) / mem.page;
	(void)data, (void)thread;
	must((char *)page == page_at(i) && i < mem.pages, "%p is no page", page);
	__atomic_fetch_add(write ? &writes[i] : &reads[i], 1, __ATOMIC_SEQ_CST);
}

static uint32_t told(size_t page) { return __atomic_load_n(&reads[page], __ATOMIC_SEQ_CST) + __atomic_load_n(&writes[page], __ATOMIC_SEQ_CST); }

static uint32_t all_told(void)
{
	uint32_t n = 0;
	for (size_t i = 0; i < mem.pages; i++)
		n += told(i);
	return n;
}

static void begin_touching(void)
{
	ck_ok(gcuffd_touch_begin(mem.at, mem.pages * mem.page, note, NULL, NULL, &touching));
}

static void arm(void) { ck_ok(gcuffd_touch_arm(touching, mem.at, mem.pages * mem.page)); }

static struct set *found(void)
{
	static struct set set;
	struct gcuffd_run runs[4];
	void *next = mem.at;
	memset(&set, 0, sizeof(set));
	while (next) {
		char *at = next;
		size_t count;
		must_ok(gcuffd_touch_collect(touching, at, (size_t)(page_at(mem.pages) - at), runs, 4, &count, &next));
		for (size_t i = 0; i < count; i++)
			add_run(&set, &runs[i]);
	}
	return &set;
}

/* ---- hugetlb ---- */

/* Also by a touch in the middle of it; later ones of a page are not told. */
static void check_huge_touches(void)
{
	for (uint32_t round = 1; round <= 2; round++) {
		(void)*(volatile char *)(page_at(0) + mem.page / 2 + 5000);
		*(volatile char *)(page_at(1) + mem.page - 1) = 7;
		touch(0);
		(void)look(1);
		ck_assert_uint_eq(reads[0], round);
		ck_assert_uint_eq(writes[1], round);
		ck_assert_uint_eq(all_told(), 2 * round);
		arm();
	}
	touch(1);
	ck_assert_uint_eq(all_told(), 5);
	ck_assert(is_set(found(), 1));
	ck_ok(gcuffd_touch_switch(touching, GCUFFD_TOUCH_ASYNC));
	*(volatile char *)(page_at(0) + mem.page - 1) = 7;
	ck_assert(is_set(found(), 0));
	ck_assert_uint_eq(found()->count, 0);
	ck_assert_uint_eq(all_told(), 5);
	ck_ok(gcuffd_touch_switch(touching, 0));
	touch(0);
	ck_assert_uint_eq(all_told(), 6);
	ck_ok(gcuffd_touch_end(touching));
	ck_assert_int_eq(page_at(1)[mem.page - 1], 7);
}

START_TEST(huge_pages)
{
	NEED_TOUCH();
	if (!has_kind(HUGE + _i, 4) || !make_memory(HUGE + _i, 4))
		GU_SKIP("no huge pages");
	for (size_t i = 0; i < 3; i++)
		touch(i);
	begin_touching();
	check_huge_touches();
}
END_TEST

#define GIGANTIC "/sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages"

static struct setting gigantic_settings[] = {{GIGANTIC, "2", ""}};

static void more_gigantic_pages(void)
{
	read_settings(gigantic_settings, 1);
	change_settings(gigantic_settings, 1);
}

static void no_more_gigantic_pages(void) { restore_settings(gigantic_settings, 1); }

START_TEST(gigantic_pages)
{
	NEED_TOUCH();
	mem = (struct memory){.kind = HUGE, .pages = 2, .page = (size_t)1 << 30, .fd = -1};
	mem.at = mmap(NULL, 2 * mem.page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | (30 << MAP_HUGE_SHIFT), -1, 0);
	if (mem.at == MAP_FAILED)
		GU_SKIP("no pages of 1 GiB");
	touch(0);
	touch(1);
	begin_touching();
	check_huge_touches();
}
END_TEST

/* ---- protection that the kernel drops ---- */

/* Arming unmaps them, and what is not mapped has no content that could be armed; touched, it is found. */
START_TEST(shared_huge_pages)
{
	NEED_TOUCH();
	if (!make_memory(SHMEM, 512) || madvise(mem.at, 512 * GU_PAGE, MADV_HUGEPAGE))
		GU_SKIP("no huge pages");
	touch(0);
	if (count_huge(mem.at, page_at(512)) != 512 * GU_PAGE)
		GU_SKIP("no huge pages");
	begin_touching();
	ck_assert_uint_eq(count_entries(0, 512, PRESENT), 0);
	ck_assert_int_eq(look(0), 1);
	touch(300);
	ck_assert_uint_eq(all_told(), 0);
	struct set *set = found();
	ck_assert(set->has[0] && set->has[300]);
	touch(0);
	ck_assert_uint_eq(all_told(), 0); /* the same again */
	ck_assert(found()->has[0]);
	ck_ok(gcuffd_touch_end(touching));
	ck_assert_int_eq(look(300), 1);
}
END_TEST

/* A private page that is reclaimed stays armed; a shared one is open when it comes back, and is found. */
START_TEST(reclaimed_pages)
{
	enum memory_kind kind = _i ? SHMEM : ANON;
	NEED_TOUCH();
	if (!has_swap() || !make_memory(kind, 64))
		GU_SKIP("no swap");
	for (size_t i = 0; i < 64; i++)
		touch(i);
	begin_touching();
	for (int tries = 0; tries < 20 && count_entries(0, 64, PRESENT); tries++)
		ck_ok(madvise(mem.at, 64 * GU_PAGE, MADV_PAGEOUT));
	if (count_entries(0, 64, PRESENT))
		GU_SKIP("not reclaimed");
	ck_assert_uint_eq(found()->count, 0);
	ck_assert_int_eq(look(3), 1);
	*(volatile char *)page_at(5) = 9;
	ck_assert_uint_eq(reads[3], !_i);
	ck_assert_uint_eq(writes[5], !_i);
	ck_assert(is_set(found(), 3, 5));
	ck_assert_int_eq(look(3), 1); /* armed again */
	ck_assert_uint_eq(reads[3], 1 + !_i);
	ck_ok(gcuffd_touch_end(touching));
}
END_TEST

/* What KSM replaces is open, and is found as touched. */
START_TEST(merged_pages)
{
	NEED_TOUCH();
	ck_assert(make_memory(ANON, 64));
	for (size_t i = 0; i < 64; i++)
		memset(page_at(i), 77, GU_PAGE);
	begin_touching();
	if (madvise(mem.at, 64 * GU_PAGE, MADV_MERGEABLE) || !run_ksm(60))
		GU_SKIP("no KSM");
	for (size_t i = 0; i < 64; i++)
		must(look(i) == 77, "page %zu is %d", i, look(i));
	size_t open = 64 - all_told();
	ck_assert_uint_ge(open, 60);
	struct set *set = found();
	ck_assert_uint_eq(set->count, 64);
	for (size_t i = 0; i < 64; i++)
		(void)look(i);
	ck_assert_uint_ge(all_told(), 64);
	ck_ok(gcuffd_touch_end(touching));
}
END_TEST

static Suite *make_suite(void)
{
	Suite *suite = suite_create("touch_memory");
	TCase *huge = test_case(suite, "huge"), *gigantic = test_case(suite, "gigantic"), *dropped = test_case(suite, "dropped");
	tcase_add_unchecked_fixture(huge, more_huge_pages, fewer_huge_pages);
	tcase_add_loop_test(huge, huge_pages, 0, 2);
	tcase_add_unchecked_fixture(gigantic, more_gigantic_pages, no_more_gigantic_pages);
	tcase_add_test(gigantic, gigantic_pages);
	tcase_add_unchecked_fixture(dropped, begin_thp, end_thp);
	tcase_add_unchecked_fixture(dropped, begin_swap, end_swap);
	tcase_add_unchecked_fixture(dropped, begin_ksm, end_ksm);
	tcase_add_test(dropped, shared_huge_pages);
	tcase_add_loop_test(dropped, reclaimed_pages, 0, 2);
	tcase_add_test(dropped, merged_pages);
	return suite;
}

TEST_MAIN(make_suite)
