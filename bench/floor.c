// SPDX-License-Identifier: MIT
// The floor of this machine: what two processes on two CPUs need for one exchange, with no protocol at all.
//
//   floor KIND CPU CPU COUNT GROUP      prints "op mean p50 p99", nanoseconds for there and back
//
// line: one cache line each way, both spin. eventfd: one each way, both sleep. socket: UNIX SEQPACKET, 64 octets each
// way (a slot), both spin.
//
// The others are bounds: what rows would cost if both sides did nothing but move their slots: 64 octets each, published by a
// sequence in the last word, asked for ahead as the ring does. Nothing is counted, checked or decoded.
//   slot    one there and one back        (rows 1 to 3)
//   slots   16 there, each answered, / 16 (row 5)
//   packed  16 reads in packs, / 16       (row 5b)
//   many    64 reads in packs, / 64       (row 10)
//   batch   64 writes in packs and a read, one slot back, / 64 (row 4)

#include "timing.h"

#include "pcisplit_ring.h" /* the size of slots and packs, and the hints */

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define SLOTS 64 /* a power of two */

struct lines {
    uint32_t there __attribute__((aligned(256)));
    uint32_t back __attribute__((aligned(256)));
    uint64_t slots[2][SLOTS][PCISPLIT_SLOT_WORDS] __attribute__((aligned(4096))); /* there, back */
};

/* One exchange of a bound: slots there, how many of the last of them are answered, operations that it carries. */
struct exchange {
    unsigned slots, answers, parts;
};

struct ends {
    struct lines *lines;
    int there, back;
    struct exchange exchange;
    uint32_t given, taken; /* slots, of this side */
};

// ---- one function a side and kind: `serve` answers once, `ask` is there and back -----------------------------------------

static int line_ask(void *context, uint64_t turn)
{
    struct lines *l = ((struct ends *)context)->lines;
    uint32_t mark = (uint32_t)turn + 1;
    __atomic_store_n(&l->there, mark, __ATOMIC_RELEASE);
    while (__atomic_load_n(&l->back, __ATOMIC_ACQUIRE) != mark)
        ;
    return 0;
}

static int line_serve(void *context, uint64_t turn)
{
    struct lines *l = ((struct ends *)context)->lines;
    uint32_t mark = (uint32_t)turn + 1;
    while (__atomic_load_n(&l->there, __ATOMIC_ACQUIRE) != mark)
        ;
    __atomic_store_n(&l->back, mark, __ATOMIC_RELEASE);
    return 0;
}

static int eventfd_pass(int from, int to, int first)
{
    uint64_t count = 1;
    if (first && write(to, &count, sizeof count) != sizeof count)
        return -1;
    if (read(from, &count, sizeof count) != sizeof count)
        return -1;
    return !first && write(to, &count, sizeof count) != sizeof count ? -1 : 0;
}

static int eventfd_ask(void *context, uint64_t turn)
{
    struct ends *e = context;
    (void)turn;
    return eventfd_pass(e->back, e->there, 1);
}

static int eventfd_serve(void *context, uint64_t turn)
{
    struct ends *e = context;
    (void)turn;
    return eventfd_pass(e->there, e->back, 0);
}

static int socket_take(int fd)
{
    char slot[64];
    ssize_t got;
    while ((got = recv(fd, slot, sizeof slot, MSG_DONTWAIT)) < 0 && errno == EAGAIN)
        ;
    return got == sizeof slot ? 0 : -1;
}

static int socket_give(int fd)
{
    static const char slot[64];
    return send(fd, slot, sizeof slot, MSG_NOSIGNAL) == sizeof slot ? 0 : -1;
}

static int socket_ask(void *context, uint64_t turn)
{
    struct ends *e = context;
    (void)turn;
    return socket_give(e->there) || socket_take(e->there);
}

static int socket_serve(void *context, uint64_t turn)
{
    struct ends *e = context;
    (void)turn;
    return socket_take(e->back) || socket_give(e->back);
}

static void slot_give(struct ends *e, int way, uint64_t content)
{
    volatile uint64_t *slot = e->lines->slots[way][e->given++ % SLOTS];
    for (unsigned i = 0; i < PCISPLIT_SLOT_WORDS - 1; i++)
        slot[i] = content;
    __atomic_store_n(&slot[PCISPLIT_SLOT_WORDS - 1], (uint64_t)e->given << 32, __ATOMIC_RELEASE);
    pcisplit_want_to_write(e->lines->slots[way][(e->given + PCISPLIT_AHEAD - 1) % SLOTS]);
}

