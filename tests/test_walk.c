/* SPDX-License-Identifier: MIT */
/* test_walk.c - a walk visits each object once and brings nothing back; a histogram has the same sums; both beside mutators. */
#include "cold.h"

#define MANY 20000u

struct tally {
	struct gcuffd_arena *arena; /* of these alone; NULL: all */
	const struct gcuffd_type *type;
	uint64_t objects, bytes, cold, typed, atomic, sum;
	unsigned most;
};

static int tally(void *data, const struct gcuffd_walked *w)
{
	struct tally *t = data;
	if (t->arena && w->arena != t->arena)
		return 0;
	t->objects++;
	t->bytes += w->size;
	t->cold += w->flags & GCUFFD_WALKED_COLD;
	t->typed += w->kind == GCUFFD_TYPED && w->type == t->type;
	t->atomic += w->kind == GCUFFD_ATOMIC && !w->type;
	if (!(w->flags & GCUFFD_WALKED_COLD) && w->size == 64)
		t->sum += ((const struct node *)w->base)->number;
	return t->most && t->objects == t->most ? 42 : 0;
}

static struct tally walk(struct gcuffd_arena *arena, const struct gcuffd_type *type)
{
	struct tally t = {.arena = arena, .type = type};
	must_ok(gcuffd_heap_walk(heap, tally, &t));
	return t;
}

static size_t histogram(struct gcuffd_count *counts, size_t max)
{
	size_t n = 0;
	must_ok(gcuffd_heap_histogram(heap, counts, max, &n));
	return n;
}

static struct gcuffd_count sum_of(struct gcuffd_arena *arena)
{
	struct gcuffd_count counts[200], sum = {.arena = arena};
	size_t n = histogram(counts, 200);
	must(n <= 200, "%zu counts", n);
	for (size_t i = 0; i < n; i++) {
		sum.objects += counts[i].arena == arena ? counts[i].objects : 0;
		sum.bytes += counts[i].arena == arena ? counts[i].bytes : 0;
	}
	return sum;
}

