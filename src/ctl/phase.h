/* SPDX-License-Identifier: MIT */
/* phase.h - the phases of a cycle, timed, and told to whoever looks on: by probes, and as events. In the heap's collector thread, never in a stop. */
#ifndef GU_CTL_PHASE_H
#define GU_CTL_PHASE_H

#include "ctl/cycle.h"

void gu_cycle_begins(struct gcuffd_heap *heap, struct gu_cycle *cycle);
void gu_cycle_ends(struct gcuffd_heap *heap, struct gu_cycle *cycle, int err);

void gu_phase_begins(struct gcuffd_heap *heap, struct gu_cycle *cycle, enum gcuffd_phase phase);
/* How long it took, in ns. */
uint64_t gu_phase_ends(struct gcuffd_heap *heap, struct gu_cycle *cycle, enum gcuffd_phase phase);

/* Of precleaning: another one, which found so many dirty pages. */
void gu_round_ends(struct gcuffd_heap *heap, struct gu_cycle *cycle, uint64_t dirty);

#endif
