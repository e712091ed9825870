/* SPDX-License-Identifier: MIT */
/*
 * index.h - from the address of an object to the slots of a table that are about it: chains of slots, which the table's owner links by the number of a slot
 * + 1, 0 at the end. It grows by linear hashing, a bucket at a time: no call takes long, and nothing is copied.
 * Guard: the table's lock, but for gu_index_memory().
 */
#ifndef GU_BASE_INDEX_H
#define GU_BASE_INDEX_H

#include <stddef.h>
#include <stdint.h>

struct gu_index {
	uint32_t *first; /* of each chain; reserved for GU_INDEX_MOST */
	size_t buckets;  /* atomic */
	size_t committed;
};

#define GU_INDEX_MOST ((size_t)1 << 26) /* buckets */

/* -ENOMEM: nothing is left. */
int gu_index_init(struct gu_index *index);
void gu_index_destroy(struct gu_index *index);

size_t gu_index_bucket(const struct gu_index *index, uintptr_t object);
static inline uint32_t *gu_index_chain(const struct gu_index *index, uintptr_t object) { return &index->first[gu_index_bucket(index, object)]; }

/*
 * One bucket more: the chain whose slots may belong there is taken out, for the caller to link each of them anew. 0: it had none, or there is no memory
 * for a bucket, and chains get longer.
 */
uint32_t gu_index_grow(struct gu_index *index);

/* Bytes. */
size_t gu_index_memory(const struct gu_index *index);

#endif
