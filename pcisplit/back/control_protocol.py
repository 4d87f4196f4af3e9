# SPDX-License-Identifier: MIT
"""The control protocol, sans-IO: one JSON object a line, both ways. docs/control.md is its page.

{"pcisplit": 1, "id": 7, "do": "dump", "name": "nic0"}
{"pcisplit": 1, "id": 7, "ok": true, "result": {...}}
{"pcisplit": 1, "id": 7, "ok": false, "error": {"code": "unknown_device", "text": "..."}}
"""

import dataclasses
import enum
import json
from collections.abc import Mapping
from typing import Any, NamedTuple, NoReturn

from pcisplit import pci
from pcisplit.proto.errors import PcisplitError

VERSION = 1
REQUEST_MAX = 64 << 10  #: octets of a request's line, its newline included
ANSWER_MAX = 1 << 20  #: octets of an answer's line: a list of thousands of sessions fits
_ID_MAX = 256  # characters of an id that is text
_SHOWN = 40  # characters of what a client wrote that an error repeats

Id = str | int | float | bool | None


class Code(enum.StrEnum):
    """What went wrong, for programs. A client must expect codes that it does not know."""

    MALFORMED = "malformed"  #: the line is no JSON object, or a field has the wrong type
    TOO_LONG = "too_long"  #: the line or the answer is longer than a line may be
    UNKNOWN_VERSION = "unknown_version"
    UNKNOWN_COMMAND = "unknown_command"
    BAD_ARGUMENT = "bad_argument"
    UNKNOWN_DEVICE = "unknown_device"
    WRONG_STATE = "wrong_state"  #: not in this state of the device: attach of one that is not detached
    TOO_MANY_CLIENTS = "too_many_clients"
    TIMEOUT = "timeout"
    FAILED = "failed"  #: tried and refused by the device, the kernel or a process of ours
    INTERNAL = "internal"  #: a bug


class ControlError(PcisplitError):
    """A request that is refused. `code` is a :class:`Code` or a newer backend's; the text says what to do next.

    `id` is the request's, where it could be read.
    """

    def __init__(self, code: str, text: str, id: Id = None) -> None:
        super().__init__(text)
        self.code, self.text, self.id = code, text, id


class Argument(NamedTuple):
    kind: type
    default: str | bool | None = None
    required: bool = False


class Command(NamedTuple):
    arguments: Mapping[str, Argument]
    seconds: float  #: the backend's deadline for it


_DEVICE = Argument(str, required=True)

COMMANDS: Mapping[str, Command] = {
    "list": Command({}, 10),
    "dump": Command({"name": _DEVICE, "hardware": Argument(bool, False)}, 10),
    "stats": Command({"name": Argument(str)}, 10),
    "detach": Command({"name": _DEVICE}, 60),
    "attach": Command({"name": _DEVICE}, 60),
}


@dataclasses.dataclass(frozen=True, slots=True)
class ControlRequest:
    """One request. `arguments` has every argument of the command, defaults filled in."""

    do: str
    arguments: dict[str, Any] = dataclasses.field(default_factory=dict)
    id: Id = None

    def to_bytes(self) -> bytes:
        return _line({"pcisplit": VERSION, "id": self.id, "do": self.do, **self.arguments})


class Lines:
    """Cuts octets into lines of at most `most` octets; holds at most that and what one ``feed`` brought."""

    def __init__(self, most: int) -> None:
        self._most, self._buffer, self._searched = most, bytearray(), 0

    def feed(self, data: bytes) -> None:
        self._buffer += data

    def next_line(self) -> bytes | None:
        """The next whole line without its newline, or None. Raises ControlError when it is too long: then hang up."""
        end = self._buffer.find(b"\n", self._searched)
        if (len(self._buffer) if end < 0 else end) >= self._most:
            raise ControlError(Code.TOO_LONG, f"a line is at most {self._most} octets; nothing after it is read")
        if end < 0:
            self._searched = len(self._buffer)
            return None
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        self._searched = 0
        return line


# -- requests -----------------------------------------------------------------------------------------------------


def parse_request_untrusted(line: bytes) -> ControlRequest:
    """A client's line. Raises ControlError, with the request's id where there is one."""
    fields = _object_untrusted(line, "a request")
    ident = fields.pop("id", None)
    if not isinstance(ident, Id) or (isinstance(ident, str) and len(ident) > _ID_MAX):
        raise ControlError(Code.MALFORMED, f"id is a number, null, or a text of at most {_ID_MAX} characters")
    try:
        return ControlRequest(*_command(fields), ident)
    except ControlError as problem:
        problem.id = ident
        raise


