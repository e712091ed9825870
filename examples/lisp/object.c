/* SPDX-License-Identifier: MIT */
/* object.c - making objects, the table of symbols, and what the whole of the interpreter shares. */
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "lisp.h"

#define DEPTH_MOST 100000u /* of equal? in cars */

struct world *world;
__thread struct vm *current;
static pthread_mutex_t symbols_lock = PTHREAD_MUTEX_INITIALIZER;

obj flonum(double value)
{
	double *p = mem_flonum();

	*p = value;
	return (obj)p + TAG_FLONUM;
}

/* text may be NULL: to be filled in. A byte 0 follows. */
obj make_string(const char *text, size_t length)
{
	struct string *s = mem_atomic(sizeof(*s) + length + 1);

	s->header = HEADER(T_STRING, length);
	if (text)
		memcpy(s->at, text, length);
	s->at[length] = 0;
	return (obj)s;
}

obj string_from(const char *text) { return make_string(text, strlen(text)); }

obj make_vector(enum type type, size_t length, obj fill)
{
	struct vector *v = mem_words(sizeof(*v) + length * sizeof(obj));

	v->header = HEADER(type, length);
	for (size_t i = 0; fill && i < length; i++)
		v->at[i] = fill;
	return (obj)v;
}

obj list_reverse(obj x)
{
	obj done = NIL;

	while (is_pair(x)) {
		obj rest = cdr(x);

		pair_of(x)->cdr = done;
		done = x;
		x = rest;
	}
	return done;
}

obj list(unsigned n, ...)
{
	va_list args;
	obj done = NIL;

	va_start(args, n);
	for (unsigned i = 0; i < n; i++)
		done = cons(va_arg(args, obj), done);
	va_end(args);
	return list_reverse(done);
}

int64_t list_length(obj x)
{
	int64_t n = 0;

	for (obj slow = x; is_pair(x); n++) {
		x = cdr(x);
		if (n & 1)
			slow = cdr(slow);
		if (x == slow)
			return -1;
	}
	return x == NIL ? n : -1;
}

/* ---- sameness ---- */

bool eqv(obj a, obj b)
{
	return a == b || (is_flonum(a) && is_flonum(b) && !memcmp((void *)(a - TAG_FLONUM), (void *)(b - TAG_FLONUM), sizeof(double)));
}

static bool equal_bytes(obj a, obj b)
{
	size_t n = length_of(a);

	return n == length_of(b) && !memcmp(string_of(a)->at, string_of(b)->at, n);
}

static bool equal_vectors(obj a, obj b, unsigned depth)
{
	if (length_of(a) != length_of(b))
		return false;
	for (size_t i = 0; i < length_of(a); i++)
		if (!equal(vector_of(a)->at[i], vector_of(b)->at[i], depth + 1))
			return false;
	return true;
}

/* Deeper than the C stack allows counts as different: no condition can be raised from here. */
bool equal(obj a, obj b, unsigned depth)
{
	if (depth > DEPTH_MOST || c_stack_is_low())
		return false;
	while (is_pair(a) && is_pair(b)) {
		if (a == b)
			return true;
		if (!equal(car(a), car(b), depth + 1))
			return false;
		a = cdr(a);
		b = cdr(b);
	}
	if (eqv(a, b))
		return true;
	enum type type = type_of(a);
	if (type != type_of(b))
		return false;
	if (type == T_STRING || type == T_BYTES)
		return equal_bytes(a, b);
	return type == T_VECTOR && equal_vectors(a, b, depth);
}

bool c_stack_is_low(void)
{
	char here;

	return current && (int64_t)(uintptr_t)&here < fixnum_value(current->c_limit);
}

/* ---- symbols ---- */

uint64_t hash_bytes(const char *text, size_t length)
{
	uint64_t h = 0xcbf29ce484222325u;

	for (size_t i = 0; i < length; i++)
		h = (h ^ (unsigned char)text[i]) * 0x100000001b3u;
	return h ^ h >> 29;
}

