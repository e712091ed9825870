/* SPDX-License-Identifier: MIT */
/*
 * expand.c - from forms to nodes: macros and derived forms are gone behind it, and each identifier is a variable. A function gives NULL when something is wrong
 * with its form: vm->condition says what.
 */
#include <stdio.h>

#include "node.h"

struct form { /* one that is being expanded, and where it stands */
	struct unit *unit;
	obj form;
	struct scope *scope;
	struct tail *tail;
};

typedef struct node *special_fn(struct form f);
enum { SPECIALS = 32 };
static const struct special {
	const char *name;
	special_fn *fn;
} specials[SPECIALS];

/* Their places in the list below, of those that derived forms are made of. */
enum { S_LAMBDA, S_LET, S_LET_STAR, S_DEFINE, S_IF, S_BEGIN, S_QUOTE };
static obj special_objects(unsigned which);

static struct node *bad(obj form, const char *message)
{
	fail(NULL, message, strip_syntax(form));
	return NULL;
}

/* ---- nodes ---- */

static struct node *make_node(enum node_kind kind)
{
	struct node *n = mem_words(sizeof(*n));

	n->kind = kind;
	return n;
}

static struct node *constant(obj value)
{
	struct node *n = make_node(N_CONSTANT);

	n->value = value;
	return n;
}

static struct node *if_node(struct node *a, struct node *b, struct node *c)
{
	struct node *n = make_node(N_IF);

	n->a = a;
	n->b = b;
	n->c = c;
	return a && b && c ? n : NULL;
}

static struct node *sequence(struct node *first, struct node *second)
{
	struct node *n = make_node(N_SEQUENCE);

	if (!first || !second)
		return NULL;
	n->n = 2;
	n->at = mem_words(2 * sizeof(*n->at));
	n->at[0] = first;
	n->at[1] = second;
	return n;
}

static struct variable *make_variable(obj name)
{
	struct variable *v = mem_words(sizeof(*v));

	v->name = name;
	v->early = -1;
	return v;
}

static struct tail *make_tail(struct tail *up, struct lambda *lambda)
{
	struct tail *t = mem_words(sizeof(*t));

	*t = (struct tail){up, lambda};
	return t;
}

/* N_LET and N_FIX of one variable; the caller fills in what it is for. */
static struct node *bind_node(enum node_kind kind, uint32_t n)
{
	struct node *b = make_node(kind);

	b->n = n;
	b->variables = mem_words((n + 1) * sizeof(struct variable *));
	b->at = mem_words((n + 1) * sizeof(struct node *));
	return b;
}

/* A form whose first word is not looked up, but is this. */
static obj global(obj symbol)
{
	struct alias *a = mem_words(sizeof(*a));

	*a = (struct alias){HEADER(T_ALIAS, 0), symbol, NULL};
	return (obj)a;
}

static struct node *expand_in(struct form f, obj form, struct tail *tail) { return expand(f.unit, form, f.scope, tail); }

/* ---- identifiers ---- */

static struct node *expand_identifier(struct form f)
{
	obj symbol = 0;
	struct scope *s = look_up(f.form, f.scope, &symbol);

	if (!s) {
		if (is_type(symbol_of(symbol)->value, T_MACRO) || is_type(symbol_of(symbol)->value, T_SPECIAL))
			return bad(f.form, "a syntactic keyword is no variable");
		struct node *n = make_node(N_GLOBAL);
		n->value = symbol;
		return n;
	}
	if (!s->variable)
		return bad(f.form, "a syntactic keyword is no variable");
	struct node *n = make_node(N_LOCAL);
	n->variable = s->variable;
	if (n->variable->defining && n->variable->early < 0)
		n->variable->early = *n->variable->defining;
	return n;
}

static obj name_of(obj identifier) { return strip_syntax(identifier); }

/* ---- calls ---- */

static struct node *expand_call(struct form f)
{
	struct node *n = make_node(N_CALL);
	int64_t length = list_length(f.form);

