/* SPDX-License-Identifier: MIT */
/*
 * caps.c - the probes. Each runs once, on a descriptor and a few pages of its own, under pthread_once;
 * the result is never written again. A probe touches an armed page first by a system call, on a
 * descriptor with the SIGBUS feature: a kernel that does not resolve the fault by itself then says
 * EFAULT, and nobody sleeps for ever.
 */
#include "sys/caps.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include "base/check.h"
#include "sys/os.h"
#include "sys/scan.h"
#include "sys/uffd.h"

#define MISBEHAVES (-EPROTO) /* the kernel took it, and did something else */
#define TRIES 100            /* a fork in another thread makes MOVE say EBUSY */
#define BIT(cap) (1u << (cap))

struct scratch {
	int uffd, pagemap; /* -1: none */
	volatile char *mem; /* two pages */
};

struct spec {
	const char *name;
	const char *needs;
	unsigned depends;  /* BIT()s of earlier ones */
	uint64_t features; /* the kernel must offer these, and the descriptor has them */
	int (*probe)(struct gu_caps *caps, const struct scratch *s);
};

static uintptr_t page_at(const struct scratch *s, unsigned page) { return (uintptr_t)s->mem + page * GU_PAGE; }

static void scratch_close(struct scratch *s)
{
	if (s->uffd >= 0)
		gu_os->close(s->uffd);
	if (s->pagemap >= 0)
		gu_os->close(s->pagemap);
	if (s->mem)
		gu_os->munmap((void *)(uintptr_t)s->mem, 2 * GU_PAGE);
}

static int scratch_open(struct scratch *s, uint64_t features)
{
	void *mem;
	*s = (struct scratch){-1, -1, NULL};
	int result = gu_os->mmap(NULL, 2 * GU_PAGE, PROT_READ | PROT_WRITE, MAP_NORESERVE, &mem);
	if (result)
		return result;
	s->mem = mem;
	s->pagemap = gu_scan_open();
	if (features) {
		s->uffd = gu_uffd_open(features | GU_UFFD_FEATURE_SIGBUS, NULL);
		result = s->uffd < 0 ? s->uffd : 0;
	}
	return result;
}

/* ---- steps of probes ---- */

struct seen {
	const struct scratch *s;
	unsigned pages; /* bit 0: the first page, bit 1: the second */
};

static void note_run(void *data, uintptr_t start, uintptr_t end)
{
	struct seen *seen = data;
	for (unsigned i = 0; i < 2; i++)
		if (start <= page_at(seen->s, i) && page_at(seen->s, i) < end)
			seen->pages |= 1u << i;
}

static int expect_written(const struct scratch *s, bool rearm, unsigned pages)
{
	struct seen seen = {s, 0};
	int result = gu_scan_written(s->pagemap, page_at(s, 0), page_at(s, 2), rearm, note_run, &seen);
	return result ? result : seen.pages == pages ? 0 : MISBEHAVES;
}

static int expect_accessed(const struct scratch *s, unsigned pages)
{
	struct seen seen = {s, 0};
	int result = gu_scan_accessed(s->pagemap, page_at(s, 0), page_at(s, 2), note_run, &seen);
	return result ? result : seen.pages == pages ? 0 : MISBEHAVES;
}

/* The kernel writes to the first page: what it writes does not matter. */
static int touch_in_kernel(const struct scratch *s)
{
	long n = gu_os->pread(s->pagemap, (void *)(uintptr_t)s->mem, 8, 0);
	return n == 8 ? 0 : n == -EFAULT || n >= 0 ? MISBEHAVES : (int)n;
}

static int register_both(const struct scratch *s, uint64_t mode)
{
	return gu_uffd_register(s->uffd, page_at(s, 0), 2 * GU_PAGE, mode, NULL);
}

/* ---- probes ---- */

static int probe_uffd(struct gu_caps *caps, const struct scratch *s)
{
	struct gu_uffd_info info;
	int fd = gu_uffd_open_info(0, &info);
	(void)s;
	if (fd < 0)
		return fd;
	gu_os->close(fd);
	caps->features = info.features;
	caps->ioctls = info.ioctls;
	caps->user_mode_only = info.user_mode_only;
	return 0;
}

