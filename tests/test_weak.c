/* SPDX-License-Identifier: MIT */
/*
 * test_weak.c - weak references: they keep nothing alive, are cleared when their object goes, by whatever way, and never lead to another one
 * that took its place; what get returns stays, in the middle of a cycle too. Ephemerons: a value lives as long as its key.
 */
#define _GNU_SOURCE
#include "cold.h"

#include <signal.h>
#include <sys/wait.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

#include "fake_os.h"
#include "gc/mutator.h"
#include "gc/stop.h"
#include "gc/weak.h"

#define STAMP 0xfeedface12345678u

static void begin(int rung) { heap = heap_make("rung=%s,verify=1", rung_names[rung]); }

static void end(void)
{
	gu_weak_check(heap);
	verified(heap);
	ck_ok(gcuffd_heap_destroy(heap));
}

/* A new object of its own size class, to which nothing but the reference leads. */
static __attribute__((noinline)) struct gcuffd_weak *make_lost(size_t size)
{
	struct gcuffd_weak *weak;
	uint64_t *o = gcuffd_alloc(heap, size);
	must(o != NULL, "errno %d", errno);
	o[0] = STAMP;
	must_ok(gcuffd_weak_create(heap, o, &weak));
	must(gcuffd_weak_get(heap, weak) == o, "another object");
	return weak;
}

static __attribute__((noinline)) bool leads_on(const struct gcuffd_weak *weak)
{
	const uint64_t *o = gcuffd_weak_get(heap, weak);
	must(!o || *o == STAMP, "it leads to %#lx", (unsigned long)*o);
	return o;
}

static __attribute__((noinline)) void collect(void)
{
	scrub();
	must_ok(gcuffd_collect(heap));
	scrub();
}

/* Not under a sanitizer: it keeps copies of pointers on stacks. */
static __attribute__((noinline)) void must_die(const struct gcuffd_weak *weak)
{
	for (int i = 0; i < 3 && leads_on(weak); i++)
		collect();
	must(sanitized() || !leads_on(weak), "it is still there");
}

static const size_t sizes[] = {16, 100, 4096, 100000, 5000000};

/* ---- when they are cleared ---- */

START_TEST(keep_nothing_alive)
{
	NEED_RUNG(_i);
	struct gcuffd_weak *weak[GU_ARRAY_LEN(sizes)];
	begin(_i);
	for (size_t i = 0; i < GU_ARRAY_LEN(sizes); i++)
		weak[i] = make_lost(sizes[i]);
	for (size_t i = 0; i < GU_ARRAY_LEN(sizes); i++)
		must_die(weak[i]);
	for (size_t i = 0; i < GU_ARRAY_LEN(sizes); i++)
		ck_ok(gcuffd_weak_destroy(heap, weak[i]));
	end();
}
END_TEST

static void *volatile held;
static __attribute__((noinline)) void hold(struct gcuffd_weak *weak) { held = gcuffd_weak_get(heap, weak); }

START_TEST(last_while_the_object_does)
{
	NEED_RUNG(_i);
	begin(_i);
	for (size_t i = 0; i < GU_ARRAY_LEN(sizes); i++) {
		struct gcuffd_weak *weak = make_lost(sizes[i]);
		hold(weak);
		for (int k = 0; k < 3; k++) {
			collect();
			must(leads_on(weak), "cleared, though the object of %zu bytes is there", sizes[i]);
		}
		held = NULL;
		must_die(weak);
	}
	end();
}
END_TEST

/* ---- freed by hand ---- */

START_TEST(freed_objects)
{
	NEED_RUNG(_i);
	begin(_i);
	for (size_t i = 0; i < GU_ARRAY_LEN(sizes); i++) {
		struct gcuffd_weak *weak[3];
		char *o = gcuffd_alloc(heap, sizes[i]);
		for (size_t k = 0; k < 3; k++)
			ck_ok(gcuffd_weak_create(heap, o, &weak[k]));
		ck_ok(gcuffd_free(heap, o));
		for (int k = 0; k < 1000 && sizes[i] < 65536; k++) /* one of them takes its place */
			ck_assert_ptr_nonnull(gcuffd_alloc(heap, sizes[i]));
		for (size_t k = 0; k < 3; k++)
			ck_assert_ptr_null(gcuffd_weak_get(heap, weak[k]));
		gu_weak_check(heap);
		ck_ok(gcuffd_weak_set(heap, weak[1], gcuffd_alloc(heap, sizes[i])));
		ck_assert_ptr_nonnull(gcuffd_weak_get(heap, weak[1]));
	}
	end();
}
END_TEST

