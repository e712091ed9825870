/* SPDX-License-Identifier: MIT */
/*
 * imagepack.c - what is left in an image that is being saved, once its objects are known: see saver.h.
 *
 * A page that is full of objects stays where it is in the file, or moves to a place nearer to its start that has come free: so all of them come to lie in its first
 * pages. Of other pages the lines (64 bytes) that objects have and that are not zero go behind what was written, as do all summaries, one after the other: the pack.
 * At last that is moved down, next to the full pages. Each page is read once more for that, and words that lead out of the heap are judged.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/meta.h"
#include "gc/saver.h"
#include "gc/summary.h"
#include "space/storecodec.h"
#include "sys/maps.h"

#define PACK ((size_t)256 << 10) /* bytes in a write */
#define WINDOW 64u               /* pages in a read */
#define MANY 56                  /* a page with objects on more lines than that is full */

struct packer {
	struct gu_saver *s;
	uint64_t *taken;      /* by page of the file, up to nfull: a full page is there */
	uint32_t nfull, free; /* below free all are taken */
	char *pack;
	uint64_t from, at;    /* where in the file it begins, and what is in memory does */
	size_t len;
	uint64_t *summary;
	char *window;         /* WINDOW pages of the heap from first on, nread of them there; they follow each other in the file */
	size_t first, nread;
	const uintptr_t *words; /* of the page under way */
};

static bool is_elsewhere(const struct gu_image_page *e) { return e->at && e->at != GU_IMAGE_WORD; }
static uint32_t place_of(const struct gu_image_page *e) { return (uint32_t)(e->at >> GU_PAGE_SHIFT); }

/* ---- pointers out of the heap ---- */

static bool note_map(void *data, const struct gu_map *map)
{
	struct gu_saver *s = data;
	struct gu_saver_range *last = s->nmaps ? &s->maps[s->nmaps - 1] : NULL;
	if (last && (last->end == map->start || s->nmaps == GU_SAVER_MAPS)) /* more than that: what lies between counts as mapped */
		last->end = map->end;
	else
		s->maps[s->nmaps++] = (struct gu_saver_range){map->start, map->end};
	return true;
}

int gu_saver_list_maps(struct gu_saver *s)
{
	s->nmaps = 0;
	s->gap = (struct gu_saver_range){0, 0};
	return gu_maps_each(note_map, s);
}

/* Words that are no pointers lie between the same two mappings again and again: in the one gap that most of all values are in. */
static bool is_in_gap(const struct gu_saver *s, uintptr_t at) { return at - s->gap.start < s->gap.end - s->gap.start; }

static bool is_mapped(struct gu_saver *s, uintptr_t at)
{
	size_t lo = 0, hi = s->nmaps;
	if (is_in_gap(s, at))
		return false;
	while (lo < hi) {
		size_t mid = (lo + hi) / 2;
		if (s->maps[mid].end <= at)
			lo = mid + 1;
		else
			hi = mid;
	}
	if (lo < s->nmaps && s->maps[lo].start <= at)
		return true;
	s->gap = (struct gu_saver_range){lo ? s->maps[lo - 1].end : 0, lo < s->nmaps ? s->maps[lo].start : UINTPTR_MAX};
	return false;
}

/* Its number, or that of externals. */
static size_t external_of(const struct gu_saver *s, uintptr_t word)
{
	size_t i = 0;
	while (i < s->options->nexternals && word - (uintptr_t)s->options->externals[i].start >= s->options->externals[i].length)
		i++;
	return i;
}

static int add_relocation(struct gu_saver *s, uintptr_t word, size_t external)
{
	if (s->nrelocations == s->most_relocations) {
		size_t most = gu_max(s->most_relocations * 2, GU_PAGE);
		struct gu_image_relocation *more = gu_meta_map(most * sizeof(*more));
		if (!more)
			return -ENOMEM;
		if (s->nrelocations)
			memcpy(more, s->relocations, s->nrelocations * sizeof(*more));
		gu_meta_unmap(s->relocations, s->most_relocations * sizeof(*more));
		s->relocations = more;
		s->most_relocations = most;
	}
	s->relocations[s->nrelocations++] = (struct gu_image_relocation){word, external};
	return 0;
}

static int refuse_word(const struct gu_saver *s, uintptr_t at, uintptr_t word)
{
	const struct gu_block *b = gu_block_at(gu_saver_space(s), at);
	struct gu_map map;
	uint32_t cell = 0;
	if (gu_maps_find(word, &map))
		snprintf(map.name, sizeof(map.name), "no mapping");
	uintptr_t object = b && gu_block_cell(b, at, &cell) ? gu_block_cell_addr(b, cell) : at;
	gu_log(&s->heap->log, GU_LOG_ERROR, "not saved: word %lu of the object at %#lx points out of the heap, to %#lx in %s, which is in no external",
	       (unsigned long)(at - object) / 8, (unsigned long)object, (unsigned long)word, map.name[0] ? map.name : "memory without a name");
	return -EXDEV;
}

