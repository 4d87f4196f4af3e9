# SPDX-License-Identifier: MIT
"""Hello, reply and late messages as frozen dataclasses, to and from octets (spec/meeting.md). Sans-IO.

A function whose name ends in ``_untrusted`` takes octets of the peer; it raises RemoteProtocolError and nothing else.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

from pcisplit import wire
from pcisplit.proto.errors import RemoteProtocolError
from pcisplit.proto.octets import name_untrusted, number, pad_name, parse_untrusted
from pcisplit.wire import Error, Feature, GrantFlag, GrantKind, HelloKind, RecordKind, VectorMode


@dataclasses.dataclass(frozen=True, slots=True)
class Need:
    """One device that a hello asks for; AS_MANY asks for as many vectors of a type as it has. All of them of one mode."""

    name: str
    msi: int = 0
    mode: VectorMode = VectorMode.RELAYED
    msix: int = 0
    intx: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class WantedGrant:
    """A range that the front wants to map: `device` is the position among the needs, `offset` and `pages` in the BAR."""

    device: int
    bar: int
    offset: int
    pages: int
    kind: GrantKind = GrantKind.TENDER
    required: bool = False
    value: int = 0
    width: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class FrontMemory:
    """DMA memory that the front brings: `fd` is its place among the descriptors of the hello; sizes in octets."""

    fd: int
    offset: int
    size: int
    iova: int = wire.DMA_ALL


@dataclasses.dataclass(frozen=True, slots=True)
class Hello:
    """What a front needs; all or nothing [MEET-8]. No device asks for every one that is served to it.

    `dma_bytes` in octets (DMA_ALL: as much as the back gives), `dma_bits` the address bits of its driver.
    """

    driver: str
    devices: tuple[Need, ...]
    dma_bytes: int = 0
    dma_bits: int = 64
    features: Feature = wire.BUILT
    required: Feature = Feature(0)
    major: int = wire.MAJOR
    minor: int = wire.MINOR
    grants: tuple[WantedGrant, ...] = ()
    memories: tuple[FrontMemory, ...] = ()

    def to_bytes(self) -> bytes:
        records = [_record(HelloKind.DEVICE, **_need(need)) for need in self.devices]
        records += [_record(HelloKind.GRANT, **_grant(grant)) for grant in self.grants]
        records += [_record(HelloKind.MEMORY, **dataclasses.asdict(memory)) for memory in self.memories]
        tail = b"".join(records)
        head = {
            "magic": wire.HELLO_MAGIC,
            "major": self.major,
            "minor": self.minor,
            "length": wire.HELLO.size + len(tail),
            "records": len(records),
            "dma_bits": self.dma_bits,
            "features": self.features,
            "required": self.required,
            "dma_bytes": self.dma_bytes,
            "driver": self.driver.encode()[: wire.NAME_MAX].ljust(wire.NAME_MAX + 1, b"\0"),
        }
        return wire.HELLO.build(head) + tail


def _record(kind: HelloKind, **fields: Any) -> bytes:
    record = wire.HELLO_RECORDS[kind]
    return record.build({"kind": kind, "length": record.size, **fields})


def _need(need: Need) -> dict[str, Any]:
    return {**dataclasses.asdict(need), "name": pad_name(need.name)}


def _grant(grant: WantedGrant) -> dict[str, Any]:
    fields = dataclasses.asdict(grant)
    kind, flags = fields.pop("kind"), GrantFlag.REQUIRED if fields.pop("required") else 0
    return {**fields, "grant_kind": kind, "grant_flags": flags}


def _bad(text: str) -> RemoteProtocolError:
    return RemoteProtocolError(Error.MALFORMED_HELLO, text)


def parse_hello_untrusted(data: bytes) -> Hello:
    """A hello from a peer [MEET-4, MEET-5]. Raises RemoteProtocolError: malformed_hello or wrong_version."""
    size = wire.HELLO.size
    if not size <= len(data) <= wire.HELLO_MAX:
        raise _bad(f"the hello is {len(data)} octets long; it has {size} to {wire.HELLO_MAX}")
    # Magic and version first: another version may have laid out the rest differently.
    if number(data, 0, 4) != wire.HELLO_MAGIC:
        raise _bad(f"the hello begins with {data[0:4].hex()}, not with 'PCSH': is this a pcisplit front?")
    major = number(data, 4, 2)
    if major != wire.MAJOR:
        text = f"the front speaks version {major}, this back {wire.MAJOR}: update the older of the two"
        raise RemoteProtocolError(Error.WRONG_VERSION, text)
    head = parse_untrusted(wire.HELLO, data[:size], "hello", Error.MALFORMED_HELLO)
    if head["length"] != len(data):
        raise _bad(f"the hello says {head['length']} octets, but came as {len(data)}")
    if not 12 <= head["dma_bits"] <= 64:
        raise _bad(f"dma_bits is 12 to 64, not {head['dma_bits']}")
    if head["required"] & ~head["features"]:
        raise _bad("the hello requires features that it does not offer")
    parts = _parse_records_untrusted(data[size:], head["records"])
    devices = tuple(_parse_need_untrusted(fields) for fields in parts[HelloKind.DEVICE])
    if len({need.name for need in devices}) != len(devices):
        raise _bad("the hello asks for one device twice")
    return Hello(
        driver=head["driver"].rstrip(b"\0").decode("utf-8", "replace"),
        devices=devices,
        dma_bytes=head["dma_bytes"],
        dma_bits=head["dma_bits"],
        features=Feature(head["features"]),
        required=Feature(head["required"]),
        major=head["major"],
        minor=head["minor"],
        grants=tuple(_parse_grant_untrusted(fields, len(devices)) for fields in parts[HelloKind.GRANT]),
        memories=tuple(_parse_memory_untrusted(fields) for fields in parts[HelloKind.MEMORY]),
    )


_MOST = {HelloKind.DEVICE: wire.MAX_DEVICES, HelloKind.GRANT: wire.MAX_GRANTS, HelloKind.MEMORY: wire.MAX_MEMORIES}


def _parse_records_untrusted(data: bytes, count: int) -> dict[HelloKind, list[dict[str, Any]]]:
    """Records by kind; kinds that are not known are skipped by their length [MEET-24]."""
    parts: dict[HelloKind, list[dict[str, Any]]] = {kind: [] for kind in HelloKind}
    for kind, octets in records_untrusted(data, count, "hello", Error.MALFORMED_HELLO):
        if kind not in HelloKind.__members__.values():
            continue
        known = HelloKind(kind)
        record = wire.HELLO_RECORDS[known]
        what = f"hello record of kind {known.name.lower()}"
        if len(octets) < record.size:
            raise _bad(f"a {what} is {record.size} octets long, not {len(octets)}")
        parts[known].append(parse_untrusted(record, octets[: record.size], what, Error.MALFORMED_HELLO))
        if len(parts[known]) > _MOST[known]:
            raise _bad(f"a hello has at most {_MOST[known]} records of kind {known.name.lower()}")
    return parts


def records_untrusted(data: bytes, count: int, what: str, code: Error) -> Iterator[tuple[int, bytes]]:
    """(kind, octets) of `count` records that fill `data`, each with its kind and length in its first four octets."""
    at = 0
    for index in range(count):
        length = number(data, at + 2, 2)
        if at + 4 > len(data) or length < 8 or length % 8 or at + length > len(data):
            raise RemoteProtocolError(code, f"record {index} of the {what} has no length that fits: {length} octets")
        yield number(data, at, 2), data[at : at + length]
        at += length
    if at != len(data):
        raise RemoteProtocolError(code, f"the {what} has {len(data) - at} octets after its {count} records")


def _parse_need_untrusted(fields: dict[str, Any]) -> Need:
    name = name_untrusted(fields["name"], Error.MALFORMED_HELLO, "the device name")
    if fields["mode"] not in VectorMode.__members__.values():
        raise _bad(f"device {name}: vector mode {fields['mode']} is not 0 or 1")
    if fields["intx"] > 1:
        raise _bad(f"device {name}: a function has one INTx, not {fields['intx']}")
    return Need(name, fields["msi"], VectorMode(fields["mode"]), fields["msix"], fields["intx"])


def _parse_grant_untrusted(fields: dict[str, Any], devices: int) -> WantedGrant:
    if fields["device"] >= devices:
        raise _bad(f"a wanted grant names device {fields['device']} of {devices}")
    if fields["grant_kind"] not in GrantKind.__members__.values():
        raise _bad(f"a wanted grant has kind {fields['grant_kind']}")
    if fields["bar"] >= wire.BAR_COUNT or fields["offset"] % wire.PAGE_SIZE or fields["grant_flags"] & ~1:
        raise _bad("a wanted grant names no range of a BAR: BAR 0 to 5, whole pages, flag 1")
    kind, required = GrantKind(fields["grant_kind"]), bool(fields["grant_flags"])
    place = fields["device"], fields["bar"], fields["offset"], fields["pages"]
    return WantedGrant(*place, kind, required, fields["value"], fields["width"])


def _parse_memory_untrusted(fields: dict[str, Any]) -> FrontMemory:
    if fields["memory_flags"]:
        raise _bad("the flags of a memory record are zero")
    return FrontMemory(fields["fd"], fields["offset"], fields["size"], fields["iova"])


@dataclasses.dataclass(frozen=True, slots=True)
class Reply:
    """The answer to a hello: a refusal (`error`, `text`) or a session (`boot_info`, `fds` descriptors beside it)."""

    error: Error = Error.SUCCESS
    text: str = ""
    boot_info: bytes = b""
    fds: int = 0
    minor: int = wire.MINOR
    major: int = wire.MAJOR

    def to_bytes(self) -> bytes:
        text = self.text.encode()[: wire.REPLY_TEXT_MAX]
        head = {
            "magic": wire.REPLY_MAGIC,
            "major": self.major,
            "minor": self.minor,
            "length": wire.REPLY.size + len(text) + len(self.boot_info),
            "error": self.error,
            "fds": self.fds,
            "text_length": len(text),
            "boot_length": len(self.boot_info),
        }
        return wire.REPLY.build(head) + text + self.boot_info


def parse_reply_untrusted(data: bytes) -> Reply:
    """The back's answer. Raises RemoteProtocolError (op_failed) when it is none."""
    size = wire.REPLY.size
    head = parse_untrusted(wire.REPLY, data[:size], "reply", Error.OP_FAILED)
    text_end = size + head["text_length"]
    if head["magic"] != wire.REPLY_MAGIC or head["length"] != len(data) or text_end + head["boot_length"] != len(data):
        raise RemoteProtocolError(Error.OP_FAILED, "the answer to the hello has a wrong magic or length")
    if head["major"] != wire.MAJOR:
        text = f"the back speaks version {head['major']}, this front {wire.MAJOR}: update the older of the two"
        raise RemoteProtocolError(Error.WRONG_VERSION, text)
    try:
        error = Error(head["error"])
    except ValueError:
        raise RemoteProtocolError(Error.OP_FAILED, f"the answer has an unknown error {head['error']}") from None
    text = data[size:text_end].decode("utf-8", "replace")
    return Reply(error, text, data[text_end:], head["fds"], head["minor"], head["major"])


