/* SPDX-License-Identifier: MIT */
/* lists.c - primitives on pairs, vectors, records, and what a value is. Those that call procedures are in prelude.scm. */
#include "lisp.h"

#define FN(name) static obj name(struct vm *vm __attribute__((unused)), unsigned n __attribute__((unused)), obj *args __attribute__((unused)))

FN(cons_) { return cons(args[0], args[1]); }

/* A c[ad]+r, whose letters stand in its name from the right. */
static obj part(const char *name, const char *path, obj x)
{
	for (; *path; path++) {
		if (!is_pair(x))
			return fail(name, "not a pair", x);
		x = *path == 'a' ? car(x) : cdr(x);
	}
	return x;
}
#define PART(fn, name, path) FN(fn) { return part(name, path, args[0]); }
PART(car_, "car", "a")
PART(cdr_, "cdr", "d")
PART(caar, "caar", "aa")
PART(cadr, "cadr", "da")
PART(cdar, "cdar", "ad")
PART(cddr, "cddr", "dd")
PART(caddr, "caddr", "dda")
PART(cdddr, "cdddr", "ddd")
PART(cadar, "cadar", "ada")
PART(caadr, "caadr", "daa")
PART(cddar, "cddar", "add")
PART(cdadr, "cdadr", "dad")
PART(cadddr, "cadddr", "ddda")

static obj set_part(const char *who, bool first, obj *args)
{
	if (!is_pair(args[0]))
		return fail(who, "not a pair", args[0]);
	*(first ? &pair_of(args[0])->car : &pair_of(args[0])->cdr) = args[1];
	return UNSPECIFIED;
}
FN(set_car) { return set_part("set-car!", true, args); }
FN(set_cdr) { return set_part("set-cdr!", false, args); }

FN(list_)
{
	obj x = NIL;

	while (n)
		x = cons(args[--n], x);
	return x;
}

FN(list_star)
{
	obj x = args[--n];

	while (n)
		x = cons(args[--n], x);
	return x;
}

FN(length)
{
	int64_t k = list_length(args[0]);

	return k < 0 ? fail("length", "not a list", args[0]) : fixnum(k);
}

static obj append_two(obj a, obj b)
{
	obj first = b, last = NIL;

	for (obj x = a; is_pair(x); x = cdr(x)) {
		obj p = cons(car(x), b);

		if (last == NIL)
			first = p;
		else
			pair_of(last)->cdr = p;
		last = p;
	}
	return list_length(a) < 0 ? fail("append", "not a list", a) : first;
}

FN(append)
{
	obj x = n ? args[n - 1] : NIL;

	for (unsigned i = n; i-- > 1 && x != FAILED;)
		x = append_two(args[i - 1], x);
	return x;
}

FN(reverse)
{
	obj done = NIL;

	for (obj x = args[0]; is_pair(x); x = cdr(x))
		done = cons(car(x), done);
	return list_length(args[0]) < 0 ? fail("reverse", "not a list", args[0]) : done;
}

static bool same(int how, obj a, obj b) { return a == b || (how == 1 ? eqv(a, b) : how == 2 && equal(a, b, 0)); }

static obj member(const char *who, int how, obj *args)
{
	obj x = args[1];

	for (; is_pair(x); x = cdr(x))
		if (same(how, car(x), args[0]))
			return x;
	return x == NIL ? FALSE : fail(who, "not a list", args[1]);
}
FN(memq) { return member("memq", 0, args); }
FN(memv) { return member("memv", 1, args); }
FN(member_) { return member("member", 2, args); }

static obj assoc(const char *who, int how, obj *args)
{
	obj x = args[1];

	for (; is_pair(x); x = cdr(x)) {
		if (!is_pair(car(x)))
			return fail(who, "not a pair", car(x));
		if (same(how, car(car(x)), args[0]))
			return car(x);
	}
	return x == NIL ? FALSE : fail(who, "not a list", args[1]);
}
FN(assq) { return assoc("assq", 0, args); }
FN(assv) { return assoc("assv", 1, args); }
FN(assoc_) { return assoc("assoc", 2, args); }

FN(list_tail)
{
	obj x = args[0];

	if (!is_fixnum(args[1]))
		return fail("list-tail", "not an index", args[1]);
	for (int64_t k = fixnum_value(args[1]); k > 0; k--, x = cdr(x))
		if (!is_pair(x))
			return fail("list-tail", "no such index", args[1]);
	return x;
}

FN(list_ref)
{
	obj x = list_tail(vm, n, args);

	return x == FAILED || is_pair(x) ? (x == FAILED ? x : car(x)) : fail("list-ref", "no such index", args[1]);
}

