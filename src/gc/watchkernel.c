/* SPDX-License-Identifier: MIT */
/*
 * watchkernel.c - what the watch interface asks of the kernel: the context's descriptors, whether a range is still
 * what it was, and the scans. Every function is called with gu_watch_lock held.
 *
 * The descriptors are in the process's own table: callers use them, and there need be no thread. A program that closes
 * all descriptors ends the tracking, since that closes the userfaultfd: the numbers are compared with what was opened
 * before they are used (.inv.watch.files).
 *
 * .assume.watch.register: registering again what is registered changes nothing, and is EBUSY where another
 * userfaultfd has it.
 */
#define _GNU_SOURCE
#include "gc/watchtable.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/meta.h"
#include "base/own.h"
#include "base/without.h"
#include "sys/caps.h"
#include "sys/maps.h"
#include "sys/os.h"
#include "sys/scan.h"
#include "sys/uffd.h"

struct file {
	int fd;
	dev_t dev;
	ino_t ino;
};

static struct {
	bool open, events, access;
	struct file uffd, pagemap;
	uint32_t *alive;  /* 0 in a process that was forked since: its page is wiped then */
} context; /* guard: gu_watch_lock */

static struct gu_watch_loan *loans; /* guard: gu_watch_lock */

struct gu_watch_fds gu_watch_fds = {.uffd = -1, .pagemap = -1};

/* ---- descriptors ---- */

static bool note_file(struct file *f, int fd)
{
	struct stat st;
	f->fd = fd;
	if (fd < 0 || fstat(fd, &st))
		return false;
	f->dev = st.st_dev;
	f->ino = st.st_ino;
	return true;
}

/* .inv.watch.files */
static bool is_ours(const struct file *f)
{
	struct stat st;
	return f->fd >= 0 && !fstat(f->fd, &st) && st.st_dev == f->dev && st.st_ino == f->ino;
}

static void close_file(struct file *f)
{
	if (is_ours(f))
		gu_os->close(f->fd);
	f->fd = -1;
}

static void close_context(void)
{
	close_file(&context.uffd);
	close_file(&context.pagemap);
	context.open = false;
}

static int make_alive(void)
{
	if (!context.alive) {
		context.alive = gu_meta_map(GU_PAGE);
		if (!context.alive)
			return -ENOMEM;
		(void)gu_os->madvise(context.alive, GU_PAGE, MADV_WIPEONFORK); /* refused: gu_watch_forked() does without */
	}
	*context.alive = 1;
	return 0;
}

static int open_files(bool events)
{
	uint64_t features = GU_UFFD_FEATURE_WP_ASYNC;
	context.access = gu_caps()->has_rwp_async;
	if (context.access)
		features |= GU_UFFD_FEATURE_RWP | GU_UFFD_FEATURE_RWP_ASYNC;
	if (events)
		features |= GU_WATCH_EVENT_FEATURES;
	int uffd = gu_uffd_open(features, NULL);
	bool ok = note_file(&context.uffd, uffd);
	int pagemap = ok ? gu_scan_open() : -EBADF;
	return uffd < 0 ? uffd : !ok ? -EBADF : pagemap < 0 ? pagemap : note_file(&context.pagemap, pagemap) ? 0 : -EBADF;
}

static int open_context(bool events)
{
	context.uffd.fd = context.pagemap.fd = -1;
	if (!gu_caps()->has_wp_async)
		return -EOPNOTSUPP;
	int err = make_alive();
	if (!err)
		err = open_files(events);
	if (!err)
		gu_watch_fds = (struct gu_watch_fds){
			.uffd = context.uffd.fd,
			.pagemap = context.pagemap.fd,
			.short_way = gu_scan_has_short(),
			.tells_holes = gu_scan_has_short() && gu_caps()->has_wp_holes && !gu_is_without(GU_WITHOUT_holes),
		};
	if (!err && events)
		err = gu_watch_reader_start(context.uffd.fd);
	if (err)
		close_context();
	context.open = !err;
	context.events = events;
	return err;
}

bool gu_watch_is_open(void) { return context.open; }
bool gu_watch_has_accesses(void) { return context.access; }

void gu_watch_close(void)
{
	gu_watch_reader_quit();
	close_context();
	gu_watch_reader_wake();
}

/* The program closed them, and maybe opened others under the numbers. */
static void lose_context(void)
{
	gu_watch_close();
	for (struct gcuffd_watch *w = gu_watchers; w; w = w->next) {
		gu_watch_cut_all(w);
		w->dead = true;
	}
}

