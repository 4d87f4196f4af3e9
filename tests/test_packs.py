# SPDX-License-Identifier: MIT
"""Packs on devices that remember, sleep and fault: several accesses in one slot."""

import array
import os
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pcisplit import pci
from pcisplit.back.devices.device import Area, AreaKind
from pcisplit.back.devices.models.base import bar
from pcisplit.front.device import RemoteDevice
from pcisplit.proto.errors import AccessError, DeviceError
from pcisplit.proto.slots import Request
from pcisplit.wire import DEVICE_STATE, Error, Op
from tests.pair import Pair, Recorder
from tests.test_back_session import MEM_MASTER, Faulting

DEADLINE = 20.0


def device_of(pair: Pair, name: str = "dev0") -> RemoteDevice:
    device = pair.front.acquire(name)
    device.config.write16(pci.COMMAND, MEM_MASTER)
    return device


@pytest.mark.clause("BAR-40", "ORD-5")
def test_posted_writes_travel_together_and_arrive_one_by_one() -> None:
    device = Recorder()
    with Pair(device) as pair:
        registers = device_of(pair).bar(0)
        device.calls.clear()
        with pair.front.trace() as crossed:
            for at in range(0, 48, 4):
                registers.post(at, 4, at, publish=False)
            registers.post(0, 1, 0xFF, publish=False)
            registers.post(0, 4, 1, publish=False)
            registers.read32(8)
        packs = [m for m in crossed if isinstance(m, Request) and m.op == Op.BAR_WRITES]
        assert [pack.count for pack in packs] == [5, 5, 2, 1, 1]
        writes = [f"write {at:#x}/4 = {at:#x}" for at in range(0, 48, 4)]
        assert device.calls == [*writes, "write 0x0/1 = 0xff", "write 0x0/4 = 0x1", "read 0x8/4"]


@pytest.mark.clause("BAR-40", "BAR-43")
def test_reads_travel_together() -> None:
    device = Recorder()
    with Pair(device) as pair:
        registers = device_of(pair).bar(0)
        places = array.array("I", [4 * (at * 7 % 64) for at in range(64)])
        with pair.front.trace() as crossed:
            assert registers.read_many(places) == array.array("Q", places)
        assert len([m for m in crossed if isinstance(m, Request)]) == 7
        assert [call for call in device.calls if call.startswith("read")] == [f"read {at:#x}/4" for at in places]


@pytest.mark.clause("BAR-43")
def test_a_read_that_fails_says_which_it_was() -> None:
    with Pair(Recorder()) as pair:
        registers = device_of(pair).bar(0)
        with pytest.raises(AccessError, match=r"number 14 of 30.*unaligned") as refused:
            registers.read_many([*range(0, 52, 4), 2, *range(0, 64, 4)])
        assert refused.value.code is Error.UNALIGNED
        assert list(registers.read_many([4, 8])) == [4, 8]
        assert list(device_of(pair).bar(1).read_many([], width=4)) == []


class Refusing(Recorder):
    """Its register 8 refuses."""

    def bar_write(self, bar: int, offset: int, width: int, value: int) -> None:
        super().bar_write(bar, offset, width, value)
        if offset == 8:
            raise DeviceError(Error.OP_FAILED, "not this one")

    def bar_read(self, bar: int, offset: int, width: int) -> int:
        if offset == 8:
            raise DeviceError(Error.OP_FAILED, "not this one")
        return super().bar_read(bar, offset, width)


@pytest.mark.clause("BAR-42", "BAR-43", "BAR-11", "ORD-7")
def test_a_device_that_refuses_one_of_them() -> None:
    device = Refusing()
    with Pair(device) as pair:
        remote = device_of(pair)
        device.calls.clear()
        remote.bar(0).post_many([4, 8, 12, 2, 16], [1, 2, 3, 4, 5])
        remote.nop()
        assert device.calls == [f"write {at:#x}/4 = {value:#x}" for at, value in ((4, 1), (8, 2), (12, 3), (16, 5))]
        state = DEVICE_STATE.parse(bytes(remote._state), strict=False)
        assert (state["posted_errors"], state["refused"]) == (2, 2)
        assert (state["posted_offset"], state["posted_region"], state["posted_error"]) == (2, 0, Error.UNALIGNED)
        with pytest.raises(AccessError, match=r"number 3 of 4.*op_failed"):
            remote.bar(0).read_many([0, 4, 8, 12])


