/* SPDX-License-Identifier: MIT */
/* final.c - see final.h. Mutators in a section; markers; the collector. */
#include "gc/final.h"

#include <errno.h>
#include <string.h>

#include "base/index.h"
#include "base/meta.h"
#include "gc/alloc.h"
#include "gc/marker.h"
#include "gc/roots.h"
#include "gc/weak.h"
#include "sys/os.h"

#define SLOTS_MOST ((size_t)1 << 26)
#define STEP ((size_t)4096)
#define LAST UINT32_MAX
#define CHUNK ((size_t)256) /* slots that are walked over with the lock held */
#define FEW ((size_t)64)    /* slots whose objects one marker makes gray at once */

/* What a finalizer is, in the low bits of its object's address: cells are aligned to 16. */
enum { SET = 0, LEFT = 2, CHOSEN = 4, READY = 6, STATE = 6, ORDERED = 1, DROPPED = 8, BITS = 15 };

/* Guard: the table's lock. */
struct final {
	uintptr_t object; /* and bits; 0: a free slot; DROPPED: nothing more, still on the queue */
	gcuffd_finalizer_fn *fn;
	uintptr_t data;
	uint32_t next;    /* in its bucket's chain, or of free slots: a slot's number + 1 */
	uint32_t link;    /* likewise: of late ones, or of the queue, where it is READY; not 0 where it is on one, LAST at the end */
};

struct gu_finals {
	struct final *slot;    /* reserved for SLOTS_MOST: nothing is ever copied to make room */
	struct gu_index index; /* .inv.final.index */
	size_t committed, made; /* made: atomic, for who reads it without the lock */
	size_t used;
	uint32_t free;         /* the first free slot, + 1 */
	uint32_t late;         /* the first late one, + 1; LAST behind the last */
	uint32_t first, last;  /* of the queue, + 1; first is LAST where it is empty */
	uint64_t ready, taken, waiting; /* atomic, changes with the lock; ready: on the queue and not dropped */
	uint64_t dropped;      /* on the queue, to be passed over */
	bool ordering;         /* atomic; the step order is under way, else keep */
};

static uintptr_t object_of(const struct final *e) { return e->object & ~(uintptr_t)BITS; }
static unsigned state_of(const struct final *e) { return e->object & STATE; }
static void set_state(struct final *e, unsigned state) { e->object = (e->object & ~(uintptr_t)STATE) | state; }
static bool is_one(const struct final *e) { return e->object > BITS; }
static uint32_t number_of(const struct gu_finals *f, const struct final *e) { return (uint32_t)(e - f->slot) + 1; }

/* ---- the index ---- */

static void link_locked(struct gu_finals *f, struct final *e)
{
	uint32_t *head = gu_index_chain(&f->index, object_of(e));
	e->next = *head;
	*head = number_of(f, e);
}

static void unlink_locked(struct gu_finals *f, struct final *e)
{
	uint32_t *at = gu_index_chain(&f->index, object_of(e));
	while (&f->slot[*at - 1] != e)
		at = &f->slot[*at - 1].next;
	*at = e->next;
	e->next = 0;
}

static void grow_index_locked(struct gu_finals *f)
{
	for (uint32_t at = gu_index_grow(&f->index), next; at; at = next) {
		next = f->slot[at - 1].next;
		link_locked(f, &f->slot[at - 1]);
	}
}

static struct final *find_locked(const struct gu_finals *f, uintptr_t object, unsigned state)
{
	for (uint32_t at = f ? *gu_index_chain(&f->index, object) : 0; at; at = f->slot[at - 1].next)
		if (object_of(&f->slot[at - 1]) == object && state_of(&f->slot[at - 1]) == state)
			return &f->slot[at - 1];
	return NULL;
}

/* ---- slots ---- */

static void unmake(struct gu_finals *f)
{
	if (f->slot)
		gu_meta_unreserve(f->slot, SLOTS_MOST * sizeof(*f->slot));
	gu_index_destroy(&f->index);
	gu_meta_free(f, sizeof(*f));
}

static int make_locked(struct gcuffd_heap *h)
{
	struct gu_finals *f = gu_meta_alloc(sizeof(*f));
	if (!f)
		return -ENOMEM;
	f->slot = gu_meta_reserve(SLOTS_MOST * sizeof(*f->slot));
	if (!f->slot || gu_index_init(&f->index)) {
		unmake(f);
		return -ENOMEM;
	}
	f->late = f->first = LAST;
	gu_store_release(&h->finals, f); /* pairs with finals_of() */
	return 0;
}

