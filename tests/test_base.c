/* SPDX-License-Identifier: MIT */
/* test_base.c - the lowest layer: own ranges, metadata memory, ranked locks, log lines. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/check.h"
#include "base/lock.h"
#include "base/log.h"
#include "base/meta.h"
#include "base/own.h"
#include "base/slab.h"
#include "fake_os.h"
#include "test.h"

/* ---- own ---- */

/* Far from anything that is mapped, so that ranges of the process itself don't matter. */
#define BASE ((uintptr_t)1 << 46)
#define MODEL_PAGES 256

static bool owned(uintptr_t at)
{
	uintptr_t start, end;
	return gu_own_next(at, &start, &end) && start <= at;
}

static unsigned count_runs(void)
{
	uintptr_t at = BASE, start, end;
	unsigned n = 0;
	while (gu_own_next(at, &start, &end) && start < BASE + MODEL_PAGES * GU_PAGE) {
		if (start >= end || (n > 0 && start == at))
			ck_abort_msg("empty, or not merged");
		at = end;
		n++;
	}
	return n;
}

START_TEST(own_merges_what_touches)
{
	ck_assert(gu_own_add(BASE, GU_PAGE));
	ck_assert(gu_own_add(BASE + 2 * GU_PAGE, GU_PAGE));
	ck_assert_uint_eq(count_runs(), 2);
	ck_assert(gu_own_add(BASE + GU_PAGE, GU_PAGE));
	ck_assert_uint_eq(count_runs(), 1);
	gu_own_remove(BASE + GU_PAGE, GU_PAGE);
	ck_assert_uint_eq(count_runs(), 2);
	ck_assert(!owned(BASE + GU_PAGE));
	gu_own_remove(BASE, 3 * GU_PAGE);
	ck_assert_uint_eq(count_runs(), 0);
}
END_TEST

static void compare_with(const bool *model)
{
	size_t runs = 0, differ = 0;
	for (size_t i = 0; i < MODEL_PAGES; i++) {
		differ += owned(BASE + i * GU_PAGE) != model[i];
		runs += model[i] && (i == 0 || !model[i - 1]);
	}
	ck_assert_uint_eq(differ, 0);
	ck_assert_uint_eq(count_runs(), runs);
}

/* Adds what is not owned, removes any range, and compares with a bitmap. */
START_TEST(own_against_a_model)
{
	struct test_rng rng = test_rng(1);
	bool model[MODEL_PAGES] = {false};
	for (int round = 0; round < 2000; round++) {
		size_t first = test_below(&rng, MODEL_PAGES), n = 1 + test_below(&rng, 8);
		bool adding = test_below(&rng, 2), is_free = true;
		n = gu_min(n, MODEL_PAGES - first);
		for (size_t i = first; i < first + n; i++)
			is_free &= !model[i];
		if (adding && !is_free)
			continue;
		if (adding)
			ck_assert(gu_own_add(BASE + first * GU_PAGE, n * GU_PAGE));
		else
			gu_own_remove(BASE + first * GU_PAGE, n * GU_PAGE);
		memset(model + first, adding, n);
		compare_with(model);
	}
	gu_own_remove(BASE, MODEL_PAGES * GU_PAGE);
}
END_TEST

START_TEST(own_says_when_it_is_full)
{
	size_t n = 0;
	while (n < 1u << 20 && gu_own_add(BASE + 2 * n * GU_PAGE, GU_PAGE))
		n++;
	ck_assert(n > 1000 && n < 1u << 20);
	ck_assert(!owned(BASE + 2 * n * GU_PAGE));
	ck_assert(gu_own_add(BASE + GU_PAGE, GU_PAGE)); /* merges two: makes room */
	ck_assert(gu_own_add(BASE + 2 * n * GU_PAGE, GU_PAGE));
	gu_own_remove(BASE, (2 * n + 1) * GU_PAGE);
	ck_assert(!owned(BASE + 2 * GU_PAGE));
}
END_TEST

/* ---- meta ---- */

START_TEST(meta_pieces_are_zeroed_aligned_and_own)
{
	size_t before = gu_meta_used();
	for (size_t size = 1; size <= 1u << 20; size = size * 3 / 2 + 1) {
		unsigned char *p = gu_meta_alloc(size);
		size_t align = 16;
		while (align < size && align < GU_PAGE)
			align *= 2;
		ck_assert_ptr_nonnull(p);
		ck_assert_uint_eq((uintptr_t)p % align, 0);
		ck_assert(test_all_are(p, size, 0));
		ck_assert(owned((uintptr_t)p) && owned((uintptr_t)p + size - 1));
		memset(p, 0xff, size);
		gu_meta_free(p, size);
	}
	gu_meta_free(NULL, 1);
	ck_assert_uint_eq(gu_meta_used(), before);
}
END_TEST

