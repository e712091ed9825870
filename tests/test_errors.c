/* SPDX-License-Identifier: MIT */
/* test_errors.c - bad input: each has its documented error, changes nothing, and what is a program's mistake is reported. */
#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>

#include "core.h"

static struct gcuffd_heap *heap;

static void defaults(struct gcuffd_options *o)
{
	gcuffd_options_init(o);
	o->reservation = (size_t)1 << 30;
	o->log = core_keep_line;
	core_forget_log();
}

#define REFUSED(error, word, ...) \
	do { \
		struct gcuffd_options o; \
		defaults(&o); \
		__VA_ARGS__; \
		heap = (void *)1; \
		ck_assert_int_eq(gcuffd_heap_create(&o, &heap), error); \
		ck_assert_ptr_eq(heap, (void *)1); \
		ck_assert_msg(strstr(core_log, word) != NULL, "not in the log: %s: %s", word, core_log); \
	} while (0)

START_TEST(options)
{
	REFUSED(-EINVAL, "hard_limit", o.hard_limit = (2 << 20) - 1);
	REFUSED(-EINVAL, "hard_limit", o.hard_limit = 1);
	REFUSED(-EINVAL, "soft_limit", o.hard_limit = 4 << 20, o.soft_limit = 5 << 20);
	REFUSED(-EINVAL, "flags", o.flags = 0x100);
	REFUSED(-EINVAL, "flags", o.flags = 1u << 31);
	REFUSED(-EINVAL, "debug", o.debug = 32);
	REFUSED(-EINVAL, "rung", o.rung = (enum gcuffd_rung)5);
	REFUSED(-EINVAL, "rung", o.rung = (enum gcuffd_rung)-1);
	REFUSED(-EINVAL, "log_fd", o.log_fd = 987654);
	REFUSED(-EINVAL, "log_fd", o.log_fd = UINT32_MAX);
	int readable = open("/dev/null", O_RDONLY);
	ck_assert_int_gt(readable, 0);
	REFUSED(-EINVAL, "log_fd", o.log_fd = (unsigned)readable);
	close(readable);
	REFUSED(-EINVAL, "mark_threads", o.mark_threads = 9);
	REFUSED(-EINVAL, "resolver_threads", o.resolver_threads = 17);
	REFUSED(-EINVAL, "growth_percent", o.growth_percent = 10001);
	REFUSED(-EINVAL, "reservation", o.reservation = (size_t)1 << 47);
	REFUSED(-EINVAL, "reservation", o.reservation = SIZE_MAX);
	struct gcuffd_options o;
	memset(&o, 0, sizeof(o));
	ck_assert_int_eq(gcuffd_heap_create(&o, &heap), -EINVAL);
	defaults(&o);
	o.hard_limit = 2 << 20; /* the least one works */
	ck_ok(gcuffd_heap_create(&o, &heap));
	ck_ok(gcuffd_thread_attach());
	ck_assert_ptr_nonnull(gcuffd_alloc(heap, 100));
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

/* A struct of a later version, with a field that this one does not know: refused unless it is zero. */
START_TEST(later_version)
{
	struct {
		struct gcuffd_options o;
		uint64_t more[4];
	} later;
	memset(&later, 0, sizeof(later));
	defaults(&later.o);
	later.o.size = sizeof(later);
	ck_ok(gcuffd_heap_create(&later.o, &heap));
	ck_ok(gcuffd_heap_destroy(heap));
	later.more[3] = 1;
	ck_assert_int_eq(gcuffd_heap_create(&later.o, &heap), -EINVAL);
	later.o.size = 1 << 20;
	ck_assert_int_eq(gcuffd_heap_create(&later.o, &heap), -EINVAL);
}
END_TEST

/* ---- text ---- */

START_TEST(option_text)
{
	static const char *const wrong[] = {
		"nonsense=1", "verify", "verify=2", "verify=", "hard_limit=12Q", "hard_limit=-1", "hard_limit=99999999999T", "rung=fast",
		"mark_threads=x", "=1", "hard_limit=1M2", "growth_percent=4294967296", "log_level=loud", "huge=yes",
	};
	struct gcuffd_options o, was;
	for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
		char text[128];
		const char *bad = NULL;
		gcuffd_options_init(&o);
		was = o;
		snprintf(text, sizeof(text), "decay_ms=5,%s,stop_timeout_ms=6", wrong[i]);
		ck_assert_msg(gcuffd_options_parse(&o, text, &bad) == -EINVAL, "%s", wrong[i]);
		ck_assert_ptr_eq(bad, text + 11);
		ck_assert_msg(!memcmp(&o, &was, sizeof(o)), "%s: changed something", wrong[i]);
		ck_assert_int_eq(gcuffd_options_parse(&o, wrong[i], NULL), -EINVAL);
	}
	gcuffd_options_init(&o);
	ck_ok(gcuffd_options_parse(&o, "", NULL));
	ck_ok(gcuffd_options_parse(&o, "hard_limit=3G,soft_limit=5K,verify=1,interior=0,huge=0,rung=async,mark_threads=3,log_level=debug,log_fd=7", NULL));
	ck_assert_uint_eq(o.hard_limit, 3ull << 30);
	ck_assert_uint_eq(o.soft_limit, 5 << 10);
	ck_assert_uint_eq(o.flags, GCUFFD_VERIFY | GCUFFD_NO_INTERIOR | GCUFFD_NO_HUGE);
	ck_assert_int_eq(o.rung, GCUFFD_RUNG_ASYNC);
	ck_assert_uint_eq(o.mark_threads, 3);
	ck_assert_int_eq(o.log_level, GCUFFD_LOG_DEBUG);
	ck_assert_uint_eq(o.log_fd, 7);
	ck_ok(gcuffd_options_parse(&o, "verify=0,interior=1,huge=1", NULL));
	ck_assert_uint_eq(o.flags, 0);
}
END_TEST

