/* SPDX-License-Identifier: MIT */
/* cycle.h - one collection from beginning to end. In the heap's collector thread. */
#ifndef GU_CTL_CYCLE_H
#define GU_CTL_CYCLE_H

#include "gc/heap.h"
#include "gc/sweep.h"

/* What a cycle did; times in ns. */
struct gu_cycle {
	uint64_t number;        /* of those that were finished, if it is */
	enum gcuffd_reason reason;
	bool in_stop;           /* all marking happens in one stop: rung stop, or the last try before ENOMEM */
	uint64_t began_ns;
	uint64_t since;         /* when the phase began that is under way */
	uint64_t arm_ns, stop1_ns, mark_ns, preclean_ns, stop2_ns, final_ns, sweep_ns;
	uint64_t marked, marked_in_stop;
	uint64_t pages_scanned, dirty_pages, remark_dirty_pages, rounds;
	uint64_t round_dirty[GCUFFD_ROUNDS];
	uint64_t remark_words, stack_words, block_words;
	uint64_t allocated_before, allocated_during;
	uint64_t finals;        /* that were put on the queue */
	uint64_t wrong;         /* found by the verifier */
	uint64_t rss;           /* when all was done */
	struct gu_sweep_counts swept;
};

/* 0, or -ETIMEDOUT: a thread did not stop; the cycle is put off and nothing was swept. */
int gu_cycle_run(struct gcuffd_heap *heap, struct gu_cycle *cycle);

#endif
