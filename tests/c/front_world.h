// SPDX-License-Identifier: MIT
// A back in this program's own memory for front_test.c: its regions, the block that describes them, the hooks behind which it
// acts, and its two hands.
#ifndef FRONT_WORLD_H
#define FRONT_WORLD_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "pcifront.h"

#define CHECK(what)                                                            \
    do {                                                                       \
        if (!(what)) {                                                         \
            fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #what); \
            exit(1);                                                           \
        }                                                                      \
    } while (0)

#define SECOND 1000000000u
#define FAR (UINT64_C(1) << 40)
#define REQUESTS 64u /* slots of the request ring: small, so that posts fill it */
#define RESPONSES 256u
#define EVENTS 16u
#define BULK 65536u

/* ---- the back's memory -------------------------------------------------------------------------------------------- */

static struct {
    struct pcisplit_front_header header __attribute__((aligned(4096)));
    struct pcisplit_request requests[REQUESTS] __attribute__((aligned(64)));
    uint8_t bulk[BULK] __attribute__((aligned(64)));
} f2b;

static struct {
    struct pcisplit_back_header header __attribute__((aligned(4096)));
    struct pcisplit_response responses[RESPONSES] __attribute__((aligned(64)));
    struct pcisplit_slot events[EVENTS];
    struct pcisplit_device_state state __attribute__((aligned(64)));
    uint64_t counter, total, pending, masks; /* of its one vector */
    uint8_t bulk[BULK] __attribute__((aligned(64)));
} b2f;

static uint8_t victim[4096] __attribute__((aligned(4096))); /* memory of the front that no region is in */

static struct {
    struct pcisplit_boot_info info;
    uint8_t records[2048];
} block __attribute__((aligned(8)));

#define NEXT_RECORD(kind, what) next_record(kind, sizeof(struct pcisplit_boot_##what))

static void *next_record(unsigned kind, size_t length)
{
    struct pcisplit_boot_region *r = (void *)((uint8_t *)&block + block.info.length); /* what all kinds begin with */
    block.info.length += (uint32_t)length;
    block.info.records++;
    CHECK(block.info.length <= sizeof block);
    r->kind = (uint16_t)kind;
    r->length = (uint16_t)length;
    return r;
}

static struct pcisplit_boot_region *region(unsigned index, uint64_t size, int writable)
{
    struct pcisplit_boot_region *r = NEXT_RECORD(PCISPLIT_RECORD_REGION, region);
    r->index = (uint16_t)index;
    r->size = size;
    r->writable = (uint16_t)writable;
    return r;
}

static void ring(unsigned index, unsigned in, uint64_t offset, uint32_t slots)
{
    struct pcisplit_boot_ring *r = NEXT_RECORD(PCISPLIT_RECORD_RING, ring);
    r->index = (uint16_t)index;
    r->region = (uint16_t)in;
    r->offset = offset;
    r->slots = slots;
}

static void bulk(unsigned index, unsigned in, uint64_t offset)
{
    struct pcisplit_boot_bulk *r = NEXT_RECORD(PCISPLIT_RECORD_BULK, bulk);
    r->index = (uint16_t)index;
    r->region = (uint16_t)in;
    r->offset = offset;
    r->size = BULK;
}

static struct pcisplit_boot_region *f2b_record, *b2f_record;

