/* SPDX-License-Identifier: MIT */
/* imagesave.c - see imagesave.h. The collector's thread alone. */
#include "gc/imagesave.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>

#include "base/meta.h"
#include "gc/accessed.h"
#include "gc/mark.h"
#include "gc/mutator.h"
#include "gc/saver.h"
#include "gc/stop.h"
#include "gc/track.h"
#include "space/image.h"
#include "space/storecodec.h"
#include "sys/os.h"

#define ENOUGH 512u                 /* so many written pages are left to the stop */
#define STOP_PAGES 4096u            /* no more are copied in a stop, unless it won't get less */
#define ROUNDS 32
#define STOPS 4                     /* the last one takes what there is */
#define SLOWER 4u                   /* times longer naps after a round that left no less than the last one */
#define SLOWEST 256u
#define ROOM ((uint64_t)64 << 20)   /* bytes allocated before mutators are slowed down */
#define NAMES 1000                  /* tried for the file */

/* ---- memory ---- */

static size_t tables_len(const struct gu_saver *s, size_t entry) { return gu_align_up((gu_saver_space(s)->size >> GU_PAGE_SHIFT) * entry, GU_PAGE); }

static int reserve(struct gu_saver *s)
{
	s->name = gu_meta_map(PATH_MAX);
	s->pages = gu_meta_reserve(tables_len(s, sizeof(*s->pages)));
	s->batch = gu_meta_map(GU_SAVER_BATCH << GU_PAGE_SHIFT);
	s->pieces = gu_meta_map(GU_SAVER_BATCH * sizeof(*s->pieces));
	s->page = gu_meta_map(GU_PAGE);
	s->maps = gu_meta_map(GU_SAVER_MAPS * sizeof(*s->maps));
	return s->name && s->pages && s->batch && s->pieces && s->page && s->maps ? 0 : -ENOMEM;
}

static void drop_kept(struct gu_saver *s)
{
	gu_meta_unmap(s->kept, s->most_kept << GU_PAGE_SHIFT);
	gu_meta_unmap(s->kept_page, s->most_kept * sizeof(*s->kept_page));
	s->kept = NULL;
	s->kept_page = NULL;
}

/* For pages copied in a stop, in which there are no faults then. */
static int make_kept(struct gu_saver *s, size_t most)
{
	most = gu_align_up(most, 1024);
	if (s->kept && most <= s->most_kept)
		return 0;
	drop_kept(s);
	s->most_kept = most;
	s->kept = gu_meta_map(most << GU_PAGE_SHIFT);
	s->kept_page = gu_meta_map(most * sizeof(*s->kept_page));
	if (!s->kept || !s->kept_page)
		return -ENOMEM;
	memset(s->kept, 1, most << GU_PAGE_SHIFT);
	memset(s->kept_page, 1, most * sizeof(*s->kept_page));
	return 0;
}

static size_t bits_len(const struct gu_saver *s) { return gu_align_up(s->most_bits * sizeof(*s->bits), GU_PAGE); }
static size_t bits_of_len(const struct gu_saver *s) { return gu_align_up(s->most_blocks * sizeof(*s->bits_of), GU_PAGE); }
static size_t version_len(const struct gu_saver *s) { return gu_align_up(s->most_blocks * sizeof(*s->version), GU_PAGE); }

static void drop_bits(struct gu_saver *s)
{
	gu_meta_unmap(s->bits, bits_len(s));
	gu_meta_unmap(s->bits_of, bits_of_len(s));
	gu_meta_unmap(s->version, version_len(s));
	s->bits = NULL;
	s->version = NULL;
	s->bits_of = NULL;
}

static void release(struct gu_saver *s)
{
	drop_bits(s);
	gu_meta_unmap(s->name, PATH_MAX);
	if (s->pages)
		gu_meta_unreserve(s->pages, tables_len(s, sizeof(*s->pages)));
	gu_meta_unmap(s->batch, GU_SAVER_BATCH << GU_PAGE_SHIFT);
	gu_meta_unmap(s->pieces, GU_SAVER_BATCH * sizeof(*s->pieces));
	gu_meta_unmap(s->page, GU_PAGE);
	gu_meta_unmap(s->maps, GU_SAVER_MAPS * sizeof(*s->maps));
	drop_kept(s);
	gu_meta_unmap(s->relocations, s->most_relocations * sizeof(*s->relocations));
}

