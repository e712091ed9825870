/* SPDX-License-Identifier: MIT */
/*
 * watch.c - the calls of the watch interface, as series of steps. A step is in a section and holds the table's lock, for
 * for a piece at most; between steps the table may change, so each looks up by address where it is.
 */
#include "gc/watch.h"

#include <errno.h>
#include <string.h>

#include "base/meta.h"
#include "base/without.h"
#include "gc/mutator.h"
#include "gc/watchtable.h"
#include "sys/os.h"
#include "sys/scan.h"

#define CHUNK GU_SCAN_CHUNK
#define PIECE (64 * CHUNK) /* verified at once; where little was written, scanned at once */
#define TRIES 1000 /* of looking again, when the mappings change all the time */

struct step {
	struct gu_thread *thread;
	int saved; /* errno */
};

static struct step begin_step(void)
{
	struct step s = {NULL, errno};
	gu_watch_reader_prepare();
	s.thread = gu_enter();
	gu_lock(&gu_watch_lock);
	return s;
}

static void end_step(struct step s)
{
	gu_unlock(&gu_watch_lock);
	gu_leave(s.thread);
	errno = s.saved;
}

static uintptr_t size_of(const struct gu_watch_range *r) { return (uintptr_t)1 << r->shift; }

/* ---- scanning a chunk ---- */

/* Empty pages are armed where somebody wants it: the piece ends where that changes. */
static bool cut_precise(const struct gcuffd_watch *w, struct gu_watch_range *p)
{
	bool precise = p->flags & GCUFFD_WATCH_PRECISE || (p->kind == GU_WATCH_ANON && gu_is_without(GU_WITHOUT_cheap));
	for (const struct gcuffd_watch *x = gu_watchers; x && !precise && p->kind == GU_WATCH_ANON; x = x->next)
		for (size_t i = gu_watch_find(x, p->start); x != w && i < x->count && x->ranges[i].start < p->end; i++) {
			const struct gu_watch_range *r = &x->ranges[i];
			if (!(r->flags & GCUFFD_WATCH_PRECISE))
				continue;
			precise = r->start <= p->start;
			p->end = gu_min(p->end, precise ? r->end : r->start);
			break;
		}
	return precise;
}

/* The first piece of w's in [at, end), whole huge pages, at most PIECE. */
static bool find_piece(const struct gcuffd_watch *w, uintptr_t at, uintptr_t end, struct gu_watch_range *p)
{
	if (!gu_watch_next(w, &at, end, p))
		return false;
	uintptr_t size = size_of(p);
	p->start = gu_align_down(p->start, size);
	p->end = gu_align_up(gu_min(p->end, p->start + gu_max(PIECE, size)), size);
	return true;
}

/* The piece ends behind what was scanned. 1: the table was changed, look again. */
static int scan_piece(struct gcuffd_watch *w, struct gu_watch_range *p, enum gu_watch_how how, struct gu_watch_sink *sink)
{
	bool precise = cut_precise(w, p);
	int err = gu_watch_verify(p);
	if (!err) {
		bool direct = sink && !gu_is_without(GU_WITHOUT_direct) && !sink->by_page && !w->pin_count && !gu_watch_has_pending(p) && !gu_watch_has_others(p);
		err = gu_watch_scan(how == GU_WATCH_LOOK ? w : NULL, p, precise, how, direct ? sink : NULL, &w->stats.found_pages);
	}
	return err == -EPERM ? 1 : err; /* replaced since it was verified */
}

/* ---- collecting ---- */

/* run begins with what was not taken. */
static bool take_pages(const struct gu_watch_range *r, struct gu_watch_span *run, struct gu_watch_sink *sink)
{
	uintptr_t size = sink->by_page ? size_of(r) : run->end - run->start;
	for (; run->start < run->end; run->start += size)
		if (!sink->take(sink, run->start, run->start + size))
			return false;
	return true;
}

