/* SPDX-License-Identifier: MIT */
/*
 * resolver.h - the fault resolver: reads the messages of one userfaultfd and has each fault resolved.
 *
 * It includes base and sys only, takes no lock, allocates nothing, and touches no memory that is registered with
 * its descriptor (.inv.resolver.alone): so whoever waits for it can't be waited for. All threads of one resolver
 * share a descriptor table that holds nothing but the descriptor.
 *
 * What else has to be done with the descriptor is asked for by touching the bell, a page of the resolver's own:
 * the message for it is the request, and filling it is the answer. So nobody else needs a descriptor, which the
 * program might close.
 */
#ifndef GU_GC_RESOLVER_H
#define GU_GC_RESOLVER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum gu_bell { GU_BELL_FREE, GU_BELL_TAKEN, GU_BELL_RUNG, GU_BELL_HEARD, GU_BELL_ANSWERED };
enum gu_fault_why { GU_FAULT_MISSING, GU_FAULT_RWP };

struct gu_fault {
	uintptr_t page;
	bool write;
	enum gu_fault_why why;
	uint32_t tid;
};

struct gu_resolver_counts {
	uint64_t faults;  /* resolved */
	uint64_t reads;   /* of the descriptor that gave messages: several faults come in one */
	uint64_t sleeps;  /* of the threads, when spinning brought nothing */
};

struct gu_resolver_range {
	int uffd;
	uintptr_t start;
	size_t len;
};

struct gu_resolver {
	int uffd;         /* in the table of the resolver's threads */
	uintptr_t bell;   /* a page registered for MISSING */
	uint32_t spin_ns; /* most of it; constant */
	void (*resolve)(void *data, const struct gu_fault *fault, char *buffer);
	void *data;
	struct gu_resolver_counts counts; /* atomic */

	uint32_t asking;  /* atomic; futex; enum gu_bell */
	/* guard: who has taken the bell; here, since the asker's stack may be armed itself */
	int (*request)(const struct gu_resolver_range *range);
	struct gu_resolver_range range;
	int answer;
};

/* A thread's whole life; buffer is its own, for resolve. */
void gu_resolver_run(struct gu_resolver *resolver, char *buffer);
/*
 * Runs request for the range on a thread of the resolver, NULL: ends that thread. Its result. Not in a section, not on
 * such a thread.
 */
int gu_resolver_ask(struct gu_resolver *resolver, int (*request)(const struct gu_resolver_range *range), uintptr_t start, size_t len);

#endif
