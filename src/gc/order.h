/* SPDX-License-Identifier: MIT */
/*
 * order.h - in which order pages that were out came back because they were touched: recorded by the resolver's threads one at a time, into a table of bounded
 * size that is mapped with the first recording and stays. Recordings begin and end on any thread, without a lock: what the resolver adds
 * to a recording that has ended meanwhile is in none (.inv.order.word).
 */
#ifndef GU_GC_ORDER_H
#define GU_GC_ORDER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/atomic.h"
#include "base/check.h"

#define GU_ORDER_MOST ((size_t)1 << 20)

struct gu_order {
	uint64_t word;     /* atomic; number of the recording << 32 | entries; odd numbers are under way */
	uint64_t *offsets; /* atomic, set once; entries are the resolver's, whose threads have a lock of theirs for it, and read up to what word said */
};

/* -EBUSY: one is under way; -ENOMEM. */
int gu_order_begin(struct gu_order *order);
/* Ends it, and gives up to max offsets; how many there were in *count. -EINVAL: none is under way. */
int gu_order_end(struct gu_order *order, uint64_t *offsets, size_t max, size_t *count);
void gu_order_free(struct gu_order *order);

/* The resolver's threads, one at a time. */
void gu_order_add(struct gu_order *order, uint64_t word, uint64_t offset);
static inline void gu_order_note(struct gu_order *order, uint64_t offset)
{
	uint64_t word = gu_load_acquire(&order->word); /* pairs with gu_order_begin(): the table is there */
	if (gu_unlikely(word >> 32 & 1))
		gu_order_add(order, word, offset);
}

#endif
