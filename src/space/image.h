/* SPDX-License-Identifier: MIT */
/*
 * image.h - the file that a heap is saved to, and pages read from it.
 *
 *	page 0      the header: what it is, and where the sections are; its last word is a checksum of the page
 *	pages ...   contents of pages of the heap that are full of objects, each aligned to 4 KiB
 *	the pack    of the other ones the lines with something in them, and summaries
 *	sections    each begins at a page and has a checksum in the header
 *
 * An entry of the page index says for each page of the heap where its contents are, and their checksum: nothing that is read later, page
 * or summary, is believed without one (.inv.image.checked). Words are as in memory: an image is for machines of its byte order.
 *
 * A slot whose low bits are 3 stands for a page of the image. Any thread; the descriptor is in the service threads' table.
 */
#ifndef GU_SPACE_IMAGE_H
#define GU_SPACE_IMAGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/check.h"
#include "space/store.h"

#define GU_IMAGE_MAGIC "gcuffd\x1a\n"
#define GU_IMAGE_VERSION 3u
#define GU_IMAGE_ORDER 0x01020304u
#define GU_IMAGE_NAME 64 /* bytes of a name, with the zero */
#define GU_IMAGE_WORD UINT64_MAX
#define GU_IMAGE_LINE 64 /* bytes */
#define GU_IMAGE_ALL (~0ull)

enum gu_image_part {
	GU_IMAGE_BLOCKS,      /* struct gu_image_block */
	GU_IMAGE_BITS,        /* of these one after the other: a word for each 64 cells, set where there is an object */
	GU_IMAGE_CELLS,       /* of typed blocks: the type of each cell, 16 bits, each block's rounded up to 8 bytes */
	GU_IMAGE_TYPES,       /* words, and those of an element above 32 bits, then the bitmap, in words of 64 bits */
	GU_IMAGE_PAGES,       /* struct gu_image_page, from the heap's first page on */
	GU_IMAGE_ROOTS,       /* struct gu_image_name */
	GU_IMAGE_EXTERNALS,   /* struct gu_image_name */
	GU_IMAGE_RELOCATIONS, /* struct gu_image_relocation */
	GU_IMAGE_PARTS
};

struct gu_image_section {
	uint64_t at, len, sum; /* bytes */
};

/* The options of the heap that was saved, as far as they say nothing of its machine; 0: the default. */
struct gu_image_options {
	uint64_t soft_limit, hard_limit, start_size, resident_target, store_memory, store_file;
	uint32_t growth_percent, decay_ms, stop_timeout_ms, store_codec, cool_mode, cool_after_ms, pressure_percent, fault_percent;
};

struct gu_image_head {
	char magic[8];
	uint32_t version, order, page, flags;      /* flags: the heap's; what is in it depends on some of them */
	uint64_t length;                           /* of the file */
	uint64_t base, size, top;                  /* of the reservation */
	uint64_t ntypes;
	struct gu_image_options options;
	struct gu_image_section parts[GU_IMAGE_PARTS];
};

struct gu_image_block {
	uint64_t start, bytes;
	uint32_t ncells;
	uint8_t kind, class, large, unused;
};

/*
 * at: where in the file its lines are, one after the other; 0: the page is zero; GU_IMAGE_WORD: it is the word more, over and over; else more: where
 * its summary is. lines: a bit for each that is there; the other ones are zero.
 */
struct gu_image_page {
	uint64_t at, lines, more;
	uint32_t sum, summary_len, summary_sum, unused;
};

struct gu_image_name {
	uint64_t address, size;
	char name[GU_IMAGE_NAME];
};

struct gu_image_relocation {
	uint64_t word; /* its address */
	uint64_t external;
};

struct gu_image {
	struct gu_image_head head;   /* constant */
	void *parts[GU_IMAGE_PARTS]; /* as read; guard: who loads it, the page index then constant */
	int fd, child_fd;            /* guard: who opens it, who forks */
	int32_t tid;                 /* a thread whose descriptor table has it */
	bool held;                   /* guard: who loads it; its addresses */
	char *summaries;             /* guard: collector */
	size_t summaries_len;
	bool summarised;             /* guard: collector */
};

static inline gu_slot gu_image_slot(size_t page) { return (uint64_t)page << 2 | 3; }
static inline bool gu_image_has(gu_slot slot) { return (slot & 3) == 3; }

uint64_t gu_image_sum(const void *bytes, size_t len);

/* Reads and checks the header. -EINVAL: no image, or one for another machine or library; -EBADMSG: cut off or damaged; -EIO, ...  */
int gu_image_read_head(struct gu_image *image, const char **why);
/* Reads a section into parts[part], which has its room. As above. */
int gu_image_read_part(struct gu_image *image, enum gu_image_part part);
/* Whether all that the sections say fits together: nothing that is built of them lies outside of the heap. -EBADMSG. */
int gu_image_check(const struct gu_image *image);

/* The contents of a page of the heap. -EBADMSG: not what was saved; -EIO. */
int gu_image_get(const struct gu_image *image, gu_slot slot, void *page);
/* len bytes from at on. -EBADMSG: the file ends before. */
int gu_image_read(const struct gu_image *image, uint64_t at, void *to, size_t len);

static inline const struct gu_image_page *gu_image_page(const struct gu_image *image, size_t page)
{
	return (const struct gu_image_page *)image->parts[GU_IMAGE_PAGES] + page;
}
/* Bytes that a page which is neither zero nor a word has in the file. */
static inline size_t gu_image_len(const struct gu_image_page *page) { return (size_t)__builtin_popcountll(page->lines) * GU_IMAGE_LINE; }

/* Lines of a page that are named and not zero, into out, one after the other; *lines: which; how many bytes. */
size_t gu_lines_gather(const void *page, uint64_t *lines, void *out);
/* Those at the front of the page to where they belong; all others are zero. */
void gu_lines_spread(void *page, uint64_t lines);

static inline size_t gu_image_count(const struct gu_image *image, enum gu_image_part part, size_t size) { return image->head.parts[part].len / size; }
static inline size_t gu_image_room(const struct gu_image *image, enum gu_image_part part) { return gu_align_up(image->head.parts[part].len + 8, GU_PAGE); }

/* Around fork(): a child that has pages in the image gets a descriptor of its own. -errno: it can't, and what is out there it can't read. */
int gu_image_fork_prepare(struct gu_image *image);
void gu_image_fork_parent(struct gu_image *image);
void gu_image_fork_child(struct gu_image *image);

#endif
