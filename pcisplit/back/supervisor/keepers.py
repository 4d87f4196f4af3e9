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
from pcisplit.errors import DeviceError
from pcisplit.wire import Error

OPEN_SECONDS = 20.0  #: an acquire may reset; vfio-pci resets at the first open
MAP_SECONDS = 60.0  #: pinning; gigabytes of 4 KiB pages take seconds
RESET_SECONDS = 10.0
FINISH_SECONDS = 60.0  #: 1 s of transactions and a reset per function, and a worker that takes its time to die

_log = structlog.get_logger("pcisplit")


class Keeper:
    """The keeper of one group, for one session at a time."""

    def __init__(self, group: str, process: Process, again: "Keepers", nursery: trio.Nursery) -> None:
        self.group, self._process, self._again, self._nursery = group, process, again, nursery
        self._whats: list[Mapping[str, Any]] = []
        process.line.listeners["log"] = self._hear

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
        self._whats = list(whats)
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
        said, fds = await self._process.line.ask(
            message["do"], RESET_SECONDS, bdf=what["bdf"], method=int(message.get("method", 0))
        )
        close_all(fds)
        return said

    async def finish(self) -> tuple[list[Step], str, dict[str, str]]:
        """The safe order. Returns its steps; why the group cannot be let go of, if so; why a function was not reset, by spec.

        A keeper that died is followed by another, which opens the group anew and does the same.
        """
        try:
            said, fds = await self._process.line.ask("finish", FINISH_SECONDS)
            close_all(fds)
            return [Step(*step) for step in said["steps"]], said["unclean"], said["unreset"]
        except DeviceError as problem:
            dead = self._process.ended
            self._again.lose(self)
            if not dead:
                return [Step("keeper", "", "", str(problem))], f"its keeper hangs: {problem}", {}
            return await self._recover(str(problem))

    async def _recover(self, why: str) -> tuple[list[Step], str, dict[str, str]]:
        steps = [Step("keeper", "", "", why)]
        try:
            with trio.fail_after(FINISH_SECONDS):
                other = await self._again.get(self._nursery, self.group)
                said, fds = await other._process.line.ask("recover", FINISH_SECONDS, devices=self._whats)
                close_all(fds)
        except (DeviceError, OSError, trio.TooSlowError) as problem:
            return steps, f"its keeper died, and the next one cannot have it: {problem}", {}
        return steps + [Step(*step) for step in said["steps"]], said["unclean"], said["unreset"]

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
        self._by_group: dict[str, Keeper] = {}

    async def get(self, nursery: trio.Nursery, group: str) -> Keeper:
        """The keeper of a group, forked if there is none. Raises DeviceError, OSError."""
        keeper = self._by_group.get(group)
        if keeper is None or not keeper.usable:
            process = await self._zygote.fork(nursery, "keeper", f"the keeper of {group}")
            keeper = self._by_group[group] = Keeper(group, process, self, nursery)
        return keeper

    def lose(self, keeper: Keeper) -> None:
        """It died or hangs; nobody is to use it again."""
        if self._by_group.get(keeper.group) is keeper:
            del self._by_group[keeper.group]
        keeper.drop()

    async def shut(self) -> None:
        for keeper in list(self._by_group.values()):
            await keeper.shut()
        self._by_group.clear()
