/* SPDX-License-Identifier: MIT */
/*
 * watchtable.c - watchers' ranges and bitmaps. No system calls but for metadata; every function is called with
 * gu_watch_lock held.
 */
#include "gc/watchtable.h"

#include <errno.h>
#include <string.h>

#include "base/meta.h"

struct gu_lock gu_watch_lock = GU_LOCK_INIT(GU_RANK_ROOTS);
struct gcuffd_watch *gu_watchers;

/* ---- bits ---- */

static size_t bit_of(const struct gu_watch_range *r, uintptr_t addr) { return (addr - r->origin) >> r->shift; }
static size_t bits_bytes(size_t words) { return 2 * words * sizeof(uint64_t); }

/* The bits from, ..., to - 1 that are in word i. */
static uint64_t word_mask(size_t i, size_t from, size_t to)
{
	uint64_t mask = ~0ull;
	if (i == from / 64)
		mask &= ~0ull << (from % 64);
	if (i == (to - 1) / 64)
		mask &= ~0ull >> (63 - (to - 1) % 64);
	return mask;
}

/* Words that are zero are not written: a sparse bitmap stays one. */
static void clear_bits(uint64_t *bits, size_t from, size_t to)
{
	for (size_t i = from / 64; from < to && i <= (to - 1) / 64; i++)
		if (bits[i] & word_mask(i, from, to))
			bits[i] &= ~word_mask(i, from, to);
}

static inline void set_bits(uint64_t *bits, size_t from, size_t to)
{
	if (from >= to)
		return;
	size_t i = from / 64, last = (to - 1) / 64;
	uint64_t first_mask = ~0ull << (from % 64), last_mask = ~0ull >> (63 - (to - 1) % 64);
	if (i == last) {
		bits[i] |= first_mask & last_mask;
		return;
	}
	bits[i++] |= first_mask;
	while (i < last)
		bits[i++] = ~0ull;
	bits[last] |= last_mask;
}

/* The first bit in [from, to) that is set (or, value = ~0, clear); to if there is none. */
static inline size_t find_bit(const uint64_t *bits, size_t from, size_t to, uint64_t value)
{
	if (from >= to)
		return to;
	size_t i = from / 64, last = (to - 1) / 64;
	uint64_t word = (bits[i] ^ value) & ~0ull << (from % 64);
	while (!word && i < last)
		word = bits[++i] ^ value;
	return word ? gu_min(i * 64 + (size_t)__builtin_ctzll(word), to) : to;
}

/* src and dst start at their first bit. */
static void copy_bits(uint64_t *dst, const uint64_t *src, size_t from, size_t to)
{
	for (size_t at = find_bit(src, from, to, 0); at < to;) {
		size_t end = find_bit(src, at, to, ~0ull);
		set_bits(dst, at - from, end - from);
		at = find_bit(src, end, to, 0);
	}
}

static int make_bits(struct gu_watch_range *r)
{
	r->words = (bit_of(r, r->end) + 63) / 64;
	r->pending = gu_meta_alloc(bits_bytes(r->words));
	r->there = r->pending ? r->pending + r->words : NULL;
	return r->pending ? 0 : -ENOMEM;
}

/* ---- ranges ---- */

