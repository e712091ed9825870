/* SPDX-License-Identifier: MIT */
/*
 * test_final.c - finalizers: they run once, when nothing leads to their object, with all that it leads to in place; in order where that is asked for;
 * after short references were cleared, and seen by long ones; of cold objects without a restore. What they resuscitate stays.
 */
#define _GNU_SOURCE
#include "cold.h"

#include <fcntl.h>
#include <semaphore.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "fake_os.h"
#include "gc/final.h"
#include "gc/weak.h"

#define STAMP 0xfeedface12345678u

struct thing {
	uint64_t stamp, number;
	struct thing *next, *other;
};

static void *volatile held;

static void begin(int rung) { heap = heap_make("rung=%s,verify=1", rung_names[rung]); }

/* With the lock of cycles: none is under way. */
static void check_finals(void)
{
	gu_lock_fork(&heap->cycle_lock);
	gu_final_check(heap);
	gu_unlock_fork(&heap->cycle_lock);
}

static void end(void)
{
	check_finals();
	gu_weak_check(heap);
	verified(heap);
	ck_ok(gcuffd_heap_destroy(heap));
}

/* Both: the frame of the one covers what the other leaves. */
static inline __attribute__((always_inline)) void clean(void)
{
	scrub_stack();
	scrub();
}

static __attribute__((noinline)) void collect(void)
{
	clean();
	must_ok(gcuffd_collect(heap));
	clean();
}

static __attribute__((noinline)) struct thing *make(size_t size, uint64_t number, struct thing *next)
{
	struct thing *t = gcuffd_alloc(heap, gu_max(size, sizeof(*t)));
	must(t != NULL, "errno %d", errno);
	*t = (struct thing){STAMP, number, next, NULL};
	return t;
}

/* ---- what has run ---- */

#define RUNS 4096

static uint64_t ran[RUNS]; /* numbers */
static size_t nran;

static void note(struct thing *t)
{
	must(t->stamp == STAMP, "not an object: %lx", (unsigned long)t->stamp);
	must(!t->next || t->next->stamp == STAMP, "what it leads to is not there");
	must(nran < RUNS, "too many");
	ran[nran++] = t->number;
}

static void note_it(void *object, void *data)
{
	(void)data;
	note(object);
}

static __attribute__((noinline)) size_t run(void)
{
	size_t n;
	clean();
	must_ok(gcuffd_finalizer_run(heap, SIZE_MAX, &n));
	clean();
	return n;
}

static __attribute__((noinline)) void set(struct thing *t, unsigned flags) { must_ok(gcuffd_finalizer_set(heap, t, note_it, NULL, flags)); }

/* Not under a sanitizer: it keeps copies of pointers on stacks. */
static __attribute__((noinline)) void run_all(size_t n)
{
	for (int i = 0; i < 4 && nran < n; i++) {
		collect();
		run();
		check_finals();
	}
	must(nran == n || (sanitized() && nran < n), "%zu have run, not %zu", nran, n);
}

static __attribute__((noinline)) void must_run(size_t n)
{
	clean(); /* the next frame as well */
	run_all(n);
}

/* ---- when they run ---- */

static const size_t sizes[] = {16, 100, 4096, 100000, 5000000};

/* Something that only it leads to, of another size. */
static __attribute__((noinline)) uint64_t make_dying(size_t size, uint64_t number, unsigned flags)
{
	struct thing *t = make(size, number, make(size + 64, number + 1000, NULL));
	set(t, flags);
	return hide(t);
}

START_TEST(run_once)
{
	NEED_RUNG(_i);
	begin(_i);
	for (unsigned flags = 0; flags <= GCUFFD_UNORDERED; flags++)
		for (size_t i = 0; i < GU_ARRAY_LEN(sizes); i++) {
			nran = 0;
			uint64_t hidden = make_dying(sizes[i], i, flags);
			ck_assert_uint_eq(stats_of(heap).finalizers, 1);
			must_run(1);
			if (sanitized())
				continue;
			ck_assert_uint_eq(ran[0], i);
			ck_assert_uint_eq(stats_of(heap).finalizers, 0);
			for (int k = 0; k < 3 && is_alive(heap, hidden); k++)
				collect();
			ck_assert(!is_alive(heap, hidden));
			ck_assert_uint_eq(run(), 0);
		}
	end();
}
END_TEST

static __attribute__((noinline)) void hold_one(size_t size)
{
	held = make(size, 7, NULL);
	set(held, 0);
}

START_TEST(not_while_something_leads_there)
{
	NEED_RUNG(_i);
	begin(_i);
	for (size_t i = 0; i < GU_ARRAY_LEN(sizes); i++) {
		nran = 0;
		hold_one(sizes[i]);
		for (int k = 0; k < 3; k++) {
			collect();
			ck_assert_uint_eq(run(), 0);
		}
		held = NULL;
		must_run(1);
	}
	end();
}
END_TEST

static void note_data(void *object, void *data)
{
	const struct thing *of = data;
	note(object);
	must(of->stamp == STAMP && of->number == 77, "the data is gone");
}

static __attribute__((noinline)) uint64_t make_with_data(void)
{
	struct thing *data = make(200, 77, NULL), *t = make(64, 1, NULL);
	must_ok(gcuffd_finalizer_set(heap, t, note_data, data, 0));
	held = t;
	return hide(data);
}

START_TEST(data_is_kept)
{
	NEED_RUNG(_i);
	begin(_i);
	nran = 0;
	uint64_t hidden = make_with_data();
	for (int k = 0; k < 3; k++)
		collect();
	ck_assert(is_alive(heap, hidden));
	held = NULL;
	collect();
	collect(); /* on the queue, perhaps */
	ck_assert(is_alive(heap, hidden));
	must_run(1);
	for (int k = 0; k < 3 && is_alive(heap, hidden); k++)
		collect();
	ck_assert(sanitized() || !is_alive(heap, hidden));
	end();
}
END_TEST

/* ---- order ---- */

