/* SPDX-License-Identifier: MIT */
/* evict.c - see evict.h. */
#include "gc/evict.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/probe.h"
#include "gc/accessed.h"
#include "gc/pack.h"
#include "gc/restore.h"
#include "gc/shed.h"
#include "gc/summary.h"
#include "gc/track.h"
#include "space/block.h"
#include "space/image.h"
#include "sys/os.h"
#include "sys/scan.h"
#include "sys/smaps.h"

#define BATCH 64u /* pages summarised and stored at a time */
#define HELD_NS 60000000000u /* until pages are made our own once more where that did not help */

static struct gu_cold *cold_of(struct gcuffd_heap *h) { return &h->space.cold; }

static void count_stay(struct gu_cold *c, enum gu_cold_stay why, size_t pages) { gu_add_relaxed(&c->counts.stays[why], pages); }

/* A cycle that is due goes first: who gives a lock back and takes it again gets it before anybody who sleeps for it. */
void gu_evict_lock(struct gcuffd_heap *h)
{
	while (gu_load_seqcst(&h->cycle_waits))
		gu_os->futex_wait(&h->cycle_waits, 1, 1000000);
	gu_lock(&h->cycle_lock);
}

/* Both locks. The resolver, which has the region's while it fills a page, is waited for without the cycle's (.inv.cold.put). */
static void lock_region_between_cycles(struct gcuffd_heap *h, struct gu_cold_region *r)
{
	for (gu_evict_lock(h); !gu_trylock(&r->lock); gu_evict_lock(h)) {
		gu_unlock(&h->cycle_lock);
		gu_lock(&r->lock);
		gu_unlock(&r->lock);
	}
}

/* ---- leftovers ---- */

/* What was touched soon is passed over for a while; what was in the store already, for longer. */
static void note_touch(struct gcuffd_heap *h, struct gu_cold_region *r, size_t page)
{
	size_t i = page % GU_REGION_PAGES;
	bool touched = r->left[i] == GU_COLD_TOUCHED, dropped = r->left[i] == GU_COLD_DROPPED; /* other objects are there then, if any */
	unsigned heat = dropped ? 0 : gu_load_relaxed(&r->heat[i]) * 2u + (r->slot[i] ? 3 : 1);
	const struct gu_block *b = gu_block_at(&h->space, gu_space_address(&h->space, page));
	struct gcuffd_arena *a = b ? gu_load_relaxed(&b->arena) : NULL; /* it may be another's by now; none ends while cycles wait */
	gu_store_relaxed(&r->heat[i], (uint8_t)gu_min(heat, 250));
	gu_store_relaxed(&r->seen[i], touched ? gu_cold_seen(gu_os->clock_ns()) : 0);
	if (touched || dropped)
		gu_store_relaxed(&r->touched[i], gu_load_relaxed(&r->seen[i]));
	if (a && touched && r->slot[i] && !gu_image_has(r->slot[i])) /* that had been taken out */
		gu_add_relaxed(&a->refaulted, 1);
}

static void drop_leftover(struct gcuffd_heap *h, struct gu_cold_region *r, size_t page)
{
	size_t i = page % GU_REGION_PAGES;
	note_touch(h, r, page);
	if (r->slot[i])
		gu_cold_drop(cold_of(h), r->slot[i]);
	else
		gu_os->madvise((void *)gu_cold_park(cold_of(h), page), GU_PAGE, MADV_DONTNEED);
	gu_summary_free(h, r->summary[i]);
	r->slot[i] = 0;
	r->summary[i] = NULL;
	r->left[i] = GU_COLD_NOTHING_LEFT;
	r->leftovers--;
}

static void tidy_region_locked(struct gcuffd_heap *h, struct gu_cold_region *r, size_t region)
{
	for (size_t i = 0; i < GU_REGION_PAGES && r->leftovers; i++)
		if (r->left[i] && !r->reading[i])
			drop_leftover(h, r, region * GU_REGION_PAGES + i);
	if (r->leftovers) /* another time */
		gu_store_relaxed(&cold_of(h)->left, 1);
}

/* With the cycle lock afterwards. */
static void tidy_region(struct gcuffd_heap *h, struct gu_cold_region *r, size_t region)
{
	lock_region_between_cycles(h, r);
	tidy_region_locked(h, r, region);
	gu_unlock(&r->lock);
}

