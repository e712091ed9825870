/* SPDX-License-Identifier: MIT */
/* stream.c - see stream.h. */
#include "gc/stream.h"

#include "base/check.h"

static void begin(struct gu_stream *s, size_t page) { *s = (struct gu_stream){.low = page, .high = page + 1}; }

/* The touch was faster than what is still to be brought back: those before it are left to their own faults. Else it has been out since. */
static void pass(struct gu_stream *s, size_t page)
{
	size_t gone = s->down ? s->next - page + 1 : page - s->next + 1;
	if (!s->left || (s->down ? page > s->next : page < s->next) || gone > s->left) {
		begin(s, page);
		return;
	}
	s->next = s->down ? page - 1 : page + 1;
	s->left -= gone;
}

static uint32_t go_on(struct gu_stream *s, size_t page)
{
	uint32_t proved = s->unproved;
	s->down = page < s->low;
	s->window = s->window ? (uint32_t)gu_min(s->window * 2, GU_STREAM_WINDOW) : 1;
	s->left = s->down ? gu_min(s->window, page) : s->window;
	s->next = s->down ? page - 1 : page + 1;
	s->low = s->down ? page - s->left : page;
	s->high = s->down ? page + 1 : page + 1 + s->left;
	s->unproved = 0;
	return proved;
}

static struct gu_stream *oldest(struct gu_streams *a)
{
	struct gu_stream *best = &a->stream[0];
	for (struct gu_stream *s = a->stream; s < a->stream + GU_STREAMS; s++)
		if (a->now - s->used > a->now - best->used)
			best = s;
	return best;
}

uint32_t gu_streams_touched(struct gu_streams *a, size_t page)
{
	uint32_t proved = 0;
	struct gu_stream *s = a->stream;
	while (s < a->stream + GU_STREAMS && !(s->high && page + 1 >= s->low && page <= s->high))
		s++;
	if (s == a->stream + GU_STREAMS) {
		s = oldest(a);
		begin(s, page);
	} else if (page >= s->low && page < s->high) {
		pass(s, page);
	} else {
		proved = go_on(s, page);
	}
	s->used = ++a->now;
	if (s->left)
		a->latest = s;
	return proved;
}

bool gu_streams_next(struct gu_streams *a, size_t pages, size_t *page)
{
	struct gu_stream *s = a->latest;
	if (!s || !s->left)
		return false;
	*page = s->next;
	s->next += s->down ? -(size_t)1 : 1;
	s->left = *page < pages ? s->left - 1 : 0;
	return *page < pages;
}

void gu_streams_brought(struct gu_streams *a) { a->latest->unproved++; }

void gu_streams_stop(struct gu_streams *a)
{
	for (struct gu_stream *s = a->stream; s < a->stream + GU_STREAMS; s++)
		s->left = 0;
}
