/* SPDX-License-Identifier: MIT */
/*
 * test_caps.c - the probes: each failing in each way, on invented kernels and on this one; which rung
 * follows. On any kernel: what is missing has a reason and says what it would take.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <string.h>

#include "base/check.h"
#include "fake_os.h"
#include "gcuffd.h"
#include "sys/caps.h"
#include "sys/uapi.h"
#include "test.h"

static void use_fake(void)
{
	fake_install();
	gu_caps_reset();
}

static void drop_fake(void)
{
	fake_remove();
	gu_caps_reset();
}

/* What holds whatever the kernel is. */
static void check_table(const struct gu_caps *caps)
{
	for (unsigned i = 0; i < GU_CAP_COUNT; i++) {
		const struct gu_cap_state *state = &caps->list[i];
		ck_assert(state->name && state->name[0] && state->needs);
		ck_assert_int_eq(state->has, state->reason[0] == 0);
		ck_assert_int_eq(state->has, state->needs[0] == 0);
		ck_assert(!state->has || state->error == 0);
	}
	ck_assert(!caps->user_mode_only || (caps->has_uffd && !caps->has_kernel_faults));
	ck_assert(!caps->has_wp_async || (caps->has_uffd && caps->has_pagemap_scan));
	ck_assert(!caps->has_rwp_async || caps->has_rwp);
	ck_assert(caps->has_move == caps->list[GU_CAP_MOVE].has);
	ck_assert(!caps->has_wp_holes || caps->has_wp_async);
	ck_assert(!caps->has_wp_short || caps->has_wp_async);
	ck_assert(caps->has_wp_short == caps->list[GU_CAP_WP_SHORT].has);
	ck_assert(caps->has_poison == caps->list[GU_CAP_POISON].has);
	ck_assert(caps->has_wp_holes == caps->list[GU_CAP_WP_HOLES].has);
	ck_assert(caps->has_set_mode == caps->list[GU_CAP_SET_MODE].has);
}

static const struct gu_caps *probe(void)
{
	const struct gu_caps *caps;
	gu_caps_reset();
	caps = gu_caps();
	check_table(caps);
	return caps;
}

static int auto_rung(void)
{
	int rung = -1;
	ck_ok(gu_caps_rung(GCUFFD_RUNG_AUTO, &rung));
	return rung;
}

static unsigned count_fds(void)
{
	unsigned n = 0;
	for (int fd = 0; fd < 256; fd++)
		n += fcntl(fd, F_GETFD) != -1;
	return n;
}

/* ---- this kernel ---- */

START_TEST(the_table_is_sound_and_constant)
{
	const struct gu_caps *caps = gu_caps();
	struct gu_caps before = *caps;
	check_table(caps);
	ck_assert_ptr_eq(gu_caps(), caps);
	probe();
	ck_assert_uint_eq(before.features, caps->features);
	for (unsigned i = 0; i < GU_CAP_COUNT; i++)
		ck_assert_int_eq(before.list[i].has, caps->list[i].has);
}
END_TEST

START_TEST(probing_leaves_nothing_behind)
{
	unsigned before = count_fds();
	use_fake();
	probe();
	ck_assert_uint_eq(count_fds(), before);
	ck_assert_uint_eq(fake.seen[FAKE_MMAP], fake.seen[FAKE_MUNMAP]);
}
END_TEST

START_TEST(rungs_are_a_ladder)
{
	int best = auto_rung(), got;
	ck_assert_int_ge(best, GCUFFD_RUNG_STOP);
	for (int rung = GCUFFD_RUNG_STOP; rung <= GCUFFD_RUNG_RWP; rung++) {
		got = -1;
		int result = gu_caps_rung(rung, &got);
		ck_assert_int_eq(result, rung <= best ? 0 : -EOPNOTSUPP);
		ck_assert_int_eq(got, rung <= best ? rung : -1);
		ck_assert_int_eq(gu_caps_rung_lacks(rung) == GU_CAP_COUNT, rung <= best);
	}
	ck_assert_int_eq(gu_caps_rung(-1, &got), -EINVAL);
	ck_assert_int_eq(gu_caps_rung(GCUFFD_RUNG_RWP + 1, &got), -EINVAL);
	ck_assert_str_eq(gu_caps_rung_name(GCUFFD_RUNG_AUTO), "auto");
	ck_assert_str_eq(gu_caps_rung_name(GCUFFD_RUNG_STOP), "stop");
	ck_assert_str_eq(gu_caps_rung_name(GCUFFD_RUNG_ASYNC), "async");
	ck_assert_str_eq(gu_caps_rung_name(GCUFFD_RUNG_MOVE), "move");
	ck_assert_str_eq(gu_caps_rung_name(GCUFFD_RUNG_RWP), "rwp");
	ck_assert_ptr_null(gu_caps_rung_name(-1));
	ck_assert_ptr_null(gu_caps_rung_name(GCUFFD_RUNG_RWP + 1));
}
END_TEST

