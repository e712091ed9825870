/* SPDX-License-Identifier: MIT */
/*
 * kernel.c - what the kernel alone would hold: the data of epoll(7) and the values of timers. A copy of each lies in memory that is a
 * root, as the program's memory is, for as long as its descriptor or timer may give it back. A table of pages that are there where
 * something was put, so no lock: a word belongs to one pair of descriptors, or one timer, and who races for that races for the kernel's.
 *
 * close(2) ends no entry: it is overwritten when its numbers are used again.
 */
#include <errno.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <time.h>

#include "preload/preload.h"

#define DESCRIPTORS ((size_t)1 << 20) /* as many as a process can have by default */
#define TIMERS      ((size_t)1 << 16)

typedef uint64_t word;

static word **tables;   /* atomic; by the epoll descriptor, DESCRIPTORS of them; each by the descriptor watched */
static word *of_timers; /* atomic */

GU_NEXT(epoll_ctl)
GU_NEXT(timer_create)
GU_NEXT(timer_delete)

void gu_preload_kernel_init(void)
{
	real_epoll_ctl();
	real_timer_create();
	real_timer_delete();
}

/* n words of the table behind *at, made on first use; NULL: there is no memory, or it is not there and not wanted. */
static void *table_at(void *at, size_t n, bool make)
{
	void **slot = at, *table = __atomic_load_n(slot, __ATOMIC_ACQUIRE), *none = NULL;
	if (table || !make)
		return table;
	table = mmap(NULL, n * sizeof(word), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (table == MAP_FAILED)
		return NULL;
	if (__atomic_compare_exchange_n(slot, &none, table, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
		return table;
	munmap(table, n * sizeof(word));
	return none;
}

static word *word_of(int epoll, int fd, bool make)
{
	if (epoll < 0 || fd < 0 || (size_t)epoll >= DESCRIPTORS || (size_t)fd >= DESCRIPTORS)
		return NULL;
	word **all = table_at(&tables, DESCRIPTORS, make), *table = all ? table_at(&all[epoll], DESCRIPTORS, make) : NULL;
	return table ? &table[fd] : NULL;
}

static void keep(word *at, word value)
{
	if (at)
		__atomic_store_n(at, value, __ATOMIC_RELAXED);
}

/* What is to be held is held before the kernel has it, what was held until it has not. */
GU_PRELOAD_EXPORT int epoll_ctl(int epoll, int op, int fd, struct epoll_event *event)
{
	int saved = errno;
	word *at = word_of(epoll, fd, op != EPOLL_CTL_DEL && event), was = at ? __atomic_load_n(at, __ATOMIC_RELAXED) : 0;
	if (op == EPOLL_CTL_ADD && event)
		keep(at, event->data.u64);
	errno = saved;
	int result = real_epoll_ctl()(epoll, op, fd, event);
	if (!result && op == EPOLL_CTL_DEL)
		keep(at, 0);
	else if (!result && op == EPOLL_CTL_MOD && event)
		keep(at, event->data.u64);
	else if (result && op == EPOLL_CTL_ADD)
		keep(at, was);
	return result;
}

/* With SIGEV_THREAD the C library has the value in memory of its own. */
static word *word_of_timer(const timer_t *timer, bool make)
{
	size_t number = (size_t)(uintptr_t)*timer;
	word *table = number < TIMERS ? table_at(&of_timers, TIMERS, make) : NULL;
	return table ? &table[number] : NULL;
}

GU_PRELOAD_EXPORT int timer_create(clockid_t clock, struct sigevent *event, timer_t *timer)
{
	int result = real_timer_create()(clock, event, timer), saved = errno;
	if (!result && event && (event->sigev_notify == SIGEV_SIGNAL || event->sigev_notify == SIGEV_THREAD_ID))
		keep(word_of_timer(timer, true), (word)(uintptr_t)event->sigev_value.sival_ptr);
	errno = saved;
	return result;
}

GU_PRELOAD_EXPORT int timer_delete(timer_t timer)
{
	word *at = word_of_timer(&timer, false);
	int result = real_timer_delete()(timer);
	if (!result)
		keep(at, 0);
	return result;
}
