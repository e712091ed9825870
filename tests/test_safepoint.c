/* SPDX-License-Identifier: MIT */
/*
 * test_safepoint.c - threads that stop at safepoints, beside such as are signalled or blocked; those that come to none; and a stop signal of the
 * program's choice.
 */
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core.h"

#define LENGTH 200u
#define PAGES ((size_t)20000)

static struct gcuffd_heap *heap;
static uint32_t quit, ready;
static int ends[2]; /* a pipe on which nothing comes until the end */

struct node {
	struct node *next;
	uint64_t number;
};

static bool goes(void) { return !__atomic_load_n(&quit, __ATOMIC_RELAXED); }

static void block_the_signal(void)
{
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, gcuffd_stop_signal());
	must_ok(pthread_sigmask(SIG_BLOCK, &set, NULL));
}

static void begin(enum gcuffd_stop_by how)
{
	must_ok(gcuffd_thread_attach());
	must_ok(gcuffd_thread_stop_by(how));
	if (how == GCUFFD_STOP_BY_SAFEPOINT)
		block_the_signal();
	__atomic_fetch_add(&ready, 1, __ATOMIC_RELAXED);
}

/* Lists are made, checked and dropped; it is on the stack alone, and safepoints are in the middle of it. */
static void *build(void *how)
{
	begin((enum gcuffd_stop_by)(uintptr_t)how);
	for (uint64_t round = 0; goes(); round++) {
		struct node *list = NULL;
		for (uint64_t i = 0; i < LENGTH; i++) {
			struct node *n = gcuffd_alloc(heap, sizeof(*n) + i * 4);
			must(n && !n->number, "errno %d", errno);
			*n = (struct node){list, round + i};
			list = n;
			gcuffd_safepoint();
		}
		for (uint64_t i = LENGTH; i-- > 0; list = list->next) {
			must(list && list->number == round + i, "%lu of round %lu", (unsigned long)i, (unsigned long)round);
			gcuffd_safepoint();
		}
		must(!list, "too long");
	}
	must_ok(gcuffd_thread_detach());
	return NULL;
}

/* Allocates no more, so waits for no cycle, and comes to no safepoint unless it has to. */
static void *compute(void *arg)
{
	enum gcuffd_stop_by how = (enum gcuffd_stop_by)(uintptr_t)arg;
	begin(how);
	struct node *n = gcuffd_alloc(heap, sizeof(*n));
	n->number = 7;
	for (volatile uint64_t sum = 0; goes(); sum += n->number)
		if (how == GCUFFD_STOP_BY_SAFEPOINT)
			gcuffd_safepoint();
	must(n->number == 7, "%lu", (unsigned long)n->number);
	must_ok(gcuffd_thread_detach());
	return NULL;
}

/* In a system call, having said so, or not. */
static void *wait_in_read(void *declared)
{
	char byte;
	begin(GCUFFD_STOP_BY_SAFEPOINT);
	struct node *n = gcuffd_alloc(heap, sizeof(*n));
	n->number = 8;
	if (declared)
		must_ok(gcuffd_blocking_enter());
	must(read(ends[0], &byte, 1) == 1, "errno %d", errno);
	if (declared)
		must_ok(gcuffd_blocking_leave());
	must(n->number == 8, "%lu", (unsigned long)n->number);
	must_ok(gcuffd_thread_detach());
	return NULL;
}

static pthread_t threads[64];
static unsigned nthreads;

static void add(unsigned n, void *(*fn)(void *), uintptr_t arg)
{
	for (unsigned i = 0; i < n; i++)
		must_ok(pthread_create(&threads[nthreads++], NULL, fn, (void *)arg));
	while (__atomic_load_n(&ready, __ATOMIC_RELAXED) < nthreads)
		sched_yield();
}

static void set_up_with(int rung, const char *options)
{
	nthreads = ready = quit = 0;
	must_ok(pipe(ends));
	heap = heap_make("%s,rung=%s", options, rung_names[rung]);
}

static void set_up(int rung) { set_up_with(rung, "verify=1,start_size=1M"); }

