/* SPDX-License-Identifier: MIT */
/* test_uffd.c - opening, the ioctls with invented kernels (partial work, EAGAIN), and with this one. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <string.h>

#include "base/check.h"
#include "fake_os.h"
#include "sys/scan.h"
#include "sys/uffd.h"
#include "test.h"

#define PAGES 8

static void *map_pages(size_t n)
{
	void *p = mmap(NULL, n * GU_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ck_assert_ptr_ne(p, MAP_FAILED);
	return p;
}

static void drop_fake(void) { fake_remove(); }

/* ---- opening ---- */

START_TEST(device_comes_first)
{
	struct gu_uffd_info info;
	fake_install();
	int fd = gu_uffd_open_info(0, &info);
	if (fd < 0)
		GU_LACKS("uffd", "no userfaultfd: %d", fd);
	ck_assert_uint_eq(fake.seen[FAKE_OPEN], 1);
	ck_assert_int_eq(fcntl(fd, F_GETFD), FD_CLOEXEC);
	ck_assert(fcntl(fd, F_GETFL) & O_NONBLOCK);
	ck_assert_uint_ne(info.ioctls, 0);
	close(fd);
}
END_TEST

static int full_error, user_error; /* what userfaultfd(2) says; 0: real */

static int fake_modes(int flags)
{
	int error = flags & GU_UFFD_USER_MODE_ONLY ? user_error : full_error;
	return error ? error : gu_os_linux.userfaultfd(flags);
}

static int open_with(int full, int user, bool *user_mode_only)
{
	fake_install();
	fake_os.userfaultfd = fake_modes;
	full_error = full;
	user_error = user;
	fake_fail_open(GU_UFFD_DEVICE, 1, -EACCES);
	return gu_uffd_open(0, user_mode_only);
}

START_TEST(user_mode_comes_last)
{
	bool user = false;
	int fd = open_with(-EPERM, 0, &user);
	if (fd < 0)
		GU_LACKS("uffd", "no userfaultfd: %d", fd);
	ck_assert(user);
	close(fd);
}
END_TEST

START_TEST(the_error_is_the_telling_one)
{
	ck_assert_int_eq(open_with(-ENOSYS, -ENOSYS, NULL), -ENOSYS);
	ck_assert_int_eq(open_with(-EPERM, -EPERM, NULL), -EPERM);
	ck_assert_int_eq(open_with(-EPERM, -EINVAL, NULL), -EPERM); /* before 5.11 */
	ck_assert_int_eq(open_with(-EMFILE, -EMFILE, NULL), -EMFILE);
}
END_TEST

static unsigned count_fds(void)
{
	unsigned n = 0;
	for (int fd = 0; fd < 256; fd++)
		n += fcntl(fd, F_GETFD) != -1;
	return n;
}

START_TEST(a_failed_handshake_leaks_nothing)
{
	unsigned before = count_fds();
	fake_install();
	fake_fail_ioctl(GU_UFFDIO_API, 1, -EINVAL);
	ck_assert_int_lt(gu_uffd_open(0, NULL), 0);
	fake_clear();
	int fd = gu_uffd_open(1ull << 62, NULL);
	ck_assert_int_lt(fd, 0);
	ck_assert_uint_eq(count_fds(), before);
}
END_TEST

/* ---- invented kernels ---- */

static struct {
	size_t step;          /* bytes it does a call, then EAGAIN; 0: all */
	int error;            /* what it says at end */
	uint64_t end;         /* destination where it can't go on; 0: nowhere */
	unsigned idle;        /* EAGAIN without progress this often first */
	unsigned calls, yields;
	uint64_t next;        /* the destination that must come next */
	int64_t src_distance; /* src - dst must stay this */
} kernel;

static void count_yield(void) { kernel.yields++; }

static long do_part(uint64_t dst, uint64_t len, int64_t *done)
{
	kernel.calls++;
	ck_assert_uint_eq(dst, kernel.next);
	ck_assert_int_eq(*done, 0);
	if (kernel.idle) {
		kernel.idle--;
		return -EAGAIN; /* the field is not written */
	}
	uint64_t room = kernel.end ? kernel.end - dst : len;
	uint64_t n = gu_min(gu_min(len, room), kernel.step ? kernel.step : len);
	*done = n ? (int64_t)n : kernel.error;
	kernel.next += n;
	if (n == len)
		return 0;
	return n ? -EAGAIN : kernel.error;
}

