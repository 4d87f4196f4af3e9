# SPDX-License-Identifier: MIT
"""Numbers of the wire in words: what the value of a field means. Sans-IO, and nothing here raises, whatever the number."""

import enum
from collections.abc import Callable

from pcisplit import wire
from pcisplit.proto.errors import ERRORS, error_name
from pcisplit.proto.slots import op_name
from pcisplit.wire import OPERATIONS, Error, Field, Record, RecordKind
from pcisplit.wire.rules import RULES, Rule, rule_name

_MAGICS = {
    wire.HELLO_MAGIC: "a hello",
    wire.REPLY_MAGIC: "a reply",
    wire.BOOT_MAGIC: "a boot-info block",
    wire.LATE_MAGIC: "a late message",
    wire.F2B_MAGIC: "region f2b",
    wire.B2F_MAGIC: "region b2f",
}


def member(kind: type[enum.Enum], value: int) -> str:
    """The name of a number of an enumeration, empty if it has none."""
    found = next((each for each in kind if each.value == value), None)
    return "" if found is None else found.name.lower()


def bits(kind: type[enum.IntFlag], value: int) -> str:
    """The names of the bits that are set; those without a name as one number."""
    names = [(bit.name or "").lower() for bit in kind if value & bit]
    rest = value & ~sum(bit.value for bit in kind)
    return ", ".join([*names, *([f"unknown {rest:#x}"] if rest else [])]) or "none"


def _op(value: int) -> str:
    row = OPERATIONS.get(value)  # type: ignore[call-overload]
    if row is None:
        return "an operation that is not of the table: answered with not_implemented"
    return row.name if row.built else f"{op_name(value)}, planned: answered with not_implemented"


def _error(value: int) -> str:
    if value not in Error.__members__.values():
        return "an error that is not of the table"
    return f"{error_name(value)}: {ERRORS[Error(value)].sentence}"


def _rule(value: int) -> str:
    refuses = f": {RULES[Rule(value)]}" if value in Rule.__members__.values() else ""
    return f"{rule_name(value)}{refuses}" if value else "no rule refused it"


def _magic(value: int) -> str:
    return _MAGICS.get(value, "nothing of this protocol")


def _either(special: int, text: str, other: str) -> Callable[[int], str]:
    return lambda value: text if value == special else other


#: Which numbers a field has its value from: by the name of the field, or ``record.field`` where one record is apart.
NUMBERS: dict[str, type[enum.Enum]] = {
    "op": wire.Op,
    "flags": wire.RequestFlag,
    "error": Error,
    "result": Error,
    "reason": Error,
    "posted_error": Error,
    "rule": Rule,
    "posted_rule": Rule,
    "features": wire.Feature,
    "required": wire.Feature,
    "mode": wire.VectorMode,
    "grant_kind": wire.GrantKind,
    "hello_grant.grant_flags": wire.GrantFlag,
    "bar_flags": wire.BarFlag,
    "device_flags": wire.DeviceFlag,
    "power": wire.PowerState,
    "upcall_kind": wire.UpcallKind,
    "event.kind": wire.EventKind,
    "late.kind": RecordKind,
    "boot_region.index": wire.RegionIndex,
    "boot_ring.index": wire.RingIndex,
    "boot_bulk.index": wire.Direction,
    "boot_doorbell.index": wire.Direction,
    "boot_doorbell.type": wire.DoorbellType,
    "boot_vectors.type": wire.VectorType,
    "request_irq.type": wire.VectorType,
    "front_header.state": wire.State,
    "back_header.state": wire.State,
    "device_state.state": wire.DeviceState,
    **{f"{record.name}.kind": RecordKind for record in wire.BOOT_RECORDS.values()},
    **{f"{record.name}.kind": wire.HelloKind for record in wire.HELLO_RECORDS.values()},
    **{f"boot_{name}.region": wire.RegionIndex for name in ("ring", "bulk", "dma_window", "shadow")},
}


def numbers_of(record: Record, field: Field) -> type[enum.Enum] | None:
    """The enumeration of a field, or None if it has none."""
    return NUMBERS.get(f"{record.name}.{field.name}") or NUMBERS.get(field.name)


_IOVA = _either(wire.DMA_ALL, "the back chooses", "address for the devices")
_MSI = _either(wire.AS_MANY, "as many as the device has", "vectors it needs")
#: Fields of which there is more to say than the name of a number.
_WORDS: dict[str, Callable[[int], str]] = {
    "op": _op,
    "error": _error,
    "result": _error,
    "reason": _error,
    "posted_error": _error,
    "rule": _rule,
    "posted_rule": _rule,
    "magic": _magic,
    "fd": _either(wire.NO_FD, "no descriptor", "place among the descriptors, from 0"),
    "msi": _MSI,
    "msix": _MSI,
    "dma_bytes": _either(wire.DMA_ALL, "as much as the back gives", "DMA memory it needs, octets"),
    "request_dma.iova": _IOVA,
    "hello_memory.iova": _IOVA,
}


def meaning(record: Record, field: Field, value: object) -> str:
    """What a field says with this value; where there is nothing to say of the value, what the field is."""
    if not isinstance(value, int):
        return field.text
    words = _WORDS.get(f"{record.name}.{field.name}") or _WORDS.get(field.name)
    if words:
        return words(value)
    numbers = numbers_of(record, field)
    if numbers is None:
        return field.text
    if issubclass(numbers, enum.IntFlag):
        return bits(numbers, value)
    return member(numbers, value) or f"no {numbers.__name__} of the table"


def shown(field: Field, value: object) -> str:
    """A value as a person reads it: small numbers in decimal, others in hexadecimal too, names as text, escaped."""
    if isinstance(value, tuple):
        return " ".join(f"{each:#x}" for each in value)
    if isinstance(value, bytes):
        if field.role == "octets":
            return ascii(value.rstrip(b"\0").decode("latin-1"))
        return value.hex(" ") if any(value) else "0"
    if isinstance(value, int):
        return str(value) if value < 10 else f"{value} ({value:#x})" if value < 1 << 32 else f"{value:#x}"
    return ""
