/* SPDX-License-Identifier: MIT */
/* cold.h - what the tests of cold memory share: a heap with COLD_OPTIONS and those of a test, on the rung of the loop, and questions to it. */
#ifndef GU_TESTS_COLD_H
#define GU_TESTS_COLD_H

#include "core.h"
#include "gc/heap.h"
#include "space/cold.h"
#include "space_checked.h"

#ifndef COLD_OPTIONS
#define COLD_OPTIONS ""
#endif

static struct gcuffd_heap *heap;

#define cold_heap(more) \
	do { \
		NEED_RUNG(_i); \
		heap = heap_make("rung=%s,cold=1,reservation=1G" COLD_OPTIONS more, rung_names[_i]); \
	} while (0)

static inline struct gcuffd_cold_stats cold_of(struct gcuffd_heap *h)
{
	struct gcuffd_cold_stats s = {.size = sizeof(s)};
	must_ok(gcuffd_cold_stats(h, &s));
	return s;
}

static inline void checked(void)
{
	space_checked(heap);
	verified(heap);
	struct gcuffd_cold_stats s = cold_of(heap);
	ck_assert_msg(!s.unread_summaries || s.store_read_errors, "%lu summaries could not be read, though no read failed", (unsigned long)s.unread_summaries);
}

static inline size_t cool_all(void)
{
	size_t n;
	must_ok(gcuffd_cool(heap, NULL, 0, &n));
	return n;
}

static inline bool is_out(const void *p)
{
	return gu_cold_state(&heap->space.cold, gu_space_page(&heap->space, (uintptr_t)p)) != GU_COLD_LIVE;
}

/* Until another thread has set it, or for so long. */
static inline void await(const uint32_t *flag, unsigned ms)
{
	for (uint64_t end = test_now_ns() + ms * 1000000ull; !gu_load_seqcst(flag) && test_now_ns() < end;)
		usleep(100);
}

/* ---- a list whose nodes lie on many pages ---- */

struct node {
	struct node *next;
	uint64_t number;
	uint64_t filler[6];
};

static inline struct node *make_list(size_t n, uint64_t first)
{
	struct node *list = NULL;
	for (size_t i = 0; i < n; i++) {
		struct node *node = gcuffd_alloc(heap, sizeof(*node));
		must(node != NULL, "errno %d", errno);
		node->next = list;
		node->number = first + i;
		list = node;
	}
	return list;
}

static inline void check_list(const struct node *list, size_t n, uint64_t first)
{
	for (size_t i = n; i-- > 0; list = list->next) {
		must(list != NULL, "ends at %zu of %zu", i, n);
		must(list->number == first + i, "%lu, not %lu", (unsigned long)list->number, (unsigned long)(first + i));
	}
	must(!list, "too long");
}

#endif
