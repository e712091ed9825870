/* SPDX-License-Identifier: MIT */
/*
 * test_coroutines.c - registered stacks: what one that is left points to lives, where it was left from notwithstanding, and no longer than it is
 * registered (.inv.stack.switch). test_step stops a thread at each instruction of a switch.
 */
#include <signal.h>
#include <sys/wait.h>

#include "coroutine.h"

#define HOWS 2
#define POOL 24u
#define WORKERS 3u
#define LIST 50u

static struct gcuffd_heap *heap;
static uint64_t hidden[4];
static __thread void *volatile in_tls;

static __attribute__((noinline)) void *make(unsigned i)
{
	void *p = gcuffd_alloc(heap, 100);
	must(p != NULL, "errno %d", errno);
	hidden[i] = hide(p);
	return p;
}

static void collect(void)
{
	scrub();
	must_ok(gcuffd_collect(heap));
}

static void begin(int i)
{
	heap = heap_make("rung=%s,verify=1", rung_names[GCUFFD_RUNG_STOP + i / HOWS]);
}

static void end(void)
{
	verified(heap);
	ck_ok(gcuffd_heap_destroy(heap));
}

#define BEGIN(i) \
	NEED_RUNG(GCUFFD_RUNG_STOP + (i) / HOWS); \
	NO_SANITIZER("it has a stack of its own behind each"); \
	begin(i)

static enum co_how how_of(int i) { return i % HOWS ? CO_UCONTEXT : CO_BY_HAND; }

/* ---- what lives ---- */

static __attribute__((noinline)) void hold_and_leave(struct co *c)
{
	void *volatile only = make(0);
	co_leave(c);
	must(is_alive(heap, hidden[0]), "what a stack that was left pointed to was taken");
	only = NULL;
	(void)only;
}

static void hold(struct co *c)
{
	hold_and_leave(c);
	make(0);
	co_leave(c);
}

START_TEST(left_and_dead)
{
	BEGIN(_i);
	struct co *c = co_make(how_of(_i), hold, NULL);
	co_start(c);
	for (int i = 0; i < 2; i++) {
		collect();
		ck_assert(is_alive(heap, hidden[0]));
	}
	ck_ok(gcuffd_stack_unregister(c->stack));
	c->stack = NULL;
	collect();
	ck_assert_msg(!is_alive(heap, hidden[0]), "what a stack that is registered no more pointed to lives on");
	co_free(c);
	end();
}
END_TEST

/* The frames of the call before: a program may put others there. */
static __attribute__((noinline)) void scrub_little(void)
{
	volatile char junk[400];
	for (size_t i = 0; i < sizeof(junk); i++)
		junk[i] = 0;
}

/* An object that a register holds alone, when it leaves. */
static __attribute__((noinline)) void leave_with_register(struct co *c)
{
#if defined(__x86_64__)
	register void *only __asm__("rbx") = make(1);
	__asm__ volatile("" : "+r"(only));
	scrub_stack();
	must_ok(gcuffd_stack_switch(NULL));
	scrub_little();
	__asm__ volatile("" : "+r"(only));
	co_go(c, &c->inside, &c->outside);
	__asm__ volatile("" : "+r"(only));
#else
	void *volatile only = make(1);
	co_leave(c);
	(void)only;
#endif
}

static void hold_registers(struct co *c) { leave_with_register(c); }

START_TEST(registers)
{
	BEGIN(_i);
	struct co *c = co_make(how_of(_i), hold_registers, NULL);
	co_start(c);
	collect();
	ck_assert(is_alive(heap, hidden[1]));
	co_enter(c);
	ck_assert(c->ended);
	co_free(c);
	end();
}
END_TEST

/* ---- what a thread leaves behind that is on another stack ---- */

static __attribute__((noinline)) void collect_deep(struct co *c)
{
	void *volatile only = make(2);
	scrub();
	must_ok(gcuffd_collect(heap));
	must(is_alive(heap, hidden[0]), "what the thread's own stack pointed to was taken");
	must(is_alive(heap, hidden[1]), "what its TLS pointed to was taken");
	must(is_alive(heap, hidden[2]), "what the stack it is on pointed to was taken");
	if (c->data) /* a handler of a signal, on a stack of its own */
		raise(SIGUSR1);
	must_ok(gcuffd_blocking_enter());
	must_ok(gcuffd_blocking_leave());
	only = NULL;
	(void)only;
}

static __attribute__((noinline)) void go_down(struct co *c)
{
	volatile char room[4096];
	room[0] = 1;
	collect_deep(c);
	room[1] = room[0];
}

/* Deeper than where it was left before. */
static void collect_inside(struct co *c)
{
	co_leave(c);
	go_down(c);
}

