/* SPDX-License-Identifier: MIT */
/*
 * machine.h - what tests change on the machine for a while, or look up about its memory: swap on zram, KSM, transparent
 * huge pages, other settings; frames, and pages by their state. Each begin_ belongs into an unchecked setup and its end_ into the
 * teardown, so that it is undone in Check's own process, whatever happens to a test.
 */
#ifndef GU_TESTS_MACHINE_H
#define GU_TESTS_MACHINE_H

#include <fcntl.h>
#include <string.h>
#include <sys/swap.h>

#include "watch.h"
#include "sys/os.h"

#ifndef MADV_PAGEOUT
#define MADV_PAGEOUT 21
#endif
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

/* ---- swap ---- */

static char zram[64];

static inline bool make_zram(void)
{
	char id[16] = "", path[96];
	if (!read_text("/sys/class/zram-control/hot_add", id, sizeof(id)))
		return false;
	int n = atoi(id);
	snprintf(zram, sizeof(zram), "/dev/zram%d", n);
	snprintf(path, sizeof(path), "/sys/block/zram%d/disksize", n);
	return write_text(path, "32M");
}

/* A header for one page size, as mkswap writes it. */
static inline bool make_swap(void)
{
	union {
		char bytes[4096];
		struct {
			char boot[1024];
			uint32_t version, last_page, bad_pages;
		} info;
	} header;
	memset(&header, 0, sizeof(header));
	header.info.version = 1;
	header.info.last_page = (32u << 20) / 4096 - 1;
	memcpy(header.bytes + 4086, "SWAPSPACE2", 10);
	int fd = make_zram() ? open(zram, O_RDWR | O_CLOEXEC) : -1;
	bool ok = fd >= 0 && pwrite(fd, &header, sizeof(header), 0) == (long)sizeof(header) && !fsync(fd);
	if (fd >= 0)
		close(fd);
	return ok && !swapon(zram, SWAP_FLAG_PREFER | 32767);
}

static inline bool has_swap(void)
{
	char text[4096];
	read_text("/proc/swaps", text, sizeof(text));
	return strstr(text, "/dev/") || strstr(text, "file");
}

static inline void drop_swap(void)
{
	swapoff(zram);
	write_text("/sys/class/zram-control/hot_remove", zram + strlen("/dev/zram"));
}

static pid_t swap_guard;
static int swap_pipe[2];

/* Waits until nobody has the other end open any more: also a test that is killed leaves no swap behind. */
static inline void guard_swap(void)
{
	char c;
	setsid();
	close(swap_pipe[1]);
	while (read(swap_pipe[0], &c, 1) < 0 && errno == EINTR)
		;
	drop_swap();
	_exit(0);
}

/* One of its own: another's may go at any moment. */
static inline void begin_swap(void)
{
	if (geteuid() != 0 || pipe2(swap_pipe, O_CLOEXEC))
		return;
	make_swap();
	fflush(stdout);
	swap_guard = zram[0] ? fork() : -1;
	if (swap_guard == 0)
		guard_swap();
	close(swap_pipe[0]);
}

static inline void end_swap(void)
{
	if (!zram[0])
		return;
	close(swap_pipe[1]);
	if (swap_guard < 0)
		drop_swap();
	else
		waitpid(swap_guard, NULL, 0);
	zram[0] = 0;
}

/* ---- settings ---- */

struct setting {
	const char *path, *now;
	char before[128];
};

/* Of several words the one in brackets holds. */
static inline bool read_settings(struct setting *s, size_t count)
{
	bool ok = true;
	for (size_t i = 0; i < count; i++) {
		ok = read_text(s[i].path, s[i].before, sizeof(s[i].before)) && ok;
		char *word = strchr(s[i].before, '[');
		if (word)
			memmove(s[i].before, word + 1, strlen(word));
		s[i].before[strcspn(s[i].before, "]\n")] = 0;
	}
	return ok;
}

static inline bool change_settings(const struct setting *s, size_t count)
{
	bool ok = true;
	for (size_t i = 0; i < count && ok; i++)
		ok = !strcmp(s[i].before, s[i].now) || write_text(s[i].path, s[i].now);
	return ok;
}

