// SPDX-License-Identifier: MIT
// Two processes and two rings, as in a session: requests, answers, one sleeping word a side for whatever it waits for.
#ifndef RING_ECHO_H
#define RING_ECHO_H

#include "ring_world.h"

// One side: it produces into one ring, consumes from the other, and sleeps for either.
struct end {
    uint32_t *sleeping, *peer_sleeping, seed;
    int doorbell, peer_doorbell;
    struct pcisplit_producer p;
    struct pcisplit_consumer c;
};

static inline void settle(struct end *e)
{
    bool told = pcisplit_owes(&e->p) || pcisplit_held(&e->c);
    if (pcisplit_owes(&e->p))
        pcisplit_announce(&e->p);
    if (pcisplit_held(&e->c))
        pcisplit_give_back(&e->c);
    if (told && pcisplit_must_kick(e->peer_sleeping))
        kick(e->peer_doorbell);
}

// Look for a message for a while, telling the peer what is owed to it on the way, or at the latest before falling asleep.
static inline bool take_or_sleep(struct end *e, struct pcisplit_slot *slot, bool want_slot, bool want_space)
{
    uint32_t spin = next_random(&e->seed) % 60;
    for (uint32_t polls = 0; polls <= spin; polls++) {
        if (want_slot && pcisplit_take(&e->c, slot))
            return true;
        if (want_space && pcisplit_space(&e->p, 1) > 0)
            return false;
        if (polls == PCISPLIT_ANNOUNCE_POLLS)
            settle(e);
    }
    settle(e);
    for (volatile uint32_t delay = next_random(&e->seed) % 300; delay; delay--)
        ;
    pcisplit_sleep_begin(e->sleeping);
    int found = want_slot ? pcisplit_recheck(&e->c) : 0;
    int64_t space = want_space ? pcisplit_space_recheck(&e->p) : 0;
    CHECK(found >= 0 && space >= 0);
    if (!found && !space)
        wait_for(e->doorbell);
    pcisplit_sleep_end(e->sleeping);
    return false;
}

static inline void ask(struct end *e, uint64_t messages)
{
    struct pcisplit_slot slot;

    for (uint64_t sent = 0, n = 0; n < messages;) {
        uint64_t most = 1 + next_random(&e->seed) % SIZE; // under way
        while (sent < messages && sent - n < most && pcisplit_space(&e->p, 1) > 0) {
            fill(&slot, sent++);
            pcisplit_fill(&e->p, &slot);
            if (pcisplit_glance(e->peer_sleeping))
                settle(e);
        }
        if (sent > n && take_or_sleep(e, &slot, true, sent < messages && sent - n < most))
            expect(&slot, n++, e->c.taken);
        if (pcisplit_held(&e->c) >= SIZE / 4)
            settle(e);
    }
    settle(e);
}

// A request is taken when its answer has a slot; else it is held back.
static inline void answer(struct end *e, uint64_t messages)
{
    struct pcisplit_slot slot;

    for (uint64_t n = 0; n < messages;) {
        bool room = pcisplit_space(&e->p, 1) > 0;
        if (!take_or_sleep(e, &slot, room, !room))
            continue;
        expect(&slot, n++, e->c.taken);
        pcisplit_fill(&e->p, &slot);
        if (next_random(&e->seed) % 4 == 0 || pcisplit_glance(e->peer_sleeping))
            settle(e);
    }
    settle(e);
}

// The words of the asking side are those of ring 0, the other's those of ring 1.
static inline void make_ends(struct end e[2], struct shared shared[2], uint32_t seed)
{
    struct way way[2];
    struct pcisplit_producer p[2];
    struct pcisplit_consumer c[2];

    for (unsigned i = 0; i < 2; i++) {
        make(&way[i], &shared[i]);
        begin(&shared[i], BEFORE_THE_WRAP);
        start(&way[i], BEFORE_THE_WRAP, &p[i], &c[i]);
    }
    for (unsigned me = 0; me < 2; me++)
        e[me] = (struct end){.sleeping = &shared[me].producer_sleeping.word,
                             .peer_sleeping = &shared[!me].producer_sleeping.word, .seed = seed * 7 + me,
                             .doorbell = way[me].to_producer[0], .peer_doorbell = way[!me].to_producer[1],
                             .p = p[me], .c = c[!me]};
}

static inline void echo(uint64_t messages, uint32_t seed)
{
    struct shared *shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    struct end e[2];
    int status;

    CHECK(shared != MAP_FAILED && 2 * sizeof *shared <= 4096);
    make_ends(e, shared, seed);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        answer(&e[1], messages);
        _exit(0);
    }
    ask(&e[0], messages);
    CHECK(waitpid(child, &status, 0) == child && status == 0);
}

struct answering {
    struct end *e;
    uint64_t messages;
};

static inline void *answering_thread(void *context)
{
    struct answering *answering = context;
    answer(answering->e, answering->messages);
    return NULL;
}

static inline void echo_threads(uint64_t messages)
{
    static struct shared shared[2];
    struct end e[2];
    struct answering answering = {&e[1], messages};
    pthread_t thread;

    make_ends(e, shared, 1);
    CHECK(pthread_create(&thread, NULL, answering_thread, &answering) == 0);
    ask(&e[0], messages);
    CHECK(pthread_join(thread, NULL) == 0);
}

#endif
