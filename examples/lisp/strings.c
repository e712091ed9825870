/* SPDX-License-Identifier: MIT */
/* strings.c - primitives on strings, characters and symbols. A string is bytes, and a character of it below 256: UTF-8 passes through as it is. */
#include <ctype.h>
#include <stdio.h>

#include "lisp.h"

#define FN(name) static obj name(struct vm *vm __attribute__((unused)), unsigned n __attribute__((unused)), obj *args __attribute__((unused)))

static obj not_string(const char *who, obj x) { return fail(who, "not a string", x); }

static bool range(const char *who, obj string, unsigned n, const obj *args, size_t *start, size_t *end)
{
	*start = 0;
	if (!is_string(string)) {
		not_string(who, string);
		return false;
	}
	*end = length_of(string);
	for (unsigned i = 0; i < n && i < 2; i++) {
		if (!is_fixnum(args[i]) || fixnum_value(args[i]) < 0 || (size_t)fixnum_value(args[i]) > length_of(string)) {
			fail(who, "no such index", args[i]);
			return false;
		}
		*(i ? end : start) = (size_t)fixnum_value(args[i]);
	}
	if (*start > *end)
		fail(who, "a range that ends before it begins", args[0]);
	return *start <= *end;
}

static bool is_byte(obj x) { return is_char(x) && char_value(x) < 256; }

FN(make_string_)
{
	if (!is_fixnum(args[0]) || (int64_t)args[0] < 0 || fixnum_value(args[0]) > (int64_t)1 << 40)
		return fail("make-string", "not a size", args[0]);
	if (n > 1 && !is_byte(args[1]))
		return fail("make-string", "not a character below 256", args[1]);
	obj s = make_string(NULL, (size_t)fixnum_value(args[0]));
	memset(string_of(s)->at, n > 1 ? (int)char_value(args[1]) : ' ', length_of(s));
	return s;
}

FN(string_)
{
	obj s = make_string(NULL, n);

	for (unsigned i = 0; i < n; i++) {
		if (!is_byte(args[i]))
			return fail("string", "not a character below 256", args[i]);
		string_of(s)->at[i] = (char)char_value(args[i]);
	}
	return s;
}

FN(string_length) { return is_string(args[0]) ? fixnum((int64_t)length_of(args[0])) : not_string("string-length", args[0]); }

static char *element(const char *who, const obj *args)
{
	if (!is_string(args[0]))
		not_string(who, args[0]);
	else if (!is_fixnum(args[1]) || (uint64_t)fixnum_value(args[1]) >= length_of(args[0]))
		fail(who, "no such index", args[1]);
	else
		return &string_of(args[0])->at[fixnum_value(args[1])];
	return NULL;
}

FN(string_ref)
{
	const char *at = element("string-ref", args);

	return at ? character((unsigned char)*at) : FAILED;
}

FN(string_set)
{
	char *at = element("string-set!", args);

	if (!at)
		return FAILED;
	if (!is_byte(args[2]))
		return fail("string-set!", "not a character below 256", args[2]);
	*at = (char)char_value(args[2]);
	return UNSPECIFIED;
}

FN(substring)
{
	size_t start, end;

	if (!range("substring", args[0], n - 1, args + 1, &start, &end))
		return FAILED;
	obj s = make_string(NULL, end - start);
	memcpy(string_of(s)->at, string_of(args[0])->at + start, end - start);
	return s;
}

FN(string_append)
{
	size_t length = 0;

	for (unsigned i = 0; i < n; i++) {
		if (!is_string(args[i]))
			return not_string("string-append", args[i]);
		length += length_of(args[i]);
	}
	obj s = make_string(NULL, length);
	char *at = string_of(s)->at;
	for (unsigned i = 0; i < n; at += length_of(args[i++]))
		memcpy(at, string_of(args[i])->at, length_of(args[i]));
	return s;
}

static int order_of(obj a, obj b)
{
	size_t x = length_of(a), y = length_of(b);
	int order = memcmp(string_of(a)->at, string_of(b)->at, x < y ? x : y);

	return order ? order : (x > y) - (x < y);
}