static long fake_fill(int fd, unsigned long request, void *arg)
{
	struct gu_uffdio_copy *copy = arg; /* and move: the same layout */
	struct gu_uffdio_zeropage *zero = arg; /* and poison */
	ck_assert_int_eq(fd, 77);
	if (request == GU_UFFDIO_ZEROPAGE || request == GU_UFFDIO_POISON)
		return do_part(zero->range.start, zero->range.len, &zero->zeropage);
	ck_assert(request == GU_UFFDIO_COPY || request == GU_UFFDIO_MOVE);
	ck_assert_int_eq((int64_t)(copy->src - copy->dst), kernel.src_distance);
	return do_part(copy->dst, copy->len, &copy->copy);
}

#define DST ((uintptr_t)0x10000000)
#define SRC ((uintptr_t)0x20000000)
#define FILL_LEN (16 * GU_PAGE)

static int fill_by(int which, size_t *done)
{
	kernel.next = DST;
	kernel.calls = kernel.yields = 0;
	kernel.src_distance = (int64_t)SRC - (int64_t)DST;
	switch (which) {
	case 0: return gu_uffd_copy(77, DST, (void *)SRC, FILL_LEN, 0, done);
	case 1: return gu_uffd_move(77, DST, SRC, FILL_LEN, 0, done);
	case 2: return gu_uffd_zeropage(77, DST, FILL_LEN, 0, done);
	default: return gu_uffd_poison(77, DST, FILL_LEN, 0, done);
	}
}

static void invent_kernel(size_t step, uint64_t end, int error)
{
	fake_install();
	fake_os.ioctl = fake_fill;
	fake_os.sched_yield = count_yield;
	memset(&kernel, 0, sizeof(kernel));
	kernel.step = step;
	kernel.end = end;
	kernel.error = error;
}

START_TEST(partial_work_goes_on)
{
	size_t done = 0;
	invent_kernel(3 * GU_PAGE, 0, 0);
	ck_ok(fill_by(_i, &done));
	ck_assert_uint_eq(done, FILL_LEN);
	ck_assert_uint_eq(kernel.calls, 6);
	ck_assert_uint_eq(kernel.yields, 0);
	ck_ok(fill_by(_i, NULL));
}
END_TEST

START_TEST(the_error_of_the_next_page_comes_back)
{
	size_t done = 0;
	invent_kernel(0, DST + 5 * GU_PAGE, -EEXIST);
	ck_assert_int_eq(fill_by(_i, &done), -EEXIST);
	ck_assert_uint_eq(done, 5 * GU_PAGE);
	invent_kernel(0, DST, -EBUSY);
	kernel.end = DST;
	ck_assert_int_eq(fill_by(_i, &done), -EBUSY);
	ck_assert_uint_eq(done, 0);
}
END_TEST

START_TEST(idle_eagain_is_retried_for_a_while)
{
	size_t done = 1;
	invent_kernel(0, 0, 0);
	kernel.idle = 500;
	ck_ok(fill_by(_i, &done));
	ck_assert_uint_eq(kernel.yields, 500);
	kernel.idle = UINT32_MAX;
	ck_assert_int_eq(fill_by(_i, &done), -EAGAIN);
	ck_assert_uint_eq(done, 0);
}
END_TEST

