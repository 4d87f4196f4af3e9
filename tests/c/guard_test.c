// SPDX-License-Identifier: MIT
// Guards nest: an inner access that faults gives the thread's outer guard back, and that one still holds.
#include "guard.h"

#include "pcisplit_wire.gen.h"

#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static volatile uint8_t *gone;
static volatile int step;

static void inner_then_outer(void *context)
{
    uint64_t value = 0;

    if (pcs_guarded_access(gone, 4096, 8, 4, 0, &value) == PCISPLIT_ERROR_FAULTED)
        step = 1;
    if (pcs_prefault(gone, 4096) == PCISPLIT_ERROR_FAULTED)
        step++;
    (void)gone[16]; // ours now, not the inner one's
    step = -1;
}

int main(void)
{
    int fd = memfd_create("gone", 0);
    struct pcs_guard guard;

    gone = mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 0); // beyond the end of the file: SIGBUS
    if (fd < 0 || gone == MAP_FAILED || pcs_guard_install())
        return 2;
    pcs_guard_init(&guard);
    pcs_guard_window(&guard, gone, 4096);
    for (int i = 0; i < 3; i++) {
        step = 0;
        if (pcs_guarded(&guard, inner_then_outer, NULL) != -1 || step != 2) {
            printf("fault not caught by the outer guard: step %d\n", step);
            return 1;
        }
    }
    return 0;
}
