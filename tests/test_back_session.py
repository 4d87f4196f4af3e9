# SPDX-License-Identifier: MIT
"""The back's side of a session, around devices that remember, block, change, fault and fail."""

import mmap
import os
import threading
import time
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest

from pcisplit import pci
from pcisplit.back.devices.device import Area, AreaKind
from pcisplit.back.devices.models.base import bar
from pcisplit.back.devices.models.ram import RamModel
from pcisplit.back.devices.signal import signal_eventfd
from pcisplit.back.log import LINES_PER_SECOND, LimitedLog, escape
from pcisplit.back.worker.owner import Allowance
from pcisplit.proto.errors import AccessError, DeviceError, SessionGone
from pcisplit.proto.slots import Request, Response
from pcisplit.ring.region import create_region
from pcisplit.ring.words import Words, mmio_read
from pcisplit.wire import Error, Op, ResetMethod, State
from tests.offsets import offset_of
from tests.pair import Pair, Recorder

MEM_MASTER = pci.COMMAND_MEM | pci.COMMAND_MASTER


# -- teardown ---------------------------------------------------------------------------------------------------


@pytest.mark.clause("LIFE-10", "LIFE-11")
def test_the_safe_order() -> None:
    device = Recorder()
    with Pair(device) as pair:
        pair.front.acquire("dev0").config.write16(pci.COMMAND, MEM_MASTER)
        device.calls.clear()
        teardown = pair.stop()
    assert device.calls == ["config 0x4 = 0x400", "interrupts off", "reset", "unmap", "close"]
    names = [step.name for step in teardown.steps]
    assert names == [
        "stop owners",
        "detach doorbells",
        "master off",
        "transactions",
        "interrupts off",
        "reset",
        "unmap DMA",
        "check unmapped",
        "drop memory",
        "close device",
    ]
    assert not teardown.problems


class Unresettable(Recorder):
    def reset(self, method: ResetMethod | None = None) -> ResetMethod:
        raise DeviceError(Error.OP_FAILED, "the reset did not end")


@pytest.mark.clause("LIFE-10", "LIFE-12")
def test_a_step_that_fails_is_recorded_and_the_next_done() -> None:
    device = Unresettable()
    with Pair(device) as pair:
        device.calls.clear()
        teardown = pair.stop()
        assert [step.name for step in teardown.problems] == ["reset"]
        assert device.calls[-2:] == ["unmap", "close"]
        assert pair.back.unreset == {"dev0": "the reset did not end"}


@pytest.mark.clause("LIFE-6", "LIFE-3")
def test_requests_published_before_the_end_but_not_taken_are_not_executed() -> None:
    device = Recorder()
    with Pair(device, start=False) as pair:
        f2b = mmap.mmap(pair._fds[0], os.fstat(pair._fds[0]).st_size)
        words = Words(f2b)
        request = Request(Op.NOP, 1, 0, 1).to_bytes()
        f2b[4096:4160] = request
        words.store(offset_of("req_prod"), 1)
        words.store(offset_of("state"), State.CLOSING)
        pair.start()
        for thread in pair._threads[:1]:
            thread.join(20)
            assert not thread.is_alive()
        pair.stop()
        b2f = mmap.mmap(pair._fds[1], os.fstat(pair._fds[1]).st_size, prot=mmap.PROT_READ)
        assert b2f[4096:4160] == bytes(64), "a response was published"
        words.release()


# -- ordering ---------------------------------------------------------------------------------------------------


@pytest.mark.clause("ORD-2", "ORD-1", "ORD-3")
def test_a_parked_device_holds_up_only_itself() -> None:
    slow, quick = Recorder("slow"), Recorder("quick")
    with Pair(slow, quick) as pair:
        for name in ("dev0", "dev1"):
            pair.front.acquire(name).config.write16(pci.COMMAND, MEM_MASTER)
        slow.hold.clear()
        handle = pair.front._handle
        parked = [Request(Op.BAR_READ, device=0, width=4, offset=4 * n) for n in range(5)]
        parked.append(Request(Op.CONF_READ, device=0, width=4))  # from the table, but behind the others
        ids = handle.submit(parked)
        assert pair.front.acquire("dev1").bar(0).read32(8) == 8
        assert handle.poll() == []
        slow.hold.set()
        answers: list[Response] = []
        while len(answers) < len(ids):
            answers += handle.poll_or_wait()
        assert [answer.id for answer in answers] == ids
        assert [answer.value for answer in answers[:5]] == [0, 4, 8, 12, 16]


@pytest.mark.clause("ORD-5", "BAR-3")
def test_posted_writes_are_issued_once_in_order_as_wide_as_asked() -> None:
    device = Recorder()
    with Pair(device) as pair:
        pair.front.acquire("dev0").config.write16(pci.COMMAND, MEM_MASTER)
        registers = pair.front.acquire("dev0").bar(0)
        device.calls.clear()
        expected = []
        for n in range(300):  # more than the ring is long
            width = (1, 2, 4, 8)[n % 4]
            registers.post(8 * (n % 32), width, n & 0xFF)
            expected.append(f"write {8 * (n % 32):#x}/{width} = {n & 0xFF:#x}")
        registers.read32(0)
        assert device.calls[:-1] == expected


