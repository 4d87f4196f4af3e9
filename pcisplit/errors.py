# SPDX-License-Identifier: MIT
"""What calls raise and what it means, for users: the table and exceptions of ``proto/errors.py``."""

from pcisplit.proto.errors import (
    ERRORS,
    AccessError,
    AccessTimeout,
    BusyError,
    DeviceError,
    MeetingRefused,
    PcisplitError,
    ProtocolError,
    RemoteProtocolError,
    SessionGone,
    error_name,
)

__all__ = [
    "ERRORS",
    "AccessError",
    "AccessTimeout",
    "BusyError",
    "DeviceError",
    "MeetingRefused",
    "PcisplitError",
    "ProtocolError",
    "RemoteProtocolError",
    "SessionGone",
    "error_name",
]
