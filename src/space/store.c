/* SPDX-License-Identifier: MIT */
/*
 * store.c - see store.h. A page becomes a word, or a record in a cell of a chunk; chunks beyond the memory limit are spilled.
 *
 * Two locks. spill: who puts pages, spills chunks, makes holes; held during I/O, never by who gets or drops. lock: all tables;
 * held for a few hundred instructions, never during I/O or coding. What is used without it is pinned (.inv.store.pinned).
 *
 *	slot   word << 2 | 1                    a page of one word over and over, where the word is a number of 62 bits with sign
 *	       chunk << 18 | cell << 2 | 2      a record
 */
#include "space/store.h"

#include <errno.h>
#include <string.h>

#include "base/atomic.h"
#include "base/beat.h"
#include "base/check.h"
#include "base/lock.h"
#include "base/meta.h"
#include "space/storechunk.h"
#include "space/storecodec.h"
#include "space/storefile.h"
#include "sys/os.h"

#define RETRY_NS 1000000000u /* a file that could not be written is tried again */
#define HOLES_AT_ONCE 16     /* extents that a put leaves to be made holes */

_Static_assert(GU_CHUNK == GU_EXTENT && GU_CHUNK == GU_STORE_NEAR, "a chunk fills an extent");

/* atomic: written by whoever finds it so; began says that error is set */
struct outage {
	uint32_t began;
	int32_t error; /* 0: none lasts */
	int32_t latest;
};

struct gu_store {
	struct gu_lock spill;      /* rank SPILL */
	struct gu_lock lock;       /* rank STORE */
	struct gu_coder coder;     /* encoding: guard spill */
	struct gu_chunks chunks;   /* guard: lock */
	struct gu_store_file file; /* guard: see storefile.h */
	uint64_t records;          /* guard: lock */
	uint64_t record_bytes;     /* guard: lock */
	uint64_t pages, same;      /* atomic */
	uint64_t spills, reads, writes_failed, reads_failed; /* atomic */
	uint64_t retry_ns;         /* guard: spill; nothing is written before; 0: the last write worked */
	int untold;                /* guard: spill; why writing failed, for the first put that finds no place */
	bool room;                 /* guard: lock; an extent was left since */
	struct outage writing, reading;
	struct gu_beats beats;
};

/* ---- slots ---- */

static bool word_slot(uint64_t word, gu_slot *slot)
{
	*slot = word << 2 | 1;
	return (uint64_t)((int64_t)*slot >> 2) == word;
}

static bool is_word(gu_slot slot) { return (slot & 3) == 1; }
static uint64_t word_of(gu_slot slot) { return (uint64_t)((int64_t)slot >> 2); }
static gu_slot record_slot(uint32_t chunk, unsigned cell) { return (uint64_t)chunk << 18 | cell << 2 | 2; }
static unsigned cell_of(gu_slot slot) { return slot >> 2 & 0xffff; }

static uint32_t chunk_of(gu_slot slot)
{
	GU_INVARIANT((slot & 3) == 2 && slot >> 18 < GU_CHUNK_NONE, ".inv.store.slot");
	return (uint32_t)(slot >> 18);
}

/* ---- opening ---- */

int gu_store_open(const struct gu_store_options *o, struct gu_store **store)
{
	if (o->file_limit && (!o->path || o->file_limit < GU_EXTENT))
		return -EINVAL;
	struct gu_store *s = gu_meta_map(gu_align_up(sizeof(*s), GU_PAGE));
	if (!s)
		return -ENOMEM;
	gu_lock_init(&s->spill, GU_RANK_SPILL);
	gu_lock_init(&s->lock, GU_RANK_STORE);
	int err = gu_coder_open(&s->coder, o->codec, o->level);
	if (!err)
		err = gu_chunks_open(&s->chunks, o->memory_limit, o->file_limit);
	if (!err)
		err = gu_file_open(&s->file, o->path, o->file_limit);
	if (err)
		gu_store_close(s);
	else
		*store = s;
	return err;
}

