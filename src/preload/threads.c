/* SPDX-License-Identifier: MIT */
/*
 * threads.c - threads that the program starts attach before its own code runs, and are detached by the
 * library's key when they end. The library's own threads are only marked as such, so that what the C
 * library allocates in them does not come from the heap they serve.
 */
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <threads.h>
#include <unistd.h>

#include "preload/preload.h"

extern int __register_atfork(void (*prepare)(void), void (*parent)(void), void (*child)(void), void *dso);

GU_NEXT(pthread_create)
GU_NEXT(thrd_create)
GU_NEXT(__register_atfork)

struct start {
	void *(*run)(void *arg);
	thrd_start_t run_c11;
	void *arg;
};

static pid_t served; /* atomic; the process that has threads of the library */

bool gu_preload_has_service(void) { return __atomic_load_n(&served, __ATOMIC_RELAXED) == getpid(); }

void gu_preload_threads_init(void)
{
	real_pthread_create();
	real_thrd_create();
	real___register_atfork();
}

bool gu_preload_attach(void)
{
	gu_preload_enter();
	int err = gcuffd_thread_attach();
	gu_preload_leave();
	return !err;
}

static struct start begin(void *data)
{
	struct start s = *(struct start *)data;
	free(data);
	(void)gu_preload_attach();
	return s;
}

static void *run_program(void *data)
{
	struct start s = begin(data);
	return s.run(s.arg);
}

static int run_program_c11(void *data)
{
	struct start s = begin(data);
	return s.run_c11(s.arg);
}

static void *run_service(void *data)
{
	struct start s = *(struct start *)data;
	gu_preload_enter(); /* for ever */
	free(data);
	return s.run(s.arg);
}

/* The piece is on our stack, and then in the new thread's descriptor: both are roots. */
static struct start *new_start(struct start s)
{
	struct start *p = malloc(sizeof(*p));
	if (p)
		*p = s;
	return p;
}

/* From inside: the library's stacks are no roots, so what the C library allocates for its thread is not of the heap. */
static int create_service(pthread_t *out, const pthread_attr_t *attr, struct start s)
{
	int err = EAGAIN;
	gu_preload_enter();
	struct start *p = new_start(s);
	if (p) {
		__atomic_store_n(&served, getpid(), __ATOMIC_RELAXED);
		err = real_pthread_create()(out, attr, run_service, p);
	}
	gu_preload_leave();
	return err;
}

GU_PRELOAD_EXPORT int pthread_create(pthread_t *out, const pthread_attr_t *attr, void *(*run)(void *arg), void *arg)
{
	if (gu_preload_own_code((const void *)run))
		return create_service(out, attr, (struct start){run, NULL, arg});
	struct start *p = new_start((struct start){run, NULL, arg});
	if (!p)
		return EAGAIN;
	int err = real_pthread_create()(out, attr, run_program, p);
	if (err)
		free(p);
	return err;
}

GU_PRELOAD_EXPORT int thrd_create(thrd_t *out, thrd_start_t run, void *arg)
{
	struct start *p = new_start((struct start){NULL, run, arg});
	if (!p)
		return thrd_nomem;
	int err = real_thrd_create()(out, run_program_c11, p);
	if (err != thrd_success)
		free(p);
	return err;
}

/*
 * Fork handlers allocate. The heap's are registered before all others, so that the heap is the last thing to be
 * made ready for a fork and the first to work again. Its jemalloc registers some while it begins: no heap is made in the middle of that.
 */
GU_PRELOAD_EXPORT int __register_atfork(void (*prepare)(void), void (*parent)(void), void (*child)(void), void *dso)
{
	bool own = gu_preload_own_code((const void *)prepare);
	if (own)
		gu_preload_enter();
	else
		gu_preload_source();
	int err = real___register_atfork()(prepare, parent, child, dso);
	if (own)
		gu_preload_leave();
	return err;
}
