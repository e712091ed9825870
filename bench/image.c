/* SPDX-License-Identifier: MIT */
/*
 * image.c - a heap saved while mutators run, and loaded in other processes: how long the save takes and the longest gap that a mutator sees
 * meanwhile; from the start of the load to the first answer to a look-up, what is resident then, a run that writes, and a full collection. Beside it the
 * time to build the same anew. gcuffd alone.
 *
 * A table of nodes, each of which points to another one at random. Each mutator has a part of it to itself, and what a step does follows from
 * its number alone: so the contents, links and counts of all nodes after so many steps are known, and are compared in three places: in the process that
 * saved, when the mutators have ended; in one that loads and looks at all; and in one that loads, writes and collects first. An image is of one
 * moment, in which a step may be half done: then its first stores are there and its later ones are not (settle_step()).
 *
 * The file is in TMPDIR, or /var/tmp.
 */
#include <errno.h>
#include <pthread.h>
#include <stdarg.h>
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
#define FILLERS 4
#define PARTS_MOST 64u
#define NOBODY UINT32_MAX
#define NUMBERS (1ull << 63) /* no address has this bit: a count of 1 would lie in the shadow of ASan, and not be saved */

struct node {
	struct node *next;
	uint64_t number; /* its place in the table */
	uint64_t birth;  /* the step of its part that made it; 0: build() */
	uint64_t writes; /* NUMBERS, how many in the upper half, and in the lower one the step of the last one */
	uint64_t filler[FILLERS];
};

/* The root. */
struct world {
	uint64_t done[PARTS_MOST]; /* steps in each part */
	struct node *table[];
};

/* What a node should be. */
struct expected {
	uint32_t birth, next, next_birth, writes, last;
};

struct part {
	unsigned index;
	size_t first, count;
	uint64_t gap_max; /* atomic */
};

static const struct bench_args *args;
static struct gcuffd_heap *heap;
static struct world *world;
static struct part parts[PARTS_MOST];
static size_t nodes;
static char path[256];
static atomic_bool over;

static bool complain(const char *format, ...)
{
	va_list list;

	va_start(list, format);
	fputs("image: ", stderr);
	vfprintf(stderr, format, list);
	fputc('\n', stderr);
	va_end(list);
	return false;
}

static void divide(void)
{
	for (unsigned i = 0; i < args->threads; i++) {
		size_t first = nodes * i / args->threads;

		parts[i] = (struct part){ .index = i, .first = first, .count = nodes * (i + 1) / args->threads - first };
	}
}

static struct gcuffd_options options_of(void)
{
	struct gcuffd_options o;

	gcuffd_options_init(&o);
	o.reservation = args->live * 4 + ((size_t)1 << 30);
	if (args->options && gcuffd_options_parse(&o, args->options, NULL))
		bench_fail("gcuffd_options_parse", EINVAL);
	return o;
}

/* ---- steps */

static uint64_t filler_of(uint64_t number, uint64_t birth, unsigned i) { return bench_mix(number << 34 ^ birth << 2 ^ i) | NUMBERS; }

/* Where node i points to when it is built: one before it, in its part. */
static uint32_t built_next(const struct part *p, size_t i)
{
	uint64_t state = args->seed + i;

	return i > p->first ? (uint32_t)(p->first + bench_random_below(&state, i - p->first)) : NOBODY;
}

/*
 * A step replaces node number, by one that points to node other, and counts in that. What was replaced points nowhere any more: else old nodes
 * would keep older ones for ever.
 */
struct step {
	size_t number, other;
};

static struct step step_of(const struct part *p, uint64_t step)
{
	uint64_t state = bench_mix(args->seed + step) + p->index;
	size_t number = p->first + bench_random_below(&state, p->count);

	return (struct step){ number, p->first + bench_random_below(&state, p->count) };
}

static struct node *make_node(size_t number, uint64_t birth, struct node *next)
{
	struct node *node = gcuffd_alloc(heap, sizeof(*node));

	if (!node)
		bench_out_of_memory();
	*node = (struct node){ .next = next, .number = number, .birth = birth, .writes = NUMBERS };
	for (unsigned i = 0; i < FILLERS; i++)
		node->filler[i] = filler_of(number, birth, i);
	return node;
}

static void build(void)
{
	world = gcuffd_alloc(heap, sizeof(*world) + nodes * sizeof(*world->table));
	if (!world)
		bench_out_of_memory();
	for (const struct part *p = parts; p < parts + args->threads; p++)
		for (size_t i = p->first; i < p->first + p->count; i++) {
			uint32_t next = built_next(p, i);

			world->table[i] = make_node(i, 0, next == NOBODY ? NULL : world->table[next]);
		}
}

