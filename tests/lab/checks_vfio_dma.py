# SPDX-License-Identifier: MIT
"""DMA of the device seam on real VFIO: windows, limits, groups that share one; a container for each session."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import resource
from pathlib import Path

from pcisplit.back.devices.vfio import abi
from pcisplit.back.devices.vfio.device import VfioDevice, VfioHost
from pcisplit.back.devices.vfio.mapper import map_by_child
from pcisplit.pci import COMMAND, COMMAND_MASTER, COMMAND_MEM
from pcisplit.proto.errors import DeviceError
from pcisplit.wire import Error

from .check import PCI, clause, dmesg, dmesg_end, iommu_group, wait_until
from .vfio import (
    DMA_COMMAND,
    DMA_COUNT,
    DMA_DESTINATION,
    DMA_SOURCE,
    DMA_START,
    DMA_TO_MEMORY,
    EDU,
    EDU_BUFFER,
    SECONDS,
    WINDOW,
    Memory,
    acquired,
    bind_all,
    code,
    edus,
    faults,
    master,
    open_files,
    pinned,
)

DEVICES = [
    "edu,addr=0x10",
    "pcie-root-port,id=shared,chassis=2,slot=2,addr=0x15",
    "edu,bus=shared,addr=0x0.0,multifunction=on",
    "edu,bus=shared,addr=0x0.1",
]


def setup() -> None:
    """Gives all devices to vfio-pci for all checks."""
    bind_all()


@clause("DMA-3", "DMA-6")
def check_dma() -> None:
    """edu moves octets through the IOMMU once MASTER is on, not before; and not after the window is unmapped."""
    with acquired(edus()[0]) as function:
        memory = Memory()
        memory.give(function)
        assert function.config_read(COMMAND, 2) & COMMAND_MASTER == 0
        assert memory.round_trip(function, b"masterless") == bytes(10)
        master(function)
        assert memory.round_trip(function, b"through the IOMMU") == b"through the IOMMU"
        before = dmesg_end()
        assert function.unmap_dma() == WINDOW
        assert function.unmap_dma() == 0
        memory.octets[mmap.PAGESIZE : mmap.PAGESIZE + 8] = b"mine now"
        assert memory.round_trip(function, b"gone") == b"mine"
        wait_until(lambda: any("DMAR" in line and "fault addr" in line for line in dmesg(before)), SECONDS, "a fault")
        memory.give(function)  # and again, as the next session would
        assert memory.round_trip(function, b"again") == b"again"
        assert function.unmap_dma() == WINDOW


def check_dma_refusals() -> None:
    """What the IOMMU cannot map is refused: the MSI window, beyond its width, twice, unaligned."""
    with acquired(edus()[0]) as function:
        ranges = [(one.first, one.last) for one in function.iova_ranges]
        print([tuple(map(hex, one)) for one in ranges])
        assert ranges[0] == (0, 0xFEDFFFFF)
        assert ranges[1][0] == 0xFEF00000 and ranges[1][1] >= (1 << 39) - 1
        memory = Memory()
        for iova in (0xFEE00000, 1 << 62, 0x1001):
            assert code(memory.give, function, iova) is Error.OP_FAILED
        memory.give(function)
        assert code(Memory().give, function) is Error.OP_FAILED
        assert function.unmap_dma() == WINDOW


def check_dma_beyond_memory_limit() -> None:
    """Without the right to lock so much memory, the sentence says how much there is and how much it takes."""
    with acquired(edus()[0]) as function:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (65536, 65536))
        os.seteuid(65534)  # without CAP_IPC_LOCK, too
        memory = Memory()
        try:
            memory.give(function)
        except DeviceError as error:
            print(error)
            assert "65536 octets" in str(error) and "ulimit -l 2048" in str(error)
        else:
            raise AssertionError("the limit was not heeded")
        finally:
            os.seteuid(0)


@clause("LIFE-10")
def check_unmapped_size() -> None:
    """When the kernel unmaps less than was mapped, that is an error, and the group has no further session."""
    host = VfioHost()
    device = VfioDevice(edus()[0], EDU, host)
    function = device.acquire()
    Memory().give(function)
    (container,) = (fd for fd, target in open_files().items() if target == "/dev/vfio/vfio")
    request = abi.Type1DmaUnmap(ctypes.sizeof(abi.Type1DmaUnmap), 0, WINDOW, WINDOW)
    fcntl.ioctl(container, abi.VFIO_IOMMU_UNMAP_DMA, request)
    assert request.size == WINDOW
    assert code(function.unmap_dma) is Error.OP_FAILED
    assert function.unmap_dma() == 0
    function.close()
    assert code(device.acquire) is Error.DEVICE_FAILED
    device.shutdown()
    assert not open_files()


def check_more_than_was_mapped() -> None:
    """What somebody else mapped in the container goes too: all of it is unmapped, and the size says so."""
    with acquired(edus()[0]) as function:
        Memory().give(function)
        (container,) = (fd for fd, target in open_files().items() if target == "/dev/vfio/vfio")
        map_by_child(container, Memory().fd, WINDOW, 16 * WINDOW)
        assert function.unmap_dma() == 2 * WINDOW
        assert function.unmap_dma() == 0


def check_shared_group() -> None:
    """Two functions of a group share its container: a window is mapped once for both, and unmapped for both."""
    host, (first, second) = VfioHost(), edus()[1:]
    with acquired(first, host=host) as one, acquired(second, host=host) as two:
        assert sorted(open_files().values()).count("/dev/vfio/vfio") == 1
        memory = Memory()
        memory.give(one)
        for function in (one, two):
            master(function)
            assert memory.round_trip(function, function.spec.encode()) == function.spec.encode()
        one.close()
        assert memory.round_trip(two, b"alone") == b"alone"
        assert two.unmap_dma() == WINDOW
    assert not open_files()


@clause("LIFE-14")
def check_a_container_for_each_session() -> None:
    """Between sessions the group is open without a container; each session has a fresh one; shutdown lets the group go."""
    assert not open_files()
    device = VfioDevice(edus()[0], EDU, VfioHost())
    node = f"/dev/vfio/{iommu_group(device.spec)}"
    memory, before = Memory(), pinned()
    for _ in range(2):
        function = device.acquire()
        opened = open_files()
        assert len(opened) == 4, opened  # container, group, device, and mmap's own copy of the device
        assert "vfio" in Path("/proc/self/maps").read_text()
        assert all(fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC for fd in opened)
        memory.give(function)
        assert pinned() - before >= WINDOW // mmap.PAGESIZE
        master(function)
        assert memory.round_trip(function, b"session") == b"session"
        function.close()  # the container takes its mappings with it, when teardown did not unmap
        function.close()
        assert list(open_files().values()) == [node]
        assert not function.bars and pinned() == before
        assert "vfio" not in Path("/proc/self/maps").read_text()
        try:
            os.open(node, os.O_RDWR)
        except OSError as error:
            assert error.errno == errno.EBUSY
        else:
            raise AssertionError("the group was let go of")
    device.shutdown()
    device.shutdown()
    assert not open_files()
    os.close(os.open(node, os.O_RDWR))


@clause("LIFE-14", "DMA-4")
def check_between_sessions_nothing_is_mapped() -> None:
    """When a session has ended, VFIO lets the default domain of the group back in, and a DMA faults in it."""
    device = VfioDevice(edus()[0], EDU, VfioHost())
    function = device.acquire()
    memory = Memory()
    memory.give(function)
    master(function)
    assert memory.round_trip(function, b"before") == b"before"
    function.close()
    memory.octets[:] = bytes(WINDOW)
    sysfs = PCI / "devices" / device.spec
    with (sysfs / "config").open("r+b", buffering=0) as config, (sysfs / "resource0").open("r+b", buffering=0) as bar:
        os.pwrite(config.fileno(), (COMMAND_MEM | COMMAND_MASTER).to_bytes(2, "little"), COMMAND)
        registers = mmap.mmap(bar.fileno(), 1 << 20)
        since = dmesg_end()
        for offset, value in (
            (DMA_SOURCE, EDU_BUFFER),
            (DMA_DESTINATION, WINDOW),
            (DMA_COUNT, 6),
            (DMA_COMMAND, DMA_START | DMA_TO_MEMORY),
        ):
            ctypes.c_uint64.from_buffer(registers, offset).value = value
        fault = wait_until(lambda: faults(since), SECONDS, "a DMAR fault")
        os.pwrite(config.fileno(), bytes(2), COMMAND)
        registers.close()
    print((PCI / "devices" / device.spec / "iommu_group" / "type").read_text().strip(), fault)
    assert f"addr {WINDOW:#x}" in fault[0]
    assert not any(memory.octets[:])
    device.shutdown()
