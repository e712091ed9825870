/* SPDX-License-Identifier: MIT */
/* test_why.c - why an object is alive: each sort of root, a shortest path, nothing where there is none; what is out stays out. */
#include "cold.h"
#include "coroutine.h"

#define STEPS 32u

static struct node *volatile head; /* a data segment */
static __thread struct node *volatile in_tls;
static struct gcuffd_root root;
static struct gcuffd_step steps[STEPS]; /* what it holds is the objects' addresses: forgotten before each question */
static size_t count;

static void make_heap(int rung) { heap = heap_make("rung=%s", rung_names[rung]); }

static int ask(uint64_t hidden)
{
	memset(steps, 0, sizeof(steps));
	memset(&root, 0, sizeof(root));
	root.size = sizeof(root);
	count = 0;
	scrub();
	return gcuffd_why_alive(heap, reveal(hidden), &root, steps, STEPS, &count);
}

static __attribute__((noinline)) uint64_t hidden_object(void) { return hide(make_list(1, 7)); }
static __attribute__((noinline)) uint64_t hidden_at(size_t n)
{
	struct node *at = head;
	while (n--)
		at = at->next;
	return hide(at);
}

START_TEST(a_data_segment)
{
	NEED_RUNG(_i);
	make_heap(_i);
	head = make_list(10, 0);
	uint64_t hidden = hidden_at(9);
	ck_ok(ask(hidden));
	ck_assert_int_eq(root.kind, GCUFFD_ROOT_MODULE);
	ck_assert_ptr_eq(root.word, (const void *)&head);
	ck_assert_ptr_nonnull(strstr(root.name, "test_why"));
	ck_assert_uint_eq(count, 10);
	struct node *at = head;
	for (size_t i = 0; i < count; i++, at = at->next) {
		ck_assert_ptr_eq(steps[i].object, at);
		ck_assert_uint_eq(steps[i].word, 0);
		ck_assert_uint_eq(steps[i].size, 64);
		ck_assert_int_eq(steps[i].kind, GCUFFD_CONSERVATIVE);
		ck_assert_ptr_eq(steps[i].arena, heap->arenas[0]);
	}
	head->filler[3] = (uintptr_t)reveal(hidden) + 5; /* a shorter one, into its middle */
	ck_ok(ask(hidden));
	ck_assert_uint_eq(count, 2);
	ck_assert_uint_eq(steps[0].word, 5);
	ck_assert_ptr_eq(steps[1].object, reveal(hidden));
	head = NULL;
	memset(steps, 0, sizeof(steps));
	at = NULL;
	ck_assert_int_eq(ask(hide(&count)), -ENOENT);
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

/* Only the first steps are wanted, or none. */
START_TEST(few_steps)
{
	struct gcuffd_step some[2] = {{0}, {.size = 1}};
	NEED_RUNG(_i);
	make_heap(_i);
	head = make_list(5000, 0);
	root.size = sizeof(root);
	ck_ok(gcuffd_why_alive(heap, reveal(hidden_at(4999)), &root, some, 1, &count));
	ck_assert_uint_eq(count, 5000);
	ck_assert_ptr_eq(some[0].object, head);
	ck_assert_uint_eq(some[1].size, 1);
	ck_ok(gcuffd_why_alive(heap, head, &root, NULL, 0, &count));
	ck_assert_uint_eq(count, 1);
	root.size = 3;
	ck_assert_int_eq(gcuffd_why_alive(heap, head, &root, NULL, 0, &count), -EINVAL);
	head = NULL;
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

START_TEST(ranges_and_pins)
{
	NEED_RUNG(_i);
	make_heap(_i);
	uint64_t hidden = hidden_object(), pinned = hidden_object(), *table = malloc(64);
	table[3] = (uintptr_t)reveal(hidden);
	ck_ok(gcuffd_root_add(heap, table, 64));
	ck_ok(ask(hidden));
	ck_assert_int_eq(root.kind, GCUFFD_ROOT_RANGE);
	ck_assert_ptr_eq(root.word, (const void *)&table[3]);
	ck_ok(gcuffd_pin(reveal(pinned), 64));
	ck_ok(ask(pinned));
	ck_assert_int_eq(root.kind, GCUFFD_ROOT_PIN);
	ck_assert_uint_eq(count, 1);
	ck_ok(gcuffd_unpin(reveal(pinned), 64));
	ck_ok(gcuffd_root_remove(heap, table));
	free(table);
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

/* The words of a typed object that its type does not name lead nowhere. */
START_TEST(types)
{
	struct gcuffd_type *type;
	const uint64_t bitmap = 2;
	NEED_RUNG(_i);
	make_heap(_i);
	ck_ok(gcuffd_type_create(heap, &bitmap, 2, &type));
	uint64_t *typed = gcuffd_alloc_typed(heap, type, 32), first = hidden_object(), second = hidden_object();
	typed[0] = (uintptr_t)reveal(first);
	typed[1] = (uintptr_t)reveal(second);
	head = (struct node *)typed;
	typed = NULL;
	ck_ok(ask(second));
	ck_assert_uint_eq(count, 2);
	ck_assert_int_eq(steps[0].kind, GCUFFD_TYPED);
	ck_assert_ptr_eq(steps[0].type, type);
	ck_assert_uint_eq(steps[0].word, 1);
	int err = ask(first); /* only from this thread's stack, if at all */
	ck_assert_msg(err == -ENOENT || (root.tid == getpid() && count == 1), "%d, kind %d", err, root.kind);
	head = NULL;
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

/* ---- threads ---- */

static uint64_t held;
static int holder; /* its tid */
static uint32_t quit;

static void *hold_on_stack(void *arg)
{
	void *volatile on_stack[32];
	(void)arg;
	must_ok(gcuffd_thread_attach());
	on_stack[17] = reveal(held);
	__asm__ volatile("" : : "r"(on_stack) : "memory");
	__atomic_store_n(&holder, gettid(), __ATOMIC_SEQ_CST);
	while (!__atomic_load_n(&quit, __ATOMIC_RELAXED))
		usleep(1000);
	on_stack[17] = NULL;
	must_ok(gcuffd_thread_detach());
	return NULL;
}

static void ask_of(void *(*main)(void *), enum gcuffd_root_kind kind)
{
	pthread_t thread;
	held = hidden_object();
	holder = 0;
	quit = 0;
	must_ok(pthread_create(&thread, NULL, main, NULL));
	while (!__atomic_load_n(&holder, __ATOMIC_SEQ_CST))
		usleep(1000);
	ck_ok(ask(held));
	__atomic_store_n(&quit, 1, __ATOMIC_RELAXED);
	pthread_join(thread, NULL);
	ck_assert_int_eq(root.kind, kind);
	ck_assert_int_eq(root.tid, holder);
	ck_assert_uint_eq(count, 1);
}

START_TEST(threads)
{
	NEED_RUNG(_i);
	make_heap(_i);
	ask_of(hold_on_stack, GCUFFD_ROOT_STACK);
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

/* The first thread's: another one's lies on its stack, and comes last where that one asks. */
START_TEST(in_a_variable_of_a_thread)
{
	NO_SANITIZER("its copies of what was on the stack");
	NEED_RUNG(_i);
	make_heap(_i);
	in_tls = NULL;
	held = hidden_object();
	in_tls = reveal(held);
	ck_ok(ask(held));
	ck_assert_int_eq(root.kind, GCUFFD_ROOT_TLS);
	ck_assert_int_eq(root.tid, gettid());
	ck_assert_ptr_eq(root.word, (const void *)&in_tls);
	in_tls = NULL;
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

/* Who asks has it on its stack: that is told if there is nothing else. */
START_TEST(own_stack)
{
	NEED_RUNG(_i);
	make_heap(_i);
	void *volatile mine = make_list(1, 0);
	root.size = sizeof(root);
	ck_ok(gcuffd_why_alive(heap, mine, &root, steps, STEPS, &count));
	ck_assert_msg(root.kind == GCUFFD_ROOT_STACK || root.kind == GCUFFD_ROOT_REGISTERS, "kind %d", root.kind);
	ck_assert_int_eq(root.tid, gettid());
	head = mine;
	memset(steps, 0, sizeof(steps));
	ck_ok(gcuffd_why_alive(heap, mine, &root, steps, STEPS, &count));
	ck_assert_int_eq(root.kind, GCUFFD_ROOT_MODULE);
	head = NULL;
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

/* On a stack of its own: what is there comes last, too, wherever it lies, and what lies between it and the thread's comes first. */
static void ask_on_it(struct co *c)
{
	struct node *volatile mine = c->data;
	head = mine;
	root.size = sizeof(root);
	ck_ok(gcuffd_why_alive(heap, mine, &root, steps, STEPS, &count));
	ck_assert_int_eq(root.kind, GCUFFD_ROOT_MODULE);
	ck_assert_ptr_eq(root.word, (const void *)&head);
	head = NULL;
	memset(steps, 0, sizeof(steps));
	ck_ok(gcuffd_why_alive(heap, mine, &root, steps, STEPS, &count));
	ck_assert_msg(root.kind == GCUFFD_ROOT_STACK || root.kind == GCUFFD_ROOT_REGISTERS, "kind %d", root.kind);
	ck_assert_int_eq(root.tid, gettid());
	mine = NULL;
}

static __attribute__((noinline)) struct co *asking_coroutine(void)
{
	struct co *c = co_make(CO_BY_HAND, ask_on_it, NULL);
	c->data = make_list(1, 0); /* no root */
	return c;
}

START_TEST(own_coroutine)
{
	NO_SANITIZER("it has a stack of its own behind each");
	NEED_RUNG(_i);
	make_heap(_i);
	struct co *c = asking_coroutine();
	scrub();
	co_start(c);
	ck_assert(c->ended);
	co_free(c);
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

/* What a stack points to that no thread is on. */
static void hold_and_leave(struct co *c)
{
	void *volatile mine = reveal(held);
	co_leave(c);
	mine = NULL;
	(void)mine;
}

START_TEST(a_coroutine)
{
	NO_SANITIZER("it has a stack of its own behind each");
	NEED_RUNG(_i);
	make_heap(_i);
	held = hidden_object();
	struct co *c = co_make(CO_BY_HAND, hold_and_leave, NULL);
	co_start(c);
	ck_ok(ask(held));
	ck_assert_int_eq(root.kind, GCUFFD_ROOT_STACK);
	ck_assert_int_eq(root.tid, 0);
	co_enter(c);
	co_free(c);
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

/* ---- weak references ---- */

static __attribute__((noinline)) struct gcuffd_weak *bind_hidden(struct node *key, uint64_t value)
{
	struct gcuffd_weak *weak;
	ck_ok(gcuffd_weak_create(heap, key, &weak));
	ck_ok(gcuffd_weak_bind(heap, weak, key, reveal(value)));
	return weak;
}

/* No word of the key leads to the value. */
START_TEST(through_a_weak_reference)
{
	NEED_RUNG(_i);
	make_heap(_i);
	head = make_list(2, 0);
	uint64_t value = hidden_object();
	struct gcuffd_weak *weak = bind_hidden(head->next, value);
	ck_ok(ask(value));
	ck_assert_int_eq(root.kind, GCUFFD_ROOT_MODULE);
	ck_assert_uint_eq(count, 3);
	ck_assert_ptr_eq(steps[1].object, head->next);
	ck_assert_uint_eq(steps[0].word, 0);
	ck_assert_uint_eq(steps[1].word, GCUFFD_STEP_VALUE);
	ck_assert_uint_eq(steps[2].word, 0);
	ck_ok(gcuffd_weak_destroy(heap, weak));
	head = NULL;
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

/* ---- cold memory ---- */

START_TEST(through_what_is_out)
{
	cold_heap("");
	head = make_list(20000, 0);
	ck_ok(gcuffd_collect(heap));
	uint64_t hidden = hidden_at(19999);
	ck_assert_uint_gt(cool_all(), 0);
	struct gcuffd_cold_stats before = cold_of(heap);
	must(is_out(reveal(hidden)), "it is in place");
	ck_ok(ask(hidden));
	struct gcuffd_cold_stats after = cold_of(heap);
	ck_assert_int_eq(root.kind, GCUFFD_ROOT_MODULE);
	ck_assert_uint_eq(count, 20000);
	ck_assert_uint_eq(after.restored_pages, before.restored_pages);
	ck_assert_uint_eq(after.out_pages, before.out_pages);
	check_list(head, 20000, 0);
	checked();
	head = NULL;
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

static Suite *make_suite(void)
{
	Suite *suite = suite_create("why");
	TCase *roots = test_case(suite, "roots"), *of_threads = test_case(suite, "threads"), *cold = test_case(suite, "cold");
	tcase_add_loop_test(roots, a_data_segment, GCUFFD_RUNG_STOP, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(roots, few_steps, GCUFFD_RUNG_STOP, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(roots, ranges_and_pins, GCUFFD_RUNG_STOP, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(roots, types, GCUFFD_RUNG_STOP, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(of_threads, threads, GCUFFD_RUNG_STOP, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(of_threads, in_a_variable_of_a_thread, GCUFFD_RUNG_STOP, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(of_threads, own_stack, GCUFFD_RUNG_STOP, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(of_threads, own_coroutine, GCUFFD_RUNG_STOP, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(of_threads, a_coroutine, GCUFFD_RUNG_STOP, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(roots, through_a_weak_reference, GCUFFD_RUNG_STOP, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(cold, through_what_is_out, GCUFFD_RUNG_MOVE, GCUFFD_RUNG_RWP + 1);
	return suite;
}

TEST_MAIN(make_suite)
