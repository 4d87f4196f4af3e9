# SPDX-License-Identifier: MIT
"""Golden vectors: one message of each kind and operation, and messages that must be refused with a named error.

The generator writes them to ``spec/vectors``; the parsers and checkers of both sides are tested against the files. A vector
obeys every clause: what it shows could be seen between two peers.
"""

import dataclasses

from pcisplit import wire
from pcisplit.proto.bootinfo import (
    Bar,
    BootInfo,
    Bulk,
    Device,
    DmaWindow,
    Doorbell,
    Grant,
    Region,
    Ring,
    Shadow,
    Vectors,
    build_record,
)
from pcisplit.proto.layout import BULK_SIZE, Layout
from pcisplit.proto.meeting import FrontMemory, Hello, Late, Need, Reply, WantedGrant
from pcisplit.proto.slots import Event, Request, Response
from pcisplit.wire import (
    OPERATIONS,
    BarFlag,
    DeviceFlag,
    DeviceState,
    Direction,
    DoorbellType,
    Error,
    EventKind,
    GrantKind,
    Op,
    RecordKind,
    RegionIndex,
    RequestFlag,
    ResetMethod,
    RingIndex,
    Uses,
    VectorMode,
    VectorType,
)


@dataclasses.dataclass(frozen=True, slots=True)
class Vector:
    """`kind` is request, response, event, hello, reply, late or boot_info; `error` is set where it must be refused."""

    name: str
    kind: str
    text: str
    octets: bytes
    error: Error | None = None


GENERATION = 3
_READ = 0x010000ED


def request(op: Op) -> Request:
    """A request of `op` in which every field that the operation uses has a value of its own."""
    uses = OPERATIONS[op].uses

    def used(use: Uses, value: int) -> int:
        return value if uses & use else 0

    pairs = (0x40, 0x11, 0x44, 0x22, 0x40, 0x33) if op is Op.BAR_WRITES else (0x40, 0x44, 0x48)
    return Request(
        op,
        id=used(Uses.ID, 0x1000 + op),
        device=1,
        generation=GENERATION,
        flags=used(Uses.MUST_POST, RequestFlag.POSTED),
        region=used(Uses.REGION, 2),
        width=used(Uses.WIDTH, 4),
        offset=used(Uses.OFFSET | Uses.DMA, 0x1000 if uses & Uses.DMA else 0x40),
        value=used(Uses.VALUE, 0xDEADBEEF),
        length=used(Uses.BLOCK, 256),
        bulk=used(Uses.BLOCK, 0x400),
        element=pairs if uses & Uses.PACK else (),
        count=used(Uses.VECTORS, 1) or used(Uses.PACK, 3),
        type=used(Uses.TYPE, VectorType.MSI),
        iova=used(Uses.DMA, 0x400000),
        size=used(Uses.DMA, 0x2000),
        grant=used(Uses.GRANT, 4),
        power=used(Uses.POWER, 3),
        event=used(Uses.ANSWER, 9),
        sequence=0x21,
    )


def response(op: Op) -> Response:
    """The answer of a back of this version to ``request(op)``."""
    row, asked = OPERATIONS[op], request(op)
    answer = Response(op, asked.id, asked.device, GENERATION, sequence=0x21)
    if not row.built:
        return dataclasses.replace(answer, error=Error.NOT_IMPLEMENTED)
    if op is Op.BAR_READS:
        return dataclasses.replace(answer, values=(_READ, 1, 2), done=3)
    if op is Op.RESET:
        return dataclasses.replace(answer, value=ResetMethod.FLR, generation=GENERATION + 1)
    value = _READ if op in (Op.CONF_READ, Op.BAR_READ) else 0
    return dataclasses.replace(answer, value=value, length=256 if row.uses & Uses.BLOCK else 0)


#: `value` of an event of each kind; of a posted error and an AER step: what it is about.
_EVENT_VALUES = {
    EventKind.INTERRUPT: 5,
    EventKind.DEVICE_STATE: int(DeviceState.GONE),
    EventKind.POSTED_ERROR: (1 << 64) + int(Error.DECODE_DISABLED),
}

_PLACES = Layout.of([1])
_RUN = _PLACES.runs[0]

