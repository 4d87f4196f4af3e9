// SPDX-License-Identifier: MIT
// A session of the back against a front made of the fuzzer's octets. The back's own loop runs, pcs_serve_run(); whenever it
// waits, tells the time or rings (hooks.h), the front goes on: it writes requests, indices, states, kicks, or lies.
//
// f2b is a memfd that the back maps read-only, with nothing mapped around it; b2f and the device's memory are heap blocks of
// exactly their size. So a stray access of the back ends the run, whichever way it goes. Beyond that: config bits
// that the front may not write keep their values, a device that is gone is never touched, nothing unpublished is left when the
// loop sleeps, and as long as the front is honest every request that wants an answer gets exactly one.

#include "back_world.h"

#include <poll.h>
#include <sys/syscall.h>
#include <unistd.h>

/* ---- the front ----------------------------------------------------------------------------------------------------------- */

static struct pcisplit_front_header *front(void)
{
    return (struct pcisplit_front_header *)(void *)host.f2b;
}

static struct pcisplit_slot *slot(uint32_t index)
{
    return (struct pcisplit_slot *)(void *)(host.f2b + REQUESTS_AT) + index % REQUEST_SLOTS;
}

static uint64_t *due(uint32_t id)
{
    return &run.wanted[id % (sizeof run.wanted / sizeof *run.wanted)];
}

// A pack whose elements lie about `start`.
static void fill_pack(union pcs_slot *made, uint64_t start, unsigned step)
{
    unsigned count = take8() % (PCISPLIT_PACK_READS + 2);

    if (made->request.op == PCISPLIT_OP_BAR_WRITES) {
        made->request.flags = PCISPLIT_FLAG_POSTED;
        made->writes.count = count;
        for (unsigned i = 0; i < 2 * PCISPLIT_PACK_WRITES && i < 2 * count; i += 2) {
            made->writes.element[i] = (uint32_t)(start + i / 2 * step);
            made->writes.element[i + 1] = take8();
        }
    } else {
        made->reads.count = count;
        for (unsigned i = 0; i < PCISPLIT_PACK_READS && i < count; i++)
            made->reads.element[i] = (uint32_t)(start + i * step);
    }
}

// A request of a plausible shape: most get past the first checks, so that the later ones are reached.
static void fill_request(union pcs_slot *made)
{
    static const uint8_t ops[] = {PCISPLIT_OP_CONF_READ, PCISPLIT_OP_CONF_WRITE, PCISPLIT_OP_NOP, PCISPLIT_OP_BAR_READ,
                                  PCISPLIT_OP_BAR_WRITE, PCISPLIT_OP_BAR_READ_BLOCK, PCISPLIT_OP_BAR_WRITE_BLOCK,
                                  PCISPLIT_OP_RESET, PCISPLIT_OP_ENABLE_MSI, PCISPLIT_OP_DISABLE_MSI,
                                  PCISPLIT_OP_BAR_READS, PCISPLIT_OP_BAR_WRITES};
    static const uint64_t starts[] = {0, MEMORY - 8, MEMORY, MEMORY + 0x800, 3 * PAGE + 0x100, HUGE_BAR - PAGE, PAGE - NARROW, 0x80};
    struct pcisplit_request *r = &made->request;
    uint8_t op = take8(), where = take8();

    memset(made, 0, sizeof *made);
    r->op = op < 240 ? ops[op % sizeof ops] : op;
    r->device = where & 3;
    r->width = (uint8_t)(1u << (where >> 2 & 3));
    r->generation = r->device < DEVICES ? run.generation[r->device] : 0;
    if (where & 0x80)
        r->generation += take8();
    switch (r->op) {
    case PCISPLIT_OP_NOP:
    case PCISPLIT_OP_RESET: r->width = 0; return;
    case PCISPLIT_OP_ENABLE_MSI:
    case PCISPLIT_OP_DISABLE_MSI: r->width = 0; made->irq.count = take8(); return;
    case PCISPLIT_OP_CONF_READ: r->offset = take8(); return;
    case PCISPLIT_OP_CONF_WRITE: r->offset = take8(); r->value = take_number(); return;
    default: break;
    }
    uint8_t place = take8();
    r->region = place & 7;
    if (r->op == PCISPLIT_OP_BAR_READS || r->op == PCISPLIT_OP_BAR_WRITES) {
        uint64_t start = starts[place >> 3 & 7] + take_number();
        fill_pack(made, where & 0x40 ? start & ~7ull : start, place & 0x80 ? 0x400 : r->width);
        return;
    }
    r->offset = starts[place >> 3 & 7] + take_number();
    if (where & 0x40)
        r->offset &= ~7ull;
    if (r->op == PCISPLIT_OP_BAR_WRITE) {
        r->value = take_number();
        r->flags = place & 0x80 ? PCISPLIT_FLAG_POSTED : 0;
    } else if (r->op != PCISPLIT_OP_BAR_READ) {
        r->length = (uint32_t)take_number();
        r->bulk = (uint32_t)take_number();
        if (where & 0x10)
            r->bulk = BULK_SIZE - r->length + take8(); // about the end of the area
        if (where & 0x20)
            r->length &= ~7u, r->bulk &= ~7u;
    }
}

