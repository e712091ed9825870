/* SPDX-License-Identifier: MIT */
/*
 * own.h - the address ranges that the library mapped for itself: reservations, metadata, jemalloc's
 * metadata, stacks of service threads. Whoever scans "all memory of the process" leaves them out
 * (.inv.own.not-root). Any thread; guarded by a lock of its own.
 */
#ifndef GU_BASE_OWN_H
#define GU_BASE_OWN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* false when the table is full: the caller unmaps and fails. Adjacent ranges are merged. */
bool gu_own_add(uintptr_t start, size_t len);
void gu_own_remove(uintptr_t start, size_t len);

/*
 * The first own range that ends above at: its bounds in *start and *end. false if there is none.
 * To walk them all: at = 0, then at = *end.
 */
bool gu_own_next(uintptr_t at, uintptr_t *start, uintptr_t *end);

/* For the child of a fork. */
void gu_own_lock_reset(void);
void gu_own_lock(void);
void gu_own_unlock(void);

#endif
