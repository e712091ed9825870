/* SPDX-License-Identifier: MIT */
/*
 * type.h - where an object of a type has pointers: a head, described word by word, and behind it nothing, or, in arrays, elements
 * that are all alike, up to the object's end.
 */
#ifndef GU_GC_TYPE_H
#define GU_GC_TYPE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/check.h"

#define GU_TYPES 65535
#define GU_TYPE_WORDS 4096u

/* constant */
struct gcuffd_type {
	uint32_t words;    /* that are described: of the head, then of one element */
	uint32_t element;  /* words of one; 0: no array */
	uint32_t index;
	uint64_t bitmap[]; /* of these words */
};

static inline size_t gu_type_head(const struct gcuffd_type *t) { return t->words - t->element; }
static inline size_t gu_type_bitmap_words(size_t words) { return (words + 63) / 64; }
static inline size_t gu_type_size(size_t words) { return sizeof(struct gcuffd_type) + gu_type_bitmap_words(words) * 8; }

/* An object has so many words at least: an array's may have no element. */
static inline size_t gu_type_least(const struct gcuffd_type *t) { return gu_type_head(t); }

/* Of an object's first so many words, those from this one on hold no pointers. */
static inline size_t gu_type_end(const struct gcuffd_type *t, size_t words) { return t->element ? words : gu_min(words, (size_t)t->words); }

/* The described word that word i of an object before gu_type_end() is like. */
static inline size_t gu_type_word(const struct gcuffd_type *t, size_t i)
{
	return i < t->words ? i : gu_type_head(t) + (i - gu_type_head(t)) % t->element;
}

static inline size_t gu_type_next(const struct gcuffd_type *t, size_t described) { return described + 1 < t->words ? described + 1 : gu_type_head(t); }

static inline bool gu_type_has(const struct gcuffd_type *t, size_t described) { return t->bitmap[described >> 6] >> (described & 63) & 1; }

/* Word i of an object may be a pointer. */
static inline bool gu_type_points(const struct gcuffd_type *t, size_t i)
{
	return (t->element || i < t->words) && gu_type_has(t, gu_type_word(t, i));
}

#endif
