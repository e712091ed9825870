/* SPDX-License-Identifier: MIT */
/*
 * lisp.h - what the parts of the interpreter share. The way of a program: read.c -> expand.c -> compile.c -> vm.c -> print.c.
 */
#ifndef LISP_H
#define LISP_H

#include "memory.h"
#include "object.h"

/*
 * What is global, an object of the heap: so a saved heap has all of it, and its address is the one root. Symbols that the compiler knows are
 * found by their place in it. Guard: for symbols and nsymbols a lock of object.c, for threads one of threads.c; the rest is written by whoever
 * starts, saves or defines a primitive anew.
 */
#define WELL_KNOWN(X) \
	X(quote, "quote") X(quasiquote, "quasiquote") X(unquote, "unquote") X(unquote_splicing, "unquote-splicing") X(else_, "else") X(arrow, "=>") \
	X(ellipsis, "...") X(underscore, "_") X(syntax_rules, "syntax-rules") X(append2, "%append2") X(list_to_vector, "list->vector") X(cons, "cons") \
	X(raise, "%raise") X(rewind, "%rewind-and-throw") X(make_promise, "%make-lazy")

struct world {
	obj header;
	obj symbols;        /* a vector of lists of symbols */
	obj nsymbols;
	obj primitives;     /* a vector of strings: the names by index */
	obj operations;     /* a string: what instructions there are, for who loads an image */
	obj input, output, errors; /* the standard ports */
	obj condition_type; /* the record type of conditions that the interpreter itself raises */
	struct code *bottom; /* what a stack's lowest frame returns to */
	obj redefined;      /* a list of symbols whose instructions are done without */
	obj specials;       /* a vector of T_SPECIAL, by number */
	obj epoch;          /* a fixnum: how many processes the world has been through */
	obj threads;        /* a list of those that run; guard: threads_lock */
	obj start;          /* a procedure for who loads an image, or FALSE */
#define FIELD(name, text) obj name;
	WELL_KNOWN(FIELD)
#undef FIELD
};
extern struct world *world;

/* What only the virtual machine can do for a primitive, in its stead. */
enum request {
	REQUEST_APPLY,   /* procedure, with the list argument */
	REQUEST_CALL_CC, /* procedure, with the current continuation */
	REQUEST_THROW,   /* argument to the continuation that procedure is, where winders are the same */
	REQUEST_ABORT,   /* vm_run() gives FAILED */
};

/* A thread of control: a thread's, or a coroutine's. An object of the heap. One thread at a time. */
struct vm {
	obj header;
	obj stack_object;     /* a T_STACK */
	obj *stack;           /* its words */
	obj *limit;           /* of them; frames end below it */
	struct continuation *below; /* what the lowest frame on the stack returns into; NULL: the end */
	obj winders;          /* dynamic-wind: who is inside of what */
	obj handlers;         /* of conditions */
	obj parameters;       /* a list of (parameter . box) */
	obj condition;        /* why something FAILED */
	obj output;           /* the current ports */
	obj input;
	struct coroutine *coroutine; /* that it is; NULL: the thread's own stack */
	obj trace;            /* who had called whom at the last error: a list of names */
	enum request request; /* what a primitive that gave REQUEST wants */
	obj procedure, argument;
	obj c_limit;          /* a fixnum, so that it is no address: where recursive functions on the C stack stop */
	obj thread;
};

extern __thread struct vm *current; /* a root, since TLS is one */

/* ---- making objects (object.c) ---- */
static inline obj cons(obj a, obj d)
{
	struct pair *p = mem_pair();

	*p = (struct pair){a, d};
	return (obj)p + TAG_PAIR;
}
obj flonum(double value);
obj make_string(const char *text, size_t length);
obj string_from(const char *text);
obj make_vector(enum type type, size_t length, obj fill);
obj intern(const char *text, size_t length);
obj symbol(const char *text);
obj list_reverse(obj list); /* in place */
obj list(unsigned n, ...);
int64_t list_length(obj list); /* -1: it is none */
uint64_t hash_bytes(const char *text, size_t length);
bool eqv(obj a, obj b);
bool equal(obj a, obj b, unsigned depth);
void world_create(void);
void *vm_create(size_t words);
/* Sets vm->condition, and gives FAILED. what: who says so. irritant may be UNBOUND. */
obj fail(const char *who, const char *message, obj irritant);
bool c_stack_is_low(void);

/* ---- the way of a program ---- */
obj read_datum(struct port *port);                /* END_OF_FILE; FAILED */
struct scope;
obj expand_macro(struct macro *macro, obj form, struct scope *scope); /* FAILED */
obj make_syntax_rules(obj spec, struct scope *at);     /* a T_MACRO; FAILED */
obj strip_syntax(obj form);                       /* aliases become symbols */
obj compile_toplevel(obj form);                   /* a closure of no arguments; FAILED */
obj vm_run(struct vm *vm, obj closure, obj argument); /* of no argument if that is UNBOUND. FAILED: nobody caught vm->condition */
void print(struct port *port, obj x, bool write);
void print_condition(struct port *port, obj condition);
void print_backtrace(struct port *port, const struct vm *vm);

void specials_define(void);

bool same_identifier(obj a, struct scope *at_a, obj b, struct scope *at_b);

/* ---- instructions ---- */
/* Those that primitives are compiled to, by name, until the name is defined anew. */
int operation_of(obj symbol);
void primitive_redefined(struct symbol *symbol);
void vm_init(void);

/* ---- primitives ---- */
typedef obj primitive_fn(struct vm *vm, unsigned n, obj *args);
struct primitive_entry {
	const char *name;
	primitive_fn *fn;
	int least, most; /* arguments; most -1: any number */
};
extern const struct primitive_entry number_primitives[], list_primitives[], string_primitives[], table_primitives[], port_primitives[], control_primitives[],
	thread_primitives[], image_primitives[];
extern const struct primitive_entry **primitives; /* by index in the heap's own list */
void primitives_define(void);
int primitives_bind(void);       /* after a load; -ENOENT: the program lacks one */

/* Numbers that the virtual machine leaves to C. FAILED. */
obj number_add(obj a, obj b);
obj number_sub(obj a, obj b);
obj number_mul(obj a, obj b);
obj number_quotient(obj a, obj b);
obj number_remainder(obj a, obj b);
obj number_modulo(obj a, obj b);
obj number_compare(const char *who, obj a, obj b, int *order); /* 2: not ordered */
obj number_parse(const char *text, size_t length, int radix); /* FALSE: it is none */
size_t number_print(obj x, int radix, char *into);            /* 80 bytes are enough */

/* Ports. */
struct port *port_open(int fd, const char *name, unsigned flags);
struct port *port_of_string(obj string);
int port_get(struct port *port);  /* -1: the end */
int port_peek(struct port *port);
void port_put(struct port *port, const char *text, size_t length);
void port_puts(struct port *port, const char *text);
int port_flush(struct port *port); /* -errno */
obj port_contents(struct port *port);

/* tables.c: around a save. */
void tables_save(bool begin);

/* image.c */
int image_load(const char *path, size_t limit, const char *options);

/* Reads and runs all forms of a port, and prints what they give if echo. 0, or -1 after an error that was told. */
int run_port(struct port *port, bool echo);

#endif
