/* SPDX-License-Identifier: MIT */
/*
 * threads.c - threads, what they wait with, and coroutines.
 *
 * A thread attaches itself to the heap, and that is all: a collection stops it wherever it is, and finds what it has on its stacks. What the C library keeps of
 * a mutex lies in an object, which does not move. Neither threads nor coroutines outlive their process in an image.
 *
 * A coroutine runs on a C stack and a struct vm of its own, and is left in the middle of a primitive (yield). All that it needs then is in its struct vm, so its
 * C stack, which would be a root as long as it is registered and would keep the coroutine alive that it is of, is told to hold nothing meanwhile
 * (mem_stack_forget()). So one that nobody can resume any more dies, and its stack is unmapped.
 */
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/mman.h>
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif

#include "lisp.h"

#define FN(name) static obj name(struct vm *vm __attribute__((unused)), unsigned n __attribute__((unused)), obj *args __attribute__((unused)))

#define VM_WORDS ((size_t)64 << 10)
#define COROUTINE_WORDS ((size_t)4 << 10)
#define COROUTINE_STACK ((size_t)64 << 10)
#define GUARD ((size_t)4 << 10)
#define C_SLACK ((size_t)16 << 10) /* of a C stack: for what does not look at c_limit */
#define THREAD_STACK ((size_t)1 << 20)

/* ---- threads ---- */

struct thread {
	obj header;
	obj procedure;
	obj result;     /* FAILED: nobody caught condition */
	obj condition;
	obj done;
	struct vm *vm;
	obj parameters, input, output; /* as whoever started it had them */
};

struct starting { /* no object: world->threads keeps those that it names alive */
	struct thread *thread;
};

static pthread_mutex_t threads_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t thread_ended = PTHREAD_COND_INITIALIZER;

static void forget_thread(const struct thread *t)
{
	obj kept = NIL;

	for (obj at = world->threads; at != NIL; at = cdr(at))
		if (car(at) != (obj)t)
			kept = cons(car(at), kept);
	world->threads = kept;
}

static void *run_thread(void *arg)
{
	struct thread *t = ((struct starting *)arg)->thread;

	mem_thread_attach();
	free(arg);
	current = vm_create(VM_WORDS);
	current->c_limit = fixnum((int64_t)((uintptr_t)__builtin_frame_address(0) - THREAD_STACK + 2 * C_SLACK));
	t->vm = current;
	current->parameters = t->parameters;
	current->input = t->input;
	current->output = t->output;
	current->thread = (obj)t;
	obj result = vm_run(current, t->procedure, UNBOUND);
	pthread_mutex_lock(&threads_lock);
	t->condition = current->condition;
	t->result = result;
	t->done = TRUE;
	t->vm = NULL;
	forget_thread(t);
	pthread_cond_broadcast(&thread_ended);
	pthread_mutex_unlock(&threads_lock);
	current = NULL;
	mem_thread_detach();
	return NULL;
}

FN(thread_start)
{
	struct thread *t = mem_words(sizeof(*t));
	struct starting *s = malloc(sizeof(*s));
	pthread_attr_t attr;
	pthread_t id;

	*t = (struct thread){HEADER(T_THREAD, 0), args[0], UNSPECIFIED, FALSE, FALSE, NULL, vm->parameters, vm->input, vm->output};
	if (!s)
		return fail("thread-start", strerror(ENOMEM), UNBOUND);
	s->thread = t;
	pthread_mutex_lock(&threads_lock);
	world->threads = cons((obj)t, world->threads);
	pthread_mutex_unlock(&threads_lock);
	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, THREAD_STACK);
	pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
	int err = pthread_create(&id, &attr, run_thread, s);
	pthread_attr_destroy(&attr);
	if (!err)
		return (obj)t;
	free(s);
	pthread_mutex_lock(&threads_lock);
	forget_thread(t);
	pthread_mutex_unlock(&threads_lock);
	return fail("thread-start", strerror(err), UNBOUND);
}

