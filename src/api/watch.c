/* SPDX-License-Identifier: MIT */
/* watch.c - watching memory: arguments, and what a report is put into. Any thread. */
#include "gc/watch.h"

#include <errno.h>
#include <string.h>

#include "api/api.h"
#include "base/check.h"
#include "gc/mutator.h"
#include "sys/uapi.h"
#include "sys/os.h"

int gcuffd_watch_create(unsigned flags, struct gcuffd_watch **watch)
{
	if (flags & ~GCUFFD_WATCH_EVENTS)
		return -EINVAL;
	int err = gu_api_init();
	return err ? err : gu_watch_create(flags, watch);
}

int gcuffd_watch_destroy(struct gcuffd_watch *watch)
{
	gu_watch_destroy(watch);
	return 0;
}

/* ---- ranges ---- */

struct range {
	uintptr_t start, end;
};

/* Whole pages; from outside in if exact, else a page that is touched counts. */
static int make_range(const void *start, size_t length, bool exact, struct range *r)
{
	r->start = (uintptr_t)start;
	r->end = r->start + length;
	if (!length || r->end < r->start || r->end > gu_align_down(UINTPTR_MAX, GU_PAGE))
		return -EINVAL;
	if (exact && (r->start | r->end) % GU_PAGE)
		return -EINVAL;
	r->start = gu_align_down(r->start, GU_PAGE);
	r->end = gu_align_up(r->end, GU_PAGE);
	return 0;
}

static int make_open_range(const void *start, size_t length, struct range *r)
{
	if (length != SIZE_MAX)
		return make_range(start, length, true, r);
	*r = (struct range){(uintptr_t)start, gu_align_down(UINTPTR_MAX, GU_PAGE)};
	return r->start % GU_PAGE || r->start >= r->end ? -EINVAL : 0;
}

int gcuffd_watch_begin(struct gcuffd_watch *watch, const void *start, size_t length, unsigned flags)
{
	struct range r;
	int err = flags & ~(GCUFFD_WATCH_ACCESSES | GCUFFD_WATCH_PRECISE) ? -EINVAL : make_range(start, length, true, &r);
	return err ? err : gu_watch_begin(watch, r.start, r.end, flags);
}

int gcuffd_watch_end(struct gcuffd_watch *watch, const void *start, size_t length)
{
	struct range r;
	int err = make_open_range(start, length, &r);
	return err ? err : gu_watch_end(watch, r.start, r.end);
}

int gcuffd_watch_pin(struct gcuffd_watch *watch, const void *start, size_t length)
{
	struct range r;
	int err = make_range(start, length, false, &r);
	return err ? err : gu_watch_pin(watch, r.start, r.end);
}

int gcuffd_watch_unpin(struct gcuffd_watch *watch, const void *start, size_t length)
{
	struct range r;
	int err = make_range(start, length, false, &r);
	return err ? err : gu_watch_unpin(watch, r.start, r.end);
}

/* ---- reports ---- */

/* Runs come in pieces that touch. */
static bool take_run(struct gu_watch_sink *sink, uintptr_t start, uintptr_t end)
{
	struct gcuffd_run *runs = sink->out;
	if (sink->count && (uintptr_t)runs[sink->count - 1].end == start) {
		runs[sink->count - 1].end = (void *)end;
		return true;
	}
	if (sink->count == sink->room)
		return false;
	runs[sink->count++] = (struct gcuffd_run){(void *)start, (void *)end};
	return true;
}

static size_t take_runs(struct gu_watch_sink *sink, const struct gu_page_region *found, size_t n)
{
	struct gcuffd_run *runs = sink->out, *at = runs + sink->count, *end = runs + sink->room;
	size_t i = 0;
	for (; i < n; i++) {
		void *from = (void *)(uintptr_t)found[i].start, *to = (void *)(uintptr_t)found[i].end;
		if (at > runs && at[-1].end == from)
			at[-1].end = to;
		else if (at < end)
			*at++ = (struct gcuffd_run){from, to};
		else
			break;
	}
	sink->count = (size_t)(at - runs);
	return i;
}

static bool take_page(struct gu_watch_sink *sink, uintptr_t start, uintptr_t end)
{
	void **addresses = sink->out;
	(void)end;
	if (sink->count == sink->room)
		return false;
	addresses[sink->count++] = (void *)start;
	return true;
}

static bool take_nothing(struct gu_watch_sink *sink, uintptr_t start, uintptr_t end)
{
	(void)sink, (void)start, (void)end;
	return true;
}

static int report(struct gcuffd_watch *watch, const void *start, size_t length, bool reset,
		  struct gcuffd_run *runs, size_t max, size_t *count, void **next)
{
	struct range r;
	struct gu_watch_sink sink = {.take = take_run, .take_found = take_runs, .out = runs, .room = max};
	int err = max ? make_open_range(start, length, &r) : -EINVAL;
	*count = 0;
	*next = (void *)(uintptr_t)start;
	if (err)
		return err;
	err = gu_watch_collect(watch, &r.start, r.end, reset, &sink);
	*count = sink.count;
	*next = r.start < r.end ? (void *)r.start : NULL;
	return err;
}

int gcuffd_watch_collect(struct gcuffd_watch *watch, const void *start, size_t length,
			 struct gcuffd_run *runs, size_t max, size_t *count, void **next)
{
	return report(watch, start, length, true, runs, max, count, next);
}

int gcuffd_watch_peek(struct gcuffd_watch *watch, const void *start, size_t length,
		      struct gcuffd_run *runs, size_t max, size_t *count, void **next)
{
	return report(watch, start, length, false, runs, max, count, next);
}

int gcuffd_watch_stats(struct gcuffd_watch *watch, struct gcuffd_watch_stats *out)
{
	struct gcuffd_watch_stats s;
	if (out->size < 2 * sizeof(uint64_t) || out->size > 4096)
		return -EINVAL;
	gu_watch_stats(watch, &s);
	s.size = out->size;
	memcpy(out, &s, gu_min(out->size, sizeof(s)));
	return 0;
}

/* ---- as on Windows ---- */

static int open_region(struct gcuffd_watch *watch, const void *base, size_t size, struct range *r, size_t *granularity)
{
	int err = make_range(base, size, false, r);
	return err ? err : gu_watch_granularity(watch, r->start, r->end, granularity);
}

int gcuffd_write_watch_get(struct gcuffd_watch *watch, unsigned flags, const void *base, size_t size,
			   void **addresses, size_t *count, size_t *granularity)
{
	struct range r;
	struct gu_watch_sink sink = {.take = take_page, .out = addresses, .room = *count, .by_page = true};
	size_t page;
	int err = flags & ~GCUFFD_WRITE_WATCH_RESET ? -EINVAL : open_region(watch, base, size, &r, &page);
	*count = 0;
	if (err)
		return err;
	*granularity = page;
	err = gu_watch_collect(watch, &r.start, r.end, flags & GCUFFD_WRITE_WATCH_RESET, &sink);
	*count = sink.count;
	return err;
}

int gcuffd_write_watch_reset(struct gcuffd_watch *watch, const void *base, size_t size)
{
	struct range r;
	struct gu_watch_sink sink = {.take = take_nothing};
	size_t page;
	int err = open_region(watch, base, size, &r, &page);
	return err ? err : gu_watch_collect(watch, &r.start, r.end, true, &sink);
}
