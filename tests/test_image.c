/* SPDX-License-Identifier: MIT */
/*
 * test_image.c - heaps saved to a file while mutators run, and loaded from one: what comes back, where from, and what is refused.
 */
#include "cold.h"

#include <fcntl.h>
#include <setjmp.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "fake_os.h"
#include "sys/uapi.h"
#include "space/image.h"
#include "space/storecodec.h"

#define NODES 20000u
#define BIG ((size_t)3 << 20)

static char path[160];

/* A name of this test's own. */
static void take_name(void)
{
	snprintf(path, sizeof(path), "%s/image-%d", test_folder, (int)getpid());
	unlink(path);
}

static bool is_lazy(int rung) { return rung >= GCUFFD_RUNG_MOVE; }

/* ---- what is saved ---- */

struct shapes {
	struct node *list;
	struct node *volatile *typed; /* words 1 and 300 are pointers */
	uint64_t *atomic;
	struct node **big;            /* a pointer each 64 KiB */
	uint64_t *big_atomic;
	uint64_t *zeros;
	struct node *volatile *large_typed;
};

static struct shapes *shapes; /* a root */
static struct gcuffd_type *type, *large;

static void make_types(void)
{
	uint64_t bits[5] = {1ull << 1, 0, 0, 0, 1ull << (300 - 256)}, many[8] = {0};
	many[7] = 1ull << 63;
	ck_ok(gcuffd_type_create(heap, bits, 301, &type));
	ck_ok(gcuffd_type_create(heap, many, 512, &large));
}

static void make_shapes(void)
{
	make_types();
	shapes = gcuffd_alloc(heap, sizeof(*shapes));
	shapes->list = make_list(NODES, 0);
	shapes->typed = gcuffd_alloc_typed(heap, type, 5000);
	shapes->atomic = gcuffd_alloc_atomic(heap, 10000);
	shapes->big = gcuffd_alloc(heap, BIG);
	shapes->big_atomic = gcuffd_alloc_atomic(heap, BIG);
	shapes->zeros = gcuffd_alloc(heap, BIG);
	shapes->large_typed = gcuffd_alloc_typed(heap, large, 100000);
	must(shapes->typed && shapes->atomic && shapes->big && shapes->big_atomic && shapes->zeros && shapes->large_typed, "errno %d", errno);
	shapes->typed[1] = make_list(100, 1);
	shapes->typed[300] = make_list(100, 300);
	for (size_t i = 0; i < 1250; i++)
		shapes->atomic[i] = (uintptr_t)&path + i; /* not looked at */
	for (size_t i = 0; i < BIG / 65536; i++)
		shapes->big[i * 8192 + i] = make_list(10, i);
	for (size_t i = 0; i < BIG / 8; i++)
		shapes->big_atomic[i] = i * i;
	shapes->large_typed[511] = make_list(10, 511);
	shapes->large_typed[510] = (void *)&path;
}

static void check_shapes(void)
{
	check_list(shapes->list, NODES, 0);
	check_list(shapes->typed[1], 100, 1);
	check_list(shapes->typed[300], 100, 300);
	for (size_t i = 0; i < 1250; i++)
		must(shapes->atomic[i] == (uintptr_t)&path + i);
	for (size_t i = 0; i < BIG / 65536; i++)
		check_list(shapes->big[i * 8192 + i], 10, i);
	for (size_t i = 0; i < BIG / 8; i++)
		must(shapes->big_atomic[i] == i * i && !shapes->zeros[i]);
	check_list(shapes->large_typed[511], 10, 511);
}

/* ---- saving and loading ---- */

#define WITH_ROOT(root) \
	&(struct gcuffd_image_options){.size = sizeof(struct gcuffd_image_options), .roots = &(struct gcuffd_named){"root", root}, .nroots = 1}

static int try_load(int rung, const struct gcuffd_image_options *image, const char *more)
{
	struct gcuffd_options o;
	char text[256];
	gcuffd_options_init(&o);
	snprintf(text, sizeof(text), "rung=%s,verify=1%s", rung_names[rung], more);
	ck_ok(gcuffd_options_parse(&o, text, NULL));
	o.stop_timeout_ms = 20000 * check_slow();
	o.log = core_keep_line;
	core_forget_log();
	heap = NULL;
	return gcuffd_heap_load(path, image, &o, &heap);
}

static void load(int rung)
{
	int err = try_load(rung, NULL, "");
	must(!err, "%d: %s", err, core_log);
	ck_ok(gcuffd_thread_attach());
}

#define new_heap(more) \
	do { \
		NEED_RUNG(_i); \
		take_name(); \
		heap = heap_make("rung=%s,verify=1,reservation=1G" more, rung_names[_i]); \
	} while (0)

static void end_heap(void)
{
	ck_ok(gcuffd_heap_destroy(heap));
	heap = NULL;
}

static void save(const void *root)
{
	int err = gcuffd_heap_save(heap, path, WITH_ROOT(root));
	must(!err, "%d: %s", err, core_log);
}

static void *hidden_root(void) { return gcuffd_image_root(heap, "root"); }

/* The shapes are the root of what was saved last. */
static void check_saved(int rung)
{
	load(rung);
	shapes = hidden_root();
	check_shapes();
	checked();
	end_heap();
	unlink(path);
}

START_TEST(round_trip)
{
	new_heap("");
	make_shapes();
	save(shapes);
	checked();
	check_shapes();
	shapes = NULL;
	end_heap();
	load(_i);
	checked();
	size_t out = cold_of(heap).out_pages;
	ck_assert(is_lazy(_i) ? out > NODES * sizeof(struct node) / GU_PAGE : !out);
	ck_ok(gcuffd_collect(heap)); /* kept by its name alone, and nothing comes in */
	ck_ok(gcuffd_collect(heap));
	ck_assert_uint_eq(cold_of(heap).restored_pages, 0);
	ck_assert_uint_le(out - cold_of(heap).out_pages, cold_of(heap).dropped_pages);
	checked();
	shapes = hidden_root();
	ck_assert_ptr_nonnull(shapes);
	ck_assert_ptr_null(gcuffd_image_root(heap, "other"));
	check_shapes();
	make_list(NODES, 7);
	ck_ok(gcuffd_collect(heap));
	check_shapes();
	checked();
	end_heap();
	unlink(path);
}
END_TEST

/* Who says nothing gets what was saved; who says something, that. */
START_TEST(options_are_kept)
{
	new_heap(",cold=1,hard_limit=256M,soft_limit=99M,start_size=1M,growth_percent=70,decay_ms=300,store_codec=zstd,resident_target=64M,"
		 "store_file=32M,cool_mode=idle,cool_after_ms=5000,fault_percent=7,interior=0");
	struct gcuffd_options was = heap->options, got;
	save(make_list(1000, 0));
	end_heap();
	ck_ok(gcuffd_heap_load(path, NULL, NULL, &heap));
	ck_ok(gcuffd_thread_attach());
	got = heap->options;
	check_list(hidden_root(), 1000, 0);
	end_heap();
	got.rung = was.rung; /* what is of the machine and the program */
	got.mark_threads = was.mark_threads;
	got.log = was.log;
	got.log_level = was.log_level;
	got.flags |= GCUFFD_VERIFY;
	ck_assert_mem_eq(&got, &was, sizeof(was));
	must(!try_load(_i, NULL, ",growth_percent=55"), "%s", core_log);
	ck_assert_uint_eq(heap->options.growth_percent, 55);
	ck_assert_uint_eq(heap->options.hard_limit, 0);
	ck_assert(heap->options.flags & GCUFFD_NO_INTERIOR);
	end_heap();
	unlink(path);
}
END_TEST

/* It goes by time or a target like what was made here; that it comes in is not the price of taking it out. */
START_TEST(goes_out_by_itself)
{
	new_heap("");
	make_shapes();
	save(shapes);
	shapes = NULL;
	end_heap();
	load(_i);
	shapes = hidden_root();
	check_shapes();
	usleep(10000); /* it is counted after who touched was woken */
	struct gcuffd_cold_stats s = cold_of(heap);
	ck_assert_int_eq(is_lazy(_i), s.restored_pages > 0);
	ck_assert_int_eq(is_lazy(_i), !s.at_once_pages);
	ck_assert_uint_eq(s.from_image_pages, s.restored_pages);
	ck_assert_uint_eq(s.touched_pages, 0);
	end_heap();
	int err = try_load(_i, NULL, ",cool_mode=idle,cool_after_ms=200,store_memory=64M");
	ck_assert_msg(!err, "%d: %s", err, core_log);
	ck_ok(gcuffd_thread_attach());
	shapes = hidden_root();
	for (unsigned i = 0; i < 60000 && is_lazy(_i) && cold_of(heap).evicted_pages < 500; i++) {
		if (i % 5000 == 0)
			check_shapes();
		usleep(1000);
	}
	ck_assert_int_eq(is_lazy(_i), cold_of(heap).evicted_pages >= 500);
	check_shapes();
	checked();
	end_heap();
	unlink(path);
}
END_TEST

