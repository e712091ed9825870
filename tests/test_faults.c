/* SPDX-License-Identifier: MIT */
/*
 * test_faults.c - every OS call fails once: the n-th one while a heap is made, while it is used, while it
 * collects. No crash; an error that says so, or none where there is another way; nothing is left behind.
 */
#include "core.h"

#include "base/own.h"
#include "fake_os.h"

static const int errors[] = {-ENOMEM, -EPERM, -EINVAL};

static size_t own_bytes(void)
{
	uintptr_t start, end = 0;
	size_t n = 0;
	while (gu_own_next(end, &start, &end))
		n += end - start;
	return n;
}

static struct gcuffd_heap *heap;
static void *volatile keep[64];

static int make(int rung)
{
	heap = NULL;
	return heap_try(&heap, "rung=%s,reservation=256M,start_size=1M,hard_limit=64M,decay_ms=20", rung_names[rung]);
}

/* Allocates and collects; whether nothing went wrong. */
static bool use(void)
{
	bool ok = true;
	for (int i = 0; i < 600; i++) {
		size_t size = i % 50 ? (size_t)(1 + i * 7) : 300000;
		char *p = i % 3 ? gcuffd_alloc(heap, size) : gcuffd_alloc_atomic(heap, size);
		if (p)
			memset(p, 0xff, size);
		must(p || errno == ENOMEM, "errno %d", errno);
		ok &= p != NULL;
		keep[i % 64] = p;
		if (i == 300)
			ok &= gcuffd_collect(heap) == 0;
	}
	struct gcuffd_arena *a;
	if (!gcuffd_arena_create(heap, "x", &a)) {
		ok &= gcuffd_arena_alloc(a, 10, 0, GCUFFD_ATOMIC) != NULL;
		must_ok(gcuffd_arena_destroy(a));
	} else {
		ok = false;
	}
	ok &= gcuffd_collect(heap) == 0;
	gcuffd_trim(heap);
	return ok;
}

/* Works as if nothing had been, after the fault is over. */
static void must_recover(unsigned n)
{
	fake_clear();
	memset((void *)keep, 0, sizeof(keep));
	int err = gcuffd_collect(heap);
	must(err == 0, "after the fault of call %u: collect gives %d", n, err);
	must(use(), "after the fault of call %u", n);
	memset((void *)keep, 0, sizeof(keep));
}

static void warm_up(int rung)
{
	must_ok(gcuffd_thread_attach());
	fake_install();
	for (int i = 0; i < 2; i++) { /* what is allocated once and kept */
		must_ok(make(rung));
		must(use(), "without a fault");
		memset((void *)keep, 0, sizeof(keep));
		must_ok(gcuffd_heap_destroy(heap));
	}
}

START_TEST(making)
{
	NEED_RUNG(_i);
	warm_up(_i);
	size_t before = own_bytes();
	for (unsigned e = 0; e < 3; e++)
		for (unsigned n = 1;; n++) {
			fake_fail(FAKE_ANY, n, errors[e]);
			int err = make(_i);
			unsigned fired = fake.fired;
			fake_clear();
			if (!err)
				must_recover(n);
			must(!err == (heap != NULL), "error %d and a heap", err);
			if (!err)
				must_ok(gcuffd_heap_destroy(heap));
			must(own_bytes() <= before + (1 << 20), "call %u: %zu bytes left behind (error %d)", n, own_bytes() - before, err);
			if (!fired)
				break;
		}
	must(own_bytes() <= before + (1 << 20), "%zu bytes left behind", own_bytes() - before);
	fake_remove();
}
END_TEST

/* sort: FAKE_MMAP ...; sticky: all calls from the n-th on, until the fault is over. */
static void fail_in_use(int rung, enum fake_call sort, unsigned most, bool sticky)
{
	size_t before = own_bytes();
	for (unsigned n = 1; n <= most; n += 1 + n / 8) {
		must_ok(make(rung));
		fake_fail(sort, n, errors[n % 3]);
		fake.sticky = sticky;
		use();
		unsigned fired = fake.fired;
		must_recover(n);
		must_ok(gcuffd_heap_destroy(heap));
		must(own_bytes() <= before + (2 << 20), "call %u of sort %d: %zu bytes left behind", n, (int)sort, own_bytes() - before);
		if (!fired)
			break;
	}
}

START_TEST(using)
{
	NEED_RUNG(_i);
	static const enum fake_call sorts[] = {FAKE_MMAP, FAKE_MUNMAP, FAKE_MPROTECT, FAKE_MADVISE, FAKE_OPEN, FAKE_READ,
					       FAKE_PREAD, FAKE_IOCTL, FAKE_USERFAULTFD, FAKE_UNSHARE, FAKE_TGKILL, FAKE_VM_READV};
	warm_up(_i);
	for (size_t i = 0; i < sizeof(sorts) / sizeof(sorts[0]); i++)
		if (sorts[i] != FAKE_MUNMAP) /* a failed munmap leaves something behind */
			fail_in_use(_i, sorts[i], 60, false);
	fake_remove();
}
END_TEST

START_TEST(using_without_any)
{
	NEED_RUNG(_i);
	static const enum fake_call sorts[] = {FAKE_MMAP, FAKE_MPROTECT, FAKE_MADVISE, FAKE_IOCTL, FAKE_USERFAULTFD, FAKE_UNSHARE};
	warm_up(_i);
	for (size_t i = 0; i < sizeof(sorts) / sizeof(sorts[0]); i++)
		fail_in_use(_i, sorts[i], 20, true);
	fake_remove();
}
END_TEST

static Suite *make_suite(void)
{
	Suite *suite = suite_create("faults");
	tcase_add_loop_test(test_case(suite, "making"), making, GCUFFD_RUNG_STOP, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(test_case(suite, "using"), using, GCUFFD_RUNG_STOP, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(test_case(suite, "using_without_any"), using_without_any, GCUFFD_RUNG_STOP, GCUFFD_RUNG_RWP + 1);
	return suite;
}

TEST_MAIN(make_suite)
