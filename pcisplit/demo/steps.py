# SPDX-License-Identifier: MIT
"""The story of the demo: what is done in each step, what must come of it, and what crossed meanwhile."""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pcisplit import pci
from pcisplit.demo.backend import Backend, Stopwatch, describe_exit
from pcisplit.demo.edu_driver import DMA_BITS, LIVENESS, Edu
from pcisplit.front import Session, connect
from pcisplit.proto.errors import AccessError, PcisplitError
from pcisplit.proto.slots import Event, Request, Response
from pcisplit.wire import Error, RegionIndex, ResetMethod, RingIndex
from pcisplit.wire.rules import rule_name

Crossed = Request | Response | Event

DMA_OCTETS = 1 << 20
_TRACE_ENTRIES = 1 << 14
_PATIENCE = 10.0  # a working device never needs it; a guest under emulation does


@dataclasses.dataclass
class Step:
    """One step: what it is, what is done, what came of it. `logged` are lines of the backend's log that belong to it."""

    title: str
    did: str
    result: str = ""
    ok: bool = False
    microseconds: float = 0.0
    watch: Stopwatch = dataclasses.field(default_factory=Stopwatch)
    crossed: list[Crossed] = dataclasses.field(default_factory=list)
    crossing: str = ""  #: what crossed, where it was not messages
    interrupts: int = 0
    facts: list[tuple[str, str]] = dataclasses.field(default_factory=list)  #: to be shown as a table
    logged: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    def expect(self, ok: bool, result: str) -> None:
        """The result, and whether it is what it must be."""
        self.ok, self.result = ok, result


