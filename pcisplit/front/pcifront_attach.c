/* SPDX-License-Identifier: MIT
 *
 * pcifront: the meeting's result, the boot-info block, becomes rings and devices. Freestanding, as pcifront.c. Every
 * place that a record names is checked against the region it names [BOOT-4].
 */
#include "pcifront_internal.h"

struct attach {
    struct pcifront *f;
    void *region[3];
    uint64_t size[3];
    unsigned flags;
    const struct pcisplit_boot_ring *ring[3];
    const struct pcisplit_boot_bulk *bulk[2];
};

/* `length` octets at `offset` of a region, or NULL if they do not lie in it, aligned. */
static void *place(const struct attach *a, unsigned region, uint64_t offset, uint64_t length, uint64_t align)
{
    if (region > PCISPLIT_REGION_DMA || !a->region[region] || offset % align || length > a->size[region] ||
        offset > a->size[region] - length)
        return 0;
    return (uint8_t *)a->region[region] + offset;
}

static void zero(void *memory, size_t length)
{
    volatile uint8_t *octet = memory; /* volatile: a plain loop would become memset */
    for (size_t i = 0; i < length; i++)
        octet[i] = 0;
}

/* ---- one function per kind of record; each returns 0 or OP_FAILED ------------------------------------------------- */

static int take_region(struct attach *a, const struct pcisplit_boot_region *r)
{
    if (r->index > PCISPLIT_REGION_DMA || !r->writable != (r->index == PCISPLIT_REGION_B2F)) /* [THR-31] */
        return PCISPLIT_ERROR_OP_FAILED;
    if (!a->region[r->index] && r->address && a->flags & PCIFRONT_TENDER_ADDRESSES) { /* else it is the back's word */
        a->region[r->index] = (void *)(uintptr_t)r->address;
        a->size[r->index] = r->size;
    }
    return a->region[r->index] && a->size[r->index] != r->size ? PCISPLIT_ERROR_OP_FAILED : 0;
}

static int take_ring(struct attach *a, const struct pcisplit_boot_ring *r)
{
    if (r->index > PCISPLIT_RING_EVENT || r->slots < PCISPLIT_RING_SLOTS_MIN || r->slots & (r->slots - 1) ||
        r->slots > PCISPLIT_RING_SLOTS_MAX)
        return PCISPLIT_ERROR_OP_FAILED;
    a->ring[r->index] = r;
    return 0;
}

static int take_bulk(struct attach *a, const struct pcisplit_boot_bulk *r)
{
    if (r->index > PCISPLIT_DIRECTION_BACK_TO_FRONT)
        return PCISPLIT_ERROR_OP_FAILED;
    a->bulk[r->index] = r;
    return 0;
}

static int take_device(struct attach *a, const struct pcisplit_boot_device *r)
{
    struct pcifront_device *device = &a->f->device[a->f->device_count];
    const struct pcisplit_device_state *state =
        place(a, PCISPLIT_REGION_B2F, r->state_offset, sizeof(struct pcisplit_device_state), 64);

    if (a->f->device_count == PCISPLIT_MAX_DEVICES || r->index != a->f->device_count || !state)
        return PCISPLIT_ERROR_OP_FAILED;
    device->state = state;
    device->generation = r->generation;
    device->vendor = r->vendor;
    device->device_id = r->device_id;
    device->class_code = r->class_code;
    device->config_size = r->config_size;
    for (unsigned i = 0; i < PCISPLIT_NAME_MAX; i++)
        device->name[i] = (char)r->name[i];
    a->f->device_count++;
    return 0;
}

static int take_bar(struct attach *a, const struct pcisplit_boot_bar *r)
{
    if (r->device >= a->f->device_count || r->index >= PCISPLIT_BAR_COUNT)
        return PCISPLIT_ERROR_OP_FAILED;
    a->f->device[r->device].bar[r->index].size = r->size;
    a->f->device[r->device].bar[r->index].flags = r->bar_flags;
    return 0;
}

