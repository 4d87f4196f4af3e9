# SPDX-License-Identifier: MIT
"""The configuration policy, walked octet by octet against a plain model of the specification."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pcisplit import pci
from pcisplit._core import ffi, lib
from pcisplit.back.core.native import CoreDevice
from pcisplit.back.devices.device import BarInfo
from pcisplit.back.devices.models import make_model
from pcisplit.back.devices.models.dump import parse_dump, parse_regions
from pcisplit.back.policy.compile import FIELDS, Field, Rule, _check_disjoint, compile_tables, virtual_addresses
from pcisplit.wire import BarFlag

BARS = (
    BarInfo(0, 4096, BarFlag.MEM64 | BarFlag.PREFETCHABLE, ()),
    BarInfo(2, 32, BarFlag.IO, ()),
    BarInfo(5, 1 << 20, BarFlag(0), ()),
)


def config_of(kind: str = "ram") -> bytes:
    device = make_model(kind, {}).acquire()
    octets = b"".join(device.config_read(at, 4).to_bytes(4, "little") for at in range(0, 256, 4))
    device.close()
    return octets


CONFIG = config_of()
TABLES = compile_tables(CONFIG, BARS)


def test_the_tables_are_sound() -> None:
    _check_disjoint(FIELDS, 256)
    for at in range(256):
        assert TABLES.write[at] & TABLES.quiet[at] == 0
        assert TABLES.to_device[at] & ~TABLES.write[at] == 0
        assert TABLES.rule[at] in list(Rule)


def test_overlapping_fields_are_refused() -> None:
    with pytest.raises(ValueError, match="overlaps"):
        _check_disjoint([*FIELDS, Field(0x05, 2, Rule.GAP)], 256)
    with pytest.raises(ValueError, match="masks"):
        _check_disjoint([Field(0x40, 1, Rule.GAP, write=1, quiet=1)], 256)


@given(st.integers(0, 255), st.sampled_from([1, 2, 4]), st.integers(0, 2**32 - 1))
@pytest.mark.clause("CFG-3", "CFG-4", "CFG-10", "CFG-2")
def test_a_write_changes_what_it_may_and_all_or_nothing(offset: int, width: int, value: int) -> None:
    """C's tables against the sentence of CFG-3, octet by octet, on the virtual octets."""
    offset -= offset % width
    value &= (1 << (8 * width)) - 1
    core = CoreDevice()
    core.set_config(TABLES, 0)
    before = [core.config_value(offset + i, 1) for i in range(width)]
    refused = None
    for i in range(width):
        at, octet = offset + i, value >> (8 * i) & 0xFF
        open_bits = TABLES.write[at] | TABLES.quiet[at]
        if TABLES.from_device[at]:
            bad = (octet & TABLES.zero[at] & ~open_bits) if open_bits | TABLES.zero[at] == 0xFF else 1
        else:
            bad = (octet ^ before[i]) & ~open_bits & 0xFF
        if bad:
            refused = (TABLES.rule[at], at)
            break
    octet_out = ffi.new("uint32_t *")
    rule = lib.pcs_test_check_write(core.raw, offset, width, value, octet_out)
    assert (rule, octet_out[0]) == (refused or (0, 0))
    if not refused:
        core.config_apply(offset, width, value)
        for i in range(width):
            mask = TABLES.write[offset + i]
            assert core.config_value(offset + i, 1) == (before[i] & ~mask) | (value >> (8 * i) & mask)
    core.free()


@pytest.mark.clause("CFG-8", "BOOT-6")
@pytest.mark.parametrize("bar", BARS, ids=lambda bar: f"BAR{bar.index}")
def test_bars_answer_the_sizing_protocol(bar: BarInfo) -> None:
    core = CoreDevice()
    core.set_config(TABLES, 0)
    at = pci.BAR0 + 4 * bar.index
    assert core.config_value(at, 4) & ~0xF == TABLES.addresses[bar.index] & 0xFFFFFFF0
    core.config_apply(at, 4, 0xFFFFFFFF)
    low = core.config_value(at, 4)
    flags = 0x1 if bar.flags & BarFlag.IO else 0xC if bar.flags else 0
    assert low == (~(bar.size - 1) & 0xFFFFFFFF) | flags
    if bar.flags & BarFlag.MEM64:
        core.config_apply(at + 4, 4, 0xFFFFFFFF)
        assert core.config_value(at + 4, 4) == 0xFFFFFFFF
    core.free()


@given(st.lists(st.tuples(st.sampled_from([16, 4096, 1 << 20, 1 << 28]), st.booleans()), min_size=1, max_size=6))
def test_virtual_bars_are_aligned_and_apart(kinds: list[tuple[int, bool]]) -> None:
    bars = [
        BarInfo(at, 32 if io else size, BarFlag.IO if io else BarFlag(0), ()) for at, (size, io) in enumerate(kinds)
    ]
    addresses = virtual_addresses(bars)
    for io in (True, False):
        spans = sorted((addresses[b.index], b.size) for b in bars if bool(b.flags & BarFlag.IO) is io)
        assert all(start % size == 0 for start, size in spans if not io)
        assert all(a + size <= b for (a, size), (b, _) in itertools.pairwise(spans))


@given(st.binary(min_size=256, max_size=256))
@pytest.mark.clause("CFG-12")
def test_any_configuration_space_compiles(octets: bytes) -> None:
    """The device is a liar: loops and wild pointers in its capability list change nothing."""
    assert len(pci.capabilities(octets)) <= 48
    tables = compile_tables(octets, ())
    assert len(tables.rule) == 256


def test_a_dump_becomes_a_device() -> None:
    rows = "\n".join(f"{at:02x}: " + CONFIG[at : at + 16].hex(" ") for at in range(0, 256, 16))
    text = f"00:04.0 RAM memory: Red Hat\n\tRegion 0: Memory at f0000000 (64-bit, prefetchable) [size=16K]\n{rows}\n"
    assert parse_dump(text, "x") == CONFIG
    assert parse_regions(text) == [(0, 16384, BarFlag.MEM64 | BarFlag.PREFETCHABLE)]
    with pytest.raises(ValueError, match="lspci -xxx"):
        parse_dump("nothing here", "x")