/* ---- the machine's limits ---- */

START_TEST(address_space)
{
	NO_SANITIZER("its shadow is above any limit");
	struct rlimit small = {(size_t)1 << 30, (size_t)1 << 30};
	ck_assert_int_eq(setrlimit(RLIMIT_AS, &small), 0);
	REFUSED(-ENOMEM, "reservation", o.reservation = (size_t)4 << 30);
	struct gcuffd_options o;
	defaults(&o);
	o.reservation = 0; /* the default fits what there is */
	ck_ok(gcuffd_heap_create(&o, &heap));
	ck_ok(gcuffd_thread_attach());
	ck_assert_ptr_nonnull(gcuffd_alloc(heap, 100));
	ck_ok(gcuffd_collect(heap));
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

START_TEST(data_limit)
{
	NO_SANITIZER("its shadow is above any limit");
	struct rlimit small = {(size_t)256 << 20, (size_t)256 << 20};
	ck_assert_int_eq(setrlimit(RLIMIT_DATA, &small), 0);
	heap = heap_make("reservation=4G,start_size=1M"); /* reserved, not writable: does not count */
	for (unsigned i = 0; i < check_rounds(300000); i++)
		ck_assert(gcuffd_alloc(heap, 1000) != NULL);
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

START_TEST(rung_not_here)
{
	if (rung_is_here(GCUFFD_RUNG_RWP))
		GU_SKIP("this kernel has every rung");
	REFUSED(-EOPNOTSUPP, "rwp", o.rung = GCUFFD_RUNG_RWP);
}
END_TEST

/* ---- objects ---- */

static void a_mistake(long got, long want, const char *word)
{
	ck_assert_int_eq(got, want);
	ck_assert_msg(strstr(core_log, word) != NULL, "not in the log: %s: %s", word, core_log);
	core_forget_log();
}

START_TEST(freeing)
{
	int local;
	heap = heap_make("");
	char *p = gcuffd_alloc(heap, 100), *other = gcuffd_alloc(heap, 100), *large = gcuffd_alloc(heap, 100000);
	void *foreign = malloc(100);
	core_forget_log();
	a_mistake(gcuffd_free(heap, foreign), -EINVAL, "gcuffd_free");
	a_mistake(gcuffd_free(heap, &local), -EINVAL, "gcuffd_free");
	a_mistake(gcuffd_free(heap, p + 8), -EINVAL, "is not the base");
	a_mistake(gcuffd_free(heap, large + 4096), -EINVAL, "gcuffd_free");
	a_mistake(gcuffd_free(heap, (void *)8), -EINVAL, "gcuffd_free");
	ck_ok(gcuffd_free(heap, p));
	ck_assert_int_eq(gcuffd_free(heap, p), -EALREADY);
	ck_assert_ptr_nonnull(strstr(core_log, "was freed before"));
	/* the stack that led here; function names need -rdynamic */
	ck_assert_ptr_nonnull(strstr(core_log, "#0"));
	core_forget_log();
	ck_ok(gcuffd_free(heap, large));
	ck_assert_int_ne(gcuffd_free(heap, large), 0);
	memset(other, 1, 100);
	ck_ok(gcuffd_collect(heap));
	ck_ok(gcuffd_free(heap, other));
	free(foreign);
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

START_TEST(resizing)
{
	heap = heap_make("");
	char *p = gcuffd_alloc(heap, 100), *keep TEST_UNUSED = gcuffd_alloc(heap, 100);
	void *foreign = malloc(100);
	core_forget_log();
	errno = 0;
	ck_assert_ptr_null(gcuffd_realloc(heap, foreign, 10));
	a_mistake(errno, EINVAL, "gcuffd_realloc");
	ck_assert_ptr_null(gcuffd_realloc(heap, p + 16, 10));
	a_mistake(errno, EINVAL, "gcuffd_realloc");
	ck_ok(gcuffd_free(heap, p));
	ck_assert_ptr_null(gcuffd_realloc(heap, p, 10));
	a_mistake(errno, EINVAL, "gcuffd_realloc");
	free(foreign);
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

START_TEST(types)
{
	struct gcuffd_type *type;
	uint64_t bitmap[64] = {3};
	heap = heap_make("");
	ck_assert_int_eq(gcuffd_type_create(heap, bitmap, 0, &type), -EINVAL);
	ck_assert_int_eq(gcuffd_type_create(heap, bitmap, 4097, &type), -EINVAL);
	ck_assert_int_eq(gcuffd_type_create(heap, NULL, 1, &type), -EINVAL);
	ck_ok(gcuffd_type_create(heap, bitmap, 4096, &type));
	ck_ok(gcuffd_type_create(heap, bitmap, 10, &type));
	errno = 0;
	ck_assert_ptr_null(gcuffd_alloc_typed(heap, type, 79));
	ck_assert_int_eq(errno, EINVAL);
	ck_assert_ptr_nonnull(gcuffd_alloc_typed(heap, type, 80));
	ck_assert_ptr_null(gcuffd_alloc_typed(heap, NULL, 80));
	ck_assert_int_eq(errno, EINVAL);
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

START_TEST(as_many_types_as_promised)
{
	struct gcuffd_type *type;
	uint64_t bitmap = 1;
	int err;
	unsigned n = 0;
	heap = heap_make("");
	while (!(err = gcuffd_type_create(heap, &bitmap, 1, &type)))
		n++;
	ck_assert_int_eq(err, -ENOSPC);
	ck_assert_uint_eq(n, 65535);
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

static void try_alignment(size_t align)
{
	errno = 0;
	must(!gcuffd_alloc_aligned(heap, 10, align, GCUFFD_ATOMIC) && errno == EINVAL, "alignment %zu: errno %d", align, errno);
}

START_TEST(alignments)
{
	heap = heap_make("");
	for (size_t align = 3; align < 100000; align = align * 3 / 2)
		if (align & (align - 1))
			try_alignment(align);
	try_alignment(0);
	try_alignment(4 << 20);
	try_alignment((size_t)1 << 63);
	ck_assert_ptr_null(gcuffd_alloc_aligned(heap, 10, 16, GCUFFD_TYPED));
	ck_assert_int_eq(errno, EINVAL);
	ck_assert_ptr_null(gcuffd_alloc_aligned(heap, 10, 16, (enum gcuffd_kind)7));
	ck_assert_int_eq(errno, EINVAL);
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

static void *not_attached(void *unused)
{
	struct gcuffd_type *type;
	uint64_t bitmap = 1;
	(void)unused;
	must_ok(gcuffd_type_create(heap, &bitmap, 1, &type));
	errno = 0;
	must(!gcuffd_alloc(heap, 10) && errno == EPERM, "errno %d", errno);
	errno = 0;
	must(!gcuffd_alloc(heap, 100000) && errno == EPERM, "errno %d", errno);
	must(!gcuffd_alloc_typed(heap, type, 10) && errno == EPERM, "errno %d", errno);
	must(gcuffd_thread_detach() == -EINVAL, "detached");
	must(gcuffd_blocking_enter() == -EINVAL, "blocks");
	must(gcuffd_blocking_leave() == -EINVAL, "does not block");
	must_ok(gcuffd_collect(heap));
	must_ok(gcuffd_thread_attach());
	must(gcuffd_alloc(heap, 10) != NULL, "errno %d", errno);
	must_ok(gcuffd_thread_detach());
	must(!gcuffd_alloc(heap, 10) && errno == EPERM, "errno %d", errno);
	return NULL;
}

START_TEST(unattached)
{
	pthread_t t;
	heap = heap_make("");
	ck_ok(pthread_create(&t, NULL, not_attached, NULL));
	pthread_join(t, NULL);
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

/* A thread that can't be stopped: the cycle is put off, nothing is lost, and the next one works. */
static uint32_t listen_again;
static pid_t deaf; /* once it is */

static void *keeps_signals_out(void *unused)
{
	sigset_t all, old;
	(void)unused;
	must_ok(gcuffd_thread_attach());
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	pthread_setname_np(pthread_self(), "deaf");
	__atomic_store_n(&deaf, gettid(), __ATOMIC_SEQ_CST);
	while (!__atomic_load_n(&listen_again, __ATOMIC_SEQ_CST))
		;
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	must_ok(gcuffd_thread_detach());
	return NULL;
}

static void put_off_once(int rung)
{
	pthread_t t;
	char line[128];
	heap = heap_make("rung=%s,stop_timeout_ms=50,verify=1", rung_names[rung]);
	uint64_t *p = gcuffd_alloc(heap, 1000);
	p[5] = 77;
	ck_ok(pthread_create(&t, NULL, keeps_signals_out, NULL));
	while (!__atomic_load_n(&deaf, __ATOMIC_SEQ_CST))
		;
	ck_assert_int_eq(gcuffd_collect(heap), -ETIMEDOUT);
	snprintf(line, sizeof(line), "not stopped in time: thread %d (deaf), in no system call, blocks the stop signal", (int)deaf);
	must(strstr(core_log, line) != NULL, "not there: %s\n%s", line, core_log);
	ck_assert_uint_eq(stats_of(heap).cycles_put_off, 1);
	ck_assert_uint_eq(p[5], 77);
	ck_assert_ptr_nonnull(gcuffd_alloc(heap, 1000));
	__atomic_store_n(&listen_again, 1, __ATOMIC_SEQ_CST);
	pthread_join(t, NULL);
	ck_ok(gcuffd_collect(heap));
	ck_assert_uint_eq(p[5], 77);
	verified(heap);
	ck_ok(gcuffd_heap_destroy(heap));
}

START_TEST(put_off)
{
	NEED_RUNG(_i);
	put_off_once(_i);
}
END_TEST

/* Then the stop that a cycle begins with is the one that is given up. */
START_TEST(put_off_without_membarrier)
{
	setenv("GCUFFD_WITHOUT", "membarrier", 1);
	NEED_RUNG(_i);
	put_off_once(_i);
}
END_TEST

START_TEST(statistics)
{
	struct gcuffd_stats s = {.size = 0};
	heap = heap_make("");
	ck_assert_int_eq(gcuffd_heap_stats(heap, &s), -EINVAL);
	s.size = 5000;
	ck_assert_int_eq(gcuffd_heap_stats(heap, &s), -EINVAL);
	s.size = 24; /* an older program's */
	s.live_bytes = 0x1234;
	ck_ok(gcuffd_heap_stats(heap, &s));
	ck_assert_uint_eq(s.version, GCUFFD_STATS_VERSION);
	ck_assert_uint_eq(s.live_bytes, 0x1234);
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

#define ADD(name) tcase_add_test(test_case(suite, #name), name)

static Suite *make_suite(void)
{
	Suite *suite = suite_create("errors");
	ADD(options);
	ADD(later_version);
	ADD(option_text);
	ADD(address_space);
	ADD(data_limit);
	ADD(rung_not_here);
	ADD(freeing);
	ADD(resizing);
	ADD(types);
	ADD(as_many_types_as_promised);
	ADD(alignments);
	ADD(unattached);
	tcase_add_loop_test(test_case(suite, "put_off"), put_off, GCUFFD_RUNG_STOP, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(test_case(suite, "put_off_without_membarrier"), put_off_without_membarrier, GCUFFD_RUNG_STOP, GCUFFD_RUNG_RWP + 1);
	ADD(statistics);
	return suite;
}

TEST_MAIN(make_suite)