static void count_write(struct node *node, uint64_t step)
{
	node->writes = (node->writes >> 32 << 32) + (1ull << 32) + (uint32_t)step;
}

/* Whoever stops the thread finds its stores in this order, the last ones missing: within a thread a signal fence is enough. */
static void do_step(const struct part *p)
{
	uint64_t number = world->done[p->index] + 1;
	struct step s = step_of(p, number);
	struct node *node = make_node(s.number, number, world->table[s.other]), *old = world->table[s.number];

	atomic_signal_fence(memory_order_seq_cst);
	world->table[s.number] = node;
	old->next = NULL;
	atomic_signal_fence(memory_order_seq_cst);
	count_write(world->table[s.other], number);
	atomic_signal_fence(memory_order_seq_cst);
	world->done[p->index] = number;
}

/* Does what is missing of a step that was under way in the moment of the image. */
static void settle_step(const struct part *p)
{
	uint64_t number = world->done[p->index] + 1;
	struct step s = step_of(p, number);

	if (world->table[s.number]->birth != number)
		return;
	if ((uint32_t)world->table[s.other]->writes != number)
		count_write(world->table[s.other], number);
	world->done[p->index] = number;
}

/* ---- what should be there */

static void expect_part(const struct part *p, struct expected *all)
{
	for (size_t i = p->first; i < p->first + p->count; i++)
		all[i] = (struct expected){ .next = built_next(p, i) };
	for (uint64_t n = 1; n <= world->done[p->index]; n++) {
		struct step s = step_of(p, n);

		all[s.number] = (struct expected){ .birth = (uint32_t)n, .next = (uint32_t)s.other, .next_birth = all[s.other].birth };
		all[s.other].writes++;
		all[s.other].last = (uint32_t)n;
	}
}

static bool is_as_expected(size_t i, const struct expected *e)
{
	const struct node *node = world->table[i], *next = node->next;

	if (node->number != i || node->birth != e->birth || node->writes != (NUMBERS | (uint64_t)e->writes << 32 | e->last))
		return complain("node %zu: number %llu, birth %llu, writes %llx", i, (unsigned long long)node->number, (unsigned long long)node->birth,
				(unsigned long long)node->writes);
	for (unsigned k = 0; k < FILLERS; k++)
		if (node->filler[k] != filler_of(i, e->birth, k))
			return complain("node %zu: filler %u is %llx", i, k, (unsigned long long)node->filler[k]);
	if (!next != (e->next == NOBODY) || (next && (next->number != e->next || next->birth != e->next_birth)))
		return complain("node %zu: points to another than %u of step %u", i, e->next, e->next_birth);
	return true;
}

/* All nodes, by what was built and the steps that were done since. */
static bool check_all(const char *when)
{
	struct expected *all = calloc(nodes, sizeof(*all));
	size_t wrong = 0;

	if (!all)
		bench_out_of_memory();
	for (const struct part *p = parts; p < parts + args->threads; p++)
		expect_part(p, all);
	for (size_t i = 0; i < nodes && wrong < 10; i++)
		wrong += !is_as_expected(i, &all[i]);
	free(all);
	return !wrong || complain("%s: the heap is not what it should be", when);
}

static uint64_t all_steps(void)
{
	uint64_t sum = 0;

	for (unsigned i = 0; i < args->threads; i++)
		sum += __atomic_load_n(&world->done[i], __ATOMIC_RELAXED);
	return sum;
}

/* ---- saving */

static void wait_until(uint64_t due)
{
	struct timespec ts = { (time_t)(due / 1000000000u), (long)(due % 1000000000u) };

	clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &ts, NULL);
}

/* A gap is from the end of a step, or when the next was due, to the end of that. */
static void *mutate(void *arg)
{
	struct part *p = arg;
	uint64_t last = bench_now(), start = last, now;

	if (gcuffd_thread_attach())
		bench_fail("gcuffd_thread_attach", EINVAL);
	for (uint64_t n = 1; !over; n++, last = now) {
		uint64_t due = args->rate ? start + n * 1000000000u / args->rate : 0;

		if (due > last) {
			wait_until(due);
			last = due;
		}
		do_step(p);
		now = bench_now();
		if (now - last > __atomic_load_n(&p->gap_max, __ATOMIC_RELAXED))
			__atomic_store_n(&p->gap_max, now - last, __ATOMIC_RELAXED);
	}
	gcuffd_thread_detach();
	return arg;
}

static void forget_gaps(void)
{
	for (struct part *p = parts; p < parts + args->threads; p++)
		__atomic_store_n(&p->gap_max, 0, __ATOMIC_RELAXED);
}

