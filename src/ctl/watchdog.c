/* SPDX-License-Identifier: MIT */
/* watchdog.c - see watchdog.h. */
#include "ctl/watchdog.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/check.h"
#include "base/log.h"
#include "sys/os.h"

#define TICK_NS 1000000000u

static _Noreturn void bark(const char *what, uint64_t ns)
{
	char line[256];
	snprintf(line, sizeof(line), "gcuffd: %s has not come to an end in %lu s: whoever waits for it hangs, so the process ends (option hang_seconds)\n", what,
		 (unsigned long)(ns / 1000000000u));
	gu_log_dying(line);
	abort();
}

static void look(struct gu_watchdog *dog, uint64_t limit_ns, unsigned source, const struct gu_beats *beats)
{
	for (int i = 0; i < GU_BEATS; i++) {
		uint64_t since = gu_load_acquire(&beats->since[i]);
		if (since != dog->seen[source][i].since) {
			dog->seen[source][i].since = since;
			dog->seen[source][i].awake_ns = dog->awake_ns;
		} else if (since && dog->awake_ns - dog->seen[source][i].awake_ns >= limit_ns) {
			bark(gu_load_relaxed(&beats->what[i]), limit_ns);
		}
	}
}

void gu_watchdog_run(struct gu_watchdog *dog, uint64_t limit_ns, struct gu_beats *const sources[GU_WATCHDOG_SOURCES])
{
	uint64_t tick = gu_min(limit_ns / 4, TICK_NS), last = gu_os->clock_ns();
	while (!gu_load_seqcst(&dog->quit)) {
		gu_os->futex_wait(&dog->quit, 0, (int64_t)tick);
		uint64_t now = gu_os->clock_ns();
		dog->awake_ns += gu_min(now - last, 2 * tick);
		last = now;
		for (unsigned i = 0; i < GU_WATCHDOG_SOURCES; i++)
			look(dog, limit_ns, i, sources[i]);
	}
}

void gu_watchdog_quit(struct gu_watchdog *dog)
{
	gu_store_seqcst(&dog->quit, 1);
	gu_os->futex_wake(&dog->quit, INT_MAX);
}
