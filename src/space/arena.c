/* SPDX-License-Identifier: MIT */
/*
 * arena.c - taking, listing and giving back blocks. Mutators inside a no-stop section, and the collector.
 * The lock guards the lists and every change of a block's state; jemalloc is called with nothing held.
 */
#include "space/arena.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "gcuffd.h"
#include "space/hooks.h"
#include "space/image.h"
#include "sys/os.h"

int gu_arena_init(struct gcuffd_arena *a, struct gu_space *space, unsigned decay_ms, const char *name)
{
	a->space = space;
	a->decay_ms = decay_ms;
	gu_lock_init(&a->lock, GU_RANK_ARENA);
	snprintf(a->name, sizeof(a->name), "%s", name);
	return 0;
}

void gu_arena_destroy(struct gcuffd_arena *a)
{
	for (int i = 0; i < 2; i++)
		if (a->half[i])
			gu_half_retire(a->half[i]);
}

/* jemalloc's metadata counts from the start; the collector brings the sum up to date. */
static void account_half(struct gcuffd_arena *a, struct gu_half *half)
{
	struct gu_half_sizes sizes;
	gu_half_sizes(half, &sizes);
	gu_add_relaxed(&a->space->foreign, sizes.metadata);
}

/* One thread makes it; those that come meanwhile wait, in their sections, for one that is in its own. */
static struct gu_half *make_half(struct gcuffd_arena *a, unsigned which)
{
	uint32_t bit = 1u << which;
	while (gu_or_seqcst(&a->making, bit) & bit)
		gu_os->sched_yield();
	struct gu_half *half = gu_load_acquire(&a->half[which]);
	if (!half) {
		half = gu_half_create(a->space, a->decay_ms);
		if (half)
			account_half(a, half);
		gu_store_release(&a->half[which], half); /* pairs with half_for() */
	}
	gu_and_seqcst(&a->making, ~bit);
	return half;
}

static struct gu_half *half_for(struct gcuffd_arena *a, unsigned kind)
{
	unsigned which = kind != GCUFFD_ATOMIC;
	struct gu_half *half = gu_load_acquire(&a->half[which]);
	return half ? half : make_half(a, which);
}

/* ---- lists, under the lock ---- */

static struct gu_list *list_of(struct gcuffd_arena *a, const struct gu_block *b) { return &a->partial[b->kind][b->class]; }

static void link_locked(struct gcuffd_arena *a, struct gu_block *b)
{
	struct gu_list *l = list_of(a, b);
	b->next = NULL;
	b->prev = l->tail;
	*(l->tail ? &l->tail->next : &l->head) = b;
	l->tail = b;
	gu_store_relaxed(&b->state, GU_BLOCK_LISTED);
}

static void unlink_locked(struct gcuffd_arena *a, struct gu_block *b)
{
	struct gu_list *l = list_of(a, b);
	*(b->prev ? &b->prev->next : &l->head) = b->next;
	*(b->next ? &b->next->prev : &l->tail) = b->prev;
	b->next = b->prev = NULL;
	gu_store_relaxed(&b->state, GU_BLOCK_FULL);
}

static void own_locked(struct gu_block *b, struct gu_run *owner)
{
	gu_store_release(&b->owner, owner);
	gu_store_release(&b->state, GU_BLOCK_CURRENT);
}

/* The first whose pages may all be used. */
static struct gu_block *usable_locked(struct gcuffd_arena *a, const struct gu_list *l)
{
	struct gu_block *b = l->head;
	while (b && b->holes && gu_space_reuse(a->space, b->start, b->bytes))
		b = b->next;
	if (b)
		b->holes = 0;
	return b;
}

static struct gu_block *pop_listed(struct gcuffd_arena *a, unsigned kind, unsigned class, struct gu_run *owner)
{
	if (!gu_load_relaxed(&a->partial[kind][class].head))
		return NULL;
	gu_lock(&a->lock);
	struct gu_block *b = usable_locked(a, &a->partial[kind][class]);
	if (b) {
		unlink_locked(a, b);
		own_locked(b, owner);
	}
	gu_unlock(&a->lock);
	return b;
}

static size_t first_page(const struct gu_block *b) { return gu_space_page(b->arena->space, b->start); }
static size_t end_page(const struct gu_block *b) { return first_page(b) + (b->bytes >> GU_PAGE_SHIFT); }

/* Fewer free cells than a sixteenth are not worth a visit. */
static bool worth_listing(const struct gu_block *b, uint32_t free_cells)
{
	return free_cells * 16 >= b->ncells && free_cells;
}