static __attribute__((noinline)) void make_chain(size_t n, unsigned flags)
{
	struct thing *t = NULL;
	for (size_t i = n; i-- > 0;) {
		t = make(32, i, i % 3 ? t : make(48, 5000 + i, t)); /* some lead there through others */
		t->other = (struct thing *)((char *)t + 8); /* and to themselves, which is no ring */
		set(t, flags);
	}
}

START_TEST(chains)
{
	NEED_RUNG(_i);
	begin(_i);
	nran = 0;
	size_t ordered = sanitized() ? 0 : 5; /* else some of these run among the others, when no stray copy keeps them */
	make_chain(ordered, 0);
	for (size_t i = 0; i < ordered; i++) {
		size_t had = nran;
		for (int k = 0; k < 3 && nran == had; k++) {
			collect();
			struct gcuffd_stats s = stats_of(heap);
			ck_assert_uint_eq(s.finalizers + s.finalizers_ready, 5 - nran);
			ck_assert(!s.finalizers_ready || s.finalizers_waiting == 4 - i);
			run();
		}
		ck_assert_uint_eq(nran, i + 1); /* one at a time */
		ck_assert_uint_eq(ran[i], i);
	}
	nran = 0;
	make_chain(5, GCUFFD_UNORDERED);
	must_run(5);
	end();
}
END_TEST

START_TEST(long_chain)
{
	NEED_RUNG(_i);
	NO_SANITIZER("stray copies of pointers");
	heap = heap_make("rung=%s,start_size=1M", rung_names[_i]);
	nran = 0;
	size_t n = check_rounds(1000);
	make_chain(n, 0);
	for (size_t i = 0; i < n + 100 && nran < n; i++) {
		collect();
		run();
	}
	ck_assert_uint_eq(nran, n);
	for (size_t i = 0; i < n; i++)
		ck_assert_uint_eq(ran[i], i);
	end();
}
END_TEST

static __attribute__((noinline)) void make_mixed(void)
{
	struct thing *last = make(32, 2, NULL), *middle = make(32, 1, last);
	set(last, 0);
	set(middle, GCUFFD_UNORDERED);
	set(make(32, 0, middle), 0);
}

/* An ordered one holds up those without order that it leads to, and is not held up by them. */
START_TEST(mixed_chain)
{
	NEED_RUNG(_i);
	NO_SANITIZER("stray copies of pointers");
	begin(_i);
	nran = 0;
	make_mixed();
	for (int k = 0; k < 3 && !nran; k++) {
		collect();
		run();
	}
	ck_assert_uint_eq(nran, 1);
	ck_assert_uint_eq(ran[0], 0);
	must_run(3);
	end();
}
END_TEST

static __attribute__((noinline)) void make_ring(size_t n, unsigned flags, struct gcuffd_weak **weak)
{
	struct thing *first = make(32, 0, NULL), *last = first;
	set(first, flags);
	for (size_t i = 1; i < n; i++) {
		last = last->next = make(32, i, NULL);
		set(last, flags);
	}
	last->next = first;
	if (weak)
		must_ok(gcuffd_weak_create_long(heap, first, weak));
}

static __attribute__((noinline)) void cut_ring(const struct gcuffd_weak *weak)
{
	struct gcuffd_finalizer was;
	struct thing *t = gcuffd_weak_get(heap, weak);
	must(t && t->stamp == STAMP, "it is not there");
	must_ok(gcuffd_finalizer_clear(heap, t, &was));
	must(was.object == t && was.fn == note_it && !was.data, "another one");
	t->next = NULL;
}

START_TEST(rings)
{
	NEED_RUNG(_i);
	NO_SANITIZER("stray copies of pointers");
	struct gcuffd_weak *weak;
	begin(_i);
	for (size_t n = 1; n < 4; n++) {
		nran = 0;
		make_ring(n, GCUFFD_UNORDERED, NULL);
		must_run(n);
	}
	nran = 0;
	make_ring(1, 0, NULL);
	must_run(1);
	nran = 0;
	make_ring(3, 0, &weak);
	for (int k = 0; k < 4; k++) {
		collect();
		ck_assert_uint_eq(run(), 0);
	}
	ck_assert_uint_eq(stats_of(heap).finalizers_waiting, 3);
	cut_ring(weak);
	must_run(2);
	ck_assert_uint_eq(ran[0], 1);
	collect();
	ck_assert_uint_eq(stats_of(heap).finalizers_waiting, 0);
	end();
}
END_TEST

/* ---- resuscitation ---- */

static struct thing *saved;
static unsigned lives;

static void save_it(void *object, void *data)
{
	note(object);
	if (lives && --lives)
		must_ok(gcuffd_finalizer_set(heap, object, save_it, data, 0));
	saved = object;
}

static __attribute__((noinline)) uint64_t make_saved(void)
{
	struct thing *t = make(64, 3, make(128, 4, NULL));
	must_ok(gcuffd_finalizer_set(heap, t, save_it, NULL, 0));
	return hide(t);
}

START_TEST(resuscitated)
{
	NEED_RUNG(_i);
	begin(_i);
	nran = 0;
	lives = 3;
	uint64_t hidden = make_saved();
	for (size_t i = 1; i <= 3 && !sanitized(); i++) {
		must_run(i);
		for (int k = 0; k < 3; k++) {
			collect();
			ck_assert_uint_eq(run(), 0);
		}
		ck_assert(hide(saved) == hidden && saved->stamp == STAMP && saved->next->number == 4);
		saved = NULL;
	}
	saved = NULL;
	for (int k = 0; k < 3 && is_alive(heap, hidden); k++)
		collect();
	ck_assert(sanitized() || !is_alive(heap, hidden));
	ck_assert(sanitized() || run() == 0);
	end();
}
END_TEST

/* ---- weak references ---- */

static struct gcuffd_weak *briefly, *longer, *inner, *pair;

static void look(void *object, void *data)
{
	(void)data;
	note(object);
	must(!gcuffd_weak_get(heap, briefly), "the short reference is there");
	must(!gcuffd_weak_get(heap, inner), "the short reference to what it leads to is there");
	must(gcuffd_weak_get(heap, longer) == object, "the long reference is not");
	const struct thing *value = gcuffd_weak_value(heap, pair, NULL);
	must(value && value->stamp == STAMP && value->number == 9, "its value is not");
}

