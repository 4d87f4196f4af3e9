/* SPDX-License-Identifier: MIT
 *
 * pcifront: the frontend as a unikernel links it. Freestanding C11, no libc symbol, no allocation, no clock and no thread
 * of its own: what it cannot do alone (ring the doorbell, wait, tell the time) it asks of four hooks. Python's frontend
 * calls this very code.
 *
 * Life: fill in `struct pcifront_hooks`, pcifront_attach() with the boot-info block, pcifront_connect(), use the devices,
 * pcifront_close(). One thread at a time.
 *
 * Calls return 0 (PCISPLIT_ERROR_SUCCESS) or a negative PCISPLIT_ERROR_*; what a back answers that is none becomes
 * OP_FAILED. Deadlines are absolute, in the nanoseconds of the `now` hook; PCIFRONT_WITHIN(ns) counts from when the call
 * first has to wait, so that a call which need not does not ask for the time; PCIFRONT_FOREVER waits until the answer comes
 * or the session ends.
 *
 * Two ways to use it. The calls that read as sentences (pcifront_bar_read, ...) submit, spin within the budget, then wait.
 * pcifront_submit() and pcifront_poll() do not wait: keep many requests in flight, and let the wait be the caller's
 * (Solo5's yield: each device handle is ready when the doorbell is; pcifront_ready() then says which).
 */
#ifndef PCIFRONT_H
#define PCIFRONT_H

#include "pcisplit_ring.h"

#define PCIFRONT_FOREVER UINT64_MAX
#define PCIFRONT_COUNTED (UINT64_C(1) << 63) /* of a deadline: it counts from the first wait; `ns` is below it */
#define PCIFRONT_WITHIN(ns) ((uint64_t)(ns) | PCIFRONT_COUNTED)
#define PCIFRONT_PENDING 256 /* most requests in flight; a power of two. Fewer if the response ring has fewer slots */
#ifndef PCIFRONT_VECTORS
#define PCIFRONT_VECTORS 64 /* vectors of a device whose interrupts are counted here; at most PCISPLIT_MAX_VECTORS */
#endif

struct pcifront_hooks {
    void *context;
    void (*kick)(void *context);                   /* ring the back's doorbell */
    int (*wait)(void *context, uint64_t deadline); /* until our doorbell rings: 0, or TIMEOUT, or GONE */
    uint64_t (*now)(void *context);                /* monotonic nanoseconds */
    void (*trace)(void *context, unsigned kind, const struct pcisplit_slot *slot); /* may be NULL; kinds below */
};

enum pcifront_trace { PCIFRONT_TRACE_REQUEST, PCIFRONT_TRACE_RESPONSE, PCIFRONT_TRACE_EVENT };

struct pcifront_bar {
    uint64_t size; /* octets; 0: the device has no such BAR */
    uint32_t flags; /* PCISPLIT_BAR_* */
};

struct pcifront_device {
    const struct pcisplit_device_state *state; /* in b2f */
    uint32_t generation;
    uint16_t vendor, device_id;
    uint32_t class_code;
    uint32_t config_size;
    uint32_t vectors;         /* that it may enable; of its first run */
    const uint64_t *counters; /* in b2f, of relayed vectors; NULL: none, or direct */
    const uint64_t *totals;   /* in b2f, a sum per 64 of them */
    struct pcifront_bar bar[PCISPLIT_BAR_COUNT];
    uint64_t counter_seen[PCIFRONT_VECTORS];
    uint64_t total_seen[(PCIFRONT_VECTORS + 63) / 64];
    char name[PCISPLIT_NAME_MAX + 1];
};

struct pcifront_window {
    uint8_t *memory; /* NULL if the DMA region was not given */
    uint64_t size, iova;
};

struct pcifront_pending {
    uint32_t id;
    uint32_t generation;
    uint16_t device, op;
    uint8_t state;  /* enum in pcifront.c */
    uint8_t chunk;  /* bulk chunk it occupies, plus 1; 0: none */
    struct pcisplit_response response; /* of one that was submitted */
};

