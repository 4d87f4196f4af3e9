// SPDX-License-Identifier: MIT
// The back's serve loop without a front: one thread fills rings that begin near 2^32, runs turns and looks at what came.

#include "serve.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>

#define SLOTS 16
#define START 0xfffffff8u // indices wrap within the first ring full
#define PAGE PCISPLIT_PAGE_SIZE
#define MEMORY 4096

#define CHECK(truth)                                                                                              \
    do {                                                                                                          \
        if (!(truth)) {                                                                                           \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #truth);                                           \
            exit(1);                                                                                              \
        }                                                                                                         \
    } while (0)

static uint8_t *f2b, *b2f, *memory;
static struct pcs_serve *s;
static struct pcs_device *device;
static struct pcisplit_front_header *front;
static struct pcisplit_producer requests;  // the front's
static struct pcisplit_consumer responses;

static void *shared(size_t size)
{
    void *at = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(at != MAP_FAILED);
    return at;
}

static void start_at(uint32_t count)
{
    front->req_prod = front->rsp_cons = front->evt_cons = count;
    s->back->req_cons = s->back->rsp_prod = s->back->evt_prod = count;
    s->requests.taken = s->requests.given = requests.filled = requests.announced = requests.cons_seen = count;
    responses.taken = responses.given = s->responses.filled = s->responses.announced = s->responses.cons_seen = count;
    s->events.filled = s->events.announced = s->events.cons_seen = count;
}

static void open_back(void)
{
    struct pcs_places places = {.requests = PAGE, .request_slots = SLOTS, .responses = PAGE, .response_slots = SLOTS,
                                .events = 2 * PAGE, .event_slots = SLOTS, .bulk_in = 2 * PAGE, .bulk_out = 4 * PAGE};
    struct pcs_run run = {0};
    int bell[2];

    f2b = shared(8 * PAGE);
    b2f = shared(8 * PAGE);
    memory = shared(MEMORY);
    CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, bell) == 0);
    s = pcs_serve_new(f2b, b2f, &places, eventfd(0, EFD_NONBLOCK), bell[0]);
    device = pcs_device_new();
    CHECK(s && device);
    s->features = PCISPLIT_BUILT;
    device->config.size = 256;
    device->config.value[4] = 2; // decode on
    device->bar[0].size = MEMORY;
    struct pcs_area area = {.end = MEMORY, .kind = PCS_AREA_MAPPED, .widths = 15, .base = memory, .fd = -1};
    CHECK(pcs_device_add_area(device, 0, &area) == 0);
    CHECK(pcs_serve_add(s, device, 3 * PAGE, &run) == 0);
    device->state->state = PCISPLIT_DEVICE_ACQUIRED;
    device->state->generation = 1;
    pcs_serve_set_state(s, PCISPLIT_STATE_CONNECTED);
    front = (struct pcisplit_front_header *)(void *)f2b;
    pcisplit_producer_init(&requests, f2b + PAGE, &front->req_prod, &s->back->req_cons, SLOTS);
    pcisplit_consumer_init(&responses, b2f + PAGE, &s->back->rsp_prod, &front->rsp_cons, SLOTS);
    start_at(START);
}

// A turn: the loop comes back after it, because the front's state word is another.
static int turn(void)
{
    front->state++;
    return pcs_serve_run(s);
}

static void submit(const union pcs_slot *slot)
{
    CHECK(pcisplit_space(&requests, 1) > 0);
    pcisplit_fill(&requests, &slot->raw);
}

static int receive(union pcs_slot *slot)
{
    int came = pcisplit_take(&responses, &slot->raw);
    if (pcisplit_held(&responses))
        pcisplit_give_back(&responses);
    return came;
}

static union pcs_slot request_of(unsigned op, uint32_t id, uint64_t offset, uint64_t value)
{
    union pcs_slot slot = {.request = {.op = (uint16_t)op, .id = id, .width = 4, .generation = 1, .offset = offset,
                                       .value = value}};
    return slot;
}

