# SPDX-License-Identifier: MIT
"""The other end of the control socket: ask, wait for the answer, say what to do where there is none. Blocking."""

import errno
import os
import socket
import struct
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import click

from pcisplit.back.control_protocol import (
    ANSWER_MAX,
    COMMANDS,
    Code,
    ControlError,
    ControlRequest,
    Lines,
    parse_answer_untrusted,
)
from pcisplit.back.log import escape

_CONNECT_SECONDS = 5
_PATIENCE = 5.0  # beyond the backend's own deadline, whose sentence is the better one
_CHUNK = 64 << 10
_TEXT_MOST = 400


class ControlClient:
    """A connection to a backend's control socket. Raises ClickException with what to do next, wherever it is used."""

    def __init__(self, path: Path) -> None:
        self._path, self._number, self._lines = path, 0, Lines(ANSWER_MAX)
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        # A full backlog is waited for in the kernel: with a Python timeout, connect would give up at once (EAGAIN).
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", _CONNECT_SECONDS, 0))
        try:
            self._sock.connect(str(path))
        except OSError as problem:
            self._sock.close()
            raise click.ClickException(_why_not(path, problem)) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._sock.close()

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """The result of a command. Its texts are raw: escape them before a terminal sees them."""
        self._number += 1
        request = ControlRequest(do, arguments, self._number)
        deadline = time.monotonic() + COMMANDS[do].seconds + _PATIENCE
        try:
            line = self._exchange(request.to_bytes(), deadline)
            return parse_answer_untrusted(line, request.id)
        except ControlError as problem:
            raise click.ClickException(_sentence(problem)) from None
        except TimeoutError:
            text = f"the backend at {self._path} did not answer {do} within {COMMANDS[do].seconds + _PATIENCE:g} s"
            raise click.ClickException(
                f"{text}; it may be stopped or stuck: look at its log and at its process"
            ) from None
        except OSError as problem:
            raise click.ClickException(f"the backend at {self._path} hung up: {problem}") from None

    def _exchange(self, request: bytes, deadline: float) -> bytes:
        """The next line after `request` was sent."""
        try:
            self._sock.settimeout(max(0.001, deadline - time.monotonic()))
            self._sock.sendall(request)
        except (BrokenPipeError, ConnectionResetError):
            pass  # a backend that turned us away has said why, which can still be read
        while (line := self._lines.next_line()) is None:
            self._sock.settimeout(max(0.001, deadline - time.monotonic()))
            data = self._sock.recv(_CHUNK)
            if not data:
                raise OSError("it ended before it answered; is it still running?")
            self._lines.feed(data)
        return line


def _sentence(problem: ControlError) -> str:
    text = escape(problem.text, _TEXT_MOST)
    return f"{text} (please report this)" if problem.code == Code.INTERNAL else text


def _why_not(path: Path, problem: OSError) -> str:
    """Why there is no connection, and what to do about it."""
    serve = f"pcisplit serve ... --control {path}"
    if isinstance(problem, FileNotFoundError):
        return f"there is no socket {path}; is a backend running with it? Start one: {serve}"
    if isinstance(problem, PermissionError):
        try:
            owner = f"uid {path.stat().st_uid}"
        except OSError:
            owner = "its owner"
        return f"uid {os.geteuid()} may not use {path}: it is for {owner} alone, who runs the backend, and for root"
    if isinstance(problem, ConnectionRefusedError) and not path.is_socket():
        return f"{path} is no socket; give the path that serve was given with --control"
    if isinstance(problem, ConnectionRefusedError):
        return f"nobody listens at {path} any more: its backend has ended. Start it again: {serve}"
    if problem.errno == errno.EPROTOTYPE:
        return f"{path} is where fronts meet the backend (--socket); give the path of its --control"
    if isinstance(problem, BlockingIOError):
        return f"the backend at {path} does not accept; it may be stopped or stuck: look at its log and at its process"
    return f"cannot connect to {path}: {problem.strerror or problem}"
