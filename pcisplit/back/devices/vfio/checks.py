# SPDX-License-Identifier: MIT
"""IOMMU groups: which may be used, and one VFIO group with its type1 container for each that is.

Rules of this file. A group is opened at the first acquire of one of its devices, into a container of its own, and
stays open, without mappings, until the last device that used it shuts down: a released group falls back to its default
domain. What cannot be made safe is refused before anything is opened, with the next step in the sentence [DMA-4].

Not here: cdev and iommufd. They would stand beside `Group`, with the methods that ``vfio.VfioDevice`` calls.
"""

import errno
import fcntl
import os
import resource
import threading
from ctypes import c_int32, sizeof
from pathlib import Path
from typing import NamedTuple

from pcisplit.back.devices.device import IovaRange
from pcisplit.back.devices.vfio import abi
from pcisplit.errors import DeviceError
from pcisplit.pci import Bdf
from pcisplit.wire import Error

_PCI_DEVICES = Path("/sys/bus/pci/devices")
_GROUPS = Path("/sys/kernel/iommu_groups")
_UNSAFE_INTERRUPTS = (
    Path("/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts"),
    Path("/sys/module/iommufd/parameters/allow_unsafe_interrupts"),  # where it stands in for the container
)

# What VFIO_SET_IOMMU means by EPERM.
_NO_REMAPPING = (
    ": interrupts are not remapped, so a device could raise any; boot without intremap=off, or use another host"
)

# Drivers that leave a group usable by VFIO (driver_managed_dma in drivers/pci); a member without a driver does as well.
_HARMLESS_DRIVERS = ("vfio-pci", "pcieport", "shpchp", "pci-stub")


def refused(sentence: str) -> DeviceError:
    """The error of a device that cannot be opened."""
    return DeviceError(Error.DEVICE_FAILED, sentence)


def find_group(bdf: Bdf) -> int:
    """The number of a function's IOMMU group. DeviceError if there is no such function, or no IOMMU for it."""
    function = _PCI_DEVICES / str(bdf)
    if not function.exists():
        raise refused(f"{bdf}: this machine has no such PCI function; lspci -D lists those it has")
    if not (function / "iommu_group").exists():
        raise refused(
            f"{bdf}: no IOMMU translates its DMA, so it could reach all of memory; switch VT-d or AMD-Vi on in the"
            " firmware and boot with intel_iommu=on (AMD: it is on by itself)"
        )
    return int((function / "iommu_group").readlink().name)


def check_identity(bdf: Bdf, expected: tuple[int, int] | None) -> None:
    """Refuse, with DeviceError, a function that has not the (vendor, device) ids that the operator named."""
    if expected is None:
        return
    function = _PCI_DEVICES / str(bdf)
    found = tuple(int((function / name).read_text(), 16) for name in ("vendor", "device"))
    if found != expected:
        raise refused(
            f"{bdf}: is {found[0]:04x}:{found[1]:04x}, not {expected[0]:04x}:{expected[1]:04x}; correct the address or"
            f" the id= of this device (lspci -D -d {expected[0]:04x}:{expected[1]:04x} finds the one that was meant)"
        )


def check_driver(bdf: Bdf) -> None:
    """Refuse, with DeviceError and the commands to bind it, a function that vfio-pci does not have."""
    driver = driver_of(str(bdf))
    if driver != "vfio-pci":
        held = f"driver {driver} has it" if driver else "no driver has it"
        raise refused(f"{bdf}: {held}, and it must be vfio-pci; as root: {_bind_commands(str(bdf))}")


def driver_of(name: str) -> str | None:
    """The driver that has a PCI function, named as in sysfs, or None."""
    link = _PCI_DEVICES / name / "driver"
    return link.readlink().name if link.exists() else None


def _bind_commands(name: str) -> str:
    function = _PCI_DEVICES / name
    unbind = f"echo {name} > {function}/driver/unbind; " if driver_of(name) else ""
    probe = f"echo {name} > /sys/bus/pci/drivers_probe"
    return f"modprobe vfio-pci; echo vfio-pci > {function}/driver_override; {unbind}{probe}"


def _check_domain(number: int) -> None:
    """Refuse, with DeviceError, a group whose devices reach all of memory whenever VFIO does not hold it.

    Source: Documentation/ABI/testing/sysfs-kernel-iommu_groups. `type` is of the group's default domain, also while
    VFIO has put another in its place.
    """
    group = _GROUPS / str(number)
    name, kind = (path.read_text().strip() if path.exists() else "" for path in (group / "name", group / "type"))
    if name == "vfio-noiommu":
        raise refused(
            f"IOMMU group {number}: VFIO's no-IOMMU mode, in which a device reaches all of memory, is not for pcisplit;"
            " switch on the IOMMU, and load vfio without enable_unsafe_noiommu_mode"
        )
    if kind == "identity":
        raise refused(
            f"IOMMU group {number}: its default domain is identity: when the backend lets go of it, its devices reach"
            " all of memory; boot without iommu=pt, or, while no driver has its devices:"
            f" echo DMA > {group}/type, and bind them to vfio-pci again"
        )


