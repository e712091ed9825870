/* SPDX-License-Identifier: MIT */
/* imageload.c - see imageload.h. */
#include "gc/imageload.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>

#include "base/meta.h"
#include "gc/mutator.h"
#include "gc/summary.h"
#include "space/storecodec.h"
#include "sys/os.h"

#define WINDOW ((size_t)1 << 20) /* of the file, read at once */
#define GROWN 72u                /* bytes that a summary may have more than it had, with fewer pointers in it */

/* ---- opening ---- */

static struct gu_image *make(void)
{
	struct gu_thread *t = gu_enter();
	struct gu_image *im = gu_meta_alloc(sizeof(*im));
	gu_leave(t);
	return im;
}

static int make_part(struct gu_image *im, enum gu_image_part part)
{
	struct gu_thread *t = gu_enter();
	im->parts[part] = gu_meta_map(gu_image_room(im, part));
	gu_leave(t);
	return im->parts[part] ? 0 : -ENOMEM;
}

void gu_image_free(struct gu_image *im)
{
	struct gu_thread *t = gu_enter();
	for (int i = 0; i < GU_IMAGE_PARTS; i++)
		gu_meta_unmap(im->parts[i], gu_image_room(im, (enum gu_image_part)i));
	if (im->held)
		gu_space_unhold(im->head.base, im->head.size);
	gu_meta_unmap(im->summaries, im->summaries_len);
	gu_meta_free(im, sizeof(*im));
	gu_leave(t);
}

static int read_all(struct gu_image *im, const char **why)
{
	int err = gu_image_read_head(im, why);
	if (!err)
		err = gu_space_hold(im->head.base, im->head.size);
	im->held = !err;
	for (int i = 0; i < GU_IMAGE_PARTS && !err; i++) {
		err = make_part(im, (enum gu_image_part)i);
		if (!err)
			err = gu_image_read_part(im, (enum gu_image_part)i);
		*why = err == -EBADMSG ? "a section is damaged" : "it can't be read";
	}
	if (!err && (err = gu_image_check(im)))
		*why = "its sections don't fit together";
	return err;
}

int gu_image_open(const char *path, const struct gu_log *log, struct gu_image **out)
{
	const char *why = "it can't be opened";
	struct gu_image *im = make();
	if (!im) {
		gu_log(log, GU_LOG_ERROR, "image %s: out of memory", path);
		return -ENOMEM;
	}
	im->child_fd = -1;
	im->fd = gu_os->open(path, O_RDONLY | O_NOCTTY | O_NONBLOCK);
	int err = im->fd < 0 ? im->fd : read_all(im, &why);
	if (!err) {
		*out = im;
		return 0;
	}
	if (err == -EEXIST)
		gu_log(log, GU_LOG_ERROR, "image %s: addresses %#lx to %#lx, which it is for, are taken in this process", path, (unsigned long)(im->head.base - GU_REGION),
		       (unsigned long)(im->head.base + im->head.size));
	else
		gu_log(log, GU_LOG_ERROR, "image %s: %s (error %d)", path, why, -err);
	if (im->fd >= 0)
		gu_os->close(im->fd);
	gu_image_free(im);
	return err;
}

/* ---- into a heap ---- */

static int install_types(struct gcuffd_heap *h, const struct gu_image *im)
{
	const uint64_t *at = im->parts[GU_IMAGE_TYPES], *end = at + im->head.parts[GU_IMAGE_TYPES].len / 8;
	if (im->head.ntypes > GU_TYPES)
		return -EBADMSG;
	for (uint32_t i = 0; i < im->head.ntypes; i++) {
		uint64_t counts = at < end ? *at++ : 0;
		uint32_t words = (uint32_t)counts, element = (uint32_t)(counts >> 32);
		size_t len = gu_type_bitmap_words(words);
		if (!words || words > GU_TYPE_WORDS || element > words || len > (size_t)(end - at))
			return -EBADMSG;
		struct gcuffd_type *t = gu_meta_alloc(gu_type_size(words));
		if (!t)
			return -ENOMEM;
		t->words = words;
		t->element = element;
		t->index = i;
		memcpy(t->bitmap, at, len * 8);
		at += len;
		gu_store_release(&h->types[i], t); /* pairs with the markers' load */
		h->ntypes = i + 1;
	}
	return 0;
}

