/* SPDX-License-Identifier: MIT */
/*
 * test_step.c - the signal of a stop that comes at each instruction of an allocation (.inv.section.handler), by a tracer: a
 * cycle is held when it is about to send it, the thread makes so many steps, and the signal is sent. Then the object must be
 * whole: zero, known to the heap, alive after the cycle, and nobody else's. And at each instruction of switches to a registered stack and back
 * (.inv.stack.switch): then what each of the stacks alone points to must be alive.
 *
 * A process of its own is traced: its first thread allocates and another one collects, untraced.
 */
#include <sched.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>

#include "coroutine.h"
#include "fake_os.h"
#include "gc/mutator.h"
#include "gc/stop.h"

#define SIZE 48u
#define LARGE 40000u
#define KEPT 128u
#define SHORT 200u /* instructions */
#define ALL 400u

enum call { FAST, REFILL, TYPED, LARGE_ONE, SWITCH, SWITCH_UCONTEXT, CALLS };
static const char *const call_names[] = {"fast path", "next group", "typed", "large", "switches by hand", "switches of the C library"};

/* Between the tracer and both threads. */
struct shared {
	uint32_t wanted, done;      /* cycles */
	uint32_t asked, go, sent;   /* the signal: it is about to be sent, it may be, it was */
	uint32_t quit;
	uintptr_t section;          /* where the thread counts its sections */
};

static struct shared *shared;
static struct gcuffd_heap *heap;
static struct gcuffd_type *type;
static uint64_t *volatile kept[KEPT]; /* a data segment */
static pid_t allocator;
static uint32_t held_phase;

/* ---- the traced process ---- */

static int hold_signal(pid_t pid, pid_t tid, int sig)
{
	bool held = sig == gcuffd_stop_signal() && tid == allocator && gu_load_seqcst(&heap->phase) == held_phase && !gu_load_seqcst(&shared->asked) &&
		    gu_load_seqcst(&shared->done) != gu_load_seqcst(&shared->wanted);
	if (held)
		gu_store_seqcst(&shared->asked, 1);
	while (held && !gu_load_seqcst(&shared->go))
		usleep(20);
	int err = gu_os_linux.tgkill(pid, tid, sig);
	if (held)
		gu_store_seqcst(&shared->sent, 1);
	return err;
}

static void *collect(void *unused)
{
	while (!gu_load_seqcst(&shared->quit)) {
		if (gu_load_seqcst(&shared->done) == gu_load_seqcst(&shared->wanted)) {
			usleep(20);
			continue;
		}
		must_ok(gcuffd_collect(heap));
		gu_store_seqcst(&shared->done, gu_load_seqcst(&shared->wanted));
	}
	return unused;
}

static struct gu_run *run_of(size_t size)
{
	struct gu_cache *c = gu_self->caches[heap->arenas[0]->slot];
	return &c->runs[GCUFFD_CONSERVATIVE][gu_class_of(size)];
}

/* For the fast path cells are there, for the next group none. */
static void prepare(enum call call)
{
	must(gcuffd_alloc(heap, SIZE) && gcuffd_alloc_typed(heap, type, SIZE), "errno %d", errno);
	while (call == FAST ? !run_of(SIZE)->mask : call == REFILL && run_of(SIZE)->mask)
		must(gcuffd_alloc(heap, SIZE) != NULL, "errno %d", errno);
}

static void trap(void) { syscall(SYS_tgkill, getpid(), allocator, SIGTRAP); }

/* Between the traps are the steps. */
static __attribute__((noinline)) uint64_t *allocate(enum call call)
{
	trap();
	uint64_t *p = call == TYPED ? gcuffd_alloc_typed(heap, type, SIZE) : gcuffd_alloc(heap, call == LARGE_ONE ? LARGE : SIZE);
	trap();
	return p;
}

static bool holds(const uint64_t *p, size_t size, uint64_t word)
{
	for (size_t i = 0; i < size / 8; i++)
		if (p[i] != word)
			return false;
	return true;
}

static void check_object(const uint64_t *p, size_t size)
{
	struct gcuffd_object o;
	must(p != NULL, "errno %d", errno);
	must(!gcuffd_object_find(heap, p, &o) && o.base == p && o.size >= size, "an object that is not one");
	must(holds(p, size, 0), "it is not zero");
	must(stats_of(heap).verify_failures == 0, "%s", core_log);
}

/* Once the cycle is over its cell may be handed out again, if it was swept. */
static void check_others(size_t size)
{
	for (unsigned i = 0; i < 70; i++) {
		uint64_t *p = gcuffd_alloc(heap, SIZE);
		must(p != NULL && holds(p, SIZE, 0), "a cell that is not zero");
		memset(p, 0xee, SIZE);
	}
	for (unsigned i = 0; i < KEPT; i++)
		must(!kept[i] || holds(kept[i], size, i), "object %u is another's too", i);
}