static void tear_down(void)
{
	__atomic_store_n(&quit, 1, __ATOMIC_RELAXED);
	for (unsigned i = 0; i < nthreads; i++)
		must(write(ends[1], "x", 1) == 1, "errno %d", errno);
	for (unsigned i = 0; i < nthreads; i++)
		must_ok(pthread_join(threads[i], NULL));
	close(ends[0]);
	close(ends[1]);
	verified(heap);
	ck_ok(gcuffd_heap_destroy(heap));
}

static void run_cycles(void)
{
	uint64_t end = test_now_ns() + check_span_ns(check_seconds() * 1000000000ull / 10);
	for (unsigned n = 0; n < 5 || test_now_ns() < end; n++)
		ck_ok(gcuffd_collect(heap));
}

/* The signal is blocked: every stop is at a safepoint, on the way of allocation or in a call that was declared. */
START_TEST(without_signals)
{
	NEED_RUNG(_i);
	set_up(_i);
	add(3, build, GCUFFD_STOP_BY_SAFEPOINT);
	add(1, compute, GCUFFD_STOP_BY_SAFEPOINT);
	add(2, wait_in_read, true);
	run_cycles();
	ck_assert_uint_eq(stats_of(heap).cycles_put_off, 0);
	tear_down();
}
END_TEST

START_TEST(mixed)
{
	NEED_RUNG(_i);
	set_up(_i);
	add(1, build, GCUFFD_STOP_BY_SAFEPOINT);
	add(1, build, GCUFFD_STOP_BY_EITHER);
	add(1, build, GCUFFD_STOP_BY_SIGNAL);
	add(1, compute, GCUFFD_STOP_BY_SIGNAL);
	add(1, compute, GCUFFD_STOP_BY_EITHER);
	add(10, wait_in_read, true);
	run_cycles();
	ck_assert_uint_eq(stats_of(heap).cycles_put_off, 0);
	tear_down();
}
END_TEST

/* Who comes to none is signalled, and not before it is late. */
START_TEST(late)
{
	set_up(GCUFFD_RUNG_AUTO);
	add(1, compute, GCUFFD_STOP_BY_EITHER);
	run_cycles();
	ck_assert_uint_eq(stats_of(heap).cycles_put_off, 0);
	ck_assert_uint_ge(stats_of(heap).last_stop2_ns, 400000);
	tear_down();
}
END_TEST

/* Nobody can stop it: the cycle is put off soon, not after the time-out, and all go on. */
START_TEST(asleep)
{
	set_up(GCUFFD_RUNG_AUTO);
	add(1, wait_in_read, false);
	usleep(20000);
	uint64_t begin_ns = test_now_ns();
	ck_assert_int_eq(gcuffd_collect(heap), -ETIMEDOUT);
	ck_assert_uint_lt(test_now_ns() - begin_ns, 10000000000ull);
	ck_assert_uint_gt(stats_of(heap).cycles_put_off, 0);
	must(strstr(core_log, ", in system call 0, stops at safepoints only") != NULL, "who is it: %s", core_log); /* read(2) */
	must(write(ends[1], "x", 1) == 1, "errno %d", errno);
	must_ok(pthread_join(threads[0], NULL));
	nthreads = 0;
	run_cycles();
	tear_down();
}
END_TEST

/* Pages that are out come back for it, and it waits for each: that is no sleep. */
static void *touch(void *pages)
{
	volatile char *p = pages;
	begin(GCUFFD_STOP_BY_SAFEPOINT);
	for (size_t i = 0; goes(); i++) {
		p[i % PAGES * 4096]++;
		if (i % (PAGES / 4) == 0)
			gcuffd_safepoint();
	}
	must_ok(gcuffd_thread_detach());
	return NULL;
}

