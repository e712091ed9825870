/* SPDX-License-Identifier: MIT */
/*
 * test_tracking.c - what must be true of tracked memory of each kind, watched for writes or for accesses: what was armed
 * or written stays so, or errs to written, whatever the kernel and the program do to the pages. The table in doc/kernel.md,
 * "What must be true", names the test for each. test_tracking_load.c has the writers.
 */
#include "tracking.h"

#include <poll.h>
#include <setjmp.h>
#include <signal.h>

#include "sys/scan.h"
#include "sys/uffd.h"

static void drop_case(void)
{
	if (!mem.at)
		return;
	int err = gcuffd_watch_end(watch[0], NULL, SIZE_MAX);
	ck_assert_msg(!err || err == -ENOENT, "%d", err);
	ck_ok(munmap(mem.at, mem.pages * mem.page));
	if (mem.fd >= 0)
		close(mem.fd);
	mem.at = NULL;
}

static void choose(struct test_rng *rng, bool *chosen, unsigned one_of)
{
	for (size_t i = 0; i < mem.pages; i++)
		chosen[i] = one_of && test_below(rng, one_of) == 0;
}

static void touch_chosen(const bool *chosen)
{
	for (size_t i = 0; i < mem.pages; i++)
		if (chosen[i])
			touch(i);
}

/* ---- tracking survives, or errs to written ---- */

enum {
	DROPS = 1,  /* content may go, and is told if it did */
	UNMAPS = 2, /* shared pages that stay, and are not mapped any more */
	EVENTS = 4, /* needs them */
};

#define NO_MEMORY SIZE_MAX
#define NEVER_DONE (SIZE_MAX - 1)

/*
 * Accesses to shared pages that were not mapped at the last look, and are not at the next, can't be known: see
 * shared_pages_unmapped_again. Huge ones are unmapped by arming them.
 */
static bool may_be_missed(size_t page, unsigned flags)
{
	return flags & UNMAPS && accesses && !is_private() && (thp || page >= populated());
}

/* Nothing is told for nothing: arming, or touching, does not go by huge pages. */
static bool is_exact(void) { return !thp || (is_private() && !accesses); }

struct round {
	bool early[MAX_PAGES], late[MAX_PAGES]; /* touched before, and after */
	struct set first, second;
};

static void check_round(struct round *r, bool between, unsigned flags, size_t *needless)
{
	bool must_tell_all = !(flags & DROPS) || (mem.kind == PRECISE && !accesses);
	for (size_t i = 0; i < mem.pages; i++) {
		bool told = r->first.has[i] || r->second.has[i], excused = may_be_missed(i, flags);
		bool changed = look(i) != (i < populated());
		ck_assert_msg(!r->late[i] || r->second.has[i], "page %zu of kind %d was touched after it and left out", i,
			      mem.kind);
		ck_assert_msg(!(r->early[i] && must_tell_all && !excused) || (between ? r->first.has[i] : told),
			      "page %zu of kind %d was touched before it and left out", i, mem.kind);
		ck_assert_msg(!changed || told || excused, "page %zu of kind %d changed and was left out", i, mem.kind);
		*needless += told && !r->early[i] && !r->late[i] && !changed;
	}
}

/* Pages picked at random are touched, something is done to all, others are touched. false: it can't be done here. */
static bool survive_once(struct test_rng *rng, doing_fn *doing, unsigned flags, bool between, size_t *needless)
{
	static struct round r;
	memset(&r, 0, sizeof(r));
	choose(rng, r.early, thp && test_below(rng, 2) ? 0 : 4);
	choose(rng, r.late, thp ? 100 : 4);
	touch_chosen(r.early);
	if (!doing(rng))
		return false;
	if (between)
		must_ok(report_into(&r.first, watch[0], gcuffd_watch_collect, 7));
	touch_chosen(r.late);
	must_ok(report_into(&r.second, watch[0], gcuffd_watch_collect, 7));
	check_round(&r, between, flags, needless);
	checked_table();
	return true;
}

