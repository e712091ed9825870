/* SPDX-License-Identifier: MIT */
/*
 * test_threads.c - threads of all kinds beside a collector: without TLS of their own, deaf to the stop signal, of the
 * C library, found and never attached; and a collector whose threads can't be made, or whose system calls are refused.
 */
#include <aio.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/futex.h>
#include <linux/io_uring.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>

#include "core.h"
#include "fake_os.h"
#include "gc/mutator.h"

#define STAMP 0x600d0b1ec7600d0bu
#define SECOND 1000000000ull
#define STOP_SECONDS 60u

struct node {
	struct node *next;
	uint64_t number;
	char room[240];
};

static struct gcuffd_heap *heap;
static struct node *volatile head; /* a data segment */
static uint32_t quit;

static struct node *push(struct node *next)
{
	struct node *n = gcuffd_alloc(heap, sizeof(*n));
	must(n != NULL, "errno %d", errno);
	n->next = next;
	n->number = next ? next->number + 1 : 1;
	return n;
}

static void check_list(const struct node *n, uint64_t length)
{
	for (; n && n->number == length; n = n->next)
		length--;
	must(!n && !length, "a list is damaged at %lu", (unsigned long)length);
}

/* A list is built, checked and dropped; 128 KiB each time. */
static void churn(unsigned times)
{
	while (times--) {
		struct node *list = NULL;
		for (int i = 0; i < 500; i++)
			list = push(list);
		check_list(list, 500);
	}
}

/* A new object, of which nobody has a plain pointer. */
static __attribute__((noinline)) uint64_t make(void)
{
	uint64_t *o = gcuffd_alloc(heap, 100);
	must(o != NULL, "errno %d", errno);
	*o = STAMP;
	return hide(o);
}

static __attribute__((noinline)) void must_live(uint64_t hidden)
{
	must(is_alive(heap, hidden), "an object was taken");
	must(*(uint64_t *)reveal(hidden) == STAMP, "an object was overwritten");
	scrub();
}

static __attribute__((noinline)) void must_die(uint64_t hidden)
{
	for (int i = 0; i < 5 && is_alive(heap, hidden); i++) {
		scrub();
		must_ok(gcuffd_collect(heap));
		scrub();
	}
	must(!is_alive(heap, hidden), "an object is still there");
}

static void begin(const char *rung, const char *more)
{
	heap = heap_make("rung=%s,verify=1,start_size=1M,stop_timeout_ms=%u,%s", rung, STOP_SECONDS * 1000, more);
	quit = 0;
	head = NULL;
	for (int i = 0; i < 1000; i++)
		head = push(head);
}

static void end(void)
{
	check_list(head, 1000);
	verified(heap);
	ck_ok(gcuffd_heap_destroy(heap));
}

static void set(uint32_t *flag) { __atomic_store_n(flag, 1, __ATOMIC_SEQ_CST); }

static void await(uint32_t *flag)
{
	while (!__atomic_load_n(flag, __ATOMIC_SEQ_CST))
		usleep(500);
}

/* Stops interrupt sleep. */
static void rest(uint64_t ns)
{
	for (uint64_t over = test_now_ns() + ns; test_now_ns() < over;)
		usleep(1000);
}

static void *collect_always(void *unused)
{
	(void)unused;
	while (!__atomic_load_n(&quit, __ATOMIC_SEQ_CST))
		must_ok(gcuffd_collect(heap));
	return NULL;
}

#define SHADOW NO_SANITIZER("its shadow would be a root")

/* ---- deaf to the stop signal ---- */

struct deaf {
	bool listens; /* before it ends, and waits then for quit */
	uint64_t hidden;
	uint32_t ready, leave, listening;
	pthread_t thread;
};

static void mask_stops(int how)
{
	sigset_t set_of_one;
	sigemptyset(&set_of_one);
	sigaddset(&set_of_one, gcuffd_stop_signal());
	must_ok(pthread_sigmask(how, &set_of_one, NULL));
}

static void *stay_deaf(void *arg)
{
	struct deaf *d = arg;
	uint64_t *volatile o = reveal(d->hidden);
	set(&d->ready);
	await(&d->leave);
	if (d->listens) {
		mask_stops(SIG_UNBLOCK);
		set(&d->listening);
		await(&quit);
	}
	must(*o == STAMP, "a deaf thread's object was taken");
	return NULL;
}

/* Deaf from its first instruction on. */
static void start_deaf(struct deaf *d, void *(*run)(void *arg))
{
	d->hidden = make();
	d->ready = d->leave = d->listening = 0;
	scrub();
	mask_stops(SIG_BLOCK);
	must_ok(pthread_create(&d->thread, NULL, run, d));
	mask_stops(SIG_UNBLOCK);
	await(&d->ready);
}

static void must_be_put_off(void)
{
	uint64_t since = test_now_ns(), was = stats_of(heap).cycles_put_off;
	ck_assert_int_eq(gcuffd_collect(heap), -ETIMEDOUT);
	ck_assert_uint_lt(test_now_ns() - since, STOP_SECONDS / 2 * SECOND); /* well below the time-out */
	ck_assert_uint_gt(stats_of(heap).cycles_put_off, was);
}