static int judge(struct gu_saver *s, const struct gu_block *b, uintptr_t at, uintptr_t word)
{
	size_t external = external_of(s, word);
	if (external < s->options->nexternals)
		return add_relocation(s, at, external);
	return (b && b->kind == GCUFFD_TYPED) || is_mapped(s, word) ? refuse_word(s, at, word) : 0;
}

static int judge_page(struct packer *p, size_t page, const struct gu_page_words *which)
{
	struct gu_saver *s = p->s;
	uintptr_t start = gu_space_address(gu_saver_space(s), page);
	const struct gu_block *b = gu_block_at(gu_saver_space(s), start);
	bool by_maps = !s->options->nexternals && !(b && b->kind == GCUFFD_TYPED);
	int err = 0;
	for (size_t e = 0; e < GU_PAGE_WORDS / 64; e++)
		for (uint64_t m = which->outside[e]; m && !err; m &= m - 1) {
			size_t i = e * 64 + (size_t)__builtin_ctzll(m);
			if (!by_maps || !is_in_gap(s, p->words[i]))
				err = judge(s, b, start + i * 8, p->words[i]);
		}
	return err;
}

/* ---- the pack ---- */

static int flush_pack(struct packer *p)
{
	int err = gu_saver_write(p->s, p->at, p->pack, p->len);
	p->at += p->len;
	p->len = 0;
	return err;
}

/* Aligned to 8. */
static int put(struct packer *p, const void *bytes, size_t len, uint64_t *at)
{
	size_t room = gu_align_up(len, 8);
	int err = p->len + room > PACK ? flush_pack(p) : 0;
	if (err)
		return err;
	*at = p->at + p->len;
	memset(p->pack + p->len + room - 8, 0, 8);
	memcpy(p->pack + p->len, bytes, len);
	p->len += room;
	return 0;
}

static int put_summary(struct packer *p, struct gu_image_page *e, const struct gu_page_words *which)
{
	size_t len = gu_summary_pack(p->s->heap, p->words, which, p->summary);
	if (!len)
		return 0;
	e->summary_len = (uint32_t)len;
	e->summary_sum = gu_bytes_sum(p->summary, len);
	return put(p, p->summary, len, &e->more);
}

/* ---- pages ---- */

/* Lines of the page that objects have. */
static uint64_t lines_of(const struct gu_saver *s, size_t page, const uint64_t *objects)
{
	uintptr_t start = gu_space_address(gu_saver_space(s), page);
	const struct gu_block *b = gu_block_at(gu_saver_space(s), start);
	uint64_t lines = 0;
	uint32_t cell;
	if (gu_block_is_large(b))
		return GU_IMAGE_ALL;
	for (bool has = gu_block_cell(b, start, &cell); has && cell < b->ncells && gu_block_cell_addr(b, cell) < start + GU_PAGE; cell++) {
		uintptr_t object = gu_block_cell_addr(b, cell), lo = gu_max(object, start), hi = gu_min(object + b->cell, start + GU_PAGE);
		if (objects[cell >> 6] >> (cell & 63) & 1)
			lines |= (GU_IMAGE_ALL << (lo - start) / GU_IMAGE_LINE) & (GU_IMAGE_ALL >> (63 - (hi - 1 - start) / GU_IMAGE_LINE));
	}
	return lines;
}

/* Which pages are left, which are full, and which of these may stay. */
static int sort_pages(struct packer *p, size_t npages)
{
	struct gu_saver *s = p->s;
	for (size_t i = 0; i < npages; i++) {
		struct gu_image_page *e = &s->pages[i];
		const uint64_t *objects = e->at ? gu_saver_bits(s, i) : NULL;
		uint64_t lines = objects ? lines_of(s, i, objects) : 0;
		if (!lines)
			*e = (struct gu_image_page){0};
		e->lines = __builtin_popcountll(lines) > MANY ? GU_IMAGE_ALL : lines;
		p->nfull += is_elsewhere(e) && e->lines == GU_IMAGE_ALL;
	}
	p->taken = gu_meta_map(gu_align_up((p->nfull / 64 + 1) * 8, GU_PAGE));
	if (!p->taken)
		return -ENOMEM;
	for (size_t i = 0; i < npages; i++) {
		const struct gu_image_page *e = &s->pages[i];
		if (is_elsewhere(e) && e->lines == GU_IMAGE_ALL && place_of(e) <= p->nfull)
			p->taken[place_of(e) / 64] |= 1ull << place_of(e) % 64;
	}
	return 0;
}

/* One is free as long as a full page lies further back. */
static uint64_t take_place(struct packer *p)
{
	while (p->taken[p->free / 64] >> p->free % 64 & 1)
		p->free++;
	return (uint64_t)p->free++ << GU_PAGE_SHIFT;
}

static int move_down(struct packer *p, struct gu_image_page *e)
{
	if (place_of(e) <= p->nfull)
		return 0;
	e->at = take_place(p);
	return gu_saver_write(p->s, e->at, p->words, GU_PAGE);
}