/* The descriptors in a child act on the parent. */
void gu_watch_forked(void)
{
	gu_lock_init(&gu_watch_lock, GU_RANK_ROOTS);
	if (context.open)
		close_context();
	gu_watch_reader_forked();
}

static bool want_events(void)
{
	for (const struct gcuffd_watch *w = gu_watchers; w; w = w->next)
		if (w->flags & GCUFFD_WATCH_EVENTS)
			return true;
	return false;
}

/* Events can't be added to a context: another is opened, as after a fork, and everything is found written. */
int gu_watch_ready(struct gcuffd_watch *w)
{
	if (w->dead)
		return -EBADF;
	if (context.open && !gu_load_relaxed(context.alive)) {
		close_context();
		gu_watch_reader_forked();
	}
	if (context.open && !(is_ours(&context.uffd) && is_ours(&context.pagemap))) {
		lose_context();
		return -EBADF;
	}
	bool events = want_events();
	int err = events && !(context.open && context.events) ? gu_watch_reader_need() : 0;
	if (err)
		return err;
	if (context.open && !context.events && events)
		close_context();
	if (!context.open)
		err = open_context(events);
	if (!err && context.events)
		(void)gu_watch_settle(context.uffd.fd);
	return err;
}

/* ---- registering ---- */

static uint64_t mode_of(const struct gu_watch_range *r)
{
	return r->flags & GCUFFD_WATCH_ACCESSES ? GU_UFFD_REGISTER_RWP : GU_UFFD_REGISTER_WP;
}

static const struct gu_watch_loan *find_loan(uintptr_t addr)
{
	for (const struct gu_watch_loan *loan = loans; loan; loan = loan->next)
		if (loan->start <= addr && addr < loan->end && loan->pid == gu_os->getpid())
			return loan;
	return NULL;
}

struct listing {
	struct gu_watch_range *pieces;
	int count, error;
	uintptr_t at, end;
	uint64_t dev, inode;
	const struct gu_watch_loan *loan;
};

static bool joins(const struct listing *l, const struct gu_map *m, enum gu_watch_kind kind)
{
	return l->count && l->pieces[l->count - 1].kind == kind && l->dev == m->dev && l->inode == m->inode &&
	       l->loan == find_loan(l->at);
}

/* Private hugetlb always has a file, so what joins is of one page size. */
static bool list_map(void *data, const struct gu_map *m)
{
	struct listing *l = data;
	if (m->end <= l->at)
		return true;
	if (m->start > l->at) {
		l->error = -ENOENT;
		return false;
	}
	enum gu_watch_kind kind = m->shared ? GU_WATCH_SHARED : m->inode ? GU_WATCH_PRIVATE : GU_WATCH_ANON;
	uintptr_t end = gu_min(m->end, l->end);
	if (joins(l, m, kind))
		l->pieces[l->count - 1].end = end;
	else if (l->count == GU_WATCH_PIECES)
		return false;
	else
		l->pieces[l->count++] = (struct gu_watch_range){.start = l->at, .end = end, .kind = (uint8_t)kind};
	l->loan = find_loan(l->at);
	l->at = end;
	l->dev = m->dev;
	l->inode = m->inode;
	return end < l->end;
}

int gu_watch_list(uintptr_t *at, uintptr_t end, struct gu_watch_range pieces[GU_WATCH_PIECES])
{
	struct listing l = {.pieces = pieces, .at = *at, .end = end};
	int err = gu_maps_each(list_map, &l);
	if (!err && !l.count)
		err = -ENOENT;
	*at = l.at;
	return err ? err : l.count ? l.count : l.error;
}

/* The smallest piece that can be registered by itself is a page. */
static int find_shift(struct gu_watch_range *r)
{
	for (unsigned shift = GU_PAGE_SHIFT + 1; (size_t)1 << shift <= r->end - r->start; shift++)
		if (!gu_uffd_register(context.uffd.fd, r->start, (size_t)1 << shift, mode_of(r), NULL)) {
			r->shift = (uint8_t)shift;
			return 0;
		}
	return -EINVAL;
}

#define ZEROPAGE_BIT (1ull << 4) /* of the ioctls of a range: hugetlb has no UFFDIO_ZEROPAGE */

static bool overlaps_own(uintptr_t start, uintptr_t end)
{
	uintptr_t own_start, own_end;
	return gu_own_next(start, &own_start, &own_end) && own_start < end;
}

