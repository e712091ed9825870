/* SPDX-License-Identifier: MIT */
/* roots.c - listing, arming and scanning roots. The collector only; the list of explicit ranges is copied under the heap's lock. */
#include "gc/roots.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "base/meta.h"
#include "base/own.h"
#include "gc/final.h"
#include "gc/modules.h"
#include "gc/mutator.h"
#include "gc/pins.h"
#include "gc/track.h"
#include "sys/maps.h"
#include "sys/os.h"

#define ROOTS_MAX 65536
#define TRACK_MIN ((size_t)64 << 10)
#define SERVICE_MAX 32
#define GUARD_MOST ((uintptr_t)1 << 20)

struct root {
	uintptr_t start, end;
	bool tracked;   /* armed: only written pages are read again */
	bool anon_only; /* read-only now: what the program wrote before */
	bool whole;     /* named by the program: may be of any sort, so it is read whole */
	bool heap;      /* in another heap, which alone may arm it: read again in the stop */
	bool hidden;    /* pages of it may be out, and a system call does not bring them back */
};

struct rootlist {
	struct root *root;
	size_t n;
	size_t sorted; /* from here on by address: the kernel's mappings */
	bool full;
};

struct gu_rootset {
	struct rootlist armed;  /* as listed when the cycle began */
	struct rootlist latest; /* as listed last */
	struct gu_modules modules;
	struct gu_root_range service[SERVICE_MAX]; /* guard: entries atomic by count */
	uint32_t nservice;
};

/* All heaps' own, for those whose roots are the process's: what lies in another heap is the program's memory too. */
static struct gu_lock heaps_lock = GU_LOCK_INIT(GU_RANK_ROOTS);
static struct gcuffd_heap *heaps[GU_HEAPS + 1]; /* guard: heaps_lock; one may be made that is too many */

static void replace_heap(const struct gcuffd_heap *was, struct gcuffd_heap *now)
{
	gu_lock(&heaps_lock);
	for (size_t i = 0; i < GU_ARRAY_LEN(heaps); i++)
		if (heaps[i] == was) {
			heaps[i] = now;
			break;
		}
	gu_unlock(&heaps_lock);
}

static size_t list_len(void) { return ROOTS_MAX * sizeof(struct root); }

int gu_roots_create(struct gcuffd_heap *h)
{
	struct gu_rootset *r = gu_meta_map(gu_align_up(sizeof(*r), GU_PAGE));
	if (!r)
		return -ENOMEM;
	h->rootset = r;
	h->user_mode_only = gu_heap_is(h, GCUFFD_COLD_USER_FAULTS);
	r->armed.root = gu_meta_reserve(list_len());
	r->latest.root = gu_meta_reserve(list_len());
	if (r->armed.root && r->latest.root && !gu_meta_commit(r->armed.root, list_len()) &&
	    !gu_meta_commit(r->latest.root, list_len())) {
		replace_heap(NULL, h);
		return 0;
	}
	gu_roots_destroy(h);
	return -ENOMEM;
}

void gu_roots_destroy(struct gcuffd_heap *h)
{
	struct gu_rootset *r = h->rootset;
	if (!r)
		return;
	replace_heap(h, NULL);
	if (r->armed.root)
		gu_meta_unreserve(r->armed.root, list_len());
	if (r->latest.root)
		gu_meta_unreserve(r->latest.root, list_len());
	gu_meta_unmap(r, gu_align_up(sizeof(*r), GU_PAGE));
	h->rootset = NULL;
}

void gu_roots_service(struct gcuffd_heap *h, uintptr_t start, uintptr_t end)
{
	uint32_t i = gu_add_relaxed(&h->rootset->nservice, 1);
	if (i < SERVICE_MAX)
		h->rootset->service[i] = (struct gu_root_range){start, end};
}

void gu_roots_forked(struct gcuffd_heap *h)
{
	h->rootset->nservice = 0;
	h->user_mode_only = gu_heap_is(h, GCUFFD_COLD_USER_FAULTS);
}

/* Under the lock, for look() has it: where faults of system calls are handled too, what waits for one must not hold the region's lock. */
void gu_roots_set_faults(struct gcuffd_heap *h, bool user_mode_only)
{
	gu_lock(&heaps_lock);
	gu_store_relaxed(&h->user_mode_only, user_mode_only);
	gu_unlock(&heaps_lock);
}

