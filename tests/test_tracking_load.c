/* SPDX-License-Identifier: MIT */
/*
 * test_tracking_load.c - no write is lost, whoever makes it: stores, system calls, io_uring, other processes, at full speed
 * and among all that may happen to the pages; and what is under way past the page table while a report is made.
 */
#include "tracking.h"

#include <linux/futex.h>
#include <linux/io_uring.h>
#include <poll.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include "sys/uffd.h"

/* ---- no write is lost ---- */

#define COLLECTORS 2

enum { STORES, CALLS, OUTSIDE, POKES, WRITERS };
enum { READ, RECV, RING, FUTEX, SYSTEM_CALLS };
enum { NODES, PROTECTION, PAGEOUT, COLD, WILLNEED, POPULATE, COLLAPSE, FORK, DISTURBANCES };

/* Shared with the writers that are other processes. */
static struct load {
	uint32_t go, done, ready[WRITERS], failed[WRITERS]; /* atomic */
	int tracee;                                     /* a thread's id */
	uint64_t writes[WRITERS];                       /* atomic; each its writer's, of pages written at full speed */
	uint64_t calls[SYSTEM_CALLS];                   /* atomic; of those, how many in each way */
	uint64_t disturbed[DISTURBANCES];               /* atomic */
	uint64_t log[MAX_PAGES];                        /* atomic, the owner's: the number that it writes there, noted before */
	uint64_t landed[MAX_PAGES];                     /* the same, noted after */
	uint64_t begun[MAX_PAGES], ended[MAX_PAGES];    /* atomic; touches: writes, and looks that are told */
	uint64_t slow[WRITERS];                         /* atomic; writes that waited until the last were found */
	uint64_t copy[COLLECTORS][MAX_PAGES];           /* atomic, the collector's: what it found after a report */
} *load;

static uint64_t *counter(size_t page) { return (uint64_t *)(page_at(page) + 8 * (page % 8)); }

static bool is_done(void) { return __atomic_load_n(&load->done, __ATOMIC_RELAXED); }

static bool is_fast(size_t page) { return page / WRITERS % 2 == 0; }

/*
 * Every second page of a writer is written at full speed. The others are written again only when all collectors have found the
 * last number there: so each single write of these must be reported.
 */
static bool may_write(size_t page)
{
	bool found = true;
	for (int c = 0; c < COLLECTORS; c++)
		found = found && __atomic_load_n(&load->copy[c][page], __ATOMIC_ACQUIRE) == load->log[page];
	return found || is_fast(page);
}

struct ring {
	int fd, file;
	uint32_t *sq_tail, *sq_array, *cq_head, *cq_tail;
	struct io_uring_sqe *sqe;
	struct io_uring_cqe *cqe;
	uint32_t mask;
	char *map;
	size_t len;
};

/* What a sandbox says, or a kernel that has it not. */
static bool is_refusal(int err) { return err == EPERM || err == EACCES || err == ENOSYS; }

/* false: refused. */
static bool ring_make(struct ring *r)
{
	struct io_uring_params p;
	memset(&p, 0, sizeof(p));
	r->file = memfd_create("source", MFD_CLOEXEC);
	r->fd = (int)syscall(SYS_io_uring_setup, 1, &p);
	must(r->fd >= 0 || is_refusal(errno), "errno %d", errno);
	if (r->fd < 0)
		return false;
	must(p.features & IORING_FEAT_SINGLE_MMAP, "io_uring of before 5.4");
	r->len = gu_max(p.sq_off.array + p.sq_entries * sizeof(uint32_t), p.cq_off.cqes + p.cq_entries * sizeof(*r->cqe));
	r->map = mmap(NULL, r->len, PROT_READ | PROT_WRITE, MAP_SHARED, r->fd, IORING_OFF_SQ_RING);
	r->sqe = mmap(NULL, sizeof(*r->sqe), PROT_READ | PROT_WRITE, MAP_SHARED, r->fd, IORING_OFF_SQES);
	must(r->map != MAP_FAILED && r->sqe != MAP_FAILED, "errno %d", errno);
	r->sq_tail = (uint32_t *)(r->map + p.sq_off.tail);
	r->sq_array = (uint32_t *)(r->map + p.sq_off.array);
	r->cq_head = (uint32_t *)(r->map + p.cq_off.head);
	r->cq_tail = (uint32_t *)(r->map + p.cq_off.tail);
	r->cqe = (struct io_uring_cqe *)(r->map + p.cq_off.cqes);
	r->mask = p.cq_entries - 1;
	return true;
}

