/* SPDX-License-Identifier: MIT */
/* pin.c - pinned memory. Attached threads. */
#include <errno.h>

#include "api/api.h"
#include "gc/mutator.h"
#include "gc/pins.h"

typedef int pin_fn(struct gcuffd_heap *h, uintptr_t start, size_t size);

/* No heap: nothing can be or have been pinned there. */
static int in_its_heap(pin_fn *fn, const void *start, size_t size)
{
	struct gu_thread *t = gu_enter();
	struct gcuffd_heap *h = gu_heaps_find((uintptr_t)start);
	int err = h ? fn(h, (uintptr_t)start, size) : -ENOENT;
	gu_leave(t);
	return err;
}

int gcuffd_pin(const void *start, size_t size)
{
	if (!size || (uintptr_t)start + size < size)
		return -EINVAL;
	return in_its_heap(gu_pins_add, start, size);
}

int gcuffd_unpin(const void *start, size_t size) { return in_its_heap(gu_pins_remove, start, size); }
