# SPDX-License-Identifier: MIT
"""Structured logs. What a front can cause is limited to 10 lines a second per session, and the rest is counted [THR-7]."""

import encodings.unicode_escape  # noqa: F401 - a codec is a file, and a front may have used up our descriptors
import sys
import time
from typing import Any, TextIO

import structlog

LINES_PER_SECOND = 10


def escape(text: str, most: int = 80) -> str:
    """Text of a peer, fit for a log or a terminal: printable ASCII, the rest as \\x.., at most `most` characters [THR-5]."""
    shown = text.encode("unicode_escape").decode("ascii")
    return shown if len(shown) <= most else shown[: most - 3] + "..."


class LimitedLog:
    """A structlog logger that lets at most LINES_PER_SECOND lines through and tells how many it left out."""

    def __init__(self, **bound: Any) -> None:
        self._log = structlog.get_logger("pcisplit").bind(**bound)
        self._window, self._lines, self._left_out = 0, 0, 0

    def __call__(self, event: str, **fields: Any) -> None:
        window = int(time.monotonic())
        if window != self._window:
            if self._left_out:
                self._log.warning("log lines left out", count=self._left_out)
            self._window, self._lines, self._left_out = window, 0, 0
        self._lines += 1
        if self._lines > LINES_PER_SECOND:
            self._left_out += 1
        else:
            self._log.info(event, **fields)


def configure(json: bool = False, stream: TextIO | None = None) -> None:
    """Logs to `stream` (default standard error): for people, or one JSON object a line."""
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
        logger_factory=structlog.PrintLoggerFactory(stream),
        cache_logger_on_first_use=False,
    )
