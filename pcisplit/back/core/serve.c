// SPDX-License-Identifier: MIT
// The serve loop: take requests, execute or hand to an owner, answer, sleep, wake. One thread per session runs it in one
// call without the GIL; it comes back when Python must decide. It does no access that can sleep.
//
// Waiting: it spins for `spin_ns` after the last work, then says that it sleeps, looks once more and waits in epoll for
// its doorbell, its owners and the interrupts it relays. An idle session has no wake-ups.

#include "serve.h"

#include <sys/socket.h>
#include <unistd.h>

#define LOOK_EVERY 64     /* busy turns between two looks at interrupts and owners */

static void end(struct pcs_serve *s, int reason)
{
    if (!s->reason)
        s->reason = reason;
}

/* ---- answering ----------------------------------------------------------------------------------------------------- */

static PCS_SELDOM void count_failure(struct pcs_serve *s, struct pcs_device *device, int error)
{
    pcs_count(&s->back->refused);
    if (device) {
        pcs_count(&device->state->refused);
        atomic_fetch_add_explicit(&device->refused, 1, memory_order_relaxed);
    }
    if (error == PCISPLIT_ERROR_STALE)
        pcs_count(&s->back->stale);
}

// A posted write that failed: counted, and told where it was [BAR-11].
static void count_posted_failure(struct pcs_serve *s, struct pcs_device *device, unsigned region, uint64_t offset,
                                 int error, uint32_t rule)
{
    struct pcisplit_device_state *state = device->state;

    state->posted_error = (int16_t)error;
    state->posted_rule = (uint16_t)rule;
    state->posted_region = (uint8_t)region;
    state->posted_offset = offset;
    pcs_count(&state->posted_errors);
    atomic_fetch_add_explicit(&device->posted_errors, 1, memory_order_relaxed);
    pcs_hint(s, PCISPLIT_EVENT_POSTED_ERROR, device->index, 0, (uint64_t)(int64_t)error);
}

static PCS_SELDOM void count_failed(struct pcs_serve *s, struct pcs_device *device, unsigned region, uint64_t offset, int error,
                         uint32_t rule)
{
    count_failure(s, device, error);
    if (device)
        count_posted_failure(s, device, region, offset, error, rule);
}

// What nobody is answered: failures are counted, of a pack each, before any later answer of the device [ORD-7, BAR-42].
static void settle_posted(struct pcs_serve *s, struct pcs_device *device, const union pcs_slot *request,
                          const struct pcs_result *result)
{
    unsigned region = request->request.region, count = pcs_elements(request);

    if (request->request.op != PCISPLIT_OP_BAR_WRITES) {
        if (result->error)
            count_failed(s, device, region, request->request.offset, result->error, result->rule);
    } else if (result->error) { // the pack as a whole; one whose count is wrong counts once
        unsigned times = count && count <= PCISPLIT_PACK_WRITES ? count : 1;
        for (unsigned i = 0; i < times; i++)
            count_failed(s, device, region, pcs_element_offset(request, i), result->error, result->rule);
    } else {
        for (unsigned i = 0; i < count; i++)
            if (result->failed[i].error)
                count_failed(s, device, region, pcs_element_offset(request, i), result->failed[i].error,
                             result->failed[i].rule);
    }
}

// The response, written in place into the next slot; there is one: `room` saw to it.
static void respond(struct pcs_serve *s, const struct pcisplit_request *r, const struct pcs_result *result,
                    uint32_t generation)
{
    volatile uint64_t *word = pcisplit_next(&s->responses);
    uint32_t last = 0;

    word[0] = r->op | (uint64_t)(uint16_t)result->error << 16 | (uint64_t)r->id << 32;
    word[1] = r->device | (uint64_t)(uint16_t)result->rule << 16 | (uint64_t)generation << 32;
    if (r->op == PCISPLIT_OP_BAR_READS) {
        last = result->done;
        for (unsigned i = 0; i < PCISPLIT_PACK_READS; i += 2)
            word[2 + i / 2] = (i < last ? result->values[i] : 0) |
                              (uint64_t)(i + 1 < last ? result->values[i + 1] : 0) << 32;
    } else {
        word[2] = result->value;
        word[3] = result->detail;
        word[4] = result->length;
        word[5] = word[6] = 0;
    }
    pcisplit_finish(&s->responses, last);
}

// Answer one request, or count the errors of a posted one.
static void answer(struct pcs_serve *s, const union pcs_slot *request, const struct pcs_result *result)
{
    unsigned index = request->request.device;
    struct pcs_device *device = index < s->devices ? s->device[index] : NULL;

    if (pcs_is_posted(s, request)) {
        settle_posted(s, device, request, result);
        return;
    }
    if (result->error)
        count_failure(s, device, result->error);
    s->unanswered--;
    pcs_count(&s->back->responses);
    respond(s, &request->request, result, device ? device->state->generation : 0);
}

