/* SPDX-License-Identifier: MIT */
/* heap.c - heaps, their types and explicit roots. Any thread. */
#include <errno.h>
#include <string.h>

#include "api/api.h"
#include "base/meta.h"
#include "ctl/finalizer.h"
#include "ctl/service.h"
#include "ctl/tier.h"
#include "gc/imageload.h"
#include "gc/mutator.h"
#include "gc/stop.h"
#include "space/hooks.h"
#include "sys/caps.h"
#include "sys/os.h"
#include "sys/valgrind.h"

static struct gu_lock list_lock = GU_LOCK_INIT(GU_RANK_LIBRARY);
static struct gcuffd_heap *heaps[GU_HEAPS]; /* guard: list_lock */
static uint64_t slots[GU_SLOTS / 64];       /* guard: list_lock; taken */

const char *gcuffd_version(void) { return GCUFFD_VERSION; }

/* fork_lock is outermost and of no rank: waited for by a thread that blocks, never inside a section. */
static struct gu_lock fork_lock = GU_LOCK_INIT(GU_RANK_LIBRARY);

void gu_heaps_freeze(void) { gu_lock_fork(&fork_lock); }
void gu_heaps_thaw(void) { gu_unlock_fork(&fork_lock); }

void gu_heaps_forked(void)
{
	gu_lock_init(&fork_lock, GU_RANK_LIBRARY);
	gu_lock_init(&list_lock, GU_RANK_LIBRARY);
}

static void freeze_blocking(void)
{
	struct gu_wait wait;
	gu_wait_begin(&wait);
	gu_heaps_freeze();
	gu_wait_end(&wait);
}

int gu_heaps_add(struct gcuffd_heap *h)
{
	int err = -EMFILE;
	struct gu_thread *t = gu_enter();
	gu_lock(&list_lock);
	for (uint32_t i = 0; i < GU_HEAPS && err; i++)
		if (!heaps[i]) {
			heaps[i] = h;
			h->id = i;
			err = 0;
		}
	gu_unlock(&list_lock);
	gu_leave(t);
	return err;
}

void gu_heaps_remove(struct gcuffd_heap *h)
{
	struct gu_thread *t = gu_enter();
	gu_lock(&list_lock);
	heaps[h->id] = NULL;
	gu_unlock(&list_lock);
	gu_leave(t);
}

struct gcuffd_heap *gu_heaps_find(uintptr_t at)
{
	struct gcuffd_heap *found = NULL;
	gu_lock(&list_lock);
	for (uint32_t i = 0; i < GU_HEAPS && !found; i++)
		if (heaps[i] && gu_space_has(&heaps[i]->space, at))
			found = heaps[i];
	gu_unlock(&list_lock);
	return found;
}

int gu_heaps_take_slot(uint32_t *slot)
{
	int err = -ENOSPC;
	struct gu_thread *t = gu_enter();
	gu_lock(&list_lock);
	for (uint32_t i = 0; i < GU_SLOTS / 64 && err; i++)
		if (~slots[i]) {
			uint32_t bit = (uint32_t)__builtin_ctzll(~slots[i]);
			slots[i] |= 1ull << bit;
			*slot = i * 64 + bit;
			err = 0;
		}
	gu_unlock(&list_lock);
	gu_leave(t);
	return err;
}

void gu_heaps_give_slot(uint32_t slot)
{
	struct gu_thread *t = gu_enter();
	gu_lock(&list_lock);
	slots[slot / 64] &= ~(1ull << (slot % 64));
	gu_unlock(&list_lock);
	gu_leave(t);
}

void gu_heaps_each(void (*fn)(struct gcuffd_heap *heap))
{
	for (uint32_t i = 0; i < GU_HEAPS; i++)
		if (heaps[i])
			fn(heaps[i]);
}

/* ---- making and ending ---- */

static void enter_thread(void) { gu_enter(); }
static void leave_thread(void) { gu_leave(gu_self); }

#define HEADROOM ((size_t)128 << 10) /* under the limit, for metadata that is accounted when it is there */

static size_t types_len(void) { return gu_align_up(GU_TYPES * sizeof(struct gcuffd_type *), GU_PAGE); }

static int make_tables(struct gcuffd_heap *h, struct gu_image *im)
{
	bool huge = !gu_heap_is(h, GCUFFD_NO_HUGE) && gu_caps()->has_thp;
	size_t limit = h->options.hard_limit ? h->options.hard_limit - HEADROOM : 0;
	if (im)
		im->held = false;
	int err = gu_space_init_at(&h->space, im ? im->head.base : 0, h->options.reservation, limit, huge);
	if (err)
		return err;
	h->space.without = h->options.without;
	if (gu_heap_is(h, GCUFFD_COLD) && gu_cold_init(&h->space))
		return -ENOMEM;
	h->types = gu_meta_reserve(types_len());
	if (!h->types || gu_meta_commit(h->types, types_len()))
		return -ENOMEM;
	err = gu_arena_new(h, "default", &h->arenas[0]);
	if (!err)
		err = gu_service_create(h);
	return err || !im ? err : gu_image_install(h, im);
}