/* ---- listing ---- */

static void add(struct rootlist *l, uintptr_t start, uintptr_t end, bool anon_only)
{
	start = gu_align_up(start, 8);
	end = gu_align_down(end, 8);
	if (end <= start)
		return;
	l->full |= l->n == ROOTS_MAX;
	if (!l->full)
		l->root[l->n++] = (struct root){start, end, false, anon_only, false, false, false};
}

static void add_segment(void *data, uintptr_t start, uintptr_t end) { add(data, start, end, false); }

/* What the library mapped for itself is no root (.inv.own.not-root). */
static void add_but_own(struct rootlist *l, uintptr_t start, uintptr_t end, bool anon_only)
{
	uintptr_t own_start, own_end;
	while (start < end && gu_own_next(start, &own_start, &own_end) && own_start < end) {
		add(l, start, gu_max(start, own_start), anon_only);
		start = own_end;
	}
	add(l, start, end, anon_only);
}

struct listing {
	struct rootlist *list;
	struct gu_thread *threads;
	uintptr_t guard_end; /* of the mapping before, if nothing may touch that */
};

/*
 * The stack that a thread runs on is read from its stack pointer, not as plain memory; but only where a guard
 * lies below it and its descriptor bounds it above: else the mapping may hold other things too, for the kernel
 * merges neighbours (.inv.root.stack). Of several merged stacks the lowest is left out.
 */
static uintptr_t stack_end_in(const struct gu_thread *threads, const struct gu_map *map)
{
	uintptr_t end = 0;
	bool main_stack = !strncmp(map->name, "[stack", 6);
	for (const struct gu_thread *t = threads; t; t = t->next)
		if (t->stack_hi > map->start && t->stack_hi <= map->end && (main_stack || (t->self > map->start && t->self < t->stack_hi)))
			end = end ? gu_min(end, t->stack_hi) : t->stack_hi;
	return end ? end : map->start;
}

static bool add_map(void *data, const struct gu_map *map)
{
	struct listing *l = data;
	bool guarded = l->guard_end == map->start || !strncmp(map->name, "[stack", 6);
	bool special = map->name[0] == '[' && strcmp(map->name, "[heap]") && strncmp(map->name, "[stack", 6) && strncmp(map->name, "[anon", 5);
	bool device = !strncmp(map->name, "/dev/", 5) && strcmp(map->name, "/dev/zero");
	bool guard = !(map->prot & (PROT_READ | PROT_WRITE | PROT_EXEC)) && map->end - map->start <= GUARD_MOST;
	l->guard_end = guard ? map->end : 0;
	if (map->shared || !(map->prot & PROT_READ) || special || device)
		return true;
	uintptr_t start = guarded ? stack_end_in(l->threads, map) : map->start;
	bool writable = map->prot & PROT_WRITE;
	add_but_own(l->list, start, map->end, !writable);
	return !l->list->full;
}

static void add_whole(struct rootlist *l, uintptr_t start, uintptr_t end)
{
	size_t n = l->n;
	add(l, start, end, false);
	if (l->n > n)
		l->root[n].whole = true;
}

static void list_explicit(struct gcuffd_heap *h, struct rootlist *l)
{
	gu_lock(&h->lock);
	for (size_t i = 0; i < h->nroots; i++)
		add_whole(l, h->roots[i].start, h->roots[i].end);
	gu_unlock(&h->lock);
}

/* What is out of a cold one has to come back: a page tells only its own heap where it points to. */
static void add_heap(struct rootlist *l, const struct gcuffd_heap *other)
{
	size_t n = l->n;
	add(l, other->space.base, other->space.base + gu_load_acquire(&other->space.top), false);
	if (l->n > n)
		l->root[n].whole = gu_heap_is(other, GCUFFD_COLD);
}

static void list_heaps(const struct gcuffd_heap *h, struct rootlist *l)
{
	gu_lock(&heaps_lock);
	for (size_t i = 0; i < GU_ARRAY_LEN(heaps); i++)
		if (heaps[i] && heaps[i] != h)
			add_heap(l, heaps[i]);
	gu_unlock(&heaps_lock);
}

