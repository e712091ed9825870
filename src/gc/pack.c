/* SPDX-License-Identifier: MIT */
/* pack.c - see pack.h. A page of the store: how many summaries, of which pages and where each is, then these, each aligned to 8. */
#include "gc/pack.h"

#include <errno.h>
#include <string.h>

#include "base/meta.h"
#include "gc/summary.h"

#define SHARE 4 /* of the target is for summaries in memory */
#define MOST 64 /* in a pack */

struct entry {
	uint16_t page; /* of its region */
	uint16_t at;
};

struct pack {
	uint64_t n;
	struct entry entries[MOST];
	char bytes[GU_PAGE - 8 - MOST * sizeof(struct entry)];
};
_Static_assert(sizeof(struct pack) == GU_PAGE, "a page of the store");

/* ---- reading ---- */

size_t gu_pack_reader_memory(void) { return GU_STORE_NEAR + GU_PAGE; }

int gu_pack_reader_init(struct gu_pack_reader *r)
{
	char *p = gu_meta_map(gu_pack_reader_memory());
	if (!p)
		return -ENOMEM;
	r->near.bytes = p;
	r->bytes = (uint64_t *)(void *)(p + GU_STORE_NEAR);
	gu_pack_reader_reset(r);
	return 0;
}

void gu_pack_reader_destroy(struct gu_pack_reader *r) { gu_meta_unmap(r->near.bytes, gu_pack_reader_memory()); }

void gu_pack_reader_reset(struct gu_pack_reader *r)
{
	r->pack = NULL;
	r->near.chunk = UINT32_MAX;
}

static int find(const struct pack *p, size_t page, const struct gu_summary **summary)
{
	for (size_t i = 0; i < gu_min(p->n, MOST); i++)
		if (p->entries[i].page == page % GU_REGION_PAGES) {
			*summary = (const struct gu_summary *)(const void *)(p->bytes + p->entries[i].at);
			return 0;
		}
	return -EBADMSG;
}

int gu_pack_read(struct gcuffd_heap *h, struct gu_pack_reader *r, size_t page, const struct gu_summary **summary)
{
	struct gu_cold *c = &h->space.cold;
	const struct gu_cold_pack *pack = gu_cold_pack(gu_cold_region(c, page)->summary[page % GU_REGION_PAGES]);
	int err = r->pack == pack ? 0 : gu_store_get_near(c->store, pack->slot, &r->near, r->bytes);
	r->pack = err ? NULL : pack;
	err = err ? err : find((const void *)r->bytes, page, summary);
	if (err)
		gu_add_relaxed(&c->counts.unread, 1);
	return err;
}

/* ---- putting ---- */

bool gu_pack_is_due(struct gcuffd_heap *h)
{
	const struct gu_cold *c = &h->space.cold;
	return !gu_store_is_memory(c->store) && gu_load_relaxed(&c->slab.bytes) > gu_load_relaxed(&c->target) / SHARE;
}

/* Adds those from here on that fit, passing over pages that have none or an answer of their own: where to go on. */
static size_t fill(struct pack *p, size_t page, size_t n, struct gu_summary *const *summaries)
{
	size_t i = 0, used = 0;
	for (; i < n && p->n < MOST; i++) {
		if (!summaries[i] || summaries[i] == GU_COLD_PEEK)
			continue;
		size_t len = gu_summary_size(summaries[i]);
		if (used + len > sizeof(p->bytes))
			break;
		p->entries[p->n++] = (struct entry){(uint16_t)((page + i) % GU_REGION_PAGES), (uint16_t)used};
		memcpy(p->bytes + used, summaries[i], len);
		used += len;
	}
	return i;
}

static void replace(struct gcuffd_heap *h, struct gu_cold_pack *pack, size_t n, struct gu_summary **summaries)
{
	for (size_t i = 0; i < n; i++) {
		if (!summaries[i] || summaries[i] == GU_COLD_PEEK)
			continue;
		gu_summary_free(h, summaries[i]);
		summaries[i] = (struct gu_summary *)((uintptr_t)pack + GU_COLD_FILED);
	}
}

static int put(struct gcuffd_heap *h, const struct pack *p, size_t n, struct gu_summary **summaries)
{
	struct gu_cold *c = &h->space.cold;
	struct gu_cold_pack *pack = gu_slab_alloc(&c->slab, sizeof(*pack));
	int err = -ENOMEM;
	if (!pack)
		return err;
	if (!gu_store_put(c->store, p, 1, &pack->slot, &err)) {
		gu_slab_free(&c->slab, pack);
		return err;
	}
	pack->left = (uint32_t)p->n;
	replace(h, pack, n, summaries);
	return 0;
}

/* One that is longer than a pack, or alone, stays where it is. */
void gu_pack_put(struct gcuffd_heap *h, size_t page, size_t n, struct gu_summary **summaries)
{
	for (size_t at = 0; at < n;) {
		struct pack p = {0};
		size_t done = fill(&p, page + at, n - at, summaries + at);
		if (p.n > 1 && put(h, &p, done, summaries + at))
			return;
		at += gu_max(done, 1);
	}
}
