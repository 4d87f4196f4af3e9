# SPDX-License-Identifier: MIT
"""The boot-info block taken apart and built by hand: its header and records by their kind and length (spec/boot-info.md).

Layouts are written down here a second time; see :mod:`pcisplit.conformance.octets`. A block that breaks a clause is a Violation.
"""

import dataclasses
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

from pcisplit import wire
from pcisplit.conformance.case import expect, fail
from pcisplit.conformance.octets import DEVICE_SIZE, SLOT
from pcisplit.wire import Direction, RecordKind, RegionIndex, RingIndex, VectorMode

_BLOCK = struct.Struct("<IHHIIQQI28s")
BLOCK_SIZE = _BLOCK.size


@dataclasses.dataclass(frozen=True, slots=True)
class Region:
    """A memfd: `fd` is its place among the descriptors of the reply, `size` in octets."""

    index: int
    fd: int
    writable: int
    size: int
    address: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Ring:
    index: int
    region: int
    slots: int
    offset: int


@dataclasses.dataclass(frozen=True, slots=True)
class Bulk:
    """A bulk area; `index` says which way its octets go."""

    index: int
    region: int
    offset: int
    size: int


@dataclasses.dataclass(frozen=True, slots=True)
class Doorbell:
    """`index` says which way it rings."""

    index: int
    fd: int
    type: int
    address: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Bar:
    """One BAR by its number: `size` in octets, `address` virtual [BOOT-6]."""

    index: int
    flags: int
    size: int
    address: int


@dataclasses.dataclass(frozen=True, slots=True)
class Window:
    """A window of DMA memory."""

    index: int
    region: int
    offset: int
    size: int
    iova: int


@dataclasses.dataclass(frozen=True, slots=True)
class Run:
    """A run of vectors; `counters` and so on are places in b2f."""

    index: int
    type: int
    mode: int
    fd: int
    first: int
    count: int
    counters: int
    totals: int
    pending: int
    masks: int


@dataclasses.dataclass(frozen=True, slots=True)
class Device:
    """One device of the session, with what belongs to it."""

    index: int
    state_offset: int
    generation: int
    vendor: int
    device_id: int
    class_code: int
    flags: int
    config_size: int
    name: str
    bars: tuple[Bar, ...] = ()
    runs: tuple[Run, ...] = ()

    @property
    def vectors(self) -> int:
        """Vectors of all runs."""
        return sum(run.count for run in self.runs)


class Shape(NamedTuple):
    """The format of a record behind kind, length, index and device; `s` and `x` octets must be zero, but a name."""

    codec: struct.Struct
    make: Any


_HEAD = struct.Struct("<HHHH")
SHAPES = {
    RecordKind.REGION: Shape(struct.Struct("<HH4sQQ"), Region),
    RecordKind.RING: Shape(struct.Struct("<H2sIQ"), Ring),
    RecordKind.BULK: Shape(struct.Struct("<H6sQQ"), Bulk),
    RecordKind.DOORBELL: Shape(struct.Struct("<HH4sQ"), Doorbell),
    RecordKind.DEVICE: Shape(struct.Struct("<IIHHIH2sI68s4s"), Device),
    RecordKind.BAR: Shape(struct.Struct("<H6sQQ"), Bar),
    RecordKind.DMA_WINDOW: Shape(struct.Struct("<H6sQQQ"), Window),
    RecordKind.VECTORS: Shape(struct.Struct("<HHH2sIIQQQQ"), Run),
}
_PARTS = {
    RecordKind.REGION: "regions",
    RecordKind.RING: "rings",
    RecordKind.BULK: "bulks",
    RecordKind.DOORBELL: "doorbells",
    RecordKind.DMA_WINDOW: "windows",
}


