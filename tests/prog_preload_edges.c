/* SPDX-License-Identifier: MIT */
/*
 * prog_preload_edges NAME [ARGUMENT] - where malloc is used otherwise than between main() and its end by code of the usual sort; or by
 * mistake. Ends with 1 after a line that says what is not so, with 77 where the machine does not let it try.
 */
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define MUST(x) \
	do { \
		if (!(x)) { \
			fprintf(stderr, "line %d: not so: %s\n", __LINE__, #x); \
			exit(1); \
		} \
	} while (0)

#define LENGTH 1000

struct node {
	struct node *next;
	uint64_t check;
};

static struct node *build(uint64_t seed)
{
	struct node *list = NULL;
	for (uint64_t i = 0; i < LENGTH; i++) {
		struct node *n = malloc(sizeof(*n) + i % 100);
		MUST(n);
		*n = (struct node){list, seed ^ i};
		free(malloc(50));
		list = n;
	}
	return list;
}

static void check(const struct node *list, uint64_t seed)
{
	for (uint64_t i = LENGTH; i-- > 0; list = list->next)
		MUST(list && list->check == (seed ^ i));
	MUST(!list);
}

/* Lists that nobody keeps: several cycles with start_size=4M. */
static __attribute__((noinline)) void drop_lists(void)
{
	for (uint64_t i = 0; i < 1000; i++)
		check(build(i), i);
}

static double now(void)
{
	struct timespec ts;
	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double)ts.tv_sec + (double)ts.tv_nsec * 1e-9;
}

/* ---- before main() ---- */

static struct node *of_preinit, *of_constructor;

static void preinit(void) { of_preinit = build(1); }
__attribute__((section(".preinit_array"), used)) static void (*const call_preinit)(void) = preinit;
static __attribute__((constructor)) void construct(void) { of_constructor = build(2); }
static __attribute__((destructor)) void destruct(void) { check(build(3), 3); }

/* Those of other shared objects tell whether theirs are whole. */
static void try_constructors(const char *module)
{
	int (*is_whole)(void) = (int (*)(void))dlsym(RTLD_DEFAULT, "module_is_whole");
	MUST(!*module || is_whole);
	drop_lists();
	check(of_preinit, 1);
	check(of_constructor, 2);
	MUST(!is_whole || is_whole());
}

/* ---- a handler that interrupts malloc() itself, or free() ---- */

static unsigned alarms, inside;

static void on_alarm(int sig)
{
	int saved = errno;
	Dl_info info;
	(void)sig;
	char *p = malloc(24);
	memset(p, 5, 24);
	alarms++;
	inside += dladdr(p, &info) && strstr(info.dli_fname, "libgcuffd-preload"); /* the static buffer */
	free(p);
	errno = saved;
}

static void try_alarms(const char *unused)
{
	struct itimerval often = {{0, 200}, {0, 200}};
	double end = now() + 30;
	(void)unused;
	signal(SIGALRM, on_alarm);
	setitimer(ITIMER_REAL, &often, NULL);
	while (inside < 20 && now() < end)
		check(build(7), 7);
	signal(SIGALRM, SIG_IGN);
	printf("%u alarms, %u inside\n", alarms, inside);
	MUST(inside >= 20);
	drop_lists();
}

/* ---- 32 MiB ---- */

static unsigned count_threads(void)
{
	unsigned n = 0;
	DIR *dir = opendir("/proc/self/task");
	for (struct dirent *d; dir && (d = readdir(dir));)
		n += d->d_name[0] != '.';
	MUST(dir && !closedir(dir));
	return n;
}

#define PIECE ((size_t)64 << 10)

static void *grow(void *chain, size_t mib)
{
	for (size_t n = (mib << 20) / PIECE; n--;) {
		void **p = malloc(PIECE - 64);
		MUST(p);
		memset(p, 1, PIECE - 64);
		*p = chain;
		chain = p;
	}
	return chain;
}

static void try_threshold(const char *unused)
{
	double end = now() + 30;
	void *volatile chain = grow(NULL, 30);
	(void)unused;
	MUST(count_threads() == 1);
	if (unshare(CLONE_NEWUSER)) {
		perror("unshare");
		exit(errno == EINVAL ? 1 : 77);
	}
	MUST(count_threads() == 1);
	chain = grow(chain, 40);
	while (count_threads() == 1 && now() < end)
		usleep(10000);
	MUST(count_threads() > 1);
}

/* ---- TLS of a module that was loaded late ---- */

static void *(*module_slot)(void);

static void *use_slot(void *unused)
{
	struct node **slot = module_slot();
	(void)unused;
	*slot = build(11);
	drop_lists();
	check(*slot, 11);
	return NULL;
}

