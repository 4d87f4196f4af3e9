# SPDX-License-Identifier: MIT
"""How a function's BARs are laid out: their kinds, what of them may be mapped, where the MSI-X table lies. Pure."""

from collections.abc import Iterable
from itertools import pairwise

from pcisplit.back.devices.device import AreaKind
from pcisplit.pci import BAR0, BAR_IO, BAR_MEM64, BAR_PREFETCHABLE, CAP_MSIX, CONFIG_SIZE, find_capability
from pcisplit.wire import BarFlag


def bar_flags(config: bytes, index: int) -> BarFlag:
    """The kind of a BAR, from the low bits of its register. Source: PCI Local Bus 3.0, 6.2.5.1."""
    register = config[BAR0 + 4 * index]
    if register & BAR_IO:
        return BarFlag.IO
    wide = BarFlag.MEM64 if register & BAR_MEM64 else BarFlag(0)
    return wide | (BarFlag.PREFETCHABLE if register & BAR_PREFETCHABLE else BarFlag(0))


def msix_ranges(config: bytes) -> dict[int, list[tuple[int, int]]]:
    """For each BAR the (start, end) octets of the MSI-X table and of the pending bits, as the device claims them.

    Source: PCI Local Bus 3.0, 6.8.2. ValueError if the capability does not fit where it stands.
    """
    found: dict[int, list[tuple[int, int]]] = {}
    capability = find_capability(config, CAP_MSIX)
    if capability is None:
        return found
    if capability + 12 > CONFIG_SIZE:
        raise ValueError(f"its MSI-X capability at {capability:#x} ends outside of the header")
    vectors = (int.from_bytes(config[capability + 2 : capability + 4], "little") & 0x7FF) + 1
    for register, size in ((capability + 4, 16 * vectors), (capability + 8, 8 * -(-vectors // 64))):
        where = int.from_bytes(config[register : register + 4], "little")
        found.setdefault(where & 7, []).append((where & ~7, (where & ~7) + size))
    return found


def plan_areas(
    size: int, mappable: Iterable[tuple[int, int]], denied: Iterable[tuple[int, int]], page: int
) -> list[tuple[int, int, AreaKind]]:
    """Divide a BAR of `size` octets into (start, end, kind), sorted, without gaps.

    MAPPED are the whole pages of the `mappable` (start, end) ranges that hold nothing `denied`; DENIED is exactly what
    is `denied`; all else is OWNER. Ranges may reach beyond the BAR.
    """
    pages = [(-(-start // page) * page, min(end, size) // page * page) for start, end in mappable]
    exact = list(denied)
    spoilt = [(start // page * page, -(-end // page) * page) for start, end in exact]
    cuts = {edge for part in (*pages, *exact, *spoilt) for edge in part if 0 < edge < size}
    plan: list[tuple[int, int, AreaKind]] = []
    for start, end in pairwise(sorted({0, size} | cuts)):
        if _within(start, exact):
            kind = AreaKind.DENIED
        elif _within(start, pages) and not _within(start, spoilt):
            kind = AreaKind.MAPPED
        else:
            kind = AreaKind.OWNER
        if plan and plan[-1][2] is kind:
            start = plan.pop()[0]
        plan.append((start, end, kind))
    return plan


def _within(octet: int, ranges: list[tuple[int, int]]) -> bool:
    return any(start <= octet < end for start, end in ranges)
