// SPDX-License-Identifier: MIT
// One request: the checks in the order of ERR-2, then the access, or the verdict that it is the owner's. The request is a
// private copy; nothing here reads the ring. Octets of bulk-in are read once each [BAR-22].

#include "area.h"

typedef enum pcs_verdict (*execute_function)(struct pcs_serve *s, struct pcs_device *device, const union pcs_slot *request,
                                             struct pcs_result *result);

static enum pcs_verdict execute_nop(struct pcs_serve *, struct pcs_device *, const union pcs_slot *, struct pcs_result *);
static enum pcs_verdict execute_config(struct pcs_serve *, struct pcs_device *, const union pcs_slot *, struct pcs_result *);
static enum pcs_verdict execute_bar(struct pcs_serve *, struct pcs_device *, const union pcs_slot *, struct pcs_result *);
static enum pcs_verdict execute_owner(struct pcs_serve *, struct pcs_device *, const union pcs_slot *, struct pcs_result *);

/* The operations that are built; the others have no function. From wire/ops.py. */
struct operation {
    uint32_t uses;
    uint64_t features;
    uint64_t zero[PCISPLIT_SLOT_WORDS];
    execute_function execute;
};

#define execute_pack pcs_execute_pack
#define ROW(name, number, loop, uses, features, ...) [number] = {uses, features, {__VA_ARGS__}, execute_##loop},
static const struct operation operations[PCISPLIT_OPERATIONS_SIZE] = {PCISPLIT_OPERATIONS(ROW)};
#undef ROW

static const struct operation *operation_of(const union pcs_slot *slot)
{
    unsigned op = slot->request.op;
    return op < PCISPLIT_OPERATIONS_SIZE && operations[op].execute ? &operations[op] : NULL;
}

static int check_octets(const struct operation *operation, const union pcs_slot *slot)
{
    uint64_t strange = 0;

    for (unsigned i = 0; i < PCISPLIT_SLOT_WORDS; i++)
        strange |= slot->raw.word[i] & operation->zero[i];
    if (operation->uses & PCISPLIT_USES_MUST_POST)
        strange |= !(slot->request.flags & PCISPLIT_FLAG_POSTED);
    return strange ? PCISPLIT_ERROR_BAD_REQUEST : 0;
}

int pcs_check_request(const union pcs_slot *slot)
{
    const struct operation *operation = operation_of(slot);
    return operation ? check_octets(operation, slot) : PCISPLIT_ERROR_NOT_IMPLEMENTED;
}

// Built, and of a feature in force [VER-5].
static int in_force(const struct pcs_serve *s, const struct operation *operation)
{
    return operation && (!operation->features || s->features & operation->features);
}

int pcs_may_post(const struct pcs_serve *s, const union pcs_slot *slot)
{
    const struct operation *operation = operation_of(slot);
    return in_force(s, operation) && operation->uses & PCISPLIT_USES_POSTED;
}

// Octets that the access covers, from `offset` on: its width, or the length of a block.
static uint64_t extent(const struct pcisplit_request *r, uint32_t used)
{
    return used & PCISPLIT_USES_BLOCK ? r->length : r->width;
}

int pcs_check_width(const struct pcisplit_request *r, uint32_t used)
{
    unsigned widths = 1 | 2 | 4 | (used & PCISPLIT_USES_WIDTH8 ? 8 : 0);
    return r->width & widths && !(r->width & (r->width - 1)) ? 0 : PCISPLIT_ERROR_BAD_SIZE;
}

// Width, alignment, range and value, in that order.
static inline int check_shape(const struct pcs_serve *s, const struct pcs_device *device, const struct pcisplit_request *r,
                       uint32_t used)
{
    uint64_t space = used & PCISPLIT_USES_REGION ? pcs_bar_size(device, r->region) : device->config.size;

    if (pcs_check_width(r, used))
        return PCISPLIT_ERROR_BAD_SIZE;
    if (used & PCISPLIT_USES_BLOCK && (r->length == 0 || r->length > PCISPLIT_BLOCK_MAX || r->length & (r->width - 1u)))
        return PCISPLIT_ERROR_BAD_SIZE;
    if (r->offset & (r->width - 1u)) // a power of two by now; a division would cost as much as the access
        return PCISPLIT_ERROR_UNALIGNED;
    if (extent(r, used) > space || r->offset > space - extent(r, used))
        return PCISPLIT_ERROR_INVALID_OFFSET;
    if (used & PCISPLIT_USES_BLOCK && (r->bulk % 8 || r->length > s->bulk_size || r->bulk > s->bulk_size - r->length))
        return PCISPLIT_ERROR_INVALID_OFFSET;
    if (used & PCISPLIT_USES_VALUE && r->width < 8 && r->value >> (8 * r->width))
        return PCISPLIT_ERROR_BAD_REQUEST;
    return 0;
}

