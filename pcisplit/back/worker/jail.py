# SPDX-License-Identifier: MIT
"""What a worker gives up before its front can reach it.

The rule is an allow list: what is not on it fails with EPERM. An exploited worker can go on doing what a session does - read
and write what it has mapped, and its device - and can do nothing else: it opens no path, makes no process, thread or socket,
passes no descriptor (send(2) carries none, and sendmsg(2) is not on the list), maps nothing executable, widens no mapping
(remap_file_pages), traces nobody, and asks VFIO only for what a running device needs: no mapping of memory for DMA, no other
device. seccomp(2), by libseccomp.
"""

import ctypes
import os
import resource
from typing import Any

import pyseccomp

from pcisplit.back.devices.vfio import abi

_PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS, _PR_CAPBSET_DROP = 4, 38, 24  #: linux/prctl.h
_LAST_CAP = 63
_PROT_EXEC = 4

#: System calls that Python, its threads and the serve loop make in the middle of a session.
_CALLS = (
    *("read", "pread64", "write", "pwrite64", "sendto", "recvmsg", "recvfrom", "close", "poll", "ppoll"),
    *("epoll_wait", "epoll_pwait", "epoll_ctl", "futex", "sched_yield", "restart_syscall"),
    *("clock_gettime", "clock_getres", "clock_nanosleep", "nanosleep", "gettimeofday"),
    *("munmap", "brk", "madvise", "mremap"),  # VFIO's mappings do not expand (VM_DONTEXPAND)
    *("rt_sigreturn", "rt_sigprocmask", "sigaltstack", "getpid", "gettid", "getrandom", "exit", "exit_group"),
    *("io_submit", "io_getevents"),  # devices/signal.py, on the context made before
)
#: Requests of ioctl(2): what a device that is at work needs.
_IOCTLS = (abi.VFIO_DEVICE_SET_IRQS, abi.VFIO_DEVICE_RESET, abi.VFIO_DEVICE_GET_INFO, abi.VFIO_DEVICE_GET_REGION_INFO)
_F_GETFD, _F_GETFL = 1, 3

_libc = ctypes.CDLL(None, use_errno=True)


def make_filter() -> Any:
    """The filter, not yet in force. Made once, in the zygote: it costs more than to load it."""
    rules = pyseccomp.SyscallFilter(pyseccomp.ERRNO(1))
    for name in _CALLS:
        rules.add_rule(pyseccomp.ALLOW, name)
    for name in ("mmap", "mprotect"):
        rules.add_rule(pyseccomp.ALLOW, name, pyseccomp.Arg(2, pyseccomp.MASKED_EQ, _PROT_EXEC, 0))
    for number in _IOCTLS:
        rules.add_rule(pyseccomp.ALLOW, "ioctl", pyseccomp.Arg(1, pyseccomp.EQ, number))
    for command in (_F_GETFD, _F_GETFL):
        rules.add_rule(pyseccomp.ALLOW, "fcntl", pyseccomp.Arg(1, pyseccomp.EQ, command))
    rules.set_attr(pyseccomp.Attr.CTL_TSYNC, 1)  # all threads, which are there by now
    # x32, i386: else one thread dies, and who would know it?
    rules.set_attr(pyseccomp.Attr.ACT_BADARCH, pyseccomp.KILL_PROCESS)
    return rules


def drop_user(uid: int | None) -> None:
    """Become `uid`, with no group but its own, in all threads; None stays who we are. Undumpable either way. OSError."""
    if uid is not None and uid != os.geteuid():
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    _prctl(_PR_SET_DUMPABLE, 0)
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def drop_capabilities() -> None:
    """Those of this thread and of all that it starts from now on; call it before it has started any. Raises OSError."""
    for capability in range(_LAST_CAP + 1):
        _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)  # EINVAL past the kernel's last, EPERM where we have none
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3 of linux/capability.h
    none = (ctypes.c_uint32 * 6)()
    if _libc.capset(header, none):
        number = ctypes.get_errno()
        raise OSError(number, f"capset: {os.strerror(number)}")


def lock(rules: Any, memory: int) -> None:
    """No descriptor above the highest number in use, no process or thread; `memory` octets more than there are; the filter.

    Raises OSError.
    """
    with open("/proc/self/statm") as statm:
        now = int(statm.read().split()[0]) * resource.getpagesize()
    listed = os.listdir("/proc/self/fd")  # with the descriptor of the listing itself
    most = max(int(name) for name in listed if os.path.lexists(f"/proc/self/fd/{name}"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (most + 1, most + 1))
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (now + memory, now + memory))
    rules.load()


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, value, 0, 0, 0):
        number = ctypes.get_errno()
        raise OSError(number, f"prctl({option}): {os.strerror(number)}")
