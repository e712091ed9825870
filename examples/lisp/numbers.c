/* SPDX-License-Identifier: MIT */
/* numbers.c - fixnums of 63 bits and flonums. What does not fit a fixnum becomes a flonum: there are no larger integers. */
#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "lisp.h"

static double real(obj x) { return is_fixnum(x) ? (double)fixnum_value(x) : flonum_value(x); }

static obj not_number(const char *who, obj a, obj b) { return fail(who, "not a number", is_number(a) ? b : a); }

static obj integer(int64_t n) { return n >= FIXNUM_MIN && n <= FIXNUM_MAX ? fixnum(n) : flonum((double)n); }

#define TWO(name, who, op, builtin) \
	obj name(obj a, obj b) \
	{ \
		int64_t r; \
		if (is_fixnum(a) && is_fixnum(b)) \
			return builtin(fixnum_value(a), fixnum_value(b), &r) ? flonum(real(a) op real(b)) : integer(r); \
		return is_number(a) && is_number(b) ? flonum(real(a) op real(b)) : not_number(who, a, b); \
	}
TWO(number_add, "+", +, __builtin_saddl_overflow)
TWO(number_sub, "-", -, __builtin_ssubl_overflow)
TWO(number_mul, "*", *, __builtin_smull_overflow)

static obj divide(obj a, obj b)
{
	if (!is_number(a) || !is_number(b))
		return not_number("/", a, b);
	if (b == fixnum(0))
		return fail("/", "division by zero", UNBOUND);
	if (is_fixnum(a) && is_fixnum(b) && fixnum_value(a) % fixnum_value(b) == 0)
		return integer(fixnum_value(a) / fixnum_value(b));
	return flonum(real(a) / real(b));
}

static bool is_integer(obj x) { return is_fixnum(x) || (is_flonum(x) && floor(flonum_value(x)) == flonum_value(x) && isfinite(flonum_value(x))); }

static double truncate_quotient(double a, double b) { return trunc(a / b); }
static double floor_modulo(double a, double b) { return a - b * floor(a / b); }

static obj divide_integers(const char *who, obj a, obj b, double (*op)(double, double))
{
	if (!is_integer(a) || !is_integer(b))
		return fail(who, "not an integer", is_integer(a) ? b : a);
	if (real(b) == 0)
		return fail(who, "division by zero", UNBOUND);
	if (!is_fixnum(a) || !is_fixnum(b))
		return flonum(op(real(a), real(b)));
	int64_t x = fixnum_value(a), y = fixnum_value(b);
	if (op == truncate_quotient)
		return integer(x / y);
	int64_t r = x % y;
	return fixnum(op == floor_modulo && r && (r < 0) != (y < 0) ? r + y : r);
}

obj number_quotient(obj a, obj b) { return divide_integers("quotient", a, b, truncate_quotient); }
obj number_remainder(obj a, obj b) { return divide_integers("remainder", a, b, fmod); }
obj number_modulo(obj a, obj b) { return divide_integers("modulo", a, b, floor_modulo); }

obj number_compare(const char *who, obj a, obj b, int *order)
{
	if (is_fixnum(a) && is_fixnum(b)) {
		*order = ((int64_t)a > (int64_t)b) - ((int64_t)a < (int64_t)b);
		return TRUE;
	}
	if (!is_number(a) || !is_number(b))
		return not_number(who, a, b);
	double x = real(a), y = real(b);
	*order = x != x || y != y ? 2 : (x > y) - (x < y);
	return TRUE;
}

/* ---- text ---- */

static bool parse_integer(const char *text, size_t length, int radix, int64_t *n)
{
	bool minus = length && text[0] == '-';
	size_t i = minus || (length && text[0] == '+');
	int64_t value = 0;

	if (i == length)
		return false;
	for (; i < length; i++) {
		int c = tolower((unsigned char)text[i]), digit = isdigit(c) ? c - '0' : isalpha(c) ? c - 'a' + 10 : radix;

		if (digit >= radix || __builtin_smull_overflow(value, radix, &value) || __builtin_ssubl_overflow(value, digit, &value))
			return false;
	}
	if (value < FIXNUM_MIN || (!minus && value < -FIXNUM_MAX))
		return false;
	*n = minus ? value : -value;
	return true;
}

