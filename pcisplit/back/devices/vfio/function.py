# SPDX-License-Identifier: MIT
"""A PCI function that the backend drives through VFIO: the device seam's only way to hardware.

Rules of this file. Decode stays on from acquire to close, so that mapped accesses never fault for want of it; BAR
registers are VFIO's own and never written. A denied config write returns success (drivers/vfio/pci/vfio_pci_config.c),
so what must be so is read back. Nothing here applies policy, except that the MSI-X table cannot be reached.

``vfio_group`` opens the IOMMU group and refuses what is not safe.
"""

import fcntl
import mmap
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from ctypes import sizeof
from itertools import pairwise
from typing import NamedTuple

from pcisplit.back.devices.device import Area, AreaKind, BarInfo, Device, IovaRange
from pcisplit.back.devices.vfio import abi
from pcisplit.back.devices.vfio.group import (
    Group,
    VfioHost,
    check_driver,
    check_identity,
    driver_of,
    find_group,
    refused,
)
from pcisplit.errors import DeviceError
from pcisplit.pci import (
    BAR0,
    BAR_IO,
    BAR_MEM64,
    BAR_PREFETCHABLE,
    CAP_MSIX,
    COMMAND,
    COMMAND_INTX_DISABLE,
    COMMAND_IO,
    COMMAND_MASTER,
    COMMAND_MEM,
    CONFIG_SIZE,
    Bdf,
    find_capability,
)
from pcisplit.wire import BarFlag, Error, ResetMethod

# The backend's bits of COMMAND; the others keep the values that the firmware and the kernel gave them.
_OURS = COMMAND_IO | COMMAND_MEM | COMMAND_MASTER | COMMAND_INTX_DISABLE

_MAPPED_WIDTHS = 1 | 2 | 4 | 8
# vfio_pci_core_do_io_rw (6.1) makes two accesses of an 8-octet one, and I/O space has no such access at all [BAR-4].
_OWNER_WIDTHS = 1 | 2 | 4

_MOST_AFFECTED = 256  # functions of one bus; a reset of more than a bus is none that we would do


class _Region(NamedTuple):
    """A region of the device's file: where it begins in it, its size in octets, the parts of it that may be mapped."""

    offset: int
    size: int
    mappable: list[tuple[int, int]]


