/* SPDX-License-Identifier: MIT */
/* image.c - heaps saved to a file and made of one. Any thread. */
#include <errno.h>
#include <string.h>

#include "api/api.h"
#include "base/meta.h"
#include "ctl/service.h"
#include "gc/imageload.h"
#include "gc/mutator.h"
#include "gc/restore.h"
#include "gc/stop.h"
#include "sys/os.h"

/* ---- options ---- */

static bool is_name(const char *name) { return name && *name && strnlen(name, GU_IMAGE_NAME) < GU_IMAGE_NAME; }

static bool roots_fit(const struct gcuffd_image_options *o)
{
	for (size_t i = 0; i < o->nroots; i++) {
		if (!o->roots || !is_name(o->roots[i].name))
			return false;
		for (size_t k = 0; k < i; k++)
			if (!strcmp(o->roots[i].name, o->roots[k].name))
				return false;
	}
	return true;
}

static bool externals_fit(const struct gcuffd_image_options *o)
{
	for (size_t i = 0; i < o->nexternals; i++) {
		const struct gcuffd_external *e = &o->externals[i];
		if (!o->externals || !is_name(e->name) || !e->length || (uintptr_t)e->start + e->length < e->length)
			return false;
		for (size_t k = 0; k < i; k++)
			if (!strcmp(e->name, o->externals[k].name))
				return false;
	}
	return true;
}

static int take_options(const struct gcuffd_image_options *in, struct gcuffd_image_options *out)
{
	*out = (struct gcuffd_image_options){.size = sizeof(*out)};
	if (!in)
		return 0;
	if (in->size < offsetof(struct gcuffd_image_options, externals) || in->size > 4096)
		return -EINVAL;
	memcpy(out, in, gu_min(in->size, sizeof(*out)));
	for (size_t i = sizeof(*out); i < in->size; i++)
		if (((const char *)in)[i])
			return -EINVAL;
	return roots_fit(out) && externals_fit(out) ? 0 : -EINVAL;
}

/* ---- saving ---- */

int gcuffd_heap_save(struct gcuffd_heap *h, const char *path, const struct gcuffd_image_options *options)
{
	struct gcuffd_image_options o;
	int err = path ? take_options(options, &o) : -EINVAL;
	if (!err)
		err = gu_service_save(h, path, &o);
	if (err && err != -EXDEV)
		gu_log(&h->log, GU_LOG_ERROR, "the heap was not saved (error %d)", -err);
	return err;
}

/* ---- loading ---- */

static const struct gcuffd_external *external_named(const struct gcuffd_image_options *o, const char *name)
{
	for (size_t i = 0; i < o->nexternals; i++)
		if (!strcmp(o->externals[i].name, name))
			return &o->externals[i];
	return NULL;
}

static const struct gu_image_name *names_of(const struct gu_image *im, enum gu_image_part part, size_t *n)
{
	*n = gu_image_count(im, part, sizeof(struct gu_image_name));
	return im->parts[part];
}

static int check_externals(const struct gu_image *im, const struct gcuffd_image_options *o, const char *path, const struct gu_log *log)
{
	size_t n;
	const struct gu_image_name *names = names_of(im, GU_IMAGE_EXTERNALS, &n);
	for (size_t i = 0; i < n; i++) {
		const struct gcuffd_external *e = external_named(o, names[i].name);
		if (e && e->length >= names[i].size)
			continue;
		gu_log(log, GU_LOG_ERROR, "image %s: the external %s %s", path, names[i].name, e ? "was larger" : "is not given");
		return -ENOENT;
	}
	return 0;
}

static int bring_in(struct gcuffd_heap *h, uintptr_t at)
{
	size_t page = gu_space_page(&h->space, at);
	int err = h->restore && gu_cold_is_out(&h->space.cold, page) ? gcuffd_warm(h, (void *)at, 8) : 0;
	return err == -EIO ? -EBADMSG : err;
}

/* Words that point into externals that are elsewhere now. */
static int relocate(struct gcuffd_heap *h, const struct gu_image *im, const struct gcuffd_image_options *o)
{
	size_t n, count = gu_image_count(im, GU_IMAGE_RELOCATIONS, sizeof(struct gu_image_relocation));
	const struct gu_image_name *names = names_of(im, GU_IMAGE_EXTERNALS, &n);
	const struct gu_image_relocation *r = im->parts[GU_IMAGE_RELOCATIONS];
	int err = 0;
	for (size_t i = 0; i < count && !err; i++) {
		if (r[i].external >= n || !gu_block_at(&h->space, r[i].word) || r[i].word % 8)
			return -EBADMSG;
		uintptr_t moved = (uintptr_t)external_named(o, names[r[i].external].name)->start - names[r[i].external].address;
		if (moved && !(err = bring_in(h, r[i].word)))
			*(uintptr_t *)r[i].word += moved;
	}
	return err;
}

