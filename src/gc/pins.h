/* SPDX-License-Identifier: MIT */
/*
 * pins.h - memory that the kernel or a device writes without the page table's showing it: the ranges that the program
 * pinned, each inside of one object. The pages know how many pins they have (space/pages.h); this list knows whose they
 * are. It is a root (.inv.pages.root), and its objects are neither freed nor moved (.inv.pages.kept). The block
 * of a pinned object has a flag, so that others need no look at the list. Guard: the heap's lock.
 */
#ifndef GU_GC_PINS_H
#define GU_GC_PINS_H

#include "gc/heap.h"

struct gu_marker;
struct gu_root_visit;

/* size > 0, no wrap. -ENOENT: no live object has all of it; -ENOSPC: too many on a page; -ENOMEM. Inside a section. */
int gu_pins_add(struct gcuffd_heap *heap, uintptr_t start, size_t size);
/* -ENOENT: not added as often with this start and size. Inside a section. */
int gu_pins_remove(struct gcuffd_heap *heap, uintptr_t start, size_t size);

bool gu_pins_find(struct gcuffd_heap *heap, uintptr_t start, size_t size);
/* Whether a pin is in the cell. Inside a section. */
static inline bool gu_pins_has(struct gcuffd_heap *h, const struct gu_block *b, uint32_t cell)
{
	return gu_unlikely(gu_load_relaxed(&b->pinned)) && gu_pins_find(h, gu_block_cell_addr(b, cell), b->cell);
}

/* Pinned objects, as roots: for marking; for the verifier, in a stop. */
void gu_pins_mark(struct gcuffd_heap *heap, struct gu_marker *m);
void gu_pins_each(struct gcuffd_heap *heap, const struct gu_root_visit *visit);

/* Test support: the list, the blocks' flags and the pages' counts agree. No other thread changes pins. */
void gu_pins_check(struct gcuffd_heap *heap);

#endif
