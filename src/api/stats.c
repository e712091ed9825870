/* SPDX-License-Identifier: MIT */
/* stats.c - statistics, collecting and trimming on request. Any thread. */
#include <errno.h>
#include <string.h>

#include "api/api.h"
#include "base/meta.h"
#include "ctl/service.h"
#include "gc/final.h"
#include "gc/mutator.h"
#include "gc/stop.h"

int gcuffd_heap_stats(struct gcuffd_heap *h, struct gcuffd_stats *out)
{
	struct gcuffd_stats s;
	struct gu_final_counts finals;
	if (out->size < 2 * sizeof(uint64_t) || out->size > 4096)
		return -EINVAL;
	struct gu_thread *t = gu_enter();
	gu_service_stats(h, &s);
	gu_final_counts(h, &finals);
	gu_leave(t);
	s.size = out->size;
	s.version = GCUFFD_STATS_VERSION;
	s.rung = (uint32_t)gu_load_relaxed(&h->rung);
	s.resident_bytes = gu_space_resident(&h->space);
	s.metadata_bytes = s.resident_bytes - gu_load_relaxed(&h->space.resident);
	s.allocated_bytes = gu_load_relaxed(&h->allocated);
	s.stall_ns = gu_load_relaxed(&h->stall_ns);
	s.pins = gu_load_relaxed(&h->npins);
	s.pinned_bytes = gu_load_relaxed(&h->space.pages.pinned) * GU_PAGE;
	s.disabled = gu_load_relaxed(&h->disabled);
	s.finalizers = finals.set;
	s.finalizers_ready = finals.ready;
	s.finalizers_taken = finals.taken;
	s.finalizers_waiting = finals.waiting;
	memcpy(out, &s, gu_min(out->size, sizeof(s)));
	return 0;
}

int gcuffd_collect(struct gcuffd_heap *h) { return gu_service_collect(h, GCUFFD_REASON_ASKED, false); }

/* .inv.cycle.disabled: whoever runs a cycle looks once it has the lock. */
int gcuffd_collection_disable(struct gcuffd_heap *h)
{
	if (gu_world_is_closed_by_caller())
		return -EBUSY;
	gu_add_seqcst(&h->disabled, 1);
	gu_heap_lock_cycles(h);
	gu_unlock(&h->cycle_lock);
	return 0;
}

int gcuffd_collection_enable(struct gcuffd_heap *h)
{
	uint32_t was = gu_load_seqcst(&h->disabled);
	do {
		if (!was)
			return -EINVAL;
	} while (!gu_cas_seqcst(&h->disabled, &was, was - 1));
	if (was == 1)
		gu_service_enabled(h);
	return 0;
}

int gcuffd_trim(struct gcuffd_heap *h)
{
	struct gu_thread *t = gu_enter();
	for (unsigned i = 0; i <= GU_ARENAS; i++) {
		struct gcuffd_arena *a = gu_load_acquire(&h->arenas[i]);
		if (a)
			gu_arena_tidy(a, GU_TIDY_PURGE);
	}
	gu_leave(t);
	return 0;
}
