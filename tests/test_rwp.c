/* SPDX-License-Identifier: MIT */
/*
 * test_rwp.c - read-write protection (Linux 7.3): who touches an armed page, and how, and what becomes of armed pages:
 * by touches that are reported while they wait (gcuffd_touch_begin), by watchers of accesses, and by the descriptor itself.
 * Where the index of a test says so it is for private (0) and for shared memory.
 */
#define _GNU_SOURCE
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>

#include "machine.h"
#include "sys/scan.h"
#include "sys/uffd.h"

#define PAGES 32u

#define NEED_RWP() \
	do { \
		if (!gu_caps()->has_rwp || !gu_caps()->has_rwp_async) \
			GU_LACKS("rwp", "no read-write protection before Linux 7.3"); \
		if (!gu_caps()->has_kernel_faults) \
			GU_LACKS("uffd", "only for faults of user code"); \
	} while (0)

/* ---- memory, and what was reported of it ---- */

static char *memory;
static uint32_t reads[PAGES], writes[PAGES]; /* atomic; touches that were reported */
static uint32_t held;                        /* atomic; touches wait until it is 0 */
static uint32_t waiting;                     /* atomic; how many */
static int toucher_id;                       /* atomic */
static struct gcuffd_touch *touching;

static char *at(size_t page) { return memory + page * GU_PAGE; }
static uint32_t told(size_t page)
{
	return __atomic_load_n(&reads[page], __ATOMIC_SEQ_CST) + __atomic_load_n(&writes[page], __ATOMIC_SEQ_CST);
}

static uint32_t all_told(void)
{
	uint32_t n = 0;
	for (size_t i = 0; i < PAGES; i++)
		n += told(i);
	return n;
}

static void forget(void)
{
	memset(reads, 0, sizeof(reads));
	memset(writes, 0, sizeof(writes));
}

static void note(void *data, void *page, int write, int thread)
{
	size_t i = (size_t)((char *)page - memory) / GU_PAGE;
	(void)data;
	must(i < PAGES, "%p", page);
	__atomic_store_n(&toucher_id, thread, __ATOMIC_SEQ_CST);
	__atomic_fetch_add(write ? &writes[i] : &reads[i], 1, __ATOMIC_SEQ_CST);
	__atomic_fetch_add(&waiting, 1, __ATOMIC_SEQ_CST);
	while (__atomic_load_n(&held, __ATOMIC_SEQ_CST))
		usleep(1000);
	__atomic_fetch_sub(&waiting, 1, __ATOMIC_SEQ_CST);
}

/* Every page begins with its number plus 1. */
static void map_memory(bool shared)
{
	memory = mmap(reserve(PAGES * GU_PAGE), PAGES * GU_PAGE, PROT_READ | PROT_WRITE,
		      (shared ? MAP_SHARED : MAP_PRIVATE) | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	must(memory != MAP_FAILED, "errno %d", errno);
	madvise(memory, PAGES * GU_PAGE, MADV_NOHUGEPAGE);
	for (size_t i = 0; i < PAGES; i++)
		*at(i) = (char)(i + 1);
}

static void arm(void) { ck_ok(gcuffd_touch_arm(touching, memory, PAGES * GU_PAGE)); }

static void begin_touching(bool shared)
{
	map_memory(shared);
	forget();
	ck_ok(gcuffd_touch_begin(memory, PAGES * GU_PAGE, note, NULL, NULL, &touching));
}

static void end_touching(void)
{
	ck_ok(gcuffd_touch_end(touching));
	munmap(memory, PAGES * GU_PAGE);
}

/* ---- ways of touching ---- */

static int proc_mem = -1, ends[2], zero = -1;

static void open_files(void)
{
	proc_mem = open("/proc/self/mem", O_RDWR | O_CLOEXEC);
	zero = open("/dev/zero", O_RDONLY | O_CLOEXEC);
	must(proc_mem >= 0 && zero >= 0 && !pipe2(ends, O_CLOEXEC | O_NONBLOCK), "errno %d", errno);
}

static bool by_load(char *p) { return *(volatile char *)p || true; }

static bool by_store(char *p)
{
	*(volatile char *)p = 77;
	return true;
}

static bool by_add(char *p) { return __atomic_fetch_add(p, 1, __ATOMIC_SEQ_CST) != 99; }
static bool by_read(char *p) { return read(zero, p + 100, 8) == 8; }

static bool by_write(char *p)
{
	char c;
	return write(ends[1], p, 1) == 1 && read(ends[0], &c, 1) == 1;
}

static bool by_vm_readv(char *p)
{
	char c;
	struct iovec to = {&c, 1}, from = {p, 1};
	return process_vm_readv(getpid(), &to, 1, &from, 1, 0) == 1;
}

static bool by_vm_writev(char *p)
{
	char c = 7;
	struct iovec from = {&c, 1}, to = {p + 8, 1};
	return process_vm_writev(getpid(), &from, 1, &to, 1, 0) == 1;
}

static bool by_mem_read(char *p)
{
	char c;
	return pread(proc_mem, &c, 1, (off_t)(uintptr_t)p) == 1;
}

static bool by_mem_write(char *p) { return pwrite(proc_mem, "x", 1, (off_t)(uintptr_t)p + 8) == 1; }

static bool in_child(long (*fn)(pid_t parent, char *p), char *p)
{
	int status = -1;
	prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY, 0, 0, 0);
	pid_t parent = getpid(), pid = fork();
	must(pid >= 0, "errno %d", errno);
	if (pid == 0)
		_exit((int)fn(parent, p));
	while (waitpid(pid, &status, 0) < 0)
		must(errno == EINTR, "errno %d", errno);
	return status == 0;
}