FN(thread_join)
{
	struct thread *t = (struct thread *)args[0];

	if (!is_type(args[0], T_THREAD))
		return fail("thread-join!", "not a thread", args[0]);
	pthread_mutex_lock(&threads_lock);
	while (t->done == FALSE)
		pthread_cond_wait(&thread_ended, &threads_lock);
	pthread_mutex_unlock(&threads_lock);
	vm->condition = t->condition;
	return t->result; /* FAILED: raised again here */
}

FN(current_thread) { return vm->thread; }

/* ---- what they wait with ---- */

struct mutex { /* atomic */
	obj header;
	pthread_mutex_t mutex;
};

struct condition_variable { /* atomic */
	obj header;
	pthread_cond_t condition;
};

FN(make_mutex)
{
	struct mutex *m = mem_atomic(sizeof(*m));
	pthread_mutexattr_t attr;

	m->header = HEADER(T_MUTEX, 0);
	pthread_mutexattr_init(&attr);
	pthread_mutexattr_settype(&attr, PTHREAD_MUTEX_ERRORCHECK);
	pthread_mutex_init(&m->mutex, &attr);
	pthread_mutexattr_destroy(&attr);
	return (obj)m;
}

static obj with_mutex(const char *who, obj x, int (*what)(pthread_mutex_t *))
{
	if (!is_type(x, T_MUTEX))
		return fail(who, "not a mutex", x);
	int err = what(&((struct mutex *)x)->mutex);
	return err ? fail(who, strerror(err), x) : UNSPECIFIED;
}
FN(mutex_lock) { return with_mutex("mutex-lock!", args[0], pthread_mutex_lock); }
FN(mutex_unlock) { return with_mutex("mutex-unlock!", args[0], pthread_mutex_unlock); }

FN(make_condition_variable)
{
	struct condition_variable *c = mem_atomic(sizeof(*c));

	c->header = HEADER(T_CONDITION_VARIABLE, 0);
	pthread_cond_init(&c->condition, NULL);
	return (obj)c;
}

FN(condition_wait) /* condition variable, mutex */
{
	if (!is_type(args[0], T_CONDITION_VARIABLE) || !is_type(args[1], T_MUTEX))
		return fail("condition-variable-wait!", "not a condition variable and a mutex", args[0]);
	int err = pthread_cond_wait(&((struct condition_variable *)args[0])->condition, &((struct mutex *)args[1])->mutex);
	return err ? fail("condition-variable-wait!", strerror(err), args[1]) : UNSPECIFIED;
}

static obj wake(const char *who, obj x, int (*what)(pthread_cond_t *))
{
	if (!is_type(x, T_CONDITION_VARIABLE))
		return fail(who, "not a condition variable", x);
	what(&((struct condition_variable *)x)->condition);
	return UNSPECIFIED;
}
FN(condition_signal) { return wake("condition-variable-signal!", args[0], pthread_cond_signal); }
FN(condition_broadcast) { return wake("condition-variable-broadcast!", args[0], pthread_cond_broadcast); }

/* ---- coroutines ---- */

enum state { CO_NEW, CO_LEFT, CO_RUNNING, CO_ENDED };

struct co_stack { /* no object */
	char *low; /* the guard page is below it */
	struct mem_stack *stack;
	void *inside, *outside; /* stack pointers */
	struct coroutine *starts;
};

struct coroutine {
	obj header;
	struct vm *vm;
	struct vm *resumer;  /* while it runs */
	obj procedure;
	obj value;           /* that is handed over */
	obj stack;           /* a T_BYTES with its struct co_stack's address, which is no object's */
	obj state;           /* a fixnum */
	obj epoch;           /* a coroutine of another process can't go on */
};

struct co_handle { /* atomic: the collector does not see what it points to, nor does an image */
	obj header;
	struct co_stack *stack;
};