static bool types_exist(const struct gcuffd_heap *h, const uint16_t *types, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++)
		if (types[i] >= gu_max(h->ntypes, 1))
			return false;
	return h->ntypes;
}

static int install_pages(struct gcuffd_heap *h, const struct gu_image *im, const struct gu_image_block *b)
{
	struct gu_space *s = &h->space;
	size_t from = gu_space_page(s, b->start), to = from + (b->bytes >> GU_PAGE_SHIFT);
	int err = 0;
	if (s->limit && gu_space_resident(s) + b->bytes > s->limit)
		return -ENOMEM;
	gu_add_relaxed(&s->resident, b->bytes);
	for (size_t p = from; p < to && !err; p++) {
		s->state[p] = GU_PAGE_RESIDENT | GU_PAGE_USED;
		err = gu_image_page(im, p)->at ? gu_cold_load(s, p) : 0;
	}
	return err;
}

static int install_blocks(struct gcuffd_heap *h, const struct gu_image *im)
{
	const struct gu_image_block *b = im->parts[GU_IMAGE_BLOCKS];
	const uint64_t *bits = im->parts[GU_IMAGE_BITS];
	const char *cells = im->parts[GU_IMAGE_CELLS];
	int err = 0;
	for (size_t i = 0; i < gu_image_count(im, GU_IMAGE_BLOCKS, sizeof(*b)) && !err; i++, b++) {
		bool typed = b->kind == GCUFFD_TYPED;
		const uint16_t *types = (const uint16_t *)(const void *)cells;
		if (typed && !types_exist(h, types, b->ncells))
			return -EBADMSG;
		err = gu_arena_load(h->arenas[0], b, bits, types);
		if (!err)
			err = install_pages(h, im, b);
		bits += (b->ncells + 63) / 64;
		cells += typed ? gu_align_up(b->ncells * 2, 8) : 0;
	}
	return err;
}

/* As if a cycle had just found all of it alive. */
static void pace(struct gcuffd_heap *h)
{
	uint64_t grow = gu_load_relaxed(&h->space.resident) / 100 * h->options.growth_percent;
	h->trigger = gu_max(h->trigger, grow);
	h->ceiling = gu_max(h->ceiling, h->trigger * 2);
}

int gu_image_install(struct gcuffd_heap *h, struct gu_image *im)
{
	h->space.cold.image = im;
	int err = gu_space_load(&h->space, im->head.top);
	if (!err)
		err = install_types(h, im);
	if (!err)
		err = install_blocks(h, im);
	if (!err)
		pace(h);
	return err;
}

/* ---- summaries ---- */

struct reader {
	const struct gu_image *im;
	char *window;
	uint64_t at;
	size_t len;
};

static bool is_read(const struct reader *r, const struct gu_image_page *e)
{
	return e->more >= r->at && e->more - r->at <= r->len && e->summary_len <= r->len - (e->more - r->at);
}

/* NULL: not to be read, or not what was written. */
static const void *read_summary(struct reader *r, const struct gu_image_page *e)
{
	if (e->more % 8)
		return NULL;
	if (!is_read(r, e)) {
		r->at = e->more;
		r->len = gu_min(WINDOW, r->im->head.length - gu_min(r->at, r->im->head.length));
		if (gu_image_read(r->im, r->at, r->window, r->len))
			r->len = 0;
		if (e->summary_len > r->len)
			return NULL;
	}
	const char *bytes = r->window + (e->more - r->at);
	return gu_bytes_sum(bytes, e->summary_len) == e->summary_sum && gu_summary_fits(bytes, e->summary_len) ? bytes : NULL;
}

