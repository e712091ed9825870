/* SPDX-License-Identifier: MIT */
/*
 * compile.c - from nodes to instructions. Which lambdas are loops is decided first (find_labels), then which variables a closure has to take along (resolve),
 * then code is made, lambda by lambda. One at a time, under a lock.
 *
 * A variable has a register; what is mutated is in a box, so that a copied frame or closure shares it. A lambda that is only called, and always where nothing
 * is left to be done but what its binding's value is for, is no closure: its parameters are registers of the frame around it, and a call is a jump.
 */
#include <pthread.h>
#include <stdlib.h>

#include "node.h"
#include "ops.h"

#define REGISTERS_MOST 60000u
#define TAIL (-1)   /* the value is the procedure's */
#define EFFECT (-2) /* the value is not needed */

const struct op_entry op_table[OPS] = {
#define X(name, primitive, operands) [OP_##name] = {#name, primitive, operands},
	OPERATIONS(X)
#undef X
};

/* ---- loops ---- */

/* Whether a call in this tail position can be a jump into v's lambda, in the same frame and to the same end. */
static bool reaches(const struct tail *at, const struct variable *v)
{
	while (at && at != v->tail) {
		if (!at->lambda)
			at = at->up;
		else
			at = at->lambda->bound && at->lambda->bound->label ? at->lambda->bound->tail : NULL;
	}
	return at;
}

static void find_labels(const struct unit *unit)
{
	bool changed = true;

	for (struct variable *v = unit->fixed; v; v = v->next)
		v->label = !v->escapes && !v->mutated && !v->lambda->rest;
	while (changed) {
		changed = false;
		for (struct node *call = unit->calls; call; call = call->next) {
			struct variable *v = call->a->variable;

			if (v->label && (call->n != v->lambda->n || !reaches(call->tail, v))) {
				v->label = false;
				changed = true;
			}
		}
	}
}

/* ---- free variables ---- */

static void add_free(struct lambda *l, struct variable *v)
{
	for (uint32_t i = 0; i < l->nfree; i++)
		if (l->free[i] == v)
			return;
	if (l->nfree == l->room) {
		struct variable **more = mem_words((l->room * 2 + 4) * sizeof(*more));

		if (l->nfree)
			memcpy(more, l->free, l->nfree * sizeof(*more));
		l->free = more;
		l->room = l->room * 2 + 4;
	}
	l->free[l->nfree++] = v;
}

static void note_use(struct variable *v, struct lambda *l)
{
	for (; l && l != v->home && l->bound != v; l = l->outer)
		add_free(l, v);
}

static void resolve(struct node *n, struct lambda *l);

static void resolve_lambda(struct lambda *l, struct lambda *frame)
{
	for (uint32_t i = 0; i < l->n; i++)
		l->parameters[i]->home = frame;
	resolve(l->body, frame);
}

static void resolve_binds(struct node *n, struct lambda *l)
{
	for (uint32_t i = 0; i < n->n; i++)
		n->variables[i]->home = l;
	for (uint32_t i = 0; i < n->n; i++) {
		if (n->variables[i]->label)
			resolve_lambda(n->at[i]->lambda, l);
		else
			resolve(n->at[i], l);
	}
}

static void resolve(struct node *n, struct lambda *l)
{
	for (; n; n = n->kind == N_IF ? n->c : n->kind == N_CALL && n->a->kind == N_LOCAL && n->a->variable->label ? NULL : n->a) {
		switch (n->kind) {
		case N_LOCAL:
		case N_SET_LOCAL:
			note_use(n->variable, l);
			break;
		case N_IF:
			resolve(n->a, l);
			resolve(n->b, l);
			break;
		case N_LAMBDA:
			n->lambda->outer = l;
			resolve_lambda(n->lambda, n->lambda);
			break;
		case N_LET:
		case N_FIX:
			resolve_binds(n, l);
			break;
		default:
			for (uint32_t i = 0; i < n->n; i++)
				resolve(n->at[i], l);
		}
	}
}

/* ---- emitting ---- */

struct gen {
	struct lambda *lambda;
	uint64_t *code; /* literals are in it: an object */
	size_t n, room;
	uint32_t next, most; /* registers */
	bool too_large;
};

/* Jumps to a place that is yet to come: each one's c is the way to the one before. */
struct jumps {
	int64_t last; /* -1: none */
};

