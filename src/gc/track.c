/* SPDX-License-Identifier: MIT */
/* track.c - arming and reading write-protect bits over runs of blocks. The collector only. */
#include "gc/track.h"

#include <errno.h>
#include <sys/mman.h>

#include "base/meta.h"
#include "sys/caps.h"
#include "sys/os.h"
#include "sys/scan.h"
#include "sys/uffd.h"

struct gu_tracker {
	int uffd, pagemap;
	bool user_mode_only;
	bool all;          /* not only what is scanned */
	size_t registered; /* bytes of the reservation, from its base */
};

typedef int run_fn(struct gcuffd_heap *h, uintptr_t start, uintptr_t end, void *data);

int gu_track_open(struct gcuffd_heap *h)
{
	struct gu_tracker *t = gu_meta_alloc(sizeof(*t));
	if (!t)
		return -ENOMEM;
	t->uffd = t->pagemap = -1;
	h->tracker = t;
	if (gu_caps()->has_pagemap_scan)
		t->pagemap = gu_scan_open();
	if (h->rung == GCUFFD_RUNG_STOP)
		return 0;
	uint64_t more = h->space.cold.on ? GU_UFFD_FEATURE_MOVE | GU_UFFD_FEATURE_POISON | GU_UFFD_FEATURE_THREAD_ID : 0;
	if (h->space.cold.on && h->rung == GCUFFD_RUNG_RWP)
		more |= GU_UFFD_FEATURE_RWP | GU_UFFD_FEATURE_RWP_ASYNC;
	t->uffd = gu_uffd_open(GU_UFFD_FEATURE_WP_ASYNC | more, &t->user_mode_only);
	int err = t->uffd < 0 ? t->uffd : t->pagemap < 0 ? t->pagemap : 0;
	if (err)
		gu_track_close(h);
	return err;
}

void gu_track_close(struct gcuffd_heap *h)
{
	struct gu_tracker *t = h->tracker;
	if (!t)
		return;
	if (t->uffd >= 0)
		gu_os->close(t->uffd);
	if (t->pagemap >= 0)
		gu_os->close(t->pagemap);
	gu_meta_free(t, sizeof(*t));
	h->tracker = NULL;
}

void gu_track_forked(struct gcuffd_heap *h)
{
	if (h->tracker)
		gu_meta_free(h->tracker, sizeof(*h->tracker));
	h->tracker = NULL;
}

void gu_track_all(struct gcuffd_heap *h, bool on) { h->tracker->all = on; }

bool gu_track_works(const struct gcuffd_heap *h) { return h->tracker && h->tracker->uffd >= 0; }

bool gu_track_is_user_mode_only(const struct gcuffd_heap *h) { return gu_track_works(h) && h->tracker->user_mode_only; }

/* Regions taken since: registered but unarmed, so they read as written. */
static int register_new(struct gcuffd_heap *h)
{
	struct gu_tracker *t = h->tracker;
	size_t top = gu_load_acquire(&h->space.top);
	if (top == t->registered)
		return 0;
	int err = gu_uffd_register(t->uffd, h->space.base + t->registered, top - t->registered, GU_UFFD_REGISTER_WP, NULL);
	if (!err)
		t->registered = top;
	return err;
}

static bool wanted(const struct gcuffd_heap *h, const struct gu_block *b, bool rearm)
{
	uint8_t state = gu_load_acquire(&b->state);
	return (b->scanned || h->tracker->all || gu_heap_without(h, GU_WITHOUT_atomic)) && state != GU_BLOCK_FREE && !(rearm && (state == GU_BLOCK_CURRENT || state == GU_BLOCK_BUSY));
}

/*
 * Runs of adjoining blocks that are scanned. Those that threads allocate from stay out of precleaning
 * (.inv.track.current: they are unarmed, so the remark finds them written) until they are retired.
 */
