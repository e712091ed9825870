/* SPDX-License-Identifier: MIT */
/*
 * service.c - the collector's thread: waits for requests, runs cycles, paces, tidies. Requests are tickets:
 * asks counts them, done is how many were served; both are only ever raised.
 */
#define _GNU_SOURCE
#include "ctl/service.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "base/meta.h"
#include "base/own.h"
#include "base/probe.h"
#include "ctl/evictor.h"
#include "ctl/finalizer.h"
#include "ctl/pacer.h"
#include "ctl/phase.h"
#include "ctl/watchdog.h"
#include "gc/alloc.h"
#include "gc/event.h"
#include "gc/evict.h"
#include "gc/final.h"
#include "gc/imageload.h"
#include "gc/imagesave.h"
#include "gc/mark.h"
#include "gc/mutator.h"
#include "gc/restore.h"
#include "gc/roots.h"
#include "gc/stop.h"
#include "gc/track.h"
#include "gc/verify.h"
#include "gc/weak.h"
#include "space/ahead.h"
#include "sys/files.h"
#include "sys/os.h"
#include "sys/statm.h"

#define STACK ((size_t)256 << 10)
#define REPACE_NS 200000000
#define TURN_NS 4000000
#define THREADS (GU_MARKERS + GU_RESOLVERS + 3) /* the collector, its workers, one that brings in regions ahead, the resolvers, the evictor, the watchdog */

/* What the collector is asked to do with the cycle lock. */
struct asking {
	gu_service_fn *fn;
	void *arg;
	bool after_cycle;
	int result;
	uint32_t done; /* atomic; futex */
};

struct saving {
	const char *path;
	const struct gcuffd_image_options *options;
};

struct gu_service {
	struct gcuffd_heap *heap;
	struct gu_lock lock;      /* rank LIBRARY: starting and ending the threads */
	bool started;             /* guard: lock */
	uint32_t running;         /* atomic; the collector takes requests */
	uint32_t wanted;          /* atomic; a mutator would like the threads to be started */
	uint32_t kicked;          /* atomic; allocation has reached the trigger */
	uint32_t quit;            /* atomic */
	uint32_t bell;            /* atomic; futex of the collector */
	uint64_t asks;            /* atomic; see ask() */
	uint32_t done;            /* atomic; tickets served; futex */
	uint32_t in_cycle;        /* atomic; a cycle runs */
	uint32_t outrun;          /* atomic; mutators waited for this cycle, or were slowed down */
	uint32_t ask_reason;      /* atomic */
	int32_t result;           /* atomic; of the last cycle */
	struct asking *asking;    /* atomic; whose turn it is */
	uint32_t writes;          /* atomic; the heap is being saved */
	uint32_t forks;           /* that this is the child of; constant but in a child's handler */
	uint32_t ready;           /* atomic; futex; 1 started, 2 failed */
	int error;                /* why it failed */
	bool shares;              /* guard: collector, then constant; the program's descriptors, not some of its own */
	uint32_t nthreads;
	pthread_t threads[THREADS];
	void *stacks[THREADS];
	struct gu_watchdog watchdog;
	uint32_t index;           /* atomic; hands out markers to workers */
	uint64_t last_end;        /* bytes allocated when the last cycle ended */
	uint64_t tidied_ns;
	uint64_t paced_at, paced_ns; /* guard: collector; bytes allocated when the next cycle was planned, and when that was; 0: it is not */
	bool late;                /* guard: collector; a cycle ran: what was freed behind its sweep is still there */
	uint64_t seen;            /* bytes allocated and resident at the last tick, to tell a quiet heap */
	unsigned quiet_ticks;
	unsigned failures;        /* cycles put off since the last that was not */
	uint64_t last_freed;      /* atomic; bytes, by the last cycle */
	struct gu_pacer pacer;    /* guard: collector */
	struct gu_lock stats_lock; /* rank WAIT */
	struct gcuffd_stats stats; /* guard: stats_lock */
};

/* ---- asking ---- */

static void ring(struct gu_service *s)
{
	gu_add_seqcst(&s->bell, 1);
	gu_os->futex_wake(&s->bell, 1);
}

void gu_heap_kick(struct gcuffd_heap *h)
{
	struct gu_service *s = h->service;
	if (gu_heap_is(h, GCUFFD_NO_PACING)) {
		if (gu_tier_goes_by_itself(&h->options) && !gu_load_relaxed(&s->running)) /* for the thread that takes pages out */
			gu_store_relaxed(&s->wanted, 1);
		return;
	}
	if (gu_load_relaxed(&s->kicked))
		return;
	gu_store_seqcst(&s->kicked, 1);
	if (gu_load_relaxed(&s->running))
		ring(s);
	else
		gu_store_relaxed(&s->wanted, 1);
}

void gu_service_enabled(struct gcuffd_heap *h) { ring(h->service); }

bool gu_service_wanted(const struct gcuffd_heap *h) { return gu_load_relaxed(&h->service->wanted); }

/* What a mutator waits for: the stop goes on without it, and all markers join in. */
struct stall {
	enum gcuffd_stall why;
	uint32_t forks; /* of the service's, when it was counted: in a child what its parent's threads wait for is over */
	uint64_t since;
	struct gu_wait wait;
};

static void begin_stall(struct gcuffd_heap *h, enum gcuffd_stall why, struct stall *stall)
{
	GU_PROBE2(stall__begin, h, (unsigned)why);
	stall->why = why;
	stall->since = gu_os->clock_ns();
	gu_wait_begin(&stall->wait);
	stall->forks = h->service->forks;
	gu_add_seqcst(&h->stalled, 1);
	gu_mark_hurry(h);
}

