/* SPDX-License-Identifier: MIT */
/*
 * tracking.h - what the tests of tracking share: cases, which are a kind of memory and what it is watched for. Tests run
 * once a case: tcase_add_loop_test(tcase, test, 0, CASES), and begin with NEED_CASE(_i).
 */
#ifndef GU_TESTS_TRACKING_H
#define GU_TESTS_TRACKING_H

#include <sys/syscall.h>

#include "machine.h"

/* ---- cases: a kind of memory, and what it is watched for ---- */

#define THP_LEN ((size_t)2 << 20)

static const struct {
	enum memory_kind kind;
	bool thp;
} sorts[] = {
	{ANON, false}, {PRECISE, false}, {COPY, false}, {FILE_COPY, false}, {SHMEM, false},
	{MEMFD, false}, {HUGE, false}, {HUGE_SHARED, false}, {ANON, true}, {SHMEM, true},
};

#define SORTS ((int)GU_ARRAY_LEN(sorts))
#define CASES (2 * SORTS)

static bool accesses; /* and not only writes */
static bool thp;

static inline bool is_anon(void) { return mem.kind == ANON || mem.kind == PRECISE; }

static inline void set_case(int i)
{
	mem.at = NULL;
	mem.fd = -1;
	mem.kind = sorts[i % SORTS].kind;
	accesses = i >= SORTS;
	thp = sorts[i % SORTS].thp;
}

static inline size_t populated(void) { return thp ? mem.pages : mem.pages / 2; }

/* The first half holds 1, all of it if it is a transparent huge page. */
static inline bool make_case(size_t pages)
{
	enum memory_kind kind = mem.kind;
	if (!has_kind(kind, pages) || !make_memory(kind, thp ? THP_LEN / GU_PAGE : pages))
		return false;
	if (thp && madvise(mem.at, THP_LEN, MADV_HUGEPAGE))
		return false;
	for (size_t i = 0; i < populated(); i++)
		touch(i);
	if (accesses)
		mem.flags = GCUFFD_WATCH_ACCESSES;
	return !thp || count_huge(mem.at, mem.at + THP_LEN) == THP_LEN;
}

#define NEED_CASE(i) \
	do { \
		NEED_WATCH(); \
		set_case(i); \
		if (accesses && !gu_caps()->has_rwp_async) \
			GU_LACKS("rwp", "no read-write protection"); \
		if (accesses && (mem.kind == PRECISE || mem.kind == FILE_COPY)) \
			GU_LEAVE_OUT("not to be watched so"); \
		ck_ok(make_watchers(1, 0)); \
	} while (0)

/* A case that the test is not about. */
#define ONLY(condition) \
	do { \
		if (!(condition)) \
			GU_LEAVE_OUT("only where " #condition); \
	} while (0)

#define SMALL (is_huge() ? 6 : 16)

/* ---- pages ---- */

typedef bool doing_fn(struct test_rng *rng);

static inline void choose_span(struct test_rng *rng, char **at, size_t *len)
{
	size_t from = test_below(rng, mem.pages);
	*at = page_at(from);
	*len = (1 + test_below(rng, mem.pages - from)) * mem.page;
}

static inline long move_pages_to(int node)
{
	void *pages[MAX_PAGES];
	int nodes[MAX_PAGES], status[MAX_PAGES];
	for (size_t i = 0; i < mem.pages; i++) {
		pages[i] = page_at(i);
		nodes[i] = node;
	}
	return syscall(SYS_move_pages, 0, mem.pages, pages, nodes, status, 2 /* MPOL_MF_MOVE */);
}

/* What is missing where memory of this case is not to be had. */
static inline const char *memory_need(void) { return thp ? "thp" : is_huge() ? "hugetlb" : "async"; }

static inline bool has_nodes(void) { return !access("/sys/devices/system/node/node1", F_OK); }

#endif