START_TEST(protecting_is_retried)
{
	char *p = map_pages(1);
	int fd = gu_uffd_open(GU_UFFD_FEATURE_PAGEFAULT_FLAG_WP, NULL);
	if (fd < 0)
		GU_LACKS("uffd", "no write-protect: %d", fd);
	ck_ok(gu_uffd_register(fd, (uintptr_t)p, GU_PAGE, GU_UFFD_REGISTER_WP, NULL));
	fake_install();
	fake_fail_ioctl(GU_UFFDIO_WRITEPROTECT, 1, -EAGAIN);
	ck_ok(gu_uffd_writeprotect(fd, (uintptr_t)p, GU_PAGE, false));
	ck_assert_uint_eq(fake.seen[FAKE_IOCTL], 2);
	fake_fail_ioctl(GU_UFFDIO_WRITEPROTECT, 1, -EAGAIN);
	fake.sticky = true;
	ck_assert_int_eq(gu_uffd_writeprotect(fd, (uintptr_t)p, GU_PAGE, false), -EAGAIN);
	fake_fail_ioctl(GU_UFFDIO_WRITEPROTECT, 1, -ENOENT);
	ck_assert_int_eq(gu_uffd_writeprotect(fd, (uintptr_t)p, GU_PAGE, false), -ENOENT);
	close(fd);
	munmap(p, GU_PAGE);
}
END_TEST

/* ---- this kernel ---- */

/* Opens with features and registers p for mode; -1: to be skipped. */
static int open_on(void *p, size_t pages, uint64_t features, uint64_t mode)
{
	int fd = gu_uffd_open(features, NULL);
	if (fd >= 0)
		ck_ok(gu_uffd_register(fd, (uintptr_t)p, pages * GU_PAGE, mode, NULL));
	return fd;
}

START_TEST(copy_and_zeropage_fill_holes)
{
	char *p = map_pages(PAGES), *from = map_pages(PAGES);
	int fd = open_on(p, PAGES, 0, GU_UFFD_REGISTER_MISSING);
	size_t done = 0;
	if (fd < 0)
		GU_LACKS("uffd", "no userfaultfd: %d", fd);
	memset(from, 'c', PAGES * GU_PAGE);
	ck_ok(gu_uffd_zeropage(fd, (uintptr_t)p + 3 * GU_PAGE, GU_PAGE, 0, &done));
	ck_assert_uint_eq(done, GU_PAGE);
	ck_assert_int_eq(gu_uffd_copy(fd, (uintptr_t)p, from, PAGES * GU_PAGE, 0, &done), -EEXIST);
	ck_assert_uint_eq(done, 3 * GU_PAGE);
	ck_assert_int_eq(p[3 * GU_PAGE - 1], 'c');
	ck_assert_int_eq(p[3 * GU_PAGE], 0);
	ck_ok(gu_uffd_copy(fd, (uintptr_t)p + 4 * GU_PAGE, from, 4 * GU_PAGE, 0, &done));
	ck_assert_int_eq(p[8 * GU_PAGE - 1], 'c');
	ck_ok(gu_uffd_wake(fd, (uintptr_t)p, GU_PAGE));
	ck_ok(gu_uffd_unregister(fd, (uintptr_t)p, PAGES * GU_PAGE));
	ck_assert_int_eq(gu_uffd_copy(fd, (uintptr_t)p, from, GU_PAGE, 0, NULL), -ENOENT);
	close(fd);
}
END_TEST

struct reader {
	char *p;
	int got;
};

static void *read_page(void *data)
{
	struct reader *r = data;
	r->got = *(volatile char *)r->p;
	return NULL;
}

START_TEST(a_missing_page_sends_a_message_and_copy_wakes)
{
	char *p = map_pages(1), *from = map_pages(1);
	int fd = open_on(p, 1, 0, GU_UFFD_REGISTER_MISSING);
	struct gu_uffd_msg msg;
	struct reader reader = {p, 0};
	pthread_t thread;
	if (fd < 0)
		GU_LACKS("uffd", "no userfaultfd: %d", fd);
	ck_assert_int_eq(gu_os->read(fd, &msg, sizeof(msg)), -EAGAIN);
	ck_ok(pthread_create(&thread, NULL, read_page, &reader));
	while (gu_os->read(fd, &msg, sizeof(msg)) == -EAGAIN)
		usleep(100);
	ck_assert_uint_eq(msg.event, GU_UFFD_EVENT_PAGEFAULT);
	ck_assert_uint_eq(msg.arg.pagefault.address, (uintptr_t)p);
	ck_assert_uint_eq(msg.arg.pagefault.flags, 0);
	from[0] = 42;
	ck_ok(gu_uffd_copy(fd, (uintptr_t)p, from, GU_PAGE, 0, NULL));
	ck_ok(pthread_join(thread, NULL));
	ck_assert_int_eq(reader.got, 42);
	close(fd);
}
END_TEST

