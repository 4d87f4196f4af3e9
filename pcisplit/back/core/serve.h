/* SPDX-License-Identifier: MIT
 *
 * The backend's C core: one serve loop per session, run by a thread of its own without the GIL.
 *
 *   execute.c       one request: the checks in their order [ERR-2], then the access or the verdict "owner"
 *   pack.c          several accesses in one slot
 *   config_table.c  configuration space, compiled by Python to per-octet tables
 *   owner.c         the owners: who does what can sleep, one per device, which is parked meanwhile; hold and release
 *   access.c        an owner's accesses to BARs, in turns and slices, without Python
 *   serve.c         the loop: take, execute, answer, sleep, wake
 *   doorbell.c      kicks in both directions, interrupts relayed, doorbells that cry wolf
 *   session.c       making and freeing all this, while no loop runs
 *
 * Python decides, C moves: everything in `struct pcs_device` is filled in by Python before the loop starts. The front can
 * write anything at any time into f2b; it is mapped read-only and read through pcisplit_ring.h alone.
 */
#ifndef PCS_SERVE_H
#define PCS_SERVE_H

#include <stdatomic.h>

#include "guard.h"
#include "pcs_abi.gen.h"
#include "pcisplit_mmio.h"
#include "pcisplit_ring.h"

#define PCS_AREAS 32
#define PCS_TURN_OPS 64
#define PCS_TURN_NS 50000
#define PCS_SELDOM __attribute__((noinline, cold)) /* what fails must not cost what does not */

struct pcs_area {
    uint64_t start, end;
    uint32_t kind, widths; /* widths: sum of 1, 2, 4, 8 */
    volatile uint8_t *base; /* MAPPED: where `start` is */
    uint32_t read_ns, write_ns; /* what an access costs beside itself; 0 but for models that imitate a slow bus */
    int fd;           /* OWNER: the file whose octet `position` is at `start`; -1: trapped, by Python */
    uint32_t rule;    /* DENIED: by which rule */
    uint64_t position;
};

struct pcs_bar {
    uint64_t size; /* 0: no such BAR */
    uint32_t io, areas;
    int sleeps; /* some of it is an owner's */
    struct pcs_area area[PCS_AREAS];
};

/* Configuration space as planes of bits, octet by octet. A bit is read from `hardware` or else from `value`. Written, it
 * goes to `value` (virtual), to the device (through; with virtual: both), clears a bit of the device if it is 1 (clear), has
 * no effect (ignore), must be 0 (zero), or else is locked: it must keep its value, and none is right where that is the
 * device's. */
struct pcs_config {
    uint32_t size, rules; /* octets; entries of `hits` */
    uint8_t value[PCISPLIT_PAGE_SIZE];
    uint8_t hardware[PCISPLIT_PAGE_SIZE];
    uint8_t virtual[PCISPLIT_PAGE_SIZE];
    uint8_t through[PCISPLIT_PAGE_SIZE];
    uint8_t clear[PCISPLIT_PAGE_SIZE];
    uint8_t ignore[PCISPLIT_PAGE_SIZE];
    uint8_t zero[PCISPLIT_PAGE_SIZE];
    uint8_t trap[PCISPLIT_PAGE_SIZE];  /* a handler of the owner that is called instead of the write; 0: none */
    uint16_t rule[PCISPLIT_PAGE_SIZE]; /* that refuses what is not allowed, never 0 */
    _Atomic uint64_t *hits;            /* refused accesses, by rule [CFG-5] */
};

union pcs_slot {
    struct pcisplit_slot raw;
    struct pcisplit_request request;
    struct pcisplit_request_writes writes;
    struct pcisplit_request_reads reads;
    struct pcisplit_request_irq irq;
    struct pcisplit_response response;
    struct pcisplit_event event;
};

/* An element of a pack of writes that failed. */
struct pcs_failure {
    int error;
    uint32_t rule;
};

/* What came of a request; the answer is composed from it and the request. */
struct pcs_result {
    int error;
    uint32_t rule, length;
    uint64_t value, detail;
    uint32_t done; /* of a pack: elements behind us; with them: */
    uint32_t values[PCISPLIT_PACK_READS];
    struct pcs_failure failed[PCISPLIT_PACK_WRITES];
};

enum pcs_owner_state { PCS_OWNER_IDLE, PCS_OWNER_ASKED, PCS_OWNER_DONE };

