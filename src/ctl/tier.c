/* SPDX-License-Identifier: MIT */
/* tier.c - see tier.h. */
#define _GNU_SOURCE
#include "ctl/tier.h"

#include <errno.h>
#include <string.h>

#include "base/meta.h"
#include "ctl/thermostat.h"
#include "gc/evict.h"
#include "gc/mark.h"
#include "gc/restore.h"
#include "gc/shed.h"
#include "gc/track.h"
#include "sys/caps.h"
#include "sys/os.h"
#include "sys/pressure.h"

#define REST_NS 50000000          /* between looks at what the heap takes */
#define PARKED_MOST 4             /* no more than a fourth of the target is on probation at once */
#define REOPEN_NS 60000000000u    /* a process may be moved to another cgroup */
#define FULL_NS 1000000000u
#define LOOK_SHARE 50             /* of the evictor's time goes into looks at what is kept */
#define SHED_NS 1000000000u       /* between looks for pages of which nothing lives */
#define WINDOWS_MOST 16           /* in which pages are watched for one probation; if that is not enough they are parked */
#define FORGET_NS 2000000000u     /* at least: the time between two of them */

struct gu_tier {
	struct gu_thermostat thermostat;
	struct gu_cgroup cgroup;
	int psi;                 /* -1: not open */
	bool shares;             /* the program's descriptors: none of its own stays open between looks */
	uint64_t looked_ns, opened_ns;
	bool said_blind, said_slow;
	size_t hand;             /* region that is parked next */
	size_t tail;             /* regions on probation lie between here and the hand: their records say since when */
	size_t count;            /* of these */
	uint64_t round_ns;       /* when the hand began its round */
	uint64_t keep_ns;        /* when it may next be looked at what is kept */
	bool said_unkept;
	uint64_t shed_ns;        /* when what had died was last looked for */
	struct gu_store_outage said[2]; /* reading, writing */
	uint64_t full_until_ns;  /* the store took nothing more: let some time pass */
	size_t idle;             /* regions in which nothing was parked or watched, one after the other */
	uint32_t lapses;         /* as of when regions below lapsed have windows, if they are watched */
	size_t lapsed;
	struct gu_tier_report report; /* atomic */
};

/* ---- opening ---- */

int gu_tier_probe(const struct gcuffd_options *o)
{
	static const char *const names[] = {"target", "cgroup", "pressure", "idle"};
	static const char *const lacks[] = {"", "no memory cgroup can be seen", "the kernel does not tell of pressure (CONFIG_PSI, psi=1)", ""};
	struct gu_log log = gu_log_of(o);
	struct gu_cgroup cgroup = {0};
	int err = 0, psi = o->cool_mode == GCUFFD_COOL_PRESSURE ? gu_psi_open() : -1;
	if (o->cool_mode == GCUFFD_COOL_CGROUP)
		err = gu_cgroup_open(&cgroup);
	if (o->cool_mode == GCUFFD_COOL_PRESSURE)
		err = psi < 0 ? psi : 0;
	gu_cgroup_close(&cgroup);
	if (psi >= 0)
		gu_os->close(psi);
	if (err)
		gu_log(&log, GU_LOG_ERROR, "cool_mode=%s is not to be had here: %s (error %d)", names[o->cool_mode],
		       err == -EOPNOTSUPP ? lacks[o->cool_mode] : "its files can't be opened", -err);
	return err;
}

/* Kept when the collector starts anew in a child. */
static int make_tier(struct gcuffd_heap *h)
{
	const struct gcuffd_options *o = &h->options;
	struct gu_thermostat_limits limits = {
		.mode = o->cool_mode, .target = o->resident_target, .pressure_percent = o->pressure_percent, .fault_percent = o->fault_percent,
		.probation_ns = o->cool_mode == GCUFFD_COOL_IDLE ? o->cool_after_ms * 1000000ull : GU_PROBATION_NS,
	};
	if (h->tier)
		return 0;
	struct gu_tier *t = gu_meta_alloc(sizeof(*t));
	if (!t)
		return -ENOMEM;
	t->psi = -1;
	gu_thermostat_init(&t->thermostat, &limits);
	t->report = (struct gu_tier_report){t->thermostat.target, gu_thermostat_probation(&t->thermostat, 0), 0};
	gu_store_release(&h->tier, t); /* pairs with gu_tier_report() */
	return 0;
}

