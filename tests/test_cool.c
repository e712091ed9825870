/* SPDX-License-Identifier: MIT */
/*
 * test_cool.c - what makes a heap take pages out by itself: limits of cgroups, pressure, time; how it backs off from a working set that it can't do
 * without, and what it says of the use of its pages. Limits and pressure are read from files that are made up, but for limited(), and time goes
 * several times as fast for the library as for the tests: what it goes by are seconds.
 */
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "cold.h"
#include "ctl/tier.h"
#include "fake_os.h"
#include "space/ages.h"

#define MIB ((size_t)1 << 20)

static struct gcuffd_working_set set_of(struct gcuffd_arena *a, unsigned window_ms)
{
	struct gcuffd_working_set s = {.size = sizeof(s)};
	must_ok(gcuffd_working_set(heap, a, window_ms, &s));
	return s;
}

/* ---- time ---- */

static unsigned speed(void) { return check_slow() > 1 ? 2 : 5; }

static uint64_t fast_clock(void) { return gu_os_linux.clock_ns() * speed(); }

static int wait_fast(uint32_t *word, uint32_t expected, int64_t timeout_ns)
{
	return gu_os_linux.futex_wait(word, expected, timeout_ns > 0 ? timeout_ns / speed() : timeout_ns);
}

static void begin_fast(void)
{
	fake_install();
	fake_os.clock_ns = fast_clock;
	fake_os.futex_wait = wait_fast;
}

/* Of the library's milliseconds. */
static void nap(unsigned ms) { usleep(ms * 1000 / speed()); }

/* Until it holds, a minute at most; some where all takes longer. */
#define wait_for(condition) \
	({ \
		uint64_t wf_end = test_now_ns() + check_span_ns(60000000000u); \
		bool wf_holds; \
		while (!(wf_holds = (condition)) && test_now_ns() < wf_end) \
			usleep(5000); \
		wf_holds; \
	})

/* ---- memory ---- */

/* Pages that compress to a tenth, each with its number. */
static uint64_t *make_pages(struct gcuffd_arena *a, size_t n)
{
	uint64_t *p = a ? gcuffd_arena_alloc(a, n * GU_PAGE, GU_PAGE, GCUFFD_ATOMIC) : gcuffd_alloc_aligned(heap, n * GU_PAGE, GU_PAGE, GCUFFD_ATOMIC);
	struct test_rng rng = test_rng(n);
	must(p != NULL, "errno %d", errno);
	for (size_t i = 0; i < n; i++) {
		p[i * 512] = i;
		for (size_t k = 1; k < 40; k++)
			p[i * 512 + k * 7] = test_rand(&rng);
	}
	return p;
}

static void check_pages(const uint64_t *p, size_t n)
{
	for (size_t i = 0; i < n; i++)
		must(gu_load_relaxed(&p[i * 512]) == i, "page %zu: %lu", i, (unsigned long)p[i * 512]);
}

static size_t resident(void) { return gu_tier_resident(heap); }

/* ---- files that are made up ---- */

static char root[TEST_PATH];

static int open_below(const char *path, int flags)
{
	char real[512];
	bool ours = !strncmp(path, "/sys/fs/cgroup", 14) || !strncmp(path, "/proc/pressure", 14) || !strcmp(path, "/proc/self/cgroup") || !strcmp(path, "/proc/self/mountinfo");
	snprintf(real, sizeof(real), "%s%s", ours ? root : "", path);
	return gu_os_linux.open(real, flags);
}

static void put(const char *path, const char *format, ...)
{
	char real[512], text[256];
	va_list args;
	va_start(args, format);
	int len = vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	snprintf(real, sizeof(real), "%s%s", root, path);
	for (char *p = real + strlen(root) + 1; (p = strchr(p, '/')); *p++ = '/') {
		*p = 0;
		mkdir(real, 0700);
	}
	int fd = open(real, O_WRONLY | O_CREAT | O_CLOEXEC, 0600); /* never empty in between */
	must(fd >= 0 && write(fd, text, (size_t)len) == len && !ftruncate(fd, len), "%s: %d", real, errno);
	close(fd);
}

static void begin_files(void)
{
	snprintf(root, sizeof(root), "%s/cool.XXXXXX", test_folder);
	ck_assert_ptr_nonnull(mkdtemp(root));
	begin_fast();
	fake_os.open = open_below;
}

