# SPDX-License-Identifier: MIT
"""Octets built and taken apart by hand, so that a case can break any of them: slots and headers.

What is shared with pcisplit and what is not: numbers (operations, errors, kinds, limits) are those of :mod:`pcisplit.wire`,
because a table of numbers has no layout to get wrong; every layout stands here (and in ``meeting`` and ``boot`` beside it) a
second time, copied from ``spec/tables.gen.md`` by hand. A mistake in pcisplit's own codecs does not hide in the kit that proves
them. What every check needs of an answer is checked here: its reserved octets are zero [REG-4], its error is one of the
table [ERR-1].
"""

import struct
from collections.abc import Iterable
from typing import Any, NamedTuple

from pcisplit import wire
from pcisplit.conformance.case import expect
from pcisplit.proto.errors import error_name
from pcisplit.wire import Error, Op

U32 = 0xFFFFFFFF
U64 = 0xFFFFFFFFFFFFFFFF
SLOT = 64
SEQUENCE = 60  #: where a slot's sequence is, octets

# --- words of the two headers and of a device state: (offset, octets) ------------------------------------------------

FRONT = {
    "magic": (0, 4),
    "state": (4, 4),
    "features": (8, 8),
    "epoch": (16, 4),
    "req_prod": (64, 4),
    "rsp_cons": (128, 4),
    "evt_cons": (132, 4),
    "sleeping": (192, 4),
}
FRONT_SIZE = 256
BACK = {
    "magic": (0, 4),
    "state": (4, 4),
    "reason": (8, 4),
    "devices": (12, 4),
    "session": (16, 8),
    "epoch": (24, 4),
    "req_cons": (64, 4),
    "rsp_prod": (128, 4),
    "evt_prod": (192, 4),
    "sleeping": (256, 4),
    "requests": (320, 8),
    "responses": (328, 8),
    "refused": (336, 8),
    "stale": (344, 8),
    "kicks": (352, 8),
    "empty_kicks": (360, 8),
    "events_dropped": (368, 8),
}
BACK_SIZE = 384
DEVICE = {
    "state": (0, 4),
    "generation": (4, 4),
    "upcall": (8, 4),
    "upcall_kind": (12, 2),
    "upcall_flags": (14, 2),
    "upcall_argument": (16, 4),
    "upcall_deadline": (20, 4),
    "posted_errors": (24, 8),
    "posted_offset": (32, 8),
    "posted_error": (40, 2),
    "posted_rule": (42, 2),
    "posted_region": (44, 1),
    "refused": (48, 8),
}
DEVICE_SIZE = 64
#: Fields that are error codes, and so signed.
SIGNED = {"reason", "posted_error"}


def gaps(words: dict[str, tuple[int, int]], size: int) -> list[tuple[int, int]]:
    """(begin, end) of the octets that no field has."""
    ends = sorted((at, at + octets) for at, octets in words.values())
    edges = [0, *(edge for pair in ends for edge in pair), size]
    return [(begin, end) for begin, end in zip(edges[::2], edges[1::2], strict=True) if begin < end]


# --- requests ------------------------------------------------------------------------------------------------------------


class Body(NamedTuple):
    """Octets 16 to 59 of a request: a format, and the names of what it has; a name may stand for several numbers."""

    codec: struct.Struct
    names: tuple[str, ...]


def _body(code: str, names: str) -> Body:
    codec = struct.Struct("<" + code)
    assert codec.size == SEQUENCE - 16, code
    return Body(codec, tuple(names.split()))


_HEAD = struct.Struct("<HHIHBBI")
_ACCESS = _body("QQII20s", "offset value length bulk reserved")
_PACK = _body("10II", "element count")
_IRQ = _body("HHII32s", "type irq_flags first count reserved")
_DMA = _body("QQQI16s", "iova offset size dma_flags reserved")
_GRANT = _body("I40s", "grant reserved")
_POWER = _body("I40s", "power reserved")
_ANSWER = _body("Ii36s", "event result reserved")

