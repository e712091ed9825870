/* SPDX-License-Identifier: MIT */
/* storechunk.c - see storechunk.h. */
#include "space/storechunk.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "base/meta.h"
#include "sys/os.h"

#define SEGMENT_FRAMES 1024u
#define SEGMENT_WORDS (SEGMENT_FRAMES / 64)
#define GROW_FRAMES 16u /* made usable at a time */
#define BLOCK_CHUNKS 1024u
#define MEMORY_MOST ((size_t)4 << 40)
#define MEMORY_LEAST (16 * GU_CHUNK)

/* ready = frames that were made usable, from the first on; bits of free are of these. */
struct gu_segment {
	char *base;
	uint32_t ready, nfree;
	uint64_t free[SEGMENT_WORDS];
};

/* ---- classes ---- */

/* Cells in a chunk. Sizes are multiples of 8; of a chunk, 2 % is lost to rounding for lengths above 1 KiB, 4 % above 256, 9 % below. */
static const uint16_t class_cells[GU_CHUNK_CLASSES] = {
	1024, 788, 686, 597, 520, 453, 394, 343, 299, 260, 243, 227, 212, 198, 185, 173, 161, 150, 140, 131, 122, 114, 106,
	99, 92, 86, 80, 75, 70, 65, 62, 59, 56, 53, 50, 48, 46, 44, 42, 40, 38, 36, 34, 32, 30, 29, 28, 27, 26, 25, 24, 23,
	22, 21, 20, 19, 18, 17, 16,
};

size_t gu_chunk_cell_size(unsigned class) { return GU_CHUNK / class_cells[class] / 8 * 8; }