void gu_store_close_files(struct gu_store *s)
{
	if (s->file.path)
		gu_file_close_files(&s->file);
}

void gu_store_close(struct gu_store *s)
{
	if (s->file.path)
		gu_file_close(&s->file);
	gu_chunks_close(&s->chunks);
	gu_coder_close(&s->coder);
	gu_meta_unmap(s, gu_align_up(sizeof(*s), GU_PAGE));
}

/* ---- outages ---- */

static int note_outage(struct outage *o, int err)
{
	int32_t none = 0;
	if (!err && gu_load_relaxed(&o->error))
		gu_store_seqcst(&o->error, 0);
	if (!err || !gu_cas_seqcst(&o->error, &none, err))
		return err;
	gu_store_relaxed(&o->latest, err);
	gu_add_seqcst(&o->began, 1); /* pairs with gu_store_outage() */
	return err;
}

struct gu_store_outage gu_store_outage(const struct gu_store *s, bool writing)
{
	const struct outage *o = writing ? &s->writing : &s->reading;
	uint32_t began = gu_load_seqcst(&o->began);
	return (struct gu_store_outage){began, gu_load_relaxed(&o->latest), gu_load_seqcst(&o->error) != 0};
}

struct gu_beats *gu_store_beats(struct gu_store *s) { return &s->beats; }

const char *gu_store_refusal(int err)
{
	return err == -EEXIST ? ": store_path is a file that no store of this user has left there" : err == -EBUSY ? ": another process has the file at store_path" : "";
}

const char *gu_store_path(const struct gu_store *s) { return s->file.path; }

/* ---- what is left behind ---- */

static void leave_extent_locked(struct gu_store *s, const struct gu_chunk *c)
{
	gu_sub_relaxed(&s->file.files[c->file].chunks, 1);
	if (c->file == s->file.own)
		gu_file_stale_locked(&s->file, c->extent);
	s->room = true;
}

/* After a pin, a record or the memory of a chunk has become needless: a frame to be given back, or GU_FRAME_NONE. */
static uint32_t leave_locked(struct gu_store *s, uint32_t number)
{
	struct gu_chunk *c = gu_chunk_at(&s->chunks, number);
	uint32_t frame = c->frame;
	if (c->pins || c->state == GU_CHUNK_SPILLING || (c->live && c->state == GU_CHUNK_OPEN))
		return GU_FRAME_NONE;
	c->frame = GU_FRAME_NONE;
	if (!c->live) {
		if (c->state == GU_CHUNK_FILED)
			leave_extent_locked(s, c);
		gu_chunk_free_locked(&s->chunks, number);
	}
	return frame;
}

static void give_frame(struct gu_store *s, uint32_t frame)
{
	if (frame == GU_FRAME_NONE)
		return;
	gu_frame_wipe(&s->chunks, frame);
	gu_lock(&s->lock);
	gu_frame_give_locked(&s->chunks, frame);
	gu_unlock(&s->lock);
}

/* ---- spilling; the spill lock is held ---- */

struct spill {
	uint32_t first, n; /* extents, as many as chunks */
	uint32_t chunks[GU_EXTENTS_AT_ONCE];
	struct iovec pieces[GU_EXTENTS_AT_ONCE];
	uint32_t frames[GU_EXTENTS_AT_ONCE];
};

static uint32_t spill_at_once(const struct gu_store *s, bool full)
{
	return (uint32_t)gu_min(full ? GU_EXTENTS_AT_ONCE : 1, gu_max(s->chunks.limit / 4, 1));
}

static uint32_t choose_chunks_locked(struct gu_store *s, struct spill *p, bool full)
{
	uint32_t n = 0, most = spill_at_once(s, full);
	for (; n < most; n++) {
		uint32_t number = gu_chunk_to_spill_locked(&s->chunks, full);
		if (number == GU_CHUNK_NONE)
			break;
		p->chunks[n] = number;
		p->pieces[n] = (struct iovec){gu_frame_at(&s->chunks, gu_chunk_at(&s->chunks, number)->frame), GU_CHUNK};
	}
	return n;
}

