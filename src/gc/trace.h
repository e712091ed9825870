/* SPDX-License-Identifier: MIT */
/*
 * trace.h - what leads to which object: a plain trace with the world stopped, apart from the marker's. It has its own list of objects, found by search and
 * division, its own bits and its own queue, and reads what is out through the store. Breadth first: the path to an object is a shortest one.
 * For the verifier, and for whoever asks why an object is alive. The collector's thread, in a stop, with the cycle lock (.inv.trace.store).
 */
#ifndef GU_GC_TRACE_H
#define GU_GC_TRACE_H

#include "gc/heap.h"

#define GU_TRACE_ROOT ((uintptr_t)1)
#define GU_TRACE_VALUE ((uintptr_t)2)

struct gu_shadow {
	struct gu_block *block;
	uintptr_t start;
	size_t bytes, cell;
	uint32_t ncells, first; /* first: index of its first cell in the bit sets */
	uint32_t made;
	uint8_t kind;
};

struct gu_trace {
	struct gu_shadow *list; /* by address */
	size_t n, list_len;
	uint64_t *reached;
	uintptr_t *from; /* by cell: where the word lies that led to it first; in a root: GU_TRACE_ROOT is added; of a value: its key, and GU_TRACE_VALUE */
	size_t cells, reached_len, from_len;
	uintptr_t *queue; /* objects; each is in it once */
	size_t head, tail, queue_len;
	uintptr_t target; /* whose being reached ends the trace; 0: none */
	bool found;
	uintptr_t *buffer;
	bool keeps; /* what is read of pages that are out, until it is dropped; else each is read again, and none is kept */
	char *copies;     /* of the heap's length; NULL: none yet */
	uint64_t *copied; /* a bit a page */
	size_t pages;
};

int gu_trace_create(struct gu_trace *trace, bool keeps);
void gu_trace_destroy(struct gu_trace *trace);
void gu_trace_drop_copies(struct gu_trace *trace);

/* Lists the objects of now; none is reached. -ENOMEM. */
int gu_trace_begin(struct gcuffd_heap *heap, struct gu_trace *trace);
/* Reaches what the words of a root lead to, in place or (foreign) to be copied. */
void gu_trace_range(struct gu_trace *trace, uintptr_t start, uintptr_t end, bool foreign);
/* After an end: further roots may follow. -ENOMEM. */
int gu_trace_more(struct gu_trace *trace);
/* And all that these lead to. */
void gu_trace_run(struct gcuffd_heap *heap, struct gu_trace *trace);
/* Nothing more is to be reached; what was, and from where, stays. */
void gu_trace_end(struct gu_trace *trace);

struct gu_shadow *gu_shadow_at(const struct gu_trace *trace, uintptr_t at);
/* Allocated, not given back, and not merely set aside for the thread that allocates from the block. */
bool gu_shadow_is_object(const struct gu_shadow *s, uint32_t cell);
static inline bool gu_trace_reached(const struct gu_trace *t, const struct gu_shadow *s, uint32_t cell)
{
	return t->reached[(s->first + cell) / 64] >> ((s->first + cell) % 64) & 1;
}
/* The word that led there first; 0: none. */
static inline uintptr_t gu_trace_from(const struct gu_trace *t, uintptr_t at)
{
	const struct gu_shadow *s = gu_shadow_at(t, at);
	return t->from[s->first + (at - s->start) / s->cell];
}

/* What is at the page's address, without bringing it there. NULL: nobody can say. */
const uintptr_t *gu_trace_contents(struct gcuffd_heap *heap, struct gu_trace *trace, size_t page);

#endif
