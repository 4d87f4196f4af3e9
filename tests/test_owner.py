# SPDX-License-Identifier: MIT
"""The owner of a device: calls, events, deadlines, holding, configuration space."""

import itertools
import json
import os
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from pcisplit import pci
from pcisplit.back.devices.models.base import bar
from pcisplit.back.devices.models.ram import RamModel
from pcisplit.back.policy import compile as policy
from pcisplit.back.policy.header import FIELDS, Field, Rule
from pcisplit.back.worker.owner import Owner
from pcisplit.proto.errors import AccessError, DeviceError
from pcisplit.proto.slots import Request, Response
from pcisplit.ring.words import Words, mmio_read
from pcisplit.wire import BACK_HEADER, DeviceState, Error, Op
from tests.offsets import offset_of
from tests.owners import DEADLINE, device_of, until
from tests.pair import Pair, Recorder

# -- calls, events, deadlines -----------------------------------------------------------------------------------


def test_a_call_is_done_in_the_owners_thread_and_its_exception_is_the_callers() -> None:
    with Pair(Recorder()) as pair:
        owner = pair.back.owners[0]
        threads = {owner.call(lambda o: (threading.get_ident(), o.doing), DEADLINE, "look") for _ in range(3)}
        assert threads == {(pair.back._threads[0].ident, "look")}
        assert owner.call(lambda o: o.call(lambda _: "inner", 0.0, "inner"), DEADLINE, "outer") == "inner"

        def fail(_: Owner) -> None:
            raise DeviceError(Error.OP_FAILED, "no")

        with pytest.raises(DeviceError, match="no"):
            owner.call(fail, DEADLINE, "fail")
        assert device_of(pair).bar(0).read32(4) == 4
        assert owner.snapshot()["calls"] == 5
        pair.stop()
        with pytest.raises(DeviceError, match="session is over"):
            owner.call(lambda _: None, DEADLINE, "late")


def test_a_call_that_waits_in_vain_names_what_the_owner_is_inside_of() -> None:
    device = Recorder()
    with Pair(device) as pair:
        device_of(pair)
        owner = pair.back.owners[0]
        assert (owner.doing, owner.snapshot()["seconds"]) == ("idle", pytest.approx(0.0, abs=0.5))
        device.hold.clear()
        pair.front._handle.submit([Request(Op.BAR_READ, device=0, width=4)])
        until(lambda: owner.doing == "bar_read")
        before = time.monotonic()
        assert owner.since <= before
        done: list[bool] = []
        with pytest.raises(TimeoutError, match=r"poke was not done in 0.05 s: its owner is inside of bar_read, for \d"):
            owner.call(lambda _: done.append(True), 0.05, "poke")
        device.hold.set()
        assert owner.call(lambda _: list(done), DEADLINE, "after") == [], "what was given up was done"


def test_calls_that_are_left_at_the_end_fail_at_once() -> None:
    device = Recorder()
    with Pair(device) as pair:
        device_of(pair)
        owner, problems = pair.back.owners[0], []
        device.hold.clear()
        pair.front._handle.submit([Request(Op.BAR_READ, device=0, width=4)])
        until(lambda: owner.doing == "bar_read")

        def late() -> None:
            try:
                owner.call(lambda _: None, DEADLINE, "late")
            except DeviceError as problem:
                problems.append(problem.code)

        caller = threading.Thread(target=late)
        caller.start()
        until(lambda: len(owner._calls) == 1)
        pair.back.stop_owners()
        device.hold.set()
        caller.join(DEADLINE)
        assert problems == [Error.GONE]
        assert owner.doing == "ended"


class Signalling(Recorder):
    def __init__(self) -> None:
        super().__init__()
        self.fds = {"req": os.eventfd(0, os.EFD_CLOEXEC), "err": os.eventfd(0, os.EFD_CLOEXEC)}

    def events(self) -> dict[str, int]:
        return self.fds


def test_events_of_the_device_reach_its_owner_each_time() -> None:
    device, other = Signalling(), Signalling()
    with Pair(device, other) as pair:
        seen: list[tuple[set[str], int | None]] = []
        for owner in pair.back.owners:
            owner.call(lambda _: None, DEADLINE, "up")
        pair.back.owners[0].on_event = lambda names: seen.append((names, threading.get_ident()))
        for count in range(1, 4):
            os.eventfd_write(device.fds["err"], 1)
            until(lambda count=count: len(seen) == count)  # type: ignore[misc]
        os.eventfd_write(device.fds["req"], 1)
        until(lambda: len(seen) == 4)
        assert [names for names, _ in seen] == [{"err"}] * 3 + [{"req"}]
        assert {thread for _, thread in seen} == {pair.back._threads[0].ident}
        assert pair.back.owners[1].snapshot()["events"] == 0
    for fd in (*device.fds.values(), *other.fds.values()):
        os.close(fd)