START_TEST(move_takes_pages_along)
{
	char *dst = map_pages(PAGES), *src = map_pages(PAGES);
	int fd = open_on(dst, PAGES, GU_UFFD_FEATURE_MOVE, GU_UFFD_REGISTER_MISSING);
	size_t done = 0;
	if (fd < 0)
		GU_LACKS("move", "no UFFDIO_MOVE: %d", fd);
	for (int i = 0; i < PAGES; i++)
		if (i != 5)
			src[(size_t)i * GU_PAGE] = (char)(i + 1);
	ck_assert_int_eq(gu_uffd_move(fd, (uintptr_t)dst, (uintptr_t)src, PAGES * GU_PAGE, 0, &done), -ENOENT);
	ck_assert_uint_eq(done, 5 * GU_PAGE);
	ck_ok(gu_uffd_move(fd, (uintptr_t)dst + done, (uintptr_t)src + done, PAGES * GU_PAGE - done,
			   GU_UFFD_MOVE_ALLOW_SRC_HOLES, &done));
	ck_ok(gu_uffd_unregister(fd, (uintptr_t)dst, PAGES * GU_PAGE));
	for (int i = 0; i < PAGES; i++) {
		ck_assert_int_eq(dst[(size_t)i * GU_PAGE], i == 5 ? 0 : i + 1);
		ck_assert_int_eq(src[(size_t)i * GU_PAGE], 0);
	}
	close(fd);
}
END_TEST

static void ignore_run(void *data, uintptr_t start, uintptr_t end)
{
	(void)data;
	(void)start;
	(void)end;
}

/*
 * Hazard: a page of a WP heap is moved out; a scan with re-arming over the hole leaves a marker;
 * moving back says EEXIST until WRITEPROTECT(0) has cleared it.
 */
START_TEST(a_marker_stops_move_until_it_is_cleared)
{
	char *heap = map_pages(1), *staging = map_pages(1);
	int pagemap = gu_scan_open();
	int fd = open_on(heap, 1, GU_UFFD_FEATURE_WP_ASYNC | GU_UFFD_FEATURE_MOVE,
			 GU_UFFD_REGISTER_WP | GU_UFFD_REGISTER_MISSING);
	uintptr_t at = (uintptr_t)heap;
	if (fd < 0 || pagemap < 0)
		GU_LACKS("move", "no WP_ASYNC with MOVE: %d, %d", fd, pagemap);
	ck_ok(gu_uffd_register(fd, (uintptr_t)staging, GU_PAGE, GU_UFFD_REGISTER_MISSING, NULL));
	ck_ok(gu_uffd_zeropage(fd, at, GU_PAGE, 0, NULL));
	heap[0] = 42;
	ck_ok(gu_uffd_move(fd, (uintptr_t)staging, at, GU_PAGE, 0, NULL));
	ck_ok(gu_scan_written(pagemap, at, at + GU_PAGE, true, ignore_run, NULL));
	ck_assert_int_eq(gu_uffd_move(fd, at, (uintptr_t)staging, GU_PAGE, 0, NULL), -EEXIST);
	ck_assert_int_eq(gu_uffd_move(fd, at, (uintptr_t)staging, GU_PAGE, 0, NULL), -EEXIST);
	ck_ok(gu_uffd_writeprotect(fd, at, GU_PAGE, false));
	ck_ok(gu_uffd_move(fd, at, (uintptr_t)staging, GU_PAGE, 0, NULL));
	ck_assert_int_eq(heap[0], 42);
	close(pagemap);
	close(fd);
}
END_TEST

START_TEST(poison_fills)
{
	char *p = map_pages(1);
	int fd = open_on(p, 1, GU_UFFD_FEATURE_POISON, GU_UFFD_REGISTER_MISSING);
	size_t done = 0;
	if (fd < 0)
		GU_LACKS("poison", "no UFFDIO_POISON: %d", fd);
	ck_ok(gu_uffd_poison(fd, (uintptr_t)p, GU_PAGE, 0, &done));
	ck_assert_uint_eq(done, GU_PAGE);
	ck_assert_int_eq(gu_uffd_poison(fd, (uintptr_t)p, GU_PAGE, 0, NULL), -EEXIST);
	close(fd);
}
END_TEST

