/* SPDX-License-Identifier: MIT */
/*
 * sys_libgc.h - sys.h for the Boehm-Demers-Weiser collector as a C program would use it: thread-local
 * allocation, parallel marking, its default for interior pointers, and a collection before it gives
 * up at the limit. Its CPU time is that of all other threads (the mark threads) and that of the
 * thread which collects, from the start to the end event; sweeping done while allocating is not in it.
 * The event callback runs with libgc's lock held, which guards the times below.
 */
#ifndef BENCH_SYS_LIBGC_H
#define BENCH_SYS_LIBGC_H

#ifndef GC_THREADS
#define GC_THREADS
#endif
#include <gc.h>

#define SYS_MANUAL 0

static struct {
	uint64_t start_cpu;
	uint64_t cpu;
	uint64_t stop_start;
	uint64_t stop_max;
} sys_gc;

static void GC_CALLBACK sys_on_event(GC_EventType event)
{
	uint64_t stop;

	switch (event) {
	case GC_EVENT_START:
		sys_gc.start_cpu = bench_clock(CLOCK_THREAD_CPUTIME_ID);
		break;
	case GC_EVENT_END:
		sys_gc.cpu += bench_clock(CLOCK_THREAD_CPUTIME_ID) - sys_gc.start_cpu;
		break;
	case GC_EVENT_PRE_STOP_WORLD:
		sys_gc.stop_start = bench_now();
		break;
	case GC_EVENT_POST_START_WORLD:
		stop = bench_now() - sys_gc.stop_start;
		sys_gc.stop_max = stop > sys_gc.stop_max ? stop : sys_gc.stop_max;
		break;
	default:
		break;
	}
}

static inline void sys_init(const struct bench_args *args)
{
	size_t heap = sys_heap_limit(args);

	bench_emit_int("heap_kib", heap >> 10);
	GC_set_max_heap_size(heap);
	GC_set_max_retries(2);
	GC_set_warn_proc(GC_ignore_warn_proc);
	if (args->base_only)
		GC_set_all_interior_pointers(0);
	GC_INIT();
	GC_set_on_collection_event(sys_on_event);
	if (args->incremental)
		GC_enable_incremental();
	else
		GC_start_mark_threads();
}

static inline void *sys_alloc(size_t size)
{
	void *object = GC_MALLOC(size);

	if (SYS_LIKELY(object))
		return object;
	bench_out_of_memory();
}

static inline void *sys_alloc_atomic(size_t size)
{
	void *object = GC_MALLOC_ATOMIC(size);

	if (SYS_LIKELY(object))
		return object;
	bench_out_of_memory();
}

static inline void sys_free(void *object, size_t size)
{
	(void)object;
	(void)size;
}

static inline uint64_t sys_cycles(void) { return GC_get_gc_no(); }

static inline void sys_report(void)
{
	uint64_t process = bench_clock(CLOCK_PROCESS_CPUTIME_ID);
	uint64_t thread = bench_clock(CLOCK_THREAD_CPUTIME_ID);
	uint64_t others = process > thread ? process - thread : 0;

	bench_emit_float("gc_cpu_s", (double)(others + sys_gc.cpu) / 1e9);
	bench_emit_float("stop_max_us", (double)sys_gc.stop_max / 1e3);
	bench_emit_int("cycles", GC_get_gc_no());
	bench_emit_int("heap_size_kib", GC_get_heap_size() >> 10);
	bench_emit_int("parallel", (uint64_t)GC_get_parallel());
}

#endif
