/* SPDX-License-Identifier: MIT */
/*
 * core.h - what the tests of a whole heap share: heaps by option text, the rungs of this machine, hidden
 * pointers, a log that is kept. Only the public header is used.
 *
 * Tests are run once per rung: tcase_add_loop_test(tcase, test, GCUFFD_RUNG_STOP, GCUFFD_RUNG_RWP + 1), and
 * begin with NEED_RUNG(_i).
 */
#ifndef GU_TESTS_CORE_H
#define GU_TESTS_CORE_H

#include <errno.h>
#include <pthread.h>
#include <stdarg.h>
#include <string.h>

#include "gcuffd.h"
#include "test.h"

/* An assertion for any thread and any number of times: Check's own write a file, under a lock, when they hold. */
#define must(condition, ...) \
	do { \
		if (__builtin_expect(!(condition), 0)) { \
			fprintf(stderr, "%s:%d: %s: ", __FILE__, __LINE__, #condition); \
			fprintf(stderr, " " __VA_ARGS__); \
			fputc('\n', stderr); \
			abort(); \
		} \
	} while (0)

#define must_ok(call) \
	do { \
		long mo_result = (long)(call); \
		must(mo_result == 0, "%s gave %ld", #call, mo_result); \
	} while (0)

TEST_UNUSED static const char *const rung_names[] = {"auto", "stop", "async", "move", "rwp"};

/* ---- the log of a heap, kept ---- */

static char core_log[1 << 16];
static size_t core_log_len; /* guard: core_log_lock */
static pthread_mutex_t core_log_lock = PTHREAD_MUTEX_INITIALIZER;

TEST_UNUSED static void core_keep_line(void *data, int level, const char *line)
{
	(void)data, (void)level;
	size_t len = strlen(line);
	pthread_mutex_lock(&core_log_lock);
	if (core_log_len + len + 2 < sizeof(core_log)) {
		memcpy(core_log + core_log_len, line, len);
		core_log_len += len;
		core_log[core_log_len++] = '\n';
		core_log[core_log_len] = 0;
	}
	pthread_mutex_unlock(&core_log_lock);
}

TEST_UNUSED static void core_forget_log(void)
{
	pthread_mutex_lock(&core_log_lock);
	core_log_len = 0;
	core_log[0] = 0;
	pthread_mutex_unlock(&core_log_lock);
}

/* ---- heaps ---- */

TEST_UNUSED static int heap_try(struct gcuffd_heap **heap, const char *format, ...)
{
	struct gcuffd_options o;
	const char *bad = NULL;
	char text[256];
	va_list args;
	va_start(args, format);
	vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	gcuffd_options_init(&o);
	o.reservation = (size_t)4 << 30;
	o.stop_timeout_ms = 20000 * check_slow(); /* the machine may be busy: only tests of it say less */
	ck_assert_msg(gcuffd_options_parse(&o, text, &bad) == 0, "bad options: %s", bad);
	o.log = core_keep_line;
	return gcuffd_heap_create(&o, heap);
}

/* A heap of these options, this thread attached. */
#define heap_make(...) \
	({ \
		struct gcuffd_heap *hm_heap = NULL; \
		ck_ok(heap_try(&hm_heap, __VA_ARGS__)); \
		ck_ok(gcuffd_thread_attach()); \
		hm_heap; \
	})

TEST_UNUSED static bool rung_is_here(int rung)
{
	struct gcuffd_heap *h;
	int err = heap_try(&h, "rung=%s", rung_names[rung]);
	if (!err)
		gcuffd_heap_destroy(h);
	core_forget_log();
	return !err;
}

/* A sanitizer's own maps, locks and copies of the stack are in the way of some tests. */
static inline bool sanitized(void)
{
	const char *sanitize = getenv("GU_SANITIZE");
	return sanitize && *sanitize;
}

#define NO_SANITIZER(why) \
	do { \
		if (sanitized()) \
			GU_SKIP("under a sanitizer: %s", why); \
	} while (0)

/* CHECK_RUNGS, if set, names those to be tried. */
static inline bool rung_is_asked(int rung)
{
	const char *names = getenv("CHECK_RUNGS");
	return !names || strstr(names, rung_names[rung]);
}

#define NEED_RUNG(rung) \
	do { \
		if (!rung_is_asked(rung)) \
			GU_SKIP("CHECK_RUNGS leaves out %s", rung_names[rung]); \
		if (!rung_is_here(rung)) \
			GU_LACKS(rung_names[rung], "no rung %s here", rung_names[rung]); \
	} while (0)

TEST_UNUSED static struct gcuffd_stats stats_of(struct gcuffd_heap *h)
{
	struct gcuffd_stats s;
	memset(&s, 0, sizeof(s));
	s.size = sizeof(s);
	ck_ok(gcuffd_heap_stats(h, &s));
	return s;
}

/* Until the time, and until there were so many cycles, unless these take a minute longer. */
TEST_UNUSED static bool goes_on(struct gcuffd_heap *h, uint64_t end_ns, uint64_t cycles)
{
	uint64_t now = test_now_ns();
	return now < end_ns || (now < end_ns + 60000000000ull && stats_of(h).cycles < cycles);
}

/* For the end of a test: the verifier found nothing, and says what if it did. */
TEST_UNUSED static void verified(struct gcuffd_heap *h)
{
	ck_assert_msg(stats_of(h).verify_failures == 0, "%lu verify failures:\n%s",
		      (unsigned long)stats_of(h).verify_failures, core_log);
}

/* ---- pointers that no collector can see ---- */

#define HIDE_MASK 0xa5a5a5a5a5a5a5a5u

TEST_UNUSED static uint64_t hide(const void *p) { return (uintptr_t)p ^ HIDE_MASK; }
TEST_UNUSED static void *reveal(uint64_t hidden) { return (void *)(uintptr_t)(hidden ^ HIDE_MASK); }

/* Whether the hidden pointer still leads to an object; leaves no plain copy behind on the stack. */
TEST_UNUSED static __attribute__((noinline)) bool is_alive(struct gcuffd_heap *h, uint64_t hidden)
{
	struct gcuffd_object o;
	int err = gcuffd_object_find(h, reveal(hidden), &o);
	memset(&o, 0, sizeof(o));
	__asm__ volatile("" : : "r"(&o) : "memory");
	return err == 0;
}

/* Overwrites what earlier calls left below this frame. */
TEST_UNUSED static __attribute__((noinline)) void scrub_stack(void)
{
	char junk[64 << 10];
	memset(junk, 0, sizeof(junk));
	__asm__ volatile("" : : "r"(junk) : "memory");
}

/* Registers that calls preserve may hold what the caller once had there. */
TEST_UNUSED static __attribute__((noinline)) void scrub(void)
{
	scrub_stack();
#if defined(__x86_64__)
	__asm__ volatile("xor %%ebx, %%ebx\n\txor %%r12d, %%r12d\n\txor %%r13d, %%r13d\n\t"
			 "xor %%r14d, %%r14d\n\txor %%r15d, %%r15d" : : : "rbx", "r12", "r13", "r14", "r15", "memory");
#endif
}

/* ---- memory of the process ---- */

/* A number of kB from a line of /proc/self/status: "VmRSS:", ... */
TEST_UNUSED static size_t status_kb(const char *name)
{
	char line[256];
	size_t kb = 0;
	FILE *f = fopen("/proc/self/status", "r");
	ck_assert_ptr_nonnull(f);
	while (fgets(line, sizeof(line), f))
		if (!strncmp(line, name, strlen(name)))
			kb = strtoul(line + strlen(name), NULL, 10);
	fclose(f);
	return kb;
}

/* Exact, unlike VmRSS, whose parts are kept by processor. */
TEST_UNUSED static size_t rss_kb(void)
{
	char line[256];
	size_t kb = 0;
	FILE *f = fopen("/proc/self/smaps_rollup", "r");
	if (!f)
		return status_kb("VmRSS:");
	while (fgets(line, sizeof(line), f))
		if (!strncmp(line, "Rss:", 4))
			kb = strtoul(line + 4, NULL, 10);
	fclose(f);
	return kb;
}

/* How many threads the process has. One that was joined may be listed for a moment: until most at most are left. */
TEST_UNUSED static size_t settled_threads(size_t most)
{
	size_t n;
	for (int ms = 0; (n = status_kb("Threads:")) > most && ms < 10000; ms++)
		usleep(1000);
	return n;
}

#endif
