# SPDX-License-Identifier: MIT
"""DMA memory of a session: one memfd, one window, one IOVA for all devices [DMA-1, DMA-2, DMA-8, DMA-9].

Nothing here maps the memory: whoever lets a device reach it does (the mapper of ``devices.vfio``, a model's IOMMU).
"""

import fcntl
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from pcisplit import wire
from pcisplit.back.devices.device import IovaRange
from pcisplit.proto.errors import DeviceError
from pcisplit.ring.region import SIZE_SEALS
from pcisplit.wire import Error

IOVA_ALIGN = 2 << 20
IOVA_FIRST = 2 << 20  #: the first MiB is never used; with the alignment that leaves the first 2 MiB out
HUGE_PAGE = 2 << 20

_MFD_HUGE_2MB = 21 << 26  #: MFD_HUGE_2MB of linux/memfd.h
_FREE_HUGE_PAGES = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages")


def round_size(size: int) -> int:
    """`size` in whole pages."""
    return -(-size // wire.PAGE_SIZE) * wire.PAGE_SIZE


def create_memory(size: int) -> tuple[int, bool]:
    """A new memfd of `size` zeroed octets, whole pages, sealed against change of size; True if it has huge pages.

    DeviceError if there is no memory for it.
    """
    if size % HUGE_PAGE == 0 and free_huge_pages() >= size // HUGE_PAGE:
        try:
            return _sealed_memfd(size, os.MFD_HUGETLB | _MFD_HUGE_2MB), True
        except OSError:  # somebody else was faster
            pass
    try:
        return _sealed_memfd(size, 0), False
    except OSError as problem:
        raise DeviceError(Error.OP_FAILED, f"no DMA memory of {size:#x} octets: {problem.strerror}") from problem


def _sealed_memfd(size: int, flags: int) -> int:
    fd = os.memfd_create("pcisplit-dma", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING | flags)
    try:
        os.ftruncate(fd, size)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SIZE_SEALS)
    except OSError:
        os.close(fd)
        raise
    return fd


def free_huge_pages() -> int:
    """2 MiB pages free on this host."""
    try:
        return int(_FREE_HUGE_PAGES.read_text())
    except (OSError, ValueError):
        return 0


def place(
    size: int,
    dma_bits: int,
    ranges: Sequence[Sequence[IovaRange]],
    holes: Iterable[IovaRange] = (),
    after: int = 0,
) -> int:
    """An IOVA for a window of `size` octets: below 2^`dma_bits`, in a range of every device, outside `holes`.

    The lowest from `after` on, where the last session's window ended (exclusive); if there is none, the lowest of all. That
    overlaps the last window only if no place that ends before it, and none after it, is left [DMA-8].

    Raises DeviceError (DMA_UNREACHABLE) with what stood in the way.
    """
    avoid = sorted(holes)
    for start in (max(_aligned(after), IOVA_FIRST), IOVA_FIRST):
        iova = _lowest(size, dma_bits, ranges, avoid, start)
        if iova is not None:
            return iova
    text = f"no place for {size:#x} octets of DMA memory below 2^{dma_bits} inside the IOMMU's ranges"
    raise DeviceError(Error.DMA_UNREACHABLE, f"{text}; ask for less, or for a driver with more address bits")


def _lowest(
    size: int, dma_bits: int, ranges: Sequence[Sequence[IovaRange]], avoid: Sequence[IovaRange], at: int
) -> int | None:
    """The lowest place from `at` on, or None."""
    limit = 1 << dma_bits
    while at + size <= limit:
        last = at + size - 1
        hole = next((hole for hole in avoid if hole.first <= last and at <= hole.last), None)
        if hole:
            at = _aligned(hole.last + 1)
        elif all(any(r.first <= at and last <= r.last for r in own) for own in ranges):
            return at
        else:
            at = _next_start(at, ranges)
    return None


def _aligned(at: int) -> int:
    return -(-at // IOVA_ALIGN) * IOVA_ALIGN


def _next_start(at: int, ranges: Sequence[Sequence[IovaRange]]) -> int:
    """The next aligned address at which some range begins, or one that is beyond every limit."""
    starts = [_aligned(r.first) for own in ranges for r in own]
    return min((start for start in starts if start > at), default=1 << 64)
