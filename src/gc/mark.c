/* SPDX-License-Identifier: MIT */
/* mark.c - scanning: words to candidates to marks to gray objects. Service threads only. */
#include "gc/mark.h"

#include <errno.h>
#include <string.h>

#include "base/meta.h"
#include "gc/final.h"
#include "gc/marker.h"
#include "gc/mutator.h"
#include "gc/summary.h"
#include "gc/track.h"
#include "gc/weak.h"
#include "sys/caps.h"
#include "sys/os.h"

#define PIECE_WORDS 2048u    /* large objects are scanned in pieces of 16 KiB */
#define GRAY_WORDS ((size_t)1 << 31) /* whole pages */
#define SPARSE_WORDS 131072u /* from 1 MiB on only pages that are there */
#define BUFFER ((size_t)64 << 10)
#define NEAR_BLOCKS 2048u    /* descriptors of so many stay in the second level of a cache */
#define FIND_AFTER 8u        /* words that wait for descriptors */
#define SHARE_DEPTH 8u       /* a tree of binary nodes is hardly ever deeper; with less to give, a waiting marker is not worth the packet */

/* ---- candidates ---- */

static struct gu_gray gray_of(const struct gu_block *b, uint32_t cell)
{
	struct gu_gray g = {gu_block_cell_addr(b, cell), (uint32_t)gu_min(b->cell / 8, GRAY_WORDS), 0};
	if (b->kind == GCUFFD_TYPED)
		g.type = b->types[cell] + 1u;
	return g;
}

static uint32_t piece_of(uint32_t type) { return type ? type | GU_GRAY_PIECE : 0; }

/* Objects of more than 16 GiB: the rest in further pieces. */
static void push_pieces(struct gu_marker *m, const struct gu_block *b, struct gu_gray g)
{
	gu_marker_push(m, g);
	for (size_t at = GRAY_WORDS * 8; gu_unlikely(at < b->cell); at += GRAY_WORDS * 8)
		gu_marker_push(m, (struct gu_gray){g.addr + at, (uint32_t)gu_min((b->cell - at) / 8, GRAY_WORDS), piece_of(g.type)});
}

static void push_object(struct gu_marker *m, const struct gu_block *b, uint32_t cell) { push_pieces(m, b, gray_of(b, cell)); }

void gu_marker_push_fields(struct gu_marker *m, uintptr_t object)
{
	const struct gu_block *b = gu_block_at(m->space, object);
	uint32_t cell;
	if (!b || b->kind == GCUFFD_ATOMIC || !gu_block_cell(b, object, &cell))
		return;
	struct gu_gray g = gray_of(b, cell);
	g.type = GU_GRAY_FIELDS;
	push_pieces(m, b, g);
}

/* Of an object that is marked now: what it takes beside its words, or instead. */
static __attribute__((noinline)) void push_other(struct gu_marker *m, const struct gu_block *b, uint32_t cell)
{
	if (b->kind != GCUFFD_ATOMIC)
		push_object(m, b, cell);
	if (gu_load_relaxed(&b->weak)) /* .inv.weak.late */
		gu_marker_push(m, (struct gu_gray){gu_block_cell_addr(b, cell), 0, GU_GRAY_VALUES});
}

static inline void settle(struct gu_marker *m, const struct gu_block *b, uint32_t cell)
{
	struct gu_bits *bits = &b->bits[cell >> 6];
	uint64_t bit = 1ull << (cell & 63);
	if (!(gu_load_acquire(&bits->start) & bit) || (gu_load_relaxed(&bits->mark) & bit))
		return;
	if (gu_unlikely(m->source) && m->source == gu_block_cell_addr(b, cell)) /* its own fields make no object wait for itself */
		return;
	if (gu_or_seqcst(&bits->mark, bit) & bit) /* .inv.mark.before-fields */
		return;
	m->bytes += b->cell;
	m->objects++;
	if (gu_likely(b->kind == GCUFFD_CONSERVATIVE && !gu_block_is_large(b) && !gu_load_relaxed(&b->weak)))
		gu_marker_push(m, gray_of(b, cell));
	else
		push_other(m, b, cell);
}

/* From the word to the cell, whose bits may come from here on. */
static inline bool find(const struct gu_block *b, uintptr_t word, bool base_only, uint32_t *cell)
{
	if (!gu_block_cell(b, word, cell) || (base_only && gu_block_cell_addr(b, *cell) != word))
		return false;
	__builtin_prefetch(&b->bits[*cell >> 6], 1);
	return true;
}

