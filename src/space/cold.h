/* SPDX-License-Identifier: MIT */
/*
 * cold.h - which pages of a heap are out, and where their contents are.
 *
 * A page is in place, or out: its contents were moved to the park (an address range like the reservation, page for page) and from there to
 * the store. One bit a page says so to everybody; the rest is in a record for each region that had a page out, made with the first
 * and kept while the heap exists (.inv.cold.record).
 *
 *   LIVE      in place; the program's
 *   PARKED    in the park, whole
 *   EVICTED   in the store, or in the image that the heap was loaded from, under the page's slot; its summary says where it points to
 *   POISONED  what the store gave was not what it had got: a touch raises SIGBUS
 *
 * The evictor (a thread of the heap's, between cycles) takes pages out; the resolver, and who releases a block, bring them back to
 * LIVE. They only change the state: what a LIVE page still has in park and store are leftovers, which the evictor drops between
 * cycles. So markers read slots, summaries and the park without a lock (.inv.cold.leftover).
 *
 * Pages that are out go on counting as resident for the limit: they may come back at any moment.
 */
#ifndef GU_SPACE_COLD_H
#define GU_SPACE_COLD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/atomic.h"
#include "base/check.h"
#include "base/lock.h"
#include "base/slab.h"
#include "space/store.h"

#define GU_REGION_PAGES (GU_REGION / GU_PAGE)

/* Why a LIVE page has leftovers: a touch, an order or a guess that brought it back untouched, or the end of its block. */
enum gu_cold_left { GU_COLD_NOTHING_LEFT, GU_COLD_TOUCHED, GU_COLD_WARMED, GU_COLD_DROPPED };

/* Times of pages, in steps of 67 ms; 0: never. */
#define GU_COLD_SEEN_SHIFT 26
static inline uint32_t gu_cold_seen(uint64_t ns) { return (uint32_t)(ns >> GU_COLD_SEEN_SHIFT) + 1; }

enum gu_cold_state { GU_COLD_LIVE, GU_COLD_PARKED, GU_COLD_EVICTED, GU_COLD_POISONED };

/* What the kernel tells of a region: what was written, as where there is no record; what was accessed; nothing, for it could not be registered anew. */
enum gu_cold_tells { GU_COLD_TELLS_WRITES, GU_COLD_TELLS_ACCESSES, GU_COLD_TELLS_NOTHING };

struct gu_image;
struct gu_space;
struct gu_summary;

/* In place of a summary that would be large: whoever marks reads the page in the store (.inv.summary.peek). */
#define GU_COLD_PEEK ((struct gu_summary *)1)

/* In place of a summary that is in the store, with others of the region: of pages that were taken out together (.inv.summary.filed). */
#define GU_COLD_FILED ((uintptr_t)2)
struct gu_cold_pack {
	gu_slot slot;
	uint32_t left; /* guard: evictor; pages whose summaries are needed */
};

static inline struct gu_cold_pack *gu_cold_pack(const struct gu_summary *s)
{
	return (uintptr_t)s & GU_COLD_FILED ? (struct gu_cold_pack *)((uintptr_t)s - GU_COLD_FILED) : NULL;
}

