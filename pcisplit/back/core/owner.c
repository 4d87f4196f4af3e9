// SPDX-License-Identifier: MIT
// Owners: a device's requests that can sleep are done by a thread of their own, in Python, while the device is parked and
// every other device goes on [ORD-2]. One request at a time; the serve loop is the only one that asks and takes.

#include "serve.h"

#include <unistd.h>

int pcs_owner_init(struct pcs_owner *owner)
{
    owner->wake_fd = -1;
    return pthread_mutex_init(&owner->mutex, NULL) || pthread_cond_init(&owner->cond, NULL) ? -1 : 0;
}

void pcs_owner_ask(struct pcs_owner *owner, const union pcs_slot *request)
{
    pthread_mutex_lock(&owner->mutex);
    owner->request = *request;
    owner->state = PCS_OWNER_ASKED;
    pthread_cond_signal(&owner->cond);
    pthread_mutex_unlock(&owner->mutex);
}

int pcs_owner_take(struct pcs_owner *owner, struct pcs_result *result)
{
    if (atomic_load_explicit(&owner->state, memory_order_acquire) != PCS_OWNER_DONE)
        return 0;
    *result = owner->result;
    atomic_store_explicit(&owner->state, PCS_OWNER_IDLE, memory_order_relaxed);
    return 1;
}

int pcs_owner_wait(struct pcs_device *device)
{
    struct pcs_owner *owner = &device->owner;

    pthread_mutex_lock(&owner->mutex);
    while (owner->state != PCS_OWNER_ASKED && !owner->stopped)
        pthread_cond_wait(&owner->cond, &owner->mutex);
    int asked = !owner->stopped;
    pthread_mutex_unlock(&owner->mutex);
    return asked;
}

const void *pcs_owner_request(struct pcs_device *device)
{
    return &device->owner.request;
}

void pcs_owner_finish(struct pcs_device *device, int error, unsigned rule, uint64_t value, uint64_t detail,
                     uint32_t length)
{
    struct pcs_owner *owner = &device->owner;

    owner->result = (struct pcs_result){.error = error, .rule = rule, .length = length, .value = value, .detail = detail};
    atomic_store_explicit(&owner->state, PCS_OWNER_DONE, memory_order_release);
    uint64_t one = 1;
    ssize_t written = write(owner->wake_fd, &one, sizeof one); // never full: the loop empties it, and one write per request
    (void)written;
}

void pcs_owner_stop(struct pcs_device *device)
{
    pthread_mutex_lock(&device->owner.mutex);
    device->owner.stopped = 1;
    pthread_cond_broadcast(&device->owner.cond);
    pthread_mutex_unlock(&device->owner.mutex);
}
