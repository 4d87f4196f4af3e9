# SPDX-License-Identifier: MIT
"""The tables of the specification: limits, numbers, errors, operations, records with their octets, state transitions."""

import enum
from collections.abc import Iterator, Mapping

from pcisplit import wire
from pcisplit.gen.c_header import ENUMS, NOTE
from pcisplit.proto import states
from pcisplit.proto.errors import ERRORS
from pcisplit.wire.ops import OPERATIONS, USED_BY, Operation, Uses
from pcisplit.wire.record import Field, Record
from pcisplit.wire.rules import RULES


def text() -> str:
    return "\n".join([*_limits(), *_numbers(), *_errors(), *_rules(), *_operations(), *_records(), *_states(), ""])


def _limits() -> Iterator[str]:
    yield from ("# Tables", "", NOTE, "All numbers are little-endian. s16 and s32 are two's complement.", "")
    yield from ("## Limits and fixed numbers", "", "| name | value | | clause |", "|---|---|---|---|")
    for name, limit in wire.LIMITS.items():
        value = getattr(wire, name)
        yield f"| {name.lower()} | {value} ({value:#x}) | {limit.text} | {limit.clause} |"


def _numbers() -> Iterator[str]:
    for members in ENUMS.values():
        if members in (wire.Error, wire.Op, Uses):
            continue
        yield from ("", f"## {members.__name__}", "", "| number | name | |", "|---|---|---|")
        for member in members:
            yield f"| {_number(member)} | `{(member.name or '').lower()}` | {_remark(member)} |"


def _number(member: enum.Enum) -> str:
    value = int(member.value)
    return f"{value:#x}" if isinstance(member, enum.IntFlag) or value > 31 else str(value)


def _remark(member: enum.Enum) -> str:
    if isinstance(member, wire.Feature):
        return "built" if member in wire.BUILT else "planned"
    return ""


def _errors() -> Iterator[str]:
    yield from ("", "## Errors", "", "| number | name | meaning | may a retry help? |", "|---|---|---|---|")
    for error, meaning in ERRORS.items():
        yield f"| {error.value} | `{error.name.lower()}` | {meaning.sentence} | {'yes' if meaning.retry else 'no'} |"


def _rules() -> Iterator[str]:
    yield from ("", "## Rules", "", "Numbers from 0x1000 on are an operator's own.", "")
    yield from ("| number | name | refuses |", "|---|---|---|")
    for rule, refuses in RULES.items():
        yield f"| {rule.value} | `{rule.name.lower().replace('_', '-')}` | {refuses} |"


# --- operations ------------------------------------------------------------------------------------------------------------


def _operations() -> Iterator[str]:
    yield from ("", "## Operations", "")
    yield "One row each. *Needs*: features of which one must be in force; *barrier*: earlier requests of the device have"
    yield "finished before it and later ones wait for it [ORD-9]; *quota*: per device."
    yield from ("", "| number | name | | chapter | needs | barrier | quota |", "|---|---|---|---|---|---|---|")
    for op, row in OPERATIONS.items():
        built, barrier = "built" if row.built else "planned", "yes" if row.barrier else ""
        yield f"| {op.value:#04x} | `{row.name}` | {built} | {row.chapter}.md | {_features(row)} | {barrier} | {row.quota} |"
    yield from ("", "### Fields of each request", "")
    yield "Octets of a request that are not named here are zero. `op` and `generation` are always used, `device` too."
    yield from ("", "| name | record | head | body | posted |", "|---|---|---|---|---|")
    for row in OPERATIONS.values():
        yield f"| `{row.name}` | `{row.request.name}` | {_used(row, head=True)} | {_used(row, head=False)} | {_posted(row)} |"
    yield from ("", "### What is answered", "", "| name | record | `value` |", "|---|---|---|")
    for row in OPERATIONS.values():
        if not row.uses & Uses.MUST_POST:
            says = row.says or ("zero" if row.response is wire.RESPONSE else "-")
            yield f"| `{row.name}` | `{row.response.name}` | {says} |"


