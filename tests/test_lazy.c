/* SPDX-License-Identifier: MIT */
/*
 * test_lazy.c - pages are filled on first touch, by whoever touches, once, with what belongs there, whatever
 * else goes on. Every page's content follows from its number.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pwd.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "core.h"
#include "fake_os.h"
#include "sys/caps.h"
#include "sys/uapi.h"

#define PAGE ((size_t)4096)
#define PAGES 512u

#define NEED_LAZY() \
	do { \
		if (!gu_caps()->has_uffd || !gu_caps()->has_poison || !gu_caps()->has_kernel_faults) \
			GU_LACKS("poison", "no userfaultfd with poison here"); \
	} while (0)

static struct gcuffd_lazy *lazy;
static char *memory;
static uint32_t asked[PAGES]; /* atomic; how often each page was asked for */
static size_t bad_page;       /* can't be filled */

static uint64_t word_of(size_t page, size_t i) { return (page << 20 | i) * 0x9e3779b97f4a7c15u + 1; }

static int fill(void *data, size_t offset, size_t len, void *into)
{
	uint64_t *w = into;
	(void)data;
	for (size_t at = 0; at < len; at += PAGE) {
		size_t page = (offset + at) / PAGE;
		if (page == bad_page)
			return -EIO;
		__atomic_fetch_add(&asked[page], 1, __ATOMIC_RELAXED);
		for (size_t i = 0; i < PAGE / 8; i++)
			w[(at + i * 8) / 8] = word_of(page, i);
	}
	return 0;
}

static void check_page(size_t page)
{
	const uint64_t *w = (const uint64_t *)(memory + page * PAGE);
	for (size_t i = 0; i < PAGE / 8; i += 73)
		must(w[i] == word_of(page, i), "page %zu word %zu", page, i);
}

static void begin(struct gcuffd_lazy_options *o)
{
	void *start;
	o->size = sizeof(*o);
	memset(asked, 0, sizeof(asked));
	bad_page = SIZE_MAX;
	ck_ok(gcuffd_lazy_map(PAGES * PAGE, fill, NULL, o, &lazy, &start));
	memory = start;
}

static struct gcuffd_lazy_stats stats(void)
{
	struct gcuffd_lazy_stats s = {.size = sizeof(s)};
	ck_ok(gcuffd_lazy_stats(lazy, &s));
	return s;
}

/* A thread wakes who waits before it counts. */
static uint64_t filled(uint64_t want)
{
	struct gcuffd_lazy_stats s = stats(), now;
	for (int ms = 0; ms < 5000; ms++, s = now) {
		usleep(1000);
		now = stats();
		if (now.filled >= want && now.faults == s.faults)
			break;
	}
	return s.filled;
}

/* ---- filling ---- */

START_TEST(each_page_once)
{
	struct test_rng rng = test_rng(1);
	struct gcuffd_lazy_options o = {.around = PAGE << _i, .spin_us = _i % 2 ? 1 : 200};
	NEED_LAZY();
	begin(&o);
	for (size_t i = 0; i < 4 * PAGES; i++)
		check_page(test_below(&rng, PAGES));
	for (size_t p = 0; p < PAGES; p++) {
		check_page(p);
		ck_assert_uint_eq(asked[p], 1); /* aligned windows do not overlap */
	}
	ck_assert_uint_eq(filled(PAGES), PAGES);
	ck_assert_uint_le(stats().faults, PAGES >> _i << 1);
	ck_assert_uint_ge(stats().faults, PAGES >> _i);
	ck_ok(gcuffd_lazy_unmap(lazy));
}
END_TEST

