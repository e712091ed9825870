/* SPDX-License-Identifier: MIT */
/* test_units.c - size classes and the pacer (arithmetic), blocks against a model, and the executable checks of a busy heap. */
#include "core.h"

#include "api/api.h"
#include "ctl/pacer.h"
#include "gc/mark.h"
#include "gc/mutator.h"
#include "space/arena.h"
#include "space/block.h"
#include "space/sizeclass.h"

/* ---- size classes ---- */

START_TEST(size_classes)
{
	unsigned last = 0;
	for (size_t size = 1; size <= GU_SMALL_MAX; size++) {
		unsigned c = gu_class_of(size);
		must(c < GU_CLASSES && c >= last && c <= last + 1, "class %u of %zu", c, size);
		must(gu_class_size(c) >= size && (c == 0 || gu_class_size(c - 1) < size), "class %u of %zu", c, size);
		must(size < 128 || gu_class_size(c) * 4 <= size * 5 + 4, "%zu wastes %zu", size, gu_class_size(c) - size);
		last = c;
	}
	ck_assert_uint_eq(last, GU_CLASSES - 1);
	for (unsigned c = 0; c < GU_CLASSES; c++) {
		ck_assert_uint_eq(gu_class_of(gu_class_size(c)), c);
		ck_assert_uint_eq(gu_class_size(c) % GU_GRANULE, 0);
	}
}
END_TEST

/* Multiplying by the reciprocal is division, for every byte of a block. */
START_TEST(cells_by_reciprocal)
{
	for (unsigned c = 0; c < GU_CLASSES; c++) {
		size_t cell = gu_class_size(c);
		struct gu_block b = {.start = GU_BLOCK * 77, .bytes = GU_BLOCK, .cell = cell, .ncells = (uint32_t)(GU_BLOCK / cell),
				     .recip = (uint32_t)(((1ull << 32) + cell - 1) / cell)};
		for (size_t at = 0; at < GU_BLOCK; at++) {
			uint32_t found;
			bool in = gu_block_cell(&b, b.start + at, &found);
			must(in == (at / cell < b.ncells) && (!in || found == at / cell), "%zu in cells of %zu", at, cell);
		}
	}
}
END_TEST

/* ---- the pacer ---- */

#define MIB ((uint64_t)1 << 20)

static struct gu_pacer pacer_with(uint64_t soft, uint64_t hard)
{
	struct gu_pacer p;
	gu_pacer_init(&p, &(struct gu_pacer_limits){soft, hard, 4 * MIB, 100});
	return p;
}

static uint64_t next(struct gu_pacer *p, uint64_t live, uint64_t resident, uint64_t during)
{
	return gu_pacer_next(p, &(struct gu_pacer_cycle){.live = live, .resident = resident, .reusable = resident > live ? resident - live : 0,
							 .duration_ns = 1000000, .allocated_during = during});
}

START_TEST(pacing)
{
	struct gu_pacer p = pacer_with(0, 0);
	ck_assert_uint_eq(gu_pacer_first(&p), 4 * MIB);
	uint64_t quiet = next(&p, 100 * MIB, 120 * MIB, 0);
	ck_assert_uint_ge(quiet, 99 * MIB); /* a live heap's worth, as growth_percent says */
	ck_assert_uint_le(quiet, 101 * MIB);
	uint64_t busy = next(&p, 100 * MIB, 120 * MIB, 20 * MIB);
	ck_assert_uint_lt(busy, quiet); /* begins early by what a cycle lets through */
	ck_assert_uint_ge(busy, 50 * MIB);
	p = pacer_with(0, 0);
	ck_assert_uint_eq(next(&p, 0, 0, 0), 4 * MIB); /* the start size is the least */
	p = pacer_with(110 * MIB, 0);
	ck_assert_uint_le(next(&p, 100 * MIB, 120 * MIB, 0), 26 * MIB); /* above the soft limit */
	p = pacer_with(0, 130 * MIB);
	uint64_t tight = next(&p, 100 * MIB, 120 * MIB, 0);
	ck_assert_uint_le(tight, 30 * MIB); /* what is left */
	ck_assert_uint_gt(tight, 0);
}
END_TEST

