/* SPDX-License-Identifier: MIT */
/*
 * cold.pml - a page that goes out and comes back (.inv.cold.leftover, .inv.cold.live, .inv.cold.put, .inv.cold.reading), for spin. The
 * evictor tidies, claims, moves, puts and settles; the resolver, or two of its threads, answers faults, reading the store without the region's lock; a mutator
 * writes to the page, and releases its block and takes it anew; somebody else's faults come late; a marker looks at it in cycles.
 *
 * The mutator finds what it wrote, or zero on a page taken anew; park and slot are there as long as somebody reads them: assert. BREAK_x
 * takes a rule away, and the model must fail then (tests/models.sh).
 */
#ifndef RESOLVERS
#define RESOLVERS 1
#endif
#define ZERO 9
#define NONE 0
#ifndef STEPS
#define STEPS 3
#define ROUNDS 2
#endif

mtype = { LIVE, PARKED, EVICTED };
mtype state = LIVE;
bool claimed, left, region, cycle, marking, section, waits, late, ended;
byte page = 1, park, slot; /* contents, or NONE */
byte truth = 1;            /* what the program has there */
byte reading;

inline lock(l) { atomic { !l -> l = true } }

inline set_live()
{
	state = LIVE;
	left = true;
	claimed = false
}

/* With the region's lock. */
inline tidy()
{
	if
#ifdef BREAK_READING
	:: left ->
#else
	:: left && !reading ->
#endif
		park = NONE;
		slot = NONE;
		left = false
	:: else
	fi
}

active proctype evictor()
{
	byte round, put;
	do
	:: round == ROUNDS -> break
	:: round < ROUNDS ->
		round++;
		lock(cycle);
		lock(region);
		tidy();
		region = false;
		atomic { if :: state == LIVE && !section -> claimed = true :: else fi }
		lock(region);
		if
		:: claimed && !left && page != NONE ->
			assert(park == NONE);
			atomic { park = page; page = NONE } /* .assume.move.atomic */
			state = PARKED
		:: else -> atomic { if :: state == LIVE -> claimed = false :: else fi }
		fi;
		region = false;
		cycle = false;
		if
		:: state == PARKED || (left && slot == NONE) -> /* it was PARKED when put began: it may be LIVE by now */
			assert(park != NONE);
			put = park;
#ifndef BREAK_SETTLE
			lock(cycle);
#endif
			lock(region);
			if
			:: state == PARKED -> slot = put; state = EVICTED
			:: else -> left = false
			fi;
			park = NONE;
			region = false;
#ifndef BREAK_SETTLE
			cycle = false
#endif
		:: else
		fi
	od;
	ended = true
}

active [RESOLVERS] proctype resolver()
{
	byte buffer;
end:	do
	:: waits || late ->
		lock(region);
again:		if
		:: state == LIVE && page == NONE -> page = ZERO
		:: state == LIVE && page != NONE
		:: state == PARKED ->
			assert(park != NONE);
			buffer = park;
			set_live();
			page = buffer
		:: state == EVICTED ->
			reading++;
			region = false;
			buffer = slot;
			assert(buffer != NONE);
			assert(slot == buffer);
			lock(region);
			reading--;
#ifndef BREAK_AGAIN
			if
			:: state != EVICTED -> goto again
			:: else
			fi;
#endif
			set_live();
			page = buffer
		fi;
		region = false;
		waits = false;
		late = false
	od
}

active proctype visitor()
{
	if
	:: page == NONE -> late = true
	:: true
	fi
}

active proctype mutator()
{
	byte i;
	do
	:: i == STEPS -> break
	:: i < STEPS ->
		i++;
		if
		:: true -> /* a write */
			do
			:: atomic { page != NONE -> assert(page == truth); truth = truth % 3 + 1; page = truth; break }
			:: atomic { page == NONE && !waits -> waits = true }
			od
		:: atomic { !marking -> section = true };
			lock(region);
			if
			:: state != LIVE -> set_live()
			:: else -> claimed = false
			fi;
			region = false;
			atomic { page = NONE; truth = ZERO; section = false }
		fi
	od
}

active proctype marker()
{
	byte round;
	do
	:: round == ROUNDS -> break
	:: round < ROUNDS ->
		round++;
		lock(cycle);
		marking = true;
		!section;
		if
		:: state == PARKED -> assert(park != NONE)
		:: state == EVICTED -> assert(slot != NONE)
		:: state == LIVE
		fi;
		marking = false;
		cycle = false
	od
}
