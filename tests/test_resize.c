/* SPDX-License-Identifier: MIT */
/*
 * test_resize.c - objects that are resized in place while markers are in them (.inv.resize.in-place), and typed slots that hold
 * anything but pointers.
 */
#include "core.h"
#include "fake_os.h"
#include "gc/heap.h"
#include "space_checked.h"
#include "sys/uapi.h"

#define PIECE ((size_t)1 << 20) /* a marker asks the kernel for each what is there */
#define PIECES 4u
#define LARGE (5 * PIECE) /* the last is read whole */
#define STAMP 0x1234567890abcdefu

static struct gcuffd_heap *heap;
static void **volatile object; /* a data segment */
static uint64_t hidden[PIECES + 1]; /* the last one's only pointer is in the pipe */
static int pipes[2];
static uint32_t quit;

static void on_a_thread(void *(*fn)(void *), void *arg)
{
	pthread_t t;
	must_ok(pthread_create(&t, NULL, fn, arg));
	must_ok(pthread_join(t, NULL));
}

static void *collect_once(void *unused)
{
	must_ok(gcuffd_collect(heap));
	return unused;
}

/* ---- a marker that is held ---- */

static uintptr_t piece; /* 0: none, but the first scan of precleaning */
static uint32_t held;   /* 1: to be held there, 2: it is, 3: it may go on */

static bool is_the_place(const struct gu_pm_scan_arg *scan)
{
	if (gu_load_relaxed(&heap->phase) != GU_PHASE_MARK || !gu_space_has(&heap->space, scan->start))
		return false;
	return piece ? scan->start == piece && scan->return_mask == GU_PAGE_IS_PRESENT : scan->flags & GU_PM_SCAN_WP_MATCHING;
}

static long hold_marker(int fd, unsigned long request, void *arg)
{
	uint32_t wanted = 1;
	if (request == GU_PAGEMAP_SCAN && is_the_place(arg) && gu_cas_seqcst(&held, &wanted, 2))
		while (gu_load_seqcst(&held) == 2)
			usleep(100);
	return gu_os_linux.ioctl(fd, request, arg);
}

static pthread_t start_held_cycle(uintptr_t at)
{
	pthread_t t;
	piece = at;
	held = 1;
	must_ok(pthread_create(&t, NULL, collect_once, NULL));
	for (uint64_t since = test_now_ns(); gu_load_seqcst(&held) == 1; usleep(100))
		must(test_now_ns() - since < 60000000000u * check_slow(), "no marker came to %#lx", (unsigned long)at);
	return t;
}

static void end_held_cycle(pthread_t t)
{
	gu_store_seqcst(&held, 3);
	must_ok(pthread_join(t, NULL));
}

/* ---- in place ---- */

static size_t usable(void)
{
	struct gcuffd_object o;
	must_ok(gcuffd_object_find(heap, object, &o));
	return o.size;
}

static size_t part_words(void) { return usable() / PIECES / 8; }

static uint64_t *new_target(unsigned number)
{
	uint64_t *target = gcuffd_alloc(heap, 64);
	must(target != NULL, "errno %d", errno);
	target[0] = STAMP + number;
	hidden[number] = hide(target);
	return target;
}

/* Full of words, with a pointer in each quarter. */
static void *make_object(void *size)
{
	must_ok(gcuffd_thread_attach());
	object = gcuffd_alloc(heap, *(size_t *)size);
	must(object != NULL, "errno %d", errno);
	memset(object, 1, usable());
	for (unsigned i = 0; i < PIECES; i++)
		object[i * part_words() + 7] = new_target(i);
	uint64_t *stray = new_target(PIECES);
	must(write(pipes[1], &stray, 8) == 8, "errno %d", errno);
	must_ok(gcuffd_thread_detach());
	return NULL;
}

static void move_word(size_t to, size_t from)
{
	object[to] = object[from];
	object[from] = NULL;
}

static void take_in(size_t to) { must(read(pipes[0], object + to, 8) == 8, "errno %d", errno); }

