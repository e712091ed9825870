/* SPDX-License-Identifier: MIT */
/*
 * node.h - a program between expand.c and compile.c. All of these are objects of the heap, and garbage when the form is compiled; none of their
 * fields looks like an address that it is not.
 */
#ifndef LISP_NODE_H
#define LISP_NODE_H

#include "lisp.h"

/* What identifiers mean, innermost first. NULL is the global scope. */
struct scope {
	struct scope *up;
	obj name;       /* a symbol or an alias */
	struct variable *variable;
	obj macro;      /* if there is no variable */
};

/* Where a value goes that nothing is done with any more: in tail position of something. */
struct tail {
	struct tail *up;       /* that is in tail position itself */
	struct lambda *lambda; /* it is the body of that one */
};

struct variable {
	obj name;
	bool mutated; /* so it is in a box */
	bool escapes; /* it is more than called */
	bool label;   /* its lambda is no closure: calls are jumps */
	bool boxed_early;
	int64_t early;             /* the first item of a body that mentions it before it has a value; -1: none */
	int64_t *defining;         /* the item that is being expanded, as long as it has none */
	struct lambda *lambda;     /* bound to it, by fix */
	struct tail *tail;         /* of that fix: what a call has to be in for a jump */
	struct lambda *home;       /* whose frame it is in */
	uint32_t place;            /* there */
	struct variable *next;     /* all that fix binds, in a unit */
};

enum node_kind { N_CONSTANT, N_LOCAL, N_GLOBAL, N_SET_LOCAL, N_SET_GLOBAL, N_DEFINE, N_IF, N_LAMBDA, N_SEQUENCE, N_CALL, N_LET, N_FIX };

struct node {
	enum node_kind kind;
	uint32_t n;                 /* of at, of variables */
	obj value;                  /* N_CONSTANT; the symbol of a global variable */
	struct variable *variable;
	struct variable **variables; /* N_LET, N_FIX */
	struct lambda *lambda;
	struct node *a, *b, *c;     /* N_IF: test, then, else; a is the value, the called, or what binds are for */
	struct node **at;           /* N_SEQUENCE, arguments, what N_LET and N_FIX bind */
	struct tail *tail;          /* N_CALL of a local */
	struct node *next;          /* all of these in a unit */
};

struct lambda {
	obj name;
	struct variable **parameters;
	uint32_t n;    /* of them, the rest included */
	bool rest;
	bool placed;           /* a label that has a place in the code */
	struct node *body;
	struct variable *bound; /* by fix, to this */
	struct lambda *outer;  /* whose closure makes it */
	struct variable **free;
	uint32_t nfree, room;
	int64_t label;         /* its place in the code; -1: not yet */
	int64_t pending;       /* the last jump to it before that; -1: none. The jumps' words lead to each other */
};

/* What is expanded at a time. */
struct unit {
	struct variable *fixed;
	struct node *calls;
};

/* NULL: vm->condition says why. */
struct node *expand(struct unit *unit, obj form, struct scope *scope, struct tail *tail);

/* An identifier's meaning: what binds it, else NULL and the symbol. */
struct scope *look_up(obj identifier, struct scope *scope, obj *symbol);
bool is_identifier(obj x);
struct scope *scope_bind(struct scope *up, obj name, struct variable *variable, obj macro);

#endif
