/* SPDX-License-Identifier: MIT */
/* thread.c - attaching and blocking. */
#include "gc/mutator.h"
#include "gc/stop.h"

int gcuffd_thread_attach(void) { return gu_thread_attach(); }
int gcuffd_thread_detach(void) { return gu_thread_detach(); }
int gcuffd_blocking_enter(void) { return gu_blocking_enter(); }
int gcuffd_blocking_leave(void) { return gu_blocking_leave(); }
int gcuffd_stop_signal(void) { return GU_STOP_SIGNAL; }
