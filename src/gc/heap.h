/* SPDX-License-Identifier: MIT */
/*
 * heap.h - the state of one heap, as the mechanisms share it. Each field says its guard; what belongs to
 * one mechanism alone is declared in its own header.
 *
 * phase says what a cycle asks of the mutators, who read it inside a no-stop section:
 *   IDLE    freed cells may be taken again, empty blocks go back to jemalloc at once
 *   WINDOW  from before arming: freed cells wait for the sweep, no block is released
 *   MARK    set and cleared so that no mutator is in a section with the old value: in stop 1, and after
 *           the sweep by a quiesce; cells are marked before they are handed out
 */
#ifndef GU_GC_HEAP_H
#define GU_GC_HEAP_H

#include "base/atomic.h"
#include "base/lock.h"
#include "base/log.h"
#include "base/without.h"
#include "gc/type.h"
#include "gcuffd.h"
#include "space/arena.h"
#include "space/space.h"

enum gu_phase { GU_PHASE_IDLE, GU_PHASE_WINDOW, GU_PHASE_MARK };

#define GU_HEAPS 64
#define GU_ARENAS 255


struct gu_root_range {
	uintptr_t start, end;
};

/* Also read as two words of a root (.inv.pages.root). */
struct gu_pin {
	uintptr_t start;
	size_t size;
};

/* A stop that the collector makes. */
struct gu_heap_stop {
	bool under_way;
	uint32_t threads;              /* that it stopped, or found blocked */
	uint64_t asked_ns, stopped_ns;
	char missing[128];             /* who kept the last one that was given up from coming about */
};

struct gcuffd_heap {
	struct gu_space space;
	struct gcuffd_options options; /* as resolved; constant */
	struct gu_log log;
	int rung;                      /* atomic; lowered once if tracking can't be opened */
	uint32_t user_mode_only;       /* atomic, changes with the list of heaps (roots.c); its userfaultfd leaves out faults of system calls, or may */
	uint32_t phase;                /* atomic; see above */
	uint32_t id;

	struct gu_lock lock;           /* rank ROOTS: arenas, types, explicit roots */
	struct gcuffd_arena *arenas[GU_ARENAS + 1]; /* guard: lock; [0] is the heap's own */
	struct gcuffd_type **types;    /* entries atomic, set once; guard for adding: lock */
	uint32_t ntypes;
	struct gu_root_range *roots;   /* guard: lock */
	size_t nroots, roots_max;
	struct gu_pin *pins;           /* guard: lock; by start, then size (pins.c) */
	uintptr_t *named;              /* constant; the objects that an image named: a root */
	size_t nnamed;
	size_t npins, pins_max;        /* npins atomic, changes under lock */

	struct gu_lock cycle_lock;     /* rank CYCLE: held during a cycle, a reset, a fork, and while the evictor changes what markers read */
	uint32_t disabled;             /* atomic; how often collection was disabled and not enabled again (.inv.cycle.disabled) */
	uint32_t cycle_waits;          /* atomic; the collector waits for it: the evictor lets it go first */
	uint32_t turn_waits;           /* atomic; futex of the collector; a mutator waits for it (.inv.cycle.turn) */

	uint64_t allocated;            /* atomic; bytes of cells and large objects taken so far */
	uint64_t trigger;              /* atomic; a cycle is due when allocated reaches it */
	uint64_t ceiling;              /* atomic; during a cycle mutators are slowed down on the way there, and wait for its end when allocated reaches it */
	uint32_t saving_pace;          /* atomic, the collector's; while the heap is saved: naps are so many times as long */
	uint64_t stall_ns;             /* atomic */
	uint32_t stalled;              /* atomic; mutators waiting for the collector */
	uint32_t relief;               /* atomic, the collector's; futex of those that wait for memory (sweep.h) */
	bool verify_frees;             /* constant: the verifier wants to know of each free */

	struct gu_lock weak_lock;      /* rank WEAK */
	struct gu_weaks *weaks;        /* atomic, set once; guard of the rest: weak_lock (weak.c) */
	uint32_t weak_state;           /* atomic; futex; changed by the collector (weak.h) */
	uint32_t weak_round;           /* atomic; likewise; of finalizers, never 0 in one */

	struct gu_lock final_lock;     /* rank FINAL */
	struct gu_finals *finals;      /* atomic, set once; guard of the rest: final_lock (final.c) */
	uint32_t final_bell;           /* atomic; futex; changes when the queue of finalizers got longer, or their thread is to end */
	void (*final_notify)(void *data); /* guard: cycle_lock; so is the next */
	void *final_data;

	struct gu_events *events;      /* atomic, set once; its guards are in event.c */
	struct gu_heap_stop stop;      /* guard: collector */

	struct gu_mark *mark;          /* guard: collector (mark.c) */
	struct gu_tracker *tracker;    /* guard: collector (track.c) */
	struct gu_rootset *rootset;    /* guard: collector (roots.c) */
	struct gu_tier *tier;          /* set once; guard of the rest: evictor (ctl/tier.c) */
	struct gu_evictor *evictor;    /* constant (ctl/evictor.c) */
	struct gu_restore *restore;    /* constant while the resolver's thread runs; NULL: no page is taken out */
	struct gu_verifier *verifier;  /* guard: collector (verify.c) */
	struct gu_finalizer *finalizer; /* constant (ctl/finalizer.c) */
	struct gu_service *service;    /* ctl/service.c */
};

_Static_assert(!offsetof(struct gcuffd_heap, space), "probes name a heap by its space, too");

static inline struct gu_log gu_log_of(const struct gcuffd_options *o)
{
	return (struct gu_log){o->log, o->log_data, (int)o->log_level, (int)o->log_fd};
}

/* Set by ctl: wakes the collector because of allocation. Called in a section; takes no lock. */
void gu_heap_kick(struct gcuffd_heap *heap);

static inline bool gu_heap_is(const struct gcuffd_heap *h, unsigned flag) { return h->options.flags & flag; }
static inline bool gu_heap_without(const struct gcuffd_heap *h, enum gu_without what) { return h->options.without & what; }

#endif
