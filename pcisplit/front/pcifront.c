/* SPDX-License-Identifier: MIT
 *
 * pcifront: requests and answers. Waiting is in pcifront_wait.c, packs are in pcifront_pack.c, attach is in pcifront_attach.c.
 * Freestanding: no libc, no struct assignment (compilers turn it into memcpy). The back is trusted for liveness, not for
 * indices [THR-8].
 */
#include "pcifront_internal.h"

enum { FREE, SUBMITTED, CALLED, ABANDONED, DONE };

/* ---- answers ----------------------------------------------------------------------------------------------------- */

static struct pcifront_pending *pending_of(struct pcifront *f, uint32_t id)
{
    return &f->pending[id & (PCIFRONT_PENDING - 1)];
}

static void release(struct pcifront *f, struct pcifront_pending *pending)
{
    pending->state = FREE;
    f->free[f->free_count++ & (PCIFRONT_PENDING - 1)] = (uint8_t)(pending - f->pending);
}

/* Whether these are octets that a back may write as the answer of this request: an error of the table, reserved octets zero,
 * the request's own operation and device. */
static int sound(const struct pcifront_pending *pending, const union pcifront_slot *slot)
{
    const uint64_t *word = slot->raw.word;
    uint64_t reserved = 0;

    if (slot->response.op != pending->op || slot->response.device != pending->device)
        return 0;
    if (pending->op == PCISPLIT_OP_BAR_READS)
        reserved = slot->values.done > PCISPLIT_PACK_READS;
    else
        reserved = word[4] >> 32 | word[5] | word[6] | (uint32_t)word[7];
    _Static_assert(offsetof(struct pcisplit_response, reserved) == 36, "the words above have the reserved octets");
    if (!slot->response.error)
        return !reserved; /* success, as nearly always */
    unsigned code = (unsigned)-(int)slot->response.error; /* of a positive error: a large number */
    return !reserved && code < 64 && PCISPLIT_ERRORS_KNOWN >> code & 1;
}

/* Make of an answer what a caller may see: errors of the table and nothing else: they test for < 0 [THR-32]. */
static void judge(struct pcifront *f, const struct pcifront_pending *pending, union pcifront_slot *slot)
{
    int error = slot->response.error, believed = sound(pending, slot);

    if (!believed) {
        error = PCISPLIT_ERROR_OP_FAILED;
        f->strange++;
    } else if (error == PCISPLIT_ERROR_SUCCESS) {
        if (pending->op == PCISPLIT_OP_RESET) {
            f->device[pending->device].generation = slot->response.generation;
        } else if (slot->response.generation != pending->generation) {
            believed = 0;
            error = PCISPLIT_ERROR_STALE; /* [LIFE-23] */
            f->stale++;
        }
    }
    if (!believed && pending->op == PCISPLIT_OP_BAR_READS)
        slot->values.done = 0;
    slot->response.error = (int16_t)error;
}

/* The next response, if there is one. Slots are given back when an eighth of the ring is due [RING-17]. */
static int take(struct pcifront *f, union pcifront_slot *slot)
{
    if (!pcisplit_take(&f->responses, &slot->raw)) {
        if (++f->empty % PCISPLIT_ANNOUNCE_POLLS == 0)
            pcifront_settle(f);
        return 0;
    }
    f->empty = 0;
    pcifront_trace(f, PCIFRONT_TRACE_RESPONSE, slot);
    if (pcisplit_held(&f->responses) >= f->responses.size / 8) {
        pcisplit_give_back(&f->responses);
        pcifront_kick_sleeper(f);
    }
    return 1;
}

/* The entry that a response is for, still waiting for it; or NULL. The id is the back's word: it is masked into the table and
 * compared whole. Its bulk chunk is free from now on. */
static struct pcifront_pending *claim(struct pcifront *f, uint32_t id)
{
    struct pcifront_pending *pending = pending_of(f, id);

    if (pending->state == FREE || pending->state == DONE || pending->id != id) {
        f->strange++;
        return 0;
    }
    if (pending->chunk) {
        f->chunks_busy &= ~(1u << (pending->chunk - 1));
        pending->chunk = 0;
    }
    if (pending->state == ABANDONED) {
        f->late++;
        release(f, pending);
        return 0;
    }
    return pending;
}

