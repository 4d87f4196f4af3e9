# SPDX-License-Identifier: MIT
"""Golden vectors: one message of each kind and operation, and messages that must be refused with a named error.

The generator writes them to ``spec/vectors``; the Python and the C parser are both tested against the files.
"""

import dataclasses

from pcisplit import wire
from pcisplit.bootinfo import Bar, BootInfo, Bulk, Device, DmaWindow, Doorbell, Region, Ring
from pcisplit.bootinfo import Vector as BootVector
from pcisplit.messages import Event, Hello, Need, Reply, Request, Response
from pcisplit.wire import (
    BarFlag,
    DeviceFlag,
    Direction,
    DoorbellType,
    Error,
    EventKind,
    Op,
    RegionIndex,
    RequestFlag,
    RingIndex,
    Uses,
    VectorMode,
    VectorType,
)


@dataclasses.dataclass(frozen=True, slots=True)
class Vector:
    """`kind` is request, response, event, hello, reply or boot_info; `error` is set where it must be refused."""

    name: str
    kind: str
    text: str
    octets: bytes
    error: Error | None = None


def _request(op: Op) -> Request:
    """A request of `op` in which every field that the operation uses has a value of its own."""
    uses = wire.USES.get(op, Uses(0))
    return Request(
        op,
        id=0x1000 + op,
        device=1,
        generation=3,
        region=2 if uses & Uses.REGION else 0,
        width=4 if uses & Uses.WIDTH else 0,
        offset=0x40 if uses & Uses.OFFSET else 0,
        value=0xDEADBEEF if uses & Uses.VALUE else 0,
        length=256 if uses & Uses.BLOCK else 0,
        bulk=0x400 if uses & Uses.BLOCK else 0,
        count=1 if uses & Uses.VECTORS else 0,
    )


def _response(op: Op) -> Response:
    if op not in wire.USES:
        return Response(op, 0x1000 + op, 1, 3, Error.NOT_IMPLEMENTED)
    reads = op in (Op.CONF_READ, Op.BAR_READ)
    moved = 256 if wire.USES[op] & Uses.BLOCK else 0
    return Response(op, 0x1000 + op, 1, 3, value=0x010000ED if reads else 0, length=moved)


BOOT = BootInfo(
    features=wire.BUILT,
    session=7,
    regions=(
        Region(RegionIndex.F2B, 0, 0x15000, True),
        Region(RegionIndex.B2F, 1, 0x17000),
        Region(RegionIndex.DMA, 4, 0x200000, True),
    ),
    rings=(
        Ring(RingIndex.REQUEST, RegionIndex.F2B, 0x1000, wire.REQUEST_SLOTS),
        Ring(RingIndex.RESPONSE, RegionIndex.B2F, 0x1000, wire.RESPONSE_SLOTS),
        Ring(RingIndex.EVENT, RegionIndex.B2F, 0x5000, wire.EVENT_SLOTS),
    ),
    bulks=(
        Bulk(Direction.FRONT_TO_BACK, RegionIndex.F2B, 0x5000, wire.BULK_SIZE),
        Bulk(Direction.BACK_TO_FRONT, RegionIndex.B2F, 0x7000, wire.BULK_SIZE),
    ),
    doorbells=(
        Doorbell(Direction.FRONT_TO_BACK, 2, DoorbellType.EVENTFD),
        Doorbell(Direction.BACK_TO_FRONT, 3, DoorbellType.SOCKET),
    ),
    devices=(
        Device(
            index=0,
            name="edu0",
            vendor=0x1234,
            device_id=0x11E8,
            class_code=0x00FF00,
            state_offset=0x6000,
            generation=1,
            config_size=256,
            flags=DeviceFlag.RESETTABLE,
            bars=(Bar(0, 0x100000, BarFlag(0), 0x80000000),),
            vectors=(BootVector(0, VectorType.MSI, VectorMode.RELAYED, 0x6040),),
        ),
    ),
    windows=(DmaWindow(0, 0, 0x200000, 0x200000),),
)

_HELLO = Hello("edu", (Need("edu0", 1), Need("nic0", 4, VectorMode.DIRECT)), 1 << 20, 28)


