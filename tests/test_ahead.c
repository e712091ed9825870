/* SPDX-License-Identifier: MIT */
/* test_ahead.c - regions are brought in before they are used, counted once, and never beside the limit. */
#define _GNU_SOURCE
#include <pthread.h>
#include <string.h>

#include "core.h"
#include "fake_os.h"
#include "space/ahead.h"

#define MIB ((size_t)1 << 20)

static struct gu_space space;
static pthread_t thread;

static void *run(void *arg)
{
	(void)arg;
	gu_ahead_run(&space);
	return NULL;
}

/* Regions from huge_from on; false: no huge pages here. */
static bool begin(size_t size, size_t limit, uintptr_t *start, size_t len)
{
	uintptr_t below;
	ck_ok(gu_space_init(&space, size, limit, true));
	ck_ok(gu_space_take(&space, space.huge_from, GU_REGION, &below));
	ck_ok(gu_space_take(&space, len, GU_REGION, start));
	if (!(space.region[(*start - space.base) / GU_REGION] & GU_REGION_HUGE)) {
		gu_space_destroy(&space);
		return false;
	}
	ck_ok(pthread_create(&thread, NULL, run, NULL));
	return true;
}

static void end(void)
{
	gu_ahead_quit(&space);
	pthread_join(thread, NULL);
	gu_space_check(&space);
	gu_space_destroy(&space);
}

static uint8_t flags_at(uintptr_t at) { return gu_load_acquire(&space.region[(at - space.base) / GU_REGION]); }

static bool wait_filled(uintptr_t at)
{
	for (int ms = 0; ms < 10000; ms++) {
		if ((flags_at(at) & (GU_REGION_FAULTED | GU_REGION_FILLING)) == GU_REGION_FAULTED)
			return true;
		usleep(1000);
	}
	return false;
}

static bool in_memory(uintptr_t at)
{
	unsigned char page = 0;
	ck_ok(mincore((void *)at, GU_PAGE, &page));
	return page & 1;
}

static void use(uintptr_t at, size_t len, bool want_fresh)
{
	bool fresh;
	ck_ok(gu_space_use(&space, at, len, &fresh));
	ck_assert_int_eq(fresh, want_fresh);
}

START_TEST(next_regions_are_there)
{
	uintptr_t at;
	if (!begin(256 * MIB, 0, &at, 64 * MIB))
		GU_LACKS("thp", "no huge pages");
	for (int tries = 0; !gu_load_seqcst(&space.ahead.runs) && tries < 10000; tries++)
		usleep(1000);
	use(at, GU_PAGE, true);
	for (size_t r = 1; r <= 3; r++) {
		ck_assert(wait_filled(at + r * GU_REGION));
		ck_assert(in_memory(at + r * GU_REGION));
		ck_assert_int_eq(*(const volatile char *)(at + r * GU_REGION), 0);
	}
	ck_assert_uint_eq(gu_load_relaxed(&space.resident), 4 * GU_REGION);
	use(at + GU_REGION, GU_REGION, true); /* counted already */
	ck_assert(wait_filled(at + 4 * GU_REGION));
	ck_assert_uint_eq(gu_load_relaxed(&space.resident), 5 * GU_REGION);
	end();
}
END_TEST

START_TEST(limit_comes_first)
{
	uintptr_t at;
	if (!begin(256 * MIB, 12 * MIB, &at, 64 * MIB))
		GU_LACKS("thp", "no huge pages");
	use(at, GU_PAGE, true);
	usleep(100000);
	ck_assert_int_eq(flags_at(at + GU_REGION) & GU_REGION_FAULTED, 0);
	ck_assert_uint_eq(gu_load_relaxed(&space.resident), GU_REGION);
	end();
}
END_TEST

/* Used, written and purged at random while regions come in: what is fresh is zero, and the sums agree. */
START_TEST(against_purges)
{
	struct test_rng rng = test_rng(31);
	uint64_t until = test_now_ns() + check_seconds() * 200000000ull;
	enum { REGIONS = 16 };
	uintptr_t start;
	bool fresh;
	if (!begin(256 * MIB, 0, &start, REGIONS * GU_REGION))
		GU_LACKS("thp", "no huge pages");
	while (test_now_ns() < until) {
		uintptr_t at = start + test_below(&rng, REGIONS - 3) * GU_REGION;
		size_t len = (1 + test_below(&rng, 3)) * GU_REGION;
		ck_ok(gu_space_use(&space, at, len, &fresh));
		for (size_t i = 0; i < len; i += GU_REGION / 2) {
			must(!fresh || *(uint64_t *)(at + i) == 0, "fresh and not zero");
			*(uint64_t *)(at + i) = 1;
		}
		ck_ok(gu_space_purge(&space, at, len));
		must(!(flags_at(at) & GU_REGION_ENTERED), "entered");
	}
	end();
}
END_TEST

/* Where the large step of making writable fails, the small one that is needed does. */
START_TEST(commits_what_it_can)
{
	uintptr_t at;
	ck_ok(gu_space_init(&space, 1024 * MIB, 0, false));
	ck_ok(gu_space_take(&space, 512 * MIB, GU_REGION, &at));
	ck_assert_uint_gt(space.committed, space.top);
	size_t left = space.committed - space.top;
	ck_ok(gu_space_take(&space, left, GU_REGION, &at));
	fake_install();
	fake_fail(FAKE_MPROTECT, 1, -ENOMEM);
	ck_ok(gu_space_take(&space, 2 * MIB, GU_REGION, &at));
	ck_assert_uint_eq(fake.fired, 1);
	ck_assert_uint_eq(space.committed, space.top);
	fake_fail(FAKE_MPROTECT, 1, -ENOMEM);
	fake.sticky = true;
	ck_assert_int_eq(gu_space_take(&space, 2 * MIB, GU_REGION, &at), -ENOMEM);
	fake_remove();
	ck_ok(gu_space_take(&space, 2 * MIB, GU_REGION, &at));
	*(volatile char *)at = 1;
	gu_space_check(&space);
	gu_space_destroy(&space);
}
END_TEST

#define ADD(name) tcase_add_test(test_case(suite, #name), name)

static Suite *make_suite(void)
{
	Suite *suite = suite_create("ahead");
	ADD(next_regions_are_there);
	ADD(limit_comes_first);
	ADD(against_purges);
	ADD(commits_what_it_can);
	return suite;
}

TEST_MAIN(make_suite)