static void resize(size_t size)
{
	void *was = object;
	must(gcuffd_realloc(heap, was, size) == was, "it moved, or errno %d", errno);
}

/* The last one's only pointer goes to the beginning, where markers were, and the tail with what it had is gone. */
static void *shrink(void *unused)
{
	must_ok(gcuffd_thread_attach());
	move_word(11, 3 * part_words() + 7);
	take_in(13);
	resize(usable() / 8 * 5);
	must_ok(gcuffd_thread_detach());
	return unused;
}

/* And comes back in a tail that is zero. */
static void *shrink_and_grow(void *unused)
{
	size_t words = usable() / 8;
	must_ok(gcuffd_thread_attach());
	move_word(11, 3 * part_words() + 7);
	move_word(12, 1 * part_words() + 7);
	resize(words * 5);
	resize(words * 8);
	must(test_all_are(object + words / 8 * 5, words * 3, 0), "what was added is not zero");
	move_word(3 * part_words() + 9, 12);
	move_word(words - 1, 11);
	take_in(words - 2);
	must_ok(gcuffd_thread_detach());
	return unused;
}

static void check_targets(void)
{
	for (unsigned i = 0; i <= PIECES; i++) {
		must(is_alive(heap, hidden[i]), "target %u is gone", i);
		must(*(uint64_t *)reveal(hidden[i]) == STAMP + i, "target %u was taken", i);
	}
}

struct resizing {
	const char *name;
	size_t size;
	int held_at; /* the piece; PIECES: behind all of them */
	bool grow;
};

static const struct resizing resizings[] = {
	{"large, at its beginning", LARGE, 0, false}, {"large, in the middle", LARGE, 1, false},
	{"large, in the tail", LARGE, 3, false}, {"large, marked", LARGE, PIECES, false},
	{"large and back, at its beginning", LARGE, 0, true}, {"large and back, in the middle", LARGE, 1, true},
	{"large and back, in the tail", LARGE, 3, true}, {"large and back, marked", LARGE, PIECES, true},
	{"some pages, marked", 16384, PIECES, false}, {"some pages and back, marked", 16384, PIECES, true},
};

#define RESIZINGS ((int)(sizeof(resizings) / sizeof(resizings[0])))

static void resize_in_a_cycle(const struct resizing *r)
{
	on_a_thread(make_object, (void *)&r->size);
	pthread_t t = start_held_cycle(r->held_at < (int)PIECES ? (uintptr_t)object + (size_t)r->held_at * PIECE : 0);
	on_a_thread(r->grow ? shrink_and_grow : shrink, NULL);
	end_held_cycle(t);
}

START_TEST(while_a_marker_is_in_it)
{
	NEED_RUNG(_i / RESIZINGS);
	const struct resizing *r = &resizings[_i % RESIZINGS];
	must_ok(pipe(pipes));
	fake_install();
	fake_os.ioctl = hold_marker;
	heap = heap_make("rung=%s,pacing=0,verify=1", rung_names[_i / RESIZINGS]);
	ck_ok(gcuffd_collect(heap));
	for (int i = 0; i < 3; i++) {
		resize_in_a_cycle(r);
		ck_assert_msg(stats_of(heap).verify_failures == 0, "%s: %s", r->name, core_log);
		check_targets();
		ck_ok(gcuffd_collect(heap));
		check_targets();
	}
	verified(heap);
	ck_ok(gcuffd_heap_destroy(heap));
	fake_remove();
}
END_TEST

