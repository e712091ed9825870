/* SPDX-License-Identifier: MIT */
/* test_pub_heap.c - objects, kinds, arenas, heaps and what they give back, through the public library alone. */
#include <malloc.h>
#include <sys/resource.h>

#include "core.h"

static struct gcuffd_heap *heap;
static void *volatile keep[16]; /* a data segment */

/* ---- sizes and alignments ---- */

static void try_object(void *p, size_t size, size_t align, enum gcuffd_kind kind)
{
	struct gcuffd_object o;
	must(p != NULL, "%zu bytes: errno %d", size, errno);
	must((uintptr_t)p % align == 0, "%p: %zu bytes, not aligned to %zu", p, size, align);
	must(test_all_are(p, size, 0), "%zu bytes: not zero", size);
	must_ok(gcuffd_object_find(heap, (char *)p + size - 1, &o));
	must(o.base == p && o.size >= size && o.kind == kind, "%zu bytes: found %p of %zu kind %d", size, o.base, o.size, o.kind);
	must(test_all_are(p, o.size, 0), "%zu bytes: not zero in all of its %zu", size, o.size);
	memset(p, 0xee, o.size);
}

START_TEST(all_sizes)
{
	heap = heap_make("hard_limit=512M");
	for (size_t size = 1; size <= 20000; size += 1 + size / 300) {
		try_object(gcuffd_alloc(heap, size), size, 16, GCUFFD_CONSERVATIVE);
		try_object(gcuffd_alloc_atomic(heap, size), size, 16, GCUFFD_ATOMIC);
	}
	for (size_t size = 20000; size < 100 << 20; size = size * 3 / 2 + 1)
		try_object(gcuffd_alloc(heap, size), size, 16, GCUFFD_CONSERVATIVE);
	ck_assert_ptr_nonnull(gcuffd_alloc(heap, 0));
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

START_TEST(reused_memory_is_zero)
{
	struct test_rng rng = test_rng(5);
	heap = heap_make("start_size=1M,%s", _i ? "interior=0" : "");
	for (int round = 0; round < 6; round++) {
		for (int i = 0; i < 3000; i++) {
			size_t size = 1 + test_below(&rng, i % 100 ? 700 : 100000);
			void *p = i % 2 ? gcuffd_alloc(heap, size) : gcuffd_alloc_atomic(heap, size);
			must(p && test_all_are(p, size, 0), "%zu bytes: not zero", size);
			memset(p, 0xff, size);
			if (i % 3 == 0)
				must_ok(gcuffd_free(heap, p));
		}
		ck_ok(gcuffd_collect(heap));
	}
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

START_TEST(alignments)
{
	heap = heap_make("hard_limit=512M");
	for (size_t align = 1; align <= 2 << 20; align *= 2)
		for (size_t size = 1; size < 300000; size = size * 5 + 3) {
			try_object(gcuffd_alloc_aligned(heap, size, align, GCUFFD_CONSERVATIVE), size, align, GCUFFD_CONSERVATIVE);
			try_object(gcuffd_alloc_aligned(heap, size, align, GCUFFD_ATOMIC), size, align, GCUFFD_ATOMIC);
		}
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

/* ---- kinds ---- */

static __attribute__((noinline)) uint64_t chain(void **from)
{
	void *p = gcuffd_alloc(heap, 100);
	must(p != NULL, "no memory");
	*from = p;
	return hide(p);
}

static __attribute__((noinline)) bool alive_after(uint64_t hidden, int cycles)
{
	for (int i = 0; i < cycles; i++) {
		scrub();
		must_ok(gcuffd_collect(heap));
	}
	scrub();
	return is_alive(heap, hidden);
}

static __attribute__((noinline)) bool dies(uint64_t hidden)
{
	for (int i = 0; i < 3; i++)
		if (!alive_after(hidden, 1))
			return true;
	return false;
}

START_TEST(conservative_and_atomic)
{
	NEED_RUNG(_i);
	heap = heap_make("verify=1,rung=%s", rung_names[_i]);
	keep[0] = gcuffd_alloc(heap, 4000);
	keep[1] = gcuffd_alloc_atomic(heap, 4000);
	keep[2] = gcuffd_alloc(heap, 400000);
	uint64_t a = chain((void **)keep[0] + 499), b = chain((void **)keep[1] + 3), c = chain((void **)keep[2] + 49999);
	ck_assert(dies(b));
	ck_assert(alive_after(a, 2));
	ck_assert(alive_after(c, 1));
	((void **)keep[0])[499] = ((void **)keep[2])[49999] = NULL;
	ck_assert(dies(a));
	ck_assert(dies(c));
	verified(heap);
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

/* Words 1, 3 and 64 hold pointers. */
START_TEST(typed)
{
	NEED_RUNG(_i);
	struct gcuffd_type *type;
	struct gcuffd_object o;
	uint64_t bitmap[2] = {1ull << 1 | 1ull << 3, 1}, h[6];
	static const size_t word[6] = {0, 1, 2, 3, 64, 65};
	heap = heap_make("verify=1,rung=%s", rung_names[_i]);
	ck_ok(gcuffd_type_create(heap, bitmap, 65, &type));
	bitmap[0] = bitmap[1] = ~0ull; /* it was copied */
	for (size_t size = 600; size <= 60000; size *= 100) {
		keep[0] = gcuffd_alloc_typed(heap, type, size);
		ck_ok(gcuffd_object_find(heap, keep[0], &o));
		ck_assert_int_eq(o.kind, GCUFFD_TYPED);
		for (int i = 0; i < 6; i++)
			h[i] = chain((void **)keep[0] + word[i]);
		for (int i = 0; i < 6; i++)
			ck_assert_msg(i == 1 || i == 3 || i == 4 ? alive_after(h[i], 1) : dies(h[i]), "word %zu, %zu bytes", word[i], size);
		keep[1] = gcuffd_realloc(heap, keep[0], size * 3);
		keep[0] = NULL;
		ck_assert(alive_after(h[3], 2));
	}
	verified(heap);
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

/* In the heap only bases count where interior pointers are switched off; outside both do. */
START_TEST(interior_pointers)
{
	for (int off = 0; off < 2; off++) {
		heap = heap_make("verify=1,interior=%d", !off);
		keep[0] = gcuffd_alloc(heap, 64);
		void **in_heap = keep[0];
		uint64_t a = chain(&in_heap[0]), b = chain(&in_heap[1]), c = chain((void **)&keep[1]);
		in_heap[1] = (char *)in_heap[1] + 50;
		keep[1] = (char *)keep[1] + 99;
		in_heap = NULL;
		ck_assert(alive_after(a, 1));
		ck_assert(alive_after(c, 1));
		ck_assert(off ? dies(b) : alive_after(b, 1));
		verified(heap);
		memset((void *)keep, 0, sizeof(keep));
		ck_ok(gcuffd_heap_destroy(heap));
	}
}
END_TEST

/* One past the end is another object, unless that was asked for. */
START_TEST(past_the_end)
{
	heap = heap_make("past_end=1");
	for (size_t size = 16; size <= 65536; size *= 4) {
		uint64_t a = chain((void **)&keep[0]);
		keep[0] = gcuffd_alloc(heap, size);
		a = hide(keep[0]);
		keep[0] = (char *)keep[0] + size;
		ck_assert_msg(alive_after(a, 1), "%zu bytes", size);
	}
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

/* ---- resizing, freeing, finding ---- */

START_TEST(resizing)
{
	struct test_rng rng = test_rng(7);
	heap = heap_make("start_size=1M");
	unsigned char *p = gcuffd_realloc(heap, NULL, 10);
	size_t size = 10;
	memset(p, 0x77, size);
	for (int i = 0; i < 2000; i++) {
		size_t to = 1 + test_below(&rng, i % 50 ? 5000 : 200000), common = to < size ? to : size;
		p = gcuffd_realloc(heap, p, to);
		must(p != NULL, "to %zu", to);
		for (size_t k = 0; k < to; k++)
			must(p[k] == (k < common ? 0x77 : 0), "from %zu to %zu: byte %zu is %#x", size, to, k, p[k]);
		memset(p, 0x77, to);
		size = to;
		if (i % 200 == 0)
			ck_ok(gcuffd_collect(heap));
	}
	void *atomic = gcuffd_alloc_atomic(heap, 100);
	struct gcuffd_object o;
	ck_ok(gcuffd_object_find(heap, gcuffd_realloc(heap, atomic, 100000), &o));
	ck_assert_int_eq(o.kind, GCUFFD_ATOMIC);
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

/* ---- resizing what is sparse ---- */

#define GIB ((size_t)1 << 30)
#define TOUCHED 5
#define FEW_KB ((size_t)64 << 10) /* what touched pages may take, huge ones on both sides */

static size_t touched_at(size_t size, size_t i) { return size / TOUCHED * i / 4096 * 4096 + 77; }

/* Of size bytes, a few pages touched, zero otherwise. */
static unsigned char *make_sparse(size_t size, bool atomic)
{
	unsigned char *p = atomic ? gcuffd_alloc_atomic(heap, size) : gcuffd_alloc(heap, size);
	must(p != NULL, "errno %d", errno);
	for (size_t i = 0; i < TOUCHED; i++)
		memset(p + touched_at(size, i), (int)(i + 1), 100);
	return p;
}

/* p has what make_sparse(size) put below kept; what lies around that, and some other places, is zero. */
static void check_sparse(const unsigned char *p, size_t size, size_t kept, size_t now)
{
	must(p != NULL, "errno %d", errno);
	for (size_t i = 0; i < TOUCHED; i++) {
		size_t at = touched_at(size, i);
		if (at + 100 > kept)
			break;
		for (size_t k = 0; k < 100; k++)
			must(p[at + k] == i + 1, "byte %zu is %u", at + k, p[at + k]);
		must(test_all_are(p + at - 77, 77, 0) && test_all_are(p + at + 100, 4096 - 177, 0), "around byte %zu", at);
	}
	for (size_t at = now / 97; at < now; at += now / 97 & ~4095ul)
		must(at % 4096 < 300 || !p[at], "byte %zu is %u", at, p[at]);
	must(!p[now - 1], "the last byte is %u", p[now - 1]);
}

static void must_stay_small(size_t before, const char *what)
{
	size_t now = rss_kb();
	ck_assert_msg(now <= before + FEW_KB, "%s: RSS was %zu kB, is %zu", what, before, now);
}

/* From size to other: contents, and what it takes. */
static void resize_sparse(size_t size, size_t other, bool atomic, const char *what)
{
	size_t before = rss_kb();
	unsigned char *p = make_sparse(size, atomic);
	keep[0] = p = gcuffd_realloc(heap, p, other);
	must_stay_small(before, what);
	check_sparse(p, size, size < other ? size : other, other);
	keep[0] = NULL;
	ck_ok(gcuffd_free(heap, p));
	ck_ok(gcuffd_trim(heap));
}

/* What comes after its first 32 MiB asks for huge pages. */
static void sparse_heap(bool huge)
{
	heap = heap_make("reservation=64G,pacing=0,huge=%d", huge);
	must(gcuffd_alloc_atomic(heap, GIB / 16) != NULL, "errno %d", errno);
}

START_TEST(sparse_objects_grow)
{
	sparse_heap(_i % 2);
	resize_sparse(GIB, 2 * GIB, _i / 2, "1 to 2 GiB");
	resize_sparse(GIB + 5000, GIB * 3 + 123, _i / 2, "odd sizes");
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

START_TEST(sparse_objects_shrink)
{
	sparse_heap(_i % 2);
	resize_sparse(2 * GIB, GIB / 2, _i / 2, "2 to 1/2 GiB");
	resize_sparse(GIB, 5000000, _i / 2, "1 GiB to 5 MB");
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

/* Where it stays at its place. */
START_TEST(sparse_objects_shrink_in_place)
{
	sparse_heap(_i % 2);
	resize_sparse(GIB, GIB / 4 * 3, _i / 2, "1 to 3/4 GiB");
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

/* What shrank in place and grows again has zeros there, not its old contents. */
START_TEST(shrunk_and_grown)
{
	const size_t size = (size_t)16 << 20, part = size / 16 * 11 + 1234;
	heap = heap_make("pacing=0,huge=%d", _i);
	unsigned char *p = memset(gcuffd_alloc(heap, size), 0x77, size);
	keep[0] = p;
	ck_assert_ptr_eq(gcuffd_realloc(heap, p, part), p);
	for (size_t to = part; to <= 2 * size; to += size / 3) {
		keep[0] = p = gcuffd_realloc(heap, p, to);
		must(p && p[0] == 0x77 && !memcmp(p, p + 1, part - 1), "to %zu: errno %d", to, errno);
		must(test_all_are(p + part, to - part, 0), "to %zu: not zero", to);
	}
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

/* After cycles its pages are armed, and those that the marker read are the zero page. */
START_TEST(sparse_objects_that_were_marked)
{
	NEED_RUNG(_i);
	NO_SANITIZER("its shadow is memory too");
	heap = heap_make("rung=%s,reservation=64G,pacing=0,huge=0", rung_names[_i]);
	size_t before = rss_kb();
	unsigned char *p = make_sparse(GIB / 2, false);
	keep[0] = p;
	uint64_t last = chain((void **)(p + GIB / 4));
	ck_assert(alive_after(last, 2));
	keep[0] = p = gcuffd_realloc(heap, p, GIB);
	must_stay_small(before, "after cycles");
	check_sparse(p, GIB / 2, GIB / 2, GIB);
	ck_assert(alive_after(last, 1));
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

static uint32_t quit;

static void *collect_always(void *unused)
{
	(void)unused;
	while (!__atomic_load_n(&quit, __ATOMIC_RELAXED))
		must_ok(gcuffd_collect(heap));
	return NULL;
}

/* Resized when a cycle has armed it, and may have marked some of it. */
static void resize_in_cycles(void)
{
	struct test_rng rng = test_rng(11);
	const size_t size = GIB / 8;
	for (int i = 0; i < 10; i++) {
		size_t before = rss_kb();
		unsigned char *p = make_sparse(size, false);
		keep[0] = p;
		usleep((useconds_t)test_below(&rng, 20000));
		keep[0] = p = gcuffd_realloc(heap, p, 2 * size);
		size_t after = rss_kb();
		check_sparse(p, size, size, 2 * size);
		ck_assert_msg(after <= before + 16 * 1024, "RSS was %zu kB, is %zu", before, after);
		keep[0] = p = NULL;
		ck_ok(gcuffd_collect(heap));
		ck_ok(gcuffd_trim(heap));
	}
}

START_TEST(sparse_objects_in_cycles)
{
	NEED_RUNG(_i);
	NO_SANITIZER("its shadow is memory too");
	pthread_t t;
	heap = heap_make("rung=%s,reservation=64G,pacing=0,huge=0,start_size=32G", rung_names[_i]);
	quit = 0;
	must_ok(pthread_create(&t, NULL, collect_always, NULL));
	resize_in_cycles();
	__atomic_store_n(&quit, 1, __ATOMIC_RELAXED);
	pthread_join(t, NULL);
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

/* Then everything is copied. */
START_TEST(resizing_without_descriptors)
{
	const size_t size = (size_t)24 << 20;
	struct rlimit old, none;
	sparse_heap(_i);
	must_ok(gcuffd_collect(heap)); /* its threads have what they need */
	unsigned char *p = make_sparse(size, false), *q = memset(gcuffd_alloc(heap, size), 0x55, size);
	ck_assert_int_eq(getrlimit(RLIMIT_NOFILE, &old), 0);
	none = (struct rlimit){0, old.rlim_max};
	ck_assert_int_eq(setrlimit(RLIMIT_NOFILE, &none), 0);
	ck_assert_int_eq(dup(0), -1);
	p = gcuffd_realloc(heap, p, 2 * size);
	q = gcuffd_realloc(heap, q, 2 * size);
	unsigned char *small = q ? gcuffd_realloc(heap, q, size / 4) : NULL;
	ck_assert_int_eq(setrlimit(RLIMIT_NOFILE, &old), 0);
	check_sparse(p, size, size, 2 * size);
	ck_assert(small && small[0] == 0x55 && !memcmp(small, small + 1, size / 4 - 1));
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

START_TEST(finding)
{
	struct gcuffd_object o;
	struct gcuffd_arena *arena;
	heap = heap_make("");
	ck_ok(gcuffd_arena_create(heap, "one", &arena));
	char *p = gcuffd_alloc(heap, 1000), *q = gcuffd_arena_alloc(arena, 100000, 0, GCUFFD_ATOMIC);
	for (size_t i = 0; i < 1000; i++) {
		ck_ok(gcuffd_object_find(heap, p + i, &o));
		must(o.base == p && o.size >= 1000, "at %zu", i);
	}
	ck_ok(gcuffd_object_find(heap, q + 99999, &o));
	ck_assert_ptr_eq(o.base, q);
	ck_assert_ptr_eq(o.arena, arena);
	ck_assert_int_eq(gcuffd_object_find(heap, &o, &o), -ENOENT);
	ck_assert_int_eq(gcuffd_object_find(heap, NULL, &o), -ENOENT);
	ck_ok(gcuffd_free(heap, p));
	ck_assert_int_eq(gcuffd_object_find(heap, p, &o), -ENOENT);
	ck_ok(gcuffd_free(heap, NULL));
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

/* ---- several heaps, and what they leave ---- */

static unsigned count_maps(void)
{
	FILE *f = fopen("/proc/self/maps", "r");
	unsigned n = 0;
	for (int c; (c = getc(f)) != EOF;)
		n += c == '\n';
	fclose(f);
	return n;
}

static void fill(struct gcuffd_heap *h, size_t bytes)
{
	for (size_t n = 0; n < bytes; n += 1000)
		memset(gcuffd_alloc(h, 1000), 1, 1000);
	memset(gcuffd_alloc(h, bytes / 4), 1, bytes / 4);
}

static void several(void)
{
	struct gcuffd_heap *h[8];
	for (int i = 0; i < 8; i++) {
		h[i] = heap_make("start_size=1M");
		fill(h[i], 8 << 20);
		must_ok(gcuffd_collect(h[i]));
	}
	for (int i = 0; i < 8; i++)
		must_ok(gcuffd_heap_destroy(h[i]));
}

START_TEST(heaps_give_everything_back)
{
	mallopt(M_ARENA_MAX, 1); /* libc's are not ours */
	several();
	several();
	size_t rss = rss_kb(), size = status_kb("VmSize:"), threads = settled_threads(1);
	unsigned maps = count_maps();
	for (int i = 0; i < 8; i++)
		several();
	ck_assert_uint_le(rss_kb(), rss + 4096);
	ck_assert_uint_le(status_kb("VmSize:"), size + 8192);
	ck_assert_uint_eq(settled_threads(threads), threads);
	ck_assert_uint_le(count_maps(), maps + 8);
}
END_TEST

START_TEST(heaps_are_apart)
{
	struct gcuffd_heap *a = heap_make(""), *b = heap_make("");
	struct gcuffd_object o;
	void *p = gcuffd_alloc(a, 100);
	ck_ok(gcuffd_object_find(a, p, &o));
	ck_assert_int_eq(gcuffd_object_find(b, p, &o), -ENOENT);
	ck_assert_int_eq(gcuffd_free(b, p), -EINVAL);
	ck_ok(gcuffd_heap_destroy(b));
	ck_ok(gcuffd_free(a, p));
	ck_ok(gcuffd_heap_destroy(a));
}
END_TEST

START_TEST(as_many_heaps_as_promised)
{
	static struct gcuffd_heap *h[64], *more;
	for (int i = 0; i < 64; i++) {
		ck_ok(heap_try(&h[i], "reservation=64M"));
		ck_ok(i ? 0 : gcuffd_thread_attach());
		ck_assert_ptr_nonnull(gcuffd_alloc(h[i], 100));
	}
	ck_assert_int_eq(heap_try(&more, "reservation=64M"), -EMFILE);
	for (int i = 0; i < 64; i++)
		ck_ok(gcuffd_heap_destroy(h[i]));
	ck_ok(heap_try(&more, "reservation=64M"));
	ck_ok(gcuffd_heap_destroy(more));
}
END_TEST

/* ---- arenas ---- */

static struct gcuffd_arena_stats arena_stats(struct gcuffd_arena *a)
{
	struct gcuffd_arena_stats s = {.size = sizeof(s)};
	must_ok(gcuffd_arena_stats(a, &s));
	return s;
}

START_TEST(arenas)
{
	NEED_RUNG(_i);
	struct gcuffd_arena *a, *b;
	heap = heap_make("verify=1,rung=%s", rung_names[_i]);
	ck_ok(gcuffd_arena_create(heap, "a", &a));
	ck_ok(gcuffd_arena_create(heap, NULL, &b));
	keep[0] = gcuffd_arena_alloc(b, 100, 0, GCUFFD_CONSERVATIVE);
	strcpy(keep[0], "still here");
	for (int round = 0; round < 20; round++) {
		for (int i = 0; i < 2000; i++) {
			char *p = gcuffd_arena_alloc(a, 1 + (size_t)i % 800, 0, i % 2 ? GCUFFD_ATOMIC : GCUFFD_CONSERVATIVE);
			must(p && test_all_are(p, 1 + (size_t)i % 800, 0), "not zero");
			memset(p, 0xff, 1 + (size_t)i % 800);
		}
		keep[1] = gcuffd_arena_alloc(a, 1 << 20, 4096, GCUFFD_ATOMIC);
		memset(keep[1], 0xff, 1 << 20);
		struct gcuffd_arena_stats s = arena_stats(a);
		ck_assert_uint_ge(s.active, 1 << 20);
		ck_assert_uint_ge(s.blocks, 2);
		ck_assert_uint_ge(s.large_objects, 1);
		if (round % 2)
			ck_ok(gcuffd_collect(heap));
		keep[1] = NULL;
		ck_ok(gcuffd_arena_reset(a));
		s = arena_stats(a);
		ck_assert_uint_eq(s.active, 0);
		ck_assert_uint_eq(s.dirty, 0);
		ck_assert_uint_eq(s.blocks + s.large_objects, 0);
	}
	ck_ok(gcuffd_arena_destroy(a));
	ck_ok(gcuffd_collect(heap));
	ck_assert_str_eq(keep[0], "still here");
	verified(heap);
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

START_TEST(many_arenas)
{
	static struct gcuffd_arena *a[256];
	heap = heap_make("");
	for (int round = 0; round < 2; round++) {
		int n = 0;
		while (n < 256 && !gcuffd_arena_create(heap, "x", &a[n]))
			must(gcuffd_arena_alloc(a[n++], 10, 0, GCUFFD_ATOMIC) != NULL, "arena %d", n);
		ck_assert_int_ge(n, 255);
		struct gcuffd_arena *more;
		ck_assert_int_eq(gcuffd_arena_create(heap, "x", &more), -ENOSPC);
		while (n--)
			ck_ok(gcuffd_arena_destroy(a[n]));
	}
	struct gcuffd_object o;
	ck_ok(gcuffd_object_find(heap, gcuffd_alloc(heap, 1), &o));
	ck_assert_int_eq(gcuffd_arena_reset(o.arena), -EINVAL);
	ck_assert_int_eq(gcuffd_arena_destroy(o.arena), -EINVAL);
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

/* ---- memory goes back to the OS by itself ---- */

static __attribute__((noinline)) void peak_by_free(void)
{
	enum { N = 20000 };
	void **p = gcuffd_alloc(heap, N * sizeof(*p));
	for (int i = 0; i < N; i++)
		p[i] = memset(gcuffd_alloc_atomic(heap, 4000), 1, 4000);
	for (int i = 0; i < N; i++)
		must_ok(gcuffd_free(heap, p[i]));
	must_ok(gcuffd_free(heap, p));
}

/* On a thread of its own: a word left behind on the stack would keep it all. */
static void *peak_by_dropping(void *unused)
{
	must_ok(gcuffd_thread_attach());
	void **p = gcuffd_alloc(heap, 20000 * sizeof(*p));
	keep[0] = p;
	for (int i = 0; i < 20000; i++)
		p[i] = memset(gcuffd_alloc(heap, 4000), 1, 4000);
	keep[0] = NULL;
	must_ok(gcuffd_thread_detach());
	return unused;
}

static size_t settled_rss(size_t goal)
{
	size_t rss = 0;
	for (int i = 0; i < 400 && (rss = rss_kb()) > goal; i++)
		usleep(50000);
	return rss;
}

START_TEST(decays)
{
	NO_SANITIZER("it keeps copies of pointers");
	heap = heap_make("start_size=1M,decay_ms=200,%s", _i == 0 ? "pacing=0" : "");
	must_ok(gcuffd_collect(heap)); /* its threads are there */
	size_t before = rss_kb();
	if (_i == 2) {
		pthread_t t;
		ck_ok(pthread_create(&t, NULL, peak_by_dropping, NULL));
		ck_ok(pthread_join(t, NULL));
		ck_ok(gcuffd_collect(heap));
	} else {
		peak_by_free();
	}
	struct gcuffd_stats st = stats_of(heap);
	size_t peak = status_kb("VmHWM:"), after = settled_rss(before + 12 * 1024);
	ck_assert_uint_ge(peak, before + 60 * 1024);
	ck_assert_msg(after <= before + 12 * 1024, "%zu kB before, %zu at the peak, %zu after; live %lu, freed %lu of %lu in %lu cycles", before, peak, after,
		      st.live_bytes, st.freed_bytes, st.allocated_bytes, st.cycles);
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

START_TEST(trim)
{
	heap = heap_make("decay_ms=100000,pacing=0");
	size_t before = rss_kb();
	peak_by_free();
	ck_assert_uint_ge(rss_kb(), before + 40 * 1024);
	ck_ok(gcuffd_trim(heap));
	ck_assert_uint_le(rss_kb(), before + 12 * 1024);
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

/* The heap's own account of its memory against the kernel's. */
START_TEST(resident_account)
{
	heap = heap_make("huge=0");
	size_t rss = rss_kb() << 10;
	uint64_t before = stats_of(heap).resident_bytes;
	for (int i = 0; i < 40; i++)
		keep[i % 16] = memset(gcuffd_alloc(heap, 1 << 20), 1, 1 << 20);
	uint64_t mine;
	size_t theirs;
	do { /* memory may go back to the system in between */
		mine = stats_of(heap).resident_bytes - before;
		theirs = (rss_kb() << 10) - rss;
	} while (stats_of(heap).resident_bytes - before != mine);
	ck_assert_msg(mine + (4 << 20) > theirs && mine < theirs + (4 << 20), "%lu accounted, %zu resident", mine, theirs);
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

#define ADD(name) tcase_add_test(test_case(suite, #name), name)
#define ADD_LOOP(name, n) tcase_add_loop_test(test_case(suite, #name), name, 0, n)
#define ADD_RUNGS(name) tcase_add_loop_test(test_case(suite, #name), name, GCUFFD_RUNG_STOP, GCUFFD_RUNG_RWP + 1)

static Suite *make_suite(void)
{
	Suite *suite = suite_create("heap");
	ADD(all_sizes);
	tcase_add_loop_test(test_case(suite, "reused_memory_is_zero"), reused_memory_is_zero, 0, 2);
	ADD(alignments);
	ADD_RUNGS(conservative_and_atomic);
	ADD_RUNGS(typed);
	ADD(interior_pointers);
	ADD(past_the_end);
	ADD(resizing);
	ADD_LOOP(sparse_objects_grow, 4);
	ADD_LOOP(sparse_objects_shrink, 4);
	ADD_LOOP(sparse_objects_shrink_in_place, 4);
	ADD_LOOP(shrunk_and_grown, 2);
	ADD_RUNGS(sparse_objects_that_were_marked);
	ADD_RUNGS(sparse_objects_in_cycles);
	ADD_LOOP(resizing_without_descriptors, 2);
	ADD(finding);
	ADD(heaps_give_everything_back);
	ADD(heaps_are_apart);
	ADD(as_many_heaps_as_promised);
	ADD_RUNGS(arenas);
	ADD(many_arenas);
	tcase_add_loop_test(test_case(suite, "decays"), decays, 0, 3);
	ADD(trim);
	ADD(resident_account);
	return suite;
}

TEST_MAIN(make_suite)
