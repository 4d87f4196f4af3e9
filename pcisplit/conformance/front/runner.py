# SPDX-License-Identifier: MIT
"""Run cases against a front. Every wait of a case has a deadline, so that none hangs."""

import time
from collections.abc import Callable, Iterable, Sequence

from pcisplit.conformance.front.case import CASES, FrontCase
from pcisplit.conformance.front.process import Bench
from pcisplit.conformance.runner import Outcome, Result, told


def run_front_case(command: Sequence[str], case: FrontCase) -> Result:
    """Start the front and a back for it, run the case, end both."""
    begin = time.monotonic()
    try:
        with Bench(command) as bench:
            case.run(bench)
    except Exception as problem:
        return Result(case, Outcome.FAILED, time.monotonic() - begin, told(problem), command[0])
    return Result(case, Outcome.PASSED, time.monotonic() - begin, device=command[0])


def run_front(
    command: Sequence[str],
    cases: Iterable[FrontCase] | None = None,
    progress: Callable[[Result], None] = lambda result: None,
) -> list[Result]:
    """Every case, or those given; `progress` is called with each result."""
    results = []
    for case in CASES.values() if cases is None else cases:
        results.append(run_front_case(command, case))
        progress(results[-1])
    return results