static void end_files(void)
{
	char command[TEST_PATH + 16];
	fake_remove();
	snprintf(command, sizeof(command), "rm -r %s", root);
	ck_ok(system(command));
}

static void put_limit(const char *max, size_t used)
{
	put("/proc/self/cgroup", "0::/g\n");
	put("/proc/self/mountinfo", "30 20 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n");
	put("/sys/fs/cgroup/g/memory.max", "%s\n", max);
	put("/sys/fs/cgroup/g/memory.high", "max\n");
	put("/sys/fs/cgroup/g/memory.stat", "anon 1\ninactive_file 0\n");
	put("/sys/fs/cgroup/g/memory.current", "%zu\n", used);
}

/* ---- limits ---- */

#define BESIDE (10 * MIB)

/* Of all that is out, up to the target. */
static void prefetch(const uint64_t *p, size_t n)
{
	static uint64_t offsets[10000];
	must(n <= GU_ARRAY_LEN(offsets));
	for (size_t i = 0; i < n; i++)
		offsets[i] = (uintptr_t)p - heap->space.base + i * GU_PAGE;
	must_ok(gcuffd_order_prefetch(heap, offsets, n));
}

static bool is_within(const char *max, size_t target)
{
	put_limit(max, resident() + BESIDE);
	return resident() <= target + MIB;
}

START_TEST(follows_a_limit)
{
	NEED_RUNG(_i);
	begin_files();
	put_limit("max", 50 * MIB);
	cold_heap(",cool_mode=cgroup,store_memory=64M");
	uint64_t *p = make_pages(NULL, 10000); /* 39 MiB */
	ck_ok(gcuffd_collect(heap));
	nap(1500);
	ck_assert_uint_eq(cold_of(heap).target_bytes, UINT64_MAX);
	ck_assert_uint_eq(cold_of(heap).out_pages, 0);
	ck_assert_msg(wait_for(is_within("33554432", 20 * MIB)), "%zu MiB", resident() >> 20); /* 32, less 2, less what is beside */
	ck_assert_uint_gt(cold_of(heap).target_bytes, 19 * MIB);
	ck_assert_uint_lt(cold_of(heap).target_bytes, 21 * MIB);
	size_t out = cold_of(heap).out_pages;
	prefetch(p, 10000);
	usleep(200000 * check_slow());
	ck_assert_uint_lt(cold_of(heap).early_pages, out / 2);
	check_pages(p, 10000);
	put_limit("max", 50 * MIB);
	ck_assert(wait_for(cold_of(heap).target_bytes == UINT64_MAX));
	ck_assert_ptr_null(strstr(core_log, "does not tell"));
	put_limit("33554432", 50 * MIB);
	ck_assert(wait_for(cold_of(heap).target_bytes != UINT64_MAX));
	fake_fail(FAKE_PREAD, 1, -ENODEV); /* the group is gone, and the process in another */
	ck_assert(wait_for(fake.fired || cold_of(heap).target_bytes == UINT64_MAX));
	nap(2000);
	ck_assert_uint_ne(cold_of(heap).target_bytes, UINT64_MAX);
	ck_assert_ptr_null(strstr(core_log, "does not tell"));
	fake_fail(FAKE_PREAD, 1, -ENODEV);
	fake.sticky = true;
	ck_assert(wait_for(cold_of(heap).target_bytes == UINT64_MAX));
	ck_assert(wait_for(strstr(core_log, "does not tell") != NULL));
	core_forget_log();
	fake_clear();
	ck_assert(wait_for(cold_of(heap).target_bytes != UINT64_MAX));
	ck_assert_str_eq(core_log, "");
	ck_ok(gcuffd_heap_destroy(heap));
	end_files();
}
END_TEST

static int child_of_limit(uint64_t *p)
{
	check_pages(p, 10000);
	for (int i = 0; i < 6000 && resident() > 21 * MIB; i++) {
		put_limit("33554432", resident() + BESIDE);
		usleep(10000);
	}
	if (resident() > 21 * MIB)
		return 1;
	check_pages(p, 10000);
	return strstr(core_log, "does not tell") != NULL;
}