static void one_round(enum call call, unsigned number)
{
	size_t size = call == LARGE_ONE ? LARGE : SIZE;
	prepare(call);
	shared->asked = shared->go = shared->sent = 0;
	gu_add_seqcst(&shared->wanted, 1);
	while (!gu_load_seqcst(&shared->asked))
		sched_yield();
	uint64_t *p = allocate(call);
	while (gu_load_seqcst(&shared->done) != gu_load_seqcst(&shared->wanted))
		sched_yield();
	check_object(p, size);
	for (size_t i = 0; i < size / 8; i++)
		p[i] = number % KEPT;
	kept[number % KEPT] = p;
	p = NULL;
	check_others(size);
}

/* ---- switches ---- */

static uint64_t held_inside, held_outside;

static __attribute__((noinline)) void *make(uint64_t *held)
{
	void *p = gcuffd_alloc(heap, SIZE);
	must(p != NULL, "errno %d", errno);
	*held = hide(p);
	return p;
}

static void hold_inside(struct co *c)
{
	for (;;) {
		void *volatile only = make(&held_inside);
		co_leave(c);
		co_leave(c); /* and back is stepped through, to here */
		only = NULL;
		(void)only;
	}
}

static __attribute__((noinline)) void there_and_back(struct co *c)
{
	trap();
	co_enter(c);
	trap();
}

static __attribute__((noinline)) void switch_round(struct co *c)
{
	void *volatile only = make(&held_outside);
	co_enter(c);
	scrub();
	shared->asked = shared->go = shared->sent = 0;
	gu_add_seqcst(&shared->wanted, 1);
	while (!gu_load_seqcst(&shared->asked))
		sched_yield();
	there_and_back(c);
	while (gu_load_seqcst(&shared->done) != gu_load_seqcst(&shared->wanted))
		sched_yield();
	must(is_alive(heap, held_outside), "what the thread's own stack pointed to was taken");
	must(is_alive(heap, held_inside), "what the other stack pointed to was taken");
	must(stats_of(heap).verify_failures == 0, "%s", core_log);
	only = NULL;
	(void)only;
}

static void switch_rounds(enum co_how how)
{
	struct co *c = co_make(how, hold_inside, NULL);
	co_start(c);
	co_enter(c);
	while (!gu_load_seqcst(&shared->quit))
		switch_round(c);
}

static void traced(int rung, enum call call, bool second)
{
	pthread_t t;
	uint64_t bitmap = ~0ull;
	must(!ptrace(PTRACE_TRACEME, 0, NULL, NULL), "errno %d", errno);
	allocator = getpid();
	held_phase = second ? GU_PHASE_MARK : GU_PHASE_WINDOW;
	fake_install();
	heap = heap_make("rung=%s,pacing=0,verify=1,start_size=256M,mark_threads=1", rung_names[rung]);
	must_ok(gcuffd_type_create(heap, &bitmap, 6, &type));
	must_ok(gcuffd_collect(heap));
	fake_os.tgkill = hold_signal;
	shared->section = (uintptr_t)&gu_self->section;
	raise(SIGSTOP);
	must_ok(pthread_create(&t, NULL, collect, NULL));
	if (call >= SWITCH)
		switch_rounds(call == SWITCH ? CO_BY_HAND : CO_UCONTEXT);
	for (unsigned n = 0; !gu_load_seqcst(&shared->quit); n++)
		one_round(call, n);
	must_ok(pthread_join(t, NULL));
	_exit(0);
}

/* ---- the tracer ---- */

static pid_t tracee;

static void go_on(int how, int sig) { must(!ptrace(how, tracee, NULL, (void *)(intptr_t)sig), "errno %d", errno); }

/* The signal it stopped with. */
static int wait_stop(void)
{
	int status;
	must(waitpid(tracee, &status, __WALL) == tracee, "errno %d", errno);
	must(WIFSTOPPED(status), "the traced process ended: status %#x", (unsigned)status);
	return WSTOPSIG(status);
}

/* A trap() of its own, not a step. */
static bool is_trap(int sig)
{
	siginfo_t info;
	return sig == SIGTRAP && !ptrace(PTRACE_GETSIGINFO, tracee, NULL, &info) && info.si_code == SI_TKILL;
}

static void run_to_trap(void)
{
	go_on(PTRACE_CONT, 0);
	for (int sig; !is_trap(sig = wait_stop());)
		go_on(PTRACE_CONT, sig == SIGTRAP ? 0 : sig);
}

/* So many steps, or as many as there are to the next trap. */
static unsigned make_steps(unsigned most)
{
	for (unsigned n = 0; n < most; n++) {
		go_on(PTRACE_SINGLESTEP, 0);
		int sig = wait_stop();
		if (is_trap(sig))
			return n;
		must(sig == SIGTRAP, "signal %d while it makes steps", sig);
	}
	return most;
}

