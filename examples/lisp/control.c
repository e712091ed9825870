/* SPDX-License-Identifier: MIT */
/* control.c - primitives on procedures, continuations, conditions and the interpreter itself; and the list of all primitives. */
#include <errno.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "lisp.h"

#define FN(name) static obj name(struct vm *vm __attribute__((unused)), unsigned n __attribute__((unused)), obj *args __attribute__((unused)))

/* ---- what only the virtual machine does ---- */

static obj ask(struct vm *vm, enum request what, obj procedure, obj argument)
{
	vm->request = what;
	vm->procedure = procedure;
	vm->argument = argument;
	return REQUEST;
}

FN(apply)
{
	obj list = args[n - 1];

	for (unsigned i = n - 1; i-- > 1;)
		list = cons(args[i], list);
	return ask(vm, REQUEST_APPLY, args[0], list);
}

FN(call_cc) { return ask(vm, REQUEST_CALL_CC, args[0], NIL); }

/* Once the winders are right. */
FN(throw) { return is_type(args[0], T_CONTINUATION) ? ask(vm, REQUEST_THROW, args[0], args[1]) : fail("%throw", "not a continuation", args[0]); }

FN(values)
{
	if (n == 1)
		return args[0];
	obj v = make_vector(T_VALUES, n, 0);
	memcpy(vector_of(v)->at, args, n * sizeof(obj));
	return v;
}

FN(apply_values)
{
	obj list = NIL;

	if (!is_type(args[1], T_VALUES))
		return ask(vm, REQUEST_APPLY, args[0], cons(args[1], NIL));
	for (size_t i = length_of(args[1]); i--;)
		list = cons(vector_of(args[1])->at[i], list);
	return ask(vm, REQUEST_APPLY, args[0], list);
}

FN(continuation_winders)
{
	return is_type(args[0], T_CONTINUATION) ? ((struct continuation *)args[0])->winders : fail("%continuation-winders", "not a continuation", args[0]);
}

/* ---- conditions ---- */

FN(error)
{
	obj c = make_vector(T_RECORD, 4, FALSE), irritants = NIL;

	for (unsigned i = n; i-- > 1;)
		irritants = cons(args[i], irritants);
	vector_of(c)->at[0] = world->condition_type;
	vector_of(c)->at[2] = args[0];
	vector_of(c)->at[3] = irritants;
	vm->condition = c;
	return FAILED;
}

FN(raise)
{
	vm->condition = args[0];
	return FAILED;
}

FN(abort_)
{
	vm->condition = args[0];
	return ask(vm, REQUEST_ABORT, FALSE, FALSE);
}

FN(condition_type) { return world->condition_type; }

#define STATE(name, field) \
	FN(name) { return vm->field; } \
	FN(set_##name) \
	{ \
		vm->field = args[0]; \
		return UNSPECIFIED; \
	}
STATE(winders, winders)
STATE(handlers, handlers)
STATE(parameters, parameters)

/* ---- programs ---- */

FN(eval)
{
	obj closure = compile_toplevel(args[0]);

	return closure == FAILED ? FAILED : ask(vm, REQUEST_APPLY, closure, NIL);
}

FN(load)
{
	obj x, value = UNSPECIFIED;

	if (!is_type(args[0], T_PORT))
		return fail("%compile-next", "not a port", args[0]);
	x = read_datum((struct port *)args[0]);
	if (x == FAILED || x == END_OF_FILE)
		return x;
	value = compile_toplevel(x);
	return value;
}

FN(exit_)
{
	obj x = n ? args[0] : TRUE;

	port_flush((struct port *)world->output);
	port_flush((struct port *)world->errors);
	_exit(is_fixnum(x) ? (int)fixnum_value(x) : x == FALSE);
}

FN(now)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return flonum((double)t.tv_sec + (double)t.tv_nsec * 1e-9);
}

