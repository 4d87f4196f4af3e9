# SPDX-License-Identifier: MIT
"""PCI facts: addresses, registers of the type 0 header, capability ids. Sources: PCI Local Bus 3.0 chapter 6, PCIe 6.0 7.5."""

import re
from typing import NamedTuple, Self

VENDOR_ID = 0x00
DEVICE_ID = 0x02
COMMAND = 0x04
STATUS = 0x06
REVISION = 0x08
CACHE_LINE = 0x0C
LATENCY = 0x0D
HEADER_TYPE = 0x0E
BIST = 0x0F
BAR0 = 0x10
BAR_COUNT = 6
CARDBUS_CIS = 0x28
SUBSYSTEM_VENDOR = 0x2C
ROM_BAR = 0x30
CAP_POINTER = 0x34
INTERRUPT_LINE = 0x3C
INTERRUPT_PIN = 0x3D
HEADER_END = 0x40
CONFIG_SIZE = 256
CONFIG_SIZE_EXTENDED = 4096

COMMAND_IO = 1 << 0
COMMAND_MEM = 1 << 1
COMMAND_MASTER = 1 << 2
COMMAND_INTX_DISABLE = 1 << 10

STATUS_CAP_LIST = 1 << 4
STATUS_ERRORS = 0xF900  #: signalled and detected errors, write-one-to-clear (PCI Local Bus 3.0, 6.2.3)

BAR_IO = 0x1
BAR_MEM64 = 0x4
BAR_PREFETCHABLE = 0x8

CAP_PM = 0x01
CAP_MSI = 0x05
CAP_PCIE = 0x10
CAP_MSIX = 0x11
CAP_AF = 0x13

PCIE_DEVCAP = 0x04  #: Device Capabilities, from the start of the PCI Express capability, 4 octets
PCIE_DEVCAP_FLR = 1 << 28
PCIE_DEVSTA = 0x0A  #: Device Status, from the start of the PCI Express capability
PCIE_DEVSTA_TRANSACTIONS_PENDING = 1 << 5
PM_CONTROL = 0x04  #: Power Management Control and Status, from the start of the PM capability, 2 octets
PM_CONTROL_NO_SOFT_RESET = 1 << 3
AF_CAPABILITIES = 0x03  #: of the Advanced Features capability, 1 octet
AF_TRANSACTIONS_PENDING, AF_FLR = 1 << 0, 1 << 1

_BDF = re.compile(r"(?:([0-9a-fA-F]{4}):)?([0-9a-fA-F]{2}):([01][0-9a-fA-F])\.([0-7])")
_NAME = re.compile(r"[A-Za-z0-9]{1,67}")


class Bdf(NamedTuple):
    """Address of a PCI function on the host; prints as ``0000:03:00.0``."""

    domain: int
    bus: int
    device: int
    function: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``[DDDD:]BB:DD.F``. Raises ValueError with the form that is wanted."""
        match = _BDF.fullmatch(text)
        if not match:
            raise ValueError(f"{text!r} is not a PCI address; write it as 0000:03:00.0 (domain:bus:device.function)")
        domain, bus, device, function = match.groups()
        return cls(int(domain or "0", 16), int(bus, 16), int(device, 16), int(function))

    def __str__(self) -> str:
        return f"{self.domain:04x}:{self.bus:02x}:{self.device:02x}.{self.function}"


def is_device_name(text: str) -> bool:
    """Whether `text` can name a device: ``[A-Za-z0-9]{1,67}``, as in a Solo5 manifest."""
    return _NAME.fullmatch(text) is not None


def capabilities(config: bytes) -> list[tuple[int, int]]:
    """(id, offset) of each capability in the standard list, in list order.

    The device is a liar: a pointer out of range or a loop ends the walk, which is at most 48 steps long (as many
    4-octet aligned capabilities as fit between 0x40 and 0xff).
    """
    found: list[tuple[int, int]] = []
    if not int.from_bytes(config[STATUS : STATUS + 2], "little") & STATUS_CAP_LIST:
        return found
    pointer = config[CAP_POINTER] & ~3
    while HEADER_END <= pointer <= CONFIG_SIZE - 4 and len(found) < 48 and all(pointer != o for _, o in found):
        found.append((config[pointer], pointer))
        pointer = config[pointer + 1] & ~3
    return found


def find_capability(config: bytes, capability: int) -> int | None:
    """Offset of the first capability with this id, or None."""
    return next((offset for ident, offset in capabilities(config) if ident == capability), None)
