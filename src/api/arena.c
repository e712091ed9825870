/* SPDX-License-Identifier: MIT */
/* arena.c - arenas of a heap. Any thread. Reset and destroy exclude cycles by the heap's cycle lock. */
#include <errno.h>
#include <string.h>

#include "api/api.h"
#include "base/meta.h"
#include "gc/final.h"
#include "gc/mutator.h"
#include "gc/stop.h"
#include "gc/weak.h"

static int place(struct gcuffd_heap *h, struct gcuffd_arena *a)
{
	int err = -ENOSPC;
	gu_lock(&h->lock);
	for (uint32_t i = 0; i <= GU_ARENAS && err; i++)
		if (!h->arenas[i]) {
			a->id = i;
			gu_store_release(&h->arenas[i], a); /* pairs with the service thread's walks */
			err = 0;
		}
	gu_unlock(&h->lock);
	return err;
}

int gu_arena_new(struct gcuffd_heap *h, const char *name, struct gcuffd_arena **out)
{
	struct gcuffd_arena *a = gu_meta_alloc(sizeof(*a));
	if (!a)
		return -ENOMEM;
	int err = gu_heaps_take_slot(&a->slot);
	if (err) {
		gu_meta_free(a, sizeof(*a));
		return err;
	}
	a->heap = h;
	gu_arena_init(a, &h->space, h->options.decay_ms, name);
	err = place(h, a);
	if (err) {
		gu_heaps_give_slot(a->slot);
		gu_meta_free(a, sizeof(*a));
		return err;
	}
	*out = a;
	return 0;
}

/* No cycle runs, no thread uses it or has a cache of it. Its slot is to be given back. */
static uint32_t drop_arena(struct gcuffd_arena *a)
{
	uint32_t slot = a->slot;
	gu_arena_destroy(a);
	gu_meta_free(a, sizeof(*a));
	return slot;
}

void gu_arena_end(struct gcuffd_arena *a)
{
	a->heap->arenas[a->id] = NULL;
	gu_heaps_give_slot(drop_arena(a));
}

int gcuffd_arena_create(struct gcuffd_heap *h, const char *name, struct gcuffd_arena **arena)
{
	struct gu_thread *t = gu_enter();
	int err = gu_arena_new(h, name ? name : "", arena);
	gu_leave(t);
	return err;
}

/* The block of that number, or NULL where it is not in use or another arena's. */
static struct gu_block *block_of(struct gcuffd_arena *a, uint32_t number)
{
	struct gu_block *b = &a->space->blocks[number];
	return gu_load_acquire(&b->state) != GU_BLOCK_FREE && b->arena == a ? b : NULL;
}

static void release_blocks(struct gcuffd_arena *a)
{
	for (uint32_t i = 1; i <= gu_block_count(a->space); i++) {
		struct gu_block *b = block_of(a, i);
		if (b)
			gu_arena_release(a, b);
	}
	memset(a->partial, 0, sizeof(a->partial));
}

static bool has_pins(struct gcuffd_arena *a)
{
	bool any = gu_load_relaxed(&a->heap->npins), found = false;
	for (uint32_t i = 1; any && !found && i <= gu_block_count(a->space); i++) {
		const struct gu_block *b = block_of(a, i);
		found = b && gu_load_relaxed(&b->pinned);
	}
	return found;
}

static int empty_arena(struct gcuffd_arena *a, bool end)
{
	struct gcuffd_heap *h = a->heap;
	uint32_t slot = 0;
	if (!a->id)
		return -EINVAL;
	if (gu_world_is_closed_by_caller())
		return -EBUSY;
	gu_heap_lock_cycles(h);
	if (has_pins(a)) {
		gu_unlock(&h->cycle_lock);
		return -EBUSY;
	}
	gu_cache_drop_arena(a); /* takes the list of threads: not inside a section */
	if (end) { /* whoever walks over the arenas in a section is done with it after this */
		gu_store_release(&h->arenas[a->id], NULL);
		while (gu_world_quiesce(10000000000ull))
			;
	}
	struct gu_thread *t = gu_enter();
	gu_weak_clear_arena(h, a);
	gu_final_drop_arena(h, a);
	release_blocks(a);
	gu_arena_tidy(a, GU_TIDY_PURGE);
	if (end)
		slot = drop_arena(a);
	gu_leave(t);
	gu_unlock(&h->cycle_lock);
	t = gu_enter();
	if (end) /* takes the library's lock, which fork holds while it waits for the cycle lock */
		gu_heaps_give_slot(slot);
	gu_leave(t);
	return 0;
}

int gcuffd_arena_reset(struct gcuffd_arena *a) { return empty_arena(a, false); }
int gcuffd_arena_destroy(struct gcuffd_arena *a) { return empty_arena(a, true); }

int gcuffd_arena_stats(struct gcuffd_arena *a, struct gcuffd_arena_stats *out)
{
	struct gu_arena_sizes sizes;
	if (out->size < sizeof(size_t) || out->size > 4096)
		return -EINVAL;
	struct gu_thread *t = gu_enter();
	gu_arena_sizes(a, &sizes);
	struct gcuffd_arena_stats s = {
		.size = out->size,
		.active = sizes.active,
		.dirty = sizes.dirty,
		.retained = sizes.retained,
		.metadata = sizes.metadata,
		.blocks = gu_load_relaxed(&a->blocks),
		.large_objects = gu_load_relaxed(&a->large),
	};
	gu_leave(t);
	memcpy(out, &s, gu_min(out->size, sizeof(s)));
	return 0;
}
