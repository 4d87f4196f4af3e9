# SPDX-License-Identifier: MIT
"""What is wrong in a slot as far as its octets alone tell: no device, no range, no policy. Sans-IO."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from pcisplit import wire
from pcisplit.wire import OPERATIONS, USED_BY, DeviceState, Error, EventKind, Op, Operation, RequestFlag, Uses


class Problem(NamedTuple):
    """One thing that is wrong, and the clause that says so."""

    clause: str
    text: str


def _any(value: Any) -> bool:
    return any(value) if isinstance(value, tuple) else bool(value)


def request_faults(values: dict[str, Any]) -> Iterator[Problem]:
    """Of a request, by the fields of its record; reserved octets are the caller's to look at."""
    row = OPERATIONS.get(values["op"])
    if row is None:
        yield Problem("VER-5", f"operation {values['op']:#x} is not of the table: answered with not_implemented")
        return
    yield from _flags(row, values["flags"])
    for name, use in USED_BY.items():
        if name in values and not row.uses & use and _any(values[name]):
            clause = "BAR-42" if name == "id" else "REG-4"
            yield Problem(clause, f"{row.name} does not use `{name}`: it must be zero, not {values[name]:#x}")
    yield from _shape(row, values)


def _flags(row: Operation, flags: int) -> Iterator[Problem]:
    if flags & ~int(RequestFlag.POSTED):
        yield Problem("REG-4", f"unknown flags {flags & ~int(RequestFlag.POSTED):#x}")
    if flags & RequestFlag.POSTED and not row.uses & Uses.POSTED:
        yield Problem("BAR-10", f"a {row.name} cannot be posted: it has an answer")
    if not flags & RequestFlag.POSTED and row.uses & Uses.MUST_POST:
        yield Problem("BAR-42", f"a {row.name} must have the posted flag")


def _shape(row: Operation, values: dict[str, Any]) -> Iterator[Problem]:
    """Width, alignment, sizes and counts, which need no device to be judged."""
    uses = row.uses
    if uses & Uses.WIDTH:
        yield from _width(row, values)
    if uses & Uses.VALUE and values["width"] in (1, 2, 4, 8) and values["value"] >> (8 * values["width"]):
        yield Problem(_of(row, 6), f"value {values['value']:#x} is wider than {values['width']} octets")
    if uses & Uses.BLOCK:
        length, width = values["length"], values["width"]
        if not 0 < length <= wire.BLOCK_MAX or (width and length % width):
            yield Problem("BAR-20", f"length {length} is not a multiple of the width from 1 to {wire.BLOCK_MAX}")
        if values["bulk"] % 8:
            yield Problem("BAR-20", f"bulk {values['bulk']:#x} is not a multiple of 8")
    if uses & Uses.PACK:
        yield from _pack(row, values)
    if uses & Uses.VECTORS and not 0 < values["first"] + values["count"] <= wire.MAX_VECTORS:
        yield Problem("IRQ-4", f"vectors from {values['first']}, {values['count']} of them: no device has these")
    if uses & Uses.REGION and not uses & Uses.DMA and values["region"] >= wire.BAR_COUNT:
        yield Problem("BAR-2", f"BAR {values['region']}: a device has BARs 0 to {wire.BAR_COUNT - 1}")


def _of(row: Operation, number: int) -> str:
    """The clause of this number of the operation's own space; configuration space has one for all of them."""
    return f"BAR-{number}" if row.uses & Uses.REGION else "CFG-1"


def _width(row: Operation, values: dict[str, Any]) -> Iterator[Problem]:
    width, offset = values["width"], values.get("offset", 0)
    allowed = (1, 2, 4, 8) if row.uses & Uses.WIDTH8 else (1, 2, 4)
    clause = "BAR-41" if row.uses & Uses.PACK else _of(row, 1)
    if width not in allowed:
        yield Problem(clause, f"width {width}: an access of {row.name} is {', '.join(map(str, allowed))} octets wide")
    elif offset % width:
        yield Problem(clause, f"offset {offset:#x} is not a multiple of the width {width}")