BODIES = {
    **dict.fromkeys((Op.BAR_WRITES, Op.BAR_READS), _PACK),
    **dict.fromkeys((Op.ENABLE_MSI, Op.DISABLE_MSI, Op.ENABLE_MSIX, Op.DISABLE_MSIX, Op.ENABLE_MULTI_MSI), _IRQ),
    **dict.fromkeys((Op.ENABLE_INTX, Op.DISABLE_INTX, Op.MASK_VECTOR, Op.UNMASK_VECTOR), _IRQ),
    **dict.fromkeys((Op.DMA_MAP, Op.DMA_UNMAP), _DMA),
    **dict.fromkeys((Op.GRANT_MAP, Op.GRANT_RELEASE), _GRANT),
    Op.SET_POWER: _POWER,
    **dict.fromkeys((Op.AER_DETECTED, Op.AER_RESUME, Op.AER_MMIO, Op.AER_SLOTRESET), _ANSWER),
    **dict.fromkeys((Op.EJECT_ACK, Op.LATE_ACK), _ANSWER),
}

#: The octets from 10 on that a built operation uses, (begin, end); every other must be zero [REG-4]. As the field table of
#: the specification has them; id, device and generation are every operation's, but the id of a pack of writes.
_REGION, _WIDTH, _OFFSET, _VALUE, _BLOCK, _VECTORS = (10, 11), (11, 12), (16, 24), (24, 32), (32, 40), (20, 28)
USED: dict[int, tuple[tuple[int, int], ...]] = {
    Op.CONF_READ: (_WIDTH, _OFFSET),
    Op.CONF_WRITE: (_WIDTH, _OFFSET, _VALUE),
    Op.ENABLE_MSI: (_VECTORS,),
    Op.DISABLE_MSI: (_VECTORS,),
    Op.NOP: (),
    Op.BAR_READ: (_REGION, _WIDTH, _OFFSET),
    Op.BAR_WRITE: (_REGION, _WIDTH, _OFFSET, _VALUE),
    Op.BAR_READ_BLOCK: (_REGION, _WIDTH, _OFFSET, _BLOCK),
    Op.BAR_WRITE_BLOCK: (_REGION, _WIDTH, _OFFSET, _BLOCK),
    Op.BAR_WRITES: (_REGION, _WIDTH, (16, SEQUENCE)),
    Op.BAR_READS: (_REGION, _WIDTH, (16, SEQUENCE)),
    Op.RESET: (),
}


def request(
    op: int,
    *,
    flags: int = 0,
    id: int = 0,
    device: int = 0,
    region: int = 0,
    width: int = 0,
    generation: int = 0,
    sequence: int = 0,
    **fields: Any,
) -> bytes:
    """The 64 octets of a request slot, legal or not; `fields` are those of the operation's body."""
    body = BODIES.get(op, _ACCESS)  # type: ignore[call-overload]
    if not fields.keys() <= set(body.names):
        raise TypeError(f"a request of op {op:#x} has no field {sorted(fields.keys() - set(body.names))}")
    values: list[Any] = []
    for name in body.names:
        if name == "element":
            values += (list(fields.get(name, ())) + [0] * 10)[:10]
        else:
            values.append(fields.get(name, b"" if name == "reserved" else 0))
    head = _HEAD.pack(op, flags, id, device, region, width, generation)
    return bytes(head + body.codec.pack(*values) + sequence.to_bytes(4, "little"))


def pack(offsets: Iterable[int], count: int | None = None) -> dict[str, Any]:
    """The fields of a pack of reads at `offsets`."""
    element = list(offsets)
    return {"element": element, "count": len(element) if count is None else count}


