/* SPDX-License-Identifier: MIT */
/*
 * fake_os.h - the real OS table with a planted fault: the n-th call of one sort fails, or the n-th call
 * of any sort, or each from there on. Any thread may call through it; a test plants one fault at a time.
 *
 *	fake_install();
 *	fake_fail(FAKE_MMAP, 2, -ENOMEM);             // the second mmap from now
 *	fake_fail_ioctl(GU_UFFDIO_MOVE, 1, -EBUSY);   // the first UFFDIO_MOVE
 *	fake_fail(FAKE_ANY, n, -EIO);                 // the n-th call whatever it is
 *	fake.sticky = true;                           // and all later ones of the sort
 *	... fake_clear() for no fault, fake_remove() for the real table
 *
 * fake.seen counts calls of each sort since the fault was planted; fake.fired tells how many failed.
 */
#ifndef GU_TESTS_FAKE_OS_H
#define GU_TESTS_FAKE_OS_H

#include <string.h>

#include "sys/os.h"

enum fake_call {
	FAKE_ANY, FAKE_MMAP, FAKE_MUNMAP, FAKE_MPROTECT, FAKE_MADVISE, FAKE_OPEN, FAKE_READ, FAKE_PREAD, FAKE_IOCTL,
	FAKE_CREATE, FAKE_UNLINK, FAKE_RENAME, FAKE_SET_FLAGS, FAKE_FLOCK, FAKE_LOCK, FAKE_STATX, FAKE_PWRITEV, FAKE_FALLOCATE, FAKE_FTRUNCATE, FAKE_FDATASYNC, FAKE_FADVISE,
	FAKE_USERFAULTFD, FAKE_UNSHARE, FAKE_FUTEX_WAIT, FAKE_TGKILL, FAKE_VM_READV, FAKE_COUNT
};

static struct {
	enum fake_call call;
	unsigned long request; /* 0: any */
	unsigned nth;          /* from 1; 0: nothing fails */
	int error;
	bool sticky;
	const char *path;      /* FAKE_OPEN: only this path; NULL: any */
	unsigned seen[FAKE_COUNT];
	unsigned matched, fired;
} fake __attribute__((unused));

/* 0, or the error to give. */
__attribute__((unused)) static int fake_check(enum fake_call call, unsigned long request, const char *path)
{
	__atomic_fetch_add(&fake.seen[call], 1, __ATOMIC_RELAXED);
	__atomic_fetch_add(&fake.seen[FAKE_ANY], 1, __ATOMIC_RELAXED);
	if (!fake.nth || (fake.call != FAKE_ANY && fake.call != call) || (fake.request && fake.request != request) ||
	    (fake.path && (!path || strcmp(path, fake.path) != 0)))
		return 0;
	unsigned n = __atomic_add_fetch(&fake.matched, 1, __ATOMIC_RELAXED);
	if (n != fake.nth && !(fake.sticky && n > fake.nth))
		return 0;
	__atomic_fetch_add(&fake.fired, 1, __ATOMIC_RELAXED);
	return fake.error;
}

#define FAKE_OR_REAL(call, request, path, real) \
	int error = fake_check(call, request, path); \
	return error ? error : real

static int fake_mmap(void *hint, size_t len, int prot, int flags, void **out)
{
	FAKE_OR_REAL(FAKE_MMAP, 0, NULL, gu_os_linux.mmap(hint, len, prot, flags, out));
}

static int fake_munmap(void *p, size_t len) { FAKE_OR_REAL(FAKE_MUNMAP, 0, NULL, gu_os_linux.munmap(p, len)); }

static int fake_mprotect(void *p, size_t len, int prot)
{
	FAKE_OR_REAL(FAKE_MPROTECT, 0, NULL, gu_os_linux.mprotect(p, len, prot));
}

static int fake_madvise(void *p, size_t len, int advice)
{
	FAKE_OR_REAL(FAKE_MADVISE, (unsigned long)advice, NULL, gu_os_linux.madvise(p, len, advice));
}

static int fake_open(const char *path, int flags) { FAKE_OR_REAL(FAKE_OPEN, 0, path, gu_os_linux.open(path, flags)); }

static long fake_read(int fd, void *buffer, size_t len)
{
	FAKE_OR_REAL(FAKE_READ, 0, NULL, gu_os_linux.read(fd, buffer, len));
}

static long fake_pread(int fd, void *buffer, size_t len, off_t at)
{
	FAKE_OR_REAL(FAKE_PREAD, 0, NULL, gu_os_linux.pread(fd, buffer, len, at));
}

static int fake_create(const char *path, int flags, unsigned mode)
{
	FAKE_OR_REAL(FAKE_CREATE, 0, path, gu_os_linux.create(path, flags, mode));
}

static int fake_unlink(const char *path) { FAKE_OR_REAL(FAKE_UNLINK, 0, path, gu_os_linux.unlink(path)); }

static int fake_rename(const char *from, const char *to) { FAKE_OR_REAL(FAKE_RENAME, 0, from, gu_os_linux.rename(from, to)); }

