/* SPDX-License-Identifier: MIT */
/*
 * slab.h - pieces of metadata of any size up to 4 KiB, packed closer than base/meta.h's powers of two: at most 39 bytes of a piece are
 * waste. Memory goes back to the OS with the last piece of a chunk. A slab is one thread's at a time.
 */
#ifndef GU_BASE_SLAB_H
#define GU_BASE_SLAB_H

#include <stddef.h>

#define GU_SLAB_STEP 32u
#define GU_SLAB_MOST 4096u

struct gu_slab_chunk;

struct gu_slab {
	struct gu_slab_chunk *partial[GU_SLAB_MOST / GU_SLAB_STEP + 2]; /* by size, with a free piece */
	size_t bytes; /* atomic, to be read by anybody; of chunks */
};

/* Zeroed, aligned to 8. NULL: out of memory. */
void *gu_slab_alloc(struct gu_slab *slab, size_t size);
void gu_slab_free(struct gu_slab *slab, void *piece);
/* Pieces that are left are their owners' to forget. */

/* Test support: lists and counts agree. */
void gu_slab_check(const struct gu_slab *slab);

#endif
