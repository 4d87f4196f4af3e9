/* SPDX-License-Identifier: MIT
 *
 * What fuzz_back.c runs on: the memory, descriptors and devices of one session, and all that the harness knows of the shape of
 * the back's core, so that a change of the core is followed here and nowhere else.
 */
#ifndef FUZZ_BACK_WORLD_H
#define FUZZ_BACK_WORLD_H

#include "hooks.h"
#include "script.h"
#include "serve.h"
#include "layout.h" /* of the regions; made by harness.py */

#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGE PCISPLIT_PAGE_SIZE
enum { BUSY, OWNED, GONE, DEVICES };        // what the devices are like
enum { VECTORS = 2, MEMORY = 2 * PAGE, NARROW = 16, PORTS = 32, CONFIG = 256, RULES = 40 };
#define HUGE_BAR (1ull << 32)

static struct {
    uint8_t *f2b;              // the front's own mapping, writable
    uint8_t *f2b_back;         // the back's
    int f2b_fd, hole_fd, file_fd, bell_fd, kick_fd, watch_fd;
    uint8_t *hole;             // a page of a device that faults
    int vector_fd[DEVICES][VECTORS];
} host; // made once

static struct {
    struct pcs_serve *s;
    uint8_t *b2f;
    struct pcs_device *device[DEVICES];
    uint8_t *memory[DEVICES], *narrow, *ports;
    uint8_t config[DEVICES][CONFIG]; // as it was in the beginning
    struct { int fd, edge; struct epoll_event event; } source[32];
    unsigned sources;
    uint64_t now;
    int racing;                // the front also writes in the middle of a turn
    int honest;                // it has kept every rule of the rings so far
    int cut;                   // it has taken f2b away
    int in_step, draining;
    uint32_t prod, rsp_cons, evt_cons; // the honest front's indices; of `prod` not all may be announced
    uint32_t generation[DEVICES];
    uint64_t wanted[REQUEST_SLOTS * 4]; // by id: 1 + id while an answer is due
    uint32_t next_id, due;
} run;

/* ---- touch points: what of the core's shape the harness knows ---------------------------------------------------------- */

struct planes { // of one octet of configuration space
    uint8_t value, hardware, virtual, through, clear, ignore, zero, trap;
};

QUIET static void plane(struct pcs_device *d, unsigned at, struct planes bits)
{
    struct pcs_config *c = &d->config;
    c->value[at] = bits.value;
    c->hardware[at] = bits.hardware;
    c->virtual[at] = bits.virtual;
    c->through[at] = bits.through;
    c->clear[at] = bits.clear;
    c->ignore[at] = bits.ignore;
    c->zero[at] = bits.zero;
    c->trap[at] = bits.trap;
    c->rule[at] = (uint16_t)(1 + at % (RULES + 2)); // some are none that is counted
}

QUIET static void area(struct pcs_device *d, unsigned bar, uint64_t start, uint64_t end, unsigned kind, unsigned widths,
                       void *base, int fd)
{
    struct pcs_area made = {.start = start, .end = end, .kind = kind, .widths = widths, .base = base, .fd = fd, .rule = 2};
    MUST(pcs_device_add_area(d, bar, &made) == 0);
}

static int asks_owner(const struct pcs_device *d)
{
    return d->owner.state == PCS_OWNER_ASKED;
}

// The owner of a device comes round, in this very thread, and does what there is to do. A request that wants Python ends with
// `error`, or, with `patient`, after the trapped accesses that Python makes were made, one piece or all.
static void owner_runs(struct pcs_device *d, int error, uint64_t value, uint32_t length, int patient)
{
    struct pcs_owner *owner = &d->owner;
    const struct pcisplit_request *r = &owner->request.request;

    for (int why; (why = pcs_owner_wait(d, 0)) != PCS_WAKE_TIMEOUT;) {
        if (why == PCS_WAKE_EVENT)
            pcs_owner_take_events(d);
        if (why != PCS_WAKE_REQUEST)
            continue;
        int python = 1; // has something to do
        while (python && patient && !owner->work.error && owner->work.piece > owner->work.done) {
            MUST(owner->work.piece <= owner->work.length && owner->work.length <= PCISPLIT_BLOCK_MAX);
            python = r->op == PCISPLIT_OP_BAR_WRITES && error ? pcs_access_failed(d, error, 2)
                                                              : pcs_access_went(d, owner->work.piece);
        }
        if (!python)
            continue;
        if (owner->work.error)
            error = owner->work.error;
        if (r->op == PCISPLIT_OP_CONF_WRITE && !error)
            pcs_config_apply(&d->config, (uint32_t)r->offset, r->width, (uint32_t)r->value);
        pcs_owner_finish(d, error, 0, value, 0, owner->work.length ? length % (owner->work.length + 1) : 0);
    }
}

