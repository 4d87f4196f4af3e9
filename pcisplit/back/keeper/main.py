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
from functools import partial
from typing import Any

from pcisplit.back import log
from pcisplit.back.channel import Channel, ChannelClosed, Message, answer, close_all, failure
from pcisplit.back.devices.vfio.acquire import acquire
from pcisplit.back.devices.vfio.checks import check_function
from pcisplit.back.devices.vfio.function import VfioFunction
from pcisplit.back.devices.vfio.group import Group
from pcisplit.back.teardown import Teardown
from pcisplit.pci import Bdf
from pcisplit.proto.errors import DeviceError
from pcisplit.wire import Error, ResetMethod

#: Seconds that the kernel gets to end a killed worker.
KILL_SECONDS = 5.0

Result = tuple[dict[str, Any], Sequence[int]]


def run(channel: Channel) -> None:
    """The whole life of a keeper."""
    log.configure(sink=lambda level, event, fields: log.tell(channel, level, event, fields))
    keeper = Keeper(channel)
    try:
        keeper.run()
    except ChannelClosed:
        log.configure(sink=lambda *_: None)
        keeper.finish()
        keeper.shut()
        raise


class Keeper:
    """One group. `functions` are those of the session that there is, by address."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._group: Group | None = None
        self._functions: dict[str, VfioFunction] = {}
        self._worker = -1  # its pidfd
        self._mapped = 0  # octets

    def run(self) -> None:
        """Obey until told to shut. Raises ChannelClosed."""
        orders: dict[str, Callable[[Message, list[int]], Result]] = {
            "open": self._open,
            "map": self._map,
            "hot_reset": self._hot_reset,
            "select_reset": self._select_reset,
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
            except (OSError, ValueError) as problem:
                self._channel.send(failure(message["id"], Error.DEVICE_FAILED, str(problem)))
            else:
                self._channel.send(answer(message["id"], **result), sent)

    # -- a session begins -------------------------------------------------------------------------------------

    def _open(self, message: Message, fds: list[int]) -> Result:
        if self._worker >= 0:
            close_all(fds)
            raise DeviceError(Error.BUSY, "the worker of the last session is not dead yet")
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
            bdf, expected = Bdf.parse(what["bdf"]), tuple(what["id"]) if what["id"] else None
            check_function(bdf, what["group"], expected)
            if self._group is None:
                self._group = Group(what["group"])
            if not self._functions:
                self._group.end()  # of a session that could not end in time: once more
                self._group.begin()
            self._functions[what["bdf"]] = acquire(self._group, bdf, expected, what["reset"])

    def _map(self, message: Message, fds: list[int]) -> Result:
        assert self._group is not None
        try:
            self._group.map(fds[0], message["size"], message["iova"])
            self._mapped += message["size"]
        finally:
            close_all(fds)
        return {}, []

    # -- what only we can do for a worker ---------------------------------------------------------------------

    def _hot_reset(self, message: Message, fds: list[int]) -> Result:
        function = self._function(message)
        _check_reset(function, ResetMethod.BUS)
        function.host.hot_reset()
        return {}, []

    def _function(self, message: Message) -> VfioFunction:
        if message["bdf"] not in self._functions:  # the session is over, and its worker asked in its last moment
            raise DeviceError(Error.GONE, f"{message['bdf']} is in no session")
        return self._functions[message["bdf"]]

    def _select_reset(self, message: Message, fds: list[int]) -> Result:
        function, method = self._function(message), ResetMethod(message["method"])
        _check_reset(function, method)
        function.select_reset(method)
        return {}, []

    # -- a session ends ---------------------------------------------------------------------------------------

    def _finish(self, message: Message, fds: list[int]) -> Result:
        done, unclean, unreset = self.finish()
        return {"steps": [list(step) for step in done.steps], "unclean": unclean, "unreset": unreset}, []

    def _recover(self, message: Message, fds: list[int]) -> Result:
        """The keeper before us died in the middle of a session: its devices, in order."""
        if fds:
            (self._worker,) = fds
        self._acquire(message["devices"])
        return self._finish(message, fds)

    def finish(self) -> tuple[Teardown, str, dict[str, str]]:
        """The safe order for every function of the session; again, for what could not be done before.

        Returns why the group cannot be let go of, if so, and why a function was not reset, by spec.
        """
        done, functions, group = Teardown(), list(self._functions.values()), self._group
        dead = self._worker < 0 or done.step("worker dead", self._end_worker)
        unreset = {functions[index].spec: why for index, why in done.quiesce(functions).items()}
        if group is not None and group.begun:
            where = f"IOMMU group {group.number}"
            done.step("unmap DMA", group.unmap, where)
            done.step("check unmapped", partial(self._check_unmapped, done.steps[-1].result), where)
            if dead:  # else it could set MASTER again: the devices stay open, to go through all of this once more
                for function in functions:
                    done.step("close device", function.close, function.spec)
                self._functions.clear()
                done.step("release container", group.end, where)
        vital = ("worker dead", "unmap DMA", "check unmapped", "release container")
        unclean = next((step.problem for step in done.steps if step.problem and step.name in vital), "")
        self._mapped = 0
        if dead and self._worker >= 0:
            os.close(self._worker)
            self._worker = -1
        return done, unclean, unreset

    def _check_unmapped(self, octets: str) -> None:
        if int(octets or 0) < self._mapped:
            raise DeviceError(Error.OP_FAILED, f"{octets or 0} of {self._mapped} octets of DMA memory were unmapped")

    def _end_worker(self) -> None:
        """A worker that lives could set MASTER again. Raises DeviceError if it cannot be ended."""
        poll = select.poll()
        poll.register(self._worker, select.POLLIN)
        if poll.poll(0):
            return
        signal.pidfd_send_signal(self._worker, signal.SIGKILL)
        if not poll.poll(KILL_SECONDS * 1000):
            raise DeviceError(
                Error.TIMEOUT, f"its worker does not die within {KILL_SECONDS:g} s: it sleeps in the kernel"
            )

    def shut(self) -> None:
        """Give the group back."""
        if self._group is not None:
            self._group.close()


def _check_reset(function: VfioFunction, method: ResetMethod) -> None:
    """What the operator did not choose is no worker's to ask for [LIFE-26]. Raises DeviceError."""
    if method not in function.reset_methods:
        raise DeviceError(Error.NO_RESET, f"{function.spec}: has no reset by {method.name.lower()}")
