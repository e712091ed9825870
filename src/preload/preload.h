/* SPDX-License-Identifier: MIT */
/*
 * preload.h - what the files of the malloc front end share.
 *
 * It stands on libgcuffd.so, as any program: one that uses the library itself has the same copy, whether it is linked with it or
 * loads it later. Two would send each other's threads signals that only one can handle.
 *
 * Where memory comes from: the heap, once there is one; a static buffer that is never given back (boot.c)
 * until then, for the library's own threads, and for whoever allocates while this thread is inside the
 * library: the C library on our behalf, or a signal handler (.inv.preload.inside). Where there can be no
 * heap, or a thread can't be attached (no /proc, no descriptor free), it is the C library's allocator.
 */
#ifndef GU_PRELOAD_PRELOAD_H
#define GU_PRELOAD_PRELOAD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "gcuffd.h"

#define GU_PRELOAD_EXPORT __attribute__((visibility("default")))
#define GU_PRELOAD_LOCAL __attribute__((visibility("hidden")))
#define GU_PRELOAD_TLS __attribute__((tls_model("initial-exec"), visibility("hidden")))
#define gu_rarely(x) __builtin_expect(!!(x), 0)

/* Set once, with release, when the heap is ready. */
extern GU_PRELOAD_LOCAL struct gcuffd_heap *gu_preload_heap;

/* The calling thread is inside the library; always so in the library's own threads. */
extern __thread uint32_t gu_preload_inside GU_PRELOAD_TLS;

static inline void gu_preload_enter(void)
{
	gu_preload_inside++;
	__atomic_signal_fence(__ATOMIC_SEQ_CST);
}

static inline void gu_preload_leave(void)
{
	__atomic_signal_fence(__ATOMIC_SEQ_CST);
	gu_preload_inside--;
}

enum gu_preload_source { GU_FROM_HEAP, GU_FROM_BOOT, GU_FROM_LIBC };
/* Makes the heap if there is none yet; not inside. */
GU_PRELOAD_LOCAL enum gu_preload_source gu_preload_source(void);
/* The calling thread, to all heaps. A failure is no matter: its first allocation tries again, and stops find it. */
GU_PRELOAD_LOCAL bool gu_preload_attach(void);

/* The static buffer: zeroed, NULL when it is used up. size_of: what was asked for. */
GU_PRELOAD_LOCAL void *gu_boot_alloc(size_t size, size_t align);
GU_PRELOAD_LOCAL bool gu_boot_owns(const void *p);
GU_PRELOAD_LOCAL size_t gu_boot_size(const void *p);

/* What the loader allocated for itself before it knew of us. */
GU_PRELOAD_LOCAL bool gu_preload_from_loader(const void *p);

/* The C library's allocator, by the names that cannot be interposed. */
GU_PRELOAD_LOCAL void *gu_libc_alloc(size_t size, size_t align);
GU_PRELOAD_LOCAL void *gu_libc_realloc(void *p, size_t size);
GU_PRELOAD_LOCAL void gu_libc_free(void *p);
GU_PRELOAD_LOCAL size_t gu_libc_size(void *p);
/* p may come from there: something does, and p is not in the heap. */
GU_PRELOAD_LOCAL bool gu_libc_owns(const void *p);

/* The function that we hide. Keeps errno; ends the process if there is none. */
GU_PRELOAD_LOCAL void *gu_preload_next(const char *name);
/* Looks all of a file's functions up, outside of signal handlers. */
GU_PRELOAD_LOCAL void gu_preload_threads_init(void);
GU_PRELOAD_LOCAL void gu_preload_signals_init(void);
GU_PRELOAD_LOCAL void gu_preload_exec_init(void);
GU_PRELOAD_LOCAL void gu_preload_kernel_init(void);

/* Whether code is of libgcuffd.so. */
GU_PRELOAD_LOCAL bool gu_preload_own_code(const void *code);
/* Whether this process (not its parent) has threads of the library. */
GU_PRELOAD_LOCAL bool gu_preload_has_service(void);

/* A function pointer to the next definition, looked up on first use. */
#define GU_NEXT(name) \
	static __typeof__(name) *next_##name; \
	static __typeof__(name) *real_##name(void) \
	{ \
		__typeof__(name) *fn = __atomic_load_n(&next_##name, __ATOMIC_ACQUIRE); \
		if (gu_rarely(!fn)) { \
			fn = (__typeof__(name) *)gu_preload_next(#name); \
			__atomic_store_n(&next_##name, fn, __ATOMIC_RELEASE); \
		} \
		return fn; \
	}

#endif
