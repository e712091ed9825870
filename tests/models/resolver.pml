/* SPDX-License-Identifier: MIT */
/*
 * resolver.pml - the bell of the fault resolver (src/gc/resolver.c, .inv.resolver.bell), for spin. Askers ring, threads
 * answer; signals make who waits fault again, the kernel may have no memory for the bell's page, and somebody else
 * may touch it. At last each thread is asked to end.
 *
 * A request runs exactly once, and an asker goes on only when it has: assert in ask(). There is no deadlock: every process ends.
 * BREAK_x takes a rule away, and the model must fail then (tests/models.sh).
 */
#ifndef ASKERS
#define ASKERS 2
#endif
#ifndef THREADS
#define THREADS 2
#endif
#define ENDER ASKERS         /* asks the threads to end */
#define STRANGER (ASKERS + 1) /* touches the bell, and asks nothing */
#define FAULTERS (ASKERS + 2)

mtype = { FREE, TAKEN, RUNG, HEARD, ANSWERED };
mtype asking = FREE;
byte request, answered;
byte ran[FAULTERS];

bool page;              /* the bell has one */
bool asleep[FAULTERS];  /* in a fault */
bool unread[FAULTERS];  /* its message */
bool gone;              /* the descriptor: the last thread has ended */
byte finished, ended;
byte signals = 1, shortages = 1;

inline wake()
{
	d_step {
		asleep[0] = false; unread[0] = false; asleep[1] = false; unread[1] = false;
		asleep[2] = false; unread[2] = false;
#if FAULTERS > 3
		asleep[3] = false; unread[3] = false;
#endif
	}
}

inline touch(me)
{
	do
	:: atomic { page || gone -> break }
	:: atomic { !page && !gone -> asleep[me] = true; unread[me] = true };
		if
		:: !asleep[me]
		:: atomic { asleep[me] && signals > 0 -> signals--; asleep[me] = false; unread[me] = false }
		fi
	od
}

inline ask(me)
{
	atomic { asking == FREE -> asking = TAKEN };
	atomic { request = me; page = false };
	asking = RUNG;
	do
	:: touch(me);
		page = false;
		if
		:: asking == ANSWERED -> break
		:: else
#ifdef BREAK_LOOP
			-> break
#endif
		fi
	od;
	atomic { assert(answered == me); asking = FREE; answered = 0; request = 0 }
}

inline fill()
{
	if
	:: atomic { page = true; wake() }
	:: atomic { shortages > 0 -> shortages-- };
#ifndef BREAK_SHORTAGE
		wake()
#endif
	fi
}

inline answer()
{
	atomic {
		heard = false;
		was = asking;
		if
		:: was == RUNG -> asking = HEARD; heard = true
#ifdef BREAK_ONCE
		:: was == HEARD -> heard = true
#endif
		:: else
		fi
	};
	if
	:: heard ->
		atomic { ran[request]++; quit = request == ENDER; answered = request };
		atomic { asking = ANSWERED; heard = false; was = FREE };
		fill()
	:: !heard && was != HEARD
#ifndef BREAK_LATE
		-> fill()
#endif
	:: else
	fi
}

active [ASKERS] proctype asker()
{
	ask(_pid);
	assert(ran[_pid] == 1);
	finished++
}

active proctype ender()
{
	byte i;
	finished == ASKERS;
	do
	:: i < THREADS ->
		ask(ENDER);
		i++;
		assert(ran[ENDER] == i)
	:: else -> break
	od;
	ended == THREADS
}

active proctype stranger() { touch(STRANGER) }

inline read_one()
{
	if
	:: unread[0] -> unread[0] = false
	:: unread[1] -> unread[1] = false
	:: unread[2] -> unread[2] = false
#if FAULTERS > 3
	:: unread[3] -> unread[3] = false
#endif
	fi
}

#if FAULTERS > 3
#define SOME_UNREAD (unread[0] || unread[1] || unread[2] || unread[3])
#else
#define SOME_UNREAD (unread[0] || unread[1] || unread[2])
#endif

active [THREADS] proctype thread()
{
	byte n;
	bool quit, heard;
	mtype was;
	do
	:: quit -> break
	:: else ->
		atomic {
			SOME_UNREAD -> read_one(); n = 1;
			if
			:: SOME_UNREAD -> read_one(); n = 2 /* a batch */
			:: true
			fi
		};
		do
		:: n == 0 -> break
#ifdef BREAK_QUIT
		:: n > 0 -> answer(); n--
#else
		:: n > 0 && !quit -> answer(); n--
		:: n > 0 && quit -> atomic { wake(); n-- }
#endif
		od
	od;
	atomic {
		ended++;
		if
		:: ended == THREADS -> gone = true; wake()
		:: else
		fi
	}
}