static void unmake(struct gcuffd_heap *h)
{
	gu_service_destroy(h);
	for (unsigned i = 0; i <= GU_ARENAS; i++)
		if (h->arenas[i])
			gu_arena_end(h->arenas[i]);
	for (uint32_t i = 0; i < h->ntypes; i++)
		gu_meta_free(h->types[i], gu_type_size(h->types[i]->words));
	if (h->types)
		gu_meta_unreserve(h->types, types_len());
	if (h->roots)
		gu_meta_free(h->roots, h->roots_max * sizeof(h->roots[0]));
	gu_meta_unmap(h->named, gu_align_up(h->nnamed * sizeof(*h->named), GU_PAGE));
	if (h->pins)
		gu_meta_free(h->pins, h->pins_max * sizeof(h->pins[0]));
	if (h->space.base)
		gu_half_end_all(&h->space);
	if (h->space.base)
		gu_space_destroy(&h->space);
	gu_meta_free(h, sizeof(*h));
}

/* .inv.cycle.turn */
void gu_heap_lock_cycles(struct gcuffd_heap *h)
{
	struct gu_wait wait;
	uint32_t never = 0;
	bool waited = false;
	for (; !gu_trylock(&h->cycle_lock); waited = true) {
		gu_store_seqcst(&h->turn_waits, 1);
		gu_wait_begin(&wait);
		gu_wait_futex(&wait, &never, 0, 1000000);
		gu_wait_end(&wait);
	}
	if (!waited)
		return;
	gu_store_seqcst(&h->turn_waits, 0); /* others say so again */
	gu_os->futex_wake(&h->turn_waits, 1);
}

static int create(const struct gcuffd_options *o, int rung, struct gu_image *im, struct gcuffd_heap **out)
{
	struct gcuffd_heap *h = gu_meta_alloc(sizeof(*h));
	if (!h)
		return -ENOMEM;
	h->options = *o;
	h->rung = rung;
	h->log = gu_log_of(o);
	h->verify_frees = o->flags & GCUFFD_VERIFY;
	gu_lock_init(&h->lock, GU_RANK_ROOTS);
	gu_lock_init(&h->weak_lock, GU_RANK_WEAK);
	gu_lock_init(&h->final_lock, GU_RANK_FINAL);
	gu_lock_init(&h->cycle_lock, GU_RANK_CYCLE);
	int err = make_tables(h, im);
	if (!err)
		err = gu_heaps_add(h);
	if (err)
		unmake(h);
	else
		*out = h;
	return err;
}

/* What valgrind does not know it can't follow. A rung that is demanded is tried all the same. */
static int rung_wanted(const struct gcuffd_options *o, const struct gu_log *log)
{
	static uint32_t said; /* atomic */
	if (o->rung != GCUFFD_RUNG_AUTO || !gu_valgrind_is_here())
		return (int)o->rung;
	if (!gu_swap_seqcst(&said, 1))
		gu_log(log, GU_LOG_WARN, "under valgrind: cycles stop the world, rung stop");
	return GCUFFD_RUNG_STOP;
}

int gu_heap_make(const struct gcuffd_options *o, struct gu_image *im, struct gcuffd_heap **heap)
{
	struct gu_log log = gu_log_of(o);
	int rung, err = gu_tier_probe(o);
	if (err)
		return err;
	freeze_blocking();
	struct gu_thread *t = gu_enter();
	if (gu_os == &gu_os_linux)
		gu_os_set(NULL); /* metadata through the table too */
	gu_jemalloc_init(enter_thread, leave_thread); /* registers its fork handlers before ours */
	err = gu_fork_init();
	if (!err)
		err = gu_stop_init();
	if (!err)
		err = gu_caps_rung(rung_wanted(o, &log), &rung);
	if (!err)
		err = create(o, rung, im, heap);
	gu_leave(t);
	gu_heaps_thaw();
	if (err == -EOPNOTSUPP)
		gu_log(&log, GU_LOG_ERROR, "rung %s is not to be had here; gcuffd probe says why", gu_caps_rung_name((int)o->rung));
	else if (err == -ENOMEM && !im)
		gu_log(&log, GU_LOG_ERROR, "no address space for a reservation of %zu MiB and its tables (ulimit -v?)", o->reservation >> 20);
	return err;
}

int gcuffd_heap_create(const struct gcuffd_options *options, struct gcuffd_heap **heap)
{
	struct gcuffd_options o;
	if (gu_world_is_closed_by_caller())
		return -EBUSY;
	gu_without_init();
	int err = gu_options_resolve(&o, options, 0);
	return err ? err : gu_heap_make(&o, NULL, heap);
}