/* -ENOSPC: the file is full; -ENOENT: no such chunk. */
static int begin_spill_locked(struct gu_store *s, struct spill *p, bool full)
{
	uint32_t chosen = choose_chunks_locked(s, p, full);
	s->room = false;
	p->n = chosen ? gu_file_take_locked(&s->file, chosen, &p->first) : 0;
	for (uint32_t i = chosen; i > p->n; i--)
		gu_chunk_unspill_locked(&s->chunks, p->chunks[i - 1]);
	return p->n ? 0 : chosen ? -ENOSPC : -ENOENT;
}

static void finish_spill_locked(struct gu_store *s, struct spill *p)
{
	for (uint32_t i = 0; i < p->n; i++) {
		struct gu_chunk *c = gu_chunk_at(&s->chunks, p->chunks[i]);
		c->state = GU_CHUNK_FILED;
		c->file = (uint8_t)s->file.own;
		c->extent = p->first + i;
		gu_add_relaxed(&s->file.files[c->file].chunks, 1);
		p->frames[i] = leave_locked(s, p->chunks[i]);
	}
	gu_add_relaxed(&s->spills, p->n);
}

static void abort_spill_locked(struct gu_store *s, struct spill *p)
{
	for (uint32_t i = p->n; i-- > 0;) {
		gu_file_stale_locked(&s->file, p->first + i);
		gu_chunk_unspill_locked(&s->chunks, p->chunks[i]);
		p->frames[i] = leave_locked(s, p->chunks[i]);
	}
	gu_add_relaxed(&s->writes_failed, 1);
}

static int write_chunks(struct gu_store *s, struct spill *p)
{
	int err = note_outage(&s->writing, gu_file_write(&s->file, p->first, p->pieces, (int)p->n));
	gu_lock(&s->lock);
	if (err)
		abort_spill_locked(s, p);
	else
		finish_spill_locked(s, p);
	gu_unlock(&s->lock);
	for (uint32_t i = 0; i < p->n; i++)
		give_frame(s, p->frames[i]);
	return err;
}

/* After a failure a while, unless something was dropped: a full or broken disk is not asked with each page. */
static bool may_write(struct gu_store *s)
{
	gu_lock(&s->lock);
	bool room = s->room;
	gu_unlock(&s->lock);
	return !s->retry_ns || room || gu_os->clock_ns() >= s->retry_ns;
}

static int failed(struct gu_store *s, int err)
{
	s->retry_ns = gu_os->clock_ns() + RETRY_NS;
	s->untold = err;
	return err;
}

static void thaw(struct gu_store *s)
{
	if (!gu_file_is_alone(&s->file))
		return;
	gu_lock(&s->lock);
	gu_file_thaw_locked(&s->file);
	s->room = true;
	gu_unlock(&s->lock);
}

/* Chunks, to the file: 0, -ENOENT: no more such chunks, or why not. */
static int spill(struct gu_store *s, bool full)
{
	struct spill p;
	if (!s->file.path || !may_write(s))
		return -ENOSPC;
	int err = gu_file_ready(&s->file);
	if (err) {
		gu_add_relaxed(&s->writes_failed, 1);
		return failed(s, note_outage(&s->writing, err));
	}
	gu_lock(&s->lock);
	err = begin_spill_locked(s, &p, full);
	gu_unlock(&s->lock);
	if (!err)
		err = write_chunks(s, &p);
	else if (err == -ENOSPC)
		thaw(s);
	if (err && err != -ENOENT)
		return failed(s, err);
	s->retry_ns = 0;
	s->untold = 0;
	return err;
}