/* Entries for all pages that the heap has by now. */
static int know_pages(struct gu_saver *s)
{
	size_t pages = gu_load_acquire(&gu_saver_space(s)->top) >> GU_PAGE_SHIFT; /* a multiple of 512 */
	if (pages <= s->known)
		return 0;
	int err = gu_meta_commit(&s->pages[s->known], (pages - s->known) * sizeof(*s->pages));
	if (!err)
		s->known = pages;
	return err ? -ENOMEM : 0;
}

/* ---- the file ---- */

/* The pieces change as they are written. */
static int write_pieces(struct gu_saver *s, uint64_t at, struct iovec *piece, size_t n)
{
	while (n) {
		long done = gu_os->pwritev(s->fd, piece, (int)n, (off_t)at);
		if (done == -EINTR)
			continue;
		if (done <= 0)
			return done ? (int)done : -EIO;
		at += (size_t)done;
		for (; n && (size_t)done >= piece->iov_len; piece++, n--)
			done -= (long)piece->iov_len;
		if (n)
			*piece = (struct iovec){(char *)piece->iov_base + done, piece->iov_len - (size_t)done};
	}
	return 0;
}

int gu_saver_write(struct gu_saver *s, uint64_t at, const void *from, size_t len)
{
	struct iovec piece = {(char *)(uintptr_t)from, len};
	return len ? write_pieces(s, at, &piece, 1) : 0;
}

static int take_pages(struct gu_saver *s, size_t n, uint32_t *at)
{
	if (n >= UINT32_MAX - s->next)
		return -EFBIG;
	*at = s->next;
	s->next += (uint32_t)n;
	return 0;
}

static int flush_batch(struct gu_saver *s)
{
	int err = write_pieces(s, (uint64_t)s->batch_at << GU_PAGE_SHIFT, s->pieces, s->npieces);
	s->batch_n = 0;
	s->npieces = 0;
	return err;
}

/* Contents stay as they are until the batch is written, or count as written then; but for s->page. */
static int put_contents(struct gu_saver *s, uint32_t at, const void *contents)
{
	bool next = s->batch_n < GU_SAVER_BATCH && at == s->batch_at + s->batch_n;
	int err = s->batch_n && !next ? flush_batch(s) : 0;
	char *from = (char *)(uintptr_t)contents;
	struct iovec *last = s->npieces ? &s->pieces[s->npieces - 1] : NULL;
	if (!s->batch_n)
		s->batch_at = at;
	if (contents == s->page)
		from = memcpy(s->batch + ((size_t)s->batch_n << GU_PAGE_SHIFT), contents, GU_PAGE);
	s->batch_n++;
	if (last && (char *)last->iov_base + last->iov_len == from)
		last->iov_len += GU_PAGE;
	else
		s->pieces[s->npieces++] = (struct iovec){from, GU_PAGE};
	return err;
}

/* ---- pages ---- */

static bool leads_nowhere(const struct gu_saver *s, uint64_t word) { return word - gu_saver_space(s)->base >= gu_saver_space(s)->size; }

static int put_page(struct gu_saver *s, size_t page, const uintptr_t *words)
{
	struct gu_image_page *e = &s->pages[page];
	uint32_t at = e->at == GU_IMAGE_WORD ? 0 : (uint32_t)(e->at >> GU_PAGE_SHIFT);
	uint64_t word;
	s->written++;
	if (gu_page_is_word(words, &word) && leads_nowhere(s, word)) {
		*e = (struct gu_image_page){.at = word ? GU_IMAGE_WORD : 0, .more = word};
		return 0;
	}
	int err = at ? 0 : take_pages(s, 1, &at);
	*e = (struct gu_image_page){.at = (uint64_t)at << GU_PAGE_SHIFT, .lines = GU_IMAGE_ALL, .sum = gu_bytes_sum(words, GU_PAGE)};
	return err ? err : put_contents(s, at, words);
}

