/* SPDX-License-Identifier: MIT */
/*
 * modules.c - dl_iterate_phdr and the dtv. .assume.glibc.dtv: the TCB's second word (x86-64; the first on
 * arm64) points to an array of pairs, entry -1 holding their number, a pair's first word the block's address,
 * or -1 while the thread has none. The dtv is read by copying: a thread may be stopped while it grows.
 */
#define _GNU_SOURCE
#include "gc/modules.h"

#include <errno.h>
#include <link.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/check.h"
#include "sys/os.h"

struct reading {
	struct gu_modules *modules;
	void (*segment)(void *data, uintptr_t start, uintptr_t end);
	void *data;
};

static void add_tls(struct gu_modules *m, size_t id, size_t size, size_t align)
{
	m->full |= m->ntls == GU_TLS_MODULES;
	if (!m->full)
		m->tls[m->ntls++] = (struct gu_tls_module){id, size};
	m->tls_static += size + align;
}

static int read_module(struct dl_phdr_info *info, size_t size, void *data)
{
	struct reading *r = data;
	(void)size;
	r->modules->adds = info->dlpi_adds;
	r->modules->subs = info->dlpi_subs;
	for (int i = 0; i < info->dlpi_phnum; i++) {
		const ElfW(Phdr) *ph = &info->dlpi_phdr[i];
		uintptr_t start = info->dlpi_addr + ph->p_vaddr;
		if (ph->p_type == PT_LOAD && (ph->p_flags & PF_W) && r->segment)
			r->segment(r->data, gu_align_up(start, 8), start + ph->p_memsz);
		else if (ph->p_type == PT_TLS && info->dlpi_tls_modid && r->segment)
			add_tls(r->modules, info->dlpi_tls_modid, ph->p_memsz, ph->p_align);
	}
	return r->segment ? 0 : 1;
}

bool gu_modules_read(struct gu_modules *m, void (*segment)(void *data, uintptr_t start, uintptr_t end), void *data)
{
	struct reading r = {m, segment, data};
	memset(m, 0, sizeof(*m));
	m->tls_static = 2048; /* the loader's surplus for late static TLS */
	dl_iterate_phdr(read_module, &r);
	return !m->full;
}

bool gu_modules_changed(const struct gu_modules *m)
{
	struct gu_modules now;
	struct reading r = {&now, NULL, NULL};
	now.adds = m->adds;
	now.subs = m->subs;
	dl_iterate_phdr(read_module, &r);
	return now.adds != m->adds || now.subs != m->subs;
}

/* refused: the OS would not read, whether there is memory or not. */
static bool copy(void *to, uintptr_t from, size_t len, bool *refused)
{
	long got = gu_os->process_vm_readv(gu_os->gettid(), to, (const void *)from, len);
	*refused |= got < 0 && got != -EFAULT;
	return got == (long)len;
}

static uintptr_t dtv_of(uintptr_t tcb, bool *refused)
{
	uintptr_t dtv = 0;
#if defined(__x86_64__)
	copy(&dtv, tcb + 8, 8, refused);
#elif defined(__aarch64__)
	(void)tcb, (void)refused; /* the thread pointer is not pthread_self() here: static TLS is found on the stack */
#endif
	return dtv;
}

bool gu_modules_tls(const struct gu_modules *m, uintptr_t tcb, void (*block)(void *data, uintptr_t start, uintptr_t end), void *data)
{
	bool refused = false;
	uintptr_t dtv = dtv_of(tcb, &refused), count;
	if (!dtv || !copy(&count, dtv - 16, 8, &refused))
		return !refused;
	for (size_t i = 0; i < m->ntls; i++) {
		uintptr_t at;
		if (m->tls[i].id <= count && copy(&at, dtv + 16 * m->tls[i].id, 8, &refused) && at && at != UINTPTR_MAX)
			block(data, at, at + m->tls[i].size);
	}
	return !refused;
}

struct naming {
	uintptr_t at;
	char *name;
	size_t size;
};

static int name_module(struct dl_phdr_info *info, size_t size, void *data)
{
	const struct naming *n = data;
	(void)size;
	for (int i = 0; i < info->dlpi_phnum; i++) {
		const ElfW(Phdr) *ph = &info->dlpi_phdr[i];
		if (ph->p_type != PT_LOAD || n->at - info->dlpi_addr - ph->p_vaddr >= ph->p_memsz)
			continue;
		long len = info->dlpi_name[0] ? -1 : readlink("/proc/self/exe", n->name, n->size - 1);
		if (len >= 0)
			n->name[len] = 0;
		else
			snprintf(n->name, n->size, "%s", info->dlpi_name);
		return 1;
	}
	return 0;
}

void gu_modules_name(uintptr_t at, char *name, size_t size)
{
	struct naming n = {at, name, size};
	name[0] = 0;
	dl_iterate_phdr(name_module, &n);
}
