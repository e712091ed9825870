/* SPDX-License-Identifier: MIT */
/*
 * test_roots.c - an object lives while its only pointer is in a register, on a stack, in TLS, in a data segment,
 * in a named range; it dies when the pointer goes. Each place is tried on each rung. It lives too while its only
 * pointer moves between places, and in a process with many mappings or sparse ones.
 */
#include <dlfcn.h>
#include <fcntl.h>
#include <sched.h>
#include <semaphore.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "base/own.h"
#include "core.h"
#include "fake_os.h"
#include "gc/roots.h"
#include "sys/maps.h"
#include "sys/os.h"

#define STAMP 0xfeedface12345678u

static struct gcuffd_heap *heap;
static uint64_t hidden; /* the object in question, masked */

/* A new object; only the caller's result register has it. */
static __attribute__((noinline)) void *make(size_t size)
{
	uint64_t *o = gcuffd_alloc(heap, size);
	must(o != NULL, "no memory");
	o[0] = STAMP;
	hidden = hide(o);
	return o;
}

static __attribute__((noinline)) void collect(void)
{
	scrub();
	must_ok(gcuffd_collect(heap));
	scrub();
}

static __attribute__((noinline)) void must_live(const char *where)
{
	collect();
	must(is_alive(heap, hidden), "what %s points to was taken", where);
	must(*(uint64_t *)reveal(hidden) == STAMP, "what %s points to was overwritten", where);
	scrub();
}

/* Not under a sanitizer: it keeps copies of pointers on stacks. */
static __attribute__((noinline)) void must_die(const char *where)
{
	for (int i = 0; i < 3 && is_alive(heap, hidden); i++) {
		scrub(); /* the look itself leaves the pointer in dead frames */
		collect();
	}
	must(sanitized() || !is_alive(heap, hidden), "what %s pointed to is still there", where);
}

static void begin(int rung) { heap = heap_make("rung=%s,verify=1", rung_names[rung]); }

static void end(void)
{
	verified(heap);
	ck_ok(gcuffd_heap_destroy(heap));
}

/* ---- data segments and named ranges ---- */

static void *volatile in_data = (void *)1;
static void *volatile in_bss;
static char large_data[1 << 20] __attribute__((aligned(4096))) = {1}; /* large enough to be tracked */

static __attribute__((noinline)) void store(void *volatile *slot) { *slot = make(100); }

static __attribute__((noinline)) void store_interior(void *volatile *slot) { *slot = (char *)make(1000) + 999; }

#define TRY_SLOT(slot, where) \
	do { \
		store(slot); \
		must_live(where); \
		*(slot) = NULL; \
		must_die(where); \
	} while (0)

START_TEST(data_segments)
{
	NEED_RUNG(_i);
	begin(_i);
	TRY_SLOT(&in_data, ".data");
	TRY_SLOT(&in_bss, ".bss");
	for (size_t at = 8; at < sizeof(large_data); at += 300008)
		TRY_SLOT((void *volatile *)(large_data + (at & ~7ul)), "a large data segment");
	store_interior(&in_bss);
	must_live("an interior pointer in .bss");
	in_bss = NULL;
	end();
}
END_TEST

START_TEST(named_ranges)
{
	NEED_RUNG(_i);
	begin(_i);
	size_t len = 1 << 20;
	char *range = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	char *own = malloc(64);
	ck_ok(gcuffd_root_add(heap, range, len));
	ck_ok(gcuffd_root_add(heap, own, 64));
	ck_assert_int_eq(gcuffd_root_add(heap, own, 64), -EEXIST);
	ck_assert_int_eq(gcuffd_root_add(heap, NULL, 64), -EINVAL);
	TRY_SLOT((void *volatile *)(range + 8), "a named range");
	TRY_SLOT((void *volatile *)(range + len - 8), "the end of a named range");
	TRY_SLOT((void *volatile *)(own + 56), "a named piece of malloc's");
	store((void *volatile *)(range + 4096));
	must_live("a named range");
	ck_ok(gcuffd_root_remove(heap, range));
	ck_assert_int_eq(gcuffd_root_remove(heap, range), -EINVAL);
	must_die("a range that is no root any more");
	store((void *volatile *)(own + 8));
	must_live("a named piece");
	ck_ok(gcuffd_root_remove(heap, own));
	munmap(range, len);
	free(own);
	end();
}
END_TEST

/* malloc's memory is no root, and malloc is libc's. */
START_TEST(malloc_is_no_root)
{
	NEED_RUNG(_i);
	begin(_i);
	void *volatile *slot = malloc(64);
	uint64_t at = hide((void *)slot);
	store(slot);
	must_die("malloc's memory");
	free(reveal(at));
	end();
}
END_TEST

/* ---- registers and stacks ---- */

static __attribute__((noinline)) void hold_in_register(void)
{
#if defined(__x86_64__)
	register void *r __asm__("r12") = make(100);
	__asm__ volatile("" : "+r"(r));
	must_ok(gcuffd_collect(heap));
	__asm__ volatile("" : "+r"(r));
	must(*(uint64_t *)r == STAMP, "a register's object was taken");
	must(is_alive(heap, hidden), "what a register points to was taken");
	__asm__ volatile("" : "+r"(r));
	r = NULL;
	__asm__ volatile("" : "+r"(r));
#endif
}

/* A spinning thread: the pointer in a caller-saved register only, which the signal frame holds. */
static uint32_t spinning, stop_spinning;

static void *spin(void *unused)
{
	(void)unused;
	must_ok(gcuffd_thread_attach());
#if defined(__x86_64__)
	register void *r __asm__("rdx") = make(100);
	__asm__ volatile("" : "+r"(r));
	__atomic_store_n(&spinning, 1, __ATOMIC_SEQ_CST);
	__asm__ volatile("1: pause\n\tcmpl $0, %1\n\tje 1b" : "+r"(r) : "m"(stop_spinning) : "memory");
	must(*(uint64_t *)r == STAMP, "a spinning thread's object was taken");
#endif
	must_ok(gcuffd_thread_detach());
	return NULL;
}