/* How far the owner's request got. The owner's thread alone uses it, C and Python in turn. */
struct pcs_work {
    uint32_t length;  /* octets to move: of a block, the width of one access, 4 for each of a pack; 0: no BAR access */
    uint32_t done;    /* octets moved */
    uint32_t piece;   /* trapped accesses from `done` to here are Python's to make */
    int error;        /* what ended it, with the rule and the errno behind it */
    uint32_t rule;
    int os_error;
    struct pcs_failure failed[PCISPLIT_PACK_WRITES];
};

struct pcs_owner {
    _Atomic uint32_t word;    /* a futex: what there is to do */
    _Atomic uint32_t events;  /* bits of the watched descriptors that became readable */
    _Atomic int state;        /* of the request, between the loop and the owner */
    int wake_fd;              /* the serve loop's, private to this process */
    union pcs_slot request;
    struct pcs_result result;
    struct pcs_work work;
    int has_turn;
    uint32_t ticket;          /* of the session's turnstile, while it has a turn */
    uint64_t turn_began;
    /* for the control plane; one writer, the owner's thread */
    _Atomic uint32_t doing;   /* operation + 1 of the request it is inside of, or 0 */
    _Atomic uint64_t since, requests, slices, ns;
    uint8_t data[PCISPLIT_BLOCK_MAX]; /* of the accesses, private: copied from bulk-in before, to bulk-out after */
};

/* Owners of one session take turns with their blocks: together they use one CPU at most. Tickets are served in order; one
 * that sleeps in its device is passed over. The serve loop has nothing to do with it. */
struct pcs_turnstile {
    _Atomic uint32_t next, serving;
};

struct pcs_vector {
    int fd; /* relayed: the eventfd that the loop waits for; -1 if direct or absent */
    _Atomic int enabled;
};

/* Why the loop starts no request of a device: its owner has one, or holds it. */
enum { PCS_PARKED = 1, PCS_HELD = 2 };

struct pcs_serve;

struct pcs_device {
    struct pcisplit_device_state *state; /* in b2f */
    struct pcs_serve *serve;             /* NULL before pcs_serve_add() */
    unsigned index;
    struct pcs_config config;
    struct pcs_bar bar[PCISPLIT_BAR_COUNT];
    unsigned vectors;
    struct pcs_vector *vector;
    uint64_t *counters, *totals; /* in b2f, of relayed vectors */
    struct pcs_owner owner;
    unsigned parked;     /* bits, the loop's own */
    _Atomic uint32_t hold_asked; /* odd: the owner wants it held; one more for each hold and each release */
    _Atomic uint32_t hold_seen;  /* `hold_asked` as the loop last saw it, at a request boundary; a futex */
    _Atomic uint32_t head, tail; /* of the queue of requests that wait for the owner; the loop's to change */
    _Atomic uint64_t refused, posted_errors; /* as in `state`, which is not there for as long */
    uint32_t queue_size; /* of the request ring: what waits is bounded by it */
    union pcs_slot *queue;
};

struct pcs_serve {
    const struct pcisplit_front_header *front; /* f2b, read-only */
    struct pcisplit_back_header *back;         /* b2f */
    const volatile uint8_t *bulk_in;
    volatile uint8_t *bulk_out;
    uint32_t bulk_size;
    struct pcisplit_consumer requests;
    struct pcisplit_producer responses, events;
    unsigned devices;
    struct pcs_device *device[PCISPLIT_MAX_DEVICES];
    int epoll_fd, kick_fd, wake_fd, bell_fd;
    uint32_t unanswered;  /* taken, wanting a response, not yet answered */
    uint32_t front_state; /* as last reported to Python */
    int serving;          /* the back is Connected [LIFE-3] */
    int reason;           /* error code that ends the session */
    int notify;           /* something was stored that the front may wait for */
    int held;             /* `next` was taken but its device's queue is full */
    union pcs_slot next;
    const union pcs_slot *executing; /* NULL, or the request whose access a fault now belongs to */
    struct pcs_result result; /* of the request being executed: a fault must find how far it got */
    _Atomic int stop;
    _Atomic int running;   /* inside pcs_serve_run() */
    _Atomic int attention; /* some owner holds or releases its device */
    struct pcs_turnstile turnstile;
    uint64_t spin_ns;
    uint64_t features;    /* in force */
    unsigned empty_kicks; /* in a row */
    uint64_t mask_ns, masked_until;
    int fresh;            /* the doorbell was just listened to again: its first edge is old */
    int rang;             /* the doorbell rang since it was last judged */
    uint32_t kicked_prod, kicked_cons, kicked_state; /* the front's words at the kick before [RING-22] */
    struct pcs_guard guard;
};

/* ---- execute.c ----------------------------------------------------------------------------------------------------- */