static bool in_section(void)
{
	errno = 0;
	long word = ptrace(PTRACE_PEEKDATA, tracee, (void *)shared->section, NULL);
	must(!errno, "errno %d", errno);
	return (uint32_t)word > 0;
}

/* The signal comes behind so many steps: whether that was in a section. false in *more: there are not so many. */
static bool stop_behind(unsigned steps, bool *more)
{
	run_to_trap();
	*more = make_steps(steps) == steps;
	bool inside = *more && in_section();
	gu_store_seqcst(&shared->go, 1);
	while (!gu_load_seqcst(&shared->sent))
		usleep(20);
	if (*more)
		run_to_trap();
	return inside;
}

static pid_t start_traced(int rung, enum call call, bool second)
{
	memset(shared, 0, sizeof(*shared));
	fflush(stdout);
	pid_t pid = fork();
	ck_assert_int_ge(pid, 0);
	if (!pid) {
		limit_child();
		traced(rung, call, second);
	}
	return pid;
}

static void end_traced(void)
{
	int status;
	gu_store_seqcst(&shared->quit, 1);
	do {
		go_on(PTRACE_CONT, 0);
		gu_store_seqcst(&shared->go, 1);
		must(waitpid(tracee, &status, __WALL) == tracee, "errno %d", errno);
		while (WIFSTOPPED(status) && WSTOPSIG(status) != SIGTRAP) {
			go_on(PTRACE_CONT, WSTOPSIG(status));
			must(waitpid(tracee, &status, __WALL) == tracee, "errno %d", errno);
		}
	} while (WIFSTOPPED(status));
	ck_assert_msg(WIFEXITED(status) && !WEXITSTATUS(status), "status %#x", (unsigned)status);
}

struct stepped {
	unsigned length, stops, inside;
};

static void show(int rung, enum call call, bool second, const struct stepped *s)
{
	printf("%s, %s, %s stop: %u instructions, stopped at %u of them, %u inside a section\n", rung_names[rung], call_names[call],
	       second ? "second" : "first", s->length, s->stops, s->inside);
}

static void stop_at(struct stepped *s, unsigned k)
{
	bool more;
	bool inside = stop_behind(k, &more);
	s->inside += inside;
	s->stops += more;
}

/* Each instruction of what is short; one in each of so many parts of what is not. */
static struct stepped step_through(unsigned parts, unsigned most)
{
	struct test_rng rng = test_rng(1);
	run_to_trap();
	struct stepped s = {make_steps(UINT32_MAX), 0, 0};
	unsigned part = s.length <= most ? 1 : s.length / parts + 1;
	gu_store_seqcst(&shared->go, 1);
	for (unsigned k = 0; k < s.length; k += part)
		stop_at(&s, k ? k + (unsigned)test_below(&rng, part) : 0);
	return s;
}

START_TEST(at_each_instruction)
{
	bool second = _i % 2;
	enum call call = _i / 2 % CALLS;
	int rung = _i / 2 / CALLS;
	bool each = call == SWITCH && rung == GCUFFD_RUNG_ASYNC && second; /* once: so many steps take time */
	NO_SANITIZER("they make an allocation many thousands of instructions");
	NEED_RUNG(rung);
	if (second && rung == GCUFFD_RUNG_STOP)
		return; /* it has but one */
	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	ck_assert_ptr_ne(shared, MAP_FAILED);
	tracee = start_traced(rung, call, second);
	for (int sig; (sig = wait_stop()) != SIGSTOP;)
		go_on(PTRACE_CONT, sig);
	ck_ok(ptrace(PTRACE_SETOPTIONS, tracee, NULL, (void *)PTRACE_O_EXITKILL));
	if (ptrace(PTRACE_SINGLESTEP, tracee, NULL, NULL)) {
		kill(tracee, SIGKILL);
		GU_SKIP("no single steps here (errno %d)", errno);
	}
	ck_assert_int_eq(wait_stop(), SIGTRAP);
	struct stepped s = step_through(check_rounds(12 * check_seconds()), each ? ALL : SHORT);
	show(rung, call, second, &s);
	fflush(stdout);
	if (each)
		ck_assert_uint_ge(s.stops, s.length);
	if (call < SWITCH)
		ck_assert_uint_gt(s.inside, call == FAST ? 10 : 0);
	ck_assert_uint_gt(s.stops, s.inside);
	end_traced();
}
END_TEST

static Suite *make_suite(void)
{
	Suite *suite = suite_create("step");
	tcase_add_loop_test(test_case(suite, "at_each_instruction"), at_each_instruction, GCUFFD_RUNG_STOP * 2 * CALLS, (GCUFFD_RUNG_ASYNC + 1) * 2 * CALLS);
	return suite;
}

TEST_MAIN(make_suite)
