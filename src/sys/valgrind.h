/* SPDX-License-Identifier: MIT */
/* valgrind.h - whether the process runs under valgrind, which knows neither PAGEMAP_SCAN nor asynchronous write-protection. Any thread. */
#ifndef GU_SYS_VALGRIND_H
#define GU_SYS_VALGRIND_H

#include <stdbool.h>

/* By the library that its tools load into the process. Looked for once. */
bool gu_valgrind_is_here(void);

#endif