#if defined(__x86_64__)
/* Leaves the stack that it runs on, with what calls preserve on it, and goes on where the other was left. */
void co_jump(void **from, void *to);
__asm__(".text\n.type co_jump,@function\nco_jump:\n"
	"push %rbp\npush %rbx\npush %r12\npush %r13\npush %r14\npush %r15\n"
	"mov %rsp,(%rdi)\nmov %rsi,%rsp\n"
	"pop %r15\npop %r14\npop %r13\npop %r12\npop %rbx\npop %rbp\nret\n"
	".size co_jump,.-co_jump\n");
#define CO_SAVED 6
#elif defined(__aarch64__)
void co_jump(void **from, void *to);
__asm__(".text\n.type co_jump,%function\nco_jump:\n"
	"sub sp, sp, #160\n"
	"stp x19, x20, [sp]\nstp x21, x22, [sp, #16]\nstp x23, x24, [sp, #32]\nstp x25, x26, [sp, #48]\nstp x27, x28, [sp, #64]\n"
	"stp x29, x30, [sp, #80]\nstp d8, d9, [sp, #96]\nstp d10, d11, [sp, #112]\nstp d12, d13, [sp, #128]\nstp d14, d15, [sp, #144]\n"
	"mov x9, sp\nstr x9, [x0]\nmov sp, x1\n"
	"ldp x19, x20, [sp]\nldp x21, x22, [sp, #16]\nldp x23, x24, [sp, #32]\nldp x25, x26, [sp, #48]\nldp x27, x28, [sp, #64]\n"
	"ldp x29, x30, [sp, #80]\nldp d8, d9, [sp, #96]\nldp d10, d11, [sp, #112]\nldp d12, d13, [sp, #128]\nldp d14, d15, [sp, #144]\n"
	"add sp, sp, #160\nret\n.size co_jump,.-co_jump\n");
#define CO_SAVED 20
#else
#error "co_jump() has to be written for this machine"
#endif

static struct co_stack *stack_of(const struct coroutine *co) { return ((struct co_handle *)co->stack)->stack; }

static void free_stack(void *coroutine, void *data)
{
	struct co_stack *s = data;

	(void)coroutine;
	mem_stack_unregister(s->stack);
#ifdef __SANITIZE_ADDRESS__
	__asan_unpoison_memory_region(s->low, COROUTINE_STACK); /* frames that never returned; whoever gets these addresses next may not know of it */
#endif
	munmap(s->low - GUARD, GUARD + COROUTINE_STACK);
	free(s);
}

static __thread struct co_stack *co_first;

/* The stack that the thread is on once it leaves this coroutine. */
static struct mem_stack *outer_stack(const struct vm *resumer) { return resumer->coroutine ? stack_of(resumer->coroutine)->stack : NULL; }

static void leave(struct coroutine *co, obj value, enum state state)
{
	struct co_stack *s = stack_of(co);

	co->value = value;
	co->state = fixnum(state);
	mem_stack_switch(outer_stack(co->resumer));
	co_jump(&s->inside, s->outside);
}

static void run_coroutine(void)
{
	struct coroutine *co = co_first->starts;
	obj result = vm_run(co->vm, co->procedure, co->value);

	leave(co, result, CO_ENDED);
	abort();
}