/* ---- what it is ---- */

FN(eq_p) { return boolean(args[0] == args[1]); }
FN(eqv_p) { return boolean(eqv(args[0], args[1])); }
FN(equal_p) { return boolean(equal(args[0], args[1], 0)); }
FN(not_) { return boolean(args[0] == FALSE); }
FN(null_p) { return boolean(args[0] == NIL); }
FN(pair_p) { return boolean(is_pair(args[0])); }
FN(list_p) { return boolean(list_length(args[0]) >= 0); }
FN(boolean_p) { return boolean(args[0] == TRUE || args[0] == FALSE); }
FN(symbol_p) { return boolean(is_symbol(args[0])); }
FN(string_p) { return boolean(is_string(args[0])); }
FN(char_p) { return boolean(is_char(args[0])); }
FN(vector_p) { return boolean(is_vector(args[0])); }
FN(eof_p) { return boolean(args[0] == END_OF_FILE); }
FN(procedure_p)
{
	enum type t = type_of(args[0]);

	return boolean(t == T_CLOSURE || t == T_PRIMITIVE || t == T_CONTINUATION);
}

/* ---- vectors ---- */

static bool is_size(obj x) { return is_fixnum(x) && (int64_t)x > 0 && fixnum_value(x) < (int64_t)1 << 40; }

/* Of [start, end), which are optional arguments; false: it has no such part. */
static bool range(const char *who, obj length_source, unsigned n, const obj *args, size_t *start, size_t *end)
{
	size_t length = length_of(length_source);

	*start = 0;
	*end = length;
	for (unsigned i = 0; i < n && i < 2; i++) {
		if (!is_fixnum(args[i]) || fixnum_value(args[i]) < 0 || (size_t)fixnum_value(args[i]) > length) {
			fail(who, "no such index", args[i]);
			return false;
		}
		*(i ? end : start) = (size_t)fixnum_value(args[i]);
	}
	if (*start > *end)
		fail(who, "a range that ends before it begins", args[0]);
	return *start <= *end;
}

FN(make_vector_)
{
	if (!is_size(args[0]))
		return fail("make-vector", "not a size", args[0]);
	return make_vector(T_VECTOR, (size_t)fixnum_value(args[0]), n > 1 ? args[1] : UNSPECIFIED);
}

FN(vector_)
{
	obj v = make_vector(T_VECTOR, n, 0);

	memcpy(vector_of(v)->at, args, n * sizeof(obj));
	return v;
}

FN(vector_length) { return is_vector(args[0]) ? fixnum((int64_t)length_of(args[0])) : fail("vector-length", "not a vector", args[0]); }

static obj *element(const char *who, enum type type, const obj *args)
{
	if (!is_type(args[0], type))
		fail(who, "a wrong type", args[0]);
	else if (!is_fixnum(args[1]) || (uint64_t)fixnum_value(args[1]) >= length_of(args[0]))
		fail(who, "no such index", args[1]);
	else
		return &vector_of(args[0])->at[fixnum_value(args[1])];
	return NULL;
}

static obj get(const char *who, enum type type, const obj *args)
{
	const obj *at = element(who, type, args);

	return at ? *at : FAILED;
}

static obj set(const char *who, enum type type, const obj *args)
{
	obj *at = element(who, type, args);

	if (!at)
		return FAILED;
	*at = args[2];
	return UNSPECIFIED;
}
FN(vector_ref) { return get("vector-ref", T_VECTOR, args); }
FN(vector_set) { return set("vector-set!", T_VECTOR, args); }

FN(vector_to_list)
{
	size_t start, end;
	obj x = NIL;

	if (!is_vector(args[0]))
		return fail("vector->list", "not a vector", args[0]);
	if (!range("vector->list", args[0], n - 1, args + 1, &start, &end))
		return FAILED;
	while (end > start)
		x = cons(vector_of(args[0])->at[--end], x);
	return x;
}

FN(list_to_vector)
{
	int64_t k = list_length(args[0]);

	if (k < 0)
		return fail("list->vector", "not a list", args[0]);
	obj v = make_vector(T_VECTOR, (size_t)k, 0), x = args[0];
	for (int64_t i = 0; i < k; i++, x = cdr(x))
		vector_of(v)->at[i] = car(x);
	return v;
}

FN(vector_fill)
{
	size_t start, end;

	if (!is_vector(args[0]))
		return fail("vector-fill!", "not a vector", args[0]);
	if (!range("vector-fill!", args[0], n - 2, args + 2, &start, &end))
		return FAILED;
	for (; start < end; start++)
		vector_of(args[0])->at[start] = args[1];
	return UNSPECIFIED;
}

