/* SPDX-License-Identifier: MIT */
/* test_cold_races.c - cold memory at its worst moments: what happens while a page is on its way, to whom, and who waits for whom. */
#define _GNU_SOURCE
#include "cold.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include "ctl/tier.h"
#include "fake_os.h"
#include "gc/accessed.h"
#include "gc/evict.h"
#include "gc/mutator.h"
#include "gc/shed.h"
#include "space/block.h"
#include "sys/uapi.h"

static size_t cool(const void *start, size_t size)
{
	size_t n;
	int err = gcuffd_cool(heap, start, size, &n);
	must(!err || err == -ENOSPC, "%d", err);
	return n;
}

/* ---- steps of one thread that another waits for ---- */

static uint32_t quit, there, go_on; /* atomic */

static void reset_steps(void) { quit = there = go_on = 0; }

static uint64_t *noise(size_t bytes)
{
	struct test_rng rng = test_rng(7);
	uint64_t *p = gcuffd_alloc_atomic(heap, bytes);
	must(p != NULL, "errno %d", errno);
	for (size_t i = 0; i < bytes / 8; i++)
		p[i] = test_rand(&rng);
	return p;
}

static void check_noise(const uint64_t *p, size_t bytes)
{
	struct test_rng rng = test_rng(7);
	for (size_t i = 0; i < bytes / 8; i++) {
		uint64_t want = test_rand(&rng);
		must(p[i] == want, "word %zu", i);
	}
}

static __attribute__((noinline)) void touch(const void *p)
{
	__asm__ volatile("" : : : "memory"); /* what was planted is */
	(void)*(const volatile char *)p;
}

static void *cool_it(void *unused)
{
	cool(NULL, 0);
	return unused;
}

static uintptr_t watched; /* a page */

static void *touch_watched(void *unused)
{
	must_ok(gcuffd_thread_attach());
	(void)*(volatile char *)watched;
	must_ok(gcuffd_thread_detach());
	return unused;
}

/* ---- marking and a page that is just being filled ---- */

static long wait_before_filling(int fd, unsigned long request, void *arg)
{
	const struct gu_uffdio_copy *copy = arg;
	if (request == GU_UFFDIO_COPY && copy->dst == watched && !gu_load_seqcst(&there)) {
		gu_store_seqcst(&there, 1);
		await(&go_on, 1000 * check_slow());
	}
	return gu_os_linux.ioctl(fd, request, arg);
}

static uint64_t **big; /* a root */

static __attribute__((noinline)) uint64_t make_big(size_t bytes, size_t word)
{
	big = gcuffd_alloc(heap, bytes);
	memset(big, 0, bytes);
	for (size_t i = 0; i < bytes / 8; i += 512)
		big[i] = (uint64_t *)1;
	uint64_t *target = gcuffd_alloc(heap, 64);
	must(big && target, "errno %d", errno);
	target[3] = 4711;
	big[word] = target;
	watched = gu_align_down((uintptr_t)&big[word], GU_PAGE);
	return hide(target);
}

/* Of a large object only pages that are there are looked at: one that is LIVE, and there in a moment, is one of them. */
START_TEST(sparse_and_being_filled)
{
	pthread_t t;
	cold_heap(",pacing=0");
	uint64_t hidden = make_big(3 << 20, 200 * 512 + 5);
	scrub();
	cool(NULL, 0);
	ck_assert(is_out((void *)watched));
	reset_steps();
	fake_install();
	fake_os.ioctl = wait_before_filling;
	must_ok(pthread_create(&t, NULL, touch_watched, NULL));
	await(&there, 10000);
	ck_ok(gcuffd_collect(heap));
	gu_store_seqcst(&go_on, 1);
	must_ok(pthread_join(t, NULL));
	ck_assert(is_alive(heap, hidden));
	ck_assert_uint_eq(big[200 * 512 + 5][3], 4711);
	checked();
	ck_ok(gcuffd_heap_destroy(heap));
	fake_remove();
}
END_TEST

/* ---- blocks that come and go ---- */

#define HELD 32u
#define MANY ((size_t)8 << 20)

static uint32_t workers; /* atomic */

/* Objects of all kinds and sizes, that hold each other; most are given back, some left to the collector. */
static void *come_and_go(void *unused)
{
	struct test_rng rng = test_rng(gu_add_relaxed(&workers, 1) + 100);
	uint64_t **held[HELD] = {NULL};
	size_t words[HELD] = {0};
	must_ok(gcuffd_thread_attach());
	while (!gu_load_relaxed(&quit)) {
		size_t i = test_below(&rng, HELD), n = 2 + test_below(&rng, test_below(&rng, 4) ? 500 : 30000);
		if (held[i]) {
			must((size_t)held[i][words[i] - 1] == words[i], "%zu words say %zu", words[i], (size_t)held[i][words[i] - 1]);
			for (size_t k = 0; k + 1 < words[i]; k += 400)
				must(!held[i][k] || *held[i][k] == (uintptr_t)held[i][k], "word %zu", k);
			if (test_below(&rng, 8))
				must_ok(gcuffd_free(heap, held[i]));
		}
		held[i] = test_below(&rng, 8) ? gcuffd_alloc(heap, n * 8) : NULL;
		words[i] = n;
		for (size_t k = 0; held[i] && k + 1 < n; k += 400) {
			held[i][k] = gcuffd_alloc(heap, 48);
			must(held[i][k] != NULL, "errno %d", errno);
			*held[i][k] = (uintptr_t)held[i][k];
		}
		if (held[i])
			held[i][n - 1] = (uint64_t *)n;
	}
	must_ok(gcuffd_thread_detach());
	return unused;
}

