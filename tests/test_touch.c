/* SPDX-License-Identifier: MIT */
/*
 * test_touch.c - first touches are told by a call or noted for a collect, and none is lost when one becomes the other
 * (Linux 7.3).
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#include "core.h"
#include "sys/caps.h"

#define PAGE ((size_t)4096)
#define PAGES 512u

#define NEED_TOUCH() \
	do { \
		if (!gu_caps()->has_rwp || !gu_caps()->has_kernel_faults) \
			GU_LACKS("rwp", "no read-write protection here"); \
	} while (0)

#define NEED_SWITCH() \
	do { \
		NEED_TOUCH(); \
		if (!gu_caps()->has_set_mode) \
			GU_LACKS("rwp", "no UFFDIO_SET_MODE here"); \
	} while (0)

struct noticed {
	uint32_t reads[PAGES], writes[PAGES]; /* atomic */
	int thread;
};

static char *memory;
static struct gcuffd_touch *touch;
static struct noticed n;
static bool found[PAGES];

static void note(void *data, void *page, int write, int thread)
{
	struct noticed *to = data;
	size_t i = (size_t)((char *)page - memory) / PAGE;
	__atomic_fetch_add(write ? &to->writes[i] : &to->reads[i], 1, __ATOMIC_RELAXED);
	to->thread = thread;
}

static char *map_pages(int flags)
{
	char *p = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_ANONYMOUS | flags, -1, 0);
	ck_assert_ptr_ne(p, MAP_FAILED);
	madvise(p, PAGES * PAGE, MADV_NOHUGEPAGE);
	return p;
}

static void begin_with(int flags, const struct gcuffd_lazy_options *o)
{
	memset(&n, 0, sizeof(n));
	memory = map_pages(flags);
	memset(memory, 1, PAGES * PAGE);
	ck_ok(gcuffd_touch_begin(memory, PAGES * PAGE, note, &n, o, &touch));
}

static void begin(void) { begin_with(MAP_PRIVATE, NULL); }

static void end(void)
{
	ck_ok(gcuffd_touch_end(touch));
	munmap(memory, PAGES * PAGE);
}

static void read_page(size_t page) { (void)*(volatile char *)(memory + page * PAGE); }
static void write_page(size_t page) { *(volatile char *)(memory + page * PAGE) = 1; }
static long read_into(size_t page)
{
	int zero = open("/dev/zero", O_RDONLY | O_CLOEXEC);
	long got = read(zero, memory + page * PAGE, 8);
	close(zero);
	return got;
}

static uint32_t calls(size_t page) { return __atomic_load_n(&n.reads[page], 0) + __atomic_load_n(&n.writes[page], 0); }

static void add_run(const struct gcuffd_run *run)
{
	must(run->start < run->end, "an empty run");
	for (char *p = run->start; p < (char *)run->end; p += PAGE) {
		size_t page = (size_t)(p - memory) / PAGE;
		must(page < PAGES && !found[page], "page %zu", page);
		found[page] = true;
	}
}

/* In pieces of max runs; how many pages there were. */
static size_t collect(size_t max)
{
	struct gcuffd_run runs[16];
	size_t count, pages = 0;
	void *next = memory;
	memset(found, 0, sizeof(found));
	do {
		char *at = next;
		must_ok(gcuffd_touch_collect(touch, at, (size_t)(memory + PAGES * PAGE - at), runs, max, &count, &next));
		for (size_t i = 0; i < count; i++)
			add_run(&runs[i]);
		must(!next || (count == max && (char *)next > at), "it does not go on");
	} while (next);
	for (size_t p = 0; p < PAGES; p++)
		pages += found[p];
	return pages;
}

/* ---- told ---- */

