# SPDX-License-Identifier: MIT
"""The boot-info block: every resource of a session, for peers with and without sockets (spec/boot-info.md).

The back builds it, the front parses it; the C frontend has its own parser of the same octets (``pcifront_attach``), so
that a unikernel needs nothing but the block. Sans-IO.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from pcisplit import wire
from pcisplit.errors import RemoteProtocolError
from pcisplit.messages import build, name_untrusted, pad_name, parse_untrusted
from pcisplit.wire import (
    BarFlag,
    DeviceFlag,
    Direction,
    DoorbellType,
    Error,
    Feature,
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
    index: Direction
    fd: int
    type: DoorbellType
    address: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Bar:
    """One BAR: `size` in octets, `address` virtual [BOOT-6]."""

    index: int
    size: int
    flags: BarFlag
    address: int


@dataclasses.dataclass(frozen=True, slots=True)
class Vector:
    """One vector: relayed with its counter at `counter_offset` in b2f, or direct on descriptor `fd`."""

    index: int
    type: VectorType
    mode: VectorMode
    counter_offset: int
    fd: int = wire.NO_FD


@dataclasses.dataclass(frozen=True, slots=True)
class DmaWindow:
    index: int
    offset: int
    size: int
    iova: int
    region: RegionIndex = RegionIndex.DMA


@dataclasses.dataclass(frozen=True, slots=True)
class Device:
    """One device of the session, with its BARs and vectors."""

    index: int
    name: str
    vendor: int
    device_id: int
    class_code: int
    state_offset: int
    generation: int
    config_size: int
    flags: DeviceFlag = DeviceFlag(0)
    bars: tuple[Bar, ...] = ()
    vectors: tuple[Vector, ...] = ()


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

    def to_bytes(self) -> bytes:
        records = [_record(RecordKind.REGION, r) for r in self.regions]
        records += [_record(RecordKind.RING, r) for r in self.rings]
        records += [_record(RecordKind.BULK, b) for b in self.bulks]
        records += [_record(RecordKind.DOORBELL, d) for d in self.doorbells]
        for device in self.devices:
            records.append(_device_record(device))
            records += [_record(RecordKind.BAR, bar, device=device.index) for bar in device.bars]
            records += [_record(RecordKind.VECTOR, vector, device=device.index) for vector in device.vectors]
        records += [_record(RecordKind.DMA_WINDOW, w) for w in self.windows]
        head = {
            "magic": wire.BOOT_MAGIC,
            "major": wire.MAJOR,
            "minor": self.minor,
            "length": wire.BOOT_INFO.sizeof() + len(records) * wire.BOOT_RECORD_SIZE,
            "records": len(records),
            "features": self.features,
            "session": self.session,
        }
        return build(wire.BOOT_INFO, head) + b"".join(records)

    def region(self, index: RegionIndex) -> Region:
        """The region with this index. Raises RemoteProtocolError if the block has none."""
        found = next((region for region in self.regions if region.index is index), None)
        if found is None:
            raise RemoteProtocolError(Error.OP_FAILED, f"the boot-info block has no region {index.name.lower()}")
        return found


def _record(kind: RecordKind, part: Any, device: int = 0, **more: Any) -> bytes:
    fields = {**dataclasses.asdict(part), **more}
    return build(
        wire.BOOT_RECORDS[kind],
        {"kind": kind, "length": wire.BOOT_RECORD_SIZE, "device": device}
        | {name: int(value) if not isinstance(value, bytes) else value for name, value in fields.items()},
    )


def _device_record(device: Device) -> bytes:
    plain = {f.name: getattr(device, f.name) for f in dataclasses.fields(device) if f.name not in ("bars", "vectors")}
    fields = {**plain, "name": pad_name(device.name), "vectors": len(device.vectors)}
    return build(
        wire.BOOT_DEVICE,
        {"kind": RecordKind.DEVICE, "length": wire.BOOT_RECORD_SIZE, "device": device.index, **fields},
    )


def parse_boot_info_untrusted(data: bytes) -> BootInfo:
    """The block as the front sees it [BOOT-3, BOOT-4]. Raises RemoteProtocolError (op_failed) when it is not sound."""
    size, step = wire.BOOT_INFO.sizeof(), wire.BOOT_RECORD_SIZE
    head = parse_untrusted(wire.BOOT_INFO, data[:size], "boot-info", Error.OP_FAILED)
    if head["magic"] != wire.BOOT_MAGIC or head["major"] != wire.MAJOR:
        raise RemoteProtocolError(Error.OP_FAILED, "the boot-info block has a wrong magic or major version")
    if head["length"] != len(data) or len(data) != size + head["records"] * step:
        raise RemoteProtocolError(Error.OP_FAILED, "the boot-info block is not as long as it says")
    parts: dict[RecordKind, list[Mapping[str, Any]]] = {kind: [] for kind in RecordKind}
    for at in range(size, len(data), step):
        record = data[at : at + step]
        if int.from_bytes(record[2:4], "little") != step:
            raise RemoteProtocolError(Error.OP_FAILED, f"the boot-info record at {at} is not {step} octets long")
        kind = int.from_bytes(record[0:2], "little")
        if kind in RecordKind.__members__.values():
            known = RecordKind(kind)
            parts[known].append(parse_untrusted(wire.BOOT_RECORDS[known], record, "boot-info record", Error.OP_FAILED))
    try:
        info = _assemble(head, parts)
    except ValueError as problem:  # an enumeration met a number that it does not have
        raise RemoteProtocolError(Error.OP_FAILED, f"the boot-info block does not parse: {problem}") from None
    _check_places(info)
    return info


def _assemble(head: Mapping[str, Any], parts: Mapping[RecordKind, list[Mapping[str, Any]]]) -> BootInfo:
    def every(kind: RecordKind, make: Callable[[Mapping[str, Any]], Any]) -> tuple[Any, ...]:
        return tuple(make(fields) for fields in parts[kind])

    def of_device(kind: RecordKind, index: int, make: Callable[[Mapping[str, Any]], Any]) -> tuple[Any, ...]:
        return tuple(make(fields) for fields in parts[kind] if fields["device"] == index)

    return BootInfo(
        features=Feature(head["features"]),
        session=head["session"],
        minor=head["minor"],
        regions=every(
            RecordKind.REGION,
            lambda f: Region(RegionIndex(f["index"]), f["fd"], f["size"], bool(f["writable"]), f["address"]),
        ),
        rings=every(
            RecordKind.RING,
            lambda f: Ring(RingIndex(f["index"]), RegionIndex(f["region"]), f["offset"], f["slots"]),
        ),
        bulks=every(
            RecordKind.BULK,
            lambda f: Bulk(Direction(f["index"]), RegionIndex(f["region"]), f["offset"], f["size"]),
        ),
        doorbells=every(
            RecordKind.DOORBELL,
            lambda f: Doorbell(Direction(f["index"]), f["fd"], DoorbellType(f["type"]), f["address"]),
        ),
        windows=every(
            RecordKind.DMA_WINDOW,
            lambda f: DmaWindow(f["index"], f["offset"], f["size"], f["iova"], RegionIndex(f["region"])),
        ),
        devices=every(
            RecordKind.DEVICE,
            lambda f: Device(
                index=f["index"],
                name=name_untrusted(f["name"], Error.OP_FAILED, "the device name"),
                vendor=f["vendor"],
                device_id=f["device_id"],
                class_code=f["class_code"],
                state_offset=f["state_offset"],
                generation=f["generation"],
                config_size=f["config_size"],
                flags=DeviceFlag(f["flags"]),
                bars=of_device(
                    RecordKind.BAR,
                    f["index"],
                    lambda b: Bar(b["index"], b["size"], BarFlag(b["flags"]), b["address"]),
                ),
                vectors=of_device(
                    RecordKind.VECTOR,
                    f["index"],
                    lambda v: Vector(
                        v["index"], VectorType(v["type"]), VectorMode(v["mode"]), v["counter_offset"], v["fd"]
                    ),
                ),
            ),
        ),
    )


def _check_places(info: BootInfo) -> None:
    """Everything a record places in a region lies inside it, aligned [BOOT-2, BOOT-4], and each region has its writer."""
    for part in info.regions:
        if part.writable is (part.index is RegionIndex.B2F):  # f2b mapped for reading would kill who writes it [THR-31]
            can = "can" if part.writable else "cannot"
            text = f"by the boot-info block the front {can} write region {part.index.name.lower()}"
            raise RemoteProtocolError(Error.OP_FAILED, text)
    places = [("ring", ring.region, ring.offset, ring.slots * wire.SLOT_SIZE, 64) for ring in info.rings]
    places += [("bulk area", bulk.region, bulk.offset, bulk.size, 64) for bulk in info.bulks]
    places += [("DMA window", window.region, window.offset, window.size, 1) for window in info.windows]
    size = wire.DEVICE_STATE.sizeof()
    for device in info.devices:
        places.append(("device state", RegionIndex.B2F, device.state_offset, size, 64))
        places += [("counter", RegionIndex.B2F, v.counter_offset, 8, 8) for v in device.vectors]
        if any(bar.index >= wire.BAR_COUNT for bar in device.bars):
            raise RemoteProtocolError(Error.OP_FAILED, f"device {device.name} has a BAR beyond {wire.BAR_COUNT - 1}")
    for what, region, offset, length, align in places:
        if offset % align or offset + length > info.region(region).size:
            text = f"a {what} at {offset:#x}, {length} octets, does not lie aligned in region {region.name.lower()}"
            raise RemoteProtocolError(Error.OP_FAILED, text)
    if any(ring.slots & (ring.slots - 1) or not ring.slots for ring in info.rings):
        raise RemoteProtocolError(Error.OP_FAILED, "the slots of a ring are not a power of two")
    if {ring.index for ring in info.rings} != set(RingIndex) or {d.index for d in info.doorbells} != set(Direction):
        raise RemoteProtocolError(Error.OP_FAILED, "the boot-info block lacks a ring or a doorbell")
    if {bulk.index for bulk in info.bulks} != set(Direction):
        raise RemoteProtocolError(Error.OP_FAILED, "the boot-info block lacks a bulk area")
    if [device.index for device in info.devices] != list(range(len(info.devices))):
        raise RemoteProtocolError(Error.OP_FAILED, "the devices of the boot-info block are not numbered from 0")
