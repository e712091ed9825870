/* SPDX-License-Identifier: MIT */
/*
 * test_stress.c - eight threads build, change, resize, free and drop linked structures while cycles run back
 * to back. Every node knows its number, every link knows the number it must find (a lost or twice
 * handed-out object shows), every byte of a node follows from its number.
 */
#include <sched.h>

#include "core.h"

#define THREADS 8
#define SLOTS 64   /* structures of a thread */
#define SHARED 32  /* structures that go from thread to thread */
#define BUFFERS 32 /* objects of one owner, freed and resized by hand */
#define LINKS 4

struct node;

struct link {
	struct node *to;
	uint64_t number; /* of the node at the other end */
};

struct node {
	uint64_t number, size, check;
	struct link links[LINKS];
	uint64_t fill[];
};

struct buffer {
	unsigned char *bytes;
	size_t size;
	unsigned char stamp;
	bool atomic;
};

struct slots {
	struct link slot[SLOTS];
};

struct stress {
	struct gcuffd_heap *heap;
	struct gcuffd_arena *arenas[3];
	struct gcuffd_type *types[2]; /* one an array, to which all behind the head are links */
	bool typed, large;
	uint32_t quit;
	uint64_t numbers;      /* atomic; last number given */
	uint64_t deadline_ns;
	pthread_mutex_t lock[SHARED];
	struct link *shared;   /* in the heap; an entry's guard: lock */
	uint64_t walked, made; /* atomic; how much was done */
};

static struct stress *volatile the_stress; /* in a data segment: a root */

struct worker {
	struct stress *s;
	struct test_rng rng;
	struct slots *slots;  /* in the heap; the worker is on its thread's stack */
	struct buffer buffers[BUFFERS];
};

/* ---- nodes ---- */

static uint64_t mix(uint64_t n)
{
	struct test_rng r = {n};
	return test_rand(&r);
}

static size_t fill_words(size_t size) { return (size - sizeof(struct node)) / 8; }

static void fill_node(struct node *n, uint64_t number, size_t size)
{
	for (size_t i = 0; i < size / 8; i++)
		must(((uint64_t *)n)[i] == 0, "a new object of %zu bytes is not zero at word %zu", size, i);
	n->number = number;
	n->size = size;
	for (size_t i = 0; i < fill_words(size); i += 1 + i / 64)
		n->fill[i] = mix(number + i) | 1ull << 63; /* no pointer */
	n->check = mix(number ^ size);
}

static void check_node(const struct node *n, uint64_t number)
{
	must(n->number == number, "node %lx at %p was lost: found number %lx", (unsigned long)number, (const void *)n,
		      (unsigned long)n->number);
	must(n->check == mix(number ^ n->size), "node %lx at %p is damaged", (unsigned long)number, (const void *)n);
	for (size_t i = 0; i < fill_words(n->size); i += 1 + i / 64)
		must(n->fill[i] == (mix(number + i) | 1ull << 63), "node %lx at %p is damaged at %zu",
			      (unsigned long)number, (const void *)n, i);
}

static size_t node_size(struct worker *w)
{
	uint64_t dice = test_below(&w->rng, 1000);
	size_t extra = test_below(&w->rng, dice < 700 ? 8 : dice < 950 ? 64 : dice < 996 ? 700 : w->s->large ? 20000 : 2500);
	return sizeof(struct node) + extra * 8;
}

static struct node *alloc_node(struct worker *w, size_t size)
{
	struct stress *s = w->s;
	struct gcuffd_arena *a = s->arenas[test_below(&w->rng, 3)];
	if (s->typed && test_below(&w->rng, 2)) {
		const struct gcuffd_type *type = s->types[test_below(&w->rng, 2)];
		return a ? gcuffd_arena_alloc_typed(a, type, size) : gcuffd_alloc_typed(s->heap, type, size);
	}
	return a ? gcuffd_arena_alloc(a, size, 0, GCUFFD_CONSERVATIVE) : gcuffd_alloc(s->heap, size);
}

