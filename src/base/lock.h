/* SPDX-License-Identifier: MIT */
/*
 * lock.h - mutexes with a rank. A thread takes locks in rising rank only (.inv.lock.rank), checked
 * in debug builds. Mutators hold them only inside a no-stop section, so that a stopped thread never
 * holds one (.inv.section.locks).
 */
#ifndef GU_BASE_LOCK_H
#define GU_BASE_LOCK_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

enum gu_rank {
	GU_RANK_LIBRARY,  /* list of heaps, service threads */
	GU_RANK_TIER,     /* the evictor's step, I/O included; a fork */
	GU_RANK_CYCLE,    /* one cycle, arena reset or fork of a heap at a time */
	GU_RANK_WORLD,    /* one stop at a time, in the process */
	GU_RANK_THREADS,  /* list of attached threads */
	GU_RANK_ROOTS,    /* explicit roots, modules */
	GU_RANK_WAIT,     /* requests to and answers from the collector */
	GU_RANK_ARENA,    /* an arena's lists of blocks */
	GU_RANK_JEMALLOC, /* jemalloc's own locks come here; held by no one above */
	GU_RANK_COMMIT,   /* making more of the reservation writable */
	GU_RANK_SPACE,    /* growth of the reservation, block descriptors */
	GU_RANK_COLD,     /* a region's pages that are out */
	GU_RANK_PAGES,    /* soft bits of pages */
	GU_RANK_WEAK,     /* weak references */
	GU_RANK_FINAL,    /* finalizers */
	GU_RANK_SPILL,    /* who puts pages in a store: held during I/O, by no mutator */
	GU_RANK_STORE,    /* a store's tables; a store's decoder */
	GU_RANK_MARK,     /* shared mark packets */
	GU_RANK_META,     /* metadata allocator */
	GU_RANK_OWN,      /* list of the library's own mappings */
	GU_RANK_LOG,
	GU_RANK_COUNT
};

struct gu_lock {
	pthread_mutex_t mutex;
	uint32_t rank;
};

#define GU_LOCK_INIT(r) { PTHREAD_MUTEX_INITIALIZER, (r) }

/* Also puts a lock right in a forked child, whatever state it was copied in. */
void gu_lock_init(struct gu_lock *lock, enum gu_rank rank);
void gu_lock(struct gu_lock *lock);
bool gu_trylock(struct gu_lock *lock);
void gu_unlock(struct gu_lock *lock);
/* Around fork: several of one rank, in a fixed order, with no rank noted. */
void gu_lock_fork(struct gu_lock *lock);
void gu_unlock_fork(struct gu_lock *lock);
/* In a forked child: this thread holds none. */
void gu_locks_forked(void);
/* For assertions in functions named _locked; always true in release builds. */
bool gu_lock_held(const struct gu_lock *lock);

#endif
