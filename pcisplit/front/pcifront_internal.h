/* SPDX-License-Identifier: MIT
 *
 * What the files of pcifront share and nobody else sees.
 */
#ifndef PCIFRONT_INTERNAL_H
#define PCIFRONT_INTERNAL_H

#include "pcifront.h"

union pcifront_slot {
    struct pcisplit_slot raw;
    struct pcisplit_request request;
    struct pcisplit_request_irq irq;
    struct pcisplit_request_reads reads;
    struct pcisplit_response response;
    struct pcisplit_response_values values;
    struct pcisplit_event event;
};

/* Looked at while waiting: nonzero ends the wait. */
typedef int (*pcifront_stop)(struct pcifront *f, const void *what);

static inline int pcifront_connected(struct pcifront *f)
{
    return pcisplit_load(&f->back->state) == PCISPLIT_STATE_CONNECTED;
}

/* A request of the plain record, in whole words: smaller stores would make the copy to the ring wait. */
static inline void pcifront_compose(union pcifront_slot *slot, unsigned op, unsigned device, unsigned region,
                                    uint64_t offset, unsigned width, uint64_t value)
{
    volatile uint64_t *word = slot->raw.word;

    word[0] = op & 0xffffu;
    word[1] = (device & 0xffffu) | (uint64_t)(region & 0xffu) << 16 | (uint64_t)(width & 0xffu) << 24;
    word[2] = offset;
    word[3] = value;
    word[4] = word[5] = word[6] = word[7] = 0;
}

static inline void pcifront_trace(struct pcifront *f, unsigned kind, const void *slot)
{
    if (f->hooks.trace)
        f->hooks.trace(f->hooks.context, kind, (const struct pcisplit_slot *)slot);
}

static inline void pcifront_copy_slot(void *to, const void *from)
{
    pcisplit_copy_slot((volatile uint64_t *)to, (const volatile uint64_t *)from);
}

/* Take every response there is: 1 if there were any, or 0. */
int pcifront_collect(struct pcifront *f);

/* Wait until a response comes or `stop` (may be NULL) says so: 0, TIMEOUT, GONE. Spins within the budget first. Makes a
 * deadline that counts from here (PCIFRONT_WITHIN) absolute, so that the next wait of the same call goes on with it. */
int pcifront_wait(struct pcifront *f, pcifront_stop stop, const void *what, uint64_t *deadline);

/* TIMEOUT if the deadline is over, else 0. Every loop that waits asks this after a turn without a wait [LIFE-30]. */
int pcifront_overdue(struct pcifront *f, uint64_t *deadline);

/* Enter a posted request, without an entry in the table. With deadline 0 a full ring is BUSY. */
int pcifront_enter_posted(struct pcifront *f, union pcifront_slot *slot, uint64_t *deadline);

/* Wait for room in the ring. TIMEOUT, GONE; BUSY at once with deadline 0. */
int pcifront_room(struct pcifront *f, uint64_t *deadline);

/* Submit the request in *slot and wait; *slot becomes the response if there is one. `chunk`: bulk chunk plus 1, or 0. */
int pcifront_call_slot(struct pcifront *f, union pcifront_slot *slot, uint8_t chunk, uint64_t *deadline);

/* The same in two halves, so that several can be in flight; `left` gives up one that was entered. */
int pcifront_call_enter(struct pcifront *f, union pcifront_slot *slot, uint64_t *deadline);
int pcifront_call_answer(struct pcifront *f, uint32_t id, union pcifront_slot *slot, uint64_t *deadline);
void pcifront_call_left(struct pcifront *f, uint32_t id);

/* Publish the pack that is being filled, if there is one. */
void pcifront_close_pack(struct pcifront *f);

/* After an index was stored that the back may wait for [RING-11]. */
void pcifront_kick_sleeper(struct pcifront *f);

/* Tell the back of what it was not told of, after which it is woken if it sleeps [RING-15], and give slots back. */
void pcifront_settle(struct pcifront *f);

#endif