bool gu_arena_relist_locked(struct gcuffd_arena *a, struct gu_block *b, uint32_t free_cells)
{
	bool listed = gu_load_relaxed(&b->state) == GU_BLOCK_LISTED;
	if (free_cells == b->ncells) {
		if (listed)
			unlink_locked(a, b);
		return true;
	}
	if (!listed && worth_listing(b, free_cells) && !gu_cold_any_on_its_way(&a->space->cold, first_page(b), end_page(b))) /* .inv.cold.listed */
		link_locked(a, b);
	return false;
}

/* ---- pages ---- */

/* Pages from jemalloc, accounted for and described by a block that nobody can find yet. */
static int make_block(struct gcuffd_arena *a, size_t size, size_t align, unsigned kind, uint32_t ncells, bool *fresh,
		      struct gu_block **out)
{
	struct gu_half *half = gu_jemalloc_is_closed() ? NULL : half_for(a, kind);
	size_t usable;
	void *pages = half ? gu_half_alloc(half, size, align, &usable) : NULL;
	if (!pages)
		return -ENOMEM;
	struct gu_block *b = gu_block_new(a->space, ncells, kind == GCUFFD_TYPED);
	if (!b || gu_space_use(a->space, (uintptr_t)pages, usable, fresh)) {
		if (b)
			gu_block_free(a->space, b);
		gu_half_free(half, pages);
		return -ENOMEM;
	}
	b->start = (uintptr_t)pages;
	b->bytes = usable;
	b->arena = a;
	b->kind = (uint8_t)kind;
	b->scanned = kind != GCUFFD_ATOMIC;
	*out = b;
	return 0;
}

static int new_small(struct gcuffd_arena *a, unsigned kind, unsigned class, struct gu_run *owner, struct gu_block **out)
{
	size_t cell = gu_class_size(class);
	struct gu_block *b;
	bool fresh;
	int err = make_block(a, GU_BLOCK, GU_PAGE, kind, (uint32_t)(GU_BLOCK / cell), &fresh, &b);
	if (err)
		return err;
	b->cell = cell;
	b->recip = (uint32_t)(((1ull << 32) + cell - 1) / cell);
	b->class = (uint8_t)class;
	b->zero = fresh;
	gu_store_release(&b->owner, owner);
	gu_block_publish(a->space, b, GU_BLOCK_CURRENT);
	gu_add_relaxed(&a->blocks, 1);
	*out = b;
	return 0;
}

int gu_arena_take(struct gcuffd_arena *a, unsigned kind, unsigned class, bool fresh_first, struct gu_run *owner,
		  struct gu_block **out)
{
	*out = fresh_first ? NULL : pop_listed(a, kind, class, owner);
	if (*out || !new_small(a, kind, class, owner, out))
		return 0;
	*out = pop_listed(a, kind, class, owner);
	return *out ? 0 : -ENOMEM;
}

void gu_arena_retire(struct gcuffd_arena *a, struct gu_block *b, bool list)
{
	b->zero = 0;
	gu_lock(&a->lock);
	uint32_t free_cells = gu_block_count_free(b);
	bool empty = false;
	gu_store_release(&b->owner, NULL);
	gu_store_release(&b->state, GU_BLOCK_FULL);
	b->live = b->ncells - free_cells;
	if (list) {
		empty = gu_arena_relist_locked(a, b, free_cells + gu_block_count_freed(b));
		if (empty)
			gu_store_relaxed(&b->state, GU_BLOCK_BUSY);
	}
	gu_unlock(&a->lock);
	if (empty)
		gu_arena_release(a, b);
}

int gu_arena_take_large(struct gcuffd_arena *a, size_t size, size_t align, unsigned kind, bool *fresh, struct gu_block **out)
{
	struct gu_block *b;
	size_t want = gu_max(gu_align_up(size, GU_PAGE), GU_SMALL_MAX + GU_PAGE);
	if (want < size)
		return -ENOMEM;
	int err = make_block(a, want, align, kind, 1, fresh, &b);
	if (err)
		return err;
	b->cell = b->bytes;
	b->recip = 0;
	b->class = 0;
	gu_block_publish(a->space, b, GU_BLOCK_BUSY);
	gu_add_relaxed(&a->large, 1);
	*out = b;
	return 0;
}

