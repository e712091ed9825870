/* SPDX-License-Identifier: MIT */
/*
 * watchtable.h - what the files of the watch interface share: watchers with their ranges and bitmaps
 * (watchtable.c), the context and what it registers (watchkernel.c), scans (watchscan.c), the reader of events
 * (watchevents.c).
 *
 * All of it is guarded by gu_watch_lock, the ring of events excepted.
 */
#ifndef GU_GC_WATCHTABLE_H
#define GU_GC_WATCHTABLE_H

#include "base/atomic.h"
#include "base/check.h"
#include "base/lock.h"
#include "gc/watch.h"
#include "sys/uapi.h"

/* What a page that is empty, dropped or swapped looks like differs: see gu_watch_scan(). */
enum gu_watch_kind {
	GU_WATCH_ANON,        /* private, anonymous */
	GU_WATCH_PRIVATE,     /* private copies of a file's pages */
	GU_WATCH_SHARED,
	GU_WATCH_HUGE,        /* hugetlb, private */
	GU_WATCH_HUGE_SHARED,
};

/*
 * Pages of one kind and size. pending: to be reported. there: the page held something of its own when it
 * was last scanned, so that it was dropped if it is empty now; conservative where there are markers.
 */
struct gu_watch_range {
	uintptr_t start, end;
	uintptr_t origin;  /* the address of bit 0: start was that once */
	uint64_t *pending; /* bits: one a page; there follows in the same piece of metadata */
	uint64_t *there;
	size_t words;      /* of each */
	uint8_t kind, shift, flags; /* flags: GCUFFD_WATCH_* of begin */
};

struct gu_watch_span {
	uintptr_t start, end;
};

/* .inv.watch.ranges: sorted by address, disjoint; of several watchers they may overlap. */
struct gcuffd_watch {
	struct gcuffd_watch *next;
	struct gu_watch_range *ranges;
	struct gu_watch_span *pins;
	size_t count, room, pin_count, pin_room;
	unsigned flags;
	int error; /* told by the next collect: a part of the state could not be kept */
	bool dead; /* the descriptors were closed by the program */
	struct gcuffd_watch_stats stats;
};

extern struct gu_lock gu_watch_lock __attribute__((visibility("hidden")));
extern struct gcuffd_watch *gu_watchers __attribute__((visibility("hidden"))); /* guard: gu_watch_lock */

/* ---- watchtable.c ---- */

/* The first range that ends above addr, or count. */
size_t gu_watch_find(const struct gcuffd_watch *w, uintptr_t addr);
/* The next piece of w's ranges in [*at, end), which moves on behind it; false if there is none. */
bool gu_watch_next(const struct gcuffd_watch *w, uintptr_t *at, uintptr_t end, struct gu_watch_range *piece);

/* like: kind, shift, flags. written: all of it is pending. */
int gu_watch_insert(struct gcuffd_watch *w, uintptr_t start, uintptr_t end, const struct gu_watch_range *like, bool written);
/* Takes [start, end) out. -ENOMEM where a range must be cut in two: then it stays. */
int gu_watch_cut(struct gcuffd_watch *w, uintptr_t start, uintptr_t end);
void gu_watch_cut_all(struct gcuffd_watch *w);
/* Ranges, state and pins at from go to to. */
void gu_watch_move(uintptr_t from, uintptr_t to, size_t len);

/* Pages were written, for only that watcher or for all: there is set too if they are there. */
void gu_watch_note(struct gcuffd_watch *only, uintptr_t start, uintptr_t end, bool there);
/* The same for what one call of PAGEMAP_SCAN found. */
void gu_watch_note_found(struct gcuffd_watch *only, const struct gu_page_region *found, size_t n, bool there);
/* Pages hold something. */
void gu_watch_seen(struct gcuffd_watch *only, uintptr_t start, uintptr_t end);
/* The same for pages of the range, whoever else watches them. */
void gu_watch_seen_here(struct gu_watch_range *r, uintptr_t start, uintptr_t end);
/* Pages are empty: those that were there count as written. forget: and are not there any more. */
void gu_watch_gap(struct gcuffd_watch *only, uintptr_t start, uintptr_t end, bool forget);
void gu_watch_clear(struct gu_watch_range *r, uintptr_t start, uintptr_t end);
/* The end of the part from start whose pages were all there, which is long unless it is the last; or of the part before one. */
uintptr_t gu_watch_part(const struct gu_watch_range *r, uintptr_t start, uintptr_t end, bool *there);
bool gu_watch_has_pending(const struct gu_watch_range *piece);
/* Somebody else watches a page of the piece of a watcher's range. */
bool gu_watch_has_others(const struct gu_watch_range *piece);
/* The first run of pending pages in [start, end); false if there is none. */
bool gu_watch_run(const struct gu_watch_range *r, uintptr_t start, uintptr_t end, struct gu_watch_span *run);

