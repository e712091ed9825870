/* SPDX-License-Identifier: MIT */
/* shed.c - see shed.h. */
#include "gc/shed.h"

#include "gc/evict.h"
#include "space/block.h"

#define AT_ONCE 4096u /* descriptors looked at with the cycle lock */

static bool is_out(const struct gu_cold *c, size_t page)
{
	return gu_cold_is_out(c, page) && gu_cold_state(c, page) != GU_COLD_LIVE;
}

static void shed_page_locked(struct gu_space *s, struct gu_block *b, size_t page)
{
	uintptr_t at = gu_space_address(s, page);
	if (!is_out(&s->cold, page) || !gu_block_is_dead_at(b, at))
		return;
	gu_block_bury_at(b, at);
	gu_cold_forget_page(s, page);
	b->holes++;
}

/* A block of which nothing lives is released by who frees the last cell, or swept. */
static void shed_pages_locked(struct gu_space *s, struct gu_block *b)
{
	size_t first = gu_space_page(s, b->start), end = first + (b->bytes >> GU_PAGE_SHIFT);
	uint32_t free_cells = gu_block_count_free(b) + gu_block_count_freed(b);
	if (free_cells == b->ncells || !gu_cold_any(&s->cold, first, end))
		return;
	for (size_t p = first; p < end; p++)
		shed_page_locked(s, b, p);
	(void)gu_arena_relist_locked(b->arena, b, free_cells);
}

static void shed_block(struct gu_space *s, struct gu_block *b)
{
	struct gcuffd_arena *a = b->arena; /* stays while no arena ends: the cycle lock */
	gu_lock(&a->lock);
	if (b->arena == a && gu_load_relaxed(&b->state) == GU_BLOCK_FULL) /* .inv.cold.listed */
		shed_pages_locked(s, b);
	gu_unlock(&a->lock);
}

static void shed_blocks(struct gcuffd_heap *h, uint32_t from, uint32_t to)
{
	for (uint32_t i = from; i < to; i++) {
		struct gu_block *b = &h->space.blocks[i];
		if (gu_load_relaxed(&b->deaths) && gu_swap_seqcst(&b->deaths, 0) && gu_load_acquire(&b->state) == GU_BLOCK_FULL)
			shed_block(&h->space, b);
	}
}

void gu_shed(struct gcuffd_heap *h)
{
	if (!gu_load_relaxed(&h->space.cold.deaths) || !gu_swap_seqcst(&h->space.cold.deaths, 0))
		return;
	uint32_t n = gu_block_count(&h->space) + 1;
	for (uint32_t i = 1; i < n; i += AT_ONCE) {
		gu_evict_lock(h);
		shed_blocks(h, i, (uint32_t)gu_min(i + AT_ONCE, n));
		gu_unlock(&h->cycle_lock);
	}
}

/* Under the region's lock the resolver is not filling it; if that has failed, it is out, and left to gu_shed(). */
bool gu_shed_in_place(struct gu_space *s, struct gu_cold_region *r, struct gu_block *b, size_t page)
{
	uintptr_t at = gu_space_address(s, page);
	if (!gu_block_is_dead_at(b, at))
		return false;
	gu_lock(&r->lock);
	if (gu_cold_is_out(&s->cold, page)) {
		gu_shed_mark(s, b);
	} else if (!gu_space_purge(s, at, GU_PAGE)) {
		gu_block_bury_at(b, at);
		b->holes++;
	}
	gu_unlock(&r->lock);
	return true;
}
