/* SPDX-License-Identifier: MIT */
/* api.h - what the files of this layer share: the list of heaps, and reports of a caller's mistakes. */
#ifndef GU_API_API_H
#define GU_API_API_H

#include "gc/heap.h"
#include "gc/mutator.h"

/* Heaps exist between add and remove; slots are indices into threads' tables of caches. */
int gu_heaps_add(struct gcuffd_heap *heap);
void gu_heaps_remove(struct gcuffd_heap *heap);
/* The heap whose memory at lies in, or NULL. Inside a section. */
struct gcuffd_heap *gu_heaps_find(uintptr_t at);
int gu_heaps_take_slot(uint32_t *slot);
void gu_heaps_give_slot(uint32_t slot);
/* For fork: calls fn for each heap, in order or backwards. */
void gu_heaps_each(void (*fn)(struct gcuffd_heap *heap));
/* Heaps are made and ended between the two only by others that wait; not inside a section. */
void gu_heaps_freeze(void);
void gu_heaps_thaw(void);
void gu_heaps_forked(void);

int gu_fork_init(void);
/* Before the first step of the watch interface: jemalloc's fork handlers, then ours. */
int gu_api_init(void);

/* A line in the log, and the caller's stack if libunwind is installed. Not in a section. */
void gu_report(struct gcuffd_heap *heap, const char *call, const void *pointer, int err);

/* Defaults and the flags of on filled in and every field checked; a line in the log says what is wrong. */
int gu_options_resolve(struct gcuffd_options *out, const struct gcuffd_options *in, unsigned on);

/* Of resolved options; at the image's address and with what is in it, if there is one. Not inside a section. */
struct gu_image;
int gu_heap_make(const struct gcuffd_options *options, struct gu_image *image, struct gcuffd_heap **heap);

/* A stop finds what the calling thread has in its hands: it is attached, or all threads are. */
static inline bool gu_is_stopped(const struct gcuffd_heap *h) { return gu_self || gu_heap_is(h, GCUFFD_PROCESS_ROOTS); }

/* The cycle lock is waited for as a blocking thread: a stop does not wait for us. It may be long: a save holds it. Not inside a section. */
void gu_heap_lock_cycles(struct gcuffd_heap *heap);

int gu_arena_new(struct gcuffd_heap *heap, const char *name, struct gcuffd_arena **arena);
void gu_arena_end(struct gcuffd_arena *arena);

#endif
