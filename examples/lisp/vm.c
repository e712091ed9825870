/* SPDX-License-Identifier: MIT */
/*
 * vm.c - runs instructions. A frame is a piece of the stack:
 *
 *   fp[-2]  where to go on in the caller, whose instruction before that says how far below fp its frame is, and where the value goes
 *   fp[-1]  the procedure, a closure
 *   fp[0]   parameters, variables, what is being computed
 *
 * No word of it says where in memory the stack is: so frames can be moved. A continuation is frames that were copied out to the heap, and who takes one leaves
 * the stack empty but for its own frame: the lowest frame returns into what was copied (BOTTOM), which is brought back a piece at a time. A stack that is full
 * is emptied in the same way. So call/cc costs what was called since the last one, and recursion is as deep as there is memory.
 */
#include <stdio.h>

#include "lisp.h"
#include "ops.h"

#define PIECE 2048 /* words that are brought back at once, and a frame more */
#define SLACK 32   /* words above the limit: for calls that an instruction makes by itself */
#define TRACE_MOST 12

#define UNLIKELY(x) __builtin_expect(!!(x), 0)
#define LIKELY(x) __builtin_expect(!!(x), 1)

static const void *dispatch[OPS]; /* where instructions are done; written when a primitive is redefined */

static uint64_t *bottom(void) { return &world->bottom->insn[1]; }

/* ---- continuations ---- */

static struct continuation *make_continuation(const struct vm *vm, struct frames *frames, size_t used, uint64_t *pc)
{
	struct continuation *k = mem_words(sizeof(*k));

	*k = (struct continuation){HEADER(T_CONTINUATION, 0), vm->below, pc, frames, used, vm->winders, vm->handlers, vm->parameters};
	return k;
}

/* All frames below that of f, which is about to be entered, go to the heap, and f to where they were. */
static obj *empty_stack(struct vm *vm, obj *f, unsigned n)
{
	size_t used = (size_t)(f - 2 - vm->stack);

	if (!used)
		return f;
	struct frames *frames = mem_words(sizeof(*frames) + used * sizeof(obj));
	frames->header = HEADER(T_FRAMES, used);
	memcpy(frames->at, vm->stack, used * sizeof(obj));
	vm->below = make_continuation(vm, frames, used, (uint64_t *)f[-2]);
	vm->stack[0] = (obj)bottom();
	memmove(&vm->stack[1], f - 1, (n + 1) * sizeof(obj));
	memset(&vm->stack[n + 2], 0, (size_t)(f + n - &vm->stack[n + 2]) * sizeof(obj)); /* nothing that was there stays alive for it */
	return vm->stack + 2;
}

/* Brings the topmost frames back of what is below, on to the empty stack: where to go on, or NULL if nothing is below. */
static uint64_t *go_below(struct vm *vm, obj value, obj **fp)
{
	struct continuation *k = vm->below;

	while (k && !k->used)
		k = k->next;
	if (!k) {
		vm->below = NULL;
		return NULL;
	}
	const obj *at = k->frames->at;
	size_t from = k->used - INSN_A(k->pc[-1]);
	while (from && k->used - from < PIECE)
		from -= INSN_A(((uint64_t *)at[from])[-1]);
	memcpy(vm->stack, at + from, (k->used - from) * sizeof(obj));
	vm->below = k->next;
	if (from)
		vm->below = make_continuation(vm, k->frames, from, (uint64_t *)at[from]);
	vm->stack[0] = (obj)bottom();
	*fp = vm->stack + (k->used - from) + 2 - INSN_A(k->pc[-1]);
	(*fp)[INSN_C(k->pc[-1])] = value;
	return k->pc;
}

/* ---- calls that an instruction makes by itself ---- */

