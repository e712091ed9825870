/* SPDX-License-Identifier: MIT */
/*
 * fork.c - parent and child go on. No thread is in a section around fork(): so no lock of ours or of jemalloc's is
 * held by a thread that the child does not have (.inv.section.locks), and no cycle is half done. The
 * child has one thread, no service threads, and tracking starts anew with its first cycle.
 */
#include <errno.h>
#include <pthread.h>

#include "api/api.h"
#include "base/meta.h"
#include "base/own.h"
#include "ctl/service.h"
#include "gc/mutator.h"
#include "gc/stop.h"
#include "gc/watch.h"

static pthread_once_t once = PTHREAD_ONCE_INIT;
static int error;

/*
 * No heap comes or goes meanwhile (fork lock), no cycle runs (cycle locks, waited for as a blocking thread), and no
 * thread is in a section (the gate), so every other lock of ours is free. Threads outside of sections run on: fork()
 * itself takes locks of the C library that they may hold. What threads in sections wait for is taken when there are
 * none (.inv.cold.fork).
 */
static void prepare(void)
{
	struct gu_wait wait;
	gu_wait_begin(&wait);
	gu_heaps_freeze();
	gu_heaps_each(gu_service_fork_prepare);
	gu_wait_end(&wait);
	gu_world_close();
	gu_heaps_each(gu_service_fork_closed);
}

static void in_parent(void)
{
	gu_world_open();
	gu_heaps_each(gu_service_fork_parent);
	gu_heaps_thaw();
}

static void in_child(void)
{
	gu_locks_forked();
	gu_meta_lock_reset();
	gu_own_lock_reset();
	gu_stop_forked();
	gu_heaps_forked();
	gu_heaps_each(gu_service_fork_child);
	gu_threads_forked();
	gu_watch_forked();
	gu_heaps_each(gu_service_fork_resume);
}

static void install(void) { error = -pthread_atfork(prepare, in_parent, in_child); }

int gu_fork_init(void)
{
	pthread_once(&once, install);
	return error;
}