static void try_module(const char *path)
{
	pthread_t thread;
	void *module = dlopen(path, RTLD_NOW);
	MUST(module);
	module_slot = (void *(*)(void))dlsym(module, "module_slot");
	MUST(module_slot);
	MUST(!pthread_create(&thread, NULL, use_slot, NULL));
	use_slot(NULL);
	MUST(!pthread_join(thread, NULL));
}

/* ---- closures: pointers in pages that were written, and are executable now ---- */

static void try_closures(const char *unused)
{
	size_t page = (size_t)sysconf(_SC_PAGESIZE);
	char *code = mmap(NULL, page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct node **word = (struct node **)(void *)(code + 8);
	(void)unused;
	MUST(code != MAP_FAILED);
	*word = build(13);
#if defined(__x86_64__)
	code[6] = 0x48, code[7] = (char)0xb8, code[16] = (char)0xc3; /* movabs, ret */
#endif
	MUST(!mprotect(code, page, PROT_READ | PROT_EXEC));
	drop_lists();
#if defined(__x86_64__)
	check(((struct node * (*)(void))(void *)(code + 6))(), 13);
#endif
	check(*word, 13);
}

/* ---- what the kernel alone points to ---- */

#define TIMER_SIGNAL SIGRTMIN

static int ends[2], epoll;
static timer_t timer;

static __attribute__((noinline)) void give_to_kernel(void)
{
	struct epoll_event event = {.events = EPOLLIN, .data.ptr = build(1)};
	struct sigevent by_signal = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = TIMER_SIGNAL, .sigev_value.sival_ptr = build(22)};
	MUST(!epoll_ctl(epoll, EPOLL_CTL_ADD, ends[0], &event));
	MUST(epoll_ctl(epoll, EPOLL_CTL_ADD, ends[0], &event) && errno == EEXIST);
	event.data.ptr = build(21);
	MUST(!epoll_ctl(epoll, EPOLL_CTL_MOD, ends[0], &event));
	MUST(!timer_create(CLOCK_MONOTONIC, &by_signal, &timer));
}

static void try_kernel(const char *unused)
{
	struct itimerspec soon = {.it_value.tv_nsec = 1000000};
	struct epoll_event event;
	siginfo_t info;
	sigset_t set;
	(void)unused;
	sigemptyset(&set);
	sigaddset(&set, TIMER_SIGNAL);
	MUST(!sigprocmask(SIG_BLOCK, &set, NULL));
	MUST(!pipe(ends) && (epoll = epoll_create1(0)) >= 0);
	give_to_kernel();
	drop_lists();
	MUST(write(ends[1], "x", 1) == 1);
	while (epoll_wait(epoll, &event, 1, 10000) != 1)
		MUST(errno == EINTR);
	check(event.data.ptr, 21);
	MUST(!timer_settime(timer, 0, &soon, NULL));
	while (sigwaitinfo(&set, &info) != TIMER_SIGNAL)
		MUST(errno == EINTR); /* a stop */
	check(info.si_value.sival_ptr, 22);
	for (int i = 0; i < 70000; i++) { /* more than there is room for, but not at once */
		struct sigevent by_signal = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = TIMER_SIGNAL, .sigev_value.sival_int = 1};
		timer_t more;
		MUST(!timer_create(CLOCK_MONOTONIC, &by_signal, &more) && !timer_delete(more));
	}
	MUST(!timer_delete(timer) && !epoll_ctl(epoll, EPOLL_CTL_DEL, ends[0], NULL));
	MUST(epoll_ctl(-1, EPOLL_CTL_ADD, ends[0], &event) && errno == EBADF);
}

/* ---- mistakes: the compiler must not see them ---- */

static void (*volatile release)(void *p) = free;
static void *(*volatile resize)(void *p, size_t size) = realloc;

static void try_mistakes(const char *what)
{
	static char foreign[64];
	char *p = malloc(100);
	int times = !strcmp(what, "many") ? 100 : 1;
	for (int i = 0; i < times; i++) {
		errno = 55;
		if (!strcmp(what, "double")) {
			release(p);
			release(p);
		} else if (!strcmp(what, "inside")) {
			release(p + 16);
		} else if (!strcmp(what, "realloc")) {
			MUST(!resize(foreign + 32, 200) && errno == ENOMEM);
			errno = 55;
		} else {
			release(foreign + 32);
		}
		MUST(errno == 55);
	}
	check(build(17), 17);
	drop_lists();
}

static const struct {
	const char *name;
	void (*run)(const char *argument);
} tries[] = {{"constructors", try_constructors}, {"alarms", try_alarms}, {"threshold", try_threshold}, {"module", try_module},
	     {"closures", try_closures}, {"kernel", try_kernel}, {"mistakes", try_mistakes}};

int main(int argc, char **argv)
{
	for (size_t i = 0; argc > 1 && i < sizeof(tries) / sizeof(tries[0]); i++)
		if (!strcmp(argv[1], tries[i].name)) {
			tries[i].run(argc > 2 ? argv[2] : "");
			return 0;
		}
	return 2;
}