obj number_parse(const char *text, size_t length, int radix)
{
	char copy[400], *end;
	int64_t n;

	if (!length || length >= sizeof(copy))
		return FALSE;
	int first = (unsigned char)text[0], after = length > 1 ? (unsigned char)text[1] : 0;
	if (!isxdigit(first) && first != '+' && first != '-' && first != '.')
		return FALSE;
	if (parse_integer(text, length, radix, &n))
		return fixnum(n);
	memcpy(copy, text, length);
	copy[length] = 0;
	if (!strcmp(copy, "+inf.0"))
		return flonum(INFINITY);
	if (!strcmp(copy, "-inf.0"))
		return flonum(-INFINITY);
	if (!strcmp(copy, "+nan.0") || !strcmp(copy, "-nan.0"))
		return flonum(NAN);
	bool sign = first == '+' || first == '-';
	int digit = sign ? after : first;
	if (radix != 10 || (!isdigit(digit) && digit != '.') || strpbrk(copy, "xXpPnN"))
		return FALSE;
	double value = strtod(copy, &end);
	return *end || end == copy + sign ? FALSE : flonum(value);
}

static size_t print_radix(int64_t n, int radix, char *into)
{
	char digits[72];
	size_t used = 0, length = 0;
	uint64_t rest = n < 0 ? -(uint64_t)n : (uint64_t)n;

	do
		digits[used++] = "0123456789abcdefghijklmnopqrstuvwxyz"[rest % (unsigned)radix];
	while (rest /= (unsigned)radix);
	if (n < 0)
		into[length++] = '-';
	while (used)
		into[length++] = digits[--used];
	return length;
}

size_t number_print(obj x, int radix, char *into)
{
	double value;

	if (is_fixnum(x))
		return print_radix(fixnum_value(x), radix, into);
	value = flonum_value(x);
	if (value != value || value - value != 0)
		return (size_t)sprintf(into, "%s", value != value ? "+nan.0" : value > 0 ? "+inf.0" : "-inf.0");
	int length = 0;
	for (int digits = 15; digits <= 17; digits++) { /* the shortest that reads as the same */
		length = sprintf(into, "%.*g", digits, value);
		if (strtod(into, NULL) == value)
			break;
	}
	if (!strpbrk(into, ".e"))
		length += sprintf(into + length, ".0");
	return (size_t)length;
}

/* ---- primitives ---- */

#define FN(name) static obj name(struct vm *vm __attribute__((unused)), unsigned n __attribute__((unused)), obj *args __attribute__((unused)))

#define FOLD(name, op, unit) \
	FN(name) \
	{ \
		obj r = unit; \
		for (unsigned i = 0; i < n && r != FAILED; i++) \
			r = op(r, args[i]); \
		return r; \
	}
FOLD(add, number_add, fixnum(0))
FOLD(multiply, number_mul, fixnum(1))

#define FOLD_FIRST(name, op, unit) \
	FN(name) \
	{ \
		obj r = n > 1 ? args[0] : unit; \
		for (unsigned i = n > 1; i < n && r != FAILED; i++) \
			r = op(r, args[i]); \
		return r; \
	}
FOLD_FIRST(subtract, number_sub, fixnum(0))
FOLD_FIRST(divide_all, divide, fixnum(1))

#define COMPARE(name, who, op) \
	FN(name) \
	{ \
		bool right = true; \
		int order; \
		for (unsigned i = 0; i + 1 < n; i++) { \
			if (number_compare(who, args[i], args[i + 1], &order) == FAILED) \
				return FAILED; \
			right &= order != 2 && order op 0; \
		} \
		return n > 1 || is_number(args[0]) ? boolean(right) : not_number(who, args[0], args[0]); \
	}
COMPARE(equal_all, "=", ==)
COMPARE(less, "<", <)
COMPARE(more, ">", >)
COMPARE(less_equal, "<=", <=)
COMPARE(more_equal, ">=", >=)

FN(quotient) { return number_quotient(args[0], args[1]); }
FN(remainder_) { return number_remainder(args[0], args[1]); }
FN(modulo) { return number_modulo(args[0], args[1]); }

FN(is_zero)
{
	int order;

	return number_compare("zero?", args[0], fixnum(0), &order) == FAILED ? FAILED : boolean(!order);
}