/* The block's descriptor has had time to come. */
static inline void find_next(struct gu_marker *m)
{
	struct gu_candidate *c = &m->queue[m->found++ % GU_QUEUE];
	uint32_t cell;
	if (find(&m->blocks[c->block], c->at, c->base_only, &cell))
		c->at = cell;
	else
		c->block = 0;
}

static void settle_next(struct gu_marker *m)
{
	const struct gu_candidate *c = &m->queue[m->settled++ % GU_QUEUE];
	if (gu_likely(c->block))
		settle(m, &m->blocks[c->block], (uint32_t)c->at);
}

/* Bits of cells are fetched in any heap, descriptors in one where they are not all in the cache. */
static inline void consider(struct gu_marker *m, uintptr_t word, bool base_only)
{
	uintptr_t off = word - m->base;
	if (off >= m->top)
		return;
	uint32_t index = gu_load_relaxed(&m->block_of[off >> GU_PAGE_SHIFT]), cell;
	if (!index)
		return;
	struct gu_candidate *c = &m->queue[m->queued % GU_QUEUE];
	if (m->far) {
		__builtin_prefetch(&m->blocks[index]);
		__builtin_prefetch(&m->blocks[index].kind);
		*c = (struct gu_candidate){word, index, base_only};
		if (gu_likely(++m->queued - m->found > FIND_AFTER))
			find_next(m);
	} else {
		if (!find(&m->blocks[index], word, base_only, &cell))
			return;
		*c = (struct gu_candidate){cell, index, 0};
		m->queued++;
	}
	if (gu_likely(m->queued - m->settled == GU_QUEUE))
		settle_next(m);
}

/* false: nothing waits. */
static bool settle_oldest(struct gu_marker *m)
{
	if (m->settled == m->queued)
		return false;
	if (m->far && m->found == m->settled)
		find_next(m);
	settle_next(m);
	return true;
}

void gu_marker_flush(struct gu_marker *m)
{
	while (settle_oldest(m))
		;
}

/* ---- scanning ---- */

static inline GU_READS_STACKS void scan_words(struct gu_marker *m, uintptr_t start, size_t words, bool base_only)
{
	const uintptr_t *p = (const uintptr_t *)start;
	for (size_t i = 0; i < words; i++)
		consider(m, gu_load_relaxed(&p[i]), base_only);
	m->words += words;
}

static void scan_typed_in_place(struct gu_marker *m, uintptr_t object, const struct gcuffd_type *t, size_t from, size_t to)
{
	m->words += to - from;
	if (gu_likely(!t->element && to - 1 < 64)) { /* from < to: the first word of the bitmap says all */
		for (uint64_t which = t->bitmap[0] & ~0ull << from & ~0ull >> (64 - to); which; which &= which - 1)
			consider(m, gu_load_relaxed((const uintptr_t *)object + __builtin_ctzll(which)), m->no_interior);
		return;
	}
	for (size_t i = from, described = gu_type_word(t, from); i < to; i++, described = gu_type_next(t, described))
		if (gu_type_has(t, described))
			consider(m, gu_load_relaxed((const uintptr_t *)object + i), m->no_interior);
}

static const struct gu_summary *summary_of(const struct gu_marker *m, size_t page)
{
	return gu_cold_region(&m->space->cold, page)->summary[page % GU_REGION_PAGES];
}

/* What the page's summary has between at and end. */
static void scan_summary(struct gu_marker *m, const struct gu_summary *s, uintptr_t at, uintptr_t end)
{
	uintptr_t pointers[GU_PAGE_WORDS];
	size_t n = gu_summary_read(m->heap, s, at % GU_PAGE / 8, (end - 1) % GU_PAGE / 8 + 1, pointers);
	for (size_t i = 0; i < n; i++)
		consider(m, pointers[i], m->no_interior);
	m->words += n;
}

/* The page's contents, into the buffer. */
static int peek(struct gu_marker *m, size_t page)
{
	struct gu_cold *c = &m->space->cold;
	int err = gu_cold_get(c, gu_cold_region(c, page)->slot[page % GU_REGION_PAGES], m->buffer);
	gu_add_relaxed(&c->counts.peeked, 1);
	return err;
}

