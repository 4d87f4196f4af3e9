# SPDX-License-Identifier: MIT
"""The boot-info block: every resource of a session, for peers with and without sockets (spec/boot-info.md).

The back builds it, the front parses it; the C frontend has its own parser of the same octets (``pcifront_attach``), so
that a unikernel needs nothing but the block. Sans-IO.
"""

import dataclasses
from typing import Any

from pcisplit import wire
from pcisplit.proto.errors import RemoteProtocolError
from pcisplit.proto.meeting import records_untrusted
from pcisplit.proto.octets import name_untrusted, pad_name, parse_untrusted
from pcisplit.wire import (
    BarFlag,
    DeviceFlag,
    Direction,
    DoorbellType,
    Error,
    Feature,
    GrantKind,
    RecordKind,
    RegionIndex,
    RingIndex,
    VectorMode,
    VectorType,
)


@dataclasses.dataclass(frozen=True, slots=True)
class Region:
    """A memfd: `fd` is its place among the descriptors of the reply, `size` in octets."""

    index: RegionIndex
    fd: int
    size: int
    writable: bool = False
    address: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Ring:
    index: RingIndex
    region: RegionIndex
    offset: int
    slots: int


@dataclasses.dataclass(frozen=True, slots=True)
class Bulk:
    """A bulk area; `index` says which way its octets go."""

    index: Direction
    region: RegionIndex
    offset: int
    size: int


@dataclasses.dataclass(frozen=True, slots=True)
class Doorbell:
    """`index` says which way it rings."""

    index: Direction
    fd: int
    type: DoorbellType
    address: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Bar:
    """One BAR by its number: `size` in octets, `address` virtual [BOOT-6]."""

    index: int
    size: int
    bar_flags: BarFlag
    address: int


@dataclasses.dataclass(frozen=True, slots=True)
class Vectors:
    """A run of vectors: relayed with its words in b2f, or direct on descriptors from `fd` on."""

    index: int
    type: VectorType
    mode: VectorMode
    count: int
    first: int = 0
    fd: int = wire.NO_FD
    counters: int = 0
    totals: int = 0
    pending: int = 0
    masks: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class DmaWindow:
    index: int
    offset: int
    size: int
    iova: int
    region: RegionIndex = RegionIndex.DMA


@dataclasses.dataclass(frozen=True, slots=True)
class Grant:
    """A range of a BAR that may be mapped (planned)."""

    index: int
    grant: int
    bar: int
    grant_kind: GrantKind
    fd: int
    state_offset: int
    offset: int
    size: int
    fd_offset: int = 0
    grant_flags: int = 0
    width: int = 0
    address: int = 0
    value: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Shadow:
    """A copy of a device's configuration space (planned)."""

    index: int
    region: RegionIndex
    offset: int
    size: int


@dataclasses.dataclass(frozen=True, slots=True)
class Device:
    """One device of the session, with what belongs to it."""

    index: int
    name: str
    vendor: int
    device_id: int
    class_code: int
    state_offset: int
    generation: int
    config_size: int
    device_flags: DeviceFlag = DeviceFlag(0)
    bars: tuple[Bar, ...] = ()
    vectors: tuple[Vectors, ...] = ()
    grants: tuple[Grant, ...] = ()
    shadows: tuple[Shadow, ...] = ()


#: What belongs to a device: the field of Device, and the kind of its records.
_OF_DEVICE = {
    "bars": (RecordKind.BAR, Bar),
    "vectors": (RecordKind.VECTORS, Vectors),
    "grants": (RecordKind.GRANT, Grant),
    "shadows": (RecordKind.SHADOW, Shadow),
}
_OF_SESSION = {
    "regions": (RecordKind.REGION, Region),
    "rings": (RecordKind.RING, Ring),
    "bulks": (RecordKind.BULK, Bulk),
    "doorbells": (RecordKind.DOORBELL, Doorbell),
    "windows": (RecordKind.DMA_WINDOW, DmaWindow),
}
#: Fields that are more than numbers.
_MEANS: dict[str, type] = {
    "bar_flags": BarFlag,
    "device_flags": DeviceFlag,
    "grant_kind": GrantKind,
    "mode": VectorMode,
    "region": RegionIndex,
    "writable": bool,
}
#: ``index`` and ``type`` mean another thing in each record.
_INDEX = {Region: RegionIndex, Ring: RingIndex, Bulk: Direction, Doorbell: Direction}
_TYPE = {Doorbell: DoorbellType, Vectors: VectorType}


