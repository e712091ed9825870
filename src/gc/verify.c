/* SPDX-License-Identifier: MIT */
/* verify.c - the independent trace. The collector, in a stop (swept: after one). Slow and plain on purpose. */
#include "gc/verify.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/meta.h"
#include "base/own.h"
#include "gc/final.h"
#include "gc/mutator.h"
#include "gc/pack.h"
#include "gc/roots.h"
#include "gc/summary.h"
#include "gc/trace.h"
#include "gc/verifyroots.h"
#include "space/store.h"
#include "sys/maps.h"
#include "sys/os.h"

#define REPORTS 8

struct report {
	const char *what;
	uintptr_t object;
	size_t size;
	uintptr_t root; /* where the path to it begins */
	unsigned steps; /* objects in between */
	char where[GU_MAP_NAME];
};

struct gu_verifier {
	struct gu_trace trace;
	struct gu_verify_roots *roots;
	struct gu_pack_reader packs;
	struct report reports[REPORTS];
	size_t nreports;
};

int gu_verify_create(struct gcuffd_heap *h)
{
	struct gu_verifier *v = gu_meta_alloc(sizeof(*v));
	if (!v)
		return -ENOMEM;
	v->roots = gu_verify_roots_create();
	h->verifier = v;
	int err = gu_pack_reader_init(&v->packs);
	if (!gu_trace_create(&v->trace, true) && !err && v->roots)
		return 0;
	gu_verify_destroy(h);
	return -ENOMEM;
}

void gu_verify_destroy(struct gcuffd_heap *h)
{
	if (!h->verifier)
		return;
	gu_trace_destroy(&h->verifier->trace);
	gu_pack_reader_destroy(&h->verifier->packs);
	gu_verify_roots_destroy(h->verifier->roots);
	gu_meta_free(h->verifier, sizeof(*h->verifier));
	h->verifier = NULL;
}

static bool has_bit(uint64_t word, uint32_t cell) { return word >> (cell % 64) & 1; }

/* ---- the trace ---- */

static void trace_range(void *data, uintptr_t start, uintptr_t end, bool foreign) { gu_trace_range(data, start, end, foreign); }

static int trace(struct gcuffd_heap *h)
{
	struct gu_trace *t = &h->verifier->trace;
	struct gu_root_visit visit = {trace_range, t};
	int err = gu_trace_begin(h, t);
	if (err)
		return err;
	gu_verify_roots_each(h, h->verifier->roots, &visit);
	gu_trace_run(h, t);
	gu_trace_end(t);
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
static void find_root(const struct gu_trace *t, struct report *r)
{
	uintptr_t from = gu_trace_from(t, r->object);
	if (!from) {
		snprintf(r->where, sizeof(r->where), "nothing");
		return;
	}
	for (; !(from & GU_TRACE_ROOT); r->steps++)
		from = gu_trace_from(t, from);
	r->root = from - GU_TRACE_ROOT;
	name_mapping(r->root, r->where);
}

static uint64_t complain(struct gu_verifier *v, const char *what, const struct gu_shadow *s, uint32_t cell)
{
	if (v->nreports < REPORTS) {
		struct report *r = &v->reports[v->nreports++];
		*r = (struct report){.what = what, .object = s->start + cell * s->cell, .size = s->cell};
		find_root(&v->trace, r);
	}
	return 1;
}

typedef bool wrong_fn(const struct gu_shadow *s, uint32_t cell);

static bool is_gone(const struct gu_shadow *s, uint32_t cell) { return !has_bit(s->block->bits[cell / 64].start, cell); }

/* Mutators run. A block that was given back and made anew, maybe of the same size in the same place, has lost its dropped bits. */
static bool is_gone_undropped(const struct gu_shadow *s, uint32_t cell)
{
	bool gone = gu_load_acquire(&s->block->state) == GU_BLOCK_FREE || !has_bit(gu_load_acquire(&s->block->bits[cell / 64].start), cell);
	bool dropped = has_bit(gu_load_acquire(&s->block->bits[cell / 64].dropped), cell);
	return gone && !dropped && gu_load_relaxed(&s->block->made) == s->made;
}

static bool is_unmarked(const struct gu_shadow *s, uint32_t cell)
{
	return gu_shadow_is_object(s, cell) && !has_bit(s->block->bits[cell / 64].mark, cell);
}

static uint64_t check_reached(struct gu_verifier *v, const char *what, wrong_fn *wrong)
{
	uint64_t n = 0;
	for (size_t i = 0; i < v->trace.n; i++) {
		const struct gu_shadow *s = &v->trace.list[i];
		for (uint32_t c = 0; c < s->ncells; c++)
			if (gu_trace_reached(&v->trace, s, c) && wrong(s, c))
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

static bool points(const struct gcuffd_heap *h, const struct gu_shadow *s, uint32_t cell, size_t word, uintptr_t value)
{
	if (value - h->space.base >= h->space.size || s->kind == GCUFFD_ATOMIC)
		return false;
	const struct gcuffd_type *t = s->kind == GCUFFD_TYPED ? h->types[s->block->types[cell]] : NULL;
	return !t || gu_type_points(t, word);
}

/* A word of an object on a page that is out is in the page's summary if and only if it may be a pointer (.inv.summary.same). */
static uint64_t check_summary(struct gcuffd_heap *h, struct gu_verifier *v, const struct gu_cold_region *r, size_t page)
{
	uintptr_t at = gu_space_address(&h->space, page), found;
	const uintptr_t *words = gu_trace_contents(h, &v->trace, page);
	struct gu_shadow *s = gu_shadow_at(&v->trace, at);
	const struct gu_summary *summary = r->summary[page % GU_REGION_PAGES];
	uint64_t n = 0;
	int err = gu_cold_pack(summary) ? gu_pack_read(h, &v->packs, page, &summary) : 0;
	if (err && err != -EIO && s) /* a file that can't be read now is counted only */
		return complain(v, "summary of a page that is out is not what was written", s, (uint32_t)((at - s->start) / s->cell));
	if (err || summary == GU_COLD_PEEK)
		return 0;
	for (size_t i = 0; i < GU_PAGE_WORDS && words && s; i++) {
		uint32_t cell = (uint32_t)((at + i * 8 - s->start) / s->cell);
		if (cell >= s->ncells || !gu_shadow_is_object(s, cell))
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
	gu_trace_drop_copies(&h->verifier->trace);
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

uint64_t gu_verify_final(struct gcuffd_heap *h)
{
	struct gu_trace *t = &h->verifier->trace;
	struct gu_root_visit visit = {trace_range, t};
	if (gu_trace_more(t))
		return 1;
	gu_final_each(h, &visit);
	gu_trace_run(h, t);
	gu_trace_end(t);
	return check_reached(h->verifier, "led to by what waits for its finalizer, but not marked", is_unmarked);
}

uint64_t gu_verify_swept(struct gcuffd_heap *h)
{
	gu_trace_drop_copies(&h->verifier->trace);
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