static long trace(pid_t parent, char *p, bool write)
{
	int status;
	if (ptrace(PTRACE_ATTACH, parent, NULL, NULL) || waitpid(parent, &status, 0) != parent)
		return 1;
	errno = 0;
	long word = ptrace(write ? PTRACE_POKEDATA : PTRACE_PEEKDATA, parent, p, (void *)42);
	return ptrace(PTRACE_DETACH, parent, NULL, NULL) || errno || (write && word);
}

static long peek(pid_t parent, char *p) { return trace(parent, p, false); }
static long poke(pid_t parent, char *p) { return trace(parent, p, true); }
static bool by_peek(char *p) { return in_child(peek, p); }
static bool by_poke(char *p) { return in_child(poke, p); }

static const struct way {
	const char *name;
	bool (*touch)(char *page);
	bool writes;
	bool can_not_wait; /* such an access fails where a touch has to wait, and is told where it has not */
} ways[] = {
	{"load", by_load, false, false}, {"store", by_store, true, false}, {"atomic add", by_add, true, false},
	{"read(2)", by_read, true, false}, {"write(2)", by_write, false, false},
	{"process_vm_readv", by_vm_readv, false, false}, {"process_vm_writev", by_vm_writev, true, false},
	{"/proc/self/mem, read", by_mem_read, false, true}, {"/proc/self/mem, written", by_mem_write, true, true},
	{"PTRACE_PEEKDATA", by_peek, false, true}, {"PTRACE_POKEDATA", by_poke, true, true},
};

#define WAYS GU_ARRAY_LEN(ways)

/* Page i is touched in way i, in random order; the rest of the pages is not. */
static void touch_all_ways(struct test_rng *rng, bool has_worked[WAYS])
{
	size_t order[WAYS];
	for (size_t i = 0; i < WAYS; i++) {
		size_t j = test_below(rng, i + 1);
		order[i] = order[j];
		order[j] = i;
	}
	for (size_t i = 0; i < WAYS; i++) {
		const struct way *w = &ways[order[i]];
		bool ok = w->touch(at(order[i]));
		must(ok || (has_worked && w->can_not_wait), "%s failed, errno %d", w->name, errno);
		if (has_worked)
			has_worked[order[i]] = ok;
	}
}

/* ---- touches that are reported while they wait ---- */

/* What failed is not told, and has opened nothing. */
static void check_told(const bool has_worked[WAYS])
{
	for (size_t i = 0; i < PAGES; i++) {
		const char *name = i < WAYS ? ways[i].name : "untouched";
		bool touched = i < WAYS && has_worked[i], w = touched && ways[i].writes;
		must(told(i) == touched, "%s: %u reads, %u writes", name, reads[i], writes[i]);
		must(writes[i] == w, "%s: told as a %s", name, w ? "read" : "write");
		by_load(at(i));
		must(told(i) == 1, "%s, and then read: %u reads, %u writes", name, reads[i], writes[i]);
	}
}