void gu_evict_tidy(struct gcuffd_heap *h)
{
	struct gu_cold *c = cold_of(h);
	if (!c->on || !gu_swap_seqcst(&c->left, 0))
		return;
	for (size_t region = 0; region < gu_load_acquire(&h->space.top) / GU_REGION; region++) {
		struct gu_cold_region *r = gu_load_relaxed(&c->regions[region]);
		if (!r || !gu_load_relaxed(&r->leftovers))
			continue;
		tidy_region(h, r, region);
		gu_unlock(&h->cycle_lock);
	}
}

/* ---- a region's first time ---- */

/* Pages shared with a child, if only once, can't be moved: a write of nothing makes them our own again. */
static void own_pages(struct gcuffd_heap *h, struct gu_cold_region *r, size_t region)
{
	uint32_t forks = gu_load_acquire(&cold_of(h)->forks);
	if (r->forks == forks)
		return;
	gu_track_unshare(h, region * GU_REGION_PAGES, (region + 1) * GU_REGION_PAGES);
	r->forks = forks;
}

/* The region's record, without leftovers, and with the cycle lock; NULL: out of memory. */
static struct gu_cold_region *enter(struct gcuffd_heap *h, size_t region)
{
	struct gu_cold_region *r = gu_cold_make(&h->space, region);
	if (r)
		tidy_region(h, r, region);
	return r;
}

/* Likewise, and pages may be moved, if 0 (.inv.cold.own). */
static int prepare(struct gcuffd_heap *h, size_t page, struct gu_cold_region **out)
{
	size_t region = page / GU_REGION_PAGES;
	struct gu_cold_region *r = enter(h, region);
	if (!r)
		return -ENOMEM;
	int err = gu_accessed_end(h, r, region);
	gu_add_seqcst(&cold_of(h)->lapses, r->watched);
	if (!err && !r->missing)
		err = gu_track_missing(h, region, 1);
	if (err) {
		gu_unlock(&h->cycle_lock);
		return err;
	}
	r->missing = true;
	own_pages(h, r, region);
	*out = r;
	return 0;
}

/* ---- what is kept ---- */

struct keeping {
	struct gu_space *space;
	struct gu_cold_kept kept;
};

static void keep(void *data, uintptr_t start, uintptr_t end)
{
	struct keeping *k = data;
	struct gu_cold_kept *kept = &k->kept;
	start = gu_max(start, k->space->base);
	end = gu_min(end, k->space->base + k->space->size);
	if (start >= end)
		return;
	if (kept->n && (kept->n == GU_COLD_KEPT || kept->ranges[kept->n - 1].end == start))
		kept->ranges[kept->n - 1].end = end;
	else
		kept->ranges[kept->n++] = (struct gu_cold_range){start, end};
}

/* What was out when it was marked. */
static void bring_back(struct gcuffd_heap *h, const struct gu_cold_range *range)
{
	size_t end = gu_space_page(&h->space, gu_min(range->end, h->space.base + gu_load_acquire(&h->space.top)));
	for (size_t p = gu_space_page(&h->space, range->start), to; p < end; p = to) {
		to = gu_min(gu_align_down(p, GU_REGION_PAGES) + GU_REGION_PAGES, end);
		if (gu_cold_any_on_its_way(cold_of(h), p, to))
			(void)gu_restore_pages(h->restore, p, to, GU_COLD_BY_EXEMPTION); /* what can't be read is reported; where there is no memory, the next time */
	}
}

int gu_evict_look(struct gcuffd_heap *h)
{
	struct keeping k = {&h->space, {0}};
	int err = gu_smaps_private(keep, &k);
	if (err)
		return err;
	cold_of(h)->kept = k.kept;
	for (size_t i = 0; i < k.kept.n; i++)
		bring_back(h, &k.kept.ranges[i]);
	return 0;
}

static bool is_kept(const struct gu_cold *c, uintptr_t at)
{
	for (size_t i = 0; i < c->kept.n; i++)
		if (at - c->kept.ranges[i].start < c->kept.ranges[i].end - c->kept.ranges[i].start)
			return true;
	return false;
}

/* ---- claiming ---- */

struct claim {
	struct gu_space *space;
	struct gu_cold_region *region;
	enum gu_evict_which which;
	struct gu_block *block;
};