static size_t put(struct gen *g, uint64_t word)
{
	if (g->n == g->room) {
		uint64_t *more = mem_words((g->room * 2 + 32) * sizeof(*more));

		if (g->n)
			memcpy(more, g->code, g->n * sizeof(*more));
		g->code = more;
		g->room = g->room * 2 + 32;
	}
	g->code[g->n] = word;
	return g->n++;
}

static size_t emit(struct gen *g, enum operation op, int64_t a, int64_t b, int64_t c) { return put(g, INSN(op, a, b, c)); }

static uint32_t take(struct gen *g, uint32_t n)
{
	uint32_t first = g->next;

	g->next += n;
	if (g->next > g->most)
		g->most = g->next;
	if (g->next > REGISTERS_MOST)
		g->too_large = true;
	return first;
}

static void set_way(struct gen *g, size_t at, int64_t way)
{
	if (way != (int16_t)way)
		g->too_large = true;
	g->code[at] = (g->code[at] & ~((uint64_t)0xffff << 32)) | (uint64_t)(uint16_t)way << 32;
}

/* The instruction at that place jumps to where land() will be called. */
static void add_jump(struct gen *g, struct jumps *jumps, size_t at)
{
	set_way(g, at, jumps->last < 0 ? 0 : (int64_t)at - jumps->last);
	jumps->last = (int64_t)at;
}

static void land(struct gen *g, struct jumps *jumps)
{
	for (int64_t at = jumps->last, before; at >= 0; at = before) {
		int way = INSN_SC(g->code[at]);

		before = way ? at - way : -1;
		set_way(g, (size_t)at, (int64_t)g->n - at - 1);
		if (g->too_large)
			return;
	}
}

static void jump(struct gen *g, struct jumps *jumps) { add_jump(g, jumps, emit(g, OP_JUMP, 0, 0, 0)); }

/* ---- values ---- */

static void gen(struct gen *g, struct node *n, int64_t to);

static bool in_register(const struct gen *g, const struct node *n)
{
	return n->kind == N_LOCAL && n->variable->home == g->lambda && !n->variable->mutated;
}

/* A register that has the value: the variable's own, or a new one. */
static uint32_t gen_operand(struct gen *g, struct node *n)
{
	if (in_register(g, n))
		return n->variable->place;
	uint32_t r = take(g, 1);
	gen(g, n, r);
	return r;
}

/* The variable's value, or its box, into a register; or the register that it has. */
static uint32_t gen_place(struct gen *g, const struct variable *v, int64_t to)
{
	if (v->home == g->lambda)
		return v->place;
	uint32_t r = to >= 0 ? (uint32_t)to : take(g, 1);
	if (g->lambda->bound == v) {
		emit(g, OP_SELF, r, 0, 0);
		return r;
	}
	uint32_t i = 0;
	while (g->lambda->free[i] != v)
		i++;
	emit(g, OP_FREE, r, i, 0);
	return r;
}

static void deliver(struct gen *g, uint32_t r, int64_t to)
{
	if (to == TAIL)
		emit(g, OP_RETURN, r, 0, 0);
	else if (to >= 0 && (uint32_t)to != r)
		emit(g, OP_MOVE, to, r, 0);
}

/* Where a value that is made has to go: to, or a new register. */
static uint32_t target(struct gen *g, int64_t to) { return to >= 0 ? (uint32_t)to : take(g, 1); }

static void gen_local(struct gen *g, const struct variable *v, int64_t to)
{
	uint32_t r = gen_place(g, v, v->mutated ? -1 : to);

	if (v->mutated) {
		uint32_t value = target(g, to);

		emit(g, OP_UNBOX, value, r, 0);
		r = value;
	}
	deliver(g, r, to);
}

static void gen_literal(struct gen *g, enum operation op, obj value, int64_t to)
{
	uint32_t r = target(g, to);

	emit(g, op, r, 0, 0);
	put(g, value);
	deliver(g, r, to);
}

static obj make_code(struct lambda *l);

static obj constant_closure(obj code)
{
	struct closure *c = mem_words(sizeof(*c));

	c->header = HEADER(T_CLOSURE, 0);
	c->code = (struct code *)code;
	return (obj)c;
}

static void gen_empty_closure(struct gen *g, struct lambda *l, uint32_t r)
{
	obj code = make_code(l);

	if (code == FAILED) {
		g->too_large = true;
		return;
	}
	emit(g, l->nfree ? OP_CLOSURE : OP_CONSTANT, r, 0, 0);
	put(g, l->nfree ? code : constant_closure(code));
}