/* A user-mode-only descriptor makes system calls on what is out fail with EFAULT (.inv.cold.syscalls). */
static bool can_resolve(struct gcuffd_heap *h)
{
	int least = gu_heap_is(h, GCUFFD_COLD_USER_FAULTS) ? GCUFFD_RUNG_ASYNC : GCUFFD_RUNG_MOVE;
	return gu_load_relaxed(&h->rung) >= least && gu_track_works(h) && gu_caps()->has_move && (!gu_track_is_user_mode_only(h) || gu_heap_is(h, GCUFFD_COLD_USER_FAULTS));
}

static int open_tier(struct gcuffd_heap *h, bool shares)
{
	const struct gcuffd_options *o = &h->options;
	struct gu_store_options store = {
		.memory_limit = o->store_memory, .file_limit = o->store_file, .path = o->store_path,
		.codec = (enum gu_codec)o->store_codec,
	};
	if (!can_resolve(h))
		return -EOPNOTSUPP;
	int err = make_tier(h);
	if (err)
		return err;
	h->tier->shares = shares;
	err = h->space.cold.store ? 0 : gu_store_open(&store, &h->space.cold.store);
	return err ? err : gu_restore_open(&h->space, gu_track_uffd(h), !gu_heap_without(h, GU_WITHOUT_neighbours), &h->restore);
}

