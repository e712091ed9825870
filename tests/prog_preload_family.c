/* SPDX-License-Identifier: MIT */
/*
 * prog_preload_family [SIGNAL] - what the manual says of each function of the malloc family; prints each thing
 * that is not so. SIGNAL: the library's stop signal, which can't be blocked or handled.
 */
#include <errno.h>
#include <malloc.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int wrong;

#define EXPECT(what) \
	do { \
		if (!(what)) { \
			fprintf(stderr, "line %d: not so: %s\n", __LINE__, #what); \
			wrong++; \
		} \
	} while (0)

static int all(const char *p, int byte, size_t n)
{
	while (n && *p == byte)
		p++, n--;
	return !n;
}

/* The compiler knows these functions: what they give is hidden from it. */
static void *hide(void *p)
{
	__asm__ volatile("" : "+r"(p));
	return p;
}

static size_t hide_size(size_t n)
{
	__asm__ volatile("" : "+r"(n));
	return n;
}

static void test_malloc(void)
{
	void *a = hide(malloc(hide_size(0))), *b = hide(malloc(0));
	EXPECT(a && b && a != b);
	free(a), free(b);
	errno = 77;
	for (size_t n = 1; n < (size_t)8 << 20; n = n * 3 / 2 + 1) {
		char *p = hide(malloc(n));
		EXPECT(p && (uintptr_t)p % 16 == 0 && malloc_usable_size(p) >= n);
		memset(p, 1, malloc_usable_size(p));
		free(p);
	}
	EXPECT(errno == 77);
	errno = 0;
	EXPECT(!hide(malloc(hide_size(SIZE_MAX))) && errno == ENOMEM);
	errno = 0;
	EXPECT(!hide(malloc(hide_size(PTRDIFF_MAX))) && errno == ENOMEM);
	errno = 55;
	free(NULL);
	free(hide(malloc(1 << 20)));
	EXPECT(errno == 55);
}

static void test_calloc(void)
{
	for (int i = 0; i < 1000; i++) {
		char *p = hide(malloc(1000));
		memset(p, 5, 1000);
		free(p);
		p = hide(calloc(10, 100));
		EXPECT(all(p, 0, 1000));
		free(p);
	}
	errno = 0;
	EXPECT(!hide(calloc(hide_size(SIZE_MAX / 2), 3)) && errno == ENOMEM);
}

/* By pointers, or the compiler warns of what is meant here. */
static void *(*volatile again)(void *p, size_t size) = realloc;
static void *(*volatile again_array)(void *p, size_t n, size_t size) = reallocarray;

static void test_realloc(void)
{
	char *p = hide(again(NULL, 10));
	EXPECT(p != NULL);
	memset(p, 7, 10);
	for (size_t n = 10; n < (size_t)4 << 20; n = n * 2 + 3) {
		p = hide(again(p, n));
		EXPECT(p && all(p, 7, 10) && malloc_usable_size(p) >= n);
	}
	p = hide(again(p, 5));
	EXPECT(p && all(p, 7, 5));
	errno = 0;
	EXPECT(!hide(again(p, hide_size(SIZE_MAX))) && errno == ENOMEM && all(p, 7, 5));
	errno = 0;
	EXPECT(!hide(again_array(p, hide_size(SIZE_MAX / 4), 5)) && errno == ENOMEM && all(p, 7, 5));
	p = hide(again_array(p, 100, 100));
	EXPECT(p && all(p, 7, 5));
	EXPECT(!hide(again(p, hide_size(0))));
}

static void test_aligned(void)
{
	for (size_t align = 1; align <= (size_t)2 << 20; align *= 2) {
		void *p = NULL;
		int err = posix_memalign(&p, align, 100);
		EXPECT(align < sizeof(void *) ? err == EINVAL && !p : !err && p && (uintptr_t)p % align == 0);
		free(p);
		p = hide(aligned_alloc(align, align));
		EXPECT(p && (uintptr_t)p % align == 0);
		free(p);
		p = hide(memalign(align, 3));
		EXPECT(p && (uintptr_t)p % align == 0);
		free(p);
	}
	void *p = &p;
	errno = 33;
	EXPECT(posix_memalign(&p, 24, 1) == EINVAL && posix_memalign(&p, hide_size(4 << 20), 1) == ENOMEM && p == &p && errno == 33);
	EXPECT(posix_memalign(&p, 64, hide_size(SIZE_MAX)) == ENOMEM && errno == 33);
	EXPECT(!hide(aligned_alloc(hide_size(24), 24)) && errno == EINVAL);
	EXPECT(!hide(aligned_alloc(hide_size(4 << 20), 1)) && errno == ENOMEM);
	p = hide(memalign(hide_size(48), 100));
	EXPECT(p && (uintptr_t)p % 64 == 0);
	free(p);
}

static void test_pages(void)
{
	size_t page = (size_t)sysconf(_SC_PAGESIZE);
	char *p = hide(valloc(10)), *q = hide(pvalloc(page + 1));
	EXPECT(p && (uintptr_t)p % page == 0);
	EXPECT(q && (uintptr_t)q % page == 0 && malloc_usable_size(q) >= 2 * page);
	free(p), free(q);
	errno = 0;
	EXPECT(!hide(pvalloc(hide_size(SIZE_MAX))) && errno == ENOMEM);
	EXPECT(malloc_usable_size(NULL) == 0);
	malloc_trim(0);
}

static void test_signals(int stop_signal)
{
	struct sigaction act = {.sa_handler = SIG_IGN}, old;
	sigset_t set, now;
	EXPECT(!sigaction(stop_signal, &act, &old) && old.sa_handler == SIG_DFL);
	EXPECT(signal(stop_signal, SIG_IGN) == SIG_DFL);
	sigfillset(&set);
	EXPECT(!sigprocmask(SIG_BLOCK, &set, NULL) && !sigprocmask(SIG_BLOCK, NULL, &now));
	EXPECT(sigismember(&now, SIGUSR1) == 1 && sigismember(&now, stop_signal) == 0);
	EXPECT(!pthread_sigmask(SIG_SETMASK, &set, NULL) && !pthread_sigmask(SIG_BLOCK, NULL, &now));
	EXPECT(sigismember(&now, SIGUSR1) == 1 && sigismember(&now, stop_signal) == 0);
	sigemptyset(&set);
	pthread_sigmask(SIG_SETMASK, &set, NULL);
	act.sa_handler = SIG_DFL;
	sigfillset(&act.sa_mask);
	EXPECT(!sigaction(SIGUSR1, &act, NULL) && !sigaction(SIGUSR1, NULL, &old));
	EXPECT(sigismember(&old.sa_mask, SIGUSR2) == 1 && sigismember(&old.sa_mask, stop_signal) == 0);
}

int main(int argc, char **argv)
{
	test_malloc();
	test_calloc();
	test_realloc();
	test_aligned();
	test_pages();
	if (argc > 1)
		test_signals(atoi(argv[1]));
	printf("%d wrong\n", wrong);
	return wrong != 0;
}
