# SPDX-License-Identifier: MIT
"""Types of options: sizes, microseconds, users, ranges of uids. What is wrong is said with an example of what is right."""

import math
from typing import Any, NamedTuple

import click

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_SPIN_MOST = 1e6
_NOBODY = 65534  # whoever has no uid of his own; the kernel's overflow uid
_UID_MOST = (1 << 32) - 2  # -1 means "leave it as it is" to setuid


class User(NamedTuple):
    uid: int
    gid: int


class Size(click.ParamType[int]):
    """Octets, with K, M or G for powers of 1024."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        text = str(value).strip().upper().removesuffix("IB").removesuffix("B")
        unit = text[-1:] if text[-1:] in _UNITS else ""
        try:
            return int(text.removesuffix(unit)) * _UNITS[unit]
        except ValueError:
            self.fail(f"{value!r} is not a size; write octets, or 64K, 16M, 1G", param, ctx)


class Spin(click.ParamType[float]):
    """Microseconds, from 0 to a second."""

    name = "microseconds"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not 0 <= number <= _SPIN_MOST:  # not a number compares false
            self.fail(
                f"{value!r} is not from 0 (sleep at once) to {_SPIN_MOST:.0f} microseconds; 50 is usual", param, ctx
            )
        return number


class WorkerUser(click.ParamType[User]):
    """A user by name or uid, with his group; a uid that has no name gets the gid of the same number."""

    name = "user"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> User:
        import pwd

        if isinstance(value, User):
            return value
        text = str(value)
        try:
            entry = pwd.getpwuid(int(text)) if _is_number(text) else pwd.getpwnam(text)
            user = User(entry.pw_uid, entry.pw_gid)
        except (KeyError, OverflowError):
            if not _is_number(text):
                self.fail(f"there is no user {text!r}; make one (adduser --system {text}) or give a uid", param, ctx)
            user = User(int(text), int(text))
        problem = _unfit(user.uid)
        if problem:
            self.fail(f"{text}: {problem}", param, ctx)
        return user


class UidRange(click.ParamType[range]):
    """``A-B``: the uids from A to B, both included."""

    name = "uids"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> range:
        if isinstance(value, range):
            return value
        first, dash, last = str(value).partition("-")
        if not (dash and _is_number(first) and _is_number(last) and int(first) <= int(last)):
            self.fail(f"{value!r} is not a range of uids; write first and last, such as 70000-70063", param, ctx)
        uids = range(int(first), int(last) + 1)
        problem = _unfit(uids[0]) or (_unfit(_NOBODY) if _NOBODY in uids else "") or _unfit(uids[-1])
        if problem:
            self.fail(f"{value}: {problem}", param, ctx)
        return uids


def _is_number(text: str) -> bool:
    """Decimal, and short enough to be a uid or wrong."""
    return text.isascii() and text.isdecimal() and len(text) <= 20


def _unfit(uid: int) -> str:
    """Why no worker may have this uid, or empty."""
    if uid == 0:
        return "0 is root, and a worker is what a front may break into; give it a uid of its own"
    if uid == _NOBODY:
        return f"{_NOBODY} is nobody, which others share; give workers uids that nothing else has"
    return f"{uid} is no uid; the last one is {_UID_MOST}" if uid > _UID_MOST else ""
