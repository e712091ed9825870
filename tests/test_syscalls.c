/* SPDX-License-Identifier: MIT */
/*
 * test_syscalls.c - system calls on heap memory while cycles run: they never fail with EFAULT, and what the
 * kernel writes is seen by the collector as any other store is.
 */
#include <linux/futex.h>
#include <sched.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>

#include "core.h"
#include "fake_os.h"
#include "gc/heap.h"
#include "sys/uapi.h"

#define BIG ((size_t)256 << 10)

static struct gcuffd_heap *heap;
static uint32_t quit;
static void *volatile keep[64]; /* a data segment: roots */

static void *collect(void *unused)
{
	(void)unused;
	while (!__atomic_load_n(&quit, __ATOMIC_RELAXED))
		must_ok(gcuffd_collect(heap));
	return NULL;
}

static pthread_t start_collecting(int rung, const char *more)
{
	pthread_t t;
	heap = heap_make("rung=%s,start_size=1M,%s", rung_names[rung], more);
	quit = 0;
	must_ok(pthread_create(&t, NULL, collect, NULL));
	return t;
}

static void stop_collecting(pthread_t t)
{
	for (uint64_t now = test_now_ns(); goes_on(heap, now, 3);)
		usleep(1000);
	__atomic_store_n(&quit, 1, __ATOMIC_RELAXED);
	pthread_join(t, NULL);
	verified(heap);
	ck_assert_uint_gt(stats_of(heap).cycles, 2);
	memset((void *)keep, 0, sizeof(keep));
	ck_ok(gcuffd_heap_destroy(heap));
}

static uint64_t end_time(void) { return test_now_ns() + check_span_ns((check_seconds() / 5 + 1) * 500000000ull); }

/* ---- never EFAULT ---- */

#define CALL(call, want) \
	do { \
		long c_got = (long)(call); \
		must(c_got == (long)(want), "gave %ld, errno %d", c_got, c_got < 0 ? errno : 0); \
	} while (0)

struct buffers {
	char *a, *b;
	struct iovec *vec;
	uint32_t *word;
	struct msghdr *msg;
};

static struct buffers new_buffers(size_t size)
{
	struct buffers b = {
		gcuffd_alloc(heap, size), gcuffd_alloc(heap, size), gcuffd_alloc(heap, 4 * sizeof(struct iovec)),
		gcuffd_alloc(heap, 64), gcuffd_alloc(heap, sizeof(struct msghdr)),
	};
	must(b.a && b.b && b.vec && b.word && b.msg, "no memory");
	return b;
}

static void through_pipe(const struct buffers *b, const int pipes[2], size_t size)
{
	memset(b->a, (int)size | 1, size);
	CALL(write(pipes[1], b->a, size), size);
	CALL(read(pipes[0], b->b, size), size);
	must(!memcmp(b->a, b->b, size), "a pipe changed what went through it");
}

static void with_vectors(const struct buffers *b, const int pipes[2], size_t size)
{
	b->vec[0] = (struct iovec){b->a, size / 2};
	b->vec[1] = (struct iovec){b->a + size / 2, size - size / 2};
	CALL(writev(pipes[1], b->vec, 2), size);
	b->vec[0].iov_base = b->b;
	b->vec[1].iov_base = b->b + size / 2;
	CALL(readv(pipes[0], b->vec, 2), size);
}

static void with_messages(const struct buffers *b, const int sockets[2], size_t size)
{
	b->vec[0] = (struct iovec){b->a, size};
	b->msg->msg_iov = b->vec;
	b->msg->msg_iovlen = 1;
	CALL(sendmsg(sockets[1], b->msg, 0), size);
	b->vec[0].iov_base = b->b;
	CALL(recvmsg(sockets[0], b->msg, 0), size);
}