START_TEST(moved_by_realloc)
{
	struct gcuffd_weak *weak;
	begin(GCUFFD_RUNG_AUTO);
	char *o = gcuffd_alloc(heap, 100), *same;
	ck_ok(gcuffd_weak_create(heap, o, &weak));
	same = gcuffd_realloc(heap, o, 101);
	ck_assert_ptr_eq(same, o);
	ck_assert_ptr_eq(gcuffd_weak_get(heap, weak), o);
	held = gcuffd_realloc(heap, o, 100000);
	ck_assert_ptr_nonnull(held);
	ck_assert_ptr_null(gcuffd_weak_get(heap, weak));
	end();
}
END_TEST

START_TEST(arenas)
{
	struct gcuffd_weak *weak[2];
	struct gcuffd_arena *arena;
	begin(GCUFFD_RUNG_AUTO);
	ck_ok(gcuffd_arena_create(heap, "short", &arena));
	for (int i = 0; i < 2; i++) {
		ck_ok(gcuffd_weak_create(heap, gcuffd_arena_alloc(arena, 64, 0, GCUFFD_CONSERVATIVE), &weak[0]));
		ck_ok(gcuffd_weak_create(heap, held = gcuffd_alloc(heap, 64), &weak[1]));
		ck_ok(i ? gcuffd_arena_destroy(arena) : gcuffd_arena_reset(arena));
		ck_assert_ptr_null(gcuffd_weak_get(heap, weak[0]));
		ck_assert_ptr_eq(gcuffd_weak_get(heap, weak[1]), held);
	}
	held = NULL;
	end();
}
END_TEST

/* ---- mistakes ---- */

static void *without_attaching(void *weak)
{
	struct gcuffd_weak *other;
	errno = 0;
	must(!gcuffd_weak_get(heap, weak) && errno == EPERM, "errno %d", errno);
	must(gcuffd_weak_create(heap, weak, &other) == -EPERM, "it was made");
	must(gcuffd_weak_set(heap, weak, NULL) == -EPERM, "it was set");
	return NULL;
}

START_TEST(mistakes)
{
	struct gcuffd_weak *weak, *other;
	pthread_t thread;
	begin(GCUFFD_RUNG_AUTO);
	char *o = gcuffd_alloc(heap, 100);
	ck_assert_int_eq(gcuffd_weak_set(heap, (struct gcuffd_weak *)o, o), -EINVAL);
	ck_assert_int_eq(gcuffd_weak_create(heap, o + 8, &weak), -ENOENT);
	ck_assert_int_eq(gcuffd_weak_create(heap, &weak, &weak), -ENOENT);
	ck_assert_int_eq(gcuffd_weak_create(heap, NULL, &weak), -ENOENT);
	ck_ok(gcuffd_weak_create(heap, o, &weak));
	ck_assert_int_eq(gcuffd_weak_set(heap, weak, o + 8), -ENOENT);
	ck_assert_ptr_eq(gcuffd_weak_get(heap, weak), o);
	ck_ok(gcuffd_weak_set(heap, weak, NULL));
	ck_assert_ptr_null(gcuffd_weak_get(heap, weak));
	must_ok(pthread_create(&thread, NULL, without_attaching, weak));
	must_ok(pthread_join(thread, NULL));
	ck_ok(gcuffd_weak_destroy(heap, weak));
	ck_assert_int_eq(gcuffd_weak_destroy(heap, weak), -EINVAL);
	ck_assert_int_eq(gcuffd_weak_set(heap, weak, o), -EINVAL);
	errno = 0;
	ck_assert_ptr_null(gcuffd_weak_get(heap, (struct gcuffd_weak *)((char *)weak + 8)));
	ck_assert_int_eq(errno, EINVAL);
	ck_ok(gcuffd_weak_create(heap, o, &other));
	ck_assert_ptr_eq(other, weak); /* the place is used again */
	end();
}
END_TEST

