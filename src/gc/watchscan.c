/* SPDX-License-Identifier: MIT */
/*
 * watchscan.c - one scan of a piece for everybody: what PAGEMAP_SCAN finds goes into the bitmaps of every watcher of
 * the page before anything is reported. Called with gu_watch_lock held, for a piece that was verified.
 *
 * .assume.watch.zap: what dropping armed pages leaves: nothing in anonymous memory; a marker, which reads as not
 * written, in all other.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/without.h"
#include "gc/watchtable.h"
#include "sys/os.h"
#include "sys/scan.h"
#include "sys/uffd.h"

#define VEC_LEN 512 /* as many as the kernel itself keeps before it copies them out */
#define FEW 8
#define MOST_PAGES (GU_SCAN_CHUNK >> GU_PAGE_SHIFT) /* that are found at once */

typedef gu_watch_visit_fn visit_fn;
typedef void take_fn(void *data, const struct gu_page_region *found, size_t n);

/* Moves arg->start on. take() does not scan. vec_len 0: as long as there is. */
static int scan_once(struct gu_pm_scan_arg *arg, take_fn *take, void *data)
{
	static struct gu_page_region vec[VEC_LEN]; /* guard: gu_watch_lock */
	arg->size = sizeof(*arg);
	arg->vec = take ? (uintptr_t)vec : 0;
	arg->vec_len = !take ? 0 : arg->vec_len ? arg->vec_len : VEC_LEN;
	arg->walk_end = 0;
	long n = gu_os->ioctl(gu_watch_fds.pagemap, GU_PAGEMAP_SCAN, arg);
	if (n < 0 && arg->flags & GU_PM_SCAN_WP_MATCHING)
		gu_watch_note(NULL, arg->start, arg->end, false); /* some of it may be armed, and is not told */
	if (n < 0)
		return (int)n;
	if (arg->walk_end <= arg->start || arg->walk_end > arg->end || (take && n > VEC_LEN))
		return -EIO;
	if (take)
		take(data, vec, (size_t)n);
	arg->start = arg->walk_end;
	return 0;
}

/* A chunk at most: huge pages must not be cut, which sys/scan.h's chunks do. */
static int scan(struct gu_pm_scan_arg arg, uintptr_t start, uintptr_t end, take_fn *take, void *data)
{
	int err = 0;
	arg.start = start;
	arg.end = end;
	while (arg.start < end && !err)
		err = scan_once(&arg, take, data);
	return err;
}

struct each {
	visit_fn *visit;
	void *data;
};

static void take_each(void *data, const struct gu_page_region *found, size_t n)
{
	const struct each *e = data;
	for (size_t i = 0; i < n; i++)
		e->visit(e->data, found[i].start, found[i].end);
}

static int scan_each(struct gu_pm_scan_arg arg, const struct gu_watch_range *p, visit_fn *visit, void *data)
{
	return scan(arg, p->start, p->end, take_each, &(struct each){visit, data});
}

struct look {
	struct gcuffd_watch *only; /* NULL: for everybody */
	bool reset, there, full;
	bool whole; /* pages that are armed are to be seen too: a watcher is new to them */
	uintptr_t at; /* what lies between the populated pages is empty, or the other way round */
	uintptr_t end; /* of what is scanned quickly */
	uint64_t pages, idle; /* found; looked at besides: empty, or in swap and armed */
	struct gu_watch_sink *sink; /* or NULL: what is found quickly goes there, not into a bitmap */
	struct gu_watch_range *piece;
	struct gu_watch_span lost; /* armed there, pages may have lost their entry: huge ones of shared memory */
	int error;
};

static void take_written(void *data, const struct gu_page_region *found, size_t n)
{
	struct look *l = data;
	gu_watch_note_found(l->only, found, n, l->there);
	for (size_t i = 0; i < n; i++)
		l->pages += (found[i].end - found[i].start) >> GU_PAGE_SHIFT;
}

