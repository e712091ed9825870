/* SPDX-License-Identifier: MIT */
/*
 * pack.h - summaries in the store's file: where they would take too much of the target, those of pages that are taken out together are put there, as many
 * to a page of the store as fit (.inv.summary.filed).
 */
#ifndef GU_GC_PACK_H
#define GU_GC_PACK_H

#include "gc/heap.h"

/* What was read last. One thread's; packs that it has read stay until it is reset. */
struct gu_pack_reader {
	const struct gu_cold_pack *pack; /* whose contents are at bytes */
	uint64_t *bytes;
	struct gu_store_near near;
};

int gu_pack_reader_init(struct gu_pack_reader *reader); /* -ENOMEM */
void gu_pack_reader_destroy(struct gu_pack_reader *reader);
void gu_pack_reader_reset(struct gu_pack_reader *reader);
size_t gu_pack_reader_memory(void);

/* The evictor: whether there is a file, and summaries in memory take their share of the target. */
bool gu_pack_is_due(struct gcuffd_heap *heap);
/* Of n pages from page on, of one region, the summaries: replaced by where they are, as far as the store takes them. Nobody has seen them. */
void gu_pack_put(struct gcuffd_heap *heap, size_t page, size_t n, struct gu_summary **summaries);

/* The summary of a page whose region says that it is in a pack: constant until the reader's next. As gu_store_get(). */
int gu_pack_read(struct gcuffd_heap *heap, struct gu_pack_reader *reader, size_t page, const struct gu_summary **summary);

#endif