START_TEST(deaf_threads)
{
	SHADOW;
	NEED_RUNG(_i);
	static struct deaf ends, listens = {.listens = true};
	begin(rung_names[_i], "process_roots=1");
	start_deaf(&ends, stay_deaf);
	for (int i = 0; i < 3; i++) {
		must_be_put_off();
		churn(8);
	}
	must_live(ends.hidden);
	set(&ends.leave);
	pthread_join(ends.thread, NULL);
	ck_ok(gcuffd_collect(heap));
	start_deaf(&listens, stay_deaf);
	must_be_put_off();
	churn(8);
	set(&listens.leave);
	await(&listens.listening);
	ck_ok(gcuffd_collect(heap));
	must_live(listens.hidden);
	set(&quit);
	pthread_join(listens.thread, NULL);
	ck_ok(gcuffd_collect(heap));
	end();
}
END_TEST

/* Cycles are tried less and less often, and nobody waits for one. */
START_TEST(deaf_thread_and_garbage)
{
	SHADOW;
	const size_t step = (size_t)8 << 20, steps = ((size_t)512 << 20) / step;
	static struct deaf d;
	begin("auto", "process_roots=1");
	start_deaf(&d, stay_deaf);
	must_be_put_off();
	struct gcuffd_stats before = stats_of(heap);
	for (size_t i = 0; i < steps; i++) {
		for (size_t n = 0; n < step; n += 128 << 10)
			must(gcuffd_alloc_atomic(heap, 128 << 10) != NULL, "errno %d", errno);
		rest(SECOND / 30); /* there is time for a cycle in each step */
	}
	struct gcuffd_stats after = stats_of(heap);
	ck_assert_uint_gt(after.cycles_put_off, before.cycles_put_off + 2);
	ck_assert_uint_lt(after.cycles_put_off, before.cycles_put_off + 16);
	ck_assert_uint_eq(after.stall_ns, before.stall_ns);
	must_live(d.hidden);
	set(&d.leave);
	pthread_join(d.thread, NULL);
	ck_ok(gcuffd_collect(heap)); /* or one that was under way */
	ck_assert_uint_gt(stats_of(heap).freed_bytes, after.freed_bytes + steps * step / 2);
	end();
}
END_TEST

/* A thread of the process that only the kernel uses: it can't be stopped and has no roots. */
START_TEST(worker_of_a_ring)
{
	SHADOW;
	struct io_uring_params p = {0};
	int ring = (int)syscall(SYS_io_uring_setup, 1, &p), pipes[2];
	if (ring < 0)
		GU_LACKS("io_uring", "no io_uring here (errno %d)", errno);
	must_ok(pipe(pipes));
	char *queue = mmap(NULL, p.sq_off.array + 4, PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_SQ_RING);
	struct io_uring_sqe *entry = mmap(NULL, sizeof(*entry), PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_SQES);
	must(queue != MAP_FAILED && entry != MAP_FAILED, "errno %d", errno);
	begin("auto", "process_roots=1");
	static char byte;
	*entry = (struct io_uring_sqe){.opcode = IORING_OP_READ, .fd = pipes[0], .addr = (uintptr_t)&byte, .len = 1, .flags = IOSQE_ASYNC};
	__atomic_store_n((unsigned *)(queue + p.sq_off.tail), 1, __ATOMIC_RELEASE);
	must(syscall(SYS_io_uring_enter, ring, 1, 0, 0, NULL, 0) == 1, "errno %d", errno);
	rest(SECOND / 10); /* the worker waits for the pipe */
	for (int i = 0; i < 3; i++)
		ck_ok(gcuffd_collect(heap));
	ck_assert_uint_eq(stats_of(heap).cycles_put_off, 0);
	close(ring);
	close(pipes[0]);
	close(pipes[1]);
	end();
}
END_TEST

/* At the limit each request tries a few cycles, then gives up. */
START_TEST(deaf_thread_at_the_limit)
{
	SHADOW;
	static struct deaf d;
	begin("auto", "process_roots=1,hard_limit=32M");
	for (int i = 0; i < 3; i++) {
		churn(80);
		ck_ok(gcuffd_collect(heap)); /* which frees much */
	}
	start_deaf(&d, stay_deaf);
	while (gcuffd_alloc(heap, 1000))
		;
	uint64_t was = stats_of(heap).cycles_put_off;
	ck_assert_ptr_null(gcuffd_alloc(heap, 1000));
	ck_assert_int_eq(errno, ENOMEM);
	ck_assert_uint_le(stats_of(heap).cycles_put_off, was + 8);
	set(&d.leave);
	pthread_join(d.thread, NULL);
	ck_assert_ptr_nonnull(gcuffd_alloc(heap, 1000));
	end();
}
END_TEST

/* ---- made without TLS of its own ---- */

