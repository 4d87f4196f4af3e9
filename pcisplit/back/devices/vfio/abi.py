# SPDX-License-Identifier: MIT
"""Numbers and structures of <linux/vfio.h>, as far as the backend uses them, and the two-step call for its info ioctls.

Every constant has the name of its kernel symbol; every structure says which one it is. ``tests/test_vfio_abi.py``
compares all of them with the system's header. Opens nothing; decides nothing.
"""

import fcntl
from ctypes import Structure, c_int32, c_uint8, c_uint16, c_uint32, c_uint64, sizeof
from typing import ClassVar, NamedTuple, TypeVar

VFIO_API_VERSION = 0
VFIO_TYPE = ord(";")
VFIO_BASE = 100


def _io(number: int) -> int:
    """``_IO(VFIO_TYPE, VFIO_BASE + number)`` of <asm-generic/ioctl.h>: no direction and no size, as all of VFIO."""
    return VFIO_TYPE << 8 | VFIO_BASE + number


# Of the container, /dev/vfio/vfio.
VFIO_GET_API_VERSION = _io(0)
VFIO_CHECK_EXTENSION = _io(1)
VFIO_SET_IOMMU = _io(2)
VFIO_IOMMU_GET_INFO = _io(12)
VFIO_IOMMU_MAP_DMA = _io(13)
VFIO_IOMMU_UNMAP_DMA = _io(14)

# What VFIO_CHECK_EXTENSION asks for, the first also what VFIO_SET_IOMMU sets.
VFIO_TYPE1v2_IOMMU = 3
VFIO_UNMAP_ALL = 9

VFIO_IOMMU_INFO_PGSIZES = 1 << 0
VFIO_IOMMU_INFO_CAPS = 1 << 1
VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE = 1

VFIO_DMA_MAP_FLAG_READ = 1 << 0  # the device may read
VFIO_DMA_MAP_FLAG_WRITE = 1 << 1  # the device may write
VFIO_DMA_UNMAP_FLAG_ALL = 1 << 1  # with iova and size 0

# Of a group, /dev/vfio/N.
VFIO_GROUP_GET_STATUS = _io(3)
VFIO_GROUP_SET_CONTAINER = _io(4)
VFIO_GROUP_UNSET_CONTAINER = _io(5)
VFIO_GROUP_GET_DEVICE_FD = _io(6)

VFIO_GROUP_FLAGS_VIABLE = 1 << 0
VFIO_GROUP_FLAGS_CONTAINER_SET = 1 << 1

# Of a device. The numbers from 12 on mean other things on a container.
VFIO_DEVICE_GET_INFO = _io(7)
VFIO_DEVICE_GET_REGION_INFO = _io(8)
VFIO_DEVICE_GET_IRQ_INFO = _io(9)
VFIO_DEVICE_SET_IRQS = _io(10)
VFIO_DEVICE_RESET = _io(11)
VFIO_DEVICE_GET_PCI_HOT_RESET_INFO = _io(12)
VFIO_DEVICE_PCI_HOT_RESET = _io(13)

VFIO_DEVICE_FLAGS_RESET = 1 << 0  # VFIO_DEVICE_RESET worked when the device was opened
VFIO_DEVICE_FLAGS_PCI = 1 << 1

VFIO_REGION_INFO_FLAG_READ = 1 << 0
VFIO_REGION_INFO_FLAG_WRITE = 1 << 1
VFIO_REGION_INFO_FLAG_MMAP = 1 << 2
VFIO_REGION_INFO_FLAG_CAPS = 1 << 3
VFIO_REGION_INFO_CAP_SPARSE_MMAP = 1

VFIO_PCI_BAR0_REGION_INDEX = 0
VFIO_PCI_BAR5_REGION_INDEX = 5
VFIO_PCI_ROM_REGION_INDEX = 6
VFIO_PCI_CONFIG_REGION_INDEX = 7

# The first three are the numbers of wire.VectorType.
VFIO_PCI_INTX_IRQ_INDEX = 0
VFIO_PCI_MSI_IRQ_INDEX = 1
VFIO_PCI_MSIX_IRQ_INDEX = 2
VFIO_PCI_ERR_IRQ_INDEX = 3
VFIO_PCI_REQ_IRQ_INDEX = 4

VFIO_IRQ_INFO_EVENTFD = 1 << 0
VFIO_IRQ_SET_DATA_NONE = 1 << 0
VFIO_IRQ_SET_DATA_EVENTFD = 1 << 2
VFIO_IRQ_SET_ACTION_TRIGGER = 1 << 5


class InfoCapHeader(Structure):
    """``struct vfio_info_cap_header``: `next` counts from the start of the info structure, 0 ends the chain."""

    _fields_ = (("id", c_uint16), ("version", c_uint16), ("next", c_uint32))
    id: int
    version: int
    next: int


class GroupStatus(Structure):
    """``struct vfio_group_status``"""

    _fields_ = (("argsz", c_uint32), ("flags", c_uint32))
    argsz: int
    flags: int


