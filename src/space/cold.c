/* SPDX-License-Identifier: MIT */
/* cold.c - see cold.h. */
#include "space/cold.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "base/meta.h"
#include "base/own.h"
#include "space/image.h"
#include "space/space.h"
#include "sys/os.h"

static size_t pages_of(const struct gu_space *s) { return s->size >> GU_PAGE_SHIFT; }
static size_t out_len(const struct gu_space *s) { return gu_align_up(pages_of(s) / 8, GU_PAGE); }
static size_t regions_len(const struct gu_space *s) { return gu_align_up(s->size / GU_REGION * sizeof(void *), GU_PAGE); }
static size_t record_len(void) { return gu_align_up(sizeof(struct gu_cold_region), GU_PAGE); }

/* ---- making and ending ---- */

static int reserve_park(struct gu_space *s)
{
	void *p;
	if (gu_os->mmap(NULL, s->size + GU_REGION, PROT_NONE, MAP_NORESERVE, &p))
		return -ENOMEM;
	if (!gu_own_add((uintptr_t)p, s->size + GU_REGION)) {
		gu_os->munmap(p, s->size + GU_REGION);
		return -ENOMEM;
	}
	s->cold.park = gu_align_up((uintptr_t)p, GU_REGION);
	s->cold.mapped = (uintptr_t)p;
	return 0;
}

int gu_cold_init(struct gu_space *s)
{
	struct gu_cold *c = &s->cold;
	c->out = gu_meta_reserve(out_len(s));
	c->later = gu_meta_reserve(out_len(s));
	c->regions = gu_meta_reserve(regions_len(s));
	c->target = SIZE_MAX;
	if (!c->out || !c->later || !c->regions)
		return -ENOMEM;
	if (gu_meta_commit(c->out, out_len(s)) || gu_meta_commit(c->later, out_len(s)) || gu_meta_commit(c->regions, regions_len(s)))
		return -ENOMEM;
	int err = reserve_park(s);
	c->on = !err;
	return err;
}

static void drop_record(struct gu_cold *c, struct gu_cold_region *r)
{
	for (size_t i = 0; i < GU_REGION_PAGES; i++)
		gu_cold_drop_summary(c, r->summary[i]);
	gu_meta_unmap(r, record_len());
}

void gu_cold_destroy(struct gu_space *s)
{
	struct gu_cold *c = &s->cold;
	for (size_t i = 0; c->on && i < s->top / GU_REGION; i++)
		if (c->regions[i])
			drop_record(c, c->regions[i]);
	if (c->out)
		gu_meta_unreserve(c->out, out_len(s));
	if (c->later)
		gu_meta_unreserve(c->later, out_len(s));
	if (c->regions)
		gu_meta_unreserve(c->regions, regions_len(s));
	if (c->mapped) {
		gu_own_remove(c->mapped, s->size + GU_REGION);
		gu_os->munmap((void *)c->mapped, s->size + GU_REGION);
	}
	memset(c, 0, sizeof(*c));
}

struct gu_cold_region *gu_cold_make(struct gu_space *s, size_t region)
{
	struct gu_cold *c = &s->cold;
	struct gu_cold_region *r = gu_load_relaxed(&c->regions[region]);
	if (r)
		return r;
	if (gu_os->mprotect((void *)(c->park + region * GU_REGION), GU_REGION, PROT_READ | PROT_WRITE))
		return NULL;
	r = gu_meta_map(record_len());
	if (!r)
		return NULL;
	gu_lock_init(&r->lock, GU_RANK_COLD);
	gu_add_relaxed(&s->tables, record_len());
	gu_store_release(&c->regions[region], r); /* pairs with gu_cold_region() */
	return r;
}

/* ---- contents ---- */

int gu_cold_get(const struct gu_cold *c, gu_slot slot, void *page)
{
	return gu_image_has(slot) ? gu_image_get(c->image, slot, page) : gu_store_get(c->store, slot, page);
}

