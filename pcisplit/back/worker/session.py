# SPDX-License-Identifier: MIT
"""One session in its worker: map, serve, follow the front's life, tear down."""

import contextlib
import mmap
import os
import threading
from collections.abc import Callable, Sequence

from pcisplit import wire
from pcisplit.back.core.abi import Run
from pcisplit.back.core.native import CoreDevice, CoreServe, prefault
from pcisplit.back.devices.device import Function
from pcisplit.back.host.resources import Resources
from pcisplit.back.log import LimitedLog
from pcisplit.back.teardown import Teardown
from pcisplit.back.worker.assemble import Assembled, SessionOrder, assemble
from pcisplit.back.worker.owner import Owner
from pcisplit.proto.errors import DeviceError
from pcisplit.proto.states import front_step_untrusted
from pcisplit.wire import DeviceState, Error, State, VectorMode

#: Seconds that owners get to come back from what they are inside of.
OWNERS_SECONDS = 2.0


class WorkerSession:
    """`functions` are acquired, `resources` are ours to close. Call ``open``, then ``serve``, then ``close``.

    `initialised` is called when the front has mapped its regions, before it is served [REG-3]; it raises DeviceError if the
    session cannot go on. `connected` is called when the front has come to be Connected [LIFE-8].
    """

    def __init__(
        self,
        order: SessionOrder,
        resources: Resources,
        functions: Sequence[Function],
        initialised: Callable[[], None] = lambda: None,
        connected: Callable[[], None] = lambda: None,
    ) -> None:
        self.order, self.resources, self.functions = order, resources, list(functions)
        self.log = LimitedLog(session=order.number)
        self.owners: list[Owner] = []
        self.reason = Error.SUCCESS
        self.refusals: dict[str, dict[str, int]] = {}  #: after close: refused accesses, by device and rule
        self.unreset: dict[str, str] = {}  #: after close: why a model was not reset, by name
        self._initialised, self._connected = initialised, connected
        self._cores: list[CoreDevice] = []
        self._maps: list[mmap.mmap] = []
        self._threads: list[threading.Thread] = []
        self._serve: CoreServe | None = None
        self._front = State.UNKNOWN
        self._state = State.UNKNOWN

    # -- opening ----------------------------------------------------------------------------------------------

    def open(self) -> bytes:
        """Map and compile everything. Returns the boot-info block; call ``close`` on any exception."""
        assembled = assemble(self.order, self.functions)
        fds, layout = self.resources, self.order.layout
        f2b = mmap.mmap(fds.f2b, layout.f2b_size, prot=mmap.PROT_READ)
        self._maps.append(f2b)
        b2f = mmap.mmap(fds.b2f, layout.b2f_size)
        self._maps.append(b2f)
        header = {"magic": wire.B2F_MAGIC, "state": State.INITIALISING, "session": self.order.number, "epoch": 1}
        b2f[: wire.BACK_HEADER.size] = wire.BACK_HEADER.build(header)
        self._state = State.INITIALISING
        self._serve = CoreServe(f2b, b2f, layout.places, fds.kick, fds.ring)
        self._serve.configure(self.order.spin, self.order.features)
        if self.order.dma_size:
            for function in self._ours():
                function.map_dma(fds.dma, self.order.dma_size, self.order.dma_iova)
        for index in range(len(self.functions)):
            self._add_device(index, assembled)
        self._step(State.INIT_WAIT)
        return assembled.boot_info

    def _add_device(self, index: int, assembled: Assembled) -> None:
        """Give one function to the C core and to an owner."""
        assert self._serve is not None
        order, function, tables = self.order.devices[index], self.functions[index], assembled.tables[index]
        vectors = self.resources.vectors[index]
        core = CoreDevice()
        self._cores.append(core)
        core.set_config(tables, len(vectors))
        for bar in function.bars:
            core.add_bar(bar)
        for vector, fd in enumerate(vectors):
            core.set_vector(vector, -1 if order.mode is VectorMode.DIRECT else fd)
        self._serve.add(core, self.order.layout.states[index], self.order.layout.runs[index])
        core.set_state(DeviceState.ACQUIRED, 1)
        owner = Owner(function, core, tables, vectors, self.log, order.shared)
        owner.on_event = self._device_event
        function.events()  # made now: a jailed owner makes no descriptor
        self.owners.append(owner)

    def _device_event(self, names: set[str]) -> None:
        """The kernel wants a device back (req), or its bus had an error (err): until recovery is built, the session ends."""
        self.end(Error.GONE if "req" in names else Error.FAULTED)
        self.stop()

    def _ours(self) -> list[Function]:
        """Those that no keeper has: models."""
        return [function for function, order in zip(self.functions, self.order.devices, strict=True) if not order.kept]

    # -- serving ----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the owners' threads. ``serve`` is the caller's to run."""
        for owner in self.owners:
            self._threads.append(threading.Thread(target=owner.run, name=f"owner {owner.device.spec}", daemon=True))
            self._threads[-1].start()

    def _step(self, state: State) -> None:
        assert self._serve is not None
        self._state = state
        self._serve.set_state(state)

    @property
    def state(self) -> State:
        return self._state

    def serve(self) -> None:
        """Serve until the front closes, breaks the rules, or ``stop``. Blocks without the GIL nearly all the time."""
        assert self._serve is not None
        while True:
            why = self._serve.run()
            if why is Run.FRONT_STATE and self._follow(self._serve.front_state):
                continue
            if why is Run.ENDED:
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
            return self._connect()
        if new is State.CONNECTED:
            self._connected()
        return new not in (State.CLOSING, State.CLOSED)

    def _connect(self) -> bool:
        """The front has mapped its regions: they get their last seals, every page of f2b is there from now on [REG-6]."""
        try:
            self._initialised()
        except DeviceError as problem:
            self.log("front cannot be connected", problem=str(problem))
            self.end(problem.code)
            return False
        if not prefault(self._maps[0]):
            self.log("front cannot be connected", problem="f2b has no memory")
            self.end(Error.FAULTED)
            return False
        self._step(State.CONNECTED)
        return True

    @property
    def front(self) -> State:
        """The front's state as last seen and found allowed."""
        return self._front

    def end(self, reason: Error) -> None:
        """Remember why the session ends; the first reason stays."""
        if self.reason is Error.SUCCESS:
            self.reason = reason

    def counters(self) -> dict[str, int]:
        """What the front can read in b2f too."""
        names = ("requests", "responses", "refused", "stale", "kicks", "empty_kicks", "events_dropped")
        header = wire.BACK_HEADER.parse(self._maps[1][: wire.BACK_HEADER.size], strict=False)
        return {name: header[name] for name in names}

    def stop(self) -> None:
        """Make ``serve`` come back, from any thread."""
        if self._serve is not None:
            self._serve.stop()

    # -- closing ----------------------------------------------------------------------------------------------

    def close(self) -> Teardown:
        """The safe order of lifecycle.md, of models; of hardware the keeper does it. ``serve`` has come back. Never raises."""
        done = Teardown()
        if self._serve is not None:
            if self.reason is not Error.SUCCESS:
                self._serve.set_reason(self.reason)
            self._step(State.CLOSING)
        self.stop_owners()
        if not done.step("stop owners", self._join_owners):
            # One is still inside of its device: nothing may be taken from under it. Models end with this process, which is as
            # good as a reset for those that have one.
            pairs = zip(self.order.devices, self.functions, strict=True)
            spared = [order.name for order, function in pairs if not order.kept and not function.reset_methods]
            self.unreset = dict.fromkeys(spared, done.steps[-1].problem)
            return done
        done.step("detach doorbells", lambda: os.close(self.resources.kick))
        ours = self._ours()
        names = [order.name for order in self.order.devices if not order.kept]
        self.unreset = {names[place]: why for place, why in done.quiesce(ours).items()}
        before = len(done.steps)
        for function in ours:
            done.step("unmap DMA", function.unmap_dma, function.spec)
        unmapped = [int(step.result or 0) for step in done.steps[before:]]
        done.step("check unmapped", lambda: self._check_unmapped(unmapped))
        done.step("drop memory", self._drop_memory)
        for function in self.functions:
            done.step("close device", function.close, function.spec)
        return done

    def stop_owners(self) -> None:
        """Have each owner end when it has done what it is inside of."""
        for core in self._cores:
            core.owner_stop()

    def _join_owners(self) -> None:
        for thread, owner in zip(self._threads, self.owners, strict=False):
            thread.join(OWNERS_SECONDS)
            if thread.is_alive():
                raise DeviceError(
                    Error.TIMEOUT, f"the owner of {owner.device.spec} does not come back from {owner.doing}"
                )

    def _check_unmapped(self, octets: Sequence[int]) -> None:
        """Each model has mapped the window for itself."""
        size = self.order.dma_size
        if any(count != size for count in octets):
            raise DeviceError(Error.OP_FAILED, f"{octets} octets unmapped of windows of {size:#x}")

    def _drop_memory(self) -> None:
        if self._serve is not None:
            self._step(State.CLOSED)
            self._serve.free()
        for order, core in zip(self.order.devices, self._cores, strict=False):
            self.refusals[order.name] = {rule.name.lower(): count for rule, count in core.refusals().items()}
            core.free()
        for memory in self._maps:
            memory.close()
        for fd in [*self.resources.all(), self.resources.rung]:
            if fd >= 0 and fd != self.resources.kick:
                with contextlib.suppress(OSError):
                    os.close(fd)