static int each_run(struct gcuffd_heap *h, bool rearm, run_fn *fn, void *data)
{
	const struct gu_space *s = &h->space;
	size_t pages = h->tracker->registered >> GU_PAGE_SHIFT; /* what is beyond is new, and found written next time */
	uintptr_t start = 0, end = 0;
	int err = 0;
	for (size_t p = 0; p < pages && !err;) {
		uint32_t index = gu_load_acquire(&s->block_of[p]);
		struct gu_block *b = &s->blocks[index];
		if (!index || !wanted(h, b, rearm) || b->start + b->bytes > s->base + (pages << GU_PAGE_SHIFT)) {
			p += index ? (b->start + b->bytes - s->base - (p << GU_PAGE_SHIFT)) >> GU_PAGE_SHIFT : 1;
			continue;
		}
		if (rearm)
			b->armed = 1;
		if (end != b->start) {
			err = start ? fn(h, start, end, data) : 0;
			start = b->start;
		}
		end = b->start + b->bytes;
		p = gu_space_page(s, end);
	}
	return !err && start ? fn(h, start, end, data) : err;
}

static int arm_range(const struct gcuffd_heap *h, uintptr_t start, uintptr_t end)
{
	bool all = gu_heap_without(h, GU_WITHOUT_populated);
	return (all ? gu_scan_arm : gu_scan_arm_populated)(h->tracker->pagemap, start, end);
}

static int read_range(const struct gcuffd_heap *h, uintptr_t start, uintptr_t end, bool rearm,
		      void (*visit)(void *data, uintptr_t start, uintptr_t end), void *data)
{
	int fd = h->tracker->pagemap;
	bool zeros = h->tracker->all; /* what was written to an image may be zeros by now (.inv.image.zeros); to markers they are nothing */
	if (gu_heap_without(h, GU_WITHOUT_populated))
		return gu_scan_written(fd, start, end, rearm, visit, data);
	if (!rearm && gu_scan_has_short())
		return gu_scan_written_short(fd, start, end, zeros, visit, data);
	return gu_scan_written_populated(fd, start, end, rearm, zeros, visit, data);
}

static int arm_run(struct gcuffd_heap *h, uintptr_t start, uintptr_t end, void *data)
{
	((struct gu_track_counts *)data)->scanned += (end - start) >> GU_PAGE_SHIFT;
	return arm_range(h, start, end);
}

int gu_track_arm(struct gcuffd_heap *h, struct gu_track_counts *counts)
{
	GU_INVARIANT(!gu_load_relaxed(&h->space.cold.watching), ".inv.track.rwp");
	int err = register_new(h);
	return err ? err : each_run(h, true, arm_run, counts);
}

struct collect {
	struct gcuffd_heap *heap;
	struct gu_track_counts *counts;
	bool rearm;
};

static void note_written(void *data, uintptr_t start, uintptr_t end)
{
	struct collect *c = data;
	struct gu_space *s = &c->heap->space;
	size_t from = gu_space_page(s, start), to = gu_space_page(s, end);
	for (size_t p = from; p < to; p++)
		gu_card_set(s, p);
	c->counts->dirty += to - from;
	if (c->heap->options.debug & GCUFFD_PLANT_DROP_CARD)
		for (size_t p = from; p < to; p++)
			gu_and_relaxed(&s->cards[p >> 6], ~(1ull << (p & 63)));
}

static int collect_run(struct gcuffd_heap *h, uintptr_t start, uintptr_t end, void *data)
{
	struct collect *c = data;
	c->counts->scanned += (end - start) >> GU_PAGE_SHIFT;
	int err = read_range(h, start, end, c->rearm, note_written, c);
	if (!err && gu_heap_without(h, GU_WITHOUT_cards))
		note_written(c, start, end);
	return err;
}

/* Written through its pins without the kernel's noting it (.inv.pages.dirty). */
static void note_pinned(void *data, size_t page)
{
	struct collect *c = data;
	struct gu_space *s = &c->heap->space;
	uint32_t index = gu_load_acquire(&s->block_of[page]);
	if (index && wanted(c->heap, &s->blocks[index], c->rearm))
		gu_card_set(s, page);
}