/* ---- many ---- */

#define MANY 200000

START_TEST(many)
{
	begin(GCUFFD_RUNG_AUTO);
	struct gcuffd_weak **weak = calloc(MANY, sizeof(*weak));
	void **objects = held = gcuffd_alloc(heap, MANY / 2 * sizeof(void *));
	for (size_t i = 0; i < MANY; i++) {
		uint64_t *o = gcuffd_alloc(heap, 32);
		o[0] = i;
		if (i % 2)
			objects[i / 2] = o;
		ck_ok(gcuffd_weak_create(heap, o, &weak[i]));
	}
	collect();
	collect();
	size_t wrong = 0, left = 0;
	for (size_t i = 0; i < MANY; i++) {
		const uint64_t *o = gcuffd_weak_get(heap, weak[i]);
		wrong += i % 2 && (!o || *o != i);
		left += !(i % 2) && o;
	}
	ck_assert_uint_eq(wrong, 0);
	ck_assert_uint_le(left, 16); /* stray pointers */
	gu_weak_check(heap);
	for (size_t i = 0; i < MANY; i += 3)
		ck_ok(gcuffd_weak_destroy(heap, weak[i]));
	gu_weak_check(heap);
	free(weak);
	end();
}
END_TEST

static uint64_t cpu_ns(void)
{
	struct timespec t;
	must_ok(clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t));
	return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

/* No stop begins in a call: an index that is made anew would take as long as all that is in it. */
START_TEST(many_one_by_one)
{
	struct gcuffd_weak *weak;
	if (check_slow() > 1)
		GU_SKIP("%s", "it is a matter of no rung, and of time");
	uint32_t *least = malloc(MANY * 6 * sizeof(*least)), longest = 0;
	for (int run = 0; run < 2; run++) { /* a host that takes the processor away does so elsewhere in the other run */
		heap = heap_make("pacing=0");
		for (size_t i = 0; i < MANY * 6; i++) {
			void *o = gcuffd_alloc(heap, 16);
			uint64_t since = cpu_ns();
			must_ok(gcuffd_weak_create(heap, o, &weak));
			uint32_t took = (uint32_t)gu_min(cpu_ns() - since, UINT32_MAX);
			least[i] = run && least[i] < took ? least[i] : took;
		}
		gu_weak_check(heap);
		end();
	}
	for (size_t i = 0; i < MANY * 6; i++)
		longest = gu_max(longest, least[i]);
	printf("the longest took %u us\n", longest / 1000);
	ck_assert_uint_le(longest, 12000000ull * check_slow());
	free(least);
}
END_TEST

/* ---- in the middle of cycles ---- */

#define THREADS 4
#define SLOTS 256
#define SIZES 4

struct thing {
	uint64_t stamp; /* which slot, and when; 0 when it was freed by hand */
	uint64_t fill[];
};

struct shared {
	struct gcuffd_weak *weak[SLOTS]; /* constant */
	pthread_mutex_t lock[SLOTS];
	uint64_t stamp[SLOTS];           /* guard: lock; of the object that weak was set to last */
	uint64_t end_ns, cleared, read;  /* cleared, read: atomic */
};

static struct shared shared;

/* Its object is the only one with the stamp: another means that one died unseen, and its place was taken. */
static void read_one(size_t i, struct thing **keep)
{
	pthread_mutex_lock(&shared.lock[i]);
	struct thing *o = gcuffd_weak_get(heap, shared.weak[i]);
	must(!o || o->stamp == shared.stamp[i], "slot %zu leads to %lx instead of %lx", i, (unsigned long)o->stamp, (unsigned long)shared.stamp[i]);
	pthread_mutex_unlock(&shared.lock[i]);
	__atomic_add_fetch(o ? &shared.read : &shared.cleared, 1, __ATOMIC_RELAXED);
	*keep = o;
}

static void replace_one(size_t i, uint64_t stamp, struct test_rng *rng)
{
	struct thing *o = gcuffd_alloc(heap, (size_t)24 << test_below(rng, SIZES));
	must(o != NULL, "errno %d", errno);
	o->stamp = stamp;
	pthread_mutex_lock(&shared.lock[i]);
	must_ok(gcuffd_weak_set(heap, shared.weak[i], o));
	shared.stamp[i] = stamp;
	pthread_mutex_unlock(&shared.lock[i]);
}

