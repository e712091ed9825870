/* SPDX-License-Identifier: MIT */
/* verify.c - the independent trace. The collector, in a stop (swept: after one). Slow and plain on purpose. */
#include "gc/verify.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/meta.h"
#include "base/own.h"
#include "gc/mutator.h"
#include "gc/pack.h"
#include "gc/roots.h"
#include "gc/summary.h"
#include "gc/verifyroots.h"
#include "gc/weak.h"
#include "space/store.h"
#include "sys/maps.h"
#include "sys/os.h"

#define REPORTS 8
#define FROM_ROOT ((uintptr_t)1)

struct shadow {
	struct gu_block *block;
	uintptr_t start;
	size_t bytes, cell;
	uint32_t ncells, first; /* first: index of its first cell in the bit sets */
	uint32_t made;
	uint8_t kind;
};

struct shadow_set {
	struct shadow *list;
	size_t n, list_len;
	uint64_t *reached;
	uintptr_t *from; /* by cell: where the word lies that led to it first; in a root: FROM_ROOT is added */
	size_t cells, reached_len, from_len;
};

struct report {
	const char *what;
	uintptr_t object;
	size_t size;
	uintptr_t root; /* where the path to it begins */
	unsigned steps; /* objects in between */
	char where[GU_MAP_NAME];
};

struct gu_verifier {
	struct shadow_set set;
	uint64_t *stack; /* cells, by number; each is pushed once */
	size_t depth, stack_len;
	uintptr_t *buffer;
	struct gu_verify_roots *roots;
	/* contents of pages that are out, read once a cycle: nothing is taken out in one */
	char *copies;     /* of the heap's length; NULL: none yet */
	uint64_t *copied; /* a bit a page */
	size_t pages;
	struct gu_pack_reader packs;
	struct report reports[REPORTS];
	size_t nreports;
};

#define BUFFER ((size_t)64 << 10)

int gu_verify_create(struct gcuffd_heap *h)
{
	struct gu_verifier *v = gu_meta_alloc(sizeof(*v));
	if (!v)
		return -ENOMEM;
	v->buffer = gu_meta_map(BUFFER);
	int err = gu_pack_reader_init(&v->packs);
	v->roots = gu_verify_roots_create();
	h->verifier = v;
	if (!err && v->buffer && v->roots)
		return 0;
	gu_verify_destroy(h);
	return -ENOMEM;
}

static void drop_set(struct shadow_set *s)
{
	gu_meta_unmap(s->list, s->list_len);
	gu_meta_unmap(s->reached, s->reached_len);
	gu_meta_unmap(s->from, s->from_len);
	memset(s, 0, sizeof(*s));
}

static void drop_copies(struct gu_verifier *v)
{
	gu_meta_unmap(v->copies, v->pages << GU_PAGE_SHIFT);
	gu_meta_unmap(v->copied, gu_align_up(v->pages / 8 + 8, GU_PAGE));
	v->copies = NULL;
	v->copied = NULL;
}

void gu_verify_destroy(struct gcuffd_heap *h)
{
	if (!h->verifier)
		return;
	drop_set(&h->verifier->set);
	gu_meta_unmap(h->verifier->buffer, BUFFER);
	gu_pack_reader_destroy(&h->verifier->packs);
	gu_verify_roots_destroy(h->verifier->roots);
	drop_copies(h->verifier);
	gu_meta_free(h->verifier, sizeof(*h->verifier));
	h->verifier = NULL;
}

/* ---- the list of objects ---- */

static void shadow_block(struct shadow_set *s, struct gu_block *b)
{
	s->list[s->n++] = (struct shadow){b, b->start, b->bytes, b->cell, b->ncells, (uint32_t)s->cells, gu_load_relaxed(&b->made), b->kind};
	s->cells += b->ncells;
}