static void gen_captures(struct gen *g, const struct lambda *l, uint32_t r)
{
	for (uint32_t i = 0; i < l->nfree; i++) {
		uint32_t next = g->next;

		emit(g, OP_CAPTURE, r, gen_place(g, l->free[i], -1), i);
		g->next = next;
	}
}

static void gen_lambda(struct gen *g, struct lambda *l, int64_t to)
{
	uint32_t r = target(g, to);

	if (to == EFFECT)
		return;
	gen_empty_closure(g, l, r);
	gen_captures(g, l, r);
	deliver(g, r, to);
}

static void gen_set_local(struct gen *g, struct node *n)
{
	uint32_t value = gen_operand(g, n->a);

	emit(g, OP_SET_BOX, gen_place(g, n->variable, -1), value, 0);
}

static void gen_let(struct gen *g, struct node *n, int64_t to)
{
	for (uint32_t i = 0; i < n->n; i++) {
		uint32_t r = take(g, 1);

		gen(g, n->at[i], r);
		n->variables[i]->place = r;
		g->next = r + 1;
	}
	for (uint32_t i = 0; i < n->n; i++)
		if (n->variables[i]->mutated)
			emit(g, OP_BOX, n->variables[i]->place, 0, 0);
	gen(g, n->a, to);
}

/* ---- loops ---- */

static bool mentions(const struct node *n, const struct variable *v)
{
	if (!n)
		return false;
	if ((n->kind == N_LOCAL || n->kind == N_SET_LOCAL) && n->variable == v)
		return true;
	if (n->kind == N_LAMBDA && mentions(n->lambda->body, v))
		return true;
	for (uint32_t i = 0; i < n->n; i++)
		if (mentions(n->at[i], v))
			return true;
	return mentions(n->a, v) || mentions(n->b, v) || mentions(n->c, v);
}

/* An argument may go to its parameter's register at once if none of those that follow looks at that. */
static bool goes_at_once(const struct node *call, const struct lambda *l, uint32_t i)
{
	for (uint32_t j = i + 1; j < call->n; j++)
		if (mentions(call->at[j], l->parameters[i]))
			return false;
	return true;
}

static void gen_jump(struct gen *g, struct node *call)
{
	struct lambda *l = call->a->variable->lambda;
	uint32_t *waits = malloc((call->n + 1) * sizeof(*waits)), n = 0;

	if (!waits)
		abort();
	for (uint32_t i = 0; i < call->n; i++) {
		struct variable *p = l->parameters[i];
		uint32_t next = g->next;

		waits[i] = p->place;
		if (call->at[i]->kind == N_LOCAL && call->at[i]->variable == p && !p->mutated)
			continue;
		if (goes_at_once(call, l, i)) {
			gen(g, call->at[i], p->place);
			g->next = next;
		} else {
			waits[i] = take(g, 1);
			gen(g, call->at[i], waits[i]);
			g->next = waits[i] + 1;
			n++;
		}
	}
	for (uint32_t i = 0; i < call->n && n; i++)
		if (waits[i] != l->parameters[i]->place)
			emit(g, OP_MOVE, l->parameters[i]->place, waits[i], 0);
	free(waits);
	size_t at = emit(g, OP_JUMP, 0, 0, 0);
	if (l->label >= 0) {
		set_way(g, at, l->label - (int64_t)at - 1);
		return;
	}
	struct jumps jumps = {l->pending};
	add_jump(g, &jumps, at);
	l->pending = jumps.last;
}

static void gen_label(struct gen *g, struct lambda *l, int64_t to)
{
	struct jumps jumps = {l->pending};

	land(g, &jumps);
	l->label = (int64_t)g->n;
	for (uint32_t i = 0; i < l->n; i++)
		if (l->parameters[i]->mutated)
			emit(g, OP_BOX, l->parameters[i]->place, 0, 0);
	gen(g, l->body, to);
}

/* The labels that have been jumped to and have no place yet; one may lead to another. */
static void gen_labels(struct gen *g, struct node *n, int64_t to, struct jumps *end)
{
	uint32_t next = g->next;

	for (bool more = true; more;) {
		more = false;
		for (uint32_t i = 0; i < n->n; i++) {
			struct lambda *l = n->at[i]->lambda;

			if (!n->variables[i]->label || l->placed || l->pending < 0)
				continue;
			l->placed = more = true;
			if (to != TAIL)
				jump(g, end); /* behind what is before */
			gen_label(g, l, to);
			g->next = next;
		}
	}
}

