# SPDX-License-Identifier: MIT
"""A worker: the process of one session. It does what the supervisor orders, and is jailed before its front hears of it.

======================  ===============================================================================================
thread                  owns
======================  ===============================================================================================
main                    the channel: orders of the supervisor
control                 questions of the operator that wait for an owner
serve                   the loop (C, no GIL), the front's life, and in the end the teardown and the process
owner, one per device   the device outside of the loop
model, one per model    what a model does by itself
======================  ===============================================================================================
"""

import base64
import concurrent.futures
import itertools
import os
import threading
import traceback
from collections.abc import Callable
from typing import Any

from pcisplit.back import log
from pcisplit.back.channel import Channel, ChannelClosed, Message, answer, failure, request, result_of
from pcisplit.back.devices import signal
from pcisplit.back.devices.device import Function
from pcisplit.back.devices.models import DumpModel, RamModel, make_model
from pcisplit.back.devices.vfio.function import Host, VfioFunction
from pcisplit.back.host.harden import die_with_parent
from pcisplit.back.host.resources import Resources
from pcisplit.back.worker import jail
from pcisplit.back.worker.assemble import DeviceOrder, SessionOrder, assemble
from pcisplit.back.worker.control import Control
from pcisplit.back.worker.session import WorkerSession
from pcisplit.proto.errors import DeviceError, known_error
from pcisplit.wire import Error, Feature, ResetMethod, VectorMode

#: Octets of address space that a worker may take beyond what its session begins with.
SPARE_MEMORY = 64 << 20
#: Seconds that the supervisor gets to answer.
ASK_SECONDS = 30.0

#: CPython 3.11 specializes code after 8 runs, 3.12 and 3.13 sooner.
_PRACTICE = 20

_filter: Any = None


def prepare() -> None:
    """In the zygote: what is the same for every worker; and what workers do in Python, done a few times for practice.

    The interpreter writes what it learns of code and types into their pages. Learnt here, it is shared; learnt by each
    worker, every page is copied by each.
    """
    global _filter
    _filter = jail.make_filter()
    model = RamModel({})
    order = SessionOrder(0, Feature(0), 0, (DeviceOrder(model.spec, 1),), dma_size=1)
    for _ in range(_PRACTICE):
        assemble(order, [model])


def run(channel: Channel) -> None:
    """The whole life of a worker."""
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):  # what a worker has to say goes through its channel, where it is limited and escaped
        os.dup2(null, fd)
    os.close(null)
    log.configure(sink=lambda level, event, fields: log.tell(channel, level, event, fields))
    Worker(channel).run()


