# SPDX-License-Identifier: MIT
"""One session as the supervisor has it: the descriptors, the worker, the keepers of its devices; opened, watched, ended.

The supervisor maps nothing of it and touches no device. What a worker says is hostile input; what counts for the host's safety
is what the keepers did after the worker was dead.
"""

import base64
import contextlib
import math
import os
import time
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

import trio

from pcisplit import wire
from pcisplit.back.channel import Message, close_all
from pcisplit.back.devices.device import IovaRange
from pcisplit.back.host import dma, resources
from pcisplit.back.host.windows import host_pci_windows
from pcisplit.back.log import bug, escape
from pcisplit.back.supervisor.facts import device_order, hardware_facts, model_facts, vectors_of
from pcisplit.back.supervisor.house import House
from pcisplit.back.supervisor.keepers import KeeperLine
from pcisplit.back.supervisor.processes import Line, Process, first_of
from pcisplit.back.supervisor.registry import Entry, Peer
from pcisplit.back.supervisor.report import (
    MALFORMED,
    log_untrusted,
    octets_untrusted,
    report_untrusted,
    stats_untrusted,
)
from pcisplit.back.supervisor.sealing import Sealer
from pcisplit.back.teardown import Step
from pcisplit.proto.errors import DeviceError
from pcisplit.proto.layout import Layout, relayed
from pcisplit.proto.meeting import Hello, Need
from pcisplit.wire import Error, VectorMode

OPEN_SECONDS = 10.0  #: for the worker to open: it maps and compiles; resets are the keepers'
CONNECT_SECONDS = 10.0  #: for the front, from the reply to Connected [LIFE-8]
STOP_SECONDS = 6.0  #: for the worker to say that it is over, when it was told to stop
KILL_SECONDS = 5.0  #: for the kernel to end a killed worker
REAP_SECONDS = 1.0  #: for the zygote to tell how a dead one died