/* Of an object that begins elsewhere, maybe on a page that is out (.inv.mark.outside). */
static void scan_at(struct gu_marker *m, uintptr_t at, uintptr_t end, uintptr_t object, const struct gcuffd_type *t, uintptr_t delta)
{
	if (t)
		scan_typed_in_place(m, object + delta, t, (at - object) / 8, (end - object) / 8);
	else
		scan_words(m, at + delta, (end - at) / 8, m->no_interior);
}

/*
 * What the page has is in the store no more. So that it can't come back by a later read that is luckier, with pointers that nobody followed, it is
 * poisoned (.inv.summary.filed); if it came back meanwhile, it is read in place.
 */
static void scan_damaged(struct gu_marker *m, size_t page, uintptr_t at, uintptr_t end, uintptr_t object, const struct gcuffd_type *t)
{
	struct gu_cold *c = &m->space->cold;
	struct gu_cold_region *r = gu_cold_region(c, page);
	gu_lock(&r->lock);
	enum gu_cold_state state = gu_load_relaxed(&r->state[page % GU_REGION_PAGES]);
	if (state == GU_COLD_EVICTED)
		gu_cold_set_poisoned_locked(c, r, page);
	gu_unlock(&r->lock);
	if (state == GU_COLD_LIVE)
		scan_at(m, at, end, object, t, 0);
}

static void scan_evicted(struct gu_marker *m, size_t page, uintptr_t at, uintptr_t end, uintptr_t object, const struct gcuffd_type *t)
{
	const struct gu_summary *s = summary_of(m, page);
	bool filed = gu_cold_pack(s);
	if (filed && m->at_hand != page) {
		gu_later_note(m, page);
		return;
	}
	s = filed ? m->summary : s;
	int err = s == GU_COLD_PEEK ? peek(m, page) : 0;
	if (s != GU_COLD_PEEK)
		scan_summary(m, s, at, end);
	else if (!err)
		scan_at(m, at, end, object, t, (uintptr_t)m->buffer - gu_space_address(m->space, page));
	else if (err == -EBADMSG)
		scan_damaged(m, page, at, end, object, t);
	else if (gu_cold_state(&m->space->cold, page) != GU_COLD_POISONED) /* the file may be read again some day */
		gu_mark_unreadable(m->heap);
}

/*
 * Words from at to before end, all on one page, wherever that is; of an object of type t, if it is typed. No lock: what a page has in park, store and
 * summary stays while marking goes on (.inv.cold.leftover), and one that comes back meanwhile is written (.inv.mark.before-fields).
 */
static void scan_part(struct gu_marker *m, uintptr_t at, uintptr_t end, uintptr_t object, const struct gcuffd_type *t)
{
	const struct gu_cold *c = &m->space->cold;
	size_t page = (at - m->base) >> GU_PAGE_SHIFT;
	enum gu_cold_state state = gu_cold_is_out(c, page) ? gu_cold_state(c, page) : GU_COLD_LIVE;
	if (state == GU_COLD_EVICTED || state == GU_COLD_POISONED)
		scan_evicted(m, page, at, end, object, t);
	else
		scan_at(m, at, end, object, t, state == GU_COLD_PARKED ? c->park - m->base : 0);
}

static bool has_pages_out(const struct gu_marker *m) { return gu_unlikely(gu_load_acquire(&m->space->cold.nout)); }

static void scan_parts(struct gu_marker *m, uintptr_t at, uintptr_t end, uintptr_t object, const struct gcuffd_type *t)
{
	for (uintptr_t next; at < end; at = next) {
		next = gu_min(gu_align_down(at, GU_PAGE) + GU_PAGE, end);
		scan_part(m, at, next, object, t);
	}
}

/* Words of an object from at to before end, on any pages. */
static void scan_object(struct gu_marker *m, uintptr_t at, uintptr_t end, uintptr_t object, const struct gcuffd_type *t)
{
	if (has_pages_out(m))
		scan_parts(m, at, end, object, t);
	else
		scan_at(m, at, end, object, t, 0);
}

static const struct gcuffd_type *type_at(const struct gu_marker *m, uint32_t index)
{
	return gu_load_acquire(&m->heap->types[index]); /* pairs with gcuffd_type_create() */
}

struct sparse {
	struct gu_marker *m;
	uintptr_t object;
	const struct gcuffd_type *type;
};

static void scan_populated(void *data, uintptr_t start, uintptr_t end)
{
	const struct sparse *s = data;
	scan_at(s->m, start, end, s->object, s->type, 0);
}

