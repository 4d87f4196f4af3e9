// SPDX-License-Identifier: MIT
// A unikernel's side, as far as a process can play it: it knows the boot-info block and nothing else. The "tender" (a test)
// did the meeting, put the regions into this address space and wrote their addresses into the block; the doorbells are two
// descriptors behind hooks. Everything below main() uses pcifront.h alone, in the way of Solo5: submit, yield, poll.
//
//   unikernel BOOT_INFO F2B B2F DMA KICK RUNG      (a file, then inherited descriptors)

#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "pcifront.h"

#define CHECK(what)                                                            \
    do {                                                                       \
        if (!(what)) {                                                         \
            fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #what); \
            exit(1);                                                           \
        }                                                                      \
    } while (0)

struct host {
    int kick, rung;
};

static uint64_t now(void *context)
{
    struct timespec t;
    (void)context;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void kick(void *context)
{
    uint64_t one = 1;
    CHECK(write(((struct host *)context)->kick, &one, sizeof one) == sizeof one);
}

// What Solo5's yield does: wait until a handle is ready or the deadline is there.
static int wait(void *context, uint64_t deadline)
{
    struct pollfd rung = {.fd = ((struct host *)context)->rung, .events = POLLIN};
    uint64_t t = now(context);
    char drained[64];

    if (t >= deadline)
        return PCISPLIT_ERROR_TIMEOUT;
    if (poll(&rung, 1, (int)((deadline - t) / 1000000) + 1) == 0)
        return PCISPLIT_ERROR_TIMEOUT;
    recv(rung.fd, drained, sizeof drained, MSG_DONTWAIT); // once: what is left wakes the next wait, and nobody is kept here
    return 0;
}

static void *map(int fd, int writable)
{
    struct stat s;
    CHECK(fstat(fd, &s) == 0);
    void *at = mmap(NULL, (size_t)s.st_size, PROT_READ | (writable ? PROT_WRITE : 0), MAP_SHARED, fd, 0);
    CHECK(at != MAP_FAILED);
    return at;
}

// The tender: read the block and write the guest addresses of the regions into it.
static size_t tender(const char *path, const int *fds, uint64_t *block, size_t most)
{
    int file = open(path, O_RDONLY);
    ssize_t length = read(file, block, most);
    CHECK(length > (ssize_t)sizeof(struct pcisplit_boot_info));
    struct pcisplit_boot_info *info = (void *)block;
    uint8_t *at = (uint8_t *)(info + 1);
    for (uint32_t i = 0; i < info->records; i++) {
        struct pcisplit_boot_region *r = (void *)at;
        at += r->length;
        if (r->kind == PCISPLIT_RECORD_REGION)
            r->address = (uint64_t)(uintptr_t)map(fds[r->index], r->writable);
    }
    close(file);
    return (size_t)length;
}

/* ---- the unikernel --------------------------------------------------------------------------------------------------- */

static struct pcifront f;

static uint64_t soon(void)
{
    return now(NULL) + 20000000000u;
}

static void flight(unsigned device)
{
    struct pcisplit_request request;
    struct pcisplit_response response;
    unsigned answers = 0;

    for (unsigned n = 0; n < 64; n++) {
        memset(&request, 0, sizeof request);
        request.op = PCISPLIT_OP_BAR_READ;
        request.device = (uint16_t)device;
        request.width = 4;
        request.offset = 4 * n;
        CHECK(pcifront_submit(&f, &request, n != 63) == 0); // one kick for all
    }
    while (answers < 64) {
        int came = pcifront_poll(&f, &response);
        CHECK(came >= 0);
        if (came) {
            CHECK(response.error == 0 && response.value == 0x1000 + answers);
            answers++;
        } else if (pcifront_sleep(&f) == 0) { // nothing, looked twice: yield
            CHECK(f.hooks.wait(f.hooks.context, soon()) == 0);
            pcifront_awake(&f);
        } else {
            pcifront_awake(&f);
        }
    }
}

static void drive(void)
{
    uint64_t value, count, moved;
    uint32_t id;
    int edu = pcifront_find(&f, "edu0"), ram = pcifront_find(&f, "ram0");

    CHECK(edu >= 0 && ram >= 0 && pcifront_find(&f, "nic") == PCISPLIT_ERROR_DEV_NOT_FOUND);
    CHECK(pcifront_config_read(&f, edu, 0, 4, &id, soon()) == 0 && id == 0x11e81234);
    CHECK(pcifront_config_write(&f, edu, 0, 4, 0, soon()) == PCISPLIT_ERROR_DENIED);
    CHECK(pcifront_bar_read(&f, edu, 0, 0, 4, &value, soon()) == PCISPLIT_ERROR_DECODE_DISABLED);
    CHECK(pcifront_config_write(&f, edu, 4, 2, 6, soon()) == 0 && pcifront_config_write(&f, ram, 4, 2, 2, soon()) == 0);
    CHECK(pcifront_bar_read(&f, edu, 0, 0, 4, &value, soon()) == 0 && value == 0x010000ed);

    for (uint32_t n = 0; n < 64; n++)
        CHECK(pcifront_bar_post(&f, ram, 0, 4 * n, 4, 0x1000 + n, n == 63, soon()) == 0);
    flight((unsigned)ram);

    static uint8_t out[10000], in[10000];
    for (unsigned i = 0; i < sizeof out; i++)
        out[i] = (uint8_t)(i * 7);
    CHECK(pcifront_write_block(&f, ram, 0, 8, 8, out, sizeof out, &moved, soon()) == 0 && moved == sizeof out);
    CHECK(pcifront_read_block(&f, ram, 0, 8, 1, in, sizeof in, &moved, soon()) == 0 && !memcmp(in, out, sizeof in));

    CHECK(pcifront_enable_msi(&f, edu, soon()) == 0 && pcifront_enable_msi(&f, edu, soon()) == PCISPLIT_ERROR_BUSY);
    CHECK(pcifront_ready(&f) == 0);
    CHECK(f.window_count == 1 && f.window[0].memory && f.window[0].iova >= 1u << 20);
    memcpy(f.window[0].memory, "from the unikernel", 19);
    CHECK(pcifront_bar_write(&f, edu, 0, 0x80, 8, f.window[0].iova, soon()) == 0);
    CHECK(pcifront_bar_write(&f, edu, 0, 0x88, 8, 0x40000, soon()) == 0);
    CHECK(pcifront_bar_write(&f, edu, 0, 0x90, 8, 19, soon()) == 0);
    CHECK(pcifront_bar_write(&f, edu, 0, 0x98, 8, 1 | 4, soon()) == 0);
    CHECK(pcifront_interrupt_wait(&f, edu, 0, &count, soon()) == 0 && count == 1);
    CHECK(pcifront_bar_write(&f, edu, 0, 0x64, 4, 0x100, soon()) == 0);
    CHECK(pcifront_bar_write(&f, edu, 0, 0x80, 8, 0x40000, soon()) == 0);
    CHECK(pcifront_bar_write(&f, edu, 0, 0x88, 8, f.window[0].iova + 4096, soon()) == 0);
    CHECK(pcifront_bar_write(&f, edu, 0, 0x98, 8, 1 | 2 | 4, soon()) == 0);
    while (!(pcifront_ready(&f) & 1u << edu)) { // the handle of edu0 becomes ready when its doorbell rings
        if (pcifront_sleep(&f) == 0)
            CHECK(f.hooks.wait(f.hooks.context, soon()) == 0);
        pcifront_awake(&f);
    }
    CHECK(pcifront_interrupts(&f, edu, 0) == 1);
    CHECK(!memcmp(f.window[0].memory + 4096, "from the unikernel", 19));
    CHECK(pcifront_disable_msi(&f, edu, soon()) == 0);

    uint32_t before = f.device[ram].generation;
    CHECK(pcifront_reset(&f, ram, soon()) == 0 && f.device[ram].generation == before + 1);
    CHECK(pcifront_reset(&f, ram, soon()) == PCISPLIT_ERROR_QUOTA);
    struct pcisplit_event event;
    CHECK(pcifront_event(&f, &event) == 1 && event.kind == PCISPLIT_EVENT_INTERRUPT && event.device == edu);
}

int main(int argc, char **argv)
{
    static uint64_t block[4096];
    static void *const none[3];
    static const uint64_t sizes[3];

    CHECK(argc == 7);
    int fds[] = {atoi(argv[2]), atoi(argv[3]), atoi(argv[4])};
    struct host host = {atoi(argv[5]), atoi(argv[6])};
    struct pcifront_hooks hooks = {&host, kick, wait, now, NULL};
    size_t length = tender(argv[1], fds, block, sizeof block);
    CHECK(pcifront_attach(&f, block, length, none, sizes, &hooks, PCIFRONT_TENDER_ADDRESSES) == 0);
    f.spin = 1000;
    CHECK(pcifront_connect(&f, soon()) == 0);
    drive();
    pcifront_close(&f);
    puts("SUCCESS");
    return 0;
}