	if (length < 1)
		return bad(f.form, "a call is no list");
	n->n = (uint32_t)length - 1;
	n->at = mem_words((size_t)length * sizeof(*n->at));
	n->a = expand_in(f, car(f.form), NULL);
	if (!n->a)
		return NULL;
	obj args = cdr(f.form);
	for (uint32_t i = 0; i < n->n; i++, args = cdr(args)) {
		n->at[i] = expand_in(f, car(args), NULL);
		if (!n->at[i])
			return NULL;
		if (n->at[i]->kind == N_LOCAL)
			n->at[i]->variable->escapes = true;
	}
	if (n->a->kind == N_LOCAL) {
		n->tail = f.tail;
		n->next = f.unit->calls;
		f.unit->calls = n;
	}
	return n;
}

/* Of a node that is no called operator. */
static struct node *escaping(struct node *n)
{
	if (n && n->kind == N_LOCAL)
		n->variable->escapes = true;
	return n;
}

static struct macro *macro_of(obj head, struct scope *scope)
{
	obj symbol = 0, value;

	if (is_type(head, T_SPECIAL))
		return (struct macro *)head;
	if (!is_identifier(head))
		return NULL;
	struct scope *s = look_up(head, scope, &symbol);
	value = s ? (s->variable ? FALSE : s->macro) : symbol_of(symbol)->value;
	return is_type(value, T_MACRO) || is_type(value, T_SPECIAL) ? (struct macro *)value : NULL;
}

static bool is_special(const struct macro *m, special_fn *fn)
{
	return m && header_type(m->header) == T_SPECIAL && specials[fixnum_value(m->literals)].fn == fn;
}

/* A node whose value may go anywhere: what it names escapes. */
struct node *expand(struct unit *unit, obj form, struct scope *scope, struct tail *tail)
{
	struct form f = {unit, form, scope, tail};

	if (c_stack_is_low())
		return bad(FALSE, "a form is too deep");
	for (;;) {
		struct macro *m = is_pair(f.form) ? macro_of(car(f.form), f.scope) : NULL;

		if (!m)
			break;
		if (header_type(m->header) == T_SPECIAL) {
			if (list_length(f.form) < 1)
				return bad(f.form, "a form is no list");
			return specials[fixnum_value(m->literals)].fn(f);
		}
		f.form = expand_macro(m, f.form, f.scope);
		if (f.form == FAILED)
			return NULL;
	}
	if (is_pair(f.form))
		return expand_call(f);
	if (is_identifier(f.form))
		return expand_identifier(f);
	return f.form == NIL ? bad(f.form, "an empty list is no form") : constant(strip_syntax(f.form));
}

static struct node *expand_value(struct form f, obj form) { return escaping(expand_in(f, form, NULL)); }
static struct node *expand_tail(struct form f, obj form) { return escaping(expand_in(f, form, f.tail)); }

/* ---- bodies ---- */

struct item { /* of a body: a definition, or an expression */
	struct item *next;
	struct variable *variable; /* NULL: an expression */
	obj form;
	struct node *node;
	int64_t number, group;     /* where its run of lambdas begins */
};

struct body {
	struct form f;
	struct item *first, **end;
	int64_t count;
	int64_t *defining; /* the number of the item that is being expanded */
};

static special_fn expand_define, expand_begin, expand_define_syntax;

static void add_item(struct body *b, struct variable *v, obj form)
{
	struct item *i = mem_words(sizeof(*i));

	*i = (struct item){.variable = v, .form = form, .number = b->count++};
	*b->end = i;
	b->end = &i->next;
}

/* (define (name . parameters) body ...) and (define name value): the name and the value's form. */
static bool take_apart(obj form, obj *name, obj *value)
{
	if (list_length(form) < 2)
		return bad(form, "a bad definition");
	obj what = car(cdr(form));
	if (is_pair(what)) { /* maybe curried */
		obj lambda = cons(special_objects(S_LAMBDA), cons(cdr(what), cdr(cdr(form))));

		return take_apart(list(3, car(form), car(what), lambda), name, value);
	}
	*name = what;
	*value = cdr(cdr(form)) == NIL ? UNSPECIFIED : car(cdr(cdr(form)));
	return (is_identifier(what) && list_length(form) <= 3) || bad(form, "a bad definition");
}