/* Wherever it is: where it lies, or copied to. It may come back meanwhile, and is written then as far as tracking knows. */
static int find_contents(struct gu_saver *s, size_t page, void *to, const void **contents)
{
	const struct gu_cold *c = &gu_saver_space(s)->cold;
	enum gu_cold_state state = c->on && gu_cold_is_out(c, page) ? gu_cold_state(c, page) : GU_COLD_LIVE;
	*contents = to;
	if (state == GU_COLD_EVICTED)
		return gu_cold_get(c, gu_cold_region(c, page)->slot[page % GU_REGION_PAGES], to) ? -EIO : 0;
	if (state == GU_COLD_POISONED)
		return -EIO;
	if (state == GU_COLD_PARKED)
		memcpy(to, (const void *)gu_cold_park(c, page), GU_PAGE);
	else
		*contents = (const void *)gu_space_address(gu_saver_space(s), page);
	return 0;
}

static bool is_saved(const struct gu_block *b)
{
	uint8_t state = gu_load_acquire(&b->state);
	return state != GU_BLOCK_FREE && state != GU_BLOCK_BUSY;
}

static bool has_block(const struct gu_saver *s, size_t page)
{
	uint32_t index = gu_load_acquire(&gu_saver_space(s)->block_of[page]);
	return index && is_saved(&gu_saver_space(s)->blocks[index]);
}

/* Pages with a card, which is cleared first. */
static int each_card(struct gu_saver *s, int (*visit)(struct gu_saver *s, size_t page))
{
	size_t n = s->known / 64;
	int err = 0;
	for (size_t i = 0; i < n && !err; i++) {
		uint64_t cards = gu_load_relaxed(&gu_saver_space(s)->cards[i]) ? gu_swap_seqcst(&gu_saver_space(s)->cards[i], 0) : 0;
		for (; cards && !err; cards &= cards - 1) {
			size_t page = i * 64 + (size_t)__builtin_ctzll(cards);
			err = has_block(s, page) ? visit(s, page) : 0;
		}
	}
	return err;
}

static size_t count_cards(const struct gu_saver *s)
{
	size_t n = 0;
	for (size_t i = 0; i < s->known / 64; i++)
		for (uint64_t cards = gu_load_relaxed(&gu_saver_space(s)->cards[i]); cards; cards &= cards - 1)
			n += has_block(s, i * 64 + (size_t)__builtin_ctzll(cards));
	return n;
}

static int write_card(struct gu_saver *s, size_t page)
{
	const void *contents;
	int err = find_contents(s, page, s->page, &contents);
	return err ? err : put_page(s, page, contents);
}

static int keep_card(struct gu_saver *s, size_t page)
{
	char *to = s->kept + (s->nkept << GU_PAGE_SHIFT);
	const void *contents;
	s->kept_page[s->nkept++] = (uint32_t)page;
	int err = find_contents(s, page, to, &contents);
	if (!err && contents != to)
		memcpy(to, contents, GU_PAGE);
	return err;
}

/* Nothing stays in the batch: who writes to a page from now on changes the image no more, or sets a card. */
static int write_cards(struct gu_saver *s)
{
	int err = each_card(s, write_card);
	return err ? err : flush_batch(s);
}

static void card_range(void *data, uintptr_t start, uintptr_t end)
{
	struct gu_saver *s = data;
	for (size_t p = gu_space_page(gu_saver_space(s), start); p < gu_space_page(gu_saver_space(s), end); p++)
		gu_card_set(gu_saver_space(s), p);
}

/* All that hold something. Those that are out before those in place: they may come back. */
static void card_all(struct gu_saver *s)
{
	struct gu_space *space = gu_saver_space(s);
	uintptr_t end = space->base + (s->known << GU_PAGE_SHIFT);
	for (size_t p = 0; space->cold.on && p < s->known; p++)
		if (gu_cold_is_on_its_way(&space->cold, p))
			gu_card_set(space, p);
	if (!gu_track_present(s->heap, space->base, end, false, card_range, s))
		card_range(s, space->base, end);
}

/* ---- the moment ---- */

/*
 * What tells a block's bits from those that it had: in the window a full or a large block can't but lose objects, each of which counts as freed, and if one that
 * was listed looked full on its way to an owner, it has more objects when it is full again (.inv.image.version). AGAIN: the bits are copied once more.
 */
#define AGAIN UINT64_MAX
static uint64_t version_of(const struct gu_block *b)
{
	uint8_t state = gu_load_acquire(&b->state);
	if (state != GU_BLOCK_FULL && state != GU_BLOCK_LARGE)
		return AGAIN;
	return (uint64_t)gu_load_relaxed(&b->made) << 32 | (uint64_t)(uint16_t)gu_load_relaxed(&b->live) << 16 | (uint16_t)gu_load_acquire(&b->nfreed);
}
_Static_assert(GU_BLOCK / GU_GRANULE < UINT16_MAX, "cells of a block can be counted in 16 bits");

