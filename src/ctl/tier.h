/* SPDX-License-Identifier: MIT */
/*
 * tier.h - the tier of cold memory: what is taken out, and when. The evictor's thread, but for opening and closing.
 *
 * On request: a range, at once. By itself, while the heap takes more than its target (thermostat.h), or always where time decides: a hand goes round
 * over the heap's regions and parks pages, from where they come back cheaply, or where the kernel can tell of accesses (rung rwp) watches them in place; a second hand
 * follows at the distance of a probation, and what nobody has touched by then goes to the store. A page that was touched is passed over, the more often the more often that happened
 * (.inv.cold.heat): so a working set that fits is left alone soon.
 */
#ifndef GU_CTL_TIER_H
#define GU_CTL_TIER_H

#include "gc/heap.h"

enum gu_tier_what { GU_TIER_COOL, GU_TIER_WARM, GU_TIER_FETCH };

struct gu_tier_ask {
	enum gu_tier_what what;
	size_t from, to;  /* pages */
	size_t at;        /* set by step: the page to go on from, less from */
	size_t out;       /* pages taken out */
	uint64_t *order;  /* FETCH: offsets in a mapping of their own, which a result of 0 hands over */
	size_t count;     /* of these */
	int result;
};

/* Before there is a heap: -EOPNOTSUPP where the kernel does not tell what the mode goes by, or -errno; the log says why. */
int gu_tier_probe(const struct gcuffd_options *options);
/* Whether pages are taken out without being asked for. */
static inline bool gu_tier_goes_by_itself(const struct gcuffd_options *o)
{
	return o->flags & GCUFFD_COLD && (o->resident_target || o->cool_mode != GCUFFD_COOL_TARGET);
}

/* The collector: the store and the resolver's state, where the heap wants pages taken out and the kernel can. shares: its threads have the program's descriptors. */
void gu_tier_open(struct gcuffd_heap *heap, bool shares);
void gu_tier_close(struct gcuffd_heap *heap);

/* The next region's worth, whether there is more. */
bool gu_tier_step(struct gcuffd_heap *heap, struct gu_tier_ask *ask);
/* At what the mode goes by, and at what faults cost: once a second, whatever the evictor is doing. */
void gu_tier_look(struct gcuffd_heap *heap);
/* A line when the store's file can't be read or written any more, and one when it can again. */
void gu_tier_say(struct gcuffd_heap *heap);
/* A region's worth towards the target: ns until it should be called again, -1: no hurry. */
int64_t gu_tier_balance(struct gcuffd_heap *heap);
/* Now and then, sooner where something was left to tidy; nothing can be where no page is out. */
void gu_tier_tidy(struct gcuffd_heap *heap);
bool gu_tier_has_left(const struct gcuffd_heap *heap);
bool gu_tier_is_used(const struct gcuffd_heap *heap);

/* The evictor's thread ends: what it has open is closed, what could not be read reported. In a forked child, before there is one: that stayed behind. */
void gu_tier_rest(struct gcuffd_heap *heap);
void gu_tier_forked(struct gcuffd_heap *heap);

struct gu_tier_report {
	uint64_t target, probation_ns, backoffs;
};

/* Any thread. */
struct gu_tier_report gu_tier_report(const struct gcuffd_heap *heap);

/* What the heap takes: pages in place and parked, tables, summaries, the store's memory. Any thread. */
size_t gu_tier_resident(const struct gcuffd_heap *heap);

#endif
