/* SPDX-License-Identifier: MIT */
/*
 * stops.c - what it costs that threads can be stopped, and how long a stop takes where many threads are blocked in system calls.
 *
 * The poll: a loop with gcuffd_safepoint() less the same without it, when nobody asks.
 * The stop: of --threads, --running run and the others are blocked, half of them in read(2) of an empty pipe, half in sem_wait(3); /proc says that they
 * are, before the first and after the last collection, and they say so themselves at their end. The main thread, which is none of them, asks for
 * --collections, and after each, --gap us apart, for a look at the heap: who looks knows when all stand still. Each stop is counted as the collector
 * tells it; running threads read the clock, and count each gap over 50 us. Every thread has objects on its stack, and looks at them when it ends.
 *
 * This is done once for each mode, with new threads: blocked ones are declared so to the collector, or are not; running ones are stopped by signal, or by
 * safepoint. On malloc there are no collections: its gaps are the machine's.
 */
#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "sys.h"

#define GAP_NS     50000u
#define NODES      64u
#define ALLOC_EACH 256u /* turns of a running thread */
#define BLOCKED_NS 10000000000u /* most that all blocked threads take to be so */

struct node {
	struct node *next;
	uint64_t value[7];
};

struct mode {
	const char *name;
	bool declared; /* blocked threads */
	bool polls;    /* running threads */
};

static const struct mode modes[] = {
	{ "declared", true, false },
	{ "undeclared", false, false },
	{ "safepoint", true, true },
};

struct member {
	pthread_t thread;
	unsigned index;
	atomic_int tid; /* 0: not there yet; stored by the thread when it is about to run, or block */
	struct bench_hist gaps;
};

/* Constant while there are threads. */
static const struct mode *mode;
static int pipe_ends[2];
static sem_t semaphore;

static atomic_bool over;
static struct bench_hist stops, halts; /* of one mode; main thread; libgc: under its lock */

/* ---- on gcuffd */

#ifdef BENCH_SYS_GCUFFD

#define CAN_POLL true

static void enter_world(bool polls)
{
	int err = gcuffd_thread_attach();

	if (!err && polls)
		err = gcuffd_thread_stop_by(GCUFFD_STOP_BY_SAFEPOINT);
	if (err)
		bench_fail("gcuffd_thread_attach", -err);
}

static void leave_world(void) { gcuffd_thread_detach(); }
static inline void poll_once(void) { gcuffd_safepoint(); }

static void declare_blocking(void *(*fn)(void *), void *arg)
{
	int err = gcuffd_blocking_enter();

	if (!err)
		fn(arg);
	err = err ? err : gcuffd_blocking_leave();
	if (err)
		bench_fail("gcuffd_blocking_enter", -err);
}

static void begin_collecting(void) { }

static void count_stop(uint64_t ns)
{
	if (ns) /* on rung stop there is only the second */
		bench_hist_add(&stops, ns);
}

static void collect(void)
{
	struct gcuffd_stats before = sys_stats(), after;
	int err = gcuffd_collect(sys_heap);

	if (err)
		bench_fail("gcuffd_collect", -err);
	after = sys_stats();
	if (after.cycles != before.cycles + 1 || after.stop_total_ns - before.stop_total_ns != after.last_stop1_ns + after.last_stop2_ns)
		bench_fail("a stop that was not counted", EPROTO);
	count_stop(after.last_stop1_ns);
	count_stop(after.last_stop2_ns);
}

/* On the heap's thread, while all stand still. */
static int note_time(void *data, const struct gcuffd_walked *object)
{
	(void)object;
	*(uint64_t *)data = bench_now();
	return 1;
}

static void halt(void)
{
	uint64_t begin = bench_now(), halted = 0;
	int err = gcuffd_heap_walk(sys_heap, note_time, &halted);

	if (err != 1)
		bench_fail("gcuffd_heap_walk", -err);
	bench_hist_add(&halts, halted - begin);
}

#define TURNS 500000u
#define POLLS 8 /* in a turn, so that they do not hide in what the loop itself takes */
#define PAIRS 201u

/* Both loops begin at the same place of a cache line; of what stands in them the compiler knows nothing, so it leaves both as they are. */
static __attribute__((noinline)) double time_bare(void)
{
	uint64_t begin = bench_now();

	__asm__ volatile(".p2align 6");
	for (unsigned i = 0; i < TURNS; i++)
		__asm__ volatile("" : "+r"(i));
	return (double)(bench_now() - begin) / TURNS;
}

