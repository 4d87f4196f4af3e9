# SPDX-License-Identifier: MIT
"""A remote device: what ``Session.acquire`` returns."""

import contextlib
from collections.abc import Sequence

from pcisplit import pci, wire
from pcisplit._core import lib
from pcisplit.front.bar import Bar
from pcisplit.front.config import Config
from pcisplit.front.irq import Irq
from pcisplit.front.native import Handle
from pcisplit.proto import bootinfo
from pcisplit.proto.errors import AccessError, PcisplitError, SessionGone
from pcisplit.wire import DeviceFlag, Error, Op, VectorMode


def _eventfd(run: bootinfo.Vectors, vector: int, fds: Sequence[int]) -> int:
    """The descriptor of a direct vector, -1 of a relayed one: those of a run follow its first [BOOT-7]."""
    place = run.fd + vector - run.first
    return fds[place] if run.mode is VectorMode.DIRECT and place < len(fds) else -1


class RemoteDevice:
    """One device of the session. ``config``, ``bar(n)`` and ``irq(n)`` reach its parts; all share the session's thread rule."""

    def __init__(
        self, handle: Handle, info: bootinfo.Device, b2f: memoryview, fds: Sequence[int], doorbell: int
    ) -> None:
        self._handle, self._info = handle, info
        self._state = b2f[info.state_offset : info.state_offset + wire.DEVICE_STATE.size]
        self.name = info.name
        self.vendor, self.device_id, self.class_code = info.vendor, info.device_id, info.class_code
        self.resettable = bool(info.device_flags & DeviceFlag.RESETTABLE)
        self.config = Config(handle, info.index, info.name)
        self._bars = {bar.index: Bar(handle, info.index, info.name, bar) for bar in info.bars}
        self._irqs = {
            vector: Irq(handle, info.index, info.name, run, vector, _eventfd(run, vector, fds), doorbell)
            for run in info.vectors[:1]  # the C frontend counts those of the first run
            for vector in range(run.first, run.first + run.count)
        }

    def __repr__(self) -> str:
        bars = ", ".join(f"BAR {index}" for index in self._bars)
        return f"<device {self.name} {self.vendor:04x}:{self.device_id:04x}: {bars}; {len(self._irqs)} vectors>"

    @property
    def bars(self) -> tuple[Bar, ...]:
        return tuple(self._bars.values())

    def bar(self, index: int) -> Bar:
        """BAR `index` (0-5). Raises AccessError (INVALID_OFFSET) if the device has none of that number."""
        try:
            return self._bars[index]
        except KeyError:
            raise AccessError(
                Error.INVALID_OFFSET, f"BAR {index} of {self.name}, which has {sorted(self._bars)}"
            ) from None

    def irq(self, vector: int = 0) -> Irq:
        """Vector `vector`. Raises AccessError (TOO_MANY_VECTORS) if the session has none of that number."""
        try:
            return self._irqs[vector]
        except KeyError:
            where = f"vector {vector} of {self.name}, which got {len(self._irqs)} at the meeting"
            sentence = "" if self._irqs else self._why_no_vectors()
            raise AccessError(Error.TOO_MANY_VECTORS, where, sentence=sentence) from None

    def _why_no_vectors(self) -> str:
        """What its capabilities say about a device without a vector; empty if that is no news."""
        with contextlib.suppress(PcisplitError):
            found = {ident for ident, _ in pci.capabilities(self.config.dump(pci.CONFIG_SIZE))}
            if pci.CAP_MSI in found:
                return "the session asked for none: connect(devices=[Need(name, vectors)])"
            return "it has MSI-X only, which this version does not build" if pci.CAP_MSIX in found else "it has no MSI"
        return ""

    @property
    def generation(self) -> int:
        return int(lib.pcsf_generation(self._handle.raw, self._info.index))

    def reset(self) -> None:
        """Reset the device: MASTER and interrupts are off afterwards, the generation is new. NO_RESET, QUOTA."""
        packed = lib.pcsf_operation(self._handle.raw, Op.RESET, self._info.index)
        self._handle.check(packed, f"reset of {self.name}")

    def nop(self) -> None:
        """A request that does nothing, in order with the others."""
        self._handle.check(lib.pcsf_operation(self._handle.raw, Op.NOP, self._info.index), f"nop on {self.name}")

    @property
    def posted_errors(self) -> int:
        """Posted writes of this device that failed; valid for those before the last answered request."""
        return self._count("posted_errors")

    @property
    def refused(self) -> int:
        """Requests of this device that were answered with an error, posted ones included."""
        return self._count("refused")

    def _count(self, name: str) -> int:
        try:
            octets = bytes(self._state)
        except ValueError:  # released
            raise SessionGone(Error.SUCCESS, "this side closed it") from None
        return int(wire.DEVICE_STATE.parse(octets, strict=False)[name])

    def release(self) -> None:
        """Let go of shared memory; called by the session."""
        self._state.release()
