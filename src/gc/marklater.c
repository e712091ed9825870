/* SPDX-License-Identifier: MIT */
/*
 * marklater.c - pages put off: a bit for each page that has marked objects which were not scanned. When nothing else is gray, what is marked on
 * these pages is scanned, in the order of addresses, and again where more gets marked there.
 *
 * So a summary that is in a file is read once for many objects, and gray objects need no more memory than packets may take. It is
 * a matter of passes over the heap, of which a graph without order takes few; a list from page to page and back takes one for each run of rising addresses.
 */
#include "gc/marker.h"

#define PACKETS_SHARE 32 /* of the target is for packets */
#define PACKETS_LEAST ((size_t)1 << 20)
#define SMALL_WORDS 1024u /* what is larger may be mostly holes: not put off */

/* The bit is seen to be set after the object's mark was: who clears it, and then looks at marks, sees that. */
void gu_later_note(struct gu_marker *m, size_t page)
{
	uint64_t *word = &m->space->cold.later[page >> 6], bit = 1ull << (page & 63);
	if (gu_load_seqcst(word) & bit)
		return;
	gu_or_seqcst(word, bit);
	gu_store_relaxed(&m->heap->mark->later, 1);
}

static bool has_packets(const struct gu_marker *m)
{
	const struct gu_mark *mark = m->heap->mark;
	size_t most = gu_max(gu_load_relaxed(&m->space->cold.target) / PACKETS_SHARE, PACKETS_LEAST);
	return gu_load_relaxed(&mark->packet_bytes) < most || gu_load_relaxed(&mark->empty) || gu_load_relaxed(&mark->fresh) < GU_BATCH;
}

bool gu_later_takes(struct gu_marker *m, struct gu_gray g)
{
	if (!m->space->cold.on || g.type >= GU_GRAY_FIELDS || g.words > SMALL_WORDS || has_packets(m))
		return false;
	size_t last = (g.addr + g.words * 8 - 1 - m->base) >> GU_PAGE_SHIFT;
	for (size_t page = (g.addr - m->base) >> GU_PAGE_SHIFT; page <= last; page++)
		gu_later_note(m, page);
	return true;
}

/* All of them at once, however many: a push for each could overflow, and note them anew. */
bool gu_later_push(struct gu_marker *m)
{
	size_t words = m->top >> GU_PAGE_SHIFT >> 6;
	if (!gu_swap_acq_rel(&m->heap->mark->later, 0))
		return false;
	if (m->space->cold.on && words)
		gu_marker_push(m, (struct gu_gray){0, (uint32_t)words, GU_GRAY_LATER});
	return true;
}

static bool is_filed(const struct gu_cold *c, size_t page)
{
	return gu_cold_is_out(c, page) && gu_cold_pack(gu_cold_region(c, page)->summary[page % GU_REGION_PAGES]);
}

static void scan_filed(struct gu_marker *m, size_t page)
{
	if (gu_pack_read(m->heap, &m->packs, page, &m->summary)) /* the page says the same */
		m->summary = GU_COLD_PEEK;
	m->at_hand = page;
	gu_mark_page(m, page);
	m->at_hand = SIZE_MAX;
}

static void leave(struct gu_marker *m, size_t page)
{
	gu_or_seqcst(&m->space->cold.later[page >> 6], 1ull << (page & 63));
	gu_store_relaxed(&m->heap->mark->left, 1);
}

static void scan_word(struct gu_marker *m, size_t word)
{
	uint64_t pages = gu_load_relaxed(&m->space->cold.later[word]) ? gu_swap_seqcst(&m->space->cold.later[word], 0) : 0;
	gu_fence_seqcst(); /* pairs with the seq_cst mark before gu_later_note() reads the bit */
	for (; pages; pages &= pages - 1) {
		size_t page = word * 64 + (size_t)__builtin_ctzll(pages);
		if (!is_filed(&m->space->cold, page))
			gu_mark_page(m, page);
		else if (m->heap->mark->waits)
			scan_filed(m, page);
		else
			leave(m, page);
	}
}

/* The rest is gray again, in halves: others may take them. Lower addresses first. */
void gu_later_scan(struct gu_marker *m, size_t word, size_t n)
{
	for (; n > 1; n -= n / 2)
		gu_marker_push(m, (struct gu_gray){word + (n - n / 2), (uint32_t)(n / 2), GU_GRAY_LATER});
	scan_word(m, word);
}

void gu_later_clear(struct gcuffd_heap *h)
{
	size_t words = h->space.cold.on ? gu_load_acquire(&h->space.top) >> GU_PAGE_SHIFT >> 6 : 0;
	for (size_t i = 0; i < words; i++)
		if (gu_load_relaxed(&h->space.cold.later[i]))
			gu_store_relaxed(&h->space.cold.later[i], 0);
	gu_store_relaxed(&h->mark->later, 0);
	gu_store_relaxed(&h->mark->left, 0);
}

void gu_later_check(const struct gcuffd_heap *h)
{
	size_t words = h->space.cold.on ? gu_load_acquire(&h->space.top) >> GU_PAGE_SHIFT >> 6 : 0;
	for (size_t i = 0; i < words; i++)
		GU_INVARIANT(!gu_load_relaxed(&h->space.cold.later[i]), ".inv.summary.filed");
}
