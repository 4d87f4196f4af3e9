/* SPDX-License-Identifier: MIT
 *
 * The ring: a single-producer single-consumer queue of 64-octet slots in shared memory, and the two words by which a
 * side sleeps and is woken. Two rules: this header is self-contained (freestanding C11, no libc), and both sides of
 * every ring use it, so that the tests of one side are tests of the other.
 *
 * Theory. A slot carries its own sequence: its index in the ring's life + 1, stored last, with release. A consumer that is
 * awake polls the sequence of its next slot and needs nothing else: one cache line travels per message. `prod` and `cons`
 * are free-running u32 counts, each in a cache line of its writer's region, and are for those who sleep or wait for room:
 *
 *   producer                                  consumer that wants to sleep
 *     fill slots, each with its sequence        store own.sleeping = 1 seq_cst
 *     ... later: announce                       load prod              seq_cst -> ahead of what was taken: go on
 *     store prod            seq_cst             the next slot has its sequence -> go on
 *     load peer.sleeping    seq_cst -> kick     else wait
 *
 * An announcement may be late, but comes before the producer blocks or returns leaving work behind [RING-15]. A release store
 * of prod could pass the load of `sleeping` in the store buffer, on x86 too; then the producer sees an awake consumer and the
 * consumer nothing, and both sleep. Hence seq_cst on exactly these accesses; no fences, because ThreadSanitizer does not see
 * them. tests/model/ring.pml proves the protocol and that each weakening breaks it. `cons` is given back lazily, by the same
 * rule for a producer that waits for room.
 *
 * Nothing here trusts the peer: a prod ahead of a slot without its sequence, or further than the ring is long, is reported,
 * never clamped [RING-3]; a slot is copied once, by 64-bit loads, and judged from the copy [THR-1]. A struct assignment would
 * become a call of memcpy. Each side keeps its own counts privately and never reads them back.
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
    uint32_t filled;           /* slots filled, and so published */
    uint32_t announced;        /* of them, those that `prod` tells of */
    uint32_t cons_seen;        /* the peer's count as last read and found in range */
};