/* The object begins at a page, and so does each such piece. */
static bool scan_sparse(struct gu_marker *m, struct gu_gray g, uintptr_t object, const struct gcuffd_type *t)
{
	struct sparse s = {m, object, t};
	uintptr_t end = g.addr + SPARSE_WORDS * 8;
	for (uintptr_t at = g.addr; m->space->cold.on && at < end; at += GU_PAGE) /* before those in place: they may come back */
		if (gu_cold_is_on_its_way(&m->space->cold, (at - m->base) >> GU_PAGE_SHIFT))
			scan_part(m, at, at + GU_PAGE, object, t);
	if (!gu_track_present(m->heap, g.addr, end, false, scan_populated, &s))
		return false;
	gu_marker_push(m, (struct gu_gray){end, g.words - SPARSE_WORDS, piece_of(g.type)});
	return true;
}

/* ---- pages ---- */

/* Cells of the group that are objects: marked, not freed, not merely set aside for the block's owner. */
static uint64_t object_cells(const struct gu_block *b, uint32_t g)
{
	uint64_t cells = gu_load_relaxed(&b->bits[g].mark) & gu_load_relaxed(&b->bits[g].start) & ~gu_load_relaxed(&b->bits[g].freed);
	return cells & ~gu_run_ahead(b, g);
}

static void scan_cell_part(struct gu_marker *m, const struct gu_block *b, uint32_t cell, uintptr_t lo, uintptr_t hi)
{
	uintptr_t object = gu_block_cell_addr(b, cell);
	const struct gcuffd_type *t = b->kind == GCUFFD_TYPED ? type_at(m, b->types[cell]) : NULL;
	lo = gu_max(lo, object);
	hi = gu_min(hi, object + b->cell);
	if (t)
		hi = object + gu_type_end(t, (hi - object) / 8) * 8;
	if (lo < hi)
		scan_object(m, lo, hi, object, t);
}

/* What is found from here to the end is not the object itself. */
static void begin_source(struct gu_marker *m, uintptr_t object)
{
	gu_marker_flush(m);
	m->source = object;
}

static void end_source(struct gu_marker *m) { begin_source(m, 0); }

/* Objects whose fields were to be scanned, and are not marked. */
static void scan_unmarked_cells(struct gu_marker *m, const struct gu_block *b, uint32_t g, uint64_t which, uintptr_t lo, uintptr_t hi)
{
	for (uint64_t cells = gu_final_cells(m->heap, b, g) & which; cells; cells &= cells - 1) {
		uint32_t cell = g * 64 + (uint32_t)__builtin_ctzll(cells);
		begin_source(m, gu_block_cell_addr(b, cell));
		scan_cell_part(m, b, cell, lo, hi);
		end_source(m);
	}
}

void gu_mark_page(struct gu_marker *m, size_t page)
{
	uintptr_t lo = m->base + (page << GU_PAGE_SHIFT), hi = lo + GU_PAGE;
	const struct gu_block *b = gu_block_at(m->space, lo);
	uint32_t first, last;
	uint64_t before = m->words;
	if (!b || !b->scanned || gu_load_acquire(&b->state) == GU_BLOCK_FREE || !gu_block_cell(b, lo, &first))
		return;
	if (!gu_block_cell(b, hi - 1, &last))
		last = b->ncells - 1;
	for (uint32_t g = first >> 6; g <= last >> 6; g++) {
		uint64_t which = ~0ull;
		if (g == first >> 6)
			which &= ~0ull << (first & 63);
		if (g == last >> 6)
			which &= ~0ull >> (63 - (last & 63));
		for (uint64_t cells = object_cells(b, g) & which; cells; cells &= cells - 1)
			scan_cell_part(m, b, g * 64 + (uint32_t)__builtin_ctzll(cells), lo, hi);
		if (gu_unlikely(gu_load_relaxed(&b->final)))
			scan_unmarked_cells(m, b, g, which, lo, hi);
	}
	if (gu_load_relaxed(&b->state) == GU_BLOCK_CURRENT)
		m->block_words += m->words - before;
}

/* Cards are cleared before what lies on their pages is read. */
static void scan_cards(struct gu_marker *m, size_t word)
{
	uint64_t before = m->words, cards = gu_swap_seqcst(&m->space->cards[word], 0);
	for (; cards; cards &= cards - 1)
		gu_mark_page(m, word * 64 + (size_t)__builtin_ctzll(cards));
	m->card_words += m->words - before;
}

