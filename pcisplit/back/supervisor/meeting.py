# SPDX-License-Identifier: MIT
"""Meetings: admit, read the hello, refuse with a sentence or give a session. Costs the supervisor microseconds [MEET-23].

Everything that takes time - opening, resetting, serving - happens in other processes, one task per connection waits for it.
"""

import contextlib
import fcntl
import itertools
import termios
import traceback

import structlog
import trio

from pcisplit import wire
from pcisplit.back.channel import rights
from pcisplit.back.log import bug, escape
from pcisplit.back.supervisor.house import House
from pcisplit.back.supervisor.registry import Peer, Registry
from pcisplit.back.supervisor.session import Session
from pcisplit.back.supervisor.sockets import peer_of
from pcisplit.proto.errors import DeviceError, RemoteProtocolError, error_name
from pcisplit.proto.meeting import Hello, Reply, parse_hello_untrusted
from pcisplit.wire import Error

#: Connections beyond the limit of their uid that may wait for their refusal at once; the others get no sentence.
_TURNED_AWAY = 512
#: Seconds between attempts to let go of a group that could not be let go of at the end of its session.
_LATE_FIRST, _LATE_MOST = 1.0, 30.0
_DEAD_SECONDS = 1.0  #: for the kernel to end what was killed, before that counts as held by its front


