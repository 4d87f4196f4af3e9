// SPDX-License-Identifier: MIT
// The owner's accesses to BARs: those of areas that are reached by file offset, which can sleep, and blocks that span areas.
// Each exactly as wide as asked [BAR-3], in slices within a budget, without Python; what a model traps is left to Python, which
// says how far it got. Octets of a block pass through `data`: bulk-in is read once [BAR-22], bulk-out written once.

#include "area.h"

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
    return r->op == PCISPLIT_OP_BAR_WRITE || r->op == PCISPLIT_OP_BAR_WRITE_BLOCK || r->op == PCISPLIT_OP_BAR_WRITES;
}

static int is_block(const struct pcisplit_request *r)
{
    return r->op == PCISPLIT_OP_BAR_READ_BLOCK || r->op == PCISPLIT_OP_BAR_WRITE_BLOCK;
}

static int is_pack(const struct pcisplit_request *r)
{
    return r->op == PCISPLIT_OP_BAR_READS || r->op == PCISPLIT_OP_BAR_WRITES;
}

#define ELEMENT 4 /* octets of `data` for each access of a pack */

// What an access of the request takes of `data`.
static uint32_t stride(const struct pcisplit_request *r)
{
    return is_pack(r) ? ELEMENT : r->width;
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
    if (is_write(r))
        pcs_area_store(area, at, r->width, value_of(octets, r->width));
    else
        set_value(octets, r->width, pcs_area_load(area, at, r->width));
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

// Where the next access goes: 0, or why it is none.
static int place_of(const struct pcs_device *device, const union pcs_slot *slot, uint64_t *at)
{
    uint32_t done = device->owner.work.done;

    *at = slot->request.offset + done;
    if (!is_pack(&slot->request))
        return 0;
    *at = pcs_element_offset(slot, done / ELEMENT);
    return pcs_check_element(device, slot, done / ELEMENT);
}

// The access was made, or will not be. Returns whether the next one may follow at once.
static int stepped(struct slice *slice, const struct pcisplit_request *r)
{
    struct pcs_work *work = &slice->device->owner.work;

    __atomic_signal_fence(__ATOMIC_SEQ_CST); // a fault of the next access finds this one counted
    work->done += stride(r);
    if (work->done < work->length && pcs_now() >= slice->until)
        slice->outcome = BUDGET_SPENT;
    return work->done < work->length && slice->outcome == OVER;
}

// It ends the request, but for a write of a pack, which is counted [BAR-42].
static int failed(struct slice *slice, const struct pcisplit_request *r, int error, uint32_t rule, int os_error)
{
    struct pcs_work *work = &slice->device->owner.work;

    if (r->op != PCISPLIT_OP_BAR_WRITES)
        return fail(work, error, rule, os_error);
    work->failed[work->done / ELEMENT] = (struct pcs_failure){error, rule};
    return stepped(slice, r);
}

// One access. Returns whether the next one may follow at once.
static int step(struct slice *slice, const union pcs_slot *slot)
{
    const struct pcisplit_request *r = &slot->request;
    struct pcs_owner *owner = &slice->device->owner;
    struct pcs_work *work = &owner->work;
    uint8_t *octets = owner->data + work->done;
    uint64_t at;
    int error = place_of(slice->device, slot, &at);
    const struct pcs_area *area = error ? NULL : pcs_find_area(&slice->device->bar[r->region], at, r->width);

    if (error)
        return failed(slice, r, error, 0, 0);
    if (!area || area->kind == PCS_AREA_NONE)
        return failed(slice, r, PCISPLIT_ERROR_INVALID_OFFSET, 0, 0);
    if (area->kind == PCS_AREA_DENIED) {
        pcs_config_count(&slice->device->config, area->rule);
        return failed(slice, r, PCISPLIT_ERROR_DENIED, area->rule, 0);
    }
    if (!(area->widths & r->width))
        return failed(slice, r, PCISPLIT_ERROR_BAD_SIZE, 0, 0);
    if (area->kind == PCS_AREA_OWNER && area->fd < 0) {
        uint64_t end = area->end - r->offset;
        work->piece = is_pack(r) ? work->done + ELEMENT : end < work->length ? (uint32_t)end : work->length;
        slice->outcome = TRAPPED;
        return 0;
    }
    if (area->kind == PCS_AREA_MAPPED) {
        mapped(area, at, r, octets);
    } else {
        int problem = by_offset(area, at, r, octets);
        if (problem)
            return failed(slice, r, PCISPLIT_ERROR_FAULTED, 0, problem);
    }
    return stepped(slice, r);
}

static void accesses(void *context)
{
    struct slice *slice = context;

    while (step(slice, &slice->device->owner.request))
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
    while (pcs_guarded(&guard, accesses, &slice))
        if (!failed(&slice, &device->owner.request.request, PCISPLIT_ERROR_FAULTED, 0, 0))
            break;
    return slice.outcome;
}

/* ---- requests ------------------------------------------------------------------------------------------------------------------ */

// Copy between `data` and the session's bulk area at once, under the guard: bulk-in is the front's to take away.
static int copy_bulk(struct pcs_device *device, const struct pcisplit_request *r, uint32_t length)
{
    struct pcs_serve *s = device->serve;

    if (is_write(r))
        return pcs_guarded_copy(device->owner.data, (volatile void *)(uintptr_t)s->bulk_in, s->bulk_size, r->bulk,
                                length, 0);
    return pcs_guarded_copy(device->owner.data, s->bulk_out, s->bulk_size, r->bulk, length, 1);
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
        if ((is_block(r) || is_pack(r)) && !owner->has_turn)
            enter(device);
        begin_stretch(owner);
        outcome = run_slice(device);
        if (outcome == TRAPPED)
            return 1;
        if (outcome == OVER)
            break;
        end_stretch(owner);
        pcs_access_leave(device);
        if (atomic_load(&owner->word) & 1u << PCS_WAKE_STOPPED) {
            begin_stretch(owner);
            fail(work, PCISPLIT_ERROR_GONE, 0, 0); // nobody waits for the rest
            break;
        }
    }
    if (is_block(r) || is_pack(r))
        atomic_fetch_add(&owner->slices, 1);
    if (work->error)
        return 1;
    uint64_t value = r->op == PCISPLIT_OP_BAR_READ ? value_of(owner->data, r->width) : 0;
    pcs_owner_finish(device, 0, 0, value, 0, is_block(r) || is_pack(r) ? work->done : 0);
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
    case PCISPLIT_OP_BAR_READS:
    case PCISPLIT_OP_BAR_WRITES:
        owner->work.length = ELEMENT * pcs_elements(&owner->request);
        for (unsigned i = 0; r->op == PCISPLIT_OP_BAR_WRITES && i < pcs_elements(&owner->request); i++)
            set_value(owner->data + ELEMENT * i, ELEMENT, owner->request.writes.element[2 * i + 1]);
        break;
    default:
        return 1;
    }
    return go_on(device);
}