static bool define_local_syntax(struct form *f, obj form)
{
	if (list_length(form) != 3 || !is_identifier(car(cdr(form))))
		return bad(form, "a bad definition of syntax");
	f->scope = scope_bind(f->scope, car(cdr(form)), NULL, FALSE);
	f->scope->macro = make_syntax_rules(car(cdr(cdr(form))), f->scope);
	return f->scope->macro != FAILED;
}

/* Definitions take effect before anything is expanded that may mention them. */
static bool scan_body(struct body *b, obj forms)
{
	for (; is_pair(forms); forms = cdr(forms)) {
		obj form = car(forms), name, value;
		struct macro *m;

		while ((m = is_pair(form) ? macro_of(car(form), b->f.scope) : NULL) && header_type(m->header) == T_MACRO)
			if ((form = expand_macro(m, form, b->f.scope)) == FAILED)
				return false;
		if (is_special(m, expand_begin)) {
			if (!scan_body(b, cdr(form)))
				return false;
		} else if (is_special(m, expand_define_syntax)) {
			if (!define_local_syntax(&b->f, form))
				return false;
		} else if (is_special(m, expand_define)) {
			if (!take_apart(form, &name, &value))
				return false;
			struct variable *v = make_variable(name_of(name));
			v->defining = b->defining;
			b->f.scope = scope_bind(b->f.scope, name, v, FALSE);
			add_item(b, v, value);
		} else {
			add_item(b, NULL, form);
		}
	}
	return true;
}

static bool is_fixed(const struct item *i)
{
	return i->variable && i->node->kind == N_LAMBDA && !i->variable->mutated;
}

static void find_groups(struct body *b)
{
	int64_t group = -1;

	for (struct item *i = b->first; i; i = i->next) {
		group = !is_fixed(i) ? -1 : group < 0 ? i->number : group;
		i->group = group < 0 ? i->number : group;
	}
}

/* A variable that is mentioned before it can have its value is to be in a box, and so parts a group: which may be true of others then. */
static void find_early(struct body *b)
{
	for (bool changed = true; changed;) {
		changed = false;
		find_groups(b);
		for (struct item *i = b->first; i; i = i->next) {
			struct variable *v = i->variable;

			if (!v || v->early < 0 || v->boxed_early)
				continue;
			if (is_fixed(i) ? v->early < i->group : v->early <= i->number)
				changed = v->boxed_early = v->mutated = true;
		}
	}
}

static bool expand_items(struct body *b, struct tail *tail)
{
	for (struct item *i = b->first; i; i = i->next) {
		*b->defining = i->number;
		i->node = escaping(expand(b->f.unit, i->form, b->f.scope, i->next || i->variable ? NULL : tail));
		if (!i->node)
			return false;
		if (!i->variable)
			continue;
		i->variable->defining = NULL;
		if (i->node->kind == N_LAMBDA && i->node->lambda->name == FALSE)
			i->node->lambda->name = i->variable->name;
	}
	find_early(b);
	return true;
}

static void bind_fixed(struct unit *unit, struct variable *v, struct lambda *lambda, struct tail *tail)
{
	v->lambda = lambda;
	v->tail = tail;
	lambda->bound = v;
	v->next = unit->fixed;
	unit->fixed = v;
}

static struct node *join_items(struct unit *unit, struct item *i, struct tail *tail);

static struct node *join_fix(struct unit *unit, struct item *i, struct tail *tail)
{
	uint32_t n = 0;
	struct item *end = i;

	for (; end && is_fixed(end); end = end->next)
		n++;
	struct node *fix = bind_node(N_FIX, n);
	for (uint32_t k = 0; k < n; k++, i = i->next) {
		fix->variables[k] = i->variable;
		fix->at[k] = i->node;
		bind_fixed(unit, i->variable, i->node->lambda, tail);
	}
	fix->a = end ? join_items(unit, end, tail) : constant(UNSPECIFIED);
	return fix;
}

