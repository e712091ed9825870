/* SPDX-License-Identifier: MIT */
/*
 * block.c - descriptors and bits. Descriptors are pooled by how many groups of bits are attached to them
 * (and whether an array of types is), so that both can stay attached for good (.inv.block.stable).
 */
#include "space/block.h"

#include <string.h>

#include "base/meta.h"

#define STEP 256u       /* descriptors committed at a time, and more in a large heap */
#define STEP_MOST 4096u

/* Pool 0: bits inside the descriptor; 1..6: 2^n groups; 8 more: the same with types. */
static unsigned pool_of(uint32_t ncells, bool typed)
{
	uint32_t groups = (ncells + 63) / 64;
	unsigned log = groups <= 1 ? 0 : 32u - (unsigned)__builtin_clz(groups - 1);
	return log + (typed ? 8 : 0);
}

static uint32_t pool_groups(unsigned pool) { return 1u << (pool & 7); }
static size_t bits_size(unsigned pool) { return pool_groups(pool) * sizeof(struct gu_bits); }
static size_t types_size(unsigned pool) { return pool_groups(pool) * 64 * sizeof(uint16_t); }

static struct gu_block *extend_locked(struct gu_space *s)
{
	uint32_t n = s->nblocks + 1;
	if (n >= s->blocks_max)
		return NULL;
	if (n >= s->blocks_committed) {
		uint32_t step = (uint32_t)gu_min(gu_max(s->blocks_committed / 8, STEP), STEP_MOST);
		uintptr_t lo = (uintptr_t)&s->blocks[s->blocks_committed];
		uintptr_t hi = (uintptr_t)&s->blocks[gu_min(s->blocks_committed + step, s->blocks_max)];
		if (gu_meta_commit((void *)gu_align_down(lo, GU_PAGE), gu_align_up(hi, GU_PAGE) - gu_align_down(lo, GU_PAGE)))
			return NULL;
		s->blocks_committed += step;
		gu_add_relaxed(&s->tables, hi - lo);
	}
	gu_store_release(&s->nblocks, n); /* pairs with gu_block_count() */
	return &s->blocks[n];
}

static bool attach_bits(struct gu_space *s, struct gu_block *b, unsigned pool)
{
	b->pool = (uint8_t)pool;
	b->bits = (pool & 7) ? gu_meta_alloc(bits_size(pool)) : &b->one;
	b->types = pool >= 8 && b->bits ? gu_meta_alloc(types_size(pool)) : NULL;
	size_t size = ((pool & 7) ? bits_size(pool) : 0) + (pool >= 8 ? types_size(pool) : 0);
	if (b->bits && (pool < 8 || b->types)) {
		gu_add_relaxed(&s->tables, size);
		return true;
	}
	if (b->bits && b->bits != &b->one)
		gu_meta_free(b->bits, bits_size(pool));
	b->bits = NULL;
	return false;
}

static void push_free_locked(struct gu_space *s, struct gu_block *b)
{
	b->next = s->free_blocks[b->pool];
	s->free_blocks[b->pool] = b;
}

struct gu_block *gu_block_new(struct gu_space *s, uint32_t ncells, bool typed)
{
	unsigned pool = pool_of(ncells, typed);
	gu_lock(&s->lock);
	struct gu_block *b = s->free_blocks[pool];
	if (b)
		s->free_blocks[pool] = b->next;
	else
		b = extend_locked(s);
	if (b && !b->bits && !attach_bits(s, b, pool)) {
		b->pool = 7; /* of no size: tried again when the next descriptor is wanted */
		s->nblocks--;
		b = NULL;
	}
	gu_unlock(&s->lock);
	if (!b)
		return NULL;
	gu_add_seqcst(&b->made, 1); /* before the bits are another's: pairs with is_gone_undropped() */
	b->ncells = ncells;
	b->next = b->prev = NULL;
	b->owner = NULL;
	b->nfreed = b->live = 0;
	b->zero = b->armed = b->pinned = b->holes = b->deaths = b->weak = b->final = 0;
	for (uint32_t g = 0; g < gu_block_groups(b); g++)
		b->bits[g] = (struct gu_bits){0};
	return b;
}

static void set_pages(struct gu_space *s, const struct gu_block *b, uint32_t index)
{
	size_t page = gu_space_page(s, b->start);
	for (size_t i = 0; i < b->bytes >> GU_PAGE_SHIFT; i++)
		gu_store_release(&s->block_of[page + i], index); /* pairs with gu_block_at() */
}

void gu_block_publish(struct gu_space *s, struct gu_block *b, enum gu_block_state state)
{
	gu_store_release(&b->state, (uint8_t)state); /* pairs with the collector's walk over descriptors */
	set_pages(s, b, (uint32_t)(b - s->blocks));
}

void gu_block_free(struct gu_space *s, struct gu_block *b)
{
	if (gu_load_relaxed(&b->state) != GU_BLOCK_FREE)
		set_pages(s, b, 0);
	gu_store_release(&b->state, GU_BLOCK_FREE);
	gu_lock(&s->lock);
	push_free_locked(s, b);
	gu_unlock(&s->lock);
}