/* Under the arena's lock: the block is there, and nobody allocates from it. */
static void claim_page(void *data, size_t page)
{
	const struct claim *c = data;
	uint8_t *heat = &c->region->heat[page % GU_REGION_PAGES];
	if (!(c->space->state[page] & GU_PAGE_USED) || gu_cold_is_out(&c->space->cold, page))
		return;
	if (is_kept(&c->space->cold, gu_space_address(c->space, page))) {
		count_stay(&c->space->cold, GU_COLD_STAYS_EXEMPT, 1);
		return;
	}
	if (gu_shed_in_place(c->space, c->region, c->block, page))
		return;
	if (c->which == GU_EVICT_STANDING && !gu_accessed_stands(c->region, page))
		return;
	if (c->which != GU_EVICT_SPARING || !gu_load_relaxed(heat))
		gu_cold_claim(&c->space->cold, page);
	else
		gu_sub_relaxed(heat, 1);
}

static void claim(struct gcuffd_heap *h, struct gu_cold_region *r, size_t from, size_t to, enum gu_evict_which which)
{
	struct gu_space *s = &h->space;
	struct claim c = {s, r, which, NULL};
	for (size_t p = from, next; p < to; p = next) {
		uint32_t index = gu_load_acquire(&s->block_of[p]);
		struct gu_block *b = &s->blocks[index];
		next = p + 1;
		if (!index || gu_load_acquire(&b->state) == GU_BLOCK_FREE)
			continue;
		next = gu_max(next, gu_space_page(s, b->start + b->bytes));
		c.block = b;
		if (!gu_load_relaxed(&b->arena->hot))
			gu_arena_claim(b, p, to, claim_page, &c);
	}
}

static bool is_claimed(struct gcuffd_heap *h, const struct gu_cold_region *r, size_t page)
{
	return gu_cold_is_out(cold_of(h), page) && gu_load_relaxed(&r->state[page % GU_REGION_PAGES]) == GU_COLD_LIVE;
}

static void unclaim_locked(struct gcuffd_heap *h, const struct gu_cold_region *r, size_t from, size_t to)
{
	for (size_t p = from; p < to; p++)
		if (is_claimed(h, r, p))
			gu_cold_unclaim_locked(cold_of(h), p);
}

/* ---- moving: heap to park ---- */

/* How many pages from here on may be moved: still claimed, not touched since leftovers were dropped, and no pin came meanwhile (.inv.cold.pin). */
static size_t movable_locked(struct gcuffd_heap *h, const struct gu_cold_region *r, size_t from, size_t to)
{
	size_t p = from;
	while (p < to && is_claimed(h, r, p) && !r->left[p % GU_REGION_PAGES] && gu_pages_may_drop(&h->space, p, p + 1))
		p++;
	return p - from;
}

/* Where others have touched holes of the park there are pages, which go first. Locked memory won't be dropped: nor is it taken out. */
static int move_out(struct gcuffd_heap *h, size_t from, size_t n, size_t *done)
{
	if (gu_os->madvise((void *)gu_cold_park(cold_of(h), from), n << GU_PAGE_SHIFT, MADV_DONTNEED))
		return -EINVAL;
	int err = gu_track_move_out(h, from, n, done);
	return err == -EINVAL && n > 1 && !*done ? gu_track_move_out(h, from, 1, done) : err; /* of several mappings, one locked, say */
}

static enum gu_cold_stay stay_of(int err)
{
	return err == -EBUSY ? GU_COLD_STAYS_SHARED : err == -EINVAL ? GU_COLD_STAYS_LOCKED : GU_COLD_STAYS_FAILED;
}

/* Up to where pages are to be moved, and whether they were made our own once more meanwhile. */
struct moving {
	size_t to;
	bool owned;
};

/*
 * A child of clone(2), which nobody counted, may share the pages: as own_pages(), and without the lock, for the resolver may be needed. Where that
 * did not help a device holds some: not again for a while.
 */
static bool own_unlocking(struct gcuffd_heap *h, struct gu_cold_region *r, size_t from, struct moving *m)
{
	uint64_t now = gu_os->clock_ns();
	if (m->owned)
		r->held_ns = now;
	if (r->held_ns && now - r->held_ns < HELD_NS)
		return false;
	m->owned = true;
	gu_unlock(&r->lock);
	gu_track_unshare(h, from, m->to);
	gu_lock(&r->lock);
	return true;
}