# -- policy -----------------------------------------------------------------------------------------------------


@pytest.mark.clause("CFG-5")
def test_refusals_are_counted_by_rule() -> None:
    with Pair(Recorder()) as pair:
        config = pair.front.acquire("dev0").config
        for offset in (0x00, 0x00, 0x40, 0x3D):
            with pytest.raises(AccessError) as refused:
                config.write8(offset, 0x5A)
            assert refused.value.code is Error.DENIED
        pair.stop()
        assert pair.back.refusals == {"dev0": {"ids": 2, "interrupt": 1, "gap": 1}}


@pytest.mark.clause("CFG-12", "CFG-9", "CFG-6")
def test_a_device_that_changes_its_mind_changes_nothing_that_is_enforced() -> None:
    device = Recorder()
    with Pair(device) as pair:
        config = pair.front.acquire("dev0").config
        size = config.read32(pci.BAR0)
        device._config[:] = b"\xff" * len(device._config)
        assert config.read32(0) == 0x00011234
        assert config.read32(pci.BAR0) == size
        config.write32(pci.BAR0, 0xFFFFFFFF)
        assert config.read32(pci.BAR0) == 0xFFFFF000
        with pytest.raises(AccessError):
            config.write32(0x40, 0)
        assert not [call for call in device.calls if call.startswith("config") and not call.startswith("config 0x4 ")]


# -- faults -----------------------------------------------------------------------------------------------------


class Faulting(RamModel):
    """BAR 0 is a memfd that can be cut short under the mapping, as a device that stops decoding."""

    def __init__(self) -> None:
        super().__init__({})

    def _power_on(self) -> None:
        self.fd = create_region("cut", 8192)
        memory = mmap.mmap(self.fd, 8192)
        self._memory.append(memory)
        self.bars = (bar(0, 8192, Area(0, 8192, AreaKind.MAPPED, mapping=memory)),)


@pytest.mark.clause("THR-9", "BAR-21")
def test_a_fault_is_an_error_of_the_access_and_the_session_goes_on() -> None:
    device = Faulting()
    with Pair(device) as pair:
        remote = pair.front.acquire("dev0")
        remote.config.write16(pci.COMMAND, MEM_MASTER)
        memory = remote.bar(0)
        memory.write32(0, 7)
        os.ftruncate(device.fd, 4096)
        for _ in range(3):
            with pytest.raises(AccessError) as faulted:
                memory.read32(4096)
            assert faulted.value.code is Error.FAULTED
            assert memory.read32(0) == 7
        with pytest.raises(AccessError) as faulted:
            memory.read_block(4096 - 64, 128)
        assert faulted.value.code is Error.FAULTED
        memory.post32(4096, 1)
        memory.read32(0)
        assert remote.posted_errors == 1
        os.close(device.fd)


@pytest.mark.clause("THR-9")
def test_the_hosted_accessors_are_guarded_too() -> None:
    fd = create_region("cut", 4096)
    memory = mmap.mmap(fd, 4096)
    assert mmio_read(memory, 8, 4) == 0
    os.ftruncate(fd, 0)
    with pytest.raises(AccessError) as faulted:
        mmio_read(memory, 8, 4)
    assert faulted.value.code is Error.FAULTED
    os.close(fd)


@pytest.mark.clause("LIFE-5", "THR-2")
def test_an_index_jump_ends_the_session_with_its_reason() -> None:
    with Pair(Recorder()) as pair:
        f2b = pair.front._maps[0]
        assert f2b is not None
        words = Words(f2b)
        words.store(offset_of("req_prod"), 5000)
        words.release()
        os.eventfd_write(pair.front._fds[2], 1)
        pair._threads[0].join(20)
        pair.stop()
        assert pair.back.reason is Error.RING_OVERRUN
        with pytest.raises(SessionGone) as gone:
            pair.front.acquire("dev0").nop()
        assert gone.value.reason is Error.RING_OVERRUN


# -- logs, quotas, signals ----------------------------------------------------------------------------------------


@pytest.mark.clause("THR-7")
def test_log_lines_a_front_can_cause_are_limited_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[tuple[str, dict[str, Any]]] = []

    def sink(level: str, event: str, fields: dict[str, Any]) -> None:
        lines.append((event, fields))

    monkeypatch.setattr("pcisplit.back.log._sink", sink)
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    log = LimitedLog()
    for n in range(10_000):
        log("refused", n=n)
    assert len(lines) == LINES_PER_SECOND
    now = 101.0
    log("refused", n=0)
    assert lines[LINES_PER_SECOND] == ("log lines left out", {"count": 10_000 - LINES_PER_SECOND})