/* Descriptors are the parent's: the child has its own. */
START_TEST(forks)
{
	NEED_RUNG(_i);
	begin_files();
	put_limit("max", 50 * MIB);
	cold_heap(",cool_mode=cgroup,store_memory=64M");
	uint64_t *p = make_pages(NULL, 10000);
	ck_ok(gcuffd_collect(heap));
	ck_assert_msg(wait_for(is_within("33554432", 20 * MIB)), "%zu MiB", resident() >> 20);
	fflush(stdout);
	pid_t pid = fork();
	if (pid == 0) {
		limit_child();
		_exit(child_of_limit(p));
	}
	int status;
	ck_assert_int_eq(waitpid(pid, &status, 0), pid);
	ck_assert_int_eq(status, 0);
	check_pages(p, 10000);
	ck_ok(gcuffd_heap_destroy(heap));
	end_files();
}
END_TEST

static unsigned count_own_files(void)
{
	char path[64], name[512];
	unsigned found = 0;
	for (int fd = 0; fd < 1024; fd++) {
		snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
		ssize_t n = readlink(path, name, sizeof(name));
		found += n > (ssize_t)strlen(root) && !strncmp(name, root, strlen(root));
	}
	return found;
}

/* Where service threads have the program's descriptors, it may close them and take their numbers: none is kept. Nor does a child get any. */
START_TEST(shares_descriptors)
{
	NEED_RUNG(_i);
	begin_files();
	put_limit("33554432", 50 * MIB);
	fake_fail(FAKE_UNSHARE, 1, -EPERM);
	fake.sticky = true;
	cold_heap(",cool_mode=cgroup,store_memory=64M");
	uint64_t *p = make_pages(NULL, 2000);
	ck_ok(gcuffd_collect(heap));
	ck_assert(wait_for(cold_of(heap).target_bytes != UINT64_MAX));
	ck_assert_ptr_nonnull(strstr(core_log, "unshare was refused"));
	ck_assert(wait_for(!count_own_files())); /* not in the middle of a look */
	for (int i = 0; i < 10; i++) {
		int status;
		fflush(stdout);
		pid_t pid = fork();
		if (pid == 0) {
			limit_child();
			_exit(wait_for(!count_own_files()) ? 0 : 1); /* it may have an evictor of its own */
		}
		ck_assert_int_eq(waitpid(pid, &status, 0), pid);
		ck_assert_int_eq(status, 0);
		nap(300);
	}
	put_limit("max", 50 * MIB);
	ck_assert(wait_for(cold_of(heap).target_bytes == UINT64_MAX));
	check_pages(p, 2000);
	ck_assert_ptr_null(strstr(core_log, "does not tell"));
	ck_ok(gcuffd_heap_destroy(heap));
	end_files();
}
END_TEST

static long read_slowly(int fd, void *buffer, size_t len, off_t at)
{
	usleep(at ? 2000 : 0);
	return fake_pread(fd, buffer, len, at);
}

/* A limit that comes while pages are brought back in an order ends that. */
START_TEST(limit_while_fetching)
{
	NEED_RUNG(_i);
	const size_t n = 3000;
	begin_files();
	put_limit("max", 50 * MIB);
	cold_heap(",cool_mode=cgroup,store_memory=1M,store_file=64M,start_size=1M");
	fake_os.pread = read_slowly;
	uint64_t *p = make_pages(NULL, n);
	ck_ok(gcuffd_collect(heap));
	size_t out;
	ck_ok(gcuffd_cool(heap, p, n * GU_PAGE, &out));
	prefetch(p, n);
	ck_assert(wait_for(cold_of(heap).early_pages > 10));
	put_limit("1048576", resident() + BESIDE);
	ck_assert(wait_for(cold_of(heap).target_bytes != UINT64_MAX || cold_of(heap).early_pages == n));
	nap(200);
	uint64_t early = cold_of(heap).early_pages;
	ck_assert_uint_lt(early, n / 2);
	nap(2000);
	ck_assert_uint_eq(cold_of(heap).early_pages, early);
	fake_os.pread = fake_pread;
	check_pages(p, n);
	ck_ok(gcuffd_heap_destroy(heap));
	end_files();
}
END_TEST

/* ---- a limit of the kernel's ---- */

static char group[128], group_files[2][24];