static struct node *join_items(struct unit *unit, struct item *i, struct tail *tail)
{
	if (is_fixed(i))
		return join_fix(unit, i, tail);
	struct node *rest = i->next ? join_items(unit, i->next, tail) : NULL;
	if (!i->variable)
		return rest ? sequence(i->node, rest) : i->node;
	if (i->variable->boxed_early) { /* it is bound already, at the body's beginning */
		struct node *set = make_node(N_SET_LOCAL);

		set->variable = i->variable;
		set->a = i->node;
		return sequence(set, rest ? rest : constant(UNSPECIFIED));
	}
	struct node *let = bind_node(N_LET, 1);
	let->variables[0] = i->variable;
	let->at[0] = i->node;
	let->a = rest ? rest : constant(UNSPECIFIED);
	return let;
}

static struct node *expand_body(struct form f, obj forms)
{
	struct tail *tail = f.tail ? make_tail(f.tail, NULL) : make_tail(NULL, NULL);
	struct body b = {.f = f, .end = &b.first, .defining = mem_words(sizeof(int64_t))};

	if (!scan_body(&b, forms))
		return NULL;
	if (!b.first)
		return bad(forms, "an empty body");
	if (!expand_items(&b, tail))
		return NULL;
	struct node *body = join_items(f.unit, b.first, tail);
	for (struct item *i = b.first; i && body; i = i->next)
		if (i->variable && i->variable->boxed_early) {
			struct node *let = bind_node(N_LET, 1);

			let->variables[0] = i->variable;
			let->at[0] = constant(UNBOUND);
			let->a = body;
			body = let;
		}
	return body;
}

/* ---- special forms ---- */

static obj second(obj form) { return car(cdr(form)); }
static obj third(obj form) { return car(cdr(cdr(form))); }
static bool has(obj form, int64_t least, int64_t most)
{
	int64_t n = list_length(form) - 1;

	return n >= least && n <= most;
}

static struct node *expand_quote(struct form f)
{
	return has(f.form, 1, 1) ? constant(strip_syntax(second(f.form))) : bad(f.form, "a bad quote");
}

static struct node *expand_if(struct form f)
{
	if (!has(f.form, 2, 3))
		return bad(f.form, "a bad if");
	struct node *a = expand_value(f, second(f.form));
	struct node *b = a ? expand_tail(f, third(f.form)) : NULL;
	obj rest = cdr(cdr(cdr(f.form)));
	return if_node(a, b, !b ? NULL : rest == NIL ? constant(UNSPECIFIED) : expand_tail(f, car(rest)));
}

static struct node *expand_set(struct form f)
{
	if (!has(f.form, 2, 2) || !is_identifier(second(f.form)))
		return bad(f.form, "a bad set!");
	struct form to = f;
	to.form = second(f.form);
	struct node *n = expand_identifier(to), *value = n ? expand_value(f, third(f.form)) : NULL;
	if (!value)
		return NULL;
	n->kind = n->kind == N_LOCAL ? N_SET_LOCAL : N_SET_GLOBAL;
	n->a = value;
	if (n->variable)
		n->variable->mutated = true;
	return n;
}

static struct node *expand_define(struct form f)
{
	obj name, value;

	if (f.scope)
		return bad(f.form, "a definition out of place");
	if (!take_apart(f.form, &name, &value))
		return NULL;
	struct node *n = make_node(N_DEFINE);
	n->value = name_of(name);
	n->a = expand_value(f, value);
	if (n->a && n->a->kind == N_LAMBDA && n->a->lambda->name == FALSE)
		n->a->lambda->name = n->value;
	return n->a ? n : NULL;
}

static struct node *expand_define_syntax(struct form f)
{
	if (f.scope)
		return bad(f.form, "a definition out of place");
	if (!has(f.form, 2, 2) || !is_identifier(second(f.form)))
		return bad(f.form, "a bad definition of syntax");
	obj m = make_syntax_rules(third(f.form), NULL);
	if (m == FAILED)
		return NULL;
	symbol_of(name_of(second(f.form)))->value = m;
	return constant(UNSPECIFIED);
}

/* let-syntax and letrec-syntax, which are the same here: a name is only looked for where a form is. */
static struct node *expand_let_syntax(struct form f)
{
	if (list_length(f.form) < 3)
		return bad(f.form, "a bad form");
	for (obj b = second(f.form); is_pair(b); b = cdr(b))
		if (!define_local_syntax(&f, list(3, f.form, is_pair(car(b)) ? car(car(b)) : FALSE, has(car(b), 1, 1) ? second(car(b)) : FALSE)))
			return NULL;
	return expand_body(f, cdr(cdr(f.form)));
}

