/* SPDX-License-Identifier: MIT */
/*
 * cycle.c - the cycle, as one function; each step is a mechanism of gc/. Mutators run but for the two stops.
 * A cycle that is given up leaves every object alive: marks are cleared when the next begins.
 */
#include "ctl/cycle.h"

#include <errno.h>

#include "ctl/pacer.h"
#include "ctl/phase.h"
#include "gc/accessed.h"
#include "gc/final.h"
#include "gc/mark.h"
#include "gc/roots.h"
#include "gc/stop.h"
#include "gc/track.h"
#include "gc/verify.h"
#include "gc/weak.h"

#define ROUNDS_MAX 4
#define READS_MOST 8      /* of files between two stops; then the cycle is put off */
#define LISTS_MOST 100    /* of a verified heap's roots, while modules come and go */
#define ENOUGH_PAGES 256u /* as many dirty pages are left to the remark */

_Static_assert(ROUNDS_MAX <= GCUFFD_ROUNDS, "statistics have room for all rounds");

/* From here on freed cells wait and no block is released (.inv.block.no-release); old marks are gone. */
static int open_window(struct gcuffd_heap *h, struct gu_cycle *c)
{
	c->allocated_before = gu_load_relaxed(&h->allocated);
	gu_store_seqcst(&h->phase, GU_PHASE_WINDOW);
	int err = gu_world_quiesce_for(h);
	if (err)
		return err;
	gu_mark_clear(h);
	gu_mark_cards_drop(h);
	return 0;
}

/* Back to IDLE; whoever still marks new cells is done before the next cycle clears marks. */
static void close_window(struct gcuffd_heap *h)
{
	gu_weak_state_set(h, GU_WEAK_OPEN); /* before there are new objects without a mark */
	gu_store_seqcst(&h->phase, GU_PHASE_IDLE);
}

static int arm(struct gcuffd_heap *h, struct gu_cycle *c)
{
	struct gu_track_counts n = {0, 0};
	int err = gu_roots_begin(h, !c->in_stop);
	if (!err && !c->in_stop)
		err = gu_track_arm(h, &n);
	c->pages_scanned += n.scanned;
	return err;
}

/* The stacks of now, and black allocation from here on. */
static int first_stop(struct gcuffd_heap *h, struct gu_cycle *c)
{
	if (h->verifier)
		gu_verify_list(h);
	int err = gu_world_stop_for(h);
	if (err)
		return err;
	gu_mark_ahead(h);
	gu_store_seqcst(&h->phase, GU_PHASE_MARK);
	gu_roots_stacks(h, gu_mark_first(h));
	if (h->verifier)
		c->wrong += gu_verify_begin(h);
	c->stop1_ns = gu_world_resume_for(h);
	return 0;
}

/* Roots, but for a fault that is planted. */
static void mark_finals(struct gcuffd_heap *h)
{
	if (!(h->options.debug & GCUFFD_PLANT_SKIP_FINALIZER))
		gu_final_mark_all(h, gu_mark_first(h));
}

static void mark_concurrently(struct gcuffd_heap *h)
{
	if (h->options.debug & GCUFFD_PLANT_EARLY_SWEEP)
		gu_sweep_early(h);
	gu_roots_scan(h, gu_mark_first(h));
	mark_finals(h);
	gu_mark_drain(h, GU_DRAIN_BESIDE);
}

/* Rescans what was written, until little is left or it stops getting less. */
static int preclean(struct gcuffd_heap *h, struct gu_cycle *c)
{
	uint64_t last = UINT64_MAX;
	for (int round = 0; round < ROUNDS_MAX && !gu_heap_without(h, GU_WITHOUT_preclean); round++) {
		struct gu_track_counts n = {0, 0};
		int err = gu_track_collect(h, true, &n);
		if (err)
			return err;
		gu_mark_cards(h, gu_mark_first(h));
		n.dirty += gu_roots_preclean(h, gu_mark_first(h));
		gu_weak_mark_late(h, gu_mark_first(h));
		gu_final_mark_late(h, gu_mark_first(h));
		gu_mark_drain(h, GU_DRAIN_BESIDE);
		c->pages_scanned += n.scanned;
		c->dirty_pages += n.dirty;
		if (c->rounds < ROUNDS_MAX)
			c->round_dirty[c->rounds++] = n.dirty;
		gu_round_ends(h, c, n.dirty);
		if (n.dirty <= ENOUGH_PAGES || n.dirty > last / 4 * 3)
			break;
		last = n.dirty;
	}
	return 0;
}

