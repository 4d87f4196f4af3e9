// SPDX-License-Identifier: MIT
// The freestanding frontend against a back that is played by the hooks: what the back does between two steps of the front
// happens exactly there, and time passes when this program says so.
//   front_test CASE      exit code 0, or 1 with a line that says what went wrong

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

/* ---- the back's memory -------------------------------------------------------------------------------------------- */

static struct {
    struct pcisplit_front_header header __attribute__((aligned(4096)));
    struct pcisplit_slot requests[REQUESTS] __attribute__((aligned(64)));
    uint8_t bulk[PCISPLIT_BULK_SIZE] __attribute__((aligned(64)));
} f2b;

static struct {
    struct pcisplit_back_header header __attribute__((aligned(4096)));
    struct pcisplit_response responses[RESPONSES] __attribute__((aligned(64)));
    struct pcisplit_slot events[8];
    struct pcisplit_device_state state __attribute__((aligned(64)));
    uint8_t bulk[PCISPLIT_BULK_SIZE] __attribute__((aligned(64)));
} b2f;

static uint8_t victim[4096] __attribute__((aligned(4096))); /* memory of the front that no region is in */

struct block {
    struct pcisplit_boot_info info;
    union {
        struct pcisplit_boot_region region;
        struct pcisplit_boot_ring ring;
        struct pcisplit_boot_bulk bulk;
        struct pcisplit_boot_device device;
        struct pcisplit_boot_dma_window window;
        uint8_t octets[PCISPLIT_BOOT_RECORD_SIZE];
    } record[10];
};

static struct block block;

static void *next_record(unsigned kind)
{
    struct pcisplit_boot_region *r = (void *)&block.record[block.info.records++];
    r->kind = (uint16_t)kind;
    r->length = PCISPLIT_BOOT_RECORD_SIZE;
    block.info.length = (uint32_t)(sizeof block.info + block.info.records * sizeof block.record[0]);
    return r;
}

static void region(unsigned index, uint64_t size, int writable)
{
    struct pcisplit_boot_region *r = next_record(PCISPLIT_RECORD_REGION);
    r->index = (uint16_t)index;
    r->size = size;
    r->writable = (uint8_t)writable;
}

static void ring(unsigned index, unsigned in, uint64_t offset, uint32_t slots)
{
    struct pcisplit_boot_ring *r = next_record(PCISPLIT_RECORD_RING);
    r->index = (uint16_t)index;
    r->region = (uint16_t)in;
    r->offset = offset;
    r->slots = slots;
}

static void bulk(unsigned index, unsigned in, uint64_t offset)
{
    struct pcisplit_boot_bulk *r = next_record(PCISPLIT_RECORD_BULK);
    r->index = (uint16_t)index;
    r->region = (uint16_t)in;
    r->offset = offset;
    r->size = PCISPLIT_BULK_SIZE;
}

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
    region(PCISPLIT_REGION_F2B, sizeof f2b, 1);
    region(PCISPLIT_REGION_B2F, sizeof b2f, 0);
    ring(PCISPLIT_RING_REQUEST, PCISPLIT_REGION_F2B, (uint64_t)((char *)f2b.requests - (char *)&f2b), REQUESTS);
    ring(PCISPLIT_RING_RESPONSE, PCISPLIT_REGION_B2F, (uint64_t)((char *)b2f.responses - (char *)&b2f), RESPONSES);
    ring(PCISPLIT_RING_EVENT, PCISPLIT_REGION_B2F, (uint64_t)((char *)b2f.events - (char *)&b2f), 8);
    bulk(PCISPLIT_DIRECTION_FRONT_TO_BACK, PCISPLIT_REGION_F2B, (uint64_t)((char *)f2b.bulk - (char *)&f2b));
    bulk(PCISPLIT_DIRECTION_BACK_TO_FRONT, PCISPLIT_REGION_B2F, (uint64_t)((char *)b2f.bulk - (char *)&b2f));
    struct pcisplit_boot_device *d = next_record(PCISPLIT_RECORD_DEVICE);
    d->generation = 1;
    d->vectors = 1;
    d->state_offset = (uint64_t)((char *)&b2f.state - (char *)&b2f);
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

static void take_all(void) { b2f.header.req_cons = f2b.header.req_prod; }