/* Room for the bits, for those of blocks that are copied twice, and some for what comes. */
static int make_room(struct gu_saver *s)
{
	const struct gu_space *space = gu_saver_space(s);
	uint32_t n = gu_block_count(space);
	drop_bits(s);
	s->most_bits = 4096;
	s->nbits = 0;
	for (uint32_t i = 1; i <= n; i++)
		s->most_bits += gu_load_acquire(&space->blocks[i].state) != GU_BLOCK_FREE ? gu_block_groups(&space->blocks[i]) * (version_of(&space->blocks[i]) == AGAIN ? 2u : 1u) : 0;
	s->most_bits += s->most_bits / 2;
	s->most_blocks = n + n / 4 + 1024;
	s->bits = gu_meta_map(bits_len(s));
	s->bits_of = gu_meta_map(bits_of_len(s));
	s->version = gu_meta_map(version_len(s));
	return s->bits && s->bits_of && s->version ? 0 : -ENOMEM;
}

static uint64_t objects_of(const struct gu_block *b, uint32_t g)
{
	return gu_load_relaxed(&b->bits[g].start) & ~gu_load_relaxed(&b->bits[g].freed) & ~gu_run_ahead(b, g);
}

/* true: there is an object in it. */
static bool copy_bits(const struct gu_block *b, uint64_t *to)
{
	uint64_t any = 0;
	for (uint32_t g = 0; g < gu_block_groups(b); g++)
		any |= to[g] = objects_of(b, g);
	return any;
}

/* Whoever is not attached may free beside a stop: what is gone says nothing. */
static bool is_copied(const struct gu_saver *s, uint32_t i)
{
	const struct gu_block *b = &gu_saver_space(s)->blocks[i];
	for (uint32_t g = 0; g < gu_block_groups(b); g++)
		if (objects_of(b, g) & ~(s->bits_of[i] ? s->bits[s->bits_of[i] - 1 + g] : 0))
			return false;
	return true;
}

static int copy_block(struct gu_saver *s, uint32_t i)
{
	const struct gu_block *b = &gu_saver_space(s)->blocks[i];
	uint64_t version = version_of(b);
	if (version != AGAIN && version == s->version[i]) {
		gu_assert(is_copied(s, i)); /* .inv.image.version */
		return 0;
	}
	s->bits_of[i] = 0;
	s->version[i] = AGAIN; /* until it is copied */
	if (!is_saved(b))
		return 0;
	if (s->nbits + gu_block_groups(b) > s->most_bits)
		return -EAGAIN;
	if (copy_bits(b, s->bits + s->nbits)) {
		s->bits_of[i] = s->nbits + 1;
		s->nbits += gu_block_groups(b);
	}
	s->version[i] = version;
	return 0;
}

/* Of blocks that may have changed since they were copied last. -EAGAIN: there are more than there is room for. */
static int copy_blocks(struct gu_saver *s)
{
	uint32_t n = gu_block_count(gu_saver_space(s));
	int err = n < s->most_blocks ? 0 : -EAGAIN;
	for (uint32_t i = 1; i <= n && !err; i++)
		err = copy_block(s, i);
	s->top = gu_load_relaxed(&gu_saver_space(s)->top);
	return err;
}

static void count_live(struct gu_saver *s)
{
	s->live = 0;
	for (uint32_t i = 1; i < s->most_blocks; i++)
		s->live += s->bits_of[i] ? gu_saver_space(s)->blocks[i].bytes : 0;
}

static int look(struct gu_saver *s, bool rearm)
{
	struct gu_track_counts counts = {0, 0};
	int err = gu_track_works(s->heap) ? gu_track_collect(s->heap, rearm, &counts) : 0;
	return err ? err : know_pages(s);
}

/* World stopped. -EAGAIN: not this time. at_any_cost: what is more than there is room for is written here. */
static int take_moment(struct gu_saver *s, bool at_any_cost)
{
	bool tracked = gu_track_works(s->heap);
	int err = look(s, false);
	if (!err && !tracked)
		card_all(s);
	bool few = tracked && count_cards(s) <= s->most_kept;
	if (!err && !few && tracked && !at_any_cost)
		return -EAGAIN;
	if (!err)
		err = gu_saver_list_maps(s);
	if (!err)
		err = copy_blocks(s);
	s->nkept = 0;
	return err ? err : few ? each_card(s, keep_card) : write_cards(s);
}