/* Checks that need nothing but the 64 octets, in the order of ERR-2; the same as messages.check_request_untrusted. */
int pcs_check_request(const union pcs_slot *slot);

enum pcs_verdict { PCS_ANSWERED, PCS_TO_OWNER };

/* Execute `request` on `device` (NULL: no such device) and fill in `result`, or say that it is the owner's. */
enum pcs_verdict pcs_execute(struct pcs_serve *s, struct pcs_device *device, const union pcs_slot *request,
                             struct pcs_result *result);

/* Whether an operation may be posted in this session; and whether this request is, and so never answered. */
int pcs_may_post(const struct pcs_serve *s, const union pcs_slot *slot);

static inline int pcs_is_posted(const struct pcs_serve *s, const union pcs_slot *slot)
{
    return slot->request.flags & PCISPLIT_FLAG_POSTED && pcs_may_post(s, slot);
}

/* What a slow bus costs: the caller's core waits, as it would. */
void pcs_spend(uint32_t ns);

/* Whether a request has a width that its operation can have; 8 only where `used` says so. 0 or BAD_SIZE. */
int pcs_check_width(const struct pcisplit_request *r, uint32_t used);

/* ---- pack.c ------------------------------------------------------------------------------------------------------------ */

enum pcs_verdict pcs_execute_pack(struct pcs_serve *s, struct pcs_device *device, const union pcs_slot *request,
                                  struct pcs_result *result);

/* How many elements (0: none, the request is no pack), offset and value of one, and what is wrong with it. */
static inline unsigned pcs_elements(const union pcs_slot *slot)
{
    int pack = slot->request.op == PCISPLIT_OP_BAR_READS || slot->request.op == PCISPLIT_OP_BAR_WRITES;
    _Static_assert(offsetof(struct pcisplit_request_reads, count) == offsetof(struct pcisplit_request_writes, count), "");
    return pack ? slot->reads.count : 0;
}

uint64_t pcs_element_offset(const union pcs_slot *slot, unsigned i);
int pcs_check_element(const struct pcs_device *device, const union pcs_slot *slot, unsigned i);

/* After element `result->done` of a pack of writes has faulted: it has failed, the rest is made. */
void pcs_resume_pack(struct pcs_device *device, const union pcs_slot *slot, struct pcs_result *result);

/* ---- config_table.c ------------------------------------------------------------------------------------------------- */

/* 1 and *value, or 0 if a bit must be read from the device. The access is in range. */
int pcs_config_read(const struct pcs_config *config, uint32_t offset, unsigned width, uint32_t *value);

/* 0, or the rule that refuses the write and *octet, the first offending offset; counts it. */
unsigned pcs_config_check_write(struct pcs_config *config, uint32_t offset, unsigned width, uint32_t value,
                                uint32_t *octet);

/* Whether the write reaches the device or a trap. */
int pcs_config_needs_owner(const struct pcs_config *config, uint32_t offset, unsigned width, uint32_t value);

/* Count an access that `rule` refused; by any thread. */
void pcs_config_count(struct pcs_config *config, unsigned rule);

/* Store the virtual bits. */
void pcs_config_apply(struct pcs_config *config, uint32_t offset, unsigned width, uint32_t value);

/* ---- owner.c: called by the serve loop ---------------------------------------------------------------------------------- */

void pcs_owner_ask(struct pcs_owner *owner, const union pcs_slot *request);
int pcs_owner_take(struct pcs_owner *owner, struct pcs_result *result); /* 1 if it was done */
void pcs_owner_event(struct pcs_owner *owner, unsigned bit);

/* At a request boundary: begin and end the holding of devices as their owners want it. */
void pcs_attend_holds(struct pcs_serve *s);

/* ---- owner.c: called by the owner's thread ---------------------------------------------------------------------------- */

/* Wait at most `timeout_ms` (-1: for ever) for what is to be done; returns a PCS_WAKE_*. Accesses that C can make
 * alone are made on the way and never seen here; a REQUEST that is returned wants Python: an access that is trapped or met
 * an error (pcs_owner_work() says which), or another operation. */
int pcs_owner_wait(struct pcs_device *device, int timeout_ms);
const void *pcs_owner_request(struct pcs_device *device);
uint32_t pcs_owner_take_events(struct pcs_device *device);
void pcs_owner_finish(struct pcs_device *device, int error, unsigned rule, uint64_t value, uint64_t detail,
                     uint32_t length);

/* Return when the loop is at a request boundary of the device and will start none until pcs_device_release(). Other
 * devices go on. Waits for nothing when no loop runs. One holder: the owner's thread. */
