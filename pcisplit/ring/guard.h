/* SPDX-License-Identifier: MIT
 *
 * SIGBUS guard: an access to device memory that faults (decode off, D3, device gone, memfd cut short) ends as an error of
 * that access, not as the end of the process [THR-9]. It is the last line of defence, not the plan.
 *
 * Each thread declares the windows in which a fault is expected and arms the guard with sigsetjmp. A SIGBUS whose address
 * is in none of the thread's windows, or in a thread that is not armed, goes to whoever handled SIGBUS before us.
 *
 *     if (sigsetjmp(guard->resume, 0) == 0) { guard->armed = 1; ... access ... ; guard->armed = 0; } else { faulted }
 */
#ifndef PCISPLIT_GUARD_H
#define PCISPLIT_GUARD_H

#include <setjmp.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>

#define PCS_GUARD_WINDOWS 256

struct pcs_guard {
    sigjmp_buf resume;
    volatile sig_atomic_t armed;
    unsigned count;
    struct { uintptr_t start, end; } window[PCS_GUARD_WINDOWS];
};

/* Install the handler, once per process; later calls do nothing. Returns 0, or -1 with errno. */
int pcs_guard_install(void);

/* Make `guard` the calling thread's guard; NULL for none. */
void pcs_guard_use(struct pcs_guard *guard);

/* Add `length` octets at `start` to the windows. Returns 0, or -1 when there is no room. */
int pcs_guard_window(struct pcs_guard *guard, const volatile void *start, size_t length);

#endif
