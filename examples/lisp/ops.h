/* SPDX-License-Identifier: MIT */
/*
 * ops.h - the instructions. A word: the operation in bits 48 to 63, so that it is never an address, then c, b and a of 16 bits each. They name registers,
 * words of the frame, unless said otherwise. Where c is the way of a jump it is signed, and counted from the next instruction.
 *
 * X(operation, the primitive that it is, operands)
 *
 * Operands, also for who has to do without the instruction, since its primitive's name was defined anew:
 *   a=b, a=b,c, a=b,i: registers, i a signed number in c; a,b,c and a,b: no result
 *   ?a, ?a,b, ?a,i: goes on if the primitive gives true, else jumps by c; ?a,k: k is the value in the next word
 */
#ifndef LISP_OPS_H
#define LISP_OPS_H

enum operands { O_NONE, O_AB, O_ABC, O_ABI, O_STORE2, O_STORE3, O_TEST1, O_TEST2, O_TESTI, O_TESTK };

#define OPERATIONS(X) \
	X(NOP, NULL, O_NONE) \
	X(MOVE, NULL, O_NONE)     /* a = b */ \
	X(CONSTANT, NULL, O_NONE) /* a = the next word */ \
	X(GLOBAL, NULL, O_NONE)   /* a = the value of the symbol in the next word */ \
	X(SET_GLOBAL, NULL, O_NONE) \
	X(DEFINE, NULL, O_NONE) \
	X(FREE, NULL, O_NONE)     /* a = the closure's b-th value */ \
	X(SELF, NULL, O_NONE)     /* a = the closure */ \
	X(BOX, NULL, O_NONE)      /* a = a new box of a */ \
	X(UNBOX, NULL, O_NONE)    /* a = what is in the box b */ \
	X(SET_BOX, NULL, O_NONE)  /* into the box a: b */ \
	X(CLOSURE, NULL, O_NONE)  /* a = a closure of the code in the next word, empty */ \
	X(CAPTURE, NULL, O_NONE)  /* the closure a's c-th value = b */ \
	X(JUMP, NULL, O_NONE) \
	X(JUMP_FALSE, NULL, O_NONE) /* if a is #f */ \
	X(CALL, NULL, O_NONE)     /* the procedure a - 1 with b arguments from a on; a - 2 is for the way back; c = its value */ \
	X(CALL_GLOBAL, NULL, O_NONE) /* the same, of the symbol in the next word; c is in the word after that */ \
	X(TAIL_CALL, NULL, O_NONE) \
	X(RETURN, NULL, O_NONE)   /* a */ \
	X(BOTTOM, NULL, O_NONE)   /* of the stack, returned to: go on with what is below */ \
	X(RESUME, NULL, O_NONE)   /* jump to the instruction in the next word */ \
	X(RESUME_TEST, NULL, O_NONE) /* if a is not #f to the one in the next word, else to that in the word after it */ \
	X(REDEFINED, NULL, O_NONE) /* in no code: where an instruction goes whose primitive has been defined anew */ \
	X(STOP, NULL, O_NONE)     /* a handler has returned from an error */ \
	X(ADD, "+", O_ABC) X(ADD_I, "+", O_ABI) X(SUB, "-", O_ABC) X(SUB_I, "-", O_ABI) X(MUL, "*", O_ABC) \
	X(QUOTIENT, "quotient", O_ABC) X(REMAINDER, "remainder", O_ABC) X(MODULO, "modulo", O_ABC) \
	X(CONS, "cons", O_ABC) X(CAR, "car", O_AB) X(CDR, "cdr", O_AB) X(CADR, "cadr", O_AB) X(CDDR, "cddr", O_AB) X(CAAR, "caar", O_AB) \
	X(CDAR, "cdar", O_AB) X(CADDR, "caddr", O_AB) \
	X(SET_CAR, "set-car!", O_STORE2) X(SET_CDR, "set-cdr!", O_STORE2) \
	X(VECTOR_REF, "vector-ref", O_ABC) X(VECTOR_SET, "vector-set!", O_STORE3) X(VECTOR_LENGTH, "vector-length", O_AB) \
	X(STRING_REF, "string-ref", O_ABC) X(STRING_LENGTH, "string-length", O_AB) \
	X(RECORD_REF, "%record-ref", O_ABC) X(RECORD_SET, "%record-set!", O_STORE3) \
	X(NOT, "not", O_AB) \
	X(IF_NULL, "null?", O_TEST1) X(IF_PAIR, "pair?", O_TEST1) X(IF_SYMBOL, "symbol?", O_TEST1) X(IF_STRING, "string?", O_TEST1) \
	X(IF_VECTOR, "vector?", O_TEST1) X(IF_CHAR, "char?", O_TEST1) X(IF_ZERO, "zero?", O_TEST1) X(IF_EOF, "eof-object?", O_TEST1) \
	X(IF_RECORD_OF, "%record-of?", O_TEST2) \
	X(IF_EQ, "eq?", O_TEST2) X(IF_EQ_K, "eq?", O_TESTK) X(IF_EQV, "eqv?", O_TEST2) X(IF_CHAR_EQ, "char=?", O_TEST2) \
	X(IF_EQUAL, "=", O_TEST2) X(IF_EQUAL_I, "=", O_TESTI) X(IF_LESS, "<", O_TEST2) X(IF_LESS_I, "<", O_TESTI) \
	X(IF_MORE, ">", O_TEST2) X(IF_MORE_I, ">", O_TESTI) X(IF_LESS_EQ, "<=", O_TEST2) X(IF_LESS_EQ_I, "<=", O_TESTI) \
	X(IF_MORE_EQ, ">=", O_TEST2) X(IF_MORE_EQ_I, ">=", O_TESTI)

enum operation {
	OP_NONE, /* 0: a word with it may be an address */
#define X(name, primitive, operands) OP_##name,
	OPERATIONS(X)
#undef X
	OPS
};

struct op_entry {
	const char *name, *primitive;
	enum operands operands;
};
extern const struct op_entry op_table[OPS]; /* compile.c */

#define INSN(op, a, b, c) ((uint64_t)(op) << 48 | (uint64_t)(uint16_t)(c) << 32 | (uint64_t)(uint16_t)(b) << 16 | (uint16_t)(a))
#define INSN_OP(i) ((unsigned)((i) >> 48))
#define INSN_A(i) ((unsigned)((i)&0xffff))
#define INSN_B(i) ((unsigned)((i) >> 16 & 0xffff))
#define INSN_C(i) ((unsigned)((i) >> 32 & 0xffff))
#define INSN_SC(i) ((int)(int16_t)((i) >> 32))
#define INSN_SB(i) ((int)(int16_t)((i) >> 16))

#endif
