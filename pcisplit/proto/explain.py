# SPDX-License-Identifier: MIT
"""Octets in words: what a message or a slot says, field by field, and what is wrong in it, with the clause that it breaks.

Sans-IO. It takes any octets and never raises; the verdict is that of the parsers and checkers of this version.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from pcisplit import wire
from pcisplit.proto import words
from pcisplit.proto.bootinfo import parse_boot_info_untrusted
from pcisplit.proto.errors import RemoteProtocolError, error_name
from pcisplit.proto.meeting import parse_hello_untrusted, parse_late_untrusted, parse_reply_untrusted
from pcisplit.proto.octets import number
from pcisplit.proto.slot_faults import Problem, event_faults, request_faults, response_faults
from pcisplit.proto.slots import Event, Request, Response, request_record, response_record
from pcisplit.wire import Record, RecordKind, RegionIndex, VectorMode

SLOTS = ("request", "response", "event")
MESSAGES = ("hello", "reply", "late", "boot_info")
HEADERS = ("front_header", "back_header")
KINDS = (*SLOTS, *MESSAGES, *HEADERS)

_MAGICS = {
    wire.HELLO_MAGIC: "hello",
    wire.REPLY_MAGIC: "reply",
    wire.LATE_MAGIC: "late",
    wire.BOOT_MAGIC: "boot_info",
    wire.F2B_MAGIC: "front_header",
    wire.B2F_MAGIC: "back_header",
}


class Line(NamedTuple):
    """One field: where it begins and how long it is, octets; `value` and `meaning` for a person to read."""

    at: int
    octets: bytes
    field: str
    value: str
    meaning: str


class Part(NamedTuple):
    """One record of a message, or a text in it."""

    title: str
    lines: tuple[Line, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Explanation:
    """`kind` is one of KINDS, `guessed` if nothing but a likeness says so; `says` is the whole in one line."""

    kind: str
    says: str
    parts: tuple[Part, ...]
    problems: tuple[Problem, ...] = ()
    guessed: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Plain lists, numbers and texts, for JSON; octets in hexadecimal."""
        parts = [
            {"title": part.title, "fields": [{**line._asdict(), "octets": line.octets.hex()} for line in part.lines]}
            for part in self.parts
        ]
        problems = [problem._asdict() for problem in self.problems]
        return {"kind": self.kind, "guessed": self.guessed, "says": self.says, "parts": parts, "problems": problems}


def explain(octets: bytes, kind: str = "", index: int | None = None) -> Explanation:
    """What `octets` say. `kind` is one of KINDS, or found out; `index` the slot's in the life of its ring, if it is known."""
    guessed = not kind and number(octets, 0, 4) not in _MAGICS
    kind = kind or _MAGICS.get(number(octets, 0, 4)) or _likeliest(octets)
    made = _slot(octets, kind, index) if kind in SLOTS else _MESSAGES[kind](octets)
    return dataclasses.replace(made, guessed=guessed)