static int remark(struct gcuffd_heap *h, struct gu_cycle *c, enum gu_drain how)
{
	struct gu_track_counts n = {0, 0};
	struct gu_mark_counts before, roots, after;
	gu_mark_counts(h, &before);
	c->stack_words += gu_roots_stacks(h, gu_mark_first(h));
	int err = gu_roots_remark(h, gu_mark_first(h));
	if (!err && !c->in_stop)
		err = gu_track_collect(h, false, &n);
	gu_mark_counts(h, &roots);
	if (!err)
		c->remark_dirty_pages += gu_mark_cards(h, gu_mark_first(h));
	c->pages_scanned += n.scanned;
	gu_weak_mark_late(h, gu_mark_first(h));
	if (c->in_stop)
		mark_finals(h);
	gu_final_mark_late(h, gu_mark_first(h));
	gu_mark_drain(h, how);
	gu_mark_counts(h, &after);
	c->remark_words += roots.words - before.words + after.card_words - before.card_words;
	c->block_words += after.block_words - before.block_words;
	return err || gu_mark_complete(h) ? err : -EIO;
}

/* Beside mutators, what has to be read in files for marking; and what they wrote meanwhile. */
static int read_on(struct gcuffd_heap *h, struct gu_cycle *c)
{
	gu_mark_drain(h, GU_DRAIN_BESIDE);
	return preclean(h, c);
}

/* The verifier's list is of the collector's moment, or it would look into the TLS of modules that have gone. */
static int list_roots(struct gcuffd_heap *h)
{
	unsigned lists = 0;
	int err;
	do {
		err = gu_roots_refresh(h);
		if (h->verifier)
			gu_verify_list(h);
	} while (!err && h->verifier && gu_roots_changed(h) && ++lists < LISTS_MOST);
	return err;
}

/* Once more if a module was loaded between the listing and the stop: only it may point to an object. Or if files have to be read, for which no stop waits. */
static int second_stop(struct gcuffd_heap *h, struct gu_cycle *c)
{
	unsigned reads = 0;
	bool left;
	int err;
	do {
		err = list_roots(h);
		if (!err)
			err = gu_world_stop_for(h);
		if (err)
			break;
		if (c->in_stop && gu_load_relaxed(&h->phase) == GU_PHASE_MARK)
			gu_mark_clear(h); /* again: nothing was tracked meanwhile, so nothing is known */
		if (c->in_stop)
			gu_mark_ahead(h);
		if (c->in_stop && h->verifier)
			c->wrong += gu_verify_begin(h);
		gu_store_seqcst(&h->phase, GU_PHASE_MARK);
		err = remark(h, c, c->in_stop ? GU_DRAIN_STOPPED_ALL : GU_DRAIN_STOPPED);
		left = !err && gu_mark_is_left(h);
		if (h->verifier && !err && !left)
			c->wrong += gu_verify_mark(h);
		gu_weak_state_set(h, err || left ? GU_WEAK_OPEN : GU_WEAK_MAYBE);
		c->stop2_ns = gu_max(c->stop2_ns, gu_world_resume_for(h));
		if (left)
			err = ++reads <= READS_MOST ? read_on(h, c) : -EAGAIN;
	} while (!err && (left || gu_roots_changed(h)));
	gu_weak_state_set(h, err ? GU_WEAK_OPEN : GU_WEAK_FINAL);
	return err;
}

static int verify_finals(struct gcuffd_heap *h, struct gu_cycle *c)
{
	int err = h->verifier ? gu_world_stop_for(h) : 0;
	if (!h->verifier || err)
		return err;
	c->wrong += gu_verify_final(h);
	gu_world_resume_for(h);
	return 0;
}