/* What is loaded lives on: it is written, collected, taken out, freed, and saved again over its own image. */
START_TEST(lives_on)
{
	new_heap("");
	make_shapes();
	save(shapes);
	end_heap();
	for (int round = 0; round < 3; round++) {
		load(_i);
		shapes = hidden_root();
		check_list(shapes->list, NODES, (uint64_t)round * NODES);
		make_types(); /* those that there are */
		ck_assert_uint_eq(heap->ntypes, 2);
		shapes->typed = gcuffd_alloc_typed(heap, type, 5000);
		shapes->typed[300] = make_list(5, 5);
		shapes->list = make_list(NODES, (uint64_t)(round + 1) * NODES);
		ck_ok(gcuffd_collect(heap));
		checked();
		if (is_lazy(_i))
			ck_ok(gcuffd_cool(heap, NULL, 0, NULL));
		ck_ok(gcuffd_collect(heap));
		checked();
		save(shapes);
		checked();
		check_list(shapes->list, NODES, (uint64_t)(round + 1) * NODES);
		check_list(shapes->large_typed[511], 10, 511);
		check_list(shapes->typed[300], 5, 5);
		end_heap();
	}
	unlink(path);
}
END_TEST

/* Freed one by one, and all at once: addresses of the image are nobody's again. */
START_TEST(dies)
{
	new_heap("");
	shapes = NULL;
	struct node *list = make_list(NODES, 0);
	save(list);
	list = NULL;
	end_heap();
	load(_i);
	size_t n = 0;
	for (struct node *next, *at = hidden_root(); at; at = next, n++) {
		next = at->next;
		must_ok(n ? gcuffd_free(heap, at) : 0);
		if (!n)
			at->next = NULL;
	}
	ck_assert_uint_eq(n, NODES);
	ck_ok(gcuffd_collect(heap));
	checked();
	uintptr_t loaded = heap->space.base + heap->space.loaded;
	for (struct node *at = make_list(NODES, 5); at; at = at->next)
		must((uintptr_t)at >= loaded || gu_block_at(&heap->space, (uintptr_t)at) == gu_block_at(&heap->space, (uintptr_t)hidden_root()));
	checked();
	end_heap();
	unlink(path);
}
END_TEST

/* Pages that are out, in park, store or another image, are saved from where they are. */
START_TEST(saved_where_it_is)
{
	new_heap(",cold=1");
	make_shapes();
	size_t taken;
	ck_ok(gcuffd_cool(heap, NULL, 0, &taken));
	size_t before = cold_of(heap).out_pages;
	save(shapes);
	ck_assert_uint_eq(cold_of(heap).collector_pages, 0);
	ck_assert_uint_ge(cold_of(heap).out_pages + 4, before);
	checked();
	end_heap();
	load(_i);
	before = cold_of(heap).out_pages;
	save(hidden_root());
	ck_assert_uint_ge(cold_of(heap).out_pages + 4, before);
	end_heap();
	check_saved(_i);
}
END_TEST

/* A process that never had the heap. */
START_TEST(elsewhere)
{
	int to[2], status = -1;
	char c = 0;
	NEED_RUNG(_i);
	take_name();
	ck_ok(pipe(to));
	fflush(stdout);
	pid_t pid = fork();
	ck_assert_int_ge(pid, 0);
	if (!pid) {
		limit_child();
		must(read(to[0], &c, 1) == 1);
		load(_i);
		shapes = hidden_root();
		check_shapes();
		ck_ok(gcuffd_collect(heap));
		check_shapes();
		checked();
		end_heap();
		_exit(0);
	}
	heap = heap_make("rung=%s,verify=1,reservation=1G", rung_names[_i]);
	make_shapes();
	save(shapes);
	ck_assert_int_eq(write(to[1], &c, 1), 1);
	ck_assert_int_eq(waitpid(pid, &status, 0), pid);
	ck_assert_int_eq(status, 0);
	ck_assert_int_eq(try_load(_i, NULL, ""), -EEXIST);
	ck_assert(strstr(core_log, "taken"));
	unlink(path);
}
END_TEST

/* Addresses of a heap are none that another process has for its program, libraries and stack, wherever they lie there. */
START_TEST(apart)
{
#ifdef __SANITIZE_THREAD__
	GU_SKIP("TSan has its own memory there");
#endif
	static int data;
	int here;
	uintptr_t others[] = {(uintptr_t)&data, (uintptr_t)&here, (uintptr_t)printf, (uintptr_t)sbrk(0)};
	heap = heap_make("rung=stop,reservation=16G");
	for (size_t i = 0; i < GU_ARRAY_LEN(others); i++) {
		uintptr_t base = heap->space.base, far = others[i] > base ? others[i] - base : base - others[i];
		ck_assert_uint_gt(far, (uintptr_t)1 << 40);
	}
	end_heap();
}
END_TEST

/* A child of a process with pages in the image reads them too. */
START_TEST(forked)
{
	int status = -1;
	new_heap("");
	make_shapes();
	save(shapes);
	end_heap();
	load(_i);
	fflush(stdout);
	pid_t pid = fork();
	ck_assert_int_ge(pid, 0);
	if (!pid) {
		limit_child();
		shapes = hidden_root();
		check_shapes();
		ck_ok(gcuffd_collect(heap));
		check_shapes();
		end_heap();
		_exit(0);
	}
	ck_assert_int_eq(waitpid(pid, &status, 0), pid);
	ck_assert_int_eq(status, 0);
	shapes = hidden_root();
	check_shapes();
	end_heap();
	unlink(path);
}
END_TEST

/* ---- while mutators run ---- */

#define SLOTS 4096u
#define PAIRS 65536u
#define MUTATORS 2

/*
 * Each mutator writes a number to the one, then to the other of two places far apart, and keeps a list from which it takes at the head and to which
 * it adds: at any moment first == second or first == second + 1, for each pair, and later pairs are never ahead of earlier ones.
 */
struct world {
	uint64_t *first[MUTATORS], *second[MUTATORS];
	struct node **slots[MUTATORS];
};

static struct world *world; /* a root */
static bool over;
static uint64_t longest_ns[MUTATORS];

static void *mutate(void *arg)
{
	unsigned me = (unsigned)(uintptr_t)arg;
	struct test_rng rng = test_rng(me);
	must_ok(gcuffd_thread_attach());
	uint64_t last = test_now_ns();
	for (uint64_t n = 1; !__atomic_load_n(&over, __ATOMIC_RELAXED); n++) {
		for (size_t i = 0; i < PAIRS && !__atomic_load_n(&over, __ATOMIC_RELAXED); i += 97) {
			__atomic_store_n(&world->first[me][i], n, __ATOMIC_RELEASE);
			__atomic_store_n(&world->second[me][PAIRS - 1 - i], n, __ATOMIC_RELEASE);
			struct node *node = gcuffd_alloc(heap, sizeof(*node));
			must(node != NULL, "errno %d", errno);
			size_t at = test_below(&rng, SLOTS);
			node->number = at;
			for (int k = 0; k < 6; k++)
				node->filler[k] = at + (uint64_t)k;
			node->next = world->slots[me][(at + 1) % SLOTS];
			if (node->next && i % 5)
				node->next->next = NULL;
			world->slots[me][at] = node;
			uint64_t now = test_now_ns();
			if (now - last > longest_ns[me])
				longest_ns[me] = now - last;
			last = now;
		}
	}
	must_ok(gcuffd_thread_detach());
	return NULL;
}

static void check_world(const struct world *w)
{
	for (unsigned m = 0; m < MUTATORS; m++) {
		uint64_t last = UINT64_MAX;
		unsigned steps = 0;
		for (size_t i = 0; i < PAIRS; i += 97) {
			uint64_t a = w->first[m][i], b = w->second[m][PAIRS - 1 - i];
			must(a == b || a == b + 1, "pair %zu: %lu, %lu", i, (unsigned long)a, (unsigned long)b);
			steps += (last != UINT64_MAX && a != last) + (a != b);
			must(last == UINT64_MAX || a == last || a + 1 == last, "pair %zu: %lu after %lu", i, (unsigned long)a, (unsigned long)last);
			last = b;
		}
		must(steps <= 2, "%u steps", steps);
		for (size_t i = 0; i < SLOTS; i++)
			for (const struct node *node = w->slots[m][i]; node; node = node->next) {
				must(node->number < SLOTS);
				for (int k = 0; k < 6; k++)
					must(node->filler[k] == node->number + (uint64_t)k);
			}
	}
}

static void save_world(int rung)
{
	pthread_t threads[MUTATORS];
	over = false;
	world = gcuffd_alloc(heap, sizeof(*world));
	for (unsigned m = 0; m < MUTATORS; m++) {
		world->first[m] = gcuffd_alloc_atomic(heap, PAIRS * 8);
		world->second[m] = m ? gcuffd_alloc(heap, PAIRS * 8) : gcuffd_alloc_atomic(heap, PAIRS * 8);
		world->slots[m] = gcuffd_alloc(heap, SLOTS * sizeof(struct node *));
	}
	struct world *w = world;
	uint64_t end = test_now_ns() + check_seconds() * 200000000ull;
	for (unsigned m = 0; m < MUTATORS; m++)
		must_ok(pthread_create(&threads[m], NULL, mutate, (void *)(uintptr_t)m));
	for (int i = 0; i < 3 || test_now_ns() < end; i++)
		save(w);
	ck_ok(gcuffd_collect(heap));
	__atomic_store_n(&over, true, __ATOMIC_RELAXED);
	for (unsigned m = 0; m < MUTATORS; m++)
		must_ok(pthread_join(threads[m], NULL));
	checked();
	end_heap();
	load(rung);
	world = w = hidden_root();
	check_world(w);
	ck_ok(gcuffd_collect(heap));
	check_world(w);
	checked();
	end_heap();
	unlink(path);
}