static int write_once(struct gu_saver *s)
{
	int err = write_cards(s);
	return err ? err : look(s, true);
}

static int stop_once(struct gu_saver *s, bool at_any_cost)
{
	int err = make_room(s);
	if (!err && gu_track_works(s->heap))
		err = make_kept(s, at_any_cost ? count_cards(s) * 2 + STOP_PAGES : STOP_PAGES);
	if (!err)
		err = copy_blocks(s); /* so that memory for it is there */
	if (err && err != -EAGAIN)
		return err;
	err = gu_track_works(s->heap) && !at_any_cost ? write_once(s) : 0; /* what was written since: all that took its time */
	if (err)
		return err;
	err = gu_world_stop_for(s->heap);
	if (err)
		return err;
	err = take_moment(s, at_any_cost);
	s->stop_ns = gu_max(s->stop_ns, gu_world_resume_for(s->heap));
	return err;
}

/* ---- pace ---- */

/* Nobody waits for a cycle while the heap is saved but who has no memory; who allocates more than ROOM is slowed down. */
static void begin_pace(struct gu_saver *s)
{
	struct gcuffd_heap *h = s->heap;
	gu_store_relaxed(&h->saving_pace, 1);
	s->ceiling = gu_swap_seqcst(&h->ceiling, gu_load_relaxed(&h->allocated) + ROOM);
	s->room = s->ceiling - gu_load_relaxed(&h->trigger);
}

/* What is allocated from here on is not in the image. */
static void relax_pace(struct gcuffd_heap *h)
{
	gu_store_relaxed(&h->saving_pace, 1);
	gu_store_relaxed(&h->ceiling, gu_load_relaxed(&h->allocated) + ROOM);
}

/* As if the cycle that is due were not late. */
static void end_pace(struct gu_saver *s)
{
	struct gcuffd_heap *h = s->heap;
	gu_store_relaxed(&h->ceiling, gu_max(s->ceiling, gu_load_relaxed(&h->allocated) + s->room));
	gu_store_relaxed(&h->saving_pace, 0);
}

/* From here on whoever allocates is slowed down, however little it was; more each time. false: it has been enough. */
static bool slow_down(struct gcuffd_heap *h)
{
	uint32_t pace = gu_load_relaxed(&h->saving_pace);
	if (pace >= SLOWEST)
		return false;
	gu_store_relaxed(&h->saving_pace, pace * SLOWER);
	gu_store_relaxed(&h->ceiling, 0);
	return true;
}

/* ---- rounds ---- */

/* Until little is left, or it gets no less even so: each round is shorter than the last, for less was written in it. */
static int write_rounds(struct gu_saver *s)
{
	size_t last = SIZE_MAX;
	for (; s->rounds < ROUNDS; s->rounds++) {
		int err = write_once(s);
		size_t n = count_cards(s);
		if (err || n <= ENOUGH || (n > last / 4 * 3 && !slow_down(s->heap)))
			return err;
		last = n;
	}
	return 0;
}

static int write_pages(struct gu_saver *s)
{
	int err = know_pages(s);
	if (!err && gu_track_works(s->heap)) {
		struct gu_track_counts counts = {0, 0};
		err = gu_track_arm(s->heap, &counts);
		if (!err)
			card_all(s);
		if (!err)
			err = write_rounds(s);
	}
	for (int tries = 1; !err && (err = stop_once(s, tries >= STOPS)) == -EAGAIN; tries++)
		err = gu_track_works(s->heap) ? write_rounds(s) : 0;
	for (size_t i = 0; i < s->nkept && !err; i++) {
		const uintptr_t *words = (const uintptr_t *)(s->kept + (i << GU_PAGE_SHIFT));
		err = gu_saver_bits(s, s->kept_page[i]) ? put_page(s, s->kept_page[i], words) : 0;
	}
	return err ? err : flush_batch(s);
}

/* ---- sections ---- */