#define COMPARE(name, who, op) \
	FN(name) \
	{ \
		bool right = true; \
		for (unsigned i = 0; i < n; i++) { \
			if (!is_string(args[i])) \
				return not_string(who, args[i]); \
			right &= !i || order_of(args[i - 1], args[i]) op 0; \
		} \
		return boolean(right); \
	}
COMPARE(string_equal, "string=?", ==)
COMPARE(string_less, "string<?", <)
COMPARE(string_more, "string>?", >)
COMPARE(string_less_equal, "string<=?", <=)
COMPARE(string_more_equal, "string>=?", >=)

FN(string_to_list)
{
	size_t start, end;
	obj x = NIL;

	if (!range("string->list", args[0], n - 1, args + 1, &start, &end))
		return FAILED;
	while (end > start)
		x = cons(character((unsigned char)string_of(args[0])->at[--end]), x);
	return x;
}

FN(list_to_string)
{
	int64_t k = list_length(args[0]);

	if (k < 0)
		return fail("list->string", "not a list", args[0]);
	obj s = make_string(NULL, (size_t)k), x = args[0];
	for (int64_t i = 0; i < k; i++, x = cdr(x)) {
		if (!is_byte(car(x)))
			return fail("list->string", "not a character below 256", car(x));
		string_of(s)->at[i] = (char)char_value(car(x));
	}
	return s;
}

FN(string_fill)
{
	size_t start, end;

	if (!range("string-fill!", args[0], n - 2, args + 2, &start, &end))
		return FAILED;
	if (!is_byte(args[1]))
		return fail("string-fill!", "not a character below 256", args[1]);
	memset(string_of(args[0])->at + start, (int)char_value(args[1]), end - start);
	return UNSPECIFIED;
}

static obj change_case(const char *who, obj x, int (*to)(int))
{
	if (!is_string(x))
		return not_string(who, x);
	obj s = make_string(string_of(x)->at, length_of(x));
	for (size_t i = 0; i < length_of(s); i++)
		string_of(s)->at[i] = (char)to((unsigned char)string_of(s)->at[i]);
	return s;
}
FN(string_upcase) { return change_case("string-upcase", args[0], toupper); }
FN(string_downcase) { return change_case("string-downcase", args[0], tolower); }

/* Where the second is in the first, or #f. */
FN(string_search)
{
	if (!is_string(args[0]) || !is_string(args[1]))
		return not_string("string-search", is_string(args[0]) ? args[1] : args[0]);
	const char *at = memmem(string_of(args[0])->at, length_of(args[0]), string_of(args[1])->at, length_of(args[1]));
	return at ? fixnum(at - string_of(args[0])->at) : FALSE;
}

/* ---- symbols ---- */

FN(symbol_to_string) { return is_symbol(args[0]) ? symbol_of(args[0])->name : fail("symbol->string", "not a symbol", args[0]); }

FN(string_to_symbol)
{
	return is_string(args[0]) ? intern(string_of(args[0])->at, length_of(args[0])) : not_string("string->symbol", args[0]);
}

FN(generate_symbol)
{
	static uint64_t count;
	char text[32];
	struct symbol *s = mem_words(sizeof(*s)); /* in no table: nobody else has it */

	snprintf(text, sizeof(text), "g%llu", (unsigned long long)__atomic_add_fetch(&count, 1, __ATOMIC_RELAXED));
	*s = (struct symbol){HEADER(T_SYMBOL, 0), UNBOUND, string_from(text), fixnum(0)};
	return (obj)s;
}

/* ---- characters ---- */

static obj not_char(const char *who, obj x) { return fail(who, "not a character", x); }

FN(char_to_integer) { return is_char(args[0]) ? fixnum(char_value(args[0])) : not_char("char->integer", args[0]); }

