/* SPDX-License-Identifier: MIT */
/* test_fork.c - a parent with busy threads and cycles forks again and again; each child allocates, collects, verifies, and so does the parent. */
#include <dlfcn.h>
#include <sched.h>
#include <setjmp.h>
#include <sys/wait.h>

#include "core.h"
#include "fake_os.h"
#include "gc/heap.h"
#include "sys/uapi.h"

#define THREADS 3
#define FORKS 100

struct node {
	struct node *next;
	uint64_t number;
	char room[100];
};

static struct gcuffd_heap *heap, *second;
static uint32_t quit;
static struct node *volatile head; /* guard: the main thread */

static struct node *push(struct node *next)
{
	struct node *n = gcuffd_alloc(heap, sizeof(*n));
	must(n != NULL, "errno %d", errno);
	n->next = next;
	n->number = next ? next->number + 1 : 1;
	return n;
}

static void check_list(const struct node *n)
{
	for (; n; n = n->next)
		must(n->number == (n->next ? n->next->number + 1 : 1), "a node is damaged: %lu", n->number);
}

static void *mutate(void *arg)
{
	struct test_rng rng = test_rng((uintptr_t)arg);
	must_ok(gcuffd_thread_attach());
	while (!__atomic_load_n(&quit, __ATOMIC_RELAXED)) {
		struct node *list = NULL;
		for (uint64_t i = test_below(&rng, 500); i; i--)
			list = push(list);
		check_list(list);
		must(gcuffd_alloc(second, 1 + test_below(&rng, 40000)) != NULL, "errno %d", errno);
		must_ok(gcuffd_free(heap, gcuffd_alloc_atomic(heap, 1 + test_below(&rng, 100000))));
	}
	must_ok(gcuffd_thread_detach());
	return NULL;
}

static void *collect(void *unused)
{
	(void)unused;
	while (!__atomic_load_n(&quit, __ATOMIC_RELAXED)) {
		must_ok(gcuffd_collect(heap));
		must_ok(gcuffd_collect(second));
	}
	return NULL;
}

static void use_child(int rung, int depth);

static void wait_for(pid_t pid)
{
	int status;
	must(waitpid(pid, &status, 0) == pid, "errno %d", errno);
	must(WIFEXITED(status) && WEXITSTATUS(status) == 0, "the child ended with %#x", (unsigned)status);
}

/* In a child: what the parent had is there, and everything works. */
static void use_child(int rung, int depth)
{
	limit_child();
	check_list(head);
	for (int i = 0; i < (int)check_rounds(2000); i++)
		head = push(i % 1000 ? head : NULL);
	must_ok(gcuffd_collect(heap));
	check_list(head);
	must_ok(gcuffd_collect(second));
	struct gcuffd_stats s = stats_of(heap);
	must(s.verify_failures == 0 && s.rung == (uint32_t)rung, "%s", core_log);
	must(gcuffd_alloc(second, 1 << 20) != NULL, "errno %d", errno);
	if (depth) {
		pid_t pid = fork();
		must(pid >= 0, "errno %d", errno);
		if (!pid) {
			use_child(rung, depth - 1);
			_exit(0);
		}
		wait_for(pid);
	}
	if (depth % 2)
		must_ok(gcuffd_heap_destroy(second));
}