/* Nobody else may have it: under the lock, and only if it is not kept by the one who frees. */
static void *use_them(void *arg)
{
	uint64_t number = (uintptr_t)arg, stamp = number << 48;
	struct test_rng rng = test_rng(number);
	struct thing *kept[16] = {NULL};
	uint64_t stamps[16] = {0};
	must_ok(gcuffd_thread_attach());
	while (test_now_ns() < shared.end_ns)
		for (int n = 0; n < 100; n++) {
			size_t i = test_below(&rng, SLOTS), k = test_below(&rng, 16);
			if (kept[k])
				must(kept[k]->stamp == stamps[k], "what was kept is %lx", (unsigned long)kept[k]->stamp);
			read_one(i, &kept[k]);
			stamps[k] = kept[k] ? kept[k]->stamp : 0;
			if (!kept[k] || test_below(&rng, 4) == 0)
				replace_one(i, ++stamp, &rng);
		}
	must_ok(gcuffd_thread_detach());
	return NULL;
}

/* Threads of it, until the time, while cycles run. */
static void run_beside_cycles(void *(*fn)(void *))
{
	pthread_t thread[THREADS];
	shared.end_ns = test_now_ns() + check_seconds() * 1000000000ull / 2;
	for (size_t i = 0; i < THREADS; i++)
		must_ok(pthread_create(&thread[i], NULL, fn, (void *)(i + 1)));
	do {
		ck_ok(gcuffd_collect(heap));
		gu_weak_check(heap);
	} while (goes_on(heap, shared.end_ns, 3));
	for (size_t i = 0; i < THREADS; i++)
		must_ok(pthread_join(thread[i], NULL));
}

START_TEST(get_against_cycles)
{
	NEED_RUNG(_i);
	begin(_i);
	for (size_t i = 0; i < SLOTS; i++) {
		pthread_mutex_init(&shared.lock[i], NULL);
		ck_ok(gcuffd_weak_create(heap, gcuffd_alloc(heap, 32), &shared.weak[i]));
		ck_ok(gcuffd_weak_set(heap, shared.weak[i], NULL));
	}
	run_beside_cycles(use_them);
	ck_assert_uint_gt(shared.read, 0);
	ck_assert_uint_gt(shared.cleared, 0);
	end();
}
END_TEST

/* ---- ephemerons ---- */

/* The key is held, and nothing but the reference leads to the value. */
static __attribute__((noinline)) struct gcuffd_weak *make_pair(size_t key_size, size_t value_size)
{
	struct gcuffd_weak *weak = make_lost(key_size);
	uint64_t *value = gcuffd_alloc(heap, value_size);
	value[0] = STAMP;
	hold(weak);
	must_ok(gcuffd_weak_bind(heap, weak, held, value));
	return weak;
}

static __attribute__((noinline)) bool has_value(const struct gcuffd_weak *weak)
{
	void *key;
	const uint64_t *value = gcuffd_weak_value(heap, weak, &key);
	must(!value == !key, "one of key %p and value %p was cleared", key, (const void *)value);
	must(!value || *value == STAMP, "the value is %#lx", (unsigned long)*value);
	return value;
}

START_TEST(values_live_with_their_keys)
{
	NEED_RUNG(_i);
	begin(_i);
	for (size_t i = 0; i < GU_ARRAY_LEN(sizes); i++) {
		struct gcuffd_weak *weak = make_pair(sizes[i], sizes[GU_ARRAY_LEN(sizes) - 1 - i]);
		for (int k = 0; k < 3; k++) {
			collect();
			must(has_value(weak), "cleared, though its key of %zu bytes is there", sizes[i]);
		}
		held = NULL;
		for (int k = 0; k < 3 && has_value(weak); k++)
			collect();
		must(sanitized() || !has_value(weak), "it is still there");
		ck_ok(gcuffd_weak_destroy(heap, weak));
	}
	end();
}
END_TEST

#define LINKS 300000
#define RINGS 1000