START_TEST(each_way_is_told_as_it_is)
{
	struct test_rng rng = test_rng(1);
	bool has_worked[WAYS];
	NEED_RWP();
	open_files();
	begin_touching(_i);
	for (int round = 0; round < 3; round++) {
		touch_all_ways(&rng, has_worked);
		check_told(has_worked);
		touch_all_ways(&rng, NULL); /* all are open */
		ck_assert_uint_eq(all_told(), PAGES);
		forget();
		arm();
	}
	for (size_t i = 0; i < WAYS; i++)
		if (!has_worked[i])
			printf("does not wait: %s\n", ways[i].name);
	end_touching();
}
END_TEST

/* ---- by watchers of accesses ---- */

static void watch_memory(bool shared)
{
	map_memory(shared);
	mem = (struct memory){.kind = shared ? SHMEM : ANON, .at = memory, .pages = PAGES, .page = GU_PAGE, .fd = -1};
	ck_ok(make_watchers(1, 0));
}

/* Accesses of the first half, writes of the second. */
START_TEST(accesses_beside_writes)
{
	struct test_rng rng = test_rng(2);
	const size_t half = PAGES / 2;
	NEED_RWP();
	open_files();
	watch_memory(_i);
	mem.flags = GCUFFD_WATCH_ACCESSES;
	ck_ok(begin_on(watch[0], 0, half));
	mem.flags = 0;
	ck_ok(begin_on(watch[0], half, PAGES));
	for (int round = 0; round < 3; round++) {
		touch_all_ways(&rng, NULL);
		memory += half * GU_PAGE;
		touch_all_ways(&rng, NULL);
		memory -= half * GU_PAGE;
		const struct set *s = collected(watch[0]);
		for (size_t i = 0; i < half; i++) {
			const char *name = i < WAYS ? ways[i].name : "untouched";
			ck_assert_msg(s->has[i] == (i < WAYS), "%s: access %d", name, s->has[i]);
			ck_assert_msg(s->has[half + i] == (i < WAYS && ways[i].writes), "%s: write %d", name, s->has[half + i]);
		}
		ck_assert_uint_eq(collected(watch[0])->count, 0);
	}
}
END_TEST

/* ---- access by force ---- */

struct forced {
	bool (*access)(char *page);
	int prot;
	bool writes;
};

/* By page. */
static const struct forced forced[] = {
	{by_mem_read, PROT_READ, false}, {by_mem_write, PROT_READ, true}, {by_peek, PROT_READ, false}, {by_poke, PROT_READ, true},
	{by_mem_read, PROT_NONE, false}, {by_mem_write, PROT_NONE, true}, {by_peek, PROT_NONE, false}, {by_poke, PROT_NONE, true},
};

/* Of shared memory nothing can be written that the mapping forbids; a kernel may be told to refuse /proc/self/mem. */
static bool must_work(const struct forced *f, bool shared)
{
	return f->writes ? !shared && f->access != by_mem_write : f->prot != PROT_NONE || f->access == by_peek;
}

/* Such a reader need not fault: the page stays armed. */
static bool is_bypass(const struct forced *f) { return f->access == by_peek && f->prot == PROT_NONE; }

/* What the mapping forbids is done all the same by /proc/self/mem and ptrace, to the right page; and is an access as any other. */
START_TEST(forced_access)
{
	bool done[PAGES] = {false};
	NEED_RWP();
	open_files();
	watch_memory(_i);
	mem.flags = GCUFFD_WATCH_ACCESSES;
	begin(watch[0]);
	for (size_t i = 0; i < GU_ARRAY_LEN(forced); i++) {
		ck_ok(mprotect(memory, PAGES * GU_PAGE, forced[i].prot));
		done[i] = forced[i].access(at(i));
		ck_assert_msg(done[i] || !must_work(&forced[i], _i), "access %zu, errno %d", i, errno);
		ck_assert(!done[i] || !_i || !forced[i].writes);
	}
	ck_ok(mprotect(memory, PAGES * GU_PAGE, PROT_READ | PROT_WRITE));
	const struct set *set = collected(watch[0]);
	for (size_t i = 0; i < PAGES; i++)
		ck_assert_msg(set->has[i] == done[i] || (i < GU_ARRAY_LEN(forced) && is_bypass(&forced[i])), "page %zu: told %d", i, set->has[i]);
	for (size_t i = 0; i < PAGES; i++) {
		bool written = done[i] && forced[i].writes;
		bool by_word = written && forced[i].access == by_poke; /* 42 */
		ck_assert_int_eq(*at(i), by_word ? 42 : (char)(i + 1));
		ck_assert_int_eq(at(i)[8], written && !by_word ? 'x' : 0);
	}
	ck_assert_uint_eq(collected(watch[0])->count, PAGES); /* by looking */
}
END_TEST