static struct link new_node(struct worker *w)
{
	size_t size = node_size(w);
	uint64_t number = __atomic_add_fetch(&w->s->numbers, 1, __ATOMIC_RELAXED) | 1ull << 62;
	struct node *n = alloc_node(w, size);
	if (!n)
		return (struct link){NULL, 0};
	fill_node(n, number, size);
	__atomic_fetch_add(&w->s->made, 1, __ATOMIC_RELAXED);
	return (struct link){n, number};
}

/* ---- structures ---- */

static struct link build(struct worker *w, unsigned depth)
{
	struct link l = new_node(w);
	for (unsigned i = 0; l.to && depth && i < LINKS; i++)
		if (test_below(&w->rng, 3))
			l.to->links[i] = build(w, depth - 1);
	return l;
}

/* A node some steps down, checked on the way. */
static struct link walk_down(struct worker *w, struct link at)
{
	for (uint64_t steps = test_below(&w->rng, 12); at.to && steps; steps--) {
		check_node(at.to, at.number);
		struct link next = at.to->links[test_below(&w->rng, LINKS)];
		if (next.to)
			at = next;
	}
	if (at.to)
		check_node(at.to, at.number);
	return at;
}

/* At most budget nodes; structures may share nodes and have cycles. */
static size_t check_structure(struct link at, size_t budget)
{
	size_t used = 1;
	if (!at.to || !budget)
		return 0;
	check_node(at.to, at.number);
	for (unsigned i = 0; i < LINKS && used < budget; i++)
		used += check_structure(at.to->links[i], (budget - used) / 2);
	return used;
}

static struct link *any_slot(struct worker *w) { return &w->slots->slot[test_below(&w->rng, SLOTS)]; }

static void replace(struct worker *w) { *any_slot(w) = build(w, (unsigned)test_below(&w->rng, 5)); }
static void drop(struct worker *w) { *any_slot(w) = (struct link){NULL, 0}; }

/* Links a node of one structure into another, which may keep the whole of the first alive. */
static void join(struct worker *w)
{
	struct link from = walk_down(w, *any_slot(w)), to = walk_down(w, *any_slot(w));
	if (from.to)
		from.to->links[test_below(&w->rng, LINKS)] = to;
}

/* The only reference to a part moves from the heap to the stack and back to elsewhere. */
static void move(struct worker *w)
{
	struct link from = walk_down(w, *any_slot(w)), to = walk_down(w, *any_slot(w));
	if (!from.to || !to.to)
		return;
	struct link *slot = &from.to->links[test_below(&w->rng, LINKS)], part = *slot;
	*slot = (struct link){NULL, 0};
	if (test_below(&w->rng, 8) == 0)
		sched_yield();
	if (part.to)
		check_node(part.to, part.number);
	to.to->links[test_below(&w->rng, LINKS)] = part;
}

static void grow_leaf(struct worker *w)
{
	struct link at = walk_down(w, *any_slot(w));
	if (at.to)
		at.to->links[test_below(&w->rng, LINKS)] = build(w, 1);
}

static void exchange(struct worker *w)
{
	unsigned i = (unsigned)test_below(&w->rng, SHARED);
	struct link *mine = any_slot(w);
	pthread_mutex_lock(&w->s->lock[i]);
	struct link theirs = w->s->shared[i];
	w->s->shared[i] = *mine;
	pthread_mutex_unlock(&w->s->lock[i]);
	/* Each structure has one owner at a time: what it shares with others must not travel. */
	if (theirs.to)
		__atomic_fetch_add(&w->s->walked, check_structure(theirs, 20), __ATOMIC_RELAXED);
	*mine = (struct link){NULL, 0};
}

static void check_all(struct worker *w)
{
	for (unsigned i = 0; i < SLOTS; i++)
		__atomic_fetch_add(&w->s->walked, check_structure(w->slots->slot[i], 100), __ATOMIC_RELAXED);
}

/* ---- objects freed and resized by hand ---- */