static __attribute__((noinline)) double time_polls(void)
{
	uint64_t begin = bench_now();

	__asm__ volatile(".p2align 6");
	for (unsigned i = 0; i < TURNS; i++) {
		__asm__ volatile("" : "+r"(i));
#pragma GCC unroll 8
		for (int k = 0; k < POLLS; k++)
			poll_once();
	}
	return (double)(bench_now() - begin) / TURNS;
}

static int compare(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

static void emit_median(const char *key, double *numbers)
{
	qsort(numbers, PAIRS, sizeof(*numbers), compare);
	bench_emit_float(key, numbers[PAIRS / 2]);
}

static void measure_poll(void)
{
	double bare[PAIRS], more[PAIRS];

	for (unsigned i = 0; i < PAIRS; i++) {
		bare[i] = time_bare();
		more[i] = (time_polls() - bare[i]) / POLLS;
	}
	emit_median("poll_ns", more);
	emit_median("poll_loop_ns", bare);
}

#else /* ---- on libgc and malloc */

#define CAN_POLL false

static void enter_world(bool polls) { (void)polls; } /* libgc: pthread_create() is its own */
static void leave_world(void) { }
static void poll_once(void) { }

static void measure_poll(void)
{
	bench_emit_null("poll_ns");
	bench_emit_null("poll_loop_ns");
}

#ifdef BENCH_SYS_LIBGC

static void declare_blocking(void *(*fn)(void *), void *arg) { GC_do_blocking(fn, arg); }
static void collect(void) { GC_gcollect(); }
static void halt(void) { } /* each collection tells */

static void GC_CALLBACK on_event(GC_EventType event)
{
	sys_on_event(event);
	if (event == GC_EVENT_POST_STOP_WORLD)
		bench_hist_add(&halts, bench_now() - sys_gc.stop_start);
	if (event == GC_EVENT_POST_START_WORLD)
		bench_hist_add(&stops, bench_now() - sys_gc.stop_start);
}

static void begin_collecting(void) { GC_set_on_collection_event(on_event); }

#else

static void declare_blocking(void *(*fn)(void *), void *arg) { fn(arg); }
static void collect(void) { }
static void halt(void) { }
static void begin_collecting(void) { }

#endif
#endif

/* ---- the threads */

static struct node *make_node(uint64_t value)
{
	struct node *node = sys_alloc(sizeof(*node));

	memset(node, 0, sizeof(*node));
	node->value[0] = value;
	return node;
}

static void free_node(struct node *node, uint64_t value)
{
	if (node->value[0] != value)
		bench_fail("an object that is on a stack", EFAULT);
	sys_free(node, sizeof(*node));
}

static void *run(void *arg)
{
	struct member *me = arg;
	struct node *nodes[NODES];
	uint64_t last, now;

	enter_world(mode->polls);
	for (uint64_t i = 0; i < NODES; i++)
		nodes[i] = make_node(i);
	atomic_store(&me->tid, (int)syscall(SYS_gettid));
	last = bench_now();
	for (uint64_t turn = 1; !atomic_load_explicit(&over, memory_order_relaxed); turn++) {
		uint64_t i = turn / ALLOC_EACH % NODES;

		if (turn % ALLOC_EACH == 0) {
			free_node(nodes[i], i);
			nodes[i] = make_node(i);
		}
		if (mode->polls)
			poll_once();
		now = bench_now();
		if (now - last > GAP_NS)
			bench_hist_add(&me->gaps, now - last);
		last = now;
	}
	for (uint64_t i = 0; i < NODES; i++)
		free_node(nodes[i], i);
	leave_world();
	return NULL;
}

static long blocking_call(const struct member *m) { return m->index % 2 ? SYS_futex : SYS_read; }

static void *block_in_call(void *arg)
{
	const struct member *me = arg;
	char byte;
	long got;

	do {
		got = blocking_call(me) == SYS_read ? read(pipe_ends[0], &byte, 1) : sem_wait(&semaphore);
	} while (got < 0 && errno == EINTR);
	if (got || !atomic_load(&over))
		bench_fail("a thread that was to be blocked", got < 0 ? errno : EPROTO);
	return NULL;
}

static void *block(void *arg)
{
	struct member *me = arg;
	struct node *node;

	enter_world(false);
	node = make_node(me->index);
	atomic_store(&me->tid, (int)syscall(SYS_gettid));
	if (mode->declared)
		declare_blocking(block_in_call, me);
	else
		block_in_call(me);
	free_node(node, me->index);
	leave_world();
	return NULL;
}

static bool is_blocked(const struct member *m)
{
	char path[64], text[32] = "";
	FILE *file;

	snprintf(path, sizeof(path), "/proc/self/task/%d/syscall", atomic_load(&m->tid));
	file = fopen(path, "r");
	if (!file)
		return false;
	if (!fgets(text, sizeof(text), file))
		text[0] = 0;
	fclose(file);
	return text[0] >= '0' && text[0] <= '9' && strtol(text, NULL, 10) == blocking_call(m); /* else "running", or -1 */
}

static void wait_ready(struct member *members, const struct bench_args *args)
{
	uint64_t end = bench_now() + BLOCKED_NS;

	for (unsigned i = 0; i < args->threads; i++)
		while (!atomic_load(&members[i].tid) || (i >= args->running && !is_blocked(&members[i]))) {
			if (bench_now() > end)
				bench_fail("threads in system calls", ETIMEDOUT);
			usleep(1000);
		}
}

static void start_threads(struct member *members, const struct bench_args *args)
{
	if (pipe(pipe_ends) || sem_init(&semaphore, 0, 0))
		bench_fail("pipe", errno);
	atomic_store(&over, false);
	for (unsigned i = 0; i < args->threads; i++) {
		members[i] = (struct member){ .index = i };
		int err = pthread_create(&members[i].thread, NULL, i < args->running ? run : block, &members[i]);
		if (err)
			bench_fail("a thread", err);
	}
}

static void end_threads(struct member *members, const struct bench_args *args)
{
	atomic_store(&over, true);
	close(pipe_ends[1]); /* who reads finds the end */
	for (unsigned i = 0; i < args->threads; i++)
		sem_post(&semaphore);
	for (unsigned i = 0; i < args->threads; i++)
		pthread_join(members[i].thread, NULL);
	close(pipe_ends[0]);
	sem_destroy(&semaphore);
}

/* ---- a mode */

/* NULL: this system can't tell. */
static void report_one(const char *what, const struct bench_hist *hist)
{
	static const char *const names[] = { "p50", "max" };
	char key[64];

	for (unsigned i = 0; i < 2; i++) {
		snprintf(key, sizeof(key), "%s_%s_%s_us", what, mode->name, names[i]);
		if (hist)
			bench_emit_float(key, (double)bench_hist_quantile(hist, i ? 1 : 0.5) / 1e3);
		else
			bench_emit_null(key);
	}
}

static void report(const struct bench_hist *stop, const struct bench_hist *halt, const struct bench_hist *gaps)
{
	report_one("stop", stop);
	report_one("halt", halt);
	report_one("pause", gaps);
}

static void measure_stops(struct member *members, const struct bench_args *args)
{
	struct bench_hist gaps = { .count = 0 };

	memset(&stops, 0, sizeof(stops));
	memset(&halts, 0, sizeof(halts));
	start_threads(members, args);
	wait_ready(members, args);
	for (unsigned i = 0; i < args->collections; i++) {
		usleep(args->gap);
		collect();
		usleep(args->gap);
		halt();
	}
	wait_ready(members, args);
	end_threads(members, args);
	for (unsigned i = 0; i < args->running; i++)
		bench_hist_merge(&gaps, &members[i].gaps);
	report(stops.count ? &stops : NULL, halts.count ? &halts : NULL, &gaps);
}

int main(int argc, char **argv)
{
	static char options[256];
	struct bench_args args;
	struct member *members;

	bench_args_parse(&args, argc, argv);
	members = calloc(args.threads, sizeof(*members));
	if (!members || args.running > args.threads)
		bench_fail("--running", EINVAL);
	/* All cycles are asked for, so that none is missed; one that waits long for a thread is a long stop, and is not put off. */
	snprintf(options, sizeof(options), "pacing=0,stop_timeout_ms=10000%s%s", args.options ? "," : "", args.options ? args.options : "");
	args.options = options;
	bench_begin();
	sys_init(&args);
	begin_collecting();
	measure_poll();
	for (mode = modes; mode < modes + sizeof(modes) / sizeof(modes[0]); mode++) {
		if (CAN_POLL || !mode->polls)
			measure_stops(members, &args);
		else
			report(NULL, NULL, NULL);
	}
	sys_report();
	bench_end();
	return 0;
}
