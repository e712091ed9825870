/* SPDX-License-Identifier: MIT */
/*
 * sweep.c - a block at a time under its arena's lock. New cells keep being marked before they are started
 * (phase is still MARK), so start is read first, then mark (.inv.bits.black).
 */
#include "gc/sweep.h"

#include "gc/mutator.h"
#include "gc/shed.h"
#include "gc/track.h"
#include "gc/weak.h"
#include "sys/os.h"

#define BATCH ((size_t)2 << 20) /* is given back at once, and told to those that wait for memory */

/* Cells freed now; the group keeps what is marked and was not given back. */
static uint64_t sweep_group(struct gu_block *b, uint32_t g)
{
	struct gu_bits *bits = &b->bits[g];
	uint64_t start = gu_load_seqcst(&bits->start), mark = gu_load_seqcst(&bits->mark);
	uint64_t freed = gu_load_relaxed(&bits->freed) ? gu_swap_seqcst(&bits->freed, 0) : 0;
	uint64_t dead = start & (~mark | freed);
	if (freed)
		gu_sub_relaxed(&b->nfreed, (uint32_t)__builtin_popcountll(freed));
	if (dead && gu_unlikely(gu_load_relaxed(&b->weak)))
		gu_weak_clear_cells(b->arena->heap, b, g, dead); /* .inv.weak.swept */
	if (dead)
		gu_and_seqcst(&bits->start, ~dead);
	if (gu_unlikely(gu_load_relaxed(&bits->freed) & dead)) /* freed a second time meanwhile: not the cell's next owner's */
		gu_and_seqcst(&bits->freed, ~dead);
	return dead;
}

static uint32_t sweep_groups(struct gu_block *b)
{
	uint32_t dead = 0;
	for (uint32_t g = 0; g < gu_block_groups(b); g++)
		dead += (uint32_t)__builtin_popcountll(sweep_group(b, g));
	return dead;
}

/* true: the block is empty and on no list. */
static bool sweep_small_locked(struct gcuffd_arena *a, struct gu_block *b, struct gu_sweep_counts *c)
{
	uint32_t dead = sweep_groups(b), free_cells = gu_block_count_free(b);
	b->live = b->ncells - free_cells;
	gu_store_relaxed(&b->nfreed, gu_block_count_freed(b));
	c->freed_bytes += dead * (uint64_t)b->cell;
	c->live_bytes += b->live * (uint64_t)b->cell;
	if (gu_load_relaxed(&b->state) == GU_BLOCK_CURRENT)
		return false;
	if (dead)
		gu_shed_note(a->heap, b);
	bool empty = gu_arena_relist_locked(a, b, free_cells);
	if (empty)
		gu_store_relaxed(&b->state, GU_BLOCK_BUSY);
	else if (gu_load_relaxed(&b->state) == GU_BLOCK_LISTED)
		c->listed_bytes += free_cells * (uint64_t)b->cell;
	return empty;
}

static bool sweep_large_locked(struct gu_block *b, struct gu_sweep_counts *c)
{
	if (sweep_group(b, 0)) {
		c->freed_bytes += b->bytes;
		gu_store_relaxed(&b->state, GU_BLOCK_BUSY);
		return true;
	}
	c->live_bytes += b->bytes;
	return false;
}

/* Whether the block is empty; then it is on no list and nobody's but ours. */
static bool sweep_block(struct gu_block *b, struct gu_sweep_counts *c)
{
	struct gcuffd_arena *a = b->arena;
	gu_lock(&a->lock);
	uint8_t state = gu_load_relaxed(&b->state);
	bool empty = false;
	if (state == GU_BLOCK_LARGE)
		empty = sweep_large_locked(b, c);
	else if (state != GU_BLOCK_FREE && state != GU_BLOCK_BUSY)
		empty = sweep_small_locked(a, b, c);
	if (!empty && state != GU_BLOCK_FREE)
		c->held_bytes += b->bytes;
	gu_unlock(&a->lock);
	return empty;
}

/* Empty blocks that go back together. */
struct batch {
	struct gu_block *first, **tail;
	size_t bytes;
};

static void add(struct batch *e, struct gu_block *b)
{
	b->next = NULL;
	*e->tail = b;
	e->tail = &b->next;
	e->bytes += b->bytes;
}

/* Blocks that adjoin are un-armed in one call. */
static void release(struct gcuffd_heap *h, struct batch *e, struct gu_sweep_counts *c)
{
	gu_track_disarm_blocks(h, e->first);
	for (struct gu_block *b = e->first, *next; b; b = next, c->blocks_released++) {
		next = b->next;
		gu_arena_release(b->arena, b);
	}
	*e = (struct batch){.tail = &e->first};
}

static void relieve(struct gcuffd_heap *h, uint32_t relief)
{
	gu_store_seqcst(&h->relief, relief);
	if (gu_load_seqcst(&h->stalled)) /* .inv.sweep.relief */
		gu_os->futex_wake(&h->relief, INT32_MAX);
}

static void relieve_more(struct gcuffd_heap *h)
{
	uint32_t relief = gu_load_relaxed(&h->relief);
	if ((relief + 1) % GU_RELIEF_CYCLE)
		relieve(h, relief + 1);
}

void gu_sweep_relieve_last(struct gcuffd_heap *h) { relieve(h, (gu_load_relaxed(&h->relief) | (GU_RELIEF_CYCLE - 1)) + 1); }

void gu_sweep(struct gcuffd_heap *h, struct gu_sweep_counts *c)
{
	struct batch empty = {.tail = &empty.first};
	*c = (struct gu_sweep_counts){0};
	uint32_t n = gu_block_count(&h->space);
	size_t told = 0, most = h->verifier ? SIZE_MAX : BATCH; /* which looks at blocks as they were swept: nobody reuses them before */
	for (uint32_t i = 1; i <= n; i++) {
		struct gu_block *b = &h->space.blocks[i];
		if (gu_load_acquire(&b->state) == GU_BLOCK_FREE)
			continue;
		if (sweep_block(b, c))
			add(&empty, b);
		if (empty.bytes + c->listed_bytes - told < most)
			continue;
		release(h, &empty, c);
		told = c->listed_bytes;
		relieve_more(h);
	}
	release(h, &empty, c);
}

void gu_sweep_early(struct gcuffd_heap *h)
{
	for (uint32_t i = 1; i <= gu_block_count(&h->space); i++) {
		struct gu_block *b = &h->space.blocks[i];
		uint8_t state = gu_load_acquire(&b->state);
		if (state == GU_BLOCK_FULL || state == GU_BLOCK_LISTED)
			sweep_groups(b);
	}
}
