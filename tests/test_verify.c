/* SPDX-License-Identifier: MIT */
/* test_verify.c - the verifier finds each planted fault, and nothing where none is planted, on each rung and as an unprivileged user. */
#include <sched.h>

#include "core.h"

struct list {
	struct list *next;
	uint64_t number;
	char room[240];
};

static struct gcuffd_heap *heap;
static struct list *volatile head; /* a data segment */
static __thread struct list *volatile in_tls;
static uint32_t quit;

static struct list *push(struct list *next)
{
	struct list *l = gcuffd_alloc(heap, sizeof(*l));
	must(l != NULL, "no memory");
	l->next = next;
	l->number = next ? next->number + 1 : 1;
	return l;
}

static __attribute__((noinline)) void grow(unsigned n)
{
	while (n--)
		head = push(head);
}

static void *collect(void *unused)
{
	(void)unused;
	while (!__atomic_load_n(&quit, __ATOMIC_RELAXED))
		must_ok(gcuffd_collect(heap));
	return NULL;
}

/* So long, and until what is looked for was found, or a minute longer. */
static bool is_enough(uint64_t end, bool planted)
{
	uint64_t now = test_now_ns();
	if (now < end)
		return false;
	struct gcuffd_stats s = stats_of(heap);
	return now >= end + 60000000000ull || (planted ? s.verify_failures > 0 : s.cycles >= 2);
}

/* Moves a new object to the end of a part of the list that was marked before: without its card it is lost. */
static void mutate(uint64_t ns, bool planted)
{
	struct test_rng rng = test_rng(0);
	for (uint64_t end = test_now_ns() + ns; !is_enough(end, planted);) {
		struct list *at = head;
		for (uint64_t i = test_below(&rng, 2000); i && at->next; i--)
			at = at->next;
		struct list *new = push(at->next);
		at->next = new;
		if (test_below(&rng, 4) == 0 && new->next)
			new->next = new->next->next;
	}
}

/* A thread collects in a loop, this one changes a list. */
static struct gcuffd_stats run(const char *options, uint64_t ns)
{
	pthread_t t;
	quit = 0;
	heap = heap_make("verify=1,start_size=1M,%s", options);
	grow(20000);
	must_ok(pthread_create(&t, NULL, collect, NULL));
	mutate(ns, strstr(options, "plant"));
	__atomic_store_n(&quit, 1, __ATOMIC_RELAXED);
	pthread_join(t, NULL);
	return stats_of(heap);
}

static const char *with_rung(int rung, const char *more)
{
	static char text[100];
	snprintf(text, sizeof(text), "rung=%s%s", rung_names[rung], more);
	return text;
}

#define SHORT 500000000ull

static void run_clean(int rung)
{
	struct gcuffd_stats s = run(with_rung(rung, ""), SHORT);
	must(s.verify_failures == 0, "%s", core_log);
	must(s.cycles >= 2 && s.rung == (uint32_t)rung, "%lu cycles on rung %u", s.cycles, s.rung);
	must_ok(gcuffd_heap_destroy(heap));
}

START_TEST(finds_nothing)
{
	NEED_RUNG(_i);
	run_clean(_i);
}
END_TEST

/* No cards on rung stop. The heap is broken on purpose: it is left alone afterwards. */
START_TEST(finds_dropped_card)
{
	NEED_RUNG(_i);
	struct gcuffd_stats s = run(with_rung(_i, ",plant_drop_card=1"), 2 * SHORT);
	ck_assert_uint_gt(s.verify_failures, 0);
	ck_assert_ptr_nonnull(strstr(core_log, "reachable but not marked (led to by the word at 0x"));
}
END_TEST

START_TEST(finds_early_sweep)
{
	NEED_RUNG(_i);
	heap = heap_make("verify=1,%s", with_rung(_i, ",plant_early_sweep=1"));
	grow(20000);
	ck_ok(gcuffd_collect(heap));
	ck_assert_uint_gt(stats_of(heap).verify_failures, 0);
	ck_assert_ptr_nonnull(strstr(core_log, "swept before its end"));
}
END_TEST

/* ---- a root that is forgotten ---- */

#define NAMED ((size_t)64 << 10)

static struct list *volatile in_data = (struct list *)1; /* not in .bss, which is a mapping of its own */

static __attribute__((noinline)) void move_to(struct list *volatile *slot)
{
	head = NULL;
	*slot = push(NULL);
}

static struct list *volatile *map_named(void)
{
	void *p = mmap(NULL, NAMED, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0); /* no root but by its name */
	ck_assert_ptr_ne(p, MAP_FAILED);
	return p;
}

