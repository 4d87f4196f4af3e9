# SPDX-License-Identifier: MIT
"""DMA memory of a session: one memfd, one window, one IOVA for all devices [DMA-1, DMA-2]."""

import fcntl
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from pcisplit import wire
from pcisplit.back.devices.device import IovaRange
from pcisplit.errors import DeviceError
from pcisplit.ring.region import SIZE_SEALS
from pcisplit.wire import Error

IOVA_ALIGN = 2 << 20
IOVA_FIRST = 2 << 20  #: the first MiB is never used; with the alignment that leaves the first 2 MiB out
HUGE_PAGE = 2 << 20

_MFD_HUGE_2MB = 21 << 26  #: MFD_HUGE_2MB of linux/memfd.h


def round_size(size: int) -> int:
    """`size` in whole pages."""
    return -(-size // wire.PAGE_SIZE) * wire.PAGE_SIZE


def place(size: int, dma_bits: int, ranges: Sequence[Sequence[IovaRange]], holes: Iterable[IovaRange] = ()) -> int:
    """The lowest IOVA for a window of `size` octets: below 2^`dma_bits`, in a range of every device, outside `holes`.

    Raises DeviceError (DMA_UNREACHABLE) with what stood in the way.
    """
    avoid = sorted(holes)
    at, limit = IOVA_FIRST, 1 << dma_bits
    while at + size <= limit:
        end = at + size  # the octet at `end` is the gap to whatever comes next: nothing else is mapped in this context
        hole = next((hole for hole in avoid if hole.first < end and at <= hole.last), None)
        fits = all(any(r.first <= at and end - 1 <= r.last for r in own) for own in ranges)
        if hole is None and fits:
            return at
        at = -(-(hole.last + 1) // IOVA_ALIGN) * IOVA_ALIGN if hole else _next_start(at, ranges)
    text = f"no place for {size:#x} octets of DMA memory below 2^{dma_bits} inside the IOMMU's ranges"
    raise DeviceError(Error.DMA_UNREACHABLE, f"{text}; ask for less, or for a driver with more address bits")


def _next_start(at: int, ranges: Sequence[Sequence[IovaRange]]) -> int:
    """The next aligned address at which some range begins, or simply the next aligned one."""
    starts = [-(-r.first // IOVA_ALIGN) * IOVA_ALIGN for own in ranges for r in own]
    return min((start for start in starts if start > at), default=1 << 64)


def host_pci_windows(iomem: Path = Path("/proc/iomem")) -> list[IovaRange]:
    """Host address windows of PCI buses: a DMA to such an address may be routed to a neighbour, not to the IOMMU."""
    row = re.compile(r"^\s*([0-9a-f]+)-([0-9a-f]+) : PCI (Bus|MMCONFIG|ECAM)")
    try:
        found = [match for line in iomem.read_text().splitlines() if (match := row.match(line))]
    except OSError:
        return []
    ranges = [IovaRange(int(match[1], 16), int(match[2], 16)) for match in found]
    return [r for r in ranges if r.last and r.first >= 1 << 20]


def free_huge_pages() -> int:
    """2 MiB pages free on this host."""
    try:
        return int(Path("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages").read_text())
    except (OSError, ValueError):
        return 0


def create_memory(size: int) -> int:
    """A memfd of `size` octets, zeroed, sealed against change of size, in huge pages when there are enough of them."""
    huge = size % HUGE_PAGE == 0 and free_huge_pages() >= size // HUGE_PAGE
    for flags in ([os.MFD_HUGETLB | _MFD_HUGE_2MB] if huge else []) + [0]:
        fd = os.memfd_create("pcisplit-dma", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING | flags)
        try:
            os.ftruncate(fd, size)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SIZE_SEALS)
            return fd
        except OSError as problem:
            os.close(fd)
            why = problem.strerror
    raise DeviceError(Error.OP_FAILED, f"no DMA memory of {size:#x} octets: {why}")
