# SPDX-License-Identifier: MIT
"""What the owner of a device accesses without Python, and the turns that owners of a session take with it."""

import itertools
import mmap
import os
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from pcisplit.back.devices.device import Area, AreaKind
from pcisplit.back.devices.models.base import bar
from pcisplit.back.devices.models.ram import MSIX_TABLE, RamModel
from pcisplit.back.policy.header import Rule
from pcisplit.proto.errors import AccessError, DeviceError
from pcisplit.proto.layout import BULK_SIZE
from pcisplit.proto.slots import Request
from pcisplit.ring.region import create_region
from pcisplit.wire import Error, Op
from tests.owners import DEADLINE, answers_to, device_of, until
from tests.pair import Pair, Recorder

# -- accesses that C makes -------------------------------------------------------------------------------------------


class Filed(Recorder):
    """BAR 0: mapped memory, then a file, then what is trapped, then a file again; BAR 1 as in Recorder."""

    PART = 1024

    def __init__(self, name: str = "filed") -> None:
        super().__init__(name)
        self.file = create_region("bar", 8192)
        self.trapped = bytearray(self.PART)
        self.pause: Callable[[], None] = lambda: None

    def _power_on(self) -> None:
        super()._power_on()
        part, memory = self.PART, mmap.mmap(-1, 4096)
        self._memory.append(memory)
        areas = (
            Area(0, part, AreaKind.MAPPED, mapping=memory),
            Area(part, 2 * part, AreaKind.OWNER, fd=self.file, position=4096),
            Area(2 * part, 3 * part, AreaKind.OWNER),
            Area(3 * part, 4 * part, AreaKind.OWNER, widths=1 | 2 | 4, fd=self.file, position=0),
        )
        self.bars = (bar(0, 4 * part, *areas), *self.bars[1:])

    def bar_read(self, bar: int, offset: int, width: int) -> int:
        self.pause()
        self.calls.append(f"read {offset:#x}/{width}")
        at = offset - 2 * self.PART
        return int.from_bytes(self.trapped[at : at + width], "little")

    def bar_write(self, bar: int, offset: int, width: int, value: int) -> None:
        self.pause()
        self.calls.append(f"write {offset:#x}/{width} = {value:#x}")
        at = offset - 2 * self.PART
        self.trapped[at : at + width] = value.to_bytes(width, "little")


@pytest.fixture
def filed() -> Iterator[Filed]:
    device = Filed()
    yield device
    os.close(device.file)


@pytest.mark.clause("BAR-3", "BAR-4")
def test_accesses_by_file_offset_never_reach_python(filed: Filed) -> None:
    with Pair(filed) as pair:
        registers = device_of(pair).bar(0)
        filed.calls.clear()
        registers.write32(1024 + 8, 0x11223344)
        registers.write8(3072, 0x55)
        assert os.pread(filed.file, 4, 4096 + 8) == b"\x44\x33\x22\x11"
        assert os.pread(filed.file, 2, 0) == b"\x55\x00"
        assert [registers.read16(1024 + 10), registers.read8(3072)] == [0x1122, 0x55]
        with pytest.raises(AccessError) as refused:
            registers.read64(3072)
        assert refused.value.code is Error.BAD_SIZE
        assert filed.calls == []
        assert pair.back.owners[0].snapshot()["requests"] >= 4


@pytest.mark.clause("BAR-21", "BAR-22", "ORD-5")
@pytest.mark.parametrize("width", [1, 2, 4])
def test_a_block_over_every_kind_of_area(filed: Filed, width: int) -> None:
    with Pair(filed) as pair:
        registers = device_of(pair).bar(0)
        filed.calls.clear()
        data = os.urandom(4096)
        registers.write_block(0, data, width=width)
        assert filed._memory[-1][:1024] == data[:1024]
        assert os.pread(filed.file, 1024, 4096) == data[1024:2048]
        assert bytes(filed.trapped) == data[2048:3072]
        assert os.pread(filed.file, 1024, 0) == data[3072:]
        assert registers.read_block(0, 4096, width=width) == data
        offsets = range(2048, 3072, width)
        assert [call.split(" = ")[0] for call in filed.calls] == [
            f"{verb} {offset:#x}/{width}" for verb in ("write", "read") for offset in offsets
        ]


@pytest.mark.clause("BAR-21", "ERR-3")
def test_a_block_that_fails_says_how_far_it_got(filed: Filed) -> None:
    with Pair(filed) as pair:
        device_of(pair)
        os.ftruncate(filed.file, 4096 + 512)
        read = Request(Op.BAR_READ_BLOCK, device=0, offset=0, width=4, length=4096)
        (answer,) = answers_to(pair, [read])
        assert (answer.error, answer.length) == (Error.FAULTED, 1536)
        (answer,) = answers_to(pair, [Request(Op.BAR_READ, device=0, offset=1536, width=4)])
        assert (answer.error, answer.length) == (Error.FAULTED, 0)

        def fail() -> None:
            if len(filed.calls) == 10:
                raise DeviceError(Error.OP_FAILED, "ten are enough")

        filed.calls.clear()
        filed.trapped[:] = bytes(range(256)) * 4
        filed.pause = fail
        trapped = Request(Op.BAR_READ_BLOCK, device=0, offset=2048, width=2, length=1024)
        (answer,) = answers_to(pair, [trapped])
        assert (answer.error, answer.length) == (Error.OP_FAILED, 20)
        b2f = pair.front._maps[1]
        assert b2f is not None
        assert b2f[len(b2f) - BULK_SIZE :][:20] == filed.trapped[:20]  # what was moved has been delivered