#if defined(__x86_64__)
#define RAW_STACK ((size_t)64 << 10)
#define GUARD ((size_t)4 << 10)
#define RAW_THREAD (CLONE_VM | CLONE_THREAD | CLONE_SIGHAND | CLONE_FS | CLONE_FILES | CLONE_SYSVSEM)

struct raw {
	uint64_t hidden; /* its object */
	uint64_t turns, found;
	uint32_t ready, leave;
	pid_t tid;       /* cleared by the kernel when it is gone */
	char *map;       /* the stack, between guards */
};

/* errno is another thread's. */
static void wait_raw(uint32_t *word)
{
	register const struct timespec *for_ever __asm__("r10") = NULL;
	long result = SYS_futex;
	__asm__ volatile("syscall" : "+a"(result) : "D"(word), "S"(FUTEX_WAIT), "d"(0), "r"(for_ever) : "rcx", "r11", "memory");
}

/* The pointer is in a register that only the signal's frame has. */
static int spin_raw(void *arg)
{
	struct raw *r = arg;
	register uint64_t *o __asm__("rdx") = reveal(r->hidden);
	__asm__ volatile("" : "+r"(o));
	set(&r->ready);
	__asm__ volatile("1: incq %1\n\tpause\n\tcmpl $0, %2\n\tje 1b" : "+r"(o), "+m"(r->turns) : "m"(r->leave) : "cc", "memory");
	r->found = *o;
	return 0;
}

/* The pointer is on a stack that the library was never told of. */
static int sleep_raw(void *arg)
{
	struct raw *r = arg;
	uint64_t *volatile o = reveal(r->hidden);
	set(&r->ready);
	for (; !__atomic_load_n(&r->leave, __ATOMIC_SEQ_CST); r->turns++)
		wait_raw(&r->leave);
	r->found = *o;
	return 0;
}

static void start_raw_at(struct raw *r, int (*run)(void *arg), char *top)
{
	r->ready = r->leave = 0;
	scrub();
	int tid = clone(run, top, RAW_THREAD | CLONE_PARENT_SETTID | CLONE_CHILD_CLEARTID, r, &r->tid, NULL, &r->tid);
	must(tid > 0, "errno %d", errno);
	await(&r->ready);
}

