/* SPDX-License-Identifier: MIT */
/* accessed.c - see accessed.h. */
#include "gc/accessed.h"

#include <errno.h>

#include "gc/track.h"
#include "space/block.h"
#include "sys/os.h"

#define JOIN 8u /* pages: a gap is armed along rather than passed over by a call of its own */

static struct gu_cold *cold_of(struct gcuffd_heap *h) { return &h->space.cold; }

static void drop_bit(struct gcuffd_heap *h, struct gu_cold_region *r, size_t page)
{
	r->stood[page % GU_REGION_PAGES / 64] &= ~(1ull << (page & 63));
	gu_sub_relaxed(&cold_of(h)->standing, 1);
}

void gu_accessed_forget(struct gcuffd_heap *h, struct gu_cold_region *r)
{
	for (size_t i = 0; i < GU_REGION_PAGES; i++)
		if (gu_accessed_stands(r, i))
			drop_bit(h, r, i);
	gu_store_relaxed(&r->stood_ns, 0);
}

/* ---- beginning ---- */

static void choose_page(struct gcuffd_heap *h, struct gu_cold_region *r, size_t page)
{
	uint8_t *heat = &r->heat[page % GU_REGION_PAGES];
	if (gu_load_relaxed(heat)) {
		gu_sub_relaxed(heat, 1);
		return;
	}
	r->stood[page % GU_REGION_PAGES / 64] |= 1ull << (page & 63);
	gu_add_relaxed(&cold_of(h)->standing, 1);
}

/* As far as can be told without the arenas' locks: what is moved is looked at again. */
static void choose(struct gcuffd_heap *h, struct gu_cold_region *r, size_t region)
{
	const struct gu_space *s = &h->space;
	size_t to = (region + 1) * GU_REGION_PAGES;
	for (size_t p = region * GU_REGION_PAGES, next; p < to; p = next) {
		uint32_t index = gu_load_acquire(&s->block_of[p]);
		const struct gu_block *b = &s->blocks[index];
		uint8_t state = index ? gu_load_acquire(&b->state) : GU_BLOCK_FREE;
		const struct gcuffd_arena *a = index ? gu_load_relaxed(&b->arena) : NULL;
		next = p + 1;
		if (!a || (state != GU_BLOCK_FULL && state != GU_BLOCK_LISTED && state != GU_BLOCK_LARGE))
			continue;
		next = gu_max(next, gu_space_page(s, b->start + b->bytes));
		for (size_t q = p; q < gu_min(next, to) && !gu_load_relaxed(&a->hot); q++)
			if (gu_load_relaxed(&s->state[q]) & GU_PAGE_USED)
				choose_page(h, r, q);
	}
}

static bool any_stands(const struct gu_cold_region *r)
{
	uint64_t any = 0;
	for (size_t i = 0; i < GU_ARRAY_LEN(r->stood); i++)
		any |= r->stood[i];
	return any;
}

/* Nobody takes a page out as long as the cycle lock is held. One that is just being filled has leftovers. */
static bool is_in_place(struct gcuffd_heap *h, struct gu_cold_region *r, size_t region)
{
	if (!gu_trylock(&r->lock))
		return false;
	bool in_place = !r->leftovers && !gu_cold_any(cold_of(h), region * GU_REGION_PAGES, (region + 1) * GU_REGION_PAGES);
	gu_unlock(&r->lock);
	return in_place;
}

/* Where a huge page is mapped, an access would be one of all its pages: in two calls it is told of each. */
static int arm_run(struct gcuffd_heap *h, size_t page, size_t n)
{
	size_t head = n == GU_REGION_PAGES ? 1 : 0;
	int err = head ? gu_track_arm_accesses(h, page, head) : 0;
	return err || !n ? err : gu_track_arm_accesses(h, page + head, n - head);
}

static int arm(struct gcuffd_heap *h, const struct gu_cold_region *r, size_t region)
{
	size_t first = region * GU_REGION_PAGES, from = first, end = first;
	int err = 0;
	for (size_t p = first; p < first + GU_REGION_PAGES && !err; p++) {
		if (!gu_accessed_stands(r, p))
			continue;
		if (p - end > JOIN) {
			err = arm_run(h, from, end - from);
			from = p;
		}
		from = end == first && from == first ? p : from;
		end = p + 1;
	}
	return err ? err : arm_run(h, from, end - from);
}

/* ---- telling ---- */

/* What the kernel tells of n regions with the same wish for faults of holes, which the resolver does not fill meanwhile: then n is 1. */
static int tell(struct gcuffd_heap *h, struct gu_cold_region *r, size_t region, size_t n, bool accesses)
{
	bool missing = r->missing;
	if (missing)
		gu_lock(&r->lock);
	int err = gu_track_tell(h, region, n, accesses, missing);
	if (missing)
		gu_unlock(&r->lock);
	return err;
}

static void set_tells(struct gcuffd_heap *h, struct gu_cold_region *r, enum gu_cold_tells tells)
{
	gu_add_relaxed(&cold_of(h)->watching, (tells != GU_COLD_TELLS_WRITES) - (r->tells != GU_COLD_TELLS_WRITES));
	r->tells = (uint8_t)tells;
}