/* File one response under its request. */
static void file_untrusted(struct pcifront *f, union pcifront_slot *slot)
{
    struct pcifront_pending *pending = claim(f, slot->response.id);

    if (!pending)
        return;
    judge(f, pending, slot);
    pcifront_copy_slot(&pending->response, slot);
    if (pending->state == SUBMITTED)
        f->done[f->done_tail++ & (PCIFRONT_PENDING - 1)] = (uint8_t)(pending - f->pending);
    pending->state = DONE;
}

/* Take every response there is, at most a ring full. */
int pcifront_collect(struct pcifront *f)
{
    union pcifront_slot slot;
    uint32_t count = 0;

    while (count < f->responses.size && take(f, &slot)) {
        file_untrusted(f, &slot);
        count++;
    }
    return count != 0;
}

/* ---- requests ---------------------------------------------------------------------------------------------------- */

/* Enter a request into the table and the ring. `state` FREE: posted, wants no entry. */
static int enter(struct pcifront *f, union pcifront_slot *slot, uint8_t state)
{
    uint64_t *word = slot->raw.word;
    uint32_t id = 0, generation;

    pcifront_close_pack(f);
    if (!pcifront_connected(f))
        return PCISPLIT_ERROR_GONE;
    if (slot->request.device >= f->device_count)
        return PCISPLIT_ERROR_DEV_NOT_FOUND;
    int64_t space = pcisplit_space(&f->requests, 1);
    if (space < 0)
        return PCISPLIT_ERROR_GONE;
    if (space == 0)
        return PCISPLIT_ERROR_BUSY;
    generation = f->device[slot->request.device].generation;
    if (state != FREE) {
        if (!f->free_count)
            return PCISPLIT_ERROR_BUSY;
        uint32_t place = f->free[--f->free_count];
        struct pcifront_pending *pending = &f->pending[place];
        id = place | f->serial++ << 8; /* a late answer of its last user has another id [RING-9] */
        pending->id = id;
        pending->generation = generation;
        pending->device = slot->request.device;
        pending->op = slot->request.op;
        pending->chunk = 0;
        pending->state = state;
    }
    word[0] = (uint32_t)word[0] | (uint64_t)id << 32; /* whole words: smaller stores would make the copy wait */
    word[1] = (uint32_t)word[1] | (uint64_t)generation << 32;
    pcifront_trace(f, PCIFRONT_TRACE_REQUEST, slot);
    pcisplit_fill(&f->requests, &slot->raw);
    if (f->requests.filled - f->requests.announced >= PCISPLIT_ANNOUNCE_OPS || pcisplit_glance(&f->back->sleeping))
        pcifront_publish(f);
    return 0;
}

static int space_stop(struct pcifront *f, const void *what)
{
    (void)what;
    return pcisplit_space_recheck(&f->requests) != 0 || !pcifront_connected(f);
}

/* Whether answers must come before another request can be entered; BUSY if those that have come only want to be polled. */
static int table_full(const struct pcifront *f)
{
    int owed = PCISPLIT_ERROR_BUSY;
    if (f->free_count)
        return 0;
    for (unsigned i = 0; i < PCIFRONT_PENDING; i++)
        if (f->pending[i].state == SUBMITTED || f->pending[i].state == CALLED || f->pending[i].state == ABANDONED)
            owed = 1;
    return owed;
}

/* After a BUSY: wait for an answer if one must come before the request can be entered; otherwise for space, which is looked at
 * again on the way to sleep: it may have come since, and then nothing would end a wait for anything else. */
static int wait_for_room(struct pcifront *f, int posted, uint64_t *deadline)
{
    int error = pcifront_collect(f);
    if (error > 0)
        return pcifront_overdue(f, deadline);
    int full = posted ? 0 : table_full(f);
    return full < 0 ? full : pcifront_wait(f, full ? 0 : space_stop, 0, deadline);
}

