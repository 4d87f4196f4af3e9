# SPDX-License-Identifier: MIT
"""The owner of a device: the only code that touches it outside the serve loop, in a thread of its own (actor.py).

Policy, shape and range of a ring request have been checked in C before it gets here, and accesses that C can make alone
never do; quotas and what the device itself says remain.
"""

import os
import time
from collections import deque
from collections.abc import Callable

from pcisplit import pci
from pcisplit.back.core.native import BUDGET_NS, CoreDevice, Work
from pcisplit.back.devices.device import Function
from pcisplit.back.log import LimitedLog
from pcisplit.back.policy.compile import Tables
from pcisplit.back.worker.actor import Actor
from pcisplit.proto.errors import DeviceError
from pcisplit.wire import BUILT_OPERATIONS, IRQ_QUOTA, DeviceState, Error, Op, VectorType


class Allowance:
    """What is left of a quota, at most `most` events in any `seconds`."""

    def __init__(self, most: int, seconds: float) -> None:
        self._times: deque[float] = deque(maxlen=most)
        self._most, self._seconds = most, seconds

    def take(self) -> None:
        """Count one; DeviceError (QUOTA) if it is one too many, which is then not counted."""
        now = time.monotonic()
        if len(self._times) == self._most and now - self._times[0] < self._seconds:
            text = f"more than {self._most} in {self._seconds:g} s"
            raise DeviceError(Error.QUOTA, text)
        self._times.append(now)


