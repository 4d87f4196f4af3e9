// SPDX-License-Identifier: MIT
// The rows that are C on the front's side: a shared library around the project's own frontend sources. Python does the
// meeting and hands over the descriptors; from rows_open() to rows_close() no Python runs in what is timed.

#include "timing.h"

#include "pcifront_host.h"

#include <sys/mman.h>

#define BAR 0
#define TRAPPED 2 /* the BAR whose registers are the owner's; octets 0 to 2047 may be read */
#define SCRATCH 0 /* a register in it that keeps what is written */
#define TRAPPED_BLOCK 2048 /* octets of a flooding block: 2048 calls of the model in Python */
#define STEP 64 /* octets between the registers that are touched: lines that differ, as registers do */
#define REGISTERS 64
#define BATCH 64 /* posted writes before the closing read */
#define FLIGHT 16 /* reads in flight, or packed */
#define DEADLINE 20000000000u /* ns; of a whole pass */
#define MOST 1000000 /* single operations of rows_run_for() */

struct rows {
    struct pcsf *host;
    struct pcifront *front;
    void *memory[2];
    uint64_t size[2];
    uint64_t deadline;
    unsigned publish_every; /* posted writes; more than BATCH: they are packed, and the read publishes them */
    unsigned in_flight;
};

static uint64_t register_of(uint64_t turn)
{
    return turn % REGISTERS * STEP;
}

// What register `register_of(turn)` holds, written by rows_open().
static uint32_t value_of(uint64_t turn)
{
    return 0xa5000000u | (uint32_t)(turn % REGISTERS);
}

// ---- the rows: one operation each; nonzero is a pcisplit error, or 1 for a wrong value ------------------------------------

static int bar_read(void *context, uint64_t turn)
{
    struct rows *r = context;
    uint64_t value;
    int error = pcifront_bar_read(r->front, 0, BAR, register_of(turn), 4, &value, r->deadline);
    return error ? error : value != value_of(turn);
}

static int config_read(void *context, uint64_t turn)
{
    struct rows *r = context;
    uint32_t value;
    (void)turn;
    int error = pcifront_config_read(r->front, 0, 0, 2, &value, r->deadline);
    return error ? error : value != r->front->device[0].vendor;
}

static int bar_write(void *context, uint64_t turn)
{
    struct rows *r = context;
    return pcifront_bar_write(r->front, 0, BAR, register_of(turn), 4, value_of(turn), r->deadline);
}

// BATCH posted writes, then the read whose answer says that they have reached the device.
static int posted_batch(void *context, uint64_t turn)
{
    struct rows *r = context;
    uint64_t value;
    int error = 0;

    for (unsigned i = 1; i <= BATCH && !error; i++)
        error = pcifront_bar_post(r->front, 0, BAR, register_of(i - 1), 4, value_of(i - 1) ^ (turn & 1) << 16,
                                  i % r->publish_every == 0, r->deadline);
    if (!error)
        error = pcifront_bar_read(r->front, 0, BAR, register_of(BATCH - 1), 4, &value, r->deadline);
    return error ? error : value != (value_of(BATCH - 1) ^ (turn & 1) << 16);
}

// More is to come: the wait for its answer, which announces it if that takes long.
static int submit_read(struct rows *r, uint64_t turn)
{
    struct pcisplit_request request = {.op = PCISPLIT_OP_BAR_READ, .region = BAR, .width = 4,
                                       .offset = register_of(turn)};
    int error = pcifront_submit(r->front, &request, 1);
    r->in_flight += error == 0;
    return error;
}

static int take_answers(struct rows *r)
{
    struct pcisplit_response response;
    int came = pcifront_wait_answer(r->front, r->deadline);
    while (came >= 0 && (came = pcifront_poll(r->front, &response)) == 1) {
        if (response.error || (response.value & 0xffffff00u) != 0xa5000000u)
            return response.error ? response.error : 1;
        r->in_flight--;
    }
    return came;
}