FN(vector_copy)
{
	size_t start, end;

	if (!is_vector(args[0]))
		return fail("vector-copy", "not a vector", args[0]);
	if (!range("vector-copy", args[0], n - 1, args + 1, &start, &end))
		return FAILED;
	obj v = make_vector(T_VECTOR, end - start, 0);
	memcpy(vector_of(v)->at, vector_of(args[0])->at + start, (end - start) * sizeof(obj));
	return v;
}

FN(vector_copy_to) /* to at from start end */
{
	size_t start, end;

	if (!is_vector(args[0]) || !is_vector(args[2]))
		return fail("vector-copy!", "not a vector", is_vector(args[0]) ? args[2] : args[0]);
	if (!range("vector-copy!", args[2], n - 3, args + 3, &start, &end))
		return FAILED;
	if (!is_fixnum(args[1]) || fixnum_value(args[1]) < 0 || (size_t)fixnum_value(args[1]) + (end - start) > length_of(args[0]))
		return fail("vector-copy!", "no room there", args[1]);
	memmove(vector_of(args[0])->at + fixnum_value(args[1]), vector_of(args[2])->at + start, (end - start) * sizeof(obj));
	return UNSPECIFIED;
}

/* ---- records ---- */

FN(make_record)
{
	obj r = make_vector(T_RECORD, n, 0);

	memcpy(vector_of(r)->at, args, n * sizeof(obj));
	return r;
}
FN(record_p) { return boolean(is_type(args[0], T_RECORD)); }
FN(record_of_p) { return boolean(is_type(args[0], T_RECORD) && vector_of(args[0])->at[0] == args[1]); }
FN(record_ref) { return get("%record-ref", T_RECORD, args); }
FN(record_set) { return set("%record-set!", T_RECORD, args); }

const struct primitive_entry list_primitives[] = {
	{"cons", cons_, 2, 2}, {"car", car_, 1, 1}, {"cdr", cdr_, 1, 1}, {"caar", caar, 1, 1}, {"cadr", cadr, 1, 1}, {"cdar", cdar, 1, 1},
	{"cddr", cddr, 1, 1}, {"caddr", caddr, 1, 1}, {"cdddr", cdddr, 1, 1}, {"cadar", cadar, 1, 1}, {"caadr", caadr, 1, 1}, {"cddar", cddar, 1, 1},
	{"cdadr", cdadr, 1, 1}, {"cadddr", cadddr, 1, 1}, {"set-car!", set_car, 2, 2}, {"set-cdr!", set_cdr, 2, 2}, {"list", list_, 0, -1},
	{"cons*", list_star, 1, -1}, {"length", length, 1, 1}, {"append", append, 0, -1}, {"%append2", append, 2, 2}, {"reverse", reverse, 1, 1},
	{"memq", memq, 2, 2}, {"memv", memv, 2, 2}, {"%member", member_, 2, 2}, {"assq", assq, 2, 2}, {"assv", assv, 2, 2}, {"%assoc", assoc_, 2, 2},
	{"list-tail", list_tail, 2, 2}, {"list-ref", list_ref, 2, 2}, {"eq?", eq_p, 2, 2}, {"eqv?", eqv_p, 2, 2}, {"equal?", equal_p, 2, 2},
	{"not", not_, 1, 1}, {"null?", null_p, 1, 1}, {"pair?", pair_p, 1, 1}, {"list?", list_p, 1, 1}, {"boolean?", boolean_p, 1, 1},
	{"symbol?", symbol_p, 1, 1}, {"string?", string_p, 1, 1}, {"char?", char_p, 1, 1}, {"vector?", vector_p, 1, 1}, {"eof-object?", eof_p, 1, 1},
	{"procedure?", procedure_p, 1, 1}, {"make-vector", make_vector_, 1, 2}, {"vector", vector_, 0, -1}, {"vector-length", vector_length, 1, 1},
	{"vector-ref", vector_ref, 2, 2}, {"vector-set!", vector_set, 3, 3}, {"vector->list", vector_to_list, 1, 3}, {"list->vector", list_to_vector, 1, 1},
	{"vector-fill!", vector_fill, 2, 4}, {"vector-copy", vector_copy, 1, 3}, {"vector-copy!", vector_copy_to, 3, 5}, {"%make-record", make_record, 1, -1},
	{"%record?", record_p, 1, 1}, {"%record-of?", record_of_p, 2, 2}, {"%record-ref", record_ref, 2, 2}, {"%record-set!", record_set, 3, 3},
	{NULL, NULL, 0, 0},
};