/* With the list of threads. */
static int list_process(struct gcuffd_heap *h, struct rootlist *l)
{
	struct listing data = {l, gu_threads_first(), 0};
	uint32_t n = gu_min(gu_load_relaxed(&h->rootset->nservice), SERVICE_MAX);
	for (uint32_t i = 0; i < n; i++)
		add(l, h->rootset->service[i].start, h->rootset->service[i].end, false);
	list_heaps(h, l);
	l->sorted = l->n;
	return gu_maps_each(add_map, &data);
}

static bool may_hide(const struct gcuffd_heap *h) { return gu_load_relaxed(&h->user_mode_only) && gu_heap_is(h, GCUFFD_COLD_USER_FAULTS); }

/* What of the list is among the objects of a heap, be it this one. */
static void note_heap(const struct gcuffd_heap *h, const struct gcuffd_heap *in, struct rootlist *l)
{
	for (size_t i = 0; i < l->n; i++) {
		bool inside = l->root[i].start < in->space.base + in->space.size && l->root[i].end > in->space.base;
		l->root[i].heap |= inside && in != h;
		l->root[i].hidden |= inside && may_hide(in);
	}
}

static void note_heaps(const struct gcuffd_heap *h, struct rootlist *l)
{
	gu_lock(&heaps_lock);
	for (size_t i = 0; i < GU_ARRAY_LEN(heaps); i++)
		if (heaps[i])
			note_heap(h, heaps[i], l);
	gu_unlock(&heaps_lock);
}

/* A planted fault: the first range that the program named is forgotten, or if there is none the first one that is written. */
static void forget_one(const struct gcuffd_heap *h, struct rootlist *l)
{
	size_t i = l->n && l->root[0].whole ? 0 : l->sorted < l->n && gu_heap_is(h, GCUFFD_PROCESS_ROOTS) ? l->sorted : 0;
	while (i < l->n && l->root[i].anon_only)
		i++;
	if (h->options.debug & GCUFFD_PLANT_SKIP_ROOT && i < l->n)
		l->root[i].end = l->root[i].start;
}

/* In a stop the caller holds the list of threads. */
static int list_all(struct gcuffd_heap *h, struct rootlist *l, bool in_stop)
{
	int err = 0;
	l->n = 0;
	l->full = false;
	list_explicit(h, l);
	if (!gu_heap_is(h, GCUFFD_PROCESS_ROOTS)) {
		if (!gu_modules_read(&h->rootset->modules, add_segment, l))
			l->full = true;
		l->sorted = l->n;
	} else if (in_stop) {
		err = list_process(h, l);
	} else {
		gu_threads_lock();
		err = list_process(h, l);
		gu_threads_unlock();
	}
	note_heaps(h, l);
	forget_one(h, l);
	return err ? err : l->full ? -ENOMEM : 0;
}

struct shared_in {
	uintptr_t start, end;
	bool found;
};

static bool look_shared(void *data, const struct gu_map *map)
{
	struct shared_in *s = data;
	s->found |= map->shared && map->start < s->end && map->end > s->start;
	return !s->found && map->end < s->end;
}

/* Another mapping, or another process, writes to it unnoticed. */
static bool is_shared(uintptr_t start, uintptr_t end)
{
	struct shared_in s = {start, end, false};
	return gu_maps_each(look_shared, &s) || s.found;
}

int gu_roots_begin(struct gcuffd_heap *h, bool track)
{
	struct rootlist *l = &h->rootset->armed;
	int err = list_all(h, l, false);
	track = track && !gu_heap_without(h, GU_WITHOUT_tracked);
	for (size_t i = 0; track && i < l->n && !err; i++) {
		struct root *r = &l->root[i];
		uintptr_t start = gu_align_down(r->start, GU_PAGE), end = gu_align_up(r->end, GU_PAGE);
		if (end - start >= TRACK_MIN && !r->anon_only && !r->heap && !(r->whole && is_shared(start, end)))
			r->tracked = !gu_track_foreign_arm(h, start, end);
	}
	return err;
}

/* In a heap with process roots the stop lists for itself. */
int gu_roots_refresh(struct gcuffd_heap *h)
{
	return gu_heap_is(h, GCUFFD_PROCESS_ROOTS) ? 0 : list_all(h, &h->rootset->latest, false);
}

