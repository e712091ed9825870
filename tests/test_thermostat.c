/* SPDX-License-Identifier: MIT */
/* test_thermostat.c - the arithmetic of how much is taken out, and how fast: time, sizes and counts are made up. */
#include "base/check.h"
#include "ctl/thermostat.h"
#include "test.h"

#define MIB ((uint64_t)1 << 20)
#define SECOND 1000000000ull

static struct gu_thermostat t;
static struct gu_thermostat_look now;

static void begin(enum gcuffd_cool_mode mode, uint64_t target)
{
	gu_thermostat_init(&t, &(struct gu_thermostat_limits){mode, target, 2, GU_PROBATION_NS, 5});
	now = (struct gu_thermostat_look){.now_ns = 77 * SECOND, .resident = 100 * MIB};
	gu_thermostat_look(&t, &now);
}

/* A second in which threads waited for memory and for pages. */
static void pass(uint64_t waited_ns, uint64_t faults, uint64_t fault_ns)
{
	now.now_ns += SECOND;
	now.waited_ns += waited_ns;
	now.faults += faults;
	now.fault_ns += fault_ns;
	gu_thermostat_look(&t, &now);
}

/* ---- targets ---- */

START_TEST(given)
{
	begin(GCUFFD_COOL_TARGET, 30 * MIB);
	ck_assert_uint_eq(t.target, 30 * MIB);
	begin(GCUFFD_COOL_TARGET, 0);
	ck_assert_uint_eq(t.target, GU_NO_TARGET);
	begin(GCUFFD_COOL_IDLE, 0);
	pass(SECOND, 0, 0);
	ck_assert_uint_eq(t.target, GU_NO_TARGET);
}
END_TEST

START_TEST(a_limit)
{
	begin(GCUFFD_COOL_CGROUP, 0);
	ck_assert_uint_eq(t.target, GU_NO_TARGET);
	now.limited = true;
	now.limit = 160 * MIB;
	now.used = 130 * MIB; /* 30 of them beside the heap */
	pass(0, 0, 0);
	ck_assert_uint_eq(t.target, 120 * MIB);
	now.resident = 50 * MIB;
	now.used = 80 * MIB; /* what the heap gives up changes nothing */
	pass(0, 0, 0);
	ck_assert_uint_eq(t.target, 120 * MIB);
	now.used = 250 * MIB;
	pass(0, 0, 0);
	ck_assert_uint_eq(t.target, 0);
	now.used = 40 * MIB; /* not all that the heap counts is charged */
	pass(0, 0, 0);
	ck_assert_uint_eq(t.target, 150 * MIB);
	now.limited = false;
	pass(0, 0, 0);
	ck_assert_uint_eq(t.target, GU_NO_TARGET);
	begin(GCUFFD_COOL_CGROUP, 20 * MIB);
	now.limited = true;
	now.limit = now.used = 160 * MIB;
	pass(0, 0, 0);
	ck_assert_uint_eq(t.target, 20 * MIB); /* the lower of the two */
	gu_thermostat_blind(&t, &now);
	ck_assert_uint_eq(t.target, 20 * MIB);
}
END_TEST

/* In steps of a twentieth, no further than a fifth ahead, and up again when it is over. */
START_TEST(under_pressure)
{
	begin(GCUFFD_COOL_PRESSURE, 0);
	pass(SECOND / 100, 0, 0);
	pass(SECOND / 100, 0, 0);
	ck_assert_uint_eq(t.target, GU_NO_TARGET); /* 1 % of 2 */
	pass(SECOND / 10, 0, 0);
	ck_assert_uint_eq(t.target, GU_NO_TARGET); /* not in the middle of two seconds */
	pass(0, 0, 0);
	ck_assert_uint_eq(t.target, 95 * MIB);
	now.resident = 95 * MIB;
	uint64_t last = t.target;
	for (int i = 0; i < 20; i++) {
		pass(SECOND, 0, 0);
		ck_assert_uint_le(t.target, last);
		last = t.target;
	}
	ck_assert_uint_eq(t.target, 76 * MIB);
	now.resident = 76 * MIB;
	for (int i = 0; i < 9; i++)
		pass(0, 0, 0);
	ck_assert_uint_eq(t.target, 76 * MIB);
	unsigned rises = 0, seconds = 0;
	for (last = t.target; t.target != GU_NO_TARGET && seconds < 60; last = t.target, seconds++) {
		pass(0, 0, 0);
		ck_assert_uint_ge(t.target, last);
		rises += t.target > last;
	}
	ck_assert_uint_eq(rises, 5);
	ck_assert_uint_le(seconds, 12);
	pass(SECOND, 0, 0);
	pass(SECOND, 0, 0);
	ck_assert_uint_lt(t.target, 76 * MIB);
	gu_thermostat_blind(&t, &now);
	ck_assert_uint_eq(t.target, GU_NO_TARGET);
	pass(SECOND, 0, 0); /* what was before counts no more */
	ck_assert_uint_eq(t.target, GU_NO_TARGET);
}
END_TEST

