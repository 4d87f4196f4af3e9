# SPDX-License-Identifier: MIT
"""A driver for QEMU's educational device, written against the public frontend alone.

The device is described in docs/specs/edu.rst of QEMU (https://www.qemu.org/docs/master/specs/edu.html); its sections are
named below. It computes factorials, raises interrupts when told to, and copies between memory and a buffer of its own by
DMA. Nothing here knows where the device is: the same file drives model:edu and the real thing behind VFIO.

    with pcisplit.front.connect(path, devices=["edu0"], dma_bits=edu_driver.DMA_BITS) as session:
        edu = Edu(session, session.acquire("edu0"))
        assert edu.alive(0x12345678)
        print(edu.factorial(10))
"""

import time

from pcisplit import pci
from pcisplit.front import RemoteDevice, Session

VENDOR, DEVICE = 0x1234, 0x11E8  # "PCI specs"

# "MMIO area spec": BAR 0, 1 MiB. Below 0x80 only accesses of 4 octets; those above take 4 or 8.
IDENTITY = 0x00  # read only, 0xRRrr00ED: version RR.rr, and a constant
LIVENESS = 0x04  # reads back as what was written, inverted
FACTORIAL = 0x08  # write n, read n! modulo 2^32
STATUS = 0x20
INTERRUPT_STATUS = 0x24  # read only, the values that raised the interrupt, or-ed
INTERRUPT_RAISE = 0x60  # write only
INTERRUPT_ACKNOWLEDGE = 0x64  # write only, clears these bits of INTERRUPT_STATUS
DMA_SOURCE = 0x80
DMA_DESTINATION = 0x88
DMA_COUNT = 0x90
DMA_COMMAND = 0x98

STATUS_COMPUTING = 0x01  # read only
STATUS_INTERRUPT = 0x80  # raise an interrupt when the factorial is done

# "DMA controller": one transfer at a time, from or to the buffer, with addresses of 28 bits. It takes 100 ms in QEMU.
DMA_RUN = 0x01  # stays on until the transfer is over
DMA_TO_MEMORY = 0x02  # from the buffer to memory; off: from memory to the buffer
DMA_INTERRUPT = 0x04  # raise an interrupt when the transfer is over
DMA_BITS = 28
BUFFER, BUFFER_SIZE = 0x40000, 4095  # of 4096: QEMU 7.2 stops the machine when a transfer touches the last octet

# "IRQ controller": the values that the device itself raises with.
RAISED_BY_FACTORIAL = 0x001
RAISED_BY_DMA = 0x100

# Seconds, for a device that works: a driver never waits for ever.
_FACTORIAL_SECONDS = 1.0
_DMA_SECONDS = 1.0
_INTERRUPT_SECONDS = 1.0


