/* SPDX-License-Identifier: MIT */
/*
 * summary.c - see summary.h. A summary is a header, which words are pointers, and the pointers, each as an offset into the reservation in as
 * few bits as the largest of them takes, without the low bits that are zero in all.
 *
 * Which words: a mask of 64 bits for each eighth of the page. Objects of one size make these alike: each different mask is stored
 * once, with three bits an eighth to say which it has; where that would be longer, all eight.
 */
#include "gc/summary.h"

#include <errno.h>
#include <string.h>

#include "gc/mutator.h"

#define EIGHTHS 8u
#define PEEK_BYTES 512u       /* of a summary: more is not kept, */
#define PEEK_CELL (GU_PAGE / 2) /* where a cycle looks at the page's objects a few times at most: it is decompressed for each */

struct gu_summary {
	uint16_t count;
	uint8_t width, shift; /* bits of a pointer; zero bits below them */
	uint8_t nmasks;
	uint8_t which[3];     /* three bits for each eighth */
	uint64_t words[];     /* masks, then pointers */
};

/* ---- what a page points to ---- */

struct page {
	const struct gcuffd_heap *heap;
	const uintptr_t *words;
	const uint64_t *objects;
	struct gu_page_words *out;
};

static void note_words(struct page *p, size_t from, size_t to, const struct gcuffd_type *type, size_t first)
{
	for (size_t i = from; i < to; i++) {
		size_t at = i - first; /* in the object; only with a type, whose objects are not cut off at the front by much */
		if (type && !gu_type_points(type, at))
			continue;
		if (p->words[i] - p->heap->space.base < p->heap->space.size)
			p->out->inside[i / 64] |= 1ull << i % 64;
		else if (p->words[i])
			p->out->outside[i / 64] |= 1ull << i % 64;
	}
}

static uint64_t objects_of(const struct page *p, const struct gu_block *b, uint32_t g)
{
	if (p->objects)
		return p->objects[g];
	return gu_load_relaxed(&b->bits[g].start) & ~gu_load_relaxed(&b->bits[g].freed) & ~gu_run_ahead(b, g);
}

static void note_cell(struct page *p, const struct gu_block *b, uint32_t cell, uintptr_t page)
{
	uintptr_t object = gu_block_cell_addr(b, cell);
	uintptr_t lo = gu_max(object, page), hi = gu_min(object + b->cell, page + GU_PAGE);
	const struct gcuffd_type *type = b->kind == GCUFFD_TYPED ? p->heap->types[b->types[cell]] : NULL;
	size_t first = (size_t)((intptr_t)(object - page) / 8); /* below zero, wrapped, if the object begins on an earlier page */
	note_words(p, (lo - page) / 8, (hi - page) / 8, type, first);
}

static void note_objects(struct page *p, const struct gu_block *b, uintptr_t lo)
{
	uint32_t first, last;
	if (!b->scanned || !gu_block_cell(b, lo, &first))
		return;
	if (!gu_block_cell(b, lo + GU_PAGE - 1, &last))
		last = b->ncells - 1;
	for (uint32_t cell = first; cell <= last; cell++)
		if (objects_of(p, b, cell >> 6) >> (cell & 63) & 1)
			note_cell(p, b, cell, lo);
}

/* Blocks that are released, and descriptors that become another block's, are so under the arena's lock first: such a page is not out for long. */
void gu_summary_words(const struct gcuffd_heap *h, size_t page, const uintptr_t *words, const uint64_t *objects, struct gu_page_words *out)
{
	struct page p = {h, words, objects, out};
	uintptr_t lo = gu_space_address(&h->space, page);
	const struct gu_block *b = gu_block_at(&h->space, lo);
	*out = (struct gu_page_words){{0}, {0}};
	if (!b)
		return;
	if (objects) { /* whoever knows these keeps the block (.inv.image.window), and must not make mutators wait for the lock */
		note_objects(&p, b, lo);
		return;
	}
	struct gcuffd_arena *a = b->arena; /* stays while no arena ends: the cycle lock */
	gu_lock(&a->lock);
	uint8_t state = gu_load_acquire(&b->state);
	if (b->arena == a && state != GU_BLOCK_FREE && state != GU_BLOCK_BUSY)
		note_objects(&p, b, lo);
	gu_unlock(&a->lock);
}

/* ---- packing ---- */

static void put_bits(uint64_t *out, size_t at, unsigned width, uint64_t value)
{
	out[at / 64] |= value << at % 64;
	if (at % 64 + width > 64)
		out[at / 64 + 1] |= value >> (64 - at % 64);
}

static uint64_t get_bits(const uint64_t *in, size_t at, unsigned width)
{
	uint64_t value = in[at / 64] >> at % 64;
	if (at % 64 + width > 64)
		value |= in[at / 64 + 1] << (64 - at % 64);
	return width == 64 ? value : value & ((1ull << width) - 1);
}

static unsigned which_of(const struct gu_summary *s, size_t eighth)
{
	uint32_t all = s->which[0] | (uint32_t)s->which[1] << 8 | (uint32_t)s->which[2] << 16;
	return all >> eighth * 3 & 7;
}

static void set_masks(struct gu_summary *s, const uint64_t *masks, uint64_t *different)
{
	uint32_t all = 0;
	for (size_t e = 0; e < EIGHTHS; e++) {
		uint32_t i = 0;
		while (i < s->nmasks && different[i] != masks[e])
			i++;
		if (i == s->nmasks)
			different[s->nmasks++] = masks[e];
		all |= i << e * 3;
	}
	s->which[0] = (uint8_t)all;
	s->which[1] = (uint8_t)(all >> 8);
	s->which[2] = (uint8_t)(all >> 16);
}