START_TEST(first_touches)
{
	NEED_TOUCH();
	begin();
	for (uint32_t round = 1; round <= 3; round++) {
		for (size_t p = 0; p < PAGES; p += 2) {
			read_page(p);
			write_page(p + 1);
			write_page(p); /* not the first */
		}
		for (size_t p = 0; p < PAGES; p++)
			must(n.reads[p] == (p % 2 ? 0 : round) && n.writes[p] == (p % 2 ? round : 0), "page %zu", p);
		ck_assert_int_eq(n.thread, gettid());
		ck_ok(gcuffd_touch_arm(touch, memory, PAGES * PAGE));
	}
	ck_assert_int_eq(gcuffd_touch_arm(touch, memory - PAGE, PAGE), -EINVAL);
	ck_ok(gcuffd_touch_end(touch));
	write_page(0);
	ck_assert_uint_eq(calls(0), 3);
	munmap(memory, PAGES * PAGE);
}
END_TEST

/* What was told is in the next collect too, which arms it again. */
START_TEST(told_and_collected)
{
	NEED_TOUCH();
	begin();
	ck_assert_uint_eq(collect(16), 0);
	for (size_t p = 0; p < PAGES; p += 3)
		read_page(p);
	ck_assert_uint_eq(collect(1), (PAGES + 2) / 3);
	for (size_t p = 0; p < PAGES; p++)
		must(found[p] == (p % 3 == 0) && calls(p) == (p % 3 == 0), "page %zu", p);
	write_page(0);
	ck_assert_uint_eq(n.writes[0], 1);
	ck_assert_uint_eq(collect(16), 1);
	end();
}
END_TEST

START_TEST(bad_arguments)
{
	struct gcuffd_run run;
	size_t count;
	void *next;
	NEED_TOUCH();
	begin();
	ck_assert_int_eq(gcuffd_touch_switch(touch, 2), -EINVAL);
	ck_assert_int_eq(gcuffd_touch_collect(touch, memory, PAGE, &run, 0, &count, &next), -EINVAL);
	ck_assert_int_eq(gcuffd_touch_collect(touch, memory + 1, PAGE, &run, 1, &count, &next), -EINVAL);
	ck_assert_int_eq(gcuffd_touch_collect(touch, memory, 0, &run, 1, &count, &next), -EINVAL);
	ck_assert_int_eq(gcuffd_touch_collect(touch, memory, (PAGES + 1) * PAGE, &run, 1, &count, &next), -EINVAL);
	ck_assert_int_eq(gcuffd_touch_collect(touch, memory - PAGE, PAGE, &run, 1, &count, &next), -EINVAL);
	end();
}
END_TEST

START_TEST(no_rwp_is_said)
{
	if (gu_caps()->has_rwp)
		GU_SKIP("there is read-write protection");
	memory = map_pages(MAP_PRIVATE);
	ck_assert_int_eq(gcuffd_touch_begin(memory, PAGE, note, NULL, NULL, &touch), -EOPNOTSUPP);
	munmap(memory, PAGES * PAGE);
}
END_TEST

/* ---- noted ---- */

START_TEST(noted_and_collected)
{
	NEED_SWITCH();
	begin_with(_i ? MAP_SHARED : MAP_PRIVATE, NULL);
	ck_ok(gcuffd_touch_switch(touch, GCUFFD_TOUCH_ASYNC));
	ck_ok(gcuffd_touch_switch(touch, GCUFFD_TOUCH_ASYNC)); /* it is */
	ck_assert_uint_eq(collect(16), 0);
	for (size_t p = 0; p < PAGES; p += 5)
		read_page(p);
	for (size_t p = 1; p < PAGES; p += 5)
		write_page(p);
	ck_assert_int_eq(read_into(2), 8); /* the kernel's touch */
	size_t want = (PAGES + 4) / 5 + (PAGES + 3) / 5 + 1;
	ck_assert_uint_eq(collect(7), want);
	for (size_t p = 0; p < PAGES; p++)
		must(found[p] == (p % 5 < 2 || p == 2) && !calls(p), "page %zu", p);
	ck_assert_uint_eq(collect(16), 0);
	end();
}
END_TEST

