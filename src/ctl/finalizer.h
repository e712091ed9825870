/* SPDX-License-Identifier: MIT */
/*
 * finalizer.h - running finalizers: on a thread that asks for it, or on one of the heap's own. That one is a mutator like the program's threads, and made by
 * one of them, since finalizers close descriptors: service threads have others (.inv.service.files). All signals are blocked in it but those
 * of the collector and of the processor.
 */
#ifndef GU_CTL_FINALIZER_H
#define GU_CTL_FINALIZER_H

#include "gc/heap.h"

int gu_finalizer_create(struct gcuffd_heap *heap);
void gu_finalizer_destroy(struct gcuffd_heap *heap);

/* Starts the thread, if the heap is to have one and has none. Never inside a section: it calls pthread_create. */
int gu_finalizer_start(struct gcuffd_heap *heap);
/* Ends it after the finalizer that it is in. -EBUSY: the caller is that thread. Not inside a section. */
int gu_finalizer_quit(struct gcuffd_heap *heap);

/* Takes at most max from the queue and runs them: how many. Not inside a section. */
size_t gu_finalizer_run(struct gcuffd_heap *heap, size_t max);
/* Until the queue is not empty: 0, or -ETIMEDOUT after so long (less than 0: never). Not inside a section. */
int gu_finalizer_wait(struct gcuffd_heap *heap, int64_t timeout_ns);

/*
 * In a forked child the thread stayed behind: there is another from the first allocation or collection on that is not quite trivial, not in the child's handler
 * of ours, behind which come those of the program's.
 */
void gu_finalizer_fork_child(struct gcuffd_heap *heap);
bool gu_finalizer_is_lost(const struct gcuffd_heap *heap);
void gu_finalizer_fork_resume(struct gcuffd_heap *heap);

#endif
