/* SPDX-License-Identifier: MIT */
/* weak.c - see weak.h. Mutators in a section; the collector, which holds an arena's lock when it clears. */
#include "gc/weak.h"

#include <errno.h>
#include <string.h>

#include "base/index.h"
#include "base/meta.h"
#include "gc/alloc.h"
#include "gc/mark.h"
#include "sys/os.h"

#define SLOTS_MOST ((size_t)1 << 26)
#define SLOTS_STEP ((size_t)4096)
#define CLEARED_AT_ONCE ((size_t)256)
#define LAST UINT32_MAX

struct gu_weaks {
	struct gcuffd_weak *slot; /* reserved for SLOTS_MOST */
	struct gu_index index;    /* .inv.weak.index */
	uint32_t free;            /* the first free slot, + 1 */
	uint32_t late;            /* the first late slot, + 1; LAST behind the last */
	size_t committed, made, used;
};

/* ---- the index ---- */

static void link_locked(struct gu_weaks *w, struct gcuffd_weak *s)
{
	uint32_t *head = gu_index_chain(&w->index, s->key);
	s->next = *head;
	*head = (uint32_t)(s - w->slot) + 1;
}

static void unlink_locked(struct gu_weaks *w, struct gcuffd_weak *s)
{
	uint32_t *at = gu_index_chain(&w->index, s->key);
	while (&w->slot[*at - 1] != s)
		at = &w->slot[*at - 1].next;
	*at = s->next;
}

static void grow_index_locked(struct gu_weaks *w)
{
	for (uint32_t at = gu_index_grow(&w->index), next; at; at = next) {
		next = w->slot[at - 1].next;
		link_locked(w, &w->slot[at - 1]);
	}
}

/* ---- slots ---- */

static void unmake(struct gu_weaks *w)
{
	if (w->slot)
		gu_meta_unreserve(w->slot, SLOTS_MOST * sizeof(*w->slot));
	gu_index_destroy(&w->index);
	gu_meta_free(w, sizeof(*w));
}

static int make_weaks_locked(struct gcuffd_heap *h)
{
	struct gu_weaks *w = gu_meta_alloc(sizeof(*w));
	if (!w)
		return -ENOMEM;
	w->slot = gu_meta_reserve(SLOTS_MOST * sizeof(*w->slot));
	if (!w->slot || gu_index_init(&w->index)) {
		unmake(w);
		return -ENOMEM;
	}
	w->late = LAST;
	gu_store_release(&h->weaks, w); /* pairs with is_slot() */
	return 0;
}

/* Room for one more, in the index too. */
static int make_room_locked(struct gcuffd_heap *h)
{
	int err = h->weaks ? 0 : make_weaks_locked(h);
	struct gu_weaks *w = h->weaks;
	if (err)
		return err;
	if (w->used >= w->index.buckets)
		grow_index_locked(w);
	if (w->free || w->made < w->committed)
		return 0;
	if (w->committed == SLOTS_MOST || gu_meta_commit(w->slot + w->committed, SLOTS_STEP * sizeof(*w->slot)))
		return -ENOMEM;
	w->committed += SLOTS_STEP;
	return 0;
}

static struct gcuffd_weak *take_slot_locked(struct gu_weaks *w, bool longer)
{
	struct gcuffd_weak *s = w->free ? &w->slot[w->free - 1] : &w->slot[w->made];
	if (w->free)
		w->free = s->next;
	else
		gu_store_release(&w->made, w->made + 1); /* pairs with is_slot() */
	s->next = 0;
	s->used = 1;
	s->longer = longer;
	w->used++;
	return s;
}

/* One of the heap's slots. used is looked at by who has the lock. */
static bool is_slot(const struct gcuffd_heap *h, const struct gcuffd_weak *s)
{
	const struct gu_weaks *w = gu_load_acquire(&h->weaks);
	size_t at = w ? (uintptr_t)s - (uintptr_t)w->slot : 0;
	return w && at % sizeof(*s) == 0 && at / sizeof(*s) < gu_load_acquire(&w->made);
}