void gu_cold_drop(struct gu_cold *c, gu_slot slot)
{
	if (!gu_image_has(slot))
		gu_store_drop(c->store, slot);
}

static void drop_packed(struct gu_cold *c, struct gu_cold_pack *p)
{
	if (--p->left)
		return;
	if (c->store) /* else all of it is gone */
		gu_store_drop(c->store, p->slot);
	gu_slab_free(&c->slab, p);
}

void gu_cold_drop_summary(struct gu_cold *c, struct gu_summary *summary)
{
	if (gu_cold_pack(summary)) {
		drop_packed(c, gu_cold_pack(summary));
		return;
	}
	bool loaded = c->image && (uintptr_t)summary - (uintptr_t)c->image->summaries < c->image->summaries_len;
	if (summary && summary != GU_COLD_PEEK && !loaded)
		gu_slab_free(&c->slab, summary);
}

void gu_cold_count_restored(struct gu_cold *c, enum gu_cold_cause cause, enum gu_cold_state state, gu_slot slot, uint64_t n)
{
	struct gu_cold_counts *counts = &c->counts;
	gu_add_relaxed(&counts->by[cause], n);
	gu_add_relaxed(state == GU_COLD_PARKED ? &counts->from_park : gu_image_has(slot) ? &counts->from_image : &counts->from_store, n);
	gu_add_relaxed(&counts->restored, n);
}

/* ---- bits and states ---- */

bool gu_cold_any_slow(const struct gu_cold *c, size_t from, size_t to)
{
	for (size_t p = from, next; p < to; p = next) {
		next = gu_min((p | 63) + 1, to);
		if (gu_load_acquire(&c->out[p >> 6]) & (~0ull >> (63 - (next - 1) % 64)) & (~0ull << p % 64))
			return true;
	}
	return false;
}

static bool any_filling(const struct gu_cold *c, size_t from, size_t to)
{
	for (size_t p = from; c->on && p < to; p = gu_align_down(p, GU_REGION_PAGES) + GU_REGION_PAGES) {
		const struct gu_cold_region *r = gu_cold_region(c, p);
		size_t filling = r ? gu_load_acquire(&r->filling) : 0, page = gu_align_down(p, GU_REGION_PAGES) + filling - 1;
		if (filling && page >= from && page < to)
			return true;
	}
	return false;
}

/* As gu_cold_is_on_its_way(). */
bool gu_cold_any_on_its_way(const struct gu_cold *c, size_t from, size_t to)
{
	for (uint32_t failures = gu_load_acquire(&c->failures), now;; failures = now) {
		if (gu_cold_any(c, from, to) || any_filling(c, from, to))
			return true;
		now = gu_load_acquire(&c->failures);
		if (now == failures)
			return false;
	}
}

void gu_cold_claim(struct gu_cold *c, size_t page)
{
	uint64_t bit = 1ull << (page & 63);
	if (!(gu_or_seqcst(&c->out[page >> 6], bit) & bit))
		gu_add_seqcst(&c->nout, 1);
}

void gu_cold_unclaim_locked(struct gu_cold *c, size_t page)
{
	gu_and_seqcst(&c->out[page >> 6], ~(1ull << (page & 63)));
	gu_sub_seqcst(&c->nout, 1);
}

void gu_cold_set_parked_locked(struct gu_cold *c, struct gu_cold_region *r, size_t page)
{
	gu_store_release(&r->state[page % GU_REGION_PAGES], GU_COLD_PARKED); /* pairs with gu_cold_state() */
	gu_add_relaxed(&c->parked, 1);
}

void gu_cold_set_evicted_locked(struct gu_cold *c, struct gu_cold_region *r, size_t page, gu_slot slot, struct gu_summary *summary)
{
	size_t i = page % GU_REGION_PAGES;
	r->slot[i] = slot;
	r->summary[i] = summary;
	gu_store_release(&r->state[i], GU_COLD_EVICTED); /* pairs with gu_cold_state() */
	gu_sub_relaxed(&c->parked, 1);
	gu_add_relaxed(&c->counts.evicted, 1);
}