static void look_for(struct list *volatile *slot, bool planted)
{
	char from[100];
	for (int i = 0; i < (planted ? 20 : 3) && !stats_of(heap).verify_failures; i++) { /* a stale word can save it */
		move_to(slot);
		scrub();
		ck_ok(gcuffd_collect(heap));
	}
	if (!planted) {
		verified(heap);
		ck_assert_uint_eq((*slot)->number, 1);
		return;
	}
	ck_assert_uint_gt(stats_of(heap).verify_failures, 0);
	snprintf(from, sizeof(from), "led to by the word at %#lx in ", (unsigned long)slot);
	ck_assert_msg(strstr(core_log, from) != NULL, "%s", core_log);
}

/* Named ones come first, then the program's data segment. */
START_TEST(finds_skipped_root)
{
	int rung = _i / 8;
	bool planted = _i & 1, process = _i & 2, named = _i & 4;
	NEED_RUNG(rung);
	if (process && sanitized())
		GU_SKIP("a sanitizer's own memory takes terabytes");
	heap = heap_make("rung=%s,pacing=0,verify=1,plant_skip_root=%d,process_roots=%d", rung_names[rung], planted, process);
	struct list *volatile *slot = named ? map_named() : &in_data;
	if (named)
		ck_ok(gcuffd_root_add(heap, (const void *)slot, NAMED));
	look_for(slot, planted);
}
END_TEST

static __attribute__((noinline)) void move_to_tls(void)
{
	head = NULL;
	in_tls = push(NULL);
}

START_TEST(finds_skipped_tls)
{
	NEED_RUNG(_i);
	heap = heap_make("verify=1,%s", with_rung(_i, ",plant_skip_tls=1"));
	for (int i = 0; i < 20 && !stats_of(heap).verify_failures; i++) { /* a stale word can save it */
		move_to_tls();
		scrub();
		ck_ok(gcuffd_collect(heap));
	}
	ck_assert_uint_gt(stats_of(heap).verify_failures, 0);
	char from[100];
	snprintf(from, sizeof(from), "led to by the word at %#lx in memory without a name, through 0 objects", (unsigned long)&in_tls);
	ck_assert_msg(strstr(core_log, from) != NULL, "%s", core_log);
}
END_TEST

START_TEST(tls_without_plant)
{
	NEED_RUNG(_i);
	heap = heap_make("verify=1,%s", with_rung(_i, ""));
	for (int i = 0; i < 3; i++) {
		move_to_tls();
		scrub();
		ck_ok(gcuffd_collect(heap));
		ck_assert_uint_eq(in_tls->number, 1);
	}
	verified(heap);
}
END_TEST

/* ---- as nobody ---- */

static int nobody_clean(void)
{
	run_clean(GCUFFD_RUNG_ASYNC);
	return 0;
}

static int nobody_planted(void)
{
	struct gcuffd_stats s = run(with_rung(GCUFFD_RUNG_ASYNC, ",plant_drop_card=1"), 2 * SHORT);
	must(s.verify_failures > 0, "nothing was found");
	return 0;
}

START_TEST(unprivileged)
{
	if (getuid() != 0)
		GU_LACKS("root", "needs root, to become somebody else");
	in_child_as_nobody(nobody_clean);
	in_child_as_nobody(nobody_planted);
}
END_TEST

/* Without a userfaultfd of its own kind, auto falls to what there is. */
static int nobody_auto(void)
{
	struct gcuffd_heap *h = heap_make("rung=auto");
	must(stats_of(h).rung == GCUFFD_RUNG_ASYNC || stats_of(h).rung == GCUFFD_RUNG_STOP, "rung %u", stats_of(h).rung);
	must_ok(gcuffd_collect(h));
	must_ok(gcuffd_heap_destroy(h));
	return 0;
}

START_TEST(unprivileged_auto)
{
	if (getuid() != 0)
		GU_LACKS("root", "needs root, to become somebody else");
	in_child_as_nobody(nobody_auto);
}
END_TEST

static Suite *make_suite(void)
{
	Suite *suite = suite_create("verify");
	TCase *clean = test_case(suite, "clean"), *planted = test_case(suite, "planted"), *nobody = test_case(suite, "nobody");
	tcase_add_loop_test(clean, finds_nothing, GCUFFD_RUNG_STOP, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(clean, tls_without_plant, GCUFFD_RUNG_STOP, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(planted, finds_dropped_card, GCUFFD_RUNG_ASYNC, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(planted, finds_early_sweep, GCUFFD_RUNG_ASYNC, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(test_case(suite, "roots"), finds_skipped_root, 8 * GCUFFD_RUNG_STOP, 8 * GCUFFD_RUNG_RWP + 8);
	tcase_add_loop_test(planted, finds_skipped_tls, GCUFFD_RUNG_STOP, GCUFFD_RUNG_RWP + 1);
	tcase_add_test(nobody, unprivileged);
	tcase_add_test(nobody, unprivileged_auto);
	return suite;
}

TEST_MAIN(make_suite)
