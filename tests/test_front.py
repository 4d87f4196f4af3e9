# SPDX-License-Identifier: MIT
"""The public frontend against a backend in another process: what a driver's author sees."""

import os
import re
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pcisplit import pci
from pcisplit.back.devices.device import Interrupts
from pcisplit.front import Session
from pcisplit.proto.errors import AccessError, AccessTimeout, BusyError
from pcisplit.proto.meeting import Need
from pcisplit.wire import Error
from pcisplit.wire.rules import Rule, rule_name
from tests.conftest import Backend
from tests.pair import Pair, Recorder


def test_the_session_of_the_readme(backend: Backend) -> None:
    with backend.connect() as session:
        nic = session.acquire("edu0")
        assert nic.config.read16(0) == 0x1234
        nic.config.write16(4, 0x6)
        nic.bar(0).write32(4, 0x12345678)
        assert nic.bar(0).read32(4) == 0xEDCBA987
        nic.irq(0).enable()
        nic.bar(0).write32(0x60, 1)
        assert nic.irq(0).wait(timeout=10.0) == 1
    backend.wait_log("session over")


def test_reprs_are_readable(session: Session) -> None:
    edu = session.acquire("edu0")
    assert repr(session).startswith("<session 1, open: edu0, ram0; <DMA pool: 0x400000 octets in 1 windows")
    assert repr(edu) == "<device edu0 1234:11e8: BAR 0; 1 vectors>"
    assert repr(edu.bar(0)) == "<BAR 0 of edu0: 0x100000 octets of memory>"
    assert repr(edu.irq(0)) == "<vector 0 of edu0, relayed>"
    assert repr(edu.config) == "<configuration space of edu0>"
    assert repr(session.dma.alloc(4096)) == "<DMA buffer: 0x1000 octets at IOVA 0x200000>"


def test_errors_say_what_where_and_what_to_do(session: Session) -> None:
    ram = session.acquire("ram0")
    cases: list[tuple[Callable[[], object], Error, str]] = [
        (lambda: ram.bar(0).read32(2), Error.UNALIGNED, "read of 4 octets at 0x2 in BAR 0 (0x100000 octets) of ram0"),
        (lambda: ram.bar(0).read(0, 3), Error.BAD_SIZE, "read of 3 octets"),
        (lambda: ram.bar(0).read32(1 << 20), Error.INVALID_OFFSET, "at 0x100000"),
        (lambda: ram.config.write32(0, 1), Error.DENIED, "by rule ids (1), octet 0x0"),
        (lambda: ram.bar(2).read32(0x800), Error.DENIED, "BAR 2"),
        (lambda: ram.bar(1), Error.INVALID_OFFSET, "which has [0, 2, 4]"),
        (lambda: ram.irq(3), Error.TOO_MANY_VECTORS, "which got 1 at the meeting"),
        (lambda: session.acquire("nic9"), Error.DEV_NOT_FOUND, "this session has edu0, ram0"),
        (lambda: session.dma.alloc(1 << 30), Error.DMA_TOO_LARGE, "serve --dma must allow"),
    ]
    for call, code, text in cases:
        with pytest.raises(AccessError) as refused:
            call()
        assert refused.value.code is code
        assert text in str(refused.value)


@pytest.mark.clause("BAR-1", "BAR-3")
@pytest.mark.parametrize("width", [1, 2, 4, 8])
def test_widths(session: Session, width: int) -> None:
    memory = session.acquire("ram0").bar(0)
    memory.write_block(0, bytes(range(1, 33)))
    assert memory.read(16, width) == int.from_bytes(bytes(range(17, 17 + width)), "little")
    memory.write(16, width, (1 << (8 * width)) - 1)
    assert memory.read_block(0, 32) == bytes(range(1, 17)) + b"\xff" * width + bytes(range(17 + width, 33))


@pytest.mark.clause("BAR-20", "BAR-21", "BAR-22")
@pytest.mark.parametrize("width", [1, 4, 8])
def test_blocks_of_any_length(session: Session, width: int) -> None:
    memory, data = session.acquire("ram0").bar(0), os.urandom(100_000)
    memory.write_block(64, data, width)
    assert memory.read_block(64, len(data), width) == data


def test_many_reads_in_flight(session: Session) -> None:
    memory = session.acquire("ram0").bar(0)
    memory.write_block(0, b"".join(n.to_bytes(4, "little") for n in range(200)))
    assert list(memory.read_many(range(0, 800, 4))) == list(range(200))


def test_posted_errors_are_counted_before_the_next_answer(session: Session) -> None:
    ram = session.acquire("ram0")
    for _ in range(3):
        ram.bar(0).post(1, 4, 0)  # unaligned: nobody answers
    ram.nop()
    assert ram.posted_errors == 3
    assert ram.refused == 3


def test_the_trace_shows_what_crossed(session: Session) -> None:
    ram = session.acquire("ram0")
    with session.trace() as crossed:
        ram.bar(0).write32(0, 5)
        ram.bar(0).read32(0)
    lines = [str(message).split("#")[0] for message in crossed]
    assert lines == ["bar_write ", "bar_write ", "bar_read ", "bar_read "]


def test_waiting_for_an_interrupt_that_does_not_come(session: Session) -> None:
    with pytest.raises(AccessTimeout) as late:
        session.acquire("edu0").irq(0).wait(timeout=0.05)
    assert "waiting 0.05 s for vector 0 of edu0" in str(late.value)


