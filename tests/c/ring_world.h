// SPDX-License-Identifier: MIT
// What the parts of ring_test.c share: a ring in shared memory, its words and doorbells, messages that are known again.
#ifndef RING_WORLD_H
#define RING_WORLD_H

#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "pcisplit_ring.h"

#define SIZE 8u
#define BEFORE_THE_WRAP (0u - SIZE) // where a test begins
#define LOST_MS 5000

#define CHECK(what)                                                            \
    do {                                                                       \
        if (!(what)) {                                                         \
            fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #what); \
            exit(1);                                                           \
        }                                                                      \
    } while (0)

struct line {
    uint32_t word;
    char pad[60];
};

// One direction: the ring, the words of both sides, the sleeping words of both sides.
struct shared {
    struct line prod, cons, producer_sleeping, consumer_sleeping;
    uint64_t slots[SIZE * PCISPLIT_SLOT_WORDS];
};

struct way {
    struct shared *s;
    int to_consumer[2], to_producer[2]; // pipes, as doorbells
};

static inline void make(struct way *w, struct shared *s)
{
    w->s = s;
    CHECK(pipe(w->to_consumer) == 0 && pipe(w->to_producer) == 0);
}

static inline void start(const struct way *w, uint32_t at, struct pcisplit_producer *p, struct pcisplit_consumer *c)
{
    pcisplit_producer_init(p, w->s->slots, &w->s->prod.word, &w->s->cons.word, SIZE);
    pcisplit_consumer_init(c, w->s->slots, &w->s->prod.word, &w->s->cons.word, SIZE);
    p->filled = p->announced = p->cons_seen = c->taken = c->given = at;
}

// The words of a ring of which everything before `at` was taken; the slots have the sequences of the lap before.
static inline void begin(struct shared *s, uint32_t at)
{
    s->prod.word = s->cons.word = at;
    for (uint32_t n = at - SIZE; n != at; n++)
        s->slots[(n % SIZE + 1) * PCISPLIT_SLOT_WORDS - 1] = (uint64_t)(n + 1) << 32;
}

static inline void fill(struct pcisplit_slot *slot, uint64_t n)
{
    for (unsigned i = 0; i < PCISPLIT_SLOT_WORDS; i++)
        slot->word[i] = n * 0x9e3779b97f4a7c15u + i;
}

// The octets, and the sequence, which is the ring's.
static inline void expect(const struct pcisplit_slot *slot, uint64_t n, uint32_t sequence)
{
    for (unsigned i = 0; i < PCISPLIT_SLOT_WORDS - 1; i++)
        CHECK(slot->word[i] == n * 0x9e3779b97f4a7c15u + i);
    CHECK((uint32_t)slot->word[7] == (uint32_t)(n * 0x9e3779b97f4a7c15u + 7) && slot->word[7] >> 32 == sequence);
}

static inline void wait_for(int fd)
{
    struct pollfd p = {.fd = fd, .events = POLLIN};
    char drained[64];
    CHECK(poll(&p, 1, LOST_MS) == 1); // a wake-up was lost
    CHECK(read(fd, drained, sizeof drained) > 0);
}

static inline void kick(int fd)
{
    CHECK(write(fd, "", 1) == 1);
}

static inline uint32_t next_random(uint32_t *seed)
{
    *seed = *seed * 1664525u + 1013904223u;
    return *seed >> 16;
}

#endif
