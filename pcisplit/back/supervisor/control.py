# SPDX-License-Identifier: MIT
"""The control socket, served: who connects, what he asks, what he is told. What there is to tell comes from a source.

Every client is a task of its own, so one that waits for a detach keeps nobody from a list. Whoever can connect may do
everything: the socket has mode 0600. Still nothing that a client does, or leaves undone, costs more than its own place.
"""

import dataclasses
import socket
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any, Protocol

import structlog
import trio

from pcisplit.back.control_protocol import (
    COMMANDS,
    REQUEST_MAX,
    Code,
    ControlError,
    ControlRequest,
    Lines,
    answer,
    parse_request_untrusted,
    refusal,
)
from pcisplit.back.log import LimitedLog, escape
from pcisplit.back.supervisor.registry import Peer
from pcisplit.back.supervisor.sockets import listening, peer_of

_CHUNK = 16 << 10
_TURN_AWAY_SECONDS = 1.0
_LOGGED = {"detach", "attach"}  # what changes something is in the log, with who asked


class ControlSource(Protocol):
    """What the supervisor tells and does. docs/control.md has the shapes of the results.

    Each call raises ControlError with a sentence that says what to do, keeps a deadline of its own (shorter than the
    command's in COMMANDS, after which it is cancelled), and may run beside any other.
    """

    async def list(self) -> dict[str, Any]:
        """Supervisor, devices, sessions."""

    async def dump(self, name: str, hardware: bool) -> dict[str, Any]:
        """Configuration space of one device, as its front sees it or as the hardware says."""

    async def stats(self, name: str | None) -> dict[str, Any]:
        """Counters of everything, or of one device and its session."""

    async def detach(self, name: str) -> dict[str, Any]:
        """End the session that has the device and withhold it. Returns when the session is torn down."""

    async def attach(self, name: str) -> dict[str, Any]:
        """Offer a detached device again."""


@dataclasses.dataclass(frozen=True, slots=True)
class Limits:
    clients: int = 8  #: at once; one more is told so and let go
    write_seconds: float = 5.0  #: for an answer to be read
    idle_seconds: float = 60.0  #: from an answer to the end of the next request


def control_socket(path: Path) -> AbstractContextManager[socket.socket]:
    """The listening socket for ``ControlServer.run``, for its owner alone. Raises OSError, ValueError."""
    return listening(path, socket.SOCK_STREAM, 0o600)


class ControlServer:
    """Serves `source` to control clients; see ``run``."""

    def __init__(self, source: ControlSource, limits: Limits | None = None) -> None:
        self._source, self._limits = source, limits or Limits()
        self._clients = 0
        self._log = LimitedLog()

    async def run(self, sock: socket.socket) -> None:
        """Serve a listening SOCK_STREAM socket (``control_socket``) until cancelled."""
        listener = trio.socket.from_stdlib_socket(sock)
        async with trio.open_nursery() as nursery:
            while True:
                try:
                    connection, _ = await listener.accept()
                except OSError as problem:  # no descriptor left: somebody else's doing, and no reason to end
                    self._log("cannot accept a control client", problem=str(problem))
                    await trio.sleep(0.1)
                    continue
                if self._clients == self._limits.clients:
                    await self._turn_away(connection)
                    continue
                self._clients += 1
                nursery.start_soon(self._client, connection)

    async def _turn_away(self, connection: trio.socket.SocketType) -> None:
        """One sentence, which always fits into a fresh socket."""
        text = f"{self._limits.clients} control clients are connected, which is all that may be; end one of them"
        with connection, suppress(OSError), trio.move_on_after(_TURN_AWAY_SECONDS):
            await self._send(connection, refusal(ControlError(Code.TOO_MANY_CLIENTS, text)))

    async def _client(self, connection: trio.socket.SocketType) -> None:
        """One client from its first to its last moment. Nothing that happens in it ends the others."""
        try:
            with connection:
                peer = peer_of(connection)
                await self._talk(connection, peer)
        except trio.TooSlowError:
            self._log("control client does not read its answer", uid=peer.uid, pid=peer.pid)
        except OSError:
            pass  # it died, or hung up in the middle: its own affair
        except Exception:  # a bug of ours
            structlog.get_logger("pcisplit").exception("control client failed; please report this")
        finally:
            self._clients -= 1

    async def _talk(self, connection: trio.socket.SocketType, peer: Peer) -> None:
        lines = Lines(REQUEST_MAX)
        try:
            while (line := await self._next_line(connection, lines)) is not None:
                await self._send(connection, await self._answer(line, peer))
        except ControlError as problem:  # the last word: where the next request begins is not known any more
            await self._send(connection, refusal(problem))  # a stream delivers it before it tells of the hang-up

    async def _next_line(self, connection: trio.socket.SocketType, lines: Lines) -> bytes | None:
        """The next request, or None when the client has hung up. Raises ControlError, after which nothing is read."""
        with trio.move_on_after(self._limits.idle_seconds):
            while (line := lines.next_line()) is None:
                data = await connection.recv(_CHUNK)
                if not data:
                    return None
                lines.feed(data)
            return line
        raise ControlError(
            Code.TIMEOUT, f"no request for {self._limits.idle_seconds:g} s; connect again when there is one"
        )

    async def _answer(self, line: bytes, peer: Peer) -> bytes:
        """The line that answers `line`. Never raises, but for cancellation."""
        ident = None
        try:
            request = parse_request_untrusted(line)
            ident = request.id
            return answer(ident, await self._call(request, peer))
        except ControlError as problem:
            problem.id = problem.id if ident is None else ident
            return refusal(problem)
        except Exception:
            structlog.get_logger("pcisplit").exception("control command failed; please report this")
            return refusal(ControlError(Code.INTERNAL, "a bug in the backend; its log has the traceback", ident))

    async def _call(self, request: ControlRequest, peer: Peer) -> dict[str, Any]:
        if request.do in _LOGGED:
            name = escape(str(request.arguments["name"]))
            self._log("control", do=request.do, device=name, uid=peer.uid, pid=peer.pid)
        method: Callable[..., Awaitable[dict[str, Any]]] = getattr(
            self._source, request.do
        )  # COMMANDS has checked the name
        seconds = COMMANDS[request.do].seconds
        with trio.move_on_after(seconds):
            return await method(**request.arguments)
        raise ControlError(Code.TIMEOUT, f"{request.do} was not done within {seconds:g} s; list tells how things stand")

    async def _send(self, connection: trio.socket.SocketType, data: bytes) -> None:
        """All of `data`. Raises TooSlowError for a client that does not read: no more is kept for it than one answer."""
        with trio.fail_after(self._limits.write_seconds):
            rest = memoryview(data)
            while rest:
                rest = rest[await connection.send(rest) :]
