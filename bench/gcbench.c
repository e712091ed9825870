/* SPDX-License-Identifier: MIT */
/*
 * gcbench.c - the old artificial benchmark of Ellis, Kovac and Boehm, written anew from its
 * parameters: a stretch tree, then a long-lived tree and an array of doubles that stay, and
 * complete trees of growing depth that die at once, built from the top and from the bottom. One
 * thread. bench/README.md says what it does not show.
 */
#include <stdio.h>

#include "sys.h"

#define MIN_DEPTH 4
#define ARRAY_LEN 500000

struct node {
	struct node *left;
	struct node *right;
	int i;
	int j;
};

static inline struct node *make_node(struct node *left, struct node *right)
{
	struct node *node = sys_alloc(sizeof(*node));

	node->left = left;
	node->right = right;
	node->i = 0;
	node->j = 0;
	return node;
}

static uint64_t tree_size(unsigned depth) { return ((uint64_t)2 << depth) - 1; }

static void populate(unsigned depth, struct node *node)
{
	if (!depth)
		return;
	node->left = make_node(NULL, NULL);
	node->right = make_node(NULL, NULL);
	populate(depth - 1, node->left);
	populate(depth - 1, node->right);
}

static struct node *make_top_down(unsigned depth)
{
	struct node *node = make_node(NULL, NULL);

	populate(depth, node);
	return node;
}

static struct node *make_bottom_up(unsigned depth)
{
	struct node *left, *right;

	if (!depth)
		return make_node(NULL, NULL);
	left = make_bottom_up(depth - 1);
	right = make_bottom_up(depth - 1);
	return make_node(left, right);
}

static void free_tree(struct node *node)
{
	if (!SYS_MANUAL || !node)
		return;
	free_tree(node->left);
	free_tree(node->right);
	sys_free(node, sizeof(*node));
}

static uint64_t count_nodes(const struct node *node)
{
	return node ? 1 + count_nodes(node->left) + count_nodes(node->right) : 0;
}

/* Counts the left edge of each tree, so that a tree cannot be optimised away. */
static uint64_t left_depth(const struct node *node)
{
	uint64_t depth = 0;

	for (; node; node = node->left)
		depth++;
	return depth;
}

static uint64_t build_trees(unsigned depth, unsigned stretch, struct node *(*make)(unsigned))
{
	uint64_t sum = 0;

	for (uint64_t n = 2 * tree_size(stretch) / tree_size(depth); n; n--) {
		struct node *tree = make(depth);

		sum += left_depth(tree);
		free_tree(tree);
	}
	return sum;
}

static double *make_array(void)
{
	double *array = sys_alloc_atomic(ARRAY_LEN * sizeof(*array));

	array[0] = 0;
	for (size_t i = 1; i < ARRAY_LEN / 2; i++)
		array[i] = 1.0 / (double)i;
	return array;
}

static uint64_t run_trees(unsigned stretch)
{
	uint64_t sum = 0;

	for (unsigned depth = MIN_DEPTH; depth <= stretch - 2; depth += 2) {
		sum += build_trees(depth, stretch, make_top_down);
		sum += build_trees(depth, stretch, make_bottom_up);
	}
	return sum;
}

static uint64_t run(unsigned stretch)
{
	struct node *tree = make_bottom_up(stretch), *long_lived;
	double *array;
	uint64_t sum = left_depth(tree);

	free_tree(tree);
	long_lived = make_top_down(stretch - 2);
	array = make_array();
	sum += run_trees(stretch);
	sum = bench_mix(sum) + count_nodes(long_lived);
	sum = bench_mix(sum) + (uint64_t)(array[1000] * 1e9);
	free_tree(long_lived);
	sys_free(array, ARRAY_LEN * sizeof(*array));
	return sum;
}

int main(int argc, char **argv)
{
	struct bench_args args;

	bench_args_parse(&args, argc, argv);
	bench_begin();
	sys_init(&args);
	bench_emit_hex("checksum", run(args.depth));
	sys_report();
	bench_end();
	return 0;
}
