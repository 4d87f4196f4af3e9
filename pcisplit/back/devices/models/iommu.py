# SPDX-License-Identifier: MIT
"""A software IOMMU: the only way a model reaches DMA memory [DMA-3, DMA-5, DMA-6].

It copies to and from a mapping of its own, under the SIGBUS guard and without the GIL. It never reads or writes the memfd by
a system call: those wait for the inode's lock, which a front holds for as long as it likes by a pwrite from memory whose fault
nobody answers [THR-11]. It faults as an IOMMU does: the access does not happen, the fault is recorded, the device goes on.
"""

import mmap
import threading
from typing import NamedTuple

from pcisplit.back import log
from pcisplit.back.core.native import guarded_read, guarded_write
from pcisplit.proto.errors import DeviceError
from pcisplit.wire import Error


class Window(NamedTuple):
    iova: int
    size: int
    memory: mmap.mmap


class Fault(NamedTuple):
    """A DMA access that did not happen. `reason` is ``no window``, ``bus master off`` or ``memory gone``."""

    iova: int
    length: int
    write: bool
    reason: str


class SoftwareIommu:
    """Translation for one device. Thread-safe: the session's teardown and the model's thread meet here.

    Faults are counted, kept and logged per session: from one ``unmap_all`` to the next.
    """

    FAULTS_KEPT = 64

    def __init__(self, name: str) -> None:
        self._name = name
        self._windows: list[Window] = []
        self._lock = threading.Lock()
        self.master = False
        self.faults: list[Fault] = []
        self.fault_count = 0

    def map(self, iova: int, size: int, fd: int) -> None:
        """Let the device reach `size` octets of memfd `fd`, from its octet 0 on, at `iova`. DeviceError (OP_FAILED)."""
        try:
            memory = mmap.mmap(fd, size)
        except (OSError, ValueError) as problem:
            text = f"{self._name}: no mapping of {size:#x} octets of DMA memory: {problem}"
            raise DeviceError(Error.OP_FAILED, text) from None
        with self._lock:
            if not self._windows:
                self._forget_faults()  # what the device did between two sessions is neither's
            self._windows.append(Window(iova, size, memory))

    def unmap_all(self) -> int:
        """No access reaches memory after this returns. Returns the octets unmapped."""
        with self._lock:
            size = sum(window.size for window in self._windows)
            for window in self._windows:
                window.memory.close()
            self._windows.clear()
            self._forget_faults()
            return size

    def read(self, iova: int, length: int) -> bytes | None:
        """`length` octets from `iova`, or None after a fault."""
        with self._lock:
            window = self._translate(iova, length, write=False)
            if window is None:
                return None
            data = guarded_read(window.memory, iova - window.iova, length)
            if data is None:
                self._record(Fault(iova, length, False, "memory gone"))
            return data

    def write(self, iova: int, data: bytes) -> bool:
        """Write `data` to `iova`; False after a fault."""
        with self._lock:
            window = self._translate(iova, len(data), write=True)
            if window is None:
                return False
            done = guarded_write(window.memory, iova - window.iova, data)
            if not done:
                self._record(Fault(iova, len(data), True, "memory gone"))
            return done

    def _translate(self, iova: int, length: int, write: bool) -> Window | None:
        found = next((w for w in self._windows if w.iova <= iova and iova + length <= w.iova + w.size), None)
        if found and self.master:
            return found
        self._record(Fault(iova, length, write, "no window" if self.master else "bus master off"))
        return None

    def _record(self, fault: Fault) -> None:
        self.fault_count += 1
        self.faults = [*self.faults, fault][-self.FAULTS_KEPT :]
        if self.fault_count <= self.FAULTS_KEPT:  # a device that faults for ever does not fill the log
            fields = fault._asdict() | {"iova": hex(fault.iova)}
            log.line("warning", "DMA fault", device=self._name, **fields)

    def _forget_faults(self) -> None:
        self.faults, self.fault_count = [], 0
