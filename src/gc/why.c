/* SPDX-License-Identifier: MIT */
/* why.c - see why.h. */
#include "gc/why.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/meta.h"
#include "gc/accessed.h"
#include "gc/final.h"
#include "gc/mutator.h"
#include "gc/roots.h"
#include "sys/maps.h"

static void no_segment(void *data, uintptr_t start, uintptr_t end) { (void)data, (void)start, (void)end; }

int gu_why_begin(struct gcuffd_heap *h, struct gu_why *w)
{
	gu_why_end(w);
	(void)gu_modules_read(&w->modules, no_segment, NULL);
	(void)gu_accessed_end_all(h); /* else what is read here counts as used */
	int err = gu_roots_refresh(h);
	return err ? err : gu_trace_create(&w->trace, false);
}

void gu_why_end(struct gu_why *w)
{
	gu_trace_destroy(&w->trace);
	gu_meta_unmap(w->steps, w->steps_len);
	w->steps = NULL;
}

/* ---- the roots ---- */

static bool is_in(uintptr_t at, const void *start, size_t len) { return at - (uintptr_t)start < len; }

static bool is_saved(const struct gu_thread *t, uintptr_t at) { return is_in(at, t->saved, sizeof(t->saved)); }

/* The stack that a stopped thread is on: a registered one, a signal's, its own, or one that nobody named. */
static struct gu_root_range stack_of(const struct gu_thread *t)
{
	const struct gcuffd_stack *s = gu_stack_under(t, t->sp);
	uintptr_t sp = gu_align_down(t->sp, 8);
	struct gu_map map;
	if (t->alt_hi)
		return (struct gu_root_range){sp, t->alt_hi};
	if (s)
		return (struct gu_root_range){s->low, s->high};
	if (gu_thread_owns(t, t->sp))
		return (struct gu_root_range){sp, t->stack_hi};
	return (struct gu_root_range){sp, gu_maps_find(sp, &map) ? sp : map.end};
}

static void find_own(struct gu_why *w)
{
	const struct gu_thread *t = gu_threads_first();
	while (t && t->tid != w->tid)
		t = t->next;
	w->asker = t;
	w->stack = t ? stack_of(t) : (struct gu_root_range){0, 0};
}

static void trace_part(struct gu_why *w, uintptr_t start, uintptr_t end, bool foreign)
{
	if (start < end && !w->trace.found)
		gu_trace_range(&w->trace, start, end, foreign);
}

/* A range may be more than the stack of who asks: what lies around that is not its own. */
static void trace_range(void *data, uintptr_t start, uintptr_t end, bool foreign)
{
	struct gu_why *w = data;
	bool all = w->asker && is_saved(w->asker, start);
	uintptr_t lo = all ? start : gu_min(gu_max(w->stack.start, start), end), hi = all ? end : gu_max(gu_min(w->stack.end, end), lo);
	if (w->own) {
		trace_part(w, lo, hi, foreign);
	} else {
		trace_part(w, start, lo, foreign);
		trace_part(w, hi, end, foreign);
	}
}

static void trace_roots(struct gcuffd_heap *h, struct gu_why *w, bool own)
{
	struct gu_root_visit visit = {trace_range, w};
	w->own = own;
	if (w->trace.found)
		return;
	gu_roots_each(h, &visit);
	gu_trace_run(h, &w->trace);
}

/* ---- what sort a root is of ---- */

static enum gcuffd_root_kind named_kind(struct gcuffd_heap *h, uintptr_t at)
{
	enum gcuffd_root_kind kind = 0;
	gu_lock(&h->lock);
	if (is_in(at, h->pins, h->npins * sizeof(*h->pins)))
		kind = GCUFFD_ROOT_PIN;
	else if (is_in(at, h->named, h->nnamed * sizeof(*h->named)))
		kind = GCUFFD_ROOT_IMAGE;
	else if (gu_final_is_root(h, at))
		kind = GCUFFD_ROOT_FINALIZER;
	for (size_t i = 0; i < h->nroots && !kind; i++)
		if (at >= h->roots[i].start && at < h->roots[i].end)
			kind = GCUFFD_ROOT_RANGE;
	gu_unlock(&h->lock);
	return kind;
}

struct in_tls {
	uintptr_t at;
	bool found;
};