static int ring_is_full(void)
{
    const struct pcisplit_back_header *back = (const void *)run.b2f;
    return run.prod - back->req_cons >= REQUEST_SLOTS || run.due >= REQUEST_SLOTS * 2;
}

static int wants_answer(const struct pcisplit_request *r)
{
    if (r->op == PCISPLIT_OP_BAR_WRITES && !(run.s->features & PCISPLIT_FEATURE_PACKED))
        return 1; // that it is posted means nothing
    return !((r->op == PCISPLIT_OP_BAR_WRITE || r->op == PCISPLIT_OP_BAR_WRITES) && r->flags & PCISPLIT_FLAG_POSTED);
}

static void publish_slot(union pcs_slot made)
{
    made.request.sequence = run.prod + 1;
    memcpy(slot(run.prod++), &made, sizeof made);
}

static void announce(void)
{
    pcisplit_store(&front()->req_prod, run.prod);
}

static void publish_request(union pcs_slot made)
{
    if (ring_is_full() || *due(run.next_id))
        return;
    made.request.id = run.next_id;
    if (wants_answer(&made.request)) {
        *due(run.next_id) = 1ull + run.next_id;
        run.due++;
    }
    run.next_id++;
    publish_slot(made);
}

// `kinds` of requests, each `times` over.
static void write_requests(unsigned kinds, unsigned times)
{
    for (union pcs_slot made; kinds; kinds--) {
        fill_request(&made);
        for (unsigned n = times; n; n--)
            publish_request(made);
    }
}

static void take_responses(unsigned most)
{
    const struct pcisplit_back_header *back = (const void *)run.b2f;
    const struct pcisplit_slot *slots = (const void *)(run.b2f + RESPONSES_AT);

    for (; most; most--) {
        union pcs_slot answer = {.raw = slots[run.rsp_cons % RESPONSE_SLOTS]};
        if (answer.response.sequence != run.rsp_cons + 1) {
            MUST(!run.honest || (int32_t)(back->rsp_prod - run.rsp_cons) <= 0); // announced is published [RING-2]
            break;
        }
        run.rsp_cons++;
        MUST(answer.response.error <= 0 && answer.response.error >= PCISPLIT_ERROR_DEVICE_FAILED);
        if (run.honest) { // exactly one answer, to a request that wants one
            MUST(*due(answer.response.id) == 1ull + answer.response.id);
            *due(answer.response.id) = 0;
            run.due--;
        }
    }
    pcisplit_store(&front()->rsp_cons, run.rsp_cons);
}

static void owners_run(unsigned which, int error, uint64_t value, uint32_t length)
{
    for (unsigned i = 0; i < DEVICES; i++)
        if (which >> i & 1)
            owner_runs(run.device[i], error, value, length, which >> 3 & 1);
}

