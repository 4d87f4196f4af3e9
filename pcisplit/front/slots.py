# SPDX-License-Identifier: MIT
"""Slots to and from octets as a front sees them.

What the back wrote is shown as it is: reserved octets and flags that are not zero spoil no batch of answers and no trace. The
C frontend has looked at them and turned such an answer into ``op_failed`` [THR-32].
"""

import struct
from typing import TypeVar

from pcisplit.proto.octets import number
from pcisplit.proto.slots import Event, Request, Response

Slot = TypeVar("Slot", bound=Request | Response | Event)


def pack(request: Request) -> bytes:
    """A request as it goes into the ring. Raises ValueError for a number that its field cannot hold."""
    try:
        return request.to_bytes()
    except struct.error as problem:
        raise ValueError(f"{request!r} does not fit its slot: {problem}") from None


def unpack_untrusted(kind: type[Slot], octets: bytes) -> Slot:
    """A slot of this kind, whatever its reserved octets are. 64 octets; never raises."""
    return kind(**kind.RECORD(number(octets, 0, 2)).parse(octets, strict=False))
