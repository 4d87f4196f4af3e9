# SPDX-License-Identifier: MIT
"""A software IOMMU: the only way a model reaches DMA memory [DMA-3, DMA-5, DMA-6].

It reads and writes the memfd with pread and pwrite, never a mapping, and faults as an IOMMU does: the access does not happen,
the fault is recorded, the device goes on.
"""

import os
import threading
from typing import NamedTuple

import structlog

_log = structlog.get_logger("pcisplit.iommu")


class Window(NamedTuple):
    iova: int
    size: int
    fd: int


class Fault(NamedTuple):
    """A DMA access that was not translated. `reason` is ``no window`` or ``bus master off``."""

    iova: int
    length: int
    write: bool
    reason: str


class SoftwareIommu:
    """Translation for one device. Thread-safe: the front's teardown and the model's worker meet here."""

    FAULTS_KEPT = 64

    def __init__(self, name: str) -> None:
        self._name = name
        self._windows: list[Window] = []
        self._lock = threading.Lock()
        self.master = False
        self.faults: list[Fault] = []
        self.fault_count = 0

    def map(self, iova: int, size: int, fd: int) -> None:
        with self._lock:
            self._windows.append(Window(iova, size, fd))

    def unmap_all(self) -> int:
        """No access reaches memory after this returns. Returns the octets unmapped."""
        with self._lock:
            size = sum(window.size for window in self._windows)
            self._windows.clear()
            return size

    def read(self, iova: int, length: int) -> bytes | None:
        """`length` octets from `iova`, or None after a fault."""
        with self._lock:
            window = self._translate(iova, length, write=False)
            return os.pread(window.fd, length, iova - window.iova) if window else None

    def write(self, iova: int, data: bytes) -> bool:
        """Write `data` to `iova`; False after a fault."""
        with self._lock:
            window = self._translate(iova, len(data), write=True)
            return window is not None and os.pwrite(window.fd, data, iova - window.iova) == len(data)

    def _translate(self, iova: int, length: int, write: bool) -> Window | None:
        found = next((w for w in self._windows if w.iova <= iova and iova + length <= w.iova + w.size), None)
        if found and self.master:
            return found
        fault = Fault(iova, length, write, "no window" if self.master else "bus master off")
        self.fault_count += 1
        self.faults = [*self.faults, fault][-self.FAULTS_KEPT :]
        if self.fault_count <= self.FAULTS_KEPT:  # a device that faults for ever does not fill the log
            _log.warning(
                "DMA fault", device=self._name, iova=hex(iova), length=length, write=write, reason=fault.reason
            )
        return None