static uint64_t longest_gap(void)
{
	uint64_t most = 0;

	for (struct part *p = parts; p < parts + args->threads; p++) {
		uint64_t gap = __atomic_load_n(&p->gap_max, __ATOMIC_RELAXED);
		most = gap > most ? gap : most;
	}
	return most;
}

/* Mutators run before it, in it, and a little after it. */
static int save(void)
{
	struct gcuffd_named root = { "world", world };
	struct gcuffd_image_options image = { .size = sizeof(image), .roots = &root, .nroots = 1 };

	usleep(200000);
	forget_gaps();
	uint64_t steps = all_steps(), start = bench_now();
	int err = gcuffd_heap_save(heap, path, &image);
	uint64_t ns = bench_now() - start;
	bench_emit_float("save_s", (double)ns / 1e9);
	bench_emit_float("save_gap_max_us", (double)longest_gap() / 1e3);
	bench_emit_float("save_steps_per_s", (double)(all_steps() - steps) * 1e9 / (double)ns);
	if (err)
		complain("gcuffd_heap_save: %d", err);
	return err;
}

static int save_under_load(void)
{
	pthread_t threads[PARTS_MOST];

	for (unsigned i = 0; i < args->threads; i++) {
		int err = pthread_create(&threads[i], NULL, mutate, &parts[i]);
		if (err)
			bench_fail("a thread", err);
	}
	int err = save();
	over = true;
	for (unsigned i = 0; i < args->threads; i++)
		pthread_join(threads[i], NULL);
	return err;
}

static int build_and_save(void)
{
	struct gcuffd_options o = options_of();
	struct stat st;
	uint64_t start = bench_now();

	if (gcuffd_heap_create(&o, &heap) || gcuffd_thread_attach())
		return 1;
	build();
	bench_emit_float("build_s", (double)(bench_now() - start) / 1e9);
	if (gcuffd_collect(heap) || save_under_load() || stat(path, &st))
		return 1;
	bench_emit_int("image_kib", (uint64_t)st.st_size >> 10);
	fflush(stdout);
	return !check_all("where it was saved") || gcuffd_heap_destroy(heap);
}

/* ---- loading */

static int load(void)
{
	struct gcuffd_options o = options_of();
	int err = gcuffd_thread_attach();

	err = err ? err : gcuffd_heap_load(path, NULL, &o, &heap);
	if (err)
		complain("gcuffd_heap_load: %d", err);
	return err;
}

static void settle_all(void)
{
	for (const struct part *p = parts; p < parts + args->threads; p++)
		settle_step(p);
}

/* In no process that is measured: it touches everything. */
static int load_and_check(void)
{
	if (load())
		return 1;
	world = gcuffd_image_root(heap, "world");
	settle_all();
	return !check_all("loaded") || gcuffd_heap_destroy(heap);
}

static int load_and_use(void)
{
	uint64_t start = bench_now();

	if (load())
		return 1;
	double ms = (double)(bench_now() - start) / 1e6;
	world = gcuffd_image_root(heap, "world");
	if (world->table[nodes / 3]->number != nodes / 3)
		return 1;
	bench_emit_float("load_ms", ms);
	bench_emit_float("lookup_ms", (double)(bench_now() - start) / 1e6);
	bench_emit_int("rss_kib", bench_rss() >> 10);
	settle_all();
	for (size_t i = 0; i < nodes / 100; i++)
		do_step(&parts[i % args->threads]);
	start = bench_now();
	if (gcuffd_collect(heap))
		return 1;
	bench_emit_float("full_gc_s", (double)(bench_now() - start) / 1e9);
	bench_emit_int("rss_after_kib", bench_rss() >> 10);
	fflush(stdout);
	return !check_all("loaded, written to and collected") || gcuffd_heap_destroy(heap);
}

static int in_child(int (*fn)(void))
{
	int status = -1;
	pid_t pid = fork();

	if (!pid)
		_exit(fn());
	if (pid < 0 || waitpid(pid, &status, 0) != pid)
		return 1;
	return status != 0;
}

static void name_file(void)
{
	const char *directory = getenv("TMPDIR");

	directory = directory ? directory : access("/var/tmp", W_OK) ? "/tmp" : "/var/tmp";
	snprintf(path, sizeof(path), "%s/gcuffd-bench-%d.img", directory, (int)getpid());
}

int main(int argc, char **argv)
{
	struct bench_args parsed;

	bench_args_parse(&parsed, argc, argv);
	args = &parsed;
	nodes = args->live / (NODE + sizeof(*world->table));
	if (nodes >= NOBODY)
		bench_fail("--live", EINVAL);
	if (args->threads > PARTS_MOST)
		bench_fail("--threads", EINVAL);
	divide();
	name_file();
	bench_begin();
	fflush(stdout);
	int failed = in_child(build_and_save) || in_child(load_and_check) || in_child(load_and_use);
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
