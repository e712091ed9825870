/* SPDX-License-Identifier: MIT */
/*
 * stop.h - stopping the world: every attached thread is parked in a signal handler, at the end of a
 * no-stop section, or has declared that it blocks. The stopper is a service thread, or a thread
 * that forks: it is not stopped itself.
 */
#ifndef GU_GC_STOP_H
#define GU_GC_STOP_H

#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>

#include "gcuffd.h"

/*
 * SIGRTMAX - 1 if no other was chosen: not used by glibc, bdwgc (SIGPWR, SIGXCPU) or valgrind (64), and known to debuggers, as SIGSTKFLT is not.
 * -EBUSY: there is a handler already; -EINVAL.
 */
int gu_stop_signal(void);
int gu_stop_set_signal(int sig);

/* Installs the handler; once. */
int gu_stop_init(void);
void gu_stop_unblock(const sigset_t *set);

/*
 * Parks everybody. -ETIMEDOUT: a thread did not stop in time, and all go on. everybody: also threads that
 * never attached. The threads list stays locked until gu_world_resume().
 */
int gu_world_stop(bool everybody, uint64_t timeout_ns);
/* When that was: the stop's end, but for the time that the threads take to wake up. */
uint64_t gu_world_resume(void);
/* The same in the heap's collector, for whom its roots are of, with its timeout; it is an event of the heap. How long the stop took, in ns. */
int gu_world_stop_for(struct gcuffd_heap *heap);
uint64_t gu_world_resume_for(struct gcuffd_heap *heap);

/*
 * Waits until every thread has been outside of a no-stop section: what a section read before is
 * done with. Stops nobody.
 */
int gu_world_quiesce(uint64_t timeout_ns);
/* The same in the heap's collector, with its timeout. That matters where it takes a stop all the same: without membarrier(2). */
int gu_world_quiesce_for(struct gcuffd_heap *heap);

/*
 * Around fork: waits until no other thread is in a section and lets none begin one until open; they run on
 * otherwise. The threads list stays locked. The caller passes.
 */
void gu_world_close(void);
void gu_world_open(void);
bool gu_world_is_closed_by_caller(void);

/* Safepoints: how the calling thread is stopped from the next stop on; and parks if there is one. */
int gu_stop_by(enum gcuffd_stop_by how);
void gu_stop_obey(void);

/* The calling thread, and its handlers of signals, touch no heap until leave. enter records its stack and registers. */
int gu_blocking_enter(void);
int gu_blocking_leave(void);

/*
 * Around waits of the library's own, for the collector: no stop waits for the thread. Handlers of signals, which might touch the heap, are
 * held meanwhile; in gu_wait_futex(), which returns after GU_WAIT_NS at the latest, those that are due run. Any thread.
 */
struct gu_wait {
	uint64_t old;
	bool blocking;
};
#define GU_WAIT_NS 5000000
/* No handler of the calling thread runs between the two. */
void gu_signals_hold(uint64_t *old);
void gu_signals_let(const uint64_t *old);
void gu_wait_begin(struct gu_wait *wait);
void gu_wait_end(const struct gu_wait *wait);
void gu_wait_futex(struct gu_wait *wait, uint32_t *word, uint32_t value, int64_t timeout_ns);

/*
 * Makes a service thread, with all signals blocked. Service threads are no mutators, found or not: the first thing that fn does
 * is gu_stop_exempt(true), and until then no stopper takes the new thread for a mutator (.inv.stop.exempt). -errno.
 */
int gu_stop_start(pthread_t *thread, const pthread_attr_t *attr, void *(*fn)(void *), void *arg);
void gu_stop_exempt(bool on);
void gu_stop_forked(void);

#endif