static void look_tls(void *data, uintptr_t start, uintptr_t end)
{
	struct in_tls *in = data;
	in->found |= in->at >= start && in->at < end;
}

/* 0: it is not the thread's. */
static enum gcuffd_root_kind thread_kind(const struct gu_why *w, const struct gu_thread *t, uintptr_t at)
{
	struct in_tls in = {at, t->self && at - t->self < GU_TCB_BYTES};
	struct gu_root_range stack = stack_of(t);
	if (is_saved(t, at) || is_in(at, t->own.saved, sizeof(t->own.saved)))
		return GCUFFD_ROOT_REGISTERS;
	if (t->self)
		(void)gu_modules_tls(&w->modules, t->self, look_tls, &in);
	if (in.found)
		return GCUFFD_ROOT_TLS;
	return (at >= stack.start && at < stack.end) || (at >= t->stack_lo && at < t->stack_hi) ? GCUFFD_ROOT_STACK : 0;
}

/* A registered one that no thread is on. */
static enum gcuffd_root_kind stack_kind(uintptr_t at)
{
	for (const struct gcuffd_stack *s = gu_stacks_first(); s; s = s->next)
		if ((at >= s->low && at < s->high) || is_in(at, s->saved, sizeof(s->saved)))
			return GCUFFD_ROOT_STACK;
	return 0;
}

static void classify(struct gcuffd_heap *h, struct gu_why *w, uintptr_t at)
{
	struct gcuffd_root *r = &w->root;
	r->word = (const void *)at;
	r->kind = named_kind(h, at);
	for (const struct gu_thread *t = gu_threads_first(); t && !r->kind; t = t->next) {
		r->kind = thread_kind(w, t, at);
		r->tid = r->kind ? t->tid : 0;
	}
	r->kind = r->kind ? r->kind : stack_kind(at);
	r->kind = r->kind ? r->kind : GCUFFD_ROOT_MEMORY;
}

void gu_why_name_memory(struct gu_why *w)
{
	struct gu_map map;
	if (!gu_maps_find((uintptr_t)w->root.word, &map))
		snprintf(w->root.name, sizeof(w->root.name), "%s", map.name);
}

/* ---- the path ---- */

static struct gcuffd_step step_of(struct gcuffd_heap *h, struct gu_why *w, uintptr_t at, uintptr_t word)
{
	const struct gu_shadow *s = gu_shadow_at(&w->trace, at);
	size_t cell = (at - s->start) / s->cell;
	uintptr_t object = s->start + cell * s->cell;
	const struct gcuffd_type *type = s->kind == GCUFFD_TYPED ? h->types[s->block->types[cell]] : NULL;
	size_t leads = word & GU_TRACE_VALUE ? GCUFFD_STEP_VALUE : word ? (word - object) / 8 : 0;
	return (struct gcuffd_step){(void *)object, s->cell, (enum gcuffd_kind)s->kind, type, s->block->arena, leads};
}

static int tell(struct gcuffd_heap *h, struct gu_why *w)
{
	uintptr_t at = w->target, word = 0, from;
	w->count = 1;
	for (from = at; !((from = gu_trace_from(&w->trace, from)) & GU_TRACE_ROOT);)
		w->count++;
	classify(h, w, from - GU_TRACE_ROOT);
	w->steps_len = gu_align_up(gu_min(w->count, w->max) * sizeof(*w->steps) + 1, GU_PAGE);
	w->steps = gu_meta_map(w->steps_len);
	if (!w->steps)
		return -ENOMEM;
	for (size_t i = w->count; i-- > 0; word = at = gu_trace_from(&w->trace, at))
		if (i < w->max)
			w->steps[i] = step_of(h, w, at, word);
	return 0;
}

int gu_why_find(struct gcuffd_heap *h, struct gu_why *w)
{
	struct gu_trace *t = &w->trace;
	int err = gu_trace_begin(h, t);
	if (err)
		return err;
	const struct gu_shadow *s = gu_shadow_at(t, w->target);
	size_t cell = s ? (w->target - s->start) / s->cell : 0;
	if (!s || cell >= s->ncells || !gu_shadow_is_object(s, (uint32_t)cell))
		return -ENOENT;
	t->target = s->start + cell * s->cell;
	find_own(w);
	trace_roots(h, w, false);
	trace_roots(h, w, true);
	return t->found ? tell(h, w) : -ENOENT;
}
