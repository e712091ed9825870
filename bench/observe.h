/* SPDX-License-Identifier: MIT */
/*
 * observe.h - a second process that looks at this one's page table: which pages of a range are in place, and which came in since it
 * looked last. So whoever is looked at neither touches nor counts anything for it.
 */
#ifndef BENCH_OBSERVE_H
#define BENCH_OBSERVE_H

#include <stddef.h>
#include <stdint.h>

struct observer {
	int pid, ask, answer;
};

struct observe_answer {
	uint64_t present[2], swapped[2], returned[2]; /* pages; [1]: of the kinds that were named */
};

/* Forks: before there are threads. */
void observe_begin(struct observer *observer);
/* The pages from number low on, a byte for each; those that have only bits of kinds are counted apart. */
void observe_range(struct observer *observer, size_t low, size_t pages, const uint8_t *page_kinds, unsigned kinds);
struct observe_answer observe_look(struct observer *observer);
void observe_end(struct observer *observer);

#endif
