/* SPDX-License-Identifier: MIT */
/* lazy.c - memory that is filled on first touch: a mapping, and what fills a window of it. */
#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "api/api.h"
#include "api/firsttouch.h"
#include "base/atomic.h"
#include "base/check.h"
#include "base/meta.h"
#include "gc/watch.h"
#include "gcuffd.h"
#include "sys/os.h"
#include "sys/uffd.h"

struct gcuffd_lazy {
	struct gu_first base;
	gcuffd_fill_fn *fill;
	void *data;
	uint64_t filled, poisoned; /* atomic; pages */
	struct gu_watch_loan loan;
	uint64_t *placed; /* atomic; bits: pages that were filled once. NULL without GCUFFD_LAZY_WATCHABLE */
};

/* ---- filling ---- */

static size_t placed_bytes(const struct gcuffd_lazy *l) { return gu_align_up(l->base.len / GU_PAGE, 64) / 8; }

/* Filling is no writing; but what is filled again was dropped, and maybe written before: .inv.watch.lent */
static uint64_t copy_mode(struct gcuffd_lazy *l, uintptr_t at)
{
	size_t page = (at - l->base.start) / GU_PAGE;
	uint64_t bit = 1ull << page % 64;
	return gu_or_seqcst(&l->placed[page / 64], bit) & bit ? 0 : GU_UFFD_COPY_WP;
}

/* Pages that are there already are left alone. */
static int place(struct gcuffd_lazy *l, uintptr_t start, const char *from, size_t len)
{
	int err = 0;
	for (size_t at = 0; at < len && !err;) {
		size_t done, step = l->placed ? GU_PAGE : len - at;
		uint64_t mode = l->placed ? copy_mode(l, start + at) : 0;
		err = gu_uffd_copy(l->base.resolver.uffd, start + at, from + at, step, mode, &done);
		gu_add_relaxed(&l->filled, done / GU_PAGE);
		at += done;
		if (err == -EEXIST) {
			at += GU_PAGE;
			err = 0;
		}
	}
	return err;
}

/* What is wrong only for now, and with the kernel. */
static bool passes(int err) { return err == -ENOMEM || err == -EAGAIN || err == -EINTR; }

static int poison(struct gcuffd_lazy *l, uintptr_t page)
{
	int uffd = l->base.resolver.uffd, err = gu_uffd_poison(uffd, page, GU_PAGE, 0, NULL);
	if (err == -EEXIST && l->placed && !gu_uffd_writeprotect(uffd, page, GU_PAGE, false)) /* a watcher's marker was there */
		err = gu_uffd_poison(uffd, page, GU_PAGE, 0, NULL);
	if (!err)
		gu_add_relaxed(&l->poisoned, 1);
	return err;
}

/* The window's pages, or else the one that was touched. 0, or what the kernel says; *said is what fill says of that page. */
static int fill_window(struct gcuffd_lazy *l, uintptr_t start, uintptr_t end, uintptr_t page, char *buffer, int *said)
{
	*said = l->fill(l->data, start - l->base.start, end - start, buffer);
	if (!*said && !place(l, start, buffer, end - start))
		return 0;
	if (!*said)
		return place(l, page, buffer + (page - start), GU_PAGE);
	*said = l->fill(l->data, page - l->base.start, GU_PAGE, buffer);
	return *said ? 0 : place(l, page, buffer, GU_PAGE);
}

/* Whoever came late finds the page there, and is only woken. */
static void fill_around(void *data, const struct gu_fault *fault, char *buffer)
{
	struct gcuffd_lazy *l = data;
	uintptr_t start = gu_max(gu_align_down(fault->page, l->base.options.around), l->base.start);
	uintptr_t end = gu_min(gu_align_down(fault->page, l->base.options.around) + l->base.options.around, l->base.start + l->base.len);
	int said, err = fill_window(l, start, end, fault->page, buffer, &said);
	if (said || (err && !passes(err)))
		err = poison(l, fault->page);
	if (passes(err)) {
		gu_resolver_pause(&l->base.resolver, fault->page);
		return;
	}
	gu_resolver_relieved(&l->base.resolver);
	(void)gu_uffd_wake(l->base.resolver.uffd, fault->page, GU_PAGE);
}

static int map_at(struct gcuffd_lazy *l)
{
	void *at = l->base.options.at, *p;
	/* PROT_NONE, and not locked: nobody fills it with zeros before it is registered */
	int err = gu_os->mmap(at, l->base.len, PROT_NONE, MAP_NORESERVE | (at ? MAP_FIXED_NOREPLACE : 0), &p);
	if (!err && at && p != at) { /* a kernel that does not know the flag */
		gu_os->munmap(p, l->base.len);
		err = -EEXIST;
	}
	if (!err) {
		l->base.start = (uintptr_t)p;
		munlock(p, l->base.len);
	}
	return err;
}

