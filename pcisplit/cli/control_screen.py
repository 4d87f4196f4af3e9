# SPDX-License-Identifier: MIT
"""What a person sees of the control plane: results as tables. Every text in them is escaped, whoever it came from [THR-5].

A result has the shape of docs/control.md, or is shown without what is missing: a newer backend may say more or less.
"""

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console, Group, JustifyMethod, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from pcisplit.back.log import escape

_ROWS = 200  #: of a table; the rest is counted
_WIDE = 100  # columns from which on there is room for the pid of the worker
_UNCUT = 240  # columns where nobody's terminal cuts: a file, a pipe
_STATES = {"free": "green", "in session": "cyan", "detached": "yellow", "quarantined": "bold red"}
_DIM, _HEAD = "dim", "bold"


def console() -> Console:
    """For tables: as wide as the terminal; wide enough for all there is when a program reads."""
    made = Console(highlight=False, markup=False, emoji=False)
    if not sys.stdout.isatty():
        made.width = _UNCUT
    return made


# -- the three views ----------------------------------------------------------------------------------------------


def overview(result: Mapping[str, Any], now: float, width: int, watching: bool = False) -> RenderableType:
    """``list``: who serves, devices, sessions. `now` is in seconds since the epoch, as `since` and `started` are.

    `width` in columns decides what is left out; counts are rounded, and exact in ``stats``.
    """
    supervisor = _mapping(result.get("supervisor"))
    head = [
        (f"pcisplit {_text(supervisor.get('version'))}", _HEAD),
        (f"  pid {_text(supervisor.get('pid'))}", _DIM),
        (f"  up {age(supervisor.get('started'), now)}", _DIM),
        (f"  {_text(supervisor.get('socket'))}", _DIM),
        ("  Ctrl-C ends this" if watching else "", _DIM),
    ]
    parts: list[RenderableType] = [Text.assemble(*head, no_wrap=True, overflow="ellipsis"), Text()]
    devices, sessions = _rows(result.get("devices")), _rows(result.get("sessions"))
    parts.append(_devices(devices) if devices else Text("no devices", style=_DIM))
    parts.append(Text())
    parts.append(_sessions(sessions, now, width >= _WIDE) if sessions else Text("no sessions", style=_DIM))
    return Group(*parts)


def counters(result: Mapping[str, Any]) -> RenderableType:
    """``stats``: one table for the supervisor, one for sessions, one for devices; what was refused by rule below each."""
    parts: list[RenderableType] = []
    supervisor = _mapping(result.get("supervisor"))
    if supervisor:
        parts += [_title("supervisor"), _facts(supervisor.items()), Text()]
    for what, key in (("session", "number"), ("device", "name")):
        rows = _rows(result.get(f"{what}s"))
        if rows:
            table = _counter_table(rows, key, ">SESSION" if what == "session" else "DEVICE")
            parts += [_title(f"{what}s"), table, *_refused(rows, key, what), Text()]
    return Group(*parts[:-1]) if parts else Text("nothing is counted yet", style=_DIM)


def detached(name: str, result: Mapping[str, Any]) -> RenderableType:
    """``detach``: the steps of the teardown, and what now."""
    parts: list[RenderableType] = []
    session = result.get("session")
    steps = _rows(result.get("steps"))
    if session:
        parts.append(Text(f"session {_text(session)} had {_text(name)}; it was ended"))
    if steps:
        table = Table.grid(padding=(0, 2))
        for step in steps:
            problem = _text(step.get("problem"))
            mark = Text("✗", style="bold red") if problem else Text("✓", style="green")
            said = Text(problem, style="bold red") if problem else Text(_text(step.get("result")), style=_DIM)
            table.add_row(mark, _text(step.get("step")), Text(_text(step.get("device")), style=_DIM), said)
        parts.append(Padding(table, (0, 0, 0, 2)))
    parts.append(
        Text(f"{_text(name)} is detached: no front gets it until pcisplit attach {_text(name)}", style="yellow")
    )
    return Group(*parts)


# -- tables -------------------------------------------------------------------------------------------------------