static void edge(int fd)
{
    for (unsigned i = 0; i < run.sources; i++)
        if (run.source[i].fd == fd)
            run.source[i].edge = 1;
}

static void reset_device(unsigned index)
{
    if (index < GONE && asks_owner(run.device[index])) { // as its owner does it, while it is parked
        run.device[index]->state->generation = ++run.generation[index];
        for (unsigned v = 0; v < VECTORS; v++)
            atomic_store(&run.device[index]->vector[v].enabled, 0);
    }
}

static void lie(uint32_t *word, uint32_t value)
{
    run.honest = 0;
    pcisplit_store(word, value);
}

// One step of the script. Returns whether the back may look again.
static int step(void)
{
    union pcs_slot made;
    uint64_t fired;
    uint16_t at;
    uint8_t what = take8();

    if (run.honest)
        announce(); // what the step before has published
    switch (what & 0x0f) {
    case 0: case 1: case 2: // many at once, to fill rings and queues
        write_requests((what & 0x0f) == 2 ? 1 : (what >> 4) + 1u, (what & 0x0f) == 2 ? (what >> 4) * 20u + 1 : 1);
        if (!(what & 0x10))
            announce();
        edge(host.kick_fd);
        return 1;
    case 3: // a request of no shape at all
        take_octets(&made, PCISPLIT_SLOT_SIZE);
        run.honest = 0;
        publish_slot(made);
        announce();
        return 0;
    case 4: take_responses((what >> 4) * 20u + 1); return 0;
    case 5:
        run.evt_cons = ((const struct pcisplit_back_header *)(const void *)run.b2f)->evt_prod;
        pcisplit_store(&front()->evt_cons, run.evt_cons);
        return 0;
    case 6: pcisplit_store(&front()->sleeping, what >> 4); return 0;
    case 7: pcisplit_store(&front()->state, what >> 4); return what >> 4 != PCISPLIT_STATE_CONNECTED;
    case 8: owners_run(what >> 4, -(int)(take8() % 59), take_number(), take16()); return 1;
    case 9:
        fired = 1 + take8();
        return write(host.vector_fd[what >> 4 & 1][what >> 5 & 1], &fired, sizeof fired) > 0;
    case 10: edge(host.kick_fd); return 1;
    case 11: run.now += 1ull << (what >> 2 & 0x3c); return what & 0x10;
    case 12:
        at = take16();
        memset(host.f2b + BULK_IN_AT + at % (BULK_SIZE - 16), take8(), 16);
        return 0;
    case 13:
        if (what & 0x80)
            pcs_owner_wake(run.device[what >> 4 & 1]);
        else if (what & 0x40)
            edge(host.watch_fd);
        else if (what & 0x20)
            toggle_hold(run.device[what >> 4 & 1]);
        else
            reset_device(what >> 4);
        return what & 0x60;
    case 14:
        at = take16();
        if (what >> 4 == 15) {
            run.honest = 0;
            run.cut = 1;
            script_left = 0; // the front's own accesses would fault as well
            MUST(ftruncate(host.f2b_fd, at % (F2B_SIZE / PAGE) * PAGE) == 0);
            return 1;
        }
        lie((uint32_t *)(void *)(host.f2b + (at * 4u) % BULK_IN_AT), take32());
        return 0;
    default:
        if (what & 0x10)
            lie(&front()->req_prod, (uint32_t)(run.prod + (int32_t)take_number()));
        else
            lie(what & 0x20 ? &front()->evt_cons : &front()->rsp_cons, (uint32_t)(run.rsp_cons + take_number()));
        edge(host.kick_fd);
        return 1;
    }
}

// The script is over. An honest front waits until everything is answered; then the session is stopped.
static void drain(void)
{
    MUST(run.draining++ < 10000); // a request was lost
    owners_run(~0u, 0, 0, 0);
    for (unsigned i = 0; i < DEVICES; i++)
        if (is_held(run.device[i]))
            toggle_hold(run.device[i]);
    take_responses(~0u);
    announce();
    edge(host.kick_fd);
    if (!run.honest || !run.s->serving || (!run.due && run.prod == run.s->requests.taken))
        atomic_store(&run.s->stop, 1);
}

