// SPDX-License-Identifier: MIT
// The ring header under test, in one program:
//   ring_test unit               full, empty, wrap of the indices, impossible counts
//   ring_test threads N          two threads on one mapping, N messages (for ThreadSanitizer)
//   ring_test processes N SEED   two processes on a shared mapping, N messages each way, random spin budgets: every message
//                                comes once, in order, whole; a wake-up that is lost shows as a wait of five seconds
// Exit code 0, or 1 with a line that says what went wrong.

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

static void make(struct way *w, struct shared *s)
{
    w->s = s;
    CHECK(pipe(w->to_consumer) == 0 && pipe(w->to_producer) == 0);
}

static void start(const struct way *w, uint32_t at, struct pcisplit_producer *p, struct pcisplit_consumer *c)
{
    pcisplit_producer_init(p, w->s->slots, &w->s->prod.word, &w->s->cons.word, SIZE);
    pcisplit_consumer_init(c, w->s->slots, &w->s->prod.word, &w->s->cons.word, SIZE);
    p->prod_pvt = p->published = p->cons_seen = c->cons_pvt = c->prod_seen = at;
}

static void fill(struct pcisplit_slot *slot, uint64_t n)
{
    for (unsigned i = 0; i < PCISPLIT_SLOT_WORDS; i++)
        slot->word[i] = n * 0x9e3779b97f4a7c15u + i;
}

static void expect(const struct pcisplit_slot *slot, uint64_t n)
{
    for (unsigned i = 0; i < PCISPLIT_SLOT_WORDS; i++)
        CHECK(slot->word[i] == n * 0x9e3779b97f4a7c15u + i);
}

static void wait_for(int fd)
{
    struct pollfd p = {.fd = fd, .events = POLLIN};
    char drained[64];
    CHECK(poll(&p, 1, LOST_MS) == 1); // a wake-up was lost
    CHECK(read(fd, drained, sizeof drained) > 0);
}

static void kick(int fd)
{
    CHECK(write(fd, "", 1) == 1);
}

static uint32_t next_random(uint32_t *seed)
{
    *seed = *seed * 1664525u + 1013904223u;
    return *seed >> 16;
}

static void produce(struct way *w, struct pcisplit_producer *p, uint64_t messages, uint32_t seed)
{
    struct pcisplit_slot slot;

    for (uint64_t n = 0; n < messages;) {
        int64_t space = pcisplit_space(p, 1);
        for (uint32_t spin = next_random(&seed) % 200; space == 0 && spin; spin--)
            space = pcisplit_space(p, 1);
        if (space == 0) {
            pcisplit_sleep_begin(&w->s->producer_sleeping.word);
            if (pcisplit_space_recheck(p) == 0)
                wait_for(w->to_producer[0]);
            pcisplit_sleep_end(&w->s->producer_sleeping.word);
            continue;
        }
        CHECK(space > 0);
        for (volatile uint32_t delay = next_random(&seed) % 600; delay; delay--)
            ; // so that publishing meets every moment of the other side's falling asleep
        for (uint32_t batch = 1 + next_random(&seed) % 3; batch && space && n < messages; batch--, space--) {
            fill(&slot, n++);
            pcisplit_fill(p, &slot);
        }
        pcisplit_publish(p);
        if (pcisplit_must_kick(&w->s->consumer_sleeping.word))
            kick(w->to_consumer[1]);
    }
}

static void consume(struct way *w, struct pcisplit_consumer *c, uint64_t messages, uint32_t seed)
{
    struct pcisplit_slot slot;

    for (uint64_t n = 0; n < messages;) {
        int64_t available = pcisplit_available(c);
        for (uint32_t spin = next_random(&seed) % 60; available == 0 && spin; spin--)
            available = pcisplit_available(c);
        if (available == 0) {
            pcisplit_sleep_begin(&w->s->consumer_sleeping.word);
            if (pcisplit_available(c) == 0)
                wait_for(w->to_consumer[0]);
            pcisplit_sleep_end(&w->s->consumer_sleeping.word);
            continue;
        }
        CHECK(available > 0);
        while (available--) {
            pcisplit_take(c, &slot);
            expect(&slot, n++);
        }
        pcisplit_give_back(c);
        if (pcisplit_must_kick(&w->s->producer_sleeping.word))
            kick(w->to_producer[1]);
    }
}

