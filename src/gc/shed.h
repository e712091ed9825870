/* SPDX-License-Identifier: MIT */
/*
 * shed.h - pages of which nothing lives any more, in blocks that live on: what is out is dropped without being read, what is in place is not taken
 * out but given back. Either is fresh afterwards, not accounted for, and reads as zeros when its cells are handed out again
 * (.inv.cold.dead). The evictor's thread.
 */
#ifndef GU_GC_SHED_H
#define GU_GC_SHED_H

#include "gc/heap.h"

/* gu_shed() looks at the block. */
static inline void gu_shed_mark(struct gu_space *s, struct gu_block *b)
{
	gu_store_seqcst(&b->deaths, 1);
	gu_store_seqcst(&s->cold.deaths, 1); /* pairs with gu_shed() */
}

/* Cells of the block have died: by a free, or in a sweep. Any thread. Who finds deaths set has left its bits before gu_shed() looks at them. */
static inline void gu_shed_note(struct gcuffd_heap *h, struct gu_block *b)
{
	if (gu_unlikely(gu_load_relaxed(&h->space.cold.nout)) && !gu_load_seqcst(&b->deaths))
		gu_shed_mark(&h->space, b);
}

/* Drops what is out and dead, in blocks that have deaths. */
void gu_shed(struct gcuffd_heap *heap);

/* With the cycle lock, under the arena's: if nothing lives on a page in place, it is given back. Whether that is so. */
bool gu_shed_in_place(struct gu_space *space, struct gu_cold_region *region, struct gu_block *block, size_t page);

#endif