def pack_writes(pairs: Iterable[tuple[int, int]], count: int | None = None) -> dict[str, Any]:
    """The fields of a pack of writes of (offset, value)."""
    flat = [number for pair in pairs for number in pair]
    return pack(flat, len(flat) // 2 if count is None else count)


def poke(octets: bytes, at: int, value: int | bytes) -> bytes:
    """`octets` with others from `at` on; a number is one octet."""
    new = bytes([value]) if isinstance(value, int) else value
    return octets[:at] + new + octets[at + len(new) :]


class Asked(NamedTuple):
    """A request as a back reads it."""

    op: int
    flags: int
    id: int
    device: int
    region: int
    width: int
    generation: int
    fields: dict[str, Any]
    sequence: int

    @classmethod
    def parse(cls, slot: bytes) -> "Asked":
        head = _HEAD.unpack(slot[:16])
        body = BODIES.get(head[0], _ACCESS)
        values = body.codec.unpack(slot[16:SEQUENCE])
        if body is _PACK:
            values = (values[:10], values[10])
        fields = dict(zip(body.names, values, strict=True))
        return cls._make((*head, fields, int.from_bytes(slot[SEQUENCE:], "little")))

    def __getattr__(self, name: str) -> Any:  # a field of the body
        try:
            return self.fields[name]
        except KeyError:
            raise AttributeError(name) from None


# --- responses and events ----------------------------------------------------------------------------------------------

_ANSWER_HEAD = struct.Struct("<HhIHHI")
_ANSWER_VALUE = struct.Struct("<QQI24sI")
_ANSWER_VALUES = struct.Struct("<10III")
_EVENT = struct.Struct("<HHIHHIQ36sI")


class Answer(NamedTuple):
    """A response slot; `values` and `done` are those of a pack of reads."""

    op: int
    error: int
    id: int
    device: int
    rule: int
    generation: int
    value: int = 0
    detail: int = 0
    length: int = 0
    values: tuple[int, ...] = ()
    done: int = 0
    sequence: int = 0

    @classmethod
    def parse(cls, slot: bytes) -> "Answer":
        """The fields of 64 octets, checked as every response must be."""
        head, tail = _ANSWER_HEAD.unpack(slot[:16]), slot[16:]
        if head[0] == Op.BAR_READS:
            *values, done, sequence = _ANSWER_VALUES.unpack(tail)
            answer = cls(*head)._replace(values=tuple(values[:done]), done=done, sequence=sequence)
            expect(done <= 10, "at most 10 reads done", slot.hex(" "))
            expect(not any(values[done:]), f"zeros behind the {done} values of a pack of reads", slot.hex(" "))
        else:
            value, detail, length, reserved, sequence = _ANSWER_VALUE.unpack(tail)
            answer = cls._make((*head, value, detail, length, (), 0, sequence))
            expect(not any(reserved), "the reserved octets of a response are zero", slot.hex(" "))
        expect(
            answer.error in Error.__members__.values(), "an error of the table", f"{answer.error} in {slot.hex(' ')}"
        )
        return answer

    def build(self) -> bytes:
        """The 64 octets, legal or not."""
        head = _ANSWER_HEAD.pack(*self[:6])
        if self.op == Op.BAR_READS:
            values = (list(self.values) + [0] * 10)[:10]
            return head + _ANSWER_VALUES.pack(*values, self.done, self.sequence)
        return head + _ANSWER_VALUE.pack(self.value, self.detail, self.length, b"", self.sequence)

    def __str__(self) -> str:
        rule = f" by rule {self.rule} at {self.detail:#x}" if self.rule else ""
        came = f", {self.done} values" if self.op == Op.BAR_READS else f", value {self.value:#x}"
        return f"op {self.op:#x} #{self.id}: {error_name(self.error)}{rule}{came}"


class Hint(NamedTuple):
    """An event slot."""

    kind: int
    flags: int
    id: int
    device: int
    vector: int
    generation: int
    value: int
    sequence: int = 0

    @classmethod
    def parse(cls, slot: bytes) -> "Hint":
        """The fields of 64 octets, whose kind is one of the table."""
        *fields, reserved, sequence = _EVENT.unpack(slot)
        hint = cls._make((*fields, sequence))
        expect(not any(reserved) and not hint.flags, "reserved octets and flags of an event are zero", slot.hex(" "))
        expect(hint.kind in wire.EventKind.__members__.values(), "an event kind of the table", str(hint.kind))
        return hint

    def build(self) -> bytes:
        return _EVENT.pack(*self[:7], b"", self.sequence)


# --- checks ----------------------------------------------------------------------------------------------------------------


def expect_error(answer: Answer, *errors: Error, what: str = "the request") -> Answer:
    """`answer` if its error is one of `errors`."""
    names = " or ".join(error_name(error) for error in errors)
    expect(answer.error in errors, f"{what} is answered with {names}", str(answer))
    return answer


def expect_all(answers: Iterable[Answer], error: Error, what: str = "each request") -> None:
    """All of `answers` have this error."""
    for answer in answers:
        expect_error(answer, error, what=what)
