/* SPDX-License-Identifier: MIT */
/*
 * imagetrace.c - what can be reached in an image that is being saved: see saver.h (.inv.image.reachable).
 *
 * Mutators allocate as fast as pages are written, and most of that is dead at the moment that the image shows. Marking in the heap could not tell: a cycle
 * counts as live what was allocated during it. So what was written is followed. An object is gray from when it is found until its words were followed, and the page
 * on which it begins is pending as long as one on it is. The next page is the pending one with the next address, so that one read serves
 * many objects; of a page no more is read than its gray objects have, so that a list in no order costs no page for each of its nodes.
 *
 * Checksums are of whole pages, and not looked at here: each page with a reachable object is read again when it is packed, and must be right then.
 */
#include <errno.h>
#include <string.h>

#include "base/meta.h"
#include "gc/saver.h"
#include "gc/type.h"

#define PIECE 64u    /* pages of a large object that are read at once */
#define WORDS 1024u  /* that are looked up together */

/* A word, and what is known of where it leads. */
struct found {
	uintptr_t word;
	const struct gu_block *block;
	uint32_t index, cell;
	size_t at; /* in unfound */
};

struct trace {
	struct gu_saver *s;
	uint64_t *unfound, *gray; /* as s->bits: objects */
	uint64_t *pending;        /* by page */
	uint64_t *groups;         /* by word of pending: it is not 0 */
	size_t npages;            /* a multiple of 64 */
	struct found *words;      /* WORDS, not looked up yet */
	size_t nwords;
	uintptr_t *piece;         /* PIECE pages */
	bool base_only;           /* only a pointer to its beginning finds an object */
	size_t lo, hi;            /* bytes of the page under way that s->page has */
};

/* ---- pending pages ---- */

static void pend(struct trace *t, size_t page)
{
	t->pending[page / 64] |= 1ull << page % 64;
	t->groups[page / 64 / 64] |= 1ull << page / 64 % 64;
}

static bool unpend(struct trace *t, size_t page)
{
	uint64_t *word = &t->pending[page / 64], bit = 1ull << page % 64, was = *word & bit;
	*word &= ~bit;
	if (!*word)
		t->groups[page / 64 / 64] &= ~(1ull << page / 64 % 64);
	return was;
}

/* The first bit from at on, or n. */
static size_t next_bit(const uint64_t *words, size_t at, size_t n)
{
	if (at >= n)
		return n;
	size_t i = at / 64;
	uint64_t word = words[i] & ~0ull << at % 64;
	while (!word && ++i < (n + 63) / 64)
		word = words[i];
	return word ? i * 64 + (size_t)__builtin_ctzll(word) : n;
}

/* From page at on; npages: none. */
static size_t next_pending(const struct trace *t, size_t at)
{
	size_t n = t->npages / 64, i = at / 64;
	uint64_t word = at < t->npages ? t->pending[i] & ~0ull << at % 64 : 0;
	if (!word) {
		i = next_bit(t->groups, i + 1, n);
		word = i < n ? t->pending[i] : 0;
	}
	return word ? i * 64 + (size_t)__builtin_ctzll(word) : t->npages;
}

/* ---- finding ---- */

/* In steps, each of which fetches what the next one reads for all words: they lead anywhere in the heap. The blocks that have them, */
static void find_blocks(struct trace *t)
{
	const struct gu_space *space = gu_saver_space(t->s);
	struct found *to = t->words;
	for (const struct found *f = t->words; f < t->words + t->nwords; f++) {
		uint32_t index = gu_load_acquire(&space->block_of[gu_space_page(space, f->word)]);
		if (!index || index >= t->s->most_blocks)
			continue;
		*to = (struct found){.word = f->word, .block = &space->blocks[index], .index = index};
		__builtin_prefetch(to->block);
		__builtin_prefetch(&to->block->scanned);
		__builtin_prefetch(&t->s->bits_of[index]);
		to++;
	}
	t->nwords = (size_t)(to - t->words);
}

/* then cells, */
static void find_cells(struct trace *t)
{
	struct found *to = t->words;
	for (const struct found *f = t->words; f < t->words + t->nwords; f++) {
		size_t at = t->s->bits_of[f->index];
		uint32_t cell;
		if (!at || !gu_block_cell(f->block, f->word, &cell) || (t->base_only && gu_block_cell_addr(f->block, cell) != f->word))
			continue;
		*to = (struct found){f->word, f->block, f->index, cell, at - 1 + (cell >> 6)};
		__builtin_prefetch(&t->unfound[to->at], 1);
		to++;
	}
	t->nwords = (size_t)(to - t->words);
}

