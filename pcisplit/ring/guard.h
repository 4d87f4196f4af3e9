/* SPDX-License-Identifier: MIT
 *
 * SIGBUS guard: an access to memory that somebody else can take away (device memory with decode off, in D3 or gone; a memfd
 * that a peer cut short or punched) ends as an error of that access, not as the end of the process [THR-9]. It is the last
 * line of defence, not the plan.
 *
 * A thread runs a piece of work under a guard that names the windows in which a fault is expected. A SIGBUS whose address is
 * in none of them, or in a thread that runs nothing guarded, goes to whoever handled SIGBUS before us. Guards nest: an inner
 * one replaces the outer until it is done. Guarded work holds no lock and owns nothing that a jump out of it would leak.
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

/* Make `guard` one without windows. */
void pcs_guard_init(struct pcs_guard *guard);

/* Add `length` octets at `start` to the windows. Returns 0, or -1 when there is no room. */
int pcs_guard_window(struct pcs_guard *guard, const volatile void *start, size_t length);

/* Run work(context) under `guard`. Returns 0, or -1 when a fault in a window ended it: what it had stored before by way of
 * `context` stands, if the accesses are volatile or behind a compiler barrier. Costs one sigsetjmp, however long the work. */
int pcs_guarded(struct pcs_guard *guard, void (*work)(void *context), void *context);

/* Touch every page of `length` octets at `start` by a read, so that what cannot be had fails now. Returns 0 or FAULTED. */
int pcs_prefault(const volatile void *start, uint64_t length);

/* Copy between private and shared memory, in no order or width that could be relied on. Returns 0, INVALID_OFFSET when the
 * range does not lie in the `shared_size` octets at `shared`, or FAULTED: a part may have been copied. */
int pcs_guarded_copy(void *private_memory, volatile void *shared, uint64_t shared_size, uint64_t offset, uint64_t length,
                     int to_shared);

/* One load or store of exactly `width` octets. Returns 0, INVALID_OFFSET or FAULTED; the value read in *value. */
int pcs_guarded_access(volatile void *base, uint64_t size, uint64_t offset, unsigned width, int write, uint64_t *value);

#endif