static void gen_fix(struct gen *g, struct node *n, int64_t to)
{
	struct jumps end = {-1};

	for (uint32_t i = 0; i < n->n; i++) {
		struct lambda *l = n->at[i]->lambda;

		if (n->variables[i]->label)
			for (uint32_t j = 0; j < l->n; j++)
				l->parameters[j]->place = take(g, 1);
		else
			n->variables[i]->place = take(g, 1);
	}
	for (uint32_t i = 0; i < n->n; i++)
		if (!n->variables[i]->label)
			gen_empty_closure(g, n->at[i]->lambda, n->variables[i]->place);
	for (uint32_t i = 0; i < n->n; i++)
		if (!n->variables[i]->label)
			gen_captures(g, n->at[i]->lambda, n->variables[i]->place);
	uint32_t next = g->next;
	gen(g, n->a, to);
	g->next = next;
	gen_labels(g, n, to, &end);
	land(g, &end);
}

/* ---- calls ---- */

static void gen_arguments(struct gen *g, struct node *n, uint32_t base)
{
	for (uint32_t i = 0; i < n->n; i++) {
		g->next = base + i + 1;
		gen(g, n->at[i], base + i);
	}
}

static void gen_call(struct gen *g, struct node *n, int64_t to)
{
	uint32_t base = take(g, n->n + 2) + 2; /* behind a way back and the procedure */
	bool global = n->a->kind == N_GLOBAL && to != TAIL;

	g->next = base;
	if (!global)
		gen(g, n->a, base - 1);
	gen_arguments(g, n, base);
	if (to == TAIL) {
		emit(g, OP_TAIL_CALL, base, n->n, 0);
		return;
	}
	uint32_t value = to >= 0 ? (uint32_t)to : base;
	if (!global) {
		emit(g, OP_CALL, base, n->n, value);
		return;
	}
	emit(g, OP_CALL_GLOBAL, base, n->n, 0);
	put(g, n->a->value);
	emit(g, OP_NOP, base, 0, value);
}

/* ---- primitives ---- */

static bool is_small(const struct node *n)
{
	return n->kind == N_CONSTANT && is_fixnum(n->value) && fixnum_value(n->value) == (int16_t)fixnum_value(n->value);
}

static unsigned operand_count(enum operands o)
{
	return o == O_AB || o == O_TEST1 ? 1 : o == O_STORE3 ? 3 : 2;
}

static bool suits(const struct node *call, enum operands o)
{
	if (call->n != operand_count(o))
		return false;
	if (o == O_ABI || o == O_TESTI)
		return is_small(call->at[1]);
	return o != O_TESTK || (call->at[1]->kind == N_CONSTANT && !is_fixnum(call->at[1]->value));
}

/* The instruction that does the call, or OP_NONE: later ones of a primitive are the special ones. */
static enum operation instruction_for(const struct node *n)
{
	enum operation found = OP_NONE;

	if (n->kind != N_CALL || n->a->kind != N_GLOBAL || symbol_of(n->a->value)->op == fixnum(0))
		return OP_NONE;
	enum operation first = (enum operation)fixnum_value(symbol_of(n->a->value)->op);
	for (enum operation op = first; op < OPS && op_table[op].primitive && !strcmp(op_table[op].primitive, op_table[first].primitive); op++)
		if (suits(n, op_table[op].operands))
			found = op;
	return found;
}

static bool is_test(enum operation op) { return op_table[op].operands >= O_TEST1; }

/* Jumps to no if the test fails. */
static void gen_op_test(struct gen *g, enum operation op, struct node *n, struct jumps *no)
{
	enum operands o = op_table[op].operands;
	uint32_t next = g->next, a = gen_operand(g, n->at[0]);
	int64_t b = o == O_TEST2 ? (int64_t)gen_operand(g, n->at[1]) : o == O_TESTI ? fixnum_value(n->at[1]->value) : 0;
	size_t at = emit(g, op, a, b, 0);

	if (o == O_TESTK)
		put(g, n->at[1]->value);
	add_jump(g, no, at);
	g->next = next;
}