void pcs_device_hold(struct pcs_device *device);
void pcs_device_release(struct pcs_device *device);

/* ---- owner.c: called by any thread ------------------------------------------------------------------------------------- */

void pcs_owner_wake(struct pcs_device *device);
void pcs_owner_stop(struct pcs_device *device);

/* Have the loop look at `fd` too: when it becomes readable, bit `bit` (0-31) of the owner's events is set. Each edge once;
 * it is never read. After pcs_serve_add(). Returns 0 or -1. */
int pcs_device_watch(struct pcs_device *device, int fd, unsigned bit);

/* ---- access.c: the owner's accesses ---------------------------------------------------------------------------------------- */

#define PCS_SLICE_NS 1000000    /* the budget of one turn of an owner */
#define PCS_PATIENCE_NS 10000000 /* a turn that lasts longer sleeps in its device, and is passed over */
#define PCS_REST_NS 50000       /* between two turns of trapped accesses, for whoever waits for Python's lock */

/* Begin the request that was asked for; whether Python must go on with it. If not, it is finished. */
int pcs_access_begin(struct pcs_device *device);

/* Python has made the trapped accesses up to octet `done`: give up the turn, take the next one and go on. Returns as above. */
int pcs_access_went(struct pcs_device *device, uint32_t done);

/* The trapped write of a pack that was to be made has failed: the next one. Returns as above. */
int pcs_access_failed(struct pcs_device *device, int error, unsigned rule);

/* Give up the turn, if there is one. */
void pcs_access_leave(struct pcs_device *device);

/* What a pack came to, for its answer. */
void pcs_access_result(const struct pcs_device *device, struct pcs_result *result);

/* Copy what a block has read to bulk-out. Returns 0 or FAULTED. */
int pcs_access_deliver(struct pcs_device *device);

/* ---- doorbell.c: waking and being woken ------------------------------------------------------------------------------ */

enum { PCS_SOURCE_KICK, PCS_SOURCE_WAKE, PCS_SOURCE_VECTOR, PCS_SOURCE_WATCH }; /* what an epoll event is of, in its low octet */

uint64_t pcs_now(void);

/* One more; of a counter that only the thread of the loop writes. */
static inline void pcs_count(uint64_t *counter)
{
    __atomic_store_n(counter, *counter + 1, __ATOMIC_RELAXED);
}

/* Futexes of this process. Wait while *word is `value`, at most `ns` (-1: for ever). */
void pcs_wait(_Atomic uint32_t *word, uint32_t value, int64_t ns);
void pcs_wake_all(_Atomic uint32_t *word);

/* A hint for the front; dropped and counted when there is no slot [REG-30]. */
void pcs_hint(struct pcs_serve *s, unsigned kind, unsigned index, unsigned vector, uint64_t value);

/* Whether the front must be told now [RING-15, RING-17]: it sleeps, or there is much that it was not told of. */
int pcs_due(const struct pcs_serve *s);

/* Make everything stored since the last time visible, and kick the front if it sleeps. */
void pcs_flush(struct pcs_serve *s);

/* Wait at most `timeout` milliseconds (-1: for ever) and take in what happened. Returns whether the doorbell rang. */
int pcs_events(struct pcs_serve *s, int timeout);

/* After the doorbell rang: was there anything behind it? Stops listening to one that cries wolf [RING-22]. */
void pcs_judge_kick(struct pcs_serve *s);

/* Milliseconds until the doorbell is listened to again, -1 if it is; and the listening, when it is time. */
int pcs_mask_left(const struct pcs_serve *s);
void pcs_unmask(struct pcs_serve *s);

/* ---- serve.c ---------------------------------------------------------------------------------------------------------- */

struct pcs_serve *pcs_serve_new(void *f2b, void *b2f, const struct pcs_places *places, int kick_fd, int bell_fd);
void pcs_serve_free(struct pcs_serve *s);
int pcs_serve_add(struct pcs_serve *s, struct pcs_device *device, uint64_t state_offset, const struct pcs_run *run);
int pcs_serve_run(struct pcs_serve *s);
void pcs_serve_stop(struct pcs_serve *s);
void pcs_serve_set_state(struct pcs_serve *s, uint32_t state);
void pcs_serve_end(struct pcs_serve *s, int reason);

struct pcs_device *pcs_device_new(void);
void pcs_device_free(struct pcs_device *device);
int pcs_device_add_area(struct pcs_device *device, unsigned bar, const struct pcs_area *area);

#endif
