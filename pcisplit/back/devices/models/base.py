# SPDX-License-Identifier: MIT
"""What every model shares: configuration space, interrupts, a software IOMMU, a thread for what takes time."""

import mmap
import os
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn, Self

from pcisplit import pci
from pcisplit.back import log
from pcisplit.back.devices.device import Area, AreaKind, BarInfo, Interrupts, IovaRange, not_built
from pcisplit.back.devices.models.iommu import SoftwareIommu
from pcisplit.back.devices.signal import signal_eventfd
from pcisplit.proto.errors import DeviceError
from pcisplit.ring.region import create_region
from pcisplit.wire import BarFlag, Error, ResetMethod, VectorType


def yes_or_no(key: str, value: str) -> bool:
    """The meaning of ``key=yes`` or ``key=no``. Raises ValueError for anything else."""
    if value not in ("yes", "no"):
        raise ValueError(f"{key}={value} is neither yes nor no")
    return value == "yes"


def take_options(options: Mapping[str, str], allowed: Mapping[str, str]) -> dict[str, str]:
    """`options` over the defaults in `allowed`. Raises ValueError for a key that is not there."""
    unknown = sorted(set(options) - set(allowed))
    if unknown:
        raise ValueError(f"unknown option {unknown[0]!r}; this model takes {', '.join(sorted(allowed)) or 'none'}")
    return {**allowed, **options}


