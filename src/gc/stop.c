/* SPDX-License-Identifier: MIT */
/*
 * stop.c - the handshake of a stop.
 *
 * epoch is odd while a stop is under way. The stopper makes it odd, signals each running thread and waits until
 * each has acked this epoch; a parked thread sleeps on epoch until it changes. A thread that
 * declared itself blocking is claimed by compare-and-swap instead (.inv.stop.claim): leaving finds the
 * claim and waits. A signal that comes late finds an even epoch and returns.
 *
 * Threads that have safepoints see gcuffd_stop_asked there, which says no more than that it is worth a look at epoch. Those that
 * said so are signalled only when they are late, or never.
 */
#define _GNU_SOURCE
#include "gc/stop.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/membarrier.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/probe.h"
#include "base/without.h"
#include "gc/event.h"
#include "gc/mutator.h"
#include "sys/os.h"

static struct gu_lock world_lock = GU_LOCK_INIT(GU_RANK_WORLD);
static uint32_t epoch;         /* atomic; futex of the parked */
static uint32_t acks;          /* atomic; futex of the stopper */
static uint32_t installed;     /* atomic */
static pid_t exempt[4096];     /* atomic entries; service threads */
static uint32_t expected;      /* atomic; service threads that are made and not yet in exempt */
static bool has_membarrier;
static int chosen_signal;      /* atomic; constant once installed; 0: the default */
uint32_t gcuffd_stop_asked;    /* atomic; written by the stopper */
uint32_t gu_gate, gu_outside;
#define LATE_NS 500000u /* a thread with safepoints is, and gets a signal */
static __thread bool passes __attribute__((tls_model("initial-exec"))); /* this thread closed the gate */

/* ---- the mutator's side ---- */

static __attribute__((noinline)) void sleep_in_stop(struct gu_thread *t, uint32_t e)
{
	gu_store_relaxed(&t->sp, (uintptr_t)__builtin_frame_address(0) - 256);
	gu_store_seqcst(&t->acked, e); /* publishes sp; pairs with all_stopped() */
	gu_add_seqcst(&acks, 1);
	gu_os->futex_wake(&acks, 1);
	while (gu_load_acquire(&epoch) == e)
		gu_os->futex_wait(&epoch, e, -1);
}

/* The raw call: a preload library may interpose the other. */
static uintptr_t alternate_end(void)
{
	stack_t ss;
	if (syscall(SYS_sigaltstack, NULL, &ss) || !(ss.ss_flags & SS_ONSTACK))
		return 0;
	return (uintptr_t)ss.ss_sp + ss.ss_size;
}

/* Callee-saved registers go to this frame, which lies above sp. */
static __attribute__((noinline)) void park(struct gu_thread *t)
{
	uint32_t e = gu_load_seqcst(&epoch);
	jmp_buf regs;
	if (!(e & 1))
		return;
	__builtin_unwind_init();
	(void)_setjmp(regs);
	__asm__ volatile("" : : "r"(regs) : "memory");
	t->alt_hi = alternate_end();
	sleep_in_stop(t, e);
	__asm__ volatile("" : : "r"(regs) : "memory");
}

/*
 * .inv.stop.handlers: all signals but those that the processor raises, and the C library's own two. The raw calls: a preload library may
 * interpose the others.
 */
#define SIGNAL(n) (1ull << ((n) - 1))
static const uint64_t held = ~(SIGNAL(SIGSEGV) | SIGNAL(SIGBUS) | SIGNAL(SIGFPE) | SIGNAL(SIGILL) | SIGNAL(SIGTRAP) | SIGNAL(SIGSYS) | SIGNAL(32) | SIGNAL(33));

void gu_signals_hold(uint64_t *old) { syscall(SYS_rt_sigprocmask, SIG_BLOCK, &held, old, 8); }
void gu_signals_let(const uint64_t *old) { syscall(SYS_rt_sigprocmask, SIG_SETMASK, old, NULL, 8); }

void gu_section_obey(struct gu_thread *t)
{
	int saved = errno;
	uint64_t old;
	gu_store_relaxed(&t->pending, 0);
	gu_signals_hold(&old);
	park(t);
	gu_signals_let(&old);
	errno = saved;
}

void gu_stop_obey(void)
{
	struct gu_thread *t = gu_self;
	if (t && t->tid == gu_os->gettid() && !gu_load_relaxed(&t->section) && gu_load_relaxed(&t->blocking) == GU_RUNNING)
		gu_section_obey(t);
}

