/* SPDX-License-Identifier: MIT */
/*
 * test_types.c - typed objects and arrays: which words keep what they point to alive, by sizes, by rungs, while they change, on pages that are
 * out, and in an image.
 */
#include "cold.h"

#include <unistd.h>

#define HEAD 70u     /* words: more than one word of the bitmap */
#define ELEMENT 7u

static void *volatile keep[4]; /* roots */
static struct gcuffd_type *array;
static uint64_t bitmap[2];

static bool described(size_t bit) { return bitmap[bit / 64] >> bit % 64 & 1; }
static bool points(size_t word) { return described(word < HEAD ? word : HEAD + (word - HEAD) % ELEMENT); }

/* Some words of the head, and of an element its first and another. */
static void make_array_type(void)
{
	struct test_rng rng = test_rng(1);
	bitmap[0] = (test_rand(&rng) & ~(1ull << 5)) | 1ull << 9;
	bitmap[1] = test_below(&rng, 64) | 1ull << 6 | 1ull << 9;
	ck_ok(gcuffd_type_create_array(heap, bitmap, HEAD, ELEMENT, &array));
}

static __attribute__((noinline)) uint64_t hang_on(void **word)
{
	void *p = gcuffd_alloc(heap, 48);
	must(p != NULL, "errno %d", errno);
	*word = p;
	return hide(p);
}

static __attribute__((noinline)) void collect(void)
{
	scrub();
	must_ok(gcuffd_collect(heap));
	scrub();
}

#define PROBES 400u

struct probe {
	size_t word;
	uint64_t hidden;
};

/* An object hangs on each of some words, the last and those next to a page's border among them. */
static __attribute__((noinline)) size_t hang_probes(void **object, size_t words, struct probe *probes, struct test_rng *rng)
{
	size_t n = gu_min(words, PROBES);
	for (size_t i = 0; i < n; i++) {
		size_t near = test_below(rng, words / 512 + 1) * 512 + test_below(rng, 3);
		size_t word = words <= PROBES ? i : i == 0 ? words - 1 : i % 2 && near < words ? near : test_below(rng, words);
		bool taken = object[word] != NULL;
		probes[i] = (struct probe){word, taken ? 0 : hang_on(&object[word])};
	}
	return n;
}

static void check_probes(const struct probe *probes, size_t n, size_t words)
{
	size_t kept = 0;
	for (size_t i = 0; i < n; i++) {
		bool alive = probes[i].hidden && is_alive(heap, probes[i].hidden);
		if (probes[i].hidden && points(probes[i].word))
			must(alive, "word %zu of %zu", probes[i].word, words);
		kept += alive && !points(probes[i].word);
	}
	must(kept <= 2, "%zu of %zu are kept by words that are no pointers", kept, n); /* the stack may still say something */
}

static const size_t sizes[] = {HEAD, HEAD + 1, HEAD + 3 * ELEMENT, 1000, 2048, 2049, 2049 + ELEMENT, 10000, 131072, 131073, 400001};

