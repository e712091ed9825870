/* SPDX-License-Identifier: MIT */
/* alloc.c - allocation, reallocation, freeing and finding. Attached threads. */
#include "gc/alloc.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "api/api.h"
#include "ctl/finalizer.h"
#include "ctl/service.h"
#include "gc/pins.h"
#include "gc/stop.h"
#include "sys/os.h"
#include "sys/scan.h"

/* A cell of a class whose multiples keep the alignment, or 0 if only whole pages do. */
static size_t cell_for(size_t size, size_t align)
{
	if (size > GU_SMALL_MAX)
		return 0;
	if (align <= GU_GRANULE)
		return size;
	if (align > GU_PAGE)
		return 0;
	for (size = gu_align_up(size, align); size <= GU_SMALL_MAX; size += align)
		if (gu_class_size(gu_class_of(size)) % align == 0)
			return size;
	return 0;
}

static void *try_small(struct gu_thread *t, struct gcuffd_arena *a, size_t size, unsigned kind, const struct gcuffd_type *type)
{
	unsigned class = gu_class_of(size);
	void *p = NULL;
	gu_section_enter(t);
	struct gu_cache *c = gu_cache_make(t, a);
	struct gu_run *run = c ? &c->runs[kind][class] : NULL;
	if (run && (run->mask || !gu_alloc_refill(t, c, kind, class)))
		p = gu_run_next(run, type);
	gu_section_exit(t);
	return p;
}

/* What was taken since the last time: a block of cells at a time, a large object before it is there. */
static void throttle(struct gcuffd_arena *a, struct gu_cache *c, size_t large)
{
	size_t bytes = large ? large : c ? c->owed : 0;
	if (!bytes)
		return;
	if (!large)
		c->owed = 0;
	gu_service_throttle(a->heap, bytes);
}

static __attribute__((noinline)) void *alloc_slow(struct gcuffd_arena *a, size_t size, size_t align, unsigned kind, const struct gcuffd_type *type)
{
	struct gu_thread *t = gu_self;
	struct gcuffd_heap *h = a->heap;
	size = gu_max(size, 1);
	size_t cell = cell_for(size, align);
	if (!t) {
		errno = EPERM;
		return NULL;
	}
	throttle(a, t->caches[a->slot], cell ? 0 : size);
	for (struct gu_request request = {0};;) {
		gu_service_try(h, &request);
		void *p = cell ? try_small(t, a, cell, kind, type) : gu_alloc_large(t, a, size, align, kind, type);
		if (gu_unlikely(gu_service_wanted(h)))
			gu_service_start(h, false);
		if (gu_unlikely(gu_finalizer_is_lost(h)))
			gu_finalizer_fork_resume(h);
		if (gu_unlikely(gu_load_relaxed(&gcuffd_stop_asked)) && gu_load_relaxed(&t->stopped_by)) /* a safepoint, on what is not the fast path */
			gu_stop_obey();
		if (p)
			return p;
		if (!gu_service_more_memory(h, size, &request)) {
			errno = ENOMEM;
			return NULL;
		}
	}
}

/* The ways out of alloc(). In a section: what needs more than a few instructions; */
static __attribute__((noinline)) void *alloc_in_section(struct gcuffd_arena *a, size_t size, unsigned kind, const struct gcuffd_type *type)
{
	struct gu_thread *t = gu_self;
	if (gu_load_relaxed(&gu_gate))
		gu_section_gate(t);
	void *p = gu_run_next(&t->caches[a->slot]->runs[kind][gu_class_of(size)], type);
	gu_section_exit(t);
	return p ? p : alloc_slow(a, size, GU_GRANULE, kind, type);
}

/* behind one, in which a stop was asked for. */
static __attribute__((noinline)) void *obey(struct gu_thread *t, void *object)
{
	gu_section_obey(t);
	return object;
}

