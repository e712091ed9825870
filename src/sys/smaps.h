/* SPDX-License-Identifier: MIT */
/*
 * smaps.h - mappings that their owner wants nobody else to keep: MADV_DONTDUMP or MADV_WIPEONFORK, from VmFlags of /proc/thread-self/smaps. The
 * kernel counts each mapping's pages for it: some milliseconds for each GiB in place. Any thread.
 */
#ifndef GU_SYS_SMAPS_H
#define GU_SYS_SMAPS_H

#include <stdint.h>

/* By rising address. 0 or -errno. */
int gu_smaps_private(void (*visit)(void *data, uintptr_t start, uintptr_t end), void *data);

#endif
