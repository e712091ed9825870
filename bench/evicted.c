/* SPDX-License-Identifier: MIT */
/*
 * evicted.c - what the first touch of a page costs that is out, compressed in memory or in a file. Pages of a heap that
 * gcuffd_cool() has taken out ("gcuffd"), beside the least that such a fault can take: UFFDIO_COPY of contents that lie ready
 * in memory, by a thread that does nothing but spin for messages ("raw"), or by the touching thread itself, in its handler of
 * SIGBUS ("sigbus"), which no system call can be helped by. They take turns in one process, with the same contents, in the
 * same order, touched by 1, 2 and 4 threads.
 *
 * The touching threads run all but resolve_faults().
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "util.h"

#define PAGE ((size_t)4096)
#define NODE_WORDS 8
#define POINTERS 3
#define RANDOM_BYTES 20 /* half of the rest */
#define PER_PAGE (PAGE / sizeof(struct node))
#define SPARE 8192      /* nodes that come after: blocks that are allocated from are not taken out */
#define TOUCHERS_MOST 4

struct node {
	uint64_t word[NODE_WORDS];
};

struct system {
	const char *name;
	bool (*begin)(void);          /* all pages are out then; false: it can't be had */
	char *(*page)(size_t number);
	void (*end)(void);            /* of a turn */
};

static const struct bench_args *args;
static size_t pages;
static char *source;   /* contents of the pages, one after the other */
static uint32_t *order;

static void *map(size_t bytes)
{
	void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (p == MAP_FAILED)
		bench_out_of_memory();
	return p;
}

static void fill_node(struct node *n, uint64_t *state, const struct node *const *others, size_t count)
{
	uint64_t random[(RANDOM_BYTES + 7) / 8];

	for (size_t i = 0; i < POINTERS; i++)
		n->word[i] = (uintptr_t)others[bench_random_below(state, count)];
	for (size_t i = 0; i < sizeof(random) / 8; i++)
		random[i] = bench_random(state);
	memcpy(&n->word[POINTERS], random, RANDOM_BYTES);
}

/* ---- gcuffd: nodes of a heap */

#ifdef BENCH_SYS_GCUFFD

#include "gcuffd.h"

static struct gcuffd_heap *heap;
static char **heap_pages;

static struct gcuffd_cold_stats cold_stats(void)
{
	struct gcuffd_cold_stats s = { .size = sizeof(s) };

	gcuffd_cold_stats(heap, &s);
	return s;
}

static void make_heap(void)
{
	struct gcuffd_options o;

	gcuffd_options_init(&o);
	o.flags = GCUFFD_COLD | GCUFFD_NO_PACING;
	o.store_memory = args->store_memory;
	o.store_file = args->store_file;
	o.resolver_threads = args->mode == BENCH_THREADS4 ? 4 : 1;
	int err = args->options ? gcuffd_options_parse(&o, args->options, NULL) : 0;
	if (!err)
		err = gcuffd_heap_create(&o, &heap);
	if (!err)
		err = gcuffd_thread_attach();
	if (err)
		bench_fail("a heap", -err);
}

/* Nothing is collected. A page of nodes has one that begins with it. */
static void make_pages(void)
{
	size_t count = pages * PER_PAGE;
	struct node **nodes = map(count * sizeof(*nodes));
	uint64_t state = args->seed;

	heap_pages = map(pages * sizeof(*heap_pages));
	for (size_t i = 0; i < count + SPARE; i++) {
		struct node *n = gcuffd_alloc(heap, sizeof(*n));

		if (!n)
			bench_out_of_memory();
		if (i < count)
			nodes[i] = n;
	}
	for (size_t i = 0; i < count; i++)
		fill_node(nodes[i], &state, (const struct node *const *)nodes, count);
	pages = 0;
	for (size_t i = 0; i < count; i++)
		if (!((uintptr_t)nodes[i] % PAGE))
			heap_pages[pages++] = (char *)nodes[i];
	for (size_t i = 0; i < pages; i++)
		memcpy(source + i * PAGE, heap_pages[i], PAGE);
	munmap(nodes, count * sizeof(*nodes));
}

static void make_source(void)
{
	make_heap();
	make_pages();
}

static struct gcuffd_cold_stats before;

