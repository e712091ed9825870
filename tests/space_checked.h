/* SPDX-License-Identifier: MIT */
/* space_checked.h - the invariants of a heap's space, while its evictor and its cycles go on. */
#ifndef GU_TESTS_SPACE_CHECKED_H
#define GU_TESTS_SPACE_CHECKED_H

#include "ctl/evictor.h"
#include "gc/heap.h"
#include "space/space.h"

static inline void space_lock(struct gcuffd_heap *h)
{
	gu_evictor_fork_prepare(h);
	gu_lock_fork(&h->cycle_lock);
}

static inline void space_unlock(struct gcuffd_heap *h)
{
	gu_unlock_fork(&h->cycle_lock);
	gu_evictor_fork_parent(h);
}

/* With the locks of a fork: no page is half way, no cycle runs (gu_cold_check() asks for that). */
static inline void space_checked(struct gcuffd_heap *h)
{
	space_lock(h);
	gu_space_check(&h->space);
	space_unlock(h);
}

#endif
