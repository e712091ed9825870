/* SPDX-License-Identifier: MIT */
/*
 * lazy.c - memory that is filled, or noticed, on first touch: a mapping or a range, a userfaultfd, and threads that run
 * a resolver. Each thread has a descriptor table of its own, with the userfaultfd and what the callback needs in it: the program
 * may close all it knows, and no pipe is kept open by a thread that it does not know. The caller's userfaultfd is closed when they all have theirs.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/atomic.h"
#include "base/check.h"
#include "base/meta.h"
#include "gc/resolver.h"
#include "gc/stop.h"
#include "gcuffd.h"
#include "sys/caps.h"
#include "sys/os.h"
#include "sys/uffd.h"

#define THREADS 8u
#define FDS 16u
#define STACK ((size_t)128 << 10)
#define AROUND ((size_t)16 << 10)
#define AROUND_MOST ((size_t)1 << 20)
#define SPIN_US 50u
#define HUGE_PAGE ((size_t)2 << 20)

/* What the two sorts have in common. */
struct first_touch {
	struct gu_resolver resolver;
	struct gcuffd_lazy_options options; /* as resolved; constant */
	int fds[FDS];       /* constant */
	uintptr_t start;
	size_t len;
	pid_t pid;          /* that has the threads */
	unsigned nthreads;
	uint32_t ready;     /* atomic; futex; threads that have their descriptors */
	pthread_t threads[THREADS];
	bool shares;        /* atomic; a thread could not have a table of its own */
};

struct gcuffd_lazy {
	struct first_touch base;
	gcuffd_fill_fn *fill;
	void *data;
	uint64_t filled, poisoned; /* atomic; pages */
};

struct gcuffd_touch {
	struct first_touch base;
	gcuffd_touch_fn *touch;
	void *data;
};

/* ---- options ---- */

static int resolve_options(struct gcuffd_lazy_options *o, const struct gcuffd_lazy_options *in)
{
	memset(o, 0, sizeof(*o));
	if (in && in->size < sizeof(in->size))
		return -EINVAL;
	if (in)
		memcpy(o, in, gu_min(in->size, sizeof(*o)));
	o->threads = o->threads ? o->threads : 1;
	o->around = o->around ? o->around : AROUND;
	if (!o->spin_us)
		o->spin_us = sysconf(_SC_NPROCESSORS_ONLN) > 1 ? SPIN_US : 1;
	if (o->flags & GCUFFD_LAZY_SIGBUS)
		o->around = GU_PAGE;
	bool flags = !(o->flags & ~(GCUFFD_LAZY_SIGBUS | GCUFFD_LAZY_USER_FAULTS));
	bool around = gu_is_pow2(o->around) && o->around >= GU_PAGE && o->around <= AROUND_MOST;
	bool fds = !o->nfds || (o->fds && o->nfds <= FDS);
	return flags && around && fds && o->threads <= THREADS && o->spin_us <= 1000000 && (uintptr_t)o->at % GU_PAGE == 0 ? 0 : -EINVAL;
}

static void set_options(struct first_touch *f, const struct gcuffd_lazy_options *o)
{
	f->options = *o;
	for (unsigned i = 0; i < o->nfds; i++)
		f->fds[i] = o->fds[i];
	f->options.fds = f->fds;
	f->resolver.uffd = -1;
	f->pid = gu_os->getpid();
}

/* ---- threads ---- */

static void close_between(int from, int to)
{
	if (from < to && syscall(SYS_close_range, (unsigned)from, (unsigned)to - 1, 0)) /* before 5.9 */
		for (int fd = from; fd < to && fd < 65536; fd++)
			gu_os->close(fd);
}

/* The smallest of those to be kept that is not below from; INT_MAX if there is none. */
static int next_kept(const struct first_touch *f, int from)
{
	int next = f->resolver.uffd >= from ? f->resolver.uffd : INT_MAX;
	for (unsigned i = 0; i < f->options.nfds; i++)
		if (f->fds[i] >= from && f->fds[i] < next)
			next = f->fds[i];
	return next;
}

/* .inv.resolver.files */
static void own_files(struct first_touch *f)
{
	if (gu_os->unshare(CLONE_FILES)) {
		gu_store_seqcst(&f->shares, true); /* begin() gives up: the program could close the descriptor */
		return;
	}
	for (int from = 0, kept; from < INT_MAX; from = kept == INT_MAX ? INT_MAX : kept + 1) {
		kept = next_kept(f, from);
		close_between(from, kept);
	}
}

