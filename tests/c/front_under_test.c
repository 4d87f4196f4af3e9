// SPDX-License-Identifier: MIT
// The front under test that pcifront makes: the meeting and the hooks of a process, and the line protocol of
// spec/conformance.md. Linked with pcisplit/front/pcifront*.c, without the files for Python.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "pcifront.h"

#define SEALS_SIZE (F_SEAL_SHRINK | F_SEAL_GROW)
#define SEALS_B2F (SEALS_SIZE | F_SEAL_FUTURE_WRITE | F_SEAL_SEAL)

static struct pcifront front;
static int sock = -1, kick_fd = -1, rung_fd = -1, connected, hung_up;
static uint64_t patience = 1000000000;
static _Alignas(8) uint8_t reply[PCISPLIT_REPLY_MAX];

/* ---- hooks --------------------------------------------------------------------------------------------------------------- */

static uint64_t now(void *context)
{
    struct timespec t;
    (void)context;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

static void kick(void *context)
{
    struct pollfd room = {.fd = kick_fd, .events = POLLOUT};
    uint64_t one = 1;
    (void)context;
    if (poll(&room, 1, 0) == 1 && write(kick_fd, &one, 8) < 0) // a full eventfd is rung [THR-33]
        return;
}

static int wait_for_bell(void *context, uint64_t deadline)
{
    struct pollfd fds[2] = {{.fd = rung_fd, .events = POLLIN}, {.fd = sock, .events = POLLIN}};
    struct timespec left = {0};
    char octets[256];
    uint64_t t = now(context);

    if (deadline != PCIFRONT_FOREVER) {
        uint64_t ns = deadline > t ? deadline - t : 0;
        left.tv_sec = (time_t)(ns / 1000000000);
        left.tv_nsec = (long)(ns % 1000000000);
    }
    int ready = ppoll(fds, 2, deadline == PCIFRONT_FOREVER ? NULL : &left, NULL);
    if (ready == 0)
        return PCISPLIT_ERROR_TIMEOUT;
    if (fds[1].revents) { // the back says nothing after the reply: this is its end
        hung_up = 1;
        return PCISPLIT_ERROR_GONE;
    }
    recv(rung_fd, octets, sizeof octets, MSG_DONTWAIT); // once: more kicks are found at the next wait
    return 0;
}

/* ---- meeting ------------------------------------------------------------------------------------------------------------- */

static const struct pcifront_hooks hooks = {.kick = kick, .wait = wait_for_bell, .now = now};

static int is_eventfd(int fd)
{
    char path[64], name[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(path, name, sizeof name - 1);
    return length > 0 && memmem(name, (size_t)length, "eventfd", 7);
}

static int is_stream(int fd)
{
    int type = 0;
    socklen_t size = sizeof type;
    return !getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size) && type == SOCK_STREAM;
}

static int say_hello(const char *path, const char *name)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct {
        struct pcisplit_hello head;
        struct pcisplit_hello_device device;
    } hello = {.head = {.magic = PCISPLIT_HELLO_MAGIC,
                        .major = PCISPLIT_MAJOR,
                        .minor = PCISPLIT_MINOR,
                        .length = sizeof hello,
                        .records = 1,
                        .dma_bits = 64,
                        .features = PCISPLIT_FEATURE_BLOCK | PCISPLIT_FEATURE_EVENTS | PCISPLIT_FEATURE_MSI_RELAYED |
                                    PCISPLIT_FEATURE_RESET | PCISPLIT_FEATURE_PACKED},
               .device = {.kind = PCISPLIT_HELLO_DEVICE, .length = sizeof hello.device, .msi = 1}};

    strncpy(address.sun_path, path, sizeof address.sun_path - 1);
    strncpy((char *)hello.head.driver, "front_under_test", sizeof hello.head.driver);
    strncpy((char *)hello.device.name, name, sizeof hello.device.name - 1);
    sock = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    return connect(sock, (struct sockaddr *)&address, sizeof address) || send(sock, &hello, sizeof hello, 0) < 0;
}