static int put_part(struct gu_saver *s, enum gu_image_part part, const void *bytes, size_t len)
{
	uint32_t at = 0;
	int err = take_pages(s, gu_align_up(len, GU_PAGE) >> GU_PAGE_SHIFT, &at);
	s->head.parts[part] = (struct gu_image_section){(uint64_t)at << GU_PAGE_SHIFT, len, gu_image_sum(bytes, len)};
	return err ? err : gu_saver_write(s, (uint64_t)at << GU_PAGE_SHIFT, bytes, len);
}

/* The next block of the image from page *p on, by address. */
static const struct gu_block *next_block(const struct gu_saver *s, size_t *p)
{
	for (; *p < s->top >> GU_PAGE_SHIFT; ++*p)
		if (gu_saver_bits(s, *p)) {
			const struct gu_block *b = gu_block_at(gu_saver_space(s), gu_space_address(gu_saver_space(s), *p));
			*p += b->bytes >> GU_PAGE_SHIFT;
			return b;
		}
	return NULL;
}

static const uint64_t *bits_of(const struct gu_saver *s, const struct gu_block *b) { return s->bits + s->bits_of[b - gu_saver_space(s)->blocks] - 1; }
static size_t types_len(const struct gu_block *b) { return b->types ? gu_align_up(b->ncells * 2, 8) : 0; }

/* A descriptor's worth of one of the three parts that describe blocks: how many bytes, and into to unless NULL. */
static size_t describe(const struct gu_saver *s, enum gu_image_part part, const struct gu_block *b, char *to)
{
	const struct gu_image_block record = {b->start, b->bytes, b->ncells, b->kind, b->class, gu_block_is_large(b), 0};
	const void *from = part == GU_IMAGE_BLOCKS ? (const void *)&record : part == GU_IMAGE_BITS ? (const void *)bits_of(s, b) : b->types;
	size_t len = part == GU_IMAGE_BLOCKS ? sizeof(record) : part == GU_IMAGE_BITS ? gu_block_groups(b) * 8 : types_len(b);
	if (to && part == GU_IMAGE_CELLS && len)
		memcpy(to, from, b->ncells * 2);
	else if (to && len)
		memcpy(to, from, len);
	return len;
}

static int put_blocks(struct gu_saver *s, enum gu_image_part part)
{
	const struct gu_block *b;
	size_t len = 0, at = 0;
	for (size_t p = 0; (b = next_block(s, &p));)
		len += describe(s, part, b, NULL);
	char *bytes = gu_meta_map(gu_align_up(len + 1, GU_PAGE));
	if (!bytes)
		return -ENOMEM;
	for (size_t p = 0; (b = next_block(s, &p));)
		at += describe(s, part, b, bytes + at);
	int err = put_part(s, part, bytes, len);
	gu_meta_unmap(bytes, gu_align_up(len + 1, GU_PAGE));
	return err;
}

static size_t type_words(const struct gcuffd_type *t) { return 1 + gu_type_bitmap_words(t->words); }

static int put_types(struct gu_saver *s)
{
	uint32_t n = gu_load_acquire(&s->heap->ntypes);
	size_t words = 0, at = 0;
	for (uint32_t i = 0; i < n; i++)
		words += type_words(gu_load_acquire(&s->heap->types[i]));
	uint64_t *out = gu_meta_map(gu_align_up(words * 8 + 1, GU_PAGE));
	if (!out)
		return -ENOMEM;
	for (uint32_t i = 0; i < n; i++) {
		const struct gcuffd_type *t = s->heap->types[i];
		out[at] = t->words | (uint64_t)t->element << 32;
		memcpy(&out[at + 1], t->bitmap, (type_words(t) - 1) * 8);
		at += type_words(t);
	}
	s->head.ntypes = n;
	int err = put_part(s, GU_IMAGE_TYPES, out, words * 8);
	gu_meta_unmap(out, gu_align_up(words * 8 + 1, GU_PAGE));
	return err;
}

static bool is_object(const struct gu_saver *s, uintptr_t at)
{
	const struct gu_block *b = gu_block_at(gu_saver_space(s), at);
	const uint64_t *objects = b ? gu_saver_bits(s, gu_space_page(gu_saver_space(s), at)) : NULL;
	uint32_t cell;
	return objects && gu_block_cell(b, at, &cell) && (objects[cell >> 6] >> (cell & 63) & 1);
}

