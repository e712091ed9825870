/* SPDX-License-Identifier: MIT */
/* phase.c - see phase.h. A probe has its name from the compiler, so PROBE_PHASE writes each down. */
#include "ctl/phase.h"

#include "base/probe.h"
#include "gc/event.h"
#include "sys/os.h"

#define PROBE_PHASE(h, c, phase, end) \
	do switch (phase) { \
	case GCUFFD_PHASE_ARM: GU_PROBE2(arm__##end, h, (c)->number); break; \
	case GCUFFD_PHASE_FIRST_STOP: GU_PROBE2(first__stop__##end, h, (c)->number); break; \
	case GCUFFD_PHASE_MARK: GU_PROBE2(mark__##end, h, (c)->number); break; \
	case GCUFFD_PHASE_PRECLEAN: GU_PROBE2(preclean__##end, h, (c)->number); break; \
	case GCUFFD_PHASE_SECOND_STOP: GU_PROBE2(second__stop__##end, h, (c)->number); break; \
	case GCUFFD_PHASE_FINALIZE: GU_PROBE2(finalize__##end, h, (c)->number); break; \
	case GCUFFD_PHASE_SWEEP: GU_PROBE2(sweep__##end, h, (c)->number); break; \
	} while (0)

void gu_phase_begins(struct gcuffd_heap *h, struct gu_cycle *c, enum gcuffd_phase phase)
{
	PROBE_PHASE(h, c, phase, begin);
	c->since = gu_os->clock_ns();
	struct gcuffd_event event = {.kind = GCUFFD_EVENT_PHASE_BEGIN, .phase = phase, .begin_ns = c->since, .end_ns = c->since};
	gu_event_put(h, &event);
	if (phase != GCUFFD_PHASE_SECOND_STOP && phase != GCUFFD_PHASE_FINALIZE) /* .inv.event.told */
		gu_event_tell(h);
}

uint64_t gu_phase_ends(struct gcuffd_heap *h, struct gu_cycle *c, enum gcuffd_phase phase)
{
	struct gcuffd_event event = {.kind = GCUFFD_EVENT_PHASE_END, .phase = phase, .begin_ns = c->since, .end_ns = gu_os->clock_ns()};
	PROBE_PHASE(h, c, phase, end);
	gu_event_put(h, &event);
	if (phase != GCUFFD_PHASE_PRECLEAN && phase != GCUFFD_PHASE_SECOND_STOP)
		gu_event_tell(h);
	return event.end_ns - event.begin_ns;
}

/* Told when all is decided, as what follows: what is written while a handler runs would be left to the stop. */
void gu_round_ends(struct gcuffd_heap *h, struct gu_cycle *c, uint64_t dirty)
{
	uint64_t now = gu_os->clock_ns();
	struct gcuffd_event event = {.kind = GCUFFD_EVENT_ROUND, .begin_ns = now, .end_ns = now, .pages = dirty};
	GU_PROBE3(preclean__round, h, c->number, dirty);
	gu_event_put(h, &event);
}

/* ---- all of it ---- */

void gu_cycle_begins(struct gcuffd_heap *h, struct gu_cycle *c)
{
	GU_PROBE3(cycle__begin, h, c->number, (unsigned)c->reason);
	c->began_ns = gu_os->clock_ns();
	struct gcuffd_event event = {.kind = GCUFFD_EVENT_CYCLE_BEGIN, .reason = c->reason, .begin_ns = c->began_ns, .end_ns = c->began_ns};
	gu_event_cycle(h, c->number);
	gu_event_put(h, &event);
	gu_event_tell(h);
}

void gu_cycle_ends(struct gcuffd_heap *h, struct gu_cycle *c, int err)
{
	struct gcuffd_event event = {
		.kind = GCUFFD_EVENT_CYCLE_END, .reason = c->reason, .begin_ns = c->began_ns, .end_ns = gu_os->clock_ns(), .error = err,
		.freed_bytes = err ? 0 : c->swept.freed_bytes, .live_bytes = err ? 0 : c->swept.live_bytes,
	};
	GU_PROBE5(cycle__end, h, c->number, err, c->swept.freed_bytes, c->swept.live_bytes);
	gu_event_put(h, &event);
	gu_event_cycle(h, 0);
	gu_event_tell(h);
}