BOOT = BootInfo(
    features=wire.BUILT,
    session=7,
    regions=(
        Region(RegionIndex.F2B, 0, _PLACES.f2b_size, True),
        Region(RegionIndex.B2F, 1, _PLACES.b2f_size),
        Region(RegionIndex.DMA, 4, 0x200000, True),
    ),
    rings=(
        Ring(RingIndex.REQUEST, RegionIndex.F2B, _PLACES.places.requests, _PLACES.places.request_slots),
        Ring(RingIndex.RESPONSE, RegionIndex.B2F, _PLACES.places.responses, _PLACES.places.response_slots),
        Ring(RingIndex.EVENT, RegionIndex.B2F, _PLACES.places.events, _PLACES.places.event_slots),
    ),
    bulks=(
        Bulk(Direction.FRONT_TO_BACK, RegionIndex.F2B, _PLACES.places.bulk_in, BULK_SIZE),
        Bulk(Direction.BACK_TO_FRONT, RegionIndex.B2F, _PLACES.places.bulk_out, BULK_SIZE),
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
            state_offset=_PLACES.states[0],
            generation=1,
            config_size=256,
            device_flags=DeviceFlag.RESETTABLE,
            bars=(Bar(0, 0x100000, BarFlag(0), 0x80000000),),
            vectors=(Vectors(0, VectorType.MSI, VectorMode.RELAYED, 1, 0, wire.NO_FD, *_RUN),),
        ),
    ),
    windows=(DmaWindow(0, 0, 0x200000, 0x200000),),
)

#: As later versions will have it: 2048 vectors relayed, a grant, a copy of configuration space.
_LARGE = Layout.of([wire.MAX_VECTORS])
BOOT_LARGE = dataclasses.replace(
    BOOT,
    regions=(
        Region(RegionIndex.F2B, 0, _LARGE.f2b_size, True),
        Region(RegionIndex.B2F, 1, _LARGE.b2f_size),
        BOOT.regions[2],
    ),
    bulks=(BOOT.bulks[0], Bulk(Direction.BACK_TO_FRONT, RegionIndex.B2F, _LARGE.places.bulk_out, BULK_SIZE)),
    devices=(
        dataclasses.replace(
            BOOT.devices[0],
            name="nic0",
            vectors=(
                Vectors(0, VectorType.MSIX, VectorMode.RELAYED, wire.MAX_VECTORS, 0, wire.NO_FD, *_LARGE.runs[0]),
            ),
            grants=(Grant(0, 4, 0, GrantKind.TENDER, 5, 0, 0x1000, 0x2000),),
            shadows=(Shadow(0, RegionIndex.B2F, 0, wire.PAGE_SIZE),),
        ),
    ),
)

HELLO = Hello("edu", (Need("edu0", 1), Need("nic0", 4, VectorMode.DIRECT)), 1 << 20, 28)
_HELLO_PLANNED = Hello(
    "nic",
    (Need("nic0", msix=16, intx=1),),
    grants=(WantedGrant(0, 0, 0x1000, 2), WantedGrant(0, 0, 0, 0, GrantKind.DOORBELL, True, 1, 4)),
    memories=(FrontMemory(0, 0, 0x200000),),
)
_LATE = Late(1, build_record(RecordKind.GRANT, BOOT_LARGE.devices[0].grants[0]), 1, GENERATION)


def _patched(octets: bytes, at: int, new: bytes) -> bytes:
    return octets[:at] + new + octets[at + len(new) :]


def _good() -> list[Vector]:
    vectors = [
        Vector("hello", "hello", "a driver that needs two devices and 1 MiB of DMA memory", HELLO.to_bytes()),
        Vector("hello-planned", "hello", "with grants, memory of its own, INTx and MSI-X", _HELLO_PLANNED.to_bytes()),
        Vector("reply-session", "reply", "a session", Reply(boot_info=BOOT.to_bytes(), fds=5).to_bytes()),
        Vector(
            "reply-refusal",
            "reply",
            "a refusal",
            Reply(Error.UNKNOWN_DEVICE, "no device 'nic9' is served; this back has: edu0").to_bytes(),
        ),
        Vector("boot-info", "boot_info", "one device with one BAR, one vector and one DMA window", BOOT.to_bytes()),
        Vector("boot-info-planned", "boot_info", "2048 vectors, a grant, a shadow page", BOOT_LARGE.to_bytes()),
        Vector("late-grant", "late", "a grant given again, with its descriptor", _LATE.to_bytes()),
    ]
    for op in Op:
        name, asked = op.name.lower().replace("_", "-"), request(op)
        vectors.append(Vector(f"request-{name}", "request", str(asked), asked.to_bytes()))
        if not OPERATIONS[op].uses & Uses.MUST_POST:
            answer = response(op)
            vectors.append(Vector(f"response-{name}", "response", str(answer), answer.to_bytes()))
    posted = dataclasses.replace(request(Op.BAR_WRITE), flags=RequestFlag.POSTED)
    denied = Response(Op.CONF_WRITE, 9, 0, 1, Error.DENIED, rule=1, detail=2, sequence=1)
    halfway = Response(Op.BAR_READS, 9, 0, 1, Error.INVALID_OFFSET, values=(_READ,), done=1, sequence=2)
    vectors.append(Vector("request-bar-write-posted", "request", str(posted), posted.to_bytes()))
    vectors.append(Vector("response-denied", "response", str(denied), denied.to_bytes()))
    vectors.append(Vector("response-bar-reads-halfway", "response", str(halfway), halfway.to_bytes()))
    for kind in EventKind:
        upcall = 9 if kind in (EventKind.REVOKE, EventKind.EJECT, EventKind.AER) else 0
        event = Event(kind, upcall, 1, GENERATION, vector=0, value=_EVENT_VALUES.get(kind, 0), sequence=1)
        vectors.append(Vector(f"event-{kind.name.lower().replace('_', '-')}", "event", str(event), event.to_bytes()))
    return vectors


