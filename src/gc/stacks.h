/* SPDX-License-Identifier: MIT */
/*
 * stacks.h - stacks of coroutines, which the program switches between by itself. A thread says that it is about to switch, and does so some
 * instructions later; it may be stopped at any of them. So it is on the stack that it named last, on the one that it named before, or on its own:
 * which one, its stack pointer tells in the stop (.inv.stack.switch). Every other stack is read as it was left.
 *
 * Entries are never given back, only used anew: what a thread remembers of a stack that is registered no more may be looked at, and means
 * nothing, for the stack pointer decides.
 */
#ifndef GU_GC_STACKS_H
#define GU_GC_STACKS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* What the program's own switch may push once it has told: read as well. */
#define GU_STACK_BELOW 512u

struct gu_thread;

struct gcuffd_stack {
	struct gcuffd_stack *next, *prev; /* guard: threads lock; next also of the free ones */
	uintptr_t low, high;  /* constant while registered; 0 otherwise */
	uintptr_t sp;         /* atomic; in use from here up, while no thread is on it; 0: all of it */
	uintptr_t saved[24];  /* registers that calls preserve, when it was left. Guard: the thread that leaves it */
	uintptr_t at;         /* guard: a stopper; sp of the thread that stopped on it, or 0 */
	bool whole;           /* guard: a stopper; a thread is on it, and nobody knows where */
};

/* -EINVAL, -EFAULT: not readable; -ENOMEM. Not inside a section. */
int gu_stack_register(uintptr_t low, uintptr_t high, struct gcuffd_stack **stack);
/* -EINVAL: it is not registered; -EBUSY: a thread is on it. Not inside a section. */
int gu_stack_unregister(struct gcuffd_stack *stack);
/* -EINVAL: not attached, or not registered; -EBUSY: blocking. No lock, no section. */
int gu_stack_switch(struct gcuffd_stack *to);
int gu_stack_set_pointer(struct gcuffd_stack *stack, uintptr_t sp);

/* The registered stack that at is in, of those that the thread named; NULL: none. In a stop, or the thread itself. */
struct gcuffd_stack *gu_stack_under(const struct gu_thread *thread, uintptr_t at);
/* In a stop: at and whole of all. */
void gu_stacks_place(void);
struct gcuffd_stack *gu_stacks_first(void);
/* The thread ends, or another takes its entry away: what it is on by now is not known. Threads lock. */
void gu_stack_lost_locked(struct gu_thread *thread);

#endif