static void make_holes(struct gu_store *s, uint32_t beyond)
{
	uint32_t first = 0, n;
	if (s->file.own < 0)
		return;
	do {
		gu_lock(&s->lock);
		n = first || s->file.nstale > beyond ? gu_file_next_hole_locked(&s->file, &first) : 0;
		gu_unlock(&s->lock);
		if (!n)
			return;
		gu_file_make_hole(&s->file, first, n);
		gu_lock(&s->lock);
		gu_file_hole_made_locked(&s->file, first, n);
		gu_unlock(&s->lock);
		first += n;
	} while (true);
}

static void close_empty(struct gu_store *s)
{
	for (int fd = 0; fd >= 0;) {
		gu_lock(&s->lock);
		fd = gu_file_leave_empty_locked(&s->file);
		gu_unlock(&s->lock);
		if (fd >= 0)
			gu_os->close(fd);
	}
}

void gu_store_tidy(struct gu_store *s)
{
	gu_lock(&s->spill);
	if (s->file.path) {
		s->file.tid = gu_os->gettid();
		close_empty(s);
		thaw(s);
		make_holes(s, 0);
	}
	gu_unlock(&s->spill);
}

/* ---- putting; the spill lock is held ---- */

struct place {
	uint32_t chunk;
	unsigned cell;
	char *at;
};

static bool take_cell(struct gu_store *s, unsigned class, const struct gu_cell *what, struct place *place)
{
	gu_lock(&s->lock);
	place->chunk = gu_cell_take_locked(&s->chunks, class, &place->cell);
	bool ok = place->chunk != GU_CHUNK_NONE;
	if (ok) {
		struct gu_chunk *c = gu_chunk_at(&s->chunks, place->chunk);
		c->cells[place->cell] = *what;
		place->at = gu_frame_at(&s->chunks, c->frame) + place->cell * gu_chunk_cell_size(class);
		s->records++;
		s->record_bytes += what->len;
	}
	gu_unlock(&s->lock);
	return ok;
}

/* One of a larger class, if there is a cell, up to most bytes. */
static bool take_larger(struct gu_store *s, unsigned class, size_t most, const struct gu_cell *what, struct place *place)
{
	for (class++; class < GU_CHUNK_CLASSES && gu_chunk_cell_size(class) <= most; class++)
		if (take_cell(s, class, what, place))
			return true;
	return false;
}

static int add_chunk_locked(struct gu_store *s, unsigned class, uint32_t *frame)
{
	int err = gu_frame_take_locked(&s->chunks, frame);
	if (err)
		return err;
	err = gu_chunk_new_locked(&s->chunks, class, *frame);
	if (err)
		gu_frame_give_locked(&s->chunks, *frame);
	return err;
}

/* -ENOSPC: the limit; -ENOMEM. */
static int add_chunk(struct gu_store *s, unsigned class)
{
	struct gu_segment *grown = NULL;
	uint32_t frame;
	for (;;) {
		gu_lock(&s->lock);
		if (grown)
			gu_chunks_grown_locked(&s->chunks, grown);
		int err = add_chunk_locked(s, class, &frame);
		gu_unlock(&s->lock);
		if (err != -EAGAIN)
			return err;
		err = gu_chunks_grow(&s->chunks, &grown);
		if (err)
			return err;
	}
}

/* Nothing more fits: the reason once, -ENOSPC from then on. */
static int no_place(struct gu_store *s, int err)
{
	int why = s->untold ? s->untold : err;
	s->untold = 0;
	return why;
}

/* A cell of its class, if need be in a new chunk, in the place of spilled ones, or larger than it had to be. */
static int find_place(struct gu_store *s, const struct gu_cell *what, struct place *place)
{
	unsigned class = gu_chunk_class(what->len);
	while (!take_cell(s, class, what, place)) {
		int none = add_chunk(s, class);
		if (!none)
			continue;
		int err = spill(s, true);
		if (!err)
			continue;
		if (take_larger(s, class, err == -ENOENT ? 2u * what->len : GU_PAGE, what, place))
			return 0;
		if (err == -ENOENT)
			err = spill(s, false);
		if (err == -ENOENT)
			return take_larger(s, class, GU_PAGE, what, place) ? 0 : none;
		if (err)
			return s->file.path ? no_place(s, err) : none;
	}
	return 0;
}