static __attribute__((noinline)) void make_referred(void)
{
	struct thing *t = make(64, 1, make(100, 2, NULL));
	must_ok(gcuffd_finalizer_set(heap, t, look, NULL, 0));
	must_ok(gcuffd_weak_create(heap, t, &briefly));
	must_ok(gcuffd_weak_create(heap, t->next, &inner));
	must_ok(gcuffd_weak_create_long(heap, t, &longer));
	must_ok(gcuffd_weak_create_long(heap, t, &pair));
	must_ok(gcuffd_weak_bind(heap, pair, t, make(300, 9, NULL)));
	must(gcuffd_weak_get(heap, briefly) == t && gcuffd_weak_get(heap, longer) == t, "another object");
	held = t;
}

static bool is_there(const struct gcuffd_weak *weak) { return gcuffd_weak_get(heap, weak); }

START_TEST(weak_references)
{
	NEED_RUNG(_i);
	NO_SANITIZER("stray copies of pointers");
	begin(_i);
	nran = 0;
	make_referred();
	collect();
	ck_assert(is_there(briefly) && is_there(longer) && is_there(inner) && is_there(pair));
	held = NULL;
	for (int k = 0; k < 3 && is_there(briefly); k++)
		collect();
	ck_assert(!is_there(briefly) && !is_there(inner) && is_there(longer) && is_there(pair));
	ck_assert_uint_eq(stats_of(heap).finalizers_ready, 1);
	must_run(1);
	for (int k = 0; k < 3 && is_there(longer); k++)
		collect();
	ck_assert(!is_there(longer) && !is_there(pair));
	end();
}
END_TEST

static __attribute__((noinline)) void mark_by_hand(const void *object)
{
	struct gu_block *b = gu_block_at(&heap->space, (uintptr_t)object);
	uint32_t cell;
	must(gu_block_cell(b, (uintptr_t)object, &cell), "no cell");
	gu_or_seqcst(&b->bits[cell >> 6].mark, 1ull << (cell & 63));
}

static void *decide_later(void *arg)
{
	usleep(50000);
	gu_weak_state_set(heap, GU_WEAK_DECIDED);
	return arg;
}

/* As while a cycle marks for finalizers: the object had no mark, and has got one meanwhile (.inv.weak.final). */
START_TEST(undecided)
{
	pthread_t thread;
	begin(GCUFFD_RUNG_AUTO);
	held = make(64, 1, NULL);
	ck_ok(gcuffd_weak_create(heap, held, &briefly));
	ck_ok(gcuffd_weak_create_long(heap, held, &longer));
	gu_weak_state_set(heap, GU_WEAK_FINAL);
	gu_weak_clear_unmarked(heap);
	mark_by_hand(held);
	ck_assert(!is_there(briefly));
	uint64_t start = test_now_ns();
	must_ok(pthread_create(&thread, NULL, decide_later, NULL));
	ck_assert_ptr_eq(gcuffd_weak_get(heap, longer), held);
	ck_assert_uint_ge(test_now_ns() - start, 40000000);
	must_ok(pthread_join(thread, NULL));
	gu_weak_state_set(heap, GU_WEAK_OPEN);
	end();
}
END_TEST

/* ---- the queue ---- */

static __attribute__((noinline)) void make_many(size_t n)
{
	for (size_t i = 0; i < n; i++)
		set(make(32, i, NULL), i % 2 ? GCUFFD_UNORDERED : 0);
}

static void run_more(void *object, void *data)
{
	size_t n;
	(void)data;
	note(object);
	must_ok(gcuffd_finalizer_run(heap, 1, &n));
}

static __attribute__((noinline)) void make_nested(size_t n)
{
	for (size_t i = 0; i < n; i++)
		must_ok(gcuffd_finalizer_set(heap, make(32, i, NULL), run_more, NULL, GCUFFD_UNORDERED));
}

static __attribute__((noinline)) void take_one(void)
{
	struct gcuffd_finalizer f;
	must_ok(gcuffd_finalizer_next(heap, &f));
	must(f.fn == note_it && !f.data, "another one");
	f.fn(f.object, f.data);
}

static void notify(void *sem) { sem_post(sem); }

START_TEST(queue)
{
	NEED_RUNG(_i);
	NO_SANITIZER("stray copies of pointers");
	struct gcuffd_finalizer f;
	size_t n;
	sem_t sem;
	begin(_i);
	sem_init(&sem, 0, 0);
	nran = 0;
	ck_assert_int_eq(gcuffd_finalizer_next(heap, &f), -EAGAIN);
	ck_assert_int_eq(gcuffd_finalizer_wait(heap, 0), -ETIMEDOUT);
	ck_assert_int_eq(gcuffd_finalizer_wait(heap, 20), -ETIMEDOUT);
	ck_ok(gcuffd_finalizer_notify(heap, notify, &sem));
	make_many(20);
	for (int k = 0; k < 4 && stats_of(heap).finalizers_ready < 20; k++)
		collect();
	ck_assert_uint_eq(stats_of(heap).finalizers_ready, 20);
	ck_assert_int_eq(sem_trywait(&sem), 0);
	ck_ok(gcuffd_finalizer_notify(heap, NULL, NULL));
	ck_ok(gcuffd_finalizer_wait(heap, -1));
	take_one();
	ck_ok(gcuffd_finalizer_run(heap, 5, &n));
	ck_assert_uint_eq(n, 5);
	ck_ok(gcuffd_finalizer_run(heap, 0, NULL));
	ck_assert_uint_eq(nran, 6);
	for (int k = 0; k < 3; k++) /* it is a root */
		collect();
	check_finals();
	ck_assert_uint_eq(run(), 14);
	ck_assert_uint_eq(stats_of(heap).finalizers_taken, 20);
	uint64_t seen = 0;
	for (size_t i = 0; i < nran; i++)
		seen |= 1ull << ran[i];
	ck_assert_uint_eq(seen, (1u << 20) - 1);
	nran = 0;
	make_nested(10);
	must_run(10);
	sem_destroy(&sem);
	end();
}
END_TEST

