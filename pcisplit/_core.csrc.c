// SPDX-License-Identifier: MIT
// What cffi wraps: the headers, and small functions that let Python fill in and look at the C structures.

#include "pcifront_host.h"
#include "serve.h"

#include <unistd.h>

// Shared words and device registers, for tools and tests. `at` is aligned.
static uint32_t pcisplit_word_load(const void *at) { return pcisplit_load(at); }
static void pcisplit_word_store(void *at, uint32_t value) { pcisplit_store(at, value); }

// Tables of configuration space, each `config.size` octets: value, from_device, write, to_device, quiet, zero, rule.
static uint8_t *pcs_device_table(struct pcs_device *d, unsigned which)
{
    struct pcs_config *c = &d->config;
    uint8_t *tables[] = {c->value, c->from_device, c->write, c->to_device, c->quiet, c->zero, c->rule};
    return which < 7 ? tables[which] : NULL;
}

static void pcs_device_shape(struct pcs_device *d, uint32_t config_size, unsigned vectors)
{
    d->config.size = config_size;
    d->vectors = vectors;
}

static void pcs_device_bar(struct pcs_device *d, unsigned bar, uint64_t size, int io)
{
    d->bar[bar].size = size;
    d->bar[bar].io = (uint32_t)io;
}

static void pcs_device_vector(struct pcs_device *d, unsigned vector, int fd) { d->vector[vector].fd = fd; }

// Enabling starts with the pending bit cleared [IRQ-8]; the counter goes on.
static void pcs_device_enable(struct pcs_device *d, unsigned vector, int on)
{
    uint64_t old;
    if (on) // what fired before and was not looked at yet is of the time before, too
        while (d->vector[vector].fd >= 0 && read(d->vector[vector].fd, &old, sizeof old) == sizeof old)
            ;
    if (on)
        __atomic_fetch_and(&d->state->pending, ~(1ull << vector), __ATOMIC_SEQ_CST);
    atomic_store(&d->vector[vector].enabled, on);
}

static void pcs_device_set(struct pcs_device *d, uint32_t state, uint32_t generation)
{
    pcisplit_store(&d->state->generation, generation);
    pcisplit_store(&d->state->state, state);
}

static void pcs_device_config_apply(struct pcs_device *d, uint32_t offset, unsigned width, uint32_t value)
{
    pcs_config_apply(&d->config, offset, width, value);
}

// For tests: the verdict on a write, without making it; *octet is 0 when it is allowed.
static unsigned pcs_test_check_write(struct pcs_device *d, uint32_t offset, unsigned width, uint32_t value,
                                     uint32_t *octet)
{
    *octet = 0;
    return pcs_config_check_write(&d->config, offset, width, value, octet);
}

static uint64_t pcs_device_hits(struct pcs_device *d, unsigned rule) { return d->config.hits[rule % PCS_RULES]; }

// The area that holds an access: 0 none, else its kind.
static unsigned pcs_device_area(struct pcs_device *d, unsigned bar, uint64_t offset, unsigned width)
{
    const struct pcs_area *area = bar < PCISPLIT_BAR_COUNT ? pcs_find_area(&d->bar[bar], offset, width) : NULL;
    return area ? area->kind : 0;
}

static int pcs_device_mapped(struct pcs_device *d, unsigned bar, uint64_t offset, unsigned width, int write,
                             uint64_t *value)
{
    const struct pcs_area *area = pcs_find_area(&d->bar[bar], offset, width);
    if (!area || area->kind != PCS_AREA_MAPPED)
        return PCISPLIT_ERROR_INVALID_OFFSET;
    return pcs_guarded_access(area->base, area->end - area->start, offset - area->start, width, write, value);
}

static int pcs_serve_reason(const struct pcs_serve *s) { return s->reason; }
static uint32_t pcs_serve_front_state(const struct pcs_serve *s) { return s->front_state; }
static void pcs_serve_spin(struct pcs_serve *s, uint64_t ns) { s->spin_ns = ns; }
static void pcs_serve_features(struct pcs_serve *s, uint64_t features) { s->features = features; }

static int pcs_check_request_octets(const void *octets)
{
    union pcs_slot slot;
    pcisplit_copy_slot(slot.raw.word, octets);
    return pcs_check_request(&slot);
}