int gu_watch_add_pin(struct gcuffd_watch *w, uintptr_t start, uintptr_t end);
bool gu_watch_drop_pin(struct gcuffd_watch *w, uintptr_t start, uintptr_t end);
void gu_watch_note_pins(struct gcuffd_watch *w, uintptr_t start, uintptr_t end);

/* .inv.watch.ranges, and that bitmaps hold no bits of pages that are not the range's. */
void gu_watch_check(void);

/* ---- watchkernel.c ---- */

/*
 * Opens the context, or finds it closed (-EBADF: then every watcher is dead) or left behind by a fork. 1: call
 * gu_watch_reader_prepare() and try again.
 */
int gu_watch_ready(struct gcuffd_watch *w);
/* When the last watcher is gone. */
void gu_watch_close(void);
bool gu_watch_is_open(void);
bool gu_watch_has_accesses(void);

/* Maps of [at, end) as ranges of one kind each; shift is not set. The number; *at moves on. -ENOENT: a hole. */
#define GU_WATCH_PIECES 32
int gu_watch_list(uintptr_t *at, uintptr_t end, struct gu_watch_range pieces[GU_WATCH_PIECES]);
/* shift: also finds the page size. -EBUSY for memory of the library's own. Lent memory is left as it is. */
int gu_watch_register(struct gu_watch_range *piece, bool shift);
/* Leaves registered what a watcher has. */
void gu_watch_unregister(const struct gu_watch_range *piece);
/* What is mapped there took the place of what was watched: all of it counts as written. */
int gu_watch_replace(uintptr_t start, uintptr_t end);

/* 1: again, something is under way. */
int gu_watch_add_loan(struct gu_watch_loan *loan);
void gu_watch_drop_loan(struct gu_watch_loan *loan);

/*
 * What lies in the piece is what was watched (.inv.watch.owner): 0; 1 when it was not and the table was changed, or
 * something is under way: look again. -EBUSY: another userfaultfd has it now; -ESTALE: it can't be watched any more.
 */
int gu_watch_verify(struct gu_watch_range *piece);

/* ---- watchscan.c ---- */

struct gu_watch_fds {
	int uffd, pagemap;
	bool short_way;   /* the kernel's short way tells pages in swap right: gu_caps()->has_wp_short */
	bool tells_holes; /* and it tells a registered range as written where it has no page table: gu_caps()->has_wp_holes */
};

extern struct gu_watch_fds gu_watch_fds __attribute__((visibility("hidden"))); /* guard: gu_watch_lock */

typedef void gu_watch_visit_fn(void *data, uintptr_t start, uintptr_t end);

enum gu_watch_how {
	GU_WATCH_LOOK,  /* for only one, nothing is armed */
	GU_WATCH_RESET, /* get+WP, for everybody */
	GU_WATCH_ARM,   /* the same for the first time for a watcher */
};

/*
 * The piece ends where the scan did: behind a chunk, or where it is quick (see is_quick()) behind as many found pages.
 * Adds these to *pages. sink (or NULL): takes what is found quickly, in order of address and before anything that is
 * pending then; only for who has the piece alone, with nothing pending in it.
 */
int gu_watch_scan(struct gcuffd_watch *only, struct gu_watch_range *piece, bool precise, enum gu_watch_how how,
		  struct gu_watch_sink *sink, uint64_t *pages);
/* Visits the pages of mappings that are not registered for writes. */
int gu_watch_find_lost(const struct gu_watch_range *piece, gu_watch_visit_fn *visit, void *data);

/* ---- watchevents.c ---- */

#define GU_WATCH_EVENT_FEATURES (GU_UFFD_FEATURE_EVENT_REMAP | GU_UFFD_FEATURE_EVENT_UNMAP | GU_UFFD_FEATURE_EVENT_REMOVE)

/* Makes a reader if gu_watch_reader_need() said 1; outside of steps. */
void gu_watch_reader_prepare(void);
int gu_watch_reader_need(void);
int gu_watch_reader_start(int uffd);
/* Tells it to end; wakes it, once the context is closed. Those told so are waited for outside of steps. */
void gu_watch_reader_quit(void);
void gu_watch_reader_wake(void);
void *gu_watch_readers_leaving(void);
void gu_watch_readers_join(void *readers);
void gu_watch_reader_forked(void);
/* Applies what has come. true: and everything that happened before the call has. */
bool gu_watch_settle(int uffd);
uint32_t gu_watch_applied(void); /* how many so far */
uint64_t gu_watch_event_count(void);

#endif
