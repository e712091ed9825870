/* SPDX-License-Identifier: MIT */
/* read.c - from text to data. Comments of all three kinds, quotes, vectors, strings and characters with escapes, numbers by number_parse(). */
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>

#include "lisp.h"

#define TOKEN_MOST 4096

/* What is no datum. */
#define CLOSE ((obj)0x106)
#define DOT ((obj)0x116)

static obj read_any(struct port *p);

static obj bad(const struct port *p, const char *message)
{
	char text[256];

	snprintf(text, sizeof(text), "%s:%u: %s", string_of(p->name)->at, p->line, message);
	return fail("read", text, UNBOUND);
}

static bool is_delimiter(int c) { return c < 0 || isspace(c) || strchr("()\";'", c); }

/* The comment has begun. */
static bool skip_block_comment(struct port *p)
{
	for (int depth = 1, c = port_get(p); depth; c = port_get(p)) {
		if (c < 0)
			return false;
		if (c == '#' && port_peek(p) == '|')
			depth += port_get(p) == '|';
		else if (c == '|' && port_peek(p) == '#')
			depth -= port_get(p) == '#';
		if (!depth)
			break;
	}
	return true;
}

/* The first character of a datum, or -1. */
static int skip_blanks(struct port *p)
{
	for (;;) {
		int c = port_get(p);

		if (c == ';')
			while (c >= 0 && c != '\n')
				c = port_get(p);
		else if (c < 0 || !isspace(c))
			return c;
	}
}

static obj read_list(struct port *p)
{
	obj done = NIL;

	for (;;) {
		obj x = read_any(p);

		if (x == FAILED)
			return x;
		if (x == END_OF_FILE)
			return bad(p, "a list has no end");
		if (x == CLOSE)
			return list_reverse(done);
		if (x == DOT) {
			obj tail = done == NIL ? CLOSE : read_any(p);

			if (tail == FAILED)
				return tail;
			if (tail == CLOSE || tail == END_OF_FILE || read_any(p) != CLOSE)
				return bad(p, "a dot out of place");
			obj whole = list_reverse(done);
			pair_of(done)->cdr = tail; /* done is the last pair now */
			return whole;
		}
		done = cons(x, done);
	}
}

static obj vector_from(obj elements)
{
	int64_t n = list_length(elements);
	obj v = make_vector(T_VECTOR, (size_t)n, 0);

	for (int64_t i = 0; i < n; i++, elements = cdr(elements))
		vector_of(v)->at[i] = car(elements);
	return v;
}

struct text {
	char *at;
	size_t used, room;
};

static void put_text(struct text *t, int c)
{
	if (t->used == t->room) {
		t->room = t->room ? t->room * 2 : 64;
		t->at = realloc(t->at, t->room);
		if (!t->at)
			abort();
	}
	t->at[t->used++] = (char)c;
}

/* A code point above 127 becomes UTF-8: strings are bytes. */
static void put_utf8(struct text *t, uint32_t c)
{
	if (c < 0x80) {
		put_text(t, (int)c);
		return;
	}
	int more = c < 0x800 ? 1 : c < 0x10000 ? 2 : 3;
	put_text(t, (int)(c >> 6 * more | (0xf00u >> more & 0xff)));
	while (more--)
		put_text(t, (int)(c >> 6 * more & 0x3f) | 0x80);
}

static bool read_escape(struct port *p, struct text *t)
{
	int c = port_get(p);
	static const char from[] = "abtnr\"\\|", to[] = "\a\b\t\n\r\"\\|";
	const char *known = c > 0 ? strchr(from, c) : NULL;

	if (known) {
		put_text(t, to[known - from]);
		return true;
	}
	if (c == 'x') {
		uint32_t n = 0;

		while (isxdigit(c = port_get(p)))
			n = n * 16 + (uint32_t)(isdigit(c) ? c - '0' : tolower(c) - 'a' + 10);
		put_utf8(t, n & 0x1fffff);
		return c == ';';
	}
	while (c == ' ' || c == '\t') /* a line goes on after its end */
		c = port_get(p);
	if (c != '\n')
		return false;
	while (port_peek(p) == ' ' || port_peek(p) == '\t')
		port_get(p);
	return true;
}

