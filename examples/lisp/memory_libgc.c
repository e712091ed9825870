/* SPDX-License-Identifier: MIT */
/*
 * memory_libgc.c - memory.h on Boehm's libgc, as a program would use it that knows it: thread-local allocation, atomic and typed objects, parallel marking; in objects
 * only addresses of their first bytes count, and those of pairs and flonums with their tags, so that a pair takes two words.
 *
 * It has no ephemerons: a value of a weak reference is kept alive by it, so an entry whose value leads to its key stays.
 */
#ifndef GC_THREADS
#define GC_THREADS
#endif
#include <errno.h>
#include <gc.h>
#include <gc/gc_typed.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "memory.h"

static GC_descr types[SHAPES];
static const struct shape {
	size_t words;
	GC_word values;
} shapes[SHAPES] = {
	[SHAPE_PORT] = {3, 0x6},
};

/* Guard: libgc's own lock, under which events are told. */
static struct {
	uint64_t stop_start, stop_max, start_cpu, cpu;
} gc;

static uint64_t clock_ns(clockid_t id)
{
	struct timespec ts;

	clock_gettime(id, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static void GC_CALLBACK on_event(GC_EventType event)
{
	if (event == GC_EVENT_START)
		gc.start_cpu = clock_ns(CLOCK_THREAD_CPUTIME_ID);
	if (event == GC_EVENT_END)
		gc.cpu += clock_ns(CLOCK_THREAD_CPUTIME_ID) - gc.start_cpu;
	if (event == GC_EVENT_PRE_STOP_WORLD)
		gc.stop_start = clock_ns(CLOCK_MONOTONIC);
	if (event != GC_EVENT_POST_START_WORLD)
		return;
	uint64_t stop = clock_ns(CLOCK_MONOTONIC) - gc.stop_start;
	gc.stop_max = stop > gc.stop_max ? stop : gc.stop_max;
}

static void *checked(void *p)
{
	if (__builtin_expect(!p, 0)) {
		fprintf(stderr, "lisp: out of memory\n");
		_Exit(3);
	}
	return p;
}

void mem_init(size_t limit, const char *options)
{
	(void)options;
	if (limit) {
		GC_set_max_heap_size(limit);
		GC_set_free_space_divisor(1); /* all of it may be used: rather grow than collect */
	}
	GC_set_max_retries(2);
	GC_set_warn_proc(GC_ignore_warn_proc);
	GC_set_all_interior_pointers(0);
	GC_set_finalize_on_demand(1);
	GC_INIT();
	GC_register_displacement(2);
	GC_register_displacement(4);
	GC_register_displacement(40); /* where a frame returns to in a stub of vm.c, which nothing else leads to */
	GC_set_on_collection_event(on_event);
	GC_allow_register_threads();
	GC_start_mark_threads();
	for (int i = 0; i < SHAPES; i++)
		types[i] = GC_make_descriptor(&shapes[i].values, shapes[i].words);
}

void *mem_words(size_t size) { return checked(GC_MALLOC(size)); }
void *mem_pair(void) { return checked(GC_MALLOC(16)); }
void *mem_atomic(size_t size) { return checked(GC_MALLOC_ATOMIC(size)); }
void *mem_flonum(void) { return checked(GC_MALLOC_ATOMIC(8)); }
void *mem_typed(enum mem_shape shape, size_t size) { return checked(GC_MALLOC_EXPLICITLY_TYPED(size, types[shape])); }

void mem_thread_attach(void)
{
	struct GC_stack_base base;

	GC_get_stack_base(&base);
	GC_register_my_thread(&base);
}

void mem_thread_detach(void) { GC_unregister_my_thread(); }

/* ---- stacks: of one that is left nothing is scanned, and nothing has to be ---- */

struct mem_stack {
	char *end;
};

static __thread struct GC_stack_base own;

struct mem_stack *mem_stack_register(void *low, size_t length)
{
	struct mem_stack *s = checked(malloc(sizeof(*s)));

	s->end = (char *)low + length;
	return s;
}

void mem_stack_unregister(struct mem_stack *s) { free(s); }

void mem_stack_switch(struct mem_stack *to)
{
	struct GC_stack_base base = own;

	if (!own.mem_base)
		GC_get_my_stackbottom(&own);
	base = own;
	if (to)
		base.mem_base = to->end;
	GC_set_stackbottom(NULL, &base);
}

void mem_stack_forget(struct mem_stack *s, void *end)
{
	(void)s;
	(void)end;
}

/* ---- weak references ---- */

struct mem_weak { /* uncollectable, but the hidden key */
	void *value;
	GC_word key; /* hidden; 0 once it died */
};

static void *read_key(void *weak)
{
	const struct mem_weak *w = weak;

	return w->key ? GC_REVEAL_POINTER(w->key) : NULL;
}

void mem_weak_bind(struct mem_weak *w, void *key, void *value)
{
	GC_unregister_disappearing_link((void **)&w->key);
	w->key = key ? GC_HIDE_POINTER(key) : 0;
	w->value = key ? value : NULL;
	if (key)
		GC_general_register_disappearing_link((void **)&w->key, key);
}

struct mem_weak *mem_weak_create(void *key, void *value)
{
	struct mem_weak *w = checked(GC_MALLOC_UNCOLLECTABLE(sizeof(*w)));

	mem_weak_bind(w, key, value);
	return w;
}

void *mem_weak_value(const struct mem_weak *w, void **key)
{
	*key = GC_call_with_alloc_lock(read_key, (void *)(uintptr_t)w);
	return *key ? w->value : NULL;
}

void mem_weak_destroy(struct mem_weak *w)
{
	GC_unregister_disappearing_link((void **)&w->key);
	GC_FREE(w);
}

/* ---- finalizers ---- */

void mem_finalizer_set(void *object, void (*fn)(void *object, void *data), void *data)
{
	GC_REGISTER_FINALIZER_NO_ORDER(object, fn, data, NULL, NULL);
}

void mem_finalizer_clear(void *object) { GC_REGISTER_FINALIZER_NO_ORDER(object, NULL, NULL, NULL, NULL); }
void mem_finalizers_run(void) { GC_invoke_finalizers(); }

/* ---- collection, images ---- */

void mem_collect(void) { GC_gcollect(); }

void mem_stats(struct mem_stats *out)
{
	*out = (struct mem_stats){GC_get_gc_no(), GC_get_heap_size() - GC_get_free_bytes(), GC_get_heap_size(), gc.stop_max, gc.cpu};
}

int mem_save(const char *path, void *root)
{
	(void)path;
	(void)root;
	return -EOPNOTSUPP;
}

int mem_load(const char *path, size_t limit, const char *options, void **root)
{
	(void)path;
	(void)limit;
	(void)options;
	(void)root;
	return -EOPNOTSUPP;
}
