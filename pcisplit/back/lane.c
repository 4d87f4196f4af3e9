// SPDX-License-Identifier: MIT
// Lanes: a device's requests that can sleep are done by a thread of their own, in Python, while the device is parked and
// every other device goes on [ORD-2]. One request at a time; the serve loop is the only one that asks and takes.

#include "serve.h"

#include <unistd.h>

int pcs_lane_init(struct pcs_lane *lane)
{
    lane->wake_fd = -1;
    return pthread_mutex_init(&lane->mutex, NULL) || pthread_cond_init(&lane->cond, NULL) ? -1 : 0;
}

void pcs_lane_ask(struct pcs_lane *lane, const union pcs_slot *request)
{
    pthread_mutex_lock(&lane->mutex);
    lane->request = *request;
    lane->state = PCS_LANE_ASKED;
    pthread_cond_signal(&lane->cond);
    pthread_mutex_unlock(&lane->mutex);
}

int pcs_lane_take(struct pcs_lane *lane, struct pcs_result *result)
{
    if (atomic_load_explicit(&lane->state, memory_order_acquire) != PCS_LANE_DONE)
        return 0;
    *result = lane->result;
    atomic_store_explicit(&lane->state, PCS_LANE_IDLE, memory_order_relaxed);
    return 1;
}

int pcs_lane_wait(struct pcs_device *device)
{
    struct pcs_lane *lane = &device->lane;

    pthread_mutex_lock(&lane->mutex);
    while (lane->state != PCS_LANE_ASKED && !lane->stopped)
        pthread_cond_wait(&lane->cond, &lane->mutex);
    int asked = !lane->stopped;
    pthread_mutex_unlock(&lane->mutex);
    return asked;
}

const void *pcs_lane_request(struct pcs_device *device)
{
    return &device->lane.request;
}

void pcs_lane_finish(struct pcs_device *device, int error, unsigned rule, uint64_t value, uint64_t detail,
                     uint32_t length)
{
    struct pcs_lane *lane = &device->lane;

    lane->result = (struct pcs_result){.error = error, .rule = rule, .length = length, .value = value, .detail = detail};
    atomic_store_explicit(&lane->state, PCS_LANE_DONE, memory_order_release);
    uint64_t one = 1;
    ssize_t written = write(lane->wake_fd, &one, sizeof one); // never full: the loop empties it, and one write per request
    (void)written;
}

void pcs_lane_stop(struct pcs_device *device)
{
    pthread_mutex_lock(&device->lane.mutex);
    device->lane.stopped = 1;
    pthread_cond_broadcast(&device->lane.cond);
    pthread_mutex_unlock(&device->lane.mutex);
}

int pcs_guarded_access(volatile void *base, uint64_t size, uint64_t offset, unsigned width, int write, uint64_t *value)
{
    struct pcs_guard guard = {.count = 0};
    volatile int error = 0; // survives the longjmp

    if (width > size || offset > size - width)
        return PCISPLIT_ERROR_INVALID_OFFSET;
    pcs_guard_window(&guard, base, size);
    pcs_guard_use(&guard);
    if (sigsetjmp(guard.resume, 0) == 0) {
        guard.armed = 1;
        if (write)
            pcisplit_mmio_write((volatile uint8_t *)base + offset, width, *value);
        else
            *value = pcisplit_mmio_read((volatile uint8_t *)base + offset, width);
        guard.armed = 0;
    } else {
        error = PCISPLIT_ERROR_FAULTED;
    }
    pcs_guard_use(NULL);
    return error;
}