static struct gu_finals *finals_of(const struct gcuffd_heap *h) { return gu_load_acquire(&h->finals); }

static int make_room_locked(struct gcuffd_heap *h)
{
	int err = h->finals ? 0 : make_locked(h);
	struct gu_finals *f = h->finals;
	if (err)
		return err;
	if (f->used >= f->index.buckets)
		grow_index_locked(f);
	if (f->free || f->made < f->committed)
		return 0;
	if (f->committed == SLOTS_MOST || gu_meta_commit(f->slot + f->committed, STEP * sizeof(*f->slot)))
		return -ENOMEM;
	f->committed += STEP;
	return 0;
}

static struct final *take_slot_locked(struct gu_finals *f)
{
	struct final *e = f->free ? &f->slot[f->free - 1] : &f->slot[f->made];
	if (f->free)
		f->free = e->next;
	else
		gu_store_relaxed(&f->made, f->made + 1);
	f->used++;
	return e;
}

/* Not one of an index chain. It may be on the list of late ones, and stays there. */
static void give_slot_locked(struct gu_finals *f, struct final *e)
{
	e->object = e->data = 0;
	e->fn = NULL;
	e->next = f->free;
	f->free = number_of(f, e);
	f->used--;
}

/* On the queue it is left where it is, and passed over. */
static void drop_locked(struct gu_finals *f, struct final *e)
{
	unlink_locked(f, e);
	if (state_of(e) != READY) {
		give_slot_locked(f, e);
		return;
	}
	*e = (struct final){.object = DROPPED, .link = e->link};
	f->dropped++;
	gu_store_relaxed(&f->ready, f->ready - 1);
}

/* ---- what mutators do ---- */

/* .inv.final.late: the phase is MARK from a stop on, and this is a section. */
static void note_late_locked(struct gcuffd_heap *h, struct gu_finals *f, struct final *e)
{
	if (e->link || gu_load_acquire(&h->phase) != GU_PHASE_MARK || !gu_space_has(&h->space, e->data))
		return;
	e->link = f->late;
	f->late = number_of(f, e);
}

static struct final *find_or_add_locked(struct gcuffd_heap *h, struct gu_block *b, uintptr_t object)
{
	struct final *e = find_locked(h->finals, object, SET);
	if (e)
		return e;
	e = take_slot_locked(h->finals);
	e->object = object;
	link_locked(h->finals, e);
	gu_store_relaxed(&b->final, 1); /* who frees the object later sees it, by whatever told that thread of the object */
	return e;
}

/* What is dead is nobody's to give a finalizer. */
static bool is_dead(struct gcuffd_heap *h, uintptr_t object)
{
	uint32_t state = gu_load_acquire(&h->weak_state);
	return (state == GU_WEAK_FINAL || state == GU_WEAK_DECIDED) && !gu_mark_has(h, object);
}

int gu_final_set(struct gcuffd_heap *h, const struct gcuffd_finalizer *what, bool ordered)
{
	struct gu_found found;
	uintptr_t object = (uintptr_t)what->object;
	if (!gu_object_find(h, object, &found) || found.base != object || is_dead(h, object))
		return -ENOENT;
	gu_lock(&h->final_lock);
	int err = make_room_locked(h);
	if (!err) {
		struct final *e = find_or_add_locked(h, found.block, object);
		e->object = object | (ordered ? ORDERED : 0);
		e->fn = what->fn;
		e->data = (uintptr_t)what->data;
		note_late_locked(h, h->finals, e);
	}
	gu_unlock(&h->final_lock);
	return err;
}

static struct gcuffd_finalizer tell(const struct final *e) { return (struct gcuffd_finalizer){(void *)object_of(e), e->fn, (void *)e->data}; }

int gu_final_clear(struct gcuffd_heap *h, uintptr_t object, struct gcuffd_finalizer *was)
{
	gu_lock(&h->final_lock);
	struct final *e = find_locked(h->finals, object, SET);
	if (e) {
		*was = tell(e);
		drop_locked(h->finals, e);
	}
	gu_unlock(&h->final_lock);
	return e ? 0 : -ENOENT;
}