/* The fast path: no lock, no read-modify-write, and no call but as its last step, so that there is nothing to save. */
static inline __attribute__((always_inline)) void *alloc(struct gcuffd_arena *a, size_t size, unsigned kind, const struct gcuffd_type *type)
{
	struct gu_thread *t = gu_self;
	if (gu_unlikely(!t || size - 1 >= GU_SMALL_MAX))
		return alloc_slow(a, size, GU_GRANULE, kind, type);
	struct gu_cache *c = t->caches[a->slot];
	if (gu_unlikely(!c))
		return alloc_slow(a, size, GU_GRANULE, kind, type);
	struct gu_run *run = &c->runs[kind][gu_class_of(size)];
	uint32_t sections = t->section;
	if (gu_unlikely(gu_section_begin(t) || !gu_run_is_ready(run)))
		return alloc_in_section(a, size, kind, type);
	void *p = gu_run_next(run, type);
	return gu_section_end(t, sections) ? obey(t, p) : p;
}

static size_t padded(const struct gcuffd_heap *h, size_t size)
{
	return gu_unlikely(gu_heap_is(h, GCUFFD_PAST_END)) && size < SIZE_MAX ? size + 1 : size;
}

void *gcuffd_alloc(struct gcuffd_heap *h, size_t size) { return alloc(h->arenas[0], padded(h, size), GCUFFD_CONSERVATIVE, NULL); }
void *gcuffd_alloc_atomic(struct gcuffd_heap *h, size_t size) { return alloc(h->arenas[0], padded(h, size), GCUFFD_ATOMIC, NULL); }

void *gcuffd_arena_alloc(struct gcuffd_arena *a, size_t size, size_t align, enum gcuffd_kind kind)
{
	if ((align && !gu_is_pow2(align)) || align > GU_REGION || (kind != GCUFFD_CONSERVATIVE && kind != GCUFFD_ATOMIC)) {
		errno = EINVAL;
		return NULL;
	}
	size = padded(a->heap, size ? size : 1);
	return align <= GU_GRANULE ? alloc(a, size, kind, NULL) : alloc_slow(a, size, align, kind, NULL);
}

void *gcuffd_alloc_aligned(struct gcuffd_heap *h, size_t size, size_t align, enum gcuffd_kind kind)
{
	if (!align) {
		errno = EINVAL;
		return NULL;
	}
	return gcuffd_arena_alloc(h->arenas[0], size, align, kind);
}

void *gcuffd_arena_alloc_typed(struct gcuffd_arena *a, const struct gcuffd_type *type, size_t size)
{
	if (gu_unlikely(!type || gu_type_least(type) > size / 8)) {
		errno = EINVAL;
		return NULL;
	}
	return alloc(a, padded(a->heap, gu_max(size, 1)), GCUFFD_TYPED, type);
}

void *gcuffd_alloc_typed(struct gcuffd_heap *h, const struct gcuffd_type *type, size_t size)
{
	return gcuffd_arena_alloc_typed(h->arenas[0], type, size);
}

/* ---- finding and freeing ---- */

static bool find(struct gcuffd_heap *h, const void *pointer, struct gu_found *f)
{
	struct gu_thread *t = gu_enter();
	bool found = gu_object_find(h, (uintptr_t)pointer, f);
	gu_leave(t);
	return found;
}

int gcuffd_object_find(struct gcuffd_heap *h, const void *pointer, struct gcuffd_object *o)
{
	struct gu_found f;
	if (!find(h, pointer, &f))
		return -ENOENT;
	*o = (struct gcuffd_object){(void *)f.base, f.size, (enum gcuffd_kind)f.block->kind, f.block->arena};
	return 0;
}

int gcuffd_free(struct gcuffd_heap *h, void *object)
{
	if (!object)
		return 0;
	struct gu_thread *t = gu_enter();
	int err = gu_free(h, (uintptr_t)object);
	gu_leave(t);
	if (gu_unlikely(err))
		gu_report(h, "gcuffd_free", object, err);
	return err;
}

static void *alloc_like(const struct gu_found *f, size_t size)
{
	struct gcuffd_arena *a = f->block->arena;
	if (f->block->kind != GCUFFD_TYPED)
		return alloc(a, padded(a->heap, size), f->block->kind, NULL);
	const struct gcuffd_type *type = a->heap->types[f->block->types[f->cell]];
	return gcuffd_arena_alloc_typed(a, type, gu_max(size, gu_type_least(type) * 8));
}