/* and objects. */
static void find_objects(struct trace *t)
{
	for (const struct found *f = t->words; f < t->words + t->nwords; f++) {
		uint64_t bit = 1ull << (f->cell & 63);
		if (!(t->unfound[f->at] & bit))
			continue;
		t->unfound[f->at] &= ~bit;
		if (!f->block->scanned)
			continue;
		t->gray[f->at] |= bit;
		pend(t, gu_space_page(gu_saver_space(t->s), gu_block_cell_addr(f->block, f->cell)));
	}
	t->nwords = 0;
}

static void find_all(struct trace *t)
{
	find_blocks(t);
	find_cells(t);
	find_objects(t);
}

static void note_word(struct trace *t, uintptr_t word)
{
	const struct gu_space *space = gu_saver_space(t->s);
	if (word - space->base >= t->s->top)
		return;
	__builtin_prefetch(&space->block_of[gu_space_page(space, word)]);
	if (t->nwords == WORDS)
		find_all(t);
	t->words[t->nwords++].word = word;
}

/* n words of an object, of which the first is its word number first. */
static void follow_words(struct trace *t, const struct gcuffd_type *type, size_t first, const uintptr_t *words, size_t n)
{
	size_t end = type ? gu_type_end(type, first + n) : first + n;
	for (size_t i = first; i < end; i++)
		if (!type || gu_type_points(type, i))
			note_word(t, words[i - first]);
}

/* ---- following ---- */

struct object {
	const struct gcuffd_type *type;
	uintptr_t start, end;
};

/* n pages, which lie in the file one behind the other if there are several. */
static int read_pages(const struct trace *t, size_t page, size_t n, size_t lo, size_t hi, char *to)
{
	const struct gu_image_page *e = &t->s->pages[page];
	const struct gu_image im = {.fd = t->s->fd};
	if (e->at && e->at != GU_IMAGE_WORD)
		return gu_image_read(&im, e->at + lo, to + lo, (n - 1) * GU_PAGE + hi - lo);
	return 0;
}

/* How many pages from page on, but none from end on, can be read at once; 0: it leads nowhere. */
static size_t pages_at_once(const struct gu_saver *s, size_t page, size_t end)
{
	const struct gu_image_page *e = &s->pages[page];
	size_t n = 1;
	if (!e->at || e->at == GU_IMAGE_WORD)
		return 0;
	while (n < PIECE && page + n < end && e[n].at == e->at + n * GU_PAGE)
		n++;
	return n;
}

/* What of an object lies beyond the page that it begins on. */
static int follow_tail(struct trace *t, const struct object *o)
{
	const struct gu_space *space = gu_saver_space(t->s);
	size_t page = gu_space_page(space, o->start) + 1, last = gu_space_page(space, o->end - 1), n;
	int err = 0;
	for (; page <= last && !err; page += gu_max(n, 1)) {
		uintptr_t start = gu_space_address(space, page);
		n = pages_at_once(t->s, page, last + 1);
		size_t hi = gu_min(o->end - start, n << GU_PAGE_SHIFT);
		err = n ? read_pages(t, page, n, 0, hi - ((n - 1) << GU_PAGE_SHIFT), (char *)t->piece) : 0;
		if (n && !err)
			follow_words(t, o->type, (start - o->start) / 8, t->piece, hi / 8);
	}
	return err;
}

/* Into s->page, which has what was read since the page came up; the second time all of it: there may be more to come. */
static int need(struct trace *t, size_t page, size_t lo, size_t hi)
{
	if (t->lo <= lo && hi <= t->hi)
		return 0;
	bool again = t->hi;
	t->lo = again ? 0 : lo;
	t->hi = again ? GU_PAGE : hi;
	return read_pages(t, page, 1, t->lo, t->hi, (char *)t->s->page);
}

static int follow_object(struct trace *t, size_t page, const struct gu_block *b, uint32_t cell)
{
	const struct gu_image_page *e = &t->s->pages[page];
	struct object o = {b->kind == GCUFFD_TYPED ? t->s->heap->types[b->types[cell]] : NULL, gu_block_cell_addr(b, cell), gu_block_cell_addr(b, cell) + b->cell};
	size_t lo = o.start % GU_PAGE, hi = gu_min(lo + b->cell, GU_PAGE);
	int err = 0;
	if (e->at && e->at != GU_IMAGE_WORD && !(err = need(t, page, lo, hi)))
		follow_words(t, o.type, 0, t->s->page + lo / 8, (hi - lo) / 8);
	return err || lo + b->cell <= GU_PAGE ? err : follow_tail(t, &o);
}

