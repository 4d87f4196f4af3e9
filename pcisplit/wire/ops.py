# SPDX-License-Identifier: MIT
"""One row per operation: what it uses, needs and answers, and where it runs. Everything that knows an operation is made of it:
the C tables and dispatch, the checks of both languages, feature gates, the tables of the specification, the golden vectors.

How to add one: docs/adding-an-operation.md.
"""

import dataclasses
import enum
from typing import NamedTuple

from pcisplit.wire import records
from pcisplit.wire.numbers import Error, Feature, Op
from pcisplit.wire.record import Record


class Uses(enum.IntFlag):
    """Fields of a request that an operation uses; the others are zero [REG-4]."""

    ID = 1 << 0  #: not of a pack of writes, which nobody answers
    REGION = 1 << 1
    WIDTH = 1 << 2  #: 1, 2 or 4
    WIDTH8 = 1 << 3  #: 8 too
    OFFSET = 1 << 4
    VALUE = 1 << 5
    BLOCK = 1 << 6  #: length and bulk
    PACK = 1 << 7  #: elements and their count
    VECTORS = 1 << 8  #: first and count
    TYPE = 1 << 9  #: of the vectors
    DMA = 1 << 10  #: iova, offset and size
    GRANT = 1 << 11
    POWER = 1 << 12
    ANSWER = 1 << 13  #: event and result
    POSTED = 1 << 14  #: may have the posted flag
    MUST_POST = 1 << 15  #: must have it


#: Which use lets a field of a request be other than zero; fields that are not here are free. (`offset` of a DMA request is
#: not that of an access.)
USED_BY = {
    "id": Uses.ID,
    "region": Uses.REGION,
    "width": Uses.WIDTH,
    "offset": Uses.OFFSET | Uses.DMA,
    "value": Uses.VALUE,
    "length": Uses.BLOCK,
    "bulk": Uses.BLOCK,
    "element": Uses.PACK,
    "type": Uses.TYPE,
    "irq_flags": Uses(0),
    "first": Uses.VECTORS,
    "count": Uses.VECTORS | Uses.PACK,
    "iova": Uses.DMA,
    "size": Uses.DMA,
    "dma_flags": Uses(0),
    "grant": Uses.GRANT,
    "power": Uses.POWER,
    "event": Uses.ANSWER,
    "result": Uses.ANSWER,
}


class Quota(NamedTuple):
    """At most `most` of an operation in any `seconds`, per device; none of it: no limit."""

    most: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        if not self.most:
            return ""
        return f"{self.most} a second" if self.seconds == 1 else f"{self.most} in {self.seconds:g} seconds"


_NONE, _FREE = Feature(0), Quota()


@dataclasses.dataclass(frozen=True, slots=True)
class Operation:
    """One row. `request` and `response` are its records, `feature` the bits of which one must be in force (0: none).

    `loop` names the C function of the serve loop that executes it or finds that it can sleep; ``owner`` gives it to the
    device's owner at once. `barrier`: earlier requests of the device have finished before it, later ones wait [ORD-9].
    `quota` is how many are served in which time, per device. `says`: what `value` of its response is.
    """

    op: Op
    chapter: str
    uses: Uses
    request: Record = records.REQUEST
    response: Record = records.RESPONSE
    feature: Feature = _NONE
    loop: str = "owner"
    barrier: bool = False
    quota: Quota = _FREE
    says: str = ""
    built: bool = True

    @property
    def name(self) -> str:
        return self.op.name.lower()


_U = Uses
_BAR = _U.ID | _U.REGION | _U.WIDTH | _U.WIDTH8 | _U.OFFSET
_PACK = _U.REGION | _U.WIDTH | _U.PACK
_MSI = Feature.MSI_RELAYED | Feature.MSI_DIRECT
_MASK = _MSI | Feature.MSIX | Feature.INTX
IRQ_QUOTA = Quota(100, 1.0)


def _irq(op: Op, feature: Feature, *, built: bool, type: bool = False) -> Operation:
    uses = _U.ID | _U.VECTORS | (_U.TYPE if type else _U(0))
    quota = _FREE if type else IRQ_QUOTA
    return Operation(
        op, "interrupts", uses, records.REQUEST_IRQ, feature=feature, barrier=True, quota=quota, built=built
    )


def _answer(op: Op, chapter: str, feature: Feature) -> Operation:
    return Operation(op, chapter, _U.ID | _U.ANSWER, records.REQUEST_ANSWER, feature=feature, built=False)