def test_deadlines_come_in_their_order_and_not_early() -> None:
    with Pair(Recorder()) as pair:
        owner, done, finished = pair.back.owners[0], [], threading.Event()
        start = time.monotonic()

        def note(name: str) -> Callable[[], None]:
            return lambda: done.append((name, time.monotonic() - start))

        def fail() -> None:
            raise ZeroDivisionError

        owner.at(start + 0.06, finished.set)
        owner.at(start + 0.05, note("second"))
        owner.at(start + 0.03, fail)
        owner.at(start + 0.02, note("first"))
        assert finished.wait(DEADLINE)
        assert [name for name, _ in done] == ["first", "second"]
        assert all(at >= due for (_, at), due in zip(done, (0.02, 0.05), strict=True))
        assert owner.snapshot()["deadlines"] == 4


# -- hold ----------------------------------------------------------------------------------------------------------


@pytest.mark.clause("ORD-2", "ORD-1")
def test_a_held_device_starts_nothing_and_the_others_go_on() -> None:
    held, other = Recorder("held"), Recorder("other")
    with Pair(held, other) as pair:
        first, second = device_of(pair, 0), device_of(pair, 1)
        first.bar(1).write32(0, 1)  # mapped: the loop's own access
        inside, go_on, looked = threading.Event(), threading.Event(), []

        def hold(owner: Owner) -> None:
            with owner.held(), owner.held():
                inside.set()
                assert go_on.wait(DEADLINE)
                looked.append(mmio_read(held._memory[0], 0, 4))

        owner = pair.back.owners[0]
        holder = threading.Thread(target=owner.call, args=(hold, DEADLINE, "hold"))
        holder.start()
        assert inside.wait(DEADLINE)
        requests = [Request(Op.BAR_WRITE, device=0, region=1, width=4, value=2), Request(Op.CONF_READ, width=4)]
        ids = pair.front._handle.submit(requests)
        assert [second.bar(1).read32(0), second.bar(0).read32(8)] == [0, 8]  # the loop's, and its owner's
        assert pair.front._handle.poll() == []
        assert owner.snapshot()["queued"] == 2
        go_on.set()
        holder.join(DEADLINE)
        assert looked == [1], "an access was made while the device was held"
        answers: list[Response] = []
        while len(answers) < 2:
            answers += pair.front._handle.poll_or_wait()
        assert [answer.id for answer in answers] == ids
        assert first.bar(1).read32(0) == 2


def test_holding_again_and_again_never_meets_an_access() -> None:
    """The loop writes a register without pause; held, its value stands still, however the moments fall."""
    device = Recorder()
    with Pair(device) as pair:
        register, end = device_of(pair).bar(1), threading.Event()
        moved: list[set[int]] = []

        def write() -> None:
            for value in itertools.count(1):
                register.post32(0, value & 0xFFFFFFFF)
                if value % 16 == 0:
                    register.read32(0)
                if end.is_set():
                    return

        def hold(owner: Owner) -> None:
            deadline = time.monotonic() + DEADLINE / 2
            while len(moved) < 300 or (len(set().union(*moved)) <= 10 and time.monotonic() < deadline):
                with owner.held():
                    seen = {mmio_read(device._memory[0], 0, 4) for _ in range(20)}
                moved.append(seen)

        writer = threading.Thread(target=write)
        writer.start()
        pair.back.owners[0].call(hold, DEADLINE, "hold")
        end.set()
        writer.join(DEADLINE)
        assert all(len(seen) == 1 for seen in moved), "an access was made while the device was held"
        assert len(set().union(*moved)) > 10, "nothing was written: the test shows nothing"


def test_holding_waits_for_no_loop_that_does_not_run() -> None:
    """Before the loop has started, after it has ended, and when it ends while it is held."""
    device = Recorder()
    with Pair(device, start=False) as pair:
        owner = pair.back.owners[0]
        threads = [threading.Thread(target=work, daemon=True) for work in (owner.run, pair.back.serve)]
        pair._threads, pair.back._threads = [threads[1]], [threads[0]]  # as stop() expects them

        def hold(owner: Owner) -> str:
            with owner.held():
                return "held"

        def hold_over_the_end(owner: Owner) -> str:
            with owner.held():
                pair.back.stop()
                threads[1].join(DEADLINE)
                assert not threads[1].is_alive()
            return hold(owner)

        threads[0].start()
        assert owner.call(hold, DEADLINE, "before") == "held"
        threads[1].start()
        assert owner.call(hold, DEADLINE, "asleep") == "held"
        assert owner.call(hold_over_the_end, DEADLINE, "over the end") == "held"


class Slow(Recorder):
    """BAR 1 is memory behind a very slow bus: the loop itself waits for it."""

    def _power_on(self) -> None:
        super()._power_on()
        self.bars = (self.bars[0], bar(1, 4096, self._memory_area(4096, read_ns=20_000_000)))


