/* SPDX-License-Identifier: MIT */
/*
 * scan.c - PAGEMAP_SCAN in chunks. Stateless; any thread, signal handlers too.
 *
 * .assume.scan.partial: when the vector is full, exactly the pages reported have been re-armed, and
 * walk_end is where the next call goes on.
 */
#include "sys/scan.h"

#include <errno.h>
#include <fcntl.h>

#include "base/atomic.h"
#include "base/check.h"
#include "base/without.h"
#include "sys/caps.h"
#include "sys/os.h"
#include "sys/uapi.h"

#define VEC_LEN 256
#define NEAR 64u /* pages */

int gu_scan_open(void) { return gu_os->open("/proc/thread-self/pagemap", O_RDONLY); }

/* One ioctl from *at, at most one chunk; moves *at on. The number of regions, or -errno. */
static long scan_chunk(int fd, struct gu_pm_scan_arg *arg, uintptr_t *at, uintptr_t end)
{
	arg->start = *at;
	arg->end = end - *at > GU_SCAN_CHUNK ? *at + GU_SCAN_CHUNK : end;
	arg->walk_end = 0;
	long count = gu_os->ioctl(fd, GU_PAGEMAP_SCAN, arg);
	if (count < 0)
		return count;
	if (arg->walk_end <= *at || arg->walk_end > arg->end || (uint64_t)count > arg->vec_len)
		return -EIO; /* no kernel does this: rather an error than an endless loop */
	*at = arg->walk_end;
	return count;
}

static int scan_range(int fd, struct gu_pm_scan_arg arg, uintptr_t start, uintptr_t end,
		      void (*visit)(void *data, uintptr_t start, uintptr_t end), void *data)
{
	struct gu_page_region vec[VEC_LEN];
	arg.size = sizeof(arg);
	arg.vec = (uintptr_t)vec;
	arg.vec_len = VEC_LEN;
	for (uintptr_t at = start; at < end;) {
		long count = scan_chunk(fd, &arg, &at, end);
		if (count < 0)
			return (int)count;
		if (arg.flags & GU_PM_SCAN_WP_MATCHING)
			gu_fence_seqcst(); /* .inv.card.fence */
		for (long i = 0; i < count; i++)
			visit(data, vec[i].start, vec[i].end);
	}
	return 0;
}

int gu_scan_arm(int fd, uintptr_t start, uintptr_t end)
{
	struct gu_pm_scan_arg arg = {
		.size = sizeof(arg),
		.flags = GU_PM_SCAN_WP_MATCHING | GU_PM_SCAN_CHECK_WPASYNC,
		.category_mask = GU_PAGE_IS_WRITTEN,
	};
	for (uintptr_t at = start; at < end;) {
		long count = scan_chunk(fd, &arg, &at, end);
		if (count < 0)
			return (int)count;
	}
	return 0;
}

int gu_scan_registered(int fd, uintptr_t start, uintptr_t end)
{
	struct gu_pm_scan_arg arg = {
		.size = sizeof(arg),
		.flags = GU_PM_SCAN_CHECK_WPASYNC,
		.start = start,
		.end = end,
		.category_inverted = GU_PAGE_IS_WPALLOWED,
		.category_mask = GU_PAGE_IS_WPALLOWED,
	};
	long result = gu_os->ioctl(fd, GU_PAGEMAP_SCAN, &arg);
	return result < 0 ? (int)result : 0;
}

int gu_scan_written(int fd, uintptr_t start, uintptr_t end, bool rearm,
		    void (*visit)(void *data, uintptr_t start, uintptr_t end), void *data)
{
	struct gu_pm_scan_arg arg = {
		.flags = rearm ? GU_PM_SCAN_WP_MATCHING | GU_PM_SCAN_CHECK_WPASYNC : 0,
		.category_mask = GU_PAGE_IS_WRITTEN,
		.return_mask = GU_PAGE_IS_WRITTEN,
	};
	return scan_range(fd, arg, start, end, visit, data);
}

