/* SPDX-License-Identifier: MIT */
/*
 * sweep.h - after marking: cells that are not marked, or were freed, become free; empty blocks and dead large
 * objects go back to jemalloc. Reads bits only, never an object. The collector, while mutators run.
 */
#ifndef GU_GC_SWEEP_H
#define GU_GC_SWEEP_H

#include "gc/heap.h"

struct gu_sweep_counts {
	uint64_t live_bytes, freed_bytes, blocks_released;
	uint64_t held_bytes;   /* of blocks and large objects that stay */
	uint64_t listed_bytes; /* of these, free cells of blocks on a list */
};

void gu_sweep(struct gcuffd_heap *heap, struct gu_sweep_counts *counts);
/*
 * relief's lower half counts how often the sweep of a cycle has given back something, its upper half cycles. Who does not get memory, and has
 * read it before, waits until it changes; within a cycle more is on its way then.
 */
#define GU_RELIEF_CYCLE 0x10000u
/* At a cycle's end, whatever came of it; the sweep does the rest by itself. */
void gu_sweep_relieve_last(struct gcuffd_heap *heap);
/* One block, for the planted fault. */
void gu_sweep_early(struct gcuffd_heap *heap);

#endif