static void gen_op(struct gen *g, enum operation op, struct node *n, int64_t to)
{
	enum operands o = op_table[op].operands;
	uint32_t r = o == O_STORE2 || o == O_STORE3 ? 0 : target(g, to), x[3] = {0};

	for (uint32_t i = 0; i < n->n; i++)
		if (o != O_ABI || i == 0)
			x[i] = gen_operand(g, n->at[i]);
	if (o == O_STORE2 || o == O_STORE3) {
		emit(g, op, x[0], x[1], x[2]);
		if (to != EFFECT)
			gen_literal(g, OP_CONSTANT, UNSPECIFIED, to);
		return;
	}
	emit(g, op, r, x[0], o == O_ABI ? fixnum_value(n->at[1]->value) : (int64_t)x[1]);
	deliver(g, r, to);
}

/* ---- tests ---- */

static bool is_constant(const struct node *n, obj value) { return n->kind == N_CONSTANT && n->value == value; }

/* (let ((t a)) (if t t b)), which is what (or a b) became. */
static bool is_or(const struct node *n)
{
	return n->kind == N_LET && n->n == 1 && n->a->kind == N_IF && n->a->a->kind == N_LOCAL && n->a->b->kind == N_LOCAL &&
	       n->a->a->variable == n->variables[0] && n->a->b->variable == n->variables[0] && n->variables[0]->name == FALSE;
}

static void gen_test(struct gen *g, struct node *n, struct jumps *no);

/* What is true if the first is, or the second. */
static void gen_either(struct gen *g, struct node *first, struct node *then, struct node *second, struct jumps *no)
{
	struct jumps other = {-1}, yes = {-1};

	gen_test(g, first, &other);
	if (then)
		gen_test(g, then, no);
	jump(g, &yes);
	land(g, &other);
	gen_test(g, second, no);
	land(g, &yes);
}

static void gen_test(struct gen *g, struct node *n, struct jumps *no)
{
	uint32_t next = g->next;
	enum operation op = instruction_for(n);

	if (op && is_test(op)) {
		gen_op_test(g, op, n, no);
	} else if (op == OP_NOT) {
		struct jumps yes = {-1};

		gen_test(g, n->at[0], &yes);
		jump(g, no);
		land(g, &yes);
	} else if (n->kind == N_CONSTANT) {
		if (n->value == FALSE)
			jump(g, no);
	} else if (is_or(n)) {
		gen_either(g, n->at[0], NULL, n->a->c, no);
	} else if (n->kind == N_IF && is_constant(n->c, FALSE)) {
		gen_test(g, n->a, no);
		gen_test(g, n->b, no);
	} else if (n->kind == N_IF) {
		gen_either(g, n->a, n->b, n->c, no);
	} else {
		add_jump(g, no, emit(g, OP_JUMP_FALSE, gen_operand(g, n), 0, 0));
	}
	g->next = next;
}

static void gen_if(struct gen *g, struct node *n, int64_t to)
{
	struct jumps no = {-1}, end = {-1};
	uint32_t next = g->next;
	struct node *test = n->a, *then = n->b, *other = n->c;

	while (instruction_for(test) == OP_NOT) {
		struct node *x = then;

		then = other;
		other = x;
		test = test->at[0];
	}
	gen_test(g, test, &no);
	gen(g, then, to);
	g->next = next;
	if (to != TAIL && !(to == EFFECT && other->kind == N_CONSTANT))
		jump(g, &end);
	land(g, &no);
	gen(g, other, to);
	land(g, &end);
}

/* A test's value. */
static void gen_truth(struct gen *g, struct node *n, int64_t to)
{
	struct jumps no = {-1}, end = {-1};

	gen_test(g, n, &no);
	gen_literal(g, OP_CONSTANT, TRUE, to);
	if (to != TAIL)
		jump(g, &end);
	land(g, &no);
	gen_literal(g, OP_CONSTANT, FALSE, to);
	land(g, &end);
}

/* + and * of more than two are calls of two. */
static struct node *fold(struct node *n)
{
	struct node *left = mem_words(sizeof(*left)), *right = mem_words(sizeof(*right));

	if (n->kind != N_CALL || n->n < 3 || n->a->kind != N_GLOBAL ||
	    (n->a->value != symbol("+") && n->a->value != symbol("*")) || symbol_of(n->a->value)->op == fixnum(0))
		return n;
	*left = *right = *n;
	left->n--;
	right->at = mem_words(2 * sizeof(*right->at));
	right->at[0] = fold(left);
	right->at[1] = n->at[n->n - 1];
	right->n = 2;
	return right;
}

/* A procedure's last call of itself, by a name that is bound to nothing else. */
static bool is_self_call(const struct gen *g, const struct node *n, int64_t to)
{
	return to == TAIL && n->a->kind == N_LOCAL && n->a->variable == g->lambda->bound && n->n == g->lambda->n && !g->lambda->rest;
}

