# SPDX-License-Identifier: MIT
"""The lab itself: QEMU's edu device, under vfio-pci, through nothing but VFIO's ioctls."""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
import time

from .check import bind_vfio, dmesg, find_device, iommu_group, qmp

DEVICES = ["edu,addr=0x10"]

EDU = (0x1234, 0x11E8)

# linux/vfio.h
_API_VERSION, _CHECK_EXTENSION, _SET_IOMMU = 0x3B64, 0x3B65, 0x3B66
_GROUP_GET_STATUS, _GROUP_SET_CONTAINER, _GROUP_GET_DEVICE_FD = 0x3B67, 0x3B68, 0x3B6A
_DEVICE_GET_REGION_INFO = 0x3B6C
_TYPE1V2_IOMMU = 3
_GROUP_VIABLE = 1
_REGION_MAPPABLE = 4
_BAR0, _CONFIG = 0, 7


def setup() -> None:
    """Gives edu to vfio-pci for all checks."""
    (edu,) = find_device(*EDU)
    bind_vfio(edu)


def check_boot() -> None:
    """The kernel is Debian's, its IOMMU is on, and its root is the host's."""
    print(f"{os.uname().release}: {time.clock_gettime(time.CLOCK_BOOTTIME):.1f} s since boot, {os.cpu_count()} CPUs")
    assert os.uname().release.endswith("-amd64")
    assert any("DMAR: IOMMU enabled" in line for line in dmesg())
    assert os.path.samefile(__file__, os.path.join("tests", "lab", "checks_smoke.py"))


def check_monitor() -> None:
    """Checks can talk to QEMU, again and again."""
    for _ in range(2):
        assert qmp("query-status")["status"] == "running"


def check_group_viable() -> None:
    """All of edu's IOMMU group is bound to vfio-pci."""
    container = os.open("/dev/vfio/vfio", os.O_RDWR)
    assert fcntl.ioctl(container, _API_VERSION) == 0
    assert fcntl.ioctl(container, _CHECK_EXTENSION, _TYPE1V2_IOMMU) == 1
    group = os.open(f"/dev/vfio/{iommu_group(find_device(*EDU)[0])}", os.O_RDWR)
    status = bytearray(struct.pack("=II", 8, 0))
    fcntl.ioctl(group, _GROUP_GET_STATUS, status)
    assert struct.unpack("=II", status)[1] & _GROUP_VIABLE


def check_identity() -> None:
    """BAR 0 can be mapped through VFIO, and its first register identifies edu."""
    (edu,) = find_device(*EDU)
    container = os.open("/dev/vfio/vfio", os.O_RDWR)
    group = os.open(f"/dev/vfio/{iommu_group(edu)}", os.O_RDWR)
    fcntl.ioctl(group, _GROUP_SET_CONTAINER, struct.pack("=i", container))
    fcntl.ioctl(container, _SET_IOMMU, _TYPE1V2_IOMMU)
    device = fcntl.ioctl(group, _GROUP_GET_DEVICE_FD, bytearray(edu.encode() + b"\0"))
    _, _, config = _region(device, _CONFIG)
    os.pwrite(device, struct.pack("<H", 2), config + 4)  # memory space enable
    flags, size, offset = _region(device, _BAR0)
    assert flags & _REGION_MAPPABLE
    with mmap.mmap(device, size, offset=offset) as bar, memoryview(bar) as whole, whole.cast("I") as registers:
        assert hex(registers[0]) == "0x10000ed"


def _region(device: int, index: int) -> tuple[int, int, int]:
    """The flags, the size and the offset in the device's file of a region (struct vfio_region_info)."""
    info = bytearray(struct.pack("=4I2Q", 32, 0, index, 0, 0, 0))
    fcntl.ioctl(device, _DEVICE_GET_REGION_INFO, info)
    _, flags, _, _, size, offset = struct.unpack("=4I2Q", info)
    return flags, size, offset