START_TEST(while_mutators_run)
{
	new_heap("");
	save_world(_i);
}
END_TEST

START_TEST(while_pages_go_and_come)
{
	new_heap(",cold=1,resident_target=2M");
	save_world(_i);
}
END_TEST

/* ---- the zero page ---- */

static char *cleared; /* a page that is in the file */

/* When it has been written: clears it, and makes the kernel split its huge page, where it finds nothing but zeros then. */
static long clear_when_written(int fd, const struct iovec *pieces, int n, off_t at)
{
	long done = gu_os_linux.pwritev(fd, pieces, n, at);
	for (int i = 0; i < n && cleared; i++) {
		if ((char *)pieces[i].iov_base > cleared || (char *)pieces[i].iov_base + pieces[i].iov_len <= cleared)
			continue;
		memset(cleared, 0, GU_PAGE);
		must(!madvise(cleared, GU_PAGE, MADV_COLD), "errno %d", errno);
		cleared = NULL;
	}
	return done;
}

START_TEST(zeros_where_a_huge_page_was)
{
	enum { PAGES = 64 << 8 }; /* 64 MiB: from 32 on they are huge */
	NEED_RUNG(_i);
	take_name();
	heap = heap_make("rung=%s,verify=1,reservation=1G", rung_names[_i]);
	static char *big; /* a root */
	big = gcuffd_alloc_atomic(heap, PAGES * GU_PAGE);
	for (size_t i = 0; i < PAGES; i++)
		*(size_t *)(big + i * GU_PAGE) = i + 1, *(size_t *)(big + i * GU_PAGE + 2048) = ~i;
	size_t page = PAGES / 4 * 3 + 77;
	cleared = big + page * GU_PAGE;
	fake_install();
	fake_os.pwritev = clear_when_written;
	save(big);
	fake_remove();
	ck_assert_ptr_null(cleared);
	end_heap();
	load(_i);
	big = hidden_root();
	for (size_t i = 0; i < PAGES; i++)
		must(*(size_t *)(big + i * GU_PAGE) == (i == page ? 0 : i + 1), "page %zu has %zu", i, *(size_t *)(big + i * GU_PAGE));
	big = NULL;
	end_heap();
	unlink(path);
}
END_TEST

/* ---- what is not reachable ---- */

static size_t image_size(void)
{
	struct stat st;
	must_ok(stat(path, &st));
	return (size_t)st.st_size;
}

/* One node of sixteen is in a list, so that there is one on most pages; and much that is dead altogether, or points out of the heap. */
START_TEST(dead_is_left_out)
{
	enum { KEPT = 30000 };
	new_heap("");
	static struct node *list; /* a root, so that there is no other one */
	list = NULL;
	for (uint64_t i = 0; i < KEPT * 16; i++) {
		struct node *node = make_list(1, i);
		if (i % 16)
			continue;
		node->number = i / 16;
		for (size_t k = 0; k < GU_ARRAY_LEN(node->filler); k++)
			node->filler[k] = ~(i + k) | 1ull << 63;
		node->next = list;
		list = node;
	}
	gcuffd_alloc_atomic(heap, 20 << 20);
	((void **)gcuffd_alloc(heap, 64))[1] = path;
	save(list);
	must(image_size() <= KEPT * sizeof(struct node) / 2 * 3, "%zu bytes of %zu", image_size(), KEPT * sizeof(struct node));
	checked();
	list = NULL;
	end_heap();
	load(_i);
	ck_ok(gcuffd_collect(heap));
	checked();
	uint64_t number = KEPT;
	for (const struct node *node = hidden_root(); node; node = node->next) {
		must(node->number == --number);
		for (size_t k = 0; k < GU_ARRAY_LEN(node->filler); k++)
			must(node->filler[k] == (~(number * 16 + k) | 1ull << 63));
	}
	ck_assert_uint_eq(number, 0);
	end_heap();
	unlink(path);
}
END_TEST

/* Typed, atomic, large, and by pointers to the middle; with no root at all, everything. */
START_TEST(reachable_by_all_sorts)
{
	new_heap("");
	make_shapes();
	char *middle = gcuffd_alloc(heap, 1000);
	struct node **root = gcuffd_alloc(heap, 64);
	*(struct node **)(void *)(middle + 8) = make_list(100, 9);
	root[0] = (void *)shapes;
	root[1] = (void *)(middle + 500);
	save(root);
	save(root);
	size_t named = image_size();
	void *kept = make_list(2000, 3);
	ck_ok(gcuffd_heap_save(heap, path, NULL));
	ck_assert_uint_gt(image_size(), named);
	checked();
	must(kept != NULL);
	save(root);
	shapes = NULL;
	end_heap();
	load(_i);
	root = hidden_root();
	shapes = (void *)root[0];
	check_shapes();
	check_list(*(struct node **)(void *)((char *)root[1] - 492), 100, 9);
	ck_ok(gcuffd_collect(heap));
	check_shapes();
	checked();
	end_heap();
	unlink(path);
}
END_TEST

#define CHURNED 40000u

static struct node **churned; /* a root */

/* At full speed: each node is replaced again and again, and old ones are written to. */
static void *churn(void *arg)
{
	struct test_rng rng = test_rng((uintptr_t)arg);
	size_t first = (uintptr_t)arg * (CHURNED / 2);
	must_ok(gcuffd_thread_attach());
	while (!__atomic_load_n(&over, __ATOMIC_RELAXED)) {
		size_t at = first + test_below(&rng, CHURNED / 2);
		struct node *node = gcuffd_alloc(heap, sizeof(*node));
		must(node != NULL, "errno %d", errno);
		node->number = at;
		for (size_t k = 0; k < GU_ARRAY_LEN(node->filler); k++)
			node->filler[k] = (at + k) | 1ull << 63;
		churned[at] = node;
		node = churned[first + test_below(&rng, CHURNED / 2)];
		node->filler[0] = node->number | 1ull << 63;
	}
	must_ok(gcuffd_thread_detach());
	return NULL;
}

static size_t bytes_read; /* atomic */

static long counted_pread(int fd, void *to, size_t len, off_t at)
{
	__atomic_fetch_add(&bytes_read, len, __ATOMIC_RELAXED);
	return gu_os_linux.pread(fd, to, len, at);
}

/* A list that jumps from page to page costs its nodes, not a page for each. */
START_TEST(in_no_order)
{
	struct test_rng rng = test_rng(0);
	new_heap("");
	struct node **nodes = calloc(NODES, sizeof(*nodes)), *list = NULL;
	must(nodes != NULL);
	churned = gcuffd_alloc(heap, NODES * sizeof(*churned));
	for (size_t i = 0; i < NODES; i++)
		churned[i] = gcuffd_alloc(heap, sizeof(**churned));
	memcpy(nodes, churned, NODES * sizeof(*nodes));
	for (size_t i = NODES - 1; i > 0; i--) {
		size_t other = test_below(&rng, i + 1);
		struct node *node = nodes[i];
		nodes[i] = nodes[other];
		nodes[other] = node;
	}
	for (size_t i = 0; i < NODES; i++) {
		nodes[i]->number = i;
		nodes[i]->next = list;
		list = nodes[i];
	}
	fake_install();
	fake_os.pread = counted_pread;
	bytes_read = 0;
	save(list);
	fake_remove();
	ck_assert_uint_lt(bytes_read, NODES * (GU_PAGE / 8));
	churned = NULL;
	memset(nodes, 0, NODES * sizeof(*nodes));
	free(nodes);
	end_heap();
	load(_i);
	list = hidden_root();
	for (size_t i = NODES; i-- > 0; list = list->next)
		ck_assert_uint_eq(list->number, i);
	ck_assert_ptr_null(list);
	end_heap();
	unlink(path);
}
END_TEST

#define ELEMENTS 20000u

/* Elements of typed arrays lead somewhere up to the object's end, on all its pages. */
START_TEST(arrays_are_followed)
{
	struct gcuffd_type *pairs;
	uint64_t bits = 1ull << 2; /* a head of one word, and the second word of each element */
	new_heap("");
	ck_ok(gcuffd_type_create_array(heap, &bits, 1, 2, &pairs));
	struct node *volatile *array = gcuffd_alloc_typed(heap, pairs, (1 + 2 * ELEMENTS) * 8);
	must(array != NULL, "errno %d", errno);
	for (size_t i = 0; i < ELEMENTS; i += 100)
		array[2 + 2 * i] = make_list(3, i);
	save((const void *)array);
	array = NULL;
	end_heap();
	load(_i);
	array = hidden_root();
	for (size_t i = 0; i < ELEMENTS; i += 100)
		check_list(array[2 + 2 * i], 3, i);
	end_heap();
	unlink(path);
}
END_TEST

static bool arena_is_held; /* the collector's */

