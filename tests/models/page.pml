/* SPDX-License-Identifier: MIT */
/*
 * page.pml - what becomes of pages while a cycle marks (.inv.track.get-wp, .inv.card.fence, .inv.mark.before-fields), for spin.
 * Three objects with a field each lie on two pages, roots name the first and the third; a mutator with one register loads
 * and stores pointers as it likes. The collector arms the pages in a stop; then a marker marks, and the precleaner scans
 * and arms again what was written, both beside the mutator; then comes the remark, in a stop.
 *
 * Nothing that the mutator can reach at the end is unmarked: assert in collector(). BREAK_x takes a rule away, and the
 * model must fail then (tests/models.sh).
 */
#define NONE 0
#define OBJECTS 4 /* 1, 2 and 3 */
#define PAGE_OF(object) ((object) == 1 -> 0 : 1)
#define STEPS 4
#define ROUNDS 1

byte field[OBJECTS];
byte reg;        /* the mutator's */
bool written[2]; /* not armed */
bool marked[OBJECTS], gray[OBJECTS];
bool begun, busy, stopped;

#define IS_GRAY (gray[1] || gray[2] || gray[3])

inline push(object)
{
	atomic {
		if
		:: object != NONE && !marked[object] ->
#ifndef BREAK_ORDER
			marked[object] = true;
#endif
			gray[object] = true
		:: else
		fi
	}
}

/* A store into an armed page faults, which makes the page written; it may be armed again before the store is made. */
inline store(object, value)
{
	do
	:: atomic { !stopped && written[PAGE_OF(object)] -> field[object] = value; break }
	:: atomic { !stopped && !written[PAGE_OF(object)] -> written[PAGE_OF(object)] = true }
	:: atomic { stopped -> break }
	od
}

active proctype mutator()
{
	byte i, base;
	begun;
	do
	:: i == STEPS -> break
	:: i < STEPS ->
		i++;
		if
		:: base = 1
		:: base = 3
		:: reg != NONE -> base = reg
		fi;
		if
		:: atomic { !stopped -> reg = field[base] }
		:: atomic { !stopped -> reg = NONE }
		:: store(base, reg)
		:: store(base, NONE)
		:: stopped -> break
		fi
	od
}

inline mark_one()
{
	atomic {
		if
		:: gray[1] -> at = 1
		:: gray[2] -> at = 2
		:: gray[3] -> at = 3
		fi;
		gray[at] = false;
		busy = true
	};
	value = field[at];
#ifdef BREAK_ORDER
	marked[at] = true;
#endif
	push(value);
	busy = false
}

active proctype marker()
{
	byte at, value;
	do
	:: IS_GRAY && !stopped -> mark_one()
	:: stopped -> break
	od
}

/* Marked objects of the page are gray again. */
inline rescan(p)
{
	if
	:: p == 0 -> gray[1] = gray[1] || marked[1]
	:: else -> atomic { gray[2] = gray[2] || marked[2]; gray[3] = gray[3] || marked[3] }
	fi
}

inline scan(p)
{
#ifdef BREAK_ATOMIC
	was = written[p];
	written[p] = false;
#else
	atomic { was = written[p]; written[p] = false };
#endif
	if
	:: was -> rescan(p)
	:: else
	fi
}

#define REACHED(object) ((object) == NONE || marked[object])

active proctype collector()
{
	byte at, value, round;
	bool was;
	atomic { field[3] = 2; push(1); push(3); begun = true }; /* the first stop; both pages are armed */
	do
	:: round < ROUNDS -> round++; scan(0); scan(1)
	:: round == ROUNDS -> break
	od;
	atomic {
		!IS_GRAY && !busy -> stopped = true;
#ifndef BREAK_REMARK
		scan(0);
		scan(1);
#endif
		push(reg);
		do
		:: IS_GRAY -> mark_one()
		:: else -> break
		od;
		/* The roots' objects are marked: so it is enough that what a marked one names is. */
		assert(marked[1] && marked[3] && REACHED(reg) && REACHED(field[1]) && REACHED(field[3]));
		assert(!marked[2] || REACHED(field[2]))
	}
}