/* Where it would have to wait it fails, or waits; and a page that may not be touched stays armed for those who may. */
START_TEST(forced_access_while_told)
{
	NEED_RWP();
	open_files();
	begin_touching(_i);
	ck_ok(mprotect(memory, PAGES * GU_PAGE, PROT_NONE));
	bool read_it = by_mem_read(at(2)), wrote_it = by_mem_write(at(3));
	ck_ok(mprotect(memory, PAGES * GU_PAGE, PROT_READ | PROT_WRITE));
	ck_assert_uint_eq(reads[2], read_it);
	ck_assert_uint_eq(writes[3], wrote_it);
	ck_assert_uint_eq(all_told(), read_it + wrote_it);
	for (size_t i = 0; i < PAGES; i++) {
		ck_assert_int_eq(*at(i), (char)(i + 1));
		ck_assert_int_eq(at(i)[8], i == 3 && wrote_it ? 'x' : 0);
		ck_assert_uint_eq(told(i), 1);
	}
	end_touching();
}
END_TEST

/* ---- swap, and dropping ---- */

/* A page touched lately may be in a list of the processor it was touched on, which is emptied there. */
static bool page_out(size_t from, size_t to)
{
	cpu_set_t was, one;
	bool all = !sched_getaffinity(0, sizeof(was), &was);
	for (int cpu = 0; all && cpu < CPU_SETSIZE; cpu++) {
		CPU_ZERO(&one);
		CPU_SET(cpu, &one);
		all = !CPU_ISSET(cpu, &was) || (!sched_setaffinity(0, sizeof(one), &one) && !madvise(at(from), (to - from) * GU_PAGE, MADV_PAGEOUT));
	}
	(void)sched_setaffinity(0, sizeof(was), &was);
	for (size_t i = from; i < to; i++)
		all = all && is_swapped(at(i));
	return all;
}

/* Pages 0-7 are armed, 8-15 are open and armed in swap, 16-23 are open and stay so. */
START_TEST(through_swap)
{
	NEED_RWP();
	begin_touching(false);
	for (size_t i = 8; i < 24; i++)
		by_load(at(i));
	forget();
	if (!has_swap() || !page_out(0, 24))
		GU_LACKS("swap", "no swap");
	ck_ok(gcuffd_touch_arm(touching, at(8), 8 * GU_PAGE));
	ck_assert_uint_eq(all_told(), 0);
	for (int round = 0; round < 2; round++) {
		for (size_t i = 0; i < 24; i++) {
			ck_assert_int_eq(*at(i), (char)(i + 1));
			ck_assert_uint_eq(reads[i], i < 16 || round);
			ck_assert_uint_eq(writes[i], 0);
			by_store(at(i));
			ck_assert_uint_eq(told(i), i < 16 || round); /* not a second time */
			*at(i) = (char)(i + 1);
		}
		forget();
		arm(); /* tracked again, all */
	}
	end_touching();
}
END_TEST

START_TEST(accesses_through_swap)
{
	NEED_RWP();
	watch_memory(false);
	mem.flags = GCUFFD_WATCH_ACCESSES;
	begin(watch[0]);
	(void)look(1);
	if (!has_swap() || !page_out(0, 8))
		GU_LACKS("swap", "no swap");
	ck_assert(is_set(collected(watch[0]), 1)); /* told while it is in swap, and armed there */
	ck_assert_int_eq(look(1), 2);
	ck_assert_int_eq(look(2), 3);
	ck_assert(is_set(collected(watch[0]), 1, 2));
	must(page_out(0, 8), "not to swap");
	ck_assert_uint_eq(collected(watch[0])->count, 0);
	touch(3);
	ck_assert(is_set(collected(watch[0]), 3));
}
END_TEST

