/* SPDX-License-Identifier: MIT */
/*
 * test_faults.c - every OS call fails once: the n-th one while a heap is made, while it is used, while it
 * collects. No crash; an error that says so, or none where there is another way; nothing is left behind. And
 * marking goes on when there is no memory for its packets.
 */
#include "core.h"

#include "base/meta.h"
#include "base/own.h"
#include "fake_os.h"
#include "gc/marker.h"

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
	unsigned refused = 0; /* each is several cycles */
	for (int i = 0; i < 600 && refused < check_rounds(60); i++) {
		size_t size = i % 50 ? (size_t)(1 + i * 7) : 300000;
		char *p = i % 3 ? gcuffd_alloc(heap, size) : gcuffd_alloc_atomic(heap, size);
		if (p)
			memset(p, 0xff, size);
		must(p || errno == ENOMEM, "errno %d", errno);
		ok &= p != NULL;
		refused += p == NULL;
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
	for (unsigned n = 1; n <= check_rounds(most); n += 1 + n / 8 + check_slow() / 4) {
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

/* ---- no memory for packets of gray objects ---- */

#define CHUNK ((size_t)1 << 20) /* what small pieces of metadata are cut from: src/base/meta.c */
#define WIDE 3000
#define NEXT 2040 /* late in the first piece that is scanned in one go */
#define ARRAYS 16

static unsigned chunks_refused; /* atomic */
static bool no_chunks;          /* atomic */

static int mmap_without_chunks(void *hint, size_t len, int prot, int flags, void **out)
{
	if (len != CHUNK || !__atomic_load_n(&no_chunks, __ATOMIC_SEQ_CST))
		return gu_os_linux.mmap(hint, len, prot, flags, out);
	__atomic_fetch_add(&chunks_refused, 1, __ATOMIC_SEQ_CST);
	return -ENOMEM;
}

struct piece {
	struct piece *next;
	char rest[sizeof(struct gu_packet) - sizeof(struct piece *)];
};

/* From here on a packet can't be had; give back what this returns. */
static struct piece *use_up_pieces(void)
{
	struct piece *all = NULL, *p;
	__atomic_store_n(&no_chunks, true, __ATOMIC_SEQ_CST);
	while ((p = gu_meta_alloc(sizeof(*p)))) {
		p->next = all;
		all = p;
	}
	__atomic_store_n(&chunks_refused, 0, __ATOMIC_SEQ_CST);
	return all;
}

static void give_back_pieces(struct piece *all)
{
	__atomic_store_n(&no_chunks, false, __ATOMIC_SEQ_CST);
	for (struct piece *next; all; all = next) {
		next = all->next;
		gu_meta_free(all, sizeof(*all));
	}
}

struct leaf {
	struct leaf *next;
	uint64_t number;
};

static struct leaf *new_leaf(struct leaf *next, uint64_t number)
{
	struct leaf *l = gcuffd_alloc(heap, sizeof(*l));
	must(l && gcuffd_alloc(heap, sizeof(*l)), "no memory");
	*l = (struct leaf){next, number};
	return l;
}

/*
 * Arrays of WIDE short lists, but for one word, which leads to the next array. That is scanned before the lists beside it, so
 * there are more gray objects than a marker's stack holds; and it lies below, so that a second look from the bottom up comes too
 * early for what it drops itself. Garbage lies between the lists.
 */
static __attribute__((noinline)) void make_wide_and_deep(void)
{
	void **next = NULL;
	for (uint64_t a = 0; a < ARRAYS; a++) {
		void **array = gcuffd_alloc(heap, WIDE * sizeof(*array));
		must(array != NULL, "no memory");
		array[NEXT] = next;
		keep[0] = next = array;
		for (uint64_t i = 0; i < WIDE; i++)
			if (i != NEXT)
				array[i] = new_leaf(new_leaf(new_leaf(NULL, a), i), a * WIDE + i);
	}
}

static void check_list(const struct leaf *l, uint64_t a, uint64_t i)
{
	must(l->number == a * WIDE + i && l->next->number == i && l->next->next->number == a && !l->next->next->next,
	     "list %lu of array %lu was overwritten", i, a);
}

static void check_wide_and_deep(void)
{
	void **array = keep[0];
	for (uint64_t a = ARRAYS; a-- > 0; array = array[NEXT])
		for (uint64_t i = 0; i < WIDE; i++)
			if (i != NEXT)
				check_list(array[i], a, i);
	must(array == NULL, "more arrays than were made");
}

/* What is swept by mistake is handed out again and overwritten. */
static __attribute__((noinline)) void use_free_cells(void)
{
	for (int i = 0; i < 50000; i++) {
		struct leaf *l = gcuffd_alloc(heap, sizeof(*l));
		if (!l) /* a new block's bits are metadata too */
			return;
		memset(l, 0xff, sizeof(*l));
	}
}

static void collect_without_packets(void)
{
	struct piece *all = use_up_pieces();
	for (int i = 0; i < 3; i++) {
		ck_ok(gcuffd_collect(heap));
		use_free_cells();
		check_wide_and_deep();
	}
	ck_assert_uint_gt(__atomic_load_n(&chunks_refused, __ATOMIC_SEQ_CST), 0);
	give_back_pieces(all);
}

START_TEST(marking_without_packets)
{
	NEED_RUNG(_i / 2);
	fake_os = gu_os_linux;
	fake_os.mmap = mmap_without_chunks;
	gu_os_set(&fake_os);
	heap = heap_make("rung=%s,reservation=256M,verify=1,pacing=0,mark_threads=%d", rung_names[_i / 2], _i % 2 ? 3 : 1);
	make_wide_and_deep();
	collect_without_packets();
	ck_assert_uint_gt(stats_of(heap).freed_bytes, ARRAYS * WIDE * sizeof(struct leaf));
	ck_ok(gcuffd_collect(heap)); /* with packets */
	check_wide_and_deep();
	verified(heap);
	keep[0] = NULL;
	ck_ok(gcuffd_heap_destroy(heap));
	fake_remove();
}
END_TEST

static Suite *make_suite(void)
{
	Suite *suite = suite_create("faults");
	tcase_add_loop_test(test_case(suite, "making"), making, GCUFFD_RUNG_STOP, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(test_case(suite, "using"), using, GCUFFD_RUNG_STOP, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(test_case(suite, "using_without_any"), using_without_any, GCUFFD_RUNG_STOP, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(test_case(suite, "marking_without_packets"), marking_without_packets, 2 * GCUFFD_RUNG_STOP,
			    2 * GCUFFD_RUNG_RWP + 2);
	return suite;
}

TEST_MAIN(make_suite)