static struct co_stack *make_stack(void)
{
	struct co_stack *s = calloc(1, sizeof(*s));
	char *p = mmap(NULL, GUARD + COROUTINE_STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (!s || p == MAP_FAILED || mprotect(p, GUARD, PROT_NONE)) {
		free(s);
		return NULL;
	}
	s->low = p + GUARD;
	void **top = (void **)(void *)(s->low + COROUTINE_STACK) - 1;
#if defined(__x86_64__)
	*--top = (void *)(uintptr_t)run_coroutine; /* where co_jump() returns to */
	s->inside = top - CO_SAVED;
#else
	s->inside = top - 1 - CO_SAVED;
	((void **)s->inside)[11] = (void *)(uintptr_t)run_coroutine; /* x30 */
#endif
	s->stack = mem_stack_register(s->low, COROUTINE_STACK);
	mem_stack_forget(s->stack, s->low + COROUTINE_STACK);
	return s;
}

FN(make_coroutine)
{
	struct coroutine *co = mem_words(sizeof(*co));
	struct co_handle *h = mem_atomic(sizeof(*h));

	mem_finalizers_run(); /* of those that were dropped */
	*h = (struct co_handle){HEADER(T_BYTES, sizeof(*h) - sizeof(obj)), make_stack()};
	if (!h->stack)
		return fail("make-coroutine", strerror(ENOMEM), UNBOUND);
	mem_finalizer_set(co, free_stack, h->stack);
	*co = (struct coroutine){HEADER(T_COROUTINE, 0), vm_create(COROUTINE_WORDS), NULL, args[0], UNSPECIFIED, (obj)h, fixnum(CO_NEW), world->epoch};
	co->vm->coroutine = co;
	co->vm->c_limit = fixnum((int64_t)(uintptr_t)(h->stack->low + C_SLACK));
	return (obj)co;
}

FN(coroutine_resume) /* coroutine, value */
{
	struct coroutine *co = (struct coroutine *)args[0];

	if (!is_type(args[0], T_COROUTINE) || co->epoch != world->epoch)
		return fail("coroutine-resume", "not a coroutine of this process", args[0]);
	if (co->state != fixnum(CO_NEW) && co->state != fixnum(CO_LEFT))
		return fail("coroutine-resume", co->state == fixnum(CO_ENDED) ? "it has ended" : "it is running", args[0]);
	struct co_stack *s = stack_of(co);
	co->value = n > 1 ? args[1] : UNSPECIFIED;
	if (co->state == fixnum(CO_NEW))
		co->value = n > 1 ? args[1] : UNBOUND;
	co->state = fixnum(CO_RUNNING);
	co->resumer = vm;
	s->starts = co;
	co_first = s;
	current = co->vm;
	mem_stack_switch(s->stack);
	co_jump(&s->outside, s->inside);
	current = vm;
	co->resumer = NULL;
	s->starts = NULL;
	mem_stack_forget(s->stack, s->low + COROUTINE_STACK);
	if (co->state != fixnum(CO_ENDED))
		return co->value;
	mem_finalizer_clear(co);
	free_stack(co, s);
	vm->condition = co->vm->condition;
	return co->value;
}

FN(coroutine_yield)
{
	struct coroutine *co = vm->coroutine;

	if (!co)
		return fail("coroutine-yield", "not in a coroutine", UNBOUND);
	leave(co, n ? args[0] : UNSPECIFIED, CO_LEFT);
	return co->value;
}

FN(coroutine_ended_p)
{
	return is_type(args[0], T_COROUTINE) ? boolean(((struct coroutine *)args[0])->state == fixnum(CO_ENDED)) : fail("coroutine-ended?", "not a coroutine", args[0]);
}

const struct primitive_entry thread_primitives[] = {
	{"thread-start", thread_start, 1, 1}, {"thread-join!", thread_join, 1, 1}, {"current-thread", current_thread, 0, 0}, {"make-mutex", make_mutex, 0, 0},
	{"mutex-lock!", mutex_lock, 1, 1}, {"mutex-unlock!", mutex_unlock, 1, 1}, {"make-condition-variable", make_condition_variable, 0, 0},
	{"condition-variable-wait!", condition_wait, 2, 2}, {"condition-variable-signal!", condition_signal, 1, 1},
	{"condition-variable-broadcast!", condition_broadcast, 1, 1}, {"make-coroutine", make_coroutine, 1, 1}, {"coroutine-resume", coroutine_resume, 1, 2},
	{"coroutine-yield", coroutine_yield, 0, 1}, {"coroutine-ended?", coroutine_ended_p, 1, 1}, {NULL, NULL, 0, 0},
};