/* Objects with finalizers, of which some are not marked. Nobody else reaches those, nor what these lead to alone. */
static int keep_finals(struct gcuffd_heap *h, struct gu_cycle *c)
{
	gu_weak_clear_unmarked(h);
	gu_final_order(h);
	gu_mark_drain(h, GU_DRAIN_BESIDE);
	c->finals = gu_final_choose(h, h->options.debug & GCUFFD_PLANT_SKIP_FINALIZER);
	gu_mark_drain(h, GU_DRAIN_BESIDE);
	int err = gu_mark_complete(h) ? verify_finals(h, c) : -EIO;
	if (err)
		gu_final_abandon(h);
	return err;
}

/* Beside mutators: finalizers of what is dead are put on the queue. */
static int finalize(struct gcuffd_heap *h, struct gu_cycle *c)
{
	int err = gu_final_gather(h) ? keep_finals(h, c) : 0;
	gu_weak_state_set(h, err ? GU_WEAK_OPEN : GU_WEAK_DECIDED);
	if (err || !c->finals)
		return err;
	gu_final_publish(h);
	if (h->final_notify)
		h->final_notify(h->final_data);
	return 0;
}

static void sweep(struct gcuffd_heap *h, struct gu_cycle *c)
{
	struct gu_mark_counts counts;
	gu_later_check(h);
	gu_mark_counts(h, &counts);
	c->marked = counts.bytes;
	c->marked_in_stop = counts.bytes_in_stop;
	c->allocated_during = gu_load_relaxed(&h->allocated) - c->allocated_before;
	uint64_t ceiling = gu_load_relaxed(&h->allocated) + gu_pacer_ceiling(0); /* marking, which they outran, is over */
	gu_store_relaxed(&h->ceiling, gu_max(gu_load_relaxed(&h->ceiling), ceiling));
	gu_sweep(h, &c->swept);
	if (h->verifier) {
		c->wrong += gu_verify_swept(h);
		gu_verify_report(h);
	}
}

/* The first half, beside mutators. */
static int mark_beside(struct gcuffd_heap *h, struct gu_cycle *c)
{
	gu_phase_begins(h, c, GCUFFD_PHASE_FIRST_STOP);
	int err = first_stop(h, c);
	gu_phase_ends(h, c, GCUFFD_PHASE_FIRST_STOP);
	if (err)
		return err;
	gu_phase_begins(h, c, GCUFFD_PHASE_MARK);
	mark_concurrently(h);
	c->mark_ns = gu_phase_ends(h, c, GCUFFD_PHASE_MARK);
	gu_phase_begins(h, c, GCUFFD_PHASE_PRECLEAN);
	err = preclean(h, c);
	c->preclean_ns = gu_phase_ends(h, c, GCUFFD_PHASE_PRECLEAN);
	return err;
}

static int decide(struct gcuffd_heap *h, struct gu_cycle *c)
{
	gu_phase_begins(h, c, GCUFFD_PHASE_SECOND_STOP);
	int err = second_stop(h, c);
	gu_phase_ends(h, c, GCUFFD_PHASE_SECOND_STOP);
	if (err)
		return err;
	gu_phase_begins(h, c, GCUFFD_PHASE_FINALIZE);
	err = finalize(h, c);
	c->final_ns = gu_phase_ends(h, c, GCUFFD_PHASE_FINALIZE);
	return err;
}

int gu_cycle_run(struct gcuffd_heap *h, struct gu_cycle *c)
{
	gu_phase_begins(h, c, GCUFFD_PHASE_ARM);
	c->in_stop |= !gu_track_works(h) || gu_accessed_end_all(h); /* .inv.track.rwp */
	int err = open_window(h, c);
	if (!err)
		err = arm(h, c);
	c->arm_ns = gu_phase_ends(h, c, GCUFFD_PHASE_ARM);
	if (!err && !c->in_stop)
		err = mark_beside(h, c);
	if (!err)
		err = decide(h, c);
	gu_phase_begins(h, c, GCUFFD_PHASE_SWEEP);
	if (!err)
		sweep(h, c);
	close_window(h);
	gu_mark_trim(h);
	gu_track_disarm(h);
	c->sweep_ns = gu_phase_ends(h, c, GCUFFD_PHASE_SWEEP);
	return err;
}
