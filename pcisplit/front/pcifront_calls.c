// SPDX-License-Identifier: MIT
// pcifront on a host: the calls that Python makes; see pcifront_host.h.

#include "pcifront_host_internal.h"
#include "pcifront_internal.h"

#include <stdlib.h>

// The handle's timeout. Asking for the time costs as much as a tenth of an access: it counts from the first wait.
static uint64_t deadline_of(const struct pcsf *p)
{
    return PCIFRONT_WITHIN(p->timeout);
}

/* ---- calls ------------------------------------------------------------------------------------------------------------ */

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
    pcsf_leave(p);
    return error;
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

    if (!pcsf_enter(p))
        return busy;
    int error = pcifront_call(&p->front, &request, &response, deadline_of(p));
    uint64_t packed = pack(p, error, &response);
    pcsf_leave(p);
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

uint64_t pcsf_operation(struct pcsf *p, unsigned op, unsigned device)
{
    return access_call(p, op, device, 0, 0, 0, 0);
}

uint64_t pcsf_vectors(struct pcsf *p, unsigned op, unsigned device, unsigned first, unsigned count)
{
    /* `first` and `count` of an irq request lie where `value` of a plain one does: octets 20 and 24 */
    union {
        struct pcisplit_request plain;
        struct pcisplit_request_irq irq;
    } request = {.irq = {.op = (uint16_t)op, .device = (uint16_t)device, .first = first, .count = count}};
    struct pcisplit_response response = {.value = 0};

    if (!pcsf_enter(p))
        return busy;
    int error = pcifront_call(&p->front, &request.plain, &response, deadline_of(p));
    uint64_t packed = pack(p, error, &response);
    pcsf_leave(p);
    return packed;
}

/* ---- BARs: a handle for each, so that a call has few arguments: an argument costs a Python caller 20 ns --------------------- */

struct pcsf_bar *pcsf_bar_new(struct pcsf *p, unsigned device, unsigned bar)
{
    struct pcsf_bar *b = malloc(sizeof *b);
    if (b)
        *b = (struct pcsf_bar){p, device, bar};
    return b;
}

void pcsf_bar_free(struct pcsf_bar *b)
{
    free(b);
}

uint64_t pcsf_bar_read(struct pcsf_bar *b, uint64_t offset, unsigned width)
{
    struct pcsf *p = b->front;
    struct pcisplit_response response = {.value = 0};

    if (!pcsf_enter(p))
        return busy;
    union pcifront_slot slot;
    uint64_t deadline = deadline_of(p);
    pcifront_compose(&slot, PCISPLIT_OP_BAR_READ, b->device, b->bar, offset, width, 0);
    int error = pcifront_call_slot(&p->front, &slot, 0, &deadline);
    if (slot.response.error == error)
        response = slot.response;
    uint64_t packed = pack(p, error, &response);
    pcsf_leave(p);
    return packed;
}

uint64_t pcsf_bar_read32(struct pcsf_bar *b, uint64_t offset)
{
    return pcsf_bar_read(b, offset, 4);
}

uint64_t pcsf_bar_write(struct pcsf_bar *b, uint64_t offset, unsigned width, uint64_t value)
{
    return access_call(b->front, PCISPLIT_OP_BAR_WRITE, b->device, b->bar, offset, width, value);
}

static const struct pcisplit_response none;

uint64_t pcsf_bar_post(struct pcsf_bar *b, uint64_t offset, unsigned width, uint64_t value, int publish)
{
    struct pcsf *p = b->front;
    if (!pcsf_enter(p))
        return busy;
    int error = pcifront_bar_post(&p->front, b->device, b->bar, offset, width, value, publish, deadline_of(p));
    uint64_t packed = pack(p, error, &none);
    pcsf_leave(p);
    return packed;
}

uint64_t pcsf_bar_block(struct pcsf_bar *b, int write, uint64_t offset, unsigned width, void *memory, uint64_t length)
{
    struct pcsf *p = b->front;
    struct pcifront *f = &p->front;
    uint64_t *moved = &p->last_moved, deadline = deadline_of(p);
    if (!pcsf_enter(p))
        return busy;
    int error = write ? pcifront_write_block(f, b->device, b->bar, offset, width, memory, length, moved, deadline)
                      : pcifront_read_block(f, b->device, b->bar, offset, width, memory, length, moved, deadline);
    uint64_t packed = pack(p, error, &none);
    pcsf_leave(p);
    return packed;
}

uint64_t pcsf_bar_read_many(struct pcsf_bar *b, unsigned width, const uint32_t *offset, uint64_t *value, unsigned count)
{
    struct pcsf *p = b->front;
    unsigned done = 0;
    if (!pcsf_enter(p))
        return busy;
    int error = pcifront_read_many(&p->front, b->device, b->bar, width, offset, value, count, &done, deadline_of(p));
    p->last_moved = done;
    uint64_t packed = pack(p, error, &none);
    pcsf_leave(p);
    return packed;
}

uint64_t pcsf_bar_post_many(struct pcsf_bar *b, unsigned width, const uint32_t *offset, const uint64_t *value,
                            unsigned count)
{
    struct pcsf *p = b->front;
    if (!pcsf_enter(p))
        return busy;
    int error = pcifront_post_many(&p->front, b->device, b->bar, width, offset, value, count, deadline_of(p));
    uint64_t packed = pack(p, error, &none);
    pcsf_leave(p);
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
    uint64_t deadline = timeout_ns < 0 ? PCIFRONT_FOREVER : pcsf_now() + (uint64_t)timeout_ns;
    if (!pcsf_enter(p))
        return PCSF_INSIDE;
    return leave_with(p, pcifront_interrupt_wait(&p->front, device, vector, count, deadline));
}

uint64_t pcsf_interrupts(struct pcsf *p, unsigned device, unsigned vector)
{
    uint64_t count = 0;
    if (pcsf_enter(p)) {
        count = pcifront_interrupts(&p->front, device, vector);
        pcsf_leave(p);
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
    pcsf_drain(p);
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
    if (!pcsf_enter(p))
        return 0;
    for (*error = 0; done < count && *error == 0; done += *error == 0)
        *error = pcifront_submit(&p->front, &request[done], 1);
    pcifront_publish(&p->front);
    pcsf_leave(p);
    return (int)done;
}

int pcsf_poll(struct pcsf *p, void *responses, unsigned most, int *error)
{
    struct pcisplit_response *response = responses;
    unsigned done = 0;
    int came = 1;

    *error = PCSF_INSIDE;
    if (!pcsf_enter(p))
        return 0;
    while (done < most && (came = pcifront_poll(&p->front, &response[done])) == 1)
        done++;
    *error = came < 0 && done == 0 ? came : 0; // what has come is given out before the end of the session
    leave_with(p, came);
    return (int)done;
}

int pcsf_wait_answer(struct pcsf *p)
{
    if (!pcsf_enter(p))
        return PCSF_INSIDE;
    return leave_with(p, pcifront_wait_answer(&p->front, deadline_of(p)));
}

void pcsf_abandon(struct pcsf *p)
{
    if (pcsf_enter(p)) {
        pcifront_abandon(&p->front);
        pcsf_leave(p);
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
    if (pcsf_enter(p)) {
        remember_back(p);
        pcsf_leave(p);
    }
    return p->last_state;
}

int pcsf_back_reason(struct pcsf *p)
{
    pcsf_back_state(p);
    return p->last_reason;
}

