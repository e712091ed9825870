/* SPDX-License-Identifier: MIT */
/*
 * test_watch_world.c - the watch interface with everything else going on: writers and collectors at full speed, writes
 * by the kernel and other processes, events, fork, swap, huge pages, KSM, system calls that fail, and random operations
 * against a model.
 */
#include "watch.h"

#include <linux/futex.h>
#include <linux/io_uring.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>

#include "base/meta.h"
#include "fake_os.h"
#include "machine.h"

/* ---- no write is lost ---- */

#define WRITERS 2
#define COLLECTORS 3

static uint32_t done;

static uint64_t *counter(size_t page) { return (uint64_t *)(page_at(page) + 8 * (page % 8)); }

/* Each owns every second page; some writes are the kernel's. */
static void *write_pages(void *arg)
{
	size_t me = (uintptr_t)arg;
	struct test_rng rng = test_rng(me);
	int fd = memfd_create("writes", 0);
	must(fd >= 0, "errno %d", errno);
	while (!__atomic_load_n(&done, __ATOMIC_RELAXED)) {
		size_t page = test_below(&rng, mem.pages / WRITERS) * WRITERS + me;
		uint64_t next = *counter(page) + 1;
		if (test_below(&rng, 8))
			__atomic_store_n(counter(page), next, __ATOMIC_RELAXED);
		else
			must(pwrite(fd, &next, 8, 0) == 8 && pread(fd, counter(page), 8, 0) == 8, "errno %d", errno);
	}
	close(fd);
	return NULL;
}

struct collector {
	struct gcuffd_watch *watch;
	uint64_t copy[MAX_PAGES];
	uint64_t rounds;
};

static void copy_reported(struct collector *c)
{
	struct set set;
	memset(&set, 0, sizeof(set));
	must_ok(report_into(&set, c->watch, gcuffd_watch_collect, 7));
	for (size_t i = 0; i < mem.pages; i++)
		if (set.has[i])
			c->copy[i] = __atomic_load_n(counter(i), __ATOMIC_RELAXED);
	c->rounds++;
}

static void *collect_pages(void *arg)
{
	while (!__atomic_load_n(&done, __ATOMIC_RELAXED))
		copy_reported(arg);
	return NULL;
}

static void run_load(void)
{
	static struct collector c[COLLECTORS];
	pthread_t writer[WRITERS], collector[COLLECTORS];
	memset(c, 0, sizeof(c));
	done = 0;
	for (size_t i = 0; i < COLLECTORS; i++) {
		c[i].watch = watch[i];
		for (size_t p = 0; p < mem.pages; p++)
			c[i].copy[p] = *counter(p);
		begin(watch[i]);
	}
	for (uintptr_t i = 0; i < WRITERS; i++)
		must_ok(pthread_create(&writer[i], NULL, write_pages, (void *)i));
	for (size_t i = 0; i < COLLECTORS; i++)
		must_ok(pthread_create(&collector[i], NULL, collect_pages, &c[i]));
	usleep(check_seconds() * 60000);
	__atomic_store_n(&done, 1, __ATOMIC_RELAXED);
	for (size_t i = 0; i < WRITERS; i++)
		pthread_join(writer[i], NULL);
	for (size_t i = 0; i < COLLECTORS; i++)
		pthread_join(collector[i], NULL);
	for (size_t i = 0; i < COLLECTORS; i++) {
		copy_reported(&c[i]);
		for (size_t p = 0; p < mem.pages; p++)
			ck_assert_msg(c[i].copy[p] == *counter(p), "collector %zu, page %zu: %lu and not %lu, after %lu rounds", i, p,
				      (unsigned long)c[i].copy[p], (unsigned long)*counter(p), (unsigned long)c[i].rounds);
	}
	checked_table();
}

/* Copies that are kept up by reports alone are the memory, for each watcher. */
START_TEST(no_write_is_lost)
{
	NEED_KIND(_i, _i < HUGE ? 256 : 6);
	ck_ok(make_watchers(COLLECTORS, 0));
	run_load();
}
END_TEST

/* ---- writes that are none of the program's instructions ---- */

static bool in_child(int (*fn)(pid_t parent))
{
	int status = -1;
	fflush(stdout);
	pid_t parent = getpid(), pid = fork();
	must(pid >= 0, "errno %d", errno);
	if (pid == 0)
		_exit(fn(parent));
	while (waitpid(pid, &status, 0) < 0)
		must(errno == EINTR, "errno %d", errno);
	return status == 0;
}

static int write_from_outside(pid_t parent)
{
	char c = 42;
	struct iovec from = {&c, 1}, to = {page_at(2) + 7, 1};
	return process_vm_writev(parent, &from, 1, &to, 1, 0) == 1 ? 0 : 1;
}

static int poke_from_outside(pid_t parent)
{
	int status;
	if (ptrace(PTRACE_ATTACH, parent, NULL, NULL) || waitpid(parent, &status, 0) != parent)
		return 1;
	long err = ptrace(PTRACE_POKEDATA, parent, page_at(2), (void *)42);
	return ptrace(PTRACE_DETACH, parent, NULL, NULL) || err;
}

static int write_proc_mem(pid_t parent)
{
	char path[64];
	snprintf(path, sizeof(path), "/proc/%d/mem", (int)parent);
	int fd = open(path, O_RDWR);
	return fd >= 0 && pwrite(fd, "x", 1, (off_t)(uintptr_t)page_at(2)) == 1 ? 0 : 1;
}