/* ---- the library's thread ---- */

static int pipe_fd[2];
static pthread_t runner;
static int destroy_result;

/* It may allocate, collect, set finalizers; descriptors are the program's. */
static void on_the_thread(void *object, void *data)
{
	(void)data;
	sigset_t blocked;
	runner = pthread_self();
	must_ok(pthread_sigmask(SIG_SETMASK, NULL, &blocked));
	must(sigismember(&blocked, SIGUSR1) && !sigismember(&blocked, SIGSEGV) && !sigismember(&blocked, gcuffd_stop_signal()), "other signals");
	must(setgid(getgid()) == 0, "errno %d", errno); /* the C library asks every thread */
	held = make(64, 1, NULL);
	must_ok(gcuffd_collect(heap));
	set(make(64, 2, NULL), 0);
	destroy_result = gcuffd_heap_destroy(heap);
	note(object);
	must(write(pipe_fd[1], "x", 1) == 1, "errno %d", errno);
	must(close(pipe_fd[1]) == 0, "errno %d", errno);
}

static __attribute__((noinline)) void make_for_thread(void)
{
	must_ok(gcuffd_finalizer_set(heap, make(64, 5, NULL), on_the_thread, NULL, 0));
}

START_TEST(thread)
{
	NEED_RUNG(_i);
	char c;
	heap = heap_make("rung=%s,verify=1,finalizer_thread=1", rung_names[_i]);
	nran = 0;
	ck_ok(pipe2(pipe_fd, O_CLOEXEC));
	make_for_thread();
	for (int k = 0; k < 4 && !stats_of(heap).finalizers_taken; k++)
		collect();
	if (!sanitized() || stats_of(heap).finalizers_taken) {
		ck_ok(gcuffd_blocking_enter());
		ssize_t n = read(pipe_fd[0], &c, 1), m = read(pipe_fd[0], &c, 1);
		ck_ok(gcuffd_blocking_leave());
		ck_assert_int_eq(n, 1);
		ck_assert_int_eq(m, 0); /* the end: it is closed here as well */
		ck_assert(!pthread_equal(runner, pthread_self()));
		ck_assert_int_eq(destroy_result, -EBUSY);
		ck_assert_uint_eq(ran[0], 5);
	}
	close(pipe_fd[0]);
	held = NULL;
	end();
}
END_TEST

/* ---- mistakes, freed objects, arenas ---- */

static void *without_attaching(void *object)
{
	struct gcuffd_finalizer f;
	must(gcuffd_finalizer_set(heap, object, note_it, NULL, 0) == -EPERM, "it was set");
	must(gcuffd_finalizer_clear(heap, object, NULL) == -EPERM, "it was cleared");
	must(gcuffd_finalizer_next(heap, &f) == -EPERM, "one was taken");
	must(gcuffd_finalizer_run(heap, 1, NULL) == -EPERM, "one was run");
	return NULL;
}

START_TEST(mistakes)
{
	struct gcuffd_finalizer was;
	pthread_t other;
	begin(GCUFFD_RUNG_AUTO);
	char *o = held = gcuffd_alloc(heap, 100);
	ck_assert_int_eq(gcuffd_finalizer_set(heap, o + 8, note_it, NULL, 0), -ENOENT);
	ck_assert_int_eq(gcuffd_finalizer_set(heap, &o, note_it, NULL, 0), -ENOENT);
	ck_assert_int_eq(gcuffd_finalizer_set(heap, NULL, note_it, NULL, 0), -ENOENT);
	ck_assert_int_eq(gcuffd_finalizer_set(heap, o, NULL, NULL, 0), -EINVAL);
	ck_assert_int_eq(gcuffd_finalizer_set(heap, o, note_it, NULL, 2), -EINVAL);
	ck_assert_int_eq(gcuffd_finalizer_clear(heap, o, NULL), -ENOENT);
	ck_ok(gcuffd_finalizer_set(heap, o, note_it, NULL, 0));
	ck_ok(gcuffd_finalizer_set(heap, o, note_data, &other, GCUFFD_UNORDERED));
	ck_assert_uint_eq(stats_of(heap).finalizers, 1);
	must_ok(pthread_create(&other, NULL, without_attaching, o));
	must_ok(pthread_join(other, NULL));
	ck_assert_int_eq(gcuffd_finalizer_clear(heap, o + 8, NULL), -ENOENT);
	ck_ok(gcuffd_finalizer_clear(heap, o, &was));
	ck_assert(was.object == o && was.fn == note_data && was.data == &other);
	ck_assert_int_eq(gcuffd_finalizer_clear(heap, o, &was), -ENOENT);
	struct gcuffd_options options;
	gcuffd_options_init(&options);
	options.finalizer_thread = 2;
	options.log = core_keep_line;
	struct gcuffd_heap *none;
	ck_assert_int_eq(gcuffd_heap_create(&options, &none), -EINVAL);
	end();
}
END_TEST

START_TEST(freed_objects)
{
	NEED_RUNG(_i);
	begin(_i);
	nran = 0;
	for (size_t i = 0; i < GU_ARRAY_LEN(sizes); i++) {
		struct thing *t = make(sizes[i], 0, NULL);
		set(t, 0);
		ck_ok(gcuffd_free(heap, t));
		check_finals();
		t = make(sizes[i], 1, NULL);
		set(t, 0);
		held = gcuffd_realloc(heap, t, sizes[i] * 4 + 100);
		ck_assert_ptr_nonnull(held);
		ck_assert_uint_eq(stats_of(heap).finalizers, held == t); /* one that moves has none */
		ck_ok(gcuffd_free(heap, held));
		check_finals();
	}
	for (int k = 0; k < 3; k++) {
		collect();
		ck_assert_uint_eq(run(), 0);
	}
	end();
}
END_TEST

/* Freed on the queue, by who has it from a long reference. */
static __attribute__((noinline)) void make_freed(struct gcuffd_weak **weak)
{
	for (uint64_t i = 0; i < 3; i++) {
		struct thing *t = make(64, i, NULL);
		set(t, GCUFFD_UNORDERED);
		must_ok(gcuffd_weak_create_long(heap, t, &weak[i]));
	}
}

