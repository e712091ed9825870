/* SPDX-License-Identifier: MIT */
/*
 * ages.h - what is known of the use of pages: for how long they were not touched, and how many were lately. Any thread; it only reads, and what
 * changes meanwhile it may take for what it was.
 *
 * A page is tried by taking it out. Out, its age is the time since then; back, the time since its touch was seen, up to a second late. It
 * counts as touched for the window after its last touch, though it is being tried again, and while the hand passes over it because it is touched often
 * (.inv.cold.heat).
 */
#ifndef GU_SPACE_AGES_H
#define GU_SPACE_AGES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define GU_AGES 8

struct gcuffd_arena;
struct gu_space;

struct gu_ages {
	/* pages */
	uint64_t resident, out;
	uint64_t touched, untouched; /* known to be, within the window */
	uint64_t by_age[GU_AGES];    /* younger than 1 s, 4 s, 16 s, ...; the last: older */
	uint64_t oldest_ns;          /* of those that are out */
};

/* Of the blocks of an arena, or of all. */
void gu_ages_read(const struct gu_space *space, const struct gcuffd_arena *arena, uint64_t now_ns, uint64_t window_ns, struct gu_ages *ages);
/* Pages that are in use, as far as can be told. */
uint64_t gu_ages_estimate(const struct gu_ages *ages);

#endif
