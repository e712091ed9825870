/* SPDX-License-Identifier: MIT */
/*
 * hooks.c - jemalloc's extents out of the reservation.
 *
 * Extents are taken in whole regions and never unmapped: what jemalloc gives up is purged and stays
 * its own (dalloc refuses, so it is retained). Split and merge never fail: the reservation is one
 * mapping to us. Lazy purging is refused: MADV_FREE makes holes that nobody announces
 * (.inv.purge.now). jemalloc's own mmap, munmap, madvise and pthread_key_create calls come here by name (tools/jemalloc),
 * which is how its metadata is known to own.h, and unmapped with its arena.
 */
#include "space/hooks.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include <jemalloc/jemalloc.h>

#include "base/meta.h"
#include "base/own.h"
#include "sys/os.h"

void *gu_je_mmap(void *hint, size_t len, int prot, int flags, int fd, long offset);
int gu_je_munmap(void *start, size_t len);
int gu_je_madvise(void *start, size_t len, int advice);
int gu_je_pthread_key_create(pthread_key_t *key, void (*clean)(void *data));

/* This thread ends an arena: the metadata that jemalloc would purge and keep is unmapped. */
static __thread bool ending __attribute__((tls_model("initial-exec")));

struct gu_half {
	extent_hooks_t hooks;
	struct gu_space *space;
	struct gu_half *next; /* guard: the space's lock; spare ones */
	unsigned index;
};

/* jemalloc's own mappings. MAP_FIXED over its own memory is how it decommits; never used here. */
void *gu_je_mmap(void *hint, size_t len, int prot, int flags, int fd, long offset)
{
	void *p = mmap(hint, len, prot, flags, fd, offset);
	if (p == MAP_FAILED)
		return p;
	if (!gu_own_add((uintptr_t)p, len)) {
		munmap(p, len);
		errno = ENOMEM;
		return MAP_FAILED;
	}
	(void)madvise(p, len, MADV_NOHUGEPAGE); /* like base/meta.c's */
	return p;
}

int gu_je_munmap(void *start, size_t len)
{
	gu_own_remove((uintptr_t)start, len);
	return munmap(start, len);
}

/* Base blocks of an arena that ends are given to madvise, since mappings are retained; nothing refers to them after. */
int gu_je_madvise(void *start, size_t len, int advice)
{
	return ending && advice == MADV_DONTNEED ? gu_je_munmap(start, len) : madvise(start, len, advice);
}

static void (*enter_section)(void), (*leave_section)(void); /* constant once jemalloc runs */
static void (*clean_thread)(void *data);                    /* jemalloc's; it makes one key */

static void clean_in_section(void *data)
{
	if (!enter_section) { /* no heap was made yet: a forked child's first thread ends */
		clean_thread(data);
		return;
	}
	enter_section();
	clean_thread(data);
	leave_section();
}

int gu_je_pthread_key_create(pthread_key_t *key, void (*clean)(void *data))
{
	clean_thread = clean;
	return pthread_key_create(key, clean ? clean_in_section : NULL);
}

static struct gu_half *half_of(extent_hooks_t *hooks) { return GU_CONTAINER(hooks, struct gu_half, hooks); }

static void *hook_alloc(extent_hooks_t *hooks, void *hint, size_t size, size_t align, bool *zero, bool *commit, unsigned index)
{
	uintptr_t at;
	(void)index;
	if (hint || gu_space_take(half_of(hooks)->space, size, align, &at))
		return NULL;
	*zero = true;
	*commit = true;
	return (void *)at;
}

static bool hook_dalloc(extent_hooks_t *hooks, void *start, size_t size, bool committed, unsigned index)
{
	(void)hooks, (void)start, (void)size, (void)committed, (void)index;
	return true;
}

static bool hook_purge_lazy(extent_hooks_t *hooks, void *start, size_t size, size_t offset, size_t len, unsigned index)
{
	(void)hooks, (void)start, (void)size, (void)offset, (void)len, (void)index;
	return true;
}

static bool hook_purge_forced(extent_hooks_t *hooks, void *start, size_t size, size_t offset, size_t len, unsigned index)
{
	(void)size, (void)index;
	return gu_space_purge(half_of(hooks)->space, (uintptr_t)start + offset, len) != 0;
}

static bool hook_split(extent_hooks_t *hooks, void *start, size_t size, size_t a, size_t b, bool committed, unsigned index)
{
	(void)hooks, (void)start, (void)size, (void)a, (void)b, (void)committed, (void)index;
	return false;
}

static bool hook_merge(extent_hooks_t *hooks, void *a, size_t size_a, void *b, size_t size_b, bool committed, unsigned index)
{
	(void)hooks, (void)a, (void)size_a, (void)b, (void)size_b, (void)committed, (void)index;
	return false;
}

/* arena.<index>.<name> with no value, one in, or one out. */
static int control(const char *prefix, unsigned index, const char *name, void *out, size_t *out_len, void *in, size_t in_len)
{
	char path[64];
	snprintf(path, sizeof(path), "%s.%u.%s", prefix, index, name);
	return gu_je_mallctl(path, out, out_len, in, in_len);
}

/*
 * An arena's own metadata: jemalloc's default hooks would keep it mapped when the arena goes, since they retain.
 */
