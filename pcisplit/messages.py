# SPDX-License-Identifier: MIT
"""Messages as frozen dataclasses, to and from octets: slots, hello and reply. Boot-info is in ``bootinfo.py``.

Sans-IO. A function whose name ends in ``_untrusted`` takes octets of the peer; it raises RemoteProtocolError and
nothing else. Nothing here runs per operation in production: C does; this is for the meeting, traces, tests and tools.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

from pcisplit import pci, wire
from pcisplit.errors import RemoteProtocolError, error_name
from pcisplit.wire import Error, EventKind, Feature, Op, RequestFlag, Uses, VectorMode


def parse_untrusted(record: Any, data: bytes, what: str, code: Error) -> Mapping[str, Any]:
    """`data` as the fields of a wire record; RemoteProtocolError with `code` if it is not one."""
    try:
        if len(data) != record.sizeof():
            raise RemoteProtocolError(code, f"{what} is {len(data)} octets long, not {record.sizeof()}")
        fields: Mapping[str, Any] = record.parse(data)
    except wire.ParseError as problem:
        raise RemoteProtocolError(code, f"{what} does not parse: {problem}") from None
    for name in ("zero", "flags" if what == "event" else "zero"):
        value = fields.get(name, 0)
        if any(value) if isinstance(value, Sequence) else value:
            raise RemoteProtocolError(code, f"{what}: field {name} is not zero")
    return fields


def build(record: Any, fields: Mapping[str, Any]) -> bytes:
    """Octets of a wire record; a field left out is zero."""
    octets: bytes = record.build({**wire.blank(record), **fields})
    return octets


def pad_name(name: str) -> bytes:
    return name.encode().ljust(wire.NAME_MAX + 1, b"\0")


def name_untrusted(raw: bytes, code: Error, what: str) -> str:
    """The device name in a NUL-padded field; RemoteProtocolError if it is not one."""
    text = raw.rstrip(b"\0").decode("ascii", "replace")
    if not pci.is_device_name(text):
        raise RemoteProtocolError(code, f"{what} {text!r} is not a name: [A-Za-z0-9]{{1,67}}, padded with NUL")
    return text


class _Slot:
    """What the three kinds of slot share: 64 octets, described by ``RECORD``."""

    RECORD: ClassVar[Any]
    WHAT: ClassVar[str]

    def to_bytes(self) -> bytes:
        return build(self.RECORD, dataclasses.asdict(self))  # type: ignore[call-overload]

    @classmethod
    def from_bytes_untrusted(cls, data: bytes) -> Self:
        fields = parse_untrusted(cls.RECORD, data, cls.WHAT, Error.BAD_REQUEST)
        names = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
        return cls(**{name: fields[name] for name in names})


@dataclasses.dataclass(frozen=True, slots=True)
class Request(_Slot):
    """One request slot. Units: offset, width, length, bulk in octets."""

    RECORD: ClassVar[Any] = wire.REQUEST
    WHAT: ClassVar[str] = "request"

    op: int
    id: int = 0
    device: int = 0
    generation: int = 0
    flags: int = 0
    region: int = 0
    width: int = 0
    offset: int = 0
    value: int = 0
    length: int = 0
    bulk: int = 0
    vector: int = 0
    count: int = 0

    def __str__(self) -> str:
        return f"{op_name(self.op)} #{self.id} dev{self.device}{self._arguments()}"

    def _arguments(self) -> str:
        uses = wire.USES.get(self.op, Uses(0))  # type: ignore[call-overload]
        words = [""]
        if uses & Uses.OFFSET:
            space = f"bar{self.region}" if uses & Uses.REGION else "config"
            words.append(f"{space}+{self.offset:#x}/{self.width}")
        if uses & Uses.VALUE:
            words.append(f"= {self.value:#x}")
        if uses & Uses.BLOCK:
            words.append(f"x {self.length} octets at bulk+{self.bulk:#x}")
        if uses & Uses.VECTORS:
            words.append(f"vector {self.vector}")
        if self.flags & RequestFlag.POSTED:
            words.append("posted")
        return " ".join(words)


@dataclasses.dataclass(frozen=True, slots=True)
class Response(_Slot):
    """One response slot; `value` is what was read, `detail` the further number of an error."""

    RECORD: ClassVar[Any] = wire.RESPONSE
    WHAT: ClassVar[str] = "response"

    op: int
    id: int = 0
    device: int = 0
    generation: int = 0
    error: int = 0
    rule: int = 0
    value: int = 0
    detail: int = 0
    length: int = 0

    def __str__(self) -> str:
        if self.error:
            rule = f" by rule {self.rule} at {self.detail:#x}" if self.rule else ""
            return f"{op_name(self.op)} #{self.id} {error_name(self.error)}{rule}"
        value = f" {self.value:#x}" if self.op in (Op.CONF_READ, Op.BAR_READ) else ""
        moved = f" {self.length} octets" if self.length else ""
        return f"{op_name(self.op)} #{self.id} ok{value}{moved}"


@dataclasses.dataclass(frozen=True, slots=True)
class Event(_Slot):
    """One event slot: a hint [REG-30]."""

    RECORD: ClassVar[Any] = wire.EVENT
    WHAT: ClassVar[str] = "event"

    kind: int
    id: int = 0
    device: int = 0
    generation: int = 0
    flags: int = 0
    vector: int = 0
    value: int = 0

    def __str__(self) -> str:
        if self.kind == EventKind.INTERRUPT:
            return f"interrupt dev{self.device} vector {self.vector}, {self.value} so far"
        kind = EventKind(self.kind).name.lower() if self.kind in EventKind.__members__.values() else f"kind {self.kind}"
        return f"{kind} dev{self.device} {self.value:#x}"


def op_name(op: int) -> str:
    """``bar_read``, or ``op 0x77`` for a number that is not in the table."""
    try:
        return Op(op).name.lower()
    except ValueError:
        return f"op {op:#x}"


def check_request_untrusted(data: bytes) -> Error:
    """What a back answers to these 64 octets before it looks at device, range, decode or policy [ERR-2].

    The same checks in the same order as ``pcisplit_check_request`` in C; a test holds the two together.
    """
    op, flags = int.from_bytes(data[0:2], "little"), int.from_bytes(data[2:4], "little")
    uses = wire.USES.get(op)  # type: ignore[call-overload]
    if uses is None:
        return Error.NOT_IMPLEMENTED
    allowed = (
        int(RequestFlag.POSTED) if uses & Uses.POSTED else 0
    )  # an int: ~ of an IntFlag forgets bits without a name
    if flags & ~allowed:
        return Error.BAD_REQUEST
    try:
        request = Request.from_bytes_untrusted(data)
    except RemoteProtocolError as problem:
        return problem.code
    if any(getattr(request, name) and not uses & bit for name, bit in wire.USED_BY.items()):
        return Error.BAD_REQUEST
    return Error.SUCCESS


@dataclasses.dataclass(frozen=True, slots=True)
class Need:
    """One device that a hello asks for; ALL_VECTORS asks for as many vectors as it has."""

    name: str
    vectors: int = 0
    mode: VectorMode = VectorMode.RELAYED


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

    def to_bytes(self) -> bytes:
        tail = b"".join(
            build(wire.HELLO_DEVICE, {"name": pad_name(need.name), "vectors": need.vectors, "mode": need.mode})
            for need in self.devices
        )
        head = {
            "magic": wire.HELLO_MAGIC,
            "major": self.major,
            "minor": self.minor,
            "length": wire.HELLO.sizeof() + len(tail),
            "devices": len(self.devices),
            "dma_bits": self.dma_bits,
            "features": self.features,
            "required": self.required,
            "dma_bytes": self.dma_bytes,
            "driver": self.driver.encode()[: wire.NAME_MAX].ljust(wire.NAME_MAX + 1, b"\0"),
        }
        return build(wire.HELLO, head) + tail


def parse_hello_untrusted(data: bytes) -> Hello:
    """A hello from a peer [MEET-4, MEET-5]. Raises RemoteProtocolError: malformed_hello or wrong_version."""
    bad = Error.MALFORMED_HELLO
    size = wire.HELLO.sizeof()
    if not size <= len(data) <= wire.HELLO_MAX:
        raise RemoteProtocolError(bad, f"the hello is {len(data)} octets long; it has {size} to {wire.HELLO_MAX}")
    # Magic and version first: another version may have laid out the rest differently.
    if int.from_bytes(data[0:4], "little") != wire.HELLO_MAGIC:
        raise RemoteProtocolError(
            bad, f"the hello begins with {data[0:4].hex()}, not with 'PCSH': is this a pcisplit front?"
        )
    major = int.from_bytes(data[4:6], "little")
    if major != wire.MAJOR:
        text = f"the front speaks version {major}, this back {wire.MAJOR}.{wire.MINOR}: update the older of the two"
        raise RemoteProtocolError(Error.WRONG_VERSION, text)
    head = parse_untrusted(wire.HELLO, data[:size], "hello", bad)
    record = wire.HELLO_DEVICE.sizeof()
    if head["length"] != len(data) or len(data) != size + head["devices"] * record:
        text = f"the hello says {head['length']} octets and {head['devices']} devices, but came as {len(data)} octets"
        raise RemoteProtocolError(bad, text)
    if head["devices"] > wire.MAX_DEVICES:
        raise RemoteProtocolError(bad, f"a hello asks for at most {wire.MAX_DEVICES} devices, not {head['devices']}")
    if not 12 <= head["dma_bits"] <= 64:
        raise RemoteProtocolError(bad, f"dma_bits is 12 to 64, not {head['dma_bits']}")
    if head["required"] & ~head["features"]:
        raise RemoteProtocolError(bad, "the hello requires features that it does not offer")
    needs = tuple(_parse_need_untrusted(data[at : at + record]) for at in range(size, len(data), record))
    if len({need.name for need in needs}) != len(needs):
        raise RemoteProtocolError(bad, "the hello asks for one device twice")
    return Hello(
        driver=head["driver"].rstrip(b"\0").decode("utf-8", "replace"),
        devices=needs,
        dma_bytes=head["dma_bytes"],
        dma_bits=head["dma_bits"],
        features=Feature(head["features"]),
        required=Feature(head["required"]),
        major=head["major"],
        minor=head["minor"],
    )


def _parse_need_untrusted(data: bytes) -> Need:
    fields = parse_untrusted(wire.HELLO_DEVICE, data, "hello device", Error.MALFORMED_HELLO)
    name = name_untrusted(fields["name"], Error.MALFORMED_HELLO, "the device name")
    if fields["mode"] not in VectorMode.__members__.values():
        raise RemoteProtocolError(Error.MALFORMED_HELLO, f"device {name}: vector mode {fields['mode']} is not 0 or 1")
    return Need(name, fields["vectors"], VectorMode(fields["mode"]))


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
            "length": wire.REPLY.sizeof() + len(text) + len(self.boot_info),
            "error": self.error,
            "fds": self.fds,
            "text_length": len(text),
            "boot_length": len(self.boot_info),
        }
        return build(wire.REPLY, head) + text + self.boot_info


def parse_reply_untrusted(data: bytes) -> Reply:
    """The back's answer. Raises RemoteProtocolError (op_failed) when it is none."""
    size = wire.REPLY.sizeof()
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
