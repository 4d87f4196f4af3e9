// SPDX-License-Identifier: MIT
// SIGBUS guard; see guard.h. The handler touches only its thread's guard and is async-signal-safe.

#include "guard.h"

#include "pcisplit_mmio.h"
#include "pcisplit_wire.gen.h"

#include <pthread.h>
#include <string.h>
#include <unistd.h>

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

void pcs_guard_init(struct pcs_guard *guard)
{
    guard->armed = 0;
    guard->count = 0; // the windows behind it need no zeros: there are 4 KiB of them
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

// `guard` and `before` do not change between sigsetjmp and the jump, so they need not be volatile. The mask is not saved:
// that would be a system call, and SA_NODEFER leaves it as it is.
int pcs_guarded(struct pcs_guard *guard, void (*work)(void *context), void *context)
{
    struct pcs_guard *before = current;

    if (sigsetjmp(guard->resume, 0)) {
        current = before; // the handler has disarmed it
        return -1;
    }
    current = guard;
    guard->armed = 1;
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
    work(context);
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
    guard->armed = 0;
    current = before;
    return 0;
}

/* ---- three things to do under a guard of one window ------------------------------------------------------------------ */

static int guarded_once(const volatile void *start, uint64_t length, void (*work)(void *), void *context)
{
    struct pcs_guard guard;

    if (pcs_guard_install())
        return PCISPLIT_ERROR_OP_FAILED;
    pcs_guard_init(&guard);
    pcs_guard_window(&guard, start, length);
    return pcs_guarded(&guard, work, context) ? PCISPLIT_ERROR_FAULTED : 0;
}

struct span {
    const volatile uint8_t *start;
    uint64_t length, step;
};

static void touch(void *context)
{
    const struct span *span = context;

    for (uint64_t at = 0; at < span->length; at += span->step)
        (void)span->start[at];
    if (span->length)
        (void)span->start[span->length - 1];
}

int pcs_prefault(const volatile void *start, uint64_t length)
{
    struct span span = {start, length, (uint64_t)sysconf(_SC_PAGESIZE)};
    return guarded_once(start, length, touch, &span);
}

struct copy {
    void *to;
    const void *from;
    uint64_t length;
};

static void copy_octets(void *context)
{
    const struct copy *copy = context;
    memcpy(copy->to, copy->from, copy->length);
}

int pcs_guarded_copy(void *private_memory, volatile void *shared, uint64_t shared_size, uint64_t offset, uint64_t length,
                     int to_shared)
{
    if (offset > shared_size || length > shared_size - offset)
        return PCISPLIT_ERROR_INVALID_OFFSET;
    void *there = (uint8_t *)(uintptr_t)shared + offset;
    struct copy copy = {to_shared ? there : private_memory, to_shared ? private_memory : there, length};
    return guarded_once(there, length, copy_octets, &copy);
}

struct access {
    volatile uint8_t *at;
    unsigned width;
    int write;
    uint64_t *value;
};

static void access_once(void *context)
{
    const struct access *access = context;

    if (access->write)
        pcisplit_mmio_write(access->at, access->width, *access->value);
    else
        *access->value = pcisplit_mmio_read(access->at, access->width);
}

int pcs_guarded_access(volatile void *base, uint64_t size, uint64_t offset, unsigned width, int write, uint64_t *value)
{
    struct access access = {(volatile uint8_t *)base + offset, width, write, value};

    if (width > size || offset > size - width)
        return PCISPLIT_ERROR_INVALID_OFFSET;
    return guarded_once(access.at, width, access_once, &access);
}