static long hold_arena(int fd, void *to, size_t len, off_t at)
{
	if (!arena_is_held)
		gu_lock(&heap->arenas[0]->lock);
	arena_is_held = true;
	return gu_os_linux.pread(fd, to, len, at);
}

static int let_arena(int fd, off_t len)
{
	if (arena_is_held)
		gu_unlock(&heap->arenas[0]->lock);
	arena_is_held = false;
	return gu_os_linux.ftruncate(fd, len);
}

/* From its first read of the file to the header, a save takes no lock that mutators wait for when they need a block: it would lock itself out here. */
START_TEST(locks_no_arena)
{
	new_heap("");
	make_shapes();
	arena_is_held = false;
	fake_install();
	fake_os.pread = hold_arena;
	fake_os.ftruncate = let_arena;
	save(shapes);
	fake_remove();
	ck_assert(!arena_is_held);
	shapes = NULL;
	end_heap();
	load(_i);
	shapes = hidden_root();
	check_shapes();
	end_heap();
	unlink(path);
}
END_TEST

/* What is written meanwhile is in the file but for what lives; and nobody is stopped until all of it is copied. */
START_TEST(no_larger_beside_writers)
{
	pthread_t threads[2];
	const size_t live = CHURNED * (sizeof(struct node) + sizeof(struct node *));
	new_heap(",log_level=info");
	churned = gcuffd_alloc(heap, CHURNED * sizeof(*churned));
	for (size_t i = 0; i < CHURNED; i++) {
		churned[i] = make_list(1, i);
		churned[i]->number = i;
		for (size_t k = 0; k < GU_ARRAY_LEN(churned[i]->filler); k++)
			churned[i]->filler[k] = (i + k) | 1ull << 63;
	}
	over = false;
	for (uintptr_t i = 0; i < 2; i++)
		must_ok(pthread_create(&threads[i], NULL, churn, (void *)i));
	usleep(50000);
	core_forget_log();
	save(churned);
	size_t size = image_size();
	__atomic_store_n(&over, true, __ATOMIC_RELAXED);
	for (int i = 0; i < 2; i++)
		must_ok(pthread_join(threads[i], NULL));
	must(size <= live / 2 * 3, "%zu bytes of %zu", size, live);
	const char *saved = strstr(core_log, "saved to"), *copied = saved ? strstr(saved, " us, ") : NULL;
	unsigned pages = 0;
	ck_assert_ptr_nonnull(copied);
	ck_assert_int_eq(sscanf(copied, " us, %u pages copied", &pages), 1);
	if (_i > GCUFFD_RUNG_STOP)
		ck_assert_uint_le(pages, 4096);
	checked();
	churned = NULL;
	end_heap();
	load(_i);
	churned = hidden_root();
	for (size_t i = 0; i < CHURNED; i++) {
		must(churned[i]->number == i);
		for (size_t k = 0; k < GU_ARRAY_LEN(churned[i]->filler); k++)
			must(churned[i]->filler[k] == ((i + k) | 1ull << 63));
	}
	end_heap();
	unlink(path);
}
END_TEST

/* ---- forks of others meanwhile ---- */

static void *save_again_and_again(void *arg)
{
	must_ok(gcuffd_thread_attach());
	for (unsigned i = 0; !__atomic_load_n(&over, __ATOMIC_RELAXED); i++)
		save(arg);
	must_ok(gcuffd_thread_detach());
	return NULL;
}

/* Who asked is not there in a child: it saves nothing by itself. */
START_TEST(forked_while_saving)
{
	pthread_t thread;
	char dir[] = "dir-XXXXXX";
	NO_SANITIZER("its locks do not survive a fork with threads");
	ck_ok(chdir(test_folder));
	new_heap("");
	snprintf(path, sizeof(path), "image"); /* another file for a child that is in another folder */
	struct node *list = make_list(2000, 0);
	ck_assert_ptr_nonnull(mkdtemp(dir));
	over = false;
	must_ok(pthread_create(&thread, NULL, save_again_and_again, list));
	for (unsigned i = 0; i < check_rounds(20); i++) {
		int status = -1;
		usleep(i * 300);
		fflush(stdout);
		pid_t pid = fork();
		ck_assert_int_ge(pid, 0);
		if (!pid) {
			limit_child();
			must_ok(chdir(dir));
			must_ok(gcuffd_collect(heap));
			must_ok(gcuffd_collect(heap));
			must(access(path, F_OK) && errno == ENOENT);
			save(list);
			must_ok(unlink(path));
			end_heap();
			_exit(0);
		}
		ck_assert_int_eq(waitpid(pid, &status, 0), pid);
		ck_assert_int_eq(status, 0);
	}
	__atomic_store_n(&over, true, __ATOMIC_RELAXED);
	must_ok(pthread_join(thread, NULL));
	ck_ok(rmdir(dir));
	end_heap();
	load(_i);
	check_list(hidden_root(), 2000, 0);
	end_heap();
	unlink(path);
}
END_TEST

/* ---- what is refused ---- */

static char *read_image(size_t *len)
{
	struct stat st;
	int fd = open(path, O_RDONLY);
	ck_assert_int_ge(fd, 0);
	ck_ok(fstat(fd, &st));
	char *bytes = malloc((size_t)st.st_size);
	ck_assert_int_eq(read(fd, bytes, (size_t)st.st_size), st.st_size);
	close(fd);
	*len = (size_t)st.st_size;
	return bytes;
}

static void write_image(const char *bytes, size_t len)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
	ck_assert_int_ge(fd, 0);
	ck_assert_int_eq(write(fd, bytes, len), (long)len);
	close(fd);
}

static sigjmp_buf escape;
static void on_sigbus(int sig)
{
	(void)sig;
	siglongjmp(escape, 1);
}

/* false: SIGBUS was raised. */
static bool reads_well(void)
{
	signal(SIGBUS, on_sigbus);
	if (sigsetjmp(escape, 1))
		return false;
	struct node **typed = hidden_root();
	check_list(typed[0], 1000, 0);
	return true;
}

/* A small heap whose image has some of each section. */
static void make_small(void)
{
	uint64_t bits[1] = {1};
	ck_ok(gcuffd_type_create(heap, bits, 1, &type));
	struct node **typed = gcuffd_alloc_typed(heap, type, 16);
	typed[0] = make_list(1000, 0);
	save(typed);
}

/* Whatever bit is flipped: it is refused, or what is read is right, or reading it raises SIGBUS. */
START_TEST(flipped)
{
	size_t len;
	new_heap("");
	make_small();
	end_heap();
	char *bytes = read_image(&len);
	struct gu_image_head head;
	memcpy(&head, bytes, sizeof(head));
	struct test_rng rng = test_rng(5);
	unsigned refused = 0, right = 0;
	for (unsigned i = 0; i < check_rounds(300); i++) {
		const struct gu_image_section *part = &head.parts[i % GU_IMAGE_PARTS];
		size_t at = i % 3 == 0 ? part->at + (part->len ? test_below(&rng, part->len) : 0) : i % 3 == 1 ? test_below(&rng, 400) : test_below(&rng, len);
		if (at >= len)
			continue;
		char bit = (char)(1 << test_below(&rng, 8));
		bytes[at] ^= bit;
		write_image(bytes, len);
		bytes[at] ^= bit;
		int err = try_load(_i, NULL, "");
		if (err) {
			must(err == -EINVAL || err == -EBADMSG, "%d", err);
			must(core_log_len > 0);
			refused++;
			continue;
		}
		ck_ok(gcuffd_thread_attach());
		if (i % 2)
			ck_ok(gcuffd_collect(heap));
		right += reads_well();
		verified(heap);
		end_heap();
	}
	ck_assert_uint_gt(refused, 0);
	ck_assert_uint_gt(right, 0);
	free(bytes);
	unlink(path);
}
END_TEST

/* In the contents of a page that is asked for. */
START_TEST(flipped_page)
{
	size_t len;
	new_heap("");
	make_small();
	end_heap();
	char *bytes = read_image(&len);
	struct gu_image_head head;
	memcpy(&head, bytes, sizeof(head));
	size_t bad = 0;
	for (size_t p = 0; p < head.top >> GU_PAGE_SHIFT; p++) {
		const struct gu_image_page *e = (const void *)(bytes + head.parts[GU_IMAGE_PAGES].at + p * sizeof(*e));
		if (!e->at || e->at == GU_IMAGE_WORD)
			continue;
		bytes[e->at + 5] ^= 4;
		bad++;
	}
	ck_assert_uint_gt(bad, 10);
	write_image(bytes, len);
	free(bytes);
	int err = try_load(_i, NULL, "");
	if (!is_lazy(_i)) {
		ck_assert_int_eq(err, -EBADMSG);
		ck_assert(strstr(core_log, "damaged"));
		unlink(path);
		return;
	}
	ck_assert_int_eq(err, 0);
	ck_ok(gcuffd_thread_attach());
	ck_ok(gcuffd_collect(heap)); /* by summaries */
	checked();
	ck_assert(!reads_well());
	ck_assert_int_eq(gcuffd_warm(heap, NULL, 0), -EIO);
	ck_assert_uint_ge(cold_of(heap).poisoned_pages, bad);
	end_heap();
	unlink(path);
}
END_TEST