static void on_usr1(int sig)
{
	(void)sig;
	must_ok(gcuffd_collect(heap));
	for (unsigned i = 0; i < 3; i++)
		must(is_alive(heap, hidden[i]), "object %u was taken while a handler ran", i);
}

START_TEST(on_it)
{
	BEGIN(_i);
	static char alternate[256 << 10];
	stack_t ss = {.ss_sp = alternate, .ss_size = sizeof(alternate)};
	struct sigaction act = {.sa_handler = on_usr1, .sa_flags = SA_ONSTACK};
	ck_ok(sigaltstack(&ss, NULL));
	ck_ok(sigaction(SIGUSR1, &act, NULL));
	void *volatile only = make(0);
	in_tls = make(1);
	struct co *c = co_make(how_of(_i), collect_inside, &act);
	co_start(c);
	co_enter(c);
	ck_assert(c->ended);
	only = NULL;
	(void)only;
	in_tls = NULL;
	co_free(c);
	end();
}
END_TEST

static void *start_and_end(void *c)
{
	must_ok(gcuffd_thread_attach());
	co_start(c);
	return NULL;
}

START_TEST(its_thread_ended)
{
	pthread_t t;
	BEGIN(_i);
	struct co *c = co_make(how_of(_i), hold_and_leave, NULL);
	ck_ok(pthread_create(&t, NULL, start_and_end, c));
	ck_ok(pthread_join(t, NULL));
	collect();
	ck_assert(is_alive(heap, hidden[0]));
	co_enter(c); /* goes on here */
	ck_assert(c->ended);
	co_free(c);
	end();
}
END_TEST

static void end_thread(struct co *c)
{
	void *volatile only = make(0);
	(void)c, (void)only;
	must_ok(gcuffd_thread_detach());
	collect();
	must(is_alive(heap, hidden[0]), "what a stack pointed to whose thread detached was taken");
	must_ok(gcuffd_thread_attach());
}

START_TEST(detached_on_it)
{
	BEGIN(_i);
	struct co *c = co_make(how_of(_i), end_thread, NULL);
	co_start(c);
	ck_assert(c->ended);
	co_free(c);
	end();
}
END_TEST

/* ---- told, and not gone; gone, and not told ---- */

/* Deeper than where it told of another. */
static __attribute__((noinline)) void leave_deeper(struct co *c)
{
	volatile char room[4096];
	void *volatile only = make(1);
	room[0] = 1;
	co_leave(c);
	must(is_alive(heap, hidden[1]), "what a stack that was left pointed to was taken");
	room[1] = room[0];
	only = NULL;
	(void)only;
}

static void think_better_of_it(struct co *c)
{
	const struct co *other = c->data;
	must_ok(gcuffd_stack_switch(other->stack));
	leave_deeper(c);
}

START_TEST(told_and_not_gone)
{
	BEGIN(_i);
	struct co *c = co_make(how_of(_i), hold_and_leave, NULL), *other = co_make(how_of(_i), think_better_of_it, c);
	co_start(c);
	ck_ok(gcuffd_stack_switch(c->stack));
	ck_ok(gcuffd_stack_switch(NULL));
	collect();
	ck_assert_msg(is_alive(heap, hidden[0]), "what a stack pointed to that was told of, and not gone to, was taken");
	co_start(other);
	collect();
	ck_assert(is_alive(heap, hidden[0]));
	ck_assert_msg(is_alive(heap, hidden[1]), "what a stack pointed to was taken that told of another before");
	co_enter(other);
	co_enter(c);
	ck_assert(c->ended && other->ended);
	co_free(c);
	co_free(other);
	end();
}
END_TEST

static __attribute__((noinline)) void collect_on_second(struct co *c)
{
	collect();
	must(is_alive(heap, hidden[0]), "what the thread's own stack pointed to was taken");
	(void)c;
}

/* On a stack that is not registered: from it to one that is. */
static void go_further(struct co *c) { co_start(c->data); }

static void *over_an_unregistered_stack(void *arg)
{
	enum co_how how = (enum co_how)(uintptr_t)arg;
	must_ok(gcuffd_thread_attach());
	void *volatile only = make(0);
	struct co *second = co_make(how, collect_on_second, NULL), *first = co_make(how, go_further, second);
	must_ok(gcuffd_stack_unregister(first->stack));
	first->stack = NULL;
	co_start(first);
	must(first->ended && second->ended, "it did not come back");
	co_free(first);
	co_free(second);
	only = NULL;
	(void)only;
	return NULL;
}

START_TEST(from_an_unregistered_stack)
{
	BEGIN(_i);
	pthread_t t;
	(void)over_an_unregistered_stack((void *)how_of(_i));
	ck_ok(pthread_create(&t, NULL, over_an_unregistered_stack, (void *)how_of(_i)));
	ck_ok(pthread_join(t, NULL));
	end();
}
END_TEST