static bool by_read(void)
{
	int fd = open("/dev/zero", O_RDONLY);
	bool ok = read(fd, page_at(2) + 9, 3) == 3;
	close(fd);
	return ok;
}

static bool by_recv(void)
{
	int s[2];
	bool ok = !socketpair(AF_UNIX, SOCK_STREAM, 0, s) && send(s[0], "hello", 5, 0) == 5 && recv(s[1], page_at(2), 5, 0) == 5;
	close(s[0]);
	close(s[1]);
	return ok;
}

static bool by_futex(void)
{
	uint32_t word = 0, *there = (uint32_t *)page_at(2);
	*(volatile uint32_t *)there; /* the kernel only looks where a page is */
	return syscall(SYS_futex, &word, FUTEX_WAKE_OP, 1, 1, there, FUTEX_OP(FUTEX_OP_SET, 77, FUTEX_OP_CMP_EQ, 0)) >= 0 && *there == 77;
}

static bool by_vm_writev(void) { return in_child(write_from_outside); }
static bool by_ptrace(void) { return in_child(poke_from_outside); }
static bool by_proc_mem(void) { return in_child(write_proc_mem); }

/* One read by io_uring, with nothing registered. */
static bool by_io_uring(void)
{
	struct io_uring_params p;
	memset(&p, 0, sizeof(p));
	int zero = open("/dev/zero", O_RDONLY), ring = (int)syscall(SYS_io_uring_setup, 1, &p);
	if (ring < 0)
		return false;
	size_t len = p.sq_off.array + p.sq_entries * sizeof(uint32_t);
	char *sq = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_SQ_RING);
	struct io_uring_sqe *sqe = mmap(NULL, sizeof(*sqe), PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_SQES);
	must(sq != MAP_FAILED && sqe != MAP_FAILED, "errno %d", errno);
	memset(sqe, 0, sizeof(*sqe));
	sqe->opcode = IORING_OP_READ;
	sqe->fd = zero;
	sqe->addr = (uintptr_t)page_at(2) + 8;
	sqe->len = 16;
	((uint32_t *)(sq + p.sq_off.array))[0] = 0;
	__atomic_store_n((uint32_t *)(sq + p.sq_off.tail), 1, __ATOMIC_RELEASE);
	bool ok = syscall(SYS_io_uring_enter, ring, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0) == 1;
	munmap(sq, len);
	munmap(sqe, sizeof(*sqe));
	close(ring);
	close(zero);
	return ok;
}

static const struct {
	const char *name;
	bool (*write)(void);
	bool may_fail; /* a sandbox may refuse it */
} writers[] = {
	{"read", by_read, false}, {"recv", by_recv, false}, {"futex", by_futex, false}, {"process_vm_writev", by_vm_writev, true},
	{"ptrace", by_ptrace, true}, {"/proc/PID/mem", by_proc_mem, true}, {"io_uring", by_io_uring, true},
};

START_TEST(writes_by_others)
{
	NEED_KIND(_i, 4);
	prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY, 0, 0, 0);
	begin(watch[0]);
	for (size_t i = 0; i < GU_ARRAY_LEN(writers); i++) {
		if (mem.kind == HUGE && i == 2)
			(void)look(2), (void)collected(watch[0]);
		if (!writers[i].write()) {
			ck_assert_msg(writers[i].may_fail, "%s failed", writers[i].name);
			printf("not tried: %s\n", writers[i].name);
			(void)collected(watch[0]);
			continue;
		}
		ck_assert_msg(is_set(collected(watch[0]), 2), "%s", writers[i].name);
	}
}
END_TEST

/* A mapping that forbids it is written to all the same by ptrace, and by /proc/PID/mem unless the kernel is told to refuse: if private. */
START_TEST(forced_writes)
{
	static bool (*const force[])(void) = {by_proc_mem, by_ptrace};
	NEED_KIND(_i, 6);
	prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY, 0, 0, 0);
	begin(watch[0]);
	for (int i = 0; i < 4; i++) {
		ck_ok(mprotect(mem.at, mem.pages * mem.page, i % 2 ? PROT_NONE : PROT_READ));
		bool written = force[i / 2]();
		ck_assert_msg(written == is_private() || (i < 2 && !written), "%d", written);
		ck_assert(written ? is_set(collected(watch[0]), 2) : collected(watch[0])->count == 0);
	}
}
END_TEST

/* ---- events ---- */

#define NEED_EVENTS(kind, count) \
	do { \
		NEED_KIND(kind, count); \
		ck_ok(gcuffd_watch_create(GCUFFD_WATCH_EVENTS, &watch[1])); \
		begin(watch[1]); \
	} while (0)

static char *move_to(char *from, size_t len, size_t new_len)
{
	char *to = reserve(new_len);
	char *p = mremap(from, len, new_len, MREMAP_MAYMOVE | MREMAP_FIXED, to);
	return p == MAP_FAILED ? NULL : p;
}

START_TEST(moves_with_what_is_pending)
{
	NEED_EVENTS(_i, 6);
	touch(1);
	(void)peeked(watch[1]);
	touch(2);
	char *to = move_to(mem.at, 6 * mem.page, 6 * mem.page);
	if (!to)
		GU_SKIP("huge pages can't be moved here");
	mem.at = to;
	touch(4);
	ck_assert(is_set(collected(watch[1]), 1, 2, 4));
	ck_assert_uint_eq(watch_stats(watch[1]).moved_bytes, 6 * mem.page);
	ck_assert_uint_ge(watch_stats(watch[1]).events, 1);
	ck_assert_uint_eq(collected(watch[1])->count, 0);
	touch(0);
	ck_assert(is_set(collected(watch[1]), 0));
	checked_table();
	ck_ok(gcuffd_watch_destroy(watch[1]));
	ck_ok(gcuffd_watch_destroy(watch[0]));
}
END_TEST

