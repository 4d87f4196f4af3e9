/* SPDX-License-Identifier: MIT */
/*
 * The publish/sleep protocol of one ring on x86-TSO.
 *
 * Why: "store my index, then look whether the peer sleeps" meets "store my flag, then look whether there is work".
 * That is the store-buffer litmus test (SB). If either side's load overtakes its own store, each looks before it can
 * be seen, and both sleep for ever. The same happens in the other direction, when the ring is full. tso.pml gives the
 * memory model and its source. A consumer that is awake looks at the sequence in its next slot alone; `prod` is for one
 * that sleeps, and `cons` is given back late, so both may lag behind what is so.
 *
 * Modelled: one producer and one consumer, two store buffers, free-running indices that wrap (modulus 16, from 14 on) over
 * slots that hold the sequences of their last lap, announcing and giving back at any time from at once to the last moment
 * allowed, sticky doorbells, spurious doorbells, a bounded spin before the sleep, sleep on "empty" and on "full".
 *
 * Abstracted: a slot is one word and its sequence; a kick rings the doorbell at once and is no fence, and neither is the
 * wait (the kernel's are: the model is weaker, so it does not lean on them); a compiler keeps the written order (acquire,
 * release and seq_cst make it do so); both sides follow the protocol (a hostile peer is the business of other tests); CPUs
 * weaker than TSO. A store buffer of 5 entries is no limit: the right protocol never has more under way.
 *
 * Proved: no side sleeps for ever; every message arrives once, in order, with its content; prod is never further
 * ahead of cons than the ring is long, in memory and in each side's view; what prod announces has its sequence. Every run is
 * finite (a search for any cycle at all finds none), so "no invalid end state" means that all messages have arrived.
 *
 * -DBROKEN_... takes one step out; each such variant must fail:
 *   BROKEN_ORDER         the sequence stored before the slot's octets
 *   BROKEN_EARLY         prod stored before the sequence of what it announces
 *   BROKEN_ANNOUNCE      prod stored with release: no fence before the load of sleeping
 *   BROKEN_OWES          no announcement before a wait for room
 *   BROKEN_LEAVES        no announcement by a producer that goes away
 *   BROKEN_KICK          no look at sleeping, and so no kick, after an announcement
 *   BROKEN_SLEEP         sleeping stored with release: no fence before the recheck
 *   BROKEN_RECHECK       no look at prod and slot between sleeping = 1 and the wait
 *   BROKEN_DISTANCE      the producer does not look whether the ring is full
 *   BROKEN_FREE          cons stored before the slot is copied
 *   BROKEN_HOLDS         slots not given back before a wait
 *   BROKEN_FULL          cons stored with release: no fence before the load of prod_sleeping
 *   BROKEN_FULL_SLEEP    prod_sleeping stored with release: no fence before the recheck
 *   BROKEN_FULL_RECHECK  no recheck between prod_sleeping = 1 and the wait
 *   BROKEN_SPIN          the spin before the sleep is not bounded: a cycle (gcc -DNP, ./pan -l)
 * -DSLOT_ALONE holds: on x86 the recheck of the slot alone loses nothing, since the fence after prod has sent the sequence
 * before it on its way too. C11 does not promise that, and neither does the protocol [RING-10].
 *
 * By hand: spin -a ring.pml && gcc -O2 -DSAFETY -DNOCLAIM -o pan pan.c && ./pan
 * The tags in comments (an @ and the step's name) stand at the same steps of pcisplit_ring.h.
 */

#define SIZE     2
#define MESSAGES 4
#define SPINS    1 /* spins before the sleep: none or one, more is only a longer delay */
#define SPURIOUS 2 /* spurious doorbells, each to either side; bounded, or they would cure a lost one */

#define INDEX(x)       ((x) & 15)
#define FIRST          14 /* the messages have the indices 14, 15, 0, 1 and the sequences 15, 0, 1, 2 */
#define DISTANCE(p, c) INDEX((p) - (c))
#define SIGNED(d)      ((d) >= 8 -> (d) - 16 : (d)) /* negative: not announced yet */

/* The words in shared memory; each has one writer. */
#define PROD          0
#define CONS          1
#define SLEEPING      2
#define PROD_SLEEPING 3
#define SLOT(i)       (4 + ((i) & (SIZE - 1)))
#define SEQUENCE(i)   (4 + SIZE + ((i) & (SIZE - 1)))
#define WORDS         (4 + 2 * SIZE)

#define FLUSHED() assert(SIGNED(DISTANCE(mem[PROD], mem[CONS])) <= SIZE)
#include "tso.pml"

#define PRODUCER 0
#define CONSUMER 1

bit doorbell[2];

#define KICK(side) doorbell[side] = 1

inline wait(side)
{
	d_step { doorbell[side] -> doorbell[side] = 0 }
}

#ifdef BROKEN_ANNOUNCE
#define store_prod store_release
#else
#define store_prod store_seq_cst
#endif

#ifdef BROKEN_SLEEP
#define store_sleeping store_release
#else
#define store_sleeping store_seq_cst
#endif

#ifdef BROKEN_FULL
#define store_cons store_release
#else
#define store_cons store_seq_cst
#endif

#ifdef BROKEN_FULL_SLEEP
#define store_prod_sleeping store_release
#else
#define store_prod_sleeping store_seq_cst
#endif

