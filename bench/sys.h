/* SPDX-License-Identifier: MIT */
/*
 * sys.h - the system under test, chosen by one of -DBENCH_SYS_GCUFFD, -DBENCH_SYS_LIBGC and
 * -DBENCH_SYS_MALLOC. Each gives the same inline functions, so that a call costs what it costs in a
 * program written for that system. The benchmark's one thread runs all of it, except libgc's event
 * callback, which runs in whatever thread collects.
 *
 * sys_alloc and sys_alloc_atomic return memory that the caller initialises. sys_free does nothing
 * where SYS_MANUAL is 0.
 */
#ifndef BENCH_SYS_H
#define BENCH_SYS_H

#include "util.h"

#define SYS_LIKELY(x) __builtin_expect(!!(x), 1)

/* What the collector is told so that the whole process stays within the limit. */
static inline size_t sys_heap_limit(const struct bench_args *args)
{
	size_t baseline = bench_rss();

	bench_emit_int("baseline_kib", baseline >> 10);
	if (args->heap || !args->limit)
		return args->heap;
	return args->limit > baseline ? args->limit - baseline : 1;
}

#if defined(BENCH_SYS_GCUFFD)
#include "sys_gcuffd.h"
#elif defined(BENCH_SYS_LIBGC)
#include "sys_libgc.h"
#elif defined(BENCH_SYS_MALLOC)
#include "sys_malloc.h"
#else
#error "define BENCH_SYS_GCUFFD, BENCH_SYS_LIBGC or BENCH_SYS_MALLOC"
#endif

#endif
