/* SPDX-License-Identifier: MIT */
/*
 * test_without.c - each optimisation left out in turn, on each rung: the same work has the same result. What lives is known
 * from a model, which decides all that is done; so with one seed the work is the same whatever the collector does.
 */
#include "base/without.h"
#include "watch.h"

static const struct {
	const char *name;
	unsigned bit;
} all[] = {
#define ENTRY(name) {#name, GU_WITHOUT_##name},
	{"nothing", 0}, GU_WITHOUT_EACH(ENTRY) {"all", GU_WITHOUT_ALL},
};

#define NAMES GU_ARRAY_LEN(all)

static bool is_of_heap(size_t i) { return !all[i].bit || all[i].bit & (GU_WITHOUT_HEAP | GU_WITHOUT_membarrier); }

/* ---- a heap, and a model of what is in it ---- */

#define NODES 2400u
#define LINKS 3u
#define SLOTS 24u  /* of each sort of roots */
#define STAGES 6u  /* a cycle ends in each at least */
#define ROOM ((size_t)128 << 10) /* of a root: large enough to be tracked */

struct node {
	uint64_t number;
	struct node *link[LINKS]; /* of an atomic object: keep nothing alive */
	uint64_t rest[];
};

/* 0 is no node. */
static struct {
	uint64_t hidden;
	uint32_t link[LINKS];
	size_t size;
	bool atomic, reached;
} model[NODES + 1];

enum { IN_DATA, IN_RANGE, IN_TLS, ON_STACK, SORTS };

struct roots {
	struct node **slot[SORTS];
	uint32_t number[SORTS][SLOTS];
};

static struct node *in_data[ROOM / 8];
static __thread struct node *in_tls[SLOTS];
static struct node **in_range;

static struct work {
	struct gcuffd_heap *heap;
	struct gcuffd_type *type;
	struct test_rng rng;
	struct roots roots;
	uint32_t made, quit; /* quit: atomic */
	uint64_t *buffer;    /* a root; resized now and then; a word a page is not zero */
	size_t words;
} work;

static size_t pick_size(struct test_rng *rng)
{
	uint64_t dice = test_below(rng, 1000);
	size_t most = dice < 850 ? 400 : dice < 990 ? 3000 : dice < 998 ? 60000 : 1 << 18;
	return sizeof(struct node) + test_below(rng, most / 8) * 8;
}

/* Large ones are left as they are but for a word of their middle. */
static void fill_node(struct node *n, uint32_t number, size_t size)
{
	size_t words = size / 8;
	for (size_t i = 0; i < words; i += 1 + i / 16)
		must(!((uint64_t *)n)[i], "a new object of %zu bytes is not zero", size);
	n->number = number;
	if (words > sizeof(*n) / 8 + 1)
		((uint64_t *)n)[words / 2 + 2] = number;
}

static void check_node(const struct node *n, uint32_t number)
{
	size_t words = model[number].size / 8;
	must(n && n->number == number, "node %u at %p was lost", number, (const void *)n);
	must(words <= sizeof(*n) / 8 + 1 || ((const uint64_t *)n)[words / 2 + 2] == number, "node %u is damaged", number);
}

static uint32_t make_node(struct work *w, struct node **out)
{
	uint32_t number = ++w->made;
	size_t size = pick_size(&w->rng);
	uint64_t kind = test_below(&w->rng, 3);
	struct node *n = kind == 0 ? gcuffd_alloc(w->heap, size) : kind == 1 ? gcuffd_alloc_atomic(w->heap, size)
			: gcuffd_alloc_typed(w->heap, w->type, size);
	must(n, "no memory");
	fill_node(n, number, size);
	model[number].hidden = hide(n);
	model[number].size = size;
	model[number].atomic = kind == 1;
	*out = n;
	return number;
}