/* The collector may be asleep, and for long. */
static void put_stall(struct gcuffd_heap *h, const struct gcuffd_event *event)
{
	struct gu_thread *t = gu_enter();
	gu_event_put(h, event);
	gu_leave(t);
	ring(h->service);
}

static void end_stall(struct gcuffd_heap *h, const struct stall *stall)
{
	if (stall->forks == h->service->forks)
		gu_sub_seqcst(&h->stalled, 1);
	gu_wait_end(&stall->wait);
	uint64_t now = gu_os->clock_ns(), took = now - stall->since;
	gu_add_relaxed(&h->stall_ns, took);
	GU_PROBE3(stall__end, h, (unsigned)stall->why, took);
	if (gu_unlikely(gu_event_wanted(h))) {
		struct gcuffd_event event = {
			.kind = GCUFFD_EVENT_STALL, .stall = stall->why, .begin_ns = stall->since, .end_ns = now, .thread = (int)gu_os->gettid(),
		};
		put_stall(h, &event);
	}
}

static int wait_for(struct gcuffd_heap *h, enum gcuffd_stall why, uint32_t ticket)
{
	struct gu_service *s = h->service;
	struct stall stall;
	begin_stall(h, why, &stall);
	for (uint32_t done; (int32_t)((done = gu_load_acquire(&s->done)) - ticket) < 0;)
		gu_wait_futex(&stall.wait, &s->done, done, -1);
	int result = gu_load_relaxed(&s->result);
	end_stall(h, &stall);
	return result;
}

/* A cycle is under way, or due. */
static bool is_coming(struct gu_service *s)
{
	return gu_load_seqcst(&s->in_cycle) || (gu_load_seqcst(&s->kicked) && gu_load_seqcst(&s->running) && !gu_load_seqcst(&s->heap->disabled));
}

/* Until that cycle has freed something since relief was read, or the news that it does not come: whether more of it is on its way. */
static bool wait_relief(struct gcuffd_heap *h, enum gcuffd_stall why, uint32_t relief)
{
	struct gu_service *s = h->service;
	uint32_t now = gu_load_acquire(&h->relief);
	if (now == relief) {
		struct stall stall;
		begin_stall(h, why, &stall);
		while ((now = gu_load_acquire(&h->relief)) == relief && is_coming(s))
			gu_wait_futex(&stall.wait, &h->relief, relief, GU_WAIT_NS); /* who disables collection wakes nobody */
		gu_store_relaxed(&s->outrun, 1); /* before it is not counted as stalled any more: pairs with pace() */
		end_stall(h, &stall);
	}
	return now != relief && now / GU_RELIEF_CYCLE == relief / GU_RELIEF_CYCLE;
}

static uint32_t asked(const struct gu_service *s) { return (uint32_t)(gu_load_seqcst(&s->asks) >> 32); }

/* The number of tickets above, below the last of them that wants all of its cycle in a stop: both change at once. */
static uint32_t ask(struct gu_service *s, bool in_stop)
{
	uint64_t was = gu_load_relaxed(&s->asks), now;
	uint32_t ticket;
	do {
		ticket = (uint32_t)(was >> 32) + 1;
		now = (uint64_t)ticket << 32 | (in_stop ? ticket : (uint32_t)was);
	} while (!gu_cas_seqcst(&s->asks, &was, now));
	return ticket;
}

int gu_service_collect(struct gcuffd_heap *h, enum gcuffd_reason reason, bool in_stop)
{
	struct gu_service *s = h->service;
	int err = gu_load_seqcst(&h->disabled) ? -EBUSY : gu_service_start(h, true);
	if (err)
		return err;
	if (gu_unlikely(gu_finalizer_is_lost(h)))
		gu_finalizer_fork_resume(h);
	gu_store_seqcst(&s->ask_reason, reason);
	uint32_t ticket = ask(s, in_stop);
	ring(s);
	return wait_for(h, reason == GCUFFD_REASON_NO_MEMORY ? GCUFFD_STALL_NO_MEMORY : GCUFFD_STALL_ASKED, ticket);
}

static int run(struct gcuffd_heap *h, struct asking *a)
{
	struct gu_service *s = h->service;
	struct asking *none = NULL;
	int err = gu_service_start(h, true);
	if (err)
		return err;
	struct gu_wait wait;
	gu_wait_begin(&wait);
	for (; !gu_cas_seqcst(&s->asking, &none, a); none = NULL) /* another's turn */
		gu_wait_futex(&wait, &a->done, 0, 1000000);
	ring(s);
	while (!gu_load_acquire(&a->done))
		gu_wait_futex(&wait, &a->done, 0, -1);
	gu_wait_end(&wait);
	return a->result;
}

int gu_service_run(struct gcuffd_heap *h, gu_service_fn *fn, void *arg)
{
	struct asking a = {fn, arg, false, 0, 0};
	return run(h, &a);
}

static size_t tidy_all(struct gcuffd_heap *h, enum gu_arena_tidy how)
{
	size_t before = gu_load_relaxed(&h->space.resident);
	for (unsigned i = 0; i <= GU_ARENAS; i++) {
		struct gcuffd_arena *a = gu_load_acquire(&h->arenas[i]);
		if (a)
			gu_arena_tidy(a, how);
	}
	size_t after = gu_load_relaxed(&h->space.resident);
	return before > after ? before - after : 0;
}

