# SPDX-License-Identifier: MIT
"""What a device does late, after the session that told it to: it faults, and the next session's memory is untouched."""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import time
from ctypes import sizeof
from functools import partial

from pcisplit.back.devices.device import IovaRange
from pcisplit.back.devices.quiet import interrupts_off, master_off
from pcisplit.back.devices.vfio import abi
from pcisplit.back.devices.vfio.acquire import acquire
from pcisplit.back.devices.vfio.function import VfioFunction
from pcisplit.back.devices.vfio.group import Group
from pcisplit.back.host.dma import place
from pcisplit.pci import Bdf
from pcisplit.wire import ResetMethod

from .check import clause, dmesg_end, find_device, iommu_group, wait_until
from .vfio import (
    DMA_TO_MEMORY,
    E1000E,
    EDU_BUFFER,
    SECONDS,
    WINDOW,
    Memory,
    bind_all,
    dma_running,
    edus,
    faults,
    load,
    master,
    open_files,
    start_dma,
    store,
)

DEVICES = [
    "edu,addr=0x10",
    "-netdev hubport,id=one,hubid=0 -netdev hubport,id=two,hubid=0",
    "e1000e,netdev=one,addr=0x11",
    "e1000e,netdev=two,addr=0x12",
]

# Registers of e1000e, from the 82574 datasheet: status; receiving; sending.
STATUS, STATUS_LINK_UP = 0x8, 1 << 1
RX_CONTROL, RX_ENABLE, RX_ALL = 0x100, 1 << 1, 1 << 3 | 1 << 4 | 1 << 15
RX_RING, RX_RING_HIGH, RX_LENGTH, RX_HEAD, RX_TAIL = 0x2800, 0x2804, 0x2808, 0x2810, 0x2818
TX_CONTROL, TX_ENABLE = 0x400, 1 << 1 | 1 << 3
TX_RING, TX_RING_HIGH, TX_LENGTH, TX_HEAD, TX_TAIL = 0x3800, 0x3804, 0x3808, 0x3810, 0x3818
TX_END, TX_REPORT, DONE = 1 << 0 | 1 << 1, 1 << 3, 1 << 0

ATTEMPTS = 40
RANGES = [[IovaRange(0, (1 << 39) - 1)]]


def setup() -> None:
    """Gives all devices to vfio-pci for all checks."""
    bind_all()


@clause("DMA-8")
def check_a_late_dma_at_the_window_of_the_last_session() -> None:
    """What the next check is for: at the same IOVA, the device does to this session what the last one wanted."""
    first = place(WINDOW, 28, RANGES)
    memory, _ = late_dma(first, first)
    assert memory.octets[:4] == b"mine"


@clause("DMA-8")
def check_a_late_dma_at_a_window_of_its_own() -> None:
    """The next session's window is elsewhere: the transfer faults, its memory stays untouched."""
    first = place(WINDOW, 28, RANGES)
    second = place(WINDOW, 28, RANGES, (), first + WINDOW)
    memory, since = late_dma(first, second)
    print(wait_until(lambda: faults(since), SECONDS, "a DMAR fault"))
    assert f"addr {first:#x}" in faults(since)[0]
    assert not any(memory.octets[:]), "the transfer of the last session reached the memory of this one"


def late_dma(first: int, second: int) -> tuple[Memory, int]:
    """A session at IOVA `second`, in which edu, which has no reset here, does what the last one, at `first`, told it to.

    The new session's memory, and where dmesg was before. edu takes 100 ms, too few for a slow machine to change sessions in:
    it is tried again, and what takes time is done before. AssertionError if it never was in time.
    """
    (bdf,) = edus()
    group = Group(iommu_group(str(bdf)))
    for _ in range(ATTEMPTS):
        memory, since = Memory(), dmesg_end()
        if _in_time(group, bdf, memory, first, second):
            return memory, since
    raise AssertionError("this machine is too slow: every transfer was done before the next session began")


def _in_time(group: Group, bdf: Bdf, memory: Memory, first: int, second: int) -> bool:
    group.begin()
    function, old = acquire(group, bdf), Memory()
    function.map_bars()
    group.map(old.fd, WINDOW, first)
    master(function)
    assert old.round_trip(function, b"mine", first) == b"mine"  # and so it is in edu's buffer
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory.octets))
    request = abi.Type1DmaMap(sizeof(abi.Type1DmaMap), 3, address, second, WINDOW)  # a mapper of its own takes too long
    old.octets[:] = bytes(WINDOW)
    start_dma(function, EDU_BUFFER, first, 4, DMA_TO_MEMORY)
    begun = time.monotonic()
    master_off(function)
    interrupts_off(function)
    assert group.unmap() == WINDOW
    function.close()
    group.end()

    group.begin()
    again = VfioFunction(group.device_fd(bdf), function.description, function.host)  # the same, so nobody need ask
    again.settle()
    fcntl.ioctl(group._container, abi.VFIO_IOMMU_MAP_DMA, request)
    again.map_bars()
    master(again)
    late = dma_running(again)
    print(f"next session after {time.monotonic() - begun:.3f} s, {'in' if late else 'not in'} time")
    wait_until(lambda: not dma_running(again), SECONDS, "the end of the last session's DMA")
    assert not any(old.octets[: mmap.PAGESIZE]), "it reached memory that was unmapped"
    assert group.unmap() == WINDOW
    again.close()
    group.end()
    assert len(open_files()) == 1
    return late