/* How many pages were told for nothing, of all rounds; NO_MEMORY, NEVER_DONE. cost: so much longer than others a round takes. */
static size_t survive(doing_fn *doing, unsigned flags, unsigned cost)
{
	struct test_rng rng = test_rng((uint64_t)mem.kind + thp * 100 + accesses * 1000);
	unsigned rounds = 2 + check_rounds(4 * check_seconds()) / cost, done = 0;
	size_t needless = 0;
	if (flags & EVENTS)
		ck_ok(gcuffd_watch_create(GCUFFD_WATCH_EVENTS, &watch[1]));
	for (unsigned n = 0; n < rounds || (!done && n < 12); n++) {
		drop_case();
		if (!make_case(SMALL))
			return NO_MEMORY;
		begin(watch[0]);
		done += survive_once(&rng, doing, flags, n % 2, &needless);
	}
	drop_case();
	return done ? needless : NEVER_DONE;
}

/* need: what it is that is not done without. */
#define SURVIVE_WITH(need, doing, flags, cost) \
	({ \
		size_t sv_needless = survive(doing, flags, cost); \
		if (sv_needless == NO_MEMORY || sv_needless == NEVER_DONE) \
			GU_LACKS(sv_needless == NO_MEMORY ? memory_need() : need, "not to be had here, kind %d%s", mem.kind, thp ? ", huge pages" : ""); \
		sv_needless; \
	})

#define SURVIVE(doing, flags, cost) SURVIVE_WITH("", doing, flags, cost)

/* ---- dropped, freed, punched ---- */

static bool drop(struct test_rng *rng)
{
	char *at;
	size_t len;
	choose_span(rng, &at, &len);
	return !madvise(at, len, MADV_DONTNEED);
}

START_TEST(dropped)
{
	NEED_CASE(_i);
	SURVIVE(drop, DROPS | UNMAPS, 1);
}
END_TEST

static bool free_lazily(struct test_rng *rng)
{
	char *at;
	size_t len;
	choose_span(rng, &at, &len);
	return !madvise(at, len, MADV_FREE) && !(test_below(rng, 2) && madvise(at, len, MADV_PAGEOUT));
}

START_TEST(freed)
{
	NEED_CASE(_i);
	ONLY(is_anon());
	SURVIVE(free_lazily, DROPS, 1);
}
END_TEST

static bool punch(struct test_rng *rng)
{
	char *at;
	size_t len;
	choose_span(rng, &at, &len);
	if (mem.fd < 0 || test_below(rng, 2))
		return !madvise(at, len, MADV_REMOVE);
	return !fallocate(mem.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, at - mem.at, (off_t)len);
}

/* Watched for writes an armed page leaves a marker, which reads as not written; for accesses it is gone, and told. */
START_TEST(punched)
{
	NEED_CASE(_i);
	ONLY(!is_private());
	if (accesses) {
		SURVIVE(punch, DROPS | UNMAPS, 1);
		return;
	}
	if (!make_case(SMALL))
		GU_LACKS(memory_need(), "no memory of kind %d", mem.kind);
	begin(watch[0]);
	ck_ok(madvise(mem.at, mem.page, MADV_REMOVE));
	if (mem.fd >= 0)
		ck_ok(fallocate(mem.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)mem.page, (off_t)mem.page));
	ck_assert_int_eq(collected(watch[0])->has[0], thp);
	ck_assert_int_eq(look(0), 0);
	ck_assert_int_eq(look(1), mem.fd < 0);
	(void)collected(watch[0]);
	touch(0);
	touch(1);
	ck_assert(is_set(collected(watch[0]), 0, 1));
}
END_TEST

