// SPDX-License-Identifier: MIT
// The owner's accesses to BARs: those of areas that are reached by file offset, which can sleep, and blocks that span areas.
// Each exactly as wide as asked [BAR-3], in slices within a budget, without Python; what a model traps is left to Python, which
// says how far it got. Octets of a block pass through `data`: bulk-in is read once [BAR-22], bulk-out written once.

#include "serve.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

/* ---- turns ------------------------------------------------------------------------------------------------------------- */

// Let the next one go on, unless that has happened because this one slept too long.
static void pass(struct pcs_turnstile *t, uint32_t ticket)
{
    if (atomic_compare_exchange_strong(&t->serving, &ticket, ticket + 1))
        pcs_wake_all(&t->serving);
}

static void enter(struct pcs_device *device)
{
    struct pcs_turnstile *t = &device->serve->turnstile;
    uint32_t ticket = atomic_fetch_add(&t->next, 1), serving;

    while ((int32_t)((serving = atomic_load(&t->serving)) - ticket) < 0) {
        pcs_wait(&t->serving, serving, PCS_PATIENCE_NS);
        if (atomic_load(&t->serving) == serving)
            pass(t, serving); // it sleeps in its device, and uses no CPU: no reason to wait for it [ORD-2]
    }
    device->owner.ticket = ticket;
    device->owner.has_turn = 1;
}

void pcs_access_leave(struct pcs_device *device)
{
    if (device->owner.has_turn)
        pass(&device->serve->turnstile, device->owner.ticket);
    device->owner.has_turn = 0;
}

static void begin_stretch(struct pcs_owner *owner)
{
    owner->turn_began = pcs_now();
}

static void end_stretch(struct pcs_owner *owner)
{
    atomic_fetch_add(&owner->ns, pcs_now() - owner->turn_began);
    atomic_fetch_add(&owner->slices, 1);
}

/* ---- one access ----------------------------------------------------------------------------------------------------------- */

static int is_write(const struct pcisplit_request *r)
{
    return r->op == PCISPLIT_OP_BAR_WRITE || r->op == PCISPLIT_OP_BAR_WRITE_BLOCK;
}

static int is_block(const struct pcisplit_request *r)
{
    return r->op == PCISPLIT_OP_BAR_READ_BLOCK || r->op == PCISPLIT_OP_BAR_WRITE_BLOCK;
}

static uint64_t value_of(const uint8_t *octets, unsigned width)
{
    uint64_t value = 0;
    for (unsigned i = 0; i < width; i++)
        value |= (uint64_t)octets[i] << (8 * i);
    return value;
}

static void set_value(uint8_t *octets, unsigned width, uint64_t value)
{
    for (unsigned i = 0; i < width; i++)
        octets[i] = (uint8_t)(value >> (8 * i));
}

static void mapped(const struct pcs_area *area, uint64_t at, const struct pcisplit_request *r, uint8_t *octets)
{
    volatile uint8_t *place = area->base + (at - area->start);

    if (is_write(r))
        pcs_area_store(area, place, r->width, value_of(octets, r->width));
    else
        set_value(octets, r->width, pcs_area_load(area, place, r->width));
}

// Returns 0 or the errno; a transfer of another size is EIO.
static int by_offset(const struct pcs_area *area, uint64_t at, const struct pcisplit_request *r, uint8_t *octets)
{
    off_t position = (off_t)(area->position + (at - area->start));
    ssize_t moved;

    do
        moved = is_write(r) ? pwrite(area->fd, octets, r->width, position) : pread(area->fd, octets, r->width, position);
    while (moved < 0 && errno == EINTR);
    return moved < 0 ? errno : moved != r->width ? EIO : 0;
}

/* ---- a slice of them --------------------------------------------------------------------------------------------------------- */

enum outcome { OVER, BUDGET_SPENT, TRAPPED };

struct slice {
    struct pcs_device *device;
    uint64_t until;
    enum outcome outcome;
};

static int fail(struct pcs_work *work, int error, uint32_t rule, int os_error)
{
    work->error = error;
    work->rule = rule;
    work->os_error = os_error;
    return 0;
}

// One access. Returns whether the next one may follow at once.
static int step(struct slice *slice, const struct pcisplit_request *r)
{
    struct pcs_owner *owner = &slice->device->owner;
    struct pcs_work *work = &owner->work;
    uint64_t at = r->offset + work->done;
    uint8_t *octets = owner->data + work->done;
    const struct pcs_area *area = pcs_find_area(&slice->device->bar[r->region], at, r->width);

    if (!area || area->kind == PCS_AREA_NONE)
        return fail(work, PCISPLIT_ERROR_INVALID_OFFSET, 0, 0);
    if (area->kind == PCS_AREA_DENIED) {
        pcs_config_count(&slice->device->config, area->rule);
        return fail(work, PCISPLIT_ERROR_DENIED, area->rule, 0);
    }
    if (!(area->widths & r->width))
        return fail(work, PCISPLIT_ERROR_BAD_SIZE, 0, 0);
    if (area->kind == PCS_AREA_OWNER && area->fd < 0) {
        uint64_t end = area->end - r->offset;
        work->piece = end < work->length ? (uint32_t)end : work->length;
        slice->outcome = TRAPPED;
        return 0;
    }
    if (area->kind == PCS_AREA_MAPPED) {
        mapped(area, at, r, octets);
    } else {
        int problem = by_offset(area, at, r, octets);
        if (problem)
            return fail(work, PCISPLIT_ERROR_FAULTED, 0, problem);
    }
    __atomic_signal_fence(__ATOMIC_SEQ_CST); // a fault of the next access finds this one counted
    work->done += r->width;
    if (work->done < work->length && pcs_now() >= slice->until)
        slice->outcome = BUDGET_SPENT;
    return work->done < work->length && slice->outcome == OVER;
}

