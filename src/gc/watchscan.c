/* SPDX-License-Identifier: MIT */
/*
 * watchscan.c - one scan of a piece for everybody: what PAGEMAP_SCAN finds goes into the bitmaps of every watcher of
 * the page before anything is reported. Called with gu_watch_lock held, for a piece that was verified.
 *
 * .assume.watch.zap: what dropping armed pages leaves: nothing in anonymous memory; a marker, which reads as not
 * written, in all other.
 */
#include <errno.h>

#include "base/without.h"
#include "gc/watchtable.h"
#include "sys/os.h"
#include "sys/uffd.h"

#define VEC_LEN 256

typedef gu_watch_visit_fn visit_fn;

/* A piece is a chunk: huge pages must not be cut, which sys/scan.h's chunks do. */
static int scan(struct gu_pm_scan_arg arg, uintptr_t start, uintptr_t end, visit_fn *visit, void *data)
{
	struct gu_page_region vec[VEC_LEN];
	arg.size = sizeof(arg);
	arg.vec = (uintptr_t)vec;
	arg.vec_len = VEC_LEN;
	arg.end = end;
	for (arg.start = start; arg.start < end; arg.start = arg.walk_end) {
		arg.walk_end = 0;
		long n = gu_os->ioctl(gu_watch_fds.pagemap, GU_PAGEMAP_SCAN, &arg);
		if (n < 0)
			return (int)n;
		if (arg.walk_end <= arg.start || arg.walk_end > end || n > VEC_LEN)
			return -EIO;
		for (long i = 0; i < n; i++)
			visit(data, vec[i].start, vec[i].end);
	}
	return 0;
}

struct look {
	struct gcuffd_watch *only; /* NULL: for everybody */
	bool reset, there;
	bool whole; /* pages that are armed are to be seen too: a watcher is new to them */
	uintptr_t at; /* what lies between the populated pages is empty */
	uint64_t *pages;
	int error;
};

static void visit_written(void *data, uintptr_t start, uintptr_t end)
{
	struct look *l = data;
	gu_watch_note(l->only, start, end, l->there);
	*l->pages += (end - start) >> GU_PAGE_SHIFT;
}

/* Pages are armed after everybody was told of them: what happens in between belongs to the epoch that ends. */
static void visit_accessed(void *data, uintptr_t start, uintptr_t end)
{
	struct look *l = data;
	visit_written(data, start, end);
	int err = l->reset ? gu_uffd_rwprotect(gu_watch_fds.uffd, start, end - start, true) : 0;
	l->error = err && err != -ENOENT ? err : l->error;
}

static void protect(struct look *l, uintptr_t start, uintptr_t end, bool on)
{
	int err = l->reset ? gu_uffd_writeprotect(gu_watch_fds.uffd, start, end - start, on) : 0;
	l->error = err && err != -ENOENT ? err : l->error;
}

/* The same for empty pages that PAGEMAP_SCAN does not arm. */
static void visit_empty(void *data, uintptr_t start, uintptr_t end)
{
	visit_written(data, start, end);
	protect(data, start, end, true);
}

/* A private copy in swap looks like a marker that was left where one was dropped; without it, a hole is left. */
static void visit_swapped(void *data, uintptr_t start, uintptr_t end)
{
	visit_written(data, start, end);
	protect(data, start, end, false);
}

static void visit_populated(void *data, uintptr_t start, uintptr_t end)
{
	struct look *l = data;
	if (l->at < start)
		gu_watch_gap(l->only, l->at, start, l->reset);
	gu_watch_seen(l->only, start, end);
	l->at = end;
}

static uint64_t flags_of(const struct look *l) { return l->reset ? GU_PM_SCAN_WP_MATCHING | GU_PM_SCAN_CHECK_WPASYNC : 0; }

/* Written pages that hold something of their own; empty ones are not armed. */
static int scan_cheap(struct look *l, const struct gu_watch_range *p, uint64_t none_of, uint64_t any_of)
{
	struct gu_pm_scan_arg arg = {
		.flags = flags_of(l),
		.category_inverted = none_of,
		.category_mask = GU_PAGE_IS_WRITTEN | none_of,
		.category_anyof_mask = any_of,
		.return_mask = GU_PAGE_IS_WRITTEN,
	};
	return scan(arg, p->start, p->end, visit_written, l);
}

static int scan_dropped(struct look *l, const struct gu_watch_range *p, uint64_t none_of, uint64_t any_of)
{
	struct gu_pm_scan_arg arg = {
		.category_inverted = none_of,
		.category_mask = none_of,
		.category_anyof_mask = any_of,
		.return_mask = GU_PAGE_IS_PRESENT,
	};
	l->at = p->start;
	int err = scan(arg, p->start, p->end, visit_populated, l);
	if (!err && l->at < p->end)
		gu_watch_gap(l->only, l->at, p->end, l->reset);
	return err;
}

static int scan_precise(struct look *l, const struct gu_watch_range *p)
{
	struct gu_pm_scan_arg arg = {
		.flags = flags_of(l),
		.category_mask = GU_PAGE_IS_WRITTEN,
		.return_mask = GU_PAGE_IS_WRITTEN,
	};
	l->there = true; /* or may be: empty pages are told as written too */
	return scan(arg, p->start, p->end, visit_written, l);
}

static int scan_category(struct look *l, const struct gu_watch_range *p, uint64_t mask, uint64_t inverted, visit_fn *visit)
{
	struct gu_pm_scan_arg arg = {.category_inverted = inverted, .category_mask = mask, .return_mask = GU_PAGE_IS_PRESENT};
	int err = scan(arg, p->start, p->end, visit, l);
	return err ? err : l->error;
}