struct piece {
	unsigned char *p;
	size_t size;
	unsigned char fill;
};

static void take_piece(struct piece *piece, struct test_rng *rng)
{
	piece->size = 1 + test_below(rng, (size_t)1 << (4 + test_below(rng, 14)));
	piece->fill = (unsigned char)(1 + test_below(rng, 255));
	piece->p = gu_meta_alloc(piece->size);
	ck_assert_ptr_nonnull(piece->p);
	ck_assert(test_all_are(piece->p, piece->size, 0));
	memset(piece->p, piece->fill, piece->size);
}

static void give_piece(struct piece *piece)
{
	bool same = true;
	for (size_t i = 0; i < piece->size; i++)
		same &= piece->p[i] == piece->fill;
	ck_assert(same);
	gu_meta_free(piece->p, piece->size);
	piece->p = NULL;
}

static void *use_pieces(void *data)
{
	struct test_rng rng = test_rng((uintptr_t)data);
	struct piece pieces[32] = {{NULL, 0, 0}};
	for (int i = 0; i < 4000; i++) {
		struct piece *piece = &pieces[test_below(&rng, GU_ARRAY_LEN(pieces))];
		if (piece->p)
			give_piece(piece);
		else
			take_piece(piece, &rng);
	}
	for (size_t i = 0; i < GU_ARRAY_LEN(pieces); i++)
		if (pieces[i].p)
			give_piece(&pieces[i]);
	return NULL;
}

START_TEST(meta_pieces_do_not_overlap)
{
	size_t before = gu_meta_used();
	pthread_t thread[3];
	for (uintptr_t i = 0; i < 3; i++)
		ck_ok(pthread_create(&thread[i], NULL, use_pieces, (void *)(10 + i)));
	for (int i = 0; i < 3; i++)
		ck_ok(pthread_join(thread[i], NULL));
	ck_assert_uint_eq(gu_meta_used(), before);
}
END_TEST

START_TEST(meta_reservations)
{
	size_t before = gu_meta_used();
	char *p = gu_meta_reserve((size_t)1 << 30);
	ck_assert_ptr_nonnull(p);
	ck_ok(gu_meta_commit(p + (1 << 20), GU_PAGE));
	p[1 << 20] = 1;
	ck_assert(owned((uintptr_t)p + (1 << 29)));
	ck_assert_uint_eq(gu_meta_used(), before);
	gu_meta_unreserve(p, (size_t)1 << 30);
	ck_assert(!owned((uintptr_t)p));
}
END_TEST

/* Whether huge pages are ruled out there: 0, 1, or -1 where nobody says. */
static int is_small(const void *at)
{
	FILE *f = fopen("/proc/self/smaps", "r");
	char line[512];
	uintptr_t start, end;
	int small = -1;
	for (bool here = false; f && fgets(line, sizeof(line), f);)
		if (sscanf(line, "%" SCNxPTR "-%" SCNxPTR " ", &start, &end) == 2)
			here = start <= (uintptr_t)at && (uintptr_t)at < end;
		else if (here && !strncmp(line, "VmFlags:", 8))
			small = strstr(line, " nh") != NULL;
	if (f)
		fclose(f);
	return small;
}

static void check_small(void)
{
	char *p = gu_meta_map((size_t)4 << 20), *q = gu_meta_alloc(1u << 15), *r = gu_meta_reserve((size_t)4 << 20);
	ck_assert(p && q && r);
	ck_assert_int_eq(is_small(p), 1);
	ck_assert_int_eq(is_small(q), 1);
	ck_assert_int_eq(is_small(r), 1);
	gu_meta_unmap(p, (size_t)4 << 20);
	gu_meta_free(q, 1u << 15);
	gu_meta_unreserve(r, (size_t)4 << 20);
}

/* Whether it comes from the default source, or through the table, as in a program. */
START_TEST(meta_has_small_pages)
{
	static int word;
	if (access("/sys/kernel/mm/transparent_hugepage/enabled", F_OK) || is_small(&word) < 0)
		GU_SKIP("no huge pages, or smaps does not tell");
	check_small();
	gu_os_set(NULL);
	check_small();
}
END_TEST

