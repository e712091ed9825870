/* SPDX-License-Identifier: MIT */
/*
 * restore.h - bringing pages back: what the heap's resolver does with a fault, and the same without one.
 *
 * A restored page is written, as far as tracking knows, and LIVE; what it had in park and store is left to the evictor (.inv.cold.leftover).
 * Faults are resolved under the lock of the page's region and no other but the store's; nothing here touches memory of the heap
 * (.inv.resolver.alone).
 */
#ifndef GU_GC_RESTORE_H
#define GU_GC_RESTORE_H

#include "base/beat.h"
#include "gc/order.h"
#include "gc/resolver.h"
#include "gc/stream.h"
#include "space/space.h"

#define GU_RESTORE_TIDS 16
#define GU_RESOLVERS 16 /* threads, at most */

struct gu_restore {
	struct gu_resolver resolver;
	struct gu_space *space;
	bool neighbours;                 /* constant; pages come back ahead of touches that go on in order */
	struct gu_lock notes;            /* rank MARK: among the resolver's threads; nothing is waited for under it */
	struct gu_streams streams;       /* guard: notes */
	struct gu_order order;           /* guard of its entries: notes */
	struct gu_beats beats;           /* the faults that are being resolved */
	char *zeros;                     /* a page */
	char *buffer;                    /* a page; guard: the evictor */
	char *buffers;                   /* a page for each thread of the resolver; guard: that thread */
	uint32_t nthreads;               /* guard: the collector; of the resolver */
	uint32_t index;                  /* atomic; hands out the buffers */
	uint32_t tids[GU_RESTORE_TIDS];  /* atomic; service threads, that should cause no fault */
	uint32_t ntids;                  /* atomic */
};

/* uffd: the heap's, whose faults come to the resolver. -ENOMEM, or what registering said. The collector. */
int gu_restore_open(struct gu_space *space, int uffd, bool neighbours, struct gu_restore **restore);
/* Ends the resolver's threads, if there are any. */
void gu_restore_close(struct gu_restore *restore);
/* In a forked child, or if no thread was started. */
void gu_restore_free(struct gu_restore *restore);
/* The calling thread is the collector or works for it. */
void gu_restore_own(struct gu_restore *restore, uint32_t tid);
/* The whole life of a thread of the resolver, of which there are at most GU_RESOLVERS. */
void gu_restore_run(struct gu_restore *restore);

/* Fills pages [from, to) of a region that are out. The evictor. 0, -ENOMEM, -EIO: one was poisoned. */
int gu_restore_pages(struct gu_restore *restore, size_t from, size_t to, enum gu_cold_cause cause);
/* Fills a page that is out, unless it can't be read: nobody has touched it yet. The evictor. -ENOMEM. */
int gu_restore_early(struct gu_restore *restore, size_t page);

#endif
