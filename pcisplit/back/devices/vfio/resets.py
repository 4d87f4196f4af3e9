# SPDX-License-Identifier: MIT
"""How a function can be reset, and the choice among it: the kernel's methods by its names, and a bus that is ours [LIFE-26].

The kernel tries its methods in the order of sysfs, and says nowhere which one it took; so exactly one is selected there, which
also is what VFIO does by itself when a device is opened and closed. What stood there comes back with `KernelResets.restore`.
"""

import fcntl
from contextlib import suppress
from ctypes import sizeof
from pathlib import Path

from pcisplit import pci
from pcisplit.back.devices.vfio import abi
from pcisplit.back.devices.vfio.checks import driver_of, refused
from pcisplit.pci import Bdf
from pcisplit.proto.errors import DeviceError
from pcisplit.wire import Error, ResetMethod

_PCI_DEVICES = Path("/sys/bus/pci/devices")

# drivers/pci/pci.c, pci_reset_fn_methods; in the kernel's order.
_BY_NAME = {
    "device_specific": ResetMethod.DEVICE_SPECIFIC,
    "acpi": ResetMethod.ACPI,
    "flr": ResetMethod.FLR,
    "af_flr": ResetMethod.AF,
    "pm": ResetMethod.PM,
    "bus": ResetMethod.BUS,
    "cxl_bus": ResetMethod.BUS,
}

#: What an operator may say, ``reset=NAME``.
CHOICES: dict[str, ResetMethod | None] = {
    "flr": ResetMethod.FLR,
    "af": ResetMethod.AF,
    "pm": ResetMethod.PM,
    "bus": ResetMethod.BUS,
    "none": None,
}

_MOST_AFFECTED = 256  # functions of one bus; a reset of more than a bus is none that we would do


class KernelResets:
    """What the kernel has for one function, and which of it is selected. Made before the device is opened."""

    def __init__(self, bdf: Bdf, devices: Path = _PCI_DEVICES) -> None:
        """Read what there is. `devices` is sysfs's directory of PCI functions."""
        self._bdf, self._function = bdf, devices / str(bdf)
        self._file = self._function / "reset_method"
        self._before = self._file.read_text().strip() if self._file.exists() else None
        if self._before is not None:
            self._names = [name for name in self._before.split() if name in _BY_NAME]
            self._selected = self._before
        else:
            self._names = self._deduce()
            self._selected = " ".join(self._names)

    @property
    def methods(self) -> tuple[ResetMethod, ...]:
        """In the kernel's order."""
        return tuple(dict.fromkeys(_BY_NAME[name] for name in self._names))

    def _deduce(self) -> list[str]:
        """The first method of a kernel older than 5.15, which has `reset` but does not say how, and lets nobody choose."""
        if not (self._function / "reset").exists():
            return []
        bus = self._function.resolve().parent  # the bridge's directory; that of a root bus is called pci0000:00
        alone = bus.name.count(":") == 2 and len(list(bus.glob("????:??:??.?"))) == 1
        return deduce_methods((self._function / "config").read_bytes(), alone)[:1]

    def choose(self, choice: str) -> None:
        """Let only this one of CHOICES be used; ``""``: any. DeviceError, with what there is, if it is not to be had.

        ``bus`` may be chosen although the kernel does not have it for the function: VFIO may have it for all of a bus.
        """
        if not choice:
            if len(self._names) > 1:
                try:
                    self.select(self.methods[0])
                except DeviceError:  # not root: the kernel takes the first that it can, and no other can be selected
                    self._names = self._names[:1]
            return
        method = CHOICES[choice]
        if method not in (None, ResetMethod.BUS, *self.methods):
            names = ", ".join(one.name.lower() for one in self.methods) or "none"
            raise refused(f"{self._bdf}: has no reset by {choice}; the kernel has: {names}")
        self._names = [name for name in self._names if _BY_NAME[name] is method]
        self._write(self._names)

    def select(self, method: ResetMethod) -> None:
        """Make it what VFIO_DEVICE_RESET does. DeviceError if the kernel has it not, or does not let us."""
        names = [name for name in self._names if _BY_NAME[name] is method]
        if not names:
            raise DeviceError(Error.NO_RESET, f"{self._bdf}: the kernel has no reset by {method.name.lower()}")
        self._write(names)

    def restore(self) -> None:
        """What stood there before. Nothing to do if it stands there now."""
        with suppress(DeviceError):
            self._write((self._before or "").split())

    def _write(self, names: list[str]) -> None:
        text = " ".join(names)
        if text == self._selected or (self._before is None and not text):
            return
        advice = f"as root: echo '{text}' > {self._file}"
        if self._before is None:
            raise refused(f"{self._bdf}: this kernel lets nobody choose how it is reset; use Linux 5.15 or newer")
        try:
            self._file.write_text(f"{text}\n")
        except OSError as error:
            raise refused(f"{self._bdf}: its reset cannot be chosen ({error.strerror}); {advice}") from error
        self._selected = text


def deduce_methods(config: bytes, alone: bool) -> list[str]:
    """What a kernel that does not say it has for a function, by its capabilities and whether it is alone on its bus.

    Source: pcie_has_flr, pci_af_flr, pci_pm_reset, pci_parent_bus_reset of drivers/pci/pci.c.
    """
    found = []
    express, advanced, power = (pci.find_capability(config, one) for one in (pci.CAP_PCIE, pci.CAP_AF, pci.CAP_PM))
    if express and _field(config, express + pci.PCIE_DEVCAP, 4) & pci.PCIE_DEVCAP_FLR:
        found.append("flr")
    both = pci.AF_TRANSACTIONS_PENDING | pci.AF_FLR
    if advanced and _field(config, advanced + pci.AF_CAPABILITIES, 1) & both == both:
        found.append("af_flr")
    if power and not _field(config, power + pci.PM_CONTROL, 2) & pci.PM_CONTROL_NO_SOFT_RESET:
        found.append("pm")
    return [*found, "bus"] if alone else found


def _field(config: bytes, offset: int, width: int) -> int:
    return int.from_bytes(config[offset : offset + width], "little")


def bus_is_ours(fd: int, group: int) -> bool:
    """Whether a reset of the device's bus affects functions of this group only, all of them VFIO's, as the kernel demands.

    Devices of one group are in one session, so a reset of one may reset the others.
    """
    header, entry = sizeof(abi.PciHotResetInfo), sizeof(abi.PciDependentDevice)
    buffer = bytearray(header + _MOST_AFFECTED * entry)
    buffer[:header] = bytes(abi.PciHotResetInfo(argsz=len(buffer)))
    try:
        fcntl.ioctl(fd, abi.VFIO_DEVICE_GET_PCI_HOT_RESET_INFO, buffer)
    except OSError:  # ENODEV: neither slot nor bus can be reset; ENOSPC: too many; EPERM: some have no group
        return False
    count = min(abi.PciHotResetInfo.from_buffer_copy(buffer).count, _MOST_AFFECTED)
    affected = [abi.PciDependentDevice.from_buffer_copy(buffer, header + at * entry) for at in range(count)]
    return bool(affected) and all(
        one.group_id == group and driver_of(str(Bdf(one.segment, one.bus, one.devfn >> 3, one.devfn & 7))) == "vfio-pci"
        for one in affected
    )