START_TEST(the_environment_changes_nothing)
{
	int before = auto_rung();
	setenv("GCUFFD_RUNG", "stop", 1);
	setenv("GCUFFD_OPTIONS", "rung=stop", 1);
	probe();
	ck_assert_int_eq(auto_rung(), before);
}
END_TEST

static void *get_caps(void *unused)
{
	(void)unused;
	return (void *)(uintptr_t)gu_caps();
}

START_TEST(many_threads_probe_once)
{
	pthread_t thread[8];
	unsigned once;
	void *got;
	use_fake();
	gu_caps();
	once = fake.seen[FAKE_ANY];
	use_fake();
	for (int i = 0; i < 8; i++)
		ck_ok(pthread_create(&thread[i], NULL, get_caps, NULL));
	for (int i = 0; i < 8; i++) {
		ck_ok(pthread_join(thread[i], &got));
		ck_assert_ptr_eq(got, gu_caps());
	}
	ck_assert_uint_eq(fake.seen[FAKE_ANY], once);
}
END_TEST

/* ---- errnos ---- */

struct loss {
	enum fake_call call;
	unsigned long request; /* FAKE_IOCTL */
	const char *path;      /* FAKE_OPEN */
	enum gu_cap cap;
	int best;              /* the highest rung left */
};

static const struct loss losses[] = {
	{FAKE_OPEN, 0, "/proc/thread-self/pagemap", GU_CAP_PAGEMAP_SCAN, GCUFFD_RUNG_STOP},
	{FAKE_IOCTL, GU_PAGEMAP_SCAN, NULL, GU_CAP_PAGEMAP_SCAN, GCUFFD_RUNG_STOP},
	{FAKE_IOCTL, GU_UFFDIO_API, NULL, GU_CAP_UFFD, GCUFFD_RUNG_STOP},
	{FAKE_IOCTL, GU_UFFDIO_REGISTER, NULL, GU_CAP_WP_ASYNC, GCUFFD_RUNG_STOP},
	{FAKE_PREAD, 0, NULL, GU_CAP_WP_ASYNC, GCUFFD_RUNG_STOP},
	{FAKE_IOCTL, GU_UFFDIO_MOVE, NULL, GU_CAP_MOVE, GCUFFD_RUNG_ASYNC},
	{FAKE_IOCTL, GU_UFFDIO_UNREGISTER, NULL, GU_CAP_MOVE, GCUFFD_RUNG_ASYNC},
	{FAKE_IOCTL, GU_UFFDIO_POISON, NULL, GU_CAP_POISON, GCUFFD_RUNG_RWP},
	{FAKE_IOCTL, GU_UFFDIO_RWPROTECT, NULL, GU_CAP_RWP, GCUFFD_RUNG_MOVE},
	{FAKE_IOCTL, GU_UFFDIO_SET_MODE, NULL, GU_CAP_SET_MODE, GCUFFD_RUNG_RWP},
	{FAKE_MADVISE, 0, NULL, GU_CAP_THP, GCUFFD_RUNG_RWP},
	{FAKE_VM_READV, 0, NULL, GU_CAP_PROCESS_VM_READV, GCUFFD_RUNG_RWP},
};

static void plant(const struct loss *loss, int error)
{
	use_fake();
	fake_fail(loss->call, 1, error);
	fake.request = loss->request;
	fake.path = loss->path;
	fake.sticky = true;
}

