/* SPDX-License-Identifier: MIT */
/*
 * pages.h - what test_pages asks of the whole machine, as root, and undo: swap in compressed memory, merging of equal pages.
 */
#ifndef GU_TESTS_PAGES_H
#define GU_TESTS_PAGES_H

#include <fcntl.h>
#include <string.h>
#include <sys/swap.h>

#include "base/check.h"
#include "test.h"

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif
#ifndef MADV_PAGEOUT
#define MADV_PAGEOUT 21
#endif

static bool read_text(const char *path, char *text, size_t size)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	long n = fd < 0 ? -1 : read(fd, text, size - 1);
	if (fd >= 0)
		close(fd);
	text[n > 0 ? n : 0] = 0;
	return n > 0;
}

static bool write_text(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	long n = fd < 0 ? -1 : write(fd, text, strlen(text));
	if (fd >= 0)
		close(fd);
	return n >= 0;
}

/* ---- swap ---- */

static char zram[64];

static bool make_zram(void)
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
static bool make_swap(void)
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

static bool has_swap(void)
{
	char text[4096];
	read_text("/proc/swaps", text, sizeof(text));
	return strstr(text, "/dev/") || strstr(text, "file");
}

static void begin_swap(void)
{
	if (geteuid() == 0 && !has_swap())
		make_swap();
}

static void end_swap(void)
{
	if (!zram[0])
		return;
	swapoff(zram);
	write_text("/sys/class/zram-control/hot_remove", zram + strlen("/dev/zram"));
}

/* ---- merging ---- */

#define KSM "/sys/kernel/mm/ksm/"

static struct {
	const char *path, *now;
	char before[32];
} ksm[] = {{KSM "pages_to_scan", "20000", ""}, {KSM "sleep_millisecs", "2", ""}, {KSM "run", "1", ""}};

static void begin_ksm(void)
{
	for (size_t i = 0; i < GU_ARRAY_LEN(ksm); i++)
		read_text(ksm[i].path, ksm[i].before, sizeof(ksm[i].before));
}

static void end_ksm(void)
{
	for (size_t i = GU_ARRAY_LEN(ksm); i-- > 0;)
		if (ksm[i].before[0])
			write_text(ksm[i].path, ksm[i].before);
}

/* Merges marked pages until so many are. */
static bool run_ksm(int pages)
{
	char text[32];
	bool ok = true, all = false;
	for (size_t i = 0; i < GU_ARRAY_LEN(ksm); i++)
		ok = ok && ksm[i].before[0] && write_text(ksm[i].path, ksm[i].now);
	for (int i = 0; ok && !all && i < 200; i++) {
		usleep(50000);
		all = read_text("/proc/self/ksm_merging_pages", text, sizeof(text)) && atoi(text) >= pages;
	}
	end_ksm();
	return all;
}

/* ---- in Check's own process, so that all is undone whatever happens to a test ---- */

static void begin_machine(void)
{
	begin_swap();
	begin_ksm();
}

static void end_machine(void)
{
	end_ksm();
	end_swap();
}

#endif
