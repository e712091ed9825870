/* SPDX-License-Identifier: MIT */
/* space.c - taking regions, and accounting for pages. Any thread, inside a no-stop section. */
#define _GNU_SOURCE
#include "space/space.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "base/meta.h"
#include "base/own.h"
#include "base/without.h"
#include "space/ahead.h"
#include "space/block.h"
#include "sys/os.h"

#define COMMIT_STEP ((size_t)64 << 20)

static size_t pages_of(const struct gu_space *s) { return s->size >> GU_PAGE_SHIFT; }
static size_t cards_len(const struct gu_space *s) { return gu_align_up(pages_of(s) / 8, GU_PAGE); }
static size_t region_len(const struct gu_space *s) { return gu_align_up(s->size / GU_REGION, GU_PAGE); }
static size_t blocks_len(const struct gu_space *s)
{
	return gu_align_up(s->blocks_max * sizeof(struct gu_block), GU_PAGE);
}

#define HEAPS_LOW ((uintptr_t)0x20 << 40)
#define HEAPS_LEN ((uintptr_t)0x0a << 40) /* libraries are above, even in the legacy layout */
#define PLACES 64u

/*
 * Where nothing else is put: programs, heaps by brk, libraries and stacks lie above, and where they lie is random. So the addresses of an image are free in the
 * process that loads it. Random as well, from where the stack is, but once: what comes after a heap takes its place, of which jemalloc has tables.
 */
static uintptr_t heaps_begin(void)
{
	static uintptr_t begin; /* atomic; set once, or to the like */
	uint64_t here = (uintptr_t)&here, random = (here ^ here >> 21) * 0x9e3779b97f4a7c15u;
	if (!gu_load_relaxed(&begin))
		gu_store_relaxed(&begin, HEAPS_LOW + ((random ^ random >> 32) * 0xbf58476d1ce4e5b9u >> 8) % (HEAPS_LEN / 2) / GU_REGION * GU_REGION);
	return gu_load_relaxed(&begin);
}

/* In the first place that is free, which is where the kernel gives the hint. */
static void *map_in_a_place(size_t len)
{
#ifndef __SANITIZE_THREAD__ /* which has its own memory there */
	void *p;
	for (unsigned i = 0; i < PLACES && (i + 1) * len <= HEAPS_LEN / 2; i++) {
		void *hint = (void *)(heaps_begin() + i * len);
		if (gu_os->mmap(hint, len, PROT_NONE, MAP_NORESERVE, &p))
			return NULL;
		if (p == hint)
			return p;
		gu_os->munmap(p, len);
	}
#endif
	return NULL;
}

static void *map_aligned(size_t len)
{
	void *p;
	if (gu_os->mmap(NULL, len + GU_REGION, PROT_NONE, MAP_NORESERVE, &p))
		return NULL;
	uintptr_t raw = (uintptr_t)p, low = gu_align_up(raw, GU_REGION);
	if (low > raw)
		gu_os->munmap(p, low - raw);
	if (raw + GU_REGION > low)
		gu_os->munmap((void *)(low + len), raw + GU_REGION - low);
	return (void *)low;
}

/*
 * A region below the base is never used: the list of own mappings lies in a data segment, and the address there
 * would keep the heap's first object alive.
 */
static int reserve_heap(struct gu_space *s)
{
	size_t len = s->size + GU_REGION;
	void *p = map_in_a_place(len);
	uintptr_t low = (uintptr_t)(p ? p : map_aligned(len));
	if (!low)
		return -ENOMEM;
	if (!gu_own_add(low, len)) {
		gu_os->munmap((void *)low, len);
		return -ENOMEM;
	}
	(void)gu_os->madvise((void *)low, len, MADV_NOHUGEPAGE); /* but for regions from huge_from on */
	s->base = low + GU_REGION;
	return 0;
}

/* An old kernel takes the address for a hint. */
int gu_space_hold(uintptr_t base, size_t size)
{
	uintptr_t low = base - GU_REGION;
	size_t len = size + GU_REGION;
	void *p;
	int err = gu_os->mmap((void *)low, len, PROT_NONE, MAP_NORESERVE | MAP_FIXED_NOREPLACE, &p);
	if (!err && (uintptr_t)p != low) {
		gu_os->munmap(p, len);
		err = -EEXIST;
	}
	return err && err != -EEXIST ? -ENOMEM : err;
}

void gu_space_unhold(uintptr_t base, size_t size) { gu_os->munmap((void *)(base - GU_REGION), size + GU_REGION); }