/* Each is the value of the one before, and the last one has no pointer. In a ring, the first one is the value of the last. */
static __attribute__((noinline)) void *make_chain(struct gcuffd_weak **weak, size_t n, bool ring)
{
	void *first = gcuffd_alloc(heap, 16), *key = first;
	for (size_t i = 0; i < n; i++) {
		void *next = ring && i == n - 1 ? first : gcuffd_alloc(heap, 16);
		must_ok(gcuffd_weak_create(heap, key, &weak[i]));
		must_ok(gcuffd_weak_bind(heap, weak[i], key, next));
		key = next;
	}
	return first;
}

static size_t count_left(struct gcuffd_weak **weak, size_t n)
{
	size_t left = 0;
	for (size_t i = 0; i < n; i++)
		left += gcuffd_weak_get(heap, weak[i]) != NULL;
	return left;
}

/* In quadratic time it would take hours. */
START_TEST(chains_and_rings)
{
	heap = heap_make("mark_threads=3");
	struct gcuffd_weak **weak = calloc(LINKS, sizeof(*weak));
	held = make_chain(weak, LINKS, false);
	collect();
	ck_assert_uint_eq(count_left(weak, LINKS), LINKS);
	held = NULL;
	collect();
	collect();
	if (!sanitized())
		ck_assert_uint_eq(count_left(weak, LINKS), 0);
	for (size_t i = 0; i < LINKS; i++)
		ck_ok(gcuffd_weak_destroy(heap, weak[i]));
	for (size_t i = 0; i < RINGS; i++)
		(void)make_chain(weak + i * 3, 3, true);
	ck_assert_uint_eq(count_left(weak, RINGS * 3), RINGS * 3);
	collect();
	collect();
	ck_assert_uint_le(count_left(weak, RINGS * 3), 3 * 8); /* stray pointers */
	free(weak);
	end();
}
END_TEST

/* An old value goes from a key that may not be marked yet to one that may be (.inv.weak.late). */
static __attribute__((noinline)) void swap_values(struct gcuffd_weak **weak, uint64_t **keys, size_t i, size_t k)
{
	void *one = gcuffd_weak_value(heap, weak[i], NULL), *other = gcuffd_weak_value(heap, weak[k], NULL);
	uint64_t number = keys[i][0];
	must_ok(gcuffd_weak_bind(heap, weak[i], keys[i], other));
	must_ok(gcuffd_weak_bind(heap, weak[k], keys[k], one));
	keys[i][0] = keys[k][0];
	keys[k][0] = number;
}

/* Of each pair the thread keeps the key alone; pairs are bound, and keys are bound to other values, at any time of a cycle. */
static void *use_pairs(void *arg)
{
	struct test_rng rng = test_rng((uintptr_t)arg);
	struct gcuffd_weak *weak[SLOTS];
	uint64_t **keys = gcuffd_thread_attach() ? NULL : gcuffd_alloc(heap, SLOTS * sizeof(*keys));
	must(keys != NULL, "errno %d", errno);
	for (size_t i = 0; i < SLOTS; i++) {
		keys[i] = gcuffd_alloc(heap, 16);
		must_ok(gcuffd_weak_create(heap, keys[i], &weak[i]));
	}
	for (uint64_t number = 1; number % 100 || test_now_ns() < shared.end_ns; number++) {
		size_t i = test_below(&rng, SLOTS);
		void *key;
		const uint64_t *value = gcuffd_weak_value(heap, weak[i], &key);
		must(!value || key == keys[i], "another key");
		must(!value == !keys[i][0], "value %p of number %lu", (const void *)value, (unsigned long)keys[i][0]);
		must(!value || *value == keys[i][0], "value %lu of %lu", (unsigned long)*value, (unsigned long)keys[i][0]);
		if (number > SLOTS && test_below(&rng, 4)) {
			swap_values(weak, keys, i, test_below(&rng, SLOTS));
			continue;
		}
		if (test_below(&rng, 3) == 0)
			keys[i] = gcuffd_alloc(heap, (size_t)16 << test_below(&rng, SIZES));
		uint64_t *new = gcuffd_alloc(heap, (size_t)16 << test_below(&rng, SIZES));
		must(keys[i] && new, "errno %d", errno);
		new[0] = keys[i][0] = number;
		must_ok(gcuffd_weak_bind(heap, weak[i], keys[i], new));
	}
	__asm__ volatile("" : : "r"(keys) : "memory");
	must_ok(gcuffd_thread_detach());
	return NULL;
}