int gu_stop_by(enum gcuffd_stop_by how)
{
	if (!gu_self)
		return -EINVAL;
	gu_store_relaxed(&gu_self->stopped_by, how); /* seen late, a stop waits for a safepoint or sends a signal */
	return 0;
}

/* A thread that the stopper found: its entry is in the list, which the stopper keeps locked. */
static struct gu_thread *find_self(void)
{
	pid_t tid = gu_os->gettid();
	for (struct gu_thread *t = gu_threads_first(); t; t = t->next)
		if (t->tid == tid)
			return t;
	return NULL;
}

static void adopt_self(void)
{
	struct gu_thread *t = find_self();
	if (!t)
		return;
	t->self = (uintptr_t)pthread_self();
	t->stack_lo = t->stack_hi = 0; /* the entry may be of a thread that had this number before */
	park(t);
}

/* A thread made without TLS of its own: gu_self is its maker's, and stays so. */
static void park_borrower(void)
{
	struct gu_thread *t = gu_load_seqcst(&epoch) & 1 ? find_self() : NULL;
	if (t)
		park(t);
}

/* The stop that was asked for may be over, and the list with it: only a stop that still waits for us keeps it. */
void gu_entered_obey(void)
{
	int saved = errno;
	gu_store_relaxed(&gu_entered_pending, 0);
	if (gu_load_seqcst(&epoch) & 1)
		gu_os->tgkill(gu_os->getpid(), gu_os->gettid(), gu_stop_signal());
	errno = saved;
}

static void on_signal(int sig, siginfo_t *info, void *context)
{
	int saved = errno;
	struct gu_thread *t = gu_self;
	(void)sig, (void)info, (void)context;
	if (t && t->tid != gu_os->gettid())
		park_borrower();
	else if (t && gu_load_relaxed(&t->section))
		gu_store_relaxed(&t->pending, 1);
	else if (t && gu_load_seqcst(&t->blocking) != GU_RUNNING)
		; /* claimed, or to be: its stack is scanned from where it began to block, and this frame lies below */
	else if (t)
		park(t);
	else if (gu_load_relaxed(&gu_entered))
		gu_store_relaxed(&gu_entered_pending, 1);
	else if (gu_load_seqcst(&epoch) & 1)
		adopt_self();
	errno = saved;
}

/* What the processor raises would come in the middle of a stop, and the C library has a use for its own. */
int gu_stop_set_signal(int sig)
{
	if (sig < 1 || sig > SIGRTMAX || sig == SIGKILL || sig == SIGSTOP || !(held & SIGNAL(sig)))
		return -EINVAL;
	if (gu_load_acquire(&installed))
		return sig == gu_stop_signal() ? 0 : -EBUSY;
	gu_store_relaxed(&chosen_signal, sig);
	return 0;
}

int gu_stop_signal(void)
{
	int chosen = gu_load_relaxed(&chosen_signal);
	return chosen ? chosen : SIGRTMAX - 1;
}

int gu_stop_init(void)
{
	if (gu_load_acquire(&installed))
		return 0;
	struct sigaction act = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_RESTART};
	sigemptyset(&act.sa_mask);
	memcpy(&act.sa_mask, &held, sizeof(held)); /* what the kernel sees of it */
	if (sigaction(gu_stop_signal(), &act, NULL))
		return -errno;
	has_membarrier = !syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED, 0, 0);
	gu_store_release(&installed, 1);
	return 0;
}

void gu_stop_unblock(const sigset_t *set)
{
	/* The raw call: a preload library may interpose the others. */
	syscall(SYS_rt_sigprocmask, SIG_UNBLOCK, set, NULL, 8);
}

/* The frames down here are gone when the thread blocks, and with them registers they hold: they are copied. */
static __attribute__((noinline)) GU_READS_STACKS void enter_blocking(struct gu_thread *t)
{
	uintptr_t here = (uintptr_t)__builtin_frame_address(0) - 64;
	__builtin_unwind_init();
	t->alt_hi = alternate_end();
	const struct gcuffd_stack *s = gu_stack_under(t, here);
	size_t words = gu_min(GU_ARRAY_LEN(t->saved), ((t->alt_hi ? t->alt_hi : s ? s->high : t->stack_hi) - here) / 8);
	for (size_t i = 0; i < words; i++)
		t->saved[i] = ((const volatile uintptr_t *)here)[i];
	gu_store_relaxed(&t->sp, here);
	gu_store_seqcst(&t->blocking, GU_BLOCKING); /* publishes sp; pairs with claim() */
}