class Info(Structure):
    """What the info structures have in common; `query` fills them. Not a structure of the kernel."""

    CAPS: ClassVar[int] = 0  #: the flag that says that `cap_offset` means something; 0 if there is none
    argsz: int
    flags: int
    cap_offset: int


class DeviceInfo(Info):
    """``struct vfio_device_info``, without the padding that newer headers name and without its capabilities."""

    _fields_ = (
        ("argsz", c_uint32),
        ("flags", c_uint32),
        ("num_regions", c_uint32),
        ("num_irqs", c_uint32),
        ("cap_offset", c_uint32),
    )
    num_regions: int
    num_irqs: int


class RegionInfo(Info):
    """``struct vfio_region_info``: `size` in octets, `offset` into the device's file."""

    CAPS = VFIO_REGION_INFO_FLAG_CAPS
    _fields_ = (
        ("argsz", c_uint32),
        ("flags", c_uint32),
        ("index", c_uint32),
        ("cap_offset", c_uint32),
        ("size", c_uint64),
        ("offset", c_uint64),
    )
    index: int
    size: int
    offset: int


class SparseMmapArea(Structure):
    """``struct vfio_region_sparse_mmap_area``"""

    _fields_ = (("offset", c_uint64), ("size", c_uint64))
    offset: int
    size: int


class SparseMmap(Structure):
    """``struct vfio_region_info_cap_sparse_mmap``; `nr_areas` areas follow."""

    _fields_ = (("header", InfoCapHeader), ("nr_areas", c_uint32), ("reserved", c_uint32))
    nr_areas: int


class IrqInfo(Info):
    """``struct vfio_irq_info``"""

    _fields_ = (("argsz", c_uint32), ("flags", c_uint32), ("index", c_uint32), ("count", c_uint32))
    index: int
    count: int


class IrqSet(Structure):
    """``struct vfio_irq_set``; its data follow: for eventfds a c_int32 for each."""

    _fields_ = (
        ("argsz", c_uint32),
        ("flags", c_uint32),
        ("index", c_uint32),
        ("start", c_uint32),
        ("count", c_uint32),
    )


class PciDependentDevice(Structure):
    """``struct vfio_pci_dependent_device``: a function that a hot reset also resets."""

    _fields_ = (("group_id", c_uint32), ("segment", c_uint16), ("bus", c_uint8), ("devfn", c_uint8))
    group_id: int
    segment: int
    bus: int
    devfn: int


class PciHotResetInfo(Structure):
    """``struct vfio_pci_hot_reset_info``; `count` dependent devices follow."""

    _fields_ = (("argsz", c_uint32), ("flags", c_uint32), ("count", c_uint32))
    count: int


class PciHotReset(Structure):
    """``struct vfio_pci_hot_reset``; `count` group descriptors follow, a c_int32 each."""

    _fields_ = (("argsz", c_uint32), ("flags", c_uint32), ("count", c_uint32))


class Type1Info(Info):
    """``struct vfio_iommu_type1_info``: `iova_pgsizes` is a bitmap of page sizes."""

    CAPS = VFIO_IOMMU_INFO_CAPS
    _fields_ = (("argsz", c_uint32), ("flags", c_uint32), ("iova_pgsizes", c_uint64), ("cap_offset", c_uint32))
    iova_pgsizes: int


class Type1IovaRange(Structure):
    """``struct vfio_iova_range``: both ends inclusive."""

    _fields_ = (("start", c_uint64), ("end", c_uint64))
    start: int
    end: int


class Type1IovaRanges(Structure):
    """``struct vfio_iommu_type1_info_cap_iova_range``; `nr_iovas` ranges follow."""

    _fields_ = (("header", InfoCapHeader), ("nr_iovas", c_uint32), ("reserved", c_uint32))
    nr_iovas: int


class Type1DmaMap(Structure):
    """``struct vfio_iommu_type1_dma_map``"""

    _fields_ = (
        ("argsz", c_uint32),
        ("flags", c_uint32),
        ("vaddr", c_uint64),
        ("iova", c_uint64),
        ("size", c_uint64),
    )


class Type1DmaUnmap(Structure):
    """``struct vfio_iommu_type1_dma_unmap``: the kernel puts into `size` what it has unmapped."""

    _fields_ = (("argsz", c_uint32), ("flags", c_uint32), ("iova", c_uint64), ("size", c_uint64))
    size: int


class Layout(NamedTuple):
    structure: type[Structure]
    size: int  #: octets, without what follows


#: The kernel's name of each structure, and its size on every architecture.
LAYOUTS = {
    "vfio_info_cap_header": Layout(InfoCapHeader, 8),
    "vfio_group_status": Layout(GroupStatus, 8),
    "vfio_device_info": Layout(DeviceInfo, 20),
    "vfio_region_info": Layout(RegionInfo, 32),
    "vfio_region_sparse_mmap_area": Layout(SparseMmapArea, 16),
    "vfio_region_info_cap_sparse_mmap": Layout(SparseMmap, 16),
    "vfio_irq_info": Layout(IrqInfo, 16),
    "vfio_irq_set": Layout(IrqSet, 20),
    "vfio_pci_dependent_device": Layout(PciDependentDevice, 8),
    "vfio_pci_hot_reset_info": Layout(PciHotResetInfo, 12),
    "vfio_pci_hot_reset": Layout(PciHotReset, 12),
    "vfio_iommu_type1_info": Layout(Type1Info, 24),
    "vfio_iova_range": Layout(Type1IovaRange, 16),
    "vfio_iommu_type1_info_cap_iova_range": Layout(Type1IovaRanges, 16),
    "vfio_iommu_type1_dma_map": Layout(Type1DmaMap, 32),
    "vfio_iommu_type1_dma_unmap": Layout(Type1DmaUnmap, 24),
}