static int take_held(struct gu_space *s, uintptr_t base)
{
	if (!gu_own_add(base - GU_REGION, s->size + GU_REGION)) {
		gu_space_unhold(base, s->size);
		return -ENOMEM;
	}
	(void)gu_os->madvise((void *)(base - GU_REGION), s->size + GU_REGION, MADV_NOHUGEPAGE);
	s->base = base;
	return 0;
}

static int reserve_tables(struct gu_space *s)
{
	s->block_of = gu_meta_reserve(pages_of(s) * sizeof(uint32_t));
	s->state = gu_meta_reserve(pages_of(s));
	s->cards = gu_meta_reserve(cards_len(s));
	s->region = gu_meta_reserve(region_len(s));
	s->blocks = gu_meta_reserve(blocks_len(s));
	if (!s->block_of || !s->state || !s->cards || !s->region || !s->blocks)
		return -ENOMEM;
	return gu_meta_commit(s->region, region_len(s)) ? -ENOMEM : 0;
}

int gu_space_init(struct gu_space *s, size_t size, size_t limit, bool huge) { return gu_space_init_at(s, 0, size, limit, huge); }

int gu_space_init_at(struct gu_space *s, uintptr_t base, size_t size, size_t limit, bool huge)
{
	memset(s, 0, sizeof(*s));
	s->size = gu_align_up(size, GU_REGION);
	s->limit = limit;
	s->huge_from = huge ? 16 * GU_REGION : SIZE_MAX;
	s->blocks_max = (uint32_t)gu_min(pages_of(s), UINT32_MAX);
	gu_lock_init(&s->lock, GU_RANK_SPACE);
	gu_lock_init(&s->commit_lock, GU_RANK_COMMIT);
	gu_lock_init(&s->ahead.lock, GU_RANK_WAIT);
	gu_lock_init(&s->pages.lock, GU_RANK_PAGES);
	int err = base ? take_held(s, base) : reserve_heap(s);
	if (!err)
		err = reserve_tables(s);
	if (err)
		gu_space_destroy(s);
	return err;
}

static void drop_table(void *table, size_t len)
{
	if (table)
		gu_meta_unreserve(table, len);
}

void gu_space_destroy(struct gu_space *s)
{
	gu_block_drop_all(s);
	gu_pages_destroy(s);
	gu_cold_destroy(s);
	drop_table(s->block_of, pages_of(s) * sizeof(uint32_t));
	drop_table(s->state, pages_of(s));
	drop_table(s->cards, cards_len(s));
	drop_table(s->region, region_len(s));
	drop_table(s->blocks, blocks_len(s));
	if (s->base) {
		gu_own_remove(s->base - GU_REGION, s->size + GU_REGION);
		gu_os->munmap((void *)(s->base - GU_REGION), s->size + GU_REGION);
	}
	memset(s, 0, sizeof(*s));
}

/* The part of a table that describes pages [from, to) of the heap; a region's part may share pages with its neighbours. */
static int commit_part(void *table, size_t from, size_t to, size_t *added)
{
	uintptr_t lo = gu_align_down((uintptr_t)table + from, GU_PAGE);
	uintptr_t hi = gu_align_up((uintptr_t)table + to, GU_PAGE);
	*added += to - from;
	return gu_meta_commit((void *)lo, hi - lo);
}

static int commit_regions(struct gu_space *s, size_t from, size_t to)
{
	size_t p0 = from >> GU_PAGE_SHIFT, p1 = to >> GU_PAGE_SHIFT, added = 0;
	if (commit_part(s->block_of, p0 * 4, p1 * 4, &added) || commit_part(s->state, p0, p1, &added) ||
	    commit_part(s->cards, p0 / 8, p1 / 8, &added))
		return -ENOMEM;
	if (gu_os->mprotect((void *)(s->base + from), to - from, PROT_READ | PROT_WRITE))
		return -ENOMEM;
	gu_add_relaxed(&s->tables, added);
	if (from >= s->huge_from && !gu_os->madvise((void *)(s->base + from), to - from, MADV_HUGEPAGE))
		for (size_t r = from / GU_REGION; r < to / GU_REGION; r++)
			gu_or_relaxed(&s->region[r], GU_REGION_HUGE);
	return 0;
}