class VfioDevice(Device):
    """One PCI function, bound to vfio-pci. For what each method does see `Device`."""

    def __init__(self, bdf: Bdf, expect_id: tuple[int, int] | None, host: VfioHost) -> None:
        """Find the function and its group; opens nothing.

        `expect_id` is (vendor, device) as the operator gave them. `host` holds the groups; all VFIO devices of a
        backend share one. DeviceError if the function is absent, another one, or behind no IOMMU.
        """
        self._group_number = find_group(bdf)
        check_identity(bdf, expect_id)
        self._bdf = bdf
        self._expect_id = expect_id
        self._host = host
        self.spec = str(bdf)
        self.group = f"iommu-group-{self._group_number}"
        self._group: Group | None = None
        self._forget()

    def _forget(self) -> None:
        """The attributes of a device that is not open."""
        self._fd = -1
        self._regions: dict[int, _Region] = {}
        self._mappings: list[mmap.mmap] = []
        self._command = 0
        self._msi_on = False
        self._reset_by_vfio = False
        self.bars: tuple[BarInfo, ...] = ()
        self.config_size = 0
        self.vectors = 0
        self.resettable = False
        self.dma_bits = 64  # a PCI function does not say how many it has
        self.iova_ranges: tuple[IovaRange, ...] = ()

    def acquire(self) -> None:
        if self._fd >= 0:
            raise DeviceError(Error.BUSY, f"{self.spec}: is already acquired")
        # Again, since all of this may have changed since the last session.
        if find_group(self._bdf) != self._group_number:
            raise refused(f"{self.spec}: has moved to another IOMMU group; restart the backend")
        check_identity(self._bdf, self._expect_id)
        check_driver(self._bdf)
        self._group = self._host.enter(self._group_number, self)
        try:
            self._fd = self._group.device_fd(self._bdf)
            self._prepare(self._group)
        except DeviceError as error:
            self.close()
            raise refused(str(error)) from error
        except (OSError, ValueError) as error:
            self.close()
            raise refused(f"{self.spec}: opening it by VFIO failed: {error}; dmesg may say why") from error
        except BaseException:
            self.close()
            raise

    def _prepare(self, group: Group) -> None:
        """Learn what the device has, and bring it into the state of a device just acquired. OSError, ValueError."""
        info, _ = abi.query(self._fd, abi.VFIO_DEVICE_GET_INFO, abi.DeviceInfo)
        if not info.flags & abi.VFIO_DEVICE_FLAGS_PCI:
            raise refused(f"{self.spec}: VFIO says that it is no PCI device")
        for index in (*range(abi.VFIO_PCI_BAR5_REGION_INDEX + 1), abi.VFIO_PCI_CONFIG_REGION_INDEX):
            region, octets = abi.query(self._fd, abi.VFIO_DEVICE_GET_REGION_INFO, abi.RegionInfo, index=index)
            mappable: list[tuple[int, int]] = []
            if region.flags & abi.VFIO_REGION_INFO_FLAG_MMAP:
                sparse = abi.sparse_areas(region, octets)
                mappable = [(0, region.size)] if sparse is None else sparse
            self._regions[index] = _Region(region.offset, region.size, mappable)
        self.config_size = self._regions[abi.VFIO_PCI_CONFIG_REGION_INDEX].size

        config = b"".join(self.config_read(offset, 4).to_bytes(4, "little") for offset in range(0, CONFIG_SIZE, 4))
        flags = {index: bar_flags(config, index) for index in range(6) if self._regions[index].size}
        decode = {COMMAND_IO if BarFlag.IO in flag else COMMAND_MEM for flag in flags.values()}
        firmware = int.from_bytes(config[COMMAND : COMMAND + 2], "little")
        self._command = firmware & ~_OURS | sum(decode) | COMMAND_INTX_DISABLE
        self._settle()

        denied = msix_ranges(config)
        self.bars = tuple(self._map_bar(index, flag, denied.get(index, [])) for index, flag in flags.items())

        irq, _ = abi.query(self._fd, abi.VFIO_DEVICE_GET_IRQ_INFO, abi.IrqInfo, index=abi.VFIO_PCI_MSI_IRQ_INDEX)
        self.vectors = min(1, irq.count)
        self._reset_by_vfio = bool(info.flags & abi.VFIO_DEVICE_FLAGS_RESET)
        self.resettable = self._reset_by_vfio or self._bus_is_ours()
        self.iova_ranges = group.iova_ranges()

    def _map_bar(self, index: int, flags: BarFlag, denied: list[tuple[int, int]]) -> BarInfo:
        region = self._regions[index]
        mappable = [] if BarFlag.IO in flags else region.mappable
        areas = []
        for start, end, kind in plan_areas(region.size, mappable, denied, mmap.PAGESIZE):
            if kind is AreaKind.MAPPED:
                mapping = mmap.mmap(self._fd, end - start, offset=region.offset + start)
                self._mappings.append(mapping)
                areas.append(Area(start, end, kind, _MAPPED_WIDTHS, mapping))
            else:
                areas.append(Area(start, end, kind, _OWNER_WIDTHS))
        return BarInfo(index, region.size, flags, tuple(areas))

    def _settle(self) -> None:
        """Decode on, MASTER and INTx off: the state of a device just acquired."""
        self.config_write(COMMAND, 2, self._command)
        found = self.config_read(COMMAND, 2)
        if (found ^ self._command) & _OURS:
            raise DeviceError(Error.OP_FAILED, f"{self.spec}: COMMAND is {found:#06x} and not {self._command:#06x}")

    def config_read(self, offset: int, width: int) -> int:
        return self._read(self._position(abi.VFIO_PCI_CONFIG_REGION_INDEX, offset, width), width)

    def config_write(self, offset: int, width: int, value: int) -> None:
        self._write(self._position(abi.VFIO_PCI_CONFIG_REGION_INDEX, offset, width), width, value)

    def bar_read(self, bar: int, offset: int, width: int) -> int:
        return self._read(self._bar_position(bar, offset, width), width)

    def bar_write(self, bar: int, offset: int, width: int, value: int) -> None:
        self._write(self._bar_position(bar, offset, width), width, value)

    def _bar_position(self, index: int, offset: int, width: int) -> int:
        position = self._position(index, offset, width)
        for bar in self.bars:
            for area in bar.areas if bar.index == index else ():
                # The kernel would read ones and drop writes, and say that all went well.
                if area.kind is AreaKind.DENIED and area.start < offset + width and offset < area.end:
                    raise DeviceError(Error.DENIED, f"{self.spec}: BAR {index} has its MSI-X table at {offset:#x}")
        return position

    def _position(self, index: int, offset: int, width: int) -> int:
        """Where in the device's file an access lies: out of its own region it would reach into the next."""
        if width not in (1, 2, 4):
            raise DeviceError(Error.BAD_SIZE, f"{self.spec}: no access of {width} octets by file offset")
        region = self._regions.get(index)
        if region is None or not 0 <= offset <= region.size - width:
            raise DeviceError(Error.INVALID_OFFSET, f"{self.spec}: region {index} has no {width} octets at {offset:#x}")
        return region.offset + offset

    def _read(self, position: int, width: int) -> int:
        try:
            octets = os.pread(self._fd, width, position)
        except OSError as error:
            raise DeviceError(Error.FAULTED, f"{self.spec}: a read failed: {error.strerror}") from error
        if len(octets) != width:
            raise DeviceError(Error.FAULTED, f"{self.spec}: a read gave {len(octets)} of {width} octets")
        return int.from_bytes(octets, "little")

    def _write(self, position: int, width: int, value: int) -> None:
        if not 0 <= value < 1 << 8 * width:
            raise DeviceError(Error.BAD_REQUEST, f"{self.spec}: {value:#x} does not fit into {width} octets")
        try:
            written = os.pwrite(self._fd, value.to_bytes(width, "little"), position)
        except OSError as error:
            raise DeviceError(Error.FAULTED, f"{self.spec}: a write failed: {error.strerror}") from error
        if written != width:
            raise DeviceError(Error.FAULTED, f"{self.spec}: a write took {written} of {width} octets")

    def enable_msi(self, eventfds: Sequence[int]) -> None:
        if not 1 <= len(eventfds) <= self.vectors:
            raise DeviceError(Error.TOO_MANY_VECTORS, f"{self.spec}: has {self.vectors} MSI vectors")
        self._set_irqs(abi.VFIO_IRQ_SET_DATA_EVENTFD, list(eventfds))
        self._msi_on = True

    def disable_msi(self) -> None:
        if self._msi_on:  # disabling what is off is EINVAL
            self._set_irqs(abi.VFIO_IRQ_SET_DATA_NONE, [])
            self._msi_on = False

    def _set_irqs(self, data: int, eventfds: list[int]) -> None:
        """VFIO_DEVICE_SET_IRQS of MSI; it returns after handlers that were running have ended (free_irq)."""
        flags = data | abi.VFIO_IRQ_SET_ACTION_TRIGGER
        request = abi.IrqSet(flags=flags, index=abi.VFIO_PCI_MSI_IRQ_INDEX, start=0, count=len(eventfds))
        self._ioctl("setting its MSI", abi.VFIO_DEVICE_SET_IRQS, abi.with_fds(request, eventfds))

    def reset(self) -> ResetMethod:
        if not self.resettable or self._group is None:
            raise DeviceError(Error.NO_RESET, f"{self.spec}: neither it nor its bus can be reset alone")
        # The kernel saves COMMAND before the reset and restores it after: MASTER must be off before, too.
        self.disable_msi()
        self._settle()
        try:
            if self._reset_by_vfio:
                self._ioctl("its reset", abi.VFIO_DEVICE_RESET, 0)
                return ResetMethod.FUNCTION
            fds = self._group.hot_reset_fds()
            request = abi.with_fds(abi.PciHotReset(count=len(fds)), fds)
            self._ioctl("the reset of its bus", abi.VFIO_DEVICE_PCI_HOT_RESET, request)
            return ResetMethod.BUS
        finally:
            self._settle()

    def _bus_is_ours(self) -> bool:
        """Whether a reset of the bus affects functions of this group only, all of them VFIO's, as the kernel demands.

        Devices of one group are in one session, so a reset of one may reset the others.
        """
        header, entry = sizeof(abi.PciHotResetInfo), sizeof(abi.PciDependentDevice)
        buffer = bytearray(header + _MOST_AFFECTED * entry)
        buffer[:header] = bytes(abi.PciHotResetInfo(argsz=len(buffer)))
        try:
            fcntl.ioctl(self._fd, abi.VFIO_DEVICE_GET_PCI_HOT_RESET_INFO, buffer)
        except OSError:  # ENODEV: neither slot nor bus can be reset; ENOSPC: too many; EPERM: some have no group
            return False
        count = min(abi.PciHotResetInfo.from_buffer_copy(buffer).count, _MOST_AFFECTED)
        affected = [abi.PciDependentDevice.from_buffer_copy(buffer, header + at * entry) for at in range(count)]
        return bool(affected) and all(
            one.group_id == self._group_number
            and driver_of(str(Bdf(one.segment, one.bus, one.devfn >> 3, one.devfn & 7))) == "vfio-pci"
            for one in affected
        )

    def map_dma(self, address: int, fd: int, size: int, iova: int) -> None:
        # type1 maps what lies at an address; the memfd itself is for models.
        if self._group is None:
            raise DeviceError(Error.GONE, f"{self.spec}: is not acquired")
        self._group.map(self, address, size, iova)

    def unmap_dma(self) -> int:
        return self._group.unmap(self) if self._group else 0

    def close(self) -> None:
        """Close the device; group and container stay open. Idempotent.

        DeviceError, after all is closed, if a buffer taken of a mapped area still exists (the pages stay mapped until
        it goes), or if DMA memory was not unmapped.
        """
        in_use = 0
        if self._fd >= 0:
            for step in (self.disable_msi, self._settle):
                with suppress(DeviceError):  # the kernel does the same when the last descriptor is closed
                    step()
            in_use = sum(not _unmap(mapping) for mapping in self._mappings)
            os.close(self._fd)
        self._forget()
        try:
            self.unmap_dma()
        finally:
            self._group = None
        if in_use:
            raise DeviceError(Error.BUSY, f"{self.spec}: {in_use} mapped areas of its BARs are still in use here")

    def shutdown(self) -> None:
        try:
            self.close()
        finally:
            self._host.leave(self._group_number, self)

    def _ioctl(self, what: str, request: int, argument: bytes | int) -> None:
        try:
            fcntl.ioctl(self._fd, request, argument)
        except OSError as error:
            raise DeviceError(Error.OP_FAILED, f"{self.spec}: {what} failed: {error.strerror}") from error


