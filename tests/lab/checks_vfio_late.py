# SPDX-License-Identifier: MIT
"""What a device does late, after the session that told it to: it faults, and the next session's memory is untouched."""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import time
from ctypes import sizeof

from pcisplit.back.devices.device import IovaRange
from pcisplit.back.devices.quiet import interrupts_off, master_off
from pcisplit.back.devices.vfio import abi
from pcisplit.back.devices.vfio.acquire import acquire
from pcisplit.back.devices.vfio.function import VfioFunction
from pcisplit.back.devices.vfio.group import Group
from pcisplit.back.host.dma import place
from pcisplit.pci import Bdf

from .check import clause, dmesg_end, iommu_group, wait_until
from .vfio import (
    DMA_TO_MEMORY,
    EDU_BUFFER,
    SECONDS,
    WINDOW,
    Memory,
    bind_all,
    dma_running,
    edus,
    faults,
    master,
    open_files,
    start_dma,
)

DEVICES = ["edu,addr=0x10"]

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
