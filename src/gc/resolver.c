/* SPDX-License-Identifier: MIT */
/* resolver.c - see resolver.h. */
#include "gc/resolver.h"

#include <errno.h>
#include <sys/mman.h>

#include "base/atomic.h"
#include "base/check.h"
#include "base/without.h"
#include "sys/os.h"
#include "sys/uffd.h"

#define BATCH 32
#define SLOW_NS 100000u   /* while faults take longer they don't keep others waiting */
#define PROBE 16          /* sleeps, one after the other, to a spin of full length */
#define AHEAD_NS 10000u   /* that is done ahead between two looks for messages */
#define PAUSE_NS 1000000u /* the first; the last is 64 of them */

/* ---- the baton: .inv.resolver.baton ---- */

enum baton { BATON_FREE, BATON_TAKEN, BATON_AWAITED };

static bool try_baton(struct gu_resolver *r)
{
	uint32_t was = BATON_FREE;
	return gu_cas_seqcst(&r->baton, &was, BATON_TAKEN);
}

static void take_baton(struct gu_resolver *r)
{
	while (gu_swap_seqcst(&r->baton, BATON_AWAITED) != BATON_FREE)
		gu_os->futex_wait(&r->baton, BATON_AWAITED, -1);
}

static void give_baton(struct gu_resolver *r)
{
	if (gu_swap_seqcst(&r->baton, BATON_FREE) == BATON_AWAITED)
		gu_os->futex_wake(&r->baton, 1);
}

static bool is_slow(const struct gu_resolver *r) { return r->several && gu_load_relaxed(&r->mean_ns) > SLOW_NS; }

/* ---- messages ---- */

static int read_batch(struct gu_resolver *r, struct gu_uffd_msg *msgs, size_t most)
{
	long got = gu_os->read(r->uffd, msgs, most * sizeof(msgs[0]));
	return got > 0 ? (int)(got / (long)sizeof(msgs[0])) : 0;
}

static uint32_t longer(const struct gu_resolver *r, uint64_t ns)
{
	return (uint32_t)gu_min(ns * 2 + 1000, r->spin_ns);
}

/*
 * Where being woken takes long, all that comes seems to come late, however short the next spin would have had to be. So now and then one is
 * as long as may be.
 */
static uint32_t spin_time(const struct gu_resolver *r) { return r->misses % PROBE == PROBE - 1 ? r->spin_ns : r->spin_now; }

/* Not much at a time, for somebody may wait meanwhile; but whoever touches in order comes again sooner than a page is filled. */
static bool work_ahead(struct gu_resolver *r, char *buffer)
{
	bool any = r->ahead && r->ahead(r->data, buffer);
	if (!any)
		return false;
	for (uint64_t until = gu_os->clock_ns() + AHEAD_NS; gu_os->clock_ns() < until && r->ahead(r->data, buffer);)
		;
	return true;
}

/* What a fault that this thread resolved has made worth doing is done by it, as long as another thread looks for messages. */
static void take_baton_or_work(struct gu_resolver *r, char *buffer)
{
	while (!try_baton(r))
		if (!work_ahead(r, buffer)) {
			take_baton(r);
			return;
		}
}

/*
 * With the baton. The time of spinning adapts: what came while spinning, or soon after, makes the next spin longer, a long sleep
 * makes it shorter.
 */
static int wait_batch(struct gu_resolver *r, struct gu_uffd_msg *msgs, size_t most, char *buffer)
{
	uint32_t spin = spin_time(r);
	uint64_t began = gu_os->clock_ns(), now = began;
	int n;
	do {
		if (work_ahead(r, buffer))
			began = gu_os->clock_ns();
		n = read_batch(r, msgs, most);
		if (n)
			break;
		gu_spin_hint();
		now = gu_os->clock_ns();
	} while (now < began + spin);
	if (n) {
		r->spin_now = longer(r, gu_max(r->spin_now, now - gu_min(began, now)));
		r->misses = 0;
		return n;
	}
	uint64_t slept = gu_os->clock_ns();
	r->misses++;
	gu_add_relaxed(&r->counts.sleeps, 1);
	gu_os->wait_readable(r->uffd);
	bool soon = gu_os->clock_ns() - slept < r->spin_ns; /* a longer spin would have met it */
	r->spin_now = soon ? longer(r, r->spin_now) : r->spin_now / 2;
	return read_batch(r, msgs, most);
}

/* A mean of the latest few. Threads write over each other's: nobody needs it exactly. */
static void note_time(struct gu_resolver *r, uint64_t ns)
{
	int64_t mean = gu_load_relaxed(&r->mean_ns), now = (int64_t)gu_min(ns, 8 * SLOW_NS);
	gu_store_relaxed(&r->mean_ns, (uint32_t)(mean + (now - mean) / 8));
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
	uint64_t began = r->several ? gu_os->clock_ns() : 0;
	r->resolve(r->data, &f, buffer);
	gu_add_relaxed(&r->counts.faults, 1);
	if (r->several)
		note_time(r, gu_os->clock_ns() - began);
}

/* ---- want of memory ---- */

