/* SPDX-License-Identifier: MIT */
/* test_os.c - the OS table does what os.h says, leaves errno alone, and can be made to fail. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/file.h>

#include "base/check.h"
#include "base/meta.h"
#include "fake_os.h"
#include "sys/files.h"
#include "test.h"

START_TEST(memory_calls)
{
	void *p = NULL;
	ck_ok(gu_os->mmap(NULL, 4 * GU_PAGE, PROT_NONE, MAP_NORESERVE, &p));
	ck_ok(gu_os->mprotect(p, GU_PAGE, PROT_READ | PROT_WRITE));
	*(char *)p = 7;
	ck_ok(gu_os->madvise(p, GU_PAGE, MADV_DONTNEED));
	ck_assert_int_eq(*(char *)p, 0);
	ck_ok(gu_os->munmap(p, 4 * GU_PAGE));
}
END_TEST

START_TEST(errors_are_returned_and_errno_is_left_alone)
{
	void *p = &p;
	errno = EXFULL;
	ck_assert_int_eq(gu_os->mmap(NULL, 0, PROT_NONE, 0, &p), -EINVAL);
	ck_assert_ptr_eq(p, &p);
	ck_assert_int_eq(gu_os->munmap((void *)1, 1), -EINVAL);
	ck_assert_int_eq(gu_os->open("/no/such/file", O_RDONLY), -ENOENT);
	ck_assert_int_eq(gu_os->close(-1), -EBADF);
	ck_assert_int_eq(gu_os->read(-1, NULL, 0), -EBADF);
	ck_assert_int_eq(gu_os->pread(-1, NULL, 0, 0), -EBADF);
	ck_assert_int_eq(gu_os->ioctl(-1, 0, NULL), -EBADF);
	ck_assert_int_eq(gu_os->tgkill(-1, -1, 0), -EINVAL);
	ck_assert_int_eq(gu_os->unshare(-1), -EINVAL);
	ck_assert_int_eq(errno, EXFULL);
}
END_TEST

START_TEST(files)
{
	char text[4] = "";
	int fd = gu_os->open("/proc/self/cmdline", O_RDONLY);
	ck_assert_int_ge(fd, 0);
	ck_assert_int_eq(fcntl(fd, F_GETFD), FD_CLOEXEC);
	ck_assert_int_eq(gu_os->read(fd, text, 2), 2);
	ck_assert_int_eq(gu_os->pread(fd, text + 2, 2, 0), 2);
	ck_assert_int_eq(text[0], text[2]);
	ck_ok(gu_os->close(fd));
}
END_TEST

START_TEST(files_that_are_written)
{
	char text[8] = "", path[TEST_PATH];
	struct iovec pieces[] = {{"ab", 2}, {"cd", 2}};
	test_new_path(path, "written");
	ck_assert_int_eq(gu_os->unlink(path), -ENOENT);
	int fd = gu_os->create(path, O_RDWR | O_CREAT | O_EXCL, 0600);
	ck_assert_int_ge(fd, 0);
	ck_assert_int_eq(gu_os->create(path, O_RDWR | O_CREAT | O_EXCL, 0600), -EEXIST);
	ck_assert_int_eq(fcntl(fd, F_GETFD), FD_CLOEXEC);
	ck_assert_int_eq(gu_os->pwritev(fd, pieces, 2, 3), 4);
	ck_assert_int_eq(gu_os->pread(fd, text, 8, 0), 7);
	ck_assert(!memcmp(text, "\0\0\0abcd", 7));
	ck_ok(gu_os->fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 3, 2));
	ck_assert_int_eq(gu_os->pread(fd, text, 8, 0), 7);
	ck_assert(!memcmp(text, "\0\0\0\0\0cd", 7));
	ck_ok(gu_os->fdatasync(fd));
	ck_ok(gu_os->fadvise(fd, 0, 0, POSIX_FADV_DONTNEED));
	ck_ok(gu_os->flock(fd, LOCK_EX | LOCK_NB));
	int other = gu_os->open(path, O_RDONLY);
	ck_assert_int_eq(gu_os->flock(other, LOCK_SH | LOCK_NB), -EWOULDBLOCK);
	ck_ok(gu_os->set_flags(other, O_APPEND));
	ck_assert_int_eq(fcntl(other, F_GETFL) & O_APPEND, O_APPEND);
	ck_ok(gu_os->close(other));
	ck_ok(gu_os->close(fd));
	ck_ok(gu_os->unlink(path));
}
END_TEST

START_TEST(clocks_go_forward)
{
	uint64_t wall = gu_os->clock_ns(), cpu = gu_os->thread_cpu_ns();
	ck_assert_uint_gt(wall, 0);
	while (gu_os->thread_cpu_ns() - cpu < 2000000)
		gu_os->sched_yield();
	ck_assert_uint_ge(gu_os->clock_ns() - wall, 1000000);
}
END_TEST

START_TEST(identity)
{
	ck_assert_int_eq(gu_os->getpid(), getpid());
	ck_assert_int_eq(gu_os->gettid(), gettid());
	ck_ok(gu_os->tgkill(getpid(), gettid(), 0));
}
END_TEST

START_TEST(futex_times_out_and_sees_a_changed_word)
{
	uint32_t word = 1;
	uint64_t before = gu_os->clock_ns();
	ck_assert_int_eq(gu_os->futex_wait(&word, 0, -1), -EAGAIN);
	ck_assert_int_eq(gu_os->futex_wait(&word, 1, 20000000), -ETIMEDOUT);
	ck_assert_uint_ge(gu_os->clock_ns() - before, 20000000);
	ck_assert_int_eq(gu_os->futex_wake(&word, 1), 0);
}
END_TEST

static void *sleep_on(void *word)
{
	while (__atomic_load_n((uint32_t *)word, __ATOMIC_SEQ_CST) == 0)
		gu_os->futex_wait(word, 0, -1);
	return NULL;
}

START_TEST(futex_wakes)
{
	uint32_t word = 0;
	pthread_t thread;
	ck_ok(pthread_create(&thread, NULL, sleep_on, &word));
	usleep(10000);
	__atomic_store_n(&word, 1, __ATOMIC_SEQ_CST);
	ck_assert_int_le(gu_os->futex_wake(&word, 1), 1);
	ck_ok(pthread_join(thread, NULL));
}
END_TEST

START_TEST(reads_memory_that_may_not_be_there)
{
	char from[16] = "0123456789abcde", to[16] = "";
	void *hole = NULL;
	long n = gu_os->process_vm_readv(getpid(), to, from, sizeof(to));
	if (n == -ENOSYS || n == -EPERM)
		GU_SKIP("process_vm_readv: %ld", n);
	ck_assert_int_eq(n, sizeof(to));
	ck_assert_str_eq(from, to);
	ck_ok(gu_os->mmap(NULL, 2 * GU_PAGE, PROT_READ, 0, &hole));
	ck_ok(gu_os->munmap((char *)hole + GU_PAGE, GU_PAGE));
	ck_assert_int_eq(gu_os->process_vm_readv(getpid(), to, (char *)hole + GU_PAGE, 8), -EFAULT);
	ck_ok(gu_os->munmap(hole, GU_PAGE));
}
END_TEST

static void *unshare_files(void *fd)
{
	long result = gu_os->unshare(CLONE_FILES);
	if (!result)
		result = gu_os->close(*(int *)fd);
	return (void *)result;
}

/* What a service thread closes in its own table stays open in the program's. */
START_TEST(a_thread_can_have_a_descriptor_table_of_its_own)
{
	int fd = gu_os->open("/dev/null", O_RDONLY);
	pthread_t thread;
	void *result;
	ck_ok(pthread_create(&thread, NULL, unshare_files, &fd));
	ck_ok(pthread_join(thread, &result));
	ck_assert_ptr_null(result);
	ck_ok(gu_os->close(fd));
}
END_TEST

