// SPDX-License-Identifier: MIT
// The freestanding frontend against a back that is played by the hooks: what the back does between two steps of the front
// happens exactly there, and time passes when this program says so.
//   front_test CASE      exit code 0, or 1 with a line that says what went wrong

#include "front_world.h"

static void answer_with_garbage(void) { next_response()->id = 0xdeadbeef; }

static unsigned kicks;

static void kicked(void) { kicks++; }

static void garbage_for_ever(void)
{
    answer_with_garbage();
    clock_ns += SECOND / 1000;
}

static void answer_nop(void)
{
    take_all();
    struct pcisplit_response *r = next_response();
    r->op = PCISPLIT_OP_NOP;
    r->id = last.id;
}

static int odd_error;
static unsigned odd_octet;

static void answer_oddly(void)
{
    uint32_t taken = b2f.header.req_cons;

    take_all();
    if (taken == b2f.header.req_cons)
        return; // slots were given back
    struct pcisplit_response *r = next_response();
    r->op = last.op;
    r->id = last.id;
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
    b2f.header.sleeping = 0; // nothing is taken before the ring is full
    on_time = take_all;
    for (unsigned n = 0; n < 10 * REQUESTS; n++)
        CHECK(pcifront_bar_post(&f, 0, 0, 8 * n, 8, n, 0, PCIFRONT_WITHIN(SECOND)) == 0); // too wide for a pack
    CHECK(waits == 0 && b2f.header.req_cons == 9 * REQUESTS);
}

/* Every entry of the table is taken by an answer that nobody has polled: no answer is owed, so none is waited for. */
static void full_table(void)
{
    struct pcisplit_request request = {.op = PCISPLIT_OP_NOP};
    struct pcisplit_response response;
    uint64_t value;
    uint32_t first = 0;

    connected();
    for (unsigned n = 0; n < PCIFRONT_PENDING; n++) {
        CHECK(pcifront_submit(&f, &request, 0) == 0);
        first = n ? first : request.id;
        answer_nop();
    }
    CHECK(pcifront_bar_read(&f, 0, 0, 0, 4, &value, SECOND) == PCISPLIT_ERROR_BUSY && waits == 0);
    CHECK(pcifront_poll(&f, &response) == 1 && response.id == first);
    pcifront_abandon(&f);
    CHECK(f.late == PCIFRONT_PENDING - 1 && pcifront_poll(&f, &response) == 0);
    CHECK(pcifront_submit(&f, &request, 0) == 0);
    pcifront_abandon(&f);
    answer_nop();
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
                CHECK(pcifront_submit(&f, &request, 0) == 0 && pcifront_wait_answer(&f, deadline) == PCISPLIT_ERROR_TIMEOUT);
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
    for (odd_octet = 36; odd_octet < 60; odd_octet++)
        CHECK(pcifront_bar_read(&f, 0, 0, 0, 4, &value, clock_ns + FAR) == PCISPLIT_ERROR_OP_FAILED);
    for (odd_octet = 1; odd_octet < 9; odd_octet += 7) // of another operation, of another device
        CHECK(pcifront_bar_read(&f, 0, 0, 0, 4, &value, clock_ns + FAR) == PCISPLIT_ERROR_OP_FAILED);
    CHECK(f.strange - before == 26 && waits == 0);
}

/* The back writes an address into its block: it is nobody's pointer unless the caller vouches for it. */
static void addresses(void)
{
    for (unsigned tender = 0; tender < 2; tender++) {
        describe();
        region(PCISPLIT_REGION_DMA, sizeof victim, 1)->address = (uintptr_t)victim;
        struct pcisplit_boot_dma_window *w = NEXT_RECORD(PCISPLIT_RECORD_DMA_WINDOW, dma_window);
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
        struct pcisplit_boot_region *dma = region(PCISPLIT_REGION_DMA, sizeof victim, 1);
        CHECK(attach(victim, sizeof victim, 0) == 0);
        struct pcisplit_boot_region *r = at == 0 ? f2b_record : at == 1 ? b2f_record : dma;
        r->writable = !r->writable;
        CHECK(attach(victim, sizeof victim, 0) == PCISPLIT_ERROR_OP_FAILED);
    }
}