static struct node *expand_begin(struct form f)
{
	obj forms = cdr(f.form);
	struct node *n = NULL;

	if (forms == NIL)
		return constant(UNSPECIFIED);
	for (; forms != NIL; forms = cdr(forms)) {
		struct node *next = cdr(forms) == NIL ? expand_tail(f, car(forms)) : expand_value(f, car(forms));

		n = n ? sequence(n, next) : next;
		if (!n)
			return NULL;
	}
	return n;
}

static struct lambda *make_lambda(obj name, uint32_t most)
{
	struct lambda *l = mem_words(sizeof(*l));

	l->name = name;
	l->parameters = mem_words((most + 1) * sizeof(*l->parameters));
	l->label = l->pending = -1;
	return l;
}

static struct node *lambda_of(struct form f, obj name, obj parameters, obj body)
{
	uint32_t n = 0;

	for (obj p = parameters; is_pair(p); p = cdr(p))
		n++;
	struct lambda *l = make_lambda(name, n + 1);
	for (obj p = parameters; p != NIL; p = is_pair(p) ? cdr(p) : NIL) {
		obj id = is_pair(p) ? car(p) : p;

		if (!is_identifier(id))
			return bad(parameters, "bad parameters");
		l->rest = !is_pair(p);
		l->parameters[l->n] = make_variable(name_of(id));
		f.scope = scope_bind(f.scope, id, l->parameters[l->n++], FALSE);
	}
	f.tail = make_tail(NULL, l);
	l->body = expand_body(f, body);
	struct node *node = make_node(N_LAMBDA);
	node->lambda = l;
	return l->body ? node : NULL;
}

static struct node *expand_lambda(struct form f)
{
	if (list_length(f.form) < 3)
		return bad(f.form, "a bad lambda");
	return lambda_of(f, FALSE, second(f.form), cdr(cdr(f.form)));
}

static bool split_bindings(obj form, obj bindings, obj *names, obj *values)
{
	*names = *values = NIL;
	for (; is_pair(bindings); bindings = cdr(bindings)) {
		obj b = car(bindings);

		if (!has(b, 1, 1) || !is_identifier(car(b)))
			return bad(form, "a bad binding");
		*names = cons(car(b), *names);
		*values = cons(second(b), *values);
	}
	*names = list_reverse(*names);
	*values = list_reverse(*values);
	return bindings == NIL || bad(form, "bad bindings");
}

static struct node *expand_named_let(struct form f, obj names, obj values)
{
	struct node *call = make_node(N_CALL), *fix = bind_node(N_FIX, 1);
	struct variable *v = make_variable(name_of(second(f.form)));
	struct tail *tail = make_tail(f.tail, NULL);
	struct form inner = f;

	call->n = (uint32_t)list_length(values);
	call->at = mem_words((call->n + 1) * sizeof(*call->at));
	for (uint32_t i = 0; i < call->n; i++, values = cdr(values)) {
		call->at[i] = expand_value(f, car(values));
		if (!call->at[i])
			return NULL;
	}
	inner.scope = scope_bind(f.scope, second(f.form), v, FALSE);
	struct node *lambda = lambda_of(inner, v->name, names, cdr(cdr(cdr(f.form))));
	if (!lambda)
		return NULL;
	call->a = make_node(N_LOCAL);
	call->a->variable = v;
	call->tail = tail;
	call->next = f.unit->calls;
	f.unit->calls = call;
	if (v->mutated) { /* set! of the name: an ordinary variable */
		struct node *let = bind_node(N_LET, 1), *set = make_node(N_SET_LOCAL);

		set->variable = let->variables[0] = v;
		set->a = lambda;
		let->at[0] = constant(UNBOUND);
		let->a = sequence(set, call);
		return let;
	}
	fix->variables[0] = v;
	fix->at[0] = lambda;
	fix->a = call;
	bind_fixed(f.unit, v, lambda->lambda, tail);
	return fix;
}

static struct node *expand_let(struct form f)
{
	obj names, values;
	bool named = list_length(f.form) >= 4 && is_identifier(second(f.form));

