/* SPDX-License-Identifier: MIT */
/*
 * test.h - what every unit test shares: a main around Check, skips, seeds and time.
 *
 * CK_FORK=no runs all in one process (for gdb, valgrind, sanitizers), CK_RUN_CASE=name runs one case,
 * CK_TAP_LOG_FILE_NAME=file writes TAP. CHECK_SEED=n repeats a random run, CHECK_SECONDS=n says how long
 * tests that can go on for ever should, CHECK_SLOW=n how many times slower than a processor this one is:
 * time limits grow, and work that is counted rather than timed shrinks. CHECK_NEED=name,... lists what this machine is
 * known to have, of test_needs: who misses that fails.
 */
#ifndef GU_TESTS_TEST_H
#define GU_TESTS_TEST_H

#include <check.h>
#include <grp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "folder.h"
#include "hang.h"

#define TEST_SKIPPED 77
#define TEST_UNUSED __attribute__((unused))

static unsigned *test_skips;    /* shared with the children that Check forks; set by test_run */
static uint64_t test_seed_used; /* set by test_run */

#define TEST_END(how, ...) \
	do { \
		printf(how " %s: ", __func__); \
		printf(__VA_ARGS__); \
		putchar('\n'); \
		fflush(stdout); \
		__atomic_fetch_add(test_skips, 1, __ATOMIC_RELAXED); \
		return; \
	} while (0)

/* Ends the test in hand, neither passed nor failed: this run is not for it. */
#define GU_SKIP(...) TEST_END("SKIP", __VA_ARGS__)

/* Ends a turn of a loop test for which there is nothing to test, here or anywhere: it is not counted. */
#define GU_LEAVE_OUT(...) TEST_END("NONE", __VA_ARGS__)

/* The same as GU_SKIP, for want of something that CHECK_NEED can ask for. */
#define GU_LACKS(need, ...) \
	do { \
		if (test_need(need)) { \
			printf("without %s: ", need); \
			printf(__VA_ARGS__); \
			putchar('\n'); \
			ck_abort_msg("CHECK_NEED has %s", need); \
		} \
		GU_SKIP(__VA_ARGS__); \
	} while (0)

/* Those of shell tests are among them. */
static const char *const test_needs[] = {
	"uffd", "async", "move", "rwp", "poison", "io_uring", "swap", "thp", "hugetlb", "ksm", "nodes", "cgroup", "mlock", "root", "setuid",
};

/* Whether a list, with commas between, has these n bytes as a name. */
static inline bool test_lists(const char *list, const char *name, size_t n)
{
	for (; list; list = strchr(list, ','), list += !!list)
		if (!strncmp(list, name, n) && (list[n] == ',' || !list[n]))
			return true;
	return false;
}

static inline bool test_need(const char *name)
{
	const char *list = getenv("CHECK_NEED");
	return list && *name && test_lists(list, name, strlen(name));
}

/* A name that nobody knows would ask for nothing. */
static inline void test_check_needs(void)
{
	const char *list = getenv("CHECK_NEED");
	for (size_t n; list && *list; list += n + (list[n] == ',')) {
		bool known = false;
		n = strcspn(list, ",");
		for (size_t i = 0; i < sizeof(test_needs) / sizeof(test_needs[0]); i++)
			known |= strlen(test_needs[i]) == n && !strncmp(test_needs[i], list, n);
		if (!known) {
			printf("CHECK_NEED: no %.*s\n", (int)n, list);
			exit(1);
		}
	}
}

