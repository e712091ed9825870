/* SPDX-License-Identifier: MIT */
/*
 * verifyroots.h - where roots are, read a second time for the verifier: from the loader, the kernel's list of mappings and the entries of threads, not from
 * the collector's lists. Plainer than roots.c and never more than it reads: where that takes a guess this leaves something out.
 */
#ifndef GU_GC_VERIFYROOTS_H
#define GU_GC_VERIFYROOTS_H

#include "gc/heap.h"

struct gu_verify_roots;
struct gu_root_visit;

/* NULL: no memory. */
struct gu_verify_roots *gu_verify_roots_create(void);
void gu_verify_roots_destroy(struct gu_verify_roots *roots);

/* Modules and their TLS. Takes the loader's lock: before a stop, and of the moment of which the collector's list is. */
void gu_verify_roots_list(struct gcuffd_heap *heap, struct gu_verify_roots *roots);
/* In a stop. Each range in place or (foreign) to be copied; some come twice. */
void gu_verify_roots_each(struct gcuffd_heap *heap, const struct gu_verify_roots *roots, const struct gu_root_visit *visit);

#endif