/* ---- feedback ---- */

static uint64_t slowness(void) { return gu_thermostat_probation(&t, 0) / GU_PROBATION_NS; }

START_TEST(backs_off)
{
	begin(GCUFFD_COOL_TARGET, 10 * MIB);
	ck_assert_uint_eq(slowness(), 1);
	for (int i = 0; i < 100; i++)
		pass(0, 1000, SECOND / 40); /* 45 ms of 50 */
	ck_assert_uint_eq(slowness(), 1);
	uint64_t began = now.now_ns, last = began;
	for (int i = 0; i < 200; i++) {
		uint64_t was = slowness();
		pass(0, 2000, SECOND / 40);
		if (slowness() == was)
			continue;
		ck_assert_uint_eq(slowness(), was * 2); /* one step at a time, and the one before had time to show */
		ck_assert_uint_ge(now.now_ns - last, was == 1 ? SECOND : was * GU_PROBATION_NS);
		last = now.now_ns;
	}
	ck_assert_uint_eq(slowness(), 256);
	ck_assert_uint_eq(t.backoffs, 8);
	ck_assert_uint_lt(last - began, 120 * SECOND);
}
END_TEST

/* Faults cost what they cost, whether or not the kernel tells what the mode goes by. */
START_TEST(backs_off_blindly)
{
	begin(GCUFFD_COOL_CGROUP, 10 * MIB);
	for (int i = 0; i < 20; i++) {
		now.now_ns += SECOND;
		now.faults += 10000;
		gu_thermostat_blind(&t, &now);
	}
	ck_assert_uint_eq(t.target, 10 * MIB);
	ck_assert_uint_ge(slowness(), 16);
}
END_TEST

/* As long as it costs neither little nor too much, all stays as it is; the way back takes twice a probation a step. */
START_TEST(recovers)
{
	begin(GCUFFD_COOL_TARGET, 10 * MIB);
	while (slowness() < 16)
		pass(0, 10000, 0);
	for (int i = 0; i < 100; i++)
		pass(0, 2000, 0); /* 40 ms */
	ck_assert_uint_eq(slowness(), 16);
	uint64_t began = now.now_ns, last = began;
	while (slowness() > 1 && now.now_ns - began < 100 * SECOND) {
		uint64_t was = slowness();
		pass(0, 500, 0);
		if (slowness() == was)
			continue;
		ck_assert_uint_eq(slowness(), was / 2);
		ck_assert_uint_ge(now.now_ns - last + SECOND, was * 2 * GU_PROBATION_NS);
		ck_assert_uint_ge(now.now_ns - last, 5 * SECOND);
		last = now.now_ns;
	}
	ck_assert_uint_eq(slowness(), 1);
	ck_assert_uint_eq(t.backoffs, 4);
}
END_TEST

/* A working set of so many pages, each touched each so many seconds: those out for longer than a probation fault. It finds a probation above that time. */
START_TEST(settles)
{
	begin(GCUFFD_COOL_TARGET, 10 * MIB);
	uint64_t early = 0, late = 0;
	for (int i = 0; i < 600; i++) {
		uint64_t faults = gu_thermostat_probation(&t, 0) > 4 * SECOND ? 100 : 8000;
		pass(0, faults, 0);
		early += i < 10 ? faults : 0;
		late += i >= 100 ? faults : 0;
	}
	ck_assert_uint_ge(early / 10, 2000);
	ck_assert_uint_lt(late / 500, early / 10 / 4);
}
END_TEST

/* Pages come back in bursts, as the hand tries them: what counts is the cost over the time that a try takes. */
START_TEST(bursts)
{
	begin(GCUFFD_COOL_TARGET, 10 * MIB);
	while (slowness() < 16)
		pass(0, 10000, 0);
	for (int i = 0; i < 200; i++)
		pass(0, i % 5 ? 0 : 8000, 0); /* 160 ms in 5 s */
	ck_assert_uint_le(slowness(), 16);
}
END_TEST