START_TEST(cut_off)
{
	size_t len;
	new_heap("");
	make_small();
	end_heap();
	char *bytes = read_image(&len);
	for (size_t n = 0; n < len; n = n < 4200 ? n + 41 : n < len - 5000 ? n + len / 50 : n + 97) {
		write_image(bytes, n);
		int err = try_load(_i, NULL, "");
		must(err == (n < 8 ? -EINVAL : -EBADMSG), "%zu of %zu bytes: %d", n, len, err);
		must(core_log_len > 0);
	}
	write_image(bytes, len - 1);
	ck_assert_int_eq(try_load(_i, NULL, ""), -EBADMSG);
	write_image("hello, world, this is no image of any heap", 40);
	ck_assert_int_eq(try_load(_i, NULL, ""), -EINVAL);
	ck_assert(strstr(core_log, "no image"));
	struct gu_image_head *head = (void *)bytes;
	head->version++;
	write_image(bytes, len);
	ck_assert_int_eq(try_load(_i, NULL, ""), -EINVAL);
	ck_assert(strstr(core_log, "version"));
	unlink(path);
	ck_assert_int_eq(try_load(_i, NULL, ""), -ENOENT);
	free(bytes);
}
END_TEST

START_TEST(refused_options)
{
	struct gcuffd_image_options o = {.size = 1};
	new_heap("");
	struct node *list = make_list(10, 0);
	ck_assert_int_eq(gcuffd_heap_save(heap, path, &o), -EINVAL);
	ck_assert_int_eq(gcuffd_heap_save(heap, NULL, NULL), -EINVAL);
	struct gcuffd_named two[2] = {{"a", list}, {"a", list}};
	o = (struct gcuffd_image_options){.size = sizeof(o), .roots = two, .nroots = 2};
	ck_assert_int_eq(gcuffd_heap_save(heap, path, &o), -EINVAL);
	two[1] = (struct gcuffd_named){"b", path};
	ck_assert_int_eq(gcuffd_heap_save(heap, path, &o), -EINVAL);
	ck_assert(strstr(core_log, "root b"));
	ck_assert_int_eq(access(path, F_OK), -1);
	two[1].object = NULL;
	ck_ok(gcuffd_heap_save(heap, path, &o));
	end_heap();
	load(_i);
	ck_assert_ptr_null(gcuffd_image_root(heap, "b"));
	ck_assert_int_eq(errno, 0);
	check_list(gcuffd_image_root(heap, "a"), 10, 0);
	end_heap();
	unlink(path);
}
END_TEST

/* ---- who makes an image on purpose ---- */

struct forged {
	char *bytes;
	size_t len, room;
	const char *real; /* what it was made of */
	size_t real_len;
};

static struct gu_image_head *head_of(const struct forged *f) { return (void *)f->bytes; }

static size_t pages_of(const struct forged *f) { return head_of(f)->parts[GU_IMAGE_PAGES].len / sizeof(struct gu_image_page); }
static struct gu_image_page *page_of(const struct forged *f, size_t i)
{
	return (struct gu_image_page *)(void *)(f->bytes + head_of(f)->parts[GU_IMAGE_PAGES].at) + i;
}

static bool lies_in(const struct forged *f, uint64_t at, uint64_t len) { return at <= f->len && len <= f->len - at; }

/* All checksums are right again. */
static void forge_sums(struct forged *f)
{
	struct gu_image_head *h = head_of(f);
	const struct gu_image_section *index = &h->parts[GU_IMAGE_PAGES];
	for (size_t i = 0; lies_in(f, index->at, index->len) && index->at % 8 == 0 && i < pages_of(f); i++) {
		struct gu_image_page *e = page_of(f, i);
		if (e->at && e->at != GU_IMAGE_WORD && lies_in(f, e->at, gu_image_len(e)))
			e->sum = gu_bytes_sum(f->bytes + e->at, gu_image_len(e));
		if (e->summary_len && e->at != GU_IMAGE_WORD && lies_in(f, e->more, e->summary_len))
			e->summary_sum = gu_bytes_sum(f->bytes + e->more, e->summary_len);
	}
	for (int i = 0; i < GU_IMAGE_PARTS; i++)
		if (lies_in(f, h->parts[i].at, h->parts[i].len))
			h->parts[i].sum = gu_image_sum(f->bytes + h->parts[i].at, h->parts[i].len);
	uint64_t sum = gu_image_sum(f->bytes, GU_PAGE - 8);
	memcpy(f->bytes + GU_PAGE - 8, &sum, 8);
}

static uint64_t odd_value(const struct forged *f, struct test_rng *rng, uint64_t was)
{
	const struct gu_image_head *h = head_of(f);
	const uint64_t values[] = {0, 1, UINT64_MAX, 1ull << 63, 1ull << 32, UINT32_MAX, was + 1, was - 1, was * 2, was ^ 1ull << test_below(rng, 64), was + GU_PAGE, was - GU_PAGE,
				   h->base, h->base + h->top, h->base + h->size, h->base - 8, f->len, f->len - 1, -was, test_below(rng, 1 << 20), 0xffff, 0x0101010101010101};
	return values[test_below(rng, GU_ARRAY_LEN(values))];
}

/* Puts something else where there are 1, 2, 4 or 8 bytes. */
static void forge_word(struct forged *f, struct test_rng *rng, uint64_t at)
{
	size_t width = (size_t)1 << test_below(rng, 4);
	uint64_t value = 0;
	at -= at % width;
	if (!lies_in(f, at, width))
		return;
	memcpy(&value, f->bytes + at, width);
	value = odd_value(f, rng, value);
	memcpy(f->bytes + at, &value, width);
}

static void forge_in(struct forged *f, struct test_rng *rng, uint64_t at, uint64_t len)
{
	if (len && lies_in(f, at, len))
		forge_word(f, rng, at + test_below(rng, len));
}

static void forge_page(struct forged *f, struct test_rng *rng, bool summary)
{
	size_t n = pages_of(f);
	for (int tries = 0; tries < 1000 && n && lies_in(f, head_of(f)->parts[GU_IMAGE_PAGES].at, n * sizeof(struct gu_image_page)); tries++) {
		const struct gu_image_page *e = page_of(f, test_below(rng, n));
		if (!e->at || e->at == GU_IMAGE_WORD || (summary && !e->summary_len))
			continue;
		forge_in(f, rng, summary ? e->more : e->at, summary ? gu_min(e->summary_len, 16u) : gu_image_len(e));
		return;
	}
}

/* A piece of a section in another's place, or further on in its own. */
static void forge_splice(struct forged *f, struct test_rng *rng)
{
	const struct gu_image_section *to = &head_of(f)->parts[test_below(rng, GU_IMAGE_PARTS)], *from = &head_of(f)->parts[test_below(rng, GU_IMAGE_PARTS)];
	size_t len = 8 << test_below(rng, 8), at = to->len ? to->at + gu_align_down(test_below(rng, to->len), 8) : 0, of = from->len ? from->at + gu_align_down(test_below(rng, from->len), 8) : 0;
	if (at && of && lies_in(f, at, len) && lies_in(f, of, len))
		memmove(f->bytes + at, f->bytes + of, len);
}

static void forge(struct forged *f, struct test_rng *rng)
{
	unsigned what = (unsigned)test_below(rng, GU_IMAGE_PARTS + 6);
	const struct gu_image_section *part = &head_of(f)->parts[what % GU_IMAGE_PARTS];
	if (what < GU_IMAGE_PARTS)
		forge_in(f, rng, part->at, part->len);
	else if (what == GU_IMAGE_PARTS)
		forge_in(f, rng, 0, sizeof(*head_of(f)));
	else if (what == GU_IMAGE_PARTS + 1)
		forge_splice(f, rng);
	else if (what == GU_IMAGE_PARTS + 2 && test_below(rng, 4) == 0)
		f->len = head_of(f)->length = GU_PAGE + test_below(rng, f->len - GU_PAGE);
	else
		forge_page(f, rng, what > GU_IMAGE_PARTS + 3);
}

static const uint64_t outside[64] = {1};

static struct gcuffd_external the_external = {"table", (void *)(uintptr_t)outside, sizeof(outside)};
static struct gcuffd_external elsewhere_external = {"table", (void *)((uintptr_t)outside + 8), sizeof(outside) - 8};

static void make_all_sorts(void)
{
	make_types();
	void **root = gcuffd_alloc(heap, 4096);
	root[0] = make_list(3000, 0);
	uintptr_t **typed = root[1] = gcuffd_alloc_typed(heap, type, 5000);
	typed[1] = (void *)(uintptr_t)&outside[3];
	typed[300] = gcuffd_alloc_atomic(heap, 10000);
	memset(typed[300], 0x55, 10000);
	uintptr_t **big = root[2] = gcuffd_alloc_typed(heap, large, 100000);
	big[511] = (void *)typed;
	for (int i = 3; i < 200; i++) {
		uintptr_t **small = root[i] = gcuffd_alloc_typed(heap, type, 2408);
		must(small != NULL);
		small[1] = root[i - 1];
		small[300] = root[i % 7];
	}
	gcuffd_alloc(heap, 5 << 20);
	struct gcuffd_named names[3] = {{"root", root}, {"none", NULL}, {"typed", typed}};
	struct gcuffd_image_options o = {.size = sizeof(o), .roots = names, .nroots = 3, .externals = &the_external, .nexternals = 1};
	ck_ok(gcuffd_heap_save(heap, path, &o));
}

