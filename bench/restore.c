/* SPDX-License-Identifier: MIT */
/*
 * restore.c - what the first touch of a page costs when its content has to be fetched: lazy memory whose source is
 * other memory, so fetching is a memcpy and what is left is the fault, the message, the thread that answers and the
 * wake. One thread, or several that share the windows out among them, touches all pages one at a time and times each
 * touch. On gcuffd by gcuffd_lazy_map(); every other build does it by hand ("raw"): a userfaultfd, threads that read
 * it, UFFDIO_COPY of the one page.
 *
 * The touching threads run all but resolve_faults() and fill(); those threads end with the process.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
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

static char *source, *memory;
static size_t pages, window; /* window: pages that a fault fills */
static struct timespec fetch_time; /* what fetching takes besides */

struct toucher {
	unsigned number;
	const struct bench_args *args;
	const uint32_t *order;
	struct bench_hist faults;
	uint64_t touch_ns, checksum;
};

/* Memory that has nothing in it is as good as any other, but for its content. */
static void make_source(uint64_t seed)
{
	source = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (source == MAP_FAILED)
		bench_out_of_memory();
	for (size_t i = 0; i < pages * PAGE; i += 64)
		*(uint64_t *)(source + i) = bench_mix(seed + i);
}

static void report_counts(void);
static int map_lazily(const struct bench_args *args);

#ifdef BENCH_SYS_GCUFFD

#include "gcuffd.h"

static struct gcuffd_lazy *lazy;

static int fill(void *data, size_t offset, size_t length, void *into)
{
	(void)data;
	if (fetch_time.tv_nsec)
		nanosleep(&fetch_time, NULL);
	memcpy(into, source + offset, length);
	return 0;
}

static void on_bus(int sig, siginfo_t *info, void *context)
{
	(void)sig, (void)context;
	if (gcuffd_lazy_resolve(lazy, info->si_addr))
		abort();
}

static int map_lazily(const struct bench_args *args)
{
	struct gcuffd_lazy_options o = { .size = sizeof(o), .flags = GCUFFD_LAZY_USER_FAULTS, .around = args->around };
	void *start;

	o.spin_us = args->mode == BENCH_SLEEP ? 1 : 50;
	o.threads = args->mode == BENCH_THREADS4 ? 4 : 1;
	o.flags |= args->mode == BENCH_SIGBUS ? GCUFFD_LAZY_SIGBUS : 0;
	window = args->mode == BENCH_SIGBUS ? 1 : args->around / PAGE;
	int err = gcuffd_lazy_map(pages * PAGE, fill, NULL, &o, &lazy, &start);
	memory = start;
	return err;
}

static void report_counts(void)
{
	struct gcuffd_lazy_stats s = { .size = sizeof(s) };

	usleep(10000); /* a thread counts after it has woken who waits */
	gcuffd_lazy_stats(lazy, &s);
	bench_emit_float("pages_per_fault", (double)s.filled / (double)s.faults);
	bench_emit_int("resolver_sleeps", s.sleeps);
}

#else

static int uffd;
static enum bench_mode mode;

static void copy_page(uintptr_t page)
{
	struct uffdio_copy copy = { .dst = page, .src = (uintptr_t)source + (page - (uintptr_t)memory), .len = PAGE };

	if (fetch_time.tv_nsec)
		nanosleep(&fetch_time, NULL);
	if (ioctl(uffd, UFFDIO_COPY, &copy) && errno != EEXIST)
		abort();
}

static void on_bus(int sig, siginfo_t *info, void *context)
{
	(void)sig, (void)context;
	copy_page((uintptr_t)info->si_addr & ~(uintptr_t)(PAGE - 1));
}

static void *resolve_faults(void *arg)
{
	struct pollfd in = { .fd = uffd, .events = POLLIN };
	struct uffd_msg msg;

	for (;;) {
		if (mode == BENCH_SLEEP)
			poll(&in, 1, -1);
		if (read(uffd, &msg, sizeof(msg)) == sizeof(msg))
			copy_page(msg.arg.pagefault.address & ~(uint64_t)(PAGE - 1));
	}
	return arg;
}

static int open_uffd(void)
{
	struct uffdio_api api = { .api = UFFD_API, .features = mode == BENCH_SIGBUS ? UFFD_FEATURE_SIGBUS : 0 };

	uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	if (uffd < 0)
		uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);
	return uffd < 0 || ioctl(uffd, UFFDIO_API, &api) ? -errno : 0;
}