FN(integer_to_char)
{
	if (!is_fixnum(args[0]) || fixnum_value(args[0]) < 0 || fixnum_value(args[0]) > 0x10ffff)
		return fail("integer->char", "no such character", args[0]);
	return character((uint32_t)fixnum_value(args[0]));
}

#define COMPARE_CHARS(name, who, op, key) \
	FN(name) \
	{ \
		bool right = true; \
		for (unsigned i = 0; i < n; i++) { \
			if (!is_char(args[i])) \
				return not_char(who, args[i]); \
			right &= !i || key(char_value(args[i - 1])) op key(char_value(args[i])); \
		} \
		return boolean(right); \
	}
#define PLAIN(c) (c)
#define FOLDED(c) ((c) < 128 ? tolower((int)(c)) : (int)(c))
COMPARE_CHARS(char_equal, "char=?", ==, PLAIN)
COMPARE_CHARS(char_less, "char<?", <, PLAIN)
COMPARE_CHARS(char_more, "char>?", >, PLAIN)
COMPARE_CHARS(char_less_equal, "char<=?", <=, PLAIN)
COMPARE_CHARS(char_more_equal, "char>=?", >=, PLAIN)
COMPARE_CHARS(char_equal_folded, "char-ci=?", ==, FOLDED)

#define CLASS(name, who, test) \
	FN(name) { return is_char(args[0]) ? boolean(char_value(args[0]) < 128 && test((int)char_value(args[0]))) : not_char(who, args[0]); }
CLASS(char_alphabetic, "char-alphabetic?", isalpha)
CLASS(char_numeric, "char-numeric?", isdigit)
CLASS(char_whitespace, "char-whitespace?", isspace)
CLASS(char_upper, "char-upper-case?", isupper)
CLASS(char_lower, "char-lower-case?", islower)

#define CHANGE(name, who, to) \
	FN(name) { return is_char(args[0]) ? character(char_value(args[0]) < 128 ? (uint32_t)to((int)char_value(args[0])) : char_value(args[0])) : not_char(who, args[0]); }
CHANGE(char_upcase, "char-upcase", toupper)
CHANGE(char_downcase, "char-downcase", tolower)

const struct primitive_entry string_primitives[] = {
	{"make-string", make_string_, 1, 2}, {"string", string_, 0, -1}, {"string-length", string_length, 1, 1}, {"string-ref", string_ref, 2, 2},
	{"string-set!", string_set, 3, 3}, {"substring", substring, 2, 3}, {"string-copy", substring, 1, 3}, {"string-append", string_append, 0, -1},
	{"string=?", string_equal, 1, -1}, {"string<?", string_less, 1, -1}, {"string>?", string_more, 1, -1}, {"string<=?", string_less_equal, 1, -1},
	{"string>=?", string_more_equal, 1, -1}, {"string->list", string_to_list, 1, 3}, {"list->string", list_to_string, 1, 1},
	{"string-fill!", string_fill, 2, 4}, {"string-upcase", string_upcase, 1, 1}, {"string-downcase", string_downcase, 1, 1},
	{"string-search", string_search, 2, 2}, {"symbol->string", symbol_to_string, 1, 1}, {"string->symbol", string_to_symbol, 1, 1},
	{"generate-symbol", generate_symbol, 0, 1}, {"char->integer", char_to_integer, 1, 1}, {"integer->char", integer_to_char, 1, 1},
	{"char=?", char_equal, 1, -1}, {"char<?", char_less, 1, -1}, {"char>?", char_more, 1, -1}, {"char<=?", char_less_equal, 1, -1},
	{"char>=?", char_more_equal, 1, -1}, {"char-ci=?", char_equal_folded, 1, -1}, {"char-alphabetic?", char_alphabetic, 1, 1},
	{"char-numeric?", char_numeric, 1, 1}, {"char-whitespace?", char_whitespace, 1, 1}, {"char-upper-case?", char_upper, 1, 1},
	{"char-lower-case?", char_lower, 1, 1}, {"char-upcase", char_upcase, 1, 1}, {"char-downcase", char_downcase, 1, 1}, {NULL, NULL, 0, 0},
};