START_TEST(registers)
{
	NEED_RUNG(_i);
	pthread_t t;
	begin(_i);
	hold_in_register();
	must_die("a register");
	spinning = stop_spinning = 0;
	ck_ok(pthread_create(&t, NULL, spin, NULL));
	while (!__atomic_load_n(&spinning, __ATOMIC_SEQ_CST))
		sched_yield();
	for (int i = 0; i < 10; i++)
		ck_ok(gcuffd_collect(heap));
	ck_assert(is_alive(heap, hidden));
	__atomic_store_n(&stop_spinning, 1, __ATOMIC_SEQ_CST);
	pthread_join(t, NULL);
	must_die("a register of a thread that ended");
	end();
}
END_TEST

/* An object per frame, far apart. */
static __attribute__((noinline)) void deep(unsigned depth)
{
	char room[4000];
	void *volatile local = make(64);
	uint64_t mine = hidden;
	memset(room, 1, sizeof(room));
	__asm__ volatile("" : : "r"(room) : "memory");
	if (depth)
		deep(depth - 1);
	else
		must_ok(gcuffd_collect(heap));
	must(*(uint64_t *)local == STAMP && is_alive(heap, mine), "an object of a deep stack was taken");
}

static void *deep_thread(void *unused)
{
	(void)unused;
	must_ok(gcuffd_thread_attach());
	deep(1000);
	must_ok(gcuffd_thread_detach());
	return NULL;
}

START_TEST(deep_stacks)
{
	NEED_RUNG(_i);
	pthread_t t;
	begin(_i);
	deep(1000); /* the main thread's stack grows */
	ck_ok(pthread_create(&t, NULL, deep_thread, NULL));
	pthread_join(t, NULL);
	end();
}
END_TEST

/* ---- TLS ---- */

static __thread void *volatile in_tls;
static __thread char large_tls[10000];
static pthread_key_t key;

struct tls_try {
	sem_t ready, go;
};

static void *tls_thread(void *arg)
{
	struct tls_try *try = arg;
	must_ok(gcuffd_thread_attach());
	store(&in_tls);
	scrub();
	sem_post(&try->ready);
	sem_wait(&try->go);
	must(*(uint64_t *)in_tls == STAMP, "TLS");
	in_tls = NULL;
	store((void *volatile *)(((uintptr_t)large_tls + 5007) & ~7ul));
	scrub();
	sem_post(&try->ready);
	sem_wait(&try->go);
	memset(large_tls, 0, sizeof(large_tls));
	pthread_setspecific(key, make(100));
	scrub();
	sem_post(&try->ready);
	sem_wait(&try->go);
	must_ok(gcuffd_thread_detach());
	return NULL;
}

START_TEST(static_tls)
{
	NEED_RUNG(_i);
	struct tls_try try;
	pthread_t t;
	begin(_i);
	TRY_SLOT(&in_tls, "TLS of the main thread");
	TRY_SLOT((void *volatile *)(((uintptr_t)large_tls + 5007) & ~7ul), "large TLS of the main thread");
	sem_init(&try.ready, 0, 0);
	sem_init(&try.go, 0, 0);
	pthread_key_create(&key, NULL);
	ck_ok(pthread_create(&t, NULL, tls_thread, &try));
	for (int i = 0; i < 3; i++) {
		sem_wait(&try.ready);
		must_live(i == 0 ? "TLS of a thread" : i == 1 ? "large TLS of a thread" : "a pthread key");
		sem_post(&try.go);
	}
	pthread_join(t, NULL);
	end();
}
END_TEST

/* ---- dlopened modules ---- */

struct module {
	void *handle;
	void *volatile *(*data)(void), *volatile *(*tls)(void);
};

static struct module load_from(const char *path)
{
	struct module m;
	m.handle = path ? dlopen(path, RTLD_NOW | RTLD_LOCAL) : NULL;
	if (!m.handle)
		return m;
	*(void **)&m.data = dlsym(m.handle, "dlmod_data");
	*(void **)&m.tls = dlsym(m.handle, "dlmod_tls");
	must(m.data && m.tls, "dlsym");
	return m;
}

static struct module load(void) { return load_from(getenv("GU_DLMOD")); /* tests/test_modules.sh makes it */ }

static void *module_thread(void *arg)
{
	struct module *m = arg;
	must_ok(gcuffd_thread_attach());
	store(m->tls());
	must_live("TLS of a module, in a thread");
	*m->tls() = NULL;
	must_die("TLS of a module, in a thread");
	must_ok(gcuffd_thread_detach());
	return NULL;
}

START_TEST(modules)
{
	NO_SANITIZER("it keeps copies of pointers");
	NEED_RUNG(_i);
	pthread_t t;
	begin(_i);
	for (int round = 0; round < 3; round++) {
		struct module m = load();
		if (!m.handle) {
			end();
			GU_SKIP("no module in GU_DLMOD");
		}
		TRY_SLOT(m.data(), "data of a module");
		TRY_SLOT(m.tls(), "TLS of a module");
		ck_ok(pthread_create(&t, NULL, module_thread, &m));
		pthread_join(t, NULL);
		store(m.data());
		dlclose(m.handle);
		must_die("data of a module that is gone");
	}
	end();
}
END_TEST

#define TOO_MANY 520

/* A copy, for a file is loaded but once. Its descriptor stays open: the next copy has another name. */
static int copy_module(struct module *m)
{
	char path[64];
	struct stat st;
	int from = open(getenv("GU_DLMOD"), O_RDONLY), to = memfd_create("module", 0);
	must(from >= 0 && to >= 0 && !fstat(from, &st), "errno %d", errno);
	must(sendfile(to, from, NULL, (size_t)st.st_size) == st.st_size, "errno %d", errno);
	close(from);
	snprintf(path, sizeof(path), "/proc/self/fd/%d", to);
	*m = load_from(path);
	must(m->handle, "%s", dlerror());
	return to;
}

