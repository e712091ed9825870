/* SPDX-License-Identifier: MIT */
/*
 * graph.h - a graph of 64-byte nodes with three random pointers each, of which some stay in use (hot), some rest (kept) and some
 * are dropped, all three known by seed: what a walk finds can be compared with what was built.
 *
 * Each section but the pendants is one random cycle through edge[0]; the other edges go anywhere, but nothing outside points into
 * what will be dropped. A pendant is a hot node to which one node of each tenth cold page points, and nobody else; who uses it knows it
 * by a hidden word. Of the 40 bytes beside the pointers 20 are random; none of them looks like a pointer.
 */
#ifndef BENCH_GRAPH_H
#define BENCH_GRAPH_H

#include <stddef.h>
#include <stdint.h>

enum graph_section { GRAPH_HOT, GRAPH_PENDANTS, GRAPH_KEPT, GRAPH_DROPPED, GRAPH_SECTIONS };

struct graph_node {
	struct graph_node *edge[3];
	uint64_t id, random;
	uint32_t random32, tag;
	uint64_t count; /* the mutator's, of its writes */
	uint64_t zero;
};

struct graph_sum {
	uint64_t nodes, checksum, count;
};

/* No field points into the heap. */
struct graph {
	uint64_t seed;
	size_t nodes;
	size_t first[GRAPH_SECTIONS + 1];
	size_t owned;               /* hidden ones whose owners are kept, the first ones */
	uintptr_t *hidden;          /* pendants */
	size_t low;                 /* number of the first of the pages that the nodes are on */
	size_t pages;
	uint8_t *kinds;             /* of each page: a bit for each section that has nodes there */
	struct graph_sum live, all; /* without and with what will be dropped */
	/* while it is built */
	struct graph_node **table;
	uint32_t *next;
};

#define GRAPH_COLD_KINDS (1u << GRAPH_KEPT | 1u << GRAPH_DROPPED)

/* Allocates all nodes; fills them in, and sets roots of the sections; forgets where they are. */
void graph_allocate(struct graph *graph, uint64_t seed, size_t bytes, void *(*alloc)(size_t));
void graph_fill(struct graph *graph, struct graph_node **roots);
void graph_forget(struct graph *graph);

static inline struct graph_node *graph_pendant(const struct graph *g, size_t i) { return (struct graph_node *)~g->hidden[i]; }

/* All that is reached from the roots that are not NULL, each node once: it stops where there are more than there can be. */
struct graph_sum graph_walk(const struct graph *graph, struct graph_node *const *roots);

#endif
