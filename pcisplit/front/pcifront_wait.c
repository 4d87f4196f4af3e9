/* SPDX-License-Identifier: MIT
 *
 * pcifront: telling a back that sleeps, and sleeping. Freestanding, as pcifront.c.
 */
#include "pcifront_internal.h"

void pcifront_kick_sleeper(struct pcifront *f)
{
    if (pcisplit_must_kick(&f->back->sleeping))
        f->hooks.kick(f->hooks.context);
}

/* ---- telling the back --------------------------------------------------------------------------------------------- */

void pcifront_settle(struct pcifront *f)
{
    pcifront_close_pack(f);
    int told = pcisplit_owes(&f->requests) || pcisplit_held(&f->responses);
    if (pcisplit_owes(&f->requests))
        pcisplit_announce(&f->requests);
    if (pcisplit_held(&f->responses))
        pcisplit_give_back(&f->responses);
    if (told)
        pcifront_kick_sleeper(f);
}

void pcifront_publish(struct pcifront *f)
{
    pcifront_close_pack(f);
    if (pcisplit_owes(&f->requests)) {
        pcisplit_announce(&f->requests);
        pcifront_kick_sleeper(f);
    }
}

/* ---- waiting ----------------------------------------------------------------------------------------------------- */

/* Say that we sleep and look once more at the ring [RING-10]: 1 if there is a response, 0, GONE. */
static int sleep_begin(struct pcifront *f)
{
    pcifront_settle(f);
    pcisplit_sleep_begin(&f->front->sleeping);
    int found = pcisplit_recheck(&f->responses);
    return found < 0 ? PCISPLIT_ERROR_GONE : found;
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
static void begin_to_count(struct pcifront *f, uint64_t *deadline)
{
    if (*deadline & PCIFRONT_COUNTED && *deadline != PCIFRONT_FOREVER)
        *deadline = f->hooks.now(f->hooks.context) + (*deadline & ~PCIFRONT_COUNTED);
}

/* For a turn that brought something, but not what was wanted: a back that publishes without end stretches no deadline. */
int pcifront_overdue(struct pcifront *f, uint64_t *deadline)
{
    begin_to_count(f, deadline);
    if (*deadline == PCIFRONT_FOREVER || f->hooks.now(f->hooks.context) < *deadline)
        return 0;
    return PCISPLIT_ERROR_TIMEOUT;
}

int pcifront_wait(struct pcifront *f, pcifront_stop stop, const void *what, uint64_t *deadline)
{
    for (uint32_t i = 0; i < f->spin; i++) {
        if (pcisplit_available(&f->responses) || (stop && stop(f, what)))
            return 0;
        pcisplit_pause();
        if (i == PCISPLIT_ANNOUNCE_POLLS)
            pcifront_settle(f);
    }
    begin_to_count(f, deadline);
    int error = sleep_begin(f);
    if (error == 0 && !(stop && stop(f, what)))
        error = f->hooks.wait(f->hooks.context, *deadline);
    if (!f->yielded)
        pcisplit_sleep_end(&f->front->sleeping);
    return error < 0 ? error : 0;
}
