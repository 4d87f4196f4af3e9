# SPDX-License-Identifier: MIT
"""The keepers as the supervisor knows them: one process per IOMMU group, which alone opens, maps and puts in order."""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import structlog
import trio

from pcisplit.back.channel import Message, close_all
from pcisplit.back.supervisor.processes import Process, Zygote
from pcisplit.back.teardown import Step
from pcisplit.proto.errors import DeviceError
from pcisplit.wire import Error

OPEN_SECONDS = 20.0  #: an acquire may reset; vfio-pci resets at the first open
MAP_SECONDS = 60.0  #: pinning; gigabytes of 4 KiB pages take seconds
RESET_SECONDS = 10.0
KILL_SECONDS = 2.0  #: for the kernel to end a keeper that was killed
FINISH_SECONDS = 60.0  #: 1 s of transactions and a reset per function, and a worker that takes its time to die

_log = structlog.get_logger("pcisplit")


class KeeperLine:
    """The way to the keeper of one group, for one session at a time; it goes on to the next keeper when one dies."""

    def __init__(self, group: str, process: Process, again: "Keepers", nursery: trio.Nursery) -> None:
        self.group, self._process, self._again, self._nursery = group, process, again, nursery
        self._whats: list[Mapping[str, Any]] = []
        self._worker: Process | None = None
        self._asking = trio.Lock()
        self._listen()

    def _listen(self) -> None:
        self._process.line.listeners["log"] = self._hear

    def _hear(self, message: Message) -> None:
        getattr(_log, message["level"])(message["event"], **message["fields"])

    @property
    def gone(self) -> trio.Event:
        """Set when it has ended."""
        return self._process.line.gone

    @property
    def usable(self) -> bool:
        return not self.gone.is_set()

    async def open(
        self, worker: Process, whats: Sequence[Mapping[str, Any]]
    ) -> tuple[list[Mapping[str, Any]], list[int]]:
        """Acquire these functions for the session of `worker`: what each is, and a descriptor of each. Raises DeviceError."""
        self._whats, self._worker = list(whats), worker
        said, fds = await self._process.line.ask("open", OPEN_SECONDS, [worker.pidfd], devices=list(whats))
        if len(fds) != len(whats):
            close_all(fds)
            raise DeviceError(Error.QUOTA, f"no descriptors are left for the devices of {self.group}")
        return said["functions"], fds

    async def map(self, memory: int, size: int, iova: int) -> None:
        """Let the devices of the group reach `size` octets of a memfd. Raises DeviceError."""
        await self._process.line.ask("map", MAP_SECONDS, [memory], size=size, iova=iova)

    async def serve(self, what: Mapping[str, Any], message: Message) -> dict[str, Any]:
        """A worker's request for what only a keeper may do, checked by the caller to be of its own device."""
        arguments = {"bdf": what["bdf"], "method": int(message.get("method", 0))}
        async with self._asking:  # a keeper does one thing after another, and so does a worker that lies
            said, fds = await self._process.line.ask(message["do"], RESET_SECONDS, **arguments)
        close_all(fds)
        return said

    async def finish(self) -> tuple[list[Step], str, dict[str, str]]:
        """The safe order. Returns its steps; why the group cannot be let go of, if so; why a function was not reset, by spec.

        A keeper that died is followed by another, which opens the group anew and does the same; one that hangs is killed, and
        followed when it is dead. Can be called again for what could not be done.
        """
        steps: list[Step] = []
        if self.usable:
            try:
                return await self._order("finish")
            except DeviceError as problem:
                steps.append(Step("keeper", "", "", str(problem)))
                self._process.kill()
        if not await self._process.wait_ended(KILL_SECONDS):
            return steps, "its keeper hangs: it sleeps in the kernel", {}
        self._process.forget()
        worker = [self._worker.pidfd] if self._worker is not None and self._worker.pidfd >= 0 else []
        try:
            self._process = await self._again.fork(self._nursery, self.group)
            self._listen()
            found, unclean, unreset = await self._order("recover", worker, devices=self._whats)
        except (DeviceError, OSError) as problem:
            return steps, f"its keeper died, and the next one cannot have it: {problem}", {}
        return steps + found, unclean, unreset

    async def _order(
        self, do: str, fds: Sequence[int] = (), **arguments: Any
    ) -> tuple[list[Step], str, dict[str, str]]:
        said, brought = await self._process.line.ask(do, FINISH_SECONDS, fds, **arguments)
        close_all(brought)
        return [Step(*step) for step in said["steps"]], said["unclean"], said["unreset"]

    async def shut(self) -> None:
        """Let the group go, at the end of serve."""
        with contextlib.suppress(DeviceError):
            await self._process.line.ask("shut", FINISH_SECONDS)
        if not await self._process.wait_ended(5.0):
            self._process.kill()
        self._process.forget()

    def drop(self) -> None:
        self._process.kill()
        self._process.forget()


class Keepers:
    """All of them, by group. A group without devices in use keeps its keeper: it holds the group."""

    def __init__(self, zygote: Zygote) -> None:
        self._zygote = zygote
        self._by_group: dict[str, KeeperLine] = {}

    async def get(self, nursery: trio.Nursery, group: str) -> KeeperLine:
        """The keeper of a group, forked if there is none. Raises DeviceError, OSError."""
        keeper = self._by_group.get(group)
        if keeper is not None and not keeper.usable:  # it died between two sessions
            keeper.drop()
            keeper = None
        if keeper is None:
            keeper = self._by_group[group] = KeeperLine(group, await self.fork(nursery, group), self, nursery)
        return keeper

    async def fork(self, nursery: trio.Nursery, group: str) -> Process:
        """A process that can become the keeper of a group. Raises DeviceError, OSError."""
        return await self._zygote.fork(nursery, "keeper", f"the keeper of {group}")

    async def shut(self) -> None:
        for keeper in list(self._by_group.values()):
            await keeper.shut()
        self._by_group.clear()