/* A part moves into the middle of another watched range, a pin with it; a hole stays behind. */
START_TEST(moves_onto_what_is_watched)
{
	struct gcuffd_watch_stats s;
	NEED_EVENTS(_i, 8);
	if (is_huge())
		GU_SKIP("huge pages can't be moved here");
	ck_ok(gcuffd_watch_pin(watch[1], page_at(1), mem.page));
	(void)collected(watch[1]);
	touch(0);
	touch(2);
	ck_assert_ptr_eq(mremap(page_at(1), 2 * mem.page, 2 * mem.page, MREMAP_MAYMOVE | MREMAP_FIXED, page_at(5)), page_at(5));
	ck_assert(is_set(collected(watch[1]), 0, 5, 6));
	ck_assert(is_set(collected(watch[1]), 5));
	s = watch_stats(watch[1]);
	ck_assert_uint_eq(s.watched_bytes, 6 * mem.page);
	touch(6);
	touch(7);
	touch(3);
	ck_assert(is_set(collected(watch[1]), 3, 5, 6, 7));
	ck_ok(gcuffd_watch_unpin(watch[1], page_at(5), mem.page));
	checked_table();
}
END_TEST

/* What another watcher has there, and this one has not, moves under it: to it all is written. */
START_TEST(moves_among_watchers)
{
	NEED_KIND(ANON, 8);
	ck_ok(make_watchers(2, GCUFFD_WATCH_EVENTS));
	ck_ok(begin_on(watch[0], 0, 4));
	ck_ok(begin_on(watch[1], 4, 8));
	touch(1);
	touch(7);
	(void)peeked(watch[1]);
	ck_assert_ptr_eq(mremap(page_at(0), 3 * mem.page, 3 * mem.page, MREMAP_MAYMOVE | MREMAP_FIXED, page_at(4)), page_at(4));
	ck_assert(is_set(collected(watch[1]), 4, 5, 6, 7));
	ck_assert(is_set(collected(watch[0]), 5));
	touch(6);
	ck_assert(is_set(collected(watch[1]), 6));
	ck_assert(is_set(collected(watch[0]), 6));
	checked_table();
}
END_TEST

START_TEST(grows_and_shrinks_by_mremap)
{
	NEED_EVENTS(_i, 4);
	if (is_huge())
		GU_SKIP("huge pages can't be moved here");
	if (mem.fd >= 0)
		ck_ok(ftruncate(mem.fd, 8 * (off_t)mem.page));
	char *to = move_to(mem.at, 4 * mem.page, 8 * mem.page);
	ck_assert_ptr_nonnull(to);
	mem.at = to;
	mem.pages = mem.kind == SHMEM ? 4 : 8; /* its file does not grow */
	touch(1);
	ck_assert(is_set(collected(watch[1]), 1));
	if (mem.pages == 8) {
		ck_ok(begin_on(watch[1], 4, 8));
		touch(7);
		ck_assert(is_set(collected(watch[1]), 7));
	}
	ck_assert_ptr_eq(mremap(mem.at, 8 * mem.page, 2 * mem.page, 0), mem.at);
	touch(0);
	ck_assert(is_set(collected(watch[1]), 0));
	ck_assert_uint_eq(watch_stats(watch[1]).watched_bytes, 2 * mem.page);
	checked_table();
}
END_TEST

/* Of shared memory only an event tells that content went: without, an armed page leaves a marker. */
START_TEST(punched_holes)
{
	NEED_KIND(_i, 6);
	begin(watch[0]);
	if (_i == HUGE || !map_flags(mem.kind) || is_private())
		GU_SKIP("private memory has no holes to punch");
	ck_ok(madvise(page_at(1), mem.page, MADV_REMOVE));
	ck_assert_uint_eq(collected(watch[0])->count, 0);
	ck_ok(gcuffd_watch_create(GCUFFD_WATCH_EVENTS, &watch[1]));
	ck_assert_uint_eq(collected(watch[0])->count, 6); /* another context */
	ck_ok(madvise(page_at(2), mem.page, MADV_REMOVE));
	ck_assert(is_set(collected(watch[0]), 2));
	ck_assert_int_eq(look(2), 0);
}
END_TEST

START_TEST(unmapping_with_events)
{
	NEED_EVENTS(_i, 6);
	ck_ok(munmap(page_at(2), 2 * mem.page));
	ck_ok(madvise(page_at(0), mem.page, MADV_DONTNEED));
	touch(5);
	ck_assert(is_set(collected(watch[1]), 0, 5));
	ck_assert_uint_eq(watch_stats(watch[1]).watched_bytes, 4 * mem.page);
	ck_assert_ptr_eq(mmap(page_at(4), mem.page, PROT_READ | PROT_WRITE, map_flags(mem.kind) | MAP_FIXED, mem.fd, 0), page_at(4));
	ck_assert(is_set(collected(watch[1]), 4));
	ck_assert_uint_eq(collected(watch[1])->count, 0);
}
END_TEST