/* false: the sink is full, and *at is the first page that is not in it. */
static bool report(struct gcuffd_watch *w, const struct gu_watch_range *p, bool reset, struct gu_watch_sink *sink, uintptr_t *at)
{
	struct gu_watch_range *r = &w->ranges[gu_watch_find(w, p->start)];
	struct gu_watch_span run;
	uintptr_t from = p->start;
	size_t bytes = 0;
	bool all = true;
	for (*at = p->end; all && gu_watch_run(r, from, p->end, &run); from = run.end) {
		uintptr_t start = run.start;
		all = take_pages(r, &run, sink);
		bytes += run.start - start;
		if (!all)
			*at = run.start;
	}
	if (reset && bytes) {
		gu_watch_clear(r, p->start, *at);
		w->stats.reported_pages += bytes >> GU_PAGE_SHIFT;
	}
	return all;
}

/* Where a piece has memory that can't be watched any more, what lies before that is scanned. */
static int scan_start(struct gcuffd_watch *w, struct gu_watch_range *p, bool reset, struct gu_watch_sink *sink)
{
	enum gu_watch_how how = reset ? GU_WATCH_RESET : GU_WATCH_LOOK;
	sink = reset ? sink : NULL;
	int err = scan_piece(w, p, how, sink);
	while ((err == -EBUSY || err == -ESTALE) && p->end - p->start > size_of(p)) {
		p->end = p->start + gu_align_up((p->end - p->start) / 2, size_of(p));
		err = scan_piece(w, p, how, sink);
	}
	return err;
}

enum { GOES_ON, AGAIN, IS_FULL };

/* A state above, or -errno. */
static int collect_locked(struct gcuffd_watch *w, uintptr_t *at, uintptr_t end, bool reset, struct gu_watch_sink *sink,
			  bool *found)
{
	struct gu_watch_range p;
	int err = gu_watch_ready(w);
	if (!err && w->error) {
		err = w->error;
		w->error = 0;
	}
	if (err)
		return err;
	if (!find_piece(w, *at, end, &p)) {
		*at = end;
		return GOES_ON;
	}
	sink->direct = 0;
	err = scan_start(w, &p, reset, sink);
	w->stats.reported_pages += sink->direct;
	*at = sink->direct ? p.end : p.start; /* what was scanned before an error is in the report then */
	*found |= sink->direct || !err;
	if (err)
		return err < 0 ? err : AGAIN;
	gu_watch_note_pins(w, p.start, p.end);
	return report(w, &p, reset, sink, at) ? GOES_ON : IS_FULL;
}

int gu_watch_collect(struct gcuffd_watch *w, uintptr_t *at, uintptr_t end, bool reset, struct gu_watch_sink *sink)
{
	bool found = false;
	int state = GOES_ON;
	for (int tries = 0; *at < end && state >= 0 && state != IS_FULL;) {
		struct step s = begin_step();
		state = collect_locked(w, at, end, reset, sink, &found);
		w->stats.collects += reset && (*at >= end || state == IS_FULL);
		end_step(s);
		tries = state == AGAIN ? tries + 1 : 0;
		if (tries == TRIES)
			state = -EAGAIN;
	}
	return state < 0 ? state : found ? 0 : -ENOENT;
}

/* ---- beginning ---- */

static bool conflicts(const struct gu_watch_range *r, unsigned flags)
{
	return (r->flags ^ flags) & GCUFFD_WATCH_ACCESSES;
}

/* Others' ranges there are looked at first: what took their place must not be taken for what they had. */
static int verify_others(uintptr_t start, uintptr_t end, unsigned flags)
{
	int err = 0;
	for (const struct gcuffd_watch *x = gu_watchers; x && !err; x = x->next) {
		struct gu_watch_range p;
		for (uintptr_t at = start; !err && gu_watch_next(x, &at, end, &p);)
			err = conflicts(&p, flags) ? -EBUSY : gu_watch_verify(&p);
	}
	return err;
}

static int insert_piece(struct gcuffd_watch *w, struct gu_watch_range *p, unsigned flags)
{
	p->flags = (uint8_t)flags;
	int err = gu_watch_register(p, true);
	if (!err && (p->start | p->end) & (size_of(p) - 1))
		err = -EINVAL;
	return err ? err : gu_watch_insert(w, p->start, p->end, p, false);
}