static size_t purge_in_section(struct gcuffd_heap *h)
{
	struct gu_thread *t = gu_enter();
	size_t freed = tidy_all(h, GU_TIDY_PURGE);
	gu_leave(t);
	return freed;
}

static void nap(struct gcuffd_heap *h, uint64_t ns)
{
	uint32_t never = 0;
	struct stall stall;
	begin_stall(h, GCUFFD_STALL_SLOWED, &stall);
	gu_wait_futex(&stall.wait, &never, 0, (int64_t)ns);
	end_stall(h, &stall);
}

/* Who forks holds the cycle lock: nothing comes that it could wait for. */
void gu_service_throttle(struct gcuffd_heap *h, size_t bytes)
{
	struct gu_service *s = h->service;
	uint32_t relief = gu_load_seqcst(&h->relief);
	uint64_t ns = gu_pacer_nap(gu_load_relaxed(&h->allocated), gu_load_relaxed(&h->trigger), gu_load_relaxed(&h->ceiling), bytes);
	if (gu_likely(!ns) || gu_world_is_closed_by_caller())
		return;
	if (gu_load_relaxed(&s->writes)) {
		if (ns == GU_PACER_WAIT)
			nap(h, gu_pacer_nap_saving(bytes, gu_load_relaxed(&h->saving_pace)));
		return;
	}
	if (!is_coming(s))
		return;
	gu_store_relaxed(&s->outrun, 1);
	if (ns != GU_PACER_WAIT) {
		nap(h, ns);
		return;
	}
	while (wait_relief(h, GCUFFD_STALL_OUTRUN, relief)) { /* who goes on takes an object of any size: 2 MiB are no reason to, beyond the ceiling */
		relief = gu_load_seqcst(&h->relief);
		if (gu_load_relaxed(&h->allocated) < gu_load_relaxed(&h->ceiling))
			return;
	}
}

void gu_service_try(const struct gcuffd_heap *h, struct gu_request *r) { r->relief = gu_load_seqcst(&h->relief); }

bool gu_service_more_memory(struct gcuffd_heap *h, size_t size, struct gu_request *r)
{
	unsigned attempt = r->attempt;
	bool fits = !h->options.hard_limit || size <= h->options.hard_limit;
	if (!fits || size > h->space.size)
		return false;
	if (gu_world_is_closed_by_caller())
		return false;
	if (attempt % 2 == 0 && !r->purged && purge_in_section(h) >= gu_min(size, GU_BLOCK)) {
		r->attempt++;
		return true;
	}
	if (gu_load_seqcst(&h->disabled))
		return false;
	/* Other threads may take what a cycle frees: as long as it frees enough, another try is worth it. */
	if (attempt >= 64 || (attempt >= 6 && gu_load_relaxed(&h->service->last_freed) < gu_max(size, GU_BLOCK)))
		return false;
	r->purged = false;
	if (attempt < 2 && is_coming(h->service))
		r->purged = wait_relief(h, GCUFFD_STALL_NO_MEMORY, r->relief);
	else
		gu_service_collect(h, GCUFFD_REASON_NO_MEMORY, attempt >= 4);
	r->attempt += !r->purged;
	return true;
}

/* ---- the collector ---- */

static const char *reason_name(enum gcuffd_reason r)
{
	static const char *const names[] = {"none", "allocation", "asked", "no memory", "save"};
	return names[r];
}

struct rounds_text {
	char text[GCUFFD_ROUNDS * 21 + 3]; /* " (1+2)" */
};

static struct rounds_text text_of_rounds(const struct gu_cycle *c)
{
	struct rounds_text t = {""};
	size_t at = 0;
	for (uint64_t i = 0; i < c->rounds; i++)
		at += (size_t)snprintf(t.text + at, sizeof(t.text) - at, "%s%lu", i ? "+" : " (", c->round_dirty[i]);
	if (at)
		snprintf(t.text + at, sizeof(t.text) - at, ")");
	return t;
}

static void log_cycle(struct gcuffd_heap *h, const struct gu_cycle *c)
{
	struct rounds_text rounds = text_of_rounds(c);
	gu_log(&h->log, GU_LOG_INFO,
	       "cycle %lu (%s%s): stops %lu+%lu us, arm %lu mark %lu preclean %lu finalize %lu sweep %lu us; "
	       "pages scanned %lu dirty %lu in %lu rounds%s, remark %lu; marked %lu KiB, in stops %lu KiB; "
	       "words in remark %lu (stacks %lu); freed %lu live %lu resident %lu process %lu KiB",
	       c->number, reason_name(c->reason), c->in_stop ? ", in a stop" : "", c->stop1_ns / 1000, c->stop2_ns / 1000,
	       c->arm_ns / 1000, c->mark_ns / 1000, c->preclean_ns / 1000, c->final_ns / 1000, c->sweep_ns / 1000, c->pages_scanned,
	       c->dirty_pages, c->rounds, rounds.text, c->remark_dirty_pages, c->marked >> 10, c->marked_in_stop >> 10, c->remark_words,
	       c->stack_words, c->swept.freed_bytes >> 10, c->swept.live_bytes >> 10, gu_space_resident(&h->space) >> 10,
	       c->rss >> 10);
}