/* More events than the ring holds, while nobody looks. */
START_TEST(too_many_events)
{
	NEED_EVENTS(ANON, 8);
	for (int i = 0; i < 4000; i++)
		ck_ok(madvise(page_at(1), mem.page, MADV_DONTNEED));
	ck_assert_uint_eq(collected(watch[1])->count, 8);
	ck_assert_uint_eq(collected(watch[1])->count, 0);
	touch(3);
	ck_assert(is_set(collected(watch[1]), 3));
}
END_TEST

/* Nobody else's mapping may come to where the next move puts a page: the place is taken at once, or another is. */
static char *take_place(char *at)
{
	char *p = mmap(at, mem.page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0);
	return p == at ? at : reserve(mem.page);
}

static uint32_t looks; /* atomic; how often reports were asked for */

/* Where the ring of events is full a move is lost, and with it what was watched there: so each waits for a look now and then. */
static void let_look(unsigned moves)
{
	uint32_t seen = __atomic_load_n(&looks, __ATOMIC_SEQ_CST);
	while (moves % 100 == 0 && __atomic_load_n(&looks, __ATOMIC_SEQ_CST) == seen && !__atomic_load_n(&done, __ATOMIC_RELAXED))
		usleep(100);
}

/* Each moves a page of its own to and fro, unmaps and empties, and counts up; what is reported keeps up with it. */
static void *move_about(void *arg)
{
	size_t page = (uintptr_t)arg;
	struct test_rng rng = test_rng(page);
	char *places[2] = {page_at(page), reserve(mem.page)};
	for (unsigned n = 0; !n || !__atomic_load_n(&done, __ATOMIC_RELAXED); n++) {
		char *from = places[n % 2], *to = places[(n + 1) % 2];
		must(mremap(from, mem.page, mem.page, MREMAP_MAYMOVE | MREMAP_FIXED, to) == to, "errno %d", errno);
		places[n % 2] = take_place(from);
		(*(volatile uint64_t *)to)++;
		if (test_below(&rng, 4) == 0)
			must_ok(madvise(to, mem.page, MADV_DONTNEED));
		char *other = mmap(NULL, mem.page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		must(other != MAP_FAILED, "errno %d", errno);
		must_ok(munmap(other, mem.page));
		let_look(n);
	}
	return NULL;
}

START_TEST(moving_at_full_speed)
{
	static struct collector c;
	pthread_t mover[2];
	struct gcuffd_run runs[16];
	size_t count;
	void *next;
	NEED_EVENTS(ANON, 8);
	memset(&c, 0, sizeof(c));
	done = 0;
	for (uintptr_t i = 0; i < 2; i++)
		must_ok(pthread_create(&mover[i], NULL, move_about, (void *)(i * 4)));
	uint64_t stop = test_now_ns() + check_seconds() * 60000000ull;
	while (test_now_ns() < stop) {
		int err = gcuffd_watch_collect(watch[1], NULL, SIZE_MAX, runs, 16, &count, &next);
		ck_assert_msg(!err || err == -EAGAIN, "%d", err);
		__atomic_fetch_add(&looks, 1, __ATOMIC_SEQ_CST);
	}
	__atomic_store_n(&done, 1, __ATOMIC_RELAXED);
	for (int i = 0; i < 2; i++)
		pthread_join(mover[i], NULL);
	checked_table();
	(void)gcuffd_watch_collect(watch[1], NULL, SIZE_MAX, runs, 16, &count, &next);
	ck_assert_uint_eq(watch_stats(watch[1]).watched_bytes, 8 * mem.page);
	ck_assert_uint_ge(watch_stats(watch[1]).moved_bytes, mem.page);
	ck_ok(gcuffd_watch_end(watch[1], NULL, SIZE_MAX));
}
END_TEST

/* ---- fork ---- */

static int use_child(void)
{
	struct set *set = collected(watch[0]);
	if (set->count != mem.pages)
		return 1;
	if (collected(watch[0])->count)
		return 2;
	touch(1);
	if (!is_set(collected(watch[0]), 1))
		return 3;
	if (watch[1] && (gcuffd_watch_end(watch[1], page_at(0), mem.page) || gcuffd_watch_destroy(watch[1])))
		return 4;
	touch(3);
	return is_set(collected(watch[0]), 3) && !gcuffd_watch_destroy(watch[0]) ? 0 : 5;
}

/* The child finds all written, and goes on from there; the parent notices nothing. */
static void fork_once(long (*do_fork)(void))
{
	int status = -1;
	touch(2);
	fflush(stdout);
	pid_t pid = (pid_t)do_fork();
	must(pid >= 0, "errno %d", errno);
	if (pid == 0) {
		limit_child();
		_exit(use_child());
	}
	ck_assert_int_eq(waitpid(pid, &status, 0), pid);
	ck_assert_int_eq(status, 0);
	touch(0);
	ck_assert(is_set(collected(watch[0]), 0, 2));
	ck_assert_uint_eq(collected(watch[0])->count, 0);
}

static long by_fork(void) { return fork(); }
static long by_raw_fork(void) { return syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0); }

START_TEST(forks)
{
	NEED_KIND(_i, 4);
	if (is_private() == false && mem.kind != MEMFD && mem.kind != SHMEM)
		GU_SKIP("a child's writes to shared huge pages");
	begin(watch[0]);
	fork_once(by_fork);
	ck_ok(gcuffd_watch_create(GCUFFD_WATCH_EVENTS, &watch[1]));
	(void)collected(watch[0]);
	begin(watch[1]);
	fork_once(by_fork);
	fork_once(by_raw_fork);
	ck_ok(gcuffd_watch_destroy(watch[1]));
	watch[1] = NULL;
	fork_once(by_fork);
}
END_TEST

