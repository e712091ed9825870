/* SPDX-License-Identifier: MIT */
/*
 * test_limit.c - the hard limit: kept, reached only after collecting, survived; from one thread and from many. And memory that is given
 * back though nobody collects any more.
 */
#include <sched.h>

#include "base/meta.h"
#include "core.h"
#include "fake_os.h"
#include "gc/heap.h"
#include "sys/uapi.h"

#define LIMIT ((size_t)64 << 20)
#define SLACK ((size_t)512 << 10) /* jemalloc's metadata is accounted for after it has grown */
#define RSS_SLACK ((ssize_t)512 << 10) /* threads' entries, caches and stacks, packets, code that was not used before */

static struct gcuffd_heap *heap;

struct node {
	struct node *next;
	char room[];
};

/* In a data segment. Many lists, so that a stale word on a stack keeps a small part of the nodes. */
#define LISTS 256u
static struct node *volatile heads[LISTS];

static void keep(struct node *n)
{
	static unsigned next;
	n->next = heads[next % LISTS];
	heads[next++ % LISTS] = n;
}

static void drop_all(void)
{
	for (unsigned i = 0; i < LISTS; i++)
		heads[i] = NULL;
}

/* Adds to the list until no more is to be had; bytes. */
static __attribute__((noinline)) size_t fill(size_t size)
{
	size_t total = 0;
	for (;;) {
		errno = 0;
		struct node *n = gcuffd_alloc(heap, size);
		if (!n)
			break;
		memset(n->room, 1, size - sizeof(*n));
		keep(n);
		total += size;
		must(total <= LIMIT, "more than the limit, of %zu", size);
	}
	must(errno == ENOMEM, "errno %d", errno);
	return total;
}

static void must_be_within(void)
{
	struct gcuffd_stats s = stats_of(heap);
	must(s.resident_bytes <= LIMIT + SLACK, "%lu resident", s.resident_bytes);
}

struct filling {
	size_t size, least;
};

/* On a thread of its own: no word of a stack that goes on holds one of the nodes by accident. */
static void *fill_up(void *arg)
{
	const struct filling *f = arg;
	must_ok(gcuffd_thread_attach());
	size_t total = fill(f->size);
	must_be_within();
	must(total >= f->least, "only %zu KiB of objects of %zu within %zu", total >> 10, f->size, LIMIT >> 10);
	size_t more = fill(f->size);
	must(more <= LIMIT / 100 + f->size, "%zu KiB after all was used up", more >> 10);
	scrub(); /* the next thread may have this stack */
	return NULL;
}

/* Its address is not left behind: this thread goes on. */
static __attribute__((noinline)) void must_have_room(size_t size) { must(gcuffd_alloc(heap, size) != NULL, "nothing to be had after dropping all: errno %d", errno); }

/* Large parts of the limit can be used for objects; what was dropped can be used again. */
static void fill_and_drop(size_t size, size_t least)
{
	struct filling f = {.size = size, .least = least};
	for (int round = 0; round < (int)(check_slow() > 1 ? 1 : 3); round++) {
		pthread_t t;
		ck_ok(pthread_create(&t, NULL, fill_up, &f));
		ck_ok(pthread_join(t, NULL));
		drop_all();
		must_have_room(size);
		scrub();
		must_be_within();
	}
}

START_TEST(fills_up)
{
	static const size_t sizes[] = {64, 1000, 8000, 100000, 3000000};
	NEED_RUNG(_i);
	for (size_t i = 0; i < 5; i++) {
		heap = heap_make("rung=%s,hard_limit=64M,start_size=1M", rung_names[_i]);
		fill_and_drop(sizes[i], LIMIT / 100 * (sizes[i] > 1000000 ? 70 : 80));
		ck_assert_uint_gt(stats_of(heap).cycles, 2);
		drop_all();
		ck_ok(gcuffd_heap_destroy(heap));
	}
}
END_TEST

