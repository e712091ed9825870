/* SPDX-License-Identifier: MIT */
/*
 * summary.h - where a page that is out points to: the words on it that may be pointers into the heap, by place.
 *
 * Made by the evictor from the page's contents, kept as long as the page is out, and constant: so markers read it without a lock. It
 * has the words of objects alone (no cells are handed out on a page that is out), of a typed object those that its type names: marking through
 * it finds what marking in place would (.inv.summary.same).
 */
#ifndef GU_GC_SUMMARY_H
#define GU_GC_SUMMARY_H

#include "gc/heap.h"

#define GU_PAGE_WORDS (GU_PAGE / 8)

#define GU_SUMMARY_MOST 4224u /* bytes */

struct gu_summary;

/* Which words of a page are pointers of its objects: into the reservation, and others that are not zero. */
struct gu_page_words {
	uint64_t inside[GU_PAGE_WORDS / 64], outside[GU_PAGE_WORDS / 64];
};

/* objects: of the page's block a word for each 64 cells, set where there is an object; NULL: those that there are now. */
void gu_summary_words(const struct gcuffd_heap *heap, size_t page, const uintptr_t *words, const uint64_t *objects, struct gu_page_words *out);
/* Its bytes into out, which is GU_SUMMARY_MOST long and aligned to 8; how many, 0 if the page points nowhere. */
size_t gu_summary_pack(const struct gcuffd_heap *heap, const uintptr_t *words, const struct gu_page_words *which, void *out);

/* Of the page, whose contents are at words. *out: NULL if it points nowhere; GU_COLD_PEEK, if peeks, where that costs less memory and little time. -ENOMEM. */
int gu_summary_make(struct gcuffd_heap *heap, size_t page, const uintptr_t *words, bool peeks, struct gu_summary **out);
size_t gu_summary_size(const struct gu_summary *summary);
void gu_summary_free(struct gcuffd_heap *heap, struct gu_summary *summary);

/* Whether these bytes, aligned to 8 and from who knows where, are a summary: then it can be read. */
bool gu_summary_fits(const void *bytes, size_t len);

/* The pointers among words [from, to) of the page, in order: how many. summary may be NULL, not GU_COLD_PEEK, nor a pack. */
size_t gu_summary_read(const struct gcuffd_heap *heap, const struct gu_summary *summary, size_t from, size_t to, uintptr_t *pointers);

/* Has them on their way into the cache, as far as one line goes. A summary, not NULL. */
void gu_summary_fetch(const struct gu_summary *summary, size_t from);

#endif
