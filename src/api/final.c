/* SPDX-License-Identifier: MIT */
/* final.c - finalizers. Threads that a stop reaches: what is taken from the queue is kept by the caller's stack. */
#include <errno.h>

#include "api/api.h"
#include "ctl/finalizer.h"
#include "gc/final.h"
#include "gc/mutator.h"
#include "gc/stop.h"

int gcuffd_finalizer_set(struct gcuffd_heap *h, const void *object, gcuffd_finalizer_fn *fn, void *data, unsigned flags)
{
	struct gcuffd_finalizer what = {(void *)(uintptr_t)object, fn, data};
	if (flags & ~GCUFFD_UNORDERED || !fn)
		return -EINVAL;
	if (!gu_is_stopped(h))
		return -EPERM;
	int err = gu_finalizer_start(h);
	if (err)
		return err;
	struct gu_thread *t = gu_enter();
	err = gu_final_set(h, &what, !(flags & GCUFFD_UNORDERED));
	gu_leave(t);
	return err;
}

int gcuffd_finalizer_clear(struct gcuffd_heap *h, const void *object, struct gcuffd_finalizer *was)
{
	struct gcuffd_finalizer had;
	if (!gu_is_stopped(h))
		return -EPERM;
	struct gu_thread *t = gu_enter();
	int err = gu_final_clear(h, (uintptr_t)object, &had);
	if (!err && was)
		*was = had;
	gu_leave(t);
	return err;
}

int gcuffd_finalizer_next(struct gcuffd_heap *h, struct gcuffd_finalizer *next)
{
	if (!gu_is_stopped(h))
		return -EPERM;
	struct gu_thread *t = gu_enter();
	bool found = gu_final_take(h, next);
	gu_leave(t);
	return found ? 0 : -EAGAIN;
}

int gcuffd_finalizer_run(struct gcuffd_heap *h, size_t max, size_t *count)
{
	if (!gu_is_stopped(h))
		return -EPERM;
	size_t n = gu_finalizer_run(h, max);
	if (count)
		*count = n;
	return 0;
}

int gcuffd_finalizer_wait(struct gcuffd_heap *h, int timeout_ms) { return gu_finalizer_wait(h, timeout_ms < 0 ? -1 : timeout_ms * 1000000ll); }

/* With the cycle lock: no call of the former one is under way after this. */
int gcuffd_finalizer_notify(struct gcuffd_heap *h, void (*fn)(void *data), void *data)
{
	if (gu_world_is_closed_by_caller())
		return -EBUSY;
	gu_heap_lock_cycles(h);
	h->final_notify = fn;
	h->final_data = data;
	gu_unlock(&h->cycle_lock);
	return 0;
}
