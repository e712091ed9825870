/* SPDX-License-Identifier: MIT */
/* memory_gcuffd.c - memory.h on libgcuffd. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <gcuffd.h>

#include "memory.h"

#define GROWTH_TO_LIMIT 400 /* where there is a limit all of it may be used: what is left below it says when to collect */

static struct gcuffd_heap *heap;
static struct gcuffd_type *types[SHAPES];

/* Which words are values; all that follows them is not looked at. */
static const struct shape {
	size_t words;
	uint64_t values;
} shapes[SHAPES] = {
	[SHAPE_PORT] = {3, 0x6},
};

static void check(const char *what, int err)
{
	if (!err)
		return;
	fprintf(stderr, "lisp: %s: %s\n", what, strerror(-err));
	exit(1);
}

static void *checked(void *p)
{
	if (__builtin_expect(!p, 0)) {
		fprintf(stderr, "lisp: out of memory\n");
		_Exit(3);
	}
	return p;
}

static struct gcuffd_options make_options(size_t limit, const char *text)
{
	struct gcuffd_options options;
	const char *bad;

	gcuffd_options_init(&options);
	if (limit) {
		options.hard_limit = limit;
		options.growth_percent = GROWTH_TO_LIMIT;
	}
	if (text && gcuffd_options_parse(&options, text, &bad)) {
		fprintf(stderr, "lisp: a bad option: %s\n", bad);
		exit(2);
	}
	return options;
}

static void make_types(void)
{
	for (int i = 0; i < SHAPES; i++)
		check("gcuffd_type_create", gcuffd_type_create(heap, &shapes[i].values, shapes[i].words, &types[i]));
}

void mem_init(size_t limit, const char *text)
{
	struct gcuffd_options options = make_options(limit, text);

	check("gcuffd_heap_create", gcuffd_heap_create(&options, &heap));
	check("gcuffd_thread_attach", gcuffd_thread_attach());
	make_types();
}

/*
 * Conservative, and yet precise, for no word looks like an address that is none. A type would say no more of such an object, since each of its words may be a
 * pointer; and would take two bytes more, and a longer way to allocate.
 */
void *mem_words(size_t size) { return checked(gcuffd_alloc(heap, size)); }
void *mem_pair(void) { return checked(gcuffd_alloc(heap, 16)); }
void *mem_atomic(size_t size) { return checked(gcuffd_alloc_atomic(heap, size)); }
void *mem_flonum(void) { return checked(gcuffd_alloc_atomic(heap, 8)); }
void *mem_typed(enum mem_shape shape, size_t size) { return checked(gcuffd_alloc_typed(heap, types[shape], size)); }

void mem_thread_attach(void) { check("gcuffd_thread_attach", gcuffd_thread_attach()); }
void mem_thread_detach(void) { check("gcuffd_thread_detach", gcuffd_thread_detach()); }

/* ---- stacks ---- */

struct mem_stack *mem_stack_register(void *low, size_t length)
{
	struct gcuffd_stack *stack = NULL;

	check("gcuffd_stack_register", gcuffd_stack_register(low, length, &stack));
	return (struct mem_stack *)stack;
}

void mem_stack_unregister(struct mem_stack *s) { check("gcuffd_stack_unregister", gcuffd_stack_unregister((struct gcuffd_stack *)s)); }
void mem_stack_switch(struct mem_stack *to) { check("gcuffd_stack_switch", gcuffd_stack_switch((struct gcuffd_stack *)to)); }

void mem_stack_forget(struct mem_stack *s, void *end)
{
	check("gcuffd_stack_set_pointer", gcuffd_stack_set_pointer((struct gcuffd_stack *)s, end));
}

/* ---- weak references ---- */

struct mem_weak *mem_weak_create(void *key, void *value)
{
	struct gcuffd_weak *w = NULL;

	check("gcuffd_weak_create", gcuffd_weak_create(heap, key, &w));
	if (value)
		check("gcuffd_weak_bind", gcuffd_weak_bind(heap, w, key, value));
	return (struct mem_weak *)w;
}

void mem_weak_bind(struct mem_weak *w, void *key, void *value)
{
	struct gcuffd_weak *weak = (struct gcuffd_weak *)w;

	check("gcuffd_weak_bind", key ? gcuffd_weak_bind(heap, weak, key, value) : gcuffd_weak_set(heap, weak, NULL));
}

void *mem_weak_value(const struct mem_weak *w, void **key)
{
	*key = NULL;
	return gcuffd_weak_value(heap, (const struct gcuffd_weak *)w, key);
}

void mem_weak_destroy(struct mem_weak *w) { check("gcuffd_weak_destroy", gcuffd_weak_destroy(heap, (struct gcuffd_weak *)w)); }

/* ---- finalizers ---- */

/* In no order: none of them needs another, and in order rings of coroutines would wait for each other. */
void mem_finalizer_set(void *object, void (*fn)(void *object, void *data), void *data)
{
	check("gcuffd_finalizer_set", gcuffd_finalizer_set(heap, object, fn, data, GCUFFD_UNORDERED));
}

void mem_finalizer_clear(void *object) { (void)gcuffd_finalizer_clear(heap, object, NULL); }
void mem_finalizers_run(void) { check("gcuffd_finalizer_run", gcuffd_finalizer_run(heap, SIZE_MAX, NULL)); }

/* ---- collection, images ---- */

void mem_collect(void) { gcuffd_collect(heap); }

void mem_stats(struct mem_stats *out)
{
	struct gcuffd_stats s = {.size = sizeof(s)};

	check("gcuffd_heap_stats", gcuffd_heap_stats(heap, &s));
	*out = (struct mem_stats){s.cycles, s.live_bytes, s.resident_bytes, s.stop_max_ns, s.gc_cpu_ns};
}

int mem_save(const char *path, void *root)
{
	struct gcuffd_named roots[] = {{"world", root}};
	struct gcuffd_image_options image = {.size = sizeof(image), .roots = roots, .nroots = 1};

	return gcuffd_heap_save(heap, path, &image);
}

/* Types of loaded objects come with them; new ones are made for objects to come. */
int mem_load(const char *path, size_t limit, const char *text, void **root)
{
	struct gcuffd_options options = make_options(limit, text);
	int err = gcuffd_heap_load(path, NULL, limit || text ? &options : NULL, &heap);

	if (err)
		return err;
	check("gcuffd_thread_attach", gcuffd_thread_attach());
	make_types();
	*root = gcuffd_image_root(heap, "world");
	return *root ? 0 : -EINVAL;
}