OPERATIONS = {
    row.op: row
    for row in (
        Operation(Op.CONF_READ, "config", _U.ID | _U.WIDTH | _U.OFFSET, loop="config", says="what was read"),
        Operation(Op.CONF_WRITE, "config", _U.ID | _U.WIDTH | _U.OFFSET | _U.VALUE, loop="config"),
        _irq(Op.ENABLE_MSI, _MSI, built=True),
        _irq(Op.DISABLE_MSI, _MSI, built=True),
        _irq(Op.ENABLE_MSIX, Feature.MSIX, built=False),
        _irq(Op.DISABLE_MSIX, Feature.MSIX, built=False),
        _answer(Op.AER_DETECTED, "lifecycle", Feature.AER),
        _answer(Op.AER_RESUME, "lifecycle", Feature.AER),
        _answer(Op.AER_MMIO, "lifecycle", Feature.AER),
        _answer(Op.AER_SLOTRESET, "lifecycle", Feature.AER),
        _irq(Op.ENABLE_MULTI_MSI, _MSI, built=False),
        Operation(Op.NOP, "region", _U.ID, loop="nop"),
        Operation(Op.BAR_READ, "bar", _BAR, loop="bar", says="what was read"),
        Operation(Op.BAR_WRITE, "bar", _BAR | _U.VALUE | _U.POSTED, loop="bar"),
        Operation(Op.BAR_READ_BLOCK, "bar", _BAR | _U.BLOCK, feature=Feature.BLOCK, loop="bar"),
        Operation(Op.BAR_WRITE_BLOCK, "bar", _BAR | _U.BLOCK, feature=Feature.BLOCK, loop="bar"),
        Operation(
            Op.BAR_WRITES,
            "bar",
            _PACK | _U.POSTED | _U.MUST_POST,
            records.REQUEST_WRITES,
            feature=Feature.PACKED,
            loop="pack",
        ),
        Operation(
            Op.BAR_READS,
            "bar",
            _PACK | _U.ID,
            records.REQUEST_READS,
            records.RESPONSE_VALUES,
            feature=Feature.PACKED,
            loop="pack",
        ),
        _irq(Op.ENABLE_INTX, Feature.INTX, built=False),
        _irq(Op.DISABLE_INTX, Feature.INTX, built=False),
        _irq(Op.MASK_VECTOR, _MASK, built=False, type=True),
        _irq(Op.UNMASK_VECTOR, _MASK, built=False, type=True),
        Operation(
            Op.DMA_MAP,
            "dma",
            _U.ID | _U.REGION | _U.DMA,
            records.REQUEST_DMA,
            feature=Feature.DMA_WINDOWS | Feature.FRONT_MEMORY,
            barrier=True,
            says="address for the devices",
            built=False,
        ),
        Operation(
            Op.DMA_UNMAP,
            "dma",
            _U.ID | _U.REGION | _U.DMA,
            records.REQUEST_DMA,
            feature=Feature.DMA_WINDOWS | Feature.FRONT_MEMORY,
            barrier=True,
            built=False,
        ),
        Operation(Op.GRANT_MAP, "bar", _U.ID | _U.GRANT, records.REQUEST_GRANT, feature=Feature.GRANTS, built=False),
        Operation(
            Op.GRANT_RELEASE, "bar", _U.ID | _U.GRANT, records.REQUEST_GRANT, feature=Feature.GRANTS, built=False
        ),
        Operation(
            Op.RESET,
            "lifecycle",
            _U.ID,
            feature=Feature.RESET,
            barrier=True,
            quota=Quota(1, 5.0),
            says="method of the reset",
        ),
        Operation(
            Op.SET_POWER,
            "lifecycle",
            _U.ID | _U.POWER,
            records.REQUEST_POWER,
            feature=Feature.POWER,
            barrier=True,
            quota=Quota(10, 1.0),
            says="power state it is in",
            built=False,
        ),
        _answer(Op.EJECT_ACK, "lifecycle", Feature.HOTPLUG),
        _answer(Op.LATE_ACK, "meeting", Feature.LATE),
    )
}
assert OPERATIONS.keys() == set(Op)

#: The operations that are built; every other is answered `not_implemented` [VER-5].
BUILT_OPERATIONS = {op: row for op, row in OPERATIONS.items() if row.built}


def gate(op: int, features: Feature) -> Error:
    """Whether an operation is built and belongs to a feature in force [VER-5]."""
    row = BUILT_OPERATIONS.get(op)  # type: ignore[call-overload]
    if row is None or (row.feature and not row.feature & features):
        return Error.NOT_IMPLEMENTED
    return Error.SUCCESS