static int by_start(const void *a, const void *b)
{
	uintptr_t x = ((const struct shadow *)a)->start, y = ((const struct shadow *)b)->start;
	return x < y ? -1 : x > y;
}

/* Heap sort: qsort may allocate. */
static void sift(struct shadow *a, size_t at, size_t n)
{
	for (size_t child; (child = 2 * at + 1) < n; at = child) {
		child += child + 1 < n && by_start(&a[child], &a[child + 1]) < 0;
		if (by_start(&a[at], &a[child]) >= 0)
			return;
		struct shadow swap = a[at];
		a[at] = a[child];
		a[child] = swap;
	}
}

static void sort_shadows(struct shadow *a, size_t n)
{
	for (size_t i = n / 2; i-- > 0;)
		sift(a, i, n);
	for (size_t end = n; end-- > 1;) {
		struct shadow swap = a[0];
		a[0] = a[end];
		a[end] = swap;
		sift(a, 0, end);
	}
}

static int list_objects(struct gcuffd_heap *h, struct shadow_set *s)
{
	uint32_t n = gu_block_count(&h->space);
	drop_set(s);
	s->list_len = gu_align_up((n + 1) * sizeof(struct shadow), GU_PAGE);
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
	if (!s->list || !s->reached || !s->from) {
		drop_set(s);
		return -ENOMEM;
	}
	sort_shadows(s->list, s->n);
	return 0;
}

static struct shadow *shadow_at(struct shadow_set *s, uintptr_t at)
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

/* Allocated, not given back, and not merely set aside for the thread that allocates from the block. */
static bool is_object(const struct shadow *s, uint32_t cell)
{
	const struct gu_bits *bits = &s->block->bits[cell / 64];
	const struct gu_run *owner = s->block->owner;
	if (owner && owner->block == s->block && owner->group == cell / 64 && has_bit(owner->mask, cell))
		return false;
	return has_bit(bits->start, cell) && !has_bit(bits->freed, cell);
}

/* ---- the trace ---- */

static void reach(struct gu_verifier *v, uintptr_t word, uintptr_t from, bool base_only)
{
	struct shadow *s = shadow_at(&v->set, word);
	if (!s)
		return;
	uint32_t cell = (uint32_t)((word - s->start) / s->cell);
	if (cell >= s->ncells || !is_object(s, cell) || (base_only && (word - s->start) % s->cell))
		return;
	uint64_t number = (uint64_t)s->first + cell;
	if (has_bit(v->set.reached[number / 64], number % 64))
		return;
	v->set.reached[number / 64] |= 1ull << (number % 64);
	v->set.from[number] = from;
	v->stack[v->depth++] = word - (word - s->start) % s->cell;
}

static GU_READS_STACKS void reach_words(struct gu_verifier *v, const uintptr_t *p, size_t n, uintptr_t from, bool base_only)
{
	for (size_t i = 0; i < n; i++)
		reach(v, p[i], from + i * 8, base_only);
}

static bool make_copies(const struct gcuffd_heap *h, struct gu_verifier *v)
{
	if (v->copies)
		return true;
	v->pages = gu_load_acquire(&h->space.top) >> GU_PAGE_SHIFT;
	v->copies = gu_meta_map(v->pages << GU_PAGE_SHIFT);
	v->copied = v->copies ? gu_meta_map(gu_align_up(v->pages / 8 + 8, GU_PAGE)) : NULL;
	if (!v->copied)
		drop_copies(v);
	return v->copied;
}