struct bare {
	int uffd, pagemap;
	bool seen[PAGES];
};

static void see(void *data, uintptr_t start, uintptr_t end)
{
	struct bare *b = data;
	for (uintptr_t p = start; p < end; p += GU_PAGE)
		b->seen[(p - (uintptr_t)memory) / GU_PAGE] = true;
}

static const bool *scan_accessed(struct bare *b)
{
	memset(b->seen, 0, sizeof(b->seen));
	ck_ok(gu_scan_accessed(b->pagemap, (uintptr_t)memory, (uintptr_t)at(PAGES), see, b));
	return b->seen;
}

/* Dropped, restored by COPY: accessible, and armed when that is asked for; taken out and put back by MOVE: armed. */
START_TEST(dropped_and_restored)
{
	struct bare b = {.pagemap = gu_scan_open()};
	char copy[GU_PAGE] __attribute__((aligned(GU_PAGE))) = "restored";
	NEED_RWP();
	map_memory(false);
	b.uffd = gu_uffd_open(GU_UFFD_FEATURE_RWP | GU_UFFD_FEATURE_RWP_ASYNC, NULL);
	char *aside = mmap(NULL, GU_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ck_ok(gu_uffd_register(b.uffd, (uintptr_t)memory, PAGES * GU_PAGE, GU_UFFD_REGISTER_MISSING | GU_UFFD_REGISTER_RWP, NULL));
	ck_ok(gu_uffd_register(b.uffd, (uintptr_t)aside, GU_PAGE, GU_UFFD_REGISTER_MISSING, NULL));
	ck_ok(gu_uffd_rwprotect(b.uffd, (uintptr_t)memory, PAGES * GU_PAGE, true));
	ck_assert(!scan_accessed(&b)[2] && !b.seen[3]);

	ck_ok(madvise(at(2), GU_PAGE, MADV_DONTNEED));
	ck_assert(!scan_accessed(&b)[2]); /* nothing is there */
	ck_ok(gu_uffd_copy(b.uffd, (uintptr_t)at(2), copy, GU_PAGE, 0, NULL));
	ck_assert(scan_accessed(&b)[2] && !b.seen[1] && !b.seen[3]);
	ck_ok(gu_uffd_rwprotect(b.uffd, (uintptr_t)at(2), GU_PAGE, true));
	ck_assert(!scan_accessed(&b)[2]);
	ck_assert_str_eq(at(2), "restored");
	ck_assert(scan_accessed(&b)[2] && !b.seen[1] && !b.seen[3]);

	ck_ok(gu_uffd_move(b.uffd, (uintptr_t)aside, (uintptr_t)at(5), GU_PAGE, 0, NULL));
	ck_assert(!scan_accessed(&b)[5]);
	ck_ok(gu_uffd_move(b.uffd, (uintptr_t)at(5), (uintptr_t)aside, GU_PAGE, 0, NULL));
	ck_assert(!scan_accessed(&b)[5]);
	ck_assert_int_eq(*at(5), 6);
	ck_assert(scan_accessed(&b)[5]);
	close(b.uffd);
	close(b.pagemap);
	munmap(aside, GU_PAGE);
	munmap(memory, PAGES * GU_PAGE);
}
END_TEST

/* ---- PROT_NONE is another thing ---- */

static sigjmp_buf back;
static volatile int code;

static void on_fault(int sig, siginfo_t *info, void *context)
{
	(void)sig, (void)context;
	code = info->si_code;
	siglongjmp(back, 1);
}

/* The code of the signal that touching raises, or 0. */
static int touch_raises(size_t page)
{
	code = 0;
	if (!sigsetjmp(back, 1))
		by_load(at(page));
	return code;
}

START_TEST(no_access_is_another_thing)
{
	struct sigaction act = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO};
	NEED_RWP();
	open_files();
	begin_touching(_i);
	ck_ok(sigaction(SIGSEGV, &act, NULL));
	ck_ok(mprotect(at(4), 4 * GU_PAGE, PROT_NONE));
	ck_assert_int_eq(touch_raises(4), SEGV_ACCERR); /* armed and forbidden */
	ck_assert_int_eq(read(zero, at(5), 1), -1);
	ck_assert_int_eq(errno, EFAULT);
	ck_assert_int_eq(touch_raises(3), 0); /* armed only */
	ck_assert_uint_eq(told(3), 1);
	ck_assert_uint_eq(all_told(), 1);
	ck_ok(mprotect(at(4), 4 * GU_PAGE, PROT_READ | PROT_WRITE));
	for (size_t i = 4; i < 8; i++) { /* still armed */
		ck_assert_int_eq(*at(i), (char)(i + 1));
		ck_assert_uint_eq(told(i), 1);
	}
	ck_ok(mprotect(at(4), GU_PAGE, PROT_NONE)); /* not armed, and forbidden */
	ck_assert_int_eq(touch_raises(4), SEGV_ACCERR);
	ck_assert_uint_eq(told(4), 1);
	ck_ok(mprotect(at(4), GU_PAGE, PROT_READ | PROT_WRITE));
	ck_assert_int_eq(touch_raises(4), 0);
	ck_assert_uint_eq(told(4), 1);
	arm();
	ck_assert_int_eq(touch_raises(4), 0);
	ck_assert_uint_eq(told(4), 2);
	end_touching();
}
END_TEST

