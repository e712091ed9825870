/* SPDX-License-Identifier: MIT */
/*
 * test_cool_rwp.c - pages that are tried in place, where the kernel tells of accesses (rung rwp, Linux 7.3): who uses a page waits for nobody, what
 * nobody uses goes out; and windows that are ended by cycles, saves, requests and failing calls. Each case looks at what the kernel says of the
 * heap's mappings, too.
 */
#include <sys/stat.h>
#include <sys/wait.h>

#include "cold.h"
#include "fake_os.h"
#include "sys/uapi.h"

#define MIB ((size_t)1 << 20)
#define HOT (2 * GU_REGION_PAGES) /* pages, in regions of their own */
#define COLD (4 * GU_REGION_PAGES)

/* Until it holds, a minute at most; some where all takes longer. */
#define wait_for(condition) \
	({ \
		uint64_t wf_end = test_now_ns() + check_span_ns(60000000000u); \
		bool wf_holds; \
		while (!(wf_holds = (condition)) && test_now_ns() < wf_end) \
			usleep(2000); \
		wf_holds; \
	})

#define watching_heap(format, ...) \
	do { \
		NEED_RUNG(GCUFFD_RUNG_RWP); \
		heap = heap_make("rung=rwp,cold=1,reservation=1G,store_memory=256M,without=neighbours,fault_percent=100," format, __VA_ARGS__); \
	} while (0)

#define idle_heap(more, ms) watching_heap("cool_mode=idle,cool_after_ms=%u" more, (unsigned)(check_span_ns(ms)))

/* ---- memory ---- */

static uint64_t *make_pages(size_t n)
{
	uint64_t *p = gcuffd_alloc_aligned(heap, n * GU_PAGE, GU_REGION, GCUFFD_ATOMIC);
	struct test_rng rng = test_rng(n);
	must(p != NULL, "errno %d", errno);
	for (size_t i = 0; i < n; i++) {
		p[i * 512] = i;
		p[i * 512 + 9] = test_rand(&rng);
	}
	return p;
}

static void check_pages(const uint64_t *p, size_t n)
{
	for (size_t i = 0; i < n; i++)
		must(gu_load_relaxed(&p[i * 512]) == i, "page %zu: %lu", i, (unsigned long)p[i * 512]);
}

static size_t count_in(const uint64_t *p, size_t n, enum gu_cold_state state)
{
	size_t found = 0;
	for (size_t i = 0; i < n; i++)
		found += gu_cold_state(&heap->space.cold, gu_space_page(&heap->space, (uintptr_t)p) + i) == state;
	return found;
}

static size_t count_stored(const uint64_t *p, size_t n) { return count_in(p, n, GU_COLD_EVICTED); }
static bool is_watching(void) { return gu_load_relaxed(&heap->space.cold.watching) > 0; }

/* ---- what the kernel says ---- */

static uint8_t said[1024]; /* of each region: 1 writes, 2 accesses; 3 of a part each */

static void read_modes(void)
{
	char line[1024];
	uintptr_t from = 0, to = 0, base = heap->space.base;
	FILE *f = fopen("/proc/self/smaps", "r");
	must(f != NULL, "errno %d", errno);
	memset(said, 0, sizeof(said));
	while (fgets(line, sizeof(line), f)) {
		unsigned long a, b;
		if (sscanf(line, "%lx-%lx ", &a, &b) == 2) {
			from = gu_max(a, base);
			to = gu_min(b, base + heap->space.top);
		}
		if (strncmp(line, "VmFlags:", 8))
			continue;
		uint8_t mode = (uint8_t)((strstr(line, " uw") ? 1 : 0) | (strstr(line, " ur") ? 2 : 0));
		for (uintptr_t at = from; at < to && (at - base) / GU_REGION < GU_ARRAY_LEN(said); at = gu_align_down(at, GU_REGION) + GU_REGION)
			said[(at - base) / GU_REGION] |= mode;
	}
	fclose(f);
}

/* The kernel and the records agree (.inv.track.rwp), with the locks of a fork. */
static void check_modes(void)
{
	space_lock(heap);
	gu_space_check(&heap->space);
	read_modes();
	for (size_t i = 0; i < heap->space.top / GU_REGION && i < GU_ARRAY_LEN(said); i++) {
		const struct gu_cold_region *r = heap->space.cold.regions[i];
		must(said[i] != 3, "region %zu tells of both", i);
		if (!r || r->tells == GU_COLD_TELLS_WRITES)
			must(said[i] != 2, "region %zu tells of accesses", i);
		else if (r->tells == GU_COLD_TELLS_ACCESSES)
			must(said[i] == 2, "region %zu does not tell of accesses: %u", i, said[i]);
	}
	space_unlock(heap);
	verified(heap);
}

