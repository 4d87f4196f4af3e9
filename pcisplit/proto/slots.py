# SPDX-License-Identifier: MIT
"""What travels in the rings, as frozen dataclasses to and from 64 octets: requests, responses, events (spec/region.md).

Sans-IO. A function whose name ends in ``_untrusted`` takes octets of the peer; it raises RemoteProtocolError and
nothing else. C moves slots in production; this is for traces, tests and tools.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import ClassVar, Self

from pcisplit import wire
from pcisplit.proto.errors import error_name
from pcisplit.proto.octets import number, parse_untrusted
from pcisplit.wire import BUILT_OPERATIONS, OPERATIONS, USED_BY, Error, EventKind, Op, Record, RequestFlag, Uses

_SEQUENCE = wire.SLOT_SIZE - 4


def request_record(op: int) -> Record:
    """The record of a request by its operation; of one that nobody knows: the plain one."""
    row = OPERATIONS.get(op)  # type: ignore[call-overload]
    return row.request if row else wire.REQUEST


def response_record(op: int) -> Record:
    row = OPERATIONS.get(op)  # type: ignore[call-overload]
    return row.response if row else wire.RESPONSE


class _Slot:
    """What the three kinds of slot share: 64 octets, described by a record, and a sequence."""

    WHAT: ClassVar[str]
    RECORD: ClassVar[Callable[[int], Record]]  #: by the first two octets

    def to_bytes(self) -> bytes:
        """The octets; fields that the record does not have are left out, and must be zero."""
        names = [field.name for field in dataclasses.fields(self)]  # type: ignore[arg-type]
        record = type(self).RECORD(getattr(self, names[0]))
        known = {field.name for field in record.fields}
        for name in names:
            value = getattr(self, name)
            if name not in known and (any(value) if isinstance(value, tuple) else value):
                raise ValueError(f"{record.name} has no field {name}")
        return record.build({name: getattr(self, name) for name in names if name in known})

    @classmethod
    def from_bytes_untrusted(cls, data: bytes) -> Self:
        record = cls.RECORD(number(data, 0, 2))
        fields = parse_untrusted(record, data, cls.WHAT, Error.BAD_REQUEST)
        return cls(**fields)


@dataclasses.dataclass(frozen=True, slots=True)
class Request(_Slot):
    """One request slot. Units: offset, width, length, bulk, size in octets. `element`: a pack's numbers."""

    WHAT: ClassVar[str] = "request"
    RECORD: ClassVar[Callable[[int], Record]] = request_record

    op: int
    id: int = 0
    device: int = 0
    generation: int = 0
    flags: int = 0
    region: int = 0
    width: int = 0
    offset: int = 0
    value: int = 0
    length: int = 0
    bulk: int = 0
    element: tuple[int, ...] = ()
    count: int = 0
    first: int = 0
    type: int = 0
    irq_flags: int = 0
    iova: int = 0
    size: int = 0
    dma_flags: int = 0
    grant: int = 0
    power: int = 0
    event: int = 0
    result: int = 0
    sequence: int = 0

    def __str__(self) -> str:
        return f"{op_name(self.op)} #{self.id} dev{self.device}{self._arguments()}"

    def _arguments(self) -> str:
        row = OPERATIONS.get(self.op)  # type: ignore[call-overload]
        uses = row.uses if row else Uses(0)
        words = [""]
        if uses & Uses.OFFSET:
            space = f"bar{self.region}" if uses & Uses.REGION else "config"
            words.append(f"{space}+{self.offset:#x}/{self.width}")
        if uses & Uses.VALUE:
            words.append(f"= {self.value:#x}")
        if uses & Uses.BLOCK:
            words.append(f"x {self.length} octets at bulk+{self.bulk:#x}")
        if uses & Uses.PACK:
            words.append(f"bar{self.region}/{self.width} {self._pack()}")
        if uses & Uses.VECTORS:
            words.append(f"vectors {self.first} to {self.first + self.count - 1}" if self.count else "no vector")
        if uses & Uses.DMA:
            words.append(f"{self.size:#x} octets of memory {self.region} at {self.offset:#x}, iova {self.iova:#x}")
        if uses & Uses.GRANT:
            words.append(f"grant {self.grant}")
        if uses & Uses.POWER:
            words.append(f"to D{self.power}")
        if uses & Uses.ANSWER:
            words.append(f"answers {self.event}: {error_name(self.result)}")
        if self.flags & RequestFlag.POSTED:
            words.append("posted")
        return " ".join(words)

    def _pack(self) -> str:
        if self.op == Op.BAR_READS:
            return ", ".join(f"+{offset:#x}" for offset in self.element[: self.count])
        pairs = zip(self.element[::2], self.element[1::2], strict=False)
        return ", ".join(f"+{offset:#x} = {value:#x}" for offset, value in list(pairs)[: self.count])