def _features(row: Operation) -> str:
    return ", ".join(f"`{(feature.name or '').lower()}`" for feature in row.feature)


def _used(row: Operation, *, head: bool) -> str:
    def shown(field: Field, at: int) -> bool:
        used = field.name in USED_BY and bool(row.uses & USED_BY[field.name])
        return used and (at < 16) is head

    names = []
    for field, at in row.request.places:
        if shown(field, at):
            widths = " (1, 2, 4, 8)" if row.uses & Uses.WIDTH8 else " (1, 2, 4)"
            names.append(f"`{field.name}`{widths if field.name == 'width' else ''}")
    return ", ".join(names)


def _posted(row: Operation) -> str:
    return "must" if row.uses & Uses.MUST_POST else "may" if row.uses & Uses.POSTED else ""


# --- records -----------------------------------------------------------------------------------------------------------------


def _records() -> Iterator[str]:
    for name, record in wire.RECORDS.items():
        yield from ("", f"## Record `{name}`, {record.size} octets", "")
        if record.size <= 128:
            yield from ("```", *box(record), "```", "")
        yield from ("| octet | size | type | field | meaning |", "|---|---|---|---|---|")
        for field, at in record.places:
            yield f"| {at} | {field.size} | {_type(field)} | `{field.name}` | {field.text} |"


def _type(field: Field) -> str:
    if field.role:
        return "octets"
    plain = {"B": "u8", "H": "u16", "h": "s16", "I": "u32", "i": "s32", "Q": "u64"}[field.code]
    return f"{plain}[{field.count}]" if field.count else plain


def box(record: Record) -> Iterator[str]:
    """Octets as boxes, eight to a line; a field that is longer goes on in the lines below it."""
    line = "+" + "-------+" * 8
    yield "     " + "".join(f"   {column}    " for column in range(8))
    cells: list[tuple[int, str]] = []  # (octets in this line, what stands in them)
    at = 0
    for field, _ in record.places:
        left, label = field.size, field.name if field.role != "zero" else "0"
        while left:
            part = min(left, 8 - at % 8)
            cells.append((part, label))
            label = "" if field.role != "zero" else "0"
            left, at = left - part, at + part
    place, row, above = 0, "", line
    skipped = False
    for part, label in cells:
        row += "|" + _fit(label, part * 8 - 1)
        place += part
        if place % 8:
            continue
        plain = row == "|" + " " * 63 or row == "|" + _fit("0", 63)
        if plain and skipped is False and place > 8 and above == row:
            skipped = True
        if not (plain and above == row):
            yield "    " + line
            yield f"{place - 8:3} {row}|"
            skipped = False
        above, row = row, ""
    yield "    " + line


def _fit(label: str, width: int) -> str:
    return label[:width].center(width)


# --- states --------------------------------------------------------------------------------------------------------------------


def _states() -> Iterator[str]:
    """Front | Back: from each state, the next and the states of the peer in which the step is allowed."""
    yield from ("", "## State transitions", "")
    yield "| own state | Front may go to (while the back is) | Back may go to (while the front is) |"
    yield "|---|---|---|"
    for state in wire.State:
        cells = [_steps(states.TRANSITIONS[role].get(state, {})) for role in states.Role]
        yield f"| {state.value} {_title(state)} | {cells[0]} | {cells[1]} |"


def _steps(row: Mapping[wire.State, frozenset[wire.State]]) -> str:
    def when(peers: frozenset[wire.State]) -> str:
        return "any" if peers == frozenset(wire.State) else ", ".join(_title(peer) for peer in sorted(peers))

    return "; ".join(f"{_title(new)} ({when(peers)})" for new, peers in row.items()) or "-"


def _title(state: wire.State) -> str:
    return state.name.title().replace("_", "")
