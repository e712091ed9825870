/* SPDX-License-Identifier: MIT */
/*
 * util.c - see util.h. Runs in the benchmark's one thread; the start time and the peak until then are its only state.
 */
#include "util.h"

#include <errno.h>
#include <getopt.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint64_t begin_ns;
static size_t peak_kib; /* before it was forgotten */

/* ---- arguments */

static const struct option long_options[] = {
	{ "limit", required_argument, NULL, 'l' },
	{ "heap", required_argument, NULL, 'h' },
	{ "seed", required_argument, NULL, 's' },
	{ "depth", required_argument, NULL, 'd' },
	{ "cluster", required_argument, NULL, 'c' },
	{ "rate", required_argument, NULL, 'r' },
	{ "live", required_argument, NULL, 'L' },
	{ "seconds", required_argument, NULL, 't' },
	{ "measure-live", no_argument, NULL, 'm' },
	{ "idle", no_argument, NULL, 'i' },
	{ "fresh", no_argument, NULL, 256 },
	{ "incremental", no_argument, NULL, 'I' },
	{ "base-only", no_argument, NULL, 'b' },
	{ "mode", required_argument, NULL, 'M' },
	{ "around", required_argument, NULL, 'a' },
	{ "gap", required_argument, NULL, 'g' },
	{ "touchers", required_argument, NULL, 'T' },
	{ "fetch", required_argument, NULL, 'F' },
	{ "threads", required_argument, NULL, 'H' },
	{ "running", required_argument, NULL, 'U' },
	{ "sequential", no_argument, NULL, 'S' },
	{ "systems", required_argument, NULL, 'y' },
	{ "rounds", required_argument, NULL, 'R' },
	{ "memory", required_argument, NULL, 'Y' },
	{ "thp", no_argument, NULL, 'P' },
	{ "dirty", required_argument, NULL, 'D' },
	{ "empty", required_argument, NULL, 'e' },
	{ "large", required_argument, NULL, 'G' },
	{ "target", required_argument, NULL, 'A' },
	{ "store-memory", required_argument, NULL, 'B' },
	{ "store-file", required_argument, NULL, 'C' },
	{ "collections", required_argument, NULL, 'N' },
	{ "settle", required_argument, NULL, 'E' },
	{ "fork", no_argument, NULL, 'f' },
	{ "verify", no_argument, NULL, 'v' },
	{ "steps", no_argument, NULL, 'p' },
	{ "rung", required_argument, NULL, 'u' },
	{ "options", required_argument, NULL, 'o' },
	{ NULL, 0, NULL, 0 },
};

static _Noreturn void usage(const char *program)
{
	fprintf(stderr,
		"usage: %s [--limit BYTES] [--heap BYTES] [--seed N] [--depth N] [--live MIB] [--seconds S]\n"
		"       [--rate N] [--cluster DEPTH] [--idle] [--fresh] [--incremental] [--base-only] [--measure-live]\n"
		"       [--mode spin|sleep|sigbus|threads4] [--around BYTES] [--gap US] [--touchers N] [--fetch US] [--threads N] [--running N] [--sequential]\n"
		"       [--systems LIST] [--rounds N] [--memory anon|shmem|hugetlb] [--thp] [--dirty PERCENT] [--empty PERCENT] [--large MIB]\n"
		"       [--target MIB] [--store-memory MIB] [--store-file MIB] [--collections N] [--settle S] [--fork] [--verify] [--steps] [--rung NAME]\n"
		"       [--options TEXT]\n",
		program);
	exit(2);
}

static double parse_number(const char *program, const char *text, double least, double most)
{
	char *end;
	double value = strtod(text, &end);

	if (end != text && !*end && value >= least && value <= most)
		return value;
	fprintf(stderr, "%s: '%s' is not a number from %g to %g\n", program, text, least, most);
	usage(program);
}

static uint64_t parse_count(const char *program, const char *text)
{
	char *end;
	unsigned long long value = strtoull(text, &end, 10);

	if (*text >= '0' && *text <= '9' && !*end)
		return value;
	fprintf(stderr, "%s: '%s' is not a whole number\n", program, text);
	usage(program);
}

static size_t parse_mib(const char *program, const char *text, double least)
{
	return (size_t)parse_number(program, text, least, 1 << 22) << 20;
}

/* Where text is among count names; what: of what they are names. */
static unsigned parse_name(const char *program, const char *text, const char *const *names, unsigned count, const char *what)
{
	for (unsigned i = 0; i < count; i++)
		if (!strcmp(text, names[i]))
			return i;
	fprintf(stderr, "%s: '%s' is not a %s\n", program, text, what);
	usage(program);
}

