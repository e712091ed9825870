/* SPDX-License-Identifier: MIT */
/* firsttouch.c - see firsttouch.h. */
#define _GNU_SOURCE
#include "api/firsttouch.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "base/atomic.h"
#include "base/check.h"
#include "base/meta.h"
#include "base/without.h"
#include "gc/stop.h"
#include "sys/files.h"
#include "sys/os.h"
#include "sys/uffd.h"

#define STACK ((size_t)128 << 10)
#define AROUND ((size_t)16 << 10)
#define AROUND_MOST ((size_t)1 << 20)
#define SPIN_US 50u

/* ---- options ---- */

int gu_first_options(struct gcuffd_lazy_options *o, const struct gcuffd_lazy_options *in)
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
	gu_without_init();
	if (o->flags & GCUFFD_LAZY_SIGBUS || gu_is_without(GU_WITHOUT_around))
		o->around = GU_PAGE;
	if (gu_is_without(GU_WITHOUT_spin))
		o->spin_us = 1;
	bool flags = !(o->flags & ~(GCUFFD_LAZY_SIGBUS | GCUFFD_LAZY_USER_FAULTS | GCUFFD_LAZY_WATCHABLE));
	bool around = gu_is_pow2(o->around) && o->around >= GU_PAGE && o->around <= AROUND_MOST;
	bool fds = !o->nfds || (o->fds && o->nfds <= GU_FIRST_FDS);
	bool numbers = o->threads <= GU_FIRST_THREADS && o->spin_us <= 1000000 && (uintptr_t)o->at % GU_PAGE == 0;
	return flags && around && fds && numbers ? 0 : -EINVAL;
}

void gu_first_set(struct gu_first *f, const struct gcuffd_lazy_options *o)
{
	f->options = *o;
	for (unsigned i = 0; i < o->nfds; i++)
		f->fds[i] = o->fds[i];
	f->options.fds = f->fds;
	f->resolver.uffd = f->pagemap = -1;
	f->pid = gu_os->getpid();
}

/* ---- threads ---- */

/* .inv.resolver.files */
static void own_files(struct gu_first *f)
{
	int keep[GU_FIRST_FDS + 2] = {f->resolver.uffd, f->pagemap};
	memcpy(keep + 2, f->fds, f->options.nfds * sizeof(keep[0]));
	if (gu_files_own(keep, f->options.nfds + 2))
		gu_store_seqcst(&f->shares, true); /* gu_first_begin() gives up: the program could close the descriptor */
}

static void *thread_main(void *arg)
{
	struct gu_first_thread *self = arg;
	struct gu_first *f = self->base;
	gu_stop_exempt(true);
	own_files(f);
	gu_add_seqcst(&f->ready, 1);
	gu_os->futex_wake(&f->ready, 1);
	gu_resolver_run(&f->resolver, self->buffer);
	gu_stop_exempt(false);
	return NULL;
}

static void free_buffer(const struct gu_first *f, struct gu_first_thread *t)
{
	if (t->buffer)
		gu_meta_unmap(t->buffer, f->buffer);
}

static int make_buffer(struct gu_first *f, struct gu_first_thread *t)
{
	t->base = f;
	t->buffer = f->buffer ? gu_meta_map(f->buffer) : NULL;
	return f->buffer && !t->buffer ? -ENOMEM : 0;
}

static int start_thread(struct gu_first *f)
{
	struct gu_first_thread *t = &f->threads[f->nthreads];
	pthread_attr_t attr;
	int err = make_buffer(f, t);
	if (err)
		return err;
	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, STACK);
	err = gu_stop_start(&t->id, &attr, thread_main, t);
	pthread_attr_destroy(&attr);
	if (err)
		free_buffer(f, t);
	else
		f->nthreads++;
	return err;
}

static int start_threads(struct gu_first *f)
{
	int err = 0;
	for (unsigned i = 0; i < f->options.threads && !err; i++)
		err = start_thread(f);
	for (uint32_t ready; (ready = gu_load_acquire(&f->ready)) < f->nthreads;)
		gu_os->futex_wait(&f->ready, ready, -1);
	return f->nthreads ? 0 : err; /* fewer than asked for will do */
}

/* In a forked child there are none. */
static void end_threads(struct gu_first *f)
{
	if (f->pid != gu_os->getpid())
		return;
	for (unsigned i = 0; i < f->nthreads; i++)
		gu_resolver_ask(&f->resolver, NULL, 0, 0);
	for (unsigned i = 0; i < f->nthreads; i++) {
		pthread_join(f->threads[i].id, NULL);
		free_buffer(f, &f->threads[i]);
	}
}

/* ---- making and ending ---- */

int gu_first_open(struct gu_first *f, uint64_t features)
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

static int make_bell(struct gu_first *f)
{
	uintptr_t bell = f->resolver.bell = (uintptr_t)gu_meta_map(GU_PAGE);
	return bell ? gu_uffd_register(f->resolver.uffd, bell, GU_PAGE, GU_UFFD_REGISTER_MISSING, NULL) : -ENOMEM;
}

static void close_files(const struct gu_first *f)
{
	if (f->resolver.uffd >= 0)
		gu_os->close(f->resolver.uffd);
	if (f->pagemap >= 0)
		gu_os->close(f->pagemap);
}

int gu_first_begin(struct gu_first *f, void (*resolve)(void *, const struct gu_fault *, char *), void *data)
{
	f->resolver.spin_ns = f->resolver.spin_now = f->options.spin_us * 1000;
	f->resolver.several = f->options.threads > 1;
	f->resolver.resolve = resolve;
	f->resolver.data = data;
	int err = make_bell(f);
	if (!err && !(f->options.flags & GCUFFD_LAZY_SIGBUS)) {
		err = start_threads(f);
		if (!err && gu_load_seqcst(&f->shares))
			err = -EOPNOTSUPP;
		else if (!err)
			close_files(f);
	}
	return err;
}

void gu_first_finish(struct gu_first *f)
{
	if (f->nthreads)
		end_threads(f);
	if (!f->nthreads || gu_load_seqcst(&f->shares))
		close_files(f);
	gu_meta_unmap((void *)f->resolver.bell, GU_PAGE);
}