static struct pcisplit_response *next_response(void)
{
    struct pcisplit_response *r = &b2f.responses[b2f.header.rsp_prod++ % RESPONSES];
    memset(r, 0, sizeof *r);
    r->generation = 1;
    return r;
}

static void answer_with_garbage(void) { next_response()->id = 0xdeadbeef; }

static void garbage_for_ever(void)
{
    answer_with_garbage();
    clock_ns += SECOND / 1000;
}

static int odd_error;
static unsigned odd_octet;

static void answer_oddly(void)
{
    take_all();
    struct pcisplit_response *r = next_response();
    r->op = PCISPLIT_OP_BAR_READ;
    r->id = f2b.header.req_prod - 1; // the front's ids, for as long as nothing is posted
    r->error = (int16_t)odd_error;
    r->value = 7;
    if (odd_octet)
        ((uint8_t *)r)[odd_octet] = 1;
}

/* ---- cases -------------------------------------------------------------------------------------------------------- */

/* The ring is full; the back takes everything between the front's look at it and its decision what to wait for. */
static void full_ring(void)
{
    connected();
    on_kick = take_all;
    for (unsigned n = 0; n < 10 * REQUESTS; n++)
        CHECK(pcifront_bar_post(&f, 0, 0, 4 * n, 4, n, 0, SECOND) == 0);
    CHECK(waits == 0);
}

/* Every entry of the table is taken by an answer that nobody has polled: no answer is owed, so none is waited for. */
static void full_table(void)
{
    struct pcisplit_request request = {.op = PCISPLIT_OP_NOP};
    struct pcisplit_response response;
    uint64_t value;

    connected();
    for (unsigned n = 0; n < PCIFRONT_PENDING; n++) {
        CHECK(pcifront_submit(&f, &request) == 0);
        take_all();
        next_response()->id = request.id;
    }
    CHECK(pcifront_bar_read(&f, 0, 0, 0, 4, &value, SECOND) == PCISPLIT_ERROR_BUSY && waits == 0);
    CHECK(pcifront_poll(&f, &response) == 1 && response.id == 0);
    pcifront_abandon(&f);
    CHECK(f.late == PCIFRONT_PENDING - 1 && pcifront_poll(&f, &response) == 0);
    CHECK(pcifront_submit(&f, &request) == 0);
    pcifront_abandon(&f);
    take_all();
    next_response()->id = request.id;
    CHECK(pcifront_poll(&f, &response) == 0 && f.late == PCIFRONT_PENDING);
}

/* A response that nobody asked for is there at each look: every call ends at its deadline all the same. */
static void strange_answers(void)
{
    struct pcisplit_request request = {.op = PCISPLIT_OP_NOP};
    uint64_t value, count;

    for (unsigned relative = 0; relative < 2; relative++) {
        on_time = 0;
        connected();
        on_kick = answer_with_garbage;
        on_time = garbage_for_ever;
        for (unsigned call = 0; call < 3; call++) {
            uint64_t start = clock_ns, deadline = relative ? PCIFRONT_WITHIN(SECOND) : clock_ns + SECOND;
            answer_with_garbage();
            if (call == 0)
                CHECK(pcifront_bar_read(&f, 0, 0, 0, 4, &value, deadline) == PCISPLIT_ERROR_TIMEOUT);
            if (call == 1)
                CHECK(pcifront_interrupt_wait(&f, 0, 0, &count, deadline) == PCISPLIT_ERROR_TIMEOUT);
            if (call == 2)
                CHECK(pcifront_submit(&f, &request) == 0 && pcifront_wait_answer(&f, deadline) == PCISPLIT_ERROR_TIMEOUT);
            CHECK(clock_ns - start >= SECOND && clock_ns - start < SECOND + SECOND / 100);
        }
        CHECK(f.strange > 1000 && waits == 0);
        describe();
        CHECK(attach(NULL, 0, 0) == 0);
        b2f.header.state = PCISPLIT_STATE_INIT_WAIT;
        uint64_t start = clock_ns;
        answer_with_garbage();
        CHECK(pcifront_connect(&f, relative ? PCIFRONT_WITHIN(SECOND) : clock_ns + SECOND) == PCISPLIT_ERROR_TIMEOUT);
        CHECK(clock_ns - start < SECOND + SECOND / 100);
    }
}

