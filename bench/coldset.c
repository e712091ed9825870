/* SPDX-License-Identifier: MIT */
/*
 * coldset.c - a graph of which a tenth is in use and the rest goes cold, collected in full while the hot tenth is worked on: how much stays
 * resident, how long a collection takes, what it brings back, and what the mutator still gets done. Half-way through the collections a quarter of
 * the cold is dropped; at the end everything that lives is walked and compared with what was built. What is wrong fails the program.
 *
 * The mutator's thread runs mutate(); the builder's thread, build(), so that no pointer to what will be dropped is left on a
 * stack; all else runs in the main thread, which holds no pointer to a node but in roots.
 */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "graph.h"
#include "observe.h"
#include "sys.h"

#define SAMPLE_NS 250000000u
#define TELL_NS 200000000u
#define QUIET_SAMPLES 12
#define STRAY_NODES 16 /* that a register or stack may keep alive by accident */
#define WRITE_EVERY 4u
#define PENDANT_EVERY 16u
#define BATCH 256u
#define STACK ((size_t)1 << 20)
#define STACK_USED ((size_t)64 << 10)

static struct graph graph;
static struct graph_node *roots[GRAPH_SECTIONS];
static struct observer observer;
static struct bench_args args;
static bool wrong;

static struct {
	pthread_t thread;
	_Atomic uint64_t ops;
	_Atomic uint64_t rate;     /* 0: as fast as it can */
	_Atomic size_t pendants;   /* that it may use: the first ones */
	_Atomic bool quit;
	uint64_t writes;           /* read when the thread has ended */
} mutator;

static void complain(const char *format, ...)
{
	va_list list;

	va_start(list, format);
	fputs("coldset: ", stderr);
	vfprintf(stderr, format, list);
	fputc('\n', stderr);
	va_end(list);
	wrong = true;
}

/* Of the thread that calls. */
static void lock_stack(void)
{
	char *here = __builtin_frame_address(0);

	if (args.steps && mlock(here - STACK_USED, STACK_USED))
		bench_fail("mlock", errno);
}

/* ---- the system */

#if defined(BENCH_SYS_GCUFFD)

#define COUNTS_LIVE true
#define KEEPS_STRAYS false
#define LIVE_SLACK 0u
static struct gcuffd_arena *arena;

static void open_system(void)
{
	static char text[256];

	/* Only what is asked for is collected: nothing points to the nodes while they are made. */
	snprintf(text, sizeof(text), "cold=1,pacing=0,resident_target=%zuM,store_memory=%zuM,store_file=%zuM,rung=%s,verify=%d", args.target >> 20,
		 args.store_memory >> 20, args.store_file >> 20, args.rung ? args.rung : "auto", args.verify);
	args.options = text;
	sys_init(&args);
	int err = gcuffd_arena_create(sys_heap, "coldset", &arena);
	if (!err)
		err = gcuffd_arena_set_hot(arena, 1);
	if (!err)
		err = gcuffd_root_add(sys_heap, roots, sizeof(roots));
	if (err)
		bench_fail("the heap", -err);
}

static void *allocate(size_t size)
{
	void *object = gcuffd_arena_alloc(arena, size, 0, GCUFFD_CONSERVATIVE);

	if (!object)
		bench_out_of_memory();
	return object;
}

static void begin_collecting(void) {}
static void let_cool(void) { gcuffd_arena_set_hot(arena, 0); }


static void enter_thread(void)
{
	int err = gcuffd_thread_attach();

	if (err)
		bench_fail("gcuffd_thread_attach", -err);
}

static void leave_thread(void) { gcuffd_thread_detach(); }

static void collect(void)
{
	int err = gcuffd_collect(sys_heap);

	if (err)
		bench_fail("gcuffd_collect", -err);
}

static uint64_t live_bytes(void) { return sys_stats().live_bytes; }
static uint64_t collector_ns(void) { return sys_stats().gc_cpu_ns; }

static struct gcuffd_cold_stats cold_stats(void)
{
	struct gcuffd_cold_stats s = { .size = sizeof(s) };
	int err = gcuffd_cold_stats(sys_heap, &s);

	if (err)
		bench_fail("gcuffd_cold_stats", -err);
	return s;
}

static uint64_t out_pages(void) { return cold_stats().out_pages; }