static int name_root(const struct gu_saver *s, size_t i, struct gu_image_name *out)
{
	const struct gcuffd_named *r = &s->options->roots[i];
	out->address = (uintptr_t)r->object;
	snprintf(out->name, sizeof(out->name), "%s", r->name);
	if (!r->object || is_object(s, out->address))
		return 0;
	gu_log(&s->heap->log, GU_LOG_ERROR, "not saved: the root %s is no object of the heap", r->name);
	return -EINVAL;
}

static int name_external(const struct gu_saver *s, size_t i, struct gu_image_name *out)
{
	const struct gcuffd_external *e = &s->options->externals[i];
	out->address = (uintptr_t)e->start;
	out->size = e->length;
	snprintf(out->name, sizeof(out->name), "%s", e->name);
	return 0;
}

static int put_names(struct gu_saver *s, enum gu_image_part part, size_t n, int (*name)(const struct gu_saver *s, size_t i, struct gu_image_name *out))
{
	size_t len = n * sizeof(struct gu_image_name);
	struct gu_image_name *names = gu_meta_map(gu_align_up(len + 1, GU_PAGE));
	int err = names ? 0 : -ENOMEM;
	for (size_t i = 0; i < n && !err; i++)
		err = name(s, i, &names[i]);
	if (!err)
		err = put_part(s, part, names, len);
	gu_meta_unmap(names, gu_align_up(len + 1, GU_PAGE));
	return err;
}

static int put_parts(struct gu_saver *s)
{
	int err = put_blocks(s, GU_IMAGE_BLOCKS);
	if (!err)
		err = put_blocks(s, GU_IMAGE_BITS);
	if (!err)
		err = put_blocks(s, GU_IMAGE_CELLS);
	if (!err)
		err = put_types(s);
	if (!err)
		err = put_part(s, GU_IMAGE_PAGES, s->pages, (s->top >> GU_PAGE_SHIFT) * sizeof(*s->pages));
	if (!err)
		err = put_names(s, GU_IMAGE_ROOTS, s->options->nroots, name_root);
	if (!err)
		err = put_names(s, GU_IMAGE_EXTERNALS, s->options->nexternals, name_external);
	if (!err)
		err = put_part(s, GU_IMAGE_RELOCATIONS, s->relocations, s->nrelocations * sizeof(*s->relocations));
	return err;
}

/* How much compressed memory there may be goes by the machine's, unless there is a target. */
static void put_options(struct gu_image_head *h, const struct gcuffd_options *o)
{
	h->flags = o->flags & ~GCUFFD_VERIFY;
	h->options = (struct gu_image_options){
		.soft_limit = o->soft_limit, .hard_limit = o->hard_limit, .start_size = o->start_size, .resident_target = o->resident_target,
		.store_memory = o->resident_target ? o->store_memory : 0, .store_file = o->store_file,
		.growth_percent = o->growth_percent, .decay_ms = o->decay_ms, .stop_timeout_ms = o->stop_timeout_ms, .store_codec = (uint32_t)o->store_codec,
		.cool_mode = (uint32_t)o->cool_mode, .cool_after_ms = o->cool_after_ms, .pressure_percent = o->pressure_percent, .fault_percent = o->fault_percent,
	};
}

/* The file ends a byte behind its sections: who finds it cut off must not take it for short ones. */
static int put_head(struct gu_saver *s)
{
	struct gu_image_head *h = &s->head;
	char *page = memset(s->page, 0, GU_PAGE);
	memcpy(h->magic, GU_IMAGE_MAGIC, sizeof(h->magic));
	h->version = GU_IMAGE_VERSION;
	h->order = GU_IMAGE_ORDER;
	h->page = GU_PAGE;
	put_options(h, &s->heap->options);
	h->length = ((uint64_t)s->next << GU_PAGE_SHIFT) + 1;
	h->base = gu_saver_space(s)->base;
	h->size = gu_saver_space(s)->size;
	h->top = s->top;
	memcpy(page, h, sizeof(*h));
	uint64_t sum = gu_image_sum(page, GU_PAGE - 8);
	memcpy(page + GU_PAGE - 8, &sum, 8);
	int err = gu_os->ftruncate(s->fd, (off_t)h->length);
	return err ? err : gu_saver_write(s, 0, page, GU_PAGE);
}

/* ---- all of it ---- */

enum { PHASE_WRITE, PHASE_TRACE, PHASE_PACK, PHASE_SYNC };
_Static_assert(PHASE_SYNC + 1 == GU_SAVER_PHASES, "each has its time");

