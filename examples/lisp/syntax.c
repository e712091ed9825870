/* SPDX-License-Identifier: MIT */
/*
 * syntax.c - syntax-rules. An identifier that a template inserts becomes an alias: a new name, that stands for what its symbol means where the macro
 * was defined unless something of the same expansion binds it. So neither captures the other's variables.
 */
#include "node.h"

struct match {
	const struct macro *macro;
	struct scope *use;
	obj names;   /* a list of (pattern variable . value); of one under an ellipsis the value is a T_VALUES of such values */
	obj aliases; /* a list of (symbol . alias) */
};

bool is_identifier(obj x) { return is_symbol(x) || is_type(x, T_ALIAS); }

struct scope *look_up(obj id, struct scope *scope, obj *symbol)
{
	for (;;) {
		for (struct scope *s = scope; s; s = s->up)
			if (s->name == id)
				return s;
		if (!is_type(id, T_ALIAS))
			break;
		scope = ((struct alias *)id)->at;
		id = ((struct alias *)id)->of;
	}
	*symbol = id;
	return NULL;
}

bool same_identifier(obj a, struct scope *at_a, obj b, struct scope *at_b)
{
	obj symbol_a = 0, symbol_b = 0;

	return look_up(a, at_a, &symbol_a) == look_up(b, at_b, &symbol_b) && symbol_a == symbol_b;
}

struct scope *scope_bind(struct scope *up, obj name, struct variable *variable, obj macro)
{
	struct scope *s = mem_words(sizeof(*s));

	*s = (struct scope){up, name, variable, macro};
	return s;
}

static bool has_alias(obj x)
{
	for (; is_pair(x); x = cdr(x))
		if (has_alias(car(x)))
			return true;
	for (size_t i = 0; is_vector(x) && i < length_of(x); i++)
		if (has_alias(vector_of(x)->at[i]))
			return true;
	return is_type(x, T_ALIAS);
}

/* Shares what has no alias in it: all of a literal, mostly. */
obj strip_syntax(obj x)
{
	obj done = NIL;

	while (is_type(x, T_ALIAS))
		x = ((struct alias *)x)->of;
	if (!has_alias(x))
		return x;
	if (is_vector(x)) {
		obj copy = make_vector(T_VECTOR, length_of(x), 0);

		for (size_t i = 0; i < length_of(x); i++)
			vector_of(copy)->at[i] = strip_syntax(vector_of(x)->at[i]);
		return copy;
	}
	for (; is_pair(x); x = cdr(x))
		done = cons(strip_syntax(car(x)), done);
	obj tail = strip_syntax(x), first = list_reverse(done);
	if (tail != NIL)
		pair_of(done)->cdr = tail;
	return first;
}

/* ---- matching ---- */

static obj lookup(obj list, obj key)
{
	for (; list != NIL; list = cdr(list))
		if (car(car(list)) == key)
			return car(list);
	return FALSE;
}

/* A macro that a macro made has an alias of it. */
static bool is_ellipsis(const struct macro *m, obj x)
{
	return x == m->ellipsis || (m->ellipsis == world->ellipsis && is_type(x, T_ALIAS) && strip_syntax(x) == world->ellipsis);
}

static bool is_literal(const struct macro *m, obj x)
{
	for (obj l = m->literals; is_pair(l); l = cdr(l))
		if (car(l) == x)
			return true;
	return false;
}

static bool match(struct match *m, obj pattern, obj form);

static void bind_name(struct match *m, obj name, obj value) { m->names = cons(cons(name, value), m->names); }

static obj list_of_vector(obj v)
{
	obj done = NIL;

	for (size_t i = length_of(v); i--;)
		done = cons(vector_of(v)->at[i], done);
	return done;
}

/* A list of all identifiers in it that are not the macro's. */
static obj names_in(const struct macro *m, obj x)
{
	obj names = NIL;

	for (obj rest = cons(x, NIL); rest != NIL;) {
		x = car(rest);
		rest = cdr(rest);
		if (is_pair(x))
			rest = cons(car(x), cons(cdr(x), rest));
		else if (is_vector(x))
			rest = cons(list_of_vector(x), rest);
		else if (is_identifier(x) && !is_ellipsis(m, x) && !is_literal(m, x) && x != world->underscore)
			names = cons(x, names);
	}
	return names;
}

/* Each variable of the pattern gets the list of what it matched in each of the forms. */
static bool match_many(struct match *m, obj pattern, obj *forms, int64_t count)
{
	obj outer = m->names, each = NIL;

	for (int64_t i = 0; i < count; i++, *forms = cdr(*forms)) {
		m->names = NIL;
		if (!match(m, pattern, car(*forms)))
			return false;
		each = cons(m->names, each);
	}
	each = list_reverse(each);
	m->names = outer;
	for (obj shape = names_in(m->macro, pattern); shape != NIL; shape = cdr(shape)) {
		obj values = make_vector(T_VALUES, (size_t)count, 0), at = each;

		for (int64_t i = 0; i < count; i++, at = cdr(at))
			vector_of(values)->at[i] = cdr(lookup(car(at), car(shape)));
		bind_name(m, car(shape), values);
	}
	return true;
}

static int64_t pairs_of(obj x)
{
	int64_t n = 0;

	for (; is_pair(x); x = cdr(x))
		n++;
	return n;
}