static __attribute__((noinline)) void free_it(const struct gcuffd_weak *weak) { must_ok(gcuffd_free(heap, gcuffd_weak_get(heap, weak))); }
static __attribute__((noinline)) void set_again(const struct gcuffd_weak *weak) { set(gcuffd_weak_get(heap, weak), 0); }

START_TEST(freed_on_the_queue)
{
	NO_SANITIZER("stray copies of pointers");
	struct gcuffd_weak *weak[3];
	begin(GCUFFD_RUNG_AUTO);
	nran = 0;
	make_freed(weak);
	for (int k = 0; k < 4 && stats_of(heap).finalizers_ready < 3; k++)
		collect();
	free_it(weak[1]);
	set_again(weak[2]);
	check_finals();
	ck_assert_uint_eq(stats_of(heap).finalizers_ready, 2);
	collect();
	ck_assert_uint_eq(run(), 2);
	check_finals();
	must_run(3); /* that which was set again, once more */
	ck_assert_uint_eq(ran[2], 2);
	end();
}
END_TEST

START_TEST(arenas)
{
	struct gcuffd_arena *arena;
	begin(GCUFFD_RUNG_AUTO);
	nran = 0;
	ck_ok(gcuffd_arena_create(heap, "short", &arena));
	held = make(64, 1, NULL);
	set(held, 0);
	for (int i = 0; i < 2; i++) {
		for (int k = 0; k < 1000; k++) {
			struct thing *t = gcuffd_arena_alloc(arena, 64, 0, GCUFFD_CONSERVATIVE);
			t->stamp = STAMP;
			set(t, 0);
		}
		collect(); /* many are on the queue */
		ck_ok(i ? gcuffd_arena_destroy(arena) : gcuffd_arena_reset(arena));
		check_finals();
		ck_assert_uint_eq(stats_of(heap).finalizers, 1);
		ck_assert_uint_eq(stats_of(heap).finalizers_ready, 0);
		collect();
		ck_assert_uint_eq(run(), 0);
	}
	held = NULL;
	must_run(1);
	end();
}
END_TEST

/* ---- many, and no memory for more ---- */

#define MANY 200000u

static uint64_t many_ran;
static void count_it(void *object, void *data)
{
	must(((struct thing *)object)->stamp == STAMP && ((struct thing *)object)->next->stamp == STAMP && data == &many_ran, "another one");
	many_ran++;
}

static __attribute__((noinline)) void make_a_great_many(size_t n)
{
	for (size_t i = 0; i < n; i++)
		must_ok(gcuffd_finalizer_set(heap, make(32, i, make(32, i, NULL)), count_it, &many_ran, i % 2));
}

START_TEST(many)
{
	heap = heap_make("mark_threads=3");
	for (int round = 0; round < 2; round++) {
		many_ran = 0;
		make_a_great_many(MANY);
		check_finals();
		collect();
		check_finals();
		run();
		collect();
		run();
		ck_assert_uint_ge(many_ran, MANY - 16); /* stray pointers */
		check_finals();
	}
	end();
}
END_TEST

/* Each call for memory fails once; what is set is set, what is not is not. */
START_TEST(no_memory)
{
	begin(GCUFFD_RUNG_AUTO);
	struct thing **all = held = gcuffd_alloc(heap, 10000 * sizeof(*all));
	for (size_t i = 0; i < 10000; i++)
		all[i] = make(32, i, NULL);
	fake_install();
	size_t done = 0, failed = 0;
	for (unsigned nth = 1; done < 10000; nth++) {
		fake_fail(FAKE_ANY, nth, -ENOMEM);
		for (int err = 0; !err && done < 10000; done += !err) {
			err = gcuffd_finalizer_set(heap, all[done], note_it, NULL, 0);
			ck_assert(!err || err == -ENOMEM);
			failed += err != 0;
		}
	}
	fake_clear();
	fake_remove();
	ck_assert_uint_ge(failed, 4);
	check_finals();
	ck_assert_uint_eq(stats_of(heap).finalizers, 10000);
	collect();
	ck_assert_uint_eq(run(), 0);
	end();
}
END_TEST

/* Packets can't be had, so gray objects are dropped, of the steps for finalizers as well. */
START_TEST(no_packets)
{
	NEED_RUNG(_i);
	NO_SANITIZER("stray copies of pointers");
	heap = heap_make("rung=%s,mark_threads=2", rung_names[_i]);
	many_ran = 0;
	make_a_great_many(30000);
	collect();
	run();
	collect();
	run();
	ck_assert_uint_ge(many_ran, 30000 - 16);
	many_ran = 0;
	make_a_great_many(30000);
	fake_install();
	fake_fail(FAKE_MMAP, 1, -ENOMEM);
	fake.sticky = true;
	collect();
	fake_clear();
	fake_remove();
	check_finals();
	run();
	collect();
	run();
	ck_assert_uint_ge(many_ran, 30000 - 16);
	end();
}
END_TEST

/* ---- shapes ---- */

static __attribute__((noinline)) void make_shapes(void)
{
	static const uint64_t bitmap[1] = {1u << 2};
	struct gcuffd_type *type;
	must_ok(gcuffd_type_create(heap, bitmap, 4, &type));
	struct thing *typed = gcuffd_alloc_typed(heap, type, sizeof(*typed)), *atomic = gcuffd_alloc_atomic(heap, sizeof(*atomic));
	struct thing *vast = make((size_t)64 << 20, 2, NULL), *below = make(32, 3, NULL);
	must(typed && atomic, "errno %d", errno);
	*typed = (struct thing){STAMP, 0, atomic, below}; /* other is no pointer */
	*atomic = (struct thing){STAMP, 1, NULL, NULL};
	((void **)vast)[6000000] = below;
	((void **)vast)[7000000] = (char *)vast + 5000000;
	set(atomic, 0);
	set(below, 0);
	set(typed, 0);
	set(vast, 0);
}