/* Made anew of the contents; a page whose contents are damaged too leads nowhere, for nobody can read it. */
static size_t make_summary(struct gcuffd_heap *h, size_t page, void *packed)
{
	uintptr_t words[GU_PAGE_WORDS];
	struct gu_page_words which;
	int err = gu_cold_get(&h->space.cold, gu_image_slot(page), words);
	gu_log(&h->log, GU_LOG_ERROR, "image: where the page at %#lx points to is damaged%s", (unsigned long)gu_space_address(&h->space, page),
	       err ? ", and so is the page" : "; found out from the page");
	if (err)
		return 0;
	gu_summary_words(h, page, words, NULL, &which);
	return gu_summary_pack(h, words, &which, packed);
}

/* Also of one that is just being filled: where that fails it is out. */
static bool wants(const struct gcuffd_heap *h, size_t page)
{
	const struct gu_cold *c = &h->space.cold;
	const struct gu_cold_region *r = gu_cold_is_on_its_way(c, page) ? gu_cold_region(c, page) : NULL;
	return r && gu_cold_state(c, page) != GU_COLD_POISONED && gu_image_has(r->slot[page % GU_REGION_PAGES]) && gu_image_page(c->image, page)->summary_len &&
	       gu_image_page(c->image, page)->at != GU_IMAGE_WORD;
}

/* Of full pages, or of the others: each sort lies in the file by itself, by address. */
static size_t read_summaries(struct gcuffd_heap *h, struct gu_image *im, bool full, size_t at, struct reader *r, uint64_t *packed)
{
	for (size_t p = 0; p < h->space.loaded >> GU_PAGE_SHIFT; p++) {
		const struct gu_image_page *e = gu_image_page(im, p);
		if (!wants(h, p) || (e->lines == GU_IMAGE_ALL) != full)
			continue;
		const void *bytes = read_summary(r, e);
		size_t len = bytes ? e->summary_len : make_summary(h, p, packed);
		if (!len || at + len > im->summaries_len) /* it came back meanwhile, and was not counted */
			continue;
		memcpy(im->summaries + at, bytes ? bytes : packed, len);
		gu_store_release(&gu_cold_region(&h->space.cold, p)->summary[p % GU_REGION_PAGES], (struct gu_summary *)(void *)(im->summaries + at));
		at += gu_align_up(len, 8);
	}
	return at;
}

int gu_image_summarise(struct gcuffd_heap *h)
{
	struct gu_image *im = h->space.cold.image;
	size_t len = 0;
	if (!im || im->summarised)
		return 0;
	for (size_t p = 0; p < h->space.loaded >> GU_PAGE_SHIFT; p++)
		len += wants(h, p) ? gu_min(gu_image_page(im, p)->summary_len, GU_SUMMARY_MOST) + GROWN + 8u : 0;
	struct reader r = {.im = im, .window = gu_meta_map(WINDOW)};
	uint64_t *packed = gu_meta_map(gu_align_up(GU_SUMMARY_MOST, GU_PAGE));
	im->summaries = len ? gu_meta_map(gu_align_up(len, GU_PAGE)) : NULL;
	im->summaries_len = im->summaries ? gu_align_up(len, GU_PAGE) : 0;
	im->summarised = r.window && packed && (im->summaries || !len);
	if (im->summarised)
		read_summaries(h, im, true, read_summaries(h, im, false, 0, &r, packed), &r, packed);
	else if (im->summaries) {
		gu_meta_unmap(im->summaries, im->summaries_len);
		im->summaries = NULL;
		im->summaries_len = 0;
	}
	gu_meta_unmap(r.window, WINDOW);
	gu_meta_unmap(packed, gu_align_up(GU_SUMMARY_MOST, GU_PAGE));
	return im->summarised ? 0 : -ENOMEM;
}
