/* SPDX-License-Identifier: MIT */
/*
 * pages.h - soft bits: what the library knows of a page of a heap, and no page table has room for.
 *
 * A page has one byte of common state (space->state). SOFT in it says that there is more, in an entry of the side
 * table; other pages cost the byte alone and no look-up (.inv.pages.soft). Entries come in leaves, one for each region
 * that has a page with an entry: made with the region's first, freed with its last. What further properties a page
 * gets go into struct gu_soft.
 *
 * Pins: the kernel or a device writes to the page through a pin of its own, which the page table does not show. Until
 * the last one is gone the page counts as written in each look for cards (.inv.pages.dirty), and is not dropped
 * (.inv.pages.kept). Any thread, inside a section; the collector in a stop too.
 */
#ifndef GU_SPACE_PAGES_H
#define GU_SPACE_PAGES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/lock.h"

/* RESIDENT: accounted as in memory. USED: may hold non-zero bytes. SOFT: has an entry. */
enum { GU_PAGE_RESIDENT = 1, GU_PAGE_USED = 2, GU_PAGE_SOFT = 4 };

#define GU_PINS_MOST UINT16_MAX

struct gu_space;

/* All zero: nothing to say, and SOFT is clear. */
struct gu_soft {
	uint16_t pins;
};

/* The entries of a region. */
struct gu_leaf {
	uint32_t region;
	uint32_t used;        /* entries that say something */
	struct gu_soft *soft; /* 512 */
};

struct gu_pages {
	struct gu_lock lock;    /* rank PAGES: SOFT in the bytes too */
	struct gu_leaf *leaves; /* guard: lock; by rising region */
	size_t count, room;     /* guard: lock */
	size_t pinned;          /* atomic, changes under lock; pages that have pins */
};

/* One more pin for each of pages [from, to), or none: -ENOSPC if one has GU_PINS_MOST, -ENOMEM. */
int gu_pages_pin(struct gu_space *space, size_t from, size_t to);
/* One less; all have one. What was written until now gets a card first. */
void gu_pages_unpin(struct gu_space *space, size_t from, size_t to);

/* Whether pages [from, to) may be purged, zeroed by the kernel, or taken out: none is pinned. */
bool gu_pages_may_drop(struct gu_space *space, size_t from, size_t to);

/* Pinned pages by rising address, under the lock; a full fence follows (.inv.card.fence). No cost if there are none. */
void gu_pages_each_pinned(struct gu_space *space, void (*visit)(void *data, size_t page), void *data);

void gu_pages_destroy(struct gu_space *space);

/* Test support: bytes, entries and counts agree (.inv.pages.soft). */
void gu_pages_check(struct gu_space *space);

#endif