void gu_cold_set_live_locked(struct gu_cold *c, struct gu_cold_region *r, size_t page, enum gu_cold_left why)
{
	size_t i = page % GU_REGION_PAGES;
	if (gu_load_relaxed(&r->state[i]) == GU_COLD_PARKED)
		gu_sub_relaxed(&c->parked, 1);
	gu_store_release(&r->state[i], GU_COLD_LIVE);
	r->left[i] = (uint8_t)why;
	r->leftovers++;
	gu_cold_unclaim_locked(c, page);
	gu_store_relaxed(&c->left, 1);
}

void gu_cold_note_bad(struct gu_cold *c, struct gu_cold_region *r, size_t page)
{
	gu_add_relaxed(&c->counts.poisoned, 1);
	gu_or_seqcst(&r->bad[page % GU_REGION_PAGES / 64], 1ull << (page & 63));
	gu_store_seqcst(&c->bad, 1); /* after its bit: pairs with who clears it, then looks */
}

void gu_cold_set_poisoned_locked(struct gu_cold *c, struct gu_cold_region *r, size_t page)
{
	if (gu_load_relaxed(&r->state[page % GU_REGION_PAGES]) == GU_COLD_POISONED)
		return;
	gu_store_release(&r->state[page % GU_REGION_PAGES], GU_COLD_POISONED);
	gu_cold_note_bad(c, r, page);
}

bool gu_cold_next_bad(struct gu_cold *c, size_t end, size_t *page)
{
	for (size_t p = *page; p < end; p = (p | 63) + 1) {
		struct gu_cold_region *r = gu_cold_region(c, p);
		uint64_t *word = r ? &r->bad[p % GU_REGION_PAGES / 64] : NULL, bits = r ? gu_load_seqcst(word) & ~0ull << (p & 63) : 0;
		if (!bits)
			continue;
		*page = (p & ~(size_t)63) + (size_t)__builtin_ctzll(bits);
		gu_and_seqcst(word, ~(1ull << (*page & 63)));
		return true;
	}
	return false;
}

void gu_cold_set_back_locked(struct gu_cold *c, struct gu_cold_region *r, size_t page, enum gu_cold_state state)
{
	size_t i = page % GU_REGION_PAGES;
	r->left[i] = GU_COLD_NOTHING_LEFT;
	r->leftovers--;
	if (state == GU_COLD_PARKED)
		gu_add_relaxed(&c->parked, 1);
	gu_cold_claim(c, page);
	gu_store_release(&r->state[i], (uint8_t)state);
	gu_add_seqcst(&c->failures, 1); /* after its bit is set, before it is said not to be filled: pairs with gu_cold_is_on_its_way() */
}

void gu_cold_settle(const struct gu_cold *c, size_t from, size_t to)
{
	for (size_t p = from; c->on && p < to; p = gu_align_down(p, GU_REGION_PAGES) + GU_REGION_PAGES) {
		struct gu_cold_region *r = gu_cold_region(c, p);
		if (!r)
			continue;
		gu_lock(&r->lock);
		gu_unlock(&r->lock);
	}
}

int gu_cold_load(struct gu_space *s, size_t page)
{
	struct gu_cold_region *r = gu_cold_make(s, page / GU_REGION_PAGES);
	size_t i = page % GU_REGION_PAGES;
	if (!r)
		return -ENOMEM;
	r->slot[i] = gu_image_slot(page);
	gu_cold_claim(&s->cold, page);
	gu_store_release(&r->state[i], GU_COLD_EVICTED); /* pairs with gu_cold_state() */
	return 0;
}