static void start_raw(struct raw *r, int (*run)(void *arg))
{
	r->map = mmap(NULL, RAW_STACK + 2 * GUARD, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	must(r->map != MAP_FAILED && !mprotect(r->map + GUARD, RAW_STACK, PROT_READ | PROT_WRITE), "errno %d", errno);
	start_raw_at(r, run, r->map + GUARD + RAW_STACK);
}

static void leave_raw(struct raw *r)
{
	set(&r->leave);
	syscall(SYS_futex, &r->leave, FUTEX_WAKE, 1, NULL, NULL, 0);
	while (__atomic_load_n(&r->tid, __ATOMIC_SEQ_CST))
		usleep(500);
	must(r->found == STAMP, "a thread without TLS found %#lx", (unsigned long)r->found);
}

static void end_raw(struct raw *r)
{
	leave_raw(r);
	munmap(r->map, RAW_STACK + 2 * GUARD);
	must_die(r->hidden);
}

static void must_turn(const struct raw *r)
{
	uint64_t was = __atomic_load_n(&r->turns, __ATOMIC_SEQ_CST), give_up = test_now_ns() + 10 * SECOND;
	while (__atomic_load_n(&r->turns, __ATOMIC_SEQ_CST) == was)
		must(test_now_ns() < give_up, "a thread without TLS does not go on");
}

static struct raw spinner, sleeper;

START_TEST(borrowed_tls)
{
	SHADOW;
	NEED_RUNG(_i);
	pthread_t t;
	begin(rung_names[_i], "process_roots=1");
	spinner.hidden = make();
	start_raw(&spinner, spin_raw);
	sleeper.hidden = make();
	start_raw(&sleeper, sleep_raw);
	for (int i = 0; i < 10; i++) {
		ck_ok(gcuffd_collect(heap));
		must_live(spinner.hidden);
		must_live(sleeper.hidden);
		must_turn(&spinner);
	}
	ck_ok(pthread_create(&t, NULL, collect_always, NULL)); /* now also while this thread is in sections */
	for (uint64_t over = test_now_ns() + SECOND / 3; test_now_ns() < over;)
		churn(1);
	set(&quit);
	pthread_join(t, NULL);
	must_turn(&spinner);
	end_raw(&spinner);
	end_raw(&sleeper);
	end();
}
END_TEST

/* Two stacks that the kernel takes for one mapping; the upper one goes first. */
START_TEST(borrowed_tls_neighbours)
{
	SHADOW;
	NEED_RUNG(_i);
	begin(rung_names[_i], "process_roots=1");
	char *map = mmap(NULL, 2 * RAW_STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	spinner.hidden = make();
	start_raw_at(&spinner, spin_raw, map + RAW_STACK);
	sleeper.hidden = make();
	start_raw_at(&sleeper, sleep_raw, map + 2 * RAW_STACK);
	for (int i = 0; i < 3; i++)
		ck_ok(gcuffd_collect(heap));
	leave_raw(&sleeper);
	munmap(map + RAW_STACK, RAW_STACK);
	for (int i = 0; i < 3; i++)
		ck_ok(gcuffd_collect(heap));
	must_live(spinner.hidden);
	leave_raw(&spinner);
	munmap(map, RAW_STACK);
	end();
}
END_TEST

/* The maker never attached, and is deaf when the other is found: what is found in shared TLS is not the maker's. */
static void *make_borrower(void *arg)
{
	struct deaf *d = arg;
	start_raw(&spinner, spin_raw);
	mask_stops(SIG_BLOCK);
	set(&d->ready);
	await(&d->leave);
	mask_stops(SIG_UNBLOCK);
	set(&d->listening);
	await(&quit);
	must(!gu_self || gu_self->tid == gettid(), "the entry of thread %d in thread %d", (int)gu_self->tid, (int)gettid());
	leave_raw(&spinner);
	must_ok(gcuffd_collect(heap));
	must_ok(gcuffd_thread_attach());
	churn(8);
	must_ok(gcuffd_collect(heap));
	must_ok(gcuffd_thread_detach());
	return NULL;
}

START_TEST(borrowed_tls_of_unattached)
{
	SHADOW;
	NEED_RUNG(_i);
	static struct deaf d;
	begin(rung_names[_i], "process_roots=1");
	spinner.hidden = make();
	ck_ok(pthread_create(&d.thread, NULL, make_borrower, &d));
	await(&d.ready);
	must_be_put_off();
	set(&d.leave);
	await(&d.listening);
	ck_ok(gcuffd_collect(heap));
	must_live(spinner.hidden);
	set(&quit);
	pthread_join(d.thread, NULL);
	ck_ok(gcuffd_collect(heap));
	end();
}
END_TEST
#else
START_TEST(borrowed_tls)
{
	GU_SKIP("not written for this processor");
}
END_TEST
#endif

/* ---- the C library's own threads, which block all signals ---- */

static uint64_t in_timer;
static uint32_t fired;

static void on_timer(union sigval value)
{
	must(*(uint64_t *)value.sival_ptr == STAMP, "a timer's object was taken");
	__atomic_fetch_add(&fired, 1, __ATOMIC_SEQ_CST);
}

/* Only the C library's record of the timer has the pointer. */
static __attribute__((noinline)) timer_t start_timer(void)
{
	timer_t timer;
	struct sigevent event = {.sigev_notify = SIGEV_THREAD, .sigev_notify_function = on_timer};
	struct itimerspec every = {.it_interval = {0, 5000000}, .it_value = {0, 1}};
	in_timer = make();
	event.sigev_value.sival_ptr = reveal(in_timer);
	must_ok(timer_create(CLOCK_MONOTONIC, &event, &timer));
	must_ok(timer_settime(timer, 0, &every, NULL));
	return timer;
}

static bool collect_or_not(void)
{
	uint64_t since = test_now_ns();
	int err = gcuffd_collect(heap);
	must(!err || err == -ETIMEDOUT, "error %d", err);
	must(test_now_ns() - since < STOP_SECONDS / 2 * SECOND, "that took long");
	return !err;
}

START_TEST(timer_threads)
{
	SHADOW;
	NEED_RUNG(_i);
	begin(rung_names[_i], "process_roots=1");
	fired = 0;
	timer_t timer = start_timer();
	scrub();
	for (uint64_t over = test_now_ns() + SECOND / 3; test_now_ns() < over || !__atomic_load_n(&fired, __ATOMIC_SEQ_CST);) {
		collect_or_not();
		churn(1);
	}
	must_live(in_timer);
	must_ok(timer_delete(timer));
	collect_or_not();
	end();
}
END_TEST

#define LENGTH 4096

static struct aiocb request;

static __attribute__((noinline)) void start_reading(int fd)
{
	request = (struct aiocb){.aio_fildes = fd, .aio_buf = gcuffd_alloc(heap, LENGTH), .aio_nbytes = LENGTH};
	must_ok(aio_read(&request));
}

static void end_reading(int fd)
{
	char text[LENGTH];
	const struct aiocb *const list[] = {&request};
	memset(text, 'x', sizeof(text));
	must(write(fd, text, sizeof(text)) == LENGTH, "errno %d", errno);
	while (aio_error(&request) == EINPROGRESS)
		aio_suspend(list, 1, NULL);
	must(aio_return(&request) == LENGTH, "errno %d", aio_error(&request));
	must(!memcmp((const void *)request.aio_buf, text, sizeof(text)), "what was read is not there");
}

/* The helper reads into the heap, stays for a second more, and ends. */
START_TEST(aio_threads)
{
	SHADOW;
	int fds[2];
	begin("auto", "process_roots=1");
	ck_assert_int_eq(pipe(fds), 0);
	for (int i = 0; i < 5; i++) {
		start_reading(fds[0]);
		scrub();
		collect_or_not();
		churn(8);
		end_reading(fds[1]);
	}
	uint64_t give_up = test_now_ns() + STOP_SECONDS * SECOND;
	while (!collect_or_not()) {
		must(test_now_ns() < give_up, "cycles are put off for ever");
		rest(SECOND / 10);
	}
	end();
}
END_TEST

/* ---- the collector's threads can't be made ---- */

static bool refuse_threads;
static uint32_t refused;

int pthread_create(pthread_t *out, const pthread_attr_t *attr, void *(*run)(void *arg), void *arg)
{
	static int (*real)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);
	if (__atomic_load_n(&refuse_threads, __ATOMIC_SEQ_CST)) {
		__atomic_fetch_add(&refused, 1, __ATOMIC_SEQ_CST);
		return EAGAIN;
	}
	if (!real)
		*(void **)&real = dlsym(RTLD_NEXT, "pthread_create");
	return real(out, attr, run, arg);
}

static void *wait_for_quit(void *unused)
{
	await(&quit);
	return unused;
}

static void allow_threads(bool allow)
{
	__atomic_store_n(&refuse_threads, !allow, __ATOMIC_SEQ_CST);
	refused = 0;
}

/* _i: in a heap with process roots, where a thread that never came must not be waited for. */
START_TEST(no_thread_for_now)
{
	pthread_t t;
	if (_i)
		SHADOW;
	heap = heap_make("verify=1,start_size=1M,process_roots=%d", _i);
	quit = 0;
	ck_ok(pthread_create(&t, NULL, wait_for_quit, NULL));
	allow_threads(false);
	for (head = NULL; !head || head->number < 1000;)
		head = push(head);
	churn(80);
	ck_assert_uint_gt(__atomic_load_n(&refused, __ATOMIC_SEQ_CST), 1); /* asked for again and again */
	ck_assert_int_eq(gcuffd_collect(heap), -EAGAIN);
	ck_assert_uint_eq(stats_of(heap).cycles, 0);
	allow_threads(true);
	for (uint64_t give_up = test_now_ns() + STOP_SECONDS * SECOND; !stats_of(heap).cycles;) {
		must(test_now_ns() < give_up, "no cycle begins");
		churn(1);
	}
	ck_ok(gcuffd_collect(heap));
	set(&quit);
	pthread_join(t, NULL);
	end();
}
END_TEST

/* At the limit it is an error, not a wait. */
START_TEST(no_thread_at_the_limit)
{
	heap = heap_make("start_size=1M,hard_limit=16M");
	allow_threads(false);
	for (head = NULL; (head = gcuffd_alloc(heap, 1000));)
		;
	ck_assert_int_eq(errno, ENOMEM);
	allow_threads(true);
	ck_assert_ptr_nonnull(gcuffd_alloc(heap, 1000)); /* a cycle has made room */
	ck_ok(gcuffd_collect(heap));
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

/* ---- who asks for a cycle ---- */

static void *collect_nested(void *unused)
{
	for (int i = 0; i < 3; i++)
		must_ok(gcuffd_thread_attach());
	uint64_t hidden = make();
	uint64_t *volatile o = reveal(hidden);
	for (int i = 0; i < 3; i++) {
		must_ok(gcuffd_collect(heap));
		must_live(hidden);
		must_ok(gcuffd_thread_attach());
		must_ok(gcuffd_collect(heap));
		must_ok(gcuffd_thread_detach());
		if (i < 2)
			must_ok(gcuffd_thread_detach());
		churn(2);
	}
	must(*o == STAMP, "an object was overwritten");
	must_ok(gcuffd_thread_detach());
	must(gcuffd_thread_detach() == -EINVAL, "detached too often");
	must_ok(gcuffd_collect(heap));
	return unused;
}

START_TEST(nested_attach)
{
	NEED_RUNG(_i);
	pthread_t t;
	begin(rung_names[_i], "");
	ck_ok(pthread_create(&t, NULL, collect_nested, NULL));
	churn(8);
	pthread_join(t, NULL);
	ck_ok(gcuffd_collect(heap));
	end();
}
END_TEST

static uint64_t in_adopted;
static uint32_t ready, adopted;

static void *collect_adopted(void *unused)
{
	uint64_t *volatile o = reveal(in_adopted);
	set(&ready);
	await(&adopted);
	for (int i = 0; i < 3; i++) {
		must_ok(gcuffd_collect(heap));
		must_live(in_adopted);
	}
	must_ok(gcuffd_thread_attach());
	churn(4);
	must_ok(gcuffd_collect(heap));
	must_ok(gcuffd_thread_detach());
	must_ok(gcuffd_collect(heap)); /* found once more */
	must_live(in_adopted);
	must(*o == STAMP, "an object was overwritten");
	return unused;
}

START_TEST(adopted_thread_collects)
{
	SHADOW;
	NEED_RUNG(_i);
	pthread_t t;
	begin(rung_names[_i], "process_roots=1");
	for (int i = 0; i < 3; i++) {
		ready = adopted = 0;
		in_adopted = make();
		scrub();
		ck_ok(pthread_create(&t, NULL, collect_adopted, NULL));
		await(&ready);
		ck_ok(gcuffd_collect(heap));
		must_live(in_adopted);
		set(&adopted);
		churn(8);
		pthread_join(t, NULL);
	}
	ck_ok(gcuffd_collect(heap));
	end();
}
END_TEST

/* ---- system calls that are refused once the heap is there ---- */

#define REFUSED_MOST 8

static void refuse(const int *calls)
{
	struct sock_filter filter[2 * REFUSED_MOST + 2] = {BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr))};
	struct sock_fprog program = {1, filter};
	for (; *calls; calls++) {
		filter[program.len++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)*calls, 0, 1);
		filter[program.len++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM);
	}
	filter[program.len++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
	must_ok(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
	must_ok(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program));
}