/* Such a range may be said to be unwatchable as long as it may not be touched; what was found before it is not lost. */
START_TEST(no_access_among_accesses)
{
	struct set set;
	NEED_RWP();
	watch_memory(_i);
	mem.flags = GCUFFD_WATCH_ACCESSES;
	begin(watch[0]);
	(void)look(2);
	ck_ok(mprotect(at(2), 2 * GU_PAGE, PROT_NONE));
	memset(&set, 0, sizeof(set));
	int err = report_into(&set, watch[0], gcuffd_watch_collect, 3);
	ck_assert_msg(err == -ESTALE || (!err && is_set(&set, 2)), "%d", err);
	ck_ok(mprotect(at(2), 2 * GU_PAGE, PROT_READ | PROT_WRITE));
	ck_assert(err ? is_set(collected(watch[0]), 2) : collected(watch[0])->count == 0);
	(void)look(3);
	ck_assert(is_set(collected(watch[0]), 3));
}
END_TEST

/* ---- who waits in a touch ---- */

static struct waiter {
	pthread_t thread;
	struct gcuffd_heap *heap; /* attached, and has an object in a variable, if set */
	uint64_t hidden;
	bool in_kernel;
	int id;
	uint32_t done; /* atomic */
} waiter;

static __attribute__((noinline)) void wait_in_touch(struct waiter *w)
{
	char c = 7;
	if (w->in_kernel)
		must(write(ends[1], at(1), 1) == 1 && read(ends[0], &c, 1) == 1, "errno %d", errno);
	else
		c = *(volatile char *)at(1);
	must(c == 2, "%d", c);
}

static void *wait_main(void *arg)
{
	struct waiter *w = arg;
	void *volatile object = NULL;
	__atomic_store_n(&w->id, (int)gettid(), __ATOMIC_SEQ_CST);
	if (w->heap) {
		must_ok(gcuffd_thread_attach());
		object = gcuffd_alloc(w->heap, 64);
		w->hidden = hide(object);
	}
	wait_in_touch(w);
	must(!w->heap || (object && !*(char *)object), "the object is not what it was");
	__atomic_store_n(&w->done, 1, __ATOMIC_SEQ_CST);
	if (w->heap)
		must_ok(gcuffd_thread_detach());
	return NULL;
}

static void begin_waiter(struct gcuffd_heap *h, bool in_kernel)
{
	waiter = (struct waiter){.heap = h, .in_kernel = in_kernel};
	__atomic_store_n(&held, 1, __ATOMIC_SEQ_CST);
	must_ok(pthread_create(&waiter.thread, NULL, wait_main, &waiter));
	while (!__atomic_load_n(&waiting, __ATOMIC_SEQ_CST))
		usleep(1000);
	ck_assert_int_eq(toucher_id, waiter.id);
	ck_assert_uint_eq(reads[1], 1);
}

static void end_waiter(void)
{
	ck_assert_uint_eq(__atomic_load_n(&waiter.done, __ATOMIC_SEQ_CST), 0);
	__atomic_store_n(&held, 0, __ATOMIC_SEQ_CST);
	pthread_join(waiter.thread, NULL);
}

