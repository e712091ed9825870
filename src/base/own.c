/* SPDX-License-Identifier: MIT */
/* own.c - a sorted array of disjoint ranges; static, since it must work before anything else does. */
#include "base/own.h"

#include <string.h>

#include "base/check.h"
#include "base/lock.h"

#define OWN_MAX 8192

struct own_range {
	uintptr_t start, end;
};

static struct gu_lock lock = GU_LOCK_INIT(GU_RANK_OWN);
static struct own_range ranges[OWN_MAX]; /* guard: lock; sorted, disjoint */
static size_t count;                     /* guard: lock */

void gu_own_lock(void) { gu_lock(&lock); }
void gu_own_unlock(void) { gu_unlock(&lock); }
void gu_own_lock_reset(void) { gu_lock_init(&lock, GU_RANK_OWN); }

/* The first range whose end lies above at. */
static size_t find_locked(uintptr_t at)
{
	size_t lo = 0, hi = count;
	while (lo < hi) {
		size_t mid = (lo + hi) / 2;
		if (ranges[mid].end <= at)
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo;
}

static bool insert_locked(size_t at, uintptr_t start, uintptr_t end)
{
	if (count == OWN_MAX)
		return false;
	memmove(&ranges[at + 1], &ranges[at], (count - at) * sizeof(ranges[0]));
	ranges[at] = (struct own_range){start, end};
	count++;
	return true;
}

static void delete_locked(size_t at)
{
	count--;
	memmove(&ranges[at], &ranges[at + 1], (count - at) * sizeof(ranges[0]));
}

bool gu_own_add(uintptr_t start, size_t len)
{
	uintptr_t end = start + len;
	bool ok = true;
	gu_lock(&lock);
	size_t i = find_locked(start);
	if (i > 0 && ranges[i - 1].end == start)
		ranges[--i].end = end;
	else if (i < count && ranges[i].start == end)
		ranges[i].start = start;
	else
		ok = insert_locked(i, start, end);
	if (ok && i + 1 < count && ranges[i].end == ranges[i + 1].start) {
		ranges[i].end = ranges[i + 1].end;
		delete_locked(i + 1);
	}
	gu_unlock(&lock);
	return ok;
}

void gu_own_remove(uintptr_t start, size_t len)
{
	uintptr_t end = start + len;
	gu_lock(&lock);
	size_t i = find_locked(start);
	while (i < count && ranges[i].start < end) {
		struct own_range was = ranges[i];
		delete_locked(i);
		if (was.end > end)
			insert_locked(i, end, was.end);
		if (was.start < start)
			insert_locked(i++, was.start, start);
	}
	gu_unlock(&lock);
}

bool gu_own_next(uintptr_t at, uintptr_t *start, uintptr_t *end)
{
	gu_lock(&lock);
	size_t i = find_locked(at);
	bool found = i < count;
	if (found) {
		*start = ranges[i].start;
		*end = ranges[i].end;
	}
	gu_unlock(&lock);
	return found;
}