static void take_stats(struct gcuffd_heap *h, const struct gu_cycle *c, int err)
{
	struct gu_service *s = h->service;
	struct gcuffd_stats *st = &s->stats;
	gu_lock(&s->stats_lock);
	if (err) {
		st->cycles_put_off++;
		gu_unlock(&s->stats_lock);
		return;
	}
	st->cycles++;
	st->verify_failures += c->wrong;
	st->live_bytes = c->swept.live_bytes;
	st->freed_bytes += c->swept.freed_bytes;
	st->stop_max_ns = gu_max(st->stop_max_ns, gu_max(c->stop1_ns, c->stop2_ns));
	st->stop_total_ns += c->stop1_ns + c->stop2_ns;
	st->remark_words_max = gu_max(st->remark_words_max, c->remark_words);
	st->last_stop1_ns = c->stop1_ns;
	st->last_stop2_ns = c->stop2_ns;
	st->last_arm_ns = c->arm_ns;
	st->last_mark_ns = c->mark_ns;
	st->last_preclean_ns = c->preclean_ns;
	st->last_sweep_ns = c->sweep_ns;
	st->last_finalize_ns = c->final_ns;
	st->last_marked_bytes = c->marked;
	st->last_marked_in_stop_bytes = c->marked_in_stop;
	st->last_freed_bytes = c->swept.freed_bytes;
	st->last_pages_scanned = c->pages_scanned;
	st->last_dirty_pages = c->dirty_pages;
	st->last_remark_dirty_pages = c->remark_dirty_pages;
	st->last_remark_words = c->remark_words;
	st->last_remark_stack_words = c->stack_words;
	st->last_remark_block_words = c->block_words;
	st->last_preclean_rounds = c->rounds;
	memcpy(st->last_round_dirty_pages, c->round_dirty, sizeof(c->round_dirty));
	st->last_reason = c->reason;
	st->last_rss_bytes = c->rss;
	st->dirty_pages += c->dirty_pages;
	st->remark_dirty_pages += c->remark_dirty_pages;
	gu_unlock(&s->stats_lock);
	log_cycle(h, c);
}

static void pace(struct gcuffd_heap *h, const struct gu_cycle *c)
{
	struct gu_service *s = h->service;
	size_t resident = gu_space_resident(&h->space), used = gu_load_relaxed(&h->space.resident), held = c->swept.held_bytes;
	uint64_t reusable = (used > held ? used - held : 0) + c->swept.listed_bytes;
	uint64_t since = gu_load_relaxed(&h->allocated) - c->allocated_before - c->allocated_during; /* of what the sweep gave back, some is taken */
	struct gu_pacer_cycle p = {
		.live = c->swept.live_bytes,
		.resident = resident,
		.reusable = reusable > since ? reusable - since : 0,
		.duration_ns = c->mark_ns + c->preclean_ns,
		.allocated_during = c->allocated_during,
		.waited = gu_load_acquire(&h->stalled) || gu_load_relaxed(&s->outrun),
	};
	uint64_t next = gu_pacer_next(&s->pacer, &p);
	s->failures = 0;
	gu_store_relaxed(&s->last_freed, c->swept.freed_bytes);
	uint64_t now = gu_load_relaxed(&h->allocated);
	gu_store_relaxed(&h->ceiling, now + gu_pacer_ceiling(next));
	gu_store_relaxed(&h->trigger, now + next);
	s->paced_at = now;
	s->paced_ns = gu_os->clock_ns();
	gu_store_seqcst(&s->kicked, 0);
}

/* Mutators that became slower need not wait for a cycle that was planned for fast ones. */
static void pace_again(struct gcuffd_heap *h, uint64_t now)
{
	struct gu_service *s = h->service;
	if (!s->paced_ns || now - s->paced_ns < REPACE_NS)
		return;
	uint64_t allocated = gu_load_relaxed(&h->allocated) - s->paced_at;
	uint64_t trigger = s->paced_at + gu_pacer_revise(&s->pacer, (uint64_t)((double)allocated * 1e9 / (double)(now - s->paced_ns)));
	if (trigger < gu_load_relaxed(&h->trigger))
		gu_store_relaxed(&h->trigger, trigger);
}

/* Tried again when some more was allocated, twice as much each time, or asked for. */
static void put_off(struct gcuffd_heap *h, int err)
{
	if (err == -ETIMEDOUT)
		gu_log(&h->log, GU_LOG_WARN, "cycle put off: not stopped in time: %s", h->stop.missing);
	else
		gu_log(&h->log, GU_LOG_WARN, "cycle put off: an OS call failed, errno %d", -err);
	unsigned n = h->service->failures++;
	gu_store_relaxed(&h->service->last_freed, 0);
	gu_store_relaxed(&h->trigger, gu_load_relaxed(&h->allocated) + (h->options.start_size << gu_min(n, 10)));
	gu_store_relaxed(&h->ceiling, UINT64_MAX); /* nobody waits for what does not come */
	h->service->paced_ns = 0;
	gu_store_seqcst(&h->service->kicked, 0);
}

/* jemalloc's metadata counts against the limit. */
static void account_foreign(struct gcuffd_heap *h)
{
	size_t bytes = 0;
	for (unsigned i = 0; i <= GU_ARENAS; i++) {
		struct gu_arena_sizes sizes;
		struct gcuffd_arena *a = gu_load_acquire(&h->arenas[i]);
		if (!a)
			continue;
		gu_arena_sizes(a, &sizes);
		bytes += sizes.metadata;
	}
	gu_store_relaxed(&h->space.foreign, bytes + gu_mark_memory(h) + gu_weak_memory(h) + gu_final_memory(h) + h->service->nthreads * STACK / 8);
}

