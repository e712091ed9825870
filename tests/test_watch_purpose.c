/* SPDX-License-Identifier: MIT */
/*
 * test_watch_purpose.c - memory that is watched for writes, then for accesses (Linux 7.3), and for writes again: by one
 * watcher and by several, and while other threads go on touching it.
 */
#include "watch.h"

#define NEED_BOTH(which, count) \
	do { \
		NEED_WATCH(); \
		if (!gu_caps()->has_rwp_async) \
			GU_LACKS("rwp", "no accesses here"); \
		NEED_KIND(which, count); \
		if (mem.kind == FILE_COPY) \
			GU_SKIP("not of files"); \
	} while (0)

static unsigned write_flags(void) { return mem.kind == PRECISE ? GCUFFD_WATCH_PRECISE : 0; }

static int begin_for(struct gcuffd_watch *w, bool accesses)
{
	mem.flags = accesses ? GCUFFD_WATCH_ACCESSES : write_flags();
	return begin_on(w, 0, mem.pages);
}

static int end_all(struct gcuffd_watch *w) { return gcuffd_watch_end(w, mem.at, mem.pages * mem.page); }

static void populate(void)
{
	for (size_t p = 0; p < mem.pages; p++)
		touch(p);
}

/* Reads count in one and not in the other, and nothing is left over from the other. */
static void check_purpose(struct gcuffd_watch *w, bool accesses)
{
	ck_assert_uint_eq(collected(w)->count, 0);
	(void)look(1);
	touch(3);
	if (accesses)
		ck_assert(is_set(collected(w), 1, 3));
	else
		ck_assert(is_set(collected(w), 3));
	ck_assert_uint_eq(collected(w)->count, 0);
	checked_table();
}

START_TEST(by_one)
{
	NEED_BOTH(_i, 6);
	populate();
	for (int round = 0; round < 6; round++) {
		bool accesses = round % 2;
		ck_ok(begin_for(watch[0], accesses));
		check_purpose(watch[0], accesses);
		touch(5); /* is forgotten */
		ck_ok(end_all(watch[0]));
	}
}
END_TEST

/* All have to end it before one can begin for the other purpose. */
START_TEST(by_several)
{
	NEED_BOTH(_i, 6);
	ck_ok(make_watchers(3, 0));
	populate();
	for (int round = 0; round < 4; round++) {
		bool accesses = round % 2;
		for (size_t i = 0; i < 3; i++)
			ck_ok(begin_for(watch[i], accesses));
		ck_ok(end_all(watch[0]));
		ck_assert_int_eq(begin_for(watch[0], !accesses), -EBUSY);
		touch(2);
		for (size_t i = 1; i < 3; i++)
			ck_assert(is_set(collected(watch[i]), 2)); /* the refused one disturbed nobody */
		ck_ok(end_all(watch[1]));
		ck_assert_int_eq(begin_for(watch[0], !accesses), -EBUSY);
		ck_ok(begin_for(watch[0], accesses));
		check_purpose(watch[0], accesses);
		ck_ok(end_all(watch[0]));
		ck_ok(end_all(watch[2]));
		ck_ok(begin_for(watch[2], !accesses));
		check_purpose(watch[2], !accesses);
		ck_ok(end_all(watch[2]));
	}
}
END_TEST

/* A part can go over to the other while the rest stays. */
START_TEST(by_parts)
{
	NEED_BOTH(_i, 8);
	populate();
	ck_ok(begin_for(watch[0], false));
	touch(1);
	touch(6);
	ck_ok(gcuffd_watch_end(watch[0], page_at(4), 4 * mem.page));
	ck_assert_int_eq(gcuffd_watch_begin(watch[0], page_at(3), 2 * mem.page, GCUFFD_WATCH_ACCESSES), -EEXIST);
	ck_ok(gcuffd_watch_begin(watch[0], page_at(4), 4 * mem.page, GCUFFD_WATCH_ACCESSES));
	(void)look(2);
	(void)look(5);
	ck_assert(is_set(collected(watch[0]), 1, 5));
	touch(2);
	touch(7);
	ck_assert(is_set(collected(watch[0]), 2, 7));
	checked_table();
}
END_TEST

