/* SPDX-License-Identifier: MIT */
/*
 * coroutine.h - stacks to switch between, registered or not: a switch made by hand, which pushes what calls preserve, and the C
 * library's, which keeps it elsewhere. By hand on x86-64 only: elsewhere both are the C library's.
 */
#ifndef GU_TESTS_COROUTINE_H
#define GU_TESTS_COROUTINE_H

#include <sys/mman.h>
#include <ucontext.h>

#include "core.h"

#define CO_BYTES ((size_t)256 << 10) /* scrub() takes 64 KiB */

enum co_how { CO_BY_HAND, CO_UCONTEXT };

/* A place to go on from. */
struct co_place {
	void *sp;
	ucontext_t context;
};

struct co {
	struct co_place inside, outside;
	struct gcuffd_stack *stack;
	char *low;
	enum co_how how;
	void (*fn)(struct co *);
	void *data;
	bool ended;
};

#define CO_ROOM ((sizeof(struct co) + 4095) / 4096 * 4096)

#if defined(__x86_64__)
void co_jump(void **from, void *to);
__asm__(".text\n.type co_jump,@function\nco_jump:\n"
	"push %rbp\npush %rbx\npush %r12\npush %r13\npush %r14\npush %r15\n"
	"mov %rsp,(%rdi)\nmov %rsi,%rsp\n"
	"pop %r15\npop %r14\npop %r13\npop %r12\npop %rbx\npop %rbp\nret\n"
	".size co_jump,.-co_jump\n");
#endif

static inline bool co_is_by_hand(const struct co *c)
{
#if defined(__x86_64__)
	return c->how == CO_BY_HAND;
#else
	return (void)c, false;
#endif
}

/* Another thread may come back from it: nothing of the thread's is used behind it. */
static inline void co_go(const struct co *c, struct co_place *from, struct co_place *to)
{
#if defined(__x86_64__)
	if (co_is_by_hand(c)) {
		co_jump(&from->sp, to->sp);
		return;
	}
#endif
	swapcontext(&from->context, &to->context);
}

/* From outside, into it; from inside, out of it, to the thread's own stack. */
static inline void co_enter(struct co *c)
{
	must_ok(gcuffd_stack_switch(c->stack));
	co_go(c, &c->outside, &c->inside);
}

static inline void co_leave(struct co *c)
{
	must_ok(gcuffd_stack_switch(NULL));
	co_go(c, &c->inside, &c->outside);
}

static __thread struct co *co_first;

static void co_main(void)
{
	struct co *c = co_first;
	c->fn(c);
	c->ended = true;
	co_leave(c);
	abort();
}

/* What the collector does not see: mapped, not allocated, and no data segment. */
TEST_UNUSED static struct co *co_make(enum co_how how, void (*fn)(struct co *), void *data)
{
	size_t room = CO_ROOM;
	char *p = mmap(NULL, room + CO_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	must(p != MAP_FAILED, "errno %d", errno);
	struct co *c = (void *)p;
	c->low = p + room;
	c->how = how;
	c->fn = fn;
	c->data = data;
	void **top = (void **)(void *)(c->low + CO_BYTES) - 1; /* behind the jump sp is as behind a call */
	*--top = (void *)(uintptr_t)co_main;
	c->inside.sp = top - 6;
	must_ok(getcontext(&c->inside.context));
	c->inside.context.uc_stack.ss_sp = c->low;
	c->inside.context.uc_stack.ss_size = CO_BYTES;
	if (!co_is_by_hand(c))
		makecontext(&c->inside.context, co_main, 0);
	must_ok(gcuffd_stack_register(c->low, CO_BYTES, &c->stack));
	return c;
}

TEST_UNUSED static void co_start(struct co *c)
{
	co_first = c;
	co_enter(c);
}

TEST_UNUSED static void co_free(struct co *c)
{
	if (c->stack)
		must_ok(gcuffd_stack_unregister(c->stack));
	munmap(c, CO_ROOM + CO_BYTES);
}

#endif
