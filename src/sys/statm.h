/* SPDX-License-Identifier: MIT */
/* statm.h - what the kernel says the process takes. Any thread; async-signal-safe. */
#ifndef GU_SYS_STATM_H
#define GU_SYS_STATM_H

#include <stddef.h>

/* Bytes resident, as the kernel counts them by the way: some 64 pages a processor may be missing. 0: it does not say. */
size_t gu_statm_resident(void);

#endif
