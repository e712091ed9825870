/* SPDX-License-Identifier: MIT */
/* pins.c - see pins.h. Mutators; the collector for marking. */
#include "gc/pins.h"

#include <errno.h>
#include <string.h>

#include "base/meta.h"
#include "gc/alloc.h"
#include "gc/mark.h"
#include "gc/roots.h"

#define ROOM_LEAST 16u

/* The first pin that is not below this one. */
static size_t index_locked(const struct gcuffd_heap *h, uintptr_t start, size_t size)
{
	size_t lo = 0, hi = h->npins;
	while (lo < hi) {
		size_t mid = (lo + hi) / 2;
		const struct gu_pin *pin = &h->pins[mid];
		if (pin->start < start || (pin->start == start && pin->size < size))
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo;
}

static bool find_locked(const struct gcuffd_heap *h, uintptr_t start, size_t size)
{
	size_t i = index_locked(h, start, 0);
	return i < h->npins && h->pins[i].start - start < size;
}

bool gu_pins_find(struct gcuffd_heap *h, uintptr_t start, size_t size)
{
	gu_lock(&h->lock);
	bool found = find_locked(h, start, size);
	gu_unlock(&h->lock);
	return found;
}

static size_t first_page(const struct gcuffd_heap *h, uintptr_t start) { return gu_space_page(&h->space, start); }
static size_t end_page(const struct gcuffd_heap *h, uintptr_t start, size_t size)
{
	return gu_space_page(&h->space, start + size - 1) + 1;
}

/* ---- adding and removing ---- */

static int make_room_locked(struct gcuffd_heap *h)
{
	if (h->npins < h->pins_max)
		return 0;
	size_t max = h->pins_max ? h->pins_max * 2 : ROOM_LEAST;
	struct gu_pin *more = gu_meta_alloc(max * sizeof(*more));
	if (!more)
		return -ENOMEM;
	if (h->pins) {
		memcpy(more, h->pins, h->npins * sizeof(*more));
		gu_meta_free(h->pins, h->pins_max * sizeof(*more));
	}
	h->pins = more;
	h->pins_max = max;
	return 0;
}

static int add_locked(struct gcuffd_heap *h, struct gu_block *b, uintptr_t start, size_t size)
{
	int err = make_room_locked(h);
	if (!err)
		err = gu_pages_pin(&h->space, first_page(h, start), end_page(h, start, size));
	if (err)
		return err;
	size_t i = index_locked(h, start, size + 1); /* after its equals */
	memmove(&h->pins[i + 1], &h->pins[i], (h->npins - i) * sizeof(h->pins[0]));
	h->pins[i] = (struct gu_pin){start, size};
	gu_store_relaxed(&h->npins, h->npins + 1);
	gu_store_relaxed(&b->pinned, 1);
	return 0;
}

int gu_pins_add(struct gcuffd_heap *h, uintptr_t start, size_t size)
{
	struct gu_found f;
	int err = -ENOENT;
	gu_lock(&h->lock);
	if (gu_object_find(h, start, &f) && start + size <= f.base + f.size)
		err = add_locked(h, f.block, start, size);
	gu_unlock(&h->lock);
	return err;
}

static void remove_locked(struct gcuffd_heap *h, size_t i)
{
	struct gu_pin pin = h->pins[i];
	struct gu_block *b = gu_block_at(&h->space, pin.start);
	gu_store_relaxed(&h->npins, h->npins - 1);
	memmove(&h->pins[i], &h->pins[i + 1], (h->npins - i) * sizeof(h->pins[0]));
	if (b)
		gu_store_relaxed(&b->pinned, find_locked(h, b->start, b->bytes));
	gu_pages_unpin(&h->space, first_page(h, pin.start), end_page(h, pin.start, pin.size));
}

int gu_pins_remove(struct gcuffd_heap *h, uintptr_t start, size_t size)
{
	gu_lock(&h->lock);
	size_t end = index_locked(h, start, size + 1);
	bool found = end && h->pins[end - 1].start == start && h->pins[end - 1].size == size;
	if (found)
		remove_locked(h, end - 1);
	gu_unlock(&h->lock);
	return found ? 0 : -ENOENT;
}

/* ---- roots ---- */

void gu_pins_mark(struct gcuffd_heap *h, struct gu_marker *m)
{
	gu_lock(&h->lock);
	gu_mark_range(m, (uintptr_t)h->pins, (uintptr_t)(h->pins + h->npins));
	gu_unlock(&h->lock);
}

void gu_pins_each(struct gcuffd_heap *h, const struct gu_root_visit *v)
{
	gu_lock(&h->lock);
	v->range(v->data, (uintptr_t)h->pins, (uintptr_t)(h->pins + h->npins), false);
	gu_unlock(&h->lock);
}

/* ---- checks ---- */

static size_t check_pins_locked(struct gcuffd_heap *h)
{
	size_t pages = 0, end = 0;
	for (size_t i = 0; i < h->npins; i++) {
		const struct gu_pin *pin = &h->pins[i];
		const struct gu_block *b = gu_block_at(&h->space, pin->start);
		GU_INVARIANT(b && b->pinned && pin->start + pin->size <= b->start + b->bytes, ".inv.pages.kept");
		GU_INVARIANT(!i || pin[-1].start < pin->start || (pin[-1].start == pin->start && pin[-1].size <= pin->size),
			     ".inv.pages.root");
		GU_INVARIANT(!gu_pages_may_drop(&h->space, first_page(h, pin->start), end_page(h, pin->start, 1)), ".inv.pages.kept");
		size_t from = gu_max(first_page(h, pin->start), end);
		end = gu_max(end, end_page(h, pin->start, pin->size));
		pages += end - gu_min(from, end);
	}
	return pages;
}

void gu_pins_check(struct gcuffd_heap *h)
{
	gu_lock(&h->lock);
	GU_INVARIANT(check_pins_locked(h) == gu_load_relaxed(&h->space.pages.pinned), ".inv.pages.root");
	for (uint32_t i = 1; i <= gu_block_count(&h->space); i++) {
		const struct gu_block *b = &h->space.blocks[i];
		bool used = gu_load_acquire(&b->state) != GU_BLOCK_FREE;
		GU_INVARIANT(!used || !b->pinned == !find_locked(h, b->start, b->bytes), ".inv.pages.kept");
	}
	gu_unlock(&h->lock);
	gu_pages_check(&h->space);
}