START_TEST(system_calls_fill)
{
	struct gcuffd_lazy_options o = {.around = PAGE};
	int pipes[2];
	uint64_t first;
	NEED_LAZY();
	begin(&o);
	ck_ok(pipe(pipes));
	ck_assert_int_eq(write(pipes[1], memory + 7 * PAGE, PAGE), (long)PAGE);
	ck_assert_int_eq(read(pipes[0], &first, 8), 8);
	ck_assert_uint_eq(first, word_of(7, 0));
	ck_assert_int_eq(read(pipes[0], memory + 9 * PAGE + 8, 8), 8);
	ck_assert_uint_eq(*(uint64_t *)(memory + 9 * PAGE + 8), word_of(7, 1)); /* written, into a page that was filled */
	ck_assert_uint_eq(*(uint64_t *)(memory + 9 * PAGE), word_of(9, 0));
	close(pipes[0]);
	close(pipes[1]);
	ck_ok(gcuffd_lazy_unmap(lazy));
}
END_TEST

static void *toucher(void *arg)
{
	struct test_rng rng = {(uintptr_t)arg};
	for (size_t i = 0; i < 2 * PAGES; i++)
		check_page(test_below(&rng, PAGES));
	for (size_t p = 0; p < PAGES; p++)
		check_page(p);
	return NULL;
}

static void touch_by_many(void)
{
	pthread_t t[8];
	for (size_t i = 0; i < 8; i++)
		must_ok(pthread_create(&t[i], NULL, toucher, (void *)(check_seed() + i)));
	for (size_t i = 0; i < 8; i++)
		pthread_join(t[i], NULL);
}

START_TEST(many_threads)
{
	struct gcuffd_lazy_options o = {.threads = 1u << _i, .around = _i % 2 ? PAGE : 8 * PAGE};
	NEED_LAZY();
	for (unsigned round = 0; round < 5 * check_seconds(); round++) {
		begin(&o);
		touch_by_many();
		ck_assert_uint_eq(filled(PAGES), PAGES);
		ck_ok(gcuffd_lazy_unmap(lazy));
	}
}
END_TEST

/* ---- what goes wrong ---- */

static sigjmp_buf escape;
static void *volatile bus_at;

static void on_bus(int sig, siginfo_t *info, void *context)
{
	(void)sig, (void)context;
	bus_at = info->si_addr;
	siglongjmp(escape, 1);
}

static bool touch_gives_bus(char *at)
{
	struct sigaction act = {.sa_sigaction = on_bus, .sa_flags = SA_SIGINFO}, old;
	sigaction(SIGBUS, &act, &old);
	bool bus = sigsetjmp(escape, 1) != 0;
	if (!bus)
		(void)*(volatile char *)at;
	sigaction(SIGBUS, &old, NULL);
	return bus;
}

START_TEST(bad_pages_are_poisoned)
{
	struct gcuffd_lazy_options o = {.around = 8 * PAGE};
	NEED_LAZY();
	begin(&o);
	bad_page = 19;
	ck_assert(touch_gives_bus(memory + 19 * PAGE + 5));
	ck_assert_ptr_eq((void *)((uintptr_t)bus_at & ~(PAGE - 1)), memory + 19 * PAGE);
	check_page(18); /* its neighbours are filled one by one */
	check_page(20);
	ck_assert(touch_gives_bus(memory + 19 * PAGE));
	ck_assert_uint_eq(stats().poisoned, 1);
	ck_ok(gcuffd_lazy_unmap(lazy));
}
END_TEST

static struct gcuffd_lazy *lazy_in_handler;

static void resolve_bus(int sig, siginfo_t *info, void *context)
{
	(void)sig, (void)context;
	if (gcuffd_lazy_resolve(lazy_in_handler, info->si_addr))
		_exit(99);
}

START_TEST(by_sigbus)
{
	struct gcuffd_lazy_options o = {.flags = GCUFFD_LAZY_SIGBUS};
	struct sigaction act = {.sa_sigaction = resolve_bus, .sa_flags = SA_SIGINFO}, old;
	NEED_LAZY();
	begin(&o);
	lazy_in_handler = lazy;
	sigaction(SIGBUS, &act, &old);
	touch_by_many();
	sigaction(SIGBUS, &old, NULL);
	ck_assert_uint_eq(filled(PAGES), PAGES);
	ck_assert_int_eq(gcuffd_lazy_resolve(lazy, (void *)fill), -EFAULT);
	ck_ok(gcuffd_lazy_unmap(lazy));
}
END_TEST

