/* SPDX-License-Identifier: MIT */
/*
 * timeline.c - a log of all that a heap's collector does, with times, as a runtime would offer it to its users; and how to take events without
 * holding the collector up. The handler (gcuffd_event_handler_set()) copies an event to a ring and wakes the thread that writes lines: no
 * lock, no waiting, no file. If that thread falls behind by the whole ring, what is missing is counted.
 *
 *   timeline [THREADS [SECONDS]]   so many threads (4) allocate for so long (1), at a hard limit that makes them wait
 *
 * A line begins with the time since the log was begun, in us, at which what it tells of began.
 */
#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include <gcuffd.h>

#define RING 4096u /* a power of two */

/* One writes, the handler; one reads. Between read and written are events that have not been put out. */
struct timeline {
	struct gcuffd_event ring[RING];
	atomic_uint written; /* by the handler */
	atomic_uint read;    /* by the thread */
	atomic_uint missed;  /* there was no room in the ring */
	atomic_bool quit;
	sem_t more;
	pthread_t thread;
	struct gcuffd_heap *heap;
	FILE *out;
	uint64_t began_ns;
	uint64_t lost;     /* there was no room in the library */
	uint64_t stall_ns; /* of all threads, that of lost events included */
};

static uint64_t now_ns(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* ---- in the collector's thread ---- */

static void take(void *data, const struct gcuffd_event *event)
{
	struct timeline *t = data;
	unsigned at = atomic_load_explicit(&t->written, memory_order_relaxed);
	if (at - atomic_load_explicit(&t->read, memory_order_acquire) == RING) {
		atomic_fetch_add(&t->missed, 1);
		return;
	}
	t->ring[at % RING] = *event;
	atomic_store_explicit(&t->written, at + 1, memory_order_release);
	sem_post(&t->more);
}

/* ---- in a thread of its own ---- */

static const char *const reasons[] = {"none", "allocation", "asked", "no memory", "save"};
static const char *const phases[] = {"arm", "first stop", "mark", "preclean", "second stop", "finalize", "sweep"};
static const char *const stalls[] = {"slowed", "outrun", "no memory", "asked"};

#define NAME(names, i) ((size_t)(i) < sizeof(names) / sizeof(*(names)) ? (names)[i] : "unknown")

static double us(uint64_t ns) { return (double)ns / 1000; }

static void put_stop(FILE *out, const struct gcuffd_event *e)
{
	if (e->error)
		fprintf(out, "    stop given up after %.1f us: error %d\n", us(e->end_ns - e->begin_ns), -e->error);
	else
		fprintf(out, "    stop %.1f us, the first %.1f until %u threads had stopped\n", us(e->end_ns - e->begin_ns),
		        us(e->stopped_ns - e->begin_ns), e->threads);
}

static void put_end(FILE *out, const struct gcuffd_event *e)
{
	fprintf(out, "cycle %llu (%s) ", (unsigned long long)e->cycle, NAME(reasons, e->reason));
	if (e->error)
		fprintf(out, "put off after %.1f us: error %d\n", us(e->end_ns - e->begin_ns), -e->error);
	else
		fprintf(out, "%.1f us: freed %llu KiB, %llu KiB live\n", us(e->end_ns - e->begin_ns), (unsigned long long)e->freed_bytes >> 10,
		        (unsigned long long)e->live_bytes >> 10);
}

static void put(struct timeline *t, const struct gcuffd_event *e)
{
	t->lost += e->lost;
	t->stall_ns += e->lost_ns + (e->kind == GCUFFD_EVENT_STALL ? e->end_ns - e->begin_ns : 0);
	if (e->kind == GCUFFD_EVENT_CYCLE_BEGIN || e->kind == GCUFFD_EVENT_PHASE_BEGIN)
		return; /* told again at the end */
	fprintf(t->out, "%12.1f ", us(e->begin_ns - t->began_ns));
	switch (e->kind) {
	case GCUFFD_EVENT_PHASE_END: fprintf(t->out, "  %s %.1f us\n", NAME(phases, e->phase), us(e->end_ns - e->begin_ns)); break;
	case GCUFFD_EVENT_ROUND: fprintf(t->out, "    round over: %llu pages had been written\n", (unsigned long long)e->pages); break;
	case GCUFFD_EVENT_STOP: put_stop(t->out, e); break;
	case GCUFFD_EVENT_CYCLE_END: put_end(t->out, e); break;
	case GCUFFD_EVENT_STALL:
		fprintf(t->out, "thread %d waited %.1f us: %s\n", e->thread, us(e->end_ns - e->begin_ns), NAME(stalls, e->stall));
		break;
	default: fprintf(t->out, "something new: %d\n", (int)e->kind); break;
	}
}

static void *write_lines(void *arg)
{
	struct timeline *t = arg;
	for (;;) {
		while (sem_wait(&t->more))
			;
		unsigned at = atomic_load_explicit(&t->read, memory_order_relaxed);
		if (at != atomic_load_explicit(&t->written, memory_order_acquire)) {
			put(t, &t->ring[at % RING]);
			atomic_store_explicit(&t->read, at + 1, memory_order_release);
		} else if (atomic_load(&t->quit)) {
			return NULL;
		}
	}
}

/* ---- from begin to end ---- */

/* The thread is not attached, so not stopped either: it has nothing to do with the heap's objects. */
static int timeline_begin(struct timeline *t, struct gcuffd_heap *heap, FILE *out)
{
	*t = (struct timeline){.heap = heap, .out = out, .began_ns = now_ns()};
	if (sem_init(&t->more, 0, 0) || pthread_create(&t->thread, NULL, write_lines, t))
		return -1;
	return gcuffd_event_handler_set(heap, take, t);
}

/* No call of take() is under way once the handler is gone: so all that comes is in the ring. */
static int timeline_end(struct timeline *t)
{
	int err = gcuffd_event_handler_set(t->heap, NULL, NULL);
	if (err)
		return err;
	atomic_store(&t->quit, true);
	sem_post(&t->more);
	pthread_join(t->thread, NULL);
	sem_destroy(&t->more);
	return 0;
}

/* ---- a program that makes garbage ---- */

#define KEPT 2000u

static struct gcuffd_heap *heap;
static uint64_t end_ns;

static void fill(void **kept, unsigned seed)
{
	for (unsigned i = 0; now_ns() < end_ns; i++) {
		seed = seed * 1103515245u + 12345u;
		void *p = gcuffd_alloc(heap, 16 + (seed >> 16) % 1500);
		if (p)
			kept[(seed >> 8) % KEPT] = p;
	}
}

static void *work(void *seed)
{
	if (gcuffd_thread_attach())
		return NULL;
	void **kept = gcuffd_alloc(heap, KEPT * sizeof(*kept));
	if (kept)
		fill(kept, (unsigned)(uintptr_t)seed);
	gcuffd_thread_detach();
	return NULL;
}

static int run(unsigned threads)
{
	pthread_t thread[64];
	unsigned n = 0;
	while (n < threads && n < 64 && !pthread_create(&thread[n], NULL, work, (void *)(uintptr_t)(n + 1)))
		n++;
	for (unsigned i = 0; i < n; i++)
		pthread_join(thread[i], NULL);
	return n == threads ? 0 : -1;
}

static struct timeline timeline;

int main(int argc, char **argv)
{
	unsigned threads = argc > 1 ? (unsigned)strtoul(argv[1], NULL, 10) : 4;
	double seconds = argc > 2 ? strtod(argv[2], NULL) : 1;
	struct gcuffd_options options;
	struct gcuffd_stats stats = {.size = sizeof(stats)};
	gcuffd_options_init(&options);
	options.hard_limit = (size_t)(16 + 4 * threads) << 20;
	if (gcuffd_heap_create(&options, &heap) || timeline_begin(&timeline, heap, stdout))
		return 1;
	end_ns = now_ns() + (uint64_t)(seconds * 1e9);
	int err = run(threads);
	if (err || gcuffd_collect(heap) || gcuffd_heap_stats(heap, &stats) || timeline_end(&timeline)) /* all of its cycles are told by then */
		return 1;
	printf("%llu cycles, longest stop %.1f us, threads waited %.1f ms; %llu events lost, %u missed\n", (unsigned long long)stats.cycles,
	       us(stats.stop_max_ns), us(timeline.stall_ns) / 1000, (unsigned long long)timeline.lost, atomic_load(&timeline.missed));
	return gcuffd_heap_destroy(heap) ? 1 : 0;
}