/* Every n-th operation fails once: NULL, nothing leaks into own.h or the count, and the next try works. */
START_TEST(meta_survives_every_failure)
{
	unsigned n = 0, fired;
	fake_install();
	size_t before = gu_meta_used();
	do {
		fake_fail(FAKE_ANY, ++n, -ENOMEM);
		char *p = gu_meta_map(GU_PAGE), *q = gu_meta_alloc(1u << 15), *r = gu_meta_reserve(GU_PAGE);
		int committed = r ? gu_meta_commit(r, GU_PAGE) : -1;
		fired = fake.fired;
		ck_assert_uint_eq(!p + !q + (committed != 0), fired);
		fake_clear();
		gu_meta_unmap(p, GU_PAGE);
		gu_meta_free(q, 1u << 15);
		if (r)
			gu_meta_unreserve(r, GU_PAGE);
		ck_assert_uint_eq(gu_meta_used(), before);
	} while (fired);
	ck_assert_uint_gt(n, 3);
	fake_remove();
}
END_TEST

static bool is_all(const unsigned char *p, size_t n, unsigned char c) { return p[0] == c && !memcmp(p, p + 1, n - 1); }

/* Pieces of all sizes come and go; each keeps what was written to it, is zero when it is new, and the last one takes all memory with it. */
START_TEST(slabs)
{
	enum { PIECES = 3000 };
	static struct { unsigned char *piece; size_t size; unsigned char mark; } p[PIECES];
	struct test_rng rng = test_rng(0);
	struct gu_slab slab;
	memset(&slab, 0, sizeof(slab));
	size_t before = gu_meta_used(), most = 0;
	for (unsigned round = 0; round < 60000 / check_slow(); round++) {
		size_t i = test_below(&rng, PIECES);
		if (p[i].piece) {
			ck_assert(is_all(p[i].piece, p[i].size, p[i].mark));
			gu_slab_free(&slab, p[i].piece);
			p[i].piece = NULL;
			continue;
		}
		p[i].size = 1 + test_below(&rng, GU_SLAB_MOST);
		p[i].mark = (unsigned char)(1 + round % 255);
		p[i].piece = gu_slab_alloc(&slab, p[i].size);
		ck_assert_ptr_nonnull(p[i].piece);
		ck_assert_uint_eq((uintptr_t)p[i].piece % 8, 0);
		ck_assert(is_all(p[i].piece, p[i].size, 0));
		memset(p[i].piece, p[i].mark, p[i].size);
		most = gu_max(most, slab.bytes);
		if (round % 5000 == 0)
			gu_slab_check(&slab);
	}
	ck_assert_uint_gt(most, 0);
	for (size_t i = 0; i < PIECES; i++)
		if (p[i].piece)
			gu_slab_free(&slab, p[i].piece);
	ck_assert_uint_eq(slab.bytes, 0);
	ck_assert_uint_eq(gu_meta_used(), before);
	fake_install();
	fake_fail(FAKE_MMAP, 1, -ENOMEM);
	gu_os_set(gu_os);
	ck_assert_ptr_null(gu_slab_alloc(&slab, 100));
	gu_slab_check(&slab);
	fake_remove();
}
END_TEST

/* ---- lock ---- */

static struct gu_lock low, high;
static unsigned counter;

static void *count_up(void *unused)
{
	(void)unused;
	for (int i = 0; i < 20000; i++) {
		gu_lock(&low);
		counter++;
		gu_unlock(&low);
	}
	return NULL;
}

START_TEST(locks_exclude)
{
	pthread_t thread[3];
	gu_lock_init(&low, GU_RANK_LIBRARY);
	counter = 0;
	for (int i = 0; i < 3; i++)
		ck_ok(pthread_create(&thread[i], NULL, count_up, NULL));
	for (int i = 0; i < 3; i++)
		ck_ok(pthread_join(thread[i], NULL));
	ck_assert_uint_eq(counter, 60000);
}
END_TEST

static void *try_low(void *unused)
{
	(void)unused;
	bool got = gu_trylock(&low);
	if (got)
		gu_unlock(&low);
	return (void *)(uintptr_t)got;
}

START_TEST(trylock_says_no)
{
	pthread_t thread;
	void *got;
	gu_lock_init(&low, GU_RANK_LIBRARY);
	gu_lock(&low);
	ck_ok(pthread_create(&thread, NULL, try_low, NULL));
	ck_ok(pthread_join(thread, &got));
	ck_assert_ptr_null(got);
	ck_assert(gu_lock_held(&low));
	gu_unlock(&low);
	ck_assert_ptr_nonnull(try_low(NULL));
}
END_TEST

