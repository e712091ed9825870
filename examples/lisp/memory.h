/* SPDX-License-Identifier: MIT */
/*
 * memory.h - all that the interpreter asks of a collector. memory_gcuffd.c gives it on libgcuffd, memory_libgc.c on Boehm's libgc: nothing else
 * in this directory knows which. All memory is cleared but mem_atomic()'s under libgc. Running out of memory ends the program.
 */
#ifndef LISP_MEMORY_H
#define LISP_MEMORY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Before all else; limit 0: none. options: text, for gcuffd_options_parse(). */
void mem_init(size_t limit, const char *options);

void *mem_words(size_t size);  /* each word is a value, or no address: object.h */
void *mem_pair(void);          /* the same: two words */
void *mem_atomic(size_t size); /* no word is an address */
void *mem_flonum(void);        /* the same: one double */

/* Objects of which the first words are values and the rest are numbers of any sort. */
enum mem_shape { SHAPE_PORT, SHAPES };
void *mem_typed(enum mem_shape shape, size_t size);

/* The calling thread uses the heap from here on, to there. */
void mem_thread_attach(void);
void mem_thread_detach(void);

/* Stacks of coroutines. Handles are no objects. */
struct mem_stack;
struct mem_stack *mem_stack_register(void *low, size_t length);
void mem_stack_unregister(struct mem_stack *stack);
/* The calling thread is about to switch to it; NULL: to its own. */
void mem_stack_switch(struct mem_stack *to);
/* Nothing on it is a root, until it is switched to. */
void mem_stack_forget(struct mem_stack *stack, void *end);

/* A value that lives as long as its key does elsewhere. Handles are no objects, and are to be destroyed. */
struct mem_weak;
struct mem_weak *mem_weak_create(void *key, void *value);
void mem_weak_bind(struct mem_weak *weak, void *key, void *value);
void *mem_weak_value(const struct mem_weak *weak, void **key); /* *key is NULL once it died */
void mem_weak_destroy(struct mem_weak *weak);

/*
 * fn(object, data) once nothing else leads to the object: in mem_finalizers_run(), which whoever makes such objects calls now and then. data is no object. One
 * for an object, which may lead to others with finalizers of their own, and they back.
 */
void mem_finalizer_set(void *object, void (*fn)(void *object, void *data), void *data);
void mem_finalizer_clear(void *object);
void mem_finalizers_run(void);

void mem_collect(void);
struct mem_stats {
	uint64_t cycles, live, heap, stop_max_ns, gc_cpu_ns;
};
void mem_stats(struct mem_stats *stats);

/* The whole heap to a file; it has one root. 0 or -errno; libgc: -EOPNOTSUPP. */
int mem_save(const char *path, void *root);
/* Instead of mem_init(). */
int mem_load(const char *path, size_t limit, const char *options, void **root);

#endif
