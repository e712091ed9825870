/* SPDX-License-Identifier: MIT */
/*
 * stream.h - touches that go on in order: which pages are likely to be touched next. Arithmetic alone; one thread at a time.
 *
 * A stream's run is the page that was touched last and those brought back behind it. A fault right behind the run, or right before it, says that
 * these have been passed, and continues the stream with a window twice as large, up to 32 pages; any other fault begins a stream with no
 * window. So faults in no order bring back nothing else, and a stream that ends has brought back a window too much, never more than was
 * touched before.
 */
#ifndef GU_GC_STREAM_H
#define GU_GC_STREAM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define GU_STREAMS 8
#define GU_STREAM_WINDOW 32u

/* The run: pages [low, high), of which [next, next + left) upwards, or (next - left, next] downwards, are still to be brought back. */
struct gu_stream {
	size_t low, high; /* high 0: none */
	size_t next, left;
	uint32_t window;
	uint32_t unproved; /* brought back since the last fault that continued it */
	uint32_t used;     /* when; the one that was used longest ago makes room */
	bool down;
};

struct gu_streams {
	struct gu_stream stream[GU_STREAMS];
	struct gu_stream *latest; /* that something is left of, or NULL */
	uint32_t now;
};

/* Page was touched, and is back. How many pages that were brought back ahead this proves to have been wanted. */
uint32_t gu_streams_touched(struct gu_streams *streams, size_t page);
/* The next page to be brought back, of pages in all; false: none. */
bool gu_streams_next(struct gu_streams *streams, size_t pages, size_t *page);
/* It was. */
void gu_streams_brought(struct gu_streams *streams);
/* Nothing more is to be brought back for now. */
void gu_streams_stop(struct gu_streams *streams);

#endif