def _unmap(mapping: mmap.mmap) -> bool:
    try:
        mapping.close()
    except BufferError:
        return False
    return True


def bar_flags(config: bytes, index: int) -> BarFlag:
    """The kind of a BAR, from the low bits of its register. Source: PCI Local Bus 3.0, 6.2.5.1."""
    register = config[BAR0 + 4 * index]
    if register & BAR_IO:
        return BarFlag.IO
    wide = BarFlag.MEM64 if register & BAR_MEM64 else BarFlag(0)
    return wide | (BarFlag.PREFETCHABLE if register & BAR_PREFETCHABLE else BarFlag(0))


def msix_ranges(config: bytes) -> dict[int, list[tuple[int, int]]]:
    """For each BAR the (start, end) octets of the MSI-X table and of the pending bits, as the device claims them.

    Source: PCI Local Bus 3.0, 6.8.2. ValueError if the capability does not fit where it stands.
    """
    found: dict[int, list[tuple[int, int]]] = {}
    capability = find_capability(config, CAP_MSIX)
    if capability is None:
        return found
    if capability + 12 > CONFIG_SIZE:
        raise ValueError(f"its MSI-X capability at {capability:#x} ends outside of the header")
    vectors = (int.from_bytes(config[capability + 2 : capability + 4], "little") & 0x7FF) + 1
    for register, size in ((capability + 4, 16 * vectors), (capability + 8, 8 * -(-vectors // 64))):
        where = int.from_bytes(config[register : register + 4], "little")
        found.setdefault(where & 7, []).append((where & ~7, (where & ~7) + size))
    return found


def plan_areas(
    size: int, mappable: Iterable[tuple[int, int]], denied: Iterable[tuple[int, int]], page: int
) -> list[tuple[int, int, AreaKind]]:
    """Divide a BAR of `size` octets into (start, end, kind), sorted, without gaps.

    MAPPED are the whole pages of the `mappable` (start, end) ranges that hold nothing `denied`; DENIED is exactly what
    is `denied`; all else is OWNER. Ranges may reach beyond the BAR.
    """
    pages = [(-(-start // page) * page, min(end, size) // page * page) for start, end in mappable]
    exact = list(denied)
    spoilt = [(start // page * page, -(-end // page) * page) for start, end in exact]
    cuts = {edge for part in (*pages, *exact, *spoilt) for edge in part if 0 < edge < size}
    plan: list[tuple[int, int, AreaKind]] = []
    for start, end in pairwise(sorted({0, size} | cuts)):
        if _within(start, exact):
            kind = AreaKind.DENIED
        elif _within(start, pages) and not _within(start, spoilt):
            kind = AreaKind.MAPPED
        else:
            kind = AreaKind.OWNER
        if plan and plan[-1][2] is kind:
            start = plan.pop()[0]
        plan.append((start, end, kind))
    return plan


def _within(octet: int, ranges: list[tuple[int, int]]) -> bool:
    return any(start <= octet < end for start, end in ranges)


VfioFunction = VfioDevice