static void *collect_and_remap(void *arg)
{
	struct gcuffd_watch *w = arg;
	char *p = mmap(NULL, 8 * GU_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	while (!__atomic_load_n(&done, __ATOMIC_RELAXED)) {
		struct gcuffd_run run;
		size_t count;
		void *next;
		must_ok(gcuffd_watch_begin(w, p, 8 * GU_PAGE, GCUFFD_WATCH_PRECISE));
		p[0]++;
		must_ok(gcuffd_watch_collect(w, p, 8 * GU_PAGE, &run, 1, &count, &next));
		must(count == 1 && run.start == p, "%zu runs", count);
		must_ok(madvise(p, GU_PAGE, MADV_DONTNEED));
		must_ok(gcuffd_watch_end(w, p, 8 * GU_PAGE));
	}
	return NULL;
}

/* While other threads are in calls of the interface. */
START_TEST(forks_under_load)
{
	NO_SANITIZER("its locks do not survive a fork with threads");
	pthread_t t[2];
	NEED_KIND(ANON, 4);
	ck_ok(make_watchers(3, _i ? GCUFFD_WATCH_EVENTS : 0));
	begin(watch[0]);
	done = 0;
	for (int i = 0; i < 2; i++)
		must_ok(pthread_create(&t[i], NULL, collect_and_remap, watch[i + 1]));
	for (int i = 0; i < 30; i++) {
		pid_t pid = fork();
		must(pid >= 0, "errno %d", errno);
		if (pid == 0) {
			limit_child();
			_exit(collected(watch[0])->count == 4 && !gcuffd_watch_destroy(watch[1]) ? 0 : 1);
		}
		int status = -1;
		ck_assert(waitpid(pid, &status, 0) == pid && status == 0);
	}
	__atomic_store_n(&done, 1, __ATOMIC_RELAXED);
	for (int i = 0; i < 2; i++)
		pthread_join(t[i], NULL);
	for (int i = 0; i < 3; i++)
		ck_ok(gcuffd_watch_destroy(watch[i]));
}
END_TEST

/* Cycles of a heap whose roots are the whole process go on beside it. */
START_TEST(beside_a_heap)
{
	NO_SANITIZER("process roots");
	pthread_t t;
	NEED_WATCH();
	struct gcuffd_heap *heap = heap_make("process_roots=1,verify=1,start_size=1M");
	ck_ok(make_watchers(1, GCUFFD_WATCH_EVENTS));
	done = 0;
	must_ok(pthread_create(&t, NULL, collect_and_remap, watch[0]));
	void *volatile kept = NULL;
	for (int i = 0; i < 40000; i++) {
		void **next = gcuffd_alloc(heap, 100);
		must(next != NULL, "errno %d", errno);
		*next = i % 1000 ? kept : NULL;
		kept = next;
	}
	for (int i = 0; i < 3; i++)
		ck_ok(gcuffd_collect(heap));
	ck_assert_uint_eq(stats_of(heap).cycles_put_off, 0);
	__atomic_store_n(&done, 1, __ATOMIC_RELAXED);
	pthread_join(t, NULL);
	verified(heap);
	ck_ok(gcuffd_watch_destroy(watch[0]));
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

/* ---- the kernel's own doings ---- */

/* Only private copies of a file's pages are told again while they are in swap. */
START_TEST(swapped_out_and_in)
{
	NEED_KIND(_i, 8);
	begin(watch[0]);
	touch(1);
	ck_ok(madvise(mem.at, 8 * mem.page, MADV_PAGEOUT));
	if (!has_swap() || (is_private() && !count_entries(0, 4, IN_SWAP)))
		GU_LACKS("swap", "no swap");
	struct set *set = collected(watch[0]);
	bool again = mem.kind == COPY || mem.kind == FILE_COPY;
	ck_assert(again ? set->has[1] && set->count <= 4 : is_set(set, 1));
	ck_ok(madvise(mem.at, 8 * mem.page, MADV_PAGEOUT));
	for (size_t i = 0; i < 8; i++)
		(void)look(i);
	if (again)
		(void)collected(watch[0]);
	ck_assert_uint_eq(collected(watch[0])->count, 0);
	ck_ok(madvise(mem.at, 8 * mem.page, MADV_PAGEOUT));
	touch(2);
	ck_assert(collected(watch[0])->has[2]);
	touch(3);
	ck_ok(madvise(mem.at, 8 * mem.page, MADV_PAGEOUT));
	(void)look(3);
	ck_assert(collected(watch[0])->has[3]);
}
END_TEST

/* What MADV_FREE gave back is empty when the kernel took it, and not before. */
START_TEST(freed_lazily)
{
	NEED_KIND(_i, 8);
	begin(watch[0]);
	for (size_t i = 0; i < 4; i++)
		ck_assert_int_eq(look(i), 1);
	ck_ok(madvise(mem.at, 4 * mem.page, MADV_FREE));
	touch(3);
	ck_assert(is_set(collected(watch[0]), 3));
	ck_ok(madvise(mem.at, 4 * mem.page, MADV_PAGEOUT));
	struct set *set = collected(watch[0]);
	for (size_t i = 0; i < 4; i++)
		ck_assert_msg(look(i) != 0 || set->has[i], "page %zu went unnoticed", i);
}
END_TEST

/* A huge page is armed whole, and split by the first write: then only that page was written; of shared ones, all may be. */
START_TEST(huge_pages_split)
{
	NEED_KIND(_i, 512);
	if (madvise(mem.at, GU_REGION, MADV_HUGEPAGE) || !gu_caps()->has_thp)
		GU_LACKS("thp", "no transparent huge pages");
	memset(mem.at, 1, GU_REGION);
	(void)madvise(mem.at, GU_REGION, MADV_COLLAPSE); /* refused: then they are small, and all the same */
	begin(watch[0]);
	ck_assert_uint_eq(collected(watch[0])->count, 0);
	touch(7);
	struct set *set = collected(watch[0]);
	ck_assert(set->has[7] && (set->count == 1 || (!is_private() && set->count == 512)));
	touch(8);
	(void)madvise(mem.at, GU_REGION, MADV_COLLAPSE);
	set = collected(watch[0]);
	ck_assert(set->has[8]);
	touch(9);
	ck_assert(collected(watch[0])->has[9]);
	ck_ok(madvise(mem.at, GU_REGION, MADV_DONTNEED));
	set = collected(watch[0]);
	ck_assert(set->count == 512 || (!is_private() && set->count == 0));
}
END_TEST

/* Merging drops the bit, if another page takes its place: then it looks written, once. Writes to merged pages are seen. */
START_TEST(merged_pages)
{
	NEED_KIND(ANON, 8);
	memset(mem.at, 7, 4 * mem.page);
	ck_ok(madvise(mem.at, 4 * mem.page, MADV_MERGEABLE));
	begin(watch[0]);
	if (!run_ksm(4))
		GU_LACKS("ksm", "nothing was merged");
	ck_assert_uint_le(collected(watch[0])->count, 4);
	ck_assert_uint_eq(collected(watch[0])->count, 0);
	for (size_t i = 0; i < 4; i++)
		touch(i);
	ck_assert(is_set(collected(watch[0]), 0, 1, 2, 3));
}
END_TEST

/* ---- accesses (7.3) ---- */

START_TEST(accesses)
{
	NEED_KIND(_i, 6);
	mem.flags = GCUFFD_WATCH_ACCESSES;
	if (!gu_caps()->has_rwp_async) {
		ck_assert_int_eq(begin_on(watch[0], 0, 6), -EOPNOTSUPP);
		GU_LACKS("rwp", "no read-write protection");
	}
	if (mem.kind == FILE_COPY)
		GU_SKIP("not of files");
	ck_ok(make_watchers(2, 0));
	begin(watch[0]);
	begin(watch[1]);
	(void)look(0);
	ck_assert(is_set(peeked(watch[0]), 0));
	touch(2);
	ck_assert(is_set(collected(watch[0]), 0, 2));
	ck_assert_uint_eq(collected(watch[0])->count, 0);
	(void)look(2);
	ck_assert(is_set(collected(watch[1]), 0, 2));
	ck_assert(is_set(collected(watch[0]), 2));
	ck_ok(madvise(page_at(1), mem.page, MADV_DONTNEED));
	ck_assert(is_set(collected(watch[0]), 1));
	touch(5);
	ck_assert(is_set(collected(watch[0]), 5));
	mem.flags = 0;
	ck_ok(gcuffd_watch_end(watch[1], page_at(0), 3 * mem.page));
	ck_assert_int_eq(begin_on(watch[1], 0, 2), -EBUSY);
	ck_ok(gcuffd_watch_end(watch[0], page_at(0), 3 * mem.page));
	begin_on(watch[1], 0, 2);
	touch(1);
	ck_assert(collected(watch[1])->has[1]);
}
END_TEST

/* Pages that were accessed and pages that went are told in one order, whatever the report has room for. */
START_TEST(accesses_in_order)
{
	NEED_KIND(_i, 64);
	mem.flags = GCUFFD_WATCH_ACCESSES;
	if (!gu_caps()->has_rwp_async)
		GU_LACKS("rwp", "no read-write protection");
	if (mem.kind == FILE_COPY)
		GU_SKIP("not of files");
	for (size_t i = 0; i < 64; i++)
		touch(i);
	begin(watch[0]);
	for (size_t max = 1; max < 12; max++) {
		struct gcuffd_run runs[12];
		size_t count, told = 0;
		uintptr_t last = 0;
		for (size_t i = 0; i < 64; i += 8) {
			touch(i);
			ck_ok(madvise(page_at(i + 3), 2 * mem.page, MADV_DONTNEED));
			(void)look(i + 6);
		}
		for (void *at = page_at(0), *next; at; at = next) {
			size_t rest = (size_t)((char *)page_at(63) - (char *)at) + mem.page;
			ck_ok(gcuffd_watch_collect(watch[0], at, rest, runs, max, &count, &next));
			for (size_t i = 0; i < count; last = (uintptr_t)runs[i++].end) {
				ck_assert_uint_ge((uintptr_t)runs[i].start, last);
				told += (size_t)((char *)runs[i].end - (char *)runs[i].start) / mem.page;
			}
		}
		ck_assert_uint_eq(told, 32);
		for (size_t i = 3; i < 64; i += 8)
			touch(i), touch(i + 1);
		ck_assert_uint_eq(collected(watch[0])->count, 16);
		ck_assert_uint_eq(collected(watch[0])->count, 0);
	}
}
END_TEST

/* ---- calls that fail ---- */

/* Whatever fails, nothing that was written is left out of the reports of that call and the next. */
START_TEST(each_failing_call)
{
	static const int errors[] = {-ENOMEM, -EINVAL, -EPERM, -EAGAIN};
	NEED_KIND(ANON, 64);
	for (unsigned e = 0; e < GU_ARRAY_LEN(errors); e++) {
		bool fired = true;
		for (unsigned nth = 1; fired; nth++) {
			struct set set;
			memset(&set, 0, sizeof(set));
			fake_install();
			fake_fail(nth % 2 ? FAKE_IOCTL : FAKE_MMAP, (nth + 1) / 2, errors[e]);
			int err = begin_on(watch[0], 0, 64);
			ck_assert_msg(!err == !!watch_stats(watch[0]).watched_bytes, "%d", err);
			fired = fake.fired || (nth % 2 == 0);
			fake_clear();
			if (err)
				begin(watch[0]);
			touch(5);
			touch(63);
			fake_fail(FAKE_IOCTL, nth, errors[e]);
			(void)report_into(&set, watch[0], gcuffd_watch_collect, 5);
			fired |= fake.fired;
			fake_remove();
			struct set *rest = collected(watch[0]);
			ck_assert(set.has[5] || rest->has[5]);
			ck_assert(set.has[63] || rest->has[63]);
			checked_table();
			ck_ok(gcuffd_watch_end(watch[0], NULL, SIZE_MAX));
		}
	}
}
END_TEST

START_TEST(each_failing_creation)
{
	static const int errors[] = {-ENOMEM, -EMFILE};
	NEED_WATCH();
	for (unsigned n = 1; n < 24; n++)
		for (unsigned e = 0; e < GU_ARRAY_LEN(errors); e++) {
			fake_install();
			fake_fail(FAKE_ANY, n, errors[e]);
			int err = gcuffd_watch_create(n % 2 ? GCUFFD_WATCH_EVENTS : 0, &watch[0]);
			fake_remove();
			if (!err)
				ck_ok(gcuffd_watch_destroy(watch[0]));
		}
	int fd = dup(0); /* nothing is left open */
	ck_assert_int_lt(fd, 10);
	ck_assert_ptr_null(gu_watchers);
}
END_TEST

/* ---- random operations against a model ---- */

#define MODEL_PAGES 48

enum { WRITTEN = 1, FIRM };

static struct {
	bool watched[2][MODEL_PAGES]; /* by each watcher */
	uint8_t must[2][MODEL_PAGES]; /* was written since: WRITTEN, or FIRM when dropping it does not undo that */
	bool there[2][MODEL_PAGES];   /* was full when the watcher last looked */
	uint8_t may[2][MODEL_PAGES];  /* so many reports may have it though it was not */
	bool mapped[MODEL_PAGES];
	bool full[MODEL_PAGES];       /* holds something of its own */
} model;

static void model_note(size_t page, uint8_t must_be, uint8_t may)
{
	for (int w = 0; w < 2; w++) {
		if (model.watched[w][page])
			model.must[w][page] = (uint8_t)gu_max(must_be, model.must[w][page]);
		model.may[w][page] = (uint8_t)gu_max(may, model.may[w][page]);
	}
}

static void model_write(size_t page)
{
	if (!model.mapped[page])
		return;
	touch(page);
	model.full[page] = true;
	model_note(page, mem.kind == ANON || mem.kind == COPY || mem.kind == FILE_COPY ? WRITTEN : FIRM, 0);
}

/* Cheaply watched, an empty page that is written and dropped between two looks is what it was. */
static void model_drop(size_t page)
{
	ck_ok(madvise(page_at(page), mem.page, MADV_DONTNEED));
	if (!is_private())
		return;
	for (int w = 0; w < 2; w++)
		if (model.must[w][page] == WRITTEN)
			model.must[w][page] = 0;
	for (int w = 0; w < 2; w++)
		if (model.watched[w][page] && model.there[w][page] && model.full[page])
			model.must[w][page] = FIRM;
	model_note(page, 0, 1);
	model.full[page] = false;
}

static void model_map(size_t from, size_t to)
{
	char *p = mmap(page_at(from), (to - from) * mem.page, PROT_READ | PROT_WRITE, map_flags(mem.kind) | MAP_FIXED, mem.fd,
		       (off_t)(from * mem.page));
	ck_assert_ptr_eq(p, page_at(from));
	for (size_t i = from; i < to; i++) {
		model_note(i, model.mapped[i] ? FIRM : 0, 1);
		model.mapped[i] = true;
		model.full[i] = false;
	}
}

/* Ended where the next look finds it; here at once, so that mapping it again later does not matter. */
static void model_check(int w, bool reset);

static void model_unmap(size_t from, size_t to)
{
	ck_ok(munmap(page_at(from), (to - from) * mem.page));
	for (size_t i = from; i < to; i++)
		model.mapped[i] = model.watched[0][i] = model.watched[1][i] = model.full[i] = false;
	model_check(0, false);
	model_check(1, false);
}

static void model_begin(int w, size_t from, size_t to)
{
	bool free = true, mapped = true;
	for (size_t i = from; i < to; i++) {
		free = free && !model.watched[w][i];
		mapped = mapped && model.mapped[i];
	}
	int err = begin_on(watch[w], from, to);
	ck_assert_int_eq(err, !free ? -EEXIST : !mapped ? -ENOENT : 0);
	for (size_t i = from; i < to && !err; i++) {
		model.watched[w][i] = true;
		model.must[w][i] = model.may[w][i] = 0;
		model.there[w][i] = model.full[i];
	}
}

static void model_end(int w, size_t from, size_t to)
{
	int err = gcuffd_watch_end(watch[w], page_at(from), (to - from) * mem.page);
	ck_assert(!err || err == -ENOENT);
	for (size_t i = from; i < to; i++)
		model.watched[w][i] = false;
}

static void model_check(int w, bool reset)
{
	static struct set set;
	memset(&set, 0, sizeof(set));
	int err = report_into(&set, watch[w], reset ? gcuffd_watch_collect : gcuffd_watch_peek, 5);
	ck_assert_msg(!err || err == -ENOENT, "%d", err);
	for (size_t i = 0; i < MODEL_PAGES; i++) {
		bool must_be = model.watched[w][i] && model.must[w][i], may = model.watched[w][i] && model.may[w][i];
		ck_assert_msg(!must_be || set.has[i], "kind %d: page %zu was left out", mem.kind, i);
		ck_assert_msg(must_be || may || !set.has[i], "kind %d: page %zu was not written", mem.kind, i);
		model.there[w][i] = model.full[i];
		if (reset || model.must[w][i])
			model.must[w][i] = reset ? 0 : FIRM;
		if (reset && model.may[w][i])
			model.may[w][i]--;
	}
	checked_table();
}

static void model_step(struct test_rng *rng)
{
	size_t from = test_below(rng, MODEL_PAGES), to = from + 1 + test_below(rng, gu_min(MODEL_PAGES - from, 9));
	int w = (int)test_below(rng, 2);
	switch (test_below(rng, 16)) {
	case 0: model_begin(w, from, to); break;
	case 1: model_end(w, from, gu_min(to, from + 3)); break;
	case 2: model_map(from, gu_min(to, from + 3)); break;
	case 3:
		if (test_below(rng, 4) == 0)
			model_unmap(from, gu_min(to, from + 2));
		break;
	case 4:
		for (; from < to; from++)
			if (model.mapped[from])
				model_drop(from);
		break;
	case 5: case 6: model_check(w, true); break;
	case 7: model_check(w, false); break;
	case 8:
		for (; from < to; from++)
			if (model.mapped[from])
				(void)look(from);
		break;
	default: model_write(from); break;
	}
}

START_TEST(random_operations)
{
	struct test_rng rng = test_rng((uint64_t)_i);
	NEED_KIND(_i, MODEL_PAGES);
	ck_ok(make_watchers(2, 0));
	memset(&model, 0, sizeof(model));
	for (size_t i = 0; i < MODEL_PAGES; i++) {
		model.mapped[i] = true;
		model.full[i] = i < MODEL_PAGES / 2;
	}
	uint64_t stop = test_now_ns() + check_seconds() * 40000000ull;
	for (unsigned n = 0; n < 300 || test_now_ns() < stop; n++)
		model_step(&rng);
	for (int w = 0; w < 2; w++)
		model_check(w, true);
}
END_TEST

static Suite *make_suite(void)
{
	Suite *suite = suite_create("watch_world");
	TCase *load = test_case(suite, "load"), *events = test_case(suite, "events"), *forking = test_case(suite, "fork");
	TCase *kernel = test_case(suite, "kernel"), *failing = test_case(suite, "failing"), *random = test_case(suite, "random");
	tcase_add_unchecked_fixture(load, more_huge_pages, fewer_huge_pages);
	tcase_add_loop_test(load, no_write_is_lost, 0, KINDS);
	tcase_add_loop_test(load, writes_by_others, 0, KINDS);
	tcase_add_loop_test(load, forced_writes, 0, KINDS);
	tcase_add_unchecked_fixture(events, more_huge_pages, fewer_huge_pages);
	tcase_add_loop_test(events, moves_with_what_is_pending, 0, KINDS);
	tcase_add_loop_test(events, moves_onto_what_is_watched, 0, HUGE);
	tcase_add_test(events, moves_among_watchers);
	tcase_add_loop_test(events, grows_and_shrinks_by_mremap, 0, HUGE);
	tcase_add_loop_test(events, punched_holes, SHMEM, KINDS);
	tcase_add_loop_test(events, unmapping_with_events, 0, KINDS);
	tcase_add_test(events, too_many_events);
	tcase_add_test(events, moving_at_full_speed);
	tcase_add_unchecked_fixture(forking, more_huge_pages, fewer_huge_pages);
	tcase_add_loop_test(forking, forks, 0, HUGE_SHARED);
	tcase_add_loop_test(forking, forks_under_load, 0, 2);
	tcase_add_test(forking, beside_a_heap);
	tcase_add_unchecked_fixture(kernel, begin_swap, end_swap);
	tcase_add_unchecked_fixture(kernel, begin_ksm, end_ksm);
	tcase_add_loop_test(kernel, swapped_out_and_in, 0, HUGE);
	tcase_add_loop_test(kernel, freed_lazily, ANON, PRECISE + 1);
	tcase_add_loop_test(kernel, huge_pages_split, 0, HUGE);
	tcase_add_test(kernel, merged_pages);
	tcase_add_loop_test(kernel, accesses, 0, HUGE);
	tcase_add_loop_test(kernel, accesses_in_order, 0, HUGE);
	tcase_add_checked_fixture(failing, NULL, fake_remove);
	tcase_add_test(failing, each_failing_call);
	tcase_add_test(failing, each_failing_creation);
	tcase_add_loop_test(random, random_operations, 0, HUGE);
	return suite;
}

TEST_MAIN(make_suite)
