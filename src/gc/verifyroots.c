/* SPDX-License-Identifier: MIT */
/* verifyroots.c - see verifyroots.h. The collector. */
#define _GNU_SOURCE
#include "gc/verifyroots.h"

#include <link.h>
#include <string.h>
#include <sys/mman.h>

#include "base/meta.h"
#include "base/own.h"
#include "gc/final.h"
#include "gc/mutator.h"
#include "gc/pins.h"
#include "gc/roots.h"
#include "sys/maps.h"
#include "sys/os.h"
#include "sys/scan.h"

#define MODULES 4096u    /* more are not looked at */
#define SPARSE_MIN ((size_t)1 << 20)
#define DESCRIPTOR 2304u /* bytes above a TCB in which the C library keeps what belongs to the thread */

struct gu_verify_roots {
	struct gu_root_range segment[MODULES];
	size_t nsegments;
	size_t tls_size[MODULES]; /* by the module's number */
};

static size_t roots_len(void) { return gu_align_up(sizeof(struct gu_verify_roots), GU_PAGE); }

struct gu_verify_roots *gu_verify_roots_create(void) { return gu_meta_map(roots_len()); }
void gu_verify_roots_destroy(struct gu_verify_roots *r) { gu_meta_unmap(r, roots_len()); }

/* ---- modules ---- */

static int note_module(struct dl_phdr_info *info, size_t size, void *data)
{
	struct gu_verify_roots *r = data;
	(void)size;
	for (int i = 0; i < info->dlpi_phnum; i++) {
		const ElfW(Phdr) *ph = &info->dlpi_phdr[i];
		uintptr_t start = info->dlpi_addr + ph->p_vaddr;
		if (ph->p_type == PT_LOAD && ph->p_flags & PF_W && r->nsegments < MODULES)
			r->segment[r->nsegments++] = (struct gu_root_range){start, start + ph->p_memsz};
		if (ph->p_type == PT_TLS && info->dlpi_tls_modid < MODULES)
			r->tls_size[info->dlpi_tls_modid] = ph->p_memsz;
	}
	return 0;
}

void gu_verify_roots_list(struct gcuffd_heap *h, struct gu_verify_roots *r)
{
	memset(r, 0, sizeof(*r));
	if (!gu_heap_is(h, GCUFFD_PROCESS_ROOTS))
		dl_iterate_phdr(note_module, r);
}

/* ---- ranges ---- */

static void visit_copied(const struct gu_root_visit *v, uintptr_t start, uintptr_t end)
{
	start = gu_align_up(start, 8);
	end = gu_align_down(end, 8);
	if (start < end)
		v->range(v->data, start, end, true);
}

struct present {
	const struct gu_root_visit *visit;
	uintptr_t start, end;
};

static void visit_present(void *data, uintptr_t start, uintptr_t end)
{
	const struct present *p = data;
	visit_copied(p->visit, gu_max(start, p->start), gu_min(end, p->end));
}

/* Of large ones what is there, if that can be told: mappings may be of any size. */
static void visit_memory(const struct gu_root_visit *v, uintptr_t start, uintptr_t end)
{
	struct present p = {v, start, end};
	int fd = end - start >= SPARSE_MIN ? gu_scan_open() : -1;
	if (fd < 0 || gu_scan_present(fd, gu_align_down(start, GU_PAGE), gu_align_up(end, GU_PAGE), false, visit_present, &p))
		visit_copied(v, start, end);
	if (fd >= 0)
		gu_os->close(fd);
}

/* .inv.own.not-root */
static void visit_but_own(const struct gu_root_visit *v, uintptr_t start, uintptr_t end)
{
	uintptr_t own_start, own_end;
	while (start < end && gu_own_next(start, &own_start, &own_end) && own_start < end) {
		visit_memory(v, start, gu_max(start, own_start));
		start = own_end;
	}
	if (start < end)
		visit_memory(v, start, end);
}

static void visit_named(struct gcuffd_heap *h, const struct gu_root_visit *v)
{
	gu_lock(&h->lock);
	for (size_t i = 0; i < h->nroots; i++)
		visit_copied(v, h->roots[i].start, h->roots[i].end);
	gu_unlock(&h->lock);
}

/* ---- threads ---- */

static bool copy_words(uintptr_t *to, uintptr_t from, size_t n)
{
	return gu_os->process_vm_readv(gu_os->gettid(), to, (const void *)from, n * 8) == (long)(n * 8);
}

/* .assume.glibc.dtv */
static void visit_dtv(const struct gu_verify_roots *r, const struct gu_thread *t, const struct gu_root_visit *v)
{
#if defined(__x86_64__)
	uintptr_t dtv, count, at;
	if (!copy_words(&dtv, t->self + 8, 1) || !dtv || !copy_words(&count, dtv - 16, 1))
		return;
	for (size_t id = 1; id < MODULES && id <= count; id++)
		if (r->tls_size[id] && copy_words(&at, dtv + 16 * id, 1) && at && at != UINTPTR_MAX)
			visit_copied(v, at, at + r->tls_size[id]);
#else
	(void)r, (void)t, (void)v;
#endif
}

static void visit_tls(const struct gu_verify_roots *r, const struct gu_thread *t, const struct gu_root_visit *v)
{
	uintptr_t own_start, own_end, end = t->self + DESCRIPTOR;
	if (!t->self)
		return;
	if (gu_own_next(t->self, &own_start, &own_end))
		end = gu_min(end, gu_max(own_start, t->self));
	visit_copied(v, t->self, end);
	visit_dtv(r, t, v);
}

