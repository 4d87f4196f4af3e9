// SPDX-License-Identifier: MIT
// One request: the checks in the order of ERR-2, then the access, or the verdict that it is the owner's. The request is a
// private copy; nothing here reads the ring. Octets of bulk-in are read once each [BAR-22].

#include "serve.h"

static const uint32_t uses[PCISPLIT_USES_SIZE] = PCISPLIT_USES_TABLE;
static const uint64_t must_be_zero[PCISPLIT_USES_SIZE][PCISPLIT_SLOT_WORDS] = PCISPLIT_ZERO_TABLE;

static uint32_t uses_of(unsigned op)
{
    return op < PCISPLIT_USES_SIZE ? uses[op] : 0;
}

// The features an operation belongs to; one of them must be in force in this session [VER-5]. 0: it needs none.
static uint64_t feature_of(unsigned op)
{
    switch (op) {
    case PCISPLIT_OP_BAR_READ_BLOCK:
    case PCISPLIT_OP_BAR_WRITE_BLOCK: return PCISPLIT_FEATURE_BLOCK;
    case PCISPLIT_OP_ENABLE_MSI:
    case PCISPLIT_OP_DISABLE_MSI: return PCISPLIT_FEATURE_MSI_RELAYED | PCISPLIT_FEATURE_MSI_DIRECT;
    case PCISPLIT_OP_RESET: return PCISPLIT_FEATURE_RESET;
    default: return 0;
    }
}

int pcs_check_request(const union pcs_slot *slot)
{
    const struct pcisplit_request *r = &slot->request;
    uint64_t strange = 0;

    if (!(uses_of(r->op) & PCISPLIT_USES_BUILT))
        return PCISPLIT_ERROR_NOT_IMPLEMENTED;
    for (unsigned i = 0; i < PCISPLIT_SLOT_WORDS; i++)
        strange |= slot->raw.word[i] & must_be_zero[r->op][i];
    return strange ? PCISPLIT_ERROR_BAD_REQUEST : 0;
}

const struct pcs_area *pcs_find_area(const struct pcs_bar *bar, uint64_t offset, uint64_t width)
{
    for (unsigned i = 0; i < bar->areas; i++)
        if (offset >= bar->area[i].start && offset < bar->area[i].end)
            return offset + width <= bar->area[i].end ? &bar->area[i] : NULL;
    return NULL;
}

// Octets that the access covers, from `offset` on: its width, or the length of a block.
static uint64_t extent(const struct pcisplit_request *r, uint32_t used)
{
    return used & PCISPLIT_USES_BLOCK ? r->length : r->width;
}

// Width, alignment, range and value, in that order.
static int check_shape(const struct pcs_device *device, const struct pcisplit_request *r, uint32_t used)
{
    unsigned widths = 1 | 2 | 4 | (used & PCISPLIT_USES_WIDTH8 ? 8 : 0);
    uint64_t space = device->config.size;

    if (!(used & PCISPLIT_USES_WIDTH))
        return 0;
    if (!(r->width & widths) || r->width & (r->width - 1))
        return PCISPLIT_ERROR_BAD_SIZE;
    if (used & PCISPLIT_USES_BLOCK && (r->length == 0 || r->length > PCISPLIT_BLOCK_MAX || r->length & (r->width - 1u)))
        return PCISPLIT_ERROR_BAD_SIZE;
    if (r->offset & (r->width - 1u)) // a power of two by now; a division would cost as much as the access
        return PCISPLIT_ERROR_UNALIGNED;
    if (used & PCISPLIT_USES_REGION)
        space = r->region < PCISPLIT_BAR_COUNT ? device->bar[r->region].size : 0;
    if (extent(r, used) > space || r->offset > space - extent(r, used))
        return PCISPLIT_ERROR_INVALID_OFFSET;
    if (used & PCISPLIT_USES_BLOCK && (r->bulk % 8 || r->bulk > PCISPLIT_BULK_SIZE - r->length))
        return PCISPLIT_ERROR_INVALID_OFFSET;
    if (used & PCISPLIT_USES_VALUE && r->width < 8 && r->value >> (8 * r->width))
        return PCISPLIT_ERROR_BAD_REQUEST;
    return 0;
}

static int decoded(const struct pcs_device *device, const struct pcs_bar *bar)
{
    unsigned command = device->config.value[4]; // MEM and IO are virtual and live in the table [CFG-6]
    return command & (bar->io ? 1 : 2);
}

static enum pcs_verdict fail(struct pcs_result *result, int error)
{
    result->error = error;
    return PCS_ANSWERED;
}

static enum pcs_verdict config_access(struct pcs_device *device, const struct pcisplit_request *r,
                                      struct pcs_result *result)
{
    struct pcs_config *config = &device->config;
    uint32_t offset = (uint32_t)r->offset, value = (uint32_t)r->value, octet;

    if (r->op == PCISPLIT_OP_CONF_READ) {
        if (!pcs_config_read(config, offset, r->width, &value))
            return PCS_TO_OWNER;
        result->value = value;
        return PCS_ANSWERED;
    }
    unsigned rule = pcs_config_check_write(config, offset, r->width, value, &octet);
    if (rule) {
        result->rule = rule;
        result->detail = octet;
        return fail(result, PCISPLIT_ERROR_DENIED);
    }
    if (pcs_config_needs_owner(config, offset, r->width, value))
        return PCS_TO_OWNER;
    pcs_config_apply(config, offset, r->width, value);
    return PCS_ANSWERED;
}