/* Memory that was dropped is not reported; what came since is, though it was not armed. */
START_TEST(noted_where_nothing_was)
{
	NEED_SWITCH();
	begin();
	ck_ok(gcuffd_touch_switch(touch, GCUFFD_TOUCH_ASYNC));
	ck_ok(madvise(memory + 10 * PAGE, 10 * PAGE, MADV_DONTNEED));
	ck_assert_uint_eq(collect(16), 0);
	write_page(15);
	ck_assert_uint_eq(collect(16), 1);
	ck_assert(found[15]);
	write_page(15);
	ck_assert_uint_eq(collect(16), 1);
	end();
}
END_TEST

START_TEST(there_and_back)
{
	NEED_SWITCH();
	begin();
	for (int round = 0; round < 3; round++) {
		uint32_t before = calls(3);
		read_page(1); /* told */
		ck_ok(gcuffd_touch_switch(touch, GCUFFD_TOUCH_ASYNC));
		read_page(1);
		read_page(2); /* noted */
		ck_ok(gcuffd_touch_switch(touch, 0));
		write_page(2);
		write_page(3); /* told */
		ck_assert_uint_eq(calls(1), (uint32_t)round + 1);
		ck_assert_uint_eq(calls(2), 0);
		ck_assert_uint_eq(calls(3), before + 1);
		ck_assert_uint_eq(collect(16), 3);
		ck_assert(found[1] && found[2] && found[3]);
		ck_assert_uint_eq(collect(16), 0);
	}
	end();
}
END_TEST

/* ---- both, while threads touch ---- */

#define TOUCHERS 3

static uint32_t touches[PAGES]; /* atomic; counted before each is made */
static uint32_t seen[PAGES];    /* those that a report has told of */
static uint32_t pausing, done;  /* atomic */
static pthread_barrier_t barrier;

/* Each has pages of its own. */
static void *touch_on(void *arg)
{
	size_t me = (size_t)(uintptr_t)arg;
	struct test_rng rng = test_rng(me);
	for (;;) {
		pthread_barrier_wait(&barrier);
		if (__atomic_load_n(&done, __ATOMIC_SEQ_CST))
			return NULL;
		while (!__atomic_load_n(&pausing, __ATOMIC_SEQ_CST)) {
			size_t page = test_below(&rng, PAGES / TOUCHERS) * TOUCHERS + me;
			__atomic_fetch_add(&touches[page], 1, __ATOMIC_SEQ_CST);
			if (test_below(&rng, 2))
				read_page(page);
			else
				write_page(page);
			if (test_below(&rng, 16) == 0)
				usleep(20);
		}
		pthread_barrier_wait(&barrier);
	}
}

static void collect_seen(void)
{
	collect(16);
	for (size_t p = 0; p < PAGES; p++)
		if (found[p])
			seen[p] = __atomic_load_n(&touches[p], __ATOMIC_SEQ_CST);
}

static void switch_to(unsigned flags) { must_ok(gcuffd_touch_switch(touch, flags)); }

/* All is armed when it begins. One report is made while threads touch, one when they have paused. */
static void run_round(unsigned begins, unsigned ends)
{
	uint32_t before[PAGES], told[PAGES];
	for (size_t p = 0; p < PAGES; p++) {
		before[p] = touches[p];
		told[p] = calls(p);
	}
	switch_to(begins);
	__atomic_store_n(&pausing, 0, __ATOMIC_SEQ_CST);
	pthread_barrier_wait(&barrier);
	usleep(500);
	switch_to(ends);
	collect_seen();
	__atomic_store_n(&pausing, 1, __ATOMIC_SEQ_CST);
	pthread_barrier_wait(&barrier);
	collect_seen();
	for (size_t p = 0; p < PAGES; p++) {
		must(seen[p] == touches[p], "page %zu: %u touches, %u seen, modes %u %u", p, touches[p], seen[p], begins, ends);
		must(begins || ends || touches[p] == before[p] || calls(p) > told[p], "page %zu was not told", p);
	}
}

static void run_rounds(void)
{
	struct test_rng rng = test_rng(100);
	for (unsigned i = check_rounds(150 * check_seconds()); i > 0; i--)
		run_round((unsigned)test_below(&rng, 2), (unsigned)test_below(&rng, 2));
	__atomic_store_n(&done, 1, __ATOMIC_SEQ_CST);
	pthread_barrier_wait(&barrier);
}

