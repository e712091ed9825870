#!/bin/sh
# SPDX-License-Identifier: MIT
#
# Programs under the preload library that use libgcuffd themselves: linked with it, or loading it when they run. Each has a heap of
# its own, used by threads that attach to nothing.
set -u

# shellcheck source=tests/preload.txt
. "${top_srcdir:?}/tests/preload.txt"

cat >"$tmp/program.c" <<'END'
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <threads.h>
#include <time.h>
#include <unistd.h>

#include "gcuffd.h"

#ifdef LATE
static void *lib;
#define CALL(name) ((__typeof__(name) *)dlsym(lib, #name))
#else
#define CALL(name) name
#endif

#define MUST(x) do { if (!(x)) { fprintf(stderr, "%d: not so: %s\n", __LINE__, #x); exit(1); } } while (0)
#define LENGTH 1000

struct node {
	struct node *next;
	unsigned long check;
	char *text; /* of malloc: nothing else points to it */
};

static struct gcuffd_heap *heap;
static double deadline;

static double now(void)
{
	struct timespec ts;
	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double)ts.tv_sec + (double)ts.tv_nsec * 1e-9;
}

static struct node *build(unsigned long seed)
{
	struct node *list = NULL;
	for (unsigned long i = 0; i < LENGTH; i++) {
		struct node *n = CALL(gcuffd_alloc)(heap, sizeof(*n) + i % 64);
		MUST(n);
		n->next = list;
		n->check = seed ^ i;
		n->text = malloc(24 + i % 100);
		snprintf(n->text, 24, "%lu", seed ^ i);
		list = n;
	}
	return list;
}

static void check(const struct node *list, unsigned long seed)
{
	for (unsigned long i = LENGTH; i-- > 0; list = list->next)
		MUST(list && list->check == (seed ^ i) && strtoul(list->text, NULL, 10) == list->check);
	MUST(!list);
}

static void *work(void *arg)
{
	unsigned long seed = (unsigned long)arg << 32;
	struct node *volatile kept = build(seed);
	for (int i = 1; i < 20; i++)
		check(build(seed + (unsigned)i), seed + (unsigned)i);
	check(kept, seed);
	return NULL;
}

static int work_c11(void *arg)
{
	work(arg);
	return 0;
}

static void run_workers(unsigned long seed)
{
	pthread_t threads[3];
	thrd_t c11;
	for (unsigned long i = 0; i < 3; i++)
		MUST(!pthread_create(&threads[i], NULL, work, (void *)(seed + i)));
	MUST(thrd_create(&c11, work_c11, (void *)(seed + 3)) == thrd_success);
	for (int i = 0; i < 3; i++)
		pthread_join(threads[i], NULL);
	thrd_join(c11, NULL);
}

/* A heap's life: threads come and go, and it ends while others of theirs may still be on their way out. */
static void use_heap(const struct gcuffd_options *o, unsigned long round)
{
	struct gcuffd_stats s = {.size = sizeof(s)};
	MUST(!CALL(gcuffd_heap_create)(o, &heap));
	struct node *volatile kept = build(99);
	for (unsigned long i = 0; i < 3; i++) {
		run_workers(round * 16 + i * 4);
		MUST(!CALL(gcuffd_collect)(heap));
		check(kept, 99);
	}
	MUST(!CALL(gcuffd_heap_stats)(heap, &s));
	MUST(s.cycles >= 3 && !s.cycles_put_off);
	MUST(!CALL(gcuffd_heap_destroy)(heap));
}

#ifdef LATE
/* Of a second copy nothing is to be had, and nothing is harmed by asking: 100 MiB are dropped, and a child does so too. */
static int be_refused(void)
{
	int status = 0;
	MUST(CALL(gcuffd_heap_create)(NULL, &heap) == -EBUSY && CALL(gcuffd_thread_attach)() == -EBUSY);
	pid_t child = fork();
	for (int i = 0; i < 100000; i++) {
		char *volatile p = malloc(1000);
		MUST(p);
	}
	if (!child)
		_exit(0);
	MUST(child > 0 && waitpid(child, &status, 0) == child && status == 0);
	return 0;
}
#endif

int main(int argc, char **argv)
{
	struct gcuffd_options o;
#ifdef LATE
	lib = dlopen(argv[2], RTLD_NOW);
	MUST(lib);
	if (!strcmp(argv[1], "refused"))
		return be_refused();
#endif
	deadline = now() + atof(argv[1]);
	CALL(gcuffd_options_init)(&o);
	MUST(!CALL(gcuffd_options_parse)(&o, argv[argc - 1], NULL));
	for (unsigned long round = 1; round < 5 || now() < deadline; round++)
		use_heap(&o, round);
	return 0;
}
END

# CC may be several words
# shellcheck disable=SC2086
compile() {
	out=$1
	shift
	${CC:-cc} -std=gnu17 -Wall -Wextra -O2 -D_GNU_SOURCE -I"$top_srcdir/include" -o "$tmp/$out" "$tmp/program.c" "$@" -pthread -ldl
}

LD_LIBRARY_PATH=$top_builddir/.libs
export LD_LIBRARY_PATH
compile linked -L"$top_builddir/.libs" -lgcuffd || exit 1
compile late -DLATE || exit 1

# both PROGRAM ARGUMENT...: the program looks at its own heaps, this at that of malloc.
both() {
	export GCUFFD_PRELOAD="stop_timeout_ms=20000,start_size=4M"
	preload "$@" || return 1
	unset GCUFFD_PRELOAD
	at_least cycles 2 && exactly "put off" 0
}

test_linked() { both "$tmp/linked" 2 stop_timeout_ms=20000; }
test_linked_stop() { both "$tmp/linked" 1 stop_timeout_ms=20000,rung=stop; }
test_late() { both "$tmp/late" 2 "$top_builddir/.libs/libgcuffd.so" stop_timeout_ms=20000; }

test_second_copy() {
	cp "$top_builddir/.libs/libgcuffd.so.0" "$tmp/libgcuffd.so.0" || return 1
	both "$tmp/late" refused "$tmp/libgcuffd.so.0"
}

# python3, which loads the library by its path
test_ctypes() {
	[ -x /usr/bin/python3 ] || { skip "no python3 here"; return; }
	preload sh "$top_srcdir/tests/test_ctypes.sh" && exactly "put off" 0
}

run_tests linked linked_stop late second_copy ctypes
