# SPDX-License-Identifier: MIT
"""The owner of a device: what can sleep, one request at a time, while the serve loop goes on with other devices.

Policy, shape and range have been checked in C before a request gets here; quotas and what the device itself says remain.
"""

import mmap
import time
from collections import deque
from collections.abc import Callable

from pcisplit import pci
from pcisplit.back.core.native import CoreDevice, guarded_read
from pcisplit.back.devices.device import AreaKind, Device
from pcisplit.back.log import LimitedLog
from pcisplit.back.policy.compile import Tables
from pcisplit.errors import DeviceError
from pcisplit.messages import Request
from pcisplit.wire import DeviceState, Error, Op

IRQ_OPS_PER_SECOND = 100
RESET_INTERVAL = 5.0  #: seconds


class Quota:
    """At most `most` events in any `seconds`."""

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


class Owner:
    """Runs in a thread of its own (``run``) from the start of the session until the loop has stopped."""

    def __init__(
        self,
        device: Device,
        core: CoreDevice,
        tables: Tables,
        vectors: tuple[int, ...],
        bulk_in: memoryview,
        bulk_out: memoryview,
        log: LimitedLog,
        shared: bool,
    ) -> None:
        self.device, self.core = device, core
        self._shared = shared  # with another device of the session in its IOMMU group, and perhaps its reset
        self.generation = 1
        self._tables, self._vectors, self._log = tables, vectors, log
        self._bulk_in, self._bulk_out = bulk_in, bulk_out
        self._msi_on = False
        self._irq_quota = Quota(IRQ_OPS_PER_SECOND, 1.0)
        self._reset_quota = Quota(1, RESET_INTERVAL)
        self._moved = 0
        self._handlers: dict[int, Callable[[Request], int]] = {
            Op.CONF_READ: self._config_read,
            Op.CONF_WRITE: self._config_write,
            Op.BAR_READ: self._bar_read,
            Op.BAR_WRITE: self._bar_write,
            Op.BAR_READ_BLOCK: self._read_block,
            Op.BAR_WRITE_BLOCK: self._write_block,
            Op.ENABLE_MSI: self._enable_msi,
            Op.DISABLE_MSI: self._disable_msi,
            Op.RESET: self._reset,
        }

    def run(self) -> None:
        """Answer every request that comes, until stopped. Nothing that a device does ends it."""
        while (request := self.core.owner_wait()) is not None:
            self._moved = 0
            try:
                value = self._handlers[request.op](request)
            except DeviceError as problem:
                self._log("device refused", device=self.device.spec, request=str(request), problem=str(problem))
                self.core.owner_finish(problem.code, problem.rule, length=self._moved)
            except Exception as problem:  # a bug of ours must not leave the front waiting for ever
                self._log("owner failed", device=self.device.spec, request=str(request), problem=repr(problem))
                self.core.owner_finish(Error.OP_FAILED, length=self._moved)
            else:
                self.core.owner_finish(Error.SUCCESS, value=value, length=self._moved)

    # -- configuration space ----------------------------------------------------------------------------------

    def _config_read(self, request: Request) -> int:
        """Byte-exact: octets that the policy holds come from it, the others from the device [CFG-2]."""
        octets = self.device.config_read(request.offset, request.width).to_bytes(request.width, "little")
        mixed = [
            self.core.config_value(request.offset + i, 1) if self.core.config_is_virtual(request.offset + i) else octet
            for i, octet in enumerate(octets)
        ]
        return int.from_bytes(bytes(mixed), "little")

    def _config_write(self, request: Request) -> int:
        """Only COMMAND has bits that live in the device; C has checked that nothing refused is changed."""
        before = self.core.config_value(pci.COMMAND, 2)
        self.core.config_apply(request.offset, request.width, request.value)
        try:
            self.set_command(self.core.config_value(pci.COMMAND, 2))
        except DeviceError:
            self.core.config_apply(pci.COMMAND, 2, before)  # refused: nothing has changed [ERR-3]
            raise
        return 0

    def set_command(self, front: int) -> None:
        """MASTER as the front has it; decode is on and ours [CFG-6].

        INTX_DISABLE stays on in the device until INTx is built: VFIO would let the line through with nobody to handle it.
        """
        now = self.device.config_read(pci.COMMAND, 2)
        wanted = (now & ~pci.COMMAND_MASTER) | (front & pci.COMMAND_MASTER) | pci.COMMAND_INTX_DISABLE
        self.device.config_write(pci.COMMAND, 2, wanted)

    # -- BARs -------------------------------------------------------------------------------------------------

    def _bar_read(self, request: Request) -> int:
        return self.device.bar_read(request.region, request.offset, request.width)

    def _bar_write(self, request: Request) -> int:
        self.device.bar_write(request.region, request.offset, request.width, request.value)
        return 0

    def _read_block(self, request: Request) -> int:
        for done in range(0, request.length, request.width):
            value = self._access(request, request.offset + done, None)
            at = request.bulk + done
            self._bulk_out[at : at + request.width] = value.to_bytes(request.width, "little")
            self._moved = done + request.width
        return 0

    def _write_block(self, request: Request) -> int:
        data = guarded_read(self._bulk_in, request.bulk, request.length)  # copied once [BAR-22]
        if data is None:
            raise DeviceError(Error.FAULTED, "bulk-in is gone")
        for done in range(0, request.length, request.width):
            value = int.from_bytes(data[done : done + request.width], "little")
            self._access(request, request.offset + done, value)
            self._moved = done + request.width
        return 0

    def _access(self, request: Request, offset: int, value: int | None) -> int:
        """One access of a block, by the way its area has; a read if `value` is None."""
        bar, width = request.region, request.width
        kind = self.core.area_kind(bar, offset, width)
        if kind is AreaKind.MAPPED:
            error, read = self.core.mapped(bar, offset, width, value)
            if error is not Error.SUCCESS:
                raise DeviceError(error, f"access at {offset:#x} of BAR {bar}")
            return read
        if kind is AreaKind.DENIED:
            raise DeviceError(Error.DENIED, f"the MSI-X table at {offset:#x} of BAR {bar}")
        if kind is AreaKind.NONE:
            raise DeviceError(Error.INVALID_OFFSET, f"nothing at {offset:#x} of BAR {bar}")
        if value is None:
            return self.device.bar_read(bar, offset, width)
        self.device.bar_write(bar, offset, width, value)
        return 0

    # -- interrupts -------------------------------------------------------------------------------------------

    def _check_vectors(self, request: Request) -> None:
        if request.count != 1 or request.vector + request.count > len(self._vectors):
            text = f"vectors {request.vector} to {request.vector + request.count} of {len(self._vectors)}"
            raise DeviceError(Error.TOO_MANY_VECTORS, text)
        self._irq_quota.take()

    def _enable_msi(self, request: Request) -> int:
        self._check_vectors(request)
        if self._msi_on:
            raise DeviceError(Error.BUSY, "MSI is enabled already")
        self.core.enable_vector(0, True)
        try:
            self.device.enable_msi(self._vectors)
        except DeviceError:
            self.core.enable_vector(0, False)
            raise
        self._msi_on = True
        return 0

    def _disable_msi(self, request: Request) -> int:
        self._check_vectors(request)
        self._msi_off()
        return 0

    def _msi_off(self) -> None:
        self.device.disable_msi()
        for vector in range(len(self._vectors)):
            self.core.enable_vector(vector, False)
        self._msi_on = False

    # -- reset ------------------------------------------------------------------------------------------------

    def _reset(self, request: Request) -> int:
        """Quiesce, reset, just-acquired state, next generation [LIFE-21]."""
        if not self.device.resettable or self._shared:
            why = "shares its group, and so its reset, with another device" if self._shared else "has no reset"
            raise DeviceError(Error.NO_RESET, f"{self.device.spec} {why}")
        self._reset_quota.take()
        self.core.set_state(DeviceState.RESETTING, self.generation)
        try:
            self.set_command(0)
            self._msi_off()
            method = self.device.reset()
            self.core.restore_config(self._tables)
            self.set_command(0)
        finally:
            self.generation += 1
            self.core.set_state(DeviceState.ACQUIRED, self.generation)
        self._log("reset", device=self.device.spec, method=method.name.lower(), generation=self.generation)
        return method


def bulk_views(f2b: mmap.mmap, b2f: mmap.mmap, offsets: tuple[int, ...], size: int) -> tuple[memoryview, memoryview]:
    """Bulk-in and bulk-out; `offsets` as in CoreServe."""
    return memoryview(f2b)[offsets[3] : offsets[3] + size], memoryview(b2f)[offsets[4] : offsets[4] + size]