static enum bench_mode parse_mode(const char *program, const char *text)
{
	static const char *const names[] = { "spin", "sleep", "sigbus", "threads4" };

	return (enum bench_mode)parse_name(program, text, names, sizeof(names) / sizeof(names[0]), "mode");
}

static enum bench_memory parse_memory(const char *program, const char *text)
{
	static const char *const names[] = { "anon", "shmem", "hugetlb" };

	return (enum bench_memory)parse_name(program, text, names, sizeof(names) / sizeof(names[0]), "memory");
}

static void apply_option(struct bench_args *args, int c, const char *program)
{
	switch (c) {
	case 'l': args->limit = parse_count(program, optarg); break;
	case 'h': args->heap = parse_count(program, optarg); break;
	case 's': args->seed = parse_count(program, optarg); break;
	case 'd': args->depth = (unsigned)parse_number(program, optarg, 6, 30); break;
	case 'c': args->cluster = (unsigned)parse_number(program, optarg, 1, 16); break;
	case 'r': args->rate = (unsigned)parse_number(program, optarg, 0, 1e8); break;
	case 'L': args->live = parse_mib(program, optarg, 1); break;
	case 't': args->seconds = parse_number(program, optarg, 0.01, 86400); break;
	case 'm': args->measure_live = true; break;
	case 'i': args->idle = true; break;
	case 256: args->fresh = true; break;
	case 'I': args->incremental = true; break;
	case 'b': args->base_only = true; break;
	case 'M': args->mode = parse_mode(program, optarg); break;
	case 'a': args->around = (size_t)parse_number(program, optarg, 4096, 1 << 20); break;
	case 'g': args->gap = (unsigned)parse_number(program, optarg, 0, 1e6); break;
	case 'T': args->touchers = (unsigned)parse_number(program, optarg, 1, 64); break;
	case 'F': args->fetch = (unsigned)parse_number(program, optarg, 0, 999999); break;
	case 'H': args->threads = (unsigned)parse_number(program, optarg, 1, 1024); break;
	case 'U': args->running = (unsigned)parse_number(program, optarg, 1, 1024); break;
	case 'S': args->sequential = true; break;
	case 'y': args->systems = optarg; break;
	case 'R': args->rounds = (unsigned)parse_number(program, optarg, 1, 1e6); break;
	case 'Y': args->memory = parse_memory(program, optarg); break;
	case 'P': args->thp = true; break;
	case 'e': args->empty = parse_number(program, optarg, 0, 100); break;
	case 'D': args->dirty = parse_number(program, optarg, 0.001, 100); break;
	case 'G': args->large = parse_mib(program, optarg, 0); break;
	case 'A': args->target = parse_mib(program, optarg, 1); break;
	case 'B': args->store_memory = parse_mib(program, optarg, 1); break;
	case 'C': args->store_file = parse_mib(program, optarg, 0); break;
	case 'N': args->collections = (unsigned)parse_number(program, optarg, 2, 1000); break;
	case 'E': args->settle = parse_number(program, optarg, 0.1, 86400); break;
	case 'f': args->fork = true; break;
	case 'v': args->verify = true; break;
	case 'p': args->steps = true; break;
	case 'u': args->rung = optarg; break;
	case 'o': args->options = optarg; break;
	default: usage(program);
	}
}

void bench_args_parse(struct bench_args *args, int argc, char **argv)
{
	int c;

	*args = (struct bench_args){
		.seed = 1, .depth = 18, .cluster = 6, .rate = 16000, .live = (size_t)1 << 30, .seconds = 20,
		.around = 16384, .touchers = 1, .threads = 1, .running = 1, .rounds = 5, .dirty = 12.5, .large = (size_t)4 << 30,
		.target = (size_t)512 << 20, .store_file = (size_t)8 << 30, .collections = 10, .settle = 120,
	};
	while ((c = getopt_long(argc, argv, "", long_options, NULL)) != -1)
		apply_option(args, c, argv[0]);
	if (optind != argc)
		usage(argv[0]);
	if (!args->store_memory)
		args->store_memory = args->target / 16 > 1 << 20 ? args->target / 16 : 1 << 20;
}

/* ---- histogram */

static unsigned hist_index(uint64_t ns)
{
	unsigned octave;

	if (ns < BENCH_HIST_SUB)
		return (unsigned)ns;
	octave = 63 - (unsigned)__builtin_clzll(ns);
	return (octave - 4) * BENCH_HIST_SUB + (unsigned)(ns >> (octave - 5)) - BENCH_HIST_SUB;
}

