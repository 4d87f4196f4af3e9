// SPDX-License-Identifier: MIT
// The floor of this machine: what two processes on two CPUs need for one exchange, with no protocol at all.
//
//   floor line|eventfd|socket CPU CPU COUNT GROUP      prints "op mean p50 p99", nanoseconds for there and back
//
// line: one cache line each way, both spin. eventfd: one each way, both sleep. socket: UNIX SEQPACKET, 64 octets each
// way (a slot), both spin.

#include "timing.h"

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

struct lines {
    uint32_t there __attribute__((aligned(256)));
    uint32_t back __attribute__((aligned(256)));
};

struct ends {
    struct lines *lines;
    int there, back;
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

static const struct kind {
    const char *name;
    timed ask, serve;
} kinds[] = {
    {"line", line_ask, line_serve},
    {"eventfd", eventfd_ask, eventfd_serve},
    {"socket", socket_ask, socket_serve},
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
    struct ends ends;

    for (unsigned i = 0; argc == 6 && i < sizeof kinds / sizeof kinds[0]; i++)
        if (!strcmp(argv[1], kinds[i].name))
            kind = &kinds[i];
    if (!kind) {
        fprintf(stderr, "usage: floor line|eventfd|socket CPU CPU COUNT GROUP\n");
        return 2;
    }
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
    int error = timing_run(kind->ask, &ends, (unsigned)atoi(argv[4]), (unsigned)atoi(argv[5]), &timing);
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
    if (error)
        return fail(kind->name);
    printf("%.2f %.2f %.2f %.2f\n", timing.op, timing.mean, timing.p50, timing.p99);
    return 0;
}