static void note_time(struct gu_saver *s, int phase)
{
	uint64_t now = gu_os->clock_ns();
	s->phase_ns[phase] = now - s->since;
	s->since = now;
}

/* So that the new name outlasts a crash of the machine too; a file system may not know how. */
static void sync_directory(struct gu_saver *s, const char *path)
{
	const char *slash = strrchr(path, '/');
	snprintf(s->name, PATH_MAX, "%.*s", slash ? (int)gu_max((size_t)(slash - path), 1) : 1, slash ? path : ".");
	int fd = gu_os->open(s->name, O_RDONLY | O_DIRECTORY);
	if (fd < 0)
		return;
	(void)gu_os->fdatasync(fd);
	gu_os->close(fd);
}

/* A new one: what has the name already may be written by another heap, or be a trap. */
static int open_file(struct gu_saver *s, const char *path)
{
	s->fd = -EEXIST;
	for (unsigned i = 0; i < NAMES && s->fd == -EEXIST; i++) {
		if (snprintf(s->name, PATH_MAX, "%s.tmp-%d-%u", path, (int)gu_os->getpid(), i) >= PATH_MAX)
			return -ENAMETOOLONG;
		s->fd = gu_os->create(s->name, O_RDWR | O_CREAT | O_EXCL, 0600);
	}
	return s->fd < 0 ? s->fd : 0;
}

static int save_pages(struct gu_saver *s)
{
	struct gcuffd_heap *h = s->heap;
	bool tracked = gu_track_works(h);
	gu_store_seqcst(&h->phase, GU_PHASE_WINDOW); /* .inv.image.window */
	int err = gu_world_quiesce_for(h);
	gu_mark_cards_drop(h);
	if (tracked)
		gu_track_all(h, true);
	if (!err)
		err = write_pages(s);
	relax_pace(h);
	if (!err)
		count_live(s);
	note_time(s, PHASE_WRITE);
	if (!err)
		err = gu_saver_trace(s);
	note_time(s, PHASE_TRACE);
	if (!err)
		err = gu_saver_pack(s);
	if (!err)
		err = put_parts(s);
	note_time(s, PHASE_PACK);
	if (tracked)
		gu_track_all(h, false);
	gu_store_seqcst(&h->phase, GU_PHASE_IDLE);
	if (tracked)
		gu_track_disarm(h);
	return err;
}

static int save(struct gu_saver *s, const char *path)
{
	int err = reserve(s);
	if (!err)
		err = open_file(s, path);
	if (err)
		return err;
	err = save_pages(s);
	if (!err)
		err = put_head(s);
	if (!err)
		err = gu_os->fdatasync(s->fd);
	note_time(s, PHASE_SYNC);
	gu_os->close(s->fd);
	if (!err)
		err = gu_os->rename(s->name, path);
	if (err)
		gu_os->unlink(s->name);
	else
		sync_directory(s, path);
	return err;
}

static unsigned long ms(uint64_t ns) { return (unsigned long)(ns / 1000000); }

static void log_saved(const struct gu_saver *s, const char *path, uint64_t ns)
{
	const uint64_t *p = s->phase_ns;
	gu_log(&s->heap->log, GU_LOG_INFO, "saved to %s in %lu ms (writing %lu, tracing %lu, packing %lu, disk %lu): %lu MiB of blocks, %lu pages written in %lu rounds, stop %lu us, %zu pages copied in it",
	       path, ms(ns), ms(p[PHASE_WRITE]), ms(p[PHASE_TRACE]), ms(p[PHASE_PACK]), ms(p[PHASE_SYNC]), (unsigned long)(s->live >> 20), (unsigned long)s->written,
	       (unsigned long)s->rounds + 1, (unsigned long)(s->stop_ns / 1000), s->nkept);
}

int gu_image_save(struct gcuffd_heap *h, const char *path, const struct gcuffd_image_options *options)
{
	uint64_t since = gu_os->clock_ns();
	struct gu_saver s = {.heap = h, .options = options, .fd = -1, .next = 1, .since = since};
	begin_pace(&s);
	int err = gu_accessed_end_all(h); /* .inv.track.rwp */
	if (!err)
		err = save(&s, path);
	if (!err)
		log_saved(&s, path, gu_os->clock_ns() - since);
	release(&s);
	end_pace(&s);
	return err;
}