/* What is at the page's address, without bringing it there. NULL: nobody can say. */
static const uintptr_t *contents(struct gcuffd_heap *h, struct gu_verifier *v, size_t page)
{
	const struct gu_cold *c = &h->space.cold;
	if (!c->on || !gu_cold_is_out(c, page) || gu_cold_state(c, page) == GU_COLD_LIVE)
		return (const uintptr_t *)gu_space_address(&h->space, page);
	if (gu_cold_state(c, page) == GU_COLD_PARKED)
		return (const uintptr_t *)gu_cold_park(c, page);
	if (!make_copies(h, v) || page >= v->pages)
		return NULL;
	char *copy = v->copies + (page << GU_PAGE_SHIFT);
	if (!has_bit(v->copied[page / 64], page % 64) && gu_cold_get(c, gu_cold_region(c, page)->slot[page % GU_REGION_PAGES], copy))
		return NULL;
	v->copied[page / 64] |= 1ull << page % 64;
	return (const uintptr_t *)copy;
}

/* Words [from, to) of the object, which are on one page; words is where the object would begin. */
static void scan_part(struct gcuffd_heap *h, struct gu_verifier *v, const struct shadow *s, uintptr_t object, const uintptr_t *words, size_t from, size_t to)
{
	bool base_only = gu_heap_is(h, GCUFFD_NO_INTERIOR);
	const struct gcuffd_type *t = s->kind == GCUFFD_TYPED ? h->types[s->block->types[(object - s->start) / s->cell]] : NULL;
	if (!t)
		reach_words(v, words + from, to - from, object + from * 8, base_only);
	for (size_t i = from; t && i < t->words && i < to; i++)
		if (has_bit(t->bitmap[i / 64], i % 64))
			reach(v, words[i], object + i * 8, base_only);
}

static void scan_object(struct gcuffd_heap *h, struct gu_verifier *v, uintptr_t object)
{
	struct shadow *s = shadow_at(&v->set, object);
	for (size_t at = 0, next; at < s->cell && s->kind != GCUFFD_ATOMIC; at = next) {
		uintptr_t page = gu_align_down(object + at, GU_PAGE);
		next = gu_min(page + GU_PAGE - object, s->cell);
		const uintptr_t *words = contents(h, v, gu_space_page(&h->space, page));
		if (words) /* object and page differ by less than an address */
			scan_part(h, v, s, object, words - (intptr_t)(page - object) / 8, at / 8, next / 8);
	}
}

struct tracing {
	struct gcuffd_heap *heap;
	struct gu_verifier *v;
};

static void empty_stack(struct tracing *t)
{
	while (t->v->depth)
		scan_object(t->heap, t->v, t->v->stack[--t->v->depth]);
}

static void trace_range(void *data, uintptr_t start, uintptr_t end, bool foreign)
{
	struct tracing *t = data;
	for (uintptr_t at = start; foreign && at < end;) {
		long got = gu_os->process_vm_readv(gu_os->gettid(), t->v->buffer, (void *)at, gu_min(end - at, BUFFER));
		if (got >= 8)
			reach_words(t->v, t->v->buffer, (size_t)got / 8, at + FROM_ROOT, false);
		at = got >= 8 ? at + ((size_t)got & ~7ul) : gu_align_down(at, GU_PAGE) + GU_PAGE;
		empty_stack(t);
	}
	if (!foreign && end > start)
		reach_words(t->v, (const uintptr_t *)start, (end - start) / 8, start + FROM_ROOT, false);
	empty_stack(t);
}

static bool is_reached(struct gu_verifier *v, uintptr_t object)
{
	const struct shadow *s = shadow_at(&v->set, object);
	uint64_t number = s ? (uint64_t)s->first + (object - s->start) / s->cell : 0;
	return s && has_bit(v->set.reached[number / 64], number % 64);
}

/* Values of reached keys, until there are no more. */
static void trace_values(struct tracing *t)
{
	const struct gcuffd_weak *slots;
	size_t n = gu_weak_slots(t->heap, &slots), more = 1;
	while (more) {
		more = 0;
		for (size_t i = 0; i < n; i++) {
			if (slots[i].value && is_reached(t->v, slots[i].key))
				reach(t->v, slots[i].value, slots[i].key, false);
			more += t->v->depth;
			empty_stack(t);
		}
	}
}

