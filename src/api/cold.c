/* SPDX-License-Identifier: MIT */
/* cold.c - memory that is taken out and brought back on request. Any thread. */
#include <errno.h>
#include <string.h>

#include "api/api.h"
#include "ctl/evictor.h"
#include "ctl/service.h"
#include "gc/mutator.h"

/* Whole pages within, to take out; whole pages around, to bring back. */
static int ask(struct gcuffd_heap *h, enum gu_tier_what what, const void *start, size_t size, size_t *out)
{
	uintptr_t base = h->space.base, from = start ? (uintptr_t)start : base, end = start ? from + size : base + h->space.size;
	if (!h->space.cold.on)
		return -EOPNOTSUPP;
	if (from < base || end < from || end > base + h->space.size)
		return -EINVAL;
	struct gu_tier_ask a = {.what = what};
	a.from = gu_space_page(&h->space, what == GU_TIER_COOL ? gu_align_up(from, GU_PAGE) : from);
	a.to = gu_space_page(&h->space, what == GU_TIER_COOL ? end : gu_align_up(end, GU_PAGE));
	int err = gu_service_start(h, true);
	if (!err && a.from < a.to)
		err = gu_evictor_ask(h, &a);
	if (out)
		*out = a.out;
	return err;
}

int gcuffd_cool(struct gcuffd_heap *h, const void *start, size_t size, size_t *taken) { return ask(h, GU_TIER_COOL, start, size, taken); }
int gcuffd_warm(struct gcuffd_heap *h, const void *start, size_t size) { return ask(h, GU_TIER_WARM, start, size, NULL); }

int gcuffd_arena_set_hot(struct gcuffd_arena *a, int hot)
{
	gu_store_relaxed(&a->hot, hot != 0);
	return 0;
}

static void read_store(struct gcuffd_heap *h, struct gcuffd_cold_stats *s)
{
	struct gu_store_counts n = {0};
	struct gu_store *store = gu_load_acquire(&h->space.cold.store);
	if (store)
		gu_store_counts(store, &n);
	s->store_pages = n.pages;
	s->store_same_pages = n.same;
	s->store_memory_bytes = n.memory_bytes;
	s->store_file_bytes = n.file_bytes;
	s->store_reads = n.reads;
	s->store_write_errors = n.writes_failed;
	s->store_read_errors = n.reads_failed;
}

int gcuffd_cold_stats(struct gcuffd_heap *h, struct gcuffd_cold_stats *out)
{
	const struct gu_cold_counts *c = &h->space.cold.counts;
	struct gcuffd_cold_stats s = {.size = out->size};
	if (out->size < 2 * sizeof(uint64_t) || out->size > 4096)
		return -EINVAL;
	s.out_pages = gu_load_relaxed(&h->space.cold.nout);
	s.evicted_pages = gu_load_relaxed(&c->evicted);
	s.restored_pages = gu_load_relaxed(&c->restored);
	s.collector_pages = gu_load_relaxed(&c->restored_by_collector);
	s.dropped_pages = gu_load_relaxed(&c->dropped);
	s.bounced_pages = gu_load_relaxed(&c->bounced);
	s.busy_pages = gu_load_relaxed(&c->busy);
	s.poisoned_pages = gu_load_relaxed(&c->poisoned);
	s.summary_bytes = gu_load_relaxed(&h->space.cold.slab.bytes);
	struct gu_thread *t = gu_enter();
	read_store(h, &s);
	gu_leave(t);
	memcpy(out, &s, gu_min(out->size, sizeof(s)));
	return 0;
}
