/* SPDX-License-Identifier: MIT */
/*
 * fence.pml - why a mark is set by a full barrier and a full barrier follows each get-and-write-protect (.inv.mark.before-fields, .inv.card.fence), for
 * spin. What a processor stores waits in a buffer, from where it comes out at any time, and what it loads may be loaded before that. One object O on
 * one page; P is in the mutator's register alone.
 *
 *	marker: mark(O) = 1; load O.f        mutator: O.f = P; forgets P        precleaner: look and arm the page; load mark(O)
 *
 * Where O.f is P at the end, P is marked: assert in remark(). BREAK_x takes a rule away, and the model must fail then (tests/models.sh):
 * MARK the barrier behind the mark, FENCE the one behind the arming, SHOOTDOWN that arming waits for stores that were let through before.
 */
#define ROUNDS 2

bool f;               /* it is P */
bool marked, marked_p;
bool written;         /* the page is not armed */
bool f_waits, mark_waits; /* in the buffers of the mutator and of the marker */
byte done;

inline drain_f() { f = f || f_waits; f_waits = false }

/* What is stored becomes visible when it likes. */
active proctype buffers()
{
end:
	do
	:: atomic { f_waits -> drain_f() }
	:: atomic { mark_waits -> marked = true; mark_waits = false }
	od
}

/* The page may have been written before. A store into an armed page faults first. */
active proctype mutator()
{
	if
	:: written = true
	:: skip
	fi;
	do
	:: atomic { written -> f_waits = true; break }
	:: atomic { !written -> written = true }
	od;
	done++
}

active proctype marker()
{
	mark_waits = true;
#ifndef BREAK_MARK
	!mark_waits;
#endif
	if
	:: f -> marked_p = true
	:: else
	fi;
	done++
}

inline rescan() { marked_p = marked_p || f }

active proctype precleaner()
{
	byte round;
	bool was, seen;
	do
	:: round < ROUNDS ->
		round++;
		seen = false;
#ifdef BREAK_FENCE
		seen = marked; /* before the page is armed as others see it */
#endif
		atomic {
			was = written;
			written = false;
#ifndef BREAK_SHOOTDOWN
			drain_f()
#endif
		};
#ifndef BREAK_FENCE
		seen = marked;
#endif
		if
		:: was && seen -> rescan()
		:: else
		fi
	:: round == ROUNDS -> break
	od;
	done++
}

/* All have stopped, and nothing waits: what was written since it was armed last is looked at. */
active proctype remark()
{
	atomic {
		done == 3 && !f_waits && !mark_waits;
		if
		:: written -> rescan()
		:: else
		fi;
		assert(!f || marked_p)
	}
}