/* Who fills all the room during a cycle gets most of it before the next, for only that can be freed by it, for as long as somebody waits. */
START_TEST(pacing_of_those_who_wait)
{
	struct gu_pacer p = pacer_with(0, 28 * MIB);
	struct gu_pacer_cycle c = {.live = 8 * MIB, .resident = 10 * MIB, .reusable = 2 * MIB, .duration_ns = 5000000, .allocated_during = 14 * MIB, .waited = true};
	for (int i = 0; i < 20; i++, c.allocated_during = 2 * MIB) {
		uint64_t n = gu_pacer_next(&p, &c);
		ck_assert_uint_ge(n, 19 * MIB);
		ck_assert_uint_lt(n, 20 * MIB);
	}
	c.waited = false;
	for (int i = 0; i < 20; i++)
		gu_pacer_next(&p, &c);
	ck_assert_uint_le(gu_pacer_next(&p, &c), 8 * MIB); /* the growth, less what a cycle lets through */
	p = pacer_with(0, 280 * MIB);
	ck_assert_uint_le(gu_pacer_next(&p, &(struct gu_pacer_cycle){.live = 8 * MIB, .resident = 8 * MIB, .allocated_during = 14 * MIB}), 4 * MIB); /* far from the limit */
}
END_TEST

/* A heap is built as fast as can be, and then used by a program that allocates little: no cycle so late that it would have to wait. */
START_TEST(pacing_of_those_who_become_slower)
{
	struct gu_pacer p = pacer_with(0, 4096 * MIB);
	uint64_t built = gu_pacer_next(&p, &(struct gu_pacer_cycle){.live = 2048 * MIB, .resident = 2200 * MIB, .duration_ns = 2000000000, .allocated_during = 900 * MIB, .waited = true});
	ck_assert_uint_eq(built, 1896 * MIB - 1896 * MIB / 32);
	ck_assert_uint_eq(gu_pacer_revise(&p, 600 * MIB), built); /* still fast */
	uint64_t used = gu_pacer_revise(&p, 60 * MIB);
	ck_assert_uint_le(used + 2 * 120 * MIB, built); /* twice of what the last one would let through */
	ck_assert_uint_ge(used, 1896 * MIB / 2);
	ck_assert_uint_eq(gu_pacer_revise(&p, 600 * MIB), used);
}
END_TEST

/* Who outruns a cycle is slowed down more and more, long before there is nothing but to wait for its end. */
START_TEST(naps)
{
	uint64_t trigger = 1000 * MIB, ceiling = 1200 * MIB;
	ck_assert_uint_eq(gu_pacer_nap(trigger, trigger, ceiling, 4096), 0);
	ck_assert_uint_eq(gu_pacer_nap(1100 * MIB - 1, trigger, ceiling, 4096), 0);
	ck_assert_uint_eq(gu_pacer_nap(1100 * MIB, trigger, ceiling, 4096), 64000);
	ck_assert_uint_eq(gu_pacer_nap(1150 * MIB, trigger, ceiling, 4096), 288000);
	ck_assert_uint_eq(gu_pacer_nap(ceiling, trigger, ceiling, 4096), GU_PACER_WAIT);
	ck_assert_uint_eq(gu_pacer_nap(1100 * MIB, trigger, ceiling, 16), 50000);
	ck_assert_uint_eq(gu_pacer_nap_saving(65536, 1), 4000000);
	ck_assert_uint_eq(gu_pacer_nap_saving(4096, 4), 1000000);
	ck_assert_uint_eq(gu_pacer_nap_saving(4096, 64), 5000000);
	ck_assert_uint_eq(gu_pacer_nap(15 * MIB, 0, 16 * MIB, 4096), 0); /* a small heap */
	ck_assert_uint_eq(gu_pacer_nap(15 * MIB, 0, 20 * MIB, 4096), 0);
	ck_assert_uint_gt(gu_pacer_nap(17 * MIB, 0, 20 * MIB, 4096), 0);
	ck_assert_uint_eq(gu_pacer_nap(1100 * MIB, trigger, ceiling, 64 * MIB), 5000000); /* a nap is never what a pause may be */
	ck_assert_uint_eq(gu_pacer_nap(UINT64_MAX - 1, trigger, UINT64_MAX, 4096), 512000); /* no ceiling */
	ck_assert_uint_eq(gu_pacer_nap(trigger, trigger, UINT64_MAX, 4096), 0);
	ck_assert_uint_eq(gu_pacer_nap(trigger, trigger, trigger, 4096), GU_PACER_WAIT); /* no room */
	ck_assert_uint_eq(gu_pacer_nap(trigger - 1, trigger, trigger - 1, 4096), GU_PACER_WAIT); /* read while both change */
}
END_TEST

