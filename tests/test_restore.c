/* SPDX-License-Identifier: MIT */
/*
 * test_restore.c - what comes back before it is touched: pages in order behind those that are, and pages in an order that was recorded. And
 * what must not: behind touches in no order, for the collector, where it is left out, above the target.
 */
#define COLD_OPTIONS ",verify=1,pacing=0"
#include "cold.h"

#include <sys/wait.h>

#include "fake_os.h"
#include "gc/restore.h"

#define PAGES 1024u

/* Each page holds its number, and words that don't compress away. */
static uint64_t *make_pages(size_t n)
{
	uint64_t *words = gcuffd_alloc_aligned(heap, n * GU_PAGE, GU_PAGE, GCUFFD_CONSERVATIVE);
	must(words != NULL, "errno %d", errno);
	struct test_rng rng = test_rng(n);
	for (size_t i = 0; i < n * 512; i++)
		words[i] = i % 512 ? test_rand(&rng) >> 32 : i / 512;
	return words;
}

static void note_offsets(const uint64_t *words, uint64_t *offsets)
{
	for (size_t i = 0; i < PAGES; i++)
		offsets[i] = (uintptr_t)(words + i * 512) - heap->space.base;
}

static void touch(const uint64_t *words, size_t page) { must(words[page * 512] == page, "page %zu: %lu", page, (unsigned long)words[page * 512]); }

static void shuffle(uint32_t *order, size_t n, struct test_rng *rng)
{
	for (size_t i = 0; i < n; i++)
		order[i] = (uint32_t)i;
	for (size_t i = n - 1; i > 0; i--) {
		size_t j = test_below(rng, i + 1);
		uint32_t other = order[j];
		order[j] = order[i];
		order[i] = other;
	}
}

/* ---- streams ---- */

/* All that is to be brought, as it would be: how many pages. */
static size_t bring(struct gu_streams *a, uint8_t *there, size_t pages)
{
	size_t n = 0, page;
	while (gu_streams_next(a, pages, &page)) {
		ck_assert_uint_lt(page, pages);
		if (there[page])
			continue;
		there[page] = 1;
		gu_streams_brought(a);
		n++;
	}
	return n;
}

/* Touches pages as a program would; how many came back untouched, and of these proved. */
static size_t run_streams(struct gu_streams *a, uint8_t *there, const uint32_t *order, size_t n, size_t pages, size_t *proved)
{
	size_t ahead = 0;
	for (size_t i = 0; i < n; i++) {
		if (there[order[i]])
			continue;
		there[order[i]] = 1;
		*proved += gu_streams_touched(a, order[i]);
		ahead += bring(a, there, pages);
	}
	return ahead;
}

START_TEST(streams_go_on)
{
	uint32_t order[PAGES];
	for (int down = 0; down < 2; down++) {
		struct gu_streams a = {.latest = NULL};
		uint8_t there[PAGES] = {0};
		size_t proved = 0;
		for (uint32_t i = 0; i < PAGES; i++)
			order[i] = down ? PAGES - 1 - i : i;
		size_t ahead = run_streams(&a, there, order, PAGES, PAGES, &proved);
		ck_assert_uint_ge(ahead, PAGES * 9 / 10);
		ck_assert_uint_le(ahead, PAGES);
		ck_assert_uint_ge(proved + GU_STREAM_WINDOW, ahead);
		ck_assert_uint_le(proved, ahead);
		memset(there, 0, sizeof(there)); /* all of it is out again: what the streams remember is no hindrance */
		ck_assert_uint_ge(run_streams(&a, there, order, PAGES, PAGES, &proved), PAGES * 9 / 10);
	}
}
END_TEST

/* What each of several brings back is its own. */
START_TEST(streams_side_by_side)
{
	struct gu_streams a = {.latest = NULL};
	uint8_t there[PAGES] = {0};
	uint32_t order[PAGES];
	size_t proved = 0;
	for (uint32_t i = 0; i < PAGES; i++)
		order[i] = i % 4 * (PAGES / 4) + i / 4;
	ck_assert_uint_ge(run_streams(&a, there, order, PAGES, PAGES, &proved), PAGES * 8 / 10);
}
END_TEST