static void toggle_hold(struct pcs_device *d) // hold or release, without the waiting
{
    d->hold_asked++;
    atomic_store(&run.s->attention, 1);
}

static int is_held(const struct pcs_device *d)
{
    return d->hold_asked & 1;
}

/* ---- the host: made once, and per session ------------------------------------------------------------------------------ */

static void *map_alone(int fd, size_t size, int protection) // with nothing on either side
{
    uint8_t *room = mmap(NULL, size + 2 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    MUST(room != MAP_FAILED);
    MUST(mmap(room + PAGE, size, protection, MAP_SHARED | MAP_FIXED, fd, 0) == room + PAGE);
    return room + PAGE;
}

QUIET static void make_host(void)
{
    host.f2b_fd = memfd_create("f2b", MFD_CLOEXEC);
    MUST(ftruncate(host.f2b_fd, F2B_SIZE) == 0);
    host.f2b = map_alone(host.f2b_fd, F2B_SIZE, PROT_READ | PROT_WRITE);
    host.f2b_back = map_alone(host.f2b_fd, F2B_SIZE, PROT_READ);
    host.hole_fd = memfd_create("hole", MFD_CLOEXEC); // no size: every access is a SIGBUS
    host.hole = map_alone(host.hole_fd, PAGE, PROT_READ | PROT_WRITE);
    host.file_fd = memfd_create("file", MFD_CLOEXEC);
    MUST(ftruncate(host.file_fd, 0x300) == 0);
    host.watch_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    host.bell_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    host.kick_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    for (unsigned d = 0; d < DEVICES; d++)
        for (unsigned v = 0; v < VECTORS; v++)
            host.vector_fd[d][v] = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
}

QUIET static void *block(size_t size) // exactly that long, for AddressSanitizer
{
    uint8_t *octets = malloc(size);
    MUST(octets);
    memset(octets, 0x5a, size);
    return octets;
}

QUIET static struct pcs_device *make_device(unsigned index)
{
    struct pcs_device *d = pcs_device_new();
    MUST(d);
    d->config.size = CONFIG;
    d->config.rules = RULES;
    d->config.hits = calloc(RULES, sizeof *d->config.hits);
    MUST(d->config.hits);
    for (unsigned at = 0; at < CONFIG; at++)
        plane(d, at, (struct planes){.value = (uint8_t)(at * 7)});
    plane(d, 4, (struct planes){.value = 7, .virtual = 7, .through = 4, .ignore = 0x40}); // COMMAND: MASTER is the device's too
    plane(d, 5, (struct planes){.virtual = 4});
    plane(d, 7, (struct planes){.hardware = 0xff, .clear = 0xf9, .zero = 2});              // STATUS
    plane(d, 0x3c, (struct planes){.value = 9, .virtual = 0xff});
    for (unsigned at = 0x10; at < 0x28; at++)
        plane(d, at, (struct planes){.virtual = 0xf0, .ignore = 0x0f});                     // BARs
    for (unsigned at = 0x80; at < 0x90; at++)
        plane(d, at, (struct planes){.value = 1, .hardware = at & 1 ? 0x80 : 0, .virtual = 0x11, .through = 0x12, .ignore = 0x20,
                                     .clear = 4, .zero = 8, .trap = at == 0x88});
    for (unsigned at = 0; at < CONFIG; at++)
        run.config[index][at] = d->config.value[at];

    run.memory[index] = block(MEMORY);
    d->bar[0].size = 4 * PAGE;
    area(d, 0, 0, MEMORY, PCS_AREA_MAPPED, 15, run.memory[index], -1);
    area(d, 0, MEMORY, MEMORY + 0x800, PCS_AREA_OWNER, 15, NULL, -1);            // trapped
    area(d, 0, MEMORY + 0x800, MEMORY + 0xc00, PCS_AREA_DENIED, 15, NULL, -1);
    area(d, 0, MEMORY + 0xc00, MEMORY + PAGE, PCS_AREA_OWNER, 7, NULL, host.file_fd); // of which the file has not all
    area(d, 0, 3 * PAGE + 0x100, 3 * PAGE + 0x180, PCS_AREA_OWNER, 4, NULL, -1); // and nothing before and behind
    d->bar[2].size = HUGE_BAR;
    area(d, 2, HUGE_BAR - PAGE, HUGE_BAR, PCS_AREA_MAPPED, 15, host.hole, -1);
    if (index == BUSY) {
        run.narrow = block(NARROW);
        run.ports = block(PORTS);
        d->bar[1].size = PORTS;
        d->bar[1].io = 1;
        area(d, 1, 0, PORTS, PCS_AREA_MAPPED, 7, run.ports, -1);
        d->bar[5].size = PAGE;
        area(d, 5, PAGE - NARROW, PAGE, PCS_AREA_MAPPED, 4, run.narrow, -1);
    }
    d->vectors = VECTORS;
    d->vector = calloc(VECTORS, sizeof *d->vector);
    MUST(d->vector);
    for (unsigned v = 0; v < VECTORS; v++) {
        d->vector[v].fd = host.vector_fd[index][v];
        atomic_store(&d->vector[v].enabled, (int)(v + 1 != VECTORS));
    }
    return d;
}

QUIET static void begin(void)
{
    static const struct pcs_places places = {REQUESTS_AT, REQUEST_SLOTS, RESPONSES_AT, RESPONSE_SLOTS, EVENTS_AT,
                                             EVENT_SLOTS, BULK_IN_AT,    BULK_OUT_AT,  BULK_SIZE};

    memset(&run, 0, sizeof run);
    run.honest = 1;
    run.b2f = aligned_alloc(PAGE, B2F_SIZE);
    MUST(run.b2f);
    memset(host.f2b, 0, BULK_IN_AT);
    memset(run.b2f, 0, BULK_OUT_AT);
    run.s = pcs_serve_new(host.f2b_back, run.b2f, &places, host.kick_fd, host.bell_fd);
    MUST(run.s);
    for (unsigned i = 0; i < DEVICES; i++) {
        run.device[i] = make_device(i);
        MUST(pcs_serve_add(run.s, run.device[i], states_at[i], (const struct pcs_run *)&runs[i]) == 0);
        run.device[i]->state->state = i == GONE ? PCISPLIT_DEVICE_GONE : PCISPLIT_DEVICE_ACQUIRED;
        run.generation[i] = run.device[i]->state->generation = 1;
    }
    MUST(pcs_device_watch(run.device[BUSY], host.watch_fd, 31) == 0);
    uint8_t how = take8();
    run.racing = how & 1;
    run.s->spin_ns = how & 2 ? (how & 0x10 ? 20000 : 1000) : 0;
    run.s->features = how & 4 ? 0 : PCISPLIT_FEATURE_BLOCK | PCISPLIT_FEATURE_EVENTS | PCISPLIT_FEATURE_MSI_RELAYED |
                                        PCISPLIT_FEATURE_RESET | PCISPLIT_FEATURE_PACKED;
}

QUIET static void check_devices(void)
{
    for (unsigned i = 0; i < DEVICES; i++)
        for (unsigned at = 0; at < CONFIG; at++)
            MUST(((run.device[i]->config.value[at] ^ run.config[i][at]) & ~run.device[i]->config.virtual[at]) == 0);
    for (unsigned at = 0; at < MEMORY; at++)
        MUST(run.memory[GONE][at] == 0x5a);
}

QUIET static void finish(void)
{
    uint64_t fired;

    check_devices();
    pcs_serve_free(run.s);
    for (unsigned i = 0; i < DEVICES; i++) {
        pcs_device_free(run.device[i]);
        free(run.memory[i]);
        for (unsigned v = 0; v < VECTORS; v++)
            (void)!read(host.vector_fd[i][v], &fired, sizeof fired);
    }
    free(run.narrow);
    free(run.ports);
    free(run.b2f);
    MUST(ftruncate(host.f2b_fd, F2B_SIZE) == 0); // if the front had cut it
}

#endif
