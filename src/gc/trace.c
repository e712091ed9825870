/* SPDX-License-Identifier: MIT */
/* trace.c - see trace.h. Slow and plain on purpose. */
#include "gc/trace.h"

#include <errno.h>
#include <string.h>

#include "base/meta.h"
#include "gc/mutator.h"
#include "gc/weak.h"
#include "sys/os.h"

#define BUFFER ((size_t)64 << 10)

int gu_trace_create(struct gu_trace *t, bool keeps)
{
	memset(t, 0, sizeof(*t));
	t->keeps = keeps;
	t->buffer = gu_meta_map(BUFFER);
	return t->buffer ? 0 : -ENOMEM;
}

static void drop_set(struct gu_trace *t)
{
	gu_meta_unmap(t->list, t->list_len);
	gu_meta_unmap(t->reached, t->reached_len);
	gu_meta_unmap(t->from, t->from_len);
	t->list = NULL;
	t->reached = NULL;
	t->from = NULL;
	t->n = t->cells = 0;
}

void gu_trace_drop_copies(struct gu_trace *t)
{
	gu_meta_unmap(t->copies, t->pages << GU_PAGE_SHIFT);
	gu_meta_unmap(t->copied, gu_align_up(t->pages / 8 + 8, GU_PAGE));
	t->copies = NULL;
	t->copied = NULL;
}

void gu_trace_end(struct gu_trace *t)
{
	gu_meta_unmap(t->queue, t->queue_len);
	t->queue = NULL;
}

void gu_trace_destroy(struct gu_trace *t)
{
	drop_set(t);
	gu_trace_end(t);
	gu_trace_drop_copies(t);
	gu_meta_unmap(t->buffer, BUFFER);
	t->buffer = NULL;
}

/* ---- the list of objects ---- */

static void shadow_block(struct gu_trace *s, struct gu_block *b)
{
	s->list[s->n++] = (struct gu_shadow){b, b->start, b->bytes, b->cell, b->ncells, (uint32_t)s->cells, gu_load_relaxed(&b->made), b->kind};
	s->cells += b->ncells;
}

static int by_start(const void *a, const void *b)
{
	uintptr_t x = ((const struct gu_shadow *)a)->start, y = ((const struct gu_shadow *)b)->start;
	return x < y ? -1 : x > y;
}

/* Heap sort: qsort may allocate. */
static void sift(struct gu_shadow *a, size_t at, size_t n)
{
	for (size_t child; (child = 2 * at + 1) < n; at = child) {
		child += child + 1 < n && by_start(&a[child], &a[child + 1]) < 0;
		if (by_start(&a[at], &a[child]) >= 0)
			return;
		struct gu_shadow swap = a[at];
		a[at] = a[child];
		a[child] = swap;
	}
}

static void sort_shadows(struct gu_shadow *a, size_t n)
{
	for (size_t i = n / 2; i-- > 0;)
		sift(a, i, n);
	for (size_t end = n; end-- > 1;) {
		struct gu_shadow swap = a[0];
		a[0] = a[end];
		a[end] = swap;
		sift(a, 0, end);
	}
}

int gu_trace_begin(struct gcuffd_heap *h, struct gu_trace *s)
{
	uint32_t n = gu_block_count(&h->space);
	drop_set(s);
	gu_trace_end(s);
	s->head = s->tail = 0;
	s->found = false;
	s->list_len = gu_align_up((n + 1) * sizeof(struct gu_shadow), GU_PAGE);
	s->list = gu_meta_map(s->list_len);
	for (uint32_t i = 1; i <= n && s->list; i++) {
		struct gu_block *b = &h->space.blocks[i];
		uint8_t state = gu_load_acquire(&b->state);
		if (state != GU_BLOCK_FREE && state != GU_BLOCK_BUSY)
			shadow_block(s, b);
	}
	s->reached_len = gu_align_up(s->cells / 8 + 8, GU_PAGE);
	s->reached = gu_meta_map(s->reached_len);
	s->from_len = gu_align_up(s->cells * sizeof(*s->from) + 8, GU_PAGE);
	s->from = gu_meta_map(s->from_len);
	s->queue_len = gu_align_up(s->cells * sizeof(*s->queue) + 8, GU_PAGE);
	s->queue = gu_meta_map(s->queue_len);
	if (!s->list || !s->reached || !s->from || !s->queue) {
		drop_set(s);
		gu_trace_end(s);
		return -ENOMEM;
	}
	sort_shadows(s->list, s->n);
	return 0;
}

