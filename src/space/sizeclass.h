/* SPDX-License-Identifier: MIT */
/*
 * sizeclass.h - the cell sizes of small objects: multiples of 16 up to 128, then four per doubling
 * up to 16 KiB. Pure arithmetic.
 */
#ifndef GU_SPACE_SIZECLASS_H
#define GU_SPACE_SIZECLASS_H

#include <stddef.h>
#include <stdint.h>

#include "base/check.h"

#define GU_GRANULE 16
#define GU_SMALL_MAX ((size_t)16384)
#define GU_CLASSES 36

/* 1 <= size <= GU_SMALL_MAX */
static inline unsigned gu_class_of(size_t size)
{
	if (size <= 128)
		return (unsigned)((size - 1) >> 4);
	unsigned top = 63u - (unsigned)__builtin_clzl(size - 1); /* 2^top <= size - 1 < 2^(top + 1), top >= 7 */
	unsigned quarter = (unsigned)((size - 1) >> (top - 2)) & 3;
	return 8 + (top - 7) * 4 + quarter;
}

static inline size_t gu_class_size(unsigned class)
{
	if (class < 8)
		return (class + 1) * (size_t)16;
	unsigned top = 7 + (class - 8) / 4;
	return ((size_t)1 << top) + ((size_t)((class - 8) % 4 + 1) << (top - 2));
}

#endif
