// SPDX-License-Identifier: MIT
// pcifront on a host; see pcifront_host.h.

#include "pcifront_host_internal.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

/* ---- hooks ----------------------------------------------------------------------------------------------------------- */

uint64_t pcsf_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static uint64_t host_now(void *context)
{
    (void)context;
    return pcsf_now();
}

// O_NONBLOCK of the eventfd is the back's to clear as well: nothing is written that has no room. Full counts as rung.
static void host_kick(void *context)
{
    struct pcsf *p = context;
    struct pollfd fd = {.fd = p->kick_fd, .events = POLLOUT};
    uint64_t one = 1;
    if (poll(&fd, 1, 0) == 1 && fd.revents & POLLOUT)
        (void)!write(p->kick_fd, &one, sizeof one);
}

// Take what rang, once: a back that rings without end keeps nobody here, and what is left wakes the next wait for nothing.
void pcsf_drain(struct pcsf *p)
{
    char drained[1024]; // a socket holds fewer messages of one octet
    ssize_t octets = recv(p->rung_fd, drained, sizeof drained, MSG_DONTWAIT);
    if (octets == 0 || (octets < 0 && errno != EAGAIN && errno != EINTR))
        p->gone = 1; // the back holds the other end while it lives
}

static int host_wait(void *context, uint64_t deadline)
{
    struct pcsf *p = context;
    struct pollfd fd[2] = {{.fd = p->rung_fd, .events = POLLIN}, {.fd = p->socket_fd, .events = POLLIN}};
    uint64_t now = pcsf_now();

    if (p->gone)
        return PCISPLIT_ERROR_GONE;
    if (deadline <= now)
        return PCISPLIT_ERROR_TIMEOUT;
    uint64_t left = deadline - now;
    struct timespec timeout = {.tv_sec = (time_t)(left / 1000000000u), .tv_nsec = (long)(left % 1000000000u)};
    int ready = ppoll(fd, 2, deadline == PCIFRONT_FOREVER ? NULL : &timeout, NULL);
    if (ready == 0)
        return PCISPLIT_ERROR_TIMEOUT;
    if (ready < 0)
        return errno == EINTR ? 0 : PCISPLIT_ERROR_GONE;
    if (fd[0].revents & POLLIN && !p->front.yielded) // else the kick may be for who yielded, who drains it
        pcsf_drain(p);
    if (fd[1].revents || fd[0].revents & (POLLHUP | POLLERR | POLLNVAL)) {
        p->gone = 1; // the back never writes on the socket: readable means closed, by it or by us
        return fd[0].revents & POLLIN ? 0 : PCISPLIT_ERROR_GONE;
    }
    return 0;
}

static void host_trace(void *context, unsigned kind, const struct pcisplit_slot *slot)
{
    struct pcsf *p = context;
    struct traced *entry = &p->traced[p->trace_tail++ % p->trace_size];
    entry->time = pcsf_now();
    entry->kind = kind;
    entry->slot = *slot;
    if (p->trace_tail - p->trace_head > p->trace_size)
        p->trace_head = p->trace_tail - p->trace_size;
}

/* ---- life ------------------------------------------------------------------------------------------------------------ */

struct pcsf *pcsf_new(const void *boot_info, size_t length, void *f2b, void *b2f, void *dma, const uint64_t *sizes,
                      int kick_fd, int rung_fd, int socket_fd, int *error)
{
    struct pcsf *p = calloc(1, sizeof *p);
    uint64_t *aligned = malloc(length);
    void *region[3] = {f2b, b2f, dma};

    *error = PCISPLIT_ERROR_OP_FAILED;
    if (p && aligned) {
        struct pcifront_hooks hooks = {p, host_kick, host_wait, host_now, NULL};
        memcpy(aligned, boot_info, length);
        p->kick_fd = kick_fd;
        p->rung_fd = rung_fd;
        p->socket_fd = socket_fd;
        p->timeout = 2000000000u;
        atomic_flag_clear(&p->inside);
        *error = pcifront_attach(&p->front, aligned, length, region, sizes, &hooks, 0);
        p->front.spin = sysconf(_SC_NPROCESSORS_ONLN) > 1 ? 2000 : 0; // some 40 us; alone on a CPU spinning only delays
    }
    free(aligned);
    if (*error) {
        free(p);
        p = NULL;
    }
    return p;
}

void pcsf_free(struct pcsf *p)
{
    free(p->traced);
    free(p);
}

struct pcifront *pcsf_front(struct pcsf *p)
{
    return &p->front;
}

int pcsf_enter(struct pcsf *p)
{
    return !atomic_flag_test_and_set_explicit(&p->inside, memory_order_acquire);
}

void pcsf_leave(struct pcsf *p)
{
    atomic_flag_clear_explicit(&p->inside, memory_order_release);
}

int pcsf_retire(struct pcsf *p)
{
    if (!p->closed && !pcsf_enter(p))
        return 0;
    p->closed = 1;
    return 1;
}

/* ---- trace ------------------------------------------------------------------------------------------------------------ */

int pcsf_trace(struct pcsf *p, unsigned entries)
{
    struct traced *traced = entries ? calloc(entries, sizeof *traced) : NULL;
    if (entries && !traced)
        return -1;
    free(p->traced);
    p->traced = traced;
    p->trace_size = entries;
    p->trace_head = p->trace_tail = 0;
    p->front.hooks.trace = entries ? host_trace : NULL;
    return 0;
}

unsigned pcsf_trace_take(struct pcsf *p, void *entries, unsigned most)
{
    struct traced *to = entries;
    unsigned taken = 0;
    while (taken < most && p->trace_head != p->trace_tail)
        to[taken++] = p->traced[p->trace_head++ % p->trace_size];
    return taken;
}
