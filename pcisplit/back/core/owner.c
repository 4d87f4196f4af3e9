// SPDX-License-Identifier: MIT
// Owners: a device's requests that can sleep are done by a thread of their own while the device is parked and every other
// device goes on [ORD-2]. One request at a time; the serve loop is the only one that asks and takes. Other threads send
// messages, watched descriptors become events. There is no lock here: one futex word says what there is to do, and what
// an owner does to its device at a request boundary (hold) is a handshake of two counters.

#include "serve.h"

#include <sys/epoll.h>
#include <unistd.h>

static void ring(int wake_fd)
{
    uint64_t one = 1;
    ssize_t written = write(wake_fd, &one, sizeof one); // never full: the loop empties it; private to this process
    (void)written;
}

// What was there already has been, or is being, woken for.
static void tell(struct pcs_owner *owner, unsigned why)
{
    if (!atomic_fetch_or(&owner->word, 1u << why))
        pcs_wake_all(&owner->word);
}

/* ---- the loop's side --------------------------------------------------------------------------------------------------- */

void pcs_owner_ask(struct pcs_owner *owner, const union pcs_slot *request)
{
    owner->request = *request;
    owner->state = PCS_OWNER_ASKED;
    tell(owner, PCS_WAKE_REQUEST);
}

int pcs_owner_take(struct pcs_owner *owner, struct pcs_result *result)
{
    if (atomic_load_explicit(&owner->state, memory_order_acquire) != PCS_OWNER_DONE)
        return 0;
    *result = owner->result;
    atomic_store_explicit(&owner->state, PCS_OWNER_IDLE, memory_order_relaxed);
    return 1;
}

void pcs_owner_event(struct pcs_owner *owner, unsigned bit)
{
    atomic_fetch_or(&owner->events, 1u << bit);
    tell(owner, PCS_WAKE_EVENT);
}

/* ---- the owner's side -------------------------------------------------------------------------------------------------- */

// The first of what there is to do, taken out of the word; TIMEOUT if there is nothing. Being stopped stays.
static int next(struct pcs_owner *owner)
{
    static const unsigned order[] = {PCS_WAKE_MESSAGE, PCS_WAKE_EVENT, PCS_WAKE_REQUEST};
    uint32_t word = atomic_load(&owner->word);

    if (word & 1u << PCS_WAKE_STOPPED)
        return PCS_WAKE_STOPPED;
    for (unsigned i = 0; i < 3; i++) {
        if (word & 1u << order[i]) {
            atomic_fetch_and(&owner->word, ~(1u << order[i]));
            return order[i];
        }
    }
    return PCS_WAKE_TIMEOUT;
}

int pcs_owner_wait(struct pcs_device *device, int timeout_ms)
{
    struct pcs_owner *owner = &device->owner;
    uint64_t until = timeout_ms < 0 ? UINT64_MAX : pcs_now() + (uint64_t)timeout_ms * 1000000u;

    for (;;) {
        int why = next(owner);
        if (why == PCS_WAKE_REQUEST && !pcs_access_begin(device))
            continue;
        if (why != PCS_WAKE_TIMEOUT)
            return why;
        uint64_t now = until == UINT64_MAX ? 0 : pcs_now();
        if (now >= until)
            return PCS_WAKE_TIMEOUT;
        pcs_wait(&owner->word, 0, until == UINT64_MAX ? -1 : (int64_t)(until - now));
    }
}

const void *pcs_owner_request(struct pcs_device *device)
{
    return &device->owner.request;
}

uint32_t pcs_owner_take_events(struct pcs_device *device)
{
    return atomic_exchange(&device->owner.events, 0);
}

void pcs_owner_finish(struct pcs_device *device, int error, unsigned rule, uint64_t value, uint64_t detail,
                     uint32_t length)
{
    struct pcs_owner *owner = &device->owner;

    pcs_access_leave(device);
    owner->work.done = length; // of a block that Python had a part in, Python knows
    int lost = pcs_access_deliver(device);
    if (lost)
        error = lost, rule = 0, length = 0;
    owner->result = (struct pcs_result){.error = error, .rule = rule, .length = length, .value = value, .detail = detail};
    pcs_access_result(device, &owner->result);
    atomic_fetch_add(&owner->ns, pcs_now() - owner->turn_began);
    atomic_store(&owner->doing, 0);
    atomic_store_explicit(&owner->state, PCS_OWNER_DONE, memory_order_release);
    ring(owner->wake_fd);
}

void pcs_owner_wake(struct pcs_device *device)
{
    tell(&device->owner, PCS_WAKE_MESSAGE);
}

void pcs_owner_stop(struct pcs_device *device)
{
    tell(&device->owner, PCS_WAKE_STOPPED);
}

int pcs_device_watch(struct pcs_device *device, int fd, unsigned bit)
{
    if (!device->serve || bit > 31)
        return -1;
    struct epoll_event event = {.events = EPOLLIN | EPOLLET,
                                .data.u64 = PCS_SOURCE_WATCH | device->index << 8 | (uint64_t)bit << 16};
    return epoll_ctl(device->serve->epoll_fd, EPOLL_CTL_ADD, fd, &event);
}

/* ---- hold and release --------------------------------------------------------------------------------------------------- */

// `hold_asked` counts holds and releases, so that a hold that follows a release at once is not taken for the one before.
// The loop looks at it between two turns, after `attention`, and says what it saw. Asking before looking whether a loop
// runs, and running before looking what is asked, all seq_cst: one of the two sees the other.
static uint32_t want(struct pcs_device *device)
{
    uint32_t asked = atomic_fetch_add(&device->hold_asked, 1) + 1;
    struct pcs_serve *s = device->serve;

    if (s) {
        atomic_store(&s->attention, 1);
        ring(s->wake_fd);
    }
    return asked;
}

void pcs_device_hold(struct pcs_device *device)
{
    uint32_t asked = want(device), seen;

    while (device->serve && (seen = atomic_load(&device->hold_seen)) != asked && atomic_load(&device->serve->running))
        pcs_wait(&device->hold_seen, seen, -1);
}

void pcs_device_release(struct pcs_device *device)
{
    want(device);
}

void pcs_attend_holds(struct pcs_serve *s)
{
    atomic_store(&s->attention, 0);
    for (unsigned i = 0; i < s->devices; i++) {
        struct pcs_device *device = s->device[i];
        uint32_t asked = atomic_load(&device->hold_asked);
        if (asked & 1)
            device->parked |= PCS_HELD;
        else
            device->parked &= ~(unsigned)PCS_HELD;
        if (atomic_exchange(&device->hold_seen, asked) != asked)
            pcs_wake_all(&device->hold_seen);
    }
}