static void forget_page_locked(struct gu_space *s, struct gu_cold_region *r, size_t page)
{
	struct gu_cold *c = &s->cold;
	enum gu_cold_state state = gu_load_relaxed(&r->state[page % GU_REGION_PAGES]);
	if (state != GU_COLD_LIVE) {
		if (state == GU_COLD_POISONED)
			gu_os->madvise((void *)gu_space_address(s, page), GU_PAGE, MADV_DONTNEED);
		gu_cold_set_live_locked(c, r, page, GU_COLD_DROPPED);
		gu_add_relaxed(&c->counts.dropped, 1);
		s->state[page] &= GU_PAGE_SOFT;
		gu_sub_relaxed(&s->resident, GU_PAGE);
	} else if (gu_cold_is_out(c, page)) { /* claimed: who meant to move it looks again */
		gu_cold_unclaim_locked(c, page);
	}
}

void gu_cold_forget_page(struct gu_space *s, size_t page)
{
	struct gu_cold_region *r = gu_cold_region(&s->cold, page);
	gu_lock(&r->lock);
	forget_page_locked(s, r, page);
	gu_unlock(&r->lock);
}

/* With the lock: what was just being filled is there, or out again. Other objects come there: what is left of a touch, too, says nothing of them. */
static void forget_pages(struct gu_space *s, struct gu_cold_region *r, size_t from, size_t to)
{
	gu_lock(&r->lock);
	for (size_t p = from; p < to; p++) {
		size_t i = p % GU_REGION_PAGES;
		forget_page_locked(s, r, p);
		r->left[i] = r->left[i] ? GU_COLD_DROPPED : GU_COLD_NOTHING_LEFT;
		gu_store_relaxed(&r->heat[i], 0);
		gu_store_relaxed(&r->seen[i], 0);
		gu_store_relaxed(&r->touched[i], 0);
	}
	gu_unlock(&r->lock);
}

void gu_cold_forget_slow(struct gu_space *s, size_t from, size_t to)
{
	for (size_t p = from, end; p < to; p = end) {
		struct gu_cold_region *r = gu_cold_region(&s->cold, p);
		end = gu_min(gu_align_down(p, GU_REGION_PAGES) + GU_REGION_PAGES, to);
		if (r)
			forget_pages(s, r, p, end);
	}
}

/* ---- fork ---- */

static void repair_region(struct gu_cold *c, struct gu_cold_region *r, size_t first, bool (*is_there)(void *data, size_t page), void *data)
{
	gu_lock_init(&r->lock, GU_RANK_COLD);
	r->missing = false;
	r->tells = GU_COLD_TELLS_WRITES; /* nothing, until the child registers all */
	r->armed_ns = 0;
	r->leftovers = 0;
	_Static_assert(offsetof(struct gu_cold_region, left) + sizeof(r->left) <= GU_PAGE, "a fork may tear these apart");
	for (size_t i = 0; i < GU_REGION_PAGES; i++) {
		if (r->filling == i + 1 && !is_there(data, first + i)) { /* the child has it from before it was filled */
			r->state[i] = r->slot[i] ? GU_COLD_EVICTED : GU_COLD_PARKED;
			r->left[i] = GU_COLD_NOTHING_LEFT;
		}
		bool out = r->state[i] != GU_COLD_LIVE;
		c->out[(first + i) >> 6] &= ~(1ull << ((first + i) & 63));
		c->out[(first + i) >> 6] |= (uint64_t)out << ((first + i) & 63);
		c->nout += out;
		c->parked += r->state[i] == GU_COLD_PARKED;
		r->leftovers += r->left[i] != GU_COLD_NOTHING_LEFT;
		r->reading[i] = 0;
	}
	r->filling = 0;
	c->left |= r->leftovers != 0;
}

void gu_cold_forked(struct gu_space *s, bool (*is_there)(void *data, size_t page), void *data)
{
	struct gu_cold *c = &s->cold;
	c->nout = c->parked = c->watching = 0;
	c->lapses++;
	for (size_t i = 0; c->on && i < s->top / GU_REGION; i++)
		if (c->regions[i])
			repair_region(c, c->regions[i], i * GU_REGION_PAGES, is_there, data);
}

