/* SPDX-License-Identifier: MIT */
/* ages.c - see ages.h. */
#include "space/ages.h"

#include "space/arena.h"
#include "space/block.h"
#include "space/cold.h"
#include "space/space.h"

#define YOUNGEST_NS 1000000000ull

static void add_age(struct gu_ages *a, uint64_t age)
{
	unsigned i = 0;
	for (uint64_t limit = YOUNGEST_NS; i < GU_AGES - 1 && age >= limit; limit *= 4)
		i++;
	a->by_age[i]++;
}

/* What was seen after now, by the evictor meanwhile, is of no age. */
static uint64_t since(uint64_t now, uint32_t seen)
{
	uint32_t steps = gu_cold_seen(now) - seen;
	return steps > INT32_MAX ? 0 : (uint64_t)steps << GU_COLD_SEEN_SHIFT;
}

static void add_page(const struct gu_space *s, size_t page, uint64_t now, uint64_t window, struct gu_ages *a)
{
	const struct gu_cold_region *r = gu_cold_region(&s->cold, page);
	size_t i = page % GU_REGION_PAGES;
	bool out = gu_cold_is_out(&s->cold, page), hot = !out && r && gu_load_relaxed(&r->heat[i]);
	uint32_t seen = r ? gu_load_relaxed(&r->seen[i]) : 0, touch = r ? gu_load_relaxed(&r->touched[i]) : 0;
	uint64_t age = since(now, seen);
	bool touched = touch && (hot || since(now, touch) <= window);
	a->out += out;
	a->resident += !out;
	a->touched += touched;
	if (!seen)
		return;
	add_age(a, age);
	a->untouched += out && !touched && age > window;
	a->oldest_ns = out ? gu_max(a->oldest_ns, age) : a->oldest_ns;
}

void gu_ages_read(const struct gu_space *s, const struct gcuffd_arena *arena, uint64_t now, uint64_t window, struct gu_ages *a)
{
	*a = (struct gu_ages){0};
	for (size_t p = 0, end = gu_load_acquire(&s->top) >> GU_PAGE_SHIFT; p < end; p++) {
		const struct gu_block *b = gu_block_at(s, gu_space_address(s, p));
		if (b && (!arena || gu_load_relaxed(&b->arena) == arena) && gu_load_relaxed(&s->state[p]) & GU_PAGE_USED)
			add_page(s, p, now, window, a);
	}
}

uint64_t gu_ages_estimate(const struct gu_ages *a)
{
	uint64_t known = a->touched + a->untouched, unknown = a->resident + a->out - known;
	return known ? a->touched + unknown * a->touched / known : unknown;
}
