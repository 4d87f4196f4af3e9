# SPDX-License-Identifier: MIT
"""One IOMMU group: opened by its keeper, with a fresh type1 container for each session [LIFE-14].

Between sessions the group stays open without a container: nobody else gets it, and its devices are back in their default
domain, in which nothing is mapped (an identity domain, in which everything is, is refused). A container can only be taken off
the group when no descriptor and no mapping of a device is left anywhere: that is how the keeper knows that nobody still
drives it.

Not here: cdev and iommufd. They would stand beside `Group`, with its methods.
"""

import errno
import fcntl
import os
import resource
import time
from contextlib import suppress
from ctypes import c_int32, sizeof
from pathlib import Path

from pcisplit.back.devices.device import IovaRange
from pcisplit.back.devices.vfio import abi
from pcisplit.back.devices.vfio.checks import check_domain, check_interrupts, not_viable, refused
from pcisplit.back.devices.vfio.mapper import map_by_child
from pcisplit.pci import Bdf
from pcisplit.proto.errors import DeviceError
from pcisplit.wire import Error

# What VFIO_SET_IOMMU means by EPERM.
_NO_REMAPPING = (
    ": interrupts are not remapped, so a device could raise any; boot without intremap=off, or use another host"
)

_LET_GO_SECONDS = 1.0  # a descriptor that was just closed may be put by a kernel thread
_PAUSE_FIRST, _PAUSE_MOST = 0.001, 0.1