static int announced(void) { return f2b.header.req_prod == f.requests.filled; }

/* With `more`, the back is told by the 16th look that finds nothing, by the 64th request, before the front sleeps, and at once
 * if it sleeps; without, before the call returns. */
static void announcements(void)
{
    struct pcisplit_request request = {.op = PCISPLIT_OP_NOP};
    struct pcisplit_response response;

    connected();
    b2f.header.sleeping = 0;
    on_kick = kicked;
    CHECK(pcifront_submit(&f, &request, 1) == 0 && !announced());
    CHECK(f2b.requests[0].sequence == 1 && f2b.header.req_prod == 0); // published all the same
    for (unsigned polls = 0; polls < PCISPLIT_ANNOUNCE_POLLS; polls++) {
        CHECK(!announced());
        CHECK(pcifront_poll(&f, &response) == 0);
    }
    CHECK(announced());
    CHECK(pcifront_submit(&f, &request, 0) == 0 && announced() && kicks == 0);
    take_all();
    for (unsigned n = 1; n < PCISPLIT_ANNOUNCE_OPS; n++)
        CHECK(pcifront_submit(&f, &request, 1) == 0 && !announced());
    CHECK(pcifront_submit(&f, &request, 1) == 0 && announced() && kicks == 0);
    take_all();
    CHECK(pcifront_submit(&f, &request, 1) == 0 && !announced());
    CHECK(pcifront_sleep(&f) == 0 && announced() && f2b.header.sleeping);
    pcifront_awake(&f);
    CHECK(pcifront_submit(&f, &request, 1) == 0 && !announced());
    CHECK(pcifront_wait_answer(&f, PCIFRONT_WITHIN(SECOND)) == PCISPLIT_ERROR_TIMEOUT && waits == 1); // wait() looks
    b2f.header.sleeping = 1;
    CHECK(pcifront_submit(&f, &request, 1) == 0 && announced() && kicks == 1);
    CHECK(pcifront_bar_post(&f, 0, 0, 0, 4, 0, 0, 0) == 0 && f.pack_count == 1 && kicks == 1);
    pcifront_publish(&f);
    CHECK(announced() && kicks == 2);
}

/* Answers taken are given back when an eighth of the ring is due, and by the 16th empty look. */
static void slots_given_back(void)
{
    struct pcisplit_request request = {.op = PCISPLIT_OP_NOP};
    struct pcisplit_response response;

    connected();
    b2f.header.sleeping = 0;
    for (unsigned n = 1; n <= RESPONSES / 8 + 1; n++) {
        CHECK(pcifront_submit(&f, &request, 0) == 0);
        answer_nop();
        CHECK(pcifront_poll(&f, &response) == 1);
        CHECK(f2b.header.rsp_cons == (n < RESPONSES / 8 ? 0 : RESPONSES / 8));
    }
    for (unsigned polls = 1; polls < PCISPLIT_ANNOUNCE_POLLS; polls++) // the first was in the last call
        CHECK(f2b.header.rsp_cons == RESPONSES / 8 && pcifront_poll(&f, &response) == 0);
    CHECK(f2b.header.rsp_cons == RESPONSES / 8 + 1);
}

static const struct pcisplit_request_writes *pack(unsigned index) { return (const void *)&f2b.requests[index]; }

/* Posts wait for others to travel with them, are never seen before their pack is, and go in order: whatever else is entered
 * closes the pack first. */