static void check_buffer(const struct buffer *b)
{
	for (size_t i = 0; b->bytes && i < b->size; i += 1 + i / 16)
		must(b->bytes[i] == b->stamp, "buffer %p of %zu bytes is damaged at %zu", (void *)b->bytes, b->size, i);
}

static size_t buffer_size(struct worker *w)
{
	uint64_t dice = test_below(&w->rng, 100);
	return 1 + test_below(&w->rng, dice < 80 ? 500 : dice < 98 ? 10000 : w->s->large ? 300000 : 20000);
}

static void free_buffer(struct worker *w, struct buffer *b)
{
	check_buffer(b);
	void *p = b->bytes;
	b->bytes = NULL;
	must_ok(gcuffd_free(w->s->heap, p));
}

static void make_buffer(struct worker *w, struct buffer *b)
{
	b->atomic = test_below(&w->rng, 2);
	b->size = buffer_size(w);
	b->stamp = (unsigned char)(0x80 | test_rand(&w->rng));
	b->bytes = b->atomic ? gcuffd_alloc_atomic(w->s->heap, b->size) : gcuffd_alloc(w->s->heap, b->size);
	for (size_t i = 0; b->bytes && i < b->size; i++)
		must(!b->bytes[i], "a new buffer of %zu bytes is not zero at %zu", b->size, i);
	if (b->bytes)
		memset(b->bytes, b->stamp, b->size);
}

static void resize_buffer(struct worker *w, struct buffer *b)
{
	size_t size = buffer_size(w);
	unsigned char *p = gcuffd_realloc(w->s->heap, b->bytes, size);
	if (!p)
		return;
	for (size_t i = b->size; i < size; i++)
		must(!p[i], "grown from %zu to %zu, not zero at %zu", b->size, size, i);
	b->size = gcuffd_object_find(w->s->heap, p, &(struct gcuffd_object){0}) ? 0 : size < b->size ? size : b->size;
	b->bytes = p;
	check_buffer(b);
	b->size = size;
	memset(p, b->stamp, size);
}

static void use_buffers(struct worker *w)
{
	struct buffer *b = &w->buffers[test_below(&w->rng, BUFFERS)];
	check_buffer(b);
	if (!b->bytes)
		make_buffer(w, b);
	else if (test_below(&w->rng, 3) == 0)
		resize_buffer(w, b);
	else
		free_buffer(w, b);
}

/* ---- threads ---- */

static void step(struct worker *w)
{
	uint64_t dice = test_below(&w->rng, 100);
	if (dice < 15)
		replace(w);
	else if (dice < 20)
		drop(w);
	else if (dice < 28)
		join(w);
	else if (dice < 50)
		move(w);
	else if (dice < 60)
		grow_leaf(w);
	else if (dice < 62)
		exchange(w);
	else if (dice < 63)
		check_all(w);
	else
		use_buffers(w);
}

static __attribute__((noinline)) void *work(void *arg)
{
	struct worker w = *(struct worker *)arg;
	must_ok(gcuffd_thread_attach());
	w.slots = gcuffd_alloc(w.s->heap, sizeof(*w.slots));
	must(w.slots);
	while (!__atomic_load_n(&w.s->quit, __ATOMIC_RELAXED))
		step(&w);
	check_all(&w);
	must_ok(gcuffd_thread_detach());
	return NULL;
}

static void *collect(void *arg)
{
	struct stress *s = arg;
	while (!__atomic_load_n(&s->quit, __ATOMIC_RELAXED)) {
		int err = gcuffd_collect(s->heap);
		must(err == 0 || err == -ETIMEDOUT, "collect: %d", err);
	}
	return NULL;
}

