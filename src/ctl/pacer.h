/* SPDX-License-Identifier: MIT */
/*
 * pacer.h - when the next cycle is due. Pure arithmetic: sizes and times are arguments, nothing is read.
 *
 * Between cycles the heap may grow by growth_percent of what is live, less above the soft limit. A cycle
 * starts early enough that allocation during it, at the rate and for the time seen so far, ends where
 * the cycle does. Under a hard limit seven eighths of the room left decide. Where mutators allocate so
 * fast that a cycle which begins when half of the growth is used would see them run into the limit, all but a 32nd of
 * the room is used first: all of it is used in any case, and what is allocated during a cycle can't be freed by it.
 * Where they turn out to have become slower, the cycle is due earlier after all: then nobody needs to wait.
 *
 * Mutators that outrun a cycle are slowed down, by naps in proportion to what they allocate, over the second half of the way
 * from where the cycle was due to the ceiling, but not within 16 MiB. Only at the ceiling do they wait until it is raised or the cycle is over, which may be long.
 */
#ifndef GU_CTL_PACER_H
#define GU_CTL_PACER_H

#include <stdbool.h>
#include <stdint.h>

struct gu_pacer_limits {
	uint64_t soft, hard;      /* resident bytes; 0: none */
	uint64_t start_size;      /* no cycle before this many bytes are allocated */
	unsigned growth_percent;
};

/* What the last cycle saw. */
struct gu_pacer_cycle {
	uint64_t live;            /* bytes after it, what was allocated during it included */
	uint64_t resident;        /* after it; all of it that is not live is overhead */
	uint64_t reusable;        /* resident bytes that new objects can use */
	uint64_t duration_ns;     /* arming to the end of marking */
	uint64_t allocated_during;
	bool waited;              /* mutators waited for its end: at the limit, or because they asked for it */
};

struct gu_pacer {
	struct gu_pacer_limits limits;
	uint64_t expected;        /* bytes allocated during a cycle: decaying average */
	struct gu_pacer_cycle last;
};

void gu_pacer_init(struct gu_pacer *pacer, const struct gu_pacer_limits *limits);
/* Bytes to allocate before the first cycle. */
uint64_t gu_pacer_first(const struct gu_pacer *pacer);
/* Takes in a cycle; bytes to allocate before the next begins. */
uint64_t gu_pacer_next(struct gu_pacer *pacer, const struct gu_pacer_cycle *cycle);
/* So much was allocated in a second since: the same anew, where that is less than half of the rate that was expected. */
uint64_t gu_pacer_revise(struct gu_pacer *pacer, uint64_t bytes_per_s);
/* Bytes to allocate, next included, at which mutators wait for the cycle: marking has fallen behind. */
uint64_t gu_pacer_ceiling(uint64_t next);

#define GU_PACER_WAIT UINT64_MAX
/* How long, in ns, who wants bytes more naps, with so much allocated; GU_PACER_WAIT: as long as the ceiling stands. */
uint64_t gu_pacer_nap(uint64_t allocated, uint64_t trigger, uint64_t ceiling, uint64_t bytes);
/* The same while the heap is saved, which writes all that is new. pace: naps are so many times as long. */
uint64_t gu_pacer_nap_saving(uint64_t bytes, uint32_t pace);

#endif
