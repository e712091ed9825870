/* SPDX-License-Identifier: MIT */
/*
 * block.h - blocks, the bits of their cells, and from a pointer to its object.
 *
 * A block of 64 KiB holds cells of one size class and one kind; a large object is a block of one cell with
 * pages of its own. A cell has four bits, kept outside the objects:
 *   start    allocated, or set aside for its block's owner (.inv.run.ahead)
 *   mark     found reachable in this cycle, or allocated during it
 *   freed    given back by the program; becomes free at the next sweep, or when its group is taken again
 *   dropped  as freed, but kept until the verifier has seen it
 *
 * Who writes: start and mark by anybody through atomic read-modify-writes only (.inv.bits.rmw); a cell's
 * mark is set before its start while marking goes on (.inv.bits.black), so that whoever sees the start of
 * a new cell sees its mark. A descriptor and its bits are never unmapped while the heap exists, only
 * reused (.inv.block.stable): a look-up that races with a release reads stale, not foreign, memory.
 * Blocks are released by the collector's sweep, and by free() only while no cycle runs
 * (.inv.block.no-release: no block disappears between the start of a cycle and its sweep).
 */
#ifndef GU_SPACE_BLOCK_H
#define GU_SPACE_BLOCK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/atomic.h"
#include "space/space.h"

#define GU_BLOCK ((size_t)64 << 10)

struct gcuffd_arena;
struct gu_run;

struct gu_bits {
	uint64_t start, mark, freed, dropped; /* atomic */
};

enum gu_block_state {
	GU_BLOCK_FREE = 0, /* the descriptor is not in use */
	GU_BLOCK_CURRENT,  /* a thread allocates from it */
	GU_BLOCK_LISTED,   /* has free cells, on its arena's list */
	GU_BLOCK_FULL,     /* on no list */
	GU_BLOCK_BUSY,     /* large, not handed out yet */
	GU_BLOCK_LARGE,
};

struct gu_block {
	/* constant while the block is in use */
	uintptr_t start;
	uint32_t recip;  /* ceil(2^32 / cell); 0 for a large object */
	uint32_t ncells;
	struct gu_bits *bits;
	size_t cell;     /* bytes of a cell; of a large object: its usable size */
	uint16_t *types; /* typed blocks: the type of each cell; guard: who allocates the cell */
	size_t bytes;    /* of the pages */
	struct gcuffd_arena *arena;
	uint8_t kind, class, pool, scanned;
	uint8_t state;   /* atomic; changes under the arena's lock */
	uint8_t zero;    /* guard: owner; cells never handed out are zero */
	uint8_t armed;   /* guard: collector; pages may be write-protected */
	uint8_t weak;    /* atomic; an object in it has or had weak references (gc/weak.h) */
	struct gu_block *next, *prev; /* guard: the arena's lock, or the space's for free descriptors */
	uint32_t made;                /* atomic; how often the descriptor was taken */
	uint8_t holes;                /* guard: the arena's lock; pages that are fresh, and not accounted for, as nothing lives on them */
	uint8_t deaths;               /* atomic; cells died while pages of the heap were out (gc/shed.h) */
	uint8_t pinned;               /* atomic, changes under the heap's lock; an object in it has pins (gc/pins.h) */
	uint8_t final;                /* atomic; an object in it has or had a finalizer (gc/final.h) */
	struct gu_run *owner;         /* atomic; CURRENT only; changes under the arena's lock */
	uint32_t nfreed;              /* atomic; about how many freed bits are set: a hint, the bits decide */
	uint32_t live;                /* guard: collector; cells found live by the last sweep */
	struct gu_bits one;           /* the bits, where 64 cells are enough */
};
_Static_assert(sizeof(struct gu_block) == 144 || sizeof(struct gu_block) == 136 || sizeof(struct gu_block) == 128, "descriptor grew");

static inline uint32_t gu_block_groups(const struct gu_block *b) { return (b->ncells + 63) / 64; }
static inline bool gu_block_is_large(const struct gu_block *b) { return b->recip == 0; }

/* The block that owns the page of at, or NULL. Constant time; any thread. */
static inline struct gu_block *gu_block_at(const struct gu_space *s, uintptr_t at)
{
	if (!gu_space_has(s, at))
		return NULL;
	uint32_t i = gu_load_acquire(&s->block_of[gu_space_page(s, at)]); /* pairs with publish_block() */
	return i ? &s->blocks[i] : NULL;
}

/* The cell that at points into; false in the waste at the end of a block. */
static inline bool gu_block_cell(const struct gu_block *b, uintptr_t at, uint32_t *cell)
{
	uintptr_t off = at - b->start;
	if (off >= b->bytes)
		return false;
	*cell = (uint32_t)((uint64_t)off * b->recip >> 32);
	return *cell < b->ncells;
}

static inline uintptr_t gu_block_cell_addr(const struct gu_block *b, uint32_t cell) { return b->start + cell * b->cell; }

/* Cells of group g that exist. */
static inline uint64_t gu_block_valid(const struct gu_block *b, uint32_t g)
{
	uint32_t left = b->ncells - g * 64;
	return left >= 64 ? ~0ull : (1ull << left) - 1;
}

static inline bool gu_block_started(const struct gu_block *b, uint32_t cell)
{
	return gu_load_acquire(&b->bits[cell >> 6].start) >> (cell & 63) & 1;
}

/*
 * A descriptor with bits for ncells, all clear, state FREE, and the pages' entries not yet set. NULL: out of
 * memory. publish makes the block findable; free undoes both.
 */
struct gu_block *gu_block_new(struct gu_space *space, uint32_t ncells, bool typed);
void gu_block_publish(struct gu_space *space, struct gu_block *block, enum gu_block_state state);
void gu_block_free(struct gu_space *space, struct gu_block *block);
void gu_block_drop_all(struct gu_space *space);

/* Descriptors 1 .. this exist; look at the state of each. */
static inline uint32_t gu_block_count(const struct gu_space *s) { return gu_load_acquire(&s->nblocks); }

/*
 * Takes the cells of group g that nobody has, as start bits. reuse: also those in freed. black: they
 * are marked first. Owner only. The cells, or 0.
 */
uint64_t gu_block_take_group(struct gu_block *block, uint32_t g, bool reuse, bool black);
/* Gives back cells of a taken group that were not handed out. */
void gu_block_untake_group(struct gu_block *block, uint32_t g, uint64_t cells);

/* Free cells (start clear), not counting freed ones. */
uint32_t gu_block_count_free(const struct gu_block *block);
/* Cells that were allocated and given back since. */
uint32_t gu_block_count_freed(const struct gu_block *block);

/* Between cycles, under the arena's lock, while nobody allocates from the block: no cell that touches the page is an object's. Not of a large one. */
bool gu_block_is_dead_at(const struct gu_block *block, uintptr_t page);
/* Then: what was freed there is free from here on, for nobody is to find it. */
void gu_block_bury_at(struct gu_block *block, uintptr_t page);

void gu_block_check(const struct gu_space *space, const struct gu_block *block);

#endif
