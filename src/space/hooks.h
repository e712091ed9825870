/* SPDX-License-Identifier: MIT */
/* hooks.h - the only file beside hooks.c that knows jemalloc: making arenas, and pages from them. */
#ifndef GU_SPACE_HOOKS_H
#define GU_SPACE_HOOKS_H

#include <stdbool.h>
#include <stddef.h>

#include "space/space.h"

struct gu_half;

/* A jemalloc arena over the space, a spare one if there is one. NULL: out of memory. */
struct gu_half *gu_half_create(struct gu_space *space, unsigned decay_ms);
/* Keeps it as a spare one, for the regions it has taken are its own for good. Everything in it was freed. */
void gu_half_retire(struct gu_half *half);
/* Ends the spare ones, whatever is in them; before the reservation goes. */
void gu_half_end_all(struct gu_space *space);

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

/*
 * Starts jemalloc, so that its fork handlers are registered before ours. Its cleanup of a thread that ends takes
 * locks: it runs between enter and leave (.inv.section.locks).
 */
void gu_jemalloc_init(void (*enter)(void), void (*leave)(void));

/* Around fork() its handlers hold its locks: the calling thread, in handlers of others, gets no pages and gives none back. */
void gu_jemalloc_close(bool closed);
bool gu_jemalloc_is_closed(void);

#endif