static obj most(const char *who, unsigned n, obj *args, int sign)
{
	obj best = args[0];
	bool exact = is_fixnum(best);

	for (unsigned i = 0; i < n; i++) {
		int order;

		if (number_compare(who, args[i], best, &order) == FAILED)
			return FAILED;
		exact &= is_fixnum(args[i]);
		if (order == sign)
			best = args[i];
	}
	return exact || is_flonum(best) ? best : flonum(real(best));
}
FN(maximum) { return most("max", n, args, 1); }
FN(minimum) { return most("min", n, args, -1); }

#define MATH(name, who, expression) \
	FN(name) \
	{ \
		if (!is_number(args[0])) \
			return not_number(who, args[0], args[0]); \
		double x = real(args[0]); \
		return flonum(expression); \
	}
MATH(sine, "sin", sin(x))
MATH(cosine, "cos", cos(x))
MATH(tangent, "tan", tan(x))
MATH(arcsine, "asin", asin(x))
MATH(arccosine, "acos", acos(x))
MATH(exponential, "exp", exp(x))

#define ROUND(name, who, expression) \
	FN(name) \
	{ \
		if (!is_number(args[0])) \
			return not_number(who, args[0], args[0]); \
		if (is_fixnum(args[0])) \
			return args[0]; \
		double x = flonum_value(args[0]); \
		return flonum(expression); \
	}
ROUND(floor_, "floor", floor(x))
ROUND(ceiling_, "ceiling", ceil(x))
ROUND(truncate_, "truncate", trunc(x))
ROUND(round_, "round", nearbyint(x))

FN(logarithm)
{
	if (!is_number(args[0]) || (n > 1 && !is_number(args[1])))
		return not_number("log", args[0], n > 1 ? args[1] : args[0]);
	return flonum(n > 1 ? log(real(args[0])) / log(real(args[1])) : log(real(args[0])));
}

FN(arctangent)
{
	if (!is_number(args[0]) || (n > 1 && !is_number(args[1])))
		return not_number("atan", args[0], n > 1 ? args[1] : args[0]);
	return flonum(n > 1 ? atan2(real(args[0]), real(args[1])) : atan(real(args[0])));
}

/* The exact integer where there is one. */
static obj exactly(obj was, double x)
{
	return is_fixnum(was) && x == floor(x) && fabs(x) < 0x1p53 ? fixnum((int64_t)x) : flonum(x);
}

FN(square_root)
{
	return is_number(args[0]) ? exactly(args[0], sqrt(real(args[0]))) : not_number("sqrt", args[0], args[0]);
}

FN(expt_)
{
	if (!is_number(args[0]) || !is_number(args[1]))
		return not_number("expt", args[0], args[1]);
	if (!is_fixnum(args[1]) || (int64_t)args[1] < 0)
		return flonum(pow(real(args[0]), real(args[1])));
	obj r = fixnum(1), base = args[0];
	for (uint64_t e = (uint64_t)fixnum_value(args[1]); e; e >>= 1) {
		if (e & 1)
			r = number_mul(r, base);
		if (e > 1)
			base = number_mul(base, base);
	}
	return r;
}

FN(to_exact)
{
	if (is_fixnum(args[0]))
		return args[0];
	if (!is_integer(args[0]) || fabs(flonum_value(args[0])) >= 0x1p62)
		return fail("exact", "not an integer that can be exact", args[0]);
	return fixnum((int64_t)flonum_value(args[0]));
}

FN(to_inexact)
{
	return is_number(args[0]) ? flonum(real(args[0])) : not_number("inexact", args[0], args[0]);
}

FN(number_p) { return boolean(is_number(args[0])); }
FN(integer_p) { return boolean(is_integer(args[0])); }
FN(exact_p) { return boolean(is_fixnum(args[0])); }
FN(inexact_p) { return boolean(is_flonum(args[0])); }
FN(nan_p) { return boolean(is_flonum(args[0]) && isnan(flonum_value(args[0]))); }

#define BITS(name, who, expression) \
	FN(name) \
	{ \
		int64_t r = is_fixnum(args[0]) ? fixnum_value(args[0]) : 0; \
		for (unsigned i = 0; i < n; i++) { \
			if (!is_fixnum(args[i])) \
				return fail(who, "not a fixnum", args[i]); \
			int64_t x = fixnum_value(args[i]); \
			if (i) \
				r = expression; \
		} \
		return fixnum(r); \
	}
