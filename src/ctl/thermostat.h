/* SPDX-License-Identifier: MIT */
/*
 * thermostat.h - how much of a heap may be in place, and how fast the rest is taken out. Pure arithmetic, as pacer.h: times, sizes and counts are
 * arguments.
 *
 * The target comes from the options, and from the mode:
 *   cgroup    the group's limit less a sixteenth, less what the group uses beside the heap
 *   pressure  none; while threads wait for memory, what is resident less a twentieth, and a twentieth less each two seconds; when nobody
 *             has waited for ten seconds it rises in the same steps, until it is far above what is resident
 *   idle      none: what was not touched for a time goes
 *
 * Feedback: mutators wait for pages that are out. Where that costs more of a processor's time than it may, in a second or a probation (that long
 * it takes to show), pages have to stand a probation twice as long, and so on up to 256 times; when it has cost less than half of that for
 * twice a probation, half as long again; later the more often that turned out to be too soon. Where a group's margin is half used there is no such mercy, for that would end with the process.
 */
#ifndef GU_CTL_THERMOSTAT_H
#define GU_CTL_THERMOSTAT_H

#include <stdbool.h>
#include <stdint.h>

#include "gcuffd.h"

#define GU_NO_TARGET UINT64_MAX
#define GU_LOOK_NS 1000000000u   /* between looks */
#define GU_PROBATION_NS 300000000u /* that a page is parked before it goes to the store, where time does not decide */

struct gu_thermostat_limits {
	enum gcuffd_cool_mode mode;
	uint64_t target;           /* bytes in place, whatever the mode says; 0: none */
	unsigned pressure_percent; /* of time that some thread may wait for memory */
	uint64_t probation_ns;
	unsigned fault_percent;    /* of a processor's time that waiting for pages may cost */
};

struct gu_thermostat_look {
	uint64_t now_ns;
	uint64_t resident;         /* bytes that the heap takes */
	bool limited;              /* cgroup: there is a limit */
	uint64_t limit, used;
	uint64_t waited_ns;        /* pressure: for memory, so far */
	uint64_t faults, fault_ns; /* pages that mutators waited for so far, and the time it took to bring them */
};

struct gu_thermostat {
	struct gu_thermostat_limits limits;
	uint64_t target;           /* GU_NO_TARGET: none */
	uint64_t asked;            /* of the mode alone */
	uint64_t margin;           /* cgroup: of the limit, that should stay free */
	unsigned slow;             /* doublings of the probation */
	uint64_t backoffs;
	bool hastened;             /* the last change was a shorter probation */
	unsigned patience;         /* doublings of the time before another */
	struct gu_thermostat_look last; /* where the present time of weighing faults began; now_ns 0: it has not */
	uint64_t pressed_ns, pressed_waited; /* where the present two seconds of pressure began */
	unsigned calm;             /* such spans without */
	uint64_t quiet_ns;         /* for which faults have cost little */
};

void gu_thermostat_init(struct gu_thermostat *thermostat, const struct gu_thermostat_limits *limits);
/* Each GU_LOOK_NS or later. */
void gu_thermostat_look(struct gu_thermostat *thermostat, const struct gu_thermostat_look *look);
/* Instead: the kernel does not tell what the mode goes by. No target but the options'. */
void gu_thermostat_blind(struct gu_thermostat *thermostat, const struct gu_thermostat_look *look);
/* That a page has to stand, while the heap takes so much more than the target: then never longer than GU_PROBATION_NS, but for doublings. */
uint64_t gu_thermostat_probation(const struct gu_thermostat *thermostat, uint64_t over);

#endif