def explain_all(octets: bytes, kind: str = "", index: int | None = None) -> list[Explanation]:
    """The same of a message, or of one slot after the other, `index` that of the first."""
    size = wire.SLOT_SIZE
    if kind not in ("", *SLOTS) or number(octets, 0, 4) in _MAGICS or len(octets) <= size or len(octets) % size:
        return [explain(octets, kind, index)]
    starts = range(0, len(octets), size)
    return [explain(octets[at : at + size], kind, None if index is None else index + at // size) for at in starts]


def octets_of(text: str) -> tuple[bytes, str]:
    """Octets written in hexadecimal, with comments from ``#`` on; and the kind that a comment ``# message: KIND`` names, if any.

    Raises ValueError when the rest is not hexadecimal.
    """
    plain, kind = "", ""
    for line in text.splitlines():
        before, _, comment = line.partition("#")
        plain += before + " "
        name, _, value = comment.partition(":")
        if name.strip() == "message" and value.strip() in KINDS:
            kind = value.strip()
    return bytes.fromhex(plain.replace("0x", " ").replace(",", " ")), kind


# --- records -----------------------------------------------------------------------------------------------------------------


def _lines(record: Record, octets: bytes, base: int = 0) -> Iterator[Line]:
    """The fields of a record as far as the octets go. Runs of octets that are zero, and must be, are left out."""
    whole = octets[: record.size].ljust(record.size, b"\0")
    values = record.parse(whole, strict=False)
    for field, at in record.places:
        raw = octets[at : min(at + field.size, record.size)]
        value: Any = values.get(field.name, raw)
        if not raw or (field.role in ("zero", "pad") and not any(raw)):
            continue
        said = f"must be zero [{_RESERVED}]" if field.role in ("zero", "pad") else words.meaning(record, field, value)
        yield Line(base + at, raw, field.name, words.shown(field, value), said)


_RESERVED = "REG-4"


def _part(title: str, record: Record, octets: bytes, base: int = 0) -> Part:
    return Part(title, tuple(_lines(record, octets, base)))


def _reserved(record: Record, octets: bytes, base: int = 0, what: str = "") -> Iterator[Problem]:
    for field, at in record.places:
        raw = octets[at : at + field.size]
        if field.role in ("zero", "pad") and any(raw):
            where = f"octets {base + at} to {base + at + len(raw) - 1}"
            yield Problem(_RESERVED, f"{where}{what} must be zero, not {raw.hex(' ')}")


def _short(record: Record, octets: bytes, clause: str) -> list[Problem]:
    if len(octets) >= record.size:
        return []
    return [Problem(clause, f"cut off: {len(octets)} octets, and a {record.name} has {record.size}")]


# --- slots -------------------------------------------------------------------------------------------------------------------


def _likeliest(octets: bytes) -> str:
    """The kind of slot in which the least is wrong; what cannot be told apart is a request."""
    return min(SLOTS, key=lambda kind: len(_slot(octets, kind, None).problems))


def _slot(octets: bytes, kind: str, index: int | None) -> Explanation:
    first = number(octets, 0, 2)
    record = {"request": request_record, "response": response_record}.get(kind, lambda _: wire.EVENT)(first)
    problems = []
    if len(octets) != wire.SLOT_SIZE:
        problems.append(Problem("RING-16", f"a slot is {wire.SLOT_SIZE} octets long, not {len(octets)}"))
    whole = octets[: wire.SLOT_SIZE].ljust(wire.SLOT_SIZE, b"\0")
    values = record.parse(whole, strict=False)
    problems += _reserved(record, octets[: wire.SLOT_SIZE])
    problems += {"request": request_faults, "response": response_faults}.get(kind, event_faults)(values)
    problems += _sequence(values["sequence"], index)
    known = {"request": Request, "response": Response}.get(kind, Event)
    says = str(known(**values))
    return Explanation(kind, says, (_part(record.name, record, octets),), tuple(problems))


def _sequence(sequence: int, index: int | None) -> Iterator[Problem]:
    if index is not None and sequence != (index + 1) & 0xFFFFFFFF:
        wanted = (index + 1) & 0xFFFFFFFF
        yield Problem("RING-16", f"the sequence is {sequence:#x}; slot {index} is published with {wanted:#x}")


# --- messages ----------------------------------------------------------------------------------------------------------------


def _verdict(parse: Callable[[bytes], object], octets: bytes, found: list[Problem], clause: str) -> tuple[Problem, ...]:
    """The problems found, or the parser's own words when it refuses what looked sound."""
    try:
        parse(octets)
    except RemoteProtocolError as refused:
        if not found:
            return (Problem("VER-1" if "speaks version" in str(refused) else clause, str(refused)),)
    return tuple(found)


def _records(octets: bytes, base: int, kinds: dict[Any, Record]) -> Iterator[tuple[str, Record | None, bytes, int]]:
    """(title, record if its kind is known, octets, where) of records with kind and length, as far as they are sound."""
    at = 0
    while at + 4 <= len(octets):
        kind, length = number(octets, at, 2), number(octets, at + 2, 2)
        if length < 8 or length % 8 or at + length > len(octets):
            return
        record = kinds.get(kind)
        yield record.name if record else f"record of unknown kind {kind}", record, octets[at : at + length], base + at
        at += length


def _walk(octets: bytes, base: int, kinds: dict[Any, Record], clause: str) -> tuple[list[Part], list[Problem]]:
    parts: list[Part] = []
    problems: list[Problem] = []
    end = base
    for title, record, raw, at in _records(octets[base:], base, kinds):
        end = at + len(raw)
        if record is None:
            parts.append(Part(title, (Line(at, raw, "octets", raw[:16].hex(" "), "skipped by its length"),)))
            continue
        parts.append(_part(title, record, raw, at))
        problems += _reserved(record, raw, at, f" ({title})")
        problems += [Problem(clause, f"{title} at {at}: {p.text}") for p in _short(record, raw, clause)]
    if end < len(octets):
        text = f"from octet {end} on there is no record whose length fits: {octets[end : end + 8].hex(' ')}"
        problems.append(Problem(clause, text))
    return parts, problems


def _length(octets: bytes, clause: str, at: int = 8) -> list[Problem]:
    said = number(octets, at, 4)
    return [Problem(clause, f"it says {said} octets, and has {len(octets)}")] if said != len(octets) else []


def _magic(octets: bytes, magic: int, clause: str) -> list[Problem]:
    if number(octets, 0, 4) == magic:
        return []
    wanted = magic.to_bytes(4, "little")
    return [Problem(clause, f"it begins with {ascii(octets[:4])[1:]}, not with {ascii(wanted)[1:]}")]


def _major(octets: bytes) -> list[Problem]:
    major = number(octets, 4, 2)
    return [Problem("VER-1", f"major version {major}, and this is {wire.MAJOR}")] if major != wire.MAJOR else []


def _count(said: int, parts: list[Part], clause: str) -> list[Problem]:
    return [Problem(clause, f"it says {said} records, and has {len(parts)}")] if said != len(parts) else []


def _hello(octets: bytes) -> Explanation:
    record = wire.HELLO
    parts, problems = _walk(octets, record.size, {int(k): r for k, r in wire.HELLO_RECORDS.items()}, "MEET-24")
    problems = [
        *_magic(octets, wire.HELLO_MAGIC, "MEET-4"),
        *_major(octets),
        *_short(record, octets, "MEET-4"),
        *_length(octets, "MEET-4"),
        *_count(number(octets, 12, 2), parts, "MEET-4"),
        *_reserved(record, octets),
        *problems,
    ]
    if len(octets) > wire.HELLO_MAX:
        problems.append(Problem("MEET-2", f"{len(octets)} octets; a hello has at most {wire.HELLO_MAX}"))
    problems = list(_verdict(parse_hello_untrusted, octets, problems, "MEET-4"))
    driver = octets[record.offset("driver") :][: wire.NAME_MAX + 1].rstrip(b"\0").decode("latin-1")
    names = [part.title.removeprefix("hello_") for part in parts]
    says = f"hello of driver {driver!a} with {_counted(names)}"
    return Explanation("hello", says, (_part("hello", record, octets), *parts), tuple(problems))


def _counted(names: list[str]) -> str:
    return ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names)) or "no records"


