# SPDX-License-Identifier: MIT
"""What can be known of a PCI function and its IOMMU group without opening VFIO, and whether it may be used.

What cannot be made safe is refused with the next step in the sentence [DMA-4].
"""

from pathlib import Path

from pcisplit.pci import Bdf
from pcisplit.proto.errors import DeviceError
from pcisplit.wire import Error

_PCI_DEVICES = Path("/sys/bus/pci/devices")
_GROUPS = Path("/sys/kernel/iommu_groups")
_UNSAFE_INTERRUPTS = (
    Path("/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts"),
    Path("/sys/module/iommufd/parameters/allow_unsafe_interrupts"),  # where it stands in for the container
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
    found = identity_of(bdf)
    if found != expected:
        raise refused(
            f"{bdf}: is {found[0]:04x}:{found[1]:04x}, not {expected[0]:04x}:{expected[1]:04x}; correct the address or"
            f" the id= of this device (lspci -D -d {expected[0]:04x}:{expected[1]:04x} finds the one that was meant)"
        )


def identity_of(bdf: Bdf) -> tuple[int, int]:
    """The vendor and the device id of a function, as the kernel read them when it found it."""
    vendor, device = (int((_PCI_DEVICES / str(bdf) / name).read_text(), 16) for name in ("vendor", "device"))
    return vendor, device


def check_driver(bdf: Bdf) -> None:
    """Refuse, with DeviceError and the commands to bind it, a function that vfio-pci does not have."""
    driver = driver_of(str(bdf))
    if driver != "vfio-pci":
        held = f"driver {driver} has it" if driver else "no driver has it"
        raise refused(f"{bdf}: {held}, and it must be vfio-pci; as root: {bind_commands(str(bdf))}")


def driver_of(name: str) -> str | None:
    """The driver that has a PCI function, named as in sysfs, or None."""
    link = _PCI_DEVICES / name / "driver"
    return link.readlink().name if link.exists() else None


def not_viable(number: int) -> str:
    """Which members of a group hold it back, and how to change that."""
    members = sorted(path.name for path in (_GROUPS / str(number) / "devices").iterdir())
    drivers = {member: driver_of(member) for member in members}
    held = {member: driver for member, driver in drivers.items() if driver and driver not in _HARMLESS_DRIVERS}
    if not held:
        return "somebody else uses it; end the other program that has a device of it"
    names = ", ".join(f"{member} (driver {driver})" for member, driver in held.items())
    commands = "; ".join(map(bind_commands, held))
    return f"its devices go together, but these are not with vfio-pci: {names}; as root: {commands}"


def bind_commands(name: str) -> str:
    """The shell commands that give a PCI function, named as in sysfs, to vfio-pci."""
    function = _PCI_DEVICES / name
    unbind = f"echo {name} > {function}/driver/unbind; " if driver_of(name) else ""
    probe = f"echo {name} > /sys/bus/pci/drivers_probe"
    return f"modprobe vfio-pci; echo vfio-pci > {function}/driver_override; {unbind}{probe}"


def check_function(bdf: Bdf, number: int, expected: tuple[int, int] | None) -> None:
    """All of the above, for a function that was in group `number` when the backend began. To be done before `Group` is made."""
    if find_group(bdf) != number:
        raise refused(f"{bdf}: has moved to another IOMMU group; restart the backend")
    check_identity(bdf, expected)
    check_driver(bdf)


def check_domain(number: int) -> None:
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


def check_interrupts() -> None:
    """Refuse, with DeviceError, a host where devices may forge interrupts. Source: drivers/vfio/vfio_iommu_type1.c."""
    for parameter in _UNSAFE_INTERRUPTS:
        if parameter.exists() and parameter.read_text().strip() == "Y":
            raise refused(
                "the kernel was told to allow unsafe interrupts: a device could raise any interrupt of the host;"
                f" as root: echo N > {parameter}, and take allow_unsafe_interrupts out of /etc/modprobe.d"
            )
