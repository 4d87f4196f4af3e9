# SPDX-License-Identifier: MIT
"""The meeting and the session, front side."""

import contextlib
import mmap
import os
import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from pcisplit import wire
from pcisplit._core import lib
from pcisplit.bootinfo import BootInfo, parse_boot_info_untrusted
from pcisplit.errors import AccessError, BusyError, MeetingRefused, RemoteProtocolError, SessionGone
from pcisplit.front.device import RemoteDevice
from pcisplit.front.dma import DmaPool
from pcisplit.front.native import Handle
from pcisplit.messages import Event, Hello, Need, Reply, Request, Response, parse_reply_untrusted
from pcisplit.ring.region import B2F_SEALS, F2B_SEALS, SIZE_SEALS, check_seals
from pcisplit.wire import Direction, Error, RegionIndex, VectorMode

_SLOT_KINDS: tuple[type[Request] | type[Response] | type[Event], ...] = (Request, Response, Event)


class Session:
    """A session with a backend; use it as a context manager. Made by ``connect``."""

    def __init__(self, sock: socket.socket, info: BootInfo, raw: bytes, fds: Sequence[int], timeout: float) -> None:
        self.info = info
        self._timeout = timeout
        self._sock, self._fds = sock, list(fds)
        with contextlib.ExitStack() as held:
            self._maps = [self._map(index) for index in RegionIndex]
            for memory in self._maps:
                if memory is not None:
                    held.callback(memory.close)
            doorbells = {bell.index: self._fd(bell.fd) for bell in info.doorbells}
            pipe = doorbells[Direction.BACK_TO_FRONT]
            self._handle = Handle(raw, self._maps, (doorbells[Direction.FRONT_TO_BACK], pipe, sock.fileno()))
            held.callback(self._handle.free)
            lib.pcsf_set_timeout(self._handle.raw, int(timeout * 1e9))
            error = lib.pcsf_connect(self._handle.raw)
            if error:
                self._handle.fail_code(error, "connecting")
            held.pop_all()
        b2f = self._maps[RegionIndex.B2F]
        assert b2f is not None
        self._b2f = memoryview(b2f)
        self._devices = {
            device.name: RemoteDevice(self._handle, device, self._b2f, self._fds, pipe) for device in info.devices
        }
        self.dma = DmaPool(self._maps[RegionIndex.DMA], info.windows)
        self.doorbell = pipe
        self._open = True

    def _fd(self, place: int) -> int:
        if place >= len(self._fds):
            raise RemoteProtocolError(Error.OP_FAILED, f"the boot-info block names descriptor {place}, there is none")
        return self._fds[place]

    def _map(self, index: RegionIndex) -> mmap.mmap | None:
        region = next((r for r in self.info.regions if r.index is index), None)
        if region is None:
            return None
        fd = self._fd(region.fd)
        wanted = {RegionIndex.F2B: F2B_SEALS, RegionIndex.B2F: B2F_SEALS, RegionIndex.DMA: SIZE_SEALS}[index]
        check_seals(fd, wanted, region.size, index.name.lower())
        prot = mmap.PROT_READ | (mmap.PROT_WRITE if region.writable else 0)
        return mmap.mmap(fd, region.size, prot=prot)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "open" if self._open else "closed"
        return f"<session {self.info.session}, {state}: {', '.join(self._devices)}; {self.dma!r}>"

    @property
    def devices(self) -> tuple[str, ...]:
        """Names of the devices of this session."""
        return tuple(self._devices)

    def acquire(self, name: str) -> RemoteDevice:
        """The device of that name: a local look-up, the meeting did the work. Raises AccessError (DEV_NOT_FOUND)."""
        try:
            return self._devices[name]
        except KeyError:
            raise AccessError(
                Error.DEV_NOT_FOUND, f"device {name!r}; this session has {', '.join(self._devices)}"
            ) from None

    def set_timeout(self, seconds: float) -> None:
        """Seconds after which a call gives up with AccessTimeout."""
        self._timeout = seconds
        lib.pcsf_set_timeout(self._handle.raw, int(seconds * 1e9))

    def set_spin(self, turns: int) -> None:
        """Turns (some 20 ns each) that a call spins before it sleeps; 0 never spins."""
        lib.pcsf_set_spin(self._handle.raw, turns)

    @property
    def statistics(self) -> dict[str, int]:
        """Responses that were late, that nobody asked for, and of an old generation."""
        names = ("late", "strange", "stale")
        return {name: int(lib.pcsf_statistic(self._handle.raw, at)) for at, name in enumerate(names)}

    @contextlib.contextmanager
    def trace(self, entries: int = 4096) -> Iterator[list[Request | Response | Event]]:
        """Collect the messages that cross inside the block, at most the last `entries`, into the list it yields."""
        crossed: list[Request | Response | Event] = []
        self._handle.trace(entries)
        try:
            yield crossed
        finally:
            for _, kind, octets in self._handle.trace_take(entries):
                crossed.append(_SLOT_KINDS[kind].from_bytes_untrusted(octets))
            self._handle.trace(0)

    def _retire(self) -> None:
        """Wait for a thread that is inside to leave, as it does when the backend has closed. Raises BusyError."""
        deadline = time.monotonic() + self._timeout
        while not lib.pcsf_retire(self._handle.raw):
            if time.monotonic() > deadline:
                raise BusyError("another thread is still inside this session; end its call before closing")
            os.sched_yield()

    def close(self) -> None:
        """End the session: no further requests, everything is unmapped, the backend tears down. Idempotent.

        Waits until the backend has closed the socket, at most the session's timeout: then the devices are free again [LIFE-7].
        """
        if not self._open:
            return
        lib.pcsf_close(self._handle.raw)
        self._retire()
        self._open = False
        for device in self._devices.values():
            device.release()
        self.dma.release()
        self._b2f.release()
        self._handle.free()
        for memory in self._maps:
            if memory is not None:
                memory.close()
        for fd in self._fds:
            os.close(fd)
        with self._sock, contextlib.suppress(OSError):
            self._sock.settimeout(self._timeout)
            self._sock.recv(1)


def connect(
    path: str | Path,
    *,
    devices: Sequence[str | Need] = (),
    driver: str = "pcisplit",
    dma: int | None = None,
    dma_bits: int = 64,
    timeout: float = 2.0,
) -> Session:
    """Meet the backend behind the socket at `path` and get a session, or nothing at all [MEET-8].

    `devices` are names or Needs; none asks for every device that is served to us. `dma` is the DMA memory needed in octets
    (None: all that serve gives), `dma_bits` the address bits the driver can use, `timeout` the seconds after which a call
    gives up. Raises MeetingRefused, RemoteProtocolError, SessionGone, OSError.
    """
    needs = tuple(need if isinstance(need, Need) else Need(need, wire.ALL_VECTORS) for need in devices)
    hello = Hello(driver, needs, wire.DMA_ALL if dma is None else dma, dma_bits)
    with contextlib.ExitStack() as held:
        sock = held.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        sock.settimeout(max(timeout, 10.0))  # the back may reset devices before it answers
        sock.connect(str(path))
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


def _meet(sock: socket.socket, hello: Hello) -> tuple[Reply, list[int]]:
    sock.send(hello.to_bytes())
    data, fds, _, _ = socket.recv_fds(sock, 1 << 18, wire.MAX_FDS, socket.MSG_CMSG_CLOEXEC)
    if not data:
        raise SessionGone(Error.SUCCESS)
    try:
        return parse_reply_untrusted(data), fds
    except RemoteProtocolError:
        for fd in fds:
            os.close(fd)
        raise


__all__ = ["Need", "Session", "VectorMode", "connect"]
