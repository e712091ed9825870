/* SPDX-License-Identifier: MIT */
/* graph.c - see graph.h. Runs in one thread. */
#include "graph.h"

#include <stdbool.h>
#include <sys/mman.h>

#include "util.h"

#define PAGE 4096u
#define TOP 0x8000000000000000u
#define TAG 0x80000000u
#define OWNER 1u                                      /* of tag: edge[2] is a pendant */
#define COLD_PAGES_TO_OWNER 10
#define OWNED_EVERY (PAGE / sizeof(struct graph_node) * COLD_PAGES_TO_OWNER)

static void *map(size_t bytes)
{
	void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (memory == MAP_FAILED)
		bench_out_of_memory();
	return memory;
}

static uint64_t random_of(const struct graph *g, size_t i, unsigned what) { return bench_mix(g->seed + i * 4 + what); }
static uint64_t id_of(const struct graph *g, size_t i) { return random_of(g, i, 0) | TOP; }

/* ---- building */

static void divide(struct graph *g)
{
	size_t hot = g->nodes / 10, cold = g->nodes - hot, dropped = cold / 4;
	size_t kept = cold - dropped, owned = (kept + OWNED_EVERY - 1) / OWNED_EVERY;
	size_t pendants = owned + (dropped + OWNED_EVERY - 1) / OWNED_EVERY;

	g->owned = owned;
	g->first[GRAPH_PENDANTS] = hot - pendants;
	g->first[GRAPH_KEPT] = hot;
	g->first[GRAPH_DROPPED] = hot + kept;
	g->first[GRAPH_SECTIONS] = g->nodes;
}

static void note_pages(struct graph *g, uintptr_t low, uintptr_t high)
{
	g->low = low / PAGE;
	g->pages = high / PAGE - g->low + 1;
	g->kinds = map(g->pages);
	for (unsigned s = 0; s < GRAPH_SECTIONS; s++)
		for (size_t i = g->first[s]; i < g->first[s + 1]; i++)
			g->kinds[(uintptr_t)g->table[i] / PAGE - g->low] |= (uint8_t)(1u << s);
}

void graph_allocate(struct graph *g, uint64_t seed, size_t bytes, void *(*alloc)(size_t))
{
	uintptr_t low = UINTPTR_MAX, high = 0;

	*g = (struct graph){ .seed = bench_mix(seed), .nodes = bytes / sizeof(struct graph_node) };
	divide(g);
	g->table = map(g->nodes * sizeof(*g->table));
	for (size_t i = 0; i < g->nodes; i++) {
		uintptr_t at = (uintptr_t)(g->table[i] = alloc(sizeof(struct graph_node)));

		low = at < low ? at : low;
		high = at > high ? at : high;
	}
	note_pages(g, low, high + sizeof(struct graph_node) - 1);
}

/* One random cycle through all of [from, to). */
static void make_cycle(struct graph *g, size_t from, size_t to, uint64_t *state)
{
	for (size_t i = from; i < to; i++)
		g->next[i] = (uint32_t)i;
	for (size_t i = to - 1; i > from; i--) {
		size_t j = from + bench_random_below(state, i - from);
		uint32_t other = g->next[j];

		g->next[j] = g->next[i];
		g->next[i] = other;
	}
}

static size_t random_in(const struct graph *g, unsigned section, uint64_t *state)
{
	return g->first[section] + bench_random_below(state, g->first[section + 1] - g->first[section]);
}

/* A node, but for pendants: hot or kept, or, if dropped says so, of what will be dropped. */
static size_t random_node(const struct graph *g, bool dropped, uint64_t *state)
{
	size_t pendants = g->first[GRAPH_KEPT] - g->first[GRAPH_PENDANTS];
	size_t end = dropped ? g->nodes : g->first[GRAPH_DROPPED];
	size_t i = bench_random_below(state, end - pendants);

	return i < g->first[GRAPH_PENDANTS] ? i : i + pendants;
}

/* The pendant that node i, the n-th of its section, is to own: or none, 0. */
static size_t pendant_of(const struct graph *g, unsigned section, size_t n)
{
	if (section < GRAPH_KEPT || n % OWNED_EVERY)
		return 0;
	return g->first[GRAPH_PENDANTS] + (section == GRAPH_DROPPED ? g->owned : 0) + n / OWNED_EVERY;
}