/* Up to huge_from exactly, for what begins there is advised otherwise. */
static int commit_to(struct gu_space *s, size_t to)
{
	int err = 0;
	gu_lock(&s->commit_lock);
	size_t from = s->committed, huge = s->huge_from;
	if (from < huge && to > huge && !(err = commit_regions(s, from, huge)))
		gu_store_release(&s->committed, from = huge);
	if (to > from && !err && !(err = commit_regions(s, from, to)))
		gu_store_release(&s->committed, to); /* pairs with gu_space_take() */
	gu_unlock(&s->commit_lock);
	return err;
}

/* In steps: each one waits for whoever holds the address space's lock. */
static size_t step_beyond(const struct gu_space *s, size_t to)
{
	size_t step = s->without & GU_WITHOUT_ahead ? 0 : gu_align_down(gu_min(to / 8, COMMIT_STEP), GU_REGION);
	return gu_min(to + step, s->size);
}

int gu_space_commit_ahead(struct gu_space *s)
{
	size_t top = gu_load_acquire(&s->top), step = step_beyond(s, top) - top;
	return gu_load_acquire(&s->committed) < top + step / 2 ? commit_to(s, top + step) : 0;
}

/* 0, -ENOMEM if it does not fit, -EAGAIN if it has to be made writable up to *to first. */
static int take_committed(struct gu_space *s, size_t len, size_t align, uintptr_t *start, size_t *to)
{
	int err = -ENOMEM;
	gu_lock(&s->lock);
	size_t from = gu_align_up(s->base + gu_load_relaxed(&s->top), gu_max(align, GU_REGION)) - s->base;
	if (len <= s->size && from <= s->size - gu_align_up(len, GU_REGION)) {
		*to = from + gu_align_up(len, GU_REGION);
		err = *to <= gu_load_acquire(&s->committed) ? 0 : -EAGAIN;
	}
	if (!err) {
		gu_store_release(&s->top, *to);
		*start = s->base + from;
	}
	gu_unlock(&s->lock);
	return err;
}

int gu_space_take(struct gu_space *s, size_t len, size_t align, uintptr_t *start)
{
	size_t to;
	int err;
	while ((err = take_committed(s, len, align, start, &to)) == -EAGAIN)
		if (commit_to(s, step_beyond(s, to)) && commit_to(s, to))
			return -ENOMEM;
	return err;
}

int gu_space_load(struct gu_space *s, size_t len)
{
	if (s->huge_from != SIZE_MAX)
		s->huge_from = gu_max(s->huge_from, len);
	int err = commit_to(s, len);
	if (!err)
		s->top = s->loaded = len;
	return err;
}

static size_t count_absent(const struct gu_space *s, size_t p0, size_t p1)
{
	size_t n = 0;
	for (size_t p = p0; p < p1; p++)
		n += !(s->state[p] & GU_PAGE_RESIDENT);
	return n;
}

static bool over_limit(struct gu_space *s, size_t bytes)
{
	return s->limit && bytes && gu_space_resident(s) + bytes > s->limit;
}

/* Never above the limit, not even for a moment. */
static bool account(struct gu_space *s, size_t bytes)
{
	size_t was = gu_load_relaxed(&s->resident);
	do {
		if (s->limit && bytes && was + gu_load_relaxed(&s->tables) + gu_load_relaxed(&s->foreign) + bytes > s->limit)
			return false;
	} while (!gu_cas_seqcst(&s->resident, &was, was + bytes));
	return true;
}

/* The first touch of a huge region brings in all of it. */
static int fault_region_locked(struct gu_space *s, size_t r, uint8_t flags)
{
	size_t p0 = r * (GU_REGION / GU_PAGE), p1 = p0 + GU_REGION / GU_PAGE;
	size_t bytes = count_absent(s, p0, p1) << GU_PAGE_SHIFT;
	if (over_limit(s, bytes))
		return -ENOMEM;
	for (size_t p = p0; p < p1; p++)
		s->state[p] |= GU_PAGE_RESIDENT;
	gu_add_relaxed(&s->resident, bytes);
	gu_or_seqcst(&s->region[r], flags); /* publishes the state bytes */
	return 0;
}

static int enter_region(struct gu_space *s, size_t r)
{
	int err = 0;
	gu_lock(&s->lock);
	uint8_t was = gu_load_relaxed(&s->region[r]);
	if (!(was & GU_REGION_FAULTED))
		err = fault_region_locked(s, r, GU_REGION_FAULTED);
	if (!err)
		gu_or_seqcst(&s->region[r], GU_REGION_ENTERED);
	gu_unlock(&s->lock);
	if (!err && !(was & GU_REGION_ENTERED))
		gu_ahead_ring(s, r + 1);
	return err;
}

