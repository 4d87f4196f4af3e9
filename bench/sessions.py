# SPDX-License-Identifier: MIT
"""Rows 12 to 14: how long a session takes to open and close, and how much memory sessions and what serves them take."""

import os
import pwd
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from backend import Backend, pss
from children import forked
from report import Result

from pcisplit import front

OPENINGS, WARM_UP = 60, 5
OPEN_TARGET = 20.0  #: ms
PSS_TARGET = 8.0  #: MiB
IDLE = 16  #: sessions, all that a uid may have
UIDS = 4  #: of the fronts of the 64 sessions


def opening(scale: float) -> list[Result]:
    """Row 12: connect() to close() returning, of a session with one model:ram. Raises BenchError."""
    opened, closed = [], []
    with Backend() as backend:
        for _ in range(WARM_UP + max(int(OPENINGS * scale), 5)):
            backend.wait_sessions(0)
            backend.wait_asleep()
            start = time.perf_counter()
            session = front.connect(backend.path, devices=["ram0"], driver="bench")
            between = time.perf_counter()
            session.close()
            end = time.perf_counter()
            opened.append(1e3 * (between - start))
            closed.append(1e3 * (end - between))
    opened, closed = opened[WARM_UP:], closed[WARM_UP:]
    both = [sum(pair) for pair in zip(opened, closed, strict=True)]
    return [
        _spread("12", "session open + close, Python", both, "ms", OPEN_TARGET),
        _spread("", "  open", opened, "ms"),
        _spread("", "  close", closed, "ms"),
    ]


def workers() -> list[Result]:
    """Row 13: the proportional set size of workers."""
    name = f"PSS of a worker, {IDLE} idle sessions"
    if os.geteuid() != 0:
        return [Result("13", name, skipped="needs root, who may look into workers")]
    with Backend(devices=IDLE) as backend, forked([_idle(backend.path, range(IDLE))]):
        backend.wait_sessions(IDLE)  # sealers, which are not counted, have gone
        backend.wait_asleep()
        sizes = [pss(pid) for pid in backend.workers()]
    return [_spread("13", name, sizes, "MiB", PSS_TARGET)]


def supervisor() -> list[Result]:
    """Row 14: the proportional set sizes of supervisor and zygote, with one session and with all that four uids may have."""
    if os.geteuid() != 0:
        return [Result("14", "PSS of the supervisor", skipped="needs root, to have fronts of several uids")]
    uids, found = _free_ids(UIDS), []
    with Backend(devices=UIDS * IDLE, uids=uids, gid=uids[0]) as backend:
        for uses, each in ((uids[:1], 1), (uids, IDLE)):
            backend.wait_sessions(0)
            devices = [range(IDLE * at, IDLE * at + each) for at in range(len(uses))]
            prepares = [_idle(backend.path, d, uid, uids[0]) for d, uid in zip(devices, uses, strict=True)]
            with forked(prepares):
                backend.wait_asleep()
                found += _both(backend, each * len(uses))
    return sorted(found, key=lambda result: result.row)


def _both(backend: Backend, sessions: int) -> list[Result]:
    counted = f"{sessions} session{'s' if sessions > 1 else ''}"
    return [
        _spread("14a", f"PSS of the supervisor, {counted}", [pss(backend.supervisor)], "MiB"),
        _spread("14b", f"PSS of the zygote, {counted}", [pss(backend.zygote)], "MiB"),
    ]


def _idle(path: Path, devices: range, uid: int | None = None, gid: int = 0) -> Callable[[], Callable[[], None]]:
    """A process with a session for each device, which does nothing."""

    def prepare() -> Callable[[], None]:
        if uid is not None:
            os.setgroups([])
            os.setresgid(gid, gid, gid)
            os.setresuid(uid, uid, uid)
        held = [front.connect(path, devices=[f"ram{index}"], driver="bench", wait=5.0) for index in devices]
        return lambda: print(held)  # it stays stopped

    return prepare


def _free_ids(count: int) -> list[int]:
    """Uids that nobody has."""
    taken = {user.pw_uid for user in pwd.getpwall()}
    return [uid for uid in range(70000, 70000 + 100 * count) if uid not in taken][:count]


def _spread(row: str, name: str, values: Sequence[float], unit: str, target: float | None = None) -> Result:
    ordered = sorted(values)
    median = statistics.median(ordered)
    return Result(
        row=row,
        name=name,
        unit=unit,
        target=target,
        median=median,
        least=ordered[0],
        most=ordered[-1],
        p50=median,
        p99=ordered[max(len(ordered) - len(ordered) // 100 - 1, 0)],
        ratio=median,
    )
