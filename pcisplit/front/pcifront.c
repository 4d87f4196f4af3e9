/* SPDX-License-Identifier: MIT
 *
 * pcifront: requests, answers, waiting. Attach is in pcifront_attach.c. Freestanding: no libc, no struct assignment
 * (compilers turn it into memcpy). The back is trusted for liveness, not for indices [THR-8].
 */
#include "pcifront_internal.h"

enum { FREE, SUBMITTED, CALLED, ABANDONED, DONE };

static void trace(struct pcifront *f, unsigned kind, const void *slot)
{
    if (f->hooks.trace)
        f->hooks.trace(f->hooks.context, kind, (const struct pcisplit_slot *)slot);
}

static void kick(struct pcifront *f)
{
    f->hooks.kick(f->hooks.context);
}

/* ---- answers ----------------------------------------------------------------------------------------------------- */

/* Whether these are octets that a back may write: an error of the table, reserved octets zero. */
static int sound(const union pcifront_slot *slot)
{
    const uint64_t *word = slot->raw.word;
    uint64_t reserved = word[4] >> 32 | word[5] | word[6] | word[7];

    _Static_assert(offsetof(struct pcisplit_response, reserved) == 36, "the words above have the reserved octets");
    if (!(reserved | (word[0] & 0xffff0000u)))
        return 1; /* success, as nearly always */
    unsigned code = (unsigned)-(int)slot->response.error; /* of a positive error: a large number */
    return !reserved && code < 64 && PCISPLIT_ERRORS_KNOWN >> code & 1;
}

/* File one response under its request. The id is the back's word: it is masked into the table and compared whole. Callers
 * see errors of the table and nothing else: they test for < 0 [THR-32]. */
static void file_untrusted(struct pcifront *f, const union pcifront_slot *slot)
{
    struct pcifront_pending *pending = &f->pending[slot->response.id & (PCIFRONT_PENDING - 1)];
    struct pcifront_device *device = &f->device[pending->device];

    if (pending->state == FREE || pending->state == DONE || pending->id != slot->response.id) {
        f->strange++;
        return;
    }
    if (pending->chunk) {
        f->chunks_busy &= ~(1u << (pending->chunk - 1));
        pending->chunk = 0;
    }
    if (pending->state == ABANDONED) {
        f->late++;
        pending->state = FREE;
        return;
    }
    pcifront_copy_slot(&pending->response, slot);
    if (!sound(slot)) {
        pending->response.error = PCISPLIT_ERROR_OP_FAILED;
        f->strange++;
    } else if (slot->response.op == PCISPLIT_OP_RESET && slot->response.error == PCISPLIT_ERROR_SUCCESS) {
        device->generation = slot->response.generation;
    } else if (slot->response.generation != pending->generation && slot->response.error == PCISPLIT_ERROR_SUCCESS) {
        pending->response.error = PCISPLIT_ERROR_STALE; /* [LIFE-23] */
        f->stale++;
    }
    if (pending->state == SUBMITTED)
        f->done[f->done_tail++ & (PCIFRONT_PENDING - 1)] = (uint8_t)(slot->response.id & (PCIFRONT_PENDING - 1));
    pending->state = DONE;
}

/* Take every response there is. GONE if the ring is impossible. The slots are given back at once, and no kick is due:
 * with at most PCIFRONT_PENDING requests in flight the back never waits for response slots [RING-5]. */
int pcifront_collect(struct pcifront *f)
{
    union pcifront_slot slot;
    int64_t count = pcisplit_available(&f->responses);

    if (count < 0)
        return PCISPLIT_ERROR_GONE;
    if (count == 0)
        return 0;
    for (int64_t i = 0; i < count; i++) {
        pcisplit_take(&f->responses, &slot.raw);
        trace(f, PCIFRONT_TRACE_RESPONSE, &slot);
        file_untrusted(f, &slot);
    }
    pcisplit_give_back(&f->responses);
    return 1;
}

/* ---- waiting ----------------------------------------------------------------------------------------------------- */

/* Say that we sleep and look once more at the ring [RING-10]: 1 if there is a response, 0, GONE. */
static int sleep_begin(struct pcifront *f)
{
    pcisplit_sleep_begin(&f->front->sleeping);
    int64_t count = pcisplit_available(&f->responses);
    return count < 0 ? PCISPLIT_ERROR_GONE : count > 0;
}