	if (list_length(f.form) < 3 || !split_bindings(f.form, named ? third(f.form) : second(f.form), &names, &values))
		return list_length(f.form) < 3 ? bad(f.form, "a bad let") : NULL;
	if (named)
		return expand_named_let(f, names, values);
	if (names == NIL)
		return expand_body(f, cdr(cdr(f.form)));
	struct node *let = bind_node(N_LET, (uint32_t)list_length(names));
	struct form inner = f;
	for (uint32_t i = 0; i < let->n; i++, names = cdr(names), values = cdr(values)) {
		let->at[i] = expand_value(f, car(values));
		if (!let->at[i])
			return NULL;
		let->variables[i] = make_variable(name_of(car(names)));
		inner.scope = scope_bind(inner.scope, car(names), let->variables[i], FALSE);
		if (let->at[i]->kind == N_LAMBDA && let->at[i]->lambda->name == FALSE)
			let->at[i]->lambda->name = let->variables[i]->name;
	}
	let->a = expand_body(inner, cdr(cdr(f.form)));
	return let->a ? let : NULL;
}

static struct node *expand_let_star(struct form f)
{
	if (list_length(f.form) < 3)
		return bad(f.form, "a bad let*");
	obj bindings = second(f.form), body = cdr(cdr(f.form));
	if (!is_pair(bindings) || cdr(bindings) == NIL)
		return expand_tail(f, cons(special_objects(S_LET), cons(bindings, body)));
	obj inner = cons(special_objects(S_LET_STAR), cons(cdr(bindings), body));
	return expand_tail(f, list(3, special_objects(S_LET), list(1, car(bindings)), inner));
}

/* letrec and letrec*: a body of definitions. */
static struct node *expand_letrec(struct form f)
{
	obj names, values, forms = NIL;

	if (list_length(f.form) < 3 || !split_bindings(f.form, second(f.form), &names, &values))
		return list_length(f.form) < 3 ? bad(f.form, "a bad letrec") : NULL;
	for (; names != NIL; names = cdr(names), values = cdr(values))
		forms = cons(list(3, special_objects(S_DEFINE), car(names), car(values)), forms);
	forms = cons(cons(special_objects(S_LET), cons(NIL, cdr(cdr(f.form)))), forms);
	return expand_body(f, list_reverse(forms));
}

static struct node *expand_and(struct form f)
{
	obj forms = cdr(f.form);

	if (forms == NIL)
		return constant(TRUE);
	if (cdr(forms) == NIL)
		return expand_tail(f, car(forms));
	struct node *a = expand_value(f, car(forms));
	return if_node(a, a ? expand_tail(f, cons(car(f.form), cdr(forms))) : NULL, constant(FALSE));
}

/* (let ((t value)) (if t yes rest)), where rest does not see t. yes NULL: t itself. */
static struct node *test_value(struct node *value, struct node *(*yes)(struct form, struct variable *), struct form f, struct node *rest)
{
	struct node *let = bind_node(N_LET, 1), *t = make_node(N_LOCAL), *then = make_node(N_LOCAL);

	t->variable = then->variable = let->variables[0] = make_variable(FALSE);
	let->at[0] = value;
	if (yes)
		then = yes(f, t->variable);
	let->a = if_node(t, then, rest);
	return value && let->a ? let : NULL;
}

static struct node *expand_or(struct form f)
{
	obj forms = cdr(f.form);

	if (forms == NIL)
		return constant(FALSE);
	if (cdr(forms) == NIL)
		return expand_tail(f, car(forms));
	struct node *value = expand_value(f, car(forms));
	struct node *rest = value ? expand_tail(f, cons(car(f.form), cdr(forms))) : NULL;
	return rest ? test_value(value, NULL, f, rest) : NULL;
}

static bool is_word(struct form f, obj x, obj word) { return is_identifier(x) && same_identifier(x, f.scope, word, NULL); }

static struct node *expand_all(struct form f, obj forms) { return expand_tail(f, cons(special_objects(S_BEGIN), forms)); }

/* (receiver t) of a clause with => */
static struct node *call_receiver(struct form f, struct variable *t)
{
	struct node *call = make_node(N_CALL);

