/* SPDX-License-Identifier: MIT */
/*
 * The x86-TSO machine of ring.pml and litmus.pml.
 *
 * Each CPU has a FIFO store buffer. A store enters the own buffer; the oldest entry reaches memory at any later time;
 * a load takes the newest entry for its word from the own buffer, else memory. A fence waits until the own buffer is
 * empty. Thus a load may overtake an earlier store to another word, and nothing else is reordered.
 *   P. Sewell, S. Sarkar, S. Owens, F. Zappa Nardelli, M. O. Myreen: x86-TSO: A Rigorous and Usable Programmer's
 *   Model for x86 Multiprocessors. Communications of the ACM 53(7), 2010.
 *
 * A buffer that holds entries can always be flushed, so no end state has a store under way.
 * The file that includes this one defines WORDS, and FLUSHED() (a check that runs after each flush).
 */

#define CPUS  2
#define DEPTH 5

typedef store_buffer {
	byte used;
	byte word[DEPTH];
	byte value[DEPTH]
};

byte mem[WORDS];
store_buffer sb[CPUS];

#define BUFFERED(cpu, i, w) (sb[cpu].used > (i) && sb[cpu].word[i] == (w))

/* Any load (relaxed, acquire, seq_cst): on x86 each of them is a plain mov. */
#define LOAD(cpu, w) \
	(BUFFERED(cpu, 4, w) -> sb[cpu].value[4] : \
	(BUFFERED(cpu, 3, w) -> sb[cpu].value[3] : \
	(BUFFERED(cpu, 2, w) -> sb[cpu].value[2] : \
	(BUFFERED(cpu, 1, w) -> sb[cpu].value[1] : \
	(BUFFERED(cpu, 0, w) -> sb[cpu].value[0] : mem[w])))))

/* A plain or release store: a mov. It waits while the buffer is full. */
inline store_release(cpu, w, v)
{
	d_step {
		sb[cpu].used < DEPTH ->
		sb[cpu].word[sb[cpu].used] = w;
		sb[cpu].value[sb[cpu].used] = v;
		sb[cpu].used++
	}
}

inline fence(cpu)
{
	sb[cpu].used == 0
}

/* A seq_cst store: an xchg, or mov and mfence. */
inline store_seq_cst(cpu, w, v)
{
	store_release(cpu, w, v);
	fence(cpu)
}

/* The hardware: moves the oldest entry of one buffer to memory. Freed entries become 0, to keep equal states equal. */
proctype flush(byte cpu)
{
end_drained:
	do
	:: d_step {
		sb[cpu].used > 0 ->
		mem[sb[cpu].word[0]] = sb[cpu].value[0];
		sb[cpu].word[0] = sb[cpu].word[1];
		sb[cpu].value[0] = sb[cpu].value[1];
		sb[cpu].word[1] = sb[cpu].word[2];
		sb[cpu].value[1] = sb[cpu].value[2];
		sb[cpu].word[2] = sb[cpu].word[3];
		sb[cpu].value[2] = sb[cpu].value[3];
		sb[cpu].word[3] = sb[cpu].word[4];
		sb[cpu].value[3] = sb[cpu].value[4];
		sb[cpu].word[4] = 0;
		sb[cpu].value[4] = 0;
		sb[cpu].used--;
		FLUSHED()
	   }
	od
}
