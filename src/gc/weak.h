/* SPDX-License-Identifier: MIT */
/*
 * weak.h - weak references: slots with an object's address, the key, that do not keep it alive. Slots, and an index of them by key, lie in
 * metadata, which is no root. A block that has such an object has a flag, so that others need no look at the index. A slot with a value
 * too is an ephemeron: the value is reachable if the key is.
 *
 * Whoever marks a key makes the values of its slots gray, once: so chains and cycles of ephemerons take linear time. Slots
 * that are written while marking goes on are late: the collector looks at them again (.inv.weak.late).
 *
 * Nothing is done to a slot in a stop. What the second stop leaves unmarked is dead from its end on (.inv.weak.decided): until the sweep
 * has cleared the slots (.inv.weak.swept), whoever reads one looks at the object's mark. Guard: the slots' lock (rank WEAK); keys
 * are read without it, in a section.
 */
#ifndef GU_GC_WEAK_H
#define GU_GC_WEAK_H

#include "gc/heap.h"

struct gcuffd_weak {
	uintptr_t key;   /* atomic; an object's base. 0: cleared */
	uintptr_t value; /* atomic; 0: none */
	uint32_t seq;    /* atomic; odd while key and value change */
	uint32_t next;   /* guard: lock; in the chain of the key's bucket, or of free slots: a slot's number + 1 */
	uint32_t late;   /* guard: lock; not 0: on the list of late ones */
	uint8_t used;    /* guard: lock */
	uint8_t longer;  /* constant while it is used; sees an object that waits for its finalizer, or has had it */
	uint16_t undecided; /* atomic, changes with the lock; such a one in the round of finalizers in which its object was not marked */
};

struct gu_weak_pair {
	uintptr_t key, value;
};

struct gu_marker;

enum gu_weak_state {
	GU_WEAK_OPEN,    /* marks say nothing, or what is not marked may be yet */
	GU_WEAK_MAYBE,   /* the second stop is over; it may have to be made again */
	GU_WEAK_FINAL,   /* what is not marked, or was not when finalizers were gathered, is dead but for them, and for long references */
	GU_WEAK_DECIDED, /* what is not marked is dead */
};

/* Inside a section. -ENOENT: not the base of a live object; -ENOMEM. */
int gu_weak_add(struct gcuffd_heap *heap, uintptr_t object, bool longer, struct gcuffd_weak **weak);
/* key 0: cleared. -EINVAL: no slot in use of this heap. */
int gu_weak_set(struct gcuffd_heap *heap, struct gcuffd_weak *weak, struct gu_weak_pair pair);
int gu_weak_remove(struct gcuffd_heap *heap, struct gcuffd_weak *weak);
/* 1: not known yet; leave the section and try again. -EINVAL as above. */
int gu_weak_read(struct gcuffd_heap *heap, const struct gcuffd_weak *weak, struct gu_weak_pair *pair);

/* Markers: the values of a key that was marked; of late slots with marked keys; of all slots with such. */
void gu_weak_mark_values(struct gcuffd_heap *heap, struct gu_marker *m, uintptr_t key);
void gu_weak_mark_late(struct gcuffd_heap *heap, struct gu_marker *m);
void gu_weak_mark_all(struct gcuffd_heap *heap, struct gu_marker *m);
/* For the verifier, in a stop: all slots. */
size_t gu_weak_slots(const struct gcuffd_heap *heap, const struct gcuffd_weak **slots);

/* The collector: in the second stop MAYBE, after it FINAL, then DECIDED, before marks lose their meaning OPEN. */
void gu_weak_state_set(struct gcuffd_heap *heap, enum gu_weak_state state);
/* In FINAL, before anything is marked for a finalizer's sake: slots of unmarked objects are cleared, or undecided. */
void gu_weak_clear_unmarked(struct gcuffd_heap *heap);
/* The sweep, or free(): the slots of cells of a group of a block with the flag are cleared. */
void gu_weak_clear_cells(struct gcuffd_heap *heap, const struct gu_block *block, uint32_t group, uint64_t cells);
void gu_weak_clear_arena(struct gcuffd_heap *heap, const struct gcuffd_arena *arena);

size_t gu_weak_memory(const struct gcuffd_heap *heap);
void gu_weak_destroy(struct gcuffd_heap *heap);
/* Test support, between cycles: .inv.weak.index, and that every key is a live object's. */
void gu_weak_check(struct gcuffd_heap *heap);

#endif