struct pcifront {
    struct pcifront_hooks hooks;
    struct pcisplit_front_header *front; /* f2b */
    const struct pcisplit_back_header *back; /* b2f */
    struct pcisplit_producer requests;
    struct pcisplit_consumer responses;
    struct pcisplit_consumer events;
    volatile uint8_t *bulk_in;
    const volatile uint8_t *bulk_out;
    uint32_t chunks, chunks_busy; /* pieces of PCISPLIT_BLOCK_MAX octets of the bulk areas; a bit for each in use */
    uint32_t spin;         /* turns to spin before sleeping */
    uint32_t yielded;      /* the caller waits for the doorbell itself: calls leave the sleeping word set */
    uint32_t empty;        /* polls in a row that found nothing */
    uint32_t pack_count;   /* writes in the pack that is being filled in the next slot; 0: none */
    uint64_t pack_key;     /* its second word */
    uint64_t features;
    uint64_t late, strange, stale; /* responses nobody waits for; not asked for or against the rules; of an old generation */
    uint32_t serial;
    uint32_t free_count;
    uint32_t done_head, done_tail;
    uint8_t free[PCIFRONT_PENDING]; /* places of the table that are free, the one used last on top */
    uint8_t done[PCIFRONT_PENDING]; /* completed by submit/poll, oldest first */
    unsigned device_count, window_count;
    struct pcifront_device device[PCISPLIT_MAX_DEVICES];
    struct pcifront_window window[PCISPLIT_MAX_DMA_WINDOWS];
    struct pcifront_pending pending[PCIFRONT_PENDING];
};

/* Flags of pcifront_attach(). TENDER_ADDRESSES: a tender has checked the block, mapped the regions and written their
 * addresses into it; a region that is not given is taken from there. Never set it for a block as it came from the back, which
 * would then choose where we read and write [THR-30]. */
#define PCIFRONT_TENDER_ADDRESSES 0x1u

/* Check the boot-info block and the regions, take the rings, and become Initialised [BOOT-4, REG-5].
 * `region[i]` and `size[i]` are the mapping of region i (PCISPLIT_REGION_*), NULL one that is not given. The DMA region may
 * be missing. OP_FAILED if anything in the block is not sound. */
int pcifront_attach(struct pcifront *f, const void *boot_info, size_t length, void *const region[3],
                    const uint64_t size[3], const struct pcifront_hooks *hooks, unsigned flags);

/* Wait until the back is Connected and become so. TIMEOUT, GONE. */
int pcifront_connect(struct pcifront *f, uint64_t deadline);

/* No further requests: become Closing, tell the back. Requests in flight are lost. */
void pcifront_close(struct pcifront *f);

/* Index of the device with this name (NUL-terminated), or DEV_NOT_FOUND. */
int pcifront_find(const struct pcifront *f, const char *name);

/* One access, waiting for its answer. `width` 1, 2, 4 (BARs: 8 too); offsets in octets. */
int pcifront_config_read(struct pcifront *f, unsigned device, uint32_t offset, unsigned width, uint32_t *value,
                         uint64_t deadline);
int pcifront_config_write(struct pcifront *f, unsigned device, uint32_t offset, unsigned width, uint32_t value,
                          uint64_t deadline);
int pcifront_bar_read(struct pcifront *f, unsigned device, unsigned bar, uint64_t offset, unsigned width,
                      uint64_t *value, uint64_t deadline);
int pcifront_bar_write(struct pcifront *f, unsigned device, unsigned bar, uint64_t offset, unsigned width,
                       uint64_t value, uint64_t deadline);

/* A write without an answer [BAR-10]: it has reached the device when a later read has been answered; its error is
 * counted in the device state. With `publish` 0 more is to come: the write may wait for others to travel in one slot with
 * them, and the caller owes another call that submits, polls or waits, or pcifront_publish(). A full ring is waited for
 * until the deadline; with deadline 0 it is BUSY. */
