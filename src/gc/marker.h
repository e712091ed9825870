/* SPDX-License-Identifier: MIT */
/* marker.h - what mark.c (scanning) and markwork.c (sharing the work) have in common. */
#ifndef GU_GC_MARKER_H
#define GU_GC_MARKER_H

#include "gc/mark.h"
#include "gc/pack.h"

#define GU_PACKET 255
#define GU_STACK  4096
#define GU_QUEUE  32
#define GU_AHEAD  8

/* A gray object, or a piece of one: conservative words, or one object of a type; or a word of cards, whose pages were written, or words of bits of pages put off. */
struct gu_gray {
	uintptr_t addr; /* or the word's index */
	uint32_t words;
	uint32_t type;  /* 0: conservative; GU_GRAY_CARDS, ... GU_GRAY_FIELDS; else index + 1, maybe GU_GRAY_PIECE */
};
#define GU_GRAY_PIECE (1u << 30)        /* of an object that begins before addr */
#define GU_GRAY_CARDS UINT32_MAX
#define GU_GRAY_LATER (UINT32_MAX - 1)
#define GU_GRAY_VALUES (UINT32_MAX - 2) /* what weak references to the object have as values */
#define GU_GRAY_FINALS (UINT32_MAX - 3) /* a range of finalizers: the first one's number, and how many */
#define GU_GRAY_FIELDS (UINT32_MAX - 4) /* words of an object, which they do not lead to (.inv.final.order) */

struct gu_packet {
	struct gu_packet *next;
	uint32_t count;
	struct gu_gray gray[GU_PACKET];
};

/* How packets are had from the OS; a cycle's are given back at its end. */
#define GU_BATCH 64
struct gu_batch {
	struct gu_batch *next;
	struct gu_packet packets[GU_BATCH];
};

/* A word that points to a page of a block; then the cell. */
struct gu_candidate {
	uintptr_t at;       /* the word, or the cell's number */
	uint32_t block;     /* 0: it was none */
	uint32_t base_only; /* nothing else is an object: a word inside of one is none */
};

/* guard: its thread, but for the counts, which the collector reads when nobody marks. */
struct gu_marker {
	struct gcuffd_heap *heap;
	struct gu_space *space;
	uintptr_t base;
	size_t top;
	uint32_t *block_of;
	struct gu_block *blocks;
	bool no_interior;
	bool far;                             /* constant in a cycle: words wait for descriptors */
	uint32_t queued, found, settled;      /* if so, settled <= found <= queued, modulo 2^32; else found means nothing */
	struct gu_candidate queue[GU_QUEUE];  /* those before found, or all, for bits; the others for their blocks' descriptors */
	size_t depth;
	struct gu_gray *stack;
	uint32_t ahead_at, nahead;
	struct gu_gray ahead[GU_AHEAD]; /* off the stack, and on their way into the cache */
	uint64_t bytes, objects, words, card_words, block_words;
	char *buffer; /* for gu_mark_foreign, and for pages read in the store */
	struct gu_pack_reader packs;
	uintptr_t source;                 /* the object whose fields are scanned; 0: it does not matter */
	size_t at_hand;                   /* page whose summary was read; SIZE_MAX: none */
	const struct gu_summary *summary; /* that; GU_COLD_PEEK: it could not be */
} __attribute__((aligned(GU_CACHELINE)));

struct gu_mark {
	struct gu_marker markers[GU_MARKERS];
	unsigned n;
	struct gu_lock lock;        /* rank MARK */
	struct gu_packet *full;     /* guard: lock; read without for a hint */
	struct gu_packet *empty;    /* guard: lock; read without for a hint */
	struct gu_batch *batches;   /* guard: lock; of the first one, packets from fresh on were never used */
	unsigned fresh;             /* guard: lock; read without for a hint */
	size_t packet_bytes;        /* atomic; of all batches */
	size_t packets_last;        /* atomic; that at the end of the last cycle */
	uint32_t active;            /* guard: lock; markers that have or may make work */
	uint32_t waiting;           /* atomic; markers that would like work */
	uint32_t asleep;            /* atomic; of these, those that sleep on bell */
	uint32_t bell;              /* atomic; futex, changes when there is something to look at */
	uint32_t open;              /* atomic, set with lock; a drain goes on that workers may join */
	bool quit;                  /* guard: lock */
	unsigned allowed;           /* atomic; markers that may take part */
	unsigned background;        /* how many while mutators run */
	uint32_t overflow;          /* atomic */
	uint32_t later;             /* atomic; pages are put off (marklater.c) */
	uint32_t left;              /* atomic; of these, some that wait for a file and may not in this drain */
	bool waits;                 /* constant in a drain: that it may */
	uint32_t unreadable;        /* atomic; roots could not be read: nothing may be swept */
	uint64_t in_stop_base;      /* bytes marked before the stop's drain began */
	uint64_t bytes_in_stop;     /* guard: collector */
};

void gu_marker_push_full(struct gu_marker *m, struct gu_gray gray); /* the stack is */

static inline void gu_marker_push(struct gu_marker *m, struct gu_gray gray)
{
	if (gu_likely(m->depth < GU_STACK))
		m->stack[m->depth++] = gray;
	else
		gu_marker_push_full(m, gray);
}

/* The object's fields, marked or not, as GU_GRAY_FIELDS. */
void gu_marker_push_fields(struct gu_marker *m, uintptr_t object);
/* Scans until this marker has nothing left, sharing what it has too much of. */
void gu_marker_run(struct gu_marker *m);
void gu_marker_flush(struct gu_marker *m);
void gu_marker_share(struct gu_marker *m);

/* marklater.c: the page's marked objects are scanned when nothing else is gray, all at once. */
void gu_later_note(struct gu_marker *m, size_t page);
/* Instead of pushing it, if packets take their share of the target. */
bool gu_later_takes(struct gu_marker *m, struct gu_gray gray);
/* Makes what was put off gray. false: nothing was. */
bool gu_later_push(struct gu_marker *m);
/* Scans pages put off, of n words of bits from one on. */
void gu_later_scan(struct gu_marker *m, size_t word, size_t n);
void gu_later_clear(struct gcuffd_heap *heap);

#endif