/* With TLS of more modules than the collector lists nothing is swept, since it may be pointed to from there. */
START_TEST(too_many_modules)
{
	NO_SANITIZER("it keeps copies of pointers");
	NEED_RUNG(_i);
	static struct module m[TOO_MANY];
	int fd[TOO_MANY];
	begin(_i);
	if (!getenv("GU_DLMOD")) {
		end();
		GU_SKIP("no module in GU_DLMOD");
	}
	for (int i = 0; i < TOO_MANY; i++)
		fd[i] = copy_module(&m[i]);
	store(m[TOO_MANY - 1].tls());
	scrub();
	for (int i = 0; i < 3; i++)
		ck_assert_int_eq(gcuffd_collect(heap), -ENOMEM);
	ck_assert(is_alive(heap, hidden));
	*m[TOO_MANY - 1].tls() = NULL;
	for (int i = 0; i < TOO_MANY; i++) {
		dlclose(m[i].handle);
		close(fd[i]);
	}
	must_die("TLS of a module that is gone");
	end();
}
END_TEST

/* Modules come and go while cycles run; each holds the only pointer for a while. */
static uint32_t quit;

static void *collect_always(void *unused)
{
	(void)unused;
	while (!__atomic_load_n(&quit, __ATOMIC_RELAXED))
		must_ok(gcuffd_collect(heap));
	return NULL;
}

START_TEST(modules_in_cycles)
{
	NEED_RUNG(_i);
	pthread_t t;
	begin(_i);
	quit = 0;
	ck_ok(pthread_create(&t, NULL, collect_always, NULL));
	uint64_t end_ns = test_now_ns() + 300000000;
	struct module m = load();
	while (m.handle && test_now_ns() < end_ns) {
		store(m.data());
		scrub();
		usleep(100);
		must(*(uint64_t *)*m.data() == STAMP, "a module's object was taken");
		store(m.tls());
		scrub();
		usleep(100);
		must(*(uint64_t *)*m.tls() == STAMP, "a module's TLS object was taken");
		dlclose(m.handle);
		m = load();
	}
	__atomic_store_n(&quit, 1, __ATOMIC_RELAXED);
	pthread_join(t, NULL);
	end();
}
END_TEST

/* ---- memory that was a module's when roots were listed, and is the library's by the stop ---- */

#define LEFT_LEN ((size_t)16 << 12)
#define LEFT_OWN ((size_t)4 << 12) /* from the eighth page on */

static char left[LEFT_LEN] __attribute__((aligned(4096))); /* as if in a module that is unloaded */

struct left_seen {
	size_t below, above, own;
};

static size_t common(uintptr_t a, uintptr_t b, uintptr_t c, uintptr_t d)
{
	uintptr_t lo = a > c ? a : c, hi = b < d ? b : d;
	return hi > lo ? hi - lo : 0;
}

static void see_left(void *data, uintptr_t start, uintptr_t end, bool foreign)
{
	struct left_seen *s = data;
	uintptr_t own = (uintptr_t)left + LEFT_LEN / 2;
	(void)foreign;
	s->below += common(start, end, (uintptr_t)left, own);
	s->own += common(start, end, own, own + LEFT_OWN);
	s->above += common(start, end, own + LEFT_OWN, (uintptr_t)left + LEFT_LEN);
}

static struct left_seen look_at_left(void)
{
	struct left_seen seen = {0, 0, 0};
	struct gu_root_visit visit = {see_left, &seen};
	gu_roots_each(heap, &visit);
	return seen;
}

/* It is full of addresses, the verifier's of those of blocks: with them the first object of each would be alive. */
START_TEST(what_the_library_mapped_since)
{
	NEED_RUNG(_i);
	begin(_i);
	ck_ok(gcuffd_collect(heap)); /* lists roots, which stay as they are until the next cycle */
	struct left_seen seen = look_at_left();
	ck_assert_uint_eq(seen.own, LEFT_OWN);
	ck_assert(gu_own_add((uintptr_t)left + LEFT_LEN / 2, LEFT_OWN));
	for (int i = 0; i < 2; i++) {
		seen = look_at_left();
		ck_assert_uint_eq(seen.own, 0);
		ck_assert_uint_eq(seen.below, LEFT_LEN / 2);
		ck_assert_uint_eq(seen.above, LEFT_LEN / 2 - LEFT_OWN);
	}
	gu_own_remove((uintptr_t)left + LEFT_LEN / 2, LEFT_OWN);
	TRY_SLOT((void *volatile *)(left + LEFT_LEN / 2), "what is no more the library's");
	end();
}
END_TEST

static uint32_t in_second_stop; /* set by the collector, which maps in left from then on */
static size_t mapped_left;

static int note_second_stop(pid_t pid, pid_t tid, int sig)
{
	if (gu_load_relaxed(&heap->phase) == GU_PHASE_MARK)
		in_second_stop = 1;
	return gu_os_linux.tgkill(pid, tid, sig);
}

static int map_in_left(void *hint, size_t len, int prot, int flags, void **out)
{
	if (!in_second_stop || mapped_left + len > LEFT_LEN)
		return gu_os_linux.mmap(hint, len, prot, flags, out);
	mapped_left += len;
	return gu_os_linux.mmap(left + mapped_left - len, len, prot, flags | MAP_FIXED, out);
}

/* Whether the hidden pointer is in left, where the library mapped something. */
static bool left_has_it(void)
{
	uint64_t word;
	for (size_t at = 0; at < mapped_left; at += 8)
		if (gu_os_linux.process_vm_readv(getpid(), &word, left + at, 8) == 8 && (word ^ HIDE_MASK) == hidden)
			return true;
	return false;
}

static void *run_till_quit(void *unused)
{
	must_ok(gcuffd_thread_attach());
	while (!__atomic_load_n(&quit, __ATOMIC_RELAXED))
		sched_yield();
	must_ok(gcuffd_thread_detach());
	return unused;
}

