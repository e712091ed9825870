/* SPDX-License-Identifier: MIT */
/*
 * storechunk.h - chunks of 64 KiB cut into cells of one size, and the memory that they lie in.
 *
 * A chunk's cells are described beside it, in memory for as long as any is in use: length, checksum and form never go to the
 * file, so what comes from there can't vouch for itself. A chunk is
 *
 *	FREE       a number that may be used
 *	OPEN       in memory; on the list of full chunks, or of its class's with room
 *	SPILLING   in memory, being written; on no list: nothing is put in it
 *	FILED      in the file; in memory, too, while a reader that came before still uses that
 *
 * and pinned by readers: it is not freed, and keeps its memory, until they are done (.inv.store.pinned).
 *
 * All is guarded by the store's lock, but for making memory usable, which only the holder of the spill lock does.
 */
#ifndef GU_SPACE_STORECHUNK_H
#define GU_SPACE_STORECHUNK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/check.h"

#define GU_CHUNK ((size_t)64 << 10)
#define GU_CHUNK_NONE UINT32_MAX
#define GU_FRAME_NONE UINT32_MAX
#define GU_CELL_NONE 0xffffu
#define GU_CHUNK_CLASSES 59

enum gu_chunk_state { GU_CHUNK_FREE, GU_CHUNK_OPEN, GU_CHUNK_SPILLING, GU_CHUNK_FILED };

struct gu_cell {
	uint32_t sum;
	uint16_t len; /* 0: free */
	union {
		uint16_t form;
		uint16_t next; /* free cell, or GU_CELL_NONE */
	};
};

/* live = cells in use; those from fresh on were never used, the other free ones are listed from free on. */
struct gu_chunk {
	struct gu_cell *cells;
	uint32_t next, prev; /* on its list */
	uint32_t frame;      /* GU_FRAME_NONE: not in memory */
	uint32_t extent;     /* where state is FILED */
	uint32_t pins;
	uint16_t live, fresh, free;
	uint8_t file;        /* index of the file that extent is of */
	uint8_t class;
	uint8_t state;
};

struct gu_chunk_list {
	uint32_t first, last;
};

struct gu_segment; /* 64 MiB of addresses for frames */

struct gu_chunks {
	uint32_t limit;      /* frames */
	uint32_t frames;     /* in use */
	uint64_t tables;     /* bytes */
	uint32_t count, high; /* chunks that are not FREE; numbers that ever were */
	uint64_t cell_bytes; /* of cells in use */
	uint32_t nsegments, nblocks;
	struct gu_segment **segments; /* limit / frames per segment of them */
	struct gu_chunk **blocks;
	uint32_t spare;      /* FREE chunks, linked by next */
	struct gu_chunk_list full, room[GU_CHUNK_CLASSES];
};

int gu_chunks_open(struct gu_chunks *chunks, size_t memory_limit, size_t file_limit);
void gu_chunks_close(struct gu_chunks *chunks);

unsigned gu_chunk_class(size_t len);
size_t gu_chunk_cell_size(unsigned class);
static inline unsigned gu_chunk_cells(unsigned class) { return (unsigned)(GU_CHUNK / gu_chunk_cell_size(class)); }

/* An invariant is broken where there is no such chunk, or it is FREE. */
struct gu_chunk *gu_chunk_at(const struct gu_chunks *chunks, uint32_t number);
/* The same, whatever its state; number < high. */
struct gu_chunk *gu_chunk_raw(const struct gu_chunks *chunks, uint32_t number);
char *gu_frame_at(const struct gu_chunks *chunks, uint32_t frame);

/* A free frame, below the limit; -ENOSPC, -EAGAIN: gu_chunks_grow() first. */
int gu_frame_take_locked(struct gu_chunks *chunks, uint32_t *frame);
/* More frames, with the spill lock alone, in *grown, for gu_chunks_grown_locked(). -ENOMEM. */
int gu_chunks_grow(const struct gu_chunks *chunks, struct gu_segment **grown);
void gu_chunks_grown_locked(struct gu_chunks *chunks, struct gu_segment *grown);
/* Gives the memory back to the OS, and with it wipes it, holding nothing; then the frame. */
void gu_frame_wipe(const struct gu_chunks *chunks, uint32_t frame);
void gu_frame_give_locked(struct gu_chunks *chunks, uint32_t frame);

/* A chunk for cells of a class in this frame; -ENOMEM, -ENOSPC. */
int gu_chunk_new_locked(struct gu_chunks *chunks, unsigned class, uint32_t frame);
/* Its frame and extent are the caller's to give back. */
void gu_chunk_free_locked(struct gu_chunks *chunks, uint32_t number);

/* A free cell of a class, or GU_CHUNK_NONE. */
uint32_t gu_cell_take_locked(struct gu_chunks *chunks, unsigned class, unsigned *cell);
/* The cell is wiped if it is in memory that nobody writes out. */
void gu_cell_give_locked(struct gu_chunks *chunks, uint32_t number, unsigned cell);

/* The next chunk to spill, which is SPILLING then: full ones by age, or the best filled of the others; GU_CHUNK_NONE. */
uint32_t gu_chunk_to_spill_locked(struct gu_chunks *chunks, bool full);
/* It could not be written, and is the oldest again. */
void gu_chunk_unspill_locked(struct gu_chunks *chunks, uint32_t number);

size_t gu_chunks_memory(const struct gu_chunks *chunks);
void gu_chunks_check(struct gu_chunks *chunks);

#endif
