/* SPDX-License-Identifier: MIT */
/* tier.c - see tier.h. */
#include "ctl/tier.h"

#include <errno.h>

#include "base/meta.h"
#include "gc/evict.h"
#include "gc/restore.h"
#include "gc/track.h"
#include "sys/caps.h"
#include "sys/os.h"

#define PROBATION_NS 300000000ull /* that a page is parked before it goes to the store */
#define REST_NS 50000000          /* between looks at what the heap takes */
#define PARKED_MOST 4             /* no more than a fourth of the target is on probation at once */
#define ROUND 1024                /* regions on probation */

struct gu_tier {
	size_t hand;            /* region that is parked next */
	uint64_t round_ns;      /* when it began its round */
	size_t parked[ROUND];   /* regions on probation, from the oldest on */
	uint64_t since[ROUND];
	size_t first, count;
	uint64_t full_until_ns; /* the store took nothing more: let some time pass */
	size_t idle;            /* regions in which nothing was parked, one after the other */
};

/* A user-mode-only descriptor would make system calls on what is out fail with EFAULT (.inv.cold.syscalls). */
static int open_tier(struct gcuffd_heap *h)
{
	const struct gcuffd_options *o = &h->options;
	struct gu_store_options store = {
		.memory_limit = o->store_memory, .file_limit = o->store_file, .path = o->store_path,
		.codec = (enum gu_codec)o->store_codec,
	};
	if (gu_load_relaxed(&h->rung) < GCUFFD_RUNG_MOVE || !gu_track_works(h) || !gu_caps()->has_kernel_faults)
		return -EOPNOTSUPP;
	if (!h->tier && !(h->tier = gu_meta_alloc(sizeof(*h->tier))))
		return -ENOMEM;
	int err = h->space.cold.store ? 0 : gu_store_open(&store, &h->space.cold.store);
	return err ? err : gu_restore_open(&h->space, gu_track_uffd(h), !gu_heap_without(h, GU_WITHOUT_neighbours), &h->restore);
}

void gu_tier_open(struct gcuffd_heap *h)
{
	if (!h->space.cold.on)
		return;
	int err = open_tier(h);
	if (err == -EOPNOTSUPP)
		gu_log(&h->log, GU_LOG_WARN, "cold=1: no page is taken out, for that needs rung move, and faults of system calls handled; gcuffd probe says why");
	else if (err)
		gu_log(&h->log, GU_LOG_WARN, "cold=1: no page is taken out: the store can't be opened (error %d)", -err);
}

void gu_tier_close(struct gcuffd_heap *h)
{
	gu_restore_free(h->restore);
	h->restore = NULL;
	gu_meta_free(h->tier, sizeof(*h->tier));
	h->tier = NULL;
	if (h->space.cold.store)
		gu_store_close(h->space.cold.store);
	h->space.cold.store = NULL;
}

bool gu_tier_step(struct gcuffd_heap *h, struct gu_tier_ask *ask)
{
	size_t top = gu_load_acquire(&h->space.top) >> GU_PAGE_SHIFT;
	size_t from = ask->from + ask->at, end = gu_min(ask->to, top);
	size_t to = gu_min(gu_align_down(from, GU_REGION_PAGES) + GU_REGION_PAGES, end);
	int err = 0;
	if (from < to)
		err = ask->what == GU_TIER_COOL ? gu_evict(h, from, to, &ask->out) : gu_evict_undo(h, from, to);
	ask->at = to - ask->from;
	ask->result = ask->result ? ask->result : err;
	return (!err || err == -EIO) && from < to && to < end;
}

/* ---- by itself ---- */

size_t gu_tier_resident(const struct gcuffd_heap *h)
{
	const struct gu_cold *c = &h->space.cold;
	struct gu_store *store = gu_load_acquire(&c->store);
	struct gu_store_counts n = {0};
	if (store)
		gu_store_counts(store, &n);
	size_t gone = (gu_load_relaxed(&c->nout) - gu_load_relaxed(&c->parked)) << GU_PAGE_SHIFT, resident = gu_space_resident(&h->space);
	return resident - gu_min(gone, resident) + gu_load_relaxed(&c->slab.bytes) + n.memory_bytes;
}

/* The oldest region on probation has stood it. */
static int store_oldest(struct gcuffd_heap *h, struct gu_tier *t)
{
	size_t region = t->parked[t->first % ROUND], out = 0;
	int err = gu_evict_store(h, region * GU_REGION_PAGES, (region + 1) * GU_REGION_PAGES, &out);
	t->first++;
	t->count--;
	return err;
}

static void park_next(struct gcuffd_heap *h, struct gu_tier *t, uint64_t now)
{
	size_t regions = gu_load_acquire(&h->space.top) / GU_REGION, before = gu_load_relaxed(&h->space.cold.parked);
	size_t region = t->hand < regions ? t->hand : 0;
	if (!region)
		t->round_ns = now;
	t->hand = region + 1;
	if (!regions || gu_evict_park(h, region * GU_REGION_PAGES, (region + 1) * GU_REGION_PAGES, true))
		return;
	t->idle = gu_load_relaxed(&h->space.cold.parked) > before ? 0 : t->idle + 1;
	if (t->idle)
		return;
	t->parked[(t->first + t->count) % ROUND] = region;
	t->since[(t->first + t->count) % ROUND] = now;
	t->count++;
}

/* Enough that, if all of it stays, the target is met; and no more than fits beside it. */
static bool wants_more(const struct gcuffd_heap *h, const struct gu_tier *t, size_t over)
{
	size_t parked = gu_load_relaxed(&h->space.cold.parked) << GU_PAGE_SHIFT;
	return t->count < ROUND && parked < gu_min(over + over / 4, gu_max(h->options.resident_target / PARKED_MOST, 4 * GU_REGION));
}

int64_t gu_tier_balance(struct gcuffd_heap *h)
{
	struct gu_tier *t = h->tier;
	size_t target = h->options.resident_target;
	if (!target)
		return -1;
	size_t resident = gu_tier_resident(h), regions = gu_load_acquire(&h->space.top) / GU_REGION;
	uint64_t now = gu_os->clock_ns();
	if (resident <= target || now < t->full_until_ns)
		return REST_NS;
	if (t->count && now - t->since[t->first % ROUND] >= PROBATION_NS) {
		if (store_oldest(h, t))
			t->full_until_ns = now + 1000000000u;
		return 0;
	}
	bool round_over = t->hand >= regions && now - t->round_ns < PROBATION_NS; /* so that heat is a time, not a matter of how little is left */
	if (!wants_more(h, t, resident - target) || t->idle > regions || round_over) {
		t->idle = 0;
		return REST_NS;
	}
	park_next(h, t, now);
	return 0;
}

bool gu_tier_has_left(const struct gcuffd_heap *h) { return gu_load_relaxed(&h->space.cold.left) || gu_load_relaxed(&h->space.cold.bad); }
bool gu_tier_is_used(const struct gcuffd_heap *h) { return gu_load_relaxed(&h->space.cold.nout); }

void gu_tier_tidy(struct gcuffd_heap *h)
{
	uintptr_t bad = gu_swap_seqcst(&h->space.cold.bad, 0);
	if (bad)
		gu_log(&h->log, GU_LOG_ERROR, "the page at %#lx can't be brought back: the store could not read it, or not what it was; who touches it gets SIGBUS",
		       (unsigned long)bad);
	gu_evict_tidy(h);
	gu_store_tidy(h->space.cold.store);
}