/* Before the evictor, which takes the lock again and again. */
static void lock_cycle(struct gcuffd_heap *h)
{
	gu_store_seqcst(&h->cycle_waits, 1);
	gu_lock(&h->cycle_lock);
	gu_store_seqcst(&h->cycle_waits, 0);
}

/* With the lock. What is due stays so until collection is enabled (.inv.cycle.disabled). */
static int run_locked(struct gcuffd_heap *h, struct gu_cycle *c)
{
	struct gu_service *s = h->service;
	if (gu_load_seqcst(&h->disabled))
		return -EBUSY;
	gu_store_relaxed(&s->outrun, 0);
	c->number = s->stats.cycles + 1; /* nobody else changes it */
	gu_store_seqcst(&s->in_cycle, 1);
	gu_cycle_begins(h, c);
	int err = gu_image_summarise(h); /* .inv.image.summaries */
	if (!err)
		err = gu_cycle_run(h, c);
	if (!err)
		account_foreign(h);
	if (err)
		put_off(h, err);
	else
		pace(h, c);
	gu_store_seqcst(&s->in_cycle, 0); /* after kicked was cleared: who sees it set from here on may wait for another cycle */
	gu_sweep_relieve_last(h);
	c->rss = gu_statm_resident();
	take_stats(h, c, err);
	gu_cycle_ends(h, c, err);
	s->late = true;
	return err;
}

/* .inv.cycle.turn: who tries for it each millisecond might miss for ever the moment when it is free. */
static void give_turn(struct gcuffd_heap *h)
{
	if (!gu_load_seqcst(&h->turn_waits))
		return;
	gu_os->futex_wait(&h->turn_waits, 1, TURN_NS);
	gu_store_seqcst(&h->turn_waits, 0); /* it may have been stopped, or be gone: it says so again */
}

static void run_cycle(struct gcuffd_heap *h, enum gcuffd_reason unasked)
{
	struct gu_service *s = h->service;
	give_turn(h);
	uint64_t asks = gu_load_seqcst(&s->asks);
	uint32_t served = (uint32_t)(asks >> 32), done = gu_load_relaxed(&s->done);
	struct gu_cycle c = {.reason = served != done ? gu_load_relaxed(&s->ask_reason) : unasked};
	c.in_stop = (int32_t)((uint32_t)asks - done) > 0;
	lock_cycle(h);
	int err = run_locked(h, &c);
	gu_unlock(&h->cycle_lock);
	gu_store_seqcst(&s->result, err);
	gu_store_seqcst(&s->done, served);
	gu_os->futex_wake(&s->done, INT32_MAX);
}

/* As long as writes is set, whoever comes to the ceiling, which the save sets, naps instead of waiting for a cycle. */
static int save(struct gcuffd_heap *h, void *arg)
{
	const struct saving *saving = arg;
	gu_store_relaxed(&h->service->writes, 1);
	int err = gu_image_save(h, saving->path, saving->options);
	h->service->late = true; /* so that what was freed meanwhile goes */
	gu_store_relaxed(&h->service->writes, 0);
	return err;
}

int gu_service_save(struct gcuffd_heap *h, const char *path, const struct gcuffd_image_options *options)
{
	struct saving saving = {path, options};
	struct asking a = {save, &saving, !options->nroots, 0, 0}; /* with roots, what is dead is found in what was written */
	return run(h, &a);
}

static void serve_asking(struct gcuffd_heap *h)
{
	struct asking *a = gu_load_acquire(&h->service->asking);
	if (!a)
		return;
	if (a->after_cycle)
		run_cycle(h, GCUFFD_REASON_SAVE);
	lock_cycle(h);
	a->result = a->fn(h, a->arg);
	gu_event_tell(h);
	gu_unlock(&h->cycle_lock);
	gu_store_seqcst(&h->service->asking, NULL);
	gu_store_seqcst(&a->done, 1);
	gu_os->futex_wake(&a->done, INT32_MAX); /* may be nobody's word by now: then nobody waits */
}

/* Of mutators that waited. */
static void tell(struct gcuffd_heap *h)
{
	if (!gu_event_waits(h))
		return;
	lock_cycle(h);
	gu_event_tell(h);
	gu_unlock(&h->cycle_lock);
}

static bool due(struct gu_service *s)
{
	return asked(s) != gu_load_relaxed(&s->done) || (gu_load_seqcst(&s->kicked) && !gu_load_seqcst(&s->heap->disabled));
}

/* Ten ticks in the time of a decay; one a second once nothing has changed for twice that time. */
static int64_t next_tick(struct gcuffd_heap *h, uint64_t step)
{
	struct gu_service *s = h->service;
	uint64_t now = gu_load_relaxed(&h->allocated) + gu_load_relaxed(&h->space.resident);
	s->quiet_ticks = now == s->seen ? s->quiet_ticks + 1 : 0;
	s->seen = now;
	return (int64_t)gu_max(step, s->quiet_ticks > 20 ? 1000000000 : 20000000);
}

/* jemalloc's decay goes on only if somebody drives it: so also when the program is quiet. */
static int64_t tidy(struct gcuffd_heap *h)
{
	struct gu_service *s = h->service;
	uint64_t now = gu_os->clock_ns(), step = h->options.decay_ms * 100000ull;
	if (now - s->tidied_ns < step)
		return (int64_t)gu_max(step, 20000000);
	lock_cycle(h);
	if (s->late)
		gu_free_late(h);
	s->late = false;
	pace_again(h, now);
	tidy_all(h, GU_TIDY_DECAY);
	gu_unlock(&h->cycle_lock);
	s->tidied_ns = now;
	return next_tick(h, step);
}

