# SPDX-License-Identifier: MIT
"""One session, back side: acquire, describe, serve, tear down. Blocking; the trio shell calls it in threads."""

import functools
import mmap
import os
from collections.abc import Sequence

from pcisplit import bootinfo, pci, wire
from pcisplit.back.core.native import ENDED, FRONT_STATE, CoreDevice, CoreServe
from pcisplit.back.devices.device import Device
from pcisplit.back.host import dma
from pcisplit.back.log import LimitedLog
from pcisplit.back.policy.compile import Tables, compile_tables
from pcisplit.back.supervisor.registry import Entry
from pcisplit.back.worker.owner import Owner
from pcisplit.back.worker.teardown import Teardown, master_off, wait_transactions
from pcisplit.errors import DeviceError
from pcisplit.messages import Hello, Need
from pcisplit.ring.doorbell import Doorbells
from pcisplit.ring.region import create_region, seal_b2f, seal_f2b
from pcisplit.states import front_step_untrusted
from pcisplit.wire import (
    DeviceFlag,
    DeviceState,
    Direction,
    DoorbellType,
    Error,
    RegionIndex,
    RingIndex,
    State,
    VectorMode,
    VectorType,
)

_PAGE = wire.PAGE_SIZE
_REQUESTS, _RESPONSES = _PAGE, _PAGE
_BULK_IN = _REQUESTS + wire.REQUEST_SLOTS * wire.SLOT_SIZE
_EVENTS = _RESPONSES + wire.RESPONSE_SLOTS * wire.SLOT_SIZE
_STATES = _EVENTS + wire.EVENT_SLOTS * wire.SLOT_SIZE
_STATE_STEP = 1024
_BULK_OUT = _STATES + wire.MAX_DEVICES * _STATE_STEP
F2B_SIZE = _BULK_IN + wire.BULK_SIZE
B2F_SIZE = _BULK_OUT + wire.BULK_SIZE
OFFSETS = (_REQUESTS, _RESPONSES, _EVENTS, _BULK_IN, _BULK_OUT)

_COUNTERS = wire.DEVICE_STATE.sizeof() - 8 * wire.MAX_VECTORS