/* ---- registered stacks ---- */

/* Who is on one is read off the threads' pointers alone, whatever they have named. */
static const struct gcuffd_stack *registered_at(uintptr_t sp)
{
	for (const struct gcuffd_stack *s = gu_stacks_first(); s; s = s->next)
		if (sp >= s->low && sp < s->high)
			return s;
	return NULL;
}

static bool is_in_use(const struct gcuffd_stack *s)
{
	for (const struct gu_thread *t = gu_threads_first(); t; t = t->next)
		if (t->sp >= s->low && t->sp < s->high)
			return true;
	return false;
}

static void visit_left(const struct gcuffd_stack *s, uintptr_t low, uintptr_t high, const struct gu_root_visit *v)
{
	v->range(v->data, (uintptr_t)s->saved, (uintptr_t)(s->saved + GU_ARRAY_LEN(s->saved)), false);
	visit_copied(v, s->sp >= low && s->sp <= high ? s->sp : low, high);
}

static void visit_registered(const struct gu_root_visit *v)
{
	for (const struct gcuffd_stack *s = gu_stacks_first(); s; s = s->next)
		if (!is_in_use(s))
			visit_left(s, s->low, s->high, v);
}

/* From where on its own stack is in use that it left: the first thread's may have grown. 0: nobody knows. */
static uintptr_t own_left(const struct gu_thread *t)
{
	struct gu_map map;
	uintptr_t sp = t->own.sp;
	bool grown = sp && sp < t->stack_lo && !gu_maps_find(sp, &map) && map.start < t->stack_hi && t->stack_hi <= map.end;
	return sp < t->stack_hi && (sp >= t->stack_lo || grown) ? sp : 0;
}

/* Where the stack that sp is on ends; 0: it is none that is known. */
static uintptr_t stack_end(const struct gcuffd_heap *h, const struct gu_thread *t)
{
	struct gu_map map;
	const struct gu_block *b = gu_block_at(&h->space, t->sp);
	uint32_t cell;
	if (t->alt_hi)
		return t->alt_hi;
	if (registered_at(t->sp))
		return registered_at(t->sp)->high;
	if (b)
		return gu_block_cell(b, t->sp, &cell) ? gu_block_cell_addr(b, cell) + b->cell : 0;
	if (t->sp >= t->stack_lo && t->sp < t->stack_hi)
		return t->stack_hi;
	if (gu_maps_find(t->sp, &map))
		return 0;
	return map.start < t->stack_hi && t->stack_hi <= map.end ? t->stack_hi : map.end; /* the first thread's has grown; or another one */
}

/* ---- the process's mappings ---- */

static bool is_memory(const struct gu_map *m)
{
	bool program = !m->name[0] || m->name[0] == '/' || !strcmp(m->name, "[heap]") || !strncmp(m->name, "[stack", 6) || !strncmp(m->name, "[anon", 5);
	bool device = !strncmp(m->name, "/dev/", 5) && strcmp(m->name, "/dev/zero");
	return !m->shared && (m->prot & PROT_READ) && (m->prot & PROT_WRITE) && program && !device;
}

/* What lies below a stack pointer is dead, down to the next mapping for all that is known here. Stacks themselves come with their threads. */
static bool visit_map(void *data, const struct gu_map *m)
{
	const struct gu_root_visit *v = data;
	uintptr_t start = m->start;
	for (const struct gu_thread *t = gu_threads_first(); t; t = t->next) {
		uintptr_t sp = t->sp >= m->start && t->sp < m->end ? t->sp : own_left(t);
		if (sp >= m->start && sp < m->end)
			start = gu_max(start, sp);
	}
	if (is_memory(m))
		visit_but_own(v, start, m->end);
	return true;
}

/* ---- all of them ---- */

static void visit_thread(struct gcuffd_heap *h, const struct gu_verify_roots *r, const struct gu_thread *t, const struct gu_root_visit *v)
{
	if (t->blocking != GU_RUNNING)
		v->range(v->data, (uintptr_t)t->saved, (uintptr_t)(t->saved + GU_ARRAY_LEN(t->saved)), false);
	if (t->sp)
		visit_copied(v, gu_align_down(t->sp, 8), stack_end(h, t));
	if (t->sp && (t->sp < t->stack_lo || t->sp >= t->stack_hi) && stack_end(h, t) != t->stack_hi) { /* its own one is left as it was when it went to the other */
		uintptr_t left = own_left(t);
		visit_left(&t->own, left ? gu_min(left, t->stack_lo) : t->stack_lo, t->stack_hi, v);
	}
	if (!gu_heap_is(h, GCUFFD_PROCESS_ROOTS))
		visit_tls(r, t, v);
}

void gu_verify_roots_each(struct gcuffd_heap *h, const struct gu_verify_roots *r, const struct gu_root_visit *v)
{
	visit_named(h, v);
	for (size_t i = 0; i < r->nsegments; i++)
		visit_but_own(v, r->segment[i].start, r->segment[i].end);
	if (gu_heap_is(h, GCUFFD_PROCESS_ROOTS))
		(void)gu_maps_each(visit_map, (void *)(uintptr_t)v);
	gu_pins_each(h, v);
	gu_final_each(h, v);
	visit_registered(v);
	for (const struct gu_thread *t = gu_threads_first(); t; t = t->next)
		visit_thread(h, r, t, v);
}