/* .inv.watch.owner */
static int register_here(const struct gu_watch_range *r, uint64_t *ioctls)
{
	if (overlaps_own(r->start, r->end))
		return -EBUSY;
	return gu_uffd_register(context.uffd.fd, r->start, r->end - r->start, mode_of(r), ioctls);
}

static bool is_lent(const struct gu_watch_range *r)
{
	const struct gu_watch_loan *loan = find_loan(r->start);
	return loan && r->end <= loan->end && !(r->flags & GCUFFD_WATCH_ACCESSES);
}

/* .inv.watch.lent: a loan only says that EBUSY is no error; what took its place is registered like any other memory. */
int gu_watch_register(struct gu_watch_range *r, bool shift)
{
	uint64_t ioctls = 0;
	int err = register_here(r, &ioctls);
	if (err == -EBUSY && is_lent(r)) {
		r->shift = GU_PAGE_SHIFT;
		return 0;
	}
	if (err || !shift)
		return err;
	r->shift = GU_PAGE_SHIFT;
	if (ioctls & ZEROPAGE_BIT)
		return 0;
	r->kind = r->kind == GU_WATCH_SHARED ? GU_WATCH_HUGE_SHARED : GU_WATCH_HUGE;
	return find_shift(r);
}

/* The end of the part from at that nobody watches, or of the part that somebody does. */
static uintptr_t part_end(uintptr_t at, uintptr_t end, bool *watched)
{
	*watched = false;
	for (const struct gcuffd_watch *w = gu_watchers; w; w = w->next) {
		size_t i = gu_watch_find(w, at);
		if (i == w->count)
			continue;
		if (w->ranges[i].start > at) {
			end = gu_min(end, w->ranges[i].start);
		} else {
			*watched = true;
			return gu_min(end, w->ranges[i].end);
		}
	}
	return end;
}

/* Some kernels let UNREGISTER act on what another userfaultfd has; REGISTER tells. */
void gu_watch_unregister(const struct gu_watch_range *piece)
{
	struct gu_watch_range part = *piece;
	bool watched;
	for (uintptr_t at = piece->start; at < piece->end && context.open; at = part.end) {
		part.start = at;
		part.end = part_end(at, piece->end, &watched);
		if (!watched && !register_here(&part, NULL))
			(void)gu_uffd_unregister(context.uffd.fd, part.start, part.end - part.start);
	}
}

/* ---- is it still what it was? ---- */

/* What is mapped at piece is new to the watchers: its kind may be another, and all of it counts as written. */
static int adopt(struct gcuffd_watch *w, const struct gu_watch_range *piece)
{
	struct gu_watch_range was;
	int err = 0;
	for (uintptr_t at = piece->start; !err && gu_watch_next(w, &at, piece->end, &was);) {
		struct gu_watch_range like = {.kind = piece->kind, .shift = piece->shift, .flags = was.flags};
		uintptr_t size = (uintptr_t)1 << like.shift;
		err = gu_watch_cut(w, was.start, was.end);
		if (!err && ((was.start | was.end) & (size - 1)))
			err = -ESTALE; /* parts of huge pages can't be watched */
		if (!err)
			err = gu_watch_insert(w, was.start, was.end, &like, true);
		w->stats.replaced_bytes += was.end - was.start;
	}
	if (err)
		w->error = err;
	return err;
}

static bool find_flags(struct gu_watch_range *piece)
{
	struct gu_watch_range r;
	for (const struct gcuffd_watch *w = gu_watchers; w; w = w->next) {
		uintptr_t at = piece->start;
		if (gu_watch_next(w, &at, piece->end, &r)) {
			piece->flags = r.flags;
			return true;
		}
	}
	return false;
}

static int replace_piece(struct gu_watch_range *piece)
{
	if (!find_flags(piece))
		return 0;
	int err = gu_watch_register(piece, true);
	for (struct gcuffd_watch *w = gu_watchers; w && !err; w = w->next)
		err = adopt(w, piece);
	return err;
}

int gu_watch_replace(uintptr_t start, uintptr_t end)
{
	struct gu_watch_range pieces[GU_WATCH_PIECES], all = {.start = start, .end = end};
	int err = 0, n = find_flags(&all); /* mostly nobody watches where something was moved to */
	gu_watch_note(NULL, start, end, true);
	for (uintptr_t at = start; at < end && !err && n > 0;) {
		n = gu_watch_list(&at, end, pieces); /* an end where nothing is mapped any more */
		for (int i = 0; i < n && !err; i++)
			err = replace_piece(&pieces[i]);
	}
	return err;
}

struct lost {
	bool any;
	int error;
};