#define SOMETHING (GU_PAGE_IS_PRESENT | GU_PAGE_IS_SWAPPED)
#define NOTHING (GU_PAGE_IS_WRITTEN | SOMETHING) /* inverted: no page and no marker */

/* Where all empty pages have markers, one without was dropped. */
static int scan_empty(struct look *l, const struct gu_watch_range *p)
{
	return scan_category(l, p, NOTHING, NOTHING, visit_empty);
}

static int scan_shared(struct look *l, const struct gu_watch_range *p)
{
	int err = scan_precise(l, p);
	bool told = gu_watch_fds.tells_holes && p->kind != GU_WATCH_HUGE_SHARED;
	return err || told ? err : scan_empty(l, p);
}

/* The zero page is nothing of a process's own, nor is a file's: but to ask for that costs a look at each page's struct. */
#define NOT_OWN (GU_PAGE_IS_PFNZERO | GU_PAGE_IS_FILE)

static int scan_slowly(struct look *l, const struct gu_watch_range *p)
{
	int err = scan_cheap(l, p, GU_PAGE_IS_PFNZERO, SOMETHING);
	return err ? err : scan_dropped(l, p, GU_PAGE_IS_PFNZERO, SOMETHING);
}

#define SPANS 8

struct spans {
	struct gu_watch_span span[SPANS];
	size_t count;
};

static void visit_unarmed(void *data, uintptr_t start, uintptr_t end)
{
	struct spans *s = data;
	if (s->count < SPANS)
		s->span[s->count++] = (struct gu_watch_span){start, end};
	else
		s->span[SPANS - 1].end = end;
}

/* Five times faster than the scans that tell pages from holes is one that tells what is armed: that is there, and clean. */
static int scan_unarmed(struct look *l, const struct gu_watch_range *p)
{
	struct gu_pm_scan_arg arg = {.category_mask = GU_PAGE_IS_WRITTEN, .return_mask = GU_PAGE_IS_WRITTEN};
	struct spans s = {.count = 0};
	int err = scan(arg, p->start, p->end, visit_unarmed, &s);
	for (size_t i = 0; i < s.count && !err; i++) {
		struct gu_watch_range part = *p;
		part.start = s.span[i].start;
		part.end = s.span[i].end;
		err = scan_slowly(l, &part);
	}
	return err;
}

static int scan_anon(struct look *l, const struct gu_watch_range *p, bool precise)
{
	if (!precise)
		return l->whole || !gu_watch_fds.tells_holes || gu_is_without(GU_WITHOUT_unarmed) ? scan_slowly(l, p) : scan_unarmed(l, p);
	int err = scan_shared(l, p);
	bool asks = !(p->flags & GCUFFD_WATCH_PRECISE);
	return err || !asks ? err : scan_dropped(l, p, GU_PAGE_IS_PFNZERO, SOMETHING);
}

static int scan_private(struct look *l, const struct gu_watch_range *p)
{
	int err = scan_cheap(l, p, NOT_OWN, SOMETHING);
	if (!err)
		err = scan_category(l, p, GU_PAGE_IS_SWAPPED, 0, visit_swapped);
	return err ? err : scan_dropped(l, p, NOT_OWN, SOMETHING);
}

static int scan_huge(struct look *l, const struct gu_watch_range *p)
{
	int err = scan_cheap(l, p, GU_PAGE_IS_FILE, GU_PAGE_IS_PRESENT);
	return err ? err : scan_dropped(l, p, GU_PAGE_IS_FILE, GU_PAGE_IS_PRESENT);
}

static int scan_accesses(struct look *l, const struct gu_watch_range *p)
{
	int err = scan_category(l, p, GU_PAGE_IS_ACCESSED, 0, visit_accessed);
	return err ? err : scan_dropped(l, p, 0, SOMETHING);
}

/*
 * What an empty page says:
 *   anonymous, precise     armed as a marker; none: dropped, and told as written
 *   anonymous, cheap       not armed; it was dropped if it was there
 *   private over a file    the same; and DONTNEED turns an armed copy into a marker
 *   shared                 armed as a marker, which stays when the page is only unmapped
 *   hugetlb                not armed nor told by PAGEMAP_SCAN: shared ones get their markers here
 */
int gu_watch_scan(struct gcuffd_watch *only, const struct gu_watch_range *p, bool precise, enum gu_watch_how how, uint64_t *pages)
{
	struct look l = {.only = only, .reset = how != GU_WATCH_LOOK, .whole = how == GU_WATCH_ARM, .pages = pages};
	if (p->flags & GCUFFD_WATCH_ACCESSES)
		return scan_accesses(&l, p);
	switch (p->kind) {
	case GU_WATCH_ANON: return scan_anon(&l, p, precise);
	case GU_WATCH_PRIVATE: return scan_private(&l, p);
	case GU_WATCH_HUGE: return scan_huge(&l, p);
	default: return scan_shared(&l, p);
	}
}

/* Costs a look at each mapping, and none at pages of those that are registered. */
int gu_watch_find_lost(const struct gu_watch_range *p, gu_watch_visit_fn *visit, void *data)
{
	struct gu_pm_scan_arg arg = {
		.category_inverted = GU_PAGE_IS_WPALLOWED,
		.category_mask = GU_PAGE_IS_WPALLOWED,
		.return_mask = GU_PAGE_IS_WPALLOWED,
	};
	return scan(arg, p->start, p->end, visit, data);
}