class BackSession:
    """`entries` are claimed by the caller, `needs` in the same order. Call ``open``, ``serve`` and ``owners``, ``close``."""

    def __init__(
        self,
        number: int,
        hello: Hello,
        entries: Sequence[Entry],
        needs: Sequence[Need],
        dma_limit: int,
        spin: float,
        allow_no_reset: bool = False,
    ) -> None:
        self.number, self.entries = number, list(entries)
        self.features = hello.features & wire.BUILT
        self.log = LimitedLog(session=number)
        self.owners: list[Owner] = []
        self.reason = Error.SUCCESS
        self.refusals: dict[str, dict[str, int]] = {}  #: after close: refused configuration writes, by device and rule
        self._hello, self._needs, self._spin = hello, needs, spin
        self._allow_no_reset = allow_no_reset
        self._dma_bytes = dma.round_size(dma_limit if hello.dma_bytes == wire.DMA_ALL else hello.dma_bytes)
        self._acquired: list[Entry] = []
        self._cores: list[CoreDevice] = []
        self._eventfds: list[tuple[int, ...]] = []
        self._fds: list[int] = []  # closed at the end, in step 8
        self._maps: list[mmap.mmap] = []
        self._memory: dma.DmaMemory | None = None
        self._serve: CoreServe | None = None
        self._front = State.UNKNOWN
        self._state = State.UNKNOWN
        self._bell: Doorbells | None = None

    # -- opening ----------------------------------------------------------------------------------------------

    def open(self) -> tuple[bytes, list[int]]:
        """Acquire everything. Returns the boot-info block and the descriptors it refers to; ``close`` on any exception."""
        for entry in self.entries:
            entry.device.acquire()
            self._acquired.append(entry)
        if self._dma_bytes:
            self._map_dma()
        bell = self._bell = Doorbells.create()
        self._fds += bell  # each at once: what follows may fail, and close() lets go of what stands here
        self._fds.append(f2b_fd := create_region("pcisplit-f2b", F2B_SIZE))
        self._fds.append(b2f_fd := create_region("pcisplit-b2f", B2F_SIZE))
        b2f, f2b = seal_b2f(b2f_fd, B2F_SIZE), seal_f2b(f2b_fd, F2B_SIZE)
        self._maps += [f2b, b2f]
        header = {"magic": wire.B2F_MAGIC, "state": State.INITIALISING, "session": self.number}
        b2f[: wire.BACK_HEADER.sizeof()] = wire.BACK_HEADER.build({**wire.blank(wire.BACK_HEADER), **header})
        self._state = State.INITIALISING
        self._serve = CoreServe(f2b, b2f, OFFSETS, bell.kick, bell.ring)
        self._serve.configure(self._spin, self.features)
        fds = [f2b_fd, b2f_fd, bell.kick, bell.rung] + ([self._memory.fd] if self._memory else [])
        devices = tuple(self._add_device(index, fds) for index in range(len(self.entries)))
        if len(fds) > wire.MAX_FDS:
            text = f"the session would need {len(fds)} descriptors, a reply carries {wire.MAX_FDS}: ask for fewer direct vectors"
            raise DeviceError(Error.TOO_MANY_VECTORS, text)
        self._step(State.INIT_WAIT)
        return self._boot_info(devices).to_bytes(), fds

    def _map_dma(self) -> None:
        devices = [entry.device for entry in self.entries]
        bits = min(self._hello.dma_bits, *(device.dma_bits for device in devices))
        iova = dma.place(self._dma_bytes, bits, [device.iova_ranges for device in devices], dma.host_pci_windows())
        self._memory = dma.create(self._dma_bytes, iova)
        for device in devices:
            device.map_dma(self._memory.address, self._memory.fd, self._memory.size, iova)

    def _add_device(self, index: int, fds: list[int]) -> bootinfo.Device:
        """Compile one device for the C core; direct eventfds are added to `fds`. Returns its boot-info records."""
        assert self._serve is not None
        entry, need = self.entries[index], self._needs[index]
        device, state_offset = entry.device, _STATES + index * _STATE_STEP
        config = read_config(device)
        tables = compile_tables(config, device.bars)
        vectors = self._make_vectors(entry, need)
        core = CoreDevice()
        self._cores.append(core)
        core.set_config(tables, len(vectors))
        for bar in device.bars:
            core.add_bar(bar)
        direct = need.mode is VectorMode.DIRECT
        for vector, fd in enumerate(vectors):
            core.set_vector(vector, -1 if direct else fd)
        self._serve.add(core, state_offset)
        core.set_state(DeviceState.ACQUIRED, 1)
        shared = any(other.device.group == device.group for other in self.entries if other is not entry)
        self.owners.append(Owner(device, core, tables, vectors, self.log, shared))
        places = [len(fds) + vector if direct else wire.NO_FD for vector in range(len(vectors))]
        fds += vectors if direct else ()
        return self._describe(index, config, tables, state_offset, places)

    def _make_vectors(self, entry: Entry, need: Need) -> tuple[int, ...]:
        """One eventfd per vector, ours, never used again [IRQ-7]."""
        has = entry.device.vectors
        wanted = has if need.vectors == wire.ALL_VECTORS else need.vectors
        if wanted > has:
            text = f"{entry.name} has {has} vectors, the front asks for {wanted}"
            raise DeviceError(Error.TOO_MANY_VECTORS, text)
        made = tuple(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK) for _ in range(wanted))
        self._fds += made
        return made

    def _describe(
        self, index: int, config: bytes, tables: Tables, state_offset: int, places: Sequence[int]
    ) -> bootinfo.Device:
        entry, need = self.entries[index], self._needs[index]
        device = entry.device
        word = [int.from_bytes(config[at : at + 2], "little") for at in (pci.VENDOR_ID, pci.DEVICE_ID)]
        return bootinfo.Device(
            index=index,
            name=entry.name,
            vendor=word[0],
            device_id=word[1],
            class_code=int.from_bytes(config[9:12], "little"),
            state_offset=state_offset,
            generation=1,
            config_size=len(config),
            flags=DeviceFlag.RESETTABLE if device.resettable else DeviceFlag(0),
            bars=tuple(
                bootinfo.Bar(bar.index, bar.size, bar.flags, tables.addresses[bar.index]) for bar in device.bars
            ),
            vectors=tuple(
                bootinfo.Vector(vector, VectorType.MSI, need.mode, state_offset + _COUNTERS + 8 * vector, fd)
                for vector, fd in enumerate(places)
            ),
        )

    def _boot_info(self, devices: tuple[bootinfo.Device, ...]) -> bootinfo.BootInfo:
        f2b, b2f = RegionIndex.F2B, RegionIndex.B2F
        memory = self._memory
        regions = [bootinfo.Region(f2b, 0, F2B_SIZE, True), bootinfo.Region(b2f, 1, B2F_SIZE)]
        if memory:
            regions.append(bootinfo.Region(RegionIndex.DMA, 4, memory.size, True))
        return bootinfo.BootInfo(
            features=self.features,
            session=self.number,
            minor=min(self._hello.minor, wire.MINOR),
            regions=tuple(regions),
            rings=(
                bootinfo.Ring(RingIndex.REQUEST, f2b, _REQUESTS, wire.REQUEST_SLOTS),
                bootinfo.Ring(RingIndex.RESPONSE, b2f, _RESPONSES, wire.RESPONSE_SLOTS),
                bootinfo.Ring(RingIndex.EVENT, b2f, _EVENTS, wire.EVENT_SLOTS),
            ),
            bulks=(
                bootinfo.Bulk(Direction.FRONT_TO_BACK, f2b, _BULK_IN, wire.BULK_SIZE),
                bootinfo.Bulk(Direction.BACK_TO_FRONT, b2f, _BULK_OUT, wire.BULK_SIZE),
            ),
            doorbells=(
                bootinfo.Doorbell(Direction.FRONT_TO_BACK, 2, DoorbellType.EVENTFD),
                bootinfo.Doorbell(Direction.BACK_TO_FRONT, 3, DoorbellType.SOCKET),
            ),
            windows=(bootinfo.DmaWindow(0, 0, memory.size, memory.iova),) if memory else (),
            devices=devices,
        )

    # -- serving ----------------------------------------------------------------------------------------------

    def _step(self, state: State) -> None:
        assert self._serve is not None
        self._state = state
        self._serve.set_state(state)

    def serve(self) -> None:
        """Serve until the front closes, breaks the rules, or ``stop``. Blocks without the GIL nearly all the time."""
        assert self._serve is not None
        while True:
            why = self._serve.run()
            if why == FRONT_STATE and self._follow(self._serve.front_state):
                continue
            if why == ENDED:
                self.end(self._serve.reason)
            return

    def _follow(self, raw: int) -> bool:
        """The front changed its state word to `raw`. Returns whether the session goes on [LIFE-1, LIFE-2]."""
        new = front_step_untrusted(self._front, raw, self._state)
        if new is None:
            self.log("front state not allowed", was=self._front.name, wrote=raw)
            self.end(Error.BAD_REQUEST)
            return False
        self._front = new
        if new in (State.INITIALISED, State.CONNECTED) and self._state is State.INIT_WAIT:
            self._step(State.CONNECTED)
        return new not in (State.CLOSING, State.CLOSED)

    def end(self, reason: Error) -> None:
        """Remember why the session ends; the first reason stays."""
        if self.reason is Error.SUCCESS:
            self.reason = reason

    def stop(self) -> None:
        """Make ``serve`` come back, from any thread."""
        if self._serve is not None:
            self._serve.stop()

    def stop_owners(self) -> None:
        for core in self._cores:
            core.owner_stop()

    # -- closing ----------------------------------------------------------------------------------------------

    def close(self) -> Teardown:
        """The safe order of lifecycle.md; the loop and the owners have come back. Never raises; marks what is quarantined."""
        done = Teardown()
        if self._serve is not None:
            if self.reason is not Error.SUCCESS:
                self._serve.set_reason(self.reason)
            self._step(State.CLOSING)
        done.step("detach doorbells", self._close_kick)
        devices = [(entry, entry.device, entry.device.spec) for entry in self._acquired]
        for _, device, spec in devices:
            done.step("master off", functools.partial(master_off, device), spec)
        for _, device, spec in devices:
            done.step("transactions", functools.partial(wait_transactions, device), spec)
        for _, device, spec in devices:
            done.step("interrupts off", device.disable_msi, spec)
        for entry, device, spec in devices:
            if not done.step("reset", device.reset, spec) and not self._allow_no_reset:
                entry.quarantined = done.steps[-1].problem
        before = len(done.steps)
        for _, device, spec in devices:
            done.step("unmap DMA", device.unmap_dma, spec)
        done.step("check unmapped", functools.partial(self._check_unmapped, [s.result for s in done.steps[before:]]))
        done.step("drop memory", self._drop_memory)
        for _, device, spec in devices:
            done.step("close device", device.close, spec)
        return done

    def _close_kick(self) -> None:
        if self._bell is not None:
            os.close(self._bell.kick)
            self._fds.remove(self._bell.kick)

    def _check_unmapped(self, octets: Sequence[str]) -> None:
        """Devices that share an IOMMU context share a window: it is counted once, by the last of them."""
        unmapped = sum(int(text) for text in octets if text)
        if self._memory and (unmapped < self._memory.size or unmapped % self._memory.size):
            raise DeviceError(Error.OP_FAILED, f"{unmapped:#x} octets unmapped of windows of {self._memory.size:#x}")

    def _drop_memory(self) -> None:
        if self._serve is not None:
            self._step(State.CLOSED)
            self._serve.free()
        for entry, core in zip(self.entries, self._cores, strict=False):
            self.refusals[entry.name] = {rule.name.lower(): count for rule, count in core.refusals().items()}
            core.free()
        for memory in self._maps:
            memory.close()
        if self._memory is not None:
            self._memory.close()
        for fd in self._fds:
            os.close(fd)
        self._fds.clear()


def read_config(device: Device) -> bytes:
    """All of a device's configuration space, by reads of 4 octets."""
    return b"".join(device.config_read(at, 4).to_bytes(4, "little") for at in range(0, device.config_size, 4))