struct pcisplit_consumer {
    const volatile uint64_t *slots; /* shared, the peer's */
    const uint32_t *prod;           /* shared, the peer's */
    uint32_t *cons;                 /* shared, ours to write */
    uint32_t size;
    uint32_t taken;                 /* slots taken */
    uint32_t given;                 /* of them, those that `cons` gives back */
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

/* A look that promises nothing: whether a careful one is worth while. */
static inline uint32_t pcisplit_glance(const uint32_t *word)
{
    return __atomic_load_n(word, __ATOMIC_RELAXED);
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

/* Copy a private slot, word by word. */
static inline void pcisplit_copy_slot(volatile uint64_t *to, const volatile uint64_t *from)
{
    for (unsigned i = 0; i < PCISPLIT_SLOT_WORDS; i++)
        to[i] = from[i];
}

/* A slot's line is in the other side's cache. A producer asks to own the slots it will fill next, so that transfers
 * overlap; a consumer asks for those that will be published next. Hints: they change no order. */
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
    p->filled = p->announced = p->cons_seen = 0;
}

/* Space, given the peer's count as just read: it lies between what was last seen and what was filled, or -1. */
static inline int64_t pcisplit_space_seen(struct pcisplit_producer *p, uint32_t cons)
{
    if (p->filled - cons > p->filled - p->cons_seen)
        return -1;
    p->cons_seen = cons;
    return p->size - (p->filled - cons);
}

/* Free slots; PRODUCER only. Reads the peer's count only when the cached one leaves less than `want`.
 * Returns -1 if the peer's count is impossible: it took more than was filled, or gave slots back twice. The caller
 * ends the session [RING-3]. */
static inline int64_t pcisplit_space(struct pcisplit_producer *p, uint32_t want)
{
    uint32_t space = p->size - (p->filled - p->cons_seen);
    if (space >= want)
        return space;
    uint32_t cons = __atomic_load_n(p->cons, __ATOMIC_ACQUIRE); /* pairs with pcisplit_give_back */
    return pcisplit_space_seen(p, cons);
}

/* A producer that is about to wait for space, having set its sleeping word, looks again here [RING-10].
 * Returns as pcisplit_space(). */
static inline int64_t pcisplit_space_recheck(struct pcisplit_producer *p)
{
    uint32_t cons = pcisplit_load(p->cons); /* @full_recheck */
    return pcisplit_space_seen(p, cons);
}

/* The next slot, to be written in place: words 0 to 6, then pcisplit_finish(). PRODUCER only, and only when
 * pcisplit_space() said that there is one. */
static inline volatile uint64_t *pcisplit_next(const struct pcisplit_producer *p)
{
    return p->slots + (size_t)(p->filled & (p->size - 1)) * PCISPLIT_SLOT_WORDS;
}

/* Publish the next slot: `last` has octets 56 to 59 in its low half, the sequence becomes its high one. One store: who
 * sees the sequence sees the slot [RING-2]. */
static inline void pcisplit_finish(struct pcisplit_producer *p, uint32_t last)
{
    volatile uint64_t *slot = pcisplit_next(p);
    p->filled++;
    __atomic_store_n((uint64_t *)(uintptr_t)(slot + 7), last | (uint64_t)p->filled << 32, __ATOMIC_RELEASE); /* @publish */
    pcisplit_want_to_write(p->slots +
                           (size_t)((p->filled + PCISPLIT_AHEAD - 1) & (p->size - 1)) * PCISPLIT_SLOT_WORDS);
}

/* Fill and publish the next slot; its sequence is not the caller's. */
static inline void pcisplit_fill(struct pcisplit_producer *p, const struct pcisplit_slot *slot)
{
    volatile uint64_t *to = pcisplit_next(p);
    for (unsigned i = 0; i < PCISPLIT_SLOT_WORDS - 1; i++)
        to[i] = slot->word[i];
    pcisplit_finish(p, (uint32_t)slot->word[7]);
}

/* Whether slots were published that `prod` does not tell of. */
static inline bool pcisplit_owes(const struct pcisplit_producer *p)
{
    return p->filled != p->announced;
}

/* Tell a sleeper what was published; PRODUCER only. The seq_cst store comes before the load in pcisplit_must_kick(), which
 * the caller must look at afterwards [RING-11, RING-15]. */
static inline void pcisplit_announce(struct pcisplit_producer *p)
{
    pcisplit_store(p->prod, p->filled); /* @announce */
    p->announced = p->filled;
}

/* Whether the peer sleeps and wants a kick. Call after storing any index that it may wait for [RING-11]. A peer that
 * lies gets kicks it does not need or misses those it does: its own loss [RING-14]. */
static inline bool pcisplit_must_kick(const uint32_t *peer_sleeping)
{
    return pcisplit_load(peer_sleeping) != 0; /* @must_kick */
}

/* ---- consumer ---------------------------------------------------------------------------------------------------- */

static inline void pcisplit_consumer_init(struct pcisplit_consumer *c, const void *slots, const uint32_t *prod,
                                          uint32_t *cons, uint32_t size)
{
    c->slots = (const volatile uint64_t *)slots;
    c->prod = prod;
    c->cons = cons;
    c->size = size;
    c->taken = c->given = 0;
}

static inline const volatile uint64_t *pcisplit_head(const struct pcisplit_consumer *c)
{
    return c->slots + (size_t)(c->taken & (c->size - 1)) * PCISPLIT_SLOT_WORDS;
}

/* The last word of the next slot; CONSUMER only. Acquire: who sees the sequence sees the slot. */
static inline uint64_t pcisplit_peek(const struct pcisplit_consumer *c)
{
    return __atomic_load_n((const uint64_t *)(uintptr_t)(pcisplit_head(c) + 7), __ATOMIC_ACQUIRE);
}

/* Whether a last word is that of the slot that comes next. Any other sequence is "not yet". */
static inline bool pcisplit_is_next(const struct pcisplit_consumer *c, uint64_t last)
{
    return (uint32_t)(last >> 32) == c->taken + 1;
}

/* Whether there is a slot to take; CONSUMER only. */
static inline bool pcisplit_available(const struct pcisplit_consumer *c)
{
    return pcisplit_is_next(c, pcisplit_peek(c));
}

/* The slot was copied. */
static inline void pcisplit_took(struct pcisplit_consumer *c)
{
    c->taken++;
    pcisplit_want(c->slots + (size_t)((c->taken + PCISPLIT_AHEAD - 1) & (c->size - 1)) * PCISPLIT_SLOT_WORDS);
}

/* Copy the next slot out, each word read once, if it is there; CONSUMER only. */
static inline bool pcisplit_take(struct pcisplit_consumer *c, struct pcisplit_slot *slot)
{
    uint64_t last = pcisplit_peek(c);
    if (!pcisplit_is_next(c, last))
        return false;
    const volatile uint64_t *from = pcisplit_head(c);
    for (unsigned i = 0; i < PCISPLIT_SLOT_WORDS - 1; i++)
        slot->word[i] = from[i];
    slot->word[7] = last;
    pcisplit_took(c);
    return true;
}

/* The look of a consumer that has set its sleeping word: at `prod`, then at the slot [RING-10]. 1 if there is a slot, 0 if
 * not; -1 if the peer has announced a slot that is not there, or more than the ring has [RING-3]. */
static inline int pcisplit_recheck(const struct pcisplit_consumer *c)
{
    uint32_t prod = pcisplit_load(c->prod); /* @recheck */
    int32_t ahead = (int32_t)(prod - c->taken); /* behind: what was taken is not announced yet */
    if (ahead > 0 && (uint32_t)ahead > c->size) /* @distance */
        return -1;
    if (pcisplit_available(c))
        return 1;
    return ahead > 0 ? -1 : 0;
}

/* Slots taken and not given back. */
static inline uint32_t pcisplit_held(const struct pcisplit_consumer *c)
{
    return c->taken - c->given;
}

/* Give the taken slots back; CONSUMER only. seq_cst, because a producer may sleep for space: the caller then looks at
 * pcisplit_must_kick() [RING-2, RING-11]. */
static inline void pcisplit_give_back(struct pcisplit_consumer *c)
{
    pcisplit_store(c->cons, c->taken); /* @consume */
    c->given = c->taken;
}

/* ---- sleeping ---------------------------------------------------------------------------------------------------- */

/* Say that we are about to wait. The caller then looks at every index it waits for, with seq_cst loads
 * (pcisplit_recheck, pcisplit_space_recheck), and waits only if nothing moved [RING-10]. */
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
