/* SPDX-License-Identifier: MIT */
/*
 * binary_trees.c - complete binary trees of two-pointer nodes: one deep tree that dies, one that
 * stays, and 2^(depth - d + 4) trees of each depth d from 4 on, built and counted and dropped. One
 * thread. bench/README.md says what it does not show.
 */
#include <stdio.h>

#include "sys.h"

#define MIN_DEPTH 4

struct node {
	struct node *left;
	struct node *right;
};

static struct node *make_tree(unsigned depth)
{
	struct node *node = sys_alloc(sizeof(*node));

	node->left = NULL;
	node->right = NULL;
	if (depth) {
		node->left = make_tree(depth - 1);
		node->right = make_tree(depth - 1);
	}
	return node;
}

static uint64_t count_tree(const struct node *node)
{
	return node->left ? 1 + count_tree(node->left) + count_tree(node->right) : 1;
}

static void free_tree(struct node *node)
{
	if (!SYS_MANUAL)
		return;
	if (node->left) {
		free_tree(node->left);
		free_tree(node->right);
	}
	sys_free(node, sizeof(*node));
}

static uint64_t count_and_drop(unsigned depth)
{
	struct node *tree = make_tree(depth);
	uint64_t count = count_tree(tree);

	free_tree(tree);
	return count;
}

static uint64_t run_depth(unsigned depth, unsigned max)
{
	uint64_t sum = 0;

	for (uint64_t n = (uint64_t)1 << (max - depth + MIN_DEPTH); n; n--)
		sum += count_and_drop(depth);
	return sum;
}

static uint64_t run(unsigned max)
{
	uint64_t sum = count_and_drop(max + 1);
	struct node *long_lived = make_tree(max);

	for (unsigned depth = MIN_DEPTH; depth <= max; depth += 2)
		sum = bench_mix(sum) + run_depth(depth, max);
	sum = bench_mix(sum) + count_tree(long_lived);
	free_tree(long_lived);
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
