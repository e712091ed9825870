/* SPDX-License-Identifier: MIT */
/*
 * firsttouch.h - what memory that is filled and memory that is noticed on first touch have in common: a userfaultfd, and threads
 * that run a resolver for it. Calls are made by any thread; making and ending by one.
 *
 * Each thread has a descriptor table of its own, with the userfaultfd and what the callback needs in it: the program may
 * close all it knows, and no pipe is kept open by a thread that it does not know. The caller's descriptors are closed
 * when they all have theirs.
 */
#ifndef GU_API_FIRSTTOUCH_H
#define GU_API_FIRSTTOUCH_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "gc/resolver.h"
#include "gcuffd.h"

#define GU_FIRST_THREADS 8u
#define GU_FIRST_FDS 16u

struct gu_first;

struct gu_first_thread {
	struct gu_first *base;
	pthread_t id;
	char *buffer; /* NULL: resolving needs none */
};

struct gu_first {
	struct gu_resolver resolver;
	struct gcuffd_lazy_options options; /* as resolved; constant */
	int fds[GU_FIRST_FDS]; /* constant */
	int pagemap;        /* in the table of the resolver's threads, or -errno */
	size_t buffer;      /* bytes that each thread has for resolving */
	uintptr_t start;
	size_t len;
	pid_t pid;          /* that has the threads */
	unsigned nthreads;
	uint32_t ready;     /* atomic; futex; threads that have their descriptors */
	struct gu_first_thread threads[GU_FIRST_THREADS];
	bool shares;        /* atomic; a thread could not have a table of its own */
};

/* *out: in (which may be NULL) with defaults. -EINVAL. */
int gu_first_options(struct gcuffd_lazy_options *out, const struct gcuffd_lazy_options *in);
void gu_first_set(struct gu_first *f, const struct gcuffd_lazy_options *options);
/* -EOPNOTSUPP: the kernel lacks a feature; -EPERM: faults of user code only, and that was not asked for. */
int gu_first_open(struct gu_first *f, uint64_t features);
/* Starts the threads; the descriptors are theirs alone from here on. */
int gu_first_begin(struct gu_first *f, void (*resolve)(void *data, const struct gu_fault *fault, char *buffer), void *data);
/* After any of them, whatever it said. */
void gu_first_finish(struct gu_first *f);

#endif