/* typed leads to atomic, vast to itself and to below. */
START_TEST(shapes)
{
	NEED_RUNG(_i);
	NO_SANITIZER("stray copies of pointers");
	begin(_i);
	nran = 0;
	make_shapes();
	must_run(4);
	size_t at[4];
	for (size_t i = 0; i < 4; i++)
		at[ran[i]] = i;
	ck_assert_uint_lt(at[0], at[1]); /* where both were on the queue at once it would be the other way */
	ck_assert_uint_lt(at[2], at[3]);
	end();
}
END_TEST

/* ---- beside mutators ---- */

#define THREADS 3
#define SLOTS 64

static uint64_t end_ns, set_count, run_count; /* atomic but for the first */

/* What it leads to has its number, and so has the data. */
static void count_stress(void *object, void *data)
{
	struct thing *t = object;
	const struct thing *d = data;
	must(t->stamp == STAMP && d->stamp == STAMP && d->number == t->number, "number %lx of %lx", (unsigned long)t->number, (unsigned long)d->number);
	for (const struct thing *n = t->next; n; n = n->next)
		must(n->stamp == STAMP && n->number == t->number, "number %lx of %lx", (unsigned long)n->number, (unsigned long)t->number);
	t->stamp = 0; /* a second time would be seen */
	__atomic_add_fetch(&run_count, 1, __ATOMIC_RELAXED);
}

static struct thing *make_stress(uint64_t number, struct test_rng *rng)
{
	struct thing *t = NULL;
	for (uint64_t n = test_below(rng, 3) + 1; n > 0; n--)
		t = make((size_t)32 << test_below(rng, 4), number, t);
	must_ok(gcuffd_finalizer_set(heap, t, count_stress, make(48, number, NULL), test_below(rng, 2) ? GCUFFD_UNORDERED : 0)); /* nobody else has the data */
	__atomic_add_fetch(&set_count, 1, __ATOMIC_RELAXED);
	return t;
}

/* What a long reference gives is the object, before or after its finalizer. */
static void look_long(const struct gcuffd_weak *weak, uint64_t number)
{
	const struct thing *t = gcuffd_weak_get(heap, weak);
	must(!t || t->number == number, "number %lx, not %lx", (unsigned long)t->number, (unsigned long)number);
	must(!t || !t->next || (t->next->stamp == STAMP && t->next->number == number), "what it leads to is gone");
}

static void *stress(void *arg)
{
	uint64_t id = (uintptr_t)arg, number = id << 40;
	struct test_rng rng = test_rng(id);
	struct gcuffd_weak *weak[SLOTS];
	uint64_t numbers[SLOTS];
	must_ok(gcuffd_thread_attach());
	struct thing **all = gcuffd_alloc(heap, SLOTS * sizeof(*all));
	must(all != NULL, "errno %d", errno);
	for (size_t i = 0; i < SLOTS; i++) {
		numbers[i] = ++number;
		all[i] = make_stress(number, &rng);
		must_ok(gcuffd_weak_create_long(heap, all[i], &weak[i]));
	}
	for (uint64_t n = 0; n % 64 || test_now_ns() < end_ns; n++) {
		size_t i = test_below(&rng, SLOTS);
		must(!all[i] || all[i]->stamp == STAMP, "it has been finalized");
		look_long(weak[i], numbers[i]);
		switch (test_below(&rng, 8)) {
		case 0:
			if (all[i] && !gcuffd_finalizer_clear(heap, all[i], NULL))
				__atomic_sub_fetch(&set_count, 1, __ATOMIC_RELAXED);
			all[i] = NULL;
			break;
		case 1:
			if (all[i] && !gcuffd_finalizer_clear(heap, all[i], NULL)) {
				__atomic_sub_fetch(&set_count, 1, __ATOMIC_RELAXED);
				must_ok(gcuffd_weak_set(heap, weak[i], NULL));
				must_ok(gcuffd_free(heap, all[i]));
			}
			all[i] = NULL;
			break;
		case 2:
			all[i] = NULL;
			break;
		case 3:
			must_ok(gcuffd_finalizer_run(heap, 8, NULL));
			break;
		default:
			numbers[i] = ++number;
			all[i] = make_stress(number, &rng);
			must_ok(gcuffd_weak_set(heap, weak[i], all[i]));
		}
	}
	for (size_t i = 0; i < SLOTS; i++)
		must_ok(gcuffd_weak_destroy(heap, weak[i]));
	__asm__ volatile("" : : "r"(all) : "memory");
	must_ok(gcuffd_thread_detach());
	return NULL;
}

START_TEST(beside_cycles)
{
	NEED_RUNG(_i);
	pthread_t t[THREADS];
	heap = heap_make("rung=%s,verify=1,finalizer_thread=%d", rung_names[_i], _i % 2);
	set_count = run_count = 0;
	end_ns = test_now_ns() + check_seconds() * 1000000000ull / 2;
	for (size_t i = 0; i < THREADS; i++)
		must_ok(pthread_create(&t[i], NULL, stress, (void *)(i + 1)));
	do {
		ck_ok(gcuffd_collect(heap));
		gu_weak_check(heap);
	} while (goes_on(heap, end_ns, 3));
	for (size_t i = 0; i < THREADS; i++)
		must_ok(pthread_join(t[i], NULL));
	for (int k = 0; k < 4; k++) {
		collect();
		run();
	}
	for (int ms = 0; stats_of(heap).finalizers_ready && ms < 10000; ms++)
		usleep(1000);
	struct gcuffd_stats s = stats_of(heap);
	ck_assert_uint_gt(run_count, 0);
	ck_assert_uint_eq(s.finalizers_ready, 0);
	ck_assert(sanitized() || s.finalizers <= 16); /* stray pointers */
	for (int ms = 0; set_count != run_count + s.finalizers && ms < 10000; ms++) /* the thread may be in the last one */
		usleep(1000);
	ck_assert_uint_eq(set_count, run_count + s.finalizers);
	end();
}
END_TEST

/* ---- children ---- */

static __attribute__((noinline)) void make_three(void)
{
	hold_one(64);
	set(make(100, 8, NULL), 0);
}

