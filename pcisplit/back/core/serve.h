/* SPDX-License-Identifier: MIT
 *
 * The backend's C core: one serve loop per session, run by a thread of its own without the GIL.
 *
 *   execute.c       one request: the checks in their order [ERR-2], then the access or the verdict "owner"
 *   config_table.c  configuration space, compiled by Python to per-octet tables
 *   owner.c          where Python does what can sleep, one owner per device; the device is parked meanwhile
 *   serve.c         the loop: take, execute, answer, sleep, wake; doorbells and interrupts
 *
 * Python decides, C moves: everything in `struct pcs_device` is filled in by Python before the loop starts. The front can
 * write anything at any time into f2b; it is mapped read-only and read through pcisplit_ring.h alone.
 */
#ifndef PCS_SERVE_H
#define PCS_SERVE_H

#include <pthread.h>
#include <stdatomic.h>

#include "guard.h"
#include "pcisplit_mmio.h"
#include "pcisplit_ring.h"

#define PCS_AREAS 32
#define PCS_RULES 64
#define PCS_TURN_OPS 64
#define PCS_TURN_NS 50000

enum pcs_area_kind { PCS_AREA_NONE, PCS_AREA_MAPPED, PCS_AREA_OWNER, PCS_AREA_DENIED };

struct pcs_area {
    uint64_t start, end;
    uint32_t kind, widths; /* widths: sum of 1, 2, 4, 8 */
    volatile uint8_t *base; /* MAPPED: where `start` is */
    uint32_t read_ns, write_ns; /* what an access costs beside itself; 0 but for models that imitate a slow bus */
};

struct pcs_bar {
    uint64_t size; /* 0: no such BAR */
    uint32_t io, areas;
    struct pcs_area area[PCS_AREAS];
};

/* Configuration space, octet by octet. A write may change the bits in `write`; bits in `quiet` are ignored as hardware
 * does; bits in `zero` may be written as 0 (write-one-to-clear); every other bit must keep its value. */
struct pcs_config {
    uint32_t size;
    uint8_t value[PCISPLIT_PAGE_SIZE];
    uint8_t from_device[PCISPLIT_PAGE_SIZE]; /* 1: read from the device, in the owner */
    uint8_t write[PCISPLIT_PAGE_SIZE];
    uint8_t to_device[PCISPLIT_PAGE_SIZE];   /* bits of `write` whose change is made in the owner */
    uint8_t quiet[PCISPLIT_PAGE_SIZE];
    uint8_t zero[PCISPLIT_PAGE_SIZE];
    uint8_t rule[PCISPLIT_PAGE_SIZE];
    _Atomic uint64_t hits[PCS_RULES];        /* refused writes, by rule [CFG-5] */
};

union pcs_slot {
    struct pcisplit_slot raw;
    struct pcisplit_request request;
    struct pcisplit_response response;
    struct pcisplit_event event;
};

/* What came of a request; the answer is composed from it and the request. */
struct pcs_result {
    int error;
    uint32_t rule, length;
    uint64_t value, detail;
};

enum pcs_owner_state { PCS_OWNER_IDLE, PCS_OWNER_ASKED, PCS_OWNER_DONE };

struct pcs_owner {
    pthread_mutex_t mutex;
    pthread_cond_t cond;
    _Atomic int state;
    int stopped;
    int wake_fd; /* the serve loop's, private to this process */
    union pcs_slot request;
    struct pcs_result result;
};

struct pcs_vector {
    int fd; /* relayed: the eventfd that the loop waits for; -1 if direct or absent */
    _Atomic int enabled;
};

struct pcs_device {
    struct pcisplit_device_state *state; /* in b2f */
    struct pcs_config config;
    struct pcs_bar bar[PCISPLIT_BAR_COUNT];
    unsigned vectors;
    struct pcs_vector vector[PCISPLIT_MAX_VECTORS];
    struct pcs_owner owner;
    int parked;
    uint32_t head, tail; /* of the queue of requests that wait for the owner */
    union pcs_slot queue[PCISPLIT_REQUEST_SLOTS];
};

/* Why pcs_serve_run() came back. */
enum pcs_serve_reason { PCS_STOPPED, PCS_FRONT_STATE, PCS_ENDED };

struct pcs_serve {
    const struct pcisplit_front_header *front; /* f2b, read-only */
    struct pcisplit_back_header *back;         /* b2f */
    const volatile uint8_t *bulk_in;
    volatile uint8_t *bulk_out;
    struct pcisplit_consumer requests;
    struct pcisplit_producer responses, events;
    unsigned devices;
    struct pcs_device *device[PCISPLIT_MAX_DEVICES];
    int epoll_fd, kick_fd, wake_fd, bell_fd;
    uint32_t unanswered;  /* taken, wanting a response, not yet answered */
    uint32_t given_back;  /* requests.cons_pvt as last published */
    uint32_t front_state; /* as last reported to Python */
    int serving;          /* the back is Connected [LIFE-3] */
    int reason;           /* error code that ends the session */
    int notify;           /* something was stored that the front may wait for */
    int held;             /* `next` was taken but its device's queue is full */
    union pcs_slot next;
    const union pcs_slot *executing; /* NULL, or the request whose access a fault now belongs to */
    struct pcs_result result; /* of the request being executed: a fault must find how far it got */
    _Atomic int stop;
    uint64_t spin_ns;
    uint64_t features;    /* in force */
    unsigned empty_kicks; /* in a row */
    uint64_t mask_ns, masked_until;
    int fresh;            /* the doorbell was just listened to again: its first edge is old */
    int rang, worked;     /* the doorbell rang since it was last judged; there was work since then */
    struct pcs_guard guard;
};