static struct final *pop_locked(struct gu_finals *f)
{
	struct final *e = f->first == LAST ? NULL : &f->slot[f->first - 1];
	if (!e)
		return NULL;
	f->first = e->link;
	e->link = 0;
	return e;
}

bool gu_final_take(struct gcuffd_heap *h, struct gcuffd_finalizer *next)
{
	struct gu_finals *f = finals_of(h);
	if (!f || !gu_load_relaxed(&f->ready))
		return false;
	gu_lock(&h->final_lock);
	struct final *e;
	bool found = false;
	while (!found && (e = pop_locked(f))) {
		found = is_one(e);
		if (found) {
			*next = tell(e);
			unlink_locked(f, e);
			gu_store_relaxed(&f->ready, f->ready - 1);
			gu_store_relaxed(&f->taken, f->taken + 1);
		} else {
			f->dropped--;
		}
		give_slot_locked(f, e);
	}
	gu_unlock(&h->final_lock);
	return found;
}

static void drop_object_locked(struct gu_finals *f, uintptr_t object)
{
	uint32_t at = *gu_index_chain(&f->index, object);
	for (uint32_t next; at; at = next) {
		next = f->slot[at - 1].next;
		if (object_of(&f->slot[at - 1]) == object)
			drop_locked(f, &f->slot[at - 1]);
	}
}

void gu_final_drop_cells(struct gcuffd_heap *h, const struct gu_block *b, uint32_t g, uint64_t cells)
{
	gu_lock(&h->final_lock);
	for (; cells; cells &= cells - 1)
		drop_object_locked(h->finals, gu_block_cell_addr(b, g * 64 + (uint32_t)__builtin_ctzll(cells)));
	gu_unlock(&h->final_lock);
}

/* ---- walks over all slots, a few at a time ---- */

typedef void slot_fn(struct gcuffd_heap *h, struct gu_finals *f, struct final *e, void *data);

/* Those of slots [from, to) that are finalizers. */
static void each_of(struct gcuffd_heap *h, struct gu_finals *f, size_t from, size_t to, slot_fn *fn, void *data)
{
	gu_lock(&h->final_lock);
	for (size_t i = from; i < to; i++)
		if (is_one(&f->slot[i]))
			fn(h, f, &f->slot[i], data);
	gu_unlock(&h->final_lock);
}

static void each(struct gcuffd_heap *h, slot_fn *fn, void *data)
{
	struct gu_finals *f = finals_of(h);
	size_t n = f ? gu_load_relaxed(&f->made) : 0;
	for (size_t i = 0; i < n; i += CHUNK)
		each_of(h, f, i, gu_min(i + CHUNK, n), fn, data);
}

static void drop_of_arena(struct gcuffd_heap *h, struct gu_finals *f, struct final *e, void *arena)
{
	const struct gu_block *b = gu_block_at(&h->space, object_of(e));
	if (b && b->arena == arena)
		drop_locked(f, e);
}

void gu_final_drop_arena(struct gcuffd_heap *h, const struct gcuffd_arena *a) { each(h, drop_of_arena, (void *)(uintptr_t)a); }

/* ---- roots ---- */

static void mark_root(struct gcuffd_heap *h, struct gu_finals *f, struct final *e, void *marker)
{
	(void)h, (void)f;
	gu_mark_word(marker, e->data, true);
	if (state_of(e) == READY)
		gu_mark_word(marker, object_of(e), true);
}

void gu_final_mark_all(struct gcuffd_heap *h, struct gu_marker *m) { each(h, mark_root, m); }

void gu_final_mark_late(struct gcuffd_heap *h, struct gu_marker *m)
{
	struct gu_finals *f = finals_of(h);
	if (!f)
		return;
	gu_lock(&h->final_lock);
	while (f->late != LAST) {
		struct final *e = &f->slot[f->late - 1];
		f->late = e->link;
		e->link = 0;
		gu_mark_word(m, e->data, true);
	}
	gu_unlock(&h->final_lock);
}

/* An address with bits leads into the object's first word. */
static void visit_root(struct gcuffd_heap *h, struct gu_finals *f, struct final *e, void *visit)
{
	const struct gu_root_visit *v = visit;
	(void)h, (void)f;
	v->range(v->data, (uintptr_t)(state_of(e) >= CHOSEN ? &e->object : &e->data), (uintptr_t)(&e->data + 1), false);
}