bool gu_roots_changed(struct gcuffd_heap *h)
{
	return !gu_heap_is(h, GCUFFD_PROCESS_ROOTS) && gu_modules_changed(&h->rootset->modules);
}

/* ---- scanning ---- */

struct clip {
	struct gu_marker *m;
	uintptr_t start, end;
	size_t pages;
};

static void scan_clipped(void *data, uintptr_t start, uintptr_t end)
{
	struct clip *c = data;
	gu_mark_foreign(c->m, gu_max(start, c->start), gu_min(end, c->end));
	c->pages += (end - start) >> GU_PAGE_SHIFT;
}

enum found { THERE, NOTHING, OUT };

#define TRIES 8 /* of reading what is there when it is looked at */

static void note_first(void *data, uintptr_t start, uintptr_t end)
{
	uintptr_t *first = data;
	(void)end;
	*first = gu_min(*first, start);
}

/* From page i, where nothing is, to the next one where something may be. r: NULL, or with its lock. */
static uintptr_t hole_end(struct gcuffd_heap *h, const struct gu_cold_region *r, uintptr_t at, size_t i)
{
	uintptr_t start = gu_align_down(at, GU_PAGE) + GU_PAGE;
	size_t n = i + 1;
	while (n < GU_REGION_PAGES && (!r || gu_load_relaxed(&r->state[n]) == GU_COLD_LIVE))
		n++;
	uintptr_t end = start + (n - i - 1) * GU_PAGE, first = end;
	return n > i + 1 && !gu_track_present(h, start, end, false, note_first, &first) ? start : first;
}

/* Under the region's lock a page neither goes out nor comes back. */
static enum found look_locked(const struct gu_cold_region *r, uintptr_t at, size_t i)
{
	enum gu_cold_state state = gu_load_relaxed(&r->state[i]);
	char byte;
	if (state != GU_COLD_LIVE)
		return state == GU_COLD_POISONED ? NOTHING : OUT;
	long got = gu_os->process_vm_readv(gu_os->gettid(), &byte, (const void *)at, 1);
	return got == 1 ? THERE : got == -EFAULT ? NOTHING : OUT;
}

static enum found look_in(struct gcuffd_heap *h, const struct gu_space *s, uintptr_t at, uintptr_t *next)
{
	size_t page = gu_space_page(s, at);
	struct gu_cold_region *r = gu_cold_region(&s->cold, page);
	if (!r) { /* nor is anything out as long as that is so */
		*next = hole_end(h, NULL, at, page % GU_REGION_PAGES);
		return gu_cold_region(&s->cold, page) ? THERE : NOTHING;
	}
	gu_lock(&r->lock);
	enum found found = look_locked(r, at, page % GU_REGION_PAGES);
	if (found == NOTHING)
		*next = hole_end(h, r, at, page % GU_REGION_PAGES);
	gu_unlock(&r->lock);
	return found;
}

/* An address could not be read: a hole, and a page that nobody can read, lead nowhere, up to *next; what is out does. */
static enum found look(struct gcuffd_heap *h, uintptr_t at, uintptr_t *next)
{
	enum found found = NOTHING;
	*next = gu_align_down(at, GU_PAGE) + GU_PAGE;
	gu_lock(&heaps_lock);
	for (size_t i = 0; i < GU_ARRAY_LEN(heaps); i++)
		if (heaps[i] && may_hide(heaps[i]) && gu_space_has(&heaps[i]->space, at))
			found = look_in(h, &heaps[i]->space, at, next);
	gu_unlock(&heaps_lock);
	return found;
}

/* Faults in it are for user code only, and the collector leaves what is out where it is: nothing may be swept then (.inv.root.hidden). */
static void scan_hidden(struct gcuffd_heap *h, struct gu_marker *m, uintptr_t start, uintptr_t end)
{
	uintptr_t next, was = 0;
	int tries = 0;
	for (uintptr_t at = start; (at = gu_mark_readable(m, at, end)) < end;) {
		enum found found = look(h, at, &next);
		tries = at == was ? tries + 1 : 0;
		was = at;
		if (found == OUT || tries == TRIES) {
			gu_mark_unreadable(h);
			return;
		}
		at = found == NOTHING ? next : at;
	}
}

