/* SPDX-License-Identifier: MIT */
/*
 * watchdog.h - a page that is waited for, or a call on the store's file, that does not come to an end: a program that waits for it would stand still and
 * say nothing. After a while one line says what hangs, and the process ends (.inv.cold.watchdog).
 *
 * A thread of its own, that takes no lock, touches no memory but its own and the beats, calls nothing of the program's, and writes to stderr without
 * waiting. Time in which it did not run either (a stopped process, a debugger) does not count.
 */
#ifndef GU_CTL_WATCHDOG_H
#define GU_CTL_WATCHDOG_H

#include <stddef.h>
#include <stdint.h>

#include "base/beat.h"

#define GU_WATCHDOG_SOURCES 2

struct gu_watchdog {
	uint32_t quit; /* atomic; futex */
	uint64_t awake_ns;
	struct {
		uint64_t since, awake_ns;
	} seen[GU_WATCHDOG_SOURCES][GU_BEATS];
};

/* The thread's life. */
void gu_watchdog_run(struct gu_watchdog *dog, uint64_t limit_ns, struct gu_beats *const sources[GU_WATCHDOG_SOURCES]);
void gu_watchdog_quit(struct gu_watchdog *dog);

#endif