#ifdef BROKEN_DISTANCE
#define FULL(p, c) false
#else
#define FULL(p, c) (DISTANCE(p, c) == SIZE)
#endif

inline must_kick(side, flag, peer)
{
	/* @must_kick */
	if
	:: LOAD(side, flag) -> KICK(peer)
	:: else
	fi
}

inline announce()
{
	/* @announce */
	store_prod(PRODUCER, PROD, filled);
	announced = filled;
#ifndef BROKEN_KICK
	must_kick(PRODUCER, SLEEPING, CONSUMER)
#endif
}

/* Sends the messages 1, 2, ... MESSAGES. */
proctype producer()
{
	byte filled = FIRST;
	byte announced = FIRST;
	byte cons = FIRST; /* as last seen */
	byte sent = 0;

	do
	:: announced != filled ->
		/* Some messages later, or at once. */
		announce()
	:: sent < MESSAGES && !FULL(filled, cons) ->
		sent++;
#ifdef BROKEN_EARLY
		store_release(PRODUCER, PROD, INDEX(filled + 1));
#endif
#ifdef BROKEN_ORDER
		store_release(PRODUCER, SEQUENCE(filled), INDEX(filled + 1));
		store_release(PRODUCER, SLOT(filled), sent);
#else
		store_release(PRODUCER, SLOT(filled), sent);
		/* @publish */
		store_release(PRODUCER, SEQUENCE(filled), INDEX(filled + 1));
#endif
		filled = INDEX(filled + 1)
	:: sent < MESSAGES && FULL(filled, cons) ->
		cons = LOAD(PRODUCER, CONS);
		assert(DISTANCE(filled, cons) <= SIZE);
		if
#ifdef BROKEN_OWES
		:: FULL(filled, cons) ->
#else
		:: FULL(filled, cons) && announced == filled ->
#endif
			/* @full_sleep */
			store_prod_sleeping(PRODUCER, PROD_SLEEPING, 1);
#ifdef BROKEN_FULL_RECHECK
			wait(PRODUCER);
#else
			/* @full_recheck */
			cons = LOAD(PRODUCER, CONS);
			if
			:: FULL(filled, cons) -> wait(PRODUCER)
			:: else
			fi;
#endif
			store_release(PRODUCER, PROD_SLEEPING, 0)
#ifndef BROKEN_OWES
		:: FULL(filled, cons) && announced != filled ->
			announce()
#endif
		:: else
		fi
#ifdef BROKEN_LEAVES
	:: sent == MESSAGES -> break
#else
	:: sent == MESSAGES && announced == filled -> break
#endif
	od
}

inline give_back()
{
	/* @consume */
	store_cons(CONSUMER, CONS, taken);
	given = taken;
	must_kick(CONSUMER, PROD_SLEEPING, PRODUCER)
}

#define AVAILABLE (LOAD(CONSUMER, SEQUENCE(taken)) == INDEX(taken + 1))

/* Never told how many messages there are: it may end asleep, but only once it has taken them all. */
proctype consumer()
{
	byte taken = FIRST;
	byte given = FIRST;
	byte slot = 0;
	byte count = 0;
	byte spins = 0;
	short ahead = 0;
	bit found = 0;

	do
	:: given != taken ->
		/* Some messages later, or at once. */
		give_back()
	:: found = AVAILABLE;
		if
		:: found ->
			found = 0;
#ifdef BROKEN_FREE
			store_cons(CONSUMER, CONS, INDEX(taken + 1));
#endif
			slot = LOAD(CONSUMER, SLOT(taken));
			taken = INDEX(taken + 1);
			count++;
			assert(slot == count);
			slot = 0;
			spins = 0
#ifdef BROKEN_SPIN
		:: !found ->
			skip
#else
		:: !found && spins < SPINS ->
			spins++
#endif
#ifdef BROKEN_HOLDS
		:: !found ->
#else
		:: !found && given != taken ->
			give_back()
		:: !found && given == taken ->
#endif
			spins = 0;
			/* @sleep */
			store_sleeping(CONSUMER, SLEEPING, 1);
#ifndef BROKEN_RECHECK
#ifndef SLOT_ALONE
			/* @recheck */
			ahead = SIGNED(DISTANCE(LOAD(CONSUMER, PROD), taken));
			/* @distance */
			assert(ahead <= SIZE);
#endif
			found = AVAILABLE;
			assert(ahead <= 0 || found);
			ahead = 0;
#endif
			if
			:: found ->
				found = 0
			:: !found && count < MESSAGES ->
				wait(CONSUMER)
			:: !found && count == MESSAGES ->
end_all_taken:
				wait(CONSUMER)
			fi;
			store_release(CONSUMER, SLEEPING, 0)
		fi
	od
}

/* Rings doorbells for no reason, or does not. */
proctype spurious()
{
	byte rung = 0;

	do
	:: rung < SPURIOUS -> rung++; KICK(CONSUMER)
	:: rung < SPURIOUS -> rung++; KICK(PRODUCER)
	:: break
	od
}

init {
	atomic {
		mem[PROD] = FIRST;
		mem[CONS] = FIRST;
		mem[SEQUENCE(FIRST)] = INDEX(FIRST + 1 - SIZE);
		mem[SEQUENCE(FIRST + 1)] = INDEX(FIRST + 2 - SIZE);
		run flush(PRODUCER);
		run flush(CONSUMER);
		run producer();
		run consumer();
		run spurious()
	}
}
