/* SPDX-License-Identifier: MIT */
/*
 * storefile.h - extents of 64 KiB in a file: which are in use, writing several at once, reading pieces, holes.
 *
 * A store has a file that it writes, and, in a child of forks, files of its ancestors that it reads. An extent is
 *
 *	free      used = 0
 *	in use    used = 1, stale = 0    a chunk's, or about to be
 *	stale     used = 1, stale = 1    no chunk's any more: to be made a hole, or used again
 *
 * and frozen, from a fork on, while a child may read it: then it is neither made a hole nor used again (.inv.store.frozen). Whether
 * children still have the file is asked by flock(2): each holds a shared lock through the description that was opened for it.
 *
 * A file with a name begins with an extent for who finds it there: what it is. Whoever has it open holds a lock on it that goes with the open file
 * (fcntl(2), F_OFD_SETLK), so one that nobody has locked was left by a process that was killed: the next one takes it over (.inv.store.owner).
 *
 * The bits are guarded by the store's lock; only who holds its spill lock takes extents, makes holes and opens files.
 */
#ifndef GU_SPACE_STOREFILE_H
#define GU_SPACE_STOREFILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#define GU_EXTENT ((size_t)64 << 10)
#define GU_STORE_FILES 8      /* a child's, its parent's, ... */
#define GU_EXTENTS_AT_ONCE 16 /* in one write */

struct gu_store_fd {
	int fd;          /* -1: none */
	int child_fd;    /* opened for the child of the fork under way */
	bool direct;     /* O_DIRECT; atomic */
	uint32_t chunks; /* that are in it; atomic, written under the lock */
};

struct gu_store_file {
	const char *path;        /* NULL: there is never a file */
	uint32_t limit;          /* extents */
	int own;                 /* index in files[] of the one that is written; -1: not opened yet */
	struct gu_store_fd files[GU_STORE_FILES];
	int32_t tid;             /* a thread whose descriptor table has them */
	bool named;              /* the file has a name, and is removed by us */
	char name[256];          /* which is this */
	uint64_t *used, *stale, *frozen; /* a bit an extent */
	uint32_t high;           /* extents from here on were never used */
	uint32_t nused, nstale, nfrozen;
	uint32_t holes_failed;
};

/* -EEXIST: path is a file that is no store's of this user; -EBUSY: one of a process that lives. */
int gu_file_open(struct gu_store_file *file, const char *path, size_t limit);
void gu_file_close(struct gu_store_file *file);
void gu_file_close_files(struct gu_store_file *file);
/* The descriptor of an ancestor's file in which nothing is left, for the caller to close; -1: none. */
int gu_file_leave_empty_locked(struct gu_store_file *file);
/* Whether extents are frozen that no child can read any more: those may be thawed. */
bool gu_file_is_alone(const struct gu_store_file *file);
void gu_file_thaw_locked(struct gu_store_file *file);

/* A run of free or stale extents, n at most: how many. Their bits say that they are in use. */
uint32_t gu_file_take_locked(struct gu_store_file *file, uint32_t n, uint32_t *first);
bool gu_file_is_used(const struct gu_store_file *file, uint32_t extent); /* and not stale */
/* No chunk is in it any more. */
void gu_file_stale_locked(struct gu_store_file *file, uint32_t extent);

/* The next run of extents to be made holes from *first on, marked as in use meanwhile; 0: none. */
uint32_t gu_file_next_hole_locked(struct gu_store_file *file, uint32_t *first);
void gu_file_make_hole(struct gu_store_file *file, uint32_t first, uint32_t n);
void gu_file_hole_made_locked(struct gu_store_file *file, uint32_t first, uint32_t n);

/* Opens the own file if there is none yet. */
int gu_file_ready(struct gu_store_file *file);
/* n extents, a piece of memory for each. All of it is written, or it is an error. */
int gu_file_write(struct gu_store_file *file, uint32_t first, struct iovec *pieces, int n);
/* len bytes, at most a page, at an offset: where they are, in a buffer of GU_FILE_BUFFER bytes. Or whole pages, to the buffer's start, if that is aligned to pages. */
#define GU_FILE_BUFFER (12u << 10)
int gu_file_read(const struct gu_store_fd *from, uint64_t offset, size_t len, void *buffer, const void **bytes);

int gu_file_fork_prepare(struct gu_store_file *file);
void gu_file_fork_parent(struct gu_store_file *file);
void gu_file_fork_child(struct gu_store_file *file);

/* Bits and counts agree. */
void gu_file_check(const struct gu_store_file *file);

#endif