START_TEST(each_loss_in_each_way)
{
	static const int absent[] = {-ENOSYS, -EPERM, -EACCES, -EINVAL, -ENOTTY, -ENOENT, -EOPNOTSUPP};
	static const int odd[] = {-EIO, -ENOMEM, -EMFILE, -EBUSY, -EFAULT};
	const struct loss *loss = &losses[_i];
	bool had = gu_caps()->list[loss->cap].has;
	int best = auto_rung() < loss->best ? auto_rung() : loss->best;
	if (!had)
		GU_SKIP("no %s here", gu_caps()->list[loss->cap].name);
	for (size_t i = 0; i < GU_ARRAY_LEN(absent) + GU_ARRAY_LEN(odd); i++) {
		bool is_odd = i >= GU_ARRAY_LEN(absent);
		plant(loss, is_odd ? odd[i - GU_ARRAY_LEN(absent)] : absent[i]);
		const struct gu_cap_state *state = &probe()->list[loss->cap];
		ck_assert(!state->has);
		ck_assert_msg((state->error != 0) == is_odd, "%s: %d", state->reason, state->error);
		ck_assert_int_eq(auto_rung(), best);
	}
}
END_TEST

/* Whichever call fails, the table is sound, nothing leaks, and the next probe finds everything again. */
START_TEST(every_nth_call_fails_once)
{
	unsigned n = 0, fired, before = count_fds();
	int best = auto_rung();
	do {
		n++;
		use_fake();
		fake_fail(FAKE_ANY, n, n % 2 ? -ENOMEM : -EPERM);
		probe();
		fired = fake.fired;
		ck_assert_int_le(auto_rung(), best);
	} while (fired);
	ck_assert_uint_gt(n, 10);
	fake_remove();
	probe();
	ck_assert_int_eq(auto_rung(), best);
	ck_assert_uint_eq(count_fds(), before);
}
END_TEST

/* ---- invented kernels ---- */

static int no_uffd_error;

static int fail_uffd(int flags)
{
	(void)flags;
	return no_uffd_error;
}

static void without_uffd(int error)
{
	use_fake();
	fake_os.userfaultfd = fail_uffd;
	no_uffd_error = error;
	fake_fail_open(GU_UFFD_DEVICE, 1, -ENOENT);
	fake.sticky = true;
}

START_TEST(without_userfaultfd_the_world_stops)
{
	static const int errors[] = {-ENOSYS, -EPERM};
	for (size_t i = 0; i < GU_ARRAY_LEN(errors); i++) {
		without_uffd(errors[i]);
		const struct gu_caps *caps = probe();
		ck_assert(!caps->has_uffd && !caps->has_wp_async && !caps->has_move && !caps->user_mode_only);
		ck_assert_int_eq(caps->list[GU_CAP_UFFD].error, 0);
		ck_assert_ptr_nonnull(strstr(caps->list[GU_CAP_UFFD].needs, "seccomp"));
		ck_assert_ptr_nonnull(strstr(caps->list[GU_CAP_MOVE].reason, "uffd"));
		ck_assert_int_eq(auto_rung(), GCUFFD_RUNG_STOP);
		ck_assert_int_eq(gu_caps_rung_lacks(GCUFFD_RUNG_MOVE), GU_CAP_UFFD);
	}
}
END_TEST

static int only_user_mode(int flags)
{
	return flags & GU_UFFD_USER_MODE_ONLY ? gu_os_linux.userfaultfd(flags) : -EPERM;
}

START_TEST(user_mode_only_stops_at_async)
{
	int best = auto_rung();
	use_fake();
	fake_os.userfaultfd = only_user_mode;
	fake_fail_open(GU_UFFD_DEVICE, 1, -EACCES);
	fake.sticky = true;
	const struct gu_caps *caps = probe();
	if (!caps->has_wp_async)
		GU_LACKS("async", "no async write-protect");
	ck_assert(caps->user_mode_only && !caps->has_kernel_faults);
	ck_assert_ptr_nonnull(strstr(caps->list[GU_CAP_KERNEL_FAULTS].needs, "CAP_SYS_PTRACE"));
	ck_assert_int_eq(auto_rung(), GCUFFD_RUNG_ASYNC);
	ck_assert_int_ge(best, GCUFFD_RUNG_ASYNC);
}
END_TEST