static int kept[4]; /* -1: closed in the thread's table */

static void *keep_two(void *unused)
{
	int keep[3] = {kept[2], -1, kept[0]};
	(void)unused;
	long result = gu_files_own(keep, 3);
	for (int i = 0; i < 4; i++)
		kept[i] = fcntl(kept[i], F_GETFD) < 0 ? -1 : kept[i];
	return (void *)result;
}

START_TEST(only_what_is_kept_is_open)
{
	int fds[4];
	pthread_t thread;
	void *result;
	for (int i = 0; i < 4; i++)
		fds[i] = kept[i] = gu_os->open("/dev/null", O_RDONLY);
	ck_ok(pthread_create(&thread, NULL, keep_two, NULL));
	ck_ok(pthread_join(thread, &result));
	ck_assert_ptr_null(result);
	for (int i = 0; i < 4; i++)
		ck_assert_int_eq(kept[i], i % 2 ? -1 : fds[i]);
	for (int i = 0; i < 4; i++)
		ck_ok(gu_os->close(fds[i]));
}
END_TEST

START_TEST(the_nth_call_fails)
{
	void *p[3] = {NULL, NULL, NULL};
	fake_install();
	fake_fail(FAKE_MMAP, 2, -ENOMEM);
	ck_ok(gu_os->mmap(NULL, GU_PAGE, PROT_NONE, 0, &p[0]));
	ck_assert_int_eq(gu_os->mmap(NULL, GU_PAGE, PROT_NONE, 0, &p[1]), -ENOMEM);
	ck_ok(gu_os->mmap(NULL, GU_PAGE, PROT_NONE, 0, &p[2]));
	ck_assert_uint_eq(fake.fired, 1);
	fake_fail(FAKE_MPROTECT, 1, -EACCES);
	fake.sticky = true;
	for (int i = 0; i < 3; i++)
		ck_assert_int_eq(gu_os->mprotect(p[0], GU_PAGE, PROT_READ), -EACCES);
	fake_clear();
	ck_ok(gu_os->munmap(p[0], GU_PAGE));
	ck_ok(gu_os->munmap(p[2], GU_PAGE));
	fake_remove();
	ck_assert_ptr_eq(gu_os, &gu_os_linux);
}
END_TEST

