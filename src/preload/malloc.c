/* SPDX-License-Identifier: MIT */
/*
 * malloc.c - the malloc family. Any thread: the first allocation of a thread attaches it. errno is
 * as the C library's manual has it: kept on success, and by free().
 */
#include <errno.h>
#include <malloc.h>
#include <stdlib.h>
#include <string.h>

#include "preload/preload.h"

#define ALIGN_LEAST ((size_t)16)
#define ALIGN_MOST ((size_t)2 << 20)
#define PAGE ((size_t)4096)

static void *no_memory(void)
{
	errno = ENOMEM;
	return NULL;
}

/* EPERM: the thread is not attached, or no more, since its keys' destructors run. */
static bool attach(void) { return errno == EPERM && gu_preload_attach(); }

static void *from_heap(size_t size, size_t align)
{
	struct gcuffd_heap *h = gu_preload_heap;
	gu_preload_enter();
	void *p = align > ALIGN_LEAST ? gcuffd_alloc_aligned(h, size, align, GCUFFD_CONSERVATIVE) : gcuffd_alloc(h, size);
	gu_preload_leave();
	return p;
}

static void *from_boot(size_t size, size_t align)
{
	void *p = gu_boot_alloc(size, align);
	return p ? p : gu_libc_alloc(size, align);
}

static __attribute__((noinline)) void *allocate_slow(size_t size, size_t align)
{
	if (size > PTRDIFF_MAX - ALIGN_MOST)
		return NULL;
	enum gu_preload_source from = gu_preload_source();
	if (from == GU_FROM_BOOT)
		return from_boot(size, align);
	if (from == GU_FROM_LIBC)
		return gu_libc_alloc(size, align);
	void *p = from_heap(size, align);
	if (!p && attach())
		p = from_heap(size, align);
	else if (!p && errno == EPERM)
		p = gu_libc_alloc(size, align);
	return p;
}

static void *allocate(size_t size, size_t align)
{
	int saved = errno;
	void *p = allocate_slow(size, align);
	errno = p ? saved : ENOMEM;
	return p;
}

GU_PRELOAD_EXPORT void *malloc(size_t size)
{
	struct gcuffd_heap *h = __atomic_load_n(&gu_preload_heap, __ATOMIC_ACQUIRE);
	int saved = errno;
	if (gu_rarely(!h || size > PTRDIFF_MAX || gu_preload_inside))
		return allocate(size, ALIGN_LEAST);
	gu_preload_enter();
	void *p = gcuffd_alloc(h, size);
	gu_preload_leave();
	if (gu_rarely(!p))
		p = allocate(size, ALIGN_LEAST);
	else
		errno = saved;
	return p;
}

/* Objects come zeroed. */
GU_PRELOAD_EXPORT void *calloc(size_t n, size_t size)
{
	size_t bytes;
	return __builtin_mul_overflow(n, size, &bytes) ? no_memory() : malloc(bytes);
}

static void *realloc_in_heap(void *p, size_t size)
{
	gu_preload_enter();
	void *q = gcuffd_realloc(gu_preload_heap, p, size);
	gu_preload_leave();
	return q;
}

/* What free() has nothing to do for, or not here. true: done. */
static bool free_special(void *p)
{
	if (gu_boot_owns(p) || gu_preload_from_loader(p))
		return true;
	if (!gu_libc_owns(p))
		return false;
	gu_libc_free(p);
	return true;
}

/* What is freed inside the library is left to the collector. */
GU_PRELOAD_EXPORT void free(void *p)
{
	int saved = errno;
	if (!p)
		return;
	if (!free_special(p) && gu_preload_heap && !gu_preload_inside) {
		gu_preload_enter();
		gcuffd_free(gu_preload_heap, p);
		gu_preload_leave();
	}
	errno = saved;
}

static void *move_out(const void *p, size_t have, size_t size)
{
	void *q = malloc(size);
	return q ? memcpy(q, p, have < size ? have : size) : NULL;
}

/* The loader's pieces don't tell their size: what is readable up to the end of its data is copied. */
static size_t loader_size(const void *p, size_t size)
{
	size_t most = PAGE - ((uintptr_t)p & (PAGE - 1));
	return size < most ? size : most;
}

static void *reallocate(void *p, size_t size)
{
	if (gu_boot_owns(p))
		return move_out(p, gu_boot_size(p), size);
	if (gu_preload_from_loader(p))
		return move_out(p, loader_size(p, size), size);
	if (gu_libc_owns(p))
		return gu_libc_realloc(p, size);
	if (!gu_preload_heap)
		return NULL;
	if (gu_preload_inside)
		return move_out(p, malloc_usable_size(p), size);
	void *q = realloc_in_heap(p, size);
	return q || !attach() ? q : realloc_in_heap(p, size);
}

GU_PRELOAD_EXPORT void *realloc(void *p, size_t size)
{
	int saved = errno;
	if (!p)
		return malloc(size);
	if (!size) {
		free(p);
		return NULL;
	}
	if (size > PTRDIFF_MAX)
		return no_memory();
	void *q = reallocate(p, size);
	errno = q ? saved : ENOMEM;
	return q;
}

GU_PRELOAD_EXPORT void *reallocarray(void *p, size_t n, size_t size)
{
	size_t bytes;
	return __builtin_mul_overflow(n, size, &bytes) ? no_memory() : realloc(p, bytes);
}

/* ---- alignment ---- */

static bool is_pow2(size_t n) { return n && !(n & (n - 1)); }

static void *aligned(size_t align, size_t size)
{
	return align > ALIGN_MOST ? no_memory() : allocate(size, align < ALIGN_LEAST ? ALIGN_LEAST : align);
}

GU_PRELOAD_EXPORT int posix_memalign(void **out, size_t align, size_t size)
{
	int saved = errno;
	if (!is_pow2(align) || align % sizeof(void *))
		return EINVAL;
	void *p = aligned(align, size);
	errno = saved;
	if (!p)
		return ENOMEM;
	*out = p;
	return 0;
}

GU_PRELOAD_EXPORT void *aligned_alloc(size_t align, size_t size)
{
	if (is_pow2(align))
		return aligned(align, size);
	errno = EINVAL;
	return NULL;
}

/* Any number is taken, and rounded up. */
GU_PRELOAD_EXPORT void *memalign(size_t align, size_t size)
{
	size_t power = ALIGN_LEAST;
	while (power < align && power <= ALIGN_MOST)
		power *= 2;
	return aligned(power, size);
}

GU_PRELOAD_EXPORT void *valloc(size_t size) { return aligned(PAGE, size); }

GU_PRELOAD_EXPORT void *pvalloc(size_t size)
{
	return size > PTRDIFF_MAX ? no_memory() : aligned(PAGE, size ? (size + PAGE - 1) & ~(PAGE - 1) : PAGE);
}

/* ---- the rest ---- */

/* The last byte is not the program's: a pointer to its end must still point into the object. */
GU_PRELOAD_EXPORT size_t malloc_usable_size(void *p)
{
	struct gcuffd_object object;
	if (!p || gu_preload_from_loader(p))
		return 0;
	if (gu_boot_owns(p))
		return gu_boot_size(p);
	if (gu_libc_owns(p))
		return gu_libc_size(p);
	if (!gu_preload_heap || gcuffd_object_find(gu_preload_heap, p, &object) || object.base != p)
		return 0;
	return object.size - 1;
}

GU_PRELOAD_EXPORT int malloc_trim(size_t pad)
{
	int saved = errno;
	(void)pad;
	int err = gu_preload_heap ? gcuffd_trim(gu_preload_heap) : -ENOENT;
	errno = saved;
	return !err;
}
