// SPDX-License-Identifier: MIT
// Making and freeing what serve.c runs on. Called by Python while no loop runs.

#include "serve.h"

#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

// The descriptors stay the caller's.
struct pcs_serve *pcs_serve_new(void *f2b, void *b2f, const struct pcs_places *places, int kick_fd, int bell_fd)
{
    struct pcs_serve *s = calloc(1, sizeof *s);
    if (!s)
        return NULL;
    struct pcisplit_back_header *back = b2f;
    s->front = f2b;
    s->back = back;
    // The ring takes a plain pointer for the slots; f2b is mapped read-only, so a stray write would fault, not corrupt.
    pcisplit_consumer_init(&s->requests, (uint8_t *)f2b + places->requests, &s->front->req_prod, &back->req_cons,
                           (uint32_t)places->request_slots);
    pcisplit_producer_init(&s->responses, (uint8_t *)b2f + places->responses, &back->rsp_prod, &s->front->rsp_cons,
                           (uint32_t)places->response_slots);
    pcisplit_producer_init(&s->events, (uint8_t *)b2f + places->events, &back->evt_prod, &s->front->evt_cons,
                           (uint32_t)places->event_slots);
    s->bulk_in = (uint8_t *)f2b + places->bulk_in;
    s->bulk_out = (uint8_t *)b2f + places->bulk_out;
    s->bulk_size = (uint32_t)places->bulk_size;
    s->kick_fd = kick_fd;
    s->bell_fd = bell_fd;
    s->mask_ns = 1000000;
    s->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    s->wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    struct epoll_event kick = {.events = EPOLLIN | EPOLLET, .data.u64 = PCS_SOURCE_KICK};
    struct epoll_event wake = {.events = EPOLLIN, .data.u64 = PCS_SOURCE_WAKE};
    if (s->epoll_fd < 0 || s->wake_fd < 0 || epoll_ctl(s->epoll_fd, EPOLL_CTL_ADD, kick_fd, &kick) ||
        epoll_ctl(s->epoll_fd, EPOLL_CTL_ADD, s->wake_fd, &wake) || pcs_guard_install()) {
        pcs_serve_free(s);
        return NULL;
    }
    // b2f too: nobody can punch it, but a page of it that was never touched may be refused when memory is short.
    pcs_guard_window(&s->guard, f2b, places->bulk_in + places->bulk_size);
    pcs_guard_window(&s->guard, b2f, places->bulk_out + places->bulk_size);
    return s;
}

void pcs_serve_free(struct pcs_serve *s)
{
    if (s->epoll_fd >= 0)
        close(s->epoll_fd);
    if (s->wake_fd >= 0)
        close(s->wake_fd);
    free(s);
}

// Give the session a device; its index is the number of devices added before. Returns 0 or -1.
int pcs_serve_add(struct pcs_serve *s, struct pcs_device *device, uint64_t state_offset, const struct pcs_run *run)
{
    if (s->devices == PCISPLIT_MAX_DEVICES)
        return -1;
    device->state = (struct pcisplit_device_state *)(void *)((uint8_t *)s->back + state_offset);
    device->counters = (uint64_t *)(void *)((uint8_t *)s->back + run->counters);
    device->totals = (uint64_t *)(void *)((uint8_t *)s->back + run->totals);
    device->queue_size = s->requests.size;
    device->queue = calloc(device->queue_size, sizeof *device->queue);
    if (!device->queue)
        return -1;
    device->owner.wake_fd = s->wake_fd;
    device->serve = s;
    device->index = s->devices;
    for (unsigned bar = 0; bar < PCISPLIT_BAR_COUNT; bar++) {
        for (unsigned i = 0; i < device->bar[bar].areas; i++) {
            struct pcs_area *area = &device->bar[bar].area[i];
            if (area->kind == PCS_AREA_MAPPED && pcs_guard_window(&s->guard, area->base, area->end - area->start))
                return -1;
        }
    }
    for (unsigned vector = 0; vector < device->vectors; vector++) {
        struct epoll_event event = {.events = EPOLLIN, .data.u64 = PCS_SOURCE_VECTOR | s->devices << 8 | (uint64_t)vector << 16};
        if (device->vector[vector].fd >= 0 &&
            epoll_ctl(s->epoll_fd, EPOLL_CTL_ADD, device->vector[vector].fd, &event))
            return -1;
    }
    s->device[s->devices++] = device;
    s->back->devices = s->devices;
    return 0;
}

struct pcs_device *pcs_device_new(void)
{
    struct pcs_device *device = calloc(1, sizeof *device);
    if (!device)
        return NULL;
    device->owner.wake_fd = -1;
    return device;
}

void pcs_device_free(struct pcs_device *device)
{
    free(device->config.hits);
    free(device->vector);
    free(device->queue);
    free(device);
}

int pcs_device_add_area(struct pcs_device *device, unsigned bar, const struct pcs_area *area)
{
    struct pcs_bar *b = &device->bar[bar];

    if (b->areas == PCS_AREAS)
        return -1;
    b->area[b->areas++] = *area;
    b->sleeps |= area->kind == PCS_AREA_OWNER;
    return 0;
}