unsigned gu_chunk_class(size_t len)
{
	unsigned low = 0, high = GU_CHUNK_CLASSES - 1;
	while (low < high) {
		unsigned middle = (low + high) / 2;
		if (gu_chunk_cell_size(middle) < len)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

/* ---- lists ---- */

struct gu_chunk *gu_chunk_raw(const struct gu_chunks *s, uint32_t number)
{
	return &s->blocks[number / BLOCK_CHUNKS][number % BLOCK_CHUNKS];
}

static void list_init(struct gu_chunk_list *l) { l->first = l->last = GU_CHUNK_NONE; }

static void list_append(struct gu_chunks *s, struct gu_chunk_list *l, uint32_t number)
{
	struct gu_chunk *c = gu_chunk_raw(s, number);
	c->next = GU_CHUNK_NONE;
	c->prev = l->last;
	*(l->last == GU_CHUNK_NONE ? &l->first : &gu_chunk_raw(s, l->last)->next) = number;
	l->last = number;
}

static void list_prepend(struct gu_chunks *s, struct gu_chunk_list *l, uint32_t number)
{
	struct gu_chunk *c = gu_chunk_raw(s, number);
	c->prev = GU_CHUNK_NONE;
	c->next = l->first;
	*(l->first == GU_CHUNK_NONE ? &l->last : &gu_chunk_raw(s, l->first)->prev) = number;
	l->first = number;
}

static void list_remove(struct gu_chunks *s, struct gu_chunk_list *l, uint32_t number)
{
	struct gu_chunk *c = gu_chunk_raw(s, number);
	*(c->prev == GU_CHUNK_NONE ? &l->first : &gu_chunk_raw(s, c->prev)->next) = c->next;
	*(c->next == GU_CHUNK_NONE ? &l->last : &gu_chunk_raw(s, c->next)->prev) = c->prev;
}

static bool is_full(const struct gu_chunk *c) { return c->live == gu_chunk_cells(c->class); }

static struct gu_chunk_list *list_of(struct gu_chunks *s, const struct gu_chunk *c)
{
	return is_full(c) ? &s->full : &s->room[c->class];
}

/* ---- segments ---- */

static struct gu_segment *new_segment(void)
{
	struct gu_segment *g = gu_meta_alloc(sizeof(*g));
	if (!g)
		return NULL;
	g->base = gu_meta_reserve(SEGMENT_FRAMES * GU_CHUNK);
	if (!g->base) {
		gu_meta_free(g, sizeof(*g));
		return NULL;
	}
	(void)gu_os->madvise(g->base, SEGMENT_FRAMES * GU_CHUNK, MADV_NOHUGEPAGE);
	return g;
}

static void free_segment(struct gu_segment *g)
{
	gu_meta_unreserve(g->base, SEGMENT_FRAMES * GU_CHUNK);
	gu_meta_free(g, sizeof(*g));
}

/* ---- opening ---- */

int gu_chunks_open(struct gu_chunks *s, size_t memory_limit, size_t file_limit)
{
	size_t memory = gu_max(gu_min(memory_limit, MEMORY_MOST), MEMORY_LEAST);
	size_t most = memory / GU_CHUNK + gu_min(file_limit / GU_CHUNK, (size_t)1 << 30);
	memset(s, 0, sizeof(*s));
	s->limit = (uint32_t)(memory / GU_CHUNK);
	s->nsegments = (s->limit + SEGMENT_FRAMES - 1) / SEGMENT_FRAMES;
	s->nblocks = (uint32_t)((most + BLOCK_CHUNKS - 1) / BLOCK_CHUNKS);
	s->segments = gu_meta_map(gu_align_up(s->nsegments * sizeof(*s->segments), GU_PAGE));
	s->blocks = gu_meta_map(gu_align_up(s->nblocks * sizeof(*s->blocks), GU_PAGE));
	s->spare = GU_CHUNK_NONE;
	list_init(&s->full);
	for (unsigned i = 0; i < GU_CHUNK_CLASSES; i++)
		list_init(&s->room[i]);
	return s->segments && s->blocks ? 0 : -ENOMEM;
}

static size_t cells_size(unsigned class) { return gu_chunk_cells(class) * sizeof(struct gu_cell); }
static size_t block_size(void) { return gu_align_up(BLOCK_CHUNKS * sizeof(struct gu_chunk), GU_PAGE); }

void gu_chunks_close(struct gu_chunks *s)
{
	for (uint32_t i = 0; i < s->high; i++)
		if (gu_chunk_raw(s, i)->state != GU_CHUNK_FREE)
			gu_meta_free(gu_chunk_raw(s, i)->cells, cells_size(gu_chunk_raw(s, i)->class));
	for (uint32_t i = 0; s->blocks && i < s->nblocks && s->blocks[i]; i++)
		gu_meta_unmap(s->blocks[i], block_size());
	for (uint32_t i = 0; s->segments && i < s->nsegments && s->segments[i]; i++)
		free_segment(s->segments[i]);
	gu_meta_unmap(s->segments, gu_align_up(s->nsegments * sizeof(*s->segments), GU_PAGE));
	gu_meta_unmap(s->blocks, gu_align_up(s->nblocks * sizeof(*s->blocks), GU_PAGE));
}

/* ---- frames ---- */

char *gu_frame_at(const struct gu_chunks *s, uint32_t frame)
{
	return s->segments[frame / SEGMENT_FRAMES]->base + frame % SEGMENT_FRAMES * GU_CHUNK;
}

static uint32_t take_bit(struct gu_segment *g)
{
	for (uint32_t w = 0; w < SEGMENT_WORDS; w++)
		if (g->free[w]) {
			uint32_t bit = (uint32_t)__builtin_ctzll(g->free[w]);
			g->free[w] &= g->free[w] - 1;
			g->nfree--;
			return w * 64 + bit;
		}
	return GU_FRAME_NONE;
}

int gu_frame_take_locked(struct gu_chunks *s, uint32_t *frame)
{
	if (s->frames >= s->limit)
		return -ENOSPC;
	for (uint32_t i = 0; i < s->nsegments && s->segments[i]; i++)
		if (s->segments[i]->nfree) {
			*frame = i * SEGMENT_FRAMES + take_bit(s->segments[i]);
			s->frames++;
			return 0;
		}
	return -EAGAIN;
}

/* The first that is not all usable, or not there yet; nsegments: they all are. */
static uint32_t growing_segment(const struct gu_chunks *s)
{
	uint32_t i = 0;
	while (i < s->nsegments && s->segments[i] && s->segments[i]->ready == SEGMENT_FRAMES)
		i++;
	return i;
}

int gu_chunks_grow(const struct gu_chunks *s, struct gu_segment **grown)
{
	uint32_t i = growing_segment(s);
	struct gu_segment *g = i == s->nsegments ? NULL : s->segments[i] ? s->segments[i] : new_segment();
	if (!g)
		return -ENOMEM;
	if (gu_meta_commit(g->base + g->ready * GU_CHUNK, GROW_FRAMES * GU_CHUNK)) {
		if (!g->ready)
			free_segment(g);
		return -ENOMEM;
	}
	*grown = g;
	return 0;
}

void gu_chunks_grown_locked(struct gu_chunks *s, struct gu_segment *g)
{
	s->segments[growing_segment(s)] = g;
	for (uint32_t i = 0; i < GROW_FRAMES; i++, g->ready++, g->nfree++)
		g->free[g->ready / 64] |= (uint64_t)1 << (g->ready % 64);
}

void gu_frame_wipe(const struct gu_chunks *s, uint32_t frame)
{
	if (gu_os->madvise(gu_frame_at(s, frame), GU_CHUNK, MADV_DONTNEED))
		memset(gu_frame_at(s, frame), 0, GU_CHUNK);
}

void gu_frame_give_locked(struct gu_chunks *s, uint32_t frame)
{
	struct gu_segment *g = s->segments[frame / SEGMENT_FRAMES];
	uint32_t i = frame % SEGMENT_FRAMES;
	GU_INVARIANT(!(g->free[i / 64] >> (i % 64) & 1), ".inv.store.chunks");
	g->free[i / 64] |= (uint64_t)1 << (i % 64);
	g->nfree++;
	s->frames--;
}

/* ---- chunks ---- */

struct gu_chunk *gu_chunk_at(const struct gu_chunks *s, uint32_t number)
{
	GU_INVARIANT(number < s->high && gu_chunk_raw(s, number)->state != GU_CHUNK_FREE, ".inv.store.slot");
	return gu_chunk_raw(s, number);
}

static int new_number(struct gu_chunks *s, uint32_t *number)
{
	if (s->spare != GU_CHUNK_NONE) {
		*number = s->spare;
		s->spare = gu_chunk_raw(s, s->spare)->next;
		return 0;
	}
	uint32_t block = s->high / BLOCK_CHUNKS;
	if (block >= s->nblocks)
		return -ENOSPC;
	if (!s->blocks[block]) {
		s->blocks[block] = gu_meta_map(block_size());
		if (!s->blocks[block])
			return -ENOMEM;
		s->tables += block_size();
	}
	*number = s->high++;
	return 0;
}

int gu_chunk_new_locked(struct gu_chunks *s, unsigned class, uint32_t frame)
{
	uint32_t number;
	struct gu_cell *cells = gu_meta_alloc(cells_size(class));
	int err = cells ? new_number(s, &number) : -ENOMEM;
	if (err) {
		gu_meta_free(cells, cells_size(class));
		return err;
	}
	*gu_chunk_raw(s, number) = (struct gu_chunk){
		.cells = cells, .frame = frame, .free = GU_CELL_NONE, .class = (uint8_t)class, .state = GU_CHUNK_OPEN};
	list_append(s, &s->room[class], number);
	s->count++;
	s->tables += cells_size(class);
	return 0;
}

void gu_chunk_free_locked(struct gu_chunks *s, uint32_t number)
{
	struct gu_chunk *c = gu_chunk_raw(s, number);
	GU_INVARIANT(!c->live && !c->pins && c->state != GU_CHUNK_SPILLING, ".inv.store.pinned");
	if (c->state == GU_CHUNK_OPEN)
		list_remove(s, &s->room[c->class], number);
	gu_meta_free(c->cells, cells_size(c->class));
	s->tables -= cells_size(c->class);
	s->count--;
	*c = (struct gu_chunk){.next = s->spare, .state = GU_CHUNK_FREE};
	s->spare = number;
}

/* ---- cells ---- */

uint32_t gu_cell_take_locked(struct gu_chunks *s, unsigned class, unsigned *cell)
{
	uint32_t number = s->room[class].first;
	if (number == GU_CHUNK_NONE)
		return number;
	struct gu_chunk *c = gu_chunk_raw(s, number);
	*cell = c->free == GU_CELL_NONE ? c->fresh++ : c->free;
	c->free = c->free == GU_CELL_NONE ? c->free : c->cells[*cell].next;
	c->live++;
	s->cell_bytes += gu_chunk_cell_size(class);
	if (is_full(c)) {
		list_remove(s, &s->room[class], number);
		list_append(s, &s->full, number);
	}
	return number;
}

void gu_cell_give_locked(struct gu_chunks *s, uint32_t number, unsigned cell)
{
	struct gu_chunk *c = gu_chunk_at(s, number);
	size_t size = gu_chunk_cell_size(c->class);
	GU_INVARIANT(cell < c->fresh && c->cells[cell].len, ".inv.store.slot");
	if (c->state == GU_CHUNK_OPEN) {
		memset(gu_frame_at(s, c->frame) + cell * size, 0, size);
		if (is_full(c)) {
			list_remove(s, &s->full, number);
			list_append(s, &s->room[c->class], number);
		}
	}
	c->cells[cell] = (struct gu_cell){.next = c->free};
	c->free = (uint16_t)cell;
	c->live--;
	s->cell_bytes -= size;
}

/* ---- spilling ---- */

static uint32_t best_filled(const struct gu_chunks *s)
{
	uint32_t best = GU_CHUNK_NONE;
	size_t most = 0;
	for (unsigned class = 0; class < GU_CHUNK_CLASSES; class++) {
		uint32_t number = s->room[class].first;
		size_t bytes = number == GU_CHUNK_NONE ? 0 : gu_chunk_raw(s, number)->live * gu_chunk_cell_size(class);
		if (bytes > most) {
			most = bytes;
			best = number;
		}
	}
	return best;
}

uint32_t gu_chunk_to_spill_locked(struct gu_chunks *s, bool full)
{
	uint32_t number = full ? s->full.first : best_filled(s);
	if (number == GU_CHUNK_NONE)
		return number;
	struct gu_chunk *c = gu_chunk_raw(s, number);
	list_remove(s, list_of(s, c), number);
	c->state = GU_CHUNK_SPILLING;
	return number;
}

/* Cells that were dropped meanwhile were left as they were. */
static void wipe_free_cells(struct gu_chunks *s, const struct gu_chunk *c)
{
	size_t size = gu_chunk_cell_size(c->class);
	for (unsigned i = c->free; i != GU_CELL_NONE; i = c->cells[i].next)
		memset(gu_frame_at(s, c->frame) + i * size, 0, size);
}

void gu_chunk_unspill_locked(struct gu_chunks *s, uint32_t number)
{
	struct gu_chunk *c = gu_chunk_raw(s, number);
	c->state = GU_CHUNK_OPEN;
	wipe_free_cells(s, c);
	list_prepend(s, list_of(s, c), number);
}

/* ---- counts and check ---- */

size_t gu_chunks_memory(const struct gu_chunks *s) { return s->frames * GU_CHUNK + s->tables; }

static void check_cells(const struct gu_chunk *c)
{
	unsigned n = gu_chunk_cells(c->class), live = 0, free = 0;
	for (unsigned i = 0; i < n; i++)
		live += c->cells[i].len != 0;
	for (unsigned i = c->free; i != GU_CELL_NONE; i = c->cells[i].next, free++)
		GU_INVARIANT(i < c->fresh && !c->cells[i].len && free < n, ".inv.store.chunks");
	GU_INVARIANT(c->live == live && live + free == c->fresh && c->fresh <= n, ".inv.store.chunks");
}

static uint32_t check_list(struct gu_chunks *s, const struct gu_chunk_list *l)
{
	uint32_t n = 0, before = GU_CHUNK_NONE;
	for (uint32_t i = l->first; i != GU_CHUNK_NONE; before = i, i = gu_chunk_raw(s, i)->next, n++) {
		struct gu_chunk *c = gu_chunk_at(s, i);
		GU_INVARIANT(c->state == GU_CHUNK_OPEN && list_of(s, c) == l && c->prev == before, ".inv.store.chunks");
	}
	GU_INVARIANT(l->last == before, ".inv.store.chunks");
	return n;
}

static uint32_t check_frames(const struct gu_chunks *s)
{
	uint32_t used = 0;
	for (uint32_t i = 0; i < s->nsegments && s->segments[i]; i++) {
		const struct gu_segment *g = s->segments[i];
		uint32_t bits = 0;
		for (uint32_t w = 0; w < SEGMENT_WORDS; w++)
			bits += (uint32_t)__builtin_popcountll(g->free[w]);
		GU_INVARIANT(bits == g->nfree && g->nfree <= g->ready, ".inv.store.chunks");
		used += g->ready - g->nfree;
	}
	return used;
}

void gu_chunks_check(struct gu_chunks *s)
{
	uint32_t count = 0, open = 0, listed = check_list(s, &s->full);
	uint64_t bytes = 0;
	for (unsigned i = 0; i < GU_CHUNK_CLASSES; i++)
		listed += check_list(s, &s->room[i]);
	for (uint32_t i = 0; i < s->high; i++) {
		const struct gu_chunk *c = gu_chunk_raw(s, i);
		if (c->state == GU_CHUNK_FREE)
			continue;
		check_cells(c);
		GU_INVARIANT(c->frame != GU_FRAME_NONE || c->state == GU_CHUNK_FILED, ".inv.store.chunks");
		GU_INVARIANT(c->live || c->pins || c->state == GU_CHUNK_SPILLING, ".inv.store.chunks");
		count++;
		open += c->state == GU_CHUNK_OPEN;
		bytes += c->live * gu_chunk_cell_size(c->class);
	}
	GU_INVARIANT(count == s->count && open == listed && bytes == s->cell_bytes, ".inv.store.chunks");
	GU_INVARIANT(check_frames(s) == s->frames && s->frames <= s->limit, ".inv.store.chunks");
}