static void serve(struct gcuffd_heap *h)
{
	struct gu_service *s = h->service;
	while (!gu_load_seqcst(&s->quit)) {
		uint32_t bell = gu_load_seqcst(&s->bell);
		serve_asking(h);
		if (due(s))
			run_cycle(h, GCUFFD_REASON_ALLOCATION);
		tell(h);
		int64_t wait = tidy(h);
		if (!due(s) && !gu_event_waits(h) && !gu_load_seqcst(&s->asking) && !gu_load_seqcst(&s->quit))
			gu_os->futex_wait(&s->bell, bell, wait);
	}
}

/* ---- threads ---- */

/* A table of its own: the program may close all it knows, and a stray child inherits nothing. */
static void own_files(struct gcuffd_heap *h)
{
	struct gu_image *im = h->space.cold.image;
	int keep[GU_STORE_FDS + 1];
	size_t n = h->space.cold.store ? gu_store_files(h->space.cold.store, keep) : 0; /* in a forked child: opened there */
	if (im && im->fd >= 0)
		keep[n++] = im->fd;
	h->service->shares = gu_files_own(keep, n) != 0;
	if (h->service->shares)
		gu_log(&h->log, GU_LOG_WARN, "service threads share the program's descriptors: unshare was refused");
	else
		gu_log_detach();
	if (im)
		im->tid = gu_os->gettid();
}

static void begin(struct gcuffd_heap *h)
{
	own_files(h);
	int err = gu_track_open(h);
	if (err) {
		gu_log(&h->log, GU_LOG_WARN, "no page tracking (error %d): cycles stop the world, rung stop", -err);
		gu_store_relaxed(&h->rung, GCUFFD_RUNG_STOP);
	}
	gu_roots_set_faults(h, gu_track_is_user_mode_only(h));
	gu_tier_open(h, h->service->shares);
}

/* The frames below the caller's hold nothing; its TLS and descriptor, at the stack's top, are roots. */
static void exempt(struct gu_service *s)
{
	uintptr_t here = (uintptr_t)__builtin_frame_address(0);
	gu_stop_exempt(true);
	if (s->heap->restore)
		gu_restore_own(s->heap->restore, (uint32_t)gu_os->gettid());
	for (unsigned i = 0; i < THREADS; i++) {
		uintptr_t stack = (uintptr_t)gu_load_acquire(&s->stacks[i]);
		if (stack && here - stack < STACK)
			gu_roots_service(s->heap, here, stack + STACK);
	}
}

static void *worker_main(void *arg)
{
	struct gu_service *s = arg;
	unsigned index = gu_add_relaxed(&s->index, 1) + 1;
	gu_log_detach();
	exempt(s);
	gu_mark_work(s->heap, index);
	gu_stop_exempt(false);
	return NULL;
}

static void *ahead_main(void *arg)
{
	struct gu_service *s = arg;
	gu_log_detach();
	exempt(s);
	gu_ahead_run(&s->heap->space);
	gu_stop_exempt(false);
	return NULL;
}

static void *resolver_main(void *arg)
{
	struct gu_service *s = arg;
	gu_log_detach();
	gu_stop_exempt(true);
	gu_restore_run(s->heap->restore);
	gu_stop_exempt(false);
	return NULL;
}

static void *evictor_main(void *arg)
{
	struct gu_service *s = arg;
	gu_log_detach();
	exempt(s);
	gu_evictor_run(s->heap);
	gu_stop_exempt(false);
	return NULL;
}

static void *watchdog_main(void *arg)
{
	struct gu_service *s = arg;
	struct gu_beats *const sources[] = {&s->heap->restore->beats, gu_store_beats(s->heap->space.cold.store)};
	gu_log_detach();
	gu_stop_exempt(true);
	gu_watchdog_run(&s->watchdog, s->heap->options.hang_seconds * 1000000000ull, sources);
	gu_stop_exempt(false);
	return NULL;
}

static int start_thread(struct gu_service *s, void *(*fn)(void *))
{
	pthread_attr_t attr;
	unsigned i = s->nthreads;
	gu_store_release(&s->stacks[i], gu_meta_map(STACK));
	if (!s->stacks[i])
		return -ENOMEM;
	s->nthreads++; /* before the thread runs: the collector starts further ones itself */
	pthread_attr_init(&attr);
	pthread_attr_setstack(&attr, s->stacks[i], STACK);
	int err = gu_stop_start(&s->threads[i], &attr, fn, s);
	pthread_attr_destroy(&attr);
	if (err) {
		gu_meta_unmap(s->stacks[i], STACK);
		gu_store_release(&s->stacks[i], NULL);
		s->nthreads--;
	}
	return err;
}

/* As many as there are to be, or can be. */
static int start_resolvers(struct gu_service *s, struct gu_restore *re)
{
	unsigned n = s->heap->options.resolver_threads;
	int err = 0;
	re->resolver.several = n > 1;
	while (re->nthreads < n && !(err = start_thread(s, resolver_main)))
		re->nthreads++;
	return err;
}