/* A block that is released while its pages are on their way, and its descriptor made another's. */
START_TEST(released_on_the_way)
{
	pthread_t threads[4];
	cold_heap(",verify=1,start_size=1M,decay_ms=20");
	reset_steps();
	for (size_t i = 0; i < GU_ARRAY_LEN(threads); i++)
		must_ok(pthread_create(&threads[i], NULL, come_and_go, NULL));
	uint64_t end = test_now_ns() + check_seconds() * 1000000000ull / 2, taken = 0;
	while (goes_on(heap, end, 3))
		taken += cool(NULL, 0);
	gu_store_seqcst(&quit, 1);
	for (size_t i = 0; i < GU_ARRAY_LEN(threads); i++)
		must_ok(pthread_join(threads[i], NULL));
	struct gcuffd_cold_stats s = cold_of(heap);
	printf("taken %lu restored %lu bounced %lu dropped %lu cycles %lu\n", (unsigned long)taken, (unsigned long)s.restored_pages,
	       (unsigned long)s.bounced_pages, (unsigned long)s.dropped_pages, (unsigned long)stats_of(heap).cycles);
	ck_assert_uint_eq(s.collector_pages, 0);
	checked();
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

/* ---- asked from everywhere ---- */

static uint64_t *common; /* a root */

static void on_usr1(int sig)
{
	(void)sig;
	(void)*(volatile char *)common;
}

static void *ask_for_ranges(void *attached)
{
	struct test_rng rng = test_rng(gu_add_relaxed(&workers, 1) + 200);
	if (attached)
		must_ok(gcuffd_thread_attach());
	while (!gu_load_relaxed(&quit)) {
		size_t from = test_below(&rng, MANY / 8), len = test_below(&rng, MANY / 8 - from);
		switch (test_below(&rng, 5)) {
		case 0:
			must_ok(gcuffd_warm(heap, &common[from], len * 8));
			break;
		case 1:
			touch(&common[from]);
			break;
		case 2:
			must_ok(attached ? gcuffd_collect(heap) : 0);
			break;
		case 3:
			must_ok(gcuffd_pin(&common[from], 8));
			must(!is_out(&common[from]), "pinned, and out");
			must_ok(gcuffd_unpin(&common[from], 8));
			break;
		default:
			cool(&common[from], len * 8);
		}
		if (test_below(&rng, 4) == 0)
			pthread_kill(pthread_self(), SIGUSR1);
	}
	if (attached)
		must_ok(gcuffd_thread_detach());
	return NULL;
}

START_TEST(asked_by_many)
{
	pthread_t threads[6];
	cold_heap(",verify=1,resident_target=5M");
	reset_steps();
	common = noise(MANY);
	signal(SIGUSR1, on_usr1);
	for (size_t i = 0; i < GU_ARRAY_LEN(threads); i++)
		must_ok(pthread_create(&threads[i], NULL, ask_for_ranges, (void *)(i % 3)));
	uint64_t end = test_now_ns() + check_seconds() * 1000000000ull / 2;
	while (test_now_ns() < end)
		usleep(10000);
	gu_store_seqcst(&quit, 1);
	for (size_t i = 0; i < GU_ARRAY_LEN(threads); i++)
		must_ok(pthread_join(threads[i], NULL));
	check_noise(common, MANY);
	verified(heap);
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

/* Two heaps: one whose evictor works, and one that ends with its evictor at work, asleep or asked nothing yet. */
START_TEST(heaps_that_end)
{
	struct test_rng rng = test_rng(11);
	cold_heap(",resident_target=2M");
	struct gcuffd_heap *first = heap;
	uint64_t *p = noise(4 << 20);
	uint64_t end = test_now_ns() + check_seconds() * 1000000000ull / 2;
	do {
		heap = heap_make("rung=%s,cold=1,reservation=1G,resident_target=1M", rung_names[_i]);
		noise((size_t)4096 << test_below(&rng, 11));
		if (test_below(&rng, 2))
			(void)gcuffd_cool(heap, NULL, 0, NULL);
		usleep((useconds_t)test_below(&rng, 400000));
		ck_ok(gcuffd_thread_detach());
		ck_ok(gcuffd_heap_destroy(heap));
	} while (test_now_ns() < end);
	heap = first;
	check_noise(p, 4 << 20);
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

/* ---- a slow disk ---- */

#define PIECES 40u
#define PIECE ((size_t)100000)

static uint64_t *pieces[PIECES]; /* roots */
static uint32_t touched, dropped, done, over; /* atomic */

static long read_slowly(int fd, void *buffer, size_t len, off_t at)
{
	if (!gu_swap_seqcst(&there, 1)) {
		await(&go_on, 5000 * check_slow());
		gu_store_seqcst(&over, 1);
	}
	return gu_os_linux.pread(fd, buffer, len, at);
}

static void *touch_pieces(void *unused)
{
	must_ok(gcuffd_thread_attach());
	for (uint32_t i = 0; i < PIECES && !gu_load_seqcst(&there); i++) {
		gu_store_seqcst(&touched, i);
		touch(&pieces[i][6000]);
	}
	must_ok(gcuffd_thread_detach());
	return unused;
}

static void *free_dropped(void *unused)
{
	must_ok(gcuffd_thread_attach());
	must_ok(gcuffd_free(heap, pieces[dropped]));
	pieces[dropped] = NULL;
	gu_store_seqcst(&done, 1);
	must_ok(gcuffd_thread_detach());
	return unused;
}

static size_t region_of(const void *p) { return gu_space_page(&heap->space, (uintptr_t)p) / GU_REGION_PAGES; }

/* Pieces that are out, and a thread whose touch of one of them is being read. */
static void begin_slow_read(pthread_t *reader)
{
	for (size_t i = 0; i < PIECES; i++)
		pieces[i] = noise(PIECE);
	cool(NULL, 0);
	fake_install();
	fake_os.pread = read_slowly;
	reset_steps();
	done = over = 0;
	must_ok(pthread_create(reader, NULL, touch_pieces, NULL));
	await(&there, 10000 * check_slow());
}

/* While one page is read, its neighbours' blocks are released, their pages taken out, and cycles run. */
START_TEST(a_read_holds_nobody_up)
{
	pthread_t reader, other, evictor;
	cold_heap(",store_memory=1M,store_file=64M,pacing=0");
	begin_slow_read(&reader);
	for (dropped = 0; dropped < PIECES; dropped++)
		if (dropped != touched && region_of(&pieces[dropped][6000]) == region_of(&pieces[touched][6000]) && is_out(&pieces[dropped][6000]))
			break;
	ck_assert_uint_lt(dropped, PIECES);
	must_ok(pthread_create(&other, NULL, free_dropped, NULL));
	await(&done, 1000 * check_slow());
	ck_ok(gcuffd_collect(heap));
	must_ok(pthread_create(&evictor, NULL, cool_it, NULL));
	usleep(50000);
	ck_ok(gcuffd_collect(heap));
	ck_assert_uint_eq(done, 1);
	must_ok(pthread_join(evictor, NULL));
	ck_assert_uint_eq(over, 0);
	ck_assert(is_out(&pieces[touched][6000]));
	gu_store_seqcst(&go_on, 1);
	must_ok(pthread_join(reader, NULL));
	must_ok(pthread_join(other, NULL));
	for (size_t i = 0; i < PIECES; i++)
		if (pieces[i])
			check_noise(pieces[i], PIECE);
	checked();
	ck_ok(gcuffd_heap_destroy(heap));
	fake_remove();
}
END_TEST

/* The very page that is being read is nobody's when that is done, and a new block's: what was read goes nowhere. */
START_TEST(released_while_it_is_read)
{
	pthread_t reader, other;
	cold_heap(",store_memory=1M,store_file=64M,pacing=0");
	begin_slow_read(&reader);
	dropped = touched;
	uint64_t *was = pieces[dropped];
	must_ok(pthread_create(&other, NULL, free_dropped, NULL));
	await(&done, 1000 * check_slow());
	ck_assert_uint_eq(done, 1);
	must_ok(pthread_join(other, NULL));
	usleep(200000); /* the evictor tidies: not this one */
	uint64_t *p = gcuffd_alloc_atomic(heap, PIECE); /* fresh: not touched */
	printf("%s\n", p == was ? "the same pages" : "other pages");
	ck_assert_uint_eq(over, 0);
	gu_store_seqcst(&go_on, 1);
	must_ok(pthread_join(reader, NULL));
	ck_assert(test_all_are(p, PIECE, 0));
	for (size_t i = 0; i < PIECES; i++)
		if (pieces[i])
			check_noise(pieces[i], PIECE);
	usleep(200000);
	cool(NULL, 0);
	ck_assert(is_out(&p[6000]));
	checked();
	ck_ok(gcuffd_heap_destroy(heap));
	fake_remove();
}
END_TEST

/* ---- the kernel says no ---- */

static const int refusals[] = {-ENOMEM, -EAGAIN, -EFAULT, -ENOENT};

/* Whatever a fill says, who waits for the page gets it in the end. */
START_TEST(a_fill_that_fails)
{
	cold_heap(",verify=1");
	uint64_t *p = noise(1 << 20);
	fake_install();
	for (size_t i = 0; i < GU_ARRAY_LEN(refusals); i++) {
		cool(NULL, 0);
		ck_assert(is_out(&p[5000]));
		fake_fail_ioctl(GU_UFFDIO_COPY, 1, refusals[i]);
		touch(&p[5000]);
		ck_assert_uint_eq(fake.fired, 1);
		fake_clear();
		check_noise(p, 1 << 20);
		checked();
	}
	ck_ok(gcuffd_heap_destroy(heap));
	fake_remove();
}
END_TEST

static uint32_t failing; /* atomic */
static pthread_t releaser;

/* The first page of a piece can't be filled, which turns out when the piece has begun to be given back. */
static long release_and_fail(int fd, unsigned long request, void *arg)
{
	const struct gu_uffdio_copy *copy = arg;
	if (request != GU_UFFDIO_COPY || copy->dst != (uintptr_t)pieces[0] || !gu_swap_seqcst(&failing, 0))
		return gu_os_linux.ioctl(fd, request, arg);
	must_ok(pthread_create(&releaser, NULL, free_dropped, NULL));
	usleep(300000); /* it waits for the region's lock, which is held here */
	return -ENOMEM;
}

/* No page that is out is left behind: what comes there is zero. */
START_TEST(released_while_filling_fails)
{
	cold_heap(",pacing=0,verify=1");
	for (int i = 0; i < 2; i++)
		pieces[i] = gcuffd_alloc_aligned(heap, PIECE, GU_PAGE, GCUFFD_ATOMIC);
	memset(pieces[0], 7, PIECE);
	memset(pieces[1], 8, PIECE);
	uint64_t *was = pieces[0];
	size_t page = gu_space_page(&heap->space, (uintptr_t)was);
	cool(NULL, 0);
	ck_assert(is_out(was));
	fake_install();
	fake_os.ioctl = release_and_fail;
	dropped = 0;
	failing = 1;
	ck_assert_int_eq(gcuffd_warm(heap, was, 8), -ENOMEM);
	ck_assert_uint_eq(failing, 0);
	must_ok(pthread_join(releaser, NULL));
	ck_assert(!gu_cold_is_out(&heap->space.cold, page));
	ck_ok(gcuffd_trim(heap));
	for (int i = 0; i < 8; i++) {
		uint64_t *p = gcuffd_alloc_atomic(heap, PIECE);
		ck_assert(test_all_are(p, PIECE, 0));
		printf("%s\n", p == was ? "the same pages" : "other pages");
	}
	ck_assert(test_all_are(pieces[1], PIECE, 8));
	checked();
	ck_ok(gcuffd_heap_destroy(heap));
	fake_remove();
}
END_TEST

#define CELL ((size_t)256)

static uint64_t *objects[64 * GU_PAGE / CELL]; /* roots */

/* The evictor looks at a page while it is being filled, which fails then: it is out as before, with whatever lives on it, or nothing. */
START_TEST(claimed_while_filling_fails)
{
	cold_heap(",pacing=0,verify=1");
	for (size_t i = 0; i < GU_ARRAY_LEN(objects); i++) {
		objects[i] = gcuffd_alloc(heap, CELL);
		memset(objects[i], 7, CELL);
	}
	cool(NULL, 0);
	watched = gu_align_down((uintptr_t)objects[GU_ARRAY_LEN(objects) / 2], GU_PAGE);
	size_t page = gu_space_page(&heap->space, watched);
	struct gu_cold *c = &heap->space.cold;
	struct gu_cold_region *r = gu_cold_region(c, page);
	gu_lock(&r->lock);
	enum gu_cold_state state = gu_cold_state(c, page);
	ck_assert_int_ne(state, GU_COLD_LIVE);
	gu_cold_set_live_locked(c, r, page, GU_COLD_TOUCHED);
	gu_cold_claim(c, page);
	gu_cold_set_back_locked(c, r, page, state);
	gu_unlock(&r->lock);
	checked();
	for (size_t i = 0; i < GU_ARRAY_LEN(objects); i++)
		if (gu_align_down((uintptr_t)objects[i], GU_PAGE) == watched) {
			ck_ok(gcuffd_free(heap, objects[i]));
			objects[i] = NULL;
		}
	struct gu_block *b = gu_block_at(&heap->space, watched);
	gu_lock(&b->arena->lock);
	ck_assert(gu_shed_in_place(&heap->space, r, b, page));
	gu_unlock(&b->arena->lock);
	checked();
	for (size_t i = 0; i < GU_ARRAY_LEN(objects); i++)
		ck_assert(!objects[i] || test_all_are(objects[i], CELL, 7));
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

static const struct {
	enum fake_call call;
	int error;
	bool sticky;
} plants[] = {
	{FAKE_MMAP, -ENOMEM, false}, {FAKE_MMAP, -ENOMEM, true}, {FAKE_MPROTECT, -ENOMEM, false}, {FAKE_MADVISE, -ENOMEM, false},
	{FAKE_MADVISE, -EAGAIN, true}, {FAKE_IOCTL, -ENOMEM, false}, {FAKE_IOCTL, -EAGAIN, false}, {FAKE_PWRITEV, -EIO, false},
	{FAKE_PWRITEV, -ENOSPC, true}, {FAKE_FALLOCATE, -EIO, true}, {FAKE_CREATE, -EMFILE, false},
};

static void touch_some(const uint64_t *p, size_t bytes, struct test_rng *rng)
{
	for (int i = 0; i < 40; i++)
		touch(&p[test_below(rng, bytes / 8)]);
}

/* The n-th call fails, and maybe all after it, while pages go out, are touched, marked and brought back. True: there was an n-th. */
static bool with_plant(size_t plant, unsigned n, const uint64_t *p, size_t bytes, struct test_rng *rng)
{
	fake_fail(plants[plant].call, n, plants[plant].error);
	fake.sticky = plants[plant].sticky;
	(void)gcuffd_cool(heap, NULL, 0, NULL);
	if (!fake.sticky) /* else who touches waits for memory */
		touch_some(p, bytes, rng);
	(void)gcuffd_collect(heap);
	(void)gcuffd_cool(heap, p, bytes, NULL);
	(void)gcuffd_warm(heap, p, bytes / 2);
	bool fired = fake.fired;
	fake_clear();
	check_noise(p, bytes);
	space_checked(heap);
	return fired;
}

#define SOME ((size_t)3 << 20)

START_TEST(calls_that_fail)
{
	struct test_rng rng = test_rng(9);
	cold_heap(",verify=1,store_memory=1M,store_file=8M,pacing=0");
	uint64_t *p = noise(SOME);
	fake_install();
	for (size_t i = 0; i < GU_ARRAY_LEN(plants); i++) {
		unsigned n = 1, most = sanitized() ? 6 : check_rounds(20);
		while (n <= most && with_plant(i, n, p, SOME, &rng))
			n++;
		printf("plant %zu: %u\n", i, n - 1);
		fflush(stdout);
	}
	cool(NULL, 0);
	ck_assert(is_out(&p[5000]));
	check_noise(p, SOME);
	uint64_t wrong = stats_of(heap).verify_failures; /* the verifier had no memory */
	ck_ok(gcuffd_collect(heap));
	ck_assert_uint_eq(stats_of(heap).verify_failures, wrong);
	ck_assert_msg(!strstr(core_log, "verifier: object"), "%s", core_log);
	ck_ok(gcuffd_heap_destroy(heap));
	fake_remove();
}
END_TEST

/* What could not be said about all of a region's memory is taken back: a child has it all. */
START_TEST(forks_after_a_failure)
{
	cold_heap(",pacing=0");
	int status;
	uint64_t *p = noise(SOME);
	fake_install();
	for (unsigned n = 1; n <= 8; n++) {
		fake_fail(FAKE_MADVISE, n, -ENOMEM);
		(void)gcuffd_cool(heap, NULL, 0, NULL);
		fake_clear();
		pid_t pid = fork();
		ck_assert_int_ge(pid, 0);
		if (pid == 0) {
			check_noise(p, SOME);
			_exit(0);
		}
		ck_assert_int_eq(waitpid(pid, &status, 0), pid);
		ck_assert_int_eq(status, 0);
		check_noise(p, SOME);
	}
	ck_ok(gcuffd_heap_destroy(heap));
	fake_remove();
}
END_TEST

/* ---- the park, touched by others ---- */

/* mlockall(2), or a debugger, may fill holes of the park: that is nobody's error, and no page is lost by it. */
START_TEST(the_park_is_looked_at)
{
	cold_heap(",verify=1");
	uint64_t *p = noise(1 << 20);
	cool(NULL, 0);
	ck_assert(is_out(&p[5000]));
	volatile char *park = (char *)gu_cold_park(&heap->space.cold, gu_space_page(&heap->space, (uintptr_t)&p[0]));
	ck_assert_int_eq(park[100 * GU_PAGE], 0);
	check_noise(p, 1 << 20);
	cool(NULL, 0);
	ck_assert(is_out(&p[100 * 512 + 1]));
	ck_assert(is_out(&p[5000]));
	check_noise(p, 1 << 20);
	checked();
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

START_TEST(memory_is_locked)
{
#ifdef __SANITIZE_ADDRESS__
	GU_SKIP("AddressSanitizer makes mlock(2) do nothing, for all its shadow would be locked");
#endif
	cold_heap(",verify=1");
	uint64_t *p = noise(1 << 20);
	if (mlock(&p[9 * 512], GU_PAGE)) {
		ck_ok(gcuffd_heap_destroy(heap));
		GU_LACKS("mlock", "mlock: errno %d", errno);
	}
	cool(NULL, 0);
	for (size_t i = 0; i < 20; i++)
		ck_assert_int_eq(is_out(&p[i * 512]), (i != 9));
	ck_ok(munlock(&p[9 * 512], GU_PAGE) ? -errno : 0);
	cool(NULL, 0);
	ck_assert(is_out(&p[9 * 512]));
	if (mlockall(MCL_CURRENT)) {
		ck_ok(gcuffd_heap_destroy(heap));
		GU_LACKS("mlock", "mlockall: errno %d", errno);
	}
	check_noise(p, 1 << 20);
	ck_ok(gcuffd_collect(heap));
	ck_assert_uint_eq(cool(NULL, 0), 0); /* it is to stay */
	ck_ok(munlockall() ? -errno : 0);
	cool(NULL, 0);
	ck_assert(is_out(&p[5000]));
	check_noise(p, 1 << 20);
	checked();
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

/* ---- a disk that hangs ---- */

static unsigned hang_for; /* seconds */

static long read_and_hang(int fd, void *buffer, size_t len, off_t at)
{
	sleep(hang_for);
	return gu_os_linux.pread(fd, buffer, len, at);
}

/* In a child, with its own heap: its status, and what it says. */
static int touch_what_hangs(int rung, const char *limit, unsigned seconds, char *said, size_t size)
{
	int p[2], status;
	ck_ok(pipe(p) ? -errno : 0);
	fflush(stdout);
	pid_t pid = fork();
	if (!pid) {
		signal(SIGABRT, SIG_DFL);
		dup2(p[1], STDERR_FILENO);
		heap = heap_make("rung=%s,cold=1,reservation=1G,store_memory=1M,store_file=64M,hang_seconds=%s", rung_names[rung], limit);
		uint64_t *words = noise(4 << 20);
		cool(NULL, 0);
		fake_install();
		hang_for = seconds;
		fake_os.pread = read_and_hang;
		for (size_t i = 0; i < (4u << 20) / 8 && !cold_of(heap).store_reads; i += 64 * 512)
			touch(&words[i]);
		_exit(cold_of(heap).store_reads ? 0 : 1);
	}
	close(p[1]);
	long n = 0, got;
	while ((got = read(p[0], said + n, size - 1 - (size_t)n)) > 0)
		n += got;
	said[n] = 0;
	close(p[0]);
	must(waitpid(pid, &status, 0) == pid, "errno %d", errno);
	return status;
}

START_TEST(a_hanging_disk_ends_the_process)
{
	char said[4096];
	NEED_RUNG(_i);
	int status = touch_what_hangs(_i, "1", 20, said, sizeof(said));
	ck_assert_msg(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT, "status %#x: %s", (unsigned)status, said);
	ck_assert_msg(strstr(said, "has not come to an end in 1 s") != NULL, "%s", said);
	ck_assert_ptr_eq(strchr(said, '\n'), said + strlen(said) - 1); /* one line */
	ck_assert_int_eq(touch_what_hangs(_i, "5", 2, said, sizeof(said)), 0);
	ck_assert_int_eq(touch_what_hangs(_i, "0", 3, said, sizeof(said)), 0);
	ck_assert_str_eq(said, "");
}
END_TEST

/* ---- a log that nobody reads ---- */

static void fork_and_wait(void)
{
	int status;
	pid_t pid = fork();
	if (pid == 0)
		_exit(0);
	must(pid > 0, "errno %d", errno);
	must(waitpid(pid, &status, 0) == pid && status == 0, "status %#x", (unsigned)status);
}

static int full[2]; /* a pipe, which is stderr, too */

static void *write_pages_to_pipe(void *words)
{
	must_ok(gcuffd_thread_attach());
	must(write(full[1], words, 1 << 20) == 1 << 20, "errno %d", errno); /* waits, and faults, in the kernel */
	must_ok(gcuffd_thread_detach());
	return NULL;
}

static void *drain(void *bytes)
{
	char buffer[4096];
	long n;
	while (gu_load_seqcst((size_t *)bytes) && (n = read(full[0], buffer, sizeof(buffer))) > 0)
		gu_sub_seqcst((size_t *)bytes, gu_min((size_t)n, *(size_t *)bytes));
	return NULL;
}

/* The evictor has a line for a full pipe that a thread writes to from what is out: faults and forks go on. */
START_TEST(a_log_that_nobody_reads)
{
	pthread_t writer, reader;
	struct gcuffd_options o;
	size_t left = 1 << 20;
	NEED_RUNG(_i);
	gcuffd_options_init(&o);
	ck_ok(gcuffd_options_parse(&o, "cold=1,reservation=1G,store_memory=1M,store_file=64M,pacing=0", NULL));
	o.rung = (enum gcuffd_rung)_i;
	ck_ok(gcuffd_heap_create(&o, &heap));
	ck_ok(gcuffd_thread_attach());
	uint64_t *words = noise(4 << 20);
	cool(NULL, 0);
	ck_ok(pipe(full) ? -errno : 0);
	int stderr_was = dup(STDERR_FILENO);
	ck_assert_int_eq(dup2(full[1], STDERR_FILENO), STDERR_FILENO);
	alarm(60 * check_slow());
	must_ok(pthread_create(&writer, NULL, write_pages_to_pipe, words));
	while (!cold_of(heap).touched_pages)
		usleep(1000);
	usleep(100000); /* it is full by now */
	fake_install();
	fake_fail(FAKE_PWRITEV, 1, -EIO);
	fake.sticky = true;
	ck_ok(gcuffd_warm(heap, words + (2 << 20) / 8, 2 << 20));
	for (int i = 0; i < 100 && !fake.fired; i++) {
		noise(1 << 20);
		ck_assert_int_le(gcuffd_cool(heap, NULL, 0, NULL), 0);
	}
	ck_assert_uint_gt(fake.fired, 0);
	fake_clear();
	usleep(100000); /* the evictor waits with its line */
	fork_and_wait();
	touch(words + (3 << 20) / 8);
	must_ok(pthread_create(&reader, NULL, drain, &left));
	must_ok(pthread_join(writer, NULL));
	must_ok(pthread_join(reader, NULL));
	dup2(stderr_was, STDERR_FILENO);
	alarm(0);
	check_noise(words, 4 << 20);
	ck_ok(gcuffd_heap_destroy(heap));
	fake_remove();
}
END_TEST

/* ---- what programs do to descriptors and pipes ---- */

/* The program closes all it has, as daemons do: what is out is read by threads that have it in a table of their own. */
START_TEST(everything_is_closed)
{
	NEED_RUNG(_i);
	fflush(stdout);
	pid_t pid = fork();
	if (!pid) {
		heap = heap_make("rung=%s,cold=1,reservation=1G,store_memory=1M,store_file=64M", rung_names[_i]);
		uint64_t *words = noise(4 << 20);
		cool(NULL, 0);
		must(is_out(&words[5000]) && cold_of(heap).store_file_bytes, "nothing is out");
		must_ok(close_range(3, ~0u, 0));
		check_noise(words, 2 << 20);
		must_ok(gcuffd_collect(heap));
		cool(NULL, 0);
		must(is_out(&words[5000]), "nothing is out any more");
		check_noise(words, 4 << 20);
		_exit(cold_of(heap).poisoned_pages != 0);
	}
	int status;
	ck_assert_int_eq(waitpid(pid, &status, 0), pid);
	ck_assert_int_eq(status, 0);
}
END_TEST

/* A pipe holds pages by reference: these move to the park and are stored, but nobody writes to them there (.inv.cold.staging). */
START_TEST(a_pipe_gets_its_own_bytes)
{
	cold_heap(",pacing=0");
	char *words = (char *)gu_align_up((uintptr_t)noise(1 << 20), GU_PAGE), copy[8 * GU_PAGE];
	struct iovec v = {words, sizeof(copy)};
	int p[2];
	ck_ok(pipe(p) ? -errno : 0);
	memcpy(copy, words, sizeof(copy));
	ck_assert_int_eq(vmsplice(p[1], &v, 1, 0), sizeof(copy));
	for (int i = 0; i < 3; i++) {
		cool(NULL, 0);
		for (size_t k = 0; k < sizeof(copy) && is_out(words + k); k += GU_PAGE) { /* comes back, as another page: what is written is not in the pipe */
			must(!memcmp(words + k, copy + k, i ? 0 : GU_PAGE), "page %zu", k / GU_PAGE);
			memset(words + k, i + 1, GU_PAGE);
		}
		noise(1 << 20); /* goes through the park in its turn */
	}
	char got[sizeof(copy)];
	ck_assert_int_eq(read(p[0], got, sizeof(got)), sizeof(got));
	ck_assert_int_eq(memcmp(got, copy, sizeof(got)), 0);
	checked();
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

/* What its owner keeps out of dumps, or out of children, is kept out of the store, as long as that is so: if asked, and if not. */
START_TEST(secrets_stay)
{
	cold_heap(",verify=1,resident_target=1M,store_memory=16M");
	char *p = (char *)gu_align_up((uintptr_t)noise((2 << 20) + GU_PAGE), GU_PAGE);
	ck_ok(madvise(p + 9 * GU_PAGE, GU_PAGE, MADV_DONTDUMP) ? -errno : 0);
	ck_ok(madvise(p + 30 * GU_PAGE, 3 * GU_PAGE, MADV_WIPEONFORK) ? -errno : 0);
	cool(NULL, 0);
	for (size_t i = 0; i < 60; i++)
		ck_assert_int_eq(is_out(p + i * GU_PAGE), i != 9 && (i < 30 || i > 32));
	for (int i = 0; i < 3; i++) {
		ck_ok(gcuffd_warm(heap, NULL, 0));
		for (int ms = 0; !is_out(p + 50 * GU_PAGE) && ms < 20000; ms += 10)
			usleep(10000);
		ck_assert(!is_out(p + 9 * GU_PAGE) && !is_out(p + 31 * GU_PAGE));
	}
	ck_ok(madvise(p + 9 * GU_PAGE, GU_PAGE, MADV_DODUMP) ? -errno : 0);
	ck_ok(madvise(p + 30 * GU_PAGE, 3 * GU_PAGE, MADV_KEEPONFORK) ? -errno : 0);
	cool(NULL, 0);
	ck_assert(is_out(p + 9 * GU_PAGE) && is_out(p + 31 * GU_PAGE));
	checked();
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

/* ---- fork ---- */

static uint32_t running;

static void *look_at_counts(void *unused)
{
	gu_add_seqcst(&running, 1);
	while (!gu_load_relaxed(&quit))
		cold_of(heap);
	return unused;
}

static void *free_what_is_out(void *unused)
{
	must_ok(gcuffd_thread_attach());
	gu_add_seqcst(&running, 1);
	while (!gu_load_relaxed(&quit)) {
		char *p = gcuffd_alloc_atomic(heap, 100000);
		must(p != NULL, "errno %d", errno);
		memset(p, 3, 100000);
		cool(p, 100000);
		p[50000] = 1;
		must_ok(gcuffd_free(heap, p));
	}
	must_ok(gcuffd_thread_detach());
	return unused;
}

/* Who forks holds the store's locks: nobody may wait for them in a section. */
START_TEST(forks_among_calls)
{
	pthread_t threads[4];
	cold_heap("");
	reset_steps();
	uint64_t *p = noise(1 << 20);
	for (size_t i = 0; i < GU_ARRAY_LEN(threads); i++)
		must_ok(pthread_create(&threads[i], NULL, i % 2 ? look_at_counts : free_what_is_out, NULL));
	while (gu_load_seqcst(&running) < GU_ARRAY_LEN(threads)) /* they begin with malloc() under AddressSanitizer, whose locks don't come through a fork */
		usleep(100);
	uint64_t end = test_now_ns() + check_seconds() * 1000000000ull / 2;
	unsigned forks = 0;
	fflush(stdout);
	for (; test_now_ns() < end; forks++) {
		alarm(60 * check_slow());
		fork_and_wait();
	}
	alarm(0);
	gu_store_seqcst(&quit, 1);
	for (size_t i = 0; i < GU_ARRAY_LEN(threads); i++)
		must_ok(pthread_join(threads[i], NULL));
	printf("%u forks\n", forks);
	check_noise(p, 1 << 20);
	space_checked(heap);
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

#define MUCH ((size_t)64 << 20)

/* A step of the evictor's is waited for, not all that it was asked for. */
START_TEST(a_fork_does_not_wait_for_all)
{
	pthread_t t;
	cold_heap("");
	uint64_t *p = noise(MUCH);
	fflush(stdout);
	must_ok(pthread_create(&t, NULL, cool_it, NULL));
	while (cold_of(heap).evicted_pages < 512)
		usleep(100);
	uint64_t before = cold_of(heap).evicted_pages;
	fork_and_wait();
	uint64_t after = cold_of(heap).evicted_pages;
	must_ok(pthread_join(t, NULL));
	printf("%lu pages while forking, of %lu\n", (unsigned long)(after - before), (unsigned long)cold_of(heap).evicted_pages);
	ck_assert_uint_lt(after - before, MUCH / GU_PAGE / 2);
	check_noise(p, MUCH);
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

/* ---- registered anew ---- */

static struct gu_cold_region *told;  /* its record */
static size_t told_region;
static unsigned unregistered;

/*
 * A kernel that tells of accesses. From UNREGISTER on a hole reads as zeros, and who waits for one gets them: so that is looked at, and not done, by
 * this thread, which does not have the descriptor.
 */
static long register_anew(int fd, unsigned long request, void *arg)
{
	const struct gu_uffdio_range *range = arg;
	uintptr_t start = heap->space.base + told_region * GU_REGION;
	if (request == GU_UFFDIO_UNREGISTER && start - range->start < range->len) {
		for (size_t i = 0; i < GU_REGION_PAGES; i++)
			must(told->state[i] == GU_COLD_LIVE && !told->left[i], "page %zu", i);
		must(pthread_mutex_trylock(&told->lock.mutex) == EBUSY, "the resolver may be at it");
		unregistered++;
	}
	if (gu_os_linux.gettid() == getpid())
		return 0;
	return wait_before_filling(fd, request, arg);
}

/* As the evictor does, which is kept from it. */
static int begin_window(void)
{
	gu_evictor_fork_prepare(heap);
	struct gu_thread *t = gu_enter();
	gu_lock(&heap->cycle_lock);
	int err = gu_accessed_begin(heap, told, told_region, true);
	gu_unlock(&heap->cycle_lock);
	gu_leave(t);
	gu_evictor_fork_parent(heap);
	return err;
}

static int end_window(void)
{
	gu_evictor_fork_prepare(heap);
	struct gu_thread *t = gu_enter();
	gu_lock(&heap->cycle_lock);
	int err = gu_accessed_end(heap, told, told_region);
	gu_unlock(&heap->cycle_lock);
	gu_leave(t);
	gu_evictor_fork_parent(heap);
	return err;
}

static void *read_word(void *word) { return (void *)*(volatile uintptr_t *)word; }

/* Whoever reads a page that is out has it, and not zeros, whatever the region is to tell of: it is not registered anew as long as one is out or on its way. */
START_TEST(registered_under_a_reader)
{
	pthread_t t;
	void *got;
	cold_heap(",verify=1");
	uint64_t *p = gcuffd_alloc_aligned(heap, GU_REGION, GU_REGION, GCUFFD_ATOMIC);
	struct test_rng rng = test_rng(7);
	for (size_t i = 0; i < GU_REGION / 8; i++)
		p[i] = test_rand(&rng);
	uint64_t want = p[100 * 512];
	ck_ok(gcuffd_cool(heap, p, GU_REGION, NULL));
	told_region = ((uintptr_t)p - heap->space.base) / GU_REGION;
	told = heap->space.cold.regions[told_region];
	ck_assert(is_out(&p[100 * 512]));
	unregistered = 0;
	reset_steps();
	watched = (uintptr_t)&p[100 * 512];
	fake_install();
	fake_os.ioctl = register_anew;
	uint32_t rung = heap->rung;
	gu_store_relaxed(&heap->rung, GCUFFD_RUNG_RWP);
	ck_assert_int_eq(begin_window(), -EBUSY); /* out */
	must_ok(pthread_create(&t, NULL, read_word, &p[100 * 512]));
	await(&there, 20000);
	ck_assert_int_eq(begin_window(), -EBUSY); /* LIVE, and not there yet */
	gu_store_seqcst(&go_on, 1);
	must_ok(pthread_join(t, &got));
	ck_assert_uint_eq((uintptr_t)got, want);
	ck_assert_int_eq(begin_window(), -EBUSY);
	ck_assert_uint_eq(unregistered, 0);
	ck_ok(gcuffd_warm(heap, p, GU_REGION));
	int err = -EBUSY;
	for (int i = 0; i < 300 && err; i++) { /* until none is passed over */
		gu_evictor_fork_prepare(heap);
		struct gu_thread *self = gu_enter();
		err = gu_evict_watch(heap, told_region, true);
		gu_leave(self);
		gu_evictor_fork_parent(heap);
	}
	ck_assert_int_eq(err, 0);
	ck_assert_uint_eq(unregistered, 1);
	ck_assert_uint_eq(p[100 * 512], want);
	ck_ok(end_window());
	ck_assert_uint_eq(unregistered, 2);
	gu_store_relaxed(&heap->rung, rung);
	check_noise(p, GU_REGION);
	ck_ok(gcuffd_cool(heap, p, GU_REGION, NULL));
	check_noise(p, GU_REGION);
	fake_remove();
	checked();
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

static Suite *make_suite(void)
{
	Suite *suite = suite_create("cold_races");
	TCase *marking = test_case(suite, "marking"), *kernel = test_case(suite, "kernel"), *forking = test_case(suite, "forking"), *load = test_case(suite, "load"), *disk = test_case(suite, "disk");
	tcase_add_loop_test(marking, sparse_and_being_filled, GCUFFD_RUNG_MOVE, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(load, released_on_the_way, GCUFFD_RUNG_MOVE, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(load, asked_by_many, GCUFFD_RUNG_MOVE, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(load, heaps_that_end, GCUFFD_RUNG_MOVE, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(disk, a_read_holds_nobody_up, GCUFFD_RUNG_MOVE, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(disk, a_hanging_disk_ends_the_process, GCUFFD_RUNG_MOVE, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(disk, released_while_it_is_read, GCUFFD_RUNG_MOVE, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(kernel, released_while_filling_fails, GCUFFD_RUNG_MOVE, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(kernel, claimed_while_filling_fails, GCUFFD_RUNG_MOVE, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(kernel, a_fill_that_fails, GCUFFD_RUNG_MOVE, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(kernel, registered_under_a_reader, GCUFFD_RUNG_MOVE, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(kernel, calls_that_fail, GCUFFD_RUNG_MOVE, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(kernel, forks_after_a_failure, GCUFFD_RUNG_MOVE, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(kernel, the_park_is_looked_at, GCUFFD_RUNG_MOVE, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(kernel, memory_is_locked, GCUFFD_RUNG_MOVE, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(kernel, a_log_that_nobody_reads, GCUFFD_RUNG_MOVE, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(kernel, everything_is_closed, GCUFFD_RUNG_MOVE, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(kernel, a_pipe_gets_its_own_bytes, GCUFFD_RUNG_MOVE, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(kernel, secrets_stay, GCUFFD_RUNG_MOVE, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(forking, forks_among_calls, GCUFFD_RUNG_MOVE, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(forking, a_fork_does_not_wait_for_all, GCUFFD_RUNG_MOVE, GCUFFD_RUNG_RWP + 1);
	return suite;
}

TEST_MAIN(make_suite)