/* ---- gray objects ---- */

/* Only large objects are cut, and their blocks have one. */
static uintptr_t object_of(const struct gu_marker *m, struct gu_gray g)
{
	return g.type & GU_GRAY_PIECE ? m->blocks[gu_load_relaxed(&m->block_of[(g.addr - m->base) >> GU_PAGE_SHIFT])].start : g.addr;
}

static inline __attribute__((always_inline)) void scan_some(struct gu_marker *m, struct gu_gray g, uintptr_t object, const struct gcuffd_type *t)
{
	size_t from = (g.addr - object) / 8;
	if (t)
		g.words = (uint32_t)(gu_max(gu_type_end(t, from + g.words), from) - from);
	if (!g.words || (gu_unlikely(g.words > SPARSE_WORDS) && scan_sparse(m, g, object, t)))
		return;
	if (g.words > PIECE_WORDS) {
		gu_marker_push(m, (struct gu_gray){g.addr + PIECE_WORDS * 8, g.words - PIECE_WORDS, piece_of(g.type)});
		g.words = PIECE_WORDS;
	}
	scan_object(m, g.addr, g.addr + g.words * 8, object, t);
}

static __attribute__((noinline)) void scan_gray_object(struct gu_marker *m, struct gu_gray g)
{
	scan_some(m, g, object_of(m, g), g.type ? type_at(m, (g.type & ~GU_GRAY_PIECE) - 1) : NULL);
}

/* .inv.final.order */
static void scan_fields(struct gu_marker *m, struct gu_gray g)
{
	const struct gu_block *b = gu_block_at(m->space, g.addr);
	uint32_t cell;
	if (!b || !gu_block_cell(b, g.addr, &cell))
		return;
	begin_source(m, gu_block_cell_addr(b, cell));
	scan_some(m, g, gu_block_cell_addr(b, cell), b->kind == GCUFFD_TYPED ? type_at(m, b->types[cell]) : NULL);
	end_source(m);
}

static __attribute__((noinline)) void scan_other(struct gu_marker *m, struct gu_gray g)
{
	if (g.type == GU_GRAY_CARDS)
		scan_cards(m, g.addr);
	else if (g.type == GU_GRAY_LATER)
		gu_later_scan(m, g.addr, g.words);
	else if (g.type == GU_GRAY_VALUES)
		gu_weak_mark_values(m->heap, m, g.addr);
	else if (g.type == GU_GRAY_FINALS)
		gu_final_scan(m, g.addr, g.words);
	else
		scan_fields(m, g);
}

static void scan_gray(struct gu_marker *m, struct gu_gray g)
{
	if (gu_likely(!g.type && g.words <= PIECE_WORDS && !has_pages_out(m)))
		scan_words(m, g.addr, g.words, m->no_interior);
	else if (gu_unlikely(g.type >= GU_GRAY_FIELDS))
		scan_other(m, g);
	else
		scan_gray_object(m, g);
}

/* ---- what is scanned next ---- */

static bool waits_ahead(struct gu_gray g) { return g.type < GU_GRAY_FIELDS && g.words <= PIECE_WORDS; }

/* Where the first words are: in place or in the park; or the head of the page's summary. */
static __attribute__((noinline)) void fetch_wherever(const struct gu_marker *m, uintptr_t at)
{
	const struct gu_cold *c = &m->space->cold;
	size_t page = (at - m->base) >> GU_PAGE_SHIFT;
	enum gu_cold_state state = gu_cold_is_out(c, page) ? gu_cold_state(c, page) : GU_COLD_LIVE;
	if (state == GU_COLD_EVICTED)
		__builtin_prefetch(summary_of(m, page));
	else
		__builtin_prefetch((const void *)(state == GU_COLD_PARKED ? c->park + (at - m->base) : at));
}

static inline void fetch(const struct gu_marker *m, uintptr_t at)
{
	if (has_pages_out(m))
		fetch_wherever(m, at);
	else
		__builtin_prefetch((const void *)at);
}

/* When the summary's head has had time to come: where in it the object's pointers are. */
static __attribute__((noinline)) void fetch_pointers(const struct gu_marker *m, uintptr_t at)
{
	const struct gu_cold *c = &m->space->cold;
	size_t page = (at - m->base) >> GU_PAGE_SHIFT;
	if (!gu_cold_is_out(c, page) || gu_cold_state(c, page) != GU_COLD_EVICTED)
		return;
	const struct gu_summary *s = summary_of(m, page);
	if (s && s != GU_COLD_PEEK && !gu_cold_pack(s))
		gu_summary_fetch(s, at % GU_PAGE / 8);
}

