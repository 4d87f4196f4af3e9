# SPDX-License-Identifier: MIT
"""Structured logs. What fronts can cause is limited to 10 lines a second per uid, and the rest is counted [THR-7].

The supervisor writes them, by structlog. The other processes tell it theirs, and never load structlog: with what it brings it
is half of a zygote's memory, which every fork would copy the tables of.
"""

import encodings.unicode_escape  # noqa: F401 - a codec is a file, and a front may have used up our descriptors
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, TextIO

from pcisplit.back.channel import Channel
from pcisplit.back.patient import PatientStream

LINES_PER_SECOND = 10


Sink = Callable[[str, str, dict[str, Any]], None]

_sink: Sink | None = None


def line(level: str, event: str, /, **fields: Any) -> None:
    """One line, in whatever process: to its sink, or written by structlog."""
    if _sink is not None:
        _sink(level, event, fields)
        return
    import structlog

    getattr(structlog.get_logger("pcisplit"), level)(event, **fields)


def escape(text: str, most: int = 80) -> str:
    """Text of a peer, fit for a log or a terminal: printable ASCII, the rest as \\x.., at most `most` characters [THR-5]."""
    shown = text.encode("unicode_escape").decode("ascii")
    return shown if len(shown) <= most else shown[: most - 3] + "..."


class Allowance:
    """At most `most` lines in any second of the clock; counts what is over."""

    def __init__(self, most: int) -> None:
        self._most, self._window, self._lines, self._left_out = most, 0, 0, 0

    def take(self) -> tuple[bool, int]:
        """Whether one more line may be written now, and how many were left out in an earlier second and not yet told."""
        window, told = int(time.monotonic()), 0
        if window != self._window:
            told, self._left_out = self._left_out, 0
            self._window, self._lines = window, 0
        self._lines += 1
        if self._lines > self._most:
            self._left_out += 1
            return False, told
        return True, told


class LimitedLog:
    """A logger that lets at most LINES_PER_SECOND lines through and tells how many it left out."""

    def __init__(self, **bound: Any) -> None:
        self._bound, self._allowance = bound, Allowance(LINES_PER_SECOND)

    def __call__(self, event: str, **fields: Any) -> None:
        allowed, left_out = self._allowance.take()
        if left_out:
            line("warning", "log lines left out", **self._bound, count=left_out)
        if allowed:
            line("info", event, **self._bound, **fields)


class PeerLog:
    """Lines that fronts can cause, limited by uid over all its connections and sessions [THR-7]: none hides another's."""

    UIDS = 1024  #: of which an allowance is remembered; the one unheard of for longest is forgotten

    def __init__(self, per_second: int = LINES_PER_SECOND) -> None:
        self._per_second = per_second
        self._uids: OrderedDict[int, Allowance] = OrderedDict()

    def __call__(self, uid: int, event: str, level: str = "info", **fields: Any) -> None:
        """One line; every text in it is escaped already or ours."""
        allowance = self._uids.setdefault(uid, Allowance(self._per_second))
        self._uids.move_to_end(uid)
        if len(self._uids) > self.UIDS:
            self._uids.popitem(last=False)
        allowed, left_out = allowance.take()
        if left_out:
            line("warning", "log lines left out", count=left_out, uid=uid)
        if allowed:
            line(level, event, uid=uid, **fields)


def bug(event: str, trace: str) -> None:
    """What should not have happened, for us to mend."""
    line("error", event, exception=trace)


def configure(json: bool = False, stream: TextIO | PatientStream | None = None, sink: Sink | None = None) -> None:
    """Logs to `stream` (default standard error), for people or one JSON object a line; or to `sink`: level, event, fields."""
    global _sink
    _sink = sink
    if sink is not None:
        return
    import structlog

    stream = stream or sys.stderr
    renderer: Any = (
        structlog.processors.JSONRenderer()
        if json
        else structlog.dev.ConsoleRenderer(colors=stream.isatty(), pad_event_to=28)
    )
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso" if json else "%H:%M:%S", utc=json),
            *([structlog.processors.format_exc_info] if json else []),  # or a traceback is the word "true"
            renderer,
        ],
        logger_factory=structlog.PrintLoggerFactory(stream),  # type: ignore[arg-type]  # it writes and flushes
        cache_logger_on_first_use=False,
    )


def tell(channel: Channel, level: str, event: str, fields: Mapping[str, Any]) -> None:
    """The sink of a process without a log of its own: the supervisor writes it."""
    said = {key: value if isinstance(value, (int, float, str)) else str(value) for key, value in fields.items()}
    channel.send({"tell": "log", "level": level, "event": event, "fields": said})