static bool match(struct match *m, obj pattern, obj form)
{
	for (; is_pair(pattern); pattern = cdr(pattern), form = cdr(form)) {
		if (is_pair(cdr(pattern)) && is_ellipsis(m->macro, car(cdr(pattern)))) {
			int64_t count = pairs_of(form) - pairs_of(cdr(cdr(pattern)));

			if (count < 0 || !match_many(m, car(pattern), &form, count))
				return false;
			return match(m, cdr(cdr(pattern)), form);
		}
		if (!is_pair(form) || !match(m, car(pattern), car(form)))
			return false;
	}
	if (is_identifier(pattern)) {
		if (is_literal(m->macro, pattern))
			return is_identifier(form) && same_identifier(form, m->use, pattern, m->macro->at);
		if (pattern != world->underscore)
			bind_name(m, pattern, form);
		return true;
	}
	if (is_vector(pattern))
		return is_vector(form) && match(m, list_of_vector(pattern), list_of_vector(form));
	return equal(pattern, form, 0);
}

/* ---- templates ---- */

static obj alias_of(struct match *m, obj symbol)
{
	obj known = lookup(m->aliases, symbol);

	if (known != FALSE)
		return cdr(known);
	struct alias *a = mem_words(sizeof(*a));
	*a = (struct alias){HEADER(T_ALIAS, 0), symbol, m->macro->at};
	m->aliases = cons(cons(symbol, (obj)a), m->aliases);
	return (obj)a;
}

static obj fill(struct match *m, obj template, bool escaped);

/* The names that the template has and that are under an ellipsis become those of the i-th; false: there is none. */
static bool narrow(const struct macro *m, obj names, obj template, size_t i, obj *narrowed)
{
	bool any = false;

	for (obj in = names_in(m, template); in != NIL; in = cdr(in)) {
		obj bound = lookup(names, car(in));

		if (bound == FALSE || !is_type(cdr(bound), T_VALUES))
			continue;
		if (i >= length_of(cdr(bound)))
			return false;
		any = true;
		*narrowed = cons(cons(car(in), vector_of(cdr(bound))->at[i]), *narrowed);
	}
	return any;
}

/* A list of what the template gives for each of what is under its ellipses. */
static obj fill_many(struct match *m, obj template, unsigned ellipses)
{
	obj names = m->names, done = NIL;

	for (size_t i = 0;; i++) {
		obj narrowed = names;

		if (!narrow(m->macro, names, template, i, &narrowed))
			break;
		m->names = narrowed;
		if (ellipses == 1)
			done = cons(fill(m, template, false), done);
		else
			for (obj x = fill_many(m, template, ellipses - 1); x != NIL; x = cdr(x))
				done = cons(car(x), done);
	}
	m->names = names;
	return list_reverse(done);
}

static obj append(obj a, obj b) { return a == NIL ? b : cons(car(a), append(cdr(a), b)); }

static obj fill_pair(struct match *m, obj t, bool escaped)
{
	if (!escaped && is_ellipsis(m->macro, car(t)) && is_pair(cdr(t)))
		return fill(m, car(cdr(t)), true);
	unsigned ellipses = 0;
	obj rest = cdr(t);
	for (; !escaped && is_pair(rest) && is_ellipsis(m->macro, car(rest)); rest = cdr(rest))
		ellipses++;
	if (ellipses) {
		obj many = fill_many(m, car(t), ellipses);

		return append(many, fill(m, rest, escaped));
	}
	obj first = fill(m, car(t), escaped);
	return cons(first, fill(m, rest, escaped));
}

static obj fill(struct match *m, obj t, bool escaped)
{
	if (is_pair(t))
		return fill_pair(m, t, escaped);
	if (is_identifier(t)) {
		obj bound = lookup(m->names, t);

		return bound != FALSE ? cdr(bound) : alias_of(m, t);
	}
	if (!is_vector(t))
		return t;
	obj elements = fill(m, list_of_vector(t), escaped);
	int64_t n = list_length(elements);
	obj v = make_vector(T_VECTOR, n > 0 ? (size_t)n : 0, 0);
	for (int64_t i = 0; i < n; i++, elements = cdr(elements))
		vector_of(v)->at[i] = car(elements);
	return v;
}

obj expand_macro(struct macro *macro, obj form, struct scope *use)
{
	for (obj rules = macro->rules; is_pair(rules); rules = cdr(rules)) {
		struct match m = {macro, use, NIL, NIL};
		obj rule = car(rules);

		if (match(&m, cdr(car(rule)), cdr(form))) /* the first word is the macro's own name */
			return fill(&m, car(cdr(rule)), false);
	}
	return fail(NULL, "no rule of the macro fits", strip_syntax(form));
}

obj make_syntax_rules(obj spec, struct scope *at)
{
	obj rest = is_pair(spec) ? cdr(spec) : NIL, ellipsis = world->ellipsis;

	if (!is_pair(spec) || !is_identifier(car(spec)) || strip_syntax(car(spec)) != world->syntax_rules)
		return fail("define-syntax", "this is no syntax-rules", strip_syntax(spec));
	if (is_pair(rest) && is_identifier(car(rest))) {
		ellipsis = car(rest);
		rest = cdr(rest);
	}
	if (!is_pair(rest) || list_length(rest) < 1)
		return fail("syntax-rules", "no list of literals", strip_syntax(spec));
	for (obj r = cdr(rest); r != NIL; r = cdr(r))
		if (list_length(car(r)) != 2 || !is_pair(car(car(r))))
			return fail("syntax-rules", "a bad rule", strip_syntax(car(r)));
	struct macro *m = mem_words(sizeof(*m));
	*m = (struct macro){HEADER(T_MACRO, 0), car(rest), cdr(rest), ellipsis, at};
	return (obj)m;
}