/* Whatever it is told, the answer is neither 0 nor beyond reason, and never more than there is room for. */
START_TEST(pacing_at_random)
{
	struct test_rng rng = test_rng(11);
	for (int i = 0; i < 200000; i++) {
		uint64_t hard = test_below(&rng, 2) ? 2 * MIB + test_below(&rng, 1 << 30) : 0;
		struct gu_pacer p = pacer_with(test_below(&rng, 2) ? test_below(&rng, hard ? hard : 1 << 30) : 0, hard);
		must(gu_pacer_first(&p) > 0, "first");
		for (int k = 0; k < 5; k++) {
			uint64_t live = test_below(&rng, 1ull << (10 + test_below(&rng, 30)));
			uint64_t resident = live + test_below(&rng, 1ull << test_below(&rng, 32));
			uint64_t n = next(&p, live, resident, test_below(&rng, 1ull << test_below(&rng, 36)));
			uint64_t growth = (live > 4 * MIB ? live : 4 * MIB) + MIB, room = (hard > resident ? hard - resident : 0) + resident - live;
			must(n >= 256 << 10 && (n <= growth || (hard && n <= room)), "%lu live of %lu, %lu resident: next after %lu", live, hard, resident, n);
		}
	}
}
END_TEST

/* ---- blocks ---- */

static struct gcuffd_heap *heap;

/* Takes, gives back and frees cells of a block of its own, and keeps books. */
static void model_block(size_t cell, unsigned steps, struct test_rng *rng)
{
	struct gu_space s;
	enum { FREE, TAKEN, FREED };
	ck_ok(gu_space_init(&s, 64 << 20, 0, false));
	uint32_t n = (uint32_t)(GU_BLOCK / cell);
	static uint8_t model[4096];
	memset(model, FREE, sizeof(model));
	struct gu_block *b = gu_block_new(&s, n, false);
	ck_assert_ptr_nonnull(b);
	b->cell = cell;
	for (unsigned i = 0; i < steps; i++) {
		uint32_t g = (uint32_t)test_below(rng, gu_block_groups(b)), c = (uint32_t)test_below(rng, n);
		bool reuse = test_below(rng, 2), black = test_below(rng, 2);
		uint64_t want = 0, bit = 1ull << (c & 63);
		if (test_below(rng, 3)) {
			for (uint32_t k = g * 64; k < n && k < g * 64 + 64; k++)
				want |= (uint64_t)(model[k] == FREE || (reuse && model[k] == FREED)) << (k & 63);
			uint64_t got = gu_block_take_group(b, g, reuse, black);
			must(got == want, "group %u: %lx, not %lx", g, got, want);
			must(!black || (b->bits[g].mark & got) == got, "not marked");
			uint64_t back = got & test_rand(rng);
			gu_block_untake_group(b, g, back);
			for (uint32_t k = g * 64; k < n && k < g * 64 + 64; k++)
				if (got >> (k & 63) & 1)
					model[k] = back >> (k & 63) & 1 ? FREE : TAKEN;
		} else if (model[c] == TAKEN) { /* as gu_free() */
			gu_or_seqcst(&b->bits[c >> 6].freed, bit);
			b->nfreed++;
			model[c] = FREED;
		}
		uint32_t free_cells = 0, freed = 0;
		for (uint32_t k = 0; k < n; k++) {
			free_cells += model[k] == FREE;
			freed += model[k] == FREED;
			must(gu_block_started(b, k) == (model[k] != FREE), "cell %u", k);
		}
		must(gu_block_count_free(b) == free_cells && b->nfreed == freed, "%u free, %u freed", gu_block_count_free(b), b->nfreed);
	}
	gu_block_free(&s, b);
	must(gu_block_new(&s, n, false) == b && gu_block_count_free(b) == n, "a descriptor is reused clean");
	gu_space_destroy(&s);
}

START_TEST(blocks)
{
	struct test_rng rng = test_rng(12);
	for (unsigned c = 0; c < GU_CLASSES; c++)
		model_block(gu_class_size(c), 300, &rng);
}
END_TEST

/* ---- the reservation ---- */

