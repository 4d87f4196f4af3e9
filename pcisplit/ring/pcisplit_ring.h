/* SPDX-License-Identifier: MIT
 *
 * The ring: a single-producer single-consumer queue of 64-octet slots in shared memory, and the two words by which a
 * side sleeps and is woken. Two rules: this header is self-contained (freestanding C11, no libc), and both sides of
 * every ring use it, so that the tests of one side are tests of the other.
 *
 * Theory. `prod` and `cons` are free-running u32 counts, each in a cache line of its writer's region. Each side keeps
 * its own count privately (`*_pvt`) and never reads it back: the peer could write there on a ring that is not sealed.
 * The peer's count is read, bounded by the size, and cached; reading it is the only cache miss of an idle turn.
 *
 *   producer                                  consumer
 *     fill slots                                copy slots
 *     store prod            seq_cst             store cons             seq_cst
 *     load peer.sleeping    seq_cst -> kick     store own.sleeping = 1 seq_cst
 *                                               load prod              seq_cst -> unchanged: wait
 *
 * A release store followed by a load may pass it in the store buffer, on x86 too; then the producer sees an awake
 * consumer and the consumer an empty ring, and both sleep. Hence seq_cst on exactly these accesses; no fences, because
 * ThreadSanitizer does not see them. tests/model/ring.pml proves the protocol and that each weakening breaks it.
 *
 * Nothing here trusts the peer: a distance above the size is reported, never clamped [RING-3]; a slot is copied once,
 * by 64-bit loads, and judged from the copy [THR-1]. A struct assignment would become a call of memcpy.
 */
#ifndef PCISPLIT_RING_H
#define PCISPLIT_RING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "pcisplit_wire.gen.h"

#define PCISPLIT_SLOT_WORDS (PCISPLIT_SLOT_SIZE / 8)

/* One slot as the ring moves it; the record in it is of no concern here. */
struct pcisplit_slot {
    uint64_t word[PCISPLIT_SLOT_WORDS];
};

_Static_assert(sizeof(struct pcisplit_slot) == sizeof(struct pcisplit_request), "a request fills a slot");
_Static_assert(sizeof(struct pcisplit_slot) == sizeof(struct pcisplit_response), "a response fills a slot");
_Static_assert(sizeof(struct pcisplit_slot) == sizeof(struct pcisplit_event), "an event fills a slot");

struct pcisplit_producer {
    volatile uint64_t *slots;  /* shared, ours to write */
    uint32_t *prod;            /* shared, ours to write */
    const uint32_t *cons;      /* shared, the peer's */
    uint32_t size;             /* slots, a power of two [RING-1] */
    uint32_t prod_pvt;         /* slots filled; those up to `published` are the peer's */
    uint32_t published;
    uint32_t cons_seen;        /* the peer's count as last read and found in range */
};

struct pcisplit_consumer {
    const volatile uint64_t *slots; /* shared, the peer's */
    const uint32_t *prod;           /* shared, the peer's */
    uint32_t *cons;                 /* shared, ours to write */
    uint32_t size;
    uint32_t cons_pvt;              /* slots taken */
    uint32_t prod_seen;             /* the peer's count as last read and found in range */
};

/* ---- shared words ------------------------------------------------------------------------------------------------ */

static inline uint32_t pcisplit_load(const uint32_t *word)
{
    return __atomic_load_n(word, __ATOMIC_SEQ_CST);
}

static inline void pcisplit_store(uint32_t *word, uint32_t value)
{
    __atomic_store_n(word, value, __ATOMIC_SEQ_CST);
}

static inline void pcisplit_pause(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#elif defined(__riscv)
    __asm__ volatile(".insn i 0x0F, 0, x0, x0, 0x010"); /* pause, of Zihintpause; a hint on every other core */
#endif
}

/* Copy one slot between shared and private memory, word by word: each word of the source is read exactly once. */
static inline void pcisplit_copy_slot(volatile uint64_t *to, const volatile uint64_t *from)
{
    for (unsigned i = 0; i < PCISPLIT_SLOT_WORDS; i++)
        to[i] = from[i];
}

/* A slot's line is in the other side's cache. A consumer asks for the next published slots while it works on one, a
 * producer asks to own the next slots it will fill, so that transfers overlap. Hints: they change no order. */
#define PCISPLIT_AHEAD 8

static inline void pcisplit_want(const volatile void *line)
{
    __builtin_prefetch((const void *)line);
}

static inline void pcisplit_want_to_write(volatile void *line)
{
#if defined(__x86_64__)
    __asm__ volatile("prefetchw %0" : : "m"(*(volatile char *)line)); /* gcc's own needs -mprfchw; older CPUs ignore it */
#else
    __builtin_prefetch((const void *)line, 1);
#endif
}

/* ---- producer ---------------------------------------------------------------------------------------------------- */

static inline void pcisplit_producer_init(struct pcisplit_producer *p, void *slots, uint32_t *prod,
                                          const uint32_t *cons, uint32_t size)
{
    p->slots = (volatile uint64_t *)slots;
    p->prod = prod;
    p->cons = cons;
    p->size = size;
    p->prod_pvt = p->published = p->cons_seen = 0;
}

/* Space, given the peer's count as just read: it lies between what was last seen and what was published, or -1. */
static inline int64_t pcisplit_space_seen(struct pcisplit_producer *p, uint32_t cons)
{
    if (p->published - cons > p->published - p->cons_seen)
        return -1;
    p->cons_seen = cons;
    return p->size - (p->prod_pvt - cons);
}

