/* SPDX-License-Identifier: MIT */
/*
 * mutator.c - the list of attached threads. The list's lock is taken outside of sections: a stopper holds
 * it during a stop, so that nobody can be stopped while holding it (.inv.threads.lock).
 */
#include "gc/mutator.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>

#include "base/meta.h"
#include "gc/stop.h"
#include "space/hooks.h"
#include "sys/maps.h"
#include "sys/os.h"

__thread struct gu_thread *gu_self __attribute__((tls_model("initial-exec")));
__thread uint32_t gu_entered __attribute__((tls_model("initial-exec")));
__thread uint32_t gu_entered_pending __attribute__((tls_model("initial-exec")));

static struct gu_lock threads_lock = GU_LOCK_INIT(GU_RANK_THREADS);
static struct gu_thread *threads; /* guard: threads_lock */
static pthread_key_t exit_key;
static pthread_once_t once = PTHREAD_ONCE_INIT;

void gu_threads_lock(void) { gu_lock(&threads_lock); }
bool gu_threads_trylock(void) { return gu_trylock(&threads_lock); }
void gu_threads_unlock(void) { gu_unlock(&threads_lock); }
struct gu_thread *gu_threads_first(void) { return threads; }

bool gu_threads_lock_once(void)
{
	bool lock = !gu_world_is_closed_by_caller();
	if (lock)
		gu_threads_lock();
	return lock;
}

void gu_threads_unlock_once(bool locked)
{
	if (locked)
		gu_threads_unlock();
}

static void thread_ends(void *t) { gu_thread_drop(t); }
static void make_key(void) { pthread_key_create(&exit_key, thread_ends); }

static void link_locked(struct gu_thread *t)
{
	t->prev = NULL;
	t->next = threads;
	if (threads)
		threads->prev = t;
	threads = t;
}

static void unlink_locked(struct gu_thread *t)
{
	*(t->prev ? &t->prev->next : &threads) = t->next;
	if (t->next)
		t->next->prev = t->prev;
}

/* The pthread descriptor lies at the top of a thread's stack, and bounds it where mappings have merged. */
int gu_thread_find_stack(struct gu_thread *t, uintptr_t sp)
{
	struct gu_map map;
	int err = gu_maps_find(sp, &map);
	if (err)
		return err;
	t->stack_lo = map.start;
	t->stack_hi = map.end;
	t->unbounded = strncmp(map.name, "[stack", 6);
#if defined(__x86_64__)
	if (t->self > sp && t->self < map.end)
		t->stack_hi = gu_min(map.end, gu_align_up(t->self + GU_TCB_BYTES, GU_PAGE)), t->unbounded = false;
#endif
	return 0;
}

bool gu_thread_owns(const struct gu_thread *t, uintptr_t at)
{
	struct gu_map map;
	if (at >= t->stack_hi)
		return false;
	return at >= t->stack_lo || (!gu_maps_find(at, &map) && map.end >= t->stack_hi && map.start < t->stack_hi);
}

static void unblock_signal(void)
{
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, gu_stop_signal());
	gu_stop_unblock(&set);
}

static int make_thread(struct gu_thread **out)
{
	int err = gu_stop_init();
	struct gu_thread *t = err ? NULL : gu_meta_alloc(sizeof(*t));
	if (!t)
		return err ? err : -ENOMEM;
	t->tid = gu_os->gettid();
	t->self = (uintptr_t)pthread_self();
	t->attached = 1;
	t->announced = true;
	/* no descriptor left, or no /proc: a stop will look, with descriptors of its own */
	(void)gu_thread_find_stack(t, (uintptr_t)__builtin_frame_address(0));
	*out = t;
	return 0;
}

/* A thread that ended unnoticed left an entry, which no stop would find parked once its number is used anew. */
static void drop_namesake_locked(pid_t tid)
{
	for (struct gu_thread *t = threads, *next; t; t = next) {
		next = t->next;
		if (t->tid == tid)
			gu_threads_remove_locked(t);
	}
}

/* A stopper may have adopted the thread meanwhile: then that entry is the one. */
static void list_thread(struct gu_thread *t)
{
	bool locked = gu_threads_lock_once();
	if (!gu_self) {
		drop_namesake_locked(t->tid);
		link_locked(t);
		gu_self = t;
		t = NULL;
	} else {
		gu_self->attached = 1;
		gu_self->announced = true;
	}
	gu_threads_unlock_once(locked);
	if (t) {
		struct gu_thread *self = gu_enter();
		gu_meta_free(t, sizeof(*t));
		gu_leave(self);
	}
}

