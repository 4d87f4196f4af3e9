# SPDX-License-Identifier: MIT
"""Capability ids, registers inside of capabilities, the list of them. Sources: PCI Local Bus 3.0, chapter 6; PCIe 6.0, 7.5."""

from pcisplit.pci.header import CAP_POINTER, CONFIG_SIZE, HEADER_END, STATUS, STATUS_CAP_LIST

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
