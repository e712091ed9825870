/* SPDX-License-Identifier: MIT */
/*
 * test_pages.c - soft bits and pins: what they cost, what they keep, what they refuse, and that they outlast what the
 * kernel does with pages; writes through pins by io_uring in the middle of cycles.
 */
#include "core.h"

#include <linux/io_uring.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>

#include "base/meta.h"
#include "fake_os.h"
#include "gc/pins.h"
#include "machine.h"
#include "space_checked.h"
#include "sys/uapi.h"

static struct gcuffd_heap *heap;

static size_t page_of(const void *p) { return gu_space_page(&heap->space, (uintptr_t)p); }
static bool is_soft(const void *p) { return heap->space.state[page_of(p)] & GU_PAGE_SOFT; }

static void *whole_pages(size_t n)
{
	char *p = gcuffd_alloc_aligned(heap, n * GU_PAGE, GU_PAGE, GCUFFD_CONSERVATIVE);
	must(p != NULL, "errno %d", errno);
	return p;
}

static void checked(void)
{
	gu_pins_check(heap);
	space_checked(heap);
}

#define check_pins(count, pages) \
	do { \
		struct gcuffd_stats cp_stats = stats_of(heap); \
		ck_assert_uint_eq(cp_stats.pins, (count)); \
		ck_assert_uint_eq(cp_stats.pinned_bytes, (pages) * GU_PAGE); \
		checked(); \
	} while (0)

/* On a thread that ends, so that no stack keeps what it did. */
static void on_a_thread(void *(*fn)(void *), void *arg)
{
	pthread_t t;
	must_ok(pthread_create(&t, NULL, fn, arg));
	must_ok(pthread_join(t, NULL));
}

/* ---- what they cost ---- */

/* For each page 4 bytes of block_of, a bit of cards, and the one byte of state. */
START_TEST(unused_ones_cost_a_byte)
{
	struct gu_space s;
	uintptr_t at;
	ck_ok(gu_space_init(&s, (size_t)1 << 30, 0, false));
	size_t meta = gu_meta_used();
	for (int i = 0; i < 32; i++)
		ck_ok(gu_space_take(&s, GU_REGION, GU_REGION, &at));
	size_t pages = s.committed >> GU_PAGE_SHIFT;
	printf("%zu bytes of tables for %zu pages: %.3f a page\n", s.tables, pages, (double)s.tables / (double)pages);
	ck_assert_uint_eq(s.tables * 8, pages * (8 + 32 + 1));
	ck_assert_uint_eq(gu_meta_used(), meta);
	size_t tables = s.tables;
	ck_ok(gu_pages_pin(&s, 5000, 5001));
	printf("%zu bytes for the first page with a soft bit\n", s.tables - tables);
	ck_assert_uint_le(s.tables - tables, 1200);
	ck_assert_uint_eq(gu_meta_used() - meta, s.tables - tables);
	gu_pages_unpin(&s, 5000, 5001);
	ck_assert_uint_eq(s.tables, tables);
	ck_assert_uint_eq(gu_meta_used(), meta);
	gu_space_destroy(&s);
}
END_TEST