/* Only what is populated, where that can be told: a sparse range would be filled with zero pages, a lazy one by its owner. */
static void scan_root(struct gcuffd_heap *h, struct gu_marker *m, const struct root *r, uintptr_t start, uintptr_t end)
{
	struct clip c = {m, start, end, 0};
	uintptr_t lo = gu_align_down(start, GU_PAGE), hi = gu_align_up(end, GU_PAGE);
	if (r->hidden)
		scan_hidden(h, m, start, end);
	else if (r->whole)
		gu_mark_foreign(m, start, end);
	else if (!gu_track_present(h, lo, hi, r->anon_only, scan_clipped, &c))
		gu_mark_foreign(m, start, end);
}

void gu_roots_scan(struct gcuffd_heap *h, struct gu_marker *m)
{
	struct rootlist *l = &h->rootset->armed;
	gu_pins_mark(h, m);
	for (size_t i = 0; i < l->n; i++)
		scan_root(h, m, &l->root[i], l->root[i].start, l->root[i].end);
}

static size_t scan_written(struct gcuffd_heap *h, struct gu_marker *m, const struct root *r, uintptr_t start, uintptr_t end)
{
	/* whole pages: what lies beside the range is not reported again to another range that shares its first or last page */
	struct clip c = {m, gu_align_down(start, GU_PAGE), gu_align_up(end, GU_PAGE), 0};
	/* .inv.root.tracked: it may have been unmapped, and mapped anew; re-arming makes the kernel say so */
	if (!gu_track_foreign_is_kept(h, c.start, c.end) || gu_track_foreign_collect(h, c.start, c.end, true, scan_clipped, &c))
		scan_root(h, m, r, start, end);
	return c.pages;
}

size_t gu_roots_preclean(struct gcuffd_heap *h, struct gu_marker *m)
{
	struct rootlist *l = &h->rootset->armed;
	size_t pages = 0;
	for (size_t i = 0; i < l->n; i++)
		if (l->root[i].tracked)
			pages += scan_written(h, m, &l->root[i], l->root[i].start, l->root[i].end);
	return pages;
}