static void ring_close(struct ring *r)
{
	close(r->file);
	if (r->fd < 0)
		return;
	munmap(r->map, r->len);
	munmap(r->sqe, sizeof(*r->sqe));
	close(r->fd);
}

/* opcode: IORING_OP_READ, or READ_FIXED into the registered buffer. */
static bool ring_read(struct ring *r, unsigned opcode, void *to, const uint64_t *value)
{
	must(pwrite(r->file, value, sizeof(*value), 0) == sizeof(*value), "errno %d", errno);
	memset(r->sqe, 0, sizeof(*r->sqe));
	r->sqe->opcode = (uint8_t)opcode;
	r->sqe->fd = r->file;
	r->sqe->addr = (uintptr_t)to;
	r->sqe->len = sizeof(*value);
	r->sq_array[0] = 0;
	__atomic_store_n(r->sq_tail, *r->sq_tail + 1, __ATOMIC_RELEASE);
	must(syscall(SYS_io_uring_enter, r->fd, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0) == 1, "errno %d", errno);
	uint32_t head = *r->cq_head;
	must(__atomic_load_n(r->cq_tail, __ATOMIC_ACQUIRE) != head, "no completion");
	int result = r->cqe[head & r->mask].res;
	__atomic_store_n(r->cq_head, head + 1, __ATOMIC_RELEASE);
	return result == sizeof(*value);
}

struct tools {
	struct test_rng rng;
	struct ring ring;
	bool has_ring;
	int file, sockets[2];
	pid_t target;
};

static void by_store(struct tools *t, size_t page, uint64_t n)
{
	(void)t;
	__atomic_store_n(counter(page), n, __ATOMIC_RELAXED);
}

static void by_read(struct tools *t, size_t page, uint64_t n)
{
	must(pwrite(t->file, &n, 8, 0) == 8 && pread(t->file, counter(page), 8, 0) == 8, "errno %d", errno);
}

static void by_recv(struct tools *t, size_t page, uint64_t n)
{
	must(send(t->sockets[0], &n, 8, 0) == 8 && recv(t->sockets[1], counter(page), 8, 0) == 8, "errno %d", errno);
}

static void by_ring(struct tools *t, size_t page, uint64_t n)
{
	must(ring_read(&t->ring, IORING_OP_READ, counter(page), &n), "io_uring");
}

/* Adds one. */
static void by_futex(struct tools *t, size_t page, uint64_t n)
{
	uint32_t word = 0;
	int op = FUTEX_WAKE_OP | FUTEX_PRIVATE_FLAG;
	(void)t, (void)n;
	long woken = syscall(SYS_futex, &word, op, 1, 1, counter(page), FUTEX_OP(FUTEX_OP_ADD, 1, FUTEX_OP_CMP_EQ, 0));
	must(woken >= 0, "errno %d", errno);
}

static void by_any_call(struct tools *t, size_t page, uint64_t n)
{
	static void (*const calls[SYSTEM_CALLS])(struct tools *, size_t, uint64_t) = {by_read, by_recv, by_ring, by_futex};
	size_t i;
	do
		i = test_below(&t->rng, SYSTEM_CALLS);
	while (i == RING && !t->has_ring);
	calls[i](t, page, n);
	__atomic_add_fetch(&load->calls[i], 1, __ATOMIC_RELAXED);
}

static void by_process_vm_writev(struct tools *t, size_t page, uint64_t n)
{
	struct iovec from = {&n, 8}, to = {counter(page), 8};
	must(process_vm_writev(t->target, &from, 1, &to, 1, 0) == 8, "errno %d", errno);
}

static void by_poke(struct tools *t, size_t page, uint64_t n)
{
	(void)t;
	must(!ptrace(PTRACE_POKEDATA, load->tracee, counter(page), (void *)n), "errno %d", errno);
}

static void (*const writes[WRITERS])(struct tools *, size_t page, uint64_t n) = {
	by_store, by_any_call, by_process_vm_writev, by_poke,
};

static void begin_touch(size_t page) { __atomic_add_fetch(&load->begun[page], 1, __ATOMIC_SEQ_CST); }
static void end_touch(size_t page) { __atomic_add_fetch(&load->ended[page], 1, __ATOMIC_SEQ_CST); }