static void describe(void)
{
    memset(&block, 0, sizeof block);
    memset(&f2b, 0, sizeof f2b);
    memset(&b2f, 0, sizeof b2f);
    f2b.header.magic = PCISPLIT_F2B_MAGIC;
    b2f.header.magic = PCISPLIT_B2F_MAGIC;
    b2f.header.state = PCISPLIT_STATE_CONNECTED;
    block.info.magic = PCISPLIT_BOOT_MAGIC;
    block.info.major = PCISPLIT_MAJOR;
    block.info.length = sizeof block.info;
    block.info.features = PCISPLIT_BUILT;
    f2b_record = region(PCISPLIT_REGION_F2B, sizeof f2b, 1);
    b2f_record = region(PCISPLIT_REGION_B2F, sizeof b2f, 0);
    ring(PCISPLIT_RING_REQUEST, PCISPLIT_REGION_F2B, (uint64_t)((char *)f2b.requests - (char *)&f2b), REQUESTS);
    ring(PCISPLIT_RING_RESPONSE, PCISPLIT_REGION_B2F, (uint64_t)((char *)b2f.responses - (char *)&b2f), RESPONSES);
    ring(PCISPLIT_RING_EVENT, PCISPLIT_REGION_B2F, (uint64_t)((char *)b2f.events - (char *)&b2f), EVENTS);
    bulk(PCISPLIT_DIRECTION_FRONT_TO_BACK, PCISPLIT_REGION_F2B, (uint64_t)((char *)f2b.bulk - (char *)&f2b));
    bulk(PCISPLIT_DIRECTION_BACK_TO_FRONT, PCISPLIT_REGION_B2F, (uint64_t)((char *)b2f.bulk - (char *)&b2f));
    struct pcisplit_boot_device *d = NEXT_RECORD(PCISPLIT_RECORD_DEVICE, device);
    d->generation = 1;
    d->state_offset = (uint32_t)((char *)&b2f.state - (char *)&b2f);
    struct pcisplit_boot_vectors *v = NEXT_RECORD(PCISPLIT_RECORD_VECTORS, vectors);
    v->type = PCISPLIT_VECTOR_MSI;
    v->count = 1;
    v->counters = (uint64_t)((char *)&b2f.counter - (char *)&b2f);
    v->totals = (uint64_t)((char *)&b2f.total - (char *)&b2f);
    v->pending = (uint64_t)((char *)&b2f.pending - (char *)&b2f);
    v->masks = (uint64_t)((char *)&b2f.masks - (char *)&b2f);
}

/* ---- the hooks: `on_kick` and `on_time` are what the back does there ---------------------------------------------- */

static struct pcifront f;
static uint64_t clock_ns, step_ns;
static unsigned waits;
static void (*on_kick)(void), (*on_time)(void);

static void kick(void *context)
{
    (void)context;
    if (on_kick)
        on_kick();
}

static int wait(void *context, uint64_t deadline) /* nothing rings while we sleep: what had to be seen was seen before */
{
    (void)context;
    CHECK(f2b.header.sleeping && f2b.header.req_prod == f.requests.filled); // who sleeps has told everything [RING-15]
    CHECK(f2b.header.rsp_cons == f.responses.taken && !f.pack_count);
    waits++;
    CHECK(waits < 1000 && deadline != PCIFRONT_FOREVER);
    clock_ns = deadline > clock_ns ? deadline : clock_ns;
    return PCISPLIT_ERROR_TIMEOUT;
}

static uint64_t now(void *context)
{
    (void)context;
    if (on_time)
        on_time();
    return clock_ns += step_ns;
}

static const struct pcifront_hooks hooks = {NULL, kick, wait, now, NULL};

static int attach(void *dma, uint64_t dma_size, unsigned flags)
{
    void *const regions[3] = {&f2b, &b2f, dma};
    const uint64_t sizes[3] = {sizeof f2b, sizeof b2f, dma_size};
    return pcifront_attach(&f, &block, block.info.length, regions, sizes, &hooks, flags);
}

static void connected(void)
{
    describe();
    CHECK(attach(NULL, 0, 0) == 0 && pcifront_connect(&f, SECOND) == 0);
    b2f.header.sleeping = 1;
    waits = 0;
}

/* ---- what the back does ------------------------------------------------------------------------------------------- */

static struct pcisplit_request *next_request(void) { return &f2b.requests[b2f.header.req_cons % REQUESTS]; }

static struct pcisplit_request last; /* that was taken */

static void take_all(void) /* announced or not */
{
    for (; next_request()->sequence == b2f.header.req_cons + 1; b2f.header.req_cons++)
        last = *next_request();
}

static struct pcisplit_response *next_response(void)
{
    struct pcisplit_response *r = &b2f.responses[b2f.header.rsp_prod++ % RESPONSES];
    memset(r, 0, sizeof *r);
    r->generation = 1;
    r->sequence = b2f.header.rsp_prod;
    return r;
}

#endif