/* A stream that ends has brought back no more than was touched before, and a window at most. */
START_TEST(streams_that_end)
{
	for (uint32_t len = 1; len < 100; len++) {
		struct gu_streams a = {.latest = NULL};
		uint8_t there[PAGES] = {0};
		uint32_t order[100];
		size_t proved = 0, there_too = 0;
		for (uint32_t i = 0; i < len; i++)
			order[i] = 500 + i;
		(void)run_streams(&a, there, order, len, PAGES, &proved);
		for (size_t i = 500 + len; i < PAGES; i++)
			there_too += there[i];
		ck_assert_uint_le(there_too, gu_min(len, GU_STREAM_WINDOW));
	}
}
END_TEST

START_TEST(touches_in_no_order)
{
	struct test_rng rng = test_rng(0);
	struct gu_streams a = {.latest = NULL};
	static uint8_t there[PAGES * 16];
	static uint32_t order[PAGES * 16];
	size_t proved = 0;
	shuffle(order, GU_ARRAY_LEN(order), &rng);
	size_t ahead = run_streams(&a, there, order, GU_ARRAY_LEN(order) / 2, GU_ARRAY_LEN(there), &proved);
	ck_assert_uint_le(ahead, GU_ARRAY_LEN(order) / 100);
}
END_TEST

/* Ends of the reservation; touches that are faster than what they follow; stopping. */
START_TEST(streams_at_the_edges)
{
	struct gu_streams a = {.latest = NULL};
	uint8_t there[8] = {0};
	size_t page;
	(void)gu_streams_touched(&a, 6);
	(void)gu_streams_touched(&a, 7);
	ck_assert_uint_eq(bring(&a, there, 8), 0);
	(void)gu_streams_touched(&a, 1);
	(void)gu_streams_touched(&a, 0);
	ck_assert_uint_eq(bring(&a, there, 8), 0);
	struct gu_streams b = {.latest = NULL};
	for (size_t p = 100; p < 104; p++)
		(void)gu_streams_touched(&b, p);
	ck_assert(gu_streams_next(&b, PAGES, &page));
	ck_assert_uint_eq(page, 104);
	gu_streams_stop(&b);
	ck_assert(!gu_streams_next(&b, PAGES, &page));
}
END_TEST

/* ---- recordings ---- */

START_TEST(recordings)
{
	struct gu_order o = {0};
	uint64_t got[4];
	size_t n;
	ck_assert_int_eq(gu_order_end(&o, got, 4, &n), -EINVAL);
	gu_order_note(&o, 1);
	ck_ok(gu_order_begin(&o));
	ck_assert_int_eq(gu_order_begin(&o), -EBUSY);
	for (uint64_t i = 0; i < 10; i++)
		gu_order_note(&o, i << 12);
	uint64_t word = o.word;
	ck_ok(gu_order_end(&o, got, 4, &n));
	ck_assert_uint_eq(n, 10);
	for (uint64_t i = 0; i < 4; i++)
		ck_assert_uint_eq(got[i], i << 12);
	gu_order_note(&o, 1);
	ck_ok(gu_order_begin(&o));
	gu_order_add(&o, word, 99); /* who was at it when the first one ended */
	ck_ok(gu_order_end(&o, NULL, 0, &n));
	ck_assert_uint_eq(n, 0);
	ck_ok(gu_order_begin(&o));
	for (size_t i = 0; i < GU_ORDER_MOST + 10; i++)
		gu_order_note(&o, i);
	ck_ok(gu_order_end(&o, got, 4, &n));
	ck_assert_uint_eq(n, GU_ORDER_MOST);
	gu_order_free(&o);
}
END_TEST

/* ---- neighbours ---- */

static void note_ahead(const char *what, struct gcuffd_cold_stats s)
{
	printf("%s: %lu restored, %lu ahead, %lu followed\n", what, (unsigned long)s.restored_pages, (unsigned long)s.ahead_pages, (unsigned long)s.followed_pages);
}

