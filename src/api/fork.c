/* SPDX-License-Identifier: MIT */
/*
 * fork.c - parent and child go on. No thread is in a section around fork(): so no lock of ours or of jemalloc's is
 * held by a thread that the child does not have (.inv.section.locks), and no cycle is half done. The
 * child has one thread, no service threads, and tracking starts anew with its first cycle.
 *
 * The handlers are registered when the library is loaded, before those of whoever comes later: so in a child ours run first, and what is out of
 * a heap is not read as zeros by others' (.inv.cold.fork). Until something of the library is used they do nothing.
 */
#include <errno.h>
#include <pthread.h>

#include "api/api.h"
#include "base/meta.h"
#include "base/own.h"
#include "base/without.h"
#include "ctl/service.h"
#include "gc/mutator.h"
#include "gc/stop.h"
#include "gc/watch.h"
#include "space/hooks.h"
#include "sys/os.h"

static pthread_once_t once = PTHREAD_ONCE_INIT;
static int error;
static uint32_t used; /* atomic */
static __thread bool prepared __attribute__((tls_model("initial-exec"))); /* by this thread, for the fork under way */
static __thread uint64_t signals __attribute__((tls_model("initial-exec"))); /* its mask before: handlers could wait for what it holds */

/*
 * No heap comes or goes meanwhile (fork lock), no cycle runs (cycle locks, waited for as a blocking thread), and no
 * thread is in a section (the gate), so every other lock of ours is free. Threads outside of sections run on: fork()
 * itself takes locks of the C library that they may hold. What threads in sections wait for is taken when there are
 * none (.inv.cold.fork).
 */
static void prepare(void)
{
	prepared = gu_load_acquire(&used); /* pairs with gu_fork_init() */
	if (!prepared)
		return;
	struct gu_wait wait;
	gu_signals_hold(&signals);
	gu_wait_begin(&wait);
	gu_heaps_freeze();
	gu_heaps_each(gu_service_fork_prepare);
	gu_wait_end(&wait);
	gu_world_close();
	gu_heaps_each(gu_service_fork_closed);
	gu_jemalloc_close(true);
}

static void in_parent(void)
{
	if (!prepared)
		return;
	prepared = false;
	gu_jemalloc_close(false);
	gu_world_open();
	gu_heaps_each(gu_service_fork_parent);
	gu_heaps_thaw();
	gu_signals_let(&signals);
}

static void in_child(void)
{
	if (!prepared)
		return;
	prepared = false;
	gu_jemalloc_close(false);
	gu_locks_forked();
	gu_meta_lock_reset();
	gu_own_lock_reset();
	gu_stop_forked();
	gu_heaps_forked();
	gu_heaps_each(gu_service_fork_child);
	gu_threads_forked();
	gu_watch_forked();
	gu_heaps_each(gu_service_fork_resume);
	gu_signals_let(&signals);
}

static void install(void) { error = -pthread_atfork(prepare, in_parent, in_child); }

static int enlist(void)
{
	pthread_once(&once, install);
	return error;
}

int gu_fork_init(void)
{
	int err = enlist();
	gu_store_release(&used, 1);
	return err;
}

static void enter_thread(void) { gu_enter(); }
static void leave_thread(void) { gu_leave(gu_self); }

static int begin(int (*then)(void))
{
	struct gu_thread *t = gu_enter();
	if (gu_os == &gu_os_linux)
		gu_os_set(NULL); /* metadata through the table too */
	gu_jemalloc_init(enter_thread, leave_thread); /* registers its fork handlers before ours */
	int err = then();
	gu_leave(t);
	return err;
}

int gu_api_init(void)
{
	gu_without_init();
	return begin(gu_fork_init);
}

/* An error is told to who makes a heap. The numbers up to 100 are the compiler's own, and 101 is the malloc front end's. */
__attribute__((constructor(102))) static void enlist_early(void) { (void)begin(enlist); }
