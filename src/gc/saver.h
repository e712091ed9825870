/* SPDX-License-Identifier: MIT */
/*
 * saver.h - a heap that is being saved, for the files that do so: imagesave.c writes pages until the moment that the image shows, imagetrace.c finds
 * what can be reached in what was written, and imagepack.c leaves the rest out of the file. The collector's thread alone.
 */
#ifndef GU_GC_SAVER_H
#define GU_GC_SAVER_H

#include <sys/uio.h>

#include "gc/heap.h"
#include "space/image.h"

struct gu_saver_range {
	uintptr_t start, end;
};

#define GU_SAVER_BATCH 256u
#define GU_SAVER_MAPS ((size_t)64 << 10)
#define GU_SAVER_PHASES 4

struct gu_saver {
	struct gcuffd_heap *heap;
	const struct gcuffd_image_options *options;
	char *name;                    /* of the file that is written */
	int fd;
	uint32_t next;                 /* the file's pages from here on are free */
	struct gu_image_page *pages;   /* of the heap's pages, as its part of the image; until they are packed, each whole one is at a page of the file */
	size_t known;                  /* pages that these are there for */
	struct iovec *pieces;          /* of the batch, up to GU_SAVER_BATCH pages that are written next, one after the other */
	size_t npieces;
	char *batch;                   /* room for those of them that are not in place */
	uint32_t batch_at, batch_n;
	uintptr_t *page;               /* room for one */
	struct gu_saver_range *maps;   /* mappings of the process, by address; those that adjoin are one */
	size_t nmaps;
	struct gu_saver_range gap;     /* between two of them: where the last word that is in none lies */
	uint64_t rounds, written, stop_ns;
	uint64_t since, phase_ns[GU_SAVER_PHASES];
	uint64_t ceiling, room;        /* the heap's ceiling before the save, and how far above the trigger it lay */
	/* of the moment */
	size_t top, live;
	char *kept;                    /* pages copied, and which these are */
	uint32_t *kept_page;
	size_t nkept, most_kept;
	uint32_t most_blocks;          /* room */
	size_t most_bits;
	size_t *bits_of;               /* by number of descriptor: 1 + where its bits are; 0: not in the image */
	uint64_t *version;             /* by number of descriptor: what its bits were copied at (version_of()); 0: not yet, for whatever is in use was made once */
	uint64_t *bits;                /* of what is an object, and from the trace on of what is reachable */
	size_t nbits;
	struct gu_image_head head;
	/* made of it */
	struct gu_image_relocation *relocations;
	size_t nrelocations, most_relocations;
};

static inline struct gu_space *gu_saver_space(const struct gu_saver *s) { return &s->heap->space; }

/* Bits of the block that has the page; NULL: it is in no block of the image. */
static inline uint64_t *gu_saver_bits(const struct gu_saver *s, size_t page)
{
	uint32_t index = gu_load_acquire(&gu_saver_space(s)->block_of[page]);
	size_t at = index && index < s->most_blocks ? s->bits_of[index] : 0;
	return at ? s->bits + at - 1 : NULL;
}

/* imagesave.c: the file. */
int gu_saver_write(struct gu_saver *saver, uint64_t at, const void *from, size_t len);

/*
 * imagetrace.c: of the objects of the moment, those are left that can be reached from the named roots; without roots, all.
 * Follows what was written, not the heap, which goes on.
 */
int gu_saver_trace(struct gu_saver *saver);

/* imagepack.c: mappings as they are now. */
int gu_saver_list_maps(struct gu_saver *saver);
/* Pages without an object are left out, of those with few only their lines stay, and what is left lies close together. Summaries and relocations. -EXDEV. */
int gu_saver_pack(struct gu_saver *saver);

#endif