struct refusal {
	int calls[REFUSED_MOST];
	bool put_off[2]; /* cycles can't be had; in a heap with process roots */
	const char *log; /* "": there may be another way */
};

#define NEVER {false, false}
#define PROCESS {false, true}
#define ALWAYS {true, true}

static const struct refusal refusals[] = {
	{{SYS_userfaultfd}, NEVER, ""},
	{{SYS_userfaultfd, SYS_ioctl}, NEVER, "no page tracking"},
	{{SYS_ioctl}, NEVER, "rung stop"},
	{{SYS_unshare}, NEVER, "unshare was refused"},
	{{SYS_membarrier}, NEVER, ""},
	{{SYS_close_range, SYS_sched_yield}, NEVER, ""},
	{{SYS_openat}, PROCESS, "no page tracking"},
	{{SYS_tgkill}, PROCESS, ""},
	{{SYS_process_vm_readv}, ALWAYS, ""},
	{{SYS_userfaultfd, SYS_ioctl, SYS_unshare, SYS_membarrier, SYS_close_range, SYS_process_vm_readv}, ALWAYS, "no page tracking"},
};

#define REFUSALS ((int)(sizeof(refusals) / sizeof(refusals[0])))

/* Another thread is there, which never attached. */
static void live_with(const struct refusal *r, bool process_roots)
{
	bool put_off = r->put_off[process_roots];
	int fd = dup(STDERR_FILENO);
	pthread_t t;
	begin("auto", !process_roots ? "" : put_off ? "process_roots=1,stop_timeout_ms=200" : "process_roots=1");
	must_ok(pthread_create(&t, NULL, wait_for_quit, NULL));
	refuse(r->calls);
	for (int i = 0; i < 3; i++) {
		int err = gcuffd_collect(heap);
		must(!err == !put_off, "error %d:\n%s", err, core_log);
		churn(40);
		check_list(head, 1000);
	}
	set(&quit);
	pthread_join(t, NULL);
	must(fcntl(fd, F_GETFD) >= 0, "a descriptor of the program was closed");
	struct gcuffd_stats s = stats_of(heap);
	must(strstr(core_log, r->log), "not in the log: %s\n%s", r->log, core_log);
	must(!strstr(core_log, "put off") == !put_off, "put off or not: %s", core_log);
	must(!s.freed_bytes == put_off, "%lu bytes freed", (unsigned long)s.freed_bytes);
	must(!strstr(core_log, "rung stop") == (s.rung != GCUFFD_RUNG_STOP), "rung %u", s.rung);
	end();
}

