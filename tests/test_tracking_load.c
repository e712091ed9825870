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

/* Shared with the writers that are other processes. */
static struct load {
	uint32_t go, done, ready[WRITERS], failed[WRITERS]; /* atomic */
	int tracee;                                     /* a thread's id */
	uint64_t writes[WRITERS];                       /* atomic; each its writer's */
	uint64_t log[MAX_PAGES];                        /* atomic, the owner's: the number that it writes there, noted before */
	uint64_t landed[MAX_PAGES];                     /* the same, noted after */
	uint64_t copy[COLLECTORS][MAX_PAGES];           /* atomic, the collector's: what it found after a report */
} *load;

static uint64_t *counter(size_t page) { return (uint64_t *)(page_at(page) + 8 * (page % 8)); }

static bool is_done(void) { return __atomic_load_n(&load->done, __ATOMIC_RELAXED); }

/*
 * Every second page of a writer is written at full speed. The others are written again only when all collectors have found the
 * last number there: so each single write of these must be reported.
 */
static bool may_write(size_t page)
{
	bool found = true;
	for (int c = 0; c < COLLECTORS; c++)
		found = found && __atomic_load_n(&load->copy[c][page], __ATOMIC_ACQUIRE) == load->log[page];
	return found || page / WRITERS % 2 == 0;
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

static bool ring_make(struct ring *r)
{
	struct io_uring_params p;
	memset(&p, 0, sizeof(p));
	r->file = memfd_create("source", MFD_CLOEXEC);
	r->fd = (int)syscall(SYS_io_uring_setup, 1, &p);
	if (r->fd < 0 || !(p.features & IORING_FEAT_SINGLE_MMAP))
		return false;
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
	if (t->has_ring)
		must(ring_read(&t->ring, IORING_OP_READ, counter(page), &n), "io_uring");
	else
		by_read(t, page, n);
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
	static void (*const calls[])(struct tools *, size_t, uint64_t) = {by_read, by_recv, by_ring, by_futex};
	calls[test_below(&t->rng, GU_ARRAY_LEN(calls))](t, page, n);
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
		writes[me](t, page, next);
		__atomic_store_n(&load->landed[page], next, __ATOMIC_RELEASE);
		__atomic_add_fetch(&load->writes[me], 1, __ATOMIC_RELAXED);
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
	return !ptrace(PTRACE_SEIZE, load->tracee, NULL, NULL) && !ptrace(PTRACE_INTERRUPT, load->tracee, NULL, NULL) &&
	       waitpid(load->tracee, &status, __WALL) == load->tracee;
}

/* One number, to find out whether it is allowed: what it writes there is there already. */
static bool can_write(pid_t target)
{
	uint64_t n = 0;
	struct iovec from = {&n, 8}, to = {&load->log[OUTSIDE], 8};
	return process_vm_writev(target, &from, 1, &to, 1, 0) == 8;
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

/* Looking at a page is an access: so if that is what is watched, only where there is something new. */
static void find_number(struct collector *c, size_t page)
{
	uint64_t *copy = &load->copy[c->me][page];
	c->again[page] = is_under_way(page);
	if (!accesses || __atomic_load_n(&load->log[page], __ATOMIC_ACQUIRE) != *copy)
		__atomic_store_n(copy, __atomic_load_n(counter(page), __ATOMIC_RELAXED), __ATOMIC_RELEASE);
}

static void find_numbers(struct collector *c)
{
	struct set set;
	memset(&set, 0, sizeof(set));
	must_ok(report_into(&set, watch[c->me], gcuffd_watch_collect, 7));
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

static bool move_to_random_node(struct test_rng *rng) { return has_nodes() && move_pages_to((int)test_below(rng, 2)) >= 0; }

static bool protect_anew(struct test_rng *rng)
{
	char *at;
	size_t len;
	choose_span(rng, &at, &len);
	return !mprotect(at, len, PROT_READ | PROT_WRITE | PROT_EXEC) && !mprotect(at, len, PROT_READ | PROT_WRITE);
}

static bool advise_any(struct test_rng *rng)
{
	static const int advice[] = {MADV_PAGEOUT, MADV_COLD, MADV_WILLNEED, MADV_COLLAPSE, MADV_POPULATE_READ};
	char *at;
	size_t len;
	if (accesses && !is_private()) /* what is unmapped is not known then: test_tracking shared_pages_unmapped_again */
		return false;
	choose_span(rng, &at, &len);
	return !madvise(at, len, advice[test_below(rng, GU_ARRAY_LEN(advice))]);
}

static bool fork_nothing(struct test_rng *rng)
{
	(void)rng;
	pid_t pid = is_huge() ? 0 : fork(); /* copies of huge pages may be more than there are */
	if (!is_huge() && pid == 0)
		_exit(0);
	must(pid == 0 || waitpid(pid, NULL, 0) == pid, "errno %d", errno);
	return true;
}

static void *disturb(void *arg)
{
	static doing_fn *const doings[] = {move_to_random_node, protect_anew, advise_any, fork_nothing};
	struct test_rng rng = test_rng(900);
	while (!is_done()) {
		(void)doings[test_below(&rng, GU_ARRAY_LEN(doings))](&rng);
		usleep(200);
	}
	return arg;
}

/* ---- the run ---- */

static uint64_t least_writes(void)
{
	uint64_t least = UINT64_MAX;
	for (int i = 0; i < WRITERS; i++)
		if (!load->failed[i])
			least = gu_min(least, __atomic_load_n(&load->writes[i], __ATOMIC_RELAXED));
	return least;
}

/* So many writes by each; a machine that does not get there in time is to show what was lost until then. */
static void wait_for_work(const struct collector *c)
{
	uint64_t goal = check_rounds(200 * check_seconds());
	uint64_t stop = test_now_ns() + (20 + check_seconds()) * 1000000000ull;
	bool enough = false;
	while (!enough && test_now_ns() < stop) {
		usleep(1000);
		enough = least_writes() >= goal;
		for (int i = 0; i < COLLECTORS; i++)
			enough = enough && __atomic_load_n(&c[i].rounds, __ATOMIC_RELAXED) >= goal / 20;
	}
}

static void check_numbers(struct collector *c)
{
	for (size_t p = 0; p < mem.pages; p++) {
		uint64_t is = load->copy[c->me][p], log = load->log[p];
		ck_assert_msg(is == log && is == *counter(p),
			      "kind %d%s, collector %d, page %zu: %lu, written were %lu, there is %lu, %lu rounds", mem.kind,
			      accesses ? ", accesses" : "", c->me, p, (unsigned long)is, (unsigned long)log,
			      (unsigned long)*counter(p), (unsigned long)c->rounds);
	}
}

static void wait_until_ready(void)
{
	for (int i = OUTSIDE; i < WRITERS; i++) {
		while (!__atomic_load_n(&load->ready[i], __ATOMIC_ACQUIRE))
			usleep(100);
		if (load->failed[i])
			printf("not tried: %s\n", i == POKES ? "ptrace" : "process_vm_writev");
	}
}

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
		c[i] = (struct collector){.me = i};
		begin(watch[i]);
	}
	__atomic_store_n(&load->go, 1, __ATOMIC_RELEASE);
	for (uintptr_t i = STORES; i <= CALLS; i++)
		must_ok(pthread_create(&thread[n++], NULL, write_as_thread, (void *)i));
	for (int i = 0; i < COLLECTORS; i++)
		must_ok(pthread_create(&thread[n++], NULL, collect_numbers, &c[i]));
	if (disturbed)
		must_ok(pthread_create(&thread[n++], NULL, disturb, NULL));
	wait_for_work(c);
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

START_TEST(no_write_is_lost)
{
	NEED_CASE(_i);
	if (!make_case(is_huge() ? 8 : 128))
		GU_LACKS(memory_need(), "no memory of kind %d", mem.kind);
	ck_ok(gcuffd_watch_create(0, &watch[1]));
	run_load(false);
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
	TCase *load_case = test_case(suite, "load"), *pinned = test_case(suite, "pinned");
	tcase_add_unchecked_fixture(load_case, more_huge_pages, fewer_huge_pages);
	tcase_add_unchecked_fixture(load_case, begin_thp, end_thp);
	tcase_add_unchecked_fixture(load_case, begin_swap, end_swap);
	tcase_add_loop_test(load_case, no_write_is_lost, 0, CASES);
	tcase_add_loop_test(load_case, no_write_is_lost_while_pages_change, 0, CASES);
	tcase_add_unchecked_fixture(pinned, more_huge_pages, fewer_huge_pages);
	tcase_add_unchecked_fixture(pinned, begin_thp, end_thp);
	tcase_add_loop_test(pinned, writes_under_way, 0, CASES);
	tcase_add_loop_test(pinned, registered_buffers, 0, CASES);
	return suite;
}

TEST_MAIN(make_suite)
