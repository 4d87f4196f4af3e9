// SPDX-License-Identifier: MIT
// What cffi wraps: the headers, and small functions that let Python fill in and look at the C structures.

#include "pcifront_host.h"
#include "serve.h"

#include <stdlib.h>
#include <unistd.h>

struct pcs_tally {
    uint32_t doing, queued;
    uint64_t since, now, requests, slices, ns, refused, posted_errors;
};

// Shared words and device registers, for tools and tests. `at` is aligned.
static uint32_t pcisplit_word_load(const void *at) { return pcisplit_load(at); }
static void pcisplit_word_store(void *at, uint32_t value) { pcisplit_store(at, value); }

// A table of configuration space: `config.size` elements, of 2 octets for the rules, else 1.
static void *pcs_device_table(struct pcs_device *d, unsigned which)
{
    struct pcs_config *c = &d->config;
    void *tables[] = {
        [PCS_TABLE_VALUE] = c->value,     [PCS_TABLE_HARDWARE] = c->hardware, [PCS_TABLE_VIRTUAL] = c->virtual,
        [PCS_TABLE_THROUGH] = c->through, [PCS_TABLE_CLEAR] = c->clear,       [PCS_TABLE_IGNORE] = c->ignore,
        [PCS_TABLE_ZERO] = c->zero,       [PCS_TABLE_TRAP] = c->trap,         [PCS_TABLE_RULE] = c->rule,
    };
    return tables[which];
}

// Once, before the loop starts. `rules`: ids below it are counted. Returns 0 or -1.
static int pcs_device_shape(struct pcs_device *d, uint32_t config_size, unsigned vectors, unsigned rules)
{
    d->config.size = config_size;
    d->vectors = vectors;
    d->vector = calloc(vectors ? vectors : 1, sizeof *d->vector);
    if (!d->vector)
        return -1;
    for (unsigned i = 0; i < vectors; i++)
        d->vector[i].fd = -1;
    d->config.hits = calloc(rules, sizeof *d->config.hits);
    d->config.rules = d->config.hits ? rules : 0;
    return d->config.hits ? 0 : -1;
}

static int pcs_device_area(struct pcs_device *d, unsigned bar, uint64_t start, uint64_t end, unsigned kind,
                           unsigned widths, void *base, uint32_t read_ns, uint32_t write_ns, int fd, uint64_t position,
                           unsigned rule)
{
    struct pcs_area area = {.start = start, .end = end, .kind = kind, .widths = widths, .base = base, .read_ns = read_ns,
                            .write_ns = write_ns, .fd = fd, .position = position, .rule = rule};
    return pcs_device_add_area(d, bar, &area);
}

static void pcs_device_bar(struct pcs_device *d, unsigned bar, uint64_t size, int io)
{
    d->bar[bar].size = size;
    d->bar[bar].io = (uint32_t)io;
}

static void pcs_device_vector(struct pcs_device *d, unsigned vector, int fd) { d->vector[vector].fd = fd; }

// The counter goes on [IRQ-8].
static void pcs_device_enable(struct pcs_device *d, unsigned vector, int on)
{
    uint64_t old;
    if (on) // what fired before and was not looked at yet is of the time before, too
        while (d->vector[vector].fd >= 0 && read(d->vector[vector].fd, &old, sizeof old) == sizeof old)
            ;
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

static int pcs_test_needs_owner(struct pcs_device *d, uint32_t offset, unsigned width, uint32_t value)
{
    return pcs_config_needs_owner(&d->config, offset, width, value);
}

static int pcs_test_read(struct pcs_device *d, uint32_t offset, unsigned width, uint32_t *value)
{
    return pcs_config_read(&d->config, offset, width, value);
}

static uint64_t pcs_device_hits(struct pcs_device *d, unsigned rule)
{
    return rule < d->config.rules ? atomic_load(&d->config.hits[rule]) : 0;
}

// What the control plane may ask of any thread, while the device lives.
static void pcs_device_tally(struct pcs_device *d, struct pcs_tally *tally)
{
    struct pcs_owner *owner = &d->owner;

    tally->doing = atomic_load(&owner->doing);
    tally->since = atomic_load(&owner->since);
    tally->now = pcs_now();
    tally->queued = atomic_load(&d->tail) - atomic_load(&d->head);
    tally->requests = atomic_load(&owner->requests);
    tally->slices = atomic_load(&owner->slices);
    tally->ns = atomic_load(&owner->ns);
    tally->refused = atomic_load(&d->refused);
    tally->posted_errors = atomic_load(&d->posted_errors);
}

static struct pcs_work *pcs_owner_work(struct pcs_device *d) { return &d->owner.work; }
static uint8_t *pcs_owner_data(struct pcs_device *d) { return d->owner.data; }

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