static int put_record(struct gu_store *s, const void *bytes, uint16_t len, enum gu_form form, gu_slot *slot)
{
	struct gu_cell cell = {.sum = gu_bytes_sum(bytes, len), .len = len, .form = (uint16_t)form};
	struct place place;
	int err = find_place(s, &cell, &place);
	if (err)
		return err;
	memcpy(place.at, bytes, len);
	*slot = record_slot(place.chunk, place.cell);
	return 0;
}

static int put_page(struct gu_store *s, const void *page, gu_slot *slot)
{
	uint64_t word;
	uint16_t len;
	enum gu_form form;
	int err;
	if (gu_page_is_word(page, &word)) {
		err = word_slot(word, slot) ? 0 : put_record(s, &word, sizeof(word), GU_FORM_WORD, slot);
		gu_add_relaxed(&s->same, err ? 0 : 1);
	} else {
		const void *bytes = gu_encode(&s->coder, page, &len, &form);
		err = put_record(s, bytes, len, form, slot);
		gu_encoded_wipe(&s->coder, len);
	}
	gu_add_relaxed(&s->pages, err ? 0 : 1);
	return err;
}

size_t gu_store_put(struct gu_store *s, const void *pages, size_t n, gu_slot *slots, int *err)
{
	size_t done = 0;
	int why = 0;
	gu_lock(&s->spill);
	if (s->file.path)
		s->file.tid = gu_os->gettid();
	while (done < n && !(why = put_page(s, (const char *)pages + done * GU_PAGE, &slots[done])))
		done++;
	make_holes(s, HOLES_AT_ONCE);
	gu_unlock(&s->spill);
	*err = why;
	return done;
}

/* ---- getting ---- */

struct view {
	struct gu_cell cell;
	const char *memory; /* NULL: in the file */
	struct gu_store_fd from; /* fd and direct */
	uint32_t chunk;
	size_t at;       /* in the chunk */
	uint64_t offset; /* of the chunk */
};

static void pin(struct gu_store *s, gu_slot slot, struct view *v)
{
	gu_lock(&s->lock);
	struct gu_chunk *c = gu_chunk_at(&s->chunks, chunk_of(slot));
	size_t offset = cell_of(slot) * gu_chunk_cell_size(c->class);
	GU_INVARIANT(cell_of(slot) < c->fresh && c->cells[cell_of(slot)].len, ".inv.store.slot");
	c->pins++;
	v->cell = c->cells[cell_of(slot)];
	v->chunk = chunk_of(slot);
	v->at = offset;
	v->memory = c->frame == GU_FRAME_NONE ? NULL : gu_frame_at(&s->chunks, c->frame) + offset;
	if (!v->memory) {
		v->from.fd = s->file.files[c->file].fd;
		v->from.direct = gu_load_relaxed(&s->file.files[c->file].direct);
		v->offset = c->extent * GU_EXTENT;
	}
	gu_unlock(&s->lock);
}

static void unpin(struct gu_store *s, gu_slot slot)
{
	gu_lock(&s->lock);
	gu_chunk_at(&s->chunks, chunk_of(slot))->pins--;
	uint32_t frame = leave_locked(s, chunk_of(slot));
	gu_unlock(&s->lock);
	give_frame(s, frame);
}

/* The sum is a seventh of a get from memory with LZ4, and nothing beside a read. */
#ifdef GU_DEBUG
#define CHECKS_MEMORY true
#else
#define CHECKS_MEMORY false
#endif

