/* SPDX-License-Identifier: MIT */
/*
 * touch.c - memory whose first touches are noticed: told by a callback while the touching thread waits, or left for a
 * scan to find. All that needs the descriptors is asked of the resolver's threads.
 */
#include <errno.h>
#include <string.h>

#include "api/firsttouch.h"
#include "base/check.h"
#include "base/meta.h"
#include "gcuffd.h"
#include "sys/caps.h"
#include "sys/os.h"
#include "sys/scan.h"
#include "sys/uffd.h"

#define FOUND 64u

struct gcuffd_touch {
	struct gu_first base;
	gcuffd_touch_fn *touch;
	void *data;

	/* guard: who has taken the bell */
	struct gu_page_region found[FOUND];
	size_t room, count; /* of found */
	uintptr_t at;       /* where the scan goes on */
};

/* Of hugetlb whole pages can be opened only, of the size that there is; no other piece of it is taken. */
static int open_page(const struct gu_first *f, uintptr_t page)
{
	int err = gu_uffd_rwprotect(f->resolver.uffd, page, GU_PAGE, false);
	for (size_t size = 2 * GU_PAGE; err == -EINVAL && size <= f->len; size *= 2)
		err = gu_uffd_rwprotect(f->resolver.uffd, gu_align_down(page, size), size, false);
	return err;
}

/* Of several threads that touched one page the later ones find it open, and are only woken. */
static void notice(void *data, const struct gu_fault *fault, char *buffer)
{
	struct gcuffd_touch *t = data;
	(void)buffer;
	t->touch(t->data, (void *)fault->page, fault->write, (int)fault->tid);
	if (open_page(&t->base, fault->page))
		(void)gu_uffd_wake(t->base.resolver.uffd, fault->page, GU_PAGE);
}

static int make_touch(struct gcuffd_touch *t)
{
	int err = gu_first_open(&t->base, GU_UFFD_FEATURE_RWP | GU_UFFD_FEATURE_THREAD_ID);
	t->base.pagemap = gu_scan_open(); /* failed: collecting says so */
	if (!err)
		err = gu_uffd_register(t->base.resolver.uffd, t->base.start, t->base.len, GU_UFFD_REGISTER_RWP, NULL);
	if (!err)
		err = gu_first_begin(&t->base, notice, t);
	return err ? err : gcuffd_touch_arm(t, (void *)t->base.start, t->base.len);
}

static int do_arm(const struct gu_resolver_range *r)
{
	return gu_uffd_rwprotect(r->uffd, r->start, r->len, true);
}

/* Open first: un-registering wakes nobody here. */
static int do_end(const struct gu_resolver_range *r)
{
	(void)gu_uffd_rwprotect(r->uffd, r->start, r->len, false);
	return gu_uffd_unregister(r->uffd, r->start, r->len);
}

/* Told to async: who waits is woken, and what it touches is noted. To told: no touch is under way that would only be noted. */
static int do_note(const struct gu_resolver_range *r) { return gu_uffd_set_mode(r->uffd, GU_UFFD_FEATURE_RWP_ASYNC, 0); }
static int do_tell(const struct gu_resolver_range *r) { return gu_uffd_set_mode(r->uffd, 0, GU_UFFD_FEATURE_RWP_ASYNC); }

static bool has(const struct gcuffd_touch *t, const void *start, size_t len)
{
	size_t offset = (uintptr_t)start - t->base.start;
	return offset <= t->base.len && len && len <= t->base.len - offset && ((uintptr_t)start | len) % GU_PAGE == 0;
}

static bool is_child(const struct gcuffd_touch *t) { return t->base.pid != gu_os->getpid(); }

int gcuffd_touch_arm(struct gcuffd_touch *t, void *start, size_t len)
{
	if (!has(t, start, len))
		return -EINVAL;
	return is_child(t) ? -ESRCH : gu_resolver_ask(&t->base.resolver, do_arm, (uintptr_t)start, len);
}

int gcuffd_touch_switch(struct gcuffd_touch *t, unsigned flags)
{
	if (flags & ~GCUFFD_TOUCH_ASYNC)
		return -EINVAL;
	if (is_child(t))
		return -ESRCH;
	if (!gu_caps()->has_set_mode)
		return flags ? -EOPNOTSUPP : 0;
	return gu_resolver_ask(&t->base.resolver, flags ? do_note : do_tell, 0, 0);
}