static void write_numbers(size_t me, struct tools *t)
{
	t->rng = test_rng(me + 500);
	while (!__atomic_load_n(&load->go, __ATOMIC_ACQUIRE) && !is_done())
		usleep(100);
	while (!is_done()) {
		size_t page = test_below(&t->rng, mem.pages / WRITERS) * WRITERS + me;
		if (!may_write(page))
			continue;
		uint64_t next = load->log[page] + 1;
		__atomic_store_n(&load->log[page], next, __ATOMIC_RELEASE);
		begin_touch(page);
		writes[me](t, page, next);
		end_touch(page);
		__atomic_store_n(&load->landed[page], next, __ATOMIC_RELEASE);
		__atomic_add_fetch(is_fast(page) ? &load->writes[me] : &load->slow[me], 1, __ATOMIC_RELAXED);
	}
}

static void *write_as_thread(void *arg)
{
	struct tools t = {.file = memfd_create("source", MFD_CLOEXEC)};
	must(t.file >= 0 && !socketpair(AF_UNIX, SOCK_STREAM, 0, t.sockets), "errno %d", errno);
	t.has_ring = ring_make(&t.ring);
	write_numbers((uintptr_t)arg, &t);
	ring_close(&t.ring);
	close(t.file);
	close(t.sockets[0]);
	close(t.sockets[1]);
	return NULL;
}

/* ---- writers that are other processes ---- */

static bool attach(void)
{
	int status;
	while (!__atomic_load_n(&load->tracee, __ATOMIC_ACQUIRE))
		usleep(100);
	bool seized = !ptrace(PTRACE_SEIZE, load->tracee, NULL, NULL);
	must(seized || is_refusal(errno), "errno %d", errno);
	must(!seized || (!ptrace(PTRACE_INTERRUPT, load->tracee, NULL, NULL) && waitpid(load->tracee, &status, __WALL) == load->tracee),
	     "errno %d", errno);
	return seized;
}

/* One number, to find out whether it is allowed: what it writes there is there already. */
static bool can_write(pid_t target)
{
	uint64_t n = 0;
	struct iovec from = {&n, 8}, to = {&load->log[OUTSIDE], 8};
	bool written = process_vm_writev(target, &from, 1, &to, 1, 0) == 8;
	must(written || is_refusal(errno), "errno %d", errno);
	return written;
}

static void write_as_process(size_t me, pid_t target)
{
	struct tools t = {.target = target};
	prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
	must_ok(munmap(mem.at, mem.pages * mem.page)); /* or the parent would write to copies */
	__atomic_store_n(&load->failed[me], !(me == POKES ? attach() : can_write(target)), __ATOMIC_RELEASE);
	__atomic_store_n(&load->ready[me], 1, __ATOMIC_RELEASE);
	if (!load->failed[me])
		write_numbers(me, &t);
	if (me == POKES && !load->failed[me])
		ptrace(PTRACE_DETACH, load->tracee, NULL, NULL);
}

static pid_t start_process(size_t me)
{
	pid_t parent = getpid();
	fflush(stdout);
	pid_t pid = fork();
	must(pid >= 0, "errno %d", errno);
	if (pid == 0) {
		write_as_process(me, parent);
		_exit(0);
	}
	return pid;
}

static void *be_traced(void *arg)
{
	__atomic_store_n(&load->tracee, (int)syscall(SYS_gettid), __ATOMIC_RELEASE);
	while (!is_done())
		usleep(1000);
	return arg;
}

/* ---- who collects, and who disturbs ---- */

struct collector {
	int me;
	uint64_t rounds;
	bool again[MAX_PAGES];
	uint64_t quiet[MAX_PAGES]; /* touches until the last report, if none was under way then */
	bool exact;
	uint64_t checked; /* atomic; pages that no report should have had */
};

/*
 * Another process's write is told when the kernel has got hold of the page, and lands later (see writes_under_way): if one
 * was under way, the collector looks again.
 */
static bool is_under_way(size_t page)
{
	uint64_t landed = __atomic_load_n(&load->landed[page], __ATOMIC_ACQUIRE);
	return page % WRITERS >= OUTSIDE && landed != __atomic_load_n(&load->log[page], __ATOMIC_ACQUIRE);
}

#define NOT_QUIET UINT64_MAX

