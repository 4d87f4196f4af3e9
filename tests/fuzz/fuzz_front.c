// SPDX-License-Identifier: MIT
// pcifront against a back made of the fuzzer's octets: a boot-info block with mistakes or of no shape at all, then calls, in
// whose waits the back goes on: it answers, lies, hints, dies. Nothing ever blocks.
//
// Block, regions and buffers are heap blocks of exactly their size, so that a stray access ends the run. Beyond that: counts
// stay in their bounds, a block never moves more than was asked, and as long as the back is honest a read returns what was
// answered to it, however many requests were given up before.

#include "pcifront.h"
#include "script.h"
#include "layout.h" /* of the regions; made by harness.py */

#define PAGE PCISPLIT_PAGE_SIZE
enum { DMA_SIZE = 4 * PAGE, DEVICES = 2, VECTORS = 8, LONGEST = 3 * PCISPLIT_BLOCK_MAX };

static struct {
    struct pcifront *f;
    uint8_t *f2b, *b2f, *dma, *info;
    size_t info_length;
    uint64_t now;
    int honest, racing, in_hook;
    uint32_t req_cons, rsp_prod, evt_prod, generation[PCISPLIT_MAX_DEVICES];
} run;

/* ---- the back -------------------------------------------------------------------------------------------------------------- */

static struct pcisplit_back_header *back(void)
{
    return (struct pcisplit_back_header *)(void *)run.b2f;
}

static void write_slot(unsigned ring_at, unsigned slots, uint32_t index, const void *octets)
{
    struct pcisplit_response slot;
    memcpy(&slot, octets, sizeof slot);
    slot.sequence = index + 1;
    memcpy(run.b2f + ring_at + index % slots * PCISPLIT_SLOT_SIZE, &slot, sizeof slot);
}

static void respond(const struct pcisplit_response *response)
{
    write_slot(RESPONSES_AT, RESPONSE_SLOTS, run.rsp_prod++, response);
    if (run.rsp_prod % 2) // the others are announced late
        pcisplit_store(&back()->rsp_prod, run.rsp_prod);
}

static uint64_t answer_to(uint64_t offset)
{
    return offset * 3 + 1;
}

// Take one request and answer it as a back that keeps the rules; `error` is its own affair.
static void answer_one(int error)
{
    const struct pcisplit_front_header *front = (const void *)run.f2b;
    struct pcisplit_request r;
    struct pcisplit_request_reads reads;
    struct pcisplit_response a;
    struct pcisplit_response_values values;

    memcpy(&r, run.f2b + REQUESTS_AT + run.req_cons % REQUEST_SLOTS * PCISPLIT_SLOT_SIZE, sizeof r);
    int there = r.sequence == run.req_cons + 1; // announced or not
    MUST(there || !run.honest || (int32_t)(pcisplit_load(&front->req_prod) - run.req_cons) <= 0); // announced is published [RING-2]
    if (!there || run.rsp_prod - pcisplit_load(&front->rsp_cons) >= RESPONSE_SLOTS)
        return;
    run.req_cons++;
    pcisplit_store(&back()->req_cons, run.req_cons);
    if (r.flags & PCISPLIT_FLAG_POSTED)
        return;
    memset(&a, 0, sizeof a);
    a.op = r.op;
    a.id = r.id;
    a.device = r.device;
    a.error = (int16_t)error;
    a.value = answer_to(r.offset);
    a.length = error ? r.length / 2 : r.length;
    if (r.op == PCISPLIT_OP_RESET && !error)
        run.generation[r.device % PCISPLIT_MAX_DEVICES]++;
    a.generation = run.generation[r.device % PCISPLIT_MAX_DEVICES];
    if (r.op == PCISPLIT_OP_BAR_READS) {
        memcpy(&reads, &r, sizeof reads);
        memcpy(&values, &a, sizeof values);
        memset(values.values, 0, sizeof values.values);
        MUST(reads.count >= 1 && reads.count <= PCISPLIT_PACK_READS);
        values.done = error ? reads.count / 2 : reads.count;
        for (unsigned i = 0; i < values.done; i++)
            values.values[i] = (uint32_t)answer_to(reads.element[i]);
        memcpy(&a, &values, sizeof a);
    }
    respond(&a);
}