/* ---- pointers set by hand ---- */

START_TEST(pointer)
{
	struct gcuffd_stack *s;
	NEED_RUNG(GCUFFD_RUNG_STOP + _i / HOWS);
	begin(_i);
	uint64_t *m = mmap(NULL, CO_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ck_assert_ptr_ne(m, MAP_FAILED);
	ck_ok(gcuffd_stack_register(m, CO_BYTES, &s));
	m[10] = (uintptr_t)make(0);
	collect();
	ck_assert_msg(is_alive(heap, hidden[0]), "all of a new stack is in use");
	ck_ok(gcuffd_stack_set_pointer(s, m + 8));
	collect();
	ck_assert(is_alive(heap, hidden[0]));
	ck_ok(gcuffd_stack_set_pointer(s, m + CO_BYTES / 8));
	collect();
	ck_assert(!is_alive(heap, hidden[0]));
	ck_assert_int_eq(gcuffd_stack_set_pointer(s, m - 1), -EINVAL);
	ck_assert_int_eq(gcuffd_stack_set_pointer(s, m + CO_BYTES / 8 + 1), -EINVAL);
	ck_ok(gcuffd_stack_unregister(s));
	ck_assert_int_eq(gcuffd_stack_set_pointer(s, m + 8), -EINVAL);
	ck_assert_int_eq(gcuffd_stack_switch(s), -EINVAL);
	ck_assert_int_eq(gcuffd_stack_unregister(s), -EINVAL);
	munmap(m, CO_BYTES);
	end();
}
END_TEST

static void *switch_unattached(void *unused)
{
	must(gcuffd_stack_switch(NULL) == -EINVAL, "a thread that is not attached switched");
	return unused;
}

static void *unregister(void *stack)
{
	must(gcuffd_stack_unregister(stack) == -EBUSY, "another thread is on it");
	return NULL;
}

static void refuse_to_end(struct co *c)
{
	pthread_t t;
	must_ok(pthread_create(&t, NULL, unregister, c->stack));
	must_ok(pthread_join(t, NULL));
	must(gcuffd_stack_unregister(c->stack) == -EBUSY && gcuffd_stack_set_pointer(c->stack, NULL) == -EBUSY, "a thread is on it");
	must_ok(gcuffd_blocking_enter());
	must(gcuffd_stack_switch(NULL) == -EBUSY, "it blocks");
	must_ok(gcuffd_blocking_leave());
}

START_TEST(refused)
{
	struct gcuffd_stack *s;
	pthread_t t;
	BEGIN(_i);
	char *object = gcuffd_alloc(heap, CO_BYTES), *m = mmap(NULL, 2 * CO_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ck_assert_ptr_ne(m, MAP_FAILED);
	ck_assert_int_eq(gcuffd_stack_register(object, CO_BYTES, &s), -EINVAL);
	ck_assert_int_eq(gcuffd_stack_register(m, 100, &s), -EINVAL);
	ck_assert_int_eq(gcuffd_stack_register(NULL, CO_BYTES, &s), -EINVAL);
	ck_assert_int_eq(gcuffd_stack_register(m, SIZE_MAX, &s), -EINVAL);
	ck_ok(mprotect(m + CO_BYTES, CO_BYTES, PROT_NONE));
	ck_assert_int_eq(gcuffd_stack_register(m, 2 * CO_BYTES, &s), -EFAULT);
	ck_assert_int_eq(gcuffd_stack_register(m + CO_BYTES, CO_BYTES, &s), -EFAULT);
	ck_ok(pthread_create(&t, NULL, switch_unattached, NULL));
	ck_ok(pthread_join(t, NULL));
	struct co *c = co_make(how_of(_i), refuse_to_end, NULL);
	co_start(c);
	ck_assert(c->ended);
	co_free(c);
	munmap(m, 2 * CO_BYTES);
	end();
}
END_TEST

/* ---- a pointer that the compiler may drop ---- */

static __attribute__((noinline)) void *hand_out(void) { return make(3); }

START_TEST(kept_alive)
{
	NEED_RUNG(GCUFFD_RUNG_STOP + _i / HOWS);
	begin(_i);
	void *p = hand_out();
	scrub_stack();
	ck_ok(gcuffd_collect(heap));
	bool alive = is_alive(heap, hidden[3]);
	gcuffd_keep_alive(p);
	ck_assert(alive);
	end();
}
END_TEST

/* ---- fork ---- */

START_TEST(forked)
{
	BEGIN(_i);
	int status;
	struct co *c = co_make(how_of(_i), hold_and_leave, NULL);
	co_start(c);
	fflush(stdout);
	pid_t pid = fork();
	ck_assert_int_ge(pid, 0);
	if (!pid) {
		limit_child();
		collect();
		must(is_alive(heap, hidden[0]), "what a stack points to was taken in a child");
		co_enter(c);
		must(c->ended && !stats_of(heap).verify_failures, "%s", core_log);
		co_free(c);
		_exit(0);
	}
	ck_assert_int_eq(waitpid(pid, &status, 0), pid);
	ck_assert_msg(WIFEXITED(status) && !WEXITSTATUS(status), "status %#x", (unsigned)status);
	co_enter(c);
	ck_assert(c->ended);
	co_free(c);
	end();
}
END_TEST

/* ---- many, on several threads ---- */

struct node {
	struct node *next;
	uint64_t number;
	uint64_t room[6];
};

struct pool {
	pthread_mutex_t lock;
	struct co *co[POOL]; /* NULL: a thread is on it */
	bool started[POOL];
	uint64_t switches;
	bool quit;
};

/* A list that its stack alone holds grows and is checked, over and over. */
static void grow(struct co *c)
{
	struct pool *p = c->data;
	while (!__atomic_load_n(&p->quit, __ATOMIC_RELAXED)) {
		struct node *volatile list = NULL;
		for (uint64_t i = 0; i < LIST; i++) {
			struct node *n = gcuffd_alloc(heap, sizeof(*n));
			must(n && !n->next && !n->number, "errno %d", errno);
			n->next = list;
			n->number = i + 1;
			list = n;
			if (i % 4 == 0)
				co_leave(c);
		}
		uint64_t number = LIST;
		for (const struct node *n = list; n; n = n->next)
			must(n->number == number--, "a list is damaged");
		must(!number, "a list ends at %lu", (unsigned long)number);
	}
}

static struct co *take(struct pool *p, unsigned *at)
{
	struct co *c = p->co[*at % POOL];
	pthread_mutex_lock(&p->lock);
	for (unsigned i = 0; i < POOL; i++) {
		*at = (*at + 7) % POOL;
		c = p->co[*at];
		if (c)
			break;
	}
	p->co[*at] = NULL;
	pthread_mutex_unlock(&p->lock);
	return c;
}

static void give(struct pool *p, unsigned at, struct co *c)
{
	pthread_mutex_lock(&p->lock);
	p->co[at] = c;
	p->switches++;
	pthread_mutex_unlock(&p->lock);
}

static void *run_some(void *pool)
{
	struct pool *p = pool;
	unsigned at = 0;
	must_ok(gcuffd_thread_attach());
	while (!__atomic_load_n(&p->quit, __ATOMIC_RELAXED)) {
		struct co *c = take(p, &at);
		if (!c)
			continue;
		if (p->started[at])
			co_enter(c);
		else
			co_start(c);
		p->started[at] = true;
		if (c->ended)
			break; /* it saw the end first */
		give(p, at, c);
	}
	must_ok(gcuffd_thread_detach());
	return NULL;
}

START_TEST(stress)
{
	static struct pool pool;
	struct co *all[POOL];
	pthread_t t[WORKERS];
	BEGIN(_i);
	pool = (struct pool){.lock = PTHREAD_MUTEX_INITIALIZER};
	for (unsigned i = 0; i < POOL; i++)
		pool.co[i] = all[i] = co_make(how_of(_i), grow, &pool);
	for (unsigned i = 0; i < WORKERS; i++)
		ck_ok(pthread_create(&t[i], NULL, run_some, &pool));
	for (uint64_t until = test_now_ns() + (uint64_t)check_seconds() * 200000000; goes_on(heap, until, 5);)
		ck_ok(gcuffd_collect(heap));
	__atomic_store_n(&pool.quit, true, __ATOMIC_RELAXED);
	for (unsigned i = 0; i < WORKERS; i++)
		ck_ok(pthread_join(t[i], NULL));
	ck_assert_uint_gt(pool.switches, 100);
	ck_ok(gcuffd_collect(heap));
	for (unsigned i = 0; i < POOL; i++)
		co_free(all[i]);
	end();
}
END_TEST

#define ADD(name) tcase_add_loop_test(test_case(suite, #name), name, 0, HOWS * (GCUFFD_RUNG_RWP - GCUFFD_RUNG_STOP + 1))

static Suite *make_suite(void)
{
	Suite *suite = suite_create("coroutines");
	ADD(left_and_dead);
	ADD(registers);
	ADD(on_it);
	ADD(its_thread_ended);
	ADD(detached_on_it);
	ADD(told_and_not_gone);
	ADD(from_an_unregistered_stack);
	ADD(pointer);
	ADD(refused);
	ADD(kept_alive);
	ADD(forked);
	ADD(stress);
	return suite;
}

TEST_MAIN(make_suite)
