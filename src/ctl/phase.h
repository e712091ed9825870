/* SPDX-License-Identifier: MIT */
/* phase.h - the steps of a cycle, told to whoever looks on, and timed. In the heap's collector thread, never in a stop. */
#ifndef GU_CTL_PHASE_H
#define GU_CTL_PHASE_H

#include "ctl/cycle.h"

/* In their order; those from FIRST_STOP to PRECLEAN only where mutators run meanwhile. */
enum gu_step { GU_STEP_ARM, GU_STEP_FIRST_STOP, GU_STEP_MARK, GU_STEP_PRECLEAN, GU_STEP_SECOND_STOP, GU_STEP_FINALIZE, GU_STEP_SWEEP };

void gu_cycle_begins(struct gcuffd_heap *heap, struct gu_cycle *cycle);
void gu_cycle_ends(struct gcuffd_heap *heap, struct gu_cycle *cycle, int err);

void gu_step_begins(struct gcuffd_heap *heap, struct gu_cycle *cycle, enum gu_step step);
/* How long it took, in ns. */
uint64_t gu_step_ends(struct gcuffd_heap *heap, struct gu_cycle *cycle, enum gu_step step);

/* Of precleaning: another one, which found so many dirty pages. */
void gu_round_ends(struct gcuffd_heap *heap, struct gu_cycle *cycle, uint64_t dirty);

#endif
