/* SPDX-License-Identifier: MIT */
/*
 * alloc.h - from a mutator's request to a cell or a large object, and back. gu_run_next() is the fast
 * path: no lock, no atomic read-modify-write, nothing of the object touched but to clear it.
 */
#ifndef GU_GC_ALLOC_H
#define GU_GC_ALLOC_H

#include <string.h>

#include "gc/mutator.h"

#define GU_CLEAR_INLINE 128u /* bytes */

static inline void gu_clear_cell(void *p, size_t size)
{
	uint64_t *w = p, *end = w + size / 8;
	if (size > GU_CLEAR_INLINE) {
		memset(p, 0, size);
		return;
	}
	do { /* a granule at a time */
		w[0] = w[1] = 0;
		w += GU_GRANULE / 8;
	} while (w != end);
}

/* Whether gu_run_next() is a matter of a few instructions: there is a cell, and not much to clear. Inside a section. */
static inline bool gu_run_is_ready(const struct gu_run *run)
{
	return run->mask && (run->zero || run->cell <= GU_CLEAR_INLINE);
}

/* A cleared cell of the run, of a type where cells have one, or NULL if its group is used up. Inside a section. */
static inline void *gu_run_next(struct gu_run *run, const struct gcuffd_type *type)
{
	uint64_t mask = run->mask;
	if (gu_unlikely(!mask))
		return NULL;
	uint32_t next = (uint32_t)__builtin_ctzll(mask);
	void *p = (void *)(run->base + (uintptr_t)next * run->cell);
	if (!run->zero)
		gu_clear_cell(p, run->cell); /* before the cell leaves the mask: .inv.cell.clear */
	if (type)
		run->block->types[run->group * 64 + next] = (uint16_t)type->index; /* the same */
	gu_store_relaxed(&run->mask, mask & (mask - 1));
	return p;
}

/* Cells for the run. -ENOMEM: none to be had without collecting. Inside a section. */
int gu_alloc_refill(struct gu_thread *t, struct gu_cache *cache, unsigned kind, unsigned class);

/*
 * A large object, cleared outside of sections in pieces. type may be NULL. NULL: none to be had without
 * collecting. Not inside a section.
 */
void *gu_alloc_large(struct gu_thread *t, struct gcuffd_arena *arena, size_t size, size_t align, unsigned kind,
		     const struct gcuffd_type *type);

struct gu_found {
	struct gu_block *block;
	uint32_t cell;
	uintptr_t base;
	size_t size;
};
/* The object at points into: allocated, not freed, not merely set aside. Inside a section. */
bool gu_object_find(const struct gcuffd_heap *heap, uintptr_t at, struct gu_found *found);

/* 0, -EINVAL, -EALREADY, -EBUSY as gcuffd_free. Inside a section. */
int gu_free(struct gcuffd_heap *heap, uintptr_t object);
/* After a cycle: releases what was freed while it ran and its sweep had passed by. The collector, with the cycle lock. */
void gu_free_late(struct gcuffd_heap *heap);

#endif
