# SPDX-License-Identifier: MIT
"""model:ram - plain-memory BARs with a settable access cost, and a few registers, for measurements and tests.

=====  ======  ==============================================================================================
BAR    octets
=====  ======  ==============================================================================================
0      size    memory, mapped: one load or store in C, `read` and `write` nanoseconds slower if asked
2      4096    registers (in the owner): 0 scratch that a reset clears, 4 number of accesses to registers, 8 a write
               raises vector 0; from 0x800 the MSI-X table, from 0xc00 its pending bits, both denied
4      32      I/O space: octets that can be written and read back
=====  ======  ==============================================================================================
"""

import threading
from collections.abc import Mapping

from pcisplit import pci
from pcisplit.back.devices.device import Area, AreaKind, Interrupts
from pcisplit.back.devices.models.base import ModelDevice, bar, take_options, yes_or_no
from pcisplit.wire import BarFlag

R_SCRATCH, R_ACCESSES, R_INTERRUPT = 0x0, 0x4, 0x8
MSIX_TABLE, MSIX_PBA, MSIX_VECTORS = 0x800, 0xC00, 4

_MSI_AT, _MSIX_AT = 0x40, 0x60


class RamModel(ModelDevice):
    """Options: ``size`` of BAR 0 in octets (default 1048576), ``read`` and ``write`` cost in ns, ``reset`` (yes or no),
    ``reset_ms`` (how long a reset takes)."""

    vendor, device_id, class_code = 0x1AF4, 0x10FF, 0x050000
    interrupts = Interrupts(msi=1, msix=MSIX_VECTORS)

    def __init__(self, options: Mapping[str, str]) -> None:
        chosen = take_options(
            options, {"size": str(1 << 20), "read": "0", "write": "0", "reset": "yes", "reset_ms": "0"}
        )
        super().__init__("model:ram", yes_or_no("reset", chosen["reset"]), float(chosen["reset_ms"]) / 1000)
        self._size = int(chosen["size"], 0)
        if self._size < 4096 or self._size & (self._size - 1):
            raise ValueError(f"size={self._size} is not a power of two from 4096 on")
        self._read_ns, self._write_ns = int(chosen["read"]), int(chosen["write"])
        self._lock = threading.Lock()
        self._scratch = self._accesses = 0
        self._ports = bytearray(32)

    def _initial_config(self) -> bytes:
        config = bytearray(super()._initial_config())
        config[pci.STATUS] = pci.STATUS_CAP_LIST
        config[pci.CAP_POINTER] = _MSI_AT
        config[_MSI_AT : _MSI_AT + 4] = bytes([pci.CAP_MSI, _MSIX_AT, 0x80, 0])
        config[_MSIX_AT : _MSIX_AT + 12] = (
            bytes([pci.CAP_MSIX, 0, MSIX_VECTORS - 1, 0])
            + (MSIX_TABLE | 2).to_bytes(4, "little")
            + (MSIX_PBA | 2).to_bytes(4, "little")
        )
        return bytes(config)

    def _power_on(self) -> None:
        table_end = MSIX_TABLE + 16 * MSIX_VECTORS
        self.bars = (
            bar(0, self._size, self._memory_area(self._size, self._read_ns, self._write_ns), flags=BarFlag.MEM64),
            bar(
                2,
                4096,
                Area(0, MSIX_TABLE, AreaKind.OWNER),
                Area(MSIX_TABLE, table_end, AreaKind.DENIED),
                Area(table_end, MSIX_PBA, AreaKind.OWNER),
                Area(MSIX_PBA, MSIX_PBA + 8, AreaKind.DENIED),
                Area(MSIX_PBA + 8, 4096, AreaKind.OWNER),
            ),
            bar(4, 32, Area(0, 32, AreaKind.OWNER, widths=1 | 2 | 4), flags=BarFlag.IO),
        )
        self._reset_registers()
        self._ports[:] = bytes(32)

    def _reset_registers(self) -> None:
        with self._lock:
            self._scratch = self._accesses = 0

    def bar_read(self, bar: int, offset: int, width: int) -> int:
        ones = (1 << (8 * width)) - 1
        with self._lock:
            if bar == 4:
                return int.from_bytes(self._ports[offset : offset + width], "little")
            self._accesses += 1
            return {R_SCRATCH: self._scratch, R_ACCESSES: self._accesses}.get(offset, 0) & ones

    def bar_write(self, bar: int, offset: int, width: int, value: int) -> None:
        with self._lock:
            if bar == 4:
                self._ports[offset : offset + width] = value.to_bytes(width, "little")
                return
            self._accesses += 1
            if offset == R_SCRATCH:
                self._scratch = value
        if offset == R_INTERRUPT:
            self.signal()