/* How many touches there were, if none is under way. */
static uint64_t quiet_touches(size_t page)
{
	uint64_t ended = __atomic_load_n(&load->ended[page], __ATOMIC_SEQ_CST);
	return ended == __atomic_load_n(&load->begun[page], __ATOMIC_SEQ_CST) ? ended : NOT_QUIET;
}

/* A touch that was over when a report began is in no later one. */
static void check_exactness(struct collector *c, const struct set *set)
{
	for (size_t i = 0; c->exact && i < mem.pages; i++) {
		if (c->quiet[i] != __atomic_load_n(&load->begun[i], __ATOMIC_SEQ_CST))
			continue;
		must(!set->has[i], "kind %d: page %zu was reported twice, after %lu touches", mem.kind, i, (unsigned long)c->quiet[i]);
		__atomic_add_fetch(&c->checked, 1, __ATOMIC_RELAXED);
	}
}

static uint64_t look_at(size_t page)
{
	if (accesses)
		begin_touch(page);
	uint64_t number = __atomic_load_n(counter(page), __ATOMIC_RELAXED);
	if (accesses)
		end_touch(page);
	return number;
}

/* Looking at a page is an access: so if that is what is watched, only where there is something new. */
static void find_number(struct collector *c, size_t page)
{
	uint64_t *copy = &load->copy[c->me][page];
	c->again[page] = is_under_way(page);
	if (!accesses || __atomic_load_n(&load->log[page], __ATOMIC_ACQUIRE) != *copy)
		__atomic_store_n(copy, look_at(page), __ATOMIC_RELEASE);
}

static void find_numbers(struct collector *c)
{
	uint64_t quiet[MAX_PAGES];
	struct set set;
	memset(&set, 0, sizeof(set));
	for (size_t i = 0; i < mem.pages; i++)
		quiet[i] = quiet_touches(i);
	must_ok(report_into(&set, watch[c->me], gcuffd_watch_collect, 7));
	check_exactness(c, &set);
	memcpy(c->quiet, quiet, sizeof(quiet));
	for (size_t i = 0; i < mem.pages; i++)
		if (set.has[i] || c->again[i])
			find_number(c, i);
	__atomic_add_fetch(&c->rounds, 1, __ATOMIC_RELAXED);
}

static void *collect_numbers(void *arg)
{
	while (!is_done())
		find_numbers(arg);
	return NULL;
}

static bool move_to_random_node(struct test_rng *rng) { return move_pages_to((int)test_below(rng, 2)) >= 0; }

static bool protect_anew(struct test_rng *rng)
{
	char *at;
	size_t len;
	choose_span(rng, &at, &len);
	return !mprotect(at, len, PROT_READ | PROT_WRITE | PROT_EXEC) && !mprotect(at, len, PROT_READ | PROT_WRITE);
}

static bool advise(struct test_rng *rng, int advice)
{
	char *at;
	size_t len;
	choose_span(rng, &at, &len);
	return !madvise(at, len, advice);
}

/* Where entries tell, something is in swap then. */
static bool page_out(struct test_rng *rng)
{
	return advise(rng, MADV_PAGEOUT) && (!is_anon() || count_entries(0, mem.pages, IN_SWAP));
}

static bool cool(struct test_rng *rng) { return advise(rng, MADV_COLD); }
static bool bring_in(struct test_rng *rng) { return advise(rng, MADV_WILLNEED); }
static bool populate(struct test_rng *rng) { return advise(rng, MADV_POPULATE_READ); }

/* That armed pages are refused is an attempt too. */
static bool collapse(struct test_rng *rng)
{
	(void)rng;
	return !madvise(mem.at, THP_LEN, MADV_COLLAPSE) || errno == EINVAL || errno == EAGAIN || errno == EBUSY;
}

static bool fork_nothing(struct test_rng *rng)
{
	(void)rng;
	pid_t pid = fork();
	if (pid == 0)
		_exit(0);
	must(pid > 0 && waitpid(pid, NULL, 0) == pid, "errno %d", errno);
	return true;
}

/* What is unmapped is not known then: test_tracking shared_pages_unmapped_again. */
static bool may_be_unmapped(void) { return !is_huge() && !(accesses && !is_private()); }
static bool may_be_swapped(void) { return may_be_unmapped() && (!is_anon() || has_swap()); }
static bool can_be_huge(void) { return may_be_unmapped() && thp; }
static bool is_anything(void) { return true; }
static bool is_small(void) { return !is_huge(); } /* copies of huge pages may be more than there are */

