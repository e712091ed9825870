/* SPDX-License-Identifier: MIT */
/*
 * probe.h - places where bpftrace, perf and others can look on (libgcuffd-probes(7) lists them). One that nobody uses costs a nop, and what
 * makes its arguments: so these are at hand. Without GU_PROBES, which configure defines where there is <sys/sdt.h>, there are none.
 */
#ifndef GU_BASE_PROBE_H
#define GU_BASE_PROBE_H

#ifdef GU_PROBES
#include <sys/sdt.h>
#define GU_HAS_PROBES 1
#define GU_PROBE1(name, a) DTRACE_PROBE1(libgcuffd, name, a)
#define GU_PROBE2(name, a, b) DTRACE_PROBE2(libgcuffd, name, a, b)
#define GU_PROBE3(name, a, b, c) DTRACE_PROBE3(libgcuffd, name, a, b, c)
#define GU_PROBE4(name, a, b, c, d) DTRACE_PROBE4(libgcuffd, name, a, b, c, d)
#define GU_PROBE5(name, a, b, c, d, e) DTRACE_PROBE5(libgcuffd, name, a, b, c, d, e)
#else
#define GU_HAS_PROBES 0
#define GU_PROBE1(name, a) ((void)sizeof(a))
#define GU_PROBE2(name, a, b) ((void)sizeof(a), (void)sizeof(b))
#define GU_PROBE3(name, a, b, c) ((void)sizeof(a), GU_PROBE2(name, b, c))
#define GU_PROBE4(name, a, b, c, d) ((void)sizeof(a), GU_PROBE3(name, b, c, d))
#define GU_PROBE5(name, a, b, c, d, e) ((void)sizeof(a), GU_PROBE4(name, b, c, d, e))
#endif

#endif