int gu_blocking_enter(void)
{
	struct gu_thread *t = gu_self;
	if (!t)
		return -EINVAL;
	if (gu_load_relaxed(&t->blocking) != GU_RUNNING)
		return -EBUSY;
	enter_blocking(t);
	return 0;
}

static void leave_blocking(struct gu_thread *t)
{
	for (;;) {
		uint32_t e = gu_load_seqcst(&epoch), was = GU_BLOCKING;
		if (gu_cas_seqcst(&t->blocking, &was, GU_RUNNING)) {
			park(t); /* as in gu_blocking_leave() */
			return;
		}
		if (e & 1)
			gu_os->futex_wait(&epoch, e, -1);
		else
			gu_os->sched_yield(); /* the stopper is about to drop its claim */
	}
}

int gu_blocking_leave(void)
{
	struct gu_thread *t = gu_self;
	uint32_t was = GU_BLOCKING;
	if (!t || gu_load_relaxed(&t->blocking) == GU_RUNNING)
		return -EINVAL;
	bool runs = gu_cas_seqcst(&t->blocking, &was, GU_RUNNING);
	if (gu_likely(runs && !(gu_load_seqcst(&epoch) & 1)))
		return 0;
	int saved = errno;
	uint64_t old;
	gu_signals_hold(&old);
	if (runs)
		park(t); /* a stop has asked and not claimed us: its signal may have come while we blocked */
	else
		leave_blocking(t);
	gu_signals_let(&old);
	errno = saved;
	return 0;
}

void gu_wait_begin(struct gu_wait *w)
{
	w->blocking = gu_self && gu_load_relaxed(&gu_self->blocking) == GU_RUNNING;
	if (!w->blocking)
		return;
	gu_signals_hold(&w->old);
	enter_blocking(gu_self);
}

void gu_wait_end(const struct gu_wait *w)
{
	if (!w->blocking)
		return;
	int saved = errno;
	leave_blocking(gu_self);
	gu_signals_let(&w->old);
	errno = saved;
}

/* A handler that is due runs in between, as in a thread that does not wait. */
void gu_wait_futex(struct gu_wait *w, uint32_t *word, uint32_t value, int64_t timeout_ns)
{
	uint64_t due = 0;
	int64_t most = w->blocking ? GU_WAIT_NS : -1;
	gu_os->futex_wait(word, value, most < 0 || (timeout_ns >= 0 && timeout_ns < most) ? timeout_ns : most);
	if (!w->blocking || syscall(SYS_rt_sigpending, &due, 8) || !(due & held & ~w->old))
		return;
	gu_wait_end(w);
	gu_wait_begin(w);
}

/* ---- the stopper's side ---- */

int gu_stop_start(pthread_t *thread, const pthread_attr_t *attr, void *(*fn)(void *), void *arg)
{
	sigset_t all, old;
	sigfillset(&all);
	gu_add_seqcst(&expected, 1);
	syscall(SYS_rt_sigprocmask, SIG_SETMASK, &all, &old, 8);
	int err = pthread_create(thread, attr, fn, arg);
	syscall(SYS_rt_sigprocmask, SIG_SETMASK, &old, NULL, 8);
	if (err)
		gu_sub_seqcst(&expected, 1);
	return -err;
}

void gu_stop_exempt(bool on)
{
	pid_t tid = gu_os->gettid();
	for (size_t i = 0; i < GU_ARRAY_LEN(exempt); i++) {
		pid_t was = on ? 0 : tid;
		if (gu_cas_seqcst(&exempt[i], &was, on ? tid : 0))
			break;
	}
	if (on)
		gu_sub_seqcst(&expected, 1);
}

static bool is_exempt(pid_t tid)
{
	for (size_t i = 0; i < GU_ARRAY_LEN(exempt); i++)
		if (gu_load_relaxed(&exempt[i]) == tid)
			return true;
	return false;
}

static bool claim(struct gu_thread *t)
{
	uint32_t was = GU_BLOCKING;
	return gu_cas_seqcst(&t->blocking, &was, GU_CLAIMED) || was == GU_CLAIMED;
}

