/* SPDX-License-Identifier: MIT */
/*
 * accessed.h - which pages of a region are accessed, where the kernel can tell (rung rwp). With the cycle lock.
 *
 * A mapping tells of writes or of accesses, not of both. So a region is watched between cycles alone, and while no page of it is out: to have it
 * tell of the other it is registered anew, and for a moment a hole of it reads as zeros (.inv.cold.watched). A region is watched in windows. Whoever
 * needs to know what is written ends all of them (.inv.track.rwp); what was found until then, and the time, is kept for the next.
 */
#ifndef GU_GC_ACCESSED_H
#define GU_GC_ACCESSED_H

#include "gc/heap.h"

/*
 * A window begins. anew: with the pages that may be taken out, but for those that are passed over (.inv.cold.heat); else with those that stand from the
 * last. The evictor, of a region without leftovers. -ENOENT: there are none; -EBUSY: a page is out; -EOPNOTSUPP: not on this rung; -errno.
 */
int gu_accessed_begin(struct gcuffd_heap *heap, struct gu_cold_region *record, size_t region, bool anew);

/* It ends, if there is one: what was accessed in it stands no more. -errno: the kernel does not tell what is written there. */
int gu_accessed_end(struct gcuffd_heap *heap, struct gu_cold_region *record, size_t region);
/* Of all regions. */
int gu_accessed_end_all(struct gcuffd_heap *heap);

static inline bool gu_accessed_stands(const struct gu_cold_region *r, size_t page)
{
	return r->stood[page % GU_REGION_PAGES / 64] >> (page & 63) & 1;
}

/* Nothing is known of its pages. */
void gu_accessed_forget(struct gcuffd_heap *heap, struct gu_cold_region *record);

#endif