def _check_interrupts() -> None:
    """Refuse, with DeviceError, a host where devices may forge interrupts. Source: drivers/vfio/vfio_iommu_type1.c."""
    for parameter in _UNSAFE_INTERRUPTS:
        if parameter.exists() and parameter.read_text().strip() == "Y":
            raise refused(
                "the kernel was told to allow unsafe interrupts: a device could raise any interrupt of the host;"
                f" as root: echo N > {parameter}, and take allow_unsafe_interrupts out of /etc/modprobe.d"
            )


class _Window(NamedTuple):
    address: int
    size: int
    users: set[object]


class Group:
    """An open VFIO group, in a type1 container of its own. Made and closed by `VfioHost`.

    Devices of one group share its DMA windows: the first to map a window maps it, the last to unmap it unmaps it.
    """

    def __init__(self, number: int) -> None:
        """Open both. DeviceError with what to do next."""
        self.number = number
        self._windows: dict[int, _Window] = {}
        self._lock = threading.Lock()
        self._leaking = ""
        self._container = self._fd = -1
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        _check_domain(self.number)
        self._container = _open("/dev/vfio/vfio")
        # Asking for the extension loads the module that has the parameter that _check_interrupts reads.
        if fcntl.ioctl(self._container, abi.VFIO_GET_API_VERSION) != abi.VFIO_API_VERSION or not fcntl.ioctl(
            self._container, abi.VFIO_CHECK_EXTENSION, abi.VFIO_TYPE1v2_IOMMU
        ):
            raise refused("/dev/vfio/vfio: no type1v2 IOMMU there; as root: modprobe vfio_iommu_type1")
        _check_interrupts()
        self._fd = _open(f"/dev/vfio/{self.number}")
        status = abi.GroupStatus(argsz=sizeof(abi.GroupStatus))
        fcntl.ioctl(self._fd, abi.VFIO_GROUP_GET_STATUS, status)
        if not status.flags & abi.VFIO_GROUP_FLAGS_VIABLE:
            raise refused(f"IOMMU group {self.number}: {self._not_viable()}")
        try:
            fcntl.ioctl(self._fd, abi.VFIO_GROUP_SET_CONTAINER, bytes(c_int32(self._container)))
            fcntl.ioctl(self._container, abi.VFIO_SET_IOMMU, abi.VFIO_TYPE1v2_IOMMU)
        except OSError as error:
            raise refused(
                f"IOMMU group {self.number}: the kernel gives it no domain of its own ({error.strerror})"
                + (_NO_REMAPPING if error.errno == errno.EPERM else "; dmesg may say why")
            ) from error

    def _not_viable(self) -> str:
        """Which members of the group hold it back, and how to change that."""
        members = sorted(path.name for path in (_GROUPS / str(self.number) / "devices").iterdir())
        drivers = {member: driver_of(member) for member in members}
        held = {member: driver for member, driver in drivers.items() if driver and driver not in _HARMLESS_DRIVERS}
        if not held:
            return "somebody else uses it; end the other program that has a device of it"
        names = ", ".join(f"{member} (driver {driver})" for member, driver in held.items())
        commands = "; ".join(map(_bind_commands, held))
        return f"its devices go together, but these are not with vfio-pci: {names}; as root: {commands}"

    def device_fd(self, bdf: Bdf) -> int:
        """A new descriptor of a device of this group. DeviceError."""
        if self._leaking:
            raise refused(f"IOMMU group {self.number}: {self._leaking}; restart the backend")
        try:
            return int(fcntl.ioctl(self._fd, abi.VFIO_GROUP_GET_DEVICE_FD, bytearray(f"{bdf}\0", "ascii")))
        except OSError as error:
            raise refused(f"{bdf}: VFIO does not give the device ({error.strerror}); dmesg may say why") from error

    def hot_reset_fds(self) -> list[int]:
        """The proof, for VFIO_DEVICE_PCI_HOT_RESET, that this process owns the group."""
        return [self._fd]

    def iova_ranges(self) -> tuple[IovaRange, ...]:
        """What the IOMMU translates for the devices of this group. OSError, ValueError."""
        info, octets = abi.query(self._container, abi.VFIO_IOMMU_GET_INFO, abi.Type1Info)
        return tuple(IovaRange(first, last) for first, last in abi.iova_ranges(info, octets))

    def map(self, user: object, address: int, size: int, iova: int) -> None:
        """Let all devices of the group reach `size` octets of this process, at `address`, as `iova`. DeviceError.

        `user` is the device that asks; a window that another has mapped alike is shared with it.
        """
        with self._lock:
            if window := self._windows.get(iova):
                if (window.address, window.size) != (address, size):
                    raise DeviceError(Error.BUSY, f"IOMMU group {self.number}: {iova:#x} is mapped to something else")
                window.users.add(user)
                return
            both = abi.VFIO_DMA_MAP_FLAG_READ | abi.VFIO_DMA_MAP_FLAG_WRITE
            request = abi.Type1DmaMap(sizeof(abi.Type1DmaMap), both, address, iova, size)
            try:
                fcntl.ioctl(self._container, abi.VFIO_IOMMU_MAP_DMA, request)
            except OSError as error:
                raise DeviceError(Error.OP_FAILED, self._map_failed(error, size, iova)) from error
            self._windows[iova] = _Window(address, size, {user})

    def _map_failed(self, error: OSError, size: int, iova: int) -> str:
        what = f"IOMMU group {self.number}: mapping {size} octets of DMA memory at {iova:#x} failed"
        if error.errno != errno.ENOMEM:
            return f"{what} ({error.strerror})"
        limit, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
        locked = "without limit" if limit == resource.RLIM_INFINITY else f"{limit} octets"
        need = sum(window.size for window in self._windows.values()) + size
        return (
            f"{what}: it must be locked, {need} octets in all, and this process may lock {locked};"
            f" raise RLIMIT_MEMLOCK (ulimit -l {-(-need // 1024)} or more, in KiB), or use less DMA memory"
        )

    def unmap(self, user: object) -> int:
        """End the user's part in its windows; returns the octets unmapped: of windows that nobody else still uses.

        DeviceError if the kernel unmapped another size than was mapped; the group can then not be used again.
        Source: struct vfio_iommu_type1_dma_unmap.
        """
        unmapped, wrong = 0, ""
        with self._lock:
            for iova, window in list(self._windows.items()):
                window.users.discard(user)
                if window.users:
                    continue
                del self._windows[iova]
                request = abi.Type1DmaUnmap(sizeof(abi.Type1DmaUnmap), 0, iova, window.size)
                try:
                    fcntl.ioctl(self._container, abi.VFIO_IOMMU_UNMAP_DMA, request)
                    if request.size != window.size:
                        wrong = f"{request.size} of {window.size} octets of DMA memory at {iova:#x} were unmapped"
                    unmapped += request.size
                except OSError as error:
                    wrong = f"{window.size} octets of DMA memory at {iova:#x} were not unmapped ({error.strerror})"
            if wrong:
                self._leaking = wrong
                raise DeviceError(Error.OP_FAILED, f"IOMMU group {self.number}: {wrong}")
        return unmapped

    def close(self) -> None:
        """Give the group back to its default domain. Idempotent."""
        for fd in (self._fd, self._container):
            if fd >= 0:
                os.close(fd)
        self._fd = self._container = -1