/* A stack's top is what was pushed last, but a good part of what is on it was pushed long ago: so what is popped waits until it is in the cache. */
static inline bool next_gray(struct gu_marker *m, struct gu_gray *g)
{
	for (; m->depth && m->nahead < GU_AHEAD; m->nahead++) {
		struct gu_gray top = m->stack[--m->depth];
		if (gu_unlikely(!waits_ahead(top))) {
			*g = top;
			return true;
		}
		fetch(m, top.addr);
		m->ahead[(m->ahead_at + m->nahead) % GU_AHEAD] = top;
	}
	if (!m->nahead)
		return false;
	*g = m->ahead[m->ahead_at++ % GU_AHEAD];
	m->nahead--;
	if (has_pages_out(m) && m->nahead > GU_AHEAD / 2)
		fetch_pointers(m, m->ahead[(m->ahead_at + GU_AHEAD / 2) % GU_AHEAD].addr);
	return true;
}

void gu_marker_run(struct gu_marker *m)
{
	struct gu_gray next;
	do {
		while (next_gray(m, &next)) {
			scan_gray(m, next);
			if (gu_unlikely(m->depth > SHARE_DEPTH) && gu_load_relaxed(&m->heap->mark->waiting))
				gu_marker_share(m);
		}
	} while (settle_oldest(m));
}

/* ---- roots, and which pages ---- */

void gu_mark_word(struct gu_marker *m, uintptr_t word, bool outside) { consider(m, word, !outside && m->no_interior); }

void gu_mark_range(struct gu_marker *m, uintptr_t start, uintptr_t end)
{
	start = gu_align_up(start, 8);
	if (end > start)
		scan_words(m, start, (end - start) / 8, false);
}

uintptr_t gu_mark_readable(struct gu_marker *m, uintptr_t start, uintptr_t end)
{
	uintptr_t at = gu_align_up(start, 8);
	if (!gu_caps()->has_process_vm_readv) { /* a seccomp filter: trust the map */
		gu_mark_range(m, at, end);
		return end;
	}
	while (at < end) {
		long got = gu_os->process_vm_readv(gu_os->gettid(), m->buffer, (const void *)at, gu_min(end - at, BUFFER));
		if (got < 0 && got != -EFAULT) { /* a filter that came later, or no memory: not a word about the range */
			gu_mark_unreadable(m->heap);
			return end;
		}
		if (got < 8)
			return at;
		scan_words(m, (uintptr_t)m->buffer, (size_t)got / 8, false);
		at += (size_t)got & ~(size_t)7;
	}
	return end;
}

/* What can't be read is gone, or was not readable: the next page may be. */
void gu_mark_foreign(struct gu_marker *m, uintptr_t start, uintptr_t end)
{
	for (uintptr_t at = start; (at = gu_mark_readable(m, at, end)) < end;)
		at = gu_align_down(at, GU_PAGE) + GU_PAGE;
}

/* Only pushed here: where many pages were written, all who mark in a drain take their share. */
size_t gu_mark_cards(struct gcuffd_heap *h, struct gu_marker *m)
{
	size_t n = 0, words = (gu_load_acquire(&h->space.top) >> GU_PAGE_SHIFT) / 64;
	for (size_t i = 0; i < words; i++) {
		uint64_t cards = gu_load_relaxed(&h->space.cards[i]);
		if (!cards)
			continue;
		gu_marker_push(m, (struct gu_gray){i, 0, GU_GRAY_CARDS});
		n += (size_t)__builtin_popcountll(cards);
	}
	return n;
}

/* ---- set-up ---- */

static int init_marker(struct gcuffd_heap *h, struct gu_marker *m)
{
	m->heap = h;
	m->space = &h->space;
	m->base = h->space.base;
	m->block_of = h->space.block_of;
	m->blocks = h->space.blocks;
	m->no_interior = gu_heap_is(h, GCUFFD_NO_INTERIOR);
	m->stack = gu_meta_map(GU_STACK * sizeof(struct gu_gray));
	m->buffer = gu_meta_map(BUFFER);
	m->at_hand = SIZE_MAX;
	int err = gu_pack_reader_init(&m->packs);
	return !err && m->stack && m->buffer ? 0 : -1;
}