/* ---- taking and executing -------------------------------------------------------------------------------------------- */

// Execute one request now, or give it to its device's owner and park the device.
static void execute(struct pcs_serve *s, struct pcs_device *device, const union pcs_slot *request)
{
    s->executing = request;
    enum pcs_verdict verdict = pcs_execute(s, device, request, &s->result);
    s->executing = NULL;
    if (verdict == PCS_ANSWERED) {
        answer(s, request, &s->result);
    } else {
        device->parked |= PCS_PARKED;
        pcs_owner_ask(&device->owner, request);
    }
}

// A response slot is free for one more request beside those taken and not answered [RING-6].
static int room(struct pcs_serve *s)
{
    int64_t space = pcisplit_space(&s->responses, s->unanswered + 1);
    if (space < 0)
        end(s, PCISPLIT_ERROR_RING_OVERRUN);
    return space > (int64_t)s->unanswered;
}

// Requests of a device that wait because it is parked or held.
static uint32_t waiting(const struct pcs_device *device)
{
    return atomic_load_explicit(&device->tail, memory_order_relaxed) -
           atomic_load_explicit(&device->head, memory_order_relaxed);
}

// What a request counts in a turn: a pack as many as it has [BAR-44].
static unsigned accesses(const union pcs_slot *request)
{
    unsigned elements = pcs_elements(request);
    return elements && elements <= PCISPLIT_PACK_READS ? elements : 1;
}

// Take requests up to the budget of a turn. Returns how many were taken.
static unsigned consume(struct pcs_serve *s)
{
    unsigned taken = 0, rounds = 0;
    uint64_t stop_at = 0;

    while (taken < PCS_TURN_OPS && !s->reason) {
        if (!s->held) {
            if (!room(s) || !pcisplit_take(&s->requests, &s->next.raw))
                break;
            pcs_count(&s->back->requests);
            if (!pcs_is_posted(s, &s->next))
                s->unanswered++;
        }
        s->held = 0;
        unsigned index = s->next.request.device;
        struct pcs_device *device = index < s->devices ? s->device[index] : NULL;
        if (!device || (!device->parked && !waiting(device))) {
            execute(s, device, &s->next);
        } else if (waiting(device) < device->queue_size) {
            device->queue[device->tail++ & (device->queue_size - 1)] = s->next;
        } else {
            s->held = 1; // nothing more is taken until this device has room: the ring bounds what waits
            break;
        }
        taken += accesses(&s->next);
        if (++rounds % 16 == 0) {
            uint64_t t = pcs_now();
            if (!stop_at)
                stop_at = t + PCS_TURN_NS;
            else if (t > stop_at)
                break;
        }
    }
    return taken;
}

// Collect what owners have finished and go on with what waited behind it. Returns how much was done.
static unsigned collect_owners(struct pcs_serve *s)
{
    unsigned done = 0;
    struct pcs_result result;

    for (unsigned i = 0; i < s->devices; i++) {
        struct pcs_device *device = s->device[i];
        if (device->parked & PCS_PARKED && pcs_owner_take(&device->owner, &result)) {
            answer(s, &device->owner.request, &result);
            device->parked &= ~(unsigned)PCS_PARKED;
            done++;
        }
        for (unsigned n = 0; !device->parked && waiting(device) && n < PCS_TURN_OPS;) {
            const union pcs_slot *request = &device->queue[device->head++ & (device->queue_size - 1)];
            execute(s, device, request); // it is behind us: after a fault it is answered, not made again
            n += accesses(request);
            done++;
        }
    }
    return done;
}

/* ---- sleeping ----------------------------------------------------------------------------------------------------------- */

static int front_moved(struct pcs_serve *s)
{
    return pcisplit_load(&s->front->state) != s->front_state;
}

static int owners_done(struct pcs_serve *s)
{
    for (unsigned i = 0; i < s->devices; i++)
        if (s->device[i]->parked & PCS_PARKED && s->device[i]->owner.state == PCS_OWNER_DONE)
            return 1;
    return 0;
}

// Something to take that can be taken now, as it is looked for after the sleeping word is set [RING-10].
static int work(struct pcs_serve *s)
{
    if (!s->serving || s->held)
        return 0;
    int available = pcisplit_recheck(&s->requests);
    int64_t space = pcisplit_space_recheck(&s->responses);
    if (available < 0 || space < 0)
        end(s, PCISPLIT_ERROR_RING_OVERRUN);
    return available != 0 && (space < 0 || space > (int64_t)s->unanswered);
}