/* Moves what it can of a claimed run; what the kernel won't move is given up, what is shared only the second time. Where to go on. */
static size_t move_locked(struct gcuffd_heap *h, struct gu_cold_region *r, size_t from, size_t to, struct moving *m)
{
	GU_INVARIANT(r->forks == gu_load_acquire(&cold_of(h)->forks), ".inv.cold.own");
	size_t n = movable_locked(h, r, from, to), done = 0;
	bool back = r->left[from % GU_REGION_PAGES];
	int err = n ? move_out(h, from, n, &done) : -EAGAIN;
	uint32_t now = gu_cold_seen(gu_os->clock_ns());
	done >>= GU_PAGE_SHIFT;
	for (size_t p = from; p < from + done; p++) {
		gu_store_relaxed(&r->seen[p % GU_REGION_PAGES], now);
		gu_cold_set_parked_locked(cold_of(h), r, p);
	}
	if (!err || (err == -EBUSY && own_unlocking(h, r, from + done, m)))
		return from + done;
	unclaim_locked(h, r, from + done, from + done + 1);
	if (err != -ENOENT) /* a hole is no page */
		count_stay(cold_of(h), n ? stay_of(err) : back ? GU_COLD_STAYS_TOUCHED : GU_COLD_STAYS_PINNED, 1);
	return from + done + 1;
}

static void move_claimed(struct gcuffd_heap *h, struct gu_cold_region *r, size_t from, size_t to)
{
	struct moving m = {to, false};
	gu_lock(&r->lock);
	for (size_t p = from, end; p < to; p = end) {
		for (end = p + 1; end < to && is_claimed(h, r, p) && is_claimed(h, r, end);)
			end++;
		if (is_claimed(h, r, p))
			end = move_locked(h, r, p, end, &m);
	}
	gu_unlock(&r->lock);
}

int gu_evict_park(struct gcuffd_heap *h, size_t from, size_t to, enum gu_evict_which which)
{
	struct gu_cold_region *r;
	int err = prepare(h, from, &r);
	if (err)
		return err;
	claim(h, r, from, to, which);
	move_claimed(h, r, from, to);
	gu_accessed_forget(h, r);
	gu_unlock(&h->cycle_lock);
	return 0;
}

/* ---- watching instead ---- */

int gu_evict_watch(struct gcuffd_heap *h, size_t region, bool anew)
{
	struct gu_cold_region *r = enter(h, region);
	if (!r)
		return -ENOMEM;
	int err = gu_accessed_begin(h, r, region, anew);
	gu_unlock(&h->cycle_lock);
	return err;
}

void gu_evict_unwatch(struct gcuffd_heap *h, size_t region)
{
	struct gu_cold_region *r = gu_cold_region(cold_of(h), region * GU_REGION_PAGES);
	gu_evict_lock(h);
	(void)gu_accessed_end(h, r, region);
	gu_accessed_forget(h, r);
	gu_unlock(&h->cycle_lock);
}

/* ---- storing: park to store ---- */

static int summarise(struct gcuffd_heap *h, size_t from, size_t n, struct gu_summary **summaries)
{
	bool peeks = gu_store_is_memory(cold_of(h)->store);
	int err = 0;
	for (size_t i = 0; i < n && !err; i++)
		err = gu_summary_make(h, from + i, (const uintptr_t *)gu_cold_park(cold_of(h), from + i), peeks, &summaries[i]);
	return err;
}

/* One that was touched meanwhile is LIVE again: what was made for it is dropped, and its page in the park by the caller. */
static void settle_locked(struct gcuffd_heap *h, struct gu_cold_region *r, size_t page, gu_slot slot, struct gu_summary *summary)
{
	size_t i = page % GU_REGION_PAGES;
	if (gu_load_relaxed(&r->state[i]) == GU_COLD_PARKED) {
		gu_cold_set_evicted_locked(cold_of(h), r, page, slot, summary);
		return;
	}
	if (r->left[i]) {
		note_touch(h, r, page);
		r->left[i] = GU_COLD_NOTHING_LEFT;
		r->leftovers--;
		gu_add_relaxed(&cold_of(h)->counts.bounced, 1);
	}
	gu_store_drop(cold_of(h)->store, slot);
	gu_summary_free(h, summary);
}

/* Their pages in the park are read by nobody any more: the resolver, which copies, has the region's lock (.inv.cold.leftover). */
static void settle_run(struct gcuffd_heap *h, struct gu_cold_region *r, size_t from, size_t n, const gu_slot *slots, struct gu_summary **summaries)
{
	lock_region_between_cycles(h, r);
	for (size_t i = 0; i < n; i++)
		settle_locked(h, r, from + i, slots[i], summaries[i]);
	if (n)
		gu_os->madvise((void *)gu_cold_park(cold_of(h), from), n << GU_PAGE_SHIFT, MADV_DONTNEED);
	gu_unlock(&r->lock);
	gu_unlock(&h->cycle_lock);
}

