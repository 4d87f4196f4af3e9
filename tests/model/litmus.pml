/* SPDX-License-Identifier: MIT */
/*
 * Litmus tests of the machine in tso.pml: were its buffers too strong, ring.pml would prove nothing.
 * One macro selects one test; its assertion names an outcome that must not occur. On x86-TSO
 *   SB       fails: both loads may overtake the stores,
 *   SB_FENCE holds: a fence between store and load forbids that,
 *   MP       holds: stores reach memory in order,
 *   OWN      holds: a CPU sees its own newest store at once,
 *   SB_OWN   fails: it sees it even before the other CPU does (forwarding inside the processor).
 */

#define WORDS 2
#define FLUSHED() skip
#include "tso.pml"

#define X 0
#define Y 1

byte r0, r1, own0, own1;
byte finished;

#if defined(SB) || defined(SB_FENCE) || defined(SB_OWN)

proctype cpu0()
{
	store_release(0, X, 1);
#ifdef SB_FENCE
	fence(0);
#endif
#ifdef SB_OWN
	own0 = LOAD(0, X);
#endif
	r0 = LOAD(0, Y);
	finished++
}

proctype cpu1()
{
	store_release(1, Y, 1);
#ifdef SB_FENCE
	fence(1);
#endif
#ifdef SB_OWN
	own1 = LOAD(1, Y);
#endif
	r1 = LOAD(1, X);
	finished++
}

#ifdef SB_OWN
#define FORBIDDEN (own0 == 1 && own1 == 1 && r0 == 0 && r1 == 0)
#else
#define FORBIDDEN (r0 == 0 && r1 == 0)
#endif

#elif defined(MP)

proctype cpu0()
{
	store_release(0, X, 1);
	store_release(0, Y, 1);
	finished++
}

proctype cpu1()
{
	r0 = LOAD(1, Y);
	r1 = LOAD(1, X);
	finished++
}

#define FORBIDDEN (r0 == 1 && r1 == 0)

#elif defined(OWN)

proctype cpu0()
{
	store_release(0, X, 1);
	store_release(0, Y, 1);
	store_release(0, X, 2);
	r0 = LOAD(0, X);
	r1 = LOAD(0, Y);
	finished++
}

proctype cpu1()
{
	finished++
}

#define FORBIDDEN (r0 != 2 || r1 != 1)

#endif

init {
	atomic {
		run flush(0);
		run flush(1);
		run cpu0();
		run cpu1()
	};
	finished == 2;
	assert(!FORBIDDEN)
}