/* Where no page can be taken out, none has to come back. */
static void warm_all(void)
{
	gcuffd_arena_set_hot(arena, 1);
	int err = gcuffd_warm(sys_heap, NULL, 0);
	if (err && (err != -EOPNOTSUPP || out_pages()))
		bench_fail("gcuffd_warm", -err);
}

static void report_memory(void)
{
	struct gcuffd_cold_stats s = cold_stats();
	struct gcuffd_stats all = sys_stats();

	bench_emit_int("accounted_kib", all.resident_bytes >> 10);
	bench_emit_int("metadata_kib", all.metadata_bytes >> 10);
	bench_emit_int("summary_kib", s.summary_bytes >> 10);
	bench_emit_float("summary_bytes_per_page", s.out_pages ? (double)s.summary_bytes / (double)s.out_pages : 0);
	bench_emit_int("store_memory_kib", s.store_memory_bytes >> 10);
	bench_emit_int("store_file_kib", s.store_file_bytes >> 10);
	bench_emit_int("out_pages", s.out_pages);
	bench_emit_int("evicted_pages", s.evicted_pages);
	bench_emit_int("bounced_pages", s.bounced_pages);
	bench_emit_int("busy_pages", s.busy_pages);
}

/* What the collections, those between before and now, brought back. */
static struct gcuffd_cold_stats before;
static void begin_counting(void) { before = cold_stats(); }

/* Counts that rise one after another may be found so. */
static uint64_t rest_of(uint64_t all, uint64_t part) { return all > part ? all - part : 0; }

static void report_causes(const struct gcuffd_cold_stats *s)
{
	uint64_t collector = s->collector_pages - before.collector_pages, touched = s->touched_pages - before.touched_pages;
	uint64_t refaulted = s->refaulted_pages - before.refaulted_pages, ahead = s->ahead_pages - before.ahead_pages;

	bench_emit_int("restored_pages", collector);
	bench_emit_int("touched_pages", touched);
	bench_emit_int("touched_store_pages", refaulted);
	bench_emit_int("touched_park_pages", rest_of(touched, refaulted));
	bench_emit_int("ahead_pages", ahead);
	bench_emit_int("other_restored_pages", rest_of(s->restored_pages - before.restored_pages, collector + touched + ahead));
}

static void report_restored(void)
{
	struct gcuffd_cold_stats s = cold_stats();

	report_causes(&s);
	bench_emit_int("dropped_pages", s.dropped_pages - before.dropped_pages);
	if (s.collector_pages != before.collector_pages)
		complain("collections brought back %llu pages", (unsigned long long)(s.collector_pages - before.collector_pages));
	if (sys_stats().verify_failures)
		complain("the verifier found %llu failures", (unsigned long long)sys_stats().verify_failures);
	if (s.poisoned_pages)
		complain("%llu pages could not be brought back", (unsigned long long)s.poisoned_pages);
}

#elif defined(BENCH_SYS_LIBGC)

#define COUNTS_LIVE true
#define KEEPS_STRAYS true
#define LIVE_SLACK (graph.nodes * sizeof(struct graph_node) / 50 + (4u << 20))

/*
 * Pointers to nodes are to their bases, and a byte more for each would make a node 80 bytes. Where a limit is near, what the kernel touches for us
 * stays in place: it can't wait for memory, and gives up with SIGSEGV or EFAULT.
 */
static void open_system(void)
{
	args.base_only = true;
	if (args.steps && mlockall(MCL_CURRENT | MCL_ONFAULT))
		bench_fail("mlockall", errno);
	sys_init(&args);
	GC_disable();
}

static void *allocate(size_t size) { return sys_alloc(size); }
static void begin_collecting(void) { GC_enable(); }
static void let_cool(void) {}
static void warm_all(void) {}

/* pthread_create() is libgc's. */
static void enter_thread(void) { lock_stack(); }

static void leave_thread(void) {}
static void collect(void) { GC_gcollect(); }

/* To the block: what is freed in a block that has something alive is swept later. */
static uint64_t live_bytes(void) { return GC_get_heap_size() - GC_get_free_bytes(); }

static uint64_t collector_ns(void) { return bench_clock(CLOCK_PROCESS_CPUTIME_ID); } /* nobody else runs in a collection */
static uint64_t out_pages(void) { return bench_status_kib("VmSwap:") >> 2; }
static void report_memory(void) { bench_emit_int("out_pages", out_pages()); }
static void begin_counting(void) {}
static void report_restored(void) {}

#else

#define COUNTS_LIVE false
#define KEEPS_STRAYS true
#define LIVE_SLACK 0u