/* ---- checks ---- */

static void check_page(struct gu_space *s, const struct gu_cold_region *r, size_t page)
{
	size_t i = page % GU_REGION_PAGES;
	GU_INVARIANT(gu_cold_is_out(&s->cold, page) == (r->state[i] != GU_COLD_LIVE), ".inv.cold.bit");
	GU_INVARIANT(r->state[i] == GU_COLD_LIVE ? r->left[i] || !r->slot[i] : !r->left[i], ".inv.cold.record");
	GU_INVARIANT(r->state[i] != GU_COLD_EVICTED || r->slot[i], ".inv.cold.record");
	GU_INVARIANT(r->state[i] == GU_COLD_EVICTED || r->left[i] || !r->summary[i], ".inv.summary.moved");
	GU_INVARIANT(r->state[i] == GU_COLD_LIVE || (gu_load_acquire(&s->block_of[page]) && s->state[page] & GU_PAGE_USED), ".inv.cold.block");
}

static void check_watch(struct gu_space *s, const struct gu_cold_region *r, size_t region, size_t *watching, size_t *standing)
{
	bool told = r->tells == GU_COLD_TELLS_WRITES;
	GU_INVARIANT(told || (!r->leftovers && !gu_cold_any(&s->cold, region * GU_REGION_PAGES, (region + 1) * GU_REGION_PAGES)), ".inv.cold.watched");
	GU_INVARIANT((r->armed_ns != 0) == (r->tells == GU_COLD_TELLS_ACCESSES), ".inv.cold.watched");
	*watching += !told;
	for (size_t i = 0; i < GU_ARRAY_LEN(r->stood); i++)
		*standing += (size_t)__builtin_popcountll(r->stood[i]);
}

/* Each region's lock, so that the resolver is at none of them. */
static void each_lock(const struct gu_cold *c, size_t regions, void (*fn)(struct gu_lock *lock))
{
	for (size_t i = 0; i < regions; i++)
		if (c->regions[i])
			fn(&c->regions[i]->lock);
}

/* Under the locks of all regions. */
static void check_counts(const struct gu_cold_counts *n)
{
	uint64_t by = 0, restored = gu_load_relaxed(&n->restored);
	for (int i = 0; i < GU_COLD_CAUSES; i++)
		by += gu_load_relaxed(&n->by[i]);
	GU_INVARIANT(by == restored, ".inv.cold.causes");
	GU_INVARIANT(gu_load_relaxed(&n->from_park) + gu_load_relaxed(&n->from_store) + gu_load_relaxed(&n->from_image) == restored, ".inv.cold.causes");
}

void gu_cold_check(struct gu_space *s)
{
	struct gu_cold *c = &s->cold;
	size_t bits = 0, parked = 0, watching = 0, standing = 0, regions = c->on ? gu_load_acquire(&s->top) / GU_REGION : 0;
	each_lock(c, regions, gu_lock_fork);
	for (size_t p = 0; p < regions * GU_REGION_PAGES; p++) {
		struct gu_cold_region *r = gu_cold_region(c, p);
		GU_INVARIANT(r || !gu_cold_is_out(c, p), ".inv.cold.bit");
		if (!r)
			continue;
		check_page(s, r, p);
		bits += gu_cold_is_out(c, p);
		parked += r->state[p % GU_REGION_PAGES] == GU_COLD_PARKED;
	}
	GU_INVARIANT(bits == gu_load_seqcst(&c->nout) && parked == gu_load_relaxed(&c->parked), ".inv.cold.bit");
	for (size_t i = 0; i < regions; i++)
		if (c->regions[i])
			check_watch(s, c->regions[i], i, &watching, &standing);
	GU_INVARIANT(watching == gu_load_relaxed(&c->watching) && standing == gu_load_relaxed(&c->standing), ".inv.cold.watched");
	check_counts(&c->counts);
	each_lock(c, regions, gu_unlock_fork);
	gu_slab_check(&c->slab);
}