/* Nothing is decoded from a file that is not what was put. */
static int get_bytes(struct gu_store *s, const struct view *v, const void *bytes, void *page)
{
	if ((!v->memory || CHECKS_MEMORY) && gu_bytes_sum(bytes, v->cell.len) != v->cell.sum)
		return -EBADMSG;
	return gu_decode(&s->coder, (enum gu_form)v->cell.form, bytes, v->cell.len, page);
}

static int read_file(struct gu_store *s, const struct view *v, size_t at, size_t len, void *buffer, const void **bytes)
{
	gu_add_relaxed(&s->reads, 1);
	int beat = gu_beat_begin(&s->beats, gu_os->clock_ns(), "a read of the store's file");
	int err = note_outage(&s->reading, gu_file_read(&v->from, v->offset + at, len, buffer, bytes));
	gu_beat_end(&s->beats, beat);
	return err == -EBADMSG ? -EIO : err;
}

static int get_filed(struct gu_store *s, const struct view *v, void *page)
{
	char buffer[GU_FILE_BUFFER];
	const void *bytes;
	int err = read_file(s, v, v->at, v->cell.len, buffer, &bytes);
	return err ? err : get_bytes(s, v, bytes, page);
}

static int get_filed_near(struct gu_store *s, const struct view *v, struct gu_store_near *near, void *page)
{
	const void *bytes;
	int err = near->chunk == v->chunk ? 0 : read_file(s, v, 0, GU_CHUNK, near->bytes, &bytes);
	near->chunk = err ? GU_CHUNK_NONE : v->chunk;
	return err ? err : get_bytes(s, v, (const char *)near->bytes + v->at, page);
}

bool gu_store_is_memory(const struct gu_store *s) { return !s->file.limit; }

static int get(struct gu_store *s, gu_slot slot, struct gu_store_near *near, void *page)
{
	struct view v;
	if (is_word(slot)) {
		gu_page_fill(page, word_of(slot));
		return 0;
	}
	pin(s, slot, &v);
	int err = v.memory ? get_bytes(s, &v, v.memory, page) : near ? get_filed_near(s, &v, near, page) : get_filed(s, &v, page);
	unpin(s, slot);
	if (err)
		gu_add_relaxed(&s->reads_failed, 1);
	return err;
}

int gu_store_get(struct gu_store *s, gu_slot slot, void *page) { return get(s, slot, NULL, page); }
int gu_store_get_near(struct gu_store *s, gu_slot slot, struct gu_store_near *near, void *page) { return get(s, slot, near, page); }

/* ---- dropping ---- */

static void drop_record(struct gu_store *s, gu_slot slot)
{
	uint32_t number = chunk_of(slot);
	gu_lock(&s->lock);
	struct gu_chunk *c = gu_chunk_at(&s->chunks, number);
	GU_INVARIANT(cell_of(slot) < c->fresh, ".inv.store.slot");
	struct gu_cell was = c->cells[cell_of(slot)];
	gu_cell_give_locked(&s->chunks, number, cell_of(slot));
	s->records--;
	s->record_bytes -= was.len;
	uint32_t frame = leave_locked(s, number);
	gu_unlock(&s->lock);
	gu_sub_relaxed(&s->same, was.form == GU_FORM_WORD ? 1 : 0);
	give_frame(s, frame);
}

void gu_store_drop(struct gu_store *s, gu_slot slot)
{
	if (is_word(slot))
		gu_sub_relaxed(&s->same, 1);
	else
		drop_record(s, slot);
	gu_sub_relaxed(&s->pages, 1);
}

/* ---- counts ---- */

static uint32_t extents_in_use(const struct gu_store *s)
{
	uint32_t n = s->file.nused;
	for (int i = 0; i < GU_STORE_FILES; i++)
		n += i == s->file.own ? 0 : s->file.files[i].chunks;
	return n;
}

