# SPDX-License-Identifier: MIT
"""What a worker says, taken apart as an enemy's words: whole numbers, short escaped texts, and nothing else.

Each function raises what ``MALFORMED`` lists when the words have not the form; the caller then goes on without them.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pcisplit import wire
from pcisplit.back.channel import Message
from pcisplit.back.log import escape
from pcisplit.back.teardown import Step
from pcisplit.proto.errors import known_error
from pcisplit.wire import Error

#: int() of 1e999, str() of what is nested deeper than json.loads minds, ...
MALFORMED = (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError, RecursionError)
_STEPS = 100  #: of a teardown; 16 devices need fewer
_FIELDS = 12  #: of a log line
_COUNTERS = 64


class Report(NamedTuple):
    """The last word of a worker: why the session ended, its steps, refusals by device and rule, models not reset, by name."""

    reason: Error
    steps: list[Step]
    refusals: dict[str, dict[str, int]]
    unreset: dict[str, str]


def report_untrusted(said: Message) -> Report:
    """``over``."""
    return Report(
        reason=known_error(int(said["reason"])),
        steps=[Step(*(escape(_text(text), 240) for text in step)) for step in said["steps"][:_STEPS]],
        refusals={
            escape(str(name), wire.NAME_MAX): _numbers(rules)
            for name, rules in list(said["refusals"].items())[: wire.MAX_DEVICES]
            if rules
        },
        unreset={str(name): escape(_text(why), 240) for name, why in list(said["unreset"].items())[: wire.MAX_DEVICES]},
    )


def log_untrusted(said: Message) -> tuple[str, str, dict[str, Any]]:
    """A line of the log: level, event, fields."""
    level = said["level"] if said["level"] in ("info", "warning", "error") else "warning"
    fields = {
        escape(str(key), 30): value if isinstance(value, int) and abs(value) < 1 << 64 else escape(_text(value), 2000)
        for key, value in list(said["fields"].items())[:_FIELDS]
    }
    for ours in ("uid", "event", "level", "session"):
        fields.pop(ours, None)
    return level, escape(_text(said["event"])), fields


def stats_untrusted(said: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """``stats``: counters of the session and of its devices `names`, refusals by rule of each and of all."""
    devices: list[dict[str, Any]] = [
        {"name": name, "counters": _numbers(device["counters"]), "refused": _numbers(device["refused"])}
        for name, device in zip(names, said["devices"], strict=True)
    ]
    refused: dict[str, int] = {}
    for device in devices:
        for rule, count in device["refused"].items():
            refused[rule] = refused.get(rule, 0) + count
    return {
        "state": escape(_text(said["state"]), 20),
        "session": _numbers(said["session"]),
        "refused": refused,
        "devices": devices,
    }


def octets_untrusted(said: Mapping[str, Any]) -> str:
    """``dump``: configuration space in hexadecimal."""
    octets = said["octets"]
    if not isinstance(octets, str) or len(octets) not in (512, 8192) or not set(octets) <= set("0123456789abcdef"):
        raise ValueError("not configuration space")
    return octets


def _text(value: Any) -> str:
    """A scalar as text. TypeError for what contains others: its text would be as deep as it is."""
    if not isinstance(value, (str, int, float)):
        raise TypeError(f"{type(value).__name__} in place of a text")
    return str(value)


def _numbers(table: Any) -> dict[str, int]:
    return {escape(str(key), 30): int(value) & (1 << 64) - 1 for key, value in list(table.items())[:_COUNTERS]}
