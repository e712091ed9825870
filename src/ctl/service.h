/* SPDX-License-Identifier: MIT */
/*
 * service.h - the threads of a heap: the collector, which runs cycles and lets freed memory decay, and its
 * workers, which mark. They start when the heap has grown enough for a cycle, have all signals
 * blocked, stacks of the library's own, and a descriptor table of their own in which the
 * userfaultfd and the pagemap are open (.inv.service.files).
 */
#ifndef GU_CTL_SERVICE_H
#define GU_CTL_SERVICE_H

#include "ctl/cycle.h"

int gu_service_create(struct gcuffd_heap *heap);
/* Ends the threads; not inside a section, since they may be about to stop the world. */
void gu_service_quit(struct gcuffd_heap *heap);
void gu_service_destroy(struct gcuffd_heap *heap);

/* Starts the threads if that was asked for (gu_heap_kick) or if now (-EBUSY: in a handler of fork()). Never inside a section: it calls pthread_create. */
int gu_service_start(struct gcuffd_heap *heap, bool now);
bool gu_service_wanted(const struct gcuffd_heap *heap);

/* Waits for a cycle that begins after the call. 0, -ETIMEDOUT. Not inside a section. */
int gu_service_collect(struct gcuffd_heap *heap, enum gcuffd_reason reason, bool in_stop);

/* Has the collector run fn, with the cycle lock: what fn gives, or why it can't be asked. Not inside a section. */
typedef int gu_service_fn(struct gcuffd_heap *heap, void *arg);
int gu_service_run(struct gcuffd_heap *heap, gu_service_fn *fn, void *arg);
/* Collection is not disabled any more: a cycle may be due. */
void gu_service_enabled(struct gcuffd_heap *heap);

/* Has the collector save the heap, as gcuffd_heap_save(), after a cycle. Not inside a section. */
int gu_service_save(struct gcuffd_heap *heap, const char *path, const struct gcuffd_image_options *options);

/* After the start of a heap's that was loaded: the image's descriptor is the service threads' from here on. */
void gu_service_loaded(struct gcuffd_heap *heap);
/* Whether that is so. */
bool gu_service_has_files(const struct gcuffd_heap *heap);

/* Who wants bytes more is slowed down, or waits until a cycle under way frees something, if mutators have outrun it. Not inside a section. */
void gu_service_throttle(struct gcuffd_heap *heap, size_t bytes);

/* What was done so far for one request for memory; zeroed at first. */
struct gu_request {
	unsigned attempt;
	bool purged;     /* in this attempt */
	uint32_t relief; /* before the last try: what is freed from there on it has not seen */
};
/* Before each try. */
void gu_service_try(const struct gcuffd_heap *heap, struct gu_request *request);
/* Memory for size more bytes was not to be had: frees some, or waits until a cycle has. false: nothing more can be done. Not inside a section. */
bool gu_service_more_memory(struct gcuffd_heap *heap, size_t size, struct gu_request *request);

void gu_service_stats(struct gcuffd_heap *heap, struct gcuffd_stats *stats);

/* fork: nothing of the collector's is half done between prepare and release. */
void gu_service_fork_prepare(struct gcuffd_heap *heap);
void gu_service_fork_closed(struct gcuffd_heap *heap); /* when no thread is in a section */
void gu_service_fork_parent(struct gcuffd_heap *heap);
void gu_service_fork_child(struct gcuffd_heap *heap);
void gu_service_fork_resume(struct gcuffd_heap *heap);

#endif
