/* SPDX-License-Identifier: MIT */
/*
 * prog_preload_threads SECONDS [FLAG...] - threads that allocate, keep checked lists of what they allocate in
 * places of all kinds, drop most of it, end and are replaced. Ends with 1 when a list was harmed.
 *
 * Flags: fork - others fork meanwhile, children allocate and execute true; signals - workers block
 * every signal and handlers are tried for all, and a timer interrupts the first thread, whose handler allocates and frees; raw - one thread made by clone(2), unknown to anybody; exec - at the end
 * the program executes true, threads and all.
 */
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <threads.h>
#include <time.h>
#include <unistd.h>

#define LENGTH 2000
#define WORKERS 4

struct node {
	struct node *next;
	uint64_t check;
	char *text;
};

static double deadline;
static int stop_signals, forks;
static unsigned bad, lists, children;

static double now(void)
{
	struct timespec ts;
	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double)ts.tv_sec + (double)ts.tv_nsec * 1e-9;
}

static struct node *build(uint64_t seed)
{
	struct node *list = NULL;
	for (uint64_t i = 0; i < LENGTH; i++) {
		struct node *n = malloc(sizeof(*n) + i % 64);
		n->next = list;
		n->check = seed ^ i;
		n->text = malloc(24 + i % 200);
		snprintf(n->text, 24, "%lu", (unsigned long)(seed ^ i));
		list = n;
	}
	return list;
}

static void check(const char *where, const struct node *list, uint64_t seed)
{
	uint64_t i = LENGTH;
	while (list && list->check == (seed ^ (i - 1)) && strtoull(list->text, NULL, 10) == list->check) {
		list = list->next;
		i--;
	}
	if (i) {
		fprintf(stderr, "list %s: harmed at %lu of %d\n", where, (unsigned long)(LENGTH - i), LENGTH);
		__atomic_fetch_add(&bad, 1, __ATOMIC_RELAXED);
	}
	__atomic_fetch_add(&lists, 1, __ATOMIC_RELAXED);
}

static __thread struct node *in_tls;
static struct node *in_data[WORKERS];
static pthread_key_t key;

