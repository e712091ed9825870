/* SPDX-License-Identifier: MIT */
/* stacks.c - see stacks.h. Mutators; the collector in a stop. */
#include "gc/stacks.h"

#include <errno.h>
#include <string.h>

#include "base/meta.h"
#include "gc/mutator.h"
#include "sys/caps.h"
#include "sys/os.h"

#define LEAST 256u

static struct gcuffd_stack *stacks; /* guard: threads lock */
static struct gcuffd_stack *spare;  /* guard: threads lock */

struct gcuffd_stack *gu_stacks_first(void) { return stacks; }

/* ---- registering ---- */

static bool reads(uintptr_t at)
{
	uintptr_t word;
	return gu_os->process_vm_readv(gu_os->gettid(), &word, (const void *)at, sizeof(word)) == sizeof(word);
}

static struct gcuffd_stack *take_spare(void)
{
	bool locked = gu_threads_lock_once();
	struct gcuffd_stack *s = spare;
	if (s)
		spare = s->next;
	gu_threads_unlock_once(locked);
	return s;
}

static struct gcuffd_stack *make_entry(void)
{
	struct gu_thread *t = gu_enter();
	struct gcuffd_stack *s = gu_meta_alloc(sizeof(*s));
	gu_leave(t);
	return s;
}

static void link_stack(struct gcuffd_stack *s)
{
	bool locked = gu_threads_lock_once();
	s->prev = NULL;
	s->next = stacks;
	if (stacks)
		stacks->prev = s;
	stacks = s;
	gu_threads_unlock_once(locked);
}

int gu_stack_register(uintptr_t low, uintptr_t high, struct gcuffd_stack **out)
{
	low = gu_align_up(low, 16);
	high = gu_align_down(high, 16);
	if (!low || high < low || high - low < LEAST)
		return -EINVAL;
	if (gu_caps()->has_process_vm_readv && (!reads(low) || !reads(high - sizeof(uintptr_t))))
		return -EFAULT;
	struct gcuffd_stack *s = take_spare();
	if (!s)
		s = make_entry();
	if (!s)
		return -ENOMEM;
	memset(s->saved, 0, sizeof(s->saved));
	gu_store_relaxed(&s->sp, 0);
	s->low = low;
	gu_store_relaxed(&s->high, high);
	link_stack(s);
	*out = s;
	return 0;
}

static void unlink_locked(struct gcuffd_stack *s)
{
	*(s->prev ? &s->prev->next : &stacks) = s->next;
	if (s->next)
		s->next->prev = s->prev;
	s->low = 0;
	gu_store_relaxed(&s->high, 0);
	s->next = spare;
	spare = s;
}

static int unregister_locked(struct gcuffd_stack *s)
{
	if (!s->high)
		return -EINVAL;
	for (const struct gu_thread *t = gu_threads_first(); t; t = t->next)
		if (gu_load_relaxed(&t->stack) == s)
			return -EBUSY;
	unlink_locked(s);
	return 0;
}

int gu_stack_unregister(struct gcuffd_stack *s)
{
	bool locked = gu_threads_lock_once();
	int err = unregister_locked(s);
	gu_threads_unlock_once(locked);
	return err;
}

/* ---- switching ---- */

static bool has(const struct gcuffd_stack *s, uintptr_t at) { return s && at >= s->low && at < s->high; }

struct gcuffd_stack *gu_stack_under(const struct gu_thread *t, uintptr_t at)
{
	return has(t->stack, at) ? t->stack : has(t->left, at) ? t->left : NULL;
}

struct words {
	uintptr_t word[GU_ARRAY_LEN(((struct gcuffd_stack *)0)->saved)];
} __attribute__((may_alias));

/* Callee-saved registers are at the end of this frame, or of one above it. */
static __attribute__((noinline)) GU_READS_STACKS void leave(struct gcuffd_stack *s)
{
	uintptr_t here = (uintptr_t)__builtin_frame_address(0) - 64;
	__builtin_unwind_init();
	if (gu_likely(!s->high || s->high - here >= sizeof(struct words)))
		*(struct words *)s->saved = *(const struct words *)here;
	else
		for (size_t i = 0; i < (s->high - here) / 8; i++)
			s->saved[i] = ((const volatile uintptr_t *)here)[i];
	gu_store_relaxed(&s->sp, here + 64);
}

/* .inv.stack.switch: both are named before either is left. A stop comes by a signal, so what matters is this thread's own order. */
int gu_stack_switch(struct gcuffd_stack *to)
{
	struct gu_thread *t = gu_self;
	if (!t || (to && !gu_load_relaxed(&to->high)))
		return -EINVAL;
	if (gu_load_relaxed(&t->blocking) != GU_RUNNING)
		return -EBUSY;
	struct gcuffd_stack *from = gu_stack_under(t, (uintptr_t)__builtin_frame_address(0));
	if (gu_unlikely(t->stack != from && t->stack)) /* it is not where it said it would go: nobody knows how it left there, if it was there */
		gu_store_relaxed(&t->stack->sp, 0);
	leave(from ? from : &t->own);
	gu_fence_signal();
	gu_store_relaxed(&t->left, from);
	gu_fence_signal();
	gu_store_relaxed(&t->stack, to);
	gu_fence_signal();
	return 0;
}

/* The new pointer first: a stop in between reads too much. */
int gu_stack_set_pointer(struct gcuffd_stack *s, uintptr_t sp)
{
	if (!gu_load_relaxed(&s->high) || (sp && (sp < s->low || sp > s->high)))
		return -EINVAL;
	if (gu_self && gu_self->stack == s)
		return -EBUSY;
	gu_store_release(&s->sp, sp);
	gu_fence_signal();
	for (size_t i = 0; i < GU_ARRAY_LEN(s->saved); i++)
		gu_store_relaxed(&s->saved[i], 0);
	return 0;
}

/* ---- in a stop ---- */

/* On its own stack: it has named no other, has not left it yet, or has come back. */
static bool is_on_own(const struct gu_thread *t)
{
	bool named = !t->stack || !t->left;
	return named && !t->alt_hi && t->stack_hi && gu_thread_owns(t, t->sp);
}

static void place(const struct gu_thread *t)
{
	struct gcuffd_stack *s = gu_stack_under(t, t->sp);
	if (s) {
		s->at = t->sp;
	} else if (!is_on_own(t)) { /* on a signal's, or on one that nobody named */
		if (t->stack)
			t->stack->whole = true;
		if (t->left)
			t->left->whole = true;
	}
}

void gu_stacks_place(void)
{
	for (struct gcuffd_stack *s = stacks; s; s = s->next) {
		s->at = 0;
		s->whole = false;
	}
	for (const struct gu_thread *t = gu_threads_first(); t; t = t->next)
		if (t->sp && (t->stack || t->left))
			place(t);
}

void gu_stack_lost_locked(struct gu_thread *t)
{
	if (t->stack)
		gu_store_relaxed(&t->stack->sp, 0);
	t->stack = t->left = NULL;
}
