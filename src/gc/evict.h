/* SPDX-License-Identifier: MIT */
/*
 * evict.h - taking pages out: claim them, move them to the park, put them into the store with a summary. The evictor's thread, which takes the
 * cycle lock for what markers read, and not while it puts.
 *
 * UFFDIO_MOVE takes a page away whole from threads that write to it at that moment (.assume.move.atomic): whoever comes too late
 * faults, and the resolver fills the page from where it is by then. So nobody is stopped, and pages may be taken from under running
 * mutators.
 */
#ifndef GU_GC_EVICT_H
#define GU_GC_EVICT_H

#include "gc/heap.h"

/* Pages [from, to), which are of one region; *out grows by those that went to the store. -ENOSPC: the store is full; -EIO; -ENOMEM: what was not stored is in place again. */
int gu_evict(struct gcuffd_heap *heap, size_t from, size_t to, size_t *out);

/*
 * What is marked with MADV_DONTDUMP or MADV_WIPEONFORK is never taken out, as what is locked (.inv.cold.kept): looks which that is, and brings back what of it is out. -errno: it
 * could not be found out, and is what it was.
 */
int gu_evict_look(struct gcuffd_heap *heap);

/* SPARING: not those that came back lately (.inv.cold.heat). STANDING: those that were watched and not accessed (accessed.h), of a whole region. */
enum gu_evict_which { GU_EVICT_ALL, GU_EVICT_SPARING, GU_EVICT_STANDING };

/* The same in two steps, between which pages that are touched come back at little cost. What could not be stored stays in the park. */
int gu_evict_park(struct gcuffd_heap *heap, size_t from, size_t to, enum gu_evict_which which);
int gu_evict_store(struct gcuffd_heap *heap, size_t from, size_t to, size_t *out);

/* A window of a region's in which accesses are noted begins, with new pages or with those that stand (gu_accessed_begin()). Or it is given up. */
int gu_evict_watch(struct gcuffd_heap *heap, size_t region, bool anew);
void gu_evict_unwatch(struct gcuffd_heap *heap, size_t region);

/* Fills pages [from, to), of one region, that are out. -EIO: one could not be read, and is poisoned; -ENOMEM. */
int gu_evict_undo(struct gcuffd_heap *heap, size_t from, size_t to);

/* Around fork(), with the tier and the cycle lock: only a child that has been told may have what is out (.inv.cold.fork). */
void gu_evict_fork_prepare(struct gcuffd_heap *heap);
void gu_evict_fork_parent(struct gcuffd_heap *heap);
void gu_evict_fork_child(struct gcuffd_heap *heap);
/* The collector in a child: faults of what is out come to its resolver. Where that can't be, all is brought back. */
void gu_evict_resume(struct gcuffd_heap *heap);

/* The cycle lock, between cycles: one that is due goes first. */
void gu_evict_lock(struct gcuffd_heap *heap);

/* Drops what LIVE pages still have in park and store (.inv.cold.leftover). */
void gu_evict_tidy(struct gcuffd_heap *heap);

#endif