static int add_roots(struct gcuffd_heap *h, const struct gu_image *im)
{
	const struct gu_image_name *names = names_of(im, GU_IMAGE_ROOTS, &h->nnamed);
	if (!h->nnamed)
		return 0;
	struct gu_thread *t = gu_enter();
	h->named = gu_meta_map(gu_align_up(h->nnamed * sizeof(*h->named), GU_PAGE));
	gu_leave(t);
	if (!h->named)
		return -ENOMEM;
	for (size_t i = 0; i < h->nnamed; i++)
		h->named[i] = names[i].address;
	return gcuffd_root_add(h, h->named, h->nnamed * sizeof(*h->named));
}

static int start(struct gcuffd_heap *h, const struct gu_image *im, const struct gcuffd_image_options *o, const char *path)
{
	int err = add_roots(h, im);
	if (!err)
		err = gu_service_start(h, true);
	if (err) {
		gu_log(&h->log, GU_LOG_ERROR, "image %s: no thread or no memory for its heap (error %d)", path, -err);
		return err;
	}
	gu_service_loaded(h);
	if (!h->restore)
		gu_log(&h->log, GU_LOG_WARN, "image %s: all of it was read at once, for pages can't be brought in on first touch here", path);
	if (gu_load_relaxed(&h->space.cold.counts.poisoned)) { /* of what was read at once */
		gu_log(&h->log, GU_LOG_ERROR, "image %s: a page is damaged", path);
		return -EBADMSG;
	}
	err = relocate(h, im, o);
	if (err)
		gu_log(&h->log, GU_LOG_ERROR, "image %s: pointers to externals that have moved can't be corrected (error %d)", path, -err);
	return err;
}

/* What the heap holds was made with these. */
static void follow(struct gcuffd_options *o, const struct gu_image_head *head)
{
	const unsigned kept = GCUFFD_NO_INTERIOR | GCUFFD_PAST_END;
	o->reservation = head->size;
	o->flags = (o->flags & ~kept) | (head->flags & kept);
}

/* Of a heap whose program says nothing. */
static void take_saved(struct gcuffd_options *o, const struct gu_image_head *head)
{
	const struct gu_image_options *s = &head->options;
	gcuffd_options_init(o);
	o->flags = head->flags;
	o->soft_limit = s->soft_limit;
	o->hard_limit = s->hard_limit;
	o->start_size = s->start_size;
	o->resident_target = s->resident_target;
	o->store_memory = s->store_memory;
	o->store_file = s->store_file;
	o->growth_percent = s->growth_percent;
	o->decay_ms = s->decay_ms;
	o->stop_timeout_ms = s->stop_timeout_ms;
	o->store_codec = (enum gcuffd_codec)s->store_codec;
	o->cool_mode = (enum gcuffd_cool_mode)s->cool_mode;
	o->cool_after_ms = s->cool_after_ms;
	o->pressure_percent = s->pressure_percent;
	o->fault_percent = s->fault_percent;
}

static int load(struct gu_image *im, const char *path, const struct gcuffd_image_options *image, struct gcuffd_options *o, struct gcuffd_heap **heap)
{
	struct gu_log log = gu_log_of(o);
	int fd = im->fd, err = check_externals(im, image, path, &log);
	follow(o, &im->head);
	if (!err) {
		err = gu_heap_make(o, im, heap);
		if (err)
			gu_log(&log, GU_LOG_ERROR, "image %s: no heap can be made of it%s (error %d)", path, err == -ENOMEM ? ": not enough memory, or more than hard_limit" : "", -err);
	}
	if (err) {
		gu_os->close(fd);
		gu_image_free(im);
		return err;
	}
	err = start(*heap, im, image, path);
	if (err) {
		if (!gu_service_has_files(*heap))
			gu_os->close(fd);
		gcuffd_heap_destroy(*heap);
		*heap = NULL;
	}
	return err;
}

int gcuffd_heap_load(const char *path, const struct gcuffd_image_options *image, const struct gcuffd_options *options, struct gcuffd_heap **heap)
{
	struct gcuffd_image_options wanted;
	struct gcuffd_options o;
	struct gu_image *im;
	gu_without_init();
	if (gu_world_is_closed_by_caller())
		return -EBUSY;
	int err = path ? take_options(image, &wanted) : -EINVAL;
	if (!err)
		err = gu_options_resolve(&o, options, GCUFFD_COLD);
	if (err)
		return err;
	struct gu_log log = gu_log_of(&o);
	if (gu_os == &gu_os_linux)
		gu_os_set(NULL);
	err = gu_image_open(path, &log, &im);
	if (!err && !options) {
		struct gcuffd_options saved;
		take_saved(&saved, &im->head);
		err = gu_options_resolve(&o, &saved, GCUFFD_COLD) ? -EBADMSG : 0;
		if (err) {
			gu_os->close(im->fd);
			gu_image_free(im);
		}
	}
	return err ? err : load(im, path, &wanted, &o, heap);
}

void *gcuffd_image_root(struct gcuffd_heap *h, const char *name)
{
	size_t n = 0;
	const struct gu_image *im = h->space.cold.image;
	const struct gu_image_name *names = im ? names_of(im, GU_IMAGE_ROOTS, &n) : NULL;
	for (size_t i = 0; i < n; i++)
		if (name && !strcmp(names[i].name, name)) {
			errno = 0;
			return (void *)(uintptr_t)names[i].address;
		}
	errno = ENOENT;
	return NULL;
}