static bool begin_gcuffd(void)
{
	int err = 0;

	for (int ms = 0; ms < 10000 && !err && cold_stats().out_pages < pages; ms++) { /* what a thread still reads stays */
		usleep(ms ? 1000 : 0);
		err = gcuffd_cool(heap, NULL, 0, NULL);
	}
	if (err && err != -EOPNOTSUPP)
		bench_fail("gcuffd_cool", -err);
	before = cold_stats();
	if (!err && before.out_pages < pages)
		bench_fail("pages that are not out", EBUSY);
	return !err;
}

static char *page_gcuffd(size_t number) { return heap_pages[number]; }

static void end_gcuffd(void)
{
	if (cold_stats().restored_pages - before.restored_pages < pages)
		bench_fail("pages that did not come back", EINVAL);
}

static void report_counts(const struct system *s)
{
	struct gcuffd_cold_stats now = cold_stats();

	if (s->begin != begin_gcuffd)
		return;
	bench_emit_int("ahead_pages", now.ahead_pages - before.ahead_pages);
	bench_emit_int("unfollowed_pages", now.ahead_pages - before.ahead_pages - (now.followed_pages - before.followed_pages));
	bench_emit_int("store_reads", now.store_reads - before.store_reads);
}

#else

static void make_source(void)
{
	struct node *const nodes = (struct node *)source;
	const struct node **others = map(pages * PER_PAGE * sizeof(*others));
	uint64_t state = args->seed;

	for (size_t i = 0; i < pages * PER_PAGE; i++)
		others[i] = &nodes[i];
	for (size_t i = 0; i < pages * PER_PAGE; i++)
		fill_node(&nodes[i], &state, others, pages * PER_PAGE);
	munmap(others, pages * PER_PAGE * sizeof(*others));
}

static void report_counts(const struct system *s) { (void)s; }

#endif

/* ---- by hand */

struct bare {
	int uffd;
	char *memory;
};

static struct bare raw, sigbus;
static pthread_t resolver;
static uint32_t quit;

static void copy_page(const struct bare *b, uintptr_t page)
{
	struct uffdio_copy copy = { .dst = page, .src = (uintptr_t)source + (page - (uintptr_t)b->memory), .len = PAGE };

	if (ioctl(b->uffd, UFFDIO_COPY, &copy) && errno != EEXIST)
		abort();
}

static void on_bus(int sig, siginfo_t *info, void *context)
{
	(void)sig, (void)context;
	copy_page(&sigbus, (uintptr_t)info->si_addr & ~(uintptr_t)(PAGE - 1));
}

static void *resolve_faults(void *arg)
{
	struct uffd_msg msg;

	while (!__atomic_load_n(&quit, __ATOMIC_RELAXED))
		if (read(raw.uffd, &msg, sizeof(msg)) == sizeof(msg))
			copy_page(&raw, msg.arg.pagefault.address & ~(uint64_t)(PAGE - 1));
	return arg;
}

/* Once, and again for each turn: with nothing in it. */
static bool empty(struct bare *b, uint64_t features)
{
	struct uffdio_api api = { .api = UFFD_API, .features = features };

	if (b->memory)
		return !madvise(b->memory, pages * PAGE, MADV_DONTNEED);
	b->uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	if (b->uffd < 0)
		b->uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);
	if (b->uffd < 0 || ioctl(b->uffd, UFFDIO_API, &api))
		return false;
	b->memory = map(pages * PAGE);
	struct uffdio_register reg = { .range = { (uintptr_t)b->memory, pages * PAGE }, .mode = UFFDIO_REGISTER_MODE_MISSING };
	return !ioctl(b->uffd, UFFDIO_REGISTER, &reg);
}

static bool begin_raw(void)
{
	__atomic_store_n(&quit, 0, __ATOMIC_RELAXED);
	return empty(&raw, 0) && !pthread_create(&resolver, NULL, resolve_faults, NULL);
}

static void end_raw(void)
{
	__atomic_store_n(&quit, 1, __ATOMIC_RELAXED);
	pthread_join(resolver, NULL);
}

static char *page_raw(size_t number) { return raw.memory + number * PAGE; }

static bool begin_sigbus(void) { return empty(&sigbus, UFFD_FEATURE_SIGBUS); }
static char *page_sigbus(size_t number) { return sigbus.memory + number * PAGE; }
static void end_sigbus(void) {}

static const struct system systems[] = {
#ifdef BENCH_SYS_GCUFFD
	{ "gcuffd", begin_gcuffd, page_gcuffd, end_gcuffd },
#endif
	{ "raw", begin_raw, page_raw, end_raw },
	{ "sigbus", begin_sigbus, page_sigbus, end_sigbus },
};

#define SYSTEMS (sizeof(systems) / sizeof(systems[0]))

