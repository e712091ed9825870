/* SPDX-License-Identifier: MIT */
/*
 * maps.h - the mappings of the process, from /proc/thread-self/maps. Any thread; async-signal-safe, no memory but
 * 5 KiB of stack. Other threads may map and unmap meanwhile: what was mapped all along is reported,
 * what came or went may be, nothing is reported twice and addresses only rise.
 */
#ifndef GU_SYS_MAPS_H
#define GU_SYS_MAPS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define GU_MAP_NAME 64

struct gu_map {
	uintptr_t start, end;
	uint64_t offset; /* in the file, bytes */
	uint64_t dev;    /* major << 32 | minor; 0 for none */
	uint64_t inode;  /* 0 for none */
	unsigned prot;   /* PROT_* */
	bool shared;
	char name[GU_MAP_NAME]; /* path, "[stack]", ...; "" for none; cut off if longer */
};

/* visit returns false to end the walk. 0 or -errno. */
int gu_maps_each(bool (*visit)(void *data, const struct gu_map *map), void *data);

/* The mapping that holds addr; -ENOENT if there is none. */
int gu_maps_find(uintptr_t addr, struct gu_map *out);

#endif
