/* SPDX-License-Identifier: MIT */
/*
 * sys_malloc.h - sys.h for malloc and free, of libc or of a preloaded library. With --measure-live
 * it also counts live bytes, each object rounded up to 16, and their peak: that is the live size
 * from which bench/run makes the limit of every system.
 */
#ifndef BENCH_SYS_MALLOC_H
#define BENCH_SYS_MALLOC_H

#include <stdlib.h>

#define SYS_MANUAL 1

static struct {
	bool on;
	size_t now;
	size_t peak;
} sys_live;

static inline void sys_init(const struct bench_args *args)
{
	bench_emit_int("baseline_kib", bench_rss() >> 10);
	sys_live.on = args->measure_live;
}

static inline void count_live(size_t size)
{
	sys_live.now += (size + 15) & ~(size_t)15;
	if (sys_live.now > sys_live.peak)
		sys_live.peak = sys_live.now;
}

static inline void *sys_alloc(size_t size)
{
	void *object = malloc(size);

	if (!SYS_LIKELY(object))
		bench_out_of_memory();
	if (!SYS_LIKELY(!sys_live.on))
		count_live(size);
	return object;
}

static inline void *sys_alloc_atomic(size_t size) { return sys_alloc(size); }

static inline void sys_free(void *object, size_t size)
{
	if (!SYS_LIKELY(!sys_live.on))
		sys_live.now -= (size + 15) & ~(size_t)15;
	free(object);
}

static inline uint64_t sys_cycles(void) { return 0; }

static inline void sys_report(void)
{
	if (sys_live.on)
		bench_emit_int("live_bytes", sys_live.peak);
	bench_emit_null("gc_cpu_s");
	bench_emit_null("stop_max_us");
	bench_emit_null("cycles");
}

#endif