// The reply and its descriptors; returns how many octets came.
static ssize_t hear(int *fds, unsigned *count)
{
    _Alignas(struct cmsghdr) char room[CMSG_SPACE(PCISPLIT_MAX_FDS * sizeof(int))];
    struct iovec part = {reply, sizeof reply};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = room, .msg_controllen = sizeof room};
    struct pollfd answer = {.fd = sock, .events = POLLIN};

    if (poll(&answer, 1, 10000) != 1)
        return -1;
    ssize_t length = recvmsg(sock, &message, MSG_CMSG_CLOEXEC);
    struct cmsghdr *rights = CMSG_FIRSTHDR(&message);
    if (rights && rights->cmsg_type == SCM_RIGHTS) {
        *count = (unsigned)((rights->cmsg_len - CMSG_LEN(0)) / sizeof(int));
        memcpy(fds, CMSG_DATA(rights), *count * sizeof(int));
    }
    return length;
}

// Map what the REGION records name and look at the doorbells; pcifront_attach() judges the rest of the block.
static int open_records(const uint8_t *boot, size_t length, const int *fds, unsigned count, void **region, uint64_t *size)
{
    for (size_t at = sizeof(struct pcisplit_boot_info); at + 16 <= length;) {
        uint16_t kind, octets, index, fd, more;
        memcpy(&kind, boot + at, 2);
        memcpy(&octets, boot + at + 2, 2);
        memcpy(&index, boot + at + 4, 2);
        memcpy(&fd, boot + at + 8, 2);
        memcpy(&more, boot + at + 10, 2); // writable, or the doorbell's type
        if (octets < 16 || octets % 8 || octets > length - at)
            return PCISPLIT_ERROR_OP_FAILED;
        if ((kind == PCISPLIT_RECORD_REGION || kind == PCISPLIT_RECORD_DOORBELL) && fd >= count)
            return PCISPLIT_ERROR_OP_FAILED;
        if (kind == PCISPLIT_RECORD_REGION && index <= PCISPLIT_REGION_B2F && octets >= 32) {
            struct stat file;
            int wanted = index == PCISPLIT_REGION_B2F ? SEALS_B2F : SEALS_SIZE, seals = fcntl(fds[fd], F_GET_SEALS);
            memcpy(&size[index], boot + at + 16, 8);
            if (seals < 0 || (seals & wanted) != wanted || fstat(fds[fd], &file) || (uint64_t)file.st_size != size[index])
                return PCISPLIT_ERROR_OP_FAILED;
            region[index] = mmap(NULL, size[index], PROT_READ | (index ? 0 : PROT_WRITE), MAP_SHARED, fds[fd], 0);
            if (region[index] == MAP_FAILED)
                return PCISPLIT_ERROR_OP_FAILED;
        } else if (kind == PCISPLIT_RECORD_DOORBELL) {
            if (index == PCISPLIT_DIRECTION_FRONT_TO_BACK ? !is_eventfd(fds[fd]) : !is_stream(fds[fd]))
                return PCISPLIT_ERROR_OP_FAILED;
            *(index == PCISPLIT_DIRECTION_FRONT_TO_BACK ? &kick_fd : &rung_fd) = fds[fd];
        }
        at += octets;
    }
    return kick_fd < 0 || rung_fd < 0 ? PCISPLIT_ERROR_OP_FAILED : 0;
}

static int meet(const char *path, const char *name)
{
    struct pcisplit_reply head;
    int fds[PCISPLIT_MAX_FDS], error;
    unsigned count = 0;
    void *region[3] = {NULL};
    uint64_t size[3] = {0};

    if (say_hello(path, name))
        return PCISPLIT_ERROR_OP_FAILED;
    ssize_t length = hear(fds, &count);
    if (length < (ssize_t)sizeof head)
        return PCISPLIT_ERROR_OP_FAILED;
    memcpy(&head, reply, sizeof head);
    if (head.magic != PCISPLIT_REPLY_MAGIC || head.major != PCISPLIT_MAJOR || head.length != (uint64_t)length ||
        (uint64_t)head.text_length + head.boot_length + sizeof head != head.length || head.fds != count)
        return PCISPLIT_ERROR_OP_FAILED;
    if (head.error)
        return head.error;
    const uint8_t *boot = reply + sizeof head + head.text_length;
    error = open_records(boot, head.boot_length, fds, count, region, size);
    if (!error)
        error = pcifront_attach(&front, boot, head.boot_length, region, size, &hooks, 0);
    return error ? error : pcifront_connect(&front, now(NULL) + patience);
}

