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
    if (r->index > PCISPLIT_RING_EVENT || r->slots == 0 || r->slots & (r->slots - 1) || r->slots > 1u << 16)
        return PCISPLIT_ERROR_OP_FAILED;
    a->ring[r->index] = r;
    return 0;
}

static int take_bulk(struct attach *a, const struct pcisplit_boot_bulk *r)
{
    if (r->index > PCISPLIT_DIRECTION_BACK_TO_FRONT || r->size < PCISPLIT_BULK_SIZE)
        return PCISPLIT_ERROR_OP_FAILED;
    a->bulk[r->index] = r;
    return 0;
}

static int take_device(struct attach *a, const struct pcisplit_boot_device *r)
{
    struct pcifront_device *device = &a->f->device[a->f->device_count];
    const struct pcisplit_device_state *state =
        place(a, PCISPLIT_REGION_B2F, r->state_offset, sizeof(struct pcisplit_device_state), 64);

    if (a->f->device_count == PCISPLIT_MAX_DEVICES || r->index != a->f->device_count || !state ||
        r->vectors > PCISPLIT_MAX_VECTORS)
        return PCISPLIT_ERROR_OP_FAILED;
    device->state = state;
    device->generation = r->generation;
    device->vendor = r->vendor;
    device->device_id = r->device_id;
    device->class_code = r->class_code;
    device->config_size = r->config_size;
    device->vectors = r->vectors;
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
    a->f->device[r->device].bar[r->index].flags = r->flags;
    return 0;
}

static int take_window(struct attach *a, const struct pcisplit_boot_dma_window *r)
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

static int take_record(struct attach *a, const uint8_t *record)
{
    switch (*(const uint16_t *)(const void *)record) {
    case PCISPLIT_RECORD_REGION: return take_region(a, (const void *)record);
    case PCISPLIT_RECORD_RING: return take_ring(a, (const void *)record);
    case PCISPLIT_RECORD_BULK: return take_bulk(a, (const void *)record);
    case PCISPLIT_RECORD_DEVICE: return take_device(a, (const void *)record);
    case PCISPLIT_RECORD_BAR: return take_bar(a, (const void *)record);
    case PCISPLIT_RECORD_DMA_WINDOW: return take_window(a, (const void *)record);
    default: return 0; /* doorbells and vectors are the host's matter; others are newer than we [BOOT-3] */
    }
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

    if (!front || !back || !requests || !responses || !events || !in || !out)
        return PCISPLIT_ERROR_OP_FAILED;
    if (front->magic != PCISPLIT_F2B_MAGIC || back->magic != PCISPLIT_B2F_MAGIC ||
        in->region != PCISPLIT_REGION_F2B || out->region != PCISPLIT_REGION_B2F ||
        a->ring[PCISPLIT_RING_RESPONSE]->slots < PCIFRONT_PENDING)
        return PCISPLIT_ERROR_OP_FAILED;
    f->bulk_in = place(a, in->region, in->offset, in->size, 64);
    f->bulk_out = place(a, out->region, out->offset, out->size, 64);
    if (!f->bulk_in || !f->bulk_out)
        return PCISPLIT_ERROR_OP_FAILED;
    f->front = front;
    f->back = back;
    pcisplit_producer_init(&f->requests, requests, &front->req_prod, &back->req_cons,
                           a->ring[PCISPLIT_RING_REQUEST]->slots);
    pcisplit_consumer_init(&f->responses, responses, &back->rsp_prod, &front->rsp_cons,
                           a->ring[PCISPLIT_RING_RESPONSE]->slots);
    pcisplit_consumer_init(&f->events, events, &back->evt_prod, &front->evt_cons, a->ring[PCISPLIT_RING_EVENT]->slots);
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
        info->major != PCISPLIT_MAJOR || info->length != length ||
        length != sizeof *info + (uint64_t)info->records * PCISPLIT_BOOT_RECORD_SIZE)
        return PCISPLIT_ERROR_OP_FAILED;
    for (uint32_t i = 0; i < info->records; i++) {
        const uint8_t *record = (const uint8_t *)boot_info + sizeof *info + (size_t)i * PCISPLIT_BOOT_RECORD_SIZE;
        if (*(const uint16_t *)(const void *)(record + 2) != PCISPLIT_BOOT_RECORD_SIZE || take_record(&a, record))
            return PCISPLIT_ERROR_OP_FAILED;
    }
    if (take_rings(&a))
        return PCISPLIT_ERROR_OP_FAILED;
    f->hooks.context = hooks->context;
    f->hooks.kick = hooks->kick;
    f->hooks.wait = hooks->wait;
    f->hooks.now = hooks->now;
    f->hooks.trace = hooks->trace;
    f->features = info->features;
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
        int error = pcifront_collect(f); /* there can be none that was asked for */
        if (error > 0)
            error = pcifront_overdue(f, &deadline);
        else if (error == 0)
            error = pcifront_wait(f, connect_stop, 0, &deadline);
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
