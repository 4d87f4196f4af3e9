# SPDX-License-Identifier: MIT
"""A keeper: the process of one IOMMU group. It holds the group and its devices' descriptors, and no front can reach it.

Single-threaded, so that it can fork; each order is done to the end before the next is read. It sleeps where VFIO sleeps (a
reset, an open), which is why none of this is in the supervisor. Orders, in the life of a session:

    open     with the worker's pidfd: a fresh container, the functions acquired; their descriptors go back
    map      with the memfd: by a forked mapper, since whoever maps holds the memory
    finish   the worker is dead or dies now; then the safe order, and the container must come off

When the supervisor is gone the channel closes, and the keeper finishes by itself.
"""

import os
import select
import signal
from collections.abc import Callable, Sequence
from typing import Any

import structlog

from pcisplit.back import log
from pcisplit.back.channel import Channel, ChannelClosed, Message, answer, close_all, failure
from pcisplit.back.devices.vfio.function import VfioDevice, VfioFunction
from pcisplit.back.devices.vfio.group import VfioHost
from pcisplit.back.teardown import Teardown
from pcisplit.errors import DeviceError
from pcisplit.pci import Bdf
from pcisplit.wire import Error, ResetMethod

#: Seconds that the kernel gets to end a killed worker.
KILL_SECONDS = 5.0


def run(channel: Channel) -> None:
    """The whole life of a keeper."""
    log.configure(sink=lambda level, event, fields: _tell_log(channel, level, event, fields))
    keeper = Keeper(channel)
    try:
        keeper.run()
    except ChannelClosed:
        log.configure(sink=lambda *_: None)
        keeper.finish()
        keeper.shut()
        raise


def _tell_log(channel: Channel, level: str, event: str, fields: dict[str, Any]) -> None:
    said = {key: value if isinstance(value, (int, float, str)) else str(value) for key, value in fields.items()}
    channel.send({"tell": "log", "level": level, "event": event, "fields": said})


class Keeper:
    """One group. `functions` are those of the session that there is, by address."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._host = VfioHost()
        self._devices: dict[str, VfioDevice] = {}
        self._functions: dict[str, VfioFunction] = {}
        self._worker = -1
        self._mapped = 0
        self._log = structlog.get_logger("pcisplit")

    def run(self) -> None:
        """Obey until told to shut. Raises ChannelClosed."""
        orders: dict[str, Callable[[Message, list[int]], tuple[dict[str, Any], Sequence[int]]]] = {
            "open": self._open,
            "map": self._map,
            "hot_reset": self._hot_reset,
            "reset_method": self._reset_method,
            "finish": self._finish,
            "recover": self._recover,
        }
        while True:
            message, fds = self._channel.recv()
            if message["do"] == "shut":
                self.finish()
                self.shut()
                self._channel.send(answer(message["id"]))
                return
            try:
                result, sent = orders[message["do"]](message, fds)
            except DeviceError as problem:
                self._channel.send(failure(message["id"], problem.code, str(problem)))
            except OSError as problem:
                self._channel.send(failure(message["id"], Error.DEVICE_FAILED, str(problem)))
            else:
                self._channel.send(answer(message["id"], **result), sent)

    # -- a session begins -------------------------------------------------------------------------------------

    def _open(self, message: Message, fds: list[int]) -> tuple[dict[str, Any], list[int]]:
        (self._worker,) = fds
        try:
            self._acquire(message["devices"])
        except BaseException:
            self.finish()
            raise
        functions = [self._functions[what["bdf"]] for what in message["devices"]]
        return {"functions": [function.describe() for function in functions]}, [f.fileno() for f in functions]

    def _acquire(self, whats: Sequence[dict[str, Any]]) -> None:
        for what in whats:
            bdf = what["bdf"]
            if bdf not in self._devices:
                expected = tuple(what["id"]) if what["id"] else None
                self._devices[bdf] = VfioDevice(Bdf.parse(bdf), expected, self._host, what["reset"])
            self._functions[bdf] = self._devices[bdf].acquire()

    def _map(self, message: Message, fds: list[int]) -> tuple[dict[str, Any], list[int]]:
        (memory,) = fds
        try:
            function = next(iter(self._functions.values()))
            function.map_dma(memory, message["size"], message["iova"])
            self._mapped = message["size"]
        finally:
            close_all(fds)
        return {}, []

    # -- what only we can do for a worker ---------------------------------------------------------------------

    def _hot_reset(self, message: Message, fds: list[int]) -> tuple[dict[str, Any], list[int]]:
        self._functions[message["bdf"]].reset(ResetMethod.BUS)
        return {}, []

    def _reset_method(self, message: Message, fds: list[int]) -> tuple[dict[str, Any], list[int]]:
        self._functions[message["bdf"]].choose_reset(ResetMethod(message["method"]))
        return {}, []

    # -- a session ends ---------------------------------------------------------------------------------------

    def _finish(self, message: Message, fds: list[int]) -> tuple[dict[str, Any], list[int]]:
        done, unreset = self.finish()
        return {"steps": [list(step) for step in done.steps], "unreset": unreset}, []

    def _recover(self, message: Message, fds: list[int]) -> tuple[dict[str, Any], list[int]]:
        """The keeper before us died in the middle of a session: its devices, in order."""
        self._acquire(message["devices"])
        return self._finish(message, fds)

    def finish(self) -> tuple[Teardown, dict[str, str]]:
        """The safe order for every function of the session. Returns why one is not clean, by spec; "" for all of them."""
        done, functions = Teardown(), list(self._functions.values())
        dead = self._worker < 0 or done.step("worker dead", self._end_worker)
        unreset = done.quiesce(functions)
        mapped = self._mapped
        if functions:
            done.step("unmap DMA", lambda: functions[0].unmap_dma(), functions[0].group)
            if done.steps[-1].problem or int(done.steps[-1].result or 0) < mapped:
                unreset[""] = f"DMA memory is still mapped: {done.steps[-1].problem or done.steps[-1].result}"
        for function in functions:
            done.step("close device", function.close, function.spec)
        if functions and not done.step("release container", functions[0].end_session, functions[0].group):
            unreset[""] = done.steps[-1].problem
        if not dead:
            unreset[""] = "its worker does not die"
        if self._worker >= 0:
            os.close(self._worker)
        self._worker, self._mapped = -1, 0
        self._functions.clear()
        return done, unreset

    def _end_worker(self) -> None:
        """A worker that lives could set MASTER again. Raises DeviceError if it cannot be ended."""
        poll = select.poll()
        poll.register(self._worker, select.POLLIN)
        if poll.poll(0):
            return
        signal.pidfd_send_signal(self._worker, signal.SIGKILL)
        if not poll.poll(KILL_SECONDS * 1000):
            raise DeviceError(Error.TIMEOUT, f"it does not die within {KILL_SECONDS:g} s: it sleeps in the kernel")

    def shut(self) -> None:
        """Give the group back."""
        for device in self._devices.values():
            device.shutdown()