static void open_system(void) { sys_init(&args); }
static void *allocate(size_t size) { return sys_alloc(size); }
static void begin_collecting(void) {}
static void let_cool(void) {}
static void warm_all(void) {}
static void enter_thread(void) {}
static void leave_thread(void) {}
static void collect(void) {}
static uint64_t live_bytes(void) { return 0; }
static uint64_t collector_ns(void) { return 0; }
static uint64_t out_pages(void) { return 0; }
static void report_memory(void) {}
static void begin_counting(void) {}
static void report_restored(void) {}

#endif

/* ---- the mutator */

static void wait_for_turn(uint64_t start, uint64_t done)
{
	uint64_t rate = atomic_load(&mutator.rate);
	struct timespec ts = { 0, 0 };

	if (!rate)
		return;
	uint64_t due = start + done * 1000000000u / rate, now = bench_now();
	if (now >= due)
		return;
	ts.tv_sec = (time_t)((due - now) / 1000000000u);
	ts.tv_nsec = (long)((due - now) % 1000000000u);
	nanosleep(&ts, NULL);
}

/* A random walk over the hot nodes, through a pendant now and then. */
static struct graph_node *work(struct graph_node *at, uint64_t *state, uint64_t *writes)
{
	size_t pendants = atomic_load(&mutator.pendants);

	for (unsigned i = 0; i < BATCH; i++) {
		uint64_t r = bench_random(state);
		bool writes_it = r % WRITE_EVERY == 0;

		at = at->edge[r >> 63];
		if ((r >> 8) % PENDANT_EVERY == 0) {
			size_t n = ((r >> 32) * pendants) >> 32;

			at = graph_pendant(&graph, n);
			writes_it &= n < graph.owned;
		}
		if (writes_it) {
			at->count++;
			++*writes;
		}
	}
	return at;
}

static void *mutate(void *arg)
{
	uint64_t state = args.seed, start = bench_now(), done = 0, rate = 0, writes = 0;

	enter_thread();
	for (struct graph_node *at = roots[GRAPH_HOT]; !atomic_load(&mutator.quit);) {
		if (rate != atomic_load(&mutator.rate)) {
			rate = atomic_load(&mutator.rate);
			start = bench_now();
			done = 0;
		}
		at = work(at, &state, &writes);
		done += BATCH;
		atomic_fetch_add(&mutator.ops, BATCH);
		wait_for_turn(start, done);
	}
	mutator.writes = writes;
	leave_thread();
	return arg;
}

static void start_thread(pthread_t *thread, const pthread_attr_t *attr, void *(*run)(void *))
{
	int err = pthread_create(thread, attr, run, NULL);

	if (err)
		bench_fail("a thread", err);
}