class ModelDevice:
    """A device model, which is its own Function; subclasses fill in `bars` in ``_power_on`` and answer accesses to them."""

    vendor, device_id, class_code = 0, 0, 0
    config_size = pci.CONFIG_SIZE
    interrupts = Interrupts(msi=1)
    rom = 0
    dma_bits = 64
    iova_ranges: tuple[IovaRange, ...] = (IovaRange(0, (1 << 48) - 1),)

    def __init__(self, spec: str, resettable: bool = True, reset_seconds: float = 0.0) -> None:
        self.spec = spec
        self._reset_seconds = reset_seconds  # what a reset takes, as a function level reset takes 0.1
        self.group = f"model-{id(self):x}"
        self.reset_methods: tuple[ResetMethod, ...] = (ResetMethod.MODEL,) if resettable else ()
        self.bars: tuple[BarInfo, ...] = ()
        self.iommu = SoftwareIommu(spec)
        self._config = bytearray(self.config_size)
        self._memory: list[mmap.mmap] = []
        self._irqs: dict[VectorType, list[int]] = {}  # eventfds by vector, -1 for none, of the kinds that are on
        self._irq_lock = threading.Lock()
        self._open = False
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self.stopping = threading.Event()  #: set when the device is closed: whatever waits, stops

    # -- life -------------------------------------------------------------------------------------------------

    def acquire(self) -> Self:
        if self._open:
            raise DeviceError(Error.BUSY, f"{self.spec}: is already acquired")
        self._open = True
        try:
            self.stopping.clear()
            self._jobs = queue.SimpleQueue()  # what the last session asked for must not happen in this one
            self._reset_config()
            self._power_on()
            thread = threading.Thread(target=self._work, name=self.spec, daemon=True)
            thread.start()
        except BaseException:
            self.close()  # no thread, no memory: the next session may have them
            raise
        self._thread = thread
        return self

    def _reset_config(self) -> None:
        """Configuration space as after power-on, with MASTER off whatever a dump says of its time."""
        self._config[:] = self._initial_config()
        self._config[pci.COMMAND] &= ~pci.COMMAND_MASTER
        self.iommu.master = False

    def _power_on(self) -> None:
        """Registers to their values after power-on; BARs made. Subclasses extend."""

    def _initial_config(self) -> bytes:
        config = bytearray(self.config_size)
        config[0:4] = self.vendor.to_bytes(2, "little") + self.device_id.to_bytes(2, "little")
        config[9:12] = self.class_code.to_bytes(3, "little")
        return bytes(config)

    def close(self) -> None:
        self.stopping.set()
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join()
            self._thread = None
        self._all_irqs_off()
        self.iommu.unmap_all()
        self.bars = ()
        for memory in self._memory:
            memory.close()
        self._memory.clear()
        self._open = False

    def shutdown(self) -> None:
        self.close()

    def reset(self, method: ResetMethod | None = None) -> ResetMethod:
        if not self.reset_methods or method not in (None, *self.reset_methods):
            names = ", ".join(one.name.lower() for one in self.reset_methods) or "none"
            raise DeviceError(Error.NO_RESET, f"{self.spec}: has no such reset; it has {names}")
        self._all_irqs_off()
        self.stopping.wait(self._reset_seconds)
        self._reset_config()
        self._reset_registers()
        return ResetMethod.MODEL

    def power(self, state: int) -> None:
        raise not_built(self.spec, f"power state D{state}")

    def events(self) -> Mapping[str, int]:
        return {}

    def _reset_registers(self) -> None:
        """Registers to their values after a reset. Subclasses extend."""

    # -- configuration space ----------------------------------------------------------------------------------

    def config_read(self, offset: int, width: int) -> int:
        return int.from_bytes(self._config[offset : offset + width], "little")

    def config_write(self, offset: int, width: int, value: int) -> None:
        for at, octet in enumerate(value.to_bytes(width, "little"), offset):
            if at in (pci.STATUS, pci.STATUS + 1):  # a 1 clears an error, the rest is read-only
                octet = self._config[at] & ~(octet & pci.STATUS_ERRORS >> 8 * (at - pci.STATUS))
            self._config[at] = octet
        self.iommu.master = bool(self.config_read(pci.COMMAND, 2) & pci.COMMAND_MASTER)

    # -- memory -----------------------------------------------------------------------------------------------

    def _memory_area(self, size: int, read_ns: int = 0, write_ns: int = 0) -> Area:
        """A MAPPED area of `size` octets at 0, zeroed."""
        fd = create_region("model-bar", size)
        try:
            memory = mmap.mmap(fd, size)
        finally:
            os.close(fd)
        self._memory.append(memory)
        return Area(0, size, AreaKind.MAPPED, mapping=memory, read_ns=read_ns, write_ns=write_ns, grantable=True)

    def grant(self, bar: int, offset: int, length: int) -> NoReturn:
        raise not_built(self.spec, f"a grant of {length:#x} octets at {offset:#x} of BAR {bar}")

    def bar_read(self, bar: int, offset: int, width: int) -> int:
        raise DeviceError(Error.INVALID_OFFSET, f"{self.spec} has no register at {offset:#x} of BAR {bar}")

    def bar_write(self, bar: int, offset: int, width: int, value: int) -> None:
        raise DeviceError(Error.INVALID_OFFSET, f"{self.spec} has no register at {offset:#x} of BAR {bar}")

    # -- interrupts -------------------------------------------------------------------------------------------

    def irq_set(self, kind: VectorType, start: int, eventfds: Sequence[int]) -> None:
        if not eventfds:
            with self._irq_lock:
                self._irqs.pop(kind, None)
            return
        if kind is VectorType.INTX:
            raise not_built(self.spec, "INTx")
        if start < 0 or start + len(eventfds) > self.interrupts[kind]:
            text = f"{self.spec}: has {self.interrupts[kind]} {kind.name} vectors, not {start + len(eventfds)}"
            raise DeviceError(Error.TOO_MANY_VECTORS, text)
        with self._irq_lock:
            if any(other is not kind for other in self._irqs):
                raise DeviceError(Error.BUSY, f"{self.spec}: has its other kind of interrupts on")
            vectors = self._irqs.setdefault(kind, [])
            vectors += [-1] * (start + len(eventfds) - len(vectors))
            vectors[start : start + len(eventfds)] = eventfds

    def irq_mask(self, kind: VectorType, start: int, count: int, masked: bool) -> None:
        raise not_built(self.spec, f"masking {count} {kind.name} vectors from {start} on")

    def _all_irqs_off(self) -> None:
        with self._irq_lock:
            self._irqs.clear()

    def signal(self, vector: int = 0) -> None:
        """Send the message of a vector, if it is enabled."""
        with self._irq_lock:
            for vectors in self._irqs.values():
                if vector < len(vectors) and vectors[vector] >= 0:
                    signal_eventfd(vectors[vector])

    # -- DMA --------------------------------------------------------------------------------------------------

    def map_dma(self, fd: int, size: int, iova: int) -> None:
        self.iommu.map(iova, size, fd)

    def unmap_dma(self) -> int:
        return self.iommu.unmap_all()

    # -- work that takes time ---------------------------------------------------------------------------------

    def later(self, job: Callable[[], None]) -> None:
        """Run `job` in the model's thread, after the jobs before it."""
        self._jobs.put(job)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            if self.stopping.is_set():
                continue
            try:
                job()
            except Exception as problem:  # the thread is the device, and a front may have upset it: it goes on
                log.line("warning", "model failed", device=self.spec, problem=repr(problem))


def bar(index: int, size: int, *areas: Area, flags: BarFlag = BarFlag(0)) -> BarInfo:
    """One BAR of a model."""
    return BarInfo(index, size, flags, areas)
