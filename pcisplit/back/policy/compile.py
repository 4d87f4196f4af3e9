# SPDX-License-Identifier: MIT
"""Configuration-space policy: one table of fields, compiled to the per-octet tables that C follows (spec/config.md).

Unlisted means: read from the device, refused to write. What the device says after acquire changes nothing here [CFG-12].
"""

from collections.abc import Sequence
from typing import NamedTuple

from pcisplit import pci
from pcisplit.back.devices.device import BarInfo
from pcisplit.rules import Rule as Rule
from pcisplit.wire import BAR_COUNT, BarFlag


class Field(NamedTuple):
    """Octets of one register. `init`: None as acquired, else the value at the start. Masks are little-endian integers."""

    offset: int
    size: int
    rule: Rule
    from_device: bool = False
    init: int | None = None
    write: int = 0  #: bits the front may change
    to_device: int = 0  #: those of them that live in the device
    quiet: int = 0  #: bits written without effect or error, as hardware does
    zero: int = 0  #: bits that may be written as 0: write-one-to-clear


_COMMAND_VIRTUAL = pci.COMMAND_IO | pci.COMMAND_MEM | pci.COMMAND_INTX_DISABLE
_COMMAND_DEVICE = pci.COMMAND_MASTER

FIELDS = (
    Field(pci.VENDOR_ID, 4, Rule.IDS),
    Field(pci.COMMAND, 2, Rule.COMMAND, init=0, write=_COMMAND_VIRTUAL | _COMMAND_DEVICE, to_device=_COMMAND_DEVICE),
    Field(pci.STATUS, 2, Rule.STATUS, from_device=True, zero=0xFFFF),
    Field(pci.REVISION, 4, Rule.IDS),
    Field(pci.CACHE_LINE, 1, Rule.CACHE_LINE, write=0xFF),
    Field(pci.LATENCY, 3, Rule.LATENCY),
    Field(pci.SUBSYSTEM_VENDOR, 4, Rule.IDS),
    Field(pci.ROM_BAR, 4, Rule.ROM, init=0, quiet=0xFFFFFFFF),
    Field(pci.CAP_POINTER, 1, Rule.CAP_POINTER),
    Field(pci.INTERRUPT_LINE, 1, Rule.INTERRUPT, init=0, write=0xFF),
    Field(pci.INTERRUPT_PIN, 1, Rule.INTERRUPT),
)

#: Octets of the capabilities whose length is fixed; others get their header.
CAPABILITY_LENGTHS = {pci.CAP_PM: 8, pci.CAP_MSI: 24, pci.CAP_MSIX: 12, pci.CAP_PCIE: 60}

#: Where virtual BAR addresses begin: memory, I/O. No host address is ever shown [BOOT-6].
VIRTUAL_MEMORY, VIRTUAL_IO = 0x8000_0000, 0x1000


class Tables(NamedTuple):
    """Per-octet tables in the order of ``pcs_device_table``, and the virtual address of each BAR."""

    value: bytes
    from_device: bytes
    write: bytes
    to_device: bytes
    quiet: bytes
    zero: bytes
    rule: bytes
    addresses: dict[int, int]


def compile_tables(config: bytes, bars: Sequence[BarInfo]) -> Tables:
    """Tables for a device whose configuration space reads `config` at acquire and which has `bars`."""
    size = len(config)
    fields, addresses = [*FIELDS, *_capability_fields(config)], virtual_addresses(bars)
    fields += _bar_fields(bars, addresses)
    _check_disjoint(fields, size)
    value, write, to_device = bytearray(config), bytearray(size), bytearray(size)
    quiet, zero, from_device = bytearray(size), bytearray(size), bytearray(b"\1" * size)
    rule = bytearray([Rule.GAP] * min(size, pci.CONFIG_SIZE) + [Rule.EXTENDED] * max(0, size - pci.CONFIG_SIZE))
    for field in fields:
        span = slice(field.offset, field.offset + field.size)
        for table, mask in (
            (write, field.write),
            (to_device, field.to_device),
            (quiet, field.quiet),
            (zero, field.zero),
        ):
            table[span] = mask.to_bytes(field.size, "little")
        from_device[span] = bytes([field.from_device]) * field.size
        rule[span] = bytes([field.rule]) * field.size
        if field.init is not None:
            value[span] = field.init.to_bytes(field.size, "little")
    return Tables(
        value=bytes(value),
        from_device=bytes(from_device),
        write=bytes(write),
        to_device=bytes(to_device),
        quiet=bytes(quiet),
        zero=bytes(zero),
        rule=bytes(rule),
        addresses=addresses,
    )


def virtual_addresses(bars: Sequence[BarInfo]) -> dict[int, int]:
    """A virtual address for each BAR, aligned to its size, without overlap."""
    addresses, memory, io = {}, VIRTUAL_MEMORY, VIRTUAL_IO
    for bar in sorted(bars, key=lambda bar: -bar.size):
        if bar.flags & BarFlag.IO:
            addresses[bar.index], io = io, io + bar.size
        else:
            memory = -(-memory // bar.size) * bar.size  # 64-bit BARs may be larger than what lies below
            addresses[bar.index], memory = memory, memory + bar.size
    return addresses


def _capability_fields(config: bytes) -> list[Field]:
    fields: list[Field] = []
    found = sorted(offset for _, offset in pci.capabilities(config))
    for ident, offset in sorted(pci.capabilities(config), key=lambda capability: capability[1]):
        end = min([offset + CAPABILITY_LENGTHS.get(ident, 4), pci.CONFIG_SIZE, *(o for o in found if o > offset)])
        fields.append(Field(offset, end - offset, Rule.CAPABILITY, from_device=True))
    return fields


def _bar_fields(bars: Sequence[BarInfo], addresses: dict[int, int]) -> list[Field]:
    registers = {
        index: Field(pci.BAR0 + 4 * index, 4, Rule.BAR, init=0, quiet=0xFFFFFFFF) for index in range(BAR_COUNT)
    }
    for bar in bars:
        offset, wide = pci.BAR0 + 4 * bar.index, bool(bar.flags & BarFlag.MEM64)
        flags = pci.BAR_IO if bar.flags & BarFlag.IO else 0
        flags |= pci.BAR_MEM64 if wide else 0
        flags |= pci.BAR_PREFETCHABLE if bar.flags & BarFlag.PREFETCHABLE else 0
        ones = (1 << (64 if wide else 32)) - 1
        mask = ~(max(bar.size, 4 if flags & pci.BAR_IO else 16) - 1) & ones
        size = 8 if wide else 4
        init = (addresses[bar.index] & mask) | flags
        registers[bar.index] = Field(offset, size, Rule.BAR, init=init, write=mask, quiet=~mask & ones)
        if wide:
            registers.pop(bar.index + 1, None)
    return list(registers.values())


def _check_disjoint(fields: Sequence[Field], size: int) -> None:
    """Fields lie inside configuration space and do not overlap; masks of a field do not overlap."""
    seen = 0
    for field in fields:
        octets = ((1 << field.size) - 1) << field.offset
        if seen & octets or field.offset + field.size > size:
            raise ValueError(f"field {field.rule.name.lower()} at {field.offset:#x} overlaps another or the end")
        if field.write & field.quiet or field.write & field.zero or field.to_device & ~field.write:
            raise ValueError(f"masks of field {field.rule.name.lower()} at {field.offset:#x} overlap")
        seen |= octets
