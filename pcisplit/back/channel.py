# SPDX-License-Identifier: MIT
"""How the backend's own processes talk: JSON messages with descriptors beside them, over a SOCK_SEQPACKET pair.

Four forms, told apart by their keys:

    {"do": NAME, "id": N, ...}     a request; descriptors may come with it
    {"id": N, "ok": {...}}         its answer; descriptors may come with it
    {"id": N, "error": CODE, "text": SENTENCE}
    {"tell": NAME, ...}            wants no answer

A worker is the one process that an enemy may take over, so the supervisor parses every message as hostile: one message is at
most MESSAGE_MAX octets, and what is not one of these forms ends the channel. Workers send by send(2), which cannot carry
descriptors; their system call filter has no other way (``worker.jail``).
"""

import array
import contextlib
import json
import os
import socket
from collections.abc import Mapping, Sequence
from typing import Any

from pcisplit.proto.errors import DeviceError, PcisplitError, known_error
from pcisplit.wire import Error

MESSAGE_MAX = 128 << 10
FDS_MAX = 253  #: SCM_MAX_FD of include/net/scm.h

Message = dict[str, Any]


class ChannelError(PcisplitError):
    """The other process said something that is no message."""


class ChannelClosed(PcisplitError):
    """The other process is gone, or has let go of the channel."""


def pack(message: Mapping[str, Any]) -> bytes:
    """One message as octets. ValueError if it is longer than a message may be."""
    data = json.dumps(message, separators=(",", ":")).encode()
    if len(data) > MESSAGE_MAX:
        raise ValueError(f"a message of {len(data)} octets; at most {MESSAGE_MAX}")
    return data


def unpack_untrusted(data: bytes) -> Message:
    """One message. Raises ChannelError for anything else."""
    if len(data) > MESSAGE_MAX:
        raise ChannelError(f"longer than {MESSAGE_MAX} octets")
    try:
        message = json.loads(data)
    except (ValueError, RecursionError) as problem:
        raise ChannelError(f"not JSON: {problem}") from None
    if not isinstance(message, dict):
        raise ChannelError("not an object")
    forms = [form for form in ("do", "ok", "error", "tell") if form in message]
    ident = message.get("id")
    if len(forms) != 1 or (forms != ["tell"] and (type(ident) is not int or not 0 <= ident < 1 << 53)):
        raise ChannelError("neither a request nor an answer nor news")
    kinds = {"do": str, "tell": str, "ok": dict, "error": int}
    form = forms[0]
    if type(message[form]) is not kinds[form] or (form == "error" and not isinstance(message.get("text"), str)):
        raise ChannelError(f"{form!r} is of a wrong type")
    return message


def request(ident: int, do: str, **arguments: Any) -> Message:
    return {"do": do, "id": ident, **arguments}


def answer(ident: int, **result: Any) -> Message:
    return {"id": ident, "ok": result}


def failure(ident: int, code: int, text: str) -> Message:
    return {"id": ident, "error": int(code), "text": text[:1000]}


def result_of(message: Message) -> dict[str, Any]:
    """What an answer brought. Raises DeviceError with the other side's code and sentence."""
    if "error" in message:
        raise DeviceError(known_error(message["error"] or Error.OP_FAILED), message["text"])  # success is no error
    result: dict[str, Any] = message["ok"]
    return result


def rights(fds: Sequence[int]) -> list[tuple[int, int, bytes]]:
    """The ancillary data that carries `fds`, or none."""
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds).tobytes())] if fds else []


def received_fds(ancillary: Sequence[tuple[int, int, bytes]]) -> list[int]:
    """The descriptors of received ancillary data."""
    fds = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    return list(fds)


def close_all(fds: Sequence[int]) -> None:
    """Close descriptors that nobody will use."""
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)


def make_pair() -> tuple[socket.socket, socket.socket]:
    """Two ends, close-on-exec, with room for the longest message."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in ends:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * MESSAGE_MAX)
    return ends


class Channel:
    """One end, blocking: for processes without an event loop. Sending is safe from any thread, receiving from one."""

    SEND_SECONDS = 5.0  #: the supervisor reads all the time; if it does not, it is gone or wrong

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        seconds = int(self.SEND_SECONDS).to_bytes(8, "little") + bytes(8)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, seconds)

    def send(self, message: Mapping[str, Any], fds: Sequence[int] = ()) -> None:
        """Raises ChannelClosed."""
        data = pack(message)
        try:
            if fds:
                self._end.sendmsg([data], rights(fds))
            else:
                self._end.send(data)
        except OSError as problem:
            raise ChannelClosed(f"sending: {problem}") from None

    def recv(self) -> tuple[Message, list[int]]:
        """The next message and the descriptors beside it. Raises ChannelClosed, ChannelError."""
        try:
            data, ancillary, _, _ = self._end.recvmsg(
                MESSAGE_MAX + 1, socket.CMSG_SPACE(4 * FDS_MAX), socket.MSG_CMSG_CLOEXEC
            )
        except OSError as problem:
            raise ChannelClosed(f"receiving: {problem}") from None
        fds = received_fds(ancillary)
        if not data:
            close_all(fds)
            raise ChannelClosed("the other process has closed the channel")
        try:
            return unpack_untrusted(data), fds
        except ChannelError:
            close_all(fds)
            raise

    def fileno(self) -> int:
        return self._end.fileno()

    def close(self) -> None:
        self._end.close()