/* How a child ends that does what must abort: its signal. */
static int signal_of(void (*act)(void))
{
	int status = 0;
	fflush(stdout);
	pid_t pid = fork();
	if (pid == 0) {
		int null = open("/dev/null", O_WRONLY);
		signal(SIGABRT, SIG_DFL);
		dup2(null, STDERR_FILENO);
		act();
		_exit(0);
	}
	ck_assert_int_eq(waitpid(pid, &status, 0), pid);
	return WIFSIGNALED(status) ? WTERMSIG(status) : 0;
}

static void break_an_invariant(void) { GU_INVARIANT(getpid() == 0, ".inv.test"); }

static void take_in_falling_rank(void)
{
	gu_lock(&high);
	gu_lock(&low);
}

static void take_in_rising_rank(void)
{
	gu_lock(&low);
	gu_lock(&high);
	gu_unlock(&low);
	gu_unlock(&high);
}

START_TEST(rank_is_enforced_in_debug_builds)
{
	gu_lock_init(&low, GU_RANK_LIBRARY);
	gu_lock_init(&high, GU_RANK_LOG);
	ck_assert_int_eq(signal_of(take_in_rising_rank), 0);
#ifdef GU_DEBUG
	ck_assert_int_eq(signal_of(take_in_falling_rank), SIGABRT);
	ck_assert(!gu_lock_held(&low));
#else
	ck_assert_int_eq(signal_of(take_in_falling_rank), 0);
#endif
}
END_TEST

START_TEST(broken_invariants_abort)
{
	ck_assert_int_eq(signal_of(break_an_invariant), SIGABRT);
}
END_TEST

/* ---- log ---- */

struct lines {
	char text[1024];
	int level;
	unsigned count;
};

static void keep(void *data, int level, const char *line)
{
	struct lines *lines = data;
	snprintf(lines->text, sizeof(lines->text), "%s", line);
	lines->level = level;
	lines->count++;
}

START_TEST(log_filters_formats_and_keeps_errno)
{
	struct lines lines = {.count = 0};
	struct gu_log log = {keep, &lines, GU_LOG_WARN, 0};
	errno = EXFULL;
	gu_log(&log, GU_LOG_INFO, "no");
	ck_assert_uint_eq(lines.count, 0);
	gu_log(&log, GU_LOG_WARN, "%s %d", "yes", 42);
	ck_assert_str_eq(lines.text, "yes 42");
	ck_assert_int_eq(lines.level, GU_LOG_WARN);
	gu_log(&log, GU_LOG_ERROR, "worse");
	ck_assert_uint_eq(lines.count, 2);
	ck_assert_int_eq(errno, EXFULL);
}
END_TEST

START_TEST(log_cuts_long_lines)
{
	struct lines lines = {.count = 0};
	struct gu_log log = {keep, &lines, GU_LOG_DEBUG, 0};
	char text[2000];
	memset(text, 'x', sizeof(text) - 1);
	text[sizeof(text) - 1] = 0;
	gu_log(&log, GU_LOG_DEBUG, "%s", text);
	ck_assert_uint_gt(strlen(lines.text), 700);
	ck_assert_uint_lt(strlen(lines.text), 768);
}
END_TEST

/* stderr gets one whole line a call, however long. */
START_TEST(log_writes_lines_to_stderr)
{
	struct gu_log log = {NULL, NULL, GU_LOG_INFO, 0};
	char text[2000], got[4096];
	int pipes[2], saved = dup(STDERR_FILENO);
	memset(text, 'x', sizeof(text) - 1);
	text[sizeof(text) - 1] = 0;
	ck_ok(pipe(pipes));
	dup2(pipes[1], STDERR_FILENO);
	gu_log(&log, GU_LOG_INFO, "short");
	gu_log(&log, GU_LOG_INFO, "%s", text);
	dup2(saved, STDERR_FILENO);
	long n = read(pipes[0], got, sizeof(got) - 1);
	ck_assert_int_gt(n, 400);
	got[n] = 0;
	ck_assert(!strncmp(got, "gcuffd: short\ngcuffd: xxx", 25));
	ck_assert_int_eq(got[n - 1], '\n');
	ck_assert_uint_eq(strlen(got), (size_t)n);
	close(pipes[0]);
	close(pipes[1]);
	close(saved);
}
END_TEST

/* A service thread's: it has a descriptor table of its own, in which nothing is open. */
static void *log_detached(void *last)
{
	struct gu_log log = {NULL, NULL, GU_LOG_INFO, 0};
	gu_log_detach();
	if (unshare(CLONE_FILES) || close(STDERR_FILENO))
		_exit(1);
	if (last)
		gu_broken("last", "file", 1);
	gu_log(&log, GU_LOG_INFO, "from a service thread");
	return NULL;
}