size_t gu_watch_find(const struct gcuffd_watch *w, uintptr_t addr)
{
	size_t lo = 0, hi = w->count;
	while (lo < hi) {
		size_t mid = (lo + hi) / 2;
		if (w->ranges[mid].end <= addr)
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo;
}

bool gu_watch_next(const struct gcuffd_watch *w, uintptr_t *at, uintptr_t end, struct gu_watch_range *piece)
{
	size_t i = gu_watch_find(w, *at);
	if (*at >= end || i == w->count || w->ranges[i].start >= end)
		return false;
	*piece = w->ranges[i];
	piece->start = gu_max(piece->start, *at);
	piece->end = gu_min(piece->end, end);
	*at = piece->end;
	return true;
}

/* Room for one more of an array in metadata. */
static int make_room(void *array, size_t *room, size_t count, size_t size)
{
	void *old, *new;
	memcpy(&old, array, sizeof(old));
	if (count < *room)
		return 0;
	size_t more = gu_max(2 * *room, 4);
	new = gu_meta_alloc(more * size);
	if (!new)
		return -ENOMEM;
	if (old)
		memcpy(new, old, count * size);
	gu_meta_free(old, *room * size);
	memcpy(array, &new, sizeof(new));
	*room = more;
	return 0;
}

static int open_slot(struct gcuffd_watch *w, size_t i)
{
	int err = make_room(&w->ranges, &w->room, w->count, sizeof(w->ranges[0]));
	if (err)
		return err;
	memmove(&w->ranges[i + 1], &w->ranges[i], (w->count - i) * sizeof(w->ranges[0]));
	w->count++;
	return 0;
}

static struct gu_watch_range take_slot(struct gcuffd_watch *w, size_t i)
{
	struct gu_watch_range r = w->ranges[i];
	w->count--;
	memmove(&w->ranges[i], &w->ranges[i + 1], (w->count - i) * sizeof(w->ranges[0]));
	return r;
}

static void drop_range(struct gcuffd_watch *w, size_t i)
{
	struct gu_watch_range r = take_slot(w, i);
	gu_meta_free(r.pending, bits_bytes(r.words));
}

static int add_range(struct gcuffd_watch *w, size_t i, struct gu_watch_range *r)
{
	int err = make_bits(r);
	if (!err)
		err = open_slot(w, i);
	if (!err)
		w->ranges[i] = *r;
	else
		gu_meta_free(r->pending, bits_bytes(r->words));
	return err;
}

int gu_watch_insert(struct gcuffd_watch *w, uintptr_t start, uintptr_t end, const struct gu_watch_range *like, bool written)
{
	struct gu_watch_range r = *like;
	size_t i = gu_watch_find(w, start);
	gu_assert(i == w->count || w->ranges[i].start >= end);
	r.start = r.origin = start;
	r.end = end;
	int err = add_range(w, i, &r);
	if (!err && written)
		set_bits(r.pending, 0, bit_of(&r, end));
	return err;
}

/* Range i ends at addr, and another begins there. */
static int split(struct gcuffd_watch *w, size_t i, uintptr_t addr)
{
	struct gu_watch_range head = w->ranges[i], tail = head;
	size_t from = bit_of(&head, addr), to = bit_of(&head, head.end);
	tail.start = tail.origin = addr;
	int err = add_range(w, i + 1, &tail);
	if (err)
		return err;
	copy_bits(tail.pending, head.pending, from, to);
	copy_bits(tail.there, head.there, from, to);
	clear_bits(head.pending, from, to);
	clear_bits(head.there, from, to);
	w->ranges[i].end = addr;
	return 0;
}

/* So that no range is partly in [start, end). */
static int split_around(struct gcuffd_watch *w, uintptr_t start, uintptr_t end)
{
	int err = 0;
	size_t i = gu_watch_find(w, start);
	if (i < w->count && w->ranges[i].start < start)
		err = split(w, i, start);
	i = gu_watch_find(w, end - 1);
	if (!err && i < w->count && w->ranges[i].start < end && w->ranges[i].end > end)
		err = split(w, i, end);
	return err;
}

/* Cuts off what lies in [start, end), at one side of the range. */
static void trim(struct gu_watch_range *r, uintptr_t start, uintptr_t end)
{
	uintptr_t from = gu_max(start, r->start), to = gu_min(end, r->end);
	clear_bits(r->pending, bit_of(r, from), bit_of(r, to));
	clear_bits(r->there, bit_of(r, from), bit_of(r, to));
	if (r->start < start)
		r->end = start;
	else
		r->start = end;
}

int gu_watch_cut(struct gcuffd_watch *w, uintptr_t start, uintptr_t end)
{
	for (size_t i; (i = gu_watch_find(w, start)) < w->count && w->ranges[i].start < end;) {
		struct gu_watch_range *r = &w->ranges[i];
		int err = r->start < start && r->end > end ? split(w, i, end) : 0;
		if (err)
			return err;
		r = &w->ranges[i];
		if (r->start >= start && r->end <= end)
			drop_range(w, i);
		else
			trim(r, start, end);
	}
	return 0;
}

void gu_watch_cut_all(struct gcuffd_watch *w)
{
	while (w->count)
		drop_range(w, w->count - 1);
	gu_meta_free(w->ranges, w->room * sizeof(w->ranges[0]));
	gu_meta_free(w->pins, w->pin_room * sizeof(w->pins[0]));
	w->ranges = NULL;
	w->pins = NULL;
	w->room = w->pin_count = w->pin_room = 0;
}

/* ---- moving ---- */

/* What the watcher had at the new place was replaced: so all of the range counts as written there. */
static int move_range(struct gcuffd_watch *w, size_t i, uintptr_t distance)
{
	struct gu_watch_range r = take_slot(w, i);
	r.start += distance;
	r.end += distance;
	r.origin += distance;
	i = gu_watch_find(w, r.start);
	bool replaces = i < w->count && w->ranges[i].start < r.end;
	int err = gu_watch_cut(w, r.start, r.end);
	i = gu_watch_find(w, r.start);
	if (!err)
		err = open_slot(w, i);
	if (err) {
		gu_meta_free(r.pending, bits_bytes(r.words));
		return err;
	}
	w->ranges[i] = r;
	if (replaces)
		set_bits(r.pending, bit_of(&r, r.start), bit_of(&r, r.end));
	w->stats.moved_bytes += r.end - r.start;
	return 0;
}

/* distance wraps where it goes down. The two places do not overlap: mremap(2) refuses that. */
static int move_ranges(struct gcuffd_watch *w, uintptr_t from, uintptr_t distance, size_t len)
{
	int err = split_around(w, from, from + len);
	for (size_t i; !err && (i = gu_watch_find(w, from)) < w->count && w->ranges[i].start < from + len;)
		err = move_range(w, i, distance);
	return err;
}

static int move_pins(struct gcuffd_watch *w, uintptr_t from, uintptr_t distance, size_t len)
{
	int err = 0;
	for (size_t i = 0, n = w->pin_count; i < n && !err; i++) {
		struct gu_watch_span pin = w->pins[i];
		uintptr_t start = gu_max(pin.start, from), end = gu_min(pin.end, from + len);
		if (start < end && start == pin.start && end == pin.end)
			w->pins[i] = (struct gu_watch_span){start + distance, end + distance};
		else if (start < end)
			err = gu_watch_add_pin(w, start + distance, end + distance);
	}
	return err;
}

void gu_watch_move(uintptr_t from, uintptr_t to, size_t len)
{
	for (struct gcuffd_watch *w = gu_watchers; w; w = w->next) {
		int err = move_ranges(w, from, to - from, len);
		if (!err)
			err = move_pins(w, from, to - from, len);
		if (err)
			w->error = err;
	}
}

/* ---- what was found ---- */

typedef void visit_fn(struct gu_watch_range *r, size_t from, size_t to, bool flag);

/* The bits of what of [start, end) is in the range: a huge page counts if a part of it does. */
static size_t first_bit(const struct gu_watch_range *r, uintptr_t start) { return bit_of(r, gu_max(start, r->start)); }
static size_t last_bit(const struct gu_watch_range *r, uintptr_t end) { return bit_of(r, gu_min(end, r->end) - 1) + 1; }

static void each_range(struct gcuffd_watch *only, uintptr_t start, uintptr_t end, visit_fn *visit, bool flag)
{
	for (struct gcuffd_watch *w = only ? only : gu_watchers; w; w = only ? NULL : w->next)
		for (size_t i = gu_watch_find(w, start); i < w->count && w->ranges[i].start < end; i++) {
			struct gu_watch_range *r = &w->ranges[i];
			visit(r, first_bit(r, start), last_bit(r, end), flag);
		}
}

static void note_bits(struct gu_watch_range *r, size_t from, size_t to, bool there)
{
	set_bits(r->pending, from, to);
	if (there)
		set_bits(r->there, from, to);
}

static void seen_bits(struct gu_watch_range *r, size_t from, size_t to, bool unused)
{
	(void)unused;
	set_bits(r->there, from, to);
}

static void gap_bits(struct gu_watch_range *r, size_t from, size_t to, bool forget)
{
	for (size_t at = find_bit(r->there, from, to, 0); at < to;) {
		size_t end = find_bit(r->there, at, to, ~0ull);
		set_bits(r->pending, at, end);
		if (forget)
			clear_bits(r->there, at, end);
		at = find_bit(r->there, end, to, 0);
	}
}

static void note_part(struct gu_watch_range *r, uintptr_t start, uintptr_t end, bool there)
{
	note_bits(r, first_bit(r, start), last_bit(r, end), there);
}

/* .inv.watch.every */
void gu_watch_note(struct gcuffd_watch *only, uintptr_t start, uintptr_t end, bool there)
{
	each_range(only, start, end, note_bits, there);
}

static void note_found(struct gcuffd_watch *w, const struct gu_page_region *found, size_t n, bool there)
{
	size_t i = gu_watch_find(w, found[0].start);
	for (size_t k = 0; k < n; k++) {
		uintptr_t start = found[k].start, end = found[k].end;
		while (i < w->count && w->ranges[i].end <= start)
			i++;
		for (size_t j = i; j < w->count && w->ranges[j].start < end; j++)
			note_part(&w->ranges[j], start, end, there);
	}
}

void gu_watch_note_found(struct gcuffd_watch *only, const struct gu_page_region *found, size_t n, bool there)
{
	for (struct gcuffd_watch *w = only ? only : gu_watchers; w && n; w = only ? NULL : w->next)
		note_found(w, found, n, there);
}

void gu_watch_seen(struct gcuffd_watch *only, uintptr_t start, uintptr_t end)
{
	each_range(only, start, end, seen_bits, false);
}

void gu_watch_seen_here(struct gu_watch_range *r, uintptr_t start, uintptr_t end)
{
	set_bits(r->there, bit_of(r, start), bit_of(r, end));
}

void gu_watch_gap(struct gcuffd_watch *only, uintptr_t start, uintptr_t end, bool forget)
{
	each_range(only, start, end, gap_bits, forget);
}

void gu_watch_clear(struct gu_watch_range *r, uintptr_t start, uintptr_t end)
{
	clear_bits(r->pending, bit_of(r, start), bit_of(r, end));
}

bool gu_watch_run(const struct gu_watch_range *r, uintptr_t start, uintptr_t end, struct gu_watch_span *run)
{
	size_t to = bit_of(r, end), from = find_bit(r->pending, bit_of(r, start), to, 0);
	if (from == to)
		return false;
	run->start = r->origin + (from << r->shift);
	run->end = r->origin + (find_bit(r->pending, from, to, ~0ull) << r->shift);
	return true;
}

#define LONG_PART 512 /* pages */

uintptr_t gu_watch_part(const struct gu_watch_range *r, uintptr_t start, uintptr_t end, bool *there)
{
	size_t at = bit_of(r, start), to = bit_of(r, end), gap = find_bit(r->there, at, to, ~0ull);
	*there = gap - at >= LONG_PART || gap == to;
	if (*there)
		return r->origin + (gap << r->shift);
	do {
		at = find_bit(r->there, gap, to, 0);
		gap = find_bit(r->there, at, to, ~0ull);
	} while (at < to && gap - at < LONG_PART);
	return r->origin + (at << r->shift);
}

bool gu_watch_has_pending(const struct gu_watch_range *p)
{
	size_t to = last_bit(p, p->end);
	return find_bit(p->pending, bit_of(p, p->start), to, 0) < to;
}

bool gu_watch_has_others(const struct gu_watch_range *piece)
{
	for (const struct gcuffd_watch *w = gu_watchers; w; w = w->next)
		for (size_t i = gu_watch_find(w, piece->start); i < w->count && w->ranges[i].start < piece->end; i++)
			if (w->ranges[i].pending != piece->pending)
				return true;
	return false;
}

/* ---- pins ---- */

int gu_watch_add_pin(struct gcuffd_watch *w, uintptr_t start, uintptr_t end)
{
	int err = make_room(&w->pins, &w->pin_room, w->pin_count, sizeof(w->pins[0]));
	if (!err)
		w->pins[w->pin_count++] = (struct gu_watch_span){start, end};
	return err;
}

bool gu_watch_drop_pin(struct gcuffd_watch *w, uintptr_t start, uintptr_t end)
{
	for (size_t i = 0; i < w->pin_count; i++)
		if (w->pins[i].start == start && w->pins[i].end == end) {
			w->pins[i] = w->pins[--w->pin_count];
			return true;
		}
	return false;
}

void gu_watch_note_pins(struct gcuffd_watch *w, uintptr_t start, uintptr_t end)
{
	for (size_t i = 0; i < w->pin_count; i++) {
		uintptr_t from = gu_max(start, w->pins[i].start), to = gu_min(end, w->pins[i].end);
		if (from < to)
			gu_watch_note(w, from, to, false);
	}
}

/* ---- checking ---- */

static void check_range(const struct gcuffd_watch *w, size_t i)
{
	const struct gu_watch_range *r = &w->ranges[i];
	size_t from = bit_of(r, r->start), to = bit_of(r, r->end);
	GU_INVARIANT(r->start < r->end && r->origin <= r->start && to <= r->words * 64, ".inv.watch.ranges");
	GU_INVARIANT(i == 0 || w->ranges[i - 1].end <= r->start, ".inv.watch.ranges");
	GU_INVARIANT(!((r->start | r->end) & (((uintptr_t)1 << r->shift) - 1)), ".inv.watch.ranges");
	GU_INVARIANT(find_bit(r->pending, 0, from, 0) == from && find_bit(r->there, 0, from, 0) == from, ".inv.watch.ranges");
	GU_INVARIANT(find_bit(r->pending, to, r->words * 64, 0) == r->words * 64, ".inv.watch.ranges");
}

void gu_watch_check(void)
{
	for (const struct gcuffd_watch *w = gu_watchers; w; w = w->next)
		for (size_t i = 0; i < w->count; i++)
			check_range(w, i);
}
