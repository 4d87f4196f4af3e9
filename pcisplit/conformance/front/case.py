# SPDX-License-Identifier: MIT
"""What a case of a front is, and the register of all."""

import dataclasses
from collections.abc import Callable

from pcisplit.conformance.front.process import Bench


@dataclasses.dataclass(frozen=True, slots=True)
class FrontCase:
    """One behaviour of a front, and how to see it."""

    name: str
    clauses: tuple[str, ...]
    proves: str
    run: Callable[[Bench], None]
    chapter: str = "front"


CASES: dict[str, FrontCase] = {}


def case(*clauses: str) -> Callable[[Callable[[Bench], None]], FrontCase]:
    """Register a function as a case of fronts."""

    def register(run: Callable[[Bench], None]) -> FrontCase:
        name = run.__name__.removeprefix("case_")
        CASES[name] = FrontCase(name, clauses, " ".join((run.__doc__ or "").split()), run)
        return CASES[name]

    return register


READ = "bar-read 0 0x10 4"