static int probe_kernel_faults(struct gu_caps *caps, const struct scratch *s)
{
	(void)s;
	return caps->user_mode_only ? -EPERM : 0;
}

static int probe_pagemap_scan(struct gu_caps *caps, const struct scratch *s)
{
	struct seen seen = {s, 0};
	(void)caps;
	if (s->pagemap < 0)
		return s->pagemap;
	s->mem[0] = 1;
	int result = gu_scan_present(s->pagemap, page_at(s, 0), page_at(s, 2), true, note_run, &seen);
	return result ? result : seen.pages & 1u ? 0 : MISBEHAVES;
}

static int probe_wp_async(struct gu_caps *caps, const struct scratch *s)
{
	(void)caps;
	int result = register_both(s, GU_UFFD_REGISTER_WP);
	if (result)
		return result;
	s->mem[0] = 1;
	result = gu_scan_arm(s->pagemap, page_at(s, 0), page_at(s, 2));
	if (!result)
		result = expect_written(s, false, 0);
	if (!result)
		result = touch_in_kernel(s);
	if (!result)
		result = expect_written(s, true, 1);
	if (result)
		return result;
	s->mem[GU_PAGE] = 1;
	return expect_written(s, false, 2);
}

/*
 * Before 6.8.10 and 6.9 the short way takes a bit of a swap slot's number for the write-protection of what is in it. The entry of a
 * poisoned page is of the same form; this one is armed, and has that bit clear. Nobody touches it.
 */
static int probe_wp_short(struct gu_caps *caps, const struct scratch *s)
{
	(void)caps;
	int result = register_both(s, GU_UFFD_REGISTER_WP);
	s->mem[GU_PAGE] = 1;
	if (!result)
		result = gu_uffd_poison(s->uffd, page_at(s, 0), GU_PAGE, 0, NULL);
	if (!result)
		result = gu_scan_arm_populated(s->pagemap, page_at(s, 0), page_at(s, 2));
	if (result)
		return result;
	struct seen seen = {s, 0};
	result = gu_scan_written(s->pagemap, page_at(s, 0), page_at(s, 2), false, note_run, &seen);
	return result ? result : seen.pages ? -EOPNOTSUPP : 0;
}

static void count_bytes(void *data, uintptr_t start, uintptr_t end) { *(size_t *)data += end - start; }

/* Nobody touches the memory: it has no page table. */
static int probe_wp_holes(struct gu_caps *caps, const struct scratch *s)
{
	void *mem;
	size_t seen = 0;
	(void)caps;
	int result = gu_os->mmap(NULL, 2 * GU_REGION, PROT_READ | PROT_WRITE, MAP_NORESERVE, &mem);
	if (result)
		return result;
	uintptr_t start = gu_align_up((uintptr_t)mem, GU_REGION);
	result = gu_uffd_register(s->uffd, start, GU_REGION, GU_UFFD_REGISTER_WP, NULL);
	if (!result)
		result = gu_scan_written(s->pagemap, start, start + GU_REGION, false, count_bytes, &seen);
	gu_os->munmap(mem, 2 * GU_REGION);
	return result ? result : seen == GU_REGION ? 0 : -EOPNOTSUPP;
}

/* Unregistered before it is read: a page that did not arrive reads as zero then, and does not block. */
static int probe_move(struct gu_caps *caps, const struct scratch *s)
{
	(void)caps;
	int result = gu_uffd_register(s->uffd, page_at(s, 1), GU_PAGE, GU_UFFD_REGISTER_MISSING, NULL);
	if (result)
		return result;
	result = -EBUSY;
	for (int i = 0; i < TRIES && result == -EBUSY; i++) {
		s->mem[0] = 42;
		result = gu_uffd_move(s->uffd, page_at(s, 1), page_at(s, 0), GU_PAGE, 0, NULL);
	}
	if (!result)
		result = gu_uffd_unregister(s->uffd, page_at(s, 1), GU_PAGE);
	if (result)
		return result;
	return s->mem[GU_PAGE] == 42 && s->mem[0] == 0 ? 0 : MISBEHAVES;
}

