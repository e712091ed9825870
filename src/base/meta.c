/* SPDX-License-Identifier: MIT */
/*
 * meta.c - the metadata allocator. Pieces are cut from 1 MiB chunks that are never given back; a
 * freed piece is zeroed and linked through its first word (metadata is never armed, so links may
 * live inside).
 */
#include "base/meta.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "base/atomic.h"
#include "base/check.h"
#include "base/lock.h"
#include "base/own.h"

#define CHUNK ((size_t)1 << 20)
#define CLASS_MIN 4
#define CLASS_MAX 16

static void *map_pages(size_t len, int prot)
{
	void *p = mmap(NULL, len, prot, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	return p == MAP_FAILED ? NULL : p;
}

static int unmap_pages(void *start, size_t len) { return munmap(start, len); }
static int protect_pages(void *start, size_t len, int prot) { return mprotect(start, len, prot); }

static const struct gu_meta_source default_source = {map_pages, unmap_pages, protect_pages};
static const struct gu_meta_source *source = &default_source; /* set in tests, before use */

static struct gu_lock lock = GU_LOCK_INIT(GU_RANK_META);
static void *free_lists[CLASS_MAX + 1]; /* guard: lock */
static char *chunk_at, *chunk_end;      /* guard: lock */
static size_t used;                     /* atomic */

void gu_meta_set_source(const struct gu_meta_source *s) { source = s ? s : &default_source; }
void gu_meta_lock(void) { gu_lock(&lock); }
void gu_meta_unlock(void) { gu_unlock(&lock); }
void gu_meta_lock_reset(void) { gu_lock_init(&lock, GU_RANK_META); }
size_t gu_meta_used(void) { return gu_load_relaxed(&used); }

/* Small pages, also where huge ones are the system's default: metadata is sparse, and counted. Wherever mappings come from; that it can't be had is no failure. */
static void want_small_pages(void *p, size_t len)
{
	int saved = errno;
	(void)madvise(p, len, MADV_NOHUGEPAGE);
	errno = saved;
}

static void *map_own(size_t len, int prot)
{
	void *p = source->map(len, prot);
	if (p && !gu_own_add((uintptr_t)p, len)) {
		source->unmap(p, len);
		return NULL;
	}
	if (p)
		want_small_pages(p, len);
	return p;
}

static unsigned class_of(size_t size)
{
	if (size <= (size_t)1 << CLASS_MIN)
		return CLASS_MIN;
	return 64u - (unsigned)__builtin_clzl(size - 1);
}

static void *cut_locked(unsigned class)
{
	size_t size = (size_t)1 << class;
	size_t align = gu_min(size, GU_PAGE);
	char *p = (char *)gu_align_up((uintptr_t)chunk_at, align);
	if (!chunk_at || p + size > chunk_end) {
		chunk_at = map_own(CHUNK, PROT_READ | PROT_WRITE);
		if (!chunk_at)
			return NULL;
		chunk_end = chunk_at + CHUNK;
		p = chunk_at;
	}
	chunk_at = p + size;
	return p;
}

void *gu_meta_alloc(size_t size)
{
	unsigned class = class_of(size);
	if (class > CLASS_MAX)
		return gu_meta_map(gu_align_up(size, GU_PAGE));
	gu_lock(&lock);
	void **p = free_lists[class];
	if (p) {
		free_lists[class] = *p;
		*p = NULL;
	} else {
		p = cut_locked(class);
	}
	gu_unlock(&lock);
	if (p)
		gu_add_relaxed(&used, (size_t)1 << class);
	return p;
}

void gu_meta_free(void *piece, size_t size)
{
	unsigned class = class_of(size);
	if (!piece)
		return;
	if (class > CLASS_MAX) {
		gu_meta_unmap(piece, gu_align_up(size, GU_PAGE));
		return;
	}
	memset(piece, 0, size);
	gu_lock(&lock);
	*(void **)piece = free_lists[class];
	free_lists[class] = piece;
	gu_unlock(&lock);
	gu_sub_relaxed(&used, (size_t)1 << class);
}

void *gu_meta_map(size_t len)
{
	void *p = map_own(len, PROT_READ | PROT_WRITE);
	if (p)
		gu_add_relaxed(&used, len);
	return p;
}

void *gu_meta_reserve(size_t len) { return map_own(len, PROT_NONE); }

int gu_meta_commit(void *start, size_t len) { return source->protect(start, len, PROT_READ | PROT_WRITE) ? -1 : 0; }

void gu_meta_unreserve(void *start, size_t len)
{
	gu_own_remove((uintptr_t)start, len);
	source->unmap(start, len);
}

void gu_meta_unmap(void *start, size_t len)
{
	if (!start)
		return;
	gu_meta_unreserve(start, len);
	gu_sub_relaxed(&used, len);
}
