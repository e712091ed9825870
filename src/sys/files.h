/* SPDX-License-Identifier: MIT */
/* files.h - descriptors of the library's threads. */
#ifndef GU_SYS_FILES_H
#define GU_SYS_FILES_H

#include <stddef.h>

/*
 * Gives the calling thread a descriptor table of its own, in which only keep[0] ... keep[n - 1] are open, with their numbers
 * (negative ones are passed over): the program may close all it knows, and no pipe of its own is kept open by a
 * thread that it does not know. Threads that it makes share the table. -errno: unshare(2) was refused, nothing changed.
 */
int gu_files_own(const int *keep, size_t n);

#endif