/* ---- who uses pages ---- */

static uint64_t *hot;
static size_t nhot;
static uint32_t quit, rounds;

/* The first half is read, the other written as well. */
static void *use_pages(void *unused)
{
	must_ok(gcuffd_thread_attach());
	for (; !gu_load_relaxed(&quit); gu_add_relaxed(&rounds, 1), usleep(1000)) {
		check_pages(hot, nhot);
		for (size_t i = nhot / 2; i < nhot; i++)
			gu_store_relaxed(&hot[i * 512 + 3], hot[i * 512 + 3] + 1);
	}
	must_ok(gcuffd_thread_detach());
	return unused;
}

static pthread_t user;

static void begin_using(uint64_t *p, size_t n)
{
	hot = p;
	nhot = n;
	quit = rounds = 0;
	must_ok(pthread_create(&user, NULL, use_pages, NULL));
	while (!gu_load_relaxed(&rounds))
		usleep(1000);
}

static void end_using(void)
{
	gu_store_relaxed(&quit, 1);
	must_ok(pthread_join(user, NULL));
}

/* Who uses pages never faults; what nobody uses goes, in the first probation already. */
START_TEST(nobody_waits)
{
	idle_heap("", 600);
	uint64_t *p = make_pages(HOT), *cold = make_pages(COLD);
	begin_using(p, HOT);
	ck_ok(gcuffd_collect(heap));
	ck_assert(wait_for(is_watching()));
	check_modes();
	ck_assert(wait_for(count_stored(cold, COLD) == COLD));
	uint32_t before = gu_load_relaxed(&rounds);
	usleep((unsigned)check_span_ns(1500000));
	check_modes();
	end_using();
	struct gcuffd_cold_stats s = cold_of(heap);
	printf("%u rounds: watched %lu, accessed %lu, touched %lu, restored %lu, bounced %lu\n", rounds - before, (unsigned long)s.watched_regions,
	       (unsigned long)s.accessed_pages, (unsigned long)s.touched_pages, (unsigned long)s.restored_pages, (unsigned long)s.bounced_pages);
	ck_assert_uint_eq(s.touched_pages, 0);
	ck_assert_uint_eq(s.restored_pages, 0);
	ck_assert_uint_ge(s.accessed_pages, HOT);
	ck_assert_uint_ge(s.watched_regions, (HOT + COLD) / GU_REGION_PAGES);
	ck_assert_uint_eq(count_in(p, HOT, GU_COLD_LIVE), HOT);
	struct gcuffd_working_set w = {.size = sizeof(w)};
	ck_ok(gcuffd_working_set(heap, NULL, 60000, &w));
	ck_assert_uint_ge(w.touched_bytes, HOT * GU_PAGE);
	check_pages(cold, COLD);
	ck_assert(wait_for(cold_of(heap).touched_pages == COLD)); /* counted behind its back */
	check_modes();
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

/* Of a region what is used stays, and the rest goes: also where a huge page is mapped, which is accessed as a whole otherwise. */
START_TEST(in_one_region)
{
	if (_i)
		idle_heap(",huge=0", 600);
	else
		idle_heap("", 600);
	uint64_t *p = make_pages(GU_REGION_PAGES);
	begin_using(p, 30);
	ck_ok(gcuffd_collect(heap));
	ck_assert(wait_for(count_stored(p, GU_REGION_PAGES) > 0));
	ck_assert_uint_eq(cold_of(heap).touched_pages, 0);
	ck_assert(wait_for(count_stored(p, GU_REGION_PAGES) == GU_REGION_PAGES - 30));
	ck_assert_uint_eq(count_in(p, 30, GU_COLD_EVICTED), 0);
	ck_assert_uint_ge(cold_of(heap).accessed_pages, 30);
	check_modes();
	end_using();
	check_pages(p, GU_REGION_PAGES);
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

/* ---- windows that are ended ---- */

#define SLOTS 20000u

/* Pointers that threads move about; each node has its slot's number as long as it is in one. */
static struct node **slots;
static uint32_t exchanged;

static void *exchange(void *arg)
{
	struct test_rng rng = test_rng((uintptr_t)arg);
	size_t from = SLOTS / 2 * (uintptr_t)arg;
	must_ok(gcuffd_thread_attach());
	while (!gu_load_relaxed(&quit)) {
		size_t i = from + test_below(&rng, SLOTS / 2), k = from + test_below(&rng, SLOTS / 2);
		struct node *a = slots[i], *b = slots[k];
		must(a->number == i && b->number == k, "%zu: %lu, %zu: %lu", i, (unsigned long)a->number, k, (unsigned long)b->number);
		if (i % 8 == 0) { /* the old dies */
			a = gcuffd_alloc(heap, sizeof(*a));
			must(a != NULL, "errno %d", errno);
		}
		a->number = k;
		slots[k] = a;
		if (i != k) {
			b->number = i;
			slots[i] = b;
		}
		gu_add_relaxed(&exchanged, 1);
	}
	must_ok(gcuffd_thread_detach());
	return NULL;
}

static pthread_t exchangers[2];

static void make_slots(void)
{
	slots = gcuffd_alloc(heap, SLOTS * sizeof(*slots));
	must(slots != NULL, "errno %d", errno);
	for (size_t i = 0; i < SLOTS; i++) {
		slots[i] = gcuffd_alloc(heap, sizeof(struct node));
		must(slots[i] != NULL, "errno %d", errno);
		slots[i]->number = i;
	}
}

static void begin_exchanging(void)
{
	quit = exchanged = 0;
	for (size_t i = 0; i < 2; i++)
		must_ok(pthread_create(&exchangers[i], NULL, exchange, (void *)i));
}

static void end_exchanging(void)
{
	gu_store_relaxed(&quit, 1);
	for (size_t i = 0; i < 2; i++)
		must_ok(pthread_join(exchangers[i], NULL));
	for (size_t i = 0; i < SLOTS; i++)
		must(slots[i]->number == i, "%zu: %lu", i, (unsigned long)slots[i]->number);
}

/* A cycle in the middle of windows sees all that is written, before and in it. */
START_TEST(cycles)
{
	idle_heap(",verify=1,huge=0,pacing=0", 400);
	gcuffd_root_add(heap, &slots, sizeof(slots));
	make_slots();
	uint64_t *cold = make_pages(COLD);
	begin_exchanging();
	ck_ok(gcuffd_collect(heap));
	for (unsigned i = 0; i < check_rounds(48) + 4; i++) {
		ck_assert(wait_for(is_watching() || count_stored(cold, COLD) == COLD));
		usleep(20000);
		ck_ok(gcuffd_collect(heap));
		verified(heap);
		if (i % 8 == 0)
			check_modes();
	}
	ck_assert(wait_for(count_stored(cold, COLD) == COLD));
	end_exchanging();
	check_modes();
	struct gcuffd_cold_stats s = cold_of(heap);
	printf("%u exchanges, %lu cycles: watched %lu, accessed %lu, evicted %lu\n", exchanged, (unsigned long)stats_of(heap).cycles,
	       (unsigned long)s.watched_regions, (unsigned long)s.accessed_pages, (unsigned long)s.evicted_pages);
	ck_assert_uint_gt(s.watched_regions, 10);
	ck_assert_uint_gt(s.accessed_pages, 0);
	check_pages(cold, COLD);
	ck_ok(gcuffd_heap_destroy(heap));
	slots = NULL;
}
END_TEST

static void *collect_on(void *unused)
{
	must_ok(gcuffd_thread_attach());
	for (; !gu_load_relaxed(&quit); usleep(5000))
		must_ok(gcuffd_collect(heap));
	must_ok(gcuffd_thread_detach());
	return unused;
}

/* Where there is little time between cycles what is cold is found out by parking, in the end. */
START_TEST(cycle_on_cycle)
{
	pthread_t t;
	idle_heap(",huge=0", 500);
	uint64_t *cold = make_pages(GU_REGION_PAGES);
	quit = 0;
	must_ok(pthread_create(&t, NULL, collect_on, NULL));
	ck_assert(wait_for(count_stored(cold, GU_REGION_PAGES) == GU_REGION_PAGES));
	gu_store_relaxed(&quit, 1);
	must_ok(pthread_join(t, NULL));
	check_modes();
	check_pages(cold, GU_REGION_PAGES);
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

/* For so long that a case is in the middle of it. */
#define LONG 4000

static int child_of_window(uint64_t *p)
{
	check_pages(p, COLD);
	for (size_t i = 0; i < COLD; i += 2)
		p[i * 512 + 5] = i;
	if (gcuffd_collect(heap))
		return 1;
	check_modes();
	if (!cool_all())
		return 2;
	check_modes();
	check_pages(p, COLD);
	for (size_t i = 0; i < COLD; i++)
		if (p[i * 512 + 5] != (i % 2 ? 0 : i))
			return 3;
	return gcuffd_heap_destroy(heap) ? 4 : 0;
}

/* Neither side loses what it writes; who forks goes on watching. */
START_TEST(forks)
{
	idle_heap(",huge=0,verify=1", LONG);
	uint64_t *p = make_pages(COLD);
	ck_ok(gcuffd_collect(heap));
	ck_assert(wait_for(is_watching()));
	fflush(stdout);
	pid_t pid = fork();
	if (pid == 0) {
		limit_child();
		_exit(child_of_window(p));
	}
	check_modes();
	ck_assert(is_watching());
	for (size_t i = 0; i < COLD; i += 3)
		p[i * 512 + 5] = ~i;
	int status;
	ck_assert_int_eq(waitpid(pid, &status, 0), pid);
	ck_assert_int_eq(status, 0);
	ck_assert_uint_gt(cool_all(), COLD / 2);
	check_modes();
	for (size_t i = 0; i < COLD; i++)
		ck_assert_uint_eq(p[i * 512 + 5], i % 3 ? 0 : ~i);
	check_pages(p, COLD);
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

/* A request takes pages of a watched region; a save and a reset find what they would find anyway; an end needs nothing. */
START_TEST(others_come)
{
	struct gcuffd_arena *a;
	char path[TEST_PATH];
	size_t n;
	test_new_path(path, "image");
	idle_heap(",huge=0", LONG);
	ck_ok(gcuffd_arena_create(heap, "a", &a));
	uint64_t *p = make_pages(COLD), *q = gcuffd_arena_alloc(a, COLD * GU_PAGE, GU_REGION, GCUFFD_ATOMIC);
	memset(q, 7, COLD * GU_PAGE);
	ck_ok(gcuffd_collect(heap));
	ck_assert(wait_for(gu_load_relaxed(&heap->space.cold.watching) >= COLD / GU_REGION_PAGES));
	check_modes();
	ck_ok(gcuffd_cool(heap, p, 100 * GU_PAGE, &n));
	ck_assert_uint_eq(n, 100);
	check_modes();
	ck_ok(gcuffd_warm(heap, p, 100 * GU_PAGE));
	ck_ok(gcuffd_arena_reset(a));
	check_modes();
	q = gcuffd_arena_alloc(a, COLD * GU_PAGE, GU_REGION, GCUFFD_ATOMIC); /* where it was */
	for (size_t i = 0; i < COLD; i++)
		ck_assert_uint_eq(q[i * 512 + 1], 0);
	struct gcuffd_named root = {"p", p};
	struct gcuffd_image_options o = {.size = sizeof(o), .roots = &root, .nroots = 1};
	p[77 * 512 + 5] = 77;
	ck_ok(gcuffd_heap_save(heap, path, &o));
	check_modes();
	ck_assert(wait_for(is_watching()));
	ck_ok(gcuffd_heap_destroy(heap));
	struct gcuffd_options options;
	gcuffd_options_init(&options);
	ck_ok(gcuffd_options_parse(&options, "cold=1", NULL));
	options.log = core_keep_line;
	ck_ok(gcuffd_heap_load(path, NULL, &options, &heap));
	p = gcuffd_image_root(heap, "p");
	ck_assert_ptr_nonnull(p);
	check_pages(p, COLD);
	ck_assert_uint_eq(p[77 * 512 + 5], 77);
	ck_ok(gcuffd_heap_destroy(heap));
	unlink(path);
}
END_TEST

/* ---- calls that fail ---- */

static const unsigned long requests[] = {GU_UFFDIO_UNREGISTER, GU_UFFDIO_REGISTER, GU_UFFDIO_RWPROTECT, GU_PAGEMAP_SCAN};

/* While windows begin and end: the n-th call, or all from there on. */
START_TEST(calls_fail)
{
	NEED_RUNG(GCUFFD_RUNG_RWP);
	fake_install();
	idle_heap(",verify=1,huge=0,pacing=0", 300);
	gcuffd_root_add(heap, &slots, sizeof(slots));
	make_slots();
	uint64_t *cold = make_pages(GU_REGION_PAGES * 2);
	begin_exchanging();
	ck_ok(gcuffd_collect(heap));
	for (unsigned n = 1; n <= 4; n++)
		for (unsigned i = 0; i < 2; i++) {
			ck_ok(gcuffd_warm(heap, NULL, 0));
			wait_for(is_watching());
			fake_fail_ioctl(requests[_i], n * n, i ? -EINVAL : -ENOMEM);
			fake.sticky = i == 1;
			for (int k = 0; k < 2; k++) {
				usleep((unsigned)check_span_ns(50000));
				int err = gcuffd_collect(heap);
				ck_assert_msg(!err || err == -ENOMEM || err == -EINVAL, "%d", err);
			}
			check_modes();
			fake_clear();
			ck_ok(gcuffd_collect(heap));
			check_modes();
			ck_assert_uint_eq(cold_of(heap).poisoned_pages, 0);
		}
	end_exchanging();
	check_pages(cold, GU_REGION_PAGES * 2);
	ck_assert(wait_for(is_watching() || count_stored(cold, GU_REGION_PAGES * 2) == GU_REGION_PAGES * 2));
	ck_ok(gcuffd_collect(heap));
	check_modes();
	const char *told = strstr(core_log, "registered anew");
	ck_assert(!told || !strstr(told + 1, "registered anew"));
	ck_assert(told || requests[_i] != GU_UFFDIO_REGISTER);
	ck_ok(gcuffd_heap_destroy(heap));
	slots = NULL;
	fake_remove();
}
END_TEST

/* ---- all at once ---- */

START_TEST(load)
{
	watching_heap("verify=1,resident_target=%uM", 24u);
	gcuffd_root_add(heap, &slots, sizeof(slots));
	make_slots();
	uint64_t *p = make_pages(HOT), *cold = make_pages(10 * MIB / GU_PAGE * 2);
	struct test_rng rng = test_rng(1);
	begin_using(p, HOT);
	begin_exchanging();
	ck_ok(gcuffd_collect(heap));
	for (uint64_t end = test_now_ns() + check_span_ns(check_seconds() * 1000000000ull); goes_on(heap, end, check_rounds(20));) {
		size_t i = test_below(&rng, 10 * MIB / GU_PAGE * 2);
		must(gu_load_relaxed(&cold[i * 512]) == i, "page %zu", i);
		if (test_below(&rng, 40) == 0)
			ck_ok(gcuffd_collect(heap));
		if (test_below(&rng, 400) == 0)
			ck_ok(gcuffd_cool(heap, cold + i / 2 * 512, MIB, NULL));
		if (test_below(&rng, 400) == 0)
			check_modes();
		usleep((unsigned)test_below(&rng, 20000));
	}
	end_exchanging();
	end_using();
	check_modes();
	struct gcuffd_cold_stats s = cold_of(heap);
	printf("%lu cycles, %u exchanges, %u rounds: watched %lu, accessed %lu, evicted %lu, touched %lu\n", (unsigned long)stats_of(heap).cycles, exchanged, rounds,
	       (unsigned long)s.watched_regions, (unsigned long)s.accessed_pages, (unsigned long)s.evicted_pages, (unsigned long)s.touched_pages);
	ck_assert_uint_gt(s.watched_regions, 0);
	check_pages(cold, 10 * MIB / GU_PAGE * 2);
	ck_ok(gcuffd_heap_destroy(heap));
	slots = NULL;
}
END_TEST

static Suite *make_suite(void)
{
	Suite *suite = suite_create("cool_rwp");
	TCase *use = test_case(suite, "use"), *ends = test_case(suite, "ends"), *fail = test_case(suite, "fail"), *all = test_case(suite, "load");
	tcase_add_test(use, nobody_waits);
	tcase_add_loop_test(use, in_one_region, 0, 2);
	tcase_add_test(ends, cycles);
	tcase_add_test(ends, cycle_on_cycle);
	tcase_add_test(ends, forks);
	tcase_add_test(ends, others_come);
	tcase_add_loop_test(fail, calls_fail, 0, GU_ARRAY_LEN(requests));
	tcase_add_test(all, load);
	return suite;
}

TEST_MAIN(make_suite)
