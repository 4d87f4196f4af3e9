// SPDX-License-Identifier: MIT
// The serve loop: take requests, execute or hand to an owner, answer, sleep, wake. One thread per session runs it in one
// call without the GIL; it comes back when Python must decide. It does no access that can sleep.
//
// Waiting: it spins for `spin_ns` after the last work, then says that it sleeps, looks once more and waits in epoll for
// its doorbell, its owners and the interrupts it relays. An idle session has no wake-ups.

#include "serve.h"

#include <sys/socket.h>
#include <unistd.h>

#define PUBLISH_EVERY 8   /* responses filled before they are published, while more requests are known */
#define LOOK_EVERY 64     /* busy turns between two looks at interrupts and owners */

static void end(struct pcs_serve *s, int reason)
{
    if (!s->reason)
        s->reason = reason;
}

/* ---- answering ----------------------------------------------------------------------------------------------------- */

static int is_posted(const union pcs_slot *request)
{
    return request->request.op == PCISPLIT_OP_BAR_WRITE && request->request.flags & PCISPLIT_FLAG_POSTED;
}

// The response as whole words: put together from smaller stores, each word would wait for them when it is copied to the ring.
static void compose(union pcs_slot *slot, const struct pcisplit_request *r, const struct pcs_result *result,
                    uint32_t generation)
{
    uint64_t *word = slot->raw.word;

    word[0] = r->op | (uint64_t)(uint16_t)result->error << 16 | (uint64_t)r->id << 32;
    word[1] = r->device | (uint64_t)(uint16_t)result->rule << 16 | (uint64_t)generation << 32;
    word[2] = result->value;
    word[3] = result->detail;
    word[4] = result->length;
    word[5] = word[6] = word[7] = 0;
}

static void count_failure(struct pcs_serve *s, struct pcs_device *device, int error)
{
    pcs_count(&s->back->refused);
    if (device) {
        pcs_count(&device->state->refused);
        atomic_fetch_add_explicit(&device->refused, 1, memory_order_relaxed);
    }
    if (error == PCISPLIT_ERROR_STALE)
        pcs_count(&s->back->stale);
}

static void count_posted_failure(struct pcs_serve *s, struct pcs_device *device, unsigned index,
                                 const struct pcs_result *result)
{
    device->state->last_posted_error = result->error;
    device->state->last_posted_rule = result->rule;
    pcs_count(&device->state->posted_errors);
    atomic_fetch_add_explicit(&device->posted_errors, 1, memory_order_relaxed);
    pcs_hint(s, PCISPLIT_EVENT_POSTED_ERROR, index, 0, (uint64_t)(int64_t)result->error);
}

// Answer one request, or count the error of a posted one, before any later answer of its device [ORD-7].
static void answer(struct pcs_serve *s, const union pcs_slot *request, const struct pcs_result *result)
{
    unsigned index = request->request.device;
    struct pcs_device *device = index < s->devices ? s->device[index] : NULL;
    union pcs_slot response;

    if (result->error)
        count_failure(s, device, result->error);
    if (is_posted(request)) {
        if (result->error && device)
            count_posted_failure(s, device, index, result);
        return;
    }
    s->unanswered--;
    pcs_count(&s->back->responses);
    compose(&response, &request->request, result, device ? device->state->generation : 0);
    pcisplit_fill(&s->responses, &response.raw); // there is a slot: `room` saw to it
    if (s->requests.prod_seen == s->requests.cons_pvt ||
        s->responses.prod_pvt - s->responses.published >= PUBLISH_EVERY) {
        pcisplit_publish(&s->responses); // the last one known, or enough of them: the front may go on
        s->notify = 1;
    }
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

// Take requests up to the budget of a turn. Returns how many were taken.
static unsigned consume(struct pcs_serve *s)
{
    unsigned taken = 0;
    uint64_t stop_at = 0;

    while (taken < PCS_TURN_OPS && !s->reason) {
        if (!s->held) {
            int64_t available = pcisplit_available(&s->requests);
            if (available < 0)
                end(s, PCISPLIT_ERROR_RING_OVERRUN);
            if (available <= 0 || !room(s))
                break;
            pcisplit_take(&s->requests, &s->next.raw);
            pcs_count(&s->back->requests);
            if (!is_posted(&s->next))
                s->unanswered++;
        }
        s->held = 0;
        unsigned index = s->next.request.device;
        struct pcs_device *device = index < s->devices ? s->device[index] : NULL;
        if (!device || (!device->parked && !waiting(device))) {
            execute(s, device, &s->next);
        } else if (waiting(device) < PCISPLIT_REQUEST_SLOTS) {
            device->queue[device->tail++ % PCISPLIT_REQUEST_SLOTS] = s->next;
        } else {
            s->held = 1; // nothing more is taken until this device has room: the ring bounds what waits
            break;
        }
        taken++;
        if (taken % 16 == 0) {
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
        for (unsigned n = 0; !device->parked && waiting(device) && n < PCS_TURN_OPS; n++) {
            execute(s, device, &device->queue[device->head++ % PCISPLIT_REQUEST_SLOTS]);
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
    int64_t available = pcisplit_available(&s->requests), space = pcisplit_space_recheck(&s->responses);
    if (available < 0 || space < 0)
        end(s, PCISPLIT_ERROR_RING_OVERRUN);
    return available != 0 && (space < 0 || space > (int64_t)s->unanswered);
}

// Sleep until something happens. Afterwards `rang` says whether it was the doorbell.
static void sleep_until_rung(struct pcs_serve *s)
{
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
    pcs_flush(s);
    return done;
}

static void judge(struct pcs_serve *s, unsigned done)
{
    s->worked |= done || front_moved(s);
    if (s->rang) {
        pcs_judge_kick(s, s->worked);
        s->worked = s->rang = 0;
    }
}

// The access that the request made faulted: its answer says so, and how far a block got [THR-9, BAR-21].
static void answer_faulted(struct pcs_serve *s)
{
    const union pcs_slot *request = s->executing;

    s->executing = NULL;
    s->result.error = PCISPLIT_ERROR_FAULTED;
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
        judge(s, done);
        if (atomic_load(&s->stop) || s->reason || front_moved(s))
            break;
        if (done) {
            idle = 0;
            last_work = 0;
            if (++busy % LOOK_EVERY == 0)
                pcs_events(s, 0); // interrupts are not starved by a busy ring
            continue;
        }
        if (s->spin_ns && ++idle % 64) {
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
        return PCS_STOPPED;
    return s->reason ? PCS_ENDED : PCS_FRONT_STATE;
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
