/* SPDX-License-Identifier: MIT */
/*
 * report.c - a caller's mistake, with the stack that led to it. libunwind is loaded when the first report is
 * made, RTLD_LOCAL: among a preloaded library's dependencies it would take over C++ exceptions.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>

#include "api/api.h"
#include "base/atomic.h"

#define FRAMES 16

static pthread_once_t once = PTHREAD_ONCE_INIT;
static int (*backtrace_fn)(void **frames, int max);

static void load(void)
{
	void *lib = dlopen("libunwind.so.8", RTLD_NOW | RTLD_LOCAL);
	if (lib)
		*(void **)&backtrace_fn = dlsym(lib, "unw_backtrace");
}

static void report_frame(const struct gu_log *log, int i, const void *pc)
{
	Dl_info info = {0};
	if (dladdr(pc, &info) && info.dli_sname)
		gu_log(log, GU_LOG_ERROR, "  #%d %p %s+%#lx (%s)", i, pc, info.dli_sname,
		       (unsigned long)((const char *)pc - (const char *)info.dli_saddr), info.dli_fname);
	else
		gu_log(log, GU_LOG_ERROR, "  #%d %p (%s)", i, pc, info.dli_fname ? info.dli_fname : "?");
}

static const char *explain(int err)
{
	if (err == -EBUSY)
		return "is pinned: unpin it first";
	return err == -EALREADY ? "was freed before" : "is not the base of an object of this heap";
}

void gu_report(struct gcuffd_heap *h, const char *call, const void *pointer, int err)
{
	static uint32_t reports; /* atomic */
	void *frames[FRAMES];
	uint32_t n = gu_add_relaxed(&reports, 1);
	if (n >= 32)
		return;
	gu_log(&h->log, GU_LOG_ERROR, "%s(%p): %s", call, pointer, explain(err));
	if (n == 31)
		gu_log(&h->log, GU_LOG_ERROR, "further reports of this kind are left out");
	pthread_once(&once, load);
	int count = backtrace_fn ? backtrace_fn(frames, FRAMES) : 0;
	for (int i = 1; i < count; i++) /* 0 is this function */
		report_frame(&h->log, i - 1, frames[i]);
}