void gu_store_counts(struct gu_store *s, struct gu_store_counts *counts)
{
	gu_lock(&s->lock);
	*counts = (struct gu_store_counts){
		.memory_bytes = gu_chunks_memory(&s->chunks),
		.file_bytes = extents_in_use(s) * GU_EXTENT,
		.record_bytes = s->record_bytes,
	};
	gu_unlock(&s->lock);
	counts->pages = gu_load_relaxed(&s->pages);
	counts->same = gu_load_relaxed(&s->same);
	counts->spills = gu_load_relaxed(&s->spills);
	counts->reads = gu_load_relaxed(&s->reads);
	counts->writes_failed = gu_load_relaxed(&s->writes_failed);
	counts->reads_failed = gu_load_relaxed(&s->reads_failed);
}

/* ---- fork ---- */

int gu_store_fork_prepare(struct gu_store *s)
{
	gu_lock_fork(&s->spill);
	gu_lock_fork(&s->lock);
	return gu_file_fork_prepare(&s->file);
}

void gu_store_fork_parent(struct gu_store *s)
{
	gu_file_fork_parent(&s->file);
	gu_unlock_fork(&s->lock);
	gu_unlock_fork(&s->spill);
}

/* Readers of the parent's are not here to unpin. */
static void forget_pins(struct gu_store *s)
{
	for (uint32_t i = 0; i < s->chunks.high; i++) {
		gu_lock(&s->lock);
		struct gu_chunk *c = gu_chunk_raw(&s->chunks, i);
		uint32_t frame = GU_FRAME_NONE;
		if (c->state != GU_CHUNK_FREE && c->pins) {
			c->pins = 0;
			frame = leave_locked(s, i);
		}
		gu_unlock(&s->lock);
		give_frame(s, frame);
	}
}

void gu_store_fork_child(struct gu_store *s)
{
	gu_lock_init(&s->spill, GU_RANK_SPILL);
	gu_lock_init(&s->lock, GU_RANK_STORE);
	gu_coder_forked(&s->coder);
	gu_file_fork_child(&s->file);
	s->retry_ns = 0;
	s->untold = 0;
	s->writing = s->reading = (struct outage){0}; /* another file */
	s->beats = (struct gu_beats){0}; /* who was reading is not here */
	forget_pins(s);
}

size_t gu_store_files(struct gu_store *s, int *fds)
{
	size_t n = 0;
	gu_lock(&s->lock);
	for (int i = 0; i < GU_STORE_FILES; i++)
		if (s->file.files[i].fd >= 0)
			fds[n++] = s->file.files[i].fd;
	gu_unlock(&s->lock);
	return n;
}

/* ---- check ---- */

static void check_filed_locked(const struct gu_store *s)
{
	uint32_t in[GU_STORE_FILES] = {0}, own = 0;
	uint64_t records = 0, bytes = 0;
	for (uint32_t i = 0; i < s->chunks.high; i++) {
		const struct gu_chunk *c = gu_chunk_raw(&s->chunks, i);
		for (unsigned k = 0; c->state != GU_CHUNK_FREE && k < c->fresh; k++) {
			records += c->cells[k].len != 0;
			bytes += c->cells[k].len;
		}
		if (c->state == GU_CHUNK_FILED) {
			in[c->file]++;
			GU_INVARIANT(c->file != s->file.own || gu_file_is_used(&s->file, c->extent), ".inv.store.extent");
			own += c->file == s->file.own;
		}
	}
	GU_INVARIANT(records == s->records && bytes == s->record_bytes, ".inv.store.chunks");
	GU_INVARIANT(!s->file.path || s->file.nused - s->file.nstale == own, ".inv.store.extent");
	for (int i = 0; i < GU_STORE_FILES; i++)
		GU_INVARIANT(in[i] == s->file.files[i].chunks, ".inv.store.extent");
}

/* No page is being put while the spill lock is held. */
void gu_store_check(struct gu_store *s)
{
	gu_lock(&s->spill);
	gu_lock(&s->lock);
	gu_chunks_check(&s->chunks);
	gu_file_check(&s->file);
	check_filed_locked(s);
	gu_unlock(&s->lock);
	gu_unlock(&s->spill);
}
