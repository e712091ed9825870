/* SPDX-License-Identifier: MIT */
/*
 * mutator.h - attached threads, their no-stop sections and allocation caches.
 *
 * A thread is in a section when t->section > 0: the stop signal's handler then only notes the stop, and
 * leaving the section obeys it (.inv.section.handler). So nobody is ever stopped while holding a lock of ours
 * or half-way through an allocation. Only the thread itself and its signal handler write the field; the
 * collector reads it after a membarrier (gu_world_quiesce).
 */
#ifndef GU_GC_MUTATOR_H
#define GU_GC_MUTATOR_H

#include <sys/types.h>

#include "gc/heap.h"
#include "gc/stacks.h"

#define GU_SLOTS 1024
#define GU_TCB_BYTES 2304u /* above a TCB in which the C library keeps what belongs to the thread */

/*
 * Where a thread allocates one class and kind: the free cells of one group of its current block.
 * .inv.run.ahead: the cells in mask have their start bits set (and marks, in phase MARK) though nobody has
 * them yet; whoever asks whether a cell is an object consults the owner's mask.
 */
struct gu_run {
	uint64_t mask;  /* atomic; written by the thread */
	uintptr_t base; /* of the group's first cell */
	uint32_t cell;
	bool zero;      /* the cells are known to be zero */
	uint32_t group;         /* atomic; written by the thread, before mask */
	struct gu_block *block; /* the same */
};

static inline bool gu_run_is_at(const struct gu_run *run, const struct gu_block *b, uint32_t group)
{
	return gu_load_relaxed(&run->block) == b && gu_load_relaxed(&run->group) == group;
}

/*
 * The cells of the group that are in its owner's mask. The owner may move on under a look: it changes group and block before
 * the mask, so a mask that is another group's is seen with a run that is elsewhere.
 */
static inline uint64_t gu_run_ahead(const struct gu_block *b, uint32_t group)
{
	const struct gu_run *owner = gu_load_acquire(&b->owner);
	if (!owner || !gu_run_is_at(owner, b, group))
		return 0;
	uint64_t mask = gu_load_acquire(&owner->mask); /* pairs with next_group() */
	return gu_run_is_at(owner, b, group) ? mask : 0;
}

struct gu_cache {
	struct gcuffd_arena *arena;
	uint64_t allocated; /* not yet in heap->allocated */
	uint64_t owed;      /* and of it since the thread was last slowed down, or might have been */
	struct gu_run runs[GU_KINDS][GU_CLASSES];
};

enum { GU_RUNNING, GU_BLOCKING, GU_CLAIMED };

struct gu_thread {
	uint32_t section;  /* see above */
	uint32_t pending;  /* a stop was asked for inside a section; guard: the thread and its handler */
	struct gu_cache *caches[GU_SLOTS]; /* guard: the thread; the collector during a stop */

	struct gu_thread *next, *prev; /* guard: threads lock */
	pid_t tid;
	uint32_t attached; /* nesting */
	uint32_t blocking; /* atomic: GU_RUNNING, ... */
	uint32_t acked;    /* atomic: the stop epoch that it is parked in */
	uint32_t expected; /* guard: stopper; it was signalled in this stop */
	uint32_t stopped_by; /* atomic, written by the thread; enum gcuffd_stop_by */
	bool unbounded;    /* stack_hi is the end of a mapping that may hold other things too: read by copying */
	bool announced;    /* by itself; else found by the stopper */
	uintptr_t sp;      /* valid while parked, blocking: everything from here up is the stack */
	uintptr_t alt_hi;  /* end of the alternate signal stack that sp is on, or 0 */
	uintptr_t stack_lo, stack_hi;
	uintptr_t self;    /* its TCB, for its TLS */
	struct gcuffd_stack *stack, *left; /* that it switches to, or is on, and that before; NULL: its own. Atomic; written by the thread */
	struct gcuffd_stack own; /* its own one, as it was left: sp, 0 if it never was, and saved */
	uintptr_t saved[64]; /* while blocking: the end of its stack as it was, callee-saved registers with it */
};

extern __thread struct gu_thread *gu_self __attribute__((tls_model("initial-exec"), visibility("hidden")));

/*
 * Threads that are not attached get a section too, for a heap with process roots stops them all the same: a
 * count in TLS, and whether a stop was asked for meanwhile. Guard: the thread and its handler.
 */