static uint64_t slot_take(struct ends *e, int way)
{
    volatile uint64_t *slot = e->lines->slots[way][e->taken++ % SLOTS];
    uint64_t content = 0;
    while (__atomic_load_n(&slot[PCISPLIT_SLOT_WORDS - 1], __ATOMIC_ACQUIRE) != (uint64_t)e->taken << 32)
        pcisplit_pause();
    for (unsigned i = 0; i < PCISPLIT_SLOT_WORDS - 1; i++)
        content |= slot[i];
    pcisplit_want(e->lines->slots[way][(e->taken + PCISPLIT_AHEAD - 1) % SLOTS]);
    return content;
}

static int slots_ask(void *context, uint64_t turn)
{
    struct ends *e = context;
    uint64_t wrong = 0;
    for (unsigned i = 0; i < e->exchange.slots; i++)
        slot_give(e, 0, turn);
    for (unsigned i = 0; i < e->exchange.answers; i++)
        wrong |= slot_take(e, 1) ^ turn;
    return wrong != 0;
}

static int slots_serve(void *context, uint64_t turn)
{
    struct ends *e = context;
    (void)turn;
    for (unsigned i = 1; i <= e->exchange.slots; i++) {
        uint64_t content = slot_take(e, 0);
        if (i + e->exchange.answers > e->exchange.slots)
            slot_give(e, 1, content);
    }
    return 0;
}

#define READ_PACKS(n) (((n) + PCISPLIT_PACK_READS - 1) / PCISPLIT_PACK_READS)
#define WRITE_PACKS(n) (((n) + PCISPLIT_PACK_WRITES - 1) / PCISPLIT_PACK_WRITES)

static const struct kind {
    const char *name;
    timed ask, serve;
    struct exchange exchange;
} kinds[] = {
    {"line", line_ask, line_serve, {1, 1, 1}},
    {"eventfd", eventfd_ask, eventfd_serve, {1, 1, 1}},
    {"socket", socket_ask, socket_serve, {1, 1, 1}},
    {"slot", slots_ask, slots_serve, {1, 1, 1}},
    {"slots", slots_ask, slots_serve, {16, 16, 16}},
    {"packed", slots_ask, slots_serve, {READ_PACKS(16), READ_PACKS(16), 16}},
    {"many", slots_ask, slots_serve, {READ_PACKS(64), READ_PACKS(64), 64}},
    {"batch", slots_ask, slots_serve, {WRITE_PACKS(64) + 1, 1, 64}},
};

// ---- -------------------------------------------------------------------------------------------------------------------------

static int pin(int cpu)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    return sched_setaffinity(0, sizeof set, &set);
}

static int open_ends(const struct kind *kind, struct ends *e)
{
    int pair[2] = {-1, -1};
    e->lines = mmap(NULL, sizeof *e->lines, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (e->lines == MAP_FAILED)
        return -1;
    if (kind->ask == socket_ask) {
        if (socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair))
            return -1;
    } else {
        pair[0] = eventfd(0, 0);
        pair[1] = eventfd(0, 0);
    }
    e->there = pair[0];
    e->back = pair[1];
    return pair[0] < 0 || pair[1] < 0 ? -1 : 0;
}

static int fail(const char *what)
{
    perror(what);
    return 1;
}

int main(int argc, char **argv)
{
    const struct kind *kind = NULL;
    struct timing timing;
    struct ends ends = {0};

    for (unsigned i = 0; argc == 6 && i < sizeof kinds / sizeof kinds[0]; i++)
        if (!strcmp(argv[1], kinds[i].name))
            kind = &kinds[i];
    if (!kind) {
        fprintf(stderr, "usage: floor KIND CPU CPU COUNT GROUP; kinds are in floor.c\n");
        return 2;
    }
    ends.exchange = kind->exchange;
    unsigned parts = kind->exchange.parts, group = (unsigned)atoi(argv[5]) / parts;
    if (open_ends(kind, &ends))
        return fail("floor");
    pid_t parent = getpid();
    pid_t child = fork();
    if (child < 0)
        return fail("fork");
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() != parent || pin(atoi(argv[2])))
            _exit(1);
        for (uint64_t turn = 0; kind->serve(&ends, turn) == 0; turn++)
            ;
        _exit(1);
    }
    if (pin(atoi(argv[3])))
        return fail("sched_setaffinity");
    int error = timing_run(kind->ask, &ends, (unsigned)atoi(argv[4]) / parts, group ? group : 1, &timing);
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
    if (error)
        return fail(kind->name);
    printf("%.2f %.2f %.2f %.2f\n", timing.op / parts, timing.mean / parts, timing.p50 / parts,
           timing.p99 / parts);
    return 0;
}