class Worker:
    """One session and its channel."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._session: WorkerSession | None = None
        self._control: Control | None = None
        self._served = False  # it has a serve thread, which will end it and us
        self._idents = itertools.count(1)
        self._asked: dict[int, concurrent.futures.Future[Message]] = {}

    def run(self) -> None:
        """Obey until the channel closes; the supervisor is gone then, and so are we."""
        orders: dict[str, Callable[[Message, list[int]], dict[str, Any] | None]] = {
            "open": self._open,
            "stop": self._stop,
            "dump": self._dump,
            "stats": self._stats,
        }
        while True:
            message, fds = self._channel.recv()
            if "tell" in message:
                continue
            if "do" not in message:
                if (asked := self._asked.pop(message["id"], None)) is not None:
                    asked.set_result(message)
                continue
            try:
                result = orders[message["do"]](message, fds)
            except ChannelClosed:
                raise
            except DeviceError as problem:
                self._channel.send(failure(message["id"], problem.code, str(problem)))
            except (OSError, ValueError) as problem:
                self._channel.send(failure(message["id"], Error.DEVICE_FAILED, str(problem)))
            except Exception as problem:  # a bug of ours, told so that it is found
                log.bug("worker failed", traceback.format_exc())
                self._channel.send(failure(message["id"], Error.OP_FAILED, repr(problem)))
            else:
                if result is not None:
                    self._channel.send(answer(message["id"], **result))

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Ask the supervisor, from any thread but the main one. Raises DeviceError: its own, TIMEOUT."""
        ident = next(self._idents)
        asked = self._asked[ident] = concurrent.futures.Future()
        self._channel.send(request(ident, do, **arguments))
        try:
            return result_of(asked.result(ASK_SECONDS))
        except TimeoutError:
            self._asked.pop(ident, None)
            raise DeviceError(Error.TIMEOUT, f"the supervisor did not {do} within {ASK_SECONDS:g} s") from None

    # -- opening ----------------------------------------------------------------------------------------------

    def _open(self, message: Message, fds: list[int]) -> dict[str, Any]:
        """Everything that needs a path, a thread or a privilege; then the jail; then the session can be met."""
        devices, uid = message["devices"], message["uid"]
        if uid in (None, os.geteuid()):  # a change of uid, which needs them, takes them from all threads by itself
            jail.drop_capabilities()
        order = SessionOrder(
            number=message["number"],
            features=Feature(message["features"]),
            minor=message["minor"],
            devices=tuple(
                DeviceOrder(d["name"], d["vectors"], VectorMode(d["mode"]), "vfio" in d["what"], d["shared"])
                for d in devices
            ),
            dma_size=message["dma_size"],
            dma_iova=message["dma_iova"],
            spin=message["spin"],
        )
        if any(device.mode is VectorMode.DIRECT for device in order.devices):  # its context costs 40 ms when we end
            signal.prepare()
        take = iter(fds)
        resources = Resources(
            f2b=next(take),
            b2f=next(take),
            kick=next(take),
            ring=next(take),
            rung=-1,  # the front's end
            dma=next(take) if order.dma_size else -1,
            vectors=tuple(tuple(next(take) for _ in range(device.vectors)) for device in order.devices),
        )
        try:
            functions: list[Function] = [self._function(index, device, take) for index, device in enumerate(devices)]
            session = self._session = WorkerSession(order, resources, functions, self._initialised, self._connected)
            boot_info = session.open()
            session.start()
            self._control = Control(session)
            threading.Thread(target=self._serve, name="serve", daemon=True).start()
        except RuntimeError as problem:  # fronts can cause that by being many
            raise DeviceError(Error.QUOTA, f"no thread is left for the session: {problem}") from None
        self._served = True
        zygote = os.getppid()
        jail.drop_user(uid)
        die_with_parent(zygote)
        jail.lock(_filter, SPARE_MEMORY)
        return {"boot_info": base64.b64encode(boot_info).decode()}

    def _function(self, index: int, device: dict[str, Any], fds: Any) -> Function:
        what = device["what"]
        if "vfio" in what:
            function = VfioFunction.from_description(next(fds), what["vfio"], KeeperHost(self, index))
            function.map_bars()
            return function
        model = DumpModel(what["dump"]) if "dump" in what else make_model(what["model"], what["options"])
        return model.acquire()

    def _initialised(self) -> None:
        self.ask("initialised")

    def _connected(self) -> None:
        self._channel.send({"tell": "connected"})

    # -- while it runs ----------------------------------------------------------------------------------------

    def _serve(self) -> None:
        """The serve thread: the session, then its end, which is the end of the process."""
        session = self._session
        assert session is not None
        status = 0
        try:
            session.serve()
            told = session.close()
            over = {
                "reason": int(session.reason),
                "steps": [list(step) for step in told.steps],
                "refusals": session.refusals,
                "unreset": session.unreset,
            }
            self._channel.send({"tell": "over", **over})
        except ChannelClosed:
            pass
        except BaseException:
            log.bug("worker failed", traceback.format_exc())
            status = 1
        finally:
            os._exit(status)

    def _stop(self, message: Message, fds: list[int]) -> dict[str, Any]:
        if self._session is None or not self._served:  # opening failed
            raise ChannelClosed("no session was opened")
        reason = known_error(message["reason"])
        if reason is not Error.SUCCESS:
            self._session.end(reason)
        self._session.stop()
        return {}

    # -- the control plane ------------------------------------------------------------------------------------

    def _dump(self, message: Message, fds: list[int]) -> None:
        """Answered by the control thread: an owner may be inside of a reset."""
        self._opened().dump(
            message["device"],
            message["hardware"],
            lambda result: self._channel.send(answer(message["id"], **result)),
            lambda code, text: self._channel.send(failure(message["id"], code, text)),
        )

    def _opened(self) -> Control:
        if self._control is None:
            raise DeviceError(Error.BUSY, "the session is being opened; try again")
        return self._control

    def _stats(self, message: Message, fds: list[int]) -> dict[str, Any]:
        return self._opened().stats()


class KeeperHost(Host):
    """What only the keeper of a function's group can do, asked for by way of the supervisor."""

    def __init__(self, worker: Worker, index: int) -> None:
        self._worker, self._index = worker, index

    def hot_reset(self) -> None:
        self._worker.ask("hot_reset", device=self._index)

    def select_reset(self, method: ResetMethod) -> None:
        self._worker.ask("select_reset", device=self._index, method=int(method))

    def map_dma(self, fd: int, size: int, iova: int) -> None:
        raise DeviceError(Error.NOT_IMPLEMENTED, "the keeper has mapped what there is to map")

    def unmap_dma(self) -> int:
        raise DeviceError(Error.NOT_IMPLEMENTED, "the keeper unmaps when the worker is dead")