	call->a = expand_value(f, f.form);
	call->n = 1;
	call->at = mem_words(sizeof(*call->at));
	call->at[0] = make_node(N_LOCAL);
	call->at[0]->variable = t;
	if (call->a && call->a->kind == N_LOCAL)
		call->a->variable->escapes = true;
	return call->a ? call : NULL;
}

static struct node *expand_cond(struct form f)
{
	obj clauses = cdr(f.form);

	if (clauses == NIL)
		return constant(UNSPECIFIED);
	obj clause = car(clauses);
	if (list_length(clause) < 1)
		return bad(f.form, "a bad cond");
	if (is_word(f, car(clause), world->else_))
		return expand_all(f, cdr(clause));
	struct node *test = expand_value(f, car(clause));
	if (!test)
		return NULL;
	bool receives = list_length(clause) == 3 && is_word(f, second(clause), world->arrow);
	struct node *then = cdr(clause) == NIL || receives ? NULL : expand_all(f, cdr(clause));
	if (!then && cdr(clause) != NIL && !receives)
		return NULL;
	struct node *rest = expand_tail(f, cons(car(f.form), cdr(clauses)));
	if (!rest)
		return NULL;
	if (then)
		return if_node(test, then, rest);
	struct form receiver = f;
	receiver.form = receives ? third(clause) : FALSE;
	return test_value(test, receives ? call_receiver : NULL, receiver, rest);
}

static struct node *is_one_of(obj data, struct variable *key)
{
	struct node *call = make_node(N_CALL);

	if (data == NIL)
		return constant(FALSE);
	call->a = make_node(N_GLOBAL);
	call->a->value = symbol(is_flonum(car(data)) ? "eqv?" : "eq?");
	call->n = 2;
	call->at = mem_words(2 * sizeof(*call->at));
	call->at[0] = make_node(N_LOCAL);
	call->at[0]->variable = key;
	call->at[1] = constant(strip_syntax(car(data)));
	return cdr(data) == NIL ? call : if_node(call, constant(TRUE), is_one_of(cdr(data), key));
}

static struct node *case_clauses(struct form f, obj clauses, struct variable *key)
{
	if (clauses == NIL)
		return constant(UNSPECIFIED);
	obj clause = car(clauses);
	if (list_length(clause) < 2)
		return bad(f.form, "a bad case");
	struct form receiver = f;
	bool receives = list_length(clause) == 3 && is_word(f, second(clause), world->arrow);
	receiver.form = receives ? third(clause) : FALSE;
	struct node *then = receives ? call_receiver(receiver, key) : expand_all(f, cdr(clause));
	if (!then || is_word(f, car(clause), world->else_))
		return then;
	if (list_length(car(clause)) < 0)
		return bad(f.form, "a bad case");
	return if_node(is_one_of(car(clause), key), then, case_clauses(f, cdr(clauses), key));
}

static struct node *expand_case(struct form f)
{
	if (list_length(f.form) < 3)
		return bad(f.form, "a bad case");
	struct node *let = bind_node(N_LET, 1);
	let->variables[0] = make_variable(FALSE);
	let->at[0] = expand_value(f, second(f.form));
	let->a = let->at[0] ? case_clauses(f, cdr(cdr(f.form)), let->variables[0]) : NULL;
	return let->a ? let : NULL;
}

static struct node *expand_when(struct form f)
{
	if (list_length(f.form) < 3)
		return bad(f.form, "a bad when");
	return expand_tail(f, list(3, special_objects(S_IF), second(f.form), cons(special_objects(S_BEGIN), cdr(cdr(f.form)))));
}

static struct node *expand_unless(struct form f)
{
	if (list_length(f.form) < 3)
		return bad(f.form, "a bad unless");
	return expand_tail(f, list(4, special_objects(S_IF), second(f.form), UNSPECIFIED, cons(special_objects(S_BEGIN), cdr(cdr(f.form)))));
}

/* A loop by name, with a name that nobody else has. */
static struct node *expand_do(struct form f)
{
	obj loop = global(symbol("do-loop")), bindings = NIL, steps = NIL;

