/* SPDX-License-Identifier: MIT */
/*
 * exec.c - a stop signal that is pending when a process executes another program would kill it there, for
 * handlers are gone and pending signals stay (.inv.preload.exec). Before the call the signal is ignored,
 * which drops what is pending; if the call fails the handler is put back. Nothing here allocates.
 */
#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <unistd.h>

#include "preload/preload.h"

#define STOP_SIGNAL gcuffd_stop_signal()

GU_NEXT(sigaction)
GU_NEXT(execve)
GU_NEXT(execv)
GU_NEXT(execvp)
GU_NEXT(execvpe)
GU_NEXT(fexecve)
GU_NEXT(execveat)

void gu_preload_exec_init(void)
{
	real_sigaction();
	real_execve();
	real_execv();
	real_execvp();
	real_execvpe();
	real_fexecve();
	real_execveat();
}

struct handler {
	struct sigaction act;
	bool saved;
};

/* In a child that shares our memory the signal is not sent: stops name the process that they are about. */
static struct handler before(void)
{
	struct sigaction ignore = {.sa_handler = SIG_IGN};
	struct handler h = {.saved = gu_preload_has_service()};
	if (h.saved)
		real_sigaction()(STOP_SIGNAL, &ignore, &h.act);
	return h;
}

static int after(const struct handler *h, int result)
{
	int saved = errno;
	if (h->saved)
		real_sigaction()(STOP_SIGNAL, &h->act, NULL);
	errno = saved;
	return result;
}

GU_PRELOAD_EXPORT int execve(const char *path, char *const argv[], char *const env[])
{
	struct handler h = before();
	return after(&h, real_execve()(path, argv, env));
}

GU_PRELOAD_EXPORT int execv(const char *path, char *const argv[])
{
	struct handler h = before();
	return after(&h, real_execv()(path, argv));
}

GU_PRELOAD_EXPORT int execvp(const char *file, char *const argv[])
{
	struct handler h = before();
	return after(&h, real_execvp()(file, argv));
}

GU_PRELOAD_EXPORT int execvpe(const char *file, char *const argv[], char *const env[])
{
	struct handler h = before();
	return after(&h, real_execvpe()(file, argv, env));
}

GU_PRELOAD_EXPORT int fexecve(int fd, char *const argv[], char *const env[])
{
	struct handler h = before();
	return after(&h, real_fexecve()(fd, argv, env));
}

GU_PRELOAD_EXPORT int execveat(int dir, const char *path, char *const argv[], char *const env[], int flags)
{
	struct handler h = before();
	return after(&h, real_execveat()(dir, path, argv, env, flags));
}

/* ---- lists of arguments, copied to the stack as they come ---- */

static size_t count_args(va_list args)
{
	size_t n = 1;
	while (va_arg(args, char *))
		n++;
	return n;
}

static void copy_args(char **argv, const char *first, size_t n, va_list args)
{
	argv[0] = (char *)(uintptr_t)first;
	for (size_t i = 1; i <= n; i++)
		argv[i] = va_arg(args, char *);
}

#define COLLECT(argv, first) \
	va_list args; \
	va_start(args, first); \
	size_t n = count_args(args); \
	va_end(args); \
	char *argv[n + 1]; \
	va_start(args, first); \
	copy_args(argv, first, n, args)

GU_PRELOAD_EXPORT int execl(const char *path, const char *first, ...)
{
	COLLECT(argv, first);
	va_end(args);
	return execv(path, argv);
}

GU_PRELOAD_EXPORT int execlp(const char *file, const char *first, ...)
{
	COLLECT(argv, first);
	va_end(args);
	return execvp(file, argv);
}

GU_PRELOAD_EXPORT int execle(const char *path, const char *first, ...)
{
	COLLECT(argv, first);
	char *const *env = va_arg(args, char *const *);
	va_end(args);
	return execve(path, argv, env);
}
