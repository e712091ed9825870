/* SPDX-License-Identifier: MIT */
/* phase.c - see phase.h. A probe has its name from the compiler, so each is written down. */
#include "ctl/phase.h"

#include "base/probe.h"
#include "sys/os.h"

void gu_cycle_begins(struct gcuffd_heap *h, struct gu_cycle *c)
{
	GU_PROBE3(cycle__begin, h, c->number, (unsigned)c->reason);
}

void gu_cycle_ends(struct gcuffd_heap *h, struct gu_cycle *c, int err)
{
	GU_PROBE5(cycle__end, h, c->number, err, c->swept.freed_bytes, c->swept.live_bytes);
}

static void probe_begin(const struct gcuffd_heap *h, const struct gu_cycle *c, enum gu_step step)
{
	switch (step) {
	case GU_STEP_ARM: GU_PROBE2(arm__begin, h, c->number); break;
	case GU_STEP_FIRST_STOP: GU_PROBE2(first__stop__begin, h, c->number); break;
	case GU_STEP_MARK: GU_PROBE2(mark__begin, h, c->number); break;
	case GU_STEP_PRECLEAN: GU_PROBE2(preclean__begin, h, c->number); break;
	case GU_STEP_SECOND_STOP: GU_PROBE2(second__stop__begin, h, c->number); break;
	case GU_STEP_FINALIZE: GU_PROBE2(finalize__begin, h, c->number); break;
	case GU_STEP_SWEEP: GU_PROBE2(sweep__begin, h, c->number); break;
	}
}

static void probe_end(const struct gcuffd_heap *h, const struct gu_cycle *c, enum gu_step step)
{
	switch (step) {
	case GU_STEP_ARM: GU_PROBE2(arm__end, h, c->number); break;
	case GU_STEP_FIRST_STOP: GU_PROBE2(first__stop__end, h, c->number); break;
	case GU_STEP_MARK: GU_PROBE2(mark__end, h, c->number); break;
	case GU_STEP_PRECLEAN: GU_PROBE2(preclean__end, h, c->number); break;
	case GU_STEP_SECOND_STOP: GU_PROBE2(second__stop__end, h, c->number); break;
	case GU_STEP_FINALIZE: GU_PROBE2(finalize__end, h, c->number); break;
	case GU_STEP_SWEEP: GU_PROBE2(sweep__end, h, c->number); break;
	}
}

void gu_step_begins(struct gcuffd_heap *h, struct gu_cycle *c, enum gu_step step)
{
	probe_begin(h, c, step);
	c->since = gu_os->clock_ns();
}

uint64_t gu_step_ends(struct gcuffd_heap *h, struct gu_cycle *c, enum gu_step step)
{
	uint64_t took = gu_os->clock_ns() - c->since;
	probe_end(h, c, step);
	return took;
}

void gu_round_ends(struct gcuffd_heap *h, struct gu_cycle *c, uint64_t dirty)
{
	GU_PROBE3(preclean__round, h, c->number, dirty);
}