@dataclasses.dataclass(frozen=True, slots=True)
class BootInfo:
    """The whole block."""

    features: Feature
    session: int
    regions: tuple[Region, ...]
    rings: tuple[Ring, ...]
    bulks: tuple[Bulk, ...]
    doorbells: tuple[Doorbell, ...]
    devices: tuple[Device, ...]
    windows: tuple[DmaWindow, ...] = ()
    minor: int = wire.MINOR
    epoch: int = 1

    def to_bytes(self) -> bytes:
        records = [build_record(kind, part) for name, (kind, _) in _OF_SESSION.items() for part in getattr(self, name)]
        for device in self.devices:
            records.append(build_record(RecordKind.DEVICE, device, device.index))
            records += [
                build_record(kind, part, device.index)
                for name, (kind, _) in _OF_DEVICE.items()
                for part in getattr(device, name)
            ]
        tail = b"".join(records)
        head = {
            "magic": wire.BOOT_MAGIC,
            "major": wire.MAJOR,
            "minor": self.minor,
            "length": wire.BOOT_INFO.size + len(tail),
            "records": len(records),
            "features": self.features,
            "session": self.session,
            "epoch": self.epoch,
        }
        return wire.BOOT_INFO.build(head) + tail

    def region(self, index: RegionIndex) -> Region:
        """The region with this index. Raises RemoteProtocolError if the block has none."""
        found = next((region for region in self.regions if region.index is index), None)
        if found is None:
            raise RemoteProtocolError(Error.OP_FAILED, f"the boot-info block has no region {index.name.lower()}")
        return found


def build_record(kind: RecordKind, part: Any, device: int = 0) -> bytes:
    """The octets of one record; also of one that a late message carries."""
    record = wire.BOOT_RECORDS[kind]
    known = {field.name for field in record.fields}
    fields = {field.name: getattr(part, field.name) for field in dataclasses.fields(part) if field.name in known}
    if isinstance(part, Device):
        fields["name"] = pad_name(part.name)
    return record.build({**fields, "kind": kind, "length": record.size, "device": device})


def parse_boot_info_untrusted(data: bytes) -> BootInfo:
    """The block as the front sees it [BOOT-3, BOOT-4]. Raises RemoteProtocolError (op_failed) when it is not sound."""
    size = wire.BOOT_INFO.size
    head = parse_untrusted(wire.BOOT_INFO, data[:size], "boot-info", Error.OP_FAILED)
    if head["magic"] != wire.BOOT_MAGIC or head["major"] != wire.MAJOR:
        raise RemoteProtocolError(Error.OP_FAILED, "the boot-info block has a wrong magic or major version")
    if head["length"] != len(data):
        raise RemoteProtocolError(Error.OP_FAILED, "the boot-info block is not as long as it says")
    parts: dict[RecordKind, list[dict[str, Any]]] = {kind: [] for kind in RecordKind}
    for kind, octets in records_untrusted(data[size:], head["records"], "boot-info block", Error.OP_FAILED):
        if kind in RecordKind.__members__.values():
            parts[RecordKind(kind)].append(parse_record_untrusted(RecordKind(kind), octets))
    try:
        info = _assemble(head, parts)
    except ValueError as problem:  # an enumeration met a number that it does not have
        raise RemoteProtocolError(Error.OP_FAILED, f"the boot-info block does not parse: {problem}") from None
    _check_places(info)
    return info


def parse_record_untrusted(kind: RecordKind, octets: bytes) -> dict[str, Any]:
    """The fields of one record; one that is longer than we know it has fields of later versions at its end."""
    record = wire.BOOT_RECORDS[kind]
    what = f"boot-info record of kind {kind.name.lower()}"
    if len(octets) < record.size:
        raise RemoteProtocolError(Error.OP_FAILED, f"a {what} is {record.size} octets long, not {len(octets)}")
    return parse_untrusted(record, octets[: record.size], what, Error.OP_FAILED)


