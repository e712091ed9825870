/* SPDX-License-Identifier: MIT */
/* restore.c - see restore.h. */
#include "gc/restore.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "base/meta.h"
#include "base/probe.h"
#include "space/image.h"
#include "sys/os.h"
#include "sys/uffd.h"

#define SPIN_NS 50000u

/* ---- filling ---- */

/* Whoever touches it gets SIGBUS, from here on and in a system call EFAULT; the evictor reports it. */
static int poison_locked(struct gu_restore *re, struct gu_cold_region *r, size_t page)
{
	int err = gu_uffd_poison(re->resolver.uffd, gu_space_address(re->space, page), GU_PAGE, 0, NULL);
	if (err && err != -EEXIST)
		return err;
	gu_cold_set_poisoned_locked(&re->space->cold, r, page);
	return 0;
}

static int copy_in(struct gu_restore *re, size_t page, const void *contents)
{
	uintptr_t at = gu_space_address(re->space, page);
	int err = gu_uffd_copy(re->resolver.uffd, at, contents, GU_PAGE, 0, NULL);
	if (err == -EEXIST) { /* another fault of the same page came first, and wakes all but those that came since */
		(void)gu_uffd_wake(re->resolver.uffd, at, GU_PAGE);
		return 0;
	}
	return err;
}

/* Without the lock: nobody waits for a disk who wants another page, or releases the block (.inv.cold.reading). The state may change meanwhile. */
static int read_unlocking(const struct gu_restore *re, struct gu_cold_region *r, size_t i, char *buffer)
{
	gu_slot slot = r->slot[i];
	r->reading[i]++;
	gu_unlock(&r->lock);
	int err = gu_cold_get(&re->space->cold, slot, buffer);
	gu_lock(&r->lock);
	r->reading[i]--;
	return err;
}

static enum gu_cold_left left_by(enum gu_cold_cause cause) { return cause <= GU_COLD_BY_COLLECTOR ? GU_COLD_TOUCHED : GU_COLD_WARMED; }

/* What is out, with its contents at hand. */
static int place_locked(struct gu_restore *re, struct gu_cold_region *r, size_t page, enum gu_cold_cause cause, const void *contents)
{
	struct gu_cold *c = &re->space->cold;
	size_t i = page % GU_REGION_PAGES;
	enum gu_cold_state state = gu_load_relaxed(&r->state[i]);
	gu_store_release(&r->filling, (uint16_t)(i + 1)); /* before its bit is clear: pairs with gu_cold_is_on_its_way() */
	gu_cold_set_live_locked(c, r, page, left_by(cause));
	gu_cold_count_restored(c, cause, state, r->slot[i], 1); /* before whoever waits can ask */
	int err = copy_in(re, page, contents);
	if (err) {
		gu_cold_count_restored(c, cause, state, r->slot[i], -1ull);
		gu_cold_set_back_locked(c, r, page, state);
	}
	gu_store_release(&r->filling, 0); /* after it is there, or its bit is set again */
	return err;
}

/* From where the page is: 0 when it is in place, or poisoned. */
static int fill_locked(struct gu_restore *re, struct gu_cold_region *r, size_t page, enum gu_cold_cause cause, char *buffer)
{
	struct gu_cold *c = &re->space->cold;
	size_t i = page % GU_REGION_PAGES;
	enum gu_cold_state state = gu_load_relaxed(&r->state[i]);
	const void *contents = state == GU_COLD_PARKED ? (const void *)gu_cold_park(c, page) : buffer;
	if (state == GU_COLD_POISONED)
		return poison_locked(re, r, page);
	if (state == GU_COLD_LIVE) /* a hole */
		return copy_in(re, page, re->zeros);
	int bad = state == GU_COLD_EVICTED ? read_unlocking(re, r, i, buffer) : 0;
	if (gu_load_relaxed(&r->state[i]) != state) /* brought back, poisoned or released: once, for it does not go out while it is read */
		return fill_locked(re, r, page, cause, buffer);
	if (bad)
		return poison_locked(re, r, page);
	return place_locked(re, r, page, cause, contents);
}

