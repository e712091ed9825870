/* SPDX-License-Identifier: MIT */
/*
 * final.h - finalizers: functions that are to run once nothing leads to an object any more. A table in metadata, which is no root, with an index
 * by object; what a finalizer gets beside the object, its data, is a root. A block with such an object has a flag, so that others need
 * no look at the index.
 *
 * Nothing is done in a stop. After the last one no mutator reaches what is not marked. So beside mutators, and with the ordinary marks:
 *   gather   finalizers of unmarked objects are LEFT
 *   order    marked is what the fields of ordered ones that are LEFT lead to, but not an object for its own fields' sake (.inv.final.order)
 *   choose   who is LEFT and still not marked is CHOSEN, the others are SET again: something that has to be finalized first leads there
 *   keep     the CHOSEN are marked, and what they lead to
 *   publish  they are READY: on the queue, which is a root
 * The order is a matter of cycles: what a READY object leads to is looked at again when that is gone. Objects that
 * lead to themselves through others with ordered finalizers stay SET, and wait; they are counted.
 *
 * Guard: the table's lock (rank FINAL). Mutators in a section.
 */
#ifndef GU_GC_FINAL_H
#define GU_GC_FINAL_H

#include "gc/heap.h"

struct gu_marker;
struct gu_root_visit;

struct gu_final_counts {
	uint64_t set, ready, taken, waiting;
};

/* Inside a section. -ENOENT: not the base of a live object; -ENOMEM. */
int gu_final_set(struct gcuffd_heap *heap, const struct gcuffd_finalizer *what, bool ordered);
/* -ENOENT: it has none. */
int gu_final_clear(struct gcuffd_heap *heap, uintptr_t object, struct gcuffd_finalizer *was);
/* The first of the queue; false: it is empty. */
bool gu_final_take(struct gcuffd_heap *heap, struct gcuffd_finalizer *next);
/* free(): those of cells of a group of a block with the flag are forgotten, on the queue too. */
void gu_final_drop_cells(struct gcuffd_heap *heap, const struct gu_block *block, uint32_t group, uint64_t cells);
void gu_final_drop_arena(struct gcuffd_heap *heap, const struct gcuffd_arena *arena);

/* Markers: all data, and the queue; data that was set since marking began. */
void gu_final_mark_all(struct gcuffd_heap *heap, struct gu_marker *m);
void gu_final_mark_late(struct gcuffd_heap *heap, struct gu_marker *m);
/* Markers, in the steps order and keep: makes gray what n finalizers from one on lead to. */
void gu_final_scan(struct gu_marker *m, size_t first, size_t n);
/* After gray objects were dropped: all of it again. */
void gu_final_scan_all(struct gu_marker *m);
/* Cells of the group whose fields are scanned though they have no mark. */
uint64_t gu_final_cells(struct gcuffd_heap *heap, const struct gu_block *block, uint32_t group);

/* The collector, beside mutators, with the cycle lock. How many are LEFT. */
size_t gu_final_gather(struct gcuffd_heap *heap);
/* Makes gray; a drain does the rest. */
void gu_final_order(struct gcuffd_heap *heap);
/* How many are CHOSEN; makes them gray, but for a fault that is planted. */
size_t gu_final_choose(struct gcuffd_heap *heap, bool skip);
void gu_final_publish(struct gcuffd_heap *heap);
/* The cycle is given up: all are SET as before. */
void gu_final_abandon(struct gcuffd_heap *heap);

/* For the verifier, in a stop: data, and objects that are CHOSEN or READY. */
void gu_final_each(struct gcuffd_heap *heap, const struct gu_root_visit *visit);
bool gu_final_is_root(struct gcuffd_heap *heap, uintptr_t at);

size_t gu_final_memory(const struct gcuffd_heap *heap);
void gu_final_counts(struct gcuffd_heap *heap, struct gu_final_counts *counts);
void gu_final_destroy(struct gcuffd_heap *heap);
/* Test support, between cycles: .inv.final.index, .inv.final.alive. */
void gu_final_check(struct gcuffd_heap *heap);

#endif
