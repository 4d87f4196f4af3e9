# SPDX-License-Identifier: MIT
"""Where the fields of a record are, for tests that read and write shared memory by themselves."""

from pcisplit.wire import FRONT_HEADER, Record


def offset_of(name: str, record: Record = FRONT_HEADER) -> int:
    """Octets from the start of a record, the front's header by default, to a field. KeyError."""
    found = [at for field, at in record.places if field.name == name]
    if not found:
        raise KeyError(name)
    return found[0]


def published(octets: bytes, number: int) -> bytes:
    """A slot as it is in the ring: with the sequence of slot `number` of the ring's life."""
    return octets[:60] + (number + 1 & 0xFFFFFFFF).to_bytes(4, "little")