static int map_lazily(const struct bench_args *args)
{
	pthread_t thread;

	mode = args->mode;
	window = 1;
	memory = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (memory == MAP_FAILED)
		return -errno;
	struct uffdio_register reg = {
		.range = { (uintptr_t)memory, pages * PAGE }, .mode = UFFDIO_REGISTER_MODE_MISSING,
	};
	int err = open_uffd();
	if (!err && ioctl(uffd, UFFDIO_REGISTER, &reg))
		err = -errno;
	for (int n = mode == BENCH_SIGBUS ? 0 : mode == BENCH_THREADS4 ? 4 : 1; n > 0 && !err; n--)
		err = -pthread_create(&thread, NULL, resolve_faults, NULL);
	return err;
}

static void report_counts(void) { bench_emit_float("pages_per_fault", 1); }

#endif

static uint32_t *make_order(const struct bench_args *args)
{
	uint32_t *order = malloc(pages * sizeof(*order));
	uint64_t state = args->seed;

	if (!order)
		bench_out_of_memory();
	for (size_t i = 0; i < pages; i++)
		order[i] = (uint32_t)i;
	for (size_t i = pages - 1; i > 0 && !args->sequential; i--) {
		size_t j = bench_random_below(&state, i + 1);
		uint32_t other = order[j];

		order[j] = order[i];
		order[i] = other;
	}
	return order;
}

static void pause_for(unsigned us)
{
	for (uint64_t end = bench_now() + us * 1000u; us && bench_now() < end;)
		;
}

/* A fault is the first touch of its window: all of that comes at once. A thread touches every so many-th window. */
static void *touch_share(void *arg)
{
	struct toucher *t = arg;
	bool *seen = calloc(pages, 1);

	if (!seen)
		bench_out_of_memory();
	for (size_t i = 0; i < pages; i++) {
		size_t page = t->order[i];

		if (page / window % t->args->touchers != t->number)
			continue;
		uint64_t before = bench_now();
		uint64_t word = *(volatile uint64_t *)(memory + page * PAGE);
		uint64_t ns = bench_now() - before;

		t->touch_ns += ns;
		t->checksum += bench_mix(word ^ page);
		if (!seen[page / window])
			bench_hist_add(&t->faults, ns);
		seen[page / window] = true;
		pause_for(t->args->gap);
	}
	free(seen);
	return NULL;
}

static struct toucher *touch_all(const struct bench_args *args)
{
	struct toucher *touchers = calloc(args->touchers, sizeof(*touchers));
	const uint32_t *order = make_order(args);

	if (!touchers)
		bench_out_of_memory();
	for (unsigned i = 0; i < args->touchers; i++) {
		struct toucher *t = &touchers[i];

		t->number = i;
		t->args = args;
		t->order = order;
	}
	bench_at_once(touch_share, touchers, sizeof(*touchers), args->touchers);
	return touchers;
}

static void add_up(struct toucher *all, const struct toucher *one)
{
	all->touch_ns += one->touch_ns;
	all->checksum += one->checksum;
	bench_hist_merge(&all->faults, &one->faults);
}

static void report(struct toucher *touchers, unsigned count)
{
	struct toucher *all = &touchers[0];

	for (unsigned i = 1; i < count; i++)
		add_up(all, &touchers[i]);
	bench_emit_float("restore_p50_us", (double)bench_hist_quantile(&all->faults, 0.5) / 1e3);
	bench_emit_float("restore_p99_us", (double)bench_hist_quantile(&all->faults, 0.99) / 1e3);
	bench_emit_float("restore_max_us", (double)all->faults.max / 1e3);
	bench_emit_float("page_mean_us", (double)all->touch_ns / (double)pages / 1e3);
	report_counts();
	bench_emit_hex("checksum", all->checksum);
}

static void report_nothing(void)
{
	bench_emit_null("restore_p50_us");
	bench_emit_null("restore_p99_us");
	bench_emit_null("restore_max_us");
	bench_emit_null("page_mean_us");
	bench_emit_null("pages_per_fault");
}

int main(int argc, char **argv)
{
	struct sigaction act = { .sa_sigaction = on_bus, .sa_flags = SA_SIGINFO };
	struct bench_args args;

	bench_args_parse(&args, argc, argv);
	pages = args.live / PAGE;
	fetch_time.tv_nsec = args.fetch * 1000L;
	bench_begin();
	make_source(args.seed);
	sigaction(SIGBUS, &act, NULL);
	int err = map_lazily(&args);
	if (err == -EPERM || err == -ENOSYS || err == -EOPNOTSUPP) {
		report_nothing();
	} else if (err) {
		bench_fail("lazy memory", -err);
	} else {
		report(touch_all(&args), args.touchers);
	}
	bench_end();
	_exit(0);
}
