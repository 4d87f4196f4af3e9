# SPDX-License-Identifier: MIT
"""The device seam: what the backend asks of a device, whatever is behind it.

A `Device` is what serve was given; `acquire` makes a `Function` of it for one session. Implementations: ``vfio`` (the only
code that opens /dev/vfio), ``models.edu``, ``models.ram``, ``models.dump``; tests/device_contract.py runs over all of them.

Methods may sleep; they are called by the device's owner or during acquire and teardown, never from the serve loop. A
method that fails raises DeviceError with the wire code that the front is told; NOT_IMPLEMENTED where nothing is built yet.
"""

import dataclasses
import enum
import mmap
from collections.abc import Mapping, Sequence
from typing import NamedTuple, NoReturn, Protocol

from pcisplit.proto.errors import DeviceError
from pcisplit.wire import BarFlag, Error, ResetMethod, VectorType


class AreaKind(enum.IntEnum):
    """How a part of a BAR is reached. The numbers are those of ``enum pcs_area_kind`` in back/core/serve.h."""

    NONE = 0  #: not there: invalid_offset
    MAPPED = 1  #: mapped memory: one load or store in C, of exactly the asked width
    OWNER = 2  #: by `bar_read` and `bar_write` in the owner: file offset of VFIO, or trapped by a model
    DENIED = 3  #: the MSI-X table and pending bits [BAR-5]


class Area(NamedTuple):
    """Octets `start` to `end` (exclusive) of a BAR. `widths` is the sum of the widths (1, 2, 4, 8) it can be accessed in.

    A MAPPED area has `mapping`, a writable buffer whose octet 0 is at `start`, and an access may cost `read_ns` or
    `write_ns` nanoseconds more than the memory does (models that imitate a slow bus). An OWNER area that is reached by file
    offset has `fd`, and its octet `start` is at `position` of that file; it is trapped by the function's methods if `fd` is
    -1. `grantable`: whole pages that a front may have, if policy lets it.
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
    grantable: bool = False


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


class Interrupts(NamedTuple):
    """Vectors that a function has of each kind; the index of a kind is its VectorType."""

    intx: int = 0
    msi: int = 0
    msix: int = 0


class Function(Protocol):
    """An acquired PCI function: decode on, MASTER off, no interrupts, no DMA memory. For one session, then closed."""

    spec: str  #: as that of its Device
    config_size: int  #: 256 or 4096
    bars: tuple[BarInfo, ...]
    rom: int  #: octets of its expansion ROM, 0 if it has none
    interrupts: Interrupts
    reset_methods: tuple[ResetMethod, ...]  #: in the order they would be tried; empty: it cannot be reset
    dma_bits: int  #: address bits for DMA, as far as the backend knows; 64 if it does not
    iova_ranges: tuple[IovaRange, ...]

    def config_read(self, offset: int, width: int) -> int:
        """`width` octets (1, 2, 4) of configuration space, as the device says."""

    def config_write(self, offset: int, width: int, value: int) -> None:
        """Write to the device's configuration space; the policy has been applied."""

    def bar_read(self, bar: int, offset: int, width: int) -> int:
        """One access to an OWNER area."""

    def bar_write(self, bar: int, offset: int, width: int, value: int) -> None:
        """One access to an OWNER area."""

    def irq_set(self, kind: VectorType, start: int, eventfds: Sequence[int]) -> None:
        """Signal these eventfds, -1 for none, for the vectors from `start` on, from now on.

        Other vectors of the kind that are on stay on; so an eventfd stays open until it is replaced or its kind disabled.
        Without eventfds the whole kind is disabled: no signal comes after this returns; nothing to do when none is on.

        TOO_MANY_VECTORS; BUSY if the other message kind is on; NOT_IMPLEMENTED for INTx, which no kernel is told to enable.
        """

    def irq_mask(self, kind: VectorType, start: int, count: int, masked: bool) -> None:
        """Hold back, or let go on, these vectors. NOT_IMPLEMENTED."""

    def reset(self, method: ResetMethod | None = None) -> ResetMethod:
        """Reset the function into the state of one just acquired; returns the method that did it [LIFE-26].

        Without `method` each of `reset_methods` is tried until one works. NO_RESET if it has none, or not this one.
        """

    def power(self, state: int) -> None:
        """Bring it into power state D`state`. NOT_IMPLEMENTED."""

    def map_dma(self, fd: int, size: int, iova: int) -> None:
        """Let the function's IOMMU context reach `size` octets of memfd `fd`, from its octet 0 on, at `iova`."""

    def unmap_dma(self) -> int:
        """Undo every map_dma of the function's IOMMU context, that of its whole group; returns the octets unmapped."""

    def grant(self, bar: int, offset: int, length: int) -> NoReturn:
        """A descriptor through which a front can map part of a grantable area. NOT_IMPLEMENTED."""

    def events(self) -> Mapping[str, int]:
        """What the function itself may want, by eventfd to watch: ``req`` (let go of it), ``err`` (an error of its bus).

        The eventfds are the function's, and closed with it.
        """

    def close(self) -> None:
        """Close it, interrupts and MASTER off. Idempotent."""


class Device(Protocol):
    """What serve was given; always valid."""

    spec: str  #: as serve was given it: ``0000:03:00.0``, ``model:edu``
    group: str  #: devices of one group go to one session; a name of its own where there are no groups

    def acquire(self) -> Function:
        """Open it. DeviceError (BUSY) while the last Function of it is not closed, (DEVICE_FAILED) with what to do about it."""

    def shutdown(self) -> None:
        """Let go of everything, at the end of serve. Idempotent."""


def not_built(spec: str, what: str) -> DeviceError:
    """The error of a method of the seam that nothing is built for yet."""
    return DeviceError(Error.NOT_IMPLEMENTED, f"{spec}: {what} is not built yet")