static bool find_object(const struct gcuffd_heap *h, uintptr_t object, struct gu_found *f)
{
	return gu_object_find(h, object, f) && f->base == object;
}

static void store_pair_locked(struct gcuffd_weak *s, struct gu_weak_pair pair)
{
	gu_store_seqcst(&s->seq, s->seq + 1);
	gu_store_release(&s->undecided, 0);  /* not before seq is odd; pairs with is_undecided(), */
	gu_store_release(&s->key, pair.key); /* and with read_pair() */
	gu_store_release(&s->value, pair.value);
	gu_store_release(&s->seq, s->seq + 1);
}

/*
 * .inv.weak.flag: who frees the object later sees it, by whatever told that thread of the object. .inv.weak.late: the phase is MARK
 * from a stop on, and this is a section: who marks the key later finds the slot, or the slot is late.
 */
static void point_locked(struct gcuffd_heap *h, struct gcuffd_weak *s, const struct gu_found *f, uintptr_t value)
{
	struct gu_weaks *w = h->weaks;
	if (s->key)
		unlink_locked(w, s);
	store_pair_locked(s, f ? (struct gu_weak_pair){f->base, value} : (struct gu_weak_pair){0, 0});
	if (!f)
		return;
	gu_store_relaxed(&f->block->weak, 1);
	link_locked(w, s);
	if (value && !s->late && gu_load_acquire(&h->phase) == GU_PHASE_MARK) {
		s->late = w->late;
		w->late = (uint32_t)(s - w->slot) + 1;
	}
}

int gu_weak_add(struct gcuffd_heap *h, uintptr_t object, bool longer, struct gcuffd_weak **out)
{
	struct gu_found f;
	if (!find_object(h, object, &f))
		return -ENOENT;
	gu_lock(&h->weak_lock);
	int err = make_room_locked(h);
	if (!err) {
		*out = take_slot_locked(h->weaks, longer);
		point_locked(h, *out, &f, 0);
	}
	gu_unlock(&h->weak_lock);
	return err;
}

int gu_weak_set(struct gcuffd_heap *h, struct gcuffd_weak *s, struct gu_weak_pair pair)
{
	struct gu_found f;
	if (!is_slot(h, s))
		return -EINVAL;
	if (pair.key && !find_object(h, pair.key, &f))
		return -ENOENT;
	gu_lock(&h->weak_lock);
	int err = s->used ? 0 : -EINVAL;
	if (!err)
		point_locked(h, s, pair.key ? &f : NULL, pair.value);
	gu_unlock(&h->weak_lock);
	return err;
}

int gu_weak_remove(struct gcuffd_heap *h, struct gcuffd_weak *s)
{
	if (!is_slot(h, s))
		return -EINVAL;
	gu_lock(&h->weak_lock);
	struct gu_weaks *w = h->weaks;
	int err = s->used ? 0 : -EINVAL;
	if (!err) {
		point_locked(h, s, NULL, 0);
		s->used = 0;
		s->next = w->free;
		w->free = (uint32_t)(s - w->slot) + 1;
		w->used--;
	}
	gu_unlock(&h->weak_lock);
	return err;
}

/* ---- reading ---- */

/* In the round of finalizers that is under way, or in the last one: who asks waits for its end. */
static bool is_undecided(const struct gcuffd_heap *h, const struct gcuffd_weak *s)
{
	uint16_t round = gu_load_acquire(&s->undecided); /* seq is looked at again after it */
	return round && round == (uint16_t)gu_load_relaxed(&h->weak_round);
}

/* As they were together, and seq then: with the lock, if they change just now. */
static uint32_t read_pair(struct gcuffd_heap *h, const struct gcuffd_weak *s, struct gu_weak_pair *pair)
{
	uint32_t seq = gu_load_acquire(&s->seq);
	*pair = (struct gu_weak_pair){gu_load_acquire(&s->key), gu_load_acquire(&s->value)};
	if (gu_likely(!(seq & 1) && gu_load_relaxed(&s->seq) == seq))
		return seq;
	gu_lock(&h->weak_lock);
	*pair = (struct gu_weak_pair){s->key, s->value};
	seq = s->seq;
	gu_unlock(&h->weak_lock);
	return seq;
}