START_TEST(files_of_its_own)
{
	struct gcuffd_lazy_options o = {.around = PAGE};
	int pipes[2];
	char c;
	NEED_LAZY();
	ck_ok(pipe(pipes));
	begin(&o);
	close(pipes[1]);
	ck_assert_int_eq(read(pipes[0], &c, 1), 0); /* nobody else holds the other end */
	syscall(SYS_close_range, 3, ~0u, 0);
	check_page(3);
	ck_ok(gcuffd_lazy_unmap(lazy));
}
END_TEST

static int fill_from_file(void *data, size_t offset, size_t len, void *into)
{
	return pread(*(int *)data, into, len, (off_t)offset) == (ssize_t)len ? 0 : -EIO;
}

START_TEST(files_that_are_named)
{
	int fd = memfd_create("pages", 0);
	struct gcuffd_lazy_options o = {.size = sizeof(o), .fds = &fd, .nfds = 1};
	void *start;
	NEED_LAZY();
	ck_ok(ftruncate(fd, 64 * PAGE));
	ck_assert_int_eq(pwrite(fd, "hello", 5, 5 * PAGE), 5);
	int copy = fd;
	ck_ok(gcuffd_lazy_map(64 * PAGE, fill_from_file, &copy, &o, &lazy, &start));
	close(fd);
	ck_assert_int_eq(memcmp((char *)start + 5 * PAGE, "hello", 5), 0);
	ck_ok(gcuffd_lazy_unmap(lazy));
}
END_TEST

START_TEST(children_have_it_not)
{
	struct gcuffd_lazy_options o = {.around = PAGE};
	NEED_LAZY();
	NO_SANITIZER("it takes SIGSEGV");
	begin(&o);
	check_page(1);
	pid_t child = fork();
	if (!child) {
		signal(SIGSEGV, SIG_DFL);
		(void)*(volatile char *)memory;
		_exit(0);
	}
	int status;
	waitpid(child, &status, 0);
	ck_assert(WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV); /* never zeros */
	child = fork();
	if (!child)
		_exit(gcuffd_lazy_unmap(lazy));
	waitpid(child, &status, 0);
	ck_assert_int_eq(status, 0);
	check_page(2);
	ck_ok(gcuffd_lazy_unmap(lazy));
}
END_TEST

static void no_signal(int sig) { (void)sig; }

static void *pester(void *arg)
{
	pthread_t *whom = arg;
	while (!__atomic_load_n(&bus_at, __ATOMIC_RELAXED)) {
		pthread_kill(*whom, SIGUSR1);
		usleep(20);
	}
	return NULL;
}

/* A signal makes a waiting thread fault again: messages come twice. */
START_TEST(among_signals)
{
	struct gcuffd_lazy_options o = {.around = PAGE, .threads = 2};
	struct sigaction act = {.sa_handler = no_signal, .sa_flags = SA_RESTART};
	pthread_t me = pthread_self(), other;
	NEED_LAZY();
	sigaction(SIGUSR1, &act, NULL);
	bus_at = NULL;
	ck_ok(pthread_create(&other, NULL, pester, &me));
	for (unsigned round = 0; round < 10 * check_seconds(); round++) {
		begin(&o);
		for (size_t p = 0; p < PAGES; p++)
			check_page(p);
		ck_ok(gcuffd_lazy_unmap(lazy)); /* rings the bell, too */
	}
	bus_at = memory;
	pthread_join(other, NULL);
}
END_TEST