/* ---- while it is touched ---- */

static uint32_t done;          /* atomic */
static uint32_t current_round; /* atomic; odd: the purpose changes */
static uint32_t touched_in[MAX_PAGES]; /* atomic; the latest round that a write of it was wholly in */

static void *write_on(void *arg)
{
	struct test_rng rng = test_rng((uintptr_t)arg);
	while (!__atomic_load_n(&done, __ATOMIC_RELAXED)) {
		size_t page = test_below(&rng, mem.pages);
		uint32_t round = __atomic_load_n(&current_round, __ATOMIC_SEQ_CST);
		*(volatile char *)(page_at(page) + 8) = (char)round;
		if (round % 2 == 0 && round == __atomic_load_n(&current_round, __ATOMIC_SEQ_CST))
			__atomic_store_n(&touched_in[page], round, __ATOMIC_SEQ_CST);
	}
	return NULL;
}

static void check_round(const struct set *set, uint32_t round)
{
	for (size_t p = 0; p < mem.pages; p++)
		must(__atomic_load_n(&touched_in[p], __ATOMIC_SEQ_CST) != round || set->has[p], "round %u: page %zu", round, p);
}

/* From one begin to its end, whatever the purpose, no write is left out. */
START_TEST(while_it_is_written)
{
	pthread_t t[2];
	NEED_BOTH(_i, _i >= HUGE ? 6 : 200);
	current_round = 1;
	done = 0;
	for (size_t i = 0; i < 2; i++)
		ck_ok(pthread_create(&t[i], NULL, write_on, (void *)(i + 1)));
	for (unsigned i = 0; i < check_rounds(40 * check_seconds()); i++) {
		must_ok(begin_for(watch[0], i % 2));
		uint32_t round = __atomic_add_fetch(&current_round, 1, __ATOMIC_SEQ_CST);
		usleep(2000);
		__atomic_fetch_add(&current_round, 1, __ATOMIC_SEQ_CST);
		check_round(collected(watch[0]), round);
		must_ok(end_all(watch[0]));
	}
	__atomic_store_n(&done, 1, __ATOMIC_RELAXED);
	for (size_t i = 0; i < 2; i++)
		pthread_join(t[i], NULL);
}
END_TEST

/* A heap's memory has another userfaultfd. */
START_TEST(others_have_it)
{
	NEED_BOTH(ANON, 8);
	populate();
	struct gcuffd_heap *heap = heap_make("");
	char *object = gcuffd_alloc_atomic(heap, 256 << 10);
	void *page = (void *)(((uintptr_t)object + 4095) & ~(uintptr_t)4095);
	ck_assert_int_eq(gcuffd_watch_begin(watch[0], page, 4096, GCUFFD_WATCH_ACCESSES), -EBUSY);
	ck_ok(begin_for(watch[0], false));
	check_purpose(watch[0], false);
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

#define ADD_KINDS(name) tcase_add_loop_test(kinds_case(suite, #name), name, 0, KINDS)

static TCase *kinds_case(Suite *suite, const char *name)
{
	TCase *tcase = test_case(suite, name);
	tcase_add_unchecked_fixture(tcase, more_huge_pages, fewer_huge_pages);
	return tcase;
}

static Suite *make_suite(void)
{
	Suite *suite = suite_create("watch_purpose");
	ADD_KINDS(by_one);
	ADD_KINDS(by_several);
	ADD_KINDS(by_parts);
	ADD_KINDS(while_it_is_written);
	tcase_add_test(test_case(suite, "others_have_it"), others_have_it);
	return suite;
}

TEST_MAIN(make_suite)