// What a slow bus costs: the caller's core waits, as it would.
static void spend(uint32_t ns)
{
    if (!ns)
        return;
    for (uint64_t until = pcs_now() + ns; pcs_now() < until;)
        ;
}

uint64_t pcs_area_load(const struct pcs_area *area, volatile uint8_t *at, unsigned width)
{
    spend(area->read_ns);
    return pcisplit_mmio_read(at, width);
}

void pcs_area_store(const struct pcs_area *area, volatile uint8_t *at, unsigned width, uint64_t value)
{
    spend(area->write_ns);
    pcisplit_mmio_write(at, width, value);
}

// A block over mapped memory; *result's length counts what was moved, also when an access faults on the way [BAR-21].
static void move_block(struct pcs_serve *s, const struct pcs_area *area, const struct pcisplit_request *r,
                       struct pcs_result *result)
{
    volatile uint8_t *at = area->base + (r->offset - area->start);

    for (uint32_t done = 0; done < r->length; done += r->width) {
        volatile uint8_t *bulk_out = s->bulk_out + r->bulk + done;
        const volatile uint8_t *bulk_in = s->bulk_in + r->bulk + done;
        if (r->op == PCISPLIT_OP_BAR_READ_BLOCK) {
            uint64_t value = pcs_area_load(area, at + done, r->width);
            for (unsigned i = 0; i < r->width; i++)
                bulk_out[i] = (uint8_t)(value >> (8 * i));
        } else {
            uint64_t value = 0;
            for (unsigned i = 0; i < r->width; i++)
                value |= (uint64_t)bulk_in[i] << (8 * i);
            pcs_area_store(area, at + done, r->width, value);
        }
        result->length = done + r->width;
    }
}

static enum pcs_verdict bar_access(struct pcs_serve *s, struct pcs_device *device, const struct pcisplit_request *r,
                                   uint32_t used, struct pcs_result *result)
{
    const struct pcs_bar *bar = &device->bar[r->region];

    if (!decoded(device, bar))
        return fail(result, PCISPLIT_ERROR_DECODE_DISABLED);
    const struct pcs_area *area = pcs_find_area(bar, r->offset, extent(r, used));
    if (!area && used & PCISPLIT_USES_BLOCK)
        return PCS_TO_OWNER; // spans areas: the owner goes access by access
    if (!area || (area->kind != PCS_AREA_DENIED && !(area->widths & r->width)))
        return fail(result, area && area->kind ? PCISPLIT_ERROR_BAD_SIZE : PCISPLIT_ERROR_INVALID_OFFSET);
    switch (area->kind) {
    case PCS_AREA_OWNER: return PCS_TO_OWNER;
    case PCS_AREA_DENIED:
        result->rule = area->rule;
        pcs_config_count(&device->config, area->rule);
        return fail(result, PCISPLIT_ERROR_DENIED);
    case PCS_AREA_NONE: return fail(result, PCISPLIT_ERROR_INVALID_OFFSET);
    default: break;
    }
    volatile uint8_t *at = area->base + (r->offset - area->start);
    if (r->op == PCISPLIT_OP_BAR_READ)
        result->value = pcs_area_load(area, at, r->width);
    else if (r->op == PCISPLIT_OP_BAR_WRITE)
        pcs_area_store(area, at, r->width, r->value);
    else
        move_block(s, area, r, result);
    return PCS_ANSWERED;
}

static int check_device(const struct pcs_device *device, const struct pcisplit_request *r)
{
    switch (device->state->state) {
    case PCISPLIT_DEVICE_ACQUIRED: break;
    case PCISPLIT_DEVICE_RESETTING: return PCISPLIT_ERROR_RESETTING;
    default: return PCISPLIT_ERROR_GONE;
    }
    return r->generation == device->state->generation ? 0 : PCISPLIT_ERROR_STALE;
}

enum pcs_verdict pcs_execute(struct pcs_serve *s, struct pcs_device *device, const union pcs_slot *request,
                             struct pcs_result *result)
{
    const struct pcisplit_request *r = &request->request;
    uint32_t used = uses_of(r->op);

    result->error = 0;
    result->rule = result->length = 0;
    result->value = result->detail = 0;
    uint64_t needed = feature_of(r->op);
    int error = needed && !(s->features & needed) ? PCISPLIT_ERROR_NOT_IMPLEMENTED : pcs_check_request(request);
    if (!error && !device)
        error = PCISPLIT_ERROR_DEV_NOT_FOUND;
    if (!error)
        error = check_device(device, r);
    if (!error)
        error = check_shape(device, r, used);
    if (error)
        return fail(result, error);
    switch (r->op) {
    case PCISPLIT_OP_NOP: return PCS_ANSWERED;
    case PCISPLIT_OP_CONF_READ:
    case PCISPLIT_OP_CONF_WRITE: return config_access(device, r, result);
    case PCISPLIT_OP_BAR_READ:
    case PCISPLIT_OP_BAR_WRITE:
    case PCISPLIT_OP_BAR_READ_BLOCK:
    case PCISPLIT_OP_BAR_WRITE_BLOCK: return bar_access(s, device, r, used, result);
    default: return PCS_TO_OWNER; // interrupts and reset: full barriers for their device [ORD-9]
    }
}
