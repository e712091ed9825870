/* SPDX-License-Identifier: MIT */
/* inspect.c - looking into a heap. Any thread; what needs a stop is done by the collector, which makes it. */
#include <errno.h>
#include <stddef.h>
#include <string.h>

#include "api/api.h"
#include "ctl/service.h"
#include "gc/mutator.h"
#include "gc/roots.h"
#include "gc/stop.h"
#include "gc/walk.h"
#include "gc/why.h"
#include "sys/os.h"

/* ---- every object ---- */

struct walk {
	gcuffd_walk_fn *visit;
	void *data;
};

static int walk(struct gcuffd_heap *h, void *arg)
{
	const struct walk *w = arg;
	int result = gu_world_stop_for(h);
	if (result)
		return result;
	result = gu_walk(h, w->visit, w->data);
	gu_world_resume_for(h);
	return result;
}

int gcuffd_heap_walk(struct gcuffd_heap *h, gcuffd_walk_fn *visit, void *data)
{
	struct walk w = {visit, data};
	return visit ? gu_service_run(h, walk, &w) : -EINVAL;
}

int gcuffd_heap_histogram(struct gcuffd_heap *h, struct gcuffd_count *counts, size_t max, size_t *count)
{
	struct gu_thread *t = gu_enter(); /* metadata has locks */
	int err = gu_walk_count(h, counts, max, count);
	gu_leave(t);
	return err;
}

/* ---- why one is alive ---- */

static int why(struct gcuffd_heap *h, void *arg)
{
	struct gu_why *w = arg;
	int err;
	do {
		err = gu_why_begin(h, w);
		if (!err)
			err = gu_world_stop_for(h);
		if (!err) {
			err = gu_why_find(h, w);
			gu_world_resume_for(h);
		}
	} while (err == -ENOENT && gu_roots_changed(h)); /* a module came before the stop */
	return err;
}

/* What no stop is needed for, or can be asked in one. */
static void name_root(struct gu_why *w)
{
	struct gcuffd_root *r = &w->root;
	if (r->kind != GCUFFD_ROOT_MEMORY)
		return;
	gu_modules_name((uintptr_t)r->word, r->name, sizeof(r->name));
	struct gu_thread *t = gu_enter();
	if (r->name[0])
		r->kind = GCUFFD_ROOT_MODULE;
	else if (gu_heaps_find((uintptr_t)r->word))
		r->kind = GCUFFD_ROOT_HEAP;
	else
		gu_why_name_memory(w);
	gu_leave(t);
}

int gcuffd_why_alive(struct gcuffd_heap *h, const void *pointer, struct gcuffd_root *root, struct gcuffd_step *steps, size_t max, size_t *count)
{
	struct gu_why w = {.target = (uintptr_t)pointer, .max = max, .tid = gu_os->gettid()};
	if (root->size < offsetof(struct gcuffd_root, name) || root->size > 4096)
		return -EINVAL;
	int err = gu_service_run(h, why, &w);
	if (!err) {
		name_root(&w);
		w.root.size = root->size;
		memcpy(root, &w.root, gu_min(root->size, sizeof(w.root)));
		for (size_t i = 0; i < w.count && i < max; i++)
			steps[i] = w.steps[i];
		*count = w.count;
	}
	struct gu_thread *t = gu_enter();
	gu_why_end(&w);
	gu_leave(t);
	return err;
}
