# SPDX-License-Identifier: MIT
"""Signal an eventfd that a peer may hold too, without a plain write of it [THR-4].

The peer can clear O_NONBLOCK on the shared open file and fill its counter; a plain write would then hang for ever. So a write
is tried only when poll says that there is room for it, with the counter never near full unless a peer made it so, and a full
eventfd counts as signalled. The window between poll and write is a peer's that fills the counter in it; it is closed by the
kernel's own signalling (an AIO completion with IOCB_FLAG_RESFD never blocks), where the kernel has AIO.
"""

import ctypes
import os
import select
import threading

_SYS_IO_SETUP, _SYS_IO_SUBMIT, _SYS_IO_GETEVENTS = 206, 209, 208  # x86-64; elsewhere the poll way is taken
_IOCB_CMD_PREAD, _IOCB_FLAG_RESFD = 0, 1


class _Iocb(ctypes.Structure):
    """``struct iocb`` of linux/aio_abi.h, little-endian."""

    _fields_ = (
        ("data", ctypes.c_uint64),
        ("key", ctypes.c_uint32),
        ("rw_flags", ctypes.c_uint32),
        ("opcode", ctypes.c_uint16),
        ("reqprio", ctypes.c_int16),
        ("fd", ctypes.c_uint32),
        ("buf", ctypes.c_uint64),
        ("nbytes", ctypes.c_uint64),
        ("offset", ctypes.c_int64),
        ("reserved2", ctypes.c_uint64),
        ("flags", ctypes.c_uint32),
        ("resfd", ctypes.c_uint32),
    )


class KernelSignal:
    """Signals eventfds from inside the kernel: a read of /dev/null whose AIO completion does it."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._lock = threading.Lock()
        self._context = ctypes.c_ulong(0)
        if os.uname().machine != "x86_64" or self._libc.syscall(_SYS_IO_SETUP, 8, ctypes.byref(self._context)):
            raise OSError(ctypes.get_errno(), "no AIO here")
        self._null = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        self._events = ctypes.create_string_buffer(32 * 8)

    def __call__(self, fd: int) -> bool:
        block = _Iocb(opcode=_IOCB_CMD_PREAD, fd=self._null, flags=_IOCB_FLAG_RESFD, resfd=fd)
        blocks = (ctypes.POINTER(_Iocb) * 1)(ctypes.pointer(block))
        with self._lock:
            done: int = self._libc.syscall(_SYS_IO_SUBMIT, self._context, ctypes.c_long(1), blocks)
            if done == 1:
                self._libc.syscall(
                    _SYS_IO_GETEVENTS, self._context, ctypes.c_long(1), ctypes.c_long(8), self._events, None
                )
        return done == 1


_kernel_signal: KernelSignal | None = None
_maker = 0  # the pid of who made it: a context belongs to one address space, and a fork leaves it behind


def prepare() -> None:
    """Have the kernel's own way ready in this process. To be called before a system call filter; else at the first signal."""
    global _kernel_signal, _maker
    if _maker != os.getpid():
        _maker = os.getpid()
        try:
            _kernel_signal = KernelSignal()
        except OSError:
            _kernel_signal = None


def signal_eventfd(fd: int) -> bool:
    """Add 1 to an eventfd's counter and wake who waits for it; never blocks. Whether it went the kernel's own way."""
    prepare()
    if _kernel_signal is not None and _kernel_signal(fd):
        return True
    poller = select.poll()
    poller.register(fd, select.POLLOUT)
    if poller.poll(0):
        os.eventfd_write(fd, 1)
    return False
