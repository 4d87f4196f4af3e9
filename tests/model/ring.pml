/* SPDX-License-Identifier: MIT */
/*
 * The publish/sleep protocol of one ring on x86-TSO.
 *
 * Why: "store my index, then look whether the peer sleeps" meets "store my flag, then look whether there is work".
 * That is the store-buffer litmus test (SB). If either side's load overtakes its own store, each looks before it can
 * be seen, and both sleep for ever. The same happens in the other direction, when the ring is full. tso.pml gives the
 * memory model and its source.
 *
 * Modelled: one producer and one consumer, two store buffers, free-running indices that wrap (modulus 8, from 6 on),
 * sticky doorbells, spurious doorbells, a bounded spin before the sleep, sleep on "empty" and on "full".
 *
 * Abstracted: a slot is one word; a kick rings the doorbell at once and is no fence, and neither is the wait (the
 * kernel's are: the model is weaker, so it does not lean on them); a compiler keeps the written order (acquire, release
 * and seq_cst make it do so); both sides follow the protocol (a hostile peer is the business of other tests); CPUs
 * weaker than TSO. A store buffer of 3 entries is no limit: the right protocol never has more under way.
 *
 * Proved: no side sleeps for ever; every message arrives once, in order, with its content; prod - cons <= size in
 * memory and in each side's view. Every run is finite (a search for any cycle at all finds none), so "no invalid end
 * state" means that all messages have arrived.
 *
 * -DBROKEN_... takes one step out; each such variant must fail:
 *   BROKEN_PUBLISH       prod stored with release: no fence before the load of sleeping
 *   BROKEN_SLEEP         sleeping stored with release: no fence before the recheck
 *   BROKEN_RECHECK       no recheck between sleeping = 1 and the wait
 *   BROKEN_ORDER         prod stored before the slot
 *   BROKEN_FREE          cons stored before the slot is copied
 *   BROKEN_DISTANCE      the producer does not look whether the ring is full
 *   BROKEN_FULL          cons stored with release: no fence before the load of prod_sleeping
 *   BROKEN_FULL_SLEEP    prod_sleeping stored with release: no fence before the recheck
 *   BROKEN_FULL_RECHECK  no recheck between prod_sleeping = 1 and the wait
 *   BROKEN_SPIN          the spin before the sleep is not bounded: a cycle (gcc -DNP, ./pan -l)
 *
 * By hand: spin -a ring.pml && gcc -O2 -DSAFETY -DNOCLAIM -o pan pan.c && ./pan
 * The tags in comments (an @ and the step's name) stand at the same steps of pcisplit_ring.h.
 */

#define SIZE     2
#define MESSAGES 4
#define SPINS    1 /* spins before the sleep: none or one, more is only a longer delay */
#define SPURIOUS 2 /* spurious doorbells, each to either side; bounded, or they would cure a lost one */

#define INDEX(x)       ((x) & 7)
#define FIRST          6 /* the messages have the indices 6, 7, 0, 1 */
#define DISTANCE(p, c) INDEX((p) - (c))

/* The words in shared memory; each has one writer. */
#define PROD          0
#define CONS          1
#define SLEEPING      2
#define PROD_SLEEPING 3
#define SLOT(i)       (4 + ((i) & (SIZE - 1)))
#define WORDS         (4 + SIZE)

#define FLUSHED() assert(DISTANCE(mem[PROD], mem[CONS]) <= SIZE)
#include "tso.pml"

#define PRODUCER 0
#define CONSUMER 1

bit doorbell[2];

#define KICK(side) doorbell[side] = 1

inline wait(side)
{
	d_step { doorbell[side] -> doorbell[side] = 0 }
}

#ifdef BROKEN_PUBLISH
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

/* Sends the messages 1, 2, ... MESSAGES. */
proctype producer()
{
	byte prod_pvt = FIRST;
	byte cons;
	byte sent = 0;

	do
	:: sent == MESSAGES -> break
	:: else ->
		/* @distance */
		cons = LOAD(PRODUCER, CONS);
#ifndef BROKEN_DISTANCE
		assert(DISTANCE(prod_pvt, cons) <= SIZE);
#endif
		if
		:: FULL(prod_pvt, cons) ->
			/* @full_sleep */
			store_prod_sleeping(PRODUCER, PROD_SLEEPING, 1);
#ifdef BROKEN_FULL_RECHECK
			wait(PRODUCER);
#else
			/* @full_recheck */
			cons = LOAD(PRODUCER, CONS);
			if
			:: FULL(prod_pvt, cons) -> wait(PRODUCER)
			:: else
			fi;
#endif
			store_release(PRODUCER, PROD_SLEEPING, 0)
		:: else ->
			/* @publish */
			sent++;
#ifdef BROKEN_ORDER
			store_prod(PRODUCER, PROD, INDEX(prod_pvt + 1));
			store_release(PRODUCER, SLOT(prod_pvt), sent);
			prod_pvt = INDEX(prod_pvt + 1);
#else
			store_release(PRODUCER, SLOT(prod_pvt), sent);
			prod_pvt = INDEX(prod_pvt + 1);
			store_prod(PRODUCER, PROD, prod_pvt);
#endif
			if
			:: LOAD(PRODUCER, SLEEPING) -> KICK(CONSUMER)
			:: else
			fi
		fi
	od
}

/* Never told how many messages there are: it may end asleep, but only once it has taken them all. */
proctype consumer()
{
	byte cons_pvt = FIRST;
	byte p;
	byte slot;
	byte taken = 0;
	byte spins = 0;

	do
	:: p = LOAD(CONSUMER, PROD);
		assert(DISTANCE(p, cons_pvt) <= SIZE); /* the session error */
		if
		:: p != cons_pvt ->
			/* @consume */
#ifdef BROKEN_FREE
			store_cons(CONSUMER, CONS, INDEX(cons_pvt + 1));
			slot = LOAD(CONSUMER, SLOT(cons_pvt));
			cons_pvt = INDEX(cons_pvt + 1);
#else
			slot = LOAD(CONSUMER, SLOT(cons_pvt));
			cons_pvt = INDEX(cons_pvt + 1);
			store_cons(CONSUMER, CONS, cons_pvt);
#endif
			taken++;
			assert(slot == taken);
			slot = 0;
			spins = 0;
			if
			:: LOAD(CONSUMER, PROD_SLEEPING) -> KICK(PRODUCER)
			:: else
			fi
#ifdef BROKEN_SPIN
		:: p == cons_pvt ->
			skip
#else
		:: p == cons_pvt && spins < SPINS ->
			spins++
#endif
		:: p == cons_pvt ->
			spins = 0;
			/* @sleep */
			store_sleeping(CONSUMER, SLEEPING, 1);
#ifndef BROKEN_RECHECK
			/* @recheck */
			p = LOAD(CONSUMER, PROD);
#endif
			if
			:: p != cons_pvt
			:: p == cons_pvt && taken < MESSAGES ->
				wait(CONSUMER)
			:: p == cons_pvt && taken == MESSAGES ->
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
		run flush(PRODUCER);
		run flush(CONSUMER);
		run producer();
		run consumer();
		run spurious()
	}
}