static void count_run(void *data, uintptr_t start, uintptr_t end) { *(size_t *)data += (end - start) / GU_PAGE; }

START_TEST(rwp_notes_accesses)
{
	char *p = map_pages(PAGES);
	int pagemap = gu_scan_open();
	int fd = open_on(p, PAGES, GU_UFFD_FEATURE_RWP | GU_UFFD_FEATURE_RWP_ASYNC, GU_UFFD_REGISTER_RWP);
	uintptr_t at = (uintptr_t)p;
	size_t hot = 0;
	if (fd < 0)
		GU_LACKS("rwp", "no read-write protection: %d", fd);
	memset(p, 1, PAGES * GU_PAGE);
	ck_ok(gu_uffd_rwprotect(fd, at, PAGES * GU_PAGE, true));
	ck_ok(gu_scan_accessed(pagemap, at, at + PAGES * GU_PAGE, count_run, &hot));
	ck_assert_uint_eq(hot, 0);
	ck_assert_int_eq(p[3 * GU_PAGE], 1);
	ck_ok(gu_scan_accessed(pagemap, at, at + PAGES * GU_PAGE, count_run, &hot));
	ck_assert_uint_eq(hot, 1);
	ck_ok(gu_uffd_set_mode(fd, 0, GU_UFFD_FEATURE_RWP_ASYNC));
	ck_ok(gu_uffd_set_mode(fd, GU_UFFD_FEATURE_RWP_ASYNC, 0));
	ck_ok(gu_uffd_rwprotect(fd, at, PAGES * GU_PAGE, false));
	close(pagemap);
	close(fd);
}
END_TEST

START_TEST(what_an_older_kernel_lacks_is_an_errno)
{
	char *p = map_pages(1);
	int fd = open_on(p, 1, 0, GU_UFFD_REGISTER_MISSING);
	if (fd < 0)
		GU_LACKS("uffd", "no userfaultfd: %d", fd);
	int result = gu_uffd_rwprotect(fd, (uintptr_t)p, GU_PAGE, true);
	ck_assert(result == -EINVAL || result == -ENOENT); /* ENOENT: 7.3, not registered for it */
	ck_assert_int_eq(gu_uffd_set_mode(fd, GU_UFFD_FEATURE_RWP_ASYNC, 0), -EINVAL);
	ck_assert_int_eq(gu_uffd_register(fd, 1, GU_PAGE, GU_UFFD_REGISTER_MISSING, NULL), -EINVAL);
	close(fd);
}
END_TEST

static Suite *make_suite(void)
{
	Suite *suite = suite_create("uffd");
	TCase *opening = test_case(suite, "open"), *fakes = test_case(suite, "fake"), *real = test_case(suite, "real");
	tcase_add_checked_fixture(opening, NULL, drop_fake);
	tcase_add_test(opening, device_comes_first);
	tcase_add_test(opening, user_mode_comes_last);
	tcase_add_test(opening, the_error_is_the_telling_one);
	tcase_add_test(opening, a_failed_handshake_leaks_nothing);
	tcase_add_checked_fixture(fakes, NULL, drop_fake);
	tcase_add_loop_test(fakes, partial_work_goes_on, 0, 4);
	tcase_add_loop_test(fakes, the_error_of_the_next_page_comes_back, 0, 4);
	tcase_add_loop_test(fakes, idle_eagain_is_retried_for_a_while, 0, 4);
	tcase_add_test(fakes, protecting_is_retried);
	tcase_add_test(real, copy_and_zeropage_fill_holes);
	tcase_add_test(real, a_missing_page_sends_a_message_and_copy_wakes);
	tcase_add_test(real, move_takes_pages_along);
	tcase_add_test(real, a_marker_stops_move_until_it_is_cleared);
	tcase_add_test(real, poison_fills);
	tcase_add_test(real, rwp_notes_accesses);
	tcase_add_test(real, what_an_older_kernel_lacks_is_an_errno);
	return suite;
}

TEST_MAIN(make_suite)
