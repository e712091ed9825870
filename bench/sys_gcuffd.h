/* SPDX-License-Identifier: MIT */
/*
 * sys_gcuffd.h - sys.h for libgcuffd: one heap with default options, but for a hard limit and those that a benchmark needs.
 */
#ifndef BENCH_SYS_GCUFFD_H
#define BENCH_SYS_GCUFFD_H

#include <errno.h>

#include "gcuffd.h"

#define SYS_MANUAL 0

static struct gcuffd_heap *sys_heap;

static inline void sys_init(const struct bench_args *args)
{
	struct gcuffd_options options;
	int err;

	gcuffd_options_init(&options);
	err = args->options ? gcuffd_options_parse(&options, args->options, NULL) : 0;
	if (err)
		bench_fail("gcuffd_options_parse", -err);
	options.hard_limit = sys_heap_limit(args);
	bench_emit_int("heap_kib", options.hard_limit >> 10);
	err = gcuffd_heap_create(&options, &sys_heap);
	if (err)
		bench_fail("gcuffd_heap_create", -err);
	err = gcuffd_thread_attach();
	if (err)
		bench_fail("gcuffd_thread_attach", -err);
}

static inline void *sys_alloc(size_t size)
{
	void *object = gcuffd_alloc(sys_heap, size);

	if (SYS_LIKELY(object))
		return object;
	bench_out_of_memory();
}

static inline void *sys_alloc_atomic(size_t size)
{
	void *object = gcuffd_alloc_atomic(sys_heap, size);

	if (SYS_LIKELY(object))
		return object;
	bench_out_of_memory();
}

static inline void sys_free(void *object, size_t size)
{
	(void)object;
	(void)size;
}

static inline struct gcuffd_stats sys_stats(void)
{
	struct gcuffd_stats stats = { .size = sizeof(stats) };
	int err = gcuffd_heap_stats(sys_heap, &stats);

	if (err)
		bench_fail("gcuffd_heap_stats", -err);
	return stats;
}

static inline uint64_t sys_cycles(void) { return sys_stats().cycles; }

static inline void sys_report(void)
{
	static const char *const rungs[] = { "auto", "stop", "async", "move", "rwp" };
	struct gcuffd_stats stats = sys_stats();

	printf("rung: %s\n", stats.rung < 5 ? rungs[stats.rung] : "unknown");
	bench_emit_float("gc_cpu_s", (double)stats.gc_cpu_ns / 1e9);
	bench_emit_float("stop_max_us", (double)stats.stop_max_ns / 1e3);
	bench_emit_float("stop_total_us", (double)stats.stop_total_ns / 1e3);
	bench_emit_int("cycles", stats.cycles);
	bench_emit_int("dirty_pages", stats.dirty_pages);
	bench_emit_int("remark_dirty_pages", stats.remark_dirty_pages);
	bench_emit_float("stall_s", (double)stats.stall_ns / 1e9);
	bench_emit_int("cycles_put_off", stats.cycles_put_off);
}

#endif