static int put_lines(struct packer *p, struct gu_image_page *e)
{
	char lines[GU_PAGE];
	size_t len = gu_lines_gather(p->words, &e->lines, lines);
	if (!len) {
		*e = (struct gu_image_page){0};
		return 0;
	}
	e->sum = gu_bytes_sum(lines, len);
	return put(p, lines, len, &e->at);
}

/* Words and zeros go with those that are full. */
static bool is_due(const struct gu_image_page *e, bool full) { return e->at && (!is_elsewhere(e) || e->lines == GU_IMAGE_ALL) == full; }

/* With the page, those that come after it and lie behind it in the file. */
static int read_window(struct packer *p, size_t page, size_t npages, bool full)
{
	const struct gu_image_page *e = &p->s->pages[page];
	const struct gu_image im = {.fd = p->s->fd};
	size_t n = 1;
	while (n < WINDOW && page + n < npages && is_due(&e[n], full) && e[n].at == e->at + (n << GU_PAGE_SHIFT))
		n++;
	p->first = page;
	p->nread = n;
	return gu_image_read(&im, e->at, p->window, n << GU_PAGE_SHIFT);
}

/* As it was written, to p->words. */
static int read_page(struct packer *p, size_t page, size_t npages, bool full)
{
	const struct gu_image_page *e = &p->s->pages[page];
	p->words = p->s->page;
	if (!is_elsewhere(e)) {
		gu_page_fill(p->s->page, e->more);
		return 0;
	}
	int err = page - p->first >= p->nread ? read_window(p, page, npages, full) : 0;
	p->words = (const uintptr_t *)(const void *)(p->window + ((page - p->first) << GU_PAGE_SHIFT));
	return err || gu_bytes_sum(p->words, GU_PAGE) == e->sum ? err : -EIO;
}

static int pack_page(struct packer *p, size_t page, size_t npages, bool full)
{
	struct gu_image_page *e = &p->s->pages[page];
	struct gu_page_words which;
	int err = read_page(p, page, npages, full);
	if (err)
		return err;
	gu_summary_words(p->s->heap, page, p->words, gu_saver_bits(p->s, page), &which);
	err = judge_page(p, page, &which);
	if (!err && is_elsewhere(e))
		err = e->lines == GU_IMAGE_ALL ? move_down(p, e) : put_lines(p, e);
	return err || !is_elsewhere(e) ? err : put_summary(p, e, &which);
}

/* Those with few objects first: full ones take their places. */
static int pack_pages(struct packer *p, size_t npages)
{
	int err = 0;
	for (int full = 0; full < 2; full++)
		for (size_t i = 0; i < npages && !err; i++)
			if (is_due(&p->s->pages[i], full))
				err = pack_page(p, i, npages, full);
	return err ? err : flush_pack(p);
}

/* ---- the end ---- */

static int move_bytes(struct packer *p, uint64_t to)
{
	const struct gu_image im = {.fd = p->s->fd};
	int err = 0;
	for (uint64_t from = p->from, len; from < p->at && !err; from += len, to += len) {
		len = gu_min(p->at - from, PACK);
		err = gu_image_read(&im, from, p->pack, len);
		if (!err)
			err = gu_saver_write(p->s, to, p->pack, len);
	}
	return err;
}

static int move_pack(struct packer *p, size_t npages)
{
	uint64_t to = ((uint64_t)p->nfull + 1) << GU_PAGE_SHIFT, by = p->from - to;
	int err = by ? move_bytes(p, to) : 0;
	for (size_t i = 0; i < npages; i++) {
		struct gu_image_page *e = &p->s->pages[i];
		if (is_elsewhere(e) && e->at >= p->from)
			e->at -= by;
		if (e->summary_len)
			e->more -= by;
	}
	p->s->next = (uint32_t)(gu_align_up(p->at - by, GU_PAGE) >> GU_PAGE_SHIFT);
	return err;
}

int gu_saver_pack(struct gu_saver *s)
{
	struct packer p = {.s = s, .free = 1, .from = (uint64_t)s->next << GU_PAGE_SHIFT};
	size_t npages = s->top >> GU_PAGE_SHIFT;
	p.at = p.from;
	p.pack = gu_meta_map(PACK);
	p.summary = gu_meta_map(gu_align_up(GU_SUMMARY_MOST, GU_PAGE));
	p.window = gu_meta_map(WINDOW << GU_PAGE_SHIFT);
	int err = p.pack && p.summary && p.window ? sort_pages(&p, npages) : -ENOMEM;
	if (!err)
		err = pack_pages(&p, npages);
	if (!err)
		err = move_pack(&p, npages);
	gu_meta_unmap(p.taken, gu_align_up((p.nfull / 64 + 1) * 8, GU_PAGE));
	gu_meta_unmap(p.pack, PACK);
	gu_meta_unmap(p.window, WINDOW << GU_PAGE_SHIFT);
	gu_meta_unmap(p.summary, gu_align_up(GU_SUMMARY_MOST, GU_PAGE));
	return err;
}