class Session:
    """Call ``open``, ``serve``, and ``close`` whatever happened."""

    def __init__(
        self, number: int, hello: Hello, peer: Peer, entries: Sequence[Entry], needs: Sequence[Need], house: House
    ) -> None:
        self.number, self.hello, self.peer, self.entries = number, hello, peer, list(entries)
        self.since = time.time()
        self.driver = escape(hello.driver)
        self.features = hello.features & wire.BUILT
        self.reason = Error.SUCCESS
        self.steps: list[Step] = []
        self.refusals: dict[str, dict[str, int]] = {}
        self.over = trio.Event()  #: torn down to the end
        self.unclean: list[KeeperLine] = []  #: after ``close``: those that could not let go of their group yet
        self.worker: Process | None = None
        self._needs, self._house = list(needs), house
        self._keepers: list[KeeperLine] = []
        self._held: list[int] = []  # descriptors of ours, until the front has its own
        self._f2b = -1
        self.name = f"session {number}"
        self._sealer = Sealer(house.zygote, f"the sealer of {self.name}")
        self._uid: int | None = None
        self._said: Message | None = None  # the worker's last word
        self._not_reset: dict[str, str] = {}  # hardware whose reset failed, by name
        self._unreset: dict[str, str] | None = None  # what it says of its models that were not reset, by name
        self._ending = trio.Event()  # it is over for the worker, or for us
        self._heard = trio.Event()  # the worker's last word
        self._connected = trio.Event()
        self._replied = False  # the front was given the session
        self._begun = False  # the worker was told to open its models

    # -- opening ----------------------------------------------------------------------------------------------

    async def open(self, nursery: trio.Nursery) -> tuple[bytes, list[int]]:
        """Acquire everything. Returns the boot-info block and the descriptors of the reply. Raises DeviceError, OSError."""
        house = self._house
        for entry, need in zip(self.entries, self._needs, strict=True):
            if "bdf" not in entry.what:
                vectors_of(entry, need, model_facts(entry))  # before anything is begun for a hello that cannot be met
        self._uid = house.uids.take()
        worker = self.worker = await house.zygote.fork(nursery, "worker", f"the worker of {self.name}")
        self.hear(worker.line)
        functions, device_fds = await self._acquire(nursery, worker)
        made = self._make(functions)
        size, iova = await self._map(functions, made.dma)
        self._sealer.start(nursery)
        self._begun = True
        try:
            said, _ = await worker.line.ask(
                "open",
                OPEN_SECONDS,
                [*made.all(), *device_fds],
                number=self.number,
                features=int(self.features),
                minor=min(self.hello.minor, wire.MINOR),
                spin=house.spin,
                uid=self._uid,
                dma_size=size,
                dma_iova=iova,
                devices=[
                    device_order(entry, need, function, self.entries)
                    for entry, need, function in zip(self.entries, self._needs, functions, strict=True)
                ],
            )
            boot_info = base64.b64decode(str(said.get("boot_info")), validate=True)
        except (DeviceError, ValueError) as problem:
            code = problem.code if isinstance(problem, DeviceError) else Error.OP_FAILED
            raise DeviceError(code, escape(str(problem), 1000)) from None
        finally:
            self._drop(device_fds)
        resources.seal_b2f(made.b2f)
        self._drop([made.ring])
        self._f2b = made.f2b
        pairs = zip(self._needs, made.vectors, strict=True)
        direct = [fd for need, vectors in pairs for fd in vectors if need.mode is VectorMode.DIRECT]
        fds = [made.f2b, made.b2f, made.kick, made.rung, *([made.dma] if size else []), *direct]
        if len(fds) > wire.MAX_FDS:
            text = f"the session would need {len(fds)} descriptors, a reply carries {wire.MAX_FDS}: ask for fewer direct vectors"
            raise DeviceError(Error.TOO_MANY_VECTORS, text)
        return boot_info, fds

    def hear(self, line: Line) -> None:
        """What a worker may say, and who takes it."""
        line.listeners |= {"over": self._worker_over, "log": self._worker_log, "connected": self._front_connected}
        line.handlers |= {"initialised": self._seal, "hot_reset": self._by_keeper, "select_reset": self._by_keeper}

    async def _acquire(self, nursery: trio.Nursery, worker: Process) -> tuple[list[Mapping[str, Any]], list[int]]:
        """What each function is, as its keeper or its model says; and the descriptors of those that have one."""
        functions: dict[str, Mapping[str, Any]] = {}
        descriptors: dict[str, int] = {}
        groups: dict[str, list[Entry]] = {}
        for entry in self.entries:
            if "bdf" in entry.what:
                groups.setdefault(entry.device.group, []).append(entry)
            else:
                functions[entry.name] = model_facts(entry)
        for group, entries in groups.items():
            keeper = await self._house.keepers.get(nursery, group)
            self._keepers.append(keeper)
            said, fds = await keeper.open(worker, [entry.what for entry in entries])
            self._held += fds
            for entry, function, fd in zip(entries, said, fds, strict=True):
                functions[entry.name], descriptors[entry.name] = hardware_facts(function), fd
        return [functions[e.name] for e in self.entries], [
            descriptors[e.name] for e in self.entries if e.name in descriptors
        ]

    def _make(self, functions: Sequence[Mapping[str, Any]]) -> resources.Resources:
        counts = [vectors_of(*each) for each in zip(self.entries, self._needs, functions, strict=True)]
        size = dma.round_size(self._house.dma_limit if self.hello.dma_bytes == wire.DMA_ALL else self.hello.dma_bytes)
        memory = dma.create_memory(size)[0] if size else -1
        modes = [need.mode for need in self._needs]
        made = resources.create(counts, Layout.of(relayed(counts, modes), self.features), memory)
        self._held += [*made.all(), made.rung]
        return made

    async def _map(self, functions: Sequence[Mapping[str, Any]], memory: int) -> tuple[int, int]:
        """Place the window and let the hardware reach it; models do so themselves. Returns size and IOVA."""
        if memory < 0:
            return 0, 0
        size = os.fstat(memory).st_size
        bits = min(self.hello.dma_bits, *(function["dma_bits"] for function in functions))
        ranges = [[IovaRange(*pair) for pair in function["iova_ranges"]] for function in functions]
        after = max(entry.dma_after for entry in self.entries)
        windows = host_pci_windows() if self._keepers else []  # a model is behind no bridge
        iova = dma.place(size, bits, ranges, windows, after)
        for entry in self.entries:
            entry.dma_after = iova + size
        for keeper in self._keepers:
            await keeper.map(memory, size, iova)
        return size, iova

    def _drop(self, fds: Sequence[int]) -> None:
        """Close those of our descriptors that others have now; never one twice."""
        close_all([fd for fd in fds if fd in self._held])
        self._held = [fd for fd in self._held if fd not in fds]

    def replied(self) -> None:
        """The front has its descriptors on their way: all we need is f2b, for its last seals."""
        self._replied = True
        self._drop([fd for fd in self._held if fd != self._f2b])

    # -- what the worker says ---------------------------------------------------------------------------------

    def _worker_over(self, message: Message) -> None:
        if self._heard.is_set():
            return  # the first word is its last: what was made of that may be in use already
        self._said = message
        self._heard.set()
        self._ending.set()

    def _front_connected(self, message: Message) -> None:
        self._connected.set()

    def _worker_log(self, message: Message) -> None:
        """A line of the worker's log, as limited and escaped as if the front had written it."""
        level, event, fields = log_untrusted(message)
        self._house.log(self.peer.uid, event, level, session=self.number, **fields)

    async def _seal(self, message: Message) -> dict[str, Any]:
        """The front has mapped f2b: it gets its last seals, by a process that may hang in it [REG-3]."""
        if self._f2b < 0:
            raise DeviceError(Error.BUSY, "f2b is sealed already")
        fd, self._f2b = self._f2b, -1
        try:
            await self._sealer.seal(fd)
        finally:
            self._drop([fd])
        return {}

    async def _by_keeper(self, message: Message) -> dict[str, Any]:
        """What only the keeper of a device may do; the device must be of this session."""
        index = message["device"]
        if type(index) is not int or not 0 <= index < len(self.entries):
            raise DeviceError(Error.BAD_REQUEST, f"{self.name} has no such device")
        entry = self.entries[index]
        keeper = next((k for k in self._keepers if k.group == entry.device.group), None)
        if keeper is None:
            raise DeviceError(Error.NO_RESET, f"{entry.name} has no keeper")
        return await keeper.serve(entry.what, message)

    # -- the control plane ------------------------------------------------------------------------------------

    async def stats(self, seconds: float) -> dict[str, Any]:
        """What the worker counts, of the form of ``stats_untrusted``; empty if it does not say so in time."""
        if self.worker is None:
            return {}
        try:
            said, fds = await self.worker.line.ask("stats", seconds)
            close_all(fds)
            return stats_untrusted(said, [entry.name for entry in self.entries])
        except (DeviceError, *MALFORMED):
            return {}

    async def dump(self, name: str, hardware: bool, seconds: float) -> str:
        """Configuration space of a device, in hexadecimal. Raises DeviceError."""
        if self.worker is None:
            raise DeviceError(Error.BUSY, f"{self.name} is being opened; try again")
        index = [entry.name for entry in self.entries].index(name)
        said, fds = await self.worker.line.ask("dump", seconds, device=index, hardware=hardware)
        close_all(fds)
        try:
            return octets_untrusted(said)
        except MALFORMED:
            text = f"the worker of {self.name} did not give configuration space"
            raise DeviceError(Error.OP_FAILED, text) from None

    # -- serving ----------------------------------------------------------------------------------------------

    async def serve(self) -> None:
        """Until the worker says that it is over, or is gone, or ``end`` was called."""
        assert self.worker is not None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch_connecting)
            nursery.start_soon(self._watch_worker)
            for keeper in self._keepers:
                nursery.start_soon(self._watch_keeper, keeper)
            await self._ending.wait()
            nursery.cancel_scope.cancel()

    async def _watch_connecting(self) -> None:
        with trio.move_on_after(CONNECT_SECONDS):
            await self._connected.wait()
        if not self._connected.is_set():
            self.end(Error.TIMEOUT)

    async def _watch_worker(self) -> None:
        assert self.worker is not None
        await self.worker.line.gone.wait()
        self._ending.set()

    async def _watch_keeper(self, keeper: KeeperLine) -> None:
        """Without its keeper nobody could put a device in order if the worker were lost now."""
        await keeper.gone.wait()
        self.end(Error.DEVICE_FAILED)

    def end(self, reason: Error) -> None:
        """End it from our side: the front hung up (SUCCESS), broke a rule, or the operator wants the device."""
        if self.reason is Error.SUCCESS:
            self.reason = reason
        self._ending.set()

    # -- ending -----------------------------------------------------------------------------------------------

    async def close(self) -> dict[str, str]:
        """Worker dead, devices in order, nothing of ours left. Returns why a device is quarantined, by name."""
        try:
            if self.worker is not None:
                try:
                    await self._end_worker(self.worker)
                except Exception:  # a bug of ours; the devices are put in order all the same
                    bug("session failed; please report this", traceback.format_exc())
                    self.worker.kill()
            unreset = await self._finish()
        finally:
            await self._sealer.end()
            self._drop(list(self._held))
            self.over.set()
        return unreset

    async def processes_dead(self) -> None:
        """Wait, after ``close``, until nothing of it runs: a front can keep a process asleep in the kernel. Idempotent."""
        await self._sealer.dead()
        if self.worker is not None:
            await self.worker.wait_ended(math.inf)
            self.worker.forget()
            self.worker = None
        self._house.uids.give(self._uid)
        self._uid = None

    async def _end_worker(self, worker: Process) -> None:
        """It says what it has to say, or is killed."""
        if self._said is None:
            with trio.move_on_after(STOP_SECONDS), contextlib.suppress(DeviceError):
                await worker.line.ask("stop", STOP_SECONDS, reason=int(self.reason))
                await first_of(self._heard, worker.line.gone)
        self._believe_untrusted(worker)
        dying = bool(self._said) or (worker.line.gone.is_set() and not worker.line.problem)  # its channel closes first
        if not await worker.wait_ended(1.0 if dying else 0.0):
            fate = worker.fate() or f"did not end within {STOP_SECONDS:g} s"
            self._note(f"{'goes on living after its last word' if self._said else fate}; killed")
            worker.kill()
            if not await worker.wait_ended(KILL_SECONDS):
                self._note(f"does not die within {KILL_SECONDS:g} s: it sleeps in the kernel")
        elif not self._said:
            with trio.move_on_after(REAP_SECONDS):
                await worker.reaped.wait()
            self._note(worker.fate())

    def _note(self, problem: str) -> None:
        self.steps.append(Step("worker", "", "", problem))

    def _believe_untrusted(self, worker: Process) -> None:
        """Take the worker's last word for the log, as far as it has the form; nothing is decided by it but of models."""
        said = self._said
        if said is None:
            if self.reason is Error.SUCCESS and (self._replied or worker.line.problem):
                self.reason = Error.OP_FAILED  # as its front sees it [LIFE-31]
            return
        try:
            report = report_untrusted(said)
        except MALFORMED as problem:
            self._note(f"its report is none: {escape(repr(problem))}")
            return
        if self.reason is Error.SUCCESS:
            self.reason = report.reason
        self.steps += report.steps
        self.refusals = report.refusals
        self._unreset = report.unreset

    async def _finish(self) -> dict[str, str]:
        """The keepers' safe order, and what models tell of themselves. Returns why a device is quarantined, by name."""
        quarantined: dict[str, str] = {}
        for keeper in self._keepers:
            quarantined |= await self._finish_group(keeper)
        for entry in self.entries:
            if "bdf" in entry.what or self._house.allow_no_reset:
                continue
            why = (self._unreset or {}).get(entry.name, "")
            if self._begun and self._unreset is None and not model_facts(entry)["resettable"]:
                why = "it has no reset, and its worker did not end well"
            quarantined |= {entry.name: why} if why else {}
        return quarantined

    async def _finish_group(self, keeper: KeeperLine) -> dict[str, str]:
        steps, unclean, unreset = await keeper.finish()
        self.steps += steps
        if unclean and keeper not in self.unclean:
            self.unclean.append(keeper)
        elif not unclean and keeper in self.unclean:
            self.unclean.remove(keeper)
        quarantined: dict[str, str] = {}
        for entry in self.entries:
            if entry.device.group == keeper.group:
                if any(step.name == "reset" and step.device == entry.device.spec for step in steps):
                    self._not_reset[entry.name] = unreset.get(entry.device.spec, "")
                why = unclean or ("" if self._house.allow_no_reset else self._not_reset.get(entry.name, ""))
                quarantined |= {entry.name: why} if why else {}
        return quarantined

    async def finish_late(self) -> dict[str, str]:
        """Try again what a keeper could not do. Returns for each of its devices why it is quarantined now, or nothing."""
        late: dict[str, str] = {}
        for keeper in list(self.unclean):
            quarantined = await self._finish_group(keeper)
            late |= {e.name: quarantined.get(e.name, "") for e in self.entries if e.device.group == keeper.group}
        return late
