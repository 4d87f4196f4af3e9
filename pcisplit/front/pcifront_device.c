/* SPDX-License-Identifier: MIT
 *
 * pcifront: configuration space, BARs, blocks, interrupts - the calls that read as sentences, all made of one request.
 * Freestanding, as pcifront.c.
 */
#include "pcifront_internal.h"

int pcifront_config_read(struct pcifront *f, unsigned device, uint32_t offset, unsigned width, uint32_t *value,
                         uint64_t deadline)
{
    union pcifront_slot slot;
    pcifront_compose(&slot, PCISPLIT_OP_CONF_READ, device, 0, offset, width, 0);
    int error = pcifront_call_slot(f, &slot, 0, &deadline);
    *value = error ? 0xffffffffu : (uint32_t)slot.response.value;
    return error;
}

int pcifront_config_write(struct pcifront *f, unsigned device, uint32_t offset, unsigned width, uint32_t value,
                          uint64_t deadline)
{
    union pcifront_slot slot;
    pcifront_compose(&slot, PCISPLIT_OP_CONF_WRITE, device, 0, offset, width, value);
    return pcifront_call_slot(f, &slot, 0, &deadline);
}

int pcifront_bar_read(struct pcifront *f, unsigned device, unsigned bar, uint64_t offset, unsigned width,
                      uint64_t *value, uint64_t deadline)
{
    union pcifront_slot slot;
    pcifront_compose(&slot, PCISPLIT_OP_BAR_READ, device, bar, offset, width, 0);
    int error = pcifront_call_slot(f, &slot, 0, &deadline);
    *value = error ? UINT64_MAX : slot.response.value;
    return error;
}

int pcifront_bar_write(struct pcifront *f, unsigned device, unsigned bar, uint64_t offset, unsigned width,
                       uint64_t value, uint64_t deadline)
{
    union pcifront_slot slot;
    pcifront_compose(&slot, PCISPLIT_OP_BAR_WRITE, device, bar, offset, width, value);
    return pcifront_call_slot(f, &slot, 0, &deadline);
}

static int chunk_stop(struct pcifront *f, const void *what)
{
    (void)what;
    return f->chunks_busy != (uint32_t)((UINT64_C(1) << f->chunks) - 1);
}

/* One block of at most BLOCK_MAX octets. `to` or `from` is NULL. */
static int block(struct pcifront *f, union pcifront_slot *slot, uint8_t *to, const uint8_t *from, uint32_t length,
                 uint64_t *deadline)
{
    if (!f->chunks)
        return PCISPLIT_ERROR_NOT_IMPLEMENTED; /* blocks are not in force, and there is no bulk area */
    while (!chunk_stop(f, 0)) { /* every chunk is held by a block that timed out [BAR-23] */
        int error = pcifront_collect(f) ? pcifront_overdue(f, deadline)
                    : pcifront_connected(f) ? pcifront_wait(f, 0, 0, deadline) : PCISPLIT_ERROR_GONE;
        if (error < 0)
            return error;
    }
    unsigned chunk = 0; /* no count-trailing-zeros: it is a libgcc call on riscv */
    while (f->chunks_busy & 1u << chunk)
        chunk++;
    uint32_t bulk = chunk * PCISPLIT_BLOCK_MAX;
    slot->request.length = length;
    slot->request.bulk = bulk;
    for (uint32_t i = 0; from && i < length; i++)
        f->bulk_in[bulk + i] = from[i];
    int error = pcifront_call_slot(f, slot, (uint8_t)(chunk + 1), deadline);
    for (uint32_t i = 0; to && error == 0 && i < length; i++)
        to[i] = f->bulk_out[bulk + i];
    return error;
}

static int blocks(struct pcifront *f, unsigned op, unsigned device, unsigned bar, uint64_t offset, unsigned width,
                  uint8_t *to, const uint8_t *from, uint64_t length, uint64_t *moved, uint64_t deadline)
{
    for (*moved = 0; *moved < length;) {
        uint64_t left = length - *moved;
        uint32_t part = left < PCISPLIT_BLOCK_MAX ? (uint32_t)left : PCISPLIT_BLOCK_MAX;
        union pcifront_slot slot;
        pcifront_compose(&slot, op, device, bar, offset + *moved, width, 0);
        int error = block(f, &slot, to ? to + *moved : 0, from ? from + *moved : 0, part, &deadline);
        if (error) {
            *moved += slot.response.error == error && slot.response.length <= part ? slot.response.length : 0;
            return error;
        }
        *moved += part;
    }
    return 0;
}

int pcifront_read_block(struct pcifront *f, unsigned device, unsigned bar, uint64_t offset, unsigned width, void *to,
                        uint64_t length, uint64_t *moved, uint64_t deadline)
{
    return blocks(f, PCISPLIT_OP_BAR_READ_BLOCK, device, bar, offset, width, to, 0, length, moved, deadline);
}