START_TEST(forks)
{
	NO_SANITIZER("its locks do not survive a fork with threads");
	NEED_RUNG(_i);
	pthread_t t[THREADS], collector;
	heap = heap_make("rung=%s,verify=1,start_size=1M", rung_names[_i]);
	ck_ok(heap_try(&second, "rung=%s,start_size=1M,hard_limit=64M", rung_names[_i]));
	quit = 0;
	for (uintptr_t i = 0; i < THREADS; i++)
		must_ok(pthread_create(&t[i], NULL, mutate, (void *)i));
	must_ok(pthread_create(&collector, NULL, collect, NULL));
	for (int i = 0; i < (int)check_rounds(FORKS); i++) {
		head = push(i % 20 ? head : NULL);
		pid_t pid = fork();
		must(pid >= 0, "errno %d", errno);
		if (!pid) {
			use_child(_i, i % 10 == 0 ? 2 : 0);
			_exit(0);
		}
		check_list(head);
		wait_for(pid);
	}
	__atomic_store_n(&quit, 1, __ATOMIC_RELAXED);
	for (int i = 0; i < THREADS; i++)
		pthread_join(t[i], NULL);
	pthread_join(collector, NULL);
	check_list(head);
	verified(heap);
	ck_ok(gcuffd_heap_destroy(second));
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

/* The thread that forks is not attached, has objects nowhere, or blocks. */
static void *fork_here(void *arg)
{
	pid_t pid = fork();
	must(pid >= 0, "errno %d", errno);
	if (!pid) {
		limit_child();
		must_ok(gcuffd_thread_attach());
		must(gcuffd_alloc(heap, 100) != NULL, "errno %d", errno);
		must_ok(gcuffd_collect(heap));
		check_list(head);
		_exit(0);
	}
	wait_for(pid);
	return arg;
}

START_TEST(fork_unattached)
{
	NO_SANITIZER("its locks do not survive a fork with threads");
	NEED_RUNG(_i);
	pthread_t t, collector;
	heap = heap_make("rung=%s,verify=1,start_size=1M", rung_names[_i]);
	ck_ok(heap_try(&second, "rung=%s", rung_names[_i]));
	quit = 0;
	must_ok(pthread_create(&collector, NULL, collect, NULL));
	for (int i = 0; i < 20; i++) {
		head = push(head);
		must_ok(pthread_create(&t, NULL, fork_here, NULL));
		pthread_join(t, NULL);
	}
	__atomic_store_n(&quit, 1, __ATOMIC_RELAXED);
	pthread_join(collector, NULL);
	check_list(head);
	verified(heap);
}
END_TEST

/*
 * fork() takes locks of the C library, which other threads hold when the gate closes. They allocate from the heaps in
 * between, so that some of them wait at the gate.
 */
static void use_malloc(struct test_rng *rng)
{
	void *p[20];
	for (int i = 0; i < 20; i++)
		p[i] = malloc(1 + test_below(rng, 300000));
	for (int i = 0; i < 20; i++)
		free(p[i]);
}

static void use_stdio(struct test_rng *rng)
{
	FILE *f = fopen("/dev/null", "w");
	must(f != NULL, "errno %d", errno);
	must(fprintf(f, "%lu\n", (unsigned long)test_rand(rng)) > 0, "errno %d", errno);
	fflush(NULL);
	fclose(f);
}

static void use_loader(struct test_rng *rng)
{
	void *module = dlopen(test_below(rng, 2) ? "libm.so.6" : "libc.so.6", RTLD_NOW);
	must(module && dlsym(module, test_below(rng, 2) ? "free" : "no such symbol") != module, "%s", dlerror());
	dlclose(module);
}

static void use_environment(struct test_rng *rng)
{
	time_t now = (time_t)test_below(rng, 1u << 30);
	struct tm tm;
	must(!setenv("TZ", test_below(rng, 2) ? "CET" : "UTC", 1), "errno %d", errno);
	tzset();
	must(localtime_r(&now, &tm) != NULL, "errno %d", errno);
}

static void *use_libc(void *use)
{
	struct test_rng rng = test_rng((uintptr_t)use);
	must_ok(gcuffd_thread_attach());
	while (!__atomic_load_n(&quit, __ATOMIC_RELAXED)) {
		struct node *list = NULL;
		for (uint64_t i = test_below(&rng, 50); i; i--)
			list = push(list);
		(*(void (**)(struct test_rng *))use)(&rng);
		check_list(list);
		must(gcuffd_alloc(second, 1 + test_below(&rng, 40000)) != NULL, "errno %d", errno);
	}
	must_ok(gcuffd_thread_detach());
	return NULL;
}

START_TEST(fork_beside_libc)
{
	NO_SANITIZER("its locks do not survive a fork with threads");
	static void (*uses[])(struct test_rng *) = {use_malloc, use_stdio, use_loader, use_environment};
	enum { USES = sizeof(uses) / sizeof(uses[0]) };
	pthread_t t[USES], collector;
	heap = heap_make("start_size=1M,verify=1");
	ck_ok(heap_try(&second, "start_size=1M,hard_limit=64M"));
	int rung = (int)stats_of(heap).rung;
	quit = 0;
	for (int i = 0; i < USES; i++)
		must_ok(pthread_create(&t[i], NULL, use_libc, &uses[i]));
	must_ok(pthread_create(&collector, NULL, collect, NULL));
	for (int i = 0; i < (int)check_rounds(FORKS); i++) {
		head = push(i % 20 ? head : NULL);
		pid_t pid = fork();
		must(pid >= 0, "errno %d", errno);
		if (!pid) {
			use_child(rung, 0);
			_exit(0);
		}
		wait_for(pid);
		check_list(head);
	}
	__atomic_store_n(&quit, 1, __ATOMIC_RELAXED);
	for (int i = 0; i < USES; i++)
		pthread_join(t[i], NULL);
	pthread_join(collector, NULL);
	verified(heap);
	ck_ok(gcuffd_heap_destroy(second));
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

/* Before any thread was started, and with no heap at all. */
START_TEST(fork_early)
{
	pid_t pid = fork();
	if (!pid) {
		heap = heap_make("");
		second = heap;
		use_child((int)stats_of(heap).rung, 0);
		_exit(0);
	}
	wait_for(pid);
	heap = second = heap_make("");
	head = push(NULL);
	pid = fork();
	if (!pid) {
		use_child((int)stats_of(heap).rung, 0);
		_exit(0);
	}
	wait_for(pid);
	ck_ok(gcuffd_collect(heap));
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

/* ---- handlers of fork() that use the heap ---- */

static bool handling;
static struct gcuffd_arena *arena;
static void *large; /* a root */

/* Runs behind the library's and jemalloc's, whose locks are taken: nobody can wait for a cycle, and there are no pages but those that blocks have. */
static void handle_prepare(void)
{
	if (!handling)
		return;
	gu_store_seqcst(&heap->trigger, 0);
	gu_store_seqcst(&heap->ceiling, 0);
	must_ok(gcuffd_free(heap, large));
	for (int i = 0; i < 2000 && gcuffd_alloc_atomic(heap, 200); i++)
		;
	must_ok(gcuffd_thread_attach());
	must_ok(gcuffd_thread_detach());
	must(gcuffd_collect(heap) == -EBUSY, "a collection in a handler of fork()");
	must(gcuffd_event_handler_set(heap, NULL, NULL) == -EBUSY, "a handler set in a handler of fork()");
	must(gcuffd_heap_save(heap, "/nowhere/image", NULL) == -EBUSY, "a save in a handler of fork()");
	must(gcuffd_arena_reset(arena) == -EBUSY && gcuffd_arena_destroy(arena) == -EBUSY, "an arena in a handler of fork()");
	must(gcuffd_heap_load("/nowhere/image", NULL, NULL, &second) == -EBUSY, "a heap loaded in a handler of fork()");
	must(gcuffd_heap_create(NULL, &second) == -EBUSY && gcuffd_heap_destroy(heap) == -EBUSY, "a heap in a handler of fork()");
	static void *filling[1000];
	size_t n = 0;
	while ((filling[n] = gcuffd_alloc(heap, 100000)))
		must(++n < 700, "beyond the limit");
	must(errno == ENOMEM, "errno %d", errno);
	while (n)
		must_ok(gcuffd_free(heap, filling[--n]));
}

/* And before the library's. */
static void handle_child(void)
{
	if (!handling)
		return;
	gu_store_seqcst(&heap->trigger, 0);
	gu_store_seqcst(&heap->ceiling, 0);
	for (int i = 0; i < 2000 && gcuffd_alloc_atomic(heap, 200); i++)
		;
}

/* Before the library's, which are registered in its constructor. */
static void register_first(void) { (void)pthread_atfork(handle_prepare, NULL, handle_child); }
__attribute__((section(".preinit_array"), used)) static void (*const preinit)(void) = register_first;

START_TEST(handlers_that_allocate)
{
	NEED_RUNG(_i);
	heap = heap_make("rung=%s,hard_limit=64M", rung_names[_i]);
	ck_ok(gcuffd_arena_create(heap, "some", &arena));
	for (int i = 0; i < 4; i++) { /* the first time before the collector's threads run */
		for (int k = 0; k < 2000; k++)
			head = push(head);
		large = gcuffd_alloc(heap, 100000);
		must(large != NULL, "errno %d", errno);
		handling = true;
		alarm((unsigned)(60 * check_slow()));
		pid_t pid = fork();
		handling = false;
		if (!pid) {
			check_list(head);
			must_ok(gcuffd_collect(heap));
			check_list(head);
			_exit(0);
		}
		wait_for(pid);
		alarm(0);
		ck_ok(gcuffd_collect(heap));
		check_list(head);
	}
	head = NULL;
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

/* ---- a handler that forks, in a thread that waits for a cycle ---- */

static uint32_t scan_held; /* 1: the next scan waits, 2: it does, 3: it may go on */
static pid_t child_of_handler; /* in the child 0 */

static long hold_a_scan(int fd, unsigned long request, void *arg)
{
	uint32_t want = 1;
	if (request == GU_PAGEMAP_SCAN && gu_cas_seqcst(&scan_held, &want, 2))
		while (gu_load_seqcst(&scan_held) == 2)
			usleep(100);
	return gu_os_linux.ioctl(fd, request, arg);
}

static void fork_in_handler(int sig)
{
	(void)sig;
	pid_t pid = fork(); /* waits for the cycle's end */
	must(pid >= 0, "errno %d", errno);
	gu_store_seqcst(&child_of_handler, pid);
}

/* In both processes it comes back to where it waited. */
static void *wait_for_a_cycle(void *unused)
{
	must_ok(gcuffd_thread_attach());
	must_ok(gcuffd_collect(heap));
	if (child_of_handler) {
		must_ok(gcuffd_thread_detach());
		return unused;
	}
	limit_child();
	must(gu_load_seqcst(&heap->stalled) == 0, "%u are counted as waiting", heap->stalled);
	check_list(head);
	must_ok(gcuffd_collect(heap));
	check_list(head);
	must(gu_load_seqcst(&heap->stalled) == 0, "%u are counted as waiting", heap->stalled);
	_exit(0);
}

/* A heap with a list, whose cycles wait in a scan when scan_held says so; handler: of SIGUSR1. */
static void make_held_up(void (*handler)(int))
{
	heap = heap_make("verify=1");
	for (int i = 0; i < 100; i++)
		head = push(head);
	ck_ok(gcuffd_collect(heap));
	signal(SIGUSR1, handler);
	fake_install();
	fake_os.ioctl = hold_a_scan;
}

START_TEST(handler_that_forks)
{
	pthread_t t;
	NO_SANITIZER("its locks do not survive a fork with threads");
	NEED_RUNG(GCUFFD_RUNG_ASYNC);
	make_held_up(fork_in_handler);
	scan_held = 1;
	child_of_handler = -1;
	must_ok(pthread_create(&t, NULL, wait_for_a_cycle, NULL));
	while (gu_load_seqcst(&scan_held) != 2 || gu_load_seqcst(&heap->stalled) != 1)
		usleep(100);
	must_ok(pthread_kill(t, SIGUSR1));
	usleep(20000); /* by then it is in the handler */
	gu_store_seqcst(&scan_held, 3);
	must_ok(pthread_join(t, NULL));
	ck_assert_int_gt(child_of_handler, 0);
	wait_for(child_of_handler);
	ck_assert_uint_eq(heap->stalled, 0);
	check_list(head);
	fake_remove();
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

/* ---- a handler that leaves the wait for a cycle by a jump ---- */

static sigjmp_buf before_the_wait;

static void jump(int sig)
{
	(void)sig;
	siglongjmp(before_the_wait, 1);
}

static void *jump_out(void *unused)
{
	must_ok(gcuffd_thread_attach());
	for (volatile int i = 0; i < 5; i++) {
		gu_store_seqcst(&scan_held, 1);
		if (!sigsetjmp(before_the_wait, 1))
			must_ok(gcuffd_collect(heap));
		while (gu_load_seqcst(&scan_held) != 3)
			usleep(100);
		must_ok(gcuffd_collect(heap)); /* where the frames of the other were */
		pid_t child = fork();
		if (!child) {
			limit_child();
			must_ok(gcuffd_collect(heap));
			check_list(head);
			_exit(0);
		}
		wait_for(child);
	}
	must_ok(gcuffd_thread_detach());
	return unused;
}

/* Nothing leads from one wait to another: what this leaves behind on the stack is read by nobody. */
START_TEST(handler_that_jumps)
{
	pthread_t t;
	NO_SANITIZER("its locks do not survive a fork with threads");
	NEED_RUNG(GCUFFD_RUNG_ASYNC);
	make_held_up(jump);
	must_ok(pthread_create(&t, NULL, jump_out, NULL));
	for (int i = 0; i < 5; i++) {
		while (gu_load_seqcst(&scan_held) != 2)
			usleep(100);
		must_ok(pthread_kill(t, SIGUSR1));
		usleep(20000); /* by then it has jumped */
		gu_store_seqcst(&scan_held, 3);
	}
	must_ok(pthread_join(t, NULL));
	check_list(head);
	fake_remove();
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

static Suite *make_suite(void)
{
	Suite *suite = suite_create("fork");
	tcase_add_loop_test(test_case(suite, "forks"), forks, GCUFFD_RUNG_STOP, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(test_case(suite, "fork_unattached"), fork_unattached, GCUFFD_RUNG_STOP, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(test_case(suite, "handlers_that_allocate"), handlers_that_allocate, GCUFFD_RUNG_STOP, GCUFFD_RUNG_RWP + 1);
	tcase_add_test(test_case(suite, "fork_beside_libc"), fork_beside_libc);
	tcase_add_test(test_case(suite, "fork_early"), fork_early);
	tcase_add_test(test_case(suite, "handler_that_forks"), handler_that_forks);
	tcase_add_test(test_case(suite, "handler_that_jumps"), handler_that_jumps);
	return suite;
}

TEST_MAIN(make_suite)