START_TEST(pairs_against_cycles)
{
	NEED_RUNG(_i);
	begin(_i);
	run_beside_cycles(use_pairs);
	end();
}
END_TEST

/* ---- a cell that is another's in the middle of a get ---- */

#if defined(__x86_64__)
#define TRAP_FLAG 0x100
#define STEPS_MOST 2000

/* guard: the thread, which makes steps */
static struct {
	unsigned steps, at;
	struct gcuffd_weak *weak;
	uintptr_t key, value; /* bound by the cell's next owner; 0: it makes no reference */
} recycling;

/* What the sweep, and a thread that allocates, do with a cell that has no mark. */
static void recycle(void)
{
	struct gu_block *b = gu_block_at(&heap->space, recycling.key);
	uint32_t cell;
	must(b && gu_block_cell(b, recycling.key, &cell), "no block");
	uint64_t bit = 1ull << (cell & 63);
	gu_weak_clear_cells(heap, b, cell >> 6, bit);
	gu_and_seqcst(&b->bits[cell >> 6].start, ~bit);
	gu_or_seqcst(&b->bits[cell >> 6].mark, bit);
	gu_or_seqcst(&b->bits[cell >> 6].start, bit);
	if (recycling.value)
		must_ok(gu_weak_set(heap, recycling.weak, (struct gu_weak_pair){recycling.key, recycling.value}));
}

static void on_step(int sig, siginfo_t *info, void *context)
{
	(void)sig, (void)info;
	if (recycling.steps++ == recycling.at)
		recycle();
	if (recycling.steps > STEPS_MOST)
		((ucontext_t *)context)->uc_mcontext.gregs[REG_EFL] &= ~TRAP_FLAG;
}

static __attribute__((noinline)) struct gu_weak_pair stepped_get(void)
{
	void *key;
	__asm__ volatile("pushfq\n\torq %0, (%%rsp)\n\tpopfq" : : "i"(TRAP_FLAG) : "memory", "cc");
	void *value = gcuffd_weak_value(heap, recycling.weak, &key);
	__asm__ volatile("pushfq\n\tandq %0, (%%rsp)\n\tpopfq" : : "i"(~TRAP_FLAG) : "memory", "cc");
	return (struct gu_weak_pair){(uintptr_t)key, (uintptr_t)value};
}

/*
 * Between the second stop and the end of the sweep, at each instruction of a get of an object without a mark: the get finds nothing, or what the
 * cell's next owner bound, of which the value too (.inv.weak.decided).
 */
START_TEST(recycled_under_a_get)
{
	struct sigaction act = {.sa_sigaction = on_step, .sa_flags = SA_SIGINFO}, old;
	NO_SANITIZER("it makes a get many instructions");
	begin(GCUFFD_RUNG_AUTO);
	void *volatile values[2] = {gcuffd_alloc(heap, 16), gcuffd_alloc(heap, 16)};
	ck_ok(sigaction(SIGTRAP, &act, &old));
	for (recycling.at = 0; !recycling.at || recycling.steps > recycling.at; recycling.at++) {
		recycling.weak = make_lost(64);
		recycling.key = (uintptr_t)gcuffd_weak_get(heap, recycling.weak);
		recycling.value = _i ? (uintptr_t)values[1] : 0;
		ck_ok(gcuffd_weak_bind(heap, recycling.weak, (void *)recycling.key, values[0]));
		recycling.steps = 0;
		gu_weak_state_set(heap, GU_WEAK_DECIDED);
		struct gu_weak_pair got = stepped_get();
		gu_weak_state_set(heap, GU_WEAK_OPEN);
		if (!recycling.steps)
			GU_SKIP("no single steps here");
		must(recycling.steps < STEPS_MOST, "too many steps");
		must(got.key == (got.value ? recycling.key : 0) && got.value == (got.value ? recycling.value : 0),
		     "at step %u of %u: key %#lx and value %#lx", recycling.at, recycling.steps, (unsigned long)got.key, (unsigned long)got.value);
		ck_ok(gcuffd_weak_destroy(heap, recycling.weak));
	}
	ck_ok(sigaction(SIGTRAP, &old, NULL));
	ck_assert_uint_gt(recycling.at, 20);
	end();
}
END_TEST
#endif