static int insert_pieces(struct gcuffd_watch *w, uintptr_t *at, uintptr_t end, unsigned flags)
{
	struct gu_watch_range pieces[GU_WATCH_PIECES];
	uintptr_t next = *at;
	int n = gu_watch_list(&next, end, pieces), err = n < 0 ? n : 0;
	for (int i = 0; i < n && !err; i++) {
		err = insert_piece(w, &pieces[i], flags);
		if (err) /* a part may be registered */
			gu_watch_unregister(&pieces[i]);
		else
			*at = pieces[i].end;
	}
	return err;
}

static int end_piece(struct gcuffd_watch *w, const struct gu_watch_range *p)
{
	int err = gu_watch_cut(w, p->start, p->end);
	if (!err)
		gu_watch_unregister(p);
	return err;
}

static void undo_insert(struct gcuffd_watch *w, uintptr_t start, uintptr_t end)
{
	struct gu_watch_range p;
	for (uintptr_t at = start; gu_watch_next(w, &at, end, &p);)
		(void)end_piece(w, &p);
}

static int insert_locked(struct gcuffd_watch *w, uintptr_t start, uintptr_t end, unsigned flags)
{
	struct gu_watch_range p;
	uintptr_t at = start;
	int err = gu_watch_ready(w);
	if (!err && (flags & GCUFFD_WATCH_ACCESSES) && !gu_watch_has_accesses())
		err = -EOPNOTSUPP;
	if (!err && gu_watch_next(w, &at, end, &p))
		err = -EEXIST;
	if (!err)
		err = verify_others(start, end, flags);
	if (err)
		return err;
	for (at = start; at < end && !err;)
		err = insert_pieces(w, &at, end, flags);
	if (err)
		undo_insert(w, start, at);
	return err;
}

/* What others learn from arming the pages they keep; to w it is older than the beginning. */
static int arm_locked(struct gcuffd_watch *w, uintptr_t *at, uintptr_t end)
{
	struct gu_watch_range p;
	int err = gu_watch_ready(w);
	if (err)
		return err;
	if (!find_piece(w, *at, end, &p)) {
		*at = end;
		return 0;
	}
	err = scan_piece(w, &p, GU_WATCH_ARM, NULL);
	if (err)
		return err;
	gu_watch_clear(&w->ranges[gu_watch_find(w, p.start)], p.start, p.end);
	*at = p.end;
	return 0;
}

/* Repeats a step while it says 1. */
#define AGAIN_WHILE_1(err, call) \
	do { \
		int tries_left = TRIES; \
		do { \
			struct step step = begin_step(); \
			(err) = (call); \
			end_step(step); \
		} while ((err) == 1 && --tries_left); \
		if ((err) == 1) \
			(err) = -EAGAIN; \
	} while (0)

int gu_watch_begin(struct gcuffd_watch *w, uintptr_t start, uintptr_t end, unsigned flags)
{
	int err;
	AGAIN_WHILE_1(err, insert_locked(w, start, end, flags));
	if (err)
		return err;
	for (uintptr_t at = start; at < end && !err;)
		AGAIN_WHILE_1(err, arm_locked(w, &at, end));
	if (err)
		(void)gu_watch_end(w, start, end);
	return err;
}

/* ---- ending ---- */

/* 1: there was nothing left. Of a context that is gone nothing need be unregistered. */
static int end_locked(struct gcuffd_watch *w, uintptr_t *at, uintptr_t end)
{
	struct gu_watch_range p;
	uintptr_t next = *at;
	if (gu_watch_is_open())
		(void)gu_watch_ready(w);
	if (w->dead)
		return -EBADF;
	if (!gu_watch_next(w, &next, end, &p))
		return 1;
	if ((p.start | p.end) & (size_of(&p) - 1))
		return -EINVAL;
	p.end = gu_min(p.end, p.start + gu_max(CHUNK, size_of(&p)));
	*at = p.end;
	return end_piece(w, &p);
}

int gu_watch_end(struct gcuffd_watch *w, uintptr_t start, uintptr_t end)
{
	uintptr_t at = start;
	int err = 0;
	bool any = false;
	while (at < end && !err) {
		struct step s = begin_step();
		err = end_locked(w, &at, end);
		end_step(s);
		any |= !err;
	}
	return err < 0 ? err : any ? 0 : -ENOENT;
}

/* ---- pins ---- */