static size_t take_each_found(struct gu_watch_sink *sink, const struct gu_page_region *found, size_t n)
{
	size_t i = 0;
	while (i < n && sink->take(sink, found[i].start, found[i].end))
		i++;
	return i;
}

/* What does not fit is pending. */
static void take_reported(void *data, const struct gu_page_region *found, size_t n)
{
	struct look *l = data;
	size_t i = (l->sink->take_found ? l->sink->take_found : take_each_found)(l->sink, found, n);
	for (size_t k = 0; k < i; k++)
		l->pages += (found[k].end - found[k].start) >> GU_PAGE_SHIFT;
	l->sink->direct = l->pages;
	l->full = i < n;
	if (l->full)
		take_written(l, found + i, n - i);
}

static void visit_written(struct look *l, uintptr_t start, uintptr_t end)
{
	take_written(l, &(struct gu_page_region){start, end, 0}, 1);
}

static void rwprotect(struct look *l, uintptr_t start, uintptr_t end)
{
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

/* A zero page that is armed took the place of a marker; one that is not may have been read where a page was dropped. */
static void take_populated(void *data, const struct gu_page_region *found, size_t n)
{
	const uint64_t new_zeros = GU_PAGE_IS_PFNZERO | GU_PAGE_IS_WRITTEN;
	for (size_t i = 0; i < n; i++)
		if ((found[i].categories & new_zeros) != new_zeros)
			visit_populated(data, found[i].start, found[i].end);
}

static uint64_t flags_of(const struct look *l) { return l->reset ? GU_PM_SCAN_WP_MATCHING | GU_PM_SCAN_CHECK_WPASYNC : 0; }

#define SOMETHING (GU_PAGE_IS_PRESENT | GU_PAGE_IS_SWAPPED)

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
	return scan(arg, p->start, p->end, take_written, l);
}

static int scan_populated(struct look *l, struct gu_pm_scan_arg arg, const struct gu_watch_range *p, take_fn *take, void *data)
{
	l->at = p->start;
	int err = scan(arg, p->start, p->end, take, data);
	if (!err && l->at < p->end)
		gu_watch_gap(l->only, l->at, p->end, l->reset);
	return err;
}

static int scan_dropped(struct look *l, const struct gu_watch_range *p, uint64_t none_of, uint64_t any_of)
{
	struct gu_pm_scan_arg arg = {
		.category_inverted = none_of,
		.category_mask = none_of,
		.category_anyof_mask = any_of,
		.return_mask = GU_PAGE_IS_PRESENT,
	};
	return scan_populated(l, arg, p, take_each, &(struct each){visit_populated, l});
}

static int scan_dropped_anon(struct look *l, const struct gu_watch_range *p)
{
	struct gu_pm_scan_arg arg = {
		.category_anyof_mask = SOMETHING,
		.return_mask = GU_PAGE_IS_PFNZERO | GU_PAGE_IS_WRITTEN,
	};
	return scan_populated(l, arg, p, take_populated, l);
}

/* Who asks for more than what is written makes the kernel go its full way, which tells no empty pages. */
static struct gu_pm_scan_arg written_or_empty(const struct look *l)
{
	return (struct gu_pm_scan_arg){
		.flags = flags_of(l),
		.category_mask = GU_PAGE_IS_WRITTEN,
		.return_mask = GU_PAGE_IS_WRITTEN | (gu_watch_fds.short_way ? 0 : GU_PAGE_IS_WPALLOWED),
	};
}

static int scan_precise(struct look *l, const struct gu_watch_range *p)
{
	l->there = p->kind == GU_WATCH_ANON; /* or may be: empty pages are told as written too */
	return scan(written_or_empty(l), p->start, p->end, take_written, l);
}

static int scan_category(struct look *l, const struct gu_watch_range *p, uint64_t mask, uint64_t inverted, visit_fn *visit)
{
	struct gu_pm_scan_arg arg = {.category_inverted = inverted, .category_mask = mask, .return_mask = GU_PAGE_IS_PRESENT};
	int err = scan_each(arg, p, visit, l);
	return err ? err : l->error;
}