static void unit(void)
{
    static struct shared shared;
    struct pcisplit_producer p;
    struct pcisplit_consumer c;
    struct pcisplit_slot slot;
    struct way w;

    make(&w, &shared);
    for (uint32_t at = 0xffffffffu - 20; at != 20; at++) { // the indices wrap on the way
        shared.prod.word = shared.cons.word = at;
        start(&w, at, &p, &c);
        CHECK(pcisplit_available(&c) == 0);                       // empty
        CHECK(pcisplit_space(&p, SIZE) == SIZE);
        for (uint32_t n = 0; n < SIZE; n++) {
            fill(&slot, n);
            pcisplit_fill(&p, &slot);
        }
        CHECK(pcisplit_available(&c) == 0);                       // filled is not published
        pcisplit_publish(&p);
        CHECK(pcisplit_space(&p, 1) == 0);                        // full
        CHECK(pcisplit_available(&c) == SIZE);
        for (uint32_t n = 0; n < SIZE; n++) {
            pcisplit_take(&c, &slot);
            expect(&slot, n);
        }
        CHECK(pcisplit_space(&p, 1) == 0);                        // taken is not given back
        pcisplit_give_back(&c);
        CHECK(pcisplit_space(&p, SIZE) == SIZE);
        shared.prod.word = c.cons_pvt + SIZE + 1;                 // further ahead than the ring is long
        CHECK(pcisplit_available(&c) == -1);
        shared.prod.word = c.cons_pvt - 1;                        // backwards
        CHECK(pcisplit_available(&c) == -1);
        shared.cons.word = p.published + 1;                       // took what was not there
        CHECK(pcisplit_space(&p, SIZE + 1) == -1 && pcisplit_space_recheck(&p) == -1);
        shared.cons.word = p.published - SIZE - 1;                // gave back what it had not
        CHECK(pcisplit_space(&p, SIZE + 1) == -1 && pcisplit_space_recheck(&p) == -1);
    }
}

struct side {
    struct way *way;
    uint64_t messages;
};

static void *consumer_thread(void *context)
{
    struct side *side = context;
    struct pcisplit_producer p;
    struct pcisplit_consumer c;
    start(side->way, 0, &p, &c);
    consume(side->way, &c, side->messages, 2);
    return NULL;
}

static void threads(uint64_t messages)
{
    static struct shared shared;
    struct pcisplit_producer p;
    struct pcisplit_consumer c;
    struct way w;
    pthread_t thread;
    struct side side = {&w, messages};

    make(&w, &shared);
    start(&w, 0, &p, &c);
    CHECK(pthread_create(&thread, NULL, consumer_thread, &side) == 0);
    produce(&w, &p, messages, 1);
    CHECK(pthread_join(thread, NULL) == 0);
}

static void processes(uint64_t messages, uint32_t seed)
{
    struct shared *shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    struct pcisplit_producer p;
    struct pcisplit_consumer c;
    struct way w;
    int status;

    CHECK(shared != MAP_FAILED && sizeof *shared <= 4096);
    make(&w, shared);
    shared->prod.word = shared->cons.word = 0u - 100; // wraps early
    start(&w, 0u - 100, &p, &c);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        consume(&w, &c, messages, seed * 7 + 1);
        _exit(0);
    }
    produce(&w, &p, messages, seed);
    CHECK(waitpid(child, &status, 0) == child && status == 0);
}

int main(int argc, char **argv)
{
    if (argc == 2 && !strcmp(argv[1], "unit"))
        unit();
    else if (argc == 3 && !strcmp(argv[1], "threads"))
        threads(strtoull(argv[2], NULL, 10));
    else if (argc == 4 && !strcmp(argv[1], "processes"))
        processes(strtoull(argv[2], NULL, 10), (uint32_t)strtoul(argv[3], NULL, 10));
    else
        return 2;
    return 0;
}
