# SPDX-License-Identifier: MIT
"""Looking at something until it changes, or making sure that it does not."""

import select
import time
from collections.abc import Callable

from pcisplit.conformance.case import DEADLINE, expect


def still(seconds: float, watch: Callable[[], object], what: str) -> None:
    """What `watch` returns does not change for `seconds`; Violation if it does."""
    before, deadline = watch(), time.monotonic() + seconds
    while time.monotonic() < deadline:
        now = watch()
        expect(now == before, f"{what} stays {before}", str(now))
        select.select([], [], [], 0.01)


def until(ready: Callable[[], bool], what: str, timeout: float = DEADLINE) -> None:
    """Look at `ready` until it holds, for what comes without a kick; Violation at the deadline."""
    deadline = time.monotonic() + timeout
    while not ready():
        expect(time.monotonic() < deadline, f"{what} within {timeout:g} s", "nothing")
        select.select([], [], [], 0.001)
