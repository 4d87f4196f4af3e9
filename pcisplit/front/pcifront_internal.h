/* SPDX-License-Identifier: MIT
 *
 * What the three files of pcifront share and nobody else sees.
 */
#ifndef PCIFRONT_INTERNAL_H
#define PCIFRONT_INTERNAL_H

#include "pcifront.h"

union pcifront_slot {
    struct pcisplit_slot raw;
    struct pcisplit_request request;
    struct pcisplit_response response;
    struct pcisplit_event event;
};

/* Looked at while waiting: nonzero ends the wait. */
typedef int (*pcifront_stop)(struct pcifront *f, const void *what);

static inline int pcifront_connected(struct pcifront *f)
{
    return pcisplit_load(&f->back->state) == PCISPLIT_STATE_CONNECTED;
}

static inline void pcifront_copy_slot(void *to, const void *from)
{
    pcisplit_copy_slot((volatile uint64_t *)to, (const volatile uint64_t *)from);
}

/* Take every response there is: 1 if there were any, 0, or GONE. */
int pcifront_collect(struct pcifront *f);

/* Wait until a response comes or `stop` (may be NULL) says so: 0, TIMEOUT, GONE. Spins within the budget first. Makes a
 * deadline that counts from here (PCIFRONT_WITHIN) absolute, so that the next wait of the same call goes on with it. */
int pcifront_wait(struct pcifront *f, pcifront_stop stop, const void *what, uint64_t *deadline);

/* TIMEOUT if the deadline is over, else 0. Every loop that waits asks this after a turn without a wait [LIFE-30]. */
int pcifront_overdue(struct pcifront *f, uint64_t *deadline);

/* Enter a posted request, without an entry in the table; not yet published. With deadline 0 a full ring is BUSY. */
int pcifront_enter_posted(struct pcifront *f, union pcifront_slot *slot, uint64_t deadline);

/* Submit the request in *slot and wait; *slot becomes the response if there is one. `chunk`: bulk chunk plus 1, or 0. */
int pcifront_call_slot(struct pcifront *f, union pcifront_slot *slot, uint8_t chunk, uint64_t *deadline);

#endif