/* Stays where it is if that wastes less than half; what lies beyond the new size is cleared, for a later growth (.inv.resize.in-place). */
static bool fits_in_place(const struct gu_found *f, size_t size)
{
	return size <= f->size && (size * 2 > f->size || f->size <= 64);
}

#define SPARSE_MIN ((size_t)1 << 20)

/* Never while the heap is saved: what was written to the file before would not be found written (.inv.image.window). */
static bool drop(struct gcuffd_heap *h, uintptr_t start, uintptr_t end)
{
	struct gu_thread *t = gu_enter();
	bool dropped = gu_load_relaxed(&h->phase) != GU_PHASE_WINDOW &&
		       gu_pages_may_drop(&h->space, gu_space_page(&h->space, start), gu_space_page(&h->space, end)) &&
		       !gu_os->madvise((void *)start, end - start, MADV_DONTNEED);
	gu_leave(t);
	return dropped;
}

/* Pages of a large tail are dropped, so that those never touched stay so (not where they may be out). They go on counting as resident. */
static void clear_tail(struct gcuffd_heap *h, char *from, size_t len)
{
	uintptr_t start = gu_align_up((uintptr_t)from, GU_PAGE), end = gu_align_down((uintptr_t)from + len, GU_PAGE);
	if (len < SPARSE_MIN || gu_heap_without(h, GU_WITHOUT_present) || h->space.cold.on || !drop(h, start, end)) {
		memset(from, 0, len);
		return;
	}
	memset(from, 0, start - (uintptr_t)from);
	memset((void *)end, 0, (uintptr_t)from + len - end);
}

struct copying {
	const char *from;
	char *to;
	size_t size;
};

static void copy_run(void *data, uintptr_t start, uintptr_t end)
{
	const struct copying *c = data;
	size_t at = start - (uintptr_t)c->from;
	if (at < c->size)
		memcpy(c->to + at, (const void *)start, gu_min(end - start, c->size - at));
}

/* What was never touched stays so on both sides: the new object is zero. */
static void copy_object(const struct gcuffd_heap *h, char *to, const char *from, size_t size)
{
	struct copying c = {from, to, size};
	bool sparse = size >= SPARSE_MIN && !gu_heap_without(h, GU_WITHOUT_present) && !h->space.cold.on; /* what is out is not there */
	int fd = sparse ? gu_scan_open() : -1;
	uintptr_t end = gu_align_up((uintptr_t)from + size, GU_PAGE);
	if (fd < 0 || gu_scan_present(fd, (uintptr_t)from, end, false, copy_run, &c))
		memcpy(to, from, size);
	if (fd >= 0)
		gu_os->close(fd);
}

static bool is_pinned(struct gcuffd_heap *h, const struct gu_found *f)
{
	struct gu_thread *t = gu_enter();
	bool pinned = gu_pins_has(h, f->block, f->cell);
	gu_leave(t);
	return pinned;
}

void *gcuffd_realloc(struct gcuffd_heap *h, void *object, size_t size)
{
	struct gu_found f;
	size = size ? size : 1;
	if (!object)
		return gcuffd_alloc(h, size);
	if (!find(h, object, &f) || f.base != (uintptr_t)object) {
		gu_report(h, "gcuffd_realloc", object, -EINVAL);
		errno = EINVAL;
		return NULL;
	}
	if (fits_in_place(&f, padded(h, size))) {
		clear_tail(h, (char *)object + size, f.size - size);
		return object;
	}
	if (is_pinned(h, &f)) { /* what is written through the pins goes to the old place */
		gu_report(h, "gcuffd_realloc", object, -EBUSY);
		errno = EBUSY;
		return NULL;
	}
	void *p = alloc_like(&f, size);
	if (p) {
		copy_object(h, p, object, gu_min(f.size, size));
		gcuffd_free(h, object);
	}
	return p;
}
