// SPDX-License-Identifier: MIT
// pcifront on a host; see pcifront_host.h.

#include "pcifront_host.h"

#include <errno.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

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

/* ---- hooks ----------------------------------------------------------------------------------------------------------- */

static uint64_t host_now(void *context)
{
    struct timespec t;
    (void)context;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

// O_NONBLOCK of the eventfd is the back's to clear as well: nothing is written that has no room. Full counts as rung.
static void host_kick(void *context)
{
    struct pcsf *p = context;
    struct pollfd fd = {.fd = p->kick_fd, .events = POLLOUT};
    uint64_t one = 1;
    if (poll(&fd, 1, 0) == 1 && fd.revents & POLLOUT)
        (void)!write(p->kick_fd, &one, sizeof one);
}

// Take what rang, once: a back that rings without end keeps nobody here, and what is left wakes the next wait for nothing.
static void drain(struct pcsf *p)
{
    char drained[1024]; // a socket holds fewer messages of one octet
    ssize_t octets = recv(p->rung_fd, drained, sizeof drained, MSG_DONTWAIT);
    if (octets == 0 || (octets < 0 && errno != EAGAIN && errno != EINTR))
        p->gone = 1; // the back holds the other end while it lives
}

static int host_wait(void *context, uint64_t deadline)
{
    struct pcsf *p = context;
    struct pollfd fd[2] = {{.fd = p->rung_fd, .events = POLLIN}, {.fd = p->socket_fd, .events = POLLIN}};
    uint64_t now = host_now(p);

    if (p->gone)
        return PCISPLIT_ERROR_GONE;
    if (deadline <= now)
        return PCISPLIT_ERROR_TIMEOUT;
    uint64_t left = deadline - now;
    struct timespec timeout = {.tv_sec = (time_t)(left / 1000000000u), .tv_nsec = (long)(left % 1000000000u)};
    int ready = ppoll(fd, 2, deadline == PCIFRONT_FOREVER ? NULL : &timeout, NULL);
    if (ready == 0)
        return PCISPLIT_ERROR_TIMEOUT;
    if (ready < 0)
        return errno == EINTR ? 0 : PCISPLIT_ERROR_GONE;
    if (fd[0].revents & POLLIN && !p->front.yielded) // else the kick may be for who yielded, who drains it
        drain(p);
    if (fd[1].revents || fd[0].revents & (POLLHUP | POLLERR | POLLNVAL)) {
        p->gone = 1; // the back never writes on the socket: readable means closed, by it or by us
        return fd[0].revents & POLLIN ? 0 : PCISPLIT_ERROR_GONE;
    }
    return 0;
}

static void host_trace(void *context, unsigned kind, const struct pcisplit_slot *slot)
{
    struct pcsf *p = context;
    struct traced *entry = &p->traced[p->trace_tail++ % p->trace_size];
    entry->time = host_now(p);
    entry->kind = kind;
    entry->slot = *slot;
    if (p->trace_tail - p->trace_head > p->trace_size)
        p->trace_head = p->trace_tail - p->trace_size;
}

/* ---- life ------------------------------------------------------------------------------------------------------------ */

struct pcsf *pcsf_new(const void *boot_info, size_t length, void *f2b, void *b2f, void *dma, const uint64_t *sizes,
                      int kick_fd, int rung_fd, int socket_fd, int *error)
{
    struct pcsf *p = calloc(1, sizeof *p);
    uint64_t *aligned = malloc(length);
    void *region[3] = {f2b, b2f, dma};

    *error = PCISPLIT_ERROR_OP_FAILED;
    if (p && aligned) {
        struct pcifront_hooks hooks = {p, host_kick, host_wait, host_now, NULL};
        memcpy(aligned, boot_info, length);
        p->kick_fd = kick_fd;
        p->rung_fd = rung_fd;
        p->socket_fd = socket_fd;
        p->timeout = 2000000000u;
        atomic_flag_clear(&p->inside);
        *error = pcifront_attach(&p->front, aligned, length, region, sizes, &hooks, 0);
        p->front.spin = sysconf(_SC_NPROCESSORS_ONLN) > 1 ? 2000 : 0; // some 40 us; alone on a CPU spinning only delays
    }
    free(aligned);
    if (*error) {
        free(p);
        p = NULL;
    }
    return p;
}

void pcsf_free(struct pcsf *p)
{
    free(p->traced);
    free(p);
}

struct pcifront *pcsf_front(struct pcsf *p)
{
    return &p->front;
}

// The handle's timeout. Asking for the time costs as much as a tenth of an access: it counts from the first wait.
static uint64_t deadline_of(const struct pcsf *p)
{
    return PCIFRONT_WITHIN(p->timeout);
}

/* ---- calls ------------------------------------------------------------------------------------------------------------ */

// One thread at a time: two in one ring would corrupt it.
static int enter(struct pcsf *p)
{
    return !atomic_flag_test_and_set_explicit(&p->inside, memory_order_acquire);
}

static void leave(struct pcsf *p)
{
    atomic_flag_clear_explicit(&p->inside, memory_order_release);
}

// Whoever is told GONE asks for these afterwards, when the regions may be another thread's to unmap.
static void remember_back(struct pcsf *p)
{
    p->last_state = pcisplit_load(&p->front.back->state);
    p->last_reason = __atomic_load_n(&p->front.back->reason, __ATOMIC_SEQ_CST);
}

static int leave_with(struct pcsf *p, int error)
{
    if (error == PCISPLIT_ERROR_GONE)
        remember_back(p);
    leave(p);
    return error;
}

int pcsf_retire(struct pcsf *p)
{
    if (!p->closed && !enter(p))
        return 0;
    p->closed = 1;
    return 1;
}

static const uint64_t busy = (uint64_t)-PCSF_INSIDE << 32;

static uint64_t pack(struct pcsf *p, int error, const struct pcisplit_response *response)
{
    uint64_t rule = 0;
    p->last_value = response->value;
    if (error && response->error == error) {
        rule = response->rule;
        p->last_detail = response->detail;
    }
    if (error == PCISPLIT_ERROR_GONE)
        remember_back(p);
    return (error ? 0 : response->value & 0xffffffffu) | (uint64_t)(uint16_t)-error << 32 | rule << 48;
}

static uint64_t access_call(struct pcsf *p, unsigned op, unsigned device, unsigned region, uint64_t offset,
                            unsigned width, uint64_t value)
{
    struct pcisplit_request request = {.op = (uint16_t)op, .device = (uint16_t)device, .region = (uint8_t)region,
                                       .offset = offset, .width = (uint8_t)width, .value = value};
    struct pcisplit_response response = {.value = 0};

    if (!enter(p))
        return busy;
    if (op == PCISPLIT_OP_ENABLE_MSI || op == PCISPLIT_OP_DISABLE_MSI)
        request.count = 1;
    int error = pcifront_call(&p->front, &request, &response, deadline_of(p));
    uint64_t packed = pack(p, error, &response);
    leave(p);
    return packed;
}

uint64_t pcsf_config_read(struct pcsf *p, unsigned device, uint64_t offset, unsigned width)
{
    return access_call(p, PCISPLIT_OP_CONF_READ, device, 0, offset, width, 0);
}

uint64_t pcsf_config_write(struct pcsf *p, unsigned device, uint64_t offset, unsigned width, uint32_t value)
{
    return access_call(p, PCISPLIT_OP_CONF_WRITE, device, 0, offset, width, value);
}

uint64_t pcsf_bar_read(struct pcsf *p, unsigned device, unsigned bar, uint64_t offset, unsigned width)
{
    return access_call(p, PCISPLIT_OP_BAR_READ, device, bar, offset, width, 0);
}

uint64_t pcsf_bar_write(struct pcsf *p, unsigned device, unsigned bar, uint64_t offset, unsigned width, uint64_t value)
{
    return access_call(p, PCISPLIT_OP_BAR_WRITE, device, bar, offset, width, value);
}

uint64_t pcsf_operation(struct pcsf *p, unsigned op, unsigned device)
{
    return access_call(p, op, device, 0, 0, 0, 0);
}

uint64_t pcsf_bar_post(struct pcsf *p, unsigned device, unsigned bar, uint64_t offset, unsigned width, uint64_t value,
                       int publish)
{
    static const struct pcisplit_response none;
    if (!enter(p))
        return busy;
    uint64_t packed = pack(p, pcifront_bar_post(&p->front, device, bar, offset, width, value, publish, deadline_of(p)), &none);
    leave(p);
    return packed;
}

uint64_t pcsf_block(struct pcsf *p, int write, unsigned device, unsigned bar, uint64_t offset, unsigned width,
                    void *memory, uint64_t length)
{
    static const struct pcisplit_response none;
    struct pcifront *f = &p->front;
    if (!enter(p))
        return busy;
    int error = write ? pcifront_write_block(f, device, bar, offset, width, memory, length, &p->last_moved, deadline_of(p))
                      : pcifront_read_block(f, device, bar, offset, width, memory, length, &p->last_moved, deadline_of(p));
    uint64_t packed = pack(p, error, &none);
    leave(p);
    return packed;
}

uint64_t pcsf_last_value(const struct pcsf *p) { return p->last_value; }
uint64_t pcsf_last_detail(const struct pcsf *p) { return p->last_detail; }
uint64_t pcsf_last_moved(const struct pcsf *p) { return p->last_moved; }
int pcsf_gone(const struct pcsf *p) { return p->gone; }

int pcsf_connect(struct pcsf *p)
{
    return pcifront_connect(&p->front, deadline_of(p));
}

void pcsf_close(struct pcsf *p)
{
    if (!p->closed)
        pcifront_close(&p->front);
}

int pcsf_interrupt_wait(struct pcsf *p, unsigned device, unsigned vector, uint64_t *count, int64_t timeout_ns)
{
    uint64_t deadline = timeout_ns < 0 ? PCIFRONT_FOREVER : host_now(p) + (uint64_t)timeout_ns;
    if (!enter(p))
        return PCSF_INSIDE;
    return leave_with(p, pcifront_interrupt_wait(&p->front, device, vector, count, deadline));
}

uint64_t pcsf_interrupts(struct pcsf *p, unsigned device, unsigned vector)
{
    uint64_t count = 0;
    if (enter(p)) {
        count = pcifront_interrupts(&p->front, device, vector);
        leave(p);
    }
    return count;
}

uint32_t pcsf_ready(struct pcsf *p)
{
    return p->closed ? 0 : pcifront_ready(&p->front);
}

// The caller waits for the doorbell itself: what rang before is drained first, so that readable means rung anew.
int pcsf_sleep(struct pcsf *p)
{
    if (p->closed)
        return PCISPLIT_ERROR_GONE;
    drain(p);
    return p->gone ? PCISPLIT_ERROR_GONE : pcifront_sleep(&p->front);
}

void pcsf_awake(struct pcsf *p)
{
    if (!p->closed)
        pcifront_awake(&p->front);
}

int pcsf_submit(struct pcsf *p, void *requests, unsigned count, int *error)
{
    struct pcisplit_request *request = requests;
    unsigned done = 0;

    *error = PCSF_INSIDE;
    if (!enter(p))
        return 0;
    for (*error = 0; done < count && *error == 0; done += *error == 0)
        *error = pcifront_submit(&p->front, &request[done]);
    leave(p);
    return (int)done;
}

int pcsf_poll(struct pcsf *p, void *responses, unsigned most, int *error)
{
    struct pcisplit_response *response = responses;
    unsigned done = 0;
    int came = 1;

    *error = PCSF_INSIDE;
    if (!enter(p))
        return 0;
    while (done < most && (came = pcifront_poll(&p->front, &response[done])) == 1)
        done++;
    *error = came < 0 && done == 0 ? came : 0; // what has come is given out before the end of the session
    leave_with(p, came);
    return (int)done;
}

int pcsf_wait_answer(struct pcsf *p)
{
    if (!enter(p))
        return PCSF_INSIDE;
    return leave_with(p, pcifront_wait_answer(&p->front, deadline_of(p)));
}

void pcsf_abandon(struct pcsf *p)
{
    if (enter(p)) {
        pcifront_abandon(&p->front);
        leave(p);
    }
}

int pcsf_event(struct pcsf *p, void *event)
{
    return p->closed ? PCISPLIT_ERROR_GONE : pcifront_event(&p->front, event);
}

void pcsf_set_timeout(struct pcsf *p, uint64_t ns) { p->timeout = ns; }
void pcsf_set_spin(struct pcsf *p, uint32_t turns) { p->front.spin = turns; }

uint32_t pcsf_generation(const struct pcsf *p, unsigned device)
{
    return device < p->front.device_count ? p->front.device[device].generation : 0;
}

uint64_t pcsf_statistic(const struct pcsf *p, unsigned which)
{
    const uint64_t value[] = {p->front.late, p->front.strange, p->front.stale};
    return which < 3 ? value[which] : 0;
}

uint32_t pcsf_back_state(struct pcsf *p)
{
    if (p->closed)
        return PCISPLIT_STATE_CLOSED;
    if (enter(p)) {
        remember_back(p);
        leave(p);
    }
    return p->last_state;
}

int pcsf_back_reason(struct pcsf *p)
{
    pcsf_back_state(p);
    return p->last_reason;
}

int pcsf_trace(struct pcsf *p, unsigned entries)
{
    struct traced *traced = entries ? calloc(entries, sizeof *traced) : NULL;
    if (entries && !traced)
        return -1;
    free(p->traced);
    p->traced = traced;
    p->trace_size = entries;
    p->trace_head = p->trace_tail = 0;
    p->front.hooks.trace = entries ? host_trace : NULL;
    return 0;
}

unsigned pcsf_trace_take(struct pcsf *p, void *entries, unsigned most)
{
    struct traced *to = entries;
    unsigned taken = 0;
    while (taken < most && p->trace_head != p->trace_tail)
        to[taken++] = p->traced[p->trace_head++ % p->trace_size];
    return taken;
}
