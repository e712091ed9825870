/* SPDX-License-Identifier: MIT */
/* pages.c - see pages.h. */
#include "space/pages.h"

#include <errno.h>
#include <string.h>

#include "base/meta.h"
#include "space/space.h"

#define PER_LEAF (GU_REGION / GU_PAGE)
#define LEAF_LEN (PER_LEAF * sizeof(struct gu_soft))
#define ROOM_LEAST 4u

/* ---- leaves ---- */

/* Of the first leaf that is for this region or one above. */
static size_t index_locked(const struct gu_pages *t, size_t region)
{
	size_t lo = 0, hi = t->count;
	while (lo < hi) {
		size_t mid = (lo + hi) / 2;
		if (t->leaves[mid].region < region)
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo;
}

static struct gu_leaf *leaf_locked(const struct gu_pages *t, size_t page)
{
	size_t i = index_locked(t, page / PER_LEAF);
	return i < t->count && t->leaves[i].region == page / PER_LEAF ? &t->leaves[i] : NULL;
}

static int set_room_locked(struct gu_space *s, size_t room)
{
	struct gu_pages *t = &s->pages;
	struct gu_leaf *leaves = room ? gu_meta_alloc(room * sizeof(*leaves)) : NULL;
	if (room && !leaves)
		return -ENOMEM;
	if (leaves && t->count)
		memcpy(leaves, t->leaves, t->count * sizeof(*leaves));
	if (t->leaves)
		gu_meta_free(t->leaves, t->room * sizeof(*leaves));
	gu_add_relaxed(&s->tables, (room - t->room) * sizeof(*leaves));
	t->leaves = leaves;
	t->room = room;
	return 0;
}

static int make_leaf_locked(struct gu_space *s, size_t region)
{
	struct gu_pages *t = &s->pages;
	size_t i = index_locked(t, region);
	if (i < t->count && t->leaves[i].region == region)
		return 0;
	if (t->count == t->room && set_room_locked(s, t->room ? t->room * 2 : ROOM_LEAST))
		return -ENOMEM;
	struct gu_soft *soft = gu_meta_alloc(LEAF_LEN);
	if (!soft)
		return -ENOMEM;
	memmove(&t->leaves[i + 1], &t->leaves[i], (t->count - i) * sizeof(t->leaves[0]));
	t->leaves[i] = (struct gu_leaf){(uint32_t)region, 0, soft};
	t->count++;
	gu_add_relaxed(&s->tables, LEAF_LEN);
	return 0;
}

/* Of these pages' leaves those that say nothing go, with the last one the array. */
static void tidy_locked(struct gu_space *s, size_t from, size_t to)
{
	struct gu_pages *t = &s->pages;
	size_t i = index_locked(t, from / PER_LEAF), keep = i;
	for (; i < t->count && t->leaves[i].region * PER_LEAF < to; i++) {
		if (t->leaves[i].used) {
			t->leaves[keep++] = t->leaves[i];
			continue;
		}
		gu_meta_free(t->leaves[i].soft, LEAF_LEN);
		gu_sub_relaxed(&s->tables, LEAF_LEN);
	}
	memmove(&t->leaves[keep], &t->leaves[i], (t->count - i) * sizeof(t->leaves[0]));
	t->count -= i - keep;
	if (!t->count)
		set_room_locked(s, 0);
}

void gu_pages_destroy(struct gu_space *s)
{
	for (size_t i = 0; i < s->pages.count; i++)
		gu_meta_free(s->pages.leaves[i].soft, LEAF_LEN);
	if (s->pages.leaves)
		gu_meta_free(s->pages.leaves, s->pages.room * sizeof(struct gu_leaf));
	memset(&s->pages, 0, sizeof(s->pages));
}

/* ---- entries ---- */

static bool says_something(const struct gu_soft *e) { return e->pins; }

/* The one way to change an entry: the byte follows it (.inv.pages.soft). */
static void set_locked(struct gu_space *s, struct gu_leaf *leaf, size_t page, struct gu_soft now)
{
	struct gu_soft *e = &leaf->soft[page % PER_LEAF], was = *e;
	uint8_t state = gu_load_relaxed(&s->state[page]) & (uint8_t)~GU_PAGE_SOFT;
	*e = now;
	if (says_something(&was) != says_something(&now)) {
		leaf->used += says_something(&now) ? 1 : -1u;
		gu_store_relaxed(&s->state[page], says_something(&now) ? state | GU_PAGE_SOFT : state);
	}
	if (!was.pins != !now.pins)
		gu_store_relaxed(&s->pages.pinned, s->pages.pinned + (now.pins ? 1 : -(size_t)1));
}

static void add_pins_locked(struct gu_space *s, size_t from, size_t to, int n)
{
	struct gu_leaf *leaf = leaf_locked(&s->pages, from);
	for (size_t p = from; p < to; p++) {
		if (p % PER_LEAF == 0 && p > from)
			leaf = leaf_locked(&s->pages, p);
		GU_INVARIANT(leaf && (n > 0 || leaf->soft[p % PER_LEAF].pins), ".inv.pages.soft");
		struct gu_soft now = leaf->soft[p % PER_LEAF];
		now.pins = (uint16_t)(now.pins + n);
		set_locked(s, leaf, p, now);
	}
}

/* A leaf for each page, and room for one more pin on each. */
static int prepare_locked(struct gu_space *s, size_t from, size_t to)
{
	int err = 0;
	for (size_t p = from; p < to && !err; p = gu_min(gu_align_down(p, PER_LEAF) + PER_LEAF, to))
		err = make_leaf_locked(s, p / PER_LEAF);
	for (size_t p = from; p < to && !err; p++)
		if (gu_load_relaxed(&s->state[p]) & GU_PAGE_SOFT)
			err = leaf_locked(&s->pages, p)->soft[p % PER_LEAF].pins == GU_PINS_MOST ? -ENOSPC : 0;
	return err;
}

/* ---- pins ---- */

int gu_pages_pin(struct gu_space *s, size_t from, size_t to)
{
	gu_lock(&s->pages.lock);
	int err = prepare_locked(s, from, to);
	if (err)
		tidy_locked(s, from, to);
	else
		add_pins_locked(s, from, to, 1);
	gu_unlock(&s->pages.lock);
	return err;
}

static void set_cards(struct gu_space *s, size_t from, size_t to)
{
	for (size_t p = from, next; p < to; p = next) {
		next = gu_min((p | 63) + 1, to);
		gu_or_seqcst(&s->cards[p >> 6], (~0ull >> (63 - (next - 1) % 64)) & (~0ull << p % 64));
	}
	gu_fence_seqcst();
}

/* Cards before the pins go: whoever looks for cards finds the one or the other (.inv.pages.dirty). */
void gu_pages_unpin(struct gu_space *s, size_t from, size_t to)
{
	gu_lock(&s->pages.lock);
	set_cards(s, from, to);
	add_pins_locked(s, from, to, -1);
	tidy_locked(s, from, to);
	gu_unlock(&s->pages.lock);
}

bool gu_pages_may_drop(struct gu_space *s, size_t from, size_t to)
{
	bool pinned = false;
	if (!gu_load_relaxed(&s->pages.pinned))
		return true;
	gu_lock(&s->pages.lock);
	for (size_t p = from; p < to && !pinned; p++)
		pinned = (gu_load_relaxed(&s->state[p]) & GU_PAGE_SOFT) && leaf_locked(&s->pages, p)->soft[p % PER_LEAF].pins;
	gu_unlock(&s->pages.lock);
	return !pinned;
}

static void visit_leaf(const struct gu_leaf *leaf, void (*visit)(void *data, size_t page), void *data)
{
	for (size_t i = 0; i < PER_LEAF; i++)
		if (leaf->soft[i].pins)
			visit(data, leaf->region * PER_LEAF + i);
}

void gu_pages_each_pinned(struct gu_space *s, void (*visit)(void *data, size_t page), void *data)
{
	if (!gu_load_relaxed(&s->pages.pinned))
		return;
	gu_lock(&s->pages.lock);
	for (size_t i = 0; i < s->pages.count; i++)
		visit_leaf(&s->pages.leaves[i], visit, data);
	gu_unlock(&s->pages.lock);
	gu_fence_seqcst();
}

/* ---- checks ---- */

static size_t check_leaf_locked(const struct gu_space *s, const struct gu_leaf *leaf)
{
	size_t used = 0, pinned = 0;
	for (size_t i = 0; i < PER_LEAF; i++) {
		bool soft = s->state[leaf->region * PER_LEAF + i] & GU_PAGE_SOFT;
		GU_INVARIANT(soft == says_something(&leaf->soft[i]), ".inv.pages.soft");
		used += soft;
		pinned += leaf->soft[i].pins != 0;
	}
	GU_INVARIANT(used && used == leaf->used, ".inv.pages.soft");
	return pinned;
}

void gu_pages_check(struct gu_space *s)
{
	const struct gu_pages *t = &s->pages;
	size_t pinned = 0, soft = 0, used = 0, pages = gu_load_acquire(&s->top) >> GU_PAGE_SHIFT;
	gu_lock(&s->pages.lock);
	for (size_t i = 0; i < t->count; i++) {
		GU_INVARIANT(!i || t->leaves[i - 1].region < t->leaves[i].region, ".inv.pages.soft");
		pinned += check_leaf_locked(s, &t->leaves[i]);
		used += t->leaves[i].used;
	}
	for (size_t p = 0; p < pages; p++)
		soft += (gu_load_relaxed(&s->state[p]) & GU_PAGE_SOFT) != 0;
	GU_INVARIANT(soft == used && pinned == t->pinned, ".inv.pages.soft");
	gu_unlock(&s->pages.lock);
}