static size_t size_of(const struct gu_summary *s)
{
	return sizeof(*s) + s->nmasks * 8 + gu_align_up((size_t)s->count * s->width, 64) / 8;
}

static size_t collect_offsets(const struct gcuffd_heap *h, const uintptr_t *words, const uint64_t *masks, uint64_t *offsets)
{
	size_t n = 0;
	for (size_t e = 0; e < EIGHTHS; e++)
		for (uint64_t m = masks[e]; m; m &= m - 1)
			offsets[n++] = words[e * 64 + (size_t)__builtin_ctzll(m)] - h->space.base;
	return n;
}

size_t gu_summary_pack(const struct gcuffd_heap *h, const uintptr_t *words, const struct gu_page_words *which, void *out)
{
	struct gu_summary head = {0}, *s = out;
	uint64_t offsets[GU_PAGE_WORDS], different[EIGHTHS], all = 0;
	size_t count = collect_offsets(h, words, which->inside, offsets);
	if (!count)
		return 0;
	for (size_t i = 0; i < count; i++)
		all |= offsets[i];
	head.count = (uint16_t)count;
	head.shift = all ? (uint8_t)__builtin_ctzll(all) : 0;
	head.width = all >> head.shift ? (uint8_t)(64 - __builtin_clzll(all >> head.shift)) : 1;
	set_masks(&head, which->inside, different);
	memset(out, 0, size_of(&head));
	*s = head;
	memcpy(s->words, different, s->nmasks * 8);
	for (size_t i = 0; i < count; i++)
		put_bits(s->words + s->nmasks, i * s->width, s->width, offsets[i] >> s->shift);
	return size_of(s);
}

static bool has_few_objects(const struct gcuffd_heap *h, size_t page)
{
	const struct gu_block *b = gu_block_at(&h->space, gu_space_address(&h->space, page));
	return b && b->cell >= PEEK_CELL;
}

int gu_summary_make(struct gcuffd_heap *h, size_t page, const uintptr_t *words, bool peeks, struct gu_summary **out)
{
	uint64_t packed[GU_SUMMARY_MOST / 8];
	struct gu_page_words which;
	*out = NULL;
	gu_summary_words(h, page, words, NULL, &which);
	size_t len = gu_summary_pack(h, words, &which, packed);
	if (!len)
		return 0;
	if (peeks && len > PEEK_BYTES && has_few_objects(h, page)) {
		*out = GU_COLD_PEEK;
		return 0;
	}
	*out = gu_slab_alloc(&h->space.cold.slab, len);
	if (!*out)
		return -ENOMEM;
	memcpy(*out, packed, len);
	return 0;
}

size_t gu_summary_size(const struct gu_summary *s) { return size_of(s); }

void gu_summary_free(struct gcuffd_heap *h, struct gu_summary *s) { gu_cold_drop_summary(&h->space.cold, s); }

/* ---- reading ---- */

static bool masks_fit(const struct gu_summary *s)
{
	size_t n = 0;
	for (size_t e = 0; e < EIGHTHS; e++) {
		if (which_of(s, e) >= s->nmasks)
			return false;
		n += (size_t)__builtin_popcountll(s->words[which_of(s, e)]);
	}
	return n == s->count;
}

bool gu_summary_fits(const void *bytes, size_t len)
{
	const struct gu_summary *s = bytes;
	if (len < sizeof(*s) || !s->nmasks || s->nmasks > EIGHTHS || !s->width || s->width + s->shift > 64)
		return false;
	return size_of(s) == len && masks_fit(s);
}

static uint64_t mask_of(const struct gu_summary *s, size_t eighth) { return s->words[which_of(s, eighth)]; }

/* Bits of [from, to) that lie in an eighth. */
static uint64_t window(size_t eighth, size_t from, size_t to)
{
	size_t lo = gu_max(from, eighth * 64) - eighth * 64, hi = gu_min(to, eighth * 64 + 64) - eighth * 64;
	return (~0ull >> (64 - hi)) & (~0ull << lo); /* hi > lo */
}

/* How many pointers are before the word. */
static size_t index_of(const struct gu_summary *s, size_t word)
{
	size_t index = s->nmasks == 1 ? word / 64 * (s->count / EIGHTHS) : 0; /* where objects are all alike */
	for (size_t e = 0; s->nmasks > 1 && e < word / 64; e++)
		index += (size_t)__builtin_popcountll(mask_of(s, e));
	return index + (word % 64 ? (size_t)__builtin_popcountll(mask_of(s, word / 64) & (~0ull >> (64 - word % 64))) : 0);
}

void gu_summary_fetch(const struct gu_summary *s, size_t from)
{
	__builtin_prefetch(s->words + s->nmasks + index_of(s, from) * s->width / 64);
}

size_t gu_summary_read(const struct gcuffd_heap *h, const struct gu_summary *s, size_t from, size_t to, uintptr_t *pointers)
{
	size_t n = 0;
	if (!s || from >= to)
		return 0;
	size_t index = index_of(s, from);
	for (size_t e = from / 64; e <= (to - 1) / 64; e++)
		n += (size_t)__builtin_popcountll(mask_of(s, e) & window(e, from, to));
	for (size_t i = 0; i < n; i++)
		pointers[i] = h->space.base + (get_bits(s->words + s->nmasks, (index + i) * s->width, s->width) << s->shift);
	return n;
}