static void *meta_alloc(extent_hooks_t *hooks, void *hint, size_t size, size_t align, bool *zero, bool *commit, unsigned index)
{
	void *p;
	(void)hooks, (void)index;
	if (hint || gu_os->mmap(NULL, size + align, PROT_READ | PROT_WRITE, MAP_NORESERVE, &p))
		return NULL;
	uintptr_t raw = (uintptr_t)p, start = gu_align_up(raw, align);
	if (start > raw)
		gu_os->munmap(p, start - raw);
	gu_os->munmap((void *)(start + size), raw + align - start);
	if (!gu_own_add(start, size)) {
		gu_os->munmap((void *)start, size);
		return NULL;
	}
	(void)gu_os->madvise((void *)start, size, MADV_NOHUGEPAGE);
	*zero = *commit = true;
	return (void *)start;
}

static bool meta_dalloc(extent_hooks_t *hooks, void *start, size_t size, bool committed, unsigned index)
{
	(void)hooks, (void)committed, (void)index;
	gu_own_remove((uintptr_t)start, size);
	return gu_os->munmap(start, size) != 0;
}

static extent_hooks_t meta_hooks = {.alloc = meta_alloc, .dalloc = meta_dalloc};

/* Made with the hooks for its metadata, which keeps them; extents get theirs afterwards. */
static void set_decay(struct gu_half *half, ssize_t decay_ms)
{
	ssize_t muzzy = 0;
	control("arena", half->index, "dirty_decay_ms", NULL, NULL, &decay_ms, sizeof(decay_ms));
	control("arena", half->index, "muzzy_decay_ms", NULL, NULL, &muzzy, sizeof(muzzy));
}

static int create_arena(struct gu_half *half, unsigned decay_ms)
{
	struct { extent_hooks_t *hooks; bool metadata_use_hooks; } config = {&meta_hooks, true};
	extent_hooks_t *extents = &half->hooks;
	size_t len = sizeof(half->index);
	if (gu_je_mallctl("experimental.arenas_create_ext", &half->index, &len, &config, sizeof(config)))
		return -ENOMEM;
	if (control("arena", half->index, "extent_hooks", NULL, NULL, &extents, sizeof(extents))) {
		control("arena", half->index, "destroy", NULL, NULL, NULL, 0);
		return -ENOMEM;
	}
	set_decay(half, decay_ms);
	return 0;
}

static struct gu_half *take_spare(struct gu_space *space)
{
	gu_lock(&space->lock);
	struct gu_half *half = space->spare;
	if (half)
		space->spare = half->next;
	gu_unlock(&space->lock);
	return half;
}

struct gu_half *gu_half_create(struct gu_space *space, unsigned decay_ms)
{
	struct gu_half *half = take_spare(space);
	if (half)
		return half;
	half = gu_meta_alloc(sizeof(*half));
	if (!half)
		return NULL;
	half->hooks = (extent_hooks_t){
		.alloc = hook_alloc, .dalloc = hook_dalloc, .purge_lazy = hook_purge_lazy,
		.purge_forced = hook_purge_forced, .split = hook_split, .merge = hook_merge,
	};
	half->space = space;
	if (create_arena(half, decay_ms)) {
		gu_meta_free(half, sizeof(*half));
		return NULL;
	}
	return half;
}

void gu_half_retire(struct gu_half *half)
{
	gu_lock(&half->space->lock);
	half->next = half->space->spare;
	half->space->spare = half;
	gu_unlock(&half->space->lock);
}

static void end_half(struct gu_half *half)
{
	ending = true;
	control("arena", half->index, "destroy", NULL, NULL, NULL, 0);
	ending = false;
	gu_meta_free(half, sizeof(*half));
}

void gu_half_end_all(struct gu_space *space)
{
	for (struct gu_half *half; (half = take_spare(space));)
		end_half(half);
}

void *gu_half_alloc(struct gu_half *half, size_t size, size_t align, size_t *usable)
{
	int flags = MALLOCX_ARENA(half->index) | MALLOCX_TCACHE_NONE;
	if (align > GU_PAGE)
		flags |= MALLOCX_ALIGN(align);
	*usable = gu_je_nallocx(size, flags);
	return *usable ? gu_je_mallocx(size, flags) : NULL;
}

void gu_half_free(struct gu_half *half, void *pages)
{
	(void)half;
	gu_je_dallocx(pages, MALLOCX_TCACHE_NONE);
}

void gu_half_decay(struct gu_half *half) { control("arena", half->index, "decay", NULL, NULL, NULL, 0); }
void gu_half_purge(struct gu_half *half) { control("arena", half->index, "purge", NULL, NULL, NULL, 0); }

static size_t read_size(struct gu_half *half, const char *name)
{
	size_t value = 0, len = sizeof(value);
	control("stats.arenas", half->index, name, &value, &len, NULL, 0);
	return value;
}

void gu_half_sizes(struct gu_half *half, struct gu_half_sizes *sizes)
{
	uint64_t epoch = 1;
	gu_je_mallctl("epoch", NULL, NULL, &epoch, sizeof(epoch));
	sizes->active = read_size(half, "pactive") * GU_PAGE;
	sizes->dirty = read_size(half, "pdirty") * GU_PAGE;
	sizes->retained = read_size(half, "retained");
	sizes->metadata = read_size(half, "base") + read_size(half, "internal");
}

static __thread bool is_closed __attribute__((tls_model("initial-exec")));

void gu_jemalloc_close(bool closed) { is_closed = closed; }
bool gu_jemalloc_is_closed(void) { return is_closed; }

void gu_jemalloc_init(void (*enter)(void), void (*leave)(void))
{
	enter_section = enter;
	leave_section = leave;
	unsigned n;
	size_t len = sizeof(n);
	gu_je_mallctl("arenas.narenas", &n, &len, NULL, 0);
}