/* ---- execute.c ----------------------------------------------------------------------------------------------------- */

/* Checks that need nothing but the 64 octets, in the order of ERR-2; the same as messages.check_request_untrusted. */
int pcs_check_request(const union pcs_slot *slot);

enum pcs_verdict { PCS_ANSWERED, PCS_TO_OWNER };

/* Execute `request` on `device` (NULL: no such device) and fill in `result`, or say that it is the owner's. */
enum pcs_verdict pcs_execute(struct pcs_serve *s, struct pcs_device *device, const union pcs_slot *request,
                             struct pcs_result *result);

/* The area that holds octets [offset, offset + width) of a BAR, or NULL. */
const struct pcs_area *pcs_find_area(const struct pcs_bar *bar, uint64_t offset, uint64_t width);

/* ---- config_table.c ------------------------------------------------------------------------------------------------- */

/* 1 and *value, or 0 if an octet must be read from the device. The access is in range. */
int pcs_config_read(const struct pcs_config *config, uint32_t offset, unsigned width, uint32_t *value);

/* 0, or the rule that refuses the write and *octet, the first offending offset; counts it. */
unsigned pcs_config_check_write(struct pcs_config *config, uint32_t offset, unsigned width, uint32_t value,
                                uint32_t *octet);

/* Whether the write changes bits that live in the device. */
int pcs_config_needs_device(const struct pcs_config *config, uint32_t offset, unsigned width, uint32_t value);

/* Store the writable bits. */
void pcs_config_apply(struct pcs_config *config, uint32_t offset, unsigned width, uint32_t value);

/* ---- owner.c: called by the serve loop ---------------------------------------------------------------------------------- */

int pcs_owner_init(struct pcs_owner *owner);
void pcs_owner_ask(struct pcs_owner *owner, const union pcs_slot *request);
int pcs_owner_take(struct pcs_owner *owner, struct pcs_result *result); /* 1 if it was done */

/* ---- owner.c: called by the owner's thread ---------------------------------------------------------------------------- */

/* Wait for a request: 1, or 0 when the owner was stopped. */
int pcs_owner_wait(struct pcs_device *device);
const void *pcs_owner_request(struct pcs_device *device);
void pcs_owner_finish(struct pcs_device *device, int error, unsigned rule, uint64_t value, uint64_t detail,
                     uint32_t length);
void pcs_owner_stop(struct pcs_device *device);

/* ---- doorbell.c: waking and being woken ------------------------------------------------------------------------------ */

enum { PCS_SOURCE_KICK, PCS_SOURCE_WAKE, PCS_SOURCE_VECTOR }; /* what an epoll event is of, in its low octet */

uint64_t pcs_now(void);
void pcs_count(uint64_t *counter);

/* A hint for the front; dropped and counted when there is no slot [REG-30]. */
void pcs_hint(struct pcs_serve *s, unsigned kind, unsigned index, unsigned vector, uint64_t value);

/* Make everything stored since the last time visible, and kick the front if it sleeps. */
void pcs_flush(struct pcs_serve *s);

/* Wait at most `timeout` milliseconds (-1: for ever) and take in what happened. Returns whether the doorbell rang. */
int pcs_events(struct pcs_serve *s, int timeout);

/* After the doorbell rang: was there work behind it? Stops listening to one that cries wolf [RING-22]. */
void pcs_judge_kick(struct pcs_serve *s, int worked);

/* Milliseconds until the doorbell is listened to again, -1 if it is; and the listening, when it is time. */
int pcs_mask_left(const struct pcs_serve *s);
void pcs_unmask(struct pcs_serve *s);

/* ---- serve.c ---------------------------------------------------------------------------------------------------------- */

struct pcs_serve *pcs_serve_new(void *f2b, void *b2f, const uint64_t *offsets, int kick_fd, int bell_fd);
void pcs_serve_free(struct pcs_serve *s);
int pcs_serve_add(struct pcs_serve *s, struct pcs_device *device, uint64_t state_offset);
int pcs_serve_run(struct pcs_serve *s);
void pcs_serve_stop(struct pcs_serve *s);
void pcs_serve_set_state(struct pcs_serve *s, uint32_t state);
void pcs_serve_end(struct pcs_serve *s, int reason);

struct pcs_device *pcs_device_new(void);
void pcs_device_free(struct pcs_device *device);
int pcs_device_add_area(struct pcs_device *device, unsigned bar, uint64_t start, uint64_t end, unsigned kind,
                        unsigned widths, void *base, uint32_t read_ns, uint32_t write_ns);

#endif
