# SPDX-License-Identifier: MIT
"""The process that gives a session's f2b its last seals, as the supervisor has it; what it does is in ``keeper.sealer``."""

import math

import trio

from pcisplit.back.supervisor.processes import Process, Zygote
from pcisplit.proto.errors import DeviceError
from pcisplit.wire import Error

SEAL_SECONDS = 2.0


class Sealer:
    """``start`` it while the worker opens: the fork is most of what sealing takes, and the front waits for it.

    ``end`` it whatever happened.
    """

    def __init__(self, zygote: Zygote, name: str) -> None:
        self._zygote, self._name = zygote, name
        self._process: Process | None = None
        self._why = "no sealer was asked for"  # why there is none
        self._came: trio.Event | None = None  # or did not come

    def start(self, nursery: trio.Nursery) -> None:
        """Have it forked, in `nursery`, in which its line is read too."""
        self._came = trio.Event()
        nursery.start_soon(self._bring, nursery, self._came)

    async def _bring(self, nursery: trio.Nursery, came: trio.Event) -> None:
        try:
            self._process = await self._zygote.fork(nursery, "sealer", self._name)
        except (DeviceError, OSError) as problem:
            self._why = str(problem)
        finally:
            came.set()

    async def seal(self, fd: int) -> None:
        """Once. The sealer is ended afterwards. Raises DeviceError: BAD_REQUEST, QUOTA when there is none."""
        try:
            if self._came is not None:
                await self._came.wait()
            if self._process is None:  # we ran out of something, and the front has done nothing
                raise DeviceError(Error.QUOTA, f"f2b cannot be sealed: {self._why}")
            try:
                await self._process.line.ask("seal", SEAL_SECONDS, [fd])
            except DeviceError as problem:
                raise DeviceError(Error.BAD_REQUEST, f"f2b cannot be sealed: {problem}") from None
        finally:
            await self.end()

    async def end(self) -> None:
        """Kill it, if there is one or one is on its way. Idempotent."""
        if self._came is not None:
            with trio.CancelScope(shield=True):  # the zygote answers in time, or the fork has failed
                await self._came.wait()
        if self._process is not None:
            self._process.kill()

    async def dead(self) -> None:
        """Wait until it is dead, after ``end``. A front can keep it in uninterruptible sleep: that costs the front a place."""
        if self._process is not None:
            await self._process.wait_ended(math.inf)
            self._process.forget()
            self._process = None
