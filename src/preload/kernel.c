/* SPDX-License-Identifier: MIT */
/*
 * kernel.c - what the kernel alone would hold: the data of epoll(7) and the values of timers. A copy of each lies in memory that is a
 * root, as the program's memory is, for as long as its descriptor or timer may give it back. Tables of pages that are there where
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
#define PLACES      64u               /* where a timer may be: its number modulo TIMERS, and behind */

typedef uint64_t word;

static word **tables;   /* atomic; by the epoll descriptor, DESCRIPTORS of them; each by the descriptor watched */
static struct {
	uint64_t timer; /* atomic; its number and one; 0: free. Numbers only rise */
	word value;
} timers[TIMERS];

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

static bool keep_timer(uint64_t number, word value)
{
	for (size_t i = 0; i < PLACES; i++) {
		uint64_t none = 0, at = (number + i) % TIMERS;
		if (!__atomic_compare_exchange_n(&timers[at].timer, &none, number + 1, false, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED))
			continue;
		keep(&timers[at].value, value);
		return true;
	}
	return false;
}

static void forget_timer(uint64_t number)
{
	for (size_t i = 0; i < PLACES; i++) {
		size_t at = (number + i) % TIMERS;
		if (__atomic_load_n(&timers[at].timer, __ATOMIC_ACQUIRE) != number + 1)
			continue;
		keep(&timers[at].value, 0);
		__atomic_store_n(&timers[at].timer, 0, __ATOMIC_RELEASE);
		return;
	}
}

/* With SIGEV_THREAD the C library has the value in memory of its own. */
GU_PRELOAD_EXPORT int timer_create(clockid_t clock, struct sigevent *event, timer_t *timer)
{
	int result = real_timer_create()(clock, event, timer);
	bool alone = event && (event->sigev_notify == SIGEV_SIGNAL || event->sigev_notify == SIGEV_THREAD_ID) && event->sigev_value.sival_ptr;
	if (result || !alone || keep_timer((uint64_t)(uintptr_t)*timer, (word)(uintptr_t)event->sigev_value.sival_ptr))
		return result;
	real_timer_delete()(*timer);
	errno = EAGAIN;
	return -1;
}

GU_PRELOAD_EXPORT int timer_delete(timer_t timer)
{
	int result = real_timer_delete()(timer);
	if (!result)
		forget_timer((uint64_t)(uintptr_t)timer);
	return result;
}
