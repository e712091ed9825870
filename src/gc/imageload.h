/* SPDX-License-Identifier: MIT */
/*
 * imageload.h - a heap made of an image: its tables at once, its pages as pages that are out.
 *
 * What is loaded lies below space->loaded, in blocks that jemalloc does not know: their addresses are never handed out again (.inv.image.region).
 * Summaries are read before the first cycle (.inv.image.summaries): until then nobody asks for one.
 */
#ifndef GU_GC_IMAGELOAD_H
#define GU_GC_IMAGELOAD_H

#include "gc/heap.h"
#include "space/image.h"

/* Header and sections, checked. Not inside a section. As gcuffd_heap_load(); the log says why not. */
int gu_image_open(const char *path, const struct gu_log *log, struct gu_image **image);
/* Its memory; the descriptor is closed by who has it. */
void gu_image_free(struct gu_image *image);

/* Into a heap that was just made, at the image's address. -EBADMSG; -ENOMEM, at the limit too. */
int gu_image_install(struct gcuffd_heap *heap, struct gu_image *image);

/* The collector, before a cycle. -ENOMEM. */
int gu_image_summarise(struct gcuffd_heap *heap);

#endif