/* What comes twice must end no thread that it is not for. */
START_TEST(ends_among_signals)
{
	struct gcuffd_lazy_options o = {.around = PAGE, .threads = 8};
	struct sigaction act = {.sa_handler = no_signal, .sa_flags = SA_RESTART};
	pthread_t me = pthread_self(), other;
	NEED_LAZY();
	sigaction(SIGUSR1, &act, NULL);
	bus_at = NULL;
	ck_ok(pthread_create(&other, NULL, pester, &me));
	for (unsigned round = 0; round < 40 * check_seconds(); round++) {
		begin(&o);
		check_page(round % PAGES);
		ck_ok(gcuffd_lazy_unmap(lazy));
	}
	bus_at = memory;
	pthread_join(other, NULL);
}
END_TEST

/* Locked memory is filled like other, and the end comes all the same. */
START_TEST(locked_memory)
{
	struct gcuffd_lazy_options o = {.around = 8 * PAGE};
	NEED_LAZY();
	if (mlockall(MCL_CURRENT | MCL_FUTURE))
		GU_LACKS("mlock", "mlockall: %s", strerror(errno));
	begin(&o);
	check_page(7);
	munlockall();
	for (size_t p = 0; p < PAGES; p++)
		check_page(p);
	ck_ok(gcuffd_lazy_unmap(lazy));
}
END_TEST

