/* SPDX-License-Identifier: MIT */
/*
 * markwork.c - sharing gray objects between markers, and knowing when none are left.
 *
 * active counts the markers that have work or may make some. A marker that runs dry takes a packet, or
 * leaves active and waits; when active is 0 and no packet is full, nothing is gray anywhere
 * (.inv.mark.done). Workers join while the drain is open and as many as allowed take part.
 */
#include <errno.h>
#include <string.h>

#include "base/meta.h"
#include "gc/final.h"
#include "gc/marker.h"
#include "gc/weak.h"
#include "sys/os.h"

#define SPINS 2000u /* at most some 100 us, depending on the processor */

static void ring(struct gu_mark *mark)
{
	gu_add_seqcst(&mark->bell, 1);
	if (gu_load_seqcst(&mark->asleep))
		gu_os->futex_wake(&mark->bell, INT32_MAX);
}

static size_t batch_len(void) { return gu_align_up(sizeof(struct gu_batch), GU_PAGE); }

static struct gu_packet *take_empty_locked(struct gu_mark *mark)
{
	struct gu_packet *p = mark->empty;
	if (p)
		mark->empty = p->next;
	else if (mark->batches && mark->fresh < GU_BATCH)
		p = &mark->batches->packets[mark->fresh++];
	return p;
}

/* What was left of the batch before it, if another marker added one meanwhile, waits for the end of the cycle. */
static struct gu_packet *add_batch(struct gu_mark *mark)
{
	struct gu_batch *b = gu_meta_map(batch_len());
	if (!b)
		return NULL;
	gu_lock(&mark->lock);
	b->next = mark->batches;
	mark->batches = b;
	mark->fresh = 1;
	gu_add_relaxed(&mark->packet_bytes, batch_len());
	gu_unlock(&mark->lock);
	return &b->packets[0];
}

static struct gu_packet *take_empty(struct gu_mark *mark)
{
	gu_lock(&mark->lock);
	struct gu_packet *p = take_empty_locked(mark);
	gu_unlock(&mark->lock);
	return p ? p : add_batch(mark);
}

size_t gu_mark_packets(const struct gcuffd_heap *h)
{
	const struct gu_mark *mark = h->mark;
	return mark ? gu_max(gu_load_relaxed(&mark->packets_last), gu_load_relaxed(&mark->packet_bytes)) : 0;
}

void gu_mark_trim(struct gcuffd_heap *h)
{
	struct gu_mark *mark = h->mark;
	gu_lock(&mark->lock);
	GU_INVARIANT(!mark->full, ".inv.mark.done");
	struct gu_batch *b = mark->batches;
	mark->batches = NULL;
	mark->empty = NULL;
	gu_store_relaxed(&mark->packets_last, gu_load_relaxed(&mark->packet_bytes));
	gu_store_relaxed(&mark->packet_bytes, 0);
	gu_unlock(&mark->lock);
	for (struct gu_batch *next; b; b = next) {
		next = b->next;
		gu_meta_unmap(b, batch_len());
	}
}

/* The oldest part of the stack, which tends to hold the largest subtrees. false: no memory. */
static bool give_packet(struct gu_marker *m)
{
	struct gu_mark *mark = m->heap->mark;
	struct gu_packet *p = take_empty(mark);
	if (!p)
		return false;
	p->count = (uint32_t)gu_min(m->depth / 2, GU_PACKET);
	memcpy(p->gray, m->stack, p->count * sizeof(p->gray[0]));
	m->depth -= p->count;
	memmove(m->stack, m->stack + p->count, m->depth * sizeof(m->stack[0]));
	gu_lock(&mark->lock);
	p->next = mark->full;
	mark->full = p;
	gu_unlock(&mark->lock);
	ring(mark);
	return true;
}

void gu_marker_share(struct gu_marker *m)
{
	if (!gu_load_relaxed(&m->heap->mark->full))
		give_packet(m);
}

