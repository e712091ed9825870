/* SPDX-License-Identifier: MIT */
/*
 * pressure.h - what the kernel says of memory that is short: the limits of the process's memory cgroup and of those around it, and for how long
 * threads have waited for memory (PSI). One thread at a time, the same for open, read and close: descriptors are kept open between reads.
 *
 * PSI's totals are up to date at each read. A trigger would need a window of two seconds without CAP_SYS_RESOURCE, and who waits for one can't wait for
 * anything else: so totals are read at intervals.
 */
#ifndef GU_SYS_PRESSURE_H
#define GU_SYS_PRESSURE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define GU_CGROUP_LEVELS 16 /* from the process's own group on; what lies further out is not looked at */

enum { GU_CGROUP_MAX, GU_CGROUP_USED, GU_CGROUP_STAT, GU_CGROUP_HIGH, GU_CGROUP_FILES }; /* version 1 has no HIGH */

struct gu_cgroup_level {
	int fd[GU_CGROUP_FILES];
};

struct gu_cgroup {
	unsigned version; /* 0: not open */
	unsigned n;
	struct gu_cgroup_level level[GU_CGROUP_LEVELS];
};

struct gu_cgroup_memory {
	bool limited;     /* the rest is of the group that has the least room */
	uint64_t limit;   /* bytes */
	uint64_t used;    /* less file pages that the kernel would drop first: inactive ones, and half of the active */
};

/* -EOPNOTSUPP: the process is in no memory cgroup that can be seen; -errno. */
int gu_cgroup_open(struct gu_cgroup *cgroup);
void gu_cgroup_close(struct gu_cgroup *cgroup);
/* -ENODEV: the group is gone, the process is in another one now: to be opened again. */
int gu_cgroup_read(const struct gu_cgroup *cgroup, struct gu_cgroup_memory *memory);

/* The pressure of the process's own cgroup (version 2), else of the machine: a descriptor. -EOPNOTSUPP: the kernel does not tell. */
int gu_psi_open(void);
/* For how long at least one thread waited for memory, so far. */
int gu_psi_read(int fd, uint64_t *waited_ns);

#endif