static int attach_new(void)
{
	struct gu_thread *t = NULL, *self = gu_enter();
	int err = make_thread(&t);
	gu_leave(self);
	if (err)
		return err;
	pthread_once(&once, make_key);
	list_thread(t);
	unblock_signal();
	pthread_setspecific(exit_key, gu_self);
	return 0;
}

int gu_thread_attach(void)
{
	struct gu_thread *t = gu_self;
	if (!t)
		return attach_new();
	t->attached++;
	if (!t->announced) {
		t->announced = true;
		pthread_once(&once, make_key);
		pthread_setspecific(exit_key, t);
	}
	return 0;
}

int gu_thread_detach(void)
{
	struct gu_thread *t = gu_self;
	if (!t || !t->attached)
		return -EINVAL;
	if (--t->attached)
		return 0;
	pthread_setspecific(exit_key, NULL);
	gu_thread_drop(t);
	return 0;
}

struct gu_cache *gu_cache_make(struct gu_thread *t, struct gcuffd_arena *arena)
{
	struct gu_cache *c = t->caches[arena->slot];
	if (!c) {
		c = gu_meta_alloc(sizeof(*c));
		if (!c)
			return NULL;
		c->arena = arena;
		gu_store_release(&t->caches[arena->slot], c); /* pairs with the collector's look during a stop */
	}
	return c;
}

void gu_run_retire(struct gu_run *run, bool list)
{
	struct gu_block *b = run->block;
	if (!b)
		return;
	gu_block_untake_group(b, run->group, run->mask);
	run->mask = 0;
	run->block = NULL;
	gu_arena_retire(b->arena, b, list);
}

static void drop_cache(struct gu_thread *t, uint32_t slot)
{
	struct gu_cache *c = t->caches[slot];
	if (!c)
		return;
	struct gcuffd_heap *h = c->arena->heap;
	bool list = gu_load_relaxed(&h->phase) == GU_PHASE_IDLE && !gu_jemalloc_is_closed();
	for (unsigned k = 0; k < GU_KINDS; k++)
		for (unsigned i = 0; i < GU_CLASSES; i++)
			gu_run_retire(&c->runs[k][i], list);
	gu_add_relaxed(&h->allocated, c->allocated);
	t->caches[slot] = NULL;
	gu_meta_free(c, sizeof(*c));
}

static void drop_caches(struct gu_thread *t)
{
	for (uint32_t s = 0; s < GU_SLOTS; s++)
		drop_cache(t, s);
}

void gu_thread_drop(struct gu_thread *t)
{
	bool locked = gu_threads_lock_once(); /* no stop from here on: the stopper needs the lock */
	drop_caches(t);
	gu_stack_lost_locked(t);
	unlink_locked(t);
	gu_store_relaxed(&gu_entered, gu_entered + 1);
	gu_add_seqcst(&gu_outside, 1); /* the gate is open, or whoever closes it waits for the list and then for us */
	gu_self = NULL;
	gu_threads_unlock_once(locked);
	gu_meta_free(t, sizeof(*t));
	gu_leave(NULL);
}

struct gu_thread *gu_threads_adopt_locked(pid_t tid)
{
	struct gu_thread *t = gu_meta_alloc(sizeof(*t));
	if (t) {
		t->tid = tid;
		link_locked(t);
	}
	return t;
}

void gu_threads_remove_locked(struct gu_thread *t)
{
	drop_caches(t);
	gu_stack_lost_locked(t);
	unlink_locked(t);
	gu_meta_free(t, sizeof(*t));
}

void gu_cache_drop_arena(struct gcuffd_arena *arena)
{
	gu_lock(&threads_lock);
	for (struct gu_thread *t = threads; t; t = t->next)
		drop_cache(t, arena->slot);
	gu_unlock(&threads_lock);
}

void gu_threads_forked(void)
{
	gu_lock_init(&threads_lock, GU_RANK_THREADS);
	for (struct gu_thread *t = threads, *next; t; t = next) {
		next = t->next;
		if (t != gu_self)
			gu_threads_remove_locked(t);
	}
	if (gu_self) {
		gu_self->tid = gu_os->gettid();
		gu_self->pending = 0;
	}
}