/* A collection neither fills pages nor waits for them. */
START_TEST(collections_leave_it_alone)
{
	struct gcuffd_lazy_options o = {.around = PAGE}, few = {.size = sizeof(few)};
	struct gcuffd_lazy *small;
	void *start;
	NEED_LAZY();
	struct gcuffd_heap *heap = heap_make("verify=0,process_roots=1");
	begin(&o);
	ck_ok(gcuffd_lazy_map(8 * PAGE, fill, NULL, &few, &small, &start));
	ck_ok(gcuffd_collect(heap));
	ck_ok(gcuffd_collect(heap));
	ck_assert_uint_eq(stats().faults, 0);
	struct gcuffd_lazy_stats s = {.size = sizeof(s)};
	ck_ok(gcuffd_lazy_stats(small, &s));
	ck_assert_uint_eq(s.faults, 0);
	ck_ok(gcuffd_lazy_unmap(small));
	check_page(0);
	ck_ok(gcuffd_lazy_unmap(lazy));
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

START_TEST(bad_arguments)
{
	struct gcuffd_lazy_options o = {.size = sizeof(o), .around = 3 * PAGE};
	void *start;
	NEED_LAZY();
	ck_assert_int_eq(gcuffd_lazy_map(PAGE, fill, NULL, &o, &lazy, &start), -EINVAL);
	o.around = 0;
	o.threads = 9;
	ck_assert_int_eq(gcuffd_lazy_map(PAGE, fill, NULL, &o, &lazy, &start), -EINVAL);
	o.threads = 0;
	o.flags = 1u << 20;
	ck_assert_int_eq(gcuffd_lazy_map(PAGE, fill, NULL, &o, &lazy, &start), -EINVAL);
	ck_assert_int_eq(gcuffd_lazy_map(0, fill, NULL, NULL, &lazy, &start), -EINVAL);
	ck_assert_int_eq(gcuffd_lazy_map(PAGE, NULL, NULL, NULL, &lazy, &start), -EINVAL);
	o.flags = 0;
	o.at = (void *)((uintptr_t)&fill & ~(PAGE - 1));
	ck_assert_int_eq(gcuffd_lazy_map(PAGE, fill, NULL, &o, &lazy, &start), -EEXIST);
}
END_TEST

static int as_nobody(void)
{
	struct gcuffd_lazy_options o = {.size = sizeof(o)};
	void *start;
	if (setresuid(65534, 65534, 65534))
		return 1;
	if (gcuffd_lazy_map(PAGES * PAGE, fill, NULL, &o, &lazy, &start) != -EPERM)
		return 2;
	o.flags = GCUFFD_LAZY_USER_FAULTS;
	if (gcuffd_lazy_map(PAGES * PAGE, fill, NULL, &o, &lazy, &start))
		return 3;
	memory = start;
	check_page(5);
	int null = open("/dev/zero", O_RDONLY);
	if (read(null, memory + 100 * PAGE, 10) != -1 || errno != EFAULT)
		return 4;
	return gcuffd_lazy_unmap(lazy) ? 5 : 0;
}

START_TEST(without_privilege)
{
	int status;
	if (geteuid() != 0)
		GU_LACKS("root", "needs root");
	NEED_LAZY();
	bad_page = SIZE_MAX;
	pid_t child = fork();
	if (!child)
		_exit(as_nobody());
	waitpid(child, &status, 0);
	ck_assert_int_eq(status, 0);
}
END_TEST

/* ---- several threads ---- */

/* Of idle ones a single one waits for messages. */
START_TEST(one_looks_for_messages)
{
	struct gcuffd_lazy_options o = {.threads = 8, .spin_us = 1};
	NEED_LAZY();
	begin(&o);
	while (!stats().sleeps)
		usleep(1000);
	usleep(20000 * check_slow());
	ck_assert_uint_eq(stats().sleeps, 1);
	check_page(3);
	usleep(20000 * check_slow());
	ck_assert_uint_le(stats().sleeps, 3);
	ck_ok(gcuffd_lazy_unmap(lazy));
}
END_TEST

#define FILLERS 4u

static uint32_t inside, most_inside; /* atomic */

/* Others have time to come inside, but for those whose message the same thread has read. */
static int fill_slowly(void *data, size_t offset, size_t len, void *into)
{
	uint32_t now = __atomic_add_fetch(&inside, 1, __ATOMIC_SEQ_CST), most = __atomic_load_n(&most_inside, __ATOMIC_SEQ_CST);
	while (now > most && !__atomic_compare_exchange_n(&most_inside, &most, now, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
		;
	for (int ms = 0; __atomic_load_n(&most_inside, __ATOMIC_SEQ_CST) < FILLERS && ms < 100; ms++)
		usleep(1000);
	int err = fill(data, offset, len, into);
	__atomic_fetch_sub(&inside, 1, __ATOMIC_SEQ_CST);
	return err;
}

static void *touch_quarter(void *arg)
{
	for (size_t p = (uintptr_t)arg; p < 128; p += FILLERS)
		check_page(p);
	return NULL;
}

/* Who fills slowly does not keep the others from their messages. */
START_TEST(slow_fills_run_at_once)
{
	struct gcuffd_lazy_options o = {.size = sizeof(o), .threads = FILLERS, .around = PAGE};
	pthread_t t[FILLERS];
	void *start;
	NEED_LAZY();
	memset(asked, 0, sizeof(asked));
	bad_page = SIZE_MAX;
	ck_ok(gcuffd_lazy_map(PAGES * PAGE, fill_slowly, NULL, &o, &lazy, &start));
	memory = start;
	for (size_t i = 0; i < FILLERS; i++)
		ck_ok(pthread_create(&t[i], NULL, touch_quarter, (void *)i));
	for (size_t i = 0; i < FILLERS; i++)
		pthread_join(t[i], NULL);
	ck_assert_uint_eq(most_inside, FILLERS);
	ck_ok(gcuffd_lazy_unmap(lazy));
}
END_TEST

/* ---- want of memory ---- */

static void *check_one(void *arg)
{
	check_page((uintptr_t)arg);
	__atomic_store_n(&bus_at, memory, __ATOMIC_SEQ_CST);
	return NULL;
}

static void stop_failing(void) { __atomic_store_n(&fake.nth, 0, __ATOMIC_SEQ_CST); }

/* Who touches waits until there is memory; nothing is poisoned. */
START_TEST(memory_comes_back)
{
	struct gcuffd_lazy_options o = {.around = _i ? PAGE : 8 * PAGE, .threads = _i ? 2 : 1};
	pthread_t t;
	NEED_LAZY();
	fake_install();
	begin(&o);
	bus_at = NULL;
	fake_fail_ioctl(GU_UFFDIO_COPY, 1, -ENOMEM);
	fake.sticky = true;
	ck_ok(pthread_create(&t, NULL, check_one, (void *)7));
	while (__atomic_load_n(&fake.fired, __ATOMIC_SEQ_CST) < 6)
		usleep(1000);
	ck_assert_ptr_null(__atomic_load_n(&bus_at, __ATOMIC_SEQ_CST));
	ck_assert_uint_eq(stats().shortages, 1);
	stop_failing();
	pthread_join(t, NULL);
	check_page(8);
	ck_assert_uint_eq(stats().poisoned, 0);
	ck_assert_uint_eq(stats().shortages, 1);
	fake_fail_ioctl(GU_UFFDIO_COPY, 1, -ENOMEM); /* but there is some for the page alone */
	check_page(100);
	ck_assert_uint_eq(stats().shortages, 1);
	fake_clear();
	ck_ok(gcuffd_lazy_unmap(lazy));
	fake_remove();
}
END_TEST

static void await_poisoned(uint64_t pages)
{
	for (int ms = 0; ms < 5000 && stats().poisoned < pages; ms++)
		usleep(1000);
	ck_assert_uint_eq(stats().poisoned, pages);
}

/* Other errors of the kernel's do not pass. */
START_TEST(other_errors_poison)
{
	struct gcuffd_lazy_options o = {.around = PAGE};
	NEED_LAZY();
	fake_install();
	begin(&o);
	fake_fail_ioctl(GU_UFFDIO_COPY, 1, -EINVAL);
	fake.sticky = true;
	ck_assert(touch_gives_bus(memory + 3 * PAGE));
	await_poisoned(1);
	ck_assert_uint_eq(stats().shortages, 0);
	bad_page = 5;
	fake_fail_ioctl(GU_UFFDIO_POISON, 1, -ENOMEM); /* comes again, and is poisoned then */
	ck_assert(touch_gives_bus(memory + 5 * PAGE));
	await_poisoned(2);
	ck_assert_uint_eq(stats().shortages, 1);
	fake_clear();
	ck_ok(gcuffd_lazy_unmap(lazy));
	fake_remove();
}
END_TEST

/* The end asks each thread, and each answer needs a page. */
START_TEST(answers_without_memory)
{
	struct gcuffd_lazy_options o = {.around = PAGE, .threads = 3};
	NEED_LAZY();
	fake_install();
	for (unsigned nth = 1; nth <= 3; nth++) {
		begin(&o);
		check_page(1);
		fake_fail_ioctl(GU_UFFDIO_ZEROPAGE, nth, nth == 2 ? -EAGAIN : -ENOMEM);
		ck_ok(gcuffd_lazy_unmap(lazy));
		ck_assert_uint_ge(fake.fired, 1);
		fake_clear();
	}
	fake_remove();
}
END_TEST

/* A thread that could have no buffer is not made, and nothing is poisoned for it. */
START_TEST(begins_without_memory)
{
	struct gcuffd_lazy_options o = {.size = sizeof(o), .around = PAGE, .threads = 2};
	void *start;
	unsigned failed = 0, fired = 1;
	NEED_LAZY();
	fake_install();
	bad_page = SIZE_MAX;
	for (unsigned nth = 1; fired; nth++) {
		fake_fail(FAKE_MMAP, nth, -ENOMEM);
		int err = gcuffd_lazy_map(PAGES * PAGE, fill, NULL, &o, &lazy, &start);
		fired = fake.fired;
		fake_clear();
		failed += err != 0;
		ck_assert_int_eq(err, err ? -ENOMEM : 0);
		if (err)
			continue;
		memory = start;
		check_page(9);
		ck_assert_uint_eq(stats().poisoned, 0);
		ck_ok(gcuffd_lazy_unmap(lazy));
	}
	ck_assert_uint_ge(failed, 2);
	fake_remove();
}
END_TEST

/* ---- while a page is awaited ---- */

static uint32_t held; /* atomic; fills wait while it is 1 */
static uint32_t waiting; /* atomic */

static int fill_when_let(void *data, size_t offset, size_t len, void *into)
{
	__atomic_fetch_add(&waiting, 1, __ATOMIC_SEQ_CST);
	while (__atomic_load_n(&held, __ATOMIC_SEQ_CST))
		usleep(500);
	return fill(data, offset, len, into);
}

static void begin_held(unsigned threads)
{
	struct gcuffd_lazy_options o = {.size = sizeof(o), .around = PAGE, .threads = threads};
	void *start;
	held = 1;
	waiting = 0;
	bad_page = SIZE_MAX;
	ck_ok(gcuffd_lazy_map(PAGES * PAGE, fill_when_let, NULL, &o, &lazy, &start));
	memory = start;
}

static void await_touch(void)
{
	while (!__atomic_load_n(&waiting, __ATOMIC_SEQ_CST))
		usleep(500);
}

static void let_fill(void) { __atomic_store_n(&held, 0, __ATOMIC_SEQ_CST); }

static void *attached_toucher(void *arg)
{
	uint64_t first;
	int pipes[2];
	must_ok(gcuffd_thread_attach());
	must_ok(pipe(pipes));
	if (arg)
		must(write(pipes[1], memory + 7 * PAGE, 8) == 8 && read(pipes[0], &first, 8) == 8 && first == word_of(7, 0), "pipe");
	check_page(7);
	close(pipes[0]);
	close(pipes[1]);
	gcuffd_thread_detach();
	return NULL;
}

/* In user code it stops like any other thread, and the page comes afterwards. */
START_TEST(stops_while_a_thread_waits)
{
	pthread_t t;
	NEED_LAZY();
	struct gcuffd_heap *heap = heap_make("verify=1");
	begin_held(1);
	ck_ok(pthread_create(&t, NULL, attached_toucher, NULL));
	await_touch();
	for (int i = 0; i < 5; i++)
		ck_ok(gcuffd_collect(heap));
	let_fill();
	pthread_join(t, NULL);
	ck_ok(gcuffd_lazy_unmap(lazy));
	verified(heap);
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

/* In a system call it can't be stopped: the cycle is put off, and a later one is not. */
START_TEST(stops_while_a_system_call_waits)
{
	pthread_t t;
	NEED_LAZY();
	struct gcuffd_heap *heap = heap_make("verify=1,stop_timeout_ms=%u", 50 * check_slow());
	begin_held(1);
	ck_ok(pthread_create(&t, NULL, attached_toucher, &lazy));
	await_touch();
	ck_assert_int_eq(gcuffd_collect(heap), -ETIMEDOUT);
	ck_assert_uint_eq(stats_of(heap).cycles_put_off, 1);
	let_fill();
	pthread_join(t, NULL);
	ck_ok(gcuffd_collect(heap));
	ck_ok(gcuffd_lazy_unmap(lazy));
	verified(heap);
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

static void *collect_once(void *arg)
{
	must_ok(gcuffd_collect(arg));
	return NULL;
}

/* The stop waits, the page comes, and the cycle is run. */
START_TEST(a_stop_waits_for_a_page)
{
	pthread_t t, collector;
	NEED_LAZY();
	struct gcuffd_heap *heap = heap_make("verify=1,stop_timeout_ms=%u", 20000);
	begin_held(1);
	ck_ok(pthread_create(&t, NULL, attached_toucher, &lazy));
	await_touch();
	ck_ok(gcuffd_blocking_enter());
	ck_ok(pthread_create(&collector, NULL, collect_once, heap));
	usleep(20000);
	let_fill();
	pthread_join(t, NULL);
	pthread_join(collector, NULL);
	ck_ok(gcuffd_blocking_leave());
	ck_assert_uint_eq(stats_of(heap).cycles_put_off, 0);
	ck_ok(gcuffd_lazy_unmap(lazy));
	verified(heap);
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

static void *write_lazy(void *arg)
{
	must(write(*(int *)arg, memory, 8) == 8, "errno %d", errno);
	return NULL;
}

static void end_while_waiting(bool in_call)
{
	pthread_t t;
	int null = open("/dev/null", O_WRONLY | O_CLOEXEC), pipes[2];
	must(null >= 0 && !pipe(pipes), "errno %d", errno);
	begin_held(1);
	must_ok(pthread_create(&t, NULL, in_call ? write_lazy : check_one, in_call ? (void *)&pipes[1] : (void *)3));
	await_touch();
	_exit(7); /* no page ever comes */
}

START_TEST(a_process_ends_while_a_thread_waits)
{
	int status;
	NEED_LAZY();
	pid_t child = fork();
	if (!child)
		end_while_waiting(_i);
	waitpid(child, &status, 0);
	ck_assert(WIFEXITED(status) && WEXITSTATUS(status) == 7);
}
END_TEST

/* ---- fork ---- */

static void *touch_rounds(void *arg)
{
	struct test_rng rng = {(uintptr_t)arg};
	while (!__atomic_load_n(&bus_at, __ATOMIC_RELAXED)) {
		size_t page = test_below(&rng, PAGES);
		check_page(page);
		if (test_below(&rng, 4) == 0)
			madvise(memory + page * PAGE, PAGE, MADV_DONTNEED);
	}
	return NULL;
}

/* The child has neither the memory nor the threads, and the parent's pages go on coming. */
START_TEST(forks_while_pages_come)
{
	struct gcuffd_lazy_options o = {.around = PAGE << 2 * _i, .threads = 1u << 2 * _i};
	pthread_t t[3];
	int status;
	NEED_LAZY();
	NO_SANITIZER("its locks do not survive a fork with threads");
	begin(&o);
	bus_at = NULL;
	for (size_t i = 0; i < 3; i++)
		ck_ok(pthread_create(&t[i], NULL, touch_rounds, (void *)(check_seed() + i)));
	for (unsigned round = 0; round < check_rounds(40 * check_seconds()); round++) {
		pid_t child = fork();
		if (!child)
			_exit(gcuffd_lazy_unmap(lazy) || mincore(memory, PAGE, (unsigned char *)&status) != -1);
		waitpid(child, &status, 0);
		ck_assert_int_eq(status, 0);
	}
	bus_at = memory;
	for (size_t i = 0; i < 3; i++)
		pthread_join(t[i], NULL);
	ck_assert_uint_eq(stats().poisoned, 0);
	ck_ok(gcuffd_lazy_unmap(lazy));
}
END_TEST

#define ADD(name) tcase_add_test(test_case(suite, #name), name)

static Suite *make_suite(void)
{
	Suite *suite = suite_create("lazy");
	tcase_add_loop_test(test_case(suite, "each_page_once"), each_page_once, 0, 6);
	ADD(system_calls_fill);
	tcase_add_loop_test(test_case(suite, "many_threads"), many_threads, 0, 4);
	ADD(bad_pages_are_poisoned);
	ADD(by_sigbus);
	ADD(files_of_its_own);
	ADD(files_that_are_named);
	ADD(children_have_it_not);
	ADD(among_signals);
	ADD(ends_among_signals);
	ADD(locked_memory);
	ADD(collections_leave_it_alone);
	ADD(bad_arguments);
	ADD(without_privilege);
	ADD(one_looks_for_messages);
	ADD(slow_fills_run_at_once);
	tcase_add_loop_test(test_case(suite, "memory_comes_back"), memory_comes_back, 0, 2);
	ADD(other_errors_poison);
	ADD(answers_without_memory);
	ADD(begins_without_memory);
	ADD(stops_while_a_thread_waits);
	ADD(stops_while_a_system_call_waits);
	ADD(a_stop_waits_for_a_page);
	tcase_add_loop_test(test_case(suite, "a_process_ends_while_a_thread_waits"), a_process_ends_while_a_thread_waits, 0, 2);
	tcase_add_loop_test(test_case(suite, "forks_while_pages_come"), forks_while_pages_come, 0, 2);
	return suite;
}

TEST_MAIN(make_suite)
