/* SPDX-License-Identifier: MIT */
/*
 * imagetrace.c - what can be reached in an image that is being saved: see saver.h (.inv.image.reachable).
 *
 * Mutators allocate as fast as pages are written, and most of that is dead at the moment that the image shows. Marking in the heap could not tell: a cycle
 * counts as live what was allocated during it. So what was written is followed, page by page: a page is pending as long as an object on it was
 * found since it was read last. The next pending one is that with the next address, so that a page is read for many objects at once.
 */
#include <errno.h>
#include <string.h>

#include "base/meta.h"
#include "gc/saver.h"
#include "gc/summary.h"

struct trace {
	struct gu_saver *s;
	uint64_t *marks;   /* as s->bits */
	uint64_t *pending; /* by page */
	size_t words, npending;
};

static void pend(struct trace *t, size_t page)
{
	uint64_t *word = &t->pending[page / 64], bit = 1ull << page % 64;
	uint64_t at = t->s->pages[page].at;
	if (!at || at == GU_IMAGE_WORD || (*word & bit))
		return; /* nothing but zeros, or a word that leads nowhere */
	*word |= bit;
	t->npending++;
}

static void pend_object(struct trace *t, const struct gu_block *b, uint32_t cell)
{
	const struct gu_space *space = gu_saver_space(t->s);
	uintptr_t object = gu_block_cell_addr(b, cell);
	for (size_t p = gu_space_page(space, object); b->scanned && p <= gu_space_page(space, object + b->cell - 1); p++)
		pend(t, p);
}

static void find(struct trace *t, uintptr_t word, bool base_only)
{
	const struct gu_space *space = gu_saver_space(t->s);
	const struct gu_block *b = word - space->base < t->s->top ? gu_block_at(space, word) : NULL;
	uint64_t *objects = b ? gu_saver_bits(t->s, gu_space_page(space, word)) : NULL;
	uint32_t cell;
	if (!objects || !gu_block_cell(b, word, &cell) || (base_only && gu_block_cell_addr(b, cell) != word))
		return;
	uint64_t *mark = &t->marks[(objects - t->s->bits) + (cell >> 6)], bit = 1ull << (cell & 63);
	if (!(objects[cell >> 6] & bit) || (*mark & bit))
		return;
	*mark |= bit;
	pend_object(t, b, cell);
}

static bool unpend(struct trace *t, size_t page)
{
	uint64_t *word = &t->pending[page / 64], bit = 1ull << page % 64, was = *word & bit;
	*word &= ~bit;
	t->npending -= was != 0;
	return was;
}

/* Again where it leads to itself, as lists do: without reading it once more. */
static int follow(struct trace *t, size_t page)
{
	struct gu_page_words which;
	const uint64_t *objects = gu_saver_bits(t->s, page);
	bool base_only = gu_heap_is(t->s->heap, GCUFFD_NO_INTERIOR);
	int err = gu_saver_read(t->s, page);
	while (!err && unpend(t, page)) {
		gu_summary_words(t->s->heap, page, t->s->page, t->marks + (objects - t->s->bits), &which);
		for (size_t e = 0; e < GU_PAGE_WORDS / 64; e++)
			for (uint64_t m = which.inside[e]; m; m &= m - 1)
				find(t, t->s->page[e * 64 + (size_t)__builtin_ctzll(m)], base_only);
	}
	return err;
}

static int follow_all(struct trace *t)
{
	int err = 0;
	for (size_t i = 0; t->npending && !err; i = (i + 1) % t->words)
		while (t->pending[i] && !err)
			err = follow(t, i * 64 + (size_t)__builtin_ctzll(t->pending[i]));
	return err;
}

/* Blocks in which nothing was found are in the image no more. */
static void keep_marked(struct trace *t)
{
	struct gu_saver *s = t->s;
	memcpy(s->bits, t->marks, s->nbits * sizeof(*s->bits));
	s->live = 0;
	for (uint32_t i = 1; i < s->most_blocks; i++) {
		const struct gu_block *b = &gu_saver_space(s)->blocks[i];
		uint64_t any = 0;
		for (uint32_t g = 0; s->bits_of[i] && g < gu_block_groups(b); g++)
			any |= s->bits[s->bits_of[i] - 1 + g];
		s->bits_of[i] = any ? s->bits_of[i] : 0;
		s->live += any ? b->bytes : 0;
	}
}

int gu_saver_trace(struct gu_saver *s)
{
	struct trace t = {.s = s, .words = s->top / GU_PAGE / 64};
	if (!s->options->nroots || !s->nbits)
		return 0;
	size_t marks_len = gu_align_up(s->nbits * sizeof(*t.marks), GU_PAGE), pending_len = gu_align_up(t.words * sizeof(*t.pending), GU_PAGE);
	t.marks = gu_meta_map(marks_len);
	t.pending = gu_meta_map(pending_len);
	int err = t.marks && t.pending ? 0 : -ENOMEM;
	for (size_t i = 0; i < s->options->nroots && !err; i++)
		find(&t, (uintptr_t)s->options->roots[i].object, false);
	if (!err)
		err = follow_all(&t);
	if (!err)
		keep_marked(&t);
	gu_meta_unmap(t.marks, marks_len);
	gu_meta_unmap(t.pending, pending_len);
	return err;
}
