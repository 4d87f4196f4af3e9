# SPDX-License-Identifier: MIT
"""The trio shell: listen, meet, one nursery per session, shut down. Everything that blocks runs in a thread."""

import array
import contextlib
import fcntl
import itertools
import os
import signal
import socket
import termios
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import structlog
import trio

from pcisplit import wire
from pcisplit.back.log import LimitedLog, escape
from pcisplit.back.supervisor.registry import Peer, Registry
from pcisplit.back.supervisor.sockets import listening, peer_of
from pcisplit.back.worker.session import BackSession
from pcisplit.errors import DeviceError, RemoteProtocolError, error_name
from pcisplit.messages import Hello, Reply, parse_hello_untrusted
from pcisplit.wire import Error

#: Threads for serve loops and owners: 16 sessions of 16 devices and some.
_THREADS = 512
#: Connections beyond the limit of their uid that may wait for their refusal at once; the others get no sentence.
_TURNED_AWAY = 512

Log = structlog.stdlib.BoundLogger
T = TypeVar("T")


class Server:
    """A backend at work. ``run`` serves until it is cancelled and then tears every session down."""

    def __init__(self, registry: Registry, path: Path, *, spin: float = 50e-6, allow_no_reset: bool = False) -> None:
        self._registry, self.path = registry, path
        self._spin, self._allow_no_reset = spin, allow_no_reset
        self._numbers = itertools.count(1)
        self._limiter = trio.CapacityLimiter(_THREADS)
        self._turned_away = 0
        self._limited = LimitedLog()
        self._log = structlog.get_logger("pcisplit")

    async def run(self, sock: socket.socket) -> None:
        """Accept at a listening socket until cancelled; every session is torn down before this returns."""
        listener = trio.socket.from_stdlib_socket(sock)
        self._log.info("serving", socket=str(self.path), devices=", ".join(self._registry.entries))
        async with trio.open_nursery() as nursery:
            while True:
                try:
                    connection, _ = await listener.accept()
                except OSError as problem:  # no descriptor left: fronts can cause that, so it must not end us [THR-3]
                    self._limited("cannot accept", problem=str(problem))
                    await trio.sleep(0.1)
                    continue
                nursery.start_soon(self._connection, connection)

    # -- one connection ---------------------------------------------------------------------------------------

    async def _connection(self, connection: trio.socket.SocketType) -> None:
        """One connection from its first to its last moment. Nothing that happens in it ends the others [THR-3]."""
        with connection:
            peer = peer_of(connection)
            log = self._log.bind(uid=peer.uid, pid=peer.pid)
            try:
                await self._admit(connection, peer, log)
            except OSError as problem:  # the peer hung up between two of our steps, or we ran out of something
                self._limited("connection lost", uid=peer.uid, pid=peer.pid, problem=str(problem))
            except Exception:  # a bug of ours
                log.exception("session failed; please report this")

    async def _admit(self, connection: trio.socket.SocketType, peer: Peer, log: Log) -> None:
        try:
            self._registry.enter(peer)
        except RemoteProtocolError as problem:
            await self._turn_away(connection, log, problem)
            return
        try:
            await self._meet(connection, peer, log)
        finally:
            self._registry.leave(peer)

    async def _turn_away(self, connection: trio.socket.SocketType, log: Log, problem: RemoteProtocolError) -> None:
        """Refuse a peer that may not even say hello; its hello, unread, would take the refusal with it [MEET-21]."""
        if self._turned_away == _TURNED_AWAY:
            return  # each of them holds a descriptor for up to a second
        self._turned_away += 1
        try:
            with contextlib.suppress(OSError), trio.move_on_after(wire.HELLO_TIMEOUT_MS / 1000):
                await connection.recv(wire.HELLO_MAX)
            await self._refuse(connection, log, problem.code, str(problem))
        finally:
            self._turned_away -= 1

    async def _meet(self, connection: trio.socket.SocketType, peer: Peer, log: Log) -> None:
        hello = await self._hello(connection, log)
        if hello is None:
            return
        number = next(self._numbers)
        try:
            entries, needs = self._registry.claim(hello, peer, number)
        except RemoteProtocolError as problem:
            await self._refuse(connection, log, problem.code, str(problem))
            return
        session = BackSession(number, hello, entries, needs, self._registry.dma_limit, self._spin, self._allow_no_reset)
        log = log.bind(session=number, driver=escape(hello.driver))
        refusal = None
        try:
            refusal = await self._session(connection, session, log)
        finally:
            # Cancelled or not: a session that was opened is torn down to the end, in a thread that nothing interrupts.
            with trio.CancelScope(shield=True):
                await self._close(session, log)
            self._registry.release(entries)
        await self._until_read(connection)
        if refusal is not None:  # told when nothing is held any more [MEET-15]
            await self._refuse(connection, log, *refusal)

    async def _until_read(self, connection: trio.socket.SocketType) -> None:
        """Hold the connection, which counts against its uid [MEET-14], until the front has read its reply or is gone.

        A reply that is not read keeps its descriptors in flight, of which a uid may have only so many (unix(7),
        ETOOMANYREFS): a front could use up ours by meeting again and again without reading.
        """
        unread = bytearray(4)
        while fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, unread) == 0 and any(unread):
            await trio.sleep(0.2)

    async def _hello(self, connection: trio.socket.SocketType, log: Log) -> Hello | None:
        """The hello, or None after the refusal. Plain recv: descriptors that come along are dropped by the kernel [MEET-12]."""
        data = b""
        with trio.move_on_after(wire.HELLO_TIMEOUT_MS / 1000) as deadline:
            data = await connection.recv(wire.HELLO_MAX + 1)
        if deadline.cancelled_caught:
            await self._refuse(connection, log, Error.TIMEOUT, "no hello within 1 s: send it right after connecting")
            return None
        if not data:
            return None
        try:
            return parse_hello_untrusted(data)
        except RemoteProtocolError as problem:
            await self._refuse(connection, log, problem.code, str(problem))
            return None

    async def _refuse(self, connection: trio.socket.SocketType, log: Log, code: Error, text: str) -> None:
        self._limited("refused", error=error_name(code), why=escape(text, 240), **structlog.get_context(log))
        with trio.move_on_after(1), contextlib.suppress(OSError):
            await connection.send(Reply(code, text).to_bytes())

    # -- one session ------------------------------------------------------------------------------------------

    async def _session(
        self, connection: trio.socket.SocketType, session: BackSession, log: Log
    ) -> tuple[Error, str] | None:
        """Open, answer, serve until it ends. Returns the refusal if it could not be opened."""
        try:
            boot_info, fds = await self._in_thread(session.open)
        except (DeviceError, OSError, ValueError) as problem:
            code = problem.code if isinstance(problem, DeviceError) else Error.DEVICE_FAILED
            return code, str(problem)
        log.info("session", devices=", ".join(entry.name for entry in session.entries))
        reply = Reply(boot_info=boot_info, fds=len(fds), minor=0).to_bytes()
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds).tobytes())
        with trio.fail_after(1):
            await connection.sendmsg([reply], [rights])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch, connection, session, log)
            for owner in session.owners:
                nursery.start_soon(self._in_thread, owner.run)
            nursery.start_soon(self._stop_when_cancelled, session)
            await self._in_thread(session.serve)
            session.stop_owners()
            nursery.cancel_scope.cancel()
        return None

    async def _watch(self, connection: trio.socket.SocketType, session: BackSession, log: Log) -> None:
        """The socket says one thing after the meeting: that the peer is gone [LIFE-4, MEET-13]."""
        data = b""
        with contextlib.suppress(OSError):
            data = await connection.recv(1)
        if data:
            log.info("front wrote to the socket after its hello")
            session.end(Error.BAD_REQUEST)
        session.stop()

    async def _stop_when_cancelled(self, session: BackSession) -> None:
        try:
            await trio.sleep_forever()
        finally:
            session.stop()
            session.stop_owners()

    async def _close(self, session: BackSession, log: Log) -> None:
        teardown = await self._in_thread(session.close)
        for step in teardown.problems:
            log.warning("teardown", step=step.name, device=step.device, problem=step.problem)
        refusals = {name: counts for name, counts in session.refusals.items() if counts}
        steps = [f"{' '.join(step[:2]).strip()}: {step.problem or step.result or 'done'}" for step in teardown.steps]
        reason, problems = error_name(session.reason), len(teardown.problems)
        log.info("session over", reason=reason, problems=problems, refused=refusals, steps=steps)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await trio.to_thread.run_sync(work, limiter=self._limiter)


async def serve_until_signal(server: Server) -> None:
    """Run until SIGTERM or SIGINT, then tear down. Raises OSError and ValueError when the socket cannot be made."""
    with listening(server.path) as sock, trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.run, sock)
            async for number in signals:
                structlog.get_logger("pcisplit").info("stopping", signal=signal.Signals(number).name, pid=os.getpid())
                nursery.cancel_scope.cancel()
                break