START_TEST(metadata_takes_its_memory_through_the_table)
{
	fake_install();
	fake_fail(FAKE_MMAP, 1, -ENOMEM);
	ck_assert_ptr_null(gu_meta_map(GU_PAGE));
	ck_assert_uint_eq(fake.fired, 1);
	char *p = gu_meta_reserve(2 * GU_PAGE);
	ck_assert_ptr_nonnull(p);
	fake_fail(FAKE_MPROTECT, 1, -ENOMEM);
	ck_assert_int_ne(gu_meta_commit(p, GU_PAGE), 0);
	ck_ok(gu_meta_commit(p, GU_PAGE));
	p[0] = 1;
	gu_meta_unreserve(p, 2 * GU_PAGE);
	ck_assert_uint_eq(fake.seen[FAKE_MUNMAP], 1);
	fake_remove();
}
END_TEST

static Suite *make_suite(void)
{
	Suite *suite = suite_create("os");
	TCase *real = test_case(suite, "real"), *faked = test_case(suite, "fake");
	tcase_add_test(real, memory_calls);
	tcase_add_test(real, errors_are_returned_and_errno_is_left_alone);
	tcase_add_test(real, files);
	tcase_add_test(real, files_that_are_written);
	tcase_add_test(real, clocks_go_forward);
	tcase_add_test(real, identity);
	tcase_add_test(real, futex_times_out_and_sees_a_changed_word);
	tcase_add_test(real, futex_wakes);
	tcase_add_test(real, reads_memory_that_may_not_be_there);
	tcase_add_test(real, a_thread_can_have_a_descriptor_table_of_its_own);
	tcase_add_test(real, only_what_is_kept_is_open);
	tcase_add_test(faked, the_nth_call_fails);
	tcase_add_test(faked, metadata_takes_its_memory_through_the_table);
	return suite;
}

TEST_MAIN(make_suite)