#define NOTHING (GU_PAGE_IS_WRITTEN | SOMETHING) /* inverted: no page and no marker */

/* Where all empty pages have markers, one without was dropped. */
static int scan_empty(struct look *l, const struct gu_watch_range *p)
{
	return scan_category(l, p, NOTHING, NOTHING, visit_empty);
}

/* Nobody is to be told of it. Without a list to fill the kernel is faster by a quarter. */
static int arm_alone(struct look *l, const struct gu_watch_range *p)
{
	struct gu_pm_scan_arg arg = {.flags = flags_of(l), .category_mask = GU_PAGE_IS_WRITTEN};
	l->pages += (p->end - p->start) >> GU_PAGE_SHIFT;
	if (p->kind == GU_WATCH_ANON)
		gu_watch_seen(NULL, p->start, p->end);
	return scan(arg, p->start, p->end, NULL, NULL);
}

static bool is_alone(const struct look *l, const struct gu_watch_range *p) { return l->whole && !gu_watch_has_others(p); }

static int scan_shared(struct look *l, const struct gu_watch_range *p)
{
	int err = is_alone(l, p) ? arm_alone(l, p) : scan_precise(l, p);
	bool told = gu_watch_fds.tells_holes && p->kind != GU_WATCH_HUGE_SHARED;
	return err || told ? err : scan_empty(l, p);
}

/* The zero page is nothing of a process's own, nor is a file's: but to ask for that costs a look at each page's struct. */
#define NOT_OWN (GU_PAGE_IS_PFNZERO | GU_PAGE_IS_FILE)

static int scan_slowly(struct look *l, const struct gu_watch_range *p)
{
	int err = scan_cheap(l, p, GU_PAGE_IS_PFNZERO, SOMETHING);
	return err ? err : scan_dropped_anon(l, p);
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
	int err = scan_each(arg, p, visit_unarmed, &s);
	for (size_t i = 0; i < s.count && !err; i++) {
		struct gu_watch_range part = *p;
		part.start = s.span[i].start;
		part.end = s.span[i].end;
		err = scan_slowly(l, &part);
	}
	return err;
}

static uintptr_t table_end(uintptr_t at, uintptr_t end) { return gu_min(gu_align_down(at, GU_REGION) + GU_REGION, end); }

#define MOST_TABLES 64 /* a bit each */

/*
 * Bit i: there is a page where the i-th page table of the chunk adjoins another. Then most likely all that it maps is there; if not,
 * markers for the others take no more page table than there is. The zero page counts too: it has an entry. Of two page tables one
 * call tells: it costs what arming 20 to 40 pages does.
 */
static uint64_t find_tables(const struct gu_watch_range *p)
{
	uint64_t found = 0;
	unsigned bit = 0;
	for (uintptr_t at = p->start; at < p->end; at = table_end(at, p->end), bit += 2) {
		unsigned char there[2] = {0, 0};
		at = table_end(at, p->end);
		if (!syscall(SYS_mincore, at - GU_PAGE, at < p->end ? 2 * GU_PAGE : GU_PAGE, there))
			found |= (uint64_t)((there[0] & 1u) | (there[1] & 1u) << 1) << bit;
	}
	return found;
}

/* Others are not to be told of zero pages that were read. */
static int arm_anon(struct look *l, const struct gu_watch_range *p)
{
	uint64_t tables = gu_watch_fds.tells_holes && is_alone(l, p) && !gu_is_without(GU_WITHOUT_full) ? find_tables(p) : 0;
	struct gu_watch_range part = *p;
	int err = 0;
	for (; part.start < p->end && !err; part.start = part.end) {
		bool quick = tables & 1;
		for (part.end = part.start; part.end < p->end && (tables & 1) == quick; tables >>= 1)
			part.end = table_end(part.end, p->end);
		err = quick ? arm_alone(l, &part) : scan_slowly(l, &part);
	}
	return err;
}

