/* SPDX-License-Identifier: MIT */
/*
 * scan.h - PAGEMAP_SCAN (6.7): which pages were written, accessed or are there, in runs. Any thread;
 * async-signal-safe, no memory but 6 KiB of stack. Ranges are page-aligned.
 *
 * A long range is walked in chunks of GU_SCAN_CHUNK so that mmap_lock is not held for long; the result is
 * atomic per page (.assume.scan.atomic: get and write-protect of one page happen under its page
 * table's lock, and TLBs are flushed before), not a snapshot of the range. A run may come in pieces that touch.
 * visit runs outside the system call and may do what it likes to the memory.
 */
#ifndef GU_SYS_SCAN_H
#define GU_SYS_SCAN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "sys/uapi.h"

#define GU_SCAN_CHUNK ((uintptr_t)16 << 20)

/*
 * /proc/thread-self/pagemap, or -errno. The descriptor stays with the address space that opened it: a forked child
 * opens its own. -EACCES where the process is not dumpable.
 */
int gu_scan_open(void);

/*
 * Write-protects every written page of the range, and forgets that they were written. -EPERM when a
 * mapping in it is not registered for WP on a userfaultfd with WP_ASYNC.
 */
int gu_scan_arm(int fd, uintptr_t start, uintptr_t end);

/*
 * Visits the pages that were written since they were armed. A page never armed counts as written; so
 * does a hole in a WP mapping, and before 7.3 every page of other mappings. rearm write-protects the
 * pages visited in the same step (-EPERM as above), then a seq_cst fence precedes the first visit of each
 * batch (.inv.card.fence: pairs with the marker's seq_cst mark before it reads an object's fields).
 */
int gu_scan_written(int fd, uintptr_t start, uintptr_t end, bool rearm,
		    void (*visit)(void *data, uintptr_t start, uintptr_t end), void *data);

/*
 * The same for pages in memory or in swap alone: holes and the shared zero page cost no page tables, and hold nothing. zeros: but what holds
 * nothing is told too if it is the zero page, for the kernel puts that where it finds nothing but zeros as it splits a huge page (6.12), or
 * merges pages.
 */
int gu_scan_arm_populated(int fd, uintptr_t start, uintptr_t end);
int gu_scan_written_populated(int fd, uintptr_t start, uintptr_t end, bool rearm, bool zeros,
			      void (*visit)(void *data, uintptr_t start, uintptr_t end), void *data);

/* The same without arming, for who has asked gu_scan_has_short(): faster where most pages are clean. */
int gu_scan_written_short(int fd, uintptr_t start, uintptr_t end, bool zeros, void (*visit)(void *data, uintptr_t start, uintptr_t end), void *data);
/* The kernel's short way tells all that was written (gu_caps()->has_wp_short), and is not to be left out. */
bool gu_scan_has_short(void);

/* 0: all that is mapped in the range is registered for WP on some userfaultfd with WP_ASYNC; else -EPERM. Looks at no page. */
int gu_scan_registered(int fd, uintptr_t start, uintptr_t end);

/*
 * Visits the pages that are in memory or in swap, the shared zero page excepted. anon_only: not those that
 * belong to a file (shared memory included); a private copy of a file's page is anonymous.
 */
int gu_scan_present(int fd, uintptr_t start, uintptr_t end, bool anon_only,
		    void (*visit)(void *data, uintptr_t start, uintptr_t end), void *data);

/* 7.3. Visits the populated pages of RWP mappings that were touched since they were armed. -EINVAL before. */
int gu_scan_accessed(int fd, uintptr_t start, uintptr_t end,
		     void (*visit)(void *data, uintptr_t start, uintptr_t end), void *data);

/* The same for one chunk at most, into an array: how many runs there are, or -errno. *at is where to go on. */
long gu_scan_accessed_some(int fd, uintptr_t *at, uintptr_t end, struct gu_page_region *runs, size_t room);

#endif
