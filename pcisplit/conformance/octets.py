# SPDX-License-Identifier: MIT
"""Octets built and taken apart by hand, so that a case can break any of them.

The layouts are those of ``spec/tables.gen.md``, written down a second time on purpose: a mistake in pcisplit's own
codecs must not hide in the kit that proves them. What every check needs of an answer is checked here: its reserved
octets are zero [REG-4] and its error is one of the table [ERR-1].
"""

import struct
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from pcisplit import wire
from pcisplit.conformance.case import expect
from pcisplit.errors import error_name
from pcisplit.wire import Error, VectorMode

U32 = 0xFFFFFFFF
U64 = 0xFFFFFFFFFFFFFFFF
NAME_FIELD = wire.NAME_MAX + 1

_REQUEST = struct.Struct("<HHIHBBIQQIIII16s")
_RESPONSE = struct.Struct("<HhIHHIQQI28s")
_EVENT = struct.Struct("<HHIHHIQ40s")
_HELLO = struct.Struct("<IHHIHBBQQQ68s20s")
_HELLO_DEVICE = struct.Struct("<68sHH24s")


def request(
    op: int,
    *,
    flags: int = 0,
    id: int = 0,
    device: int = 0,
    region: int = 0,
    width: int = 0,
    generation: int = 0,
    offset: int = 0,
    value: int = 0,
    length: int = 0,
    bulk: int = 0,
    vector: int = 0,
    count: int = 0,
    reserved: bytes = bytes(16),
) -> bytes:
    """The 64 octets of a request slot, legal or not."""
    head = (op, flags, id, device, region, width, generation, offset, value)
    return _REQUEST.pack(*head, length, bulk, vector, count, reserved)


class Answer(NamedTuple):
    """A response slot."""

    op: int
    error: int
    id: int
    device: int
    rule: int
    generation: int
    value: int
    detail: int
    length: int

    @classmethod
    def parse(cls, slot: bytes) -> "Answer":
        """The fields of 64 octets, checked as every response must be."""
        *fields, reserved = _RESPONSE.unpack(slot)
        answer = cls(*fields)
        expect(not any(reserved), "the reserved octets of a response are zero", slot.hex(" "))
        expect(
            answer.error in Error.__members__.values(), "an error of the table", f"{answer.error} in {slot.hex(' ')}"
        )
        return answer

    def __str__(self) -> str:
        rule = f" by rule {self.rule} at {self.detail:#x}" if self.rule else ""
        return f"op {self.op:#x} #{self.id}: {error_name(self.error)}{rule}, value {self.value:#x}"


class Hint(NamedTuple):
    """An event slot."""

    kind: int
    flags: int
    id: int
    device: int
    vector: int
    generation: int
    value: int

    @classmethod
    def parse(cls, slot: bytes) -> "Hint":
        """The fields of 64 octets, whose kind is one of the table."""
        *fields, reserved = _EVENT.unpack(slot)
        hint = cls(*fields)
        expect(not any(reserved) and not hint.flags, "reserved octets and flags of an event are zero", slot.hex(" "))
        expect(hint.kind in wire.EventKind.__members__.values(), "an event kind of the table", str(hint.kind))
        return hint


class Want(NamedTuple):
    """One device record of a hello, legal or not."""

    name: bytes
    vectors: int = 0
    mode: int = VectorMode.RELAYED
    reserved: bytes = bytes(24)


def hello(*wants: Want, **fields: Any) -> bytes:
    """The octets of a hello for `wants`; any field of the record can be given another value."""
    head: dict[str, Any] = {
        "magic": wire.HELLO_MAGIC,
        "major": wire.MAJOR,
        "minor": wire.MINOR,
        "length": _HELLO.size + len(wants) * _HELLO_DEVICE.size,
        "devices": len(wants),
        "dma_bits": 64,
        "zero": 0,
        "features": int(wire.BUILT),
        "required": 0,
        "dma_bytes": 0,
        "driver": b"conformance",
        "reserved": bytes(20),
    }
    if not fields.keys() <= head.keys():
        raise TypeError(f"a hello has no field {sorted(fields.keys() - head.keys())}")
    return _HELLO.pack(*(head | fields).values()) + b"".join(_HELLO_DEVICE.pack(*want) for want in wants)


def offsets(record: Any) -> Mapping[str, tuple[int, int]]:
    """(offset, size) of each field of a wire record, octets."""
    places: dict[str, tuple[int, int]] = {}
    at = 0
    for field in record.subcons:
        places[field.name] = (at, field.sizeof())
        at += field.sizeof()
    return places


def expect_error(answer: Answer, *errors: Error, what: str = "the request") -> Answer:
    """`answer` if its error is one of `errors`."""
    names = " or ".join(error_name(error) for error in errors)
    expect(answer.error in errors, f"{what} is answered with {names}", str(answer))
    return answer


def expect_all(answers: Iterable[Answer], error: Error, what: str = "each request") -> None:
    """All of `answers` have this error."""
    for answer in answers:
        expect_error(answer, error, what=what)
