/* SPDX-License-Identifier: MIT */
/* lock.c - ranked mutexes. The ranks that a thread holds are a bit set in its TLS (debug builds). */
#include "base/lock.h"

#include "base/check.h"

#ifdef GU_DEBUG
static __thread uint32_t held __attribute__((tls_model("initial-exec")));

static void note_taken(const struct gu_lock *lock)
{
	GU_INVARIANT(!(held >> lock->rank), ".inv.lock.rank");
	held |= 1u << lock->rank;
}

static void note_released(const struct gu_lock *lock)
{
	GU_INVARIANT(held & (1u << lock->rank), ".inv.lock.rank");
	held &= ~(1u << lock->rank);
}

bool gu_lock_held(const struct gu_lock *lock) { return held & (1u << lock->rank); }
void gu_locks_forked(void) { held = 0; }
#else
static void note_taken(const struct gu_lock *lock) { (void)lock; }
static void note_released(const struct gu_lock *lock) { (void)lock; }
bool gu_lock_held(const struct gu_lock *lock) { return lock != NULL; }
void gu_locks_forked(void) {}
#endif

void gu_lock_fork(struct gu_lock *lock) { pthread_mutex_lock(&lock->mutex); }
void gu_unlock_fork(struct gu_lock *lock) { pthread_mutex_unlock(&lock->mutex); }

void gu_lock_init(struct gu_lock *lock, enum gu_rank rank)
{
	pthread_mutex_init(&lock->mutex, NULL);
	lock->rank = rank;
}

void gu_lock(struct gu_lock *lock)
{
	note_taken(lock);
	pthread_mutex_lock(&lock->mutex);
}

bool gu_trylock(struct gu_lock *lock)
{
	if (pthread_mutex_trylock(&lock->mutex))
		return false;
	note_taken(lock);
	return true;
}

void gu_unlock(struct gu_lock *lock)
{
	note_released(lock);
	pthread_mutex_unlock(&lock->mutex);
}
