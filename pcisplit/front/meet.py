# SPDX-License-Identifier: MIT
"""The meeting, front side (spec/meeting.md): reach the backend, say what is needed, get a session or a reason."""

import contextlib
import errno
import os
import socket
import struct
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from pcisplit import wire
from pcisplit.front.session import Session
from pcisplit.proto.bootinfo import parse_boot_info_untrusted
from pcisplit.proto.errors import ERRORS, MeetingRefused, RemoteProtocolError, SessionGone
from pcisplit.proto.meeting import Hello, Need, Reply, parse_reply_untrusted
from pcisplit.wire import Error

_PAUSES = (0.01, 0.2)  #: seconds between attempts: the first, and the longest after doubling
_ANSWER = 10.0  #: seconds for the reply, at least: the back may reset devices before it answers


def connect(
    path: str | Path,
    *,
    devices: Sequence[str | Need] = (),
    driver: str = "pcisplit",
    dma: int | None = None,
    dma_bits: int = 64,
    timeout: float = 2.0,
    wait: float = 0.0,
) -> Session:
    """Meet the backend behind the socket at `path` and get a session, or nothing at all [MEET-8].

    `devices` are names or Needs; none asks for every device that is served to us. `dma` is the DMA memory needed in octets
    (None: all that serve gives), `dma_bits` the address bits the driver can use, `timeout` the seconds after which a call
    gives up.

    `wait` is for how many seconds that is tried again which may yet come: a socket that is not there or that nobody listens
    at, a refusal that a retry may help (``ERRORS[code].retry``: another session has the device, ...). A full backlog is
    waited for in any case, for `timeout` seconds or `wait`, the longer of the two [MEET-22].

    Raises MeetingRefused, RemoteProtocolError, SessionGone, OSError: at once, or the last one when the time is over, which its
    text then tells.
    """
    needs = tuple(need if isinstance(need, Need) else Need(need, wire.AS_MANY) for need in devices)
    hello = Hello(driver, needs, wire.DMA_ALL if dma is None else dma, dma_bits)
    began, pause, attempts = time.monotonic(), _PAUSES[0], 0
    while True:
        try:
            return _attempt(path, hello, timeout, began + max(wait, timeout))
        except (OSError, MeetingRefused) as problem:
            attempts += 1
            waited = time.monotonic() - began
            left = wait - waited if _may_yet_come(problem) else 0.0
            if left <= 0:
                if attempts == 1 and not isinstance(problem, BlockingIOError):
                    raise
                raise _with_time(problem, waited) from None
        threading.Event().wait(min(pause, left))
        pause = min(2 * pause, _PAUSES[1])


def _may_yet_come(problem: OSError | MeetingRefused) -> bool:
    if isinstance(problem, MeetingRefused):
        return ERRORS[problem.code].retry
    return isinstance(problem, FileNotFoundError | ConnectionRefusedError)


def _with_time(problem: OSError | MeetingRefused, waited: float) -> OSError | MeetingRefused:
    """The same problem, its text with how long was waited."""
    if isinstance(problem, MeetingRefused):
        return MeetingRefused(problem.code, f"{problem.sentence} (after waiting {waited:.1f} s)")
    return OSError(problem.errno, f"{problem.strerror} (after waiting {waited:.1f} s)", problem.filename)


def _attempt(path: str | Path, hello: Hello, timeout: float, room: float) -> Session:
    with contextlib.ExitStack() as held:
        sock = held.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        _reach(sock, str(path), room)
        sock.settimeout(max(timeout, _ANSWER))
        reply, fds = _meet(sock, hello)
        for fd in fds:
            held.callback(os.close, fd)
        if reply.error is not Error.SUCCESS:
            raise MeetingRefused(reply.error, reply.text)
        info = parse_boot_info_untrusted(reply.boot_info)
        if len(fds) != reply.fds:
            raise RemoteProtocolError(
                Error.OP_FAILED, f"the reply names {reply.fds} descriptors and brought {len(fds)}"
            )
        sock.setblocking(False)
        session = Session(sock, info, reply.boot_info, fds, timeout)
        held.pop_all()
    return session


def _reach(sock: socket.socket, path: str, deadline: float) -> None:
    """Connect. The kernel lets us wait in line for room in the backlog, until the deadline; then BlockingIOError.

    Trying again by ourselves would lose nearly every time against somebody who connects and closes in a loop.
    """
    while True:
        left = max(deadline - time.monotonic(), 0.001)  # zero would be for ever
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", int(left), int(left % 1 * 1e6)))
        try:
            sock.connect(path)
            sock.getpeername()  # a signal ends the wait, and Python takes that for a success
            return
        except OSError as problem:
            if problem.errno == errno.EAGAIN:
                raise BlockingIOError(errno.EAGAIN, "the backend's backlog is full", path) from None
            if problem.errno != errno.ENOTCONN:
                raise OSError(problem.errno, problem.strerror, path) from None


def _meet(sock: socket.socket, hello: Hello) -> tuple[Reply, list[int]]:
    sock.send(hello.to_bytes())
    data, fds, _, _ = socket.recv_fds(sock, wire.REPLY_MAX, wire.MAX_FDS, socket.MSG_CMSG_CLOEXEC)
    if not data:
        raise SessionGone(Error.OP_FAILED, "the backend hung up without an answer")
    try:
        return parse_reply_untrusted(data), fds
    except RemoteProtocolError:
        for fd in fds:
            os.close(fd)
        raise