static void must_exit(pid_t pid)
{
	int status;
	must(pid > 0 && waitpid(pid, &status, 0) == pid, "errno %d", errno);
	must(WIFEXITED(status) && !WEXITSTATUS(status), "the child ended with %#x", (unsigned)status);
}

START_TEST(refused_calls)
{
	if (_i % 2)
		SHADOW;
	pid_t pid = fork();
	if (!pid) {
		limit_child();
		live_with(&refusals[_i / 2], _i % 2);
		_exit(0);
	}
	must_exit(pid);
}
END_TEST

/*
 * A thread that a stop gave up on is left in the collector's list. Without membarrier fork() stops the world: its
 * caller is that thread, and must not wait for itself.
 */
static void *fork_later(void *arg)
{
	struct deaf *d = arg;
	set(&d->ready);
	await(&d->leave);
	mask_stops(SIG_UNBLOCK);
	pid_t pid = fork();
	if (!pid) {
		limit_child();
		must_ok(gcuffd_thread_attach());
		churn(8);
		must_ok(gcuffd_collect(heap));
		check_list(head, 1000);
		_exit(0);
	}
	must_exit(pid);
	return NULL;
}

static void give_up_on_forker(void)
{
	static const int calls[] = {SYS_membarrier, 0};
	static struct deaf d;
	begin("auto", "process_roots=1");
	refuse(calls);
	start_deaf(&d, fork_later);
	must_be_put_off();
	set(&d.leave);
	pthread_join(d.thread, NULL);
	must_ok(gcuffd_collect(heap));
	end();
}

START_TEST(given_up_thread_forks)
{
	SHADOW;
	pid_t pid = fork();
	if (!pid) {
		limit_child();
		give_up_on_forker();
		_exit(0);
	}
	must_exit(pid);
}
END_TEST