/* On a stack that nobody has after it. */
static void run_apart(void *(*run)(void *))
{
	void *stack = mmap(NULL, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	pthread_attr_t attr;
	pthread_t thread;

	if (stack == MAP_FAILED || pthread_attr_init(&attr) || pthread_attr_setstack(&attr, stack, STACK))
		bench_fail("a stack", errno);
	start_thread(&thread, &attr, run);
	pthread_join(thread, NULL);
	pthread_attr_destroy(&attr);
	munmap(stack, STACK);
}

static void start_mutator(void)
{
	atomic_store(&mutator.pendants, graph.first[GRAPH_KEPT] - graph.first[GRAPH_PENDANTS]);
	atomic_store(&mutator.rate, args.rate);
	start_thread(&mutator.thread, NULL, mutate);
}

static void stop_mutator(void)
{
	atomic_store(&mutator.quit, true);
	pthread_join(mutator.thread, NULL);
}

/* ---- phases */

static void sleep_ns(uint64_t ns)
{
	struct timespec ts = { (time_t)(ns / 1000000000u), (long)(ns % 1000000000u) };

	nanosleep(&ts, NULL);
}

/* Whoever runs this as a child is told how far it is, and may change its surroundings before he answers. */
static void announce(const char *step)
{
	if (!args.steps)
		return;
	printf("step: %s\n", step);
	fflush(stdout);
	if (getchar() == EOF)
		bench_fail("steps: nobody answers", 0);
}

/* Once that is shared with it, a page is one of those that a child had. */
static void have_child(pid_t *child)
{
	if (!args.fork)
		return;
	fflush(stdout);
	*child = fork();
	if (*child < 0)
		bench_fail("fork", errno);
	if (*child == 0)
		for (;;)
			pause();
}

static void end_child(pid_t child)
{
	if (child <= 0)
		return;
	kill(child, SIGKILL);
	waitpid(child, NULL, 0);
}

static void *build(void *arg)
{
	pid_t child = 0;

	enter_thread();
	graph_allocate(&graph, args.seed, args.live, allocate);
	have_child(&child);
	graph_fill(&graph, roots);
	graph_forget(&graph);
	end_child(child);
	leave_thread();
	return arg;
}

static void build_graph(void)
{
	uint64_t start = bench_now();

	run_apart(build);
	observe_range(&observer, graph.low, graph.pages, graph.kinds, GRAPH_COLD_KINDS);
	bench_emit_float("build_s", (double)(bench_now() - start) / 1e9);
	bench_emit_int("nodes", graph.nodes);
}

/* While everything is in place. */
static void collect_first(void)
{
	uint64_t start = bench_now();

	begin_collecting();
	collect();
	bench_emit_float("first_gc_s", (double)(bench_now() - start) / 1e9);
}

static bool differ(uint64_t a, uint64_t b, uint64_t per_mille)
{
	return (a > b ? a - b : b - a) * 1000 > per_mille * b;
}

/* Until neither what is resident nor what is out changes much any more. */
static void let_settle(void)
{
	uint64_t start = bench_now(), end = start + (uint64_t)(args.settle * 1e9), since = 0, rss = 0, out = 0;
	unsigned quiet = 0;

	for (; quiet < QUIET_SAMPLES && bench_now() < end; quiet++) {
		uint64_t rss_now = bench_status_kib("VmRSS:"), out_now = out_pages();

		if (differ(rss_now, rss, 10) || differ(out_now, out, 5)) {
			quiet = 0;
			since = bench_now();
			rss = rss_now;
			out = out_now;
		}
		sleep_ns(SAMPLE_NS);
	}
	bench_emit_float("settle_s", (double)(since - start) / 1e9);
	bench_emit_int("settled", quiet == QUIET_SAMPLES);
}

static void report_size(const char *when)
{
	struct observe_answer a = observe_look(&observer);

	printf("rss_%skib: %zu\n", when, bench_status_kib("VmRSS:"));
	printf("hot_%skib: %llu\n", when, (unsigned long long)a.present[0] << 2);
	printf("cold_%skib: %llu\n", when, (unsigned long long)a.present[1] << 2);
	printf("page_tables_%skib: %zu\n", when, bench_status_kib("VmPTE:"));
}

/* In collections, and between them. */
static struct {
	_Atomic uint64_t ops_in, ns_in;
	_Atomic uint64_t since, ops_at; /* of the one that is under way; since 0: none is */
	uint64_t ns_most, cpu_in, ops_between, ns_between;
} rates;

static double ops_per_s(uint64_t ops, uint64_t ns) { return ns ? (double)ops * 1e9 / (double)ns : 0; }

/* Whoever runs this as a child may end it in the middle of a collection: that counts, too. */
static void *tell_ops(void *arg)
{
	for (lock_stack();; sleep_ns(TELL_NS)) {
		uint64_t since = rates.since, ops = rates.ops_in, ns = rates.ns_in;

		if (!since)
			continue;
		bench_emit_float("hot_ops_so_far_per_s", ops_per_s(ops + mutator.ops - rates.ops_at, ns + bench_now() - since));
		fflush(stdout);
	}
	return arg;
}

static void collect_once(unsigned number)
{
	uint64_t ops = mutator.ops, cpu = collector_ns(), start = bench_now();

	rates.ops_at = ops;
	rates.since = start;
	collect();
	rates.since = 0;
	uint64_t ns = bench_now() - start;
	ops = mutator.ops - ops;
	rates.cpu_in += collector_ns() - cpu;
	rates.ops_in += ops;
	rates.ns_in += ns;
	rates.ns_most = ns > rates.ns_most ? ns : rates.ns_most;
	printf("collection_%u_s: %.3f\ncollection_%u_ops: %llu\n", number, (double)ns / 1e9, number, (unsigned long long)ops);
	fflush(stdout);
}

static void rest(double seconds)
{
	uint64_t ops = mutator.ops, start = bench_now();

	sleep_ns((uint64_t)(seconds * 1e9));
	rates.ops_between += mutator.ops - ops;
	rates.ns_between += bench_now() - start;
}

/* Nobody but a root knows it, and the mutator only some pendants, which it has let go of when this returns. */
static void drop(void)
{
	atomic_store(&mutator.pendants, graph.owned);
	for (uint64_t ops = atomic_load(&mutator.ops); atomic_load(&mutator.ops) < ops + 4 * BATCH;)
		sleep_ns(1000000);
	roots[GRAPH_DROPPED] = NULL;
}

static void check_live(const char *when, uint64_t nodes)
{
	uint64_t live = live_bytes(), want = nodes * sizeof(struct graph_node);

	if (!COUNTS_LIVE)
		return;
	printf("live_%s_kib: %llu\n", when, (unsigned long long)live >> 10);
	/* A stray word may keep all that was dropped: libgc's to report, libgcuffd's to be without. */
	if (live < want || (!KEEPS_STRAYS && live > want + STRAY_NODES * sizeof(struct graph_node) + LIVE_SLACK))
		complain("live %s dropping: %llu bytes, not %llu", when, (unsigned long long)live, (unsigned long long)want);
}

/* In the first half of the collections nothing is freed, by the one after dropping all of it. */
static void collect_all(void)
{
	begin_counting();
	atomic_store(&mutator.rate, 0);
	for (unsigned i = 0; i < args.collections; i++) {
		if (i == args.collections / 2)
			drop();
		rest(args.seconds / args.collections);
		collect_once(i + 1);
		if (i + 1 == args.collections / 2)
			check_live("before", graph.all.nodes);
		else if (i == args.collections / 2)
			check_live("after", graph.live.nodes);
	}
	bench_emit_float("hot_ops_between_per_s", ops_per_s(rates.ops_between, rates.ns_between));
	bench_emit_int("collections_peak_kib", bench_status_kib("VmHWM:"));
	if (!COUNTS_LIVE)
		return;
	bench_emit_float("full_gc_s", (double)rates.ns_in / args.collections / 1e9);
	bench_emit_float("full_gc_max_s", (double)rates.ns_most / 1e9);
	bench_emit_float("full_gc_cpu_s", (double)rates.cpu_in / args.collections / 1e9);
	bench_emit_float("hot_ops_per_s", ops_per_s(rates.ops_in, rates.ns_in));
	report_restored();
}

static void check_returned(void)
{
	struct observe_answer a = observe_look(&observer);

	bench_emit_int("returned_pages", a.returned[1]);
	bench_emit_int("returned_hot_pages", a.returned[0]);
#ifdef BENCH_SYS_GCUFFD
	if (a.returned[1])
		complain("of cold pages that were out, %llu are in place after the collections; %llu pages came ahead of touches", (unsigned long long)a.returned[1],
			 (unsigned long long)(cold_stats().ahead_pages - before.ahead_pages));
#endif
}

static void *walk(void *arg)
{
	uint64_t start = bench_now();

	enter_thread();
	struct graph_sum sum = graph_walk(&graph, roots);
	leave_thread();
	bench_emit_float("walk_s", (double)(bench_now() - start) / 1e9);
	bench_emit_hex("checksum", sum.checksum);
	if (sum.nodes != graph.live.nodes || sum.checksum != graph.live.checksum)
		complain("%llu nodes of sum %016llx are alive, not %llu of sum %016llx", (unsigned long long)sum.nodes, (unsigned long long)sum.checksum,
			 (unsigned long long)graph.live.nodes, (unsigned long long)graph.live.checksum);
	if (sum.count != mutator.writes)
		complain("the mutator wrote %llu times, the nodes have %llu of that", (unsigned long long)mutator.writes, (unsigned long long)sum.count);
	return arg;
}

static void walk_all(void)
{
	uint64_t start = bench_now();

	warm_all();
	bench_emit_float("warm_s", (double)(bench_now() - start) / 1e9);
	run_apart(walk);
}

int main(int argc, char **argv)
{
	bench_args_parse(&args, argc, argv);
	bench_begin();
	observe_begin(&observer);
	open_system();
	build_graph();
	collect_first();
	announce("built");
	let_cool();
	start_mutator();
	let_settle();
	report_size("");
	report_memory();
	bench_emit_int("target_kib", args.target >> 10);
	fflush(stdout);
	announce("settled");
	bench_forget_peak();
	if (args.steps)
		bench_start_apart(tell_ops);
	collect_all();
	check_returned();
	report_size("after_");
	stop_mutator();
	announce("collected");
	walk_all();
	observe_end(&observer);
	sys_report();
	bench_end();
	return wrong;
}
