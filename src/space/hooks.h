/* SPDX-License-Identifier: MIT */
/* hooks.h - the only file beside hooks.c that knows jemalloc: making arenas, and pages from them. */
#ifndef GU_SPACE_HOOKS_H
#define GU_SPACE_HOOKS_H

#include <stdbool.h>
#include <stddef.h>

#include "space/space.h"

struct gu_half;

/* A jemalloc arena over the space. NULL: out of memory. */
struct gu_half *gu_half_create(struct gu_space *space, unsigned decay_ms);
void gu_half_destroy(struct gu_half *half);

/* Whole pages, at least 16 KiB; *usable is what there really is. NULL: out of memory. */
void *gu_half_alloc(struct gu_half *half, size_t size, size_t align, size_t *usable);
void gu_half_free(struct gu_half *half, void *pages);

/* Purges what has decayed, or everything that is unused. */
void gu_half_decay(struct gu_half *half);
void gu_half_purge(struct gu_half *half);

struct gu_half_sizes {
	size_t active, dirty, retained, metadata; /* bytes */
};
void gu_half_sizes(struct gu_half *half, struct gu_half_sizes *sizes);

/* Starts jemalloc, so that its fork handlers are registered before ours. */
void gu_jemalloc_init(void);

#endif