/* A node some steps from a slot; 0 if the slot is empty. */
static uint32_t walk(struct work *w, struct node **out)
{
	size_t sort = test_below(&w->rng, SORTS), i = test_below(&w->rng, SLOTS), steps = test_below(&w->rng, 30);
	uint32_t number = w->roots.number[sort][i];
	struct node *n = w->roots.slot[sort][i];
	for (; number && steps && !model[number].atomic; steps--) {
		size_t j = test_below(&w->rng, LINKS);
		if (!model[number].link[j])
			break;
		check_node(n, number);
		n = n->link[j];
		number = model[number].link[j];
	}
	if (number)
		check_node(n, number);
	*out = n;
	return number;
}

static void set_slot(struct work *w, uint32_t number, struct node *n)
{
	size_t sort = test_below(&w->rng, SORTS), i = test_below(&w->rng, SLOTS);
	w->roots.slot[sort][i] = n;
	w->roots.number[sort][i] = number;
}

/* Links of atomic objects are written, and lead nowhere. */
static void set_link(struct work *w, uint32_t number, struct node *n)
{
	struct node *from;
	uint32_t at = walk(w, &from);
	size_t j = test_below(&w->rng, LINKS);
	if (!at)
		return;
	from->link[j] = n;
	model[at].link[j] = model[at].atomic ? 0 : number;
}

/* Sparse, and larger and smaller than what is cut up; what is added is zero. */
static void resize_buffer(struct work *w)
{
	size_t words = ((size_t)1 << 15) + test_below(&w->rng, 7 << 15);
	w->buffer = gcuffd_realloc(w->heap, w->buffer, words * 8);
	must(w->buffer, "no memory");
	for (size_t i = 0; i < words; i += 512 * 16) {
		must(w->buffer[i] == (i < w->words ? i + 1 : 0), "word %zu of the buffer is %lu", i, (unsigned long)w->buffer[i]);
		w->buffer[i] = i + 1;
	}
	w->words = words;
}

static void step(struct work *w)
{
	struct node *n = NULL;
	uint64_t dice = test_below(&w->rng, 100);
	uint32_t number = dice < 75 ? make_node(w, &n) : dice < 90 ? walk(w, &n) : 0;
	if (dice % 5 == 0)
		set_slot(w, number, n);
	else
		set_link(w, number, n);
	if (test_below(&w->rng, 400) == 0)
		resize_buffer(w);
}

static void wait_cycle(struct work *w)
{
	for (uint64_t was = stats_of(w->heap).cycles; stats_of(w->heap).cycles == was;)
		usleep(100);
}

/* What it alone can see goes to the data segment when it ends. */
static void *mutate(void *arg)
{
	struct work *w = arg;
	struct node *on_stack[SLOTS] = {NULL};
	uint32_t most = NODES / check_slow();
	must_ok(gcuffd_thread_attach());
	w->roots.slot[IN_DATA] = in_data;
	w->roots.slot[IN_RANGE] = in_range;
	w->roots.slot[IN_TLS] = in_tls;
	w->roots.slot[ON_STACK] = on_stack;
	for (uint32_t stage = 1; stage <= STAGES; stage++) {
		for (unsigned n = 0; w->made < most / STAGES * stage; n++) {
			step(w);
			if (n % 40 == 0) /* some in each part of a cycle */
				usleep(20);
		}
		wait_cycle(w);
	}
	memcpy(in_data + SLOTS, in_tls, sizeof(in_tls));
	memcpy(in_data + 2 * SLOTS, on_stack, sizeof(on_stack));
	memset(on_stack, 0, sizeof(on_stack));
	memset(in_tls, 0, sizeof(in_tls));
	__asm__ volatile("" : : "r"(on_stack) : "memory");
	must_ok(gcuffd_thread_detach());
	return NULL;
}

static void *collect(void *arg)
{
	struct work *w = arg;
	while (!__atomic_load_n(&w->quit, __ATOMIC_RELAXED))
		must_ok(gcuffd_collect(w->heap));
	return NULL;
}

/* ---- what lives at the end ---- */

static void reach(uint32_t number)
{
	static uint32_t stack[NODES * LINKS + 1];
	size_t depth = 0;
	for (stack[depth++] = number; depth;) {
		number = stack[--depth];
		if (!number || model[number].reached)
			continue;
		model[number].reached = true;
		for (size_t j = 0; j < LINKS; j++)
			stack[depth++] = model[number].link[j];
	}
}