int gu_track_collect(struct gcuffd_heap *h, bool rearm, struct gu_track_counts *counts)
{
	struct collect c = {h, counts, rearm};
	GU_INVARIANT(!gu_load_relaxed(&h->space.cold.watching), ".inv.track.rwp");
	int err = register_new(h);
	if (!err)
		err = each_run(h, rearm, collect_run, &c);
	gu_pages_each_pinned(&h->space, note_pinned, &c);
	c.rearm = false;
	if (!err && rearm && gu_heap_without(h, GU_WITHOUT_current)) /* looked at, not armed: the remark finds them again */
		err = each_run(h, false, collect_run, &c);
	return err;
}

/* ---- un-arming ---- */

struct disarm {
	uintptr_t start, end;
};

static void disarm_run(struct gcuffd_heap *h, struct disarm *d)
{
	if (d->end > d->start)
		gu_uffd_writeprotect(h->tracker->uffd, d->start, d->end - d->start, false);
	d->start = d->end = 0;
}

static bool to_disarm(struct gu_block *b)
{
	uint8_t state = gu_load_acquire(&b->state);
	return b->armed && (state == GU_BLOCK_LISTED || state == GU_BLOCK_CURRENT);
}

void gu_track_disarm(struct gcuffd_heap *h)
{
	const struct gu_space *s = &h->space;
	size_t pages = gu_load_acquire(&s->top) >> GU_PAGE_SHIFT;
	struct disarm d = {0, 0};
	if (!gu_track_works(h) || gu_heap_without(h, GU_WITHOUT_disarm))
		return;
	for (size_t p = 0; p < pages;) {
		uint32_t index = gu_load_acquire(&s->block_of[p]);
		struct gu_block *b = &s->blocks[index];
		uintptr_t start = index ? b->start : 0, end = index ? b->start + b->bytes : 0;
		if (index && to_disarm(b)) {
			if (d.end != start) {
				disarm_run(h, &d);
				d.start = start;
			}
			d.end = end;
			b->armed = 0;
		}
		size_t next = index ? gu_space_page(s, end) : 0;
		p = next > p ? next : p + 1;
	}
	disarm_run(h, &d);
}

void gu_track_disarm_blocks(struct gcuffd_heap *h, struct gu_block *list)
{
	struct disarm d = {0, 0};
	bool off = gu_track_works(h) && !gu_heap_without(h, GU_WITHOUT_disarm);
	for (struct gu_block *b = list; b && off; b = b->next) {
		if (b->armed && b->start == d.end) {
			d.end += b->bytes;
		} else if (b->armed && b->start + b->bytes == d.start) {
			d.start = b->start;
		} else if (b->armed) {
			disarm_run(h, &d);
			d = (struct disarm){b->start, b->start + b->bytes};
		}
		b->armed = 0;
	}
	if (off)
		disarm_run(h, &d);
}

/* ---- the program's memory ---- */

int gu_track_foreign_arm(struct gcuffd_heap *h, uintptr_t start, uintptr_t end)
{
	if (!gu_track_works(h))
		return -EOPNOTSUPP;
	int err = gu_uffd_register(h->tracker->uffd, start, end - start, GU_UFFD_REGISTER_WP, NULL);
	return err ? err : arm_range(h, start, end);
}

/* Registering anew what is registered changes nothing; EBUSY: it is another's. */
bool gu_track_foreign_is_kept(struct gcuffd_heap *h, uintptr_t start, uintptr_t end)
{
	return !gu_scan_registered(h->tracker->pagemap, start, end) &&
	       !gu_uffd_register(h->tracker->uffd, start, end - start, GU_UFFD_REGISTER_WP, NULL);
}

int gu_track_foreign_collect(struct gcuffd_heap *h, uintptr_t start, uintptr_t end, bool rearm,
			     void (*visit)(void *data, uintptr_t start, uintptr_t end), void *data)
{
	/* -EPERM also tells that the range was remapped and lost its registration */
	return read_range(h, start, end, rearm, visit, data);
}