bool gu_arena_claim(struct gu_block *b, size_t from, size_t to, void (*claim)(void *data, size_t page), void *data)
{
	struct gcuffd_arena *a = b->arena;
	gu_lock(&a->lock);
	uint8_t state = gu_load_relaxed(&b->state);
	bool idle = b->arena == a && (state == GU_BLOCK_FULL || state == GU_BLOCK_LISTED || state == GU_BLOCK_LARGE);
	if (idle && state == GU_BLOCK_LISTED)
		unlink_locked(a, b);
	from = gu_max(from, first_page(b));
	to = gu_min(to, end_page(b));
	for (size_t p = from; p < to && idle; p++)
		claim(data, p);
	if (idle && state == GU_BLOCK_LISTED) /* nothing of it is out, after all? */
		(void)gu_arena_relist_locked(a, b, gu_block_count_free(b) + gu_block_count_freed(b));
	gu_unlock(&a->lock);
	return idle;
}

void gu_arena_release(struct gcuffd_arena *a, struct gu_block *b)
{
	struct gu_half *half = gu_space_is_loaded(a->space, b->start) ? NULL : half_for(a, b->kind);
	void *pages = (void *)b->start;
	size_t bytes = b->bytes, from = first_page(b), to = end_page(b);
	gu_sub_relaxed(gu_block_is_large(b) ? &a->large : &a->blocks, 1);
	gu_cold_forget(a->space, &a->space->cold, from, to);
	gu_block_free(a->space, b);
	if (half)
		gu_half_free(half, pages);
	else /* jemalloc does not know it: its addresses are not used again (.inv.image.region) */
		(void)gu_space_purge(a->space, (uintptr_t)pages, bytes);
}

int gu_arena_load(struct gcuffd_arena *a, const struct gu_image_block *from, const uint64_t *objects, const uint16_t *types)
{
	struct gu_block *b = gu_block_new(a->space, from->ncells, from->kind == GCUFFD_TYPED);
	if (!b)
		return -ENOMEM;
	b->start = from->start;
	b->bytes = from->bytes;
	b->arena = a;
	b->kind = from->kind;
	b->scanned = from->kind != GCUFFD_ATOMIC;
	b->class = from->class;
	b->cell = from->large ? from->bytes : gu_class_size(from->class);
	b->recip = from->large ? 0 : (uint32_t)(((1ull << 32) + b->cell - 1) / b->cell);
	for (uint32_t g = 0; g < gu_block_groups(b); g++)
		b->bits[g].start = objects[g] & gu_block_valid(b, g);
	if (b->types)
		memcpy(b->types, types, b->ncells * sizeof(*types));
	b->live = b->ncells - gu_block_count_free(b);
	gu_block_publish(a->space, b, from->large ? GU_BLOCK_LARGE : GU_BLOCK_FULL);
	gu_add_relaxed(from->large ? &a->large : &a->blocks, 1);
	return 0;
}

void gu_arena_tidy(struct gcuffd_arena *a, enum gu_arena_tidy how)
{
	if (gu_jemalloc_is_closed())
		return;
	for (int i = 0; i < 2; i++) {
		struct gu_half *half = gu_load_acquire(&a->half[i]);
		if (half && how == GU_TIDY_PURGE)
			gu_half_purge(half);
		else if (half)
			gu_half_decay(half);
	}
}

void gu_arena_sizes(struct gcuffd_arena *a, struct gu_arena_sizes *sizes)
{
	memset(sizes, 0, sizeof(*sizes));
	if (gu_jemalloc_is_closed())
		return;
	for (int i = 0; i < 2; i++) {
		struct gu_half *half = gu_load_acquire(&a->half[i]);
		struct gu_half_sizes s;
		if (!half)
			continue;
		gu_half_sizes(half, &s);
		sizes->active += s.active;
		sizes->dirty += s.dirty;
		sizes->retained += s.retained;
		sizes->metadata += s.metadata;
	}
}

static void check_list_locked(struct gcuffd_arena *a, const struct gu_list *l)
{
	for (const struct gu_block *b = l->head; b; b = b->next) {
		GU_INVARIANT(b->state == GU_BLOCK_LISTED && b->arena == a && !b->owner, ".inv.arena.listed");
		GU_INVARIANT(b->next ? b->next->prev == b : l->tail == b, ".inv.arena.listed");
		gu_block_check(a->space, b);
	}
}

void gu_arena_check(struct gcuffd_arena *a)
{
	gu_lock(&a->lock);
	for (unsigned k = 0; k < GU_KINDS; k++)
		for (unsigned c = 0; c < GU_CLASSES; c++)
			check_list_locked(a, &a->partial[k][c]);
	gu_unlock(&a->lock);
}