void gu_marker_push_full(struct gu_marker *m, struct gu_gray gray)
{
	if (gu_later_takes(m, gray))
		return;
	if (give_packet(m))
		m->stack[m->depth++] = gray;
	else
		gu_store_relaxed(&m->heap->mark->overflow, 1); /* .inv.mark.overflow */
}

static bool take_full_locked(struct gu_mark *mark, struct gu_marker *m)
{
	struct gu_packet *p = mark->full;
	if (!p)
		return false;
	mark->full = p->next;
	memcpy(m->stack, p->gray, p->count * sizeof(p->gray[0]));
	m->depth = p->count;
	p->next = mark->empty;
	mark->empty = p;
	return true;
}

/* To sleep and to be woken costs two processors more than the next packet takes to come, mostly. */
static void wait_for_bell(struct gu_mark *mark, uint32_t bell)
{
	for (unsigned i = 0; i < SPINS; i++) {
		if (gu_load_relaxed(&mark->bell) != bell)
			return;
		gu_spin_hint();
	}
	gu_add_seqcst(&mark->asleep, 1); /* pairs with ring() */
	gu_os->futex_wait(&mark->bell, bell, -1);
	gu_sub_seqcst(&mark->asleep, 1);
}

/* Returns when there is a packet (true), or nothing is left (false). The caller is active before and, if true, after. */
static bool wait_for_work(struct gu_mark *mark, struct gu_marker *m)
{
	gu_lock(&mark->lock);
	mark->active--;
	for (;;) {
		if (take_full_locked(mark, m)) {
			mark->active++;
			break;
		}
		if (!mark->active) {
			gu_unlock(&mark->lock);
			ring(mark);
			return false;
		}
		uint32_t bell = gu_load_seqcst(&mark->bell);
		gu_add_seqcst(&mark->waiting, 1);
		gu_unlock(&mark->lock);
		wait_for_bell(mark, bell);
		gu_sub_seqcst(&mark->waiting, 1);
		gu_lock(&mark->lock);
	}
	gu_unlock(&mark->lock);
	return true;
}

static void drain_with(struct gu_mark *mark, struct gu_marker *m)
{
	do {
		gu_marker_run(m);
	} while (wait_for_work(mark, m));
}

static uint64_t bytes_marked(const struct gu_mark *mark)
{
	uint64_t n = 0;
	for (unsigned i = 0; i < mark->n; i++)
		n += gu_load_relaxed(&mark->markers[i].bytes);
	return n;
}

/* Out of memory for packets: whatever is marked is scanned again until nothing was dropped. */
static void rescan_marked(struct gcuffd_heap *h)
{
	size_t pages = gu_load_acquire(&h->space.top) >> GU_PAGE_SHIFT;
	for (size_t p = 0; p < pages; p++) {
		gu_mark_page(gu_mark_first(h), p);
		gu_marker_run(gu_mark_first(h));
	}
	gu_weak_mark_all(h, gu_mark_first(h));
	gu_marker_run(gu_mark_first(h));
	gu_final_scan_all(gu_mark_first(h));
}

static void set_open(struct gu_mark *mark, bool open, unsigned allowed)
{
	gu_lock(&mark->lock);
	mark->active += open ? 1 : 0;
	gu_store_relaxed(&mark->allowed, allowed);
	gu_store_seqcst(&mark->open, open);
	gu_unlock(&mark->lock);
	gu_add_seqcst(&mark->bell, 1);
	if (open && allowed > 1) /* idle workers don't count as waiting */
		gu_os->futex_wake(&mark->bell, INT32_MAX);
}