/* ---- when it is not known yet ---- */

static void *decide_later(void *arg)
{
	usleep(50000);
	gu_weak_state_set(heap, (enum gu_weak_state)(uintptr_t)arg);
	return NULL;
}

/* As between the end of the second stop and the news whether it has to be made again; the object has no mark. */
START_TEST(not_decided)
{
	pthread_t thread;
	begin(GCUFFD_RUNG_AUTO);
	struct gcuffd_weak *weak = make_lost(64);
	hold(weak);
	for (int decided = 0; decided < 2; decided++) {
		gu_weak_state_set(heap, GU_WEAK_MAYBE);
		must_ok(pthread_create(&thread, NULL, decide_later, (void *)(uintptr_t)(decided ? GU_WEAK_DECIDED : GU_WEAK_OPEN)));
		uint64_t start = test_now_ns();
		ck_assert_int_eq(leads_on(weak), !decided);
		ck_assert_uint_ge(test_now_ns() - start, 40000000);
		must_ok(pthread_join(thread, NULL));
	}
	gu_weak_state_set(heap, GU_WEAK_OPEN);
	end();
}
END_TEST

/* ---- at given moments of a cycle ---- */

static struct gcuffd_weak *watched;
static unsigned maybe, decided, wrong_reads;

/* The collector looks at the clock when the second stop is over, and again when that is known to have been the last one. */
static uint64_t look_on(void)
{
	enum gu_weak_state state = gu_load_seqcst(&heap->weak_state);
	struct gu_weak_pair pair;
	if (!gu_self && gu_load_seqcst(&heap->phase) == GU_PHASE_MARK && state != GU_WEAK_OPEN) {
		int got = gu_weak_read(heap, watched, &pair);
		wrong_reads += got != (state == GU_WEAK_MAYBE) || pair.key;
		*(state == GU_WEAK_MAYBE ? &maybe : &decided) += 1;
	}
	return gu_os_linux.clock_ns();
}

/* From the end of the second stop on a get does not return what is about to be swept (.inv.weak.decided). */
START_TEST(decided_from_the_stop_on)
{
	NO_SANITIZER("it keeps copies of pointers on stacks");
	NEED_RUNG(_i);
	heap = heap_make("rung=%s", rung_names[_i]);
	watched = make_lost(64);
	maybe = decided = wrong_reads = 0;
	fake_install();
	fake_os.clock_ns = look_on;
	collect();
	fake_remove();
	ck_assert(!leads_on(watched));
	ck_assert_uint_gt(maybe, 0);
	ck_assert_uint_gt(decided, 0);
	ck_assert_uint_eq(wrong_reads, 0);
	end();
}
END_TEST

static uint64_t late_value;
static uint32_t spins;

static void *spin(void *unused)
{
	must_ok(gcuffd_thread_attach());
	gu_store_seqcst(&spins, 1);
	while (gu_load_seqcst(&spins))
		;
	must_ok(gcuffd_thread_detach());
	return unused;
}

/* As a thread does that is asked to stop for the second time, in a section. */
static int bind_late(pid_t pid, pid_t tid, int sig)
{
	if (sig == gu_stop_signal() && gu_load_seqcst(&heap->phase) == GU_PHASE_MARK && !maybe++)
		must_ok(gu_weak_set(heap, watched, (struct gu_weak_pair){(uintptr_t)held, (uintptr_t)reveal(late_value)}));
	return gu_os_linux.tgkill(pid, tid, sig);
}

static __attribute__((noinline)) void make_value(void)
{
	uint64_t *value = gcuffd_alloc(heap, 64);
	*value = STAMP;
	late_value = hide(value);
}

