/* SPDX-License-Identifier: MIT */
/* resolver.c - see resolver.h. */
#include "gc/resolver.h"

#include <sys/mman.h>

#include "base/atomic.h"
#include "base/check.h"
#include "sys/os.h"
#include "sys/uffd.h"

#define BATCH 32

/* ---- messages ---- */

static int read_batch(struct gu_resolver *r, struct gu_uffd_msg *msgs)
{
	long got = gu_os->read(r->uffd, msgs, BATCH * sizeof(msgs[0]));
	return got > 0 ? (int)(got / (long)sizeof(msgs[0])) : 0;
}

static uint32_t longer(const struct gu_resolver *r, uint32_t spin_ns)
{
	return (uint32_t)gu_min((size_t)spin_ns * 2 + 1000, r->spin_ns);
}

/* *spin_ns adapts: what came while spinning, or soon after, makes the next spin longer, a long sleep makes it shorter. */
static int wait_batch(struct gu_resolver *r, struct gu_uffd_msg *msgs, uint32_t *spin_ns)
{
	uint64_t until = gu_os->clock_ns() + *spin_ns;
	int n;
	do {
		n = read_batch(r, msgs);
		if (n)
			break;
		gu_spin_hint();
	} while (gu_os->clock_ns() < until);
	if (n) {
		*spin_ns = longer(r, *spin_ns);
		return n;
	}
	uint64_t slept = gu_os->clock_ns();
	gu_add_relaxed(&r->counts.sleeps, 1);
	gu_os->wait_readable(r->uffd);
	bool soon = gu_os->clock_ns() - slept < r->spin_ns; /* a longer spin would have met it */
	*spin_ns = soon ? longer(r, *spin_ns) : *spin_ns / 2;
	return read_batch(r, msgs);
}

static void resolve(struct gu_resolver *r, const struct gu_uffd_msg *m, char *buffer)
{
	uint64_t flags = m->arg.pagefault.flags;
	struct gu_fault f = {
		.page = gu_align_down((uintptr_t)m->arg.pagefault.address, GU_PAGE),
		.write = flags & GU_UFFD_FAULT_WRITE,
		.why = flags & GU_UFFD_FAULT_RWP ? GU_FAULT_RWP : GU_FAULT_MISSING,
		.tid = m->arg.pagefault.ptid,
	};
	r->resolve(r->data, &f, buffer);
	gu_add_relaxed(&r->counts.faults, 1);
}

/* ---- the bell: .inv.resolver.bell ---- */

/* A signal makes the asker fault, and send its message, again: the second finds nothing to do. */
static bool answer(struct gu_resolver *r)
{
	uint32_t was = GU_BELL_RUNG;
	if (!gu_cas_seqcst(&r->asking, &was, GU_BELL_HEARD)) {
		if (was == GU_BELL_FREE) /* nobody asks: mlockall(2) or the like */
			(void)gu_uffd_zeropage(r->uffd, r->bell, GU_PAGE, 0, NULL);
		(void)gu_uffd_wake(r->uffd, r->bell, GU_PAGE);
		return false;
	}
	bool quit = !r->request;
	r->answer = quit ? 0 : r->request(&r->range);
	gu_store_release(&r->asking, GU_BELL_ANSWERED); /* pairs with gu_resolver_ask() */
	(void)gu_uffd_zeropage(r->uffd, r->bell, GU_PAGE, 0, NULL);
	return quit;
}

static void lock_bell(struct gu_resolver *r)
{
	uint32_t was = GU_BELL_FREE;
	while (!gu_cas_seqcst(&r->asking, &was, GU_BELL_TAKEN)) {
		gu_os->futex_wait(&r->asking, was, 1000000);
		was = GU_BELL_FREE;
	}
}

static void unlock_bell(struct gu_resolver *r)
{
	gu_store_seqcst(&r->asking, GU_BELL_FREE);
	gu_os->futex_wake(&r->asking, 1);
}

int gu_resolver_ask(struct gu_resolver *r, int (*request)(const struct gu_resolver_range *range), uintptr_t start, size_t len)
{
	lock_bell(r);
	r->request = request;
	r->range = (struct gu_resolver_range){r->uffd, start, len};
	munlock((void *)r->bell, GU_PAGE); /* mlockall(2) may have filled it */
	gu_os->madvise((void *)r->bell, GU_PAGE, MADV_DONTNEED);
	gu_store_seqcst(&r->asking, GU_BELL_RUNG);
	do {
		(void)*(volatile char *)r->bell; /* sleeps until it is answered */
		gu_os->madvise((void *)r->bell, GU_PAGE, MADV_DONTNEED);
	} while (gu_load_acquire(&r->asking) != GU_BELL_ANSWERED);
	int result = r->answer;
	unlock_bell(r);
	return result;
}

/* ---- a thread ---- */

/* Whether the thread is to end. A thread that is to leaves further rings to the others. */
static bool handle(struct gu_resolver *r, const struct gu_uffd_msg *m, char *buffer, bool quit)
{
	if (m->event != GU_UFFD_EVENT_PAGEFAULT)
		return quit;
	if (gu_align_down((uintptr_t)m->arg.pagefault.address, GU_PAGE) != r->bell)
		resolve(r, m, buffer);
	else if (!quit)
		return answer(r);
	else
		(void)gu_uffd_wake(r->uffd, r->bell, GU_PAGE);
	return quit;
}

void gu_resolver_run(struct gu_resolver *r, char *buffer)
{
	struct gu_uffd_msg msgs[BATCH];
	uint32_t spin_ns = r->spin_ns;
	for (bool quit = false; !quit;) {
		int n = wait_batch(r, msgs, &spin_ns);
		if (n)
			gu_add_relaxed(&r->counts.reads, 1);
		for (int i = 0; i < n; i++)
			quit = handle(r, &msgs[i], buffer, quit);
	}
}