/* The memory of one that died may be another's by now. */
static __attribute__((noinline)) bool lives(struct work *w, uint32_t number)
{
	struct gcuffd_object o;
	const struct node *n = reveal(model[number].hidden);
	return !gcuffd_object_find(w->heap, n, &o) && o.base == n && n->number == number;
}

static void check_living(struct work *w, const char *name, bool exactly)
{
	for (size_t sort = 0; sort < SORTS; sort++)
		for (size_t i = 0; i < SLOTS; i++)
			reach(w->roots.number[sort][i]);
	for (uint32_t i = 1; i <= w->made; i++) {
		bool alive = lives(w, i);
		ck_assert_msg(alive || !model[i].reached, "without %s: node %u of %u was lost", name, i, w->made);
		ck_assert_msg(!exactly || alive == model[i].reached, "without %s: node %u of %u was kept", name, i, w->made);
		if (model[i].reached)
			check_node(reveal(model[i].hidden), i);
	}
}

static struct gcuffd_heap *make_heap(int rung, size_t without, const char *more)
{
	bool named = all[without].bit & GU_WITHOUT_HEAP;
	gu_without_process = all[without].bit & ~(unsigned)GU_WITHOUT_HEAP;
	return heap_make("rung=%s,start_size=256K,verify=1%s%s%s", rung_names[rung], more, named ? ",without=" : "",
			 named ? all[without].name : "");
}