static uint64_t run_threads(struct stress *s)
{
	pthread_t threads[THREADS], collector;
	static struct worker workers[THREADS];
	uint64_t peak = 0;
	for (unsigned i = 0; i < THREADS; i++) {
		workers[i] = (struct worker){.s = s, .rng = test_rng(i)};
		ck_ok(pthread_create(&threads[i], NULL, work, &workers[i]));
	}
	ck_ok(pthread_create(&collector, NULL, collect, s));
	while (goes_on(s->heap, s->deadline_ns, 4)) {
		usleep(20000);
		uint64_t now = stats_of(s->heap).resident_bytes;
		peak = now > peak ? now : peak;
	}
	__atomic_store_n(&s->quit, 1, __ATOMIC_RELAXED);
	for (unsigned i = 0; i < THREADS; i++)
		pthread_join(threads[i], NULL);
	pthread_join(collector, NULL);
	return peak;
}

static void make_types(struct stress *s)
{
	uint64_t bitmap = 0;
	for (size_t i = 0; i < LINKS; i++)
		bitmap |= 1ull << ((offsetof(struct node, links) + i * sizeof(struct link)) / 8);
	ck_ok(gcuffd_type_create(s->heap, &bitmap, sizeof(struct node) / 8, &s->types[0]));
	bitmap = 1ull << offsetof(struct node, links) / 8;
	ck_ok(gcuffd_type_create_array(s->heap, &bitmap, offsetof(struct node, links) / 8, sizeof(struct link) / 8, &s->types[1]));
}

static void run_stress(int rung, const char *options, bool variant)
{
	struct stress s = {.typed = variant, .large = variant};
	unsigned seconds = check_seconds() / 3;
	s.heap = heap_make("rung=%s,hard_limit=256M,start_size=1M,%s", rung_names[rung], options);
	for (unsigned i = 0; i < SHARED; i++)
		pthread_mutex_init(&s.lock[i], NULL);
	s.shared = gcuffd_alloc(s.heap, SHARED * sizeof(struct link));
	the_stress = &s;
	make_types(&s);
	for (unsigned i = 1; variant && i < 3; i++)
		ck_ok(gcuffd_arena_create(s.heap, "more", &s.arenas[i]));
	s.deadline_ns = test_now_ns() + check_span_ns((seconds ? seconds : 1) * 1000000000ull);
	uint64_t peak = run_threads(&s);
	memset(s.shared, 0, SHARED * sizeof(struct link));
	ck_ok(gcuffd_collect(s.heap));
	ck_ok(gcuffd_collect(s.heap));
	struct gcuffd_stats st = stats_of(s.heap);
	printf("%s %s%s: %lu cycles, %lu nodes made, %lu checked, peak %lu KiB, live at end %lu KiB, %lu put off\n", rung_names[rung],
	       options, variant ? " typed large arenas" : "", st.cycles, s.made, s.walked, peak >> 10, st.live_bytes >> 10,
	       st.cycles_put_off);
	verified(s.heap);
	ck_assert_uint_gt(st.cycles, 3);
	ck_assert_uint_le(peak, 256u << 20);
	ck_assert_uint_lt(st.live_bytes, 24u << 20); /* stacks of the dead may still say something */
	ck_ok(gcuffd_heap_destroy(s.heap));
}

START_TEST(stress_verified)
{
	NEED_RUNG(_i);
	run_stress(_i, "verify=1", false);
}
END_TEST

START_TEST(stress_verified_variety)
{
	NEED_RUNG(_i);
	run_stress(_i, "verify=1", true);
}
END_TEST

START_TEST(stress_fast)
{
	NEED_RUNG(_i);
	run_stress(_i, "", false);
}
END_TEST

START_TEST(stress_fast_variety)
{
	NEED_RUNG(_i);
	run_stress(_i, "interior=0", true);
}
END_TEST

static Suite *make_suite(void)
{
	Suite *suite = suite_create("stress");
	tcase_add_loop_test(test_case(suite, "verified"), stress_verified, GCUFFD_RUNG_STOP, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(test_case(suite, "verified_variety"), stress_verified_variety, GCUFFD_RUNG_STOP, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(test_case(suite, "fast"), stress_fast, GCUFFD_RUNG_STOP, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(test_case(suite, "fast_variety"), stress_fast_variety, GCUFFD_RUNG_STOP, GCUFFD_RUNG_RWP + 1);
	return suite;
}

TEST_MAIN(make_suite)