static int probe_poison(struct gu_caps *caps, const struct scratch *s)
{
	(void)caps;
	int result = register_both(s, GU_UFFD_REGISTER_MISSING);
	return result ? result : gu_uffd_poison(s->uffd, page_at(s, 0), GU_PAGE, 0, NULL);
}

/* Nobody touches the page while it is armed. */
static int probe_rwp(struct gu_caps *caps, const struct scratch *s)
{
	(void)caps;
	int result = register_both(s, GU_UFFD_REGISTER_RWP);
	if (result)
		return result;
	s->mem[0] = 1;
	result = gu_uffd_rwprotect(s->uffd, page_at(s, 0), GU_PAGE, true);
	if (!result)
		result = expect_accessed(s, 0);
	if (!result)
		result = gu_uffd_rwprotect(s->uffd, page_at(s, 0), GU_PAGE, false);
	return result ? result : expect_accessed(s, 1);
}

static int probe_rwp_async(struct gu_caps *caps, const struct scratch *s)
{
	(void)caps;
	int result = register_both(s, GU_UFFD_REGISTER_RWP);
	if (result)
		return result;
	s->mem[0] = s->mem[GU_PAGE] = 1;
	result = gu_uffd_rwprotect(s->uffd, page_at(s, 0), 2 * GU_PAGE, true);
	if (!result)
		result = expect_accessed(s, 0);
	if (!result)
		result = touch_in_kernel(s);
	if (!result)
		result = expect_accessed(s, 1);
	if (result)
		return result;
	return s->mem[GU_PAGE] == 1 ? expect_accessed(s, 3) : MISBEHAVES;
}

static int probe_set_mode(struct gu_caps *caps, const struct scratch *s)
{
	(void)caps;
	int result = gu_uffd_set_mode(s->uffd, GU_UFFD_FEATURE_RWP_ASYNC, 0);
	return result ? result : gu_uffd_set_mode(s->uffd, 0, GU_UFFD_FEATURE_RWP_ASYNC);
}

/* Where sysfs is not to be read, what madvise says is all there is. */
static bool thp_is_never(void)
{
	char text[64] = "";
	int fd = gu_os->open("/sys/kernel/mm/transparent_hugepage/enabled", O_RDONLY);
	if (fd < 0)
		return false;
	long n = gu_os->read(fd, text, sizeof(text) - 1);
	gu_os->close(fd);
	return n > 0 && strstr(text, "[never]");
}

static int probe_thp(struct gu_caps *caps, const struct scratch *s)
{
	(void)caps;
	int result = gu_os->madvise((void *)(uintptr_t)s->mem, 2 * GU_PAGE, MADV_HUGEPAGE);
	return result ? result : thp_is_never() ? -EOPNOTSUPP : 0;
}

static int probe_process_vm_readv(struct gu_caps *caps, const struct scratch *s)
{
	char got = 0;
	(void)caps;
	s->mem[0] = 42;
	long n = gu_os->process_vm_readv(gu_os->gettid(), &got, (const void *)(uintptr_t)s->mem, 1);
	return n < 0 ? (int)n : n == 1 && got == 42 ? 0 : MISBEHAVES;
}

#define NEED_FULL "CAP_SYS_PTRACE, or access to /dev/userfaultfd, or vm.unprivileged_userfaultfd=1"