def _devices(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = _table("DEVICE", "~WHAT", "~GROUP", "STATE", ">SESSION", "~NOTE")
    for row in rows[:_ROWS]:
        state = _text(row.get("state"))
        table.add_row(
            _text(row.get("name")),
            _cut(_text(row.get("spec"))),
            _cut(_text(row.get("group"))),
            Text(state, style=_STATES.get(state, "")),
            _text(row.get("session") or ""),
            _cut(_text(row.get("quarantined"), 400) or _text(row.get("note"), 400)),
        )
    return _with_rest(table, len(rows))


def _sessions(rows: Sequence[Mapping[str, Any]], now: float, wide: bool) -> Table:
    worker = [">WORKER"] if wide else []
    headings = [">SESSION", "~DRIVER", "~DEVICES", "STATE", ">UID", ">PID", *worker, ">AGE", ">REQUESTS", ">REFUSED"]
    table = _table(*headings)
    for row in rows[:_ROWS]:
        counted = _mapping(row.get("counters"))
        table.add_row(
            _text(row.get("number")),
            _cut(_text(row.get("driver"))),
            _cut(", ".join(_text(name) for name in _sequence(row.get("devices")))),
            _text(row.get("state")),
            _text(row.get("uid")),
            _text(row.get("pid")),
            *([_text(row.get("worker_pid"))] if wide else []),
            age(row.get("since"), now),
            _scaled(counted.get("requests")),
            _scaled(counted.get("refused")),
        )
    return _with_rest(table, len(rows))


def _counter_table(rows: Sequence[Mapping[str, Any]], key: str, heading: str) -> Table:
    """A row for each session or device, a column for each counter that any of them has."""
    names = list(dict.fromkeys(name for row in rows for name in _mapping(row.get("counters"))))
    table = _table(heading, *(f">{_words(name).upper().replace(' US', ' µs')}" for name in names))
    for row in rows[:_ROWS]:
        counted = _mapping(row.get("counters"))
        table.add_row(_text(row.get(key)), *(_count(counted.get(name)) for name in names))
    return _with_rest(table, len(rows))


def _refused(rows: Sequence[Mapping[str, Any]], key: str, what: str) -> list[Text]:
    """``device nic0, refused by rule: bar 3, command 1``."""
    lines = []
    for row in rows[:_ROWS]:
        rules = _mapping(row.get("refused"))
        said = ", ".join(f"{_text(rule)} {_count(count)}" for rule, count in rules.items())
        if said:
            lines.append(Text(f"{what} {_text(row.get(key))}, refused by rule: {said}"))
    return lines


def _facts(items: Iterable[tuple[str, Any]]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style=_DIM)
    table.add_column(justify="right")
    for key, value in items:
        table.add_row(_words(key).replace(" us", " µs"), _count(value))
    return table


def _table(*columns: str) -> Table:
    """A plain table. A heading that begins with ``>`` is that of numbers, ``~`` of texts that may be cut (``_cut``)."""
    table = Table(box=None, pad_edge=False, header_style=_DIM, padding=(0, 2, 0, 0))
    for column in columns:
        justify: JustifyMethod = "right" if column.startswith(">") else "left"
        heading = Text(column.lstrip(">~"), no_wrap=True, overflow="ellipsis")
        table.add_column(heading, justify=justify, no_wrap=not column.startswith("~"), overflow="ellipsis")
    return table


def _cut(text: str) -> Text:
    """A cell that is cut before any number is."""
    return Text(text, no_wrap=True, overflow="ellipsis")


def _with_rest(table: Table, rows: int) -> Table:
    if rows > _ROWS:
        table.caption = f"and {rows - _ROWS} more; --json has them all"
    return table


def _title(text: str) -> Text:
    return Text(text, style=_HEAD)


# -- values of an answer: of any type, from anybody ---------------------------------------------------------------


def age(since: object, now: float) -> str:
    """``3 s``, ``3m12s``, ``5h03m``, ``2d04h``; empty for what is no time."""
    if not isinstance(since, int | float) or isinstance(since, bool):
        return ""
    seconds = int(max(0, now - since))
    for unit, smaller, big, small in ((86400, 3600, "d", "h"), (3600, 60, "h", "m"), (60, 1, "m", "s")):
        if seconds >= unit:
            return f"{seconds // unit}{big}{seconds % unit // smaller:02}{small}"
    return f"{seconds}s"


def _text(value: object, most: int = 80) -> str:
    """A scalar as a terminal may see it; empty for null and for what should not be there."""
    return escape(str(value), most) if isinstance(value, str | int | float) else ""


def _count(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else _text(value)


def _scaled(value: object) -> str:
    """A count in at most five characters, as long as it is below 1000 T: ``9999``, ``12.3k``, ``1.2M``."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 10_000:
        return _text(value)
    for unit, name in ((10**12, "T"), (10**9, "G"), (10**6, "M")):
        if value >= unit:
            return f"{value / unit:.1f}{name}"
    return f"{value / 1000:.1f}k"


def _words(key: str) -> str:
    return _text(key).replace("_", " ")


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _sequence(value: object) -> Sequence[Any]:
    return value if isinstance(value, list) else ()


def _rows(value: object) -> list[Mapping[str, Any]]:
    return [row for row in _sequence(value) if isinstance(row, dict)]