/* One that nobody has touched (.inv.cold.ahead): 1 if it was filled, 0 if it was left as it is, -ENOMEM. */
static int fill_early(struct gu_restore *re, size_t page, enum gu_cold_cause cause, char *buffer, bool wait)
{
	struct gu_cold *c = &re->space->cold;
	size_t i = page % GU_REGION_PAGES;
	struct gu_cold_region *r = gu_cold_is_out(c, page) ? gu_cold_region(c, page) : NULL;
	if (!r || (!wait && !gu_trylock(&r->lock)))
		return 0;
	if (wait)
		gu_lock(&r->lock);
	enum gu_cold_state state = gu_load_relaxed(&r->state[i]);
	int err = 0, done = 0, bad = state == GU_COLD_EVICTED ? read_unlocking(re, r, i, buffer) : state != GU_COLD_PARKED;
	if (!bad && gu_load_relaxed(&r->state[i]) == state) {
		err = place_locked(re, r, page, cause, state == GU_COLD_PARKED ? (const void *)gu_cold_park(c, page) : buffer);
		done = !err;
	}
	gu_unlock(&r->lock);
	return err ? err : done;
}

/* ---- on first touch ---- */

static bool is_own(const struct gu_restore *re, uint32_t tid)
{
	for (uint32_t i = 0; i < gu_load_acquire(&re->ntids) && i < GU_RESTORE_TIDS; i++)
		if (gu_load_relaxed(&re->tids[i]) == tid)
			return true;
	return false;
}

struct touch {
	size_t page;
	enum gu_cold_cause cause;
	enum gu_cold_state state; /* until then */
	bool loaded;              /* from an image: it had not been taken out */
	uint64_t ns;
};

/* What the taking out of pages costs. */
static void count_touch(struct gu_cold_counts *c, const struct touch *t)
{
	gu_add_relaxed(&c->touched, 1);
	gu_add_relaxed(&c->refaulted, t->state == GU_COLD_EVICTED);
	gu_add_relaxed(&c->touch_ns, t->ns);
}

/* Whoever waited has been woken. */
static void note_touch(struct gu_restore *re, const struct touch *t)
{
	struct gu_cold_counts *counts = &re->space->cold.counts;
	if (t->cause == GU_COLD_BY_COLLECTOR)
		return;
	if (!t->loaded)
		count_touch(counts, t);
	gu_lock(&re->notes);
	gu_order_note(&re->order, t->page << GU_PAGE_SHIFT);
	if (re->neighbours)
		gu_add_relaxed(&counts->followed, gu_streams_touched(&re->streams, t->page));
	gu_unlock(&re->notes);
}

/* A hole of the park: mlockall(2), or a debugger, looks at all that is mapped. The evictor drops what it gets. */
static int fill_park(const struct gu_restore *re, const struct gu_fault *fault)
{
	GU_INVARIANT(fault->page - re->space->cold.park < re->space->size && !is_own(re, fault->tid), ".inv.cold.park");
	int err = gu_uffd_zeropage(re->resolver.uffd, fault->page, GU_PAGE, 0, NULL);
	return err == -EEXIST ? gu_uffd_wake(re->resolver.uffd, fault->page, GU_PAGE) : err;
}

static enum gu_cold_cause cause_of(const struct gu_restore *re, const struct gu_fault *fault)
{
	return is_own(re, fault->tid) ? GU_COLD_BY_COLLECTOR : fault->write ? GU_COLD_BY_WRITE : GU_COLD_BY_READ;
}

static int fill_heap(struct gu_restore *re, const struct gu_fault *fault, char *buffer)
{
	struct gu_space *s = re->space;
	size_t page = gu_space_page(s, fault->page), i = page % GU_REGION_PAGES;
	struct gu_cold_region *r = gu_cold_region(&s->cold, page);
	GU_INVARIANT(r != NULL, ".inv.cold.record");
	uint64_t since = gu_os->clock_ns();
	int beat = gu_beat_begin(&re->beats, since, "the bringing back of a page that is touched");
	gu_lock(&r->lock);
	struct touch touch = {page, cause_of(re, fault), gu_load_relaxed(&r->state[i]), gu_image_has(r->slot[i]), 0};
	int err = fill_locked(re, r, page, touch.cause, buffer);
	gu_unlock(&r->lock);
	gu_beat_end(&re->beats, beat);
	touch.ns = gu_os->clock_ns() - since;
	GU_PROBE5(restore, s /* the heap */, fault->page, touch.ns, (unsigned)touch.cause, err);
	if (touch.state != GU_COLD_LIVE && !err)
		note_touch(re, &touch);
	return err;
}

/* Whatever the error, nobody is left waiting: who waits comes again. */
static void resolve(void *data, const struct gu_fault *fault, char *buffer)
{
	struct gu_restore *re = data;
	int err = gu_space_has(re->space, fault->page) ? fill_heap(re, fault, buffer) : fill_park(re, fault);
	if (err)
		gu_resolver_pause(&re->resolver, fault->page);
	else
		gu_resolver_relieved(&re->resolver);
}

