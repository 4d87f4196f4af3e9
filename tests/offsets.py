# SPDX-License-Identifier: MIT
"""Where the fields of a record are, for tests that read and write shared memory by themselves."""

from typing import Any

from pcisplit.wire import FRONT_HEADER


def offset_of(name: str, record: Any = FRONT_HEADER) -> int:
    """Octets from the start of a record, the front's header by default, to a field. KeyError."""
    at = 0
    for field in record.subcons:
        if field.name == name:
            return at
        at += int(field.sizeof())
    raise KeyError(name)