/* The object is dead, and the first of its block. */
START_TEST(verifier_maps_where_a_module_was)
{
	NEED_RUNG(_i);
	if (_i == GCUFFD_RUNG_STOP)
		GU_SKIP("has but one stop");
	pthread_t t;
	void *again;
	struct gu_os os = gu_os_linux;
	os.tgkill = note_second_stop;
	os.mmap = map_in_left;
	begin(_i);
	quit = in_second_stop = 0;
	mapped_left = 0;
	ck_ok(pthread_create(&t, NULL, run_till_quit, NULL));
	make(100);
	scrub();
	gu_os_set(&os);
	collect();
	gu_os_set(NULL);
	ck_assert(left_has_it());
	__atomic_store_n(&quit, 1, __ATOMIC_RELAXED);
	pthread_join(t, NULL);
	end();
	ck_ok(gu_os_linux.mmap(left, LEFT_LEN, PROT_READ | PROT_WRITE, MAP_FIXED, &again));
}
END_TEST

static uintptr_t tls_start; /* of the mapping that holds the main thread's TLS */
static size_t read_beside_tls;

static void see_beside_tls(void *data, uintptr_t start, uintptr_t end, bool foreign)
{
	(void)data, (void)foreign;
	read_beside_tls += common(start, end, tls_start - 4096, tls_start);
}

/* How much TLS there is below a TCB is a guess upwards. */
START_TEST(what_the_library_mapped_beside_tls)
{
	NEED_RUNG(_i);
	struct gu_root_visit visit = {see_beside_tls, NULL};
	uintptr_t own_start, own_end;
	struct gu_map map;
	begin(_i);
	ck_ok(gcuffd_collect(heap));
	must_ok(gu_maps_find((uintptr_t)pthread_self(), &map));
	tls_start = map.start;
	bool is_own = gu_own_next(tls_start - 4096, &own_start, &own_end) && own_start < tls_start;
	ck_assert(is_own || gu_own_add(tls_start - 4096, 4096));
	read_beside_tls = 0;
	gu_roots_each(heap, &visit);
	ck_assert_uint_eq(read_beside_tls, 0);
	if (!is_own)
		gu_own_remove(tls_start - 4096, 4096);
	TRY_SLOT(&in_tls, "TLS of the main thread");
	end();
}
END_TEST

/* What a program names is read in any case: it may be an object of another heap. */
START_TEST(named_in_another_heap)
{
	NEED_RUNG(_i);
	struct gcuffd_heap *other = heap_make("rung=%s", rung_names[_i]);
	char *range = gcuffd_alloc(other, 200000);
	begin(_i);
	ck_ok(gcuffd_root_add(heap, range, 200000));
	TRY_SLOT((void *volatile *)(range + 4096), "an object of another heap");
	ck_ok(gcuffd_collect(other)); /* it can register its memory all the same */
	ck_assert_uint_eq(stats_of(other).cycles_put_off, 0);
	ck_assert_int_eq((int)stats_of(other).rung, _i);
	ck_ok(gcuffd_root_remove(heap, range));
	end();
	ck_ok(gcuffd_heap_destroy(other));
}
END_TEST

#define IN_OTHER 1000

static __attribute__((noinline)) void fill_other(void **slots)
{
	for (int i = 0; i < IN_OTHER; i++)
		slots[i] = make(100);
}

static __attribute__((noinline)) void must_hold_other(struct gcuffd_heap *other, void **slots, bool out)
{
	fill_other(slots);
	for (int i = 0; i < 3; i++) {
		size_t taken = 0;
		if (out) {
			must_ok(gcuffd_cool(other, NULL, 0, &taken));
			must(taken > 0, "no page of the other heap went out");
		}
		collect();
	}
	for (int i = 0; i < IN_OTHER; i++)
		must(is_alive(heap, hide(slots[i])) && *(uint64_t *)slots[i] == STAMP, "object %d of %d was taken", i, IN_OTHER);
}

/* Of a process with several heaps, each is memory of the program to the others' process roots; so are pages that are out. */
START_TEST(process_roots_in_another_heap)
{
	NEED_RUNG(_i);
	for (int cold = 0; cold <= (_i >= GCUFFD_RUNG_MOVE); cold++) {
		struct gcuffd_heap *other = heap_make("rung=%s,cold=%d", rung_names[_i], cold);
		void **volatile slots = gcuffd_alloc(other, 200000);
		heap = heap_make("rung=%s,process_roots=1,verify=1", rung_names[_i]);
		must_hold_other(other, slots, cold);
		ck_ok(gcuffd_collect(other)); /* it, too, can register its memory */
		ck_assert_int_eq((int)stats_of(other).rung, _i);
		end();
		ck_ok(gcuffd_heap_destroy(other));
	}
}
END_TEST

/* ---- alternate signal stacks ---- */

enum where { MAPPED_APART, MAPPED_ABOVE, ON_OWN_STACK, FROM_MALLOC };

struct alt_try {
	enum where where;
	char *stack;
	size_t size;
	uint32_t inside, leave;
};

static struct alt_try alt;
static uint64_t hidden_below, hidden_in_handler;

/* Waits in the handler with a pointer on the alternate stack alone. */
static __attribute__((noinline)) void on_alternate(int sig)
{
	(void)sig;
	void *volatile local = make(100);
	hidden_in_handler = hidden;
	scrub_stack();
	__atomic_store_n(&alt.inside, 1, __ATOMIC_SEQ_CST);
	while (!__atomic_load_n(&alt.leave, __ATOMIC_SEQ_CST))
		;
	must(*(uint64_t *)local == STAMP, "an object of a handler's frame was taken");
}

static __attribute__((noinline)) void interrupted(void)
{
	void *volatile local = make(100);
	hidden_below = hidden;
	raise(SIGUSR1);
	must(*(uint64_t *)local == STAMP, "an object of the interrupted frame was taken");
}