/* Whatever it is, it is a heap: cycles run, pages come in and go out, it is written to and saved. */
static void use_forged(struct test_rng *rng)
{
	char other[TEST_PATH];
	must_ok(gcuffd_thread_attach());
	if (test_below(rng, 2))
		(void)gcuffd_collect(heap);
	void *root = gcuffd_image_root(heap, "root");
	(void)gcuffd_image_root(heap, "typed");
	make_types();
	make_list(500, 5);
	(void)gcuffd_warm(heap, NULL, 0);
	(void)gcuffd_collect(heap);
	if (root && !gcuffd_free(heap, root))
		make_list(500, 5);
	(void)gcuffd_cool(heap, NULL, 0, NULL);
	(void)gcuffd_collect(heap);
	snprintf(other, sizeof(other), "%s.other", path);
	struct gcuffd_image_options o = {.size = sizeof(o), .externals = &the_external, .nexternals = 1};
	(void)gcuffd_heap_save(heap, other, &o);
	unlink(other);
	(void)gcuffd_collect(heap);
	space_checked(heap);
	end_heap();
}

/* Its checksums say nothing then: but nothing that is in it is followed out of the heap and its tables. */
START_TEST(forged)
{
	struct forged f;
	unsigned loaded = 0, refused = 0, rounds = check_rounds(60 * check_seconds());
	struct test_rng rng = test_rng(3);
	new_heap("");
	make_all_sorts();
	f.real = read_image(&f.real_len); /* not where the heap was */
	f.bytes = malloc(f.real_len);
	end_heap();
	for (unsigned i = 0; i < rounds || (i < 200 && (!loaded || !refused)); i++) { /* few rounds may all end alike */
		f.len = f.real_len;
		memcpy(f.bytes, f.real, f.len);
		for (size_t n = 1 + test_below(&rng, 3); n-- > 0;)
			forge(&f, &rng);
		forge_sums(&f);
		write_image(f.bytes, f.len);
		struct gcuffd_image_options o = {.size = sizeof(o), .externals = i % 2 ? &the_external : &elsewhere_external, .nexternals = 1};
		int err = try_load(_i, &o, i % 3 ? "" : ",hard_limit=64M,resident_target=1M");
		must(!err || err == -EINVAL || err == -EBADMSG || err == -ENOMEM || err == -EEXIST || err == -ENOENT, "%u: %d: %s", i, err, core_log);
		refused += err != 0;
		loaded += !err;
		if (!err)
			use_forged(&rng);
	}
	ck_assert_uint_gt(loaded, 0);
	ck_assert_uint_gt(refused, 0);
	free(f.bytes);
	free((char *)(uintptr_t)f.real);
	unlink(path);
}
END_TEST

/* ---- pointers out of the heap ---- */

static uint64_t table[64], other[80];

START_TEST(points_out)
{
	uint64_t bits[1] = {1};
	new_heap("");
	ck_ok(gcuffd_type_create(heap, bits, 1, &type));
	uint64_t **typed = gcuffd_alloc_typed(heap, type, 16), **words = gcuffd_alloc(heap, 64);
	uint64_t ***root = gcuffd_alloc(heap, 16);
	root[0] = words;
	root[1] = typed;
	words[3] = &table[7];
	ck_assert_int_eq(gcuffd_heap_save(heap, path, WITH_ROOT(root)), -EXDEV);
	ck_assert_msg(strstr(core_log, "word 3 of the object"), "%s", core_log);
	core_forget_log();
	words[3] = NULL;
	words[4] = (void *)0x123;
	typed[1] = &table[7];
	save(root);
	typed[0] = (void *)0x123;
	ck_assert_int_eq(gcuffd_heap_save(heap, path, WITH_ROOT(root)), -EXDEV);
	ck_assert(strstr(core_log, "word 0 of the object"));
	typed[0] = NULL;
	typed[1] = NULL;
	words[3] = &table[7];
	words[5] = &table[63];
	struct gcuffd_named name = {"root", root};
	struct gcuffd_external e = {"table", table, sizeof(table)};
	struct gcuffd_image_options o = {.size = sizeof(o), .roots = &name, .nroots = 1, .externals = &e, .nexternals = 1};
	typed[0] = &table[9];
	ck_ok(gcuffd_heap_save(heap, path, &o));
	end_heap();
	ck_assert_int_eq(try_load(_i, NULL, ""), -ENOENT);
	ck_assert(strstr(core_log, "table"));
	e.length--;
	ck_assert_int_eq(try_load(_i, &o, ""), -ENOENT);
	for (int moved = 0; moved < 2; moved++) {
		e = (struct gcuffd_external){"table", moved ? other : table, moved ? sizeof(other) : sizeof(table)};
		ck_ok(try_load(_i, &o, ""));
		uint64_t *to = moved ? other : table;
		ck_ok(gcuffd_thread_attach());
		root = hidden_root();
		ck_assert_ptr_eq(root[0][3], &to[7]);
		ck_assert_ptr_eq(root[0][5], &to[63]);
		ck_assert_ptr_eq(root[1][0], &to[9]);
		ck_assert_uint_eq((uintptr_t)root[0][4], 0x123);
		ck_ok(gcuffd_collect(heap));
		checked();
		end_heap();
	}
	unlink(path);
}
END_TEST

/* ---- what goes wrong ---- */

static size_t files_like(void)
{
	char command[2 * TEST_PATH];
	size_t n = 0;
	snprintf(command, sizeof(command), "ls %s* 2>/dev/null | wc -l", path);
	FILE *f = popen(command, "r");
	must(fscanf(f, "%zu", &n) == 1);
	pclose(f);
	return n;
}

/* The image that was there stays, and is whole. */
START_TEST(writing_fails)
{
	static const struct { enum fake_call call; unsigned nth; int err; } faults[] = {
		{FAKE_CREATE, 1, -EACCES}, {FAKE_PWRITEV, 1, -ENOSPC}, {FAKE_PWRITEV, 2, -EIO}, {FAKE_PWRITEV, 5, -ENOSPC},
		{FAKE_PREAD, 1, -EIO}, {FAKE_PREAD, 9, -EIO}, {FAKE_FTRUNCATE, 1, -EFBIG}, {FAKE_FDATASYNC, 1, -EIO}, {FAKE_RENAME, 1, -EXDEV}, {FAKE_PREAD, 1, 0},
	};
	new_heap("");
	struct node *list = make_list(NODES, 0);
	save(list);
	list->number = 77;
	fake_install();
	for (size_t i = 0; i + 1 < GU_ARRAY_LEN(faults); i++) {
		fake_fail(faults[i].call, faults[i].nth, faults[i].err);
		ck_assert_int_eq(gcuffd_heap_save(heap, path, WITH_ROOT(list)), faults[i].err);
		ck_assert_uint_eq(fake.fired, 1);
		ck_assert_uint_eq(files_like(), 1);
	}
	fake_clear();
	ck_ok(gcuffd_collect(heap));
	checked();
	end_heap();
	fake_remove();
	load(_i);
	check_list(hidden_root(), NODES, 0);
	end_heap();
	unlink(path);
}
END_TEST

static uint32_t short_turn; /* atomic */

/* Signals, and pieces of odd lengths. */
static long short_pwritev(int fd, const struct iovec *pieces, int n, off_t at)
{
	struct iovec one = {pieces->iov_base, gu_min(pieces->iov_len, 70001)};
	(void)n;
	return __atomic_fetch_add(&short_turn, 1, __ATOMIC_RELAXED) % 5 == 0 ? -EINTR : gu_os_linux.pwritev(fd, &one, 1, at);
}

static long short_pread(int fd, void *to, size_t len, off_t at)
{
	return __atomic_fetch_add(&short_turn, 1, __ATOMIC_RELAXED) % 3 == 0 ? -EINTR : gu_os_linux.pread(fd, to, gu_min(len, 1001), at);
}

/* Written in pieces, followed, packed and brought in in pieces: nothing is lost. */
START_TEST(short_io)
{
	new_heap("");
	make_shapes();
	fake_install();
	fake_os.pwritev = short_pwritev;
	fake_os.pread = short_pread;
	save(shapes);
	shapes = NULL;
	end_heap();
	load(_i);
	shapes = hidden_root();
	check_shapes();
	ck_ok(gcuffd_collect(heap));
	check_shapes();
	checked();
	end_heap();
	fake_remove();
	unlink(path);
}
END_TEST

/* ---- the file, and who else is there ---- */