/*
 * .inv.weak.decided. OPEN was stored before the first object could be made that is not marked though it lives: who reads the key of
 * such a one reads OPEN after it. The section keeps the next cycle, which clears the marks, from passing. Not so the sweep: a mark says something of
 * the key only if the slot has it still, for the cell's next owner has a mark, too (acquire: pairs with gu_block_take_group()).
 * .inv.weak.final: a mark that an object got for a finalizer's sake is seen only by who then sees the slot cleared, or undecided.
 */
int gu_weak_read(struct gcuffd_heap *h, const struct gcuffd_weak *s, struct gu_weak_pair *pair)
{
	if (!is_slot(h, s))
		return -EINVAL;
	for (;;) {
		uint32_t state = gu_load_acquire(&h->weak_state), seq = read_pair(h, s, pair);
		if (state == GU_WEAK_OPEN || !pair->key)
			return 0;
		bool marked = gu_mark_has(h, pair->key), undecided = is_undecided(h, s);
		if (gu_load_acquire(&s->seq) != seq || gu_load_acquire(&h->weak_state) != state)
			continue;
		if (state == GU_WEAK_FINAL && undecided)
			return 1;
		if (marked)
			return 0;
		*pair = (struct gu_weak_pair){0, 0};
		return state == GU_WEAK_MAYBE || (state == GU_WEAK_FINAL && s->longer);
	}
}

/* ---- values ---- */

/* Marking only pushes what it finds: nothing comes back here, nor to the lock. */
void gu_weak_mark_values(struct gcuffd_heap *h, struct gu_marker *m, uintptr_t key)
{
	gu_lock(&h->weak_lock);
	const struct gu_weaks *w = h->weaks;
	for (uint32_t at = *gu_index_chain(&w->index, key); at; at = w->slot[at - 1].next)
		if (w->slot[at - 1].key == key)
			gu_mark_word(m, w->slot[at - 1].value, true);
	gu_unlock(&h->weak_lock);
}

static void mark_value_locked(struct gcuffd_heap *h, struct gu_marker *m, const struct gcuffd_weak *s)
{
	if (s->value && gu_mark_has(h, s->key))
		gu_mark_word(m, s->value, true);
}

void gu_weak_mark_late(struct gcuffd_heap *h, struct gu_marker *m)
{
	gu_lock(&h->weak_lock);
	struct gu_weaks *w = h->weaks;
	while (w && w->late != LAST) {
		struct gcuffd_weak *s = &w->slot[w->late - 1];
		w->late = s->late;
		s->late = 0;
		mark_value_locked(h, m, s);
	}
	gu_unlock(&h->weak_lock);
}

void gu_weak_mark_all(struct gcuffd_heap *h, struct gu_marker *m)
{
	gu_lock(&h->weak_lock);
	for (size_t i = 0; h->weaks && i < h->weaks->made; i++)
		mark_value_locked(h, m, &h->weaks->slot[i]);
	gu_unlock(&h->weak_lock);
}

size_t gu_weak_slots(const struct gcuffd_heap *h, const struct gcuffd_weak **slots)
{
	const struct gu_weaks *w = h->weaks;
	*slots = w ? w->slot : NULL;
	return w ? w->made : 0;
}

/* ---- clearing ---- */

void gu_weak_state_set(struct gcuffd_heap *h, enum gu_weak_state state)
{
	uint32_t was = gu_swap_seqcst(&h->weak_state, (uint32_t)state);
	if (was == GU_WEAK_FINAL && state != GU_WEAK_FINAL)
		gu_os->futex_wake(&h->weak_state, INT32_MAX);
}

static void clear_object_locked(struct gu_weaks *w, uintptr_t object)
{
	uint32_t *at = gu_index_chain(&w->index, object);
	while (*at) {
		struct gcuffd_weak *s = &w->slot[*at - 1];
		if (s->key != object) {
			at = &s->next;
			continue;
		}
		*at = s->next;
		s->next = 0;
		store_pair_locked(s, (struct gu_weak_pair){0, 0});
	}
}