static union pcs_slot pack(unsigned op, uint32_t id, uint32_t count)
{
    union pcs_slot slot = {.reads = {.op = (uint16_t)op, .id = id, .width = 4, .generation = 1, .count = count}};
    slot.request.flags = op == PCISPLIT_OP_BAR_WRITES ? PCISPLIT_FLAG_POSTED : 0;
    return slot;
}

// Every kind of access while all indices pass 2^32; nothing is announced, the sequences tell.
static void wrap(void)
{
    union pcs_slot slot;

    for (uint32_t n = 0; n < 10 * SLOTS; n++) {
        slot = request_of(PCISPLIT_OP_BAR_WRITE, n, 4 * (n % 64), n);
        submit(&slot);
        slot = pack(PCISPLIT_OP_BAR_WRITES, 0, 2);
        slot.writes.element[0] = 2048, slot.writes.element[1] = n;
        slot.writes.element[2] = 2052, slot.writes.element[3] = ~n;
        submit(&slot);
        slot = pack(PCISPLIT_OP_BAR_READS, n, 3);
        slot.reads.element[0] = 4 * (n % 64), slot.reads.element[1] = 2048, slot.reads.element[2] = 2052;
        submit(&slot);
        CHECK(turn() == PCS_RUN_FRONT_STATE);
        CHECK(receive(&slot) && slot.response.op == PCISPLIT_OP_BAR_WRITE && slot.response.id == n && !slot.response.error);
        CHECK(receive(&slot) && slot.response.op == PCISPLIT_OP_BAR_READS && slot.response.id == n && !slot.response.error);
        struct pcisplit_response_values *values = (void *)&slot;
        CHECK(values->done == 3 && values->values[0] == n && values->values[1] == n && values->values[2] == ~n);
        CHECK(values->values[3] == 0);
        CHECK(!receive(&slot));
        CHECK(s->back->req_cons == requests.filled && s->back->rsp_prod == s->responses.filled);
    }
    CHECK(requests.filled < START && s->responses.filled < START);
    CHECK(device->state->posted_errors == 0);
}

// Counts that no pack has. Nothing of it is made.
static void counts(void)
{
    static const uint32_t bad[] = {0, 6, 10, 11, 0x10000, 0xffffffff};
    union pcs_slot slot;

    memset(memory, 0, MEMORY);
    for (unsigned i = 0; i < sizeof bad / sizeof *bad; i++) {
        uint64_t before = device->state->posted_errors;
        slot = pack(PCISPLIT_OP_BAR_WRITES, 0, bad[i]);
        slot.writes.element[0] = 8, slot.writes.element[1] = 1;
        submit(&slot);
        slot = pack(PCISPLIT_OP_BAR_READS, i, bad[i]);
        submit(&slot);
        turn();
        CHECK(device->state->posted_errors == before + 1);
        CHECK(device->state->posted_error == PCISPLIT_ERROR_BAD_SIZE && device->state->posted_offset == 8);
        CHECK(receive(&slot) && slot.response.error == (bad[i] == 6 || bad[i] == 10 ? 0 : PCISPLIT_ERROR_BAD_SIZE));
        CHECK(!receive(&slot));
    }
    for (unsigned i = 0; i < MEMORY; i++)
        CHECK(memory[i] == 0);
}