// What a pack came to; other requests have said it all to pcs_owner_finish().
void pcs_access_result(const struct pcs_device *device, struct pcs_result *result)
{
    const struct pcs_owner *owner = &device->owner;
    const struct pcisplit_request *r = &owner->request.request;

    if (!is_pack(r))
        return;
    result->length = 0;
    result->done = owner->work.done / ELEMENT;
    for (unsigned i = 0; r->op == PCISPLIT_OP_BAR_READS && i < result->done; i++)
        result->values[i] = (uint32_t)value_of(owner->data + ELEMENT * i, r->width);
    for (unsigned i = 0; r->op == PCISPLIT_OP_BAR_WRITES && i < PCISPLIT_PACK_WRITES; i++)
        result->failed[i] = owner->work.failed[i];
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
    if (atomic_load(&owner->word) & 1u << PCS_WAKE_STOPPED) {
        begin_stretch(owner);
        return fail(&owner->work, PCISPLIT_ERROR_GONE, 0, 0), 1;
    }
    return go_on(device);
}

int pcs_access_failed(struct pcs_device *device, int error, unsigned rule)
{
    struct pcs_work *work = &device->owner.work;

    work->failed[work->done / ELEMENT] = (struct pcs_failure){error, rule};
    return pcs_access_went(device, work->done + ELEMENT);
}