struct gu_cold_region {
	struct gu_lock lock;       /* rank COLD; held while a page is moved or filled */
	uint16_t filling;          /* atomic, changes under lock; 1 + the index of a page that is LIVE and about to be filled; in one page with state */
	bool missing;              /* guard: evictor; faults of its pages come to the resolver */
	uint64_t parked_ns;        /* guard: evictor; since when its pages are on probation, 0: they are not */
	bool watched;              /* guard: evictor; on probation, they are in place, and the kernel tells of accesses (gc/accessed.h) */
	bool restless;             /* guard: evictor; that did not come to an end: they are parked the next time */
	uint8_t windows;           /* guard: evictor; in which they were watched */
	uint8_t tells;             /* guard: cycle lock; enum gu_cold_tells */
	uint64_t armed_ns;         /* atomic, changes under the cycle lock; since when accesses are noted, 0: they are not */
	uint64_t stood_ns;         /* atomic, likewise; for how long they were before */
	uint64_t lapsed_ns;        /* atomic, likewise; until when */
	uint64_t stood[GU_REGION_PAGES / 64]; /* guard: cycle lock; pages that are watched, and not known to have been accessed */
	uint32_t forks;            /* guard: evictor; how many there had been when its pages were made our own again */
	uint64_t held_ns;          /* guard: evictor; since when a page can't be moved though it is our own, 0: there was none */
	uint32_t leftovers;        /* guard: lock */
	uint8_t state[GU_REGION_PAGES]; /* atomic; changes under lock */
	uint8_t left[GU_REGION_PAGES];  /* guard: lock; enum gu_cold_left */
	uint8_t heat[GU_REGION_PAGES];  /* atomic; the evictor's until the block is released, as seen and touched; so often it is passed over before it is tried again */
	uint8_t reading[GU_REGION_PAGES]; /* guard: lock; how many read the slot, which is not dropped meanwhile, without the lock */
	uint32_t seen[GU_REGION_PAGES]; /* atomic; when it was last found to be touched, or since when it is out (ages.h) */
	uint32_t touched[GU_REGION_PAGES]; /* atomic; when it was last found to be touched, though it went out again since */
	uint64_t bad[GU_REGION_PAGES / 64]; /* atomic; pages that could not be read, and are not reported yet (.inv.cold.bad) */
	/* written by the evictor, before state says EVICTED and after it dropped leftovers */
	gu_slot slot[GU_REGION_PAGES];
	struct gu_summary *summary[GU_REGION_PAGES];
};

/* What has a page brought back. Whether it is the program that touches or the kernel for it is told by nobody. */
enum gu_cold_cause {
	GU_COLD_BY_READ,
	GU_COLD_BY_WRITE,
	GU_COLD_BY_COLLECTOR, /* a touch that should not be */
	GU_COLD_BY_STREAM,    /* in order behind touches */
	GU_COLD_BY_ORDER,     /* in a recorded order */
	GU_COLD_BY_REQUEST,   /* gcuffd_warm() */
	GU_COLD_BY_EXEMPTION, /* it lies in memory that was marked to be kept since */
	GU_COLD_BY_FAILURE,   /* it was taken out on request, and the store did not take it */
	GU_COLD_CAUSES
};

/* Why a page that was to be taken out is left where it is, each time. */
enum gu_cold_stay {
	GU_COLD_STAYS_PINNED, /* gcuffd_pin(), since it was chosen */
	GU_COLD_STAYS_SHARED, /* EBUSY: shared with a child, or pinned by the kernel */
	GU_COLD_STAYS_LOCKED, /* mlock(2) */
	GU_COLD_STAYS_FAILED, /* another error of the kernel's */
	GU_COLD_STAYS_BUSY,   /* so many of these */
	GU_COLD_STAYS_TOUCHED = GU_COLD_STAYS_BUSY, /* it came back since it was chosen */
	GU_COLD_STAYS_EXEMPT, /* the memory is marked to be kept out of dumps or children */
	GU_COLD_STAYS_NO_ROOM, /* in the store: it goes on waiting for it, or is brought back */
	GU_COLD_STAYS_UNSTORED, /* an error of the store's, likewise */
	GU_COLD_STAYS
};

struct gu_cold_counts {
	/* atomic; pages since the heap was made */
	uint64_t evicted, restored, dropped, poisoned;
	uint64_t by[GU_COLD_CAUSES]; /* restored: all of them (.inv.cold.causes) */
	uint64_t from_park, from_store, from_image; /* restored: likewise */
	uint64_t at_once;            /* besides: where nobody can be told of touches, in a child or of an image */
	uint64_t stays[GU_COLD_STAYS];
	uint64_t followed;        /* restored by streams: those after which the touches went on */
	uint64_t bounced;       /* touched before they were in the store */
	uint64_t touched, refaulted; /* of those restored: by a touch; and from the store */
	uint64_t touch_ns;      /* that it took */
	uint64_t peeked;        /* read in the store by the collector */
	uint64_t unread;        /* summaries that could not be read in the file */
	uint64_t windows;       /* regions, each time they were watched */
	uint64_t accessed;      /* found to be accessed in these */
};

