/* SPDX-License-Identifier: MIT */
/* slab.c - chunks of 64 KiB of one size each. Before a piece there is its chunk; a free one is linked through its first word. */
#include "base/slab.h"

#include <string.h>

#include "base/atomic.h"
#include "base/check.h"
#include "base/meta.h"

#define CHUNK ((size_t)64 << 10)

struct gu_slab_chunk {
	struct gu_slab_chunk *next, *prev;
	void *free;    /* pieces that were given back */
	uint32_t cut;  /* offset of what was never a piece */
	uint32_t used; /* pieces */
	uint32_t step; /* bytes of a piece and what is before it */
	bool listed;
};

static uint32_t step_of(size_t size) { return (uint32_t)gu_align_up(size + sizeof(void *), GU_SLAB_STEP); }

static struct gu_slab_chunk **list_of(struct gu_slab *s, const struct gu_slab_chunk *c) { return &s->partial[c->step / GU_SLAB_STEP]; }

static void link_chunk(struct gu_slab *s, struct gu_slab_chunk *c)
{
	struct gu_slab_chunk **list = list_of(s, c);
	c->next = *list;
	c->prev = NULL;
	if (*list)
		(*list)->prev = c;
	*list = c;
	c->listed = true;
}

static void unlink_chunk(struct gu_slab *s, struct gu_slab_chunk *c)
{
	*(c->prev ? &c->prev->next : list_of(s, c)) = c->next;
	if (c->next)
		c->next->prev = c->prev;
	c->listed = false;
}

static struct gu_slab_chunk *make_chunk(struct gu_slab *s, uint32_t step)
{
	struct gu_slab_chunk *c = gu_meta_map(CHUNK);
	if (!c)
		return NULL;
	c->step = step;
	c->cut = (uint32_t)gu_align_up(sizeof(*c), 16);
	gu_store_relaxed(&s->bytes, s->bytes + CHUNK);
	link_chunk(s, c);
	return c;
}

static bool is_full(const struct gu_slab_chunk *c) { return !c->free && c->cut + c->step > CHUNK; }

static void *take(struct gu_slab_chunk *c)
{
	void **piece = c->free;
	if (piece) {
		c->free = *piece;
		*piece = NULL;
	} else {
		void **owner = (void **)((char *)c + c->cut);
		*owner = c;
		piece = owner + 1;
		c->cut += c->step;
	}
	c->used++;
	return piece;
}

void *gu_slab_alloc(struct gu_slab *s, size_t size)
{
	uint32_t step = step_of(gu_max(size, sizeof(void *)));
	GU_INVARIANT(size <= GU_SLAB_MOST, ".inv.slab.size");
	struct gu_slab_chunk *c = s->partial[step / GU_SLAB_STEP];
	if (!c)
		c = make_chunk(s, step);
	if (!c)
		return NULL;
	void *piece = take(c);
	if (is_full(c))
		unlink_chunk(s, c);
	return piece;
}

void gu_slab_free(struct gu_slab *s, void *piece)
{
	struct gu_slab_chunk *c = ((void **)piece)[-1];
	memset(piece, 0, c->step - sizeof(void *));
	*(void **)piece = c->free;
	c->free = piece;
	if (--c->used) {
		if (!c->listed)
			link_chunk(s, c);
		return;
	}
	if (c->listed)
		unlink_chunk(s, c);
	gu_store_relaxed(&s->bytes, s->bytes - CHUNK);
	gu_meta_unmap(c, CHUNK);
}

void gu_slab_check(const struct gu_slab *s)
{
	for (size_t i = 0; i < GU_ARRAY_LEN(s->partial); i++)
		for (const struct gu_slab_chunk *c = s->partial[i]; c; c = c->next)
			GU_INVARIANT(c->step == i * GU_SLAB_STEP && c->used && !is_full(c) && (!c->next || c->next->prev == c), ".inv.slab.size");
}