START_TEST(none_is_lost)
{
	struct gcuffd_lazy_options o = {.size = sizeof(o), .threads = _i % 2 ? 4 : 1};
	pthread_t t[TOUCHERS];
	NEED_SWITCH();
	pthread_barrier_init(&barrier, NULL, TOUCHERS + 1);
	begin_with(_i / 2 ? MAP_SHARED : MAP_PRIVATE, &o);
	for (size_t i = 0; i < TOUCHERS; i++)
		ck_ok(pthread_create(&t[i], NULL, touch_on, (void *)i));
	run_rounds();
	for (size_t i = 0; i < TOUCHERS; i++)
		pthread_join(t[i], NULL);
	end();
}
END_TEST

/* ---- processes ---- */

static int in_child(void)
{
	struct gcuffd_run run;
	size_t count;
	void *next;
	uint32_t before = calls(4);
	read_page(4);
	if (calls(4) != before || memory[4 * PAGE] != 1)
		return 1;
	if (gcuffd_touch_arm(touch, memory, PAGE) != -ESRCH || gcuffd_touch_switch(touch, 0) != -ESRCH)
		return 2;
	if (gcuffd_touch_collect(touch, memory, PAGE, &run, 1, &count, &next) != -ESRCH)
		return 3;
	return gcuffd_touch_end(touch) ? 4 : 0;
}

START_TEST(children)
{
	int status;
	NEED_SWITCH();
	begin();
	if (_i)
		ck_ok(gcuffd_touch_switch(touch, GCUFFD_TOUCH_ASYNC));
	pid_t child = fork();
	if (!child)
		_exit(in_child());
	waitpid(child, &status, 0);
	ck_assert_int_eq(status, 0);
	collect(16);
	ck_assert(!found[4]); /* the child's touch is its own */
	read_page(4);
	ck_assert_uint_eq(calls(4), !_i);
	ck_assert_uint_eq(collect(16), 1);
	end();
}
END_TEST

static int as_nobody(void)
{
	struct gcuffd_lazy_options o = {.size = sizeof(o), .flags = GCUFFD_LAZY_USER_FAULTS};
	struct gcuffd_run run;
	size_t count;
	void *next;
	if (setresuid(65534, 65534, 65534))
		return 1;
	begin_with(MAP_PRIVATE, &o);
	if (gcuffd_touch_collect(touch, memory, PAGES * PAGE, &run, 1, &count, &next) != -EACCES || count)
		return 2; /* setresuid() has made it so */
	end();
	prctl(PR_SET_DUMPABLE, 1, 0, 0, 0);
	begin_with(MAP_PRIVATE, &o);
	if (read_into(3) != -1 || errno != EFAULT)
		return 3;
	if (gcuffd_touch_switch(touch, GCUFFD_TOUCH_ASYNC) || read_into(3) != 8)
		return 4;
	if (collect(16) != 1 || !found[3])
		return 5;
	end();
	return 0;
}

START_TEST(without_privilege)
{
	int status;
	NEED_SWITCH();
	if (geteuid() != 0)
		GU_LACKS("root", "needs root");
	pid_t child = fork();
	if (!child)
		_exit(as_nobody());
	waitpid(child, &status, 0);
	ck_assert_int_eq(status, 0);
}
END_TEST

#define ADD(name) tcase_add_test(test_case(suite, #name), name)
#define ADD_LOOP(name, end) tcase_add_loop_test(test_case(suite, #name), name, 0, end)

static Suite *make_suite(void)
{
	Suite *suite = suite_create("touch");
	ADD(first_touches);
	ADD(told_and_collected);
	ADD(bad_arguments);
	ADD(no_rwp_is_said);
	ADD_LOOP(noted_and_collected, 2);
	ADD(noted_where_nothing_was);
	ADD(there_and_back);
	ADD_LOOP(none_is_lost, 4);
	ADD_LOOP(children, 2);
	ADD(without_privilege);
	return suite;
}

TEST_MAIN(make_suite)