/* What others have put where it might be written is not opened, nor is it removed. */
START_TEST(names_taken)
{
	char name[TEST_PATH], victim[TEST_PATH];
	struct stat st, before;
	new_heap("");
	struct node *list = make_list(1000, 0);
	snprintf(victim, sizeof(victim), "%s.victim", path);
	int fd = open(victim, O_WRONLY | O_CREAT | O_TRUNC, 0666);
	ck_assert_int_eq(write(fd, "mine", 4), 4);
	ck_ok(fchmod(fd, 0666));
	for (int i = 0; i < 3; i++) {
		snprintf(name, sizeof(name), "%s.tmp-%d-%d", path, (int)getpid(), i);
		ck_ok(i == 1 ? symlink(victim, name) : link(victim, name));
	}
	ck_ok(fstat(fd, &before));
	mode_t mask = umask(0);
	save(list);
	umask(mask);
	ck_ok(fstat(fd, &st));
	ck_assert_int_eq(st.st_size, 4);
	ck_assert_uint_eq(st.st_nlink, before.st_nlink);
	close(fd);
	ck_ok(lstat(path, &st));
	ck_assert_uint_eq(st.st_mode, S_IFREG | 0600);
	end_heap();
	load(_i);
	check_list(hidden_root(), 1000, 0);
	end_heap();
	for (int i = 0; i < 3; i++) {
		snprintf(name, sizeof(name), "%s.tmp-%d-%d", path, (int)getpid(), i);
		ck_ok(unlink(name));
	}
	unlink(victim);
	ck_ok(mkfifo(victim, 0600));
	unlink(path);
	ck_ok(rename(victim, path));
	ck_assert_int_lt(try_load(_i, NULL, ""), 0); /* and waits for nobody to write to it */
	unlink(path);
}
END_TEST

struct writer {
	struct gcuffd_heap *heap;
	struct node *list;
};

static void *save_twenty_times(void *arg)
{
	struct writer *w = arg;
	must_ok(gcuffd_thread_attach());
	for (int i = 0; i < 20; i++)
		must_ok(gcuffd_heap_save(w->heap, path, WITH_ROOT(w->list)));
	must_ok(gcuffd_thread_detach());
	return NULL;
}

static int image_fd;

/* Only its owner may read it; who may, loads it on whatever rung there is for him, and saves it where he may write. */
static int load_as_nobody(void)
{
	struct gcuffd_options o;
	char name[64];
	gcuffd_options_init(&o);
	o.log = core_keep_line;
	if (gcuffd_heap_load(path, NULL, &o, &heap) != -EACCES || !strstr(core_log, "opened"))
		return 1;
	if (fchmod(image_fd, 0644) != -1 || errno != EPERM)
		return 2;
	snprintf(name, sizeof(name), "/proc/self/fd/%d", image_fd);
	if (gcuffd_heap_load(name, NULL, &o, &heap) != -EACCES)
		return 3;
	take_name();
	int err = gcuffd_heap_create(&o, &heap);
	if (err || gcuffd_thread_attach())
		return 4;
	struct node *list = make_list(3000, 0);
	save(list);
	end_heap();
	if (gcuffd_heap_load(path, NULL, &o, &heap))
		return 5;
	check_list(hidden_root(), 3000, 0);
	ck_ok(gcuffd_collect(heap));
	check_list(hidden_root(), 3000, 0);
	int wrong = gcuffd_heap_save(heap, path, WITH_ROOT(hidden_root())) || gcuffd_heap_save(heap, "/test_image.img", NULL) != -EACCES;
	unlink(path);
	end_heap();
	return wrong ? 6 : 0;
}

START_TEST(unprivileged)
{
	if (geteuid() != 0)
		GU_LACKS("root", "not root, who becomes nobody");
	new_heap("");
	save(make_list(3000, 0));
	end_heap();
	image_fd = open(path, O_RDONLY);
	in_child_as_nobody(load_as_nobody);
	close(image_fd);
	unlink(path);
}
END_TEST

/* Whoever is last, it is one of them whole. */
START_TEST(two_to_one_file)
{
	static struct writer w[2]; /* a root */
	pthread_t threads[2];
	NEED_RUNG(_i);
	take_name();
	for (int i = 0; i < 2; i++) {
		heap = w[i].heap = heap_make("rung=%s,reservation=1G", rung_names[_i]);
		w[i].list = make_list(3000u + 3000u * (unsigned)i, 0);
	}
	for (int i = 0; i < 2; i++)
		must_ok(pthread_create(&threads[i], NULL, save_twenty_times, &w[i]));
	for (int i = 0; i < 2; i++)
		must_ok(pthread_join(threads[i], NULL));
	for (int i = 0; i < 2; i++) {
		ck_ok(gcuffd_heap_destroy(w[i].heap));
		w[i] = (struct writer){NULL, NULL};
	}
	load(_i);
	struct node *list = hidden_root();
	check_list(list, list->number + 1, 0);
	ck_assert(list->number == 2999 || list->number == 5999);
	ck_assert_uint_eq(files_like(), 1);
	end_heap();
	unlink(path);
}
END_TEST

static bool was_saved;

static void *save_once(void *arg)
{
	must_ok(gcuffd_thread_attach());
	save(arg);
	__atomic_store_n(&was_saved, true, __ATOMIC_RELEASE);
	must_ok(gcuffd_thread_detach());
	return NULL;
}

/* What was allocated meanwhile does not make who allocates wait for a cycle as soon as it is over. */
START_TEST(room_afterwards)
{
	pthread_t thread;
	new_heap(",pacing=0,growth_percent=1,start_size=256K");
	struct node **root = gcuffd_alloc(heap, 100 * sizeof(*root));
	for (int i = 0; i < 60; i++)
		memset(root[i] = gcuffd_alloc_atomic(heap, 1 << 20), i, 1 << 20);
	was_saved = false;
	must_ok(pthread_create(&thread, NULL, save_once, root));
	while (!__atomic_load_n(&was_saved, __ATOMIC_ACQUIRE) && !(gu_load_relaxed(&heap->saving_pace) && gu_load_seqcst(&heap->phase) == GU_PHASE_WINDOW))
		sched_yield();
	for (int i = 0; i < 25000 && gu_load_seqcst(&heap->phase) == GU_PHASE_WINDOW; i++) /* the ceiling is set after that */
		must(gcuffd_alloc_atomic(heap, 16000) != NULL);
	must_ok(pthread_join(thread, NULL));
	ck_assert_uint_ge(heap->ceiling, heap->trigger);
	must(heap->ceiling > heap->allocated, "allocated %lu, ceiling %lu", (unsigned long)heap->allocated, (unsigned long)heap->ceiling);
	end_heap();
	unlink(path);
}
END_TEST

/* ---- the OS says no, to each call ---- */

static const struct { enum fake_call call; int err; } refusals[] = {
	{FAKE_MMAP, -ENOMEM}, {FAKE_MPROTECT, -ENOMEM}, {FAKE_MADVISE, -ENOMEM}, {FAKE_IOCTL, -ENOMEM}, {FAKE_OPEN, -EMFILE}, {FAKE_READ, -EIO}, {FAKE_PREAD, -EIO},
	{FAKE_CREATE, -ENOSPC}, {FAKE_PWRITEV, -EDQUOT}, {FAKE_FTRUNCATE, -EIO}, {FAKE_FDATASYNC, -EIO}, {FAKE_RENAME, -EPERM}, {FAKE_FUTEX_WAIT, -EINTR}, {FAKE_TGKILL, -EAGAIN},
};

START_TEST(saving_refused)
{
	NEED_RUNG(_i);
	take_name();
	heap = heap_make("rung=%s,reservation=1G,cold=1", rung_names[_i]); /* the verifier would say that it had no memory */
	struct node *list = make_list(3000, 0);
	save(list);
	if (is_lazy(_i))
		ck_ok(gcuffd_cool(heap, NULL, 0, NULL));
	fake_install();
	for (size_t i = 0; i < GU_ARRAY_LEN(refusals); i++)
		for (unsigned n = 1, fired = 1; n < 60 && fired; n += 1 + n / 8 * check_slow()) {
			fake_fail(refusals[i].call, n, refusals[i].err);
			int err = gcuffd_heap_save(heap, path, WITH_ROOT(list));
			fired = fake.fired;
			fake_clear();
			must(!err || fired, "call %d, %u: %d", (int)refusals[i].call, n, err);
			ck_assert_uint_eq(files_like(), 1);
			checked();
		}
	fake_remove();
	ck_ok(gcuffd_collect(heap));
	check_list(list, 3000, 0);
	checked();
	end_heap();
	load(_i);
	check_list(hidden_root(), 3000, 0);
	end_heap();
	unlink(path);
}
END_TEST

/* Not loaded, or all of it right; and nothing is left of what was not. */
START_TEST(loading_refused)
{
	new_heap("");
	save(make_list(3000, 0));
	end_heap();
	load(_i);
	end_heap();
	fake_install();
	for (size_t i = 0; i < GU_ARRAY_LEN(refusals); i++)
		for (unsigned n = 1, fired = 1; n < 200 && fired; n += 1 + n / 8 * check_slow()) {
			fake_fail(refusals[i].call, n, refusals[i].err);
			int err = try_load(_i, NULL, "");
			fired = fake.fired;
			fake_clear();
			must(!err || (fired && core_log_len), "call %d, %u: %d", (int)refusals[i].call, n, err);
			if (err)
				continue;
			ck_ok(gcuffd_thread_attach());
			check_list(hidden_root(), 3000, 0);
			checked();
			end_heap();
		}
	fake_remove();
	load(_i);
	check_list(hidden_root(), 3000, 0);
	end_heap();
	unlink(path);
}
END_TEST