/* A deadline that counts from the first wait asks for no time before it, and is the same for all waits of the call. */
static void relative_deadline(void)
{
    uint64_t value, start;

    connected();
    start = clock_ns;
    CHECK(pcifront_bar_read(&f, 0, 0, 0, 4, &value, PCIFRONT_WITHIN(SECOND)) == PCISPLIT_ERROR_TIMEOUT);
    CHECK(clock_ns - start == SECOND && waits == 1);
    on_kick = answer_oddly;
    step_ns = 1;
    start = clock_ns;
    CHECK(pcifront_config_write(&f, 0, 0, 4, 0, PCIFRONT_WITHIN(SECOND)) == 0 && clock_ns == start);
}

/* Positive, unknown and impossible errors, and reserved octets that are not zero, come out as OP_FAILED. */
static void odd_responses(void)
{
    static const int16_t odd[] = {1, 39, 32767, -6, -31, -46, -47, -59, -63, -64, -4096, -32767, -32768};
    static const int16_t known[] = {0, -1, -5, -32, -45, -48, -58};
    uint64_t value;

    connected();
    on_kick = answer_oddly;
    for (unsigned i = 0; i < sizeof odd / sizeof *odd; i++) {
        odd_error = odd[i];
        CHECK(pcifront_bar_read(&f, 0, 0, 0, 4, &value, clock_ns + FAR) == PCISPLIT_ERROR_OP_FAILED);
        CHECK(value == UINT64_MAX && f.strange == i + 1);
    }
    for (unsigned i = 0; i < sizeof known / sizeof *known; i++) {
        odd_error = known[i];
        CHECK(pcifront_bar_read(&f, 0, 0, 0, 4, &value, clock_ns + FAR) == known[i]);
    }
    odd_error = 0;
    uint64_t before = f.strange;
    for (odd_octet = 36; odd_octet < 64; odd_octet++)
        CHECK(pcifront_bar_read(&f, 0, 0, 0, 4, &value, clock_ns + FAR) == PCISPLIT_ERROR_OP_FAILED);
    CHECK(f.strange - before == 28 && waits == 0);
}

/* The back writes an address into its block: it is nobody's pointer unless the caller vouches for it. */
static void addresses(void)
{
    for (unsigned tender = 0; tender < 2; tender++) {
        describe();
        region(PCISPLIT_REGION_DMA, sizeof victim, 1);
        block.record[block.info.records - 1].region.address = (uintptr_t)victim;
        struct pcisplit_boot_dma_window *w = next_record(PCISPLIT_RECORD_DMA_WINDOW);
        block.info.length = (uint32_t)(sizeof block.info + block.info.records * sizeof block.record[0]);
        w->region = PCISPLIT_REGION_DMA;
        w->size = sizeof victim;
        CHECK(attach(NULL, 0, tender ? PCIFRONT_TENDER_ADDRESSES : 0) == 0);
        CHECK(f.window_count == 1 && f.window[0].memory == (tender ? victim : NULL));
    }
}

/* A region that the wrong side may write is refused, in both directions. */
static void wrong_writer(void)
{
    for (unsigned at = 0; at < 3; at++) {
        describe();
        region(PCISPLIT_REGION_DMA, sizeof victim, 1);
        CHECK(attach(victim, sizeof victim, 0) == 0);
        struct pcisplit_boot_region *r = &block.record[at == 2 ? block.info.records - 1 : at].region;
        r->writable = !r->writable;
        CHECK(attach(victim, sizeof victim, 0) == PCISPLIT_ERROR_OP_FAILED);
    }
}

static const struct {
    const char *name;
    void (*run)(void);
} cases[] = {
    {"full_ring", full_ring},
    {"full_table", full_table},
    {"strange_answers", strange_answers},
    {"relative_deadline", relative_deadline},
    {"odd_responses", odd_responses},
    {"addresses", addresses},
    {"wrong_writer", wrong_writer},
};

int main(int argc, char **argv)
{
    for (unsigned i = 0; argc == 2 && i < sizeof cases / sizeof *cases; i++) {
        if (!strcmp(argv[1], cases[i].name)) {
            cases[i].run();
            return 0;
        }
    }
    return 2;
}