@pytest.mark.clause("BAR-5", "CFG-5", "BAR-21")
def test_refusals_of_the_msix_table_name_their_rule_and_are_counted() -> None:
    with Pair(RamModel({})) as pair:
        remote = device_of(pair)
        with pytest.raises(AccessError) as refused:
            remote.bar(2).read32(MSIX_TABLE)
        assert (refused.value.code, refused.value.rule) == (Error.DENIED, Rule.MSIX_TABLE)
        block = Request(Op.BAR_READ_BLOCK, device=0, region=2, offset=MSIX_TABLE - 64, width=4, length=256)
        (answer,) = answers_to(pair, [block])
        assert (answer.error, answer.rule, answer.length) == (Error.DENIED, Rule.MSIX_TABLE, 64)
        assert pair.back.owners[0].snapshot()["refusals"] == {"msix_table": 2}
        pair.stop()
        assert pair.back.refusals == {"dev0": {"msix_table": 2}}


# -- turns ------------------------------------------------------------------------------------------------------------


def spin(seconds: float) -> Callable[[], None]:
    def work() -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            pass

    return work


def block(device: int) -> Request:
    return Request(Op.BAR_READ_BLOCK, device=device, offset=2048, width=4, length=1024, bulk=4096 * device)


@pytest.mark.clause("THR-12")
def test_owners_of_a_session_take_turns_with_their_blocks() -> None:
    """Two long blocks run at the same time, in slices: neither waits for the end of the other, nor do they overlap."""
    devices = Filed("first"), Filed("second")
    order: list[str] = []
    inside: list[str] = []
    overlaps: list[list[str]] = []

    def pause(name: str) -> Callable[[], None]:
        def work() -> None:
            inside.append(name)
            if len(inside) > 1:
                overlaps.append(list(inside))
            time.sleep(0.0003)  # without Python's lock, which would keep them apart by itself
            inside.remove(name)
            order.append(name)

        return work

    for device in devices:
        device.pause = pause(device.spec)
    with Pair(*devices) as pair:
        for index in range(2):
            device_of(pair, index)
        answers = answers_to(pair, [block(0), block(1)])
        assert [answer.length for answer in answers] == [1024, 1024]
        snapshots = [owner.snapshot() for owner in pair.back.owners]
    for device in devices:
        os.close(device.file)
    first_end = min(len(order) - 1 - order[::-1].index(device.spec) for device in devices)
    switches = sum(a != b for a, b in itertools.pairwise(order[:first_end]))
    assert switches > 20, f"{switches} switches in {order}"
    assert len(overlaps) <= 20, "two owners work at the same time, beyond a turn that was passed over"
    for snapshot in snapshots:
        assert snapshot["slices"] > 20
        assert snapshot["owner_ns"] > 256 * 300_000


class SlowFiled(Filed):
    """Its memory takes 100 µs a read, which is the CPU's time; a block into the file behind it is its owner's, and C's alone."""

    def _power_on(self) -> None:
        super()._power_on()
        slow, *rest = self.bars[0].areas
        self.bars = (bar(0, 4 * self.PART, slow._replace(read_ns=100_000), *rest), *self.bars[1:])


@pytest.mark.clause("THR-12")
def test_blocks_that_python_never_sees_come_in_slices_too() -> None:
    """25 ms of CPU in turns of 1 ms, however many there are that wait for one."""
    devices = SlowFiled("first"), SlowFiled("second")
    with Pair(*devices) as pair:
        for index, device in enumerate(devices):
            device_of(pair, index)
            device.calls.clear()
        words = Filed.PART + 4
        long = [Request(Op.BAR_READ_BLOCK, device=n, width=4, length=words, bulk=4096 * n) for n in range(2)]
        assert [answer.length for answer in answers_to(pair, long)] == [words, words]
        assert [device.calls for device in devices] == [[], []]
        for owner in pair.back.owners:
            assert owner.snapshot()["slices"] >= 20
    for device in devices:
        os.close(device.file)


@pytest.mark.clause("ORD-2", "THR-12")
def test_an_owner_that_sleeps_in_its_device_does_not_keep_the_turn() -> None:
    slow, quick = Filed("slow"), Filed("quick")
    asleep, awake, overslept = threading.Event(), threading.Event(), []

    def sleep() -> None:
        asleep.set()
        overslept.extend([] if awake.wait(DEADLINE) else ["the turn was kept until it woke up by itself"])

    slow.pause = sleep
    with Pair(slow, quick) as pair:
        for index in range(2):
            device_of(pair, index)
        pair.front._handle.submit([block(0)])
        assert asleep.wait(DEADLINE)
        (answer,) = answers_to(pair, [block(1)])
        assert (answer.device, answer.error, answer.length) == (1, 0, 1024)
        assert not overslept and pair.back.owners[0].doing == "bar_read_block"
        awake.set()
    for device in (slow, quick):
        os.close(device.file)


def test_a_long_block_ends_with_its_session(filed: Filed) -> None:
    filed.pause = spin(0.01)
    with Pair(filed) as pair:
        device_of(pair)
        pair.front._handle.submit([block(0)])
        until(lambda: len(filed.calls) > 3)
        pair.stop()
        assert len(filed.calls) < 128, "the owner finished what nobody waits for"