/* Of group g, those cells that begin on the page. */
static uint64_t cells_on(uint32_t g, uint32_t first, uint32_t end)
{
	uint64_t cells = first > g * 64 ? ~0ull << (first - g * 64) : ~0ull;
	return end < g * 64 + 64 ? cells & ((1ull << (end - g * 64)) - 1) : cells;
}

/* So that one read does for all that are gray now. */
static int read_gray(struct trace *t, size_t page, const struct gu_block *b, const uint64_t *gray, uint32_t first, uint32_t end)
{
	const struct gu_image_page *e = &t->s->pages[page];
	size_t from = next_bit(gray, first, end), to = from;
	for (size_t i = from; i < end; i = next_bit(gray, i + 1, end))
		to = i;
	if (from >= end || !e->at || e->at == GU_IMAGE_WORD)
		return 0;
	uintptr_t start = gu_space_address(gu_saver_space(t->s), page);
	return need(t, page, gu_block_cell_addr(b, (uint32_t)from) - start, gu_min(gu_block_cell_addr(b, (uint32_t)to) - start + b->cell, GU_PAGE));
}

/* Again where it leads to itself, as lists do. */
static int follow(struct trace *t, size_t page)
{
	struct gu_saver *s = t->s;
	uintptr_t start = gu_space_address(gu_saver_space(s), page);
	const struct gu_block *b = gu_block_at(gu_saver_space(s), start);
	uint64_t *gray = t->gray + (gu_saver_bits(s, page) - s->bits);
	uint32_t first = (uint32_t)((start - b->start + b->cell - 1) / b->cell), end = (uint32_t)gu_min((start - b->start + GU_PAGE + b->cell - 1) / b->cell, b->ncells);
	int err = 0;
	t->lo = t->hi = 0;
	while (!err && unpend(t, page)) {
		err = read_gray(t, page, b, gray, first, end);
		for (uint32_t g = first / 64; g * 64 < end; g++)
			for (uint64_t cells; !err && (cells = gray[g] & cells_on(g, first, end));) {
				gray[g] &= ~(cells & -cells);
				err = follow_object(t, page, b, g * 64 + (uint32_t)__builtin_ctzll(cells));
			}
		find_all(t);
	}
	return err;
}

static int follow_all(struct trace *t)
{
	int err = 0;
	for (size_t page = next_pending(t, 0); page < t->npages && !err;) {
		err = follow(t, page);
		page = next_pending(t, page + 1);
		if (page == t->npages)
			page = next_pending(t, 0);
	}
	return err;
}

/* ---- all of it ---- */

/* Blocks in which nothing was found are in the image no more. */
static void keep_found(struct trace *t)
{
	struct gu_saver *s = t->s;
	for (size_t i = 0; i < s->nbits; i++)
		s->bits[i] &= ~t->unfound[i];
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

static int trace(struct trace *t)
{
	memcpy(t->unfound, t->s->bits, t->s->nbits * sizeof(*t->unfound));
	for (size_t i = 0; i < t->s->options->nroots; i++)
		note_word(t, (uintptr_t)t->s->options->roots[i].object);
	find_all(t);
	t->base_only = gu_heap_is(t->s->heap, GCUFFD_NO_INTERIOR);
	int err = follow_all(t);
	if (!err)
		keep_found(t);
	return err;
}

static size_t words_len(size_t nbits) { return gu_align_up((nbits + 63) / 64 * 8, GU_PAGE); }

int gu_saver_trace(struct gu_saver *s)
{
	struct trace t = {.s = s, .npages = s->top / GU_PAGE};
	size_t bits_len = words_len(s->nbits * 64), groups = t.npages / 64;
	if (!s->options->nroots || !s->nbits)
		return 0;
	t.unfound = gu_meta_map(bits_len);
	t.gray = gu_meta_map(bits_len);
	t.pending = gu_meta_map(words_len(t.npages));
	t.groups = gu_meta_map(words_len(groups));
	t.words = gu_meta_map(WORDS * sizeof(*t.words));
	t.piece = gu_meta_map(PIECE << GU_PAGE_SHIFT);
	int err = t.unfound && t.gray && t.pending && t.groups && t.words && t.piece ? trace(&t) : -ENOMEM;
	gu_meta_unmap(t.unfound, bits_len);
	gu_meta_unmap(t.gray, bits_len);
	gu_meta_unmap(t.pending, words_len(t.npages));
	gu_meta_unmap(t.groups, words_len(groups));
	gu_meta_unmap(t.words, WORDS * sizeof(*t.words));
	gu_meta_unmap(t.piece, PIECE << GU_PAGE_SHIFT);
	return err;
}