static void *thread_main(void *arg)
{
	struct first_touch *f = arg;
	gu_stop_exempt(true);
	char *buffer = gu_meta_map(f->options.around);
	own_files(f);
	gu_add_seqcst(&f->ready, 1);
	gu_os->futex_wake(&f->ready, 1);
	gu_resolver_run(&f->resolver, buffer);
	gu_meta_unmap(buffer, f->options.around);
	gu_stop_exempt(false);
	return NULL;
}

static int start_thread(struct first_touch *f)
{
	pthread_attr_t attr;
	sigset_t all, old;
	sigfillset(&all);
	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, STACK);
	gu_stop_expect();
	syscall(SYS_rt_sigprocmask, SIG_SETMASK, &all, &old, 8);
	int err = pthread_create(&f->threads[f->nthreads], &attr, thread_main, f);
	syscall(SYS_rt_sigprocmask, SIG_SETMASK, &old, NULL, 8);
	pthread_attr_destroy(&attr);
	if (err)
		gu_stop_unexpect();
	else
		f->nthreads++;
	return -err;
}

static int start_threads(struct first_touch *f)
{
	int err = 0;
	for (unsigned i = 0; i < f->options.threads && !err; i++)
		err = start_thread(f);
	for (uint32_t ready; (ready = gu_load_acquire(&f->ready)) < f->nthreads;)
		gu_os->futex_wait(&f->ready, ready, -1);
	return f->nthreads ? 0 : err; /* fewer than asked for will do */
}

/* In a forked child there are none. */
static void end_threads(struct first_touch *f)
{
	if (f->pid != gu_os->getpid())
		return;
	for (unsigned i = 0; i < f->nthreads; i++)
		gu_resolver_ask(&f->resolver, NULL, 0, 0);
	for (unsigned i = 0; i < f->nthreads; i++)
		pthread_join(f->threads[i], NULL);
}

/* ---- making and ending ---- */

static int open_descriptor(struct first_touch *f, uint64_t features)
{
	bool user_mode_only;
	int fd = gu_uffd_open(features, &user_mode_only);
	if (fd == -EINVAL || fd == -ENOSYS)
		return -EOPNOTSUPP;
	if (fd >= 0 && user_mode_only && !(f->options.flags & (GCUFFD_LAZY_USER_FAULTS | GCUFFD_LAZY_SIGBUS))) {
		gu_os->close(fd);
		return -EPERM;
	}
	f->resolver.uffd = fd;
	return fd < 0 ? fd : 0;
}

static int make_bell(struct first_touch *f)
{
	f->resolver.bell = (uintptr_t)gu_meta_map(GU_PAGE);
	return f->resolver.bell ? gu_uffd_register(f->resolver.uffd, f->resolver.bell, GU_PAGE, GU_UFFD_REGISTER_MISSING, NULL) : -ENOMEM;
}

/* The descriptor is the threads' alone from here on. */
static int begin(struct first_touch *f, void (*resolve)(void *, const struct gu_fault *, char *), void *data)
{
	f->resolver.spin_ns = f->options.spin_us * 1000;
	f->resolver.resolve = resolve;
	f->resolver.data = data;
	int err = make_bell(f);
	if (!err && !(f->options.flags & GCUFFD_LAZY_SIGBUS)) {
		err = start_threads(f);
		if (!err && gu_load_seqcst(&f->shares))
			err = -EOPNOTSUPP;
		else if (!err)
			gu_os->close(f->resolver.uffd);
	}
	return err;
}

static void finish(struct first_touch *f)
{
	if (f->nthreads)
		end_threads(f);
	if (f->resolver.uffd >= 0 && (!f->nthreads || gu_load_seqcst(&f->shares)))
		gu_os->close(f->resolver.uffd);
	gu_meta_unmap((void *)f->resolver.bell, GU_PAGE);
}

/* ---- filling ---- */

/* Pages that are there already are left alone. */
static int place(struct gcuffd_lazy *l, uintptr_t start, const char *from, size_t len)
{
	int err = 0;
	for (size_t at = 0; at < len && !err;) {
		size_t done;
		err = gu_uffd_copy(l->base.resolver.uffd, start + at, from + at, len - at, 0, &done);
		gu_add_relaxed(&l->filled, done / GU_PAGE);
		at += done;
		if (err == -EEXIST) {
			at += GU_PAGE;
			err = 0;
		}
	}
	return err;
}

static int fill_range(struct gcuffd_lazy *l, uintptr_t start, size_t len, char *buffer)
{
	int err = l->fill(l->data, start - l->base.start, len, buffer);
	return err ? err : place(l, start, buffer, len);
}