static enum pcs_verdict fail(struct pcs_result *result, int error)
{
    result->error = error;
    return PCS_ANSWERED;
}

static enum pcs_verdict execute_nop(struct pcs_serve *s, struct pcs_device *device, const union pcs_slot *request,
                                    struct pcs_result *result)
{
    (void)s, (void)device, (void)request, (void)result;
    return PCS_ANSWERED;
}

// Interrupts and reset: full barriers for their device [ORD-9].
static enum pcs_verdict execute_owner(struct pcs_serve *s, struct pcs_device *device, const union pcs_slot *request,
                                      struct pcs_result *result)
{
    (void)s, (void)device, (void)request, (void)result;
    return PCS_TO_OWNER;
}

static enum pcs_verdict execute_config(struct pcs_serve *s, struct pcs_device *device, const union pcs_slot *request,
                                       struct pcs_result *result)
{
    const struct pcisplit_request *r = &request->request;
    struct pcs_config *config = &device->config;
    uint32_t offset = (uint32_t)r->offset, value = (uint32_t)r->value, octet;
    int error = check_shape(s, device, r, operations[r->op].uses);

    if (error)
        return fail(result, error);

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
void pcs_spend(uint32_t ns)
{
    for (uint64_t until = pcs_now() + ns; pcs_now() < until;)
        ;
}

// A block over mapped memory; *result's length counts what was moved, also when an access faults on the way [BAR-21].
static void move_block(struct pcs_serve *s, const struct pcs_area *area, const struct pcisplit_request *r,
                       struct pcs_result *result)
{
    for (uint32_t done = 0; done < r->length; done += r->width) {
        volatile uint8_t *bulk_out = s->bulk_out + r->bulk + done;
        const volatile uint8_t *bulk_in = s->bulk_in + r->bulk + done;
        if (r->op == PCISPLIT_OP_BAR_READ_BLOCK) {
            uint64_t value = pcs_area_load(area, r->offset + done, r->width);
            for (unsigned i = 0; i < r->width; i++)
                bulk_out[i] = (uint8_t)(value >> (8 * i));
        } else {
            uint64_t value = 0;
            for (unsigned i = 0; i < r->width; i++)
                value |= (uint64_t)bulk_in[i] << (8 * i);
            pcs_area_store(area, r->offset + done, r->width, value);
        }
        result->length = done + r->width;
    }
}

static enum pcs_verdict execute_bar(struct pcs_serve *s, struct pcs_device *device, const union pcs_slot *request,
                                    struct pcs_result *result)
{
    const struct pcisplit_request *r = &request->request;
    uint32_t used = operations[r->op].uses;
    int error = check_shape(s, device, r, used);

    if (error)
        return fail(result, error);
    const struct pcs_bar *bar = &device->bar[r->region];
    if (!pcs_decoded(device, bar))
        return fail(result, PCISPLIT_ERROR_DECODE_DISABLED);
    const struct pcs_area *area = pcs_find_area(bar, r->offset, extent(r, used));
    if (!area && used & PCISPLIT_USES_BLOCK)
        return PCS_TO_OWNER; // spans areas: the owner goes access by access
    error = pcs_check_area(device, area, r->width, &result->rule);
    if (error)
        return fail(result, error);
    if (area->kind == PCS_AREA_OWNER)
        return PCS_TO_OWNER;
    if (r->op == PCISPLIT_OP_BAR_READ)
        result->value = pcs_area_load(area, r->offset, r->width);
    else if (r->op == PCISPLIT_OP_BAR_WRITE)
        pcs_area_store(area, r->offset, r->width, r->value);
    else
        move_block(s, area, r, result);
    return PCS_ANSWERED;
}

/* ---- any request --------------------------------------------------------------------------------------------------------- */

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
    const struct operation *operation = operation_of(request);
    int error;

    result->error = 0;
    result->rule = result->length = result->done = 0;
    result->value = result->detail = 0;
    if (!in_force(s, operation))
        return fail(result, PCISPLIT_ERROR_NOT_IMPLEMENTED);
    error = check_octets(operation, request);
    if (!error && !device)
        error = PCISPLIT_ERROR_DEV_NOT_FOUND;
    if (!error)
        error = check_device(device, &request->request);
    if (error)
        return fail(result, error);
    return operation->execute(s, device, request, result);
}