static void *alt_thread(void *unused)
{
	char own[256 << 10];
	(void)unused;
	must_ok(gcuffd_thread_attach());
	stack_t ss = {.ss_sp = alt.where == ON_OWN_STACK ? own : alt.stack, .ss_size = alt.size};
	must_ok(sigaltstack(&ss, NULL));
	interrupted();
	ss.ss_flags = SS_DISABLE;
	must_ok(sigaltstack(&ss, NULL));
	must_ok(gcuffd_thread_detach());
	return NULL;
}

static void try_alternate(enum where where)
{
	const size_t size = 256 << 10, own = 1 << 20;
	struct sigaction act = {.sa_handler = on_alternate, .sa_flags = SA_ONSTACK};
	pthread_attr_t attr;
	pthread_t t;
	/* one mapping: a thread's stack, and the alternate one right above it */
	char *map = mmap(NULL, own + size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	must_ok(sigaction(SIGUSR1, &act, NULL));
	alt = (struct alt_try){.where = where, .size = size};
	alt.stack = where == MAPPED_ABOVE ? map + own : where == FROM_MALLOC ? malloc(size) :
		    mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	pthread_attr_init(&attr);
	if (where == MAPPED_ABOVE)
		pthread_attr_setstack(&attr, map, own);
	must_ok(pthread_create(&t, &attr, alt_thread, NULL));
	while (!__atomic_load_n(&alt.inside, __ATOMIC_SEQ_CST))
		sched_yield();
	for (int i = 0; i < 3; i++)
		must_ok(gcuffd_collect(heap));
	bool in_handler = is_alive(heap, hidden_in_handler), below = is_alive(heap, hidden_below);
	must(in_handler, "on the alternate stack (case %d)", where);
	must(below, "on the stack below a handler (case %d)", where);
	__atomic_store_n(&alt.leave, 1, __ATOMIC_SEQ_CST);
	pthread_join(t, NULL);
	munmap(map, own + size);
}

START_TEST(alternate_stacks)
{
	NEED_RUNG(_i);
	begin(_i);
	try_alternate(MAPPED_APART);
	try_alternate(FROM_MALLOC);
	end();
}
END_TEST

START_TEST(alternate_stack_above)
{
	NEED_RUNG(_i);
	begin(_i);
	try_alternate(MAPPED_ABOVE);
	end();
}
END_TEST

START_TEST(alternate_stack_on_own)
{
	NEED_RUNG(_i);
	begin(_i);
	try_alternate(ON_OWN_STACK);
	end();
}
END_TEST

/* ---- blocking threads ---- */

static int pipe_fds[2];
static sem_t blocked;

static __attribute__((noinline)) void *block_in_read(void *unused)
{
	char byte;
	(void)unused;
	must_ok(gcuffd_thread_attach());
#if defined(__x86_64__)
	register void *r __asm__("r13") = make(100);
	__asm__ volatile("" : "+r"(r));
#else
	void *volatile r = make(100);
#endif
	must_ok(gcuffd_blocking_enter());
	must(gcuffd_blocking_enter() == -EBUSY, "entered twice");
	sem_post(&blocked);
	must(read(pipe_fds[0], &byte, 1) == 1, "errno %d", errno);
	must_ok(gcuffd_blocking_leave());
	must(gcuffd_blocking_leave() == -EINVAL, "left twice");
#if defined(__x86_64__)
	__asm__ volatile("" : "+r"(r));
#endif
	must(*(uint64_t *)r == STAMP, "a blocking thread's object was taken");
	must_ok(gcuffd_thread_detach());
	return NULL;
}

START_TEST(blocking_threads)
{
	NEED_RUNG(_i);
	sigset_t all, old;
	pthread_t t;
	begin(_i);
	ck_assert_int_eq(pipe(pipe_fds), 0);
	sem_init(&blocked, 0, 0);
	ck_ok(pthread_create(&t, NULL, block_in_read, NULL));
	sem_wait(&blocked);
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	must_live("a thread that blocks");
	must_live("a thread that blocks");
	ck_assert_int_eq(write(pipe_fds[1], "x", 1), 1);
	pthread_join(t, NULL);
	must_die("a thread that ended");
	end();
}
END_TEST

/* Threads come and go, with objects that only they know, while cycles run. */
static void *short_life(void *arg)
{
	must_ok(gcuffd_thread_attach());
	must_ok(gcuffd_thread_attach());
	for (unsigned i = 0; i < 50; i++) {
		uint64_t *o = gcuffd_alloc(heap, 16 + 16 * (i % 20));
		must(o && !o[0] && !o[1], "no new object");
		o[0] = STAMP ^ i;
		sched_yield();
		must(o[0] == (STAMP ^ i), "a young thread's object was taken");
	}
	must_ok(gcuffd_thread_detach());
	if ((uintptr_t)arg % 2)
		must_ok(gcuffd_thread_detach());
	return NULL;
}

START_TEST(threads_come_and_go)
{
	NEED_RUNG(_i);
	pthread_t t, young[4];
	begin(_i);
	quit = 0;
	ck_ok(pthread_create(&t, NULL, collect_always, NULL));
	for (uint64_t end_ns = test_now_ns() + 500000000; test_now_ns() < end_ns;) {
		for (uintptr_t i = 0; i < 4; i++)
			must_ok(pthread_create(&young[i], NULL, short_life, (void *)i));
		for (int i = 0; i < 4; i++)
			pthread_join(young[i], NULL);
	}
	__atomic_store_n(&quit, 1, __ATOMIC_RELAXED);
	pthread_join(t, NULL);
	end();
}
END_TEST

/* ---- the only pointer moves while cycles run ---- */

#define MOVED  64
#define PLACES 160
#define NODES  20000 /* in front of the cells, so that a marker comes there late */
#define IN_CELL PLACES
#define NOTHING MOVED

struct link {
	struct link *next;
	uint64_t spare[3];
};

static void *volatile *places[PLACES];        /* words in roots */
static unsigned nplaces;
static void (*put)(unsigned place, void *p);  /* stores there */
static void *volatile chain;                  /* a list, at its end a table of cells: objects of one word */
static uint64_t cells[MOVED];                 /* masked: so a stack shows one of them at a time */
static unsigned where[MOVED], holds[PLACES];  /* guard: the test's thread */

static void put_here(unsigned place, void *p) { *places[place] = p; }

static __attribute__((noinline)) void make_cells(void)
{
	void **table = gcuffd_alloc(heap, MOVED * sizeof(*table));
	struct link *first = (struct link *)table;
	chain = table;
	for (int i = 0; i < MOVED; i++) {
		table[i] = gcuffd_alloc(heap, sizeof(void *));
		cells[i] = hide(table[i]);
		where[i] = IN_CELL;
	}
	for (int i = 0; i < NODES; i++) {
		struct link *n = gcuffd_alloc(heap, sizeof(*n));
		must(n != NULL, "no memory");
		n->next = first;
		chain = first = n;
	}
	for (int i = 0; i < PLACES; i++)
		holds[i] = NOTHING;
}

static void *volatile *cell_of(unsigned i) { return reveal(cells[i]); }

static void store_at(unsigned at, unsigned i, void *p)
{
	if (at == IN_CELL) {
		*cell_of(i) = p;
	} else {
		put(at, p);
		holds[at] = p ? i : NOTHING;
	}
}

static __attribute__((noinline)) void move_one(struct test_rng *rng)
{
	unsigned i = (unsigned)test_below(rng, MOVED), from = where[i], to = IN_CELL;
	if (from == IN_CELL || test_below(rng, 2))
		to = (unsigned)test_below(rng, nplaces);
	if (to != IN_CELL && holds[to] != NOTHING)
		return;
	uint64_t *o = from == IN_CELL ? *cell_of(i) : *places[from];
	must(o && o[0] == STAMP && o[1] == i, "object %u, %s %u, was taken", i, from == IN_CELL ? "in cell" : "at place", from);
	store_at(to, i, o);
	store_at(from, i, NULL);
	where[i] = to;
}

/* A new object, in its cell; what is swept is used again at once. */
static __attribute__((noinline)) void renew(unsigned i)
{
	uint64_t *o = gcuffd_alloc(heap, 48), *junk = gcuffd_alloc(heap, 48);
	must(o && junk, "no memory");
	memset(junk, 0xff, 48);
	o[0] = STAMP;
	o[1] = i;
	store_at(where[i], i, NULL);
	where[i] = IN_CELL;
	store_at(IN_CELL, i, o);
}

static bool enough(uint64_t end_ns) { return test_now_ns() >= end_ns && stats_of(heap).cycles >= 20; }

/*
 * From cell to place, place to place, place to cell; slowly for the most part, so that an object stays for the rest of
 * a cycle where it came to.
 */
static void move_about(uint64_t ns)
{
	struct test_rng rng = test_rng(nplaces);
	uint64_t end_ns = test_now_ns() + ns;
	pthread_t t;
	make_cells();
	for (unsigned i = 0; i < MOVED; i++)
		renew(i);
	quit = 0;
	must_ok(pthread_create(&t, NULL, collect_always, NULL));
	for (unsigned round = 0; round % 16 || !enough(end_ns); round++) {
		for (unsigned i = round % 100 ? 2 : 300; i; i--)
			move_one(&rng);
		if (round % 16 == 0)
			renew((unsigned)test_below(&rng, MOVED));
		usleep(50);
	}
	__atomic_store_n(&quit, 1, __ATOMIC_RELAXED);
	pthread_join(t, NULL);
	chain = NULL;
}

static uint64_t some_time(void) { return check_seconds() * 60000000ull; }

/* Two ranges meet in the middle of a page; half of all places are there, the rest in other pages of both. */
static void try_neighbours(int rung, bool upper_first)
{
	const size_t len = 40 * 4096, page = 20 * 4096, edge = page + 2048;
	char *map = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	begin(rung);
	ck_ok(gcuffd_root_add(heap, upper_first ? map + edge : map, upper_first ? len - edge : edge));
	ck_ok(gcuffd_root_add(heap, upper_first ? map : map + edge, upper_first ? edge : len - edge));
	nplaces = PLACES;
	put = put_here;
	for (size_t i = 0; i < PLACES; i++)
		places[i] = (void *volatile *)(i % 2 ? map + page + 24 * i : map + (i / 2 < 20 ? i / 2 : i / 4) * 4096 + i * 8);
	move_about(some_time());
	end();
	munmap(map, len);
}

START_TEST(neighbouring_ranges)
{
	NEED_RUNG(_i);
	try_neighbours(_i, false);
	try_neighbours(_i, true);
}
END_TEST

/* ---- shared memory ---- */

#define SHARED_LEN ((size_t)128 << 10)

static char *map_shared(int fd)
{
	char *map = mmap(NULL, SHARED_LEN, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	must(map != MAP_FAILED, "errno %d", errno);
	return map;
}

/* places: in the mapping that the program reads. */
static void share(char **root, char **other)
{
	int fd = memfd_create("roots", 0);
	must(fd >= 0 && !ftruncate(fd, SHARED_LEN), "errno %d", errno);
	*root = map_shared(fd);
	*other = map_shared(fd);
	close(fd);
	nplaces = PLACES;
	for (size_t i = 0; i < PLACES; i++)
		places[i] = (void *volatile *)(*other + i % 32 * 4096 + i * 8);
}

static void unshare_maps(char *root, char *other)
{
	munmap(root, SHARED_LEN);
	munmap(other, SHARED_LEN);
}

START_TEST(shared_ranges)
{
	NEED_RUNG(_i);
	char *root, *other;
	begin(_i);
	share(&root, &other);
	ck_ok(gcuffd_root_add(heap, root, SHARED_LEN));
	put = put_here;
	move_about(some_time());
	end();
	unshare_maps(root, other);
}
END_TEST

struct order {
	unsigned place;
	uint64_t hidden;
};

static int to_child[2], from_child[2];

/* Another process, without a heap, stores what it is told to. */
static void obey_orders(void)
{
	struct order o;
	close(to_child[1]);
	while (read(to_child[0], &o, sizeof(o)) == sizeof(o)) {
		*places[o.place] = reveal(o.hidden);
		if (write(from_child[1], "x", 1) != 1)
			break;
	}
	_exit(0);
}

static void put_by_child(unsigned place, void *p)
{
	struct order o = {place, hide(p)};
	char byte;
	must(write(to_child[1], &o, sizeof(o)) == sizeof(o), "errno %d", errno);
	while (read(from_child[0], &byte, 1) != 1)
		must(errno == EINTR, "errno %d", errno);
}

START_TEST(ranges_shared_with_a_child)
{
	NEED_RUNG(_i);
	char *root, *other;
	share(&root, &other);
	ck_assert(!pipe(to_child) && !pipe(from_child));
	pid_t child = fork();
	if (!child)
		obey_orders();
	ck_assert_int_gt(child, 0);
	begin(_i);
	ck_ok(gcuffd_root_add(heap, root, SHARED_LEN));
	put = put_by_child;
	move_about(some_time());
	close(to_child[1]);
	ck_assert_int_eq(waitpid(child, NULL, 0), child);
	end();
	unshare_maps(root, other);
}
END_TEST

/* ---- all memory of a process: very many mappings, sparse ones ---- */

static void begin_process(int rung) { heap = heap_make("rung=%s,process_roots=1,pacing=0", rung_names[rung]); }

static unsigned max_maps(void)
{
	unsigned n = 0;
	FILE *f = fopen("/proc/sys/vm/max_map_count", "r");
	if (f && fscanf(f, "%u", &n) != 1)
		n = 0;
	if (f)
		fclose(f);
	return n;
}

/* n mappings of a page each, by turns writable and not. */
static char *map_pieces(unsigned n)
{
	char *map = mmap(NULL, (size_t)n * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	must(map != MAP_FAILED, "errno %d", errno);
	for (unsigned i = 1; i < n; i += 2)
		must(!mprotect(map + (size_t)i * 4096, 4096, PROT_READ), "mapping %u: errno %d", i, errno);
	return map;
}

struct cost {
	uint64_t cpu_ns, stop_ns;
};

/* The least of three cycles. */
static struct cost cost_of_cycle(void)
{
	struct cost c = {UINT64_MAX, UINT64_MAX};
	for (int i = 0; i < 3; i++) {
		uint64_t before = stats_of(heap).gc_cpu_ns;
		must_ok(gcuffd_collect(heap));
		struct gcuffd_stats s = stats_of(heap);
		uint64_t cpu = s.gc_cpu_ns - before, stop = s.last_stop1_ns > s.last_stop2_ns ? s.last_stop1_ns : s.last_stop2_ns;
		c.cpu_ns = cpu < c.cpu_ns ? cpu : c.cpu_ns;
		c.stop_ns = stop < c.stop_ns ? stop : c.stop_ns;
	}
	return c;
}

/* With the only pointer to an object in a mapping at the beginning, in the middle, at the end. */
static struct cost cost_with(unsigned n)
{
	char *map = map_pieces(n);
	uint64_t kept[3];
	for (unsigned i = 0; i < 3; i++) {
		store((void *volatile *)(map + (size_t)(n / 2 * i - i) / 2 * 2 * 4096 + 8));
		kept[i] = hidden;
	}
	scrub();
	struct cost c = cost_of_cycle();
	for (unsigned i = 0; i < 3; i++)
		must(is_alive(heap, kept[i]) && *(uint64_t *)reveal(kept[i]) == STAMP, "mapping %u of %u", n / 2 * i, n);
	munmap(map, (size_t)n * 4096);
	printf("%s, %u mappings: %lu us of CPU time a cycle, stop %lu us\n", rung_names[stats_of(heap).rung], n,
	       c.cpu_ns / 1000, c.stop_ns / 1000);
	return c;
}

/* Four times as many mappings, about four times the work: of a few tries, for others' load is work too. */
START_TEST(very_many_mappings)
{
	NEED_RUNG(_i);
	NO_SANITIZER("its terabytes of shadow are roots");
	unsigned few = 8000, many = 4 * few;
	if (max_maps() < many + 4000)
		GU_SKIP("vm.max_map_count is %u", max_maps());
	begin_process(_i);
	uint64_t a = 1, b = UINT64_MAX;
	for (int i = 0; i < 5 && b / 7 >= a; i++) {
		a = cost_with(few).cpu_ns;
		b = cost_with(many).cpu_ns;
	}
	ck_assert_msg(b / 7 < a, "%lu us with %u mappings, %lu us with %u", a / 1000, few, b / 1000, many);
	end();
}
END_TEST

/* Pointers move between small mappings, one that is tracked, and libc's memory. */
START_TEST(moves_between_mappings)
{
	NEED_RUNG(_i);
	NO_SANITIZER("its terabytes of shadow are roots");
	const unsigned n = 2000;
	const size_t len = 1 << 20;
	heap = heap_make("rung=%s,process_roots=1,verify=1", rung_names[_i]);
	char *map = map_pieces(n), *large = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	char *own = calloc(PLACES, 64);
	nplaces = PLACES;
	put = put_here;
	for (size_t i = 0; i < PLACES; i++) {
		char *small = map + n / PLACES * i / 2 * 2 * 4096 + 8 * i;
		places[i] = (void *volatile *)(i % 4 == 0 ? own + i * 64 : i % 4 == 1 ? large + i * 4096 : small);
	}
	move_about(some_time());
	end();
	munmap(map, (size_t)n * 4096);
	munmap(large, len);
	free(own);
}
END_TEST

#define SPARSE ((size_t)8 << 30)

/* kB */
struct growth {
	size_t rss, tables;
};

/* A few pages of it are there, one has the only pointer. What four cycles add. */
static struct growth try_sparse(int rung)
{
	begin_process(rung);
	must_ok(gcuffd_collect(heap)); /* its threads and tables are there */
	char *map = mmap(NULL, SPARSE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	ck_assert_ptr_ne(map, MAP_FAILED);
	for (size_t i = 0; i < 8; i++)
		map[SPARSE / 8 * i] = 1;
	void *volatile *slot = (void *volatile *)(map + SPARSE / 8 * 3 + 8);
	store(slot);
	struct growth g = {rss_kb(), status_kb("VmPTE:")};
	for (int i = 0; i < 4; i++)
		must_live("a sparse mapping");
	g.rss = rss_kb() - g.rss;
	g.tables = status_kb("VmPTE:") - g.tables;
	*slot = NULL;
	must_die("a sparse mapping");
	end();
	munmap(map, SPARSE);
	return g;
}

START_TEST(sparse_mappings)
{
	NEED_RUNG(_i);
	NO_SANITIZER("its shadow is memory too");
	ssize_t rss = (ssize_t)try_sparse(_i).rss;
	ck_assert_int_le(rss, 1024);
}
END_TEST

/* Holes are not even filled with the zero page, or with marks that they are armed. */
START_TEST(holes_stay_holes)
{
	NEED_RUNG(_i);
	NO_SANITIZER("its shadow is memory too");
	ssize_t tables = (ssize_t)try_sparse(_i).tables;
	ck_assert_int_le(tables, 1024);
}
END_TEST

/* ---- what took a range's place in a cycle ---- */

#define TAKEN ((size_t)1 << 20)

static struct {
	char *at;
	bool watched, done;
	sem_t go, gone;
	struct gcuffd_watch *watch;
} taken;

/* Not attached, so that no stop waits for it and its stack is no root. */
static void *take_place(void *arg)
{
	(void)arg;
	sem_wait(&taken.go);
	must(!munmap(taken.at, TAKEN), "errno %d", errno);
	must(mmap(taken.at, TAKEN, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == taken.at, "errno %d", errno);
	*(void *volatile *)(taken.at + 8) = in_bss; /* from what is not read yet to what was */
	in_bss = NULL;
	if (taken.watched)
		must_ok(gcuffd_watch_begin(taken.watch, taken.at, TAKEN, 0));
	sem_post(&taken.gone);
	return NULL;
}

/* When the range has been read. */
static long take_when_read(pid_t pid, void *local, const void *remote, size_t len)
{
	long got = gu_os_linux.process_vm_readv(pid, local, remote, len);
	if ((const char *)remote + len == taken.at + TAKEN && !taken.done) {
		taken.done = true;
		sem_post(&taken.go);
		sem_wait(&taken.gone);
	}
	return got;
}

static void try_taken(int rung, bool watched)
{
	pthread_t thread;
	taken.at = mmap(NULL, TAKEN, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	taken.watched = watched;
	taken.done = false;
	sem_init(&taken.go, 0, 0);
	sem_init(&taken.gone, 0, 0);
	ck_ok(gcuffd_root_add(heap, taken.at, TAKEN));
	store(&in_bss);
	scrub();
	must_ok(pthread_create(&thread, NULL, take_place, NULL));
	fake_install();
	fake_os.process_vm_readv = take_when_read;
	must_ok(gcuffd_collect(heap));
	must_ok(pthread_join(thread, NULL));
	fake_remove();
	must(is_alive(heap, hidden), "rung %d, watched %d: what the new mapping points to was taken", rung, watched);
	if (watched) {
		struct gcuffd_run run;
		void *next;
		size_t n;
		*(volatile char *)(taken.at + 8 * 4096) = 1;
		ck_ok(gcuffd_collect(heap)); /* takes nothing from the watcher */
		ck_ok(gcuffd_watch_collect(taken.watch, taken.at, TAKEN, &run, 1, &n, &next));
		ck_assert(n == 1 && run.start == taken.at + 8 * 4096);
		ck_ok(gcuffd_watch_end(taken.watch, taken.at, TAKEN));
	}
	ck_ok(gcuffd_root_remove(heap, taken.at));
	munmap(taken.at, TAKEN);
}

/* Of the program's own, or of a watcher, who arms it: to the collector that looks as if nobody had written to it. */
START_TEST(taken_in_a_cycle)
{
	NEED_RUNG(_i);
	if (_i == GCUFFD_RUNG_STOP)
		return;
	heap = heap_make("rung=%s", rung_names[_i]); /* no verifier, which reads the range before */
	ck_ok(gcuffd_watch_create(0, &taken.watch));
	try_taken(_i, false);
	try_taken(_i, true);
	ck_ok(gcuffd_watch_destroy(taken.watch));
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

#define ADD(name) tcase_add_loop_test(test_case(suite, #name), name, GCUFFD_RUNG_STOP, GCUFFD_RUNG_RWP + 1)

static Suite *make_suite(void)
{
	Suite *suite = suite_create("roots");
	ADD(data_segments);
	ADD(named_ranges);
	ADD(malloc_is_no_root);
	ADD(registers);
	ADD(deep_stacks);
	ADD(static_tls);
	ADD(modules);
	ADD(too_many_modules);
	ADD(modules_in_cycles);
	ADD(what_the_library_mapped_since);
	ADD(verifier_maps_where_a_module_was);
	ADD(what_the_library_mapped_beside_tls);
	ADD(named_in_another_heap);
	ADD(process_roots_in_another_heap);
	ADD(alternate_stacks);
	ADD(alternate_stack_above);
	ADD(alternate_stack_on_own);
	ADD(blocking_threads);
	ADD(threads_come_and_go);
	ADD(neighbouring_ranges);
	ADD(shared_ranges);
	ADD(ranges_shared_with_a_child);
	ADD(taken_in_a_cycle);
	ADD(very_many_mappings);
	ADD(moves_between_mappings);
	ADD(sparse_mappings);
	ADD(holes_stay_holes);
	return suite;
}

TEST_MAIN(make_suite)