int gu_mark_create(struct gcuffd_heap *h, unsigned n)
{
	struct gu_mark *mark = gu_meta_map(gu_align_up(sizeof(*mark), GU_PAGE));
	if (!mark)
		return -1;
	h->mark = mark;
	mark->n = n;
	mark->allowed = mark->background = 1;
	gu_lock_init(&mark->lock, GU_RANK_MARK);
	for (unsigned i = 0; i < n; i++)
		if (init_marker(h, &mark->markers[i])) {
			gu_mark_destroy(h);
			return -1;
		}
	return 0;
}

void gu_mark_destroy(struct gcuffd_heap *h)
{
	struct gu_mark *mark = h->mark;
	if (!mark)
		return;
	for (unsigned i = 0; i < mark->n; i++) {
		gu_meta_unmap(mark->markers[i].stack, GU_STACK * sizeof(struct gu_gray));
		gu_meta_unmap(mark->markers[i].buffer, BUFFER);
		gu_pack_reader_destroy(&mark->markers[i].packs);
	}
	gu_mark_trim(h);
	gu_meta_unmap(mark, gu_align_up(sizeof(*mark), GU_PAGE));
	h->mark = NULL;
}

size_t gu_mark_memory(const struct gcuffd_heap *h)
{
	return h->mark->n * (GU_STACK * sizeof(struct gu_gray) + BUFFER + gu_pack_reader_memory()) + gu_load_relaxed(&h->mark->packet_bytes);
}

struct gu_marker *gu_mark_first(struct gcuffd_heap *h) { return &h->mark->markers[0]; }

void gu_mark_clear(struct gcuffd_heap *h)
{
	struct gu_mark *mark = h->mark;
	for (uint32_t i = 1; i <= gu_block_count(&h->space); i++) {
		struct gu_block *b = &h->space.blocks[i];
		if (gu_load_acquire(&b->state) != GU_BLOCK_FREE)
			for (uint32_t g = 0; g < gu_block_groups(b); g++)
				gu_store_relaxed(&b->bits[g].mark, 0);
	}
	for (unsigned i = 0; i < mark->n; i++) {
		struct gu_marker *m = &mark->markers[i];
		m->bytes = m->objects = m->words = m->card_words = m->block_words = 0;
		m->queued = m->found = m->settled = 0;
		m->far = gu_block_count(&h->space) > NEAR_BLOCKS;
		gu_pack_reader_reset(&m->packs);
	}
	gu_later_clear(h);
	mark->bytes_in_stop = 0;
	mark->unreadable = 0;
}

void gu_mark_cards_drop(struct gcuffd_heap *h)
{
	size_t n = (gu_load_acquire(&h->space.top) >> GU_PAGE_SHIFT) / 64;
	for (size_t i = 0; i < n; i++)
		if (gu_load_relaxed(&h->space.cards[i]))
			gu_store_relaxed(&h->space.cards[i], 0);
}

void gu_mark_ahead(struct gcuffd_heap *h)
{
	for (uint32_t i = 1; i <= gu_block_count(&h->space); i++) {
		struct gu_block *b = &h->space.blocks[i];
		const struct gu_run *owner = gu_load_acquire(&b->owner);
		if (gu_load_acquire(&b->state) == GU_BLOCK_CURRENT && owner && owner->block == b && owner->mask)
			gu_or_seqcst(&b->bits[owner->group].mark, owner->mask);
	}
	for (unsigned i = 0; i < h->mark->n; i++) /* above it everything is black */
		h->mark->markers[i].top = gu_load_acquire(&h->space.top);
}

void gu_mark_unreadable(struct gcuffd_heap *h) { gu_store_relaxed(&h->mark->unreadable, 1); }
bool gu_mark_complete(const struct gcuffd_heap *h) { return !gu_load_relaxed(&h->mark->unreadable); }

void gu_mark_counts(struct gcuffd_heap *h, struct gu_mark_counts *c)
{
	memset(c, 0, sizeof(*c));
	for (unsigned i = 0; i < h->mark->n; i++) {
		c->bytes += h->mark->markers[i].bytes;
		c->objects += h->mark->markers[i].objects;
		c->words += h->mark->markers[i].words;
		c->card_words += h->mark->markers[i].card_words;
		c->block_words += h->mark->markers[i].block_words;
	}
	c->bytes_in_stop = h->mark->bytes_in_stop;
}