/* Where such a call comes back to: code of its own, in which what follows is done. */
static uint64_t *make_stub(unsigned away, unsigned value, uint64_t insn, const uint64_t *then, const uint64_t *otherwise)
{
	struct code *c = mem_words(sizeof(*c) + 4 * sizeof(uint64_t));

	c->header = HEADER(T_CODE, 4);
	c->name = FALSE;
	c->insn[0] = INSN(OP_NOP, away, 0, value);
	c->insn[1] = insn;
	c->insn[2] = (uint64_t)then;
	c->insn[3] = (uint64_t)otherwise;
	return &c->insn[1];
}

static unsigned frame_of(const obj *fp) { return closure_of(fp[-1])->code->frame; }

/* A call of the primitive that insn would have been: its frame and its number of arguments. */
static obj *call_instead(obj *fp, uint64_t insn, const uint64_t *pc, unsigned *n)
{
	const struct op_entry *e = &op_table[INSN_OP(insn)];
	unsigned away = frame_of(fp) + 2, spare = frame_of(fp) - 1, value = INSN_A(insn);
	uint64_t then = INSN(OP_RESUME, 0, 0, 0);
	const uint64_t *otherwise = NULL;
	obj *f = fp + away;

	*n = e->operands == O_AB || e->operands == O_TEST1 ? 1 : e->operands == O_STORE3 ? 3 : 2;
	if (e->operands >= O_STORE2) {
		value = spare;
		f[0] = fp[INSN_A(insn)];
		f[1] = e->operands == O_TESTI ? fixnum(INSN_SB(insn)) : e->operands == O_TESTK ? *pc : fp[INSN_B(insn)];
		f[2] = e->operands == O_STORE3 ? fp[INSN_C(insn)] : 0;
	} else {
		f[0] = fp[INSN_B(insn)];
		f[1] = e->operands == O_ABI ? fixnum(INSN_SC(insn)) : *n > 1 ? fp[INSN_C(insn)] : 0;
	}
	if (e->operands >= O_TEST1) {
		then = INSN(OP_RESUME_TEST, spare, 0, 0);
		otherwise = pc + INSN_SC(insn);
		pc += e->operands == O_TESTK;
	}
	f[-1] = symbol_of(symbol(e->primitive))->value;
	f[-2] = (obj)make_stub(away, value, then, pc, otherwise);
	return f;
}

static obj trace_of(const struct vm *vm, const obj *fp)
{
	obj names = NIL;

	for (unsigned n = 0; n < TRACE_MOST && fp > vm->stack; n++) {
		unsigned away = INSN_A(((uint64_t *)fp[-2])[-1]);

		if (is_type(fp[-1], T_CLOSURE) && closure_of(fp[-1])->code->name != FALSE)
			names = cons(closure_of(fp[-1])->code->name, names);
		if (!away)
			break;
		fp -= away;
	}
	return list_reverse(names);
}

/* ---- arguments ---- */

static void wrong_number(obj procedure, unsigned n)
{
	char text[64];
	obj name = FALSE;

	if (is_type(procedure, T_CLOSURE))
		name = closure_of(procedure)->code->name;
	snprintf(text, sizeof(text), "wrong number of arguments: %u", n);
	fail(is_symbol(name) ? string_of(symbol_of(name)->name)->at : NULL, text, is_symbol(name) ? UNBOUND : procedure);
}

/* What a closure's code says of them becomes so: false if it can't. */
static bool arrange(const struct code *c, obj *f, unsigned n)
{
	obj rest = NIL;

	unsigned required = c->arity & ~REST;

	if (!(c->arity & REST) || n < required)
		return false;
	while (n > required)
		rest = cons(f[--n], rest);
	f[n] = rest;
	return true;
}

/* The list's elements on to the stack; -1: they don't fit, or it is no list. */
static int64_t spread(const struct vm *vm, obj *f, obj list)
{
	int64_t n = list_length(list);

	if (n < 0 || n > vm->limit - f) {
		fail("apply", n < 0 ? "not a list" : "too many arguments", n < 0 ? list : fixnum(n));
		return -1;
	}
	for (int64_t i = 0; i < n; i++, list = cdr(list))
		f[i] = car(list);
	return n;
}