START_TEST(in_order)
{
	cold_heap("");
	const uint64_t *words = make_pages(PAGES);
	for (int down = 0; down < 2; down++) {
		struct gcuffd_cold_stats before = cold_of(heap);
		ck_assert_uint_ge(cool_all(), PAGES);
		for (size_t i = 0; i < PAGES; i++) {
			touch(words, down ? PAGES - 1 - i : i);
			usleep(i % 16 ? 0 : 100);
		}
		struct gcuffd_cold_stats s = cold_of(heap);
		note_ahead("in order", s);
		ck_assert_uint_ge(s.ahead_pages - before.ahead_pages, PAGES / 10);
		ck_assert_uint_ge(s.ahead_pages, s.followed_pages);
		ck_assert_uint_gt(s.followed_pages, before.followed_pages);
		checked();
	}
	ck_ok(gcuffd_collect(heap));
	for (size_t i = 0; i < PAGES; i++)
		touch(words, i);
	checked();
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

/* What was never touched stays out. */
START_TEST(in_no_order)
{
	struct test_rng rng = test_rng(0);
	uint32_t order[PAGES];
	cold_heap("");
	const uint64_t *words = make_pages(PAGES);
	for (int round = 0; round < 5; round++) {
		struct gcuffd_cold_stats before = cold_of(heap);
		ck_assert_uint_ge(cool_all() + before.out_pages, PAGES);
		shuffle(order, PAGES, &rng);
		for (size_t i = 0; i < PAGES / 4; i++) {
			touch(words, order[i]);
			usleep(i % 16 ? 0 : 100);
		}
		ck_assert_uint_le(cold_of(heap).ahead_pages - before.ahead_pages, PAGES / 40);
	}
	note_ahead("in no order", cold_of(heap));
	checked();
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

static void touch_by_sixteen(const uint64_t *words)
{
	cool_all();
	for (size_t i = 0; i < PAGES; i++) {
		touch(words, i);
		usleep(i % 16 ? 0 : 100);
	}
}

/* For threads of the collector's each page comes by itself. */
START_TEST(not_for_the_collector)
{
	cold_heap("");
	const uint64_t *words = make_pages(PAGES);
	cool_all();
	gu_restore_own(heap->restore, (uint32_t)gettid());
	touch_by_sixteen(words);
	ck_assert_uint_eq(cold_of(heap).ahead_pages, 0);
	usleep(10000); /* it is counted after who touched was woken */
	ck_assert_uint_ge(cold_of(heap).collector_pages, PAGES);
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

START_TEST(not_without)
{
	cold_heap(",without=neighbours");
	const uint64_t *words = make_pages(PAGES);
	touch_by_sixteen(words);
	ck_assert_uint_eq(cold_of(heap).ahead_pages, 0);
	ck_assert_uint_ge(cold_of(heap).restored_pages, PAGES);
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

/* ---- a recorded order ---- */

#define TOUCHED 200u

/* Until as many pages were brought back, or a minute has passed. */
static void wait_for_early(uint64_t n)
{
	for (int i = 0; i < 60000 && cold_of(heap).early_pages < n; i++)
		usleep(1000);
	ck_assert_uint_eq(cold_of(heap).early_pages, n);
}

static void prefetch(const uint64_t *offsets, size_t n)
{
	int err;
	while ((err = gcuffd_order_prefetch(heap, offsets, n)) == -EBUSY)
		usleep(100);
	ck_ok(err);
}

START_TEST(recorded_and_prefetched)
{
	struct test_rng rng = test_rng(0);
	uint64_t offsets[TOUCHED + 1];
	uint32_t order[PAGES];
	size_t n;
	cold_heap(",without=neighbours");
	const uint64_t *words = make_pages(PAGES);
	uint64_t first = (uintptr_t)words - heap->space.base;
	ck_assert_int_eq(gcuffd_order_end(heap, offsets, TOUCHED, &n), -EINVAL);
	for (uint64_t round = 1; round < 4; round++) {
		cool_all();
		shuffle(order, PAGES, &rng);
		ck_ok(gcuffd_order_begin(heap));
		ck_assert_int_eq(gcuffd_order_begin(heap), -EBUSY);
		for (size_t i = 0; i < TOUCHED; i++)
			touch(words, order[i]);
		usleep(10000); /* it is written down after who touched was woken */
		ck_ok(gcuffd_order_end(heap, offsets, TOUCHED + 1, &n));
		ck_assert_uint_eq(n, TOUCHED);
		for (size_t i = 0; i < TOUCHED; i++)
			ck_assert_uint_eq(offsets[i], first + (uint64_t)order[i] * GU_PAGE);
		cool_all();
		uint64_t restored = cold_of(heap).restored_pages, out = cold_of(heap).out_pages;
		prefetch(offsets, TOUCHED);
		wait_for_early(round * TOUCHED);
		ck_assert_uint_eq(cold_of(heap).out_pages, out - TOUCHED);
		for (size_t i = 0; i < PAGES; i++)
			ck_assert_int_eq(is_out(words + order[i] * 512), i >= TOUCHED);
		for (size_t i = 0; i < TOUCHED; i++)
			touch(words, order[i]);
		ck_assert_uint_eq(cold_of(heap).restored_pages, restored + TOUCHED);
	}
	checked();
	ck_ok(gcuffd_collect(heap));
	checked();
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

START_TEST(lists_that_are_wrong)
{
	uint64_t offsets[6] = {0, UINT64_MAX, 1 << 30, 12345, 4096, 1ull << 29};
	size_t n;
	heap = heap_make("reservation=1G");
	ck_assert_int_eq(gcuffd_order_begin(heap), -EOPNOTSUPP);
	ck_assert_int_eq(gcuffd_order_end(heap, offsets, 1, &n), -EOPNOTSUPP);
	ck_assert_int_eq(gcuffd_order_prefetch(heap, offsets, 1), -EOPNOTSUPP);
	ck_ok(gcuffd_heap_destroy(heap));
	cold_heap("");
	const uint64_t *words = make_pages(PAGES);
	cool_all();
	ck_assert_int_eq(gcuffd_order_prefetch(heap, offsets, GU_ORDER_MOST + 1), -EINVAL);
	ck_ok(gcuffd_order_prefetch(heap, NULL, 0));
	prefetch(offsets, GU_ARRAY_LEN(offsets));
	prefetch(offsets, GU_ARRAY_LEN(offsets)); /* the first is done */
	for (size_t i = 0; i < PAGES; i++)
		touch(words, i);
	checked();
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

/* What can't be read and was not touched is neither poisoned nor lost. */
START_TEST(unreadable_for_a_while)
{
	uint64_t offsets[PAGES];
	cold_heap(",store_memory=1M,store_file=64M,without=neighbours");
	const uint64_t *words = make_pages(PAGES);
	note_offsets(words, offsets);
	fake_install();
	cool_all();
	ck_assert_uint_gt(cold_of(heap).store_file_bytes, 0);
	fake_fail(FAKE_PREAD, 1, -EIO);
	fake.sticky = true;
	prefetch(offsets, PAGES);
	prefetch(offsets, 1); /* taken when the first is done */
	fake_clear();
	ck_assert_uint_eq(cold_of(heap).poisoned_pages, 0);
	ck_assert_uint_gt(cold_of(heap).out_pages, 10);
	for (size_t i = 0; i < PAGES; i++)
		touch(words, i);
	checked();
	ck_ok(gcuffd_heap_destroy(heap));
	fake_remove();
}
END_TEST

/* It would only push out something else. */
START_TEST(not_above_the_target)
{
	uint64_t offsets[PAGES];
	cold_heap(",resident_target=2M,store_memory=64M");
	const uint64_t *words = make_pages(PAGES);
	note_offsets(words, offsets);
	cool_all();
	prefetch(offsets, PAGES);
	prefetch(offsets, 1);
	ck_assert_uint_lt(cold_of(heap).early_pages, PAGES * 3 / 4);
	for (size_t i = 0; i < PAGES; i++)
		touch(words, i);
	checked();
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

/* ---- under load ---- */

static uint32_t quit;
static const uint64_t *shared; /* a root */
static uint32_t inside, most_inside; /* atomic */

static long read_and_wait(int fd, void *buffer, size_t len, off_t at)
{
	uint32_t now = gu_add_seqcst(&inside, 1) + 1, most = gu_load_seqcst(&most_inside);
	while (now > most && !gu_cas_seqcst(&most_inside, &most, now))
		;
	usleep(1000);
	gu_sub_seqcst(&inside, 1);
	return gu_os_linux.pread(fd, buffer, len, at);
}

/* Sweeps over its pages and counts its sweeps on each. */
static void *sweep(void *arg)
{
	struct test_rng rng = test_rng((uintptr_t)arg);
	must_ok(gcuffd_thread_attach());
	uint64_t *pages = gcuffd_alloc_aligned(heap, 300 * GU_PAGE, GU_PAGE, GCUFFD_CONSERVATIVE);
	must(pages != NULL, "errno %d", errno);
	for (size_t i = 0; i < 300 * 512; i++) /* which don't compress away */
		pages[i] = i % 512 == 5 ? 0 : test_rand(&rng) >> 32;
	for (uint64_t round = 0; !gu_load_relaxed(&quit); round++) {
		bool down = test_below(&rng, 2);
		for (size_t i = 0; i < 300; i++) {
			uint64_t *word = &pages[(down ? 299 - i : i) * 512 + 5];
			must(*word == round, "%lu, not %lu", (unsigned long)*word, (unsigned long)round);
			*word = round + 1;
		}
	}
	must_ok(gcuffd_thread_detach());
	return NULL;
}

static void *record(void *unused)
{
	static uint64_t offsets[10000];
	size_t n;
	must_ok(gcuffd_thread_attach());
	while (!gu_load_relaxed(&quit)) {
		must_ok(gcuffd_order_begin(heap));
		usleep(3000);
		must_ok(gcuffd_order_end(heap, offsets, GU_ARRAY_LEN(offsets), &n));
		int err = gcuffd_order_prefetch(heap, offsets, gu_min(n, GU_ARRAY_LEN(offsets)));
		must(!err || err == -EBUSY, "%d", err);
	}
	must_ok(gcuffd_thread_detach());
	return unused;
}

static void sweep_against_eviction(void)
{
	pthread_t threads[4];
	quit = 0;
	for (uintptr_t i = 0; i < GU_ARRAY_LEN(threads); i++)
		must_ok(pthread_create(&threads[i], NULL, i ? sweep : record, (void *)i));
	uint64_t end = test_now_ns() + check_seconds() * 1000000000ull / 2;
	for (unsigned round = 0; goes_on(heap, end, 3) || (!cold_of(heap).early_pages && test_now_ns() < end + 60000000000ull * check_slow()); round++) {
		cool_all();
		if (round % 8 == 0)
			ck_ok(gcuffd_collect(heap));
	}
	gu_store_seqcst(&quit, 1);
	for (size_t i = 0; i < GU_ARRAY_LEN(threads); i++)
		must_ok(pthread_join(threads[i], NULL));
	note_ahead("against eviction", cold_of(heap));
	ck_assert_uint_gt(cold_of(heap).ahead_pages, 0);
	ck_assert_uint_gt(cold_of(heap).early_pages, 0);
	ck_assert_uint_eq(cold_of(heap).collector_pages, 0);
	checked();
	ck_ok(gcuffd_heap_destroy(heap));
}

START_TEST(against_eviction)
{
	cold_heap(",start_size=1M,decay_ms=50");
	sweep_against_eviction();
}
END_TEST

START_TEST(several_against_eviction)
{
	cold_heap(",start_size=1M,decay_ms=50,resolver_threads=4");
	sweep_against_eviction();
}
END_TEST

/* Much of it in the file, so that threads wait for the same pages, and for neighbours, while they are read. */
START_TEST(several_against_a_file)
{
	cold_heap(",start_size=1M,decay_ms=50,resolver_threads=16,store_memory=1M,store_file=256M");
	fake_install();
	fake_os.pread = read_and_wait;
	most_inside = 0;
	sweep_against_eviction();
	fake_remove();
	ck_assert_uint_gt(most_inside, 1);
}
END_TEST

/* ---- several threads ---- */

static void *touch_quarter(void *arg)
{
	const uint64_t *words = gu_load_relaxed(&shared);
	must_ok(gcuffd_thread_attach());
	for (size_t i = (uintptr_t)arg; i < PAGES; i += 4)
		touch(words, i);
	must_ok(gcuffd_thread_detach());
	return NULL;
}

static void touch_by_four(void)
{
	pthread_t threads[4];
	for (uintptr_t i = 0; i < GU_ARRAY_LEN(threads); i++)
		must_ok(pthread_create(&threads[i], NULL, touch_quarter, (void *)i));
	for (size_t i = 0; i < GU_ARRAY_LEN(threads); i++)
		must_ok(pthread_join(threads[i], NULL));
}

/* As many reads are under way as there are threads, and threads of the program that wait. */
START_TEST(read_at_once)
{
	cold_heap(",resolver_threads=3,store_memory=1M,store_file=64M,without=neighbours");
	shared = make_pages(PAGES);
	cool_all();
	ck_assert_uint_gt(cold_of(heap).store_file_bytes, 0);
	fake_install();
	fake_os.pread = read_and_wait;
	most_inside = 0;
	touch_by_four();
	ck_assert_uint_eq(most_inside, 3);
	ck_assert_uint_eq(cold_of(heap).out_pages, 0);
	checked();
	ck_ok(gcuffd_heap_destroy(heap));
	fake_remove();
}
END_TEST

START_TEST(as_many_as_asked_for)
{
	NEED_RUNG(_i);
	for (unsigned n = 1; n <= GU_RESOLVERS; n *= 4) {
		heap = heap_make("rung=%s,cold=1,reservation=1G,resolver_threads=%u", rung_names[_i], n);
		shared = make_pages(PAGES);
		cool_all();
		ck_assert_uint_eq(heap->restore->nthreads, n);
		touch_by_four();
		checked();
		ck_ok(gcuffd_heap_destroy(heap));
	}
}
END_TEST

/* A child has what is out, and neither the parent's recording nor its list. */
static void be_a_child(const uint64_t *words, const uint64_t *offsets)
{
	uint64_t got[PAGES];
	size_t n;
	must(gcuffd_order_end(heap, got, PAGES, &n) == -EINVAL, "the parent's recording");
	must_ok(gcuffd_order_begin(heap));
	for (size_t i = 0; i < PAGES; i++)
		touch(words, i);
	must_ok(gcuffd_order_end(heap, got, PAGES, &n));
	must_ok(gcuffd_cool(heap, NULL, 0, &n));
	must_ok(gcuffd_order_prefetch(heap, offsets, PAGES));
	for (size_t i = 0; i < PAGES; i++)
		touch(words, i);
	space_checked(heap);
}

static void fork_while_out(void)
{
	uint64_t offsets[PAGES];
	size_t n;
	int status;
	const uint64_t *words = make_pages(PAGES);
	note_offsets(words, offsets);
	for (int i = 0; i < 5; i++) {
		cool_all();
		ck_ok(gcuffd_order_begin(heap));
		prefetch(offsets, PAGES);
		fflush(stdout);
		pid_t pid = fork();
		if (pid == 0) {
			limit_child();
			be_a_child(words, offsets);
			_exit(0);
		}
		for (size_t k = 0; k < PAGES; k++)
			touch(words, k);
		ck_assert_int_eq(waitpid(pid, &status, 0), pid);
		ck_assert_int_eq(status, 0);
		ck_ok(gcuffd_order_end(heap, offsets, 0, &n));
	}
	checked();
	ck_ok(gcuffd_heap_destroy(heap));
}

START_TEST(forks)
{
	cold_heap("");
	fork_while_out();
}
END_TEST

START_TEST(several_and_forks)
{
	cold_heap(",resolver_threads=4,store_memory=1M,store_file=64M");
	fork_while_out();
}
END_TEST

static Suite *make_suite(void)
{
	Suite *suite = suite_create("restore");
	TCase *streams = test_case(suite, "streams"), *neighbours = test_case(suite, "neighbours"), *order = test_case(suite, "order"), *load = test_case(suite, "load"), *several = test_case(suite, "several");
	tcase_add_test(streams, streams_go_on);
	tcase_add_test(streams, streams_side_by_side);
	tcase_add_test(streams, streams_that_end);
	tcase_add_test(streams, touches_in_no_order);
	tcase_add_test(streams, streams_at_the_edges);
	tcase_add_loop_test(neighbours, in_order, GCUFFD_RUNG_MOVE, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(neighbours, in_no_order, GCUFFD_RUNG_MOVE, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(neighbours, not_for_the_collector, GCUFFD_RUNG_MOVE, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(neighbours, not_without, GCUFFD_RUNG_MOVE, GCUFFD_RUNG_RWP + 1);
	tcase_add_test(order, recordings);
	tcase_add_loop_test(order, recorded_and_prefetched, GCUFFD_RUNG_MOVE, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(order, lists_that_are_wrong, GCUFFD_RUNG_MOVE, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(order, unreadable_for_a_while, GCUFFD_RUNG_MOVE, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(order, not_above_the_target, GCUFFD_RUNG_MOVE, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(load, against_eviction, GCUFFD_RUNG_MOVE, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(load, forks, GCUFFD_RUNG_MOVE, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(several, several_against_eviction, GCUFFD_RUNG_MOVE, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(several, several_against_a_file, GCUFFD_RUNG_MOVE, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(several, several_and_forks, GCUFFD_RUNG_MOVE, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(several, read_at_once, GCUFFD_RUNG_MOVE, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(several, as_many_as_asked_for, GCUFFD_RUNG_MOVE, GCUFFD_RUNG_RWP + 1);
	return suite;
}

TEST_MAIN(make_suite)