static void visit_lost(void *data, uintptr_t start, uintptr_t end)
{
	struct lost *l = data;
	int err = gu_watch_replace(start, end);
	l->any = true;
	l->error = err ? err : l->error;
}

/* ---- what is gone ---- */

#define GONE 32

struct gone {
	struct gu_watch_span parts[GONE];
	size_t count;
	uintptr_t at, end;
};

static bool add_gone(struct gone *g, uintptr_t start, uintptr_t end)
{
	if (start < end && g->count < GONE)
		g->parts[g->count++] = (struct gu_watch_span){start, end};
	return g->count < GONE;
}

static bool add_hole(void *data, const struct gu_map *m)
{
	struct gone *g = data;
	if (m->end <= g->at)
		return true;
	bool more = add_gone(g, g->at, gu_min(m->start, g->end));
	g->at = m->end;
	return more && g->at < g->end;
}

/* MS_ASYNC does nothing but look for holes. */
static bool has_hole(const struct gu_watch_range *p)
{
	return syscall(SYS_msync, p->start, p->end - p->start, MS_ASYNC) && errno == ENOMEM;
}

/* Parts where nothing is mapped, or something of the library's own, which only takes places that were free. */
static int find_gone(const struct gu_watch_range *p, struct gone *g)
{
	uintptr_t start, end = p->start;
	while (gu_own_next(end, &start, &end) && start < p->end)
		if (!add_gone(g, gu_max(start, p->start), gu_min(end, p->end)))
			return 0;
	if (!has_hole(p))
		return 0;
	g->at = p->start;
	g->end = p->end;
	int err = gu_maps_each(add_hole, g);
	if (!err)
		add_gone(g, g->at, g->end);
	return err;
}

static void end_part(uintptr_t start, uintptr_t end)
{
	for (struct gcuffd_watch *w = gu_watchers; w; w = w->next) {
		struct gu_watch_range was;
		for (uintptr_t at = start; gu_watch_next(w, &at, end, &was);)
			w->stats.ended_bytes += was.end - was.start;
		(void)gu_watch_cut(w, start, end); /* no memory: it is found again */
	}
}

/* 1: another mapping took the place of a part, and that has been noted. */
static int check_piece(struct gu_watch_range *p, struct gone *gone)
{
	struct lost lost = {false, 0};
	int err = find_gone(p, gone);
	if (err || gone->count)
		return err;
	/*
	 * RWP ranges can't be told from unregistered ones, and need not: registered anew, populated pages read as
	 * accessed and dropped ones are found missing.
	 */
	if (!(p->flags & GCUFFD_WATCH_ACCESSES))
		err = gu_watch_find_lost(p, visit_lost, &lost);
	if (err || lost.error)
		return err ? err : lost.error;
	return lost.any ? 1 : gu_watch_register(p, false);
}

/*
 * .inv.watch.moved: what looks gone may be on its way to another place, with its event. It is gone if no event came
 * from before it was looked at until one could not be under way any more.
 */
int gu_watch_verify(struct gu_watch_range *p)
{
	struct gone gone = {.count = 0};
	uint32_t applied = gu_watch_applied();
	int err = check_piece(p, &gone);
	if (err == 1 || (!err && !gone.count))
		return err;
	if (context.events && (!gu_watch_settle(context.uffd.fd) || gu_watch_applied() != applied))
		return 1;
	for (size_t i = 0; i < gone.count; i++)
		end_part(gone.parts[i].start, gone.parts[i].end);
	return gone.count ? 1 : err == -EINVAL || err == -EPERM ? -ESTALE : err;
}

/* ---- loans ---- */

static bool is_watched(uintptr_t start, uintptr_t end)
{
	struct gu_watch_range p = {.start = start, .end = end};
	return find_flags(&p);
}

/* The place was free, so what is watched there is gone; or has moved, and its event comes. */
int gu_watch_add_loan(struct gu_watch_loan *loan)
{
	if (context.open && is_watched(loan->start, loan->end)) {
		int err = gu_watch_ready(gu_watchers);
		if (err == 1 || (!err && context.events && !gu_watch_settle(context.uffd.fd)))
			return 1;
	}
	end_part(loan->start, loan->end);
	loan->next = loans;
	loans = loan;
	return 0;
}

void gu_watch_drop_loan(struct gu_watch_loan *loan)
{
	for (struct gu_watch_loan **at = &loans; *at; at = &(*at)->next)
		if (*at == loan) {
			*at = loan->next;
			return;
		}
}