static inline void restore_settings(const struct setting *s, size_t count)
{
	for (size_t i = count; i-- > 0;)
		if (s[i].before[0] && strcmp(s[i].before, s[i].now))
			write_text(s[i].path, s[i].before);
}

#define THP "/sys/kernel/mm/transparent_hugepage/"

static struct setting thp_settings[] = {{THP "enabled", "madvise", ""}, {THP "shmem_enabled", "advise", ""}};

static int thp_lock = -1;

/* Locked meanwhile: a second program waits, or it would take these for the machine's. */
static inline void begin_thp(void)
{
	thp_lock = lock_file(thp_settings[0].path);
	read_settings(thp_settings, 2);
	change_settings(thp_settings, 2);
}

static inline void end_thp(void)
{
	restore_settings(thp_settings, 2);
	unlock_file(thp_lock);
}

#define KSM "/sys/kernel/mm/ksm/"

static struct setting ksm_settings[] = {
	{KSM "pages_to_scan", "20000", ""}, {KSM "sleep_millisecs", "2", ""}, {KSM "run", "1", ""},
};

/* Two programs must not take the other's settings for the machine's. */
static inline void begin_ksm(void)
{
	int fd = lock_file(KSM "run");
	read_settings(ksm_settings, 3);
	unlock_file(fd);
}

static inline void end_ksm(void)
{
	int fd = lock_file(KSM "run");
	restore_settings(ksm_settings, 3);
	unlock_file(fd);
}

/* Merges marked pages until so many are. */
static inline bool run_ksm(int pages)
{
	char text[32];
	int fd = lock_file(KSM "run");
	bool all = false, ok = change_settings(ksm_settings, 3);
	for (int i = 0; ok && !all && i < 200; i++) {
		usleep(50000);
		all = read_text("/proc/self/ksm_merging_pages", text, sizeof(text)) && atoi(text) >= pages;
	}
	restore_settings(ksm_settings, 3);
	unlock_file(fd);
	return all;
}

/* ---- pages ---- */

#define IN_SWAP (1ull << 62)
#define PRESENT (1ull << 63)
#define FRAME ((1ull << 55) - 1)

/* Of /proc/self/pagemap, for the first 4 KiB of each page of the watched memory. */
static inline void read_entries(uint64_t entry[MAX_PAGES])
{
	int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	for (size_t i = 0; i < mem.pages; i++)
		must(pread(fd, &entry[i], 8, (off_t)((uintptr_t)page_at(i) / GU_PAGE * 8)) == 8, "errno %d", errno);
	close(fd);
}

static inline size_t count_entries(size_t from, size_t to, uint64_t mask)
{
	uint64_t entry[MAX_PAGES];
	size_t n = 0;
	read_entries(entry);
	for (size_t i = from; i < to; i++)
		n += !!(entry[i] & mask);
	return n;
}

static inline bool is_swapped(const void *page)
{
	uint64_t entry = 0;
	int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	must(pread(fd, &entry, 8, (off_t)((uintptr_t)page / GU_PAGE * 8)) == 8, "errno %d", errno);
	close(fd);
	return entry & IN_SWAP;
}

/* Bytes of [start, end) that are in huge pages. */
static inline size_t count_huge(const void *start, const void *end)
{
	struct gu_page_region vec[64];
	struct gu_pm_scan_arg arg = {
		.size = sizeof(arg),
		.start = (uintptr_t)start,
		.end = (uintptr_t)end,
		.vec = (uintptr_t)vec,
		.vec_len = 64,
		.category_mask = GU_PAGE_IS_HUGE,
		.return_mask = GU_PAGE_IS_HUGE,
	};
	int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	long n = gu_os->ioctl(fd, GU_PAGEMAP_SCAN, &arg);
	size_t bytes = 0;
	for (long i = 0; i < n; i++)
		bytes += vec[i].end - vec[i].start;
	close(fd);
	return bytes;
}

#endif