// FLIGHT reads submitted, then all their answers.
static int flight(void *context, uint64_t turn)
{
    struct rows *r = context;
    int error = 0;
    for (unsigned i = 0; i < FLIGHT && !error; i++)
        error = submit_read(r, turn + i);
    while (r->in_flight && !error)
        error = take_answers(r);
    return error;
}

// FLIGHT reads kept in flight: as many new ones as answers came. Counts as FLIGHT operations.
static int window(void *context, uint64_t turn)
{
    struct rows *r = context;
    int error = 0;
    for (unsigned sent = 0; sent < FLIGHT && !error;) {
        while (r->in_flight < FLIGHT && sent < FLIGHT && !error) {
            error = submit_read(r, turn + sent);
            sent++;
        }
        if (!error)
            error = take_answers(r);
    }
    return error;
}

// FLIGHT reads in one call, as many to a slot as fit.
static int packed_reads(void *context, uint64_t turn)
{
    struct rows *r = context;
    uint32_t offset[FLIGHT];
    uint64_t value[FLIGHT];
    unsigned done;
    for (unsigned i = 0; i < FLIGHT; i++)
        offset[i] = (uint32_t)register_of(turn + i);
    int error = pcifront_read_many(r->front, 0, BAR, 4, offset, value, FLIGHT, &done, r->deadline);
    for (unsigned i = 0; i < FLIGHT && !error; i++)
        error = value[i] != value_of(turn + i);
    return error;
}

// As posted_batch, the writes in one call, which publishes them.
static int posted_many(void *context, uint64_t turn)
{
    struct rows *r = context;
    uint32_t offset[BATCH];
    uint64_t value[BATCH], last;
    for (unsigned i = 0; i < BATCH; i++) {
        offset[i] = (uint32_t)register_of(i);
        value[i] = value_of(i) ^ (turn & 1) << 16;
    }
    int error = pcifront_post_many(r->front, 0, BAR, 4, offset, value, BATCH, r->deadline);
    if (!error)
        error = pcifront_bar_read(r->front, 0, BAR, offset[BATCH - 1], 4, &last, r->deadline);
    return error ? error : last != value[BATCH - 1];
}

static int owner_read(void *context, uint64_t turn)
{
    struct rows *r = context;
    uint64_t value;
    (void)turn;
    int error = pcifront_bar_read(r->front, 0, TRAPPED, SCRATCH, 4, &value, r->deadline);
    return error ? error : value != value_of(0);
}

static const struct {
    timed operation;
    unsigned parts, publish_every;
} rows[] = {
    {bar_read, 1, 0},
    {config_read, 1, 0},
    {bar_write, 1, 0},
    {posted_batch, BATCH, BATCH + 1},
    {posted_many, BATCH, 0},
    {posted_batch, BATCH, 1},
    {flight, FLIGHT, 0},
    {window, FLIGHT, 0},
    {packed_reads, FLIGHT, 0},
    {owner_read, 1, 0},
};

// ---- for Python -----------------------------------------------------------------------------------------------------------

void rows_close(struct rows *r)
{
    if (r->host) {
        pcsf_close(r->host);
        pcsf_free(r->host);
    }
    for (int i = 0; i < 2; i++)
        if (r->memory[i] != MAP_FAILED)
            munmap(r->memory[i], r->size[i]);
    free(r);
}

static int fill_registers(struct rows *r)
{
    int error = 0;
    for (unsigned i = 0; i < REGISTERS && !error; i++)
        error = bar_write(r, i);
    return error;
}

static int attach(struct rows *r, const void *boot_info, size_t length, const int *fds)
{
    const uint64_t all[3] = {r->size[0], r->size[1], 0};
    int error = PCISPLIT_ERROR_OP_FAILED;

    if (r->memory[0] == MAP_FAILED || r->memory[1] == MAP_FAILED)
        return error;
    r->host = pcsf_new(boot_info, length, r->memory[0], r->memory[1], NULL, all, fds[2], fds[3], fds[4], &error);
    if (!r->host)
        return error;
    pcsf_set_timeout(r->host, PCIFRONT_FOREVER); /* each call below brings its own deadline */
    if ((error = pcsf_connect(r->host)))
        return error;
    r->front = pcsf_front(r->host);
    r->deadline = timing_now() + DEADLINE;
    error = pcifront_config_write(r->front, 0, 4, 2, 2, r->deadline);
    if (!error)
        error = pcifront_bar_write(r->front, 0, TRAPPED, SCRATCH, 4, value_of(0), r->deadline);
    return error ? error : fill_registers(r);
}