FN(collect)
{
	mem_collect();
	mem_finalizers_run();
	return UNSPECIFIED;
}

FN(memory_statistics)
{
	struct mem_stats s;

	mem_stats(&s);
	return list(3, cons(symbol("cycles"), fixnum((int64_t)s.cycles)), cons(symbol("live"), fixnum((int64_t)s.live)),
		    cons(symbol("heap"), fixnum((int64_t)s.heap)));
}

FN(defined_p) { return is_symbol(args[0]) ? boolean(symbol_of(args[0])->value != UNBOUND) : fail("defined?", "not a symbol", args[0]); }

const struct primitive_entry control_primitives[] = {
	{"apply", apply, 2, -1}, {"call-with-current-continuation", call_cc, 1, 1}, {"call/cc", call_cc, 1, 1}, {"%throw", throw, 2, 2},
	{"values", values, 0, -1}, {"%apply-values", apply_values, 2, 2}, {"%continuation-winders", continuation_winders, 1, 1}, {"error", error, 1, -1},
	{"raise", raise, 1, 1}, {"%abort", abort_, 1, 1}, {"%condition-type", condition_type, 0, 0}, {"%winders", winders, 0, 0},
	{"%set-winders!", set_winders, 1, 1}, {"%handlers", handlers, 0, 0}, {"%set-handlers!", set_handlers, 1, 1}, {"%parameters", parameters, 0, 0},
	{"%set-parameters!", set_parameters, 1, 1}, {"eval", eval, 1, 2}, {"%compile-next", load, 1, 1}, {"exit", exit_, 0, 1}, {"now", now, 0, 0},
	{"gc", collect, 0, 0}, {"memory-statistics", memory_statistics, 0, 0}, {"defined?", defined_p, 1, 1}, {NULL, NULL, 0, 0},
};

/* ---- the list ---- */

static const struct primitive_entry *const all[] = {
	number_primitives, list_primitives, string_primitives, table_primitives, port_primitives, control_primitives, thread_primitives, image_primitives,
};
#define GROUPS (sizeof(all) / sizeof(all[0]))

const struct primitive_entry **primitives;

static size_t count_all(void)
{
	size_t n = 0;

	for (size_t g = 0; g < GROUPS; g++)
		for (const struct primitive_entry *e = all[g]; e->name; e++)
			n++;
	return n;
}

static const struct primitive_entry *find_primitive(const char *name)
{
	for (size_t g = 0; g < GROUPS; g++)
		for (const struct primitive_entry *e = all[g]; e->name; e++)
			if (!strcmp(e->name, name))
				return e;
	return NULL;
}

static void define_primitive(const struct primitive_entry *e, size_t index)
{
	obj name = symbol(e->name);
	struct primitive *p = mem_words(sizeof(*p));

	*p = (struct primitive){HEADER(T_PRIMITIVE, 0), fixnum((int64_t)index)};
	vector_of(world->primitives)->at[index] = symbol_of(name)->name;
	primitives[index] = e;
	symbol_of(name)->value = (obj)p;
	symbol_of(name)->op = fixnum(operation_of(name));
}

void primitives_define(void)
{
	size_t index = 0;

	primitives = calloc(count_all(), sizeof(*primitives));
	if (!primitives)
		abort();
	world->primitives = make_vector(T_VECTOR, count_all(), FALSE);
	for (size_t g = 0; g < GROUPS; g++)
		for (const struct primitive_entry *e = all[g]; e->name; e++)
			define_primitive(e, index++);
}

/* The image's list of names says what its numbers mean in this program. */
int primitives_bind(void)
{
	size_t n = length_of(world->primitives);

	primitives = calloc(n, sizeof(*primitives));
	for (size_t i = 0; primitives && i < n; i++) {
		primitives[i] = find_primitive(string_of(vector_of(world->primitives)->at[i])->at);
		if (!primitives[i])
			return -ENOENT;
	}
	return primitives ? 0 : -ENOMEM;
}