/* Without cards the same loses what was moved behind the marker. */
START_TEST(cards_are_what_saves_it)
{
	NEED_RUNG(_i / RESIZINGS);
	const struct resizing *r = &resizings[_i % RESIZINGS];
	if (r->held_at < (int)PIECES && (r->grow || r->held_at == 0))
		return; /* where the pointers go the marker has not been yet */
	must_ok(pipe(pipes));
	fake_install();
	fake_os.ioctl = hold_marker;
	heap = heap_make("rung=%s,pacing=0,verify=1,plant_drop_card=1", rung_names[_i / RESIZINGS]);
	ck_ok(gcuffd_collect(heap));
	for (int tries = 0; tries < 20 && !stats_of(heap).verify_failures; tries++) /* a stale word can save it */
		resize_in_a_cycle(r);
	ck_assert_msg(stats_of(heap).verify_failures > 0, "%s: nothing was lost", r->name);
	ck_assert_ptr_nonnull(strstr(core_log, "reachable but not marked"));
}
END_TEST

/* ---- the same at speed ---- */

#define KEPT 24u

static uint64_t *volatile kept[KEPT];

static void *keep_collecting(void *unused)
{
	while (!gu_load_relaxed(&quit))
		must_ok(gcuffd_collect(heap));
	return unused;
}

/* Word 1 leads to an object of the number in word 2; so does the last word of all that the cell has. */
static __attribute__((noinline)) void make_kept(unsigned i, size_t size, uint64_t number)
{
	struct gcuffd_object o;
	uint64_t *p = gcuffd_alloc(heap, size), *target = gcuffd_alloc(heap, 64);
	must(p && target, "errno %d", errno);
	must_ok(gcuffd_object_find(heap, p, &o));
	target[0] = p[2] = number;
	p[0] = o.size;
	p[1] = (uintptr_t)target;
	kept[i] = p;
}

static __attribute__((noinline)) void check_kept(uint64_t *p, uint64_t at)
{
	const uint64_t *target = (const uint64_t *)(uintptr_t)p[at];
	must(target && target[0] == p[2], "what object %lu leads to is lost", (unsigned long)p[2]);
}

/* To the last word, back in front of the tail that goes, and through the tail that comes again. */
static __attribute__((noinline)) void resize_kept(uint64_t *p, struct test_rng *rng)
{
	size_t last = p[0] / 8 - 1, size = p[0] / 2 + 1 + test_below(rng, p[0] / 2);
	p[last] = p[1];
	p[1] = 0;
	check_kept(p, last);
	p[1] = p[last];
	must(gcuffd_realloc(heap, p, size) == p, "it moved");
	must(gcuffd_realloc(heap, p, p[0]) == p, "it moved");
	must(test_all_are((char *)p + size, p[0] - size, 0), "what was added is not zero");
	check_kept(p, 1);
}