/*
 * Those from the front that the store takes. Cycles may run while it does: what they read is changed before and after. A summary stays good
 * meanwhile, for who hands out a cell of the page or writes to it brings it back.
 */
static int store_run(struct gcuffd_heap *h, struct gu_cold_region *r, size_t from, size_t n, size_t *out)
{
	struct gu_summary *summaries[BATCH] = {NULL};
	gu_slot slots[BATCH];
	size_t stored = 0;
	gu_evict_lock(h);
	int err = summarise(h, from, n, summaries);
	gu_unlock(&h->cycle_lock);
	if (!err)
		stored = gu_store_put(cold_of(h)->store, (const void *)gu_cold_park(cold_of(h), from), n, slots, &err);
	if (gu_pack_is_due(h))
		gu_pack_put(h, from, stored, summaries);
	settle_run(h, r, from, stored, slots, summaries);
	count_stay(cold_of(h), err == -ENOSPC ? GU_COLD_STAYS_NO_ROOM : GU_COLD_STAYS_UNSTORED, n - stored);
	for (size_t i = stored; i < n; i++) /* nobody has seen them */
		gu_summary_free(h, summaries[i]);
	*out += stored;
	GU_PROBE4(evict, h, gu_space_address(&h->space, from), n, stored);
	return stored < n ? err : 0;
}

static bool is_parked(const struct gu_cold_region *r, size_t page)
{
	return gu_load_acquire(&r->state[page % GU_REGION_PAGES]) == GU_COLD_PARKED;
}

int gu_evict_store(struct gcuffd_heap *h, size_t from, size_t to, size_t *out)
{
	struct gu_cold_region *r = gu_cold_region(cold_of(h), from);
	int err = 0;
	for (size_t p = from, end; r && p < to && !err; p = end) {
		for (end = p; end < to && end - p < BATCH && is_parked(r, end);)
			end++;
		if (end > p)
			err = store_run(h, r, p, end - p, out);
		else
			end++;
	}
	return err;
}

int gu_evict_undo(struct gcuffd_heap *h, size_t from, size_t to) { return gu_restore_pages(h->restore, from, to, GU_COLD_BY_REQUEST); }

int gu_evict(struct gcuffd_heap *h, size_t from, size_t to, size_t *out)
{
	int err = gu_evict_park(h, from, to, GU_EVICT_ALL);
	if (!err)
		err = gu_evict_store(h, from, to, out);
	struct gu_cold_region *r = err ? gu_cold_region(cold_of(h), from) : NULL;
	for (size_t p = from; r && p < to; p++)
		if (is_parked(r, p))
			(void)gu_restore_pages(h->restore, p, p + 1, GU_COLD_BY_FAILURE);
	return err;
}

/* ---- fork ---- */

static void note_fork_error(struct gu_cold *c, int err)
{
	if (err && !c->fork_refused)
		c->fork_refused = err;
	if (err)
		gu_store_relaxed(&c->fork_error, err);
}

/* Runs of regions that had pages out, and the park's for them. Goes on after an error. */
static int each_run(struct gcuffd_heap *h, int advice)
{
	int result = 0;
	size_t n = gu_load_acquire(&h->space.top) / GU_REGION;
	for (size_t i = 0, end; i < n; i = end) {
		end = i + 1;
		if (!cold_of(h)->regions[i] || !cold_of(h)->regions[i]->missing)
			continue;
		while (end < n && cold_of(h)->regions[end] && cold_of(h)->regions[end]->missing)
			end++;
		int err = gu_os->madvise((void *)(h->space.base + i * GU_REGION), (end - i) * GU_REGION, advice);
		int park = gu_os->madvise((void *)(cold_of(h)->park + i * GU_REGION), (end - i) * GU_REGION, advice);
		result = result ? result : err ? err : park;
	}
	return result;
}

void gu_evict_fork_prepare(struct gcuffd_heap *h)
{
	struct gu_cold *c = cold_of(h);
	if (!c->store)
		return;
	c->fork_refused = 0;
	c->fork_lacks = each_run(h, MADV_DOFORK);
	note_fork_error(c, c->fork_lacks);
	note_fork_error(c, gu_store_fork_prepare(c->store));
	if (c->image) /* the last page that is out may be on its way, and out again in the child */
		note_fork_error(c, gu_image_fork_prepare(c->image));
}