def _command(fields: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The command and its arguments."""
    version, do = fields.pop("pcisplit", None), fields.pop("do", None)
    if type(version) is not int:
        raise ControlError(
            Code.MALFORMED, f'a request has the version of this protocol in it: {{"pcisplit": {VERSION}, ...}}'
        )
    if version != VERSION:
        text = f"this backend speaks version {VERSION} of the control protocol, not {shown(version)}"
        raise ControlError(Code.UNKNOWN_VERSION, f"{text}; use the pcisplit that it was started with")
    if not isinstance(do, str):
        raise ControlError(Code.MALFORMED, 'a request says what to do: {"do": "list", ...}')
    command = COMMANDS.get(do)
    if command is None:
        raise ControlError(Code.UNKNOWN_COMMAND, f"there is no command {shown(do)}; there are {', '.join(COMMANDS)}")
    unknown = next(iter(fields.keys() - command.arguments.keys()), None)
    if unknown is not None:
        takes = ", ".join(command.arguments) or "no arguments"
        raise ControlError(Code.BAD_ARGUMENT, f"{do} has no argument {shown(unknown)}; it takes {takes}")
    return do, {name: _argument(do, name, argument, fields) for name, argument in command.arguments.items()}


def _argument(do: str, name: str, argument: Argument, fields: Mapping[str, Any]) -> str | bool | None:
    value = fields.get(name)
    if value is None and argument.required:
        raise ControlError(Code.BAD_ARGUMENT, f"{do} needs {name}, such as nic0; list tells which there are")
    if value is None:
        return argument.default
    if not isinstance(value, argument.kind):
        wanted = "true or false" if argument.kind is bool else "a text"
        raise ControlError(Code.BAD_ARGUMENT, f"{name} of {do} is {wanted}, not {shown(value)}")
    assert isinstance(value, str | bool)
    if isinstance(value, str) and not pci.is_device_name(value):
        raise ControlError(Code.UNKNOWN_DEVICE, f"{shown(value)} cannot name a device; list tells which there are")
    return value


# -- answers ------------------------------------------------------------------------------------------------------


def answer(id: Id, result: Mapping[str, Any]) -> bytes:
    """The line of a success. Raises ControlError when it would be too long, TypeError or ValueError for what JSON has not."""
    line = _line({"pcisplit": VERSION, "id": id, "ok": True, "result": result})
    if len(line) > ANSWER_MAX:
        text = f"the answer has {len(line)} octets, a line at most {ANSWER_MAX}; ask about one device"
        raise ControlError(Code.TOO_LONG, text, id)
    return line


def refusal(problem: ControlError) -> bytes:
    """The line of a failure."""
    error = {"code": str(problem.code), "text": problem.text}
    return _line({"pcisplit": VERSION, "id": problem.id, "ok": False, "error": error})


def parse_answer_untrusted(line: bytes, id: Id) -> dict[str, Any]:
    """The result in a backend's line, the answer to request `id`. Raises ControlError: the backend's own, or MALFORMED."""
    fields = _object_untrusted(line, "an answer")
    version, ok, result, error = (fields.get(key) for key in ("pcisplit", "ok", "result", "error"))
    if type(version) is not int or version != VERSION:
        text = f"the backend answers in version {shown(version)} of the control protocol, this is version {VERSION}"
        raise ControlError(Code.UNKNOWN_VERSION, f"{text}; use the pcisplit that it was started with")
    if ok is True and isinstance(result, dict) and fields.get("id") == id:
        return result
    if ok is False and isinstance(error, dict):
        code, said = error.get("code"), error.get("text")
        if isinstance(code, str) and isinstance(said, str):
            raise ControlError(code, said, id)
    raise ControlError(Code.MALFORMED, "the backend's answer is none to what was asked")


# -- JSON ---------------------------------------------------------------------------------------------------------


def shown(value: object) -> str:
    """A value that somebody else wrote, as an error repeats it: short, and still to be escaped where it is printed."""
    text = (
        repr(value) if isinstance(value, str) else json.dumps(value) if isinstance(value, Id) else "a list or an object"
    )
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


def _line(value: Mapping[str, Any]) -> bytes:
    """ASCII whatever the texts in it hold: a newline or a terminal's escape is \\u00.. in a line."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode("ascii") + b"\n"


def _object_untrusted(line: bytes, what: str) -> dict[str, Any]:
    try:
        value = json.loads(line.decode("utf-8"), parse_constant=_no_constant, parse_float=_finite)
    except (ValueError, RecursionError):  # not UTF-8, not JSON, a number beyond sense, nested beyond sense
        value = None
    if not isinstance(value, dict):
        raise ControlError(Code.MALFORMED, f"{what} is one JSON object a line, in UTF-8")
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _finite(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"{text} is beyond a double")
    return value
