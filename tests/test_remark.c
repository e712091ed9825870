/* SPDX-License-Identifier: MIT */
/*
 * test_remark.c - what a remark reads is bounded by what was written, not by what lives: 512 words per dirty page,
 * the stacks, and a constant for data segments; and hardly anything is marked inside stops.
 */
#include "core.h"

#define FANOUT 30

struct node {
	struct node *child[FANOUT];
	uint64_t number, spare; /* 256 bytes */
};

static struct gcuffd_heap *heap;
static struct node *volatile root;
static uint32_t quit;

static struct node *build(size_t *budget, unsigned depth)
{
	struct node *n = gcuffd_alloc(heap, sizeof(*n));
	must(n != NULL, "errno %d", errno);
	n->number = (*budget)--;
	for (unsigned i = 0; depth && i < FANOUT && *budget; i++)
		n->child[i] = build(budget, depth - 1);
	return n;
}

static void make_live(size_t bytes)
{
	size_t budget = bytes / sizeof(struct node);
	struct node *top = gcuffd_alloc(heap, sizeof(*top));
	root = top;
	for (unsigned i = 0; i < FANOUT && budget; i++)
		top->child[i] = build(&budget, 4);
}

/* Words that are neither of dirty pages nor of stacks. */
static uint64_t other_words(const struct gcuffd_stats *s)
{
	uint64_t dirty = 512 * s->last_remark_dirty_pages + s->last_remark_stack_words;
	return s->last_remark_words > dirty ? s->last_remark_words - dirty : 0;
}

static void show(const char *what, const struct gcuffd_stats *s)
{
	printf("%s: live %lu MiB, marked %lu KiB, in stops %lu KiB; remark: %lu words, %lu of stacks, %lu dirty pages, %lu others\n", what,
	       s->live_bytes >> 20, s->last_marked_bytes >> 10, s->last_marked_in_stop_bytes >> 10, s->last_remark_words,
	       s->last_remark_stack_words, s->last_remark_dirty_pages, other_words(s));
}

static uint64_t constant; /* words of small ranges, measured with an all but empty heap */

static void measure_constant(int rung)
{
	heap = heap_make("rung=%s,pacing=0", rung_names[rung]);
	ck_ok(gcuffd_collect(heap));
	ck_ok(gcuffd_collect(heap));
	struct gcuffd_stats s = stats_of(heap);
	show("empty", &s);
	constant = s.last_remark_words - s.last_remark_stack_words;
	ck_assert_uint_le(constant, 1 << 17); /* a megabyte */
	ck_ok(gcuffd_heap_destroy(heap));
}

static void check_bound(const char *what)
{
	struct gcuffd_stats s = stats_of(heap);
	show(what, &s);
	/* each thread's current blocks count as dirty pages; twice the constant for what else the process wrote meanwhile */
	ck_assert_uint_le(other_words(&s), 2 * constant + 4096);
	ck_assert_msg(s.last_marked_in_stop_bytes * 100 < s.last_marked_bytes, "%lu of %lu bytes marked in stops",
		      s.last_marked_in_stop_bytes, s.last_marked_bytes);
}

static void *mutate(void *arg)
{
	struct test_rng rng = test_rng((uintptr_t)arg);
	must_ok(gcuffd_thread_attach());
	while (!__atomic_load_n(&quit, __ATOMIC_RELAXED)) {
		struct node *n = root;
		for (unsigned i = 0; i < 3 && n->child[test_below(&rng, FANOUT)]; i++) {
			struct node *next = n->child[test_below(&rng, FANOUT)];
			n = next ? next : n;
		}
		size_t budget = 8;
		if (n != root)
			n->child[test_below(&rng, FANOUT)] = build(&budget, 1);
		usleep(50);
	}
	must_ok(gcuffd_thread_detach());
	return NULL;
}

START_TEST(bound)
{
	NEED_RUNG(_i);
	pthread_t t[2];
	measure_constant(_i);
	heap = heap_make("rung=%s,pacing=0", rung_names[_i]);
	make_live((size_t)(check_seconds() >= 60 ? 1024 : 256) << 20);
	ck_ok(gcuffd_collect(heap));
	ck_ok(gcuffd_collect(heap));
	check_bound("quiet");
	quit = 0;
	for (uintptr_t i = 0; i < 2; i++)
		ck_ok(pthread_create(&t[i], NULL, mutate, (void *)i));
	for (int i = 0; i < 4; i++) {
		ck_ok(gcuffd_collect(heap));
		check_bound("busy");
	}
	__atomic_store_n(&quit, 1, __ATOMIC_RELAXED);
	for (int i = 0; i < 2; i++)
		pthread_join(t[i], NULL);
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

static Suite *make_suite(void)
{
	Suite *suite = suite_create("remark");
	tcase_add_loop_test(test_case(suite, "bound"), bound, GCUFFD_RUNG_ASYNC, GCUFFD_RUNG_RWP + 1);
	return suite;
}

TEST_MAIN(make_suite)