/* Before any other thread of the heap's, and in a child before the program goes on. */
static void start_resolver(struct gu_service *s)
{
	struct gcuffd_heap *h = s->heap;
	int err = h->restore ? start_resolvers(s, h->restore) : 0;
	if (err && h->restore->nthreads) {
		gu_log(&h->log, GU_LOG_WARN, "no more than %u threads for the fault resolver (error %d)", h->restore->nthreads, -err);
	} else if (err) {
		gu_restore_free(h->restore);
		h->restore = NULL;
		gu_log(&h->log, GU_LOG_WARN, "no thread for the fault resolver (error %d): no page is taken out", -err);
	}
	if (h->restore)
		gu_restore_own(h->restore, (uint32_t)gu_os->gettid());
	gu_evict_resume(h);
}

static void start_evictor(struct gu_service *s)
{
	struct gcuffd_heap *h = s->heap;
	if (!h->restore)
		return;
	gu_evictor_begin(h);
	int err = start_thread(s, evictor_main);
	if (!err)
		return;
	gu_evictor_failed(h);
	gu_log(&h->log, GU_LOG_WARN, "no thread for the evictor (error %d): no page is taken out", -err);
}

static void start_watchdog(struct gu_service *s)
{
	struct gcuffd_heap *h = s->heap;
	int err = h->restore && h->options.hang_seconds ? start_thread(s, watchdog_main) : 0;
	if (err)
		gu_log(&h->log, GU_LOG_WARN, "no thread for the watchdog (error %d): nothing is said if a page is waited for in vain", -err);
}

static void *collector_main(void *arg)
{
	struct gu_service *s = arg;
	exempt(s);
	begin(s->heap);
	start_resolver(s);
	start_evictor(s);
	start_watchdog(s);
	for (unsigned i = 1; i < s->heap->options.mark_threads; i++)
		if (start_thread(s, worker_main))
			break;
	if (s->heap->space.huge_from != SIZE_MAX && !gu_heap_without(s->heap, GU_WITHOUT_ahead))
		(void)start_thread(s, ahead_main); /* without it, mutators do it */
	gu_store_seqcst(&s->running, 1);
	gu_store_seqcst(&s->ready, 1);
	gu_os->futex_wake(&s->ready, INT32_MAX);
	serve(s->heap);
	gu_evictor_quit(s->heap);
	gu_restore_close(s->heap->restore);
	if (s->heap->space.cold.store) /* by number, they are the program's in its own table */
		gu_store_close_files(s->heap->space.cold.store);
	if (s->heap->space.cold.image && s->heap->space.cold.image->fd >= 0)
		gu_os->close(s->heap->space.cold.image->fd);
	gu_track_close(s->heap);
	gu_stop_exempt(false);
	return NULL;
}

static int start_locked(struct gu_service *s)
{
	int err = start_thread(s, collector_main);
	while (!err && !gu_load_acquire(&s->ready))
		gu_os->futex_wait(&s->ready, 0, -1);
	s->started = !err;
	return err;
}

/* false: the lock is held, by another starter or around a fork. */
static bool try_start(struct gu_service *s, int *err)
{
	struct gu_thread *t = gu_enter();
	gu_store_relaxed(&s->wanted, 0); /* pthread_create allocates: that must not come here again */
	bool mine = gu_trylock(&s->lock);
	if (mine) {
		if (!s->started)
			*err = start_locked(s);
		if (*err) /* the next block that is taken asks again */
			gu_store_seqcst(&s->kicked, 0);
		gu_unlock(&s->lock);
	} else {
		gu_store_relaxed(&s->wanted, 1);
	}
	gu_leave(t);
	return mine;
}

/* Waits for the lock outside of sections: who forks stops the world while holding it. */
int gu_service_start(struct gcuffd_heap *h, bool now)
{
	struct gu_service *s = h->service;
	int err = 0;
	if (gu_world_is_closed_by_caller()) /* the threads can do nothing, and who asks would wait for them; a child has its own turn */
		return now ? -EBUSY : 0;
	while (!gu_load_acquire(&s->running) && (now || gu_load_relaxed(&s->wanted))) {
		if (try_start(s, &err) || !now)
			return err;
		gu_os->sched_yield();
	}
	gu_store_relaxed(&s->wanted, 0);
	return 0;
}

/* ---- making and ending ---- */

int gu_service_create(struct gcuffd_heap *h)
{
	struct gu_service *s = gu_meta_alloc(sizeof(*s));
	if (!s)
		return -ENOMEM;
	h->service = s;
	s->heap = h;
	gu_lock_init(&s->lock, GU_RANK_LIBRARY);
	gu_lock_init(&s->stats_lock, GU_RANK_WAIT);
	struct gu_pacer_limits limits = {h->options.soft_limit, h->space.limit, h->options.start_size, h->options.growth_percent};
	gu_pacer_init(&s->pacer, &limits);
	h->trigger = gu_pacer_first(&s->pacer);
	h->ceiling = gu_pacer_ceiling(h->trigger);
	if (gu_mark_create(h, h->options.mark_threads) || gu_roots_create(h) || gu_evictor_create(h) || gu_finalizer_create(h) ||
	    (gu_heap_is(h, GCUFFD_VERIFY) && gu_verify_create(h)))
		return -ENOMEM;
	h->space.foreign = gu_mark_memory(h) + (h->options.mark_threads + 1) * STACK / 8;
	gu_mark_set_background(h, gu_max(h->options.mark_threads / 2, 1));
	return 0;
}

static void join_all(struct gu_service *s)
{
	gu_store_seqcst(&s->quit, 1);
	ring(s);
	gu_mark_quit(s->heap);
	gu_ahead_quit(&s->heap->space);
	gu_watchdog_quit(&s->watchdog);
	for (unsigned i = 0; i < s->nthreads; i++) {
		pthread_join(s->threads[i], NULL);
		gu_meta_unmap(s->stacks[i], STACK);
	}
}