/* A cycle of a heap with process roots may have registered what was mapped there before. */
static int register_soon(const struct gu_first *f)
{
	uint64_t mode = GU_UFFD_REGISTER_MISSING | (f->options.flags & GCUFFD_LAZY_WATCHABLE ? GU_UFFD_REGISTER_WP : 0);
	int err = -EBUSY;
	for (int tries = 0; tries < 100 && err == -EBUSY; tries++) {
		err = gu_uffd_register(f->resolver.uffd, f->start, f->len, mode, NULL);
		if (err == -EBUSY)
			gu_os->sched_yield();
	}
	return err;
}

/* Memory can be registered with one userfaultfd: this one's written bits are lent to the watchers. */
static int lend(struct gcuffd_lazy *l)
{
	l->loan = (struct gu_watch_loan){.start = l->base.start, .end = l->base.start + l->base.len, .pid = l->base.pid};
	l->placed = gu_meta_alloc(placed_bytes(l));
	int err = l->placed ? gu_api_init() : -ENOMEM;
	return err ? err : gu_watch_lend(&l->loan);
}

static int make_lazy(struct gcuffd_lazy *l)
{
	bool watchable = l->base.options.flags & GCUFFD_LAZY_WATCHABLE;
	uint64_t features = GU_UFFD_FEATURE_POISON | (l->base.options.flags & GCUFFD_LAZY_SIGBUS ? GU_UFFD_FEATURE_SIGBUS : 0);
	int err = gu_first_open(&l->base, features | (watchable ? GU_UFFD_FEATURE_WP_ASYNC : 0));
	if (!err)
		err = map_at(l);
	if (!err)
		err = gu_os->madvise((void *)l->base.start, l->base.len, MADV_DONTFORK); /* a child would read zeros: .inv.lazy.child */
	if (!err)
		err = register_soon(&l->base);
	if (!err && watchable)
		err = lend(l);
	if (!err)
		err = gu_os->mprotect((void *)l->base.start, l->base.len, PROT_READ | PROT_WRITE);
	return err ? err : gu_first_begin(&l->base, fill_around, l);
}

static void free_lazy(struct gcuffd_lazy *l)
{
	gu_first_finish(&l->base);
	if (l->base.start && l->base.pid == gu_os->getpid())
		gu_os->munmap((void *)l->base.start, l->base.len);
	if (l->placed) {
		gu_watch_take_back(&l->loan);
		gu_meta_free(l->placed, placed_bytes(l));
	}
	gu_meta_free(l, sizeof(*l));
}

int gcuffd_lazy_map(size_t len, gcuffd_fill_fn *fill, void *data, const struct gcuffd_lazy_options *options,
		    struct gcuffd_lazy **out, void **start)
{
	struct gcuffd_lazy_options o;
	int err = gu_first_options(&o, options);
	if (err || !fill || !len || len > SIZE_MAX - GU_PAGE)
		return -EINVAL;
	struct gcuffd_lazy *l = gu_meta_alloc(sizeof(*l));
	if (!l)
		return -ENOMEM;
	gu_first_set(&l->base, &o);
	l->base.len = gu_align_up(len, GU_PAGE);
	l->base.buffer = o.around;
	l->fill = fill;
	l->data = data;
	err = make_lazy(l);
	if (err) {
		free_lazy(l);
		return err;
	}
	*out = l;
	*start = (void *)l->base.start;
	return 0;
}

int gcuffd_lazy_unmap(struct gcuffd_lazy *l)
{
	free_lazy(l);
	return 0;
}

int gcuffd_lazy_resolve(struct gcuffd_lazy *l, void *address)
{
	char buffer[GU_PAGE] __attribute__((aligned(8)));
	if ((uintptr_t)address - l->base.start >= l->base.len)
		return -EFAULT;
	if (!(l->base.options.flags & GCUFFD_LAZY_SIGBUS))
		return -EINVAL;
	gu_add_relaxed(&l->base.resolver.counts.faults, 1);
	uintptr_t page = gu_align_down((uintptr_t)address, GU_PAGE);
	int err = l->fill(l->data, page - l->base.start, GU_PAGE, buffer);
	return err ? err : place(l, page, buffer, GU_PAGE);
}

int gcuffd_lazy_stats(struct gcuffd_lazy *l, struct gcuffd_lazy_stats *out)
{
	const struct gu_resolver_counts *c = &l->base.resolver.counts;
	struct gcuffd_lazy_stats s = {
		.size = out->size,
		.faults = gu_load_relaxed(&c->faults),
		.reads = gu_load_relaxed(&c->reads),
		.sleeps = gu_load_relaxed(&c->sleeps),
		.filled = gu_load_relaxed(&l->filled),
		.poisoned = gu_load_relaxed(&l->poisoned),
		.shortages = gu_load_relaxed(&c->shortages),
	};
	if (out->size < sizeof(out->size))
		return -EINVAL;
	memcpy(out, &s, gu_min(out->size, sizeof(s)));
	return 0;
}
