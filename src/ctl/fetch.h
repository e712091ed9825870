/* SPDX-License-Identifier: MIT */
/*
 * fetch.h - bringing pages back in a recorded order, before they are touched: a list of offsets that the evictor's thread works through between
 * its other steps, a few pages at a time. While the heap takes more than its target nothing more is brought.
 */
#ifndef GU_CTL_FETCH_H
#define GU_CTL_FETCH_H

#include "ctl/tier.h"

/* All of it: guard: the tier lock. */
struct gu_fetch {
	uint64_t *offsets; /* NULL: nothing under way */
	size_t count, at;
};

/* The list of an ask becomes the evictor's. -EBUSY: one is under way. */
int gu_fetch_begin(struct gu_fetch *fetch, const struct gu_tier_ask *ask);
/* Some pages, whether there are more. */
bool gu_fetch_step(struct gcuffd_heap *heap, struct gu_fetch *fetch);
void gu_fetch_end(struct gu_fetch *fetch);

#endif