static const struct spec specs[GU_CAP_COUNT] = {
	[GU_CAP_UFFD] = {"uffd", "Linux 4.3 with CONFIG_USERFAULTFD, and userfaultfd(2) allowed in the seccomp profile; "
		"before Linux 5.11 also CAP_SYS_PTRACE or vm.unprivileged_userfaultfd=1", 0, 0, probe_uffd},
	[GU_CAP_KERNEL_FAULTS] = {"kernel-faults", NEED_FULL, BIT(GU_CAP_UFFD), 0, probe_kernel_faults},
	[GU_CAP_PAGEMAP_SCAN] = {"pagemap-scan", "Linux 6.7 with CONFIG_PROC_PAGE_MONITOR, /proc mounted, "
		"and a dumpable process", 0, 0, probe_pagemap_scan},
	[GU_CAP_WP_ASYNC] = {"wp-async", "Linux 6.7", BIT(GU_CAP_UFFD) | BIT(GU_CAP_PAGEMAP_SCAN),
		GU_UFFD_FEATURE_WP_ASYNC, probe_wp_async},
	[GU_CAP_WP_SHORT] = {"wp-short", "Linux 6.9, or 6.8.10", BIT(GU_CAP_WP_ASYNC),
		GU_UFFD_FEATURE_WP_ASYNC | GU_UFFD_FEATURE_POISON, probe_wp_short},
	[GU_CAP_WP_HOLES] = {"wp-holes", "Linux 7.3, or an update of 2026 to an older one", BIT(GU_CAP_WP_ASYNC),
		GU_UFFD_FEATURE_WP_ASYNC, probe_wp_holes},
	[GU_CAP_MOVE] = {"move", "Linux 6.8", BIT(GU_CAP_UFFD), GU_UFFD_FEATURE_MOVE, probe_move},
	[GU_CAP_POISON] = {"poison", "Linux 6.6", BIT(GU_CAP_UFFD), GU_UFFD_FEATURE_POISON, probe_poison},
	[GU_CAP_RWP] = {"rwp", "Linux 7.3 on x86-64 or arm64", BIT(GU_CAP_UFFD) | BIT(GU_CAP_PAGEMAP_SCAN),
		GU_UFFD_FEATURE_RWP, probe_rwp},
	[GU_CAP_RWP_ASYNC] = {"rwp-async", "Linux 7.3 on x86-64 or arm64", BIT(GU_CAP_RWP),
		GU_UFFD_FEATURE_RWP | GU_UFFD_FEATURE_RWP_ASYNC, probe_rwp_async},
	[GU_CAP_SET_MODE] = {"set-mode", "Linux 7.3 on x86-64 or arm64", BIT(GU_CAP_RWP),
		GU_UFFD_FEATURE_RWP | GU_UFFD_FEATURE_RWP_ASYNC, probe_set_mode},
	[GU_CAP_THP] = {"thp", "CONFIG_TRANSPARENT_HUGEPAGE, and not \"never\" in "
		"/sys/kernel/mm/transparent_hugepage/enabled", 0, 0, probe_thp},
	[GU_CAP_PROCESS_VM_READV] = {"process-vm-readv", "CONFIG_CROSS_MEMORY_ATTACH, and process_vm_readv(2) allowed in "
		"the seccomp profile", 0, 0, probe_process_vm_readv},
};

/* ---- judging ---- */

static const char *absence(int error)
{
	switch (error) {
	case -ENOSYS: return "the system call is missing or blocked";
	case -EPERM:
	case -EACCES: return "not permitted";
	case -ENOENT: return "the file is not there";
	case -EINVAL:
	case -ENOTTY:
	case -EOPNOTSUPP: return "the kernel does not have it, or has it switched off";
	default: return NULL;
	}
}

static void judge(struct gu_cap_state *state, const struct spec *spec, int result)
{
	const char *absent = absence(result);
	state->has = result == 0;
	if (state->has)
		return;
	state->needs = spec->needs;
	if (absent) {
		snprintf(state->reason, sizeof(state->reason), "%s", absent);
		return;
	}
	state->error = result;
	if (result == MISBEHAVES)
		snprintf(state->reason, sizeof(state->reason), "the kernel accepts it and does something else");
	else
		snprintf(state->reason, sizeof(state->reason), "the probe failed with errno %d", -result);
}

static bool judge_depends(struct gu_caps *caps, struct gu_cap_state *state, unsigned depends)
{
	for (unsigned i = 0; i < GU_CAP_COUNT; i++) {
		if (!(depends & BIT(i)) || caps->list[i].has)
			continue;
		state->needs = caps->list[i].needs;
		snprintf(state->reason, sizeof(state->reason), "there is no %s", caps->list[i].name);
		return false;
	}
	return true;
}

