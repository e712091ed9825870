/* SPDX-License-Identifier: MIT */
/*
 * meta.h - memory for the library's own tables: mapped by itself, never from malloc nor from a heap.
 * Small pieces are powers of two from 16 bytes to 64 KiB with a free list each; larger ones are
 * mappings. All of it is zeroed, and recorded in own.h. Any thread; a lock of its own.
 */
#ifndef GU_BASE_META_H
#define GU_BASE_META_H

#include <stddef.h>
#include <stdint.h>

/* Where mappings come from: sys/os.c puts its table here so that tests can make them fail. */
struct gu_meta_source {
	void *(*map)(size_t len, int prot); /* private anonymous NORESERVE; NULL on failure */
	int (*unmap)(void *start, size_t len);
	int (*protect)(void *start, size_t len, int prot);
};
void gu_meta_set_source(const struct gu_meta_source *source);

/* Zeroed, aligned to its size rounded up to a power of two (at most a page). NULL if out of memory. */
void *gu_meta_alloc(size_t size);
void gu_meta_free(void *piece, size_t size);

/* Page-aligned, zeroed, writable. NULL if out of memory. */
void *gu_meta_map(size_t len);
void gu_meta_unmap(void *start, size_t len);

/* Address space only: made usable piece by piece with gu_meta_commit. */
void *gu_meta_reserve(size_t len);
int gu_meta_commit(void *start, size_t len);
void gu_meta_unreserve(void *start, size_t len);

/* Bytes in use as pieces and mappings. Reserved ranges are their owner's to count. */
size_t gu_meta_used(void);

void gu_meta_lock(void);
void gu_meta_unlock(void);
void gu_meta_lock_reset(void);

#endif
