// SPDX-License-Identifier: MIT
// The ring header under test, in one program:
//   ring_test unit               full, empty, wrap of the indices, published and announced, impossible counts
//   ring_test threads N          two threads on one mapping, N messages, then N requests (for ThreadSanitizer)
//   ring_test processes N SEED   two processes on a shared mapping, N messages each way, random spin budgets, announcements
//                                and slots given back late, by chance, SEED % 4 of 4: every message comes once, in order,
//                                whole
//   ring_test echo N SEED        two processes and two rings: N requests, up to a ring full of them under way, and as many
//                                answers; a side has one sleeping word for whatever it waits for, as in a session
// A wake-up that is lost shows as a wait of five seconds. Exit code 0, or 1 with a line that says what went wrong.

#include "ring_world.h"
#include "ring_echo.h"

static void announce(struct way *w, struct pcisplit_producer *p)
{
    if (!pcisplit_owes(p))
        return;
    pcisplit_announce(p);
    if (pcisplit_must_kick(&w->s->consumer_sleeping.word))
        kick(w->to_consumer[1]);
}

static void give_back(struct way *w, struct pcisplit_consumer *c)
{
    if (!pcisplit_held(c))
        return;
    pcisplit_give_back(c);
    if (pcisplit_must_kick(&w->s->producer_sleeping.word))
        kick(w->to_producer[1]);
}

static void produce(struct way *w, struct pcisplit_producer *p, uint64_t messages, uint32_t seed)
{
    struct pcisplit_slot slot;
    uint32_t late = seed % 4; // quarters

    for (uint64_t n = 0; n < messages;) {
        int64_t space = pcisplit_space(p, 1);
        for (uint32_t spin = next_random(&seed) % 200; space == 0 && spin; spin--)
            space = pcisplit_space(p, 1);
        if (space == 0) {
            announce(w, p);
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
        if (next_random(&seed) % 4 >= late) // else later, at the latest before it sleeps
            announce(w, p);
    }
    announce(w, p);
}

static void consume(struct way *w, struct pcisplit_consumer *c, uint64_t messages, uint32_t seed)
{
    struct pcisplit_slot slot;
    uint32_t late = seed % 4; // quarters

    for (uint64_t n = 0; n < messages;) {
        int available = pcisplit_available(c);
        for (uint32_t spin = next_random(&seed) % 60; !available && spin; spin--)
            available = pcisplit_available(c);
        if (!available) {
            give_back(w, c);
            pcisplit_sleep_begin(&w->s->consumer_sleeping.word);
            int found = pcisplit_recheck(c);
            CHECK(found >= 0);
            if (found == 0)
                wait_for(w->to_consumer[0]);
            pcisplit_sleep_end(&w->s->consumer_sleeping.word);
            continue;
        }
        while (pcisplit_take(c, &slot))
            expect(&slot, n++, c->taken);
        if (next_random(&seed) % 4 >= late) // else later, at the latest before it sleeps
            give_back(w, c);
    }
    give_back(w, c);
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
        begin(&shared, at);
        start(&w, at, &p, &c);
        CHECK(!pcisplit_available(&c) && !pcisplit_take(&c, &slot) && pcisplit_recheck(&c) == 0); // empty
        CHECK(pcisplit_space(&p, SIZE) == SIZE && !pcisplit_owes(&p));
        for (uint32_t n = 0; n < SIZE / 2; n++) {
            fill(&slot, n);
            pcisplit_fill(&p, &slot);
        }
        CHECK(pcisplit_take(&c, &slot));                          // published, and announced to nobody
        expect(&slot, 0, at + 1);
        CHECK(pcisplit_owes(&p) && shared.prod.word == at);
        CHECK(pcisplit_recheck(&c) == 1);                         // prod is behind what was taken: no lie
        for (uint32_t n = SIZE / 2; n < SIZE; n++) {
            fill(&slot, n);
            pcisplit_fill(&p, &slot);
        }
        pcisplit_announce(&p);
        CHECK(!pcisplit_owes(&p) && shared.prod.word == at + SIZE);
        CHECK(pcisplit_space(&p, 1) == 0 && pcisplit_space_recheck(&p) == 0); // full
        CHECK(pcisplit_recheck(&c) == 1);
        for (uint32_t n = 1; n < SIZE; n++) {
            CHECK(pcisplit_take(&c, &slot));
            expect(&slot, n, at + n + 1);
        }
        CHECK(!pcisplit_take(&c, &slot) && pcisplit_recheck(&c) == 0); // those of this lap are not the next one's
        CHECK(pcisplit_held(&c) == SIZE && pcisplit_space(&p, 1) == 0); // taken is not given back
        pcisplit_give_back(&c);
        CHECK(pcisplit_held(&c) == 0 && pcisplit_space(&p, SIZE) == SIZE);
        shared.prod.word = c.taken + 1;                           // announces what is not there
        CHECK(pcisplit_recheck(&c) == -1);
        shared.prod.word = c.taken - 1;                           // behind
        CHECK(pcisplit_recheck(&c) == 0);
        fill(&slot, SIZE);
        pcisplit_fill(&p, &slot);
        CHECK(pcisplit_recheck(&c) == 1);
        shared.prod.word = c.taken + SIZE;
        CHECK(pcisplit_recheck(&c) == 1);
        for (uint32_t ahead = SIZE + 1; ahead < 1u << 31; ahead = ahead * 3 | 1) {
            shared.prod.word = c.taken + ahead;                   // further ahead than the ring is long
            CHECK(pcisplit_recheck(&c) == -1);
        }
        uint64_t *last = &shared.slots[(c.taken % SIZE + 1) * PCISPLIT_SLOT_WORDS - 1];
        for (uint32_t other = c.taken - 2 * SIZE; other != c.taken + 2 * SIZE; other++) {
            *last = (uint64_t)other << 32;                        // another sequence is not yet
            CHECK(pcisplit_available(&c) == (other == c.taken + 1));
        }
        shared.cons.word = p.filled + 1;                          // took what was not there
        CHECK(pcisplit_space(&p, SIZE + 1) == -1 && pcisplit_space_recheck(&p) == -1);
        shared.cons.word = p.cons_seen - 1;                       // gave back twice
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
    start(side->way, BEFORE_THE_WRAP, &p, &c);
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
    begin(&shared, BEFORE_THE_WRAP);
    start(&w, BEFORE_THE_WRAP, &p, &c);
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
    begin(shared, BEFORE_THE_WRAP);
    start(&w, BEFORE_THE_WRAP, &p, &c);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        consume(&w, &c, messages, seed * 5 + 4);
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
        threads(strtoull(argv[2], NULL, 10)), echo_threads(strtoull(argv[2], NULL, 10));
    else if (argc == 4 && !strcmp(argv[1], "processes"))
        processes(strtoull(argv[2], NULL, 10), (uint32_t)strtoul(argv[3], NULL, 10));
    else if (argc == 4 && !strcmp(argv[1], "echo"))
        echo(strtoull(argv[2], NULL, 10), (uint32_t)strtoul(argv[3], NULL, 10));
    else
        return 2;
    return 0;
}