// `fds`: f2b, b2f, kick, bell, socket; `sizes` of the first two. Turns decode on and fills the registers. NULL on failure.
struct rows *rows_open(const void *boot_info, size_t length, const int *fds, const uint64_t *sizes, int *error)
{
    struct rows *r = calloc(1, sizeof *r);

    *error = PCISPLIT_ERROR_OP_FAILED;
    if (!r)
        return NULL;
    for (int i = 0; i < 2; i++) {
        r->size[i] = sizes[i];
        r->memory[i] = mmap(NULL, sizes[i], i == 0 ? PROT_READ | PROT_WRITE : PROT_READ, MAP_SHARED, fds[i], 0);
    }
    *error = attach(r, boot_info, length, fds);
    if (*error) {
        rows_close(r);
        r = NULL;
    }
    return r;
}

void rows_spin(struct rows *r, uint32_t turns)
{
    pcsf_set_spin(r->host, turns);
}

// Time row `which`, about `count` operations in groups of `group`. 0, a pcisplit error, or 1 for a wrong value.
int rows_run(struct rows *r, unsigned which, unsigned count, unsigned group, struct timing *out)
{
    unsigned parts = rows[which].parts;
    unsigned turns = count / parts, turns_a_group = group / parts ? group / parts : 1;

    r->deadline = timing_now() + DEADLINE;
    r->publish_every = rows[which].publish_every;
    int error = timing_run(rows[which].operation, r, turns, turns_a_group, out);
    while (r->in_flight && !error)
        error = take_answers(r);
    out->op /= parts;
    out->mean /= parts;
    out->p50 /= parts;
    out->p99 /= parts;
    return error ? error : fill_registers(r);
}

// Time single operations of row `which` for `ns`. As rows_run(); `out->op` is their median.
int rows_run_for(struct rows *r, unsigned which, uint64_t ns, struct timing *out)
{
    r->deadline = timing_now() + ns + DEADLINE;
    return timing_run_for(rows[which].operation, r, ns, MOST, out);
}

static int submit_block(struct rows *r, unsigned turn)
{
    struct pcisplit_request request = {.op = PCISPLIT_OP_BAR_READ_BLOCK, .region = TRAPPED, .width = 1,
                                       .length = TRAPPED_BLOCK, .bulk = turn % FLIGHT * PCISPLIT_BLOCK_MAX};
    int error = pcifront_submit(r->front, &request, 1);
    r->in_flight += error == 0;
    return error;
}

// FLIGHT blocks of trapped octets in flight at all times.
static int flood_blocks(struct rows *r)
{
    struct pcisplit_response response;
    unsigned turn = 0;
    int error = 0;
    while (turn < FLIGHT && !error)
        error = submit_block(r, turn++);
    while (!error) {
        error = pcifront_wait_answer(r->front, PCIFRONT_FOREVER);
        while (!error && pcifront_poll(r->front, &response) == 1) {
            if (response.error)
                return response.error;
            error = submit_block(r, turn++);
        }
    }
    return error;
}

// Be a front that never stops: blocks of trapped octets (`blocks`), or mapped reads, FLIGHT in flight. Returns on an error.
int rows_flood(struct rows *r, int blocks)
{
    int error = 0;
    r->deadline = PCIFRONT_FOREVER;
    if (blocks)
        return flood_blocks(r);
    for (uint64_t turn = 0; !error; turn += FLIGHT)
        error = window(r, turn);
    return error;
}

// Use a CPU and nothing else, for ever.
void rows_burn(void)
{
    for (volatile uint64_t turn = 0;; turn++)
        ;
}