static obj call_primitive(struct vm *vm, obj procedure, unsigned n, obj *args)
{
	const struct primitive_entry *e = primitives[fixnum_value(((struct primitive *)procedure)->index)];

	if (LIKELY((int)n >= e->least && (e->most < 0 || (int)n <= e->most)))
		return e->fn(vm, n, args);
	char text[64];
	snprintf(text, sizeof(text), "wrong number of arguments: %u", n);
	return fail(e->name, text, UNBOUND);
}

static obj define(obj name, obj value, bool is_new)
{
	struct symbol *s = symbol_of(name);

	if (!is_new && s->value == UNBOUND)
		return fail("set!", "not defined", name);
	if (UNLIKELY(s->op != fixnum(0)))
		primitive_redefined(s);
	s->value = value;
	return UNSPECIFIED;
}

static obj not_pair(const char *who, obj x) { return fail(who, "not a pair", x); }

static obj bad_index(const char *who, obj x, obj index, bool is_right)
{
	return is_right ? fail(who, "no such index", index) : fail(who, "a wrong type", x);
}

/* ---- the loop ---- */

#define A INSN_A(i)
#define B INSN_B(i)
#define C INSN_C(i)
#define NEXT do { i = *pc++; goto *dispatch[INSN_OP(i)]; } while (0)
#define TEST(condition) do { if (!(condition)) pc += INSN_SC(i); NEXT; } while (0)
#define BOTH_FIXNUMS(x, y) LIKELY((x) & (y) & 1)
/* An expression that may be FAILED, to a register. */
#define CHECKED(value) do { v = (value); if (UNLIKELY(v == FAILED)) goto failed; fp[A] = v; NEXT; } while (0)

#define ARITHMETIC(name, x_expr, y_expr, builtin, slow) \
	name: { \
		obj x = x_expr, y = y_expr; \
		int64_t r; \
		if (BOTH_FIXNUMS(x, y) && LIKELY(!builtin((int64_t)x, (int64_t)(y - 1), &r))) { \
			fp[A] = (obj)r; \
			NEXT; \
		} \
		CHECKED(slow(x, y)); \
	}

#define COMPARE(name, y_expr, op, who) \
	name: { \
		obj x = fp[A], y = y_expr; \
		int order; \
		if (BOTH_FIXNUMS(x, y)) \
			TEST((int64_t)x op (int64_t)y); \
		if (UNLIKELY(number_compare(who, x, y, &order) == FAILED)) \
			goto failed; \
		TEST(order != 2 && order op 0); \
	}

#define PAIR_PART(name, first, then, who) \
	name: { \
		obj x = fp[B]; \
		if (LIKELY(is_pair(x))) { \
			obj y = first(x); \
			if (LIKELY(is_pair(y))) { \
				fp[A] = then(y); \
				NEXT; \
			} \
		} \
		not_pair(who, x); \
		goto failed; \
	}

static bool is_index(obj index, obj x) { return is_fixnum(index) && (uint64_t)fixnum_value(index) < length_of(x); }

/* Each instruction is to have a jump of its own to the next, which the processor learns to predict. */
#if defined(__GNUC__) && !defined(__clang__)
#define OWN_JUMPS __attribute__((optimize("no-crossjumping", "no-gcse")))
#else
#define OWN_JUMPS
#endif

