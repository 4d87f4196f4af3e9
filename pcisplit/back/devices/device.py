# SPDX-License-Identifier: MIT
"""The device seam: what the backend asks of a device, whatever is behind it.

Implementations: ``vfio.VfioDevice`` (the only code that opens /dev/vfio), ``models.edu``, ``models.ram``, ``models.dump``.
Methods may sleep; they are called from the device's owner or during acquire and teardown, never from the serve loop. A
method that fails raises DeviceError with the wire code that the front is told.
"""

import dataclasses
import enum
import mmap
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from pcisplit.wire import BarFlag, ResetMethod


class AreaKind(enum.IntEnum):
    """How a part of a BAR is reached. The numbers are those of ``enum pcs_area_kind`` in back/core/serve.h."""

    NONE = 0  #: not there: invalid_offset
    MAPPED = 1  #: mapped memory: one load or store in C, of exactly the asked width
    OWNER = 2  #: by `bar_read` and `bar_write` in the owner: file offset of VFIO, or trapped by a model
    DENIED = 3  #: the MSI-X table and pending bits [BAR-5]


class Area(NamedTuple):
    """Octets `start` to `end` (exclusive) of a BAR. `widths` is the sum of the widths (1, 2, 4, 8) it can be accessed in.

    A MAPPED area has `mapping`, a writable buffer whose octet 0 is at `start`, and an access may cost `read_ns` or
    `write_ns` nanoseconds more than the memory does (models that imitate a slow bus). An OWNER area that is a part of a file
    has its descriptor `fd` and the `position` in it of the octet at `start`: the core accesses it by pread and pwrite of
    exactly the width. With `fd` -1 it is trapped: ``bar_read`` and ``bar_write``.
    """

    start: int
    end: int
    kind: AreaKind
    widths: int = 1 | 2 | 4 | 8
    mapping: mmap.mmap | None = None
    read_ns: int = 0
    write_ns: int = 0
    fd: int = -1
    position: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class BarInfo:
    """One BAR that the device has: `size` in octets, `areas` sorted and without overlap."""

    index: int
    size: int
    flags: BarFlag
    areas: tuple[Area, ...]


class IovaRange(NamedTuple):
    """IOVAs `first` to `last`, both inclusive, that the IOMMU can translate."""

    first: int
    last: int


class Device(Protocol):
    """One PCI function. Attributes are valid from ``acquire`` to ``close``, except those marked *always*."""

    spec: str  #: always: what serve was given: ``0000:03:00.0``, ``model:edu``
    group: str  #: always: devices of one group go to one session; a name of its own where there are no groups
    bars: tuple[BarInfo, ...]
    config_size: int  #: 256 or 4096
    vectors: int  #: MSI vectors that can be enabled (0 or 1)
    resettable: bool
    dma_bits: int  #: address bits for DMA, as far as the backend knows; 64 if it does not
    iova_ranges: tuple[IovaRange, ...]

    def acquire(self) -> None:
        """Open the device with decode on, MASTER off, no interrupts, no DMA mapping."""

    def config_read(self, offset: int, width: int) -> int:
        """`width` octets (1, 2, 4) of configuration space, as the device says."""

    def config_write(self, offset: int, width: int, value: int) -> None:
        """Write to the device's configuration space; the policy has been applied."""

    def bar_read(self, bar: int, offset: int, width: int) -> int:
        """One access to a OWNER area."""

    def bar_write(self, bar: int, offset: int, width: int, value: int) -> None:
        """One access to a OWNER area."""

    def enable_msi(self, eventfds: Sequence[int]) -> None:
        """Signal these eventfds, one per vector, from now on."""

    def disable_msi(self) -> None:
        """Stop all vectors; no signal comes after this returns. Nothing to do when none is enabled."""

    def reset(self) -> ResetMethod:
        """Reset the device; returns the method used. DeviceError(NO_RESET) if it has none."""

    def map_dma(self, address: int, fd: int, size: int, iova: int) -> None:
        """Let the device reach `size` octets at `iova`: the memory at `address` of this process, octet 0 of memfd `fd`."""

    def unmap_dma(self) -> int:
        """Undo every map_dma; returns the octets unmapped for this device's IOMMU context (0 if another did it)."""

    def close(self) -> None:
        """Close the device; what must stay open between sessions (IOMMU group and container) stays. Idempotent."""

    def shutdown(self) -> None:
        """Let go of everything, at the end of serve. Idempotent."""
