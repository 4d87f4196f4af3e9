# SPDX-License-Identifier: MIT
"""The session, front side: what the meeting gave, until it is closed."""

import contextlib
import mmap
import os
import select
import socket
import time
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Self

from pcisplit._core import lib
from pcisplit.front.device import RemoteDevice
from pcisplit.front.dma import DmaPool
from pcisplit.front.doorbells import check_eventfd, check_stream
from pcisplit.front.native import Handle
from pcisplit.front.slots import unpack_untrusted
from pcisplit.proto.bootinfo import BootInfo
from pcisplit.proto.errors import AccessError, BusyError, RemoteProtocolError
from pcisplit.proto.slots import Event, Request, Response
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
            kick, self.doorbell = self._doorbells()
            self._handle = Handle(raw, self._maps, (kick, self.doorbell, sock.fileno()))
            held.callback(self._handle.free)
            self._handle.set_timeout(timeout)
            error = lib.pcsf_connect(self._handle.raw)
            if error:
                self._handle.fail_code(error, "connecting")
            held.pop_all()
        b2f = self._maps[RegionIndex.B2F]
        assert b2f is not None
        self._b2f = memoryview(b2f)
        self._devices = {
            device.name: RemoteDevice(self._handle, device, self._b2f, self._fds, self.doorbell)
            for device in info.devices
        }
        self.dma = DmaPool(self._maps[RegionIndex.DMA], info.windows)
        self._open, self._closed = True, False

    def _fd(self, place: int) -> int:
        if place >= len(self._fds):
            raise RemoteProtocolError(Error.OP_FAILED, f"the boot-info block names descriptor {place}, there is none")
        return self._fds[place]

    def _doorbells(self) -> tuple[int, int]:
        """Descriptors of the doorbell to the back and of ours; they and those of direct vectors are what they must be."""
        bells = {bell.index: self._fd(bell.fd) for bell in self.info.doorbells}
        check_eventfd(bells[Direction.FRONT_TO_BACK], "the doorbell to the back")
        check_stream(bells[Direction.BACK_TO_FRONT], "the doorbell to the front")
        for device in self.info.devices:
            for run in device.vectors:
                for at in range(run.count if run.mode is VectorMode.DIRECT else 0):
                    check_eventfd(self._fd(run.fd + at), f"vector {run.first + at} of {device.name}")
        return bells[Direction.FRONT_TO_BACK], bells[Direction.BACK_TO_FRONT]

    def _map(self, index: RegionIndex) -> mmap.mmap | None:
        region = next((r for r in self.info.regions if r.index is index), None)
        if region is None:
            return None
        fd = self._fd(region.fd)
        wanted = {RegionIndex.F2B: F2B_SEALS, RegionIndex.B2F: B2F_SEALS, RegionIndex.DMA: SIZE_SEALS}[index]
        check_seals(fd, wanted, region.size, index.name.lower())
        prot = mmap.PROT_READ | (mmap.PROT_WRITE if region.writable else 0)
        try:
            return mmap.mmap(fd, region.size, prot=prot)
        except PermissionError:
            raise RemoteProtocolError(Error.OP_FAILED, f"region {index.name.lower()} is sealed against us") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except BusyError as problem:
            if value is None:
                raise
            value.add_note(f"closing the session: {problem}")  # what ended the block says more

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
        self._handle.set_timeout(seconds)

    def set_spin(self, turns: int) -> None:
        """Turns (some 20 ns each) that a call spins before it sleeps; 0 never spins."""
        lib.pcsf_set_spin(self._handle.raw, turns)

    @property
    def statistics(self) -> dict[str, int]:
        """Responses that were late, that nobody asked for or that break the rules, and of an old generation."""
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
                crossed.append(unpack_untrusted(_SLOT_KINDS[kind], octets))
            self._handle.trace(0)

    def close(self) -> None:
        """End the session: no further requests, everything is unmapped, the backend tears down. Idempotent.

        Waits until the backend has closed the socket, at most the session's timeout: then the devices are free again [LIFE-7].
        A thread that is inside a call is got out of it; it sees SessionGone.

        Raises BusyError when something could not be let go of: that thread does not come out, or DMA memory is still in use
        by what was made of a buffer. All else is done then, and closing again does the rest.
        """
        if self._closed:
            return
        if self._open:
            self._open = False
            self._handle.end()
            with contextlib.suppress(OSError):  # the back does not see this; who waits in here does, at once
                self._sock.shutdown(socket.SHUT_RD)
        self._retire()
        for device in self._devices.values():
            device.release()
        held = self.dma.release()
        self._b2f.release()
        self._handle.free()
        while self._fds:
            os.close(self._fds.pop())
        self._hang_up()
        self._maps = [memory for memory in self._maps if memory is not None and not _unmapped(memory)]
        if self._maps:
            what = {0: "DMA memory is still in use by slices of buffers", 1: "1 buffer of DMA memory is still in use"}
            held_by = what.get(held, f"{held} buffers of DMA memory are still in use")
            text = f"{held_by}, which keeps it mapped; all else of the session is closed"
            raise BusyError(f"{text}: let go of what was made of it, then close again")
        self._closed = True

    def _retire(self) -> None:
        """Wait for a thread that is inside to leave, as it does when the session ends. Raises BusyError."""
        deadline = time.monotonic() + self._timeout
        while not lib.pcsf_retire(self._handle.raw):
            if time.monotonic() > deadline:
                raise BusyError(
                    "another thread is still inside this session; the back knows; end its call, then close again"
                )
            os.sched_yield()

    def _hang_up(self) -> None:
        """Close the socket when the backend has, or after the timeout."""
        if self._sock.fileno() < 0:
            return
        hung_up = select.poll()
        hung_up.register(self._sock, 0)
        hung_up.poll(self._timeout * 1000)
        self._sock.close()


def _unmapped(memory: mmap.mmap) -> bool:
    """Unmap; False while something still refers to the memory."""
    try:
        memory.close()
    except BufferError:
        return False
    return True