static int fake_set_flags(int fd, int flags) { FAKE_OR_REAL(FAKE_SET_FLAGS, 0, NULL, gu_os_linux.set_flags(fd, flags)); }
static int fake_lock(int fd, short type) { FAKE_OR_REAL(FAKE_LOCK, 0, NULL, gu_os_linux.lock(fd, type)); }
static int fake_statx(int fd, const char *path, struct statx *out) { FAKE_OR_REAL(FAKE_STATX, 0, path, gu_os_linux.statx(fd, path, out)); }
static int fake_flock(int fd, int how) { FAKE_OR_REAL(FAKE_FLOCK, 0, NULL, gu_os_linux.flock(fd, how)); }

static long fake_pwritev(int fd, const struct iovec *pieces, int n, off_t at)
{
	FAKE_OR_REAL(FAKE_PWRITEV, 0, NULL, gu_os_linux.pwritev(fd, pieces, n, at));
}

static int fake_fallocate(int fd, int mode, off_t at, off_t len)
{
	FAKE_OR_REAL(FAKE_FALLOCATE, 0, NULL, gu_os_linux.fallocate(fd, mode, at, len));
}

static int fake_ftruncate(int fd, off_t len) { FAKE_OR_REAL(FAKE_FTRUNCATE, 0, NULL, gu_os_linux.ftruncate(fd, len)); }
static int fake_fdatasync(int fd) { FAKE_OR_REAL(FAKE_FDATASYNC, 0, NULL, gu_os_linux.fdatasync(fd)); }

static int fake_fadvise(int fd, off_t at, off_t len, int advice)
{
	FAKE_OR_REAL(FAKE_FADVISE, 0, NULL, gu_os_linux.fadvise(fd, at, len, advice));
}

static long fake_ioctl(int fd, unsigned long request, void *arg)
{
	FAKE_OR_REAL(FAKE_IOCTL, request, NULL, gu_os_linux.ioctl(fd, request, arg));
}

static int fake_userfaultfd(int flags) { FAKE_OR_REAL(FAKE_USERFAULTFD, 0, NULL, gu_os_linux.userfaultfd(flags)); }
static int fake_unshare(int flags) { FAKE_OR_REAL(FAKE_UNSHARE, 0, NULL, gu_os_linux.unshare(flags)); }

static int fake_futex_wait(uint32_t *word, uint32_t expected, int64_t timeout_ns)
{
	FAKE_OR_REAL(FAKE_FUTEX_WAIT, 0, NULL, gu_os_linux.futex_wait(word, expected, timeout_ns));
}

static int fake_tgkill(pid_t pid, pid_t tid, int sig)
{
	FAKE_OR_REAL(FAKE_TGKILL, 0, NULL, gu_os_linux.tgkill(pid, tid, sig));
}

static long fake_vm_readv(pid_t pid, void *local, const void *remote, size_t len)
{
	FAKE_OR_REAL(FAKE_VM_READV, 0, NULL, gu_os_linux.process_vm_readv(pid, local, remote, len));
}

static struct gu_os fake_os __attribute__((unused));

__attribute__((unused)) static void fake_clear(void) { memset(&fake, 0, sizeof(fake)); }

__attribute__((unused)) static void fake_install(void)
{
	fake_clear();
	fake_os = gu_os_linux;
	fake_os.mmap = fake_mmap;
	fake_os.munmap = fake_munmap;
	fake_os.mprotect = fake_mprotect;
	fake_os.madvise = fake_madvise;
	fake_os.open = fake_open;
	fake_os.read = fake_read;
	fake_os.pread = fake_pread;
	fake_os.create = fake_create;
	fake_os.unlink = fake_unlink;
	fake_os.rename = fake_rename;
	fake_os.set_flags = fake_set_flags;
	fake_os.flock = fake_flock;
	fake_os.lock = fake_lock;
	fake_os.statx = fake_statx;
	fake_os.pwritev = fake_pwritev;
	fake_os.fallocate = fake_fallocate;
	fake_os.ftruncate = fake_ftruncate;
	fake_os.fdatasync = fake_fdatasync;
	fake_os.fadvise = fake_fadvise;
	fake_os.ioctl = fake_ioctl;
	fake_os.userfaultfd = fake_userfaultfd;
	fake_os.unshare = fake_unshare;
	fake_os.futex_wait = fake_futex_wait;
	fake_os.tgkill = fake_tgkill;
	fake_os.process_vm_readv = fake_vm_readv;
	gu_os_set(&fake_os);
}

__attribute__((unused)) static void fake_remove(void)
{
	fake_clear();
	gu_os_set(NULL);
}

__attribute__((unused)) static void fake_fail(enum fake_call call, unsigned nth, int error)
{
	fake_clear();
	fake.call = call;
	fake.error = error;
	fake.nth = nth;
}

__attribute__((unused)) static void fake_fail_ioctl(unsigned long request, unsigned nth, int error)
{
	fake_fail(FAKE_IOCTL, nth, error);
	fake.request = request;
}

/* The same of one advice: other threads give others meanwhile. */
__attribute__((unused)) static void fake_fail_advice(int advice, unsigned nth, int error)
{
	fake_fail(FAKE_MADVISE, nth, error);
	fake.request = (unsigned long)advice;
}

/* Opening this path fails, others do not. */
__attribute__((unused)) static void fake_fail_open(const char *path, unsigned nth, int error)
{
	fake_fail(FAKE_OPEN, nth, error);
	fake.path = path;
}

#endif