class VfioHost:
    """The IOMMU groups that this process holds: one object for all VFIO devices of a backend."""

    def __init__(self) -> None:
        self._groups: dict[int, tuple[Group, set[object]]] = {}
        self._lock = threading.Lock()

    def enter(self, number: int, user: object) -> Group:
        """The group of this number, opened if need be; it stays open until every user has left. DeviceError."""
        with self._lock:
            if number not in self._groups:
                self._groups[number] = (Group(number), set())
            group, users = self._groups[number]
            users.add(user)
            return group

    def leave(self, number: int, user: object) -> None:
        """Take the user out of the group; the last one closes it. Idempotent."""
        with self._lock:
            group, users = self._groups.get(number, (None, set()))
            users.discard(user)
            if group and not users:
                del self._groups[number]
                group.close()


_OPENING_FAILED = {
    errno.ENOENT: "there is no such node; as root: modprobe vfio-pci vfio_iommu_type1, and bind the device to vfio-pci",
    errno.EACCES: "this user may not open it; as root: chown it to the user of the backend",
    errno.EPERM: "this user may not open it; run the backend as root",
    errno.EBUSY: "another process has it, and an IOMMU group has one owner; fuser -v finds it; end it",
    errno.ENODEV: "its driver is not loaded; as root: modprobe vfio-pci vfio_iommu_type1",
}


def _open(path: str) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise refused(f"{path}: {_OPENING_FAILED.get(error.errno or 0, error.strerror)}") from error
