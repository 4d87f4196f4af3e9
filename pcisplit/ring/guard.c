// SPDX-License-Identifier: MIT
// SIGBUS guard; see guard.h. The handler touches only its thread's guard and is async-signal-safe.

#include "guard.h"

#include <pthread.h>

static _Thread_local struct pcs_guard *current;
static struct sigaction previous;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static int install_error;

static void chain(int number, siginfo_t *info, void *context)
{
    if (previous.sa_flags & SA_SIGINFO) {
        previous.sa_sigaction(number, info, context);
    } else if (previous.sa_handler == SIG_IGN) {
        return; // an ignored synchronous fault would loop; the kernel kills instead, so can only be a sent signal
    } else if (previous.sa_handler == SIG_DFL) {
        signal(number, SIG_DFL); // returning re-executes the access, which then kills as it would have without us
    } else {
        previous.sa_handler(number);
    }
}

static void on_sigbus(int number, siginfo_t *info, void *context)
{
    struct pcs_guard *guard = current;
    uintptr_t address = (uintptr_t)info->si_addr;

    if (guard && guard->armed) {
        for (unsigned i = 0; i < guard->count; i++) {
            if (address >= guard->window[i].start && address < guard->window[i].end) {
                guard->armed = 0;
                siglongjmp(guard->resume, 1);
            }
        }
    }
    chain(number, info, context);
}

static void install(void)
{
    struct sigaction action = {.sa_sigaction = on_sigbus, .sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK};

    // SA_NODEFER: siglongjmp without a saved mask must not leave SIGBUS blocked, or the next fault kills.
    sigemptyset(&action.sa_mask);
    install_error = sigaction(SIGBUS, &action, &previous);
}

int pcs_guard_install(void)
{
    pthread_once(&once, install);
    return install_error;
}

void pcs_guard_use(struct pcs_guard *guard)
{
    current = guard;
}

int pcs_guard_window(struct pcs_guard *guard, const volatile void *start, size_t length)
{
    if (guard->count == PCS_GUARD_WINDOWS)
        return -1;
    guard->window[guard->count].start = (uintptr_t)start;
    guard->window[guard->count].end = (uintptr_t)start + length;
    guard->count++;
    return 0;
}