/* One list each: in TLS, in a thread-specific key, in a mapping, on the heap, in static data, on the stack. */
static void keep_lists(unsigned worker, uint64_t seed)
{
	struct node **mapped = mmap(NULL, 65536, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct node **on_heap = malloc(16);
	struct node *volatile on_stack = build(seed + 5);
	in_tls = build(seed);
	pthread_setspecific(key, build(seed + 1));
	mapped[4000] = build(seed + 2);
	on_heap[1] = build(seed + 3);
	in_data[worker] = build(seed + 4);
	for (int i = 0; i < 4; i++)
		build(seed + 6);
	check("TLS", in_tls, seed);
	check("key", pthread_getspecific(key), seed + 1);
	check("mapping", mapped[4000], seed + 2);
	check("heap", on_heap[1], seed + 3);
	check("data", in_data[worker], seed + 4);
	check("stack", on_stack, seed + 5);
	munmap(mapped, 65536);
	free(on_heap);
}

static void fork_child(uint64_t seed)
{
	char *const argv[] = {(char *)"true", NULL};
	pid_t pid = fork();
	if (!pid) {
		check("child", build(seed), seed);
		if (bad)
			_exit(9);
		execvp(argv[0], argv);
		_exit(8);
	}
	int status = 0;
	if (pid < 0 || waitpid(pid, &status, 0) != pid || status) {
		fprintf(stderr, "child %d: status %#x\n", (int)pid, (unsigned)status);
		__atomic_fetch_add(&bad, 1, __ATOMIC_RELAXED);
	}
	__atomic_fetch_add(&children, 1, __ATOMIC_RELAXED);
}

static void block_all(void)
{
	sigset_t set;
	sigfillset(&set);
	pthread_sigmask(SIG_SETMASK, &set, NULL);
}

static void *work(void *arg)
{
	unsigned worker = (unsigned)(uintptr_t)arg;
	uint64_t seed = (uint64_t)(now() * 1e9);
	if (stop_signals)
		block_all();
	for (int i = 0; i < 6 && now() < deadline; i++) {
		keep_lists(worker, seed + (uint64_t)i * 100);
		if (forks && i == 3)
			fork_child(seed);
	}
	return NULL;
}

static int work_c11(void *arg)
{
	work(arg);
	return 0;
}

/* ---- a thread that the C library does not know: it may use no TLS of its own, and so no malloc ---- */

static struct node *raw_list;
static int raw_ready, raw_over;

static int raw_work(void *arg)
{
	struct node *volatile mine = raw_list; /* from here on only this stack holds it */
	raw_list = NULL;
	(void)arg;
	__atomic_store_n(&raw_ready, 1, __ATOMIC_RELEASE);
	while (!__atomic_load_n(&raw_over, __ATOMIC_ACQUIRE))
		syscall(SYS_sched_yield);
	raw_list = mine;
	__atomic_store_n(&raw_over, 2, __ATOMIC_RELEASE);
	syscall(SYS_exit, 0);
	return 0;
}

static void start_raw(void)
{
	static char tls[32768] __attribute__((aligned(64)));
	char *stack = mmap(NULL, 65536, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	raw_list = build(12345);
	*(void **)(void *)(tls + 16384) = tls + 16384; /* a thread pointer of its own, so that errno and such are not shared */
	clone(raw_work, stack + 65536, CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM | CLONE_SETTLS,
	      NULL, NULL, tls + 16384, NULL);
	while (!__atomic_load_n(&raw_ready, __ATOMIC_ACQUIRE))
		sched_yield();
}

static void end_raw(void)
{
	__atomic_store_n(&raw_over, 1, __ATOMIC_RELEASE);
	while (__atomic_load_n(&raw_over, __ATOMIC_ACQUIRE) != 2)
		sched_yield();
	check("raw", raw_list, 12345);
}

/* ---- a handler that allocates: of the first thread, mostly while others do ---- */

#define RING 64

static uint64_t *ring[RING]; /* the handler's */
static unsigned alarms;

static void exchange(unsigned i)
{
	uint64_t *old = ring[i % RING], *p = malloc(16 + i % 500);
	if (!p || (old && (old[0] != i - RING || old[1] != ~old[0])))
		__atomic_fetch_add(&bad, 1, __ATOMIC_RELAXED);
	free(old);
	if (p) {
		p[0] = i;
		p[1] = ~p[0];
	}
	ring[i % RING] = p;
}

static void on_any(int sig)
{
	int saved = errno;
	if (sig == SIGALRM)
		exchange(alarms++);
	errno = saved;
}

static void start_alarms(void)
{
	struct itimerval often = {{0, 500}, {0, 500}};
	for (int sig = 1; sig < 65; sig++)
		if (sig != SIGCHLD)
			signal(sig, on_any);
	setitimer(ITIMER_REAL, &often, NULL);
}

static void end_alarms(void)
{
	signal(SIGALRM, SIG_IGN);
	if (!alarms) {
		fprintf(stderr, "no handler has run\n");
		bad++;
	}
}

static int has(int argc, char **argv, const char *flag)
{
	for (int i = 2; i < argc; i++)
		if (!strcmp(argv[i], flag))
			return 1;
	return 0;
}

static void run_workers(void)
{
	pthread_t threads[WORKERS];
	thrd_t c11;
	for (uintptr_t i = 1; i < WORKERS; i++)
		pthread_create(&threads[i], NULL, work, (void *)i);
	thrd_create(&c11, work_c11, NULL);
	for (int i = 1; i < WORKERS; i++)
		pthread_join(threads[i], NULL);
	thrd_join(c11, NULL);
}

int main(int argc, char **argv)
{
	deadline = now() + (argc > 1 ? atof(argv[1]) : 2);
	stop_signals = has(argc, argv, "signals");
	forks = has(argc, argv, "fork");
	int raw = has(argc, argv, "raw");
	pthread_key_create(&key, NULL);
	if (stop_signals)
		start_alarms();
	if (raw)
		start_raw();
	while (now() < deadline && !bad)
		run_workers();
	if (raw)
		end_raw();
	if (stop_signals)
		end_alarms();
	printf("%u lists, %u children, %u bad\n", lists, children, bad);
	fflush(stdout);
	if (!bad && has(argc, argv, "exec"))
		execlp("true", "true", (char *)NULL);
	return bad != 0;
}
