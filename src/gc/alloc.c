/* SPDX-License-Identifier: MIT */
/* alloc.c - the slow half of allocation, and free. Mutators, but for gu_free_late(). */
#include "gc/alloc.h"

#include <errno.h>

#include "gc/final.h"
#include "gc/pins.h"
#include "gc/shed.h"
#include "gc/weak.h"
#include "space/hooks.h"

#define CLEAR_PIECE ((size_t)1 << 20)

/* ---- small ---- */

static bool next_group(struct gu_run *run, bool reuse, bool black)
{
	struct gu_block *b = run->block;
	for (uint32_t g = run->group + 1; g < gu_block_groups(b); g++) {
		gu_store_relaxed(&run->group, g);
		uint64_t cells = gu_block_take_group(b, g, reuse, black);
		if (!cells)
			continue;
		run->base = gu_block_cell_addr(b, g * 64);
		gu_store_release(&run->mask, cells); /* pairs with gu_run_ahead() */
		return true;
	}
	return false;
}

static void flush_allocated(struct gu_cache *c)
{
	struct gcuffd_heap *h = c->arena->heap;
	uint64_t now = gu_add_relaxed(&h->allocated, c->allocated) + c->allocated;
	c->owed += c->allocated;
	c->allocated = 0;
	if (now >= gu_load_relaxed(&h->trigger))
		gu_heap_kick(h);
}

static int next_block(struct gu_cache *c, struct gu_run *run, unsigned kind, unsigned class, bool idle)
{
	struct gu_block *b;
	if (run->block) {
		gu_arena_retire(run->block->arena, run->block, idle && !gu_jemalloc_is_closed());
		gu_store_relaxed(&run->block, NULL);
	}
	flush_allocated(c);
	int err = gu_arena_take(c->arena, kind, class, !idle && !gu_heap_without(c->arena->heap, GU_WITHOUT_fresh), run, &b);
	if (err)
		return err;
	run->cell = (uint32_t)b->cell;
	run->zero = b->zero;
	gu_store_relaxed(&run->group, UINT32_MAX); /* the next one is 0 */
	gu_store_relaxed(&run->block, b);
	return 0;
}

int gu_alloc_refill(struct gu_thread *t, struct gu_cache *c, unsigned kind, unsigned class)
{
	struct gu_run *run = &c->runs[kind][class];
	uint32_t phase = gu_load_relaxed(&c->arena->heap->phase); /* constant for this section's purposes: see heap.h */
	bool idle = phase == GU_PHASE_IDLE, black = phase == GU_PHASE_MARK;
	(void)t;
	if (phase == GU_PHASE_WINDOW)
		flush_allocated(c); /* each group counts: a heap that is saved may want it slower than by blocks */
	while (!run->block || !next_group(run, idle, black)) {
		int err = next_block(c, run, kind, class, idle);
		if (err)
			return err;
	}
	c->allocated += (uint64_t)__builtin_popcountll(run->mask) * run->cell;
	return 0;
}

/* ---- large ---- */

/* Nobody can find the object yet (its start bit is clear), so a stop in between does no harm. */
static void clear_pages(struct gu_block *b)
{
	for (size_t at = 0; at < b->bytes; at += CLEAR_PIECE)
		memset((void *)(b->start + at), 0, gu_min(CLEAR_PIECE, b->bytes - at));
}

static void publish_large(struct gcuffd_heap *h, struct gu_block *b)
{
	if (gu_load_relaxed(&h->phase) == GU_PHASE_MARK)
		gu_or_seqcst(&b->one.mark, 1); /* .inv.bits.black */
	gu_or_seqcst(&b->one.start, 1);
	gu_store_release(&b->state, GU_BLOCK_LARGE);
	uint64_t now = gu_add_relaxed(&h->allocated, b->bytes) + b->bytes;
	if (now >= gu_load_relaxed(&h->trigger))
		gu_heap_kick(h);
}

void *gu_alloc_large(struct gu_thread *t, struct gcuffd_arena *a, size_t size, size_t align, unsigned kind,
		     const struct gcuffd_type *type)
{
	struct gu_block *b;
	bool fresh;
	gu_section_enter(t);
	int err = gu_arena_take_large(a, size, align, kind, &fresh, &b);
	gu_section_exit(t);
	if (err)
		return NULL;
	if (!fresh)
		clear_pages(b);
	gu_section_enter(t);
	if (type)
		b->types[0] = (uint16_t)type->index;
	void *object = (void *)b->start; /* a root from here on: a stop at the section's end may sweep what nobody points to */
	publish_large(a->heap, b);
	gu_section_exit(t);
	return object;
}

/* ---- finding and freeing ---- */

