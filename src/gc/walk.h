/* SPDX-License-Identifier: MIT */
/* walk.h - which objects a heap has: each of them, in a stop, or how many while mutators run. By descriptors and bits alone: no page is touched. */
#ifndef GU_GC_WALK_H
#define GU_GC_WALK_H

#include "gc/heap.h"

/* In a stop. What visit gave last. */
int gu_walk(struct gcuffd_heap *heap, gcuffd_walk_fn *visit, void *data);

/* Any thread, not inside a section. As gcuffd_heap_histogram(). */
int gu_walk_count(struct gcuffd_heap *heap, struct gcuffd_count *counts, size_t max, size_t *count);

#endif