void gu_final_each(struct gcuffd_heap *h, const struct gu_root_visit *v) { each(h, visit_root, (void *)(uintptr_t)v); }

bool gu_final_is_root(struct gcuffd_heap *h, uintptr_t at)
{
	const struct gu_finals *f = finals_of(h);
	return f && at - (uintptr_t)f->slot < f->made * sizeof(*f->slot);
}

/* ---- the steps after marking ---- */

static void gather(struct gcuffd_heap *h, struct gu_finals *f, struct final *e, void *n)
{
	(void)f;
	if (state_of(e) != SET || gu_mark_has(h, object_of(e)))
		return;
	GU_INVARIANT(!e->link, ".inv.final.late");
	set_state(e, LEFT);
	++*(size_t *)n;
}

size_t gu_final_gather(struct gcuffd_heap *h)
{
	size_t n = 0;
	each(h, gather, &n);
	if (!n && h->finals)
		gu_store_relaxed(&h->finals->waiting, 0);
	return n;
}

static void push_all(struct gcuffd_heap *h, bool ordering, bool skip)
{
	struct gu_finals *f = h->finals;
	gu_store_relaxed(&f->ordering, ordering); /* the drain that follows publishes it */
	if (!skip)
		gu_marker_push(gu_mark_first(h), (struct gu_gray){0, (uint32_t)gu_load_relaxed(&f->made), GU_GRAY_FINALS});
}

void gu_final_order(struct gcuffd_heap *h) { push_all(h, true, false); }

struct chosen {
	size_t ready, waiting;
};

static void choose(struct gcuffd_heap *h, struct gu_finals *f, struct final *e, void *data)
{
	struct chosen *c = data;
	(void)f;
	if (state_of(e) != LEFT)
		return;
	bool waits = gu_mark_has(h, object_of(e));
	set_state(e, waits ? SET : CHOSEN);
	c->waiting += waits;
	c->ready += !waits;
}

size_t gu_final_choose(struct gcuffd_heap *h, bool skip)
{
	struct chosen c = {0, 0};
	each(h, choose, &c);
	gu_store_relaxed(&h->finals->waiting, c.waiting);
	push_all(h, false, skip);
	return c.ready;
}

static void publish(struct gcuffd_heap *h, struct gu_finals *f, struct final *e, void *data)
{
	(void)h, (void)data;
	if (state_of(e) != CHOSEN)
		return;
	set_state(e, READY);
	e->link = LAST;
	*(f->first == LAST ? &f->first : &f->slot[f->last - 1].link) = number_of(f, e);
	f->last = number_of(f, e);
	gu_store_relaxed(&f->ready, f->ready + 1);
}

void gu_final_publish(struct gcuffd_heap *h)
{
	each(h, publish, NULL);
	gu_add_seqcst(&h->final_bell, 1);
	gu_os->futex_wake(&h->final_bell, INT32_MAX);
}

static void abandon(struct gcuffd_heap *h, struct gu_finals *f, struct final *e, void *data)
{
	(void)h, (void)f, (void)data;
	if (state_of(e) != READY)
		set_state(e, SET);
}

void gu_final_abandon(struct gcuffd_heap *h)
{
	gu_store_relaxed(&h->finals->ordering, false);
	each(h, abandon, NULL);
}

/* ---- markers ---- */

/* Of those that the step is about, the objects. */
static size_t copy_few(struct gcuffd_heap *h, struct gu_finals *f, size_t first, size_t n, uintptr_t *objects)
{
	bool ordering = gu_load_relaxed(&f->ordering);
	size_t count = 0;
	gu_lock(&h->final_lock);
	for (const struct final *e = f->slot + first; e < f->slot + first + n; e++)
		if (is_one(e) && (e->object & (STATE | ORDERED)) == (ordering ? LEFT | ORDERED : CHOSEN | (e->object & ORDERED)))
			objects[count++] = object_of(e);
	gu_unlock(&h->final_lock);
	return count;
}

static void scan_few(struct gu_marker *m, struct gu_finals *f, size_t first, size_t n)
{
	uintptr_t objects[FEW];
	size_t count = copy_few(m->heap, f, first, n, objects);
	for (size_t i = 0; i < count; i++)
		if (gu_load_relaxed(&f->ordering))
			gu_marker_push_fields(m, objects[i]);
		else
			gu_mark_word(m, objects[i], true);
}

