# SPDX-License-Identifier: MIT
"""Where DMA windows go, and the front's allocator in them."""

import itertools
import mmap

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from pcisplit.back.devices.device import IovaRange
from pcisplit.back.devices.models.iommu import SoftwareIommu
from pcisplit.back.host.dma import IOVA_ALIGN, create, place, round_size
from pcisplit.bootinfo import DmaWindow
from pcisplit.errors import AccessError, DeviceError
from pcisplit.front.dma import DmaBuffer, DmaPool
from pcisplit.wire import Error

ranges = st.tuples(st.integers(0, 2**40), st.integers(0, 2**40)).map(lambda pair: IovaRange(min(pair), max(pair)))


@given(
    size=st.integers(1, 1 << 30).map(round_size),
    bits=st.integers(21, 48),
    own=st.lists(st.lists(ranges, min_size=1, max_size=3), min_size=1, max_size=3),
    holes=st.lists(ranges, max_size=3),
)
@pytest.mark.clause("DMA-2")
def test_a_window_lies_where_every_rule_lets_it(
    size: int, bits: int, own: list[list[IovaRange]], holes: list[IovaRange]
) -> None:
    try:
        iova = place(size, bits, own, holes)
    except DeviceError as problem:
        assert problem.code is Error.DMA_UNREACHABLE
        return
    last = iova + size - 1
    assert iova % IOVA_ALIGN == 0
    assert iova >= 1 << 20
    assert last < 1 << bits
    assert all(any(r.first <= iova and last <= r.last for r in device) for device in own)
    assert not any(hole.first <= last and iova <= hole.last for hole in holes)


@pytest.mark.clause("DMA-2")
def test_the_lab_ranges_and_a_28_bit_device() -> None:
    vtd = [IovaRange(0, 0xFEDFFFFF), IovaRange(0xFEF00000, 0x7FFFFFFFFF)]
    assert place(16 << 20, 28, [vtd], [IovaRange(0xC0000000, 0xFEBFFFFF)]) == 2 << 20
    with pytest.raises(DeviceError, match=r"2\^28"):
        place(256 << 20, 28, [vtd])


@pytest.mark.clause("DMA-1")
def test_dma_memory_is_zeroed_and_sealed() -> None:
    import os

    memory = create(1 << 20, 2 << 20)
    assert os.pread(memory.fd, 1 << 20, 0) == bytes(1 << 20)
    with pytest.raises(PermissionError):
        os.ftruncate(memory.fd, 0)
    memory.close()
    memory.close()


@pytest.mark.clause("DMA-3", "DMA-5", "DMA-6")
def test_the_software_iommu_lets_through_what_is_mapped_and_mastered() -> None:
    memory = create(1 << 20, 2 << 20)
    iommu = SoftwareIommu("test")
    iommu.map(2 << 20, 1 << 20, memory.fd)
    assert iommu.read(2 << 20, 4) is None  # bus master off
    iommu.master = True
    assert iommu.write((3 << 20) - 4, b"abcd")
    assert iommu.read((3 << 20) - 4, 4) == b"abcd"
    for iova, length in (((3 << 20) - 3, 4), ((2 << 20) - 1, 1), (0, 1), (1 << 40, 8)):
        assert iommu.read(iova, length) is None
        assert not iommu.write(iova, b"x" * length)
    assert iommu.fault_count == 9
    assert iommu.unmap_all() == 1 << 20
    assert iommu.read(2 << 20, 1) is None
    memory.close()


class Allocating(RuleBasedStateMachine):
    """Buffers never overlap, are aligned, lie in the window, and everything freed can be had again."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = mmap.mmap(-1, 1 << 16)
        self.pool = DmaPool(self.memory, (DmaWindow(0, 0, 1 << 15, 0x200000), DmaWindow(1, 1 << 15, 1 << 15, 0x800000)))
        self.held: list[DmaBuffer] = []

    @rule(size=st.integers(1, 9000), align=st.sampled_from([1, 64, 4096]))
    def alloc(self, size: int, align: int) -> None:
        try:
            buffer = self.pool.alloc(size, align)
        except AccessError as problem:
            assert problem.code is Error.DMA_TOO_LARGE
            return
        assert buffer.iova % align == 0
        assert len(buffer.memory) == size
        self.held.append(buffer)

    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        if self.held:
            self.pool.free(self.held.pop(data.draw(st.integers(0, len(self.held) - 1))))

    @rule()
    def free_twice(self) -> None:
        if self.held:
            buffer = self.held.pop()
            self.pool.free(buffer)
            with pytest.raises(ValueError, match="not allocated"):
                self.pool.free(buffer)

    @invariant()
    def apart(self) -> None:
        spans = sorted((buffer.iova, buffer.iova + buffer.size) for buffer in self.held)
        assert all(first[1] <= second[0] for first, second in itertools.pairwise(spans))

    def teardown(self) -> None:
        for buffer in self.held:
            self.pool.free(buffer)
        for size in (1 << 15, 1 << 15):
            self.pool.alloc(size, 1)
        self.pool.release()
        self.memory.close()


TestAllocating = Allocating.TestCase