/* Garbage never makes an ENOMEM: there is a collection first. */
START_TEST(garbage_is_no_reason)
{
	NEED_RUNG(_i / 2);
	size_t total = 0;
	heap = heap_make("rung=%s,hard_limit=16M,pacing=%d", rung_names[_i / 2], _i % 2);
	for (int i = 0; total < (size_t)400 << 20; i++) {
		size_t size = i % 50 ? 16 + (size_t)i % 3000 : 1 << 20;
		void *p = gcuffd_alloc(heap, size);
		ck_assert_msg(p != NULL, "ENOMEM after %zu KiB of garbage", total >> 10);
		memset(p, 0xff, size);
		total += size;
	}
	ck_assert_uint_le(stats_of(heap).resident_bytes, (16 << 20) + SLACK);
	ck_assert_uint_gt(stats_of(heap).cycles, 5);
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

START_TEST(too_large)
{
	static const size_t sizes[] = {LIMIT, LIMIT * 2, (size_t)1 << 40, SIZE_MAX / 2, SIZE_MAX - 4096, SIZE_MAX - 1, SIZE_MAX};
	heap = heap_make("hard_limit=64M");
	for (size_t i = 0; i < 7; i++) {
		errno = 0;
		ck_assert_ptr_null(gcuffd_alloc(heap, sizes[i]));
		ck_assert_int_eq(errno, ENOMEM);
		ck_assert_ptr_null(gcuffd_alloc_atomic(heap, sizes[i]));
		ck_assert_ptr_null(gcuffd_alloc_aligned(heap, sizes[i], 1 << 20, GCUFFD_ATOMIC));
		void *p = gcuffd_alloc(heap, 100);
		ck_assert_ptr_nonnull(p);
		ck_assert_ptr_null(gcuffd_realloc(heap, p, sizes[i]));
		ck_ok(gcuffd_free(heap, p));
	}
	ck_assert_uint_lt(stats_of(heap).resident_bytes, LIMIT);
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

static void *fill_reservation(void *unused)
{
	must_ok(gcuffd_thread_attach());
	must(fill(10000) >= 40 << 20, "not even 40 MiB of 64");
	scrub();
	return unused;
}

/* Without a limit the reservation is one. */
START_TEST(reservation_is_used_up)
{
	pthread_t t;
	heap = heap_make("reservation=64M,start_size=1M");
	ck_ok(pthread_create(&t, NULL, fill_reservation, NULL));
	ck_ok(pthread_join(t, NULL));
	drop_all();
	ck_assert_ptr_nonnull(gcuffd_alloc(heap, 10000));
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

/* ---- many threads at the limit ---- */

static uint64_t end_ns, got, refused; /* atomic */

/* On a machine that has other things to do, too, until there is something to look at. */
static bool press_on(void) { return test_now_ns() < end_ns || __atomic_load_n(&got, __ATOMIC_RELAXED) <= 100; }

static void *press(void *arg)
{
	struct test_rng rng = test_rng((uintptr_t)arg);
	void *mine[64];
	memset(mine, 0, sizeof(mine));
	must_ok(gcuffd_thread_attach());
	while (press_on()) {
		size_t size = 16 + test_below(&rng, test_below(&rng, 20) ? 2000 : 400000);
		void *p = gcuffd_alloc(heap, size);
		must(p || errno == ENOMEM, "errno %d", errno);
		if (p)
			memset(p, 0xff, size);
		__atomic_fetch_add(p ? &got : &refused, 1, __ATOMIC_RELAXED);
		mine[test_below(&rng, 64)] = p;
	}
	must_ok(gcuffd_thread_detach());
	return NULL;
}

START_TEST(threads_at_the_limit)
{
	NEED_RUNG(_i);
	pthread_t t[6];
	heap = heap_make("rung=%s,hard_limit=24M,verify=%d", rung_names[_i], _i % 2);
	end_ns = test_now_ns() + (check_seconds() / 5 + 1) * 500000000ull;
	for (uintptr_t i = 0; i < 6; i++)
		ck_ok(pthread_create(&t[i], NULL, press, (void *)i));
	while (press_on()) {
		struct gcuffd_stats s = stats_of(heap);
		must(s.resident_bytes <= (24 << 20) + SLACK, "%lu resident, %lu of it metadata, %lu cycles", s.resident_bytes, s.metadata_bytes, s.cycles);
		usleep(1000);
	}
	for (int i = 0; i < 6; i++)
		pthread_join(t[i], NULL);
	printf("%s: %lu got, %lu refused, %lu cycles\n", rung_names[_i], got, refused, stats_of(heap).cycles);
	ck_assert_uint_gt(got, 100);
	verified(heap);
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

/* ---- small limits, objects of all sizes, a quarter of the limit live ---- */

#define MOST 512 /* objects a thread keeps */

struct churner {
	pthread_t thread;
	unsigned index;
	size_t share;   /* bytes it keeps */
	unsigned sizes; /* so many different ones, at most 8; 0: any from 16 bytes to 32 KiB */
	uint64_t got, refused;
};

static pthread_barrier_t begun;

struct kept {
	void *p[MOST]; /* the thread's stack */
	size_t size[MOST];
	unsigned n;
	size_t bytes;
};

static void drop_one(struct test_rng *rng, struct kept *k)
{
	unsigned i = (unsigned)test_below(rng, k->n);
	unsigned char *p = k->p[i], pattern = (unsigned char)k->size[i];
	must(p[0] == pattern && p[k->size[i] - 1] == pattern, "an object of %zu bytes was taken", k->size[i]);
	k->bytes -= k->size[i];
	k->n--;
	k->p[i] = k->p[k->n];
	k->size[i] = k->size[k->n];
	k->p[k->n] = NULL;
}

/* As many of each power of two. */
static size_t any_size(struct test_rng *rng, unsigned sizes)
{
	static const size_t some[] = {100, 1000, 30000, 16, 10000, 400, 4000, 32};
	if (sizes)
		return some[test_below(rng, sizes)];
	size_t octave = (size_t)16 << test_below(rng, 11);
	return octave + test_below(rng, octave + 1);
}

static __attribute__((noinline)) void churn_once(struct churner *c, struct test_rng *rng, struct kept *k)
{
	size_t size = any_size(rng, c->sizes);
	while (k->n && (k->bytes + size > c->share || k->n == MOST))
		drop_one(rng, k);
	void *p = gcuffd_alloc(heap, size);
	must(p || errno == ENOMEM, "errno %d", errno);
	*(p ? &c->got : &c->refused) += 1;
	if (!p)
		return;
	memset(p, (unsigned char)size, size);
	k->p[k->n] = p;
	k->size[k->n++] = size;
	k->bytes += size;
}

static void *churn(void *arg)
{
	struct churner *c = arg;
	struct test_rng rng = test_rng(c->index);
	struct kept k = {.n = 0};
	must_ok(gcuffd_thread_attach());
	pthread_barrier_wait(&begun);
	pthread_barrier_wait(&begun);
	while (test_now_ns() < end_ns)
		churn_once(c, &rng, &k);
	while (k.n)
		drop_one(&rng, &k);
	must_ok(gcuffd_thread_detach());
	return NULL;
}

static ssize_t rss_bytes(void) { return (ssize_t)rss_kb() << 10; }

/* Every thread takes a block of 64 KiB for each of the 36 classes it uses: where these don't fit, ENOMEM is frequent. */
struct tight {
	unsigned mib, threads, sizes;
	unsigned most; /* of 10000 allocations may be refused */
};

static const struct tight tight[] = {
	{2, 1, 8, 5}, {2, 8, 1, 5}, {4, 1, 8, 5}, {4, 8, 2, 5}, {16, 1, 8, 5}, {16, 8, 8, 5},
	{2, 1, 0, 7000}, {2, 8, 0, 9500}, {4, 1, 0, 500}, {4, 8, 0, 8500}, {16, 1, 0, 5}, {16, 8, 0, 3000},
};

/* Above the limit, in bytes, at most. The process's memory is counted from when all threads were idle. */
struct over {
	ssize_t resident, rss;
};

static ssize_t larger(ssize_t a, ssize_t b) { return a > b ? a : b; }

static struct over watch(size_t limit, ssize_t idle)
{
	struct over most = {-(ssize_t)limit, -(ssize_t)limit};
	while (test_now_ns() < end_ns) {
		most.resident = larger(most.resident, (ssize_t)stats_of(heap).resident_bytes - (ssize_t)limit);
		most.rss = larger(most.rss, rss_bytes() - idle - (ssize_t)limit);
		usleep(500);
	}
	return most;
}

static struct over churn_all(const struct tight *c, struct churner *churners)
{
	size_t limit = (size_t)c->mib << 20;
	pthread_attr_t small; /* a stack that is never one huge page */
	must_ok(pthread_attr_init(&small));
	must_ok(pthread_attr_setstacksize(&small, (size_t)256 << 10));
	must_ok(pthread_barrier_init(&begun, NULL, c->threads + 1));
	for (unsigned i = 0; i < c->threads; i++) {
		churners[i] = (struct churner){.index = i, .share = limit / 4 / c->threads, .sizes = c->sizes};
		must_ok(pthread_create(&churners[i].thread, &small, churn, &churners[i]));
	}
	pthread_barrier_wait(&begun);
	must(gcuffd_alloc(heap, 1) != NULL, "errno %d", errno); /* the arena is there */
	must_ok(gcuffd_collect(heap));
	ssize_t idle = rss_bytes();
	end_ns = test_now_ns() + check_seconds() * 30000000ull;
	pthread_barrier_wait(&begun);
	struct over over = watch(limit, idle);
	for (unsigned i = 0; i < c->threads; i++)
		pthread_join(churners[i].thread, NULL);
	pthread_barrier_destroy(&begun);
	return over;
}

/* A quarter of the limit can be had. */
static __attribute__((noinline)) void must_go_on(size_t limit)
{
	must_ok(gcuffd_collect(heap));
	for (size_t total = 0; total < limit / 4; total += 1000) {
		struct node *n = gcuffd_alloc(heap, 1000);
		must(n != NULL, "after %zu KiB: errno %d", total >> 10, errno);
		keep(n);
	}
	drop_all();
}

static void try_tight(int rung, const struct tight *c)
{
	struct churner churners[8];
	uint64_t some = 0, none = 0;
	heap = heap_make("rung=%s,hard_limit=%uM,mark_threads=2,start_size=256K", rung_names[rung], c->mib);
	struct over over = churn_all(c, churners);
	for (unsigned i = 0; i < c->threads; i++) {
		some += churners[i].got;
		none += churners[i].refused;
	}
	printf("%s, %u MiB, %u threads, %s sizes: %lu got, %lu refused; %zd KiB above the limit, RSS %zd; %lu cycles\n",
	       rung_names[rung], c->mib, c->threads, c->sizes ? "few" : "all", some, none, over.resident >> 10,
	       over.rss >> 10, stats_of(heap).cycles);
	fflush(stdout);
	ck_assert_int_le(over.resident, (ssize_t)SLACK);
	ck_assert_msg(sanitized() || over.rss <= RSS_SLACK, "RSS is %zd KiB above the limit", over.rss >> 10);
	ck_assert_msg(none <= (some + none) * c->most / 10000 + 10, "%lu of %lu refused", none, some + none);
	must_go_on((size_t)c->mib << 20);
	ck_ok(gcuffd_heap_destroy(heap));
}

START_TEST(small_limits)
{
	NEED_RUNG(_i);
	for (size_t i = 0; i < sizeof(tight) / sizeof(tight[0]); i++)
		try_tight(_i, &tight[i]);
}
END_TEST

/* Stops interrupt sleep. */
static void rest(uint64_t ns)
{
	for (uint64_t over = test_now_ns() + ns; test_now_ns() < over;)
		usleep(1000);
}

/* Cycles beside 32 MB of a list while 80 MB of garbage are made, slowly: so as many as are due, not as there is time for. */
static uint64_t cycles_of_garbage(void)
{
	uint64_t since = test_now_ns();
	must_ok(gcuffd_collect(heap));
	uint64_t cycle_ns = test_now_ns() - since, before = stats_of(heap).cycles;
	for (int i = 0; i < 100000; i++) {
		must(gcuffd_alloc(heap, 800) != NULL, "errno %d", errno);
		if (i % 1000 == 0)
			rest(cycle_ns / 6 + 1000000);
	}
	return stats_of(heap).cycles - before;
}

/* A soft limit makes cycles frequent, not allocations fail: beyond it a cycle is due after a quarter of the usual. */
START_TEST(soft_limit)
{
	uint64_t cycles[2];
	for (int soft = 0; soft < 2; soft++) {
		heap = heap_make("start_size=1M,soft_limit=%s", soft ? "16M" : "0");
		for (int i = 0; i < 40000; i++) {
			struct node *n = gcuffd_alloc(heap, 800);
			must(n != NULL, "errno %d", errno);
			keep(n);
		}
		cycles[soft] = cycles_of_garbage();
		printf("soft limit %s: %lu cycles\n", soft ? "16M" : "none", cycles[soft]);
		drop_all();
		ck_ok(gcuffd_heap_destroy(heap));
	}
	ck_assert_uint_gt(cycles[1], cycles[0]);
}
END_TEST

/* ---- what marking takes ---- */

#define TANGLED 200000u

struct tangled {
	struct tangled *edge[3];
};

/* Most of a graph without order is gray at some time. */
static void *tangle(void *arg)
{
	struct test_rng rng = test_rng(1);
	must_ok(gcuffd_thread_attach());
	struct tangled **all = gcuffd_alloc(heap, TANGLED * sizeof(*all));
	for (size_t i = 0; i < TANGLED; i++)
		all[i] = gcuffd_alloc(heap, sizeof(struct tangled));
	for (size_t i = 0; i < TANGLED * 3; i++)
		all[i / 3]->edge[i % 3] = all[test_below(&rng, TANGLED)];
	heads[0] = (struct node *)all[0];
	scrub();
	must_ok(gcuffd_thread_detach());
	return arg;
}

START_TEST(packets_are_given_back)
{
	pthread_t thread;
	heap = heap_make("pacing=0,mark_threads=1");
	ck_ok(gcuffd_collect(heap));
	must_ok(pthread_create(&thread, NULL, tangle, NULL));
	must_ok(pthread_join(thread, NULL));
	size_t before = gu_meta_used();
	ck_ok(gcuffd_collect(heap));
	ck_assert_uint_gt(stats_of(heap).live_bytes, TANGLED * sizeof(struct tangled) / 2);
	ck_assert_uint_le(gu_meta_used(), before + (64 << 10));
	drop_all();
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

/* ---- freed behind the sweep ---- */

#define PIECES 2000u
#define PIECE_LARGE ((size_t)8 << 20)
#define ROOM_AHEAD  ((size_t)12 << 20) /* brought in, not yet used */

static uint32_t sweeping, freed; /* atomic */

/* Blocks are un-armed together once all were swept. */
static long wait_after_sweeping(int fd, unsigned long request, void *arg)
{
	const struct gu_uffdio_writeprotect *wp = arg;
	if (request == GU_UFFDIO_WRITEPROTECT && !(wp->mode & GU_UFFD_WRITEPROTECT_WP) && gu_load_relaxed(&heap->phase) == GU_PHASE_MARK) {
		gu_store_seqcst(&sweeping, 1);
		while (!gu_load_seqcst(&freed))
			usleep(100);
	}
	return gu_os_linux.ioctl(fd, request, arg);
}

static void *make_garbage(void *unused)
{
	must_ok(gcuffd_thread_attach());
	for (unsigned i = 0; i < PIECES; i++)
		must(gcuffd_alloc(heap, 4000) != NULL, "errno %d", errno);
	must_ok(gcuffd_thread_detach());
	return unused;
}

static void *collect_once(void *unused)
{
	must_ok(gcuffd_collect(heap));
	return unused;
}

START_TEST(freed_behind_the_sweep)
{
	pthread_t t;
	void *pieces[PIECES];
	NEED_RUNG(_i);
	fake_install();
	heap = heap_make("rung=%s,pacing=0,decay_ms=50,verify=1", rung_names[_i]);
	for (unsigned i = 0; i < PIECES; i++)
		pieces[i] = gcuffd_alloc_atomic(heap, 4000);
	void *large = gcuffd_alloc_atomic(heap, PIECE_LARGE);
	must(large && pieces[PIECES - 1], "errno %d", errno);
	sweeping = freed = 0;
	fake_os.ioctl = wait_after_sweeping;
	must_ok(pthread_create(&t, NULL, make_garbage, NULL));
	must_ok(pthread_join(t, NULL));
	must_ok(pthread_create(&t, NULL, collect_once, NULL));
	while (!gu_load_seqcst(&sweeping))
		usleep(100);
	for (unsigned i = 0; i < PIECES; i++)
		ck_ok(gcuffd_free(heap, pieces[i]));
	ck_ok(gcuffd_free(heap, large));
	gu_store_seqcst(&freed, 1);
	must_ok(pthread_join(t, NULL));
	uint64_t cycles = stats_of(heap).cycles;
	for (unsigned i = 0; i < 1000 * check_slow() && gu_load_relaxed(&heap->space.resident) > ROOM_AHEAD; i++)
		usleep(10000);
	ck_assert_uint_le(gu_load_relaxed(&heap->space.resident), ROOM_AHEAD);
	ck_assert_uint_eq(stats_of(heap).cycles, cycles);
	verified(heap);
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

/* ---- allocation that outruns a cycle ---- */

static uint32_t held; /* 1: the next scan waits, 2: it does, 3: it may go on */

static long hold_a_scan(int fd, unsigned long request, void *arg)
{
	uint32_t want = 1;
	if (request == GU_PAGEMAP_SCAN && gu_cas_seqcst(&held, &want, 2))
		while (gu_load_seqcst(&held) == 2)
			usleep(100);
	return gu_os_linux.ioctl(fd, request, arg);
}

static void *go_on_later(void *unused)
{
	usleep(50000);
	gu_store_seqcst(&held, 3);
	return unused;
}

static uint64_t stall_of(unsigned objects)
{
	uint64_t before = stats_of(heap).stall_ns;
	for (unsigned i = 0; i < objects; i++)
		must(gcuffd_alloc(heap, 20000) != NULL, "errno %d", errno);
	return stats_of(heap).stall_ns - before;
}

/* Half of the way to the ceiling nothing, then naps, and at the ceiling until the cycle is over. */
START_TEST(outrun)
{
	pthread_t t, later;
	NEED_RUNG(GCUFFD_RUNG_ASYNC);
	fake_install();
	heap = heap_make("start_size=128M");
	must_ok(gcuffd_collect(heap)); /* the threads run */
	for (int i = 0; i < 5; i++)
		must(gcuffd_alloc(heap, 8 << 20) != NULL, "errno %d", errno);
	held = 1;
	fake_os.ioctl = hold_a_scan;
	must_ok(pthread_create(&t, NULL, collect_once, NULL));
	while (gu_load_seqcst(&held) != 2)
		usleep(100);
	uint64_t now = gu_load_relaxed(&heap->allocated);
	gu_store_seqcst(&heap->trigger, now);
	gu_store_seqcst(&heap->ceiling, now + (2 << 20));
	ck_assert_uint_eq(stall_of(10), 0);
	now = gu_load_relaxed(&heap->allocated);
	gu_store_seqcst(&heap->trigger, 0);
	gu_store_seqcst(&heap->ceiling, 2 * now);
	ck_assert_uint_gt(stall_of(10), 10 * 250000);
	gu_store_seqcst(&heap->ceiling, gu_load_relaxed(&heap->allocated));
	must_ok(pthread_create(&later, NULL, go_on_later, NULL));
	ck_assert_uint_gt(stall_of(1), 0);
	ck_assert_uint_eq(gu_load_seqcst(&held), 3);
	must_ok(pthread_join(later, NULL));
	must_ok(pthread_join(t, NULL));
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

/* Large objects that nobody writes cost nothing but room: as many as the ceiling lets through are there at once, not one for each relief. */
#define SPARSE ((size_t)64 << 20)
#define SPARSE_MOST ((uint64_t)6 << 30) /* without the ceiling 60 GiB; with it 1 to 2 */

static uint64_t sparse_end;

static void *take_sparse(void *unused)
{
	must_ok(gcuffd_thread_attach());
	while (test_now_ns() < sparse_end)
		must(gcuffd_alloc_atomic(heap, SPARSE) != NULL, "errno %d", errno);
	must_ok(gcuffd_thread_detach());
	return unused;
}

START_TEST(sparse_objects)
{
	enum { TAKERS = 3, SMALL = 100000 };
	pthread_t t[TAKERS];
	static void *small[SMALL];
	uint64_t most = 0;
	NEED_RUNG(_i);
	heap = heap_make("rung=%s,reservation=1T", rung_names[_i]);
	ck_ok(gcuffd_root_add(heap, small, sizeof(small)));
	for (int i = 0; i < 2 * SMALL; i++) /* every other one is garbage in a block that others live in */
		must((small[i / 2] = gcuffd_alloc(heap, 1000)) != NULL, "errno %d", errno);
	sparse_end = test_now_ns() + check_seconds() * 1000000000ull;
	for (int i = 0; i < TAKERS; i++)
		must_ok(pthread_create(&t[i], NULL, take_sparse, NULL));
	while (test_now_ns() < sparse_end) {
		most = gu_max(most, stats_of(heap).resident_bytes);
		usleep(200);
	}
	for (int i = 0; i < TAKERS; i++)
		must_ok(pthread_join(t[i], NULL));
	ck_assert_uint_lt(most, SPARSE_MOST);
	ck_ok(gcuffd_root_remove(heap, small));
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

/* ---- the last resort ---- */

#define FLOATING ((size_t)40 << 20)

static uint64_t floats;  /* hidden: the one object that takes most of the limit */
static uint32_t appears; /* in each cycle that marks beside the program, while it does */

/* While pages are armed somebody has it, and nobody when they are looked at again: so it is marked each time, and garbage at the end. */
static long float_while_marking(int fd, unsigned long request, void *arg)
{
	const struct gu_pm_scan_arg *scan = arg;
	if (request == GU_PAGEMAP_SCAN && scan->flags & GU_PM_SCAN_WP_MATCHING && gu_load_relaxed(&floats)) {
		bool arming = gu_load_relaxed(&heap->phase) == GU_PHASE_WINDOW;
		heads[0] = arming ? reveal(floats) : NULL;
		appears += arming;
	}
	return gu_os_linux.ioctl(fd, request, arg);
}

static void *make_floating(void *unused)
{
	must_ok(gcuffd_thread_attach());
	void *p = gcuffd_alloc_atomic(heap, FLOATING);
	must(p != NULL, "errno %d", errno);
	floats = hide(p);
	must_ok(gcuffd_thread_detach());
	return unused;
}

/* Cycles beside the program leave what was garbage only at their ends: before ENOMEM comes one that is all in a stop. */
START_TEST(last_resort)
{
	pthread_t t;
	NEED_RUNG(_i);
	fake_install();
	heap = heap_make("rung=%s,hard_limit=64M,pacing=0,verify=1", rung_names[_i]);
	ck_ok(gcuffd_collect(heap));
	must(gcuffd_alloc(heap, 100) != NULL, "errno %d", errno);
	must_ok(pthread_create(&t, NULL, make_floating, NULL));
	must_ok(pthread_join(t, NULL));
	fake_os.ioctl = float_while_marking;
	ck_ok(gcuffd_collect(heap));
	ck_ok(gcuffd_collect(heap));
	ck_assert(is_alive(heap, floats));
	appears = 0;
	ck_assert_ptr_nonnull(gcuffd_alloc_atomic(heap, FLOATING));
	ck_assert_uint_ge(appears, 2); /* it was tried otherwise first */
	ck_assert_uint_eq(stats_of(heap).last_reason, GCUFFD_REASON_NO_MEMORY);
	floats = 0;
	verified(heap);
	ck_ok(gcuffd_heap_destroy(heap));
	fake_remove();
}
END_TEST

/* ---- collection disabled ---- */

/* A cycle that became due runs at last. */
static void await_cycle(uint64_t after)
{
	for (unsigned ms = 0; stats_of(heap).cycles <= after && ms < 20000; ms++)
		usleep(1000);
	ck_assert_uint_gt(stats_of(heap).cycles, after);
}

static void *collect_on(void *quit)
{
	while (!__atomic_load_n((bool *)quit, __ATOMIC_RELAXED))
		(void)gcuffd_collect(heap);
	return NULL;
}

START_TEST(disabled)
{
	NEED_RUNG(_i);
	bool quit = false;
	pthread_t t;
	heap = heap_make("rung=%s,hard_limit=64M,verify=0", rung_names[_i]);
	ck_assert_int_eq(gcuffd_collection_enable(heap), -EINVAL);
	ck_ok(pthread_create(&t, NULL, collect_on, &quit));
	for (unsigned i = 0; i < 300; i++) {
		ck_ok(gcuffd_collection_disable(heap));
		uint64_t cycles = stats_of(heap).cycles;
		usleep(300);
		ck_assert_msg(stats_of(heap).cycles == cycles, "a cycle ran");
		ck_ok(gcuffd_collection_enable(heap));
		sched_yield();
	}
	__atomic_store_n(&quit, true, __ATOMIC_RELAXED);
	ck_ok(pthread_join(t, NULL));
	ck_ok(gcuffd_collection_disable(heap));
	ck_ok(gcuffd_collection_disable(heap));
	uint64_t cycles = stats_of(heap).cycles;
	ck_assert_int_eq(gcuffd_collect(heap), -EBUSY);
	ck_assert_uint_gt(fill(1000), LIMIT / 2);
	drop_all();
	ck_assert_ptr_null(gcuffd_alloc(heap, LIMIT / 4));
	ck_ok(gcuffd_collection_enable(heap));
	usleep(50000);
	ck_assert_uint_eq(stats_of(heap).disabled, 1);
	ck_assert_uint_eq(stats_of(heap).cycles, cycles);
	ck_ok(gcuffd_collection_enable(heap));
	await_cycle(cycles);
	ck_assert_ptr_nonnull(gcuffd_alloc(heap, LIMIT / 4));
	ck_assert_uint_eq(stats_of(heap).disabled, 0);
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

static void *allocate_past_ceiling(void *done)
{
	must_ok(gcuffd_thread_attach());
	for (uint64_t end = gu_load_relaxed(&heap->ceiling) + (4 << 20); gu_load_relaxed(&heap->allocated) < end;)
		must(gcuffd_alloc(heap, 1000) != NULL, "errno %d", errno);
	gu_store_seqcst((uint32_t *)done, 1);
	must_ok(gcuffd_thread_detach());
	return NULL;
}

/* Who waits for a cycle that is due, and does not begin, waits no more when collection is disabled. */
START_TEST(disabled_while_waited_for)
{
	NEED_RUNG(_i);
	uint32_t done = 0;
	pthread_t t;
	heap = heap_make("rung=%s,start_size=1M,verify=0", rung_names[_i]);
	ck_ok(gcuffd_collect(heap));
	gu_lock_fork(&heap->cycle_lock);
	ck_ok(pthread_create(&t, NULL, allocate_past_ceiling, &done));
	while (gu_load_relaxed(&heap->allocated) < gu_load_relaxed(&heap->ceiling) || !gu_load_seqcst(&heap->stalled))
		usleep(1000);
	usleep(50000);
	ck_assert_uint_eq(gu_load_seqcst(&done), 0);
	gu_add_seqcst(&heap->disabled, 1);
	for (unsigned ms = 0; !gu_load_seqcst(&done) && ms < 10000; ms++)
		usleep(1000);
	bool over = gu_load_seqcst(&done);
	gu_unlock_fork(&heap->cycle_lock);
	ck_assert_msg(over, "it waits while collection is disabled");
	ck_ok(gcuffd_collection_enable(heap));
	ck_ok(pthread_join(t, NULL));
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

static void *allocate_past_limit(void *done)
{
	must_ok(gcuffd_thread_attach());
	for (size_t i = 0; i < LIMIT / 4 * 3 / 1000; i++)
		must(gcuffd_alloc(heap, 1000) != NULL, "errno %d", errno);
	gu_store_seqcst((uint32_t *)done, 1);
	must_ok(gcuffd_thread_detach());
	return NULL;
}

/* Who waits for memory goes on with the first that a sweep gives back, though it is held up by an arena's lock. */
START_TEST(relieved_by_the_sweep)
{
	NEED_RUNG(_i);
	uint32_t done = 0;
	pthread_t t;
	struct gcuffd_arena *last;
	heap = heap_make("rung=%s,hard_limit=64M,start_size=60M,verify=0", rung_names[_i]);
	ck_ok(gcuffd_collect(heap)); /* from here on the next is due just below the limit */
	for (size_t i = 0; i < LIMIT / 2000; i++)
		ck_assert_ptr_nonnull(gcuffd_alloc(heap, 1000));
	ck_ok(gcuffd_arena_create(heap, "last", &last));
	ck_assert_ptr_nonnull(gcuffd_arena_alloc(last, 1000, 0, GCUFFD_CONSERVATIVE));
	gu_lock_fork(&heap->cycle_lock);
	uint64_t cycles = stats_of(heap).cycles;
	ck_ok(pthread_create(&t, NULL, allocate_past_limit, &done));
	while (!gu_load_seqcst(&heap->stalled))
		usleep(1000);
	gu_lock_fork(&last->lock);
	gu_unlock_fork(&heap->cycle_lock);
	for (unsigned ms = 0; !gu_load_seqcst(&done) && ms < 20000; ms++)
		usleep(1000);
	bool over = gu_load_seqcst(&done);
	uint64_t after = stats_of(heap).cycles;
	gu_unlock_fork(&last->lock);
	ck_ok(pthread_join(t, NULL));
	ck_assert_msg(over, "it waits for the end of the sweep");
	ck_assert_uint_eq(after, cycles);
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

/* It has become due, and begins when the lock is had that a fork holds; by then it is disabled. It runs when it is enabled again, with nothing allocated meanwhile. */
START_TEST(disabled_before_it_begins)
{
	NEED_RUNG(_i);
	heap = heap_make("rung=%s,start_size=1M,verify=0", rung_names[_i]);
	ck_ok(gcuffd_collect(heap));
	uint64_t cycles = stats_of(heap).cycles;
	gu_lock_fork(&heap->cycle_lock);
	while (gu_load_relaxed(&heap->allocated) < gu_load_relaxed(&heap->trigger))
		ck_assert_ptr_nonnull(gcuffd_alloc(heap, 1000));
	while (!gu_load_seqcst(&heap->cycle_waits))
		usleep(1000);
	gu_add_seqcst(&heap->disabled, 1);
	gu_unlock_fork(&heap->cycle_lock);
	usleep(50000);
	ck_assert_uint_eq(stats_of(heap).cycles, cycles);
	ck_ok(gcuffd_collection_enable(heap));
	await_cycle(cycles);
	ck_assert_uint_eq(stats_of(heap).cycles_put_off, 0);
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

static Suite *make_suite(void)
{
	Suite *suite = suite_create("limit");
	tcase_add_loop_test(test_case(suite, "last_resort"), last_resort, GCUFFD_RUNG_ASYNC, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(test_case(suite, "freed_behind_the_sweep"), freed_behind_the_sweep, GCUFFD_RUNG_ASYNC, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(test_case(suite, "fills_up"), fills_up, GCUFFD_RUNG_STOP, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(test_case(suite, "garbage_is_no_reason"), garbage_is_no_reason, 2 * GCUFFD_RUNG_STOP, 2 * GCUFFD_RUNG_RWP + 2);
	tcase_add_loop_test(test_case(suite, "disabled"), disabled, GCUFFD_RUNG_STOP, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(test_case(suite, "disabled_before_it_begins"), disabled_before_it_begins, GCUFFD_RUNG_STOP, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(test_case(suite, "disabled_while_waited_for"), disabled_while_waited_for, GCUFFD_RUNG_STOP, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(test_case(suite, "relieved_by_the_sweep"), relieved_by_the_sweep, GCUFFD_RUNG_STOP, GCUFFD_RUNG_RWP + 1);
	tcase_add_test(test_case(suite, "outrun"), outrun);
	tcase_add_loop_test(test_case(suite, "sparse_objects"), sparse_objects, GCUFFD_RUNG_STOP, GCUFFD_RUNG_RWP + 1);
	tcase_add_test(test_case(suite, "too_large"), too_large);
	tcase_add_test(test_case(suite, "reservation_is_used_up"), reservation_is_used_up);
	tcase_add_loop_test(test_case(suite, "threads_at_the_limit"), threads_at_the_limit, GCUFFD_RUNG_STOP, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(test_case(suite, "small_limits"), small_limits, GCUFFD_RUNG_STOP, GCUFFD_RUNG_RWP + 1);
	tcase_add_test(test_case(suite, "soft_limit"), soft_limit);
	tcase_add_test(test_case(suite, "packets_are_given_back"), packets_are_given_back);
	return suite;
}

TEST_MAIN(make_suite)
