// SPDX-License-Identifier: MIT
// Packs: several accesses of one device, BAR and width in one slot. Each is made in order, exactly as wide as asked [BAR-40];
// what concerns the pack as a whole is checked once, before the first [BAR-41].

#include "area.h"

static enum pcs_verdict fail(struct pcs_result *result, int error)
{
    result->error = error;
    return PCS_ANSWERED;
}

static int is_write_pack(const union pcs_slot *slot)
{
    return slot->request.op == PCISPLIT_OP_BAR_WRITES;
}

uint64_t pcs_element_offset(const union pcs_slot *slot, unsigned i)
{
    return is_write_pack(slot) ? slot->writes.element[2 * i] : slot->reads.element[i];
}

// What is wrong with an access, if anything. Offsets have 32 bits, so that nothing overflows here.
static inline int check(uint64_t size, uint64_t offset, uint64_t width, uint64_t value)
{
    if (offset & (width - 1))
        return PCISPLIT_ERROR_UNALIGNED;
    if (offset + width > size)
        return PCISPLIT_ERROR_INVALID_OFFSET;
    return value >> (8 * width) ? PCISPLIT_ERROR_BAD_REQUEST : 0;
}

int pcs_check_element(const struct pcs_device *device, const union pcs_slot *slot, unsigned i)
{
    uint64_t value = is_write_pack(slot) ? slot->writes.element[2 * i + 1] : 0;
    return check(pcs_bar_size(device, slot->request.region), pcs_element_offset(slot, i), slot->request.width, value);
}

// The area of the access before is nearly always that of the next one.
static inline const struct pcs_area *area_at(const struct pcs_bar *bar, const struct pcs_area *before, uint64_t offset,
                                             unsigned width)
{
    if (before && offset >= before->start && offset + width <= before->end)
        return before;
    return pcs_find_area(bar, offset, width);
}

// `done` says how far we are: a fault of the next access must find it [BAR-42, BAR-43].
static inline void advance(struct pcs_result *result, unsigned done)
{
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
    result->done = done;
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
}

static void write_on(struct pcs_device *device, const union pcs_slot *slot, struct pcs_result *result)
{
    const struct pcs_bar *bar = &device->bar[slot->request.region];
    const struct pcs_area *area = bar->area;
    unsigned width = slot->request.width, count = slot->writes.count;

    for (unsigned i = result->done; i < count; advance(result, ++i)) {
        uint64_t offset = slot->writes.element[2 * i], value = slot->writes.element[2 * i + 1];
        uint32_t rule = 0;
        int error = check(bar->size, offset, width, value);
        if (!error) {
            area = area_at(bar, area, offset, width);
            error = pcs_check_area(device, area, width, &rule);
        }
        if (!error)
            pcs_area_store(area, offset, width, value);
        else
            result->failed[i] = (struct pcs_failure){error, rule};
    }
}

static void read_on(struct pcs_device *device, const union pcs_slot *slot, struct pcs_result *result)
{
    const struct pcs_bar *bar = &device->bar[slot->request.region];
    const struct pcs_area *area = bar->area;
    unsigned width = slot->request.width, count = slot->reads.count;

    for (unsigned i = 0; i < count; advance(result, ++i)) {
        uint64_t offset = slot->reads.element[i];
        int error = check(bar->size, offset, width, 0);
        if (!error) {
            area = area_at(bar, area, offset, width);
            error = pcs_check_area(device, area, width, &result->rule);
        }
        if (error) {
            result->error = error;
            return;
        }
        result->values[i] = (uint32_t)pcs_area_load(area, offset, width);
    }
}

void pcs_resume_pack(struct pcs_device *device, const union pcs_slot *slot, struct pcs_result *result)
{
    result->failed[result->done] = (struct pcs_failure){PCISPLIT_ERROR_FAULTED, 0};
    result->done++;
    write_on(device, slot, result);
}

// Whether any access of the pack can sleep: then all of it is the owner's, so that its order is kept.
static int can_sleep(const struct pcs_bar *bar, const union pcs_slot *slot)
{
    for (unsigned i = 0; i < pcs_elements(slot); i++) {
        const struct pcs_area *area = pcs_find_area(bar, pcs_element_offset(slot, i), slot->request.width);
        if (area && area->kind == PCS_AREA_OWNER)
            return 1;
    }
    return 0;
}

enum pcs_verdict pcs_execute_pack(struct pcs_serve *s, struct pcs_device *device, const union pcs_slot *request,
                                  struct pcs_result *result)
{
    unsigned count = pcs_elements(request), most = is_write_pack(request) ? PCISPLIT_PACK_WRITES : PCISPLIT_PACK_READS;

    (void)s; // as every function of this kind
    if (pcs_check_width(&request->request, 0) || count == 0 || count > most)
        return fail(result, PCISPLIT_ERROR_BAD_SIZE);
    if (pcs_bar_size(device, request->request.region) == 0)
        return fail(result, PCISPLIT_ERROR_INVALID_OFFSET);
    const struct pcs_bar *bar = &device->bar[request->request.region];
    if (!pcs_decoded(device, bar))
        return fail(result, PCISPLIT_ERROR_DECODE_DISABLED);
    if (bar->sleeps && can_sleep(bar, request))
        return PCS_TO_OWNER;
    if (!is_write_pack(request)) {
        read_on(device, request, result);
        return PCS_ANSWERED;
    }
    for (unsigned i = 0; i < PCISPLIT_PACK_WRITES; i++)
        result->failed[i] = (struct pcs_failure){0, 0};
    write_on(device, request, result);
    return PCS_ANSWERED;
}