static void others(const struct buffers *b, size_t size)
{
	CALL(getrandom(b->a, size < 256 ? size : 256, 0), size < 256 ? size : 256);
	CALL(syscall(SYS_futex, b->word, FUTEX_WAKE, 1, NULL, NULL, 0), 0);
	must(syscall(SYS_futex, b->word, FUTEX_WAIT, 1, NULL, NULL, 0) == -1 && errno == EAGAIN, "futex wait: errno %d", errno);
	struct timespec *ts = (struct timespec *)b->word;
	CALL(syscall(SYS_clock_gettime, CLOCK_MONOTONIC, ts), 0);
}

START_TEST(never_efault)
{
	NEED_RUNG(_i);
	int pipes[2], sockets[2];
	struct test_rng rng = test_rng(1);
	pthread_t t = start_collecting(_i, "");
	ck_assert_int_eq(pipe(pipes), 0);
	ck_assert_int_eq(socketpair(AF_UNIX, SOCK_STREAM, 0, sockets), 0);
	struct buffers b = new_buffers(4096);
	for (uint64_t end = end_time(), i = 0; goes_on(heap, end, 3); i++) {
		size_t size = 1 + test_below(&rng, 4096);
		if (i % 16 == 0)
			b = new_buffers(4096);
		through_pipe(&b, pipes, size);
		with_vectors(&b, pipes, size);
		with_messages(&b, sockets, size);
		others(&b, size);
	}
	stop_collecting(t);
}
END_TEST

/* A futex in a page that is armed again and again: sleeper and waker meet every time. */
static uint32_t *volatile ball;

static void *bounce(void *end)
{
	must_ok(gcuffd_thread_attach());
	uint32_t *word = ball;
	while (goes_on(heap, *(uint64_t *)end, 3)) {
		while (__atomic_load_n(word, __ATOMIC_SEQ_CST) == 0)
			must(!syscall(SYS_futex, word, FUTEX_WAIT, 0, &(struct timespec){0, 100000000}, NULL, 0) || errno != EFAULT, "EFAULT");
		__atomic_store_n(word, 0, __ATOMIC_SEQ_CST);
		must(syscall(SYS_futex, word, FUTEX_WAKE, 1, NULL, NULL, 0) >= 0, "errno %d", errno);
	}
	__atomic_store_n(word, 2, __ATOMIC_SEQ_CST);
	must_ok(gcuffd_thread_detach());
	return NULL;
}

