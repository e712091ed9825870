/* SPDX-License-Identifier: MIT */
/*
 * arena.h - arenas: blocks and large objects from jemalloc, whose extents come from the reservation.
 *
 * An arena has two jemalloc arenas (halves), one for pages that are scanned and one for pages that are not:
 * so a region holds only the one sort or the other, and a scan of the page table goes over
 * long runs. Blocks with free cells are on a list per kind and class.
 *
 * jemalloc's contract with us: mallocx and dallocx of whole pages with no thread cache, hooks that
 * never call back into an arena. Its metadata stays outside the reservation and is known to own.h.
 */
#ifndef GU_SPACE_ARENA_H
#define GU_SPACE_ARENA_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/lock.h"
#include "space/block.h"
#include "space/sizeclass.h"

#define GU_KINDS 3

struct gu_half;
struct gcuffd_heap;

struct gu_list {
	struct gu_block *head, *tail; /* guard: the arena's lock */
};

struct gcuffd_arena {
	struct gcuffd_heap *heap;
	struct gu_space *space;
	struct gu_half *half[2]; /* [0] not scanned, [1] scanned; guard: making, then constant */
	uint32_t making;         /* atomic; a bit for each half that a thread is making */
	uint32_t slot;           /* index into each thread's table of caches */
	uint32_t id;
	bool in_use;             /* guard: the heap's */
	unsigned decay_ms;
	bool hot;                /* atomic; no page of it is taken out */
	struct gu_lock lock;     /* rank ARENA */
	struct gu_list partial[GU_KINDS][GU_CLASSES];
	size_t blocks, large;    /* atomic; how many */
	uint64_t refaulted;      /* atomic; pages of it that a touch brought back from the store */
	char name[32];
};

int gu_arena_init(struct gcuffd_arena *arena, struct gu_space *space, unsigned decay_ms, const char *name);
/* Everything in it was released, or the heap ends: its jemalloc arenas become spare ones. */
void gu_arena_destroy(struct gcuffd_arena *arena);

/*
 * A block for owner to allocate from: a listed one, or a new one; fresh_first: the other way round.
 * -ENOMEM: at the limit, or out of address space.
 */
int gu_arena_take(struct gcuffd_arena *arena, unsigned kind, unsigned class, bool fresh_first, struct gu_run *owner,
		  struct gu_block **block);
/* The owner is done with it. list (outside of cycles only): it is listed if it has free cells worth having, released if empty. */
void gu_arena_retire(struct gcuffd_arena *arena, struct gu_block *block, bool list);

/* A large object in state BUSY, its start bit clear. size > 0; align a power of two up to 2 MiB. */
int gu_arena_take_large(struct gcuffd_arena *arena, size_t size, size_t align, unsigned kind, bool *fresh,
			struct gu_block **block);
/* The block is on no list and nobody owns it: its pages go back to jemalloc. */
void gu_arena_release(struct gcuffd_arena *arena, struct gu_block *block);

/* A block of an image, FULL or LARGE; types: of its cells, where it is typed. The heap is being loaded. -ENOMEM. */
struct gu_image_block;
int gu_arena_load(struct gcuffd_arena *arena, const struct gu_image_block *from, const uint64_t *objects, const uint16_t *types);

/* Moves a block that is FULL or LISTED where its free cells say; whether it is empty and now unlinked, to be released. */
bool gu_arena_relist_locked(struct gcuffd_arena *arena, struct gu_block *block, uint32_t free_cells);

/*
 * Takes a block that nobody allocates from off its list, where it stays off while pages of it are out (.inv.cold.listed), and has
 * claim called for its pages in [from, to). false: it is in use, or gone.
 */
bool gu_arena_claim(struct gu_block *block, size_t from, size_t to, void (*claim)(void *data, size_t page), void *data);

enum gu_arena_tidy { GU_TIDY_DECAY, GU_TIDY_PURGE };
/* Lets jemalloc give unused pages back: those whose time has come, or all. */
void gu_arena_tidy(struct gcuffd_arena *arena, enum gu_arena_tidy how);

struct gu_arena_sizes {
	size_t active, dirty, retained, metadata;
};
void gu_arena_sizes(struct gcuffd_arena *arena, struct gu_arena_sizes *sizes);

void gu_arena_check(struct gcuffd_arena *arena);

#endif
