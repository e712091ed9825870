/* SPDX-License-Identifier: MIT */
/*
 * verify.h - checks a cycle by an independent, simple trace with the world stopped. It has its own list of
 * objects, found by search and division, its own bits and its own stack, and reads for itself where roots are
 * (verifyroots.h); it shares with the marker only what defines the heap: descriptors, start bits and types.
 *
 *   begin   in stop 1: remembers what is reachable
 *   mark    in stop 2, marking done: what begin remembered is still there (no early sweep); all that is
 *           reachable now is marked
 *   final   in a further stop, if objects wait for their finalizers: what these lead to is marked
 *   swept   after the sweep: all that mark and final found is still there, unless the program freed it
 */
#ifndef GU_GC_VERIFY_H
#define GU_GC_VERIFY_H

#include "gc/heap.h"

int gu_verify_create(struct gcuffd_heap *heap);
void gu_verify_destroy(struct gcuffd_heap *heap);

/* Before each stop in which it traces: what modules there are. */
void gu_verify_list(struct gcuffd_heap *heap);
/* Each returns how many objects are wrong, and writes the first few of them to the log afterwards (report). */
uint64_t gu_verify_begin(struct gcuffd_heap *heap);
uint64_t gu_verify_mark(struct gcuffd_heap *heap);
uint64_t gu_verify_final(struct gcuffd_heap *heap);
uint64_t gu_verify_swept(struct gcuffd_heap *heap);
/* Outside of stops. */
void gu_verify_report(struct gcuffd_heap *heap);

#endif