int gcuffd_heap_destroy(struct gcuffd_heap *h)
{
	if (gu_world_is_closed_by_caller())
		return -EBUSY;
	int err = gu_finalizer_quit(h); /* before what a finalizer may wait for */
	if (err)
		return err;
	freeze_blocking();
	gu_heaps_remove(h);
	gu_service_quit(h);
	for (unsigned i = 0; i <= GU_ARENAS; i++)
		if (h->arenas[i])
			gu_cache_drop_arena(h->arenas[i]);
	struct gu_image *im = h->space.cold.image;
	struct gu_thread *t = gu_enter();
	unmake(h);
	if (im)
		gu_image_free(im);
	gu_leave(t);
	gu_heaps_thaw();
	return 0;
}

/* ---- types ---- */

static int add_type(struct gcuffd_heap *h, const uint64_t *bitmap, size_t words, size_t element, struct gcuffd_type **out)
{
	struct gcuffd_type *t = gu_meta_alloc(gu_type_size(words));
	if (!t)
		return -ENOMEM;
	t->words = (uint32_t)words;
	t->element = (uint32_t)element;
	memcpy(t->bitmap, bitmap, gu_type_bitmap_words(words) * 8);
	gu_lock(&h->lock);
	bool fits = h->ntypes < GU_TYPES;
	if (fits) {
		t->index = h->ntypes;
		gu_store_release(&h->types[t->index], t); /* pairs with the markers' load */
		gu_store_release(&h->ntypes, t->index + 1); /* after it: who saves goes by the number */
	}
	gu_unlock(&h->lock);
	if (!fits) {
		gu_meta_free(t, gu_type_size(words));
		return -ENOSPC;
	}
	*out = t;
	return 0;
}

/* One that the image has, for a program that makes its types anew. */
static struct gcuffd_type *find_loaded(const struct gcuffd_heap *h, const uint64_t *bitmap, size_t words, size_t element)
{
	const struct gu_image *im = h->space.cold.image;
	for (uint32_t i = 0; im && i < im->head.ntypes; i++) {
		struct gcuffd_type *t = h->types[i];
		if (t->words == words && t->element == element && !memcmp(t->bitmap, bitmap, gu_type_bitmap_words(words) * 8))
			return t;
	}
	return NULL;
}

static int make_type(struct gcuffd_heap *h, const uint64_t *bitmap, size_t words, size_t element, struct gcuffd_type **type)
{
	if ((*type = find_loaded(h, bitmap, words, element)))
		return 0;
	struct gu_thread *t = gu_enter();
	int err = add_type(h, bitmap, words, element, type);
	gu_leave(t);
	return err;
}

int gcuffd_type_create(struct gcuffd_heap *h, const uint64_t *bitmap, size_t words, struct gcuffd_type **type)
{
	return bitmap && words && words <= GU_TYPE_WORDS ? make_type(h, bitmap, words, 0, type) : -EINVAL;
}

int gcuffd_type_create_array(struct gcuffd_heap *h, const uint64_t *bitmap, size_t head, size_t element, struct gcuffd_type **type)
{
	bool fits = bitmap && element && head <= GU_TYPE_WORDS && element <= GU_TYPE_WORDS - head;
	return fits ? make_type(h, bitmap, head + element, element, type) : -EINVAL;
}

/* ---- explicit roots ---- */

static int grow_roots_locked(struct gcuffd_heap *h)
{
	size_t max = h->roots_max ? h->roots_max * 2 : 16;
	struct gu_root_range *more = gu_meta_alloc(max * sizeof(*more));
	if (!more)
		return -ENOMEM;
	if (h->roots) {
		memcpy(more, h->roots, h->nroots * sizeof(*more));
		gu_meta_free(h->roots, h->roots_max * sizeof(*more));
	}
	h->roots = more;
	h->roots_max = max;
	return 0;
}

static size_t find_root_locked(const struct gcuffd_heap *h, uintptr_t start)
{
	size_t i = 0;
	while (i < h->nroots && h->roots[i].start != start)
		i++;
	return i;
}

static int add_root_locked(struct gcuffd_heap *h, uintptr_t start, uintptr_t end)
{
	if (find_root_locked(h, start) < h->nroots)
		return -EEXIST;
	int err = h->nroots == h->roots_max ? grow_roots_locked(h) : 0;
	if (!err)
		h->roots[h->nroots++] = (struct gu_root_range){start, end};
	return err;
}

int gcuffd_root_add(struct gcuffd_heap *h, const void *start, size_t length)
{
	uintptr_t from = (uintptr_t)start;
	if (!start || !length || from + length < from)
		return -EINVAL;
	struct gu_thread *t = gu_enter();
	gu_lock(&h->lock);
	int err = add_root_locked(h, from, from + length);
	gu_unlock(&h->lock);
	gu_leave(t);
	return err;
}

int gcuffd_root_remove(struct gcuffd_heap *h, const void *start)
{
	struct gu_thread *t = gu_enter();
	gu_lock(&h->lock);
	size_t i = find_root_locked(h, (uintptr_t)start);
	bool found = i < h->nroots;
	if (found)
		h->roots[i] = h->roots[--h->nroots];
	gu_unlock(&h->lock);
	gu_leave(t);
	return found ? 0 : -EINVAL;
}
