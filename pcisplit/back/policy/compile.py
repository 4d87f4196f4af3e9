# SPDX-License-Identifier: MIT
"""Configuration-space policy, compiled: fields become planes of bits, octet by octet, that C follows (spec/config.md).

Unlisted means: read from the device, refused to write. What the device says after acquire changes nothing here [CFG-12].
"""

from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

from pcisplit import pci
from pcisplit.back.devices.device import BarInfo
from pcisplit.back.policy.header import FIELDS, Field, Rule, ones
from pcisplit.wire import BAR_COUNT, BarFlag

__all__ = ["PLANES", "Field", "Rule", "Tables", "compile_tables", "virtual_addresses"]

#: Octets of the capabilities whose length is fixed; others get their header.
CAPABILITY_LENGTHS = {pci.CAP_PM: 8, pci.CAP_MSI: 24, pci.CAP_MSIX: 12, pci.CAP_PCIE: 60}

#: Where virtual BAR addresses begin: memory, I/O. No host address is ever shown [BOOT-6].
VIRTUAL_MEMORY, VIRTUAL_IO = 0x8000_0000, 0x1000

#: The masks of a field, which are planes of the tables.
PLANES = ("hardware", "virtual", "through", "clear", "ignore", "zero", "force")


class Tables(NamedTuple):
    """One entry per octet: planes of bits (Field says what each means), trap, rule; and the virtual address of each BAR.

    All but `force`, which the owner alone needs, are tables of C: ``enum pcs_table`` in back/core/serve.h.
    """

    value: bytes
    hardware: bytes
    virtual: bytes
    through: bytes
    clear: bytes
    ignore: bytes
    zero: bytes
    force: bytes
    trap: bytes
    rule: tuple[int, ...]
    addresses: dict[int, int]

    def device_value(self, offset: int, width: int, value: int, held: int) -> int:
        """What to write to the device, which holds `held`, when a front writes `value` and policy has allowed it.

        Bits that do not reach the device stay as they are; a bit that is cleared by a 1 is written as 0 unless the front
        wrote that 1: written back as read, it would be cleared by accident.
        """
        reach = self.mask("through", offset, width) | self.mask("clear", offset, width)
        kept = held & ~reach & ~self.mask("zero", offset, width)
        return kept | (value & reach) | self.mask("force", offset, width)

    def mask(self, plane: str, offset: int, width: int) -> int:
        """`width` octets of a plane as an integer."""
        octets: bytes = getattr(self, plane)
        return int.from_bytes(octets[offset : offset + width], "little")


def compile_tables(config: bytes, bars: Sequence[BarInfo]) -> Tables:
    """Tables for a device whose configuration space reads `config` at acquire and which has `bars`."""
    addresses = virtual_addresses(bars)
    return build_tables(config, [*FIELDS, *_capability_fields(config), *_bar_fields(bars, addresses)], addresses)


def build_tables(config: bytes, fields: Sequence[Field], addresses: dict[int, int]) -> Tables:
    """Tables of `fields` over a configuration space that reads `config`. ValueError if they contradict each other."""
    size = len(config)
    _check(fields, size)
    value, trap = bytearray(config), bytearray(size)
    planes = {plane: bytearray(size) for plane in PLANES}
    planes["hardware"][:] = b"\xff" * size
    rule: list[int] = [*[Rule.GAP] * min(size, pci.CONFIG_SIZE), *[Rule.EXTENDED] * max(0, size - pci.CONFIG_SIZE)]
    for field in fields:
        span = slice(field.offset, field.offset + field.size)
        for plane, table in planes.items():
            table[span] = getattr(field, plane).to_bytes(field.size, "little")
        trap[span] = bytes([field.trap]) * field.size
        rule[span] = [field.rule] * field.size
        if field.init is not None:
            value[span] = field.init.to_bytes(field.size, "little")
    done = {plane: bytes(table) for plane, table in planes.items()}
    return Tables(value=bytes(value), trap=bytes(trap), rule=tuple(rule), addresses=addresses, **done)


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
        fields.append(Field(offset, end - offset, Rule.CAPABILITY, hardware=ones(end - offset)))
    return fields


def _bar_fields(bars: Sequence[BarInfo], addresses: dict[int, int]) -> list[Field]:
    registers = {
        index: Field(pci.BAR0 + 4 * index, 4, Rule.BAR, init=0, ignore=0xFFFFFFFF) for index in range(BAR_COUNT)
    }
    for bar in bars:
        offset, wide = pci.BAR0 + 4 * bar.index, bool(bar.flags & BarFlag.MEM64)
        flags = pci.BAR_IO if bar.flags & BarFlag.IO else 0
        flags |= pci.BAR_MEM64 if wide else 0
        flags |= pci.BAR_PREFETCHABLE if bar.flags & BarFlag.PREFETCHABLE else 0
        size = 8 if wide else 4
        mask = ~(max(bar.size, 4 if flags & pci.BAR_IO else 16) - 1) & ones(size)
        init = (addresses[bar.index] & mask) | flags
        registers[bar.index] = Field(offset, size, Rule.BAR, init=init, virtual=mask, ignore=~mask & ones(size))
        if wide:
            registers.pop(bar.index + 1, None)
    return list(registers.values())


def _check(fields: Sequence[Field], size: int) -> None:
    """Fields lie inside configuration space and do not overlap; no bit of a field is told two things."""
    seen = 0
    for field in fields:
        where = f"field {field.rule.name.lower()} at {field.offset:#x}"
        octets = ones(field.size) << 8 * field.offset
        if seen & octets or field.offset + field.size > size:
            raise ValueError(f"{where} overlaps another or the end")
        kinds = (field.virtual | field.through, field.clear, field.ignore, field.zero)
        apart = [*combinations(kinds, 2), (field.virtual, field.hardware), (field.force, field.through | field.clear)]
        if any(one & other for one, other in apart):
            raise ValueError(f"masks of {where} overlap")
        if any(getattr(field, plane) & ~ones(field.size) for plane in PLANES):
            raise ValueError(f"masks of {where} are wider than it is")
        seen |= octets
