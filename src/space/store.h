/* SPDX-License-Identifier: MIT */
/*
 * store.h - where the contents of pages are kept that are not in memory: compressed memory, and a file behind it.
 *
 * A slot stands for the contents of one page, from put until drop. Records are packed by size in chunks; a chunk is in memory,
 * or was spilled to the file whole, and slots in it stay what they are. Pages that are one word over and over take no room.
 *
 * put and drop may be called by any thread, get by several at a time, the fault resolver among them: so nothing here touches
 * memory of a heap but the page that put is given, allocates with malloc, or does I/O on anything but the store's own file.
 * The file is opened by the thread that calls gu_store_open(), in whose descriptor table put, get, tidy and close are called.
 * put never waits for get or drop, and these two for no I/O but get's own: drop is for any table, and for mutators in sections.
 * A slot is not dropped while it is got. Opening and closing may call malloc, by way of the loader, where zstd is asked for.
 */
#ifndef GU_SPACE_STORE_H
#define GU_SPACE_STORE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef uint64_t gu_slot; /* 0: none */

enum gu_codec { GU_CODEC_LZ4, GU_CODEC_ZSTD };

struct gu_store;

struct gu_beats;

/* What was last read of the file, for who gets what was put at about the same time. chunk: UINT32_MAX, to forget it. */
#define GU_STORE_NEAR ((size_t)64 << 10)
struct gu_store_near {
	uint32_t chunk;
	void *bytes; /* GU_STORE_NEAR, aligned to pages */
};

struct gu_store_options {
	size_t memory_limit; /* bytes of chunks in memory, 1 MiB at least; what exceeds it is spilled, if there is a file */
	size_t file_limit;   /* bytes of the file; 0: there is none */
	const char *path;    /* a directory, in which the file has no name, or the file's name, which must not exist; constant */
	enum gu_codec codec;
	int level;           /* of zstd; 0: its default */
};

struct gu_store_counts {
	uint64_t pages;        /* kept now */
	uint64_t same;         /* of these, one word over and over */
	uint64_t memory_bytes; /* of chunks in memory, and of tables */
	uint64_t file_bytes;   /* of the file in use */
	uint64_t record_bytes; /* of records, in memory or not */
	uint64_t spills, reads, writes_failed, reads_failed;
};

/*
 * -EINVAL: options; -EOPNOTSUPP: no such codec here; -ENOMEM; or what opening the file said. A file with a name is removed by gu_store_close();
 * that of a forked child has its number behind the name.
 */
int gu_store_open(const struct gu_store_options *options, struct gu_store **store);
void gu_store_close(struct gu_store *store);
/* The descriptors alone, in whose table they are: the last thread that has it, before gu_store_close() by another. Nothing is read or written any more. */
void gu_store_close_files(struct gu_store *store);

/*
 * Keeps pages[0 .. n), each 4 KiB: how many of them, from the first on, with a slot for each. Fewer than n: *err says why,
 * -ENOSPC (both limits, or a full disk), -ENOMEM, -EIO; nothing is lost then: what could not be written is still in memory.
 * A file that could not be written is tried again a second later, or once something in it was dropped; until then it is -ENOSPC.
 * Puts wait for each other.
 */
size_t gu_store_put(struct gu_store *store, const void *pages, size_t n, gu_slot *slots, int *err);

/* Copies the contents out; the slot stays. -EIO: could not be read; -EBADMSG: not what was written, by its checksum. */
int gu_store_get(struct gu_store *store, gu_slot slot, void *page);

/* The same, reading as much as near holds. From one call to the next with the same near the slots so read are not dropped. */
int gu_store_get_near(struct gu_store *store, gu_slot slot, struct gu_store_near *near, void *page);

/* There is no file: get does no I/O. */
bool gu_store_is_memory(const struct gu_store *store);

/* The slot is gone, its memory wiped, and its room free for others. What it had in the file becomes a hole in a later put, or in tidy. */
void gu_store_drop(struct gu_store *store, gu_slot slot);

/* From time to time: room in the file that is used no more is given back. */
void gu_store_tidy(struct gu_store *store);

/* The file can't be read, or can't be written (a limit of its own is no outage): from the first call that failed to the first that did not. */
struct gu_store_outage {
	uint32_t began; /* how often so far */
	int error;      /* of the latest, when it began */
	bool lasts;
};

/* Calls on the file that are under way. */
struct gu_beats *gu_store_beats(struct gu_store *store);
/* Any thread. */
struct gu_store_outage gu_store_outage(const struct gu_store *store, bool writing);
/* Behind why it can't be opened: a few words, if there are any. */
const char *gu_store_refusal(int err);
/* Constant; NULL: there is no file. */
const char *gu_store_path(const struct gu_store *store);

void gu_store_counts(struct gu_store *store, struct gu_store_counts *counts);

/*
 * Around fork(): prepare on the forking thread, with no other call under way. What is in the file at a fork belongs to both sides, and its
 * room is used again by neither (.inv.store.frozen); what the child spills goes to a file of its own. The child's reads use
 * a descriptor that prepare has opened in the forking thread's table. An error of prepare: the child can't read what is in the file, -EIO;
 * one of parent and child is called all the same. Once no child has the file any more, tidy notices, and its room is used again.
 */
int gu_store_fork_prepare(struct gu_store *store);
void gu_store_fork_parent(struct gu_store *store);
void gu_store_fork_child(struct gu_store *store);

/* The descriptors that are open, at most GU_STORE_FDS: for the threads of a child to keep when they get a table of their own. */
#define GU_STORE_FDS 8
size_t gu_store_files(struct gu_store *store, int *fds);

/* Test support: records, chunks and counts agree (.inv.store.chunks). */
void gu_store_check(struct gu_store *store);

#endif