static int trace(struct gcuffd_heap *h)
{
	struct gu_verifier *v = h->verifier;
	int err = list_objects(h, &v->set);
	if (err)
		return err;
	v->stack_len = gu_align_up(v->set.cells * 8 + 8, GU_PAGE);
	v->stack = gu_meta_map(v->stack_len);
	if (!v->stack)
		return -ENOMEM;
	struct tracing t = {h, v};
	struct gu_root_visit visit = {trace_range, &t};
	gu_verify_roots_each(h, v->roots, &visit);
	trace_values(&t);
	gu_meta_unmap(v->stack, v->stack_len);
	v->stack = NULL;
	return 0;
}

/* ---- the checks ---- */

static void name_mapping(uintptr_t at, char *name)
{
	struct gu_map map;
	uintptr_t start, end;
	if (gu_own_next(at, &start, &end) && start <= at)
		snprintf(name, GU_MAP_NAME, "memory that the library mapped");
	else if (gu_maps_find(at, &map))
		snprintf(name, GU_MAP_NAME, "an unknown mapping");
	else
		snprintf(name, GU_MAP_NAME, "%s", map.name[0] ? map.name : "memory without a name");
}

/* Back along the path by which the trace came to the cell. */
static void find_root(struct shadow_set *set, const struct shadow *s, uint32_t cell, struct report *r)
{
	uintptr_t from = set->from[s->first + cell];
	if (!from) {
		snprintf(r->where, sizeof(r->where), "nothing");
		return;
	}
	for (; !(from & FROM_ROOT); r->steps++) {
		const struct shadow *on = shadow_at(set, from);
		from = set->from[on->first + (from - on->start) / on->cell];
	}
	r->root = from - FROM_ROOT;
	name_mapping(r->root, r->where);
}

static uint64_t complain(struct gu_verifier *v, const char *what, const struct shadow *s, uint32_t cell)
{
	if (v->nreports < REPORTS) {
		struct report *r = &v->reports[v->nreports++];
		*r = (struct report){.what = what, .object = s->start + cell * s->cell, .size = s->cell};
		find_root(&v->set, s, cell, r);
	}
	return 1;
}

typedef bool wrong_fn(const struct shadow *s, uint32_t cell);

static bool is_gone(const struct shadow *s, uint32_t cell) { return !has_bit(s->block->bits[cell / 64].start, cell); }

/* Mutators run. A block that was given back and made anew, maybe of the same size in the same place, has lost its dropped bits. */
static bool is_gone_undropped(const struct shadow *s, uint32_t cell)
{
	bool gone = gu_load_acquire(&s->block->state) == GU_BLOCK_FREE || !has_bit(gu_load_acquire(&s->block->bits[cell / 64].start), cell);
	bool dropped = has_bit(gu_load_acquire(&s->block->bits[cell / 64].dropped), cell);
	return gone && !dropped && gu_load_relaxed(&s->block->made) == s->made;
}

static bool is_unmarked(const struct shadow *s, uint32_t cell)
{
	return is_object(s, cell) && !has_bit(s->block->bits[cell / 64].mark, cell);
}

static uint64_t check_reached(struct gu_verifier *v, const char *what, wrong_fn *wrong)
{
	uint64_t n = 0;
	for (size_t i = 0; i < v->set.n; i++) {
		const struct shadow *s = &v->set.list[i];
		for (uint32_t c = 0; c < s->ncells; c++)
			if (has_bit(v->set.reached[(s->first + c) / 64], (s->first + c) % 64) && wrong(s, c))
				n += complain(v, what, s, c);
	}
	return n;
}

static void clear_dropped(struct gcuffd_heap *h)
{
	for (uint32_t i = 1; i <= gu_block_count(&h->space); i++) {
		struct gu_block *b = &h->space.blocks[i];
		for (uint32_t g = 0; b->state != GU_BLOCK_FREE && g < gu_block_groups(b); g++)
			gu_store_relaxed(&b->bits[g].dropped, 0);
	}
}