/* ---- touching */

struct toucher {
	const struct system *system;
	unsigned number, count;
	struct bench_hist touches;
	uint64_t touch_ns, checksum;
};

static struct toucher touchers[TOUCHERS_MOST];

static void pause_for(unsigned us)
{
	for (uint64_t end = bench_now() + us * 1000u; us && bench_now() < end;)
		;
}

/* In order each thread has a piece of its own, else each so many-th page. */
static void *touch_share(void *arg)
{
	struct toucher *t = arg;
	size_t step = args->sequential ? 1 : t->count;
	size_t from = args->sequential ? pages * t->number / t->count : t->number;
	size_t end = args->sequential ? pages * (t->number + 1) / t->count : pages;

	for (size_t i = from; i < end; i += step) {
		const char *at = t->system->page(order[i]);
		uint64_t began = bench_now();
		uint64_t word = *(const volatile uint64_t *)(at + POINTERS * sizeof(word));
		uint64_t ns = bench_now() - began;

		bench_hist_add(&t->touches, ns);
		t->touch_ns += ns;
		t->checksum += bench_mix(word ^ order[i]);
		pause_for(args->gap);
	}
	return NULL;
}

static void touch_all(const struct system *s, unsigned count)
{
	memset(touchers, 0, sizeof(touchers));
	for (unsigned i = 0; i < count; i++) {
		struct toucher *t = &touchers[i];

		t->system = s;
		t->number = i;
		t->count = count;
	}
	bench_at_once(touch_share, touchers, sizeof(touchers[0]), count);
	for (unsigned i = 1; i < count; i++) {
		bench_hist_merge(&touchers[0].touches, &touchers[i].touches);
		touchers[0].checksum += touchers[i].checksum;
	}
}

static void emit(unsigned count, const char *what, double us)
{
	char key[40];

	if (count > 1)
		snprintf(key, sizeof(key), "restore_%u_%s_us", count, what);
	else
		snprintf(key, sizeof(key), "restore_%s_us", what);
	if (us < 0)
		bench_emit_null(key);
	else
		bench_emit_float(key, us);
}

static void report(unsigned count, bool can)
{
	const struct bench_hist *h = &touchers[0].touches;

	emit(count, "p50", can ? (double)bench_hist_quantile(h, 0.5) / 1e3 : -1);
	emit(count, "p99", can ? (double)bench_hist_quantile(h, 0.99) / 1e3 : -1);
	emit(count, "max", can ? (double)h->max / 1e3 : -1);
}

/* Turn of a system: with 1, 2 and 4 threads. */
static void measure(const struct system *s)
{
	printf("system: %s\n", s->name);
	for (unsigned count = 1; count <= TOUCHERS_MOST; count *= 2) {
		bool can = s->begin();

		if (can) {
			touch_all(s, count);
			s->end();
		}
		report(count, can);
		if (can && count == 1) {
			bench_emit_float("page_mean_us", (double)touchers[0].touch_ns / (double)pages / 1e3);
			report_counts(s);
			bench_emit_hex("checksum", touchers[0].checksum);
		}
	}
	bench_emit_int("rss_peak_kib", bench_status_kib("VmHWM:"));
}

static void shuffle(uint64_t state)
{
	for (size_t i = 0; i < pages; i++)
		order[i] = (uint32_t)i;
	for (size_t i = pages - 1; i > 0 && !args->sequential; i--) {
		size_t j = bench_random_below(&state, i + 1);
		uint32_t other = order[j];

		order[j] = order[i];
		order[i] = other;
	}
}

static bool is_wanted(const char *name)
{
	const char *at = args->systems ? strstr(args->systems, name) : name;

	return at && (at == args->systems || at == name || at[-1] == ',');
}

int main(int argc, char **argv)
{
	struct sigaction act = { .sa_sigaction = on_bus, .sa_flags = SA_SIGINFO };
	struct bench_args parsed;

	bench_args_parse(&parsed, argc, argv);
	args = &parsed;
	pages = args->live / PAGE;
	source = map(pages * PAGE);
	order = map(pages * sizeof(*order));
	bench_begin();
	make_source();
	sigaction(SIGBUS, &act, NULL);
	for (unsigned round = 0; round < args->rounds; round++) {
		shuffle(args->seed);
		for (unsigned i = 0; i < SYSTEMS; i++)
			if (is_wanted(systems[(i + round) % SYSTEMS].name))
				measure(&systems[(i + round) % SYSTEMS]);
	}
	fflush(stdout);
	_exit(0);
}