static void log_from_thread(void *last)
{
	pthread_t t;
	if (pthread_create(&t, NULL, log_detached, last) || pthread_join(t, NULL))
		_exit(2);
}

/* Neither writes over what the other wrote. */
static void log_by_turns(void)
{
	for (int i = 0; i < 3; i++) {
		dprintf(STDERR_FILENO, "from the program\n");
		log_from_thread(NULL);
	}
	dprintf(STDERR_FILENO, "from the program\n");
	signal(SIGABRT, SIG_DFL);
	log_from_thread("");
	_exit(3);
}

#define BOTH "from the program\ngcuffd: from a service thread\n"

START_TEST(log_goes_to_the_same_file)
{
	char got[4096];
	int status, fd = open(test_folder, O_RDWR | O_TMPFILE, 0600);
	ck_assert_int_ge(fd, 0);
	fflush(stdout);
	pid_t pid = fork();
	if (!pid) {
		limit_child();
		dup2(fd, STDERR_FILENO);
		log_by_turns();
	}
	ck_assert_int_eq(waitpid(pid, &status, 0), pid);
	long n = pread(fd, got, sizeof(got) - 1, 0);
	ck_assert_int_ge(n, 0);
	got[n] = 0;
	ck_assert_str_eq(got, BOTH BOTH BOTH "from the program\ngcuffd: broken invariant: last (file:1)\n");
	ck_assert_msg(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT, "status %#x", (unsigned)status);
	close(fd);
}
END_TEST

/* A socket can't be opened, nor told not to wait without telling the program's. */
static void log_to_full_socket(int fd)
{
	char text[1000] = "";
	while (send(fd, text, sizeof(text), MSG_DONTWAIT) > 0)
		;
	log_from_thread(NULL);
	signal(SIGABRT, SIG_DFL);
	log_from_thread("");
	_exit(3);
}

/* What stderr is under service managers. */
START_TEST(log_goes_to_a_socket)
{
	char got[4096];
	int status, ends[2];
	if (syscall(SYS_pidfd_getfd, -1, 0, 0) < 0 && errno != EBADF)
		GU_SKIP("no pidfd_getfd() here");
	ck_assert_int_eq(socketpair(AF_UNIX, SOCK_STREAM, 0, ends), 0);
	fflush(stdout);
	pid_t pid = fork();
	if (!pid) {
		limit_child();
		dup2(ends[1], STDERR_FILENO);
		log_by_turns();
	}
	ck_assert_int_eq(waitpid(pid, &status, 0), pid);
	ssize_t n = recv(ends[0], got, sizeof(got) - 1, MSG_DONTWAIT);
	ck_assert_int_ge((int)n, 0);
	got[n] = 0;
	ck_assert_str_eq(got, BOTH BOTH BOTH "from the program\ngcuffd: broken invariant: last (file:1)\n");
	pid = fork();
	if (!pid) {
		limit_child();
		dup2(ends[1], STDERR_FILENO);
		log_to_full_socket(ends[1]);
	}
	ck_assert_int_eq(waitpid(pid, &status, 0), pid);
	ck_assert_msg(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT, "status %#x", (unsigned)status);
	close(ends[0]);
	close(ends[1]);
}
END_TEST

static Suite *make_suite(void)
{
	Suite *suite = suite_create("base");
	TCase *own = test_case(suite, "own"), *meta = test_case(suite, "meta");
	TCase *lock = test_case(suite, "lock"), *log = test_case(suite, "log");
	tcase_add_test(own, own_merges_what_touches);
	tcase_add_test(own, own_against_a_model);
	tcase_add_test(own, own_says_when_it_is_full);
	tcase_add_test(meta, meta_pieces_are_zeroed_aligned_and_own);
	tcase_add_test(meta, meta_pieces_do_not_overlap);
	tcase_add_test(meta, meta_reservations);
	tcase_add_test(meta, meta_has_small_pages);
	tcase_add_test(meta, meta_survives_every_failure);
	tcase_add_test(meta, slabs);
	tcase_add_test(lock, locks_exclude);
	tcase_add_test(lock, trylock_says_no);
	tcase_add_test(lock, rank_is_enforced_in_debug_builds);
	tcase_add_test(lock, broken_invariants_abort);
	tcase_add_test(log, log_filters_formats_and_keeps_errno);
	tcase_add_test(log, log_cuts_long_lines);
	tcase_add_test(log, log_writes_lines_to_stderr);
	tcase_add_test(log, log_goes_to_the_same_file);
	tcase_add_test(log, log_goes_to_a_socket);
	return suite;
}

TEST_MAIN(make_suite)