@dataclasses.dataclass(frozen=True)
class Block:
    """The whole block."""

    features: int
    session: int
    epoch: int
    minor: int
    regions: tuple[Region, ...]
    rings: tuple[Ring, ...]
    bulks: tuple[Bulk, ...]
    doorbells: tuple[Doorbell, ...]
    windows: tuple[Window, ...]
    devices: tuple[Device, ...]

    @classmethod
    def parse(cls, octets: bytes) -> "Block":
        """The block of a reply, checked as far as a block alone shows it [BOOT-1, BOOT-2, BOOT-7, BOOT-8]."""
        expect(len(octets) >= _BLOCK.size, "a boot-info block of at least 64 octets", f"{len(octets)}")
        magic, major, minor, length, count, features, session, epoch, zero = _BLOCK.unpack(octets[: _BLOCK.size])
        expect(magic == wire.BOOT_MAGIC and major == wire.MAJOR, "magic and major of boot-info", octets[:8].hex(" "))
        expect(length == len(octets), f"length {len(octets)} in the boot-info block", str(length))
        expect(not any(zero), "zeros in the header of the boot-info block", zero.hex(" "))
        parts: dict[str, list[Any]] = {name: [] for name in (*_PARTS.values(), "devices")}
        for kind, device, part in records(octets, count):
            if kind in _PARTS:
                parts[_PARTS[RecordKind(kind)]].append(part)
            elif kind == RecordKind.DEVICE:
                parts["devices"].append(part)
            elif part is not None:
                expect(device < len(parts["devices"]), "a record of a device that came before it", f"device {device}")
                of = parts["devices"][device]
                name = "bars" if kind == RecordKind.BAR else "runs"
                parts["devices"][device] = dataclasses.replace(of, **{name: (*getattr(of, name), part)})
        block = cls(features, session, epoch, minor, **{name: tuple(found) for name, found in parts.items()})
        block.check()
        return block

    def check(self) -> None:
        """What must hold of every block."""
        expect({r.index for r in self.rings} == set(RingIndex), "three rings", str(self.rings))
        expect({d.index for d in self.doorbells} == set(Direction), "two doorbells", str(self.doorbells))
        expect([d.index for d in self.devices] == list(range(len(self.devices))), "devices from 0 on", "others")
        for what, region, offset, length, align in self.places():
            inside = offset % align == 0 and offset + length <= self.region(region).size
            expect(inside, f"a {what} aligned to {align} in its region", f"{length} octets at {offset:#x}")
        for device in self.devices:
            expect([run.index for run in device.runs] == list(range(len(device.runs))), "runs from 0 on", "others")
            expect(all(bar.index < wire.BAR_COUNT for bar in device.bars), "BARs 0 to 5", str(device.bars))

    def places(self) -> Iterator[tuple[str, int, int, int, int]]:
        """(what, region, offset, length, alignment) of everything that lies in a region."""
        b2f = RegionIndex.B2F
        yield from (("ring", ring.region, ring.offset, ring.slots * SLOT, SLOT) for ring in self.rings)
        yield from (("bulk area", bulk.region, bulk.offset, bulk.size, 64) for bulk in self.bulks)
        yield from (("window", window.region, window.offset, window.size, 1) for window in self.windows)
        for device in self.devices:
            yield "device state", b2f, device.state_offset, DEVICE_SIZE, 64
            for run in (run for run in device.runs if run.mode == VectorMode.RELAYED):
                words = 8 * -(-run.count // 64)
                yield "counter", b2f, run.counters, 8 * run.count, 8
                yield from (("vector word", b2f, at, words, 8) for at in (run.totals, run.pending, run.masks))

    def region(self, index: int) -> Region:
        """The region with this index."""
        return next((r for r in self.regions if r.index == index), None) or fail(f"region {index}", "none")

    def build(self, extra: bytes = b"", extra_count: int = 0) -> bytes:
        """The octets of the block, sound or not; `extra` are `extra_count` further records."""
        tail, count = extra, extra_count
        for kind, name in _PARTS.items():
            for part in getattr(self, name):
                tail, count = tail + build_record(kind, part), count + 1
        for device in self.devices:
            of: list[tuple[RecordKind, Any]] = [(RecordKind.DEVICE, device)]
            of += [(RecordKind.BAR, bar) for bar in device.bars] + [(RecordKind.VECTORS, run) for run in device.runs]
            tail += b"".join(build_record(kind, part, device.index) for kind, part in of)
            count += len(of)
        head = (wire.BOOT_MAGIC, wire.MAJOR, self.minor, _BLOCK.size + len(tail), count)
        return _BLOCK.pack(*head, self.features, self.session, self.epoch, b"") + tail


def records(octets: bytes, count: int) -> Iterator[tuple[int, int, Any]]:
    """(kind, device, part) of each record of a block; part is None for a kind that this kit does not look into."""
    at = _BLOCK.size
    for number in range(count):
        expect(at + _HEAD.size <= len(octets), f"{count} records in the boot-info block", f"{number}")
        kind, length, index, device = _HEAD.unpack_from(octets, at)
        fits = length >= 8 and length % 8 == 0 and at + length <= len(octets)
        expect(fits, "a record length that is a multiple of 8 and fits", f"{length} octets at {at}")
        yield kind, device, _part(kind, index, octets[at + _HEAD.size : at + length])
        at += length
    expect(at == len(octets), f"{count} records that fill the boot-info block", f"{len(octets) - at} octets more")


def _part(kind: int, index: int, octets: bytes) -> Any:
    shape = SHAPES.get(kind)  # type: ignore[call-overload]
    if shape is None:
        return None
    expect(
        len(octets) >= shape.codec.size, f"at least {shape.codec.size + 8} octets in a record of kind {kind}", "less"
    )
    values = list(shape.codec.unpack(octets[: shape.codec.size]))
    name = None
    if kind == RecordKind.DEVICE:
        name = values.pop(-2).rstrip(b"\0").decode("ascii", "replace")
    reserved = [value for value in values if isinstance(value, bytes)]
    expect(not any(map(any, reserved)), f"zeros in the reserved octets of a record of kind {kind}", octets.hex(" "))
    numbers = [value for value in values if not isinstance(value, bytes)]
    return shape.make(index, *numbers, *([name] if name is not None else []))


def build_record(kind: RecordKind, part: Any, device: int = 0) -> bytes:
    """The octets of one record."""
    shape = SHAPES[kind]
    fields = [getattr(part, field.name) for field in dataclasses.fields(part)]
    numbers = iter(value for value in fields[1:] if isinstance(value, int))
    values: list[Any] = []
    for code in _codes(shape.codec.format):
        values.append(next(numbers) if code[-1] != "s" else b"")
    if kind == RecordKind.DEVICE:
        values[-2] = part.name.encode()
    return _HEAD.pack(kind, _HEAD.size + shape.codec.size, part.index, device) + shape.codec.pack(*values)


def _codes(code: str) -> list[str]:
    found, digits = [], ""
    for letter in code.removeprefix("<"):
        if letter.isdigit():
            digits += letter
            continue
        found += [digits + letter] if letter == "s" else [letter] * int(digits or 1)
        digits = ""
    return found