static uint64_t features_hidden;

/* A kernel that is older: it refuses features it does not know. */
static long older_kernel(int fd, unsigned long request, void *arg)
{
	struct gu_uffdio_api *api = arg;
	if (request != GU_UFFDIO_API)
		return gu_os_linux.ioctl(fd, request, arg);
	if (api->features & features_hidden)
		return -EINVAL;
	long result = gu_os_linux.ioctl(fd, request, arg);
	api->features &= ~features_hidden;
	return result;
}

static int rung_without(uint64_t features)
{
	use_fake();
	fake_os.ioctl = older_kernel;
	features_hidden = features;
	probe();
	return auto_rung();
}

START_TEST(older_kernels)
{
	int best = auto_rung();
	if (best < GCUFFD_RUNG_MOVE)
		GU_LACKS("move", "needs rung move, this is %s", gu_caps_rung_name(best));
	ck_assert_int_eq(rung_without(GU_UFFD_FEATURE_RWP), GCUFFD_RUNG_MOVE);
	ck_assert_int_eq(rung_without(GU_UFFD_FEATURE_RWP_ASYNC), GCUFFD_RUNG_MOVE);
	ck_assert_int_eq(rung_without(GU_UFFD_FEATURE_RWP | GU_UFFD_FEATURE_MOVE), GCUFFD_RUNG_ASYNC);
	ck_assert_ptr_nonnull(strstr(gu_caps()->list[GU_CAP_MOVE].needs, "6.8"));
	ck_assert_int_eq(rung_without(GU_UFFD_FEATURE_WP_ASYNC), GCUFFD_RUNG_STOP);
	ck_assert_ptr_nonnull(strstr(gu_caps()->list[GU_CAP_WP_ASYNC].needs, "6.7"));
	ck_assert(gu_caps()->has_move);
}
END_TEST

/* Says yes to everything and does nothing. */
static long liar(int fd, unsigned long request, void *arg)
{
	struct gu_pm_scan_arg *scan = arg;
	struct gu_uffdio_api *api = arg;
	(void)fd;
	if (request == GU_PAGEMAP_SCAN)
		scan->walk_end = scan->end;
	if (request == GU_UFFDIO_API)
		api->features = ~0ull;
	return 0;
}

START_TEST(a_kernel_that_lies_is_found_out)
{
	use_fake();
	fake_os.ioctl = liar;
	const struct gu_caps *caps = probe();
	ck_assert(!caps->has_pagemap_scan && !caps->has_move && !caps->has_wp_async && !caps->has_rwp);
	ck_assert_int_ne(caps->list[GU_CAP_MOVE].error, 0);
	ck_assert_int_eq(auto_rung(), GCUFFD_RUNG_STOP);
}
END_TEST

static unsigned busy;

static long busy_move(int fd, unsigned long request, void *arg)
{
	return request == GU_UFFDIO_MOVE && busy && busy-- ? -EBUSY : gu_os_linux.ioctl(fd, request, arg);
}

START_TEST(a_fork_elsewhere_does_not_hide_move)
{
	if (!gu_caps()->has_move)
		GU_LACKS("move", "no UFFDIO_MOVE");
	use_fake();
	fake_os.ioctl = busy_move;
	busy = 3;
	ck_assert(probe()->has_move);
	ck_assert_uint_eq(busy, 0);
}
END_TEST

/* Tells nothing of a range without page tables: no page of what is as large as that was touched. */
static long blind_to_holes(int fd, unsigned long request, void *arg)
{
	struct gu_pm_scan_arg *scan = arg;
	if (request != GU_PAGEMAP_SCAN || scan->end - scan->start < GU_REGION)
		return gu_os_linux.ioctl(fd, request, arg);
	scan->walk_end = scan->end;
	return 0;
}

/* Without cap nothing else is missing: it is a faster way of something. */
static const struct gu_caps *find_without(enum gu_cap cap, long (*lies)(int fd, unsigned long request, void *arg))
{
	int best = auto_rung();
	use_fake();
	fake_os.ioctl = lies;
	const struct gu_caps *caps = probe();
	ck_assert(caps->has_wp_async && !caps->list[cap].has);
	ck_assert_int_eq(caps->list[cap].error, 0);
	ck_assert_int_eq(auto_rung(), best);
	return caps;
}