/* ---- lines --------------------------------------------------------------------------------------------------------------- */

static int run(char **word, unsigned words, uint64_t *out, unsigned *outs)
{
    uint64_t n[32] = {0}, deadline = now(NULL) + patience;
    uint32_t value = 0, place[32];
    unsigned done;
    int error = PCISPLIT_ERROR_OP_FAILED;

    for (unsigned i = 1; i < words && i < 32; i++)
        n[i] = strtoull(word[i], NULL, 0);
    if (!strcmp(word[0], "deadline")) {
        patience = n[1] * 1000000;
        return 0;
    }
    if (!strcmp(word[0], "connect")) {
        error = meet(word[1], word[2]);
        if (error && sock >= 0) {
            close(sock);
            sock = -1;
        }
        connected = !error;
        return error;
    }
    if (!connected)
        return error;
    if (!strcmp(word[0], "config-read")) {
        error = pcifront_config_read(&front, 0, (uint32_t)n[1], (unsigned)n[2], &value, deadline);
        out[(*outs)++] = value;
    } else if (!strcmp(word[0], "config-write")) {
        error = pcifront_config_write(&front, 0, (uint32_t)n[1], (unsigned)n[2], (uint32_t)n[3], deadline);
    } else if (!strcmp(word[0], "bar-read")) {
        error = pcifront_bar_read(&front, 0, (unsigned)n[1], n[2], (unsigned)n[3], &out[(*outs)++], deadline);
    } else if (!strcmp(word[0], "bar-write")) {
        error = pcifront_bar_write(&front, 0, (unsigned)n[1], n[2], (unsigned)n[3], n[4], deadline);
    } else if (!strcmp(word[0], "bar-post")) {
        error = pcifront_bar_post(&front, 0, (unsigned)n[1], n[2], (unsigned)n[3], n[4], 1, deadline);
    } else if (!strcmp(word[0], "read-many")) {
        for (unsigned i = 3; i < words; i++)
            place[i - 3] = (uint32_t)n[i];
        *outs = words - 3;
        error = pcifront_read_many(&front, 0, (unsigned)n[1], (unsigned)n[2], place, out, *outs, &done, deadline);
    } else if (!strcmp(word[0], "irq-enable")) {
        error = pcifront_enable_msi(&front, 0, deadline);
    } else if (!strcmp(word[0], "irq-wait")) {
        error = pcifront_interrupt_wait(&front, 0, 0, &out[(*outs)++], now(NULL) + n[1] * 1000000);
    } else if (!strcmp(word[0], "reset")) {
        error = pcifront_reset(&front, 0, deadline);
    } else if (!strcmp(word[0], "close")) {
        struct pollfd end = {.fd = sock, .events = POLLIN};
        pcifront_close(&front);
        poll(&end, 1, (int)(patience / 1000000)); // until the back has closed: then the devices are free [LIFE-7]
        close(sock);
        connected = error = 0;
    }
    return error;
}

int main(void)
{
    char line[1024], *word[32];

    while (fgets(line, sizeof line, stdin)) {
        unsigned words = 0, outs = 0;
        uint64_t out[32];
        for (char *part = strtok(line, " \n"); part && words < 32; part = strtok(NULL, " \n"))
            word[words++] = part;
        int error = words ? run(word, words, out, &outs) : PCISPLIT_ERROR_OP_FAILED;
        if (error == PCISPLIT_ERROR_GONE && hung_up && pcisplit_load(&front.back->state) < PCISPLIT_STATE_CLOSING)
            error = PCISPLIT_ERROR_OP_FAILED; // it died without a word: a failure of the back [LIFE-31]
        printf(error ? "error %d" : "ok", error);
        for (unsigned i = 0; !error && i < outs; i++)
            printf(" %" PRIu64, out[i]);
        printf("\n");
        fflush(stdout);
    }
    return 0;
}