static void poison(struct gcuffd_lazy *l, uintptr_t page)
{
	if (!gu_uffd_poison(l->base.resolver.uffd, page, GU_PAGE, 0, NULL))
		gu_add_relaxed(&l->poisoned, 1);
}

/* Whoever came late finds the page there, and is only woken. */
static void fill_around(void *data, const struct gu_fault *fault, char *buffer)
{
	struct gcuffd_lazy *l = data;
	uintptr_t start = gu_max(gu_align_down(fault->page, l->base.options.around), l->base.start);
	uintptr_t end = gu_min(gu_align_down(fault->page, l->base.options.around) + l->base.options.around, l->base.start + l->base.len);
	if (!buffer || fill_range(l, start, end - start, buffer))
		if (!buffer || fill_range(l, fault->page, GU_PAGE, buffer))
			poison(l, fault->page);
	(void)gu_uffd_wake(l->base.resolver.uffd, fault->page, GU_PAGE);
}

static int map_at(struct gcuffd_lazy *l)
{
	void *at = l->base.options.at, *p;
	/* PROT_NONE, and not locked: nobody fills it with zeros before it is registered */
	int err = gu_os->mmap(at, l->base.len, PROT_NONE, MAP_NORESERVE | (at ? MAP_FIXED_NOREPLACE : 0), &p);
	if (!err && at && p != at) { /* a kernel that does not know the flag */
		gu_os->munmap(p, l->base.len);
		err = -EEXIST;
	}
	if (!err) {
		l->base.start = (uintptr_t)p;
		munlock(p, l->base.len);
	}
	return err;
}

/* A cycle of a heap with process roots may have registered what was mapped there before. */
static int register_soon(const struct first_touch *f)
{
	int err = -EBUSY;
	for (int tries = 0; tries < 100 && err == -EBUSY; tries++) {
		err = gu_uffd_register(f->resolver.uffd, f->start, f->len, GU_UFFD_REGISTER_MISSING, NULL);
		if (err == -EBUSY)
			gu_os->sched_yield();
	}
	return err;
}

static int make_lazy(struct gcuffd_lazy *l)
{
	uint64_t features = GU_UFFD_FEATURE_POISON | (l->base.options.flags & GCUFFD_LAZY_SIGBUS ? GU_UFFD_FEATURE_SIGBUS : 0);
	int err = open_descriptor(&l->base, features);
	if (!err)
		err = map_at(l);
	if (!err)
		err = gu_os->madvise((void *)l->base.start, l->base.len, MADV_DONTFORK); /* a child would read zeros: .inv.lazy.child */
	if (!err)
		err = register_soon(&l->base);
	if (!err)
		err = gu_os->mprotect((void *)l->base.start, l->base.len, PROT_READ | PROT_WRITE);
	return err ? err : begin(&l->base, fill_around, l);
}

static void free_lazy(struct gcuffd_lazy *l)
{
	finish(&l->base);
	if (l->base.start && l->base.pid == gu_os->getpid())
		gu_os->munmap((void *)l->base.start, l->base.len);
	gu_meta_free(l, sizeof(*l));
}

int gcuffd_lazy_map(size_t len, gcuffd_fill_fn *fill, void *data, const struct gcuffd_lazy_options *options,
		    struct gcuffd_lazy **out, void **start)
{
	struct gcuffd_lazy_options o;
	int err = resolve_options(&o, options);
	if (err || !fill || !len || len > SIZE_MAX - GU_PAGE)
		return -EINVAL;
	struct gcuffd_lazy *l = gu_meta_alloc(sizeof(*l));
	if (!l)
		return -ENOMEM;
	set_options(&l->base, &o);
	l->base.len = gu_align_up(len, GU_PAGE);
	l->fill = fill;
	l->data = data;
	err = make_lazy(l);
	if (err) {
		free_lazy(l);
		return err;
	}
	*out = l;
	*start = (void *)l->base.start;
	return 0;
}

int gcuffd_lazy_unmap(struct gcuffd_lazy *l)
{
	free_lazy(l);
	return 0;
}

int gcuffd_lazy_resolve(struct gcuffd_lazy *l, void *address)
{
	char buffer[GU_PAGE] __attribute__((aligned(8)));
	if ((uintptr_t)address - l->base.start >= l->base.len)
		return -EFAULT;
	if (!(l->base.options.flags & GCUFFD_LAZY_SIGBUS))
		return -EINVAL;
	gu_add_relaxed(&l->base.resolver.counts.faults, 1);
	return fill_range(l, gu_align_down((uintptr_t)address, GU_PAGE), GU_PAGE, buffer);
}