static void say_untold(struct gcuffd_heap *h, int err)
{
	if (err && !cold_of(h)->said_untold)
		gu_log(&h->log, GU_LOG_WARN, "a region can't be registered anew (error %d): until it can, cycles stop the world", -err);
	cold_of(h)->said_untold |= err != 0;
}

static int back_to_writes(struct gcuffd_heap *h, struct gu_cold_region *r, size_t region)
{
	int err = tell(h, r, region, 1, false);
	set_tells(h, r, err ? GU_COLD_TELLS_NOTHING : GU_COLD_TELLS_WRITES);
	say_untold(h, err);
	return err;
}

int gu_accessed_begin(struct gcuffd_heap *h, struct gu_cold_region *r, size_t region, bool anew)
{
	if (!gu_track_knows_accesses(h))
		return -EOPNOTSUPP;
	if (r->tells != GU_COLD_TELLS_WRITES || !is_in_place(h, r, region))
		return -EBUSY;
	if (anew) {
		gu_accessed_forget(h, r);
		choose(h, r, region);
	}
	if (!any_stands(r))
		return -ENOENT;
	int err = tell(h, r, region, 1, true);
	if (!err)
		err = arm(h, r, region);
	if (err) {
		(void)back_to_writes(h, r, region);
		gu_accessed_forget(h, r);
		return err;
	}
	set_tells(h, r, GU_COLD_TELLS_ACCESSES);
	gu_store_relaxed(&r->armed_ns, gu_os->clock_ns());
	gu_add_relaxed(&cold_of(h)->counts.windows, 1);
	return 0;
}

/* ---- ending ---- */

/* As if it had been parked and had come back. */
static void note_access(struct gcuffd_heap *h, struct gu_cold_region *r, size_t page, uint32_t now)
{
	size_t i = page % GU_REGION_PAGES;
	drop_bit(h, r, page);
	gu_store_relaxed(&r->heat[i], (uint8_t)gu_min(gu_load_relaxed(&r->heat[i]) * 2u + 1, 250));
	gu_store_relaxed(&r->seen[i], now);
	gu_store_relaxed(&r->touched[i], now);
	gu_add_relaxed(&cold_of(h)->counts.accessed, 1);
}

static void note_run(void *data, uintptr_t start, uintptr_t end)
{
	struct gcuffd_heap *h = data;
	uint32_t now = gu_cold_seen(gu_os->clock_ns());
	for (size_t p = gu_space_page(&h->space, start); p < gu_space_page(&h->space, end); p++) {
		struct gu_cold_region *r = gu_cold_region(cold_of(h), p);
		if (gu_accessed_stands(r, p))
			note_access(h, r, p, now);
	}
}

/* Who reads the two without the lock finds too little, not too much. */
static void add_time(struct gu_cold_region *r, uint64_t now)
{
	uint64_t since = gu_swap_seqcst(&r->armed_ns, 0);
	gu_store_relaxed(&r->lapsed_ns, now);
	gu_store_release(&r->stood_ns, gu_load_relaxed(&r->stood_ns) + (since ? now - since : 0));
}

/* n regions in which there is a window. */
static int end_windows(struct gcuffd_heap *h, size_t region, size_t n)
{
	struct gu_cold_region **r = cold_of(h)->regions + region;
	int unknown = gu_track_accessed(h, region, n, note_run, h);
	uint64_t now = gu_os->clock_ns();
	int err = tell(h, r[0], region, n, false);
	for (size_t i = 0; i < n; i++) {
		add_time(r[i], now);
		if (unknown)
			gu_accessed_forget(h, r[i]);
		set_tells(h, r[i], err ? GU_COLD_TELLS_NOTHING : GU_COLD_TELLS_WRITES);
	}
	return err;
}

int gu_accessed_end(struct gcuffd_heap *h, struct gu_cold_region *r, size_t region)
{
	if (r->tells == GU_COLD_TELLS_ACCESSES)
		(void)end_windows(h, region, 1);
	return r->tells == GU_COLD_TELLS_NOTHING ? back_to_writes(h, r, region) : 0;
}

static bool has_window(const struct gu_cold_region *r, bool missing) { return r && r->tells == GU_COLD_TELLS_ACCESSES && r->missing == missing; }

int gu_accessed_end_all(struct gcuffd_heap *h)
{
	struct gu_cold *c = cold_of(h);
	size_t regions = gu_load_acquire(&h->space.top) / GU_REGION, untold = 0;
	int result = 0;
	if (!c->on || !gu_load_relaxed(&c->watching))
		return 0;
	for (size_t i = 0, n; i < regions && gu_load_relaxed(&c->watching) > untold; i += n) {
		for (n = 0; i + n < regions && has_window(c->regions[i + n], false);)
			n++;
		if (n)
			(void)end_windows(h, i, n);
		n = gu_max(n, 1);
		for (size_t k = i; k < i + n; k++) {
			int err = c->regions[k] ? gu_accessed_end(h, c->regions[k], k) : 0;
			untold += err != 0;
			result = result ? result : err;
		}
	}
	gu_add_seqcst(&c->lapses, 1); /* after they are: pairs with watch_lapsed() */
	return result;
}