def _patched(octets: bytes, at: int, new: bytes) -> bytes:
    return octets[:at] + new + octets[at + len(new) :]


def _good() -> list[Vector]:
    vectors = [
        Vector("hello", "hello", "a driver that needs two devices and 1 MiB of DMA memory", _HELLO.to_bytes()),
        Vector("reply-session", "reply", "a session", Reply(boot_info=BOOT.to_bytes(), fds=5).to_bytes()),
        Vector(
            "reply-refusal",
            "reply",
            "a refusal",
            Reply(Error.UNKNOWN_DEVICE, "no device 'nic9' is served; this back has: edu0").to_bytes(),
        ),
        Vector("boot-info", "boot_info", "one device with one BAR, one vector and one DMA window", BOOT.to_bytes()),
    ]
    for op in Op:
        name = op.name.lower().replace("_", "-")
        vectors.append(Vector(f"request-{name}", "request", str(_request(op)), _request(op).to_bytes()))
        vectors.append(Vector(f"response-{name}", "response", str(_response(op)), _response(op).to_bytes()))
    posted = dataclasses.replace(_request(Op.BAR_WRITE), flags=RequestFlag.POSTED)
    denied = Response(Op.CONF_WRITE, 9, 0, 1, Error.DENIED, rule=1, detail=2)
    vectors.append(Vector("request-bar-write-posted", "request", str(posted), posted.to_bytes()))
    vectors.append(Vector("response-denied", "response", str(denied), denied.to_bytes()))
    for kind in EventKind:
        event = Event(kind, 0, 1, 3, vector=0, value=5)
        vectors.append(Vector(f"event-{kind.name.lower().replace('_', '-')}", "event", str(event), event.to_bytes()))
    return vectors


def _bad() -> list[Vector]:
    read, hello, boot = _request(Op.BAR_READ).to_bytes(), _HELLO.to_bytes(), BOOT.to_bytes()
    cases = [
        ("request-unknown-op", "request", "an operation without a number", _patched(read, 0, b"\x77\0"), Error.NOT_IMPLEMENTED),
        ("request-reserved", "request", "a reserved octet is not zero", _patched(read, 63, b"\1"), Error.BAD_REQUEST),
        ("request-flags", "request", "an unknown flag", _patched(read, 2, b"\2\0"), Error.BAD_REQUEST),
        ("request-posted-read", "request", "a posted read", _patched(read, 2, b"\1\0"), Error.BAD_REQUEST),
        ("request-unused-field", "request", "a read with a value", _patched(read, 24, b"\1"), Error.BAD_REQUEST),
        ("hello-short", "hello", "a hello cut off", hello[:100], Error.MALFORMED_HELLO),
        ("hello-magic", "hello", "not a hello", _patched(hello, 0, b"GET "), Error.MALFORMED_HELLO),
        ("hello-major", "hello", "another major version", _patched(hello, 4, b"\2\0"), Error.WRONG_VERSION),
        ("hello-length", "hello", "a length that is not its own", _patched(hello, 8, b"\0\1"), Error.MALFORMED_HELLO),
        ("hello-count", "hello", "more devices than records", _patched(hello, 12, b"\3\0"), Error.MALFORMED_HELLO),
        ("hello-name", "hello", "a device name with a slash", _patched(hello, 128, b"../x"), Error.MALFORMED_HELLO),
        ("hello-reserved", "hello", "a reserved octet is not zero", _patched(hello, 127, b"\1"), Error.MALFORMED_HELLO),
        ("hello-dma-bits", "hello", "no address bits", _patched(hello, 14, b"\0"), Error.MALFORMED_HELLO),
        ("boot-info-magic", "boot_info", "not a boot-info block", _patched(boot, 0, b"ELF\0"), Error.OP_FAILED),
        ("boot-info-records", "boot_info", "more records than octets", _patched(boot, 12, b"\xff"), Error.OP_FAILED),
        ("boot-info-ring", "boot_info", "a ring beyond its region", _patched(boot, 464, b"\0\0\2"), Error.OP_FAILED),
    ]  # fmt: skip
    return [Vector(f"bad-{name}", kind, text, octets, error) for name, kind, text, octets, error in cases]


VECTORS = [*_good(), *_bad()]