@pytest.mark.clause("THR-5")
@pytest.mark.parametrize("text", ["\x1b[31mred", "line\nbreak", "\u202egnp.exe", "\x00", "x" * 500])
def test_text_of_a_peer_is_escaped(text: str) -> None:
    shown = escape(text)
    assert shown.isascii()
    assert shown.isprintable()
    assert len(shown) <= 80


@pytest.mark.clause("IRQ-9", "LIFE-24")
def test_a_quota_counts_what_it_lets_through(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    quota = Allowance(3, 1.0)
    for _ in range(3):
        quota.take()
    for _ in range(5):
        with pytest.raises(DeviceError):
            quota.take()
    now = 101.0
    quota.take()


@pytest.mark.clause("THR-4")
def test_signalling_a_full_eventfd_whose_nonblock_is_cleared_does_not_hang() -> None:
    fd = os.eventfd(0)  # blocking
    os.eventfd_write(fd, 0xFFFFFFFFFFFFFFFE)  # full
    done = threading.Event()

    def signal() -> None:
        signal_eventfd(fd)
        done.set()

    threading.Thread(target=signal, daemon=True).start()
    assert done.wait(10), "the back hangs in a write of an eventfd that a peer filled"
    os.close(fd)


@pytest.mark.clause("THR-6")
def test_the_backend_is_undumpable_before_it_opens_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    from click.testing import CliRunner

    from pcisplit.back.host import harden
    from pcisplit.back.supervisor import specs, zygote
    from pcisplit.cli import main

    order: list[str] = []
    monkeypatch.setattr(harden, "harden", lambda: order.append("undumpable"))

    def start() -> AbstractContextManager[None]:
        order.append("zygote")
        return nullcontext()

    def opening(*_: object, **__: object) -> None:
        order.append("devices")
        raise ValueError("stop here")

    monkeypatch.setattr(zygote, "start", start)
    monkeypatch.setattr(specs, "make_server", opening)
    CliRunner().invoke(main, ["serve", "--device", "a=model:edu", "--socket", "/nowhere/s"])
    assert order == ["undumpable", "zygote", "devices"]


@pytest.mark.clause("THR-6")
def test_harden_makes_the_process_undumpable() -> None:
    import subprocess
    import sys

    script = (
        "import ctypes; from pcisplit.back.host.harden import harden; harden();"
        "assert ctypes.CDLL(None).prctl(3, 0, 0, 0, 0) == 0"  # PR_GET_DUMPABLE
    )
    subprocess.run([sys.executable, "-c", script], check=True)


# -- what an attacker tried -----------------------------------------------------------------------------------------


@pytest.mark.clause("LIFE-13")
@pytest.mark.parametrize("failing", ["mmap.mmap", "CoreServe", "CoreDevice", "assemble", "Owner"])
def test_a_session_that_cannot_be_opened_leaves_nothing(monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    """Whatever fails while a session is opened, no descriptor stays and every step of the teardown is done."""
    from pcisplit.back.host import resources
    from pcisplit.back.host.dma import IOVA_FIRST, create_memory
    from pcisplit.back.worker import session as module
    from pcisplit.back.worker.assemble import DeviceOrder, SessionOrder
    from pcisplit.wire import Feature

    before = set(os.listdir("/proc/self/fd"))

    def fail(*_: object, **__: object) -> None:
        raise OSError("no more of that")

    device = Recorder()
    order = SessionOrder(1, Feature(0), 0, (DeviceOrder("dev0", 1),), 1 << 20, IOVA_FIRST)
    back = module.WorkerSession(
        order, resources.create([1], order.layout, create_memory(1 << 20)[0]), [device.acquire()]
    )
    monkeypatch.setattr(mmap if "." in failing else module, failing.rpartition(".")[2], fail)
    with pytest.raises(OSError, match="no more of that"):
        back.open()
    monkeypatch.undo()
    back.close()
    assert set(os.listdir("/proc/self/fd")) == before
    assert device.calls[-4:] == ["interrupts off", "reset", "unmap", "close"]


def test_what_one_session_asked_of_a_model_does_not_happen_in_the_next() -> None:
    model = RamModel({})
    model.acquire()
    done = threading.Event()
    started = threading.Event()

    def first() -> None:
        started.set()
        model.stopping.wait(20)

    model.later(first)
    model.later(done.set)
    started.wait(20)
    model.close()
    model.acquire()
    flushed = threading.Event()
    model.later(flushed.set)
    assert flushed.wait(20)
    assert not done.is_set()
    model.close()


def test_a_job_that_fails_does_not_end_the_device() -> None:
    model = RamModel({})
    model.acquire()

    def fail() -> None:
        raise ZeroDivisionError

    model.later(fail)
    after = threading.Event()
    model.later(after.set)
    assert after.wait(20)
    model.close()
