/* SPDX-License-Identifier: MIT */
/*
 * test_arming.c - how pages of the heap are armed, seen from the kernel's side while threads allocate: only by looking and protecting in one step
 * (.inv.track.get-wp), and never in a block that a thread allocates from (.inv.track.current).
 */
#include "core.h"
#include "fake_os.h"
#include "gc/heap.h"
#include "sys/uapi.h"

#define KEPT 300u

static struct gcuffd_heap *heap;
static uint32_t quit;
static uint32_t armings, blind, unchecked, in_current; /* atomic; calls, and what is wrong with them */
static uint32_t currents;                              /* atomic; most blocks that were allocated from while pages were armed */

static bool is_allocated_from(const struct gu_block *b)
{
	uint8_t state = gu_load_acquire(&b->state);
	return state == GU_BLOCK_CURRENT || state == GU_BLOCK_BUSY;
}

static void look_at_range(const struct gu_pm_scan_arg *scan)
{
	for (uintptr_t at = scan->start; at < scan->end; at += GU_PAGE) {
		const struct gu_block *b = gu_block_at(&heap->space, at);
		if (b && is_allocated_from(b))
			gu_add_relaxed(&in_current, 1);
	}
	uint32_t n = 0;
	for (uint32_t i = 1; i <= gu_block_count(&heap->space); i++)
		n += is_allocated_from(&heap->space.blocks[i]);
	if (n > gu_load_relaxed(&currents))
		gu_store_relaxed(&currents, n);
}

/* The collector's own call: a block that it is about to arm was not current when the phase began, and is not taken in it. */
static long look_at_call(int fd, unsigned long request, void *arg)
{
	const struct gu_pm_scan_arg *scan = arg;
	const struct gu_uffdio_writeprotect *wp = arg;
	if (request == GU_UFFDIO_WRITEPROTECT && wp->mode & GU_UFFD_WRITEPROTECT_WP)
		gu_add_relaxed(&blind, 1);
	if (request == GU_PAGEMAP_SCAN && scan->flags & GU_PM_SCAN_WP_MATCHING && heap && gu_space_has(&heap->space, scan->start)) {
		gu_add_relaxed(&armings, 1);
		if (!(scan->flags & GU_PM_SCAN_CHECK_WPASYNC))
			gu_add_relaxed(&unchecked, 1);
		look_at_range(scan);
	}
	return gu_os_linux.ioctl(fd, request, arg);
}

struct kept {
	void *p[KEPT];
};

static void change(struct kept *k, struct test_rng *rng)
{
	size_t size = 1 + test_below(rng, test_below(rng, 50) ? 1000 : 100000);
	void **slot = &k->p[test_below(rng, KEPT)];
	switch (test_below(rng, 8)) {
	case 0: must_ok(gcuffd_free(heap, *slot)); *slot = NULL; break;
	case 1: *slot = gcuffd_realloc(heap, *slot, size); break;
	case 2: *slot = gcuffd_alloc_atomic(heap, size); break;
	default: *slot = gcuffd_alloc(heap, size);
	}
	void **object = *slot;
	if (object && size >= 8)
		object[0] = k->p[test_below(rng, KEPT)];
}

static void *mutate(void *seed)
{
	struct test_rng rng = test_rng((uintptr_t)seed);
	must_ok(gcuffd_thread_attach());
	struct kept *k = gcuffd_alloc(heap, sizeof(*k));
	while (!gu_load_relaxed(&quit))
		change(k, &rng);
	must_ok(gcuffd_thread_detach());
	return NULL;
}

START_TEST(how_pages_are_armed)
{
	pthread_t t[3];
	NEED_RUNG(_i);
	fake_install();
	fake_os.ioctl = look_at_call;
	heap = heap_make("rung=%s,verify=1,start_size=1M%s", rung_names[_i], _i >= GCUFFD_RUNG_MOVE ? ",cold=1" : "");
	quit = 0;
	for (uintptr_t i = 0; i < 3; i++)
		must_ok(pthread_create(&t[i], NULL, mutate, (void *)i));
	uint64_t end = test_now_ns() + check_span_ns((check_seconds() / 5 + 1) * 500000000ull);
	for (int i = 0; goes_on(heap, end, 5); i++) {
		ck_ok(gcuffd_collect(heap));
		if (_i >= GCUFFD_RUNG_MOVE && i % 3 == 0)
			(void)gcuffd_cool(heap, NULL, 0, NULL);
	}
	gu_store_seqcst(&quit, 1);
	for (int i = 0; i < 3; i++)
		must_ok(pthread_join(t[i], NULL));
	printf("%s: %u calls that arm, with up to %u blocks allocated from\n", rung_names[_i], armings, currents);
	ck_assert_uint_gt(armings, 10);
	ck_assert_uint_gt(currents, 3);
	ck_assert_uint_eq(blind, 0);
	ck_assert_uint_eq(unchecked, 0);
	ck_assert_uint_eq(in_current, 0);
	verified(heap);
	ck_ok(gcuffd_heap_destroy(heap));
	fake_remove();
}
END_TEST

static Suite *make_suite(void)
{
	Suite *suite = suite_create("arming");
	tcase_add_loop_test(test_case(suite, "how_pages_are_armed"), how_pages_are_armed, GCUFFD_RUNG_ASYNC, GCUFFD_RUNG_RWP + 1);
	return suite;
}

TEST_MAIN(make_suite)