static int scan_anon(struct look *l, const struct gu_watch_range *p, bool precise)
{
	if (!precise && l->whole)
		return arm_anon(l, p);
	if (!precise)
		return !gu_watch_fds.tells_holes || gu_is_without(GU_WITHOUT_unarmed) ? scan_slowly(l, p) : scan_unarmed(l, p);
	int err = scan_shared(l, p);
	bool asks = !(p->flags & GCUFFD_WATCH_PRECISE);
	return err || !asks ? err : scan_dropped_anon(l, p);
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

static void tell(struct look *l, uintptr_t start, uintptr_t end)
{
	struct gu_page_region found = {start, end, 0};
	(l->sink && !l->full ? take_reported : take_written)(l, &found, 1);
}

/* Those of the pages that were there are told, in their turn: what is pending would come after all that is not. */
static void tell_gap(struct look *l, uintptr_t start, uintptr_t end)
{
	struct gu_watch_span run;
	gu_watch_gap(l->only, start, end, l->reset);
	while (l->sink && !l->full && gu_watch_run(l->piece, start, end, &run)) {
		gu_watch_clear(l->piece, run.start, run.end);
		tell(l, run.start, run.end);
		start = run.end;
	}
}

/* Where huge pages of shared memory are armed they may lose their entry. */
static void see_accessed(struct look *l, uintptr_t start, uintptr_t end, uint64_t categories)
{
	const uint64_t losing = GU_PAGE_IS_HUGE | GU_PAGE_IS_ACCESSED;
	if (l->piece->kind != GU_WATCH_SHARED || (categories & losing) != losing) {
		l->sink ? gu_watch_seen_here(l->piece, start, end) : gu_watch_seen(l->only, start, end);
		return;
	}
	l->lost.start = l->lost.end ? l->lost.start : start;
	l->lost.end = end;
}

/* Pages are armed after everybody was told of them: what happens in between belongs to the epoch that ends. */
static void take_accessed(void *data, const struct gu_page_region *found, size_t n)
{
	struct look *l = data;
	for (size_t i = 0; i < n; i++) {
		uintptr_t start = found[i].start, end = found[i].end;
		if (found[i].categories & GU_PAGE_IS_ACCESSED)
			tell(l, start, end), rwprotect(l, start, end);
		else
			l->idle += (end - start) >> GU_PAGE_SHIFT;
		if (!(found[i].categories & (GU_PAGE_IS_ACCESSED | SOMETHING)))
			tell_gap(l, start, end);
		else
			see_accessed(l, start, end, found[i].categories);
	}
}

/* A huge page that the last one has a part of is left to the next call: arming a part would split it. */
static void take_some_accessed(void *data, const struct gu_page_region *found, size_t n)
{
	struct look *l = data;
	struct gu_page_region last = {0, 0, 0};
	if (n)
		last = found[--n];
	uintptr_t whole = gu_align_down(last.end, GU_REGION);
	if (last.categories & GU_PAGE_IS_HUGE && whole < last.end && last.end < l->end && (n || whole > last.start))
		l->at = last.end = gu_max(whole, last.start);
	take_accessed(l, found, n);
	take_accessed(l, &last, last.start < last.end);
}

static void visit_seen(void *data, uintptr_t start, uintptr_t end)
{
	gu_watch_seen(((struct look *)data)->only, start, end);
}

static int see_lost(struct look *l)
{
	struct gu_watch_range lost = {.start = l->lost.start, .end = l->lost.end};
	l->lost = (struct gu_watch_span){0, 0};
	return lost.end ? scan_category(l, &lost, GU_PAGE_IS_PRESENT, 0, visit_seen) : l->error;
}

/* All but pages that are present and armed: those were there. */
static struct gu_pm_scan_arg accessed_or_empty(void)
{
	return (struct gu_pm_scan_arg){
		.category_inverted = GU_PAGE_IS_PRESENT,
		.category_anyof_mask = GU_PAGE_IS_PRESENT | GU_PAGE_IS_ACCESSED,
		.return_mask = SOMETHING | GU_PAGE_IS_ACCESSED | GU_PAGE_IS_HUGE,
	};
}

static void visit_hole(void *data, uintptr_t start, uintptr_t end)
{
	struct look *l = data;
	if (l->at < start)
		gu_watch_seen(NULL, l->at, start);
	l->at = end;
}

#define RESIDENT_PAGES 4096

/* Nothing in the piece is empty, or was not a moment ago: of anonymous memory mincore(2) tells that sooner than a scan. */
static bool is_full(const struct gu_watch_range *p)
{
	static unsigned char resident[RESIDENT_PAGES]; /* guard: gu_watch_lock */
	if (p->kind != GU_WATCH_ANON || gu_is_without(GU_WITHOUT_full))
		return false;
	for (uintptr_t at = p->start, len; at < p->end; at += len) {
		len = gu_min(p->end - at, (uintptr_t)RESIDENT_PAGES << GU_PAGE_SHIFT);
		if (syscall(SYS_mincore, at, len, resident) || memchr(resident, 0, len >> GU_PAGE_SHIFT))
			return false;
	}
	return true;
}

/* Nobody is to be told, so arming comes first: what is left to look for then is little, and costs little. */
static int arm_accesses(struct look *l, const struct gu_watch_range *p)
{
	bool full = is_full(p);
	rwprotect(l, p->start, p->end);
	l->pages += (p->end - p->start) >> GU_PAGE_SHIFT;
	l->at = p->start;
	int err = l->error || full ? l->error : scan_category(l, p, SOMETHING, SOMETHING, visit_hole);
	if (!err)
		visit_hole(l, p->end, p->end);
	return err;
}

static bool is_huge(const struct gu_watch_range *p) { return p->kind >= GU_WATCH_HUGE; }

static int scan_accesses(struct look *l, const struct gu_watch_range *p)
{
	if (is_alone(l, p) && !is_huge(p))
		return arm_accesses(l, p);
	int err = scan(accessed_or_empty(), p->start, p->end, take_accessed, l);
	if (!err)
		err = see_lost(l);
	return err || !l->whole || !gu_watch_has_others(p) ? err : scan_dropped(l, p, 0, SOMETHING);
}

/*
 * What an empty page says:
 *   anonymous, precise     armed as a marker; none: dropped, and told as written
 *   anonymous, cheap       not armed; it was dropped if it was there
 *   private over a file    the same; and DONTNEED turns an armed copy into a marker
 *   shared                 armed as a marker, which stays when the page is only unmapped
 *   hugetlb                not armed nor told by PAGEMAP_SCAN: shared ones get their markers here
 */
static int scan_chunk(struct look *l, const struct gu_watch_range *p, bool precise)
{
	if (p->flags & GCUFFD_WATCH_ACCESSES)
		return scan_accesses(l, p);
	switch (p->kind) {
	case GU_WATCH_ANON: return scan_anon(l, p, precise);
	case GU_WATCH_PRIVATE: return scan_private(l, p);
	case GU_WATCH_HUGE: return scan_huge(l, p);
	default: return scan_shared(l, p);
	}
}

/* Where one pass tells and arms all, and costs little if it finds little. The part ends where that changes. */
static bool is_quick(const struct look *l, struct gu_watch_range *part, bool precise)
{
	if (gu_is_without(GU_WITHOUT_quick))
		return false;
	if (part->flags & GCUFFD_WATCH_ACCESSES)
		return !l->whole && !is_huge(part);
	if (l->whole || !gu_watch_fds.tells_holes)
		return false;
	if (part->kind != GU_WATCH_ANON)
		return part->kind == GU_WATCH_SHARED;
	if (precise)
		return part->flags & GCUFFD_WATCH_PRECISE;
	bool there; /* what is empty now was dropped, and its marker takes no more page table than it had */
	part->end = gu_watch_part(part, part->start, part->end, &there);
	return there;
}

typedef int scan_fn(struct look *l, struct gu_watch_range *part, uint64_t most);

/* One call: as much as it has room for, most at pages. */
static int scan_quickly(struct look *l, struct gu_watch_range *part, uint64_t most)
{
	struct gu_pm_scan_arg arg = written_or_empty(l);
	arg.max_pages = most;
	arg.start = part->start;
	arg.end = part->end;
	l->there = part->kind == GU_WATCH_ANON; /* those of the sink have been there */
	int err = scan_once(&arg, l->sink && !(part->flags & GCUFFD_WATCH_PRECISE) ? take_reported : take_written, l);
	part->start = arg.start;
	return err;
}

/* The same. Found again is what it leaves. */
static int scan_accesses_quickly(struct look *l, struct gu_watch_range *part, uint64_t most)
{
	struct gu_pm_scan_arg arg = accessed_or_empty();
	arg.max_pages = gu_max(most, (uint64_t)GU_REGION >> GU_PAGE_SHIFT); /* a huge page at least */
	arg.start = part->start;
	arg.end = part->end;
	l->at = 0;
	l->end = part->end;
	int err = scan_once(&arg, take_some_accessed, l);
	part->start = l->at ? l->at : arg.start;
	return err ? err : see_lost(l);
}

#define LEAST_HUGE ((uintptr_t)64) /* pages; they cost what small ones do */

static int scan_next(struct look *l, struct gu_watch_range *part, bool precise)
{
	uintptr_t end = part->start + gu_max(GU_SCAN_CHUNK, is_huge(part) ? LEAST_HUGE << part->shift : 0);
	if (is_alone(l, part) && !is_huge(part)) /* there is nothing to tell, and then what is done once for each chunk costs most */
		end = gu_align_down(part->start + MOST_TABLES * GU_REGION, GU_REGION);
	part->end = gu_min(part->end, end);
	l->there = false;
	int err = scan_chunk(l, part, precise);
	part->start = part->end;
	return err;
}

int gu_watch_scan(struct gcuffd_watch *only, struct gu_watch_range *p, bool precise, enum gu_watch_how how,
		  struct gu_watch_sink *sink, uint64_t *pages)
{
	struct look l = {.only = only, .reset = how != GU_WATCH_LOOK, .whole = how == GU_WATCH_ARM, .sink = sink, .piece = p};
	struct gu_watch_range part = *p;
	bool goes_on = true, quick = false;
	int err = 0;
	for (part.end = p->start; part.start < p->end && goes_on && !err;) {
		if (part.start == part.end) {
			part.end = p->end;
			quick = is_quick(&l, &part, precise);
		}
		uint64_t most = MOST_PAGES - l.pages - l.idle;
		scan_fn *scan_some = part.flags & GCUFFD_WATCH_ACCESSES ? scan_accesses_quickly : scan_quickly;
		err = quick ? scan_some(&l, &part, most) : scan_next(&l, &part, precise);
		goes_on = quick && l.pages + l.idle < MOST_PAGES && !l.full;
	}
	p->end = part.start;
	*pages += l.pages;
	return err;
}

/* Costs a look at each mapping, and none at pages of those that are registered. */
int gu_watch_find_lost(const struct gu_watch_range *p, gu_watch_visit_fn *visit, void *data)
{
	struct gu_pm_scan_arg arg = {
		.category_inverted = GU_PAGE_IS_WPALLOWED,
		.category_mask = GU_PAGE_IS_WPALLOWED,
		.return_mask = GU_PAGE_IS_WPALLOWED,
		.vec_len = FEW, /* the kernel makes one too, each time, and mostly for nothing */
	};
	return scan_each(arg, p, visit, data);
}
