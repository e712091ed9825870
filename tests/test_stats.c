/* SPDX-License-Identifier: MIT */
/* test_stats.c - statistics of cycles: the line in the log says the same, why a cycle ran, and what the process takes. */
#include <fcntl.h>

#include "core.h"
#include "fake_os.h"

#define PAGES 2048u
#define PAGE ((size_t)4096)

static struct gcuffd_heap *heap;
static char *volatile written; /* a data segment */
static uint32_t quit;

/* ---- the line of a cycle ---- */

struct line {
	uint64_t number, stop1_us, stop2_us, arm_us, mark_us, preclean_us, final_us, sweep_us, scanned, dirty, rounds, remark;
	uint64_t marked_kib, in_stops_kib, words, stack_words, freed_kib, live_kib, resident_kib, process_kib;
	uint64_t by_round[GCUFFD_ROUNDS];
	char why[64];
};

static const char *parse_rounds(const char *at, struct line *l)
{
	uint64_t n = 0;
	for (char before = '('; n < GCUFFD_ROUNDS && (at[0] == ' ' || n) && *at != ')'; before = '+') {
		int len = 0;
		at += !n;
		ck_assert_int_eq(*at, before);
		ck_assert_int_eq(sscanf(at + 1, "%lu%n", &l->by_round[n++], &len), 1);
		at += 1 + len;
	}
	ck_assert_uint_eq(n, l->rounds);
	return at + (n > 0);
}

/* All of it, to its last byte. */
static struct line parse_line(const char *at)
{
	struct line l;
	int len = 0;
	memset(&l, 0, sizeof(l));
	ck_assert_int_eq(sscanf(at, "cycle %lu (%63[^)]): stops %lu+%lu us, arm %lu mark %lu preclean %lu finalize %lu sweep %lu us; pages scanned %lu dirty %lu in %lu rounds%n",
				&l.number, l.why, &l.stop1_us, &l.stop2_us, &l.arm_us, &l.mark_us, &l.preclean_us, &l.final_us, &l.sweep_us, &l.scanned, &l.dirty, &l.rounds, &len), 12);
	at = parse_rounds(at + len, &l);
	ck_assert_int_eq(sscanf(at, ", remark %lu; marked %lu KiB, in stops %lu KiB; words in remark %lu (stacks %lu); freed %lu live %lu resident %lu process %lu KiB%n",
				&l.remark, &l.marked_kib, &l.in_stops_kib, &l.words, &l.stack_words, &l.freed_kib, &l.live_kib, &l.resident_kib, &l.process_kib, &len), 9);
	ck_assert_int_eq(at[len], '\n');
	return l;
}

static struct line last_line(void)
{
	const char *at = NULL;
	for (const char *next = core_log; (next = strstr(next, "cycle ")); next++)
		if (next == core_log || next[-1] == '\n')
			at = next;
	ck_assert_ptr_nonnull(at);
	return parse_line(at);
}

static void compare(const struct line *l, const struct gcuffd_stats *s)
{
	uint64_t sum = 0;
	ck_assert_uint_eq(l->number, s->cycles);
	ck_assert_uint_eq(l->stop1_us, s->last_stop1_ns / 1000);
	ck_assert_uint_eq(l->stop2_us, s->last_stop2_ns / 1000);
	ck_assert_uint_eq(l->arm_us, s->last_arm_ns / 1000);
	ck_assert_uint_eq(l->mark_us, s->last_mark_ns / 1000);
	ck_assert_uint_eq(l->preclean_us, s->last_preclean_ns / 1000);
	ck_assert_uint_eq(l->final_us, s->last_finalize_ns / 1000);
	ck_assert_uint_eq(l->sweep_us, s->last_sweep_ns / 1000);
	ck_assert_uint_eq(l->scanned, s->last_pages_scanned);
	ck_assert_uint_eq(l->dirty, s->last_dirty_pages);
	ck_assert_uint_eq(l->rounds, s->last_preclean_rounds);
	ck_assert_uint_eq(l->remark, s->last_remark_dirty_pages);
	ck_assert_uint_eq(l->marked_kib, s->last_marked_bytes >> 10);
	ck_assert_uint_eq(l->in_stops_kib, s->last_marked_in_stop_bytes >> 10);
	ck_assert_uint_eq(l->words, s->last_remark_words);
	ck_assert_uint_eq(l->stack_words, s->last_remark_stack_words);
	ck_assert_uint_eq(l->freed_kib, s->last_freed_bytes >> 10);
	ck_assert_uint_eq(l->live_kib, s->live_bytes >> 10);
	ck_assert_uint_eq(l->process_kib, s->last_rss_bytes >> 10);
	for (unsigned i = 0; i < GCUFFD_ROUNDS; i++) {
		ck_assert_uint_eq(l->by_round[i], s->last_round_dirty_pages[i]);
		sum += l->by_round[i];
	}
	ck_assert_uint_eq(sum, s->last_dirty_pages);
}