BITS(bit_and, "bitwise-and", r & x)
BITS(bit_or, "bitwise-or", r | x)
BITS(bit_xor, "bitwise-xor", r ^ x)

FN(shift)
{
	if (!is_fixnum(args[0]) || !is_fixnum(args[1]))
		return fail("arithmetic-shift", "not a fixnum", is_fixnum(args[0]) ? args[1] : args[0]);
	int64_t by = fixnum_value(args[1]);
	if (by < 0)
		return fixnum(fixnum_value(args[0]) >> (by < -63 ? 63 : -by));
	return number_mul(args[0], by < 62 ? fixnum((int64_t)1 << by) : flonum(ldexp(1, by > 2000 ? 2000 : (int)by)));
}

FN(number_to_string)
{
	char text[128];
	int64_t radix = n > 1 && is_fixnum(args[1]) ? fixnum_value(args[1]) : 10;

	if (!is_number(args[0]) || radix < 2 || radix > 36)
		return not_number("number->string", args[0], args[0]);
	return make_string(text, number_print(args[0], (int)radix, text));
}

FN(string_to_number)
{
	if (!is_string(args[0]))
		return fail("string->number", "not a string", args[0]);
	return number_parse(string_of(args[0])->at, length_of(args[0]), n > 1 && is_fixnum(args[1]) ? (int)fixnum_value(args[1]) : 10);
}

/* xorshift, of one state for all: (random N) is for tests and examples. */
FN(random_)
{
	static uint64_t state = 0x9e3779b97f4a7c15u;
	uint64_t x = __atomic_load_n(&state, __ATOMIC_RELAXED);

	x ^= x << 13;
	x ^= x >> 7;
	x ^= x << 17;
	__atomic_store_n(&state, x, __ATOMIC_RELAXED);
	if (is_flonum(args[0]))
		return flonum((double)(x >> 11) * 0x1p-53 * flonum_value(args[0]));
	if (!is_fixnum(args[0]) || (int64_t)args[0] < 2)
		return fail("random", "not a positive number", args[0]);
	return fixnum((int64_t)((x >> 2) % (uint64_t)fixnum_value(args[0])));
}

const struct primitive_entry number_primitives[] = {
	{"+", add, 0, -1}, {"*", multiply, 0, -1}, {"-", subtract, 1, -1}, {"/", divide_all, 1, -1}, {"=", equal_all, 1, -1}, {"<", less, 1, -1},
	{">", more, 1, -1}, {"<=", less_equal, 1, -1}, {">=", more_equal, 1, -1}, {"quotient", quotient, 2, 2}, {"remainder", remainder_, 2, 2},
	{"modulo", modulo, 2, 2}, {"zero?", is_zero, 1, 1}, {"max", maximum, 1, -1}, {"min", minimum, 1, -1}, {"sin", sine, 1, 1}, {"cos", cosine, 1, 1},
	{"tan", tangent, 1, 1}, {"asin", arcsine, 1, 1}, {"acos", arccosine, 1, 1}, {"exp", exponential, 1, 1}, {"log", logarithm, 1, 2},
	{"atan", arctangent, 1, 2}, {"floor", floor_, 1, 1}, {"ceiling", ceiling_, 1, 1}, {"truncate", truncate_, 1, 1}, {"round", round_, 1, 1},
	{"sqrt", square_root, 1, 1}, {"expt", expt_, 2, 2}, {"exact", to_exact, 1, 1}, {"inexact", to_inexact, 1, 1}, {"number?", number_p, 1, 1},
	{"integer?", integer_p, 1, 1}, {"exact?", exact_p, 1, 1}, {"inexact?", inexact_p, 1, 1}, {"nan?", nan_p, 1, 1}, {"bitwise-and", bit_and, 1, -1},
	{"bitwise-or", bit_or, 1, -1}, {"bitwise-xor", bit_xor, 1, -1}, {"arithmetic-shift", shift, 2, 2}, {"number->string", number_to_string, 1, 2},
	{"string->number", string_to_number, 1, 2}, {"random", random_, 1, 1}, {NULL, NULL, 0, 0},
};