void gu_tier_open(struct gcuffd_heap *h, bool shares)
{
	if (!h->space.cold.on)
		return;
	int err = open_tier(h, shares);
	if (err == -EOPNOTSUPP)
		gu_log(&h->log, GU_LOG_WARN, "cold=1: no page is taken out, for that needs rung move, and faults of system calls handled; gcuffd probe says why");
	else if (err)
		gu_log(&h->log, GU_LOG_WARN, "cold=1: no page is taken out: the store can't be opened (error %d)%s", -err, gu_store_refusal(err));
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

/* What can't be known is told. */
static void look_what_is_kept(struct gcuffd_heap *h, struct gu_tier *t)
{
	uint64_t began = gu_os->clock_ns();
	int err = gu_evict_look(h);
	uint64_t now = gu_os->clock_ns();
	t->keep_ns = now + (now - began) * LOOK_SHARE;
	if (err && !t->said_unkept)
		gu_log(&h->log, GU_LOG_WARN, "/proc/self/smaps can't be read (error %d): memory marked with MADV_DONTDUMP or MADV_WIPEONFORK may be taken out, too", -err);
	t->said_unkept |= err != 0;
}

bool gu_tier_step(struct gcuffd_heap *h, struct gu_tier_ask *ask)
{
	size_t top = gu_load_acquire(&h->space.top) >> GU_PAGE_SHIFT;
	size_t from = ask->from + ask->at, end = gu_min(ask->to, top);
	size_t to = gu_min(gu_align_down(from, GU_REGION_PAGES) + GU_REGION_PAGES, end);
	int err = 0;
	if (ask->what == GU_TIER_COOL && !ask->at)
		look_what_is_kept(h, h->tier);
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
	resident += gu_mark_packets(h); /* the next cycle needs them, too */
	return resident - gu_min(gone, resident) + gu_load_relaxed(&c->slab.bytes) + n.memory_bytes;
}

struct gu_tier_report gu_tier_report(const struct gcuffd_heap *h)
{
	const struct gu_tier *t = gu_load_acquire(&h->tier);
	if (!t)
		return (struct gu_tier_report){.target = GU_NO_TARGET};
	return (struct gu_tier_report){gu_load_relaxed(&t->report.target), gu_load_relaxed(&t->report.probation_ns), gu_load_relaxed(&t->report.backoffs)};
}

/* ---- looking ---- */

static int open_looks(struct gu_tier *t, enum gcuffd_cool_mode mode)
{
	if (mode == GCUFFD_COOL_CGROUP && !t->cgroup.version)
		return gu_cgroup_open(&t->cgroup);
	if (mode == GCUFFD_COOL_PRESSURE && t->psi < 0)
		t->psi = gu_psi_open();
	return mode == GCUFFD_COOL_PRESSURE && t->psi < 0 ? t->psi : 0;
}

static void close_looks(struct gu_tier *t)
{
	gu_cgroup_close(&t->cgroup);
	if (t->psi >= 0)
		gu_os->close(t->psi);
	t->psi = -1;
}

static int read_kernel(struct gu_tier *t, enum gcuffd_cool_mode mode, struct gu_thermostat_look *l)
{
	struct gu_cgroup_memory m = {0};
	int err = open_looks(t, mode);
	if (err)
		return err;
	if (mode == GCUFFD_COOL_PRESSURE)
		err = gu_psi_read(t->psi, &l->waited_ns);
	if (mode == GCUFFD_COOL_CGROUP)
		err = gu_cgroup_read(&t->cgroup, &m);
	l->limited = m.limited;
	l->limit = m.limit;
	l->used = m.used;
	return err;
}

/* A group may be gone, since the process was moved: it is looked for again. */
static bool ask_kernel(struct gcuffd_heap *h, struct gu_tier *t, struct gu_thermostat_look *l)
{
	enum gcuffd_cool_mode mode = h->options.cool_mode;
	if (l->now_ns - t->opened_ns >= REOPEN_NS) {
		close_looks(t);
		t->opened_ns = l->now_ns;
	}
	int err = read_kernel(t, mode, l);
	if (err) {
		close_looks(t);
		err = read_kernel(t, mode, l);
	}
	if (err || t->shares)
		close_looks(t);
	if (err && !t->said_blind)
		gu_log(&h->log, GU_LOG_WARN, "cool_mode: the kernel does not tell any more of %s (error %d): no target as long as that lasts",
		       mode == GCUFFD_COOL_CGROUP ? "the cgroup's memory" : "pressure", -err);
	t->said_blind |= err != 0;
	return !err;
}

static void say(struct gcuffd_heap *h, struct gu_tier *t)
{
	const struct gu_thermostat *th = &t->thermostat;
	gu_store_relaxed(&t->report.target, th->target);
	gu_store_relaxed(&h->space.cold.target, th->target == GU_NO_TARGET ? SIZE_MAX : (size_t)th->target);
	gu_store_relaxed(&t->report.probation_ns, gu_thermostat_probation(th, 0));
	gu_store_relaxed(&t->report.backoffs, th->backoffs);
	if (th->slow < 2 || t->said_slow)
		return;
	t->said_slow = true;
	gu_log(&h->log, GU_LOG_WARN, "pages taken out come back too soon, waiting for them costs more than %u %% of a processor: fewer are taken out, though the heap takes %zu MiB (target %zu MiB)",
	       h->options.fault_percent, gu_tier_resident(h) >> 20, (size_t)(th->target == GU_NO_TARGET ? 0 : th->target >> 20));
}

void gu_tier_look(struct gcuffd_heap *h)
{
	const struct gu_cold_counts *c = &h->space.cold.counts;
	struct gu_tier *t = h->tier;
	uint64_t now = gu_os->clock_ns();
	if (!gu_tier_goes_by_itself(&h->options) || (t->looked_ns && now - t->looked_ns < GU_LOOK_NS))
		return;
	struct gu_thermostat_look l = {
		.now_ns = now, .resident = gu_tier_resident(h), .faults = gu_load_relaxed(&c->touched), .fault_ns = gu_load_relaxed(&c->touch_ns),
	};
	t->looked_ns = now;
	if (ask_kernel(h, t, &l))
		gu_thermostat_look(&t->thermostat, &l);
	else
		gu_thermostat_blind(&t->thermostat, &l);
	say(h, t);
}

static void say_outage(struct gcuffd_heap *h, struct gu_store_outage *said, bool writing)
{
	struct gu_store_outage now = gu_store_outage(h->space.cold.store, writing);
	const char *path = gu_store_path(h->space.cold.store);
	if (now.began != said->began)
		gu_log(&h->log, GU_LOG_ERROR, "the store in %s can't be %s (error %d, %s): %s", path, writing ? "written" : "read", -now.error, strerrordesc_np(-now.error),
		       writing ? "what does not fit in memory is not taken out until it can" : "who touches what is out there gets SIGBUS");
	if (!now.lasts && (said->lasts || now.began != said->began))
		gu_log(&h->log, GU_LOG_WARN, "the store in %s can be %s again", path, writing ? "written" : "read");
	*said = now;
}

void gu_tier_say(struct gcuffd_heap *h)
{
	if (!gu_store_path(h->space.cold.store))
		return;
	say_outage(h, &h->tier->said[0], false);
	say_outage(h, &h->tier->said[1], true);
}

/* ---- the hands ---- */

static size_t count_regions(const struct gcuffd_heap *h) { return gu_load_acquire(&h->space.top) / GU_REGION; }

static struct gu_cold_region *record(const struct gcuffd_heap *h, size_t region) { return gu_cold_region(&h->space.cold, region * GU_REGION_PAGES); }

/* Of those on probation, which there are. */
static struct gu_cold_region *find_oldest(const struct gcuffd_heap *h, struct gu_tier *t)
{
	size_t regions = count_regions(h);
	for (size_t n = 0; n <= regions; n++, t->tail++) {
		t->tail = t->tail < regions ? t->tail : 0;
		struct gu_cold_region *r = record(h, t->tail);
		if (r && r->parked_ns)
			return r;
	}
	GU_INVARIANT(false, ".inv.cold.probation");
	return NULL;
}

static void begin_probation(struct gu_tier *t, struct gu_cold_region *r, bool watched, uint64_t now)
{
	t->idle = 0;
	t->count++;
	r->parked_ns = now;
	r->watched = watched;
	r->windows = 1;
}

static void end_probation(struct gu_tier *t, struct gu_cold_region *r)
{
	r->parked_ns = 0;
	r->watched = false;
	t->count--;
}

static bool has_stood(const struct gu_cold_region *r, uint64_t now, uint64_t probation)
{
	uint64_t before = gu_load_acquire(&r->stood_ns), since = gu_load_relaxed(&r->armed_ns); /* .inv.cold.probation */
	return (r->watched ? before + (since ? now - since : 0) : now - r->parked_ns) >= probation;
}

static bool has_parked(const struct gu_cold_region *r)
{
	bool found = false;
	for (size_t i = 0; i < GU_REGION_PAGES && !found; i++)
		found = gu_load_relaxed(&r->state[i]) == GU_COLD_PARKED;
	return found;
}

/* What the store does not take stays parked, and is tried again. What was watched is parked just for that. */
static void store_oldest(struct gcuffd_heap *h, struct gu_tier *t, struct gu_cold_region *r, uint64_t now)
{
	bool watched = r->watched;
	size_t out = 0;
	r->watched = false;
	if (watched && gu_evict_park(h, t->tail * GU_REGION_PAGES, (t->tail + 1) * GU_REGION_PAGES, GU_EVICT_STANDING))
		gu_evict_unwatch(h, t->tail);
	if (watched && !has_parked(r)) {
		end_probation(t, r);
		return;
	}
	if (gu_evict_store(h, t->tail * GU_REGION_PAGES, (t->tail + 1) * GU_REGION_PAGES, &out)) {
		t->full_until_ns = now + FULL_NS;
		return;
	}
	end_probation(t, r);
}

/* Where the kernel tells what is accessed, and nothing is out that a touch would have to bring back: 0 if it is watched, -ENOENT if there is nothing to watch. */
static int watch(struct gcuffd_heap *h, struct gu_tier *t, size_t region, uint64_t now)
{
	struct gu_cold_region *r = record(h, region);
	bool restless = r && r->restless;
	if (restless)
		r->restless = false;
	if (restless || t->thermostat.margin) /* a group's limit: what goes is needed soon */
		return -EBUSY;
	int err = gu_evict_watch(h, region, true);
	if (!err)
		begin_probation(t, record(h, region), true, now);
	return err;
}

static void park_next(struct gcuffd_heap *h, struct gu_tier *t, uint64_t now)
{
	size_t region = t->hand < count_regions(h) ? t->hand : 0;
	if (!region)
		t->round_ns = now;
	if (!region && now >= t->keep_ns)
		look_what_is_kept(h, t);
	t->hand = region + 1;
	t->idle++;
	int err = watch(h, t, region, now);
	if (!err || err == -ENOENT)
		return;
	err = gu_evict_park(h, region * GU_REGION_PAGES, (region + 1) * GU_REGION_PAGES, GU_EVICT_SPARING);
	if (!err && has_parked(record(h, region)))
		begin_probation(t, record(h, region), false, now);
}

/* After a cycle. What has been watched in too many windows, or has pages out by now, is on probation no more. */
static void watch_again(struct gcuffd_heap *h, struct gu_tier *t, size_t region, uint64_t now, uint64_t probation)
{
	struct gu_cold_region *r = record(h, region);
	if (now > gu_load_relaxed(&r->lapsed_ns) + gu_max(FORGET_NS, probation)) /* which may be after now */
		gu_store_relaxed(&r->stood_ns, 0);
	r->restless = ++r->windows > WINDOWS_MOST;
	if (!r->restless && !gu_evict_watch(h, region, false))
		return;
	gu_evict_unwatch(h, region);
	end_probation(t, r);
}

/* Whether there was a region to be watched again. */
static bool watch_lapsed(struct gcuffd_heap *h, struct gu_tier *t, uint64_t now, uint64_t probation)
{
	uint32_t lapses = gu_load_seqcst(&h->space.cold.lapses);
	size_t regions = count_regions(h);
	if (lapses != t->lapses)
		t->lapsed = 0;
	t->lapses = lapses;
	for (; t->lapsed < regions; t->lapsed++) {
		const struct gu_cold_region *r = record(h, t->lapsed);
		if (r && r->watched && !gu_load_relaxed(&r->armed_ns)) {
			watch_again(h, t, t->lapsed, now, probation);
			return true;
		}
	}
	return false;
}

/* Enough that, if all of it stays, the target is met; and no more than fits beside it. Of what is watched most may be in use. */
static bool wants_more(const struct gcuffd_heap *h, const struct gu_tier *t, size_t over)
{
	const struct gu_cold *c = &h->space.cold;
	size_t parked = gu_load_relaxed(&c->parked) << GU_PAGE_SHIFT, watched = gu_load_relaxed(&c->standing) << GU_PAGE_SHIFT;
	size_t most = gu_max(t->thermostat.target / PARKED_MOST, 4 * GU_REGION);
	return t->idle <= count_regions(h) && parked < over + over / 4 && parked + watched < most;
}

/* ns until the hand may move on: a round takes as long as a probation, so that heat is a time, not a matter of how little is left. Idle: it is spread over that. */
static uint64_t hand_waits(const struct gcuffd_heap *h, const struct gu_tier *t, uint64_t now, uint64_t probation, bool spread)
{
	size_t regions = count_regions(h);
	const struct gu_cold_region *r = t->hand < regions ? record(h, t->hand) : regions ? record(h, 0) : NULL;
	uint64_t due = t->round_ns + (t->hand >= regions ? probation : spread ? probation / regions * t->hand : 0);
	if (!regions || (r && r->parked_ns)) /* the other hand comes first */
		return REST_NS;
	return due > now ? due - now : 0;
}

int64_t gu_tier_balance(struct gcuffd_heap *h)
{
	struct gu_tier *t = h->tier;
	if (!gu_tier_goes_by_itself(&h->options))
		return -1;
	uint64_t now = gu_os->clock_ns();
	size_t resident = gu_tier_resident(h), over = resident - gu_min(resident, t->thermostat.target);
	bool idle = !over && h->options.cool_mode == GCUFFD_COOL_IDLE;
	uint64_t probation = gu_thermostat_probation(&t->thermostat, over);
	if (now < t->full_until_ns || (!over && !idle))
		return t->thermostat.target == GU_NO_TARGET ? GU_LOOK_NS : REST_NS;
	if (watch_lapsed(h, t, now, probation))
		return 0;
	struct gu_cold_region *oldest = t->count ? find_oldest(h, t) : NULL;
	if (oldest && has_stood(oldest, now, probation)) {
		store_oldest(h, t, oldest, now);
		return 0;
	}
	uint64_t wait = hand_waits(h, t, now, probation, idle);
	if (!wait && (idle || wants_more(h, t, over))) {
		park_next(h, t, now);
		return 0;
	}
	t->idle = 0;
	return (int64_t)gu_max(gu_min(wait, GU_LOOK_NS), REST_NS);
}

static void report_bad(struct gcuffd_heap *h)
{
	size_t end = gu_load_acquire(&h->space.top) >> GU_PAGE_SHIFT;
	if (!gu_load_relaxed(&h->space.cold.bad) || !gu_swap_seqcst(&h->space.cold.bad, 0))
		return;
	for (size_t page = 0; gu_cold_next_bad(&h->space.cold, end, &page); page++)
		gu_log(&h->log, GU_LOG_ERROR, "the page at %#lx can't be brought back: the store could not read it, or not what it was; who touches it gets SIGBUS",
		       (unsigned long)gu_space_address(&h->space, page));
}

/* Who forks has nobody to tell. */
static void report_fork(struct gcuffd_heap *h)
{
	int err = gu_load_relaxed(&h->space.cold.fork_error);
	if (!err)
		return;
	gu_store_relaxed(&h->space.cold.fork_error, 0);
	gu_log(&h->log, GU_LOG_ERROR, "something that a fork() needs was refused (error %d): what is out may be missing, or can't be read, in a child", -err);
}

void gu_tier_rest(struct gcuffd_heap *h)
{
	if (!h->tier)
		return;
	close_looks(h->tier);
	report_bad(h);
	report_fork(h);
}

/* Its descriptors were in the parent's evictor's table. */
void gu_tier_forked(struct gcuffd_heap *h)
{
	if (!h->tier)
		return;
	memset(h->tier->said, 0, sizeof(h->tier->said));
	h->tier->cgroup = (struct gu_cgroup){0};
	h->tier->psi = -1;
}

bool gu_tier_has_left(const struct gcuffd_heap *h)
{
	const struct gu_cold *c = &h->space.cold;
	return gu_load_relaxed(&c->left) || gu_load_relaxed(&c->bad) || gu_load_relaxed(&c->fork_error);
}

bool gu_tier_is_used(const struct gcuffd_heap *h) { return gu_load_relaxed(&h->space.cold.nout); }

static void shed(struct gcuffd_heap *h)
{
	uint64_t now = gu_os->clock_ns();
	if (now - h->tier->shed_ns < SHED_NS)
		return;
	h->tier->shed_ns = now;
	gu_shed(h);
}

void gu_tier_tidy(struct gcuffd_heap *h)
{
	report_bad(h);
	report_fork(h);
	shed(h);
	gu_evict_tidy(h);
	gu_store_tidy(h->space.cold.store);
}