START_TEST(at_speed)
{
	static const size_t sizes[] = {128, 1000, 4096, 10000, 16384, 100000, 3 << 20, 5 << 20};
	struct test_rng rng = test_rng(7);
	pthread_t t;
	NEED_RUNG(_i / 2);
	heap = heap_make("rung=%s,start_size=1M,verify=%d", rung_names[_i / 2], _i % 2);
	for (unsigned i = 0; i < KEPT; i++)
		make_kept(i, sizes[i % 8], i);
	quit = 0;
	must_ok(pthread_create(&t, NULL, keep_collecting, NULL));
	uint64_t end = test_now_ns() + check_span_ns((check_seconds() / 5 + 1) * 300000000ull), number = KEPT;
	while (goes_on(heap, end, 5)) {
		unsigned i = (unsigned)test_below(&rng, KEPT);
		resize_kept(kept[i], &rng);
		if (test_below(&rng, 8) == 0)
			make_kept(i, sizes[i % 8], number++);
	}
	gu_store_seqcst(&quit, 1);
	must_ok(pthread_join(t, NULL));
	verified(heap);
	memset((void *)kept, 0, sizeof(kept));
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

/* ---- while the heap is saved ---- */

static const char *image;
static uint32_t pages_written;

static long count_written(int fd, const struct iovec *pieces, int n, off_t at)
{
	gu_store_seqcst(&pages_written, 1);
	return gu_os_linux.pwritev(fd, pieces, n, at);
}

/* When all pages were written once, and the first look for those that changed meanwhile is due. */
static long hold_save(int fd, unsigned long request, void *arg)
{
	const struct gu_pm_scan_arg *scan = arg;
	uint32_t wanted = 1;
	if (request == GU_PAGEMAP_SCAN && scan->flags & GU_PM_SCAN_WP_MATCHING && gu_load_seqcst(&pages_written) && gu_space_has(&heap->space, scan->start) &&
	    gu_cas_seqcst(&held, &wanted, 2))
		while (gu_load_seqcst(&held) == 2)
			usleep(100);
	return gu_os_linux.ioctl(fd, request, arg);
}

static void *save_once(void *unused)
{
	const struct gcuffd_named root = {"object", object};
	must_ok(gcuffd_heap_save(heap, image, &(struct gcuffd_image_options){.size = sizeof(struct gcuffd_image_options), .roots = &root, .nroots = 1}));
	return unused;
}

/* No two pages the same, and nothing like a pointer. */
static void fill(void *p, size_t size)
{
	for (size_t i = 0; i < size / 8; i++)
		((uint64_t *)p)[i] = i * 16 + 1;
}

static pthread_t start_held_save(void)
{
	pthread_t t;
	pages_written = 0;
	held = 1;
	must_ok(pthread_create(&t, NULL, save_once, NULL));
	for (uint64_t since = test_now_ns(); gu_load_seqcst(&held) == 1; usleep(100))
		must(test_now_ns() - since < 60000000000u * check_slow(), "it was never looked for what changed");
	return t;
}

static void load_saved(int rung)
{
	struct gcuffd_options o;
	ck_ok(gcuffd_heap_destroy(heap));
	gcuffd_options_init(&o);
	o.rung = (enum gcuffd_rung)rung;
	o.log = core_keep_line;
	ck_ok(gcuffd_heap_load(image, NULL, &o, &heap));
	unlink(image);
	object = gcuffd_image_root(heap, "object");
	ck_assert_ptr_nonnull(object);
}

static void begin_saving(int rung)
{
	static char name[TEST_PATH];
	test_new_path(name, "image");
	image = name;
	fake_install();
	fake_os.ioctl = hold_save;
	fake_os.pwritev = count_written;
	heap = heap_make("rung=%s,pacing=0,reservation=1G", rung_names[rung]);
	object = gcuffd_alloc(heap, LARGE);
	fill(object, LARGE);
}

/* The tail was written to the file before it was dropped. */
START_TEST(shrunk_while_it_is_saved)
{
	NEED_RUNG(_i);
	begin_saving(_i);
	pthread_t t = start_held_save();
	resize(LARGE / 8 * 5);
	end_held_cycle(t);
	load_saved(_i);
	resize(LARGE);
	ck_assert(test_all_are((char *)object + LARGE / 8 * 5, LARGE / 8 * 3, 0));
	ck_assert_uint_eq((uintptr_t)object[LARGE / 16], LARGE / 16 * 16 + 1);
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

/* ---- typed slots ---- */

#define SLOTS 512u

static uintptr_t slot_words[SLOTS];

/* Words that look like pointers into the heap, or out of it by little, or like nothing. */
static size_t odd_words(uintptr_t *w, uintptr_t own)
{
	const struct gu_space *s = &heap->space;
	size_t n = 0, top = gu_load_relaxed(&s->top);
	char *freed = gcuffd_alloc(heap, 48), *large = gcuffd_alloc(heap, 300000), *atomic = gcuffd_alloc_atomic(heap, 100), *next = gcuffd_alloc(heap, 48);
	const uintptr_t some[] = {
		1, 7, UINTPTR_MAX, (uintptr_t)1 << 63, ((uintptr_t)1 << 47) - 8, s->base, s->base - 1, s->base - 8, s->base + 1, s->base + top,
		s->base + top - 1, s->base + top + 8, s->base + s->size, s->base + s->size - 1, own, own + 1, own + 8 * SLOTS, own + 8 * SLOTS - 1,
		(uintptr_t)freed, (uintptr_t)freed + 5, (uintptr_t)large, (uintptr_t)large + 299999, (uintptr_t)large + 300000, (uintptr_t)large + 303104,
		(uintptr_t)atomic + 99, (uintptr_t)next + 48, (uintptr_t)next + 96, gu_align_up((uintptr_t)next, GU_BLOCK) - 1, gu_align_up((uintptr_t)next, GU_BLOCK) - 8,
		(uintptr_t)&heap, (uintptr_t)odd_words, (uintptr_t)&n, 0x0101010101010101u, 0x7ff8000000000000u,
	};
	must_ok(gcuffd_free(heap, freed));
	must_ok(gcuffd_free(heap, large));
	for (; n < sizeof(some) / sizeof(some[0]); n++)
		w[n] = some[n];
	for (struct test_rng rng = test_rng(8); n < SLOTS; n++)
		w[n] = n % 2 ? s->base + test_below(&rng, s->size) : s->base + test_below(&rng, top);
	return n;
}

static void *fill_slots(void *type)
{
	must_ok(gcuffd_thread_attach());
	object = gcuffd_alloc_typed(heap, type, SLOTS * 8);
	must(object != NULL, "errno %d", errno);
	odd_words(slot_words, (uintptr_t)object);
	memcpy(object, slot_words, sizeof(slot_words));
	for (size_t i = 0; i < SLOTS; i++) /* this is a root too */
		slot_words[i] ^= HIDE_MASK;
	must_ok(gcuffd_thread_detach());
	return NULL;
}

static void check_slots(void)
{
	for (size_t i = 0; i < SLOTS; i++)
		ck_assert_uint_eq((uintptr_t)object[i] ^ HIDE_MASK, slot_words[i]);
}

START_TEST(typed_slots_without_pointers)
{
	int rung = _i / 2;
	uint64_t bitmap[SLOTS / 64];
	struct gcuffd_type *type;
	NEED_RUNG(rung);
	bool cold = rung >= GCUFFD_RUNG_MOVE;
	heap = heap_make("rung=%s,pacing=0,verify=1,interior=%d%s", rung_names[rung], _i % 2, cold ? ",cold=1" : "");
	memset(bitmap, 0xff, sizeof(bitmap));
	ck_ok(gcuffd_type_create(heap, bitmap, SLOTS, &type));
	for (int i = 0; i < 4; i++) {
		on_a_thread(fill_slots, type);
		for (int cycle = 0; cycle < 3; cycle++) {
			ck_ok(gcuffd_collect(heap));
			if (cold) /* then what is on pages that are out is followed by their summaries */
				ck_ok(gcuffd_cool(heap, NULL, 0, NULL));
		}
		check_slots();
	}
	verified(heap);
	space_checked(heap);
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

static Suite *make_suite(void)
{
	Suite *suite = suite_create("resize");
	tcase_add_loop_test(test_case(suite, "while_a_marker_is_in_it"), while_a_marker_is_in_it, GCUFFD_RUNG_ASYNC * RESIZINGS, (GCUFFD_RUNG_RWP + 1) * RESIZINGS);
	tcase_add_loop_test(test_case(suite, "cards_are_what_saves_it"), cards_are_what_saves_it, GCUFFD_RUNG_ASYNC * RESIZINGS, (GCUFFD_RUNG_RWP + 1) * RESIZINGS);
	tcase_add_loop_test(test_case(suite, "at_speed"), at_speed, 2 * GCUFFD_RUNG_STOP, 2 * GCUFFD_RUNG_RWP + 2);
	tcase_add_loop_test(test_case(suite, "saved"), shrunk_while_it_is_saved, GCUFFD_RUNG_ASYNC, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(test_case(suite, "typed_slots_without_pointers"), typed_slots_without_pointers, 2 * GCUFFD_RUNG_STOP, 2 * GCUFFD_RUNG_RWP + 2);
	return suite;
}

TEST_MAIN(make_suite)
