/* SPDX-License-Identifier: MIT */
/*
 * mutate.c - what pauses a program sees. Live data of a set size: heads that stay for ever, each
 * found through a table and owning a small tree (a cluster) of nodes. At a set rate an operation
 * picks a random head, which is old, stores a pointer to another random head in it, and replaces its
 * cluster by a newly allocated one: so the live size stays the same, garbage arises everywhere,
 * and nearly every operation writes to another old page. Between operations the thread reads the
 * clock; every gap over 50 us goes into a histogram. All systems do the same operations: those that
 * fell due in a pause are made up for. Before that part twice as many operations as there are heads
 * are done untimed, as fast as they go: a whole cycle falls into them, so that the heap has its full
 * size and no memory is measured that the machine has yet to find. Then some seconds' worth at the set
 * rate, so that no cycle that began at full speed lasts into the timed part. --fresh leaves both out.
 *
 * One thread runs all of it. A node is 56 bytes, so that libgc's extra byte keeps it in a cell of 64.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "sys.h"

#define GAP_NS     50000u
#define TABLE_LEN  8190u /* heads in one table: just below 64 KiB */
#define NODE_BYTES 64u
#define PAGE_BITS  (1u << 20)
#define SETTLE_S   5.0 /* at most, and no longer than the timed part */

struct node {
	struct node *edge[3]; /* a head: cluster, random head, random head; in a cluster: left, right, head */
	uint64_t value[4];
};

/* Distinct pages written in the current second, hashed: a collision makes the count smaller. */
struct pages {
	uint64_t distinct;
	uint64_t next_ns;
	uint64_t bits[PAGE_BITS / 64];
};

static struct node ***tables;
static size_t heads;
static unsigned cluster_depth;
static uint64_t random_state;
static struct pages pages;
static struct bench_hist gaps;

static struct node **head_slot(size_t i) { return &tables[i / TABLE_LEN][i % TABLE_LEN]; }

static struct node *random_head(void) { return *head_slot(bench_random_below(&random_state, heads)); }

static struct node *make_node(struct node *head, uint64_t value)
{
	struct node *node = sys_alloc(sizeof(*node));

	memset(node, 0, sizeof(*node));
	node->edge[2] = head;
	node->value[0] = value;
	return node;
}

static struct node *make_cluster(struct node *head, uint64_t value, unsigned depth)
{
	struct node *node = make_node(head, value);

	if (depth > 1) {
		node->edge[0] = make_cluster(head, value, depth - 1);
		node->edge[1] = make_cluster(head, value, depth - 1);
	}
	return node;
}

static void free_cluster(struct node *node)
{
	if (!SYS_MANUAL || !node)
		return;
	free_cluster(node->edge[0]);
	free_cluster(node->edge[1]);
	sys_free(node, sizeof(*node));
}

/* ---- the graph */

static void make_tables(void)
{
	size_t count = (heads + TABLE_LEN - 1) / TABLE_LEN;

	tables = sys_alloc(count * sizeof(*tables));
	memset(tables, 0, count * sizeof(*tables));
	for (size_t i = 0; i < count; i++) {
		tables[i] = sys_alloc(TABLE_LEN * sizeof(**tables));
		memset(tables[i], 0, TABLE_LEN * sizeof(**tables));
	}
}

static void build_graph(const struct bench_args *args)
{
	cluster_depth = args->cluster;
	heads = args->live / (((size_t)NODE_BYTES << cluster_depth) + sizeof(void *));
	heads = heads ? heads : 1;
	make_tables();
	for (size_t i = 0; i < heads; i++) {
		struct node *head = make_node(NULL, i);

		*head_slot(i) = head;
		head->edge[0] = make_cluster(head, i, cluster_depth);
	}
	for (size_t i = 0; i < heads; i++) {
		(*head_slot(i))->edge[1] = random_head();
		(*head_slot(i))->edge[2] = random_head();
	}
}

/* Nodes of a cluster that are as they were made. */
static uint64_t check_cluster(const struct node *node, const struct node *head, uint64_t value)
{
	if (!node || node->edge[2] != head || node->value[0] != value)
		return 0;
	return 1 + check_cluster(node->edge[0], head, value) + check_cluster(node->edge[1], head, value);
}

static uint64_t check_graph(void)
{
	uint64_t sum = 0;

	for (size_t i = 0; i < heads; i++) {
		const struct node *head = *head_slot(i);
		uint64_t value = head->edge[0]->value[0];

		sum += bench_mix(i ^ value) + bench_mix(head->edge[1]->value[0] + (head->edge[2]->value[0] << 32));
		sum = bench_mix(sum) + check_cluster(head->edge[0], head, value);
	}
	return sum;
}