static obj *chain_of(obj table, obj name)
{
	return &vector_of(table)->at[hash_bytes(string_of(name)->at, length_of(name)) & (length_of(table) - 1)];
}

static void grow_symbols(void)
{
	obj more = make_vector(T_VECTOR, length_of(world->symbols) * 2, NIL);

	for (size_t i = 0; i < length_of(world->symbols); i++)
		for (obj at = vector_of(world->symbols)->at[i], rest; at != NIL; at = rest) {
			obj *chain = chain_of(more, symbol_of(car(at))->name);

			rest = cdr(at);
			pair_of(at)->cdr = *chain;
			*chain = at;
		}
	world->symbols = more;
}

static obj add_symbol(const char *text, size_t length)
{
	struct symbol *s = mem_words(sizeof(*s));

	*s = (struct symbol){HEADER(T_SYMBOL, 0), UNBOUND, make_string(text, length), fixnum(0)};
	if (fixnum_value(world->nsymbols) > (int64_t)length_of(world->symbols))
		grow_symbols();
	obj *chain = chain_of(world->symbols, s->name);
	*chain = cons((obj)s, *chain);
	world->nsymbols += 2;
	return (obj)s;
}

obj intern(const char *text, size_t length)
{
	pthread_mutex_lock(&symbols_lock);
	obj at = vector_of(world->symbols)->at[hash_bytes(text, length) & (length_of(world->symbols) - 1)];
	while (at != NIL) {
		obj name = symbol_of(car(at))->name;

		if (length_of(name) == length && !memcmp(string_of(name)->at, text, length))
			break;
		at = cdr(at);
	}
	obj found = at == NIL ? add_symbol(text, length) : car(at);
	pthread_mutex_unlock(&symbols_lock);
	return found;
}

obj symbol(const char *text) { return intern(text, strlen(text)); }

/* ---- conditions ---- */

/* A record, as (raise (%make-condition type who message irritants)) would make. */
obj fail(const char *who, const char *message, obj irritant)
{
	obj c = make_vector(T_RECORD, 4, FALSE);

	vector_of(c)->at[0] = world->condition_type;
	vector_of(c)->at[1] = who ? symbol(who) : FALSE;
	vector_of(c)->at[2] = string_from(message);
	vector_of(c)->at[3] = irritant == UNBOUND ? NIL : cons(irritant, NIL);
	current->condition = c;
	return FAILED;
}

/* ---- the beginning ---- */

void *vm_create(size_t words)
{
	struct vm *vm = mem_words(sizeof(*vm));
	obj stack = make_vector(T_STACK, words, 0);

	vm->header = HEADER(T_STACK, 0);
	vm->c_limit = fixnum(0);
	vm->stack_object = stack;
	vm->stack = vector_of(stack)->at;
	vm->limit = vm->stack + words;
	vm->winders = vm->handlers = vm->parameters = vm->trace = NIL;
	vm->condition = vm->thread = FALSE;
	if (current) {
		vm->parameters = current->parameters;
		vm->input = current->input;
		vm->output = current->output;
		vm->thread = current->thread;
	}
	return vm;
}

static void name_well_known(void)
{
#define FIELD(field, text) world->field = symbol(text);
	WELL_KNOWN(FIELD)
#undef FIELD
}

void world_create(void)
{
	world = mem_words(sizeof(*world));
	world->header = HEADER(T_NONE, 0);
	world->symbols = make_vector(T_VECTOR, 1024, NIL);
	world->nsymbols = fixnum(0);
	world->start = FALSE;
	world->epoch = fixnum(0);
	world->threads = world->redefined = NIL;
	name_well_known();
	world->condition_type = make_vector(T_VECTOR, 2, 0);
	vector_of(world->condition_type)->at[0] = symbol("condition");
	vector_of(world->condition_type)->at[1] = list(3, symbol("who"), symbol("message"), symbol("irritants"));
}
