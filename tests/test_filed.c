/* SPDX-License-Identifier: MIT */
/* Summaries that lie in the store's file, and pages that markers put off: what is found through them, what is read for it, and when. */
#define _GNU_SOURCE
#define COLD_OPTIONS ",store_memory=1M,store_file=256M,verify=1"
#include "cold.h"

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "fake_os.h"
#include "gc/marker.h"
#include "gc/pack.h"
#include "sys/uapi.h"

#define NODES 40000u

struct vertex {
	struct vertex *edge[3];
	uint64_t number;
	uint64_t filler[4];
};

static struct vertex *keep, *drop, *volatile held; /* roots */

/* No target: all that is taken out has its summary in the file. */
static void file_all(void) { gu_store_relaxed(&heap->space.cold.target, 0); }

/* All are reached from the first one, in any order, and no edge leads elsewhere. */
static __attribute__((noinline)) struct vertex *make_graph(unsigned n, uint64_t seed)
{
	struct vertex **all = malloc(n * sizeof(struct vertex *));
	struct test_rng rng = test_rng(seed);
	must(all != NULL, "out of memory");
	struct vertex **hidden = (struct vertex **)gcuffd_alloc(heap, n * sizeof(struct vertex *));
	for (unsigned i = 0; i < n; i++) {
		all[i] = hidden[i] = gcuffd_alloc(heap, sizeof(struct vertex));
		all[i]->number = i;
		for (unsigned k = 0; k < 4; k++)
			all[i]->filler[k] = test_rand(&rng) | 1ull << 63;
	}
	for (unsigned i = 0; i < n; i++) {
		for (unsigned k = 1; k < 3; k++)
			all[i]->edge[k] = all[test_below(&rng, n)];
		all[i]->edge[0] = all[(i + 1) % n];
	}
	struct vertex *first = all[0];
	memset((void *)hidden, 0, n * sizeof(struct vertex *));
	memset((void *)all, 0, n * sizeof(struct vertex *));
	free(all);
	return first;
}

static void check_graph(const struct vertex *first, unsigned n)
{
	const struct vertex *v = first;
	for (unsigned i = 0; i < n; i++, v = v->edge[0])
		ck_assert_uint_eq(v->number, i);
	ck_assert_ptr_eq(v, first);
}

static size_t count_filed(void)
{
	size_t n = 0;
	for (size_t p = 0; p < heap->space.top >> GU_PAGE_SHIFT; p++)
		if (gu_cold_is_out(&heap->space.cold, p))
			n += gu_cold_pack(gu_cold_region(&heap->space.cold, p)->summary[p % GU_REGION_PAGES]) != NULL;
	return n;
}

static size_t filed_graphs(void)
{
	file_all();
	keep = make_graph(NODES, 1);
	drop = make_graph(NODES, 2);
	scrub_stack();
	size_t taken = cool_all();
	ck_assert_uint_gt(count_filed(), NODES * sizeof(struct vertex) * 2 / GU_PAGE / 10 * 9);
	ck_assert_uint_lt(cold_of(heap).summary_bytes, taken * 64 + (256u << 10));
	return taken;
}