START_TEST(waits_for_pages)
{
	NEED_RUNG(_i);
	set_up_with(_i, "cold=1,pacing=0");
	char *volatile pages = gcuffd_alloc_atomic(heap, PAGES * 4096);
	add(1, touch, (uintptr_t)pages);
	uint64_t end = test_now_ns() + check_span_ns(check_seconds() * 1000000000ull / 5);
	for (unsigned n = 0; n < 3 || test_now_ns() < end; n++) {
		ck_ok(gcuffd_cool(heap, NULL, 0, NULL));
		ck_ok(gcuffd_collect(heap));
	}
	ck_assert_uint_eq(stats_of(heap).cycles_put_off, 0);
	tear_down();
}
END_TEST

/* No stop finds a thread at the gate that a fork has shut. */
START_TEST(forks_without_membarrier)
{
	int status;
	setenv("GCUFFD_WITHOUT", "membarrier", 1);
	set_up(GCUFFD_RUNG_AUTO);
	add(1, build, GCUFFD_STOP_BY_SAFEPOINT);
	add(1, build, GCUFFD_STOP_BY_SIGNAL);
	for (unsigned i = 0; i < check_rounds(20); i++) {
		pid_t child = fork();
		if (!child)
			_exit(0);
		ck_assert_int_eq(waitpid(child, &status, 0), child);
		ck_assert_int_eq(status, 0);
	}
	tear_down();
}
END_TEST

START_TEST(bad_uses)
{
	ck_assert_int_eq(gcuffd_thread_stop_by(GCUFFD_STOP_BY_EITHER), -EINVAL);
	gcuffd_safepoint_obey(); /* of a thread that is not attached */
	set_up(GCUFFD_RUNG_AUTO);
	ck_assert_int_eq(gcuffd_thread_stop_by((enum gcuffd_stop_by)3), -EINVAL);
	ck_assert_int_eq(gcuffd_thread_stop_by((enum gcuffd_stop_by)-1), -EINVAL);
	ck_ok(gcuffd_blocking_enter());
	gcuffd_safepoint_obey();
	ck_ok(gcuffd_blocking_leave());
	gcuffd_safepoint_obey();
	tear_down();
}
END_TEST

/* ---- the signal ---- */

static void count(int sig) { (void)sig; }

START_TEST(chosen)
{
	static const int refused[] = {0, -1, 1000, SIGKILL, SIGSTOP, SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGSYS, 32, 33};
	struct sigaction act = {.sa_handler = count}, was;
	for (size_t i = 0; i < sizeof(refused) / sizeof(*refused); i++)
		ck_assert_int_eq(gcuffd_stop_signal_set(refused[i]), -EINVAL);
	int first = gcuffd_stop_signal();
	ck_assert_int_eq(first, SIGRTMAX - 1);
	ck_ok(sigaction(first, &act, NULL));
	ck_ok(gcuffd_stop_signal_set(SIGXCPU));
	ck_ok(gcuffd_stop_signal_set(SIGPWR));
	ck_assert_int_eq(gcuffd_stop_signal(), SIGPWR);
	set_up(GCUFFD_RUNG_AUTO);
	ck_assert_int_eq(gcuffd_stop_signal_set(first), -EBUSY);
	ck_ok(gcuffd_stop_signal_set(SIGPWR));
	add(2, compute, GCUFFD_STOP_BY_SIGNAL);
	run_cycles();
	ck_ok(sigaction(first, NULL, &was));
	ck_assert(was.sa_handler == count);
	tear_down();
}
END_TEST

static Suite *make_suite(void)
{
	Suite *suite = suite_create("safepoint");
	tcase_add_loop_test(test_case(suite, "without_signals"), without_signals, GCUFFD_RUNG_STOP, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(test_case(suite, "mixed"), mixed, GCUFFD_RUNG_STOP, GCUFFD_RUNG_RWP + 1);
	TCase *rest = test_case(suite, "rest");
	tcase_add_test(rest, late);
	tcase_add_test(rest, asleep);
	tcase_add_loop_test(rest, waits_for_pages, GCUFFD_RUNG_MOVE, GCUFFD_RUNG_RWP + 1);
	tcase_add_test(rest, forks_without_membarrier);
	tcase_add_test(rest, bad_uses);
	tcase_add_test(rest, chosen);
	return suite;
}

TEST_MAIN(make_suite)
