/* SPDX-License-Identifier: MIT */
/*
 * heap.c - the one heap: made by the first allocation, never destroyed, since threads and destructors may
 * use it to the end. Its options come from the environment.
 */
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <link.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <unistd.h>

#include "preload/preload.h"

#define START_SIZE ((size_t)32 << 20)

struct gcuffd_heap *gu_preload_heap;
__thread uint32_t gu_preload_inside GU_PRELOAD_TLS;

enum state { NEW, MAKING, READY, FAILED };
static uint32_t state; /* atomic: enum state */

/* ---- lines for people ---- */

static void say(const char *format, const char *text)
{
	char line[256];
	int n = snprintf(line, sizeof(line), format, text);
	int saved = errno;
	if (n > 0 && write(STDERR_FILENO, line, strlen(line)) < 0)
		errno = saved;
}

/* ---- making it ---- */

static void read_options(struct gcuffd_options *o)
{
	const char *text = secure_getenv("GCUFFD_PRELOAD"), *bad = "";
	gcuffd_options_init(o);
	o->flags = GCUFFD_PROCESS_ROOTS | GCUFFD_PAST_END;
	o->start_size = START_SIZE;
	if (text && gcuffd_options_parse(o, text, &bad))
		say("gcuffd: GCUFFD_PRELOAD is ignored, for this is not understood: %s\n", bad);
	/* In a forked child the C library looks at its own blocks before anything of ours runs there. */
	if (o->flags & GCUFFD_COLD)
		say("%s", "gcuffd: GCUFFD_PRELOAD: cold=1 is for programs that use the library; going on without\n");
	o->flags &= ~(unsigned)GCUFFD_COLD;
}

static bool make(void)
{
	struct gcuffd_options o, plain;
	struct gcuffd_heap *h;
	read_options(&o);
	int err = gcuffd_heap_create(&o, &h);
	if (err == -EINVAL || err == -EOPNOTSUPP) {
		gcuffd_options_init(&plain);
		plain.flags = GCUFFD_PROCESS_ROOTS | GCUFFD_PAST_END;
		plain.start_size = START_SIZE;
		say("%s", "gcuffd: GCUFFD_PRELOAD is not to be had; going on with the defaults\n");
		err = gcuffd_heap_create(&plain, &h);
	}
	if (err)
		say("%s", "gcuffd: no heap; going on with the C library's malloc\n");
	else
		__atomic_store_n(&gu_preload_heap, h, __ATOMIC_RELEASE);
	return !err;
}

