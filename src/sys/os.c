/* SPDX-License-Identifier: MIT */
/*
 * os.c - the real table of OS operations: thin, stateless, raw system calls. The pointer to the table in use
 * is written by tests only, before other threads run.
 */
#include "sys/os.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "base/meta.h"

#ifndef SYS_userfaultfd
#error "this architecture's number of userfaultfd(2) is not known"
#endif

/* Called with errno as the system call left it. */
static long result_of(long result, int saved)
{
	if (result == -1) {
		result = -errno;
		errno = saved;
	}
	return result;
}

/* The system call's result, -errno instead of -1, with errno as it was before. */
#define RAW(...) \
	__extension__({ \
		int saved_errno = errno; \
		result_of(syscall(__VA_ARGS__), saved_errno); \
	})

static int os_mmap(void *hint, size_t len, int prot, int flags, void **out)
{
	long result = RAW(SYS_mmap, hint, len, prot, flags | MAP_PRIVATE | MAP_ANONYMOUS, -1, 0L);
	if (result < 0 && result > -4096)
		return (int)result;
	*out = (void *)result;
	return 0;
}

static int os_munmap(void *start, size_t len) { return (int)RAW(SYS_munmap, start, len); }
static int os_mprotect(void *start, size_t len, int prot) { return (int)RAW(SYS_mprotect, start, len, prot); }
static int os_madvise(void *start, size_t len, int advice) { return (int)RAW(SYS_madvise, start, len, advice); }

static int os_open(const char *path, int flags) { return (int)RAW(SYS_openat, AT_FDCWD, path, flags | O_CLOEXEC, 0); }
static int os_create(const char *path, int flags, unsigned mode)
{
	return (int)RAW(SYS_openat, AT_FDCWD, path, flags | O_CLOEXEC, mode);
}

static int os_unlink(const char *path) { return (int)RAW(SYS_unlinkat, AT_FDCWD, path, 0); }
static int os_rename(const char *from, const char *to) { return (int)RAW(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0); }
static int os_close(int fd) { return (int)RAW(SYS_close, fd); }
static long os_read(int fd, void *buffer, size_t len) { return RAW(SYS_read, fd, buffer, len); }
static long os_pread(int fd, void *buffer, size_t len, off_t at) { return RAW(SYS_pread64, fd, buffer, len, at); }
static int os_set_flags(int fd, int flags) { return (int)RAW(SYS_fcntl, fd, F_SETFL, flags); }
static int os_lock(int fd, short type)
{
	struct flock lock = {.l_type = type, .l_whence = SEEK_SET, .l_len = 1};
	return (int)RAW(SYS_fcntl, fd, F_OFD_SETLK, &lock);
}
static int os_statx(int fd, const char *path, struct statx *out)
{
	return path ? (int)RAW(SYS_statx, AT_FDCWD, path, AT_SYMLINK_NOFOLLOW, STATX_BASIC_STATS, out) : (int)RAW(SYS_statx, fd, "", AT_EMPTY_PATH, STATX_BASIC_STATS, out);
}
static int os_flock(int fd, int operation) { return (int)RAW(SYS_flock, fd, operation); }

/* The offset's upper half is an argument of its own, which 64-bit kernels ignore. */
static long os_pwritev(int fd, const struct iovec *pieces, int n, off_t at)
{
	return RAW(SYS_pwritev, fd, pieces, n, at, 0L);
}

static int os_ftruncate(int fd, off_t len) { return (int)RAW(SYS_ftruncate, fd, len); }
static int os_fallocate(int fd, int mode, off_t at, off_t len) { return (int)RAW(SYS_fallocate, fd, mode, at, len); }
static int os_fdatasync(int fd) { return (int)RAW(SYS_fdatasync, fd); }
static int os_fadvise(int fd, off_t at, off_t len, int advice) { return (int)RAW(SYS_fadvise64, fd, at, len, advice); }
static long os_ioctl(int fd, unsigned long request, void *arg) { return RAW(SYS_ioctl, fd, request, arg); }
static int os_wait_readable(int fd)
{
	struct pollfd in = {.fd = fd, .events = POLLIN};
	return (int)RAW(SYS_ppoll, &in, 1, NULL, NULL, 8);
}