for _name, _layout in LAYOUTS.items():
    assert sizeof(_layout.structure) == _layout.size, f"struct {_name}"


class Capability(NamedTuple):
    """One link of an info capability chain; it begins `offset` octets into the info structure."""

    id: int
    version: int
    offset: int


_LARGEST_INFO = 1 << 16  # far above every structure of today: a sparse area is 16 octets, an IOVA range too

AnyInfo = TypeVar("AnyInfo", bound=Info)


def query(fd: int, request: int, kind: type[AnyInfo], **fields: int) -> tuple[AnyInfo, bytes]:
    """Ask an info ioctl, again with more room if it wants that; returns the structure, and all its octets.

    Source: "For extension of INFO ioctls" in <linux/vfio.h>: too small an `argsz` is no error, the kernel raises it.
    OSError from the kernel; ValueError if it wants unreasonably much.
    """
    size = sizeof(kind)
    while True:
        buffer = bytearray(bytes(kind(argsz=size, **fields)).ljust(size, b"\0"))
        fcntl.ioctl(fd, request, buffer)
        info = kind.from_buffer_copy(buffer)
        if info.argsz <= size:
            return info, bytes(buffer)
        if info.argsz > _LARGEST_INFO:
            raise ValueError(f"VFIO wants {info.argsz} octets for {kind.__name__}")
        size = info.argsz


def info_capabilities(info: Info, octets: bytes) -> list[Capability]:
    """The capabilities of what `query` returned, in chain order.

    The kernel is trusted, but it appends each capability behind the last: ValueError for a chain that goes back or out
    of bounds, since a capability that is overlooked (a sparse mapping) is a restriction that is overlooked.
    """
    found: list[Capability] = []
    if not info.flags & info.CAPS:
        return found
    offset, least = info.cap_offset, sizeof(info)
    while offset:
        if not least <= offset <= len(octets) - sizeof(InfoCapHeader):
            raise ValueError(f"a capability of {type(info).__name__} lies at octet {offset} of {len(octets)}")
        header = InfoCapHeader.from_buffer_copy(octets, offset)
        found.append(Capability(header.id, header.version, offset))
        offset, least = header.next, offset + sizeof(InfoCapHeader)
    return found


def sparse_areas(info: RegionInfo, octets: bytes) -> list[tuple[int, int]] | None:
    """(start, end) of the parts of a region that may be mapped; None if the capability is absent: all of it.

    Source: VFIO_REGION_INFO_CAP_SPARSE_MMAP. ValueError if the areas do not fit into `octets`.
    """
    for capability in info_capabilities(info, octets):
        if capability.id == VFIO_REGION_INFO_CAP_SPARSE_MMAP:
            count = SparseMmap.from_buffer_copy(octets, capability.offset).nr_areas
            areas = _array(SparseMmapArea, count, octets, capability.offset + sizeof(SparseMmap))
            return [(area.offset, area.offset + area.size) for area in areas]
    return None


def iova_ranges(info: Type1Info, octets: bytes) -> list[tuple[int, int]]:
    """(first, last), both inclusive, of what the IOMMU translates; empty if the kernel does not say (before 5.4).

    Source: VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE; reserved windows, that of MSI among them, are already left out.
    ValueError if the ranges do not fit into `octets`.
    """
    for capability in info_capabilities(info, octets):
        if capability.id == VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE:
            count = Type1IovaRanges.from_buffer_copy(octets, capability.offset).nr_iovas
            ranges = _array(Type1IovaRange, count, octets, capability.offset + sizeof(Type1IovaRanges))
            return [(range_.start, range_.end) for range_ in ranges]
    return []


def with_fds(header: Structure, fds: list[int]) -> bytes:
    """A structure that ends in an array of descriptors, its `argsz` set: IrqSet, PciHotReset."""
    tail = b"".join(bytes(c_int32(fd)) for fd in fds)
    return bytes(c_uint32(sizeof(header) + len(tail))) + bytes(header)[sizeof(c_uint32) :] + tail


AnyStructure = TypeVar("AnyStructure", bound=Structure)


def _array(kind: type[AnyStructure], count: int, octets: bytes, start: int) -> list[AnyStructure]:
    if start + count * sizeof(kind) > len(octets):
        raise ValueError(f"{count} of {kind.__name__} from octet {start} on do not fit into {len(octets)}")
    return [kind.from_buffer_copy(octets, start + index * sizeof(kind)) for index in range(count)]