/* ---- the timed part */

static void count_page(const void *address, uint64_t now)
{
	uint64_t bit = bench_mix((uintptr_t)address >> 12) % PAGE_BITS;
	uint64_t *word = &pages.bits[bit / 64];

	if (now >= pages.next_ns) {
		memset(pages.bits, 0, sizeof(pages.bits));
		pages.next_ns = now + 1000000000u;
	}
	pages.distinct += !(*word >> (bit % 64) & 1);
	*word |= (uint64_t)1 << (bit % 64);
}

static void do_operation(uint64_t number, uint64_t now)
{
	struct node *head = random_head(), *old = head->edge[0];

	head->edge[1] = random_head();
	head->edge[0] = make_cluster(head, heads + number, cluster_depth);
	count_page(head, now);
	free_cluster(old);
}

struct outcome {
	uint64_t operations;
	uint64_t late_max_ns;
	uint64_t end_ns;
};

static struct outcome run_schedule(const struct bench_args *args, uint64_t start, uint64_t done)
{
	uint64_t total = (uint64_t)(args->rate * args->seconds), end = start + (uint64_t)(args->seconds * 1e9);
	uint64_t due = start, last = start, now;
	struct outcome out = { 0, 0, 0 };

	for (;;) {
		now = bench_now();
		if (now - last > GAP_NS)
			bench_hist_add(&gaps, now - last);
		last = now;
		if (now >= end && (args->idle || out.operations >= total))
			break;
		if (now < due || args->idle || out.operations >= total)
			continue;
		if (now - due > out.late_max_ns)
			out.late_max_ns = now - due;
		do_operation(done + out.operations++, now);
		due = start + out.operations * 1000000000u / args->rate;
	}
	out.end_ns = now;
	return out;
}

/* Twice as much is replaced as there is, then some at the set rate. How many operations that took. */
static uint64_t warm_up(const struct bench_args *args)
{
	struct bench_args settling = *args;
	uint64_t n = 2 * heads;

	if (args->idle || args->fresh || args->measure_live)
		return 0;
	for (uint64_t i = 0; i < n; i++)
		do_operation(i, 0);
	if (settling.seconds > SETTLE_S)
		settling.seconds = SETTLE_S;
	n += run_schedule(&settling, bench_now(), n).operations;
	memset(&gaps, 0, sizeof(gaps));
	memset(&pages, 0, sizeof(pages));
	return n;
}

static void report_gaps(void)
{
	bench_emit_float("pause_p50_us", (double)bench_hist_quantile(&gaps, 0.5) / 1e3);
	bench_emit_float("pause_p99_us", (double)bench_hist_quantile(&gaps, 0.99) / 1e3);
	bench_emit_float("pause_max_us", (double)gaps.max / 1e3);
	bench_emit_int("gaps", gaps.count);
}

static void report_work(const struct bench_args *args, const struct outcome *out, uint64_t start)
{
	double seconds = (double)(out->end_ns - start) / 1e9;
	double nodes = (double)out->operations * (double)(((uint64_t)1 << args->cluster) - 1);

	bench_emit_float("run_s", seconds);
	bench_emit_int("operations", out->operations);
	bench_emit_float("alloc_mb_s", nodes * NODE_BYTES / seconds / 1e6);
	bench_emit_float("old_dirty_mb_s", (double)pages.distinct * 4096 / seconds / 1e6);
	bench_emit_float("late_max_us", (double)out->late_max_ns / 1e3);
}

static void run(const struct bench_args *args)
{
	uint64_t begin = bench_now(), start, done, cycles;
	struct outcome out;

	build_graph(args);
	start = bench_now();
	bench_emit_float("build_s", (double)(start - begin) / 1e9);
	done = warm_up(args);
	bench_emit_float("warm_s", (double)(bench_now() - start) / 1e9);
	cycles = sys_cycles();
	start = bench_now();
	out = run_schedule(args, start, done);
	if (!SYS_MANUAL)
		bench_emit_int("cycles_run", sys_cycles() - cycles);
	report_gaps();
	report_work(args, &out, start);
	bench_emit_hex("checksum", check_graph());
}

int main(int argc, char **argv)
{
	struct bench_args args;

	bench_args_parse(&args, argc, argv);
	if (!args.rate)
		bench_fail("--rate 0", EINVAL);
	if (args.measure_live)
		args.seconds = 0.1;
	random_state = args.seed;
	memset(&gaps, 0, sizeof(gaps)); /* in memory before that is looked at: it is not the heap's */
	memset(&pages, 0xff, sizeof(pages));
	bench_begin();
	sys_init(&args);
	run(&args);
	sys_report();
	bench_end();
	return 0;
}
