# SPDX-License-Identifier: MIT
"""A remote device: what ``Session.acquire`` returns."""

from collections.abc import Sequence

from pcisplit import bootinfo, wire
from pcisplit._core import lib
from pcisplit.errors import AccessError
from pcisplit.front.bar import Bar
from pcisplit.front.config import Config
from pcisplit.front.irq import Irq
from pcisplit.front.native import Handle
from pcisplit.messages import parse_untrusted
from pcisplit.wire import DeviceFlag, Error, Op


class RemoteDevice:
    """One device of the session. ``config``, ``bar(n)`` and ``irq(n)`` reach its parts; all share the session's thread rule."""

    def __init__(self, handle: Handle, info: bootinfo.Device, b2f: memoryview, fds: Sequence[int], pipe: int) -> None:
        self._handle, self._info = handle, info
        self._state = b2f[info.state_offset : info.state_offset + wire.DEVICE_STATE.sizeof()]
        self.name = info.name
        self.vendor, self.device_id, self.class_code = info.vendor, info.device_id, info.class_code
        self.resettable = bool(info.flags & DeviceFlag.RESETTABLE)
        self.config = Config(handle, info.index, info.name)
        self._bars = {bar.index: Bar(handle, info.index, info.name, bar) for bar in info.bars}
        self._irqs = {
            vector.index: Irq(
                handle, info.index, info.name, vector, fds[vector.fd] if vector.fd < len(fds) else -1, pipe
            )
            for vector in info.vectors
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
            raise AccessError(Error.TOO_MANY_VECTORS, where) from None

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
        fields = parse_untrusted(wire.DEVICE_STATE, bytes(self._state), "device state", Error.OP_FAILED)
        return int(fields["posted_errors"])

    @property
    def refused(self) -> int:
        """Requests of this device that were answered with an error, posted ones included."""
        fields = parse_untrusted(wire.DEVICE_STATE, bytes(self._state), "device state", Error.OP_FAILED)
        return int(fields["refused"])

    def release(self) -> None:
        """Let go of shared memory; called by the session."""
        self._state.release()
