/* SPDX-License-Identifier: MIT */
/*
 * ahead.h - brings huge regions in before mutators reach them: the kernel clears 2 MiB in the first touch of one,
 * and a mutator would see that as a pause. One service thread per heap runs here; a mutator that outruns it
 * brings its region in itself.
 */
#ifndef GU_SPACE_AHEAD_H
#define GU_SPACE_AHEAD_H

#include "space/space.h"

/* Runs until gu_ahead_quit(). */
void gu_ahead_run(struct gu_space *space);
void gu_ahead_quit(struct gu_space *space);

/* A mutator has entered the region before this one. */
void gu_ahead_ring(struct gu_space *space, size_t region);
/* Regions [from, to) are about to be purged: returns when none of them is being brought in. */
void gu_ahead_settle(struct gu_space *space, size_t from, size_t to);

/* Nothing is brought in around a fork; the child has no such thread until it starts one. */
void gu_ahead_fork_prepare(struct gu_space *space);
void gu_ahead_fork_parent(struct gu_space *space);
void gu_ahead_fork_child(struct gu_space *space);

#endif