START_TEST(space)
{
	struct test_rng rng = test_rng(13);
	struct gu_space s;
	uintptr_t at[20];
	bool fresh;
	ck_ok(gu_space_init(&s, 256 << 20, 48 << 20, false));
	size_t most = 0;
	for (int i = 0; i < 20; i++) {
		size_t align = (size_t)1 << (12 + test_below(&rng, 12));
		ck_ok(gu_space_take(&s, 1 << 20, align, &at[i]));
		must(at[i] % align == 0 && gu_space_has(&s, at[i]) && gu_space_has(&s, at[i] + (1 << 20) - 1), "%#lx", at[i]);
	}
	for (int i = 0; i < 2000; i++) {
		uintptr_t p = at[test_below(&rng, 20)] + (test_below(&rng, 200) << 12);
		size_t len = (1 + test_below(&rng, 56)) << 12;
		if (test_below(&rng, 2)) {
			if (!gu_space_use(&s, p, len, &fresh)) {
				must(!fresh || *(uint64_t *)p == 0, "fresh and not zero");
				memset((void *)p, 1, len);
			}
		} else {
			ck_ok(gu_space_purge(&s, p, len));
			must(*(uint64_t *)p == 0, "purged and not zero");
			ck_ok(gu_space_purge(&s, p, len));
		}
		gu_space_check(&s);
		most = gu_space_resident(&s) > most ? gu_space_resident(&s) : most;
	}
	must(most <= s.limit, "%zu resident", most);
	ck_assert_int_eq(gu_space_take(&s, 1 << 30, 4096, &at[0]), -ENOMEM);
	gu_space_destroy(&s);
}
END_TEST

/* ---- the checks of a whole heap ---- */

static void check_heap(void)
{
	gu_space_check(&heap->space);
	gu_mark_check(heap);
	for (unsigned i = 0; i <= GU_ARENAS; i++)
		if (heap->arenas[i])
			gu_arena_check(heap->arenas[i]);
	for (uint32_t i = 1; i <= gu_block_count(&heap->space); i++)
		if (heap->space.blocks[i].state != GU_BLOCK_FREE)
			gu_block_check(&heap->space, &heap->space.blocks[i]);
}

/* ---- runs ---- */

static struct gu_block run_block;
static struct gu_run moving;
static uint32_t moved_enough;

static uint64_t mask_of(uint32_t group) { return group * 0x9e3779b97f4a7c15u; }

/* As next_group() does. */
static void *move_on(void *arg)
{
	(void)arg;
	for (uint32_t g = 1; !__atomic_load_n(&moved_enough, __ATOMIC_RELAXED); g++) {
		gu_store_relaxed(&moving.group, g);
		gu_store_release(&moving.mask, mask_of(g));
		gu_store_relaxed(&moving.mask, 0);
	}
	return NULL;
}

START_TEST(runs_that_move_on)
{
	pthread_t t;
	moving.block = &run_block;
	run_block.owner = &moving;
	ck_ok(pthread_create(&t, NULL, move_on, NULL));
	for (unsigned i = 0, n = check_rounds(2000000); i < n; i++) {
		uint32_t group = gu_load_relaxed(&moving.group);
		uint64_t mask = gu_run_ahead(&run_block, group);
		must(!mask || mask == mask_of(group), "group %u has %#lx", group, mask);
	}
	__atomic_store_n(&moved_enough, 1, __ATOMIC_RELAXED);
	ck_ok(pthread_join(t, NULL));
}
END_TEST

START_TEST(checks)
{
	NEED_RUNG(_i);
	struct test_rng rng = test_rng(14);
	static void *volatile keep[256];
	struct gcuffd_arena *a;
	heap = heap_make("rung=%s,pacing=0,decay_ms=100000,verify=1", rung_names[_i]);
	ck_ok(gcuffd_arena_create(heap, "a", &a));
	for (int i = 0; i < 20000; i++) {
		size_t k = test_below(&rng, 256), size = 1 + test_below(&rng, test_below(&rng, 40) ? 1000 : 300000);
		if (keep[k] && test_below(&rng, 2))
			must_ok(gcuffd_free(heap, keep[k]));
		keep[k] = test_below(&rng, 2) ? gcuffd_alloc(heap, size) : gcuffd_arena_alloc(a, size, 0, GCUFFD_ATOMIC);
		must(keep[k] != NULL, "errno %d", errno);
		if (i % 2000 == 0) {
			check_heap();
			ck_ok(gcuffd_collect(heap));
			check_heap();
		}
	}
	verified(heap);
	memset((void *)keep, 0, sizeof(keep));
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

#define ADD(name) tcase_add_test(test_case(suite, #name), name)

static Suite *make_suite(void)
{
	Suite *suite = suite_create("units");
	ADD(size_classes);
	ADD(cells_by_reciprocal);
	ADD(pacing);
	ADD(pacing_of_those_who_wait);
	ADD(pacing_of_those_who_become_slower);
	ADD(naps);
	ADD(pacing_at_random);
	ADD(blocks);
	ADD(space);
	ADD(runs_that_move_on);
	tcase_add_loop_test(test_case(suite, "checks"), checks, GCUFFD_RUNG_STOP, GCUFFD_RUNG_RWP + 1);
	return suite;
}

TEST_MAIN(make_suite)
