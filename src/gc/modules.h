/* SPDX-License-Identifier: MIT */
/* modules.h - the loaded objects: their writable segments and their TLS. Takes the loader's lock: never in a stop. */
#ifndef GU_GC_MODULES_H
#define GU_GC_MODULES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define GU_TLS_MODULES 512

struct gu_tls_module {
	size_t id, size;
};

struct gu_modules {
	unsigned long long adds, subs; /* the loader's counts of loads and unloads when this was read */
	size_t tls_static;             /* bound on the bytes of static TLS below (or above) a TCB */
	size_t ntls;
	bool full; /* there are more than these */
	struct gu_tls_module tls[GU_TLS_MODULES];
};

/* Visits each writable segment and fills *modules. false: not all have room there. */
bool gu_modules_read(struct gu_modules *modules, void (*segment)(void *data, uintptr_t start, uintptr_t end), void *data);
/* Whether objects were loaded or unloaded since. */
bool gu_modules_changed(const struct gu_modules *modules);

/* Visits the TLS blocks of the thread with this TCB that its dtv names. In a stop. false: the dtv could not be read. */
bool gu_modules_tls(const struct gu_modules *modules, uintptr_t tcb,
		    void (*block)(void *data, uintptr_t start, uintptr_t end), void *data);

/* The file of the module in whose segments at lies; "" if there is none. Takes the loader's lock: not in a stop. */
void gu_modules_name(uintptr_t at, char *name, size_t size);

#endif
