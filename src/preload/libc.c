/* SPDX-License-Identifier: MIT */
/*
 * libc.c - the C library underneath: its allocator, for when there can be no heap, and the functions that
 * we hide. Any thread.
 */
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "preload/preload.h"

extern void *__libc_memalign(size_t align, size_t size);
extern void *__libc_realloc(void *p, size_t size);
extern void __libc_free(void *p);

static uint32_t in_use; /* atomic; something came from there */

void *gu_libc_alloc(size_t size, size_t align)
{
	__atomic_store_n(&in_use, 1, __ATOMIC_RELAXED);
	void *p = __libc_memalign(align, size);
	return p ? memset(p, 0, size) : NULL;
}

bool gu_libc_owns(const void *p)
{
	struct gcuffd_object found;
	if (!__atomic_load_n(&in_use, __ATOMIC_RELAXED))
		return false;
	return !gu_preload_heap || gcuffd_object_find(gu_preload_heap, p, &found);
}

void *gu_libc_realloc(void *p, size_t size) { return __libc_realloc(p, size); }
void gu_libc_free(void *p) { __libc_free(p); }

size_t gu_libc_size(void *p)
{
	static size_t (*next)(void *p);
	if (!next)
		next = (size_t (*)(void *))gu_preload_next("malloc_usable_size");
	return next(p);
}

void *gu_preload_next(const char *name)
{
	static const char lost[] = "gcuffd: the C library lacks a function that libgcuffd-preload.so stands before: ";
	int saved = errno;
	void *fn = dlsym(RTLD_NEXT, name);
	if (!fn) {
		if (write(STDERR_FILENO, lost, sizeof(lost) - 1) < 0 || write(STDERR_FILENO, name, strlen(name)) < 0)
			errno = saved;
		abort();
	}
	errno = saved;
	return fn;
}
