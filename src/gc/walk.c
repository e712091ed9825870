/* SPDX-License-Identifier: MIT */
/* walk.c - see walk.h. */
#include "gc/walk.h"

#include <errno.h>

#include "base/meta.h"
#include "gc/mutator.h"

/* Allocated, not given back, not merely set aside. */
static uint64_t objects_of(const struct gu_block *b, uint32_t g)
{
	return gu_load_acquire(&b->bits[g].start) & ~gu_load_relaxed(&b->bits[g].freed) & ~gu_run_ahead(b, g);
}

static bool has_objects(const struct gu_block *b)
{
	uint8_t state = gu_load_acquire(&b->state);
	return state != GU_BLOCK_FREE && state != GU_BLOCK_BUSY;
}

/* ---- each ---- */

static bool is_cold(const struct gcuffd_heap *h, uintptr_t at, size_t size)
{
	const struct gu_cold *c = &h->space.cold;
	size_t from = gu_space_page(&h->space, at), to = gu_space_page(&h->space, at + size - 1) + 1;
	if (!c->on || !gu_cold_any(c, from, to))
		return false;
	while (from < to && !(gu_cold_is_out(c, from) && gu_cold_state(c, from) != GU_COLD_LIVE))
		from++;
	return from < to;
}

static int visit_cell(struct gcuffd_heap *h, const struct gu_block *b, uint32_t cell, gcuffd_walk_fn *visit, void *data)
{
	uintptr_t at = gu_block_cell_addr(b, cell);
	struct gcuffd_walked w = {
		.base = (void *)at,
		.size = b->cell,
		.kind = (enum gcuffd_kind)b->kind,
		.flags = is_cold(h, at, b->cell) ? GCUFFD_WALKED_COLD : 0,
		.type = b->kind == GCUFFD_TYPED ? h->types[b->types[cell]] : NULL,
		.arena = b->arena,
	};
	return visit(data, &w);
}

static int visit_block(struct gcuffd_heap *h, const struct gu_block *b, gcuffd_walk_fn *visit, void *data)
{
	int result = 0;
	for (uint32_t g = 0; g < gu_block_groups(b); g++)
		for (uint64_t cells = objects_of(b, g); cells && !result; cells &= cells - 1)
			result = visit_cell(h, b, g * 64 + (uint32_t)__builtin_ctzll(cells), visit, data);
	return result;
}

int gu_walk(struct gcuffd_heap *h, gcuffd_walk_fn *visit, void *data)
{
	int result = 0;
	for (uint32_t i = 1; i <= gu_block_count(&h->space) && !result; i++)
		if (has_objects(&h->space.blocks[i]))
			result = visit_block(h, &h->space.blocks[i], visit, data);
	return result;
}

/* ---- how many ---- */

#define CLASSES (GU_CLASSES + 36) /* and one for each power of two above */
#define LARGE_SHIFT 15u           /* of the first of these */
#define STEP 1024u                /* blocks that are looked at in one section */

struct table {
	struct gcuffd_arena *arenas[GU_ARENAS + 1];
	unsigned last; /* the arena that was found last */
	struct {
		uint64_t objects, bytes;
	} counts[GU_ARENAS + 1][GU_KINDS][CLASSES];
};

static unsigned class_of(const struct gu_block *b)
{
	return gu_block_is_large(b) ? GU_CLASSES + (64 - (unsigned)__builtin_clzl(gu_max(b->cell, 2ul << (LARGE_SHIFT - 1)) - 1)) - LARGE_SHIFT : b->class;
}

static size_t size_of(unsigned class)
{
	return class < GU_CLASSES ? gu_class_size(class) : (size_t)1 << (LARGE_SHIFT + class - GU_CLASSES);
}

static bool find_arena(struct table *t, const struct gcuffd_arena *arena)
{
	for (unsigned i = 0; t->arenas[t->last] != arena && i <= GU_ARENAS; i++)
		t->last = (t->last + 1) % (GU_ARENAS + 1);
	return t->arenas[t->last] == arena;
}

/* The block may be released and made anew meanwhile: then nothing is counted (.inv.walk.made). */
static void count_block(struct table *t, const struct gu_block *b)
{
	uint32_t made = gu_load_acquire(&b->made);
	if (!has_objects(b) || !find_arena(t, b->arena))
		return;
	unsigned kind = b->kind, class = class_of(b);
	size_t cell = b->cell;
	uint64_t n = 0;
	for (uint32_t g = 0; g < gu_block_groups(b); g++)
		n += (uint64_t)__builtin_popcountll(objects_of(b, g));
	if (!has_objects(b) || gu_load_acquire(&b->made) != made || kind >= GU_KINDS || class >= CLASSES)
		return;
	t->counts[t->last][kind][class].objects += n;
	t->counts[t->last][kind][class].bytes += n * cell;
}

static void count_blocks(struct gcuffd_heap *h, struct table *t)
{
	for (uint32_t i = 1, end; i <= gu_block_count(&h->space); i = end) {
		struct gu_thread *self = gu_enter(); /* a run that a block has as its owner is there until it is left */
		for (end = (uint32_t)gu_min(i + STEP, gu_block_count(&h->space) + 1); i < end; i++)
			count_block(t, &h->space.blocks[i]);
		gu_leave(self);
	}
}

static size_t give(const struct table *t, struct gcuffd_count *counts, size_t max)
{
	size_t n = 0;
	for (unsigned a = 0; a <= GU_ARENAS; a++)
		for (unsigned k = 0; k < GU_KINDS && t->arenas[a]; k++)
			for (unsigned c = 0; c < CLASSES; c++) {
				if (!t->counts[a][k][c].objects)
					continue;
				if (n < max)
					counts[n] = (struct gcuffd_count){t->arenas[a], (enum gcuffd_kind)k, size_of(c), t->counts[a][k][c].objects, t->counts[a][k][c].bytes};
				n++;
			}
	return n;
}

int gu_walk_count(struct gcuffd_heap *h, struct gcuffd_count *counts, size_t max, size_t *count)
{
	struct table *t = gu_meta_map(gu_align_up(sizeof(*t), GU_PAGE));
	if (!t)
		return -ENOMEM;
	for (unsigned i = 0; i <= GU_ARENAS; i++)
		t->arenas[i] = gu_load_acquire(&h->arenas[i]);
	count_blocks(h, t);
	*count = give(t, counts, max);
	gu_meta_unmap(t, gu_align_up(sizeof(*t), GU_PAGE));
	return 0;
}