static bool next_ahead(struct gu_restore *re, size_t *page)
{
	gu_lock(&re->notes);
	bool any = gu_streams_next(&re->streams, re->space->size >> GU_PAGE_SHIFT, page);
	gu_unlock(&re->notes);
	return any;
}

/* done: as of fill_early(). Of what another thread has noted meanwhile the stream may be another: then that one is said to have brought it. */
static void note_ahead(struct gu_restore *re, size_t page, int done)
{
	gu_lock(&re->notes);
	if (done < 0)
		gu_streams_stop(&re->streams);
	if (done > 0) {
		gu_streams_brought(&re->streams);
		gu_order_note(&re->order, page << GU_PAGE_SHIFT);
	}
	gu_unlock(&re->notes);
}

/* When nobody waits: a page. */
static bool bring_next(void *data, char *buffer)
{
	struct gu_restore *re = data;
	size_t page;
	if (!next_ahead(re, &page))
		return false;
	int done = fill_early(re, page, GU_COLD_BY_STREAM, buffer, false);
	if (done)
		note_ahead(re, page, done);
	return true;
}

void gu_restore_run(struct gu_restore *re)
{
	size_t i = gu_add_relaxed(&re->index, 1);
	gu_resolver_run(&re->resolver, re->buffers + i * GU_PAGE);
}

/* ---- without a touch ---- */

static int restore_page(struct gu_restore *re, struct gu_cold_region *r, size_t page, enum gu_cold_cause cause)
{
	int err = 0;
	gu_lock(&r->lock);
	if (gu_load_relaxed(&r->state[page % GU_REGION_PAGES]) != GU_COLD_LIVE)
		err = fill_locked(re, r, page, cause, re->buffer);
	if (!err && gu_load_relaxed(&r->state[page % GU_REGION_PAGES]) == GU_COLD_POISONED)
		err = -EIO;
	gu_unlock(&r->lock);
	return err;
}

int gu_restore_pages(struct gu_restore *re, size_t from, size_t to, enum gu_cold_cause cause)
{
	struct gu_cold_region *r = gu_cold_region(&re->space->cold, from);
	int result = 0;
	for (size_t p = from; p < to && r; p++) {
		int err = gu_cold_is_on_its_way(&re->space->cold, p) ? restore_page(re, r, p, cause) : 0;
		result = result ? result : err;
	}
	return result;
}

int gu_restore_early(struct gu_restore *re, size_t page)
{
	int done = fill_early(re, page, GU_COLD_BY_ORDER, re->buffer, true);
	return done < 0 ? done : 0;
}

/* ---- making and ending ---- */

void gu_restore_free(struct gu_restore *re)
{
	if (!re)
		return;
	gu_meta_unmap((void *)re->resolver.bell, GU_PAGE);
	gu_order_free(&re->order);
	gu_meta_unmap(re->zeros, GU_PAGE);
	gu_meta_unmap(re->buffer, GU_PAGE);
	gu_meta_unmap(re->buffers, GU_RESOLVERS * GU_PAGE);
	gu_meta_free(re, sizeof(*re));
}

int gu_restore_open(struct gu_space *s, int uffd, bool neighbours, struct gu_restore **out)
{
	struct gu_restore *re = gu_meta_alloc(sizeof(*re));
	if (!re)
		return -ENOMEM;
	re->space = s;
	re->neighbours = neighbours;
	re->zeros = gu_meta_map(GU_PAGE);
	re->buffer = gu_meta_map(GU_PAGE);
	re->buffers = gu_meta_map(GU_RESOLVERS * GU_PAGE);
	gu_lock_init(&re->notes, GU_RANK_MARK);
	re->resolver = (struct gu_resolver){.uffd = uffd, .resolve = resolve, .ahead = neighbours ? bring_next : NULL, .data = re, .spin_ns = SPIN_NS};
	re->resolver.bell = (uintptr_t)gu_meta_map(GU_PAGE);
	int err = re->zeros && re->buffer && re->buffers && re->resolver.bell ? 0 : -ENOMEM;
	if (!err)
		err = gu_uffd_register(uffd, re->resolver.bell, GU_PAGE, GU_UFFD_REGISTER_MISSING, NULL);
	if (err)
		gu_restore_free(re);
	else
		*out = re;
	return err;
}

void gu_restore_close(struct gu_restore *re)
{
	for (uint32_t i = 0; re && i < re->nthreads; i++)
		(void)gu_resolver_ask(&re->resolver, NULL, 0, 0);
}

void gu_restore_own(struct gu_restore *re, uint32_t tid)
{
	uint32_t i = gu_add_relaxed(&re->ntids, 1);
	if (i < GU_RESTORE_TIDS)
		gu_store_relaxed(&re->tids[i], tid);
}