def _reply(octets: bytes) -> Explanation:
    record = wire.REPLY
    head = record.parse(octets[: record.size].ljust(record.size, b"\0"), strict=False)
    end = record.size + head["text_length"]
    text, boot = octets[record.size : end], octets[end : end + head["boot_length"]]
    parts = [_part("reply", record, octets)]
    problems = [
        *_magic(octets, wire.REPLY_MAGIC, "MEET-9"),
        *_major(octets),
        *_short(record, octets, "MEET-9"),
        *_length(octets, "MEET-9"),
        *_reserved(record, octets),
    ]
    if end + head["boot_length"] != len(octets):
        problems.append(
            Problem("MEET-9", f"text and boot-info end at octet {end + head['boot_length']}, not at {len(octets)}")
        )
    if len(octets) > wire.REPLY_MAX:
        problems.append(Problem("MEET-26", f"{len(octets)} octets; a reply has at most {wire.REPLY_MAX}"))
    problems = list(_verdict(parse_reply_untrusted, octets, problems, "ERR-1"))
    if text:
        said = ascii(text.decode("utf-8", "replace"))
        parts.append(Part("text", (Line(record.size, text, "text", said, "the sentence of the refusal"),)))
    if boot:
        inner = _boot_info(boot)
        moved = [Part(p.title, tuple(line._replace(at=line.at + end) for line in p.lines)) for p in inner.parts]
        parts += moved
        problems += inner.problems
    error = error_name(head["error"])
    says = f"refusal, {error}" if head["error"] else f"session, {head['fds']} descriptors"
    return Explanation("reply", says, tuple(parts), tuple(problems))


_BOOT_RECORDS = {int(kind): record for kind, record in wire.BOOT_RECORDS.items()}


def _late(octets: bytes) -> Explanation:
    record = wire.LATE
    parts, problems = _walk(octets, record.size, _BOOT_RECORDS, "MEET-25")
    problems = [
        *_magic(octets, wire.LATE_MAGIC, "MEET-25"),
        *_short(record, octets, "MEET-25"),
        *_length(octets, "MEET-25", at=4),
        *_reserved(record, octets),
        *problems,
    ]
    found = _verdict(parse_late_untrusted, octets, problems, "MEET-25")
    says = f"late message {number(octets, record.offset('serial'), 4)} with {_counted([part.title for part in parts])}"
    return Explanation("late", says, (_part("late", record, octets), *parts), found)


