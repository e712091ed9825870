/* SPDX-License-Identifier: MIT */
/*
 * beat.h - what is under way and should not take long: since when, for a watchdog to see (ctl/watchdog.h). Any thread; costs two stores.
 */
#ifndef GU_BASE_BEAT_H
#define GU_BASE_BEAT_H

#include <stdint.h>

#include "base/atomic.h"

#define GU_BEATS 16 /* at a time: further ones go unseen */

struct gu_beats {
	uint64_t since[GU_BEATS];    /* atomic; 0: free */
	const char *what[GU_BEATS];  /* atomic */
};

/* now: not 0. A number for gu_beat_end(). */
static inline int gu_beat_begin(struct gu_beats *b, uint64_t now, const char *what)
{
	for (int i = 0; i < GU_BEATS; i++) {
		uint64_t none = 0;
		if (gu_load_relaxed(&b->since[i]) || !gu_cas_seqcst(&b->since[i], &none, now))
			continue;
		gu_store_relaxed(&b->what[i], what);
		return i;
	}
	return -1;
}

static inline void gu_beat_end(struct gu_beats *b, int i)
{
	if (i >= 0)
		gu_store_release(&b->since[i], 0);
}

#endif
