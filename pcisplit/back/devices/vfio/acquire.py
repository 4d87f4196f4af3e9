# SPDX-License-Identifier: MIT
"""How a keeper opens a function of its group: checks, the choice of its reset, what the kernel says of it.

Maps nothing. The function is closed, and its choice of reset undone, by ``VfioFunction.close``.
"""

import fcntl
import mmap
import os

from pcisplit.back.devices.device import Interrupts
from pcisplit.back.devices.vfio import abi
from pcisplit.back.devices.vfio.checks import check_function, identity_of, refused
from pcisplit.back.devices.vfio.describe import AreaPlan, BarPlan, Description, Place, Resets
from pcisplit.back.devices.vfio.function import EVENTS, OURS, Host, VfioFunction
from pcisplit.back.devices.vfio.group import Group
from pcisplit.back.devices.vfio.layout import bar_flags, msix_ranges, plan_areas
from pcisplit.back.devices.vfio.resets import KernelResets, bus_is_ours
from pcisplit.pci import BAR_COUNT, COMMAND, COMMAND_INTX_DISABLE, COMMAND_IO, COMMAND_MEM, CONFIG_SIZE, Bdf
from pcisplit.proto.errors import DeviceError
from pcisplit.wire import BarFlag, Error, ResetMethod, VectorType


class GroupHost(Host):
    """The keeper's own `Host`, which it also asks for its worker."""

    def __init__(self, group: Group, fd: int, bdf: Bdf, resets: KernelResets) -> None:
        self._group, self._fd, self._bdf, self._resets = group, fd, bdf, resets

    def hot_reset(self) -> None:
        if not bus_is_ours(self._fd, self._group.number):
            raise DeviceError(Error.NO_RESET, f"{self._bdf}: its bus is not this group's alone")
        fds = self._group.hot_reset_fds()
        try:
            fcntl.ioctl(self._fd, abi.VFIO_DEVICE_PCI_HOT_RESET, abi.with_fds(abi.PciHotReset(count=len(fds)), fds))
        except OSError as error:
            raise DeviceError(Error.OP_FAILED, f"{self._bdf}: the reset of its bus failed: {error.strerror}") from error

    def select_reset(self, method: ResetMethod) -> None:
        self._resets.select(method)

    def map_dma(self, fd: int, size: int, iova: int) -> None:
        self._group.map(fd, size, iova)

    def unmap_dma(self) -> int:
        return self._group.unmap()


def acquire(group: Group, bdf: Bdf, expect_id: tuple[int, int] | None = None, reset: str = "") -> VfioFunction:
    """Open a function of a group that has begun a session: decode on, MASTER and interrupts off.

    `expect_id` is (vendor, device) as the operator gave them, `reset` one of ``resets.CHOICES`` or empty. DeviceError
    (DEVICE_FAILED) with the next step in the sentence; nothing is left open then.
    """
    check_function(bdf, group.number, expect_id)
    resets = KernelResets(bdf)
    fd = -1
    try:
        resets.choose(reset)
        fd = group.device_fd(bdf)
        description = _learn(fd, bdf, group, resets, reset)
        function = VfioFunction(fd, description, GroupHost(group, fd, bdf, resets))
        function.on_close(resets.restore)
        function.settle()
    except BaseException as error:
        if fd >= 0:
            os.close(fd)
        resets.restore()
        if isinstance(error, DeviceError):
            raise refused(str(error)) from error
        if isinstance(error, OSError | ValueError):
            raise refused(f"{bdf}: opening it by VFIO failed: {error}; dmesg may say why") from error
        raise
    return function


def _learn(fd: int, bdf: Bdf, group: Group, resets: KernelResets, choice: str) -> Description:
    """What the kernel says of an open function. OSError, ValueError, DeviceError."""
    info, _ = abi.query(fd, abi.VFIO_DEVICE_GET_INFO, abi.DeviceInfo)
    if not info.flags & abi.VFIO_DEVICE_FLAGS_PCI:
        raise refused(f"{bdf}: VFIO says that it is no PCI device")
    config, _ = _region(fd, abi.VFIO_PCI_CONFIG_REGION_INDEX)
    header = os.pread(fd, CONFIG_SIZE, config.offset)
    if len(header) != CONFIG_SIZE:
        raise ValueError(f"it has {len(header)} octets of configuration space")
    bars = _bars(fd, header)
    decode = {COMMAND_IO if BarFlag.IO in bar.flags else COMMAND_MEM for bar in bars}
    firmware = int.from_bytes(header[COMMAND : COMMAND + 2], "little")
    kernel = resets.methods if info.flags & abi.VFIO_DEVICE_FLAGS_RESET else ()
    return Description(
        spec=str(bdf),
        identity=identity_of(bdf),
        config=config,
        rom=_region(fd, abi.VFIO_PCI_ROM_REGION_INDEX)[0],
        bars=bars,
        command=firmware & ~OURS | sum(decode) | COMMAND_INTX_DISABLE,
        interrupts=Interrupts(*(_vectors(fd, info, kind) for kind in VectorType)),
        events=tuple(name for name, index in EVENTS.items() if _vectors(fd, info, index)),
        resets=Resets(kernel, choice in ("", "bus") and bus_is_ours(fd, group.number)),
        iova_ranges=group.iova_ranges(),
    )


def _bars(fd: int, header: bytes) -> tuple[BarPlan, ...]:
    denied, bars = msix_ranges(header), []
    for number in range(BAR_COUNT):
        place, mappable = _region(fd, number)
        if place.size:
            flags = bar_flags(header, number)
            pages = [] if BarFlag.IO in flags else mappable
            plan = plan_areas(place.size, pages, denied.get(number, []), mmap.PAGESIZE)
            bars.append(BarPlan(number, place, flags, tuple(AreaPlan(*area) for area in plan)))
    return tuple(bars)


def _region(fd: int, index: int) -> tuple[Place, list[tuple[int, int]]]:
    """Where a region lies in the device's file, and the (start, end) of what of it may be mapped."""
    try:
        region, octets = abi.query(fd, abi.VFIO_DEVICE_GET_REGION_INFO, abi.RegionInfo, index=index)
    except OSError:
        if index == abi.VFIO_PCI_ROM_REGION_INDEX:
            return Place(0, 0), []
        raise
    mappable: list[tuple[int, int]] = []
    if region.flags & abi.VFIO_REGION_INFO_FLAG_MMAP:
        sparse = abi.sparse_areas(region, octets)
        mappable = [(0, region.size)] if sparse is None else sparse
    return (Place(region.offset, region.size) if region.size else Place(0, 0)), mappable


def _vectors(fd: int, info: abi.DeviceInfo, index: int) -> int:
    """How many vectors it has of one kind; 0 too where the kernel has no such kind for it (ERR without PCI Express)."""
    if index >= info.num_irqs:
        return 0
    try:
        irq, _ = abi.query(fd, abi.VFIO_DEVICE_GET_IRQ_INFO, abi.IrqInfo, index=index)
    except OSError:
        return 0
    return irq.count if irq.flags & abi.VFIO_IRQ_INFO_EVENTFD else 0
