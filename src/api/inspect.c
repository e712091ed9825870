/* SPDX-License-Identifier: MIT */
/* inspect.c - looking into a heap. Any thread; what needs a stop is done by the collector, which makes it. */
#include <errno.h>

#include "api/api.h"
#include "ctl/service.h"
#include "gc/stop.h"
#include "gc/walk.h"

static int stop(struct gcuffd_heap *h)
{
	return gu_world_stop(gu_heap_is(h, GCUFFD_PROCESS_ROOTS), h->options.stop_timeout_ms * 1000000ull);
}

/* ---- every object ---- */

struct walk {
	gcuffd_walk_fn *visit;
	void *data;
};

static int walk(struct gcuffd_heap *h, void *arg)
{
	const struct walk *w = arg;
	int result = stop(h);
	if (result)
		return result;
	result = gu_walk(h, w->visit, w->data);
	gu_world_resume();
	return result;
}

int gcuffd_heap_walk(struct gcuffd_heap *h, gcuffd_walk_fn *visit, void *data)
{
	struct walk w = {visit, data};
	return visit ? gu_service_run(h, walk, &w) : -EINVAL;
}

int gcuffd_heap_histogram(struct gcuffd_heap *h, struct gcuffd_count *counts, size_t max, size_t *count)
{
	return gu_walk_count(h, counts, max, count);
}
