/* SPDX-License-Identifier: MIT */
/* evictor.c - see evictor.h. */
#include "ctl/evictor.h"

#include <errno.h>

#include "base/meta.h"
#include "ctl/fetch.h"
#include "gc/mutator.h"
#include "gc/stop.h"
#include "sys/os.h"

#define TIDY_NS 50000000   /* while there is something to tidy */
#define LOOK_NS 1000000000 /* while there may be */

enum asking { NOBODY, ASKING, ASKED, ANSWERED };
enum life { NEVER, RUNNING, QUITTING, GONE };

struct gu_evictor {
	struct gu_lock lock;      /* rank TIER; held during a step */
	uint32_t life;            /* atomic; futex */
	uint32_t bell;            /* atomic; futex of the thread */
	uint32_t asking;          /* atomic; futex; enum asking: whose ask is */
	uint32_t fork_waits;      /* atomic; for the lock: it goes before the next step */
	struct gu_tier_ask ask;   /* guard: who has asked, then the thread */
	uint64_t tidied_ns;       /* guard: lock */
	struct gu_fetch fetch;    /* guard: lock */
	struct gu_log_held said;  /* the thread's; printed with no lock held (.inv.cold.log) */
};

static void set(uint32_t *word, uint32_t value)
{
	gu_store_seqcst(word, value);
	gu_os->futex_wake(word, INT32_MAX);
}

static void ring(struct gu_evictor *e)
{
	gu_add_seqcst(&e->bell, 1);
	gu_os->futex_wake(&e->bell, 1);
}

/* ---- asking ---- */

/* One at a time. An evictor that ends answers no more: whoever destroys a heap asks it nothing. */
int gu_evictor_ask(struct gcuffd_heap *h, struct gu_tier_ask *ask)
{
	struct gu_evictor *e = h->evictor;
	uint32_t was = NOBODY;
	if (!e || gu_load_seqcst(&e->life) != RUNNING)
		return -EOPNOTSUPP;
	if (gu_world_is_closed_by_caller())
		return -EBUSY;
	struct gu_wait wait;
	gu_wait_begin(&wait);
	for (; !gu_cas_seqcst(&e->asking, &was, ASKING); was = NOBODY)
		gu_wait_futex(&wait, &e->asking, was, 1000000);
	e->ask = *ask;
	gu_store_seqcst(&e->asking, ASKED);
	ring(e);
	for (; (was = gu_load_acquire(&e->asking)) != ANSWERED;)
		gu_wait_futex(&wait, &e->asking, was, 100000000);
	*ask = e->ask;
	set(&e->asking, NOBODY);
	gu_wait_end(&wait);
	return ask->result;
}

/* ---- the thread ---- */

/* A region's worth of what was asked for; whether there is more to do at once. */
static bool answer(struct gcuffd_heap *h, struct gu_evictor *e)
{
	bool more = false;
	if (gu_load_seqcst(&e->asking) != ASKED)
		return false;
	if (e->ask.what == GU_TIER_FETCH)
		e->ask.result = gu_fetch_begin(&e->fetch, &e->ask);
	else
		more = gu_tier_step(h, &e->ask);
	if (!more)
		set(&e->asking, ANSWERED);
	return true;
}

static int64_t tidy(struct gcuffd_heap *h, struct gu_evictor *e)
{
	uint64_t now = gu_os->clock_ns();
	bool left = gu_tier_has_left(h);
	if (now - e->tidied_ns >= (left ? TIDY_NS : LOOK_NS)) {
		gu_tier_tidy(h);
		e->tidied_ns = now;
	}
	return left ? TIDY_NS : gu_tier_is_used(h) ? LOOK_NS : -1;
}

/* ns until there may be something to do, -1: when it is asked. */
static int64_t step(struct gcuffd_heap *h, struct gu_evictor *e)
{
	gu_tier_look(h);
	gu_tier_say(h);
	if (answer(h, e)) {
		gu_tier_say(h);
		return 0;
	}
	bool fetching = gu_fetch_step(h, &e->fetch);
	int64_t rest = fetching ? 0 : gu_tier_balance(h), wait = tidy(h, e);
	if (rest < 0 || wait < 0)
		return rest < 0 ? wait : rest;
	return rest < wait ? rest : wait;
}

static void lock_after_forks(struct gu_evictor *e)
{
	while (gu_load_seqcst(&e->fork_waits))
		gu_os->futex_wait(&e->fork_waits, 1, 1000000);
	gu_lock(&e->lock);
}

void gu_evictor_run(struct gcuffd_heap *h)
{
	struct gu_evictor *e = h->evictor;
	while (gu_load_seqcst(&e->life) == RUNNING) {
		uint32_t bell = gu_load_seqcst(&e->bell);
		gu_log_hold(&e->said);
		lock_after_forks(e);
		int64_t wait = step(h, e);
		gu_unlock(&e->lock);
		gu_log_release();
		if (wait && gu_load_seqcst(&e->life) == RUNNING)
			gu_os->futex_wait(&e->bell, bell, wait);
	}
	gu_tier_rest(h);
	set(&e->life, GONE);
}

void gu_evictor_begin(struct gcuffd_heap *h) { gu_store_seqcst(&h->evictor->life, RUNNING); }
void gu_evictor_failed(struct gcuffd_heap *h) { gu_store_seqcst(&h->evictor->life, NEVER); }

void gu_evictor_quit(struct gcuffd_heap *h)
{
	struct gu_evictor *e = h->evictor;
	uint32_t life = RUNNING;
	if (!e)
		return;
	if (gu_cas_seqcst(&e->life, &life, QUITTING))
		ring(e);
	while ((life = gu_load_seqcst(&e->life)) == QUITTING)
		gu_os->futex_wait(&e->life, life, -1);
}

/* ---- making and ending ---- */

int gu_evictor_create(struct gcuffd_heap *h)
{
	if (!h->space.cold.on)
		return 0;
	h->evictor = gu_meta_alloc(sizeof(*h->evictor));
	if (!h->evictor)
		return -ENOMEM;
	gu_lock_init(&h->evictor->lock, GU_RANK_TIER);
	return 0;
}

void gu_evictor_destroy(struct gcuffd_heap *h)
{
	if (!h->evictor)
		return;
	gu_fetch_end(&h->evictor->fetch);
	gu_meta_free(h->evictor, sizeof(*h->evictor));
	h->evictor = NULL;
}

/* ---- fork ---- */

void gu_evictor_fork_prepare(struct gcuffd_heap *h)
{
	if (!h->evictor)
		return;
	gu_store_seqcst(&h->evictor->fork_waits, 1);
	gu_lock_fork(&h->evictor->lock);
	gu_store_seqcst(&h->evictor->fork_waits, 0);
}

void gu_evictor_fork_parent(struct gcuffd_heap *h)
{
	if (!h->evictor)
		return;
	gu_unlock_fork(&h->evictor->lock);
	if (gu_tier_has_left(h))
		ring(h->evictor);
}

void gu_evictor_fork_child(struct gcuffd_heap *h)
{
	struct gu_evictor *e = h->evictor;
	if (!e)
		return;
	gu_tier_forked(h);
	gu_lock_init(&e->lock, GU_RANK_TIER);
	e->life = NEVER;
	e->asking = NOBODY;
	gu_fetch_end(&e->fetch); /* the parent's */
}