static const struct {
	const char *name;
	doing_fn *fn;
	bool (*is_possible)(void);
} doings[DISTURBANCES] = {
	[NODES] = {"move_pages", move_to_random_node, has_nodes}, [PROTECTION] = {"mprotect", protect_anew, is_anything},
	[PAGEOUT] = {"MADV_PAGEOUT", page_out, may_be_swapped}, [COLD] = {"MADV_COLD", cool, may_be_unmapped},
	[WILLNEED] = {"MADV_WILLNEED", bring_in, may_be_unmapped}, [POPULATE] = {"MADV_POPULATE_READ", populate, may_be_unmapped},
	[COLLAPSE] = {"MADV_COLLAPSE", collapse, can_be_huge}, [FORK] = {"fork", fork_nothing, is_small},
};

static void *disturb(void *arg)
{
	struct test_rng rng = test_rng(900);
	while (!is_done()) {
		size_t i = test_below(&rng, DISTURBANCES);
		if (doings[i].is_possible() && doings[i].fn(&rng))
			__atomic_add_fetch(&load->disturbed[i], 1, __ATOMIC_RELAXED);
		usleep(200);
	}
	return arg;
}

static const char *lacking_disturbance(void)
{
	for (size_t i = 0; i < DISTURBANCES; i++)
		if (doings[i].is_possible() && !__atomic_load_n(&load->disturbed[i], __ATOMIC_RELAXED))
			return doings[i].name;
	return NULL;
}

/* ---- the run ---- */

static uint64_t least_of(const uint64_t count[WRITERS])
{
	uint64_t least = UINT64_MAX;
	for (int i = 0; i < WRITERS; i++)
		if (!load->failed[i])
			least = gu_min(least, __atomic_load_n(&count[i], __ATOMIC_RELAXED));
	return least;
}

/* Each has left a page alone between two reports, if that is looked at. */
static uint64_t least_rounds(const struct collector *c)
{
	uint64_t least = UINT64_MAX;
	for (int i = 0; i < COLLECTORS; i++)
		if (!c[i].exact || __atomic_load_n(&c[i].checked, __ATOMIC_RELAXED))
			least = gu_min(least, __atomic_load_n(&c[i].rounds, __ATOMIC_RELAXED));
		else
			least = 0;
	return least;
}

static bool is_enough(const struct collector *c, bool disturbed, uint64_t goal)
{
	return least_of(load->writes) >= goal && least_of(load->slow) >= goal / 20 && least_rounds(c) >= goal / 20 &&
	       !(disturbed && lacking_disturbance());
}

/* So many writes by each, reports by each, and each disturbance once. */
static void wait_for_work(const struct collector *c, bool disturbed)
{
	uint64_t goal = gu_max(check_rounds(200 * check_seconds()), 60u);
	uint64_t stop = test_now_ns() + (60 + check_seconds()) * 1000000000ull * check_slow();
	bool enough = false;
	while (!enough && test_now_ns() < stop) {
		usleep(1000);
		enough = is_enough(c, disturbed, goal);
	}
	const char *lacking = disturbed ? lacking_disturbance() : NULL;
	must(enough, "kind %d: writes %lu and %lu, reports %lu, goal %lu, disturbance that never came: %s", mem.kind,
	     (unsigned long)least_of(load->writes), (unsigned long)least_of(load->slow), (unsigned long)least_rounds(c),
	     (unsigned long)goal, lacking ? lacking : "none");
	for (size_t i = 0; i < SYSTEM_CALLS; i++)
		must(load->calls[i] || i == RING, "call %zu was never made", i);
}

static void check_numbers(struct collector *c)
{
	for (size_t p = 0; p < mem.pages; p++) {
		uint64_t is = load->copy[c->me][p], log = load->log[p], there = look_at(p);
		ck_assert_msg(is == log && is == there,
			      "kind %d%s, collector %d, page %zu: %lu, written were %lu, there is %lu, %lu rounds", mem.kind,
			      accesses ? ", accesses" : "", c->me, p, (unsigned long)is, (unsigned long)log,
			      (unsigned long)there, (unsigned long)c->rounds);
	}
}