/* ---- summaries ---- */

static bool points(const struct gcuffd_heap *h, const struct shadow *s, uint32_t cell, size_t word, uintptr_t value)
{
	if (value - h->space.base >= h->space.size || s->kind == GCUFFD_ATOMIC)
		return false;
	const struct gcuffd_type *t = s->kind == GCUFFD_TYPED ? h->types[s->block->types[cell]] : NULL;
	return !t || (word < t->words && has_bit(t->bitmap[word / 64], word % 64));
}

/* A word of an object on a page that is out is in the page's summary if and only if it may be a pointer (.inv.summary.same). */
static uint64_t check_summary(struct gcuffd_heap *h, struct gu_verifier *v, const struct gu_cold_region *r, size_t page)
{
	uintptr_t at = gu_space_address(&h->space, page), found;
	const uintptr_t *words = contents(h, v, page);
	struct shadow *s = shadow_at(&v->set, at);
	const struct gu_summary *summary = r->summary[page % GU_REGION_PAGES];
	uint64_t n = 0;
	if (summary == GU_COLD_PEEK || (gu_cold_pack(summary) && gu_pack_read(h, &v->packs, page, &summary)))
		return 0;
	for (size_t i = 0; i < GU_PAGE_WORDS && words && s; i++) {
		uint32_t cell = (uint32_t)((at + i * 8 - s->start) / s->cell);
		if (cell >= s->ncells || !is_object(s, cell))
			continue;
		size_t has = gu_summary_read(h, summary, i, i + 1, &found);
		bool right = has ? found == words[i] : !points(h, s, cell, (at + i * 8 - s->start) % s->cell / 8, words[i]);
		n += right ? 0 : complain(v, "summary of a page that is out differs from its contents", s, cell);
	}
	return n;
}

static uint64_t check_summaries(struct gcuffd_heap *h, struct gu_verifier *v)
{
	const struct gu_cold *c = &h->space.cold;
	uint64_t n = 0;
	gu_pack_reader_reset(&v->packs);
	size_t pages = c->on && gu_load_relaxed(&c->nout) ? gu_load_acquire(&h->space.top) >> GU_PAGE_SHIFT : 0;
	for (size_t p = 0; p < pages; p++)
		if (gu_cold_is_out(c, p) && gu_cold_state(c, p) == GU_COLD_EVICTED)
			n += check_summary(h, v, gu_cold_region(c, p), p);
	return n;
}

void gu_verify_list(struct gcuffd_heap *h) { gu_verify_roots_list(h, h->verifier->roots); }

uint64_t gu_verify_begin(struct gcuffd_heap *h)
{
	clear_dropped(h);
	drop_copies(h->verifier);
	return trace(h) ? 1 : 0;
}

uint64_t gu_verify_mark(struct gcuffd_heap *h)
{
	uint64_t n = check_reached(h->verifier, "reachable at the start of marking, swept before its end", is_gone);
	if (trace(h))
		return n + 1;
	n += check_summaries(h, h->verifier);
	return n + check_reached(h->verifier, "reachable but not marked", is_unmarked);
}

uint64_t gu_verify_swept(struct gcuffd_heap *h)
{
	drop_copies(h->verifier);
	return check_reached(h->verifier, "reachable when marking ended, but swept", is_gone_undropped);
}

void gu_verify_report(struct gcuffd_heap *h)
{
	struct gu_verifier *v = h->verifier;
	for (const struct report *r = v->reports; r < v->reports + v->nreports; r++)
		gu_log(&h->log, GU_LOG_ERROR, "verifier: object %#lx of %zu bytes: %s (led to by the word at %#lx in %s, through %u objects)",
		       (unsigned long)r->object, r->size, r->what, (unsigned long)r->root, r->where, r->steps);
	v->nreports = 0;
}
