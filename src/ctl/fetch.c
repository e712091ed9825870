/* SPDX-License-Identifier: MIT */
/* fetch.c - see fetch.h. */
#include "ctl/fetch.h"

#include <errno.h>

#include "base/meta.h"
#include "ctl/thermostat.h"
#include "gc/restore.h"

#define AT_ONCE 16u

int gu_fetch_begin(struct gu_fetch *f, const struct gu_tier_ask *ask)
{
	if (f->offsets)
		return -EBUSY;
	*f = (struct gu_fetch){.offsets = ask->order, .count = ask->count};
	return 0;
}

void gu_fetch_end(struct gu_fetch *f)
{
	if (f->offsets)
		gu_meta_unmap(f->offsets, gu_align_up(f->count * sizeof(*f->offsets), GU_PAGE));
	*f = (struct gu_fetch){NULL, 0, 0};
}

static bool has_room(const struct gcuffd_heap *h)
{
	uint64_t target = gu_tier_report(h).target;
	return target == GU_NO_TARGET || gu_tier_resident(h) < target;
}

bool gu_fetch_step(struct gcuffd_heap *h, struct gu_fetch *f)
{
	if (!f->offsets)
		return false;
	size_t end = gu_min(f->at + AT_ONCE, f->count);
	int err = has_room(h) ? 0 : -EAGAIN;
	for (; f->at < end && !err; f->at++)
		if (f->offsets[f->at] < h->space.size)
			err = gu_restore_early(h->restore, f->offsets[f->at] >> GU_PAGE_SHIFT);
	if (err || f->at == f->count)
		gu_fetch_end(f);
	return f->offsets;
}