class Edu:
    """One edu device. `patience` multiplies every deadline, for slow machines.

    Methods raise what the frontend raises (AccessError, AccessTimeout, SessionGone), and TimeoutError if the device does
    not finish in time.
    """

    def __init__(self, session: Session, device: RemoteDevice, patience: float = 1.0) -> None:
        if (device.vendor, device.device_id) != (VENDOR, DEVICE):
            raise ValueError(f"{device!r} is not an edu device, which is {VENDOR:04x}:{DEVICE:04x}")
        self.session, self.device, self.patience = session, device, patience
        self.registers = device.bar(0)
        self.irq = device.irq(0)
        self.interrupts = False
        self.interrupts_seen = 0
        command = device.config.read16(pci.COMMAND)
        device.config.write16(pci.COMMAND, command | pci.COMMAND_MEM | pci.COMMAND_MASTER)
        self.acknowledge(self.interrupt_status())  # what another driver may have left behind

    # -- "MMIO area spec" -------------------------------------------------------------------------------------

    def identity(self) -> int:
        return self.registers.read32(IDENTITY)

    def alive(self, value: int = 0x12345678) -> bool:
        """Whether the device inverts `value`, as a live one does."""
        self.registers.write32(LIVENESS, value)
        return self.registers.read32(LIVENESS) == ~value & 0xFFFFFFFF

    def factorial(self, n: int) -> int:
        """n! modulo 2^32; polls the status register."""
        self._wait_while(STATUS, STATUS_COMPUTING, _FACTORIAL_SECONDS, "a factorial")
        self.registers.write32(STATUS, 0)
        self.registers.write32(FACTORIAL, n)
        self._wait_while(STATUS, STATUS_COMPUTING, _FACTORIAL_SECONDS, f"{n}!")
        return self.registers.read32(FACTORIAL)

    def factorial_by_interrupt(self, n: int) -> int:
        """n! modulo 2^32; sleeps until the device interrupts. Interrupts are enabled."""
        self._wait_while(STATUS, STATUS_COMPUTING, _FACTORIAL_SECONDS, "a factorial")
        self.registers.write32(STATUS, STATUS_INTERRUPT)
        self.registers.write32(FACTORIAL, n)
        self.wait_interrupt(RAISED_BY_FACTORIAL)
        self.registers.write32(STATUS, 0)
        return self.registers.read32(FACTORIAL)

    # -- "IRQ controller" -------------------------------------------------------------------------------------

    def enable_interrupts(self) -> None:
        self.irq.enable()
        self.interrupts = True

    def disable_interrupts(self) -> None:
        self.irq.disable()
        self.interrupts = False

    def raise_interrupt(self, value: int) -> None:
        """Have the device interrupt, with `value` or-ed into its interrupt status."""
        self.registers.write32(INTERRUPT_RAISE, value)

    def interrupt_status(self) -> int:
        return self.registers.read32(INTERRUPT_STATUS)

    def acknowledge(self, value: int) -> None:
        self.registers.write32(INTERRUPT_ACKNOWLEDGE, value)

    def wait_interrupt(self, bits: int) -> int:
        """Sleep until an interrupt has come and all of `bits` are in its status. Acknowledges them; returns the status."""
        deadline = time.monotonic() + _INTERRUPT_SECONDS * self.patience
        while True:
            self.interrupts_seen += self.irq.wait(timeout=max(0.0, deadline - time.monotonic()))
            status = self.interrupt_status()
            if status & bits == bits:
                self.acknowledge(bits)
                return status

    # -- "DMA controller" -------------------------------------------------------------------------------------

    def dma_to_device(self, iova: int, count: int, offset: int = 0) -> None:
        """Copy `count` octets at `iova` (DmaBuffer.iova) to `offset` in the device's buffer, and wait for the end."""
        self.start_dma(iova, BUFFER + offset, count, 0)
        self._finish_dma()

    def dma_from_device(self, iova: int, count: int, offset: int = 0) -> None:
        """Copy `count` octets at `offset` in the device's buffer to `iova`, and wait for the end."""
        self.start_dma(BUFFER + offset, iova, count, DMA_TO_MEMORY)
        self._finish_dma()

    def start_dma(self, source: int, destination: int, count: int, direction: int) -> None:
        """Start a transfer, after the one before it. What does not fit into the buffer is refused here: QEMU would stop."""
        local = (source if direction & DMA_TO_MEMORY else destination) - BUFFER
        if not 0 <= local <= local + count <= BUFFER_SIZE:
            raise ValueError(f"{count} octets at {local:#x} are not within the device's buffer of {BUFFER_SIZE} octets")
        self._wait_while(DMA_COMMAND, DMA_RUN, _DMA_SECONDS, "the DMA transfer before this one")
        for register, value in ((DMA_SOURCE, source), (DMA_DESTINATION, destination), (DMA_COUNT, count)):
            self.registers.post32(register, value)
        self.registers.write32(DMA_COMMAND, DMA_RUN | direction | (DMA_INTERRUPT if self.interrupts else 0))

    def dma_running(self) -> bool:
        return bool(self.registers.read32(DMA_COMMAND) & DMA_RUN)

    def _finish_dma(self) -> None:
        if self.interrupts:
            self.wait_interrupt(RAISED_BY_DMA)
        self._wait_while(DMA_COMMAND, DMA_RUN, _DMA_SECONDS, "a DMA transfer")

    def _wait_while(self, register: int, bit: int, seconds: float, what: str) -> None:
        deadline = time.monotonic() + seconds * self.patience
        while self.registers.read32(register) & bit:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.device.name} did not finish {what} within {seconds * self.patience:g} s")