/* Version 1 or 2, whichever has memory. */
static bool write_group(const char *file, const char *format, long n)
{
	char path[192], text[32];
	snprintf(path, sizeof(path), "%s/%s", group, file);
	int len = snprintf(text, sizeof(text), format, n), fd = open(path, O_WRONLY | O_CLOEXEC);
	bool ok = fd >= 0 && write(fd, text, (size_t)len) == len;
	if (fd >= 0)
		close(fd);
	return ok;
}

static void begin_group(void)
{
	static const char *const roots[] = {"/sys/fs/cgroup/memory", "/sys/fs/cgroup"};
	group[0] = 0;
	for (int v = 0; v < 2 && geteuid() == 0 && !group[0]; v++) {
		snprintf(group, sizeof(group), "%s", roots[v]);
		if (v == 1)
			write_group("cgroup.subtree_control", "+memory", 0);
		snprintf(group, sizeof(group), "%s/gu-cool-%d", roots[v], (int)getpid());
		snprintf(group_files[0], sizeof(group_files[0]), "%s", v ? "memory.max" : "memory.limit_in_bytes");
		snprintf(group_files[1], sizeof(group_files[1]), "%s", v ? "memory.swap.max" : "memory.swappiness");
		if (access(roots[v], W_OK) || mkdir(group, 0700) || !write_group(group_files[0], "%ld", 96 << 20)) {
			rmdir(group);
			group[0] = 0;
			continue;
		}
		write_group(group_files[1], "%ld", 0); /* nothing is swapped */
	}
}

static void end_group(void)
{
	for (int i = 0; group[0] && rmdir(group) && errno == EBUSY && i < 1000; i++)
		usleep(10000);
}

/* 160 MiB in 96, that nobody swaps: without the heap's doing the child would be killed. */
static int fill_group(int rung)
{
	if (!write_group("cgroup.procs", "%ld", (long)getpid()))
		return 2;
	begin_fast();
	heap = heap_make("rung=%s,cold=1,reservation=1G,cool_mode=cgroup,store_memory=64M,start_size=1M", rung_names[rung]);
	uint64_t *parts[80];
	for (size_t i = 0; i < GU_ARRAY_LEN(parts); i++) {
		parts[i] = make_pages(NULL, 512);
		usleep(20000);
		if (!wait_for(cold_of(heap).target_bytes != UINT64_MAX && resident() <= cold_of(heap).target_bytes)) { /* not faster than the hand */
			struct gcuffd_cold_stats s = cold_of(heap);
			printf("part %zu: resident %zu KiB, target %lu KiB, out %lu pages, probation %lu ms after %lu backoffs\n", i, resident() >> 10,
			       (unsigned long)s.target_bytes >> 10, (unsigned long)s.out_pages, (unsigned long)s.probation_ns / 1000000, (unsigned long)s.backoffs);
			fflush(stdout);
			return 4;
		}
	}
	struct gcuffd_cold_stats s = cold_of(heap);
	printf("out %lu MiB, target %lu MiB, resident %zu MiB\n", (unsigned long)s.out_pages >> 8, (unsigned long)s.target_bytes >> 20, resident() >> 20);
	fflush(stdout);
	if (s.target_bytes > 90 * MIB || s.out_pages < 60 * 256)
		return 3;
	for (size_t i = GU_ARRAY_LEN(parts); i-- > 40;)
		check_pages(parts[i], 512);
	must_ok(gcuffd_heap_destroy(heap));
	return 0;
}

START_TEST(limited)
{
	NEED_RUNG(_i);
	if (!group[0])
		GU_LACKS("cgroup", "no memory cgroup can be made here");
	NO_SANITIZER("it has memory of its own");
	int status;
	fflush(stdout);
	pid_t pid = fork();
	if (pid == 0) {
		limit_child();
		_exit(fill_group(_i));
	}
	ck_assert_int_eq(waitpid(pid, &status, 0), pid);
	ck_assert_int_eq(status, 0);
}
END_TEST

/* ---- pressure ---- */

static void put_pressure(uint64_t us)
{
	put("/proc/pressure/memory", "some avg10=0.00 avg60=0.00 avg300=0.00 total=%lu\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n", (unsigned long)us);
}

