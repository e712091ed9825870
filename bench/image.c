/* SPDX-License-Identifier: MIT */
/*
 * image.c - a heap saved while a mutator runs, and loaded in another process: how long the save takes and the longest gap that the mutator sees
 * meanwhile; from the start of the load to the first answer to a look-up, what is resident then, a run that writes, and a full collection, after which
 * everything is read and its sum compared. Beside it the time to build the same anew. gcuffd alone.
 *
 * A table of nodes, each of which points to another one at random. The file is in TMPDIR, or /var/tmp.
 */
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "util.h"

#ifdef BENCH_SYS_GCUFFD

#include "gcuffd.h"

#define NODE 64u

struct node {
	struct node *next;
	uint64_t number, count, filler[5];
};

static struct gcuffd_heap *heap;
static struct node **table;
static size_t nodes;
static char path[256];
static atomic_bool over;
static _Atomic uint64_t gap_max;

static struct gcuffd_options options_of(const struct bench_args *args)
{
	struct gcuffd_options o;

	gcuffd_options_init(&o);
	o.reservation = args->live * 4 + ((size_t)1 << 30);
	if (args->options && gcuffd_options_parse(&o, args->options, NULL))
		bench_fail("gcuffd_options_parse", EXIT_FAILURE);
	return o;
}

static void build(uint64_t seed)
{
	table = gcuffd_alloc(heap, nodes * sizeof(*table));
	for (size_t i = 0; table && i < nodes; i++) {
		struct node *node = gcuffd_alloc(heap, sizeof(*node));
		if (!node)
			bench_out_of_memory();
		node->number = i;
		node->next = i ? table[bench_random(&seed) % i] : NULL;
		table[i] = node;
	}
	if (!table)
		bench_out_of_memory();
}

/* Replaces a node, and writes to another; number and sum stay. */
static void step(uint64_t *seed)
{
	size_t i = bench_random(seed) % nodes, k = bench_random(seed) % nodes;
	struct node *node = gcuffd_alloc(heap, sizeof(*node));

	if (!node)
		bench_out_of_memory();
	node->number = table[i]->number;
	node->next = table[k];
	table[i] = node;
	table[k]->count++;
}

static void *mutate(void *arg)
{
	uint64_t seed = 7, last = bench_now(), now;

	if (gcuffd_thread_attach())
		bench_fail("gcuffd_thread_attach", EXIT_FAILURE);
	while (!over) {
		step(&seed);
		now = bench_now();
		if (now - last > gap_max)
			gap_max = now - last;
		last = now;
		usleep(30);
	}
	gcuffd_thread_detach();
	return arg;
}

static int build_and_save(const struct bench_args *args)
{
	struct gcuffd_options o = options_of(args);
	pthread_t thread;
	struct stat st;
	uint64_t since = bench_now();

	if (gcuffd_heap_create(&o, &heap) || gcuffd_thread_attach())
		return 1;
	build(args->seed);
	bench_emit_float("build_s", (double)(bench_now() - since) / 1e9);
	struct gcuffd_named root = {"table", table};
	struct gcuffd_image_options image = {.size = sizeof(image), .roots = &root, .nroots = 1};
	if (gcuffd_collect(heap) || pthread_create(&thread, NULL, mutate, NULL))
		return 1;
	usleep(200000);
	gap_max = 0;
	since = bench_now();
	int err = gcuffd_heap_save(heap, path, &image);
	bench_emit_float("save_s", (double)(bench_now() - since) / 1e9);
	bench_emit_float("save_gap_max_us", (double)gap_max / 1e3);
	over = true;
	pthread_join(thread, NULL);
	if (err || stat(path, &st))
		return 1;
	bench_emit_int("image_kib", (uint64_t)st.st_size >> 10);
	fflush(stdout);
	return gcuffd_heap_destroy(heap);
}

static int load_and_use(const struct bench_args *args)
{
	struct gcuffd_options o = options_of(args);
	uint64_t seed = 11, sum = 0, since = bench_now();

	if (gcuffd_thread_attach() || gcuffd_heap_load(path, NULL, &o, &heap))
		return 1;
	double load = (double)(bench_now() - since) / 1e6;
	table = gcuffd_image_root(heap, "table");
	if (table[nodes / 3]->number != nodes / 3)
		return 1;
	bench_emit_float("load_ms", load);
	bench_emit_float("lookup_ms", (double)(bench_now() - since) / 1e6);
	bench_emit_int("rss_kib", bench_rss() >> 10);
	for (size_t i = 0; i < nodes / 100; i++)
		step(&seed);
	since = bench_now();
	if (gcuffd_collect(heap))
		return 1;
	bench_emit_float("full_gc_s", (double)(bench_now() - since) / 1e9);
	bench_emit_int("rss_after_kib", bench_rss() >> 10);
	for (size_t i = 0; i < nodes; i++)
		sum += bench_mix(table[i]->number);
	bench_emit_hex("checksum", sum);
	fflush(stdout);
	return gcuffd_heap_destroy(heap);
}

static int in_child(const struct bench_args *args, int (*fn)(const struct bench_args *args))
{
	int status = -1;
	pid_t pid = fork();

	if (!pid)
		_exit(fn(args));
	if (pid < 0 || waitpid(pid, &status, 0) != pid)
		return 1;
	return status != 0;
}

int main(int argc, char **argv)
{
	struct bench_args args = {.live = (size_t)1 << 30, .seed = 1};
	const char *directory = getenv("TMPDIR");

	bench_args_parse(&args, argc, argv);
	nodes = args.live / (NODE + sizeof(*table));
	snprintf(path, sizeof(path), "%s/gcuffd-bench-%d.img", directory ? directory : "/var/tmp", (int)getpid());
	bench_begin();
	fflush(stdout);
	int failed = in_child(&args, build_and_save) || in_child(&args, load_and_use);
	unlink(path);
	bench_end();
	return failed;
}

#else

int main(void)
{
	fputs("image: gcuffd alone has images\n", stderr);
	return 1;
}

#endif