static int enter_huge(struct gu_space *s, size_t p0, size_t p1)
{
	int err = 0;
	for (size_t r = p0 >> 9; r <= (p1 - 1) >> 9 && !err; r++)
		if ((gu_load_acquire(&s->region[r]) & (GU_REGION_HUGE | GU_REGION_ENTERED)) == GU_REGION_HUGE)
			err = enter_region(s, r);
	return err;
}

bool gu_space_fill_begin(struct gu_space *s, size_t r)
{
	gu_lock(&s->lock);
	bool fill = gu_load_relaxed(&s->region[r]) == GU_REGION_HUGE &&
		    !fault_region_locked(s, r, GU_REGION_FAULTED | GU_REGION_FILLING);
	gu_unlock(&s->lock);
	return fill;
}

void gu_space_fill_end(struct gu_space *s, size_t r) { gu_and_seqcst(&s->region[r], (uint8_t)~GU_REGION_FILLING); }

int gu_space_use(struct gu_space *s, uintptr_t start, size_t len, bool *fresh)
{
	size_t p0 = gu_space_page(s, start), p1 = p0 + (len >> GU_PAGE_SHIFT);
	if (enter_huge(s, p0, p1))
		return -ENOMEM;
	size_t bytes = count_absent(s, p0, p1) << GU_PAGE_SHIFT;
	if (!account(s, bytes))
		return -ENOMEM;
	uint8_t any = 0;
	for (size_t p = p0; p < p1; p++) {
		any |= s->state[p];
		s->state[p] = (s->state[p] & GU_PAGE_SOFT) | GU_PAGE_RESIDENT | GU_PAGE_USED;
	}
	*fresh = !(any & GU_PAGE_USED) && !(s->without & GU_WITHOUT_zeroed);
	return 0;
}

/* Pages that were all along may have soft bits, and their bytes other writers. */
int gu_space_reuse(struct gu_space *s, uintptr_t start, size_t len)
{
	size_t p0 = gu_space_page(s, start), p1 = p0 + (len >> GU_PAGE_SHIFT);
	if (!account(s, count_absent(s, p0, p1) << GU_PAGE_SHIFT))
		return -ENOMEM;
	for (size_t p = p0; p < p1; p++)
		if (!(s->state[p] & GU_PAGE_RESIDENT))
			s->state[p] |= GU_PAGE_RESIDENT | GU_PAGE_USED;
	return 0;
}

int gu_space_purge(struct gu_space *s, uintptr_t start, size_t len)
{
	size_t p0 = gu_space_page(s, start), p1 = p0 + (len >> GU_PAGE_SHIFT), bytes = 0;
	if (!gu_pages_may_drop(s, p0, p1)) /* .inv.pages.kept */
		return -EBUSY;
	gu_ahead_settle(s, (p0 + 511) >> 9, p1 >> 9);
	int err = gu_os->madvise((void *)start, len, MADV_DONTNEED);
	if (err)
		return err;
	for (size_t p = p0; p < p1; p++) {
		bytes += s->state[p] & GU_PAGE_RESIDENT ? GU_PAGE : 0;
		s->state[p] &= GU_PAGE_SOFT;
	}
	for (size_t r = (p0 + 511) >> 9; r < p1 >> 9; r++) /* whole regions fault as huge ones again */
		gu_and_relaxed(&s->region[r], (uint8_t)~(GU_REGION_FAULTED | GU_REGION_ENTERED));
	gu_sub_relaxed(&s->resident, bytes);
	return 0;
}

void gu_space_check(struct gu_space *s)
{
	size_t bytes = 0, pages = gu_load_acquire(&s->committed) >> GU_PAGE_SHIFT;
	gu_lock(&s->lock);
	GU_INVARIANT(s->top <= s->committed, ".inv.space.commit");
	for (size_t p = 0; p < pages; p++) {
		GU_INVARIANT(!(s->state[p] & GU_PAGE_USED) || (s->state[p] & GU_PAGE_RESIDENT), ".inv.page.zero");
		bytes += s->state[p] & GU_PAGE_RESIDENT ? GU_PAGE : 0;
	}
	GU_INVARIANT(bytes == gu_load_relaxed(&s->resident), ".inv.page.resident");
	gu_unlock(&s->lock);
	gu_pages_check(s);
	gu_cold_check(s);
}
