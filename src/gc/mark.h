/* SPDX-License-Identifier: MIT */
/*
 * mark.h - marking: from words that may be pointers to mark bits.
 *
 * Each marking thread has a marker: a stack of gray objects (marked, not yet scanned) and short queues of what
 * waits until it is in the cache: words for their blocks, candidates for their bits, gray objects for their
 * contents. Work is shared in packets. A
 * mark is set by a seq_cst read-modify-write before the object's fields are read (.inv.mark.before-fields;
 * pairs with the fence after get+WP in sys/scan.c): either the precleaner sees the mark and rescans the
 * page, or the marker sees what was written.
 *
 * Large objects are cut into pieces. Nothing recurses. When no memory is left for packets, gray objects are
 * dropped, overflow is set, and all marked objects are scanned again (.inv.mark.overflow).
 */
#ifndef GU_GC_MARK_H
#define GU_GC_MARK_H

#include "gc/heap.h"
#include "space/block.h"

#define GU_MARKERS 8

struct gu_marker;

struct gu_mark_counts {
	uint64_t bytes, bytes_in_stop, objects, words;
	uint64_t card_words;  /* of these, on pages with cards */
	uint64_t block_words; /* of these, by gu_mark_page in blocks that threads allocate from */
};

/* n markers; the caller of gu_mark_drain uses the first, workers the others. */
int gu_mark_create(struct gcuffd_heap *heap, unsigned n);
void gu_mark_destroy(struct gcuffd_heap *heap);

/* Bytes of stacks, buffers and packets. */
size_t gu_mark_memory(const struct gcuffd_heap *heap);
/* Gives back the packets, which take a fifteenth of what a graph without order does. Nothing is gray. */
void gu_mark_trim(struct gcuffd_heap *heap);
/* Bytes of packets in the last cycle, or this one. */
size_t gu_mark_packets(const struct gcuffd_heap *heap);

/* Clears all marks and counts. No cycle is marking, no mutator is in phase MARK. */
void gu_mark_clear(struct gcuffd_heap *heap);

/* Forgets cards left by a cycle that was given up: the next arms everything anew. */
void gu_mark_cards_drop(struct gcuffd_heap *heap);
/* In a stop: marks the cells that threads have set aside (.inv.run.ahead), before phase MARK begins. */
void gu_mark_ahead(struct gcuffd_heap *heap);

/* Whether the object has a mark. */
static inline bool gu_mark_has(const struct gcuffd_heap *h, uintptr_t object)
{
	const struct gu_block *b = gu_block_at(&h->space, object);
	uint32_t cell;
	return b && gu_block_cell(b, object, &cell) && gu_load_acquire(&b->bits[cell >> 6].mark) >> (cell & 63) & 1;
}

struct gu_marker *gu_mark_first(struct gcuffd_heap *heap);

/* A word that may point into the heap; outside says that it was found outside of the heap. */
void gu_mark_word(struct gu_marker *m, uintptr_t word, bool outside);
/* The words of a range that is ours or can't go away (a parked thread's stack). */
void gu_mark_range(struct gu_marker *m, uintptr_t start, uintptr_t end);
/* The words of the program's memory, which may vanish meanwhile: read by copying (.inv.root.copy). */
void gu_mark_foreign(struct gu_marker *m, uintptr_t start, uintptr_t end);
/* The same up to the first word that is not there: where that is. */
uintptr_t gu_mark_readable(struct gu_marker *m, uintptr_t start, uintptr_t end);
/* What marked objects have on a page of the heap; cells set aside but not handed out are left out. */
void gu_mark_page(struct gu_marker *m, size_t page);
/* Makes every page with a card gray: how many. A drain looks at them. */
size_t gu_mark_cards(struct gcuffd_heap *heap, struct gu_marker *m);

/* Until nothing is gray. In a stop: with all markers, and counted as such; and ALL: also what has to be read in a file for it. */
enum gu_drain { GU_DRAIN_BESIDE, GU_DRAIN_STOPPED, GU_DRAIN_STOPPED_ALL };
void gu_mark_drain(struct gcuffd_heap *heap, enum gu_drain how);
/* The last one left something to be read in a file. */
bool gu_mark_is_left(const struct gcuffd_heap *heap);
/* A worker's life; returns when gu_mark_quit was called. */
void gu_mark_work(struct gcuffd_heap *heap, unsigned index);
void gu_mark_quit(struct gcuffd_heap *heap);
/* More workers may join a drain that goes on: mutators wait for its end. */
void gu_mark_hurry(struct gcuffd_heap *heap);
/* How many may mark while mutators run. */
void gu_mark_set_background(struct gcuffd_heap *heap, unsigned n);

/* Roots could not be read, and not because they are gone: nothing may be swept (.inv.root.copy). */
void gu_mark_unreadable(struct gcuffd_heap *heap);
bool gu_mark_complete(const struct gcuffd_heap *heap);
/* In a forked child: the workers stayed behind. */
void gu_mark_forked(struct gcuffd_heap *heap);
void gu_mark_counts(struct gcuffd_heap *heap, struct gu_mark_counts *counts);
/* Nothing is gray and no packet is left: true between cycles. */
void gu_mark_check(struct gcuffd_heap *heap);
/* Marking is done: no page is put off (.inv.summary.filed). */
void gu_later_check(const struct gcuffd_heap *heap);

#endif
