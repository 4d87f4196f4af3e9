# SPDX-License-Identifier: MIT
"""The C frontend as Python sees it: one handle, calls that return packed results, errors unpacked in one place."""

import mmap
from collections.abc import Sequence
from typing import Any, NoReturn

from pcisplit import wire
from pcisplit._core import ffi, lib
from pcisplit.front.slots import pack, unpack_untrusted
from pcisplit.proto.errors import AccessError, AccessTimeout, BusyError, SessionGone, known_error
from pcisplit.proto.slots import Request, Response
from pcisplit.wire import Error, State

INSIDE = -0x8000  #: PCSF_INSIDE: not an error of the wire; another thread is in the handle
ENTRY_SIZE = 80  #: of a trace entry: u64 time in ns, u64 kind, the slot


class Handle:
    """Owner of one ``struct pcsf``. `raw` and the functions of ``lib`` are used directly where a call must be fast."""

    def __init__(self, boot_info: bytes, regions: Sequence[mmap.mmap | None], fds: tuple[int, int, int]) -> None:
        self._views = [ffi.from_buffer("uint8_t[]", region) if region is not None else ffi.NULL for region in regions]
        sizes = ffi.new("uint64_t[3]", [len(region) if region is not None else 0 for region in regions])
        error = ffi.new("int *")
        raw = lib.pcsf_new(boot_info, len(boot_info), *self._views, sizes, *fds, error)
        if raw == ffi.NULL:
            self._release()
            raise SessionGone(known_error(error[0]))
        self.raw: Any = ffi.gc(raw, lib.pcsf_free)  # a thread on its way in holds it: memory outlives the session
        self.timeout = 0.0
        self._ended = self._closed = False

    def bar(self, device: int, index: int) -> Any:
        """A ``struct pcsf_bar``; it keeps this handle's memory alive. MemoryError."""
        raw = lib.pcsf_bar_new(self.raw, device, index)
        if raw == ffi.NULL:
            raise MemoryError("no memory for a BAR")
        front = self.raw  # outlives it

        def free(bar: Any) -> None:
            lib.pcsf_bar_free(bar)
            assert front is not None

        return ffi.gc(raw, free)

    def set_timeout(self, seconds: float) -> None:
        """Seconds after which a call gives up."""
        self.timeout = seconds
        lib.pcsf_set_timeout(self.raw, int(seconds * 1e9))

    def end(self) -> None:
        """Tell the back that this side closes; a call that waits comes out. Idempotent."""
        self._ended = True
        lib.pcsf_close(self.raw)

    def free(self) -> None:
        """Let go of the mappings; calls fail from now on. Nobody is inside: ``pcsf_retire`` has said so. Idempotent."""
        if not self._closed:
            self._closed = True
            lib.pcsf_retire(self.raw)
            self._release()

    def _release(self) -> None:
        for view in self._views:
            if view != ffi.NULL:
                ffi.release(view)

    def fail(self, packed: int, where: str) -> NoReturn:
        """Raise what a packed result means: AccessError, AccessTimeout, SessionGone or BusyError."""
        self.fail_code(-(packed >> 32 & 0xFFFF), where, packed >> 48, int(lib.pcsf_last_detail(self.raw)))

    def fail_code(self, number: int, where: str, rule: int = 0, detail: int = 0) -> NoReturn:
        if number == INSIDE and self._closed:
            raise self._gone()
        if number == INSIDE:
            raise BusyError(f"{where}: another thread is inside this session; it is for one thread at a time")
        code = known_error(number)
        if code is Error.GONE and (lib.pcsf_gone(self.raw) or self.back_state() is not State.CONNECTED):
            raise self._gone()
        if code is Error.TIMEOUT:
            raise AccessTimeout(code, where)
        raise AccessError(code, where, rule, detail)

    def _gone(self) -> SessionGone:
        """Why there is no session any more, as far as this side can know [LIFE-31]."""
        if self._ended:
            return SessionGone(Error.SUCCESS, "this side closed it")
        if self.back_state() in (State.CLOSING, State.CLOSED):
            return SessionGone(self.back_reason())
        return SessionGone(Error.OP_FAILED, "the backend's process for it died or was killed, and did not close it")

    def check(self, packed: int, where: str) -> None:
        """Raise if the packed result is an error."""
        if packed >> 32:
            self.fail(packed, where)

    def back_state(self) -> State:
        raw = lib.pcsf_back_state(self.raw)
        return State(raw) if raw in State.__members__.values() else State.UNKNOWN

    def back_reason(self) -> Error:
        return known_error(lib.pcsf_back_reason(self.raw))

    def submit(self, requests: Sequence[Request]) -> list[int]:
        """Put requests in flight; returns their ids. Raises AccessError (BUSY) when ring or table are full."""
        octets = ffi.new("uint8_t[]", b"".join(pack(request) for request in requests))
        error = ffi.new("int *")
        done = lib.pcsf_submit(self.raw, octets, len(requests), error)
        if error[0]:
            self.fail_code(error[0], f"submit of request {done + 1} of {len(requests)}")
        sent = bytes(ffi.buffer(octets))
        size = wire.SLOT_SIZE
        return [int.from_bytes(sent[at + 4 : at + 8], "little") for at in range(0, len(requests) * size, size)]

    def poll(self, most: int = 64) -> list[Response]:
        """Answers that have come to submitted requests, without waiting. Raises SessionGone."""
        size = wire.SLOT_SIZE
        octets, error = ffi.new("uint8_t[]", most * size), ffi.new("int *")
        done = lib.pcsf_poll(self.raw, octets, most, error)
        if error[0]:
            self.fail_code(error[0], "taking answers")
        data = bytes(ffi.buffer(octets, done * size))
        return [unpack_untrusted(Response, data[at : at + size]) for at in range(0, len(data), size)]

    def poll_or_wait(self, most: int = 64) -> list[Response]:
        """As poll, but waits until at least one answer has come. AccessTimeout after the handle's timeout."""
        while not (came := self.poll(most)):
            error = lib.pcsf_wait_answer(self.raw)
            if error:
                self.fail_code(error, "waiting for answers")
        return came

    def trace(self, entries: int) -> None:
        """Keep the last `entries` slots that cross; 0 ends it. Raises MemoryError."""
        if lib.pcsf_trace(self.raw, entries):
            raise MemoryError(f"no memory for a trace of {entries} entries")

    def trace_take(self, most: int = 4096) -> list[tuple[int, int, bytes]]:
        """(time in ns, kind, slot) of what crossed since the last call, oldest first."""
        octets = ffi.new("uint8_t[]", most * ENTRY_SIZE)
        count = lib.pcsf_trace_take(self.raw, octets, most)
        data = bytes(ffi.buffer(octets, count * ENTRY_SIZE))
        return [
            (
                int.from_bytes(data[at : at + 8], "little"),
                int.from_bytes(data[at + 8 : at + 16], "little"),
                data[at + 16 : at + ENTRY_SIZE],
            )
            for at in range(0, len(data), ENTRY_SIZE)
        ]