#define GU_COLD_KEPT 64

/* Addresses whose owner keeps them out of dumps or children. Further ranges than there is room for make the last one longer. */
struct gu_cold_kept {
	size_t n;
	struct gu_cold_range {
		uintptr_t start, end;
	} ranges[GU_COLD_KEPT];
};

struct gu_cold {
	bool on;                          /* constant */
	uintptr_t park;                   /* constant */
	uintptr_t mapped;                 /* constant; where the park's mapping begins */
	struct gu_cold_region **regions;  /* entries atomic, set once */
	uint64_t *out;                    /* atomic words */
	uint64_t *later;                  /* atomic words; pages that markers have put off (gc/marklater.c) */
	size_t target;                    /* atomic; of the tier, in bytes; SIZE_MAX: there is none */
	size_t nout;                      /* atomic; bits set in out */
	size_t parked;                    /* atomic; pages PARKED */
	size_t standing;                  /* atomic, changes under the cycle lock; bits set in regions' stood */
	uint32_t watching;                /* atomic, changes under the cycle lock; regions that don't tell writes */
	uint32_t lapses;                  /* atomic; times that windows ended before their time */
	bool said_untold;                 /* guard: cycle lock */
	struct gu_slab slab;              /* guard: evictor; summaries */
	struct gu_store *store;           /* guard: collector; constant while the evictor runs */
	struct gu_image *image;           /* constant; what the heap was loaded from */
	uint32_t forks;                   /* guard: who forks, then evictor */
	int fork_error;                   /* atomic; what the kernel refused to who forked, until it is reported */
	int fork_refused;                 /* guard: who forks; the same, of this fork */
	int fork_lacks;                   /* guard: who forks; why the child does not have all of the heap's memory */
	uint32_t failures;                /* atomic; fills that failed: what they were for is out again */
	struct gu_cold_kept kept;         /* guard: evictor; never taken out */
	uint32_t left;                    /* atomic; there are leftovers */
	uint32_t deaths;                  /* atomic; blocks have deaths */
	uint32_t bad;                     /* atomic; regions have bad pages */
	struct gu_cold_counts counts;
};

/* Reserves the tables and the park. -ENOMEM. */
int gu_cold_init(struct gu_space *space);
void gu_cold_destroy(struct gu_space *space);

static inline bool gu_cold_is_out(const struct gu_cold *c, size_t page) { return gu_load_acquire(&c->out[page >> 6]) >> (page & 63) & 1; }

/* Whether one of pages [from, to) is out, or about to be. */
bool gu_cold_any_slow(const struct gu_cold *c, size_t from, size_t to);
static inline bool gu_cold_any(const struct gu_cold *c, size_t from, size_t to)
{
	return gu_unlikely(gu_load_acquire(&c->nout)) && gu_cold_any_slow(c, from, to);
}

/* The same, or LIVE and not there yet: filling it may fail, and then it is out. */
bool gu_cold_any_on_its_way(const struct gu_cold *c, size_t from, size_t to);

static inline struct gu_cold_region *gu_cold_region(const struct gu_cold *c, size_t page)
{
	return gu_load_acquire(&c->regions[page / GU_REGION_PAGES]); /* pairs with gu_cold_make() */
}

static inline enum gu_cold_state gu_cold_state(const struct gu_cold *c, size_t page)
{
	struct gu_cold_region *r = gu_cold_region(c, page);
	return r ? (enum gu_cold_state)gu_load_acquire(&r->state[page % GU_REGION_PAGES]) : GU_COLD_LIVE;
}

/* Whether the page is out, or LIVE and not there yet: who looks only at what is there has to look at it all the same. */
static inline bool gu_cold_is_on_its_way(const struct gu_cold *c, size_t page)
{
	const struct gu_cold_region *r = gu_cold_region(c, page);
	if (!r)
		return false;
	for (uint32_t failures = gu_load_acquire(&c->failures), now;; failures = now) {
		if (gu_cold_is_out(c, page) || gu_load_acquire(&r->filling) == page % GU_REGION_PAGES + 1)
			return true;
		now = gu_load_acquire(&c->failures);
		if (now == failures) /* clear, and then not being filled, and no fill has failed meanwhile: it is there */
			return false;
	}
}