/* The same of a heap, by its statistics. */
START_TEST(a_heap_gets_its_metadata_back)
{
	heap = heap_make("pacing=0");
	char *p = whole_pages(2000);
	size_t before = stats_of(heap).metadata_bytes;
	ck_ok(gcuffd_pin(p, 2000 * GU_PAGE));
	size_t with = stats_of(heap).metadata_bytes - before;
	printf("%zu bytes for %u pinned pages\n", with, 2000);
	ck_assert(with >= 2000 * sizeof(struct gu_soft) && with <= 2600 * sizeof(struct gu_soft) + 128);
	ck_ok(gcuffd_unpin(p, 2000 * GU_PAGE));
	ck_assert_uint_eq(stats_of(heap).metadata_bytes, before);
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

/* ---- counting ---- */

START_TEST(overlapping_pins)
{
	heap = heap_make("pacing=0");
	char *p = whole_pages(10);
	ck_ok(gcuffd_pin(p + 100, 10));
	check_pins(1, 1);
	ck_ok(gcuffd_pin(p + 4000, 200));
	ck_ok(gcuffd_pin(p, 10 * GU_PAGE));
	ck_ok(gcuffd_pin(p, 10 * GU_PAGE));
	check_pins(4, 10);
	ck_ok(gcuffd_unpin(p, 10 * GU_PAGE));
	ck_assert_int_eq(gcuffd_unpin(p, 5 * GU_PAGE), -ENOENT);
	ck_assert_int_eq(gcuffd_unpin(p + 4000, 199), -ENOENT);
	check_pins(3, 10);
	ck_ok(gcuffd_unpin(p, 10 * GU_PAGE));
	ck_assert_int_eq(gcuffd_unpin(p, 10 * GU_PAGE), -ENOENT);
	check_pins(2, 2);
	ck_ok(gcuffd_unpin(p + 100, 10));
	check_pins(1, 2);
	ck_ok(gcuffd_unpin(p + 4000, 200));
	check_pins(0, 0);
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

START_TEST(errors)
{
	static char elsewhere[100];
	heap = heap_make("pacing=0");
	char *p = whole_pages(8);
	struct gcuffd_object o;
	ck_ok(gcuffd_object_find(heap, p, &o));
	ck_assert_int_eq(gcuffd_pin(p, 0), -EINVAL);
	ck_assert_int_eq(gcuffd_pin(p, SIZE_MAX), -EINVAL);
	ck_assert_int_eq(gcuffd_pin(p, o.size + 1), -ENOENT);
	ck_assert_int_eq(gcuffd_pin(NULL, 1), -ENOENT);
	ck_assert_int_eq(gcuffd_pin(elsewhere, sizeof(elsewhere)), -ENOENT);
	ck_assert_int_eq(gcuffd_pin((void *)(heap->space.base + heap->space.top), 1), -ENOENT);
	ck_assert_int_eq(gcuffd_unpin(p, 1), -ENOENT);
	ck_assert_int_eq(gcuffd_unpin(p, 0), -ENOENT);
	ck_assert_int_eq(gcuffd_unpin(elsewhere, 1), -ENOENT);
	check_pins(0, 0);
	ck_ok(gcuffd_pin(p, o.size));
	ck_ok(gcuffd_unpin(p, o.size));
	ck_ok(gcuffd_free(heap, p));
	ck_assert_int_eq(gcuffd_pin(p, 1), -ENOENT);
	check_pins(0, 0);
	ck_ok(gcuffd_heap_destroy(heap));
	ck_assert_int_eq(gcuffd_pin(p, 1), -ENOENT);
	ck_assert_int_eq(gcuffd_unpin(p, 1), -ENOENT);
}
END_TEST

START_TEST(so_many_and_no_more)
{
	heap = heap_make("pacing=0");
	char *p = whole_pages(8);
	for (unsigned i = 0; i < GU_PINS_MOST; i++)
		must_ok(gcuffd_pin(p + GU_PAGE, 1));
	ck_assert_int_eq(gcuffd_pin(p + GU_PAGE, 1), -ENOSPC);
	ck_assert_int_eq(gcuffd_pin(p, 8 * GU_PAGE), -ENOSPC);
	check_pins(GU_PINS_MOST, 1);
	ck_ok(gcuffd_pin(p, 1));
	for (unsigned i = 0; i < GU_PINS_MOST; i++)
		must_ok(gcuffd_unpin(p + GU_PAGE, 1));
	check_pins(1, 1);
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

/* A pin that finds no memory for its entries changes nothing. */
START_TEST(out_of_memory)
{
	fake_install();
	heap = heap_make("pacing=0,reservation=8G,huge=0");
	size_t size = (size_t)3 << 30;
	char *p = gcuffd_alloc_atomic(heap, size);
	if (!p)
		GU_SKIP("no memory for an object of 3 GiB");
	size_t before = stats_of(heap).metadata_bytes;
	fake_fail(FAKE_MMAP, 1, -ENOMEM);
	fake.sticky = true;
	ck_assert_int_eq(gcuffd_pin(p, size), -ENOMEM);
	check_pins(0, 0);
	ck_assert_uint_eq(stats_of(heap).metadata_bytes, before);
	fake_clear();
	ck_ok(gcuffd_pin(p, size));
	check_pins(1, size / GU_PAGE);
	fake_remove();
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

/* ---- against a model ---- */

#define MODEL_REGIONS 4
#define MODEL_PAGES (MODEL_REGIONS * 512)
#define MODEL_PINS 200

struct model {
	struct gu_space space;
	unsigned pins[MODEL_PAGES];
	struct { size_t from, to; } list[MODEL_PINS];
	size_t n;
};

static void note_visit(void *data, size_t page)
{
	size_t **next = data;
	*(*next)++ = page;
}

static void compare(struct model *m, struct test_rng *rng)
{
	static size_t visited[MODEL_PAGES];
	size_t *next = visited, n = 0;
	gu_pages_each_pinned(&m->space, note_visit, &next);
	for (size_t p = 0; p < MODEL_PAGES; p++)
		if (m->pins[p])
			must(visited[n++] == p, "page %zu", p);
	ck_assert_uint_eq((size_t)(next - visited), n);
	ck_assert_uint_eq(m->space.pages.pinned, n);
	size_t from = test_below(rng, MODEL_PAGES), to = from + 1 + test_below(rng, MODEL_PAGES - from);
	bool may = true;
	for (size_t p = from; p < to; p++)
		may = may && !m->pins[p];
	ck_assert(gu_pages_may_drop(&m->space, from, to) == may);
	gu_space_check(&m->space);
}

static void change(struct model *m, struct test_rng *rng, int by)
{
	size_t i = by > 0 ? m->n++ : test_below(rng, m->n);
	if (by > 0) {
		size_t from = test_below(rng, MODEL_PAGES), most = test_below(rng, 4) ? 20 : 1200;
		m->list[i].from = from;
		m->list[i].to = from + 1 + test_below(rng, gu_min(MODEL_PAGES - from, most));
		ck_ok(gu_pages_pin(&m->space, m->list[i].from, m->list[i].to));
	} else {
		gu_pages_unpin(&m->space, m->list[i].from, m->list[i].to);
	}
	for (size_t p = m->list[i].from; p < m->list[i].to; p++)
		m->pins[p] += (unsigned)by;
	if (by < 0)
		m->list[i] = m->list[--m->n];
}

/* Every page unpinned has its card, and no other. */
static void check_cards(struct model *m, size_t from, size_t to)
{
	for (size_t p = 0; p < MODEL_PAGES; p++)
		must((m->space.cards[p / 64] >> p % 64 & 1) == (p >= from && p < to), "page %zu of [%zu, %zu)", p, from, to);
	memset(m->space.cards, 0, MODEL_PAGES / 8);
}

START_TEST(random_ranges_against_a_model)
{
	static struct model m;
	struct test_rng rng = test_rng(1);
	uintptr_t at;
	size_t meta = gu_meta_used();
	ck_ok(gu_space_init(&m.space, (size_t)16 << 20, 0, false));
	ck_ok(gu_space_take(&m.space, MODEL_REGIONS * GU_REGION, GU_REGION, &at));
	for (unsigned i = 0; i < check_rounds(2000); i++) {
		bool more = !m.n || (m.n < MODEL_PINS && test_below(&rng, 20) >= 9 + i / 200 % 3);
		change(&m, &rng, more ? 1 : -1);
		compare(&m, &rng);
	}
	while (m.n)
		change(&m, &rng, -1);
	compare(&m, &rng);
	memset(m.space.cards, 0, MODEL_PAGES / 8);
	for (int i = 0; i < 100; i++) {
		change(&m, &rng, 1);
		size_t from = m.list[0].from, to = m.list[0].to;
		change(&m, &rng, -1);
		check_cards(&m, from, to);
	}
	gu_space_destroy(&m.space);
	ck_assert_uint_eq(gu_meta_used(), meta);
}
END_TEST

/* ---- roots ---- */

#define SMALL 200

static uint64_t hidden[SMALL], hidden_big, hidden_far; /* big points to far */

static void *make_hidden(void *unused)
{
	(void)unused;
	must_ok(gcuffd_thread_attach());
	for (int i = 0; i < SMALL; i++)
		hidden[i] = hide(gcuffd_alloc(heap, 48));
	char **big = whole_pages(6);
	hidden_big = hide(big);
	big[300] = gcuffd_alloc(heap, 100);
	hidden_far = hide(big[300]);
	must_ok(gcuffd_pin((char *)big + 5000, 10));
	must_ok(gcuffd_pin((char *)big + 9000, 10));
	must_ok(gcuffd_pin((char *)reveal(hidden[100]) + 3, 7));
	must_ok(gcuffd_thread_detach());
	return NULL;
}

static unsigned count_alive(void)
{
	unsigned n = 0;
	for (int i = 0; i < SMALL; i++)
		n += is_alive(heap, hidden[i]);
	return n;
}

static bool is_any_alive(void) { return is_alive(heap, hidden_big) || is_alive(heap, hidden_far) || is_alive(heap, hidden[100]); }

static void *unpin_big(void *at)
{
	must_ok(gcuffd_unpin((char *)reveal(hidden_big) + (uintptr_t)at, 10));
	return NULL;
}

static void *unpin_small(void *unused)
{
	(void)unused;
	must_ok(gcuffd_unpin((char *)reveal(hidden[100]) + 3, 7));
	return NULL;
}

/* An object lives while it has pins, with what it points to; its neighbours on the page do not. */
START_TEST(pins_are_roots)
{
	NEED_RUNG(_i);
	heap = heap_make("rung=%s,pacing=0,verify=1", rung_names[_i]);
	on_a_thread(make_hidden, NULL);
	scrub();
	for (int i = 0; i < 2; i++) {
		ck_ok(gcuffd_collect(heap));
		ck_assert(is_alive(heap, hidden[100]) && is_alive(heap, hidden_big) && is_alive(heap, hidden_far));
		ck_assert_uint_le(count_alive(), 10);
		if (i == 0)
			on_a_thread(unpin_big, (void *)5000);
		checked();
	}
	on_a_thread(unpin_big, (void *)9000);
	on_a_thread(unpin_small, NULL);
	check_pins(0, 0);
	for (int i = 0; i < 5 && is_any_alive(); i++) {
		scrub(); /* looking leaves pointers in dead frames */
		ck_ok(gcuffd_collect(heap));
		scrub();
	}
	ck_assert(!is_any_alive());
	verified(heap);
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

/* ---- what they refuse ---- */

START_TEST(not_freed_nor_moved)
{
	heap = heap_make("pacing=0");
	size_t sizes[] = {40, 3000, 100000, 5 << 20};
	for (size_t i = 0; i < 4; i++) {
		char *p = gcuffd_alloc(heap, sizes[i]), *other = gcuffd_alloc(heap, sizes[i]);
		memset(p, 7, sizes[i]);
		ck_ok(gcuffd_pin(p + sizes[i] / 2, sizes[i] / 4));
		ck_assert_int_eq(gcuffd_free(heap, p), -EBUSY);
		ck_ok(gcuffd_free(heap, other));
		errno = 0;
		ck_assert(!gcuffd_realloc(heap, p, sizes[i] * 3) && errno == EBUSY);
		ck_assert(p[0] == 7 && p[sizes[i] - 1] == 7);
		check_pins(1, page_of(p + sizes[i] / 2 + sizes[i] / 4 - 1) - page_of(p + sizes[i] / 2) + 1);
		ck_ok(gcuffd_unpin(p + sizes[i] / 2, sizes[i] / 4));
		p = gcuffd_realloc(heap, p, sizes[i] * 3);
		ck_assert(p && p[sizes[i] - 1] == 7);
		ck_ok(gcuffd_free(heap, p));
	}
	ck_assert_ptr_nonnull(strstr(core_log, "is pinned"));
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

/* The tail of an object that shrinks is dropped by the kernel, but where it is pinned. */
START_TEST(pinned_tails_stay)
{
	fake_install();
	heap = heap_make("pacing=0,huge=0");
	size_t size = (size_t)8 << 20;
	char *p = gcuffd_alloc(heap, size);
	memset(p, 7, size);
	ck_ok(gcuffd_pin(p + size - 5000, 10));
	fake_clear();
	ck_assert_ptr_eq(gcuffd_realloc(heap, p, size - (3 << 20)), p);
	ck_assert_uint_eq(fake.seen[FAKE_MADVISE], 0);
	ck_assert(p[size - 5000] == 0 && p[size - (3 << 20)] == 0 && p[size - (3 << 20) - 1] == 7);
	memset(p + size - (3 << 20), 7, 3 << 20);
	ck_ok(gcuffd_unpin(p + size - 5000, 10));
	ck_assert_ptr_eq(gcuffd_realloc(heap, p, size - (3 << 20)), p);
	ck_assert_uint_eq(fake.seen[FAKE_MADVISE], 1);
	ck_assert(p[size - 5000] == 0 && p[size - (3 << 20)] == 0 && p[size - (3 << 20) - 1] == 7);
	ck_ok(gcuffd_heap_destroy(heap));
	fake_remove();
}
END_TEST

START_TEST(arenas_with_pins)
{
	struct gcuffd_arena *a;
	heap = heap_make("pacing=0");
	ck_ok(gcuffd_arena_create(heap, "pinned", &a));
	char *p = gcuffd_arena_alloc(a, 100, 0, GCUFFD_ATOMIC);
	memset(p, 7, 100);
	ck_ok(gcuffd_pin(p, 100));
	ck_assert_int_eq(gcuffd_arena_reset(a), -EBUSY);
	ck_assert_int_eq(gcuffd_arena_destroy(a), -EBUSY);
	ck_assert_int_eq(p[99], 7);
	ck_ok(gcuffd_unpin(p, 100));
	ck_ok(gcuffd_arena_reset(a));
	ck_ok(gcuffd_arena_destroy(a));
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

/* Neighbours go, the pinned page stays, whoever asks. */
START_TEST(purges)
{
	char *p[9];
	heap = heap_make("pacing=0,huge=0");
	for (int i = 0; i < 9; i++) {
		p[i] = whole_pages(25);
		memset(p[i], i + 1, 25 * GU_PAGE);
	}
	ck_ok(gcuffd_pin(p[4] + 5 * GU_PAGE, 2 * GU_PAGE));
	size_t before = stats_of(heap).resident_bytes;
	for (int i = 0; i < 9; i++)
		ck_assert_int_eq(gcuffd_free(heap, p[i]), i == 4 ? -EBUSY : 0);
	ck_ok(gcuffd_trim(heap));
	ck_assert_uint_le(stats_of(heap).resident_bytes, before - 8 * 25 * GU_PAGE);
	ck_assert_int_eq(gu_space_purge(&heap->space, (uintptr_t)p[4], 25 * GU_PAGE), -EBUSY);
	ck_assert_int_eq(gu_space_purge(&heap->space, (uintptr_t)p[4] + 6 * GU_PAGE, GU_PAGE), -EBUSY);
	for (size_t i = 0; i < 25 * GU_PAGE; i++)
		must(p[4][i] == 5, "byte %zu is %d", i, p[4][i]);
	ck_assert(is_soft(p[4] + 5 * GU_PAGE) && is_soft(p[4] + 6 * GU_PAGE) && !is_soft(p[4] + 7 * GU_PAGE));
	check_pins(1, 2);
	ck_ok(gcuffd_unpin(p[4] + 5 * GU_PAGE, 2 * GU_PAGE));
	ck_ok(gcuffd_free(heap, p[4]));
	ck_ok(gcuffd_trim(heap));
	check_pins(0, 0);
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

/* ---- what the kernel does with pages ---- */

#define AT_LEAST_PAGES 1024

static char *volatile kept; /* two regions and more, aligned to one */

static unsigned pins_at(size_t page)
{
	const struct gu_pages *t = &heap->space.pages;
	for (size_t i = 0; i < t->count; i++)
		if (t->leaves[i].region == page / 512)
			return t->leaves[i].soft[page % 512].pins;
	return 0;
}

/* Equal pages in groups that can be merged. */
static char fill_of(size_t i) { return (char)(1 + i % 16); }

/* Every third page has a pin, every ninth two. */
static void pin_some(bool cold)
{
	heap = heap_make("pacing=0,verify=1,start_size=1M,cold=%d", cold);
	kept = gcuffd_alloc_aligned(heap, AT_LEAST_PAGES * GU_PAGE, GU_REGION, GCUFFD_CONSERVATIVE);
	ck_assert_ptr_nonnull(kept);
	for (size_t i = 0; i < AT_LEAST_PAGES; i++) {
		kept[i * GU_PAGE] = fill_of(i);
		if (i % 3 == 0)
			must_ok(gcuffd_pin(kept + i * GU_PAGE, GU_PAGE));
		if (i % 9 == 0)
			must_ok(gcuffd_pin(kept + i * GU_PAGE + 8, 8));
	}
	checked();
}

static void check_some(void)
{
	for (size_t i = 0; i < AT_LEAST_PAGES; i++) {
		unsigned pins = (i % 3 == 0) + (i % 9 == 0);
		must(pins_at(page_of(kept) + i) == pins && is_soft(kept + i * GU_PAGE) == (pins > 0), "page %zu", i);
		must(kept[i * GU_PAGE] == fill_of(i), "page %zu", i);
	}
	ck_ok(gcuffd_collect(heap));
	ck_assert_uint_ge(stats_of(heap).last_remark_dirty_pages, heap->rung == GCUFFD_RUNG_STOP ? 0 : (AT_LEAST_PAGES + 2) / 3);
	verified(heap);
	checked();
}

static void unpin_some(void)
{
	check_some();
	for (size_t i = 0; i < AT_LEAST_PAGES; i += 3) {
		must_ok(gcuffd_unpin(kept + i * GU_PAGE, GU_PAGE));
		if (i % 9 == 0)
			must_ok(gcuffd_unpin(kept + i * GU_PAGE + 8, 8));
	}
	check_pins(0, 0);
	ck_ok(gcuffd_heap_destroy(heap));
}

static const char *swaps(void)
{
	uint64_t entry = 0;
	int fd = open("/proc/self/pagemap", O_RDONLY);
	ck_ok(madvise(kept, AT_LEAST_PAGES * GU_PAGE, MADV_PAGEOUT));
	must(pread(fd, &entry, 8, (off_t)((uintptr_t)kept / GU_PAGE * 8)) == 8, "errno %d", errno);
	close(fd);
	return entry >> 62 & 1 ? NULL : "no swap";
}

/* To each of two nodes. */
static const char *migrates(void)
{
	void *pages[AT_LEAST_PAGES];
	int nodes[AT_LEAST_PAGES], status[AT_LEAST_PAGES];
	if (access("/sys/devices/system/node/node1", F_OK))
		return "one node";
	for (int node = 0; node < 2; node++) {
		for (size_t i = 0; i < AT_LEAST_PAGES; i++) {
			pages[i] = kept + i * GU_PAGE;
			nodes[i] = node;
		}
		ck_assert_int_ge(syscall(SYS_move_pages, 0, (long)AT_LEAST_PAGES, pages, nodes, status, 2), 0);
		check_some();
	}
	return NULL;
}

static const char *collapses_and_splits(void)
{
	if (madvise(kept, AT_LEAST_PAGES * GU_PAGE, MADV_HUGEPAGE) || madvise(kept, GU_REGION, MADV_COLLAPSE))
		return "no huge pages to be had";
	check_some();
	ck_ok(mprotect(kept + 7 * GU_PAGE, GU_PAGE, PROT_READ));
	ck_ok(mprotect(kept + 7 * GU_PAGE, GU_PAGE, PROT_READ | PROT_WRITE));
	check_some();
	(void)madvise(kept, GU_REGION, MADV_COLLAPSE);
	return NULL;
}

static const char *merges(void)
{
	ck_ok(madvise(kept, AT_LEAST_PAGES * GU_PAGE, MADV_MERGEABLE));
	bool merged = run_ksm(AT_LEAST_PAGES / 2);
	check_some();
	ck_ok(madvise(kept, AT_LEAST_PAGES * GU_PAGE, MADV_UNMERGEABLE));
	return merged ? NULL : "nothing was merged";
}

static const char *protects(void)
{
	ck_ok(mprotect(kept, AT_LEAST_PAGES * GU_PAGE, PROT_READ));
	ck_ok(mprotect(kept, AT_LEAST_PAGES * GU_PAGE, PROT_READ | PROT_WRITE));
	return NULL;
}

static const char *hides(void)
{
	ck_ok(mprotect(kept, AT_LEAST_PAGES * GU_PAGE, PROT_NONE));
	ck_ok(mprotect(kept, AT_LEAST_PAGES * GU_PAGE, PROT_READ | PROT_WRITE));
	return NULL;
}

/* The content is the program's to lose. */
static const char *drop(int advice)
{
	ck_ok(madvise(kept, AT_LEAST_PAGES * GU_PAGE, advice));
	(void)madvise(kept, AT_LEAST_PAGES * GU_PAGE, MADV_PAGEOUT);
	for (size_t i = 0; i < AT_LEAST_PAGES; i++) {
		must(is_soft(kept + i * GU_PAGE) == (i % 3 == 0), "page %zu", i);
		must(kept[i * GU_PAGE] == 0 || (advice == MADV_FREE && kept[i * GU_PAGE] == fill_of(i)), "page %zu", i);
		kept[i * GU_PAGE] = fill_of(i);
	}
	return NULL;
}

static const char *drops(void) { return drop(MADV_DONTNEED); }
static const char *frees(void) { return drop(MADV_FREE); }

static const char *forks(void)
{
	int status = -1;
	pid_t pid = fork();
	must(pid >= 0, "errno %d", errno);
	if (!pid) {
		check_some();
		unpin_some();
		_exit(0);
	}
	must(waitpid(pid, &status, 0) == pid && status == 0, "the child ended with %#x", (unsigned)status);
	return NULL;
}

static const char *neighbours_go(void)
{
	for (int i = 0; i < 50; i++) {
		char *p = whole_pages(16 + (size_t)i);
		memset(p, 1, GU_PAGE);
		ck_ok(gcuffd_free(heap, p));
	}
	ck_ok(gcuffd_trim(heap));
	return NULL;
}

static const char *cycles(void)
{
	for (int i = 0; i < 3; i++)
		ck_ok(gcuffd_collect(heap));
	return NULL;
}

static const struct {
	const char *name;
	const char *(*happens)(void); /* NULL, or why it did not */
	const char *need;             /* what it does not happen without */
} events[] = {
	{"swap", swaps, "swap"}, {"migration", migrates, "nodes"}, {"huge pages", collapses_and_splits, "thp"}, {"merging", merges, "ksm"},
	{"mprotect", protects, ""}, {"PROT_NONE", hides, ""}, {"MADV_DONTNEED", drops, ""}, {"MADV_FREE", frees, ""}, {"fork", forks, ""},
	{"purges", neighbours_go, ""}, {"cycles", cycles, ""},
};

#define EVENTS GU_ARRAY_LEN(events)

/* Cold ones have gone out and come back before. On the highest rung that there is. */
static void cool_some(void)
{
	const enum gcuffd_rung rung = gu_caps()->has_rwp_async ? GCUFFD_RUNG_RWP : GCUFFD_RUNG_MOVE;
	size_t taken;
	ck_assert_uint_eq(heap->rung, rung);
	ck_ok(gcuffd_cool(heap, kept, AT_LEAST_PAGES * GU_PAGE, &taken));
	ck_assert(taken && taken <= AT_LEAST_PAGES - (AT_LEAST_PAGES + 2) / 3);
	check_some();
}

/* Soft bits are the library's: nothing that happens to the page itself changes them. */
START_TEST(kept_across)
{
	size_t i = (size_t)_i % EVENTS;
	bool cold = (size_t)_i >= EVENTS;
	if (sanitized() && events[i].happens == forks)
		GU_SKIP("under a sanitizer: its locks do not survive a fork with threads");
	if (cold && !(gu_caps()->has_move && gu_caps()->has_kernel_faults))
		GU_SKIP("no cold memory here");
	pin_some(cold);
	if (cold)
		cool_some();
	const char *why = events[i].happens();
	unpin_some();
	if (why)
		GU_LACKS(cold ? "" : events[i].need, "%s%s: %s", events[i].name, cold ? " of what was cold" : "", why); /* what is registered does not collapse, for one */
}
END_TEST

/* ---- a ring that writes into a registered buffer ---- */

struct ring {
	int fd, file;
	char *sq, *cq;
	size_t sq_len, cq_len;
	struct io_uring_sqe *sqe;
	struct io_uring_params p;
};

static bool ring_make(struct ring *r)
{
	memset(r, 0, sizeof(*r));
	r->fd = (int)syscall(SYS_io_uring_setup, 1, &r->p);
	if (r->fd < 0)
		return false;
	r->sq_len = r->p.sq_off.array + r->p.sq_entries * sizeof(uint32_t);
	r->cq_len = r->p.cq_off.cqes + r->p.cq_entries * sizeof(struct io_uring_cqe);
	r->sq = mmap(NULL, r->sq_len, PROT_READ | PROT_WRITE, MAP_SHARED, r->fd, IORING_OFF_SQ_RING);
	r->cq = mmap(NULL, r->cq_len, PROT_READ | PROT_WRITE, MAP_SHARED, r->fd, IORING_OFF_CQ_RING);
	r->sqe = mmap(NULL, sizeof(*r->sqe), PROT_READ | PROT_WRITE, MAP_SHARED, r->fd, IORING_OFF_SQES);
	must(r->sq != MAP_FAILED && r->cq != MAP_FAILED && r->sqe != MAP_FAILED, "errno %d", errno);
	r->file = memfd_create("pointers", MFD_CLOEXEC);
	must(r->file >= 0, "errno %d", errno);
	return true;
}

static bool ring_register(struct ring *r, void *buffer, size_t len)
{
	struct iovec v = {buffer, len};
	return syscall(SYS_io_uring_register, r->fd, IORING_REGISTER_BUFFERS, &v, 1) == 0;
}

static void ring_end(struct ring *r)
{
	munmap(r->sq, r->sq_len);
	munmap(r->cq, r->cq_len);
	munmap(r->sqe, sizeof(*r->sqe));
	close(r->fd);
	close(r->file);
}

/* The kernel reads from the file into the registered buffer: through its pin. */
static void ring_read(struct ring *r, void *to, size_t len)
{
	uint32_t *tail = (uint32_t *)(r->sq + r->p.sq_off.tail), *head = (uint32_t *)(r->cq + r->p.cq_off.head);
	uint32_t *end = (uint32_t *)(r->cq + r->p.cq_off.tail);
	memset(r->sqe, 0, sizeof(*r->sqe));
	r->sqe->opcode = IORING_OP_READ_FIXED;
	r->sqe->fd = r->file;
	r->sqe->addr = (uintptr_t)to;
	r->sqe->len = (uint32_t)len;
	((uint32_t *)(r->sq + r->p.sq_off.array))[0] = 0;
	__atomic_store_n(tail, *tail + 1, __ATOMIC_RELEASE);
	unsigned submit = 1;
	while (__atomic_load_n(end, __ATOMIC_ACQUIRE) == *head) {
		long n = syscall(SYS_io_uring_enter, r->fd, submit, 1, IORING_ENTER_GETEVENTS, NULL, 0);
		must(n >= 0 || errno == EINTR, "errno %d", errno);
		submit -= n > 0;
	}
	struct io_uring_cqe *cqe = (struct io_uring_cqe *)(r->cq + r->p.cq_off.cqes) + (*head & (r->p.cq_entries - 1));
	must(cqe->res == (int)len, "res %d", cqe->res);
	__atomic_store_n(head, *head + 1, __ATOMIC_RELEASE);
}

#define NEED_RING(r) \
	do { \
		if (!ring_make(r)) \
			GU_LACKS("io_uring", "no io_uring here (errno %d)", errno); \
	} while (0)

/* ---- a write between the last precleaning and the remark ---- */

enum when { PINNED_BEFORE, PINNED_DURING, UNPINNED_DURING, TARGET_PINNED, NOT_PINNED, WHENS };

static struct ring ring;
static void **volatile buffer; /* a data segment */
static uint64_t hidden_target;
static uint32_t precleaned, waits, written;

static long see_precleaning(int fd, unsigned long request, void *arg)
{
	const struct gu_pm_scan_arg *scan = arg;
	if (request == GU_PAGEMAP_SCAN && gu_load_relaxed(&heap->phase) == GU_PHASE_MARK &&
	    scan->flags & GU_PM_SCAN_WP_MATCHING && gu_space_has(&heap->space, scan->start))
		gu_store_seqcst(&precleaned, 1);
	return gu_os_linux.ioctl(fd, request, arg);
}

/* The collector takes the time after precleaning, and has not begun to stop anybody. */
static uint64_t wait_after_precleaning(void)
{
	while (gu_load_seqcst(&precleaned) && !gu_load_seqcst(&written)) {
		gu_store_seqcst(&waits, 1);
		usleep(100);
	}
	return gu_os_linux.clock_ns();
}

/* Its only pointer is in the file. */
static void *make_target(void *unused)
{
	(void)unused;
	must_ok(gcuffd_thread_attach());
	uint64_t *target = gcuffd_alloc(heap, 64);
	must(target != NULL, "errno %d", errno);
	target[5] = 12345;
	hidden_target = hide(target);
	must(pwrite(ring.file, &target, 8, 0) == 8, "errno %d", errno);
	must_ok(gcuffd_thread_detach());
	return NULL;
}

static void *collect_once(void *unused)
{
	(void)unused;
	must_ok(gcuffd_collect(heap));
	return NULL;
}

static void *pin_target(void *unused)
{
	(void)unused;
	must_ok(gcuffd_pin((char *)reveal(hidden_target) + 60, 4));
	return NULL;
}

static void write_in_a_cycle(enum when when, size_t size)
{
	pthread_t t;
	void **slot = buffer + size / 16;
	precleaned = waits = written = 0;
	if (when == PINNED_BEFORE || when == UNPINNED_DURING)
		ck_ok(gcuffd_pin(buffer, size));
	on_a_thread(make_target, NULL);
	must_ok(pthread_create(&t, NULL, collect_once, NULL));
	while (!gu_load_seqcst(&waits))
		usleep(100);
	if (when == PINNED_DURING)
		must_ok(gcuffd_pin(slot, 8));
	if (when == TARGET_PINNED)
		on_a_thread(pin_target, NULL);
	else
		ring_read(&ring, slot, 8);
	if (when == UNPINNED_DURING)
		must_ok(gcuffd_unpin(buffer, size));
	gu_store_seqcst(&written, 1);
	must_ok(pthread_join(t, NULL));
}

START_TEST(the_kernel_writes_in_a_cycle)
{
	int rung = GCUFFD_RUNG_ASYNC + _i / WHENS;
	enum when when = _i % WHENS;
	size_t size = 6 * GU_PAGE;
	NEED_RUNG(rung);
	NEED_RING(&ring);
	fake_install();
	fake_os.ioctl = see_precleaning;
	fake_os.clock_ns = wait_after_precleaning;
	heap = heap_make("rung=%s,pacing=0,verify=1", rung_names[rung]);
	buffer = whole_pages(6);
	if (!ring_register(&ring, buffer, size))
		GU_LACKS("io_uring", "no buffer can be registered (errno %d)", errno);
	for (int tries = 0; tries < (when == NOT_PINNED ? 20 : 1) && !stats_of(heap).verify_failures; tries++) { /* a stale word can save it */
		written = 1;
		ck_ok(gcuffd_collect(heap));
		write_in_a_cycle(when, size);
	}
	if (when == NOT_PINNED) { /* the heap is broken on purpose: it is left alone */
		ck_assert_uint_gt(stats_of(heap).verify_failures, 0);
		ck_assert_ptr_nonnull(strstr(core_log, "reachable but not marked"));
		return;
	}
	verified(heap);
	ck_assert(is_alive(heap, hidden_target));
	if (when != TARGET_PINNED)
		ck_assert_uint_eq(((uint64_t *)buffer[size / 16])[5], 12345);
	ck_ok(gcuffd_collect(heap));
	ck_assert(is_alive(heap, hidden_target));
	checked();
	ck_ok(gcuffd_heap_destroy(heap));
	ring_end(&ring);
	fake_remove();
}
END_TEST

/* ---- fork, and the end of a heap ---- */

/* What the device writes after a fork is the parent's; the child's page is a copy, with pins of its own. */
START_TEST(forks_with_pins)
{
	NO_SANITIZER("its locks do not survive a fork with threads");
	int status = -1, go[2];
	char c;
	NEED_RING(&ring);
	heap = heap_make("pacing=0,verify=1");
	buffer = whole_pages(5);
	ck_ok(gcuffd_pin(buffer, 5 * GU_PAGE));
	if (!ring_register(&ring, buffer, 5 * GU_PAGE))
		GU_LACKS("io_uring", "no buffer can be registered (errno %d)", errno);
	buffer[0] = (void *)1;
	ck_ok(gcuffd_collect(heap));
	ck_ok(pipe(go));
	must(pwrite(ring.file, &(uint64_t){2}, 8, 0) == 8, "errno %d", errno);
	pid_t pid = fork();
	must(pid >= 0, "errno %d", errno);
	if (!pid) {
		close(go[1]);
		must(read(go[0], &c, 1) == 0, "errno %d", errno);
		must(buffer[0] == (void *)1, "%p", buffer[0]);
		check_pins(1, 5);
		must(gcuffd_free(heap, buffer) == -EBUSY, "freed");
		must_ok(gcuffd_unpin(buffer, 5 * GU_PAGE));
		must_ok(gcuffd_collect(heap));
		verified(heap);
		check_pins(0, 0);
		must_ok(gcuffd_free(heap, buffer));
		must_ok(gcuffd_heap_destroy(heap));
		_exit(0);
	}
	ring_read(&ring, buffer, 8);
	close(go[1]);
	must(waitpid(pid, &status, 0) == pid && status == 0, "the child ended with %#x", (unsigned)status);
	ck_assert_ptr_eq(buffer[0], (void *)2);
	check_pins(1, 5);
	ck_ok(gcuffd_collect(heap));
	verified(heap);
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

START_TEST(ends_with_pins)
{
	size_t meta = 0;
	NEED_RING(&ring);
	for (int i = 0; i < 3; i++) {
		heap = heap_make("pacing=0");
		char *p = whole_pages(500);
		ck_ok(gcuffd_pin(p, 500 * GU_PAGE));
		ck_ok(gcuffd_pin(p + 9, 5));
		bool registered = i == 0 && ring_register(&ring, p, 4 * GU_PAGE);
		ck_ok(gcuffd_heap_destroy(heap));
		ck_assert_int_eq(gcuffd_unpin(p + 9, 5), -ENOENT);
		must(pwrite(ring.file, "12345678", 8, 0) == 8, "errno %d", errno);
		if (registered)
			ring_read(&ring, p + 100, 8); /* into pages that nobody maps */
		ck_assert(!meta || gu_meta_used() == meta);
		meta = i ? gu_meta_used() : 0;
	}
	ring_end(&ring);
}
END_TEST

/* ---- all at once ---- */

#define THREADS 3
#define SLOTS 64

static uint32_t quit;

struct node {
	uint64_t number, check;
	char room[80];
};

static struct node *make_node(uint64_t number)
{
	struct node *n = gcuffd_alloc(heap, sizeof(*n));
	must(n != NULL, "errno %d", errno);
	n->number = number;
	n->check = ~number;
	return n;
}

static void check_node(const struct node *n) { must(n->check == ~n->number, "a node is damaged: %lu", n->number); }

struct mover {
	struct ring ring;
	struct node **pinned; /* SLOTS pointers, written by the kernel and the thread */
	struct node **held;   /* SLOTS more */
};

static struct mover *volatile movers[THREADS]; /* objects of the heap */

/* From where the program holds it to where only the kernel's write tells of it; and back, or dropped. */
static void move_one(struct mover *m, struct test_rng *rng, uint64_t number)
{
	size_t i = test_below(rng, SLOTS), j = test_below(rng, SLOTS);
	if (!m->held[i])
		m->held[i] = make_node(number);
	must(pwrite(m->ring.file, &m->held[i], 8, 0) == 8, "errno %d", errno);
	ring_read(&m->ring, &m->pinned[j * 16], 8);
	m->held[i] = NULL;
	j = test_below(rng, SLOTS);
	struct node *n = m->pinned[j * 16];
	if (n)
		check_node(n);
	if (test_below(rng, 3) == 0) {
		m->pinned[j * 16] = NULL;
		m->held[i] = test_below(rng, 2) ? n : NULL;
	}
	for (uint64_t k = test_below(rng, 20); k; k--)
		make_node(k);
}

static void *move_pointers(void *arg)
{
	struct test_rng rng = test_rng((uintptr_t)arg);
	must_ok(gcuffd_thread_attach());
	struct mover *m = movers[(uintptr_t)arg];
	for (uint64_t i = 0; !gu_load_relaxed(&quit); i++)
		move_one(m, &rng, i);
	for (size_t j = 0; j < SLOTS; j++)
		if (m->pinned[j * 16])
			check_node(m->pinned[j * 16]);
	must_ok(gcuffd_thread_detach());
	return NULL;
}

static void *collect(void *unused)
{
	(void)unused;
	do
		must_ok(gcuffd_collect(heap));
	while (!gu_load_relaxed(&quit));
	return NULL;
}

static void run_threads(void *(*fn)(void *), unsigned ms)
{
	pthread_t t[THREADS], collector;
	quit = 0;
	for (uintptr_t i = 0; i < THREADS; i++)
		must_ok(pthread_create(&t[i], NULL, fn, (void *)i));
	must_ok(pthread_create(&collector, NULL, collect, NULL));
	usleep(ms * 1000);
	gu_store_relaxed(&quit, 1);
	for (int i = 0; i < THREADS; i++)
		pthread_join(t[i], NULL);
	pthread_join(collector, NULL);
}

static bool make_mover(uintptr_t i)
{
	size_t len = SLOTS * 16 * sizeof(void *);
	struct mover *m = gcuffd_alloc(heap, sizeof(*m));
	movers[i] = m;
	m->pinned = whole_pages(8);
	m->held = gcuffd_alloc(heap, SLOTS * sizeof(void *));
	must_ok(gcuffd_pin(m->pinned, len));
	return ring_make(&m->ring) && ring_register(&m->ring, m->pinned, len);
}

START_TEST(pointers_move_through_rings)
{
	NEED_RUNG(_i);
	heap = heap_make("rung=%s,verify=1,start_size=1M", rung_names[_i]);
	for (uintptr_t i = 0; i < THREADS; i++)
		if (!make_mover(i))
			GU_LACKS("io_uring", "no io_uring here (errno %d)", errno);
	run_threads(move_pointers, check_seconds() * 100);
	verified(heap);
	ck_assert_uint_ge(stats_of(heap).cycles, 1);
	check_pins(THREADS, THREADS * 2);
	for (uintptr_t i = 0; i < THREADS; i++) {
		ck_ok(gcuffd_unpin(movers[i]->pinned, SLOTS * 16 * sizeof(void *)));
		ring_end(&movers[i]->ring);
	}
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

#define PINS 40

/* A pinned object that nothing else points to. */
struct pinned {
	uint64_t hidden;
	size_t size, from, len;
	unsigned char fill;
};

static void pin_one(struct pinned *p, struct test_rng *rng)
{
	p->size = 1 + test_below(rng, test_below(rng, 4) ? 3000 : 300000);
	p->from = test_below(rng, p->size);
	p->len = 1 + test_below(rng, p->size - p->from);
	p->fill = (unsigned char)(1 + test_below(rng, 255));
	char *at = gcuffd_alloc_atomic(heap, p->size);
	must(at != NULL, "errno %d", errno);
	memset(at, p->fill, p->size);
	must_ok(gcuffd_pin(at + p->from, p->len));
	p->hidden = hide(at);
}

static void unpin_one(struct pinned *p, struct test_rng *rng)
{
	unsigned char *at = reveal(p->hidden);
	for (size_t i = 0; i < p->size; i += 1 + p->size / 64)
		must(at[i] == p->fill, "%zu of %zu is %d", i, p->size, at[i]);
	if (test_below(rng, 100) == 0)
		must(gcuffd_free(heap, at) == -EBUSY, "freed");
	must_ok(gcuffd_unpin(at + p->from, p->len));
	if (test_below(rng, 2))
		must_ok(gcuffd_free(heap, at));
	p->hidden = 0;
}

static void *pin_at_random(void *arg)
{
	static struct pinned pins[THREADS][PINS];
	struct pinned *mine = pins[(uintptr_t)arg];
	struct test_rng rng = test_rng((uintptr_t)arg);
	must_ok(gcuffd_thread_attach());
	memset(mine, 0, PINS * sizeof(*mine));
	while (!gu_load_relaxed(&quit)) {
		struct pinned *p = &mine[test_below(&rng, PINS)];
		(p->hidden ? unpin_one : pin_one)(p, &rng);
		struct gcuffd_stats s = stats_of(heap);
		must(s.pins <= THREADS * PINS, "%lu pins", s.pins);
	}
	for (size_t i = 0; i < PINS; i++)
		if (mine[i].hidden)
			unpin_one(&mine[i], &rng);
	must_ok(gcuffd_thread_detach());
	return NULL;
}

START_TEST(many_threads_pin)
{
	NEED_RUNG(_i);
	heap = heap_make("rung=%s,verify=1,start_size=1M,decay_ms=50", rung_names[_i]);
	run_threads(pin_at_random, check_seconds() * 100);
	check_pins(0, 0);
	verified(heap);
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

/* In Check's own process, so that all is undone whatever happens to a test. */
static void begin_machine(void)
{
	begin_swap();
	begin_ksm();
}

static void end_machine(void)
{
	end_ksm();
	end_swap();
}

static Suite *make_suite(void)
{
	Suite *suite = suite_create("pages");
	TCase *cost = test_case(suite, "cost"), *count = test_case(suite, "count"), *refuse = test_case(suite, "refuse");
	TCase *kernel = test_case(suite, "kernel"), *device = test_case(suite, "device"), *load = test_case(suite, "load");
	tcase_add_test(cost, unused_ones_cost_a_byte);
	tcase_add_test(cost, a_heap_gets_its_metadata_back);
	tcase_add_test(count, overlapping_pins);
	tcase_add_test(count, errors);
	tcase_add_test(count, so_many_and_no_more);
	tcase_add_test(count, out_of_memory);
	tcase_add_test(count, random_ranges_against_a_model);
	tcase_add_loop_test(refuse, pins_are_roots, GCUFFD_RUNG_STOP, GCUFFD_RUNG_RWP + 1);
	tcase_add_test(refuse, not_freed_nor_moved);
	tcase_add_test(refuse, pinned_tails_stay);
	tcase_add_test(refuse, arenas_with_pins);
	tcase_add_test(refuse, purges);
	tcase_add_unchecked_fixture(kernel, begin_machine, end_machine);
	tcase_add_loop_test(kernel, kept_across, 0, 2 * (int)EVENTS);
	tcase_add_loop_test(device, the_kernel_writes_in_a_cycle, 0, 3 * WHENS);
	tcase_add_test(device, forks_with_pins);
	tcase_add_test(device, ends_with_pins);
	tcase_add_loop_test(load, pointers_move_through_rings, GCUFFD_RUNG_STOP, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(load, many_threads_pin, GCUFFD_RUNG_STOP, GCUFFD_RUNG_RWP + 1);
	return suite;
}

TEST_MAIN(make_suite)