void gu_service_quit(struct gcuffd_heap *h)
{
	struct gu_service *s = h->service;
	struct gu_wait wait;
	gu_wait_begin(&wait);
	if (s->started)
		join_all(s);
	s->started = false;
	gu_wait_end(&wait);
}

void gu_service_destroy(struct gcuffd_heap *h)
{
	struct gu_service *s = h->service;
	if (!s)
		return;
	gu_evictor_destroy(h);
	gu_tier_close(h);
	gu_verify_destroy(h);
	gu_weak_destroy(h);
	gu_final_destroy(h);
	gu_finalizer_destroy(h);
	gu_event_destroy(h);
	gu_roots_destroy(h);
	gu_mark_destroy(h);
	gu_meta_free(s, sizeof(*s));
	h->service = NULL;
}

static uint64_t cpu_ns(pthread_t thread)
{
	clockid_t clock;
	struct timespec t;
	if (pthread_getcpuclockid(thread, &clock) || clock_gettime(clock, &t))
		return 0;
	return (uint64_t)t.tv_sec * 1000000000ull + (uint64_t)t.tv_nsec;
}

void gu_service_stats(struct gcuffd_heap *h, struct gcuffd_stats *out)
{
	struct gu_service *s = h->service;
	gu_lock(&s->stats_lock);
	*out = s->stats;
	gu_unlock(&s->stats_lock);
	gu_lock(&s->lock);
	for (unsigned i = 0; i < s->nthreads; i++)
		out->gc_cpu_ns += cpu_ns(s->threads[i]);
	gu_unlock(&s->lock);
}

/* ---- fork ---- */

/* Between prepare and parent or child no cycle runs. */
void gu_service_fork_prepare(struct gcuffd_heap *h)
{
	gu_evictor_fork_prepare(h);
	gu_lock_fork(&h->cycle_lock);
	gu_ahead_fork_prepare(&h->space);
}

void gu_service_fork_closed(struct gcuffd_heap *h) { gu_evict_fork_prepare(h); }

void gu_service_fork_parent(struct gcuffd_heap *h)
{
	gu_evict_fork_parent(h);
	gu_ahead_fork_parent(&h->space);
	gu_unlock_fork(&h->cycle_lock);
	gu_evictor_fork_parent(h);
}

/* Threads and descriptors stayed behind: the child starts its own when it needs them. */
void gu_service_fork_child(struct gcuffd_heap *h)
{
	struct gu_service *s = h->service;
	gu_lock_init(&s->lock, GU_RANK_LIBRARY);
	gu_lock_init(&s->stats_lock, GU_RANK_WAIT);
	gu_lock_init(&h->cycle_lock, GU_RANK_CYCLE);
	gu_evictor_fork_child(h);
	gu_lock_init(&h->lock, GU_RANK_ROOTS);
	gu_lock_init(&h->weak_lock, GU_RANK_WEAK);
	gu_lock_init(&h->final_lock, GU_RANK_FINAL);
	gu_finalizer_fork_child(h);
	gu_event_forked(h);
	gu_lock_init(&h->space.lock, GU_RANK_SPACE);
	gu_lock_init(&h->space.commit_lock, GU_RANK_COMMIT);
	gu_lock_init(&h->space.pages.lock, GU_RANK_PAGES);
	gu_ahead_fork_child(&h->space);
	for (unsigned i = 0; i <= GU_ARENAS; i++)
		if (h->arenas[i])
			gu_lock_init(&h->arenas[i]->lock, GU_RANK_ARENA);
	for (unsigned i = 0; i < s->nthreads; i++)
		gu_meta_unmap(s->stacks[i], STACK);
	gu_track_forked(h);
	gu_restore_free(h->restore);
	h->restore = NULL;
	gu_evict_fork_child(h);
	gu_mark_forked(h);
	gu_roots_forked(h);
	s->started = false;
	s->watchdog = (struct gu_watchdog){0};
	s->running = s->ready = s->kicked = s->index = s->nthreads = 0;
	s->in_cycle = 0;
	s->done = asked(s);
	s->asking = NULL; /* who asked is not here */
	s->writes = 0;
	h->cycle_waits = h->turn_waits = h->stalled = 0;
	s->forks++;
}

bool gu_service_has_files(const struct gcuffd_heap *h) { return h->service->started; }

void gu_service_loaded(struct gcuffd_heap *h)
{
	const struct gu_image *im = h->space.cold.image;
	if (im && im->fd >= 0 && !h->service->shares)
		gu_os->close(im->fd);
}

/* Nothing is out in it, nor will be. */
static void forget_image(struct gcuffd_heap *h)
{
	struct gu_image *im = h->space.cold.image;
	if (im && im->fd >= 0) {
		gu_os->close(im->fd);
		im->fd = -1;
	}
}

/* The child's handler, when all else is in order: what is out reads as zeros until there is a resolver. */
void gu_service_fork_resume(struct gcuffd_heap *h)
{
	int fds[GU_STORE_FDS];
	if (!gu_load_relaxed(&h->space.cold.nout)) {
		forget_image(h);
		return;
	}
	if (gu_service_start(h, true)) {
		gu_evict_resume(h); /* no thread: all of it comes back */
		return;
	}
	for (size_t n = h->service->shares ? 0 : gu_store_files(h->space.cold.store, fds); n-- > 0;)
		gu_os->close(fds[n]);
	gu_service_loaded(h);
}