START_TEST(arrays)
{
	NEED_RUNG(_i);
	static struct probe probes[PROBES];
	struct test_rng rng = test_rng(2);
	heap = heap_make("verify=1,rung=%s", rung_names[_i]);
	make_array_type();
	for (size_t i = 0; i < GU_ARRAY_LEN(sizes); i++) {
		void **object = keep[0] = gcuffd_alloc_typed(heap, array, sizes[i] * 8);
		ck_assert_ptr_nonnull(object);
		size_t n = hang_probes(object, sizes[i], probes, &rng);
		collect();
		collect();
		check_probes(probes, n, sizes[i]);
	}
	verified(heap);
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

/* Nothing is behind the head; of what grows, the elements that it had stay, and new ones count. */
START_TEST(resized)
{
	NEED_RUNG(_i);
	heap = heap_make("verify=1,rung=%s", rung_names[_i]);
	make_array_type();
	errno = 0;
	ck_assert_ptr_null(gcuffd_alloc_typed(heap, array, HEAD * 8 - 1));
	ck_assert_int_eq(errno, EINVAL);
	keep[0] = gcuffd_alloc_typed(heap, array, HEAD * 8);
	uint64_t head = hang_on((void **)keep[0] + 9), first = 0, more = 0;
	for (size_t words = HEAD + ELEMENT; words < 100000; words *= 4) {
		keep[0] = gcuffd_realloc(heap, keep[0], words * 8);
		ck_assert_ptr_nonnull(keep[0]);
		size_t last = HEAD + (words - HEAD - 1) / ELEMENT * ELEMENT + 3; /* bit 9 of the second word: element word 3 */
		if (last >= words)
			last -= ELEMENT;
		first = first ? first : hang_on((void **)keep[0] + HEAD); /* bit 6 */
		more = hang_on((void **)keep[0] + last);
		collect();
		ck_assert(is_alive(heap, head));
		ck_assert(is_alive(heap, first));
		ck_assert(is_alive(heap, more));
	}
	keep[0] = gcuffd_realloc(heap, keep[0], HEAD * 8);
	collect();
	ck_assert(is_alive(heap, head));
	ck_assert(!is_alive(heap, more));
	verified(heap);
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

START_TEST(bad_descriptions)
{
	struct gcuffd_type *t;
	uint64_t bits[64] = {1};
	heap = heap_make("%s", "");
	ck_assert_int_eq(gcuffd_type_create_array(heap, NULL, 1, 1, &t), -EINVAL);
	ck_assert_int_eq(gcuffd_type_create_array(heap, bits, 1, 0, &t), -EINVAL);
	ck_assert_int_eq(gcuffd_type_create_array(heap, bits, 4096, 1, &t), -EINVAL);
	ck_assert_int_eq(gcuffd_type_create_array(heap, bits, SIZE_MAX, 2, &t), -EINVAL);
	ck_assert_int_eq(gcuffd_type_create_array(heap, bits, 0, 4097, &t), -EINVAL);
	ck_ok(gcuffd_type_create_array(heap, bits, 0, 4096, &t));
	ck_ok(gcuffd_type_create_array(heap, bits, 4095, 1, &t));
	ck_ok(gcuffd_type_create_array(heap, bits, 0, 1, &t));
	ck_assert_ptr_nonnull(gcuffd_alloc_typed(heap, t, 0));
	ck_assert_ptr_nonnull(gcuffd_alloc_typed(heap, t, 8000000));
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

/* ---- while they change ---- */

struct cell {
	uint64_t number, noise; /* noise looks like a pointer at times */
	struct cell *next;
};

#define CELLS 3000u

/* Vectors of cells by value, which point to others; each pointer is moved about while cycles run. */
START_TEST(changing)
{
	NEED_RUNG(_i);
	const uint64_t bits = 1ull << 2;
	struct test_rng rng = test_rng(3);
	struct gcuffd_type *cells;
	heap = heap_make("verify=1,start_size=1M,rung=%s", rung_names[_i]);
	ck_ok(gcuffd_type_create_array(heap, &bits, 0, 3, &cells));
	uint64_t end = test_now_ns() + check_span_ns(check_seconds() * 1000000000ull / 8);
	struct cell *all = keep[0] = gcuffd_alloc_typed(heap, cells, CELLS * sizeof(*all));
	for (uint64_t n = 0; goes_on(heap, end, 5); n++) {
		struct cell *one = gcuffd_alloc_typed(heap, cells, sizeof(*one) * (1 + test_below(&rng, 8)));
		must(one && !one->next, "errno %d", errno);
		size_t a = test_below(&rng, CELLS), b = test_below(&rng, CELLS);
		one->number = all[a].number = n;
		all[a].next = one;
		all[b].noise = (uintptr_t)all[b].next; /* and this no more */
		struct cell *moved = all[b].next;
		all[b].next = NULL;
		size_t c = test_below(&rng, CELLS);
		all[c].next = moved;
		all[c].number = moved ? moved->number : 0;
		for (size_t i = 0; n % 1024 == 0 && i < CELLS; i++)
			must(!all[i].next || all[i].next->number == all[i].number, "cell %zu", i);
	}
	verified(heap);
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

/* ---- where they lie ---- */

START_TEST(out)
{
	static struct probe probes[PROBES];
	struct test_rng rng = test_rng(4);
	cold_heap(",verify=1");
	make_array_type();
	for (size_t i = 0; i < GU_ARRAY_LEN(sizes); i++) {
		void **object = keep[0] = gcuffd_alloc_typed(heap, array, sizes[i] * 8);
		size_t n = hang_probes(object, sizes[i], probes, &rng);
		uint64_t before = cold_of(heap).restored_pages;
		for (size_t filled = 0; filled < 200000; filled += sizes[i] * 8) /* what a thread allocates from stays */
			must(gcuffd_alloc_typed(heap, array, sizes[i] * 8), "errno %d", errno);
		ck_assert_uint_gt(cool_all(), 0);
		collect();
		collect();
		ck_assert_uint_eq(cold_of(heap).collector_pages, 0);
		ck_assert(is_out(&object[sizes[i] - 1]));
		check_probes(probes, n, sizes[i]);
		ck_assert_uint_eq(cold_of(heap).restored_pages, before); /* who looks for an object does not touch it */
	}
	checked();
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

START_TEST(in_an_image)
{
	NEED_RUNG(_i);
	char path[TEST_PATH];
	struct gcuffd_options o;
	struct gcuffd_type *again = NULL, *other = NULL;
	snprintf(path, sizeof(path), "%s/image", test_folder);
	heap = heap_make("verify=1,reservation=1G,rung=%s", rung_names[_i]);
	make_array_type();
	void **object = keep[0] = gcuffd_alloc_typed(heap, array, 100000 * 8);
	struct node *list = make_list(1000, 3);
	size_t last = HEAD + 14000 * ELEMENT + 3;
	object[last] = list;
	struct gcuffd_named root = {"array", object};
	struct gcuffd_image_options image = {.size = sizeof(image), .roots = &root, .nroots = 1};
	must(!gcuffd_heap_save(heap, path, &image), "%s", core_log);
	keep[0] = NULL;
	ck_ok(gcuffd_heap_destroy(heap));
	gcuffd_options_init(&o);
	ck_ok(gcuffd_options_parse(&o, "verify=1", NULL));
	o.log = core_keep_line;
	must(!gcuffd_heap_load(path, NULL, &o, &heap), "%s", core_log);
	collect();
	collect();
	object = gcuffd_image_root(heap, "array");
	check_list(object[last], 1000, 3);
	array = NULL;
	make_array_type(); /* a program makes its types anew: the image's is found */
	ck_ok(gcuffd_type_create_array(heap, bitmap, HEAD, ELEMENT, &again));
	ck_assert_ptr_eq(again, array);
	ck_ok(gcuffd_type_create(heap, bitmap, HEAD + ELEMENT, &other));
	ck_assert_ptr_ne(other, array);
	verified(heap);
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

static Suite *make_suite(void)
{
	Suite *suite = suite_create("types");
	tcase_add_loop_test(test_case(suite, "arrays"), arrays, GCUFFD_RUNG_STOP, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(test_case(suite, "resized"), resized, GCUFFD_RUNG_STOP, GCUFFD_RUNG_RWP + 1);
	tcase_add_test(test_case(suite, "bad_descriptions"), bad_descriptions);
	tcase_add_loop_test(test_case(suite, "changing"), changing, GCUFFD_RUNG_STOP, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(test_case(suite, "out"), out, GCUFFD_RUNG_MOVE, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(test_case(suite, "in_an_image"), in_an_image, GCUFFD_RUNG_STOP, GCUFFD_RUNG_RWP + 1);
	return suite;
}

TEST_MAIN(make_suite)