/* ---- collecting ---- */

/* What ends within a hugetlb page, where a scan's chunk ended, is extended to all of it. */
static void arm_found(struct gcuffd_touch *t, struct gu_page_region *found)
{
	int uffd = t->base.resolver.uffd;
	uintptr_t end = found->end;
	int err = gu_uffd_rwprotect(uffd, found->start, end - found->start, true);
	for (size_t size = 2 * GU_PAGE; err == -EINVAL && size <= t->base.len; size *= 2) {
		end = gu_align_up(found->end, size);
		err = gu_uffd_rwprotect(uffd, found->start, end - found->start, true);
	}
	if (err)
		return;
	found->end = end;
	t->at = gu_max(t->at, end);
}

/*
 * .inv.touch.found: exactly the pages that were found are armed again. A touch in between belongs to this report; a page
 * that can't be armed is found again.
 */
static int do_collect(const struct gu_resolver_range *r)
{
	struct gcuffd_touch *t = r->data;
	t->at = r->start;
	long n = gu_scan_accessed_some(t->base.pagemap, &t->at, r->start + r->len, t->found, t->room);
	if (n < 0)
		return (int)n;
	t->count = (size_t)n;
	for (size_t i = 0; i < t->count; i++)
		arm_found(t, &t->found[i]);
	return 0;
}

/* A piece of what is left, and into at most room runs. */
static int collect_some(struct gcuffd_touch *t, uintptr_t *at, uintptr_t end, struct gcuffd_run *runs, size_t room, size_t *count)
{
	gu_resolver_take(&t->base.resolver);
	t->room = gu_min(room, FOUND);
	int err = gu_resolver_ask_taken(&t->base.resolver, do_collect, *at, end - *at);
	*count = err ? 0 : t->count;
	for (size_t i = 0; i < *count; i++)
		runs[i] = (struct gcuffd_run){(void *)(uintptr_t)t->found[i].start, (void *)(uintptr_t)t->found[i].end};
	*at = err ? *at : t->at;
	gu_resolver_give(&t->base.resolver);
	return err;
}

int gcuffd_touch_collect(struct gcuffd_touch *t, void *start, size_t len, struct gcuffd_run *runs, size_t max,
			 size_t *count, void **next)
{
	uintptr_t at = (uintptr_t)start, end = at + len;
	int err;
	if (!has(t, start, len) || !max)
		return -EINVAL;
	if (is_child(t))
		return -ESRCH;
	*count = 0;
	err = t->base.pagemap < 0 ? t->base.pagemap : 0;
	for (size_t more; at < end && *count < max && !err; *count += more)
		err = collect_some(t, &at, end, runs + *count, max - *count, &more);
	*next = at < end ? (void *)at : NULL;
	return err;
}

static void free_touch(struct gcuffd_touch *t)
{
	if (t->base.nthreads && t->base.pid == gu_os->getpid())
		(void)gu_resolver_ask(&t->base.resolver, do_end, t->base.start, t->base.len);
	gu_first_finish(&t->base);
	gu_meta_free(t, sizeof(*t));
}

int gcuffd_touch_begin(void *start, size_t len, gcuffd_touch_fn *touch, void *data, const struct gcuffd_lazy_options *options,
		       struct gcuffd_touch **out)
{
	struct gcuffd_lazy_options o;
	int err = gu_first_options(&o, options);
	if (err || !touch || !start || !len || ((uintptr_t)start | len) % GU_PAGE || o.at ||
	    o.flags & (GCUFFD_LAZY_SIGBUS | GCUFFD_LAZY_WATCHABLE))
		return -EINVAL;
	struct gcuffd_touch *t = gu_meta_alloc(sizeof(*t));
	if (!t)
		return -ENOMEM;
	gu_first_set(&t->base, &o);
	t->base.start = (uintptr_t)start;
	t->base.len = len;
	t->touch = touch;
	t->data = data;
	err = make_touch(t);
	if (err)
		free_touch(t);
	else
		*out = t;
	return err;
}

int gcuffd_touch_end(struct gcuffd_touch *t)
{
	free_touch(t);
	return 0;
}