static void *keep_writing(void *unused)
{
	must_ok(gcuffd_thread_attach());
	while (!__atomic_load_n(&quit, __ATOMIC_RELAXED))
		for (unsigned i = 0; i < PAGES; i++)
			__atomic_store_n(written + i * PAGE, (char)i, __ATOMIC_RELAXED);
	must_ok(gcuffd_thread_detach());
	return unused;
}

START_TEST(line_and_statistics)
{
	pthread_t t;
	uint64_t dirty = 0;
	NEED_RUNG(_i);
	heap = heap_make("rung=%s,pacing=0,log_level=info", rung_names[_i]);
	written = gcuffd_alloc(heap, PAGES * PAGE);
	quit = 0;
	must_ok(pthread_create(&t, NULL, keep_writing, NULL));
	for (int i = 0; i < 5; i++) {
		core_forget_log();
		ck_ok(gcuffd_collect(heap));
		struct gcuffd_stats s = stats_of(heap);
		struct line l = last_line();
		compare(&l, &s);
		ck_assert_str_eq(l.why, _i == GCUFFD_RUNG_STOP ? "asked, in a stop" : "asked");
		ck_assert_int_eq(l.rounds > 0, _i != GCUFFD_RUNG_STOP);
		ck_assert_uint_ge(s.last_dirty_pages, s.last_round_dirty_pages[0]);
		dirty += s.last_round_dirty_pages[0];
	}
	__atomic_store_n(&quit, 1, __ATOMIC_RELAXED);
	must_ok(pthread_join(t, NULL));
	if (_i != GCUFFD_RUNG_STOP)
		ck_assert_uint_gt(dirty, 0);
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

/* ---- a file for the lines ---- */

static struct gcuffd_heap *heap_with_log(int fd)
{
	struct gcuffd_options o;
	struct gcuffd_heap *h;
	char text[64];
	snprintf(text, sizeof(text), "pacing=0,log_level=info,log_fd=%d", fd);
	gcuffd_options_init(&o);
	ck_ok(gcuffd_options_parse(&o, text, NULL));
	ck_ok(gcuffd_heap_create(&o, &h));
	ck_ok(gcuffd_thread_attach());
	return h;
}

static void expect_line(const char **at, uint64_t number)
{
	ck_assert_msg(!strncmp(*at, "gcuffd: cycle ", 14), "%s", *at);
	struct line l = parse_line(*at + 8);
	ck_assert_uint_eq(l.number, number);
	ck_assert_str_eq(l.why, rung_is_here(GCUFFD_RUNG_ASYNC) ? "asked" : "asked, in a stop");
	*at = strchr(*at, '\n') + 1;
}

/* The collector has other descriptors, and writes to the program's all the same, behind what that wrote. Where it is moved to is where it goes on. */
START_TEST(lines_to_a_descriptor)
{
	char text[4096];
	const char *at = text;
	int fd = open(test_folder, O_RDWR | O_TMPFILE, 0600), other = open(test_folder, O_RDWR | O_TMPFILE, 0600);
	ck_assert_int_ge(fd, 0);
	ck_assert_int_ge(other, 0);
	heap = heap_with_log(fd);
	ck_ok(gcuffd_collect(heap));
	ck_assert_int_eq(dprintf(fd, "mine\n"), 5);
	ck_ok(gcuffd_collect(heap));
	long n = pread(fd, text, sizeof(text) - 1, 0);
	ck_assert_int_ge(n, 0);
	text[n] = 0;
	expect_line(&at, 1);
	ck_assert_msg(!strncmp(at, "mine\n", 5), "%s", at);
	at += 5;
	expect_line(&at, 2);
	ck_assert_int_eq(*at, 0);
	ck_assert_int_eq(dup2(other, fd), fd); /* as who rotates logs does */
	ck_ok(gcuffd_collect(heap));
	n = pread(other, text, sizeof(text) - 1, 0);
	ck_assert_int_ge(n, 0);
	text[n] = 0;
	at = text;
	expect_line(&at, 3);
	close(fd); /* then lines are lost, and nothing else */
	ck_ok(gcuffd_collect(heap));
	ck_ok(gcuffd_heap_destroy(heap));
	close(other);
}
END_TEST

/* ---- why ---- */

static uint64_t allocate_until(uint64_t cycles)
{
	for (uint64_t i = 0; i < 10000000 && stats_of(heap).cycles < cycles; i++)
		must(gcuffd_alloc_atomic(heap, 10000) != NULL, "errno %d", errno);
	return stats_of(heap).last_reason;
}

START_TEST(reasons)
{
	char path[TEST_PATH];
	heap = heap_make("start_size=1M,hard_limit=64M,log_level=info");
	ck_assert_uint_eq(stats_of(heap).last_reason, GCUFFD_REASON_NONE);
	ck_assert_uint_eq(allocate_until(1), GCUFFD_REASON_ALLOCATION);
	ck_assert_str_eq(last_line().why, "allocation");
	ck_ok(gcuffd_heap_destroy(heap));
	heap = heap_make("pacing=0,hard_limit=16M,log_level=info");
	ck_ok(gcuffd_collect(heap));
	ck_assert_uint_eq(stats_of(heap).last_reason, GCUFFD_REASON_ASKED);
	ck_assert_uint_eq(allocate_until(2), GCUFFD_REASON_NO_MEMORY);
	ck_assert_str_eq(last_line().why, "no memory");
	test_new_path(path, "image");
	ck_ok(gcuffd_heap_save(heap, path, NULL));
	ck_assert_uint_eq(stats_of(heap).last_reason, GCUFFD_REASON_SAVE);
	ck_assert_str_eq(last_line().why, "save");
	unlink(path);
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

/* ---- the process's memory ---- */

#define MORE ((size_t)64 << 20)
#define NEAR ((size_t)8 << 20)

static size_t rss_after_cycle(void)
{
	ck_ok(gcuffd_collect(heap));
	return stats_of(heap).last_rss_bytes;
}

START_TEST(resident_process)
{
	heap = heap_make("pacing=0");
	size_t before = rss_after_cycle(), real = rss_kb() << 10;
	ck_assert_uint_lt(before, real + NEAR);
	ck_assert_uint_gt(before + NEAR, real);
	char *more = mmap(NULL, MORE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ck_assert_ptr_ne(more, MAP_FAILED);
	memset(more, 1, MORE);
	size_t after = rss_after_cycle();
	ck_assert_uint_gt(after + NEAR, before + MORE);
	ck_assert_uint_lt(after, before + MORE + NEAR);
	munmap(more, MORE);
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

START_TEST(resident_unknown)
{
	fake_install();
	heap = heap_make("pacing=0");
	ck_assert_uint_gt(rss_after_cycle(), 0);
	fake_fail_open("/proc/thread-self/statm", 1, -ENOENT);
	ck_assert_uint_eq(rss_after_cycle(), 0);
	ck_assert_uint_eq(fake.fired, 1);
	ck_assert_uint_gt(rss_after_cycle(), 0);
	ck_ok(gcuffd_heap_destroy(heap));
	fake_remove();
}
END_TEST

static Suite *make_suite(void)
{
	Suite *suite = suite_create("stats");
	tcase_add_loop_test(test_case(suite, "line_and_statistics"), line_and_statistics, GCUFFD_RUNG_STOP, GCUFFD_RUNG_RWP + 1);
	tcase_add_test(test_case(suite, "lines_to_a_descriptor"), lines_to_a_descriptor);
	tcase_add_test(test_case(suite, "reasons"), reasons);
	tcase_add_test(test_case(suite, "resident_process"), resident_process);
	tcase_add_test(test_case(suite, "resident_unknown"), resident_unknown);
	return suite;
}

TEST_MAIN(make_suite)
