/* SPDX-License-Identifier: MIT
 *
 * pcifront: accesses that travel in one slot. Nothing is merged: each is made, in order, exactly as wide as asked [BAR-40].
 * Freestanding, as pcifront.c.
 *
 * A pack of writes is written in place, into the ring's next slot, one store each; until its sequence is stored nobody sees it.
 * Whatever else is entered, and whatever tells the back, closes it first.
 */
#include "pcifront_internal.h"

static uint64_t second_word(const struct pcifront *f, unsigned device, unsigned bar, unsigned width)
{
    return device | (uint64_t)bar << 16 | (uint64_t)width << 24 | (uint64_t)f->device[device].generation << 32;
}

void pcifront_close_pack(struct pcifront *f)
{
    if (!f->pack_count)
        return;
    if (f->hooks.trace) {
        struct pcisplit_slot slot;
        pcisplit_copy_slot(slot.word, pcisplit_next(&f->requests));
        for (uint32_t i = f->pack_count; i < PCISPLIT_PACK_WRITES; i++)
            slot.word[2 + i] = 0;
        slot.word[7] = f->pack_count | (uint64_t)(f->requests.filled + 1) << 32;
        pcifront_trace(f, PCIFRONT_TRACE_REQUEST, &slot);
    }
    pcisplit_finish(&f->requests, f->pack_count);
    f->pack_count = 0;
    if (f->requests.filled - f->requests.announced >= PCISPLIT_ANNOUNCE_OPS || pcisplit_glance(&f->back->sleeping))
        pcifront_publish(f);
}

/* Whether an access fits an element; what does not goes by itself, and meets the back's checks there. */
static int fits(const struct pcifront *f, unsigned device, uint64_t offset, unsigned width, uint64_t value)
{
    return f->features & PCISPLIT_FEATURE_PACKED && device < f->device_count && !(offset >> 32) &&
           (width == 1 || width == 2 || width == 4) && !(value >> 8 * width);
}

static int open_pack(struct pcifront *f, uint64_t key, uint64_t *deadline)
{
    volatile uint64_t *slot;
    int error;

    pcifront_close_pack(f);
    if (!pcifront_connected(f))
        return PCISPLIT_ERROR_GONE;
    error = pcifront_room(f, deadline);
    if (error)
        return error;
    slot = pcisplit_next(&f->requests);
    slot[0] = PCISPLIT_OP_BAR_WRITES | (uint64_t)PCISPLIT_FLAG_POSTED << 16;
    slot[1] = key;
    f->pack_key = key;
    return 0;
}

static int post_packed(struct pcifront *f, uint64_t key, uint32_t offset, uint32_t value, uint64_t *deadline)
{
    if (!f->pack_count || f->pack_key != key) {
        int error = open_pack(f, key, deadline);
        if (error)
            return error;
    }
    pcisplit_next(&f->requests)[2 + f->pack_count] = offset | (uint64_t)value << 32;
    if (++f->pack_count == PCISPLIT_PACK_WRITES)
        pcifront_close_pack(f);
    return 0;
}

static int post_alone(struct pcifront *f, unsigned device, unsigned bar, uint64_t offset, unsigned width, uint64_t value,
                      uint64_t *deadline)
{
    union pcifront_slot slot;
    pcifront_compose(&slot, PCISPLIT_OP_BAR_WRITE, device, bar, offset, width, value);
    slot.raw.word[0] |= (uint64_t)PCISPLIT_FLAG_POSTED << 16;
    return pcifront_enter_posted(f, &slot, deadline);
}

int pcifront_bar_post(struct pcifront *f, unsigned device, unsigned bar, uint64_t offset, unsigned width,
                      uint64_t value, int publish, uint64_t deadline)
{
    int error;

    if (fits(f, device, offset, width, value) && (!publish || f->pack_count))
        error = post_packed(f, second_word(f, device, bar & 0xffu, width), (uint32_t)offset, (uint32_t)value, &deadline);
    else
        error = post_alone(f, device, bar, offset, width, value, &deadline);
    if (error == 0 && publish)
        pcifront_publish(f);
    return error;
}

int pcifront_post_many(struct pcifront *f, unsigned device, unsigned bar, unsigned width, const uint32_t *offset,
                       const uint64_t *value, unsigned count, uint64_t deadline)
{
    int error = 0;

    for (unsigned i = 0; i < count && !error; i++)
        error = pcifront_bar_post(f, device, bar, offset[i], width, value[i], 0, deadline);
    pcifront_publish(f);
    return error;
}

/* ---- reads ------------------------------------------------------------------------------------------------------------- */

#define FLIGHT 24 /* slots of reads in flight at once */

/* Up to FLIGHT slots of reads, entered before the first answer is waited for. Returns how many accesses they have, in *slots how
 * many there are, and their ids. */
static int enter_reads(struct pcifront *f, uint64_t key, unsigned step, const uint32_t *offset, unsigned count,
                       uint32_t *id, unsigned *slots, uint64_t *deadline)
{
    unsigned at = 0;

    for (*slots = 0; *slots < FLIGHT && at < count; ++*slots) {
        union pcifront_slot slot;
        unsigned part = count - at < step ? count - at : step;
        slot.raw.word[0] = step == 1 ? PCISPLIT_OP_BAR_READ : PCISPLIT_OP_BAR_READS;
        slot.raw.word[1] = key & 0xffffffffu;
        for (unsigned i = 2; i < PCISPLIT_SLOT_WORDS; i++)
            slot.raw.word[i] = 0;
        if (step == 1) {
            slot.request.offset = offset[at];
        } else {
            for (unsigned i = 0; i < part; i++)
                slot.reads.element[i] = offset[at + i];
            slot.reads.count = part;
        }
        int error = pcifront_call_enter(f, &slot, deadline);
        if (error < 0 && (error != PCISPLIT_ERROR_BUSY || !*slots))
            return error;
        if (error < 0)
            break; /* what is in flight frees the table */
        id[*slots] = slot.request.id;
        at += part;
    }
    return (int)at;
}

int pcifront_read_many(struct pcifront *f, unsigned device, unsigned bar, unsigned width, const uint32_t *offset,
                       uint64_t *value, unsigned count, unsigned *done, uint64_t deadline)
{
    uint32_t id[FLIGHT];
    unsigned slots, step = f->features & PCISPLIT_FEATURE_PACKED && width <= 4 ? PCISPLIT_PACK_READS : 1;

    *done = 0;
    if (device >= f->device_count)
        return PCISPLIT_ERROR_DEV_NOT_FOUND;
    uint64_t key = second_word(f, device, bar & 0xffu, width & 0xffu);
    while (*done < count) {
        int entered = enter_reads(f, key, step, offset + *done, count - *done, id, &slots, &deadline), error = 0;
        if (entered < 0)
            error = entered;
        for (unsigned i = 0, left = entered < 0 ? 0 : (unsigned)entered; i < slots; i++) {
            union pcifront_slot slot;
            unsigned part = left < step ? left : step;
            if (error) {
                pcifront_call_left(f, id[i]);
                continue;
            }
            error = pcifront_call_answer(f, id[i], &slot, &deadline);
            unsigned came = error ? 0 : part;
            if (step > 1 && slot.response.error == error && slot.values.done < part)
                came = slot.values.done;
            for (unsigned n = 0; n < came; n++)
                value[*done + n] = step > 1 ? slot.values.values[n] : slot.response.value;
            *done += came;
            left -= part;
            if (!error && came < part)
                error = PCISPLIT_ERROR_OP_FAILED; /* success, and fewer values than asked for: a lie */
        }
        if (error)
            return error;
    }
    return 0;
}