static uint32_t handled; /* atomic */
static void on_signal(int sig) { (void)sig, __atomic_fetch_add(&handled, 1, __ATOMIC_SEQ_CST); }

static void wait_handled(uint32_t n)
{
	while (__atomic_load_n(&handled, __ATOMIC_SEQ_CST) < n)
		usleep(1000);
}

/* They are handled while the thread waits in its own code; and when it is through where a system call waits. */
START_TEST(signals_while_waiting)
{
	struct sigaction act = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
	NEED_RWP();
	open_files();
	begin_touching(false);
	ck_ok(sigaction(SIGUSR1, &act, NULL));
	begin_waiter(NULL, _i);
	for (uint32_t n = 1; n <= 3; n++) {
		ck_ok(pthread_kill(waiter.thread, SIGUSR1));
		if (!_i)
			wait_handled(n);
	}
	end_waiter();
	wait_handled(1);
	ck_assert_uint_eq(writes[1], 0);
	ck_assert_uint_ge(reads[1], 1);
	ck_assert_uint_eq(all_told(), reads[1]);
	end_touching();
}
END_TEST

/* A thread that waits in its own code stops, and what it has is kept. */
START_TEST(stops_while_waiting)
{
	struct gcuffd_heap *h;
	NEED_RWP();
	h = heap_make("rung=rwp,verify=1");
	begin_touching(false);
	begin_waiter(h, false);
	for (int i = 0; i < 3; i++)
		ck_ok(gcuffd_collect(h));
	ck_assert(is_alive(h, waiter.hidden));
	end_waiter();
	ck_assert_uint_eq(stats_of(h).cycles_put_off, 0);
	verified(h);
	end_touching();
	ck_ok(gcuffd_heap_destroy(h));
}
END_TEST

/* One that waits in a system call does not: the cycle is put off, and a later one is not. */
START_TEST(stops_are_put_off_by_system_calls)
{
	struct gcuffd_heap *h;
	NEED_RWP();
	open_files();
	h = heap_make("rung=rwp,verify=1,stop_timeout_ms=%u", 100 * check_slow());
	begin_touching(false);
	begin_waiter(h, true);
	ck_assert_int_eq(gcuffd_collect(h), -ETIMEDOUT);
	ck_assert(is_alive(h, waiter.hidden));
	end_waiter();
	ck_ok(gcuffd_collect(h));
	ck_assert_uint_eq(stats_of(h).cycles_put_off, 1);
	verified(h);
	end_touching();
	ck_ok(gcuffd_heap_destroy(h));
}
END_TEST

/* ---- fork ---- */

/* The child has all of it, open; what it writes is its own. */
static int use_in_child(bool shared)
{
	for (size_t i = 0; i < PAGES; i++) {
		if (*at(i) != (char)(i + 1))
			return 1;
		if (!shared)
			*at(i) = 0;
	}
	return all_told() > 1 || gcuffd_touch_arm(touching, memory, GU_PAGE) != -ESRCH || gcuffd_touch_end(touching) ? 2 : 0;
}

/* With a thread that waits in the parent, every second time. */
START_TEST(forks_with_armed_pages)
{
	bool shared = _i / 2, with_waiter = _i % 2;
	int status;
	NEED_RWP();
	begin_touching(shared);
	if (with_waiter)
		begin_waiter(NULL, false);
	pid_t pid = fork();
	if (!pid) {
		limit_child();
		_exit(use_in_child(shared));
	}
	ck_assert_int_eq(waitpid(pid, &status, 0), pid);
	ck_assert_msg(status == 0, "status %x", status);
	if (with_waiter)
		end_waiter();
	ck_assert_uint_eq(all_told(), with_waiter);
	for (size_t i = 2; i < PAGES; i++) {
		ck_assert_int_eq(*at(i), (char)(i + 1));
		ck_assert_uint_eq(reads[i], 1);
	}
	arm();
	by_store(at(0));
	ck_assert_uint_eq(writes[0], 1);
	end_touching();
}
END_TEST

/* ---- the collector's own cycles ---- */

struct node {
	struct node *next;
	uint64_t number;
	char rest[240];
};

static struct node *volatile list;