static void packs(void)
{
    struct pcisplit_request request = {.op = PCISPLIT_OP_NOP};

    connected();
    b2f.header.sleeping = 0;
    for (uint32_t n = 0; n < PCISPLIT_PACK_WRITES + 2; n++) {
        CHECK(f.requests.filled == n / PCISPLIT_PACK_WRITES);
        CHECK(pcifront_bar_post(&f, 0, 2, 4 * n, 2, 0x1000 + n, 0, 0) == 0);
    }
    CHECK(f2b.requests[1].sequence == 0 && !pack(0)->id && pack(0)->flags == PCISPLIT_FLAG_POSTED);
    CHECK(pack(0)->op == PCISPLIT_OP_BAR_WRITES && pack(0)->region == 2 && pack(0)->width == 2 && pack(0)->generation == 1);
    CHECK(pack(0)->count == PCISPLIT_PACK_WRITES && pack(0)->sequence == 1);
    for (uint32_t n = 0; n < PCISPLIT_PACK_WRITES; n++)
        CHECK(pack(0)->element[2 * n] == 4 * n && pack(0)->element[2 * n + 1] == 0x1000 + n);
    CHECK(pcifront_submit(&f, &request, 1) == 0); // another operation
    CHECK(pack(1)->count == 2 && pack(1)->sequence == 2 && f2b.requests[2].op == PCISPLIT_OP_NOP);
    static const struct {
        uint64_t offset, value;
        unsigned bar, width, alone;
    } post[] = {
        {0, 1, 0, 4, 0},         {0, 1, 1, 4, 0}, // another BAR
        {0, 1, 1, 1, 0},         {0, 256, 1, 1, 1}, // a value too wide: the back says so
        {0, 1, 1, 8, 1},         {UINT64_C(1) << 32, 1, 1, 4, 1},
    };
    uint32_t first = f.requests.filled;
    for (unsigned i = 0; i < sizeof post / sizeof *post; i++) {
        CHECK(pcifront_bar_post(&f, 0, post[i].bar, post[i].offset, post[i].width, post[i].value, 0, 0) == 0);
        CHECK(f.pack_count == !post[i].alone && f.requests.filled == first + i + post[i].alone);
    }
    CHECK(pcifront_bar_post(&f, 0, 1, 0, 4, 1, 1, 0) == 0 && announced() && f.requests.filled == first + 7);
    for (unsigned i = 0; i < sizeof post / sizeof *post; i++)
        CHECK(f2b.requests[first + i].op == (post[i].alone ? PCISPLIT_OP_BAR_WRITE : PCISPLIT_OP_BAR_WRITES));
}

static unsigned lie; /* values that are said to have been read */

static void answer_reads(void)
{
    uint32_t taken = b2f.header.req_cons;

    take_all();
    if (taken == b2f.header.req_cons)
        return;
    struct pcisplit_response_values *r = (void *)next_response();
    CHECK(last.op == PCISPLIT_OP_BAR_READS);
    r->op = last.op;
    r->id = last.id;
    r->error = (int16_t)odd_error;
    r->done = lie;
    for (unsigned i = 0; i < PCISPLIT_PACK_READS; i++)
        r->values[i] = 100 + i;
}

/* Fewer values than asked for are an error, whatever the back calls it; more are not looked at. */
static void packed_reads(void)
{
    static const uint32_t offset[4] = {0, 4, 8, 12};
    uint64_t value[5];
    unsigned done;

    connected();
    on_kick = answer_reads;
    for (lie = 0; lie < PCISPLIT_PACK_READS + 2; lie++) {
        memset(value, 0xff, sizeof value);
        int error = pcifront_read_many(&f, 0, 0, 4, offset, value, 4, &done, clock_ns + FAR);
        CHECK(error == (lie < 4 || lie > PCISPLIT_PACK_READS ? PCISPLIT_ERROR_OP_FAILED : 0));
        CHECK(done == (lie > PCISPLIT_PACK_READS ? 0 : lie < 4 ? lie : 4));
        for (unsigned i = 0; i < 5; i++)
            CHECK(value[i] == (i < done ? 100 + i : UINT64_MAX));
    }
    odd_error = PCISPLIT_ERROR_DENIED;
    for (lie = 0; lie < 4; lie++)
        CHECK(pcifront_read_many(&f, 0, 0, 4, offset, value, 4, &done, clock_ns + FAR) == odd_error && done == lie);
    CHECK(waits == 0);
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
    {"announcements", announcements},
    {"slots_given_back", slots_given_back},
    {"packs", packs},
    {"packed_reads", packed_reads},
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