// What lies behind the last element is nobody's [BAR-41], and errors are in the order of ERR-2.
static void elements(void)
{
    union pcs_slot slot = pack(PCISPLIT_OP_BAR_WRITES, 0, 1);
    memset(slot.writes.element, 0xff, sizeof slot.writes.element);
    slot.writes.element[0] = 12, slot.writes.element[1] = 7;
    uint64_t before = device->state->posted_errors;
    submit(&slot);
    slot = pack(PCISPLIT_OP_BAR_WRITES, 0, 5);
    slot.request.width = 2;
    const uint32_t element[10] = {1, 0x10000, MEMORY, 0x10000, 16, 0x10000, 18, 5, 0xfffffffe, 1};
    memcpy(slot.writes.element, element, sizeof element);
    submit(&slot);
    turn();
    CHECK(memory[12] == 7 && memory[18] == 5 && memory[16] == 0);
    CHECK(device->state->posted_errors == before + 4);
    CHECK(device->state->posted_error == PCISPLIT_ERROR_INVALID_OFFSET && device->state->posted_offset == 0xfffffffe);
    slot = pack(PCISPLIT_OP_BAR_WRITES, 0, 1);
    slot.request.width = 2;
    slot.writes.element[0] = MEMORY, slot.writes.element[1] = 0x10000; // range before value
    submit(&slot);
    turn();
    CHECK(device->state->posted_error == PCISPLIT_ERROR_INVALID_OFFSET && device->state->posted_offset == MEMORY);
    slot = pack(PCISPLIT_OP_BAR_WRITES, 1, 1); // an id that nobody answers
    submit(&slot);
    slot = pack(PCISPLIT_OP_BAR_WRITES, 0, 1);
    slot.request.flags = 0; // not posted: answered
    submit(&slot);
    slot = pack(PCISPLIT_OP_BAR_WRITES, 0, 3);
    slot.request.generation = 2; // as a whole: three writes that failed
    submit(&slot);
    before = device->state->posted_errors;
    turn();
    CHECK(device->state->posted_errors == before + 4 && device->state->posted_error == PCISPLIT_ERROR_STALE);
    CHECK(receive(&slot) && slot.response.error == PCISPLIT_ERROR_BAD_REQUEST && !receive(&slot));
}

// Elements count singly against a turn of 64 [BAR-44]: of many packs of ten a turn makes seven.
static void turns(void)
{
    union pcs_slot slot;

    for (unsigned i = 0; i < 10; i++) {
        slot = pack(PCISPLIT_OP_BAR_READS, i, 10);
        submit(&slot);
    }
    turn();
    for (unsigned i = 0; i < 7; i++)
        CHECK(receive(&slot) && slot.response.id == i);
    CHECK(!receive(&slot));
    turn();
    for (unsigned i = 7; i < 10; i++)
        CHECK(receive(&slot) && slot.response.id == i);
    CHECK(!receive(&slot));
}

// No more is taken than there are free slots for answers; posted ones need none, but wait their turn in the ring.
static void no_room(void)
{
    union pcs_slot slot;

    for (unsigned i = 0; i < SLOTS; i++) {
        slot = request_of(PCISPLIT_OP_BAR_READ, i, 0, 0);
        submit(&slot);
    }
    turn();
    CHECK(s->back->req_cons == requests.filled);
    slot = request_of(PCISPLIT_OP_BAR_READ, SLOTS, 0, 0);
    submit(&slot);
    turn();
    CHECK(s->back->req_cons == requests.filled - 1);
    for (unsigned i = 0; i < SLOTS; i++)
        CHECK(receive(&slot) && slot.response.id == i);
    turn();
    CHECK(receive(&slot) && slot.response.id == SLOTS);
}

// Another sequence than the next is "not yet", whatever it is [RING-16].
static void strange_sequences(void)
{
    static const uint32_t steps[] = {0, 2, SLOTS + 1, 0xffffffff, 0x80000000};
    union pcs_slot slot = request_of(PCISPLIT_OP_NOP, 1, 0, 0);
    slot.request.width = 0;

    for (unsigned i = 0; i < sizeof steps / sizeof *steps; i++) {
        volatile uint64_t *next = pcisplit_next(&requests);
        for (unsigned n = 0; n < 7; n++)
            next[n] = slot.raw.word[n];
        next[7] = (uint64_t)(requests.filled + steps[i]) << 32;
        uint64_t before = s->back->requests;
        turn();
        CHECK(s->back->requests == before && !s->reason);
    }
    submit(&slot);
    turn();
    CHECK(receive(&slot) && slot.response.id == 1);
}

// Announced, but not there: found on the way to sleep, and the end [RING-3].
static void announced_without_a_slot(void)
{
    front->state = s->front_state; // so that it goes to sleep
    front->req_prod = requests.filled + 1;
    CHECK(pcs_serve_run(s) == PCS_RUN_ENDED && s->reason == PCISPLIT_ERROR_RING_OVERRUN);
}

int main(void)
{
    open_back();
    wrap();
    counts();
    elements();
    turns();
    no_room();
    strange_sequences();
    announced_without_a_slot();
    pcs_device_free(device);
    pcs_serve_free(s);
    puts("ok");
    return 0;
}
