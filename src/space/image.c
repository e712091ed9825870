/* SPDX-License-Identifier: MIT */
/* image.c - see image.h. */
#define XXH_INLINE_ALL
#include "space/image.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <xxhash.h>

#include "space/block.h"
#include "space/sizeclass.h"
#include "space/storecodec.h"
#include "sys/os.h"

#define READ_MOST ((size_t)1 << 30) /* what a read is asked for at once */

uint64_t gu_image_sum(const void *bytes, size_t len) { return XXH3_64bits(bytes, len); }

/* ---- reading ---- */

int gu_image_read(const struct gu_image *im, uint64_t at, void *to, size_t len)
{
	for (size_t done = 0; done < len;) {
		long got = gu_os->pread(im->fd, (char *)to + done, gu_min(len - done, READ_MOST), (off_t)(at + done));
		if (got == -EINTR)
			continue;
		if (got <= 0)
			return got ? (int)got : -EBADMSG;
		done += (size_t)got;
	}
	return 0;
}

static int refuse(const char **why, const char *what, int err)
{
	*why = what;
	return err;
}

static int check_head(const struct gu_image_head *h, uint64_t sum, uint64_t wanted, const char **why)
{
	if (memcmp(h->magic, GU_IMAGE_MAGIC, sizeof(h->magic)))
		return refuse(why, "it is no image of a heap", -EINVAL);
	if (h->order != GU_IMAGE_ORDER)
		return refuse(why, "it is of a machine of another byte order", -EINVAL);
	if (h->version != GU_IMAGE_VERSION)
		return refuse(why, "it is of another version of the library", -EINVAL);
	if (h->page != GU_PAGE)
		return refuse(why, "it has pages of another size", -EINVAL);
	return sum == wanted ? 0 : refuse(why, "its header is damaged", -EBADMSG);
}

/* Sections lie within the file, one after the other, and the heap in the address space. */
static bool parts_fit(const struct gu_image_head *h)
{
	if (h->base % GU_REGION || h->size % GU_REGION || h->top % GU_REGION || h->top > h->size || h->base < 2 * GU_REGION || h->size > UINT64_MAX - h->base)
		return false;
	uint64_t at = GU_PAGE;
	for (int i = 0; i < GU_IMAGE_PARTS; i++) {
		const struct gu_image_section *p = &h->parts[i];
		if (p->at < at || p->at % GU_PAGE || p->len > h->length || p->at > h->length - p->len)
			return false;
		at = p->at + p->len;
	}
	return at <= h->length;
}

int gu_image_read_head(struct gu_image *im, const char **why)
{
	char page[GU_PAGE] = {0}, last;
	uint64_t wanted;
	int err = gu_image_read(im, 0, page, sizeof(im->head.magic));
	if (err == -EBADMSG || (!err && memcmp(page, GU_IMAGE_MAGIC, sizeof(im->head.magic))))
		return refuse(why, "it is no image of a heap", -EINVAL);
	if (!err)
		err = gu_image_read(im, 0, page, sizeof(page));
	if (err)
		return refuse(why, err == -EBADMSG ? "it is cut off" : "it can't be read", err);
	memcpy(&im->head, page, sizeof(im->head));
	memcpy(&wanted, page + GU_PAGE - 8, 8);
	err = check_head(&im->head, gu_image_sum(page, GU_PAGE - 8), wanted, why);
	if (!err && !parts_fit(&im->head))
		return refuse(why, "its header is damaged", -EBADMSG);
	if (!err && (err = gu_image_read(im, im->head.length - 1, &last, 1)))
		return refuse(why, "it is cut off", err);
	return err;
}

int gu_image_read_part(struct gu_image *im, enum gu_image_part part)
{
	const struct gu_image_section *p = &im->head.parts[part];
	int err = gu_image_read(im, p->at, im->parts[part], p->len);
	return err || gu_image_sum(im->parts[part], p->len) == p->sum ? err : -EBADMSG;
}

/* ---- lines ---- */

static bool is_zero(const char *line)
{
	static const char zeros[GU_IMAGE_LINE];
	return !memcmp(line, zeros, sizeof(zeros));
}

