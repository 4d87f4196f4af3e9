# SPDX-License-Identifier: MIT
"""Interrupts of a remote device: one object per vector, relayed or direct."""

import os
import select
import time

from pcisplit._core import ffi, lib
from pcisplit.front.native import Handle
from pcisplit.proto import bootinfo
from pcisplit.proto.errors import AccessTimeout
from pcisplit.wire import Error, Op, VectorMode


class Irq:
    """One vector. ``wait`` takes seconds and returns how many interrupts came since it was last asked."""

    __slots__ = ("_count", "_device", "_doorbell", "_fd", "_handle", "_name", "mode", "vector")

    def __init__(
        self, handle: Handle, device: int, name: str, info: bootinfo.Vectors, vector: int, fd: int, doorbell: int
    ) -> None:
        self._handle, self._device, self._name = handle, device, name
        self.vector, self.mode, self._count = vector, info.mode, info.count
        self._fd, self._doorbell = fd, doorbell

    def __repr__(self) -> str:
        return f"<vector {self.vector} of {self._name}, {self.mode.name.lower()}>"

    def _where(self, what: str) -> str:
        return f"{what} vector {self.vector} of {self._name}"

    def enable(self) -> None:
        """Let interrupts come, of this vector and the others of its device. AccessError: BUSY if they already do, QUOTA."""
        self._all(Op.ENABLE_MSI, "enabling")

    def disable(self) -> None:
        """No interrupt comes after this returns."""
        self._all(Op.DISABLE_MSI, "disabling")

    def _all(self, op: Op, what: str) -> None:
        self._handle.check(lib.pcsf_vectors(self._handle.raw, op, self._device, 0, self._count), self._where(what))

    def poll(self) -> int:
        """Interrupts since it was last asked, without waiting."""
        if self.mode is VectorMode.DIRECT:
            return self._read_eventfd()
        return int(lib.pcsf_interrupts(self._handle.raw, self._device, self.vector))

    def wait(self, timeout: float | None = None) -> int:
        """Wait for at least one interrupt, at most `timeout` seconds (None: for ever). AccessTimeout, SessionGone."""
        if self.mode is VectorMode.DIRECT:
            return self._wait_eventfd(timeout)
        count = ffi.new("uint64_t *")
        limit = -1 if timeout is None else int(max(timeout, 0.0) * 1e9)
        error = lib.pcsf_interrupt_wait(self._handle.raw, self._device, self.vector, count, limit)
        if error:
            self._handle.fail_code(error, self._where(f"waiting {timeout} s for"))
        return int(count[0])

    async def wait_async(self) -> int:
        """As ``wait``, in a trio task; the deadline is the caller's (``trio.fail_after``)."""
        import trio  # not at the top: a synchronous front need not pay for it

        fd = self._fd if self.mode is VectorMode.DIRECT else self._doorbell
        while True:
            try:
                error = lib.pcsf_sleep(self._handle.raw)
                if error < 0:
                    self._handle.fail_code(error, self._where("waiting for"))
                count = self.poll()
                if count:
                    return count
                await trio.lowlevel.wait_readable(fd)
            finally:
                lib.pcsf_awake(self._handle.raw)

    def _read_eventfd(self) -> int:
        """O_NONBLOCK is an eventfd's open file's, and so the back's to clear: RWF_NOWAIT is this call's own [THR-33]."""
        count = bytearray(8)
        try:
            os.preadv(self._fd, [count], -1, os.RWF_NOWAIT)
        except BlockingIOError:
            return 0
        return int.from_bytes(count, "little")

    def _wait_eventfd(self, timeout: float | None) -> int:
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            readable, _, _ = select.select([self._fd], [], [], left)
            if not readable:
                raise AccessTimeout(Error.TIMEOUT, self._where(f"waiting {timeout} s for"))
            count = self._read_eventfd()
            if count:
                return count