/* Or a few cycles long: the heap's own thread may be the one that runs them. */
static void collect_until(size_t n)
{
	for (int k = 0; k < 4 && nran < n; k++) {
		collect();
		run();
		usleep(10000);
	}
}

static void end_child(void)
{
	bool good = true;
	limit_child();
	collect_until(1);
	good &= sanitized() || (nran == 1 && ran[0] == 8);
	held = NULL;
	collect_until(2);
	check_finals();
	_exit(good && (sanitized() || (nran == 2 && ran[1] == 7)) ? 0 : 1);
}

/* One is on the queue at the fork, or about to be, one is not. On its own thread as well, which the child has anew. */
static void fork_with(int own_thread)
{
	int status;
	heap = heap_make("verify=1,finalizer_thread=%d", own_thread);
	nran = 0;
	make_three();
	if (!own_thread)
		collect();
	pid_t child = fork();
	if (!child)
		end_child();
	ck_assert_int_eq(waitpid(child, &status, 0), child);
	ck_assert_int_eq(status, 0);
	collect_until(1);
	ck_assert(sanitized() || (nran == 1 && ran[0] == 8));
	held = NULL;
	end();
}

#define SLOW 50u

static uint32_t nslow, go_on, nslow_in_handler;

static void slow(void *object, void *data)
{
	(void)object, (void)data;
	gu_add_seqcst(&nslow, 1);
	while (!gu_load_seqcst(&go_on))
		usleep(1000);
}

static __attribute__((noinline)) void make_slow(void)
{
	for (unsigned i = 0; i < SLOW; i++)
		must_ok(gcuffd_finalizer_set(heap, gcuffd_alloc(heap, 64), slow, NULL, GCUFFD_UNORDERED));
}

static void look_in_child(void)
{
	usleep(20000);
	nslow_in_handler = gu_load_seqcst(&nslow);
}

static void end_slow_child(void)
{
	limit_child();
	gu_store_seqcst(&go_on, 1);
	for (unsigned ms = 0; gu_load_seqcst(&nslow) < SLOW / 2 && ms < 10000; ms++) {
		collect();
		usleep(1000);
	}
	_exit(nslow_in_handler == 1 && gu_load_seqcst(&nslow) >= SLOW / 2 ? 0 : 1); /* the stack may keep some */
}

/* Nothing runs in a child before the program's own handlers have put right there what finalizers may use. */
START_TEST(child_handlers_come_first)
{
	int status;
	heap = heap_make("finalizer_thread=1");
	ck_ok(pthread_atfork(NULL, NULL, look_in_child));
	make_slow();
	for (unsigned ms = 0; !gu_load_seqcst(&nslow) && ms < 10000; ms++)
		collect();
	ck_assert_uint_eq(gu_load_seqcst(&nslow), 1);
	pid_t child = fork();
	if (!child)
		end_slow_child();
	ck_assert_int_eq(waitpid(child, &status, 0), child);
	ck_assert_int_eq(status, 0);
	gu_store_seqcst(&go_on, 1);
	end();
}
END_TEST

START_TEST(children) { fork_with(0); }
END_TEST

START_TEST(children_with_a_thread) { fork_with(1); }
END_TEST

/* ---- cold objects ---- */

#define COLD_ONES 4000u

static uint64_t cold_ran;

static void count_links(void *object, void *data, size_t links)
{
	size_t n = 0;
	for (const struct thing *t = object; t; t = t->next, n++)
		must(t->stamp == STAMP && t->number == (uintptr_t)data, "number %lx of %p", (unsigned long)t->number, data);
	must(n == links, "%zu of its objects are there, not %zu", n, links);
	cold_ran++;
}

static void count_cold(void *object, void *data) { count_links(object, data, 4); }
static void count_second(void *object, void *data) { count_links(object, data, 3); }

static __attribute__((noinline)) void make_cold(struct thing **keep)
{
	struct test_rng rng = test_rng(5);
	for (size_t i = 0; i < COLD_ONES; i++) {
		struct thing *t = NULL;
		for (int k = 0; k < 4; k++) { /* each on pages of its own, more or less */
			t = make((size_t)128 << test_below(&rng, 4), i, t);
			for (size_t w = 4; w < 16; w++)
				((uint64_t *)t)[w] = test_rand(&rng) | 1ull << 63;
		}
		must_ok(gcuffd_finalizer_set(heap, t, count_cold, (void *)(uintptr_t)i, i % 2));
		if (i % 4 == 0)
			keep[i] = t;
		if (i % 4 == 2)
			must_ok(gcuffd_finalizer_set(heap, t->next, count_second, (void *)(uintptr_t)i, i % 8 == 2));
	}
}

/* Taken out, found dead, put on the queue: all without bringing a page back. filed: what pages lead to is in a file, and they are put off. */
static void finalize_cold(bool filed)
{
	struct thing **keep = held = gcuffd_alloc(heap, COLD_ONES * sizeof(*keep));
	struct gcuffd_weak *weak;
	cold_ran = 0;
	make_cold(keep);
	ck_ok(gcuffd_weak_create_long(heap, keep[0], &weak));
	if (filed)
		gu_store_relaxed(&heap->space.cold.target, 0); /* all that is taken out has its summary in the file */
	scrub();
	ck_assert_uint_gt(cool_all(), COLD_ONES / 4);
	collect();
	collect();
	struct gcuffd_stats s = stats_of(heap);
	ck_assert_uint_ge(s.finalizers_ready, COLD_ONES / 4 * 3 - 16); /* stray pointers */
	ck_assert_uint_le(s.finalizers_ready, COLD_ONES / 4 * 3); /* no second one of a chain */
	ck_assert_uint_eq(s.finalizers, COLD_ONES / 4 * 5 - s.finalizers_ready);
	struct gcuffd_cold_stats c = cold_of(heap);
	ck_assert_uint_eq(c.collector_pages, 0);
	ck_assert(!filed || c.store_file_bytes);
	ck_assert_msg(c.restored_pages <= 16, "%lu pages came back", (unsigned long)c.restored_pages); /* the table of objects */
	check_finals();
	checked();
	run();
	ck_assert_uint_eq(cold_ran, s.finalizers_ready);
	collect();
	run();
	ck_assert_uint_ge(cold_ran, COLD_ONES - 32);
	ck_assert_uint_le(cold_ran, COLD_ONES);
	ck_assert(is_there(weak));
	for (size_t i = 0; i < COLD_ONES; i += 4)
		for (const struct thing *t = keep[i]; t; t = t->next)
			must(t->stamp == STAMP && t->number == i, "what was kept is gone");
	check_finals();
	checked();
	ck_ok(gcuffd_heap_destroy(heap));
}