int gu_scan_written_populated(int fd, uintptr_t start, uintptr_t end, bool rearm, bool zeros,
			      void (*visit)(void *data, uintptr_t start, uintptr_t end), void *data)
{
	uint64_t none_of = zeros ? 0 : GU_PAGE_IS_PFNZERO;
	struct gu_pm_scan_arg arg = {
		.flags = rearm ? GU_PM_SCAN_WP_MATCHING | GU_PM_SCAN_CHECK_WPASYNC : 0,
		.category_inverted = none_of,
		.category_mask = GU_PAGE_IS_WRITTEN | none_of,
		.category_anyof_mask = GU_PAGE_IS_PRESENT | GU_PAGE_IS_SWAPPED,
		.return_mask = GU_PAGE_IS_WRITTEN,
	};
	return scan_range(fd, arg, start, end, visit, data);
}

/* What the first look found and the second has not been at. */
struct look {
	int fd, err;
	bool zeros;
	uintptr_t start, end;
	void (*visit)(void *data, uintptr_t start, uintptr_t end);
	void *data;
};

static void look_again(struct look *l)
{
	if (l->end > l->start && !l->err)
		l->err = gu_scan_written_populated(l->fd, l->start, l->end, false, l->zeros, l->visit, l->data);
	l->start = l->end = 0;
}

/* A call costs as much as NEAR pages in it. */
static void note_found(void *data, uintptr_t start, uintptr_t end)
{
	struct look *l = data;
	if (start - l->end > NEAR * GU_PAGE) {
		look_again(l);
		l->start = start;
	}
	l->end = end;
}

bool gu_scan_has_short(void) { return gu_caps()->has_wp_short && !gu_is_without(GU_WITHOUT_short); }

/*
 * Where nothing is armed, in the remark above all, most pages are clean. The kernel has a short way for who asks for what is written
 * and nothing else, which takes half the time for a page; it reports holes and zero pages too. Only what it reports is looked at in full.
 */
int gu_scan_written_short(int fd, uintptr_t start, uintptr_t end, bool zeros, void (*visit)(void *data, uintptr_t start, uintptr_t end), void *data)
{
	struct look l = {.fd = fd, .zeros = zeros, .visit = visit, .data = data};
	int err = gu_scan_written(fd, start, end, false, note_found, &l);
	look_again(&l);
	return err ? err : l.err;
}

static void ignore(void *data, uintptr_t start, uintptr_t end) { (void)data, (void)start, (void)end; }

/* With a vector: without one the kernel leaves markers in holes too, which look like swap ever after. */
int gu_scan_arm_populated(int fd, uintptr_t start, uintptr_t end)
{
	return gu_scan_written_populated(fd, start, end, true, false, ignore, NULL);
}

int gu_scan_present(int fd, uintptr_t start, uintptr_t end, bool anon_only,
		    void (*visit)(void *data, uintptr_t start, uintptr_t end), void *data)
{
	uint64_t none_of = GU_PAGE_IS_PFNZERO | (anon_only ? GU_PAGE_IS_FILE : 0);
	struct gu_pm_scan_arg arg = {
		.category_inverted = none_of,
		.category_mask = none_of,
		.category_anyof_mask = GU_PAGE_IS_PRESENT | GU_PAGE_IS_SWAPPED,
		.return_mask = GU_PAGE_IS_PRESENT,
	};
	return scan_range(fd, arg, start, end, visit, data);
}

int gu_scan_accessed(int fd, uintptr_t start, uintptr_t end,
		     void (*visit)(void *data, uintptr_t start, uintptr_t end), void *data)
{
	struct gu_pm_scan_arg arg = {
		.category_mask = GU_PAGE_IS_ACCESSED,
		.return_mask = GU_PAGE_IS_ACCESSED,
	};
	return scan_range(fd, arg, start, end, visit, data);
}

long gu_scan_accessed_some(int fd, uintptr_t *at, uintptr_t end, struct gu_page_region *runs, size_t room)
{
	struct gu_pm_scan_arg arg = {
		.size = sizeof(arg),
		.vec = (uintptr_t)runs,
		.vec_len = room,
		.category_mask = GU_PAGE_IS_ACCESSED,
		.return_mask = GU_PAGE_IS_ACCESSED,
	};
	return scan_chunk(fd, &arg, at, end);
}
