/* SPDX-License-Identifier: MIT */
/* thermostat.c - see thermostat.h. The evictor only. */
#include "ctl/thermostat.h"

#include "base/check.h"

#define MARGIN 16                   /* a sixteenth of a limit stays free */
#define STEP 20                     /* a twentieth of what is resident at a time */
#define AHEAD 5                     /* a target is at most a fifth below what is resident: it has to be met before it falls on */
#define SPAN_NS 2000000000u         /* that pressure is a share of; PSI's own averages go by it as well */
#define CALM 5                      /* spans before the target rises */
#define FAULT_NS 20000u             /* of a fault, beside the time in which the page is brought: to go to sleep and to be woken */
#define SLOWEST 8
#define PATIENCE 5                  /* doublings, at most */
#define URGENT 8                    /* so many times as fast */
#define QUIET_NS 5000000000u        /* least time before probation gets shorter */

static uint64_t minus(uint64_t a, uint64_t b) { return a > b ? a - b : 0; }

void gu_thermostat_init(struct gu_thermostat *t, const struct gu_thermostat_limits *limits)
{
	*t = (struct gu_thermostat){.limits = *limits, .asked = GU_NO_TARGET};
	t->target = limits->target ? limits->target : GU_NO_TARGET;
}

/* ---- the target ---- */

static void follow_limit(struct gu_thermostat *t, const struct gu_thermostat_look *l)
{
	t->margin = l->limited ? l->limit / MARGIN : 0;
	t->asked = l->limited ? minus(l->limit - t->margin, minus(l->used, l->resident)) : GU_NO_TARGET;
}

static void lower(struct gu_thermostat *t, uint64_t resident)
{
	uint64_t least = resident - resident / AHEAD;
	if (t->asked > least)
		t->asked = gu_max(minus(gu_min(t->asked, resident), resident / STEP), least);
	t->calm = 0;
}

static void relax(struct gu_thermostat *t, uint64_t resident)
{
	if (++t->calm < CALM || t->asked == GU_NO_TARGET)
		return;
	t->asked += resident / STEP + 1;
	if (t->asked > resident + resident / 4)
		t->asked = GU_NO_TARGET;
}

static void follow_pressure(struct gu_thermostat *t, const struct gu_thermostat_look *l)
{
	uint64_t span = l->now_ns - t->pressed_ns;
	bool first = !t->pressed_ns;
	if (!first && span < SPAN_NS)
		return;
	if (!first && minus(l->waited_ns, t->pressed_waited) > span / 100 * t->limits.pressure_percent)
		lower(t, l->resident);
	else if (!first)
		relax(t, l->resident);
	t->pressed_ns = l->now_ns;
	t->pressed_waited = l->waited_ns;
}

/* ---- feedback ---- */

uint64_t gu_thermostat_probation(const struct gu_thermostat *t, uint64_t over)
{
	if (t->margin && minus(over, t->asked - t->target) > t->margin / 2)
		return GU_PROBATION_NS / URGENT;
	return (over ? gu_min(t->limits.probation_ns, GU_PROBATION_NS) : t->limits.probation_ns) << t->slow;
}

static void slow_down(struct gu_thermostat *t)
{
	t->quiet_ns = 0;
	if (t->slow == SLOWEST)
		return;
	t->slow++;
	t->backoffs++;
	if (t->hastened && t->patience < PATIENCE)
		t->patience++;
	t->hastened = false;
}

static void speed_up(struct gu_thermostat *t, uint64_t span)
{
	t->quiet_ns += span;
	if (!t->slow || t->quiet_ns < gu_max(QUIET_NS, t->limits.probation_ns << t->slow << 1) << t->patience)
		return;
	t->slow--;
	t->quiet_ns = 0;
	if (t->hastened && t->patience)
		t->patience--;
	t->hastened = true;
}

static void weigh_faults(struct gu_thermostat *t, const struct gu_thermostat_look *l)
{
	uint64_t span = l->now_ns - t->last.now_ns;
	uint64_t cost = minus(l->fault_ns, t->last.fault_ns) + minus(l->faults, t->last.faults) * FAULT_NS;
	uint64_t most = span / 100 * t->limits.fault_percent;
	if (t->last.now_ns && span < gu_max(GU_LOOK_NS, t->limits.probation_ns << t->slow))
		return;
	if (t->last.now_ns && cost > most)
		slow_down(t);
	else if (t->last.now_ns && cost <= most / 2)
		speed_up(t, span);
	else
		t->quiet_ns = 0;
	t->last = *l;
}

static void set_target(struct gu_thermostat *t)
{
	t->target = gu_min(t->asked, t->limits.target ? t->limits.target : GU_NO_TARGET);
}

void gu_thermostat_blind(struct gu_thermostat *t, const struct gu_thermostat_look *l)
{
	t->asked = GU_NO_TARGET;
	t->margin = 0;
	t->calm = 0;
	t->pressed_ns = 0;
	weigh_faults(t, l);
	set_target(t);
}

void gu_thermostat_look(struct gu_thermostat *t, const struct gu_thermostat_look *l)
{
	if (t->limits.mode == GCUFFD_COOL_CGROUP)
		follow_limit(t, l);
	if (t->limits.mode == GCUFFD_COOL_PRESSURE)
		follow_pressure(t, l);
	weigh_faults(t, l);
	set_target(t);
}
