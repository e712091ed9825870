/* SPDX-License-Identifier: MIT */
/*
 * event.h - what happens to a heap, told to a handler of the program's. Events are queued where they happen, by the collector or by a mutator that waited for
 * it, and told by the collector at times of its choice (.inv.event.told): so nothing is told in a stop, and a handler finds the program running.
 */
#ifndef GU_GC_EVENT_H
#define GU_GC_EVENT_H

#include "gc/heap.h"

/* NULL, or all of it: guard cycle_lock. Inside a section, or the collector. -ENOMEM. What is queued is dropped. */
int gu_event_set(struct gcuffd_heap *heap, gcuffd_event_fn *fn, void *data);
/* The heap whose handler the caller is in; or NULL. */
const struct gcuffd_heap *gu_event_telling(void);
/* Somebody wants to know. A hint: who queues looks again. */
bool gu_event_wanted(const struct gcuffd_heap *heap);

/* From here on events are of this cycle; 0: of none. The collector. */
void gu_event_cycle(struct gcuffd_heap *heap, uint64_t number);
/* Of the caller's event the fields that are its own; without a handler nothing. The collector, or inside a section. */
void gu_event_put(struct gcuffd_heap *heap, const struct gcuffd_event *event);
/* Whether something is queued, and telling it. The collector, which has the cycle lock for the latter. */
bool gu_event_waits(const struct gcuffd_heap *heap);
void gu_event_tell(struct gcuffd_heap *heap);

void gu_event_forked(struct gcuffd_heap *heap);
void gu_event_destroy(struct gcuffd_heap *heap);

#endif