static void lie(uint32_t *word, uint32_t value)
{
    run.honest = 0;
    pcisplit_store(word, value);
}

// One step of the back. Returns 1 if the front is then woken.
static int back_step(void)
{
    struct pcisplit_response response;
    uint64_t fired;
    uint16_t at;
    uint8_t what = take8();

    switch (what & 0x0f) {
    case 0: case 1: case 2:
        for (unsigned n = (what >> 4) + 1u; n; n--)
            answer_one(0);
        return 1;
    case 3: answer_one(-(int)(take8() % 59)); return what & 0x10;
    case 4:
        run.honest = 0;
        take_octets(&response, sizeof response);
        respond(&response);
        return what & 0x10;
    case 5: // an answer that nobody, or somebody else, waits for
        run.honest = 0;
        memset(&response, 0, sizeof response);
        response.id = run.f->pending[take8()].id + (what & 0x40 ? 0x100 : 0);
        response.op = run.f->pending[response.id % PCIFRONT_PENDING].op;
        response.device = run.f->pending[response.id % PCIFRONT_PENDING].device;
        response.error = (int16_t)take8();
        response.generation = run.generation[0];
        response.length = (uint32_t)take_number();
        respond(&response);
        return what & 0x10;
    case 6: lie(&back()->rsp_prod, (uint32_t)(run.rsp_prod + take_number())); return 1;
    case 7: lie(&back()->req_cons, (uint32_t)(run.req_cons + take_number())); return 1;
    case 8: pcisplit_store(&back()->state, what >> 4); return 1;
    case 9: pcisplit_store(&back()->sleeping, what >> 4); return 0;
    case 10:
        memset(&response, 0, sizeof response);
        take_octets(&response, 24);
        write_slot(EVENTS_AT, EVENT_SLOTS, run.evt_prod++, &response);
        pcisplit_store(&back()->evt_prod, run.evt_prod);
        return what & 0x10;
    case 11: lie(&back()->evt_prod, (uint32_t)(run.evt_prod + take_number())); return 0;
    case 12:
        fired = take_number();
        ((uint64_t *)(void *)(run.b2f + runs[what >> 4 & 1].counters))[what >> 5] += fired;
        *(uint64_t *)(void *)(run.b2f + runs[what >> 4 & 1].totals) += fired;
        return 1;
    case 13:
        at = take16();
        memset(run.b2f + BULK_OUT_AT + at % (BULK_SIZE - 16), take8(), 16);
        return 0;
    case 14:
        at = take16();
        lie((uint32_t *)(void *)(run.b2f + (at * 4u) % BULK_OUT_AT), take32());
        return 0;
    default: run.now += 1ull << (what >> 2 & 0x3c); return 1;
    }
}

/* ---- hooks ------------------------------------------------------------------------------------------------------------------ */

static void race(void)
{
    if (run.racing && script_left)
        back_step();
}

static void hook_kick(void *context)
{
    MUST(context == &run);
    race();
}

static int hook_wait(void *context, uint64_t deadline)
{
    MUST(context == &run);
    while (script_left) {
        if (run.now >= deadline)
            return PCISPLIT_ERROR_TIMEOUT;
        if (back_step())
            return 0;
    }
    return deadline == PCIFRONT_FOREVER ? PCISPLIT_ERROR_GONE : PCISPLIT_ERROR_TIMEOUT;
}

static uint64_t hook_now(void *context)
{
    MUST(context == &run);
    return ++run.now;
}

static void hook_trace(void *context, unsigned kind, const struct pcisplit_slot *slot)
{
    MUST(context == &run && kind <= PCIFRONT_TRACE_EVENT && slot);
    race();
}

/* ---- the meeting ------------------------------------------------------------------------------------------------------------- */

enum { MOST_INFO = 4096 };

