# SPDX-License-Identifier: MIT
"""model:edu - register-compatible with QEMU's educational device (QEMU docs/specs/edu.rst, hw/misc/edu.c).

Identity, liveness, factorial, interrupt raise and acknowledge, DMA through a 28-bit mask. DMA goes through the software
IOMMU and takes `dma_ms` milliseconds, so that a front can die in the middle of it.
"""

import threading
from collections.abc import Mapping

from pcisplit import pci
from pcisplit.back.devices.device import Area, AreaKind, Interrupts
from pcisplit.back.devices.models.base import ModelDevice, bar, take_options, yes_or_no

IDENTITY = 0x010000ED
BAR_SIZE = 0x100000
BUFFER, BUFFER_SIZE = 0x40000, 4096
DMA_BITS = 28

R_IDENTITY, R_LIVENESS, R_FACTORIAL, R_STATUS, R_IRQ_STATUS = 0x00, 0x04, 0x08, 0x20, 0x24
R_IRQ_RAISE, R_IRQ_ACK, R_DMA_SOURCE, R_DMA_DESTINATION, R_DMA_COUNT, R_DMA_COMMAND = 0x60, 0x64, 0x80, 0x88, 0x90, 0x98

STATUS_COMPUTING, STATUS_IRQ = 0x01, 0x80
DMA_RUN, DMA_TO_RAM, DMA_IRQ = 0x1, 0x2, 0x4
IRQ_FACTORIAL, IRQ_DMA = 0x001, 0x100

_DMA_REGISTERS = (R_DMA_SOURCE, R_DMA_DESTINATION, R_DMA_COUNT, R_DMA_COMMAND)
_MSI_AT = 0x40


class EduModel(ModelDevice):
    """Options: ``dma_ms`` (how long a DMA takes, default 1), ``reset`` (yes, or no to imitate edu on a root bus),
    ``reset_ms`` (how long a reset takes, default 0)."""

    vendor, device_id, class_code = 0x1234, 0x11E8, 0x00FF00
    interrupts = Interrupts(intx=1, msi=1)
    dma_bits = DMA_BITS

    def __init__(self, options: Mapping[str, str]) -> None:
        chosen = take_options(options, {"dma_ms": "1", "reset": "yes", "reset_ms": "0"})
        super().__init__("model:edu", yes_or_no("reset", chosen["reset"]), float(chosen["reset_ms"]) / 1000)
        self._dma_seconds = float(chosen["dma_ms"]) / 1000
        self._lock = threading.Lock()
        self._registers: dict[int, int] = {}
        self._buffer = bytearray(BUFFER_SIZE)

    def _initial_config(self) -> bytes:
        config = bytearray(super()._initial_config())
        config[pci.REVISION] = 0x10
        config[pci.STATUS] = pci.STATUS_CAP_LIST
        config[pci.CAP_POINTER] = _MSI_AT
        config[_MSI_AT : _MSI_AT + 4] = bytes([pci.CAP_MSI, 0, 0x80, 0])  # 64-bit addresses, one vector
        config[pci.INTERRUPT_PIN] = 1
        return bytes(config)

    def _power_on(self) -> None:
        self.bars = (bar(0, BAR_SIZE, Area(0, BAR_SIZE, AreaKind.OWNER)),)
        self._reset_registers()

    def _reset_registers(self) -> None:
        with self._lock:
            self._registers = dict.fromkeys((R_LIVENESS, R_FACTORIAL, R_STATUS, R_IRQ_STATUS, *_DMA_REGISTERS), 0)
            self._buffer[:] = bytes(BUFFER_SIZE)

    # -- registers --------------------------------------------------------------------------------------------

    def bar_read(self, bar: int, offset: int, width: int) -> int:
        ones = (1 << (8 * width)) - 1
        if width < 4 or (offset < 0x80 and width != 4):
            return ones  # as QEMU answers accesses that the device does not take
        if offset == R_IDENTITY:
            return IDENTITY
        with self._lock:
            return self._registers.get(offset, ones) & ones

    def bar_write(self, bar: int, offset: int, width: int, value: int) -> None:
        if width < 4 or (offset < 0x80 and width != 4):
            return
        if offset == R_IRQ_RAISE:
            self._raise(value)
            return
        with self._lock:
            registers = self._registers
            if offset == R_LIVENESS:
                registers[R_LIVENESS] = ~value & 0xFFFFFFFF
            elif offset == R_FACTORIAL and not registers[R_STATUS] & STATUS_COMPUTING:
                registers[R_STATUS] |= STATUS_COMPUTING
                self.later(lambda: self._factorial(value))
            elif offset == R_STATUS:
                registers[R_STATUS] = (registers[R_STATUS] & ~STATUS_IRQ) | (value & STATUS_IRQ)
            elif offset == R_IRQ_ACK:
                registers[R_IRQ_STATUS] &= ~value
            elif offset in _DMA_REGISTERS and not registers[R_DMA_COMMAND] & DMA_RUN:
                self._write_dma(offset, value)

    def _write_dma(self, offset: int, value: int) -> None:
        if offset == R_DMA_COMMAND and not value & DMA_RUN:
            return
        self._registers[offset] = value
        if offset == R_DMA_COMMAND:
            self.later(self._dma)

    # -- what takes time --------------------------------------------------------------------------------------

    def _factorial(self, n: int) -> None:
        result = 1
        for factor in range(2, n + 1):
            result = result * factor & 0xFFFFFFFF
            if result == 0 or self.stopping.is_set():
                break  # 34! and up are 0 modulo 2^32: the loop is bounded whatever n is
        with self._lock:
            self._registers[R_FACTORIAL] = result
            self._registers[R_STATUS] &= ~STATUS_COMPUTING
            wants_irq = self._registers[R_STATUS] & STATUS_IRQ
        if wants_irq:
            self._raise(IRQ_FACTORIAL)

    def _dma(self) -> None:
        if self.stopping.wait(self._dma_seconds):
            return  # closed in the middle of it
        with self._lock:
            source, destination, count, command = (self._registers[register] for register in _DMA_REGISTERS)
            self._copy(source, destination, count, command)
            self._registers[R_DMA_COMMAND] = command & ~DMA_RUN
        if command & DMA_IRQ:
            self._raise(IRQ_DMA)

    def _copy(self, source: int, destination: int, count: int, command: int) -> None:
        """The copy itself. A range outside the device's buffer does nothing (QEMU stops the machine there)."""
        mask = (1 << DMA_BITS) - 1
        local = (source if command & DMA_TO_RAM else destination) - BUFFER
        if local < 0 or count > BUFFER_SIZE or local + count > BUFFER_SIZE:
            return
        if command & DMA_TO_RAM:
            self.iommu.write(destination & mask, bytes(self._buffer[local : local + count]))
        else:
            data = self.iommu.read(source & mask, count)
            if data is not None:
                self._buffer[local : local + count] = data

    def _raise(self, bits: int) -> None:
        with self._lock:
            self._registers[R_IRQ_STATUS] |= bits & 0xFFFFFFFF
            pending = self._registers[R_IRQ_STATUS]
        if pending:
            self.signal()
