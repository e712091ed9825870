/* SPDX-License-Identifier: MIT */
/* ahead.c - see ahead.h. */
#include "space/ahead.h"

#include "sys/os.h"

#define AHEAD 3u /* regions */

/* The last few regions' worth under the limit are left to mutators. */
static bool room_for(const struct gu_space *s)
{
	return !s->limit || gu_space_resident(s) + (2 * AHEAD + 1) * GU_REGION <= s->limit;
}

/*
 * By a store that changes nothing: a fault takes the mapping's lock alone, where madvise(2) would hold that of the
 * whole address space, for which mutators would wait.
 */
static void bring_in(struct gu_space *s, size_t r)
{
	uint32_t zero = 0;
	if (!gu_space_fill_begin(s, r))
		return;
	(void)gu_cas_seqcst((uint32_t *)(s->base + r * GU_REGION), &zero, 0);
	gu_space_fill_end(s, r);
}

static void bring_in_from(struct gu_space *s, size_t from)
{
	gu_lock(&s->ahead.lock);
	(void)gu_space_commit_ahead(s); /* if not, who takes it will hear why */
	for (size_t r = from; r < from + AHEAD && r < gu_load_acquire(&s->committed) / GU_REGION && room_for(s); r++)
		bring_in(s, r);
	gu_unlock(&s->ahead.lock);
}

void gu_ahead_run(struct gu_space *s)
{
	gu_store_seqcst(&s->ahead.runs, 1);
	while (!gu_load_seqcst(&s->ahead.quit)) {
		uint32_t bell = gu_load_seqcst(&s->ahead.bell);
		bring_in_from(s, gu_load_relaxed(&s->ahead.from));
		if (!gu_load_seqcst(&s->ahead.quit))
			gu_os->futex_wait(&s->ahead.bell, bell, -1);
	}
	gu_store_seqcst(&s->ahead.runs, 0);
}

static void wake(struct gu_space *s)
{
	gu_add_seqcst(&s->ahead.bell, 1);
	gu_os->futex_wake(&s->ahead.bell, 1);
}

void gu_ahead_quit(struct gu_space *s)
{
	gu_store_seqcst(&s->ahead.quit, 1);
	wake(s);
}

void gu_ahead_ring(struct gu_space *s, size_t region)
{
	gu_store_relaxed(&s->ahead.from, region);
	if (gu_load_relaxed(&s->ahead.runs))
		wake(s);
}

/* One can begin only in a region that holds no pages, so not once these are settled. */
void gu_ahead_settle(struct gu_space *s, size_t from, size_t to)
{
	for (size_t r = from; r < to; r++)
		while (gu_load_acquire(&s->region[r]) & GU_REGION_FILLING)
			gu_os->sched_yield();
}

void gu_ahead_fork_prepare(struct gu_space *s) { gu_lock_fork(&s->ahead.lock); }
void gu_ahead_fork_parent(struct gu_space *s) { gu_unlock_fork(&s->ahead.lock); }

void gu_ahead_fork_child(struct gu_space *s)
{
	gu_lock_init(&s->ahead.lock, GU_RANK_WAIT);
	s->ahead.runs = s->ahead.quit = 0;
}
