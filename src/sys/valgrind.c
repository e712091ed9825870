/* SPDX-License-Identifier: MIT */
/* valgrind.c - see valgrind.h. */
#include "sys/valgrind.h"

#include <stdint.h>
#include <string.h>

#include "base/atomic.h"
#include "sys/maps.h"

enum { UNKNOWN, ABSENT, PRESENT };

static uint32_t known; /* atomic */

static bool look(void *data, const struct gu_map *map)
{
	bool *found = data;
	*found = strstr(map->name, "/vgpreload_") != NULL;
	return !*found;
}

bool gu_valgrind_is_here(void)
{
	uint32_t now = gu_load_relaxed(&known);
	bool found = false;
	if (now == UNKNOWN) {
		(void)gu_maps_each(look, &found); /* who can't read the list is told by failing calls */
		now = found ? PRESENT : ABSENT;
		gu_store_relaxed(&known, now);
	}
	return now == PRESENT;
}