int pcifront_sleep(struct pcifront *f)
{
    f->yielded = 1;
    int found = sleep_begin(f);
    if (found < 0)
        return found;
    if (!pcifront_connected(f))
        return PCISPLIT_ERROR_GONE;
    return found || pcifront_ready(f) != 0;
}

void pcifront_awake(struct pcifront *f)
{
    f->yielded = 0;
    pcisplit_sleep_end(&f->front->sleeping);
}

/* A deadline that counts from the first wait begins to count. */
static void settle(struct pcifront *f, uint64_t *deadline)
{
    if (*deadline & PCIFRONT_COUNTED && *deadline != PCIFRONT_FOREVER)
        *deadline = f->hooks.now(f->hooks.context) + (*deadline & ~PCIFRONT_COUNTED);
}

/* For a turn that brought something, but not what was wanted: a back that publishes without end stretches no deadline. */
int pcifront_overdue(struct pcifront *f, uint64_t *deadline)
{
    settle(f, deadline);
    if (*deadline == PCIFRONT_FOREVER || f->hooks.now(f->hooks.context) < *deadline)
        return 0;
    return PCISPLIT_ERROR_TIMEOUT;
}

int pcifront_wait(struct pcifront *f, pcifront_stop stop, const void *what, uint64_t *deadline)
{
    for (uint32_t i = 0; i < f->spin; i++) {
        if (pcisplit_available(&f->responses) != 0 || (stop && stop(f, what)))
            return 0;
        pcisplit_pause();
    }
    settle(f, deadline);
    int error = sleep_begin(f);
    if (error == 0 && !(stop && stop(f, what)))
        error = f->hooks.wait(f->hooks.context, *deadline);
    if (!f->yielded)
        pcisplit_sleep_end(&f->front->sleeping);
    return error < 0 ? error : 0;
}

/* ---- requests ---------------------------------------------------------------------------------------------------- */

/* Enter a request into the table and the ring, not yet published. `state` FREE: posted, wants no entry. */
static int enter(struct pcifront *f, union pcifront_slot *slot, uint8_t state)
{
    struct pcisplit_request *request = &slot->request;

    if (!pcifront_connected(f))
        return PCISPLIT_ERROR_GONE;
    if (request->device >= f->device_count)
        return PCISPLIT_ERROR_DEV_NOT_FOUND;
    int64_t space = pcisplit_space(&f->requests, 1);
    if (space < 0)
        return PCISPLIT_ERROR_GONE;
    if (space == 0)
        return PCISPLIT_ERROR_BUSY;
    uint32_t id = f->next_id, generation = f->device[request->device].generation;
    if (state != FREE) {
        struct pcifront_pending *pending;
        uint32_t tries = 0;
        do { /* an abandoned request keeps its place until it is answered: step over it [RING-9] */
            if (tries++ == PCIFRONT_PENDING)
                return PCISPLIT_ERROR_BUSY;
            id = f->next_id++;
            pending = &f->pending[id & (PCIFRONT_PENDING - 1)];
        } while (pending->state != FREE);
        pending->id = id;
        pending->generation = generation;
        pending->device = request->device;
        pending->chunk = 0;
        pending->state = state;
    }
    slot->raw.word[0] = (slot->raw.word[0] & 0xffffffffu) | (uint64_t)id << 32; /* as words: see compose() */
    slot->raw.word[1] = (slot->raw.word[1] & 0xffffffffu) | (uint64_t)generation << 32;
    trace(f, PCIFRONT_TRACE_REQUEST, slot);
    pcisplit_fill(&f->requests, &slot->raw);
    return 0;
}

void pcifront_publish(struct pcifront *f)
{
    pcisplit_publish(&f->requests);
    if (pcisplit_must_kick(&f->back->sleeping))
        kick(f);
}

static int space_stop(struct pcifront *f, const void *what)
{
    (void)what;
    return pcisplit_space_recheck(&f->requests) != 0 || !pcifront_connected(f);
}

/* Whether the table lacks an entry that only an answer can free: 0 there is a free one, 1, or BUSY if no answer is owed
 * (all have come and wait for pcifront_poll). */
static int table_full(const struct pcifront *f)
{
    int owed = PCISPLIT_ERROR_BUSY;
    for (unsigned i = 0; i < PCIFRONT_PENDING; i++) {
        if (f->pending[i].state == FREE)
            return 0;
        if (f->pending[i].state != DONE)
            owed = 1;
    }
    return owed;
}

