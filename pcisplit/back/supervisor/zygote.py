# SPDX-License-Identifier: MIT
"""The zygote: a process with one thread and no descriptor of any device or session, which forks all the others.

It is started before the backend opens anything, so what it forks has nothing but what it is then sent. It has imported what
workers and keepers run and has frozen it (``gc.freeze``), so that they share those pages: a worker is there in 2 ms.

``{"do": "fork", "kind": KIND}`` with one end of a channel beside it is answered with the new process's pid and, beside it, its
pidfd, taken before the process can be reaped. ``{"tell": "exited", "pid": ..., "status": ...}`` follows when it has ended.
"""

import contextlib
import ctypes
import errno
import gc
import os
import posix
import select
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from pcisplit.back.channel import Channel, ChannelClosed, answer, close_all, failure, make_pair
from pcisplit.back.host.harden import die_with_parent
from pcisplit.wire import Error

Main = Callable[[Channel], None]


def start() -> socket.socket:
    """Fork the zygote. Returns our end of its channel. Call it first of all: it must inherit nothing."""
    ours, theirs = make_pair()
    if os.fork() == 0:
        _become(theirs)
    theirs.close()
    return ours


def _become(theirs: socket.socket) -> NoReturn:
    code = 1
    try:
        null = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1):
            os.dup2(null, fd)
        keep = os.dup2(theirs.detach(), 3)
        os.closerange(4, 1 << 20)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # of a terminal or group: the supervisor decides
            signal.signal(number, signal.SIG_IGN)
        kinds = _mains()
        _forget_environment()
        gc.collect()
        gc.freeze()
        gc.disable()
        with contextlib.suppress(ChannelClosed):  # the supervisor is gone
            _serve(Channel(socket.socket(fileno=keep)), kinds)
        code = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
        sys.stderr.flush()
    finally:
        os._exit(code)


def _forget_environment() -> None:
    """The operator's environment is of no use to anybody here, and could be read by whoever takes a worker over."""
    os.environ.clear()
    posix.environ.clear()
    with open("/proc/self/stat") as stat:  # fields 50 and 51 of proc(5): where the kernel put it
        fields = stat.read().rpartition(")")[2].split()
    start, end = int(fields[47]), int(fields[48])
    ctypes.memset(start, 0, end - start)


def _mains() -> dict[str, Main]:
    """What a forked process can become. Imported here, once, for all of them."""
    from pcisplit.back.keeper.main import run as keeper
    from pcisplit.back.keeper.sealer import run as sealer
    from pcisplit.back.worker.main import prepare
    from pcisplit.back.worker.main import run as worker

    prepare()
    return {"worker": worker, "keeper": keeper, "sealer": sealer}


#: Those that must end when the supervisor does: a keeper has to put its devices in order first.
_DIE_WITH_US = {"worker", "sealer"}


def _serve(channel: Channel, kinds: dict[str, Main]) -> None:
    """Fork, reap, tell. Raises ChannelClosed when the supervisor is gone."""
    children: dict[int, int] = {}  # pidfd: pid
    poll = select.poll()
    poll.register(channel.fileno(), select.POLLIN)
    while True:
        for fd, _ in poll.poll():
            if fd != channel.fileno():
                poll.unregister(fd)
                pid = children.pop(fd)
                _, status = os.waitpid(pid, 0)
                os.close(fd)
                channel.send({"tell": "exited", "pid": pid, "status": status})
                continue
            message, fds = channel.recv()
            try:
                pidfd, pid = _fork(message["kind"], kinds, fds)
            except OSError as problem:  # fronts can cause that, so it must not end us [THR-3]
                channel.send(failure(message["id"], Error.QUOTA, f"no process can be forked: {problem.strerror}"))
                continue
            finally:
                close_all(fds)
            children[pidfd] = pid
            poll.register(pidfd, select.POLLIN)
            channel.send(answer(message["id"], pid=pid), [pidfd])


def _fork(kind: str, kinds: dict[str, Main], fds: Sequence[int]) -> tuple[int, int]:
    """A new process: its pidfd and pid. Raises OSError."""
    if len(fds) != 1:  # the kernel drops what does not fit into our table
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    pid = os.fork()
    if pid == 0:
        _run(kind, kinds[kind], fds[0])
    try:
        return os.pidfd_open(pid), pid
    except OSError:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise


def _run(kind: str, main: Main, end: int) -> NoReturn:
    """The life of a forked process."""
    code = 1
    try:
        zygote = os.getppid()
        if kind in _DIE_WITH_US:
            die_with_parent(zygote)
        os.setsid()  # a scheduling group of its own where the kernel has autogroups: threads of one session count as one
        os.dup2(end, 3)
        os.closerange(4, 1 << 20)
        gc.enable()
        main(Channel(socket.socket(fileno=3)))
        code = 0
    except ChannelClosed:
        code = 0  # the supervisor is gone; a keeper has done its work before this
    except BaseException:
        sys.excepthook(*sys.exc_info())
        sys.stderr.flush()
    finally:
        os._exit(code)