/* Without membarrier a cycle begins with a stop, which a deaf thread that was found before does not make. */
static void deaf_without_membarrier(void)
{
	static const int calls[] = {SYS_membarrier, 0};
	static struct deaf d;
	begin("auto", "process_roots=1");
	refuse(calls);
	start_deaf(&d, stay_deaf);
	for (int i = 0; i < 3; i++)
		must_be_put_off();
	set(&d.leave);
	pthread_join(d.thread, NULL);
	must_ok(gcuffd_collect(heap));
	end();
}

START_TEST(deaf_thread_without_membarrier)
{
	SHADOW;
	pid_t pid = fork();
	if (!pid) {
		limit_child();
		deaf_without_membarrier();
		_exit(0);
	}
	must_exit(pid);
}
END_TEST

/* ---- what could not be looked up ---- */

/* In a register alone: only a stop of the thread shows it. */
static void *hold_unattached(void *unused)
{
#if defined(__x86_64__)
	register uint64_t *o __asm__("rdx") = reveal(in_adopted);
	__asm__ volatile("" : "+r"(o));
	set(&ready);
	__asm__ volatile("1: pause\n\tcmpl $0, %1\n\tje 1b" : "+r"(o) : "m"(quit) : "memory");
#else
	uint64_t *volatile o = reveal(in_adopted);
	set(&ready);
	await(&quit);
#endif
	must(*o == STAMP, "an unattached thread's object was taken");
	return unused;
}

START_TEST(threads_not_listed)
{
	SHADOW;
	pthread_t t;
	fake_install();
	begin("auto", "process_roots=1");
	in_adopted = make();
	scrub();
	ready = 0;
	ck_ok(pthread_create(&t, NULL, hold_unattached, NULL));
	await(&ready);
	fake_fail_open("/proc/self/task", 1, -ENFILE);
	fake.sticky = true;
	for (int i = 0; i < 3; i++) {
		scrub();
		ck_assert_int_ne(gcuffd_collect(heap), 0);
		must_live(in_adopted);
	}
	fake_clear();
	ck_ok(gcuffd_collect(heap));
	must_live(in_adopted);
	set(&quit);
	pthread_join(t, NULL);
	end();
	fake_remove();
}
END_TEST

/* The main thread's stack has grown since it attached. */
static __attribute__((noinline)) int collect_deep(unsigned depth)
{
	char room[4000];
	uint64_t hidden = make();
	uint64_t *volatile o = reveal(hidden);
	memset(room, 1, sizeof(room));
	__asm__ volatile("" : : "r"(room) : "memory");
	int err = depth ? collect_deep(depth - 1) : gcuffd_collect(heap);
	must(is_alive(heap, hidden) && *o == STAMP, "an object of a deep stack was taken");
	return err;
}

START_TEST(grown_stack_without_descriptors)
{
	NEED_RUNG(_i);
	struct rlimit none;
	begin(rung_names[_i], "");
	ck_ok(gcuffd_collect(heap));
	ck_ok(getrlimit(RLIMIT_NOFILE, &none));
	none.rlim_cur = 0;
	ck_ok(setrlimit(RLIMIT_NOFILE, &none));
	int err = collect_deep(1000);
	none.rlim_cur = none.rlim_max;
	ck_ok(setrlimit(RLIMIT_NOFILE, &none));
	ck_assert_msg(err == 0 || strstr(core_log, "put off"), "error %d, and not a word of it", err);
	ck_ok(gcuffd_collect(heap));
	end();
}
END_TEST

/* ---- the first thread ends before the others ---- */

static bool first_is_there(void)
{
	char c;
	FILE *f = fopen("/proc/self/maps", "r");
	must(f != NULL, "errno %d", errno);
	bool there = fread(&c, 1, 1, f) == 1;
	fclose(f);
	return there;
}

static void await_end_of_first(void)
{
	while (first_is_there())
		usleep(1000);
}

struct remaining {
	int rung;
	bool begun; /* the heap is made while the first thread is there */
};

static void *remain(void *arg)
{
	const struct remaining *r = arg;
	void **page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	must(page != MAP_FAILED, "errno %d", errno);
	must_ok(gcuffd_thread_attach());
	if (!r->begun)
		await_end_of_first();
	begin(rung_names[r->rung], "process_roots=1");
	await_end_of_first();
	*page = reveal(make());
	for (int i = 0; i < 3; i++) {
		must_ok(gcuffd_collect(heap));
		churn(20);
	}
	must(*(uint64_t *)*page == STAMP, "an object was taken");
	end();
	_exit(0);
}

START_TEST(first_thread_ends)
{
	SHADOW;
	NEED_RUNG(_i / 2);
	pid_t pid = fork();
	if (!pid) {
		static struct remaining r;
		pthread_t t;
		limit_child();
		r = (struct remaining){_i / 2, _i % 2};
		must_ok(pthread_create(&t, NULL, remain, &r));
		while (r.begun && !__atomic_load_n(&heap, __ATOMIC_SEQ_CST))
			usleep(1000);
		must_ok(gcuffd_thread_attach());
		pthread_exit(NULL);
	}
	must_exit(pid);
}
END_TEST