@dataclasses.dataclass(frozen=True, slots=True)
class Response(_Slot):
    """One response slot; `value` is what was read, `detail` the further number of an error; `values` a pack's."""

    WHAT: ClassVar[str] = "response"
    RECORD: ClassVar[Callable[[int], Record]] = response_record

    op: int
    id: int = 0
    device: int = 0
    generation: int = 0
    error: int = 0
    rule: int = 0
    value: int = 0
    detail: int = 0
    length: int = 0
    values: tuple[int, ...] = ()
    done: int = 0
    sequence: int = 0

    def __str__(self) -> str:
        if self.error:
            rule = f" by rule {self.rule} at {self.detail:#x}" if self.rule else ""
            done = f" after {self.done}" if self.op == Op.BAR_READS else ""
            return f"{op_name(self.op)} #{self.id} {error_name(self.error)}{rule}{done}"
        value = f" {self.value:#x}" if self.op in (Op.CONF_READ, Op.BAR_READ) else ""
        values = "".join(f" {value:#x}" for value in self.values[: self.done])
        moved = f" {self.length} octets" if self.length else ""
        return f"{op_name(self.op)} #{self.id} ok{value}{values}{moved}"


@dataclasses.dataclass(frozen=True, slots=True)
class Event(_Slot):
    """One event slot: a hint [REG-30]."""

    WHAT: ClassVar[str] = "event"
    RECORD: ClassVar[Callable[[int], Record]] = lambda kind: wire.EVENT

    kind: int
    id: int = 0
    device: int = 0
    generation: int = 0
    event_flags: int = 0
    vector: int = 0
    value: int = 0
    sequence: int = 0

    def __str__(self) -> str:
        if self.kind == EventKind.INTERRUPT:
            return f"interrupt dev{self.device} vector {self.vector}, {self.value} so far"
        kind = EventKind(self.kind).name.lower() if self.kind in EventKind.__members__.values() else f"kind {self.kind}"
        return f"{kind} dev{self.device} {self.value:#x}"


def op_name(op: int) -> str:
    """``bar_read``, or ``op 0x77`` for a number that is not in the table."""
    try:
        return Op(op).name.lower()
    except ValueError:
        return f"op {op:#x}"


def sequence_of(data: bytes) -> int:
    """The sequence of a slot."""
    return number(data, _SEQUENCE, 4)


@functools.cache
def must_be_zero(op: Op) -> int:
    """The bits of a request, as one little-endian number of 64 octets, that an operation does not use [REG-4]."""
    row, octets = OPERATIONS[op], bytearray(wire.SLOT_SIZE)
    for field, at in row.request.places:
        if field.role == "zero" or (field.name in USED_BY and not row.uses & USED_BY[field.name]):
            octets[at : at + field.size] = b"\xff" * field.size
    at = row.request.offset("flags")
    allowed = int(RequestFlag.POSTED) if row.uses & Uses.POSTED else 0  # an int: ~ of an IntFlag forgets unnamed bits
    octets[at : at + 2] = (0xFFFF & ~allowed).to_bytes(2, "little")
    return int.from_bytes(octets, "little")


def check_request_untrusted(data: bytes) -> Error:
    """What a back answers to these 64 octets before it looks at device, range, decode or policy [ERR-2].

    The same checks in the same order as ``pcs_check_request`` in C; a test holds the two together.
    """
    row = BUILT_OPERATIONS.get(number(data, 0, 2))  # type: ignore[call-overload]
    if row is None:
        return Error.NOT_IMPLEMENTED
    if int.from_bytes(data, "little") & must_be_zero(row.op):
        return Error.BAD_REQUEST
    if row.uses & Uses.MUST_POST and not number(data, 2, 2) & RequestFlag.POSTED:
        return Error.BAD_REQUEST
    return Error.SUCCESS