def test_waiting_in_a_trio_task(session: Session) -> None:
    edu = session.acquire("edu0")
    edu.irq(0).enable()

    async def main() -> int:
        async with trio.open_nursery() as nursery:
            counts: list[int] = []

            async def wait() -> None:
                counts.append(await edu.irq(0).wait_async())

            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            edu.bar(0).write32(0x60, 1)
            with trio.fail_after(10):
                while not counts:
                    await trio.lowlevel.checkpoint()
            return counts[0]

    import trio.testing

    assert trio.run(main) == 1


def test_two_threads_in_one_session(session: Session) -> None:
    edu = session.acquire("edu0")
    inside = threading.Event()

    def wait() -> None:
        while True:
            try:
                inside.set()
                edu.irq(0).wait(timeout=1.0)
            except BusyError:
                continue
            except AccessTimeout:
                return

    thread = threading.Thread(target=wait)
    thread.start()
    inside.wait()
    deadline = time.monotonic() + 10
    with pytest.raises(BusyError, match="another thread"):
        while time.monotonic() < deadline:
            edu.config.read32(0)
    thread.join()
    edu.config.read32(0)


@pytest.mark.clause("ERR-4", "RING-9", "BAR-23", "ORD-15")
def test_an_answer_that_comes_too_late_is_dropped_and_counted(backend: Backend) -> None:
    """The worker is stopped (SIGSTOP) while a call waits: `timeout`, and nothing is mistaken for its answer later."""
    with backend.connect() as session:
        ram = session.acquire("ram0")
        ram.config.write16(4, 7)
        ram.bar(0).write32(0, 0x11111111)
        session.set_timeout(0.05)
        (worker,) = backend.workers(1)
        os.kill(worker, signal.SIGSTOP)
        while "T (stopped)" not in Path(f"/proc/{worker}/status").read_text():
            os.sched_yield()
        try:
            for _ in range(3):
                with pytest.raises(AccessTimeout):
                    ram.bar(0).read32(0)
            with pytest.raises(AccessTimeout):
                ram.bar(0).read_block(0, 4096)
            with pytest.raises(AccessTimeout):
                ram.bar(0).write_block(64, b"\x22" * 64)
        finally:
            os.kill(worker, signal.SIGCONT)
        session.set_timeout(20.0)
        assert ram.bar(0).read_block(64, 64) == b"\x22" * 64  # the write happened all the same, in order
        assert session.statistics == {"late": 5, "strange": 0, "stale": 0}


# -- what the errors say ------------------------------------------------------------------------------------------------


def test_an_empty_pool_says_what_it_has(session: Session) -> None:
    session.dma.alloc(session.dma.size - 4096)
    with pytest.raises(AccessError) as empty:
        session.dma.alloc(8192)
    assert not empty.value.retry
    assert "the pool of 0x400000 octets has 0x1000 free" in str(empty.value)
    assert "free a buffer, or ask for more at connect(dma=...)" in str(empty.value)
    assert "quota" not in str(empty.value)
    assert "trying again" not in str(empty.value)


@pytest.mark.clause("CFG-3")
def test_a_refusal_names_its_rule(session: Session) -> None:
    config = session.acquire("edu0").config
    for offset, name in ((0x08, "ids (1)"), (0x34, "cap-pointer (8)"), (0x40, "capability (10)"), (0xF0, "gap (12)")):
        with pytest.raises(AccessError, match=re.escape(f"denied by rule {name}, octet {offset:#x}: ")):
            config.write32(offset, 0xFFFFFFFF)
    assert rule_name(0x1001) == "4097 of the operator"
    assert rule_name(99) == "99"


def test_rules_are_called_as_the_specification_calls_them() -> None:
    table = (Path(__file__).parent.parent / "spec" / "config.md").read_text()
    named = {int(number): name for number, name in re.findall(r"^\| (\d+) `([a-z-]+)`", table, re.M)}
    assert named.items() <= {int(rule): rule.name.lower().replace("_", "-") for rule in Rule}.items()
    assert len(named) >= 12


class Capable(Recorder):
    """A device without vectors that can be enabled, with one capability."""

    interrupts = Interrupts()

    def __init__(self, capability: int) -> None:
        super().__init__()
        self.capability = capability

    def _initial_config(self) -> bytes:
        config = bytearray(super()._initial_config())
        config[pci.STATUS], config[pci.CAP_POINTER], config[0x40] = pci.STATUS_CAP_LIST, 0x40, self.capability
        return bytes(config)


@pytest.mark.parametrize(
    "capability, text",
    [(pci.CAP_MSIX, "has MSI-X only, which this version does not build"), (pci.CAP_PM, "it has no MSI")],
)
def test_a_device_without_msi_says_why(capability: int, text: str) -> None:
    with Pair(Capable(capability)) as pair, pytest.raises(AccessError, match=text) as none:
        pair.front.acquire("dev0").irq(0)
    assert none.value.code is Error.TOO_MANY_VECTORS


def test_a_session_that_asked_for_no_vectors_says_so(backend: Backend) -> None:
    with backend.connect(devices=[Need("edu0")]) as session, pytest.raises(AccessError, match="asked for none"):
        session.acquire("edu0").irq(0)