class Mixed(Recorder):
    """Half of its BAR 0 is mapped, half trapped."""

    def _power_on(self) -> None:
        self.bars = (bar(0, 8192, Area(0, 4096, AreaKind.OWNER), *(self._shifted(self._memory_area(4096)),)),)

    @staticmethod
    def _shifted(area: Area) -> Area:
        return Area(4096, 8192, area.kind, area.widths, area.mapping)


@pytest.mark.clause("BAR-40", "BAR-44")
def test_a_pack_over_two_kinds_of_area_keeps_its_order() -> None:
    device = Mixed()
    with Pair(device) as pair:
        registers = device_of(pair).bar(0)
        registers.post_many([4096, 0, 4096, 4100], [1, 2, 3, 4])
        assert list(registers.read_many([4096, 16, 4100])) == [3, 16, 4]


@pytest.mark.clause("BAR-44", "ORD-2")
def test_a_pack_that_sleeps_holds_up_no_other_device() -> None:
    slow, quick = Recorder(), Recorder()
    with Pair(slow, quick) as pair:
        device_of(pair)
        other = device_of(pair, "dev1")
        slow.hold.clear()
        pair.front.acquire("dev0").bar(0).post_many([0, 4, 8], [1, 2, 3])
        other.nop()  # answered while the other one sleeps
        assert list(other.bar(1).read_many([0, 4])) == [0, 0]
        assert not [call for call in slow.calls if call.startswith("write 0x8")]
        slow.hold.set()
        pair.front.acquire("dev0").nop()
        assert [call for call in slow.calls if call.startswith("write")][-1] == "write 0x8/4 = 0x3"


@pytest.mark.clause("BAR-42", "BAR-43", "THR-9")
def test_a_fault_inside_of_a_pack() -> None:
    device = Faulting()
    with Pair(device) as pair:
        remote = device_of(pair)
        memory = remote.bar(0)
        os.ftruncate(device.fd, 4096)
        memory.post_many([0, 4096, 4, 4100, 8], [1, 2, 3, 4, 5])
        remote.nop()
        assert remote.posted_errors == 2
        assert list(memory.read_many([0, 4, 8])) == [1, 3, 5]
        with pytest.raises(AccessError, match="number 3 of 4") as faulted:
            memory.read_many([0, 4, 4096, 8])
        assert faulted.value.code is Error.FAULTED
        assert memory.read32(8) == 5
        os.close(device.fd)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([1, 2, 4]), st.integers(0, 70), st.integers(0, 300), st.booleans()), max_size=40)
)
@pytest.mark.clause("BAR-40", "BAR-41", "BAR-42")
def test_whatever_is_posted_memory_is_as_if_it_was_written_one_by_one(
    writes: list[tuple[int, int, int, bool]],
) -> None:
    expected, failed = bytearray(128), 0
    for width, offset, value, _ in writes:
        if offset % width or value >> 8 * width:
            failed += 1
        else:
            expected[offset : offset + width] = value.to_bytes(width, "little")
    with Pair(Recorder()) as pair:
        remote = device_of(pair)
        for width, offset, value, publish in writes:
            remote.bar(1).post(offset, width, value, publish=publish)
        assert remote.bar(1).read_block(0, 128) == expected
        assert remote.posted_errors == failed


@pytest.mark.clause("LIFE-34", "ORD-6")
def test_a_front_that_reads_before_it_closes_loses_no_write() -> None:
    device = Recorder()
    with Pair(device) as pair:
        registers = device_of(pair).bar(0)
        for value in range(100):
            registers.post32(4, value)
        registers.read32(0)
        pair.front.close()
        assert [call for call in device.calls if call.startswith("write 0x4")][-1] == f"write 0x4/4 = {99:#x}"


def test_posting_from_a_full_ring_while_the_owner_sleeps() -> None:
    """More packs than the ring has slots, with a device that is parked meanwhile: all arrive, in order."""
    device = Recorder()
    with Pair(device) as pair:
        registers = device_of(pair).bar(0)
        device.calls.clear()
        device.hold.clear()
        poster = threading.Thread(target=lambda: registers.post_many([4] * 4000, range(4000)))
        poster.start()
        device.hold.set()
        poster.join(DEADLINE)
        registers.read32(0)
        assert device.calls[:-1] == [f"write 0x4/4 = {value:#x}" for value in range(4000)]