class Story:
    """Plays the steps and hands each, finished, to `tell`. `back` is the backend if it is our own."""

    def __init__(self, path: Path, name: str, back: Backend | None, tell: Callable[[Step], None]) -> None:
        self.path, self.name, self.back, self._tell = path, name, back, tell
        self.steps: list[Step] = []
        self.device = ""
        self._session: Session | None = None
        self._edu: Edu | None = None

    def play(self) -> bool:
        """Every step, in order; returns whether every check held. What fails is told, not raised."""
        try:
            session = self._meeting()
            edu = self._start(session) if session else None
            if edu:
                for step in (self._identity, self._liveness, self._polled, self._by_interrupt, self._interrupts):
                    step(edu)
                for step in (self._refused, self._there_and_back, self._outside):
                    step(edu)
            if session:
                self._goodbye(session)
        finally:
            if self._session is not None:
                self._session.close()
        return edu is not None and all(step.ok for step in self.steps)

    @contextlib.contextmanager
    def _step(self, title: str, did: str, trace: bool = True) -> Iterator[Step]:
        """Times and traces what is done inside; an exception of ours or of the driver becomes the result."""
        step, seen = Step(title, did), self._edu.interrupts_seen if self._edu else 0
        crossed: list[Crossed] = []
        try:
            with contextlib.ExitStack() as held:
                if self._session is not None and trace:
                    crossed = held.enter_context(self._session.trace(_TRACE_ENTRIES))
                step.watch = Stopwatch()
                try:
                    yield step
                finally:
                    step.microseconds = step.microseconds or step.watch()
        except (PcisplitError, ValueError, TimeoutError) as problem:
            step.expect(False, str(problem) or type(problem).__name__)
        except OSError as problem:
            step.expect(False, f"{self.path}: {problem.strerror or problem}")
        step.crossed = crossed
        if self._edu is not None:
            step.interrupts = self._edu.interrupts_seen - seen
        self.steps.append(step)
        self._tell(step)

    # -- meeting and goodbye ----------------------------------------------------------------------------------

    def _meeting(self) -> Session | None:
        did = "The front says what it needs. The back gives all of it, or a reason."
        with self._step("meeting", did) as step:
            options: dict[str, Any] = {"devices": [self.name], "driver": "edu demo", "dma": DMA_OCTETS}
            session = self._session = connect(self.path, dma_bits=DMA_BITS, timeout=_PATIENCE, **options)
            step.microseconds = step.watch()
            step.crossing = "hello and reply on the socket"
            step.facts = _facts(session, self.name)
            window = session.info.windows[0]
            fits = window.size == DMA_OCTETS and window.iova + window.size <= 1 << DMA_BITS
            step.expect(fits, f"session {session.info.session}; from here on only shared memory is used")
        return self._session

    def _goodbye(self, session: Session) -> None:
        did = "The front closes. The back makes the device harmless, then frees memory:"
        with self._step("goodbye", did, trace=False) as step:
            number = session.info.session
            session.close()
            step.microseconds = step.watch()
            step.crossing = "state words in shared memory"
            if self.back is None:
                step.expect(True, "the session is closed; the backend, which is not ours, logs its teardown")
                return
            line = self.back.wait_log("session over")
            step.facts = [_teardown_step(text) for text in line["steps"]]
            step.facts.append(("writes refused", _refusals(line["refused"])))
            code = self.back.stop()
            well = code == 0 and not line["problems"] and line["reason"] == "success" and not self.back.words
            torn = f"session {number} torn down with {line['problems'] or 'no'} problems"
            step.expect(well, f"{torn}; the backend {describe_exit(code)}")

    # -- registers --------------------------------------------------------------------------------------------

    def _start(self, session: Session) -> Edu | None:
        did = "Decode and bus master on, nothing pending, interrupts may come."
        with self._step("driver starts", did) as step:
            device = session.acquire(self.name)
            self.device = f"{device.vendor:04x}:{device.device_id:04x}"
            edu = self._edu = Edu(session, device, _PATIENCE)
            edu.enable_interrupts()
            command = device.config.read16(pci.COMMAND)
            on = pci.COMMAND_MEM | pci.COMMAND_MASTER
            step.expect(
                command & on == on, f"COMMAND reads {command:#x}: MASTER is the device's own bit, MEM is virtual"
            )
        return self._edu

    def _identity(self, edu: Edu) -> None:
        with self._step(
            "identity", "Who is there? Configuration space, then the register that edu has for it."
        ) as step:
            ids = edu.device.config.read32(pci.VENDOR_ID)
            identity = edu.identity()
            version = f"{identity >> 24}.{identity >> 16 & 0xFF}"
            step.expect(
                ids == 0x11E81234 and identity & 0xFF == 0xED,
                f"{ids & 0xFFFF:04x}:{ids >> 16:04x}, register {identity:#010x}: edu, version {version}",
            )

    def _liveness(self, edu: Edu) -> None:
        value = 0xC0FFEE42
        with self._step("liveness", f"A write of {value:#x} must read back inverted: the device, not memory.") as step:
            alive = edu.alive(value)
            step.expect(alive, f"{~value & 0xFFFFFFFF:#x}" if alive else f"register {LIVENESS:#x} is not inverted")

    def _polled(self, edu: Edu) -> None:
        with self._step("factorial, polled", "The driver asks for 12! and reads the status until it is there.") as step:
            value = edu.factorial(12)
            step.expect(value == 479001600, f"12! = {value}")

    def _by_interrupt(self, edu: Edu) -> None:
        did = "The same, asleep: the back counts the MSI and wakes the front."
        with self._step("factorial, by interrupt", did) as step:
            value = edu.factorial_by_interrupt(10)
            step.expect(value == 3628800, f"10! = {value}")

    def _interrupts(self, edu: Edu) -> None:
        did = "The driver has the device interrupt, sleeps, and acknowledges: three times."
        with self._step("interrupts", did) as step:
            seen = []
            for value in (0x1, 0x20, 0x300):
                edu.raise_interrupt(value)
                seen.append(edu.wait_interrupt(value))
            left = edu.interrupt_status()
            step.expect(
                seen == [0x1, 0x20, 0x300] and not left, f"3 came, with {', '.join(map(hex, seen))}; none is pending"
            )

    # -- what the split is for --------------------------------------------------------------------------------

    def _refused(self, edu: Edu) -> None:
        did = "The driver tries to aim the device's MSI at an address of its own choice."
        with self._step("refused by policy", did) as step:
            config = edu.device.config
            at = config.read8(pci.CAP_POINTER)
            while at and config.read8(at) != pci.CAP_MSI:
                at = config.read8(at + 1)
            before = config.read32(at + 4)
            try:
                config.write32(at + 4, 0xFEE00000)
            except AccessError as refusal:
                unchanged = config.read32(at + 4) == before
                rule = f"rule {rule_name(refusal.rule)}"
                step.expect(
                    refusal.code is Error.DENIED and unchanged,
                    f"denied by {rule}; the register still reads {before:#x}",
                )
            else:
                step.expect(False, "the write went through")

    def _there_and_back(self, edu: Edu) -> None:
        did = "1 KiB of random octets, from memory into the device and back elsewhere."
        with self._step("DMA there and back", did) as step:
            count = 1024
            there, back = edu.session.dma.alloc(count), edu.session.dma.alloc(count)
            data = os.urandom(count)
            there.memory[:] = data
            edu.dma_to_device(there.iova, count)
            edu.dma_from_device(back.iova, count)
            same = bytes(back.memory) == data
            verb = "are equal" if same else "differ"
            step.expect(same, f"{count} octets from {there.iova:#x} and those back at {back.iova:#x} {verb}")

    def _outside(self, edu: Edu) -> None:
        did = "The device is told to write beyond the window, as a hostile front would do."
        with self._step("DMA outside its window", did) as step:
            window = edu.session.info.windows[-1]
            iova, lines = window.iova + window.size + (1 << 20), len(self.back.log) if self.back else 0
            edu.dma_from_device(iova, 1024)
            alive = edu.alive()
            if self.back is None:
                step.expect(alive, f"the device is alive; dmesg on the back's host tells of the fault at {iova:#x}")
                return
            line = self.back.wait_log("DMA fault", lines)
            step.logged = [line]
            where = int(line["iova"], 16)
            step.expect(
                alive and where == iova, f"the IOMMU faulted at {where:#x}, nothing was written, the session goes on"
            )


