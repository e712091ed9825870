/* SPDX-License-Identifier: MIT */
/* stats.c - statistics, collecting and trimming on request. Any thread. */
#include <errno.h>
#include <string.h>

#include "api/api.h"
#include "base/meta.h"
#include "ctl/service.h"
#include "gc/mutator.h"

int gcuffd_heap_stats(struct gcuffd_heap *h, struct gcuffd_stats *out)
{
	struct gcuffd_stats s;
	if (out->size < 2 * sizeof(uint64_t) || out->size > 4096)
		return -EINVAL;
	struct gu_thread *t = gu_enter();
	gu_service_stats(h, &s);
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
	memcpy(out, &s, gu_min(out->size, sizeof(s)));
	return 0;
}

int gcuffd_collect(struct gcuffd_heap *h) { return gu_service_collect(h, GCUFFD_REASON_ASKED, false); }

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