size_t gu_lines_gather(const void *page, uint64_t *lines, void *out)
{
	const char *from = page;
	char *to = out;
	for (uint64_t m = *lines; m; m &= m - 1) {
		unsigned i = (unsigned)__builtin_ctzll(m);
		if (is_zero(from + i * GU_IMAGE_LINE)) {
			*lines &= ~(1ull << i);
			continue;
		}
		memcpy(to, from + i * GU_IMAGE_LINE, GU_IMAGE_LINE);
		to += GU_IMAGE_LINE;
	}
	return (size_t)(to - (char *)out);
}

/* From the last one on: none is overwritten before it was moved. */
void gu_lines_spread(void *page, uint64_t lines)
{
	char *at = page;
	unsigned from = (unsigned)__builtin_popcountll(lines);
	for (unsigned i = GU_PAGE / GU_IMAGE_LINE; i-- > 0;)
		if (!(lines >> i & 1))
			memset(at + i * GU_IMAGE_LINE, 0, GU_IMAGE_LINE);
		else if (--from != i)
			memcpy(at + i * GU_IMAGE_LINE, at + from * GU_IMAGE_LINE, GU_IMAGE_LINE);
}

/* ---- pages ---- */

int gu_image_get(const struct gu_image *im, gu_slot slot, void *page)
{
	const struct gu_image_page *p = gu_image_page(im, slot >> 2);
	if (p->at == GU_IMAGE_WORD || !p->at) {
		gu_page_fill(page, p->at ? p->more : 0);
		return 0;
	}
	int err = p->at < im->head.length ? gu_image_read(im, p->at, page, gu_image_len(p)) : -EBADMSG;
	if (err || gu_bytes_sum(page, gu_image_len(p)) != p->sum)
		return err ? err : -EBADMSG;
	gu_lines_spread(page, p->lines);
	return 0;
}

/* ---- what sections say ---- */

static bool block_fits(const struct gu_image_head *h, const struct gu_image_block *b, uint64_t from)
{
	size_t cell = b->large || b->class >= GU_CLASSES ? 0 : gu_class_size(b->class);
	if (b->start < from || b->start > h->base + h->top || b->bytes > h->base + h->top - b->start || b->start % GU_PAGE || b->bytes % GU_PAGE)
		return false;
	if (!b->bytes || b->kind > 2)
		return false;
	return b->large ? b->ncells == 1 : cell && b->ncells == GU_BLOCK / cell && b->bytes >= GU_BLOCK;
}

int gu_image_check(const struct gu_image *im)
{
	const struct gu_image_head *h = &im->head;
	const struct gu_image_block *b = im->parts[GU_IMAGE_BLOCKS];
	size_t n = gu_image_count(im, GU_IMAGE_BLOCKS, sizeof(*b)), bits = 0, cells = 0, i;
	const struct gu_image_name *name;
	uint64_t from = h->base;
	if (h->parts[GU_IMAGE_PAGES].len != (h->top >> GU_PAGE_SHIFT) * sizeof(struct gu_image_page))
		return -EBADMSG;
	for (i = 0; i < n; i++) {
		if (!block_fits(h, &b[i], from))
			return -EBADMSG;
		from = b[i].start + b[i].bytes;
		bits += (b[i].ncells + 63) / 64 * 8;
		cells += b[i].kind == 2 ? gu_align_up(b[i].ncells * 2, 8) : 0;
	}
	for (int part = GU_IMAGE_ROOTS; part <= GU_IMAGE_EXTERNALS; part++)
		for (i = 0, name = im->parts[part]; i < gu_image_count(im, (enum gu_image_part)part, sizeof(*name)); i++)
			if (name[i].name[GU_IMAGE_NAME - 1])
				return -EBADMSG;
	return bits == h->parts[GU_IMAGE_BITS].len && cells == h->parts[GU_IMAGE_CELLS].len ? 0 : -EBADMSG;
}

/* ---- fork ---- */

int gu_image_fork_prepare(struct gu_image *im)
{
	char name[64];
	snprintf(name, sizeof(name), "/proc/self/task/%d/fd/%d", (int)im->tid, im->fd);
	im->child_fd = im->fd < 0 ? -1 : gu_os->open(name, O_RDONLY);
	return im->fd < 0 || im->child_fd >= 0 ? 0 : im->child_fd;
}

void gu_image_fork_parent(struct gu_image *im)
{
	if (im->child_fd >= 0)
		gu_os->close(im->child_fd);
	im->child_fd = -1;
}

/* Without one, what is out in the image can't be read, -EBADF. */
void gu_image_fork_child(struct gu_image *im)
{
	im->fd = im->child_fd;
	im->child_fd = -1;
}