/* Runs a closure until it returns. vm NULL: finds out where instructions are done. */
OWN_JUMPS obj vm_run(struct vm *vm, obj closure, obj argument)
{
#define X(name, primitive, operands) [OP_##name] = &&name,
	static const void *const places[OPS] = {[OP_NONE] = &&NOP, OPERATIONS(X)};
#undef X
	uint64_t *pc, i;
	obj *fp, *f, v;
	unsigned n;

	if (!vm) {
		memcpy(dispatch, places, sizeof(dispatch));
		return FALSE;
	}
	f = vm->stack + 2;
	f[-2] = (obj)bottom();
	f[-1] = closure;
	f[0] = argument;
	vm->below = NULL;
	n = argument != UNBOUND;
	goto apply;

	NOP:
		NEXT;
	MOVE:
		fp[A] = fp[B];
		NEXT;
	CONSTANT:
		fp[A] = *pc++;
		NEXT;
	GLOBAL:
		v = symbol_of(*pc++)->value;
		if (UNLIKELY(v == UNBOUND)) {
			fail(NULL, "not defined", pc[-1]);
			goto failed;
		}
		fp[A] = v;
		NEXT;
	SET_GLOBAL:
	DEFINE:
		if (UNLIKELY(define(*pc++, fp[A], INSN_OP(i) == OP_DEFINE) == FAILED))
			goto failed;
		NEXT;
	FREE:
		fp[A] = closure_of(fp[-1])->free[B];
		NEXT;
	SELF:
		fp[A] = fp[-1];
		NEXT;
	BOX: {
		struct box *box = mem_words(sizeof(*box));

		*box = (struct box){HEADER(T_BOX, 0), fp[A]};
		fp[A] = (obj)box;
		NEXT;
	}
	UNBOX:
		fp[A] = ((struct box *)fp[B])->value;
		NEXT;
	SET_BOX:
		((struct box *)fp[A])->value = fp[B];
		NEXT;
	CLOSURE: {
		struct code *code = (struct code *)*pc++;
		struct closure *c = mem_words(sizeof(*c) + code->nfree * sizeof(obj));

		c->header = HEADER(T_CLOSURE, code->nfree);
		c->code = code;
		fp[A] = (obj)c;
		NEXT;
	}
	CAPTURE:
		closure_of(fp[A])->free[C] = fp[B];
		NEXT;
	JUMP:
		pc += INSN_SC(i);
		NEXT;
	JUMP_FALSE:
		TEST(fp[A] != FALSE);

	/* ---- calls ---- */
	CALL:
		f = fp + A;
		n = B;
		f[-2] = (obj)pc;
		goto apply;
	CALL_GLOBAL:
		f = fp + A;
		n = B;
		f[-1] = symbol_of(*pc)->value;
		f[-2] = (obj)(pc + 2);
		goto apply;
	TAIL_CALL: {
		const obj *from = fp + A;

		f = fp;
		n = B;
		f[-1] = from[-1];
		for (unsigned k = 0; k < n; k++)
			f[k] = from[k];
		goto apply;
	}
	apply: /* f[-1] with the n arguments from f on; f[-2] is set */
		v = f[-1];
		if (LIKELY(is_type(v, T_CLOSURE))) {
			struct code *c = closure_of(v)->code;

			if (UNLIKELY(f + c->frame > vm->limit - SLACK)) {
				f = empty_stack(vm, f, n);
				if (f + c->frame > vm->limit - SLACK) {
					fail(NULL, "too many variables for this stack", v);
					goto failed_call;
				}
			}
			if (UNLIKELY(c->arity != n) && !arrange(c, f, n)) {
				wrong_number(v, n);
				goto failed_call;
			}
			fp = f;
			pc = c->insn;
			NEXT;
		}
		if (LIKELY(is_type(v, T_PRIMITIVE))) {
			v = call_primitive(vm, v, n, f);
			if (UNLIKELY((v | (FAILED ^ REQUEST)) == REQUEST))
				goto unusual;
			goto return_value;
		}
		if (is_type(v, T_CONTINUATION)) {
			vm->request = REQUEST_THROW;
			vm->procedure = v;
			vm->argument = n == 1 ? f[0] : make_vector(T_VALUES, n, 0);
			if (n != 1)
				memcpy(vector_of(vm->argument)->at, f, n * sizeof(obj));
			goto throw;
		}
		if (v == UNBOUND)
			fail(NULL, "not defined", INSN_OP(((uint64_t *)f[-2])[-1]) == OP_NOP ? ((uint64_t *)f[-2])[-2] : FALSE);
		else
			fail(NULL, "not a procedure", v);
		goto failed_call;

	RETURN:
		v = fp[A];
		f = fp;
	return_value: /* v, of the call whose frame f is, or would have been */
		pc = (uint64_t *)f[-2];
		i = pc[-1];
		fp = f - A;
		fp[C] = v;
		NEXT;
	BOTTOM:
		v = fp[0];
		pc = go_below(vm, v, &fp);
		if (!pc)
			return v;
		NEXT;

	/* ---- what is not usual ---- */
	unusual: /* a primitive gave FAILED or REQUEST */
		if (v == FAILED)
			goto failed_call;
		if (vm->request == REQUEST_ABORT)
			return FAILED;
		if (vm->request == REQUEST_APPLY) {
			int64_t count;

			if (vm->limit - f < SLACK + 256)
				f = empty_stack(vm, f, 0);
			count = spread(vm, f, vm->argument);
			if (count < 0)
				goto failed_call;
			n = (unsigned)count;
			f[-1] = vm->procedure;
			goto apply;
		}
		if (vm->request == REQUEST_CALL_CC) {
			f = empty_stack(vm, f, 0);
			f[-1] = vm->procedure;
			f[0] = (obj)make_continuation(vm, NULL, 0, NULL);
			n = 1;
			goto apply;
		}
	throw:
		if (((struct continuation *)vm->procedure)->winders != vm->winders) {
			f[-1] = symbol_of(world->rewind)->value;
			f[0] = vm->procedure;
			f[1] = vm->argument;
			n = 2;
			goto apply;
		}
		vm->below = (struct continuation *)vm->procedure;
		vm->handlers = vm->below->handlers;
		vm->parameters = vm->below->parameters;
		fp = vm->stack + 2;
		fp[0] = vm->argument;
		vm->stack[0] = (obj)bottom();
		pc = bottom();
		NEXT;
	failed: /* an instruction */
		vm->trace = trace_of(vm, fp);
		f = fp + frame_of(fp) + 2;
		f[-2] = (obj)make_stub(frame_of(fp) + 2, frame_of(fp) - 1, INSN(OP_STOP, 0, 0, 0), NULL, NULL);
		goto raise;
	failed_call: /* a call; its frame becomes that of the handler's */
		f[-1] = FALSE;
		vm->trace = trace_of(vm, f);
	raise:
		f[-1] = symbol_of(world->raise)->value;
		f[0] = vm->condition;
		n = 1;
		if (f[-1] == UNBOUND)
			return FAILED;
		goto apply;
	STOP:
		fail(NULL, "a handler has returned from an error", UNBOUND);
		goto failed;
	REDEFINED:
		f = call_instead(fp, i, pc, &n);
		goto apply;
	RESUME:
		pc = (uint64_t *)*pc;
		NEXT;
	RESUME_TEST:
		pc = (uint64_t *)pc[fp[A] == FALSE];
		NEXT;

	/* ---- primitives ---- */
	ARITHMETIC(ADD, fp[B], fp[C], __builtin_saddl_overflow, number_add)
	ARITHMETIC(ADD_I, fp[B], fixnum(INSN_SC(i)), __builtin_saddl_overflow, number_add)
	ARITHMETIC(SUB, fp[B], fp[C], __builtin_ssubl_overflow, number_sub)
	ARITHMETIC(SUB_I, fp[B], fixnum(INSN_SC(i)), __builtin_ssubl_overflow, number_sub)
	MUL: {
		obj x = fp[B], y = fp[C];
		int64_t r;

		if (BOTH_FIXNUMS(x, y) && LIKELY(!__builtin_smull_overflow((int64_t)(x - 1), fixnum_value(y), &r))) {
			fp[A] = (obj)r + 1;
			NEXT;
		}
		CHECKED(number_mul(x, y));
	}
	QUOTIENT: {
		obj x = fp[B], y = fp[C];

		if (BOTH_FIXNUMS(x, y) && LIKELY((int64_t)y > 1)) {
			fp[A] = fixnum(fixnum_value(x) / fixnum_value(y));
			NEXT;
		}
		CHECKED(number_quotient(x, y));
	}
	REMAINDER: {
		obj x = fp[B], y = fp[C];

		if (BOTH_FIXNUMS(x, y) && LIKELY((int64_t)y > 1)) {
			fp[A] = fixnum(fixnum_value(x) % fixnum_value(y));
			NEXT;
		}
		CHECKED(number_remainder(x, y));
	}
	MODULO: {
		obj x = fp[B], y = fp[C];

		if (BOTH_FIXNUMS(x, y) && LIKELY((int64_t)y > 1 && (int64_t)x > 0)) {
			fp[A] = fixnum(fixnum_value(x) % fixnum_value(y));
			NEXT;
		}
		CHECKED(number_modulo(x, y));
	}
	CONS:
		fp[A] = cons(fp[B], fp[C]);
		NEXT;
	CAR:
		v = fp[B];
		if (UNLIKELY(!is_pair(v))) {
			not_pair("car", v);
			goto failed;
		}
		fp[A] = car(v);
		NEXT;
	CDR:
		v = fp[B];
		if (UNLIKELY(!is_pair(v))) {
			not_pair("cdr", v);
			goto failed;
		}
		fp[A] = cdr(v);
		NEXT;
	PAIR_PART(CADR, cdr, car, "cadr")
	PAIR_PART(CDDR, cdr, cdr, "cddr")
	PAIR_PART(CAAR, car, car, "caar")
	PAIR_PART(CDAR, car, cdr, "cdar")
	CADDR: {
		obj x = fp[B];

		if (LIKELY(is_pair(x) && is_pair(cdr(x)) && is_pair(cdr(cdr(x))))) {
			fp[A] = car(cdr(cdr(x)));
			NEXT;
		}
		not_pair("caddr", x);
		goto failed;
	}
	SET_CAR:
	SET_CDR:
		v = fp[A];
		if (UNLIKELY(!is_pair(v))) {
			not_pair(INSN_OP(i) == OP_SET_CAR ? "set-car!" : "set-cdr!", v);
			goto failed;
		}
		*(INSN_OP(i) == OP_SET_CAR ? &pair_of(v)->car : &pair_of(v)->cdr) = fp[B];
		NEXT;
	VECTOR_REF: {
		obj x = fp[B], at = fp[C];

		if (LIKELY(is_vector(x) && is_index(at, x))) {
			fp[A] = vector_of(x)->at[fixnum_value(at)];
			NEXT;
		}
		bad_index("vector-ref", x, at, is_vector(x));
		goto failed;
	}
	VECTOR_SET: {
		obj x = fp[A], at = fp[B];

		if (LIKELY(is_vector(x) && is_index(at, x))) {
			vector_of(x)->at[fixnum_value(at)] = fp[C];
			NEXT;
		}
		bad_index("vector-set!", x, at, is_vector(x));
		goto failed;
	}
	VECTOR_LENGTH:
		v = fp[B];
		CHECKED(LIKELY(is_vector(v)) ? fixnum((int64_t)length_of(v)) : bad_index("vector-length", v, v, false));
	STRING_REF: {
		obj x = fp[B], at = fp[C];

		if (LIKELY(is_string(x) && is_index(at, x))) {
			fp[A] = character((unsigned char)string_of(x)->at[fixnum_value(at)]);
			NEXT;
		}
		bad_index("string-ref", x, at, is_string(x));
		goto failed;
	}
	STRING_LENGTH:
		v = fp[B];
		CHECKED(LIKELY(is_string(v)) ? fixnum((int64_t)length_of(v)) : bad_index("string-length", v, v, false));
	RECORD_REF: {
		obj x = fp[B], at = fp[C];

		if (LIKELY(is_type(x, T_RECORD) && is_index(at, x))) {
			fp[A] = vector_of(x)->at[fixnum_value(at)];
			NEXT;
		}
		bad_index("%record-ref", x, at, is_type(x, T_RECORD));
		goto failed;
	}
	RECORD_SET: {
		obj x = fp[A], at = fp[B];

		if (LIKELY(is_type(x, T_RECORD) && is_index(at, x))) {
			vector_of(x)->at[fixnum_value(at)] = fp[C];
			NEXT;
		}
		bad_index("%record-set!", x, at, is_type(x, T_RECORD));
		goto failed;
	}
	NOT:
		fp[A] = boolean(fp[B] == FALSE);
		NEXT;
	IF_NULL:
		TEST(fp[A] == NIL);
	IF_PAIR:
		TEST(is_pair(fp[A]));
	IF_SYMBOL:
		TEST(is_symbol(fp[A]));
	IF_STRING:
		TEST(is_string(fp[A]));
	IF_VECTOR:
		TEST(is_vector(fp[A]));
	IF_CHAR:
		TEST(is_char(fp[A]));
	IF_EOF:
		TEST(fp[A] == END_OF_FILE);
	IF_ZERO: {
		obj x = fp[A];
		int order;

		if (LIKELY(is_fixnum(x)))
			TEST(x == fixnum(0));
		if (UNLIKELY(number_compare("zero?", x, fixnum(0), &order) == FAILED))
			goto failed;
		TEST(!order);
	}
	IF_RECORD_OF:
		v = fp[A];
		TEST(is_type(v, T_RECORD) && vector_of(v)->at[0] == fp[B]);
	IF_EQ:
		TEST(fp[A] == fp[B]);
	IF_EQ_K:
		if (fp[A] == *pc)
			pc++;
		else
			pc += INSN_SC(i);
		NEXT;
	IF_EQV:
		TEST(fp[A] == fp[B] || eqv(fp[A], fp[B]));
	IF_CHAR_EQ:
		if (UNLIKELY(!is_char(fp[A]) || !is_char(fp[B]))) {
			fail("char=?", "not a character", is_char(fp[A]) ? fp[B] : fp[A]);
			goto failed;
		}
		TEST(fp[A] == fp[B]);
	COMPARE(IF_EQUAL, fp[B], ==, "=")
	COMPARE(IF_EQUAL_I, fixnum(INSN_SB(i)), ==, "=")
	COMPARE(IF_LESS, fp[B], <, "<")
	COMPARE(IF_LESS_I, fixnum(INSN_SB(i)), <, "<")
	COMPARE(IF_MORE, fp[B], >, ">")
	COMPARE(IF_MORE_I, fixnum(INSN_SB(i)), >, ">")
	COMPARE(IF_LESS_EQ, fp[B], <=, "<=")
	COMPARE(IF_LESS_EQ_I, fixnum(INSN_SB(i)), <=, "<=")
	COMPARE(IF_MORE_EQ, fp[B], >=, ">=")
	COMPARE(IF_MORE_EQ_I, fixnum(INSN_SB(i)), >=, ">=")
}