static void accesses(void *context)
{
    struct slice *slice = context;

    while (step(slice, &slice->device->owner.request.request))
        ;
}

static enum outcome run_slice(struct pcs_device *device)
{
    const struct pcs_bar *bar = &device->bar[device->owner.request.request.region];
    struct slice slice = {.device = device, .until = device->owner.turn_began + PCS_SLICE_NS, .outcome = OVER};
    struct pcs_guard guard;

    pcs_guard_init(&guard);
    for (unsigned i = 0; i < bar->areas; i++)
        if (bar->area[i].kind == PCS_AREA_MAPPED)
            pcs_guard_window(&guard, bar->area[i].base, bar->area[i].end - bar->area[i].start);
    if (pcs_guarded(&guard, accesses, &slice))
        fail(&device->owner.work, PCISPLIT_ERROR_FAULTED, 0, 0);
    return slice.outcome;
}

/* ---- requests ------------------------------------------------------------------------------------------------------------------ */

// Copy between `data` and the session's bulk area at once, under the guard: bulk-in is the front's to take away.
static int copy_bulk(struct pcs_device *device, const struct pcisplit_request *r, uint32_t length)
{
    struct pcs_serve *s = device->serve;

    if (is_write(r))
        return pcs_guarded_copy(device->owner.data, (volatile void *)(uintptr_t)s->bulk_in, PCISPLIT_BULK_SIZE, r->bulk,
                                length, 0);
    return pcs_guarded_copy(device->owner.data, s->bulk_out, PCISPLIT_BULK_SIZE, r->bulk, length, 1);
}

int pcs_access_deliver(struct pcs_device *device)
{
    const struct pcisplit_request *r = &device->owner.request.request;

    if (r->op != PCISPLIT_OP_BAR_READ_BLOCK || !device->owner.work.done)
        return 0;
    return copy_bulk(device, r, device->owner.work.done);
}

// Slices, one turn each, until the accesses are over or Python must make some; those it makes in the turn that was begun.
static int go_on(struct pcs_device *device)
{
    struct pcs_owner *owner = &device->owner;
    struct pcs_work *work = &owner->work;
    const struct pcisplit_request *r = &owner->request.request;
    enum outcome outcome;

    for (;;) {
        if (is_block(r) && !owner->has_turn)
            enter(device);
        begin_stretch(owner);
        outcome = run_slice(device);
        if (outcome == TRAPPED)
            return 1;
        if (outcome == OVER)
            break;
        end_stretch(owner);
        pcs_access_leave(device);
        if (atomic_load(&owner->word) & 1u << PCS_OWNER_STOPPED) {
            begin_stretch(owner);
            fail(work, PCISPLIT_ERROR_GONE, 0, 0); // nobody waits for the rest
            break;
        }
    }
    if (is_block(r))
        atomic_fetch_add(&owner->slices, 1);
    if (work->error)
        return 1;
    uint64_t value = r->op == PCISPLIT_OP_BAR_READ ? value_of(owner->data, r->width) : 0;
    pcs_owner_finish(device, 0, 0, value, 0, is_block(r) ? work->done : 0);
    return 0;
}

int pcs_access_begin(struct pcs_device *device)
{
    struct pcs_owner *owner = &device->owner;
    const struct pcisplit_request *r = &owner->request.request;

    begin_stretch(owner);
    atomic_store(&owner->since, owner->turn_began);
    atomic_store(&owner->doing, r->op + 1u);
    atomic_fetch_add(&owner->requests, 1);
    owner->work = (struct pcs_work){0};
    switch (r->op) {
    case PCISPLIT_OP_BAR_READ:
        owner->work.length = r->width;
        break;
    case PCISPLIT_OP_BAR_WRITE:
        owner->work.length = r->width;
        set_value(owner->data, r->width, r->value);
        break;
    case PCISPLIT_OP_BAR_READ_BLOCK:
        owner->work.length = r->length;
        break;
    case PCISPLIT_OP_BAR_WRITE_BLOCK:
        owner->work.length = r->length;
        if (copy_bulk(device, r, r->length))
            return fail(&owner->work, PCISPLIT_ERROR_FAULTED, 0, 0), 1;
        break;
    default:
        return 1;
    }
    return go_on(device);
}

int pcs_access_went(struct pcs_device *device, uint32_t done)
{
    struct pcs_owner *owner = &device->owner;

    owner->work.done = done;
    if (owner->work.done >= owner->work.length) { // Python has made the last ones: nothing to wait for
        pcs_owner_finish(device, 0, 0, 0, 0, done);
        return 0;
    }
    end_stretch(owner);
    pcs_access_leave(device);
    pcs_wait(&owner->word, atomic_load(&owner->word), PCS_REST_NS);
    if (atomic_load(&owner->word) & 1u << PCS_OWNER_STOPPED) {
        begin_stretch(owner);
        return fail(&owner->work, PCISPLIT_ERROR_GONE, 0, 0), 1;
    }
    return go_on(device);
}
