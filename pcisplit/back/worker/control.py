# SPDX-License-Identifier: MIT
"""What the operator asks of a session while it runs: counters at once, configuration space through the owner."""

import queue
import threading
from collections.abc import Callable
from typing import Any

from pcisplit.back.worker.owner import Owner
from pcisplit.back.worker.session import WorkerSession
from pcisplit.proto.errors import DeviceError
from pcisplit.wire import Error

#: Seconds that an owner gets to come back from what it is inside of, a slow reset say.
OWNER_SECONDS = 5.0

Answer = Callable[[dict[str, Any]], None]
Refuse = Callable[[Error, str], None]


class Control:
    """Answers for one session. What has to wait for an owner waits in a thread of its own, one question after another."""

    def __init__(self, session: WorkerSession) -> None:
        self._session = session
        self._jobs: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        threading.Thread(target=self._run, name="control", daemon=True).start()

    def _run(self) -> None:
        while True:
            self._jobs.get()()

    def stats(self) -> dict[str, Any]:
        """Counters, without waiting for anybody."""
        devices = [device_counters(owner.snapshot()) for owner in self._session.owners]
        return {"state": self._session.state.name.lower(), "session": self._session.counters(), "devices": devices}

    def dump(self, device: int, hardware: bool, done: Answer, refuse: Refuse) -> None:
        """Configuration space of a device, as the front sees it or as the device says; `done` or `refuse` is called later."""
        owner = self._session.owners[device]

        def job() -> None:
            try:
                octets = owner.call(lambda owner: read_space(owner, hardware), OWNER_SECONDS, "dump")
            except TimeoutError as problem:
                refuse(Error.BUSY, str(problem))
            except DeviceError as problem:
                refuse(problem.code, str(problem))
            else:
                done({"octets": octets.hex()})

        self._jobs.put(job)


def device_counters(snapshot: dict[str, Any]) -> dict[str, Any]:
    """The whole numbers of an owner's snapshot, and its refusals by rule."""
    names = ("generation", "requests", "refused", "posted_errors", "queued", "slices", "calls", "events", "deadlines")
    counters = {name: snapshot[name] for name in names} | {"owner_us": snapshot["owner_ns"] // 1000}
    return {"counters": counters, "refused": snapshot["refusals"]}


def read_space(owner: Owner, hardware: bool) -> bytes:
    """All of configuration space, in the owner's thread. Raises DeviceError."""
    read = owner.device.config_read if hardware else owner.config_read
    return b"".join(read(at, 4).to_bytes(4, "little") for at in range(0, owner.device.config_size, 4))