static bool is_pressed(uint64_t *us, size_t most)
{
	put_pressure(*us += 50000); /* much more than passes */
	return resident() <= most;
}

START_TEST(gives_way_to_pressure)
{
	NEED_RUNG(_i);
	uint64_t us = 1000;
	begin_files();
	put_pressure(us);
	cold_heap(",cool_mode=pressure,pressure_percent=5,store_memory=64M");
	uint64_t *p = make_pages(NULL, 10000);
	ck_ok(gcuffd_collect(heap));
	size_t before = resident();
	nap(2500);
	ck_assert_uint_eq(cold_of(heap).out_pages, 0);
	ck_assert_msg(wait_for(is_pressed(&us, before - before / 4)), "%zu MiB of %zu", resident() >> 20, before >> 20);
	ck_assert_uint_lt(cold_of(heap).target_bytes, before);
	ck_assert(wait_for(cold_of(heap).target_bytes == UINT64_MAX));
	check_pages(p, 10000);
	ck_ok(gcuffd_heap_destroy(heap));
	end_files();
}
END_TEST

START_TEST(refused)
{
	struct gcuffd_heap *h;
	begin_files();
	ck_assert_int_eq(heap_try(&h, "cold=1,cool_mode=pressure"), -EOPNOTSUPP);
	ck_assert_ptr_nonnull(strstr(core_log, "cool_mode=pressure"));
	core_forget_log();
	ck_assert_int_eq(heap_try(&h, "cold=1,cool_mode=cgroup"), -EOPNOTSUPP);
	ck_assert_ptr_nonnull(strstr(core_log, "no memory cgroup"));
	core_forget_log();
	fake_os.open = fake_open;
	fake_fail(FAKE_OPEN, 1, -EMFILE);
	ck_assert_int_eq(heap_try(&h, "cold=1,cool_mode=cgroup"), -EMFILE);
	ck_assert_ptr_nonnull(strstr(core_log, "can't be opened"));
	fake_clear();
	fake_os.open = open_below;
	core_forget_log();
	ck_assert_int_eq(heap_try(&h, "cool_mode=idle"), -EINVAL);
	ck_assert_ptr_nonnull(strstr(core_log, "cool_mode"));
	ck_assert_int_eq(heap_try(&h, "cold=1,fault_percent=101"), -EINVAL);
	ck_assert_int_eq(heap_try(&h, "cold=1,pressure_percent=101"), -EINVAL);
	struct gcuffd_options o;
	gcuffd_options_init(&o);
	ck_assert_int_eq(gcuffd_options_parse(&o, "cool_mode=warm", NULL), -EINVAL);
	ck_ok(gcuffd_options_parse(&o, "cool_mode=idle,cool_after_ms=5", NULL));
	ck_assert_int_eq(o.cool_mode, GCUFFD_COOL_IDLE);
	o.log = core_keep_line;
	o.cool_mode = (enum gcuffd_cool_mode)4;
	ck_assert_int_eq(gcuffd_heap_create(&o, &h), -EINVAL);
	end_files();
}
END_TEST

/* ---- time ---- */

#define TOUCHED 500u
#define UNTOUCHED (check_slow() > 1 ? 2048u : 8192u) /* a size of its own: no page is left over */

static size_t count_stored(const uint64_t *p, size_t n)
{
	size_t stored = 0;
	for (size_t i = 0; i < n; i++)
		stored += gu_cold_state(&heap->space.cold, gu_space_page(&heap->space, (uintptr_t)p) + i) == GU_COLD_EVICTED;
	return stored;
}

static uint64_t *touched;
static uint32_t quit, rounds;

static void *touch_pages(void *unused)
{
	must_ok(gcuffd_thread_attach());
	for (; !gu_load_relaxed(&quit); gu_add_relaxed(&rounds, 1), usleep(1000))
		check_pages(touched, TOUCHED);
	must_ok(gcuffd_thread_detach());
	return unused;
}