void gu_block_drop_all(struct gu_space *s)
{
	for (uint32_t i = 1; s->blocks && i <= s->nblocks; i++) {
		struct gu_block *b = &s->blocks[i];
		if (b->bits && b->bits != &b->one)
			gu_meta_free(b->bits, bits_size(b->pool));
		if (b->types)
			gu_meta_free(b->types, types_size(b->pool));
	}
}

uint64_t gu_block_take_group(struct gu_block *b, uint32_t g, bool reuse, bool black)
{
	struct gu_bits *bits = &b->bits[g];
	uint64_t back = reuse && gu_load_relaxed(&bits->freed) ? gu_swap_seqcst(&bits->freed, 0) : 0;
	uint64_t cells = (~gu_load_acquire(&bits->start) & gu_block_valid(b, g)) | back; /* behind what the sweep did before it cleared them: pairs with gu_weak_read() by the mark */
	if (back)
		gu_sub_relaxed(&b->nfreed, (uint32_t)__builtin_popcountll(back));
	if (!cells)
		return 0;
	if (black)
		gu_or_seqcst(&bits->mark, cells); /* .inv.bits.black: before start, pairs with the sweep */
	gu_or_seqcst(&bits->start, cells);
	return cells;
}

void gu_block_untake_group(struct gu_block *b, uint32_t g, uint64_t cells)
{
	if (!cells)
		return;
	gu_and_seqcst(&b->bits[g].start, ~cells);
	gu_and_seqcst(&b->bits[g].mark, ~cells);
}

uint32_t gu_block_count_free(const struct gu_block *b)
{
	uint32_t n = 0;
	for (uint32_t g = 0; g < gu_block_groups(b); g++)
		n += (uint32_t)__builtin_popcountll(~gu_load_relaxed(&b->bits[g].start) & gu_block_valid(b, g));
	return n;
}

uint32_t gu_block_count_freed(const struct gu_block *b)
{
	uint32_t n = 0;
	for (uint32_t g = 0; g < gu_block_groups(b); g++)
		n += (uint32_t)__builtin_popcountll(gu_load_relaxed(&b->bits[g].freed) & gu_load_relaxed(&b->bits[g].start));
	return n;
}

/* ---- pages ---- */

/* false: it lies in the waste. */
static bool cells_at(const struct gu_block *b, uintptr_t page, uint32_t *first, uint32_t *last)
{
	if (!gu_block_cell(b, page, first))
		return false;
	if (!gu_block_cell(b, page + GU_PAGE - 1, last))
		*last = b->ncells - 1;
	return true;
}

static uint64_t range_of_group(uint32_t g, uint32_t first, uint32_t last)
{
	size_t lo = gu_max(first, (size_t)g * 64) - (size_t)g * 64, hi = gu_min(last, (size_t)g * 64 + 63) - (size_t)g * 64;
	return (~0ull >> (63 - hi)) & (~0ull << lo);
}

bool gu_block_is_dead_at(const struct gu_block *b, uintptr_t page)
{
	uint32_t first, last;
	uint64_t live = 0;
	if (gu_block_is_large(b))
		return false;
	if (!cells_at(b, page, &first, &last))
		return true;
	for (uint32_t g = first / 64; g <= last / 64 && !live; g++)
		live = gu_load_relaxed(&b->bits[g].start) & ~gu_load_relaxed(&b->bits[g].freed) & range_of_group(g, first, last);
	return !live;
}

/* As the sweep does it. */
void gu_block_bury_at(struct gu_block *b, uintptr_t page)
{
	uint32_t first, last;
	if (!cells_at(b, page, &first, &last))
		return;
	for (uint32_t g = first / 64; g <= last / 64; g++) {
		uint64_t freed = gu_load_relaxed(&b->bits[g].freed) & range_of_group(g, first, last);
		if (!freed)
			continue;
		gu_and_seqcst(&b->bits[g].start, ~freed);
		gu_and_seqcst(&b->bits[g].freed, ~freed);
		gu_sub_relaxed(&b->nfreed, (uint32_t)__builtin_popcountll(freed));
		b->live -= (uint32_t)__builtin_popcountll(freed);
	}
}

static void check_holes(const struct gu_space *s, const struct gu_block *b)
{
	size_t page = gu_space_page(s, b->start), absent = 0;
	for (size_t i = 0; i < b->bytes >> GU_PAGE_SHIFT; i++)
		absent += !(gu_load_relaxed(&s->state[page + i]) & GU_PAGE_RESIDENT);
	GU_INVARIANT(absent == b->holes, ".inv.block.holes");
}

void gu_block_check(const struct gu_space *s, const struct gu_block *b)
{
	size_t page = gu_space_page(s, b->start);
	GU_INVARIANT(b->bits != NULL, ".inv.block.stable");
	for (size_t i = 0; i < b->bytes >> GU_PAGE_SHIFT; i++)
		GU_INVARIANT(s->block_of[page + i] == (uint32_t)(b - s->blocks), ".inv.block.pages");
	for (uint32_t g = 0; g < gu_block_groups(b); g++)
		GU_INVARIANT(!((b->bits[g].start | b->bits[g].freed) & ~gu_block_valid(b, g)), ".inv.bits.valid");
	check_holes(s, b);
}
