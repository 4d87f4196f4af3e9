# SPDX-License-Identifier: MIT
"""What every parser of a peer's octets needs. Sans-IO."""

from typing import Any

from pcisplit import pci, wire
from pcisplit.proto.errors import RemoteProtocolError
from pcisplit.wire import Error, Record


def parse_untrusted(record: Record, data: bytes, what: str, code: Error) -> dict[str, Any]:
    """`data` as the fields of a wire record; RemoteProtocolError with `code` if it is not one."""
    try:
        return record.parse(data)
    except wire.ParseError as problem:
        raise RemoteProtocolError(code, f"{what}: {problem}") from None


def pad_name(name: str) -> bytes:
    return name.encode().ljust(wire.NAME_MAX + 1, b"\0")


def name_untrusted(raw: bytes, code: Error, what: str) -> str:
    """The device name in a NUL-padded field; RemoteProtocolError if it is not one."""
    text = raw.rstrip(b"\0").decode("ascii", "replace")
    if not pci.is_device_name(text):
        raise RemoteProtocolError(code, f"{what} {text!r} is not a name: [A-Za-z0-9]{{1,67}}, padded with NUL")
    return text


def number(data: bytes, at: int, size: int) -> int:
    """The unsigned number of `size` octets at `at`."""
    return int.from_bytes(data[at : at + size], "little")