/* What nobody touches goes, though there is room; each arena is told of by itself. */
START_TEST(goes_by_time)
{
	struct gcuffd_arena *a, *b, *c;
	pthread_t t;
	NEED_RUNG(_i);
	begin_fast();
	heap = heap_make("rung=%s,cold=1,reservation=1G,cool_mode=idle,cool_after_ms=%u,fault_percent=100,store_memory=64M,without=neighbours", rung_names[_i],
			 (unsigned)check_span_ns(600));
	ck_ok(gcuffd_arena_create(heap, "a", &a));
	ck_ok(gcuffd_arena_create(heap, "b", &b));
	ck_ok(gcuffd_arena_create(heap, "c", &c));
	ck_ok(gcuffd_arena_set_hot(c, 1));
	touched = make_pages(a, TOUCHED);
	uint64_t *untouched = make_pages(b, UNTOUCHED), *kept = make_pages(c, TOUCHED);
	struct gcuffd_working_set s = set_of(NULL, 1000);
	ck_assert_uint_ge(s.resident_bytes + s.out_bytes, (2 * TOUCHED + UNTOUCHED) * GU_PAGE);
	quit = 0;
	must_ok(pthread_create(&t, NULL, touch_pages, NULL));
	ck_ok(gcuffd_collect(heap));
	ck_assert(wait_for(set_of(b, 1000).out_bytes == UNTOUCHED * GU_PAGE));
	ck_assert(wait_for(count_stored(untouched, UNTOUCHED) == UNTOUCHED)); /* what is still on probation does not come back from the store */
	nap(1600);
	s = set_of(b, 1000);
	ck_assert_uint_eq(s.out_bytes, UNTOUCHED * GU_PAGE);
	ck_assert_uint_eq(s.resident_bytes, 0);
	ck_assert_uint_eq(s.untouched_bytes, s.out_bytes);
	ck_assert_uint_eq(s.estimate_bytes, 0);
	ck_assert_uint_ge(s.oldest_ns, 1500000000);
	ck_assert_uint_eq(s.age_bytes[0], 0);
	uint64_t sum = 0;
	for (size_t i = 0; i < GCUFFD_AGES; i++)
		sum += s.age_bytes[i];
	ck_assert_uint_eq(sum, s.out_bytes);
	s = set_of(a, 60000);
	ck_assert_uint_ge(s.estimate_bytes, TOUCHED * GU_PAGE * 9 / 10);
	ck_assert(wait_for(set_of(a, 60000).out_bytes <= TOUCHED * GU_PAGE / 2)); /* but for what is on probation just now */
	s = set_of(c, 1000);
	ck_assert_uint_eq(s.out_bytes, 0);
	ck_assert_uint_eq(s.touched_bytes + s.untouched_bytes, 0);
	gu_store_relaxed(&quit, 1);
	must_ok(pthread_join(t, NULL));
	check_pages(untouched, UNTOUCHED);
	check_pages(kept, TOUCHED);
	ck_assert(wait_for(set_of(b, 60000).refaulted_pages >= UNTOUCHED)); /* when leftovers are dropped */
	s = set_of(b, 60000);
	ck_assert_uint_ge(s.touched_bytes, UNTOUCHED * GU_PAGE * 9 / 10);
	ck_assert_uint_eq(set_of(c, 1000).refaulted_pages, 0);
	space_checked(heap);
	ck_ok(gcuffd_arena_destroy(b));
	ck_ok(gcuffd_heap_destroy(heap));
	fake_remove();
}
END_TEST

