# SPDX-License-Identifier: MIT
"""Processes of our own that do one thing until they are killed: fronts that flood, fronts that idle, loops that use a CPU."""

import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence

from backend import BenchError

_PR_SET_PDEATHSIG = 1  #: linux/prctl.h
_libc = ctypes.CDLL(None)


def fork(prepare: Callable[[], Callable[[], None]]) -> int:
    """A process that runs `prepare`, stops, and when continued runs what that returned. Returns its pid when it has stopped.

    It is a session of its own, as workers are: where the kernel has autogroups, each is as much to the scheduler as another.
    Raises BenchError if it ends instead.
    """
    pid = os.fork()
    if pid == 0:
        try:
            _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            os.setsid()
            work = prepare()
            os.kill(os.getpid(), signal.SIGSTOP)
            work()
        except BaseException:
            sys.excepthook(*sys.exc_info())
            sys.stderr.flush()
        finally:
            os._exit(1)
    _, status = os.waitpid(pid, os.WUNTRACED)
    if not os.WIFSTOPPED(status):
        raise BenchError("a process of the benchmark ended; see above")
    return pid


@contextlib.contextmanager
def forked(prepares: Sequence[Callable[[], Callable[[], None]]]) -> Iterator[list[int]]:
    """Processes, all stopped, as ``fork`` makes them; killed and reaped afterwards."""
    pids: list[int] = []
    try:
        for prepare in prepares:
            pids.append(fork(prepare))
        yield pids
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):  # ended before, and was reaped
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)


@contextlib.contextmanager
def running(pids: Sequence[int]) -> Iterator[None]:
    """Let them run inside the block. Raises BenchError if one has ended by then."""
    for pid in pids:
        os.kill(pid, signal.SIGCONT)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
    for pid in pids:
        found, status = os.waitpid(pid, os.WUNTRACED)
        if found and not os.WIFSTOPPED(status):
            raise BenchError("a process of the benchmark ended while it was to run; see above")
