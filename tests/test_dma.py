# SPDX-License-Identifier: MIT
"""Where DMA windows go, and the front's allocator in them."""

import itertools
import mmap
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from pcisplit.back.devices.device import IovaRange
from pcisplit.back.devices.models.iommu import SoftwareIommu
from pcisplit.back.host.dma import IOVA_ALIGN, IOVA_FIRST, create_memory, place, round_size
from pcisplit.back.host.windows import host_pci_windows
from pcisplit.front.dma import DmaBuffer, DmaPool
from pcisplit.proto.bootinfo import DmaWindow
from pcisplit.proto.errors import AccessError, DeviceError
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


@given(
    size=st.integers(1, 1 << 26).map(round_size),
    bits=st.integers(22, 30),
    own=st.lists(ranges, min_size=1, max_size=3),
    holes=st.lists(ranges, max_size=3),
    last=st.integers(1, 1 << 26).map(round_size),
    before=st.integers(0, 1 << 28),
)
@pytest.mark.clause("DMA-8")
def test_the_next_window_is_elsewhere_while_there_is_room(
    size: int, bits: int, own: list[IovaRange], holes: list[IovaRange], last: int, before: int
) -> None:
    """Windows of two sessions overlap only if no aligned place at all is free of the first."""
    try:
        first = place(last, bits, [own], holes, before)
        second = place(size, bits, [own], holes, first + last)
    except DeviceError as problem:
        assert problem.code is Error.DMA_UNREACHABLE
        return

    def fits(at: int) -> bool:
        inside = at + size <= 1 << bits and any(r.first <= at and at + size - 1 <= r.last for r in own)
        return inside and not any(hole.first <= at + size - 1 and at <= hole.last for hole in holes)

    def apart(at: int) -> bool:
        return at + size <= first or first + last <= at

    assert fits(second)
    if not apart(second):
        assert not any(fits(at) and apart(at) for at in range(IOVA_FIRST, 1 << bits, IOVA_ALIGN))


@pytest.mark.clause("DMA-8")
def test_windows_wander_through_the_space_and_come_back() -> None:
    size, after, seen = 4 << 20, 0, []
    for _ in range(70):
        seen.append(place(size, 28, [[IovaRange(0, (1 << 39) - 1)]], (), after))
        after = seen[-1] + size
    assert all(abs(one - two) >= size for one, two in itertools.pairwise(seen))
    assert len(set(seen)) == 63  # all of 2^28 but the first 2 MiB, and then from the beginning
    assert seen[63] == seen[0] == IOVA_FIRST


@pytest.mark.clause("DMA-1")
@pytest.mark.parametrize("size", [1 << 20, 2 << 20])
def test_dma_memory_is_zeroed_and_sealed_and_not_mapped_here(size: int) -> None:
    fd, huge = create_memory(size)
    assert "pcisplit-dma" not in Path("/proc/self/maps").read_text()
    with mmap.mmap(fd, size) as memory:
        assert not any(memory[:])
    assert huge in (False, size == 2 << 20)
    for change in (0, 2 * size):
        with pytest.raises(PermissionError):
            os.ftruncate(fd, change)
    os.close(fd)


@pytest.mark.clause("DMA-9")
def test_host_pci_windows_are_what_sysfs_says(tmp_path: Path) -> None:
    empty = "0x0000000000000000 0x0000000000000000 0x0000000000000000\n"
    bridge, device = tmp_path / "0000:00:1c.0", tmp_path / "0000:01:00.0"
    for function, text in (
        (device, "0x00000000fe000000 0x00000000fe003fff 0x0000000000140204\n" + empty),
        (device, "0x000000000000e000 0x000000000000e01f 0x0000000000040101\n"),  # I/O ports
        (bridge, 8 * empty + "0x00000000fe000000 0x00000000fe0fffff 0x0000000000000200\n"),
        (bridge, "0x0000004000000000 0x00000040001fffff 0x0000000000102201\n" + "what is this\n"),
        (device, "0x00000000fe100000 0x00000000fe1007ff 0x0000000000046200\n"),  # a ROM
    ):
        function.mkdir(exist_ok=True)
        with (function / "resource").open("a") as resource:
            resource.write(text)
    assert host_pci_windows(tmp_path) == [IovaRange(0xFE000000, 0xFE1007FF), IovaRange(0x40_00000000, 0x40_001FFFFF)]
    assert host_pci_windows(tmp_path / "nowhere") == []


@pytest.mark.clause("DMA-9")
def test_this_hosts_windows_are_readable_without_rights() -> None:
    """Also to a backend that is not root, to which /proc/iomem shows zeros only."""
    found = host_pci_windows()
    if not list(Path("/sys/bus/pci/devices").glob("*/resource")):
        pytest.skip("this machine has no PCI")
    assert all(window.first > 0 for window in found)
    if os.geteuid() == 0:
        reader, writer = os.pipe()
        if (child := os.fork()) == 0:
            try:
                os.setresuid(65534, 65534, 65534)
                os.write(writer, str(host_pci_windows()).encode())
            finally:
                os._exit(0)
        os.close(writer)
        with os.fdopen(reader) as answer:
            assert answer.read() == str(found)
        os.waitpid(child, 0)


@pytest.mark.clause("DMA-3", "DMA-5", "DMA-6")
def test_the_software_iommu_lets_through_what_is_mapped_and_mastered() -> None:
    fd, _ = create_memory(1 << 20)
    iommu = SoftwareIommu("test")
    iommu.map(2 << 20, 1 << 20, fd)
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
    os.close(fd)


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