static void wait_until_ready(void)
{
	for (int i = OUTSIDE; i < WRITERS; i++)
		while (!__atomic_load_n(&load->ready[i], __ATOMIC_ACQUIRE))
			usleep(100);
}

/* Nothing is told for nothing: but huge pages are not told by small ones, and what happens to pages may err to written. */
static bool is_exact(bool disturbed) { return !disturbed && !(thp && (accesses || !is_private())); }

static void run_load(bool disturbed)
{
	static struct collector c[COLLECTORS];
	pthread_t thread[2 + COLLECTORS + 2];
	pid_t process[2];
	size_t n = 0;
	load = mmap(NULL, sizeof(*load), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	ck_assert_ptr_ne(load, MAP_FAILED);
	for (size_t i = 0; i < mem.pages; i++)
		*counter(i) = 0;
	prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY, 0, 0, 0);
	process[0] = start_process(OUTSIDE);
	process[1] = start_process(POKES);
	must_ok(pthread_create(&thread[n++], NULL, be_traced, NULL));
	wait_until_ready();
	for (int i = 0; i < COLLECTORS; i++) {
		c[i] = (struct collector){.me = i, .exact = is_exact(disturbed)};
		begin(watch[i]);
	}
	__atomic_store_n(&load->go, 1, __ATOMIC_RELEASE);
	for (uintptr_t i = STORES; i <= CALLS; i++)
		must_ok(pthread_create(&thread[n++], NULL, write_as_thread, (void *)i));
	for (int i = 0; i < COLLECTORS; i++)
		must_ok(pthread_create(&thread[n++], NULL, collect_numbers, &c[i]));
	if (disturbed)
		must_ok(pthread_create(&thread[n++], NULL, disturb, NULL));
	wait_for_work(c, disturbed);
	__atomic_store_n(&load->done, 1, __ATOMIC_RELAXED);
	for (int i = 0; i < 2; i++)
		must(waitpid(process[i], NULL, 0) == process[i], "errno %d", errno);
	while (n > 0)
		pthread_join(thread[--n], NULL);
	for (int i = 0; i < COLLECTORS; i++) {
		find_numbers(&c[i]);
		check_numbers(&c[i]);
	}
	checked_table();
}

/* What is left out where it is refused; the rest has been checked. */
#define SKIP_IF_REFUSED() \
	do { \
		if (load->failed[OUTSIDE] || load->failed[POKES] || !load->calls[RING]) \
			GU_SKIP("not tried:%s%s%s", load->failed[OUTSIDE] ? " process_vm_writev" : "", load->failed[POKES] ? " ptrace" : "", \
				load->calls[RING] ? "" : " io_uring"); \
	} while (0)

START_TEST(no_write_is_lost)
{
	NEED_CASE(_i);
	if (!make_case(is_huge() ? 8 : 128))
		GU_LACKS(memory_need(), "no memory of kind %d", mem.kind);
	ck_ok(gcuffd_watch_create(0, &watch[1]));
	run_load(false);
	SKIP_IF_REFUSED();
}
END_TEST

/* Meanwhile pages are reclaimed, moved, protected, forked, split and collapsed. */
START_TEST(no_write_is_lost_while_pages_change)
{
	NEED_CASE(_i);
	ONLY(!(accesses && thp && !is_private())); /* mprotect(2) unmaps it in part */
	if (!make_case(is_huge() ? 8 : 128))
		GU_LACKS(memory_need(), "no memory of kind %d", mem.kind);
	ck_ok(gcuffd_watch_create(0, &watch[1]));
	run_load(true);
	SKIP_IF_REFUSED();
}
END_TEST

static char *source;

/* The kernel takes hold of the page of mem, and then waits for the source. */
static void *copy_in(void *arg)
{
	struct iovec from = {source, 8}, to = {counter(2), 8};
	must(process_vm_writev(getpid(), &from, 1, &to, 1, 0) == 8, "errno %d", errno);
	return arg;
}

/* Starts the copy; returns when it is half done. */
static void start_copy(int uffd, pthread_t *thread)
{
	struct pollfd p = {uffd, POLLIN, 0};
	struct gu_uffd_msg msg;
	must_ok(pthread_create(thread, NULL, copy_in, NULL));
	must(poll(&p, 1, 20000) == 1 && read(uffd, &msg, sizeof(msg)) == sizeof(msg), "errno %d", errno);
	must(msg.event == GU_UFFD_EVENT_PAGEFAULT, "event %d", msg.event);
}

