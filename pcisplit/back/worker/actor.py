# SPDX-License-Identifier: MIT
"""What makes an owner an actor: one thread, fed from four sources, that says at any time what it is doing.

The sources: ring requests (``_request``, of the subclass), calls of other threads (the control plane), events
of the device, deadlines. They are done one after the other, so what they do needs no lock.
"""

import functools
import heapq
import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self, TypeVar

from pcisplit.back.core.abi import Wake
from pcisplit.back.core.native import CoreDevice
from pcisplit.back.devices.device import Function
from pcisplit.back.log import LimitedLog
from pcisplit.proto.errors import DeviceError
from pcisplit.proto.slots import op_name
from pcisplit.wire import DeviceState, Error

T = TypeVar("T")


class _Call:
    """Work that another thread wants done, and what came of it."""

    def __init__(self, work: Callable[[Any], Any], name: str) -> None:
        self.work, self.name = work, name
        self.done = threading.Event()
        self.given_up = False
        self.result: Any = None
        self.problem: Exception | None = None


class Actor:
    """Runs in a thread of its own (``run``) from the start of the session until the loop has stopped.

    ``call``, ``at``, ``snapshot``, ``doing`` and ``since`` are for any thread, at any time; the rest is for the actor's own.
    `on_event` is called with the names of what happened to the device.
    """

    def __init__(self, device: Function, core: CoreDevice, log: LimitedLog) -> None:
        self.device, self.core = device, core
        self.generation, self.state = 1, DeviceState.ACQUIRED
        self.on_event: Callable[[set[str]], None] | None = None
        self._log = log
        self._life = "not started"
        self._inside: tuple[str, float] | None = None  # of what is no ring request, and since when
        self._thread: int | None = None
        self._posting = threading.Lock()  # of what other threads post; held for a few instructions
        self._calls: deque[_Call] = deque()
        self._deadlines: list[tuple[float, int, Callable[[], object]]] = []
        self._order = itertools.count()
        self._holds = 0
        self._counts = {"calls": 0, "events": 0, "deadlines": 0}
        self._event_names: list[str] = []

    # -- the thread -------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Do everything that comes, until stopped. Nothing that a device or a caller does ends it."""
        self._thread = threading.get_ident()
        self._watch_events()
        self._life = "idle"
        try:
            while (why := self.core.owner_wait(self._until_deadline())) is not Wake.STOPPED:
                if why is Wake.REQUEST:
                    self._request()
                elif why is Wake.MESSAGE:
                    self._take_calls()
                elif why is Wake.EVENT:
                    self._take_events()
                self._take_deadlines()
        finally:
            self._end()

    def _request(self) -> None:
        """Answer the ring request that has come."""
        raise NotImplementedError

    def _take_calls(self) -> None:
        while True:
            with self._posting:
                call = self._calls.popleft() if self._calls else None
                begun = call is not None and not call.given_up
            if call is None:
                return
            if begun:
                self._counts["calls"] += 1
                with self._doing(call.name):
                    try:
                        call.result = call.work(self)
                    except Exception as problem:  # it is the caller's
                        call.problem = problem
            call.done.set()

    def _watch_events(self) -> None:
        """Have the loop look at what the device signals."""
        for bit, (name, fd) in enumerate(self.device.events().items()):
            self._event_names.append(name)
            self._guarded(f"watching {name}", functools.partial(self.core.watch, fd, bit))

    def _take_events(self) -> None:
        bits = self.core.owner_events()
        names = {name for bit, name in enumerate(self._event_names) if bits >> bit & 1}
        self._counts["events"] += len(names)
        self._log("device event", device=self.device.spec, events=sorted(names))
        if self.on_event is not None:
            self._guarded(f"event {', '.join(sorted(names))}", functools.partial(self.on_event, names))

    def _until_deadline(self) -> float | None:
        with self._posting:
            return self._deadlines[0][0] - time.monotonic() if self._deadlines else None

    def _take_deadlines(self) -> None:
        while True:
            with self._posting:
                if not self._deadlines or self._deadlines[0][0] > time.monotonic():
                    return
                work = heapq.heappop(self._deadlines)[2]
            self._counts["deadlines"] += 1
            self._guarded("deadline", work)

    def _guarded(self, name: str, work: Callable[[], object]) -> None:
        with self._doing(name):
            try:
                work()
            except Exception as problem:  # the owner outlives it
                self._log("owner failed", device=self.device.spec, request=name, problem=repr(problem))

    @contextmanager
    def _doing(self, name: str) -> Iterator[None]:
        self._inside = name, time.monotonic()
        try:
            yield
        finally:
            self._inside = None

    def _end(self) -> None:
        if self._holds:
            self.core.release()
        with self._posting:
            self._life = "ended"
            left, self._calls = list(self._calls), deque()
            self._deadlines.clear()
        for call in left:
            call.problem = self._ended()
            call.done.set()

    def _ended(self) -> DeviceError:
        return DeviceError(Error.GONE, f"{self.device.spec}: its session is over")

    # -- for other threads --------------------------------------------------------------------------------------

    def call(self, work: Callable[[Self], T], timeout: float, name: str) -> T:
        """The result of ``work(owner)``, done in the owner's thread at a request boundary of it; raises what it raises.

        `timeout` in seconds; TimeoutError then says what the owner is inside of, and work that has not begun never does.
        DeviceError (GONE) when the owner has ended. `name` is what the control plane shows meanwhile.
        """
        if threading.get_ident() == self._thread:
            return work(self)
        call = _Call(work, name)
        with self._posting:
            if self._life == "ended":
                raise self._ended()
            self._calls.append(call)
        self.core.owner_wake()
        if not call.done.wait(timeout):
            with self._posting:
                call.given_up = True  # unless it has begun: then it is done, for nobody
            doing, since = self._status()
            text = f"{self.device.spec}: {name} was not done in {timeout:g} s: its owner is inside of {doing}"
            raise TimeoutError(f"{text}, for {max(0.0, time.monotonic() - since):.1f} s")
        if call.problem is not None:
            raise call.problem
        return call.result  # type: ignore[no-any-return]

    def at(self, deadline: float, work: Callable[[], object]) -> None:
        """Call `work` in the owner's thread when ``time.monotonic()`` is at least `deadline`, unless it ends before."""
        with self._posting:
            heapq.heappush(self._deadlines, (deadline, next(self._order), work))
        self.core.owner_wake()

    def _status(self) -> tuple[str, float]:
        inside = self._inside
        if inside is not None:
            return inside
        tally = self.core.tally()
        if tally.doing is not None:
            return op_name(tally.doing), time.monotonic() - tally.seconds
        return self._life, time.monotonic()

    @property
    def doing(self) -> str:
        """``bar_read_block``, the name of a call, ``idle``, ``not started`` or ``ended``."""
        return self._status()[0]

    @property
    def since(self) -> float:
        """``time.monotonic()`` when it began with that; now, when it is idle."""
        return self._status()[1]

    def snapshot(self) -> dict[str, Any]:
        """Everything there is to see, as JSON could carry it; never waits for the owner, and works after the session too.

        `seconds` inside of `doing`; `queued` requests wait because the device is parked or held; `owner_ns` were spent by
        the owner on `requests`, of which `slices` were turns of blocks; `refusals` by rule.
        """
        doing, since = self._status()
        tally = self.core.tally()
        return {
            "device": self.device.spec,
            "state": self.state.name.lower(),
            "generation": self.generation,
            "doing": doing,
            "seconds": max(0.0, time.monotonic() - since),
            "queued": tally.queued,
            "requests": tally.requests,
            **self._counts,
            "slices": tally.slices,
            "owner_ns": tally.owner_ns,
            "refused": tally.refused,
            "posted_errors": tally.posted_errors,
            "refusals": {rule.name.lower(): count for rule, count in self.core.refusals().items()},
        }

    # -- hold ---------------------------------------------------------------------------------------------------

    @contextmanager
    def held(self) -> Iterator[None]:
        """Inside of it the serve loop starts no request of this device and is inside of none. Can be nested."""
        assert threading.get_ident() == self._thread, "only the owner holds its device"
        if self._holds == 0:
            self.core.hold()
        self._holds += 1
        try:
            yield
        finally:
            self._holds -= 1
            if self._holds == 0:
                self.core.release()
