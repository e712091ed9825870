/* SPDX-License-Identifier: MIT */
/*
 * space.h - a heap's reservation and the flat tables over it.
 *
 * One contiguous PROT_NONE range, used from its base upwards in regions of 2 MiB that are made
 * writable a few ahead of being taken (.inv.space.commit: below committed everything is writable; top is never above it). Tables have an entry per 4 KiB page:
 *   block_of[page]  index of the block descriptor, 0 if the page belongs to none
 *   state[page]     the page's common state, and whether there is more of it (space/pages.h)
 *   cards[page]     one bit: to be rescanned (guard: the collector's thread and its markers; set by who unpins, too)
 * A page that is not USED reads as zeros (.inv.page.zero); USED implies RESIDENT.
 */
#ifndef GU_SPACE_SPACE_H
#define GU_SPACE_SPACE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/atomic.h"
#include "base/check.h"
#include "base/lock.h"
#include "space/cold.h"
#include "space/pages.h"

/* HUGE: asks for huge pages. FAULTED: all of it counts as resident. ENTERED: a mutator uses it. FILLING: ahead.c is bringing it in. */
enum { GU_REGION_HUGE = 1, GU_REGION_FAULTED = 2, GU_REGION_ENTERED = 4, GU_REGION_FILLING = 8 };

struct gu_block;
struct gu_half;

/* The thread that brings in regions ahead of mutators. */
struct gu_ahead {
	struct gu_lock lock; /* rank WAIT: held while one is brought in */
	uint32_t bell;       /* atomic; futex */
	uint32_t runs, quit; /* atomic */
	size_t from;         /* atomic; the region to begin with */
};

struct gu_space {
	uintptr_t base;
	size_t size;            /* of the reservation */
	size_t top;             /* bytes in use from base; atomic, grows under lock, multiple of 2 MiB */
	size_t committed;       /* bytes that are writable from base; atomic, grows under commit_lock */
	size_t limit;           /* resident bytes never exceeded; 0: none */
	size_t huge_from;       /* regions from this offset on ask for huge pages */
	size_t loaded;          /* constant; below this offset all is an image's, and never handed out again (.inv.image.region) */
	unsigned without;       /* enum gu_without; constant */
	uint32_t *block_of;     /* atomic entries; set before the block is visible, cleared under no lock */
	uint8_t *state;         /* guard: the owner of the block or extent the page belongs to; SOFT, in a block: pages' lock */
	uint64_t *cards;        /* atomic words */
	uint8_t *region;        /* atomic bytes, an entry per region */
	size_t resident;        /* atomic; bytes of RESIDENT pages */
	size_t tables;          /* atomic; bytes committed in tables and descriptors */
	size_t foreign;         /* atomic; bytes that somebody else accounts for this heap (jemalloc's metadata) */
	struct gu_block *blocks;/* descriptors 1 .. nblocks; committed in steps */
	uint32_t nblocks;       /* atomic, grows under lock */
	uint32_t blocks_committed; /* guard: lock */
	uint32_t blocks_max;
	struct gu_block *free_blocks[16]; /* guard: lock; by what is attached to them (block.c) */
	struct gu_pages pages;  /* soft bits */
	struct gu_half *spare;  /* guard: lock; jemalloc arenas of ended arenas, with the regions that are theirs */
	struct gu_ahead ahead;
	struct gu_cold cold;    /* pages that are out */
	struct gu_lock commit_lock; /* rank COMMIT */
	struct gu_lock lock;    /* rank SPACE */
};

/* -ENOMEM if the reservation or its tables do not fit the address space. */
int gu_space_init(struct gu_space *space, size_t size, size_t limit, bool huge);
/*
 * At that address, which is held for it from before its tables, or what else is mapped, can come to lie there; init gives it up if it fails. -EEXIST:
 * something is there; -ENOMEM.
 */
int gu_space_hold(uintptr_t base, size_t size);
void gu_space_unhold(uintptr_t base, size_t size);
int gu_space_init_at(struct gu_space *space, uintptr_t base, size_t size, size_t limit, bool huge);
void gu_space_destroy(struct gu_space *space);

/* In a heap that is being loaded, before anything is taken: [base, base + len) is the image's. -ENOMEM. */
int gu_space_load(struct gu_space *space, size_t len);
static inline bool gu_space_is_loaded(const struct gu_space *s, uintptr_t at) { return at - s->base < s->loaded; }

/* Takes len bytes (multiple of 4 KiB) of fresh regions, aligned to align. -ENOMEM: full, or the OS says no. */
int gu_space_take(struct gu_space *space, size_t len, size_t align, uintptr_t *start);

/* Makes some more of the reservation writable if little of that is left above top, so that takers need not. -ENOMEM. */
int gu_space_commit_ahead(struct gu_space *space);

/*
 * Accounts [start, start + len) as used. -ENOMEM if that would exceed the limit; then nothing has
 * changed. *fresh says that all of it is known to be zero.
 */
int gu_space_use(struct gu_space *space, uintptr_t start, size_t len, bool *fresh);

/* Of a block's pages, which are the caller's, those that are not: they are accounted as used again. -ENOMEM: that would exceed the limit. */
int gu_space_reuse(struct gu_space *space, uintptr_t start, size_t len);

/*
 * For ahead.c: begin accounts for all of a region that asks for huge pages and has none (false: there is nothing
 * to do, or no room); end says that its pages are there.
 */
bool gu_space_fill_begin(struct gu_space *space, size_t region);
void gu_space_fill_end(struct gu_space *space, size_t region);

/* Drops the pages: they read as zeros and are not resident any more. -EBUSY: one is pinned; then nothing has changed. */
int gu_space_purge(struct gu_space *space, uintptr_t start, size_t len);

/* What counts against the limit. */
static inline size_t gu_space_resident(const struct gu_space *s)
{
	return gu_load_relaxed(&s->resident) + gu_load_relaxed(&s->tables) + gu_load_relaxed(&s->foreign);
}

static inline size_t gu_space_page(const struct gu_space *s, uintptr_t at) { return (at - s->base) >> GU_PAGE_SHIFT; }
static inline uintptr_t gu_space_address(const struct gu_space *s, size_t page) { return s->base + (page << GU_PAGE_SHIFT); }
static inline bool gu_space_has(const struct gu_space *s, uintptr_t at) { return at - s->base < gu_load_relaxed(&s->top); }

static inline void gu_card_set(struct gu_space *s, size_t page) { gu_or_relaxed(&s->cards[page >> 6], 1ull << (page & 63)); }

/* Test support: every page's state agrees with the counters (.inv.page.zero, resident sum). */
void gu_space_check(struct gu_space *space);

#endif