void gu_resolver_pause(struct gu_resolver *r, uintptr_t page)
{
	uint32_t nothing = 0, ns = gu_load_relaxed(&r->pause_ns);
	if (!ns)
		gu_add_relaxed(&r->counts.shortages, 1);
	ns = ns ? ns : PAUSE_NS;
	gu_store_relaxed(&r->pause_ns, (uint32_t)gu_min((size_t)ns * 2, 64 * PAUSE_NS));
	gu_os->futex_wait(&nothing, 0, ns);
	(void)gu_uffd_wake(r->uffd, page, GU_PAGE);
}

void gu_resolver_relieved(struct gu_resolver *r)
{
	if (gu_load_relaxed(&r->pause_ns))
		gu_store_relaxed(&r->pause_ns, 0);
}

/* ---- the bell: .inv.resolver.bell ---- */

static void fill_bell(struct gu_resolver *r)
{
	int err = gu_uffd_zeropage(r->uffd, r->bell, GU_PAGE, 0, NULL);
	if (err == -EEXIST)
		(void)gu_uffd_wake(r->uffd, r->bell, GU_PAGE);
	else if (err)
		gu_resolver_pause(r, r->bell); /* the asker faults, and sends its message, again */
	else
		gu_resolver_relieved(r);
}

/*
 * A signal makes the asker fault, and send its message, again. The second finds the request under way, which ends with a
 * page for the bell, or done; or nobody asks, and it was mlockall(2) or the like.
 */
static bool answer(struct gu_resolver *r)
{
	uint32_t was = GU_BELL_RUNG;
	if (!gu_cas_seqcst(&r->asking, &was, GU_BELL_HEARD)) {
		if (was != GU_BELL_HEARD)
			fill_bell(r);
		return false;
	}
	bool quit = !r->request;
	r->answer = quit ? 0 : r->request(&r->range);
	gu_store_release(&r->asking, GU_BELL_ANSWERED); /* pairs with gu_resolver_ask_taken() */
	fill_bell(r);
	return quit;
}

void gu_resolver_take(struct gu_resolver *r)
{
	uint32_t was = GU_BELL_FREE;
	while (!gu_cas_seqcst(&r->asking, &was, GU_BELL_TAKEN)) {
		gu_os->futex_wait(&r->asking, was, 1000000);
		was = GU_BELL_FREE;
	}
}

void gu_resolver_give(struct gu_resolver *r)
{
	gu_store_seqcst(&r->asking, GU_BELL_FREE);
	gu_os->futex_wake(&r->asking, 1);
}

int gu_resolver_ask_taken(struct gu_resolver *r, gu_request_fn *request, uintptr_t start, size_t len)
{
	r->request = request;
	r->range = (struct gu_resolver_range){r->data, r->uffd, start, len};
	munlock((void *)r->bell, GU_PAGE); /* mlockall(2) may have filled it */
	gu_os->madvise((void *)r->bell, GU_PAGE, MADV_DONTNEED);
	gu_store_seqcst(&r->asking, GU_BELL_RUNG);
	do {
		(void)*(volatile char *)r->bell; /* sleeps until it is answered */
		gu_os->madvise((void *)r->bell, GU_PAGE, MADV_DONTNEED);
	} while (gu_load_acquire(&r->asking) != GU_BELL_ANSWERED);
	return r->answer;
}

int gu_resolver_ask(struct gu_resolver *r, gu_request_fn *request, uintptr_t start, size_t len)
{
	gu_resolver_take(r);
	int result = gu_resolver_ask_taken(r, request, start, len);
	gu_resolver_give(r);
	return result;
}

/* ---- a thread ---- */

static bool is_ring(const struct gu_resolver *r, const struct gu_uffd_msg *m)
{
	return gu_align_down((uintptr_t)m->arg.pagefault.address, GU_PAGE) == r->bell;
}

/* Whether the thread is to end. A thread that is to leaves further rings to the others. */
static bool handle(struct gu_resolver *r, const struct gu_uffd_msg *m, char *buffer, bool quit)
{
	if (m->event != GU_UFFD_EVENT_PAGEFAULT)
		return quit;
	if (!is_ring(r, m))
		resolve(r, m, buffer);
	else if (!quit)
		return answer(r);
	else
		(void)gu_uffd_wake(r->uffd, r->bell, GU_PAGE);
	return quit;
}

/* No other thread gets what was read: so who is going to pass the baton on reads one message only. */
void gu_resolver_run(struct gu_resolver *r, char *buffer)
{
	struct gu_uffd_msg msgs[BATCH];
	bool has = false;
	for (bool quit = false; !quit;) {
		if (!has)
			take_baton_or_work(r, buffer);
		has = true;
		int n = wait_batch(r, msgs, is_slow(r) || gu_is_without(GU_WITHOUT_batch) ? 1 : BATCH, buffer);
		if (n)
			gu_add_relaxed(&r->counts.reads, 1);
		for (int i = 0; i < n; i++) {
			if (has && r->several && (is_slow(r) || is_ring(r, &msgs[i]))) {
				give_baton(r);
				has = false;
			}
			quit = handle(r, &msgs[i], buffer, quit);
		}
	}
	if (has)
		give_baton(r);
}