/* No entry says that a page was there between two looks, and what is in it is not lost. */
START_TEST(shared_pages_unmapped_again)
{
	NEED_CASE(_i);
	ONLY(!is_private() && accesses && !thp);
	if (!make_case(SMALL))
		GU_LACKS(memory_need(), "no memory of kind %d", mem.kind);
	begin(watch[0]);
	touch(SMALL - 1);
	touch(0);
	ck_ok(madvise(mem.at, SMALL * mem.page, MADV_DONTNEED));
	struct set *set = collected(watch[0]);
	ck_assert(set->has[0] && !set->has[SMALL - 1]);
	ck_assert_int_eq(look(SMALL - 1), 1);
	ck_assert(is_set(collected(watch[0]), SMALL - 1));
}
END_TEST

/* ---- reclaimed, moved, merged ---- */

static bool reclaim(struct test_rng *rng)
{
	(void)rng;
	size_t before = count_entries(0, mem.pages, PRESENT);
	return !madvise(mem.at, mem.pages * mem.page, MADV_PAGEOUT) && count_entries(0, mem.pages, PRESENT) < before;
}

static bool reclaim_and_read(struct test_rng *rng)
{
	if (!reclaim(rng))
		return false;
	for (size_t i = 0; i < mem.pages; i++)
		(void)look(i);
	return true;
}

/* A reclaimed page of a private file mapping is told again; watched for accesses, a shared one is. */
START_TEST(swapped)
{
	NEED_CASE(_i);
	ONLY(!is_huge());
	if (!has_swap())
		GU_LACKS("swap", "no swap");
	size_t needless = SURVIVE_WITH("swap", reclaim, UNMAPS, 1);
	bool kept = is_exact() && (is_private() || !accesses);
	ck_assert(!kept || mem.kind == COPY || mem.kind == FILE_COPY || needless == 0);
	if (!accesses)
		ck_assert(SURVIVE_WITH("swap", reclaim_and_read, 0, 1) == 0 || !kept);
}
END_TEST

static size_t count_moved(const uint64_t *before)
{
	uint64_t now[MAX_PAGES];
	size_t n = 0;
	read_entries(now);
	for (size_t i = 0; i < mem.pages; i++)
		n += before[i] & now[i] & PRESENT && (before[i] & FRAME) != (now[i] & FRAME);
	return n;
}

#define NOISE ((size_t)32 << 20)

static char *noise;

