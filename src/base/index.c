/* SPDX-License-Identifier: MIT */
/* index.c - see index.h. */
#include "base/index.h"

#include <errno.h>

#include "base/atomic.h"
#include "base/meta.h"

#define LEAST ((size_t)64)
#define STEP ((size_t)4096)

static int commit(struct gu_index *x)
{
	int err = gu_meta_commit(x->first + x->committed, STEP * sizeof(*x->first));
	x->committed += err ? 0 : STEP;
	return err;
}

int gu_index_init(struct gu_index *x)
{
	*x = (struct gu_index){.first = gu_meta_reserve(GU_INDEX_MOST * sizeof(*x->first)), .buckets = LEAST};
	if (x->first && !commit(x))
		return 0;
	gu_index_destroy(x);
	return -ENOMEM;
}

void gu_index_destroy(struct gu_index *x)
{
	if (x->first)
		gu_meta_unreserve(x->first, GU_INDEX_MOST * sizeof(*x->first));
	x->first = NULL;
}

/* In a round the buckets of its beginning are split, one after the other: so many are its beginning. */
static size_t half(const struct gu_index *x) { return (size_t)1 << (63 - __builtin_clzl(x->buckets)); }

size_t gu_index_bucket(const struct gu_index *x, uintptr_t object)
{
	size_t at = (size_t)((uint64_t)(object >> 4) * 0x9e3779b97f4a7c15ull >> 32) & (2 * half(x) - 1);
	return at < x->buckets ? at : at - half(x);
}

uint32_t gu_index_grow(struct gu_index *x)
{
	if (x->buckets == GU_INDEX_MOST || (x->buckets == x->committed && commit(x)))
		return 0;
	uint32_t *from = &x->first[x->buckets - half(x)], chain = *from;
	*from = 0;
	gu_store_relaxed(&x->buckets, x->buckets + 1);
	return chain;
}

size_t gu_index_memory(const struct gu_index *x) { return gu_load_relaxed(&x->buckets) * sizeof(*x->first); }