/* The rest is gray again, in halves: others may take them. */
void gu_final_scan(struct gu_marker *m, size_t first, size_t n)
{
	for (; n > FEW; n -= n / 2)
		gu_marker_push(m, (struct gu_gray){first + (n - n / 2), (uint32_t)(n / 2), GU_GRAY_FINALS});
	scan_few(m, m->heap->finals, first, n);
}

void gu_final_scan_all(struct gu_marker *m)
{
	struct gu_finals *f = finals_of(m->heap);
	size_t n = f ? gu_load_relaxed(&f->made) : 0;
	for (size_t i = 0; i < n; i += FEW) {
		scan_few(m, f, i, gu_min(FEW, n - i));
		gu_marker_run(m);
	}
}

uint64_t gu_final_cells(struct gcuffd_heap *h, const struct gu_block *b, uint32_t g)
{
	struct gu_finals *f = finals_of(h);
	uint64_t cells = gu_load_relaxed(&b->bits[g].start) & ~gu_load_relaxed(&b->bits[g].mark), found = 0;
	if (!f || !gu_load_relaxed(&f->ordering))
		return 0;
	gu_lock(&h->final_lock);
	for (; cells; cells &= cells - 1) {
		const struct final *e = find_locked(f, gu_block_cell_addr(b, g * 64 + (uint32_t)__builtin_ctzll(cells)), LEFT);
		found |= e && e->object & ORDERED ? cells & -cells : 0;
	}
	gu_unlock(&h->final_lock);
	return found;
}

/* ---- the rest ---- */

size_t gu_final_memory(const struct gcuffd_heap *h)
{
	const struct gu_finals *f = finals_of(h);
	return f ? gu_load_relaxed(&f->made) * sizeof(*f->slot) + gu_index_memory(&f->index) : 0;
}

void gu_final_counts(struct gcuffd_heap *h, struct gu_final_counts *c)
{
	const struct gu_finals *f = finals_of(h);
	*c = (struct gu_final_counts){0};
	if (!f)
		return;
	gu_lock(&h->final_lock);
	*c = (struct gu_final_counts){f->used - f->ready - f->dropped, f->ready, f->taken, f->waiting};
	gu_unlock(&h->final_lock);
}

void gu_final_destroy(struct gcuffd_heap *h)
{
	if (h->finals)
		unmake(h->finals);
	h->finals = NULL;
}

/* ---- checks ---- */

static void check_one(struct gcuffd_heap *h, struct gu_finals *f, struct final *e, void *count)
{
	struct gu_found found;
	(void)f;
	GU_INVARIANT(state_of(e) == SET || state_of(e) == READY, ".inv.final.order");
	GU_INVARIANT(gu_object_find(h, object_of(e), &found) && found.base == object_of(e) && found.block->final, ".inv.final.alive");
	++*(size_t *)count;
}

static size_t count_chain_locked(const struct gu_finals *f, size_t bucket)
{
	size_t n = 0;
	for (uint32_t at = f->index.first[bucket]; at; at = f->slot[at - 1].next, n++)
		GU_INVARIANT(is_one(&f->slot[at - 1]) && gu_index_bucket(&f->index, object_of(&f->slot[at - 1])) == bucket, ".inv.final.index");
	return n;
}

static void check_locked(const struct gu_finals *f, size_t ones)
{
	size_t linked = 0, queued = 0, ready = 0, late = 0;
	for (size_t i = 0; i < f->index.buckets; i++)
		linked += count_chain_locked(f, i);
	for (uint32_t at = f->first; at != LAST; at = f->slot[at - 1].link, queued++)
		ready += is_one(&f->slot[at - 1]) && state_of(&f->slot[at - 1]) == READY;
	for (uint32_t at = f->late; at != LAST && late <= f->made; at = f->slot[at - 1].link)
		late++;
	GU_INVARIANT(linked == ones && f->used == ones + f->dropped && queued == ready + f->dropped && f->ready == ready && late <= f->made, ".inv.final.index");
}

void gu_final_check(struct gcuffd_heap *h)
{
	size_t ones = 0;
	each(h, check_one, &ones);
	gu_lock(&h->final_lock);
	if (h->finals)
		check_locked(h->finals, ones);
	gu_unlock(&h->final_lock);
}