class Meetings:
    """Meets fronts, for as long as its nursery lives. `house` is what sessions share."""

    def __init__(self, registry: Registry, house: House, nursery: trio.Nursery) -> None:
        self._registry, self._house, self._nursery = registry, house, nursery
        self._numbers = itertools.count(1)
        self._turned_away = 0
        self.sessions: dict[int, Session] = {}
        self.count = self.refused = 0

    async def connection(self, connection: trio.socket.SocketType) -> None:
        """One connection from its first to its last moment. Nothing that happens in it ends the others [THR-3]."""
        with connection:
            peer = peer_of(connection)
            try:
                await self._admit(connection, peer)
            except OSError as problem:  # the peer hung up between two of our steps, or we ran out of something
                self._house.log(peer.uid, "connection lost", pid=peer.pid, problem=str(problem))
            except Exception:  # a bug of ours
                structlog.get_logger("pcisplit").exception("session failed; please report this", uid=peer.uid)

    async def _admit(self, connection: trio.socket.SocketType, peer: Peer) -> None:
        try:
            self._registry.enter(peer)
        except RemoteProtocolError as problem:
            await self._turn_away(connection, peer, problem)
            return
        try:
            await self._meet(connection, peer)
        finally:
            self._registry.leave(peer)

    async def _turn_away(self, connection: trio.socket.SocketType, peer: Peer, problem: RemoteProtocolError) -> None:
        """Refuse a peer that may not even say hello; its hello, unread, would take the refusal with it [MEET-21]."""
        if self._turned_away == _TURNED_AWAY:
            return  # each of them holds a descriptor for up to a second
        self._turned_away += 1
        try:
            with contextlib.suppress(OSError), trio.move_on_after(wire.HELLO_TIMEOUT_MS / 1000):
                await connection.recv(wire.HELLO_MAX)
            await self._refuse(connection, peer, problem.code, str(problem))
        finally:
            self._turned_away -= 1

    async def _meet(self, connection: trio.socket.SocketType, peer: Peer) -> None:
        hello = await self._hello(connection, peer)
        if hello is None:
            return
        number = next(self._numbers)
        try:
            entries, needs = self._registry.claim(hello, peer, number)
        except RemoteProtocolError as problem:
            await self._refuse(connection, peer, problem.code, str(problem))
            return
        quarantined = {entry.name: "its session was not torn down" for entry in entries}
        session = refusal = None
        try:
            session = Session(number, hello, peer, entries, needs, self._house)
            self.sessions[number] = session
            self.count += 1
            refusal = await self._session(connection, session)
        finally:
            # Cancelled or not, whatever was raised: a session that was begun is torn down to the end.
            with trio.CancelScope(shield=True):
                try:
                    if session is not None:
                        quarantined = await session.close()
                        self._tell_over(session)
                finally:
                    self.sessions.pop(number, None)
                    self._registry.release(entries, quarantined)
                    if session is not None:
                        await self._bury(session, peer)
        await self._until_read(connection)
        if refusal is not None:  # told when nothing is held any more [MEET-15]
            await self._refuse(connection, peer, *refusal)

    async def _until_read(self, connection: trio.socket.SocketType) -> None:
        """Hold the connection, which counts against its uid [MEET-14], until the front has read its reply or is gone.

        A reply that is not read keeps its descriptors in flight, of which a uid may have only so many (unix(7),
        ETOOMANYREFS): a front could use up ours by meeting again and again without reading.
        """
        unread = bytearray(4)
        while fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, unread) == 0 and any(unread):
            await trio.sleep(0.2)

    async def _hello(self, connection: trio.socket.SocketType, peer: Peer) -> Hello | None:
        """The hello, or None after the refusal. Plain recv: descriptors that come along are dropped by the kernel [MEET-12]."""
        data = b""
        with trio.move_on_after(wire.HELLO_TIMEOUT_MS / 1000) as deadline:
            data = await connection.recv(wire.HELLO_MAX + 1)
        if deadline.cancelled_caught:
            await self._refuse(connection, peer, Error.TIMEOUT, "no hello within 1 s: send it right after connecting")
            return None
        if not data:
            return None
        try:
            return parse_hello_untrusted(data)
        except RemoteProtocolError as problem:
            await self._refuse(connection, peer, problem.code, str(problem))
            return None

    async def _refuse(self, connection: trio.socket.SocketType, peer: Peer, code: Error, text: str) -> None:
        self.refused += 1
        self._house.log(peer.uid, "refused", error=error_name(code), why=escape(text, 240), pid=peer.pid)
        with trio.move_on_after(1), contextlib.suppress(OSError):
            await connection.send(Reply(code, text).to_bytes())

    async def _session(self, connection: trio.socket.SocketType, session: Session) -> tuple[Error, str] | None:
        """Open, answer, serve until it ends. Returns the refusal if it could not be opened."""
        try:
            boot_info, fds = await session.open(self._nursery)
        except (DeviceError, OSError, ValueError) as problem:
            code = problem.code if isinstance(problem, DeviceError) else Error.DEVICE_FAILED
            session.end(code)
            return code, str(problem)
        names = ", ".join(entry.name for entry in session.entries)
        self._house.log(session.peer.uid, "session", session=session.number, driver=session.driver, devices=names)
        minor = min(session.hello.minor, wire.MINOR)
        reply = Reply(boot_info=boot_info, fds=len(fds), minor=minor).to_bytes()
        with trio.fail_after(1):
            await connection.sendmsg([reply], rights(fds))
        session.replied()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch, connection, session)
            await session.serve()
            nursery.cancel_scope.cancel()
        return None

    async def _watch(self, connection: trio.socket.SocketType, session: Session) -> None:
        """The socket says one thing after the meeting: that the peer is gone [LIFE-4, MEET-13]."""
        data = b""
        with contextlib.suppress(OSError):
            data = await connection.recv(1)
        if data:
            self._house.log(session.peer.uid, "front wrote to the socket after its hello", session=session.number)
        session.end(Error.BAD_REQUEST if data else Error.SUCCESS)

    async def _bury(self, session: Session, peer: Peer) -> None:
        """What is left of a session: at most a process that sleeps in the kernel, which counts against the uid of its front."""
        if session.unclean:
            self._nursery.start_soon(self._finish_late, session)
        with trio.move_on_after(_DEAD_SECONDS):
            await session.processes_dead()
            return
        self._registry.hold(peer)
        self._nursery.start_soon(self._bury_late, session, peer)

    async def _bury_late(self, session: Session, peer: Peer) -> None:
        try:
            await session.processes_dead()
        finally:
            self._registry.leave(peer)

    async def _finish_late(self, session: Session) -> None:
        """A group that could not be let go of - a worker that sleeps in the kernel, a descriptor on its way - is tried again."""
        pause = _LATE_FIRST
        while session.unclean:
            await trio.sleep(pause)
            pause = min(2 * pause, _LATE_MOST)
            try:
                late = await session.finish_late()
            except Exception:  # a bug of ours: its devices stay quarantined, the others go on
                bug("session failed; please report this", traceback.format_exc())
                return
            for name, why in late.items():
                self._registry.entries[name].quarantined = why
                if not why:
                    structlog.get_logger("pcisplit").info("released", device=name, session=session.number)

    def _tell_over(self, session: Session) -> None:
        problems = [step for step in session.steps if step.problem]
        log, uid, number = self._house.log, session.peer.uid, session.number
        for step in problems[:8]:
            log(uid, "teardown", "warning", session=number, step=step.name, device=step.device, problem=step.problem)
        log(
            uid,
            "session over",
            session=number,
            driver=session.driver,
            reason=error_name(session.reason),
            problems=len(problems),
            refused=session.refusals,
            steps=[str(step) for step in session.steps],
        )
