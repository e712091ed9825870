/* SPDX-License-Identifier: MIT */
/*
 * uffd.h - userfaultfd: opening and each of its ioctls. Any thread; no state but the descriptor's.
 * Async-signal-safe. Ranges are page-aligned. Where the kernel stops half-way (EAGAIN) the call goes
 * on from there; -EAGAIN is returned only if it made no progress in many tries.
 */
#ifndef GU_SYS_UFFD_H
#define GU_SYS_UFFD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "sys/uapi.h"

struct gu_uffd_info {
	uint64_t features; /* what the kernel offers (GU_UFFD_FEATURE_*) */
	uint64_t ioctls;
	bool user_mode_only; /* faults inside the kernel are not handled: EFAULT, async modes excepted */
};

/*
 * A new descriptor (O_CLOEXEC | O_NONBLOCK), shaken hands with for exactly these features: through
 * /dev/userfaultfd, else userfaultfd(2), else the same for user-mode faults only. -EINVAL: the kernel lacks
 * a feature; -ENOSYS, -EPERM: no userfaultfd here. user_mode_only and info may be NULL.
 */
int gu_uffd_open(uint64_t features, bool *user_mode_only);
int gu_uffd_open_info(uint64_t features, struct gu_uffd_info *info);

/* mode: GU_UFFD_REGISTER_*. *ioctls (may be NULL): bits of the ioctls that the range can take. */
int gu_uffd_register(int fd, uintptr_t start, size_t len, uint64_t mode, uint64_t *ioctls);

/* Wakes sleepers only where MISSING is registered: wake first. */
int gu_uffd_unregister(int fd, uintptr_t start, size_t len);
int gu_uffd_wake(int fd, uintptr_t start, size_t len);

/* Off also wakes. Never on for live data: arm by gu_scan_arm(), which tells what was written. */
int gu_uffd_writeprotect(int fd, uintptr_t start, size_t len, bool on);

/* 7.3. Pages that are not populated stay untouched. Off also wakes. */
int gu_uffd_rwprotect(int fd, uintptr_t start, size_t len, bool on);

/* 7.3. Only GU_UFFD_FEATURE_RWP_ASYNC can be toggled. */
int gu_uffd_set_mode(int fd, uint64_t enable, uint64_t disable);

/*
 * These fill pages: mode is GU_UFFD_{COPY,ZEROPAGE,MOVE,POISON}_*, *done (may be NULL) is how many bytes
 * were filled, also when an error ended the call. -EEXIST: the next destination page is not empty
 * (for MOVE and ZEROPAGE a write-protect marker counts as not empty); -EBUSY: the next source page is
 * shared or pinned; -ENOENT: destination not registered, or a hole in the source.
 */
int gu_uffd_copy(int fd, uintptr_t dst, const void *src, size_t len, uint64_t mode, size_t *done);
int gu_uffd_zeropage(int fd, uintptr_t start, size_t len, uint64_t mode, size_t *done);
int gu_uffd_move(int fd, uintptr_t dst, uintptr_t src, size_t len, uint64_t mode, size_t *done);
int gu_uffd_poison(int fd, uintptr_t start, size_t len, uint64_t mode, size_t *done);

#endif
