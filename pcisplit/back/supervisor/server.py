# SPDX-License-Identifier: MIT
"""The supervisor: one thread, trio. It listens, meets, watches and shuts down; it maps nothing and touches no device."""

import contextlib
import dataclasses
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import structlog
import trio

from pcisplit.back.log import LINES_PER_SECOND, LimitedLog, PeerLog
from pcisplit.back.supervisor.control import ControlServer, control_socket
from pcisplit.back.supervisor.house import House
from pcisplit.back.supervisor.keepers import Keepers
from pcisplit.back.supervisor.meeting import Meetings
from pcisplit.back.supervisor.processes import Zygote
from pcisplit.back.supervisor.registry import Registry
from pcisplit.back.supervisor.sockets import listening
from pcisplit.back.supervisor.source import Source
from pcisplit.back.supervisor.uids import WorkerUids
from pcisplit.proto.errors import PcisplitError


class ZygoteDied(PcisplitError):
    """No session can be opened any more."""


@dataclasses.dataclass(frozen=True, slots=True)
class Options:
    """What ``serve`` was told beside the devices. `spin` in seconds, `log_lines` per second and uid."""

    spin: float = 50e-6
    allow_no_reset: bool = False
    control: Path | None = None
    worker_uids: WorkerUids = dataclasses.field(default_factory=WorkerUids)
    log_lines: int = LINES_PER_SECOND


class Server:
    """A backend at work, on the socket at `path`. `zygote` is our end of the zygote's channel."""

    def __init__(self, registry: Registry, path: Path, zygote: socket.socket, options: Options) -> None:
        self.registry, self.path, self.options = registry, path, options
        self._zygote_end = zygote
        self.stop: Callable[[], None] = lambda: None  #: end ``run``, when every session is torn down
        self.problem = ""  #: why it ended, if nobody asked for it
        self._log = structlog.get_logger("pcisplit")

    async def run(self, sock: socket.socket, control: socket.socket | None = None) -> None:
        """Accept at a listening socket, and at the operator's if there is one, until ``stop``.

        Every session is torn down before this returns.

        What reads the other processes outlives the sessions, whose teardown needs it: ``stop`` cancels sessions alone.
        """
        async with trio.open_nursery() as processes:
            zygote = Zygote(self._zygote_end)
            keepers = Keepers(zygote)
            log, options = PeerLog(self.options.log_lines), self.options
            house = House(
                zygote, keepers, options.worker_uids, log, self.registry.dma_limit, options.spin, options.allow_no_reset
            )
            processes.start_soon(zygote.line.run)
            try:
                async with trio.open_nursery() as nursery:
                    self.stop = nursery.cancel_scope.cancel
                    meetings = self.meetings = Meetings(self.registry, house, processes)
                    nursery.start_soon(self._watch_zygote, zygote)
                    workers = options.worker_uids.kind
                    self._log.info(
                        "serving", socket=str(self.path), devices=", ".join(self.registry.entries), worker_uids=workers
                    )
                    if control is not None:
                        source = Source(self.registry, meetings, self.path)
                        nursery.start_soon(ControlServer(source).run, control)
                    await self._accept(trio.socket.from_stdlib_socket(sock), meetings, nursery)
            finally:
                with trio.CancelScope(shield=True):
                    await keepers.shut()
                zygote.line.close()
                processes.cancel_scope.cancel()

    async def _accept(self, listener: trio.socket.SocketType, meetings: Meetings, nursery: trio.Nursery) -> None:
        limited = LimitedLog()
        while True:
            try:
                connection, _ = await listener.accept()
            except OSError as problem:  # no descriptor left: fronts can cause that, so it must not end us [THR-3]
                limited("cannot accept", problem=str(problem))
                await trio.sleep(0.1)
                continue
            nursery.start_soon(meetings.connection, connection)

    async def _watch_zygote(self, zygote: Zygote) -> None:
        """Workers die with it; what is left to do is to put the devices in order and to say why we end."""
        await zygote.line.gone.wait()
        self.problem = "the zygote died, so no session can be opened any more; restart the backend"
        self.stop()


async def serve_until_signal(server: Server) -> None:
    """Run until SIGTERM or SIGINT, then tear down. Raises OSError and ValueError when a socket cannot be made, ZygoteDied."""
    with contextlib.ExitStack() as held:
        sock = held.enter_context(listening(server.path))
        path = server.options.control
        control = held.enter_context(control_socket(path)) if path is not None else None
        signals = held.enter_context(trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_stop_at, server, signals)
            await server.run(sock, control)
            nursery.cancel_scope.cancel()
    if server.problem:
        raise ZygoteDied(server.problem)


async def _stop_at(server: Server, signals: AsyncIterator[int]) -> None:
    async for number in signals:
        structlog.get_logger("pcisplit").info("stopping", signal=signal.Signals(number).name, pid=os.getpid())
        server.stop()