extern __thread uint32_t gu_entered __attribute__((tls_model("initial-exec"), visibility("hidden")));
extern __thread uint32_t gu_entered_pending __attribute__((tls_model("initial-exec"), visibility("hidden")));

/*
 * While a thread forks no other begins a section: it waits at the gate, outside of one, and is not stopped, for
 * it may hold a lock of the C library that fork() takes. gu_outside counts sections of threads not attached.
 */
extern uint32_t gu_gate __attribute__((visibility("hidden")));    /* atomic; futex */
extern uint32_t gu_outside __attribute__((visibility("hidden"))); /* atomic */

void gu_section_obey(struct gu_thread *t);
void gu_entered_obey(void);
void gu_section_gate(struct gu_thread *t);
void gu_entered_gate(void);

/* What a section is made of, for a caller that calls nothing else while all goes well. true: it owes gu_section_gate(). */
static inline bool gu_section_begin(struct gu_thread *t)
{
	gu_store_relaxed(&t->section, t->section + 1);
	gu_fence_signal(); /* pairs with the handler's read; with gu_world_close() by membarrier */
	return gu_unlikely(gu_load_relaxed(&gu_gate));
}

/* Back to so many sections. true: it owes gu_section_obey(). */
static inline bool gu_section_end(struct gu_thread *t, uint32_t sections)
{
	gu_fence_signal();
	gu_store_release(&t->section, sections); /* pairs with gu_world_quiesce() */
	gu_fence_signal();
	return gu_unlikely(gu_load_relaxed(&t->pending)) && !sections;
}

static inline void gu_section_enter(struct gu_thread *t)
{
	if (gu_section_begin(t))
		gu_section_gate(t);
}

static inline void gu_section_exit(struct gu_thread *t)
{
	if (gu_section_end(t, t->section - 1))
		gu_section_obey(t);
}

/* The same for calls that any thread may make. The thread's attachment may change in between. */
static inline struct gu_thread *gu_enter(void)
{
	struct gu_thread *t = gu_self;
	if (t) {
		gu_section_enter(t);
		return t;
	}
	gu_store_relaxed(&gu_entered, gu_entered + 1);
	gu_fence_signal();
	if (gu_entered == 1)
		gu_entered_gate();
	return t;
}

static inline void gu_leave(struct gu_thread *t)
{
	gu_fence_signal();
	if (t) {
		gu_section_exit(t);
		return;
	}
	if (gu_entered == 1)
		gu_sub_seqcst(&gu_outside, 1);
	gu_store_relaxed(&gu_entered, gu_entered - 1);
	gu_fence_signal();
	if (gu_unlikely(gu_load_relaxed(&gu_entered_pending)) && !gu_entered)
		gu_entered_obey();
}

/* Attaches or detaches the calling thread, nested. */
int gu_thread_attach(void);
int gu_thread_detach(void);
/* For a thread that ends: whatever its nesting. */
void gu_thread_drop(struct gu_thread *t);

/* The list of threads; held by a stopper for the whole stop. */
void gu_threads_lock(void);
void gu_threads_unlock(void);
bool gu_threads_trylock(void);
/* The same for who may be forking, and has the list in its hands then: whether it was taken. */
bool gu_threads_lock_once(void);
void gu_threads_unlock_once(bool locked);
struct gu_thread *gu_threads_first(void);
/* Adds a thread that the stopper found, removes one that is gone. Threads lock held. */
struct gu_thread *gu_threads_adopt_locked(pid_t tid);
void gu_threads_remove_locked(struct gu_thread *t);
/* Bounds of the stack that sp is in. */
int gu_thread_find_stack(struct gu_thread *t, uintptr_t sp);
/* In a stop: whether that is on the stack that it got when it was made, the bounds of which are known. It may have grown. */
bool gu_thread_owns(const struct gu_thread *t, uintptr_t at);
/* In a forked child: only the caller is left. */
void gu_threads_forked(void);

/* The thread's cache for an arena, made on first use; NULL if out of memory. */
struct gu_cache *gu_cache_make(struct gu_thread *t, struct gcuffd_arena *arena);
/* Gives back what a cache holds, in every thread, before its arena is reset or goes. World stopped or arena unused. */
void gu_cache_drop_arena(struct gcuffd_arena *arena);
void gu_run_retire(struct gu_run *run, bool list);

#endif