class Group:
    """An IOMMU group that this process owns. ``begin``, devices, ``map``, ``unmap``, ``end``: a session; ``close``: the end."""

    def __init__(self, number: int) -> None:
        """Open the group `number`, the N of /dev/vfio/N, for this process alone. DeviceError."""
        check_domain(number)
        check_interrupts()
        self.number = number
        self._leaking = ""  # why this group must not be used again
        self._mapped = 0  # octets
        self._container = -1
        self._fd = _open(f"/dev/vfio/{number}")

    # -- a session --------------------------------------------------------------------------------------------

    @property
    def begun(self) -> bool:
        """Whether a session has it."""
        return self._container >= 0

    def begin(self) -> None:
        """A fresh container, with nothing mapped. DeviceError; BUSY while the last session has not ended."""
        if self.begun:
            raise DeviceError(Error.BUSY, f"IOMMU group {self.number}: its last session has not ended")
        if self._leaking:
            raise refused(f"IOMMU group {self.number}: {self._leaking}; restart the backend")
        check_domain(self.number)  # again: the operator may have changed it since the last session
        check_interrupts()
        container = _open("/dev/vfio/vfio")
        try:
            self._attach(container)
        except BaseException:
            with suppress(OSError):  # EINVAL: it was not set
                fcntl.ioctl(self._fd, abi.VFIO_GROUP_UNSET_CONTAINER)
            os.close(container)
            raise
        self._container, self._mapped = container, 0

    def _attach(self, container: int) -> None:
        if (version := fcntl.ioctl(container, abi.VFIO_GET_API_VERSION)) != abi.VFIO_API_VERSION:
            raise refused(f"/dev/vfio/vfio: has API version {version}; use a kernel with version 0")
        for extension in (abi.VFIO_TYPE1v2_IOMMU, abi.VFIO_UNMAP_ALL):
            if not fcntl.ioctl(container, abi.VFIO_CHECK_EXTENSION, extension):
                text = f"has no extension {extension} (type1v2 is {abi.VFIO_TYPE1v2_IOMMU}, unmap all is {abi.VFIO_UNMAP_ALL})"
                raise refused(f"/dev/vfio/vfio: {text}; as root: modprobe vfio_iommu_type1, or use Linux 5.12 or newer")
        status = abi.GroupStatus(argsz=sizeof(abi.GroupStatus))
        fcntl.ioctl(self._fd, abi.VFIO_GROUP_GET_STATUS, status)
        if not status.flags & abi.VFIO_GROUP_FLAGS_VIABLE:
            raise refused(f"IOMMU group {self.number}: {not_viable(self.number)}")
        try:
            fcntl.ioctl(self._fd, abi.VFIO_GROUP_SET_CONTAINER, bytes(c_int32(container)))
            fcntl.ioctl(container, abi.VFIO_SET_IOMMU, abi.VFIO_TYPE1v2_IOMMU)
        except OSError as error:
            raise refused(
                f"IOMMU group {self.number}: the kernel gives it no domain of its own ({error.strerror})"
                + (_NO_REMAPPING if error.errno == errno.EPERM else "; dmesg may say why")
            ) from error

    def device_fd(self, bdf: Bdf) -> int:
        """A new descriptor of a device of this group, which has begun. DeviceError."""
        try:
            return int(fcntl.ioctl(self._fd, abi.VFIO_GROUP_GET_DEVICE_FD, bytearray(f"{bdf}\0", "ascii")))
        except OSError as error:
            raise refused(f"{bdf}: VFIO does not give the device ({error.strerror}); dmesg may say why") from error

    def hot_reset_fds(self) -> list[int]:
        """The proof, for VFIO_DEVICE_PCI_HOT_RESET, that this process owns the group."""
        return [self._fd]

    def iova_ranges(self) -> tuple[IovaRange, ...]:
        """What the IOMMU translates for the devices of this group, which has begun. OSError, ValueError."""
        info, octets = abi.query(self._container, abi.VFIO_IOMMU_GET_INFO, abi.Type1Info)
        return tuple(IovaRange(first, last) for first, last in abi.iova_ranges(info, octets))

    def end(self) -> None:
        """Take the container off and close it. Idempotent.

        DeviceError (BUSY), and the group still has it, while a descriptor or mapping of a device is left: the caller must not
        offer its devices again, and may try again. Source: vfio_group_ioctl_unset_container of drivers/vfio/group.c.
        """
        if not self.begun:
            return
        deadline, pause = time.monotonic() + _LET_GO_SECONDS, _PAUSE_FIRST
        while True:
            try:
                fcntl.ioctl(self._fd, abi.VFIO_GROUP_UNSET_CONTAINER)
                break
            except OSError as error:
                if error.errno == errno.EINVAL:  # the kernel took it off, with the last device of the group, unplugged
                    break
                if error.errno != errno.EBUSY or time.monotonic() > deadline:
                    what = f"IOMMU group {self.number}: the container of its session cannot be taken off"
                    raise DeviceError(Error.BUSY, f"{what} ({error.strerror}): {_left_over()}") from error
            time.sleep(pause)  # the kernel gives no event to wait for
            pause = min(2 * pause, _PAUSE_MOST)
        os.close(self._container)
        self._container, self._mapped = -1, 0

    # -- DMA --------------------------------------------------------------------------------------------------

    def map(self, fd: int, size: int, iova: int) -> None:
        """Let all devices of the group reach `size` octets of memfd `fd`, from its octet 0 on, at `iova`. DeviceError."""
        if not self.begun:
            raise DeviceError(Error.GONE, f"IOMMU group {self.number}: has no session")
        try:
            map_by_child(self._container, fd, size, iova)
        except OSError as error:
            if error.errno == errno.ETIMEDOUT:
                self._leaking = f"a mapping of {size} octets of DMA memory at {iova:#x} has not come to an end"
            raise DeviceError(Error.OP_FAILED, self._map_failed(error, size, iova)) from error
        self._mapped += size

    def _map_failed(self, error: OSError, size: int, iova: int) -> str:
        what = f"IOMMU group {self.number}: mapping {size} octets of DMA memory at {iova:#x} failed"
        if error.errno != errno.ENOMEM:
            return f"{what} ({error.strerror})"
        limit, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
        locked = "without limit" if limit == resource.RLIM_INFINITY else f"{limit} octets"
        return (
            f"{what}: they must be locked, and this process may lock {locked};"
            f" raise RLIMIT_MEMLOCK (ulimit -l {-(-size // 1024)} or more, in KiB), or use less DMA memory"
        )

    def unmap(self) -> int:
        """Unmap all that is mapped in the container, by whomever; returns the octets.

        DeviceError if they are fewer than were mapped here; the group can then not begin again.
        Source: VFIO_DMA_UNMAP_FLAG_ALL of struct vfio_iommu_type1_dma_unmap.
        """
        if not self.begun:
            return 0
        request = abi.Type1DmaUnmap(sizeof(abi.Type1DmaUnmap), abi.VFIO_DMA_UNMAP_FLAG_ALL, 0, 0)
        wrong = ""
        try:
            fcntl.ioctl(self._container, abi.VFIO_IOMMU_UNMAP_DMA, request)
            if request.size < self._mapped:
                wrong = f"{request.size} of {self._mapped} octets of DMA memory were unmapped"
        except OSError as error:
            wrong = f"{self._mapped} octets of DMA memory were not unmapped ({error.strerror})"
        self._mapped = 0
        if wrong:
            self._leaking = wrong
            raise DeviceError(Error.OP_FAILED, f"IOMMU group {self.number}: {wrong}")
        return request.size

    def close(self) -> None:
        """Let go of the group, and of the session if one still has it. Idempotent."""
        for fd in (self._fd, self._container):
            if fd >= 0:
                os.close(fd)
        self._fd = self._container = -1


def _left_over() -> str:
    """Which processes have a descriptor or a mapping of some VFIO device, as far as this one may look."""
    holders = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if _holds_device(process):
                name = (process / "comm").read_text().strip()
                holders.append(f"{process.name} ({name.encode('unicode_escape').decode()})")
    who = (
        f"one of the processes {', '.join(holders)}"
        if holders
        else "no process that can be seen here, perhaps a socket,"
    )
    return f"{who} still holds a descriptor or a mapping of a device of it"


def _holds_device(process: Path) -> bool:
    if "anon_inode:[vfio-device]" in (process / "maps").read_text():
        return True
    for entry in (process / "fd").iterdir():
        with suppress(OSError):
            if os.readlink(entry) == "anon_inode:[vfio-device]":
                return True
    return False


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