/* The hand would go round all the time. */
START_TEST(least_time)
{
	cold_heap(",cool_mode=idle,cool_after_ms=1");
	ck_ok(gcuffd_collect(heap));
	ck_assert_uint_eq(cold_of(heap).probation_ns, 50000000);
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

/* What is brought back by a call, and what dies, was not touched. */
START_TEST(touches_are_told_apart)
{
	size_t n;
	cold_heap(",without=neighbours");
	uint64_t *p = make_pages(NULL, 1000);
	struct gcuffd_working_set w = set_of(NULL, 1000);
	ck_assert_uint_ge(w.resident_bytes, 1000 * GU_PAGE);
	ck_assert_uint_eq(w.estimate_bytes, w.resident_bytes); /* nothing is known */
	ck_assert_uint_eq(w.oldest_ns, 0);
	ck_ok(gcuffd_cool(heap, p, 1000 * GU_PAGE, &n));
	ck_assert_uint_eq(n, 1000);
	ck_ok(gcuffd_warm(heap, p, 500 * GU_PAGE));
	check_pages(p, 500);
	ck_assert_uint_eq(cold_of(heap).touched_pages, 0);
	check_pages(p, 600);
	ck_assert(wait_for(cold_of(heap).touched_pages == 100)); /* counted by the resolver, behind its back */
	struct gcuffd_cold_stats s = cold_of(heap);
	ck_assert_uint_eq(s.refaulted_pages, 100);
	ck_assert_uint_gt(s.touch_ns, 0);
	ck_assert(wait_for(set_of(NULL, 1000).refaulted_pages == 100)); /* when leftovers are dropped */
	ck_ok(gcuffd_cool(heap, p, 1000 * GU_PAGE, &n));
	ck_assert_uint_eq(n, 600);
	ck_assert_uint_eq(set_of(NULL, 60000).touched_bytes, 100 * GU_PAGE); /* out or not */
	struct gu_ages ages;
	gu_ages_read(&heap->space, NULL, 0, 0, &ages); /* all that is known came later */
	ck_assert_uint_eq(ages.oldest_ns, 0);
	ck_assert_uint_eq(ages.untouched, 0);
	ck_ok(gcuffd_free(heap, p));
	ck_ok(gcuffd_cool(heap, NULL, 0, &n));
	ck_assert_uint_eq(set_of(NULL, 1000).refaulted_pages, 100);
	ck_assert_uint_eq(set_of(NULL, 60000).touched_bytes, 0);
	ck_assert_uint_eq(s.target_bytes, UINT64_MAX);
	w.size = 4;
	ck_assert_int_eq(gcuffd_working_set(heap, NULL, 1, &w), -EINVAL);
	ck_ok(gcuffd_heap_destroy(heap));
	heap = heap_make("reservation=1G");
	w.size = sizeof(w);
	ck_assert_int_eq(gcuffd_working_set(heap, NULL, 1, &w), -EOPNOTSUPP);
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

/* What is known of a page is not known of the next object there. */
START_TEST(pages_change_hands)
{
	size_t n;
	begin_fast();
	cold_heap(",without=neighbours");
	uint64_t *p = make_pages(NULL, 1000), *q = NULL;
	for (int settled = 0; settled < 2; settled++) {
		ck_ok(gcuffd_cool(heap, p, 1000 * GU_PAGE, &n));
		check_pages(p, 1000);
		if (settled) /* when leftovers are dropped; at first they are not yet */
			ck_assert(wait_for(set_of(NULL, 60000).touched_bytes == 1000 * GU_PAGE));
		ck_ok(gcuffd_free(heap, p));
		ck_ok(gcuffd_collect(heap));
		q = make_pages(NULL, 1000);
		ck_assert_ptr_eq(q, p);
		if (!settled)
			nap(1500);
		struct gcuffd_working_set s = set_of(NULL, 60000);
		ck_assert_uint_eq(s.touched_bytes, 0);
		for (size_t i = 0; i < GCUFFD_AGES; i++)
			ck_assert_uint_eq(s.age_bytes[i], 0);
		space_checked(heap);
	}
	ck_ok(gcuffd_heap_destroy(heap));
	fake_remove();
}
END_TEST

/* Nor was what came back ahead of touches. */
START_TEST(ahead_of_touches)
{
	size_t n;
	begin_fast();
	cold_heap("");
	uint64_t *p = make_pages(NULL, 1000);
	ck_ok(gcuffd_cool(heap, p, 1000 * GU_PAGE, &n));
	ck_assert_uint_eq(n, 1000);
	check_pages(p, 1000);
	ck_assert(wait_for(cold_of(heap).touched_pages + cold_of(heap).ahead_pages == cold_of(heap).restored_pages));
	struct gcuffd_cold_stats s = cold_of(heap);
	ck_assert_uint_gt(s.ahead_pages, 100);
	ck_assert_uint_eq(s.refaulted_pages, s.touched_pages);
	ck_assert(wait_for(set_of(NULL, 60000).refaulted_pages == s.touched_pages)); /* when leftovers are dropped */
	ck_assert_uint_eq(set_of(NULL, 60000).touched_bytes, s.touched_pages * GU_PAGE);
	ck_ok(gcuffd_heap_destroy(heap));
	fake_remove();
}
END_TEST

/* ---- a working set that does not fit ---- */

#define SET (check_slow() > 4 ? 1500u : 6000u) /* where a fault takes far longer, fewer cost as much */

/* All of it once a second: that is longer than a probation, at first. */
static void *go_round(void *arg)
{
	const uint64_t *p = arg;
	must_ok(gcuffd_thread_attach());
	while (!gu_load_relaxed(&quit))
		for (size_t i = 0; i < SET && !gu_load_relaxed(&quit); i++) {
			must(p[i * 512] == i, "page %zu", i);
			if (i % (SET / 100) == 0)
				nap(10);
		}
	must_ok(gcuffd_thread_detach());
	return NULL;
}

static uint64_t refaults_in(unsigned ms)
{
	uint64_t before = cold_of(heap).refaulted_pages;
	nap(ms);
	return cold_of(heap).refaulted_pages - before;
}

/* The target can't be met: it is tried ever more slowly, said once. When the need is gone, it is tried as before. */
START_TEST(backs_off)
{
	pthread_t t;
	NEED_RUNG(_i);
	begin_fast();
	size_t target = SET * GU_PAGE / 3;
	heap = heap_make("rung=%s,cold=1,reservation=1G,resident_target=%zu,store_memory=64M,without=neighbours", rung_names[_i], target); /* each fault is waited for */
	uint64_t *p = make_pages(NULL, SET);
	quit = 0;
	must_ok(pthread_create(&t, NULL, go_round, p));
	ck_ok(gcuffd_collect(heap));
	ck_assert(wait_for(cold_of(heap).refaulted_pages > SET / 20));
	uint64_t early = refaults_in(5000), late = UINT64_MAX, end = test_now_ns() + 60000000000ull * check_slow();
	while (test_now_ns() < end && (late >= early / 4 || !strstr(core_log, "too soon")))
		late = refaults_in(5000);
	struct gcuffd_cold_stats s = cold_of(heap);
	printf("refaults in 5 s: %lu, then %lu; probation %lu ms, %lu times longer\n", (unsigned long)early, (unsigned long)late,
	       (unsigned long)s.probation_ns / 1000000, (unsigned long)s.backoffs);
	ck_assert_uint_lt(late, early / 4);
	ck_assert_uint_ge(s.backoffs, 2);
	const char *said = strstr(core_log, "come back too soon");
	ck_assert_ptr_nonnull(said);
	ck_assert_ptr_null(strstr(said + 1, "come back too soon"));
	gu_store_relaxed(&quit, 1);
	must_ok(pthread_join(t, NULL));
	uint64_t probation = cold_of(heap).probation_ns;
	ck_assert(wait_for(cold_of(heap).probation_ns < probation));
	ck_assert(wait_for(resident() < target + MIB));
	check_pages(p, SET);
	ck_ok(gcuffd_heap_destroy(heap));
	fake_remove();
}
END_TEST

static Suite *make_suite(void)
{
	Suite *suite = suite_create("cool");
	TCase *modes = test_case(suite, "modes"), *kernel = test_case(suite, "kernel"), *feedback = test_case(suite, "feedback");
	tcase_add_loop_test(modes, follows_a_limit, GCUFFD_RUNG_MOVE, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(modes, forks, GCUFFD_RUNG_MOVE, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(modes, shares_descriptors, GCUFFD_RUNG_MOVE, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(modes, limit_while_fetching, GCUFFD_RUNG_MOVE, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(modes, gives_way_to_pressure, GCUFFD_RUNG_MOVE, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(modes, goes_by_time, GCUFFD_RUNG_MOVE, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(modes, least_time, GCUFFD_RUNG_MOVE, GCUFFD_RUNG_RWP + 1);
	tcase_add_test(modes, refused);
	tcase_add_unchecked_fixture(kernel, begin_group, end_group);
	tcase_add_loop_test(kernel, limited, GCUFFD_RUNG_MOVE, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(feedback, touches_are_told_apart, GCUFFD_RUNG_MOVE, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(feedback, pages_change_hands, GCUFFD_RUNG_MOVE, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(feedback, ahead_of_touches, GCUFFD_RUNG_MOVE, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(feedback, backs_off, GCUFFD_RUNG_MOVE, GCUFFD_RUNG_RWP + 1);
	return suite;
}

TEST_MAIN(make_suite)
