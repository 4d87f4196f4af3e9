/* SPDX-License-Identifier: MIT
 *
 * What the files of pcifront on a host share and nobody else sees.
 */
#ifndef PCIFRONT_HOST_INTERNAL_H
#define PCIFRONT_HOST_INTERNAL_H

#include "pcifront_host.h"

#include <stdatomic.h>

struct traced {
    uint64_t time, kind;
    struct pcisplit_slot slot;
};

struct pcsf {
    struct pcifront front;
    int kick_fd, rung_fd, socket_fd;
    int gone;   // the socket hung up
    int closed; // retired: the regions may be unmapped, nothing looks at them any more
    atomic_flag inside; // a thread is in here
    uint64_t timeout;
    uint64_t last_value, last_detail, last_moved;
    uint32_t last_state; // of the back, with its reason: what a caller is told while another thread is inside
    int last_reason;
    struct traced *traced;
    unsigned trace_size, trace_head, trace_tail;
};

uint64_t pcsf_now(void);

/* Take what rang, once. */
void pcsf_drain(struct pcsf *p);

/* One thread at a time: two in one ring would corrupt it. */
int pcsf_enter(struct pcsf *p);
void pcsf_leave(struct pcsf *p);

#endif