/* ---- the hooks ------------------------------------------------------------------------------------------------------------ */

static void race(void) // the front goes on in the middle of a turn
{
    if (!run.racing || run.in_step || !script_left)
        return;
    run.in_step = 1;
    step();
    run.in_step = 0;
}

int fuzz_epoll_ctl(int epoll, int operation, int fd, struct epoll_event *event)
{
    (void)epoll;
    for (unsigned i = 0; i < run.sources; i++)
        if (run.source[i].fd == fd)
            run.source[i] = run.source[--run.sources];
    if (operation != EPOLL_CTL_DEL) {
        MUST(run.sources < 32);
        run.source[run.sources].fd = fd;
        run.source[run.sources].edge = 0;
        run.source[run.sources++].event = *event;
    }
    return 0;
}

int fuzz_epoll_wait(int epoll, struct epoll_event *events, int most, int timeout)
{
    struct pollfd look[32];
    int count = 0;

    (void)epoll;
    if (timeout && !run.cut)
        MUST(!pcisplit_owes(&run.s->responses) && !pcisplit_owes(&run.s->events) && !pcisplit_held(&run.s->requests));
    MUST(pcisplit_held(&run.s->requests) <= REQUEST_SLOTS);
    MUST(run.s->responses.filled - run.s->responses.cons_seen <= RESPONSE_SLOTS);
    if (timeout > 0 && run.draining)
        run.now += (uint64_t)timeout * 1000000;
    run.in_step = 1;
    while (script_left && !step())
        ;
    if (run.cut)
        atomic_store(&run.s->stop, 1);
    else if (!script_left)
        drain();
    run.in_step = 0;
    for (unsigned i = 0; i < run.sources; i++)
        look[i] = (struct pollfd){.fd = run.source[i].fd, .events = POLLIN};
    poll(look, run.sources, 0);
    for (unsigned i = 0; i < run.sources && count < most; i++)
        if (run.source[i].event.events & EPOLLET ? run.source[i].edge : look[i].revents) {
            run.source[i].edge = 0;
            events[count++] = run.source[i].event;
        }
    return count;
}

int fuzz_clock_gettime(clockid_t clock, struct timespec *now)
{
    (void)clock;
    run.now += 500;
    race();
    now->tv_sec = (time_t)(run.now / 1000000000);
    now->tv_nsec = (long)(run.now % 1000000000);
    return 0;
}

long fuzz_syscall(long number, ...)
{
    MUST(number == SYS_futex);
    run.now += 1000000;
    return 0;
}

ssize_t fuzz_send(int fd, const void *octets, size_t length, int flags)
{
    (void)octets;
    MUST(fd == host.bell_fd && length == 1 && flags & MSG_DONTWAIT && flags & MSG_NOSIGNAL);
    race();
    return 1;
}

/* ---- a run ---------------------------------------------------------------------------------------------------------------- */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (!host.f2b)
        make_host();
    script = data;
    script_left = size;
    begin();
    pcs_serve_set_state(run.s, PCISPLIT_STATE_CONNECTED);
    for (int reason; (reason = pcs_serve_run(run.s)) != PCS_RUN_STOPPED;) {
        if (reason == PCS_RUN_ENDED) {
            MUST(run.s->reason == PCISPLIT_ERROR_RING_OVERRUN || run.s->reason == PCISPLIT_ERROR_FAULTED);
            MUST(!run.honest);
            break;
        }
        MUST(reason == PCS_RUN_FRONT_STATE);
        pcs_serve_set_state(run.s, run.s->front_state == PCISPLIT_STATE_CLOSING ? PCISPLIT_STATE_CLOSING
                                                                               : PCISPLIT_STATE_CONNECTED);
    }
    finish();
    return 0;
}