static void choose_edges(const struct graph *g, unsigned section, size_t i, uint64_t *state, size_t *edges)
{
	size_t pendant = pendant_of(g, section, i - g->first[section]);

	edges[0] = section == GRAPH_PENDANTS ? random_in(g, GRAPH_HOT, state) : g->next[i];
	edges[1] = section < GRAPH_KEPT ? random_in(g, GRAPH_HOT, state) : random_node(g, section == GRAPH_DROPPED, state);
	edges[2] = pendant ? pendant : section < GRAPH_KEPT ? random_in(g, GRAPH_KEPT, state)
		 : section == GRAPH_KEPT ? random_node(g, false, state) : random_in(g, GRAPH_DROPPED, state);
}

static void add_node(struct graph_sum *sum, const struct graph_node *node, const uint64_t *ids)
{
	uint64_t edges = 0;

	for (unsigned k = 0; k < 3; k++)
		edges += bench_mix(ids[k] + k);
	sum->nodes++;
	sum->checksum += bench_mix(node->id ^ edges) + bench_mix(node->random + node->tag) + node->random32 + node->zero;
	sum->count += node->count;
}

static void fill_node(struct graph *g, unsigned section, size_t i, uint64_t *state)
{
	struct graph_node *node = g->table[i];
	size_t edges[3];
	uint64_t ids[3];
	size_t dropped_pendants = g->first[GRAPH_PENDANTS] + g->owned;

	choose_edges(g, section, i, state, edges);
	for (unsigned k = 0; k < 3; k++) {
		node->edge[k] = g->table[edges[k]];
		ids[k] = id_of(g, edges[k]);
	}
	node->id = id_of(g, i);
	node->random = random_of(g, i, 1) | TOP;
	node->random32 = (uint32_t)random_of(g, i, 2);
	node->tag = TAG | (edges[2] >= g->first[GRAPH_PENDANTS] && edges[2] < g->first[GRAPH_KEPT] ? OWNER : 0);
	node->count = 0;
	node->zero = 0;
	add_node(&g->all, node, ids);
	if (section < GRAPH_DROPPED && !(section == GRAPH_PENDANTS && i >= dropped_pendants))
		add_node(&g->live, node, ids);
}

void graph_fill(struct graph *g, struct graph_node **roots)
{
	uint64_t state = g->seed ^ 1;
	size_t pendants = g->first[GRAPH_KEPT] - g->first[GRAPH_PENDANTS];

	g->next = map(g->nodes * sizeof(*g->next));
	g->hidden = map(pendants * sizeof(*g->hidden));
	for (unsigned s = 0; s < GRAPH_SECTIONS; s++) {
		make_cycle(g, g->first[s], g->first[s + 1], &state);
		for (size_t i = g->first[s]; i < g->first[s + 1]; i++)
			fill_node(g, s, i, &state);
		roots[s] = s == GRAPH_PENDANTS ? NULL : g->table[g->first[s]];
	}
	for (size_t i = 0; i < pendants; i++)
		g->hidden[i] = ~(uintptr_t)g->table[g->first[GRAPH_PENDANTS] + i];
}

void graph_forget(struct graph *g)
{
	munmap(g->table, g->nodes * sizeof(*g->table));
	munmap(g->next, g->nodes * sizeof(*g->next));
	g->table = NULL;
	g->next = NULL;
}

/* ---- walking */

static void visit(struct graph_sum *sum, const struct graph_node *node)
{
	uint64_t ids[3];

	for (unsigned k = 0; k < 3; k++)
		ids[k] = node->edge[k]->id;
	add_node(sum, node, ids);
}

static void walk_cycle(const struct graph *g, const struct graph_node *root, struct graph_sum *sum)
{
	const struct graph_node *node = root;

	do {
		visit(sum, node);
		if (node->tag & OWNER)
			visit(sum, node->edge[2]);
		node = node->edge[0];
	} while (node != root && sum->nodes <= g->nodes);
}

struct graph_sum graph_walk(const struct graph *g, struct graph_node *const *roots)
{
	struct graph_sum sum = { 0, 0, 0 };

	for (unsigned s = 0; s < GRAPH_SECTIONS; s++)
		if (roots[s])
			walk_cycle(g, roots[s], &sum);
	return sum;
}