/* Pages that nobody can be asked for are read at once: so damage is found at once, too. */
START_TEST(read_at_once)
{
	size_t len;
	NEED_RUNG(_i);
	for (int damaged = 0; damaged < 2; damaged++) {
		new_heap("");
		make_small();
		char *bytes = read_image(&len);
		end_heap();
		struct gu_image_head head;
		memcpy(&head, bytes, sizeof(head));
		for (size_t p = 0; damaged && p < head.top >> GU_PAGE_SHIFT; p++) {
			const struct gu_image_page *e = (const void *)(bytes + head.parts[GU_IMAGE_PAGES].at + p * sizeof(*e));
			if (e->at && e->at != GU_IMAGE_WORD)
				bytes[e->at + 5] ^= 4;
		}
		write_image(bytes, len);
		free(bytes);
		fake_install();
		fake_fail_ioctl(GU_UFFDIO_REGISTER, 2, -ENOMEM); /* after that of the resolver's bell */
		fake.sticky = true;
		int err = try_load(_i, NULL, "");
		ck_assert_uint_gt(fake.fired, 0);
		fake_clear();
		must(err == (damaged ? -EBADMSG : 0), "%d: %s", err, core_log);
		if (!err) {
			ck_ok(gcuffd_thread_attach());
			ck_assert(reads_well());
			checked();
			end_heap();
		}
		fake_remove();
		unlink(path);
	}
}
END_TEST

START_TEST(killed)
{
	int status;
	NEED_RUNG(_i);
	take_name();
	struct test_rng rng = test_rng(9);
	unsigned whole = 0;
	for (unsigned i = 0; i < check_rounds(12) || !whole; i++) { /* later and later: disks differ */
		int ready[2];
		char c;
		ck_ok(pipe(ready));
		fflush(stdout);
		pid_t pid = fork();
		ck_assert_int_ge(pid, 0);
		if (!pid) {
			limit_child();
			heap = heap_make("rung=%s,reservation=1G", rung_names[_i]);
			struct node *list = make_list(NODES, 0);
			must(write(ready[1], &c, 1) == 1);
			for (;;)
				save(list);
		}
		ck_assert_int_eq(read(ready[0], &c, 1), 1);
		usleep((useconds_t)test_below(&rng, 20000 * (i + 1) * check_slow()));
		ck_ok(kill(pid, SIGKILL));
		ck_assert_int_eq(waitpid(pid, &status, 0), pid);
		close(ready[0]);
		close(ready[1]);
		int err = try_load(_i, NULL, "");
		must(!err || err == -ENOENT, "%d: %s", err, core_log);
		if (err)
			continue;
		ck_ok(gcuffd_thread_attach());
		check_list(hidden_root(), NODES, 0);
		end_heap();
		whole++;
	}
	char command[2 * TEST_PATH];
	snprintf(command, sizeof(command), "rm -f %s %s.tmp-*", path, path);
	ck_ok(system(command));
}
END_TEST

/* ---- pages that can't be filled at a bad moment ---- */

static uintptr_t watched; /* a page, which can't be filled: that turns out when the collector asks the kernel something, or what is there */
static uint32_t is_there, hooked, go_on, refusing; /* atomic */
static bool at_look;

static bool is_hook(unsigned long request, const void *arg)
{
	const struct gu_pm_scan_arg *scan = arg;
	bool look = request == GU_PAGEMAP_SCAN && !scan->flags && scan->category_anyof_mask & GU_PAGE_IS_PRESENT;
	return (look || !at_look) && gu_swap_seqcst(&hooked, 0);
}

static long refuse_watched(int fd, unsigned long request, void *arg)
{
	const struct gu_uffdio_copy *copy = arg;
	if (request == GU_UFFDIO_COPY && copy->dst == watched && gu_load_seqcst(&refusing)) {
		gu_store_seqcst(&is_there, 1);
		await(&go_on, 10000 * check_slow());
		return -ENOMEM;
	}
	if (is_hook(request, arg)) {
		gu_store_seqcst(&go_on, 1);
		usleep(200000);
	}
	return gu_os_linux.ioctl(fd, request, arg);
}

static void *warm_watched(void *unused)
{
	must(gcuffd_warm(heap, (void *)watched, 8) == -ENOMEM, "the page was filled");
	return unused;
}

/* A page is being filled, which fails behind the back of who looked at which pages are out. */
static void begin_refused(pthread_t *t, const void *at, bool look)
{
	watched = gu_align_down((uintptr_t)at, GU_PAGE);
	at_look = look;
	is_there = go_on = 0;
	refusing = 1;
	fake_install();
	fake_os.ioctl = refuse_watched;
	must_ok(pthread_create(t, NULL, warm_watched, NULL));
	await(&is_there, 10000 * check_slow());
	gu_store_seqcst(&hooked, 1);
}

static void end_refused(pthread_t t)
{
	ck_assert_uint_eq(hooked, 0);
	must_ok(pthread_join(t, NULL));
	refusing = 0;
	fake_remove();
}

START_TEST(filling_fails_in_the_first_cycle)
{
	pthread_t t;
	new_heap("");
	make_shapes();
	save(shapes);
	shapes = NULL;
	end_heap();
	load(_i);
	shapes = hidden_root();
	begin_refused(&t, &shapes->big[5 * 8192 + 5], false);
	ck_ok(gcuffd_collect(heap));
	end_refused(t);
	check_shapes();
	checked();
	end_heap();
	unlink(path);
}
END_TEST

START_TEST(filling_fails_in_a_save)
{
	pthread_t t;
	new_heap(",cold=1");
	make_shapes();
	cool_all();
	ck_assert(is_out(&shapes->big_atomic[100 * 512]));
	begin_refused(&t, &shapes->big_atomic[100 * 512], true);
	save(shapes);
	end_refused(t);
	end_heap();
	check_saved(_i);
}
END_TEST

static Suite *image_suite(void)
{
	Suite *s = suite_create("image");
	TCase *c = test_case(s, "whole");
	tcase_add_loop_test(c, round_trip, GCUFFD_RUNG_STOP, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(c, options_are_kept, GCUFFD_RUNG_MOVE, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(c, lives_on, GCUFFD_RUNG_STOP, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(c, goes_out_by_itself, GCUFFD_RUNG_STOP, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(c, dies, GCUFFD_RUNG_STOP, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(c, saved_where_it_is, GCUFFD_RUNG_MOVE, GCUFFD_RUNG_RWP + 1);
	c = test_case(s, "processes");
	tcase_add_loop_test(c, elsewhere, GCUFFD_RUNG_STOP, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(c, forked, GCUFFD_RUNG_STOP, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(c, killed, GCUFFD_RUNG_STOP, GCUFFD_RUNG_RWP + 1);
	c = test_case(s, "mutators");
	tcase_add_loop_test(c, while_pages_go_and_come, GCUFFD_RUNG_MOVE, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(c, forked_while_saving, GCUFFD_RUNG_STOP, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(c, while_mutators_run, GCUFFD_RUNG_STOP, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(c, zeros_where_a_huge_page_was, GCUFFD_RUNG_ASYNC, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(c, no_larger_beside_writers, GCUFFD_RUNG_STOP, GCUFFD_RUNG_RWP + 1);
	c = test_case(s, "reachable");
	tcase_add_loop_test(c, dead_is_left_out, GCUFFD_RUNG_STOP, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(c, reachable_by_all_sorts, GCUFFD_RUNG_STOP, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(c, in_no_order, GCUFFD_RUNG_STOP, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(c, arrays_are_followed, GCUFFD_RUNG_STOP, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(c, locks_no_arena, GCUFFD_RUNG_STOP, GCUFFD_RUNG_RWP + 1);
	c = test_case(s, "others");
	tcase_add_test(c, apart);
	tcase_add_loop_test(c, names_taken, GCUFFD_RUNG_STOP, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(c, unprivileged, GCUFFD_RUNG_STOP, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(c, two_to_one_file, GCUFFD_RUNG_STOP, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(c, room_afterwards, GCUFFD_RUNG_STOP, GCUFFD_RUNG_RWP + 1);
	c = test_case(s, "os");
	tcase_add_loop_test(c, saving_refused, GCUFFD_RUNG_STOP, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(c, loading_refused, GCUFFD_RUNG_STOP, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(c, short_io, GCUFFD_RUNG_STOP, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(c, read_at_once, GCUFFD_RUNG_MOVE, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(c, filling_fails_in_the_first_cycle, GCUFFD_RUNG_MOVE, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(c, filling_fails_in_a_save, GCUFFD_RUNG_MOVE, GCUFFD_RUNG_RWP + 1);
	c = test_case(s, "forged");
	tcase_add_loop_test(c, forged, GCUFFD_RUNG_STOP, GCUFFD_RUNG_RWP + 1);
	c = test_case(s, "refused");
	tcase_add_loop_test(c, flipped, GCUFFD_RUNG_STOP, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(c, flipped_page, GCUFFD_RUNG_STOP, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(c, cut_off, GCUFFD_RUNG_STOP, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(c, refused_options, GCUFFD_RUNG_STOP, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(c, points_out, GCUFFD_RUNG_STOP, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(c, writing_fails, GCUFFD_RUNG_STOP, GCUFFD_RUNG_RWP + 1);
	return s;
}

TEST_MAIN(image_suite)