/* The middle of a bucket. */
static uint64_t hist_value(unsigned index)
{
	unsigned octave = index / BENCH_HIST_SUB + 4;
	uint64_t sub = index % BENCH_HIST_SUB + BENCH_HIST_SUB;

	if (index < 2 * BENCH_HIST_SUB)
		return index;
	return (sub << (octave - 5)) + ((uint64_t)1 << (octave - 6));
}

void bench_hist_add(struct bench_hist *hist, uint64_t ns)
{
	hist->count++;
	hist->bucket[hist_index(ns)]++;
	if (ns > hist->max)
		hist->max = ns;
}

void bench_hist_merge(struct bench_hist *hist, const struct bench_hist *from)
{
	hist->count += from->count;
	if (from->max > hist->max)
		hist->max = from->max;
	for (unsigned i = 0; i < sizeof(hist->bucket) / sizeof(hist->bucket[0]); i++)
		hist->bucket[i] += from->bucket[i];
}

uint64_t bench_hist_quantile(const struct bench_hist *hist, double q)
{
	uint64_t rank = (uint64_t)(q * (double)hist->count), seen = 0;

	for (unsigned i = 0; i < sizeof(hist->bucket) / sizeof(hist->bucket[0]); i++) {
		seen += hist->bucket[i];
		if (seen > rank)
			return hist_value(i) < hist->max ? hist_value(i) : hist->max;
	}
	return hist->max;
}

/* ---- what the kernel says about this process */

static size_t read_kib(const char *path, const char *key)
{
	FILE *file = fopen(path, "r");
	char line[256];
	size_t kib = 0;

	if (!file)
		bench_fail(path, errno);
	while (fgets(line, sizeof(line), file)) {
		if (!strncmp(line, key, strlen(key)))
			kib = strtoull(line + strlen(key), NULL, 10);
	}
	fclose(file);
	return kib;
}

size_t bench_status_kib(const char *key) { return read_kib("/proc/self/status", key); }
size_t bench_rss(void) { return read_kib("/proc/self/smaps_rollup", "Rss:") << 10; }

void bench_forget_peak(void)
{
	size_t kib = bench_status_kib("VmHWM:");
	FILE *file = fopen("/proc/self/clear_refs", "w");

	peak_kib = kib > peak_kib ? kib : peak_kib;
	if (!file || fputs("5", file) < 0 || fclose(file))
		bench_fail("/proc/self/clear_refs", errno);
}

/* ---- output */

void bench_emit_int(const char *key, uint64_t value) { printf("%s: %llu\n", key, (unsigned long long)value); }
void bench_emit_float(const char *key, double value) { printf("%s: %.6f\n", key, value); }
void bench_emit_hex(const char *key, uint64_t value) { printf("%s: %016llx\n", key, (unsigned long long)value); }
void bench_emit_null(const char *key) { printf("%s: null\n", key); }

void bench_begin(void) { begin_ns = bench_now(); }

void bench_end(void)
{
	bench_emit_float("wall_s", (double)(bench_now() - begin_ns) / 1e9);
	bench_emit_float("cpu_s", (double)bench_clock(CLOCK_PROCESS_CPUTIME_ID) / 1e9);
	size_t kib = bench_status_kib("VmHWM:");
	bench_emit_int("rss_peak_kib", kib > peak_kib ? kib : peak_kib);
	fflush(stdout);
}

void bench_out_of_memory(void)
{
	printf("out_of_memory: 1\n");
	bench_end();
	_Exit(BENCH_EXIT_MEMORY);
}

void bench_fail(const char *what, int err)
{
	fprintf(stderr, "%s: %s\n", what, strerror(err));
	exit(1);
}

void bench_start_apart(void *(*fn)(void *))
{
	pthread_t thread;
	int err = pthread_create(&thread, NULL, fn, NULL);

	if (err)
		bench_fail("a thread", err);
	pthread_detach(thread);
}

void bench_at_once(void *(*fn)(void *), void *items, size_t size, unsigned n)
{
	pthread_t *threads = calloc(n, sizeof(*threads));
	if (!threads)
		bench_out_of_memory();
	for (unsigned i = 1; i < n; i++) {
		int err = pthread_create(&threads[i], NULL, fn, (char *)items + i * size);
		if (err)
			bench_fail("a thread", err);
	}
	fn(items);
	for (unsigned i = 1; i < n; i++)
		pthread_join(threads[i], NULL);
	free(threads);
}
