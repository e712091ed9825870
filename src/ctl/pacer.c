/* SPDX-License-Identifier: MIT */
/* pacer.c - see pacer.h. The collector only. */
#include "ctl/pacer.h"

#include "base/check.h"

#define LEAST ((uint64_t)256 << 10)   /* a cycle for less is never worth it */
#define SLACK ((uint64_t)16 << 20)    /* nobody waits, or is slowed down, for less: a cycle of a small heap is over soon */
#define NAP_NS_PER_KIB 16000u         /* 64 MB/s where naps begin, */
#define NAP_GROWS 7u                  /* an eighth of it where they end */
#define SAVING_NS_PER_KIB 62500u      /* 16 MB/s */
#define NAP_LEAST_NS 50000u           /* a shorter one takes as long */
#define NAP_MOST_NS 5000000u

void gu_pacer_init(struct gu_pacer *p, const struct gu_pacer_limits *limits)
{
	*p = (struct gu_pacer){.limits = *limits};
}

uint64_t gu_pacer_first(const struct gu_pacer *p)
{
	uint64_t first = p->limits.start_size;
	if (p->limits.hard)
		first = gu_min(first, p->limits.hard / 2);
	return gu_max(first, LEAST);
}

static uint64_t minus(uint64_t a, uint64_t b) { return a > b ? a - b : 0; }

/* Above the soft limit the heap may grow by a quarter of the usual only. */
static uint64_t growth(const struct gu_pacer *p, const struct gu_pacer_cycle *c)
{
	uint64_t percent = p->limits.growth_percent;
	if (p->limits.soft && c->resident > p->limits.soft)
		percent = gu_max(percent / 4, 5);
	return gu_max(c->live / 100 * percent, p->limits.start_size);
}

/* What can be allocated before the hard limit is reached. */
static uint64_t room(const struct gu_pacer *p, const struct gu_pacer_cycle *c)
{
	return p->limits.hard ? minus(p->limits.hard, c->resident) + c->reusable : UINT64_MAX;
}

/* Of one in which mutators waited it is known only that they would have allocated more. */
static uint64_t expect(const struct gu_pacer *p, const struct gu_pacer_cycle *c)
{
	if (c->waited)
		return gu_max(p->expected, c->allocated_during);
	return p->expected ? (p->expected * 3 + c->allocated_during) / 4 : c->allocated_during;
}

static uint64_t due(const struct gu_pacer *p, const struct gu_pacer_cycle *c)
{
	uint64_t want = growth(p, c), have = room(p, c);
	uint64_t target = gu_min(want, have);
	uint64_t early = p->expected + p->expected / 4;
	if (early > target / 2) /* mutators outrun the collector: into the limit, or beyond what was wanted */
		return gu_max(target / 2 + early > have ? have - have / 32 : target / 2, LEAST);
	target = gu_min(want, have - have / 8); /* at the limit mutators wait, and a cycle may take longer than the last ones did */
	return gu_max(minus(target, early), LEAST);
}

uint64_t gu_pacer_next(struct gu_pacer *p, const struct gu_pacer_cycle *c)
{
	p->expected = expect(p, c);
	p->last = *c;
	return due(p, c);
}

/* Twice of what is seen, for the next cycle may take longer. */
uint64_t gu_pacer_revise(struct gu_pacer *p, uint64_t bytes_per_s)
{
	uint64_t seen = (uint64_t)((double)bytes_per_s * (double)p->last.duration_ns / 1e9);
	if (seen < p->expected / 2)
		p->expected = seen * 2;
	return due(p, &p->last);
}

uint64_t gu_pacer_ceiling(uint64_t next)
{
	return next + gu_max(next, SLACK);
}

static uint64_t nap(uint64_t bytes, double ns_per_kib)
{
	double ns = (double)bytes / 1024 * ns_per_kib;
	return ns >= NAP_MOST_NS ? NAP_MOST_NS : gu_max((uint64_t)ns, NAP_LEAST_NS);
}

uint64_t gu_pacer_nap(uint64_t allocated, uint64_t trigger, uint64_t ceiling, uint64_t bytes)
{
	uint64_t room = minus(minus(ceiling, trigger), gu_max(minus(ceiling, trigger) / 2, SLACK)), from = minus(ceiling, room);
	if (allocated >= ceiling)
		return GU_PACER_WAIT;
	if (allocated < from)
		return 0;
	return nap(bytes, NAP_NS_PER_KIB * (1 + NAP_GROWS * (double)(allocated - from) / (double)room));
}

uint64_t gu_pacer_nap_saving(uint64_t bytes, uint32_t pace) { return nap(bytes, SAVING_NS_PER_KIB * (double)pace); }
