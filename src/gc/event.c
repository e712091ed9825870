/* SPDX-License-Identifier: MIT */
/* event.c - see event.h. */
#include "gc/event.h"

#include <errno.h>

#include "base/meta.h"
#include "gc/weak.h"

#define ROOM 256u    /* events; each time that they are told there are this many at most */
#define RESERVED 64u /* of these, for the collector's own: those of mutators may be many */

struct gu_events {
	gcuffd_event_fn *fn; /* guard: cycle_lock to read, and lock to change; so is the next */
	void *data;
	uint32_t on;         /* atomic; fn is not NULL */
	uint64_t cycle;      /* guard: collector */
	struct gu_lock lock; /* rank WAIT; guard of the rest */
	uint32_t first;
	uint32_t count;      /* atomic, changes under lock */
	uint64_t lost;       /* since one was queued */
	uint64_t lost_ns;    /* of stalls among them */
	struct gcuffd_event queue[ROOM];
};

static __thread const struct gcuffd_heap *telling __attribute__((tls_model("initial-exec"))); /* whose handler this thread is in */

static struct gu_events *events_of(const struct gcuffd_heap *h) { return gu_load_acquire(&h->events); }

static size_t length(void) { return gu_align_up(sizeof(struct gu_events), GU_PAGE); }

static struct gu_events *make(struct gcuffd_heap *h)
{
	struct gu_events *e = gu_meta_map(length());
	if (!e)
		return NULL;
	gu_lock_init(&e->lock, GU_RANK_WAIT);
	gu_store_release(&h->events, e); /* pairs with events_of() */
	return e;
}

int gu_event_set(struct gcuffd_heap *h, gcuffd_event_fn *fn, void *data)
{
	struct gu_events *e = events_of(h);
	gu_assert(gu_lock_held(&h->cycle_lock));
	if (!e && !fn)
		return 0;
	if (!e && !(e = make(h)))
		return -ENOMEM;
	gu_lock(&e->lock);
	e->fn = fn;
	e->data = data;
	e->lost = e->lost_ns = 0;
	gu_store_relaxed(&e->count, 0);
	gu_store_relaxed(&e->on, fn != NULL);
	gu_unlock(&e->lock);
	return 0;
}

const struct gcuffd_heap *gu_event_telling(void) { return telling; }

bool gu_event_wanted(const struct gcuffd_heap *h)
{
	const struct gu_events *e = events_of(h);
	return e && gu_load_relaxed(&e->on);
}

/* ---- queueing ---- */

void gu_event_cycle(struct gcuffd_heap *h, uint64_t number)
{
	struct gu_events *e = events_of(h);
	if (e)
		e->cycle = number;
}

static bool is_mutators(const struct gcuffd_event *event) { return event->kind == GCUFFD_EVENT_STALL; }

static void lose_locked(struct gu_events *e, const struct gcuffd_event *event)
{
	e->lost++;
	if (is_mutators(event))
		e->lost_ns += event->end_ns - event->begin_ns;
}

static void queue_locked(struct gcuffd_heap *h, struct gu_events *e, const struct gcuffd_event *event)
{
	if (e->count >= ROOM - (is_mutators(event) ? RESERVED : 0)) {
		lose_locked(e, event);
		return;
	}
	struct gcuffd_event *to = &e->queue[(e->first + e->count) % ROOM];
	*to = *event;
	to->size = sizeof(*to);
	to->heap = h;
	to->cycle = is_mutators(event) ? 0 : e->cycle;
	to->lost = e->lost;
	to->lost_ns = e->lost_ns;
	e->lost = e->lost_ns = 0;
	gu_store_relaxed(&e->count, e->count + 1);
}

void gu_event_put(struct gcuffd_heap *h, const struct gcuffd_event *event)
{
	struct gu_events *e = events_of(h);
	if (!e || !gu_load_relaxed(&e->on))
		return;
	gu_lock(&e->lock);
	if (e->fn)
		queue_locked(h, e, event);
	gu_unlock(&e->lock);
}

/* ---- telling ---- */

static bool take(struct gu_events *e, struct gcuffd_event *event)
{
	gu_lock(&e->lock);
	bool any = e->count;
	if (any) {
		*event = e->queue[e->first];
		e->first = (e->first + 1) % ROOM;
		gu_store_relaxed(&e->count, e->count - 1);
	}
	gu_unlock(&e->lock);
	return any;
}

bool gu_event_waits(const struct gcuffd_heap *h)
{
	const struct gu_events *e = events_of(h);
	return e && gu_load_relaxed(&e->count);
}

/* .inv.event.told: nobody waits for what the collector has yet to do. */
static bool may_tell(const struct gcuffd_heap *h)
{
	uint32_t weak = gu_load_relaxed(&h->weak_state);
	return gu_lock_held(&h->cycle_lock) && !h->stop.under_way && (weak == GU_WEAK_OPEN || weak == GU_WEAK_DECIDED);
}

/* A handler that takes its time is not kept busy for ever by mutators who wait for the end of this. */
void gu_event_tell(struct gcuffd_heap *h)
{
	struct gu_events *e = events_of(h);
	struct gcuffd_event event;
	if (!e || !gu_load_relaxed(&e->count))
		return;
	gu_assert(may_tell(h));
	telling = h;
	for (unsigned n = 0; n < ROOM && take(e, &event); n++)
		e->fn(e->data, &event); /* there is one: without, nothing is queued */
	telling = NULL;
}

/* ---- ends ---- */

/* The handler is the child's, too. What is queued was the parent's. */
void gu_event_forked(struct gcuffd_heap *h)
{
	struct gu_events *e = events_of(h);
	if (!e)
		return;
	gu_lock_init(&e->lock, GU_RANK_WAIT);
	e->count = 0;
	e->lost = e->lost_ns = e->cycle = 0;
}

void gu_event_destroy(struct gcuffd_heap *h)
{
	gu_meta_unmap(h->events, length());
	h->events = NULL;
}