/* Frames between used ones, which the case gets then, and compaction has something to do. */
static void make_noise(void)
{
	if (noise)
		munmap(noise, NOISE);
	noise = mmap(NULL, NOISE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	must(noise != MAP_FAILED && !madvise(noise, NOISE, MADV_NOHUGEPAGE), "errno %d", errno);
	for (size_t i = 0; i < NOISE; i += GU_PAGE)
		noise[i] = 1;
	for (size_t i = 0; i < NOISE; i += 2 * GU_PAGE)
		must_ok(madvise(noise + i, GU_PAGE, MADV_DONTNEED));
}

/* To the other node, or by compaction; the frames tell. */
static bool migrate(struct test_rng *rng)
{
	uint64_t before[MAX_PAGES];
	(void)rng;
	read_entries(before);
	if (has_nodes())
		return (move_pages_to(0), count_moved(before)) || (move_pages_to(1), count_moved(before));
	bool moved = write_text("/proc/sys/vm/compact_memory", "1") && count_moved(before);
	make_noise();
	return moved;
}

START_TEST(migrated)
{
	NEED_CASE(_i);
	if (geteuid() != 0)
		GU_LACKS("root", "frames are root's to see");
	if (!has_nodes() && (check_slow() > 1 || is_huge() || thp))
		GU_LACKS("nodes", "needs two nodes: tools/vm --numa 2");
	if (!has_nodes())
		make_noise();
	ck_assert(SURVIVE_WITH("nodes", migrate, thp ? UNMAPS : 0, has_nodes() ? 1 : 20) == 0 || !is_exact());
}
END_TEST

static bool merge(struct test_rng *rng)
{
	(void)rng;
	return !madvise(mem.at, mem.pages * mem.page, MADV_MERGEABLE) && run_ksm(2);
}

/* Merging drops the bit of what it replaces: that is told. */
START_TEST(merged)
{
	NEED_CASE(_i);
	ONLY(is_private() && !is_huge() && !thp);
	SURVIVE_WITH("ksm", merge, 0, 40);
}
END_TEST

/* ---- huge pages ---- */

static bool split_by_mprotect(struct test_rng *rng)
{
	char *at = page_at(test_below(rng, mem.pages - 1));
	return !mprotect(at, mem.page, PROT_READ) && !mprotect(at, mem.page, PROT_READ | PROT_WRITE);
}

static bool split_by_dropping(struct test_rng *rng) { return !madvise(page_at(test_below(rng, 512)), mem.page, MADV_DONTNEED); }

START_TEST(split)
{
	NEED_CASE(_i);
	ONLY(thp);
	ck_assert(SURVIVE(split_by_mprotect, UNMAPS, 1) == 0 || !is_exact());
	ck_assert(SURVIVE(split_by_dropping, DROPS | UNMAPS, 1) == 0 || !is_exact());
}
END_TEST

/* Watched for accesses they stay whole, as one page. */
START_TEST(touched_in_part)
{
	NEED_CASE(_i);
	ONLY(thp && is_private());
	if (!make_case(SMALL))
		GU_LACKS("thp", "no huge pages");
	begin(watch[0]);
	touch(7);
	ck_assert_uint_eq(count_huge(mem.at, mem.at + THP_LEN), accesses ? THP_LEN : 0);
	struct set *set = collected(watch[0]);
	ck_assert(set->has[7] && set->count == (accesses ? mem.pages : 1));
}
END_TEST

static bool collapse(void) { return !madvise(mem.at, THP_LEN, MADV_COLLAPSE) && count_huge(mem.at, mem.at + THP_LEN) == THP_LEN; }

#define ARMED (1ull << 57)

/* Refused while one is armed. Shared ones have no entries after the split; watched for accesses, a huge page that was touched is open. */
static bool collapse_armed(struct test_rng *rng)
{
	if (!split_by_mprotect(rng))
		return false;
	bool armed = count_entries(0, mem.pages, ARMED);
	must(armed || accesses || !is_private(), "kind %d: no page is armed", mem.kind);
	must(!collapse() || !armed, "kind %d: armed pages became huge", mem.kind);
	return armed || !is_private();
}

static bool collapse_written(struct test_rng *rng)
{
	if (!split_by_mprotect(rng))
		return false;
	for (size_t i = 0; i < mem.pages; i++)
		touch(i);
	return collapse();
}

START_TEST(collapsed)
{
	NEED_CASE(_i);
	ONLY(thp);
	SURVIVE_WITH("thp", collapse_armed, UNMAPS, 1);
	SURVIVE_WITH("thp", collapse_written, UNMAPS, 1);
}
END_TEST

/* ---- mappings ---- */

static bool protect(struct test_rng *rng, int prot)
{
	char *at;
	size_t len;
	choose_span(rng, &at, &len);
	if (mprotect(at, len, prot))
		return false;
	if (test_below(rng, 2) && !(accesses && prot == PROT_NONE))
		(void)peeked(watch[0]);
	return !mprotect(at, len, PROT_READ | PROT_WRITE);
}

static bool protect_from_all(struct test_rng *rng) { return protect(rng, PROT_NONE); }
static bool protect_from_writes(struct test_rng *rng) { return protect(rng, PROT_READ); }
static bool let_execute(struct test_rng *rng) { return protect(rng, PROT_READ | PROT_WRITE | PROT_EXEC); }

START_TEST(protected)
{
	NEED_CASE(_i);
	unsigned flags = thp ? UNMAPS : 0;
	ck_assert(SURVIVE(protect_from_all, flags, 1) == 0 || !is_exact());
	ck_assert(SURVIVE(protect_from_writes, flags, 1) == 0 || !is_exact());
	ck_assert(SURVIVE(let_execute, flags, 1) == 0 || !is_exact());
}
END_TEST

static bool fork_child(struct test_rng *rng)
{
	int status = -1;
	(void)rng;
	fflush(stdout);
	pid_t pid = fork();
	must(pid >= 0, "errno %d", errno);
	if (pid == 0) {
		if (is_private())
			touch(0);
		_exit(0);
	}
	must(waitpid(pid, &status, 0) == pid && status == 0, "status %d", status);
	return true;
}

START_TEST(forked)
{
	NEED_CASE(_i);
	ck_assert(SURVIVE(fork_child, thp ? UNMAPS : 0, 2) == 0 || !is_exact());
}
END_TEST

static bool move_away(struct test_rng *rng)
{
	size_t len = mem.pages * mem.page;
	(void)rng;
	char *to = mremap(mem.at, len, len, MREMAP_MAYMOVE | MREMAP_FIXED, reserve(len));
	if (to == MAP_FAILED)
		return false;
	mem.at = to;
	return true;
}

START_TEST(moved)
{
	NEED_CASE(_i);
	ck_assert(SURVIVE(move_away, EVENTS | (thp ? UNMAPS : 0), 1) == 0 || !is_exact());
}
END_TEST

/* Without events watching has ended, and nothing of it stays behind at the new place. */
START_TEST(moved_without_events)
{
	struct gcuffd_run run;
	size_t count;
	void *next;
	NEED_CASE(_i);
	if (!make_case(SMALL))
		GU_LACKS(memory_need(), "no memory of kind %d", mem.kind);
	begin(watch[0]);
	touch(1);
	ck_assert(move_away(NULL));
	touch(2);
	ck_assert_int_eq(gcuffd_watch_collect(watch[0], NULL, SIZE_MAX, &run, 1, &count, &next), -ENOENT);
	begin(watch[0]);
	touch(3);
	ck_assert(collected(watch[0])->has[3]);
	checked_table();
}
END_TEST

static bool map_over(struct test_rng *rng)
{
	char *at;
	size_t len;
	choose_span(rng, &at, &len);
	if (test_below(rng, 2))
		must_ok(munmap(at, len));
	return mmap(at, len, PROT_READ | PROT_WRITE, map_flags(mem.kind) | MAP_FIXED, mem.fd, at - mem.at) == at;
}

START_TEST(replaced)
{
	NEED_CASE(_i);
	SURVIVE(map_over, DROPS | UNMAPS, 1);
}
END_TEST

/* ---- armed, and out of reach by mprotect ---- */

static sigjmp_buf back;

static void jump_back(int sig)
{
	(void)sig;
	siglongjmp(back, 1);
}

static bool faults(size_t page)
{
	struct sigaction new = {.sa_handler = jump_back}, old;
	must_ok(sigaction(SIGSEGV, &new, &old));
	bool faulted = sigsetjmp(back, 1);
	if (!faulted)
		(void)look(page);
	must_ok(sigaction(SIGSEGV, &old, NULL));
	return faulted;
}

static bool gives_efault(size_t page)
{
	int fd = memfd_create("sink", 0);
	bool failed = write(fd, page_at(page), 1) != 1;
	must(!failed || errno == EFAULT, "errno %d", errno);
	close(fd);
	return failed;
}

static int page_protection(size_t page, int prot) { return mprotect(page_at(page), mem.page, prot); }

/* The entries of both are PROT_NONE: the bit tells which fault is the program's own. */
START_TEST(out_of_reach_is_not_armed)
{
	NEED_CASE(_i);
	if (!make_case(is_huge() ? 12 : 16))
		GU_LACKS(memory_need(), "no memory of kind %d", mem.kind);
	begin(watch[0]);
	ck_ok(page_protection(1, PROT_NONE));
	ck_assert(faults(1) && gives_efault(1));
	ck_assert(!faults(2) && !gives_efault(3));
	ck_assert(faults(1));
	ck_ok(page_protection(1, PROT_READ | PROT_WRITE));
	struct set *set = collected(watch[0]);
	ck_assert(thp || set->count == (accesses ? 2 : 0));
	ck_assert(!accesses || (set->has[2] && set->has[3]));
	ck_assert(!faults(1));
	touch(4);
	ck_ok(page_protection(4, PROT_NONE));
	ck_ok(page_protection(4, PROT_READ | PROT_WRITE));
	set = collected(watch[0]);
	ck_assert((set->has[4] || (accesses && thp && !is_private())) && (!accesses || set->has[1]));
}
END_TEST

/* What was written before is told meanwhile; watched for accesses, when it is in reach again. */
START_TEST(told_out_of_reach)
{
	struct gcuffd_run run;
	size_t count;
	void *next;
	NEED_CASE(_i);
	ONLY(!thp);
	if (!make_case(SMALL))
		GU_LACKS(memory_need(), "no memory of kind %d", mem.kind);
	begin(watch[0]);
	touch(0);
	touch(1);
	ck_ok(page_protection(1, PROT_NONE));
	int err = gcuffd_watch_collect(watch[0], mem.at, SIZE_MAX, &run, 1, &count, &next);
	ck_assert_int_eq(err, accesses ? -ESTALE : 0);
	ck_assert(count == 1 && run.start == page_at(0) && run.end == page_at(accesses ? 1 : 2));
	ck_assert_ptr_eq(next, accesses ? page_at(1) : NULL);
	ck_assert(faults(1));
	ck_ok(page_protection(1, PROT_READ | PROT_WRITE));
	ck_assert_int_eq(collected(watch[0])->has[1], accesses);
	ck_assert(!faults(1));
	touch(1);
	ck_assert(is_set(collected(watch[0]), 1));
}
END_TEST

/* ---- forked with the kernel's event: the child's memory is registered and armed too ---- */

static void visit_set(void *data, uintptr_t start, uintptr_t end)
{
	struct gcuffd_run run = {(void *)start, (void *)end};
	add_run(data, &run);
}

/* Populated pages that were written, or accessed. */
static struct set *raw_set(void)
{
	static struct set set;
	memset(&set, 0, sizeof(set));
	int fd = gu_scan_open();
	uintptr_t start = (uintptr_t)mem.at, end = (uintptr_t)page_at(populated());
	must(fd >= 0, "%d", fd);
	must_ok(accesses ? gu_scan_accessed(fd, start, end, visit_set, &set)
			 : gu_scan_written(fd, start, end, false, visit_set, &set));
	close(fd);
	return &set;
}

static int arm_raw(int uffd)
{
	uintptr_t start = (uintptr_t)mem.at;
	size_t len = mem.pages * mem.page;
	int err = gu_uffd_register(uffd, start, len, accesses ? GU_UFFD_REGISTER_RWP : GU_UFFD_REGISTER_WP, NULL);
	return err ? err : accesses ? gu_uffd_rwprotect(uffd, start, len, true) : gu_uffd_writeprotect(uffd, start, len, true);
}

static void *read_fork(void *arg)
{
	int uffd = *(int *)arg;
	struct pollfd p = {uffd, POLLIN, 0};
	struct gu_uffd_msg msg;
	must(poll(&p, 1, 20000) == 1 && read(uffd, &msg, sizeof(msg)) == sizeof(msg), "errno %d", errno);
	must(msg.event == GU_UFFD_EVENT_FORK, "event %d", msg.event);
	return (void *)(intptr_t)msg.arg.fork.ufd;
}

static int use_forked(void)
{
	struct set *set = raw_set();
	if (!set->has[1] || set->count > populated())
		return 1;
	bool precise = set->count == 1;
	touch(2);
	set = raw_set();
	return !set->has[1] || !set->has[2] ? 2 : precise && set->count != 2 ? 3 : precise ? 0 : 4;
}

START_TEST(forked_with_event)
{
	int status = -1;
	void *child = NULL;
	pthread_t reader;
	uint64_t features = GU_UFFD_FEATURE_EVENT_FORK | GU_UFFD_FEATURE_WP_ASYNC;
	NEED_CASE(_i);
	ONLY(!thp);
	if (!make_case(is_huge() ? 8 : 16))
		GU_LACKS(memory_need(), "no memory of kind %d", mem.kind);
	int uffd = gu_uffd_open(accesses ? features | GU_UFFD_FEATURE_RWP | GU_UFFD_FEATURE_RWP_ASYNC : features, NULL);
	if (uffd == -EPERM)
		GU_LACKS("uffd", "needs a privilege");
	ck_assert_int_ge(uffd, 0);
	ck_ok(arm_raw(uffd));
	touch(1);
	must_ok(pthread_create(&reader, NULL, read_fork, &uffd));
	fflush(stdout);
	pid_t pid = fork();
	must(pid >= 0, "errno %d", errno);
	if (pid == 0)
		_exit(use_forked());
	pthread_join(reader, &child);
	ck_assert_int_eq(waitpid(pid, &status, 0), pid);
	ck_assert_int_eq(status, 0);
	ck_assert_int_ge((int)(intptr_t)child, 0);
	touch(3);
	ck_assert(is_set(raw_set(), 1, 3));
	close((int)(intptr_t)child);
	close(uffd);
}
END_TEST
static Suite *make_suite(void)
{
	Suite *suite = suite_create("tracking");
	TCase *kept = test_case(suite, "kept"), *kernel = test_case(suite, "kernel"), *mappings = test_case(suite, "mappings");
	tcase_add_unchecked_fixture(kept, more_huge_pages, fewer_huge_pages);
	tcase_add_unchecked_fixture(kept, begin_thp, end_thp);
	tcase_add_loop_test(kept, dropped, 0, CASES);
	tcase_add_loop_test(kept, freed, 0, CASES);
	tcase_add_loop_test(kept, punched, 0, CASES);
	tcase_add_loop_test(kept, shared_pages_unmapped_again, 0, CASES);
	tcase_add_loop_test(kept, split, 0, CASES);
	tcase_add_loop_test(kept, touched_in_part, 0, CASES);
	tcase_add_loop_test(kept, collapsed, 0, CASES);
	tcase_add_unchecked_fixture(kernel, more_huge_pages, fewer_huge_pages);
	tcase_add_unchecked_fixture(kernel, begin_thp, end_thp);
	tcase_add_unchecked_fixture(kernel, begin_swap, end_swap);
	tcase_add_unchecked_fixture(kernel, begin_ksm, end_ksm);
	tcase_add_loop_test(kernel, swapped, 0, CASES);
	tcase_add_loop_test(kernel, migrated, 0, CASES);
	tcase_add_loop_test(kernel, merged, 0, CASES);
	tcase_add_unchecked_fixture(mappings, more_huge_pages, fewer_huge_pages);
	tcase_add_unchecked_fixture(mappings, begin_thp, end_thp);
	tcase_add_loop_test(mappings, protected, 0, CASES);
	tcase_add_loop_test(mappings, forked, 0, CASES);
	tcase_add_loop_test(mappings, forked_with_event, 0, CASES);
	tcase_add_loop_test(mappings, moved, 0, CASES);
	tcase_add_loop_test(mappings, moved_without_events, 0, CASES);
	tcase_add_loop_test(mappings, replaced, 0, CASES);
	tcase_add_loop_test(mappings, out_of_reach_is_not_armed, 0, CASES);
	tcase_add_loop_test(mappings, told_out_of_reach, 0, CASES);
	return suite;
}

TEST_MAIN(make_suite)
