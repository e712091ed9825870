/* SPDX-License-Identifier: MIT */
/*
 * caps.h - what this process can have from this kernel, found by trying each thing on a descriptor and on
 * memory that are thrown away: never by the kernel's version, and nothing in the environment changes
 * it. Probed once, on first use; any thread.
 *
 * ENOSYS, EPERM, EACCES, ENOENT, EINVAL and EOPNOTSUPP mean absent. Another errno means that the probe
 * failed: the capability counts as absent too, and its error says so.
 */
#ifndef GU_SYS_CAPS_H
#define GU_SYS_CAPS_H

#include <stdbool.h>
#include <stdint.h>

enum gu_cap {
	GU_CAP_UFFD,          /* a userfaultfd of any sort */
	GU_CAP_KERNEL_FAULTS, /* one that handles faults of system calls too */
	GU_CAP_PAGEMAP_SCAN,
	GU_CAP_WP_ASYNC,      /* first writes are noted and pages re-armed, through scan.h */
	GU_CAP_WP_SHORT,      /* PAGEMAP_SCAN's short way, for who asks for what is written alone, reads entries of pages that are not present right */
	GU_CAP_WP_HOLES,      /* what is registered for it reads as written where it has no page table, too */
	GU_CAP_MOVE,
	GU_CAP_POISON,
	GU_CAP_RWP,           /* sync read-write protection */
	GU_CAP_RWP_ASYNC,     /* accesses are noted and read through PAGE_IS_ACCESSED */
	GU_CAP_SET_MODE,
	GU_CAP_THP,
	GU_CAP_PROCESS_VM_READV,
	GU_CAP_COUNT
};

struct gu_cap_state {
	const char *name;
	const char *needs; /* what it would take; "" if has */
	bool has;
	int error;         /* -errno of an unexpected failure, else 0 */
	char reason[96];   /* why not; "" if has */
};

struct gu_caps {
	bool has_uffd;
	bool user_mode_only; /* has_uffd, but not for faults of system calls */
	bool has_kernel_faults;
	bool has_pagemap_scan;
	bool has_wp_async;
	bool has_wp_short;
	bool has_wp_holes;
	bool has_move;
	bool has_poison;
	bool has_rwp;
	bool has_rwp_async;
	bool has_set_mode;
	bool has_thp;
	bool has_process_vm_readv;
	uint64_t features; /* GU_UFFD_FEATURE_* that the kernel offers */
	uint64_t ioctls;
	struct gu_cap_state list[GU_CAP_COUNT];
};

/* Probes on the first call. Never NULL, constant afterwards. */
const struct gu_caps *gu_caps(void);

/* For tests, while nothing else runs: the next gu_caps() probes anew. */
void gu_caps_reset(void);

/*
 * wanted: 0 the highest that is to be had; 1 stop, 2 async, 3 move, 4 rwp exactly that one (the numbers
 * of enum gcuffd_rung). -EOPNOTSUPP if it is not to be had, -EINVAL for another number.
 */
int gu_caps_rung(int wanted, int *got);

/* "auto", "stop", "async", "move", "rwp"; NULL for another number. */
const char *gu_caps_rung_name(int rung);

/* The first capability that the rung lacks, GU_CAP_COUNT if it lacks none. */
enum gu_cap gu_caps_rung_lacks(int rung);

#endif