static int run_probe(struct gu_caps *caps, const struct spec *spec)
{
	struct scratch s;
	if (spec->features & ~caps->features)
		return -EOPNOTSUPP;
	int result = scratch_open(&s, spec->features);
	if (!result)
		result = spec->probe(caps, &s);
	scratch_close(&s);
	return result;
}

static void set_flags(struct gu_caps *caps)
{
	const struct gu_cap_state *list = caps->list;
	caps->has_uffd = list[GU_CAP_UFFD].has;
	caps->has_kernel_faults = list[GU_CAP_KERNEL_FAULTS].has;
	caps->has_pagemap_scan = list[GU_CAP_PAGEMAP_SCAN].has;
	caps->has_wp_async = list[GU_CAP_WP_ASYNC].has;
	caps->has_wp_short = list[GU_CAP_WP_SHORT].has;
	caps->has_wp_holes = list[GU_CAP_WP_HOLES].has;
	caps->has_move = list[GU_CAP_MOVE].has;
	caps->has_poison = list[GU_CAP_POISON].has;
	caps->has_rwp = list[GU_CAP_RWP].has;
	caps->has_rwp_async = list[GU_CAP_RWP_ASYNC].has;
	caps->has_set_mode = list[GU_CAP_SET_MODE].has;
	caps->has_thp = list[GU_CAP_THP].has;
	caps->has_process_vm_readv = list[GU_CAP_PROCESS_VM_READV].has;
}

static struct gu_caps caps_found; /* written under once, constant afterwards */
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void probe_all(void)
{
	struct gu_caps *caps = &caps_found;
	memset(caps, 0, sizeof(*caps));
	for (unsigned i = 0; i < GU_CAP_COUNT; i++) {
		struct gu_cap_state *state = &caps->list[i];
		state->name = specs[i].name;
		state->needs = "";
		if (judge_depends(caps, state, specs[i].depends))
			judge(state, &specs[i], run_probe(caps, &specs[i]));
	}
	set_flags(caps);
}

const struct gu_caps *gu_caps(void)
{
	pthread_once(&once, probe_all);
	return &caps_found;
}

void gu_caps_reset(void)
{
	static const pthread_once_t fresh = PTHREAD_ONCE_INIT;
	once = fresh;
}

/* ---- rungs ---- */

#define NEEDS_ASYNC (BIT(GU_CAP_UFFD) | BIT(GU_CAP_PAGEMAP_SCAN) | BIT(GU_CAP_WP_ASYNC))
#define NEEDS_MOVE (NEEDS_ASYNC | BIT(GU_CAP_KERNEL_FAULTS) | BIT(GU_CAP_MOVE))
#define NEEDS_RWP (NEEDS_MOVE | BIT(GU_CAP_RWP) | BIT(GU_CAP_RWP_ASYNC))

static const struct {
	const char *name;
	unsigned needs;
} rungs[] = {{"auto", 0}, {"stop", 0}, {"async", NEEDS_ASYNC}, {"move", NEEDS_MOVE}, {"rwp", NEEDS_RWP}};

const char *gu_caps_rung_name(int rung)
{
	return rung >= 0 && rung < (int)GU_ARRAY_LEN(rungs) ? rungs[rung].name : NULL;
}

enum gu_cap gu_caps_rung_lacks(int rung)
{
	const struct gu_caps *caps = gu_caps();
	unsigned needs = gu_caps_rung_name(rung) ? rungs[rung].needs : 0;
	unsigned cap = 0;
	while (cap < GU_CAP_COUNT && (!(needs & BIT(cap)) || caps->list[cap].has))
		cap++;
	return (enum gu_cap)cap;
}

int gu_caps_rung(int wanted, int *got)
{
	int rung = wanted ? wanted : (int)GU_ARRAY_LEN(rungs) - 1;
	if (!gu_caps_rung_name(wanted))
		return -EINVAL;
	while (!wanted && gu_caps_rung_lacks(rung) != GU_CAP_COUNT)
		rung--;
	if (gu_caps_rung_lacks(rung) != GU_CAP_COUNT)
		return -EOPNOTSUPP;
	*got = rung;
	return 0;
}