bool gu_track_present(struct gcuffd_heap *h, uintptr_t start, uintptr_t end, bool anon_only,
		      void (*visit)(void *data, uintptr_t start, uintptr_t end), void *data)
{
	if (!h->tracker || h->tracker->pagemap < 0 || gu_heap_without(h, GU_WITHOUT_present))
		return false;
	return !gu_scan_present(h->tracker->pagemap, start, end, anon_only, visit, data);
}

/* ---- cold memory ---- */

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

int gu_track_uffd(const struct gcuffd_heap *h) { return h->tracker ? h->tracker->uffd : -1; }

int gu_track_missing(struct gcuffd_heap *h, size_t region, size_t n)
{
	uintptr_t start = h->space.base + region * GU_REGION, park = h->space.cold.park + region * GU_REGION;
	int err = gu_track_works(h) ? register_new(h) : -EOPNOTSUPP;
	if (!err)
		err = gu_uffd_register(h->tracker->uffd, park, n * GU_REGION, GU_UFFD_REGISTER_MISSING, NULL);
	if (!err) /* more than it had: what is armed stays so */
		err = gu_uffd_register(h->tracker->uffd, start, n * GU_REGION, GU_UFFD_REGISTER_MISSING | GU_UFFD_REGISTER_WP, NULL);
	if (err)
		return err;
	err = gu_os->madvise((void *)park, n * GU_REGION, MADV_DONTFORK); /* a child that nobody prepared faults (.inv.cold.fork) */
	if (!err)
		err = gu_os->madvise((void *)start, n * GU_REGION, MADV_DONTFORK);
	if (err) { /* a child is given these back only where its parent has them MISSING */
		(void)gu_os->madvise((void *)start, n * GU_REGION, MADV_DOFORK);
		(void)gu_os->madvise((void *)park, n * GU_REGION, MADV_DOFORK);
	}
	return err;
}

int gu_track_move_out(struct gcuffd_heap *h, size_t page, size_t n, size_t *done)
{
	return gu_uffd_move(h->tracker->uffd, gu_cold_park(&h->space.cold, page), gu_space_address(&h->space, page), n << GU_PAGE_SHIFT, 0, done);
}

static void write_nothing(void *data, uintptr_t start, uintptr_t end)
{
	(void)data;
	gu_os->madvise((void *)start, end - start, MADV_POPULATE_WRITE);
}

void gu_track_unshare(struct gcuffd_heap *h, size_t from, size_t to)
{
	(void)gu_scan_present(h->tracker->pagemap, gu_space_address(&h->space, from), gu_space_address(&h->space, to), false, write_nothing, NULL);
}

/* ---- accesses ---- */

bool gu_track_knows_accesses(const struct gcuffd_heap *h) { return gu_track_works(h) && gu_load_relaxed(&h->rung) == GCUFFD_RUNG_RWP; }

int gu_track_tell(struct gcuffd_heap *h, size_t region, size_t n, bool accesses, bool missing)
{
	uintptr_t start = h->space.base + region * GU_REGION;
	uint64_t mode = (accesses ? GU_UFFD_REGISTER_RWP : GU_UFFD_REGISTER_WP) | (missing ? GU_UFFD_REGISTER_MISSING : 0);
	int err = register_new(h);
	if (!err)
		err = gu_uffd_unregister(h->tracker->uffd, start, n * GU_REGION);
	return err ? err : gu_uffd_register(h->tracker->uffd, start, n * GU_REGION, mode, NULL);
}

int gu_track_arm_accesses(struct gcuffd_heap *h, size_t page, size_t n)
{
	return gu_uffd_rwprotect(h->tracker->uffd, gu_space_address(&h->space, page), n << GU_PAGE_SHIFT, true);
}

int gu_track_accessed(struct gcuffd_heap *h, size_t region, size_t n, void (*visit)(void *data, uintptr_t start, uintptr_t end), void *data)
{
	uintptr_t start = h->space.base + region * GU_REGION;
	return gu_scan_accessed(h->tracker->pagemap, start, start + n * GU_REGION, visit, data);
}
