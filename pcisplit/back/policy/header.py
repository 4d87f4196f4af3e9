# SPDX-License-Identifier: MIT
"""The rules, and the fields of the type 0 header with what a front may do to each of their bits (spec/config.md).

A bit is read from the device (`hardware`) or from the back's own value. When it is written, the first of these holds:

=============  ==============================================================================================
virtual        it goes to the back's value
through        it reaches the device; with `virtual` it does both, and is read from the value
clear          a 1 reaches the device, where it clears something; a 0 does nothing
ignore         nothing happens, as in hardware
zero           it must be written as 0
none of them   locked: it must keep its value, and is refused if that is the device's
=============  ==============================================================================================

A bit of `force` is 1 in whatever the back writes to the device there; a front has no say.
"""

from typing import NamedTuple

from pcisplit import pci
from pcisplit.wire.rules import Rule as Rule


class Field(NamedTuple):
    """Octets of one register. `init`: None as acquired, else the value at the start. Masks are little-endian integers."""

    offset: int
    size: int
    rule: Rule
    hardware: int = 0
    init: int | None = None
    virtual: int = 0
    through: int = 0
    clear: int = 0
    ignore: int = 0
    zero: int = 0
    force: int = 0
    trap: int = 0  #: number of the owner's handler that is called instead of the write (Owner.traps); 0: none


_COMMAND_VIRTUAL = pci.COMMAND_IO | pci.COMMAND_MEM | pci.COMMAND_INTX_DISABLE | pci.COMMAND_MASTER

FIELDS = (
    Field(pci.VENDOR_ID, 4, Rule.IDS),
    # INTX_DISABLE stays on in the device until INTx is built: VFIO would let the line through with nobody to handle it.
    Field(
        pci.COMMAND,
        2,
        Rule.COMMAND,
        init=0,
        virtual=_COMMAND_VIRTUAL,
        through=pci.COMMAND_MASTER,
        force=pci.COMMAND_INTX_DISABLE,
    ),
    Field(pci.STATUS, 2, Rule.STATUS, hardware=0xFFFF, clear=pci.STATUS_ERRORS, zero=0xFFFF & ~pci.STATUS_ERRORS),
    Field(pci.REVISION, 4, Rule.IDS),
    Field(pci.CACHE_LINE, 1, Rule.CACHE_LINE, virtual=0xFF),
    Field(pci.LATENCY, 3, Rule.LATENCY),
    Field(pci.SUBSYSTEM_VENDOR, 4, Rule.IDS),
    Field(pci.ROM_BAR, 4, Rule.ROM, init=0, ignore=0xFFFFFFFF),
    Field(pci.CAP_POINTER, 1, Rule.CAP_POINTER),
    Field(pci.INTERRUPT_LINE, 1, Rule.INTERRUPT, init=0, virtual=0xFF),
    Field(pci.INTERRUPT_PIN, 1, Rule.INTERRUPT),
)


def ones(size: int) -> int:
    """A mask of `size` octets."""
    return (1 << 8 * size) - 1
