/* SPDX-License-Identifier: MIT */
/* thread.c - attaching, blocking and switching stacks. */
#include <errno.h>

#include "api/api.h"
#include "gc/mutator.h"
#include "gc/stop.h"

int gcuffd_thread_attach(void) { return gu_thread_attach(); }
int gcuffd_thread_detach(void) { return gu_thread_detach(); }
int gcuffd_blocking_enter(void) { return gu_blocking_enter(); }
int gcuffd_blocking_leave(void) { return gu_blocking_leave(); }
int gcuffd_thread_stop_by(enum gcuffd_stop_by how) { return how <= GCUFFD_STOP_BY_SAFEPOINT ? gu_stop_by(how) : -EINVAL; }
void gcuffd_safepoint_obey(void) { gu_stop_obey(); }
int gcuffd_stop_signal(void) { return gu_stop_signal(); }
int gcuffd_stop_signal_set(int sig) { return gu_stop_set_signal(sig); }

/* Its pages may be out, and it would be an object's memory. */
static bool is_heaps(uintptr_t low, uintptr_t high)
{
	struct gu_thread *t = gu_enter();
	bool found = gu_heaps_find(low) || gu_heaps_find(high - 1);
	gu_leave(t);
	return found;
}

int gcuffd_stack_register(void *low, size_t length, struct gcuffd_stack **stack)
{
	uintptr_t at = (uintptr_t)low;
	if (!low || !length || at + length < at || is_heaps(at, at + length))
		return -EINVAL;
	return gu_stack_register(at, at + length, stack);
}

int gcuffd_stack_unregister(struct gcuffd_stack *stack) { return gu_stack_unregister(stack); }
int gcuffd_stack_switch(struct gcuffd_stack *to) { return gu_stack_switch(to); }
int gcuffd_stack_set_pointer(struct gcuffd_stack *stack, void *sp) { return gu_stack_set_pointer(stack, (uintptr_t)sp); }