/* The first run of a device is the one whose interrupts are counted here; direct ones are the host's matter. */
static int take_vectors(struct attach *a, const struct pcisplit_boot_vectors *r)
{
    uint64_t words = (r->count + 63u) / 64;

    if (r->device >= a->f->device_count || r->type > PCISPLIT_VECTOR_MSIX || r->mode > PCISPLIT_MODE_DIRECT ||
        r->count == 0 || r->count > PCISPLIT_MAX_VECTORS || r->first > PCISPLIT_MAX_VECTORS - r->count)
        return PCISPLIT_ERROR_OP_FAILED;
    struct pcifront_device *device = &a->f->device[r->device];
    if (r->mode == PCISPLIT_MODE_DIRECT) {
        if (!device->vectors && r->first == 0)
            device->vectors = r->count;
        return 0;
    }
    const uint64_t *counters = place(a, PCISPLIT_REGION_B2F, r->counters, r->count * UINT64_C(8), 8);
    const uint64_t *totals = place(a, PCISPLIT_REGION_B2F, r->totals, words * 8, 8);
    if (!counters || !totals || !place(a, PCISPLIT_REGION_B2F, r->pending, words * 8, 8) ||
        !place(a, PCISPLIT_REGION_B2F, r->masks, words * 8, 8))
        return PCISPLIT_ERROR_OP_FAILED;
    if (!device->vectors && r->first == 0) {
        device->vectors = r->count;
        device->counters = counters;
        device->totals = totals;
    }
    return 0;
}

static int take_dma_window(struct attach *a, const struct pcisplit_boot_dma_window *r)
{
    struct pcifront_window *window = &a->f->window[a->f->window_count];

    if (a->f->window_count == PCISPLIT_MAX_DMA_WINDOWS || r->region != PCISPLIT_REGION_DMA)
        return PCISPLIT_ERROR_OP_FAILED;
    window->memory = place(a, r->region, r->offset, r->size, 1);
    if (a->region[PCISPLIT_REGION_DMA] && !window->memory)
        return PCISPLIT_ERROR_OP_FAILED;
    window->size = r->size;
    window->iova = r->iova;
    a->f->window_count++;
    return 0;
}

/* Kinds that we know, and the octets that a record of each has at least: later versions may add some at its end. */
static int take_record(struct attach *a, const uint8_t *record, size_t length)
{
#define TAKE(KIND, kind) \
    case PCISPLIT_RECORD_##KIND: \
        return length < sizeof(struct pcisplit_boot_##kind) ? PCISPLIT_ERROR_OP_FAILED : take_##kind(a, (const void *)record);
    switch (*(const uint16_t *)(const void *)record) {
        TAKE(REGION, region)
        TAKE(RING, ring)
        TAKE(BULK, bulk)
        TAKE(DEVICE, device)
        TAKE(BAR, bar)
        TAKE(DMA_WINDOW, dma_window)
        TAKE(VECTORS, vectors)
    default: return 0; /* doorbells are the host's matter; others are newer than we [BOOT-3] */
    }
#undef TAKE
}

/* Every record, skipped by its own length. */
static int take_records(struct attach *a, const uint8_t *at, size_t left, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        if (left < 8)
            return PCISPLIT_ERROR_OP_FAILED;
        size_t length = *(const uint16_t *)(const void *)(at + 2);
        if (length < 8 || length % 8 || length > left || take_record(a, at, length))
            return PCISPLIT_ERROR_OP_FAILED;
        at += length;
        left -= length;
    }
    return left ? PCISPLIT_ERROR_OP_FAILED : 0;
}

/* ---- rings --------------------------------------------------------------------------------------------------------- */

static void *ring_slots(const struct attach *a, unsigned index, unsigned region)
{
    const struct pcisplit_boot_ring *r = a->ring[index];
    return r && r->region == region ? place(a, region, r->offset, (uint64_t)r->slots * PCISPLIT_SLOT_SIZE, 64) : 0;
}