static void clear_unmarked_locked(struct gcuffd_heap *h, struct gcuffd_weak *s)
{
	if (!s->key || gu_mark_has(h, s->key))
		return;
	if (s->longer)
		gu_store_relaxed(&s->undecided, (uint16_t)h->weak_round);
	else
		point_locked(h, s, NULL, 0);
}

/* A few at a time: mutators may want the lock. Slots that come meanwhile have live keys. */
void gu_weak_clear_unmarked(struct gcuffd_heap *h)
{
	const struct gu_weaks *w = gu_load_acquire(&h->weaks);
	size_t n = w ? gu_load_acquire(&w->made) : 0;
	uint32_t round = (h->weak_round + 1) & UINT16_MAX;
	gu_store_relaxed(&h->weak_round, round ? round : 1);
	for (size_t i = 0; i < n;) {
		gu_lock(&h->weak_lock);
		for (size_t end = gu_min(i + CLEARED_AT_ONCE, n); i < end; i++)
			clear_unmarked_locked(h, &w->slot[i]);
		gu_unlock(&h->weak_lock);
	}
}

void gu_weak_clear_cells(struct gcuffd_heap *h, const struct gu_block *b, uint32_t g, uint64_t cells)
{
	gu_lock(&h->weak_lock);
	for (; cells; cells &= cells - 1)
		clear_object_locked(h->weaks, gu_block_cell_addr(b, g * 64 + (uint32_t)__builtin_ctzll(cells)));
	gu_unlock(&h->weak_lock);
}

void gu_weak_clear_arena(struct gcuffd_heap *h, const struct gcuffd_arena *a)
{
	gu_lock(&h->weak_lock);
	struct gu_weaks *w = h->weaks;
	for (size_t i = 0; w && i < w->made; i++) {
		const struct gu_block *b = w->slot[i].key ? gu_block_at(&h->space, w->slot[i].key) : NULL;
		if (b && b->arena == a)
			point_locked(h, &w->slot[i], NULL, 0);
	}
	gu_unlock(&h->weak_lock);
}

/* ---- set-up, checks ---- */

size_t gu_weak_memory(const struct gcuffd_heap *h)
{
	const struct gu_weaks *w = gu_load_acquire(&h->weaks);
	return w ? gu_load_relaxed(&w->made) * sizeof(*w->slot) + gu_index_memory(&w->index) : 0;
}

void gu_weak_destroy(struct gcuffd_heap *h)
{
	struct gu_weaks *w = h->weaks;
	if (!w)
		return;
	unmake(w);
	h->weaks = NULL;
}

static size_t count_chain_locked(const struct gu_weaks *w, size_t bucket)
{
	size_t n = 0;
	for (uint32_t at = w->index.first[bucket]; at; at = w->slot[at - 1].next, n++)
		GU_INVARIANT(w->slot[at - 1].used && gu_index_bucket(&w->index, w->slot[at - 1].key) == bucket, ".inv.weak.index");
	return n;
}

static void check_locked(const struct gcuffd_heap *h, const struct gu_weaks *w)
{
	size_t keys = 0, linked = 0, used = 0;
	for (size_t i = 0; i < w->made; i++) {
		const struct gcuffd_weak *s = &w->slot[i];
		struct gu_found f;
		used += s->used;
		keys += s->key != 0;
		GU_INVARIANT(!s->key || (s->used && find_object(h, s->key, &f) && f.block->weak), ".inv.weak.swept");
	}
	for (size_t i = 0; i < w->index.buckets; i++)
		linked += count_chain_locked(w, i);
	GU_INVARIANT(keys == linked && used == w->used, ".inv.weak.index");
}

void gu_weak_check(struct gcuffd_heap *h)
{
	gu_lock(&h->weak_lock);
	if (h->weaks)
		check_locked(h, h->weaks);
	gu_unlock(&h->weak_lock);
}