static int os_userfaultfd(int flags) { return (int)RAW(SYS_userfaultfd, flags); }
static int os_unshare(int flags) { return (int)RAW(SYS_unshare, flags); }

static int os_futex_wait(uint32_t *word, uint32_t expected, int64_t timeout_ns)
{
	struct timespec ts = {timeout_ns / 1000000000, timeout_ns % 1000000000};
	return (int)RAW(SYS_futex, word, FUTEX_WAIT_PRIVATE, expected, timeout_ns < 0 ? NULL : &ts, NULL, 0);
}

static int os_futex_wake(uint32_t *word, int count)
{
	return (int)RAW(SYS_futex, word, FUTEX_WAKE_PRIVATE, count, NULL, NULL, 0);
}

static int os_tgkill(pid_t pid, pid_t tid, int sig) { return (int)RAW(SYS_tgkill, pid, tid, sig); }
static pid_t os_getpid(void) { return (pid_t)RAW(SYS_getpid); }
static pid_t os_gettid(void) { return (pid_t)RAW(SYS_gettid); }
static void os_sched_yield(void) { RAW(SYS_sched_yield); }

static uint64_t read_clock(clockid_t clock)
{
	struct timespec ts = {0, 0};
	clock_gettime(clock, &ts); /* can't fail for these clocks */
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static uint64_t os_clock_ns(void) { return read_clock(CLOCK_MONOTONIC); }
static uint64_t os_thread_cpu_ns(void) { return read_clock(CLOCK_THREAD_CPUTIME_ID); }

static long os_process_vm_readv(pid_t pid, void *local, const void *remote, size_t len)
{
	struct iovec to = {local, len}, from = {(void *)(uintptr_t)remote, len};
	return RAW(SYS_process_vm_readv, pid, &to, 1, &from, 1, 0);
}

const struct gu_os gu_os_linux = {
	.mmap = os_mmap,
	.munmap = os_munmap,
	.mprotect = os_mprotect,
	.madvise = os_madvise,
	.open = os_open,
	.create = os_create,
	.unlink = os_unlink,
	.rename = os_rename,
	.close = os_close,
	.set_flags = os_set_flags,
	.flock = os_flock,
	.lock = os_lock,
	.statx = os_statx,
	.read = os_read,
	.pread = os_pread,
	.pwritev = os_pwritev,
	.fallocate = os_fallocate,
	.ftruncate = os_ftruncate,
	.fdatasync = os_fdatasync,
	.fadvise = os_fadvise,
	.ioctl = os_ioctl,
	.wait_readable = os_wait_readable,
	.userfaultfd = os_userfaultfd,
	.unshare = os_unshare,
	.futex_wait = os_futex_wait,
	.futex_wake = os_futex_wake,
	.tgkill = os_tgkill,
	.getpid = os_getpid,
	.gettid = os_gettid,
	.sched_yield = os_sched_yield,
	.clock_ns = os_clock_ns,
	.thread_cpu_ns = os_thread_cpu_ns,
	.process_vm_readv = os_process_vm_readv,
};

const struct gu_os *gu_os = &gu_os_linux;

/* ---- base/meta.h's memory ---- */

static void *meta_map(size_t len, int prot)
{
	void *p;
	return gu_os->mmap(NULL, len, prot, MAP_NORESERVE, &p) ? NULL : p;
}

static int meta_unmap(void *start, size_t len) { return gu_os->munmap(start, len); }
static int meta_protect(void *start, size_t len, int prot) { return gu_os->mprotect(start, len, prot); }

void gu_os_set(const struct gu_os *os)
{
	static const struct gu_meta_source source = {meta_map, meta_unmap, meta_protect};
	gu_os = os ? os : &gu_os_linux;
	gu_meta_set_source(&source);
}