@dataclasses.dataclass(frozen=True, slots=True)
class Late:
    """Descriptors that come after the meeting, and the boot-info record that says what they are [MEET-25]."""

    serial: int
    record: bytes
    fds: int = 0
    generation: int = 0

    def to_bytes(self) -> bytes:
        kind, index, device = (number(self.record, at, 2) for at in (0, 4, 6))
        head = {
            "magic": wire.LATE_MAGIC,
            "length": wire.LATE.size + len(self.record),
            "kind": kind,
            "index": index,
            "device": device,
            "fds": self.fds,
            "generation": self.generation,
            "serial": self.serial,
        }
        return wire.LATE.build(head) + self.record


def parse_late_untrusted(data: bytes) -> Late:
    """A late message of the back. Raises RemoteProtocolError (op_failed) when it is none."""
    head = parse_untrusted(wire.LATE, data[: wire.LATE.size], "late message", Error.OP_FAILED)
    ((kind, record),) = records_untrusted(data[wire.LATE.size :], 1, "late message", Error.OP_FAILED)
    says = kind, number(record, 4, 2), number(record, 6, 2)
    if head["magic"] != wire.LATE_MAGIC or head["length"] != len(data):
        raise RemoteProtocolError(Error.OP_FAILED, "the late message has a wrong magic or length")
    if says != (head["kind"], head["index"], head["device"]) or kind not in RecordKind.__members__.values():
        raise RemoteProtocolError(Error.OP_FAILED, "the late message and its boot-info record do not agree")
    return Late(head["serial"], record, head["fds"], head["generation"])