static void gen_any_call(struct gen *g, struct node *n, int64_t to)
{
	if (n->a->kind == N_LOCAL && (n->a->variable->label || is_self_call(g, n, to))) {
		gen_jump(g, n);
		return;
	}
	n = fold(n);
	enum operation op = instruction_for(n);
	if (!op)
		gen_call(g, n, to);
	else if (is_test(op))
		gen_truth(g, n, to);
	else
		gen_op(g, op, n, to);
}

static void gen_global_store(struct gen *g, struct node *n, int64_t to)
{
	uint32_t value = gen_operand(g, n->a);

	emit(g, n->kind == N_DEFINE ? OP_DEFINE : OP_SET_GLOBAL, value, 0, 0);
	put(g, n->value);
	if (to != EFFECT)
		gen_literal(g, OP_CONSTANT, n->kind == N_DEFINE ? n->value : UNSPECIFIED, to);
}

/* The value of a node to a register, to nowhere (EFFECT), or as the procedure's (TAIL). */
static void gen(struct gen *g, struct node *n, int64_t to)
{
	uint32_t next = g->next;

	switch (g->too_large ? N_CONSTANT : n->kind) {
	case N_CONSTANT:
		if (to != EFFECT && !g->too_large)
			gen_literal(g, OP_CONSTANT, n->value, to);
		break;
	case N_LOCAL:
		gen_local(g, n->variable, to);
		break;
	case N_GLOBAL:
		gen_literal(g, OP_GLOBAL, n->value, to);
		break;
	case N_SET_LOCAL:
		gen_set_local(g, n);
		if (to != EFFECT)
			gen_literal(g, OP_CONSTANT, UNSPECIFIED, to);
		break;
	case N_SET_GLOBAL:
	case N_DEFINE:
		gen_global_store(g, n, to);
		break;
	case N_IF:
		gen_if(g, n, to);
		break;
	case N_LAMBDA:
		gen_lambda(g, n->lambda, to);
		break;
	case N_SEQUENCE:
		gen(g, n->at[0], EFFECT);
		gen(g, n->at[1], to);
		break;
	case N_CALL:
		gen_any_call(g, n, to);
		break;
	case N_LET:
		gen_let(g, n, to);
		break;
	case N_FIX:
		gen_fix(g, n, to);
		break;
	}
	g->next = next;
}

/* ---- lambdas ---- */

static obj make_code(struct lambda *l)
{
	struct gen g = {.lambda = l};

	l->label = 0; /* where its last call of itself goes */
	for (uint32_t i = 0; i < l->n; i++) {
		l->parameters[i]->place = take(&g, 1);
		if (l->parameters[i]->mutated)
			emit(&g, OP_BOX, i, 0, 0);
	}
	gen(&g, l->body, TAIL);
	if (g.too_large || l->nfree > UINT16_MAX)
		return FAILED;
	struct code *c = mem_words(sizeof(*c) + g.n * sizeof(uint64_t));
	c->header = HEADER(T_CODE, g.n);
	c->name = l->name;
	c->arity = (l->n - l->rest) | (l->rest ? REST : 0);
	c->frame = g.most + 4;
	c->nfree = (uint16_t)l->nfree;
	c->no_address = CODE_NO_ADDRESS;
	c->no_address2 = CODE_NO_ADDRESS >> 16;
	memcpy(c->insn, g.code, g.n * sizeof(uint64_t));
	return (obj)c;
}

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* of macros and special forms that a program may define meanwhile */

obj compile_toplevel(obj form)
{
	struct unit unit = {NULL, NULL};
	struct lambda *l = mem_words(sizeof(*l));
	obj code = FAILED;

	l->name = FALSE;
	pthread_mutex_lock(&lock);
	l->body = expand(&unit, form, NULL, NULL);
	if (l->body) {
		find_labels(&unit);
		resolve(l->body, l);
		code = make_code(l);
		if (code == FAILED)
			fail("compile", "a procedure is too large", UNBOUND);
	}
	pthread_mutex_unlock(&lock);
	return code == FAILED ? code : constant_closure(code);
}

int operation_of(obj name)
{
	for (int op = 1; op < OPS; op++)
		if (op_table[op].primitive && !strcmp(op_table[op].primitive, string_of(symbol_of(name)->name)->at))
			return op;
	return 0;
}
