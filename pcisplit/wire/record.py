# SPDX-License-Identifier: MIT
"""How a record is described: fields of fixed size, one after the other, little-endian; and octets from and to it."""

import struct
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

__all__ = ["Field", "ParseError", "Record", "octets", "pad", "s16", "s32", "u8", "u16", "u32", "u64", "zeros"]

_SIZES = {"B": 1, "H": 2, "h": 2, "I": 4, "i": 4, "Q": 8}


class ParseError(ValueError):
    """Octets that are no such record."""


class Field(NamedTuple):
    """`code` is that of ``struct``; `count` elements, 0 for a plain number. `role`: what else is known of it."""

    name: str
    code: str
    count: int  # type: ignore[assignment]  # as the records have it; nobody counts in a field
    text: str
    role: str = ""  #: ``zero``: must be zero; ``pad``: nobody looks at it; ``octets``: bytes

    @property
    def size(self) -> int:
        return _SIZES[self.code] * (self.count or 1)


def _number(code: str, name: str, text: str, count: int = 0) -> Field:
    return Field(name, code, count, text)


def u8(name: str, text: str, count: int = 0) -> Field:
    return _number("B", name, text, count)


def u16(name: str, text: str, count: int = 0) -> Field:
    return _number("H", name, text, count)


def s16(name: str, text: str) -> Field:
    return _number("h", name, text)


def u32(name: str, text: str, count: int = 0) -> Field:
    return _number("I", name, text, count)


def s32(name: str, text: str) -> Field:
    return _number("i", name, text)


def u64(name: str, text: str, count: int = 0) -> Field:
    return _number("Q", name, text, count)


def octets(name: str, count: int, text: str) -> Field:
    return Field(name, "B", count, text, "octets")


def zeros(count: int, name: str = "reserved") -> Field:
    """Octets that whoever writes the record leaves zero, and that whoever reads it refuses otherwise [REG-4]."""
    return Field(name, "B", count, "zero", "zero")


def pad(count: int, name: str) -> Field:
    """The rest of a cache line, so that each line has one writer."""
    return Field(name, "B", count, "unused, zero", "pad")


class Record:
    """A record by its fields. `name` is that of the C structure, without ``pcisplit_``."""

    def __init__(self, name: str, *fields: Field) -> None:
        self.name, self.fields = name, fields
        self._codec = struct.Struct("<" + "".join(self._code(field) for field in fields))
        self.size = self._codec.size
        assert self.size % 8 == 0, f"{name} is {self.size} octets long"

    @staticmethod
    def _code(field: Field) -> str:
        if field.role:
            return f"{field.count}s"
        return f"{field.count or ''}{field.code}"

    @property
    def places(self) -> Iterator[tuple[Field, int]]:
        """Each field with its offset, octets."""
        at = 0
        for field in self.fields:
            yield field, at
            at += field.size

    def offset(self, name: str) -> int:
        """Where a field is, octets."""
        return next(at for field, at in self.places if field.name == name)

    def field(self, name: str) -> Field:
        return next(field for field in self.fields if field.name == name)

    def parse(self, data: bytes, *, strict: bool = True) -> dict[str, Any]:
        """The fields by name; ParseError if the length is wrong or, `strict`, an octet that must be zero is not."""
        if len(data) != self.size:
            raise ParseError(f"{self.name} is {self.size} octets long, not {len(data)}")
        values: dict[str, Any] = {}
        flat = iter(self._codec.unpack(data))
        for field, at in self.places:
            if field.count and not field.role:
                values[field.name] = tuple(next(flat) for _ in range(field.count))
                continue
            value = next(flat)
            if strict and field.role == "zero" and any(value):
                raise ParseError(
                    f"{self.name}: octets {at} to {at + field.size - 1} must be zero, not {value.hex(' ')}"
                )
            if field.role in ("", "octets"):
                values[field.name] = value
        return values

    def build(self, values: Mapping[str, Any]) -> bytes:
        """Octets of the record; a field that is left out is zero."""
        strange = values.keys() - {field.name for field in self.fields if field.role in ("", "octets")}
        if strange:
            raise KeyError(f"{self.name} has no field {', '.join(sorted(strange))}")
        flat: list[Any] = []
        for field in self.fields:
            value = values.get(field.name)
            if field.role:
                flat.append(value or b"")
            elif field.count:
                given = list(value or ())
                flat += given + [0] * (field.count - len(given))
            else:
                flat.append(value or 0)
        return self._codec.pack(*flat)