static inline uintptr_t gu_cold_park(const struct gu_cold *c, size_t page) { return c->park + (page << GU_PAGE_SHIFT); }

/* The evictor: the record of a region, whose part of the park is usable then. NULL: out of memory. */
struct gu_cold_region *gu_cold_make(struct gu_space *space, size_t region);

/* The evictor, under the lock of the page's arena: the page is to be moved out. Undone by gu_cold_unclaim(), under the region's lock. */
void gu_cold_claim(struct gu_cold *c, size_t page);
void gu_cold_unclaim_locked(struct gu_cold *c, size_t page);

/* Returns when no page of [from, to) is just being moved: who has pinned them may touch them to have them in place (.inv.cold.pin). */
void gu_cold_settle(const struct gu_cold *c, size_t from, size_t to);

/* The contents of an EVICTED page. As gu_store_get() and gu_image_get(). */
int gu_cold_get(const struct gu_cold *c, gu_slot slot, void *page);
/* A slot is needed no more: what is in an image stays. */
void gu_cold_drop(struct gu_cold *c, gu_slot slot);
/* A summary likewise. The evictor. */
void gu_cold_drop_summary(struct gu_cold *c, struct gu_summary *summary);

/* In a heap that is being loaded: the page is in the image. -ENOMEM. */
int gu_cold_load(struct gu_space *space, size_t page);

/* A page that was in this state, n: 1, or less by 1. */
void gu_cold_count_restored(struct gu_cold *c, enum gu_cold_cause cause, enum gu_cold_state state, gu_slot slot, uint64_t n);

/* Under the region's lock. */
void gu_cold_set_parked_locked(struct gu_cold *c, struct gu_cold_region *r, size_t page);
void gu_cold_set_evicted_locked(struct gu_cold *c, struct gu_cold_region *r, size_t page, gu_slot slot, struct gu_summary *summary);

/*
 * Under the region's lock: the page, which was out, is in place from here on, or nobody's. Said before it is filled: whoever
 * looks too early waits for the fill in a fault, where one who looked too late would take what is out for what is true (.inv.cold.live).
 */
void gu_cold_set_live_locked(struct gu_cold *c, struct gu_cold_region *r, size_t page, enum gu_cold_left why);

/* It could not be read: counted, and to be reported. Each page once, until it is poisoned in another life. */
void gu_cold_set_poisoned_locked(struct gu_cold *c, struct gu_cold_region *r, size_t page);
void gu_cold_note_bad(struct gu_cold *c, struct gu_cold_region *r, size_t page);
/* What is to be reported, which is then done: from page on, whose number it becomes; false: no more. The evictor. */
bool gu_cold_next_bad(struct gu_cold *c, size_t end, size_t *page);

/* It could not be filled. */
void gu_cold_set_back_locked(struct gu_cold *c, struct gu_cold_region *r, size_t page, enum gu_cold_state state);

/* The block that pages [from, to) belonged to is released: nobody wants what is out, and what is known of their use is forgotten. They are fresh. In a section, or the collector. */
void gu_cold_forget_slow(struct gu_space *space, size_t from, size_t to);
static inline void gu_cold_forget(struct gu_space *space, const struct gu_cold *c, size_t from, size_t to)
{
	if (gu_unlikely(c->on))
		gu_cold_forget_slow(space, from, to);
}

/* The same for one page that is out, of a block that lives on. Under its arena's lock, between cycles: what touches the page is dead. */
void gu_cold_forget_page(struct gu_space *space, size_t page);

/*
 * In a forked child: no thread restores, and what one was at may be half done. is_there says of a page whether it is in place after all.
 * Until faults come to somebody again, what is out reads as zeros.
 */
void gu_cold_forked(struct gu_space *space, bool (*is_there)(void *data, size_t page), void *data);

/* Test support: bits, states and counts agree (.inv.cold.bit). With the tier and the cycle lock, where there is an evictor. */
void gu_cold_check(struct gu_space *space);

#endif