static void finish_copy(int uffd, pthread_t thread, uint64_t value)
{
	uint64_t page[GU_PAGE / 8] = {value};
	must_ok(gu_uffd_copy(uffd, (uintptr_t)source, page, GU_PAGE, 0, NULL));
	pthread_join(thread, NULL);
	ck_assert_uint_eq(*counter(2), value);
	must_ok(madvise(source, GU_PAGE, MADV_DONTNEED));
}

/* Of a call that writes to pages it holds, a report belongs to the taking hold and not to the bytes: a pin makes up for it. */
START_TEST(writes_under_way)
{
	pthread_t thread;
	bool user_only = true;
	NEED_CASE(_i);
	if (!make_case(is_huge() ? 6 : 16))
		GU_LACKS(memory_need(), "no memory of kind %d", mem.kind);
	int uffd = gu_uffd_open(0, &user_only);
	if (uffd < 0 || user_only)
		GU_LACKS("uffd", "needs a privilege");
	source = mmap(NULL, GU_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	must_ok(gu_uffd_register(uffd, (uintptr_t)source, GU_PAGE, GU_UFFD_REGISTER_MISSING, NULL));
	begin(watch[0]);
	start_copy(uffd, &thread);
	ck_assert(collected(watch[0])->has[2]);
	finish_copy(uffd, thread, 42);
	struct set *set = collected(watch[0]);
	ck_assert_int_eq(set->has[2], accesses); /* by looking at it here */
	ck_ok(gcuffd_watch_pin(watch[0], page_at(2), 1));
	start_copy(uffd, &thread);
	ck_assert(collected(watch[0])->has[2]);
	finish_copy(uffd, thread, 43);
	ck_assert(collected(watch[0])->has[2]);
	close(uffd);
}
END_TEST

/* Writes into a registered buffer of io_uring go to its pages, by no page table: a pin makes up for it. */
START_TEST(registered_buffers)
{
	struct ring ring;
	uint64_t value = 42;
	NEED_CASE(_i);
	if (!make_case(is_huge() ? 6 : 16))
		GU_LACKS(memory_need(), "no memory of kind %d", mem.kind);
	struct iovec buffer = {page_at(2), 4096};
	if (!ring_make(&ring) || syscall(SYS_io_uring_register, ring.fd, IORING_REGISTER_BUFFERS, &buffer, 1))
		GU_LACKS("io_uring", "no io_uring, or no buffers for it");
	begin(watch[0]);
	ck_assert(ring_read(&ring, IORING_OP_READ_FIXED, counter(2), &value));
	ck_assert_uint_eq(collected(watch[0])->count, 0);
	ck_assert_uint_eq(*counter(2), 42);
	(void)collected(watch[0]);
	ck_ok(gcuffd_watch_pin(watch[0], page_at(2), 1));
	ck_assert(ring_read(&ring, IORING_OP_READ_FIXED, counter(2), &value));
	ck_assert(is_set(collected(watch[0]), 2));
	ring_close(&ring);
}
END_TEST

static Suite *make_suite(void)
{
	Suite *suite = suite_create("tracking_load");
	TCase *load_case = test_case(suite, "load"), *changing = test_case(suite, "changing");
	TCase *pinned = test_case(suite, "pinned");
	tcase_add_unchecked_fixture(load_case, more_huge_pages, fewer_huge_pages);
	tcase_add_unchecked_fixture(load_case, begin_thp, end_thp);
	tcase_add_loop_test(load_case, no_write_is_lost, 0, CASES);
	tcase_add_unchecked_fixture(changing, more_huge_pages, fewer_huge_pages);
	tcase_add_unchecked_fixture(changing, begin_thp, end_thp);
	tcase_add_unchecked_fixture(changing, begin_swap, end_swap);
	tcase_add_loop_test(changing, no_write_is_lost_while_pages_change, 0, CASES);
	tcase_add_unchecked_fixture(pinned, more_huge_pages, fewer_huge_pages);
	tcase_add_unchecked_fixture(pinned, begin_thp, end_thp);
	tcase_add_loop_test(pinned, writes_under_way, 0, CASES);
	tcase_add_loop_test(pinned, registered_buffers, 0, CASES);
	return suite;
}

TEST_MAIN(make_suite)
