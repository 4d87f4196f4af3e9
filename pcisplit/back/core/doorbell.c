// SPDX-License-Identifier: MIT
// Waking and being woken: kicks in both directions, hints, interrupts relayed, and doorbells that cry wolf.

#include "serve.h"

#include <linux/futex.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define EMPTY_KICKS 16
#define MASK_FIRST_NS 1000000ull
#define MASK_MOST_NS 100000000ull

uint64_t pcs_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

void pcs_wait(_Atomic uint32_t *word, uint32_t value, int64_t ns)
{
    struct timespec most = {.tv_sec = ns / 1000000000, .tv_nsec = ns % 1000000000};
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, ns < 0 ? NULL : &most, NULL, 0);
}

void pcs_wake_all(_Atomic uint32_t *word)
{
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, 0x7fffffff, NULL, NULL, 0);
}

int pcs_due(const struct pcs_serve *s)
{
    uint32_t owed = s->responses.filled - s->responses.announced, held = pcisplit_held(&s->requests);

    if (s->notify || owed >= PCISPLIT_ANNOUNCE_OPS || held >= s->requests.size / 4)
        return 1;
    return (owed || held || pcisplit_owes(&s->events)) && pcisplit_glance(&s->front->sleeping);
}

// Tell the front of everything stored since the last time and kick it if it sleeps. A full socket is a rung
// one [RING-23]; our end is ours alone [THR-4], and there is no lock before it that the front could hold [RING-21].
void pcs_flush(struct pcs_serve *s)
{
    if (pcisplit_owes(&s->responses)) {
        pcisplit_announce(&s->responses);
        s->notify = 1;
    }
    if (pcisplit_owes(&s->events)) {
        pcisplit_announce(&s->events);
        s->notify = 1;
    }
    if (pcisplit_held(&s->requests)) {
        pcisplit_give_back(&s->requests);
        s->notify = 1;
    }
    if (s->notify && pcisplit_must_kick(&s->front->sleeping)) {
        ssize_t written = send(s->bell_fd, "", 1, MSG_DONTWAIT | MSG_NOSIGNAL);
        (void)written;
        pcs_count(&s->back->kicks);
    }
    s->notify = 0;
}

// A hint; dropped and counted when there is no slot [REG-30].
void pcs_hint(struct pcs_serve *s, unsigned kind, unsigned index, unsigned vector, uint64_t value)
{
    union pcs_slot slot;

    if (!(s->features & PCISPLIT_FEATURE_EVENTS))
        return;
    int64_t space = pcisplit_space(&s->events, 1);
    if (space < 0)
        s->reason = s->reason ? s->reason : PCISPLIT_ERROR_RING_OVERRUN;
    if (space == 0)
        pcs_count(&s->back->events_dropped);
    if (space <= 0)
        return;
    memset(&slot, 0, sizeof slot);
    slot.event.kind = (uint16_t)kind;
    slot.event.device = (uint16_t)index;
    slot.event.vector = (uint16_t)vector;
    slot.event.generation = s->device[index]->state->generation;
    slot.event.value = value;
    pcisplit_fill(&s->events, &slot.raw);
}

static void listen_to(struct pcs_serve *s, int on)
{
    // The eventfd is edge-triggered and never read [RING-20]: each write is an edge, its count is the peer's.
    struct epoll_event event = {.events = EPOLLIN | EPOLLET, .data.u64 = PCS_SOURCE_KICK};
    epoll_ctl(s->epoll_fd, on ? EPOLL_CTL_ADD : EPOLL_CTL_DEL, s->kick_fd, &event);
    s->fresh = on;
}

static void interrupt(struct pcs_serve *s, unsigned index, unsigned number)
{
    struct pcs_device *device = s->device[index];
    struct pcs_vector *vector = &device->vector[number];
    uint64_t fired;

    if (read(vector->fd, &fired, sizeof fired) != sizeof fired || !atomic_load(&vector->enabled))
        return; // what comes after disable is dropped [IRQ-8]
    uint64_t count = __atomic_add_fetch(&device->counters[number], fired, __ATOMIC_SEQ_CST);
    __atomic_add_fetch(&device->totals[number / 64], fired, __ATOMIC_SEQ_CST); // after its counter [IRQ-20]
    s->notify = 1;
    pcs_hint(s, PCISPLIT_EVENT_INTERRUPT, index, number, count);
}

// Wait at most `timeout` milliseconds (-1: for ever) and take in what happened. Returns whether the doorbell rang.
int pcs_events(struct pcs_serve *s, int timeout)
{
    struct epoll_event event[16];
    uint64_t drained;
    int rang = 0;
    int count = epoll_wait(s->epoll_fd, event, 16, timeout);

    for (int i = 0; i < count; i++) {
        uint64_t data = event[i].data.u64;
        switch (data & 0xff) {
        case PCS_SOURCE_KICK:
            rang = !s->fresh;
            s->fresh = 0;
            break;
        case PCS_SOURCE_WAKE:
            while (read(s->wake_fd, &drained, sizeof drained) > 0)
                ;
            break;
        case PCS_SOURCE_WATCH:
            pcs_owner_event(&s->device[data >> 8 & 0xff]->owner, (unsigned)(data >> 16));
            break;
        default:
            interrupt(s, (unsigned)(data >> 8 & 0xff), (unsigned)(data >> 16));
            break;
        }
    }
    return rang;
}

// A kick is empty if nothing that a front kicks for has changed since the kick before [RING-22]: also one that comes late,
// after its request was found by spinning, is none. 16 empty ones in a row, and nobody listens for a while.
void pcs_judge_kick(struct pcs_serve *s)
{
    uint32_t prod = pcisplit_load(&s->front->req_prod), cons = pcisplit_load(&s->front->rsp_cons);
    uint32_t state = pcisplit_load(&s->front->state);
    int empty = prod == s->kicked_prod && cons == s->kicked_cons && state == s->kicked_state;

    s->kicked_prod = prod;
    s->kicked_cons = cons;
    s->kicked_state = state;
    if (!empty) {
        s->empty_kicks = 0;
        s->mask_ns = MASK_FIRST_NS;
        return;
    }
    pcs_count(&s->back->empty_kicks);
    if (++s->empty_kicks <= EMPTY_KICKS || s->masked_until)
        return;
    listen_to(s, 0);
    s->masked_until = pcs_now() + s->mask_ns;
    s->mask_ns = s->mask_ns * 2 < MASK_MOST_NS ? s->mask_ns * 2 : MASK_MOST_NS;
}

int pcs_mask_left(const struct pcs_serve *s)
{
    if (!s->masked_until)
        return -1;
    uint64_t t = pcs_now();
    return t < s->masked_until ? (int)((s->masked_until - t) / 1000000) + 1 : 0;
}

void pcs_unmask(struct pcs_serve *s)
{
    if (s->masked_until && pcs_now() >= s->masked_until) {
        s->masked_until = 0;
        listen_to(s, 1);
    }
}
