# SPDX-License-Identifier: MIT
"""The configuration policy, bit by bit against a plain model of the specification."""

import itertools
from collections.abc import Callable
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pcisplit import pci
from pcisplit._core import ffi, lib
from pcisplit.back.core.native import CoreDevice
from pcisplit.back.devices.device import BarInfo
from pcisplit.back.devices.models import make_model
from pcisplit.back.devices.models.dump import parse_dump, parse_regions
from pcisplit.back.policy.compile import Tables, _check, compile_tables, virtual_addresses
from pcisplit.back.policy.header import FIELDS, Field, Rule
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
    _check(FIELDS, 256)
    for at in range(256):
        open_bits = TABLES.virtual[at] | TABLES.through[at]
        assert open_bits & (TABLES.clear[at] | TABLES.ignore[at] | TABLES.zero[at]) == 0
        assert TABLES.rule[at] in list(Rule)


@pytest.mark.clause("CFG-6")
def test_of_command_only_master_reaches_the_device() -> None:
    at = pci.COMMAND
    assert TABLES.mask("through", at, 2) == pci.COMMAND_MASTER
    assert TABLES.mask("clear", at, 2) == 0
    for front in (0, 0x0407, 0x0003):
        written = TABLES.device_value(at, 2, front, 0x0143)
        assert written == 0x0143 | pci.COMMAND_INTX_DISABLE | front & pci.COMMAND_MASTER


def test_fields_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match="overlaps"):
        _check([*FIELDS, Field(0x05, 2, Rule.GAP)], 256)
    with pytest.raises(ValueError, match="overlaps"):
        _check([Field(0xFF, 2, Rule.GAP)], 256)
    for masks in ({"virtual": 1, "ignore": 1}, {"through": 1, "clear": 1}, {"zero": 1, "clear": 1}):
        with pytest.raises(ValueError, match="masks"):
            _check([Field(0x40, 1, Rule.GAP, **masks)], 256)
    with pytest.raises(ValueError, match="masks"):
        _check([Field(0x40, 1, Rule.GAP, virtual=1, hardware=1)], 256)
    with pytest.raises(ValueError, match="wider"):
        _check([Field(0x40, 1, Rule.GAP, virtual=0x100)], 256)


# -- C, and the owner's writes, against a plain model of the planes -----------------------------------------------

SIZE = 8
KINDS = ("locked", "virtual", "through", "mirrored", "clear", "ignore", "zero")


class Bit(NamedTuple):
    """One bit of a configuration space: what is done with it, where it is read from, what both sides hold."""

    kind: str
    hardware: bool
    value: bool
    device: bool


def octets_of(bits: list[Bit], has: Callable[[Bit], bool]) -> bytes:
    return bytes(sum(has(bits[8 * at + n]) << n for n in range(8)) for at in range(len(bits) // 8))


def tables_of(bits: list[Bit], rules: list[int]) -> Tables:
    return Tables(
        value=octets_of(bits, lambda bit: bit.value),
        hardware=octets_of(bits, lambda bit: bit.hardware),
        virtual=octets_of(bits, lambda bit: bit.kind in ("virtual", "mirrored")),
        through=octets_of(bits, lambda bit: bit.kind in ("through", "mirrored")),
        clear=octets_of(bits, lambda bit: bit.kind == "clear"),
        ignore=octets_of(bits, lambda bit: bit.kind == "ignore"),
        zero=octets_of(bits, lambda bit: bit.kind == "zero"),
        force=bytes(SIZE),
        trap=bytes(SIZE),
        rule=tuple(rules),
        addresses={},
    )


def bit_of(seed: int) -> Bit:
    return Bit(KINDS[(seed & 0x1F) % len(KINDS)], bool(seed & 0x20), bool(seed & 0x40), bool(seed & 0x80))


spaces = st.binary(min_size=8 * SIZE, max_size=8 * SIZE).map(lambda seeds: [bit_of(seed) for seed in seeds])
accesses = st.tuples(st.integers(0, SIZE - 1), st.sampled_from([1, 2, 4]), st.integers(0, 2**32 - 1)).map(
    lambda access: (access[0] - access[0] % access[1], access[1], access[2] & (1 << 8 * access[1]) - 1)
)


def allowed(one: Bit, written: bool) -> bool:
    """The sentence of CFG-3 for one bit."""
    if one.kind == "zero":
        return not written
    return one.kind != "locked" or (not one.hardware and written == one.value)


@given(spaces, st.lists(st.integers(1, 2**16 - 1), min_size=SIZE, max_size=SIZE), accesses, st.data())
@settings(max_examples=300)
@pytest.mark.clause("CFG-2", "CFG-3", "CFG-4", "CFG-5", "CFG-10", "CFG-14")
def test_planes_do_what_they_say(
    bits: list[Bit], rules: list[int], access: tuple[int, int, int], data: st.DataObject
) -> None:
    offset, width, value = access
    tables, core = tables_of(bits, rules), CoreDevice()
    core.set_config(tables, 0)
    span = bits[8 * offset : 8 * (offset + width)]
    written = [bool(value >> n & 1) for n in range(8 * width)]

    cell = ffi.new("uint32_t *")
    in_c = lib.pcs_test_read(core.raw, offset, width, cell)
    octet_wise = all(not one.hardware for one in span)
    assert bool(in_c) == octet_wise
    if in_c:
        assert cell[0] == sum(one.value << n for n, one in enumerate(span))

    offences = [offset + n // 8 for n, one in enumerate(span) if not allowed(one, written[n])]
    rule = lib.pcs_test_check_write(core.raw, offset, width, value, cell)
    assert (rule, cell[0]) == ((rules[offences[0]], offences[0]) if offences else (0, 0))
    assert sum(lib.pcs_device_hits(core.raw, n) for n in {*rules, 0}) == bool(offences)
    if offences:
        assert lib.pcs_device_hits(core.raw, rules[offences[0]]) == 1
    else:
        reaches = [
            one.kind == "through"
            or (one.kind == "mirrored" and written[n] != one.value)
            or (one.kind == "clear" and written[n])
            for n, one in enumerate(span)
        ]
        assert bool(lib.pcs_test_needs_owner(core.raw, offset, width, value)) == any(reaches)
        core.config_apply(offset, width, value)
        held = sum(one.device << n for n, one in enumerate(span))
        to_device = tables.device_value(offset, width, value, held)
        for n, one in enumerate(span):
            kept = core.config_value(offset, width) >> n & 1
            assert kept == (written[n] if one.kind in ("virtual", "mirrored") else one.value)
            goes = to_device >> n & 1
            if one.kind in ("through", "mirrored", "clear"):
                assert goes == written[n]
            else:
                assert goes == (one.device and one.kind != "zero")
    core.free()


@pytest.mark.clause("CFG-5")
def test_rules_are_counted_each_for_itself() -> None:
    """No two ids share a counter, up to the highest there can be."""
    rules = [1, 64, 65, 128, 129, 0x1000, 0x1040, 0xFFFF]
    core = CoreDevice()
    core.set_config(tables_of([Bit("locked", False, False, False)] * 8 * SIZE, rules), 0)
    cell = ffi.new("uint32_t *")
    for at in range(8):
        for _ in range(at + 1):
            assert lib.pcs_test_check_write(core.raw, at, 1, 1, cell) == rules[at]
    assert [lib.pcs_device_hits(core.raw, rule) for rule in rules[:8]] == list(range(1, 9))
    assert lib.pcs_device_hits(core.raw, 1 << 16) == 0
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