/* The first of the sorted ranges that ends above at. */
static size_t first_above(const struct rootlist *l, uintptr_t at)
{
	size_t lo = l->sorted, hi = l->n;
	while (lo < hi) {
		size_t mid = (lo + hi) / 2;
		if (l->root[mid].end <= at)
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo;
}

/* Parts of r that lie in tracked ranges: what was written there. The rest: all of it. */
static void remark_root(struct gcuffd_heap *h, struct gu_marker *m, const struct rootlist *armed, const struct root *r)
{
	uintptr_t at = r->start;
	for (size_t i = 0; i < armed->n && at < r->end; i++) {
		if (i == armed->sorted)
			i = first_above(armed, at);
		if (i == armed->n || (i >= armed->sorted && armed->root[i].start >= r->end))
			break;
		const struct root *a = &armed->root[i];
		if (!a->tracked || a->end <= at || a->start >= r->end || r->anon_only)
			continue;
		uintptr_t from = gu_max(at, a->start), to = gu_min(r->end, a->end);
		if (from > at)
			scan_root(h, m, r, at, from);
		scan_written(h, m, r, from, to);
		at = to;
	}
	if (at < r->end)
		scan_root(h, m, r, at, r->end);
}

/*
 * Segments were listed before the stop. Where one was unloaded since, the library may have mapped something by now, the
 * verifier even since the remark: a list of blocks, by which the first object of each would be reachable.
 */
static int cut_own(struct rootlist *l)
{
	for (size_t i = 0, n = l->n; i < n; i++) {
		struct root *r = &l->root[i];
		uintptr_t own_start, own_end, end = r->end;
		if (r->whole || !gu_own_next(r->start, &own_start, &own_end) || own_start >= end)
			continue;
		r->end = gu_max(r->start, own_start);
		add_but_own(l, own_end, end, r->anon_only);
	}
	return l->full ? -ENOMEM : 0;
}

/* A list that is not whole must not lead to a sweep. */
static int relist_in_stop(struct gcuffd_heap *h, struct rootlist *l)
{
	return gu_heap_is(h, GCUFFD_PROCESS_ROOTS) ? list_all(h, l, true) : cut_own(l);
}

int gu_roots_remark(struct gcuffd_heap *h, struct gu_marker *m)
{
	struct gu_rootset *s = h->rootset;
	struct rootlist *l = &s->latest;
	int err = relist_in_stop(h, l);
	gu_pins_mark(h, m);
	for (size_t i = 0; i < l->n; i++)
		remark_root(h, m, &s->armed, &l->root[i]);
	return err;
}

/* ---- threads ---- */

struct in_place {
	const struct gu_root_visit *visit;
	uintptr_t not_lo, not_hi; /* already visited */
};

static void visit_tls(void *data, uintptr_t start, uintptr_t end)
{
	struct in_place *p = data;
	if (start < p->not_lo || end > p->not_hi)
		p->visit->range(p->visit->data, gu_align_up(start, 8), gu_align_down(end, 8), true);
}

static void visit_populated(void *data, uintptr_t start, uintptr_t end)
{
	const struct gu_root_visit *v = data;
	v->range(v->data, start, end, true);
}

/* All of its own stack, which may have grown. */
static void visit_own_whole(struct gcuffd_heap *h, struct gu_thread *t, const struct gu_root_visit *v)
{
	struct gu_map map;
	if (!t->stack_hi)
		return;
	if (gu_maps_find(t->stack_hi - 1, &map))
		gu_mark_unreadable(h);
	else
		t->stack_lo = map.start;
	if (!gu_track_present(h, t->stack_lo, t->stack_hi, false, visit_populated, (void *)v))
		v->range(v->data, t->stack_lo, t->stack_hi, true);
}

/* Stopped on a stack that is not its own (sigaltstack): that one from sp up, and its own. */
static void visit_other_stack(struct gcuffd_heap *h, struct gu_thread *t, uintptr_t end, const struct gu_root_visit *v)
{
	v->range(v->data, gu_align_down(t->sp, 8), end, false);
	visit_own_whole(h, t, v);
}

static void visit_saved(const struct gcuffd_stack *s, const struct gu_root_visit *v)
{
	v->range(v->data, (uintptr_t)s->saved, (uintptr_t)s->saved + sizeof(s->saved), false);
}

/* Stopped on a registered stack, which comes with the others: its own as it was left. If it was left for one that nobody named, from which the thread went on: all of it. */
static void visit_own_left(struct gcuffd_heap *h, struct gu_thread *t, const struct gu_root_visit *v)
{
	uintptr_t sp = t->own.sp;
	if (sp)
		visit_saved(&t->own, v);
	if (sp && !t->stack_hi && gu_thread_find_stack(t, sp))
		gu_mark_unreadable(h);
	else if (sp && gu_thread_owns(t, sp))
		v->range(v->data, gu_align_down(sp - GU_STACK_BELOW, 8), t->stack_hi, true);
	else
		visit_own_whole(h, t, v);
}

static void visit_registered(const struct gcuffd_stack *s, const struct gu_root_visit *v)
{
	uintptr_t below = gu_max(s->sp, GU_STACK_BELOW) - GU_STACK_BELOW;
	if (s->at) {
		v->range(v->data, gu_align_down(s->at, 8), s->high, true);
		return;
	}
	visit_saved(s, v);
	if (s->whole || s->sp != s->high)
		v->range(v->data, s->whole ? s->low : gu_align_down(gu_max(below, s->low), 8), s->high, true);
}

/* A coroutine's stack that is an object of the heap: what lies above it in the mapping is not stack. */
static bool on_object(struct gcuffd_heap *h, struct gu_thread *t, const struct gu_root_visit *v)
{
	const struct gu_block *b = gu_block_at(&h->space, t->sp);
	uint32_t cell;
	if (!b || !gu_block_cell(b, t->sp, &cell))
		return false;
	visit_other_stack(h, t, gu_block_cell_addr(b, cell) + b->cell, v);
	return true;
}

static void visit_stack(struct gcuffd_heap *h, struct gu_thread *t, const struct gu_root_visit *v)
{
	struct gu_map map;
	if (t->blocking != GU_RUNNING)
		v->range(v->data, (uintptr_t)t->saved, (uintptr_t)t->saved + sizeof(t->saved), false);
	if (t->alt_hi) {
		visit_other_stack(h, t, t->alt_hi, v);
		return;
	}
	if (gu_stack_under(t, t->sp)) {
		visit_own_left(h, t, v);
		return;
	}
	if (on_object(h, t, v))
		return;
	if (!t->stack_hi && gu_thread_find_stack(t, t->sp))
		gu_mark_unreadable(h);
	if (t->sp >= t->stack_lo && t->sp < t->stack_hi) {
		v->range(v->data, gu_align_down(t->sp, 8), t->stack_hi, t->unbounded);
	} else if (gu_maps_find(t->sp, &map)) {
		gu_mark_unreadable(h);
	} else {
		if (map.end < t->stack_hi || map.start >= t->stack_hi) {
			visit_other_stack(h, t, map.end, v);
		} else { /* the main thread's has grown */
			t->stack_lo = map.start;
			v->range(v->data, gu_align_down(t->sp, 8), t->stack_hi, false);
		}
	}
}

/* The bounds of what is around a TCB are guesses upwards: what the library mapped beside it is left out. */
static void visit_around(uintptr_t tcb, uintptr_t start, uintptr_t end, const struct gu_root_visit *v)
{
	uintptr_t own_start, own_end;
	bool found;
	while ((found = gu_own_next(start, &own_start, &own_end)) && own_end <= tcb)
		start = own_end;
	if (found && own_start > tcb)
		end = gu_min(end, own_start);
	v->range(v->data, gu_align_down(start, 8), gu_align_down(end, 8), true);
}

static void visit_thread_tls(struct gcuffd_heap *h, const struct gu_thread *t, const struct gu_root_visit *v)
{
	const struct gu_modules *m = &h->rootset->modules;
	bool own = t->sp >= t->stack_lo && t->sp < t->stack_hi;
	struct in_place p = {v, own ? t->sp : t->stack_hi, t->stack_hi};
	if (!t->self)
		return;
	if (t->self < p.not_lo || t->self >= t->stack_hi) /* the main thread: static TLS below the TCB, its descriptor above */
#if defined(__aarch64__)
		visit_around(t->self, t->self, t->self + GU_TCB_BYTES + m->tls_static, v);
#else
		visit_around(t->self, t->self - m->tls_static, t->self + GU_TCB_BYTES, v);
#endif
	if (!gu_modules_tls(m, t->self, visit_tls, &p))
		gu_mark_unreadable(h);
}

static void each_thread(struct gcuffd_heap *h, const struct gu_root_visit *v, bool tls)
{
	gu_stacks_place();
	for (const struct gcuffd_stack *s = gu_stacks_first(); s; s = s->next)
		visit_registered(s, v);
	for (struct gu_thread *t = gu_threads_first(); t; t = t->next) {
		visit_stack(h, t, v);
		if (tls && !gu_heap_is(h, GCUFFD_PROCESS_ROOTS))
			visit_thread_tls(h, t, v);
	}
}

static void mark_visited(void *data, uintptr_t start, uintptr_t end, bool foreign)
{
	if (foreign)
		gu_mark_foreign(data, start, end);
	else
		gu_mark_range(data, start, end);
}

static uint64_t words_of(struct gcuffd_heap *h)
{
	struct gu_mark_counts c;
	gu_mark_counts(h, &c);
	return c.words;
}

uint64_t gu_roots_stacks(struct gcuffd_heap *h, struct gu_marker *m)
{
	struct gu_root_visit v = {mark_visited, m};
	uint64_t before = words_of(h);
	each_thread(h, &v, !(h->options.debug & GCUFFD_PLANT_SKIP_TLS));
	return words_of(h) - before;
}

void gu_roots_each(struct gcuffd_heap *h, const struct gu_root_visit *v)
{
	struct rootlist *l = &h->rootset->latest;
	relist_in_stop(h, l);
	for (size_t i = 0; i < l->n; i++)
		if (!l->root[i].anon_only)
			v->range(v->data, l->root[i].start, l->root[i].end, true);
	gu_pins_each(h, v);
	gu_final_each(h, v);
	each_thread(h, v, true);
}