def _make(part: Any, fields: dict[str, Any], **more: Any) -> Any:
    """An object of the class `part` from the fields of its record."""
    values: dict[str, Any] = {}
    for field in dataclasses.fields(part):
        if field.name in more or field.name not in fields:
            continue
        means = _INDEX.get(part) if field.name == "index" else _MEANS.get(field.name)
        means = _TYPE.get(part) if field.name == "type" else means
        values[field.name] = means(fields[field.name]) if means else fields[field.name]
    return part(**values, **more)


def _assemble(head: dict[str, Any], parts: dict[RecordKind, list[dict[str, Any]]]) -> BootInfo:
    def device(fields: dict[str, Any]) -> Device:
        own = {
            name: tuple(_make(part, f) for f in parts[kind] if f["device"] == fields["index"])
            for name, (kind, part) in _OF_DEVICE.items()
        }
        name = name_untrusted(fields["name"], Error.OP_FAILED, "the device name")
        made: Device = _make(Device, fields, name=name, **own)
        return made

    of_session = {name: tuple(_make(part, f) for f in parts[kind]) for name, (kind, part) in _OF_SESSION.items()}
    return BootInfo(
        features=Feature(head["features"]),
        session=head["session"],
        minor=head["minor"],
        epoch=head["epoch"],
        devices=tuple(device(fields) for fields in parts[RecordKind.DEVICE]),
        **of_session,
    )


def _unsound(text: str) -> RemoteProtocolError:
    return RemoteProtocolError(Error.OP_FAILED, text)


def _check_places(info: BootInfo) -> None:
    """Everything a record places in a region lies inside it, aligned [BOOT-2, BOOT-4], and each region has its writer."""
    for part in info.regions:
        if part.writable is (part.index is RegionIndex.B2F):  # f2b mapped for reading would kill who writes it [THR-31]
            can = "can" if part.writable else "cannot"
            raise _unsound(f"by the boot-info block the front {can} write region {part.index.name.lower()}")
    for what, region, offset, length, align in _places(info):
        if offset % align or offset + length > info.region(region).size:
            where = f"at {offset:#x}, {length} octets, does not lie aligned in region {region.name.lower()}"
            raise _unsound(f"a {what} {where}")
    for ring in info.rings:
        if ring.slots & (ring.slots - 1) or not wire.RING_SLOTS_MIN <= ring.slots <= wire.RING_SLOTS_MAX:
            raise _unsound(f"{ring.slots} slots of a ring are not a power of two from 16 to 65536")
    if {ring.index for ring in info.rings} != set(RingIndex) or {d.index for d in info.doorbells} != set(Direction):
        raise _unsound("the boot-info block lacks a ring or a doorbell")
    if info.features & Feature.BLOCK and {bulk.index for bulk in info.bulks} != set(Direction):
        raise _unsound("the boot-info block lacks a bulk area")
    if [device.index for device in info.devices] != list(range(len(info.devices))):
        raise _unsound("the devices of the boot-info block are not numbered from 0")


def _places(info: BootInfo) -> list[tuple[str, RegionIndex, int, int, int]]:
    """(what, region, offset, length, alignment) of everything that lies in a region."""
    places = [("ring", ring.region, ring.offset, ring.slots * wire.SLOT_SIZE, 64) for ring in info.rings]
    places += [("bulk area", bulk.region, bulk.offset, bulk.size, 64) for bulk in info.bulks]
    places += [("DMA window", window.region, window.offset, window.size, 1) for window in info.windows]
    b2f = RegionIndex.B2F
    for device in info.devices:
        places.append(("device state", b2f, device.state_offset, wire.DEVICE_STATE.size, 64))
        if any(bar.index >= wire.BAR_COUNT for bar in device.bars):
            raise _unsound(f"device {device.name} has a BAR beyond {wire.BAR_COUNT - 1}")
        for run in device.vectors:
            if not 0 < run.count <= wire.MAX_VECTORS or run.first + run.count > wire.MAX_VECTORS:
                raise _unsound(f"device {device.name} has vectors {run.first} to {run.first + run.count - 1}")
            if run.mode is VectorMode.RELAYED:
                words = 8 * -(-run.count // 64)
                places.append(("counter", b2f, run.counters, 8 * run.count, 8))
                places += [("vector word", b2f, at, words, 8) for at in (run.totals, run.pending, run.masks)]
    return places
