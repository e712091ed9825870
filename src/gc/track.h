/* SPDX-License-Identifier: MIT */
/*
 * track.h - which pages were written: the heap's userfaultfd and pagemap, owned by the collector. It is
 * the one consumer of the written bits (.inv.track.one-owner): what it takes from the kernel it
 * puts into the heap's cards before anything else sees it.
 *
 * All arming is get+WP (.inv.track.get-wp), never a blind protect. Pages that are not registered, never
 * armed or un-armed count as written. The descriptors live in the service threads' own table.
 */
#ifndef GU_GC_TRACK_H
#define GU_GC_TRACK_H

#include "gc/heap.h"

/* Opens what the heap's rung needs; nothing on rung stop. In a service thread. */
int gu_track_open(struct gcuffd_heap *heap);
/* While a heap is saved, what is not scanned is tracked too. */
void gu_track_all(struct gcuffd_heap *heap, bool on);
void gu_track_close(struct gcuffd_heap *heap);
/* In a forked child: the descriptors stayed behind. */
void gu_track_forked(struct gcuffd_heap *heap);
bool gu_track_works(const struct gcuffd_heap *heap);
/* Each process, and child, opens a descriptor of its own, with what privilege it has then. */
bool gu_track_is_user_mode_only(const struct gcuffd_heap *heap);

struct gu_track_counts {
	uint64_t scanned, dirty; /* pages */
};

/* Write-protects what is scanned, blocks that threads allocate from excepted, and forgets what was written. No region tells of accesses (.inv.track.rwp). */
int gu_track_arm(struct gcuffd_heap *heap, struct gu_track_counts *counts);
/* Written and pinned pages into cards. rearm: and write-protects them again; blocks in use excepted. counts: written ones. */
int gu_track_collect(struct gcuffd_heap *heap, bool rearm, struct gu_track_counts *counts);
/* Un-arms blocks that mutators will allocate from; outside of a cycle. */
void gu_track_disarm(struct gcuffd_heap *heap);
/* A list of blocks, linked by next, before their pages go back to jemalloc. */
void gu_track_disarm_blocks(struct gcuffd_heap *heap, struct gu_block *list);

/* The same for the program's memory: -errno if the range can't be tracked. */
int gu_track_foreign_arm(struct gcuffd_heap *heap, uintptr_t start, uintptr_t end);
/* The range is registered still, and with this heap's userfaultfd: what took its place may be another's by now, who arms it. */
bool gu_track_foreign_is_kept(struct gcuffd_heap *heap, uintptr_t start, uintptr_t end);
int gu_track_foreign_collect(struct gcuffd_heap *heap, uintptr_t start, uintptr_t end, bool rearm,
			     void (*visit)(void *data, uintptr_t start, uintptr_t end), void *data);
/* Populated pages: of a stack in use elsewhere, of a file's private copy. false if there is no pagemap scan. */
bool gu_track_present(struct gcuffd_heap *heap, uintptr_t start, uintptr_t end, bool anon_only,
		      void (*visit)(void *data, uintptr_t start, uintptr_t end), void *data);

/* ---- cold memory ---- */

/* Faults of holes in n regions, and of the park's parts for them, come to the heap's descriptor from here on. -errno. */
int gu_track_missing(struct gcuffd_heap *heap, size_t region, size_t n);
/* Moves pages from the heap to the park: *done bytes, and why not more (gu_uffd_move()). */
int gu_track_move_out(struct gcuffd_heap *heap, size_t page, size_t n, size_t *done);
/* Makes pages of [from, to) that are in place the process's own, which it shares with a child since a fork (5.14). */
void gu_track_unshare(struct gcuffd_heap *heap, size_t from, size_t to);
int gu_track_uffd(const struct gcuffd_heap *heap);

/* ---- accesses: rung rwp ---- */

bool gu_track_knows_accesses(const struct gcuffd_heap *heap);
/*
 * n regions are registered anew, for accesses or for writes: what was armed is not any more. missing: for faults of holes, too, of which there is
 * one for a moment in which it reads as zeros. -errno: they are registered as they were, for a part of that, or not at all.
 */
int gu_track_tell(struct gcuffd_heap *heap, size_t region, size_t n, bool accesses, bool missing);
/* Pages that are in place: the next access of one is noted, and nobody waits. */
int gu_track_arm_accesses(struct gcuffd_heap *heap, size_t page, size_t n);
int gu_track_accessed(struct gcuffd_heap *heap, size_t region, size_t n, void (*visit)(void *data, uintptr_t start, uintptr_t end), void *data);

#endif