int gcuffd_lazy_stats(struct gcuffd_lazy *l, struct gcuffd_lazy_stats *out)
{
	const struct gu_resolver_counts *c = &l->base.resolver.counts;
	struct gcuffd_lazy_stats s = {
		.size = out->size,
		.faults = gu_load_relaxed(&c->faults),
		.reads = gu_load_relaxed(&c->reads),
		.sleeps = gu_load_relaxed(&c->sleeps),
		.filled = gu_load_relaxed(&l->filled),
		.poisoned = gu_load_relaxed(&l->poisoned),
	};
	if (out->size < sizeof(out->size))
		return -EINVAL;
	memcpy(out, &s, gu_min(out->size, sizeof(s)));
	return 0;
}

/* ---- noticing ---- */

static int protect(const struct first_touch *f, uintptr_t page, bool on)
{
	int err = gu_uffd_rwprotect(f->resolver.uffd, page, GU_PAGE, on);
	if (err == -EINVAL) /* hugetlb */
		err = gu_uffd_rwprotect(f->resolver.uffd, gu_align_down(page, HUGE_PAGE), HUGE_PAGE, on);
	return err;
}

/* Of several threads that touched one page the later ones find it open, and are only woken. */
static void notice(void *data, const struct gu_fault *fault, char *buffer)
{
	struct gcuffd_touch *t = data;
	(void)buffer;
	t->touch(t->data, (void *)fault->page, fault->write, (int)fault->tid);
	if (protect(&t->base, fault->page, false))
		(void)gu_uffd_wake(t->base.resolver.uffd, fault->page, GU_PAGE);
}

static int make_touch(struct gcuffd_touch *t)
{
	int err = open_descriptor(&t->base, GU_UFFD_FEATURE_RWP | GU_UFFD_FEATURE_THREAD_ID);
	if (!err)
		err = gu_uffd_register(t->base.resolver.uffd, t->base.start, t->base.len, GU_UFFD_REGISTER_RWP, NULL);
	if (!err)
		err = begin(&t->base, notice, t);
	return err ? err : gcuffd_touch_arm(t, (void *)t->base.start, t->base.len);
}

static int do_arm(const struct gu_resolver_range *r)
{
	return gu_uffd_rwprotect(r->uffd, r->start, r->len, true);
}

/* Open first: un-registering wakes nobody here. */
static int do_end(const struct gu_resolver_range *r)
{
	(void)gu_uffd_rwprotect(r->uffd, r->start, r->len, false);
	return gu_uffd_unregister(r->uffd, r->start, r->len);
}

int gcuffd_touch_arm(struct gcuffd_touch *t, void *start, size_t len)
{
	size_t offset = (uintptr_t)start - t->base.start;
	if (offset > t->base.len || len > t->base.len - offset || (uintptr_t)start % GU_PAGE || len % GU_PAGE || !len)
		return -EINVAL;
	return t->base.pid == gu_os->getpid() ? gu_resolver_ask(&t->base.resolver, do_arm, (uintptr_t)start, len) : -ESRCH;
}

static void free_touch(struct gcuffd_touch *t)
{
	if (t->base.nthreads && t->base.pid == gu_os->getpid())
		(void)gu_resolver_ask(&t->base.resolver, do_end, t->base.start, t->base.len);
	finish(&t->base);
	gu_meta_free(t, sizeof(*t));
}

int gcuffd_touch_begin(void *start, size_t len, gcuffd_touch_fn *touch, void *data, const struct gcuffd_lazy_options *options,
		       struct gcuffd_touch **out)
{
	struct gcuffd_lazy_options o;
	int err = resolve_options(&o, options);
	if (err || !touch || !start || !len || ((uintptr_t)start | len) % GU_PAGE || o.at || o.flags & GCUFFD_LAZY_SIGBUS)
		return -EINVAL;
	struct gcuffd_touch *t = gu_meta_alloc(sizeof(*t));
	if (!t)
		return -ENOMEM;
	set_options(&t->base, &o);
	t->base.start = (uintptr_t)start;
	t->base.len = len;
	t->touch = touch;
	t->data = data;
	err = make_touch(t);
	if (err)
		free_touch(t);
	else
		*out = t;
	return err;
}

int gcuffd_touch_end(struct gcuffd_touch *t)
{
	free_touch(t);
	return 0;
}
