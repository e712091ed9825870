/* SPDX-License-Identifier: MIT */
/*
 * test_skips.c - the tests' own ways to end without a result: what is skipped, what is left out, and what fails because
 * CHECK_NEED says that it can't be missing. Each suite here is run in a child process.
 */
#include <fcntl.h>

#include "test.h"

static char said[4096];

START_TEST(goes_on) {}
END_TEST

START_TEST(is_skipped) { GU_SKIP("not in this run"); }
END_TEST

START_TEST(is_left_out) { GU_LEAVE_OUT("nothing to test"); }
END_TEST

START_TEST(lacks_nodes) { GU_LACKS("nodes", "no more than %d", 1); }
END_TEST

static Suite *suite_of(const TTest *const *tests)
{
	Suite *suite = suite_create("inner");
	TCase *tcase = test_case(suite, "inner");
	for (; *tests; tests++)
		tcase_add_test(tcase, *tests);
	return suite;
}

/* The exit status of a program with these tests, which is told that it has what is needed. */
static int run(const char *need, const TTest *const *tests)
{
	int status = -1, fd = open(test_folder, O_TMPFILE | O_RDWR, 0600);
	ck_assert_int_ge(fd, 0);
	fflush(stdout);
	pid_t pid = fork();
	ck_assert_int_ge(pid, 0);
	if (pid == 0) {
		if (dup2(fd, STDOUT_FILENO) < 0 || setenv("CK_FORK", "no", 1) || unsetenv("CK_RUN_CASE") || setenv("CHECK_NEED", need, 1))
			_exit(99);
		int result = test_run(suite_of(tests));
		fflush(stdout);
		_exit(result);
	}
	ck_assert_int_eq(waitpid(pid, &status, 0), pid);
	long n = pread(fd, said, sizeof(said) - 1, 0);
	said[n > 0 ? n : 0] = 0;
	close(fd);
	ck_assert_msg(WIFEXITED(status), "status %#x", (unsigned)status);
	return WEXITSTATUS(status);
}

#define RUN(need, ...) run(need, (const TTest *const[]){__VA_ARGS__, NULL})
#define SAYS(words) ck_assert_msg(strstr(said, words), "no word of '%s':\n%s", words, said)

START_TEST(a_skip_is_no_pass)
{
	ck_assert_int_eq(RUN("", is_skipped), TEST_SKIPPED);
	SAYS("\nSKIP is_skipped");
	SAYS(": not in this run\n");
	ck_assert_int_eq(RUN("", is_left_out), TEST_SKIPPED);
	SAYS("\nNONE is_left_out");
	SAYS(": nothing to test\n");
	ck_assert_int_eq(RUN("", is_skipped, is_left_out, lacks_nodes), TEST_SKIPPED);
	ck_assert_int_eq(RUN("", is_skipped, is_left_out, goes_on), 0);
}
END_TEST

START_TEST(what_is_needed_must_be_there)
{
	ck_assert_int_eq(RUN("rwp,swap", lacks_nodes), TEST_SKIPPED);
	SAYS("\nSKIP lacks_nodes");
	SAYS(": no more than 1\n");
	for (const char *const *need = (const char *const[]){"nodes", "rwp,nodes", "nodes,swap", "rwp,nodes,swap", NULL}; *need; need++) {
		ck_assert_msg(RUN(*need, goes_on, lacks_nodes) == 1, "%s:\n%s", *need, said);
		SAYS("CHECK_NEED has nodes");
		SAYS("without nodes: no more than 1\n");
	}
	ck_assert_int_eq(RUN("nodes,rwp", goes_on, is_skipped, is_left_out), 0);
}
END_TEST

/* A name that is misspelt would ask for nothing. */
START_TEST(unknown_names_are_refused)
{
	for (const char *const *need = (const char *const[]){"node", "nodess", "rwp,node", "rwp, swap", ",rwp", NULL}; *need; need++) {
		ck_assert_msg(RUN(*need, goes_on) == 1, "%s is taken", *need);
		SAYS("CHECK_NEED: no ");
	}
	ck_assert_int_eq(RUN("rwp,", goes_on), 0);
}
END_TEST

static Suite *make_suite(void)
{
	Suite *suite = suite_create("skips");
	TCase *skips = test_case(suite, "skips");
	tcase_add_test(skips, a_skip_is_no_pass);
	tcase_add_test(skips, what_is_needed_must_be_there);
	tcase_add_test(skips, unknown_names_are_refused);
	return suite;
}

TEST_MAIN(make_suite)