/* Where time decides, that time is what grows; beyond a target it is not waited for. */
START_TEST(by_time)
{
	gu_thermostat_init(&t, &(struct gu_thermostat_limits){GCUFFD_COOL_IDLE, 0, 2, 60 * SECOND, 5});
	now = (struct gu_thermostat_look){.now_ns = 1, .resident = 100 * MIB};
	gu_thermostat_look(&t, &now);
	for (int i = 0; i < 59; i++)
		pass(0, 10000, 0);
	ck_assert_uint_eq(gu_thermostat_probation(&t, 0), 60 * SECOND);
	pass(0, 10000, 0);
	ck_assert_uint_eq(gu_thermostat_probation(&t, 0), 120 * SECOND);
	ck_assert_uint_eq(gu_thermostat_probation(&t, 1), 2 * GU_PROBATION_NS);
	for (int i = 0; i < 241; i++)
		pass(0, 0, 0);
	ck_assert_uint_eq(gu_thermostat_probation(&t, 0), 60 * SECOND);
}
END_TEST

START_TEST(no_mercy_at_a_limit)
{
	begin(GCUFFD_COOL_CGROUP, 0);
	now.limited = true;
	now.limit = 320 * MIB;
	now.used = 100 * MIB;
	for (int i = 0; i < 200; i++)
		pass(0, 1000000, 0);
	ck_assert_uint_eq(t.margin, 20 * MIB);
	ck_assert_uint_eq(slowness(), 256);
	ck_assert_uint_eq(gu_thermostat_probation(&t, 10 * MIB), 256ull * GU_PROBATION_NS);
	ck_assert_uint_lt(gu_thermostat_probation(&t, 10 * MIB + 1), GU_PROBATION_NS);
	now.limited = false;
	pass(0, 0, 0);
	ck_assert_uint_eq(gu_thermostat_probation(&t, 100 * MIB), 256ull * GU_PROBATION_NS);
	begin(GCUFFD_COOL_CGROUP, 50 * MIB); /* a target below what the limit leaves does not make it near */
	now.limited = true;
	now.limit = 320 * MIB;
	now.used = 100 * MIB;
	pass(0, 0, 0);
	ck_assert_uint_eq(gu_thermostat_probation(&t, 50 * MIB), GU_PROBATION_NS);
	ck_assert_uint_eq(gu_thermostat_probation(&t, 260 * MIB), GU_PROBATION_NS);
	ck_assert_uint_lt(gu_thermostat_probation(&t, 260 * MIB + 1), GU_PROBATION_NS);
}
END_TEST

/* Counts that fall (a child's), time that stands still, anything: no overflow, and probation within its bounds. */
START_TEST(at_random)
{
	struct test_rng rng = test_rng(3);
	for (int n = 0; n < 200; n++) {
		begin((enum gcuffd_cool_mode)test_below(&rng, 4), test_rand(&rng) >> test_below(&rng, 64));
		for (int i = 0; i < 2000; i++) {
			now.now_ns += test_below(&rng, 10) * SECOND / 2;
			now.resident = test_rand(&rng) >> (10 + test_below(&rng, 54));
			now.limited = test_below(&rng, 2);
			now.limit = test_rand(&rng) >> (10 + test_below(&rng, 54));
			now.used = test_rand(&rng) >> (10 + test_below(&rng, 54));
			now.waited_ns += test_rand(&rng) >> (20 + test_below(&rng, 44));
			now.faults = test_rand(&rng) >> (30 + test_below(&rng, 34));
			now.fault_ns = test_rand(&rng) >> (20 + test_below(&rng, 44));
			gu_thermostat_look(&t, &now);
			ck_assert(slowness() >= 1 && slowness() <= 256);
			ck_assert(!t.limits.target || t.target <= t.limits.target);
			if (t.limits.mode == GCUFFD_COOL_CGROUP && now.limited)
				ck_assert_uint_le(t.target, now.limit);
		}
	}
}
END_TEST

static Suite *make_suite(void)
{
	Suite *suite = suite_create("thermostat");
	TCase *targets = test_case(suite, "targets"), *feedback = test_case(suite, "feedback");
	tcase_add_test(targets, given);
	tcase_add_test(targets, a_limit);
	tcase_add_test(targets, under_pressure);
	tcase_add_test(feedback, backs_off);
	tcase_add_test(feedback, backs_off_blindly);
	tcase_add_test(feedback, recovers);
	tcase_add_test(feedback, settles);
	tcase_add_test(feedback, bursts);
	tcase_add_test(feedback, by_time);
	tcase_add_test(feedback, no_mercy_at_a_limit);
	tcase_add_test(feedback, at_random);
	return suite;
}

TEST_MAIN(make_suite)
