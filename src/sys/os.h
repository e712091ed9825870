/* SPDX-License-Identifier: MIT */
/*
 * os.h - every operation of the operating system that the library uses, in one table that tests can
 * fake and make fail. Any thread. The real table makes raw system calls: nothing that the program
 * interposes is called, errno is left alone, and every member is async-signal-safe.
 *
 * Members that return int or long give 0 (or a count, a descriptor) or -errno. None restarts after
 * EINTR: the caller knows whether it should.
 */
#ifndef GU_SYS_OS_H
#define GU_SYS_OS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

struct statx;

struct gu_os {
	/* Anonymous and private; flags are added to these two (MAP_NORESERVE, MAP_FIXED_NOREPLACE, ...). */
	int (*mmap)(void *hint, size_t len, int prot, int flags, void **out);
	int (*munmap)(void *start, size_t len);
	int (*mprotect)(void *start, size_t len, int prot);
	int (*madvise)(void *start, size_t len, int advice);

	int (*open)(const char *path, int flags); /* O_CLOEXEC is added */
	int (*create)(const char *path, int flags, unsigned mode); /* open(2) with O_CREAT or O_TMPFILE */
	int (*unlink)(const char *path);
	int (*rename)(const char *from, const char *to);
	int (*close)(int fd);
	int (*set_flags)(int fd, int flags); /* F_SETFL */
	int (*flock)(int fd, int operation);
	int (*lock)(int fd, short type); /* F_OFD_SETLK of the first byte: goes with the open file, not with the process. F_RDLCK, ...; -EAGAIN: another has it */
	int (*statx)(int fd, const char *path, struct statx *out); /* of path if there is one, a last link not followed; else of fd */
	long (*read)(int fd, void *buffer, size_t len);
	long (*pread)(int fd, void *buffer, size_t len, off_t offset);
	long (*pwritev)(int fd, const struct iovec *pieces, int n, off_t offset);
	int (*fallocate)(int fd, int mode, off_t offset, off_t len);
	int (*ftruncate)(int fd, off_t len);
	int (*fdatasync)(int fd);
	int (*fadvise)(int fd, off_t offset, off_t len, int advice);
	long (*ioctl)(int fd, unsigned long request, void *arg);
	int (*wait_readable)(int fd); /* until a read gives something; may return early */
	int (*userfaultfd)(int flags);
	int (*unshare)(int flags);

	/* Waits while *word == expected: 0 when woken, -EAGAIN, -EINTR, -ETIMEDOUT. timeout_ns < 0: none. Private. */
	int (*futex_wait)(uint32_t *word, uint32_t expected, int64_t timeout_ns);
	int (*futex_wake)(uint32_t *word, int count); /* how many were woken */

	int (*tgkill)(pid_t pid, pid_t tid, int sig);
	pid_t (*getpid)(void);
	pid_t (*gettid)(void);
	void (*sched_yield)(void);
	uint64_t (*clock_ns)(void);      /* CLOCK_MONOTONIC */
	uint64_t (*thread_cpu_ns)(void); /* CPU time of the calling thread */

	/* Copies from remote in the process that has a thread pid (not one that has ended); bytes copied, short where memory is not readable, or -errno. */
	long (*process_vm_readv)(pid_t pid, void *local, const void *remote, size_t len);
};

/* The table in use. Changed by tests only, while nothing else runs. */
extern const struct gu_os *gu_os;

/* The real one. */
extern const struct gu_os gu_os_linux;

/* NULL: the real table. Also makes base/meta.h take its memory through the table. */
void gu_os_set(const struct gu_os *os);

#endif
