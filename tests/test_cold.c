/* SPDX-License-Identifier: MIT */
/*
 * test_cold.c - pages that are taken out and come back: what was on them, who may touch them, what marking sees of them, and
 * what happens to them when their objects die, heaps end, or the process forks.
 */
#define COLD_OPTIONS ",verify=1"
#include "cold.h"

#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "ctl/tier.h"
#include "fake_os.h"
#include "gc/mutator.h"
#include "gc/summary.h"
#include "space/block.h"
#include "sys/uapi.h"

#define NODES 20000u

static struct node *keep, *volatile drop; /* roots */

START_TEST(out_and_back)
{
	cold_heap("");
	struct node *list = make_list(NODES, 0);
	size_t taken = cool_all();
	ck_assert_uint_gt(taken, NODES * sizeof(*list) / GU_PAGE * 9 / 10);
	ck_assert_uint_eq(cold_of(heap).out_pages, taken);
	checked();
	check_list(list, NODES, 0);
	struct gcuffd_cold_stats s = cold_of(heap);
	ck_assert_uint_eq(s.restored_pages + s.out_pages, taken);
	ck_assert_uint_lt(s.out_pages, 4); /* with other cells */
	checked();
	ck_ok(gcuffd_collect(heap));
	checked();
	check_list(list, NODES, 0);
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

/* Not by their numbers in the table of the service threads. */
START_TEST(the_programs_files_stay)
{
	int fds[16];
	cold_heap(",store_memory=1M,store_file=64M");
	uint64_t *noise = gcuffd_alloc_atomic(heap, (size_t)8 << 20);
	struct test_rng rng = test_rng(3);
	for (size_t i = 0; i < (8u << 20) / 8; i++)
		noise[i] = test_rand(&rng);
	keep = (void *)noise; /* a cycle may be under way, and nobody reads it again */
	cool_all();
	ck_assert_uint_gt(cold_of(heap).store_file_bytes, 0);
	keep = NULL;
	for (int i = 0; i < 16; i++)
		fds[i] = dup(STDERR_FILENO);
	ck_ok(gcuffd_heap_destroy(heap));
	for (int fd = 0; fd < 3; fd++)
		ck_assert_int_ge(fcntl(fd, F_GETFD), 0);
	for (int i = 0; i < 16; i++)
		ck_assert_int_ge(fcntl(fds[i], F_GETFD), 0);
}
END_TEST

START_TEST(warmed)
{
	cold_heap("");
	struct node *list = make_list(NODES, 0);
	size_t taken = cool_all();
	ck_ok(gcuffd_warm(heap, NULL, 0));
	ck_assert_uint_eq(cold_of(heap).out_pages, 0);
	ck_assert_uint_eq(cold_of(heap).restored_pages, taken);
	checked();
	check_list(list, NODES, 0);
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

/* Full collections bring back nothing, keep what only cold pages point to, and free what is dead there. */
START_TEST(collected_where_it_is)
{
	cold_heap("");
	keep = make_list(NODES, 0);
	drop = make_list(NODES, 7);
	size_t taken = cool_all();
	drop = NULL;
	for (int i = 0; i < 3; i++)
		ck_ok(gcuffd_collect(heap));
	struct gcuffd_cold_stats s = cold_of(heap);
	ck_assert_uint_eq(s.restored_pages, 0);
	ck_assert_uint_eq(s.collector_pages, 0);
	ck_assert_uint_gt(s.dropped_pages, taken / 4);
	ck_assert_uint_eq(s.out_pages, taken - s.dropped_pages);
	checked();
	check_list(keep, NODES, 0);
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

/* ---- pages that die in blocks that live ---- */

#define DEAD_BLOCKS 40u

static uint64_t *rows[DEAD_BLOCKS][GU_BLOCK / 64]; /* roots, the block's objects in order */

static void await_dropped(uint64_t want)
{
	for (int ms = 0; cold_of(heap).dropped_pages < want && ms < 20000 * (int)check_slow(); ms += 10)
		usleep(10000);
}

/* All objects of each block that lie on these pages of it. */
static void each_on(size_t from, size_t to, void (*fn)(uint64_t **object))
{
	for (size_t b = 0; b < DEAD_BLOCKS; b++)
		for (size_t i = from * GU_PAGE / 64; i < to * GU_PAGE / 64; i++)
			fn(&rows[b][i]);
}

static void free_one(uint64_t **object)
{
	must_ok(gcuffd_free(heap, *object));
	*object = NULL;
}

static void forget_one(uint64_t **object) { *object = NULL; }

static void check_one(uint64_t **object) { must(**object == hide(*object), "%#lx", (unsigned long)**object); }

/* Whole blocks, so that each page's objects are known. */
static void make_rows(void)
{
	size_t b = 0;
	while (b < DEAD_BLOCKS) {
		uint64_t *p = gcuffd_alloc(heap, 64);
		must(p != NULL, "errno %d", errno);
		const struct gu_block *block = gu_block_at(&heap->space, (uintptr_t)p);
		size_t i = ((uintptr_t)p - block->start) / 64;
		if (i < GU_ARRAY_LEN(rows[b]))
			rows[b][i] = p;
		*p = hide(p);
		b += i == GU_ARRAY_LEN(rows[b]) - 1 && rows[b][0];
	}
	for (int i = 0; i < 5000; i++) /* the last one is nobody's own */
		must(gcuffd_alloc(heap, 64) != NULL, "errno %d", errno);
}

static void check_blocks(void)
{
	gu_evictor_fork_prepare(heap);
	gu_lock_fork(&heap->cycle_lock);
	for (size_t b = 0; b < DEAD_BLOCKS; b++)
		gu_block_check(&heap->space, gu_block_at(&heap->space, (uintptr_t)rows[b][0]));
	gu_unlock_fork(&heap->cycle_lock);
	gu_evictor_fork_parent(heap);
	checked();
}

static void check_shed(struct gcuffd_cold_stats before)
{
	await_dropped(before.dropped_pages + 2 * DEAD_BLOCKS);
	struct gcuffd_cold_stats s = cold_of(heap);
	ck_assert_uint_ge(s.dropped_pages, before.dropped_pages + 2 * DEAD_BLOCKS);
	ck_assert_uint_eq(s.restored_pages, before.restored_pages);
	ck_assert_uint_eq(s.collector_pages, 0);
	ck_assert_uint_eq(s.store_reads, 0);
	ck_assert_uint_eq(s.out_pages, before.out_pages - (s.dropped_pages - before.dropped_pages));
	for (int ms = 0; cold_of(heap).store_pages > s.out_pages && ms < 10000; ms += 10) /* slots are leftovers */
		usleep(10000);
	ck_assert_uint_le(cold_of(heap).store_pages, s.out_pages);
	check_blocks();
}

/* Their cells, and only they, are handed out again, zero. */
static void check_reuse(void)
{
	ck_ok(gcuffd_warm(heap, NULL, 0));
	for (int i = 0; i < 3; i++)
		ck_ok(gcuffd_collect(heap));
	each_on(0, 3, check_one);
	each_on(5, 16, check_one);
	for (size_t i = 0; i < 4 * DEAD_BLOCKS * GU_BLOCK / 64; i++) {
		uint64_t *p = gcuffd_alloc(heap, 64);
		must(p != NULL && test_all_are((char *)p, 64, 0), "%p", (void *)p);
		*p = hide(p);
		const struct gu_block *block = gu_block_at(&heap->space, (uintptr_t)p);
		size_t at = ((uintptr_t)p - block->start) / 64;
		for (size_t b = 0; b < DEAD_BLOCKS; b++)
			if (gu_block_at(&heap->space, (uintptr_t)rows[b][0]) == block && !rows[b][at])
				rows[b][at] = p;
	}
	size_t reused = 0;
	for (size_t b = 0; b < DEAD_BLOCKS; b++)
		for (size_t i = 3 * GU_PAGE / 64; i < 5 * GU_PAGE / 64; i++)
			reused += rows[b][i] != NULL;
	printf("%zu cells of %zu handed out again\n", reused, DEAD_BLOCKS * 2 * GU_PAGE / 64);
	ck_assert_uint_gt(reused, DEAD_BLOCKS * GU_PAGE / 64);
	ck_ok(gcuffd_collect(heap));
	each_on(0, 3, check_one);
	each_on(5, 16, check_one);
	check_blocks();
}

START_TEST(freed_pages_are_dropped)
{
	cold_heap(",pacing=0");
	make_rows();
	ck_ok(gcuffd_collect(heap));
	cool_all();
	struct gcuffd_cold_stats before = cold_of(heap);
	ck_assert(is_out(rows[0][200]) && is_out(rows[DEAD_BLOCKS - 1][200]));
	each_on(3, 5, free_one);
	check_shed(before);
	check_reuse();
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

START_TEST(dead_pages_are_dropped)
{
	cold_heap(",pacing=0");
	make_rows();
	ck_ok(gcuffd_collect(heap));
	cool_all();
	struct gcuffd_cold_stats before = cold_of(heap);
	each_on(3, 5, forget_one);
	scrub();
	ck_ok(gcuffd_collect(heap));
	check_shed(before);
	check_reuse();
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

/* What is dead before it is taken out is given back at once: the store never sees it. */
START_TEST(dead_pages_are_not_stored)
{
	cold_heap(",pacing=0");
	make_rows();
	ck_ok(gcuffd_collect(heap));
	uintptr_t dead = (uintptr_t)rows[7][3 * GU_PAGE / 64];
	size_t resident = heap->space.resident;
	each_on(3, 5, free_one);
	cool_all();
	ck_assert_uint_ge(resident - heap->space.resident, 2 * DEAD_BLOCKS * GU_PAGE);
	ck_assert(!is_out((void *)dead) && is_out(rows[7][500]));
	unsigned char there = 1;
	ck_ok(mincore((void *)dead, GU_PAGE, &there) ? -errno : 0);
	ck_assert_uint_eq(there & 1, 0);
	check_blocks();
	check_reuse();
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

/* ---- kinds of objects ---- */

#define BIG ((size_t)3 << 20)

struct shapes {
	struct node *volatile *typed;  /* words 1 and 300 are pointers */
	uint64_t *atomic;
	struct node **big;             /* a pointer each 64 KiB */
	struct node **large_typed;
};

static struct shapes *shapes; /* a root */

static void make_shapes(void)
{
	uint64_t bits[5] = {1ull << 1, 0, 0, 0, 1ull << (300 - 256)}, many[8] = {0};
	struct gcuffd_type *type, *large;
	many[7] = 1ull << 63;
	ck_ok(gcuffd_type_create(heap, bits, 301, &type));
	ck_ok(gcuffd_type_create(heap, many, 512, &large));
	shapes = gcuffd_alloc(heap, sizeof(*shapes));
	shapes->typed = gcuffd_alloc_typed(heap, type, 5000);
	shapes->atomic = gcuffd_alloc_atomic(heap, 10000);
	shapes->big = gcuffd_alloc(heap, BIG);
	shapes->large_typed = gcuffd_alloc_typed(heap, large, 100000);
	must(shapes->typed && shapes->atomic && shapes->big && shapes->large_typed, "errno %d", errno);
	shapes->typed[1] = make_list(100, 1);
	shapes->typed[300] = make_list(100, 300);
	for (size_t i = 0; i < 1250; i++)
		shapes->atomic[i] = i * i;
	for (size_t i = 0; i < BIG / 65536; i++)
		shapes->big[i * 8192 + i] = make_list(10, i);
	shapes->large_typed[511] = make_list(10, 511);
}

static void check_shapes(void)
{
	check_list(shapes->typed[1], 100, 1);
	check_list(shapes->typed[300], 100, 300);
	for (size_t i = 0; i < 1250; i++)
		ck_assert_uint_eq(shapes->atomic[i], i * i);
	for (size_t i = 0; i < BIG / 65536; i++)
		check_list(shapes->big[i * 8192 + i], 10, i);
	check_list(shapes->large_typed[511], 10, 511);
}

/* Words that no type names keep nothing alive, out or not. */
START_TEST(all_kinds)
{
	cold_heap("");
	make_shapes();
	uint64_t hidden = hide(make_list(1, 0)), untyped = hide(make_list(1, 0));
	shapes->atomic[1249] = 1249ull * 1249;
	shapes->atomic[3] = 9;
	shapes->typed[7] = reveal(untyped);
	for (int i = 0; i < 3; i++) {
		ck_assert_uint_gt(cool_all(), 2);
		struct gcuffd_cold_stats before = cold_of(heap);
		ck_ok(gcuffd_collect(heap));
		ck_ok(gcuffd_collect(heap));
		ck_assert_uint_eq(cold_of(heap).restored_pages, before.restored_pages);
		checked();
		check_shapes();
		make_list(100, 0);
	}
	(void)hidden;
	shapes = NULL;
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

/* ---- marking by what lies in the store ---- */

#define LEAVES 72000u
#define TYPE 1024u       /* words */
#define TYPED (32u * TYPE)

static void **volatile plain_index, **volatile typed_index[TYPED / TYPE]; /* roots */
static uint64_t leaves[LEAVES];

static unsigned count_alive(unsigned from, unsigned step)
{
	unsigned n = 0;
	for (unsigned i = from; i < LEAVES; i += step)
		n += is_alive(heap, leaves[i]);
	return n;
}

/* The last leaves are typed objects': every other word of these is a pointer, and the others look like some. */
static void **leaf_at(unsigned i)
{
	unsigned k = i - (LEAVES - TYPED);
	return i < LEAVES - TYPED ? &plain_index[i] : &typed_index[k / TYPE][k % TYPE];
}

static __attribute__((noinline)) void make_indexes(void)
{
	struct gcuffd_type *type;
	uint64_t bits[TYPE / 64];
	memset(bits, 0x55, sizeof(bits));
	ck_ok(gcuffd_type_create(heap, bits, TYPE, &type));
	plain_index = gcuffd_alloc(heap, LEAVES * sizeof(void *));
	for (unsigned i = 0; i < TYPED / TYPE; i++)
		typed_index[i] = gcuffd_alloc_typed(heap, type, TYPE * sizeof(void *));
	for (unsigned i = 0; i < LEAVES; i++) {
		void **leaf = leaf_at(i);
		*leaf = gcuffd_alloc_atomic(heap, 32);
		*(uint64_t *)*leaf = i;
		leaves[i] = hide(*leaf);
	}
}

static void check_indexes(bool peeks)
{
	const unsigned typed = LEAVES - TYPED;
	make_indexes();
	scrub_stack();
	cool_all();
	ck_assert(is_out((void *)plain_index) && is_out((void *)typed_index[0]));
	struct gcuffd_cold_stats before = cold_of(heap), after;
	ck_assert_msg((before.summary_bytes < LEAVES / 2) == peeks, "%lu bytes", (unsigned long)before.summary_bytes);
	ck_ok(gcuffd_collect(heap));
	checked();
	ck_ok(gcuffd_collect(heap));
	checked();
	after = cold_of(heap);
	ck_assert_uint_eq(after.restored_pages, before.restored_pages);
	ck_assert_int_eq(after.peeked_pages > LEAVES * sizeof(void *) / GU_PAGE, peeks);
	ck_assert_uint_eq(count_alive(0, 1), typed + count_alive(typed, 1));
	ck_assert_uint_eq(count_alive(typed, 2), TYPED / 2);
	ck_assert_uint_lt(count_alive(typed + 1, 2), 4);
	plain_index = NULL;
	scrub_stack();
	ck_ok(gcuffd_collect(heap));
	checked();
	ck_assert_uint_lt(count_alive(0, 1) - count_alive(typed, 1), 4);
	ck_assert_uint_eq(cold_of(heap).restored_pages, before.restored_pages);
	for (unsigned i = typed; i < LEAVES; i += 2)
		ck_assert_uint_eq(*(uint64_t *)*leaf_at(i), i);
	memset((void *)typed_index, 0, sizeof(typed_index));
	ck_ok(gcuffd_heap_destroy(heap));
}

START_TEST(read_in_the_store)
{
	cold_heap("");
	check_indexes(true);
}
END_TEST

/* From a file nothing is read for marking. */
START_TEST(summaries_beside_a_file)
{
	cold_heap(",store_memory=1M,store_file=64M");
	check_indexes(false);
}
END_TEST

/* ---- what programs do with memory that is out ---- */

START_TEST(system_calls)
{
	int p[2];
	cold_heap("");
	char *from = gcuffd_alloc_atomic(heap, 60000), *to = gcuffd_alloc_atomic(heap, 60000);
	for (size_t i = 0; i < 60000; i++)
		from[i] = (char)(i * 7);
	ck_assert_int_eq(socketpair(AF_UNIX, SOCK_STREAM, 0, p), 0);
	for (int i = 0; i < 3; i++) {
		ck_assert_uint_ge(cool_all(), 13);
		ck_assert(is_out(from + 30000));
		ck_assert_int_eq(write(p[1], from, 60000), 60000);
		ck_assert_int_eq(recv(p[0], to, 60000, MSG_WAITALL), 60000);
		ck_assert_int_eq(memcmp(from, to, 60000), 0);
	}
	cool_all();
	ck_assert_int_eq(syscall(SYS_getrandom, to, 60000, 0), 60000);
	ck_assert_int_ne(memcmp(from, to, 60000), 0);
	checked();
	close(p[0]);
	close(p[1]);
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

START_TEST(pinned)
{
	cold_heap("");
	char *a = gcuffd_alloc_aligned(heap, 16 * GU_PAGE, GU_PAGE, GCUFFD_CONSERVATIVE);
	memset(a, 5, 16 * GU_PAGE);
	ck_ok(gcuffd_pin(a + 3 * GU_PAGE, 2 * GU_PAGE));
	ck_assert_uint_gt(cool_all(), 13);
	for (size_t i = 0; i < 16; i++)
		ck_assert_int_eq(is_out(a + i * GU_PAGE), i != 3 && i != 4);
	ck_ok(gcuffd_pin(a + 8 * GU_PAGE, 1));
	ck_assert(!is_out(a + 8 * GU_PAGE));
	cool_all();
	ck_assert(!is_out(a + 8 * GU_PAGE));
	ck_ok(gcuffd_unpin(a + 8 * GU_PAGE, 1));
	ck_ok(gcuffd_unpin(a + 3 * GU_PAGE, 2 * GU_PAGE));
	cool_all();
	ck_assert(is_out(a + 3 * GU_PAGE) && is_out(a + 8 * GU_PAGE));
	ck_assert(test_all_are(a, 16 * GU_PAGE, 5));
	checked();
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

/* Conservative and typed objects on two pages, of which one is out: marked through both, and nothing comes in (.inv.mark.outside). */
START_TEST(one_half_is_out)
{
	enum { WORDS = 1000, LAST = WORDS - 1 };
	struct gcuffd_type *type;
	uint64_t bits[16] = {1}, hidden[2][2][2];
	bits[LAST / 64] |= 1ull << LAST % 64;
	cold_heap("");
	ck_ok(gcuffd_type_create(heap, bits, WORDS, &type));
	static void **objects[2][2]; /* roots */
	for (int out = 0; out < 2; out++)
		for (int typed = 0; typed < 2; typed++) {
			void **object = typed ? gcuffd_alloc_typed(heap, type, 40000) : gcuffd_alloc(heap, 40000);
			for (int end = 0; end < 2; end++) {
				object[end ? LAST : 0] = make_list(1, 7);
				hidden[out][typed][end] = hide(object[end ? LAST : 0]);
			}
			objects[out][typed] = object;
		}
	for (int out = 0; out < 2; out++)
		for (int typed = 0; typed < 2; typed++) {
			uintptr_t page = gu_align_down((uintptr_t)&objects[out][typed][out ? LAST : 0], GU_PAGE);
			ck_ok(gcuffd_cool(heap, (void *)page, GU_PAGE, NULL));
		}
	for (int i = 0; i < 2; i++)
		for (int typed = 0; typed < 2; typed++) {
			ck_assert(is_out(&objects[i][typed][i ? LAST : 0]));
			ck_assert((uintptr_t)&objects[i][typed][0] / GU_PAGE != (uintptr_t)&objects[i][typed][LAST] / GU_PAGE);
		}
	uint64_t restored = cold_of(heap).restored_pages;
	for (int i = 0; i < 2; i++)
		ck_ok(gcuffd_collect(heap));
	ck_assert_uint_eq(cold_of(heap).restored_pages, restored);
	for (int i = 0; i < 8; i++)
		ck_assert(is_alive(heap, hidden[i / 4][i / 2 % 2][i % 2]));
	checked();
	memset(objects, 0, sizeof(objects));
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

/* Each codec and place, with contents that shrink and such that don't: out, marked, back, and out again. */
START_TEST(each_codec)
{
	static const struct { const char *codec, *more; } stores[] = {{"lz4", ""}, {"zstd", ""}, {"lz4", ",store_memory=1M,store_file=64M"}, {"zstd", ",store_memory=1M,store_file=64M"}};
	NEED_RUNG(_i);
	for (size_t k = 0; k < GU_ARRAY_LEN(stores); k++) {
		heap = heap_make("rung=%s,cold=1,reservation=1G,verify=1,store_codec=%s%s", rung_names[_i], stores[k].codec, stores[k].more);
		ck_assert_int_eq(heap->options.store_codec, k % 2 ? GCUFFD_CODEC_ZSTD : GCUFFD_CODEC_LZ4);
		static struct node *list; /* a root */
		uint64_t *random = gcuffd_alloc_atomic(heap, 2 << 20);
		struct test_rng rng = test_rng(k);
		list = make_list(NODES, k);
		for (size_t i = 0; i < (2 << 20) / 8; i++)
			random[i] = i / 512 % 2 ? test_rand(&rng) : i / 64; /* every other page shrinks */
		for (int round = 0; round < 3; round++) {
			ck_assert_uint_gt(cool_all(), 500);
			struct gcuffd_cold_stats s = cold_of(heap);
			ck_assert_uint_lt(s.store_memory_bytes, s.out_pages * GU_PAGE);
			ck_assert_int_eq(s.store_file_bytes > 0, k >= 2);
			ck_ok(gcuffd_collect(heap));
			ck_assert_uint_eq(cold_of(heap).collector_pages, 0);
			check_list(list, NODES, k);
			rng = test_rng(k);
			for (size_t i = 0; i < (2 << 20) / 8; i++)
				must(random[i] == (i / 512 % 2 ? test_rand(&rng) : i / 64), "word %zu", i);
			ck_assert_uint_eq(cold_of(heap).store_read_errors, 0);
			checked();
		}
		list = NULL;
		ck_ok(gcuffd_heap_destroy(heap));
	}
}
END_TEST

/* ---- counted by cause ---- */

/* A large atomic object, each page of which is another one. */
static char *make_noise(size_t n)
{
	uint64_t *p = gcuffd_alloc_aligned(heap, n * GU_PAGE, GU_PAGE, GCUFFD_ATOMIC);
	must(p != NULL, "errno %d", errno);
	for (size_t i = 0; i < n * GU_PAGE / 8; i++)
		p[i] = i * 0x9e3779b97f4a7c15u;
	return (char *)p;
}

static void cool_pages(char *p, size_t n)
{
	ck_ok(gcuffd_cool(heap, p, n * GU_PAGE, NULL));
	for (size_t i = 0; i < n; i++)
		must(is_out(p + i * GU_PAGE), "page %zu", i);
}

static uint64_t by_causes(const struct gcuffd_cold_stats *s)
{
	return s->read_pages + s->write_pages + s->collector_pages + s->ahead_pages + s->early_pages + s->warmed_pages + s->exempted_pages + s->undone_pages;
}

static void check_causes(void)
{
	struct gcuffd_cold_stats s = cold_of(heap);
	ck_assert_uint_eq(by_causes(&s), s.restored_pages);
	ck_assert_uint_eq(s.from_park_pages + s.from_store_pages + s.from_image_pages, s.restored_pages);
	ck_assert_uint_eq(s.left_pinned_pages + s.left_shared_pages + s.left_locked_pages + s.left_failed_pages, s.busy_pages);
	checked();
}

/* Far apart, so that nothing comes ahead of it. */
START_TEST(restored_by_cause)
{
	uint64_t offset;
	int status = -1, null;
	cold_heap("");
	char *p = make_noise(256);
	cool_pages(p, 256);
	struct gcuffd_cold_stats s = cold_of(heap);
	ck_assert_uint_eq(by_causes(&s), s.restored_pages);
	ck_assert_int_eq(((volatile char *)p)[10 * GU_PAGE], p[10 * GU_PAGE]);
	p[100 * GU_PAGE] = 1;
	ck_assert_uint_eq(cold_of(heap).read_pages, s.read_pages + 1);
	ck_assert_uint_eq(cold_of(heap).write_pages, s.write_pages + 1);
	null = open("/dev/zero", O_RDONLY); /* the kernel's writes count like the program's */
	ck_assert_int_eq(read(null, p + 200 * GU_PAGE, 8), 8);
	close(null);
	ck_assert_uint_eq(cold_of(heap).write_pages, s.write_pages + 2);
	ck_ok(gcuffd_warm(heap, p + 30 * GU_PAGE, 3 * GU_PAGE));
	ck_assert_uint_eq(cold_of(heap).warmed_pages, s.warmed_pages + 3);
	offset = (uintptr_t)p + 60 * GU_PAGE - heap->space.base;
	ck_ok(gcuffd_order_prefetch(heap, &offset, 1));
	for (int ms = 0; cold_of(heap).early_pages == s.early_pages && ms < 20000; ms++)
		usleep(1000);
	ck_assert_uint_eq(cold_of(heap).early_pages, s.early_pages + 1);
	ck_ok(madvise(p + 80 * GU_PAGE, 2 * GU_PAGE, MADV_DONTDUMP) ? -errno : 0);
	ck_ok(gcuffd_cool(heap, p, 256 * GU_PAGE, NULL)); /* looks */
	ck_assert_uint_eq(cold_of(heap).exempted_pages, s.exempted_pages + 2);
	ck_assert_uint_ge(cold_of(heap).left_exempt_pages, 2);
	s = cold_of(heap);
	for (size_t i = 90; i < 250; i++)
		ck_assert_int_eq(((volatile char *)p)[i * GU_PAGE], p[i * GU_PAGE]);
	ck_assert_uint_gt(cold_of(heap).ahead_pages, s.ahead_pages);
	ck_assert_uint_eq(cold_of(heap).collector_pages, 0);
	ck_assert_uint_eq(cold_of(heap).from_image_pages, 0);
	ck_assert_uint_gt(cold_of(heap).from_store_pages, 160);
	check_causes();
	fflush(stdout);
	pid_t pid = fork(); /* comes with its pages out; whoever brings them back there, each is counted */
	ck_assert_int_ge(pid, 0);
	if (!pid) {
		limit_child();
		for (size_t i = 0; i < 256; i++)
			(void)((volatile char *)p)[i * GU_PAGE];
		check_causes();
		_exit(0);
	}
	ck_assert_int_eq(waitpid(pid, &status, 0), pid);
	ck_assert_int_eq(status, 0);
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

/* What the kernel says is planted; the rest is brought about. */
START_TEST(left_in_by_cause)
{
	static const struct { int err; size_t field; } moves[] = {
		{-EBUSY, offsetof(struct gcuffd_cold_stats, left_shared_pages)},
		{-EINVAL, offsetof(struct gcuffd_cold_stats, left_locked_pages)},
		{-ENOMEM, offsetof(struct gcuffd_cold_stats, left_failed_pages)},
	};
	cold_heap(",store_memory=1M,store_file=0");
	char *p = make_noise(16);
	ck_ok(gcuffd_pin(p + 3 * GU_PAGE, 2 * GU_PAGE));
	ck_ok(gcuffd_cool(heap, p, 16 * GU_PAGE, NULL));
	ck_assert_uint_eq(cold_of(heap).left_pinned_pages, 2);
	ck_ok(gcuffd_unpin(p + 3 * GU_PAGE, 2 * GU_PAGE));
	fake_install();
	for (size_t i = 0; i < GU_ARRAY_LEN(moves); i++) {
		ck_ok(gcuffd_warm(heap, p, 16 * GU_PAGE));
		fake_fail_ioctl(GU_UFFDIO_MOVE, 1, moves[i].err);
		fake.sticky = true;
		ck_ok(gcuffd_cool(heap, p, 16 * GU_PAGE, NULL));
		ck_assert_uint_gt(fake.fired, 0);
		fake_clear();
		struct gcuffd_cold_stats s = cold_of(heap);
		ck_assert_uint_eq(*(uint64_t *)(void *)((char *)&s + moves[i].field), 16);
		ck_assert(!is_out(p));
		check_causes();
	}
	fake_remove();
	char *large = make_noise(600); /* random, and more than the store has room for */
	ck_assert_int_eq(gcuffd_cool(heap, large, 600 * GU_PAGE, NULL), -ENOSPC);
	ck_assert_uint_gt(cold_of(heap).left_no_room_pages, 0);
	ck_assert_uint_gt(cold_of(heap).undone_pages, 0);
	check_causes();
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

START_TEST(freed_and_resized)
{
	cold_heap("");
	struct node *list = make_list(NODES, 0);
	char *large = gcuffd_alloc_atomic(heap, BIG), *small = gcuffd_alloc_atomic(heap, 3000);
	memset(large, 1, BIG);
	memset(small, 2, 3000);
	cool_all();
	struct gcuffd_cold_stats before = cold_of(heap);
	struct node *second = list; /* its words are read: the first few come back */
	for (int i = 0; i < 10; i++)
		second = second->next;
	for (size_t i = 0; i < 10; i++) {
		struct node *next = list->next;
		ck_ok(gcuffd_free(heap, list));
		list = next;
	}
	large = gcuffd_realloc(heap, large, BIG * 2);
	small = gcuffd_realloc(heap, small, 30000);
	ck_assert(test_all_are(large, BIG, 1));
	ck_assert(test_all_are(large + BIG, BIG, 0));
	ck_assert(test_all_are(small, 3000, 2));
	cool_all();
	large = gcuffd_realloc(heap, large, BIG * 2 - 100000); /* in place: what lies beyond is cleared */
	large = gcuffd_realloc(heap, large, BIG * 2);
	ck_assert(test_all_are(large + BIG * 2 - 100000, 100000, 0));
	cool_all();
	uint64_t dropped = cold_of(heap).dropped_pages;
	ck_ok(gcuffd_free(heap, large)); /* never seen again */
	ck_assert_uint_ge(cold_of(heap).dropped_pages, dropped + BIG / GU_PAGE);
	ck_assert_uint_ge(cold_of(heap).restored_pages, before.restored_pages);
	ck_ok(gcuffd_collect(heap));
	check_list(list, NODES - 10, 0);
	large = gcuffd_alloc_atomic(heap, BIG); /* the same pages, fresh */
	ck_assert(test_all_are(large, BIG, 0));
	checked();
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

START_TEST(arenas)
{
	struct gcuffd_arena *a, *b;
	cold_heap("");
	ck_ok(gcuffd_arena_create(heap, "a", &a));
	ck_ok(gcuffd_arena_create(heap, "b", &b));
	ck_ok(gcuffd_arena_set_hot(b, 1));
	for (int i = 0; i < 3; i++) {
		char *x = gcuffd_arena_alloc(a, 200000, 0, GCUFFD_ATOMIC), *y = gcuffd_arena_alloc(b, 200000, 0, GCUFFD_ATOMIC);
		memset(x, 3, 200000);
		memset(y, 4, 200000);
		cool_all();
		ck_assert(is_out(x + 100000) && !is_out(y + 100000));
		ck_ok(gcuffd_arena_reset(a));
		checked();
		x = gcuffd_arena_alloc(a, 200000, 0, GCUFFD_ATOMIC);
		ck_assert(test_all_are(x, 200000, 0));
		memset(x, 3, 200000);
	}
	cool_all();
	ck_ok(gcuffd_arena_destroy(a));
	ck_ok(gcuffd_collect(heap));
	ck_assert_uint_lt(cold_of(heap).out_pages, 4);
	checked();
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

/* ---- refusals ---- */

START_TEST(refused)
{
	size_t n;
	heap = heap_make("reservation=1G");
	ck_assert_int_eq(gcuffd_cool(heap, NULL, 0, &n), -EOPNOTSUPP);
	ck_assert_int_eq(gcuffd_warm(heap, NULL, 0), -EOPNOTSUPP);
	ck_ok(gcuffd_heap_destroy(heap));
	heap = heap_make("reservation=1G,cold=1,rung=async");
	ck_assert_int_eq(gcuffd_cool(heap, NULL, 0, &n), -EOPNOTSUPP);
	ck_assert_ptr_nonnull(strstr(core_log, "cold=1: no page is taken out"));
	ck_ok(gcuffd_heap_destroy(heap));
	core_forget_log();
	struct gcuffd_cold_stats s = {.size = 3};
	heap = heap_make("reservation=1G,cold=1");
	ck_assert_int_eq(gcuffd_cold_stats(heap, &s), -EINVAL);
	ck_assert_int_eq(gcuffd_cool(heap, &s, 100, &n), -EINVAL);
	ck_ok(gcuffd_cool(heap, (char *)heap->space.base + 1, 4096, &n));
	ck_assert_uint_eq(n, 0);
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

static int cool_as_nobody(void)
{
	size_t n;
	heap = heap_make("reservation=1G,cold=1");
	struct node *list = make_list(1000, 0);
	int err = gcuffd_cool(heap, NULL, 0, &n);
	check_list(list, 1000, 0);
	return err == -EOPNOTSUPP ? 0 : 1;
}

/* System calls would get EFAULT from pages that are out. */
START_TEST(nobody_is_refused) { in_child_as_nobody(cool_as_nobody); }
END_TEST

/* ---- summaries ---- */

/* Against the words themselves: any mix of pointers, alignments and ranges. */
START_TEST(summaries_are_exact)
{
	struct test_rng rng = test_rng(0);
	cold_heap("");
	for (unsigned round = 0; round < 2000 / check_slow(); round++) {
		uintptr_t words[GU_PAGE_WORDS], found[GU_PAGE_WORDS];
		size_t cell = 16 * (1 + test_below(&rng, 40));
		char *object = gcuffd_alloc(heap, cell);
		struct gu_block *b = gu_block_at(&heap->space, (uintptr_t)object);
		size_t page = gu_space_page(&heap->space, (uintptr_t)object);
		uintptr_t at = heap->space.base + page * GU_PAGE;
		unsigned density = (unsigned)test_below(&rng, 101), shift = (unsigned)test_below(&rng, 12);
		for (size_t i = 0; i < GU_PAGE_WORDS; i++)
			words[i] = test_below(&rng, 100) < density ? heap->space.base + (test_below(&rng, heap->space.size) >> shift << shift) : test_rand(&rng) >> 20;
		struct gu_summary *s;
		ck_ok(gu_summary_make(heap, page, words, false, &s));
		size_t from = test_below(&rng, GU_PAGE_WORDS), to = from + test_below(&rng, GU_PAGE_WORDS - from + 1), n = 0;
		size_t got = gu_summary_read(heap, s, from, to, found);
		for (size_t i = from; i < to; i++) {
			uint32_t c;
			bool in = gu_block_cell(b, at + i * 8, &c) && gu_block_started(b, c) && !(gu_run_ahead(b, c / 64) >> c % 64 & 1);
			if (!in || words[i] - heap->space.base >= heap->space.size)
				continue;
			ck_assert_msg(n < got && found[n] == words[i], "word %zu", i);
			n++;
		}
		ck_assert_uint_eq(n, got);
		gu_summary_free(heap, s);
	}
	ck_assert_uint_eq(heap->space.cold.slab.bytes, 0);
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

/* ---- by itself ---- */

/* Down to the target while nobody touches it; what is touched all the time stays. */
START_TEST(the_target_is_met)
{
	cold_heap(",resident_target=12M,start_size=64M");
	keep = make_list(600000, 0); /* 37 MiB */
	struct node *hot = make_list(10000, 0);
	uint64_t end = test_now_ns() + 60000000000ull * check_slow(), resident, sum = 0;
	do {
		for (int i = 0; i < 100; i++)
			for (struct node *n = hot; n; n = n->next)
				sum += n->number;
		resident = gu_tier_resident(heap);
	} while (resident > ((size_t)13 << 20) && test_now_ns() < end);
	struct gcuffd_cold_stats s = cold_of(heap);
	ck_assert_msg(resident <= (size_t)13 << 20, "resident %zu: pages %zu, out %lu (parked %zu), tables %zu, foreign %zu, summaries %lu, store %lu in memory",
		      resident, heap->space.resident, (unsigned long)s.out_pages, heap->space.cold.parked, heap->space.tables, heap->space.foreign,
		      (unsigned long)s.summary_bytes, (unsigned long)s.store_memory_bytes);
	ck_assert_uint_ne(sum, 0);
	ck_assert_uint_gt(s.out_pages, 5000);
	uint64_t restored = s.restored_pages;
	for (int i = 0; i < 3; i++)
		ck_ok(gcuffd_collect(heap));
	ck_assert_uint_eq(cold_of(heap).collector_pages, 0);
	ck_assert_uint_le(cold_of(heap).restored_pages, restored + 500);
	check_list(keep, 600000, 0);
	keep = NULL;
	check_list(hot, 10000, 0);
	checked();
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

/* ---- under running mutators ---- */

#define WRITERS 4
#define OWNED 64u /* pages of each */

static uint32_t quit;

struct writer {
	size_t owned; /* pages */
	bool noise;   /* in them, beside the counts: no codec makes them smaller */
	uint64_t rounds;
	struct test_rng rng;
};

#define COUNT_AT 17u

/* What is in the words of a page that are written only once. */
static uint64_t filler_of(const struct writer *w, size_t word)
{
	struct test_rng rng = {word << 20};
	return w->noise ? test_rand(&rng) : 0;
}

static void check_word(const struct writer *w, const uint64_t *pages, const uint64_t *counts, size_t word)
{
	uint64_t want = word % 512 == COUNT_AT ? counts[word / 512] : filler_of(w, word);
	must(pages[word] == want, "word %zu of page %zu: %lx, not %lx", word % 512, word / 512, (unsigned long)pages[word], (unsigned long)want);
}

/* Nothing points to them but this thread's stack. */
static uint64_t *make_pages(const struct writer *w)
{
	uint64_t *pages = gcuffd_alloc_aligned(heap, w->owned * GU_PAGE, GU_PAGE, GCUFFD_CONSERVATIVE);
	must(pages != NULL, "errno %d", errno);
	for (size_t word = 0; w->noise && word < w->owned * 512; word++)
		pages[word] = word % 512 == COUNT_AT ? 0 : filler_of(w, word);
	return pages;
}

/* The number in each page is the log of its writes. */
static void *write_pages(void *arg)
{
	struct writer *w = arg;
	must_ok(gcuffd_thread_attach());
	uint64_t *pages = make_pages(w), *counts = calloc(w->owned, sizeof(*counts));
	must(counts != NULL, "out of memory");
	while (!gu_load_relaxed(&quit)) {
		size_t i = test_below(&w->rng, w->owned);
		check_word(w, pages, counts, i * 512 + COUNT_AT);
		check_word(w, pages, counts, i * 512 + test_below(&w->rng, 512));
		pages[i * 512 + COUNT_AT] = ++counts[i];
		w->rounds++;
	}
	for (size_t word = 0; word < w->owned * 512; word++)
		check_word(w, pages, counts, word);
	free(counts);
	must_ok(gcuffd_thread_detach());
	return NULL;
}

/* Lists that grow, are looked through and dropped. */
static void *build_lists(void *arg)
{
	struct writer *w = arg;
	must_ok(gcuffd_thread_attach());
	while (!gu_load_relaxed(&quit)) {
		size_t n = 100 + test_below(&w->rng, 5000);
		uint64_t first = test_rand(&w->rng);
		struct node *list = make_list(n, first);
		for (int i = 0; i < 3; i++)
			check_list(list, n, first);
		w->rounds++;
	}
	must_ok(gcuffd_thread_detach());
	return NULL;
}

START_TEST(nothing_is_lost)
{
	pthread_t threads[WRITERS * 2];
	struct writer writers[WRITERS * 2];
	cold_heap(",start_size=1M,decay_ms=50");
	quit = 0;
	for (size_t i = 0; i < GU_ARRAY_LEN(threads); i++) {
		writers[i] = (struct writer){.owned = OWNED, .rng = test_rng(i)};
		must_ok(pthread_create(&threads[i], NULL, i % 2 ? write_pages : build_lists, &writers[i]));
	}
	uint64_t end = test_now_ns() + check_seconds() * 1000000000ull / 2, taken = 0;
	for (unsigned round = 0; goes_on(heap, end, 3); round++) {
		taken += cool_all();
		if (round % 8 == 0)
			ck_ok(gcuffd_collect(heap));
	}
	gu_store_seqcst(&quit, 1);
	for (size_t i = 0; i < GU_ARRAY_LEN(threads); i++)
		must_ok(pthread_join(threads[i], NULL));
	struct gcuffd_cold_stats s = cold_of(heap);
	printf("taken %lu restored %lu bounced %lu busy %lu dropped %lu cycles %lu\n", (unsigned long)taken, (unsigned long)s.restored_pages,
	       (unsigned long)s.bounced_pages, (unsigned long)s.busy_pages, (unsigned long)s.dropped_pages, (unsigned long)stats_of(heap).cycles);
	ck_assert_uint_eq(s.collector_pages, 0);
	checked();
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

/* Pages that are taken out and touched again: a hundred thousand in the normal run, ten million in an hour. */
static uint64_t pages_wanted(void)
{
	uint64_t seconds = check_seconds(), least = 20000 * (seconds < 5 ? seconds : 5), more = seconds * 10000000 / 3600;
	return (more > least ? more : least) / check_slow();
}

static uint64_t all_touched(const struct gcuffd_cold_stats *s) { return s->touched_pages; }
static uint64_t read_from_file(const struct gcuffd_cold_stats *s) { return s->refaulted_pages < s->store_reads ? s->refaulted_pages : s->store_reads; }

/* Until enough came back in the way that counts. */
static void write_against_eviction(size_t owned, bool noise, uint64_t (*count)(const struct gcuffd_cold_stats *))
{
	pthread_t threads[2];
	struct writer writers[2];
	struct gcuffd_cold_stats s = cold_of(heap);
	uint64_t want = pages_wanted(), end = test_now_ns() + (200 + 2 * check_seconds()) * 1000000000ull * check_slow(), came = 0;
	quit = 0;
	for (size_t i = 0; i < GU_ARRAY_LEN(threads); i++) {
		writers[i] = (struct writer){.owned = owned, .noise = noise, .rng = test_rng(i)};
		must_ok(pthread_create(&threads[i], NULL, write_pages, &writers[i]));
	}
	for (; came < want && test_now_ns() < end; s = cold_of(heap), came = count(&s))
		cool_all();
	gu_store_seqcst(&quit, 1);
	for (size_t i = 0; i < GU_ARRAY_LEN(threads); i++)
		must_ok(pthread_join(threads[i], NULL));
	printf("%lu pages touched while they were out: %lu in the store, the others on their way there; %lu reads of a file, %lu writes\n", (unsigned long)s.touched_pages,
	       (unsigned long)s.refaulted_pages, (unsigned long)s.store_reads, (unsigned long)(writers[0].rounds + writers[1].rounds));
	ck_assert_uint_ge(came, want);
	ck_assert_uint_eq(s.collector_pages, 0);
	checked();
	ck_ok(gcuffd_heap_destroy(heap));
}

/* Writers at full speed against the eviction of the very pages that they write. */
START_TEST(writers_against_eviction)
{
	NEED_RUNG(_i);
	heap = heap_make("rung=%s,cold=1,reservation=1G", rung_names[_i]);
	write_against_eviction(OWNED, false, all_touched);
}
END_TEST

/* So many pages that most are in the store's file when they are written again. */
START_TEST(writers_against_a_file)
{
	NEED_RUNG(_i);
	heap = heap_make("rung=%s,cold=1,reservation=1G,store_memory=1M,store_file=64M", rung_names[_i]);
	write_against_eviction(32 * OWNED, true, read_from_file);
}
END_TEST

/* ---- a page that was filled a moment ago ---- */

static uint32_t watching, filled, go_on; /* atomic */
static void **holder;

/* The resolver is interrupted when it has filled a page, with its region's lock: not for ever, for the service may want that first. */
static long stay_after_filling(int fd, unsigned long request, void *arg)
{
	long result = gu_os_linux.ioctl(fd, request, arg);
	const struct gu_uffdio_copy *copy = arg;
	if (request == GU_UFFDIO_COPY && gu_load_seqcst(&watching) && copy->dst == (uintptr_t)holder) {
		gu_store_seqcst(&filled, 1);
		for (int i = 0; i < 20000 && !gu_load_seqcst(&go_on); i++)
			usleep(100);
	}
	return result;
}

static uint64_t hidden_target;

static void *write_target(void *unused)
{
	must_ok(gcuffd_thread_attach());
	uint64_t *target = gcuffd_alloc(heap, 64);
	must(target != NULL, "errno %d", errno);
	target[5] = 12345;
	hidden_target = hide(target);
	holder[77] = target; /* faults */
	must_ok(gcuffd_thread_detach());
	return unused;
}

/* The write is told by a card: marking must look at the page, and not at what it had been. */
START_TEST(written_and_not_yet_said)
{
	cold_heap(",pacing=0");
	pthread_t t;
	holder = gcuffd_alloc_aligned(heap, 8 * GU_PAGE, GU_PAGE, GCUFFD_CONSERVATIVE);
	memset(holder, 0, 8 * GU_PAGE);
	holder[0] = holder;
	ck_ok(gcuffd_collect(heap));
	fake_install();
	fake_os.ioctl = stay_after_filling;
	cool_all();
	ck_assert(is_out(holder));
	watching = 1;
	must_ok(pthread_create(&t, NULL, write_target, NULL));
	must_ok(pthread_join(t, NULL));
	while (!gu_load_seqcst(&filled)) /* the copy wakes the writer before the resolver is back from it */
		usleep(100);
	ck_ok(gcuffd_collect(heap));
	gu_store_seqcst(&go_on, 1);
	ck_assert(is_alive(heap, hidden_target));
	ck_assert_uint_eq(((uint64_t *)holder[77])[5], 12345);
	ck_ok(gcuffd_collect(heap));
	checked();
	ck_ok(gcuffd_heap_destroy(heap));
	fake_remove();
}
END_TEST

/* ---- a slow disk ---- */

static long write_slowly(int fd, const struct iovec *pieces, int n, off_t at)
{
	gu_store_seqcst(&filled, 1);
	for (int i = 0; i < 300000 && !gu_load_seqcst(&go_on); i++)
		usleep(100);
	return gu_os_linux.pwritev(fd, pieces, n, at);
}

static void *cool_it(void *unused)
{
	cool_all();
	return unused;
}

/* Collections go on while the evictor waits for a disk, and see what is just being put. */
START_TEST(cycles_do_not_wait_for_the_store)
{
	struct test_rng rng = test_rng(0);
	pthread_t t;
	cold_heap(",store_memory=1M,store_file=64M,pacing=0");
	uint64_t *noise = gcuffd_alloc_atomic(heap, 4 << 20);
	for (size_t i = 0; i < (4u << 20) / 8; i++)
		noise[i] = test_rand(&rng);
	struct node *list = make_list(NODES, 0);
	drop = make_list(NODES, 0);
	fake_install();
	fake_os.pwritev = write_slowly;
	filled = go_on = 0;
	must_ok(pthread_create(&t, NULL, cool_it, NULL));
	while (!gu_load_seqcst(&filled))
		usleep(1000);
	drop = NULL;
	uint64_t freed = stats_of(heap).freed_bytes;
	for (int i = 0; i < 2; i++)
		ck_ok(gcuffd_collect(heap));
	ck_assert_uint_eq(gu_load_seqcst(&go_on), 0);
	ck_assert_uint_gt(stats_of(heap).freed_bytes - freed, NODES * sizeof(*list) / 2);
	gu_store_seqcst(&go_on, 1);
	must_ok(pthread_join(t, NULL));
	checked();
	check_list(list, NODES, 0);
	ck_ok(gcuffd_collect(heap));
	checked();
	ck_ok(gcuffd_heap_destroy(heap));
	fake_remove();
}
END_TEST

/* ---- fork ---- */

static void check_in_child(struct node *list)
{
	check_list(list, NODES, 0);
	must_ok(gcuffd_collect(heap));
	check_list(list, NODES, 0);
	size_t n;
	must_ok(gcuffd_cool(heap, NULL, 0, &n));
	must(n > 100, "%zu", n);
	check_list(list, NODES, 0);
	must(stats_of(heap).verify_failures == 0, "%s", core_log);
	space_checked(heap);
}

START_TEST(forks)
{
	cold_heap("");
	struct node *list = make_list(NODES, 0);
	cool_all();
	usleep(300000); /* a thread that begins while others fork may leave a sanitizer's lock to the child */
	for (int i = 0; i < 5; i++) {
		int status;
		fflush(stdout);
		pid_t pid = fork();
		if (pid == 0) {
			check_in_child(list);
			_exit(0);
		}
		if (i % 2)
			check_list(list, NODES, 0);
		ck_assert_uint_gt(cool_all() + cold_of(heap).out_pages, 100);
		ck_assert_int_eq(waitpid(pid, &status, 0), pid);
		ck_assert_int_eq(status, 0);
		ck_ok(gcuffd_collect(heap));
	}
	check_list(list, NODES, 0);
	checked();
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

/* Pages that a child shares can't be moved, unless they are made the parent's own first. */
/* ---- child handlers of others ---- */

static const uint64_t *volatile looked_at[2]; /* by the handler of a constructor, by that of before the first heap */
static uint64_t seen_in_child[2];

static void look_in_child(int i)
{
	if (looked_at[i])
		seen_in_child[i] = *looked_at[i];
}

static void look_in_child_0(void) { look_in_child(0); }
static void look_in_child_1(void) { look_in_child(1); }

__attribute__((constructor)) static void register_in_a_constructor(void) { (void)pthread_atfork(NULL, NULL, look_in_child_0); }

/* They run behind the library's, which has made sure that nothing reads as zeros. */
START_TEST(child_handlers_of_others)
{
	must_ok(pthread_atfork(NULL, NULL, look_in_child_1));
	cold_heap("");
	uint64_t *object = gcuffd_alloc_atomic(heap, 100000);
	for (size_t i = 0; i < 100000 / 8; i++)
		object[i] = hide(&object[i]);
	cool_all();
	looked_at[0] = &object[3 * 512];
	looked_at[1] = &object[9 * 512];
	ck_assert(is_out(&object[3 * 512]) && is_out(&object[9 * 512]));
	fflush(stdout);
	pid_t pid = fork();
	if (!pid)
		_exit(seen_in_child[0] != hide(looked_at[0]) || seen_in_child[1] != hide(looked_at[1]));
	int status;
	ck_assert_int_eq(waitpid(pid, &status, 0), pid);
	ck_assert_int_eq(status, 0);
	looked_at[0] = looked_at[1] = NULL;
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

START_TEST(a_child_from_before)
{
	cold_heap("");
	struct node *list = make_list(NODES, 0);
	int p[2];
	ck_assert_int_eq(pipe(p), 0);
	fflush(stdout);
	pid_t pid = fork();
	if (pid == 0) { /* stays until the parent closes its end */
		char c;
		close(p[1]);
		_exit(read(p[0], &c, 1) == 0 ? 0 : 1);
	}
	ck_assert_uint_gt(cool_all(), NODES * sizeof(*list) / GU_PAGE * 9 / 10);
	ck_assert_uint_eq(cold_of(heap).busy_pages, 0);
	check_list(list, NODES, 0);
	int status;
	close(p[1]);
	ck_assert_int_eq(waitpid(pid, &status, 0), pid);
	ck_assert_int_eq(status, 0);
	checked();
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

/* ---- a store that fails ---- */

static sigjmp_buf back;
static uintptr_t faulted;

static void on_bus(int sig, siginfo_t *info, void *context)
{
	(void)sig, (void)context;
	faulted = (uintptr_t)info->si_addr;
	siglongjmp(back, 1);
}

static __attribute__((noinline)) bool can_read(const uint64_t *p)
{
	if (sigsetjmp(back, 1))
		return false;
	(void)*(const volatile uint64_t *)p;
	return true;
}

#define NOISE (4u << 20)
#define BAD_LINE "can't be brought back"

static bool has_been_read[NOISE / GU_PAGE];

static size_t count_lines(const char *with)
{
	size_t n = 0;
	pthread_mutex_lock(&core_log_lock);
	for (const char *at = core_log; (at = strstr(at, with)); at++)
		n++;
	pthread_mutex_unlock(&core_log_lock);
	return n;
}

static size_t lines_with_address(const void *page)
{
	char text[64];
	snprintf(text, sizeof(text), "page at %#lx " , (unsigned long)page);
	return count_lines(text);
}

/* Who touches what can't be read gets SIGBUS, which is reported once for each page; the heap goes on, also in the same place. */
START_TEST(what_cannot_be_read_is_poisoned)
{
	struct sigaction bus = {.sa_sigaction = on_bus, .sa_flags = SA_SIGINFO}, old;
	struct test_rng rng = test_rng(0);
	size_t bad = 0;
	memset(has_been_read, 1, sizeof(has_been_read));
	cold_heap(",store_memory=1M,store_file=64M,decay_ms=100");
	uint64_t *noise = gcuffd_alloc_atomic(heap, NOISE);
	for (size_t i = 0; i < NOISE / 8; i++)
		noise[i] = test_rand(&rng);
	struct node *list = make_list(NODES, 0);
	fake_install();
	cool_all();
	ck_assert_uint_gt(cold_of(heap).store_file_bytes, NOISE / 2);
	fake_fail(FAKE_PREAD, 1, -EIO);
	fake.sticky = true;
	ck_ok(sigaction(SIGBUS, &bus, &old));
	for (size_t p = 0; p < NOISE / GU_PAGE; p += 64) {
		has_been_read[p] = can_read(&noise[p * 512]);
		if (has_been_read[p])
			continue;
		ck_assert_uint_eq(gu_align_down(faulted, GU_PAGE), (uintptr_t)&noise[p * 512]);
		bad++;
	}
	fake_clear();
	ck_ok(sigaction(SIGBUS, &old, NULL));
	ck_assert_uint_gt(bad, 0);
	ck_assert_uint_eq(cold_of(heap).poisoned_pages, bad);
	for (int i = 0; i < 600 && count_lines(BAD_LINE) < bad; i++)
		usleep(100000);
	ck_assert_int_eq(gcuffd_warm(heap, noise, NOISE), -EIO);
	usleep(300000);
	ck_assert_uint_eq(count_lines(BAD_LINE), bad);
	ck_assert_uint_eq(count_lines("/var/tmp can't be read (error 5, Input/output error)"), 1);
	ck_assert_uint_eq(count_lines("can be read again"), 1);
	for (size_t p = 0; p < NOISE / GU_PAGE; p++)
		ck_assert_uint_eq(lines_with_address(&noise[p * 512]), !has_been_read[p]);
	check_list(list, NODES, 0);
	ck_ok(gcuffd_free(heap, noise));
	noise = gcuffd_alloc_atomic(heap, NOISE);
	ck_assert(test_all_are(noise, NOISE, 0));
	ck_ok(gcuffd_collect(heap));
	checked();
	ck_ok(gcuffd_heap_destroy(heap));
	fake_remove();
}
END_TEST

/* An outage of the disk is a line with its error and the store's path, and a line when it is over: as often as that happens. */
START_TEST(outages_are_told)
{
	static const int errors[] = {-ENOSPC, -EIO};
	struct test_rng rng = test_rng(0);
	cold_heap(",store_memory=1M,store_file=64M,pacing=0");
	uint64_t *noise = gcuffd_alloc_atomic(heap, NOISE);
	for (size_t i = 0; i < NOISE / 8; i++)
		noise[i] = test_rand(&rng);
	fake_install();
	for (size_t round = 0; round < GU_ARRAY_LEN(errors); round++) {
		char text[128];
		snprintf(text, sizeof(text), "/var/tmp can't be written (error %d, %s)", -errors[round], strerror(-errors[round]));
		fake_fail(FAKE_PWRITEV, 1, errors[round]);
		fake.sticky = true;
		for (int i = 0; i < 3; i++) {
			ck_assert_int_eq(gcuffd_cool(heap, NULL, 0, NULL), errors[round]);
			usleep(1100000); /* it is tried again */
		}
		ck_assert_uint_eq(count_lines(text), 1);
		ck_assert_uint_eq(count_lines("can't be written"), round + 1);
		ck_assert_uint_eq(count_lines("can be written again"), round);
		fake_clear();
		ck_ok(gcuffd_cool(heap, NULL, 0, NULL));
		ck_assert_uint_eq(count_lines("can be written again"), round + 1);
		ck_ok(gcuffd_warm(heap, NULL, 0));
	}
	ck_assert_uint_eq(count_lines("can't be read"), 0);
	ck_ok(gcuffd_heap_destroy(heap));
	fake_remove();
}
END_TEST

/* A child that no handler prepared: it must not read zeros where there was something. */
START_TEST(a_child_of_clone)
{
	cold_heap("");
	char *object = gcuffd_alloc_atomic(heap, 100000);
	memset(object, 9, 100000);
	cool_all();
	ck_assert(is_out(object + 50000));
	fflush(stdout);
	long pid = syscall(SYS_clone, SIGCHLD, NULL, NULL, NULL, NULL);
	if (pid == 0) {
		struct rlimit none = {0, 0};
		signal(SIGSEGV, SIG_DFL);
		signal(SIGBUS, SIG_DFL);
		setrlimit(RLIMIT_CORE, &none);
		_exit(object[50000] == 9 ? 1 : 2);
	}
	int status;
	ck_assert_int_eq(waitpid((pid_t)pid, &status, 0), pid);
	ck_assert_msg(WIFSIGNALED(status) && (WTERMSIG(status) == SIGSEGV || WTERMSIG(status) == SIGBUS), "status %#x", (unsigned)status);
	ck_assert_int_eq(object[50000], 9);
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

/* Made by nobody that counts forks: its parent's pages are made the parent's own again when the kernel won't move them. */
START_TEST(shared_with_a_child_of_clone)
{
	int life[2];
	char byte;
	cold_heap("");
	char *object = gcuffd_alloc_atomic(heap, 1 << 20);
	memset(object, 9, 1 << 20);
	ck_ok(pipe(life) ? -errno : 0);
	fflush(stdout);
	long pid = syscall(SYS_clone, SIGCHLD, NULL, NULL, NULL, NULL);
	if (pid == 0) {
		close(life[1]);
		_exit(read(life[0], &byte, 1) || object[50000] != 9);
	}
	ck_assert_int_gt(pid, 0);
	cool_all();
	ck_assert(is_out(object + 50000) && is_out(object + 900000));
	memset(object, 8, 1 << 20);
	int status;
	close(life[1]);
	close(life[0]);
	ck_assert_int_eq(waitpid((pid_t)pid, &status, 0), pid);
	ck_assert_int_eq(status, 0);
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

/* Nobody can refuse a fork(): what the kernel would not do for it is reported, and a child that lacks memory ends. */
START_TEST(a_fork_that_lacks_something)
{
	int status;
	cold_heap("");
	char *object = gcuffd_alloc_atomic(heap, 1 << 20);
	memset(object, 9, 1 << 20);
	cool_all();
	fake_install();
	fflush(stdout);
	for (int n = 1; n <= 2; n++) { /* in prepare, of the heap and of its park */
		core_forget_log();
		fake_fail_advice(MADV_DOFORK, (unsigned)n, -ENOMEM);
		pid_t pid = fork();
		if (pid == 0)
			_exit(0);
		ck_assert_int_eq(waitpid(pid, &status, 0), pid);
		ck_assert_msg(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT, "status %#x", (unsigned)status);
		ck_assert_uint_eq(fake.fired, 1);
		for (int ms = 0; ms < 10000 && !strstr(core_log, "a fork() needs was refused"); ms += 10)
			usleep(10000);
		ck_assert_msg(strstr(core_log, "a fork() needs was refused (error 12)") != NULL, "%s", core_log);
	}
	ck_assert_int_eq(object[50000], 9);
	ck_ok(gcuffd_heap_destroy(heap));
	fake_remove();
}
END_TEST

static Suite *make_suite(void)
{
	Suite *suite = suite_create("cold");
	TCase *basic = test_case(suite, "basic");
	tcase_add_loop_test(basic, out_and_back, GCUFFD_RUNG_MOVE, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(basic, the_programs_files_stay, GCUFFD_RUNG_MOVE, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(basic, warmed, GCUFFD_RUNG_MOVE, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(basic, collected_where_it_is, GCUFFD_RUNG_MOVE, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(basic, freed_pages_are_dropped, GCUFFD_RUNG_MOVE, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(basic, dead_pages_are_dropped, GCUFFD_RUNG_MOVE, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(basic, dead_pages_are_not_stored, GCUFFD_RUNG_MOVE, GCUFFD_RUNG_RWP + 1);
	TCase *use = test_case(suite, "use"), *by_itself = test_case(suite, "by_itself");
	tcase_add_loop_test(basic, all_kinds, GCUFFD_RUNG_MOVE, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(basic, summaries_are_exact, GCUFFD_RUNG_MOVE, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(basic, read_in_the_store, GCUFFD_RUNG_MOVE, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(basic, summaries_beside_a_file, GCUFFD_RUNG_MOVE, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(use, system_calls, GCUFFD_RUNG_MOVE, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(use, pinned, GCUFFD_RUNG_MOVE, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(basic, each_codec, GCUFFD_RUNG_MOVE, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(basic, one_half_is_out, GCUFFD_RUNG_MOVE, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(use, restored_by_cause, GCUFFD_RUNG_MOVE, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(use, left_in_by_cause, GCUFFD_RUNG_MOVE, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(use, freed_and_resized, GCUFFD_RUNG_MOVE, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(use, arenas, GCUFFD_RUNG_MOVE, GCUFFD_RUNG_RWP + 1);
	tcase_add_test(use, refused);
	tcase_add_test(use, nobody_is_refused);
	tcase_add_loop_test(by_itself, the_target_is_met, GCUFFD_RUNG_MOVE, GCUFFD_RUNG_RWP + 1);
	TCase *load = test_case(suite, "load"), *writers = test_case(suite, "writers");
	tcase_add_loop_test(load, nothing_is_lost, GCUFFD_RUNG_MOVE, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(writers, writers_against_eviction, GCUFFD_RUNG_MOVE, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(load, writers_against_a_file, GCUFFD_RUNG_MOVE, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(use, written_and_not_yet_said, GCUFFD_RUNG_MOVE, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(use, cycles_do_not_wait_for_the_store, GCUFFD_RUNG_MOVE, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(use, what_cannot_be_read_is_poisoned, GCUFFD_RUNG_MOVE, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(use, outages_are_told, GCUFFD_RUNG_MOVE, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(load, child_handlers_of_others, GCUFFD_RUNG_MOVE, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(load, a_child_from_before, GCUFFD_RUNG_MOVE, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(load, a_child_of_clone, GCUFFD_RUNG_MOVE, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(load, shared_with_a_child_of_clone, GCUFFD_RUNG_MOVE, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(load, a_fork_that_lacks_something, GCUFFD_RUNG_MOVE, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(load, forks, GCUFFD_RUNG_MOVE, GCUFFD_RUNG_RWP + 1);
	return suite;
}

TEST_MAIN(make_suite)
