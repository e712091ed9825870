/* SPDX-License-Identifier: MIT */
/*
 * resolver.h - the fault resolver: reads the messages of one userfaultfd and has each fault resolved.
 *
 * It includes base and sys only, takes no lock but the baton, allocates nothing, and touches no memory that is registered with
 * its descriptor (.inv.resolver.alone): so whoever waits for it can't be waited for. Each thread of a resolver has
 * a descriptor table of its own that holds the descriptor and what the callback needs.
 *
 * Of several threads one at a time looks for messages: who has the baton (.inv.resolver.baton). While faults take long it
 * passes the baton on before it resolves what it read; while they don't it keeps it, for waking another takes longer.
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
	uint64_t shortages; /* the kernel had no memory for a page: counted once until it has */
};

struct gu_resolver_range {
	void *data;       /* the resolver's */
	int uffd;
	uintptr_t start;
	size_t len;
};

typedef int gu_request_fn(const struct gu_resolver_range *range);

struct gu_resolver {
	int uffd;         /* in the table of the resolver's threads */
	uintptr_t bell;   /* a page registered for MISSING */
	uint32_t spin_ns; /* most of it; constant */
	bool several;     /* threads; constant */
	void (*resolve)(void *data, const struct gu_fault *fault, char *buffer);
	bool (*ahead)(void *data, char *buffer); /* NULL, or fills a page that nobody waits for, on any thread; false: there was none */
	void *data;
	struct gu_resolver_counts counts; /* atomic */

	uint32_t baton;    /* atomic; futex; enum baton */
	uint32_t spin_now; /* guard: who has the baton */
	uint32_t misses;   /* guard: who has the baton; sleeps since spinning brought something */
	uint32_t mean_ns;  /* atomic; what the latest faults took, if there are several threads */
	uint32_t pause_ns; /* atomic; the next one */

	uint32_t asking;  /* atomic; futex; enum gu_bell */
	/* guard: who has taken the bell; here, since the asker's stack may be armed itself */
	gu_request_fn *request;
	struct gu_resolver_range range;
	int answer;
};

/* A thread's whole life; buffer is its own, for resolve. */
void gu_resolver_run(struct gu_resolver *resolver, char *buffer);
/* For resolve, where the kernel has no memory: sleeps, longer each time, up to 64 ms. Then wakes who waits: they come again. */
void gu_resolver_pause(struct gu_resolver *resolver, uintptr_t page);
/* There was memory. */
void gu_resolver_relieved(struct gu_resolver *resolver);

/*
 * Runs request for the range on a thread of the resolver, NULL: ends that thread. Its result. Not in a section, not on
 * such a thread.
 */
int gu_resolver_ask(struct gu_resolver *resolver, gu_request_fn *request, uintptr_t start, size_t len);

/* The same in three steps: between the last two the asker may read what only who has taken the bell may. */
void gu_resolver_take(struct gu_resolver *resolver);
int gu_resolver_ask_taken(struct gu_resolver *resolver, gu_request_fn *request, uintptr_t start, size_t len);
void gu_resolver_give(struct gu_resolver *resolver);

#endif