static bool has_safepoints(const struct gu_thread *t, uint64_t waited_ns)
{
	uint32_t how = gu_load_relaxed(&t->stopped_by);
	return how == GCUFFD_STOP_BY_SAFEPOINT || (how == GCUFFD_STOP_BY_EITHER && waited_ns < LATE_NS);
}

/* Signals a thread unless it blocks, or is to find out by itself. A thread that is gone leaves the list. */
static void ask_locked(struct gu_thread *t, uint32_t e, uint64_t waited_ns)
{
	if (t == gu_self || gu_load_relaxed(&t->acked) == e || t->expected == e || claim(t) || has_safepoints(t, waited_ns))
		return;
	int err = gu_os->tgkill(gu_os->getpid(), t->tid, gu_stop_signal());
	if (err == -ESRCH)
		gu_threads_remove_locked(t);
	else if (!err) /* -EAGAIN: the queue of signals is full; asked again soon */
		t->expected = e;
}

static void ask_all_locked(uint32_t e, uint64_t waited_ns)
{
	for (struct gu_thread *t = gu_threads_first(), *next; t; t = next) {
		next = t->next;
		ask_locked(t, e, waited_ns);
	}
}

/* A thread that was signalled may have begun to block, or died, before the signal came. *threads: how many have stopped. */
static bool all_stopped_locked(uint32_t e, uint32_t *threads)
{
	*threads = 0;
	for (struct gu_thread *t = gu_threads_first(), *next; t; t = next) {
		next = t->next;
		if (t == gu_self)
			continue;
		if (gu_load_seqcst(&t->acked) == e || claim(t)) {
			++*threads;
			continue;
		}
		/* or it is a service thread, found before it had said so */
		if (!is_exempt(t->tid) && gu_os->tgkill(gu_os->getpid(), t->tid, 0) != -ESRCH)
			return false;
		gu_threads_remove_locked(t);
	}
	return true;
}

static bool known_locked(pid_t tid)
{
	for (struct gu_thread *t = gu_threads_first(); t; t = t->next)
		if (t->tid == tid)
			return true;
	return false;
}

struct dirent64_raw {
	uint64_t ino;
	int64_t off;
	uint16_t reclen;
	uint8_t type;
	char name[];
};

static pid_t parse_tid(const char *s)
{
	pid_t n = 0;
	for (; *s >= '0' && *s <= '9'; s++)
		n = n * 10 + (*s - '0');
	return n;
}

/* A file of /proc about one thread, as far as it fits; empty if there is none. */
static void read_task(pid_t tid, const char *name, char *text, size_t size)
{
	char path[64];
	snprintf(path, sizeof(path), "/proc/self/task/%d/%s", (int)tid, name);
	int fd = gu_os->open(path, O_RDONLY);
	long n = fd < 0 ? 0 : gu_os->read(fd, text, size - 1);
	if (fd >= 0)
		gu_os->close(fd);
	text[n > 0 ? n : 0] = 0;
}

#define KERNEL_WORKER 0x4010ul /* PF_USER_WORKER (6.4), PF_IO_WORKER: threads of io_uring and vhost, in the kernel for ever */

/* The first thread of a process stays as a zombie when it ends before the others. */
static bool never_runs(pid_t tid)
{
	char text[512];
	read_task(tid, "stat", text, sizeof(text));
	const char *at = strrchr(text, ')');
	if (!at || at[1] != ' ')
		return false;
	if (at[2] == 'Z' || at[2] == 'X')
		return true;
	for (int fields = 0; at && fields < 7; fields++) /* state, 5 numbers, flags */
		at = strchr(at + 1, ' ');
	return at && strtoul(at + 1, NULL, 10) & KERNEL_WORKER;
}

/* A thread that can be seen was expected before it was made. It may need a lock that a stopped thread holds. */
static bool wait_expected(uint64_t deadline)
{
	while (gu_load_seqcst(&expected)) {
		if (gu_os->clock_ns() >= deadline)
			return false;
		gu_os->sched_yield();
	}
	return true;
}

/* How many were new; -ETIMEDOUT. */
static int adopt_one_locked(pid_t tid, uint64_t deadline)
{
	if (known_locked(tid))
		return 0;
	if (!wait_expected(deadline))
		return -ETIMEDOUT;
	if (is_exempt(tid) || never_runs(tid))
		return 0;
	return gu_threads_adopt_locked(tid) ? 1 : -ENOMEM;
}

