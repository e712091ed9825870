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

/* What is out comes back now, and stays (.inv.cold.pin). */
static void touch(uintptr_t start, size_t size)
{
	for (uintptr_t at = start; at < start + size; at = gu_align_down(at, GU_PAGE) + GU_PAGE)
		(void)*(const volatile char *)at;
}

static int add(struct gcuffd_heap *h, uintptr_t start, size_t size)
{
	int err = gu_pins_add(h, start, size);
	if (!err)
		gu_cold_settle(&h->space.cold, gu_space_page(&h->space, start), gu_space_page(&h->space, start + size - 1) + 1);
	return err;
}

int gcuffd_pin(const void *start, size_t size)
{
	if (!size || (uintptr_t)start + size < size)
		return -EINVAL;
	int err = in_its_heap(add, start, size);
	if (!err)
		touch((uintptr_t)start, size);
	return err;
}

int gcuffd_unpin(const void *start, size_t size) { return in_its_heap(gu_pins_remove, start, size); }