class Nic:
    """An e1000e in a session of its group: a ring of 16 descriptors at the start of a window, buffers of 2 KiB behind it."""

    def __init__(self, name: str) -> None:
        self.bdf = Bdf.parse(name)
        self.group = Group(iommu_group(name))
        self.sent = 0

    def begin(self, iova: int) -> Memory:
        """A session with MASTER on, at `iova`; nothing else is told to the device."""
        self.group.begin()
        self.function, self.iova = acquire(self.group, self.bdf, reset="pm"), iova
        self.function.map_bars()
        memory = Memory()
        self.group.map(memory.fd, WINDOW, iova)
        master(self.function)
        return memory

    def receive(self, memory: Memory) -> None:
        """Let all that comes be written to the memory."""
        for at in range(16):
            memory.octets[16 * at : 16 * at + 16] = (self.iova + 4096 + 2048 * at).to_bytes(16, "little")
        for where, value in (
            (RX_RING, self.iova),
            (RX_RING_HIGH, 0),
            (RX_LENGTH, 256),
            (RX_HEAD, 0),
            (RX_TAIL, 15),
            (RX_CONTROL, RX_ENABLE | RX_ALL),
        ):
            store(self.function, where, value)
        wait_until(lambda: load(self.function, STATUS) & STATUS_LINK_UP, SECONDS, "the link")

    def send(self, memory: Memory, data: bytes) -> None:
        """Send a packet, to its end."""
        if not self.sent:
            for where, value in (
                (TX_RING, self.iova),
                (TX_RING_HIGH, 0),
                (TX_LENGTH, 256),
                (TX_HEAD, 0),
                (TX_TAIL, 0),
                (TX_CONTROL, TX_ENABLE),
            ):
                store(self.function, where, value)
        at = self.sent % 16
        self.sent += 1
        memory.octets[4096 : 4096 + len(data)] = data
        command = (self.iova + 4096) | len(data) << 64 | (TX_END | TX_REPORT) << 88
        memory.octets[16 * at : 16 * at + 16] = command.to_bytes(16, "little")
        store(self.function, TX_TAIL, self.sent % 16)
        wait_until(lambda: memory.octets[16 * at + 12] & DONE, SECONDS, "the end of a packet's sending")

    def safe_order(self) -> None:
        master_off(self.function)
        interrupts_off(self.function)
        assert self.function.reset() is ResetMethod.PM
        assert load(self.function, RX_CONTROL) & RX_ENABLE, "this reset clears something: use another for this check"
        assert self.group.unmap() == WINDOW
        self.function.close()
        self.group.end()


def _written(memory: Memory, start: int, end: int) -> bool:
    return any(memory.octets[start:end])


@clause("DMA-8")
def check_a_ring_that_no_reset_cleared() -> None:
    """e1000e's reset by pm clears nothing: with MASTER on, the next session's NIC goes on with the ring of the last.

    It is told nothing. At the window of the last session a packet changes the memory of this one; at its own it faults.
    """
    one, two = (Nic(name) for name in find_device(*E1000E))
    outbox = two.begin(WINDOW)
    first = place(WINDOW, 64, RANGES)
    for own in (False, True):
        second = place(WINDOW, 64, RANGES, (), first + WINDOW) if own else first
        old = one.begin(first)
        one.receive(old)
        two.send(outbox, b"\xff" * 12 + b"to the first session".ljust(60))
        wait_until(partial(_written, old, 12, 13), SECONDS, "a packet in the ring")
        assert b"to the first session" in old.octets[:8192]
        one.safe_order()
        before, since = old.octets[:], dmesg_end()

        memory = one.begin(second)
        two.send(outbox, b"\xff" * 12 + b"to the next session".ljust(60))
        if own:
            found = wait_until(partial(faults, since), SECONDS, "a DMAR fault")
            print(found)
            assert f"addr {first:#x}" in found[0]
            assert not any(memory.octets[:]), "the ring of the last session reached the memory of this one"
        else:
            wait_until(partial(_written, memory, 0, 256), SECONDS, "what this check is for")
        assert old.octets[:] == before, "it reached memory that was unmapped"
        store(one.function, RX_CONTROL, 0)
        assert one.group.unmap() == WINDOW
        one.function.close()
        one.group.end()
