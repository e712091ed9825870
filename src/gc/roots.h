/* SPDX-License-Identifier: MIT */
/*
 * roots.h - where marking starts: stacks, registers, TLS, data segments or all writable memory of the
 * process, ranges that the program named.
 *
 * The list of ranges is made outside of stops (the loader's lock may be held by a stopped thread), except in
 * a heap with GCUFFD_PROCESS_ROOTS, whose list is the kernel's. The program's memory is read by copying, since it
 * may be unmapped at any time (.inv.root.copy); stacks of parked threads are read in place. Large
 * ranges are tracked like the heap, so that a remark reads only what was written (.inv.root.tracked).
 */
#ifndef GU_GC_ROOTS_H
#define GU_GC_ROOTS_H

#include "gc/heap.h"
#include "gc/mark.h"

int gu_roots_create(struct gcuffd_heap *heap);
void gu_roots_destroy(struct gcuffd_heap *heap);

/* Lists the ranges of now; with track the large ones are armed. Not in a stop. */
int gu_roots_begin(struct gcuffd_heap *heap, bool track);
/* Every listed range, while mutators run. */
void gu_roots_scan(struct gcuffd_heap *heap, struct gu_marker *m);
/* What was written in the tracked ranges since; pages visited. */
size_t gu_roots_preclean(struct gcuffd_heap *heap, struct gu_marker *m);
/* Lists again, before the stop that ends marking. */
int gu_roots_refresh(struct gcuffd_heap *heap);
/* In a stop: written pages of tracked ranges, the others whole. */
int gu_roots_remark(struct gcuffd_heap *heap, struct gu_marker *m);
/* In a stop: every thread's stack, registers and TLS; words read. */
uint64_t gu_roots_stacks(struct gcuffd_heap *heap, struct gu_marker *m);
/* After the stop: a module came or went since gu_roots_refresh, so marking is to be finished once more. */
bool gu_roots_changed(struct gcuffd_heap *heap);

/* The part of a service thread's stack that holds its TLS and its descriptor. */
void gu_roots_service(struct gcuffd_heap *heap, uintptr_t start, uintptr_t end);
void gu_roots_forked(struct gcuffd_heap *heap);
/* The collector, when its descriptor is open, before any page is out: whether what is out can't be read (.inv.root.hidden). Until then it may be so. */
void gu_roots_set_faults(struct gcuffd_heap *heap, bool user_mode_only);

/* What is told of each range of roots in a stop, in place or (foreign) to be copied. */
struct gu_root_visit {
	void (*range)(void *data, uintptr_t start, uintptr_t end, bool foreign);
	void *data;
};
/* For tests: what the collector takes for roots. The verifier has a reading of its own (verifyroots.h). */
void gu_roots_each(struct gcuffd_heap *heap, const struct gu_root_visit *visit);

#endif