START_TEST(holes_may_not_be_told)
{
	if (!gu_caps()->has_wp_async)
		GU_LACKS("async", "no async write-protect");
	ck_assert(!find_without(GU_CAP_WP_HOLES, blind_to_holes)->has_wp_holes);
}
END_TEST

/* Like kernels before 6.8.10: in the short way the entry of a poisoned page that is armed looks as if it were not. */
static uintptr_t poisoned;

static long reads_swap_wrong(int fd, unsigned long request, void *arg)
{
	struct gu_pm_scan_arg *scan = arg;
	if (request == GU_UFFDIO_POISON)
		poisoned = ((struct gu_uffdio_poison *)arg)->range.start;
	if (request != GU_PAGEMAP_SCAN || scan->start != poisoned || scan->flags || scan->category_mask != GU_PAGE_IS_WRITTEN || scan->category_anyof_mask)
		return gu_os_linux.ioctl(fd, request, arg);
	*(struct gu_page_region *)(uintptr_t)scan->vec = (struct gu_page_region){poisoned, poisoned + GU_PAGE, GU_PAGE_IS_WRITTEN};
	scan->walk_end = scan->end;
	return 1;
}

START_TEST(swap_may_be_read_wrong)
{
	if (!gu_caps()->has_poison || !gu_caps()->has_wp_async)
		GU_LACKS("poison", "no UFFDIO_POISON, or no async write-protect");
	ck_assert(gu_caps()->has_wp_short); /* where this runs */
	poisoned = 0;
	ck_assert(!find_without(GU_CAP_WP_SHORT, reads_swap_wrong)->has_wp_short);
}
END_TEST

/* As nobody. 0, or the number of what is wrong. */
static int try_unprivileged(void)
{
	int rung = 0;
	gu_caps_reset();
	if (!gu_caps()->user_mode_only)
		return 2;
	if (!gu_caps()->has_wp_async)
		return 3;
	return gu_caps_rung(0, &rung) || rung != GCUFFD_RUNG_ASYNC ? 4 : 0;
}

START_TEST(nobody_gets_async)
{
	char c = '0';
	int fd = open("/proc/sys/vm/unprivileged_userfaultfd", O_RDONLY);
	long n = fd >= 0 ? read(fd, &c, 1) : 0;
	if (geteuid() != 0 || n < 1 || c != '0' || !gu_caps()->has_wp_async)
		GU_SKIP("needs async write-protect, root, and vm.unprivileged_userfaultfd=0");
	in_child_as_nobody(try_unprivileged);
	close(fd);
}
END_TEST

static Suite *make_suite(void)
{
	Suite *suite = suite_create("caps");
	TCase *real = test_case(suite, "real"), *errnos = test_case(suite, "errno"), *fakes = test_case(suite, "fake");
	tcase_add_checked_fixture(real, NULL, drop_fake);
	tcase_add_test(real, the_table_is_sound_and_constant);
	tcase_add_test(real, probing_leaves_nothing_behind);
	tcase_add_test(real, rungs_are_a_ladder);
	tcase_add_test(real, the_environment_changes_nothing);
	tcase_add_test(real, many_threads_probe_once);
	tcase_add_test(real, nobody_gets_async);
	tcase_add_checked_fixture(errnos, NULL, drop_fake);
	tcase_add_loop_test(errnos, each_loss_in_each_way, 0, (int)GU_ARRAY_LEN(losses));
	tcase_add_test(errnos, every_nth_call_fails_once);
	tcase_add_checked_fixture(fakes, NULL, drop_fake);
	tcase_add_test(fakes, without_userfaultfd_the_world_stops);
	tcase_add_test(fakes, user_mode_only_stops_at_async);
	tcase_add_test(fakes, older_kernels);
	tcase_add_test(fakes, a_kernel_that_lies_is_found_out);
	tcase_add_test(fakes, a_fork_elsewhere_does_not_hide_move);
	tcase_add_test(fakes, holes_may_not_be_told);
	tcase_add_test(fakes, swap_may_be_read_wrong);
	return suite;
}

TEST_MAIN(make_suite)