/* Adopts threads that nobody announced; how many were new, or -ETIMEDOUT. No malloc: raw getdents64. */
static int adopt_locked(uint64_t deadline)
{
	char buffer[4096] __attribute__((aligned(8)));
	int fd = gu_os->open("/proc/self/task", O_RDONLY | O_DIRECTORY), found = 0;
	pid_t self = gu_os->gettid();
	long n;
	if (fd < 0)
		return fd;
	while (found >= 0 && (n = syscall(SYS_getdents64, fd, buffer, sizeof(buffer))) > 0) {
		for (long at = 0; at < n && found >= 0;) {
			const struct dirent64_raw *d = (const void *)(buffer + at);
			pid_t tid = parse_tid(d->name);
			int new = tid && tid != self ? adopt_one_locked(tid, deadline) : 0;
			found = new < 0 ? new : found + new;
			at += d->reclen;
		}
	}
	if (n < 0 && found >= 0)
		found = -errno;
	gu_os->close(fd);
	return found;
}

struct task {
	char state;  /* as in /proc: R, S, D ...; 0 if the thread is gone */
	bool blocks; /* the stop signal */
};

static struct task read_status(pid_t tid)
{
	char text[2048];
	read_task(tid, "status", text, sizeof(text));
	const char *mask = strstr(text, "SigBlk:"), *state = strstr(text, "State:\t");
	return (struct task){state ? state[7] : 0, mask && (strtoull(mask + 7, NULL, 16) >> (gu_stop_signal() - 1) & 1)};
}

static bool missing(const struct gu_thread *t, uint32_t e)
{
	return t != gu_self && gu_load_seqcst(&t->acked) != e && gu_load_seqcst(&t->blocking) == GU_RUNNING;
}

/* In a section, or in no system call, as one that waits for a page: it will come to a safepoint by itself. */
static bool goes_on(const struct gu_thread *t)
{
	char text[64];
	if (gu_load_relaxed(&t->section))
		return true;
	read_task(t->tid, "syscall", text, sizeof(text));
	return text[0] == '-' || text[0] == 'r'; /* -1, or running by now */
}

static bool is_signalled(const struct gu_thread *t) { return gu_load_relaxed(&t->stopped_by) != GCUFFD_STOP_BY_SAFEPOINT; }

/* It sleeps, and blocks the stop signal if that is what it is to hear. (One that runs may be in the handler, which blocks it too.) */
static bool is_deaf(const struct gu_thread *t)
{
	struct task task = read_status(t->tid);
	return task.state == 'S' && (is_signalled(t) ? task.blocks : !goes_on(t));
}

/* Asked twice: it may have parked, and sleep in the handler, since the first time. */
static bool somebody_blocks_locked(uint32_t e)
{
	for (struct gu_thread *t = gu_threads_first(); t; t = t->next)
		if (missing(t, e) && is_deaf(t) && missing(t, e))
			return true;
	return false;
}

/* Into who: the thread that a stop is given up for, and what keeps it, as far as can be told. */
static void tell_missing_locked(uint32_t e, char *who, size_t size)
{
	const struct gu_thread *t = gu_threads_first();
	while (t && !missing(t, e))
		t = t->next;
	if (!t) {
		snprintf(who, size, gu_load_seqcst(&expected) ? "a thread that is being made" : "a thread that has stopped since");
		return;
	}
	char name[20], call[24];
	struct task task = read_status(t->tid);
	read_task(t->tid, "comm", name, sizeof(name));
	read_task(t->tid, "syscall", call, sizeof(call));
	name[strcspn(name, "\n")] = 0;
	call[strcspn(call, " \n")] = 0;
	bool in_call = call[0] >= '0' && call[0] <= '9';
	snprintf(who, size, "thread %d (%s), %s%s, %s", (int)t->tid, name, in_call ? "in system call " : "in no system call", in_call ? call : "",
	         !is_signalled(t) ? "stops at safepoints only" : task.blocks ? "blocks the stop signal" : "got no processor or sleeps in the kernel");
}

/* A thread may have lost its signal: a program that executes another, and fails to, ignores it meanwhile. */
static void ask_again_locked(void)
{
	for (struct gu_thread *t = gu_threads_first(); t; t = t->next)
		t->expected = 0;
}

#define WAIT_NS 2000000u