/* Free slots; PRODUCER only. Reads the peer's count only when the cached one leaves less than `want`.
 * Returns -1 if the peer's count is impossible: it took more than was published, or gave slots back twice. The caller
 * ends the session [RING-3]. */
static inline int64_t pcisplit_space(struct pcisplit_producer *p, uint32_t want)
{
    uint32_t space = p->size - (p->prod_pvt - p->cons_seen);
    if (space >= want)
        return space;
    uint32_t cons = __atomic_load_n(p->cons, __ATOMIC_ACQUIRE); /* pairs with pcisplit_give_back */
    return pcisplit_space_seen(p, cons);
}

/* Fill the next slot; PRODUCER only, and only when pcisplit_space() said that there is one. Not yet visible. */
static inline void pcisplit_fill(struct pcisplit_producer *p, const struct pcisplit_slot *slot)
{
    size_t at = (size_t)(p->prod_pvt & (p->size - 1)) * PCISPLIT_SLOT_WORDS;
    pcisplit_copy_slot(p->slots + at, slot->word);
    p->prod_pvt++;
    at = (size_t)((p->prod_pvt + PCISPLIT_AHEAD - 1) & (p->size - 1)) * PCISPLIT_SLOT_WORDS;
    pcisplit_want_to_write(p->slots + at);
}

/* Publish the filled slots; PRODUCER only. The seq_cst store pairs with the load in pcisplit_available(): who sees the
 * index sees the slots. It also comes before the load in pcisplit_must_kick() [RING-2, RING-11]. */
static inline void pcisplit_publish(struct pcisplit_producer *p)
{
    pcisplit_store(p->prod, p->prod_pvt); /* @publish */
    p->published = p->prod_pvt;
}

/* Whether the peer sleeps and wants a kick. Call after storing any index that it may wait for [RING-11]. A peer that
 * lies gets kicks it does not need or misses those it does: its own loss [RING-14]. */
static inline bool pcisplit_must_kick(const uint32_t *peer_sleeping)
{
    return pcisplit_load(peer_sleeping) != 0;
}

/* A producer that is about to wait for space, having set its sleeping word, looks again here [RING-10].
 * Returns as pcisplit_space(). */
static inline int64_t pcisplit_space_recheck(struct pcisplit_producer *p)
{
    uint32_t cons = pcisplit_load(p->cons); /* @full_recheck */
    return pcisplit_space_seen(p, cons);
}

/* ---- consumer ---------------------------------------------------------------------------------------------------- */

static inline void pcisplit_consumer_init(struct pcisplit_consumer *c, const void *slots, const uint32_t *prod,
                                          uint32_t *cons, uint32_t size)
{
    c->slots = (const volatile uint64_t *)slots;
    c->prod = prod;
    c->cons = cons;
    c->size = size;
    c->cons_pvt = c->prod_seen = 0;
}

static inline void pcisplit_prefetch(const struct pcisplit_consumer *c, uint32_t n)
{
    pcisplit_want(c->slots + (size_t)(n & (c->size - 1)) * PCISPLIT_SLOT_WORDS);
}

/* Slots there are to take; CONSUMER only. Reads the peer's count only when none are known; seq_cst, so that it is also
 * the look after setting the sleeping word [RING-10].
 * Returns -1 if the peer is further ahead than the ring is long, or went back [RING-3]. */
static inline int64_t pcisplit_available(struct pcisplit_consumer *c)
{
    if (c->prod_seen != c->cons_pvt)
        return c->prod_seen - c->cons_pvt;
    uint32_t prod = pcisplit_load(c->prod); /* @recheck */
    if (prod - c->cons_pvt > c->size) /* @distance */
        return -1;
    c->prod_seen = prod;
    for (uint32_t i = 0; i < PCISPLIT_AHEAD && i < prod - c->cons_pvt; i++)
        pcisplit_prefetch(c, c->cons_pvt + i);
    return prod - c->cons_pvt;
}

/* Copy the next slot out; CONSUMER only, and only when pcisplit_available() said that there is one. */
static inline void pcisplit_take(struct pcisplit_consumer *c, struct pcisplit_slot *slot)
{
    size_t at = (size_t)(c->cons_pvt & (c->size - 1)) * PCISPLIT_SLOT_WORDS;
    pcisplit_copy_slot(slot->word, c->slots + at);
    if (c->prod_seen - c->cons_pvt > PCISPLIT_AHEAD)
        pcisplit_prefetch(c, c->cons_pvt + PCISPLIT_AHEAD);
    c->cons_pvt++;
}

/* Give the taken slots back; CONSUMER only. seq_cst, because a producer may sleep for space: the caller then looks at
 * pcisplit_must_kick() [RING-2, RING-11]. */
static inline void pcisplit_give_back(struct pcisplit_consumer *c)
{
    pcisplit_store(c->cons, c->cons_pvt); /* @consume */
}

/* ---- sleeping ---------------------------------------------------------------------------------------------------- */

/* Say that we are about to wait. The caller then looks at every index it waits for, with seq_cst loads
 * (pcisplit_available, pcisplit_space_recheck), and waits only if nothing moved [RING-10]. */
static inline void pcisplit_sleep_begin(uint32_t *sleeping)
{
    pcisplit_store(sleeping, 1); /* @sleep */ /* @full_sleep */
}

/* Awake again. A kick that arrives late is spurious and harmless, so release is enough. */
static inline void pcisplit_sleep_end(uint32_t *sleeping)
{
    __atomic_store_n(sleeping, 0, __ATOMIC_RELEASE);
}

#endif