	if (list_length(f.form) < 3 || list_length(second(f.form)) < 0 || list_length(third(f.form)) < 1)
		return bad(f.form, "a bad do");
	for (obj v = second(f.form); v != NIL; v = cdr(v)) {
		obj b = car(v);

		if (!has(b, 1, 2))
			return bad(f.form, "a bad do");
		bindings = cons(list(2, car(b), second(b)), bindings);
		steps = cons(cdr(cdr(b)) == NIL ? car(b) : third(b), steps);
	}
	obj again = cons(loop, list_reverse(steps)), body = cdr(cdr(cdr(f.form))), end = third(f.form);
	obj go_on = body == NIL ? again : list(3, special_objects(S_BEGIN), cons(special_objects(S_BEGIN), body), again);
	obj done = cons(special_objects(S_BEGIN), cdr(end));
	return expand_tail(f, list(4, special_objects(S_LET), loop, list_reverse(bindings), list(4, special_objects(S_IF), car(end), done, go_on)));
}

static struct node *expand_delay(struct form f)
{
	if (!has(f.form, 1, 1))
		return bad(f.form, "a bad delay");
	return expand_tail(f, list(2, global(world->make_promise), list(3, special_objects(S_LAMBDA), NIL, second(f.form))));
}

/* ---- quasiquote ---- */

static obj quasi(struct form f, obj x, int depth);

static obj quoted(obj x) { return list(2, special_objects(S_QUOTE), x); }

static obj quasi_pair(struct form f, obj x, int depth)
{
	bool unquote = is_word(f, car(x), world->unquote), nest = is_word(f, car(x), world->quasiquote);

	if ((unquote || nest) && has(x, 1, 1)) {
		if (unquote && depth == 1)
			return second(x);
		return list(3, global(world->cons), quoted(car(x)), quasi(f, cdr(x), nest ? depth + 1 : depth - 1));
	}
	obj first = car(x);
	if (is_pair(first) && is_word(f, car(first), world->unquote_splicing) && has(first, 1, 1) && depth == 1)
		return cdr(x) == NIL ? second(first) : list(3, global(world->append2), second(first), quasi(f, cdr(x), depth));
	return list(3, global(world->cons), quasi(f, first, depth), quasi(f, cdr(x), depth));
}

static obj quasi(struct form f, obj x, int depth)
{
	if (is_pair(x))
		return quasi_pair(f, x, depth);
	if (!is_vector(x))
		return quoted(x);
	obj elements = NIL;
	for (size_t i = length_of(x); i--;)
		elements = cons(vector_of(x)->at[i], elements);
	return list(2, global(world->list_to_vector), quasi(f, elements, depth));
}

static struct node *expand_quasiquote(struct form f)
{
	return has(f.form, 1, 1) ? expand_tail(f, quasi(f, second(f.form), 1)) : bad(f.form, "a bad quasiquote");
}

static const struct special specials[SPECIALS] = {
	{"lambda", expand_lambda}, {"let", expand_let}, {"let*", expand_let_star}, {"define", expand_define}, {"if", expand_if}, {"begin", expand_begin},
	{"quote", expand_quote}, {"set!", expand_set}, {"letrec", expand_letrec}, {"letrec*", expand_letrec}, {"and", expand_and}, {"or", expand_or},
	{"cond", expand_cond}, {"case", expand_case}, {"when", expand_when}, {"unless", expand_unless}, {"do", expand_do}, {"delay", expand_delay},
	{"quasiquote", expand_quasiquote}, {"define-syntax", expand_define_syntax}, {"let-syntax", expand_let_syntax}, {"letrec-syntax", expand_let_syntax},
};

/* Theirs are the names' values when the world begins, which a program may define anew; derived forms ask for these. */
static obj special_objects(unsigned which) { return vector_of(world->specials)->at[which]; }

void specials_define(void)
{
	world->specials = make_vector(T_VECTOR, SPECIALS, FALSE);
	for (unsigned i = 0; i < SPECIALS && specials[i].name; i++) {
		struct macro *m = mem_words(sizeof(*m));

		*m = (struct macro){.header = HEADER(T_SPECIAL, 0), .literals = fixnum(i)};
		vector_of(world->specials)->at[i] = symbol_of(symbol(specials[i].name))->value = (obj)m;
	}
}