def _pack(row: Operation, values: dict[str, Any]) -> Iterator[Problem]:
    most = wire.PACK_READS if row.op is Op.BAR_READS else wire.PACK_WRITES
    count, width, step = values["count"], values["width"], wire.PACK_READS // most
    if not 0 < count <= most:
        yield Problem("BAR-41", f"count {count} is not 1 to {most}")
        return
    if width not in (1, 2, 4):
        return
    for index in range(count):
        offset = values["element"][index * step]
        if offset % width:
            yield Problem("BAR-41", f"element {index}: offset {offset:#x} is not a multiple of the width {width}")
        if step == 2 and values["element"][index * 2 + 1] >> (8 * width):
            yield Problem("BAR-6", f"element {index}: value is wider than {width} octets")


def response_faults(values: dict[str, Any]) -> Iterator[Problem]:
    """Of a response, by the fields of its record; reserved octets are the caller's to look at."""
    error, row = values["error"], OPERATIONS.get(values["op"])
    if error not in Error.__members__.values():
        yield Problem("ERR-1", f"error {error} is not of the table: a front takes it as op_failed [THR-32]")
    if row is None:
        if error != Error.NOT_IMPLEMENTED:
            yield Problem("VER-5", f"operation {values['op']:#x} is not of the table, and is not answered so")
        return
    if not row.built and error != Error.NOT_IMPLEMENTED:
        yield Problem("VER-5", f"{row.name} is planned: version {wire.MAJOR}.{wire.MINOR} answers not_implemented")
    if row.uses & Uses.MUST_POST and error not in (Error.BAD_REQUEST, Error.NOT_IMPLEMENTED):
        yield Problem("BAR-42", f"a {row.name} has no answer but a refusal")
    if "done" in values:
        yield from _values(values)
        return
    if values["value"] and (error or not row.says):
        yield Problem("REG-4", f"the answer of {row.name} has no value: it must be zero, not {values['value']:#x}")
    if values["length"] and not row.uses & Uses.BLOCK:
        yield Problem("REG-4", f"the answer of {row.name} has no length: it must be zero, not {values['length']}")
    if values["detail"] and error != Error.DENIED:
        yield Problem("REG-4", f"only a denied write has a detail: it must be zero, not {values['detail']:#x}")
    if values["rule"] and not error:
        yield Problem("REG-4", f"a success has rule {values['rule']}: no rule refused it")


def _values(values: dict[str, Any]) -> Iterator[Problem]:
    done = values["done"]
    if done > wire.PACK_READS:
        yield Problem("BAR-43", f"{done} reads were made of at most {wire.PACK_READS}")
    elif any(values["values"][done:]):
        yield Problem("BAR-43", f"values from {done} on must be zero: those reads were not made")
    if not done and not values["error"]:
        yield Problem("BAR-43", "a success with no read made")


def event_faults(values: dict[str, Any]) -> Iterator[Problem]:
    """Of an event, by its fields."""
    kind, value = values["kind"], values["value"]
    if kind not in EventKind.__members__.values():
        yield Problem("REG-30", f"event kind {kind} is not of the table")
    if values["event_flags"]:
        yield Problem("REG-4", f"event_flags must be zero, not {values['event_flags']:#x}")
    if values["vector"] and (kind != EventKind.INTERRUPT or values["vector"] >= wire.MAX_VECTORS):
        yield Problem("IRQ-1", f"vector {values['vector']}: only interrupts have one, below {wire.MAX_VECTORS}")
    if kind == EventKind.DEVICE_STATE and value not in DeviceState.__members__.values():
        yield Problem("LIFE-20", f"device state {value} is not of the table")
    if kind == EventKind.POSTED_ERROR and value - (1 << 64) not in Error.__members__.values():
        yield Problem("ERR-1", f"value {value:#x} is not an error of the table, sign-extended")