int pcifront_room(struct pcifront *f, uint64_t *deadline)
{
    int64_t space;
    while ((space = pcisplit_space(&f->requests, 1)) == 0) {
        int error = !*deadline ? PCISPLIT_ERROR_BUSY : wait_for_room(f, 1, deadline);
        if (error < 0)
            return error;
        if (!pcifront_connected(f))
            return PCISPLIT_ERROR_GONE;
    }
    return space < 0 ? PCISPLIT_ERROR_GONE : 0;
}

static int enter_wait(struct pcifront *f, union pcifront_slot *slot, uint8_t state, uint64_t *deadline)
{
    int error;
    while ((error = enter(f, slot, state)) == PCISPLIT_ERROR_BUSY) {
        error = wait_for_room(f, state == FREE, deadline);
        if (error < 0)
            return error;
    }
    return error;
}

int pcifront_call_enter(struct pcifront *f, union pcifront_slot *slot, uint64_t *deadline)
{
    return enter_wait(f, slot, CALLED, deadline);
}

void pcifront_call_left(struct pcifront *f, uint32_t id)
{
    struct pcifront_pending *pending = pending_of(f, id);
    if (pending->state == DONE)
        release(f, pending);
    else
        pending->state = ABANDONED; /* its answer may still come */
}

/* What has come for somebody else is filed on the way; ours goes straight to the caller. */
int pcifront_call_answer(struct pcifront *f, uint32_t id, union pcifront_slot *slot, uint64_t *deadline)
{
    struct pcifront_pending *pending = pending_of(f, id);
    uint32_t others = 0;
    int error = 0;

    if (pending->state == DONE) { /* came while another was waited for */
        pcifront_copy_slot(slot, &pending->response);
        release(f, pending);
        return slot->response.error;
    }
    for (;;) {
        if (!take(f, slot)) {
            error = pcifront_connected(f) ? pcifront_wait(f, 0, 0, deadline) : PCISPLIT_ERROR_GONE;
        } else if (slot->response.id == id) {
            claim(f, id);
            judge(f, pending, slot);
            release(f, pending);
            return slot->response.error;
        } else {
            file_untrusted(f, slot);
            if (++others % 64 == 0)
                error = pcifront_overdue(f, deadline);
        }
        if (error < 0)
            break;
    }
    slot->response.error = 0; /* it is nobody's answer */
    pcifront_call_left(f, id);
    return error;
}

int pcifront_call_slot(struct pcifront *f, union pcifront_slot *slot, uint8_t chunk, uint64_t *deadline)
{
    int error = pcifront_call_enter(f, slot, deadline);
    if (error < 0)
        return error;
    if (chunk) {
        pending_of(f, slot->request.id)->chunk = chunk;
        f->chunks_busy |= 1u << (chunk - 1);
    }
    error = pcifront_call_answer(f, slot->request.id, slot, deadline);
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

int pcifront_enter_posted(struct pcifront *f, union pcifront_slot *slot, uint64_t *deadline)
{
    return *deadline ? enter_wait(f, slot, FREE, deadline) : enter(f, slot, FREE);
}

int pcifront_submit(struct pcifront *f, struct pcisplit_request *request, int more)
{
    union pcifront_slot slot;
    pcifront_copy_slot(&slot, request);
    int error = enter(f, &slot, slot.request.flags & PCISPLIT_FLAG_POSTED ? FREE : SUBMITTED);
    if (error == 0) {
        pcifront_copy_slot(request, &slot);
        if (!more)
            pcifront_publish(f);
    }
    return error;
}

int pcifront_poll(struct pcifront *f, struct pcisplit_response *response)
{
    if (f->done_head == f->done_tail) {
        pcifront_collect(f);
        if (f->done_head == f->done_tail)
            return pcifront_connected(f) ? 0 : PCISPLIT_ERROR_GONE;
    }
    struct pcifront_pending *pending = &f->pending[f->done[f->done_head++ & (PCIFRONT_PENDING - 1)]];
    pcifront_copy_slot(response, &pending->response);
    release(f, pending);
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
        release(f, &f->pending[f->done[f->done_head++ & (PCIFRONT_PENDING - 1)]]);
    for (unsigned i = 0; i < PCIFRONT_PENDING; i++)
        if (f->pending[i].state == SUBMITTED)
            f->pending[i].state = ABANDONED;
}