// Sleep until something happens. Afterwards `rang` says whether it was the doorbell.
static void sleep_until_rung(struct pcs_serve *s)
{
    pcs_flush(s); // what is not announced yet
    pcisplit_sleep_begin(&s->back->sleeping);
    if (work(s) || s->reason || owners_done(s) || front_moved(s) || atomic_load(&s->stop)) {
        pcisplit_sleep_end(&s->back->sleeping);
        return;
    }
    s->rang = pcs_events(s, pcs_mask_left(s));
    pcisplit_sleep_end(&s->back->sleeping);
    pcs_unmask(s);
}

/* ---- the loop ---------------------------------------------------------------------------------------------------------- */

static unsigned turn(struct pcs_serve *s)
{
    if (atomic_load_explicit(&s->attention, memory_order_relaxed)) // looked at again after each wait
        pcs_attend_holds(s);
    unsigned done = collect_owners(s);
    if (s->serving)
        done += consume(s);
    if (pcs_due(s))
        pcs_flush(s);
    return done;
}

static void judge(struct pcs_serve *s)
{
    if (s->rang)
        pcs_judge_kick(s);
    s->rang = 0;
}

// The access that the request made faulted: its answer says so, and how far a block got [THR-9, BAR-21].
static void answer_faulted(struct pcs_serve *s)
{
    const union pcs_slot *request = s->executing;

    if (request->request.op == PCISPLIT_OP_BAR_WRITES) {
        pcs_resume_pack(s->device[request->request.device], request, &s->result); // may fault again, and come back here
    } else {
        s->result.error = PCISPLIT_ERROR_FAULTED;
        s->result.rule = 0;
    }
    s->executing = NULL;
    answer(s, request, &s->result);
}

// Until the front, the session or Python wants something else. All of it runs under the guard, because every turn and every
// way to sleep reads words of f2b; after a fault it begins again, so what must last is kept in `s`.
static void loop(void *context)
{
    struct pcs_serve *s = context;
    uint64_t last_work = pcs_now();
    unsigned idle = 0, busy = 0;

    if (s->executing)
        answer_faulted(s);
    for (;;) {
        unsigned done = turn(s);
        judge(s);
        if (atomic_load(&s->stop) || s->reason || front_moved(s))
            break;
        if (done) {
            idle = 0;
            last_work = 0;
            if (++busy % LOOK_EVERY == 0)
                pcs_events(s, 0); // interrupts are not starved by a busy ring
            continue;
        }
        if (++idle == PCISPLIT_ANNOUNCE_POLLS)
            pcs_flush(s);
        if (s->spin_ns && idle % 64) {
            pcisplit_pause();
            continue;
        }
        uint64_t t = pcs_now();
        if (!last_work)
            last_work = t;
        if (t - last_work < s->spin_ns) {
            if (idle % 1024 == 0)
                s->rang = pcs_events(s, 0);
            continue;
        }
        sleep_until_rung(s);
        pcs_flush(s);
        last_work = 0;
    }
    pcs_flush(s);
    if (!atomic_load(&s->stop) && !s->reason)
        s->front_state = pcisplit_load(&s->front->state);
}

int pcs_serve_run(struct pcs_serve *s)
{
    atomic_store(&s->running, 1);
    pcs_attend_holds(s);
    while (pcs_guarded(&s->guard, loop, s)) {
        if (!s->executing) {
            end(s, PCISPLIT_ERROR_FAULTED); // shared memory itself: nothing is left to serve, and nothing of it is looked at
            break;
        }
    }
    atomic_store(&s->running, 0);
    pcs_attend_holds(s); // whoever waits for a loop that has ended need not
    if (atomic_load(&s->stop))
        return PCS_RUN_STOPPED;
    return s->reason ? PCS_RUN_ENDED : PCS_RUN_FRONT_STATE;
}

void pcs_serve_stop(struct pcs_serve *s)
{
    uint64_t one = 1;
    atomic_store(&s->stop, 1);
    ssize_t written = write(s->wake_fd, &one, sizeof one);
    (void)written;
}

void pcs_serve_end(struct pcs_serve *s, int reason)
{
    __atomic_store_n(&s->back->reason, reason, __ATOMIC_SEQ_CST);
}

// The back's state word; the front is kicked whether it sleeps or not, because it may wait without having said so.
void pcs_serve_set_state(struct pcs_serve *s, uint32_t state)
{
    pcisplit_store(&s->back->state, state);
    s->serving = state == PCISPLIT_STATE_CONNECTED;
    ssize_t written = send(s->bell_fd, "", 1, MSG_DONTWAIT | MSG_NOSIGNAL);
    (void)written;
}