/* ---- primitives' names ---- */

/* Code that has the instructions does the call from now on; other code has calls already. */
static void do_without(obj name)
{
	int first = operation_of(name);

	for (int op = first; first && op < OPS && op_table[op].primitive && !strcmp(op_table[op].primitive, op_table[first].primitive); op++)
		__atomic_store_n(&dispatch[op], dispatch[OP_REDEFINED], __ATOMIC_RELAXED);
}

void primitive_redefined(struct symbol *s)
{
	do_without((obj)s);
	s->op = fixnum(0);
	world->redefined = cons((obj)s, world->redefined);
}

static struct code *make_bottom(uint64_t insn)
{
	struct code *c = mem_words(sizeof(*c) + 2 * sizeof(uint64_t));

	c->header = HEADER(T_CODE, 2);
	c->name = FALSE;
	c->insn[0] = INSN(OP_NOP, 0, 0, 0);
	c->insn[1] = insn;
	return c;
}

/* For a new world, or one that was loaded. */
void vm_init(void)
{
	vm_run(NULL, FALSE, UNBOUND);
	for (obj x = world->redefined; is_pair(x); x = cdr(x))
		do_without(car(x));
	if (!world->bottom)
		world->bottom = make_bottom(INSN(OP_BOTTOM, 0, 0, 0));
}
