# SPDX-License-Identifier: MIT
"""Slots to and from octets where there are many of them: by ``struct``, in formats made from the wire's own records.

Describing a record with construct costs some 10 us a slot, this less than one. And what the back wrote is shown as it is:
reserved octets and flags that are not zero spoil no batch of answers and no trace. The C frontend has looked at them and
turned such an answer into ``op_failed`` [THR-32].
"""

import dataclasses
import struct
from typing import Any, TypeVar

from pcisplit import wire
from pcisplit.messages import Event, Request, Response


def _format(record: Any, names: set[str]) -> struct.Struct:
    """The format of a slot: its fields with these names, padding for the others."""
    codes = []
    for sub in record.subcons:
        inner = sub.subcon
        while not hasattr(inner, "fmtstr") and hasattr(inner, "subcon"):
            inner = inner.subcon
        codes.append(inner.fmtstr[-1] if sub.name in names else f"{sub.sizeof()}x")
    made = struct.Struct("<" + "".join(codes))
    assert made.size == wire.SLOT_SIZE
    return made


def _layout(kind: type[Request] | type[Response] | type[Event]) -> tuple[struct.Struct, tuple[str, ...]]:
    names = {field.name for field in dataclasses.fields(kind)}
    return _format(kind.RECORD, names), tuple(sub.name for sub in kind.RECORD.subcons if sub.name in names)


Slot = TypeVar("Slot", bound=Request | Response | Event)

_LAYOUTS: dict[type[Any], tuple[struct.Struct, tuple[str, ...]]] = {
    kind: _layout(kind) for kind in (Request, Response, Event)
}


def pack(request: Request) -> bytes:
    """A request as it goes into the ring. Raises ValueError for a number that its field cannot hold."""
    layout, names = _LAYOUTS[Request]
    try:
        return layout.pack(*(getattr(request, name) for name in names))
    except struct.error as problem:
        raise ValueError(f"{request!r} does not fit its slot: {problem}") from None


def unpack_untrusted(kind: type[Slot], octets: bytes) -> Slot:
    """A slot of this kind, whatever its reserved octets are. 64 octets; never raises."""
    layout, names = _LAYOUTS[kind]
    return kind(**dict(zip(names, layout.unpack(octets), strict=True)))
