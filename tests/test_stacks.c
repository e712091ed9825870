/* SPDX-License-Identifier: MIT */
/*
 * test_stacks.c - stacks that are not what a thread got from the C library, or that nobody could look up: a coroutine's
 * inside an object of the heap, and one of a thread that attached when no descriptor was left.
 */
#include <sys/resource.h>
#include <ucontext.h>

#include "core.h"

#define STACK_BYTES ((size_t)256 << 10)

static struct gcuffd_heap *heap;
static ucontext_t outside, inside;
static uint64_t hidden;

static __attribute__((noinline)) void *make(void)
{
	void *p = gcuffd_alloc(heap, 100);
	must(p != NULL, "no memory");
	hidden = hide(p);
	return p;
}

/* ---- a coroutine on an object ---- */

static void coroutine(void)
{
	void *volatile only = make();
	for (int i = 0; i < 3; i++) {
		scrub();
		must_ok(gcuffd_collect(heap)); /* from here: this thread waits on the stack in the heap */
		must(is_alive(heap, hidden), "what a coroutine's stack points to was taken");
	}
	only = NULL;
	(void)only;
	swapcontext(&inside, &outside);
}

static void run_on(void *stack)
{
	ck_ok(getcontext(&inside));
	inside.uc_stack.ss_sp = stack;
	inside.uc_stack.ss_size = STACK_BYTES;
	inside.uc_link = NULL;
	makecontext(&inside, coroutine, 0);
	ck_ok(swapcontext(&outside, &inside));
}

START_TEST(coroutine_in_an_object)
{
	NEED_RUNG(_i);
	NO_SANITIZER("it has a stack of its own behind each");
	heap = heap_make("rung=%s,verify=1", rung_names[_i]);
	void *volatile stack = gcuffd_alloc(heap, STACK_BYTES);
	void *volatile neighbours[64]; /* what follows in the mapping is no stack */
	for (size_t i = 0; i < 64; i++)
		ck_assert_ptr_nonnull(neighbours[i] = gcuffd_alloc(heap, (size_t)1 << 20));
	run_on(stack);
	ck_assert_uint_lt(stats_of(heap).last_remark_stack_words, 8 * STACK_BYTES / 8);
	ck_assert_ptr_nonnull(neighbours[63]);
	verified(heap);
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

/* ---- attached without a descriptor ---- */

static void *attach_late(void *arg)
{
	struct rlimit old, none;
	(void)arg;
	must_ok(getrlimit(RLIMIT_NOFILE, &old));
	none = old;
	none.rlim_cur = 0;
	must_ok(setrlimit(RLIMIT_NOFILE, &none));
	int err = gcuffd_thread_attach();
	must_ok(setrlimit(RLIMIT_NOFILE, &old));
	must_ok(err);
	void *volatile only = make();
	for (int i = 0; i < 3; i++) {
		scrub();
		must_ok(gcuffd_collect(heap));
		must(is_alive(heap, hidden), "what the stack of a thread that attached blindly points to was taken");
	}
	only = NULL;
	(void)only;
	must_ok(gcuffd_thread_detach());
	return NULL;
}

START_TEST(attached_without_a_descriptor)
{
	pthread_t thread;
	NEED_RUNG(_i);
	heap = heap_make("rung=%s,verify=1", rung_names[_i]);
	ck_ok(gcuffd_collect(heap)); /* the service threads have theirs */
	ck_ok(pthread_create(&thread, NULL, attach_late, NULL));
	ck_ok(pthread_join(thread, NULL));
	verified(heap);
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

#define ADD(name) tcase_add_loop_test(test_case(suite, #name), name, GCUFFD_RUNG_STOP, GCUFFD_RUNG_RWP + 1)

static Suite *make_suite(void)
{
	Suite *suite = suite_create("stacks");
	ADD(coroutine_in_an_object);
	ADD(attached_without_a_descriptor);
	return suite;
}

TEST_MAIN(make_suite)