#define ADD(name, from, to) tcase_add_loop_test(test_case(suite, #name), name, from, to)
#define ADD_RUNGS(name) ADD(name, GCUFFD_RUNG_STOP, GCUFFD_RUNG_RWP + 1)

/* ---- handlers of signals ---- */

#define MOVED 20000u

static void **moved[2];
static uint32_t moving;
static struct test_rng moving_rng;

/* Needs nothing of the library, so it may run anywhere: but not in a stop, where what it moves might be seen nowhere. */
static void move_some(int sig)
{
	(void)sig;
	for (int i = 0; i < 300 && gu_load_relaxed(&moving); i++) {
		void **a = &moved[0][test_below(&moving_rng, MOVED)], **b = &moved[1][test_below(&moving_rng, MOVED)], *was = *a;
		*a = *b;
		*b = was;
	}
}

static void *collect_often(void *arg)
{
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, SIGALRM);
	must_ok(pthread_sigmask(SIG_BLOCK, &set, NULL));
	for (int i = 0; i < *(int *)arg; i++)
		must_ok(gcuffd_collect(heap));
	gu_store_seqcst(&moving, 0);
	return NULL;
}

static void fill_moved(void)
{
	for (unsigned k = 0; k < 2; k++) {
		moved[k] = gcuffd_alloc(heap, MOVED * sizeof(void *));
		must(moved[k] != NULL, "errno %d", errno);
		for (unsigned i = 0; i < MOVED; i++) {
			uint64_t *p = gcuffd_alloc(heap, 32);
			must(p != NULL, "errno %d", errno);
			p[1] = 0x1234567;
			moved[k][i] = p;
		}
	}
}

static void check_moved(void)
{
	for (unsigned i = 0; i < 4 * MOVED; i++)
		must(gcuffd_alloc(heap, 32) != NULL, "errno %d", errno);
	for (unsigned k = 0; k < 2; k++)
		for (unsigned i = 0; i < MOVED; i++)
			must(((uint64_t *)moved[k][i])[1] == 0x1234567, "an object was swept that a handler had moved");
}

/* .inv.stop.handlers: in a thread that runs, in one that is in sections, and in one that waits for the collector. */
START_TEST(handlers_in_stops)
{
	static const char *const kinds[] = {"runs", "allocates", "waits"};
	int kind = _i / 8, rung = _i % 8, cycles = (int)check_rounds(30);
	struct itimerval often = {{0, 200}, {0, 200}}, never = {{0, 0}, {0, 0}};
	pthread_t t;
	NEED_RUNG(rung);
	printf("%s on rung %s\n", kinds[kind], rung_names[rung]);
	heap = heap_make("rung=%s,mark_threads=1", rung_names[rung]);
	moving_rng = test_rng(3);
	fill_moved();
	ck_ok(gcuffd_collect(heap));
	struct sigaction act = {.sa_handler = move_some, .sa_flags = SA_RESTART};
	ck_ok(sigaction(SIGALRM, &act, NULL));
	moving = 1;
	ck_ok(pthread_create(&t, NULL, collect_often, &cycles));
	ck_ok(setitimer(ITIMER_REAL, &often, NULL));
	while (gu_load_relaxed(&moving)) {
		if (kind == 1)
			must(gcuffd_alloc(heap, 64) != NULL, "errno %d", errno);
		else if (kind == 2)
			must_ok(gcuffd_collect(heap));
	}
	ck_ok(setitimer(ITIMER_REAL, &never, NULL));
	ck_ok(pthread_join(t, NULL));
	check_moved();
	moved[0] = moved[1] = NULL;
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

static Suite *make_suite(void)
{
	Suite *suite = suite_create("threads");
	ADD_RUNGS(borrowed_tls);
	ADD_RUNGS(borrowed_tls_neighbours);
	ADD_RUNGS(borrowed_tls_of_unattached);
	ADD_RUNGS(deaf_threads);
	ADD(deaf_thread_and_garbage, 0, 1);
	ADD(deaf_thread_at_the_limit, 0, 1);
	ADD_RUNGS(timer_threads);
	ADD(aio_threads, 0, 1);
	ADD(worker_of_a_ring, 0, 1);
	ADD(no_thread_for_now, 0, 2);
	ADD(no_thread_at_the_limit, 0, 1);
	ADD_RUNGS(nested_attach);
	ADD_RUNGS(adopted_thread_collects);
	for (int i = 0; i < 3; i++)
		ADD(handlers_in_stops, 8 * i + GCUFFD_RUNG_STOP, 8 * i + GCUFFD_RUNG_RWP + 1);
	ADD(refused_calls, 0, 2 * REFUSALS);
	ADD(given_up_thread_forks, 0, 1);
	ADD(deaf_thread_without_membarrier, 0, 1);
	ADD(threads_not_listed, 0, 1);
	ADD_RUNGS(grown_stack_without_descriptors);
	ADD(first_thread_ends, 2 * GCUFFD_RUNG_STOP, 2 * GCUFFD_RUNG_RWP + 2);
	return suite;
}

TEST_MAIN(make_suite)
