/* SPDX-License-Identifier: MIT */
/*
 * boot.c - memory for when there is no heap: a static buffer, cut from the front, never given back. As part
 * of .bss it is a root. Any thread.
 */
#include "preload/preload.h"

#define BOOT_SIZE ((size_t)256 << 10)

static _Alignas(4096) char buffer[BOOT_SIZE];
static size_t used; /* atomic */

bool gu_boot_owns(const void *p) { return (uintptr_t)p - (uintptr_t)buffer < BOOT_SIZE; }

size_t gu_boot_size(const void *p) { return ((const size_t *)p)[-1]; }

/* The size stands in the word before the piece. */
void *gu_boot_alloc(size_t size, size_t align)
{
	size_t was = __atomic_load_n(&used, __ATOMIC_RELAXED), start;
	align = align < 16 ? 16 : align;
	if (size > BOOT_SIZE || align > 4096)
		return NULL;
	do {
		start = (was + sizeof(size_t) + align - 1) & ~(align - 1);
		if (start + size > BOOT_SIZE)
			return NULL;
	} while (!__atomic_compare_exchange_n(&used, &was, start + size, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
	((size_t *)(void *)(buffer + start))[-1] = size;
	return buffer + start;
}