// `kind`'s record number `index`, behind the others; the caller fills in the rest.
QUIET static void *record(unsigned kind, unsigned index, unsigned device, size_t length)
{
    struct pcisplit_boot_info *info = (void *)run.info;
    struct pcisplit_boot_region *r = (void *)(run.info + info->length);

    MUST(info->length + length <= MOST_INFO);
    info->length += (uint32_t)length;
    info->records++;
    r->kind = (uint16_t)kind;
    r->length = (uint16_t)length;
    r->index = (uint16_t)index;
    r->device = (uint16_t)device;
    return r;
}

#define RECORD(KIND, kind, index, device) \
    record(PCISPLIT_RECORD_##KIND, index, device, sizeof(struct pcisplit_boot_##kind))

QUIET static void region_record(unsigned index, uint64_t size)
{
    struct pcisplit_boot_region *r = RECORD(REGION, region, index, 0);
    r->writable = index != PCISPLIT_REGION_B2F;
    r->size = size;
}

QUIET static void ring_record(unsigned index, unsigned region, uint32_t slots, uint64_t offset)
{
    struct pcisplit_boot_ring *r = RECORD(RING, ring, index, 0);
    r->region = (uint16_t)region;
    r->slots = slots;
    r->offset = offset;
}

QUIET static void bulk_record(unsigned index, unsigned region, uint64_t offset)
{
    struct pcisplit_boot_bulk *r = RECORD(BULK, bulk, index, 0);
    r->region = (uint16_t)region;
    r->offset = offset;
    r->size = BULK_SIZE;
}

QUIET static void device_records(unsigned index)
{
    struct pcisplit_boot_device *d = RECORD(DEVICE, device, index, 0);
    d->state_offset = states_at[index];
    d->generation = run.generation[index] = 1;
    d->config_size = 256;
    memcpy(d->name, index ? "ram0" : "edu0", 5);
    ((struct pcisplit_boot_bar *)RECORD(BAR, bar, 0, index))->size = 1 << 20;
    struct pcisplit_boot_vectors *v = RECORD(VECTORS, vectors, 0, index);
    v->type = PCISPLIT_VECTOR_MSI;
    v->fd = PCISPLIT_NO_FD;
    v->count = VECTORS;
    v->counters = runs[index].counters;
    v->totals = runs[index].totals;
    v->pending = runs[index].pending;
    v->masks = runs[index].masks;
}

QUIET static void sound_block(void)
{
    region_record(PCISPLIT_REGION_F2B, F2B_SIZE);
    region_record(PCISPLIT_REGION_B2F, B2F_SIZE);
    region_record(PCISPLIT_REGION_DMA, DMA_SIZE);
    ring_record(PCISPLIT_RING_REQUEST, PCISPLIT_REGION_F2B, REQUEST_SLOTS, REQUESTS_AT);
    ring_record(PCISPLIT_RING_RESPONSE, PCISPLIT_REGION_B2F, RESPONSE_SLOTS, RESPONSES_AT);
    ring_record(PCISPLIT_RING_EVENT, PCISPLIT_REGION_B2F, EVENT_SLOTS, EVENTS_AT);
    bulk_record(PCISPLIT_DIRECTION_FRONT_TO_BACK, PCISPLIT_REGION_F2B, BULK_IN_AT);
    bulk_record(PCISPLIT_DIRECTION_BACK_TO_FRONT, PCISPLIT_REGION_B2F, BULK_OUT_AT);
    for (unsigned i = 0; i < DEVICES; i++)
        device_records(i);
    struct pcisplit_boot_dma_window *w = RECORD(DMA_WINDOW, dma_window, 0, 0);
    w->region = PCISPLIT_REGION_DMA;
    w->size = DMA_SIZE;
    w->iova = 1 << 21;
}

static int meet(void)
{
    static const struct pcifront_hooks hooks = {&run, hook_kick, hook_wait, hook_now, hook_trace};
    uint8_t how = take8();
    unsigned own = how >> 3 & 3, patches = how >> 5;

    run.honest = !(how & 1) && !own && !patches;
    run.racing = how >> 1 & 1;
    run.info = calloc(1, MOST_INFO);
    MUST(run.info);
    struct pcisplit_boot_info *info = (void *)run.info;
    info->magic = PCISPLIT_BOOT_MAGIC;
    info->major = PCISPLIT_MAJOR;
    info->length = sizeof *info;
    info->features = ~0ull;
    if (!(how & 1))
        sound_block();
    for (unsigned i = 0; i < own; i++) {
        uint8_t kind = take8();
        uint16_t index = take16();
        take_octets((uint8_t *)record(kind, index, take8(), sizeof(struct pcisplit_boot_device)) + 8, 32);
    }
    run.info_length = info->length;
    run.info = realloc(run.info, run.info_length); // exactly that long
    MUST(run.info);
    for (unsigned i = 0; i < patches; i++) {
        size_t at = take16() % run.info_length;
        uint64_t value = take_number();
        memcpy(run.info + at, &value, run.info_length - at < sizeof value ? run.info_length - at : 1u << (value & 3));
    }
    void *regions[] = {run.f2b, run.b2f, how & 4 ? NULL : run.dma};
    uint64_t sizes[] = {F2B_SIZE, B2F_SIZE, DMA_SIZE};
    return pcifront_attach(run.f, run.info, run.info_length, regions, sizes, &hooks, 0);
}

/* ---- the front ------------------------------------------------------------------------------------------------------------------ */

QUIET static void check(int error)
{
    MUST(error == 0 || !run.honest || (error < 0 && error >= PCISPLIT_ERROR_DEVICE_FAILED));
    MUST(run.f->done_tail - run.f->done_head <= PCIFRONT_PENDING);
    MUST(run.f->device_count <= PCISPLIT_MAX_DEVICES && run.f->window_count <= PCISPLIT_MAX_DMA_WINDOWS);
    MUST(run.f->chunks_busy >> (BULK_SIZE / PCISPLIT_BLOCK_MAX) == 0);
    MUST(run.f->free_count <= PCIFRONT_PENDING && run.f->pack_count < PCISPLIT_PACK_WRITES);
    MUST(run.f->requests.filled - run.f->requests.announced < PCISPLIT_ANNOUNCE_OPS); // [RING-15]
}

static void move_block(unsigned device, unsigned bar, uint64_t offset, unsigned width, int reading, uint64_t deadline)
{
    uint64_t length = take_number() % LONGEST, moved = 0;
    uint8_t *memory = malloc(length ? length : 1);
    MUST(memory);
    memset(memory, 7, length);
    check(reading ? pcifront_read_block(run.f, device, bar, offset, width, memory, length, &moved, deadline)
                  : pcifront_write_block(run.f, device, bar, offset, width, memory, length, &moved, deadline));
    MUST(moved <= length);
    free(memory);
}

static void many(unsigned device, unsigned bar, unsigned width, int reading, uint64_t deadline)
{
    unsigned count = take8(), done = 0;
    uint32_t *offset = calloc(count + 1u, sizeof *offset);
    uint64_t *value = calloc(count + 1u, sizeof *value);
    MUST(offset && value);
    for (unsigned i = 0; i < count; i++)
        offset[i] = i * width;
    int error = reading ? pcifront_read_many(run.f, device, bar, width, offset, value, count, &done, deadline)
                        : pcifront_post_many(run.f, device, bar, width, offset, value, count, deadline);
    check(error);
    MUST(done <= count && (error || !reading || done == count));
    for (unsigned i = 0; run.honest && i < done; i++)
        MUST(value[i] == (uint32_t)answer_to(offset[i]));
    free(offset);
    free(value);
}

static void call(void)
{
    struct pcisplit_response response;
    struct pcisplit_request request;
    struct pcisplit_event event;
    uint64_t value = 0, count;
    uint32_t small = 0;
    uint8_t what = take8(), where = take8();
    unsigned device = where & 3, bar = where >> 2 & 7, width = 1u << (where >> 5 & 3);
    uint64_t deadline = where & 0x80 ? PCIFRONT_FOREVER : (what & 0x10 ? run.now : PCIFRONT_WITHIN(1 << 20));
    uint64_t offset;
    int error;

    switch (what & 0x0f) {
    case 0:
        offset = take8();
        error = pcifront_config_read(run.f, device, (uint32_t)offset, width, &small, deadline);
        check(error);
        MUST(error || !run.honest || small == (uint32_t)answer_to(offset));
        break;
    case 1: check(pcifront_config_write(run.f, device, take8(), width, take32(), deadline)); break;
    case 2: case 3:
        if ((what & 0x4f) == 0x43) {
            many(device, bar, width, 1, deadline);
            break;
        }
        offset = take_number();
        error = pcifront_bar_read(run.f, device, bar, offset, width, &value, deadline);
        check(error);
        MUST(error || !run.honest || value == answer_to(offset));
        break;
    case 4:
        if (what & 0x40)
            many(device, bar, width, 0, deadline);
        else
            check(pcifront_bar_write(run.f, device, bar, take_number(), width, take_number(), deadline));
        break;
    case 5:
        for (unsigned n = take8(); n; n--)
            check(pcifront_bar_post(run.f, device, bar, n * 8u, width, n, what & 0x20, what & 0x40 ? 0 : deadline));
        pcifront_publish(run.f);
        break;
    case 6: move_block(device, bar, take_number(), width, 1, deadline); break;
    case 7: move_block(device, bar, take_number(), width, 0, deadline); break;
    case 8: check(what & 0x20 ? pcifront_enable_msi(run.f, device, deadline) : pcifront_disable_msi(run.f, device, deadline)); break;
    case 9: check(pcifront_interrupt_wait(run.f, device, what >> 5, &count, deadline)); break;
    case 10: check(pcifront_reset(run.f, device, deadline)); break;
    case 11:
        for (unsigned n = (what >> 4) + 1u; n; n--) {
            memset(&request, 0, sizeof request);
            request.op = what & 0x20 ? PCISPLIT_OP_NOP : PCISPLIT_OP_BAR_READ;
            request.device = (uint16_t)device;
            request.offset = take8();
            check(pcifront_submit(run.f, &request, what & 0x40));
        }
        break;
    case 12:
        if (what & 0x80)
            pcifront_abandon(run.f);
        if (what & 0x20)
            check(pcifront_wait_answer(run.f, deadline));
        while ((error = pcifront_poll(run.f, &response)) == 1)
            MUST(!run.honest || response.error || response.op != PCISPLIT_OP_BAR_READ || response.value >= 1);
        check(error);
        break;
    case 13:
        while ((error = pcifront_event(run.f, &event)) == 1)
            ;
        check(error);
        break;
    case 14:
        MUST(pcifront_ready(run.f) >> PCISPLIT_MAX_DEVICES == 0);
        if (pcifront_sleep(run.f) == 0 && script_left)
            back_step();
        if (!(what & 0x20))
            pcifront_awake(run.f);
        break;
    default:
        run.f->spin = what >> 4;
        error = pcifront_find(run.f, what & 0x20 ? "edu0" : "other");
        MUST(error < (int)run.f->device_count);
        while (script_left && !back_step())
            ;
        break;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    memset(&run, 0, sizeof run);
    script = data;
    script_left = size;
    run.f = malloc(sizeof *run.f);
    run.f2b = aligned_alloc(PAGE, F2B_SIZE);
    run.b2f = aligned_alloc(PAGE, B2F_SIZE);
    run.dma = aligned_alloc(PAGE, DMA_SIZE);
    MUST(run.f && run.f2b && run.b2f && run.dma);
    memset(run.f2b, 0, BULK_IN_AT);
    memset(run.b2f, 0, BULK_OUT_AT);
    ((struct pcisplit_front_header *)(void *)run.f2b)->magic = PCISPLIT_F2B_MAGIC;
    back()->magic = PCISPLIT_B2F_MAGIC;
    back()->state = PCISPLIT_STATE_INIT_WAIT;
    if (meet() == 0) {
        if (script_left && !(take8() & 0x80))
            back()->state = PCISPLIT_STATE_CONNECTED; // else the script must bring it there
        check(pcifront_connect(run.f, run.now + 1000));
        while (script_left)
            call();
        pcifront_close(run.f);
    }
    free(run.info);
    free(run.dma);
    free(run.b2f);
    free(run.f2b);
    free(run.f);
    return 0;
}
