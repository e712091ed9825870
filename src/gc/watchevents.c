/* SPDX-License-Identifier: MIT */
/*
 * watchevents.c - the thread that reads events of the watching userfaultfd, for watchers with GCUFFD_WATCH_EVENTS.
 *
 * Who unmaps, remaps or empties registered memory sleeps in the kernel until its event was read, perhaps with a lock
 * of the program's; so the reader waits for nobody: it takes no lock, allocates nothing, touches no memory of the
 * program's, and puts events into a ring that the next call applies. When the ring is full it says that
 * something was lost, and everything counts as written.
 *
 * The reader has a descriptor table of its own, like all service threads: a program that closes all its descriptors
 * would else leave it waiting for another file.
 */
#define _GNU_SOURCE
#include "gc/watchtable.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/meta.h"
#include "gc/mutator.h"
#include "gc/stop.h"
#include "sys/files.h"
#include "sys/os.h"
#include "sys/uffd.h"

#define STACK ((size_t)256 << 10)
#define RING 2048
#define BATCH 16

/* .inv.watch.ring: the reader writes entries and head, a caller with the table's lock reads them and writes tail. */
struct ring {
	struct gu_uffd_msg events[RING];
	uint32_t head, tail; /* atomic */
	uint32_t overflow;   /* atomic */
	uint32_t reading;    /* atomic; odd from before a read until what it gave is in the ring */
	uint32_t quit;       /* atomic */
	uint32_t go, ready;  /* atomic; futexes: uffd is there, or is not to come; it is read */
	uint64_t count;      /* atomic */
	uint32_t overflows;  /* guard: gu_watch_lock */
	int uffd;
	bool own_files;
	char *scratch;       /* a registered page: dropping it is an event, which wakes the reader */
	void *stack;
	pthread_t thread;
	struct ring *next;   /* of those that were told to end */
};

static struct ring *ring;    /* guard: gu_watch_lock */
static struct ring *spare;   /* guard: gu_watch_lock; made, and waits for a userfaultfd */
static struct ring *leaving; /* guard: gu_watch_lock; to be joined */
static struct ring *quitting; /* guard: gu_watch_lock; to be woken */
static int prepare_error;    /* guard: gu_watch_lock; why there is no spare one */
static uint32_t wanted;      /* atomic; a spare one */

/* ---- the reader ---- */

static void push(struct ring *r, const struct gu_uffd_msg *msg)
{
	uint32_t head = gu_load_relaxed(&r->head);
	if (head - gu_load_acquire(&r->tail) == RING) { /* pairs with apply() */
		gu_store_seqcst(&r->overflow, 1);
		return;
	}
	r->events[head % RING] = *msg;
	gu_store_release(&r->head, head + 1); /* pairs with apply() */
	gu_add_relaxed(&r->count, 1);
}

/*
 * Once read(2) has taken an event, whoever waited for it may go on: reading says that it is not in the ring yet. false:
 * the descriptor is closed, or another file's; any other error may pass, and somebody waits.
 */
static bool read_events(struct ring *r)
{
	struct gu_uffd_msg msgs[BATCH];
	gu_add_seqcst(&r->reading, 1); /* pairs with gu_watch_settle() */
	long n = gu_os->read(r->uffd, msgs, sizeof(msgs));
	for (long i = 0; i < n / (long)sizeof(msgs[0]); i++)
		push(r, &msgs[i]);
	gu_add_seqcst(&r->reading, 1);
	return n != -EBADF && n != -EINVAL;
}

static void wait_for(uint32_t *word)
{
	while (!gu_load_acquire(word))
		gu_os->futex_wait(word, 0, -1);
}

static void set(uint32_t *word)
{
	gu_store_seqcst(word, 1);
	gu_os->futex_wake(word, 1);
}

static void serve(struct ring *r)
{
	struct pollfd p = {r->uffd, POLLIN, 0};
	r->own_files = !gu_files_own(&r->uffd, 1);
	set(&r->ready);
	while (!gu_load_seqcst(&r->quit))
		if (syscall(SYS_ppoll, &p, 1, NULL, NULL, 0) > 0 && (gu_load_seqcst(&r->quit) || !read_events(r)))
			break;
	if (r->own_files)
		gu_os->close(r->uffd);
}

static void *reader_main(void *arg)
{
	struct ring *r = arg;
	gu_stop_exempt(true);
	wait_for(&r->go);
	if (r->uffd >= 0)
		serve(r);
	gu_stop_exempt(false);
	return NULL;
}

/* ---- starting and ending ---- */

static void free_ring(struct ring *r)
{
	gu_meta_unmap(r->stack, STACK);
	gu_meta_unmap(r->scratch, GU_PAGE);
	gu_meta_free(r, sizeof(*r));
}

static int start_thread(struct ring *r)
{
	pthread_attr_t attr;
	pthread_attr_init(&attr);
	pthread_attr_setstack(&attr, r->stack, STACK);
	int err = gu_stop_start(&r->thread, &attr, reader_main, r);
	pthread_attr_destroy(&attr);
	return err;
}