START_TEST(every_object_once)
{
	struct gcuffd_arena *arena;
	struct gcuffd_type *type;
	const uint64_t bitmap = 1;
	NEED_RUNG(_i);
	heap = heap_make("rung=%s", rung_names[_i]);
	ck_ok(gcuffd_arena_create(heap, "walked", &arena));
	ck_ok(gcuffd_type_create(heap, &bitmap, 1, &type));
	uint64_t sum = 0;
	struct node *list = NULL;
	for (unsigned i = 0; i < MANY; i++, sum += i) {
		struct node *node = gcuffd_arena_alloc(arena, sizeof(*node), 0, GCUFFD_CONSERVATIVE);
		*node = (struct node){.next = list, .number = i + 1};
		list = node;
	}
	void *large = gcuffd_arena_alloc(arena, 100000, 0, GCUFFD_ATOMIC), *typed = gcuffd_arena_alloc_typed(arena, type, 16);
	struct tally t = walk(arena, type);
	ck_assert_uint_eq(t.objects, MANY + 2);
	ck_assert_uint_eq(t.sum, sum);
	ck_assert_uint_eq(t.atomic, 1);
	ck_assert_uint_eq(t.typed, 1);
	ck_assert_uint_eq(t.cold, 0);
	struct gcuffd_count counts[200];
	size_t n = histogram(counts, 200);
	ck_assert_uint_eq(n, 3);
	for (size_t i = 0; i < n; i++) {
		ck_assert_ptr_eq(counts[i].arena, arena);
		ck_assert_uint_eq(counts[i].size, counts[i].kind == GCUFFD_ATOMIC ? 131072 : counts[i].kind == GCUFFD_TYPED ? 16 : 64);
		ck_assert_uint_eq(counts[i].objects, counts[i].kind == GCUFFD_CONSERVATIVE ? MANY : 1);
	}
	ck_assert_uint_eq(sum_of(arena).bytes, t.bytes);
	ck_assert_uint_eq(histogram(counts, 1), 3);
	ck_ok(gcuffd_free(heap, list));
	ck_ok(gcuffd_free(heap, large));
	ck_assert_uint_eq(walk(arena, type).objects, MANY);
	ck_assert_uint_eq(sum_of(arena).objects, MANY);
	must(typed != NULL, "no memory");
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

/* What visit gives ends the walk, and the next one begins anew. */
START_TEST(ends_early)
{
	NEED_RUNG(_i);
	heap = heap_make("rung=%s", rung_names[_i]);
	struct node *list = make_list(100, 0);
	struct tally t = {.most = 7};
	ck_assert_int_eq(gcuffd_heap_walk(heap, tally, &t), 42);
	ck_assert_uint_eq(t.objects, 7);
	ck_assert_int_eq(gcuffd_heap_walk(heap, NULL, NULL), -EINVAL);
	ck_assert_uint_eq(walk(NULL, NULL).objects, 100);
	check_list(list, 100, 0);
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

START_TEST(brings_nothing_back)
{
	cold_heap("");
	struct node *list = make_list(MANY, 0);
	must_ok(gcuffd_collect(heap));
	ck_assert_uint_gt(cool_all(), 0);
	struct gcuffd_cold_stats before = cold_of(heap), after;
	struct tally t = walk(NULL, NULL);
	ck_assert_uint_ge(t.objects, MANY);
	ck_assert_uint_gt(t.cold, MANY / 2);
	ck_assert_uint_ge(sum_of(heap->arenas[0]).objects, MANY);
	after = cold_of(heap);
	ck_assert_uint_eq(after.restored_pages, before.restored_pages);
	ck_assert_uint_eq(after.out_pages, before.out_pages);
	check_list(list, MANY, 0);
	checked();
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

/* ---- beside mutators ---- */

static uint32_t quit;

static void *mutate(void *arg)
{
	struct gcuffd_arena *arena = arg;
	must_ok(gcuffd_thread_attach());
	for (unsigned n = 0; !__atomic_load_n(&quit, __ATOMIC_RELAXED); n++) {
		struct node *node = gcuffd_alloc(heap, n % 64 ? sizeof(*node) : 40000);
		must(node != NULL, "no memory");
		if (n % 3 == 0)
			must_ok(gcuffd_free(heap, node));
		void *other = gcuffd_arena_alloc(arena, 128, 0, GCUFFD_ATOMIC);
		must(other != NULL, "no memory");
		if (n % 4096 == 0)
			must_ok(gcuffd_collect(heap));
	}
	must_ok(gcuffd_thread_detach());
	return NULL;
}

START_TEST(beside_mutators)
{
	struct gcuffd_arena *kept, *busy[2];
	pthread_t threads[2];
	NEED_RUNG(_i);
	heap = heap_make("rung=%s,verify=1,start_size=1M", rung_names[_i]);
	ck_ok(gcuffd_arena_create(heap, "kept", &kept));
	static struct node *list; /* a root */
	list = NULL;
	for (unsigned i = 0; i < 1000; i++) {
		struct node *node = gcuffd_arena_alloc(kept, sizeof(*node), 0, GCUFFD_CONSERVATIVE);
		*node = (struct node){.next = list, .number = i};
		list = node;
	}
	quit = 0;
	for (int i = 0; i < 2; i++) {
		ck_ok(gcuffd_arena_create(heap, "busy", &busy[i]));
		ck_ok(pthread_create(&threads[i], NULL, mutate, busy[i]));
	}
	uint64_t end = test_now_ns() + check_span_ns(300000000);
	for (unsigned n = 0; n < 3 || test_now_ns() < end; n++) {
		struct tally t = walk(kept, NULL);
		must(t.objects == 1000 && t.sum == 1000 * 999 / 2, "%lu objects, %lu", t.objects, t.sum);
		struct gcuffd_count sum = sum_of(kept);
		must(sum.objects == 1000 && sum.bytes == 64000, "%lu objects of %lu bytes", sum.objects, sum.bytes);
	}
	__atomic_store_n(&quit, 1, __ATOMIC_RELAXED);
	for (int i = 0; i < 2; i++)
		pthread_join(threads[i], NULL);
	check_list(list, 1000, 0);
	verified(heap);
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

static Suite *make_suite(void)
{
	Suite *suite = suite_create("walk");
	TCase *objects = test_case(suite, "objects"), *cold = test_case(suite, "cold"), *threads = test_case(suite, "threads");
	tcase_add_loop_test(objects, every_object_once, GCUFFD_RUNG_STOP, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(objects, ends_early, GCUFFD_RUNG_STOP, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(cold, brings_nothing_back, GCUFFD_RUNG_MOVE, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(threads, beside_mutators, GCUFFD_RUNG_STOP, GCUFFD_RUNG_RWP + 1);
	return suite;
}

TEST_MAIN(make_suite)