/* What says on which rung a heap works is set when it was tried; its counters say that pages were scanned and found written. */
START_TEST(cycles_on_rung_rwp)
{
	NEED_RWP();
	struct gcuffd_heap *h = heap_make(_i ? "verify=1" : "verify=1,rung=rwp");
	struct node *old = NULL;
	for (uint64_t i = 0; i < 5000; i++) {
		struct node *n = gcuffd_alloc(h, sizeof(*n));
		*n = (struct node){.next = list, .number = i};
		list = n;
		old = i ? old : n;
	}
	for (uint64_t i = 1; i <= 4; i++) {
		struct node *n = gcuffd_alloc(h, sizeof(*n));
		n->number = 5000 + i;
		n->next = old->next;
		old->next = n; /* only a card leads to it */
		old = n;
		ck_ok(gcuffd_collect(h));
		struct gcuffd_stats s = stats_of(h);
		ck_assert_uint_eq(s.rung, GCUFFD_RUNG_RWP);
		ck_assert_uint_eq(s.cycles, i);
		ck_assert_uint_eq(s.cycles_put_off, 0);
		ck_assert_uint_ge(s.last_pages_scanned, 5000 * sizeof(*n) / GU_PAGE);
		ck_assert_uint_ge(s.last_preclean_rounds, 1);
		ck_assert_uint_lt(s.last_marked_in_stop_bytes, s.last_marked_bytes / 4);
	}
	uint64_t n = 0;
	for (const struct node *p = list; p; p = p->next)
		n++;
	ck_assert_uint_eq(n, 5004);
	verified(h);
	ck_ok(gcuffd_heap_destroy(h));
}
END_TEST

/* Regions go over to telling of accesses, and pages that were accessed stay. */
START_TEST(cycles_while_accesses_are_told)
{
	struct gcuffd_cold_stats c = {.size = sizeof(c)};
	uint64_t n, stop = test_now_ns() + check_span_ns(30000000000u);
	NEED_RWP();
	struct gcuffd_heap *h = heap_make("verify=1,rung=rwp,cold=1,cool_mode=idle,cool_after_ms=%u", (unsigned)check_span_ns(300));
	for (list = NULL, n = 0; n < 30000; n++) {
		struct node *new = gcuffd_alloc(h, sizeof(*new));
		*new = (struct node){.next = list, .number = n};
		list = new;
	}
	while (!(c.watched_regions && c.accessed_pages) && test_now_ns() < stop) {
		for (const struct node *p = list; p->number > 15000; p = p->next)
			;
		ck_ok(gcuffd_collect(h));
		usleep(10000);
		ck_ok(gcuffd_cold_stats(h, &c));
	}
	ck_assert_uint_ge(c.watched_regions, 1);
	ck_assert_uint_ge(c.accessed_pages, 1);
	ck_assert_uint_eq(stats_of(h).cycles_put_off, 0);
	ck_ok(gcuffd_collect(h));
	for (const struct node *p = list; p; p = p->next)
		must(p->number == --n, "%lu, and not %lu", (unsigned long)p->number, (unsigned long)n);
	ck_assert_uint_eq(n, 0);
	verified(h);
	ck_ok(gcuffd_heap_destroy(h));
}
END_TEST

#define ADD_LOOP(name, n) tcase_add_loop_test(test_case(suite, #name), name, 0, n)

static Suite *make_suite(void)
{
	Suite *suite = suite_create("rwp");
	TCase *swapping = test_case(suite, "swap");
	tcase_add_unchecked_fixture(swapping, begin_swap, end_swap);
	tcase_add_test(swapping, through_swap);
	tcase_add_test(swapping, accesses_through_swap);
	ADD_LOOP(each_way_is_told_as_it_is, 2);
	ADD_LOOP(accesses_beside_writes, 2);
	ADD_LOOP(forced_access, 2);
	ADD_LOOP(forced_access_while_told, 2);
	ADD_LOOP(dropped_and_restored, 1);
	ADD_LOOP(no_access_is_another_thing, 2);
	ADD_LOOP(no_access_among_accesses, 2);
	ADD_LOOP(signals_while_waiting, 2);
	ADD_LOOP(stops_while_waiting, 1);
	ADD_LOOP(stops_are_put_off_by_system_calls, 1);
	ADD_LOOP(forks_with_armed_pages, 4);
	ADD_LOOP(cycles_on_rung_rwp, 2);
	ADD_LOOP(cycles_while_accesses_are_told, 1);
	return suite;
}

TEST_MAIN(make_suite)