/* A key that is marked by then gets a value that nothing else leads to (.inv.weak.late). */
START_TEST(bound_before_the_second_stop)
{
	NEED_RUNG(_i);
	pthread_t t;
	heap = heap_make("rung=%s", rung_names[_i]);
	held = gcuffd_alloc(heap, 64);
	ck_ok(gcuffd_weak_create(heap, held, &watched));
	make_value();
	ck_ok(pthread_create(&t, NULL, spin, NULL));
	while (!gu_load_seqcst(&spins))
		usleep(1000);
	maybe = 0;
	fake_install();
	fake_os.tgkill = bind_late;
	collect();
	fake_remove();
	gu_store_seqcst(&spins, 0);
	ck_ok(pthread_join(t, NULL));
	ck_assert_uint_gt(maybe, 0);
	ck_assert(is_alive(heap, late_value));
	ck_assert_uint_eq(*(uint64_t *)gcuffd_weak_value(heap, watched, NULL), STAMP);
	held = NULL;
	end();
}
END_TEST

/* ---- cold objects, and children ---- */

START_TEST(cold_objects)
{
	cold_heap("");
	size_t n = 20000;
	struct gcuffd_weak **weak = calloc(n, sizeof(*weak));
	void **objects = held = gcuffd_alloc(heap, n * sizeof(void *));
	for (size_t i = 0; i < n; i++) {
		objects[i] = gcuffd_alloc(heap, 512);
		((uint64_t *)objects[i])[0] = i;
		ck_ok(gcuffd_weak_create(heap, objects[i], &weak[i]));
		ck_ok(gcuffd_weak_bind(heap, weak[i], objects[i], gcuffd_alloc(heap, 16)));
	}
	memset(objects, 0, n / 2 * sizeof(void *));
	ck_assert_uint_gt(cool_all(), 0);
	size_t lost = 0, left = 0;
	collect();
	collect();
	for (size_t i = 0; i < n; i++) {
		bool there = gcuffd_weak_value(heap, weak[i], NULL);
		lost += i >= n / 2 && !there;
		left += i < n / 2 && there;
	}
	struct gcuffd_cold_stats s = cold_of(heap);
	ck_assert_uint_eq(lost, 0);
	ck_assert_uint_le(left, 16);
	ck_assert_msg(s.restored_pages <= 32, "%lu pages came back", (unsigned long)s.restored_pages); /* the table of objects */
	gu_weak_check(heap);
	free(weak);
	checked();
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

START_TEST(children)
{
	NEED_RUNG(_i);
	begin(_i);
	struct gcuffd_weak *weak = make_lost(64), *dying = make_lost(64);
	hold(weak);
	pid_t child = fork();
	if (!child) {
		collect();
		collect();
		gu_weak_check(heap);
		_exit(leads_on(weak) && (sanitized() || !leads_on(dying)) ? 0 : 1);
	}
	int status;
	ck_assert_int_eq(waitpid(child, &status, 0), child);
	ck_assert_int_eq(status, 0);
	must_die(dying);
	must(leads_on(weak), "cleared in the parent");
	end();
}
END_TEST

static Suite *make_suite(void)
{
	Suite *suite = suite_create("weak");
	TCase *each = test_case(suite, "each"), *one = test_case(suite, "one");
	tcase_add_loop_test(each, keep_nothing_alive, GCUFFD_RUNG_STOP, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(each, last_while_the_object_does, GCUFFD_RUNG_STOP, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(each, freed_objects, GCUFFD_RUNG_STOP, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(each, get_against_cycles, GCUFFD_RUNG_STOP, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(each, values_live_with_their_keys, GCUFFD_RUNG_STOP, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(each, pairs_against_cycles, GCUFFD_RUNG_STOP, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(each, decided_from_the_stop_on, GCUFFD_RUNG_STOP, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(each, bound_before_the_second_stop, GCUFFD_RUNG_ASYNC, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(each, children, GCUFFD_RUNG_STOP, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(each, cold_objects, GCUFFD_RUNG_MOVE, GCUFFD_RUNG_RWP + 1);
	tcase_add_test(one, moved_by_realloc);
	tcase_add_test(one, arenas);
	tcase_add_test(one, mistakes);
	tcase_add_test(one, many);
	tcase_add_test(one, many_one_by_one);
	tcase_add_test(one, chains_and_rings);
	tcase_add_test(one, not_decided);
#if defined(__x86_64__)
	tcase_add_loop_test(one, recycled_under_a_get, 0, 2);
#endif
	return suite;
}

TEST_MAIN(make_suite)