int gu_trace_more(struct gu_trace *t)
{
	t->head = t->tail = 0;
	t->queue = gu_meta_map(t->queue_len);
	return t->queue ? 0 : -ENOMEM;
}

struct gu_shadow *gu_shadow_at(const struct gu_trace *s, uintptr_t at)
{
	size_t lo = 0, hi = s->n;
	if (!hi || at < s->list[0].start || at >= s->list[hi - 1].start + s->list[hi - 1].bytes) /* most words */
		return NULL;
	while (lo < hi) {
		size_t mid = (lo + hi) / 2;
		if (s->list[mid].start + s->list[mid].bytes <= at)
			lo = mid + 1;
		else
			hi = mid;
	}
	return s->list[lo].start <= at ? &s->list[lo] : NULL;
}

static bool has_bit(uint64_t word, uint32_t cell) { return word >> (cell % 64) & 1; }

bool gu_shadow_is_object(const struct gu_shadow *s, uint32_t cell)
{
	const struct gu_bits *bits = &s->block->bits[cell / 64];
	const struct gu_run *owner = s->block->owner;
	if (owner && owner->block == s->block && owner->group == cell / 64 && has_bit(owner->mask, cell))
		return false;
	return has_bit(bits->start, cell) && !has_bit(bits->freed, cell);
}

/* ---- reaching ---- */

static void reach(struct gu_trace *v, uintptr_t word, uintptr_t from, bool base_only)
{
	struct gu_shadow *s = gu_shadow_at(v, word);
	if (!s)
		return;
	uint32_t cell = (uint32_t)((word - s->start) / s->cell);
	if (cell >= s->ncells || !gu_shadow_is_object(s, cell) || (base_only && (word - s->start) % s->cell))
		return;
	uint64_t number = (uint64_t)s->first + cell;
	if (has_bit(v->reached[number / 64], number % 64))
		return;
	v->reached[number / 64] |= 1ull << (number % 64);
	v->from[number] = from;
	v->queue[v->tail++] = word - (word - s->start) % s->cell;
	v->found |= v->target && v->queue[v->tail - 1] == v->target;
}

static GU_READS_STACKS void reach_words(struct gu_trace *v, const uintptr_t *p, size_t n, uintptr_t from, bool base_only)
{
	for (size_t i = 0; i < n; i++)
		reach(v, p[i], from + i * 8, base_only);
}

static bool make_copies(const struct gcuffd_heap *h, struct gu_trace *v)
{
	if (v->copies)
		return true;
	v->pages = gu_load_acquire(&h->space.top) >> GU_PAGE_SHIFT;
	v->copies = gu_meta_map(v->pages << GU_PAGE_SHIFT);
	v->copied = v->copies ? gu_meta_map(gu_align_up(v->pages / 8 + 8, GU_PAGE)) : NULL;
	if (!v->copied)
		gu_trace_drop_copies(v);
	return v->copied;
}

