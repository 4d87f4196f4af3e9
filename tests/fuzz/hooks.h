/* SPDX-License-Identifier: MIT
 *
 * Forced upon the back's core when it is built for fuzzing: the few calls by which it waits, tells the time and rings go
 * to the harness, so that one thread and the fuzzer's octets decide everything that happens, and when.
 */
#ifndef FUZZ_HOOKS_H
#define FUZZ_HOOKS_H

#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

int fuzz_epoll_ctl(int epoll, int operation, int fd, struct epoll_event *event);
int fuzz_epoll_wait(int epoll, struct epoll_event *events, int most, int timeout);
int fuzz_clock_gettime(clockid_t clock, struct timespec *now);
long fuzz_syscall(long number, ...); /* a futex is not waited for: time goes on instead */
ssize_t fuzz_send(int fd, const void *octets, size_t length, int flags);

#define epoll_ctl fuzz_epoll_ctl
#define epoll_wait fuzz_epoll_wait
#define clock_gettime fuzz_clock_gettime
#define send fuzz_send
#define syscall fuzz_syscall

#endif