/* The same work each time; after it, statistics. */
static struct gcuffd_stats do_work(int rung, size_t without, const char *more)
{
	static const uint64_t bitmap[] = {0xe}; /* the links */
	struct work *w = &work;
	pthread_t mutator, collector;
	memset(w, 0, sizeof(*w));
	memset(model, 0, sizeof(model));
	memset(in_data, 0, sizeof(in_data));
	w->heap = make_heap(rung, without, more);
	w->rng = test_rng(7);
	in_range = mmap(NULL, ROOM, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	must_ok(gcuffd_root_add(w->heap, in_range, ROOM));
	must_ok(gcuffd_type_create(w->heap, bitmap, 4, &w->type));
	must_ok(pthread_create(&collector, NULL, collect, w));
	must_ok(pthread_create(&mutator, NULL, mutate, w));
	pthread_join(mutator, NULL);
	__atomic_store_n(&w->quit, 1, __ATOMIC_RELAXED);
	pthread_join(collector, NULL);
	for (int i = 0; i < 2; i++) {
		scrub();
		must_ok(gcuffd_collect(w->heap));
	}
	check_living(w, all[without].name, !*more);
	verified(w->heap);
	struct gcuffd_stats s = stats_of(w->heap);
	ck_assert_uint_eq(s.rung, (uint32_t)rung);
	must_ok(gcuffd_heap_destroy(w->heap));
	munmap(in_range, ROOM);
	return s;
}

/* Where all takes longer only the highest rung is gone through name by name. */
static bool is_tried(int rung, size_t i)
{
	bool fast = check_slow() == 1 && !sanitized();
	return fast || rung == GCUFFD_RUNG_RWP || !all[i].bit || all[i].bit == GU_WITHOUT_ALL;
}

START_TEST(heaps)
{
	NEED_RUNG(_i);
	for (size_t i = 0; i < NAMES; i++)
		if (is_of_heap(i) && is_tried(_i, i))
			do_work(_i, i, "");
}
END_TEST

/* All memory of the process is a root, the model too, which hides what it has; but more is kept by chance. */
START_TEST(heaps_with_process_roots)
{
	NEED_RUNG(_i);
	NO_SANITIZER("its memory is no root");
	if (check_slow() > 1 && _i < GCUFFD_RUNG_RWP)
		GU_SKIP("all takes longer here");
	const unsigned of_roots = GU_WITHOUT_present | GU_WITHOUT_tracked | GU_WITHOUT_populated;
	for (size_t i = 0; i < NAMES; i++)
		if (is_tried(GCUFFD_RUNG_AUTO, i) && (!all[i].bit || all[i].bit & of_roots))
			do_work(_i, i, ",process_roots=1");
}
END_TEST

/* ---- that there is more work shows that something was left out ---- */

static size_t index_of(unsigned bit)
{
	size_t i = 0;
	while (all[i].bit != bit)
		i++;
	return i;
}

/* A list that is there, and nothing else going on; a quarter of it atomic. */
static struct gcuffd_stats quiet_cycle(int rung, unsigned without, size_t *threads)
{
	size_t before = settled_threads(1); /* none of the last heap's */
	struct gcuffd_heap *h = make_heap(rung, index_of(without), "");
	for (uint32_t i = 0; i < 4000; i++) {
		struct node *n = i % 4 ? gcuffd_alloc(h, 512) : gcuffd_alloc_atomic(h, 512);
		n->link[0] = i % 4 ? in_data[0] : NULL;
		in_data[i % 4 ? 0 : 2 + i / 4] = n;
	}
	for (int i = 0; i < 3; i++)
		ck_ok(gcuffd_collect(h));
	*threads = status_kb("Threads:") - before;
	struct gcuffd_stats s = stats_of(h);
	ck_ok(gcuffd_heap_destroy(h));
	memset(in_data, 0, sizeof(in_data));
	return s;
}

START_TEST(there_is_more_work)
{
	size_t threads, fewer;
	NEED_RUNG(_i);
	struct gcuffd_stats plain = quiet_cycle(_i, 0, &threads), s;
	s = quiet_cycle(_i, GU_WITHOUT_preclean, &fewer);
	ck_assert_uint_ge(plain.last_preclean_rounds, 1);
	ck_assert_uint_eq(s.last_preclean_rounds, 0);
	s = quiet_cycle(_i, GU_WITHOUT_cards, &fewer);
	ck_assert_uint_ge(s.last_remark_dirty_pages, 300);
	ck_assert_uint_lt(plain.last_remark_dirty_pages, 100);
	s = quiet_cycle(_i, GU_WITHOUT_tracked, &fewer);
	ck_assert_uint_ge(s.last_remark_words, plain.last_remark_words + 1024);
	s = quiet_cycle(_i, GU_WITHOUT_atomic, &fewer);
	ck_assert_uint_ge(s.last_pages_scanned, plain.last_pages_scanned + 100);
	s = quiet_cycle(_i, GU_WITHOUT_current, &fewer);
	ck_assert_uint_ge(s.last_pages_scanned, plain.last_pages_scanned + 100);
	s = quiet_cycle(_i, GU_WITHOUT_parallel, &fewer);
	ck_assert(fewer < threads || sysconf(_SC_NPROCESSORS_ONLN) == 1);
	s = quiet_cycle(_i, GU_WITHOUT_ahead, &fewer);
	ck_assert(fewer < threads || !gu_caps()->has_thp);
}
END_TEST

/* ---- watching ---- */

#define PAGES 96u
#define REPORTS 24u
#define WATCHED 2u

/* Written (or accessed), read and dropped; what two watchers are told now and then. */
static void watch_work(enum memory_kind kind, bool accesses, unsigned without, struct set reports[WATCHED][REPORTS])
{
	struct test_rng rng = test_rng(9);
	bool written[WATCHED][PAGES];
	gu_without_process = without;
	must(make_memory(kind, kind < HUGE ? PAGES : 8), "no memory");
	for (size_t i = 0; i < mem.pages; i += 3)
		touch(i);
	if (accesses)
		mem.flags = GCUFFD_WATCH_ACCESSES;
	ck_ok(make_watchers(WATCHED, 0));
	begin(watch[0]);
	begin(watch[1]);
	memset(written, 0, sizeof(written));
	for (size_t n = 0; n < WATCHED * REPORTS; n++) {
		for (uint64_t steps = test_below(&rng, 30); steps; steps--) {
			size_t page = test_below(&rng, mem.pages);
			uint64_t dice = test_below(&rng, 10);
			if (dice < 5) {
				touch(page);
				written[0][page] = written[1][page] = true;
			} else if (dice < 9) {
				(void)look(page);
				if (accesses)
					written[0][page] = written[1][page] = true;
			} else {
				ck_ok(madvise(page_at(page), mem.page, MADV_DONTNEED));
				if (is_private() || accesses) /* as it was, if it was empty before */
					written[0][page] = written[1][page] = false;
			}
		}
		size_t who = n % WATCHED;
		struct set *set = &reports[who][n / WATCHED];
		memset(set, 0, sizeof(*set));
		ck_ok(report_into(set, watch[who], gcuffd_watch_collect, 7));
		for (size_t i = 0; i < mem.pages; i++) {
			ck_assert_msg(set->has[i] || !written[who][i], "kind %d, report %zu: page %zu was lost", kind, n, i);
			written[who][i] = false;
		}
	}
	ck_ok(gcuffd_watch_destroy(watch[0]));
	ck_ok(gcuffd_watch_destroy(watch[1]));
	munmap(mem.at, mem.pages * mem.page);
	if (mem.fd >= 0)
		close(mem.fd);
}

START_TEST(watchers)
{
	static struct set plain[WATCHED][REPORTS], now[WATCHED][REPORTS];
	enum memory_kind kind = (enum memory_kind)(_i % KINDS);
	bool accesses = _i >= KINDS;
	NEED_WATCH();
	if (accesses && !gu_caps()->has_rwp_async)
		GU_SKIP("no read-write protection");
	if (accesses && (kind == PRECISE || kind == FILE_COPY))
		return; /* not to be watched so */
	if (!has_kind(kind, 8))
		GU_SKIP("no memory of kind %d", _i);
	watch_work(kind, accesses, 0, plain);
	const unsigned of_watching = GU_WITHOUT_unarmed | GU_WITHOUT_cheap | GU_WITHOUT_holes | GU_WITHOUT_direct | GU_WITHOUT_full |
				     GU_WITHOUT_quick | GU_WITHOUT_short;
	for (size_t n = 0; n < NAMES; n++) {
		if (all[n].bit && !(all[n].bit & of_watching))
			continue;
		watch_work(kind, accesses, all[n].bit, now);
		for (size_t k = 0; k < WATCHED * REPORTS; k++)
			for (size_t i = 0; i < PAGES; i++) {
				bool was = plain[k / REPORTS][k % REPORTS].has[i], is = now[k / REPORTS][k % REPORTS].has[i];
				ck_assert_msg(!was || is, "without %s, kind %d: report %zu lacks page %zu", all[n].name, _i, k, i);
				ck_assert_msg(all[n].bit || was == is, "the same work, another report");
			}
	}
}
END_TEST

/* ---- filling on first touch ---- */

static int fill(void *data, size_t offset, size_t len, void *into)
{
	(void)data;
	for (size_t i = 0; i < len / 8; i++)
		((uint64_t *)into)[i] = (offset / 8 + i) * 3 + 1;
	return 0;
}

static void *touch_half(void *arg)
{
	struct test_rng rng = test_rng((uintptr_t)arg & 1);
	const uint64_t *words = (const uint64_t *)((uintptr_t)arg & ~(uintptr_t)1);
	for (size_t i = 0; i < 400; i++) {
		size_t page = test_below(&rng, 128) * 2, word = page * (GU_PAGE / 8) + test_below(&rng, GU_PAGE / 8);
		must(words[word] == word * 3 + 1, "word %zu is %lu", word, (unsigned long)words[word]);
	}
	return NULL;
}

/* Every second page is touched, by two threads. */
static struct gcuffd_lazy_stats fill_work(unsigned without)
{
	struct gcuffd_lazy *lazy;
	struct gcuffd_lazy_stats s = {.size = sizeof(s)};
	pthread_t t;
	void *start;
	gu_without_process = without;
	ck_ok(gcuffd_lazy_map(256 * GU_PAGE, fill, NULL, NULL, &lazy, &start));
	must_ok(pthread_create(&t, NULL, touch_half, start));
	touch_half((void *)((uintptr_t)start | 1));
	pthread_join(t, NULL);
	ck_ok(gcuffd_lazy_stats(lazy, &s));
	ck_ok(gcuffd_lazy_unmap(lazy));
	return s;
}

START_TEST(filling)
{
	if (!gu_caps()->has_poison || !gu_caps()->has_kernel_faults)
		GU_LACKS("poison", "no userfaultfd with poison here");
	for (size_t n = 0; n < NAMES; n++) {
		struct gcuffd_lazy_stats s = fill_work(all[n].bit);
		if (all[n].bit & GU_WITHOUT_around)
			ck_assert(s.filled <= 128 && s.faults + 4 >= s.filled); /* a thread may not have counted its last */
		else
			ck_assert(s.filled > 200);
		if (all[n].bit & GU_WITHOUT_batch)
			ck_assert(s.reads + 4 >= s.faults);
	}
}
END_TEST

/* ---- names ---- */

START_TEST(names)
{
	struct gcuffd_options o;
	const char *bad, *text = "without=cards+nonsense";
	unsigned bits = 0;
	gcuffd_options_init(&o);
	o.log = core_keep_line;
	ck_assert_int_eq(gcuffd_options_parse(&o, text, &bad), -EINVAL);
	ck_assert_ptr_eq(bad, text);
	ck_assert_uint_eq(o.without, 0);
	for (size_t i = 1; i < NAMES; i++)
		ck_assert_msg((strstr(core_log, all[i].name) != NULL) == (!!(all[i].bit & GU_WITHOUT_HEAP)), "%s: %s", all[i].name, core_log);
	static const char *const wrong[] = {"", "+", "cards+", "+cards", "card", "cardss", "cards++huge", "spin", "membarrier"};
	for (size_t i = 0; i < GU_ARRAY_LEN(wrong); i++)
		ck_assert_msg(!gu_without_parse(wrong[i], GU_WITHOUT_HEAP, &bits) && !bits, "%s", wrong[i]);
	ck_assert(gu_without_parse("cards+spin", GU_WITHOUT_ALL, &bits));
	ck_assert_uint_eq(bits, GU_WITHOUT_cards | GU_WITHOUT_spin);
	ck_ok(gcuffd_options_parse(&o, "without=cards,without=tracked+huge", &bad));
	ck_assert_uint_eq(o.without, GU_WITHOUT_cards | GU_WITHOUT_tracked | GU_WITHOUT_huge);
	ck_ok(gcuffd_options_parse(&o, "without=all", &bad));
	ck_assert_uint_eq(o.without, GU_WITHOUT_HEAP);
	struct gcuffd_heap *h;
	o.without = 1u << 31;
	ck_assert_int_eq(gcuffd_heap_create(&o, &h), -EINVAL);
}
END_TEST

START_TEST(environment)
{
	struct gcuffd_heap *h;
	setenv("GCUFFD_WITHOUT", _i ? "cards+preclean+spin" : "cards+nonsense", 1);
	h = heap_make("rung=stop");
	ck_assert_uint_eq(gu_without_process, _i ? GU_WITHOUT_cards | GU_WITHOUT_preclean | GU_WITHOUT_spin : 0);
	ck_ok(gcuffd_heap_destroy(h));
}
END_TEST

static Suite *make_suite(void)
{
	Suite *suite = suite_create("without");
	tcase_add_loop_test(test_case(suite, "heaps"), heaps, GCUFFD_RUNG_STOP, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(test_case(suite, "heaps_with_process_roots"), heaps_with_process_roots, GCUFFD_RUNG_STOP,
			    GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(test_case(suite, "there_is_more_work"), there_is_more_work, GCUFFD_RUNG_ASYNC, GCUFFD_RUNG_RWP + 1);
	TCase *watching = test_case(suite, "watchers");
	tcase_add_unchecked_fixture(watching, more_huge_pages, fewer_huge_pages);
	tcase_add_loop_test(watching, watchers, 0, 2 * KINDS);
	tcase_add_test(test_case(suite, "filling"), filling);
	tcase_add_test(test_case(suite, "names"), names);
	tcase_add_loop_test(test_case(suite, "environment"), environment, 0, 2);
	return suite;
}

TEST_MAIN(make_suite)