static enum gu_preload_source make_once(void)
{
	int saved = errno;
	uint32_t was = NEW;
	if (!__atomic_compare_exchange_n(&state, &was, MAKING, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
		return gu_preload_source();
	gu_preload_enter();
	bool made = make();
	gu_preload_leave();
	__atomic_store_n(&state, made ? READY : FAILED, __ATOMIC_RELEASE);
	errno = saved;
	return made ? GU_FROM_HEAP : GU_FROM_LIBC;
}

/* Before the C library is set up there is no environment to read. */
enum gu_preload_source gu_preload_source(void)
{
	if (gu_preload_inside)
		return GU_FROM_BOOT;
	for (;;) {
		switch (__atomic_load_n(&state, __ATOMIC_ACQUIRE)) {
		case READY:
			return GU_FROM_HEAP;
		case FAILED:
			return GU_FROM_LIBC;
		case NEW:
			return environ ? make_once() : GU_FROM_BOOT;
		default:
			sched_yield();
		}
	}
}

/* ---- the loader's place, and the library's ---- */

struct place {
	uintptr_t start, end;
};

static struct place loader;        /* constant after init */
static uintptr_t code, code_end;   /* atomic, code_end first: of the library, whose copy this is the only one */

static bool is_in(const struct place *place, uintptr_t at) { return at - place->start < place->end - place->start; }

static void widen(struct place *place, const struct dl_phdr_info *info, const ElfW(Phdr) *ph)
{
	uintptr_t start = info->dlpi_addr + ph->p_vaddr, end = (start + ph->p_memsz + 4095) & ~(uintptr_t)4095;
	place->start = place->end && place->start < start ? place->start : start;
	place->end = place->end > end ? place->end : end;
}

static struct place whole_of(const struct dl_phdr_info *info)
{
	struct place place = {0, 0};
	for (int i = 0; i < info->dlpi_phnum; i++)
		if (info->dlpi_phdr[i].p_type == PT_LOAD)
			widen(&place, info, &info->dlpi_phdr[i]);
	return place;
}

static int find_loader(struct dl_phdr_info *info, size_t size, void *data)
{
	(void)size, (void)data;
	if (info->dlpi_addr != getauxval(AT_BASE))
		return 0;
	loader = whole_of(info);
	return 1;
}

bool gu_preload_from_loader(const void *p) { return is_in(&loader, (uintptr_t)p); }

static int find_holder(struct dl_phdr_info *info, size_t size, void *data)
{
	struct place *place = data, whole = whole_of(info);
	(void)size;
	if (!is_in(&whole, place->start))
		return 0;
	*place = whole;
	return 1;
}

/* The next definition after ours: a program's pointer to the function may lead to a stub of its own. */
static uintptr_t find_code(void)
{
	struct place place = {(uintptr_t)gu_preload_next("gcuffd_version"), 0};
	dl_iterate_phdr(find_holder, &place);
	__atomic_store_n(&code_end, place.end, __ATOMIC_RELAXED);
	__atomic_store_n(&code, place.start, __ATOMIC_RELEASE);
	return place.start;
}

bool gu_preload_own_code(const void *at)
{
	uintptr_t start = __atomic_load_n(&code, __ATOMIC_ACQUIRE);
	start = start ? start : find_code();
	return (uintptr_t)at - start < __atomic_load_n(&code_end, __ATOMIC_RELAXED) - start;
}

/* Programs close their stderr before they end. */
static int stats_fd = -1;

static void open_stats(void)
{
	const char *where = secure_getenv("GCUFFD_PRELOAD_STATS");
	if (where && !strcmp(where, "1"))
		stats_fd = fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, 100);
}

/* Before the library's own constructor: what that allocates is the heap's by then. */
static __attribute__((constructor(101))) void begin(void)
{
	open_stats();
	dl_iterate_phdr(find_loader, NULL);
	find_code();
	gu_preload_threads_init();
	gu_preload_signals_init();
	gu_preload_kernel_init();
	gu_preload_exec_init();
	if (gu_preload_source() == GU_FROM_HEAP) /* this thread too, before the program's code runs */
		gu_preload_attach();
}

/* ---- statistics at the end ---- */

static int format_stats(char *text, size_t len)
{
	static const char *const rungs[] = {"auto", "stop", "async", "move", "rwp"};
	struct gcuffd_stats s = {.size = sizeof(s)};
	if (!gu_preload_heap || gcuffd_heap_stats(gu_preload_heap, &s))
		return snprintf(text, len, "pid: %d\nheap: none\n", (int)getpid());
	return snprintf(text, len,
			"pid: %d\nrung: %s\ncycles: %lu\nput off: %lu\nverify failures: %lu\nlive: %lu\nresident: %lu\n"
			"metadata: %lu\nallocated: %lu\nfreed by sweeping: %lu\nstop max us: %lu\nstop total us: %lu\n"
			"stall us: %lu\ngc cpu us: %lu\n",
			(int)getpid(), rungs[s.rung < 5 ? s.rung : 0], s.cycles, s.cycles_put_off, s.verify_failures,
			s.live_bytes, s.resident_bytes, s.metadata_bytes, s.allocated_bytes, s.freed_bytes, s.stop_max_ns / 1000,
			s.stop_total_ns / 1000, s.stall_ns / 1000, s.gc_cpu_ns / 1000);
}

static __attribute__((destructor)) void end(void)
{
	char text[1024];
	const char *where = secure_getenv("GCUFFD_PRELOAD_STATS");
	if (!where || !*where || !strcmp(where, "0"))
		return;
	int fd = strcmp(where, "1") ? open(where, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666) : stats_fd;
	int n = format_stats(text, sizeof(text));
	if (fd < 0 || n <= 0 || write(fd, text, (size_t)n) < 0)
		say("gcuffd: GCUFFD_PRELOAD_STATS: can't write to %s\n", where);
	if (fd > STDERR_FILENO)
		close(fd);
}
