/* SPDX-License-Identifier: MIT */
/*
 * watch.h - which pages of any memory of the process were written, or accessed, since a watcher last asked.
 * Any thread; no heap is needed. Every call is a series of steps, each in a section and under the table's lock, none
 * longer than a chunk takes to scan that was written all over.
 *
 * The process has one userfaultfd for this (an address can be registered with one only), and a page's written bit
 * one owner: whoever scans hands what was found to every watcher of the page, into a bitmap of its own
 * (.inv.watch.every). What is reported is taken from the bitmap, but where a watcher is alone with a page and has nothing
 * pending: then the bitmap is passed by.
 */
#ifndef GU_GC_WATCH_H
#define GU_GC_WATCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "gcuffd.h"

struct gu_page_region;

/* Takes what is reported: false when there is no room, and then nothing was taken. */
struct gu_watch_sink {
	bool (*take)(struct gu_watch_sink *sink, uintptr_t start, uintptr_t end);
	/* The same for what one call of PAGEMAP_SCAN found, or NULL: how many were taken. */
	size_t (*take_found)(struct gu_watch_sink *sink, const struct gu_page_region *found, size_t n);
	void *out;
	size_t count, room;
	uint64_t direct; /* pages that the last scan put into it, past the bitmap */
	bool by_page; /* take() is called for each page, else for each run */
};

int gu_watch_create(unsigned flags, struct gcuffd_watch **out);
void gu_watch_destroy(struct gcuffd_watch *w);

/* Addresses are page-aligned and start < end. */
int gu_watch_begin(struct gcuffd_watch *w, uintptr_t start, uintptr_t end, unsigned flags);
int gu_watch_end(struct gcuffd_watch *w, uintptr_t start, uintptr_t end);

/*
 * Reports from *at to end, and forgets what it reported if reset. *at is where to go on: end when all was seen, after
 * an error the piece that has it. -ENOENT: nothing is watched there.
 */
int gu_watch_collect(struct gcuffd_watch *w, uintptr_t *at, uintptr_t end, bool reset, struct gu_watch_sink *sink);

/* The page size of [start, end) if all of it is watched and has one; -ENOENT, -EINVAL. */
int gu_watch_granularity(struct gcuffd_watch *w, uintptr_t start, uintptr_t end, size_t *size);

int gu_watch_pin(struct gcuffd_watch *w, uintptr_t start, uintptr_t end);
int gu_watch_unpin(struct gcuffd_watch *w, uintptr_t start, uintptr_t end);
void gu_watch_stats(struct gcuffd_watch *w, struct gcuffd_watch_stats *out);

/*
 * Memory that its owner has registered for WP with a userfaultfd with WP_ASYNC of its own, and fills write-protected: it is
 * watched without being registered here (.inv.watch.lent). The owner keeps the struct until it has taken it back.
 */
struct gu_watch_loan {
	struct gu_watch_loan *next; /* guard: gu_watch_lock */
	uintptr_t start, end;
	int pid; /* whose memory it is: no child has it */
};

/* Once it is registered; what was watched there has ended. -EAGAIN: mappings change all the time. */
int gu_watch_lend(struct gu_watch_loan *loan);
/* Once it is unmapped; or it was not lent. */
void gu_watch_take_back(struct gu_watch_loan *loan);

/* In a forked child: its memory is not registered; all is found written at the next call. */
void gu_watch_forked(void);

#endif
