/* SPDX-License-Identifier: MIT */
/* event.c - who is told what happens to a heap. Any thread. */
#include <errno.h>

#include "api/api.h"
#include "gc/event.h"
#include "gc/stop.h"

/* With the cycle lock: no call of the former one is under way after this, and the next one is told whole cycles. The handler itself has it; another heap's could wait for ever. */
int gcuffd_event_handler_set(struct gcuffd_heap *h, gcuffd_event_fn *fn, void *data)
{
	const struct gcuffd_heap *telling = gu_event_telling();
	if (telling)
		return telling == h ? gu_event_set(h, fn, data) : -EDEADLK;
	if (gu_world_is_closed_by_caller())
		return -EBUSY;
	gu_heap_lock_cycles(h);
	struct gu_thread *t = gu_enter();
	int err = gu_event_set(h, fn, data);
	gu_leave(t);
	gu_unlock(&h->cycle_lock);
	return err;
}