def _facts(session: Session, name: str) -> list[tuple[str, str]]:
    """What was asked for at the meeting, and what came."""
    info, device = session.info, session.acquire(name)
    slots = {ring.index: ring.slots for ring in info.rings}
    sizes = {region.index: region.size for region in info.regions}
    shared = (sizes[RegionIndex.F2B] + sizes[RegionIndex.B2F]) >> 10
    window = info.windows[0]
    rings = (
        f"{slots[RingIndex.REQUEST]} requests, {slots[RingIndex.RESPONSE]} responses, {slots[RingIndex.EVENT]} events"
    )
    vector = device.irq(0)
    return [
        ("asked for", f"{name}, all its vectors, {DMA_OCTETS >> 10} KiB of DMA memory below 2^{DMA_BITS}"),
        ("device", f"{device.vendor:04x}:{device.device_id:04x}, {'with' if device.resettable else 'without'} a reset"),
        *((f"BAR {bar.index}", _bar_text(bar.size, bar.address)) for bar in info.devices[0].bars),
        ("rings", f"{rings} in two memfds, {shared} KiB"),
        ("DMA window", f"{window.size >> 10} KiB at IOVA {window.iova:#x}"),
        ("vectors", f"{len(info.devices[0].vectors)}, {vector.mode.name.lower()} by the back"),
    ]


def _bar_text(size: int, address: int) -> str:
    return f"{size >> 10} KiB at {address:#x} (virtual: the host's stays hidden)"


def _refusals(counts: dict[str, dict[str, int]]) -> str:
    """What the back counted for its operator: ``edu0: capability 1``."""
    by_device = [f"{name}: {' '.join(f'{rule} {n}' for rule, n in rules.items())}" for name, rules in counts.items()]
    return ", ".join(by_device) or "none"


def _teardown_step(text: str) -> tuple[str, str]:
    """A step of the backend's log, as (name, result)."""
    name, _, result = text.partition(": ")
    if result in (method.name.lower() for method in ResetMethod):
        result = f"by {result}"
    return name, result
