/* SPDX-License-Identifier: MIT */
/*
 * why.h - a shortest path from a root to an object (gc/trace.h). The roots are those that the collector sees (gc/roots.h). What the thread that asks has on its
 * stack and in registers comes last, when nothing else leads there: it has the object's address at hand.
 */
#ifndef GU_GC_WHY_H
#define GU_GC_WHY_H

#include "gc/modules.h"
#include "gc/trace.h"

struct gu_why {
	uintptr_t target; /* in the object */
	size_t max;       /* steps that are wanted */
	int tid;          /* who asks */
	struct gcuffd_root root; /* kind is ROOT_MEMORY where only the loader, or the list of heaps, knows more */
	struct gcuffd_step *steps;
	size_t steps_len, count;
	/* the collector's */
	struct gu_trace trace;
	struct gu_modules modules;
	bool own;         /* of the roots those of who asks, else all others */
	const struct gu_thread *asker; /* in the stop; NULL: it is not attached */
	struct gu_root_range stack;    /* that it is on */
};

/* Before the stop. */
int gu_why_begin(struct gcuffd_heap *heap, struct gu_why *why);
/* In it, with the cycle lock. -ENOENT, -ENOMEM. */
int gu_why_find(struct gcuffd_heap *heap, struct gu_why *why);
void gu_why_end(struct gu_why *why);
void gu_why_name_memory(struct gu_why *why);

#endif