START_TEST(collected)
{
	cold_heap("");
	size_t taken = filed_graphs();
	ck_ok(gcuffd_collect(heap));
	checked();
	ck_assert_uint_lt(cold_of(heap).dropped_pages, taken / 8);
	drop = NULL;
	scrub_stack();
	ck_ok(gcuffd_collect(heap));
	checked();
	struct gcuffd_cold_stats s = cold_of(heap);
	for (int ms = 0; s.dropped_pages < taken / 4 && ms < 20000; ms += 10, s = cold_of(heap))
		usleep(10000);
	ck_assert_uint_eq(s.restored_pages, 0);
	ck_assert_uint_gt(s.dropped_pages, taken / 4);
	check_graph(keep, NODES);
	ck_ok(gcuffd_collect(heap));
	checked();
	check_graph(keep, NODES);
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

/* What was read is told by the page itself, if the file has lost the summary. */
START_TEST(a_summary_is_lost)
{
	cold_heap(",verify=0"); /* the verifier reads pages first */
	filed_graphs();
	fake_install();
	for (unsigned nth = 1; nth <= 3; nth++) {
		fake_fail(FAKE_PREAD, nth, -EIO);
		ck_ok(gcuffd_collect(heap));
		ck_assert_uint_ge(cold_of(heap).unread_summaries, nth);
		fake_clear();
		checked();
	}
	fake_remove();
	check_graph(keep, NODES);
	check_graph(drop, NODES);
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

/* Nothing is freed, for nobody knows what is alive, and all is well when it can be read again. */
START_TEST(the_file_is_lost)
{
	cold_heap("");
	filed_graphs();
	fake_install();
	fake_fail(FAKE_PREAD, 1, -EIO);
	fake.sticky = true;
	ck_assert_int_ne(gcuffd_collect(heap), 0);
	fake_clear();
	fake_remove();
	ck_ok(gcuffd_collect(heap));
	checked();
	check_graph(keep, NODES);
	check_graph(drop, NODES);
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

static struct gu_cold_pack *pack_of(size_t page)
{
	return gu_cold_is_out(&heap->space.cold, page) ? gu_cold_pack(gu_cold_region(&heap->space.cold, page)->summary[page % GU_REGION_PAGES]) : NULL;
}

/* The verifier does not pass over a summary that is not where it was put: in another pack of the region's. */
START_TEST(the_verifier_misses_one)
{
	cold_heap("");
	filed_graphs();
	size_t page = 0, other;
	while (!pack_of(page))
		page++;
	for (other = page; !pack_of(other) || pack_of(other) == pack_of(page);)
		other++;
	ck_assert_uint_eq(other / GU_REGION_PAGES, page / GU_REGION_PAGES);
	struct gu_cold_pack *pack = pack_of(page);
	gu_slot slot = pack->slot;
	pack->slot = pack_of(other)->slot;
	ck_ok(gcuffd_collect(heap));
	pack->slot = slot;
	ck_assert_uint_gt(stats_of(heap).verify_failures, 0);
	ck_assert_uint_gt(cold_of(heap).unread_summaries, 0);
	check_graph(keep, NODES);
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

/* Sweeping with a page put off ends the process. */
START_TEST(put_off_for_good)
{
	cold_heap("");
	ck_assert_ptr_nonnull(gcuffd_alloc(heap, 16));
	gu_later_check(heap);
	gu_or_seqcst(&heap->space.cold.later[0], 8);
	pid_t child = fork();
	if (!child) {
		limit_child();
		gu_later_check(heap);
		_exit(0);
	}
	int status;
	ck_assert_int_eq(waitpid(child, &status, 0), child);
	ck_assert_msg(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT, "status %#x", (unsigned)status);
	gu_store_relaxed(&heap->space.cold.later[0], 0);
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

/* ---- in a stop */

static void **place;
static uint64_t hidden;
static unsigned stops, reads_in_stops, reads_after;

/* The only pointer to what is in the file is written just before a stop looks for what was written. */
static long show_in_stop(int fd, unsigned long request, void *arg)
{
	const struct gu_pm_scan_arg *scan = arg;
	/* only the last look, in the stop, arms nothing */
	if (request == GU_PAGEMAP_SCAN && !(scan->flags & GU_PM_SCAN_WP_MATCHING) && gu_load_relaxed(&heap->phase) == GU_PHASE_MARK) {
		stops++;
		*place = (void *)~hidden;
	}
	return gu_os_linux.ioctl(fd, request, arg);
}

static long read_in_stop(int fd, void *buffer, size_t len, off_t at)
{
	reads_in_stops += stops && !heap->mark->waits;
	reads_after += stops && heap->mark->waits;
	return gu_os_linux.pread(fd, buffer, len, at);
}

static __attribute__((noinline)) void hide_dropped(void)
{
	hidden = ~(uint64_t)(uintptr_t)drop;
	drop = NULL;
}

/* Then the stop ends, what is there is read beside the program, and another stop finds nothing more to read. */
START_TEST(found_in_a_stop)
{
	cold_heap(",pacing=0,verify=0"); /* the verifier reads in stops */
	filed_graphs();
	place = gcuffd_alloc(heap, 64);
	held = (struct vertex *)(void *)place;
	hide_dropped();
	scrub_stack();
	stops = reads_in_stops = reads_after = 0;
	fake_install();
	fake_os.ioctl = show_in_stop;
	fake_os.pread = read_in_stop;
	ck_ok(gcuffd_collect(heap));
	fake_remove();
	ck_assert_uint_ge(stops, 2);
	ck_assert_uint_eq(reads_in_stops, 0);
	ck_assert_uint_gt(reads_after, 0);
	checked();
	check_graph(keep, NODES);
	check_graph(*place, NODES);
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

/* A child reads the parent's file, both keep what they have. */
START_TEST(forked)
{
	cold_heap("");
	filed_graphs();
	pid_t child = fork();
	ck_assert_int_ge(child, 0);
	if (!child) {
		must_ok(gcuffd_collect(heap));
		verified(heap);
		check_graph(keep, NODES);
		_exit(0);
	}
	drop = NULL;
	ck_ok(gcuffd_collect(heap));
	checked();
	int status;
	ck_assert_int_eq(waitpid(child, &status, 0), child);
	ck_assert_int_eq(status, 0);
	ck_ok(gcuffd_collect(heap));
	checked();
	check_graph(keep, NODES);
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

/* Objects whose turn to be scanned does not come by a packet, for these take their share, in heaps in which nothing is out. */
START_TEST(no_packets)
{
	cold_heap(",start_size=256M");
	file_all();
	keep = make_graph(12 * NODES, 1);
	drop = NULL;
	scrub_stack();
	ck_ok(gcuffd_collect(heap));
	checked();
	ck_assert_uint_gt(gu_mark_packets(heap), 512u << 10);
	ck_assert_uint_le(gu_mark_packets(heap), 2u << 20);
	check_graph(keep, 12 * NODES);
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

static Suite *make_suite(void)
{
	Suite *suite = suite_create("filed");
	TCase *all = test_case(suite, "all");
	tcase_add_loop_test(all, collected, GCUFFD_RUNG_MOVE, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(all, a_summary_is_lost, GCUFFD_RUNG_MOVE, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(all, the_file_is_lost, GCUFFD_RUNG_MOVE, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(all, the_verifier_misses_one, GCUFFD_RUNG_MOVE, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(all, put_off_for_good, GCUFFD_RUNG_MOVE, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(all, found_in_a_stop, GCUFFD_RUNG_MOVE, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(all, forked, GCUFFD_RUNG_MOVE, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(all, no_packets, GCUFFD_RUNG_MOVE, GCUFFD_RUNG_RWP + 1);
	return suite;
}

TEST_MAIN(make_suite)
