/* SPDX-License-Identifier: MIT */
/*
 * swap.h - swap space for a test, of compressed memory, if there is none: begin_swap() and end_swap() are an unchecked
 * fixture, and a test begins with NEED_SWAP(). For root.
 */
#ifndef GU_TESTS_SWAP_H
#define GU_TESTS_SWAP_H

#include <fcntl.h>
#include <sys/swap.h>

#include "watch.h"

#ifndef MADV_PAGEOUT
#define MADV_PAGEOUT 21
#endif

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

static inline void begin_swap(void)
{
	if (geteuid() == 0 && !has_swap())
		make_swap();
}

static inline void end_swap(void)
{
	if (!zram[0])
		return;
	swapoff(zram);
	write_text("/sys/class/zram-control/hot_remove", zram + strlen("/dev/zram"));
}

/* Whether the page is in swap: bit 62. */
static inline bool is_swapped(const void *page)
{
	uint64_t entry = 0;
	int fd = open("/proc/self/pagemap", O_RDONLY);
	must(pread(fd, &entry, 8, (off_t)((uintptr_t)page / GU_PAGE * 8)) == 8, "errno %d", errno);
	close(fd);
	return entry >> 62 & 1;
}

#endif