def test_holding_does_not_outlast_a_loop_that_ends_meanwhile() -> None:
    """The loop is in the middle of a long access when the owner wants to hold, and does not come to another turn."""
    with Pair(Slow()) as pair:
        device_of(pair)
        b2f = pair.front._maps[1]
        assert b2f is not None
        words, at = Words(b2f), offset_of("requests", BACK_HEADER)
        before, begun, done = words.load(at), threading.Event(), threading.Event()

        def hold(owner: Owner) -> None:
            begun.set()
            with owner.held():
                done.set()

        pair.front._handle.submit([Request(Op.BAR_READ_BLOCK, device=0, region=1, width=4, length=64)])
        until(lambda: words.load(at) > before)
        words.release()
        holder = threading.Thread(target=pair.back.owners[0].call, args=(hold, DEADLINE, "hold"))
        holder.start()
        assert begun.wait(DEADLINE)
        pair.back.stop()
        assert done.wait(DEADLINE / 2), "the owner waits for a loop that has ended"
        holder.join(DEADLINE)


# -- what is seen ---------------------------------------------------------------------------------------------------------


def test_a_snapshot_waits_for_nobody() -> None:
    device = Recorder()
    with Pair(device) as pair:
        remote = device_of(pair)
        owner = pair.back.owners[0]
        with pytest.raises(AccessError):
            remote.config.write8(0, 0x5A)
        device.hold.clear()
        requests = [Request(Op.BAR_READ, device=0, width=4), Request(Op.NOP), Request(Op.NOP)]
        pair.front._handle.submit(requests)
        until(lambda: (owner.snapshot()["queued"], owner.doing) == (2, "bar_read"))  # the owner may wake up late
        shown: dict[str, Any] = json.loads(json.dumps(owner.snapshot()))
        device.hold.set()
        assert shown["seconds"] >= 0
        wanted = {
            "device": "recorder",
            "state": "acquired",
            "generation": 1,
            "doing": "bar_read",
            "queued": 2,
            "refused": 1,
            "refusals": {"ids": 1},
        }
        assert wanted.items() <= shown.items()
        remote.reset()
        assert owner.snapshot()["generation"] == 2
        assert owner.state is DeviceState.ACQUIRED
        pair.stop()
        after = owner.snapshot()
        assert (after["doing"], after["refusals"]) == ("ended", {"ids": 1})


# -- configuration space ------------------------------------------------------------------------------------------------------


@pytest.mark.clause("CFG-14", "CFG-6")
def test_bits_of_any_register_reach_the_device_and_others_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    fields = Field(0x40, 2, Rule.GAP, hardware=0xFFFF, through=0x00F0, clear=0x0F00, ignore=0xF00F)
    monkeypatch.setattr(policy, "FIELDS", (*FIELDS, fields))
    device = Recorder()
    with Pair(device) as pair:
        config = device_of(pair).config
        device._config[0x40:0x42] = (0x5A5A).to_bytes(2, "little")
        device.calls.clear()
        config.write16(0x40, 0x01C0)
        assert device.calls == ["config 0x40 = 0x51ca"]  # bits 8-11: only the 1 that was written
        config.write8(0x41, 0x00)
        config.write16(pci.COMMAND, 0)
        assert device.calls[1:] == ["config 0x4 = 0x400"]
        assert config.read16(0x40) == 0x51CA


@pytest.mark.clause("CFG-14")
def test_a_status_error_is_cleared_by_a_one_and_by_nothing_else() -> None:
    device = RamModel({})
    with Pair(device) as pair:
        config = device_of(pair).config
        device._config[pci.STATUS + 1] = 0xF1
        status = config.read16(pci.STATUS)
        assert status & pci.STATUS_ERRORS == 0xF100
        config.write32(pci.COMMAND, pci.COMMAND_MEM)  # MASTER changes in the same access; STATUS is written as zeros
        assert config.read16(pci.STATUS) == status
        config.write16(pci.STATUS, 0x8100)
        assert config.read16(pci.STATUS) == status & ~0x8100


def test_octets_with_a_trap_go_to_its_handler(monkeypatch: pytest.MonkeyPatch) -> None:
    fields = (
        Field(0x40, 2, Rule.GAP, init=0, virtual=0xFFFF, trap=7),
        Field(0x42, 2, Rule.GAP, init=0, virtual=0xFFFF),
    )
    monkeypatch.setattr(policy, "FIELDS", (*FIELDS, *fields))
    with Pair(Recorder()) as pair:
        config, owner, calls = device_of(pair).config, pair.back.owners[0], []

        def handler(offset: int, width: int, value: int) -> None:
            if value == 0xEE:
                raise DeviceError(Error.DENIED, "not that", Rule.GAP)
            calls.append((offset, width, value))
            owner.core.config_apply(offset, width, value)

        owner.traps[7] = handler
        config.write16(0x40, 0x1234)
        config.write32(0x40, 0xAABBCCDD)
        assert calls == [(0x40, 2, 0x1234), (0x40, 1, 0xDD), (0x41, 1, 0xCC)]
        assert config.read32(0x40) == 0xAABBCCDD
        with pytest.raises(AccessError) as refused:
            config.write8(0x41, 0xEE)
        assert (refused.value.code, refused.value.rule) == (Error.DENIED, Rule.GAP)
        assert config.read32(0x40) == 0xAABBCCDD
