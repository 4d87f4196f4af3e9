# SPDX-License-Identifier: MIT
"""One error table, and the exceptions made from it.

An :class:`Error` number is what crosses the wire; ``ERRORS`` gives each its sentence and says whether the same request
may succeed when tried again [ERR-1]. Exceptions carry what was asked, where, and what to do next.
"""

from typing import NamedTuple

from pcisplit.wire import Error
from pcisplit.wire.rules import rule_name


class Meaning(NamedTuple):
    sentence: str
    retry: bool  #: may the same request succeed later, with nothing else changed?


ERRORS: dict[Error, Meaning] = {
    Error.SUCCESS: Meaning("done", False),
    Error.DEV_NOT_FOUND: Meaning("the session has no such device", False),
    Error.INVALID_OFFSET: Meaning("the access does not lie within the space it names", False),
    Error.ACCESS_DENIED: Meaning("this peer may not have this device or this mode", False),
    Error.NOT_IMPLEMENTED: Meaning("the back does not know or has not built this operation", False),
    Error.OP_FAILED: Meaning("the device or the kernel refused the operation", True),
    Error.TIMEOUT: Meaning("no answer came in time; the operation may still happen", True),
    Error.UNALIGNED: Meaning("the offset is not a multiple of the width", False),
    Error.BAD_SIZE: Meaning("the width or length is not one that this access can have", False),
    Error.DENIED: Meaning("a rule of the policy refuses this access", False),
    Error.DECODE_DISABLED: Meaning("memory or I/O decode is off: set MEM or IO in COMMAND first", False),
    Error.RESETTING: Meaning("the device is being reset", True),
    Error.STALE: Meaning("the request is of an old generation: acquire the device anew", False),
    Error.BUSY: Meaning("the thing asked for is in use or already on", False),
    Error.GONE: Meaning("the device or the peer is gone", False),
    Error.QUOTA: Meaning("too many of these operations in too short a time", True),
    Error.BAD_REQUEST: Meaning("the request breaks the rules of the protocol", False),
    Error.FAULTED: Meaning("the access to the device faulted", True),
    Error.NO_RESET: Meaning("the device has no reset", False),
    Error.RING_OVERRUN: Meaning("a ring index is further ahead than the ring is long", False),
    Error.MALFORMED_HELLO: Meaning("the hello does not parse", False),
    Error.WRONG_VERSION: Meaning("the peers speak different major versions", False),
    Error.UNKNOWN_FEATURE: Meaning("a required feature is not built here", False),
    Error.UNKNOWN_DEVICE: Meaning("no device of this name is served", False),
    Error.DEVICE_TAKEN: Meaning("another session has the device", True),
    Error.DMA_TOO_LARGE: Meaning("more DMA memory was asked for than serve was given", False),
    Error.DMA_UNREACHABLE: Meaning("no window fits the address bits and the IOMMU's ranges", False),
    Error.TOO_MANY_VECTORS: Meaning("the device does not have that many vectors", False),
    Error.QUARANTINED: Meaning("the device was not reset after its last session", False),
    Error.TOO_MANY_SESSIONS: Meaning("this user holds as many sessions as are allowed", True),
    Error.DEVICE_FAILED: Meaning("the device could not be opened", True),
}


def error_name(code: int) -> str:
    """The name of a wire code, as the specification spells it: ``decode_disabled``; ``error -99`` if unknown."""
    try:
        return Error(code).name.lower()
    except ValueError:
        return f"error {code}"


def known_error(code: int) -> Error:
    """The code as an :class:`Error`; a number that is not in the table becomes OP_FAILED [ERR-1]."""
    try:
        return Error(code)
    except ValueError:
        return Error.OP_FAILED


class PcisplitError(Exception):
    """Base of everything pcisplit raises on purpose."""


class ProtocolError(PcisplitError):
    """Octets that break the specification. ``code`` is the wire code to answer them with."""

    def __init__(self, code: Error, message: str) -> None:
        super().__init__(message)
        self.code = code


class LocalProtocolError(ProtocolError):
    """We were about to break the rules: a bug in the caller."""


class RemoteProtocolError(ProtocolError):
    """The peer broke the rules."""


class MeetingRefused(PcisplitError):
    """The back gave no session. ``code`` says why, the text what to change [MEET-9]."""

    def __init__(self, code: Error, sentence: str) -> None:
        super().__init__(f"{error_name(code)}: {sentence}")
        self.code = code
        self.sentence = sentence


class SessionGone(PcisplitError):
    """The session ended under us. ``reason`` is why: SUCCESS if it was closed in order, OP_FAILED if the back died [LIFE-31].

    Where the frontend knows more than the table, ``sentence`` stands for the table's.
    """

    def __init__(self, reason: Error, sentence: str = "") -> None:
        said = "the backend ended it" if reason is Error.SUCCESS else f"{error_name(reason)}: {ERRORS[reason].sentence}"
        super().__init__(f"the session is gone: {sentence or said}; connect again")
        self.reason = reason


class BusyError(PcisplitError):
    """Something of a session is in use: another thread is inside it, or its DMA memory is still held. The text says which."""


class AccessError(PcisplitError):
    """An operation on a device was answered with an error.

    ``code`` is the wire code, ``rule`` the id of the rule that refused (0 if none), ``detail`` its further number,
    ``where`` what was asked. ``retry`` says whether the same request may succeed later. Where the frontend knows more than
    the table, ``sentence`` stands for the table's, and a retry does not help.
    """

    def __init__(self, code: Error, where: str, rule: int = 0, detail: int = 0, sentence: str = "") -> None:
        self.retry = ERRORS[code].retry and not sentence
        by = f" by rule {rule_name(rule)}, octet {detail:#x}" if rule else ""
        again = "; trying again may help" if self.retry else ""
        super().__init__(f"{where}: {error_name(code)}{by}: {sentence or ERRORS[code].sentence}{again}")
        self.code = code
        self.rule = rule
        self.detail = detail
        self.where = where


class AccessTimeout(AccessError):
    """No answer before the deadline. The operation may still happen; its late answer is dropped and counted."""


class DeviceError(PcisplitError):
    """The hardware or the kernel said no, in the backend. ``code`` is what the front is told."""

    def __init__(self, code: Error, message: str, rule: int = 0) -> None:
        super().__init__(message)
        self.code = code
        self.rule = rule