int pcifront_write_block(struct pcifront *f, unsigned device, unsigned bar, uint64_t offset, unsigned width,
                         const void *from, uint64_t length, uint64_t *moved, uint64_t deadline)
{
    return blocks(f, PCISPLIT_OP_BAR_WRITE_BLOCK, device, bar, offset, width, 0, from, length, moved, deadline);
}

int pcifront_reset(struct pcifront *f, unsigned device, uint64_t deadline)
{
    union pcifront_slot slot;
    pcifront_compose(&slot, PCISPLIT_OP_RESET, device, 0, 0, 0, 0);
    return pcifront_call_slot(f, &slot, 0, &deadline);
}

/* ---- interrupts and hints ------------------------------------------------------------------------------------------ */

static int vector_op(struct pcifront *f, unsigned op, unsigned device, uint64_t deadline)
{
    union pcifront_slot slot;
    pcifront_compose(&slot, op, device, 0, 0, 0, 0);
    slot.irq.count = 1;
    return pcifront_call_slot(f, &slot, 0, &deadline);
}

int pcifront_enable_msi(struct pcifront *f, unsigned device, uint64_t deadline)
{
    return vector_op(f, PCISPLIT_OP_ENABLE_MSI, device, deadline);
}

int pcifront_disable_msi(struct pcifront *f, unsigned device, uint64_t deadline)
{
    return vector_op(f, PCISPLIT_OP_DISABLE_MSI, device, deadline);
}

/* The counter is loaded with acquire: DMA writes that came before the interrupt are visible after it [ORD-12]. */
static uint64_t fired(const struct pcifront_device *device, unsigned vector)
{
    if (!device->counters || vector >= PCIFRONT_VECTORS)
        return 0;
    return __atomic_load_n(&device->counters[vector], __ATOMIC_SEQ_CST) - device->counter_seen[vector];
}

uint64_t pcifront_interrupts(struct pcifront *f, unsigned device, unsigned vector)
{
    if (device >= f->device_count || vector >= f->device[device].vectors)
        return 0;
    uint64_t count = fired(&f->device[device], vector);
    f->device[device].counter_seen[vector] += count;
    f->device[device].total_seen[vector / 64] += count;
    return count;
}

/* Whether any vector has interrupts not yet asked for: a sum for 64 of them, written after the counters [IRQ-20]. */
static int any_fired(const struct pcifront_device *device)
{
    unsigned words = device->vectors < PCIFRONT_VECTORS ? (device->vectors + 63) / 64 : PCIFRONT_VECTORS / 64;

    for (unsigned i = 0; device->counters && i < words; i++)
        if (__atomic_load_n(&device->totals[i], __ATOMIC_SEQ_CST) != device->total_seen[i])
            return 1;
    return 0;
}

struct interrupt {
    unsigned device, vector;
};

static int interrupt_stop(struct pcifront *f, const void *what)
{
    const struct interrupt *wanted = what;
    return fired(&f->device[wanted->device], wanted->vector) != 0 || !pcifront_connected(f);
}

int pcifront_interrupt_wait(struct pcifront *f, unsigned device, unsigned vector, uint64_t *count, uint64_t deadline)
{
    struct interrupt wanted = {device, vector};

    *count = 0;
    if (device >= f->device_count)
        return PCISPLIT_ERROR_DEV_NOT_FOUND;
    if (vector >= f->device[device].vectors || !f->device[device].counters)
        return PCISPLIT_ERROR_TOO_MANY_VECTORS;
    while ((*count = pcifront_interrupts(f, device, vector)) == 0) {
        if (!pcifront_connected(f))
            return PCISPLIT_ERROR_GONE;
        int error = pcifront_collect(f) ? pcifront_overdue(f, &deadline)
                                        : pcifront_wait(f, interrupt_stop, &wanted, &deadline);
        if (error < 0)
            return error;
    }
    return 0;
}

int pcifront_event(struct pcifront *f, struct pcisplit_event *event)
{
    union pcifront_slot slot;
    if (!pcisplit_take(&f->events, &slot.raw))
        return 0;
    pcisplit_give_back(&f->events); /* the back never waits for room for hints [REG-30] */
    pcifront_trace(f, PCIFRONT_TRACE_EVENT, &slot);
    pcifront_copy_slot(event, &slot);
    return 1;
}

uint32_t pcifront_ready(struct pcifront *f)
{
    uint32_t ready = 0;
    pcifront_collect(f);
    for (uint32_t at = f->done_head; at != f->done_tail; at++)
        ready |= 1u << f->pending[f->done[at & (PCIFRONT_PENDING - 1)]].device;
    for (unsigned device = 0; device < f->device_count; device++)
        if (any_fired(&f->device[device]))
            ready |= 1u << device;
    return ready;
}

int pcifront_find(const struct pcifront *f, const char *name)
{
    for (unsigned device = 0; device < f->device_count; device++) {
        const char *own = f->device[device].name;
        for (unsigned i = 0; own[i] == name[i]; i++)
            if (own[i] == 0)
                return (int)device;
    }
    return PCISPLIT_ERROR_DEV_NOT_FOUND;
}