def _boot_info(octets: bytes) -> Explanation:
    record = wire.BOOT_INFO
    parts, problems = _walk(octets, record.size, _BOOT_RECORDS, "BOOT-1")
    problems = [
        *_magic(octets, wire.BOOT_MAGIC, "BOOT-4"),
        *_major(octets),
        *_short(record, octets, "BOOT-4"),
        *_length(octets, "BOOT-1"),
        *_count(number(octets, 12, 4), parts, "BOOT-4"),
        *_reserved(record, octets),
        *problems,
        *_outside(octets),
    ]
    found = _verdict(parse_boot_info_untrusted, octets, problems, "BOOT-4")
    session = number(octets, record.offset("session"), 8)
    says = f"boot-info of session {session} with {_counted([part.title.removeprefix('boot_') for part in parts])}"
    return Explanation("boot_info", says, (_part("boot_info", record, octets), *parts), found)


def _outside(octets: bytes) -> Iterator[Problem]:
    """What is placed outside of its region, or not aligned [BOOT-2]."""
    found: list[tuple[str, dict[str, Any], int]] = []
    for title, record, raw, at in _records(octets[wire.BOOT_INFO.size :], wire.BOOT_INFO.size, _BOOT_RECORDS):
        if record and len(raw) >= record.size:
            found.append((title, record.parse(raw[: record.size], strict=False), at))
    sizes = {f["index"]: f["size"] for title, f, _ in found if title == "boot_region"}
    for title, fields, at in found:
        for what, region, offset, length, align in _placed(title, fields):
            if region not in sizes:
                yield Problem("BOOT-4", f"{title} at {at}: there is no region {region}")
            elif offset + length > sizes[region]:
                name = words.member(RegionIndex, region)
                text = (
                    f"{what} from {offset:#x} to {offset + length:#x} ends outside of {name}, {sizes[region]:#x} octets"
                )
                yield Problem("BOOT-2", f"{title} at {at}: {text}")
            elif offset % align:
                yield Problem("BOOT-2", f"{title} at {at}: {what} at {offset:#x} is not a multiple of {align}")


def _placed(title: str, fields: dict[str, Any]) -> Iterator[tuple[str, int, int, int, int]]:
    """(what, region, offset, length, alignment) of what one record places in a region."""
    b2f = int(RegionIndex.B2F)
    kind = title.removeprefix("boot_").upper()
    if kind == RecordKind.RING.name:
        yield "its slots", fields["region"], fields["offset"], fields["slots"] * wire.SLOT_SIZE, 64
    elif kind == RecordKind.BULK.name:
        yield "its octets", fields["region"], fields["offset"], fields["size"], 64
    elif kind == RecordKind.DMA_WINDOW.name:
        yield "its memory", fields["region"], fields["offset"], fields["size"], 1
    elif kind == RecordKind.DEVICE.name:
        yield "its state", b2f, fields["state_offset"], wire.DEVICE_STATE.size, 64
    elif kind == RecordKind.VECTORS.name and fields["mode"] == VectorMode.RELAYED:
        yield "the counters", b2f, fields["counters"], 8 * fields["count"], 8
        for name in ("totals", "pending", "masks"):
            yield name, b2f, fields[name], 8 * -(-fields["count"] // 64), 8


def _header(name: str, record: Record, magic: int) -> Callable[[bytes], Explanation]:
    def made(octets: bytes) -> Explanation:
        problems = [
            *_magic(octets, magic, "REG-5"),
            *_short(record, octets, "REG-1"),
            *_reserved(record, octets[: record.size]),
        ]
        state = words.member(wire.State, number(octets, 4, 4)) or "of no state"
        return Explanation(name, f"{name.replace('_', ' ')}, {state}", (_part(name, record, octets),), tuple(problems))

    return made


_MESSAGES: dict[str, Callable[[bytes], Explanation]] = {
    "hello": _hello,
    "reply": _reply,
    "late": _late,
    "boot_info": _boot_info,
    "front_header": _header("front_header", wire.FRONT_HEADER, wire.F2B_MAGIC),
    "back_header": _header("back_header", wire.BACK_HEADER, wire.B2F_MAGIC),
}
