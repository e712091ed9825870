/* SPDX-License-Identifier: MIT */
/*
 * util.h - what the benchmark programs share: arguments, clocks, a random sequence that is the same
 * for every system, a histogram of gaps, and the "key: value" lines that bench/run reads. Used by
 * one thread; nothing here allocates.
 */
#ifndef BENCH_UTIL_H
#define BENCH_UTIL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>

#define BENCH_EXIT_MEMORY 3 /* bench/run knows it: out of memory under the limit */

enum bench_memory { BENCH_ANON, BENCH_SHMEM, BENCH_HUGETLB };
enum bench_mode { BENCH_SPIN, BENCH_SLEEP, BENCH_SIGBUS, BENCH_THREADS4 };

struct bench_args {
	size_t limit;       /* peak RSS that the program may have, in bytes; 0: none */
	size_t heap;        /* what the collector is told instead of limit less baseline; 0: that */
	uint64_t seed;
	unsigned depth;     /* of the stretch tree (gcbench) or of the trees (binary-trees) */
	unsigned cluster;   /* mutate: depth of the trees that are replaced */
	unsigned rate;      /* mutate: operations in a second; coldset: until collections begin; image: of each thread, 0: at full speed */
	size_t live;        /* mutate, coldset: live bytes; restore, track: bytes of memory */
	double seconds;     /* mutate: length of the timed part; coldset: between collections, in all */
	bool measure_live;  /* only count live bytes (malloc build) */
	bool idle;          /* mutate: no operations */
	bool fresh;         /* mutate: nothing is done before the timed part */
	bool incremental;   /* libgc: its incremental mode */
	bool base_only;     /* libgc: in objects, only pointers to bases count */
	enum bench_mode mode; /* restore: who resolves a fault */
	size_t around;      /* restore: bytes that a fault fills */
	unsigned gap;       /* restore: us between touches; stops: between collections */
	unsigned touchers;  /* restore: threads that touch */
	unsigned fetch;     /* restore: us that fetching sleeps */
	unsigned threads;   /* image: that write while it is saved; stops: in all */
	unsigned running;   /* stops: of the threads, those that are not blocked */
	bool sequential;    /* restore, track: by rising address instead of in random order */
	const char *systems; /* track: those that take turns; NULL: all */
	unsigned rounds;    /* track: turns */
	enum bench_memory memory; /* track */
	bool thp;           /* track: huge pages for the range */
	double dirty;       /* track: per cent of the pages that are written */
	double empty;       /* track: per cent that are empty when accesses are tracked, and stay so */
	size_t large;       /* track: bytes of the second memory; 0: none */
	/* coldset */
	size_t target;         /* what the process should have resident */
	size_t store_memory;   /* of that, what pages taken out may take compressed; 0: a sixteenth */
	size_t store_file;     /* what they may take in a file; 0: none */
	unsigned collections;
	double settle;         /* most seconds that it waits for what is cold to go */
	bool fork;             /* have a child for a while, early on */
	bool verify;
	bool steps;            /* tell on stdout how far it is, and wait for a line each time */
	const char *rung;      /* NULL: the best one */
	const char *options;   /* gcuffd: more options, as text; NULL: none */
};

/* Fills *args from the command line; exits with a usage line on a bad one. */
void bench_args_parse(struct bench_args *args, int argc, char **argv);

static inline uint64_t bench_clock(clockid_t id)
{
	struct timespec ts;

	clock_gettime(id, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static inline uint64_t bench_now(void) { return bench_clock(CLOCK_MONOTONIC); }

static inline uint64_t bench_mix(uint64_t x)
{
	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
	x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
	return x ^ (x >> 31);
}

static inline uint64_t bench_random(uint64_t *state) { return bench_mix(*state += 0x9e3779b97f4a7c15u); }

/* A number below bound, which is less than 2^32. */
static inline uint64_t bench_random_below(uint64_t *state, uint64_t bound)
{
	return ((bench_random(state) >> 32) * bound) >> 32;
}

/* Gaps in ns: 32 buckets to an octave, so a percentile is at most 3 % off; max is exact. */
#define BENCH_HIST_SUB 32
struct bench_hist {
	uint64_t count;
	uint64_t max;
	uint32_t bucket[64 * BENCH_HIST_SUB];
};

void bench_hist_add(struct bench_hist *hist, uint64_t ns);
void bench_hist_merge(struct bench_hist *hist, const struct bench_hist *from);
uint64_t bench_hist_quantile(const struct bench_hist *hist, double q);

/* Bytes resident now; exact, and slow. */
size_t bench_rss(void);

/* A number of /proc/self/status. */
size_t bench_status_kib(const char *key);

void bench_emit_int(const char *key, uint64_t value);
void bench_emit_float(const char *key, double value);
void bench_emit_hex(const char *key, uint64_t value);
void bench_emit_null(const char *key);

/* From now on VmHWM tells of what comes; bench_end() still tells of all. */
void bench_forget_peak(void);

/* A thread of which no collector knows: it is not stopped, and may touch nothing of a heap. */
void bench_start_apart(void *(*fn)(void *));

/* Starts the program's clock; the second prints wall_s, cpu_s, rss_peak_kib. */
void bench_begin(void);
void bench_end(void);

_Noreturn void bench_out_of_memory(void);
_Noreturn void bench_fail(const char *what, int err);

/* Runs fn for each of n items of size bytes, the first on this thread and the others on threads of their own, and waits for all. */
void bench_at_once(void *(*fn)(void *), void *items, size_t size, unsigned n);

#endif