/* Up to the closing quote, which is a " or a |. */
static obj read_quoted(struct port *p, int quote)
{
	struct text t = {0};
	obj x = FAILED;
	int c;

	while ((c = port_get(p)) >= 0 && c != quote) {
		if (c != '\\') {
			put_text(&t, c);
		} else if (!read_escape(p, &t)) {
			free(t.at);
			return bad(p, "a bad escape in a string");
		}
	}
	if (c == quote)
		x = quote == '|' ? intern(t.at, t.used) : make_string(t.at, t.used);
	free(t.at);
	return x == FAILED ? bad(p, "a string has no end") : x;
}

static size_t read_token(struct port *p, int first, char *token)
{
	size_t n = 0;

	token[n++] = (char)first;
	while (!is_delimiter(port_peek(p)) && n < TOKEN_MOST)
		token[n++] = (char)port_get(p);
	token[n] = 0;
	return n;
}

static const struct {
	const char *name;
	uint32_t c;
} char_names[] = {
	{"space", ' '}, {"newline", '\n'}, {"tab", '\t'}, {"return", '\r'}, {"null", 0}, {"nul", 0}, {"delete", 127}, {"escape", 27}, {"backspace", 8},
	{"alarm", 7},
};

static obj read_char(struct port *p)
{
	char token[TOKEN_MOST + 1];
	int first = port_get(p);

	if (first < 0)
		return bad(p, "a character is missing");
	size_t n = read_token(p, first, token);
	if (n == 1)
		return character((unsigned char)token[0]);
	for (size_t i = 0; i < sizeof(char_names) / sizeof(char_names[0]); i++)
		if (!strcmp(token, char_names[i].name))
			return character(char_names[i].c);
	if (token[0] == 'x')
		return character((uint32_t)strtoul(token + 1, NULL, 16) & 0x1fffff);
	return bad(p, "an unknown name of a character");
}

static obj read_hash(struct port *p)
{
	char token[TOKEN_MOST + 1];
	int c = port_get(p);

	switch (c) {
	case '(': {
		obj x = read_list(p);
		return x == FAILED ? x : vector_from(x);
	}
	case '\\':
		return read_char(p);
	case '|':
		return skip_block_comment(p) ? read_any(p) : bad(p, "a comment has no end");
	case ';': {
		obj x = read_any(p);
		return x == FAILED ? x : read_any(p);
	}
	case '!':
		while (c >= 0 && c != '\n')
			c = port_get(p);
		return read_any(p);
	}
	size_t n = c < 0 ? 0 : read_token(p, c, token);
	if (n && (!strcmp(token, "t") || !strcmp(token, "true")))
		return TRUE;
	if (n && (!strcmp(token, "f") || !strcmp(token, "false")))
		return FALSE;
	int radix = c == 'x' ? 16 : c == 'b' ? 2 : c == 'o' ? 8 : c == 'd' ? 10 : 0;
	obj number = radix && n > 1 ? number_parse(token + 1, n - 1, radix) : FALSE;
	return number != FALSE ? number : bad(p, "# and something unknown");
}

static obj read_prefixed(struct port *p, obj name)
{
	obj x = read_any(p);

	if (x == END_OF_FILE || x == CLOSE || x == DOT)
		return bad(p, "a quote of nothing");
	return x == FAILED ? x : list(2, name, x);
}

static obj read_atom(struct port *p, int first)
{
	char token[TOKEN_MOST + 1];
	size_t n = read_token(p, first, token);

	if (n == TOKEN_MOST)
		return bad(p, "a name is too long");
	if (n == 1 && first == '.')
		return DOT;
	obj number = number_parse(token, n, 10);
	return number != FALSE ? number : intern(token, n);
}

/* CLOSE and DOT, too. */
static obj read_any(struct port *p)
{
	int c = skip_blanks(p);

	if (c_stack_is_low())
		return bad(p, "too deep");
	switch (c) {
	case -1:
		return END_OF_FILE;
	case '(':
	case '[':
		return read_list(p);
	case ')':
	case ']':
		return CLOSE;
	case '\'':
		return read_prefixed(p, world->quote);
	case '`':
		return read_prefixed(p, world->quasiquote);
	case ',':
		if (port_peek(p) != '@')
			return read_prefixed(p, world->unquote);
		port_get(p);
		return read_prefixed(p, world->unquote_splicing);
	case '"':
	case '|':
		return read_quoted(p, c);
	case '#':
		return read_hash(p);
	}
	return read_atom(p, c);
}

obj read_datum(struct port *p)
{
	obj x = read_any(p);

	if (x == CLOSE)
		return bad(p, "a closing parenthesis too many");
	return x == DOT ? bad(p, "a dot out of place") : x;
}
