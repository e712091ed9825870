/* SPDX-License-Identifier: MIT */
/*
 * without.h - the optimisations that can be left out, one by one. Each saves arming, scanning, reading or filling something
 * that a slower way would; without it there are more faults and more work, and no other result (.inv.without.same).
 *
 * A heap has its own bits, from the option without=NAME+NAME; what belongs to no heap looks at the process's, which come from
 * GCUFFD_WITHOUT in the environment when the library is first used, and which each new heap gets too. They are asked for on slow
 * paths only.
 */
#ifndef GU_BASE_WITHOUT_H
#define GU_BASE_WITHOUT_H

#include <stdbool.h>
#include <stddef.h>

/* A name, and what is done without it. */
#define GU_WITHOUT_OF_HEAP(X) \
	X(populated) /* holes are armed and read as written too */ \
	X(present)   /* roots and large objects are read where nothing is, too */ \
	X(tracked)   /* roots of the program are read whole in both stops, never armed */ \
	X(cards)     /* every page counts as written */ \
	X(atomic)    /* pages without pointers are armed and looked at too */ \
	X(current)   /* precleaning looks at blocks that threads allocate from, too */ \
	X(preclean)  /* all that was written is left to the remark */ \
	X(disarm)    /* pages stay armed after a cycle */ \
	X(fresh)     /* during a cycle allocation begins with listed blocks, which are armed */ \
	X(zeroed)    /* fresh pages are cleared like used ones */ \
	X(ahead)     /* nothing is made writable or brought in ahead of mutators */ \
	X(huge)      /* no huge pages */ \
	X(decay)     /* freed memory goes back to the OS at once */ \
	X(parallel)  /* one thread marks */ \
	X(neighbours) /* cold memory: pages in order behind those touched stay out until they are touched, too */

#define GU_WITHOUT_OF_PROCESS(X) \
	X(membarrier) /* a stop makes mutators see a new phase */ \
	X(short)     /* scans take the kernel's full way, also where its short one tells all that is needed (wp-short) */ \
	X(unarmed)   /* watching: the slower scans of anonymous memory at once, not where a cheap one found something */ \
	X(cheap)     /* watching: empty anonymous pages are armed for everybody */ \
	X(holes)     /* watching: page tables that are missing are looked for, also where the kernel tells */ \
	X(direct)    /* watching: what is found goes into bitmaps before it is reported, also where nobody else wants it */ \
	X(full)      /* watching: mincore(2) is not asked what is there: holes are looked for by scans */ \
	X(quick)     /* watching: a chunk is scanned at a time, and by every pass, also where one pass tells all */ \
	X(around)    /* first touch: a page at a time, without its neighbours */ \
	X(spin)      /* first touch: threads sleep at once */ \
	X(batch)     /* first touch: a message at a time */

#define GU_WITHOUT_EACH(X) GU_WITHOUT_OF_HEAP(X) GU_WITHOUT_OF_PROCESS(X)

enum gu_without_index {
#define GU_WITHOUT_INDEX(name) GU_INDEX_##name,
	GU_WITHOUT_EACH(GU_WITHOUT_INDEX)
	GU_WITHOUT_COUNT
};

enum gu_without {
#define GU_WITHOUT_BIT(name) GU_WITHOUT_##name = 1 << GU_INDEX_##name,
	GU_WITHOUT_EACH(GU_WITHOUT_BIT)
#define GU_WITHOUT_OR(name) | GU_WITHOUT_##name
	GU_WITHOUT_HEAP = 0 GU_WITHOUT_OF_HEAP(GU_WITHOUT_OR),
	GU_WITHOUT_ALL = (1 << GU_WITHOUT_COUNT) - 1
};

/* The process's. Written by the first gu_without_init(). */
extern unsigned gu_without_process __attribute__((visibility("hidden")));

/* Reads GCUFFD_WITHOUT, once, but not in a program with more privilege than its caller. Any thread. */
void gu_without_init(void);

static inline bool gu_is_without(enum gu_without what) { return __atomic_load_n(&gu_without_process, __ATOMIC_RELAXED) & what; }

/* "NAME+NAME", or "all": adds their bits. false: a name is unknown, or not one of allowed. */
bool gu_without_parse(const char *text, unsigned allowed, unsigned *bits);
/* Names, with spaces between: those of a heap, or all. */
extern const char gu_without_heap_names[], gu_without_names[];

#endif