/* enter(), waiting for a slot of the ring or an entry of the table if there is none. For an answer it waits only when one
 * must come before the request can be entered. Otherwise it waits for space, which is looked at again on the way to sleep:
 * it may have come since enter() looked, and then nothing would end a wait for anything else. */
static int enter_wait(struct pcifront *f, union pcifront_slot *slot, uint8_t state, uint64_t *deadline)
{
    int error;
    while ((error = enter(f, slot, state)) == PCISPLIT_ERROR_BUSY) {
        pcifront_publish(f); /* what fills the ring may not be visible yet */
        error = pcifront_collect(f);
        if (error == 0) {
            int full = state == FREE ? 0 : table_full(f);
            error = full < 0 ? full : pcifront_wait(f, full ? 0 : space_stop, 0, deadline);
        } else if (error > 0) {
            error = pcifront_overdue(f, deadline);
        }
        if (error < 0)
            return error;
    }
    return error;
}

int pcifront_call_slot(struct pcifront *f, union pcifront_slot *slot, uint8_t chunk, uint64_t *deadline)
{
    int error = enter_wait(f, slot, CALLED, deadline);
    if (error < 0)
        return error;
    struct pcifront_pending *pending = &f->pending[slot->request.id & (PCIFRONT_PENDING - 1)];
    pending->chunk = chunk;
    if (chunk)
        f->chunks_busy |= 1u << (chunk - 1);
    pcifront_publish(f);
    for (;;) {
        error = pcifront_collect(f);
        if (error < 0)
            break;
        if (pending->state == DONE) {
            pcifront_copy_slot(slot, &pending->response);
            pending->state = FREE;
            return slot->response.error;
        }
        if (error > 0)
            error = pcifront_overdue(f, deadline);
        else
            error = pcifront_connected(f) ? pcifront_wait(f, 0, 0, deadline) : PCISPLIT_ERROR_GONE;
        if (error < 0)
            break;
    }
    pending->state = ABANDONED; /* its answer may still come */
    return error;
}

int pcifront_call(struct pcifront *f, struct pcisplit_request *request, struct pcisplit_response *response,
                  uint64_t deadline)
{
    union pcifront_slot slot;
    pcifront_copy_slot(&slot, request);
    int error = pcifront_call_slot(f, &slot, 0, &deadline);
    if (slot.response.error == error)
        pcifront_copy_slot(response, &slot);
    return error;
}

int pcifront_enter_posted(struct pcifront *f, union pcifront_slot *slot, uint64_t deadline)
{
    return deadline ? enter_wait(f, slot, FREE, &deadline) : enter(f, slot, FREE);
}

int pcifront_submit(struct pcifront *f, struct pcisplit_request *request)
{
    union pcifront_slot slot;
    pcifront_copy_slot(&slot, request);
    int error = enter(f, &slot, slot.request.flags & PCISPLIT_FLAG_POSTED ? FREE : SUBMITTED);
    if (error == 0) {
        pcifront_copy_slot(request, &slot);
        pcifront_publish(f);
    }
    return error;
}

int pcifront_poll(struct pcifront *f, struct pcisplit_response *response)
{
    if (f->done_head == f->done_tail) {
        int error = pcifront_collect(f);
        if (error < 0)
            return error;
        if (f->done_head == f->done_tail)
            return pcifront_connected(f) ? 0 : PCISPLIT_ERROR_GONE;
    }
    struct pcifront_pending *pending = &f->pending[f->done[f->done_head++ & (PCIFRONT_PENDING - 1)]];
    pcifront_copy_slot(response, &pending->response);
    pending->state = FREE;
    return 1;
}

int pcifront_wait_answer(struct pcifront *f, uint64_t deadline)
{
    while (f->done_head == f->done_tail) {
        int error = pcifront_collect(f);
        if (error > 0)
            error = f->done_head == f->done_tail ? pcifront_overdue(f, &deadline) : 0;
        else if (error == 0)
            error = pcifront_connected(f) ? pcifront_wait(f, 0, 0, &deadline) : PCISPLIT_ERROR_GONE;
        if (error < 0)
            return error;
    }
    return 0;
}

void pcifront_abandon(struct pcifront *f)
{
    for (; f->done_head != f->done_tail; f->late++)
        f->pending[f->done[f->done_head++ & (PCIFRONT_PENDING - 1)]].state = FREE;
    for (unsigned i = 0; i < PCIFRONT_PENDING; i++)
        if (f->pending[i].state == SUBMITTED)
            f->pending[i].state = ABANDONED;
}