START_TEST(futex_in_heap)
{
	NEED_RUNG(_i);
	pthread_t t = start_collecting(_i, "verify=1"), other;
	uint64_t end = end_time(), n = 0;
	uint32_t *word = ball = gcuffd_alloc(heap, 64), was;
	ck_ok(pthread_create(&other, NULL, bounce, &end));
	do {
		n++;
		was = 0;
		(void)__atomic_compare_exchange_n(word, &was, 1, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
		must(syscall(SYS_futex, word, FUTEX_WAKE, 1, NULL, NULL, 0) >= 0, "errno %d", errno);
		must(!syscall(SYS_futex, word, FUTEX_WAIT, 1, &(struct timespec){0, 100000000}, NULL, 0) || errno != EFAULT, "EFAULT");
	} while (__atomic_load_n(word, __ATOMIC_SEQ_CST) != 2);
	pthread_join(other, NULL);
	ck_assert_uint_gt(n, 2);
	stop_collecting(t);
}
END_TEST

/* ---- what the kernel writes is seen ---- */

#define MARKED 512
#define STAMP 0x1234567890abcdefu

struct echo {
	pid_t pid;
	int to, from;
};

/* Another process keeps the pointer: it comes masked, and goes back in plain. */
static struct echo start_echo(void)
{
	int there[2], back[2];
	ck_assert_int_eq(pipe(there), 0);
	ck_assert_int_eq(pipe(back), 0);
	struct echo e = {fork(), there[1], back[0]};
	if (!e.pid) {
		uint64_t word;
		close(there[1]);
		close(back[0]);
		while (read(there[0], &word, 8) == 8) {
			word ^= HIDE_MASK;
			usleep(word >> 8 & 1023);
			if (write(back[1], &word, 8) != 8)
				break;
		}
		_exit(0);
	}
	close(there[0]);
	close(back[1]);
	return e;
}

static void end_echo(const struct echo *e)
{
	close(e->to);
	close(e->from);
	waitpid(e->pid, NULL, 0);
}

/* An object that is only in the slot; returned hidden. */
static __attribute__((noinline)) uint64_t plant(uint64_t **slot, uint64_t number)
{
	uint64_t *o = gcuffd_alloc(heap, 64);
	must(o != NULL, "no memory");
	o[0] = STAMP;
	o[1] = number;
	*slot = o;
	return hide(o);
}

static __attribute__((noinline)) void check_planted(uint64_t *const *slot, uint64_t hidden, uint64_t number)
{
	uint64_t *o = *slot;
	must(hide(o) == hidden, "another pointer came back");
	must(o[0] == STAMP && o[1] == number, "object %lu was lost while the kernel had it", (unsigned long)number);
}

/*
 * The object's only reference is sent away masked, erased here while the object is still marked or not yet,
 * and comes back by read(2) into a buffer that is old and clean. The stack of the marking thread holds it for a
 * moment on each side, as it does in a program: the collector must see it in one place or the other.
 */
static void round_trip(const struct echo *e, uint64_t **from, uint64_t **into, uint64_t number)
{
	uint64_t hidden = plant(from, number);
	CALL(write(e->to, &hidden, 8), 8);
	/* Both have it from here on: first the kernel writes it into the old buffer, then it goes here. */
	CALL(read(e->from, into, 8), 8);
	*from = NULL;
	scrub();
	sched_yield();
	check_planted(into, hidden, number);
}

static void use_marked(const struct echo *e, bool typed)
{
	struct gcuffd_type *type;
	struct test_rng rng = test_rng(3);
	uint64_t bitmap[8];
	memset(bitmap, 0xff, sizeof(bitmap));
	ck_ok(gcuffd_type_create(heap, bitmap, 512, &type));
	for (unsigned i = 0; i < 32; i++) /* old objects of a page each, which are marked and clean most of the time */
		keep[i] = typed ? gcuffd_alloc_typed(heap, type, 4096) : gcuffd_alloc(heap, 4096);
	keep[32] = gcuffd_alloc(heap, BIG);
	for (uint64_t end = end_time(), n = 0; goes_on(heap, end, 3); n++) {
		uint64_t **from = (uint64_t **)keep[test_below(&rng, 16)] + test_below(&rng, 512);
		uint64_t **into = (uint64_t **)keep[16 + test_below(&rng, 16)] + test_below(&rng, 512);
		if (n % 4 == 0)
			into = (uint64_t **)keep[32] + test_below(&rng, BIG / 8);
		round_trip(e, from, into, n);
	}
}

START_TEST(kernel_writes_seen)
{
	NEED_RUNG(_i / 2);
	struct echo e = start_echo();
	pthread_t t = start_collecting(_i / 2, "verify=1");
	use_marked(&e, _i % 2);
	stop_collecting(t);
	end_echo(&e);
}
END_TEST

START_TEST(kernel_writes_seen_at_speed)
{
	NEED_RUNG(_i / 2);
	struct echo e = start_echo();
	pthread_t t = start_collecting(_i / 2, "interior=0");
	use_marked(&e, _i % 2);
	stop_collecting(t);
	end_echo(&e);
}
END_TEST

/* ---- and seen when it comes last ---- */

static uint32_t precleaned, waits, came;
static int pipes[2];
static uint64_t travels; /* hidden */

static long see_precleaning(int fd, unsigned long request, void *arg)
{
	const struct gu_pm_scan_arg *scan = arg;
	if (request == GU_PAGEMAP_SCAN && gu_load_relaxed(&heap->phase) == GU_PHASE_MARK && scan->flags & GU_PM_SCAN_WP_MATCHING &&
	    gu_space_has(&heap->space, scan->start))
		gu_store_seqcst(&precleaned, 1);
	return gu_os_linux.ioctl(fd, request, arg);
}

/* The collector takes the time after precleaning, and has not begun to stop anybody. */
static uint64_t wait_after_precleaning(void)
{
	while (gu_load_seqcst(&precleaned) && !gu_load_seqcst(&came)) {
		gu_store_seqcst(&waits, 1);
		usleep(100);
	}
	return gu_os_linux.clock_ns();
}

/* Its only pointer is in the pipe. */
static void *send_away(void *number)
{
	uint64_t *slot;
	must_ok(gcuffd_thread_attach());
	travels = plant(&slot, (uintptr_t)number);
	CALL(write(pipes[1], &slot, 8), 8);
	slot = NULL;
	must_ok(gcuffd_thread_detach());
	return NULL;
}

static void *collect_once(void *unused)
{
	must_ok(gcuffd_collect(heap));
	return unused;
}

/* The buffer is old, marked and clean, all markers have done with it, and only the remark is to come. */
static void read_late(uintptr_t number)
{
	pthread_t t;
	uint64_t **into = (uint64_t **)keep[0] + 1 + number;
	must_ok(pthread_create(&t, NULL, send_away, (void *)number));
	must_ok(pthread_join(t, NULL));
	precleaned = waits = came = 0;
	must_ok(pthread_create(&t, NULL, collect_once, NULL));
	while (!gu_load_seqcst(&waits))
		usleep(100);
	CALL(read(pipes[0], into, 8), 8);
	gu_store_seqcst(&came, 1);
	must_ok(pthread_join(t, NULL));
}

static void start_late(int rung, const char *more)
{
	ck_assert_int_eq(pipe(pipes), 0);
	fake_install();
	fake_os.ioctl = see_precleaning;
	fake_os.clock_ns = wait_after_precleaning;
	came = 1;
	heap = heap_make("rung=%s,pacing=0,verify=1%s", rung_names[rung], more);
	keep[0] = gcuffd_alloc(heap, 4096);
	memset(keep[0], 1, 4096);
	ck_ok(gcuffd_collect(heap));
}

START_TEST(kernel_writes_late)
{
	NEED_RUNG(_i);
	start_late(_i, "");
	for (uintptr_t n = 0; n < check_rounds(20); n++) {
		read_late(n);
		verified(heap);
		check_planted((uint64_t **)keep[0] + 1 + n, travels, n);
	}
	memset((void *)keep, 0, sizeof(keep));
	ck_ok(gcuffd_heap_destroy(heap));
	fake_remove();
}
END_TEST

/* Without the card it is lost, and the verifier says so: that is where the pointer was. */
START_TEST(late_and_unnoticed)
{
	NEED_RUNG(_i);
	start_late(_i, ",plant_drop_card=1");
	for (uintptr_t n = 0; n < 20 && !stats_of(heap).verify_failures; n++) /* a stale word can save it */
		read_late(n);
	ck_assert_uint_gt(stats_of(heap).verify_failures, 0);
	ck_assert_ptr_nonnull(strstr(core_log, "reachable but not marked"));
}
END_TEST

static Suite *make_suite(void)
{
	Suite *suite = suite_create("syscalls");
	tcase_add_loop_test(test_case(suite, "never_efault"), never_efault, GCUFFD_RUNG_STOP, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(test_case(suite, "futex_in_heap"), futex_in_heap, GCUFFD_RUNG_STOP, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(test_case(suite, "kernel_writes_seen"), kernel_writes_seen, 2 * GCUFFD_RUNG_STOP, 2 * GCUFFD_RUNG_RWP + 2);
	tcase_add_loop_test(test_case(suite, "kernel_writes_seen_at_speed"), kernel_writes_seen_at_speed, 2 * GCUFFD_RUNG_STOP,
			    2 * GCUFFD_RUNG_RWP + 2);
	tcase_add_loop_test(test_case(suite, "kernel_writes_late"), kernel_writes_late, GCUFFD_RUNG_ASYNC, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(test_case(suite, "late_and_unnoticed"), late_and_unnoticed, GCUFFD_RUNG_ASYNC, GCUFFD_RUNG_RWP + 1);
	return suite;
}

TEST_MAIN(make_suite)