int pcifront_bar_post(struct pcifront *f, unsigned device, unsigned bar, uint64_t offset, unsigned width,
                      uint64_t value, int publish, uint64_t deadline);

/* Let the back know of everything that was put into the ring, also if it sleeps. */
void pcifront_publish(struct pcifront *f);

/* Many accesses of one width and BAR: `offset` and `value` have `count` elements, in octets and as wide as asked. Reads are
 * made in order, packed into as few slots as the features in force allow, and stop at an error: *done is then the number
 * before it (those after it in other slots may have been made). Writes are posted; publish with the last. */
int pcifront_read_many(struct pcifront *f, unsigned device, unsigned bar, unsigned width, const uint32_t *offset,
                       uint64_t *value, unsigned count, unsigned *done, uint64_t deadline);
int pcifront_post_many(struct pcifront *f, unsigned device, unsigned bar, unsigned width, const uint32_t *offset,
                       const uint64_t *value, unsigned count, uint64_t deadline);

/* Move `length` octets between memory and consecutive registers, `width` octets an access. Any length that is a multiple
 * of `width`. On an error *moved says how many octets were moved before it. */
int pcifront_read_block(struct pcifront *f, unsigned device, unsigned bar, uint64_t offset, unsigned width, void *to,
                        uint64_t length, uint64_t *moved, uint64_t deadline);
int pcifront_write_block(struct pcifront *f, unsigned device, unsigned bar, uint64_t offset, unsigned width,
                         const void *from, uint64_t length, uint64_t *moved, uint64_t deadline);

int pcifront_enable_msi(struct pcifront *f, unsigned device, uint64_t deadline);
int pcifront_disable_msi(struct pcifront *f, unsigned device, uint64_t deadline);

/* Interrupts of a relayed vector since this was last asked; never waits. */
uint64_t pcifront_interrupts(struct pcifront *f, unsigned device, unsigned vector);

/* The same, waiting for at least one. Sets *count. TIMEOUT, GONE. */
int pcifront_interrupt_wait(struct pcifront *f, unsigned device, unsigned vector, uint64_t *count, uint64_t deadline);

/* Reset the device; its generation moves on. NO_RESET, QUOTA. */
int pcifront_reset(struct pcifront *f, unsigned device, uint64_t deadline);

/* Put one request into the ring. Fills in id and generation. BUSY: ring or table full, poll first. With `more` the caller
 * owes another call that submits, polls or waits, or pcifront_publish(): until then a back that sleeps is not woken. */
int pcifront_submit(struct pcifront *f, struct pcisplit_request *request, int more);

/* Submit and wait for the answer; returns its error, and its further fields in *response. */
int pcifront_call(struct pcifront *f, struct pcisplit_request *request, struct pcisplit_response *response,
                  uint64_t deadline);

/* The next answer to a submitted request: 1 and *response, 0 if there is none yet, GONE. */
int pcifront_poll(struct pcifront *f, struct pcisplit_response *response);

/* Wait until pcifront_poll() has something to give: 0, TIMEOUT, GONE. */
int pcifront_wait_answer(struct pcifront *f, uint64_t deadline);

/* Give up every submitted request: answers that have come are dropped, those still to come will be; both count as late. */
void pcifront_abandon(struct pcifront *f);

/* The next hint: 1 and *event, 0 if there is none. */
int pcifront_event(struct pcifront *f, struct pcisplit_event *event);

/* Bit n: device n has interrupts not yet asked for, or an answer for pcifront_poll(). */
uint32_t pcifront_ready(struct pcifront *f);

/* Before the caller waits for the doorbell itself: say that we sleep and look once more. 1: there is something, do not
 * wait; 0: wait, then call pcifront_awake(); GONE. */
int pcifront_sleep(struct pcifront *f);
void pcifront_awake(struct pcifront *f);

#endif