static bool wait_stopped_locked(uint32_t e, uint64_t begin, uint64_t deadline, uint32_t *threads)
{
	uint64_t now = gu_os->clock_ns();
	for (int spin = 0;; spin++) {
		if (spin >= 32 && gu_is_pow2((uint64_t)spin))
			ask_again_locked();
		uint32_t seen = gu_load_seqcst(&acks);
		ask_all_locked(e, now - begin);
		if (all_stopped_locked(e, threads))
			return true;
		now = gu_os->clock_ns();
		if (now >= deadline || (spin > 30 && spin % 8 == 0 && somebody_blocks_locked(e)))
			return false;
		if (spin < 20)
			gu_os->sched_yield();
		else
			gu_os->futex_wait(&acks, seen, (int64_t)gu_min(deadline - now, now - begin < LATE_NS ? LATE_NS : WAIT_NS));
	}
}

/* s, if anybody wants to know: how many have stopped; 0 if it is given up, and missing says why. */
static int stop(bool everybody, uint64_t timeout_ns, struct gu_heap_stop *s)
{
	uint64_t deadline = gu_os->clock_ns() + timeout_ns;
	bool ok;
	uint32_t threads = 0;
	int adopted = 0;
	gu_lock(&world_lock);
	gu_threads_lock();
	uint64_t begin = gu_os->clock_ns();
	struct gu_thread *me = gu_self ? NULL : find_self(); /* left by a stop that gave up on us: never signal ourselves */
	if (me)
		gu_threads_remove_locked(me);
	uint32_t e = gu_add_seqcst(&epoch, 1) + 1;
	GU_PROBE2(stop__asked, e, everybody);
	gu_store_release(&gcuffd_stop_asked, 1);
	do {
		ok = wait_stopped_locked(e, begin, deadline, &threads);
		adopted = ok && everybody ? adopt_locked(deadline) : 0;
	} while (adopted > 0);
	int err = ok ? adopted : -ETIMEDOUT;
	if (err)
		threads = 0;
	GU_PROBE3(stop__stopped, e, threads, err);
	if (s)
		s->threads = threads;
	if (s && err == -ETIMEDOUT)
		tell_missing_locked(e, s->missing, sizeof(s->missing));
	if (err)
		gu_world_resume();
	return err;
}

int gu_world_stop(bool everybody, uint64_t timeout_ns) { return stop(everybody, timeout_ns, NULL); }

/*
 * Who wakes others may wait for a processor behind them: the list is free by then, and the clock was read. The next stop begins when all are awake, for
 * who still sleeps looks like one that will not answer.
 */
uint64_t gu_world_resume(void)
{
	for (struct gu_thread *t = gu_threads_first(); t; t = t->next) {
		uint32_t was = GU_CLAIMED;
		(void)gu_cas_seqcst(&t->blocking, &was, GU_BLOCKING);
	}
	gu_store_relaxed(&gcuffd_stop_asked, 0);
	uint32_t e = gu_add_seqcst(&epoch, 1);
	uint64_t now = gu_os->clock_ns();
	GU_PROBE1(stop__resumed, e);
	gu_threads_unlock();
	gu_os->futex_wake(&epoch, INT32_MAX);
	gu_unlock(&world_lock);
	return now;
}

static void put_stop(struct gcuffd_heap *h, uint64_t end_ns, int err)
{
	struct gcuffd_event event = {
		.kind = GCUFFD_EVENT_STOP, .begin_ns = h->stop.asked_ns, .stopped_ns = err ? 0 : h->stop.stopped_ns, .end_ns = end_ns,
		.threads = h->stop.threads, .error = err,
	};
	gu_event_put(h, &event);
}

static uint64_t timeout_of(const struct gcuffd_heap *h) { return h->options.stop_timeout_ms * 1000000ull; }

int gu_world_stop_for(struct gcuffd_heap *h)
{
	struct gu_heap_stop *s = &h->stop;
	s->asked_ns = gu_os->clock_ns();
	int err = stop(gu_heap_is(h, GCUFFD_PROCESS_ROOTS), timeout_of(h), s);
	s->stopped_ns = gu_os->clock_ns();
	s->under_way = !err;
	if (err)
		put_stop(h, s->stopped_ns, err);
	return err;
}

uint64_t gu_world_resume_for(struct gcuffd_heap *h)
{
	uint64_t now = gu_world_resume();
	h->stop.under_way = false;
	put_stop(h, now, 0);
	return now - h->stop.asked_ns;
}