static int make_reader(struct ring **out)
{
	struct ring *r = gu_meta_alloc(sizeof(*r));
	if (!r)
		return -ENOMEM;
	r->uffd = -1;
	r->stack = gu_meta_map(STACK);
	r->scratch = gu_meta_map(GU_PAGE);
	int err = r->stack && r->scratch ? start_thread(r) : -ENOMEM;
	if (err)
		free_ring(r);
	else
		*out = r;
	return err;
}

static void leave(struct ring *r)
{
	r->next = leaving;
	leaving = r;
}

/* pthread_create() may call the program's malloc: so it is not called under the lock. */
void gu_watch_reader_prepare(void)
{
	if (gu_likely(!gu_load_relaxed(&wanted)) || !gu_swap_seqcst(&wanted, 0))
		return;
	struct ring *r = NULL;
	struct gu_thread *t = gu_enter();
	int err = make_reader(&r);
	gu_lock(&gu_watch_lock);
	prepare_error = err;
	if (r && !spare)
		spare = r;
	else if (r)
		leave(r), set(&r->go);
	gu_unlock(&gu_watch_lock);
	gu_leave(t);
}

int gu_watch_reader_need(void)
{
	int err = spare ? 0 : prepare_error;
	prepare_error = 0;
	if (spare || err)
		return err;
	gu_store_seqcst(&wanted, 1);
	return 1;
}

int gu_watch_reader_start(int uffd)
{
	struct ring *r = spare;
	int err = gu_uffd_register(uffd, (uintptr_t)r->scratch, GU_PAGE, GU_UFFD_REGISTER_WP, NULL);
	if (err)
		return err;
	r->uffd = uffd;
	set(&r->go);
	wait_for(&r->ready);
	spare = NULL;
	ring = r;
	return 0;
}

void gu_watch_reader_quit(void)
{
	if (spare)
		leave(spare), set(&spare->go);
	if (ring)
		gu_store_seqcst(&ring->quit, 1);
	quitting = ring;
	ring = spare = NULL;
}

/*
 * After the caller's descriptor was closed: the reader's is the last then. If it has ended already, the page is not
 * registered any more, and this no event; if it ends meanwhile, its closing sets free who waits.
 */
void gu_watch_reader_wake(void)
{
	if (quitting && !gu_os->madvise(quitting->scratch, GU_PAGE, MADV_DONTNEED))
		leave(quitting); /* else it may not have woken: nobody waits for it then */
	quitting = NULL;
}

void *gu_watch_readers_leaving(void)
{
	struct ring *r = leaving;
	leaving = NULL;
	return r;
}

void gu_watch_readers_join(void *readers)
{
	for (struct ring *r = readers, *next; r; r = next) {
		next = r->next;
		pthread_join(r->thread, NULL);
		free_ring(r);
	}
}

/* The threads stayed behind. */
void gu_watch_reader_forked(void)
{
	if (ring)
		leave(ring);
	if (spare)
		leave(spare);
	for (struct ring *r = leaving, *next; r; r = next) {
		next = r->next;
		free_ring(r);
	}
	ring = spare = leaving = NULL;
	gu_store_relaxed(&wanted, 0);
}

uint32_t gu_watch_applied(void) { return ring ? gu_load_relaxed(&ring->tail) + ring->overflows : 0; }
uint64_t gu_watch_event_count(void) { return ring ? gu_load_relaxed(&ring->count) : 0; }

/* ---- applying ---- */

static void apply_event(const struct gu_uffd_msg *msg)
{
	switch (msg->event) {
	case GU_UFFD_EVENT_REMAP:
		(void)gu_watch_replace(msg->arg.remap.to, msg->arg.remap.to + msg->arg.remap.len); /* noted at least */
		gu_watch_move(msg->arg.remap.from, msg->arg.remap.to, msg->arg.remap.len);
		break;
	case GU_UFFD_EVENT_REMOVE:
	case GU_UFFD_EVENT_UNMAP:
		gu_watch_note(NULL, msg->arg.remove.start, msg->arg.remove.end, true);
		break;
	default: break;
	}
}

static void apply(struct ring *r)
{
	if (gu_swap_seqcst(&r->overflow, 0)) {
		gu_watch_note(NULL, 0, UINTPTR_MAX, true);
		r->overflows++;
	}
	uint32_t tail = gu_load_relaxed(&r->tail);
	while (tail != gu_load_acquire(&r->head)) { /* pairs with push() */
		apply_event(&r->events[tail % RING]);
		gu_store_release(&r->tail, ++tail); /* pairs with push() */
	}
}

/*
 * UFFDIO_WRITEPROTECT is refused with EAGAIN while an event of this context is under way: from before the mapping
 * changes until who changed it has been told that it was read.
 */
bool gu_watch_settle(int uffd)
{
	struct ring *r = ring;
	bool settled = !gu_uffd_writeprotect(uffd, (uintptr_t)r->scratch, GU_PAGE, false);
	for (uint32_t was = gu_load_seqcst(&r->reading); (was & 1) && gu_load_seqcst(&r->reading) == was;)
		gu_os->sched_yield();
	apply(r);
	return settled;
}
