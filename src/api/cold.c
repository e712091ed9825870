/* SPDX-License-Identifier: MIT */
/* cold.c - memory that is taken out and brought back on request. Any thread. */
#include <errno.h>
#include <string.h>

#include "api/api.h"
#include "base/meta.h"
#include "ctl/evictor.h"
#include "ctl/service.h"
#include "gc/mutator.h"
#include "gc/restore.h"
#include "space/ages.h"
#include "sys/os.h"

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
	int err = 0;
	if (a.from < a.to && !(err = gu_service_start(h, true)))
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

static void read_causes(const struct gu_cold_counts *c, struct gcuffd_cold_stats *s)
{
	uint64_t *const by[GU_COLD_CAUSES] = {&s->read_pages, &s->write_pages, &s->collector_pages, &s->ahead_pages, &s->early_pages, &s->warmed_pages,
					      &s->exempted_pages, &s->undone_pages};
	uint64_t *const stays[GU_COLD_STAYS] = {&s->left_pinned_pages, &s->left_shared_pages, &s->left_locked_pages, &s->left_failed_pages,
						&s->left_touched_pages, &s->left_exempt_pages, &s->left_no_room_pages, &s->left_unstored_pages};
	for (int i = 0; i < GU_COLD_CAUSES; i++)
		*by[i] = gu_load_relaxed(&c->by[i]);
	for (int i = 0; i < GU_COLD_STAYS; i++) {
		*stays[i] = gu_load_relaxed(&c->stays[i]);
		s->busy_pages += i < GU_COLD_STAYS_BUSY ? *stays[i] : 0;
	}
	s->at_once_pages = gu_load_relaxed(&c->at_once);
	s->from_park_pages = gu_load_relaxed(&c->from_park);
	s->from_store_pages = gu_load_relaxed(&c->from_store);
	s->from_image_pages = gu_load_relaxed(&c->from_image);
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
	s.dropped_pages = gu_load_relaxed(&c->dropped);
	s.bounced_pages = gu_load_relaxed(&c->bounced);
	s.poisoned_pages = gu_load_relaxed(&c->poisoned);
	s.summary_bytes = gu_load_relaxed(&h->space.cold.slab.bytes);
	s.followed_pages = gu_load_relaxed(&c->followed);
	s.touched_pages = gu_load_relaxed(&c->touched);
	s.refaulted_pages = gu_load_relaxed(&c->refaulted);
	s.touch_ns = gu_load_relaxed(&c->touch_ns);
	s.watched_regions = gu_load_relaxed(&c->windows);
	s.accessed_pages = gu_load_relaxed(&c->accessed);
	struct gu_tier_report tier = gu_tier_report(h);
	s.target_bytes = tier.target;
	s.probation_ns = tier.probation_ns;
	s.backoffs = tier.backoffs;
	s.peeked_pages = gu_load_relaxed(&c->peeked);
	s.unread_summaries = gu_load_relaxed(&c->unread);
	read_causes(c, &s);
	struct gu_thread *t = gu_enter();
	read_store(h, &s);
	gu_leave(t);
	memcpy(out, &s, gu_min(out->size, sizeof(s)));
	return 0;
}

/* ---- a recorded order ---- */

/* Whose resolver's state stays while the heap is used. */
static int need_restore(struct gcuffd_heap *h, struct gu_restore **re)
{
	int err = h->space.cold.on ? gu_service_start(h, true) : -EOPNOTSUPP;
	*re = err ? NULL : h->restore;
	return err ? err : *re ? 0 : -EOPNOTSUPP;
}

int gcuffd_order_begin(struct gcuffd_heap *h)
{
	struct gu_restore *re;
	int err = need_restore(h, &re);
	if (err)
		return err;
	struct gu_thread *t = gu_enter();
	err = gu_order_begin(&re->order);
	gu_leave(t);
	return err;
}

int gcuffd_order_end(struct gcuffd_heap *h, uint64_t *offsets, size_t max, size_t *count)
{
	struct gu_restore *re;
	int err = need_restore(h, &re);
	return err ? err : gu_order_end(&re->order, offsets, max, count);
}

int gcuffd_order_prefetch(struct gcuffd_heap *h, const uint64_t *offsets, size_t count)
{
	struct gu_restore *re;
	int err = need_restore(h, &re);
	if (!err && count > GU_ORDER_MOST)
		err = -EINVAL;
	if (err || !count)
		return err;
	size_t bytes = gu_align_up(count * sizeof(*offsets), GU_PAGE);
	struct gu_tier_ask a = {.what = GU_TIER_FETCH, .count = count};
	struct gu_thread *t = gu_enter();
	a.order = gu_meta_map(bytes);
	gu_leave(t);
	if (!a.order)
		return -ENOMEM;
	memcpy(a.order, offsets, count * sizeof(*offsets)); /* may fault */
	err = gu_evictor_ask(h, &a);
	t = gu_enter();
	if (err)
		gu_meta_unmap(a.order, bytes);
	gu_leave(t);
	return err;
}

/* ---- what is known of pages ---- */

_Static_assert(GU_AGES == GCUFFD_AGES, "the public header's");

static void fill_set(const struct gu_ages *a, struct gcuffd_working_set *s)
{
	s->resident_bytes = a->resident << GU_PAGE_SHIFT;
	s->out_bytes = a->out << GU_PAGE_SHIFT;
	s->touched_bytes = a->touched << GU_PAGE_SHIFT;
	s->untouched_bytes = a->untouched << GU_PAGE_SHIFT;
	s->estimate_bytes = gu_ages_estimate(a) << GU_PAGE_SHIFT;
	s->oldest_ns = a->oldest_ns;
	for (size_t i = 0; i < GU_AGES; i++)
		s->age_bytes[i] = a->by_age[i] << GU_PAGE_SHIFT;
}

static uint64_t count_refaults(struct gcuffd_heap *h, const struct gcuffd_arena *arena)
{
	uint64_t n = 0;
	struct gu_thread *t = gu_enter(); /* no arena ends meanwhile */
	for (unsigned i = 0; i <= GU_ARENAS; i++) {
		const struct gcuffd_arena *a = gu_load_acquire(&h->arenas[i]);
		n += a && (!arena || a == arena) ? gu_load_relaxed(&a->refaulted) : 0;
	}
	gu_leave(t);
	return n;
}

int gcuffd_working_set(struct gcuffd_heap *h, struct gcuffd_arena *arena, unsigned window_ms, struct gcuffd_working_set *out)
{
	struct gcuffd_working_set s = {.size = out->size};
	struct gu_ages ages;
	uint64_t now = gu_os->clock_ns();
	if (out->size < 2 * sizeof(uint64_t) || out->size > 4096)
		return -EINVAL;
	if (!h->space.cold.on)
		return -EOPNOTSUPP;
	gu_ages_read(&h->space, arena, now, window_ms * 1000000ull, &ages);
	s.refaulted_pages = count_refaults(h, arena);
	fill_set(&ages, &s);
	memcpy(out, &s, gu_min(out->size, sizeof(s)));
	return 0;
}