static bool set_aside(const struct gu_block *b, uint32_t cell) { return gu_run_ahead(b, cell >> 6) >> (cell & 63) & 1; }

bool gu_object_find(const struct gcuffd_heap *h, uintptr_t at, struct gu_found *f)
{
	struct gu_block *b = gu_block_at(&h->space, at);
	if (!b || !gu_block_cell(b, at, &f->cell) || !gu_block_started(b, f->cell) || set_aside(b, f->cell))
		return false;
	if (gu_load_relaxed(&b->bits[f->cell >> 6].freed) >> (f->cell & 63) & 1)
		return false;
	f->block = b;
	f->base = gu_block_cell_addr(b, f->cell);
	f->size = b->cell;
	return true;
}

/* The collector may find it freed before who freed it comes here: one of them releases it. */
static void free_large_now(struct gu_block *b)
{
	struct gcuffd_arena *a = b->arena;
	gu_lock(&a->lock);
	bool ours = b->arena == a && gu_load_relaxed(&b->state) == GU_BLOCK_LARGE && gu_load_relaxed(&b->one.freed) & 1;
	if (ours)
		gu_store_relaxed(&b->state, GU_BLOCK_BUSY); /* not FULL: a late free_small_now() would release it again */
	gu_unlock(&a->lock);
	if (!ours)
		return;
	gu_and_seqcst(&b->one.start, 0);
	gu_arena_release(a, b);
}

/* Enough freed cells put a full block on the list; when the last one goes, the block goes. */
static void free_small_now(struct gu_block *b, uint32_t nfreed)
{
	struct gcuffd_arena *a = b->arena;
	if (nfreed != b->live && !(gu_load_relaxed(&b->state) == GU_BLOCK_FULL && nfreed * 16 >= b->ncells))
		return;
	gu_lock(&a->lock);
	uint8_t state = gu_load_relaxed(&b->state);
	bool empty = false;
	if (b->arena == a && (state == GU_BLOCK_FULL || state == GU_BLOCK_LISTED)) { /* else it was released meanwhile */
		uint32_t free_cells = gu_block_count_free(b) + gu_block_count_freed(b);
		empty = gu_arena_relist_locked(a, b, free_cells);
		if (empty)
			gu_store_relaxed(&b->state, GU_BLOCK_BUSY); /* ours alone from here on */
	}
	gu_unlock(&a->lock);
	if (empty)
		gu_arena_release(a, b);
}

int gu_free(struct gcuffd_heap *h, uintptr_t object)
{
	struct gu_block *b = gu_block_at(&h->space, object);
	uint32_t cell;
	if (!b || !gu_block_cell(b, object, &cell) || gu_block_cell_addr(b, cell) != object)
		return -EINVAL;
	if (!gu_block_started(b, cell) || set_aside(b, cell))
		return -EALREADY;
	if (gu_pins_has(h, b, cell))
		return -EBUSY;
	struct gu_bits *bits = &b->bits[cell >> 6];
	uint64_t bit = 1ull << (cell & 63);
	if (gu_unlikely(gu_load_relaxed(&b->weak)))
		gu_weak_clear_cells(h, b, cell >> 6, bit); /* .inv.weak.swept */
	if (gu_unlikely(gu_load_relaxed(&b->final)))
		gu_final_drop_cells(h, b, cell >> 6, bit); /* .inv.final.alive */
	bool large = gu_block_is_large(b);
	/* The collector does not wait for sections of threads that are not attached: they release nothing. */
	bool idle = gu_self && gu_load_relaxed(&h->phase) == GU_PHASE_IDLE;
	if (h->verify_frees)
		gu_or_relaxed(&bits->dropped, bit);
	if (gu_or_seqcst(&bits->freed, bit) & bit)
		return -EALREADY;
	uint32_t nfreed = gu_add_relaxed(&b->nfreed, 1) + 1;
	gu_shed_note(h, b);
	if (!idle || gu_jemalloc_is_closed())
		return 0;
	if (large)
		free_large_now(b);
	else
		free_small_now(b, nfreed);
	return 0;
}

void gu_free_late(struct gcuffd_heap *h)
{
	for (uint32_t i = 1; i <= gu_block_count(&h->space); i++) {
		struct gu_block *b = &h->space.blocks[i];
		uint8_t state = gu_load_acquire(&b->state);
		uint32_t nfreed = gu_load_relaxed(&b->nfreed);
		if (nfreed && state == GU_BLOCK_LARGE)
			free_large_now(b);
		else if (nfreed && (state == GU_BLOCK_FULL || state == GU_BLOCK_LISTED))
			free_small_now(b, nfreed);
	}
}