def _bad() -> list[Vector]:
    read, hello, boot = request(Op.BAR_READ).to_bytes(), HELLO.to_bytes(), BOOT.to_bytes()
    writes, irq, late = request(Op.BAR_WRITES).to_bytes(), request(Op.ENABLE_MSI).to_bytes(), _LATE.to_bytes()
    ring = wire.BOOT_INFO.size + 3 * wire.BOOT_REGION.size
    bad, unsound = Error.BAD_REQUEST, Error.OP_FAILED
    cases = [
        ("request-unknown-op", "request", "an operation without a number", _patched(read, 0, b"\x77\0"), Error.NOT_IMPLEMENTED),
        ("request-reserved", "request", "a reserved octet is not zero", _patched(read, 59, b"\1"), bad),
        ("request-flags", "request", "an unknown flag", _patched(read, 2, b"\2\0"), bad),
        ("request-posted-read", "request", "a posted read", _patched(read, 2, b"\1\0"), bad),
        ("request-unused-field", "request", "a read with a value", _patched(read, 24, b"\1"), bad),
        ("request-pack-not-posted", "request", "a pack of writes without the flag", _patched(writes, 2, b"\0\0"), bad),
        ("request-pack-id", "request", "a pack of writes with an id", _patched(writes, 4, b"\1"), bad),
        ("request-irq-type", "request", "a type where the operation says it", _patched(irq, 16, b"\1"), bad),
        ("hello-short", "hello", "a hello cut off", hello[:100], Error.MALFORMED_HELLO),
        ("hello-magic", "hello", "not a hello", _patched(hello, 0, b"GET "), Error.MALFORMED_HELLO),
        ("hello-major", "hello", "another major version", _patched(hello, 4, b"\2\0"), Error.WRONG_VERSION),
        ("hello-length", "hello", "a length that is not its own", _patched(hello, 8, b"\0\1"), Error.MALFORMED_HELLO),
        ("hello-count", "hello", "more records than there are", _patched(hello, 12, b"\3\0"), Error.MALFORMED_HELLO),
        ("hello-record", "hello", "a record that ends outside", _patched(hello, 226, b"\xf8"), Error.MALFORMED_HELLO),
        ("hello-name", "hello", "a device name with a slash", _patched(hello, 132, b"../x"), Error.MALFORMED_HELLO),
        ("hello-reserved", "hello", "a reserved octet is not zero", _patched(hello, 127, b"\1"), Error.MALFORMED_HELLO),
        ("hello-dma-bits", "hello", "no address bits", _patched(hello, 14, b"\0"), Error.MALFORMED_HELLO),
        ("boot-info-magic", "boot_info", "not a boot-info block", _patched(boot, 0, b"ELF\0"), unsound),
        ("boot-info-records", "boot_info", "more records than octets", _patched(boot, 12, b"\xff"), unsound),
        ("boot-info-record", "boot_info", "a record of no length", _patched(boot, 66, b"\0\0"), unsound),
        ("boot-info-ring", "boot_info", "a ring beyond its region", _patched(boot, ring + 16, b"\0\0\2"), unsound),
        ("late-magic", "late", "not a late message", _patched(late, 0, b"PCSR"), unsound),
        ("late-record", "late", "a record that is not the one announced", _patched(late, 10, b"\7"), unsound),
    ]  # fmt: skip
    return [Vector(f"bad-{name}", kind, text, octets, error) for name, kind, text, octets, error in cases]


VECTORS = [*_good(), *_bad()]
