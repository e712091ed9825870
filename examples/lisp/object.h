/* SPDX-License-Identifier: MIT */
/*
 * object.h - how values look. A value is a word:
 *
 *   ...........xx1   fixnum, 63 bits
 *   address | 010    pair: two words, no header
 *   address | 100    flonum: a double, atomic
 *   address | 000    any other object: its first word is a header
 *   ..........0110   constants, and characters with bit 62 set
 *
 * A header has bit 63 set, an instruction's topmost 16 bits are not 0: so each word of an object that is not atomic is either an address of
 * the heap, or no address of a program at all. A conservative scan of it is precise.
 */
#ifndef LISP_OBJECT_H
#define LISP_OBJECT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef uint64_t obj;

enum tag { TAG_OBJECT = 0, TAG_PAIR = 2, TAG_FLONUM = 4, TAG_CONSTANT = 6 };

#define FALSE ((obj)0x06)
#define TRUE ((obj)0x16)
#define NIL ((obj)0x26)
#define UNSPECIFIED ((obj)0x36)
#define END_OF_FILE ((obj)0x46)
#define DEFAULT ((obj)0x56) /* an argument that was not given */
#define UNBOUND ((obj)0x66)
#define FAILED ((obj)0x76)  /* a primitive gives it: vm->condition says why */
#define REQUEST (FAILED | 0x80) /* likewise: vm->request says what is to be done */
#define CHAR_TAG ((obj)0x0e)
#define CHAR_BIT62 ((obj)1 << 62)

enum type {
	T_NONE, T_STRING, T_SYMBOL, T_VECTOR, T_BYTES, T_CLOSURE, T_PRIMITIVE, T_CODE, T_CONTINUATION, T_FRAMES, T_STACK, T_VALUES, T_BOX, T_TABLE,
	T_PORT, T_RECORD, T_THREAD, T_MUTEX, T_CONDITION_VARIABLE, T_COROUTINE, T_MACRO, T_SPECIAL, T_ALIAS,
};

#define HEADER(type, length) ((obj)1 << 63 | (obj)(length) << 8 | (obj)(type))

struct object {
	obj header;
};

struct pair {
	obj car, cdr;
};

struct string { /* atomic */
	obj header;
	char at[];
};

struct symbol { /* it is the global variable of its name, too */
	obj header;
	obj value; /* UNBOUND; a T_MACRO or T_SPECIAL if it is syntax */
	obj name;  /* a string */
	obj op;    /* a fixnum: the first instruction that is the primitive which it names; 0: none, or redefined */
};

struct vector { /* T_VECTOR, T_VALUES, T_RECORD, whose at[0] is its type */
	obj header;
	obj at[];
};

struct box {
	obj header;
	obj value;
};

struct closure {
	obj header;
	struct code *code;
	obj free[];
};

struct code {
	obj header;
	obj name;
	uint32_t arity, no_address; /* how many arguments have to be there, and REST if there may be more */
	uint32_t frame;             /* words of it */
	uint16_t nfree, no_address2; /* values of a closure */
	uint64_t insn[];         /* with literals among them */
};
#define REST 0x10000u
#define CODE_NO_ADDRESS 0x80000000u /* the topmost bits of both words, for what is said above */

struct primitive {
	obj header;
	obj index; /* a fixnum: in the world's list of names, which outlives the program */
};

/* What is left to be done: frames, and where to go on in the topmost one. */
struct continuation {
	obj header;
	struct continuation *next; /* below the frames */
	uint64_t *pc;
	struct frames *frames;     /* may be shared with those that begin above or below */
	size_t used;               /* words of frames */
	obj winders, handlers, parameters; /* as they were when call/cc made it */
};

struct frames {
	obj header;
	obj at[];
};

struct port {
	obj header;
	struct string *buffer;
	obj name;
	int32_t fd;            /* -1: a string port */
	uint32_t flags;
	uint32_t at, end;      /* input: what is in the buffer yet to be read; output: 0, what is yet to be written */
	uint32_t line;
};
enum { PORT_INPUT = 1, PORT_OUTPUT = 2, PORT_OPEN = 4 };

struct alias { /* an identifier that a macro's template inserted */
	obj header;
	obj of;           /* a symbol, or another alias */
	struct scope *at; /* where the macro was defined */
};

struct macro { /* T_MACRO: syntax-rules; T_SPECIAL: of the compiler, index in .literals */
	obj header;
	obj literals, rules, ellipsis;
	struct scope *at;
};

/* ---- telling them apart ---- */

static inline bool is_fixnum(obj x) { return x & 1; }
static inline bool is_pair(obj x) { return (x & 7) == TAG_PAIR; }
static inline bool is_flonum(obj x) { return (x & 7) == TAG_FLONUM; }
static inline bool is_char(obj x) { return (x & 0xff) == CHAR_TAG; }
static inline bool is_object(obj x) { return (x & 7) == TAG_OBJECT && x; }

static inline enum type header_type(obj header) { return (enum type)(header & 0xff); }
static inline size_t header_length(obj header) { return (size_t)(header << 1 >> 9); }
static inline enum type type_of(obj x) { return is_object(x) ? header_type(((struct object *)x)->header) : T_NONE; }
static inline bool is_type(obj x, enum type type) { return is_object(x) && header_type(((struct object *)x)->header) == type; }
static inline bool is_string(obj x) { return is_type(x, T_STRING); }
static inline bool is_symbol(obj x) { return is_type(x, T_SYMBOL); }
static inline bool is_vector(obj x) { return is_type(x, T_VECTOR); }
static inline bool is_number(obj x) { return is_fixnum(x) || is_flonum(x); }
static inline size_t length_of(obj x) { return header_length(((struct object *)x)->header); }

/* ---- making and opening them ---- */

#define FIXNUM_MAX (INT64_MAX >> 1)
#define FIXNUM_MIN (INT64_MIN >> 1)

static inline obj fixnum(int64_t n) { return (obj)n << 1 | 1; }
static inline int64_t fixnum_value(obj x) { return (int64_t)x >> 1; }
static inline obj boolean(bool b) { return b ? TRUE : FALSE; }
static inline obj character(uint32_t c) { return CHAR_BIT62 | (obj)c << 8 | CHAR_TAG; }
static inline uint32_t char_value(obj x) { return (uint32_t)(x >> 8) & 0x1fffff; }
static inline struct pair *pair_of(obj x) { return (struct pair *)(x - TAG_PAIR); }
static inline double flonum_value(obj x) { return *(double *)(x - TAG_FLONUM); }
static inline struct string *string_of(obj x) { return (struct string *)x; }
static inline struct symbol *symbol_of(obj x) { return (struct symbol *)x; }
static inline struct vector *vector_of(obj x) { return (struct vector *)x; }
static inline struct closure *closure_of(obj x) { return (struct closure *)x; }
static inline obj car(obj x) { return pair_of(x)->car; }
static inline obj cdr(obj x) { return pair_of(x)->cdr; }

#endif
