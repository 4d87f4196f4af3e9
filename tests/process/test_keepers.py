# SPDX-License-Identifier: MIT
"""Keepers that die and keepers that hang, as the supervisor meets them: their group is lost or followed, and no other."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import trio

from pcisplit.back.channel import Channel, ChannelClosed, answer, make_pair
from pcisplit.back.supervisor import keepers
from pcisplit.back.supervisor.keepers import KeeperLine, Keepers
from pcisplit.back.supervisor.processes import Line, Process

DEADLINE = 20.0


def sleeper() -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)


class Zygote:
    """Gives processes whose channel a thread of the test answers, by `say`; or has none left."""

    def __init__(self, say: Callable[[dict[str, Any]], dict[str, Any] | None]) -> None:
        self.say, self.left = say, 99
        self.started: list[subprocess.Popen[bytes]] = []
        self.ends: list[socket.socket] = []

    async def fork(self, nursery: trio.Nursery, kind: str, name: str) -> Process:
        if not self.left:
            raise OSError(12, "no memory")
        self.left -= 1
        child = sleeper()
        self.started.append(child)
        ours, theirs = make_pair()
        self.ends.append(theirs)
        process = Process(Line(ours, name, ours=True), child.pid, os.pidfd_open(child.pid))
        nursery.start_soon(process.line.run)
        nursery.start_soon(self._answer, Channel(theirs))
        return process

    async def _answer(self, channel: Channel) -> None:
        while True:
            await trio.lowlevel.wait_readable(channel.fileno())
            try:
                message, _ = channel.recv()
            except ChannelClosed:
                return
            if (result := self.say(message)) is not None:
                channel.send(answer(message["id"], **result))

    def end(self) -> None:
        for child in self.started:
            child.kill()
            child.wait()
            assert child.stdin is not None
            child.stdin.close()
        for end in self.ends:
            end.close()


CLEAN: dict[str, Any] = {"steps": [], "unclean": "", "unreset": {}}


def run(zygote: Zygote, work: Callable[[KeeperLine, trio.Nursery], Any]) -> None:
    async def main() -> None:
        with trio.fail_after(DEADLINE):
            async with trio.open_nursery() as nursery:
                found = Keepers(zygote)  # type: ignore[arg-type]
                keeper = await found.get(nursery, "group")
                await work(keeper, nursery)
                keeper.drop()
                nursery.cancel_scope.cancel()

    try:
        trio.run(main)
    finally:
        zygote.end()


@pytest.mark.clause("THR-17", "THR-18")
def test_a_keeper_that_was_killed_is_followed() -> None:
    asked: list[str] = []

    def say(message: dict[str, Any]) -> dict[str, Any]:
        asked.append(message["do"])
        return CLEAN

    zygote = Zygote(say)

    async def work(keeper: KeeperLine, nursery: trio.Nursery) -> None:
        zygote.started[0].kill()
        zygote.ends[0].shutdown(socket.SHUT_RDWR)
        await keeper.gone.wait()
        assert (await keeper.finish())[1] == ""
        assert (await keeper.finish())[1] == "", "the one that followed is asked from now on"

    run(zygote, work)
    assert asked == ["recover", "finish"]


@pytest.mark.clause("THR-3", "THR-18")
def test_a_keeper_that_hangs_or_cannot_be_followed_costs_its_group_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """However often it is tried again."""
    monkeypatch.setattr(keepers, "FINISH_SECONDS", 0.1)
    monkeypatch.setattr(keepers, "KILL_SECONDS", 0.1)
    zygote = Zygote(lambda message: None if len(zygote.started) == 1 else CLEAN)

    async def work(keeper: KeeperLine, nursery: trio.Nursery) -> None:
        with monkeypatch.context() as asleep:
            asleep.setattr(signal, "pidfd_send_signal", lambda *_: None)  # as in uninterruptible sleep
            for _ in range(3):
                _, unclean, _ = await keeper.finish()
                assert "hangs" in unclean
        zygote.left = 0
        for _ in range(3):
            _, unclean, _ = await keeper.finish()
            assert "cannot have it" in unclean
        zygote.left = 1
        assert (await keeper.finish())[1] == ""

    run(zygote, work)