class Owner(Actor):
    """`traps` are the handlers of configuration octets that policy gave a trap number; each gets offset, width and value,
    and stores what it wants stored. `shared`: another device of the session is in the device's IOMMU group.
    """

    def __init__(
        self,
        device: Function,
        core: CoreDevice,
        tables: Tables,
        vectors: tuple[int, ...],
        log: LimitedLog,
        shared: bool,
    ) -> None:
        super().__init__(device, core, log)
        self.traps: dict[int, Callable[[int, int, int], None]] = {}
        self._tables, self._vectors, self._shared = tables, vectors, shared
        self._msi_on = False
        self._irq_quota = Allowance(*IRQ_QUOTA)
        self._reset_quota = Allowance(*BUILT_OPERATIONS[Op.RESET].quota)
        self._moved = 0  # octets of the block at hand
        self._handlers: dict[int, Callable[[Work], int | None]] = {
            op: getattr(self, f"_{row.name}") for op, row in BUILT_OPERATIONS.items() if row.loop != "nop"
        }

    def _request(self) -> None:
        request, self._moved = self.core.owner_request(), 0
        try:
            value = self._handlers[request.op](request)
        except Exception as problem:  # a bug of ours must not leave the front waiting for ever
            code, rule = self._why(request, problem)
            self.core.owner_finish(code, rule, length=self._moved)
        else:
            if value is not None:
                self.core.owner_finish(Error.SUCCESS, value=value)

    def _why(self, request: Work, problem: Exception) -> tuple[Error, int]:
        """What a request that met `problem` is answered, and by which rule. In the log, but for refusals by a rule: those are
        counted, and cost no line."""
        if not isinstance(problem, DeviceError):
            self._log("owner failed", device=self.device.spec, request=str(request), problem=repr(problem))
            return Error.OP_FAILED, 0
        if problem.code is not Error.DENIED:
            self._log("device refused", device=self.device.spec, request=str(request), problem=str(problem))
        return problem.code, problem.rule

    # -- configuration space ----------------------------------------------------------------------------------

    def _conf_read(self, request: Work) -> int:
        return self.config_read(request.offset, request.width)

    def config_read(self, offset: int, width: int) -> int:
        """As the front sees it, bit by bit: what policy has in hardware from the device, the rest our own value [CFG-2]."""
        hardware = self._tables.mask("hardware", offset, width)
        own = self.core.config_value(offset, width)
        return (self.device.config_read(offset, width) & hardware if hardware else 0) | (own & ~hardware)

    def _conf_write(self, request: Work) -> int:
        """C has checked that nothing refused is changed. Octets with a trap go to its handler, the others by planes."""
        for offset, width, trap in self._runs(request.offset, request.width):
            value = request.value >> 8 * (offset - request.offset) & ((1 << 8 * width) - 1)
            if trap:
                self.traps[trap](offset, width, value)
            else:
                self._store(offset, width, value)
        return 0

    def _runs(self, offset: int, width: int) -> list[tuple[int, int, int]]:
        """(offset, width, trap) of the parts of an access; the whole of it if all octets have one trap, or none."""
        traps = self._tables.trap[offset : offset + width]
        if len(set(traps)) == 1:
            return [(offset, width, traps[0])]
        return [(offset + i, 1, trap) for i, trap in enumerate(traps)]

    def _store(self, offset: int, width: int, value: int) -> None:
        """A write that policy allowed: to the device, then to the virtual bits; if the device refuses, to neither [ERR-3]."""
        self.write_device(offset, width, value)
        self.core.config_apply(offset, width, value)

    def write_device(self, offset: int, width: int, value: int) -> None:
        """Bring the bits of `value` that reach the device to it; the others stay as they are in it."""
        planes = ("through", "clear")
        if any(self._tables.mask(plane, offset, width) for plane in planes):
            held = self.device.config_read(offset, width)
            self.device.config_write(offset, width, self._tables.device_value(offset, width, value, held))

    # -- BARs -------------------------------------------------------------------------------------------------

    def _bar_read(self, request: Work) -> int:
        self._check_progress(request)
        return self.device.bar_read(request.region, request.offset, request.width)

    def _bar_write(self, request: Work) -> int:
        self._check_progress(request)
        self.device.bar_write(request.region, request.offset, request.width, request.value)
        return 0

    def _block(self, request: Work) -> None:
        """The trapped accesses of a block, a slice of them in each turn; C makes the others, and finishes it."""
        until = time.monotonic_ns() + BUDGET_NS
        while True:
            self._moved, piece = self._check_progress(request)
            while self._moved < piece:
                self._trapped(request, self._moved)
                self._moved += request.width
                if time.monotonic_ns() >= until:
                    break
            if not self.core.owner_went(self._moved):
                return
            until = time.monotonic_ns() + BUDGET_NS

    _bar_read_block = _bar_write_block = _block

    def _bar_reads(self, request: Work) -> None:
        """The trapped reads of a pack, one at a time; the others, and its end, are C's."""
        while True:
            self._moved, _ = self._check_progress(request)
            value = self.device.bar_read(request.region, request.elements[self._moved // 4], request.width)
            self.core.owner_data[self._moved : self._moved + 4] = value.to_bytes(4, "little")
            if not self.core.owner_went(self._moved + 4):
                return

    def _bar_writes(self, request: Work) -> None:
        """The trapped writes of a pack; one that fails is counted, and the next one made [BAR-42]."""
        while True:
            at, _ = self._check_progress(request)
            offset, value = request.elements[at // 2 : at // 2 + 2]
            try:
                self.device.bar_write(request.region, offset, request.width, value)
            except Exception as problem:
                left = self.core.owner_failed(*self._why(request, problem))
            else:
                left = self.core.owner_went(at + 4)
            if not left:
                return

    def _trapped(self, request: Work, done: int) -> None:
        """One trapped access of a block, between the device and the owner's buffer."""
        octets = self.core.owner_data[done : done + request.width]
        if request.op == Op.BAR_READ_BLOCK:
            value = self.device.bar_read(request.region, request.offset + done, request.width)
            octets[:] = value.to_bytes(request.width, "little")
        else:
            value = int.from_bytes(octets, "little")
            self.device.bar_write(request.region, request.offset + done, request.width, value)

    def _check_progress(self, request: Work) -> tuple[int, int]:
        """Octets that were moved, and up to where Python must go on. DeviceError for what C met."""
        progress = self.core.owner_progress()
        if progress.error is Error.SUCCESS:
            return progress.done, progress.piece
        self._moved = progress.done if request.length or request.elements else 0
        at = request.elements[progress.done // 4] if request.elements else request.offset + progress.done
        where = f"at {at:#x} of BAR {request.region}"
        why = f": {os.strerror(progress.os_error)}" if progress.os_error else ""
        raise DeviceError(progress.error, f"access {where}{why}", progress.rule)

    # -- interrupts -------------------------------------------------------------------------------------------

    def _check_vectors(self, request: Work) -> None:
        if not self._vectors or (request.first, request.vectors) != (0, len(self._vectors)):
            text = f"vectors {request.first} to {request.first + request.vectors} of {len(self._vectors)}"
            raise DeviceError(Error.TOO_MANY_VECTORS, text)
        self._irq_quota.take()

    def _enable_msi(self, request: Work) -> int:
        self._check_vectors(request)
        if self._msi_on:
            raise DeviceError(Error.BUSY, "MSI is enabled already")
        self._enable(True)
        try:
            self.device.irq_set(VectorType.MSI, 0, self._vectors)
        except DeviceError:
            self._enable(False)
            raise
        self._msi_on = True
        return 0

    def _disable_msi(self, request: Work) -> int:
        self._check_vectors(request)
        self._msi_off()
        return 0

    def _msi_off(self) -> None:
        self.device.irq_set(VectorType.MSI, 0, ())
        self._enable(False)
        self._msi_on = False

    def _enable(self, on: bool) -> None:
        for vector in range(len(self._vectors)):
            self.core.enable_vector(vector, on)

    # -- reset ------------------------------------------------------------------------------------------------

    def _reset(self, request: Work) -> int:
        """Quiesce, reset, just-acquired state, next generation [LIFE-21]."""
        if not self.device.reset_methods or self._shared:
            why = "shares its group, and so its reset, with another device" if self._shared else "has no reset"
            raise DeviceError(Error.NO_RESET, f"{self.device.spec} {why}")
        self._reset_quota.take()
        self._set_state(DeviceState.RESETTING)
        try:
            self.write_device(pci.COMMAND, 2, 0)
            self._msi_off()
            method = self.device.reset()
            self.core.restore_config(self._tables)
            self.write_device(pci.COMMAND, 2, 0)
        finally:
            self.generation += 1
            self._set_state(DeviceState.ACQUIRED)
        self._log("reset", device=self.device.spec, method=method.name.lower(), generation=self.generation)
        return method

    def _set_state(self, state: DeviceState) -> None:
        self.state = state
        self.core.set_state(state, self.generation)