/* Workers have left when active is 0 and the drain is closed: none can join any more. */
void gu_mark_drain(struct gcuffd_heap *h, enum gu_drain how)
{
	struct gu_mark *mark = h->mark;
	uint64_t before = bytes_marked(mark);
	bool in_stop = how != GU_DRAIN_BESIDE, hurry = in_stop || gu_load_relaxed(&h->stalled);
	mark->waits = how != GU_DRAIN_STOPPED;
	if (mark->waits && gu_swap_acq_rel(&mark->left, 0))
		gu_store_relaxed(&mark->later, 1);
	do {
		set_open(mark, true, hurry ? mark->n : mark->background);
		if (!hurry && gu_load_seqcst(&h->stalled)) /* who came to wait while it was closed hurried nobody */
			gu_mark_hurry(h);
		drain_with(mark, &mark->markers[0]);
		set_open(mark, false, 0);
		if (gu_swap_acq_rel(&mark->overflow, 0)) {
			rescan_marked(h);
			gu_store_relaxed(&mark->later, 1);
		}
	} while (gu_later_push(&mark->markers[0]));
	if (in_stop)
		mark->bytes_in_stop += bytes_marked(mark) - before;
}

bool gu_mark_is_left(const struct gcuffd_heap *h) { return gu_load_relaxed(&h->mark->left); }

static bool may_join_locked(const struct gu_mark *mark, unsigned index)
{
	return mark->open && mark->active && index < gu_load_relaxed(&mark->allowed);
}

void gu_mark_work(struct gcuffd_heap *h, unsigned index)
{
	struct gu_mark *mark = h->mark;
	gu_lock(&mark->lock);
	while (!mark->quit) {
		uint32_t bell = gu_load_seqcst(&mark->bell);
		if (may_join_locked(mark, index)) {
			mark->active++;
			gu_unlock(&mark->lock);
			drain_with(mark, &mark->markers[index]);
			gu_lock(&mark->lock);
			continue;
		}
		bool want = mark->open && index < gu_load_relaxed(&mark->allowed);
		if (want) {
			gu_add_seqcst(&mark->waiting, 1);
			gu_add_seqcst(&mark->asleep, 1);
		}
		gu_unlock(&mark->lock);
		gu_os->futex_wait(&mark->bell, bell, -1);
		gu_lock(&mark->lock);
		if (want) {
			gu_sub_seqcst(&mark->asleep, 1);
			gu_sub_seqcst(&mark->waiting, 1);
		}
	}
	gu_unlock(&mark->lock);
}

void gu_mark_quit(struct gcuffd_heap *h)
{
	gu_lock(&h->mark->lock);
	h->mark->quit = true;
	gu_unlock(&h->mark->lock);
	gu_add_seqcst(&h->mark->bell, 1);
	gu_os->futex_wake(&h->mark->bell, INT32_MAX);
}

void gu_mark_hurry(struct gcuffd_heap *h)
{
	if (!h->mark || !gu_load_seqcst(&h->mark->open))
		return;
	gu_store_relaxed(&h->mark->allowed, h->mark->n);
	gu_add_seqcst(&h->mark->bell, 1);
	gu_os->futex_wake(&h->mark->bell, INT32_MAX);
}

void gu_mark_forked(struct gcuffd_heap *h)
{
	struct gu_mark *mark = h->mark;
	gu_lock_init(&mark->lock, GU_RANK_MARK);
	mark->active = mark->waiting = mark->asleep = 0;
	mark->open = mark->quit = false;
}

void gu_mark_set_background(struct gcuffd_heap *h, unsigned n) { h->mark->background = n; }

void gu_mark_check(struct gcuffd_heap *h)
{
	struct gu_mark *mark = h->mark;
	gu_lock(&mark->lock);
	GU_INVARIANT(!mark->full && !mark->active && !mark->open, ".inv.mark.done");
	for (unsigned i = 0; i < mark->n; i++)
		GU_INVARIANT(!mark->markers[i].depth && !mark->markers[i].nahead && mark->markers[i].settled == mark->markers[i].queued, ".inv.mark.done");
	gu_unlock(&mark->lock);
}