const uintptr_t *gu_trace_contents(struct gcuffd_heap *h, struct gu_trace *v, size_t page)
{
	const struct gu_cold *c = &h->space.cold;
	if (!c->on || !gu_cold_is_out(c, page) || gu_cold_state(c, page) == GU_COLD_LIVE)
		return (const uintptr_t *)gu_space_address(&h->space, page);
	if (gu_cold_state(c, page) == GU_COLD_PARKED)
		return (const uintptr_t *)gu_cold_park(c, page);
	gu_slot slot = gu_cold_region(c, page)->slot[page % GU_REGION_PAGES];
	if (!v->keeps)
		return gu_cold_get(c, slot, v->buffer) ? NULL : v->buffer;
	if (!make_copies(h, v) || page >= v->pages)
		return NULL;
	char *copy = v->copies + (page << GU_PAGE_SHIFT);
	if (!has_bit(v->copied[page / 64], page % 64) && gu_cold_get(c, slot, copy))
		return NULL;
	v->copied[page / 64] |= 1ull << page % 64;
	return (const uintptr_t *)copy;
}

/* Words [from, to) of the object, which are on one page; words is where the object would begin. */
static void scan_part(struct gcuffd_heap *h, struct gu_trace *v, const struct gu_shadow *s, uintptr_t object, const uintptr_t *words, size_t from, size_t to)
{
	bool base_only = gu_heap_is(h, GCUFFD_NO_INTERIOR);
	const struct gcuffd_type *t = s->kind == GCUFFD_TYPED ? h->types[s->block->types[(object - s->start) / s->cell]] : NULL;
	if (!t)
		reach_words(v, words + from, to - from, object + from * 8, base_only);
	for (size_t i = from; t && i < to; i++)
		if (gu_type_points(t, i))
			reach(v, words[i], object + i * 8, base_only);
}

static void scan_object(struct gcuffd_heap *h, struct gu_trace *v, uintptr_t object)
{
	struct gu_shadow *s = gu_shadow_at(v, object);
	for (size_t at = 0, next; at < s->cell && s->kind != GCUFFD_ATOMIC; at = next) {
		uintptr_t page = gu_align_down(object + at, GU_PAGE);
		next = gu_min(page + GU_PAGE - object, s->cell);
		const uintptr_t *words = gu_trace_contents(h, v, gu_space_page(&h->space, page));
		if (words) /* object and page differ by less than an address */
			scan_part(h, v, s, object, words - (intptr_t)(page - object) / 8, at / 8, next / 8);
	}
}

static bool is_reached(const struct gu_trace *t, uintptr_t object)
{
	const struct gu_shadow *s = gu_shadow_at(t, object);
	return s && gu_trace_reached(t, s, (uint32_t)((object - s->start) / s->cell));
}

/* Values whose keys are reached. false: all of them are too. */
static bool reach_values(struct gcuffd_heap *h, struct gu_trace *t)
{
	const struct gcuffd_weak *slots;
	size_t n = gu_weak_slots(h, &slots), before = t->tail;
	for (size_t i = 0; i < n; i++)
		if (slots[i].value && is_reached(t, slots[i].key))
			reach(t, slots[i].value, slots[i].key + GU_TRACE_VALUE, false);
	return t->tail > before;
}

void gu_trace_run(struct gcuffd_heap *h, struct gu_trace *t)
{
	do
		while (t->head < t->tail && !t->found)
			scan_object(h, t, t->queue[t->head++]);
	while (!t->found && reach_values(h, t));
}

void gu_trace_range(struct gu_trace *t, uintptr_t start, uintptr_t end, bool foreign)
{
	for (uintptr_t at = start; foreign && at < end;) {
		long got = gu_os->process_vm_readv(gu_os->gettid(), t->buffer, (void *)at, gu_min(end - at, BUFFER));
		if (got >= 8)
			reach_words(t, t->buffer, (size_t)got / 8, at + GU_TRACE_ROOT, false);
		at = got >= 8 ? at + ((size_t)got & ~7ul) : gu_align_down(at, GU_PAGE) + GU_PAGE;
	}
	if (!foreign && end > start)
		reach_words(t, (const uintptr_t *)start, (end - start) / 8, start + GU_TRACE_ROOT, false);
}
