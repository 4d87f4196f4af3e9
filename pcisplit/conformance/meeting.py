# SPDX-License-Identifier: MIT
"""Hello and reply by hand, so that a case can break any octet of them; see :mod:`pcisplit.conformance.octets`."""

import struct
from typing import Any, NamedTuple

from pcisplit import wire
from pcisplit.conformance.case import expect
from pcisplit.conformance.octets import U64
from pcisplit.wire import Error, HelloKind, VectorMode

NAME_FIELD = 68

_HELLO = struct.Struct("<IHHIHBBQQQ68s20s")
_HELLO_DEVICE = struct.Struct("<HH68sHHHH16s")
_HELLO_GRANT = struct.Struct("<HHHBBQQIBB2s")
_HELLO_MEMORY = struct.Struct("<HHHHQQQ")
_REPLY = struct.Struct("<IHHIhHII8s")
REPLY_SIZE = _REPLY.size


class Want(NamedTuple):
    """One device record of a hello, legal or not."""

    name: bytes
    msi: int = 0
    mode: int = VectorMode.RELAYED
    msix: int = 0
    intx: int = 0
    reserved: bytes = b""
    length: int = _HELLO_DEVICE.size

    def build(self) -> bytes:
        head = (HelloKind.DEVICE, self.length, self.name, self.intx, self.msi, self.msix, self.mode)
        return _HELLO_DEVICE.pack(*head, self.reserved)


def want_grant(*, flags: int = 0, device: int = 0, bar: int = 0, pages: int = 1, kind: int = 2) -> bytes:
    """A grant record of a hello."""
    return _HELLO_GRANT.pack(HelloKind.GRANT, _HELLO_GRANT.size, device, bar, flags, 0, 0, pages, kind, 0, b"")


def bring_memory(*, fd: int = 0, flags: int = 0) -> bytes:
    """A memory record of a hello."""
    return _HELLO_MEMORY.pack(HelloKind.MEMORY, _HELLO_MEMORY.size, fd, flags, 0, 4096, U64)


def strange(kind: int, length: int) -> bytes:
    """A record of a kind that nobody knows, full of ones."""
    return struct.pack("<HH", kind, length) + b"\xff" * (length - 4)


def hello(*records: Want | bytes, **fields: Any) -> bytes:
    """The octets of a hello with `records`; any field of its header can be given another value."""
    tail = b"".join(record if isinstance(record, bytes) else record.build() for record in records)
    head: dict[str, Any] = {
        "magic": wire.HELLO_MAGIC,
        "major": wire.MAJOR,
        "minor": wire.MINOR,
        "length": _HELLO.size + len(tail),
        "records": len(records),
        "dma_bits": 64,
        "zero": 0,
        "features": int(wire.BUILT),
        "required": 0,
        "dma_bytes": 0,
        "driver": b"conformance",
        "reserved": b"",
    }
    if not fields.keys() <= head.keys():
        raise TypeError(f"a hello has no field {sorted(fields.keys() - head.keys())}")
    return _HELLO.pack(*(head | fields).values()) + tail


class Wish(NamedTuple):
    """A hello as a back reads it; `names` of the devices, with the MSI vectors of each."""

    features: int
    names: tuple[bytes, ...]
    msi: tuple[int, ...]
    dma_bytes: int

    @classmethod
    def parse(cls, octets: bytes) -> "Wish":
        expect(_HELLO.size <= len(octets) <= wire.HELLO_MAX, "a hello of 128 to 4096 octets", f"{len(octets)} octets")
        magic, major, _, length, count, bits, zero, features, required, dma, _, reserved = _HELLO.unpack(octets[:128])
        expect(magic == wire.HELLO_MAGIC and major == wire.MAJOR, "the magic and major of a hello", octets[:8].hex(" "))
        expect(length == len(octets), f"length {len(octets)} in the hello", str(length))
        expect(not zero and not any(reserved), "zeros in the reserved octets of a hello", octets[:128].hex(" "))
        expect(12 <= bits <= 64 and not required & ~features, "dma_bits 12 to 64, required in features", str(bits))
        devices, at = [], _HELLO.size
        for _ in range(count):
            expect(at + 8 <= len(octets), f"{count} records in the hello", "fewer")
            kind, size = struct.unpack_from("<HH", octets, at)
            expect(at + size <= len(octets), f"a record of {size} octets in the hello", "fewer octets")
            expect(size >= 8 and not size % 8, "a record length that is a multiple of 8", str(size))
            if kind == HelloKind.DEVICE:
                _, _, name, _, msi, _, mode, reserved = _HELLO_DEVICE.unpack_from(octets, at)
                expect(not any(reserved) and mode <= 1, "zeros in a device record", octets[at : at + size].hex(" "))
                devices.append((name.rstrip(b"\0"), msi))
            at += size
        expect(at == len(octets), f"{count} records that fill the hello", f"{len(octets) - at} octets more")
        return cls(features, tuple(name for name, _ in devices), tuple(msi for _, msi in devices), dma)


class Said(NamedTuple):
    """A reply: a refusal (`error`, `text`) or a session (`boot_info`, `fds` descriptors beside it)."""

    error: int
    text: str
    boot_info: bytes
    fds: int
    minor: int

    @classmethod
    def parse(cls, octets: bytes) -> "Said":
        expect(len(octets) >= _REPLY.size, "a reply of at least 32 octets", f"{len(octets)} octets")
        expect(len(octets) <= wire.REPLY_MAX, f"a reply of at most {wire.REPLY_MAX} octets", f"{len(octets)}")
        magic, major, minor, length, error, fds, text, boot, reserved = _REPLY.unpack(octets[: _REPLY.size])
        expect(magic == wire.REPLY_MAGIC and major == wire.MAJOR, "the magic and major of a reply", octets[:8].hex(" "))
        whole = length == len(octets) == _REPLY.size + text + boot
        expect(whole, "a reply as long as it says", f"{len(octets)}: {length}, {text} + {boot}")
        expect(not any(reserved), "zeros in the reserved octets of a reply", reserved.hex(" "))
        expect(error in Error.__members__.values(), "an error of the table in a reply", str(error))
        expect(bool(error) != bool(boot), "a refusal or a session", f"error {error}, {boot} octets of boot-info")
        expect(text <= wire.REPLY_TEXT_MAX, f"a sentence of at most {wire.REPLY_TEXT_MAX} octets", str(text))
        middle = _REPLY.size + text
        return cls(error, octets[_REPLY.size : middle].decode("utf-8", "replace"), octets[middle:], fds, minor)

    def build(self) -> bytes:
        text = self.text.encode()
        length = _REPLY.size + len(text) + len(self.boot_info)
        head = (wire.REPLY_MAGIC, wire.MAJOR, self.minor, length, self.error, self.fds, len(text), len(self.boot_info))
        return _REPLY.pack(*head, b"") + text + self.boot_info