START_TEST(cold_objects)
{
	cold_heap(",verify=1");
	finalize_cold(false);
}
END_TEST

START_TEST(cold_objects_with_a_file)
{
	cold_heap(",verify=1,store_memory=1M,store_file=256M");
	finalize_cold(true);
}
END_TEST

/* ---- the verifier, and who asks ---- */

static __attribute__((noinline)) void make_planted(void)
{
	for (uint64_t i = 0; i < 8; i++)
		set(make(64, i, make(64, i, NULL)), 0);
}

START_TEST(finds_what_is_skipped)
{
	NEED_RUNG(_i);
	NO_SANITIZER("stray copies of pointers");
	heap = heap_make("rung=%s,verify=1,plant_skip_finalizer=1", rung_names[_i]);
	make_planted();
	collect();
	collect();
	ck_assert_uint_gt(stats_of(heap).verify_failures, 0);
	ck_assert_msg(strstr(core_log, "waits for its finalizer, but not marked") != NULL, "%s", core_log);
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

START_TEST(finds_a_queue_that_is_no_root)
{
	NEED_RUNG(_i);
	NO_SANITIZER("stray copies of pointers");
	heap = heap_make("rung=%s,verify=1", rung_names[_i]);
	make_planted();
	for (int k = 0; k < 4 && stats_of(heap).finalizers_ready < 8; k++)
		collect();
	verified(heap);
	heap->options.debug = GCUFFD_PLANT_SKIP_FINALIZER;
	collect();
	ck_assert_uint_gt(stats_of(heap).verify_failures, 0);
	ck_assert_msg(strstr(core_log, "reachable but not marked") != NULL, "%s", core_log);
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

START_TEST(why_alive)
{
	NO_SANITIZER("stray copies of pointers");
	struct gcuffd_root root = {.size = sizeof(root)};
	struct gcuffd_step steps[4];
	size_t n;
	begin(GCUFFD_RUNG_AUTO);
	nran = 0;
	uint64_t hidden = make_dying(64, 1, 0);
	for (int k = 0; k < 4 && !stats_of(heap).finalizers_ready; k++)
		collect();
	ck_ok(gcuffd_why_alive(heap, reveal(hidden), &root, steps, 4, &n));
	ck_assert_int_eq(root.kind, GCUFFD_ROOT_FINALIZER);
	ck_assert_uint_eq(n, 1);
	must_run(1);
	end();
}
END_TEST

/* Threads that never attached, of a heap for which they are stopped. */
static void *from_outside(void *arg)
{
	struct thing **all = arg;
	for (size_t i = 0; i < 100; i++)
		set(all[i], i % 2 ? GCUFFD_UNORDERED : 0);
	memset((void *)all, 0, 100 * sizeof(*all));
	for (int k = 0; k < 4 && nran < 100; k++) {
		collect();
		run();
	}
	return NULL;
}

START_TEST(unattached_threads)
{
	NO_SANITIZER("stray copies of pointers");
	pthread_t other;
	heap = heap_make("process_roots=1,verify=1");
	nran = 0;
	struct thing **all = held = gcuffd_alloc(heap, 100 * sizeof(*all));
	for (size_t i = 0; i < 100; i++)
		all[i] = make(32, i, NULL);
	must_ok(pthread_create(&other, NULL, from_outside, all));
	must_ok(pthread_join(other, NULL));
	ck_assert_uint_ge(nran, 100 - 16);
	end();
}
END_TEST

static Suite *make_suite(void)
{
	Suite *suite = suite_create("final");
	TCase *each = test_case(suite, "each"), *cold = test_case(suite, "cold"), *one = test_case(suite, "one");
	tcase_add_loop_test(each, run_once, GCUFFD_RUNG_STOP, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(each, not_while_something_leads_there, GCUFFD_RUNG_STOP, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(each, data_is_kept, GCUFFD_RUNG_STOP, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(each, chains, GCUFFD_RUNG_STOP, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(each, long_chain, GCUFFD_RUNG_STOP, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(each, mixed_chain, GCUFFD_RUNG_STOP, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(each, rings, GCUFFD_RUNG_STOP, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(each, resuscitated, GCUFFD_RUNG_STOP, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(each, weak_references, GCUFFD_RUNG_STOP, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(each, queue, GCUFFD_RUNG_STOP, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(each, thread, GCUFFD_RUNG_STOP, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(each, freed_objects, GCUFFD_RUNG_STOP, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(each, no_packets, GCUFFD_RUNG_STOP, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(each, shapes, GCUFFD_RUNG_STOP, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(each, beside_cycles, GCUFFD_RUNG_STOP, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(each, finds_what_is_skipped, GCUFFD_RUNG_STOP, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(each, finds_a_queue_that_is_no_root, GCUFFD_RUNG_STOP, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(cold, cold_objects, GCUFFD_RUNG_MOVE, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(cold, cold_objects_with_a_file, GCUFFD_RUNG_MOVE, GCUFFD_RUNG_RWP + 1);
	tcase_add_test(one, undecided);
	tcase_add_test(one, mistakes);
	tcase_add_test(one, freed_on_the_queue);
	tcase_add_test(one, arenas);
	tcase_add_test(one, many);
	tcase_add_test(one, no_memory);
	tcase_add_test(one, children);
	tcase_add_test(one, children_with_a_thread);
	tcase_add_test(one, child_handlers_come_first);
	tcase_add_test(one, why_alive);
	tcase_add_test(one, unattached_threads);
	return suite;
}

TEST_MAIN(make_suite)