static bool needs_stop(void) { return !has_membarrier || gu_is_without(GU_WITHOUT_membarrier); }

/* What mutators do in sections that they begin after this, they do knowing what was stored before it. */
static int barrier(uint64_t timeout_ns, struct gu_heap_stop *s)
{
	if (!needs_stop() && !syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED, 0, 0))
		return 0;
	/* No other fence reaches a thread that runs: a stop does. */
	int err = stop(false, timeout_ns, s);
	if (!err)
		gu_world_resume();
	return err;
}

static void wait_sections_locked(void)
{
	for (struct gu_thread *t = gu_threads_first(), *next; t; t = next) {
		next = t->next;
		for (int spin = 0; t != gu_self && gu_load_acquire(&t->section); spin++) {
			if (spin % 4096 == 4095 && gu_os->tgkill(gu_os->getpid(), t->tid, 0) == -ESRCH)
				break;
			if (spin % 256 < 255)
				gu_spin_hint();
			else
				gu_os->sched_yield();
		}
	}
}

static int quiesce(uint64_t timeout_ns, struct gu_heap_stop *s)
{
	int err = barrier(timeout_ns, s);
	if (err)
		return err;
	gu_threads_lock();
	wait_sections_locked();
	gu_threads_unlock();
	return 0;
}

int gu_world_quiesce(uint64_t timeout_ns) { return quiesce(timeout_ns, NULL); }
int gu_world_quiesce_for(struct gcuffd_heap *h) { return quiesce(timeout_of(h), &h->stop); }

/* ---- the gate ---- */

/* Sections inside of sections pass. */
void gu_section_gate(struct gu_thread *t)
{
	while (t->section == 1 && !passes && gu_load_seqcst(&gu_gate)) {
		gu_section_exit(t);
		gu_os->futex_wait(&gu_gate, 1, -1);
		gu_store_relaxed(&t->section, t->section + 1);
		gu_fence_seqcst(); /* pairs with wait_sections_locked() */
	}
}

void gu_entered_gate(void)
{
	gu_add_seqcst(&gu_outside, 1);
	while (!passes && gu_load_seqcst(&gu_gate)) {
		gu_sub_seqcst(&gu_outside, 1);
		gu_os->futex_wait(&gu_gate, 1, -1);
		gu_add_seqcst(&gu_outside, 1);
	}
}

#define SHUT_NS 10000000000ull

/* Without membarrier(2), in a stop: nobody waits at the gate during one then, where a thread with safepoints would not be found parked. */
static void shut_gate(void)
{
	if (needs_stop()) {
		while (gu_world_stop(false, SHUT_NS))
			;
		gu_store_seqcst(&gu_gate, 1);
		gu_world_resume();
		return;
	}
	gu_store_seqcst(&gu_gate, 1);
	while (barrier(SHUT_NS, NULL))
		;
}

#define STARTING_NS 1000000000ull

/*
 * A service thread that is only just being made is let get as far as our code: what the runtime of a compiler does before that, with locks that
 * it does not put right in a child, is done then. It needs nothing of what is held here; a C library for which that is not true has a second.
 */
void gu_world_close(void)
{
	passes = true;
	shut_gate();
	gu_threads_lock();
	wait_sections_locked();
	while (gu_load_seqcst(&gu_outside) > (gu_entered ? 1 : 0))
		gu_os->sched_yield();
	(void)wait_expected(gu_os->clock_ns() + STARTING_NS);
}

void gu_world_open(void)
{
	gu_store_seqcst(&gu_gate, 0);
	gu_os->futex_wake(&gu_gate, INT32_MAX);
	gu_threads_unlock();
	passes = false;
}

bool gu_world_is_closed_by_caller(void) { return passes; }

void gu_stop_forked(void)
{
	gu_lock_init(&world_lock, GU_RANK_WORLD);
	gu_store_seqcst(&epoch, (gu_load_relaxed(&epoch) + 1) & ~1u); /* never reused: acked would lie */
	for (size_t i = 0; i < GU_ARRAY_LEN(exempt); i++)
		gu_store_relaxed(&exempt[i], 0);
	gu_store_relaxed(&expected, 0);
	gu_store_relaxed(&gu_outside, gu_entered ? 1 : 0);
	gu_store_relaxed(&gu_gate, 0);
	gu_store_relaxed(&gcuffd_stop_asked, 0);
	passes = false;
}
