/* SPDX-License-Identifier: MIT */
/* print.c - from data to text; conditions and backtraces for people. */
#include <ctype.h>
#include <stdio.h>

#include "lisp.h"

static void print_char(struct port *p, uint32_t c)
{
	char text[32];

	if (c == ' ')
		port_puts(p, "#\\space");
	else if (c == '\n')
		port_puts(p, "#\\newline");
	else if (c == '\t')
		port_puts(p, "#\\tab");
	else if (c > ' ' && c < 127) {
		snprintf(text, sizeof(text), "#\\%c", (int)c);
		port_puts(p, text);
	} else {
		snprintf(text, sizeof(text), "#\\x%x", c);
		port_puts(p, text);
	}
}

static void print_escaped(struct port *p, const struct string *s, size_t length, char quote)
{
	port_put(p, &quote, 1);
	for (size_t i = 0; i < length; i++) {
		char c = s->at[i], escape[] = {'\\', c};

		if (c == quote || c == '\\')
			port_put(p, escape, 2);
		else if (c == '\n')
			port_puts(p, "\\n");
		else if (c == '\t')
			port_puts(p, "\\t");
		else if (c == '\r')
			port_puts(p, "\\r");
		else
			port_put(p, &c, 1);
	}
	port_put(p, &quote, 1);
}

static void print_symbol(struct port *p, obj x, bool write)
{
	obj name = symbol_of(x)->name;
	const char *text = string_of(name)->at;
	size_t length = length_of(name);
	bool plain = length && number_parse(text, length, 10) == FALSE && text[0] != '#';

	for (size_t i = 0; plain && i < length; i++)
		plain = !isspace((unsigned char)text[i]) && !strchr("()\";'|,`", text[i]);
	if (plain || !write)
		port_put(p, text, length);
	else
		print_escaped(p, string_of(name), length, '|');
}

static bool print_quotation(struct port *p, obj x, bool write)
{
	const char *mark = car(x) == world->quote ? "'" : car(x) == world->quasiquote ? "`" : car(x) == world->unquote ? "," : NULL;

	if (!mark || !is_pair(cdr(x)) || cdr(cdr(x)) != NIL)
		return false;
	port_puts(p, mark);
	print(p, car(cdr(x)), write);
	return true;
}

static void print_list(struct port *p, obj x, bool write)
{
	if (print_quotation(p, x, write))
		return;
	const char *before = "(";
	for (; is_pair(x); x = cdr(x), before = " ") {
		port_puts(p, before);
		print(p, car(x), write);
	}
	if (x != NIL) {
		port_puts(p, " . ");
		print(p, x, write);
	}
	port_puts(p, ")");
}

static void print_vector(struct port *p, const struct vector *v, size_t from, bool write)
{
	size_t n = header_length(v->header);

	for (size_t i = from; i < n; i++) {
		if (i > from)
			port_puts(p, " ");
		print(p, v->at[i], write);
	}
}

static void print_named(struct port *p, const char *what, obj name, obj x)
{
	char text[32];

	port_puts(p, "#<");
	port_puts(p, what);
	if (is_symbol(name)) {
		port_puts(p, " ");
		print(p, name, false);
	} else if (is_string(name)) {
		port_puts(p, " ");
		print(p, name, true);
	} else {
		snprintf(text, sizeof(text), " %#llx", (unsigned long long)x);
		port_puts(p, text);
	}
	port_puts(p, ">");
}

static void print_record(struct port *p, obj x, bool write)
{
	const struct vector *v = vector_of(x);

	port_puts(p, "#<");
	print(p, is_vector(v->at[0]) ? vector_of(v->at[0])->at[0] : v->at[0], write);
	if (length_of(x) > 1)
		port_puts(p, " ");
	print_vector(p, v, 1, write);
	port_puts(p, ">");
}

static void print_object(struct port *p, obj x, bool write)
{
	switch (type_of(x)) {
	case T_STRING:
		if (write)
			print_escaped(p, string_of(x), length_of(x), '"');
		else
			port_put(p, string_of(x)->at, length_of(x));
		return;
	case T_SYMBOL:
		print_symbol(p, x, write);
		return;
	case T_VECTOR:
		port_puts(p, "#(");
		print_vector(p, vector_of(x), 0, write);
		port_puts(p, ")");
		return;
	case T_VALUES:
		print_vector(p, vector_of(x), 0, write);
		return;
	case T_RECORD:
		print_record(p, x, write);
		return;
	case T_CLOSURE:
		print_named(p, "procedure", closure_of(x)->code->name, x);
		return;
	case T_PRIMITIVE:
		print_named(p, "primitive", vector_of(world->primitives)->at[fixnum_value(((struct primitive *)x)->index)], x);
		return;
	case T_PORT:
		print_named(p, "port", ((struct port *)x)->name, x);
		return;
	case T_CONTINUATION:
		print_named(p, "continuation", FALSE, x);
		return;
	case T_TABLE:
		print_named(p, "hash-table", FALSE, x);
		return;
	case T_ALIAS:
		print(p, strip_syntax(x), write);
		return;
	default:
		print_named(p, "object", FALSE, x);
	}
}

static void print_constant(struct port *p, obj x)
{
	port_puts(p, x == TRUE ? "#t" : x == FALSE ? "#f" : x == NIL ? "()" : x == END_OF_FILE ? "#<eof>" : x == DEFAULT ? "#<default>" : "#<unspecified>");
}

/* write: as read_datum() takes it, else as display. */
void print(struct port *p, obj x, bool write)
{
	char text[128];

	if (c_stack_is_low()) {
		port_puts(p, "...");
	} else if (is_number(x)) {
		port_put(p, text, number_print(x, 10, text));
	} else if (is_pair(x)) {
		print_list(p, x, write);
	} else if (is_char(x)) {
		char c = (char)char_value(x);

		if (write)
			print_char(p, char_value(x));
		else
			port_put(p, &c, 1);
	} else if (is_object(x)) {
		print_object(p, x, write);
	} else {
		print_constant(p, x);
	}
}

void print_condition(struct port *p, obj c)
{
	if (!is_type(c, T_RECORD) || vector_of(c)->at[0] != world->condition_type) {
		port_puts(p, "raised: ");
		print(p, c, true);
		return;
	}
	if (vector_of(c)->at[1] != FALSE) {
		print(p, vector_of(c)->at[1], false);
		port_puts(p, ": ");
	}
	print(p, vector_of(c)->at[2], false);
	for (obj x = vector_of(c)->at[3]; is_pair(x); x = cdr(x)) {
		port_puts(p, is_string(vector_of(c)->at[2]) && x == vector_of(c)->at[3] ? ": " : " ");
		print(p, car(x), true);
	}
}

/* Who waits for whom, innermost first, as the last error found it. */
void print_backtrace(struct port *p, const struct vm *vm)
{
	const char *before = "  in ";

	for (obj at = vm->trace; is_pair(at); at = cdr(at), before = " < ") {
		port_puts(p, before);
		print(p, car(at), false);
	}
	if (is_pair(vm->trace))
		port_puts(p, "\n");
}