int gu_watch_pin(struct gcuffd_watch *w, uintptr_t start, uintptr_t end)
{
	struct step s = begin_step();
	int err = gu_watch_add_pin(w, start, end);
	end_step(s);
	return err;
}

/* What was written through the pin until now is told by the next collect. */
int gu_watch_unpin(struct gcuffd_watch *w, uintptr_t start, uintptr_t end)
{
	struct step s = begin_step();
	bool was = gu_watch_drop_pin(w, start, end);
	if (was)
		gu_watch_note(w, start, end, false);
	end_step(s);
	return was ? 0 : -ENOENT;
}

/* ---- watchers ---- */

static void unlink_locked(struct gcuffd_watch *w)
{
	struct gcuffd_watch **p = &gu_watchers;
	while (*p != w)
		p = &(*p)->next;
	*p = w->next;
	gu_watch_cut_all(w);
	gu_meta_free(w, sizeof(*w));
	if (!gu_watchers && gu_watch_is_open())
		gu_watch_close();
}

static int create_locked(unsigned flags, struct gcuffd_watch **out)
{
	struct gcuffd_watch *w = gu_meta_alloc(sizeof(*w));
	if (!w)
		return -ENOMEM;
	w->flags = flags;
	w->next = gu_watchers;
	gu_watchers = w;
	int err = gu_watch_ready(w);
	if (w->dead) { /* an older context was closed: this watcher is not of it */
		w->dead = false;
		err = gu_watch_ready(w);
	}
	if (err)
		unlink_locked(w);
	else
		*out = w;
	return err;
}

int gu_watch_create(unsigned flags, struct gcuffd_watch **out)
{
	int err;
	AGAIN_WHILE_1(err, create_locked(flags, out));
	return err;
}

void gu_watch_destroy(struct gcuffd_watch *w)
{
	(void)gu_watch_end(w, 0, UINTPTR_MAX);
	struct step s = begin_step();
	unlink_locked(w);
	void *readers = gu_watch_readers_leaving();
	end_step(s);
	gu_watch_readers_join(readers);
}

/* ---- loans ---- */

int gu_watch_lend(struct gu_watch_loan *loan)
{
	int err;
	AGAIN_WHILE_1(err, gu_watch_add_loan(loan));
	return err;
}

void gu_watch_take_back(struct gu_watch_loan *loan)
{
	struct step s = begin_step();
	gu_watch_drop_loan(loan);
	end_step(s);
}

/* ---- looking ---- */

int gu_watch_granularity(struct gcuffd_watch *w, uintptr_t start, uintptr_t end, size_t *size)
{
	struct gu_watch_range p;
	uintptr_t at = start, covered = start;
	int err = 0;
	*size = 0;
	struct step s = begin_step();
	for (; !err && covered < end && gu_watch_next(w, &at, end, &p); covered = p.end) {
		if (p.start > covered)
			err = -ENOENT;
		else if (*size && *size != size_of(&p))
			err = -EINVAL;
		*size = size_of(&p);
	}
	if (w->dead)
		err = -EBADF;
	end_step(s);
	return err ? err : covered < end ? -ENOENT : 0;
}

/* 8 bytes a page that is armed as a marker. */
static size_t table_bytes(const struct gu_watch_range *r)
{
	bool markers = r->kind == GU_WATCH_SHARED || (r->kind == GU_WATCH_ANON && r->flags & GCUFFD_WATCH_PRECISE);
	return markers && !(r->flags & GCUFFD_WATCH_ACCESSES) ? (r->end - r->start) / 512 : 0;
}

void gu_watch_stats(struct gcuffd_watch *w, struct gcuffd_watch_stats *out)
{
	struct step s = begin_step();
	*out = w->stats;
	for (size_t i = 0; i < w->count; i++) {
		out->watched_bytes += w->ranges[i].end - w->ranges[i].start;
		out->table_bytes += table_bytes(&w->ranges[i]);
		out->bitmap_bytes += 2 * w->ranges[i].words * sizeof(uint64_t);
	}
	for (size_t i = 0; i < w->pin_count; i++)
		out->pinned_bytes += w->pins[i].end - w->pins[i].start;
	out->ranges = w->count;
	out->events = gu_watch_event_count();
	end_step(s);
}