static int take_rings(struct attach *a)
{
    struct pcifront *f = a->f;
    struct pcisplit_front_header *front = place(a, PCISPLIT_REGION_F2B, 0, sizeof *front, 64);
    struct pcisplit_back_header *back = place(a, PCISPLIT_REGION_B2F, 0, sizeof *back, 64); /* cast away by the ring */
    void *requests = ring_slots(a, PCISPLIT_RING_REQUEST, PCISPLIT_REGION_F2B);
    void *responses = ring_slots(a, PCISPLIT_RING_RESPONSE, PCISPLIT_REGION_B2F);
    void *events = ring_slots(a, PCISPLIT_RING_EVENT, PCISPLIT_REGION_B2F);
    const struct pcisplit_boot_bulk *in = a->bulk[PCISPLIT_DIRECTION_FRONT_TO_BACK];
    const struct pcisplit_boot_bulk *out = a->bulk[PCISPLIT_DIRECTION_BACK_TO_FRONT];

    if (!front || !back || !requests || !responses || !events)
        return PCISPLIT_ERROR_OP_FAILED;
    if (front->magic != PCISPLIT_F2B_MAGIC || back->magic != PCISPLIT_B2F_MAGIC || !in != !out ||
        (f->features & PCISPLIT_FEATURE_BLOCK && !in))
        return PCISPLIT_ERROR_OP_FAILED;
    if (in) {
        uint64_t size = in->size < out->size ? in->size : out->size, chunks = size / PCISPLIT_BLOCK_MAX;
        f->bulk_in = in->region == PCISPLIT_REGION_F2B ? place(a, in->region, in->offset, in->size, 64) : 0;
        f->bulk_out = out->region == PCISPLIT_REGION_B2F ? place(a, out->region, out->offset, out->size, 64) : 0;
        if (!f->bulk_in || !f->bulk_out)
            return PCISPLIT_ERROR_OP_FAILED;
        f->chunks = chunks < 32 ? (uint32_t)chunks : 32;
    }
    f->front = front;
    f->back = back;
    pcisplit_producer_init(&f->requests, requests, &front->req_prod, &back->req_cons,
                           a->ring[PCISPLIT_RING_REQUEST]->slots);
    pcisplit_consumer_init(&f->responses, responses, &back->rsp_prod, &front->rsp_cons,
                           a->ring[PCISPLIT_RING_RESPONSE]->slots);
    pcisplit_consumer_init(&f->events, events, &back->evt_prod, &front->evt_cons, a->ring[PCISPLIT_RING_EVENT]->slots);
    uint32_t slots = a->ring[PCISPLIT_RING_RESPONSE]->slots; /* answers to all that is in flight find room [RING-5] */
    f->free_count = slots < PCIFRONT_PENDING ? slots : PCIFRONT_PENDING;
    for (uint32_t i = 0; i < f->free_count; i++)
        f->free[i] = (uint8_t)(f->free_count - 1 - i);
    return 0;
}

/* ---- life ---------------------------------------------------------------------------------------------------------- */

static void set_state(struct pcifront *f, uint32_t state)
{
    pcisplit_store(&f->front->state, state);
}

int pcifront_attach(struct pcifront *f, const void *boot_info, size_t length, void *const region[3],
                    const uint64_t size[3], const struct pcifront_hooks *hooks, unsigned flags)
{
    const struct pcisplit_boot_info *info = boot_info;
    struct attach a;

    zero(f, sizeof *f);
    zero(&a, sizeof a);
    a.f = f;
    a.flags = flags;
    for (unsigned i = 0; i < 3; i++) {
        a.region[i] = region[i];
        a.size[i] = size[i];
    }
    if ((uintptr_t)boot_info % 8 || length < sizeof *info || info->magic != PCISPLIT_BOOT_MAGIC ||
        info->major != PCISPLIT_MAJOR || info->length != length)
        return PCISPLIT_ERROR_OP_FAILED;
    f->features = info->features;
    if (take_records(&a, (const uint8_t *)boot_info + sizeof *info, length - sizeof *info, info->records))
        return PCISPLIT_ERROR_OP_FAILED;
    if (take_rings(&a))
        return PCISPLIT_ERROR_OP_FAILED;
    f->hooks.context = hooks->context;
    f->hooks.kick = hooks->kick;
    f->hooks.wait = hooks->wait;
    f->hooks.now = hooks->now;
    f->hooks.trace = hooks->trace;
    set_state(f, PCISPLIT_STATE_INITIALISING);
    f->front->features = info->features;
    set_state(f, PCISPLIT_STATE_INITIALISED);
    f->hooks.kick(f->hooks.context);
    return 0;
}

static int connect_stop(struct pcifront *f, const void *what)
{
    (void)what;
    return pcisplit_load(&f->back->state) != PCISPLIT_STATE_INIT_WAIT;
}

int pcifront_connect(struct pcifront *f, uint64_t deadline)
{
    while (!connect_stop(f, 0)) {
        int error = pcifront_collect(f) ? pcifront_overdue(f, &deadline) /* there can be none that was asked for */
                                        : pcifront_wait(f, connect_stop, 0, &deadline);
        if (error < 0)
            return error;
    }
    if (!pcifront_connected(f))
        return PCISPLIT_ERROR_GONE;
    set_state(f, PCISPLIT_STATE_CONNECTED);
    f->hooks.kick(f->hooks.context);
    return 0;
}

void pcifront_close(struct pcifront *f)
{
    if (!f->front)
        return;
    uint32_t state = pcisplit_load(&f->front->state);
    if (state != PCISPLIT_STATE_CLOSING && state != PCISPLIT_STATE_CLOSED) {
        set_state(f, PCISPLIT_STATE_CLOSING);
        f->hooks.kick(f->hooks.context);
    }
}
