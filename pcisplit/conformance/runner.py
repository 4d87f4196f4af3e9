# SPDX-License-Identifier: MIT
"""Run cases against a socket, each below a ceiling of time, so that a back which hangs the kit fails one case and no more."""

import contextlib
import dataclasses
import enum
import fnmatch
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Protocol

from pcisplit.conformance.case import CASES, Case, NotRun, Violation
from pcisplit.conformance.target import Target

#: Seconds that a case may take, with the fresh session after it; the longest of an honest back takes some 16.
CEILING = 45.0


class Outcome(enum.StrEnum):
    """What came of a case, best first."""

    PASSED = "passed"
    NOT_RUN = "not run"
    FAILED = "failed"


class Told(Protocol):
    """What a report needs of a case, of a back or of a front."""

    @property
    def name(self) -> str: ...
    @property
    def clauses(self) -> tuple[str, ...]: ...
    @property
    def proves(self) -> str: ...
    @property
    def chapter(self) -> str: ...


@dataclasses.dataclass(frozen=True, slots=True)
class Result:
    """What came of one case, in how many seconds; `message` says what was expected and what came."""

    case: Told
    outcome: Outcome
    seconds: float
    message: str = ""
    device: str = ""


class Ceiling(Exception):
    """A case took too long."""


@contextlib.contextmanager
def ceiling(seconds: float) -> Iterator[None]:
    """Raise Ceiling inside the block after so many seconds; in the main thread, the only one that a signal reaches."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def strike(number: int, frame: FrameType | None) -> None:
        raise Ceiling(f"the case still ran after {seconds:g} s")

    before = signal.signal(signal.SIGALRM, strike)
    signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)  # again, should the first strike where exceptions are dropped
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def run_case(target: Target, case: Case, limit: float = CEILING) -> Result:
    """Run one case; then a fresh session must still work, whatever the case has done to its own."""
    begin = time.monotonic()

    def result(outcome: Outcome, message: str = "") -> Result:
        return Result(case, outcome, time.monotonic() - begin, message, target.device.name)

    try:
        with ceiling(limit):
            target.fit(case)
            case.run(target)
    except NotRun as reason:
        return result(Outcome.NOT_RUN, str(reason))
    except Exception as problem:
        return result(Outcome.FAILED, told(problem))
    try:
        with ceiling(limit):
            target.check_alive()
    except Exception as problem:
        return result(Outcome.FAILED, f"after the case no fresh session works: {told(problem)}")
    return result(Outcome.PASSED)


def told(problem: Exception) -> str:
    return str(problem) if isinstance(problem, Violation) else f"{type(problem).__name__}: {problem}"


def chosen(pattern: str = "*", clause: str | None = None) -> list[Case]:
    """The cases whose name matches the shell pattern, of one clause if it is given."""
    return [
        case
        for case in CASES.values()
        if fnmatch.fnmatchcase(case.name, pattern) and (clause is None or clause in case.clauses)
    ]


def run_all(
    target: Target,
    pattern: str = "*",
    progress: Callable[[Result], None] = lambda result: None,
    clause: str | None = None,
) -> list[Result]:
    """Run the chosen cases; `progress` is called with each result."""
    results = []
    for case in chosen(pattern, clause):
        results.append(run_case(target, case))
        progress(results[-1])
    return results


def without_session(problem: Exception, cases: list[Case]) -> list[Result]:
    """The results when not even a first session came: its case has failed, the others could not be run."""
    first, text = CASES["session"], f"no first session: {told(problem)}"
    rest = [Result(case, Outcome.NOT_RUN, 0.0, "no first session") for case in cases if case is not first]
    return [Result(first, Outcome.FAILED, 0.0, text), *rest]
