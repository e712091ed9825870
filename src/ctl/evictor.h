/* SPDX-License-Identifier: MIT */
/*
 * evictor.h - the thread that takes pages out and brings them back on request. It waits for disks, so it is not the collector's: it takes the
 * heap's cycle lock for a region's worth of moving or a batch's worth of bookkeeping at a time, and lets cycles go first.
 * It runs only where there is a resolver.
 *
 * All of a step is done with the tier lock, which a fork waits for: no page is half way to the store then.
 */
#ifndef GU_CTL_EVICTOR_H
#define GU_CTL_EVICTOR_H

#include "ctl/tier.h"

struct gu_evictor;

/* Where cold memory is on. -ENOMEM. */
int gu_evictor_create(struct gcuffd_heap *heap);
void gu_evictor_destroy(struct gcuffd_heap *heap);

/* The collector: a thread is about to be started, from here on it can be asked; it could not be started. */
void gu_evictor_begin(struct gcuffd_heap *heap);
void gu_evictor_failed(struct gcuffd_heap *heap);
/* The thread's whole life, until gu_evictor_quit(), which returns when it touches nothing any more. */
void gu_evictor_run(struct gcuffd_heap *heap);
void gu_evictor_quit(struct gcuffd_heap *heap);

/* Has the evictor answer, and waits for it. What the answer says; -EOPNOTSUPP: there is none; -EBUSY: in a handler of fork(). Not inside a section. */
int gu_evictor_ask(struct gcuffd_heap *heap, struct gu_tier_ask *ask);

/* Around fork(), before the cycle lock is taken and after it is given back. */
void gu_evictor_fork_prepare(struct gcuffd_heap *heap);
void gu_evictor_fork_parent(struct gcuffd_heap *heap);
void gu_evictor_fork_child(struct gcuffd_heap *heap);

#endif