/* A call of ours that must give 0; shows what it gave. */
#define ck_ok(call) \
	do { \
		long ck_result = (long)(call); \
		ck_assert_msg(ck_result == 0, "%s: %ld", #call, ck_result); \
	} while (0)

/* How long a test that can go on for ever should, in seconds. */
TEST_UNUSED static unsigned check_seconds(void)
{
	const char *text = getenv("CHECK_SECONDS");
	unsigned long n = text ? strtoul(text, NULL, 0) : 0;
	return n > 0 && n < 1000000 ? (unsigned)n : 5;
}

/* Above 1 in an emulated machine. */
TEST_UNUSED static unsigned check_slow(void)
{
	const char *text = getenv("CHECK_SLOW");
	unsigned long n = text ? strtoul(text, NULL, 0) : 0;
	return n > 0 && n <= 100 ? (unsigned)n : 1;
}

/* So many rounds of something that takes long; fewer, but one at least, where all takes longer. */
TEST_UNUSED static unsigned check_rounds(unsigned n) { return n > check_slow() ? n / check_slow() : 1; }

/* So long as something is done again and again; longer, but not by as much, where all takes longer. */
TEST_UNUSED static uint64_t check_span_ns(uint64_t ns) { return ns * (check_slow() < 4 ? check_slow() : 4); }

TEST_UNUSED static uint64_t test_now_ns(void)
{
	struct timespec ts;
	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

/* For a child that a test forks, which may hang: ends it before the test ends. Check handles the signal. */
TEST_UNUSED static void limit_child(void) { hang_limit(200 * check_slow()); }

/* The name of a file that is not there yet, for which there is room at path. */
TEST_UNUSED static void test_new_path(char path[static TEST_PATH], const char *name)
{
	snprintf(path, TEST_PATH, "%s/%s.XXXXXX", test_folder, name);
	int fd = mkstemp(path);
	ck_assert_int_ge(fd, 0);
	close(fd);
	ck_assert_int_eq(unlink(path), 0);
}

/* Gives up privilege; may read its own page map. */
TEST_UNUSED static void become_nobody(void)
{
	if (setgroups(0, NULL) || setgid(65534) || setuid(65534) || prctl(PR_SET_DUMPABLE, 1, 0, 0, 0))
		_exit(100);
}

/* What fn gives in a child process, which has no privilege, if asked. */
TEST_UNUSED static int ask_child(int (*fn)(void), bool as_nobody)
{
	int status = -1;
	fflush(stdout);
	pid_t pid = fork();
	ck_assert_int_ge(pid, 0);
	if (pid == 0) {
		if (as_nobody)
			become_nobody();
		_exit(fn());
	}
	ck_assert_int_eq(waitpid(pid, &status, 0), pid);
	ck_assert_msg(WIFEXITED(status), "status %#x", (unsigned)status);
	return WEXITSTATUS(status);
}

TEST_UNUSED static int ask_as_nobody(int (*fn)(void)) { return ask_child(fn, true); }

/* The same of one that gives 0, or the number of what is wrong there. */
TEST_UNUSED static void in_child_as_nobody(int (*fn)(void)) { ck_assert_int_eq(ask_as_nobody(fn), 0); }

/* Whether all bytes are that. Check writes down each assertion that is passed: one for each byte is most of a test's time. */
TEST_UNUSED static bool test_all_are(const void *p, size_t n, int byte)
{
	const unsigned char *at = p;
	size_t i = 0;
	while (i < n && at[i] == (unsigned char)byte)
		i++;
	if (i < n)
		fprintf(stderr, "byte %zu of %zu is %d, not %d\n", i, n, at[i], byte);
	return i == n;
}

/* ---- random numbers: splitmix64 ---- */

struct test_rng {
	uint64_t state;
};

TEST_UNUSED static uint64_t test_rand(struct test_rng *rng)
{
	uint64_t z = (rng->state += 0x9e3779b97f4a7c15u);
	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
	return z ^ (z >> 31);
}

/* 0 ... limit - 1 */
TEST_UNUSED static uint64_t test_below(struct test_rng *rng, uint64_t limit) { return test_rand(rng) % limit; }

/* CHECK_SEED, or a new one; printed when the program starts. Add a number of the thread's or test's own. */
TEST_UNUSED static uint64_t check_seed(void) { return test_seed_used; }
TEST_UNUSED static struct test_rng test_rng(uint64_t own) { return (struct test_rng){test_seed_used + own}; }

/* ---- running ---- */

/* A case of its own, so that CK_RUN_CASE can name it; the time limit grows with CHECK_SECONDS and CHECK_SLOW. */
TEST_UNUSED static TCase *test_case(Suite *suite, const char *name)
{
	TCase *tcase = tcase_create(name);
	tcase_set_timeout(tcase, (300 + 4 * check_seconds()) * check_slow());
	suite_add_tcase(suite, tcase);
	return tcase;
}

static void test_prepare(void)
{
	const char *text = getenv("CHECK_SEED");
	void *p = mmap(NULL, sizeof(*test_skips), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (p == MAP_FAILED)
		abort();
	test_skips = p;
	folder_prepare();
	hang_prepare();
	test_check_needs();
	test_seed_used = text ? strtoull(text, NULL, 0) : test_now_ns() ^ ((uint64_t)getpid() << 40);
	printf("CHECK_SEED=0x%llx\n", (unsigned long long)test_seed_used);
	fflush(stdout);
}

/* 0, 1 when something failed, 77 when every test that ran was skipped or left out. */
static int test_run(Suite *suite)
{
	SRunner *runner = srunner_create(suite);
	test_prepare();
	srunner_run_all(runner, CK_ENV);
	int failed = srunner_ntests_failed(runner);
	int count = srunner_ntests_run(runner);
	srunner_free(runner);
	if (failed || count == 0)
		return 1;
	return *test_skips == (unsigned)count ? TEST_SKIPPED : 0;
}

/* make_suite: Suite *(*)(void) */
#define TEST_MAIN(make_suite) \
	int main(void) { return test_run(make_suite()); }

#endif
