/* SPDX-License-Identifier: MIT */
/*
 * signals.c - the stop signal stays unblocked and handled: it is taken out of every mask that the program
 * sets or waits for, and its disposition can't be changed, which looks like success. The library itself
 * changes masks by raw system calls, and its handler is known by its address. The old calls whose mask is an
 * int (sigblock, sigsetmask) cannot name the signal.
 */
#include <dlfcn.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <sys/signalfd.h>

#include "preload/preload.h"

#define STOP_SIGNAL gcuffd_stop_signal()

extern int __ppoll_chk(struct pollfd *fds, nfds_t n, const struct timespec *timeout, const sigset_t *mask, size_t len);
extern sighandler_t bsd_signal(int sig, sighandler_t handler);
extern sighandler_t __sysv_signal(int sig, sighandler_t handler);
extern sighandler_t sysv_signal(int sig, sighandler_t handler);

GU_NEXT(sigaction)
GU_NEXT(signal)
GU_NEXT(bsd_signal)
GU_NEXT(sysv_signal)
GU_NEXT(__sysv_signal)
GU_NEXT(sigprocmask)
GU_NEXT(pthread_sigmask)
GU_NEXT(pthread_attr_setsigmask_np)
GU_NEXT(sigsuspend)
GU_NEXT(sigwait)
GU_NEXT(sigwaitinfo)
GU_NEXT(sigtimedwait)
GU_NEXT(signalfd)
GU_NEXT(ppoll)
GU_NEXT(__ppoll_chk)
GU_NEXT(pselect)
GU_NEXT(epoll_pwait)
GU_NEXT(epoll_pwait2)

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"
GU_NEXT(sigset)
GU_NEXT(sighold)
GU_NEXT(sigignore)
GU_NEXT(siginterrupt)
#pragma GCC diagnostic pop

/* Those that a signal handler may call. */
void gu_preload_signals_init(void)
{
	real_sigaction();
	real_signal();
	real_sigprocmask();
	real_pthread_sigmask();
	real_sigsuspend();
	real_ppoll();
	real_pselect();
}

/* The set without the stop signal: a copy in *room, or NULL as it came. */
static const sigset_t *strip(const sigset_t *set, sigset_t *room)
{
	if (!set)
		return NULL;
	memcpy(room, set, sizeof(*room));
	sigdelset(room, STOP_SIGNAL);
	return room;
}

/* ---- dispositions ---- */

static int pretend(struct sigaction *old)
{
	if (old)
		memset(old, 0, sizeof(*old));
	return 0;
}

/* A second copy of the library would stop threads by the same signal: it is told, as nobody else, that it can't have it. */
static bool is_copy(const void *handler)
{
	Dl_info info;
	return dladdr(handler, &info) && info.dli_fname && strstr(info.dli_fname, "/libgcuffd.so");
}

static int refuse_copy(void)
{
	errno = EBUSY;
	return -1;
}

GU_PRELOAD_EXPORT int sigaction(int sig, const struct sigaction *act, struct sigaction *old)
{
	struct sigaction clean;
	if (sig == STOP_SIGNAL && !(act && gu_preload_own_code((const void *)act->sa_sigaction)))
		return act && is_copy((const void *)act->sa_sigaction) ? refuse_copy() : pretend(old);
	if (act) {
		clean = *act;
		sigdelset(&clean.sa_mask, STOP_SIGNAL);
	}
	return real_sigaction()(sig, act ? &clean : NULL, old);
}

#define SIGNAL_LIKE(name) \
	GU_PRELOAD_EXPORT sighandler_t name(int sig, sighandler_t handler) { return sig == STOP_SIGNAL ? SIG_DFL : real_##name()(sig, handler); }

SIGNAL_LIKE(signal)
SIGNAL_LIKE(bsd_signal)
SIGNAL_LIKE(sysv_signal)
SIGNAL_LIKE(__sysv_signal)
SIGNAL_LIKE(sigset)

GU_PRELOAD_EXPORT int sigignore(int sig) { return sig == STOP_SIGNAL ? 0 : real_sigignore()(sig); }
GU_PRELOAD_EXPORT int siginterrupt(int sig, int on) { return sig == STOP_SIGNAL ? 0 : real_siginterrupt()(sig, on); }

/* ---- masks ---- */

GU_PRELOAD_EXPORT int sigprocmask(int how, const sigset_t *set, sigset_t *old)
{
	sigset_t room;
	return real_sigprocmask()(how, strip(set, &room), old);
}

GU_PRELOAD_EXPORT int pthread_sigmask(int how, const sigset_t *set, sigset_t *old)
{
	sigset_t room;
	return real_pthread_sigmask()(how, strip(set, &room), old);
}

GU_PRELOAD_EXPORT int pthread_attr_setsigmask_np(pthread_attr_t *attr, const sigset_t *set)
{
	sigset_t room;
	return real_pthread_attr_setsigmask_np()(attr, strip(set, &room));
}

GU_PRELOAD_EXPORT int sighold(int sig) { return sig == STOP_SIGNAL ? 0 : real_sighold()(sig); }

/* ---- waiting ---- */

GU_PRELOAD_EXPORT int sigsuspend(const sigset_t *set)
{
	sigset_t room;
	return real_sigsuspend()(strip(set, &room));
}

GU_PRELOAD_EXPORT int sigwait(const sigset_t *set, int *sig)
{
	sigset_t room;
	return real_sigwait()(strip(set, &room), sig);
}

GU_PRELOAD_EXPORT int sigwaitinfo(const sigset_t *set, siginfo_t *info)
{
	sigset_t room;
	return real_sigwaitinfo()(strip(set, &room), info);
}

GU_PRELOAD_EXPORT int sigtimedwait(const sigset_t *set, siginfo_t *info, const struct timespec *timeout)
{
	sigset_t room;
	return real_sigtimedwait()(strip(set, &room), info, timeout);
}

GU_PRELOAD_EXPORT int signalfd(int fd, const sigset_t *set, int flags)
{
	sigset_t room;
	return real_signalfd()(fd, strip(set, &room), flags);
}

GU_PRELOAD_EXPORT int ppoll(struct pollfd *fds, nfds_t n, const struct timespec *timeout, const sigset_t *mask)
{
	sigset_t room;
	return real_ppoll()(fds, n, timeout, strip(mask, &room));
}

GU_PRELOAD_EXPORT int __ppoll_chk(struct pollfd *fds, nfds_t n, const struct timespec *timeout, const sigset_t *mask, size_t len)
{
	sigset_t room;
	return real___ppoll_chk()(fds, n, timeout, strip(mask, &room), len);
}

GU_PRELOAD_EXPORT int pselect(int n, fd_set *in, fd_set *out, fd_set *bad, const struct timespec *timeout, const sigset_t *mask)
{
	sigset_t room;
	return real_pselect()(n, in, out, bad, timeout, strip(mask, &room));
}

GU_PRELOAD_EXPORT int epoll_pwait(int fd, struct epoll_event *events, int n, int timeout, const sigset_t *mask)
{
	sigset_t room;
	return real_epoll_pwait()(fd, events, n, timeout, strip(mask, &room));
}

GU_PRELOAD_EXPORT int epoll_pwait2(int fd, struct epoll_event *events, int n, const struct timespec *timeout, const sigset_t *mask)
{
	sigset_t room;
	return real_epoll_pwait2()(fd, events, n, timeout, strip(mask, &room));
}
