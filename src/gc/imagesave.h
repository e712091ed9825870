/* SPDX-License-Identifier: MIT */
/*
 * imagesave.h - a heap written to a file while mutators run.
 *
 * All pages are write-protected, and written out as a cycle precleans: what was written meanwhile is written again, until little is left.
 * In a stop that little is copied, and the bits of all blocks are: that moment is what the image shows. What was copied is written after it; then
 * what can't be reached from the named roots is left out (saver.h), and tables are written. As in a cycle's window, no freed cell is handed out and
 * no block is released meanwhile (.inv.image.window): a cell that was an object at the stop has its type and its words until the end.
 */
#ifndef GU_GC_IMAGESAVE_H
#define GU_GC_IMAGESAVE_H

#include "gc/heap.h"

/* The collector, with the cycle lock. As gcuffd_heap_save(), whose options have been checked. */
int gu_image_save(struct gcuffd_heap *heap, const char *path, const struct gcuffd_image_options *options);

#endif
