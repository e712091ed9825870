/* SPDX-License-Identifier: MIT */
/* finalizer.c - see finalizer.h. Mutators, and the heap's thread for it. */
#include "ctl/finalizer.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>

#include "base/meta.h"
#include "gc/final.h"
#include "gc/mutator.h"
#include "gc/stop.h"
#include "sys/os.h"

enum { NONE, STARTING, RUNS, FAILED };

struct gu_finalizer {
	uint32_t state;   /* atomic; futex; from STARTING on by the thread */
	uint32_t quit;    /* atomic */
	uint32_t lost;    /* atomic; there was one in the parent */
	int error;        /* why it FAILED */
	pthread_t thread; /* while it RUNS */
};

int gu_finalizer_create(struct gcuffd_heap *h)
{
	h->finalizer = gu_meta_alloc(sizeof(*h->finalizer));
	return h->finalizer ? 0 : -ENOMEM;
}

void gu_finalizer_destroy(struct gcuffd_heap *h)
{
	if (h->finalizer)
		gu_meta_free(h->finalizer, sizeof(*h->finalizer));
	h->finalizer = NULL;
}

/* ---- running ---- */

static bool take(struct gcuffd_heap *h, struct gcuffd_finalizer *next)
{
	struct gu_thread *t = gu_enter();
	bool found = gu_final_take(h, next);
	gu_leave(t);
	return found;
}

/* Nothing of it stays on the stack of a thread that may sleep then. */
static __attribute__((noinline)) bool run_one(struct gcuffd_heap *h)
{
	struct gcuffd_finalizer f;
	if (!take(h, &f))
		return false;
	f.fn(f.object, f.data);
	f = (struct gcuffd_finalizer){NULL, NULL, NULL};
	__asm__ volatile("" : : "r"(&f) : "memory");
	return true;
}

size_t gu_finalizer_run(struct gcuffd_heap *h, size_t max)
{
	size_t n = 0;
	while (n < max && run_one(h))
		n++;
	return n;
}

static bool is_empty(struct gcuffd_heap *h)
{
	struct gu_final_counts c;
	struct gu_thread *t = gu_enter();
	gu_final_counts(h, &c);
	gu_leave(t);
	return !c.ready;
}

/* The bell is read before the queue is looked at: who rings it has made that longer. */
int gu_finalizer_wait(struct gcuffd_heap *h, int64_t timeout_ns)
{
	uint64_t until = timeout_ns < 0 ? UINT64_MAX : gu_os->clock_ns() + (uint64_t)timeout_ns;
	for (;;) {
		uint32_t bell = gu_load_seqcst(&h->final_bell);
		if (!is_empty(h))
			return 0;
		uint64_t now = gu_os->clock_ns();
		if (now >= until)
			return -ETIMEDOUT;
		struct gu_wait wait;
		gu_wait_begin(&wait);
		gu_wait_futex(&wait, &h->final_bell, bell, timeout_ns < 0 ? -1 : (int64_t)(until - now));
		gu_wait_end(&wait);
	}
}

/* ---- the thread ---- */

static void ring(struct gcuffd_heap *h)
{
	gu_add_seqcst(&h->final_bell, 1);
	gu_os->futex_wake(&h->final_bell, INT32_MAX);
}

static void say(struct gu_finalizer *f, uint32_t state)
{
	gu_store_seqcst(&f->state, state);
	gu_os->futex_wake(&f->state, INT32_MAX);
}

/* No handler of the program's runs here, so it may block for as long as it takes. */
static void run_all(struct gcuffd_heap *h)
{
	struct gu_finalizer *f = h->finalizer;
	while (!gu_load_seqcst(&f->quit)) {
		uint32_t bell = gu_load_seqcst(&h->final_bell);
		if (gu_finalizer_run(h, 1) || gu_load_seqcst(&f->quit))
			continue;
		(void)gu_blocking_enter();
		gu_os->futex_wait(&h->final_bell, bell, -1);
		(void)gu_blocking_leave();
	}
}

static void *finalizer_main(void *arg)
{
	struct gcuffd_heap *h = arg;
	struct gu_finalizer *f = h->finalizer;
	f->error = gu_thread_attach();
	say(f, f->error ? FAILED : RUNS);
	if (f->error)
		return NULL;
	run_all(h);
	(void)gu_thread_detach();
	return NULL;
}

/* The stop signal is let through: a stop may find the thread before it is attached. */
static int make_thread(struct gcuffd_heap *h)
{
	uint64_t old;
	sigset_t stop;
	sigemptyset(&stop);
	sigaddset(&stop, gu_stop_signal());
	gu_signals_hold(&old);
	gu_stop_unblock(&stop);
	int err = -pthread_create(&h->finalizer->thread, NULL, finalizer_main, h);
	gu_signals_let(&old);
	return err;
}

/* Until it is attached, or could not be. */
static int await(struct gu_finalizer *f)
{
	struct gu_wait wait;
	gu_wait_begin(&wait);
	while (gu_load_acquire(&f->state) == STARTING)
		gu_wait_futex(&wait, &f->state, STARTING, -1);
	gu_wait_end(&wait);
	if (gu_load_acquire(&f->state) == RUNS)
		return 0;
	pthread_join(f->thread, NULL);
	return f->error;
}

int gu_finalizer_start(struct gcuffd_heap *h)
{
	struct gu_finalizer *f = h->finalizer;
	uint32_t none = NONE;
	if (!h->options.finalizer_thread || gu_load_acquire(&f->state) != NONE || gu_world_is_closed_by_caller())
		return 0;
	if (!gu_cas_seqcst(&f->state, &none, STARTING)) /* another thread does it */
		return 0;
	int err = make_thread(h);
	if (!err)
		err = await(f);
	if (err)
		say(f, NONE);
	return err;
}

int gu_finalizer_quit(struct gcuffd_heap *h)
{
	struct gu_finalizer *f = h->finalizer;
	if (gu_load_acquire(&f->state) != RUNS)
		return 0;
	if (pthread_equal(f->thread, pthread_self()))
		return -EBUSY;
	struct gu_wait wait;
	gu_store_seqcst(&f->quit, 1);
	ring(h);
	gu_wait_begin(&wait);
	pthread_join(f->thread, NULL);
	gu_wait_end(&wait);
	gu_store_seqcst(&f->state, NONE);
	return 0;
}

/* ---- fork ---- */

/* Who forked on that thread is it no more: in the child it is the first one. */
void gu_finalizer_fork_child(struct gcuffd_heap *h)
{
	struct gu_finalizer *f = h->finalizer;
	f->lost = f->state != NONE;
	f->state = NONE;
}

bool gu_finalizer_is_lost(const struct gcuffd_heap *h) { return gu_load_relaxed(&h->finalizer->lost); }

void gu_finalizer_fork_resume(struct gcuffd_heap *h)
{
	int err = gu_swap_seqcst(&h->finalizer->lost, 0) ? gu_finalizer_start(h) : 0;
	if (err)
		gu_log(&h->log, GU_LOG_WARN, "no thread for finalizers in the child (error %d): gcuffd_finalizer_run() runs them, or the next one that is set starts it", -err);
}
