/* SPDX-License-Identifier: MIT */
/* cold.h - what the tests of cold memory share: a heap with COLD_OPTIONS and those of a test, on the rung of the loop, and questions to it. */
#ifndef GU_TESTS_COLD_H
#define GU_TESTS_COLD_H

#include "core.h"
#include "ctl/evictor.h"
#include "gc/heap.h"
#include "space/cold.h"
#include "space/space.h"

#ifndef COLD_OPTIONS
#define COLD_OPTIONS ""
#endif

static struct gcuffd_heap *heap;

#define cold_heap(more) \
	do { \
		NEED_RUNG(_i); \
		heap = heap_make("rung=%s,cold=1,reservation=1G" COLD_OPTIONS more, rung_names[_i]); \
	} while (0)

static inline struct gcuffd_cold_stats cold_of(struct gcuffd_heap *h)
{
	struct gcuffd_cold_stats s = {.size = sizeof(s)};
	must_ok(gcuffd_cold_stats(h, &s));
	return s;
}

/* With the locks of a fork: no page is half way, no cycle runs. */
static inline void checked(void)
{
	gu_evictor_fork_prepare(heap);
	gu_lock_fork(&heap->cycle_lock);
	gu_space_check(&heap->space);
	gu_unlock_fork(&heap->cycle_lock);
	gu_evictor_fork_parent(heap);
	verified(heap);
}

static inline size_t cool_all(void)
{
	size_t n;
	must_ok(gcuffd_cool(heap, NULL, 0, &n));
	return n;
}

static inline bool is_out(const void *p)
{
	return gu_cold_state(&heap->space.cold, gu_space_page(&heap->space, (uintptr_t)p)) != GU_COLD_LIVE;
}

#endif
