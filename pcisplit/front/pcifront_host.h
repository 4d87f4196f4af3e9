/* SPDX-License-Identifier: MIT
 *
 * pcifront on a host: the hooks made of eventfd, socket and poll, and calls shaped for Python. A process that is no
 * unikernel links this file beside the freestanding ones.
 */
#ifndef PCIFRONT_HOST_H
#define PCIFRONT_HOST_H

#include "pcifront.h"

struct pcsf; /* a frontend with its hooks */

/* Regions as in pcifront_attach(); `kick_fd` the eventfd, `rung_fd` our end of the doorbell's socket pair, `socket_fd` the
 * meeting's socket, whose hang-up is the back's death. The descriptors stay the caller's, who has looked what they are
 * [THR-33] and may shut the socket down to get a waiting thread out: it is told GONE. NULL and *error when the boot-info is not sound. */
struct pcsf *pcsf_new(const void *boot_info, size_t length, void *f2b, void *b2f, void *dma, const uint64_t *sizes,
                      int kick_fd, int rung_fd, int socket_fd, int *error);
void pcsf_free(struct pcsf *p);
/* Let no thread in any more: 1, or 0 while one is inside. Afterwards the regions may be unmapped; calls answer PCSF_INSIDE,
 * GONE or nothing, until the handle is freed. */
int pcsf_retire(struct pcsf *p);
struct pcifront *pcsf_front(struct pcsf *p);

/* Calls of one access. They return value | error << 32 | rule << 48: `error` is minus the code, 0 for success; a value of
 * 8 octets, `detail` and `length` are asked for afterwards. Deadlines are the handle's timeout from now. A handle that
 * another thread is in answers PCSF_INSIDE at once, which is no error of the wire. */
#define PCSF_INSIDE (-0x8000)

uint64_t pcsf_config_read(struct pcsf *p, unsigned device, uint64_t offset, unsigned width);
uint64_t pcsf_config_write(struct pcsf *p, unsigned device, uint64_t offset, unsigned width, uint32_t value);
uint64_t pcsf_operation(struct pcsf *p, unsigned op, unsigned device); /* reset, nop */
uint64_t pcsf_vectors(struct pcsf *p, unsigned op, unsigned device, unsigned first, unsigned count); /* of the irq kind */

/* A BAR of a device, so that calls have few arguments. Belongs to the handle, which must outlive it. NULL: no memory. */
struct pcsf_bar {
    struct pcsf *front;
    unsigned device, bar;
};

struct pcsf_bar *pcsf_bar_new(struct pcsf *p, unsigned device, unsigned bar);
void pcsf_bar_free(struct pcsf_bar *b);
uint64_t pcsf_bar_read(struct pcsf_bar *b, uint64_t offset, unsigned width);
uint64_t pcsf_bar_read32(struct pcsf_bar *b, uint64_t offset);
uint64_t pcsf_bar_write(struct pcsf_bar *b, uint64_t offset, unsigned width, uint64_t value);
uint64_t pcsf_bar_post(struct pcsf_bar *b, uint64_t offset, unsigned width, uint64_t value, int publish);
uint64_t pcsf_bar_block(struct pcsf_bar *b, int write, uint64_t offset, unsigned width, void *memory, uint64_t length);
/* `count` offsets and values; pcsf_last_moved() is then how many were read before an error. */
uint64_t pcsf_bar_read_many(struct pcsf_bar *b, unsigned width, const uint32_t *offset, uint64_t *value, unsigned count);
uint64_t pcsf_bar_post_many(struct pcsf_bar *b, unsigned width, const uint32_t *offset, const uint64_t *value,
                            unsigned count);

uint64_t pcsf_last_value(const struct pcsf *p);
uint64_t pcsf_last_detail(const struct pcsf *p);
uint64_t pcsf_last_moved(const struct pcsf *p);
int pcsf_gone(const struct pcsf *p); /* the socket hung up */

int pcsf_connect(struct pcsf *p);
void pcsf_close(struct pcsf *p);
int pcsf_interrupt_wait(struct pcsf *p, unsigned device, unsigned vector, uint64_t *count, int64_t timeout_ns);
uint64_t pcsf_interrupts(struct pcsf *p, unsigned device, unsigned vector);
uint32_t pcsf_ready(struct pcsf *p);
int pcsf_sleep(struct pcsf *p);
void pcsf_awake(struct pcsf *p);

/* Flights: `slots` of 64 octets. submit returns how many were submitted (then an error in *error), poll how many came. */
int pcsf_submit(struct pcsf *p, void *requests, unsigned count, int *error);
int pcsf_poll(struct pcsf *p, void *responses, unsigned most, int *error);
int pcsf_wait_answer(struct pcsf *p); /* until pcsf_poll() has something: 0, TIMEOUT, GONE */
void pcsf_abandon(struct pcsf *p);    /* give up what was submitted */
int pcsf_event(struct pcsf *p, void *event);

void pcsf_set_timeout(struct pcsf *p, uint64_t ns);
void pcsf_set_spin(struct pcsf *p, uint32_t turns);
uint32_t pcsf_generation(const struct pcsf *p, unsigned device);
uint64_t pcsf_statistic(const struct pcsf *p, unsigned which); /* 0 late, 1 strange, 2 stale */
uint32_t pcsf_back_state(struct pcsf *p); /* while another thread is inside: as last seen */
int pcsf_back_reason(struct pcsf *p);

/* Trace: keep the last `entries` slots that crossed; 0 ends it. take copies out and forgets at most `most` of them,
 * oldest first: 80 octets each, u64 time in ns, u64 kind, the slot. */
int pcsf_trace(struct pcsf *p, unsigned entries);
unsigned pcsf_trace_take(struct pcsf *p, void *entries, unsigned most);

#endif