void gu_evict_fork_parent(struct gcuffd_heap *h)
{
	cold_of(h)->forks++;
	if (!cold_of(h)->store)
		return;
	gu_store_fork_parent(cold_of(h)->store);
	if (cold_of(h)->image)
		gu_image_fork_parent(cold_of(h)->image);
	note_fork_error(cold_of(h), each_run(h, MADV_DONTFORK));
}

static void note_found(void *data, uintptr_t start, uintptr_t end)
{
	(void)start, (void)end;
	*(bool *)data = true;
}

struct looking {
	struct gcuffd_heap *heap;
	int pagemap;
};

static bool is_there(void *data, size_t page)
{
	const struct looking *l = data;
	uintptr_t at = gu_space_address(&l->heap->space, page);
	bool found = false;
	return !gu_scan_present(l->pagemap, at, at + GU_PAGE, false, note_found, &found) && found;
}

/* Others' memory would come to be where objects are. */
static _Noreturn void end_child(int err)
{
	char line[160];
	snprintf(line, sizeof(line), "gcuffd: the kernel did not let this child of a fork() have all of the heap's memory (error %d): it ends here\n", -err);
	gu_log_dying(line);
	abort();
}

void gu_evict_fork_child(struct gcuffd_heap *h)
{
	struct looking l = {h, -1};
	if (cold_of(h)->fork_lacks)
		end_child(cold_of(h)->fork_lacks);
	cold_of(h)->fork_error = cold_of(h)->fork_refused;
	cold_of(h)->forks++;
	if (cold_of(h)->image)
		gu_image_fork_child(cold_of(h)->image);
	if (!cold_of(h)->store)
		return;
	gu_store_fork_child(cold_of(h)->store);
	l.pagemap = gu_scan_open();
	gu_cold_forked(&h->space, is_there, &l);
	if (l.pagemap >= 0)
		gu_os->close(l.pagemap);
}

static bool read_by_hand(struct gcuffd_heap *h, struct gu_cold_region *r, size_t page)
{
	int err = gu_cold_get(cold_of(h), r->slot[page % GU_REGION_PAGES], (void *)gu_space_address(&h->space, page));
	if (err)
		gu_cold_note_bad(cold_of(h), r, page);
	return err;
}

/* By plain stores: nobody is told of faults here. What can't be read is made inaccessible. */
static void fill_by_hand(struct gcuffd_heap *h, struct gu_cold_region *r, size_t page)
{
	uintptr_t at = gu_space_address(&h->space, page);
	size_t i = page % GU_REGION_PAGES;
	bool bad = r->state[i] == GU_COLD_POISONED || (r->state[i] == GU_COLD_EVICTED && read_by_hand(h, r, page));
	if (r->state[i] == GU_COLD_PARKED)
		memcpy((void *)at, (const void *)gu_cold_park(cold_of(h), page), GU_PAGE);
	else if (bad)
		gu_os->mprotect((void *)at, GU_PAGE, PROT_NONE);
	gu_lock(&r->lock);
	if (r->state[i] != GU_COLD_LIVE) { /* else the store was a fault: registering failed, but not for this page */
		if (!bad)
			gu_add_relaxed(&cold_of(h)->counts.at_once, 1);
		gu_cold_set_live_locked(cold_of(h), r, page, GU_COLD_WARMED);
	}
	gu_unlock(&r->lock);
}

/* From this region on those that have pages out, and whose faults come to nobody yet. */
static void tell_of_faults(struct gcuffd_heap *h, size_t region)
{
	struct gu_cold *c = cold_of(h);
	size_t n = 0, most = gu_load_acquire(&h->space.top) / GU_REGION - region;
	while (n < most && c->regions[region + n] && !c->regions[region + n]->missing)
		n++;
	bool told = h->restore && !gu_track_missing(h, region, n);
	for (size_t i = region; i < region + n; i++)
		c->regions[i]->missing = told;
}

void gu_evict_resume(struct gcuffd_heap *h)
{
	size_t n = gu_load_acquire(&h->space.top) >> GU_PAGE_SHIFT;
	for (size_t p = 0; p < n && gu_load_relaxed(&cold_of(h)->nout); p++) {
		struct gu_cold_region *r = gu_cold_region(cold_of(h), p);
		if (!r || !gu_cold_is_out(cold_of(h), p) || r->missing)
			continue;
		if (h->restore)
			tell_of_faults(h, p / GU_REGION_PAGES);
		if (!r->missing)
			fill_by_hand(h, r, p);
	}
}
