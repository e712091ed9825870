/* SPDX-License-Identifier: MIT */
/* order.c - see order.h. */
#include "gc/order.h"

#include <errno.h>
#include <string.h>

#include "base/meta.h"

#define BYTES (GU_ORDER_MOST * sizeof(uint64_t))

static int map_table(struct gu_order *o)
{
	uint64_t *none = NULL;
	if (gu_load_acquire(&o->offsets))
		return 0;
	uint64_t *table = gu_meta_map(BYTES);
	if (table && !gu_cas_seqcst(&o->offsets, &none, table))
		gu_meta_unmap(table, BYTES); /* another thread was first */
	return table ? 0 : -ENOMEM;
}

int gu_order_begin(struct gu_order *o)
{
	int err = map_table(o);
	uint64_t word = gu_load_relaxed(&o->word);
	if (err)
		return err;
	if (word >> 32 & 1 || !gu_cas_seqcst(&o->word, &word, ((word >> 32) + 1) << 32))
		return -EBUSY;
	return 0;
}

void gu_order_add(struct gu_order *o, uint64_t word, uint64_t offset)
{
	size_t n = word & UINT32_MAX;
	if (n == GU_ORDER_MOST)
		return;
	o->offsets[n] = offset;
	(void)gu_cas_seqcst(&o->word, &word, word + 1); /* fails if the recording has ended */
}

int gu_order_end(struct gu_order *o, uint64_t *offsets, size_t max, size_t *count)
{
	uint64_t word = gu_load_acquire(&o->word); /* pairs with gu_order_add() */
	size_t done = 0, n;
	do {
		if (!(word >> 32 & 1))
			return -EINVAL;
		n = gu_min(word & UINT32_MAX, max);
		if (n > done)
			memcpy(offsets + done, o->offsets + done, (n - done) * sizeof(*offsets)); /* may fault, and so add to it */
		done = n;
	} while (!gu_cas_seqcst(&o->word, &word, ((word >> 32) + 1) << 32));
	*count = word & UINT32_MAX;
	return 0;
}

void gu_order_free(struct gu_order *o) { gu_meta_unmap(o->offsets, BYTES); }
