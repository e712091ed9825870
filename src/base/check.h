/* SPDX-License-Identifier: MIT */
/*
 * check.h - what must hold. gu_assert() is for debug builds; GU_INVARIANT() is always on and names
 * an invariant of doc/invariants.md. A broken one is one line on stderr, then abort.
 */
#ifndef GU_BASE_CHECK_H
#define GU_BASE_CHECK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define gu_likely(x)   __builtin_expect(!!(x), 1)
#define gu_unlikely(x) __builtin_expect(!!(x), 0)
/* Reads whole stacks, the red zones of a sanitizer included. */
#ifdef __SANITIZE_ADDRESS__
#define GU_READS_STACKS __attribute__((no_sanitize("address")))
#else
#define GU_READS_STACKS
#endif
#define GU_ARRAY_LEN(a) (sizeof(a) / sizeof((a)[0]))
#define GU_CONTAINER(ptr, type, member) ((type *)((char *)(ptr) - offsetof(type, member)))

_Noreturn void gu_broken(const char *what, const char *file, int line);

#define GU_INVARIANT(cond, name) \
	do { \
		if (gu_unlikely(!(cond))) \
			gu_broken(name ": " #cond, __FILE__, __LINE__); \
	} while (0)

#ifdef GU_DEBUG
#define gu_assert(cond) GU_INVARIANT(cond, "assert")
#else
#define gu_assert(cond) ((void)sizeof(!(cond)))
#endif

static inline uintptr_t gu_align_up(uintptr_t v, uintptr_t align) { return (v + align - 1) & ~(align - 1); }
static inline uintptr_t gu_align_down(uintptr_t v, uintptr_t align) { return v & ~(align - 1); }
static inline bool gu_is_pow2(uint64_t v) { return v && !(v & (v - 1)); }
static inline size_t gu_min(size_t a, size_t b) { return a < b ? a : b; }
static inline size_t gu_max(size_t a, size_t b) { return a > b ? a : b; }

#define GU_PAGE_SHIFT 12
#define GU_PAGE ((size_t)1 << GU_PAGE_SHIFT)
#define GU_REGION ((size_t)2 << 20)
#define GU_CACHELINE 64

#endif
