/* SPDX-License-Identifier: MIT */
/* weak.c - weak references. Threads that a stop reaches: what get returns is kept by the caller's stack. */
#include <errno.h>

#include "api/api.h"
#include "gc/mutator.h"
#include "gc/stop.h"
#include "gc/weak.h"

#define NAP_NS 50000 /* the second stop is over, and whether it has to be made again is known at once */
#define FINAL_NS 5000000 /* what finalizers need is being marked; who ends that wakes us */

static int create(struct gcuffd_heap *h, const void *object, bool longer, struct gcuffd_weak **weak)
{
	if (!gu_is_stopped(h))
		return -EPERM;
	struct gu_thread *t = gu_enter();
	int err = gu_weak_add(h, (uintptr_t)object, longer, weak);
	gu_leave(t);
	return err;
}

int gcuffd_weak_create(struct gcuffd_heap *h, const void *object, struct gcuffd_weak **weak) { return create(h, object, false, weak); }
int gcuffd_weak_create_long(struct gcuffd_heap *h, const void *object, struct gcuffd_weak **weak) { return create(h, object, true, weak); }

int gcuffd_weak_bind(struct gcuffd_heap *h, struct gcuffd_weak *weak, const void *key, const void *value)
{
	if (!gu_is_stopped(h))
		return -EPERM;
	struct gu_thread *t = gu_enter();
	int err = gu_weak_set(h, weak, (struct gu_weak_pair){(uintptr_t)key, (uintptr_t)value});
	gu_leave(t);
	return err;
}

int gcuffd_weak_set(struct gcuffd_heap *h, struct gcuffd_weak *weak, const void *object) { return gcuffd_weak_bind(h, weak, object, NULL); }

static void nap(struct gcuffd_heap *h)
{
	struct gu_wait wait;
	uint32_t state = gu_load_relaxed(&h->weak_state);
	if (state != GU_WEAK_MAYBE && state != GU_WEAK_FINAL)
		return;
	gu_wait_begin(&wait);
	gu_wait_futex(&wait, &h->weak_state, state, state == GU_WEAK_FINAL ? FINAL_NS : NAP_NS);
	gu_wait_end(&wait);
}

static struct gu_weak_pair get(struct gcuffd_heap *h, const struct gcuffd_weak *weak)
{
	struct gu_weak_pair pair = {0, 0};
	int err = gu_is_stopped(h) ? 1 : -EPERM;
	while (err == 1) {
		struct gu_thread *t = gu_enter();
		err = gu_weak_read(h, weak, &pair);
		gu_leave(t);
		if (err == 1)
			nap(h);
	}
	if (err < 0)
		errno = -err;
	return pair;
}

void *gcuffd_weak_get(struct gcuffd_heap *h, const struct gcuffd_weak *weak) { return (void *)get(h, weak).key; }

void *gcuffd_weak_value(struct gcuffd_heap *h, const struct gcuffd_weak *weak, void **key)
{
	struct gu_weak_pair pair = get(h, weak);
	if (key)
		*key = (void *)pair.key;
	return (void *)pair.value;
}

int gcuffd_weak_destroy(struct gcuffd_heap *h, struct gcuffd_weak *weak)
{
	struct gu_thread *t = gu_enter();
	int err = gu_weak_remove(h, weak);
	gu_leave(t);
	return err;
}
